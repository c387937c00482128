"""`benchmarks/ladder.py`: its sums by hand, and the committed results."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from jaxrl.envs.lecture import mdp_of
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def ladder():
    """`benchmarks/ladder.py` as a module."""
    path = ROOT / "benchmarks" / "ladder.py"
    spec = importlib.util.spec_from_file_location("ladder", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ladder"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results():
    return json.loads((ROOT / "benchmarks" / "results" / "ladder.json").read_text())


def test_a_mean_and_its_interval_by_hand(ladder):
    row = ladder.measured([1.0, 2.0, 3.0, 4.0], "x", "", 0, target=3.0, within=0.5)
    assert (row["mean"], row["met"], row["runs"]) == (2.5, True, 4)
    error = np.sqrt(5 / 3 / 4)
    np.testing.assert_allclose(
        row["interval"], [2.5 - 1.96 * error, 2.5 + 1.96 * error]
    )
    assert ladder.measured([1.0, 2.0], "x", "", 0, 3.0, 0.5)["met"] is False
    assert ladder.measured([1.0, 2.0], "x", "", 0)["met"] is None


def test_a_median_and_its_interval_by_hand(ladder):
    row = ladder.medians(np.array([-13.0] * 9 + [-1000.0]), -13)
    assert row == {"mean": -13.0, "interval": [-13.0, -13.0], "met": True}


def test_the_best_return_with_exploration(ladder):
    cliff = mdp_of("lecture/cliff-walking")
    assert ladder.expected_best(cliff, 0.0) == pytest.approx(-13)
    assert -30 < ladder.expected_best(cliff, 0.1) < -17


def test_committed_results_are_whole(ladder, results):
    rows = results["rows"]
    assert {name.split()[0] for name in rows} == set(ladder.PARTS)
    for row in rows.values():
        assert row["runs"] >= 100
        assert row["interval"][0] <= row["mean"] <= row["interval"][1]
        if row["within"] and row["target"] is not None:
            assert row["met"] is (abs(row["mean"] - row["target"]) <= row["within"])
    for figure in ("ladder-walk.png", "ladder-control.png"):
        assert (ROOT / "docs" / "figures" / figure).exists()


def test_every_method_of_the_walk_has_its_row_and_its_curve(ladder, results):
    for name in ladder.walk_methods():
        assert name in results["rows"]
        assert results["curves"][name]["alpha"] == list(ladder.ALPHAS)
