"""Overhead of the NaN guard, logging and checkpoints.

    python -m benchmarks.overhead                    # ten minutes on two cores
    python -m benchmarks.overhead --quick --out DIR

guard    a train step with and without the checks for NaN and Inf;
         alternating in one process, medians
cadence  runs of a minute or more at the default settings: the part of the time in which
         the device waits for rows, checkpoints and whatever else the host does, and the
         programs compiled after the start

Writes benchmarks/results/overhead.json, which docs/reliability.md shows.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.speed import script
from benchmarks.speed.cases import CASES
from jaxrl import Experiment, make, rollout, run_experiment
from jaxrl.algorithms import ALGORITHMS
from jaxrl.core.config import with_floats
from jaxrl.runs.experiment import commit, versions
from jaxrl.training import loop, population

HERE = Path(__file__).parent
PARTS = ["guard", "cadence"]
GUARDED = {"B1": 100, "B3": 2, "B5": 2_000}
"""Cases, with the train steps of one call."""

RUNS = {"B1": 12e6, "B5": 4e6, "B6a": 300e3}
"""Cases, with the environment steps of a run that takes a minute or more."""


def main() -> None:
    parser = script.parser(__doc__, PARTS)
    arguments, file, rows = script.opened(parser, HERE / "results", "overhead.json")
    repeats, share = (2, 0.01) if arguments.quick else (61, 1.0)
    if "guard" in arguments.parts:
        for name, steps in GUARDED.items():
            rows[f"guard, {name}"] = guard(name, max(1, round(steps * share)), repeats)
    if "cadence" in arguments.parts:
        for name, total in RUNS.items():
            rows[f"cadence, {name}"] = cadence(name, max(30e3, total * share))
    about = {"versions": versions(), "command": "python -m benchmarks.overhead"}
    file.write_text(
        json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    print(table(rows))


def guard(name: str, steps: int, repeats: int) -> dict[str, float]:
    """Seconds of `steps` train steps with and without the guard."""
    case = CASES[name]
    algorithm = ALGORITHMS[case.algorithm]
    config, env = with_floats(algorithm.Config(**case.config)), make(case.env)
    state = jax.jit(partial(algorithm.init, config, env))(loop.keys([0])[0])
    programs = [
        partial(compiled(partial(loop, algorithm, config, env), state), state)
        for loop in (watched, unwatched)
    ]
    times: list[list[float]] = [[], []]
    for _ in range(repeats):
        for i, program in enumerate(programs):
            started = time.perf_counter()
            jax.block_until_ready(program(jnp.int32(steps)))
            times[i].append(time.perf_counter() - started)
    ratios = [a / b - 1 for a, b in zip(*times, strict=True)]
    return {
        "with_seconds": statistics.median(times[0]),
        "without_seconds": statistics.median(times[1]),
        "cost": statistics.median(ratios),
        "repeats": repeats,
        "commit": commit(),
    }


def watched(algorithm: Any, config: Any, env: Any, state: Any, length: Any) -> Any:
    tally = population.no_tally(algorithm, config, env, state)
    return population.go_on(algorithm, config, env, state, tally, length, freeze=False)


def unwatched(algorithm: Any, config: Any, env: Any, state: Any, length: Any) -> Any:
    """The same loop without the guard; it only sums metrics."""
    sums = population.no_tally(algorithm, config, env, state).metrics
    names = sorted(sums)

    def body(_: Any, carry: tuple) -> tuple:
        state, sums = carry
        state, metrics = algorithm.train_step(config, env, state)
        return state, sums + jnp.stack(population._numbers(metrics, names))

    start = (state, jnp.stack(population._numbers(sums, names)))
    watching = rollout._trouble
    rollout._trouble = lambda world, transitions: jnp.zeros_like(world.trouble)
    try:
        return jax.lax.fori_loop(0, length, body, start)
    finally:
        rollout._trouble = watching


def compiled(function: Callable, state: Any) -> Callable:
    jax.clear_caches()  # or what the other traced would be found
    return jax.jit(function).lower(state, jnp.int32(1)).compile()


def cadence(name: str, total_steps: float) -> dict[str, float]:
    """Measure a run of the command line: time of the device, and the rest, of the host."""
    case = CASES[name]
    algorithm = ALGORITHMS[case.algorithm]
    config = algorithm.Config(**case.config | {"total_steps": total_steps})
    on_device, programs, advance = [0.0], [], loop.advance

    def timed(job: Any, progress: Any, length: int) -> Any:
        started = time.perf_counter()
        progress = jax.block_until_ready(advance(job, progress, length))
        if length:  # a call of no train steps compiles
            on_device[0] += time.perf_counter() - started
        programs.append(population.run_population._cache_size())
        return progress

    loop.advance = timed
    try:
        with tempfile.TemporaryDirectory() as folder:
            _, summary = run_experiment(
                Experiment(algorithm, config, case.env),
                Path(folder) / "run",
                progress=False,
                report=lambda line: None,
            )
    finally:
        loop.advance = advance
    seconds = summary["run_seconds"]
    return {
        "run_seconds": seconds,
        "cost": 1 - on_device[0] / seconds,
        "recompiles": programs[-1] - programs[0],
        "commit": commit(),
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    lines = ["| what | seconds | cost |", "|---|---|---|"]
    for name, row in rows.items():
        seconds = row.get("run_seconds") or row["with_seconds"]
        lines.append(f"| {name} | {seconds:.1f} | {row['cost']:.2%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
