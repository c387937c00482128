"""Figures of a report, each as PNG and PDF, and those of `jaxrl plot --kind`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jaxrl import plotting
from jaxrl.errors import InvalidInput
from jaxrl.report.entries import Entry, check_metric, read_all_entries
from jaxrl.report.tables import Reference, aggregates
from jaxrl.runs.experiment import named_env
from jaxrl.statistics import iqm
from jaxrl.sweeps import results
from jaxrl.sweeps.plan import Sweep, read_sweep
from jaxrl.sweeps.training import is_sweep
from jaxrl.types import Row


@dataclass(frozen=True)
class Figure:
    """A figure of the page, and of the files `name`.png and `name`.pdf."""

    name: str
    title: str
    caption: str
    draw: Callable[[Path], None]  # into a file


MOST_PROFILES = len(plotting.COLOURS)


def draw_all(
    entries: Sequence[Entry],
    folders: Sequence[Path],
    out: Path,
    reference: Reference,
) -> list[Figure]:
    """Draw the figures of all environments and sweeps."""
    figures: list[Figure] = []
    for env in dict.fromkeys(entry.env for entry in entries):
        here = [entry for entry in entries if entry.env == env and entry.finite_returns]
        figures += _make_env_figures(env, here)
    if len({entry.env for entry in entries}) > 1:
        figures += _make_aggregate_figures(entries, reference)
    for folder in folders:
        if is_sweep(folder):
            figures += _make_sweep_figures(folder, len(figures))
    for figure in figures:
        for ending in ("png", "pdf"):
            figure.draw(out / f"{figure.name}.{ending}")
    return figures


def _make_env_figures(env: str, entries: Sequence[Entry]) -> list[Figure]:
    """Make the learning curves and, for several entries, figures of their returns."""
    if not entries:
        return []
    ranked = sorted(entries, key=lambda e: float(iqm(e.finite_returns)), reverse=True)
    best = ranked[: results.MAX_CURVES]
    name = _file_name(env)
    curves = {e.label: e.rows for e in best}
    learning = Figure(
        f"learning_curves_{name}",
        f"Learning curves on {env}",
        "Training return against environment steps: IQM over seeds, 95 % bootstrap "
        f"interval.{_say_selection(len(best), len(entries))}",
        partial(plotting.plot_learning_curves, curves, title=env),
    )
    if len(entries) == 1:
        return [learning]
    scores = {e.label: e.finite_returns for e in best}
    intervals = Figure(
        f"intervals_{name}",
        f"Returns on {env}",
        "Greedy evaluation: IQM over seeds, 95 % bootstrap interval, and every seed."
        f"{_say_selection(len(best), len(entries))}",
        partial(plotting.plot_intervals, scores, title=env),
    )
    few = dict(list(scores.items())[:MOST_PROFILES])
    profiles = Figure(
        f"profile_{name}",
        f"Performance profile on {env}",
        "Share of seeds whose return is above a threshold, with 95 % pointwise "
        f"intervals.{_say_selection(len(few), len(entries))}",
        partial(plotting.plot_profiles, few, title=env),
    )
    return [learning, intervals, profiles]


def _make_aggregate_figures(
    entries: Sequence[Entry], reference: Reference
) -> list[Figure]:
    """Make the figures of all environments: against the steps, and at the end."""
    efficiency = Figure(
        "efficiency",
        "Sample efficiency",
        "Training return, on each environment from the lowest (0) to the highest IQM (1) "
        "of a curve shown: IQM over all environments and seeds, 95 % stratified "
        "bootstrap interval.",
        partial(plotting.plot_efficiency, _group_by_label(entries)),
    )
    rows = aggregates(entries, reference)
    if not rows:
        return [efficiency]
    at_the_end = Figure(
        "aggregates",
        "All environments",
        "IQM and optimality gap of the normalised scores, 95 % stratified bootstrap "
        "intervals.",
        partial(plotting.plot_aggregates, rows),
    )
    return [efficiency, at_the_end]


def _group_by_label(entries: Sequence[Entry]) -> dict[str, dict[str, list[Row]]]:
    rows: dict[str, dict[str, list[Row]]] = {}
    for entry in entries:
        rows.setdefault(entry.label, {})[entry.env] = entry.rows
    return rows


def _make_sweep_figures(folder: Path, number: int) -> list[Figure]:
    """Make the figures of a sweep; the number keeps several sweeps apart."""
    sweep, drawn = _load_sweep(folder)
    name, names = f"{_file_name(folder.name)}_{number}", list(sweep.space)
    words = {
        "slices": (
            f"What was swept: {', '.join(names)}",
            "A point is a setting: IQM over its seeds, 95 % bootstrap interval. The line "
            "is the IQM of all seeds that share a value.",
        ),
        "heatmap": (" against ".join(names), "IQM of the return over all seeds."),
    }
    return [
        Figure(f"{kind}_{name}", *words[kind], draw) for kind, draw in drawn.items()
    ]


def _load_sweep(folder: Path) -> tuple[Sweep, dict[str, Callable[[Path], None]]]:
    sweep = read_sweep(folder, named_env(folder / "sweep.json"))
    return sweep, results.figures_of(sweep, results.read_trials(folder))


def _say_selection(shown: int, all_: int) -> str:
    return "" if shown == all_ else f" The best {shown} of {all_}."


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text)


def plot_results(runs: Sequence[Path | str], out: Path, kind: str, metric: str) -> None:
    """Plot one figure of finished runs and sweeps.

    Args:
      runs: folders.
      out: a PNG, PDF or SVG file.
      kind: "efficiency", "aggregates", "intervals" or "profile"; for one sweep "slices"
        or "heatmap".
      metric: the metric of "efficiency".

    Raises:
      InvalidInput: a folder does not fit the kind of figure.
    """
    if kind in ("slices", "heatmap"):
        if len(runs) != 1 or not is_sweep(runs[0]):
            raise InvalidInput(f"kind = {kind!r} is a figure of one sweep: give one.")
        _plot_sweep(Path(runs[0]), out, kind)
        return
    entries = read_all_entries(list(map(Path, runs)))
    if kind == "efficiency":
        check_metric(entries, metric)
        plotting.plot_efficiency(_group_by_label(entries), out, metric)
        return
    if kind == "aggregates":
        rows = aggregates(entries, {})
        if not rows:
            raise InvalidInput(
                "kind = 'aggregates' needs runs on several environments, with the same "
                "algorithm or setting on each: give such runs, or try kind = 'intervals'."
            )
        plotting.plot_aggregates(rows, out)
        return
    envs = sorted({entry.env for entry in entries})
    if len(envs) > 1:
        raise InvalidInput(
            f"kind = {kind!r} compares runs on one environment, these are on "
            f"{', '.join(envs)}: try kind = 'efficiency'."
        )
    scores = {e.label: e.finite_returns for e in entries if e.finite_returns}
    draw = {"intervals": plotting.plot_intervals, "profile": plotting.plot_profiles}
    draw[kind](scores, out, envs[0])


def _plot_sweep(folder: Path, out: Path, kind: str) -> None:
    _, drawn = _load_sweep(folder)
    if "slices" not in drawn:
        raise InvalidInput(f"{str(folder)!r}: every agent broke, nothing to draw.")
    if kind not in drawn:
        raise InvalidInput(
            f"kind = 'heatmap' needs two hyper-parameters, each over a list of values, "
            f"which {str(folder)!r} did not sweep: try kind = 'slices'."
        )
    drawn[kind](out)
