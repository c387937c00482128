"""Training today is the training that was: kept trajectories and kept run folders."""

import shutil

import numpy as np
import pytest

import jaxrl
from jaxrl.cli import main
from jaxrl.core import storage
from jaxrl.runs.checkpoint import FOLDER, saved
from tests import golden
from tests.support.runs import read_json


@pytest.mark.parametrize("name", golden.CASES)
def test_losses_and_gradient_norms_are_the_kept_ones(name):
    """Another compiler rounds otherwise, and 50 train steps enlarge that."""
    found, kept = golden.trajectory(name), golden.recorded()[name]
    assert all(len(numbers) == golden.STEPS for numbers in kept.values())
    assert golden.distance(found, kept) < 5e-3


def test_another_step_size_is_noticed(monkeypatch):
    algorithm, env_id, changes = golden.CASES["ppo"]
    changes = changes | {"learning_rate": 1.01e-3}
    monkeypatch.setitem(golden.CASES, "ppo", (algorithm, env_id, changes))
    assert golden.distance(golden.trajectory("ppo"), golden.recorded()["ppo"]) > 1e-2


@pytest.mark.full
@pytest.mark.parametrize("kept", golden.kept_runs(), ids=lambda path: path.name)
def test_kept_runs_load_and_go_on(kept, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(kept, run)
    policy = jaxrl.load_policy(run)
    np.testing.assert_allclose(
        golden.actions(policy), read_json(run / "actions.json"), atol=1e-4
    )
    before = saved(run)[-1]
    storage.read(run / FOLDER / str(before))
    assert main(["resume", str(run)]) == 0
    assert f"after train step {before}" in capsys.readouterr().out
    summary = read_json(run / "summary.json")
    assert summary["finished"] and summary["iterations"] > before


def test_every_kind_of_run_is_kept():
    names = {path.name.partition("-")[2] for path in golden.kept_runs()}
    assert names == golden.RUNS.keys()
