"""Advantage actor-critic (Mnih et al., 2016, arXiv:1602.01783), synchronous: A2C.

    actor:   grad J = E[ grad log pi(a_t | s_t) * A_t ] + ent_coef * grad H
    critic:  min E[ 1/2 (V(s_t) - G_t)^2 ]

A_t is the generalised advantage: with `gae_lambda` = 1 the n-step advantage of the paper,
where n runs from t to the end of the rollout; with 0 the one-step TD error. Discrete (also
masked) and continuous actions; MLP and CNN policies.

The details that matter, in the order of the code:

1. One gradient step for each rollout: the data are on-policy, so there is no ratio, no
   clip and no second pass. Rollouts are therefore short (`num_steps`), and the batch comes
   from many environments: that is all that is left of the paper's asynchronous workers.
2. Actor and critic are two networks with two optimisers and two learning rates, so their
   losses need no weight against each other, and each gradient is clipped by its own norm.
   The critic may move faster than the actor, never the other way round.
3. The value of a truncated episode's last state is bootstrapped from the true successor
   observation; that of a terminated one is zero.
4. Both networks learn from the same rollout, from the values before the step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode

from jaxrl import estimators, losses, optim
from jaxrl.algorithms import checks
from jaxrl.core import parallel
from jaxrl.networks.actor_critic import (
    Actor,
    Critic,
    action_noise,
    explanation,
    in_blocks,
    policy_distribution,
)
from jaxrl.networks.features import (
    Network,
    action_mask,
    feature_shape,
    network_input,
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
    static,
    traced,
)


class Config(PyTreeNode):
    """Hyper-parameters of A2C. The defaults are those of the CartPole benchmark row."""

    total_steps: float = traced(500_000.0, low=1, high=1e12)
    """Environment steps of the whole run; the learning-rate schedule ends there."""
    num_envs: int = static(8, low=1)
    """Environments stepped in parallel."""
    num_steps: int = static(16, low=1)
    """Steps of each environment between updates."""
    optimizer: Literal["adam", "rmsprop"] = static("adam")
    """What turns gradients into steps, for actor and critic alike."""
    learning_rate: float = traced(1e-3, low=0)
    """The actor's step size."""
    critic_learning_rate: float = traced(3e-3, low=0)
    """The critic's step size."""
    anneal_lr: bool = static(True)
    """Whether both learning rates fall linearly to zero over `total_steps`."""
    gamma: float = traced(0.99, low=0, high=1)
    """Discount factor per environment step."""
    gae_lambda: float = traced(1.0, low=0, high=1)
    """Decay of the generalised advantage estimator; 1 gives n-step advantages."""
    normalize_advantage: bool = static(False)
    """Whether the advantages of a batch are standardised."""
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


class Agent(PyTreeNode):
    """All that the policy artefact holds: dicts of "actor" and "critic"."""

    params: dict[str, PyTree]
    opt_state: dict[str, PyTree]


class State(PyTreeNode):
    agent: Agent
    world: World


def validate(config: Config, env: Env) -> None:
    checks.check_policy_actions("a2c", env)
    checks.check_squash(config, env)
    checks.check_action_mask(env)
    checks.check_torso(config, env)


def plan(config: Config, env: Env) -> Plan:
    del env
    env_steps = config.num_envs * config.num_steps
    # One gradient step of each network, on the same data: one update.
    return Plan(env_steps, updates=1, gradient_rows=env_steps, shares=config.num_envs)


def networks(config: Config, env: Env) -> tuple[Actor, Critic]:
    image = uses_image(env.observation_space, config.network)
    sizes, activation = config.hidden_sizes, config.activation
    actor = Actor(env.action_space, sizes, activation, image)
    return actor, Critic(sizes, activation, image)


def optimizer(config: Config) -> optax.GradientTransformation:
    if config.optimizer == "rmsprop":
        return optim.rmsprop(config.max_grad_norm)
    return optim.adam(config.max_grad_norm)


def init(config: Config, env: Env, key: Array) -> State:
    key_actor, key_critic, key_world = jax.random.split(key, 3)
    actor, critic = networks(config, env)
    x = jnp.zeros((1, *feature_shape(env.observation_space, actor.image)))
    params = {"actor": actor.init(key_actor, x), "critic": critic.init(key_critic, x)}
    opt_state = {
        name: optimizer(config).init(optim.flat(part)[0])
        for name, part in params.items()
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


def value_of(config: Config, env: Env, params: PyTree, obs: PyTree) -> Array:
    """V(s), from the critic's parameters."""
    _, critic = networks(config, env)
    x = network_input(env.observation_space, obs, critic.image, None)
    value: Any = critic.apply(params, x)
    return value


def choose(
    config: Config, env: Env, agent: Agent, obs: PyTree, memory: Memory, noise: Any
) -> tuple[Array, Memory, dict[str, Any]]:
    """One step of the policy: a sample made from `action_noise`, or the mode for None."""
    pi = policy_of(config, env, agent.params["actor"], obs)
    value = value_of(config, env, agent.params["critic"], obs)
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


def values(
    config: Config, env: Env, agent: Agent, trajectory: Transition
) -> tuple[Array, Array]:
    """V(s_t) and V(s_{t+1}) `[T, N]` of a rollout."""
    critic = partial(value_of, config, env, agent.params["critic"])
    # Not run in the rollout: few products of many rows are faster than T of N rows.
    value = in_blocks(critic, trajectory.obs)
    next_value = estimators.successor_values(
        lambda obs, _: critic(obs),
        value,
        trajectory.next_obs,
        (),
        trajectory.truncated,
    )
    return value, next_value


def actor_loss(
    params: PyTree, config: Config, env: Env, trajectory: Transition, advantage: Array
) -> tuple[Array, Metrics]:
    pi = policy_of(config, env, params, trajectory.obs)
    log_prob = pi.log_prob(trajectory.action)
    loss = losses.policy_gradient(log_prob, advantage).mean()
    entropy = pi.entropy().mean()
    metrics = {"loss/policy": mean(loss), "policy/entropy": mean(entropy)}
    return loss - config.ent_coef * entropy, metrics


def critic_loss(
    params: PyTree, config: Config, env: Env, trajectory: Transition, target: Array
) -> tuple[Array, Metrics]:
    value = value_of(config, env, params, trajectory.obs)
    loss = losses.value_mse(value, target).mean()
    return loss, {"loss/value": mean(loss)}


def gradient_step(
    config: Config,
    agent: Agent,
    name: str,
    loss: Callable[[PyTree], tuple[Array, Metrics]],
    learning_rate: Scalar,
) -> tuple[Agent, Metrics]:
    """One step of the "actor" or the "critic" down its loss."""
    params, unflatten = optim.flat(agent.params[name])
    grads, metrics = jax.grad(lambda x: loss(unflatten(x)), has_aux=True)(params)
    grads = parallel.mean(grads)
    params, opt_state = optim.apply(
        optimizer(config), params, agent.opt_state[name], grads, learning_rate
    )
    metrics[f"optim/{name}_grad_norm"] = mean(optim.global_norm(grads))
    agent = agent.replace(
        params=agent.params | {name: unflatten(params)},
        opt_state=agent.opt_state | {name: opt_state},
    )
    return agent, metrics


def train_step(config: Config, env: Env, state: State) -> tuple[State, Metrics]:
    """One rollout of `num_steps` and one update."""
    agent, world = state.agent, state.world
    actor_rate: Scalar = config.learning_rate
    critic_rate: Scalar = config.critic_learning_rate
    if config.anneal_lr:
        progress = optim.progress(world.env_steps, config.total_steps)
        actor_rate = optim.linear_schedule(actor_rate, 0.0, progress)
        critic_rate = optim.linear_schedule(critic_rate, 0.0, progress)
    world, trajectory, stats = unroll(
        env,
        partial(choose, config, env, agent),
        world,
        config.num_steps,
        partial(action_noise, env.action_space),
    )
    value, next_value = values(config, env, agent, trajectory)
    advantage, target = estimators.gae(
        trajectory.reward,
        value,
        next_value,
        trajectory.terminated,
        trajectory.truncated,
        config.gamma,
        config.gae_lambda,
    )
    if config.normalize_advantage:
        advantage = losses.normalize_advantage(advantage)
    agent, of_actor = gradient_step(
        config,
        agent,
        "actor",
        lambda params: actor_loss(params, config, env, trajectory, advantage),
        actor_rate,
    )
    agent, of_critic = gradient_step(
        config,
        agent,
        "critic",
        lambda params: critic_loss(params, config, env, trajectory, target),
        critic_rate,
    )
    metrics = of_actor | of_critic | stats
    metrics["value/explained_variance"] = mean(losses.explained_variance(value, target))
    metrics["optim/learning_rate"] = mean(actor_rate)
    metrics["optim/critic_learning_rate"] = mean(critic_rate)
    return State(agent, world), metrics


A2C = Algorithm(
    name="a2c",
    Config=Config,
    init=init,
    train_step=train_step,
    act=act,
    explain=explain,
    plan=plan,
    validate=validate,
)
