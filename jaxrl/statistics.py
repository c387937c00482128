"""Statistics over seeds: what a table in a paper may claim."""

from typing import Any

import numpy as np
from scipy import stats


def iqm(x: Any, axis: int | None = None) -> Any:
    """Interquartile mean: the mean of the middle half.

    Robust like a median, but less noisy: Agarwal et al. (2021), "Deep Reinforcement
    Learning at the Edge of the Statistical Precipice", section 4.3.
    """
    return stats.trim_mean(np.asarray(x, float), 0.25, axis=axis)


def bootstrap_interval(
    x: Any, axis: int = 0, level: float = 0.95, num_resamples: int = 10_000
) -> tuple[Any, Any]:
    """Percentile bootstrap interval of the IQM along `axis`, always the same for the
    same numbers. A single number is its own interval."""
    x = np.asarray(x, float)
    if x.shape[axis] < 2:
        value = iqm(x, axis=axis)
        return value, value
    interval = stats.bootstrap(
        (x,),
        iqm,
        axis=axis,
        confidence_level=level,
        n_resamples=num_resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return interval.low, interval.high


def bootstrap_difference(
    x: Any, y: Any, level: float = 0.95, num_resamples: int = 10_000
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(x) - mean(y), of two independent samples."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if np.ptp(x) == np.ptp(y) == 0.0:
        return float(x[0] - y[0]), float(x[0] - y[0])
    interval = stats.bootstrap(
        (x, y),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        confidence_level=level,
        n_resamples=num_resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summarize_returns(episode_return: Any) -> dict[str, Any]:
    """Mean, IQM and 95 % interval of evaluation returns `[K, E]`.

    IQM and interval are over the K seeds' means, because seeds, not episodes, are the
    independent repetitions of an experiment; over the E episodes when K = 1.
    """
    episode_return = np.asarray(episode_return, float)
    num_seeds, num_episodes = episode_return.shape
    sample = episode_return.mean(1) if num_seeds > 1 else episode_return[0]
    low, high = bootstrap_interval(sample)
    return {
        "episodes": num_episodes,
        "episode_return_mean": float(episode_return.mean()),
        "episode_return_iqm": float(iqm(sample)),
        "episode_return_ci95": [float(low), float(high)],
    }
