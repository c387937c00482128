"""Seconds of a draw and of an update of priorities: wide nodes against a binary tree.

    python -m benchmarks.prioritised                    # a few minutes on one core
    python -m benchmarks.prioritised --quick --out DIR

Both hold the same priorities of 100,000 and of 1,000,000 transitions and draw or update
batches of 128 of them, in a compiled loop as training does; a uniform draw stands beside
them. Each number is the median of interleaved repeats. Writes results/prioritised.json.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.core.prng import key
from jaxrl.replay import prioritised, ring
from jaxrl.runs.experiment import commit, versions
from jaxrl.types import Array, PyTree

RESULTS = Path(__file__).parent / "results"
SIZES = (100_000, 1_000_000)
BATCH = 128
ALPHA, EPS = 0.6, 1e-6


class Structure(NamedTuple):
    """A way to hold priorities.

    build:  `p [n] -> state`
    find:   `(state, uniform [B, LEVELS]) -> (slots [B], probability [B])`
    update: `(state, slots [B], td_error [B]) -> state`
    """

    build: Callable
    find: Callable
    update: Callable


def blocks_of(p: Array) -> prioritised.Priorities:
    """These numbers as `jaxrl.replay` holds them."""
    empty = prioritised.init(len(p))
    slots, sums = jnp.pad(p, (0, len(empty.slots) - len(p))), []
    for level in empty.sums:
        below = sums[-1] if sums else slots
        sums.append(below.reshape(len(level), -1).sum(-1))
    return empty.replace(slots=slots, sums=tuple(sums))


def tree_of(p: Array) -> Array:
    """The binary sum tree `[2 L]`: the children of i are 2 i and 2 i + 1, the root is 1."""
    level = jnp.pad(p, (0, (1 << (len(p) - 1).bit_length()) - len(p)))
    levels = [level]
    while len(level) > 1:
        level = level.reshape(-1, 2).sum(-1)
        levels.append(level)
    return jnp.concatenate([jnp.zeros(1), *levels[::-1]])


def find_in_tree(tree: Array, uniform: Array) -> tuple[Array, Array]:
    """Schaul et al. (2016), https://arxiv.org/abs/1511.05952, appendix B.2.1."""
    left = uniform[:, 0] * tree[1]
    node = jnp.ones(len(uniform), jnp.int32)
    for _ in range(depth(tree)):
        below = tree.at[2 * node].get(mode="promise_in_bounds")
        goes_right = left >= below
        left = jnp.where(goes_right, left - below, left)
        node = 2 * node + goes_right
    weight = tree.at[node].get(mode="promise_in_bounds")
    return node - len(tree) // 2, weight / tree[1]


def update_tree(tree: Array, index: Array, td_error: Array) -> Array:
    node = index + len(tree) // 2
    tree = tree.at[node].set((jnp.abs(td_error) + EPS) ** ALPHA)
    for _ in range(depth(tree)):
        node = node // 2
        tree = tree.at[node].set(tree[2 * node] + tree[2 * node + 1])
    return tree


def depth(tree: Array) -> int:
    return len(tree).bit_length() - 2


STRUCTURES = {
    "blocks": Structure(
        blocks_of,
        prioritised.find,
        partial(prioritised.update, alpha=ALPHA, eps=EPS),
    ),
    "binary tree": Structure(tree_of, find_in_tree, update_tree),
}


def draw_loop(find: Callable, state: PyTree, uniform: Array) -> tuple[PyTree, Array]:
    """Draws from priorities that change between them: nothing is computed once for all."""

    def step(carry: tuple[PyTree, Array], uniform: Array) -> tuple[tuple, None]:
        state, total = carry
        state = jax.tree.map(lambda x: x.at[(0,) * x.ndim].add(0.0 * total), state)
        index, probability = find(state, uniform)
        return (state, index.sum(dtype=jnp.float32) + probability.sum()), None

    return jax.lax.scan(step, (state, jnp.float32(0.0)), uniform)[0]


def update_loop(
    update: Callable, state: PyTree, index: Array, error: Array
) -> tuple[PyTree, Array]:
    def step(state: PyTree, x: tuple[Array, Array]) -> tuple[PyTree, None]:
        return update(state, *x), None

    return jax.lax.scan(step, state, (index, error))[0], error[0, 0]


def programs(size: int, steps: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; each is compiled and makes `steps` draws or updates."""
    keys = jax.random.split(key(0), 4)
    p = jax.random.uniform(keys[0], (size,)) ** 4
    uniform = prioritised.draws(keys[1], (steps, BATCH))
    index = jax.random.randint(keys[2], (steps, BATCH), 0, size)
    error = jax.random.normal(keys[3], (steps, BATCH))
    found = {}
    for name, (build, find, update) in STRUCTURES.items():
        state = jax.jit(build)(p)
        draws = in_place(partial(draw_loop, find), state, uniform)
        updates = in_place(partial(update_loop, update), state, index, error)
        found |= {f"{name}, draw": draws, f"{name}, update": updates}
    memory = ring.init(jnp.float32(0.0), size, 1)
    memory = memory.replace(head=memory.head.replace(size=jnp.int32(size)))
    sampled = jax.jit(partial(ring.sample_indices, shape=(steps, BATCH)))
    return found | {"uniform, draw": partial(sampled, memory, keys[1])}


def in_place(loop: Callable, state: PyTree, *given: Array) -> Callable[[], Array]:
    """A call that goes on with the state that the call before it left."""
    run = jax.jit(loop, donate_argnums=0)
    held = [jax.tree.map(jnp.copy, state)]

    def call() -> Array:
        held[0], found = run(held[0], *given)
        return jax.block_until_ready(found)

    return call


def measure(size: int, steps: int, repeats: int) -> dict[str, float]:
    """Median microseconds of a draw or an update of a batch."""
    calls = programs(size, steps)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):  # the first compiles
        for name, call in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {
        name: round(1e6 * statistics.median(x) / steps, 2)
        for name, x in seconds.items()
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """Microseconds of a batch, a row for each number of transitions."""
    names = list(next(iter(rows.values())))
    lines = [f"| transitions | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for size, found in rows.items():
        cells = " | ".join(f"{found[name]:.1f} µs" for name in names)
        lines.append(f"| {int(size):,} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, seconds")
    parser.add_argument("--out", help="a folder for the file; needed with --quick")
    arguments = parser.parse_args()
    if arguments.quick and not arguments.out:
        parser.error("--quick needs --out, or it would overwrite the real results")
    steps, repeats = (20, 2) if arguments.quick else (1_000, 9)
    rows = {str(size): measure(size, steps, repeats) for size in SIZES}
    results = {
        "command": "python -m benchmarks.prioritised",
        "commit": commit(),
        "versions": versions(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "batch": BATCH,
        "rows": rows,
    }
    file = Path(arguments.out or RESULTS) / "prioritised.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
