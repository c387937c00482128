"""Brax: rigid bodies (Freeman et al., 2021, "Brax - A Differentiable Physics Engine").

Parameters are those of Brax's constructors: `backend` ("generalized", "positional",
"spring" or "mjx") and the weights of the rewards. The time limit is the 1,000 steps of
Brax's training environments. Brax's auto-reset, which replays one cached initial state, is
not used.
"""

from functools import partial
from typing import Any

import numpy as np

from jaxrl import spaces
from jaxrl.envs.suites import Suite, adapt, import_quietly
from jaxrl.types import Array, Env, PyTree

NAMES = (
    "ant",
    "fast",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_pendulum",
    "inverted_double_pendulum",
    "pusher",
    "reacher",
    "swimmer",
    "walker2d",
)
EPISODE_LENGTH = 1_000


def build(name: str, **params: Any) -> Env:
    """An environment of Brax."""
    environment = import_quietly("brax.envs").get_environment(name, **params)
    return adapt(
        Suite(partial(begin, environment), partial(_advance, environment)),
        unbounded,
        spaces.box(-1.0, 1.0, (environment.action_size,)),
        EPISODE_LENGTH,
    )


def begin(environment: Any, key: Array) -> tuple[PyTree, Array]:
    """A state of an environment with Brax's interface, and its observation."""
    state = environment.reset(key)
    return state, state.obs


def unbounded(obs: Any) -> spaces.Box:
    """The space of an array without bounds."""
    return spaces.box(-np.inf, np.inf, obs.shape, obs.dtype)


def _advance(environment: Any, key: Array, state: Any, action: Array) -> tuple:
    del key  # nothing in it is random
    state = environment.step(state, action)
    return state, state.obs, state.reward, state.done > 0, dict(state.metrics)
