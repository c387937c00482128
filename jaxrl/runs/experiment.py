"""What is trained, and the words for it: files, plans, one line for a person.

RUN/config.json is an `Experiment` as JSON; `--config RUN/config.json` asks it again. What
happens in the folder is in `jaxrl.runs.session`.
"""

import dataclasses
import json
import os
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
from jaxrl.core import files, schema, storage
from jaxrl.core.config import option
from jaxrl.core.variants import Variant
from jaxrl.envs.problem import problem_of
from jaxrl.errors import InvalidInput, count_noun, did_you_mean, require, shorten
from jaxrl.runs import loggers
from jaxrl.runs.artifact import (
    Overrides,
    build_env,
    check_environment,
    find_algorithm,
    known_algorithms,
    map_paths,
    teacher_digest,
    variant,
    with_teacher,
)
from jaxrl.training import loop, pbt
from jaxrl.training.loop import Adapt, Job, OnNan, check_config
from jaxrl.training.population import Parallel
from jaxrl.types import Algorithm, Env, Row


@dataclass(frozen=True)
class Experiment:
    """What to train, and when to stop.

    Flags, checks, help and `config.json` follow from the fields.
    """

    algorithm: Algorithm = option(flag=None)
    """For example `jaxrl.PPO`."""
    config: Any = option(flag=None)
    """Its hyper-parameters, a `Config` of the algorithm."""
    env: str = option(flag=None)
    """Environment id; one of your own is registered, or "module:factory"."""
    env_params: dict[str, Any] = option(factory=dict, flag=None)
    """Further arguments of `make`. Of language models `env` and these are the data and
    what else a task is made from (`Algorithm.problem`)."""
    teacher: str | None = option(None, flag=None)
    """What the algorithm learns from beside rewards, or whose values it learns: a
    dataset's folder, a run folder, "uniform"; None where it has none. The algorithm has a
    flag for it, with a name of its own (`Algorithm.teacher`)."""
    init_from: str | None = option(None, flag="init")
    """Run folder whose agents these begin as, but for the state of the optimiser: each as
    its own if there are as many, otherwise all as the first."""
    init_optimizer: bool = option(False)
    """Whether the state of the optimiser of `init_from` is taken over too."""
    init_agent: int | None = option(None, low=0)
    """The place of one agent of `init_from`, as which all begin."""
    seed: int = option(0, low=0, high=configs.MAX_INT)
    """First seed."""
    num_seeds: int = option(1, low=1, high=configs.MAX_INT)
    """Agents trained in one program, with seeds one after another."""
    overrides: Sequence[Overrides] = option(({},), flag=None)
    """Values that replace those of `config` and `env_params`, by name ("learning_rate",
    "env.gravity"): as many populations of `num_seeds` agents, in one program."""
    traced: Sequence[str] = option((), flag=None)
    """Numbers that are data of each agent even if all variants agree; see `train`."""
    explored: dict[str, Sequence[float]] = option(factory=dict, flag=None)
    """Fields of the config that population-based training changes while it trains, each
    with its lowest and highest value; none for no such training (`jaxrl.training.pbt`)."""
    stop_return: float | None = option(None)
    """Stop once the training return, averaged over a chunk and all seeds, reaches it."""
    stop_iterations: int | None = option(None, low=1)
    """Stop after so many train steps, if `total_steps` is not reached before."""
    evaluation_episodes: int = option(128, low=1)
    """Greedy episodes for each seed at the end."""
    parallel: Parallel = option("auto")
    """What is spread over devices: members (of a population), data (environments of each
    agent), or auto; see `population.device_mesh`."""
    num_devices: int | None = option(None, flag="devices", low=1)
    """How many devices; none for as many as divide the work evenly."""
    checkpoint_every: float = option(60.0, low=0)
    """Seconds between checkpoints; there is also one at the start and one at the end."""
    keep: int = option(2, low=1)
    """How many checkpoints are kept, the newest."""
    log: Sequence[loggers.Log] = option(())
    """Where the metrics go beside `metrics.jsonl`: tensorboard, wandb, or both with a
    comma."""
    on_nan: OnNan = option("stop")
    """When something of an agent becomes NaN or infinite: stop the run, or leave that
    agent as it was and continue with the others."""
    deterministic: bool = option(False)
    """Whether a GPU is asked for the same result every time, which may be slower; a CPU
    gives it anyway. Only the command line can ask."""

    @cached_property
    def environment(self) -> Env:
        """The environment, built from its id: what is recorded is what was trained on."""
        env = build_env(self.algorithm, self.env, self.env_params)
        return with_teacher(env, self.algorithm, self.teacher)

    @cached_property
    def variants(self) -> list[Variant]:
        """Config and environment of each population."""
        given = (self.algorithm, self.config, self.environment, self.env_params)
        return [variant(*given, overrides) for overrides in self.overrides]

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.num_seeds))

    @property
    def adapt(self) -> Adapt | None:
        return partial(pbt.adapt, self.explored) if self.explored else None

    @property
    def has_variants(self) -> bool:
        """Whether its agents differ in more than their seed."""
        return list(self.overrides) != [{}]

    @property
    def num_members(self) -> int:
        return len(self.overrides) * self.num_seeds


def resolve(experiment: Experiment, begins: bool = True) -> Job:
    """What the experiment will do, if it can: checked, planned and given its devices.

    Args:
      experiment: to be resolved.
      begins: whether it is trained from the start; otherwise `init_from` is not read, as
        a checkpoint holds what was taken over.

    Raises:
      InvalidInput: before anything compiles.
    """
    check_config(experiment.algorithm, experiment.config)
    configs.check(experiment)
    require(
        len(experiment.overrides) > 0, "overrides = []: must have one table or more."
    )
    for name in experiment.log:
        loggers.check_installed(name)
    job = loop.resolve(
        experiment.algorithm,
        [config for config, _ in experiment.variants],
        [env for _, env in experiment.variants],
        seed=experiment.seed,
        num_seeds=experiment.num_seeds,
        traced=experiment.traced,
        parallel=experiment.parallel,
        num_devices=experiment.num_devices,
        on_nan=experiment.on_nan,
        init_from=experiment.init_from if begins else None,
        init_optimizer=experiment.init_optimizer and begins,
        init_agent=experiment.init_agent if begins else None,
    )
    pbt.check(experiment.explored, job)
    return job._replace(
        iterations=min(job.iterations, experiment.stop_iterations or job.iterations)
    )


def describe_plan(experiment: Experiment, job: Job) -> str:
    """The exact plan, for a person to read before anything compiles."""
    plan, iterations = job.plan, job.iterations
    warmup = ""
    if plan.warmup_env_steps:
        warmup = f"{plan.warmup_env_steps:,} warm-up steps, then "
    seeds = f"seeds {experiment.seeds}"
    if len(experiment.overrides) > 1:
        seeds += f" with each of {len(experiment.overrides)} settings"
    lines = [
        f"{experiment.algorithm.name} on {experiment.env}, {seeds}",
        f"plan for each seed: {warmup}{iterations:,} iterations of "
        f"{plan.env_steps:,} environment steps and {count_noun(plan.updates, 'update')}: "
        f"{job.env_steps:,} environment steps, "
        f"{count_noun(iterations * plan.updates, 'update')}",
    ]
    asked = int(experiment.variants[0][0].total_steps)
    if job.env_steps > asked:
        lines.append(
            f"(total_steps = {asked:,} is not a whole number of iterations: "
            f"running the next one, {job.env_steps:,})"
        )
    return "\n".join(lines)


def folder_name(experiment: Experiment) -> str:
    """What the run folder is called, without the number that makes it new."""
    return f"{experiment.algorithm.name}-{experiment.env}-{experiment.seed}"


def describe(
    experiment: Experiment, change: Callable[[str], str] = lambda path: path
) -> dict[str, Any]:
    """The experiment as JSON, which `--config` reads.

    Args:
      experiment: what is described.
      change: is given every path in it; `partial(files.relative, folder)` for a file.
    """
    content = configs.to_dict(experiment) | {
        "algorithm": experiment.algorithm.name,
        "config": configs.to_dict(experiment.config),
    }
    return map_paths(experiment.algorithm, content, change)


IDENTITY = (
    *("algorithm", "env", "env_params", "seed", "num_seeds", "config"),
    *("overrides", "traced", "explored", "init_optimizer", "init_agent"),
)
"""The fields in which two runs must agree to be one."""


def describe_training(experiment: Experiment) -> dict[str, Any]:
    """What two runs must have in common to be one: a checkpoint holds it."""
    algorithm = experiment.algorithm
    # What a path leads to has a digest; where it is may change.
    described = describe(experiment, lambda path: "by its digest")
    description = json.loads(json.dumps(described))
    about = {name: description[name] for name in IDENTITY}
    about["is_variant"] = algorithm != known_algorithms().get(algorithm.name)
    if experiment.teacher is not None:
        about["teacher"] = teacher_digest(algorithm, experiment.teacher)
    made_from = (experiment.env, experiment.env_params)
    about["digests"] = problem_of(algorithm).digests(*made_from)
    return about


def json_text(content: dict[str, Any]) -> str:
    """Raise `InvalidInput` for what JSON cannot hold, before anything is written."""
    try:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        name, value = next(item for item in content.items() if not _is_json(item))
        raise InvalidInput(
            f"{name} = {shorten(value)} cannot be recorded as JSON ({error}): give plain, "
            f"finite numbers."
        ) from error


def _is_json(item: tuple[Any, Any]) -> bool:
    try:
        json.dumps(dict([item]), allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


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
        content = files.read_json(path)
        schema.check(dict[str, Any], content, path)
        return build(content, path)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, InvalidInput) and not isinstance(error, files.Unreadable):
            raise _of_file(error, path) from error
        raise InvalidInput(
            f"RUN = {str(folder)!r} has no readable {name} ({error}): give the folder "
            f"of a `{command}`."
        ) from error


def _of_file(error: InvalidInput, path: Path) -> InvalidInput:
    """The same error with the name of the file, if it has neither it nor its folder's."""
    names = (str(path), str(path.parent))
    if any(name in str(error) for name in names):
        return error
    return InvalidInput(f"{path}: {error}")


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
    algorithm = algorithm or find_algorithm(name, path)
    content = map_paths(algorithm, content, partial(files.locate, path.parent))
    check_environment(content["env"], env, path.parent)
    known = {x.name for x in dataclasses.fields(Experiment)}
    for name in content:
        require(
            name in known,
            f"{name} in {path} is not a setting{did_you_mean(name, known)}.",
        )
    return Experiment(algorithm, configs.from_dict(algorithm.Config, config), **content)


def named_env(path: Path) -> str | None:
    """The environment that a `config.json` or `sweep.json` names, if it names one.

    For those that only read results and run nothing of it.
    """
    try:
        content = files.read_json(path)
        return str(content.get("experiment", content)["env"])
    except (files.Unreadable, KeyError, TypeError, AttributeError):
        return None


SUMMARY = "summary.json"


@dataclass(frozen=True)
class Summary:
    """What is relied on in the summary of a run or a sweep; it says more."""

    OPEN = True
    algorithm: str
    env: str
    finished: bool
    digest: str


@dataclass(frozen=True)
class Returns:
    """What is relied on in `statistics.summarize_returns`."""

    OPEN = True
    episodes: schema.Count
    episode_return_mean: float
    episode_return_iqm: float
    episode_return_ci95: tuple[float, float]


@dataclass(frozen=True)
class Evaluation(Returns):
    """What is relied on in an evaluation."""

    OPEN = True
    algorithm: str
    env: str
    seeds: list[schema.Count]
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    variants: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class RunSummary(Summary):
    """The same of a run."""

    OPEN = True
    seeds: list[schema.Count]
    iterations: schema.Count
    env_steps: schema.Count
    run_seconds: schema.Seconds
    compile_seconds: schema.Seconds
    device: str
    hardware: str
    versions: dict[str, str]
    evaluation: Evaluation
    evaluation_by_member: list[float | None]
    metrics_digests: list[str]


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write a summary with a digest of itself; read it with `read_summary`."""
    text = json_text(summary | {"digest": summary_digest(summary)})
    storage.write_text(folder / SUMMARY, text)


def summary_digest(summary: dict[str, Any]) -> str:
    """SHA-256 of a summary, without the one that it holds."""
    content = {name: x for name, x in summary.items() if name != "digest"}
    return storage.digest_of(json.dumps(content, sort_keys=True).encode())


def read_summary(folder: Path, kind: type[Summary] = Summary) -> dict[str, Any] | None:
    """The summary of a run or a sweep, finished or not; None if there is none.

    Raises:
      InvalidInput: it is not what was written.
    """
    path = folder / SUMMARY
    if not os.path.lexists(path):
        return None
    try:
        summary: dict[str, Any] = files.read_json(path)
        schema.check(kind, summary, path)
        if summary["digest"] != summary_digest(summary):
            raise InvalidInput(f"{path} is not what was written.")
    except InvalidInput as error:
        raise InvalidInput(f"{error} Remove it, and resume {folder} again.") from error
    return summary


def finished_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a run or a sweep that has reached its end, or None.

    Raises:
      InvalidInput: it is not what was written.
    """
    is_sweep = (folder / "sweep.json").exists()
    summary = read_summary(folder, Summary if is_sweep else RunSummary)
    return summary if summary and summary["finished"] else None


def read_rows(folder: Path) -> list[Row]:
    """The metrics of a run; of a finished one those that were written when it ended.

    Raises:
      InvalidInput: a file is damaged, or a row is not what was written.
    """
    summary = finished_summary(folder)
    # A sweep, to which a damaged one may lead, has none.
    digests = None if summary is None else summary.get("metrics_digests")
    return loggers.read_metrics(folder / "metrics.jsonl", digests=digests)


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
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        return ""
    return done.stdout.decode(errors="replace").strip()


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
        words += ["--" + experiment.algorithm.teacher, experiment.teacher]
    words += configs.flags_of(experiment)
    return words + configs.flags_of(experiment.config)


def _problem_flags(experiment: Experiment) -> list[str]:
    """What is trained on."""
    problem = problem_of(experiment.algorithm)
    words = ["--" + problem.flag, experiment.env]
    for name, value in experiment.env_params.items():
        words += ["--" + (problem.prefix + name).replace("_", "-"), _as_text(value)]
    return words


def _as_text(value: Any) -> str:
    """The value of a parameter on the command line, where text that is JSON is read so."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={x}" for name, x in value.items())
    return value if isinstance(value, str) else json.dumps(value)
