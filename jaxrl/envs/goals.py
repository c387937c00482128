"""Environments with goals: the reward says only whether a goal is reached.

Observations are `{"observation", "achieved_goal", "desired_goal"}`, and `env.goal_reward`
is the reward and the end of a step from the two goals, for `replay.hindsight`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.core.config import check_value
from jaxrl.types import Array, Env, PyTree, TimeStep


def goal_step(
    env_state: PyTree, observation: Array, achieved: Array, goal: Array, params: PyTree
) -> tuple[PyTree, TimeStep]:
    """The step of an environment whose reward is `reached_within`."""
    reward, terminated = reached_within(achieved, goal, params)
    obs = goal_obs(observation, achieved, goal)
    return env_state, TimeStep(obs, reward, terminated, jnp.bool_(False), {})


def goal_obs(observation: Array, achieved: Array, desired: Array) -> dict[str, Array]:
    """The three parts of an observation with a goal."""
    return {
        "observation": observation,
        "achieved_goal": achieved,
        "desired_goal": desired,
    }


def reached_within(
    achieved: Array, desired: Array, tolerance: Array
) -> tuple[Array, Array]:
    """Reward 0 and the end where the goal is near enough, reward -1 elsewhere."""
    reached = jnp.linalg.norm(achieved - desired) <= tolerance
    return jnp.where(reached, jnp.float32(0.0), -1.0), reached


def _space(goal: spaces.Box) -> spaces.Dict:
    """Of observations that are what is achieved, which is of the kind of the goal."""
    return spaces.dict_space(observation=goal, achieved_goal=goal, desired_goal=goal)


def bit_flip(length: int = 15) -> Env:
    """`goal/bit-flip`: `length` bits and as many goal bits; action i flips bit i.

    Reward -1 until all bits are those of the goal, which ends the episode; at most
    `length` steps. Without hindsight nobody finds one goal of 2^length by chance.

    Source: Andrychowicz et al. (2017), https://arxiv.org/abs/1707.01495, section 3.1.
    """
    check_value("length", int, length, low=1, high=1_000)
    bits = spaces.box(0.0, 1.0, (length,))
    return Env(
        params=np.float32(0.5),
        horizon=np.int32(length),
        reset=functools.partial(_bits_reset, length),
        step=_bits_step,
        observation_space=_space(bits),
        action_space=spaces.Discrete(length),
        goal_reward=reached_within,
    )


def _bits_reset(length: int, key: Array, params: PyTree) -> tuple[PyTree, PyTree]:
    """Bits and goal at random, of which at least one differs."""
    del params
    key, key_bit = jax.random.split(key)
    bits, goal = jax.random.bernoulli(key, shape=(2, length)).astype(jnp.float32)
    bit = jax.random.randint(key_bit, (), 0, length)
    flipped = bits.at[bit].set(1.0 - bits[bit])
    goal = jnp.where((goal == bits).all(), flipped, goal)
    return (bits, goal), goal_obs(bits, bits, goal)


def _bits_step(key: Array, state: PyTree, action: Array, params: PyTree):
    del key
    bits, goal = state
    action = jnp.clip(action, 0, len(bits) - 1)
    bits = bits.at[action].set(1.0 - bits[action])
    return goal_step((bits, goal), bits, bits, goal, params)


SPEED = 0.1
"""How far an action moves the point along each axis at most."""


def point_reach(tolerance: float = 0.05) -> Env:
    """`goal/point-reach`: a point in [-1, 1]² that actions move, and a place to go to.

    Actions in [-1, 1]² move it by a tenth of themselves. Reward -1 until it is within
    `tolerance` of its goal, which ends the episode; at most 50 steps.
    """
    check_value("tolerance", float, tolerance, above=0.0, high=1.0)
    place = spaces.box(-1.0, 1.0, (2,))
    return Env(
        params=np.float32(tolerance),
        horizon=np.int32(50),
        reset=_point_reset,
        step=_point_step,
        observation_space=_space(place),
        action_space=place,
        goal_reward=reached_within,
    )


def _point_reset(key: Array, params: PyTree) -> tuple[PyTree, PyTree]:
    del params
    point, goal = jax.random.uniform(key, (2, 2), minval=-1.0, maxval=1.0)
    return (point, goal), goal_obs(point, point, goal)


def _point_step(key: Array, state: PyTree, action: Array, params: PyTree):
    del key
    point, goal = state
    point = jnp.clip(point + SPEED * jnp.clip(action, -1.0, 1.0), -1.0, 1.0)
    return goal_step((point, goal), point, point, goal, params)


GOALS = {"goal/bit-flip": bit_flip, "goal/point-reach": point_reach}
"""Id -> the function that builds it."""
