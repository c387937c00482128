"""`benchmarks/imitation.py`: equal labels, and the bars of the committed results."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxrl import DAGGER, make
from jaxrl.data import dataset
from tests.support.paths import ROOT
from tests.support.small import random_dataset


@pytest.fixture(scope="module")
def script():
    path = ROOT / "benchmarks" / "imitation.py"
    spec = importlib.util.spec_from_file_location("imitation", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results():
    return json.loads((ROOT / "benchmarks" / "results" / "imitation.json").read_text())


@pytest.mark.parametrize("labels", [60, 500, 1_111, 25_000])
def test_dagger_is_given_no_more_labels_than_there_are_steps(script, labels):
    config = script.dagger_config(labels)
    used = DAGGER.plan(config, make("CartPole-v1")).env_steps * script.ITERATIONS
    assert labels - 4 * script.ITERATIONS < used <= labels
    assert config.total_steps == used and config.buffer_size == labels


def test_a_column_by_step(script):
    data = random_dataset(make("probe/action"), 5)
    data = data.replace(terminated=np.array([False, True, False, False, True]))
    assert list(dataset.ends(data)) == [2, 5]
    found = script.by_step(np.arange(5.0), data)
    np.testing.assert_array_equal(found, [[0, 1, 0], [2, 3, 4]])


def test_a_curve_counts_only_who_is_still_playing(script):
    found = script.curve([np.array([1.0, 3.0]), np.array([3.0])], points=2)
    assert found["step"] == [1, 2] and found["iqm"] == [2.0, 3.0]


def test_committed_results_are_whole(script, results):
    rows = results["rows"]
    assert list(rows) == list(script.EXPERTS)
    for row in rows.values():
        assert row["learners"] == 10 and not row["commit"].endswith("-dirty")
        assert all(len(case["scores"]) == 10 for case in row["cases"])


def test_the_bars_are_met(results):
    for env_id, row in results["rows"].items():
        barred = [case for case in row["cases"] if "bar" in case]
        assert {case["method"] for case in barred} == {"bc", "dagger"}, env_id
        assert all(case["score"] >= case["bar"] for case in barred), env_id


@pytest.mark.full
def test_it_runs_at_a_small_size_and_leaves_the_results_alone(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.imitation", "--quick"),
            *("--parts", "Pendulum-v1", "--out", str(tmp_path)),
        ],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        *("imitation.json", "imitation.png")
    }
