"""Pgx: single-player games (Koyamada et al., 2023).

The MinAtar games are those of Young and Tian (2019) with sticky actions of 0.1, as in Pgx:
`sticky_action_prob` and `use_minimal_action_set` are parameters. "2048" has the legal
actions in its observation. There is no time limit, and an episode of MinAtar may never
end: set a `horizon`.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.envs.suites import Suite, adapt, import_quietly
from jaxrl.spaces import MASK
from jaxrl.types import Array, Env, PyTree

NAMES = (
    "2048",
    "minatar-asterix",
    "minatar-breakout",
    "minatar-freeway",
    "minatar-seaquest",
    "minatar-space_invaders",
)


def build(name: str, **params: Any) -> Env:
    """A game of Pgx."""
    game = import_quietly("pgx").make(name)
    if params:
        game = type(game)(**params)
    masked = not name.startswith("minatar-")
    suite = Suite(partial(_begin, game, masked), partial(_advance, game, masked))
    return adapt(suite, _space, spaces.Discrete(int(game.num_actions)), None)


def _begin(game: Any, masked: bool, key: Array) -> tuple[PyTree, PyTree]:
    state = game.init(key)
    return state, _observation(state, masked)


def _advance(
    game: Any, masked: bool, key: Array, state: Any, action: Array
) -> tuple[PyTree, PyTree, Array, Array, dict]:
    state = game.step(state, action, key)
    return state, _observation(state, masked), state.rewards[0], state.terminated, {}


def _observation(state: Any, masked: bool) -> PyTree:
    """Binary observation, one byte per entry, with the action mask if there is one."""
    obs = state.observation.astype(jnp.uint8)
    return {"obs": obs, MASK: state.legal_action_mask} if masked else obs


def _space(obs: PyTree) -> spaces.Space:
    if isinstance(obs, dict):
        children: dict[str, Any] = {name: _space(x) for name, x in obs.items()}
        return spaces.dict_space(**children)
    return spaces.box(0, 1, obs.shape, np.dtype(obs.dtype))
