"""What became of the settings of a sweep: table, figures, the best one."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import plotting
from jaxrl.core import schema
from jaxrl.errors import InvalidInput, require
from jaxrl.runs import loggers
from jaxrl.runs.artifact import Overrides
from jaxrl.runs.experiment import (
    Summary,
    finished_summary,
    read_rows,
    read_summary,
    versions,
)
from jaxrl.statistics import iqm, iqm_in_words, row_of_seeds
from jaxrl.sweeps.plan import Block, Sweep
from jaxrl.sweeps.space import Choices
from jaxrl.training.devices import hardware
from jaxrl.training.loop import select_members
from jaxrl.types import Row

RUNS, CONFIRM = "runs", "confirm"
"""The folders of a sweep's runs, and of those of the best setting with fresh seeds."""


@dataclass(frozen=True)
class Trial:
    """A setting, and how well its agents did; the schema of one in `summary.json`."""

    index: int  # its place among all settings of the sweep
    overrides: Overrides
    seeds: list[int]
    returns: list[float | None]  # mean evaluation return of each seed; None: broken
    training: list[float | None]  # training return of each seed in the last chunk
    env_steps: int  # that each of its agents was trained for
    places: list[tuple[str, int]]  # run folder, and place in it, of each agent
    dropped: bool = False  # by halving, before the end

    @property
    def whole(self) -> list[float]:
        """The returns of the agents that are not broken."""
        return [x for x in self.returns if x is not None]

    @property
    def score(self) -> float | None:
        """IQM of the returns; None if an agent broke."""
        return float(iqm(self.whole)) if len(self.whole) == len(self.seeds) else None


@dataclass(frozen=True)
class SettingRow:
    """What is relied on in `row_of`, as the document of a sweep holds it."""

    OPEN = True
    seeds: schema.Count
    episode_return_iqm: float | None
    ci95_low: float | None
    ci95_high: float | None


@dataclass(frozen=True)
class SweepSummary(Summary):
    """What is relied on in the summary of a sweep."""

    OPEN = True
    trials: list[Trial]
    best: SettingRow | None
    confirmed: SettingRow | None
    confirmed_trial: Trial | None
    run_seconds: schema.Seconds
    compile_seconds: schema.Seconds
    device: str
    hardware: str
    versions: dict[str, str]


def trials_of(block: Block) -> list[Trial]:
    """What became of the settings of a finished block; all broke if it has no summary."""
    seeds = block.experiment.seeds
    nothing = [None] * block.experiment.num_members
    summary = finished_summary(block.folder)
    rows = read_rows(block.folder)
    if summary is None:
        summary = {"evaluation_by_member": nothing, "env_steps": 0}
    else:
        require(bool(rows), f"{block.folder / 'metrics.jsonl'} is empty: restore it.")
    training = rows[-1][loggers.RETURN] if rows else nothing
    explored: dict[str, Any] = {}
    if rows:
        explored = {n: rows[-1].get(f"pbt/{n}") for n in block.experiment.explored}
    for values in (summary["evaluation_by_member"], training, *explored.values()):
        require(
            isinstance(values, list) and len(values) == len(nothing),
            f"{str(block.folder)!r} has results of another number of agents than "
            f"{len(nothing)}, those of its config.json.",
        )
    trials = []
    for i, index in enumerate(block.indices):
        places = range(i * len(seeds), (i + 1) * len(seeds))
        overrides = dict(block.experiment.overrides[i])
        # With pbt a number is what it has become.
        overrides |= {name: values[i] for name, values in explored.items()}
        trials.append(
            Trial(
                index=index,
                overrides=overrides,
                seeds=seeds,
                returns=[summary["evaluation_by_member"][k] for k in places],
                training=[training[k] for k in places],
                env_steps=summary["env_steps"],
                places=[(str(block.folder), k) for k in places],
            )
        )
    return trials


def join_trials(trials: Sequence[Trial]) -> list[Trial]:
    """One trial for each setting, where its seeds were trained in several blocks."""
    found: dict[int, Trial] = {}
    for trial in trials:
        if trial.index in found:
            first = found[trial.index]
            trial = replace(
                first,
                **{
                    name: getattr(first, name) + getattr(trial, name)
                    for name in ("seeds", "returns", "training", "places")
                },
            )
        found[trial.index] = trial
    return list(found.values())


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest IQM of those that did not break and were not dropped.

    Raises:
      InvalidInput: there is none.
    """
    whole = [t for t in trials if t.score is not None and not t.dropped]
    require(bool(whole), "an agent of every setting broke: there is no best one.")
    return max(whole, key=order)


def order(trial: Trial) -> float:
    return -np.inf if trial.score is None else trial.score


def row_of(trial: Trial) -> dict[str, Any]:
    """A trial as one line of a table."""
    about = {"setting": trial.index, **trial.overrides, "env_steps": trial.env_steps}
    return about | row_of_seeds(trial.returns)


def results_csv(trials: Sequence[Trial]) -> str:
    """A line for each trial, in the order of the settings."""
    rows = [row_of(trial) for trial in sorted(trials, key=lambda trial: trial.index)]
    return csv_text(
        {n: json.dumps(x) if isinstance(x, list | dict) else x for n, x in row.items()}
        for row in rows
    )


def csv_text(rows: Iterable[dict[str, Any]]) -> str:
    """Rows with the same names, under a head."""
    first, *others = rows
    text = io.StringIO()
    writer = csv.DictWriter(text, first, lineterminator="\n")
    writer.writeheader()
    writer.writerows([first, *others])
    return text.getvalue()


def table_in_words(trials: Sequence[Trial], most: int = 20) -> str:
    """The settings, the best first, for a person to read."""
    ranked = sorted(trials, key=order, reverse=True)
    lines = []
    for trial in ranked[:most]:
        row = row_of(trial)
        words = setting_in_words(trial.overrides)
        if row["episode_return_iqm"] is None:
            lines.append(f"{words}: every seed broke")
            continue
        broken = f", {row['broken']} of {row['seeds']} seeds broke" * bool(
            row["broken"]
        )
        count = row["seeds"] - row["broken"]
        ends = row["ci95_low"], row["ci95_high"]
        middle = iqm_in_words(row["episode_return_iqm"], *ends, count)
        lines.append(f"{words}: return {middle}{broken}")
    if len(ranked) > most:
        lines.append(f"... and {len(ranked) - most} more in results.csv")
    return "\n".join(lines)


def summary_of(
    folder: Path, sweep: Sweep, trials: Sequence[Trial], confirmed: Trial | None
) -> dict[str, Any]:
    """What was found, how long it took, and on what."""
    fresh = [] if confirmed is None else [confirmed]
    runs = sorted({Path(run) for trial in [*trials, *fresh] for run, _ in trial.places})
    parts = [part for part in map(finished_summary, runs) if part is not None]
    whole = [t for t in trials if t.score is not None and not t.dropped]
    return {
        "algorithm": sweep.experiment.algorithm.name,
        "env": sweep.experiment.env,
        "trials": [_written(trial, folder) for trial in trials],
        "best": row_of(best_trial(trials)) if whole else None,
        "confirmed": row_of(confirmed) if confirmed else None,
        "confirmed_trial": _written(confirmed, folder) if confirmed else None,
        "compile_seconds": round(sum(part["compile_seconds"] for part in parts), 3),
        "run_seconds": round(sum(part["run_seconds"] for part in parts), 3),
        "hardware": hardware(),
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "versions": versions(),
    }


def _written(trial: Trial, folder: Path) -> dict[str, Any]:
    """As JSON; its runs begin at the sweep's folder, so that it may be moved."""
    places = [(str(Path(run).relative_to(folder)), k) for run, k in trial.places]
    return dataclasses.asdict(trial) | {"places": places}


def _read(trial: dict[str, Any], folder: Path) -> Trial:
    """What `_written` wrote."""
    places = [(str(folder / run), k) for run, k in trial["places"]]
    return Trial(**trial | {"places": places})


def setting_in_words(overrides: Overrides) -> str:
    """For a person: numbers to six digits, which `results.csv` has whole."""
    return ", ".join(
        f"{name} = {f'{value:.6g}' if isinstance(value, float) else value}"
        for name, value in overrides.items()
    )


def read_trials(folder: Path | str) -> list[Trial]:
    """The trials of a finished sweep, from its `summary.json`.

    Raises:
      InvalidInput: it is none, or not finished.
    """
    folder = Path(folder)
    summary = read_results(folder)
    if summary is None:
        raise InvalidInput(f"SWEEP = {str(folder)!r} is not finished: jaxrl resume it.")
    return [_read(trial, folder) for trial in summary["trials"]]


def read_results(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished sweep, or None.

    Raises:
      InvalidInput: it is not what was written.
    """
    summary = read_summary(folder, SweepSummary)
    return summary if summary and summary["finished"] else None


def read_confirmed(folder: Path | str) -> Trial | None:
    """The best setting with fresh seeds, of a finished sweep for which that was asked."""
    folder = Path(folder)
    trial = (read_results(folder) or {}).get("confirmed_trial")
    return None if trial is None else _read(trial, folder)


MAX_CURVES = 12
"""Settings whose learning curves are drawn into one figure, the best ones."""


def draw_figures(folder: Path, sweep: Sweep, trials: Sequence[Trial]) -> None:
    """Learning curves, and the return against what was swept."""
    best = sorted(trials, key=order, reverse=True)[:MAX_CURVES]
    curves = {
        setting_in_words(trial.overrides): trial_rows(trial)
        for trial in sorted(best, key=lambda trial: trial.index)
    }
    out = folder / "learning_curves.png"
    plotting.plot_learning_curves(curves, out, title=_title(sweep))
    for name, draw in figures_of(sweep, trials).items():
        draw(folder / f"{name}.png")


def figures_of(
    sweep: Sweep, trials: Sequence[Trial]
) -> dict[str, Callable[[Path], None]]:
    """What can be drawn of the return against what was swept, as functions of the file.

    "slices", unless every agent broke; "heatmap" where two things were swept over lists
    of values.
    """
    table = [(trial.overrides, trial.whole) for trial in trials if trial.whole]
    names, title = list(sweep.space), _title(sweep)
    found: dict[str, Callable[[Path], None]] = {}
    if table:
        found["slices"] = partial(plotting.plot_slices, table, names, title=title)
    lists = [isinstance(domain, Choices) for domain in sweep.space.values()]
    if len(table) > 2 and lists == [True, True]:
        found["heatmap"] = partial(
            plotting.plot_heatmap, table, names[0], names[1], title=title
        )
    return found


def _title(sweep: Sweep) -> str:
    return f"{sweep.experiment.algorithm.name} on {sweep.experiment.env}"


def trial_rows(trial: Trial) -> list[Row]:
    """The metrics of a trial's agents, one list entry for each of them.

    As far as all of them go: where seeds were trained apart, one part may have broken.
    """
    runs = list(dict.fromkeys(run for run, _ in trial.places))
    places = [[k for its_run, k in trial.places if its_run == run] for run in runs]
    together = zip(*map(_rows, runs), strict=False)
    return [select_members(list(zip(rows, places, strict=True))) for rows in together]


@cache
def _rows(run: str) -> list[Row]:
    """The rows of a finished run: all trials of a block are in one file."""
    return read_rows(Path(run))
