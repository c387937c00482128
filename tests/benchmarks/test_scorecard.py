"""The scorecard: verdicts by hand, and the committed results."""

import importlib.util
import json
import sys

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def scorecard():
    """`benchmarks/scorecard.py` as a module."""
    path = ROOT / "benchmarks" / "scorecard.py"
    spec = importlib.util.spec_from_file_location("scorecard", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scorecard"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (101.0, 120.0, "beaten"),
        (99.0, 120.0, "reproduced"),
        (80.0, 91.0, "reproduced"),
        (80.0, 89.0, "short"),
        (100.0, 100.0, "reproduced"),
    ],
)
def test_verdicts_against_100_plus_or_minus_10(scorecard, low, high, verdict):
    row = scorecard.Row("name", "ppo", "", 100.0, "source", spread=10.0)
    assert scorecard.verdict(row, low, high) == verdict


@pytest.mark.parametrize(
    ("bar", "iqm", "low", "met"),
    [
        (100, 100, 95, True),
        (100, 99, 99, False),
        (100, 101, 94, False),
        (-100, -99, -105, True),
        (-100, -99, -106, False),
        (None, 0, 0, None),
    ],
)
def test_the_bar_asks_for_iqm_and_low_end(scorecard, bar, iqm, low, met):
    row = scorecard.Row("name", "ppo", "", None, "source", bar=bar)
    assert scorecard.bar_met(row, iqm, low) is met


def test_every_row_is_committed_with_ten_seeds_or_more(scorecard):
    path = ROOT / "benchmarks" / "results" / "scorecard.json"
    results = json.loads(path.read_text())
    assert list(results) == [row.name for row in scorecard.ROWS]
    for r in results.values():
        assert len(r["by_seed"]) == len(set(r["seeds"])) >= 10
    for name in results:
        assert (ROOT / "docs" / "figures" / f"{name}.png").exists()
    shown = scorecard.tables(results)
    for name, r in results.items():
        line = scorecard.table_row(name, r)
        assert line in shown[""] and line in shown[r["algorithm"]]


def test_rows_are_flags_or_a_config_that_exists(scorecard):
    for row in scorecard.ROWS:
        flag, _, rest = row.arguments.partition(" ")
        assert flag == "--env" or (flag == "--config" and (ROOT / rest).exists())
