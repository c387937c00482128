"""Deep Q-Network (Mnih et al., 2015, Nature 518), with experience replay and a target
network.

The details that matter:

1. y = r + gamma max_a' Q(s', a'; theta^-) unless s' is *terminal*. A truncated episode's
   last successor has a value: `next_obs` is the true one, stored with its transition.
2. The memory is filled with `learning_starts` random steps once, in `init`, so the loop
   has no branch for it; they count as environment steps.
3. Any number of environments and any ratio of steps to updates: a train step is the
   smallest whole number of vector steps after which whole updates are due,
   lcm(num_envs, train_frequency) environment steps.
4. The target network is renewed whenever a boundary of `target_update_interval` environment
   steps is crossed, whatever the number of environments: by a copy (`tau` = 1) or by
   Polyak averaging (`tau` < 1).
5. Illegal actions (`action_mask`) are neither explored, nor chosen, nor maximised over.
"""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import estimators, losses, optim
from jaxrl.algorithms import checks
from jaxrl.errors import require
from jaxrl.exploration import epsilon_greedy, epsilon_noise
from jaxrl.networks.features import (
    Network,
    action_mask,
    feature_shape,
    network_input,
    uses_image,
)
from jaxrl.networks.q_network import QNetwork
from jaxrl.networks.torso import Activation
from jaxrl.replay import ring
from jaxrl.rollout import Policy, init_world, unroll
from jaxrl.types import (
    Algorithm,
    Array,
    Env,
    Memory,
    Metrics,
    Plan,
    PyTree,
    Scalar,
    Shared,
    Transition,
    World,
    mean,
    packed_sums,
    static,
    traced,
    unpacked_means,
)


class Config(PyTreeNode):
    """Hyper-parameters of DQN. The defaults are those of the CartPole benchmark row."""

    total_steps: float = traced(500_000.0, low=1, high=1e12)
    """Environment steps of the whole run, `learning_starts` included."""
    num_envs: int = static(10, low=1)
    """Environments stepped in parallel."""
    train_frequency: int = static(10, low=1)
    """Environment steps (over all environments) between updates."""
    num_updates: int = static(1, low=1)
    """Gradient steps each time."""
    buffer_size: int = static(10_000, low=1)
    """Transitions the replay memory holds; the oldest are overwritten."""
    learning_starts: int = static(10_000, low=1)
    """Environment steps taken at random before the first update."""
    batch_size: int = static(128, low=1)
    """Transitions in each update."""
    learning_rate: float = traced(2.5e-4, low=0)
    """Adam's step size."""
    anneal_lr: bool = static(False)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    gamma: float = traced(0.99, low=0, high=1)
    """Discount factor per environment step."""
    epsilon_start: float = traced(1.0, low=0, high=1)
    """Probability of a random action at the start."""
    epsilon_end: float = traced(0.05, low=0, high=1)
    """Probability of a random action at the end."""
    exploration_fraction: float = traced(0.5, above=0, high=1)
    """Fraction of `total_steps` over which epsilon falls linearly."""
    target_update_interval: int = static(500, low=1)
    """Environment steps between renewals of the target network."""
    tau: float = traced(1.0, above=0, high=1)
    """Weight of the online network in each renewal; 1 is a copy."""
    loss: Literal["squared", "huber"] = static("squared")
    """Loss of the temporal-difference error."""
    max_grad_norm: float = traced(10.0, above=0)
    """Gradients are scaled down to this global norm."""
    hidden_sizes: tuple[int, ...] = static((120, 84), low=1)
    """Widths of the fully connected layers."""
    activation: Activation = static("relu")
    """Nonlinearity of the hidden layers."""
    network: Network = static("auto")
    """Torso: "auto" is a CNN for images and an MLP otherwise; or "mlp", or "cnn"."""

    @property
    def vector_steps(self) -> int:
        """Steps of each environment in one train step."""
        return math.lcm(self.num_envs, self.train_frequency) // self.num_envs


class Agent(PyTreeNode):
    """All that the policy artefact holds."""

    params: PyTree
    target_params: PyTree
    opt_state: PyTree


class TargetClock(PyTreeNode, Shared):
    """Environment steps since a boundary of `target_update_interval` was crossed."""

    steps: Array  # int32 []


class State(PyTreeNode):
    agent: Agent
    world: World
    replay: ring.Ring
    target_clock: TargetClock


class Batch(NamedTuple):
    """What the memory holds of a transition; `[B, ...]` in an update."""

    obs: PyTree
    action: Array
    reward: Array
    terminated: Array
    next_obs: PyTree


def validate(config: Config, env: Env) -> None:
    checks.check_discrete_actions("dqn", env)
    checks.check_torso(config, env)
    checks.check_action_mask(env)
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


def plan(config: Config, env: Env) -> Plan:
    del env
    env_steps = config.vector_steps * config.num_envs
    return Plan(
        env_steps=env_steps,
        updates=env_steps // config.train_frequency * config.num_updates,
        gradient_rows=config.batch_size,
        warmup_env_steps=-(-config.learning_starts // env_steps) * env_steps,
    )


def q_values(config: Config, env: Env, params: PyTree, obs: PyTree) -> Array:
    """Q(s, .) `[*batch, A]`."""
    net = network(config, env)
    x = network_input(env.observation_space, obs, net.image, None)
    q: Any = net.apply(params, x)
    return q


def legal_q_values(config: Config, env: Env, params: PyTree, obs: PyTree) -> Array:
    """Q(s, .) `[*batch, A]`, minus infinity where an action is illegal."""
    q = q_values(config, env, params, obs)
    mask = action_mask(env.observation_space, obs)
    return q if mask is None else jnp.where(mask, q, -jnp.inf)


def network(config: Config, env: Env) -> QNetwork:
    return QNetwork(
        num_actions=env.action_space.n,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        image=uses_image(env.observation_space, config.network),
    )


def init(config: Config, env: Env, key: Array) -> State:
    """Networks, and a memory filled with `learning_starts` random steps."""
    key_params, key_world = jax.random.split(key)
    net = network(config, env)
    x = jnp.zeros((1, *feature_shape(env.observation_space, net.image)))
    params = net.init(key_params, x)
    opt_state = optim.adam(config.max_grad_norm).init(optim.flat(params)[0])
    agent = Agent(params, params, opt_state)

    world = init_world(env, key_world, config.num_envs)
    warmup = plan(config, env).warmup_env_steps // config.num_envs
    policy, noise = explorer(config, env, agent, 1.0), partial(exploration_noise, env)
    world, trajectory, _ = unroll(env, policy, world, warmup, noise)
    rows = stored(trajectory)
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), rows)
    replay = ring.init(
        example, config.buffer_size, config.num_envs, chunk=config.vector_steps
    )
    clock = TargetClock(jnp.int32(0))
    return State(agent, world, ring.add(replay, rows), clock)


def act(
    config: Config,
    env: Env,
    agent: Agent,
    obs: PyTree,
    memory: Memory,
    key: Array,
    greedy: bool = False,
) -> tuple[Array, Memory, dict[str, Any]]:
    epsilon = 0.0 if greedy else config.epsilon_end
    noise = exploration_noise(env, key, jax.tree.leaves(obs)[0].shape[:1])
    return explorer(config, env, agent, epsilon)(obs, memory, noise)


def explain(
    config: Config, env: Env, agent: Agent, obs: PyTree, memory: Memory
) -> dict[str, Array]:
    """What the choice of an action is made from (see `Algorithm`)."""
    del memory
    return {"q": legal_q_values(config, env, agent.params, obs)}


def explorer(config: Config, env: Env, agent: Agent, epsilon: Scalar) -> Policy:
    """The epsilon-greedy policy, which is given `exploration_noise`."""

    def policy(obs: PyTree, memory: Memory, noise: Array) -> tuple:
        mask = action_mask(env.observation_space, obs)
        q = legal_q_values(config, env, agent.params, obs)
        action = epsilon_greedy(noise, q, epsilon, mask)
        return action, memory, {"value": q.max(-1)}

    return policy


def exploration_noise(env: Env, key: Array, shape: tuple[int, ...]) -> Array:
    return epsilon_noise(key, shape, env.action_space.n)


def stored(trajectory: Transition) -> Batch:
    """What replay keeps of a trajectory `[T, N]`."""
    return Batch(
        obs=trajectory.obs,
        action=trajectory.action,
        reward=trajectory.reward,
        terminated=trajectory.terminated,
        next_obs=trajectory.next_obs,
    )


REPORTED = ("loss/td", "value/q")
"""What `loss` reports of every transition, in this order."""


def loss(
    params: PyTree, config: Config, env: Env, target_params: PyTree, batch: Batch
) -> tuple[Array, tuple[Array, ...]]:
    """The loss, and what is `REPORTED` of every transition of the batch."""
    next_q = legal_q_values(config, env, target_params, batch.next_obs)
    target = losses.q_target(
        batch.reward, batch.terminated, next_q.max(-1), config.gamma
    )
    q = q_values(config, env, params, batch.obs)
    q_taken = estimators.action_value(q, batch.action)
    if config.loss == "huber":
        td_loss = losses.huber_td(q_taken, target)
    else:
        td_loss = losses.squared_td(q_taken, target)
    return td_loss.mean(), (td_loss, q_taken)


def update(
    config: Config,
    env: Env,
    agent: Agent,
    replay: ring.Ring,
    key: Array,
    num_updates: int,
    learning_rate: Scalar,
) -> tuple[Agent, Metrics]:
    """Gradient steps on batches from the memory."""
    optimizer = optim.adam(config.max_grad_norm)
    params, unflatten = optim.flat(agent.params)

    def loss_of(params: Array, batch: Batch) -> tuple[Array, tuple]:
        return loss(unflatten(params), config, env, agent.target_params, batch)

    def gradient_step(carry: tuple, index: Array) -> tuple[tuple, tuple]:
        params, opt_state = carry
        batch = ring.take(replay, index)
        grads, reported = jax.grad(loss_of, has_aux=True)(params, batch)
        carry = optim.apply(optimizer, params, opt_state, grads, learning_rate)
        return carry, (packed_sums(reported), optim.global_norm(grads))

    indices = ring.sample_indices(replay, key, (num_updates, config.batch_size))
    carry = (params, agent.opt_state)
    (params, opt_state), (sums, norms) = jax.lax.scan(gradient_step, carry, indices)
    metrics = unpacked_means(REPORTED, sums.sum(0), indices.size)
    metrics["optim/grad_norm"] = mean(norms)
    return agent.replace(params=unflatten(params), opt_state=opt_state), metrics


def renew_target(
    config: Config, agent: Agent, clock: TargetClock, env_steps: int
) -> tuple[Agent, TargetClock]:
    """Moves the target network, once for every boundary that `env_steps` more cross.

    k moves of tau towards the same parameters are one of 1 - (1 - tau)^k.
    """
    steps = clock.steps + env_steps
    crossed = steps // config.target_update_interval
    tau = jnp.where(crossed > 0, 1.0 - (1.0 - config.tau) ** crossed, 0.0)
    target_params = optim.polyak(agent.target_params, agent.params, tau)
    clock = TargetClock(steps % config.target_update_interval)
    return agent.replace(target_params=target_params), clock


def train_step(config: Config, env: Env, state: State) -> tuple[State, Metrics]:
    """`vector_steps` of every environment, and the updates that are due."""
    counts = plan(config, env)
    progress = optim.progress(state.world.env_steps, config.total_steps)
    epsilon = optim.linear_schedule(
        config.epsilon_start,
        config.epsilon_end,
        progress / config.exploration_fraction,
    )
    learning_rate: Scalar = config.learning_rate
    if config.anneal_lr:
        learning_rate = optim.linear_schedule(learning_rate, 0.0, progress)
    key, key_sample = jax.random.split(state.world.key)
    world, trajectory, stats = unroll(
        env,
        explorer(config, env, state.agent, epsilon),
        state.world.replace(key=key),
        config.vector_steps,
        partial(exploration_noise, env),
    )
    replay = ring.add(state.replay, stored(trajectory))
    agent, metrics = update(
        config, env, state.agent, replay, key_sample, counts.updates, learning_rate
    )
    agent, clock = renew_target(config, agent, state.target_clock, counts.env_steps)
    metrics |= stats
    metrics["explore/epsilon"] = mean(epsilon)
    metrics["optim/learning_rate"] = mean(learning_rate)
    return State(agent, world, replay, clock), metrics


DQN = Algorithm(
    name="dqn",
    Config=Config,
    init=init,
    train_step=train_step,
    act=act,
    explain=explain,
    plan=plan,
    validate=validate,
)
