"""How often 95 % intervals of few seeds contain the IQM that they are for.

    python -m benchmarks.interval_coverage

Returns of 3, 5, 10 and 20 seeds are drawn from distributions whose interquartile mean is
known: normal, skewed (log-normal) and bimodal (three in ten seeds fail). Four intervals are
compared: the percentile bootstrap, which jaxrl prints; BCa; the studentised bootstrap; and
Student's t of a trimmed mean. Writes results/interval_coverage.json. Two minutes on a
core; no accelerator.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from benchmarks.trust_regions import commit

RESULTS = Path(__file__).parent / "results"
SIZES = (3, 5, 10, 20)
LEVEL = 0.95


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.lognormal(size=shape)


def bimodal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Three in ten around 0, the others around 10."""
    return np.where(rng.random(shape) < 0.3, 0.0, 10.0) + rng.normal(size=shape)


RETURNS = {"normal": normal, "skewed": skewed, "bimodal": bimodal}


def iqm(x: np.ndarray) -> np.ndarray:
    """Of `[..., n]`: what `statistics.iqm` computes, faster."""
    cut = x.shape[-1] // 4
    return np.sort(x, -1)[..., cut : x.shape[-1] - cut].mean(-1)


def standard_error(x: np.ndarray) -> np.ndarray:
    """Of the IQM of `[..., n]`, by the winsorised variance.

    Source: Tukey and McLaughlin (1963), "Less vulnerable confidence and significance
    procedures for location based on a single sample".
    """
    n, x = x.shape[-1], np.sort(x, -1)
    cut = n // 4
    x = np.clip(x, x[..., cut, None], x[..., n - 1 - cut, None])
    return np.sqrt(x.var(-1) * n / ((n - 2 * cut) * (n - 2 * cut - 1)))


Interval = tuple[np.ndarray, np.ndarray]
"""Ends `[R]` of the intervals of R samples."""


def percentile(x: np.ndarray, resamples: np.ndarray) -> Interval:
    """Efron and Tibshirani (1993), chapter 13: `statistics.bootstrap_interval`."""
    low, high = np.quantile(iqm(resamples), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=1)
    return low, high


def bca(x: np.ndarray, resamples: np.ndarray) -> Interval:
    """Bias-corrected and accelerated; Efron and Tibshirani (1993), chapter 14."""
    found = np.sort(iqm(resamples), 1)
    count = found.shape[1]
    below = (found < iqm(x)[:, None]).mean(1) + (found == iqm(x)[:, None]).mean(1) / 2
    bias = scipy.stats.norm.ppf(np.clip(below, 0.5 / count, 1 - 0.5 / count))
    n = x.shape[1]
    without = np.stack([iqm(np.delete(x, i, 1)) for i in range(n)], 1)
    influence = without.mean(1, keepdims=True) - without
    spread = np.maximum((influence**2).sum(1), 1e-300) ** 1.5
    acceleration = (influence**3).sum(1) / (6 * spread)
    ends = []
    for z in scipy.stats.norm.ppf([0.5 - LEVEL / 2, 0.5 + LEVEL / 2]):
        shifted = bias + (bias + z) / (1 - acceleration * (bias + z))
        rank = scipy.stats.norm.cdf(shifted) * (count - 1)
        ends.append(np.take_along_axis(found, rank.round().astype(int)[:, None], 1))
    return ends[0][:, 0], ends[1][:, 0]


def studentised(x: np.ndarray, resamples: np.ndarray) -> Interval:
    """The bootstrap of t; Efron and Tibshirani (1993), section 12.5.

    Resamples of equal numbers have no t and are left out.
    """
    error = standard_error(resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 0, (iqm(resamples) - iqm(x)[:, None]) / error, np.nan)
    high, low = np.nanquantile(t, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=1)
    return iqm(x) - low * standard_error(x), iqm(x) - high * standard_error(x)


def student(x: np.ndarray, resamples: np.ndarray) -> Interval:
    """IQM ± t standard errors; Tukey and McLaughlin (1963)."""
    n = x.shape[1]
    t = scipy.stats.t.ppf(0.5 + LEVEL / 2, n - 2 * (n // 4) - 1)
    return iqm(x) - t * standard_error(x), iqm(x) + t * standard_error(x)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Interval]] = {
    "percentile": percentile,
    "BCa": bca,
    "studentised": studentised,
    "Student's t": student,
}


def measure(
    draw: Callable, n: int, samples: int, num_resamples: int, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Coverage of each method, and its median width in widths of the middle half."""
    rng = np.random.default_rng(seed)
    many = np.sort(draw(rng, (2_000_000,)))
    lower, upper = many[len(many) // 4], many[3 * len(many) // 4]
    truth = many[len(many) // 4 : 3 * len(many) // 4].mean()
    inside: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    widths: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    for _ in range(samples // 100):
        x = draw(rng, (100, n))
        rows = np.arange(100)[:, None, None]
        resamples = x[rows, rng.integers(n, size=(100, num_resamples, n))]
        for name, interval in METHODS.items():
            low, high = interval(x, resamples)
            inside[name].append((low <= truth) & (truth <= high))
            widths[name].append(high - low)
    return {
        name: {
            "coverage": round(float(np.mean(inside[name])), 3),
            "width": round(float(np.median(widths[name]) / (upper - lower)), 2),
        }
        for name in METHODS
    }


def table(rows: dict[str, Any]) -> str:
    """Coverage and median width of each method, a row for each kind and number of seeds."""
    names = list(METHODS)
    lines = [
        f"| returns | seeds | {' | '.join(names)} |",
        "|---" * (len(names) + 2) + "|",
    ]
    for kind, by_size in rows.items():
        for n, found in by_size.items():
            cells = [
                f"{found[name]['coverage']:.2f} ({found[name]['width']:.1f})"
                for name in names
            ]
            lines.append(f"| {kind} | {n} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="200 samples, seconds")
    parser.add_argument("--out", help="a folder for the file; needed with --quick")
    arguments = parser.parse_args()
    if arguments.quick and not arguments.out:
        parser.error("--quick needs --out, or it would overwrite the real results")
    samples, num_resamples = (200, 200) if arguments.quick else (2_000, 1_000)
    rows = {
        kind: {str(n): measure(draw, n, samples, num_resamples) for n in SIZES}
        for kind, draw in RETURNS.items()
    }
    results = {
        "command": "python -m benchmarks.interval_coverage",
        "commit": commit(),
        "samples": samples,
        "resamples": num_resamples,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "rows": rows,
    }
    folder = Path(arguments.out or RESULTS)
    (folder / "interval_coverage.json").write_text(
        json.dumps(results, indent=1) + "\n", encoding="utf-8"
    )
    print(table(rows))


if __name__ == "__main__":
    main()
