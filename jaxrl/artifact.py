"""The policy artefact: a folder that holds a trained agent and nothing that can run.

    policy/policy.json           algorithm, config, environment, spaces, seeds
    policy/agents.safetensors    every array of every seed's agent, leading axis [K]

Parameters, optimiser state and normaliser travel together, because an agent without its
statistics is another agent. No pickle: loading reads JSON and raw tensors, and puts them
into the structure that the algorithm itself builds.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrl
from jaxrl import config as configs
from jaxrl import runner
from jaxrl.algorithms import ALGORITHMS
from jaxrl.envs import make
from jaxrl.types import Algorithm, Env, InvalidInput, PyTree

FORMAT = 1

_FIELDS: dict[str, type] = {
    "format": int,
    "jaxrl": str,
    "algorithm": str,
    "config": dict,
    "env": str,
    "env_params": dict,
    "seeds": list,
}
"""What `load_policy` needs of `policy.json`."""


class Policy(NamedTuple):
    """A trained population, ready to act or to evaluate."""

    algorithm: Algorithm
    config: Any
    env: Env
    env_params: dict[str, Any]  # what `make(env.id, ...)` was given
    agents: PyTree  # leading axis [K]
    seeds: list[int]


def save_policy(folder: Path, policy: Policy) -> None:
    """Writes the artefact beside its place and moves it there whole.

    Args:
      folder: the artefact's folder; replaced if it exists.
      policy: what is to be loaded again.
    """
    from safetensors.numpy import save_file

    tensors = _named(jax.device_get(policy.agents))
    description = {
        "format": FORMAT,
        "jaxrl": jaxrl.__version__,
        "algorithm": policy.algorithm.name,
        "config": configs.to_dict(policy.config),
        "env": policy.env.id,
        "env_params": policy.env_params,
        "seeds": policy.seeds,
    } | _spaces(policy.env)
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file(tensors, new / "agents.safetensors")
    (new / "policy.json").write_text(json.dumps(description, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(new, folder)


def load_policy(run: Path | str, env: str | None = None) -> Policy:
    """Reads the artefact of a run folder.

    Nothing in it is run. An environment named "module:factory" is code that loading
    would import, so the artefact's word is not enough for it: the caller says it too.

    Args:
      run: the run folder.
      env: the environment's id, needed where it is "module:factory".

    Raises:
      InvalidInput: if the folder holds no artefact, or one that does not fit.
    """
    description, tensors = _read(run)
    _check_environment(description["env"], env, run)
    algorithm = ALGORITHMS[description["algorithm"]]
    config = configs.from_dict(algorithm.Config, description["config"])
    env_params = description["env_params"]
    environment = make(description["env"], **env_params)
    if any(
        description.get(name) != space for name, space in _spaces(environment).items()
    ):
        raise InvalidInput(
            f"the policy in {str(run)!r} was trained on an environment "
            f"{description['env']!r} with other spaces than the one of today."
        )
    seeds = description["seeds"]
    template = jax.eval_shape(
        lambda keys: runner.init_population(algorithm, config, environment, keys).agent,
        jax.random.split(jax.random.key(0), len(seeds)),
    )
    agents = _filled(template, tensors, run)
    return Policy(algorithm, config, environment, env_params, agents, seeds)


def _read(run: Path | str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`policy.json` and the tensors, checked as far as that needs no algorithm."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(run) / "policy"
    try:
        description = json.loads((folder / "policy.json").read_text())
        tensors = load_file(folder / "agents.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidInput(
            f"RUN = {str(run)!r} holds no readable policy ({error}): give a folder that "
            f"`jaxrl train` has finished."
        ) from error
    bad_field = _bad_field(description)
    if bad_field:
        raise InvalidInput(
            f"RUN = {str(run)!r} holds no policy of jaxrl: its policy.json has no valid "
            f"{bad_field!r}."
        )
    if description["format"] != FORMAT:
        raise InvalidInput(
            f"the policy in {str(run)!r} has format {description['format']}, this version "
            f"of jaxrl reads format {FORMAT}: load it with jaxrl {description['jaxrl']}."
        )
    if description["algorithm"] not in ALGORITHMS:
        raise InvalidInput(
            f"the policy in {str(run)!r} is of algorithm {description['algorithm']!r}, "
            f"this version of jaxrl has {', '.join(ALGORITHMS)}."
        )
    return description, tensors


def _check_environment(trained_on: str, given: str | None, run: Path | str) -> None:
    if given not in (None, trained_on):
        raise InvalidInput(
            f"env = {given!r}: the policy in {str(run)!r} was trained on {trained_on!r}."
        )
    if ":" in trained_on and given is None:
        raise InvalidInput(
            f"the policy in {str(run)!r} was trained on {trained_on!r}, code that loading "
            f"it would import: if you trust that, give --env {trained_on}."
        )


def _bad_field(description: Any) -> str | None:
    """The first field that is not what `load_policy` needs, or None."""
    fields = description if isinstance(description, dict) else {}
    for name, kind in _FIELDS.items():
        if not isinstance(fields.get(name), kind):
            return name
    seeds = fields["seeds"]
    return None if seeds and all(type(s) is int for s in seeds) else "seeds"


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    """Every leaf under its path, such as `params/params/value_head/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): np.ascontiguousarray(leaf) for path, leaf in leaves}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _filled(template: PyTree, tensors: dict[str, np.ndarray], run: Any) -> PyTree:
    """The tensors in the structure of `template`."""
    unused = dict(tensors)

    def pick(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        tensor = unused.pop(_name(path), None)
        if tensor is None or (tensor.shape, tensor.dtype) != (leaf.shape, leaf.dtype):
            found = "missing" if tensor is None else f"{tensor.dtype}{tensor.shape}"
            raise InvalidInput(
                f"the policy in {str(run)!r} does not fit its config: {_name(path)} is "
                f"{found}, expected {leaf.dtype}{leaf.shape}."
            )
        return tensor

    filled = jax.tree_util.tree_map_with_path(pick, template)
    if unused:
        raise InvalidInput(
            f"the policy in {str(run)!r} does not fit its config: it has no place for "
            f"{min(unused)}."
        )
    return filled


def _spaces(env: Env) -> dict[str, Any]:
    return {
        "observation_space": _describe(env.observation_space),
        "action_space": _describe(env.action_space),
    }


def _describe(space: Any) -> dict[str, Any]:
    """A space as JSON; unbounded limits are written as text, JSON has no infinity."""
    if hasattr(space, "items"):
        return {"Dict": {name: _describe(child) for name, child in space.items}}
    fields = dataclasses.asdict(space)
    if "shape" in fields:
        fields["shape"] = list(fields["shape"])  # JSON has no tuples
    for bound in {"low", "high"} & fields.keys():
        fields[bound] = [v if np.isfinite(v) else str(v) for v in fields[bound]]
    return {type(space).__name__: fields}
