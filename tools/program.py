"""Operation counts of the compiled training programs, a measure of speed without a clock.

    python -m tools.program            # prints the counts of each program for this jaxlib
    python -m tools.program --update   # writes it to tests/golden/program.json

Time on CPU and GPU depends on the operations in the body of the loop, so a rise is a
loss of speed that no other test detects. The numbers depend on the compiler and are kept
by version of jaxlib.
"""

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

from jaxrl import DQN, PPO, REINFORCE, make
from jaxrl.core.config import with_floats
from jaxrl.training import loop, population
from jaxrl.types import Algorithm, Env

FILE = Path(__file__).parents[1] / "tests" / "golden" / "program.json"
VERSION = jaxlib.__version__

PROGRAMS: dict[str, tuple[Algorithm, dict[str, Any], int]] = {
    "ppo": (PPO, {"num_envs": 4, "hidden_sizes": (32, 32)}, 1),
    "ppo-gru": (
        PPO,
        {"num_envs": 4, "network": "gru(size=8)", "hidden_sizes": (32,)},
        1,
    ),
    "reinforce": (REINFORCE, {"num_envs": 4, "hidden_sizes": (32, 32)}, 1),
    "dqn": (DQN, {"hidden_sizes": (32, 32), "buffer_size": 50_000}, 1),
    "dqn-population": (DQN, {"hidden_sizes": (32, 32), "buffer_size": 50_000}, 2),
}
"""Programs by name: algorithm, config and number of members, on CartPole."""

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
"""Instructions without cost at run time."""

COMPILER_FLAGS = ["--xla_backend_optimization_level=0"]
"""Of the programs that are recorded: set XLA_FLAGS to them before JAX starts."""
if jaxlib.version.__version_info__ < (0, 11):
    COMPILER_FLAGS.append(
        "--xla_cpu_use_fusion_emitters=false"
    )  # 0.11 has no such flag

LIMITED = ("loop_operations", "bytes_out")
"""Figures that must not rise."""


def measure(name: str) -> dict[str, Any]:
    """The figures of one program."""
    algorithm, changes, members = PROGRAMS[name]
    env = make("CartPole-v1")
    config = with_floats(algorithm.Config(**changes))
    program = compiled_text(algorithm, config, env, members)
    replay = changes.get("buffer_size", 2**62)
    return {
        "loop_operations": loop_operations(program),
        "sorts": len(re.findall(r" sort\(", program)),
        "replay_copies": replay_copies(program, replay),
        "bytes_out": bytes_out(algorithm, config, env, members),
    }


def compiled_text(algorithm: Algorithm, config: Any, env: Env, members: int) -> str:
    """The compiled program of a population's train steps."""
    start = beginning(algorithm, config, env, members)
    length = jax.ShapeDtypeStruct((), np.int32)
    lowered = population.run_population.lower(
        algorithm, config, env, {}, start.state, start.tally, length, members
    )
    return lowered.compile().as_text()


def bytes_out(algorithm: Algorithm, config: Any, env: Env, members: int) -> int:
    """Bytes that the host reads after a call."""
    tally = beginning(algorithm, config, env, members).tally
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tally))


def beginning(algorithm: Algorithm, config: Any, env: Env, members: int) -> Any:
    job = loop.resolve(algorithm, config, env, num_seeds=members, num_devices=1)
    return loop.progress_shapes(job)


def computations(program: str) -> dict[str, list[str]]:
    """The lines of each computation of an HLO text, by name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            lines = found.setdefault(header[1], [])
        elif line.startswith("  "):
            lines.append(line.strip())
    return found


def operation(line: str) -> str:
    """The name of the instruction: `%x = f32[2]{0} add(...)` is an "add"."""
    found = re.search(r" = (?:\(.*?\)|\S+) ([a-z\-]+)\(", line)
    return found[1] if found else ""


def loop_operations(program: str) -> int:
    """Operations in the bodies of all loops; a fusion is one."""
    inside = computations(program)
    bodies = set(re.findall(r"body=%?([\w.\-]+)", program))
    return sum(operation(line) not in FREE for body in bodies for line in inside[body])


def replay_copies(program: str, rows: int) -> int:
    """Copies, in loops, of an array with as many elements as the memory has rows."""
    inside = computations(program)
    bodies = set(re.findall(r"body=%?([\w.\-]+)", program))
    lines = [line for body in bodies for line in inside[body]]
    return sum(
        operation(line).startswith("copy") and size_of(line) >= rows for line in lines
    )


def size_of(line: str) -> int:
    """Number of elements of the first array in the result of an instruction."""
    found = re.search(r" = \(?\w+\[([\d,]*)\]", line)
    return math.prod(map(int, found[1].split(","))) if found and found[1] else 1


def recorded() -> dict[str, dict[str, Any]] | None:
    """Recorded figures for this version of jaxlib, or None."""
    return json.loads(FILE.read_text(encoding="utf-8")).get(VERSION)


def rises(name: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each figure that has risen."""
    return [
        f"{name}: {what} rose from {before[what]} to {now[what]} (jaxlib {VERSION}); if "
        "that is meant, run `python -m tools.program --update`"
        for what in LIMITED
        if now[what] > before[what]
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--update", action="store_true", help=f"write {FILE.name}")
    given = parser.parse_args(arguments)
    found = {name: measure(name) for name in PROGRAMS}
    print(json.dumps({VERSION: found}, indent=1))
    if given.update:
        versions = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
        versions[VERSION] = found
        FILE.write_text(json.dumps(versions, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
