"""What replay keeps of a step, and the batches that targets are made of.

Of one reward and without hindsight a batch is what was stored. Of n rewards, or with a goal
that was reached later, it is computed at sampling time from the rows that follow.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import estimators, spaces
from jaxrl.replay import hindsight, ring
from jaxrl.types import Array, Batches, Env, PyTree, Transition

GOAL_KEYS = {"observation", "achieved_goal", "desired_goal"}
"""What an observation consists of where there are goals."""


class Stored(NamedTuple):
    """A transition in the replay memory."""

    obs: PyTree
    action: Array
    reward: Array
    terminated: Array
    next_obs: PyTree
    truncated: Array | None = None
    """Only where targets have several rewards, or hindsight."""
    step: Array | None = None
    """Of its episode, int32; only with hindsight."""


class Batch(NamedTuple):
    """What a target of k rewards is made of, at most `config.n_step`; `[B, ...]`."""

    obs: PyTree
    action: Array
    reward: Array  # the discounted sum of k rewards
    terminated: Array  # whether `next_obs` is terminal
    next_obs: PyTree  # k steps later
    discount: Array  # γ^k


def has_goals(env: Env) -> bool:
    """Whether an environment's observations have goals, and a reward that follows them."""
    space = env.observation_space
    if env.goal_reward is None or not isinstance(space, spaces.Dict):
        return False
    if {name for name, _ in space.items} != GOAL_KEYS:
        return False
    goals = space["achieved_goal"], space["desired_goal"]
    return spaces.is_compatible(*goals) and not isinstance(goals[0], spaces.Dict)


def make_rows(config: Any, trajectory: Transition, first: Array) -> Stored:
    """The part of a trajectory `[T, N]` that replay keeps.

    Args:
      config: of the algorithm.
      trajectory: `[T, N]`.
      first: int32 `[N]`, the steps that each environment's episode had before.
    """
    relabels = config.hindsight != "none"
    step = hindsight.episode_steps(trajectory.done, first) if relabels else None
    return Stored(
        obs=trajectory.obs,
        action=trajectory.action,
        reward=trajectory.reward,
        terminated=trajectory.terminated,
        next_obs=trajectory.next_obs,
        truncated=trajectory.truncated if config.n_step > 1 or relabels else None,
        step=step,
    )


def batches(
    config: Any, env: Env, memory: ring.Ring, key: Array, shape: tuple[int, int]
) -> Batches:
    """Batches `[S, B]` of stored transitions, uniformly drawn; each is a `Batch`."""
    if config.hindsight == "none":
        index: PyTree = ring.sample_indices(memory, key, shape)
    else:
        key, *keys = jax.random.split(key, 3)
        draws = (jax.random.uniform(x, shape) for x in keys)
        index = (ring.sample_indices(memory, key, shape), *draws)
    return Batches(index, partial(read, config, env, memory), shape[0] * shape[1])


def read(config: Any, env: Env, memory: ring.Ring, index: PyTree) -> Batch:
    """The transitions at `[B]` indices, with what follows each of them.

    With hindsight an index has two uniform draws beside it: which of the goals reached
    later, and whether one of them takes the place of the goal desired.
    """
    if config.hindsight != "none":
        return read_with_hindsight(config, env, memory, *index)
    if config.n_step > 1:
        return read_n_step(config, memory, index)
    row: Stored = ring.take(memory, index)
    discount = jnp.broadcast_to(config.gamma, index.shape)
    return Batch(
        row.obs, row.action, row.reward, row.terminated, row.next_obs, discount
    )


def read_at(
    config: Any, env: Env, memory: ring.Ring, index: Array, key: Array
) -> Batch:
    """The same at indices that something else has drawn; `key`: of hindsight's draws."""
    if config.hindsight == "none":
        return read(config, env, memory, index)
    draws = (jax.random.uniform(k, index.shape) for k in jax.random.split(key))
    return read(config, env, memory, (index, *draws))


def read_n_step(config: Any, memory: ring.Ring, index: Array) -> Batch:
    """Targets of n rewards, or fewer where an episode or the memory ends."""
    data: Stored = memory.data
    ahead, newest = ring.ahead(memory, index, config.n_step)
    reward, terminated, truncated = ring.take_from(
        (data.reward, data.terminated, data.truncated), ahead
    )
    obs, action = ring.take_from((data.obs, data.action), index)
    ends = terminated | truncated | newest
    return _cut(config, memory, obs, action, ahead, reward, terminated, ends)


def read_with_hindsight(
    config: Any, env: Env, memory: ring.Ring, index: Array, which: Array, whether: Array
) -> Batch:
    """The same with goals of which a fraction was reached later in the episode."""
    data: Any = memory.data
    ahead, newest = ring.ahead(memory, index, config.n_step)
    reward, terminated, truncated = ring.take_from(
        (data.reward, data.terminated, data.truncated), ahead
    )
    obs, action = ring.take_from((data.obs, data.action), index)
    later = hindsight.goals(
        memory,
        data.step,
        data.next_obs["achieved_goal"],
        index,
        which,
        config.hindsight,
    )
    chosen = whether < config.hindsight_fraction
    goal = _where(chosen, later, obs["desired_goal"])
    new_reward, new_end = relabel(env, memory, ahead, goal, terminated)
    reward = jnp.where(chosen, new_reward, reward)
    new_end = jnp.where(chosen, new_end, terminated)
    ends = terminated | new_end | truncated | newest
    obs = obs | {"desired_goal": goal}
    batch = _cut(config, memory, obs, action, ahead, reward, new_end, ends)
    return batch._replace(next_obs=batch.next_obs | {"desired_goal": goal})


def _cut(
    config: Any,
    memory: ring.Ring,
    obs: PyTree,
    action: Array,
    ahead: Array,
    reward: Array,
    terminated: Array,
    ends: Array,
) -> Batch:
    """A batch of rows `[n, B]` that follow each other, of each those up to its end."""
    reward, steps = estimators.return_until(reward, ends, config.gamma)

    def last(x: Array) -> Array:
        return jnp.take_along_axis(x, steps[None] - 1, axis=0)[0]

    next_obs = ring.take_from(memory.data.next_obs, last(ahead))
    return Batch(obs, action, reward, last(terminated), next_obs, config.gamma**steps)


def _where(condition: Array, x: Array, y: Array) -> Array:
    """x or y `[B, ...]` by a condition `[B]`."""
    return jnp.where(condition.reshape(-1, *[1] * (x.ndim - 1)), x, y)


def relabel(
    env: Env, memory: ring.Ring, index: Array, goal: Array, terminated: Array
) -> tuple[Array, Array]:
    """Rewards and ends `[n, B]` of transitions at `[n, B]` with goals `[B, ...]`.

    An end that the goal of that time does not explain, such as a fall, stays one.
    """
    goal_reward: Any = env.goal_reward
    of_step = jax.vmap(jax.vmap(goal_reward, (0, 0, None)), (0, 0, None))
    data: Any = memory.data
    reached, before = ring.take_from(
        (data.next_obs["achieved_goal"], data.obs["desired_goal"]), index
    )
    _, explained = of_step(reached, before, env.params)
    goals = jnp.broadcast_to(goal[None], before.shape)
    reward, ends = of_step(reached, goals, env.params)
    return reward, ends | (terminated & ~explained)
