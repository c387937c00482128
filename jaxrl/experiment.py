"""A training run in a folder: what `jaxrl train` does, as one Python call.

RUN/config.json      what was asked; `--config RUN/config.json` asks it again
RUN/checkpoints/     how far it is; `jaxrl resume RUN` goes on (see `jaxrl.checkpoint`)
RUN/metrics.jsonl    a line for each chunk, every metric for every seed
RUN/policy/          the trained agents (see `jaxrl.artifact`), without broken ones
RUN/summary.json     versions, device, exact counts, seconds, final evaluation
RUN/learning_curve.png
"""

import dataclasses
import fcntl
import itertools
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import artifact, checkpoint, loggers, memory, plotting, prng, storage
from jaxrl import config as configs
from jaxrl.algorithms import ALGORITHMS
from jaxrl.artifact import check_environment
from jaxrl.config import require
from jaxrl.envs import make
from jaxrl.errors import counted, did_you_mean
from jaxrl.evaluation import evaluate_population
from jaxrl.population import Parallel, device_mesh, member
from jaxrl.runner import (
    Job,
    NonFiniteError,
    OnNan,
    Progress,
    Result,
    Row,
    checked_seeds,
    num_iterations,
    placed_progress,
    prepare,
    progress_shapes,
    train,
)
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

    @cached_property
    def environment(self) -> Env:
        """The environment, built from its id: what is recorded is what was trained on."""
        return make(self.env, **self.env_params)

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.num_seeds))


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
) -> tuple[Path, dict[str, Any]]:
    """Trains, evaluates and writes everything into a run folder.

    Args:
      experiment: what to train.
      out: the run folder, new or empty; by default the first free
        `runs/ALGO-ENV-SEED-n`.
      progress: whether to draw a progress bar.
      report: called with lines for a person.
      interrupted: asked every few seconds; True ends the run early, artefacts and all.

    Returns:
      The folder and the content of its `summary.json`.

    Raises:
      InvalidInput: before anything compiles or is written.
      NonFiniteError: a number became NaN or infinite; metrics and checkpoints are kept.
      OSError: the disk is full, read-only or gone; the last checkpoint is kept.
    """
    plan = prepare(experiment.algorithm, experiment.config, experiment.environment)
    _check(experiment, plan)
    report(describe_plan(experiment, plan))
    description = _json(describe(experiment))
    folder = new_run_folder(out, experiment)
    session = Session(folder, experiment, plan, progress, report, interrupted)
    with locked(folder):
        storage.write_text(folder / "config.json", description)
        return folder, _finish(session, _train(session, None))


def resume_experiment(
    run: Path | str,
    iteration: int | None = None,
    *,
    env: str | None = None,
    algorithm: Algorithm | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
    interrupted: Callable[[], bool] = lambda: False,
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

    Returns:
      The content of its `summary.json`.

    Raises:
      InvalidInput: there is no such run or checkpoint, a file is damaged, or another
        process is at it; nothing is changed then.
      NonFiniteError, OSError: as `run_experiment`.
    """
    folder = Path(run)
    experiment = read_experiment(folder, env, algorithm)
    plan = prepare(experiment.algorithm, experiment.config, experiment.environment)
    _check(experiment, plan)
    session = Session(folder, experiment, plan, progress, report, interrupted)
    with locked(folder):
        summary = _finished_summary(folder)
        if summary is not None and iteration is None:
            report(f"{folder} is finished: there is nothing to resume.")
            return summary
        iteration = checkpoint.chosen(folder, iteration)
        if iteration is None:
            report(f"{folder} has no checkpoint yet: training from the start.")
        return _finish(session, _train(session, iteration))


def _train(session: Session, iteration: int | None) -> Result:
    """`train`, its rows going to the metrics file and the progress bar.

    From the checkpoint of that iteration, or from the start.
    """
    experiment, plan, folder = session.experiment, session.plan, session.folder
    total = plan.warmup_env_steps + session.iterations * plan.env_steps
    about = describe_training(experiment)
    start = None
    if iteration is not None:
        start = partial(_restored, folder, about, iteration, session.report)
    with (
        closing(loggers.MetricsFile(folder / "metrics.jsonl")) as metrics,
        closing(loggers.ProgressBar(total, disable=not session.progress)) as bar,
    ):
        if iteration is None:
            metrics.truncate(0)
        saver = checkpoint.Saver(
            folder,
            about | {"versions": versions()},
            metrics.sync,
            experiment.checkpoint_every,
            experiment.keep,
            iteration,
        )

        def on_chunk(row: Row) -> None:
            metrics.write(row)
            bar.update(row)

        def between(progress: Progress) -> bool:
            saver.save_if_due(progress)
            return session.interrupted()

        result = train(
            experiment.algorithm,
            experiment.config,
            experiment.environment,
            seed=experiment.seed,
            num_seeds=experiment.num_seeds,
            iterations=session.iterations,
            parallel=experiment.parallel,
            num_devices=experiment.num_devices,
            start=start,
            on_chunk=on_chunk,
            stop=partial(_reached, experiment.stop_return),
            between=between,
            on_nan=experiment.on_nan,
            report=session.report,
        )
        saver.save(result.progress)
        return result


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
    checkpoint.remove_after(folder, iteration)
    os.truncate(folder / "metrics.jsonl", metrics_bytes)
    report(f"resuming {folder} after train step {iteration}")
    return placed_progress(job, progress), rows


def evaluate_agents(
    agents: artifact.Agents, num_episodes: int, seed: int, greedy: bool
) -> tuple[dict[str, Any], list[float]]:
    """Evaluates a population.

    Args:
      agents: the trained population.
      num_episodes: for each seed.
      seed: of the episodes.
      greedy: the likeliest action, or a sampled one.

    Returns:
      The fields that `--json` prints, and the mean return of each seed `[K]`.

    Raises:
      NonFiniteError: a return is NaN or infinite.
    """
    # Training splits `key(seed)` too: folded, the same number gives other episodes.
    key = jax.random.fold_in(prng.key(seed), EVALUATION)
    episodes = evaluate_population(
        agents.algorithm,
        agents.config,
        agents.env,
        agents.agents,
        key,
        num_episodes=num_episodes,
        greedy=greedy,
    )
    returns = jax.device_get(episodes.episode_return)
    if not np.isfinite(returns).all():
        raise NonFiniteError(
            f"an evaluation return of {agents.env.id} is not finite: its rewards must be."
        )
    evaluation = {
        "algorithm": agents.algorithm.name,
        "env": agents.env.id,
        "seeds": list(agents.seeds),
    } | summarize_returns(returns)
    return evaluation, returns.mean(axis=1).tolist()


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
        "config": configs.to_dict(experiment.config),
    }


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
    }


def read_experiment(
    folder: Path, env: str | None = None, algorithm: Algorithm | None = None
) -> Experiment:
    """The experiment of a run folder, from its `config.json`.

    Raises:
      InvalidInput: it is no run folder, or not one of this version of jaxrl.
    """
    try:
        content = json.loads((folder / "config.json").read_text())
        name, config = content.pop("algorithm"), content.pop("config")
        experiment_env = content["env"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InvalidInput(
            f"RUN = {str(folder)!r} has no readable config.json ({error}): give the "
            f"folder of a `jaxrl train`."
        ) from error
    check_environment(experiment_env, env, folder)
    if algorithm is None and name not in ALGORITHMS:
        raise InvalidInput(
            f"algorithm = {name!r} in {folder / 'config.json'}: this version of jaxrl "
            f"has {', '.join(ALGORITHMS)}."
        )
    algorithm = algorithm or ALGORITHMS[name]
    known = {field.name for field in dataclasses.fields(Experiment)}
    for setting in content:
        require(
            setting in known,
            f"{setting} in {folder / 'config.json'} is not a setting"
            f"{did_you_mean(setting, known)}.",
        )
    return Experiment(algorithm, configs.from_dict(algorithm.Config, config), **content)


def planned_iterations(experiment: Experiment, plan: Plan) -> int:
    """Train steps of the whole run, unless a return stops it before."""
    iterations = num_iterations(plan, experiment.config.total_steps)
    return min(iterations, experiment.stop_iterations or iterations)


def describe_plan(experiment: Experiment, plan: Plan) -> str:
    """The exact plan, for a person to read before anything compiles."""
    iterations = planned_iterations(experiment, plan)
    steps = plan.warmup_env_steps + iterations * plan.env_steps
    warmup = ""
    if plan.warmup_env_steps:
        warmup = f"{plan.warmup_env_steps:,} warm-up steps, then "
    lines = [
        f"{experiment.algorithm.name} on {experiment.env}, seeds {experiment.seeds}",
        f"plan for each seed: {warmup}{iterations:,} iterations of "
        f"{plan.env_steps:,} environment steps and {counted(plan.updates, 'update')}: "
        f"{steps:,} environment steps, {counted(iterations * plan.updates, 'update')}",
    ]
    asked = int(experiment.config.total_steps)
    if steps > asked:
        lines.append(
            f"(total_steps = {asked:,} is not a whole number of iterations: "
            f"running the next one, {steps:,})"
        )
    return "\n".join(lines)


def new_run_folder(out: Path | str | None, experiment: Experiment) -> Path:
    """Makes the run folder; one that holds a run already is refused, not overwritten."""
    if out is None:
        return _first_free_folder(experiment)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What a killed process has not moved to its place is nothing yet.
        occupied = any(path.name != "config.json.new" for path in folder.iterdir())
    except OSError as error:
        raise InvalidInput(
            f"out = {str(out)!r} cannot be a run folder ({error}): give another one."
        ) from error
    if occupied:
        raise InvalidInput(
            f"out = {str(out)!r} is not empty, it may hold a run: give a new folder."
        )
    return folder


def _first_free_folder(experiment: Experiment) -> Path:
    """`runs/ALGO-ENV-SEED-n` with the smallest n that is free."""
    runs = Path("runs")
    try:
        runs.mkdir(exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"the folder 'runs' cannot be made here ({error}): give --out."
        ) from error
    env_name = re.sub(r"[^\w.-]+", "_", experiment.env)
    for n in itertools.count():
        folder = runs / f"{experiment.algorithm.name}-{env_name}-{experiment.seed}-{n}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise InvalidInput(
                f"{str(folder)!r} cannot be made ({error}): give --out."
            ) from error
    raise AssertionError("unreachable: the numbers do not end")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run folder; the system lets go of it if we die."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InvalidInput(
            f"RUN = {str(folder)!r} is in use by another process: wait for it, or stop it."
        ) from error
    else:
        yield
    finally:
        os.close(descriptor)


def _check(experiment: Experiment, plan: Plan) -> None:
    def check(name: str, kind: Any, **limits: float) -> None:
        configs.check_value(name, kind, getattr(experiment, name), **limits)

    checked_seeds(experiment.seed, experiment.num_seeds)
    check("stop_return", float | None)
    check("stop_iterations", int | None, low=1)
    check("evaluation_episodes", int, low=1)
    check("checkpoint_every", float, low=0)
    check("keep", int, low=1)
    check("parallel", Parallel)
    check("on_nan", OnNan)
    check("deterministic", bool)
    device_mesh(plan, experiment.num_seeds, experiment.parallel, experiment.num_devices)
    memory.check(
        experiment.algorithm,
        configs.with_floats(experiment.config),
        experiment.environment,
        plan,
        experiment.num_seeds,
    )


def _reached(stop_return: float | None, row: Row) -> bool:
    episode_return = loggers.mean_return(row)
    if stop_return is None or episode_return is None:
        return False
    return episode_return >= stop_return


def _finish(session: Session, result: Result) -> dict[str, Any]:
    """Artefact, evaluation, figure and, when all that is there, the summary."""
    folder, experiment = session.folder, session.experiment
    whole = [k for k, seed in enumerate(result.seeds) if seed not in result.broken]
    agents = artifact.Agents(
        experiment.algorithm,
        experiment.config,
        experiment.environment,
        experiment.env_params,
        member(result.agent, np.array(whole)),
        [result.seeds[k] for k in whole],
    )
    artifact.save_agents(folder / "policy", agents)
    started = time.perf_counter()
    evaluation, by_seed = evaluate_agents(
        agents, experiment.evaluation_episodes, EVALUATION_SEED, greedy=True
    )
    summary = _summary(session, result) | {
        "evaluation": evaluation,
        "evaluation_by_seed": by_seed,
        "evaluation_seconds": round(time.perf_counter() - started, 3),
    }
    plotting.plot_learning_curves(
        {experiment.algorithm.name: result.history},
        folder / "learning_curve.png",
        title=experiment.env,
    )
    storage.write_text(folder / "summary.json", _json(summary))
    return summary


def _finished_summary(folder: Path) -> dict[str, Any] | None:
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
    all_steps = experiment.num_seeds * (result.env_steps - plan.warmup_env_steps)
    return {
        "algorithm": experiment.algorithm.name,
        "env": experiment.env,
        "seeds": result.seeds,
        "broken": {str(seed): what for seed, what in result.broken.items()},
        "finished": stopped or result.iterations >= session.iterations,
        "iterations": result.iterations,
        "env_steps": result.env_steps,
        "updates": result.iterations * plan.updates,
        "compile_seconds": round(result.compile_seconds, 3),
        "run_seconds": round(result.run_seconds, 3),
        "env_steps_per_second": round(all_steps / result.run_seconds),
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
