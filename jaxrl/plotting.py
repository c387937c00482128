"""Learning curves, readable in print and safe for the colour-blind."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxrl.runner import Row
from jaxrl.statistics import bootstrap_interval, iqm

# Okabe & Ito (2008), "Color Universal Design".
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def curve(rows: Sequence[Row], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Environment steps `[C]` and the metric for each seed `[C, K]`; K = 1 for a number
    that all seeds share, such as `seconds`.

    Where nothing was counted in a chunk (no episode ended) the last value is kept; rows
    before the first value of every seed are left out.
    """
    if not rows:
        return np.zeros(0), np.zeros((0, 0))
    steps = np.array([row["env_steps"] for row in rows])
    values = np.array([row[metric] for row in rows], float)  # None becomes NaN
    values = values.reshape(len(rows), -1)
    for i in range(1, len(values)):
        values[i] = np.where(np.isnan(values[i]), values[i - 1], values[i])
    known = ~np.isnan(values).any(axis=1)
    return steps[known], values[known]


def plot_learning_curves(
    runs: Mapping[str, Sequence[Row]],
    out: Path,
    metric: str = "rollout/episode_return",
    title: str = "",
) -> None:
    """One curve a run: IQM over its seeds, shaded with the 95 % bootstrap interval.

    Args:
      runs: label -> rows of the run's metrics.
      out: a PNG, PDF or SVG file.
      metric: a metric of the rows.
      title: above the axes.
    """
    # The object interface: no pyplot, no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for i, (label, rows) in enumerate(runs.items()):
        steps, values = curve(rows, metric)
        colour = COLOURS[i % len(COLOURS)]
        num_seeds = values.shape[1] if len(values) else 0
        name = f"{label} ({num_seeds} seed{'s' if num_seeds != 1 else ''})"
        if not len(values):
            continue
        # A line through a single point is invisible.
        marker = "o" if len(steps) == 1 else None
        axes.plot(steps, iqm(values, axis=1), color=colour, label=name, marker=marker)
        if num_seeds > 1:
            low, high = bootstrap_interval(values, axis=1, num_resamples=2_000)
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xlabel("environment steps per seed")
    axes.set_ylabel(metric)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)
    figure.savefig(out, dpi=150)
