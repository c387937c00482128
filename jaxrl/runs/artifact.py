"""The policy artefact: a folder that holds a trained agent and nothing that can run.

    policy/manifest.json         algorithm, config, environment, spaces, seeds
    policy/arrays.safetensors    every array of every seed's agent, leading axis [K]

Parameters, optimiser state and normaliser travel together, because an agent without its
statistics is another agent. No pickle: loading verifies and reads JSON and raw tensors
(`jaxrl.core.storage`), and puts them into the structure that the algorithm itself builds.
"""

import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrl
from jaxrl.algorithms import ALGORITHMS, registered_algorithms
from jaxrl.core import config as configs
from jaxrl.core import files, storage
from jaxrl.core.variants import Variant
from jaxrl.data import dataset
from jaxrl.data.frozen_policy import FrozenPolicy
from jaxrl.envs.problem import describe, problem_of
from jaxrl.errors import InvalidInput, require, shorten
from jaxrl.rlhf.registry import RLHF
from jaxrl.training.population import init_population, member
from jaxrl.types import Algorithm, Env, PyTree

FORMAT = 3

BY_NAME = ALGORITHMS | {algorithm.name: algorithm for algorithm in RLHF.values()}
"""The algorithms that are built in, by the name that files know them by."""


def known_algorithms() -> dict[str, Algorithm]:
    """Those that are built in and those that are registered, by name."""
    return BY_NAME | registered_algorithms()


def find_algorithm(name: str, where: Path | str) -> Algorithm:
    """The algorithm that a file names.

    Raises:
      InvalidInput: it is not known; one named "module:VALUE" is code that nothing but the
        caller's own word imports.
    """
    known = known_algorithms()
    if name in known:
        return known[name]
    remedy = "register it first (jaxrl.register_algorithm), or train it as module:VALUE"
    if ":" in name:
        remedy = (
            f"it is code that loading would import; if you trust that, give --algorithm "
            f"{name}, or call jaxrl.register_algorithm({name!r}) first"
        )
    raise InvalidInput(
        f"algorithm = {name!r} of {str(where)!r} is not known: {remedy}."
    )


ENV = "env."
"""How the names of an environment's parameters begin, beside those of configs."""

Overrides = dict[str, Any]
"""Values of some agents that are not those of their run, by name."""

_FIELDS: dict[str, type] = {
    "format": int,
    "jaxrl": str,
    "algorithm": str,
    "config": dict,
    "env": str,
    "env_params": dict,
    "seeds": list,
}
"""What `load_agents` needs of the manifest."""


class Agents(NamedTuple):
    """The trained agents of a run, to evaluate or to act (`jaxrl.load_policy`)."""

    algorithm: Algorithm
    config: Any
    env: Env
    env_params: dict[str, Any]  # what `make(env.id, ...)` was given
    agents: PyTree  # leading axis [K]
    seeds: list[int]
    overrides: Sequence[Overrides] = ()  # of each agent [K]; empty: none has any
    members: Sequence[int] = ()  # its place in training [K]; empty: all are here
    teacher: str | None = None  # the source of the policy that they evaluate

    @property
    def variants(self) -> list[Variant]:
        """Config and environment of each agent."""
        overrides = self.overrides or [{}] * len(self.seeds)
        given = (self.algorithm, self.config, self.env, self.env_params)
        return [variant(*given, values) for values in overrides]


def variant(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    env_params: dict[str, Any],
    overrides: Overrides,
) -> Variant:
    """Config and environment with some values that are not those of the run.

    Args:
      algorithm: whose config it is.
      config: of the run.
      env: of the run.
      env_params: what `make` was given for it.
      overrides: values by name: "gamma" is of the config, "env.gravity" of the environment.

    Raises:
      InvalidInput: a name or a value does not fit.
    """
    params = {n[len(ENV) :]: v for n, v in overrides.items() if n.startswith(ENV)}
    fields = {n: v for n, v in overrides.items() if not n.startswith(ENV)}
    if fields:
        values = configs.to_dict(config) | fields
        config = configs.from_dict(algorithm.Config, values)
    if params:
        other = build_env(algorithm, env.id, env_params | params)
        env = other.replace(teacher=env.teacher) if algorithm.teacher else other
    return configs.with_floats(config), env


def save_agents(folder: Path, agents: Agents) -> None:
    """Write the artefact beside its place and move it there whole.

    Args:
      folder: the artefact's folder; replaced if it exists.
      agents: what is to be loaded again.
    """
    change = partial(files.relative, folder.parent)
    description = map_paths(agents.algorithm, describe_agents(agents), change)
    storage.write(folder, agents.agents, description)


def describe_agents(agents: Agents) -> dict[str, Any]:
    """The manifest's description of agents, all but their arrays.

    Raises:
      InvalidInput: something of them cannot be recorded.
    """
    description = {
        "format": FORMAT,
        "jaxrl": jaxrl.__version__,
        "algorithm": agents.algorithm.name,
        "config": configs.to_dict(agents.config),
        "env": agents.env.id,
        "env_params": agents.env_params,
        "seeds": agents.seeds,
    } | problem_of(agents.algorithm).describe(agents.config, agents.env)
    if agents.overrides:
        description["overrides"] = list(agents.overrides)
    if agents.members:
        description["members"] = list(agents.members)
    if agents.teacher is not None:
        description["teacher"] = agents.teacher
    return description


def load_agents(run: Path | str, env: str | None = None) -> Agents:
    """Read the artefact of a run folder.

    Nothing in it is run. An environment named "module:factory" is code that loading
    would import, so the artefact's word is not enough for it: the caller says it too.

    Args:
      run: the run folder.
      env: the environment's id, needed where it is "module:factory".

    Raises:
      InvalidInput: if the folder holds no artefact, or one that does not fit.
    """
    description, tensors = _read(run)
    check_environment(description["env"], env, run)
    algorithm = find_algorithm(description["algorithm"], run)
    description = map_paths(algorithm, description, partial(files.locate, run))
    check_places(algorithm, description, run)
    config = configs.from_dict(algorithm.Config, description["config"])
    env_params = description["env_params"]
    environment = build_env(algorithm, description["env"], env_params)
    problem = problem_of(algorithm)
    # As JSON has it: lists, no tuples.
    about = json.loads(json.dumps(problem.describe(config, environment)))
    other = [name for name, value in about.items() if description.get(name) != value]
    require(
        not other,
        f"{str(run)!r} was trained with {problem.flag} = {description['env']!r}, which had "
        f"another {' and another '.join(other)} than today.",
    )
    seeds = description["seeds"]
    template = jax.eval_shape(
        lambda keys: init_population(algorithm, config, environment, {}, keys).agent,
        jax.random.split(jax.random.key(0), len(seeds)),
    )
    agents = storage.fill(template, tensors, Path(run) / "policy")
    teacher = description.get("teacher")
    if teacher is not None:
        environment = with_teacher(environment, algorithm, teacher)
    more = (description.get("overrides", ()), description.get("members", ()), teacher)
    return Agents(algorithm, config, environment, env_params, agents, seeds, *more)


def check_acts(agents: Agents, run: Path | str) -> None:
    """Refuse agents that take no actions in an environment."""
    require(
        problem_of(agents.algorithm).returns is None,
        f"RUN = {str(run)!r}: a run of {agents.algorithm.name} has no policy that acts in "
        f"an environment; language models answer prompts: `jaxrl rlhf generate`.",
    )


def map_paths(
    algorithm: Algorithm, about: Mapping[str, Any], change: Callable[[str], str]
) -> dict[str, Any]:
    """A description of an experiment, with every path in it changed."""
    problem = problem_of(algorithm)

    def mapped(name: str, value: Any) -> Any:
        return change(value) if problem.is_path(name, value) else value

    def all_mapped(values: Any, prefix: str = "") -> Any:
        if not isinstance(values, dict):
            return values
        return {n: mapped(n.removeprefix(prefix), x) for n, x in values.items()}

    found = dict(about)
    if "env" in found:
        found["env"] = mapped(problem.flag, found["env"])
    if "env_params" in found:
        found["env_params"] = all_mapped(found["env_params"])
    if isinstance(found.get("overrides"), list | tuple):
        found["overrides"] = [all_mapped(x, ENV) for x in found["overrides"]]
    for name in ("teacher", "init_from"):
        if isinstance(found.get(name), str) and found[name] != UNIFORM:
            found[name] = change(found[name])
    return found


def check_places(
    algorithm: Algorithm, about: Mapping[str, Any], run: Path | str
) -> None:
    """Refuse a run whose data, models or teacher are no longer where it names them.

    Raises:
      InvalidInput: it names the first that is missing.
    """

    def check(path: str) -> str:
        require(
            os.path.exists(path),
            f"{path} is not there, and {str(run)!r} needs it; its place is kept relative "
            f"to the run folder: if one of them was moved, put the file back, or a link "
            f"to it.",
        )
        return path

    # Where it began is not looked at again: its checkpoints hold what was taken over.
    map_paths(algorithm, {n: x for n, x in about.items() if n != "init_from"}, check)


def build_env(algorithm: Algorithm, env: str, env_params: dict[str, Any]) -> Any:
    """The environment of that id, or what takes its place for the algorithm.

    Raises:
      InvalidInput: it cannot be made.
    """
    if algorithm.problem is not None:
        try:
            inspect.signature(algorithm.problem.make).bind(env, **env_params)
        except TypeError as error:
            raise InvalidInput(
                f"env_params = {shorten(env_params)}: {algorithm.name} is not made from "
                f"these ({error})."
            ) from error
    return problem_of(algorithm).make(env, **env_params)


UNIFORM = "uniform"
"""The policy that takes every action equally often, where one is named."""


def with_teacher(env: Env, algorithm: Algorithm, source: str | None) -> Env:
    """The environment with what the algorithm learns from beside rewards.

    Args:
      env: the environment that is trained on.
      algorithm: its `teacher` says what `source` is.
      source: a dataset's folder, a run folder, whose first agent it is then, or
        "uniform"; None for nothing.

    Raises:
      InvalidInput: the algorithm has no teacher, or this one does not fit.
    """
    if source is None:
        return env
    kind = algorithm.teacher
    require(
        bool(kind), f"teacher = {source!r}: {algorithm.name} has none, leave it out."
    )
    require(
        isinstance(source, str), f"{kind} = {source!r}: must be the name of a folder."
    )
    if kind == "policy" and source == UNIFORM:
        return env
    if kind == "data":
        return env.replace(teacher=dataset.load(source, env))
    return env.replace(teacher=_frozen_policy(kind, source, env))


def _frozen_policy(kind: str, run: str, env: Env) -> FrozenPolicy:
    """The first agent of a run folder."""
    agents = load_agents(run, env.id)
    config, _ = agents.variants[0]
    name = agents.algorithm.name
    require(
        describe(config, agents.env) == describe(config, env),
        f"{kind} = {run!r}: was trained on an {env.id} with other spaces, give one of "
        f"the same.",
    )
    require(
        agents.algorithm.teacher != "policy",
        f"{kind} = {run!r}: {name} learns values and no policy, give another run.",
    )
    memory = agents.algorithm.init_memory(config, env, 1)
    require(
        not jax.tree.leaves(memory),
        f"{kind} = {run!r}: its policy has a memory, give one without.",
    )
    return FrozenPolicy(config, member(agents.agents, 0), agents.algorithm)


def teacher_digest(algorithm: Algorithm, source: str | None) -> str | None:
    """What tells one teacher from another that lies in the same place."""
    if source is None or source == UNIFORM:
        return None
    folder = Path(source)
    return storage.digest(folder if algorithm.teacher == "data" else folder / "policy")


def _read(run: Path | str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the tensors, checked as far as that needs no algorithm."""
    folder = Path(run) / "policy"
    if not folder.is_dir():
        raise InvalidInput(
            f"RUN = {str(run)!r} holds no policy: give a folder that `jaxrl train` has "
            f"finished."
        )
    description, tensors = storage.read(folder)
    bad_field = _bad_field(description)
    if bad_field:
        raise InvalidInput(
            f"RUN = {str(run)!r} holds no policy of jaxrl: its manifest has no valid "
            f"{bad_field!r}."
        )
    if description["format"] != FORMAT:
        raise InvalidInput(
            f"the policy in {str(run)!r} has format {description['format']}, this version "
            f"of jaxrl reads format {FORMAT}: load it with jaxrl {description['jaxrl']}."
        )
    return description, tensors


def check_environment(trained_on: str, given: str | None, run: Path | str) -> None:
    """Refuse code, unless the caller says its name too, and another environment."""
    if given not in (None, trained_on):
        raise InvalidInput(
            f"env = {given!r}: {str(run)!r} was trained on {trained_on!r}."
        )
    if ":" in trained_on and given is None:
        raise InvalidInput(
            f"{str(run)!r} was trained on {trained_on!r}, code that loading "
            f"it would import: if you trust that, give --env {trained_on}."
        )


def _bad_field(description: Any) -> str | None:
    """The first field that is not what `load_agents` needs, or None."""
    fields = description if isinstance(description, dict) else {}
    for name, kind in _FIELDS.items():
        if not isinstance(fields.get(name), kind):
            return name
    seeds = fields["seeds"]
    if not seeds or any(type(s) is not int for s in seeds):
        return "seeds"
    for name, kind in (("overrides", dict), ("members", int)):
        values = fields.get(name, [])
        if not isinstance(values, list) or len(values) not in (0, len(seeds)):
            return name
        if any(type(x) is not kind for x in values):
            return name
    return None
