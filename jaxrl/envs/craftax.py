"""Craftax and Craftax-Classic (Matthews et al., 2024).

Parameters are the fields of Craftax's `EnvParams`. Craftax *terminates* an episode at its
`max_timesteps` (10,000 in Craftax-Classic, else 100,000); here that limit is the `horizon`,
a truncation. Craftax declares observations between 0 and 1. Symbolic observations leave
these bounds, because health and food are shares of 10 that a strong player exceeds and a
dead one falls below; the space here is therefore unbounded. Compiling takes a minute or
more.
"""

from functools import partial
from typing import Any

import numpy as np

from jaxrl import spaces
from jaxrl.envs.suites import Suite, adapt, import_quietly
from jaxrl.errors import InvalidInput, did_you_mean
from jaxrl.types import Array, Env, PyTree

NAMES = (
    "Craftax-Classic-Symbolic-v1",
    "Craftax-Classic-Pixels-v1",
    "Craftax-Symbolic-v1",
    "Craftax-Pixels-v1",
)
NEVER = 2**31 - 2


def build(name: str, **overrides: Any) -> Env:
    """An environment of Craftax."""
    maker = import_quietly("craftax.craftax_env").make_craftax_env_from_name
    environment = maker(name, auto_reset=False)
    params = environment.default_params
    names = [field for field in params.__dataclass_fields__ if field != "max_timesteps"]
    for field, value in overrides.items():
        if field not in names:
            raise InvalidInput(
                f"{field} = {value!r}: craftax/{name} has no such parameter"
                f"{did_you_mean(field, names)}."
            )
    horizon = int(params.max_timesteps)
    low, high = (0.0, 1.0) if "Pixels" in name else (-np.inf, np.inf)
    params = params.replace(max_timesteps=NEVER, **overrides)
    return adapt(
        Suite(
            partial(_begin, environment, params), partial(_advance, environment, params)
        ),
        lambda obs: spaces.box(low, high, obs.shape, obs.dtype),
        spaces.Discrete(int(environment.action_space(params).n)),
        horizon,
    )


def _begin(environment: Any, params: Any, key: Array) -> tuple[PyTree, Array]:
    obs, state = environment.reset_env(key, params)
    return state, obs


def _advance(
    environment: Any, params: Any, key: Array, state: Any, action: Array
) -> tuple:
    obs, state, reward, done, info = environment.step_env(key, state, action, params)
    return state, obs, reward, done, info
