"""What is trained, and the words for it: files, plans, one line for a person.

RUN/config.json is an `Experiment` as JSON; `--config RUN/config.json` asks it again. What
happens in the folder is in `jaxrl.runs.session`.
"""

import dataclasses
import json
import platform
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from jaxrl.core import config as configs
from jaxrl.core.variants import Setting, stacked
from jaxrl.errors import InvalidInput, count_noun, did_you_mean, require
from jaxrl.runs import loggers
from jaxrl.runs.artifact import (
    BY_NAME,
    Own,
    built,
    check_environment,
    setting,
    taught,
    teacher_digest,
)
from jaxrl.training import footprint, pbt
from jaxrl.training.loop import (
    Adapt,
    OnNan,
    check_host,
    checked_seeds,
    common_iterations,
    prepare,
)
from jaxrl.training.population import Parallel, device_mesh
from jaxrl.types import Algorithm, Env, Plan


@dataclass(frozen=True)
class Experiment:
    """What to train, and when to stop."""

    algorithm: Algorithm
    config: Any
    env: str
    """An id of `make`; an environment of your own is registered, or "module:factory". Of
    an algorithm with a `problem` what that makes a task from."""
    env_params: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `make`, or of the problem's."""
    teacher: str | None = None
    """What the algorithm learns from beside rewards, or whose values it learns: a
    dataset's folder, a run folder, "uniform"; None where it has none. The algorithm has a
    flag for it, with a name of its own (`Algorithm.teacher`)."""
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
    with its lowest and highest value; none for no such training (`jaxrl.training.pbt`)."""
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
    the command line can ask: `devices.use_deterministic_operations`."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints; there is also one at the start and one at the end."""
    keep: int = 2
    """How many checkpoints are kept, the newest."""
    log: Sequence[loggers.Log] = ()
    """Where the metrics go beside `metrics.jsonl`: "tensorboard", "wandb"."""

    @cached_property
    def environment(self) -> Env:
        """The environment, built from its id: what is recorded is what was trained on."""
        env = built(self.algorithm, self.env, self.env_params)
        return taught(env, self.algorithm, self.teacher)

    @cached_property
    def pairs(self) -> list[Setting]:
        """Config and environment of each setting."""
        given = (self.algorithm, self.config, self.environment, self.env_params)
        return [setting(*given, own) for own in self.settings]

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.num_seeds))

    @property
    def job(self) -> dict[str, Any]:
        """What `train` and `planned_job` need of it, by argument."""
        return {
            "algorithm": self.algorithm,
            "config": [config for config, _ in self.pairs],
            "env": [env for _, env in self.pairs],
            "seed": self.seed,
            "num_seeds": self.num_seeds,
            "varied": self.varied,
            "parallel": self.parallel,
            "num_devices": self.num_devices,
            "on_nan": self.on_nan,
        }

    @property
    def adapt(self) -> Adapt | None:
        return partial(pbt.adapt, self.explored) if self.explored else None

    @property
    def has_settings(self) -> bool:
        """Whether its agents differ in more than their seed."""
        return list(self.settings) != [{}]

    @property
    def num_members(self) -> int:
        return len(self.settings) * self.num_seeds


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
    spread = (experiment.parallel, experiment.num_devices)
    check_host(experiment.environment, count, *spread)
    device_mesh(plan, count, *spread)
    config, env, _ = stacked(experiment.pairs, experiment.varied)
    footprint.check(experiment.algorithm, config, env, plan, count)
    return plan


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
        f"{plan.env_steps:,} environment steps and {count_noun(plan.updates, 'update')}: "
        f"{steps:,} environment steps, {count_noun(iterations * plan.updates, 'update')}",
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


def describe(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON, which `--config` reads."""
    description = {
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
    if experiment.teacher is not None:
        description["teacher"] = experiment.teacher
    return description


def describe_training(experiment: Experiment) -> dict[str, Any]:
    """What two runs must have in common to be one: a checkpoint holds it."""
    algorithm = experiment.algorithm
    about = {
        "algorithm": algorithm.name,
        "is_variant": algorithm != BY_NAME.get(algorithm.name),
        "env": experiment.env,
        "env_params": experiment.env_params,
        "seed": experiment.seed,
        "num_seeds": experiment.num_seeds,
        "config": json.loads(json.dumps(configs.to_dict(experiment.config))),
    } | _settings(experiment)
    if experiment.teacher is not None:
        about["teacher"] = teacher_digest(algorithm, experiment.teacher)
    if algorithm.problem is not None:
        own = (experiment.env, experiment.env_params)
        about["digests"] = algorithm.problem.digests(*own)
    return about


def _settings(experiment: Experiment) -> dict[str, Any]:
    """Nothing for one population, as before there could be several."""
    if not experiment.has_settings:
        return {}
    return {
        "settings": list(experiment.settings),
        "varied": list(experiment.varied),
        "explored": experiment.explored,
    }


def json_text(content: dict[str, Any]) -> str:
    """Raises `InvalidInput` for what JSON cannot hold, before anything is written."""
    try:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"{content.get('env_params')} cannot be recorded as JSON ({error}): give "
            f"plain, finite numbers."
        ) from error


Described = TypeVar("Described")


def read_description(
    folder: Path,
    name: str,
    command: str,
    build: Callable[[dict[str, Any], Path], Described],
) -> Described:
    """What `build` makes of a JSON file in a folder, and of its path.

    Raises:
      InvalidInput: it cannot be read, or is something else.
    """
    path = folder / name
    try:
        return build(json.loads(path.read_text()), path)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"RUN = {str(folder)!r} has no readable {name} ({error}): give the folder "
            f"of a `{command}`."
        ) from error


def read_experiment(
    folder: Path, env: str | None = None, algorithm: Algorithm | None = None
) -> Experiment:
    """The experiment of a run folder, from its `config.json`.

    Raises:
      InvalidInput: it is no run folder, or not one of this version of jaxrl.
    """
    build = partial(as_experiment, env=env, algorithm=algorithm)
    return read_description(folder, "config.json", "jaxrl train", build)


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
    if algorithm is None and name not in BY_NAME:
        raise InvalidInput(
            f"algorithm = {name!r} in {path}: this version of jaxrl has "
            f"{', '.join(BY_NAME)}."
        )
    algorithm = algorithm or BY_NAME[name]
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


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("jaxrl", "jax", "jaxlib", "flax", "optax", "gymnax", "distrax", "numpy")
    return {"python": platform.python_version()} | {
        package: metadata.version(package) for package in packages
    }


def commit() -> str:
    """The commit of a checkout, marked if it had changes; "" for an installed package."""
    here = str(Path(__file__).parent)
    command = ["git", "-C", here, "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def train_command(experiment: Experiment) -> str:
    """The command line that trains this; what is at its default is left out."""
    words = command_words(experiment.algorithm.name)
    return shlex.join(["jaxrl", *words, *experiment_flags(experiment)])


def command_words(algorithm: str) -> list[str]:
    """Of an algorithm: `jaxrl train ppo`, `jaxrl rlhf ppo`."""
    is_rlhf = algorithm.startswith("rlhf-")
    return ["rlhf", algorithm[5:]] if is_rlhf else ["train", algorithm]


def experiment_flags(experiment: Experiment) -> list[str]:
    words = _problem_flags(experiment)
    if experiment.teacher is not None:
        words += [flag(experiment.algorithm.teacher), experiment.teacher]
    for name in _RUN_FIELDS:
        value = getattr(experiment, name)
        if value is True:
            words.append(flag(name))
        elif value != getattr(Experiment, name):
            words += [flag(name), str(value)]
    if experiment.log:
        words += ["--log", ",".join(experiment.log)]
    defaults = configs.to_dict(experiment.algorithm.Config())
    for name, value in configs.to_dict(experiment.config).items():
        if value == defaults[name]:
            continue
        if isinstance(value, bool):
            words.append(flag(name) if value else "--no-" + flag(name)[2:])
        elif isinstance(value, list):
            words += [flag(name), ",".join(map(str, value))]
        else:
            words += [flag(name), "none" if value is None else str(value)]
    return words


def _problem_flags(experiment: Experiment) -> list[str]:
    """What is trained on."""
    if experiment.algorithm.problem is None:
        words = ["--env", experiment.env]
        for name, value in experiment.env_params.items():
            words += ["--env." + name, json.dumps(value)]
        return words
    words = ["--data", experiment.env]
    for name, value in experiment.env_params.items():
        sizes = isinstance(value, Mapping)
        text = ",".join(f"{n}={v}" for n, v in value.items()) if sizes else str(value)
        words += [flag(name), text]
    return words


_RUN_FIELDS = (
    "seed",
    "num_seeds",
    "stop_return",
    "stop_iterations",
    "evaluation_episodes",
    "parallel",
    "num_devices",
    "checkpoint_every",
    "keep",
    "on_nan",
    "deterministic",
)


def flag(name: str) -> str:
    return "--devices" if name == "num_devices" else "--" + name.replace("_", "-")
