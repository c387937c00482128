"""Prioritised replay: transitions are drawn in proportion to a power of their error.

Priorities stand beside a `ring.Ring`, one for each of its slots: slot = row · N + env, the
index that `ring.take` is given. Those of slots that were never written are 0.

A sum tree of four levels, whose nodes are as wide as the fourth root of what it holds.
A binary tree of as many slots has seventeen levels or more, and in a compiled loop the
number of operations is the time. A sum is recomputed from what it is the sum of whenever
that changes, so none of them drifts.

Draws are independent, not stratified: each has probability p^α / Σ p^α exactly, whatever
else is in the batch. With its own random number on each level, a draw is as fine among a
million slots as among a hundred.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

from jaxrl import estimators
from jaxrl.errors import InvalidInput
from jaxrl.replay import ring
from jaxrl.types import Array, Scalar

LEVELS = 4

BOUNDS = 1e-12, 1e12
"""Limits of p^α of a stored transition. An empty slot has 0; the sum of 2^31 of the largest
and the probability of the smallest are still ordinary float32 numbers."""


class Priorities(flax.struct.PyTreeNode):
    """The priorities p^α of all slots of a ring; 0 where nothing is stored."""

    slots: Array  # float32 [M * W^(LEVELS-1)]
    sums: tuple[Array, ...]  # float32 [M * W^(LEVELS-2)], ..., [M]: of W entries each
    largest: Array  # float32 []: the largest p^α ever, which new transitions get


def init(num_slots: int) -> Priorities:
    """Priorities of an empty memory.

    Args:
      num_slots: of the ring, a number: rows · N.

    Raises:
      InvalidInput: fewer than one, or more than int32 can index.
    """
    if not 1 <= num_slots < 2**30:
        raise InvalidInput(
            f"num_slots={num_slots} of prioritised replay must be from 1 to 2^30 - 1"
        )
    width = 2 ** round(math.log2(num_slots) / LEVELS)
    top = -(-num_slots // width ** (LEVELS - 1))
    slots, *sums = (
        jnp.zeros(top * width**level, jnp.float32) for level in reversed(range(LEVELS))
    )
    return Priorities(slots=slots, sums=tuple(sums), largest=jnp.float32(1.0))


def add(priorities: Priorities, memory: ring.Ring, num_rows: int) -> Priorities:
    """Give new transitions the largest priority that there has been, 1 at first.

    Every transition is thus likely to be learned from once, soon.

    Args:
      priorities: of the slots of the ring.
      memory: the ring *before* `ring.add` writes these rows.
      num_rows: T of the batch `[T, N, ...]` that is written; a multiple of its `chunk`.

    Returns:
      The priorities, updated in place as the ring is: one slice for each chunk.

    Source: Schaul et al. (2016), https://arxiv.org/abs/1511.05952, algorithm 1, line 6.
    """
    rows, num_envs = jax.tree.leaves(memory.data)[0].shape[:2]

    def write(i: Scalar, priorities: Priorities) -> Priorities:
        row = (memory.head.position + i * memory.chunk) % rows
        return _fill(priorities, row * num_envs, memory.chunk * num_envs)

    if num_rows == memory.chunk:
        return write(0, priorities)
    return jax.lax.fori_loop(0, num_rows // memory.chunk, write, priorities)


def sample(
    priorities: Priorities, key: Array, shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """Sample slots in proportion to their priorities, independently, with replacement.

    P(i) = p_i^α / Σ_k p_k^α

    Args:
      priorities: of which one at least is not 0.
      key: consumed.
      shape: of the batch.

    Returns:
      Slots, int32 `[*shape]`, for `ring.take`; the probability of each, float32 `[*shape]`.

    Source: Schaul et al. (2016), https://arxiv.org/abs/1511.05952, equation 1.
    """
    return find(priorities, draws(key, shape))


def draws(key: Array, shape: tuple[int, ...]) -> Array:
    """The randomness of `sample`, which a loop of updates draws ahead of all its steps.

    Args:
      key: consumed.
      shape: of the batches together.

    Returns:
      float32 `[*shape, LEVELS]`, uniform between 0 and 1 and neither of them: 2^-24 and
      its odd multiples.
    """
    return jax.random.uniform(key, (*shape, LEVELS)) + 2.0**-24


def find(priorities: Priorities, uniform: Array) -> tuple[Array, Array]:
    """The slots that some `draws` select, and the probability of each.

    Args:
      priorities: of which one at least is not 0.
      uniform: `[..., LEVELS]`.

    Returns:
      Slots, int32 `[...]`, and their probabilities, float32 `[...]`.

    Source: Schaul et al. (2016), https://arxiv.org/abs/1511.05952, appendix B.2.1, with
    wider nodes.
    """
    *lower, top = priorities.slots, *priorities.sums
    index = _choose(top, uniform[..., 0])
    for level, below in enumerate(reversed(lower), 1):
        nodes = below.reshape(-1, _width(priorities))
        child = _choose(_take(nodes, index), uniform[..., level])
        index = index * nodes.shape[1] + child
    probability = _take(priorities.slots, index) / top.sum()
    # Always so, where anything is stored. As the slots that are drawn depend on all that is
    # read here, an update of them comes after it: without this the memory would be copied.
    return jnp.where(probability > 0.0, index, 0), probability


def update(
    priorities: Priorities, index: Array, td_error: Array, alpha: Scalar, eps: Scalar
) -> Priorities:
    """Give transitions the priorities of their new errors, in place.

    An error that is not finite counts as the largest priority that there has been. Where a
    slot is in the batch twice, the larger of its priorities remains.

    Args:
      priorities: before.
      index: int32 `[...]` of stored transitions.
      td_error: `[...]` δ, of either sign.
      alpha: α, a scalar, traced or not: 0 draws uniformly.
      eps: ε, a scalar, added to |δ|.

    Returns:
      The priorities. The sum of every block that is touched is computed anew.

    Source: Schaul et al. (2016), https://arxiv.org/abs/1511.05952, algorithm 1, line 12.
    """
    index = index.reshape(-1)
    new = estimators.proportional_priority(td_error.reshape(-1), alpha, eps)
    new = jnp.clip(jnp.where(jnp.isfinite(new), new, priorities.largest), *BOUNDS)
    slots = priorities.slots.at[index].set(0.0, mode="promise_in_bounds")
    slots = slots.at[index].max(new, mode="promise_in_bounds")
    below, node, sums = slots, index, []
    for level in priorities.sums:
        node = node // _width(priorities)
        new_sums = _take(below.reshape(len(level), -1), node).sum(-1)
        below = level.at[node].set(new_sums, mode="promise_in_bounds")
        sums.append(below)
    largest = jnp.maximum(priorities.largest, new.max())
    return Priorities(slots=slots, sums=tuple(sums), largest=largest)


def _width(priorities: Priorities) -> int:
    """Entries in a node."""
    return len(priorities.slots) // len(priorities.sums[0])


def _fill(priorities: Priorities, start: Array, size: int) -> Priorities:
    """The largest priority in `size` consecutive slots, and the sums above them."""
    width = _width(priorities)
    new = jnp.broadcast_to(priorities.largest, size)
    slots = jax.lax.dynamic_update_slice_in_dim(priorities.slots, new, start, 0)
    below, sums = slots, []
    for level in priorities.sums:
        # As many nodes as there can be, wherever in the first of them the entries begin.
        size = min(len(level), (size + width - 2) // width + 1)
        start = jnp.minimum(start // width, len(level) - size)
        entries = jax.lax.dynamic_slice_in_dim(below, start * width, size * width)
        new = entries.reshape(size, width).sum(-1)
        below = jax.lax.dynamic_update_slice_in_dim(level, new, start, 0)
        sums.append(below)
    return priorities.replace(slots=slots, sums=tuple(sums))


def _choose(weight: Array, uniform: Array) -> Array:
    """Index of one of the weights `[..., W]`, in proportion to them: int32 `[...]`.

    Never one of weight 0, to whichever side the running sum is rounded.
    """
    width = weight.shape[-1]
    place = jnp.arange(width, dtype=jnp.int32)
    # One product: a running sum is a scan of several operations.
    below = (place[:, None] <= place).astype(weight.dtype)
    running = jnp.matmul(weight, below, precision="highest")
    threshold = (uniform * running[..., -1])[..., None]
    positive = weight > 0.0
    first = jnp.where(positive & (running > threshold), place, width).min(-1)
    last = jnp.where(positive, place, 0).max(-1)
    return jnp.minimum(first, last)


def _take(x: Array, index: Array) -> Array:
    """Entries of the first axis."""
    return x.at[index].get(mode="promise_in_bounds")
