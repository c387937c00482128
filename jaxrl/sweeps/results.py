"""What became of the settings of a sweep: table, figures, the best one."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import loggers, plotting
from jaxrl.artifact import Own
from jaxrl.config import require
from jaxrl.experiment import finished_summary, versions
from jaxrl.runner import Row, of_members
from jaxrl.statistics import bootstrap_interval, iqm
from jaxrl.sweeps.plan import Block, Sweep
from jaxrl.types import InvalidInput

RUNS = "runs"
"""The folder of a sweep's runs."""


@dataclass(frozen=True)
class Trial:
    """A setting, and how well its agents did."""

    index: int  # its place among all settings of the sweep
    own: Own
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


def trials_of(block: Block) -> list[Trial]:
    """What became of the settings of a finished block; all broke if it has no summary."""
    seeds = block.experiment.seeds
    nothing = [None] * block.experiment.num_members
    summary = finished_summary(block.folder) or {
        "evaluation_by_member": nothing,
        "env_steps": 0,
    }
    rows = loggers.read_metrics(block.folder / "metrics.jsonl")
    training = rows[-1]["rollout/episode_return"] if rows else nothing
    trials = []
    for i, index in enumerate(block.indices):
        places = range(i * len(seeds), (i + 1) * len(seeds))
        own = dict(block.experiment.settings[i])
        if rows:  # with pbt a number is what it has become
            own |= {n: rows[-1][f"pbt/{n}"][i] for n in block.experiment.explored}
        trials.append(
            Trial(
                index=index,
                own=own,
                seeds=seeds,
                returns=[summary["evaluation_by_member"][k] for k in places],
                training=[training[k] for k in places],
                env_steps=summary["env_steps"],
                places=[(str(block.folder), k) for k in places],
            )
        )
    return trials


def joined(trials: Sequence[Trial]) -> list[Trial]:
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
    whole = trial.whole
    low, high = bootstrap_interval(whole) if whole else (None, None)
    return {
        "setting": trial.index,
        **trial.own,
        "seeds": len(trial.seeds),
        "broken": len(trial.seeds) - len(whole),
        "env_steps": trial.env_steps,
        "episode_return_iqm": float(iqm(whole)) if whole else None,
        "ci95_low": None if low is None else float(low),
        "ci95_high": None if high is None else float(high),
        "episode_return_mean": float(np.mean(whole)) if whole else None,
    }


def results_csv(trials: Sequence[Trial]) -> str:
    """A line for each trial, in the order of the settings."""
    rows = [row_of(trial) for trial in sorted(trials, key=lambda trial: trial.index)]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {n: json.dumps(x) if isinstance(x, list | dict) else x for n, x in row.items()}
        for row in rows
    )
    return text.getvalue()


def table_in_words(trials: Sequence[Trial], most: int = 20) -> str:
    """The settings, the best first, for a person to read."""
    ranked = sorted(trials, key=order, reverse=True)
    lines = []
    for trial in ranked[:most]:
        row = row_of(trial)
        words = setting_in_words(trial.own)
        if row["episode_return_iqm"] is None:
            lines.append(f"{words}: every seed broke")
            continue
        broken = f", {row['broken']} of {row['seeds']} seeds broke" * bool(
            row["broken"]
        )
        lines.append(
            f"{words}: return {row['episode_return_iqm']:.2f} (IQM), 95 % interval "
            f"[{row['ci95_low']:.2f}, {row['ci95_high']:.2f}]{broken}"
        )
    if len(ranked) > most:
        lines.append(f"... and {len(ranked) - most} more in results.csv")
    return "\n".join(lines)


def summary_of(
    sweep: Sweep, trials: Sequence[Trial], confirmed: dict[str, Any] | None
) -> dict[str, Any]:
    """What was found, how long it took, and on what."""
    runs = sorted({Path(folder) for trial in trials for folder, _ in trial.places})
    parts = [part for part in map(finished_summary, runs) if part is not None]
    whole = [t for t in trials if t.score is not None and not t.dropped]
    return {
        "algorithm": sweep.experiment.algorithm.name,
        "env": sweep.experiment.env,
        "trials": [
            dataclasses.asdict(trial) | {"places": _relative(trial.places)}
            for trial in trials
        ],
        "best": row_of(best_trial(trials)) if whole else None,
        "confirmed": confirmed,
        "compile_seconds": round(sum(part["compile_seconds"] for part in parts), 3),
        "run_seconds": round(sum(part["run_seconds"] for part in parts), 3),
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "versions": versions(),
    }


def _relative(places: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Beginning at the sweep's folder, so that it may be moved."""
    return [(f"{RUNS}/{folder.split(f'/{RUNS}/')[-1]}", k) for folder, k in places]


def setting_in_words(own: Own) -> str:
    return ", ".join(f"{name} = {value}" for name, value in own.items())


def read_trials(folder: Path | str) -> list[Trial]:
    """The trials of a finished sweep, from its `summary.json`.

    Raises:
      InvalidInput: it is none, or not finished.
    """
    folder = Path(folder)
    summary = finished_summary(folder)
    if summary is None:
        raise InvalidInput(f"SWEEP = {str(folder)!r} is not finished: jaxrl resume it.")
    return [
        Trial(
            **trial | {"places": [(str(folder / run), k) for run, k in trial["places"]]}
        )
        for trial in summary["trials"]
    ]


MAX_CURVES = 12
"""Settings whose learning curves are drawn into one figure, the best ones."""


def draw_figures(folder: Path, sweep: Sweep, trials: Sequence[Trial]) -> None:
    """Learning curves, and the return against what was swept."""
    title = f"{sweep.experiment.algorithm.name} on {sweep.experiment.env}"
    best = sorted(trials, key=order, reverse=True)[:MAX_CURVES]
    curves = {
        setting_in_words(trial.own): trial_rows(trial)
        for trial in sorted(best, key=lambda trial: trial.index)
    }
    out = folder / "learning_curves.png"
    plotting.plot_learning_curves(curves, out, title=title)
    table = [(trial.own, trial.whole) for trial in trials if trial.whole]
    if table:
        plotting.plot_slices(table, list(sweep.space), folder / "slices.png", title)
    if len(sweep.space) == 2 and len(table) > 2:
        x, y = sweep.space
        plotting.plot_heatmap(table, x, y, folder / "heatmap.png", title)


def trial_rows(trial: Trial) -> list[Row]:
    """The metrics of a trial's agents, one list entry for each of them.

    As far as all of them go: where seeds were trained apart, one part may have broken.
    """
    runs = list(dict.fromkeys(run for run, _ in trial.places))
    places = [[k for own, k in trial.places if own == run] for run in runs]
    together = zip(*(_rows(Path(run) / "metrics.jsonl") for run in runs), strict=False)
    return [of_members(list(zip(rows, places, strict=True))) for rows in together]


@cache
def _rows(path: Path) -> list[Row]:
    """The rows of a finished run: all trials of a block are in one file."""
    return loggers.read_metrics(path)
