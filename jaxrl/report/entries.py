"""The lines of a report: what finished runs and sweeps have to say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxrl.errors import InvalidInput, counted, did_you_mean
from jaxrl.runs.experiment import (
    Experiment,
    finished_summary,
    named_env,
    read_experiment,
    train_command,
)
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
    def whole(self) -> list[float]:
        return [x for x in self.returns if x is not None]


def all_entries(folders: Sequence[Path]) -> list[Entry]:
    """The lines of all folders; no two of an environment have the same label."""
    entries = [entry for folder in folders for entry in read_entries(folder)]
    return [replace(entry, label=_unique(entry, entries)) for entry in entries]


def _unique(entry: Entry, others: Sequence[Entry]) -> str:
    """The label; with the folder, and a number, where several have the same."""
    same = [e for e in others if (e.label, e.env) == (entry.label, entry.env)]
    if len(same) == 1:
        return entry.label
    inside = [e for e in same if e.source == entry.source]
    number = f" #{inside.index(entry) + 1}" if len(inside) > 1 else ""
    return f"{entry.label} ({entry.source}{number})"


def read_entries(folder: Path) -> list[Entry]:
    """The lines of a run or a sweep: one for each of its settings.

    Raises:
      InvalidInput: it is no finished run.
    """
    if not folder.is_dir():
        raise InvalidInput(f"RUN = {str(folder)!r} does not exist.")
    return _of_sweep(folder) if is_sweep(folder) else _of_run(folder)


def _of_run(folder: Path) -> list[Entry]:
    summary = finished_summary(folder)
    if summary is None:
        raise InvalidInput(f"RUN = {str(folder)!r} is not finished: jaxrl resume it.")
    experiment = read_run(folder)
    name = experiment.algorithm.name
    command = train_command(experiment)
    if experiment.has_variants:  # no flags say which: they are in the file
        command = f"jaxrl train {name} --config {folder / 'config.json'}"
    try:
        block = Block(folder, experiment, list(range(len(experiment.overrides))))
        return [
            _entry(_label(name, trial), experiment, trial, command, folder, summary)
            for trial in results.trials_of(block)
        ]
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"RUN = {str(folder)!r} holds no readable metrics.jsonl ({error})."
        ) from error


def _of_sweep(folder: Path) -> list[Entry]:
    experiment = read_run(folder)
    trials = results.read_trials(folder)
    labels = [_label(experiment.algorithm.name, trial) for trial in trials]
    fresh = results.read_confirmed(folder)
    if fresh is not None:
        trials.append(fresh)
        labels.append(f"{_label(experiment.algorithm.name, fresh)}, fresh seeds")
    command = sweep_command(read_sweep(folder, experiment.env))
    summary = finished_summary(folder) or {}
    return [
        _entry(label, experiment, trial, command, folder, summary)
        for label, trial in zip(labels, trials, strict=True)
    ]


def read_run(folder: Path) -> Experiment:
    """What was trained in the folder of a run, or of a sweep."""
    if is_sweep(folder):
        return read_sweep(folder, named_env(folder / "sweep.json")).experiment
    return read_experiment(folder, named_env(folder / "config.json"))


def _label(algorithm: str, trial: Trial) -> str:
    words = results.setting_in_words(trial.overrides)
    return f"{algorithm}, {words}" if words else algorithm


def _entry(
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
    for entry in entries:
        if entry.rows and metric not in entry.rows[0]:
            raise InvalidInput(
                f"metric = {metric!r} is not in {entry.source}"
                f"{did_you_mean(metric, entry.rows[0])}."
            )


# What a reader should know.


def warnings_about(folders: Sequence[Path], entries: Sequence[Entry]) -> list[str]:
    """What of these results a paper should not say."""
    sweeps = [folder for folder in folders if is_sweep(folder)]
    found = [
        f"{folder}: the best setting was chosen by the same seeds that are reported, so "
        f"its return is flattering: jaxrl sweep --confirm-seeds N gives it fresh ones."
        for folder in sweeps
        if results.read_confirmed(folder) is None
    ]
    for folder in sweeps:
        tuned = read_run(folder)
        for entry in entries:
            same = set(entry.seeds) & set(tuned.seeds)
            of_the_same = (entry.algorithm, entry.env) == (
                tuned.algorithm.name,
                tuned.env,
            )
            if entry.source not in sweeps and of_the_same and same:
                found.append(
                    f"{entry.source}: its seeds {sorted(same)} are among those with which "
                    f"{folder} chose a setting: report with others, --seed "
                    f"{max(tuned.seeds) + 1}."
                )
    return found + _uneven(entries)


def _uneven(entries: Sequence[Entry]) -> list[str]:
    """Comparisons that are not fair, or rest on too little."""
    found = []
    for env in dict.fromkeys(entry.env for entry in entries):
        here = [entry for entry in entries if entry.env == env and entry.whole]
        steps = {entry.env_steps for entry in here}
        if steps and max(steps) > 1.1 * min(steps):
            found.append(
                f"{env}: the runs have {min(steps):,} to {max(steps):,} environment steps."
            )
    few = [entry.label for entry in entries if len(entry.whole) < 5]
    if few:
        found.append(
            f"{counted(len(few), 'line')} of the table with fewer than five seeds: the "
            f"intervals say little."
        )
    broken = [e for e in entries if len(e.whole) < len(e.returns)]
    for entry in broken:
        lost = len(entry.returns) - len(entry.whole)
        found.append(
            f"{entry.label} on {entry.env}: {lost} of {len(entry.returns)} seeds broke "
            f"(NaN or infinite) and are not in its interval."
        )
    return found
