"""Actor-critic: REINFORCE's return replaced by what a critic has learned (Konda and
Tsitsiklis, 2000; Sutton and Barto, 2018, section 13.5).

    actor:   grad J = E[ grad log pi(a_t | s_t) * w_t ] + ent_coef * grad H
    critic:  min E[ 1/2 (x_t - y_t)^2 ]

One switch, `weight`, names w_t, and with it what the critic learns:

* "q": Q(s_t, a_t);
* "q_minus_v": Q(s_t, a_t) - V(s_t), with V(s) = sum_a pi(a|s) Q(s, a);
* "td_error": r_t + gamma V(s_{t+1}) - V(s_t);
* "gae": the sum of those errors, each decayed by gamma lambda.

The first two need action values, so their actions are discrete; x_t is Q(s_t, a_t) and
`critic` says what it learns: "sarsa", the value of the action taken next, or "q_learning",
that of the best one. The last two learn V. For weights that are returns see `reinforce`.

The details that matter, in the order of the code:

1. The critic moves first, `num_critic_updates` times for each rollout, with targets from
   itself; the actor then makes one step on what the critic now says. Each has a learning
   rate of its own. The actor must be the slower one: the critic follows a policy, and what
   it says of one that has moved on is wrong.
2. Targets bootstrap from the true successor unless it is terminal. Where the data stop, at
   a time limit or at the end of the rollout, there is no next action, and SARSA takes the
   mean over the policy's actions instead.
3. A learned Q as weight has little variance and is biased: its error is credited to the
   actions. Subtracting V takes out what all actions have in common, which is most of it.
4. Illegal actions (`action_mask`) are neither chosen nor maximised over.
"""

from typing import Any, Literal, NamedTuple

import jax
from flax.struct import PyTreeNode

from jaxrl import acting, estimators, losses, networks, optim, spaces, types
from jaxrl.algorithms import checks, on_policy
from jaxrl.core import parallel
from jaxrl.errors import require
from jaxrl.networks import Activation, Network
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


class Config(PyTreeNode):
    """Hyper-parameters of actor-critic. The defaults are the CartPole benchmark row's."""

    total_steps: float = traced(500_000.0, low=1, high=1e12)
    """Environment steps of the whole run; the learning-rate schedule ends there."""
    num_envs: int = static(8, low=1)
    """Environments stepped in parallel."""
    num_steps: int = static(32, low=1)
    """Steps of each environment between updates."""
    weight: Literal["q", "q_minus_v", "td_error", "gae"] = static("q")
    """What multiplies the score: Q, Q - V, the TD error of V, or its GAE."""
    critic: Literal["sarsa", "q_learning"] = static("sarsa")
    """What Q learns: the value of the next action, or of the best one; V learns by TD."""
    critic_lambda: float = traced(0.8, low=0, high=1)
    """Decay of the critic's targets: 0 is one step, 1 the return to the rollout's end."""
    gae_lambda: float = traced(0.95, low=0, high=1)
    """Decay of the generalised advantage estimator, for that weight."""
    num_critic_updates: int = static(4, low=1)
    """The critic's gradient steps for each of the actor's."""
    learning_rate: float = traced(5e-4, low=0)
    """The actor's step size (Adam)."""
    critic_learning_rate: float = traced(5e-3, low=0)
    """The critic's step size (Adam)."""
    anneal_lr: bool = static(True)
    """Whether both learning rates fall linearly to zero over `total_steps`."""
    gamma: float = traced(0.99, low=0, high=1)
    """Discount factor per environment step."""
    normalize_advantage: bool = static(True)
    """Whether the weights of a batch are standardised."""
    ent_coef: float = traced(0.01, low=0)
    """Weight of the entropy bonus."""
    max_grad_norm: float = traced(0.5, above=0)
    """Gradients are scaled down to this norm, the actor's and the critic's apart."""
    hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Widths of the fully connected layers, of actor and critic alike."""
    activation: Activation = static("tanh")
    """Nonlinearity of the hidden layers."""
    network: Network = static("auto")
    """A name ("auto", "mlp", "cnn", "resnet", ...), a flax module, or module:factory."""
    squash: bool = static(False)
    """Whether continuous actions go through tanh; otherwise they are clipped."""

    @property
    def learns_q(self) -> bool:
        """Whether the critic has a value for each action."""
        return self.weight in ("q", "q_minus_v")


class Values(NamedTuple):
    """What a critic says of a rollout: `[T, N]`."""

    estimate: Array  # Q(s_t, a_t), or V(s_t): what is learned
    next_estimate: Array  # the same of the true successor: what targets bootstrap from
    state_value: Array  # V(s_t), learned or implied by Q


def validate(config: Config, env: Env) -> None:
    require(
        not config.learns_q or isinstance(env.action_space, spaces.Discrete),
        f"weight = {config.weight!r} needs a Discrete action space, a value for each "
        f"action, but that of {env.id} is a {type(env.action_space).__name__}: use "
        f"weight = 'td_error' or 'gae'.",
    )
    require(
        config.learns_q or config.critic == "sarsa",
        f"critic = {config.critic!r} learns action values, but weight = "
        f"{config.weight!r} uses state values: set weight = 'q' or 'q_minus_v', or leave "
        f"critic at 'sarsa'.",
    )
    checks.policy_gradient("actor_critic", config, env)


def plan(config: Config, env: Env) -> types.Plan:
    counts = on_policy.plan_one_step(config, env)
    return counts._replace(updates=1 + config.num_critic_updates)


def init(config: Config, env: Env, key: Array) -> types.State:
    critic = networks.q_network if config.learns_q else networks.critic
    pair = (networks.actor(config, env), critic(config, env))
    optimizer = optim.adam(config.max_grad_norm)
    return on_policy.init_pair(config, env, key, *pair, optimizer)


def critic_of(config: Config, env: Env, params: PyTree, obs: PyTree) -> Array:
    """Q(s, .) `[*batch, A]`, or V(s) `[*batch]`, from the critic's parameters."""
    if config.learns_q:
        return networks.apply_q(config, env, params, obs)
    return networks.apply_critic(config, env, params, obs)[0]


def policy(
    config: Config, env: Env, agent: types.Agent, obs: PyTree, memory: Memory
) -> tuple[Any, Memory, dict[str, Any]]:
    """One step: the action distribution, V(s)."""
    pi, _ = networks.apply_actor(config, env, agent.params["actor"], obs)
    value = critic_of(config, env, agent.params["critic"], obs)
    if config.learns_q:
        value = estimators.expected_value(value, pi.probs)
    return pi, memory, {"value": value}


acts = acting.stochastic(policy)


def estimate(
    config: Config, env: Env, params: PyTree, trajectory: types.Transition
) -> Array:
    """x_t `[T, N]`: Q(s_t, a_t) or V(s_t), of the critic's parameters."""
    output = critic_of(config, env, params, trajectory.obs)
    if not config.learns_q:
        return output
    return estimators.action_value(output, trajectory.action)


def values(
    config: Config, env: Env, params: dict[str, PyTree], trajectory: types.Transition
) -> Values:
    """What the critic says of a rollout and of where its rows lead."""

    def successor(value_of: Any, row: Array) -> Array:
        at = (trajectory.next_obs, (), trajectory.truncated)
        return estimators.successor_values(lambda obs, _: value_of(obs), row, *at)

    def action_values(obs: PyTree) -> Array:
        return critic_of(config, env, params["critic"], obs)

    def best(obs: PyTree) -> Array:
        mask = networks.action_mask(env.observation_space, obs)
        return acting.legal(action_values(obs), mask).max(-1)

    def expected(obs: PyTree) -> Array:
        pi, _ = networks.apply_actor(config, env, params["actor"], obs)
        return estimators.expected_value(action_values(obs), pi.probs)

    now = estimate(config, env, params["critic"], trajectory)
    if not config.learns_q:
        return Values(now, successor(action_values, now), now)
    if config.critic == "sarsa":
        following = successor(expected, now)
    else:
        following = successor(best, best(trajectory.obs))
    return Values(now, following, expected(trajectory.obs))


def critic_target(
    config: Config, trajectory: types.Transition, values: Values
) -> Array:
    """y_t `[T, N]`: r + gamma x_{t+1}, or more steps of rewards by `critic_lambda`."""
    return estimators.lambda_returns(
        trajectory.reward,
        trajectory.terminated,
        trajectory.truncated,
        values.next_estimate,
        config.gamma,
        config.critic_lambda,
    )


def score_weight(config: Config, trajectory: types.Transition, values: Values) -> Array:
    """w_t `[T, N]`, by the name that `weight` gives."""
    if config.weight == "q":
        return values.estimate
    if config.weight == "q_minus_v":
        return values.estimate - values.state_value
    reward, terminated = trajectory.reward, trajectory.terminated
    value, next_value = values.state_value, values.next_estimate
    if config.weight == "td_error":
        return estimators.td_error(reward, value, next_value, terminated, config.gamma)
    advantage, _ = estimators.gae(
        reward,
        value,
        next_value,
        terminated,
        trajectory.truncated,
        config.gamma,
        config.gae_lambda,
    )
    return advantage


def critic_loss(
    params: PyTree,
    config: Config,
    env: Env,
    trajectory: types.Transition,
    target: Array,
) -> Array:
    """The squared error of the critic."""
    x = estimate(config, env, params, trajectory)
    loss = losses.squared_td if config.learns_q else losses.value_mse
    return loss(x, target).mean()


def actor_loss(
    params: PyTree,
    config: Config,
    env: Env,
    trajectory: types.Transition,
    weight: Array,
) -> tuple[Array, Metrics]:
    """The policy gradient, weighted by what the critic says, and the entropy bonus."""
    pi, _ = networks.apply_actor(config, env, params, trajectory.obs)
    log_prob = pi.log_prob(acting.sample_of(trajectory))
    loss = losses.policy_gradient(log_prob, weight).mean()
    entropy = pi.entropy().mean()
    metrics = {"loss/policy": mean(loss), "policy/entropy": mean(entropy)}
    return loss - config.ent_coef * entropy, metrics


def update_critic(
    config: Config,
    env: Env,
    agent: types.Agent,
    trajectory: types.Transition,
    learning_rate: types.Scalar,
) -> tuple[types.Agent, Metrics]:
    """`num_critic_updates` gradient steps, each with targets of the critic as it is."""
    optimizer = optim.adam(config.max_grad_norm)
    params, unflatten = optim.flat(agent.params["critic"])

    def gradient_step(carry: tuple, _: None) -> tuple[tuple, tuple]:
        params, opt_state = carry
        now = values(
            config, env, agent.params | {"critic": unflatten(params)}, trajectory
        )
        target = critic_target(config, trajectory, now)
        loss, grads = jax.value_and_grad(
            lambda x: critic_loss(unflatten(x), config, env, trajectory, target)
        )(params)
        grads = parallel.mean(grads)
        explained = losses.explained_variance(now.estimate, target)
        carry = optim.apply(optimizer, params, opt_state, grads, learning_rate)
        return carry, (loss, explained, optim.global_norm(grads))

    carry = (params, agent.opt_state["critic"])
    (params, opt_state), (loss, explained, norm) = jax.lax.scan(
        gradient_step, carry, length=config.num_critic_updates
    )
    metrics = {
        "loss/critic": mean(loss),
        "value/explained_variance": mean(explained),
        "optim/critic_grad_norm": mean(norm),
    }
    agent = agent.replace(
        params=agent.params | {"critic": unflatten(params)},
        opt_state=agent.opt_state | {"critic": opt_state},
    )
    return agent, metrics


def update_actor(
    config: Config,
    env: Env,
    agent: types.Agent,
    trajectory: types.Transition,
    learning_rate: types.Scalar,
) -> tuple[types.Agent, Metrics]:
    """One gradient step, weighted by what the critic says now."""
    now = values(config, env, agent.params, trajectory)
    weight = score_weight(config, trajectory, now)
    if config.normalize_advantage:
        weight = losses.normalize_advantage(weight, terms=now.estimate)
    params, opt_state, metrics, norm = optim.gradient_step(
        lambda params: actor_loss(params, config, env, trajectory, weight),
        agent.params["actor"],
        agent.opt_state["actor"],
        optim.adam(config.max_grad_norm),
        learning_rate,
    )
    metrics["optim/actor_grad_norm"] = mean(norm)
    agent = agent.replace(
        params=agent.params | {"actor": params},
        opt_state=agent.opt_state | {"actor": opt_state},
    )
    return agent, metrics


def train_step(
    config: Config, env: Env, state: types.State
) -> tuple[types.State, Metrics]:
    """One rollout of `num_steps`, the critic's updates and the actor's."""
    agent, world = state.agent, state.world
    actor_rate = optim.annealed(config, config.learning_rate, world.env_steps)
    critic_rate = optim.annealed(config, config.critic_learning_rate, world.env_steps)
    world, trajectory, metrics = acts.unroll(
        config, env, agent, world, config.num_steps
    )
    agent, of_critic = update_critic(config, env, agent, trajectory, critic_rate)
    agent, of_actor = update_actor(config, env, agent, trajectory, actor_rate)
    metrics |= of_critic | of_actor
    metrics["optim/learning_rate"] = mean(actor_rate)
    metrics["optim/critic_learning_rate"] = mean(critic_rate)
    return types.State(agent, world), metrics


ACTOR_CRITIC = types.Algorithm(
    name="actor_critic",
    Config=Config,
    init=init,
    train_step=train_step,
    act=acts.act,
    explain=acts.explain,
    plan=plan,
    validate=validate,
)
