"""Rollouts: the only code that steps an environment for training or evaluation.

The error-prone parts are implemented here, once: batching, auto-reset, time limits,
the true successor observation, the reset of a recurrent memory, episode statistics.

A policy is any function `(obs, memory, noise) -> (action, memory, extras)`, batched over
`[N]`; `noise` is a random key, unless the caller of `unroll` passes another `Noise`.

All randomness of a rollout is drawn before its loop, in a few large calls: drawing inside
the loop would add several operations to every step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.core import parallel
from jaxrl.types import (
    BAD_OBS,
    BAD_REWARD,
    Array,
    Env,
    Mean,
    Memory,
    Metrics,
    PyTree,
    TimeStep,
    Transition,
    World,
    counter,
)

Policy = Callable[[PyTree, Memory, PyTree], tuple[Array, Memory, dict[str, Any]]]
Noise = Callable[[Array, tuple[int, int]], PyTree]
"""`(key, (T, N)) -> ` the noise of the policy at each step, `[T, N, ...]` or `[T]`."""


class Draws(NamedTuple):
    """The randomness of T steps of N environments."""

    noise: PyTree  # [T, ...], for the policy
    keys: Array  # [T, N], for `env.step`
    fresh: tuple[PyTree, PyTree]  # (env_state, obs) [R, N, ...]: starts of new episodes
    fresh_row: Array  # int32 [T]: the row of `fresh` used at each step


def step_keys(key: Array, shape: tuple[int, int]) -> Array:
    """Random keys `[T]`, one for each step: the noise of a policy that samples by key.

    `shape` is (T, N).
    """
    return jax.random.split(parallel.own_key(key), shape[0])


def draw(env: Env, noise: Noise, key: Array, num_steps: int, num_envs: int) -> Draws:
    """Draw all randomness of `num_steps` steps of `num_envs` environments.

    A new start is drawn for each environment once in `env.shortest_episode` steps, not at
    every step: at most one episode can begin in that time. So the starts are independent
    draws, as with a reset at every step. If the number were larger than the shortest
    episode, every start would still have the right distribution, but an environment could
    begin two episodes of one rollout in the same state.
    """
    key_noise, key_step, key_fresh = jax.random.split(key, 3)
    shape = (num_steps, num_envs * parallel.num_shares())
    rows = -(-num_steps // env.shortest_episode)
    reset = jax.vmap(partial(_reset, env, num_envs=num_envs))
    return Draws(
        noise=jax.tree.map(_own_envs, noise(key_noise, shape)),
        keys=_own_envs(jax.random.split(key_step, shape)),
        fresh=reset(jax.random.split(key_fresh, rows)),
        fresh_row=jnp.arange(num_steps) // env.shortest_episode,
    )


def _own_envs(x: Array) -> Array:
    """This device's environments `[T, n, ...]` of `[T, N, ...]`; `[T]` is for all."""
    return x if x.ndim == 1 else parallel.share(x, axis=1)


def init_world(env: Env, key: Array, num_envs: int, memory: Memory = ()) -> World:
    """`num_envs` freshly reset environments with an empty memory `[N, ...]`."""
    key, key_reset = jax.random.split(key)
    env_state, obs = _reset(env, key_reset, num_envs)
    return World(
        env_state=env_state,
        obs=obs,
        memory=memory,
        episode_return=jnp.zeros(num_envs, jnp.float32),
        episode_length=jnp.zeros(num_envs, jnp.int32),
        trouble=jnp.int32(BAD_OBS) * ~_all_finite(obs, 1),
        key=key,
        env_steps=counter(),
    )


def restart_episodes(env: Env, world: World) -> World:
    """Restart every environment of a world `[N]` with a new episode.

    For estimators that need complete episodes. Running episodes are dropped and do not
    enter the episode statistics.
    """
    fresh = init_world(env, world.key, len(world.episode_length))
    memory = jax.tree.map(jnp.zeros_like, world.memory)
    trouble = world.trouble | fresh.trouble
    return fresh.replace(memory=memory, env_steps=world.env_steps, trouble=trouble)


def step_world(
    env: Env,
    policy: Policy,
    world: World,
    noise: PyTree,
    keys: Array,
    fresh: tuple | None,
) -> tuple[World, Transition]:
    """Step every environment once, with auto-reset.

    Args:
      env: the environment.
      policy: the policy that selects the actions.
      world: the current state of the environments.
      noise: the noise of the policy.
      keys: `[N]`, for `env.step`.
      fresh: the (env_state, obs) `[N, ...]` in which new episodes start; if None, an
        environment stays in the state in which its episode ended.

    Returns:
      The next world, whose `obs`, `env_state` and `memory` are those of a new episode
      where one ended, and the `Transition` `[N, ...]`, whose `next_obs` is the true
      successor. `episode_return` and `episode_length` of the next world are still those of
      the ended episode; `unroll` reads them and `_begin_episodes` clears them.
    """
    action, memory, extras = policy(world.obs, world.memory, noise)
    env_state, step = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
        keys, world.env_state, action, env.params
    )
    # A reward of another dtype, such as a count, is learned from as float32.
    step = step._replace(reward=jnp.asarray(step.reward, jnp.float32))
    episode_length = world.episode_length + 1
    terminated, truncated = episode_ends(env, step, episode_length)
    done = terminated | truncated
    transition = Transition(
        obs=world.obs,
        action=action,
        reward=step.reward,
        terminated=terminated,
        truncated=truncated,
        next_obs=step.obs,
        extras=extras,
    )
    if fresh is None:
        fresh = (env_state, step.obs)
    world = world.replace(
        env_state=tree_where(done, fresh[0], env_state),
        obs=tree_where(done, fresh[1], step.obs),
        memory=tree_where(done, jax.tree.map(jnp.zeros_like, memory), memory),
        episode_return=world.episode_return + step.reward,
        episode_length=episode_length,
    )
    return world, transition


def unroll(
    env: Env,
    policy: Policy,
    world: World,
    num_steps: int,
    noise: Noise = step_keys,
) -> tuple[World, Transition, Metrics]:
    """Step every environment `num_steps` times.

    Args:
      env: the environment.
      policy: the policy that selects the actions.
      world: the current state of the environments.
      num_steps: T.
      noise: `(key, (T, N)) -> [T, ...]`, draws the noise of the policy for each step; by
        default random keys.

    Returns:
      The next world, the transitions `[T, N, ...]` in time order, and the mean return
      and length of the episodes that ended during the rollout.
    """
    num_envs = len(world.episode_length)
    key, key_draw = jax.random.split(world.key)
    draws = draw(env, noise, key_draw, num_steps, num_envs)
    env_steps = num_steps * num_envs * parallel.num_shares()
    world = world.replace(key=key, env_steps=world.env_steps + env_steps)

    def step(carry: tuple, row: tuple) -> tuple[tuple, Transition]:
        world, ended = carry
        noise, keys, fresh_row = row
        fresh = jax.tree.map(lambda x: x[fresh_row], draws.fresh)
        world, transition = step_world(env, policy, world, noise, keys, fresh)
        done = transition.terminated | transition.truncated
        now = (world.episode_return, world.episode_length, done)
        # Sums per environment: storing every step to sum it later would cost more.
        ended = tuple(
            total + jnp.where(done, x, 0).astype(total.dtype)
            for total, x in zip(ended, now, strict=True)
        )
        return (_begin_episodes(world, done), ended), transition

    zero = jnp.zeros(num_envs, jnp.int32)
    carry = (world, (zero.astype(jnp.float32), zero, zero))
    rows = (draws.noise, draws.keys, draws.fresh_row)
    (world, ended), transitions = jax.lax.scan(step, carry, rows)
    total_return, total_length, episodes = (x.sum(dtype=jnp.float32) for x in ended)
    stats = {
        "rollout/episode_return": Mean(total_return, episodes),
        "rollout/episode_length": Mean(total_length, episodes),
    }
    world = world.replace(trouble=world.trouble | _error_flags(world, transitions))
    return world, transitions, stats


def _error_flags(world: World, transitions: Transition) -> Array:
    """Flags of non-finite observations and rewards (`World.trouble`), int32 `[N]`.

    Computed after the loop from the stored transitions, which saves an operation per step.
    The last observation of an episode is not checked; if a learner reads it, its loss
    becomes non-finite.
    """
    bad_obs = ~(_all_finite(transitions.obs, 2).all(0) & _all_finite(world.obs, 1))
    bad_reward = ~jnp.isfinite(transitions.reward).all(0)
    return BAD_OBS * bad_obs | BAD_REWARD * bad_reward


def _all_finite(tree: PyTree, batch_axes: int) -> Array:
    """True where all leaves are finite, `[N]` or `[T, N]`."""
    shape = jax.tree.leaves(tree)[0].shape[:batch_axes]
    finite = jnp.ones(shape, bool)
    for x in jax.tree.leaves(tree):
        if jnp.issubdtype(x.dtype, jnp.floating):
            finite &= jnp.isfinite(x).reshape(*shape, -1).all(-1)
    return finite


def rollout_episode(
    env: Env, policy: Policy, world: World, max_steps: int | Array
) -> tuple[Array, Array, Array]:
    """Play the first episode of each environment, for at most `max_steps` steps.

    Every environment counts exactly once, so short episodes are not favoured. The loop
    stops as soon as all episodes have ended. The noise of the policy is a random key.

    Returns:
      return `[N]` (undiscounted), length `[N]`, ended `[N]` (False where `max_steps` cut
      the episode off).
    """
    num_envs = len(world.episode_length)

    def not_finished(carry: tuple) -> Array:
        _, _, _, ended, step = carry
        return ~ended.all() & (step < max_steps)

    def step(carry: tuple) -> tuple:
        world, episode_return, episode_length, ended, step = carry
        key, key_policy, key_step = jax.random.split(world.key, 3)
        keys = jax.random.split(key_step, num_envs)
        # After its end, an environment restarts from its initial state; this is ignored.
        world, transition = step_world(env, policy, world, key_policy, keys, start)
        episode_return += jnp.where(ended, 0.0, transition.reward)
        episode_length += ~ended
        done = transition.terminated | transition.truncated
        world = _begin_episodes(world.replace(key=key), done)
        return world, episode_return, episode_length, ended | done, step + 1

    start = (world.env_state, world.obs)
    zero = jnp.zeros_like(world.episode_return)
    carry = (world, zero, jnp.zeros_like(world.episode_length), zero > 0, 0)
    _, episode_return, episode_length, ended, _ = jax.lax.while_loop(
        not_finished, step, carry
    )
    return episode_return, episode_length, ended


class EpisodeRecord(NamedTuple):
    """The first episode of each environment, step by step (`record_episode`)."""

    env_state: PyTree  # [T + 1, N, ...]: before each step, and after the last one
    transition: Transition  # [T, N, ...]
    running: Array  # bool [T, N]; rows where it is False are undefined
    world: World  # after the last step
    ended: Array  # bool [N]: False where the episode goes on


def record_episode(
    env: Env,
    policy: Policy,
    world: World,
    max_steps: int,
    ended: Array | None = None,
) -> EpisodeRecord:
    """Record the first episode of each environment step by step `[T, N, ...]`.

    For rendering, not for learning: `rollout_episode` needs less memory. After its episode
    an environment stays in its last state. With `world` and `ended` of an earlier record
    the episodes go on from there.
    """
    num_envs = len(world.episode_length)
    if ended is None:
        ended = jnp.zeros(num_envs, bool)

    def step(carry: tuple, _: None) -> tuple[tuple, tuple]:
        world, ended = carry
        key, key_policy, key_step = jax.random.split(world.key, 3)
        keys = jax.random.split(key_step, num_envs)
        after, transition = step_world(env, policy, world, key_policy, keys, None)
        row = (world.env_state, transition, ~ended)
        world = after.replace(
            key=key,
            env_state=tree_where(ended, world.env_state, after.env_state),
            obs=tree_where(ended, world.obs, after.obs),
        )
        return (world, ended | transition.terminated | transition.truncated), row

    (last, ended), rows = jax.lax.scan(step, (world, ended), length=max_steps)
    env_state, transition, running = rows

    def with_last(rows: Array, last: Array) -> Array:
        return jnp.concatenate([rows, last[None]])

    states = jax.tree.map(with_last, env_state, last.env_state)
    return EpisodeRecord(states, transition, running, last, ended)


def tree_where(condition: Array, x: PyTree, y: PyTree) -> PyTree:
    """`jnp.where` over pytrees with leading axis `[N]`, for a condition `[N]`."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(select, x, y)


def _reset(env: Env, key: Array, num_envs: int) -> tuple[PyTree, PyTree]:
    keys = parallel.share(jax.random.split(key, num_envs * parallel.num_shares()))
    return jax.vmap(env.reset, in_axes=(0, None))(keys, env.params)


def episode_ends(env: Env, step: TimeStep, length: Array) -> tuple[Array, Array]:
    """`terminated` and `truncated` `[N]` with the time limit applied, never both true."""
    terminated, truncated = step.terminated, step.truncated
    if env.horizon is not None:
        out_of_time = length >= env.horizon
        if env.horizon_is == "terminal":
            terminated |= out_of_time
        else:
            truncated |= out_of_time
    return terminated, truncated & ~terminated


def _begin_episodes(world: World, done: Array) -> World:
    """Clear the episode counters where an episode ended."""
    return world.replace(
        episode_return=jnp.where(done, 0.0, world.episode_return),
        episode_length=jnp.where(done, 0, world.episode_length),
    )
