"""REINFORCE (Williams, 1992) and the ladder of variance reduction above it.

    grad J = E[ sum_t grad log pi(a_t | s_t) * (w_t - b_t) ]

Every rung is a config value:

* `weighting`: "return" gives each step the whole episode's G_0; "reward_to_go" only what
  came after it, G_t; "discounted" weighs it by gamma^t as the discounted objective asks,
  gamma^t G_t (Sutton & Barto, 2018, section 13.3).
* `baseline`: "none"; "moving_average", a running mean of G_0; "optimal", a running mean of
  the constant that leaves the least variance (both updated after the gradient step);
  "value", a learned V(s_t).

The details that matter:

1. Two ways to collect. With "reward_to_go" and a "value" baseline the environments simply
   go on from batch to batch; every step is learned from, and an episode that is cut, by
   the environment or by the batch, is completed by V of the true successor. Every other
   rung needs whole episodes: each batch starts all environments afresh and learns from
   exactly one episode of each. Taking "all episodes that happen to fit" would favour
   short ones.
2. Steps computed after such an episode has ended are masked, but they count as
   environment steps: they were computed.
3. Sums over counted steps are divided by all steps, counted or not: a constant. Dividing
   by the number of counted steps, or averaging each episode first, would give the steps of
   short episodes more weight, and find the wrong optimum with few environments.
4. Without a value an episode cut by its time limit ends there, as taught.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import acting, estimators, losses, networks, optim, rollout, types
from jaxrl.algorithms import checks, on_policy
from jaxrl.core import parallel
from jaxrl.errors import require
from jaxrl.networks import Activation, Network
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


class Config(PyTreeNode):
    """Hyper-parameters of REINFORCE. The defaults are the CartPole benchmark row's."""

    total_steps: float = traced(500_000.0, low=1, high=1e12)
    """Environment steps of the whole run; the learning-rate schedule ends there."""
    num_envs: int = static(8, low=1)
    """Environments stepped in parallel."""
    num_steps: int = static(128, low=1)
    """Steps of each environment between updates. Where whole episodes are needed it must
    reach the environment's time limit."""
    weighting: Literal["return", "reward_to_go", "discounted"] = static("reward_to_go")
    """What multiplies the score: G_0, G_t or gamma^t G_t."""
    baseline: Literal["none", "moving_average", "optimal", "value"] = static("value")
    """What is subtracted: nothing, a running mean of G_0, the best constant, or V(s_t)."""
    baseline_decay: float = traced(0.9, low=0, high=1)
    """beta of the running means: rho <- beta rho + (1 - beta) G_0."""
    learning_rate: float = traced(3e-3, low=0)
    """Adam's step size."""
    anneal_lr: bool = static(True)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    gamma: float = traced(0.99, low=0, high=1)
    """Discount factor per environment step."""
    normalize_advantage: bool = static(True)
    """Whether the weights of a batch are standardised."""
    ent_coef: float = traced(0.01, low=0)
    """Weight of the entropy bonus."""
    vf_coef: float = traced(0.5, low=0)
    """Weight of the value loss."""
    max_grad_norm: float = traced(0.5, above=0)
    """Gradients are scaled down to this global norm."""
    hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Widths of the fully connected layers."""
    activation: Activation = static("tanh")
    """Nonlinearity of the hidden layers."""
    network: Network = static("auto")
    """A name ("auto", "cnn", "gru(size=64)", ...), a flax module, or module:factory."""
    squash: bool = static(False)
    """Whether continuous actions go through tanh; otherwise they are clipped."""

    @property
    def whole_episodes(self) -> bool:
        """Whether a batch is one whole episode of each environment."""
        return self.weighting != "reward_to_go" or self.baseline != "value"


class Agent(types.Agent, kw_only=True):
    """All that the policy artefact holds."""

    average_return: Array  # float32 [], the baseline that is a constant


def validate(config: Config, env: Env) -> None:
    checks.policy_gradient("reinforce", config, env, recurrent=True)
    body = networks.resolve(config, env.observation_space)
    require(
        config.baseline != "optimal" or not body.is_recurrent,
        f"baseline = 'optimal' needs a network without memory, but network = "
        f"{config.network!r}: use 'moving_average' or 'value'.",
    )
    if not config.whole_episodes:
        return
    rung = f"weighting = {config.weighting!r} with baseline = {config.baseline!r}"
    require(
        env.horizon is not None,
        f"{rung} needs whole episodes, but {env.id} has no time limit: "
        f"make it with horizon=T.",
    )
    require(
        config.num_steps >= int(env.horizon),
        f"num_steps = {config.num_steps} is too short: {rung} needs whole episodes, "
        f"so set it to the time limit of {env.id}, {int(env.horizon)}, or more.",
    )


def init(config: Config, env: Env, key: Array) -> types.State:
    new = on_policy.init(config, env, key, networks.actor_critic(config, env))
    agent = Agent(**vars(new.agent), average_return=jnp.float32(0.0))
    return new.replace(agent=agent)


def policy(
    config: Config, env: Env, agent: Agent, obs: PyTree, memory: Memory
) -> tuple[Any, Memory, dict[str, Any]]:
    """One step: the action distribution, the memory, V(s)."""
    pi, value, memory = networks.apply_actor_critic(
        config, env, agent.params, obs, memory
    )
    return pi, memory, {"value": value, "memory": memory}


acts = acting.stochastic(policy)


def returns(
    config: Config, env: Env, agent: Agent, trajectory: types.Transition
) -> tuple[Array, Array]:
    """Reward-to-go G_t `[T, N]`, and which steps count `[T, N]`."""
    mask = jnp.ones_like(trajectory.done)
    if config.whole_episodes:
        mask = estimators.first_episode_mask(trajectory.done)
    next_value = jnp.zeros_like(trajectory.reward)
    if config.baseline == "value":
        # Only the values of cut episodes and of the last row enter the return.
        next_value = estimators.successor_values(
            lambda *at: networks.apply_actor_critic(config, env, agent.params, *at)[1],
            next_value,
            trajectory.next_obs,
            trajectory.extras["memory"],
            trajectory.truncated,
        )
    reward_to_go = estimators.discounted_returns(
        trajectory.reward,
        trajectory.terminated,
        trajectory.truncated,
        next_value,
        config.gamma,
    )
    return reward_to_go, mask


def score_weight(
    config: Config, agent: Agent, reward_to_go: Array, value: Array
) -> Array:
    """w_t - b_t `[T, N]`, of batches that start with an episode where it matters."""
    baselines: dict[str, types.Scalar] = {
        "none": 0.0,
        "moving_average": agent.average_return,
        "optimal": agent.average_return,
        "value": value,
    }
    baseline = baselines[config.baseline]
    if config.weighting == "return":
        return reward_to_go[0] - baseline + jnp.zeros_like(reward_to_go)
    weight = reward_to_go - baseline
    if config.weighting == "discounted":
        time = jnp.arange(len(reward_to_go), dtype=jnp.float32)[:, None]
        weight = config.gamma**time * weight
    return weight


def best_constant(
    config: Config,
    env: Env,
    agent: Agent,
    trajectory: types.Transition,
    reward_to_go: Array,
    mask: Array,
) -> Array:
    """b* of this batch of whole episodes, from the score of each of them."""
    plain = config.replace(baseline="none")
    params, unflatten = optim.flat(agent.params)

    def log_prob(params: Array, obs: PyTree, action: PyTree, weight: Array) -> Array:
        pi, _, _ = networks.apply_actor_critic(config, env, unflatten(params), obs)
        return (pi.log_prob(action) * weight).sum()

    def scores(gain: Array) -> Array:
        weight = jnp.where(mask, score_weight(plain, agent, gain, gain), 0.0)
        score = jax.vmap(jax.grad(log_prob), in_axes=(None, 1, 1, 1))
        return score(params, trajectory.obs, acting.sample_of(trajectory), weight)

    return estimators.optimal_baseline(
        scores(reward_to_go), scores(jnp.ones_like(reward_to_go))
    )


def mean_over_all_steps(x: Array, mask: Array) -> Array:
    """Sum over the steps that count, divided by the number of all steps."""
    return jnp.where(mask, x, 0.0).mean()


def loss(
    params: PyTree,
    config: Config,
    env: Env,
    agent: Agent,
    trajectory: types.Transition,
    start: Memory,
    reward_to_go: Array,
    mask: Array,
) -> tuple[Array, Metrics]:
    """The loss of a rollout that began with the memory `start`."""
    at = (trajectory.obs, start, trajectory.done)
    pi, value, _ = networks.apply_actor_critic(config, env, params, *at)
    weight = score_weight(config, agent, reward_to_go, jax.lax.stop_gradient(value))
    if config.normalize_advantage:
        weight = losses.normalize_advantage(weight, mask, terms=reward_to_go)
    score_loss = losses.policy_gradient(
        pi.log_prob(acting.sample_of(trajectory)), weight
    )
    policy_loss = mean_over_all_steps(score_loss, mask)
    entropy = mean_over_all_steps(pi.entropy(), mask)
    total = policy_loss - config.ent_coef * entropy
    metrics = {
        "loss/policy": mean(policy_loss),
        "policy/entropy": mean(pi.entropy(), where=mask),
    }
    if config.baseline == "value":
        value_loss = mean_over_all_steps(losses.value_mse(value, reward_to_go), mask)
        total += config.vf_coef * value_loss
        metrics["loss/value"] = mean(value_loss)
    return total, metrics


def train_step(
    config: Config, env: Env, state: types.State
) -> tuple[types.State, Metrics]:
    """One batch and one gradient step."""
    agent, world = state.agent, state.world
    learning_rate = optim.annealed(config, config.learning_rate, world.env_steps)
    if config.whole_episodes:
        world = rollout.restart_episodes(env, world)
    start = world.memory
    world, trajectory, stats = acts.unroll(config, env, agent, world, config.num_steps)
    reward_to_go, mask = returns(config, env, agent, trajectory)
    batch = (config, env, agent, trajectory, start, reward_to_go, mask)
    params, opt_state, metrics, norm = optim.gradient_step(
        lambda params: loss(params, *batch),
        agent.params,
        agent.opt_state,
        optim.adam(config.max_grad_norm),
        learning_rate,
    )
    average_return = agent.average_return
    if config.baseline in ("moving_average", "optimal"):
        decay = config.baseline_decay
        now = parallel.mean(reward_to_go[0].mean())
        if config.baseline == "optimal":
            now = best_constant(config, env, agent, trajectory, reward_to_go, mask)
        average_return = decay * average_return + (1 - decay) * now
    if config.whole_episodes:
        # Of the episodes learned from: all that ended in time would favour short ones.
        stats = {
            "rollout/episode_return": mean((trajectory.reward * mask).sum(0)),
            "rollout/episode_length": mean(mask.sum(0)),
        }
    metrics |= stats
    metrics["optim/grad_norm"] = mean(norm)
    metrics["optim/learning_rate"] = mean(learning_rate)
    metrics["rollout/masked_fraction"] = mean(~mask)
    agent = Agent(params, opt_state, average_return=average_return)
    return types.State(agent, world), metrics


REINFORCE = types.Algorithm(
    name="reinforce",
    Config=Config,
    init=init,
    train_step=train_step,
    act=acts.act,
    explain=acts.explain,
    plan=on_policy.plan_one_step,
    validate=validate,
    init_memory=networks.init_memory,
)
