"""Proximal Policy Optimization (Schulman et al., 2017, arXiv:1707.06347).

Both objectives of the paper: the clipped ratio (section 3) and the KL penalty with a
fixed or adaptive coefficient (section 4). Discrete (also masked) and continuous actions;
feed-forward and recurrent policies.

The details that matter, in the order of the code:

1. The value of a truncated episode's last state is bootstrapped from the true successor
   observation; that of a terminated one is zero. The lambda-trace is cut by both.
2. Observation statistics are frozen while a batch is collected and learned from, so that
   the ratio is exactly 1 at the first minibatch.
3. Advantages are normalised per minibatch; the learning rate falls linearly to zero.
4. With a recurrent network whole sequences are shuffled, not single steps, and the memory
   at the start of the rollout is data.
5. Rewards are divided by the running deviation of the discounted return, so that values
   are of order one whatever the task pays. A tanh critic that has to reach a value of 100
   can saturate, and then every advantage is noise.
6. Orthogonal initialisation, gains sqrt(2), 0.01 (policy) and 1 (value); Adam's eps 1e-5;
   gradients clipped by their global norm.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import acting, estimators, losses, networks, normalize, optim, types
from jaxrl.algorithms import checks, on_policy
from jaxrl.core import minibatches, parallel
from jaxrl.errors import require
from jaxrl.networks import Activation, Network
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


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
    """Coefficient of the KL penalty; the first one if `kl_penalty_target` is set."""
    kl_penalty_target: float | None = traced(None, above=0)
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
    """A name ("auto", "cnn", "gru(size=64)", ...), a flax module, or module:factory."""
    squash: bool = static(False)
    """Whether continuous actions go through tanh; otherwise they are clipped."""
    normalize_obs: bool = static(False)
    """Whether observations are standardised by running statistics."""
    normalize_reward: bool = static(True)
    """Whether rewards are divided by the running deviation of the discounted return."""


class Agent(types.Agent, kw_only=True):
    """All that the policy artefact holds."""

    obs_stats: normalize.RunningStats | None
    reward_stats: normalize.RewardStats | None
    kl_coef: Array = types.fresh()  # float32 []


class State(types.State, kw_only=True):
    """The state of training."""

    reward_trace: Array = types.per_env()  # float32 [N], discounted return so far


class Batch(NamedTuple):
    """What a rollout is turned into: `[T, N, ...]`."""

    obs: PyTree
    action: PyTree  # as `log_prob` takes it
    log_prob: Array  # of the behaviour policy
    policy: PyTree  # the behaviour policy's parameters, for the KL penalty
    advantage: Array
    target: Array
    value: Array
    done: Array


def validate(config: Config, env: Env) -> None:
    checks.policy_gradient("ppo", config, env, recurrent=True)
    on_policy.check_minibatches(config, env, config.normalize_advantage)
    adapts = config.objective == "kl" and config.kl_coef > 0
    require(
        config.kl_penalty_target is None or adapts,
        f"kl_penalty_target = {config.kl_penalty_target} adapts the penalty of objective "
        f"= 'kl' from a kl_coef above 0, but objective = {config.objective!r} and "
        f"kl_coef = {config.kl_coef}.",
    )


def init(config: Config, env: Env, key: Array) -> State:
    new = on_policy.init(config, env, key, networks.actor_critic(config, env))
    agent = Agent(
        **vars(new.agent),
        obs_stats=networks.init_stats(config, env),
        reward_stats=normalize.init_reward() if config.normalize_reward else None,
        kl_coef=jnp.asarray(config.kl_coef, jnp.float32),
    )
    return State(agent, new.world, reward_trace=jnp.zeros(config.num_envs))


def forward(
    config: Config,
    env: Env,
    agent: Agent,
    params: PyTree,
    obs: PyTree,
    memory: Memory = (),
    done: Array | None = None,
) -> tuple[Memory, PyTree, Array]:
    """Memory, policy parameters and value; along time with `done`.

    The statistics are the agent's, the parameters may be newer.
    """
    net = networks.actor_critic(config, env)
    after: Any = net.apply(params, memory, obs, agent.obs_stats, done)
    return after


def policy(
    config: Config, env: Env, agent: Agent, obs: PyTree, memory: Memory
) -> tuple[Any, Memory, dict[str, Any]]:
    """One step: the action distribution, the memory, and what an update needs of it.

    The memory among the extras is that before it is cleared where an episode ends.
    """
    memory, policy, value = forward(config, env, agent, agent.params, obs, memory)
    pi = networks.distribution(config, env, policy, obs)
    return pi, memory, {"policy": policy, "value": value, "memory": memory}


acts = acting.stochastic(policy)


def values(
    config: Config, env: Env, agent: Agent, trajectory: types.Transition
) -> tuple[Array, Array]:
    """V(s_t) and V(s_{t+1}) `[T, N]` of a rollout."""

    def value_of(obs: PyTree, memory: Memory = ()) -> Array:
        return forward(config, env, agent, agent.params, obs, memory)[2]

    if networks.actor_critic(config, env).shared:
        value = trajectory.extras["value"]
    else:
        # A critic of its own is not run in the rollout: few products of many rows are
        # faster than T of N rows.
        value = acting.in_blocks(value_of, trajectory.obs)
    at = (trajectory.next_obs, trajectory.extras["memory"], trajectory.truncated)
    return value, estimators.successor_values(value_of, value, *at)


def make_batch(
    config: Config, env: Env, agent: Agent, trajectory: types.Transition, reward: Array
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
    pi = networks.distribution(config, env, policy, trajectory.obs)
    action = acting.sample_of(trajectory)
    return Batch(
        obs=trajectory.obs,
        action=action,
        log_prob=pi.log_prob(action),
        policy=policy if config.objective == "kl" else (),
        advantage=advantage,
        target=target,
        value=value,
        done=trajectory.done,
    )


def policy_loss(
    config: Config, env: Env, agent: Agent, batch: Batch, pi: Any, log_prob: Array
) -> Array:
    """The objective to minimise, of every step: clipped, or with a KL penalty."""
    advantage = batch.advantage
    if config.normalize_advantage:
        advantage = losses.normalize_advantage(advantage, terms=batch.target)
    if config.objective == "clip":
        return losses.clipped_surrogate(
            log_prob, batch.log_prob, advantage, config.clip_eps
        )
    old = networks.distribution(config, env, batch.policy, batch.obs)
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
    pi = networks.distribution(config, env, policy, batch.obs)
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
    learning_rate: types.Scalar,
    loss_fn: Callable = loss,
) -> tuple[Agent, Metrics]:
    """`num_epochs` passes of `num_minibatches` gradient steps over one batch."""
    passes = (config.num_epochs, config.num_minibatches)
    if jax.tree.leaves(memory):
        cut = minibatches.sequence_batches(key, batch, memory, *passes)
    else:
        cut = minibatches.batches(key, batch, *passes)

    def loss_of(params: PyTree, rows: Any) -> tuple[Array, tuple[Array, ...]]:
        rows, start = rows if jax.tree.leaves(memory) else (rows, ())
        return loss_fn(params, config, env, agent, rows, start)

    stop_above = None
    if config.target_kl is not None:
        stop_above = ("policy/approx_kl", 1.5 * config.target_kl)
    params, opt_state, metrics = optim.fit(
        loss_of,
        agent.params,
        agent.opt_state,
        cut,
        optim.adam(config.max_grad_norm),
        learning_rate,
        REPORTED,
        stop_above,
    )
    agent = agent.replace(params=params, opt_state=opt_state)
    return adapt_kl_coef(config, env, agent, batch, memory), metrics


def adapt_kl_coef(
    config: Config, env: Env, agent: Agent, batch: Batch, memory: Memory
) -> Agent:
    """Section 4: the coefficient follows the KL divergence that the update made."""
    if config.objective != "kl" or config.kl_penalty_target is None:
        return agent
    rollout = (batch.obs, memory, batch.done)
    _, policy, _ = forward(config, env, agent, agent.params, *rollout)
    old = networks.distribution(config, env, batch.policy, batch.obs)
    new = networks.distribution(config, env, policy, batch.obs)
    kl = parallel.mean(old.kl_divergence(new).mean())
    coef = losses.adaptive_kl_coef(agent.kl_coef, kl, config.kl_penalty_target)
    return agent.replace(kl_coef=coef)


def train_step(
    config: Config, env: Env, state: State, loss_fn: Callable = loss
) -> tuple[State, Metrics]:
    """One rollout of `num_steps` and its updates, by `loss` or one of your own."""
    agent, world, memory = state.agent, state.world, state.world.memory
    learning_rate = optim.annealed(config, config.learning_rate, world.env_steps)
    key, key_update = jax.random.split(world.key)
    world, trajectory, stats = acts.unroll(
        config, env, agent, world.replace(key=key), config.num_steps
    )
    reward, reward_stats, reward_trace = normalize.scaled_rollout(
        agent.reward_stats,
        state.reward_trace,
        trajectory.reward,
        trajectory.done,
        config.gamma,
    )
    batch = make_batch(config, env, agent, trajectory, reward)
    new, metrics = update(
        config, env, agent, batch, memory, key_update, learning_rate, loss_fn
    )
    obs_stats = networks.update_stats(config, env, batch.obs, agent.obs_stats)
    new = new.replace(reward_stats=reward_stats, obs_stats=obs_stats)
    metrics |= stats
    metrics["value/explained_variance"] = mean(
        losses.explained_variance(batch.value, batch.target)
    )
    metrics["policy/kl_coef"] = mean(new.kl_coef)
    metrics["optim/learning_rate"] = mean(learning_rate)
    return State(new, world, reward_trace=reward_trace), metrics


PPO = types.Algorithm(
    name="ppo",
    Config=Config,
    init=init,
    train_step=train_step,
    act=acts.act,
    explain=acts.explain,
    plan=on_policy.plan_minibatches,
    validate=validate,
    init_memory=networks.init_memory,
)
