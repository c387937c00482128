"""Uniform replay: a ring buffer of rows, where one row is one step of all N environments.

Pure functions over a pytree. The memory is written in place: every write is one
`dynamic_update_slice` of `chunk` whole rows at a head that is a multiple of `chunk`, as
is the number of rows, so a write never straddles the end of the buffer. The head is
`Shared`: all members of a population write at the same position. With separate heads the
write would become a scatter under `vmap`.

A transition holds its own `next_obs`, so one-step targets never read a pair of rows.
`ahead` gives the rows that follow, and leaves it to its caller where to stop.
"""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from jaxrl.errors import InvalidInput
from jaxrl.types import Array, Batches, PyTree, Shared


class Head(flax.struct.PyTreeNode, Shared):
    """Position of the next write, and the number of rows that hold data."""

    position: Array  # int32 []
    size: Array  # int32 []


class Ring(flax.struct.PyTreeNode):
    """The replay memory: rows `[0, head.size)` of every leaf hold data."""

    data: PyTree  # [rows, N, ...], in the dtypes of the example
    head: Head
    chunk: int = flax.struct.field(pytree_node=False, default=1)


def init(example: PyTree, capacity: int, num_envs: int, chunk: int = 1) -> Ring:
    """An empty ring of at least `capacity` transitions.

    Args:
      example: one transition, a pytree without batch axes: arrays or
        `jax.ShapeDtypeStruct`s.
      capacity: transitions to hold; rounded up to ceil(capacity / num_envs) rows, and
        that to a multiple of `chunk`.
      num_envs: N, the transitions in a row.
      chunk: rows written at once; the T of the batches that `add` is given.

    Returns:
      The ring, its data zeros.

    Raises:
      InvalidInput: for sizes below one, or more transitions than int32 can index.
    """
    if min(capacity, num_envs, chunk) < 1:
        raise InvalidInput(
            f"capacity={capacity}, num_envs={num_envs} and chunk={chunk} of a replay "
            "ring must each be 1 or more"
        )
    rows = -(-capacity // (num_envs * chunk)) * chunk
    if rows * num_envs >= 2**31:
        raise InvalidInput(
            f"a replay ring of {rows} x {num_envs} transitions is past the int32 limit "
            f"of 2^31; lower the capacity ({capacity})"
        )

    def empty(leaf: Array) -> Array:
        return jnp.zeros((rows, num_envs, *jnp.shape(leaf)), jnp.result_type(leaf))

    head = Head(position=jnp.int32(0), size=jnp.int32(0))
    return Ring(data=jax.tree.map(empty, example), head=head, chunk=chunk)


def add(ring: Ring, batch: PyTree) -> Ring:
    """Write the newest rows over the oldest.

    Args:
      ring: the ring; if it is donated to the jitted caller, the write is in place.
      batch: `[T, N, ...]`, T a multiple of the ring's `chunk`: written in order, chunk
        by chunk, in a single write when T = `chunk`.

    Returns:
      The ring, which holds the newest min(rows, everything added) rows.

    Raises:
      InvalidInput: T is not a multiple of `chunk`.

    Source: Lin (1992), "Self-improving reactive agents based on reinforcement learning,
    planning and teaching"; Mnih et al. (2015), "Human-level control through deep
    reinforcement learning".
    """
    num_rows = len(jax.tree.leaves(batch)[0])
    if num_rows == ring.chunk:
        return _write(ring, batch)
    if num_rows % ring.chunk:
        raise InvalidInput(
            f"a replay ring with chunk={ring.chunk} cannot take {num_rows} rows; "
            "add a multiple of chunk"
        )
    chunks = jax.tree.map(lambda x: x.reshape(-1, ring.chunk, *x.shape[1:]), batch)
    return jax.lax.scan(lambda r, chunk: (_write(r, chunk), None), ring, chunks)[0]


def sample(ring: Ring, key: Array, batch_size: int) -> PyTree:
    """Sample transitions uniformly, with replacement, from all that are stored.

    Args:
      ring: the ring, not empty.
      key: consumed.
      batch_size: B.

    Returns:
      A transition with arrays `[B, ...]`.

    Source: Lin (1992), "Self-improving reactive agents based on reinforcement learning,
    planning and teaching"; Mnih et al. (2015), "Human-level control through deep
    reinforcement learning".
    """
    return take(ring, sample_indices(ring, key, (batch_size,)))


def sample_indices(ring: Ring, key: Array, shape: tuple[int, ...]) -> Array:
    """Indices of stored transitions, uniform and independent: int32 `shape`.

    32 random bits times the number stored, shifted right by 32: the probability of an
    index is off by less than one part in 2^32 / `num_stored`, and unlike
    `jax.random.randint` this needs no division.

    Source: Lemire (2019), https://arxiv.org/abs/1805.10941, section 3.
    """
    bits = jax.random.bits(key, shape)
    return _upper_product(bits, num_stored(ring).astype(jnp.uint32)).astype(jnp.int32)


def take(ring: Ring, index: Array) -> PyTree:
    """The transitions at these indices, `[*index.shape, ...]`."""
    return take_from(ring.data, index)


def take_from(data: PyTree, index: Array) -> PyTree:
    """The same from some columns `[rows, N, ...]` of a ring's data."""

    def pick(x: Array) -> Array:
        flat = x.reshape(-1, *x.shape[2:])
        return flat.at[index].get(mode="promise_in_bounds")

    return jax.tree.map(pick, data)


def ahead(ring: Ring, index: Array, num_steps: int) -> tuple[Array, Array]:
    """The transitions that follow some in time.

    Args:
      ring: the ring.
      index: `[...]` of stored transitions.
      num_steps: n.

    Returns:
      Indices `[n, ...]`, the given ones first, and bool `[n, ...]`: whether it is the
      newest of its environment. What stands after the newest is older than the first.

    Source: Hessel et al. (2018), https://arxiv.org/abs/1710.02298, "Multi-step learning".
    """
    rows, num_envs = jax.tree.leaves(ring.data)[0].shape[:2]
    later = jnp.arange(num_steps).reshape(-1, *[1] * index.ndim) * num_envs
    found = (index + later) % (rows * num_envs)
    return found, found // num_envs == (ring.head.position - 1) % rows


def batches(ring: Ring, key: Array, num_updates: int, batch_size: int) -> Batches:
    """Batches for `optim.fit`, each as `sample` draws it: `[B, ...]`.

    Source: Mnih et al. (2015), "Human-level control through deep reinforcement learning".
    """
    index = sample_indices(ring, key, (num_updates, batch_size))
    return Batches(index, partial(take, ring), index.size)


def num_stored(ring: Ring) -> Array:
    """Number of transitions that the ring holds: int32 []."""
    num_envs = jax.tree.leaves(ring.data)[0].shape[1]
    return ring.head.size * num_envs


def _write(ring: Ring, rows: PyTree) -> Ring:
    """Write `chunk` rows at the head and advance it, wrapping around."""
    num_rows = len(jax.tree.leaves(ring.data)[0])
    start = ring.head.position

    def put(x: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), start, 0)

    head = Head(
        position=(start + ring.chunk) % num_rows,
        size=jnp.minimum(ring.head.size + ring.chunk, num_rows),
    )
    return ring.replace(data=jax.tree.map(put, ring.data, rows), head=head)


def _upper_product(x: Array, y: Array) -> Array:
    """Upper 32 bits of a product of uint32, computed by halves: JAX has no uint64."""
    x0, x1 = x & 0xFFFF, x >> 16
    y0, y1 = y & 0xFFFF, y >> 16
    middle = x1 * y0 + (x0 * y0 >> 16)
    return x1 * y1 + (middle >> 16) + ((x0 * y1 + (middle & 0xFFFF)) >> 16)
