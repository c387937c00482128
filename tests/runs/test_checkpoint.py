"""A run that is interrupted, killed or damaged goes on exactly, or says why it cannot."""

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxrl.cli import main
from jaxrl.core import storage
from jaxrl.core.run_folders import lock
from jaxrl.errors import InvalidInput
from jaxrl.runs import checkpoint
from jaxrl.runs.checkpoint import saved
from jaxrl.runs.experiment import read_experiment
from jaxrl.runs.loggers import read_metrics
from jaxrl.runs.session import resume_experiment, run_experiment
from tests.support.paths import ROOT
from tests.support.runs import read_json, run_python, train_argv

TIMES = ("seconds", "env_steps_per_second")
RUNS = ("ppo_run", "reinforce_run", "dqn_run", "gru_run")
every_run = pytest.mark.parametrize("name", RUNS)


@pytest.fixture(autouse=True)
def a_checkpoint_after_every_call(monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARE", float("inf"))


def assert_same_run(run, reference):
    """Parameters, optimisers, statistics, metrics and evaluation, bit for bit."""
    rows, expected = (read_metrics(r / "metrics.jsonl") for r in (run, reference))
    for row in (*rows, *expected):
        for name in TIMES:
            row.pop(name)
    assert rows == expected
    (_, arrays), (_, others) = (storage.read(r / "policy") for r in (run, reference))
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        assert array.tobytes() == others[name].tobytes(), name
    summaries = [read_json(r / "summary.json") for r in (run, reference)]
    for name in ("evaluation", "evaluation_by_member", "iterations", "finished"):
        assert summaries[0][name] == summaries[1][name]


def interrupted_run(reference, folder, after):
    """The run of `reference`, stopped when it was asked for the `after`th time."""
    experiment = read_experiment(reference)
    asked = iter(range(10**6))
    run_experiment(
        dataclasses.replace(experiment, checkpoint_every=0.0, keep=3),
        folder,
        progress=False,
        report=lambda line: None,
        interrupted=lambda: next(asked) >= after,
    )
    return folder


@pytest.mark.full
@pytest.mark.fast_cases("ppo_run")
@every_run
def test_an_interrupted_run_goes_on_exactly(name, request, tmp_path):
    reference = request.getfixturevalue(name)
    run = interrupted_run(reference, tmp_path / "run", after=2)
    assert not read_json(run / "summary.json")["finished"]
    iterations = read_json(reference / "summary.json")["iterations"]
    assert 0 < saved(run)[-1] < iterations
    lines = []
    resume_experiment(run, progress=False, report=lines.append)
    assert any("resuming" in line for line in lines)
    assert_same_run(run, reference)
    assert saved(run)[-1] == iterations


@every_run
def test_from_every_checkpoint_the_run_is_the_same(name, request, tmp_path):
    reference = request.getfixturevalue(name)
    run = interrupted_run(reference, tmp_path / "run", after=3)
    assert len(saved(run)) == 3
    oldest = saved(run)[0]
    assert main(["resume", str(run), "--quiet", "--checkpoint", str(oldest)]) == 0
    assert_same_run(run, reference)


def test_a_finished_run_is_left_alone(ppo_run, capsys):
    before = {p: p.stat().st_mtime_ns for p in ppo_run.rglob("*")}
    assert main(["resume", str(ppo_run)]) == 0
    assert "finished" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in ppo_run.rglob("*")} == before


def test_killed_before_the_first_checkpoint_it_starts_anew(ppo_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(ppo_run / "config.json", run)
    (run / "metrics.jsonl").write_text('{"half": "a li')
    assert main(["resume", str(run), "--quiet"]) == 0
    assert_same_run(run, ppo_run)


@pytest.fixture
def stopped(ppo_run, tmp_path):
    """A PPO run with three checkpoints that is not finished."""
    return interrupted_run(ppo_run, tmp_path / "run", after=3)


def refusal(run, *more, code=2, capsys):
    capsys.readouterr()
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert main(["resume", str(run), "--quiet", *more]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    return line


@pytest.mark.parametrize("file", [storage.MANIFEST, storage.ARRAYS])
def test_a_damaged_checkpoint_is_refused_and_an_older_one_offered(
    stopped, file, ppo_run, capsys
):
    older, newest = saved(stopped)[-2:]
    path = stopped / "checkpoints" / str(newest) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    line = refusal(stopped, capsys=capsys)
    command = f"jaxrl resume {stopped} --checkpoint {older}"
    assert str(path) in line and command in line
    assert main([*command.split()[1:], "--quiet"]) == 0
    assert_same_run(stopped, ppo_run)


def test_without_a_whole_checkpoint_it_says_so(stopped, capsys):
    for iteration in saved(stopped):
        (stopped / "checkpoints" / str(iteration) / storage.ARRAYS).unlink()
    assert "No older one is whole" in refusal(stopped, capsys=capsys)


def test_what_does_not_fit_is_refused(stopped, capsys):
    assert "checkpoint = 77" in refusal(stopped, "--checkpoint", "77", capsys=capsys)
    config = stopped / "config.json"
    whole = config.read_text()
    content = json.loads(whole)
    config.write_text(json.dumps(content | {"seed": 5}))
    assert "seed = 5" in refusal(stopped, capsys=capsys)
    config.write_text(json.dumps(content | {"sed": 5}))
    assert "did you mean 'seed'" in refusal(stopped, capsys=capsys)
    config.write_text(whole[:-20])
    assert "no readable config.json" in refusal(stopped, capsys=capsys)
    config.write_text(json.dumps(content | {"env": "os:getcwd"}))
    assert "code that loading it would import" in refusal(stopped, capsys=capsys)
    config.write_text(whole)
    metrics = stopped / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-30])
    assert "metrics.jsonl" in refusal(stopped, capsys=capsys)


def test_no_run_folder_is_refused(tmp_path, capsys):
    assert "no readable config.json" in refusal(tmp_path, capsys=capsys)
    assert main(["resume", str(tmp_path / "nowhere")]) == 2


def test_a_second_process_is_refused(stopped, capsys):
    with lock(stopped):
        assert "in use by another process" in refusal(stopped, capsys=capsys)


def test_what_a_killed_save_left_is_removed(stopped, ppo_run):
    debris = stopped / "checkpoints" / "999.new"
    debris.mkdir()
    (debris / storage.ARRAYS).write_bytes(b"half")
    assert main(["resume", str(stopped), "--quiet"]) == 0
    assert not debris.exists()
    assert_same_run(stopped, ppo_run)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(
    stopped, ppo_run, monkeypatch, capsys
):
    before = saved(stopped)
    with monkeypatch.context() as patch:

        def full(path, content):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        patch.setattr(storage, "write_file", full)
        assert main(["resume", str(stopped), "--quiet"]) == 4
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "No space left on device" in line and "jaxrl resume" in line
    assert saved(stopped) == before
    assert main(["resume", str(stopped), "--quiet"]) == 0
    assert_same_run(stopped, ppo_run)


def test_a_folder_that_vanishes_is_one_line(ppo_run, tmp_path, capsys):
    run = tmp_path / "run"
    experiment = read_experiment(ppo_run)
    asked = []

    def vanish():
        if not asked:
            shutil.rmtree(run)
        asked.append(1)
        return False

    with pytest.raises(FileNotFoundError):
        run_experiment(
            experiment,
            run,
            progress=False,
            report=lambda line: None,
            interrupted=vanish,
        )
    assert not run.exists()


def test_code_of_a_run_is_imported_only_if_the_caller_says_so(tmp_path, ppo_run):
    run = tmp_path / "run"
    run.mkdir()
    content = read_json(ppo_run / "config.json") | {
        "env": "tests.support.runs:exploding"
    }
    (run / "config.json").write_text(json.dumps(content))
    with pytest.raises(InvalidInput, match="code that loading it would import"):
        resume_experiment(run)


KILLED = """
import sys
from jaxrl.runs import checkpoint
from jaxrl.training import loop
from jaxrl.cli import main
checkpoint.SHARE = float("inf")
loop._next_length = lambda length, seconds: 7
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.full
@pytest.mark.parametrize(
    "name, more",
    [
        ("ppo", ["--network", "gru(size=4)", "--normalize-obs"]),
        ("dqn", []),
        ("rainbow", []),
        ("reinforce", []),
    ],
)
def test_kill_9_at_random_moments_changes_nothing(name, more, tmp_path):
    """Several kills a run, at moments that nobody chooses; the campaign is
    `benchmarks/faults.py`."""
    rng = random.Random(name)
    argv = train_argv(name, "--total-steps", "6000", "--checkpoint-every", "0", *more)
    reference, run = tmp_path / "whole", tmp_path / "killed"

    def child(*command):
        # With as many devices as cores: as many in every process, or digits differ.
        return subprocess.Popen(
            [sys.executable, "-c", KILLED, *command, "--quiet"],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )

    assert child(*argv, "--out", str(reference)).wait() == 0
    start, kills = [*argv, "--out", str(run)], 0
    while kills < 4:
        with child(*start) as process:
            before = newest(run)
            while process.poll() is None and newest(run) == before:
                time.sleep(0.005)
            time.sleep(0.2 * rng.random())
            process.send_signal(signal.SIGKILL)
        if process.returncode != -signal.SIGKILL:
            break  # it was faster than we
        kills += 1
        start = ["resume", str(run)]
    assert kills > 0
    assert child("resume", str(run)).wait() == 0
    assert_same_run(run, reference)


def newest(run):
    iterations = saved(run)
    return iterations[-1] if iterations else None


STOPPED_ELSEWHERE = """
import dataclasses
from pathlib import Path
import jax
from jaxrl.runs.experiment import read_experiment
from jaxrl.runs.session import run_experiment

assert len(jax.local_devices()) == {devices}
experiment = dataclasses.replace(
    read_experiment(Path({reference!r})), parallel={parallel!r}, num_devices={devices}
)
asked = iter(range(100))
run_experiment(
    experiment,
    {run!r},
    progress=False,
    interrupted=lambda: next(asked) == 2,
)
"""


@pytest.mark.full
@pytest.mark.parametrize("parallel", ["members", "data"])
def test_a_checkpoint_of_two_devices_loads_on_one(parallel, ppo_run, tmp_path):
    run = tmp_path / "run"
    program = STOPPED_ELSEWHERE.format(
        reference=str(ppo_run), run=str(run), parallel=parallel, devices=2
    )
    lines = run_python(program, devices=2)
    assert any("on 2 devices" in line for line in lines)
    config = read_json(run / "config.json")
    (run / "config.json").write_text(json.dumps(config | {"num_devices": 1}))
    assert main(["resume", str(run), "--quiet"]) == 0
    (_, arrays), (_, others) = (storage.read(r / "policy") for r in (run, ppo_run))
    for name, array in arrays.items():
        np.testing.assert_allclose(array, others[name], rtol=1e-3, atol=1e-4)
    iterations = read_json(ppo_run / "summary.json")["iterations"]
    assert read_json(run / "summary.json")["iterations"] == iterations


def test_what_is_not_ours_among_the_checkpoints_is_left_alone(
    stopped, ppo_run, tmp_path
):
    folder = stopped / "checkpoints"
    (folder / ".DS_Store").touch()
    (folder / ".nfs0001").touch()
    (folder / "newest").symlink_to(tmp_path)
    (folder / "999").symlink_to(tmp_path)
    for name in ("lost+found", "2024", "2025"):
        (folder / name).mkdir()
        (folder / name / "letter").write_text("mine")
    foreign = sorted(path for path in folder.iterdir() if not path.name.isdecimal())
    assert main(["resume", str(stopped), "--quiet"]) == 0
    assert_same_run(stopped, ppo_run)
    assert foreign == sorted(p for p in folder.iterdir() if not p.name.isdecimal())
    for name in ("lost+found", "2024", "2025"):
        assert (folder / name / "letter").read_text() == "mine"


def test_a_foreign_file_in_a_checkpoint_outlives_it(stopped, ppo_run):
    oldest = stopped / "checkpoints" / str(saved(stopped)[0])
    (oldest / "notes").write_text("mine")
    assert main(["resume", str(stopped), "--quiet"]) == 0
    assert (oldest / "notes").read_text() == "mine"
    assert [path.name for path in oldest.iterdir()] == ["notes"]
    assert_same_run(stopped, ppo_run)


@pytest.mark.parametrize(
    "change",
    [
        {"iteration": 10**30},
        {"iteration": "5"},
        {"iteration": 1},
        {"seconds": None},
        {"metrics_bytes": -1},
        {"metrics_digests": [1]},
        {"versions": []},
    ],
)
def test_a_forged_checkpoint_is_refused(stopped, change, capsys):
    folder = stopped / "checkpoints" / str(saved(stopped)[-1])
    manifest = storage.read_manifest(folder)
    manifest["about"] |= change
    (folder / storage.MANIFEST).write_bytes(storage.manifest_bytes(manifest))
    assert str(folder) in refusal(stopped, capsys=capsys)


def test_a_checkpoint_from_beyond_the_end_is_refused(stopped, capsys):
    """It made the run a finished one, with the agents of another train step."""
    folder = stopped / "checkpoints" / str(saved(stopped)[-1])
    folder = folder.rename(folder.with_name("900"))
    manifest = storage.read_manifest(folder)
    manifest["about"] |= {"iteration": 900}
    (folder / storage.MANIFEST).write_bytes(storage.manifest_bytes(manifest))
    assert str(folder) in refusal(stopped, capsys=capsys)


def test_a_digit_that_changed_in_the_metrics_is_refused_by_its_line(stopped, capsys):
    path = stopped / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = re.sub(r'("env_steps": )\d', r"\g<1>9", lines[1])
    path.write_text("".join(lines))
    line = refusal(stopped, capsys=capsys)
    assert str(path) in line and "line 2" in line


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "summary.json",
        "summary.json.new",
        "learning_curve.png",
        "policy",
    ],
)
def test_a_link_that_leaves_the_run_is_refused_by_name(stopped, name, tmp_path, capsys):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = stopped / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    assert str(path) in refusal(stopped, capsys=capsys)
    assert victim.read_text() == "mine"


def test_a_field_that_a_config_has_got_since_is_no_other_experiment():
    old, now = {"gamma": 0.9}, {"gamma": 0.9, "n_step": 1}
    assert checkpoint._completed(old, now) == now
    assert checkpoint._completed({"gamma": 0.8}, now) != now
    assert checkpoint._completed({"gamma": 0.9, "gone": 1}, now) != now
