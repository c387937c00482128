"""A training run in a folder: what `jaxrl train` does, as one Python call.

RUN/config.json      what was asked; `--config RUN/config.json` asks it again
RUN/metrics.jsonl    a line for each chunk, every metric for every seed
RUN/policy/          the trained agents (see `jaxrl.artifact`)
RUN/summary.json     versions, device, exact counts, seconds, final evaluation
RUN/learning_curve.png
"""

import itertools
import json
import platform
import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import artifact, loggers, plotting, prng
from jaxrl import config as configs
from jaxrl.envs import make
from jaxrl.errors import counted
from jaxrl.evaluation import evaluate_population
from jaxrl.runner import (
    NonFiniteError,
    Parallel,
    Result,
    Row,
    checked_seeds,
    device_mesh,
    num_iterations,
    prepare,
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
    """What is spread over several devices; see `runner.device_mesh`."""
    num_devices: int | None = None
    """How many devices; None for as many as divide the work evenly."""

    @cached_property
    def environment(self) -> Env:
        """The environment, built from its id: what is recorded is what was trained on."""
        return make(self.env, **self.env_params)

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.num_seeds))


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
      interrupted: asked after each chunk; True ends the run early, artefacts and all.

    Returns:
      The folder and the content of its `summary.json`.

    Raises:
      InvalidInput: before anything compiles or is written.
      NonFiniteError: a metric became NaN or infinite; the metrics so far are kept.
    """
    plan = prepare(experiment.algorithm, experiment.config, experiment.environment)
    _check(experiment, plan)
    iterations = num_iterations(plan, experiment.config.total_steps)
    if experiment.stop_iterations is not None:
        iterations = min(iterations, experiment.stop_iterations)
    report(describe_plan(experiment, plan, iterations))
    description = _json(describe(experiment))
    folder = new_run_folder(out, experiment)
    (folder / "config.json").write_text(description)

    result = _train(experiment, plan, iterations, folder, progress, report, interrupted)
    return folder, _finish(folder, experiment, plan, result)


def _train(
    experiment: Experiment,
    plan: Plan,
    iterations: int,
    folder: Path,
    progress: bool,
    report: Callable[[str], None],
    interrupted: Callable[[], bool],
) -> Result:
    """`train`, its rows going to the metrics file and the progress bar."""
    total = plan.warmup_env_steps + iterations * plan.env_steps
    with (
        closing(loggers.MetricsFile(folder / "metrics.jsonl")) as metrics,
        closing(loggers.ProgressBar(total, disable=not progress)) as bar,
    ):

        def on_chunk(row: Row) -> None:
            metrics.write(row)
            bar.update(row)

        def stop(row: Row) -> bool:
            return interrupted() or _reached(experiment.stop_return, row)

        return train(
            experiment.algorithm,
            experiment.config,
            experiment.environment,
            seed=experiment.seed,
            num_seeds=experiment.num_seeds,
            iterations=iterations,
            parallel=experiment.parallel,
            num_devices=experiment.num_devices,
            on_chunk=on_chunk,
            stop=stop,
            report=report,
        )


def evaluate_agents(
    policy: artifact.Policy, num_episodes: int, seed: int, greedy: bool
) -> tuple[dict[str, Any], list[float]]:
    """Evaluates a population.

    Args:
      policy: the trained population.
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
        policy.algorithm,
        policy.config,
        policy.env,
        policy.agents,
        key,
        num_episodes=num_episodes,
        greedy=greedy,
    )
    returns = jax.device_get(episodes.episode_return)
    if not np.isfinite(returns).all():
        raise NonFiniteError(
            f"an evaluation return of {policy.env.id} is not finite: its rewards must be."
        )
    evaluation = {
        "algorithm": policy.algorithm.name,
        "env": policy.env.id,
        "seeds": list(policy.seeds),
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
        "config": configs.to_dict(experiment.config),
    }


def describe_plan(experiment: Experiment, plan: Plan, iterations: int) -> str:
    """The exact plan, for a person to read before anything compiles."""
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
        occupied = any(folder.iterdir())
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


def _check(experiment: Experiment, plan: Plan) -> None:
    def check(name: str, kind: Any, **limits: float) -> None:
        configs.check_value(name, kind, getattr(experiment, name), **limits)

    checked_seeds(experiment.seed, experiment.num_seeds)
    check("stop_return", float | None)
    check("stop_iterations", int | None, low=1)
    check("evaluation_episodes", int, low=1)
    check("parallel", Parallel)
    device_mesh(plan, experiment.num_seeds, experiment.parallel, experiment.num_devices)


def _reached(stop_return: float | None, row: Row) -> bool:
    episode_return = loggers.mean_return(row)
    if stop_return is None or episode_return is None:
        return False
    return episode_return >= stop_return


def _finish(
    folder: Path, experiment: Experiment, plan: Plan, result: Result
) -> dict[str, Any]:
    """Artefact, evaluation, summary and figure."""
    policy = artifact.Policy(
        experiment.algorithm,
        experiment.config,
        experiment.environment,
        experiment.env_params,
        result.agent,
        result.seeds,
    )
    artifact.save_policy(folder / "policy", policy)
    started = time.perf_counter()
    evaluation, by_seed = evaluate_agents(
        policy, experiment.evaluation_episodes, EVALUATION_SEED, greedy=True
    )
    summary = _summary(experiment, plan, result) | {
        "evaluation": evaluation,
        "evaluation_by_seed": by_seed,
        "evaluation_seconds": round(time.perf_counter() - started, 3),
    }
    (folder / "summary.json").write_text(_json(summary))
    plotting.plot_learning_curves(
        {experiment.algorithm.name: result.history},
        folder / "learning_curve.png",
        title=experiment.env,
    )
    return summary


def _summary(experiment: Experiment, plan: Plan, result: Result) -> dict[str, Any]:
    """What was done, how long it took, and on what."""
    all_steps = experiment.num_seeds * (result.env_steps - plan.warmup_env_steps)
    return {
        "algorithm": experiment.algorithm.name,
        "env": experiment.env,
        "seeds": result.seeds,
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
