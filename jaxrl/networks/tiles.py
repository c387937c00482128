"""Tile coding: a few numbers as many binary features, of which a few are active."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl.errors import InvalidInput
from jaxrl.types import Array


class Tiles(NamedTuple):
    """Several grids over a box, each a little displaced; build one with `tiling`."""

    low: tuple[float, ...]  # [D]
    width: tuple[float, ...]  # [D], of one tile
    num_tilings: int  # K, which is also the number of active features
    num_tiles: int  # in each direction, without the one that the displacement adds

    @property
    def num_features(self) -> int:
        return self.num_tilings * (self.num_tiles + 1) ** len(self.low)


def tiling(
    low: Sequence[float],
    high: Sequence[float],
    num_tilings: int = 8,
    num_tiles: int = 8,
) -> Tiles:
    """A tile coder of the box from `low` to `high` `[D]`.

    Args:
      low: the least value of each number.
      high: the greatest.
      num_tilings: K, best a power of 2 and at least 4 D.
      num_tiles: how many tiles of one tiling the box is wide.

    Raises:
      InvalidInput: for bounds that are no box.

    Source: Sutton and Barto (2018), section 9.5.4.
    """
    low_array, high_array = np.asarray(low, float), np.asarray(high, float)
    sound = low_array.shape == high_array.shape and low_array.ndim == 1
    if not (sound and np.isfinite(high_array - low_array).all()) or not (
        (low_array < high_array).all()
    ):
        raise InvalidInput(
            f"low = {low}, high = {high}: must be finite numbers, low below high."
        )
    for name, value in (("num_tilings", num_tilings), ("num_tiles", num_tiles)):
        if value < 1:
            raise InvalidInput(f"{name} = {value!r}: must be at least 1.")
    width = (high_array - low_array) / num_tiles
    return Tiles(
        tuple(low_array.tolist()), tuple(width.tolist()), num_tilings, num_tiles
    )


def active_tiles(tiles: Tiles, obs: Array) -> Array:
    """The active feature of each tiling.

    tile of s_i in tiling k = floor((floor(K u_i) + (k (2i + 1) mod K)) / K)

    where u_i = (s_i - low_i) / width_i. Tiling k is displaced by k (1, 3, 5, ...) K-ths of
    a tile, asymmetrically, because equal displacements of all numbers leave the diagonal
    its own (S&B, figure 9.11). Outside the box the nearest tile is active.

    Args:
      tiles: the tile coder.
      obs: `[..., D]`.

    Returns:
      int32 `[..., K]`, different numbers below `tiles.num_features`.

    Source: Sutton and Barto (2018), section 9.5.4.
    """
    side = tiles.num_tiles + 1
    dimensions = np.arange(len(tiles.low))
    k = np.arange(tiles.num_tilings)[:, None]
    shift = k * (2 * dimensions + 1) % tiles.num_tilings  # [K, D]
    unit = (obs - jnp.array(tiles.low)) / jnp.array(tiles.width)
    unit = jnp.clip(unit, 0.0, tiles.num_tiles)
    fine = jnp.floor(unit * tiles.num_tilings).astype(jnp.int32)[..., None, :]
    tile = (fine + shift) // tiles.num_tilings  # [..., K, D], 0 ... side - 1
    place = (tile * side**dimensions).sum(-1)
    return place + np.arange(tiles.num_tilings) * side ** len(tiles.low)


def tile_features(tiles: Tiles, obs: Array) -> Array:
    """`active_tiles` as float32 features `[..., F]`, zeros but for K ones.

    Args:
      tiles: the tile coder.
      obs: `[..., D]`.

    Source: Sutton and Barto (2018), section 9.5.4.
    """
    active = active_tiles(tiles, obs)[..., None]
    return (active == jnp.arange(tiles.num_features)).any(-2).astype(jnp.float32)
