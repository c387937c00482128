"""`jaxrl.statistics`: interquartile mean and bootstrap interval, by hand."""

import json

import numpy as np
import pytest

from jaxrl.errors import InvalidInput
from jaxrl.statistics import (
    aggregate_iqm,
    bootstrap_difference,
    bootstrap_interval,
    interval_caveat,
    iqm,
    iqm_in_words,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    row_of_seeds,
    stratified_interval,
    summarize_returns,
)
from tests.support.paths import GOLDEN


def normal(size):
    """Standard normal scores, the same in every test."""
    return np.random.default_rng(0).normal(size=size)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 4.5),  # drops two at each end
        ([8, 1, 7, 2, 6, 3, 5, 4], 4.5),  # in any order
        ([-100, 1, 2, 3, 4, 5, 6, 900], 3.5),  # which outliers do not move
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 60], 5.5),  # floor(10 / 4) at each end
        ([0, 1, 5], 2.0),  # floor(3 / 4): nothing to drop
        ([7], 7.0),
    ],
)
def test_iqm_is_the_mean_without_a_quarter_at_each_end(scores, expected):
    assert iqm(scores) == expected


def test_iqm_of_a_table_is_over_all_its_scores():
    # As rliable's `aggregate_iqm`: runs and tasks are one sample.
    table = np.array([[1, 8, 3, 6], [5, 4, 7, 2]])
    assert iqm(table) == 4.5


def test_iqm_along_an_axis():
    table = np.array([[1, 2, 3, 4], [5, 6, 7, 80]])
    np.testing.assert_array_equal(iqm(table, axis=1), [2.5, 6.5])


def test_interval_of_two_scores_by_hand():
    # The resampled mean is 0, 0.5 or 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)


def test_interval_is_the_same_for_the_same_numbers():
    scores = normal(10)
    assert bootstrap_interval(scores) == bootstrap_interval(scores)


def test_interval_contains_the_iqm_and_lies_within_the_data():
    rounding = 1e-9  # of the mean of equal numbers
    for size in (2, 3, 10, 50):
        scores = normal(size)
        low, high = bootstrap_interval(scores)
        assert low < iqm(scores) < high
        assert scores.min() - rounding <= low and high <= scores.max() + rounding


def test_interval_is_as_wide_as_the_normal_approximation_says():
    scores = normal(400)
    low, high = bootstrap_interval(scores)
    # The standard error of a 25 % trimmed mean of normal data is 1.09 / sqrt(n).
    assert high - low == pytest.approx(2 * 1.96 * 1.09 / 20, rel=0.15)


def test_a_single_score_is_its_own_interval():
    assert bootstrap_interval([3.0]) == (3.0, 3.0)


def test_interval_of_equal_scores_is_that_score():
    assert bootstrap_interval([2.0] * 5) == (2.0, 2.0)


def test_interval_along_an_axis_has_one_for_each_row():
    low, high = bootstrap_interval(np.array([[1, 1, 1], [0, 5, 9]]), axis=1)
    assert low.shape == high.shape == (2,)
    assert low[0] == high[0] == 1
    assert 0 <= low[1] < high[1] <= 9


def test_returns_of_several_seeds_are_summarised_over_the_seeds_means():
    # Means 2, 4, 6 and 100: the IQM drops 2 and 100.
    returns = [[1, 3], [4, 4], [0, 12], [100, 100]]
    summary = summarize_returns(returns)
    assert summary["episodes"] == 2
    assert summary["episode_return_mean"] == 28.0
    assert summary["episode_return_iqm"] == 5.0
    low, high = summary["episode_return_ci95"]
    assert 2.0 <= low < 5.0 < high <= 100.0


def test_returns_of_one_seed_are_summarised_over_its_episodes():
    summary = summarize_returns([[0, 4, 6, 90]])
    assert summary["episodes"] == 4
    assert summary["episode_return_mean"] == 25.0
    assert summary["episode_return_iqm"] == 5.0
    low, high = summary["episode_return_ci95"]
    assert 0.0 <= low < 5.0 < high <= 90.0


def test_one_episode_of_one_seed_can_be_summarised():
    assert summarize_returns([[7.0]]) == {
        "episodes": 1,
        "episode_return_mean": 7.0,
        "episode_return_iqm": 7.0,
        "episode_return_ci95": [7.0, 7.0],
    }


def test_a_summary_holds_plain_numbers():
    summary = summarize_returns(np.float32([[1, 2], [3, 4]]))
    numbers = [summary["episode_return_mean"], *summary["episode_return_ci95"]]
    assert {type(x) for x in numbers} == {float}


RLIABLE = json.loads((GOLDEN / "rliable.json").read_text())
"""Values computed by rliable (tests/golden/rliable_values.py)."""

STATISTICS = {
    "iqm": aggregate_iqm,
    "optimality_gap": optimality_gap,
    "probability_of_improvement": probability_of_improvement,
}


@pytest.mark.parametrize("name", RLIABLE["points"])
def test_the_aggregates_are_those_of_rliable(name):
    kind, labels = name.split("/")
    scores = [RLIABLE["scores"][label] for label in labels.split(",")]
    assert STATISTICS[kind](*scores) == pytest.approx(
        RLIABLE["points"][name], abs=1e-12
    )
    interval = stratified_interval(STATISTICS[kind], *scores, num_resamples=4_000)
    # Two bootstraps of the same scores: they differ by their own noise.
    np.testing.assert_allclose(interval, RLIABLE["intervals"][name], atol=0.012)


def test_the_profile_is_that_of_rliable():
    thresholds, scores = RLIABLE["thresholds"], RLIABLE["scores"]["x"]
    profile = performance_profile(scores, thresholds)
    np.testing.assert_allclose(profile, RLIABLE["profile"], atol=1e-12)
    interval = stratified_interval(
        lambda x: performance_profile(x, thresholds), scores, num_resamples=4_000
    )
    np.testing.assert_allclose(interval, RLIABLE["profile_interval"], atol=0.025)


def test_the_resampling_stays_inside_each_task():
    """Two tasks without spread have none together, however different they are."""
    low, high = stratified_interval(aggregate_iqm, [[0.0] * 5, [10.0] * 5])
    assert low == high == 5.0


def test_probability_of_improvement_by_hand():
    # Of the four pairs one is better, one a tie: (1 + 1/2) / 4.
    assert probability_of_improvement([[1.0, 3.0]], [[3.0, 2.0]]) == 0.375
    assert optimality_gap([[0.5, 2.0]]) == 0.25


def test_the_interval_of_a_difference():
    """For two normal samples it is the textbook's, difference +- 1.96 standard errors."""
    x, y = normal(400) + 3.0, np.random.default_rng(1).normal(size=300) * 2.0
    low, high = bootstrap_difference(x, y)
    error = np.sqrt(x.var() / len(x) + y.var() / len(y))
    expected = x.mean() - y.mean() + 1.96 * error * np.array([-1, 1])
    np.testing.assert_allclose([low, high], expected, rtol=0.02)
    assert bootstrap_difference(y, x) == pytest.approx((-high, -low), rel=0.02)
    assert bootstrap_difference([2.0, 2.0], [5.0, 5.0]) == (-3.0, -3.0)


def test_a_row_of_seeds_leaves_out_what_broke():
    row = row_of_seeds([1.0, None, 2.0, 3.0, 6.0])
    assert (row["seeds"], row["broken"]) == (5, 1)
    assert row["episode_return_iqm"] == 2.5 and row["episode_return_mean"] == 3.0
    assert row["episode_return_std"] == pytest.approx(np.std([1, 2, 3, 6], ddof=1))
    assert row["ci95_low"] <= 2.5 <= row["ci95_high"]
    assert row["ci95_caveat"] == "too narrow for 4 seeds"
    assert row_of_seeds([1.0])["ci95_caveat"] == "too narrow for 1 seed"
    assert row_of_seeds([1.0, 2.0] * 5)["ci95_caveat"] == ""
    nothing = row_of_seeds([None])
    assert nothing["broken"] == 1 and nothing["episode_return_iqm"] is None
    assert nothing.keys() == row.keys()


@pytest.mark.parametrize(("x", "y"), [([1.0], [2.0, 3.0]), ([2.0, 3.0], [1.0])])
def test_a_single_number_beside_several_has_no_interval_of_the_difference(x, y):
    with pytest.raises(InvalidInput, match=r"[xy] = \[1.0\]"):
        bootstrap_difference(x, y)
    with pytest.raises(InvalidInput, match=r"y = \[\]"):
        bootstrap_difference(x, [])
    assert bootstrap_difference([1.0], [2.0]) == (-1.0, -1.0)
    assert bootstrap_difference([1.0], [2.0, 2.0]) == (-1.0, -1.0)


def test_the_interval_of_few_seeds_says_so():
    assert "too narrow" in iqm_in_words(4.5, 2.0, 7.0, 9) and "9" in interval_caveat(9)
    assert iqm_in_words(4.5, 2.0, 7.0, 10) == "4.50 (IQM, 95 % interval [2.00, 7.00])"
    assert "episodes" in interval_caveat(1)


def test_a_difference_with_a_broken_seed_is_refused():
    with pytest.raises(InvalidInput, match=r"x = .* must be finite numbers"):
        bootstrap_difference([1.0, np.nan], [2.0, 2.0])
