"""`jaxrl.runs.experiment`: files of a run are what was written, or refused by name."""

import dataclasses
import json
import os
import shutil

import pytest

from jaxrl import PPO
from jaxrl.cli import main
from jaxrl.core import files
from jaxrl.errors import InvalidInput
from jaxrl.runs import artifact
from jaxrl.runs.experiment import (
    describe,
    finished_summary,
    read_experiment,
    read_rows,
    resolve,
    write_summary,
)
from tests.support.runs import read_json


@pytest.fixture
def run(ppo_run, tmp_path):
    return shutil.copytree(ppo_run, tmp_path / "run")


def refused(*argv, capsys):
    capsys.readouterr()
    assert main([str(x) for x in argv]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def flip_digit(path, text):
    """Changes the first digit after a text."""
    content = path.read_text()
    place = content.index(text) + len(text)
    while not content[place].isdigit():
        place += 1
    digit = str((int(content[place]) + 1) % 10)
    path.write_text(content[:place] + digit + content[place + 1 :])


def test_a_changed_row_is_named(run, capsys):
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace('"loss/value": [', '"loss/value": [1')
    metrics.write_text("".join(lines))
    for argv in (["report", run], ["plot", run, "--out", run / "x.png"]):
        line = refused(*argv, capsys=capsys)
        assert str(metrics) in line and "line 3" in line


@pytest.mark.parametrize("content", ["", "first"])
def test_rows_that_are_missing_are_noticed(run, content, capsys):
    metrics = run / "metrics.jsonl"
    first = metrics.read_text().splitlines(keepends=True)[0]
    metrics.write_text(first if content else "")
    assert str(metrics) in refused("report", run, capsys=capsys)
    assert main(["evaluate", str(run), "--episodes", "1"]) == 0


def test_a_changed_number_of_the_summary_is_noticed(run, capsys):
    flip_digit(run / "summary.json", '"evaluation_by_member":')
    for argv in (["report", run], ["resume", run]):
        assert str(run / "summary.json") in refused(*argv, capsys=capsys)


@pytest.mark.parametrize("row", ["null", "[1]", '{"a": 1}', "[" * 10_000, "NaN", '"x"'])
def test_a_line_that_is_no_row_of_metrics_is_refused(run, row, capsys):
    (run / "metrics.jsonl").write_text(row + "\n")
    (run / "summary.json").unlink()  # the rows are not compared with digests
    line = refused("plot", run, "--out", run / "x.png", capsys=capsys)
    assert "metrics.jsonl" in line and "line 1" in line


@pytest.mark.parametrize(
    "change",
    [
        {"evaluation_by_member": [1.0, "x"]},
        {"evaluation_by_member": [1.0]},
        {"env_steps": 10**30},
        {"evaluation": None},
        {"finished": 1},
        {"versions": []},
    ],
)
def test_a_summary_of_another_shape_is_refused(run, change, capsys):
    write_summary(run, read_json(run / "summary.json") | change)
    line = refused("report", run, capsys=capsys)
    assert str(run) in line


def test_pipes_and_devices_in_the_place_of_files_are_refused(run):
    readers = {
        "config.json": read_experiment,
        "summary.json": finished_summary,
        "metrics.jsonl": read_rows,
    }
    for name, read in readers.items():
        (run / name).rename(run / "away")
        for make in (os.mkfifo, lambda p: p.symlink_to("/dev/zero"), os.mkdir):
            make(run / name)
            with pytest.raises(InvalidInput, match=name):
                read(run)
            (run / name).rmdir() if (run / name).is_dir() else (run / name).unlink()
        (run / "away").rename(run / name)
        read(run)


@pytest.mark.parametrize(
    "explored",
    [
        {"gamma": [0.9, 0.99]},
        {"nosuch": [0.0, 1.0]},
        {"gamma": 5},
        {"gamma": [1]},
        {"gamma": ["a", "b"]},
        5,
    ],
)
def test_explored_numbers_that_cannot_be_are_refused_before_training(explored):
    content = {"env": "probe/action", "explored": explored}
    experiment = artifact_experiment(content)
    with pytest.raises(InvalidInput, match="explored"):
        resolve(experiment)


def artifact_experiment(content):
    from jaxrl.runs.experiment import Experiment

    return Experiment(PPO, PPO.Config(), **content)


def test_a_long_list_of_sizes_is_refused():
    config = PPO.Config(hidden_sizes=(4,) * 100_000)
    experiment = dataclasses.replace(
        artifact_experiment({"env": "probe/action"}), config=config
    )
    with pytest.raises(InvalidInput, match="hidden_sizes") as error:
        resolve(experiment)
    assert len(str(error.value)) < 400


def test_the_file_is_named_whatever_is_wrong_in_it(run, capsys):
    config = run / "config.json"
    content = read_json(config)
    content["config"]["max_gpad_norm"] = content["config"].pop("max_grad_norm")
    config.write_text(json.dumps(content))
    assert str(config) in refused("resume", run, capsys=capsys)


def test_places_are_described_relative_to_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    bc = artifact.find_algorithm("bc", "here")
    from jaxrl.runs.experiment import Experiment

    experiment = Experiment(bc, bc.Config(), "probe/action", teacher="data")
    told = describe(experiment, lambda path: files.relative("runs/a", path))
    assert told["teacher"] == "../../data"
    found = artifact.map_paths(bc, told, lambda path: files.locate("runs/a", path))
    assert found["teacher"] == "data"
    artifact.check_places(bc, found, "runs/a")
    (tmp_path / "data").rmdir()
    with pytest.raises(InvalidInput, match="data is not there"):
        artifact.check_places(bc, found, "runs/a")


def test_a_sweep_has_no_rows_of_a_run(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    write_summary(tmp_path, {"algorithm": "ppo", "env": "x", "finished": True})
    with pytest.raises(InvalidInput, match=r"metrics\.jsonl"):
        read_rows(tmp_path)
