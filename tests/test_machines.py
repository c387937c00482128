"""A run on several processes is the run on one; if one is killed the others say so."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxrl import storage
from jaxrl.cli import main
from jaxrl.loggers import read_metrics
from tests.runs import read_json

COMMON = (
    "--env CartPole-v1 --num-envs 8 --num-steps 16 --num-minibatches 2 --num-epochs 2 "
    "--hidden-sizes 16 --evaluation-episodes 8 --checkpoint-every 0 --quiet"
)
PROGRAM = "import sys; from jaxrl.cli import main; sys.exit(main(sys.argv[1:]))"
PATIENCE = 240
"""Seconds after which a process is taken to hang."""


def start(words, count, folder):
    """The processes of one run, on the loopback interface."""
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
    """Exit codes of all; their logs are shown if one failed."""
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_four_agents_on_four_processes_are_those_of_one(tmp_path):
    more = ["--total-steps", "128", "--num-seeds", "4"]
    run(train(tmp_path / "four", *more), 4, tmp_path / "logs")
    assert main(train(tmp_path / "one", *more)) == 0
    assert_close(tmp_path / "four", tmp_path / "one")
    found, expected = (
        read_json(tmp_path / n / "summary.json")["evaluation_by_member"]
        for n in ("four", "one")
    )
    np.testing.assert_allclose(found, expected, rtol=0.3)


def test_a_killed_process_ends_the_others_and_the_run_goes_on(tmp_path):
    """The resumed run is the uninterrupted one bit for bit; one process can go on too."""
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
