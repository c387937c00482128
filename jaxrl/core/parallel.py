"""Data parallelism of one agent: environments are sharded, gradients averaged.

Inside a `shard_map` over the mesh axis `AXIS` every device holds all parameters and its
share of the environments. An algorithm needs only the functions below. Outside of such a
`shard_map` each of them is the identity, so the code reads as for one device. The result
is that of one device up to rounding: random numbers, minibatches and statistics are those
of the whole batch.
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode
from jax.sharding import PartitionSpec

from jaxrl.types import Array, PyTree

AXIS = "data"
"""The mesh axis over which the environments of a run are sharded."""


def num_shares() -> int:
    """Number of devices that train this agent together."""
    try:
        return jax.lax.axis_size(AXIS)
    except NameError:  # no such axis: one device
        return 1


def own_key(key: Array) -> Array:
    """A random key that is unique to this device."""
    if num_shares() == 1:
        return key
    return jax.random.fold_in(key, jax.lax.axis_index(AXIS))


def share(x: PyTree, axis: int = 0) -> PyTree:
    """This device's part of arrays that every device holds in full."""
    count = num_shares()
    if count == 1:
        return x

    def part(x: Array) -> Array:
        size = x.shape[axis] // count
        start = jax.lax.axis_index(AXIS) * size
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis)

    return jax.tree.map(part, x)


def gather(x: PyTree, axis: int = 0) -> PyTree:
    """The arrays of all devices, joined along `axis`: undoes `share`."""
    if num_shares() == 1:
        return x
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, axis=axis, tiled=True), x)


def total(x: PyTree) -> PyTree:
    """The sum over all devices."""
    return x if num_shares() == 1 else jax.lax.psum(x, AXIS)


def mean(x: PyTree) -> PyTree:
    """The mean over all devices, for gradients or for means of equally many numbers."""
    return x if num_shares() == 1 else jax.lax.pmean(x, AXIS)


def largest(x: PyTree) -> PyTree:
    """The maximum over all devices."""
    return x if num_shares() == 1 else jax.lax.pmax(x, AXIS)


def variance(x: Array, axes: tuple[int, ...] | None = None) -> Array:
    """The biased variance of the numbers of all devices, over `axes` or all."""
    middle = mean(x.mean(axes, keepdims=True))
    return mean(jnp.square(x - middle).mean(axes))


def partition(state: PyTree) -> PyTree:
    """Sharding of a state: a prefix tree of `PartitionSpec`s.

    Fields marked `types.per_env` are sharded along their axis of environments, which
    follows the axis of members; everything else is replicated.
    """
    if not isinstance(state, PyTreeNode):
        return PartitionSpec()
    specs: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, state)):
        value = getattr(state, field.name)
        marked = field.metadata.get("per_env", False)
        sharded = PartitionSpec(None, AXIS)
        specs[field.name] = sharded if marked else partition(value)
    return state.replace(**specs)
