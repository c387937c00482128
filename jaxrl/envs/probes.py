"""Probe environments: tiny problems whose values are known exactly.

Each isolates one thing that a learner must get right, so that the first failing probe
locates the fault. After Andy Jones, "Debugging RL, without the agonizing pain" (2021).
The last observation of an episode looks like one with a future, so a target that
bootstraps past the end of an episode is visibly wrong.

`gamma` is the discount, V the value of the best policy.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.errors import InvalidInput
from jaxrl.types import Array, Env, PyTree, TimeStep

SIGN = spaces.box(-1.0, 1.0, (1,))
ONE = spaces.box(1.0, 1.0, (1,))
FLAG = spaces.box(0.0, 1.0, (1,))


# One step, no choice: is the value learnt, and does it depend on the observation?


def constant() -> Env:
    """`probe/constant`: observation 1, reward 1, one step. V = 1."""
    return _env(_reset_to_one, _constant_step, ONE, spaces.Discrete(2))


def _reset_to_one(key: Array, params: PyTree) -> tuple[Array, Array]:
    del key, params
    return jnp.int32(0), jnp.ones(1)


def _constant_step(key: Array, state: Array, action: Array, params: PyTree):
    del key, action, params
    return state, _timestep(jnp.ones(1), reward=1.0, terminated=True)


def observation() -> Env:
    """`probe/observation`: observation x = -1 or 1, reward x, one step. V(x) = x."""
    return _env(_reset_to_sign, _observation_step, SIGN, spaces.Discrete(2))


def _reset_to_sign(key: Array, params: PyTree) -> tuple[Array, Array]:
    del params
    x = jax.random.rademacher(key, (1,), jnp.float32)
    return x, x


def _observation_step(key: Array, x: Array, action: Array, params: PyTree):
    del key, action, params
    return x, _timestep(x, reward=x[0], terminated=True)


# Two steps: is the reward discounted back?


def delay() -> Env:
    """`probe/delay`: observations 0, 1; rewards 0, 1. V(0) = gamma, V(1) = 1."""
    return _env(_delay_reset, _delay_step, FLAG, spaces.Discrete(2))


def _delay_reset(key: Array, params: PyTree) -> tuple[Array, Array]:
    del key, params
    return jnp.int32(0), jnp.zeros(1)


def _delay_step(key: Array, t: Array, action: Array, params: PyTree):
    del key, action, params
    last = t == 1
    return t + 1, _timestep(jnp.ones(1), reward=last, terminated=last)


# One step, a choice: is the policy learnt, and does it depend on the observation?


def action() -> Env:
    """`probe/action`: reward 1 for action 1 and -1 for action 0, one step. V = 1."""
    return _env(_reset_to_one, _action_step, ONE, spaces.Discrete(2))


def _action_step(key: Array, state: Array, action: Array, params: PyTree):
    del key, params
    reward = jnp.where(action == 1, 1.0, -1.0)
    return state, _timestep(jnp.ones(1), reward, terminated=True)


def action_observation() -> Env:
    """`probe/action-observation`: observation x = -1 or 1, one step.

    Reward 1 if `action == (x > 0)`, else -1. V(x) = 1; a policy that does not look at x
    gets 0 on average.
    """
    return _env(_reset_to_sign, _action_observation_step, SIGN, spaces.Discrete(2))


def _action_observation_step(key: Array, x: Array, action: Array, params: PyTree):
    del key, params
    reward = jnp.where(action == (x[0] > 0), 1.0, -1.0)
    return x, _timestep(x, reward, terminated=True)


def continuous() -> Env:
    """`probe/continuous`: observation x in [-1, 1], action a in [-1, 1], one step.

    Reward -(a - x/2)^2, so the best action is x/2 and V(x) = 0.
    """
    return _env(_continuous_reset, _continuous_step, SIGN, spaces.box(-1, 1, (1,)))


def _continuous_reset(key: Array, params: PyTree) -> tuple[Array, Array]:
    del params
    x = jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0)
    return x, x


def _continuous_step(key: Array, x: Array, action: Array, params: PyTree):
    del key, params
    error = jnp.clip(jnp.reshape(action, ()), -1.0, 1.0) - x[0] / 2
    return x, _timestep(x, -(error**2), terminated=True)


# Time: is truncation distinguished from termination?


def truncation() -> Env:
    """`probe/truncation`: observation 1, reward 1 for ever, truncated after 5 steps.

    V = 1 / (1 - gamma): 10 at gamma 0.9. A learner that mistakes truncation for
    termination converges to 1 / (1 - 0.8 gamma) = 3.6 by TD(0), or to the mean return from
    a random step of the five, 2.6, by Monte Carlo.
    """
    return _env(_reset_to_one, _endless_step, ONE, spaces.Discrete(2), horizon=5)


def _endless_step(key: Array, state: Array, action: Array, params: PyTree):
    del key, action, params
    return state, _timestep(jnp.ones(1), reward=1.0, terminated=False)


def terminal(horizon: int = 5) -> Env:
    """`probe/terminal`: reward 1 in each of `horizon` steps, then termination.

    A finite-horizon problem, so reaching the horizon is terminal. The observation is
    the number of steps taken, one-hot `[horizon]` (all zeros at the end), and
    V(t) = (1 - gamma^(horizon - t)) / (1 - gamma): `terminal_values`.
    """
    _check_size("horizon", horizon, 1)
    reset, step = _terminal_functions(horizon)
    space = spaces.box(0.0, 1.0, (horizon,))
    return _env(reset, step, space, spaces.Discrete(2), horizon, "terminal")


def terminal_values(gamma: float, horizon: int = 5) -> np.ndarray:
    """V(t) of `probe/terminal` for t = 0, ..., horizon - 1."""
    left = np.arange(horizon, 0, -1)
    return (1 - gamma**left) / (1 - gamma) if gamma < 1 else left.astype(float)


@functools.cache
def _terminal_functions(horizon: int) -> tuple[Callable, Callable]:
    reset = functools.partial(_terminal_reset, horizon)
    return reset, functools.partial(_terminal_step, horizon)


def _terminal_reset(horizon: int, key: Array, params: PyTree) -> tuple[Array, Array]:
    del key, params
    return jnp.int32(0), jax.nn.one_hot(0, horizon)


def _terminal_step(horizon: int, key: Array, t: Array, action: Array, params: PyTree):
    del key, action, params
    obs = jax.nn.one_hot(t + 1, horizon)
    return t + 1, _timestep(obs, reward=1.0, terminated=False)


# Chains: are values propagated, and is the far reward found?

DISCOUNTED_TRANSITIONS = np.array([[0.5, 0.5], [0.2, 0.8]])
"""P[s, s']: the probability of a transition from state s to state s'."""

DISCOUNTED_REWARDS = np.array([1.0, 0.0])
"""r[s]: the reward of a step that begins in state s."""


def discounted() -> Env:
    """`probe/discounted`: a Markov chain of two states that never ends.

    Observation one-hot `[2]`, rewards `DISCOUNTED_REWARDS`, transitions
    `DISCOUNTED_TRANSITIONS`; actions do nothing. V = `discounted_values`.
    """
    space = spaces.box(0.0, 1.0, (2,))
    return _env(_discounted_reset, _discounted_step, space, spaces.Discrete(2))


def discounted_values(gamma: float) -> np.ndarray:
    """V of `probe/discounted`, `[2]`: the solution of V = r + gamma P V."""
    system = np.eye(2) - gamma * DISCOUNTED_TRANSITIONS
    return np.linalg.solve(system, DISCOUNTED_REWARDS)


def _discounted_reset(key: Array, params: PyTree) -> tuple[Array, Array]:
    del key, params
    return jnp.int32(0), jax.nn.one_hot(0, 2)


def _discounted_step(key: Array, state: Array, action: Array, params: PyTree):
    del action, params
    reward = jnp.asarray(DISCOUNTED_REWARDS, jnp.float32)[state]
    p_one = jnp.asarray(DISCOUNTED_TRANSITIONS, jnp.float32)[state, 1]
    state = jax.random.bernoulli(key, p_one).astype(jnp.int32)
    obs = jax.nn.one_hot(state, 2)
    return state, _timestep(obs, reward, terminated=False)


def shortest_path(length: int = 5) -> Env:
    """`probe/shortest-path`: a corridor of `length` cells, start left, goal right.

    Observation: the cell, one-hot `[length]`. Action 1 moves right, 0 left (or into the
    wall); every step costs 1 until the goal, cell `length - 1`, which is terminal. With
    gamma 1, V(cell) = -(length - 1 - cell) and Q(cell, left) = V(max(cell - 1, 0)) - 1.
    """
    _check_size("length", length, 2)
    reset, step = _shortest_path_functions(length)
    return _env(reset, step, spaces.box(0.0, 1.0, (length,)), spaces.Discrete(2))


@functools.cache
def _shortest_path_functions(length: int) -> tuple[Callable, Callable]:
    reset = functools.partial(_shortest_path_reset, length)
    return reset, functools.partial(_shortest_path_step, length)


def _shortest_path_reset(length: int, key: Array, params: PyTree):
    del key, params
    return jnp.int32(0), jax.nn.one_hot(0, length)


def _shortest_path_step(
    length: int, key: Array, cell: Array, action: Array, params: PyTree
):
    del key, params
    goal = length - 1
    cell = jnp.clip(cell + jnp.where(action == 1, 1, -1), 0, goal)
    obs = jax.nn.one_hot(cell, length)
    return cell, _timestep(obs, reward=-1.0, terminated=cell == goal)


# Memory and masks.


def memory(length: int = 4) -> Env:
    """`probe/memory`: recall the cue of `length` steps ago.

    Observation `[cue, answer now]`: the cue is -1 or 1 at the start and 0 afterwards,
    and the flag is 1 from step `length` on. There the correct action is `cue > 0`: reward
    1 or -1, and the episode ends. All other rewards are 0. V = gamma^(length - t) at step
    t; a policy without memory gets 0 on average. `env.params` is the length.
    """
    _check_size("length", length, 2)
    space = spaces.box(low=[-1.0, 0.0], high=[1.0, 1.0], shape=(2,))
    env = _env(_memory_reset, _memory_step, space, spaces.Discrete(2))
    return env.replace(params=np.int32(length))


def _memory_reset(key: Array, length: Array) -> tuple[tuple[Array, Array], Array]:
    del length
    cue = jax.random.rademacher(key, (), jnp.float32)
    return (cue, jnp.int32(0)), jnp.stack([cue, 0.0])


def _memory_step(key: Array, state: tuple, action: Array, length: Array):
    del key
    cue, t = state
    answered = t == length
    right = jnp.where(action == (cue > 0), 1.0, -1.0)
    obs = jnp.stack([0.0, (t + 1 >= length).astype(jnp.float32)])
    step = _timestep(obs, jnp.where(answered, right, 0.0), terminated=answered)
    return (cue, t + 1), step


def masked() -> Env:
    """`probe/masked`: four actions, a random subset of which is legal; one step.

    Observation `{"obs": [1], "action_mask": bool [4]}`, at least one action legal.
    Reward 1 for a legal action and -10 for an illegal one, so V = 1 and a single illegal
    action in a batch is visible. "obs" is uninformative: only a policy that applies the
    mask gets V.
    """
    mask = spaces.box(0, 1, (4,), bool)
    space = spaces.dict_space(obs=ONE, action_mask=mask)
    return _env(_masked_reset, _masked_step, space, spaces.Discrete(4))


def _masked_reset(key: Array, params: PyTree) -> tuple[Array, dict[str, Array]]:
    del params
    key_mask, key_legal = jax.random.split(key)
    mask = jax.random.bernoulli(key_mask, shape=(4,))
    mask |= jnp.arange(4) == jax.random.randint(key_legal, (), 0, 4)
    return mask, {"obs": jnp.ones(1), "action_mask": mask}


def _masked_step(key: Array, mask: Array, action: Array, params: PyTree):
    del key, params
    obs = {"obs": jnp.ones(1), "action_mask": mask}
    return mask, _timestep(obs, jnp.where(mask[action], 1.0, -10.0), terminated=True)


PROBES = {
    "probe/constant": constant,
    "probe/observation": observation,
    "probe/delay": delay,
    "probe/action": action,
    "probe/action-observation": action_observation,
    "probe/continuous": continuous,
    "probe/truncation": truncation,
    "probe/terminal": terminal,
    "probe/discounted": discounted,
    "probe/shortest-path": shortest_path,
    "probe/memory": memory,
    "probe/masked": masked,
}
"""Id -> the function that builds the probe, in the order in which to try them."""


def _env(
    reset: Callable,
    step: Callable,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    horizon: int | None = None,
    horizon_is: Literal["terminal", "truncated"] = "truncated",
) -> Env:
    return Env(
        params=(),
        horizon=None if horizon is None else np.int32(horizon),
        reset=reset,
        step=step,
        observation_space=observation_space,
        action_space=action_space,
        horizon_is=horizon_is,
    )


def _timestep(obs: PyTree, reward: Any, terminated: Any) -> TimeStep:
    return TimeStep(
        obs=obs,
        reward=jnp.asarray(reward, jnp.float32),
        terminated=jnp.asarray(terminated, bool),
        truncated=jnp.bool_(False),
        info={},
    )


def _check_size(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise InvalidInput(f"{name} = {value!r}: must be a whole number >= {low}.")
