"""Learning curves, readable in print and safe for the colour-blind."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxrl.runner import Row
from jaxrl.statistics import (
    aggregate_iqm,
    bootstrap_interval,
    iqm,
    performance_profile,
    stratified_interval,
)

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


def summary_of_curve(
    rows: Sequence[Row], metric: str = "rollout/episode_return", points: int = 50
) -> dict[str, list[float]]:
    """A curve in a few numbers, for a file: environment steps, IQM over the seeds, and
    its 95 % bootstrap interval, at about so many points."""
    steps, values = curve(rows, metric)
    every = max(1, len(steps) // points)
    steps, values = steps[::every], values[::every]
    if not len(steps):
        return {"env_steps": [], "iqm": [], "low": [], "high": []}
    low, high = bootstrap_interval(values, axis=1, num_resamples=2_000)
    summary = {"iqm": iqm(values, axis=1), "low": low, "high": high}
    return {"env_steps": steps.tolist()} | {
        name: [round(float(v), 3) for v in array] for name, array in summary.items()
    }


def _empty(size: tuple[float, float]) -> Any:
    """The object interface: no pyplot, no global state, no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def figure_of(
    title: str,
    size: tuple[float, float] = (6, 4),
    grid: Literal["both", "x"] | None = "both",
) -> tuple[Any, Any]:
    """A figure of one panel, and its axes."""
    figure = _empty(size)
    axes = figure.subplots()
    axes.set_title(title)
    if grid is not None:
        axes.grid(alpha=0.3, axis=grid)
    return figure, axes


def _line(i: int) -> str:
    """Dashed where the colours begin again."""
    return ("-", "--")[i // len(COLOURS) % 2]


def _legend(figure: Any, axes: Any) -> None:
    """Inside the axes; below them, where it would cover the curves."""
    _, labels = axes.get_legend_handles_labels()
    if len(labels) <= 4 and all(len(label) <= 40 for label in labels):
        if labels:
            axes.legend(frameon=False, fontsize="small")
        return
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.17 * len(labels) + 0.1)
    figure.legend(loc="outside lower left", frameon=False, fontsize="x-small")


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
    figure, axes = figure_of(title)
    for i, (label, rows) in enumerate(runs.items()):
        steps, values = curve(rows, metric)
        colour = COLOURS[i % len(COLOURS)]
        num_seeds = values.shape[1] if len(values) else 0
        name = f"{label} ({num_seeds} seed{'s' if num_seeds != 1 else ''})"
        if not len(values):
            continue
        # A line through a single point is invisible.
        marker = "o" if len(steps) == 1 else None
        axes.plot(
            steps,
            iqm(values, axis=1),
            color=colour,
            linestyle=_line(i),
            label=name,
            marker=marker,
        )
        if num_seeds > 1:
            low, high = bootstrap_interval(values, axis=1, num_resamples=2_000)
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xlabel("environment steps per seed")
    axes.set_ylabel(metric)
    _legend(figure, axes)
    figure.savefig(out, dpi=150)


Table = Sequence[tuple[Mapping[str, Any], Sequence[float]]]
"""Settings, each with the returns of its seeds."""


def plot_slices(table: Table, names: Sequence[str], out: Path, title: str = "") -> None:
    """The return against each hyper-parameter.

    A point with a bar is a setting: IQM over its seeds, 95 % bootstrap interval. The line
    is the IQM of all seeds of all settings that share the value, where several do.

    Args:
      table: the settings.
      names: of the hyper-parameters, one panel each.
      out: a PNG, PDF or SVG file.
      title: above the figure.
    """
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    size = (4.0 * columns + 0.5, 3.2 * rows + 0.4)
    figure = _empty(size)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for axes, name in zip(panels, names, strict=False):
        _draw_slice(axes, name, [(own[name], returns) for own, returns in table])
    for axes in list(panels)[len(names) :]:
        axes.set_visible(False)
    figure.suptitle(title)
    figure.savefig(out, dpi=150)


def _draw_slice(
    axes: Any, name: str, points: Sequence[tuple[Any, Sequence[float]]]
) -> None:
    labels, places = _places([value for value, _ in points])
    for i, (_, returns) in enumerate(points):
        low, high = bootstrap_interval(returns, num_resamples=2_000)
        middle = iqm(returns)
        bars = [[max(middle - low, 0.0)], [max(high - middle, 0.0)]]
        axes.errorbar(
            places[i], middle, bars, fmt="o", color=COLOURS[0], alpha=0.7, capsize=3
        )
    shared = {
        place: [
            x
            for p, (_, returns) in zip(places, points, strict=True)
            if p == place
            for x in returns
        ]
        for place in sorted(set(places))
    }
    axes.plot(list(shared), [iqm(x) for x in shared.values()], color=COLOURS[1])
    if labels is not None:
        axes.set_xticks(range(len(labels)), labels)
    elif min(places) > 0 and max(places) >= 10 * min(places):
        axes.set_xscale("log")
    axes.set_xlabel(name)
    axes.set_ylabel("return (IQM over seeds)")
    axes.grid(alpha=0.3)


def _places(values: Sequence[Any]) -> tuple[list[str] | None, list[float]]:
    """Where values stand on an axis; with labels if they are not numbers."""
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in values):
        return None, [float(x) for x in values]
    labels = list(dict.fromkeys(_label(x) for x in values))
    return labels, [float(labels.index(_label(x))) for x in values]


def _label(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plot_heatmap(table: Table, x: str, y: str, out: Path, title: str = "") -> None:
    """The return for each pair of values of two hyper-parameters: IQM of all seeds.

    Args:
      table: the settings.
      x, y: the names of the two.
      out: a PNG, PDF or SVG file.
      title: above the axes.
    """
    values = [_in_order({_key(own[name]) for own, _ in table}) for name in (x, y)]
    columns, rows = values
    grid = np.full((len(rows), len(columns)), np.nan)
    for i, j in np.ndindex(grid.shape):
        returns = [
            r
            for own, found in table
            if (_key(own[x]), _key(own[y])) == (columns[j], rows[i])
            for r in found
        ]
        grid[i, j] = iqm(returns) if returns else np.nan
    width, height = 1.1 * len(columns) + 2.5, 0.7 * len(rows) + 1.8
    size = min(max(width, 4.0), 14.0), min(max(height, 3.0), 14.0)
    figure, axes = figure_of(title, size, grid=None)
    image = axes.imshow(grid, cmap="cividis", aspect="auto", origin="lower")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for i, j in np.ndindex(grid.shape):
        if np.isfinite(grid[i, j]) and grid.size <= 100:
            colour = "white" if grid[i, j] <= middle else "black"
            axes.text(j, i, f"{grid[i, j]:.4g}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), [_label(v) for v in columns])
    axes.set_yticks(range(len(rows)), [_label(v) for v in rows])
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    figure.colorbar(image, label="return (IQM over seeds)")
    figure.savefig(out, dpi=150)


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _in_order(values: set[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:  # None, or several kinds
        return sorted(values, key=str)


def plot_intervals(
    scores: Mapping[str, Sequence[float]], out: Path, title: str = ""
) -> None:
    """IQM over seeds with its 95 % bootstrap interval, a line each, and every seed.

    Args:
      scores: label -> the returns of its seeds.
      out: a PNG, PDF or SVG file.
      title: above the axes.
    """
    figure, axes = figure_of(title, (7.0, 0.45 * len(scores) + 1.3), grid="x")
    for i, returns in enumerate(scores.values()):
        low, high = bootstrap_interval(returns, num_resamples=2_000)
        axes.barh(i, high - low, left=low, height=0.6, color=COLOURS[5], alpha=0.8)
        axes.vlines(iqm(returns), i - 0.3, i + 0.3, color=COLOURS[6])
        axes.plot(returns, [i] * len(returns), "|", color=COLOURS[1], alpha=0.6)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.invert_yaxis()
    axes.set_xlabel("return")
    figure.savefig(out, dpi=150)


def plot_aggregates(
    rows: Sequence[Mapping[str, Any]], out: Path, title: str = ""
) -> None:
    """IQM and optimality gap over several environments, with 95 % intervals.

    Args:
      rows: of `report.tables.aggregates`.
      out: a PNG, PDF or SVG file.
      title: above the figure.
    """
    figure = _empty((8.0, 0.45 * len(rows) + 1.5))
    panels = figure.subplots(1, 2, sharey=True)
    names = {"iqm": "IQM, higher is better", "gap": "optimality gap, lower is better"}
    for axes, (name, words) in zip(panels, names.items(), strict=True):
        for i, row in enumerate(rows):
            low, high = row[f"score_{name}_low"], row[f"score_{name}_high"]
            axes.barh(i, high - low, left=low, height=0.6, color=COLOURS[5], alpha=0.8)
            middle = row[f"score_{name}"]
            axes.vlines(middle, i - 0.3, i + 0.3, color=COLOURS[6])
        axes.set_xlabel(f"normalised score: {words}")
        axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(rows)), [row["label"] for row in rows])
    panels[0].invert_yaxis()
    figure.suptitle(title)
    figure.savefig(out, dpi=150)


def plot_profiles(
    scores: Mapping[str, Sequence[float]], out: Path, title: str = ""
) -> None:
    """Performance profiles: the share of seeds with a return above each threshold.

    Args:
      scores: label -> the returns of its seeds.
      out: a PNG, PDF or SVG file.
      title: above the axes.
    """
    figure, axes = figure_of(title)
    every = np.concatenate([np.asarray(x, float) for x in scores.values()])
    margin = 0.05 * max(float(np.ptp(every)), 1e-6)
    thresholds = np.linspace(every.min() - margin, every.max() + margin, 201)
    for i, (label, returns) in enumerate(scores.items()):
        colour = COLOURS[i % len(COLOURS)]
        profile = partial(performance_profile, thresholds=thresholds)
        axes.step(
            thresholds, profile([returns]), color=colour, label=label, where="post"
        )
        if len(returns) > 1:
            low, high = stratified_interval(profile, [returns], num_resamples=1_000)
            axes.fill_between(
                thresholds, low, high, color=colour, alpha=0.2, linewidth=0, step="post"
            )
    axes.set_xlabel("return")
    axes.set_ylabel("share of seeds above")
    _legend(figure, axes)
    figure.savefig(out, dpi=150)


def plot_efficiency(
    runs: Mapping[str, Mapping[str, Sequence[Row]]],
    out: Path,
    metric: str = "rollout/episode_return",
    title: str = "",
) -> None:
    """Sample efficiency: the IQM over all environments and seeds against the steps.

    On each environment 0 is the lowest and 1 the highest IQM of a curve shown here; the
    band is the 95 % bootstrap interval, the seeds of each environment resampled apart.

    Args:
      runs: label -> environment -> rows of its runs.
      out: a PNG, PDF or SVG file.
      metric: a metric of the rows.
      title: above the axes.
    """
    curves = {
        label: {env: curve(rows, metric) for env, rows in by_env.items()}
        for label, by_env in runs.items()
    }
    curves = {
        label: {env: (x, y) for env, (x, y) in by_env.items() if len(x)}
        for label, by_env in curves.items()
    }
    limits: dict[str, tuple[float, float]] = {}
    for by_env in curves.values():
        for env, (_, values) in by_env.items():
            middle = iqm(values, axis=1)
            low, high = limits.get(env, (np.inf, -np.inf))
            limits[env] = min(low, middle.min()), max(high, middle.max())
    figure, axes = figure_of(title)
    for i, (label, by_env) in enumerate(curves.items()):
        if not by_env:
            continue
        colour = COLOURS[i % len(COLOURS)]
        steps = np.linspace(
            max(x[0] for x, _ in by_env.values()),
            min(x[-1] for x, _ in by_env.values()),
            50,
        )
        scores = [
            _normalised(x, values, steps, *limits[env])
            for env, (x, values) in by_env.items()
        ]
        middle = [aggregate_iqm([s[:, j] for s in scores]) for j in range(len(steps))]
        bands = [
            stratified_interval(
                aggregate_iqm, [s[:, j] for s in scores], num_resamples=200
            )
            for j in range(len(steps))
        ]
        axes.plot(steps, middle, color=colour, linestyle=_line(i), label=label)
        axes.fill_between(
            steps, *np.transpose(bands), color=colour, alpha=0.2, linewidth=0
        )
    axes.set_xlabel("environment steps per seed")
    axes.set_ylabel(f"normalised {metric}, IQM")
    _legend(figure, axes)
    figure.savefig(out, dpi=150)


def _normalised(
    known_at: np.ndarray, values: np.ndarray, steps: np.ndarray, low: float, high: float
) -> np.ndarray:
    """Curves `[C, K]` at other steps, `[K, S]`, with `low` as 0 and `high` as 1."""
    at_steps = [np.interp(steps, known_at, column) for column in values.T]
    return (np.array(at_steps) - low) / max(high - low, 1e-12)
