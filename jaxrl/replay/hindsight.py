"""Hindsight: transitions as if a goal that was reached later had been the one wanted.

A goal is taken from the same episode, at sampling time, so nothing is stored twice. The
memory's rows hold the step of their episode; by it the episode's end is found, in
log2(rows) reads.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl.replay import ring
from jaxrl.types import Array, PyTree

Hindsight = Literal["none", "final", "future"]
"""Which later goal: none, the episode's last, or any."""


def episode_steps(done: Array, first: Array) -> Array:
    """How many steps of its episode lie before each row, int32 `[T, N]`.

    Args:
      done: bool `[T, N]`, whether an episode ends with a row.
      first: int32 `[N]`, the steps before the first row.

    Returns:
      int32 `[T, N]`.
    """
    time = jnp.arange(len(done), dtype=jnp.int32)[:, None]
    ended = jax.lax.cummax(jnp.where(done, time, -1), axis=0)
    ended = jnp.concatenate([jnp.full_like(ended[:1], -1), ended[:-1]])
    return jnp.where(ended < 0, first[None] + time, time - ended - 1)


def steps_left(memory: ring.Ring, step: Array, index: Array) -> Array:
    """How many stored transitions of the same episode follow, int32 `[B]`.

    Of the rows ahead of one in an episode those that belong to it are the first: the
    step of their episode is as much larger. A binary search finds the last of them.

    Args:
      memory: the ring.
      step: int32 `[rows, N]`, the step of the episode in each row.
      index: int32 `[B]` of stored transitions.

    Returns:
      int32 `[B]`, 0 where an episode ends or its next step is not stored yet.
    """
    rows, num_envs = step.shape
    begun = ring.take_from(step, index)
    age = (memory.head.position - 1 - index // num_envs) % rows  # rows written since

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        inside, outside = bounds
        middle = (inside + outside) // 2
        there = (index + middle * num_envs) % (rows * num_envs)
        same = ring.take_from(step, there) == begun + middle
        return jnp.where(same, middle, inside), jnp.where(same, outside, middle)

    bounds = jnp.zeros_like(index), age + 1
    return jax.lax.fori_loop(0, int(rows).bit_length(), halve, bounds)[0]


def goals(
    memory: ring.Ring,
    step: Array,
    achieved: PyTree,
    index: Array,
    draw: Array,
    strategy: Hindsight,
) -> PyTree:
    """Goals `[B, ...]` that the episodes of transitions reached, not before them.

    Args:
      memory: the ring.
      step: int32 `[rows, N]`, the step of the episode in each row.
      achieved: `[rows, N, ...]`, the goal that each row's step reached.
      index: int32 `[B]` of stored transitions.
      draw: `[B]`, uniform in [0, 1).
      strategy: "final" for the last that is stored, "future" for any from this step's on.

    Returns:
      The goals, `[B, ...]`.

    Source: Andrychowicz et al. (2017), https://arxiv.org/abs/1707.01495, sections 3.3
    and 4.5.
    """
    rows, num_envs = step.shape
    ahead = steps_left(memory, step, index)
    if strategy == "future":
        ahead = jnp.minimum((draw * (ahead + 1)).astype(jnp.int32), ahead)
    there = (index + ahead * num_envs) % (rows * num_envs)
    return ring.take_from(achieved, there)
