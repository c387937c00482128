"""From Enter to a trained agent: `jaxrl train` beside a script of SBX, process by process.

    python -m benchmarks.whole_process            # three pairs; minutes on two cores
    python -m benchmarks.whole_process --quick    # a check; writes nothing

SAC and TD3 on Pendulum-v1, equal networks, batch and ratio of updates (cases B9 and B10 of
the throughput benchmark). Ours starts with an empty cache of compiled programs ("first"),
and again with that cache ("again"); it also evaluates, draws and saves. SBX has no cache
by default. Who goes first changes with each pair. Writes results/whole_process.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import captions
from benchmarks.speed.cases import CASES
from benchmarks.throughput import command
from jaxrl.runs.experiment import commit, versions

RESULTS = Path(__file__).parent / "results" / "whole_process.json"
NAMES = ("B9", "B10")
TRAIN = """
import json, sys
sys.path[:0] = {paths}
from sbx_worker import make, train
case, steps = json.loads(sys.argv[1]), int(sys.argv[2])
train(make(case, 0, steps), steps)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a check; writes nothing")
    parser.add_argument(
        "--peers-dir", default=str(Path(__file__).parent.parent / ".peers")
    )
    arguments = parser.parse_args()
    steps, pairs = (1_500, 1) if arguments.quick else (20_000, 3)
    python = command("sbx", arguments.peers_dir, None)[0]
    about = {"command": "python -m benchmarks.whole_process", "commit": commit()}
    about |= {"versions": versions(), "cores": os.cpu_count()}
    found = {}
    for name in NAMES:
        each = [measure(name, python, steps, i % 2 == 0) for i in range(pairs)]
        row = {who: statistics.median(x[who] for x in each) for who in each[0]}
        found[name] = about | {"env_steps": steps, "pairs": each, "seconds": row}
        print(name, {who: round(x, 1) for who, x in row.items()}, flush=True)
    if not arguments.quick:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(name: str, python: str, steps: int, ours_first: bool) -> dict[str, float]:
    """Seconds of a process of SBX and of two of ours."""
    seconds = {}
    for who in ("ours", "theirs")[:: 1 if ours_first else -1]:
        if who == "ours":
            with tempfile.TemporaryDirectory() as cache:
                for time_of in ("first", "again"):
                    seconds[time_of] = run(ours(name, steps), cache)
        else:
            seconds["sbx"] = run(theirs(name, python, steps))
    return seconds


def ours(name: str, steps: int) -> list[str]:
    """The command line, with every value that is not the default's."""
    case = CASES[name]
    words = ["train", case.algorithm, "--env", case.env, "--quiet"]
    for field, value in (case.config | {"total_steps": steps}).items():
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [f"--{field.replace('_', '-')}", shown]
    return [str(Path(sys.executable).with_name("jaxrl")), *words]


def theirs(name: str, python: str, steps: int) -> list[str]:
    """A script that trains as the throughput benchmark's worker of SBX does."""
    here = Path(__file__).parent
    paths = [str(here / "peers"), str(here / "speed")]
    case = json.dumps(CASES[name].as_json(name, steps))
    return [python, "-c", TRAIN.format(paths=paths), case, str(steps)]


def run(words: list[str], cache: str | None = None) -> float:
    """Seconds of a process, in an empty folder."""
    environment = dict(os.environ)
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cache:
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, encoding="utf-8"
        )
        seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(words[:4])}: {done.stderr[-2000:]}")
    return seconds


def table(rows: dict[str, Any]) -> str:
    """The table of docs/sac.md."""
    lines = [
        "| algorithm | ours, first time | ours, again | SBX |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        seconds = row["seconds"]
        lines.append(
            f"| `{CASES[name].algorithm}` | {seconds['first']:.1f} s | "
            f"{seconds['again']:.1f} s | {seconds['sbx']:.1f} s |"
        )
    last = list(rows.values())[-1]
    about = (
        f"`{last['command']}`: seconds of the whole process for {last['env_steps']:,} "
        f"steps of Pendulum-v1, medians of {len(last['pairs'])} pairs. "
        f"{captions.device(rows.values())}"
    )
    return "\n".join([*lines, "", about]) + "\n"


if __name__ == "__main__":
    main()
