"""Jumanji: combinatorial problems (Bonnet et al., 2023).

The environments offered have one agent and one discrete action, and need no download.
Parameters are those of Jumanji's constructors. Jumanji *terminates* an episode at its
`time_limit` and shows the steps taken; here the limit is the `horizon`, a truncation, and
`step_count` is removed from the observation.
"""

from functools import partial
from typing import Any

import numpy as np

from jaxrl import spaces
from jaxrl.envs.suites import Suite, adapt, import_quietly
from jaxrl.types import Array, Env, PyTree

NAMES = (
    "Game2048-v1",
    "GraphColoring-v1",
    "Knapsack-v1",
    "Maze-v0",
    "SlidingTilePuzzle-v0",
    "Snake-v1",
)
NEVER = 2**31 - 2
LEFT_OUT = "step_count"


def build(name: str, **params: Any) -> Env:
    """An environment of Jumanji."""
    environment = import_quietly("jumanji").make(name, **params)
    horizon = getattr(environment, "time_limit", None)
    if horizon is not None:
        environment.time_limit = NEVER
    spec = environment.observation_spec
    return adapt(
        Suite(
            partial(_begin, environment, spec),
            partial(_advance, environment, spec),
        ),
        partial(_space, spec),
        spaces.Discrete(int(environment.action_spec.num_values)),
        None if horizon is None else int(horizon),
    )


def _begin(environment: Any, spec: Any, key: Array) -> tuple[PyTree, PyTree]:
    state, timestep = environment.reset(key)
    return state, _observation(spec, timestep.observation)


def _advance(
    environment: Any, spec: Any, key: Array, state: Any, action: Array
) -> tuple:
    """Jumanji's transition; a key in the state is replaced by ours."""
    if hasattr(state, "key"):
        state = state.replace(key=key)
    state, timestep = environment.step(state, action)
    terminated = (timestep.discount == 0) & timestep.last()
    obs = _observation(spec, timestep.observation)
    return state, obs, timestep.reward, terminated, dict(timestep.extras or {})


def _children(spec: Any) -> dict[str, Any]:
    """The specs of named fields; empty for the spec of an array."""
    return {name: child for name, child in spec._specs.items() if name != LEFT_OUT}


def _observation(spec: Any, obs: Any) -> PyTree:
    """Convert an observation with named fields to a dictionary."""
    children = _children(spec)
    if not children:
        return obs
    return {
        name: _observation(child, getattr(obs, name))
        for name, child in children.items()
    }


def _space(spec: Any, obs: PyTree) -> spaces.Space:
    children = _children(spec)
    if children:
        return spaces.dict_space(
            **{name: _space(child, obs[name]) for name, child in children.items()}
        )
    if hasattr(spec, "num_values") and not obs.shape:
        return spaces.Discrete(int(spec.num_values), np.dtype(obs.dtype).name)
    low = getattr(spec, "minimum", -np.inf)
    high = getattr(spec, "maximum", np.inf)
    return spaces.box(low, high, obs.shape, obs.dtype)
