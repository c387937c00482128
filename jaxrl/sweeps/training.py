"""Many settings of one algorithm, in as few programs as possible: `jaxrl.sweep`.

SWEEP/sweep.json     what was asked
SWEEP/runs/          run folders (see `jaxrl.runs.session`), each one block of members
SWEEP/confirm/       run folders of the best setting with fresh seeds, if that was asked
SWEEP/results.csv    a line for each setting: IQM over its seeds with a 95 % interval
SWEEP/summary.json   the same, exact counts, versions and device
SWEEP/*.png          figures

A sweep that was killed goes on where it was (`resume_sweep`).
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl.core import distributed, files, run_folders, storage
from jaxrl.errors import count_noun, require
from jaxrl.runs import checkpoint
from jaxrl.runs.artifact import Overrides
from jaxrl.runs.experiment import (
    Experiment,
    finished_summary,
    folder_name,
    json_text,
    named_env,
    read_rows,
    write_summary,
)
from jaxrl.runs.session import newest_progress, resume_experiment, run_experiment
from jaxrl.sweeps import plan, results
from jaxrl.sweeps import space as spaces
from jaxrl.sweeps.plan import Block, Scheduler, Sweep, read_sweep, settings_of
from jaxrl.sweeps.results import CONFIRM, RUNS, Trial, best_trial, read_trials
from jaxrl.sweeps.space import Sampler
from jaxrl.training.loop import (
    Job,
    NonFiniteError,
    Progress,
    Result,
    inherit,
    num_iterations,
)
from jaxrl.types import Algorithm, Row


class SweepResult(NamedTuple):
    """What `sweep` returns."""

    folder: Path
    trials: list[Trial]
    summary: dict[str, Any]  # the content of summary.json

    @property
    def best(self) -> Trial:
        """The trial with the highest IQM of those that did not break."""
        return best_trial(self.trials)


@dataclass(frozen=True)
class Session:
    """A process that is at a sweep, in its folder."""

    folder: Path
    sweep: Sweep
    progress: bool
    report: Callable[[str], None]
    asked_to_stop: Callable[[], bool]
    kept: dict[Path, tuple[Progress, list[Row]]] = field(default_factory=dict)
    """Ends of this process's runs, for those that go on from them on the device."""

    def interrupted(self) -> bool:
        """Whether any process of the sweep is asked to stop; all must call it together."""
        return distributed.any_of(self.asked_to_stop())


def sweep(
    algorithm: Algorithm,
    env: str,
    space: Mapping[str, Any],
    *,
    config: Any = None,
    env_params: Mapping[str, Any] | None = None,
    seed: int = 0,
    num_seeds: int = 1,
    sampler: Sampler = "grid",
    trials: int | None = None,
    scheduler: Scheduler = "none",
    block: int | None = None,
    batch: int | None = None,
    shard: tuple[int, int] | None = None,
    confirm_seeds: int = 0,
    out: Path | str | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
    **options: Any,
) -> SweepResult:
    """Train `num_seeds` agents with each of many settings, and compare them.

    ```python
    result = jaxrl.sweep(
        jaxrl.PPO, "CartPole-v1", {"learning_rate": [1e-4, 1e-3]}, num_seeds=16
    )
    print(result.best.overrides)
    ```

    Args:
      algorithm: for example `jaxrl.PPO`.
      env: the environment's id.
      space: what is swept: fields of the config by name, parameters of the environment as
        "env.NAME"; for each a list of values or, for a sampler, a `jaxrl.Range`.
      config: the other hyper-parameters; by default the algorithm's.
      env_params: further arguments of `make`.
      seed: the first seed of each setting.
      num_seeds: agents of each setting.
      sampler: "grid" for all combinations, "random", "loguniform" or "optuna".
      trials: how many settings, if it is not a grid.
      scheduler: "none", "halving" or "pbt".
      block: agents that are trained at a time; by default as many as fit.
      batch: settings that Optuna proposes at a time; by default a fifth of the trials.
      shard: (i, n) for every n-th setting, from the i-th of 0, ..., n - 1; see `merge`.
      confirm_seeds: fresh seeds with which the best setting is trained again.
      out: a new folder; by default the first free `runs/sweep-ALGO-ENV-SEED-n`.
      progress: whether to show how far it is, on stderr.
      report: called with lines for a person.
      **options: further fields of `Experiment`, such as `evaluation_episodes`.

    Raises:
      InvalidInput: before anything compiles or is written.
      NonFiniteError: every agent of a block broke.
      OSError: the disk is full, read-only or gone; what is finished is kept.
    """
    experiment = Experiment(
        algorithm,
        algorithm.Config() if config is None else config,
        env,
        dict(env_params or {}),
        seed=seed,
        num_seeds=num_seeds,
        **{"on_nan": "continue"} | options,
    )
    wanted = Sweep(
        experiment,
        spaces.as_space(space),
        sampler,
        trials,
        scheduler,
        block,
        batch,
        shard,
        confirm_seeds,
    )
    return run_sweep(wanted, out, progress=progress, report=report)


def run_sweep(
    sweep: Sweep,
    out: Path | str | None = None,
    *,
    progress: bool = True,
    report: Callable[[str], None] = print,
    interrupted: Callable[[], bool] = lambda: False,
) -> SweepResult:
    """`sweep`, of a value that says it all."""
    plan.check(sweep)
    sweep = plan.with_block(sweep)
    json_text(plan.described(sweep))  # before anything is written
    report(plan.summarize(sweep))
    name = f"sweep-{folder_name(sweep.experiment)}"
    folder = run_folders.new_shared(out, name)
    session = Session(folder, sweep, progress, report, interrupted)
    with run_folders.lock(folder):
        if distributed.is_first():
            storage.write_text(folder / "sweep.json", _description(sweep, folder))
        return _finish(session, _train(session))


def _description(sweep: Sweep, folder: Path) -> str:
    """The content of the `sweep.json` of a folder."""
    return json_text(plan.described(sweep, partial(files.relative, folder)))


def resume_sweep(
    folder: Path | str,
    *,
    env: str | None = None,
    algorithm: Algorithm | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
    interrupted: Callable[[], bool] = lambda: False,
) -> SweepResult:
    """Go on with a sweep that was killed or interrupted, as if it had not been.

    Args:
      folder: of the sweep.
      env: the environment's id, needed where it is "module:factory", which is code.
      algorithm: needed where it was a variant and not one of `ALGORITHMS`.
      progress: whether to show how far it is, on stderr.
      report: called with lines for a person.
      interrupted: asked every few seconds; True ends the sweep early.

    Raises:
      InvalidInput: there is no such sweep, or a file of it is damaged.
    """
    folder = Path(folder)
    sweep = read_sweep(folder, env, algorithm)
    session = Session(folder, sweep, progress, report, interrupted)
    with run_folders.lock(folder):
        summary = results.read_results(folder)
        if summary is not None:
            report(f"{folder} is finished: there is nothing to resume.")
            return SweepResult(folder, read_trials(folder), summary)
        return _finish(session, _train(session))


def is_sweep(folder: Path | str) -> bool:
    return (Path(folder) / "sweep.json").exists()


def _train(session: Session) -> list[Trial]:
    """All trials, or those that were finished when it was interrupted."""
    sweep, folder = session.sweep, session.folder
    if sweep.scheduler == "halving":
        return _halved(session)
    if sweep.sampler == "optuna":
        return _proposed(session)
    numbered = settings_of(sweep)
    return _train_blocks(session, plan.blocks(sweep, folder / RUNS, numbered))


def _train_blocks(
    session: Session, wanted: Sequence[Block], start: Callable | None = None
) -> list[Trial]:
    """The trials of these blocks, of which finished ones are only read."""
    trials: list[Trial] = []
    for number, block in enumerate(wanted):
        if session.interrupted():
            break
        if len(wanted) > 1 and finished_summary(block.folder) is None:
            session.report(f"block {number + 1} of {len(wanted)}:")
        if _train_block(session, block, start, alone=len(wanted) == 1):
            trials += results.trials_of(block)
    return sorted(trials, key=lambda trial: trial.index)


def _train_block(
    session: Session, block: Block, start: Callable | None, alone: bool = True
) -> bool:
    """Train a block from the start, or from where it was; whether it is finished.

    A block of which every agent breaks is.
    """

    def keep(result: Result) -> None:
        # Of several blocks only one fits at a time: what goes on is read from the disk.
        if session.sweep.scheduler == "halving" and alone:
            session.kept[block.folder] = result.progress, result.history

    options: dict[str, Any] = {
        "progress": session.progress,
        "report": session.report,
        "interrupted": session.asked_to_stop,
        "start": None if start is None else partial(start, block),
        "on_result": keep,
    }
    begun = distributed.broadcast((block.folder / "config.json").exists())
    try:
        if begun:
            summary = finished_summary(block.folder) or resume_experiment(
                block.folder,
                env=block.experiment.env,
                algorithm=block.experiment.algorithm,
                **options,
            )
        else:
            _, summary = run_experiment(block.experiment, block.folder, **options)
    except NonFiniteError as error:
        if session.sweep.experiment.on_nan == "stop":
            raise
        session.report(f"every agent of {block.folder} broke: {error}")
        return True
    return bool(summary["finished"])


def _proposed(session: Session) -> list[Trial]:
    """Batches that Optuna proposes, each after the results of those before."""
    sweep = session.sweep
    rounds: list[tuple[list[Overrides], list[float | None]]] = []
    trials: list[Trial] = []
    while len(trials) < (sweep.trials or 1) and not session.interrupted():
        count = min(plan.batch_size(sweep), (sweep.trials or 1) - len(trials))
        proposed = plan.propose(sweep, rounds, count)
        numbered = list(enumerate(proposed, start=len(trials)))
        session.report(f"round {len(rounds) + 1}: {count_noun(count, 'setting')}")
        folder = session.folder / RUNS / f"round-{len(rounds):03d}"
        batch = results.join_trials(
            _train_blocks(session, plan.blocks(sweep, folder, numbered))
        )
        if len(batch) < count:
            break
        rounds.append((proposed, [trial.score for trial in batch]))
        trials += batch
    return trials


def _halved(session: Session) -> list[Trial]:
    """Successive halving: the better half goes on for twice as long, again and again.

    Source: Jamieson and Talwalkar (2016), https://arxiv.org/abs/1502.07943, figure 1.
    """
    sweep = session.sweep
    numbered = settings_of(sweep)
    ended: dict[int, Trial] = {}
    before: list[Block] = []
    for rung, (count, share) in enumerate(plan.rungs(len(numbered))):
        whole = [i for i, _ in numbered if not before or ended[i].score is not None]
        if before:
            whole.sort(key=lambda i: results.order(ended[i]), reverse=True)
        kept = set(whole[:count])
        alive = [(index, overrides) for index, overrides in numbered if index in kept]
        if not alive:  # all broke
            break
        folder = session.folder / RUNS / f"rung-{rung}"
        wanted = [
            block._replace(experiment=_shortened(block.experiment, share))
            for block in plan.blocks(sweep, folder, alive)
        ]
        session.report(f"rung {rung + 1}: {count_noun(len(alive), 'setting')}")
        start = partial(_inherited, session, before) if before else None
        trials = results.join_trials(_train_blocks(session, wanted, start))
        for index in ended.keys() - kept:
            ended[index] = replace(ended[index], dropped=True)
        ended |= {trial.index: trial for trial in trials}
        if len(trials) < len(alive):
            break
        numbered, before = alive, wanted
        for folder in session.kept.keys() - {block.folder for block in wanted}:
            del session.kept[folder]
    return [ended[index] for index in sorted(ended)]


def _shortened(experiment: Experiment, share: float) -> Experiment:
    """Of a run, the first part; its schedules are those of the whole."""
    config, env = experiment.variants[0]
    whole = num_iterations(experiment.algorithm.plan(config, env), config.total_steps)
    whole = min(whole, experiment.stop_iterations or whole)
    return replace(experiment, stop_iterations=max(1, round(share * whole)))


def _inherited(
    session: Session, before: Sequence[Block], block: Block, job: Job
) -> tuple[Progress, list[Row]]:
    """The progress with which a block goes on from the blocks of the rung before.

    On the device, if this process has trained them.
    """
    num_seeds = len(block.experiment.seeds)
    parts = []
    for old in before:
        places = [
            k
            for k, (index, seed) in enumerate(
                (index, seed) for index in old.indices for seed in old.experiment.seeds
            )
            if index in block.indices and seed in block.experiment.seeds
        ]
        if places:
            kept = session.kept.get(old.folder)
            kept = kept or newest_progress(old.experiment, old.folder)
            parts.append((*kept, places))
    assert sum(len(places) for *_, places in parts) == num_seeds * len(block.indices)
    return inherit(job, parts)


def _finish(session: Session, trials: list[Trial]) -> SweepResult:
    """Tables, figures and, when all that is there, the summary."""
    folder, sweep = session.folder, session.sweep
    trials = results.join_trials(trials)
    if not trials:
        algorithm = sweep.experiment.algorithm.name
        return SweepResult(folder, [], {"finished": False, "algorithm": algorithm})
    wanted = len(settings_of(sweep)) or sweep.trials
    finished = len(trials) == wanted and not session.interrupted()
    confirmed = None
    if finished and sweep.confirm_seeds and any(t.score is not None for t in trials):
        confirmed = _confirmed(session, best_trial(trials))
        finished = confirmed is not None
    summary = results.summary_of(folder, sweep, trials, confirmed)
    summary |= {"finished": finished}
    if distributed.is_first():
        storage.write_text(folder / "results.csv", results.results_csv(trials))
        results.draw_figures(folder, sweep, trials)
        write_summary(folder, summary)
    return SweepResult(folder, trials, summary)


def _confirmed(session: Session, best: Trial) -> Trial | None:
    """The best setting trained with seeds that had no part in choosing it.

    None if that was interrupted.
    """
    sweep = session.sweep
    fresh = replace(
        sweep.experiment,
        seed=sweep.experiment.seed + sweep.experiment.num_seeds,
        num_seeds=sweep.confirm_seeds,
    )
    session.report(
        f"confirming {results.setting_in_words(best.overrides)} with seeds {fresh.seeds}"
    )
    wanted = plan.blocks(
        replace(sweep, experiment=fresh, scheduler="none"),
        session.folder / CONFIRM,
        [(best.index, best.overrides)],
    )
    found = results.join_trials(_train_blocks(session, wanted))
    whole = bool(found) and len(found[0].seeds) == sweep.confirm_seeds
    return found[0] if whole else None


def _copy_runs(source: Path, target: Path) -> None:
    """Copy run folders without their checkpoints; an error names the file.

    A link is copied as one, and not what it leads to.
    """
    ignore = shutil.ignore_patterns(checkpoint.FOLDER)
    try:
        shutil.copytree(source, target, symlinks=True, ignore=ignore)
    except shutil.Error as error:  # a list of (source, target, reason)
        name, _, reason = error.args[0][0]
        raise OSError(None, reason, name) from error


def merge(shards: Sequence[Path | str], out: Path | str) -> SweepResult:
    """The sweep of which these folders are the shards, as if it had been run at once.

    Args:
      shards: folders of `shard` (0, n) to (n - 1, n) of one sweep, all finished.
      out: a new folder; the runs are copied into it, without their checkpoints.

    Raises:
      InvalidInput: they are not all shards of one sweep, or a link leaves one.
    """
    parts = [Path(shard) for shard in shards]
    for part in parts:
        run_folders.refuse_links(part)
    sweeps = [read_sweep(part, named_env(part / "sweep.json")) for part in parts]
    wholes = {
        json.dumps(
            plan.described(replace(sweep, shard=None, block=None), os.path.realpath)
        )
        for sweep in sweeps
    }
    require(len(wholes) == 1, "merge: these are not shards of one sweep.")
    found = sorted(sweep.shard or (0, 1) for sweep in sweeps)
    count = found[0][1]
    missing = sorted({(i, count) for i in range(count)} - set(found))
    require(
        not missing and len(found) == count,
        f"merge: shards {', '.join(f'{i}/{n}' for i, n in found)} are given, of "
        f"0/{count} to {count - 1}/{count} each is needed once.",
    )
    by_part = [read_trials(part) for part in parts]  # before anything is written
    for run in {
        run for trials in by_part for trial in trials for run, _ in trial.places
    }:
        read_rows(Path(run))
        if finished_summary(Path(run)) is not None:
            storage.read(Path(run) / "policy")
    whole = replace(sweeps[0], shard=None, confirm_seeds=0)
    target = run_folders.new(out, "sweep")
    trials = []
    for sweep, folder, found_there in zip(sweeps, parts, by_part, strict=True):
        name = f"shard-{(sweep.shard or (0, 1))[0]}"
        _copy_runs(folder / RUNS, target / RUNS / name)
        for trial in found_there:
            places = [
                (str(target / RUNS / name / Path(run).relative_to(folder / RUNS)), k)
                for run, k in trial.places
            ]
            trials.append(replace(trial, places=places))
    trials.sort(key=lambda trial: trial.index)
    session = Session(target, whole, False, lambda line: None, lambda: False)
    result = _finish(session, trials)
    # Last: without it the folder is no sweep, and nobody resumes it.
    storage.write_text(target / "sweep.json", _description(whole, target))
    return result
