"""The lines of a report, read from finished runs and sweeps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxrl.errors import InvalidInput, count_noun, did_you_mean
from jaxrl.runs.experiment import (
    Experiment,
    finished_summary,
    named_env,
    read_experiment,
    train_command,
)
from jaxrl.statistics import FEW_SEEDS
from jaxrl.sweeps import results
from jaxrl.sweeps.plan import Block, read_sweep, sweep_command
from jaxrl.sweeps.results import Trial
from jaxrl.sweeps.training import is_sweep
from jaxrl.types import Row


@dataclass(frozen=True)
class Entry:
    """One line of the table: an algorithm or a setting on an environment."""

    label: str
    algorithm: str
    env: str
    seeds: list[int]
    returns: list[float | None]  # mean evaluation return of each seed; None: broken
    rows: list[Row]
    env_steps: int  # for each seed
    command: str
    source: Path
    summary: dict[str, Any]

    @property
    def finite_returns(self) -> list[float]:
        """Returns of the seeds that did not break."""
        return [x for x in self.returns if x is not None]


def read_all_entries(folders: Sequence[Path]) -> list[Entry]:
    """Read the lines of all folders; no two of an environment have the same label."""
    entries = [entry for folder in folders for entry in read_entries(folder)]
    return [replace(entry, label=_make_unique(entry, entries)) for entry in entries]


def _make_unique(entry: Entry, others: Sequence[Entry]) -> str:
    """Add the folder, and a number, to a label that several have."""
    same = [e for e in others if (e.label, e.env) == (entry.label, entry.env)]
    if len(same) == 1:
        return entry.label
    inside = [e for e in same if e.source == entry.source]
    number = f" #{inside.index(entry) + 1}" if len(inside) > 1 else ""
    return f"{entry.label} ({entry.source}{number})"


def read_entries(folder: Path) -> list[Entry]:
    """Read the lines of a run or a sweep: one for each of its settings.

    Raises:
      InvalidInput: the folder holds no finished run.
    """
    if not folder.is_dir():
        raise InvalidInput(f"RUN = {str(folder)!r} does not exist.")
    return _read_sweep(folder) if is_sweep(folder) else _read_run(folder)


def _read_run(folder: Path) -> list[Entry]:
    summary = finished_summary(folder)
    if summary is None:
        raise InvalidInput(f"RUN = {str(folder)!r} is not finished: jaxrl resume it.")
    experiment = load_experiment(folder)
    name = experiment.algorithm.name
    command = train_command(experiment)
    if experiment.has_variants:  # no flags say which: they are in the file
        command = f"jaxrl train {name} --config {folder / 'config.json'}"
    block = Block(folder, experiment, list(range(len(experiment.overrides))))
    return [
        _make_entry(_label(name, trial), experiment, trial, command, folder, summary)
        for trial in results.trials_of(block)
    ]


def _read_sweep(folder: Path) -> list[Entry]:
    experiment = load_experiment(folder)
    trials = results.read_trials(folder)
    labels = [_label(experiment.algorithm.name, trial) for trial in trials]
    fresh = results.read_confirmed(folder)
    if fresh is not None:
        trials.append(fresh)
        labels.append(f"{_label(experiment.algorithm.name, fresh)}, fresh seeds")
    command = sweep_command(read_sweep(folder, experiment.env))
    summary = results.read_results(folder) or {}
    return [
        _make_entry(label, experiment, trial, command, folder, summary)
        for label, trial in zip(labels, trials, strict=True)
    ]


def load_experiment(folder: Path) -> Experiment:
    """Load the experiment of a run or of a sweep."""
    if is_sweep(folder):
        return read_sweep(folder, named_env(folder / "sweep.json")).experiment
    return read_experiment(folder, named_env(folder / "config.json"))


def _label(algorithm: str, trial: Trial) -> str:
    words = results.setting_in_words(trial.overrides)
    return f"{algorithm}, {words}" if words else algorithm


def _make_entry(
    label: str,
    experiment: Experiment,
    trial: Trial,
    command: str,
    source: Path,
    summary: dict[str, Any],
) -> Entry:
    return Entry(
        label=label,
        algorithm=experiment.algorithm.name,
        env=experiment.env,
        seeds=trial.seeds,
        returns=trial.returns,
        rows=results.trial_rows(trial),
        env_steps=trial.env_steps,
        command=command,
        source=source,
        summary=summary,
    )


def check_metric(entries: Sequence[Entry], metric: str) -> None:
    """Raise `InvalidInput` if an entry does not have this metric."""
    for entry in entries:
        if entry.rows and metric not in entry.rows[0]:
            raise InvalidInput(
                f"metric = {metric!r} is not in {entry.source}"
                f"{did_you_mean(metric, entry.rows[0])}."
            )


# Warnings.


def collect_warnings(folders: Sequence[Path], entries: Sequence[Entry]) -> list[str]:
    """List the claims that these results do not support."""
    sweeps = [folder for folder in folders if is_sweep(folder)]
    warnings = [
        f"{folder}: the best setting was chosen by the same seeds that are reported, so "
        f"its return is flattering: jaxrl sweep --confirm-seeds N gives it fresh ones."
        for folder in sweeps
        if results.read_confirmed(folder) is None
    ]
    for folder in sweeps:
        tuned = load_experiment(folder)
        for entry in entries:
            same = set(entry.seeds) & set(tuned.seeds)
            is_same = (entry.algorithm, entry.env) == (
                tuned.algorithm.name,
                tuned.env,
            )
            if entry.source not in sweeps and is_same and same:
                warnings.append(
                    f"{entry.source}: its seeds {sorted(same)} are among those with which "
                    f"{folder} chose a setting: report with others, --seed "
                    f"{max(tuned.seeds) + 1}."
                )
    return warnings + _warn_of_comparisons(entries)


def _warn_of_comparisons(entries: Sequence[Entry]) -> list[str]:
    """List comparisons that are unfair, or rest on too few seeds."""
    warnings = []
    for env in dict.fromkeys(entry.env for entry in entries):
        here = [entry for entry in entries if entry.env == env and entry.finite_returns]
        steps = {entry.env_steps for entry in here}
        if steps and max(steps) > 1.1 * min(steps):
            warnings.append(
                f"{env}: the runs have {min(steps):,} to {max(steps):,} environment steps."
            )
    few = [entry.label for entry in entries if len(entry.finite_returns) < FEW_SEEDS]
    if few:
        warnings.append(
            f"{count_noun(len(few), 'line')} of the table with fewer than {FEW_SEEDS} "
            f"seeds: 95 % intervals are too narrow for so few."
        )
    broken = [e for e in entries if len(e.finite_returns) < len(e.returns)]
    for entry in broken:
        lost = len(entry.returns) - len(entry.finite_returns)
        warnings.append(
            f"{entry.label} on {entry.env}: {lost} of {len(entry.returns)} seeds broke "
            f"(NaN or infinite) and are not in its interval."
        )
    return warnings
