"""Stepping environments: the only code that steps one for training or evaluation.

What everybody gets wrong is owned here, once: batching, auto-reset, time limits,
the true successor observation, the reset of a recurrent memory, episode statistics.

A policy is any function `(obs, memory, noise) -> (action, memory, extras)`, batched over
`[N]`; `noise` is a key, unless the caller of `unroll` asks for something else.

All randomness of a rollout is drawn before its loop, in a few large calls: a draw inside
would be several more operations of the loop's body, for each step.
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
"""`(key, (T, N)) -> ` what the policy is given at each step, `[T, N, ...]` or `[T]`."""


class Draws(NamedTuple):
    """The randomness of T steps of N environments."""

    noise: PyTree  # [T, ...], for the policy
    keys: Array  # [T, N], for `env.step`
    fresh: tuple[PyTree, PyTree]  # (env_state, obs) [R, N, ...] of episodes that start
    fresh_row: Array  # int32 [T]: which of the R rows serves a step


def step_keys(key: Array, shape: tuple[int, int]) -> Array:
    """The noise of a policy that draws for itself: a key for each step, `[T]` of them.

    `shape` is (T, N).
    """
    return jax.random.split(parallel.own_key(key), shape[0])


def draw(env: Env, noise: Noise, key: Array, num_steps: int, num_envs: int) -> Draws:
    """All that is random in `num_steps` steps of `num_envs` environments.

    A fresh start is drawn for each environment once in `env.shortest_episode` steps, not
    at every step: no more than one episode can begin in that time. So the starts are
    independent draws, as with a reset at every step. Were the number larger than the
    shortest episode, every start would still have the right distribution, but an
    environment could begin two episodes of one rollout in the same state.
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
    """`[T, n, ...]` of `[T, N, ...]`: the environments of this device. `[T]` is for all."""
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
        trouble=jnp.int32(BAD_OBS) * ~_finite(obs, 1),
        key=key,
        env_steps=counter(),
    )


def restart_episodes(env: Env, world: World) -> World:
    """The same world `[N]` with every environment at the start of a new episode.

    For estimators that need whole episodes. What was running is dropped and does not
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
    """One step of every environment, with auto-reset.

    Args:
      env: the environment.
      policy: chooses the actions.
      world: where the environments are.
      noise: what the policy is given.
      keys: `[N]`, for `env.step`.
      fresh: the (env_state, obs) `[N, ...]` in which a new episode starts; None: an
        environment stays where its episode ended.

    Returns:
      The next world, whose `obs`, `env_state` and `memory` are those of a new episode
      where one ended, and the `Transition` `[N, ...]`, whose `next_obs` is the true
      successor. `episode_return` and `episode_length` of the next world still count the
      ended episode; `unroll` reads them there and `_begin` clears them.
    """
    action, memory, extras = policy(world.obs, world.memory, noise)
    env_state, step = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
        keys, world.env_state, action, env.params
    )
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
        env_state=where(done, fresh[0], env_state),
        obs=where(done, fresh[1], step.obs),
        memory=where(done, jax.tree.map(jnp.zeros_like, memory), memory),
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
    """`num_steps` steps of every environment.

    Args:
      env: the environment.
      policy: chooses the actions.
      world: where the environments are.
      num_steps: T.
      noise: `(key, (T, N)) -> [T, ...]`, draws what the policy is given at each step; by
        default a key.

    Returns:
      The next world, the transitions `[T, N, ...]` in time order, and the mean return
      and length of the episodes that ended meanwhile.
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
        # Sums for each environment: to store every step and add up later costs more.
        ended = tuple(
            total + jnp.where(done, x, 0).astype(total.dtype)
            for total, x in zip(ended, now, strict=True)
        )
        return (_begin(world, done), ended), transition

    zero = jnp.zeros(num_envs, jnp.int32)
    carry = (world, (zero.astype(jnp.float32), zero, zero))
    rows = (draws.noise, draws.keys, draws.fresh_row)
    (world, ended), transitions = jax.lax.scan(step, carry, rows)
    total_return, total_length, episodes = (x.sum(dtype=jnp.float32) for x in ended)
    stats = {
        "rollout/episode_return": Mean(total_return, episodes),
        "rollout/episode_length": Mean(total_length, episodes),
    }
    world = world.replace(trouble=world.trouble | _trouble(world, transitions))
    return world, transitions, stats


def _trouble(world: World, transitions: Transition) -> Array:
    """`World.trouble` of these steps, int32 `[N]`.

    Looked for after the loop, in what it has stored: inside it would be an operation for
    every step. The observation in which an episode ends is not among them, unless a
    learner reads it: its loss then says so.
    """
    bad_obs = ~(_finite(transitions.obs, 2).all(0) & _finite(world.obs, 1))
    bad_reward = ~jnp.isfinite(transitions.reward).all(0)
    return BAD_OBS * bad_obs | BAD_REWARD * bad_reward


def _finite(tree: PyTree, batch_axes: int) -> Array:
    """Whether all is finite, `[N]` or `[T, N]`."""
    shape = jax.tree.leaves(tree)[0].shape[:batch_axes]
    fine = jnp.ones(shape, bool)
    for x in jax.tree.leaves(tree):
        if jnp.issubdtype(x.dtype, jnp.floating):
            fine &= jnp.isfinite(x).reshape(*shape, -1).all(-1)
    return fine


def play(
    env: Env, policy: Policy, world: World, max_steps: int | Array
) -> tuple[Array, Array, Array]:
    """The first episode of each environment, at most `max_steps` steps of it.

    Every environment counts exactly once, so short episodes are not favoured. The loop
    stops as soon as all have ended. The policy is given keys.

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
        # An environment that has ended goes on from where it began: nobody looks.
        world, transition = step_world(env, policy, world, key_policy, keys, start)
        episode_return += jnp.where(ended, 0.0, transition.reward)
        episode_length += ~ended
        done = transition.terminated | transition.truncated
        world = _begin(world.replace(key=key), done)
        return world, episode_return, episode_length, ended | done, step + 1

    start = (world.env_state, world.obs)
    nothing = jnp.zeros_like(world.episode_return)
    carry = (world, nothing, jnp.zeros_like(world.episode_length), nothing > 0, 0)
    _, episode_return, episode_length, ended, _ = jax.lax.while_loop(
        not_finished, step, carry
    )
    return episode_return, episode_length, ended


class Watched(NamedTuple):
    """The first episode of each environment, step by step (`watch`)."""

    env_state: PyTree  # [T + 1, N, ...]: before each step, and after the last one
    transition: Transition  # [T, N, ...]
    running: Array  # bool [T, N]; what stands in the other rows means nothing


def watch(env: Env, policy: Policy, world: World, max_steps: int) -> Watched:
    """What `play` plays, all of it kept `[T, N, ...]`: for looking at, not for learning.

    After its episode an environment stays in the state in which that ended.
    """
    num_envs = len(world.episode_length)

    def step(carry: tuple, _: None) -> tuple[tuple, tuple]:
        world, ended = carry
        key, key_policy, key_step = jax.random.split(world.key, 3)
        keys = jax.random.split(key_step, num_envs)
        after, transition = step_world(env, policy, world, key_policy, keys, None)
        row = (world.env_state, transition, ~ended)
        world = after.replace(
            key=key,
            env_state=where(ended, world.env_state, after.env_state),
            obs=where(ended, world.obs, after.obs),
        )
        return (world, ended | transition.terminated | transition.truncated), row

    carry = (world, jnp.zeros(num_envs, bool))
    (last, _), rows = jax.lax.scan(step, carry, length=max_steps)
    env_state, transition, running = rows

    def with_last(rows: Array, last: Array) -> Array:
        return jnp.concatenate([rows, last[None]])

    states = jax.tree.map(with_last, env_state, last.env_state)
    return Watched(states, transition, running)


def where(condition: Array, x: PyTree, y: PyTree) -> PyTree:
    """`jnp.where` over pytrees with leading axis `[N]`, for a condition `[N]`."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(select, x, y)


def _reset(env: Env, key: Array, num_envs: int) -> tuple[PyTree, PyTree]:
    keys = parallel.share(jax.random.split(key, num_envs * parallel.num_shares()))
    return jax.vmap(env.reset, in_axes=(0, None))(keys, env.params)


def episode_ends(env: Env, step: TimeStep, length: Array) -> tuple[Array, Array]:
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
