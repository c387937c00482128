"""`jaxrl.runs.loggers`: the metrics file, TensorBoard and Weights & Biases."""

import errno
import json
import re
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from jaxrl.cli import main
from jaxrl.core import files
from jaxrl.errors import InvalidInput
from jaxrl.runs import loggers, session
from jaxrl.runs.loggers import (
    MetricsFile,
    TensorBoard,
    WandB,
    mean_return,
    read_metrics,
)
from tests.support import runs

ROW = {"iteration": 1, "env_steps": 50, "rollout/episode_return": [1.0, 2.0]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_a_row_is_a_whole_line_in_the_file_at_once(path):
    metrics = MetricsFile(path)
    metrics.write(ROW)
    assert path.read_text() == json.dumps(ROW) + "\n"
    metrics.close()


def test_what_was_written_is_read(path):
    metrics = MetricsFile(path)
    rows = [ROW, ROW | {"iteration": 2, "rollout/episode_return": [None, 0.1]}]
    for row in rows:
        metrics.write(row)
    metrics.close()
    assert read_metrics(path) == rows


def test_a_file_is_continued_not_overwritten(path):
    rows = [ROW, ROW | {"iteration": 2}]
    for row in rows:
        metrics = MetricsFile(path)
        metrics.write(row)
        metrics.close()
    assert read_metrics(path) == rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_null(path, value):
    metrics = MetricsFile(path)
    metrics.write(ROW | {"loss": [value, 1.0], "seconds": value})
    metrics.close()
    assert read_metrics(path) == [ROW | {"loss": [None, 1.0], "seconds": None}]


def test_half_a_line_is_an_error(path):
    path.write_text('{"iteration": 1}\n{"iterat')
    with pytest.raises(ValueError):
        read_metrics(path)


def test_digests_are_those_of_what_was_written(path):
    metrics = MetricsFile(path)
    for iteration in (1, 2, 3):
        metrics.write(ROW | {"iteration": iteration})
    whole = path.read_bytes()
    said = metrics.sync()
    assert said["metrics_bytes"] == len(whole)
    assert said["metrics_digests"] == loggers.row_digests(path)
    read_metrics(path, len(whole), said["metrics_digests"])
    path.write_bytes(whole.replace(b"50", b"51"))
    assert metrics.sync() == said
    with pytest.raises(InvalidInput, match=r"metrics\.jsonl .* line 1, 2, 3"):
        read_metrics(path, len(whole), said["metrics_digests"])
    path.write_bytes(whole)
    metrics.truncate(len(whole) // 3)
    assert metrics.digests == loggers.row_digests(path) == said["metrics_digests"][:1]
    metrics.close()


def test_lines_are_not_gathered_before_one_is_refused(path, monkeypatch):
    path.touch()

    def read_lines(path):
        yield b"\n"
        pytest.fail("reads on")

    monkeypatch.setattr(files, "read_lines", read_lines)
    with pytest.raises(InvalidInput, match="line 1"):
        read_metrics(path)


def test_a_full_disk_is_named_where_a_file_is_cut(path, monkeypatch):
    metrics = MetricsFile(path)

    def truncate(size):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(metrics, "_file", SimpleNamespace(truncate=truncate))
    with pytest.raises(OSError, match=re.escape(str(path))):
        metrics.truncate(0)


@pytest.mark.parametrize(
    ("by_seed", "mean"),
    [([1.0, 3.0], 2.0), ([1.0, None], 1.0), ([None, None], None)],
)
def test_the_mean_return_is_over_the_seeds_that_have_one(by_seed, mean):
    assert mean_return({"rollout/episode_return": by_seed}) == mean


def scalars(folder):
    """What TensorBoard's own reader finds: tag -> [(step, value)]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {t: [(e.step, e.value) for e in events.Scalars(t)] for t in tags}


@pytest.mark.full
def test_tensorboard_reads_the_rows_back(tmp_path):
    run = runs.train(tmp_path / "run", "ppo", "--log", "tensorboard")
    rows = read_metrics(run / "metrics.jsonl")
    folders = sorted((run / "tensorboard").iterdir())
    assert [folder.name for folder in folders] == ["agent-0", "agent-1"]
    for k, folder in enumerate(folders):
        found = scalars(folder)
        for name in ("loss/policy", "rollout/episode_return"):
            expected = [(r["env_steps"], np.float32(r[name][k])) for r in rows]
            assert found[name] == expected
        assert [step for step, _ in found["seconds"]] == [r["env_steps"] for r in rows]


def test_tensorboard_gets_the_hyperparameters_of_each_agent(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    board = TensorBoard(tmp_path, [{"gamma": 0.9, "hidden_sizes": [8]}], 0)
    board.write(ROW | {"rollout/episode_return": [3.0]})
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "agent-0"))
    events.Reload()
    content = events.PluginTagToContent("hparams")
    data = plugin_data_pb2.HParamsPluginData.FromString(
        content["_hparams_/session_start_info"]
    )
    hparams = data.session_start_info.hparams
    assert hparams["gamma"].number_value == 0.9
    assert hparams["hidden_sizes"].string_value == "[8]"


SAMPLES = [
    {"prompt": "a|b", "answer": "<b>\nc", "score": 0.12345},
    {"prompt": "", "answer": "d", "score": 1.0},
]


def test_samples_are_a_table_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path, [{}, {}], 0)
    board.show(SAMPLES, 50)
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "agent-0"))
    events.Reload()
    (event,) = events.Tensors("samples/text_summary")
    lines = event.tensor_proto.string_val[0].decode().split("\n")
    assert event.step == 50 and lines == [
        "| prompt | answer | score |",
        "| --- | --- | --- |",
        "| a\\|b | &lt;b>⏎c | 0.123 |",
        "|  | d | 1 |",
    ]


@pytest.mark.full
def test_samples_are_a_table_in_wandb():
    logged = []
    board = object.__new__(WandB)
    board._run = SimpleNamespace(log=lambda row, step: logged.append((row, step)))
    board.show(SAMPLES, 50)
    ((row, step),) = logged
    table = row["samples"]
    assert step == 50 and table.columns == ["prompt", "answer", "score"]
    assert table.data[1] == ["", "d", "1.0"]


def test_tensorboard_of_a_large_population_has_the_mean(tmp_path):
    returns = [float(k) for k in range(200)]
    board = TensorBoard(tmp_path, [{}] * 200, 0)
    board.write(ROW | {"rollout/episode_return": [*returns[:-1], None]})
    board.close()
    (folder,) = (tmp_path / "tensorboard").iterdir()
    (found,) = scalars(folder)["rollout/episode_return"]
    assert folder.name == "mean" and found == (50, np.float32(99.0))


def test_tensorboard_forgets_what_a_resumed_run_writes_again(tmp_path):
    for after, value in ((0, 1.0), (50, 2.0)):
        board = TensorBoard(tmp_path, [{}], after)
        for step in (50, 100):
            if step > after:
                row = ROW | {"env_steps": step, "rollout/episode_return": [value]}
                board.write(row)
        board.close()
    found = scalars(tmp_path / "tensorboard" / "agent-0")
    assert found["rollout/episode_return"] == [(50, 1.0), (100, 2.0)]


@pytest.mark.full
def test_what_was_trained_before_is_logged_too(tmp_path):
    """The second rung of halving goes on from the first: its curves begin there."""
    out = tmp_path / "sweep"
    words = runs.train_argv("ppo", "--log", "tensorboard", "--quiet", "--out", str(out))
    more = ["--scheduler", "halving", "--grid", "gamma=0.9,0.95,0.98,0.99"]
    assert main(["sweep", *words[1:], *more]) == 0
    run = out / "runs" / "rung-1" / "000"
    steps = [row["env_steps"] for row in read_metrics(run / "metrics.jsonl")]
    found = scalars(run / "tensorboard" / "agent-0")["loss/policy"]
    assert [step for step, _ in found] == steps
    assert session._name(run) == "sweep/runs/rung-1/000"
    assert session._name(tmp_path) == tmp_path.name


@pytest.mark.full
def test_wandb_offline_holds_the_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = runs.train(tmp_path / "run", "ppo", "--log", "wandb")
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    rows = read_metrics(run / "metrics.jsonl")
    logged = wandb_history(file)
    assert [int(row["_step"]) for row in logged] == [r["env_steps"] for r in rows]
    for row, mine in zip(logged, rows, strict=True):
        np.testing.assert_allclose(row["loss/policy"], np.mean(mine["loss/policy"]))
        values = mine["rollout/episode_return"]
        assert [row[f"rollout/episode_return/{k}"] for k in (0, 1)] == values


def wandb_history(file):
    """The rows of an offline file of wandb: its messages in a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for message in leveldb_records(file.read_bytes(), start=7):
        record = Record.FromString(message)
        if record.WhichOneof("record_type") == "history":
            rows.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
            )
    return rows


def leveldb_records(data, start):
    """Blocks of 32 kB; of each part of a record a checksum, its length and kind."""
    message, at = b"", start
    while at < len(data):
        room = 2**15 - at % 2**15
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield message
            message = b""


@pytest.mark.parametrize(
    ("log", "message"),
    [("tensorbord", "did you mean 'tensorboard'"), ("wandb", "jaxrl\\[wandb\\]")],
)
def test_a_log_that_there_is_not_is_refused(
    tmp_path, monkeypatch, capsys, log, message
):
    monkeypatch.setitem(loggers.MODULES, "wandb", "a_module_that_is_not_there")
    argv = runs.train_argv("ppo", "--log", log, "--out", str(tmp_path / "run"))
    assert main(argv) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
