"""Stepping environments: the only code that steps one for training or evaluation.

What everybody gets wrong is owned here, once: batching, auto-reset, time limits,
the true successor observation, the reset of a recurrent memory, episode statistics.

A policy is any function `(obs, memory, key) -> (action, memory, extras)`, batched
over `[N]`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.types import (
    Array,
    Env,
    Memory,
    Metrics,
    PyTree,
    TimeStep,
    Transition,
    World,
    counter,
    mean,
)

Policy = Callable[[PyTree, Memory, Array], tuple[Array, Memory, dict[str, Any]]]


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
        key=key,
        env_steps=counter(),
    )


def restart_episodes(env: Env, world: World) -> World:
    """The same world with every environment at the start of a new episode.

    For estimators that need whole episodes. What was running is dropped and does not
    enter the episode statistics.
    """
    fresh = init_world(env, world.key, len(world.episode_length))
    memory = jax.tree.map(jnp.zeros_like, world.memory)
    return fresh.replace(memory=memory, env_steps=world.env_steps)


def step_world(env: Env, policy: Policy, world: World) -> tuple[World, Transition]:
    """One step of every environment, with auto-reset.

    Returns:
      The next world, whose `obs`, `env_state` and `memory` are those of a new episode
      where one ended, and the `Transition` `[N, ...]`, whose `next_obs` is the true
      successor. `episode_return` and `episode_length` of the next world still count the
      ended episode; `unroll` reads them there and `_begin` clears them.
    """
    num_envs = len(world.episode_length)
    key, key_act, key_step, key_reset = jax.random.split(world.key, 4)
    action, memory, extras = policy(world.obs, world.memory, key_act)
    env_state, step = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
        jax.random.split(key_step, num_envs), world.env_state, action, env.params
    )
    episode_length = world.episode_length + 1
    terminated, truncated = _episode_ends(env, step, episode_length)
    done = terminated | truncated
    reset_state, reset_obs = _reset(env, key_reset, num_envs)
    transition = Transition(
        obs=world.obs,
        action=action,
        reward=step.reward,
        terminated=terminated,
        truncated=truncated,
        next_obs=step.obs,
        extras=extras,
    )
    world = World(
        env_state=where(done, reset_state, env_state),
        obs=where(done, reset_obs, step.obs),
        memory=where(done, jax.tree.map(jnp.zeros_like, memory), memory),
        episode_return=world.episode_return + step.reward,
        episode_length=episode_length,
        key=key,
        env_steps=world.env_steps + num_envs,
    )
    return world, transition


def unroll(
    env: Env, policy: Policy, world: World, num_steps: int
) -> tuple[World, Transition, Metrics]:
    """`num_steps` steps of every environment.

    Returns:
      The next world, the transitions `[T, N, ...]` in time order, and the mean return
      and length of the episodes that ended meanwhile.
    """

    def step(world: World, _: None) -> tuple[World, tuple[Transition, Array, Array]]:
        world, transition = step_world(env, policy, world)
        done = transition.terminated | transition.truncated
        ended = (transition, world.episode_return, world.episode_length)
        return _begin(world, done), ended

    world, (transitions, episode_return, episode_length) = jax.lax.scan(
        step, world, None, length=num_steps
    )
    done = transitions.terminated | transitions.truncated
    stats = {
        "rollout/episode_return": mean(episode_return, where=done),
        "rollout/episode_length": mean(episode_length, where=done),
    }
    return world, transitions, stats


def play(
    env: Env, policy: Policy, world: World, max_steps: int | Array
) -> tuple[Array, Array, Array]:
    """The first episode of each environment, at most `max_steps` steps of it.

    Every environment counts exactly once, so short episodes are not favoured. The loop
    stops as soon as all have ended.

    Returns:
      return `[N]` (undiscounted), length `[N]`, ended `[N]` (False where `max_steps` cut
      the episode off).
    """

    def not_finished(carry: tuple) -> Array:
        _, _, _, ended, step = carry
        return ~ended.all() & (step < max_steps)

    def step(carry: tuple) -> tuple:
        world, episode_return, episode_length, ended, step = carry
        world, transition = step_world(env, policy, world)
        episode_return += jnp.where(ended, 0.0, transition.reward)
        episode_length += ~ended
        ended |= transition.terminated | transition.truncated
        done = transition.terminated | transition.truncated
        return _begin(world, done), episode_return, episode_length, ended, step + 1

    nothing = jnp.zeros_like(world.episode_return)
    carry = (world, nothing, jnp.zeros_like(world.episode_length), nothing > 0, 0)
    _, episode_return, episode_length, ended, _ = jax.lax.while_loop(
        not_finished, step, carry
    )
    return episode_return, episode_length, ended


def where(condition: Array, x: PyTree, y: PyTree) -> PyTree:
    """`jnp.where` over pytrees with leading axis `[N]`, for a condition `[N]`."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(select, x, y)


def _reset(env: Env, key: Array, num_envs: int) -> tuple[PyTree, PyTree]:
    keys = jax.random.split(key, num_envs)
    return jax.vmap(env.reset, in_axes=(0, None))(keys, env.params)


def _episode_ends(env: Env, step: TimeStep, length: Array) -> tuple[Array, Array]:
    """`terminated` and `truncated` `[N]`, the time limit applied, never both true."""
    terminated, truncated = step.terminated, step.truncated
    if env.horizon is not None:
        out_of_time = length >= env.horizon
        if env.horizon_is == "terminal":
            terminated |= out_of_time
        else:
            truncated |= out_of_time
    return terminated, truncated & ~terminated


def _begin(world: World, done: Array) -> World:
    """Clears the episode counters where an episode ended."""
    return world.replace(
        episode_return=jnp.where(done, 0.0, world.episode_return),
        episode_length=jnp.where(done, 0, world.episode_length),
    )
