"""From an observation to a network's input.

Observations keep their native dtype in the environment, in rollouts and in replay; here,
at the network's door, they become float32.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.normalize import RunningStats, normalize
from jaxrl.spaces import MASK
from jaxrl.types import Array, PyTree


def is_image(space: spaces.Space) -> bool:
    """Whether an observation is one image `(H, W, C)`."""
    leaves = _leaves(space)
    return len(leaves) == 1 and len(leaves[0].shape) == 3


def encode(
    space: spaces.Space,
    obs: PyTree,
    takes: str = "vector",
    stats: RunningStats | None = None,
) -> PyTree:
    """A network's input: the observation as float32, normalised by `stats` if given.

    A `Discrete` leaf is one-hot; a `uint8` leaf with upper bound 255 is divided by 255;
    the leaves of a dict are flattened and joined in the order of their names, without
    `action_mask`.

    Args:
      space: the observation space.
      obs: observations with any batch axes.
      takes: "vector" gives `[*batch, D]`, "image" `[*batch, H, W, C]`, "raw" the
        observation as it is.
      stats: running statistics of the encoded observation.
    """
    x = obs if takes == "raw" else features(space, obs, takes == "image")
    return x if stats is None else normalize(stats, x)


def features(space: spaces.Space, obs: PyTree, image: bool = False) -> Array:
    """The observation as a float32 vector `[*batch, D]` or an image `[*batch, H, W, C]`."""
    pairs = list(zip(_leaves(space), _leaves(space, obs), strict=True))
    if image:
        return _as_float(*pairs[0])
    flat = [_flat(leaf, value) for leaf, value in pairs]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=-1)


def encoded_shape(space: spaces.Space, takes: str = "vector") -> tuple[int, ...]:
    """Shape of `encode` for one observation that is one array."""
    leaves = _leaves(space)
    if takes != "vector":
        return leaves[0].shape
    return (sum(_flat_size(leaf) for leaf in leaves),)


def is_one_box(space: spaces.Space) -> bool:
    """Whether an observation is one array of numbers, without mask or names."""
    return isinstance(space, spaces.Box)


def mask_space(space: spaces.Space) -> spaces.Box | spaces.Discrete | None:
    """The space of the leaf named `action_mask`, wherever in the dict, or None."""
    found = _leaves(space, masks=True)
    return found[0] if found else None


def action_mask(space: spaces.Space, obs: PyTree) -> Array | None:
    """The boolean mask of legal actions `[*batch, A]`, or None if there is none."""
    found = _leaves(space, obs, masks=True)
    return found[0].astype(bool) if found else None


def _leaves(space: spaces.Space, values: PyTree = None, masks: bool = False) -> list:
    """The leaves of the space, or of values structured like it: all but the action
    mask, or only that."""
    structure: Any
    paths, structure = jax.tree_util.tree_flatten_with_path(spaces.tree(space))
    leaves = [leaf for _, leaf in paths]
    if values is not None:
        leaves = structure.flatten_up_to(values)
    is_mask = [bool(path) and path[-1].key == MASK for path, _ in paths]
    return [leaf for leaf, m in zip(leaves, is_mask, strict=True) if m == masks]


def _flat_size(leaf: spaces.Box | spaces.Discrete) -> int:
    return leaf.n if isinstance(leaf, spaces.Discrete) else leaf.size


def _flat(leaf: spaces.Box | spaces.Discrete, x: Array) -> Array:
    """One leaf as a vector: `[*batch, *leaf.shape]` -> float32 `[*batch, D]`."""
    batch = x.shape[: x.ndim - len(leaf.shape)]
    if isinstance(leaf, spaces.Discrete):
        return jax.nn.one_hot(x, leaf.n, dtype=jnp.float32)
    return _as_float(leaf, x).reshape(*batch, leaf.size)


def _as_float(leaf: spaces.Box | spaces.Discrete, x: Array) -> Array:
    is_byte_image = (
        isinstance(leaf, spaces.Box) and leaf.dtype == "uint8" and max(leaf.high) == 255
    )
    return x.astype(jnp.float32) / (255.0 if is_byte_image else 1.0)
