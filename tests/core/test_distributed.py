"""A multi-process run equals the run on one process; the loss of a process is reported."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrl.cli import main
from jaxrl.core import distributed, storage
from jaxrl.core.run_folders import lock
from jaxrl.errors import InvalidInput
from jaxrl.runs.loggers import read_metrics
from jaxrl.sweeps.results import read_trials
from tests.support.runs import read_json

COMMON = (
    "--env CartPole-v1 --num-envs 8 --num-steps 16 --num-minibatches 2 --num-epochs 2 "
    "--hidden-sizes 16 --evaluation-episodes 8 --checkpoint-every 0 --quiet"
)
PROGRAM = "import sys; from jaxrl.cli import main; sys.exit(main(sys.argv[1:]))"
PATIENCE = 240
"""Seconds after which a process counts as hanging."""


def start(words, count, folder):
    """Start the processes of one run, on the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for i in range(count):
        own = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(count)]
        with (folder / f"{i}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-c",
                        PROGRAM,
                        *words,
                        *own,
                        "--process-id",
                        str(i),
                    ],
                    env=os.environ | {"JAX_PLATFORMS": "cpu"},
                    stdout=log,
                    stderr=log,
                )
            )
    return processes


def wait(processes):
    try:
        return [process.wait(PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()


def run(words, count, folder):
    """Run all processes; return their exit codes, and show their logs if one failed."""
    folder.mkdir(exist_ok=True)
    codes = wait(start(words, count, folder))
    logs = "\n".join((folder / f"{i}.log").read_text() for i in range(count))
    assert codes == [0] * count, logs


def train(out, *more):
    return ["train", "ppo", *COMMON.split(), "--out", str(out), *more]


def arrays(run):
    return storage.read(run / "policy")[1]


def assert_close(one, other):
    for name, x in arrays(one).items():
        np.testing.assert_allclose(x, arrays(other)[name], rtol=1e-5, atol=1e-5)


@pytest.mark.full
def test_one_agent_on_two_processes_is_the_agent_of_one(tmp_path):
    """Environments spread, gradients averaged: after one train step within 1e-5."""
    step = ["--total-steps", "128", "--parallel", "data"]
    run(train(tmp_path / "two", *step), 2, tmp_path / "logs")
    assert main(train(tmp_path / "one", *step)) == 0
    assert_close(tmp_path / "two", tmp_path / "one")
    rows = [read_metrics(tmp_path / n / "metrics.jsonl") for n in ("one", "two")]
    for name, values in rows[0][0].items():
        if "/" in name:
            np.testing.assert_allclose(values, rows[1][0][name], rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_processes_that_slurm_started_find_each_other(tmp_path):
    """With the variables that `srun` sets, `--coordinator auto` is all that is needed."""
    out = tmp_path / "run"
    words = train(out, "--total-steps", "128", "--num-seeds", "2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = free.getsockname()[1]
    slurm = {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_JOB_NUM_NODES": "1",
    }
    processes = []
    for i in range(2):
        own = {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
        with (tmp_path / f"{i}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, *words, "--coordinator", "auto"],
                    env=os.environ | {"JAX_PLATFORMS": "cpu"} | slurm | own,
                    stdout=log,
                    stderr=log,
                )
            )
    logs = [tmp_path / f"{i}.log" for i in range(2)]
    assert wait(processes) == [0, 0], "\n".join(log.read_text() for log in logs)
    assert read_json(out / "summary.json")["seeds"] == [0, 1]


@pytest.mark.full
def test_four_agents_on_four_processes_are_those_of_one(tmp_path):
    more = ["--total-steps", "128", "--num-seeds", "4"]
    run(train(tmp_path / "four", *more), 4, tmp_path / "logs")
    assert main(train(tmp_path / "one", *more)) == 0
    assert_close(tmp_path / "four", tmp_path / "one")
    found, expected = (
        read_json(tmp_path / n / "summary.json")["evaluation_by_member"]
        for n in ("four", "one")
    )
    # Rounding may change an action somewhere, and with it a return.
    assert np.isclose(found, expected, rtol=1e-5).sum() >= 3


@pytest.mark.full
def test_a_killed_process_ends_the_others_and_the_run_goes_on(tmp_path):
    """The resumed run is the uninterrupted one bit for bit."""
    out, words = tmp_path / "run", ["--total-steps", "6400", "--parallel", "data"]
    (tmp_path / "logs").mkdir()
    processes = start(train(out, *words), 2, tmp_path / "logs")
    try:
        wait_for_lines(out / "metrics.jsonl", 3, processes)
        processes[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        code = processes[0].wait(PATIENCE)
    finally:
        for process in processes:
            process.kill()
    message = (tmp_path / "logs" / "0.log").read_text()
    assert code == 5, message
    assert "another process of this run has stopped" in message
    assert time.monotonic() - killed < 120
    assert not (out / "summary.json").exists()
    run(["resume", str(out), "--quiet"], 2, tmp_path / "again")
    run(train(tmp_path / "whole", *words), 2, tmp_path / "logs2")
    for name, x in arrays(out).items():
        assert x.tobytes() == arrays(tmp_path / "whole")[name].tobytes(), name


@pytest.mark.full
def test_the_first_process_is_killed_and_one_alone_goes_on(tmp_path):
    out, words = tmp_path / "run", ["--total-steps", "6400", "--num-seeds", "2"]
    (tmp_path / "logs").mkdir()
    processes = start(train(out, *words), 2, tmp_path / "logs")
    try:
        wait_for_lines(out / "metrics.jsonl", 3, processes)
        processes[0].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        code = processes[1].wait(PATIENCE)
    finally:
        for process in processes:
            process.kill()
    assert code != 0, (tmp_path / "logs" / "1.log").read_text()
    assert time.monotonic() - killed < 120
    assert not (out / "summary.json").exists()
    assert main(["resume", str(out), "--quiet"]) == 0
    summary = read_json(out / "summary.json")
    assert summary["finished"] and summary["iterations"] == 50
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == list(range(1, 51))


@pytest.mark.full
def test_a_sweep_on_two_processes_is_that_of_one(tmp_path):
    words = [*COMMON.split(), "--total-steps", "128", "--confirm-seeds", "2"]
    words += ["--grid", "gamma=0.9,0.99", "--num-seeds", "2"]
    several, one = tmp_path / "two", tmp_path / "one"
    run(["sweep", "ppo", *words, "--out", str(several)], 2, tmp_path / "logs")
    assert main(["sweep", "ppo", *words, "--out", str(one)]) == 0
    for folder in ("runs/000", "confirm/000"):
        assert_close(several / folder, one / folder)
    found, expected = (read_trials(folder) for folder in (several, one))
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.overrides, mine.seeds) == (theirs.overrides, theirs.seeds)
    assert read_json(several / "summary.json")["finished"]


@pytest.mark.full
def test_a_process_that_fails_alone_does_not_leave_the_others_waiting(tmp_path):
    """The first finds the folder in use; the other cannot know, and ends too."""
    out = tmp_path / "run"
    words = train(out, "--total-steps", "6400", "--num-seeds", "2")
    assert main([*words, "--stop-iterations", "1"]) == 0
    (out / "summary.json").unlink()
    (tmp_path / "logs").mkdir()
    begun = time.monotonic()
    with lock(out):
        codes = wait(start(["resume", str(out), "--quiet"], 2, tmp_path / "logs"))
    assert codes[0] == 2 and codes[1] != 0
    assert time.monotonic() - begun < 120
    assert "is in use by another process" in (tmp_path / "logs" / "0.log").read_text()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("bad"), 2),
        (OSError(28, "No space left on device", "metrics.jsonl"), 4),
        (jax.errors.JaxRuntimeError("Gloo AllReduce failed: Connection closed"), 5),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), 5),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), 1),
        (ValueError("the connection of layers: a bug"), 1),
        (RuntimeError("a bug"), 1),
        (KeyError("a bug"), 1),
    ],
)
def test_an_error_of_one_of_several_processes_ends_it_at_once(
    monkeypatch, capsys, error, code
):
    """A normal exit would wait for the others, and they for this one."""

    def fail(*args):
        raise error

    ended = []
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr("jaxrl.envs.env_ids", fail)
    monkeypatch.setattr("os._exit", ended.append)
    main(["list", "envs"])
    assert ended == [code]
    message = capsys.readouterr().err
    assert ("Traceback" in message) == (code == 1)


def test_an_address_that_cannot_be_used_is_one_line(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InvalidInput, match=r"cannot listen there .*in use"):
            distributed.join(address, 2, 0)
    monkeypatch.setattr(distributed, "PATIENCE", 0.0)
    with pytest.raises(InvalidInput, match=r"does not answer .*refused"):
        distributed.join(address, 2, 1)


def wait_for_lines(path: Path, count: int, processes) -> None:
    begun = time.monotonic()
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert time.monotonic() - begun < PATIENCE
        assert [p.poll() for p in processes] == [None] * len(processes)
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-processes", "2"], "coordinator is missing"),
        (["--coordinator", "host"], "must be HOST:PORT"),
        (["--coordinator", "host:99999"], "must be HOST:PORT"),
        (["--coordinator", "host:1"], "num_processes is missing"),
        (["--coordinator", "host:1", "--num-processes", "2"], "process_id is missing"),
        (
            ["--coordinator", "host:1", "--num-processes", "2", "--process-id", "2"],
            "process_id = 2",
        ),
    ],
)
def test_bad_machines_are_one_line(tmp_path, capsys, words, message):
    assert main(train(tmp_path / "out", *words)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
