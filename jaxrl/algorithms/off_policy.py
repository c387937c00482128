"""What learning from replay shares: warm-up, vector steps, storing, the target network."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode

from jaxrl import estimators, networks, optim, rollout, spaces, types
from jaxrl.acting import Acting
from jaxrl.errors import require
from jaxrl.replay import hindsight, ring
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


class TargetClock(PyTreeNode, Shared):
    """Environment steps since a boundary of `target_update_interval` was crossed."""

    steps: Array  # int32 []


GOAL_KEYS = {"observation", "achieved_goal", "desired_goal"}
"""What an observation consists of where there are goals."""


class State(types.State, kw_only=True):
    """The state of training from replay."""

    replay: ring.Ring
    target_clock: TargetClock | None
    """None where the target follows every update."""


def vector_steps(config: Any) -> int:
    """Steps of each environment in one train step.

    The smallest whole number after which whole updates are due, of the actor too if that
    has only every `policy_delay`-th: lcm(num_envs, train_frequency) environment steps.
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
    require(
        config.n_step * config.num_envs <= config.buffer_size,
        f"n_step = {config.n_step} steps of num_envs = {config.num_envs} environments "
        f"must fit into buffer_size = {config.buffer_size}.",
    )
    require(
        config.hindsight == "none" or has_goals(env),
        f"hindsight = {config.hindsight!r} needs observations of "
        f"{', '.join(sorted(GOAL_KEYS))}, the goals as arrays of one shape, and a "
        f"goal_reward; those of {env.id} are {env.observation_space}: leave it at 'none'.",
    )
    # Twice as many with hindsight, which adds two indices before it wraps around.
    most = 2**30 if config.hindsight != "none" else 2**31
    ahead = counts.env_steps + config.n_step * config.num_envs
    require(
        config.buffer_size + ahead < most,
        f"buffer_size = {config.buffer_size} must be less than {most - ahead}: a "
        f"transition's index has 32 bits.",
    )


def has_goals(env: Env) -> bool:
    """Whether an environment's observations have goals, and a reward that follows them."""
    space = env.observation_space
    if env.goal_reward is None or not isinstance(space, spaces.Dict):
        return False
    if {name for name, _ in space.items} != GOAL_KEYS:
        return False
    goals = space["achieved_goal"], space["desired_goal"]
    return spaces.is_compatible(*goals) and not isinstance(goals[0], spaces.Dict)


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
    rows = stored(config, trajectory, jnp.zeros(config.num_envs, jnp.int32))
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), rows)
    chunk = vector_steps(config)
    replay = ring.init(example, config.buffer_size, config.num_envs, chunk)
    has_clock = hasattr(config, "target_update_interval")
    clock = TargetClock(jnp.int32(0)) if has_clock else None
    return State(agent, world, replay=ring.add(replay, rows), target_clock=clock)


def with_stats(config: Any, env: Env, agent: Any, trajectory: Transition) -> Any:
    """The agent with the statistics of these observations too, if it has any."""
    stats = getattr(agent, "obs_stats", None)
    if stats is None:
        return agent
    stats = networks.update_stats(config, env, trajectory.obs, stats)
    return agent.replace(obs_stats=stats)


def stored(config: Any, trajectory: Transition, first: Array) -> Stored:
    """The part of a trajectory `[T, N]` that replay keeps.

    `first` int32 `[N]` are the steps of the episodes before it.
    """
    has_goals = config.hindsight != "none"
    step = hindsight.episode_steps(trajectory.done, first) if has_goals else None
    needs_ends = config.n_step > 1 or has_goals
    return Stored(
        obs=trajectory.obs,
        action=trajectory.action,
        reward=trajectory.reward,
        terminated=trajectory.terminated,
        next_obs=trajectory.next_obs,
        truncated=trajectory.truncated if needs_ends else None,
        step=step,
    )


def batches(config: Any, env: Env, replay: ring.Ring, key: Array) -> Batches:
    """The batches of a train step, each a `Batch`."""
    shape = plan(config, env).updates, config.batch_size
    if config.hindsight == "none":
        index: PyTree = ring.sample_indices(replay, key, shape)
    else:
        key, *keys = jax.random.split(key, 3)
        draws = (jax.random.uniform(x, shape) for x in keys)
        index = (ring.sample_indices(replay, key, shape), *draws)
    return Batches(index, partial(read, config, env, replay), math.prod(shape))


def read(config: Any, env: Env, replay: ring.Ring, index: PyTree) -> Batch:
    """The transitions at `[B]` indices, with what follows each of them.

    With hindsight an index has two uniform draws beside it: which of the goals reached
    later, and whether one of them takes the place of the goal wanted.
    """
    if config.n_step == 1 and config.hindsight == "none":
        obs, action, reward, terminated, next_obs, *_ = ring.take(replay, index)
        discount = jnp.broadcast_to(config.gamma, index.shape)
        return Batch(obs, action, reward, terminated, next_obs, discount)
    data: Stored = replay.data
    index, *draws = index if config.hindsight != "none" else (index,)
    ahead, newest = ring.ahead(replay, index, config.n_step)
    reward, terminated, truncated = ring.take_from(
        (data.reward, data.terminated, data.truncated), ahead
    )
    ends = terminated | truncated | newest
    obs, action = ring.take_from((data.obs, data.action), index)
    if draws:
        goal = wanted(config, replay, index, obs["desired_goal"], draws)
        reward, terminated = relabel(env, replay, ahead, goal, terminated)
        ends |= terminated
        obs = obs | {"desired_goal": goal}
    reward, steps = estimators.n_step_return(reward, ends, config.gamma)

    def last(x: Array) -> Array:
        return jnp.take_along_axis(x, steps[None] - 1, axis=0)[0]

    next_obs = ring.take_from(data.next_obs, last(ahead))
    if draws:
        next_obs = next_obs | {"desired_goal": goal}
    discount = config.gamma**steps
    return Batch(obs, action, reward, last(terminated), next_obs, discount)


def relabel(
    env: Env, replay: ring.Ring, index: Array, goal: Array, terminated: Array
) -> tuple[Array, Array]:
    """Rewards and ends `[n, B]` of transitions at `[n, B]` with goals `[B, ...]`.

    An end that the goal of that time does not explain, such as a fall, stays one.
    """
    goal_reward: Any = env.goal_reward
    of_step = jax.vmap(jax.vmap(goal_reward, (0, 0, None)), (0, 0, None))
    data: Any = replay.data
    reached, before = ring.take_from(
        (data.next_obs["achieved_goal"], data.obs["desired_goal"]), index
    )
    _, explained = of_step(reached, before, env.params)
    goals = jnp.broadcast_to(goal[None], before.shape)
    reward, ends = of_step(reached, goals, env.params)
    return reward, ends | (terminated & ~explained)


def wanted(
    config: Any, replay: ring.Ring, index: Array, goal: Array, draws: Sequence[Array]
) -> Array:
    """Goals `[B, ...]`, of which a fraction is one that the episode reached later."""
    which, whether = draws
    data: Any = replay.data
    later = hindsight.goals(
        replay,
        data.step,
        data.next_obs["achieved_goal"],
        index,
        which,
        config.hindsight,
    )
    chosen = whether < config.hindsight_fraction
    return jnp.where(chosen.reshape(-1, *[1] * (goal.ndim - 1)), later, goal)


def optimizer() -> optax.GradientTransformation:
    """Adam as the papers of continuous control have it."""
    return optim.adam(None, eps=1e-8)


def init_optimizers(params: dict[str, PyTree]) -> dict[str, PyTree]:
    """The state of an optimiser for each of several networks."""
    return {n: optimizer().init(optim.flat(x)[0]) for n, x in params.items()}


def fitted(
    agent: Any,
) -> tuple[dict[str, optim.Fitted], dict[str, Callable[[Array], PyTree]]]:
    """An agent's networks as vectors by name, and the functions back to the trees."""
    flat = {name: optim.flat(params) for name, params in agent.params.items()}
    vectors = {n: optim.Fitted(x, agent.opt_state[n]) for n, (x, _) in flat.items()}
    return vectors, {name: tree for name, (_, tree) in flat.items()}


def refit(
    agent: Any,
    learner: Any,
    tree: dict[str, Callable[[Array], PyTree]],
    target_params: PyTree,
) -> Any:
    """The agent with the networks of a learner, whose fields have their names."""
    return agent.replace(
        params={name: tree[name](getattr(learner, name).vector) for name in tree},
        opt_state={name: getattr(learner, name).opt_state for name in tree},
        target_params=target_params,
    )


def train_step(
    config: Any, env: Env, state: State, acts: Acting, update: Callable
) -> tuple[State, Metrics]:
    """Steps of every environment, and the updates that are due.

    Args:
      config: of the algorithm.
      env: the environment.
      state: of training.
      acts: how the agent acts.
      update: `(config, env, agent, batches, key, learning_rate) -> (agent, metrics)`.
    """
    agent, world = state.agent, state.world
    learning_rate = optim.annealed(config, config.learning_rate, world.env_steps)
    key, key_sample, key_update = jax.random.split(world.key, 3)
    world, trajectory, stats = acts.unroll(
        config, env, agent, world.replace(key=key), vector_steps(config)
    )
    agent = with_stats(config, env, agent, trajectory)
    first = state.world.episode_length
    replay = ring.add(state.replay, stored(config, trajectory, first))
    agent, metrics = update(
        config,
        env,
        agent,
        batches(config, env, replay, key_sample),
        key_update,
        learning_rate,
    )
    metrics |= stats | {"optim/learning_rate": mean(learning_rate)}
    return State(agent, world, replay=replay, target_clock=None), metrics


def alternate(
    config: Any,
    batches: Batches,
    noise: PyTree,
    learner: PyTree,
    critic_step: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, Metrics]],
    actor_step: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, Metrics]],
) -> tuple[PyTree, Metrics]:
    """Gradient steps of critics, and one of the actor after every `policy_delay` of them.

    Args:
      config: with `policy_delay`.
      batches: what is learned from, a multiple of `policy_delay`.
      noise: `[S, ...]`, for each batch.
      learner: what the steps change.
      critic_step: `(learner, batch, noise) -> (learner, metrics)`.
      actor_step: the same, with the batch and the noise of the last critic step.

    Returns:
      The learner, and the metrics of all steps.
    """
    delay = config.policy_delay
    groups = len(jax.tree.leaves(batches.index)[0]) // delay
    rows = jax.tree.map(
        lambda x: x.reshape(groups, delay, *x.shape[1:]), (batches.index, noise)
    )

    def of_critics(learner: PyTree, row: tuple) -> tuple[PyTree, Metrics]:
        index, drawn = row
        return critic_step(learner, batches.read(index), drawn)

    def iterate(learner: PyTree, rows: tuple) -> tuple[PyTree, Metrics]:
        learner, metrics = jax.lax.scan(of_critics, learner, rows)
        index, drawn = jax.tree.map(lambda x: x[-1], rows)
        learner, found = actor_step(learner, batches.read(index), drawn)
        return learner, jax.tree.map(lambda x: x.sum(0), metrics) | found

    learner, metrics = jax.lax.scan(iterate, learner, rows)
    return learner, jax.tree.map(lambda x: x.sum(0), metrics)


def renew_target(
    config: Any, agent: Any, clock: Any, env_steps: int
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
