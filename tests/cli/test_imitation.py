"""Imitation through the command line: an expert, its episodes, and those who learn."""

import json
import shutil
from pathlib import Path

import pytest

from jaxrl.cli import main
from jaxrl.data import dataset
from tests.cli.test_cli import refused
from tests.support.runs import read_json, train, train_argv


@pytest.fixture(scope="module")
def data(ppo_run, tmp_path_factory):
    """20 episodes of an agent of `ppo_run`."""
    folder = tmp_path_factory.mktemp("data") / "data"
    argv = ["collect", str(ppo_run), "--episodes", "20", "--out", str(folder)]
    assert main(argv) == 0
    return folder


@pytest.fixture(scope="module")
def bc_run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("bc") / "run"
    return train(out, "bc", "--data", str(data), "--num-seeds", "2")


@pytest.fixture(scope="module")
def dagger_run(ppo_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("dagger") / "run"
    return train(out, "dagger", "--expert", str(ppo_run))


@pytest.mark.full
@pytest.mark.parametrize("name", ["bc_run", "dagger_run"])
def test_a_run_is_evaluated_without_its_teacher(name, request, capsys):
    run = request.getfixturevalue(name)
    assert main(["evaluate", str(run), "--episodes", "4", "--json"]) == 0
    evaluation = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert f"{evaluation['algorithm']}_run" == name


@pytest.mark.full
@pytest.mark.parametrize(("name", "flag"), [("bc", "--data"), ("dagger", "--expert")])
def test_a_run_is_resumed_and_evaluated_from_another_folder(
    name, flag, ppo_run, tmp_path, monkeypatch
):
    """Its teacher is given by a relative path, and both are moved together."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    monkeypatch.chdir(first)
    shutil.copytree(ppo_run, "expert")
    assert main(["collect", "expert", "--episodes", "5", "--out", "data"]) == 0
    run = train(Path("run"), name, flag, flag[2:], "--stop-iterations", "1")
    (run / "summary.json").unlink()
    monkeypatch.chdir(tmp_path)
    first.rename(second)
    for command in ("resume", "evaluate"):
        assert main([command, str(second / run)]) == 0
    assert read_json(second / run / "summary.json")["finished"]


@pytest.mark.full
def test_a_learner_can_be_recorded_in_its_turn(bc_run, tmp_path):
    out = tmp_path / "data"
    argv = ["collect", str(bc_run), "--episodes", "3", "--out", str(out)]
    assert main([*argv, "--agent", "1"]) == 0
    assert dataset.read_about(out)["policy"]["algorithm"] == "bc"


@pytest.mark.full
def test_a_learner_can_be_the_expert_of_another(bc_run, tmp_path):
    train(tmp_path / "run", "dagger", "--expert", str(bc_run))


@pytest.mark.full
def test_a_run_whose_dataset_has_changed_is_not_resumed(ppo_run, tmp_path, capsys):
    for name, seed in (("data", "0"), ("other", "1")):
        argv = ["collect", str(ppo_run), "--episodes", "5", "--seed", seed]
        assert main([*argv, "--out", str(tmp_path / name)]) == 0
    out, folder = tmp_path / "run", tmp_path / "data"
    train(out, "bc", "--data", str(folder), "--stop-iterations", "1")
    (out / "summary.json").unlink()
    assert main(["resume", str(out), "--quiet"]) == 0
    (out / "summary.json").unlink()
    folder.rename(tmp_path / "first")
    (tmp_path / "other").rename(folder)
    assert "teacher" in refused(["resume", str(out), "--quiet"], capsys)


@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("bc", [], "data is missing: bc learns from it, give --data"),
        ("dagger", [], "expert is missing: dagger learns from it, give --expert"),
        ("bc", ["--data", "nowhere"], "DATA = 'nowhere' holds no dataset"),
        ("dagger", ["--expert", "nowhere"], "RUN = 'nowhere' holds no policy"),
        ("bc", ["--expert", "nowhere"], "--expert"),
        ("ppo", ["--data", "nowhere"], "--data"),
    ],
)
def test_a_teacher_that_is_missing_or_too_much_is_refused(
    name, more, reason, empty_folder, capsys
):
    assert reason in refused(train_argv(name, *more, "--out", "run"), capsys)
    assert not list(empty_folder.iterdir())


def test_a_dataset_of_another_environment_is_refused(data, empty_folder, capsys):
    argv = train_argv("bc", "--data", str(data), "--out", "run", env="CartPole-v1")
    line = refused(argv, capsys)
    assert "was recorded with observation space" in line and str(data) in line


def test_an_expert_with_a_memory_is_refused(gru_run, empty_folder, capsys):
    argv = train_argv("dagger", "--expert", str(gru_run), "--out", "run")
    line = refused([*argv, "--env", "probe/memory"], capsys)
    assert "its policy has a memory" in line
