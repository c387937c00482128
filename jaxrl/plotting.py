"""Figures for one column of a paper: readable in print, in grey, and by the colour-blind.

Each series has its own colour, line style and marker, so that series can be distinguished
without colour. All matters of taste are in `STYLE`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial, wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec

import numpy as np

from jaxrl.core.files import replacing
from jaxrl.errors import shorten
from jaxrl.statistics import (
    aggregate_iqm,
    bootstrap_interval,
    iqm,
    performance_profile,
    seeds_caveat,
    stratified_interval,
)
from jaxrl.types import Row

P = ParamSpec("P")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
"""Palette of Okabe and Ito (2008), "Color Universal Design", with the palest two last."""

LINES = (
    *COLOURS[:5],
    *("#882255", "#0000CD", "#8B4513", "#332288", "#1F9ED1", "#117733", "#00858A"),
)
"""Colours for thin lines on white paper, with a contrast of at least 3; as many as a figure
has curves. Further ones repeat them with other dashes and markers."""

BLACK, PALE = COLOURS[4], COLOURS[5]

DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: Any = {  # of matplotlib's rcParams
    "figure.figsize": (4.5, 3.0),  # inches
    "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.w_pad": 0.02,
    "savefig.dpi": 200,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    # Journals require embedded TrueType fonts, not outlines.
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
}

NAMES = {
    "rollout/episode_return": "episode return",
    "rollout/episode_length": "episode length (steps)",
    "loss/policy": "policy loss",
    "loss/value": "value loss",
    "loss/critic": "critic loss",
    "loss/td": "TD loss",
    "loss/imitation": "imitation loss",
    "policy/entropy": "policy entropy (nats)",
    "policy/kl": "KL divergence (nats)",
    "policy/approx_kl": "approximate KL divergence (nats)",
    "policy/clip_fraction": "share of clipped samples",
    "value/explained_variance": "explained variance",
    "value/q": "Q(s, a)",
    "value/v": "V(s)",
    "optim/grad_norm": "gradient norm",
    "optim/learning_rate": "learning rate",
    "explore/epsilon": "ε",
    "reward/gold": "gold reward",
    "seconds": "seconds",
    "env_steps_per_second": "environment steps per second",
}
"""Axis labels of metrics; other metrics are labelled with their name."""


def style() -> AbstractContextManager[None]:
    """Context in which `STYLE` applies, for making and saving a figure."""
    from matplotlib import rc_context

    return rc_context(STYLE)


def _with_style(draw: Callable[P, None]) -> Callable[P, None]:
    @wraps(draw)
    def draw_with_style(*args: P.args, **kwargs: P.kwargs) -> None:
        with style():
            draw(*args, **kwargs)

    return draw_with_style


def line_style(i: int) -> dict[str, Any]:
    """Colour, dashes and marker of the i-th series.

    No two of the first 28 share both dashes and marker, no two of the first 12 a colour.
    """
    return {
        "color": LINES[i % len(LINES)],
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
    }


def draw_line(
    axes: Any, i: int, count: int, x: Any, y: Any, label: str, **more: Any
) -> str:
    """Draw the i-th of `count` series with sparse markers; return its colour.

    A single series needs no markers, but a single point does.
    """
    properties = line_style(i)
    if len(x) == 1:
        properties["markersize"] = 6
    elif count == 1:
        properties["marker"] = None
    # In shares of the diagonal of the axes, staggered between the curves.
    marker_spacing = (0.02 + 0.13 * i / count, 0.13) if len(x) > 1 else None
    axes.plot(
        x,
        y,
        label=plain(label),
        markevery=marker_spacing,
        markeredgecolor="white",
        markeredgewidth=0.4,
        **properties | more,
    )
    return properties["color"]


def axis_label(metric: str) -> str:
    """Label of an axis for a metric."""
    return NAMES.get(metric, metric)


def steps_axis(axes: Any) -> None:
    """Format the x axis in environment steps: 200k, 1M."""
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel("environment steps per seed")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def curve(rows: Sequence[Row], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Environment steps `[C]` of a run, and a metric for each seed `[C, K]`.

    K = 1 for a number that all seeds share, such as `seconds`. Where a chunk has no value
    (no episode ended) the last value is kept; rows before the first value of every seed are
    left out.
    """
    if not rows:
        return np.zeros(0), np.zeros((0, 0))
    steps = np.array([row["env_steps"] for row in rows])
    values = np.array([row[metric] for row in rows], float)  # None becomes NaN
    values = values.reshape(len(rows), -1)
    for i in range(1, len(values)):
        values[i] = np.where(np.isnan(values[i]), values[i - 1], values[i])
    complete = ~np.isnan(values).any(axis=1)
    return steps[complete], values[complete]


def summarize_curve(
    rows: Sequence[Row], metric: str = "rollout/episode_return", points: int = 50
) -> dict[str, list[float]]:
    """Summary of a learning curve at about `points` points, for a file.

    Environment steps, IQM over the seeds, and its 95 % bootstrap interval.
    """
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
    """Create an empty figure without pyplot, global state or display."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def plain(text: str) -> str:
    """Text of which nothing is read as a formula: ids may have any characters."""
    return text.replace("$", r"\$")


def make_figure(
    title: str,
    size: tuple[float, float] = (4.5, 3.0),
    grid: Literal["both", "x"] | None = "both",
) -> tuple[Any, Any]:
    """Create a figure of one panel; return it with its axes."""
    figure = _empty(size)
    axes = figure.subplots()
    axes.set_title(plain(title))
    if grid is not None:
        axes.grid(axis=grid)
    return figure, axes


def save_figure(figure: Any, out: Path) -> None:
    """Save a figure as the file's ending says, in the place of an earlier one."""
    with replacing(Path(out)) as file:
        figure.savefig(file, format=Path(out).suffix[1:])


def _legend(figure: Any, axes: Any) -> None:
    """Draw the legend inside the axes, or below them if it would cover the curves."""
    _, labels = axes.get_legend_handles_labels()
    if len(labels) <= 4 and all(len(label) <= 40 for label in labels):
        if labels:
            axes.legend()
        return
    width, height = figure.get_size_inches()
    columns = 2 if max(map(len, labels)) <= 28 else 1
    lines = -(-len(labels) // columns)
    figure.set_size_inches(width, height + 0.165 * lines + 0.1)
    figure.legend(loc="outside lower left", fontsize="small", ncols=columns)


def _say_few_seeds(axes: Any, counts: Iterable[int]) -> None:
    """Say below the label of the x axis if an interval is over too few seeds."""
    if caveat := seeds_caveat(counts):
        axes.set_xlabel(f"{axes.get_xlabel()}\n95 % interval{caveat}")


@_with_style
def plot_learning_curves(
    runs: Mapping[str, Sequence[Row]],
    out: Path,
    metric: str = "rollout/episode_return",
    title: str = "",
) -> None:
    """Plot one curve per run: IQM over seeds, shaded with the 95 % bootstrap interval.

    Args:
      runs: label -> rows of the run's metrics.
      out: a PNG, PDF or SVG file.
      metric: a metric of the rows.
      title: the title above the axes.
    """
    figure, axes = make_figure(title)
    counts = []
    for i, (label, rows) in enumerate(runs.items()):
        steps, values = curve(rows, metric)
        num_seeds = values.shape[1] if len(values) else 0
        name = f"{label} ({num_seeds} seed{'s' if num_seeds != 1 else ''})"
        if not len(values):
            continue
        colour = draw_line(axes, i, len(runs), steps, iqm(values, axis=1), name)
        if num_seeds > 1:
            counts.append(num_seeds)
            low, high = bootstrap_interval(values, axis=1, num_resamples=2_000)
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    steps_axis(axes)
    axes.set_ylabel(axis_label(metric))
    _say_few_seeds(axes, counts)
    _legend(figure, axes)
    save_figure(figure, out)


Table = Sequence[tuple[Mapping[str, Any], Sequence[float]]]
"""Hyper-parameters of each setting, with the returns of its seeds."""


@_with_style
def plot_slices(table: Table, names: Sequence[str], out: Path, title: str = "") -> None:
    """Plot the return against each hyper-parameter.

    A point with a bar is a setting: IQM over its seeds, 95 % bootstrap interval. The line
    is the IQM over all seeds of all settings that share a value.

    Args:
      table: the settings.
      names: the names of the hyper-parameters, one panel each.
      out: a PNG, PDF or SVG file.
      title: the title above the figure.
    """
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    size = (2.6 * columns + 0.5, 2.2 * rows + 0.3)
    figure = _empty(size)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for i, (axes, name) in enumerate(zip(panels, names, strict=False)):
        _draw_slice(axes, name, [(fields[name], returns) for fields, returns in table])
        if i % columns == 0:
            axes.set_ylabel("return (IQM over seeds)")
    for axes in list(panels)[len(names) :]:
        axes.set_visible(False)
    figure.suptitle(plain(title), fontsize="medium")
    _say_few_seeds(figure.axes[0], (len(returns) for _, returns in table))
    save_figure(figure, out)


def _draw_slice(
    axes: Any, name: str, points: Sequence[tuple[Any, Sequence[float]]]
) -> None:
    labels, places = _places([value for value, _ in points])
    for i, (_, returns) in enumerate(points):
        low, high = bootstrap_interval(returns, num_resamples=2_000)
        middle = iqm(returns)
        bars = [[max(middle - low, 0.0)], [max(high - middle, 0.0)]]
        axes.errorbar(
            places[i], middle, bars, fmt="o", color=COLOURS[0], alpha=0.7, capsize=2
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
    means = [iqm(x) for x in shared.values()]
    axes.plot(list(shared), means, color=COLOURS[1], linestyle="--")
    if labels is not None:
        axes.set_xticks(range(len(labels)), labels)
    elif min(places) > 0 and max(places) >= 10 * min(places):
        axes.set_xscale("log")
    axes.set_xlabel(name)
    axes.grid()


def _places(values: Sequence[Any]) -> tuple[list[str] | None, list[float]]:
    """Positions of values on an axis, and labels for values that are not numbers."""
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in values):
        return None, [float(x) for x in values]
    labels = list(dict.fromkeys(_label(x) for x in values))
    return labels, [float(labels.index(_label(x))) for x in values]


def _label(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shorten(_key(value), 30)


@_with_style
def plot_heatmap(table: Table, x: str, y: str, out: Path, title: str = "") -> None:
    """Plot the return for each pair of values of two hyper-parameters: IQM of all seeds.

    Args:
      table: the settings.
      x: the name of the hyper-parameter of the columns.
      y: the name of that of the rows.
      out: a PNG, PDF or SVG file.
      title: the title above the axes.
    """
    values = [_in_order({_key(fields[name]) for fields, _ in table}) for name in (x, y)]
    columns, rows = values
    grid = np.full((len(rows), len(columns)), np.nan)
    for i, j in np.ndindex(grid.shape):
        returns = [
            r
            for fields, seed_returns in table
            if (_key(fields[x]), _key(fields[y])) == (columns[j], rows[i])
            for r in seed_returns
        ]
        grid[i, j] = iqm(returns) if returns else np.nan
    width, height = 0.7 * len(columns) + 1.9, 0.45 * len(rows) + 1.1
    size = min(max(width, 3.5), 11.0), min(max(height, 2.4), 11.0)
    figure, axes = make_figure(title, size, grid=None)
    axes.spines[:].set_visible(False)
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
    save_figure(figure, out)


def _key(value: Any) -> Any:
    """A value that can be compared; a network that is described is its call as text."""
    if isinstance(value, dict) and "module" in value:
        fields = (f"{n}={_key(x)}" for n, x in value["fields"].items())
        return f"{value['module'].rpartition(':')[2]}({', '.join(fields)})"
    return tuple(value) if isinstance(value, list) else value


def _in_order(values: set[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:  # None, or several kinds
        return sorted(values, key=str)


@_with_style
def plot_intervals(
    scores: Mapping[str, Sequence[float]], out: Path, title: str = ""
) -> None:
    """Plot IQM over seeds with its 95 % bootstrap interval, and every seed, per label.

    Args:
      scores: label -> the returns of its seeds.
      out: a PNG, PDF or SVG file.
      title: the title above the axes.
    """
    figure, axes = make_figure(title, (4.5, 0.3 * len(scores) + 0.9), grid="x")
    for i, returns in enumerate(scores.values()):
        low, high = bootstrap_interval(returns, num_resamples=2_000)
        _draw_interval(axes, i, iqm(returns), low, high)
        axes.plot(
            returns, [i] * len(returns), "o", color=BLACK, markersize=2.2, alpha=0.7
        )
    axes.set_yticks(range(len(scores)), list(scores))
    axes.invert_yaxis()
    axes.set_xlabel("return")
    _say_few_seeds(axes, map(len, scores.values()))
    save_figure(figure, out)


def _draw_interval(axes: Any, i: int, middle: float, low: float, high: float) -> None:
    """Draw a pale bar on the i-th line, with a black mark at the middle."""
    axes.use_sticky_edges = False  # the left end of a bar is not at zero
    axes.barh(i, high - low, left=low, height=0.6, color=PALE, alpha=0.7)
    axes.vlines(middle, i - 0.3, i + 0.3, color=BLACK, linewidth=2)


@_with_style
def plot_aggregates(
    rows: Sequence[Mapping[str, Any]], out: Path, title: str = ""
) -> None:
    """Plot IQM and optimality gap over several environments, with 95 % intervals.

    Args:
      rows: rows of `report.tables.aggregates`.
      out: a PNG, PDF or SVG file.
      title: the title above the figure.
    """
    figure = _empty((5.5, 0.3 * len(rows) + 0.9))
    panels = figure.subplots(1, 2, sharey=True)
    labels = {
        "iqm": "IQM of normalised scores\n(higher is better)",
        "gap": "optimality gap\n(lower is better)",
    }
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        for i, row in enumerate(rows):
            low, high = row[f"score_{name}_low"], row[f"score_{name}_high"]
            _draw_interval(axes, i, row[f"score_{name}"], low, high)
        axes.set_xlabel(label)
        axes.grid(axis="x")
    panels[0].set_yticks(range(len(rows)), [row["label"] for row in rows])
    panels[0].invert_yaxis()
    figure.suptitle(plain(title), fontsize="medium")
    _say_few_seeds(panels[0], (row["seeds"] for row in rows))
    save_figure(figure, out)


@_with_style
def plot_profiles(
    scores: Mapping[str, Sequence[float]], out: Path, title: str = ""
) -> None:
    """Plot performance profiles: the share of seeds with a return above each threshold.

    Args:
      scores: label -> the returns of its seeds.
      out: a PNG, PDF or SVG file.
      title: the title above the axes.
    """
    figure, axes = make_figure(title)
    all_returns = np.concatenate([np.asarray(x, float) for x in scores.values()])
    margin = 0.05 * max(float(np.ptp(all_returns)), 1e-6)
    low, high = all_returns.min() - margin, all_returns.max() + margin
    thresholds = np.linspace(low, high, 201)
    for i, (label, returns) in enumerate(scores.items()):
        profile = partial(performance_profile, thresholds=thresholds)
        share = profile([returns])
        colour = draw_line(
            axes, i, len(scores), thresholds, share, label, drawstyle="steps-post"
        )
        if len(returns) > 1:
            low, high = stratified_interval(profile, [returns], num_resamples=1_000)
            axes.fill_between(
                thresholds, low, high, color=colour, alpha=0.2, linewidth=0, step="post"
            )
    axes.set_xlabel("return")
    axes.set_ylabel("share of seeds above")
    _say_few_seeds(axes, map(len, scores.values()))
    _legend(figure, axes)
    save_figure(figure, out)


@_with_style
def plot_efficiency(
    runs: Mapping[str, Mapping[str, Sequence[Row]]],
    out: Path,
    metric: str = "rollout/episode_return",
    title: str = "",
) -> None:
    """Plot sample efficiency: IQM over all environments and seeds against the steps.

    For each environment 0 is the lowest and 1 the highest IQM of any curve in the figure.
    The band is the 95 % stratified bootstrap interval.

    Args:
      runs: label -> environment -> rows of its runs.
      out: a PNG, PDF or SVG file.
      metric: a metric of the rows.
      title: the title above the axes.
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
    figure, axes = make_figure(title)
    for i, (label, by_env) in enumerate(curves.items()):
        if not by_env:
            continue
        steps = np.linspace(
            max(x[0] for x, _ in by_env.values()),
            min(x[-1] for x, _ in by_env.values()),
            50,
        )
        scores = [
            _normalise(x, values, steps, *limits[env])
            for env, (x, values) in by_env.items()
        ]
        middle = [aggregate_iqm([s[:, j] for s in scores]) for j in range(len(steps))]
        bands = [
            stratified_interval(
                aggregate_iqm, [s[:, j] for s in scores], num_resamples=200
            )
            for j in range(len(steps))
        ]
        colour = draw_line(axes, i, len(curves), steps, middle, label)
        axes.fill_between(
            steps, *np.transpose(bands), color=colour, alpha=0.2, linewidth=0
        )
    steps_axis(axes)
    axes.set_ylabel(f"normalised {axis_label(metric)}")
    tasks = (task for by_env in curves.values() for task in by_env.values())
    _say_few_seeds(axes, (values.shape[1] for _, values in tasks))
    _legend(figure, axes)
    save_figure(figure, out)


def _normalise(
    x: np.ndarray, values: np.ndarray, steps: np.ndarray, low: float, high: float
) -> np.ndarray:
    """Interpolate curves `[C, K]` to steps, `[K, S]`, with `low` as 0 and `high` as 1."""
    at_steps = [np.interp(steps, x, column) for column in values.T]
    return (np.array(at_steps) - low) / max(high - low, 1e-12)
