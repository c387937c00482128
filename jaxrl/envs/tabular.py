"""Environments of finite MDPs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.mdp import MDP, finite_mdp
from jaxrl.types import Array, Env, TimeStep

Table = Array | np.ndarray


class Tables(NamedTuple):
    """`Env.params` of a tabular environment: the MDP in float32, as sampling tables."""

    cumulative: Table  # [S, A, S]: P(s_{t+1} <= s' | s, a)
    reward: Table  # [S, A, S]
    terminal: Table  # bool [S]
    start: Table  # [S]: P(s_0 <= s)
    features: Table  # [S, F]


def tabular_env(mdp: MDP) -> Env:
    """The environment of an MDP.

    Its state is the index of the MDP's state, int32; the observation is that state's
    features, `[F]`; actions are 0 ... A - 1, and actions outside are clipped. All
    environments of equal size share one compiled program.
    """
    tables = Tables(
        cumulative=np.cumsum(mdp.transition, axis=2, dtype=np.float32),
        reward=mdp.reward.astype(np.float32),
        terminal=mdp.terminal,
        start=np.cumsum(mdp.start, dtype=np.float32),
        features=mdp.features.astype(np.float32),
    )
    low, high = tables.features.min(axis=0), tables.features.max(axis=0)
    return Env(
        params=tables,
        horizon=None,
        reset=reset,
        step=step,
        observation_space=spaces.box(low, high, low.shape),
        action_space=spaces.Discrete(mdp.num_actions),
        model=model,
    )


def model(tables: Tables) -> MDP:
    """The MDP of the tables, with discount 1, to float32 precision."""
    cumulative = np.asarray(tables.cumulative, float)
    cumulative /= cumulative[..., -1:]
    start = np.asarray(tables.start, float)
    return finite_mdp(
        transition=np.diff(cumulative, axis=2, prepend=0.0),
        reward=tables.reward,
        terminal=tables.terminal,
        start=np.diff(start / start[-1], prepend=0.0),
        features=tables.features,
    )


def reset(key: Array, tables: Tables) -> tuple[Array, Array]:
    """Draw an initial state; return it with its features."""
    state = _draw(key, jnp.asarray(tables.start))
    return state, jnp.asarray(tables.features)[state]


def step(
    key: Array, state: Array, action: Array, tables: Tables
) -> tuple[Array, TimeStep]:
    """Draw the successor from P(. | s, a), with its reward."""
    num_actions = tables.cumulative.shape[1]
    action = jnp.clip(action, 0, num_actions - 1)
    successor = _draw(key, jnp.asarray(tables.cumulative)[state, action])
    timestep = TimeStep(
        obs=jnp.asarray(tables.features)[successor],
        reward=jnp.asarray(tables.reward)[state, action, successor],
        terminated=jnp.asarray(tables.terminal)[successor],
        truncated=jnp.bool_(False),
        info={},
    )
    return successor, timestep


def _draw(key: Array, cumulative: Array) -> Array:
    """Index of the first entry above a uniform random number.

    The number is scaled by the last entry, which rounding may have moved away from 1, so
    that an outcome of probability zero is never drawn.
    """
    threshold = jax.random.uniform(key) * cumulative[-1]
    return (cumulative <= threshold).sum(dtype=jnp.int32)
