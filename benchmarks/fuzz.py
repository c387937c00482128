"""Fuzzing of the readers of untrusted bytes.

python -m benchmarks.fuzz                         # 300 cases of each reader, in a minute
python -m benchmarks.fuzz --reader zoo --cases 50 --seed 3

A reader is a line of `READERS`: how its files are made, and what reads them. A case spoils
one file of a fresh copy (bits, lengths, kinds of file, links, values of its JSON), or
draws hostile files (`benchmarks/hostile.py`), and reads. It may be accepted, or refused
with `InvalidInput` or an `OSError` that names a file. Anything else is a fault: another
exception, the death of the process, more than `SECONDS`, more than `BYTES` of memory, a
change of a file outside of the folder. Cases run in child processes, which are killed when
they hang. The same seed draws the same hostile files and the same changes, whatever other
readers run; the files that are changed are made anew and hold times, so the bytes that a
change meets may be others.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import hostile

SECONDS = 10.0
BYTES = 2 * 2**30

Nothing = Callable[[Path], object]


def keep(file: Path) -> None:
    """Leave a changed file as it is."""


@dataclass(frozen=True)
class Reader:
    """What reads files that anyone may have written."""

    name: str
    make: Nothing
    """Makes whole files in an empty folder; called once."""
    spoil: Sequence[str]
    """Patterns of the files that are spoiled, one in a case; a name that is not there is
    made."""
    read: Nothing
    """Reads the folder."""
    sign: Nothing = keep
    """Makes the digest of a changed file right again, as someone would with intent."""
    draw: Callable[[random.Random], dict[str, bytes]] | None = None
    """Draws files by name, which are put in place of spoiling one."""


@dataclass
class Outcome:
    """What became of the cases of a reader."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


# Spoiling.

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 5, 0.5, -0.0, 1e308, 10**30, -(10**30), 2**53 + 1),
    *("", "x", "..", "/etc/passwd", "\x1b[31m", "\u0000", "é" * 3, "a" * 10_000),
    *([], [1], [None], [[]], {}, {"a": 1}, {"": {}}, [0] * 1_000),
)
TEXTS = (
    *(
        "",
        "null",
        "5",
        "[1]",
        '{"a": 1}',
        "NaN",
        "[1e999]",
        "{}",
        "[]",
        '"',
        "\ufeff{}",
    ),
    *(
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 500 + "]" * 500,
        '"\\ud800"',
        "1" * 5_000,
    ),
    *("a = " + "[" * 100_000, "a." * 100_000 + "b = 1", "a = {b = 1, b = 2}", "\x00"),
)


def spoil(file: Path, outside: Path, rng: random.Random, sign: Nothing) -> str:
    """Spoils a file in one way, and says in which."""
    ways = (_flip, _cut, _insert, _text, _kind, *([_value] * 6))
    way = rng.choice(ways)
    if way is _kind or not file.is_file():
        return _kind(file, outside, rng)
    said = way(file, rng)
    if rng.random() < 0.7:
        with contextlib.suppress(ValueError, RecursionError):
            sign(file)
    return said


def _flip(file: Path, rng: random.Random) -> str:
    content = bytearray(file.read_bytes()) or bytearray(b" ")
    for _ in range(rng.choice((1, 1, 3))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return "a flipped bit"


def _cut(file: Path, rng: random.Random) -> str:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content) + 1)])
    return "cut"


def _insert(file: Path, rng: random.Random) -> str:
    content, added = file.read_bytes(), rng.randbytes(rng.choice((1, 8, 300)))
    place = rng.randrange(len(content) + 1)
    file.write_bytes(content[:place] + added + content[place:])
    return "inserted bytes"


def _text(file: Path, rng: random.Random) -> str:
    text = rng.choice(TEXTS)
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    return f"the text {text[:20]!r}"


def _kind(file: Path, outside: Path, rng: random.Random) -> str:
    kinds = ("nothing", "folder", "pipe", "device", "loop", "outside", "away", "there")
    kind = rng.choice(kinds)
    if file.is_dir():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind != "nothing":
        targets = {"device": Path("/dev/zero"), "loop": file, "there": outside}
        targets["outside"] = outside / "victim"
        file.symlink_to(targets.get(kind, outside / "missing"))
    return f"{kind} in its place"


def _value(file: Path, rng: random.Random) -> str:
    """Changes a value, a key or the length of a part of JSON, or of a line of it."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
        whole = json.loads("\n".join(lines))
    except ValueError:
        return _value_of_line(file, rng)
    changed, said = _change(whole, rng)
    file.write_text(json.dumps(changed, indent=1), encoding="utf-8")
    return said


def _value_of_line(file: Path, rng: random.Random) -> str:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line]
        k = rng.randrange(len(lines))
        changed, said = _change(json.loads(lines[k]), rng)
        lines[k] = json.dumps(changed)
    except ValueError:
        return _flip(file, rng)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return said


def _change(whole: Any, rng: random.Random) -> tuple[Any, str]:
    places = list(_places(whole, ()))
    place = rng.choice(places)
    if not place:
        return rng.choice(VALUES), "another document"
    parent = whole
    for key in place[:-1]:
        parent = parent[key]
    key, how = (
        place[-1],
        rng.choice(("value", "value", "value", "delete", "key", "wrap")),
    )
    if how == "delete":
        del parent[key]
    elif how == "key" and isinstance(parent, dict):
        spoiled = list(key) or ["x"]
        at = rng.randrange(len(spoiled))
        spoiled[at] = chr(ord(spoiled[at]) ^ 1)
        parent["".join(spoiled)] = parent.pop(key)
    elif how == "wrap":
        parent[key] = [parent[key]] * rng.choice((1, 2))
    else:
        parent[key] = rng.choice(VALUES)
    return whole, f"{'.'.join(map(str, place))[:60]}: another {how}"


def _places(value: Any, place: tuple) -> Iterator[tuple]:
    yield place
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in list(keys)[:50]:
            yield from _places(value[key], (*place, key))


# The child.


def work(pipe: Any, base: Path) -> None:
    """Replies to what it is sent: a reader, whose whole files are made and read; a seed, of
    which a spoiled copy is read."""
    made: dict[Nothing, Path] = {}
    reader: Any = None
    # A panic in Rust writes pages, also where it is caught and refused.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        while True:
            asked = pipe.recv()
            if isinstance(asked, Reader):
                reader = asked
                pipe.send(prepare(reader, base, made))
            else:
                pipe.send(one_case(reader, made[reader.make], base / "case", asked))
    except BaseException:
        pipe.send(("fault", traceback.format_exc()))
    finally:
        os.chdir("/")


def prepare(reader: Reader, base: Path, made: dict[Nothing, Path]) -> tuple[str, str]:
    """Make the files of a reader, once, and read a copy; then limit the memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    if reader.make not in made:
        whole = base / f"whole-{len(made)}"
        whole.mkdir()
        reader.make(whole)
        made[reader.make] = whole
    copy = base / "copy"
    shutil.copytree(made[reader.make], copy)
    reader.read(copy)
    shutil.rmtree(copy)
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, hard))
    return "ready", ""


def one_case(reader: Reader, whole: Path, case: Path, seed: str) -> tuple[str, str]:
    """Spoils, reads, and says what became of it: "accepted", "refused" or "fault"."""
    from jaxrl.errors import InvalidInput

    shutil.rmtree(case, ignore_errors=True)
    inside, outside, here = (case / name for name in ("inside", "outside", "here"))
    shutil.copytree(whole, inside, symlinks=True)
    outside.mkdir()
    here.mkdir()
    (outside / "victim").write_text("[1, 2, 3]\n", encoding="utf-8")
    os.chdir(here)
    about = change(reader, inside, outside, seed)
    try:
        reader.read(inside)
        result = ("accepted", about)
    except InvalidInput as error:
        result = ("refused", about)
        if not 0 < len(str(error).strip()) <= 2_000:
            result = ("fault", f"{about}: a message of {len(str(error)):,} characters")
    except OSError as error:
        named = error.filename is not None
        result = ("refused" if named else "fault", f"{about}: {error!r}")
    except BaseException:  # a panic in Rust is no `Exception`
        result = ("fault", f"{about}\n{traceback.format_exc()}")
    is_whole = (outside / "victim").read_text(encoding="utf-8") == "[1, 2, 3]\n"
    places = sorted(
        str(x.relative_to(case)) for x in [*case.iterdir(), *outside.iterdir()]
    )
    if not is_whole or places != PLACES or list(here.iterdir()):
        result = ("fault", f"{about}: wrote outside of the folder")
    return result


PLACES = ["here", "inside", "outside", "outside/victim"]
"""What there is beside the folder that is read."""


def change(reader: Reader, inside: Path, outside: Path, seed: str) -> str:
    """Spoils a file, or puts those that are drawn, and says what was done."""
    rng = random.Random(seed)
    if reader.draw:
        drawn = reader.draw(rng)
        for name, content in drawn.items():
            (inside / name).write_bytes(content)
        return f"drawn: {', '.join(drawn)}"
    pattern = rng.choice(reader.spoil)
    file = rng.choice(sorted(inside.glob(pattern)) or [inside / pattern])
    said = spoil(file, outside, rng, reader.sign)
    return f"{file.relative_to(inside)}, {said}"


# The parent.


class Child:
    """A process that reads spoiled files; it is started when it is asked."""

    def __init__(self) -> None:
        self._base = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self._process: Any = None
        self._reader: Reader | None = None

    def ask(self, reader: Reader, seed: str) -> tuple[str, str]:
        """What became of the case of a reader with this seed."""
        if self._process is None:
            self._start()
        if self._reader is not reader:
            kind, said = self._reply(reader, 600.0)
            if kind != "ready":
                raise RuntimeError(f"{reader.name}: whole files are not read: {said}")
            self._reader = reader
        return self._reply(seed, SECONDS)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        base = Path(tempfile.mkdtemp(dir=self._base))
        self._process = context.Process(target=work, args=(theirs, base), daemon=True)
        self._process.start()
        theirs.close()

    def _reply(self, asked: Reader | str, seconds: float) -> tuple[str, str]:
        """A reply within so many seconds, not counting those without a core."""
        begun, waited = time.monotonic(), self._waited()
        reason = f"more than {seconds:g} s"
        try:
            self._pipe.send(asked)
            while time.monotonic() - begun - (self._waited() - waited) < seconds:
                if self._pipe.poll(0.2):
                    return self._pipe.recv()
        except (EOFError, ConnectionError):
            reason = "the process died"
        self.stop()
        return "fault", reason

    def _waited(self) -> float:
        """Seconds in which the process was ready to run and other processes ran."""
        try:
            place = Path(f"/proc/{self._process.pid}/schedstat")
            return int(place.read_text(encoding="ascii").split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0

    def stop(self) -> None:
        """Ends the process, if there is one; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._reader = None

    def end(self) -> None:
        """Ends the process, and removes its files."""
        self.stop()
        shutil.rmtree(self._base, ignore_errors=True)


def fuzz(readers: Sequence[Reader], cases: int, seed: int) -> dict[str, Outcome]:
    """Run so many cases of each reader in a child; one that hangs or dies is replaced."""
    child, outcomes = Child(), {reader.name: Outcome() for reader in readers}
    try:
        for reader in readers:
            outcome = outcomes[reader.name]
            for k in range(cases):
                kind, said = child.ask(reader, f"{seed}/{k}")
                outcome.counts[kind] += 1
                if kind == "fault":
                    outcome.faults.append(f"{reader.name}, seed {seed}/{k}: {said}")
    finally:
        child.end()
    return outcomes


def fuzz_all(readers: Sequence[Reader], cases: int, seed: int) -> dict[str, Outcome]:
    """The same, with a child for each core."""
    jobs = min(os.cpu_count() or 1, len(readers), 4)
    parts = [readers[k::jobs] for k in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(lambda part: fuzz(part, cases, seed), parts))
    return {
        reader.name: found[k % jobs][reader.name] for k, reader in enumerate(readers)
    }


# The readers. Theirs are heavy modules, imported by the child that needs them.

TINY = {"num_envs": 2, "hidden_sizes": [4], "total_steps": 40, "num_steps": 4}
TINY |= {"num_epochs": 1, "num_minibatches": 2}


def _experiment() -> Any:
    from jaxrl import PPO
    from jaxrl.core import config as configs
    from jaxrl.runs.experiment import Experiment

    config = configs.from_dict(PPO.Config, TINY)
    return Experiment(PPO, config, "probe/action", num_seeds=2, evaluation_episodes=4)


def make_run(folder: Path) -> None:
    """A finished run with its checkpoints."""
    from jaxrl.runs.session import run_experiment

    out = folder / "run"
    run_experiment(_experiment(), out, progress=False, report=lambda line: None)


def make_sweep(folder: Path) -> None:
    """A finished sweep of two settings."""
    from jaxrl.sweeps.plan import Sweep
    from jaxrl.sweeps.space import as_space
    from jaxrl.sweeps.training import run_sweep

    wanted = Sweep(_experiment(), as_space({"gamma": [0.9, 0.99]}))
    run_sweep(wanted, folder / "sweep", progress=False, report=lambda line: None)


def make_dataset(folder: Path) -> None:
    """Two episodes of three steps."""
    import numpy as np

    import jaxrl
    from jaxrl import spaces
    from jaxrl.data import dataset
    from jaxrl.types import Transition

    env = jaxrl.make("probe/action")
    both = env.observation_space, env.action_space
    obs, action = (spaces.zeros(space, (6,)) for space in both)
    ends = np.array([0, 0, 1] * 2, bool)
    columns = Transition(obs, action, np.zeros(6), ends, ends & False, obs, {})
    dataset.save(folder / "data", dataset.from_columns(columns, *both))


def make_model(folder: Path) -> None:
    """What is loaded of a run that trains a language model."""
    import jax

    from jaxrl.core import storage
    from jaxrl.rlhf.models import language_model
    from tests.support import language

    params = jax.tree.map(lambda x: x[None], language.make_params(language.SMALL))
    about = language_model.describe("policy", language.SMALL, language.WORDS)
    about = {"algorithm": "rlhf/sft", "seeds": [0], "language_model": about}
    about |= {"config": {}, "env_params": {}}
    storage.write(folder / "run" / "policy", {"policy": params}, about)


def make_rows(folder: Path) -> None:
    """Pairs of responses, one a line."""
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5}
    talk = [{"role": "user", "content": "is it so?"}]
    lines = [json.dumps(row), json.dumps(row | {"prompt": talk}), json.dumps(row)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_zoo(folder: Path) -> None:
    """An index of one agent."""
    row = {"algorithm": "ppo", "env": "CartPole-v1", "config": {}, "env_steps": 40}
    row |= {"returns": [1.0, None], "sha256": "0" * 64}
    (folder / "zoo.json").write_text(
        json.dumps({"ppo-CartPole-v1": row}), encoding="utf-8"
    )


def make_configs(folder: Path) -> None:
    """Config files as people write them."""
    (folder / "config.toml").write_text(
        'env = "probe/action"\nseed = 3\nnum_seeds = 2\n[config]\ntotal_steps = 40\n'
        "num_envs = 2\nnum_steps = 4\nhidden_sizes = [4]\ngamma = 0.9\n",
        encoding="utf-8",
    )
    content = {"env": "probe/action", "config": TINY, "overrides": [{"gamma": 0.9}]}
    content |= {"explored": {}, "traced": ["config/gamma"], "keep": 2, "log": []}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")


def read_configs(folder: Path) -> None:
    """What `jaxrl train ppo --config FILE` does before it trains, with both files."""
    from jaxrl import PPO
    from jaxrl.cli.options import experiment_from_flags
    from jaxrl.runs.experiment import resolve

    for path in sorted(folder.glob("config.*")):
        resolve(experiment_from_flags(PPO, {}, config_file=str(path)))


def read_config(folder: Path) -> None:
    """What `jaxrl resume` does first."""
    from jaxrl.runs.experiment import read_experiment, resolve

    resolve(read_experiment(folder / "run"))


def read_policy(folder: Path) -> None:
    """What `jaxrl evaluate` does first."""
    from jaxrl.runs.artifact import load_agents

    load_agents(folder / "run")


def read_checkpoint(folder: Path) -> None:
    """What `jaxrl resume` does next."""
    from jaxrl.runs.session import newest_progress

    newest_progress(_experiment(), folder / "run")


def read_results(folder: Path) -> None:
    """What `jaxrl report` reads of a run."""
    from jaxrl.report.entries import read_entries

    read_entries(folder / "run")


def read_sweep(folder: Path) -> None:
    """What `jaxrl report` reads of a sweep; rows are read anew each time."""
    from jaxrl.report.entries import read_entries
    from jaxrl.sweeps import results

    results._rows.cache_clear()
    read_entries(folder / "sweep")


def read_zoo(folder: Path) -> None:
    """What `jaxrl zoo` reads first."""
    from jaxrl.pipelines.zoo import read_index

    read_index(folder)


def read_dataset(folder: Path) -> None:
    """What `--data DATA` reads."""
    from jaxrl.data import dataset

    dataset.load(folder / "data")


def read_model(folder: Path) -> None:
    """What `--base RUN` reads."""
    from jaxrl.rlhf.models import language_model

    language_model.load(folder / "run")


def read_rows(folder: Path) -> None:
    """What `jaxrl rlhf dpo --data FILE` reads."""
    from jaxrl.rlhf import data
    from jaxrl.rlhf.models import tokenizers

    rows = data.read(folder / "rows.jsonl")
    data.preferences(rows, data.Format(tokenizers.bytes_of_text()))


def write_run(folder: Path) -> None:
    """What is written when a run goes on: nothing of it may land elsewhere."""
    from jaxrl.core import run_folders, storage
    from jaxrl.plotting import make_figure, save_figure
    from jaxrl.runs import checkpoint, loggers

    run = folder / "run"
    with run_folders.lock(run):
        metrics = loggers.MetricsFile(run / "metrics.jsonl")
        metrics.truncate(0)
        metrics.close()
        for name in ("config.json", "summary.json"):
            storage.write_text(run / name, "{}\n")
        for iteration in checkpoint.saved(run):
            storage.write(run / "checkpoints" / str(iteration), {}, {})
        checkpoint.remove_after(run, 0)
        storage.write(run / "policy", {}, {})
        save_figure(make_figure("")[0], run / "learning_curve.png")


def sign_manifest(file: Path) -> None:
    """A forged manifest has the right digests of itself and of the arrays."""
    from jaxrl.core import storage

    path = file.with_name(storage.MANIFEST)
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return
    content.pop("digest", None)
    if file.name == storage.ARRAYS:
        about = {"sha256": storage.file_digest(file), "bytes": file.stat().st_size}
        content["files"] = {file.name: about}
    path.write_bytes(storage.manifest_bytes(content))


def sign_summary(file: Path) -> None:
    """A forged summary has the right digests of itself and of the metrics."""
    from jaxrl.runs import loggers
    from jaxrl.runs.experiment import summary_digest

    path = file.with_name("summary.json")
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if not isinstance(content, dict):
        return
    if file.name == "metrics.jsonl":
        content["metrics_digests"] = loggers.row_digests(file)
    content["digest"] = summary_digest(content)
    path.write_text(json.dumps(content), encoding="utf-8")


STORED = ("manifest.json", "manifest.json", "arrays.safetensors")
POLICY = [f"run/policy/{name}" for name in STORED]

WRITTEN = (
    *("run/*.*", "run/*/*.*", "run/*/*/*.*", "run/checkpoints", "run/policy"),
    *("run/summary.json.new", "run/.learning_curve.part.png", "run/policy.new"),
    *("run/checkpoints/7", "run/checkpoints/9.new", "run/checkpoints/.DS_Store"),
)

READERS = (
    Reader("config file", make_configs, ("config.*",), read_configs),
    Reader("run", make_run, ("run/config.json",), read_config),
    Reader(
        "policy",
        make_run,
        POLICY,
        read_policy,
        sign_manifest,
    ),
    Reader(
        "checkpoint",
        make_run,
        [f"run/checkpoints/*/{name}" for name in STORED],
        read_checkpoint,
        sign_manifest,
    ),
    Reader(
        "results",
        make_run,
        ("run/metrics.jsonl", "run/summary.json"),
        read_results,
        sign_summary,
    ),
    Reader(
        "sweep",
        make_sweep,
        ("sweep/sweep.json", "sweep/summary.json", "sweep/runs/*/metrics.jsonl"),
        read_sweep,
        sign_summary,
    ),
    Reader("zoo", make_zoo, ("zoo.json",), read_zoo),
    Reader(
        "dataset",
        make_dataset,
        [f"data/{name}" for name in STORED],
        read_dataset,
        sign_manifest,
    ),
    Reader("writing", make_run, WRITTEN, write_run),
    Reader("rows of text", make_rows, ("rows.jsonl",), read_rows),
    Reader(
        "language model",
        make_model,
        POLICY,
        read_model,
        sign_manifest,
    ),
    *(
        Reader(name, make, (), read, draw=draw)
        for name, (make, draw, read) in hostile.READERS.items()
    ),
)
"""One line for each reader."""


def find(name: str) -> Reader:
    """The reader of that name."""
    return next(reader for reader in READERS if reader.name == name)


def options(argv: Sequence[str]) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=300, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=[reader.name for reader in READERS])
    parser.add_argument("--out", type=Path, help="JSON file for the counts")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the cases; exit code 1 if one of them is a fault."""
    given = options(argv)
    wanted = [find(given.reader)] if given.reader else READERS
    started = time.monotonic()
    outcomes = fuzz_all(wanted, given.cases, given.seed)
    faults = [fault for found in outcomes.values() for fault in found.faults]
    for name, found in outcomes.items() if given.cases >= 300 else ():
        if not found.counts["accepted"] or not found.counts["refused"]:
            faults.append(f"{name}: cases that say little: {dict(found.counts)}")
    for fault in faults:
        print(f"FAULT {fault}\n")
    rows = {name: dict(found.counts) for name, found in outcomes.items()}
    print(table(rows), f"{time.monotonic() - started:.0f} s", sep="")
    if given.out:
        content = {"about": {"cases": given.cases, "seed": given.seed}, "rows": rows}
        given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return int(bool(faults))


def table(rows: dict[str, dict[str, int]]) -> str:
    """What became of the cases of each reader, for a page."""
    kinds = ("accepted", "refused", "fault")
    lines = [f"| reader | cases | {' | '.join(kinds)} |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        counts = [sum(row.values()), *(row.get(kind, 0) for kind in kinds)]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
