"""What learning from replay shares: warm-up, vector steps, storing, the target network."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import optim, rollout, types
from jaxrl.acting import Acting
from jaxrl.errors import require
from jaxrl.replay import ring
from jaxrl.types import Array, Env, Plan, PyTree, Shared, Transition


class Stored(NamedTuple):
    """A transition in the replay memory; `[B, ...]` in an update."""

    obs: PyTree
    action: Array
    reward: Array
    terminated: Array
    next_obs: PyTree


class TargetClock(PyTreeNode, Shared):
    """Environment steps since a boundary of `target_update_interval` was crossed."""

    steps: Array  # int32 []


class State(types.State, kw_only=True):
    """The state of training from replay."""

    replay: ring.Ring
    target_clock: TargetClock


def vector_steps(config: Any) -> int:
    """Steps of each environment in one train step.

    The smallest whole number after which whole updates are due:
    lcm(num_envs, train_frequency) environment steps.
    """
    return math.lcm(config.num_envs, config.train_frequency) // config.num_envs


def plan(config: Any, env: Env) -> Plan:
    """The plan of an algorithm that learns from replay."""
    del env
    env_steps = vector_steps(config) * config.num_envs
    return Plan(
        env_steps=env_steps,
        updates=env_steps // config.train_frequency * config.num_updates,
        gradient_rows=config.batch_size,
        warmup_env_steps=-(-config.learning_starts // env_steps) * env_steps,
    )


def plan_batches(config: Any, env: Env) -> Plan:
    """The plan of `num_updates` batches of `batch_size` after each rollout."""
    del env
    env_steps = config.num_envs * config.num_steps
    return Plan(env_steps, config.num_updates, gradient_rows=config.batch_size)


def check(config: Any, env: Env) -> None:
    """Something is learned, and the memory can be indexed."""
    counts = plan(config, env)
    require(
        counts.warmup_env_steps < config.total_steps,
        f"learning_starts = {config.learning_starts} (in whole train steps: "
        f"{counts.warmup_env_steps}) must be less than total_steps = "
        f"{config.total_steps:g}, or nothing is learned.",
    )
    require(
        config.buffer_size + counts.env_steps <= 2**31 - 1,
        f"buffer_size = {config.buffer_size} must be less than 2^31 - "
        f"{counts.env_steps}: a transition's index has 32 bits.",
    )


def init(config: Any, env: Env, agent: PyTree, key: Array, acts: Acting) -> State:
    """The state with a memory that is filled with `learning_starts` random steps.

    Done once, so that the loop has no branch for it.
    """
    world = rollout.init_world(env, key, config.num_envs)
    warmup = plan(config, env).warmup_env_steps // config.num_envs
    world, trajectory, _ = acts.unroll(config, env, agent, world, warmup, epsilon=1.0)
    rows = stored(trajectory)
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), rows)
    chunk = vector_steps(config)
    replay = ring.init(example, config.buffer_size, config.num_envs, chunk)
    return State(
        agent,
        world,
        replay=ring.add(replay, rows),
        target_clock=TargetClock(jnp.int32(0)),
    )


def stored(trajectory: Transition) -> Stored:
    """The part of a trajectory `[T, N]` that replay keeps."""
    return Stored(
        obs=trajectory.obs,
        action=trajectory.action,
        reward=trajectory.reward,
        terminated=trajectory.terminated,
        next_obs=trajectory.next_obs,
    )


def renew_target(
    config: Any, agent: Any, clock: TargetClock, env_steps: int
) -> tuple[Any, TargetClock]:
    """Moves the target network, once for every boundary that `env_steps` more cross.

    k moves of tau towards the same parameters are one of 1 - (1 - tau)^k.
    """
    steps = clock.steps + env_steps
    crossed = steps // config.target_update_interval
    tau = jnp.where(crossed > 0, 1.0 - (1.0 - config.tau) ** crossed, 0.0)
    target_params = optim.polyak(agent.target_params, agent.params, tau)
    clock = TargetClock(steps % config.target_update_interval)
    return agent.replace(target_params=target_params), clock
