"""A training run in a folder: what `jaxrl train` does, as one Python call.

RUN/config.json      what was asked; `--config RUN/config.json` asks it again
RUN/checkpoints/     how far it is; `jaxrl resume RUN` goes on (see `jaxrl.checkpoint`)
RUN/metrics.jsonl    a line for each chunk, every metric for every seed
RUN/policy/          the trained agents (see `jaxrl.artifact`), without broken ones
RUN/summary.json     versions, device, exact counts, seconds, final evaluation
RUN/learning_curve.png
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import (
    artifact,
    checkpoint,
    folders,
    loggers,
    machines,
    memory,
    pbt,
    plotting,
    prng,
    storage,
)
from jaxrl import config as configs
from jaxrl.algorithms import ALGORITHMS
from jaxrl.artifact import Own, check_environment, setting
from jaxrl.config import require
from jaxrl.envs import make
from jaxrl.errors import counted, did_you_mean
from jaxrl.evaluation import evaluate_population
from jaxrl.population import Parallel, device_mesh, member
from jaxrl.runner import (
    Adapt,
    Job,
    NonFiniteError,
    OnNan,
    Progress,
    Result,
    Row,
    checked_seeds,
    common_iterations,
    placed_progress,
    planned_job,
    prepare,
    progress_shapes,
    train,
)
from jaxrl.settings import Setting, stacked
from jaxrl.statistics import summarize_returns
from jaxrl.types import Algorithm, Env, InvalidInput, Plan

EVALUATION_SEED = 0
"""Seed of the evaluation at the end of a run, that of `jaxrl evaluate` by default."""

EVALUATION = 0x65766C
"""Folded into evaluation keys, to keep them apart from those of training."""


@dataclass(frozen=True)
class Experiment:
    """What to train, and when to stop."""

    algorithm: Algorithm
    config: Any
    env: str
    """An id of `make`; an environment of your own is registered, or "module:factory"."""
    env_params: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `make`."""
    seed: int = 0
    num_seeds: int = 1
    """Of each setting."""
    settings: Sequence[Own] = ({},)
    """Values that replace those of `config` and `env_params`, by name ("learning_rate",
    "env.gravity"): as many populations of `num_seeds` agents, in one program."""
    varied: Sequence[str] = ()
    """Numbers that are data of each agent even if all settings agree; see `train`."""
    explored: dict[str, Sequence[float]] = field(default_factory=dict)
    """Fields of the config that population-based training changes while it trains, each
    with its lowest and highest value; none for no such training (see `jaxrl.pbt`)."""
    stop_return: float | None = None
    """Stops once the training return, averaged over a chunk and all seeds, reaches it."""
    stop_iterations: int | None = None
    """Stops after so many train steps, if `total_steps` is not reached before."""
    evaluation_episodes: int = 128
    """Greedy episodes for each seed at the end."""
    parallel: Parallel = "auto"
    """What is spread over several devices; see `population.device_mesh`."""
    num_devices: int | None = None
    """How many devices; None for as many as divide the work evenly."""
    on_nan: OnNan = "stop"
    """When something of an agent becomes NaN or infinite: end the run, or leave that
    agent as it was and go on with the others."""
    deterministic: bool = False
    """Whether a GPU is asked for the same result every time; a CPU gives it anyway. Only
    the command line can ask: `platform.use_deterministic_operations`."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints; there is also one at the start and one at the end."""
    keep: int = 2
    """How many checkpoints are kept, the newest."""
    log: Sequence[loggers.Log] = ()
    """Where the metrics go beside `metrics.jsonl`: "tensorboard", "wandb"."""

    @cached_property
    def environment(self) -> Env:
        """The environment, built from its id: what is recorded is what was trained on."""
        return make(self.env, **self.env_params)

    @cached_property
    def pairs(self) -> list[Setting]:
        """Config and environment of each setting."""
        given = (self.algorithm, self.config, self.environment, self.env_params)
        return [setting(*given, own) for own in self.settings]

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.num_seeds))

    @property
    def adapt(self) -> Adapt | None:
        return partial(pbt.adapt, self.explored) if self.explored else None

    @property
    def num_members(self) -> int:
        return len(self.settings) * self.num_seeds


Start = Callable[[Job], tuple[Progress, list[Row]]]
"""Where a run begins, if not at its beginning: the progress, and the rows so far."""


@dataclass(frozen=True)
class Session:
    """A process that is at an experiment, in its folder."""

    folder: Path
    experiment: Experiment
    plan: Plan
    progress: bool
    report: Callable[[str], None]
    interrupted: Callable[[], bool]

    @property
    def iterations(self) -> int:
        """Train steps that are wanted."""
        return planned_iterations(self.experiment, self.plan)


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
    """Trains, evaluates and writes everything into a run folder.

    Args:
      experiment: what to train.
      out: the run folder, new or empty; by default the first free
        `runs/ALGO-ENV-SEED-n`.
      progress: whether to draw a progress bar.
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
    plan = checked_plan(experiment)
    report(describe_plan(experiment, plan))
    description = _json(describe(experiment))
    folder = folders.agreed(out, folder_name(experiment))
    session = Session(folder, experiment, plan, progress, report, interrupted)
    with folders.locked(folder):
        if machines.is_first():
            storage.write_text(folder / "config.json", description)
        result = _train(session, None, start)
        on_result(result)
        return folder, _finish(session, result)


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
    """Goes on with a run that was killed or interrupted, as if it had not been.

    Args:
      run: the run folder.
      iteration: the checkpoint to go on from, by default the newest; newer ones are
        removed.
      env: the environment's id, needed where it is "module:factory", which is code.
      algorithm: needed where it was a variant and not one of `ALGORITHMS`.
      progress: whether to draw a progress bar.
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
    plan = checked_plan(experiment)
    session = Session(folder, experiment, plan, progress, report, interrupted)
    with folders.locked(folder):
        summary = finished_summary(folder)
        if summary is not None and iteration is None:
            report(f"{folder} is finished: there is nothing to resume.")
            return summary
        iteration = checkpoint.chosen(folder, iteration)
        if iteration is None:
            report(f"{folder} has no checkpoint yet: training from the start.")
        result = _train(session, iteration, start)
        on_result(result)
        return _finish(session, result)


def _train(session: Session, iteration: int | None, start: Start | None) -> Result:
    """`train`, its rows going to the metrics file and the progress bar.

    From the checkpoint of that iteration, or from the start.
    """
    experiment, plan, folder = session.experiment, session.plan, session.folder
    total = plan.warmup_env_steps + session.iterations * plan.env_steps
    about = describe_training(experiment)
    first = machines.is_first()
    if iteration is not None:
        start = partial(_restored, folder, about, iteration, session.report)
    with ExitStack() as stack:
        metrics = loggers.MetricsFile(
            folder / "metrics.jsonl" if first else Path(os.devnull)
        )
        bar = loggers.ProgressBar(total, disable=not (first and session.progress))
        others = _other_loggers(session, iteration or 0) if first else []
        for logger in (metrics, bar, *others):
            stack.enter_context(closing(logger))
        if iteration is None:
            if first:
                metrics.truncate(0)
            start = start and partial(_begun, start, metrics.write)
        saver = checkpoint.Saver(
            folder,
            about | {"versions": versions()},
            metrics.sync,
            experiment.checkpoint_every,
            experiment.keep,
            iteration,
        )

        def on_chunk(row: Row) -> None:
            for logger in (metrics, bar, *others):
                logger.write(row)

        def between(progress: Progress) -> bool:
            saver.save_if_due(progress)
            return session.interrupted()

        result = train(
            experiment.algorithm,
            [config for config, _ in experiment.pairs],
            [env for _, env in experiment.pairs],
            seed=experiment.seed,
            num_seeds=experiment.num_seeds,
            varied=experiment.varied,
            iterations=session.iterations,
            parallel=experiment.parallel,
            num_devices=experiment.num_devices,
            start=start,
            on_chunk=on_chunk,
            stop=partial(_reached, experiment.stop_return),
            between=between,
            adapt=experiment.adapt,
            on_nan=experiment.on_nan,
            report=session.report,
        )
        saver.save(result.progress)
        return result


def _other_loggers(session: Session, iteration: int) -> list[Any]:
    """TensorBoard and Weights & Biases, going on after that train step."""
    experiment, plan = session.experiment, session.plan
    after = plan.warmup_env_steps + iteration * plan.env_steps if iteration else 0
    base = {"algorithm": experiment.algorithm.name, "env": experiment.env}
    base |= configs.to_dict(experiment.config)
    made: list[Any] = []
    for name in experiment.log:
        if name == "tensorboard":
            each = [
                base | own | {"seed": seed}
                for own in experiment.settings
                for seed in experiment.seeds
            ]
            made.append(loggers.TensorBoard(session.folder, each, after))
        else:
            made.append(loggers.WandB(session.folder, describe(experiment), after))
    return made


def _begun(
    start: Start, write: Callable[[Row], None], job: Job
) -> tuple[Progress, list[Row]]:
    """What `start` gives; its rows are written down first."""
    progress, rows = start(job)
    for row in rows:
        write(row)
    return progress, rows


def _restored(
    folder: Path,
    about: dict[str, Any],
    iteration: int,
    report: Callable[[str], None],
    job: Job,
) -> tuple[Progress, list[Row]]:
    """A checkpoint on the devices of the job, and the rows before it."""
    progress, metrics_bytes, written_with = checkpoint.load(
        folder, progress_shapes(job), about, iteration
    )
    try:
        rows = loggers.read_metrics(folder / "metrics.jsonl", metrics_bytes)
    except (OSError, ValueError) as error:
        raise storage.Damaged(
            f"{folder / 'metrics.jsonl'} is damaged ({error}): train anew."
        ) from error
    changed = {k: v for k, v in versions().items() if written_with.get(k) != v}
    if changed:
        report(f"the checkpoint was written with other versions than {changed}")
    machines.agreed(0)  # all have read
    if machines.is_first():
        checkpoint.remove_after(folder, iteration)
        os.truncate(folder / "metrics.jsonl", metrics_bytes)
    report(f"resuming {folder} after train step {iteration}")
    return placed_progress(job, progress), rows


def evaluate_agents(
    agents: artifact.Agents,
    num_episodes: int,
    seed: int,
    greedy: bool,
    on_nan: OnNan = "stop",
) -> tuple[dict[str, Any], list[float | None]]:
    """Evaluates a population.

    Args:
      agents: the trained population.
      num_episodes: for each seed.
      seed: of the episodes.
      greedy: the likeliest action, or a sampled one.
      on_nan: "continue" leaves out the agents with a return that is NaN or infinite, if
        there are others.

    Returns:
      The fields that `--json` prints, and the mean return of each agent `[K]`, None for
      one that is left out.

    Raises:
      NonFiniteError: a return is NaN or infinite.
    """
    # Training splits `key(seed)` too: folded, the same number gives other episodes.
    key = jax.random.fold_in(prng.key(seed), EVALUATION)
    config, env, values = stacked(agents.settings)
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
    returns = jax.device_get(episodes.episode_return)
    finite = np.isfinite(returns).all(axis=1)
    if not (finite.all() or (on_nan == "continue" and finite.any())):
        raise NonFiniteError(
            f"an evaluation return of {agents.env.id} is not finite: its rewards must be."
        )
    evaluation = {
        "algorithm": agents.algorithm.name,
        "env": agents.env.id,
        "seeds": [
            seed for seed, fine in zip(agents.seeds, finite, strict=True) if fine
        ],
    } | summarize_returns(returns[finite])
    means = returns.mean(axis=1)
    return evaluation, [
        float(x) if fine else None for x, fine in zip(means, finite, strict=True)
    ]


def describe(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON, which `--config` reads."""
    return {
        "algorithm": experiment.algorithm.name,
        "env": experiment.env,
        "env_params": experiment.env_params,
        "seed": experiment.seed,
        "num_seeds": experiment.num_seeds,
        "stop_return": experiment.stop_return,
        "stop_iterations": experiment.stop_iterations,
        "evaluation_episodes": experiment.evaluation_episodes,
        "parallel": experiment.parallel,
        "num_devices": experiment.num_devices,
        "on_nan": experiment.on_nan,
        "deterministic": experiment.deterministic,
        "checkpoint_every": experiment.checkpoint_every,
        "keep": experiment.keep,
        "log": list(experiment.log),
        "config": configs.to_dict(experiment.config),
    } | _settings(experiment)


def describe_training(experiment: Experiment) -> dict[str, Any]:
    """What two runs must have in common to be one: a checkpoint holds it."""
    algorithm = experiment.algorithm
    return {
        "algorithm": algorithm.name,
        "is_variant": algorithm != ALGORITHMS.get(algorithm.name),
        "env": experiment.env,
        "env_params": experiment.env_params,
        "seed": experiment.seed,
        "num_seeds": experiment.num_seeds,
        "config": json.loads(json.dumps(configs.to_dict(experiment.config))),
    } | _settings(experiment)


def _settings(experiment: Experiment) -> dict[str, Any]:
    """Nothing for one population, as before there could be several."""
    if list(experiment.settings) == [{}]:
        return {}
    return {
        "settings": list(experiment.settings),
        "varied": list(experiment.varied),
        "explored": experiment.explored,
    }


def read_experiment(
    folder: Path, env: str | None = None, algorithm: Algorithm | None = None
) -> Experiment:
    """The experiment of a run folder, from its `config.json`.

    Raises:
      InvalidInput: it is no run folder, or not one of this version of jaxrl.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text())
        return as_experiment(content, path, env, algorithm)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"RUN = {str(folder)!r} has no readable config.json ({error}): give the "
            f"folder of a `jaxrl train`."
        ) from error


def as_experiment(
    content: dict[str, Any],
    path: Path,
    env: str | None = None,
    algorithm: Algorithm | None = None,
) -> Experiment:
    """The experiment that `describe` described, read from a file.

    Raises:
      InvalidInput: it is not one of this version of jaxrl.
      KeyError, AttributeError, TypeError: it is none at all.
    """
    content = dict(content)
    name, config = content.pop("algorithm"), content.pop("config")
    check_environment(content["env"], env, path.parent)
    if algorithm is None and name not in ALGORITHMS:
        raise InvalidInput(
            f"algorithm = {name!r} in {path}: this version of jaxrl has "
            f"{', '.join(ALGORITHMS)}."
        )
    algorithm = algorithm or ALGORITHMS[name]
    known = {field.name for field in dataclasses.fields(Experiment)}
    for setting_name in content:
        require(
            setting_name in known,
            f"{setting_name} in {path} is not a setting"
            f"{did_you_mean(setting_name, known)}.",
        )
    return Experiment(algorithm, configs.from_dict(algorithm.Config, config), **content)


def named_env(path: Path) -> str | None:
    """The environment that a `config.json` or `sweep.json` names, if it names one.

    For those that only read results and run nothing of it.
    """
    try:
        content = json.loads(path.read_text())
        return str(content.get("experiment", content)["env"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def planned_iterations(experiment: Experiment, plan: Plan) -> int:
    """Train steps of the whole run, unless a return stops it before."""
    iterations = common_iterations(plan, experiment.pairs)
    return min(iterations, experiment.stop_iterations or iterations)


def describe_plan(experiment: Experiment, plan: Plan) -> str:
    """The exact plan, for a person to read before anything compiles."""
    iterations = planned_iterations(experiment, plan)
    steps = plan.warmup_env_steps + iterations * plan.env_steps
    warmup = ""
    if plan.warmup_env_steps:
        warmup = f"{plan.warmup_env_steps:,} warm-up steps, then "
    seeds = f"seeds {experiment.seeds}"
    if len(experiment.settings) > 1:
        seeds += f" with each of {len(experiment.settings)} settings"
    lines = [
        f"{experiment.algorithm.name} on {experiment.env}, {seeds}",
        f"plan for each seed: {warmup}{iterations:,} iterations of "
        f"{plan.env_steps:,} environment steps and {counted(plan.updates, 'update')}: "
        f"{steps:,} environment steps, {counted(iterations * plan.updates, 'update')}",
    ]
    asked = int(experiment.pairs[0][0].total_steps)
    if steps > asked:
        lines.append(
            f"(total_steps = {asked:,} is not a whole number of iterations: "
            f"running the next one, {steps:,})"
        )
    return "\n".join(lines)


def folder_name(experiment: Experiment) -> str:
    """What the run folder is called, without the number that makes it new."""
    return f"{experiment.algorithm.name}-{experiment.env}-{experiment.seed}"


def checked_plan(experiment: Experiment) -> Plan:
    """What the experiment will do, if it can.

    Raises:
      InvalidInput: before anything compiles.
    """
    # Its own mistakes, before those of the settings.
    plan = prepare(experiment.algorithm, experiment.config, experiment.environment)
    require(
        isinstance(experiment.settings, Sequence)
        and len(experiment.settings) > 0
        and all(isinstance(own, dict) for own in experiment.settings),
        f"settings = {experiment.settings!r}: must be a list of tables of values.",
    )

    def check(name: str, kind: Any, **limits: float) -> None:
        configs.check_value(name, kind, getattr(experiment, name), **limits)

    checked_seeds(experiment.seed, experiment.num_seeds)
    check("stop_return", float | None)
    check("stop_iterations", int | None, low=1)
    check("evaluation_episodes", int, low=1)
    check("checkpoint_every", float, low=0)
    check("keep", int, low=1)
    for name in experiment.log:
        configs.check_value("log", loggers.Log, name)
        loggers.check_installed(name)
    check("parallel", Parallel)
    check("on_nan", OnNan)
    check("deterministic", bool)
    for config, env in experiment.pairs:
        prepare(experiment.algorithm, config, env)
    count = experiment.num_members
    device_mesh(plan, count, experiment.parallel, experiment.num_devices)
    config, env, _ = stacked(experiment.pairs, experiment.varied)
    memory.check(experiment.algorithm, config, env, plan, count)
    return plan


def _reached(stop_return: float | None, row: Row) -> bool:
    episode_return = loggers.mean_return(row)
    if stop_return is None or episode_return is None:
        return False
    return episode_return >= stop_return


def _finish(session: Session, result: Result) -> dict[str, Any]:
    """Artefact, evaluation, figure and, when all that is there, the summary."""
    folder, experiment = session.folder, session.experiment
    whole = [k for k in range(len(result.seeds)) if k not in result.broken]
    own = _own_values(experiment, result)
    agents = artifact.Agents(
        experiment.algorithm,
        experiment.config,
        experiment.environment,
        experiment.env_params,
        member(result.agent, np.array(whole)),
        [result.seeds[k] for k in whole],
        [own[k] for k in whole] if any(own) else (),
        whole if result.broken else (),
    )
    if machines.is_first():
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
    if machines.is_first():
        plotting.plot_learning_curves(
            {experiment.algorithm.name: result.history},
            folder / "learning_curve.png",
            title=experiment.env,
        )
        storage.write_text(folder / "summary.json", _json(summary))
    machines.agreed(0)  # the others may read what the first has written
    return summary


def saved_progress(folder: Path, experiment: Experiment) -> tuple[Progress, list[Row]]:
    """The newest checkpoint of a run, on the host, and the rows before it.

    Raises:
      InvalidInput: there is none, or a file is damaged.
    """
    job, _ = planned_job(
        experiment.algorithm,
        [config for config, _ in experiment.pairs],
        [env for _, env in experiment.pairs],
        seed=experiment.seed,
        num_seeds=experiment.num_seeds,
        varied=experiment.varied,
        parallel=experiment.parallel,
        num_devices=experiment.num_devices,
        on_nan=experiment.on_nan,
    )
    iteration = checkpoint.chosen(folder, None)
    if iteration is None:
        raise InvalidInput(f"{str(folder)!r} has no checkpoint.")
    about = describe_training(experiment)
    progress, size, _ = checkpoint.load(folder, progress_shapes(job), about, iteration)
    return progress, loggers.read_metrics(folder / "metrics.jsonl", size)


def _own_values(experiment: Experiment, result: Result) -> list[Own]:
    """What each agent has of its own, as it is at the end."""
    own = [dict(own) for own in experiment.settings for _ in experiment.seeds]
    for name in experiment.explored:
        column = machines.fetched(result.progress.values[f"config/{name}"])
        for values, x in zip(own, column, strict=True):
            values[name] = float(x)
    return own


def finished_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a run that has reached its end, or None."""
    path = folder / "summary.json"
    if not path.exists():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
        return summary if summary["finished"] else None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{path} is damaged ({error}): remove it, and resume again."
        ) from error


def _summary(session: Session, result: Result) -> dict[str, Any]:
    """What was done, how long it took, and on what."""
    experiment, plan = session.experiment, session.plan
    stopped = bool(result.history) and _reached(
        experiment.stop_return, result.history[-1]
    )
    all_steps = experiment.num_members * (result.env_steps - plan.warmup_env_steps)
    return {
        "algorithm": experiment.algorithm.name,
        "env": experiment.env,
        "seeds": result.seeds,
        "finished": stopped or result.iterations >= session.iterations,
        "iterations": result.iterations,
        "env_steps": result.env_steps,
        "updates": result.iterations * plan.updates,
        "compile_seconds": round(result.compile_seconds, 3),
        "run_seconds": round(result.run_seconds, 3),
        "env_steps_per_second": round(all_steps / max(result.run_seconds, 1e-9)),
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("jaxrl", "jax", "jaxlib", "flax", "optax", "gymnax", "distrax", "numpy")
    return {"python": platform.python_version()} | {
        package: metadata.version(package) for package in packages
    }


def _json(content: dict[str, Any]) -> str:
    """Raises `InvalidInput` for what JSON cannot hold, before anything is written."""
    try:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"{content.get('env_params')} cannot be recorded as JSON ({error}): give "
            f"plain, finite numbers."
        ) from error
