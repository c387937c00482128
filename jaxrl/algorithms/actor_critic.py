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

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import estimators, losses, optim
from jaxrl.algorithms import checks
from jaxrl.core import parallel
from jaxrl.errors import require
from jaxrl.networks.actor_critic import (
    Actor,
    Critic,
    action_noise,
    explanation,
    policy_distribution,
)
from jaxrl.networks.features import (
    Network,
    action_mask,
    feature_shape,
    network_input,
    uses_image,
)
from jaxrl.networks.q_network import QNetwork
from jaxrl.networks.torso import Activation
from jaxrl.rollout import init_world, unroll
from jaxrl.spaces import Discrete
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
    static,
    traced,
)


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
    """Torso: "auto" is a CNN for images and an MLP otherwise; or "mlp", or "cnn"."""
    squash: bool = static(False)
    """Whether continuous actions go through tanh; otherwise they are clipped."""

    @property
    def learns_q(self) -> bool:
        """Whether the critic has a value for each action."""
        return self.weight in ("q", "q_minus_v")


class Agent(PyTreeNode):
    """All that the policy artefact holds: dicts of "actor" and "critic"."""

    params: dict[str, PyTree]
    opt_state: dict[str, PyTree]


class State(PyTreeNode):
    agent: Agent
    world: World


class Values(NamedTuple):
    """What a critic says of a rollout: `[T, N]`."""

    estimate: Array  # Q(s_t, a_t), or V(s_t): what is learned
    next_estimate: Array  # the same of the true successor: what targets bootstrap from
    state_value: Array  # V(s_t), learned or implied by Q


def validate(config: Config, env: Env) -> None:
    checks.check_policy_actions("actor_critic", env)
    require(
        not config.learns_q or isinstance(env.action_space, Discrete),
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
    checks.check_squash(config, env)
    checks.check_action_mask(env)
    checks.check_torso(config, env)


def plan(config: Config, env: Env) -> Plan:
    del env
    env_steps = config.num_envs * config.num_steps
    return Plan(
        env_steps,
        updates=1 + config.num_critic_updates,
        gradient_rows=env_steps,
        shares=config.num_envs,
    )


def networks(config: Config, env: Env) -> tuple[Actor, Critic | QNetwork]:
    image = uses_image(env.observation_space, config.network)
    sizes, activation = config.hidden_sizes, config.activation
    actor = Actor(env.action_space, sizes, activation, image)
    if config.learns_q:
        return actor, QNetwork(env.action_space.n, sizes, activation, image)
    return actor, Critic(sizes, activation, image)


def init(config: Config, env: Env, key: Array) -> State:
    key_actor, key_critic, key_world = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    x = jnp.zeros((1, *feature_shape(env.observation_space, actor.image)))
    params = {"actor": actor.init(key_actor, x), "critic": critic.init(key_critic, x)}
    optimizer = optim.adam(config.max_grad_norm)
    opt_state = {
        name: optimizer.init(optim.flat(part)[0]) for name, part in params.items()
    }
    agent = Agent(params, opt_state)
    return State(agent, init_world(env, key_world, config.num_envs))


def policy_of(config: Config, env: Env, params: PyTree, obs: PyTree) -> Any:
    """pi(.|s), from the actor's parameters, for observations with any batch axes."""
    actor, _ = networks(config, env)
    x = network_input(env.observation_space, obs, actor.image, None)
    mask = action_mask(env.observation_space, obs)
    policy = actor.apply(params, x)
    return policy_distribution(env.action_space, policy, mask, config.squash)


def critic_of(config: Config, env: Env, params: PyTree, obs: PyTree) -> Array:
    """Q(s, .) `[*batch, A]`, or V(s) `[*batch]`, from the critic's parameters."""
    _, critic = networks(config, env)
    x = network_input(env.observation_space, obs, critic.image, None)
    output: Any = critic.apply(params, x)
    return output


def choose(
    config: Config, env: Env, agent: Agent, obs: PyTree, memory: Memory, noise: Any
) -> tuple[Array, Memory, dict[str, Any]]:
    """One step of the policy: a sample made from `action_noise`, or the mode for None."""
    pi = policy_of(config, env, agent.params["actor"], obs)
    value = critic_of(config, env, agent.params["critic"], obs)
    if config.learns_q:
        value = estimators.expected_value(value, pi.probs)
    action = pi.mode() if noise is None else pi.from_noise(noise)
    return action, memory, {"value": value}


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
    del memory
    pi = policy_of(config, env, agent.params["actor"], obs)
    return explanation(env.action_space, pi)


def estimate(config: Config, env: Env, params: PyTree, trajectory: Transition) -> Array:
    """x_t `[T, N]`: Q(s_t, a_t) or V(s_t), of the critic's parameters."""
    output = critic_of(config, env, params, trajectory.obs)
    if not config.learns_q:
        return output
    return estimators.action_value(output, trajectory.action)


def values(
    config: Config, env: Env, params: dict[str, PyTree], trajectory: Transition
) -> Values:
    """What the critic says of a rollout and of where its rows lead."""

    def successor(value_of: Any, row: Array) -> Array:
        return estimators.successor_values(
            lambda obs, _: value_of(obs),
            row,
            trajectory.next_obs,
            (),
            trajectory.truncated,
        )

    def action_values(obs: PyTree) -> Array:
        return critic_of(config, env, params["critic"], obs)

    def best(obs: PyTree) -> Array:
        mask = action_mask(env.observation_space, obs)
        q = action_values(obs)
        return (q if mask is None else jnp.where(mask, q, -jnp.inf)).max(-1)

    def expected(obs: PyTree) -> Array:
        pi = policy_of(config, env, params["actor"], obs)
        return estimators.expected_value(action_values(obs), pi.probs)

    now = estimate(config, env, params["critic"], trajectory)
    if not config.learns_q:
        return Values(now, successor(action_values, now), now)
    if config.critic == "sarsa":
        following = successor(expected, now)
    else:
        following = successor(best, best(trajectory.obs))
    return Values(now, following, expected(trajectory.obs))


def critic_target(config: Config, trajectory: Transition, values: Values) -> Array:
    """y_t `[T, N]`: r + gamma x_{t+1}, or more steps of rewards by `critic_lambda`."""
    return estimators.lambda_returns(
        trajectory.reward,
        trajectory.terminated,
        trajectory.truncated,
        values.next_estimate,
        config.gamma,
        config.critic_lambda,
    )


def score_weight(config: Config, trajectory: Transition, values: Values) -> Array:
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
    params: PyTree, config: Config, env: Env, trajectory: Transition, target: Array
) -> Array:
    x = estimate(config, env, params, trajectory)
    loss = losses.squared_td if config.learns_q else losses.value_mse
    return loss(x, target).mean()


def actor_loss(
    params: PyTree, config: Config, env: Env, trajectory: Transition, weight: Array
) -> tuple[Array, Metrics]:
    pi = policy_of(config, env, params, trajectory.obs)
    log_prob = pi.log_prob(trajectory.action)
    loss = losses.policy_gradient(log_prob, weight).mean()
    entropy = pi.entropy().mean()
    metrics = {"loss/policy": mean(loss), "policy/entropy": mean(entropy)}
    return loss - config.ent_coef * entropy, metrics


def update_critic(
    config: Config,
    env: Env,
    agent: Agent,
    trajectory: Transition,
    learning_rate: Scalar,
) -> tuple[Agent, Metrics]:
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
    agent: Agent,
    trajectory: Transition,
    learning_rate: Scalar,
) -> tuple[Agent, Metrics]:
    """One gradient step, weighted by what the critic says now."""
    weight = score_weight(
        config, trajectory, values(config, env, agent.params, trajectory)
    )
    if config.normalize_advantage:
        weight = losses.normalize_advantage(weight)
    params, unflatten = optim.flat(agent.params["actor"])
    grads, metrics = jax.grad(
        lambda x: actor_loss(unflatten(x), config, env, trajectory, weight),
        has_aux=True,
    )(params)
    grads = parallel.mean(grads)
    optimizer = optim.adam(config.max_grad_norm)
    params, opt_state = optim.apply(
        optimizer, params, agent.opt_state["actor"], grads, learning_rate
    )
    metrics["optim/actor_grad_norm"] = mean(optim.global_norm(grads))
    agent = agent.replace(
        params=agent.params | {"actor": unflatten(params)},
        opt_state=agent.opt_state | {"actor": opt_state},
    )
    return agent, metrics


def train_step(config: Config, env: Env, state: State) -> tuple[State, Metrics]:
    """One rollout of `num_steps`, the critic's updates and the actor's."""
    agent, world = state.agent, state.world
    actor_rate: Scalar = config.learning_rate
    critic_rate: Scalar = config.critic_learning_rate
    if config.anneal_lr:
        progress = optim.progress(world.env_steps, config.total_steps)
        actor_rate = optim.linear_schedule(actor_rate, 0.0, progress)
        critic_rate = optim.linear_schedule(critic_rate, 0.0, progress)
    world, trajectory, metrics = unroll(
        env,
        partial(choose, config, env, agent),
        world,
        config.num_steps,
        partial(action_noise, env.action_space),
    )
    agent, of_critic = update_critic(config, env, agent, trajectory, critic_rate)
    agent, of_actor = update_actor(config, env, agent, trajectory, actor_rate)
    metrics |= of_critic | of_actor
    metrics["optim/learning_rate"] = mean(actor_rate)
    metrics["optim/critic_learning_rate"] = mean(critic_rate)
    return State(agent, world), metrics


ACTOR_CRITIC = Algorithm(
    name="actor_critic",
    Config=Config,
    init=init,
    train_step=train_step,
    act=act,
    explain=explain,
    plan=plan,
    validate=validate,
)
