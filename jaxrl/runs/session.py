"""A training run in a folder: what `jaxrl train` does, as one Python call.

RUN/config.json      what was asked (see `jaxrl.runs.experiment`)
RUN/checkpoints/     how far it is; `jaxrl resume RUN` goes on (see `jaxrl.runs.checkpoint`)
RUN/metrics.jsonl    a line for each chunk, every metric for every seed
RUN/samples.jsonl    of a language model: some of its texts, as it was at ten times
RUN/policy/          the trained agents (see `jaxrl.runs.artifact`), without broken ones
RUN/summary.json     versions, device, exact counts, seconds, final evaluation
RUN/learning_curve.png
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import plotting, types
from jaxrl.core import config as configs
from jaxrl.core import distributed, files, prng, run_folders, storage
from jaxrl.core.variants import stacked
from jaxrl.envs.problem import problem_of
from jaxrl.errors import InvalidInput, require, shorten
from jaxrl.evaluation import evaluate_population
from jaxrl.runs import artifact, checkpoint, live, loggers
from jaxrl.runs.artifact import Overrides
from jaxrl.runs.experiment import (
    Experiment,
    describe,
    describe_plan,
    describe_training,
    finished_summary,
    folder_name,
    json_text,
    read_experiment,
    resolve,
    versions,
    write_summary,
)
from jaxrl.statistics import summarize_returns
from jaxrl.training.devices import hardware
from jaxrl.training.loop import (
    Job,
    NonFiniteError,
    OnNan,
    Progress,
    Result,
    Start,
    chunk_length,
    placed_progress,
    progress_shapes,
    run,
    state_shapes,
)
from jaxrl.training.population import member
from jaxrl.types import Algorithm, Env, Row

EVALUATION_SEED = 0
"""Seed of the evaluation at the end of a run, that of `jaxrl evaluate` by default."""

EVALUATION = 0x65766C
"""Folded into evaluation keys, to keep them apart from those of training."""


@dataclass(frozen=True)
class Session:
    """A process that is at an experiment, in its folder."""

    folder: Path
    experiment: Experiment
    job: Job
    progress: bool
    report: Callable[[str], None]
    interrupted: Callable[[], bool]


def run_experiment(
    experiment: Experiment,
    out: Path | str | None = None,
    *,
    progress: bool = True,
    report: Callable[[str], None] = print,
    interrupted: Callable[[], bool] = lambda: False,
    start: Start | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> tuple[Path, dict[str, Any]]:
    """Train, evaluate and write everything into a run folder.

    Args:
      experiment: what to train.
      out: the run folder, new or empty; by default the first free
        `runs/ALGO-ENV-SEED-n`.
      progress: whether to show how far it is, on stderr.
      report: called with lines for a person.
      interrupted: asked every few seconds; True ends the run early, artefacts and all.
      start: the progress to begin with and the rows that led there; by default none.
      on_result: called with what is on the devices at the end.

    Returns:
      The folder and the content of its `summary.json`.

    Raises:
      InvalidInput: before anything compiles or is written.
      NonFiniteError: a number became NaN or infinite; metrics and checkpoints are kept.
      OSError: the disk is full, read-only or gone; the last checkpoint is kept.
    """
    job = resolve(experiment)
    check_saving(experiment, job)
    report(describe_plan(experiment, job))
    json_text(describe(experiment))  # before anything is written
    folder = run_folders.new_shared(out, folder_name(experiment))
    description = describe(experiment, partial(files.relative, folder))
    session = Session(folder, experiment, job, progress, report, interrupted)
    with run_folders.lock(folder):
        if distributed.is_first():
            storage.write_text(folder / "config.json", json_text(description))
        result, digests = _train(session, None, start)
        on_result(result)
        return folder, _finish(session, result, digests)


def resume_experiment(
    run: Path | str,
    iteration: int | None = None,
    *,
    env: str | None = None,
    algorithm: Algorithm | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
    interrupted: Callable[[], bool] = lambda: False,
    start: Start | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> dict[str, Any]:
    """Go on with a run that was killed or interrupted, as if it had not been.

    Args:
      run: the run folder.
      iteration: the checkpoint to go on from, by default the newest; newer ones are
        removed.
      env: the environment's id, needed where it is "module:factory", which is code.
      algorithm: needed where it was a variant and not one of `ALGORITHMS`.
      progress: whether to show how far it is, on stderr.
      report: called with lines for a person.
      interrupted: asked every few seconds; True ends the run early, artefacts and all.
      start: as for `run_experiment`, if there is no checkpoint yet.
      on_result: called with what is on the devices at the end.

    Returns:
      The content of its `summary.json`.

    Raises:
      InvalidInput: there is no such run or checkpoint, a file is damaged, or another
        process is at it; nothing is changed then.
      NonFiniteError, OSError: as `run_experiment`.
    """
    folder = Path(run)
    experiment = read_experiment(folder, env, algorithm)
    artifact.check_places(experiment.algorithm, describe(experiment), folder)
    job = resolve(experiment, begins=False)
    check_saving(experiment, job)
    with run_folders.lock(folder):
        summary = finished_summary(folder)
        if summary is not None and iteration is None:
            report(f"{folder} is finished: there is nothing to resume.")
            return summary
        require(
            not getattr(experiment.environment, "on_host", False),
            f"RUN = {str(run)!r}: {experiment.env} has its state on the host, where no "
            f"checkpoint reaches it: the run cannot be resumed, train anew.",
        )
        iteration = checkpoint.chosen(folder, iteration)
        if iteration is None:
            report(f"{folder} has no checkpoint yet: training from the start.")
            job = resolve(experiment)
        session = Session(folder, experiment, job, progress, report, interrupted)
        result, digests = _train(session, iteration, start)
        on_result(result)
        return _finish(session, result, digests)


def check_saving(experiment: Experiment, job: Job) -> None:
    """Make what the files at the end need, while nothing is lost.

    Raises:
      InvalidInput: something of the agents cannot be saved, or read again.
    """
    agents = _agents(experiment, None, job.seeds, experiment.overrides)
    content = artifact.describe_agents(agents)
    again = json.loads(json_text(content))
    for name, value in content.items():
        require(
            _is_same(value, again[name]),
            f"{name} = {shorten(value)} would be read again as {shorten(again[name])}: "
            f"use text as the names in tables.",
        )
    shapes = state_shapes(job)
    storage.check_names(shapes)
    if experiment.algorithm not in artifact.BY_NAME.values():
        check_evaluation(experiment, shapes.agent)


def check_evaluation(experiment: Experiment, agents: Any) -> None:
    """Find what the evaluation at the end would fail of, in an algorithm of the user's.

    Args:
      experiment: what is to be trained.
      agents: their shapes `[K, ...]`.

    Raises:
      InvalidInput: `score` does not give a number for each agent. What the algorithm
        itself raises is passed on.
    """
    algorithm, (config, env) = experiment.algorithm, experiment.variants[0]
    seeds = list(experiment.seeds)
    if experiment.has_variants:  # each is asked for its score alone
        agents = jax.eval_shape(partial(member, index=np.array([0])), agents)
        seeds = seeds[:1]
    play = partial(evaluate_population, algorithm, config, env, num_episodes=1)
    jax.eval_shape(play, agents, jax.eval_shape(lambda: prng.key(0)))
    if algorithm.score is not types.no_score:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), agents)
        _scores(_agents(experiment, zeros, seeds))


def _is_same(value: Any, again: Any) -> bool:
    """True if JSON gave back a value, but for tuples, which it has as lists."""
    if isinstance(value, Mapping):
        names = value.keys() == again.keys()
        return names and all(_is_same(x, again[name]) for name, x in value.items())
    if isinstance(value, list | tuple):
        return all(_is_same(x, y) for x, y in zip(value, again, strict=True))
    return bool(value == again)


def _agents(
    experiment: Experiment,
    arrays: Any,
    seeds: Sequence[int],
    overrides: Sequence[Overrides] = (),
    members: Sequence[int] = (),
) -> artifact.Agents:
    """The agents of an experiment, as they are saved."""
    return artifact.Agents(
        experiment.algorithm,
        experiment.config,
        experiment.environment,
        experiment.env_params,
        arrays,
        list(seeds),
        overrides,
        members,
        experiment.teacher if experiment.algorithm.teacher == "policy" else None,
    )


def _train(
    session: Session, iteration: int | None, start: Start | None
) -> tuple[Result, list[str]]:
    """`train`, its rows going to the metrics file and the live view; their digests.

    From the checkpoint of that iteration, or from the start.
    """
    experiment, job, folder = session.experiment, session.job, session.folder
    about = describe_training(experiment)
    first = distributed.is_first()
    with ExitStack() as stack:
        metrics = loggers.MetricsFile(folder / "metrics.jsonl" if first else None)
        if iteration is not None:
            start = partial(_restored, session, about, iteration, metrics)
        view = _view(session)
        others = _other_loggers(session, iteration or 0) if first else []
        for logger in (metrics, view, *others):
            stack.enter_context(closing(logger))
        if iteration is None and first:
            metrics.truncate(0)
        unwritten = [metrics, *others] if iteration is None else []
        start = start and partial(_begun, start, unwritten, view)
        samples = _Samples(session, iteration or 0, others)
        saver = checkpoint.Saver(
            folder,
            about | {"versions": versions()},
            metrics.sync,
            experiment.checkpoint_every,
            experiment.keep,
            iteration,
        )

        def on_chunk(row: Row) -> None:
            for logger in (metrics, view, *others):
                logger.write(row)

        def between(progress: Progress) -> bool:
            view.go_to(job.steps_after(progress.iteration), progress.seconds)
            saver.save_if_due(progress)
            samples.write_if_due(progress)
            return session.interrupted()

        result = run(
            job,
            start=start,
            on_chunk=on_chunk,
            stop=partial(_reached, experiment.stop_return),
            between=between,
            adapt=experiment.adapt,
            report=view.beside(session.report),
        )
        saver.save(result.progress)
        return result, metrics.digests


def _view(session: Session) -> live.View:
    """What a person sees of it; nothing unless it is asked for, by the first process."""
    experiment = session.experiment
    story = live.Story(
        title=f"{experiment.algorithm.name} on {experiment.env}",
        total=session.job.env_steps,
        agents=experiment.num_members,
        folder=str(session.folder),
    )
    shown = session.progress and distributed.is_first()
    return live.View(story, live.screen() if shown else None, session.interrupted)


class _Samples:
    """`samples.jsonl`: a few cases of the first agent for a person to read, at the start,
    about ten times a run, always at the end of a chunk, and at the end of it; nothing where
    the problem has none."""

    def __init__(self, session: Session, iteration: int, others: list[Any]) -> None:
        """Lines from that train step on belong to a run that was killed; `others` are the
        loggers that are shown a table too."""
        self._session, self._others = session, others
        chunk = chunk_length(session.job.iterations)
        self._every = chunk * math.ceil(session.job.iterations / chunk / 10)
        self._path = session.folder / "samples.jsonl"
        self._last = -1  # train step of the newest lines
        self._samples = problem_of(session.experiment.algorithm).samples
        if self._samples and distributed.is_first() and self._path.exists():
            lines = files.read_lines(self._path)
            kept = itertools.takewhile(partial(_is_before, iteration), lines)
            storage.write_text(self._path, b"".join(kept).decode())

    def write_if_due(self, progress: Progress) -> None:
        is_last = progress.iteration == self._session.job.iterations
        is_due = is_last or progress.iteration % self._every == 0
        if self._samples is None or not is_due or progress.iteration == self._last:
            return
        experiment, self._last = self._session.experiment, progress.iteration
        agents = progress.state.agent
        if distributed.several():
            agents = distributed.device_get(agents)
        if not distributed.is_first():
            return
        key = jax.random.fold_in(prng.key(experiment.seed), EVALUATION)
        agent = member(agents, 0)
        rows = self._samples(*experiment.variants[0], agent, key)
        lines = [json.dumps({"iteration": progress.iteration} | row) for row in rows]
        with files.naming(self._path), files.open_append(self._path) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
        for logger in self._others if rows else []:
            logger.show(rows, self._session.job.steps_after(progress.iteration))


def _is_before(iteration: int, line: bytes) -> bool:
    """Whether a line of samples is of a train step before; one written in part is not."""
    try:
        return bool(files.parse_json(line, "samples")["iteration"] < iteration)
    except (ValueError, KeyError, TypeError):
        return False


def _other_loggers(session: Session, iteration: int) -> list[Any]:
    """TensorBoard and Weights & Biases, going on after that train step."""
    experiment = session.experiment
    after = session.job.steps_after(iteration) if iteration else 0
    base = {"algorithm": experiment.algorithm.name, "env": experiment.env}
    base |= configs.to_dict(experiment.config)
    made: list[Any] = []
    for name in experiment.log:
        if name == "tensorboard":
            each = [
                base | overrides | {"seed": seed}
                for overrides in experiment.overrides
                for seed in experiment.seeds
            ]
            made.append(loggers.TensorBoard(session.folder, each, after))
        else:
            called = _name(session.folder)
            about = describe(experiment)
            made.append(loggers.WandB(session.folder, called, about, after))
    return made


def _name(folder: Path) -> str:
    """What a person calls a run; one of a sweep with the sweep's name."""
    for parent in folder.parents:
        if (parent / "sweep.json").exists():
            return str(folder.relative_to(parent.parent))
    return folder.name


def _begun(
    start: Start, written_to: Sequence[Any], view: live.View, job: Job
) -> tuple[Progress, list[Row]]:
    """What `start` gives; its rows are written down and shown first."""
    progress, rows = start(job)
    view.remember(rows)
    for row in rows:
        for logger in written_to:
            logger.write(row)
    return progress, rows


def _restored(
    session: Session,
    about: dict[str, Any],
    iteration: int,
    metrics: loggers.MetricsFile,
    job: Job,
) -> tuple[Progress, list[Row]]:
    """A checkpoint on the devices of the job, and the rows before it."""
    folder, report = session.folder, session.report
    progress, rows, found = _read(folder, about, iteration, job)
    changed = {k: v for k, v in versions().items() if found.versions.get(k) != v}
    if changed:
        report(f"the checkpoint was written with other versions than {changed}")
    distributed.broadcast(0)  # all have read
    if distributed.is_first():
        checkpoint.remove_after(folder, iteration)
        metrics.truncate(found.metrics_bytes)
    report(f"resuming {folder} after train step {iteration}")
    return placed_progress(job, progress), rows


def _finish(session: Session, result: Result, digests: list[str]) -> dict[str, Any]:
    """Artefact, evaluation, figure and, when all that is there, the summary.

    `digests` are those of the rows that were written.
    """
    folder, experiment = session.folder, session.experiment
    whole = [k for k in range(len(result.seeds)) if k not in result.broken]
    overrides = _final_overrides(experiment, result)
    agents = _agents(
        experiment,
        member(result.agent, np.array(whole)),
        [result.seeds[k] for k in whole],
        [overrides[k] for k in whole] if any(overrides) else (),
        whole if result.broken else (),
    )
    if distributed.is_first():
        artifact.save_agents(folder / "policy", agents)
    started = time.perf_counter()
    evaluation, returns = evaluate_agents(
        agents,
        experiment.evaluation_episodes,
        EVALUATION_SEED,
        greedy=True,
        on_nan=experiment.on_nan,
    )
    by_member = dict(zip(whole, returns, strict=True))
    broken = result.broken | {
        k: "a return of its evaluation is NaN or infinite."
        for k, x in by_member.items()
        if x is None
    }
    summary = _summary(session, result) | {
        "broken": {str(k): what for k, what in sorted(broken.items())},
        "evaluation": evaluation,
        "evaluation_by_member": [by_member.get(k) for k in range(len(result.seeds))],
        "evaluation_seconds": round(time.perf_counter() - started, 3),
    }
    if distributed.is_first():
        plotting.plot_learning_curves(
            {experiment.algorithm.name: result.history},
            folder / "learning_curve.png",
            title=experiment.env,
        )
        write_summary(folder, summary | {"metrics_digests": digests})
    distributed.broadcast(0)  # the others may read what the first has written
    return summary


def _final_overrides(experiment: Experiment, result: Result) -> list[Overrides]:
    """The overrides of each agent, as they are at the end."""
    each = [dict(x) for x in experiment.overrides for _ in experiment.seeds]
    for name in experiment.explored:
        column = distributed.device_get(result.progress.values[f"config/{name}"])
        for overrides, x in zip(each, column, strict=True):
            overrides[name] = float(x)
    return each


def _summary(session: Session, result: Result) -> dict[str, Any]:
    """What was done, how long it took, and on what."""
    experiment, plan = session.experiment, session.job.plan
    stopped = bool(result.history) and _reached(
        experiment.stop_return, result.history[-1]
    )
    all_steps = experiment.num_members * (result.env_steps - plan.warmup_env_steps)
    return {
        "algorithm": experiment.algorithm.name,
        "env": experiment.env,
        "seeds": result.seeds,
        "finished": stopped or result.iterations >= session.job.iterations,
        "iterations": result.iterations,
        "env_steps": result.env_steps,
        "updates": result.iterations * plan.updates,
        "compile_seconds": round(result.compile_seconds, 3),
        "run_seconds": round(result.run_seconds, 3),
        "env_steps_per_second": round(all_steps / max(result.run_seconds, 1e-9)),
        "hardware": hardware(),
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "versions": versions(),
    }


def _reached(stop_return: float | None, row: Row) -> bool:
    episode_return = loggers.mean_return(row)
    if stop_return is None or episode_return is None:
        return False
    return episode_return >= stop_return


def newest_progress(experiment: Experiment, folder: Path) -> tuple[Progress, list[Row]]:
    """The newest checkpoint of a run, on the host, and the rows before it.

    Raises:
      InvalidInput: there is none, or a file is damaged.
    """
    iteration = checkpoint.chosen(folder, None)
    if iteration is None:
        raise InvalidInput(f"{str(folder)!r} has no checkpoint.")
    about = describe_training(experiment)
    job = resolve(experiment, begins=False)
    progress, rows, _ = _read(folder, about, iteration, job)
    return progress, rows


def _read(
    folder: Path, about: dict[str, Any], iteration: int, job: Job
) -> tuple[Progress, list[Row], checkpoint.About]:
    """A checkpoint on the host, the rows before it, and what it says of itself."""
    progress, found = checkpoint.load(folder, progress_shapes(job), about, iteration)
    if progress.iteration > job.iterations:
        place = folder / checkpoint.FOLDER / str(iteration)
        raise storage.Damaged(
            f"{str(place)!r} says that it is of train step {progress.iteration}, and the "
            f"run has {job.iterations}: remove it."
        )
    path = folder / "metrics.jsonl"
    try:
        rows = loggers.read_metrics(path, found.metrics_bytes, found.metrics_digests)
    except InvalidInput as error:
        older = [n for n in checkpoint.saved(folder) if n < progress.iteration]
        way = "".join(
            f" Or go on from before it: --checkpoint {n}." for n in older[-1:]
        )
        raise storage.Damaged(f"{error}{way}") from error
    return progress, rows, found


def evaluate_agents(
    agents: artifact.Agents,
    num_episodes: int,
    seed: int,
    greedy: bool,
    on_nan: OnNan = "stop",
) -> tuple[dict[str, Any], list[float | None]]:
    """Evaluate a population.

    Args:
      agents: the trained population.
      num_episodes: for each seed.
      seed: of the episodes.
      greedy: the likeliest action, or a sampled one.
      on_nan: "continue" leaves out the agents with a return that is NaN or infinite, if
        there are others.

    Returns:
      The fields that `--json` prints, where a score that is not finite is None, and the
      mean return of each agent `[K]`, None for one that is left out.

    Raises:
      NonFiniteError: a return is NaN or infinite.
    """
    # Training splits `key(seed)` too: folded, the same number gives other episodes.
    key = jax.random.fold_in(prng.key(seed), EVALUATION)
    config, env, values = stacked(agents.variants)
    episodes = evaluate_population(
        agents.algorithm,
        config,
        env,
        agents.agents,
        key,
        num_episodes=num_episodes,
        greedy=greedy,
        values=values,
    )
    returns, ended = jax.device_get((episodes.episode_return, episodes.ended))
    return evaluation_of(agents, agents.env.id, returns, ended, on_nan)


def evaluation_of(
    agents: artifact.Agents,
    env: str,
    returns: np.ndarray,
    ended: np.ndarray,
    on_nan: OnNan = "stop",
) -> tuple[dict[str, Any], list[float | None]]:
    """What `evaluate_agents` says of the returns `[K, E]` of agents in an environment.

    `ended` `[K, E]` is false where an episode was cut after `evaluation.MAX_STEPS`.
    """
    finite = np.isfinite(returns).all(axis=1)
    if not (finite.all() or (on_nan == "continue" and finite.any())):
        raise NonFiniteError(
            f"an evaluation return of {env} is not finite: its rewards must be."
        )
    evaluation = {
        "algorithm": agents.algorithm.name,
        "env": env,
        "seeds": [
            seed for seed, fine in zip(agents.seeds, finite, strict=True) if fine
        ],
    } | summarize_returns(returns[finite])
    cut = int((~ended[finite]).sum())
    if cut:
        evaluation["episodes_cut"] = cut
    scores = _scores(agents)
    if scores:
        evaluation["scores"] = {
            name: [float(v) if np.isfinite(v) else None for v in x[finite]]
            for name, x in scores.items()
        }
    if agents.overrides:
        evaluation["variants"] = _by_variant(agents.overrides, returns, finite)
    means = returns.mean(axis=1)
    return evaluation, [
        float(x) if fine else None for x, fine in zip(means, finite, strict=True)
    ]


def _scores(agents: artifact.Agents) -> dict[str, np.ndarray]:
    """What the algorithm says of its agents beside their returns, each `[K]`."""
    if not agents.overrides:
        asked = agents.config, agents.env, agents.agents
        return _score(agents.algorithm, *asked, len(agents.seeds))
    each = [
        _score(agents.algorithm, *variant, member(agents.agents, np.array([k])), 1)
        for k, variant in enumerate(agents.variants)
    ]
    return {name: np.concatenate([found[name] for found in each]) for name in each[0]}


def _score(
    algorithm: Algorithm, config: Any, env: Env, agents: Any, count: int
) -> dict[str, np.ndarray]:
    """The same of so many agents with one config."""
    found = algorithm.score(config, env, agents)
    require(
        isinstance(found, Mapping) and all(isinstance(name, str) for name in found),
        f"score of {algorithm.name} returns {shorten(found)}: must be a dict with a name "
        f"for each score.",
    )
    scores = {name: np.asarray(jax.device_get(x)) for name, x in found.items()}
    for name, x in scores.items():
        require(
            x.shape == (count,) and x.dtype.kind in "fiub",
            f"score of {algorithm.name}: {name!r} has shape {x.shape} and dtype "
            f"{x.dtype}, must have a number for each agent, shape ({count},).",
        )
    return scores


def _by_variant(
    each: Sequence[Overrides], returns: np.ndarray, finite: np.ndarray
) -> list[dict[str, Any]]:
    """The same of each variant by itself, in the order of the agents `[K]`."""
    found = []
    for overrides in [x for i, x in enumerate(each) if x not in each[:i]]:
        its = np.array([other == overrides for other in each]) & finite
        if its.any():
            found.append({"overrides": overrides} | summarize_returns(returns[its]))
    return found
