"""What learning from replay shares: warm-up, vector steps, storing, the target network."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode

from jaxrl import estimators, networks, optim, rollout, types
from jaxrl.acting import Acting
from jaxrl.algorithms import learning
from jaxrl.errors import require
from jaxrl.replay import prioritised, ring, transitions
from jaxrl.types import (
    Array,
    Batches,
    Env,
    Memory,
    Metrics,
    Plan,
    PyTree,
    Shared,
    Transition,
    World,
    mean,
)


class TargetClock(PyTreeNode, Shared):
    """Environment steps since a boundary of `target_update_interval` was crossed."""

    steps: Array  # int32 []


class State(types.State, kw_only=True):
    """The state of training from replay."""

    replay: ring.Ring
    target_clock: TargetClock | None
    """None where the target follows every update."""
    priorities: prioritised.Priorities | None = None
    """None where replay is uniform."""


def vector_steps(config: Any) -> int:
    """Steps of each environment in one train step.

    The smallest whole number after which whole updates are due: lcm(num_envs,
    train_frequency) environment steps, or more where the actor learns only after every
    `policy_delay` of them and they are not a multiple.
    """
    delay = getattr(config, "policy_delay", 1)
    frequency = config.train_frequency * (delay // math.gcd(delay, config.num_updates))
    return math.lcm(config.num_envs, frequency) // config.num_envs


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
    filled = min(counts.warmup_env_steps, config.buffer_size)
    require(
        config.batch_size <= filled,
        f"batch_size = {config.batch_size} must be at most the {filled} transitions in "
        f"the memory at the first update: raise learning_starts or buffer_size.",
    )
    require(
        config.n_step * config.num_envs <= config.buffer_size,
        f"n_step = {config.n_step} steps of num_envs = {config.num_envs} environments "
        f"must fit into buffer_size = {config.buffer_size}.",
    )
    require(
        config.hindsight == "none" or transitions.has_goals(env),
        f"hindsight = {config.hindsight!r} needs observations of "
        f"{', '.join(sorted(transitions.GOAL_KEYS))}, the goals as arrays of one shape, "
        f"and a goal_reward; those of {env.id} are {env.observation_space}: leave it at "
        f"'none'.",
    )
    # Twice as many with hindsight, which adds two indices before it wraps around, and
    # with priorities, whose last block may be longer than the memory.
    is_prioritised = getattr(config, "priority_exponent", None) is not None
    most = 2**30 if is_prioritised or config.hindsight != "none" else 2**31
    ahead = counts.env_steps + config.n_step * config.num_envs
    require(
        config.buffer_size + ahead < most,
        f"buffer_size = {config.buffer_size} must be less than {most - ahead}: a "
        f"transition's index has 32 bits.",
    )


def init(
    config: Any,
    env: Env,
    agent: PyTree,
    key: Array,
    unroll: Callable[..., tuple[World, Transition, Any]],
    memory: Memory = (),
) -> State:
    """The state with a memory that is filled with `learning_starts` random steps.

    Done once, so that the loop has no branch for it.

    Args:
      config: of the algorithm.
      env: the environment.
      agent: before the first update.
      key: of the world.
      unroll: `(config, env, agent, world, num_steps)`, acting at random.
      memory: of the world, `[N, ...]`.
    """
    world = rollout.init_world(env, key, config.num_envs, memory)
    warmup = plan(config, env).warmup_env_steps // config.num_envs
    world, trajectory, _ = unroll(config, env, agent, world, warmup)
    agent = with_stats(config, env, agent, trajectory)
    rows = transitions.make_rows(
        config, trajectory, jnp.zeros(config.num_envs, jnp.int32)
    )
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), rows)
    chunk = vector_steps(config)
    replay = ring.init(example, config.buffer_size, config.num_envs, chunk)
    priorities = init_priorities(config, replay, warmup)
    has_clock = hasattr(config, "target_update_interval")
    clock = TargetClock(jnp.int32(0)) if has_clock else None
    filled = ring.add(replay, rows)
    return State(agent, world, replay=filled, target_clock=clock, priorities=priorities)


def init_priorities(
    config: Any, replay: ring.Ring, num_rows: int
) -> prioritised.Priorities | None:
    """Those of the first rows of an empty memory, or None where replay is uniform."""
    if getattr(config, "priority_exponent", None) is None:
        return None
    rows, num_envs = jax.tree.leaves(replay.data)[0].shape[:2]
    return prioritised.add(prioritised.init(rows * num_envs), replay, num_rows)


def add_priorities(config: Any, state: State) -> prioritised.Priorities | None:
    """The priorities with the rows that a train step adds to the memory of this state."""
    if state.priorities is None:
        return None
    return prioritised.add(state.priorities, state.replay, vector_steps(config))


def importance(config: Any, env_steps: types.Counter) -> Array:
    """β of prioritised replay, which rises linearly to 1 over the run."""
    done = optim.progress(env_steps, config.total_steps)
    return optim.linear_schedule(config.importance_exponent, 1.0, done)


PRIORITY_EPS = 1e-6
"""What an error of 0 is given, so that no transition is forgotten."""


def fit_by_priority(
    loss: Callable[[PyTree, transitions.Batch, Array, Array], tuple[Array, tuple]],
    surprise: Callable[[Array], Array],
    config: Any,
    env: Env,
    agent: Any,
    memory: tuple[ring.Ring, prioritised.Priorities],
    optimizer: optax.GradientTransformation,
    learning_rate: types.Scalar,
    beta: types.Scalar,
    reported: Sequence[str],
    key: Array,
) -> tuple[PyTree, PyTree, prioritised.Priorities, Metrics]:
    """The gradient steps of a train step, as `optim.fit`, on batches drawn by priority.

    Args:
      loss: (θ, batch, key, weights `[B]`) -> (a scalar, what is `reported`, of which the
        first is the loss of each transition).
      surprise: makes sizes of errors `[B]` of these losses.
      config: of the algorithm.
      env: the environment.
      agent: with `params` and `opt_state`.
      memory: the transitions and their priorities.
      optimizer: turns a gradient into a direction.
      learning_rate: a scalar.
      beta: how far the weights undo the preference.
      reported: names of what the loss reports.
      key: consumed.

    Returns:
      (params, opt_state, priorities, metrics).
    """
    replay, priorities = memory
    count = plan(config, env).updates
    key_draw, key_read, key_loss = jax.random.split(key, 3)
    vector, unflatten = optim.flat(agent.params)

    def step(carry: tuple, row: tuple) -> tuple[tuple, tuple]:
        fitted, priorities = carry
        uniform, key_read, key_loss = row
        index, probability = prioritised.find(priorities, uniform)
        weight = estimators.importance_weights(probability, beta)
        batch = transitions.read_at(config, env, replay, index, key_read)
        fitted, found, norm = optim.step(
            lambda vector: loss(unflatten(vector), batch, key_loss, weight),
            fitted,
            optimizer,
            learning_rate,
        )
        at = index, surprise(found[0]), config.priority_exponent, PRIORITY_EPS
        priorities = prioritised.update(priorities, *at)
        return (fitted, priorities), (types.packed_sums(found), norm)

    rows = (
        prioritised.draws(key_draw, (count, config.batch_size)),
        jax.random.split(key_read, count),
        jax.random.split(key_loss, count),
    )
    carry = (optim.Fitted(vector, agent.opt_state), priorities)
    (fitted, priorities), (sums, norms) = jax.lax.scan(step, carry, rows)
    total = count * config.batch_size
    metrics = types.unpacked_means(reported, sums.sum(0), total)
    metrics["optim/grad_norm"] = mean(norms)
    return unflatten(fitted.vector), fitted.opt_state, priorities, metrics


def with_stats(config: Any, env: Env, agent: Any, trajectory: Transition) -> Any:
    """The agent with the statistics of these observations too, if it has any."""
    stats = getattr(agent, "obs_stats", None)
    if stats is None:
        return agent
    stats = networks.update_stats(config, env, trajectory.obs, stats)
    return agent.replace(obs_stats=stats)


def batches(config: Any, env: Env, replay: ring.Ring, key: Array) -> Batches:
    """The batches of a train step, each a `transitions.Batch`."""
    shape = plan(config, env).updates, config.batch_size
    return transitions.batches(config, env, replay, key, shape)


def with_keys(batches: Batches, key: Array | None) -> Batches:
    """The same batches, each beside a key for its gradient step: pairs with None for None.

    Args:
      batches: of several gradient steps.
      key: consumed, or None.
    """
    if key is None:
        return batches._replace(read=lambda index: (batches.read(index), None))
    steps = len(jax.tree.leaves(batches.index)[0])
    return Batches(
        (batches.index, jax.random.split(key, steps)),
        lambda index: (batches.read(index[0]), index[1]),
        batches.rows,
    )


def collect(
    config: Any, env: Env, state: State, key: Array, unroll: Callable
) -> tuple[World, Transition, ring.Ring, Metrics]:
    """Steps of every environment, and the memory with them.

    Args:
      config: of the algorithm.
      env: the environment.
      state: of training.
      key: of the world, from now on.
      unroll: `(config, env, agent, world, num_steps)`, as `Acting.unroll`.

    Returns:
      (world, trajectory `[T, N]`, replay, metrics of finished episodes).
    """
    first = state.world.episode_length
    world, trajectory, metrics = unroll(
        config, env, state.agent, state.world.replace(key=key), vector_steps(config)
    )
    rows = transitions.make_rows(config, trajectory, first)
    return world, trajectory, ring.add(state.replay, rows), metrics


def train_step(
    config: Any, env: Env, state: State, acts: Acting, update: Callable
) -> tuple[State, Metrics]:
    """Steps of every environment, and the updates that are due.

    Args:
      config: of the algorithm.
      env: the environment.
      state: of training.
      acts: how the agent acts.
      update: `(config, env, agent, batches, key, rates) -> (agent, metrics)`, with
        learning rates by the name of a network.
    """
    rates = learning.rates(config, state.world.env_steps)
    key, key_sample, key_update = jax.random.split(state.world.key, 3)
    world, trajectory, replay, metrics = collect(config, env, state, key, acts.unroll)
    agent = with_stats(config, env, state.agent, trajectory)
    drawn = batches(config, env, replay, key_sample)
    agent, found = update(config, env, agent, drawn, key_update, rates)
    metrics |= found | {
        "optim/learning_rate": mean(rates["actor"]),
        "optim/critic_learning_rate": mean(rates["critics"]),
    }
    return State(agent, world, replay=replay, target_clock=None), metrics


def renew_target(
    config: Any, agent: Any, clock: Any, env_steps: int
) -> tuple[Any, TargetClock]:
    """Move the target network, once for every boundary that `env_steps` more cross.

    k moves of tau towards the same parameters are one of 1 - (1 - tau)^k.
    """
    steps = clock.steps + env_steps
    crossed = steps // config.target_update_interval
    tau = jnp.where(crossed > 0, 1.0 - (1.0 - config.tau) ** crossed, 0.0)
    target_params = optim.polyak(agent.target_params, agent.params, tau)
    clock = TargetClock(steps % config.target_update_interval)
    return agent.replace(target_params=target_params), clock
