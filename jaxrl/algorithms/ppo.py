"""Proximal Policy Optimization (Schulman et al., 2017, arXiv:1707.06347).

Both objectives of the paper: the clipped ratio (section 3) and the KL penalty with a
fixed or adaptive coefficient (section 4). Discrete (also masked) and continuous actions;
MLP, CNN and GRU policies.

The details that matter, in the order of the code:

1. The value of a truncated episode's last state is bootstrapped from the true successor
   observation; that of a terminated one is zero. The lambda-trace is cut by both.
2. Observation statistics are frozen while a batch is collected and learned from, so that
   the ratio is exactly 1 at the first minibatch.
3. Advantages are normalised per minibatch; the learning rate falls linearly to zero.
4. With a GRU whole sequences are shuffled, not single steps, and the memory at the start
   of the rollout is data.
5. Rewards are divided by the running deviation of the discounted return, so that values
   are of order one whatever the task pays. A tanh critic that has to reach a value of 100
   can saturate, and then every advantage is noise.
6. Orthogonal initialisation, gains sqrt(2), 0.01 (policy) and 1 (value); Adam's eps 1e-5;
   gradients clipped by their global norm.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import estimators, losses, normalize, optim
from jaxrl.algorithms import checks
from jaxrl.core import parallel
from jaxrl.core.minibatches import minibatches, reader
from jaxrl.errors import InvalidInput, require
from jaxrl.networks.actor_critic import (
    ActorCritic,
    PolicyParams,
    action_noise,
    apply_sequence,
    apply_step,
    explanation,
    in_blocks,
    initial_memory,
    policy_distribution,
)
from jaxrl.networks.features import (
    Network,
    action_mask,
    feature_shape,
    network_input,
    updated_stats,
    uses_image,
)
from jaxrl.networks.torso import Activation
from jaxrl.rollout import init_world, unroll
from jaxrl.types import (
    Algorithm,
    Array,
    Env,
    Memory,
    Metrics,
    Plan,
    PyTree,
    Scalar,
    Transition,
    World,
    mean,
    packed_sums,
    per_env,
    static,
    traced,
    unpacked_means,
)


class Config(PyTreeNode):
    """Hyper-parameters of PPO. The defaults are those of the CartPole benchmark row."""

    total_steps: float = traced(500_000.0, low=1, high=1e12)
    """Environment steps of the whole run; the learning-rate schedule ends there."""
    num_envs: int = static(8, low=1)
    """Environments stepped in parallel."""
    num_steps: int = static(128, low=1)
    """Steps of each environment between updates."""
    num_epochs: int = static(4, low=1)
    """Passes over each batch."""
    num_minibatches: int = static(4, low=1)
    """Gradient steps per pass."""
    learning_rate: float = traced(1e-3, low=0)
    """Adam's step size."""
    anneal_lr: bool = static(True)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    gamma: float = traced(0.99, low=0, high=1)
    """Discount factor per environment step."""
    gae_lambda: float = traced(0.95, low=0, high=1)
    """Decay of the generalised advantage estimator."""
    objective: Literal["clip", "kl"] = static("clip")
    """Clipped ratio, or a penalty on the KL divergence from the behaviour policy."""
    clip_eps: float = traced(0.2, low=0)
    """Largest change of the probability ratio that is rewarded (and of the value, with
    `clip_value`)."""
    kl_coef: float = traced(1.0, low=0)
    """Coefficient of the KL penalty; the first one if `kl_target` is set."""
    kl_target: float | None = traced(None, above=0)
    """KL divergence per batch, in nats, that an adaptive coefficient aims at."""
    clip_value: bool = static(False)
    """Whether the change of the value estimate is clipped too."""
    normalize_advantage: bool = static(True)
    """Whether advantages are standardised within each minibatch."""
    ent_coef: float = traced(0.01, low=0)
    """Weight of the entropy bonus."""
    vf_coef: float = traced(0.5, low=0)
    """Weight of the value loss."""
    max_grad_norm: float = traced(0.5, above=0)
    """Gradients are scaled down to this global norm."""
    target_kl: float | None = traced(None, above=0)
    """Stops the updates of a batch once the approximate KL exceeds 1.5 times this."""
    hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Widths of the fully connected layers."""
    activation: Activation = static("tanh")
    """Nonlinearity of the hidden layers."""
    network: Network = static("auto")
    """Torso: "auto" is a CNN for images and an MLP otherwise; or "mlp", or "cnn"."""
    gru_size: int = static(0, low=0)
    """Units of a recurrent memory; 0 for a feed-forward policy."""
    squash: bool = static(False)
    """Whether continuous actions go through tanh; otherwise they are clipped."""
    normalize_obs: bool = static(False)
    """Whether observations are standardised by running statistics."""
    normalize_reward: bool = static(True)
    """Whether rewards are divided by the running deviation of the discounted return."""


class Agent(PyTreeNode):
    """All that the policy artefact holds."""

    params: PyTree
    opt_state: PyTree
    obs_stats: normalize.RunningStats | None
    reward_stats: normalize.RewardStats | None
    kl_coef: Array  # float32 []


class State(PyTreeNode):
    agent: Agent
    world: World
    reward_trace: Array = per_env()  # float32 [N], discounted return so far


class Batch(NamedTuple):
    """What a rollout is turned into: `[T, N, ...]`."""

    obs: PyTree
    action: Array
    log_prob: Array  # of the behaviour policy
    policy: PyTree  # the behaviour policy's parameters, for the KL penalty
    advantage: Array
    target: Array
    value: Array
    done: Array


def validate(config: Config, env: Env) -> None:
    check_minibatches(config)
    require(
        config.kl_target is None or (config.objective == "kl" and config.kl_coef > 0),
        f"kl_target = {config.kl_target} adapts the penalty of objective = 'kl' from a "
        f"kl_coef above 0, but objective = {config.objective!r} and kl_coef = "
        f"{config.kl_coef}.",
    )
    checks.check_policy_actions("ppo", env)
    checks.check_squash(config, env)
    checks.check_action_mask(env)
    checks.check_torso(config, env)


def num_sequences(config: Config) -> int:
    """Whole sequences are shuffled: environments with a GRU, single steps without."""
    return config.num_envs * (1 if config.gru_size else config.num_steps)


def check_minibatches(config: Config) -> None:
    steps = config.num_envs * config.num_steps
    sequences = num_sequences(config)
    unit = "num_envs" if config.gru_size else "num_envs * num_steps"
    # A minibatch of one step has no deviation to divide by.
    most = min(sequences, steps // 2) if config.normalize_advantage else sequences
    wanted = config.num_minibatches
    if sequences % wanted or wanted > most:
        reason = "" if most == sequences else ", more than one step each"
        nearest = checks.nearest_divisor(sequences, wanted, max(most, 1))
        raise InvalidInput(
            f"num_minibatches = {wanted} must divide {unit} = {sequences}{reason}: "
            f"try {nearest}."
        )


def plan(config: Config, env: Env) -> Plan:
    del env
    env_steps = config.num_envs * config.num_steps
    return Plan(
        env_steps=env_steps,
        updates=config.num_epochs * config.num_minibatches,
        gradient_rows=env_steps // config.num_minibatches,
        shares=math.gcd(
            config.num_envs, num_sequences(config) // config.num_minibatches
        ),
    )


def network(config: Config, env: Env) -> ActorCritic:
    return ActorCritic(
        action_space=env.action_space,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        image=uses_image(env.observation_space, config.network),
        gru_size=config.gru_size,
    )


def init_memory(config: Config, env: Env, num_envs: int) -> Memory:
    del env
    return initial_memory(config.gru_size, num_envs)


def init(config: Config, env: Env, key: Array) -> State:
    key_params, key_world = jax.random.split(key)
    memory = init_memory(config, env, config.num_envs)
    world = init_world(env, key_world, config.num_envs, memory)
    net = network(config, env)
    shape = feature_shape(env.observation_space, net.image)
    x = jnp.zeros((config.num_envs, *shape))
    params = net.init(key_params, memory, x)
    agent = Agent(
        params=params,
        opt_state=optim.adam(config.max_grad_norm).init(optim.flat(params)[0]),
        obs_stats=normalize.init(shape) if config.normalize_obs else None,
        reward_stats=normalize.init_reward() if config.normalize_reward else None,
        kl_coef=jnp.asarray(config.kl_coef, jnp.float32),
    )
    return State(agent, world, jnp.zeros(config.num_envs))


def forward(
    config: Config,
    env: Env,
    agent: Agent,
    params: PyTree,
    obs: PyTree,
    memory: Memory,
    done: Array | None = None,
) -> tuple[Memory, PolicyParams, Array]:
    """Memory, policy parameters and value: of one step, or along time if `done` says
    where episodes ended. The statistics are the agent's, the parameters may be newer."""
    net = network(config, env)
    x = network_input(env.observation_space, obs, net.image, agent.obs_stats)
    if done is None:
        return apply_step(net, params, memory, x)
    return apply_sequence(net, params, memory, x, done)


def distribution(config: Config, env: Env, policy: PolicyParams, obs: PyTree) -> Any:
    """The action distribution; `obs` may hold a mask."""
    mask = action_mask(env.observation_space, obs)
    return policy_distribution(env.action_space, policy, mask, config.squash)


def choose(
    config: Config, env: Env, agent: Agent, obs: PyTree, memory: Memory, noise: Any
) -> tuple[Array, Memory, dict[str, Any]]:
    """One step of the policy: a sample made from `action_noise`, or the mode for None.

    The extras are what an update needs of a step: the policy's parameters and its value,
    and the memory after it, before it is cleared where an episode ends.
    """
    memory, policy, value = forward(config, env, agent, agent.params, obs, memory)
    pi = distribution(config, env, policy, obs)
    action = pi.mode() if noise is None else pi.from_noise(noise)
    return action, memory, {"policy": policy, "value": value, "memory": memory}


def act(
    config: Config,
    env: Env,
    agent: Agent,
    obs: PyTree,
    memory: Memory,
    key: Array,
    greedy: bool = False,
) -> tuple[Array, Memory, dict[str, Any]]:
    batch = jax.tree.leaves(obs)[0].shape[:1]
    noise = None if greedy else action_noise(env.action_space, key, batch)
    return choose(config, env, agent, obs, memory, noise)


def explain(
    config: Config, env: Env, agent: Agent, obs: PyTree, memory: Memory
) -> dict[str, Array]:
    """What the choice of an action is made from (see `Algorithm`)."""
    _, policy, _ = forward(config, env, agent, agent.params, obs, memory)
    return explanation(env.action_space, distribution(config, env, policy, obs))


def values(
    config: Config, env: Env, agent: Agent, trajectory: Transition
) -> tuple[Array, Array]:
    """V(s_t) and V(s_{t+1}) `[T, N]` of a rollout."""

    def value_of(obs: PyTree, memory: Memory) -> Array:
        return forward(config, env, agent, agent.params, obs, memory)[2]

    if network(config, env).shared:
        value = trajectory.extras["value"]
    else:
        # A critic of its own is not run in the rollout: few products of many rows are
        # faster than T of N rows.
        value = in_blocks(lambda obs: value_of(obs, ()), trajectory.obs)
    next_value = estimators.successor_values(
        value_of,
        value,
        trajectory.next_obs,
        trajectory.extras["memory"],
        trajectory.truncated,
    )
    return value, next_value


def make_batch(
    config: Config, env: Env, agent: Agent, trajectory: Transition, reward: Array
) -> Batch:
    """Advantages and targets of a rollout `[T, N]`."""
    value, next_value = values(config, env, agent, trajectory)
    advantage, target = estimators.gae(
        reward,
        value,
        next_value,
        trajectory.terminated,
        trajectory.truncated,
        config.gamma,
        config.gae_lambda,
    )
    policy = trajectory.extras["policy"]
    pi = distribution(config, env, policy, trajectory.obs)
    return Batch(
        obs=trajectory.obs,
        action=trajectory.action,
        log_prob=pi.log_prob(trajectory.action),
        policy=policy if config.objective == "kl" else (),
        advantage=advantage,
        target=target,
        value=value,
        done=trajectory.terminated | trajectory.truncated,
    )


def as_sequences(config: Config, batch: Batch) -> Batch:
    """Without memory every step is a sequence of its own, `[1, T * N, ...]`."""
    if config.gru_size:
        return batch
    return jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), batch)


def policy_loss(
    config: Config, env: Env, agent: Agent, batch: Batch, pi: Any, log_prob: Array
) -> Array:
    """The objective to minimise, of every step: clipped, or with a KL penalty."""
    advantage = batch.advantage
    if config.normalize_advantage:
        advantage = losses.normalize_advantage(advantage)
    if config.objective == "clip":
        return losses.clipped_surrogate(
            log_prob, batch.log_prob, advantage, config.clip_eps
        )
    old = distribution(config, env, batch.policy, batch.obs)
    surrogate = losses.surrogate(log_prob, batch.log_prob, advantage)
    return surrogate + agent.kl_coef * old.kl_divergence(pi)


def value_loss(config: Config, batch: Batch, value: Array) -> Array:
    """The squared error of the value, of every step."""
    if config.clip_value:
        return losses.clipped_value_mse(
            value, batch.value, batch.target, config.clip_eps
        )
    return losses.value_mse(value, batch.target)


REPORTED = (
    "loss/policy",
    "loss/value",
    "policy/entropy",
    "policy/approx_kl",
    "policy/clip_fraction",
)
"""What `loss` reports of every step, in this order."""


def loss(
    params: PyTree,
    config: Config,
    env: Env,
    agent: Agent,
    batch: Batch,
    memory: Memory,
    policy_loss_fn: Callable = policy_loss,
) -> tuple[Array, tuple[Array, ...]]:
    """The loss, and what is `REPORTED` of every step of the minibatch."""
    _, policy, value = forward(
        config, env, agent, params, batch.obs, memory, batch.done
    )
    pi = distribution(config, env, policy, batch.obs)
    log_prob = pi.log_prob(batch.action)
    loss_policy = policy_loss_fn(config, env, agent, batch, pi, log_prob)
    loss_value = value_loss(config, batch, value)
    entropy = pi.entropy()
    clipped = jnp.abs(jnp.exp(log_prob - batch.log_prob) - 1.0) > config.clip_eps
    total = loss_policy + config.vf_coef * loss_value - config.ent_coef * entropy
    kl = losses.approx_kl(log_prob, batch.log_prob)
    return total.mean(), (loss_policy, loss_value, entropy, kl, clipped)


def update(
    config: Config,
    env: Env,
    agent: Agent,
    batch: Batch,
    memory: Memory,
    key: Array,
    learning_rate: Scalar,
    loss_fn: Callable = loss,
) -> tuple[Agent, Metrics]:
    """`num_epochs` passes of `num_minibatches` gradient steps over one batch.

    On several devices each has the whole batch and takes its share of every minibatch.
    """
    sequences = as_sequences(config, parallel.gather(batch, axis=1))
    rows_at, starts = reader(sequences), parallel.gather(memory)
    optimizer = optim.adam(config.max_grad_norm)
    params, unflatten = optim.flat(agent.params)

    def loss_of(params: Array, rows: Batch, start: Memory) -> tuple[Array, tuple]:
        return loss_fn(unflatten(params), config, env, agent, rows, start)

    def gradient_step(carry: tuple, index: Array) -> tuple[tuple, tuple]:
        params, opt_state, stopped = carry
        rows = rows_at(index)
        start = jax.tree.map(lambda x: x[index], starts)
        grads, reported = jax.grad(loss_of, has_aux=True)(params, rows, start)
        grads = parallel.mean(grads)
        metrics = packed_sums(reported), optim.global_norm(grads)
        new = optim.apply(optimizer, params, opt_state, grads, learning_rate)
        if config.target_kl is None:
            return (*new, stopped), metrics
        approx_kl = reported[REPORTED.index("policy/approx_kl")].mean()
        stopped |= parallel.mean(approx_kl) > 1.5 * config.target_kl
        kept = jax.tree.map(
            lambda old, new: jnp.where(stopped, old, new), (params, opt_state), new
        )
        return (*kept, stopped), metrics

    length, size = sequences.done.shape
    indices = minibatches(key, size, config.num_epochs, config.num_minibatches)
    indices = parallel.share(indices, axis=1)
    carry = (params, agent.opt_state, jnp.bool_(False))
    (params, opt_state, _), (sums, norms) = jax.lax.scan(gradient_step, carry, indices)
    metrics = unpacked_means(REPORTED, sums.sum(0), indices.size * length)
    metrics["optim/grad_norm"] = mean(norms)
    agent = agent.replace(params=unflatten(params), opt_state=opt_state)
    return adapt_kl_coef(config, env, agent, batch, memory), metrics


def adapt_kl_coef(
    config: Config, env: Env, agent: Agent, batch: Batch, memory: Memory
) -> Agent:
    """Section 4: the coefficient follows the KL divergence that the update made."""
    if config.objective != "kl" or config.kl_target is None:
        return agent
    _, policy, _ = forward(
        config, env, agent, agent.params, batch.obs, memory, batch.done
    )
    old = distribution(config, env, batch.policy, batch.obs)
    new = distribution(config, env, policy, batch.obs)
    kl = parallel.mean(old.kl_divergence(new).mean())
    coef = losses.adaptive_kl_coef(agent.kl_coef, kl, config.kl_target)
    return agent.replace(kl_coef=coef)


def train_step(
    config: Config, env: Env, state: State, loss_fn: Callable = loss
) -> tuple[State, Metrics]:
    """One rollout of `num_steps` and its updates, by `loss` or one of your own."""
    agent, world = state.agent, state.world
    progress = optim.progress(world.env_steps, config.total_steps)
    key, key_update = jax.random.split(world.key)
    memory = world.memory

    world, trajectory, stats = unroll(
        env,
        partial(choose, config, env, agent),
        world.replace(key=key),
        config.num_steps,
        partial(action_noise, env.action_space),
    )
    reward, reward_stats, reward_trace = normalize.scaled_rollout(
        agent.reward_stats,
        state.reward_trace,
        trajectory.reward,
        trajectory.terminated | trajectory.truncated,
        config.gamma,
    )
    batch = make_batch(config, env, agent, trajectory, reward)
    learning_rate: Scalar = config.learning_rate
    if config.anneal_lr:
        learning_rate = optim.linear_schedule(learning_rate, 0.0, progress)
    new_agent, metrics = update(
        config, env, agent, batch, memory, key_update, learning_rate, loss_fn
    )
    new_agent = new_agent.replace(
        reward_stats=reward_stats,
        obs_stats=updated_stats(
            env.observation_space,
            batch.obs,
            network(config, env).image,
            state.agent.obs_stats,
        ),
    )
    metrics |= stats
    metrics["value/explained_variance"] = mean(
        losses.explained_variance(batch.value, batch.target)
    )
    metrics["policy/kl_coef"] = mean(new_agent.kl_coef)
    metrics["optim/learning_rate"] = mean(learning_rate)
    return State(new_agent, world, reward_trace), metrics


PPO = Algorithm(
    name="ppo",
    Config=Config,
    init=init,
    train_step=train_step,
    act=act,
    explain=explain,
    plan=plan,
    validate=validate,
    init_memory=init_memory,
)
