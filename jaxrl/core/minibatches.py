"""Minibatches: shuffling without a sort, and reading many arrays in one operation.

`jax.random.permutation` sorts random keys, twice for more than about 1,600 elements. On
CPU that takes 32 ms for 65,536 of them, six gradients of 8,192 rows; this takes 0.2 ms
(benchmarks/tricks.py).
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl.types import Array, PyTree

ROUNDS = 2
"""Passes over columns and rows: four half-rounds of a Feistel network."""

SHORTEST_SIDE = 16
"""A grid with a shorter side has too few rotations to be a shuffle."""


def random_permutation(key: Array, size: int) -> Array:
    """The numbers 0, ..., size - 1 in random order, int32 `[size]`.

    They are laid out in a grid of R rows and C columns, as square as `size` allows. Every
    column is rotated by its own random amount, then every row, and both once more:

    r <- r + F_k(c) mod R,    c <- c + G_k(r) mod C,    k = 1, 2

    Each rotation is a bijection, so each number appears exactly once. This is a Feistel
    network, and its round functions F and G are truly random, so the result looks like a
    uniformly random order to any test that sees few elements of it at a time. Sizes
    without such a grid, small or nearly prime, are sorted.

    Args:
      key: consumed.
      size: the length of the order.

    Source: Luby and Rackoff (1988), "How to construct pseudorandom permutations from
    pseudorandom functions": four half-rounds.
    """
    rows, columns = _grid(size)
    if rows < SHORTEST_SIDE:
        return jax.random.permutation(key, size)
    bits = jax.random.bits(key, (ROUNDS, columns + rows))
    column_turns = (bits[:, :columns] % rows).astype(jnp.int32)
    row_turns = (bits[:, columns:] % columns).astype(jnp.int32)

    def both_half_rounds(cell: tuple, turns: tuple) -> tuple[tuple, None]:
        r, c = cell
        r = _rotate(r, turns[0], c, rows)
        c = _rotate(c, turns[1], r, columns)
        return (r, c), None

    # A loop: otherwise XLA recomputes the random bits for every element that reads them.
    cell = jnp.divmod(jnp.arange(size, dtype=jnp.int32), columns)
    (r, c), _ = jax.lax.scan(both_half_rounds, cell, (column_turns, row_turns))
    return r * columns + c


def minibatches(key: Array, size: int, num_epochs: int, num_minibatches: int) -> Array:
    """Row indices of every gradient step: int32 `[num_epochs * num_minibatches, B]`.

    Each epoch is a new order of all `size` rows, cut into minibatches of
    B = size / num_minibatches.
    """
    keys = jax.random.split(key, num_epochs)
    orders = jax.vmap(lambda key: random_permutation(key, size))(keys)
    return orders.reshape(-1, size // num_minibatches)


WIDEST = 64
"""Longest row to be concatenated; longer rows are read in place, to save memory."""


def reader(batch: PyTree) -> Callable[[Array], PyTree]:
    """A function `index -> batch[:, index]` for a pytree `batch` `[T, N, ...]`.

    Short rows of 32-bit numbers are concatenated once and read together: in the loop of a
    small agent that is one operation instead of six.
    """
    leaves, structure = jax.tree.flatten(batch)
    sizes = [
        math.prod(x.shape[2:]) if x.dtype in (jnp.float32, jnp.int32) else math.inf
        for x in leaves
    ]
    bits = [
        jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(*x.shape[:2], -1)
        for x, size in zip(leaves, sizes, strict=True)
        if size <= WIDEST
    ]
    together = jnp.concatenate(bits, axis=-1)
    ends = list(itertools.accumulate(x.shape[-1] for x in bits))

    def read(index: Array) -> PyTree:
        columns = iter(jnp.split(together[:, index], ends[:-1], axis=-1))

        def rows(x: Array, size: float) -> Array:
            if size > WIDEST:
                return x[:, index]
            bits = next(columns).reshape(len(x), *index.shape, *x.shape[2:])
            return jax.lax.bitcast_convert_type(bits, x.dtype)

        return jax.tree.unflatten(structure, map(rows, leaves, sizes))

    return read


def _grid(size: int) -> tuple[int, int]:
    """(R, C) with R · C = size, where R is the largest divisor up to √size."""
    rows = next(r for r in range(math.isqrt(size), 0, -1) if size % r == 0)
    return rows, size // rows


def _rotate(position: Array, turns: Array, line: Array, length: int) -> Array:
    """Rotate positions on lines of a given length by the turn of their line."""
    moved = position + turns.at[line].get(mode="promise_in_bounds")
    return jnp.where(moved >= length, moved - length, moved)
