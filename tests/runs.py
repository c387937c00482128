"""Training runs that compile and finish in seconds, through the command line."""

import json
from pathlib import Path
from typing import Any

from jaxrl.cli import main

COMMON = "--num-envs 2 --hidden-sizes 4 --total-steps 40 --evaluation-episodes 4"
FLAGS = {
    "ppo": "--num-seeds 2 --num-steps 4 --num-epochs 1 --num-minibatches 2",
    "reinforce": "--num-steps 4",
    "dqn": "--train-frequency 4 --learning-starts 8 --batch-size 4 --buffer-size 32",
}
"""Runs that differ only in floats, seeds and lengths share one compiled program: tests
change those and leave the rest alone."""


def train_argv(algorithm: str, *more: str, env: str = "probe/action") -> list[str]:
    """A `jaxrl train` command line; of a flag given twice the last one counts."""
    common = f"train {algorithm} --env {env} {COMMON} {FLAGS[algorithm]}"
    return [*common.split(), *more]


def train(out: Path, algorithm: str, *more: str, **kwargs: str) -> Path:
    """Trains into the folder `out`, and returns it."""
    argv = train_argv(algorithm, *more, "--quiet", "--out", str(out), **kwargs)
    assert main(argv) == 0
    return out


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
