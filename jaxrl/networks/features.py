"""From an observation to a network's input.

Observations keep their native dtype in the environment, in rollouts and in replay; here,
at the network's door, they become float32.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.normalize import RunningStats, normalize
from jaxrl.types import Array, PyTree

MASK = "action_mask"

Network = Literal["auto", "mlp", "cnn"]
"""Torso: by the observation's shape, or an MLP (a CNN) whatever the shape."""


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
    leaves = _leaves(space)
    values = jax.tree.leaves(_without_mask(obs))
    if image:
        return _as_float(leaves[0], values[0])
    flat = [_flat(leaf, value) for leaf, value in zip(leaves, values, strict=True)]
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


def action_mask(space: spaces.Space, obs: PyTree) -> Array | None:
    """The boolean mask of legal actions `[*batch, A]`, or None if there is none."""
    if isinstance(space, spaces.Dict) and MASK in space:
        return obs[MASK].astype(bool)
    return None


def _without_mask(obs: PyTree) -> PyTree:
    if isinstance(obs, dict):
        return {name: value for name, value in obs.items() if name != MASK}
    return obs


def _leaves(space: spaces.Space) -> list[spaces.Box | spaces.Discrete]:
    return jax.tree.leaves(_without_mask(spaces.tree(space)))


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
