"""Fault injection: kills, damaged files and hostile files.

    python -m benchmarks.faults                     # the whole campaign, hours
    python -m benchmarks.faults --parts kills --runs 2
    python -m benchmarks.faults --quick --out DIR   # a little of each, minutes

kills    `kill -9` at random moments, several in each run, then `jaxrl resume`: parameters,
         statistics and metrics (except wall-clock fields) against the uninterrupted run
points   a kill before and after every write, sync and rename of a save: is there a
         checkpoint that can be loaded, and how old is it?
damage   one flipped bit, a truncated or missing file: refused, and the file named?
hostile  mutated and foreign files loaded under an audit hook: any event that an intact
         load does not raise?
configs  random bad command lines and config files: refused in one line, nothing written?
         And random good ones: accepted?
envs     `jaxrl check-env` on every environment there is

Writes benchmarks/results/faults.json, which docs/reliability.md shows.
"""

import contextlib
import json
import math
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import bad_configs
from benchmarks.speed import script
from jaxrl import env_ids, make
from jaxrl.algorithms import ALGORITHMS
from jaxrl.core import storage
from jaxrl.envs.check import check_env
from jaxrl.errors import InvalidInput
from jaxrl.runs.checkpoint import saved
from jaxrl.runs.experiment import commit, versions
from jaxrl.runs.loggers import read_metrics

HERE = Path(__file__).parent
PARTS = ["kills", "points", "damage", "hostile", "configs", "envs"]
TIMES = ("seconds", "env_steps_per_second")

RUNS = {
    "reinforce": "reinforce --num-envs 8 --num-steps 16 --total-steps 40000",
    "ppo": "ppo --num-envs 8 --num-steps 16 --total-steps 40000",
    "dqn": "dqn --num-envs 8 --train-frequency 8 --buffer-size 2000 "
    "--learning-starts 200 --batch-size 32 --total-steps 12000",
    "ppo-gru": "ppo --num-envs 8 --num-steps 16 --network gru(size=8) --normalize-obs "
    "--total-steps 20000",
}
"""Runs to kill, all on CartPole with two seeds."""

CHILD = """
import sys
from jaxrl.runs import checkpoint
from jaxrl.training import loop
checkpoint.SHARE = float("inf")  # as often as --checkpoint-every asks
loop.CALL_SECONDS = 0.05
from jaxrl.cli import main
sys.exit(main(sys.argv[1:]))
"""


def main() -> None:
    parser = script.parser(__doc__, PARTS)
    parser.add_argument("--only", default="", help="rows with this in their name")
    parser.add_argument("--runs", type=int, default=20, help="of each algorithm")
    parser.add_argument("--kills", type=int, default=100, help="of each algorithm")
    parser.add_argument("--trials", type=int, default=1_000, help="of damage")
    parser.add_argument("--commands", type=int, default=10_000, help="that are bad")
    arguments, file, rows = script.opened(parser, HERE / "results", "faults.json")
    if arguments.quick:
        arguments.runs, arguments.kills, arguments.trials = 1, 2, 60
        arguments.commands = 200
    about = {"versions": versions(), "command": "python " + " ".join(sys.argv)}
    with tempfile.TemporaryDirectory() as folder:
        for name, trial in trials(arguments, Path(folder)).items():
            rows[name] = trial() | {"commit": commit()}
            print(name, rows[name], file=sys.stderr, flush=True)
            file.write_text(
                json.dumps({"about": about, "rows": rows}, indent=1) + "\n",
                encoding="utf-8",
            )
    print(table(rows))
    sys.exit(
        any(
            row["passed"] + row.get("listed", 0) < row["trials"]
            for row in rows.values()
        )
    )


def trials(arguments: Any, work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Selected trials by the name of their row."""
    damages, commands = arguments.trials, arguments.commands
    parts: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
        "kills": {
            f"kill -9, {name}": partial(
                kills, name, work, arguments.runs, arguments.kills
            )
            for name in RUNS
        },
        "points": {"kill around every write, sync and rename": partial(points, work)},
        "damage": {"flipped bit, cut or missing file": partial(damage, work, damages)},
        "hostile": {
            "hostile files under an audit hook": partial(hostile, work, damages)
        },
        "configs": {
            "bad command lines and config files": partial(bad_commands, work, commands),
            "bad command lines, a process each": partial(
                bad_processes, work, commands // 100
            ),
            "good command lines": partial(good_commands, work, commands // 10),
        },
        "envs": {"environments that keep every rule of check-env": environments},
    }
    rows = {n: trial for part in arguments.parts for n, trial in parts[part].items()}
    return {n: trial for n, trial in rows.items() if arguments.only in n}


def kills(name: str, work: Path, num_runs: int, num_kills: int) -> dict[str, Any]:
    """`num_kills` kills over `num_runs` runs; a run passes if the kills left no trace."""
    rng = random.Random(name)
    passed = killed = 0
    seconds = math.inf
    for i in range(num_runs):
        argv = ["train", *RUNS[name].split(), "--env", "CartPole-v1", "--quiet"]
        argv += [
            "--num-seeds",
            "2",
            "--seed",
            str(10 * i),
            "--evaluation-episodes",
            "8",
        ]
        whole = work / f"{name}-{i}-whole"
        started = time.monotonic()
        child([*argv, "--out", str(whole)]).wait()
        seconds = min(seconds, time.monotonic() - started)
        wanted, here = -(-(num_kills - killed) // (num_runs - i)), 0
        while here < wanted:
            run = work / f"{name}-{i}-{here}"
            times = killed_run(argv, run, seconds, wanted - here, rng)
            here += times
            passed += times * same(run, whole)
            shutil.rmtree(run)
        killed += here
        print(f"{name} run {i}: {here} kills", file=sys.stderr, flush=True)
        shutil.rmtree(whole)
    return {"trials": killed, "passed": passed, "runs": num_runs}


def killed_run(
    argv: list[str], run: Path, seconds: float, most: int, rng: random.Random
) -> int:
    """Run with kills at random moments, as often as it lasts long enough, and a resume
    after each; returns the number of kills."""
    command, times = [*argv, "--checkpoint-every", "0", "--out", str(run)], 0
    while True:
        process = child(command)
        try:
            process.wait(rng.uniform(0.1, 0.9) * seconds if times < most else None)
            return times
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        times += 1
        if (run / "config.json").exists():
            command = ["resume", str(run), "--quiet"]


def child(argv: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *argv],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def same(run: Path, whole: Path) -> bool:
    """Compare parameters, optimisers, statistics and metrics bit for bit."""
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (run, whole)]
    for row in (*rows[0], *rows[1]):
        for name in TIMES:
            row.pop(name)
    if not (run / "policy").exists():
        return False
    first, second = (storage.read(folder / "policy")[1] for folder in (run, whole))
    return (
        rows[0] == rows[1]
        and first.keys() == second.keys()
        and all(x.tobytes() == second[name].tobytes() for name, x in first.items())
    )


SAVES = 20
OPERATIONS = ("write_file", "sync_folder", "rename")

KILLED_SAVE = """
import os, signal, sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode

from jaxrl.runs import checkpoint
from jaxrl.core import storage
from jaxrl.training.loop import Progress

folder, point, saves = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
operations = sys.argv[4:]
passed = 0


def reached():
    global passed
    if passed == point:
        os.kill(os.getpid(), signal.SIGKILL)
    passed += 1


def counted(original):
    def operation(*args):
        reached()
        original(*args)
        reached()

    return operation


for name in operations:
    setattr(storage, name, counted(getattr(storage, name)))
saver = checkpoint.Saver(folder, {}, dict, 0.0, 2)

class State(PyTreeNode):
    agent: object


for i in range(saves):
    state = State(agent={"w": jnp.full(1000, float(i))})
    saver.save(Progress(state, {}, np.zeros((1, 2)), i, 0.0))
    (folder / "done").write_text(str(i))
"""


def points(work: Path) -> dict[str, Any]:
    """Kill a process that saves `SAVES` checkpoints at every point of every save."""
    passed = trials = 0
    while True:
        folder = work / f"points-{trials}"
        folder.mkdir()
        command = [sys.executable, "-c", KILLED_SAVE, str(folder), str(trials)]
        killed = subprocess.run([*command, str(SAVES), *OPERATIONS], cwd=HERE.parent)
        if killed.returncode == 0:
            break  # the point lies behind the last operation
        done = folder / "done"
        complete = int(done.read_text(encoding="utf-8")) if done.exists() else -1
        passed += loadable(folder, complete)
        shutil.rmtree(folder)
        trials += 1
    return {"trials": trials, "passed": passed}


def loadable(folder: Path, complete: int) -> bool:
    """True if the newest checkpoint loads and is no older than the last complete save."""
    iterations = saved(folder)
    if not iterations:
        return complete < 0
    about, arrays = storage.read(folder / "checkpoints" / str(iterations[-1]))
    right = (arrays["state/agent/w"] == iterations[-1]).all()
    return bool(right) and about["iteration"] == iterations[-1] >= complete


def example(folder: Path) -> Path:
    """A small stored folder with every kind of content."""
    tree = {
        "params": jax.random.normal(jax.random.key(0), (64, 64)),
        "count": jnp.int32(3),
        "key": jax.random.key(1),
    }
    storage.write(folder, tree, {"config": {"learning_rate": 1e-3}, "env": "x"})
    return folder


def damage(work: Path, trials: int) -> dict[str, Any]:
    """Damage one file in one way per trial; a trial passes if the error names that file."""
    rng = random.Random(0)
    folder = example(work / "damage")
    passed = 0
    for _ in range(trials):
        path = folder / rng.choice((storage.MANIFEST, storage.ARRAYS))
        whole = path.read_bytes()
        way = rng.choice(("flip", "cut", "remove"))
        if way == "flip":
            spoiled = bytearray(whole)
            spoiled[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(spoiled)
        elif way == "cut":
            path.write_bytes(whole[: rng.randrange(len(whole))])
        else:
            path.unlink()
        try:
            storage.read(folder)
        except InvalidInput as error:
            passed += str(path) in str(error)
        path.write_bytes(whole)
    return {"trials": trials, "passed": passed}


HOSTILE = """
import json, pickle, random, sys
from pathlib import Path

from jaxrl.core import storage
from jaxrl.errors import InvalidInput

folder, trials = Path(sys.argv[1]), int(sys.argv[2])
WATCHED = (
    "exec", "compile", "import", "marshal", "pickle", "subprocess", "os.system", "os.exec",
    "os.fork", "os.posix_spawn", "os.spawn", "socket", "ctypes", "code.__new__",
)
events = []
sys.addaudithook(lambda event, args: events.append(event))


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


FOREIGN = [
    pickle.dumps(Evil()), b"PK\\x03\\x04" + bytes(100), b"", bytes(1000),
    b"\\x93NUMPY\\x01\\x00v\\x00{'descr': 'O'}" + pickle.dumps(Evil()),
    b'{"__reduce__": "os.system"}', b"[" * 100_000, b'{"a": NaN}',
    (2**62).to_bytes(8, "little") + b"{}", (8).to_bytes(8, "little") + b"{}      ",
]


def load():
    events.clear()
    try:
        storage.read(folder)
        read = True
    except InvalidInput:
        read = False
    return read, {e for e in events if e.startswith(WATCHED)}


rng = random.Random(0)
for _ in range(2):
    read, intact = load()
    assert read
passed = 0
for trial in range(trials):
    path = folder / rng.choice((storage.MANIFEST, storage.ARRAYS))
    whole = path.read_bytes()
    if trial % 5 == 0:
        content = rng.choice(FOREIGN)
    else:
        content = bytearray(whole)
        for _ in range(rng.choice((1, 3, 30))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if trial % 2 and path.name == storage.ARRAYS:  # with a manifest that agrees
            manifest = json.loads((folder / storage.MANIFEST).read_text())
            manifest.pop("digest")
            manifest["files"][path.name] = {
                "sha256": storage.digest_of(bytes(content)), "bytes": len(content)
            }
            kept = (folder / storage.MANIFEST).read_bytes()
            (folder / storage.MANIFEST).write_bytes(storage.manifest_bytes(manifest))
    path.write_bytes(bytes(content))
    _, found = load()
    passed += found <= intact
    path.write_bytes(whole)
    if "kept" in globals():
        (folder / storage.MANIFEST).write_bytes(kept)
        del kept
print(passed)
"""


def hostile(work: Path, trials: int) -> dict[str, Any]:
    """Load hostile files; a trial passes if it raises no audit event that an intact load
    does not."""
    folder = example(work / "hostile")
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(folder), str(trials)],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    return {"trials": trials, "passed": int(done.stdout.splitlines()[-1])}


def bad_commands(work: Path, trials: int) -> dict[str, Any]:
    """Command lines with one or two mistakes, for every field of every algorithm; a tenth
    in a config file."""
    rng, folder = random.Random(0), work / "commands"
    folder.mkdir()
    fields = [
        (algorithm, name)
        for algorithm in ALGORITHMS.values()
        for name in bad_configs.mutations(algorithm)
    ]
    passed, failures = 0, []
    with contextlib.chdir(folder):
        for trial in range(trials):
            algorithm, name = fields[trial % len(fields)]
            if rng.random() < 0.1:
                argv = bad_configs.bad_file(rng, algorithm, work)
            else:
                argv = bad_configs.bad_command(rng, name, algorithm)
            verdict, said = bad_configs.judge(argv)
            passed += verdict == "refused"
            if verdict != "refused":
                failures.append([shlex.join(argv), verdict, said])
                shutil.rmtree("run", ignore_errors=True)
    each = trials // len(fields)
    return {
        "trials": trials,
        "passed": passed,
        "each_field": each,
        "failed": failures[:20],
    }


def bad_processes(work: Path, trials: int) -> dict[str, Any]:
    """Command lines with mistakes, each in its own process."""
    rng, folder = random.Random(1), work / "processes"
    folder.mkdir()
    passed, failures = 0, []
    for trial in range(trials):
        algorithm = list(ALGORITHMS.values())[trial % len(ALGORITHMS)]
        argv = bad_configs.bad_command(rng, None, algorithm)
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from jaxrl.cli import entry_point; entry_point()",
                *argv,
            ],
            cwd=folder,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        right = done.returncode == 2 and len(done.stderr.splitlines()) == 1
        passed += right and not os.listdir(folder)
        if not right:
            failures.append([shlex.join(argv), done.returncode, done.stderr[-300:]])
    return {"trials": trials, "passed": passed, "failed": failures}


def good_commands(work: Path, trials: int) -> dict[str, Any]:
    """Valid command lines, which must be accepted and traced for one train step."""
    rng, folder = random.Random(2), work / "good"
    folder.mkdir()
    passed, failures = 0, []
    with contextlib.chdir(folder):
        for trial in range(trials):
            argv = bad_configs.good_command(
                rng, list(ALGORITHMS.values())[trial % len(ALGORITHMS)]
            )
            verdict, said = bad_configs.judge(argv, trace=True)
            passed += verdict == "accepted"
            if verdict != "accepted":
                failures.append([shlex.join(argv), verdict, said])
            shutil.rmtree("run", ignore_errors=True)
            jax.clear_caches()
    return {"trials": trials, "passed": passed, "failed": failures[:20]}


def environments() -> dict[str, Any]:
    """Check every environment; record the reason for each that breaks a rule."""
    listed = {}
    for env_id in env_ids():
        broken = [
            f"{finding.rule}: {finding.problem}"
            for finding in check_env(make(env_id), 200)
            if finding.problem
        ]
        if broken:
            listed[env_id] = broken
        jax.clear_caches()
    trials = len(env_ids())
    return {
        "trials": trials,
        "passed": trials - len(listed),
        "listed": len(listed),
        "reasons": listed,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| fault | trials | handled correctly |", "|---|---|---|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['trials']} | {row['passed']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
