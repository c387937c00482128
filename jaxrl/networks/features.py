"""From an observation to a network's input.

Observations keep their native dtype in the environment, in rollouts and in replay; here,
at the network's door, they become float32.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.normalize import RunningStats, normalize, update
from jaxrl.spaces import MASK
from jaxrl.types import Array, PyTree

Network = Literal["auto", "mlp", "cnn"]
"""Torso: by the observation's shape; or an MLP whatever the shape; or a CNN, which needs
an image."""


def uses_image(space: spaces.Space, network: Network) -> bool:
    """Whether the network sees an image `(H, W, C)` and not a flat vector."""
    leaves = _leaves(space)
    return network != "mlp" and len(leaves) == 1 and len(leaves[0].shape) == 3


def features(space: spaces.Space, obs: PyTree, image: bool = False) -> Array:
    """The observation as float32: a vector `[*batch, D]`, or an image `[*batch, H, W, C]`.

    A `Discrete` leaf is one-hot; a `uint8` leaf with upper bound 255 is divided by 255;
    the leaves of a dict are flattened and joined in the order of their names, without
    `action_mask`.
    """
    pairs = list(zip(_leaves(space), _leaves(space, obs), strict=True))
    if image:
        return _as_float(*pairs[0])
    flat = [_flat(leaf, value) for leaf, value in pairs]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=-1)


def feature_shape(space: spaces.Space, image: bool = False) -> tuple[int, ...]:
    """Shape of `features` for one observation."""
    leaves = _leaves(space)
    if image:
        return leaves[0].shape
    return (sum(_flat_size(leaf) for leaf in leaves),)


def network_input(
    space: spaces.Space, obs: PyTree, image: bool, stats: RunningStats | None
) -> Array:
    """`features`, normalised by running statistics where there are some."""
    x = features(space, obs, image)
    return x if stats is None else normalize(stats, x)


def updated_stats(
    space: spaces.Space, obs: PyTree, image: bool, stats: RunningStats | None
) -> RunningStats | None:
    """The statistics with the features of these observations; None where there are none."""
    return None if stats is None else update(stats, features(space, obs, image))


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
