"""Advantage actor-critic (Mnih et al., 2016, arXiv:1602.01783), synchronous: A2C.

    actor:   grad J = E[ grad log pi(a_t | s_t) * A_t ] + ent_coef * grad H
    critic:  min E[ 1/2 (V(s_t) - G_t)^2 ]

A_t is the generalised advantage: with `gae_lambda` = 1 the n-step advantage of the paper,
where n runs from t to the end of the rollout; with 0 the one-step TD error. Discrete (also
masked) and continuous actions; feed-forward and recurrent policies.

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

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
from flax.struct import PyTreeNode

from jaxrl import acting, estimators, losses, networks, optim, types
from jaxrl.algorithms import checks, on_policy
from jaxrl.networks import Activation, Network
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


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
    """A name ("auto", "cnn", "gru(size=64)", ...), a flax module, or module:factory."""
    squash: bool = static(False)
    """Whether continuous actions go through tanh; otherwise they are clipped."""


def validate(config: Config, env: Env) -> None:
    checks.policy_gradient("a2c", config, env, recurrent=True)


OPTIMIZERS: dict[str, Any] = {"adam": optim.adam, "rmsprop": optim.rmsprop}


def init(config: Config, env: Env, key: Array) -> types.State:
    pair = (networks.actor(config, env), networks.critic(config, env))
    optimizer = OPTIMIZERS[config.optimizer](config.max_grad_norm)
    return on_policy.init_pair(config, env, key, *pair, optimizer)


def policy(
    config: Config, env: Env, agent: types.Agent, obs: PyTree, memory: Memory
) -> tuple[Any, Memory, dict[str, Any]]:
    """One step: the action distribution, the memory, V(s)."""
    start, params, at = memory or on_policy.NO_MEMORY, agent.params, (config, env)
    pi, actor = networks.apply_actor(*at, params["actor"], obs, start["actor"])
    value, critic = networks.apply_critic(*at, params["critic"], obs, start["critic"])
    after = {"actor": actor, "critic": critic} if memory else ()
    return pi, after, {"value": value, "memory": critic}


acts = acting.stochastic(policy)


def values(
    config: Config, env: Env, params: PyTree, trajectory: types.Transition
) -> tuple[Array, Array]:
    """V(s_t) and V(s_{t+1}) `[T, N]` of a rollout, from the critic's parameters."""

    def value_of(obs: PyTree, memory: Memory = ()) -> Array:
        return networks.apply_critic(config, env, params, obs, memory)[0]

    memory = trajectory.extras["memory"]
    if jax.tree.leaves(memory):
        value = trajectory.extras["value"]
    else:
        # Not run in the rollout: few products of many rows are faster than T of N rows.
        value = acting.in_blocks(value_of, trajectory.obs)
    at = (trajectory.next_obs, memory, trajectory.truncated)
    return value, estimators.successor_values(value_of, value, *at)


class Batch(NamedTuple):
    """A rollout `[T, N, ...]`, and what one of the networks learns from it."""

    rollout: types.Transition
    start: Memory  # of the network, at the first row
    goal: Array  # the actor's advantage, or the critic's target


def actor_loss(
    params: PyTree, config: Config, env: Env, batch: Batch
) -> tuple[Array, Metrics]:
    at = (batch.rollout.obs, batch.start, batch.rollout.done)
    pi, _ = networks.apply_actor(config, env, params, *at)
    log_prob = pi.log_prob(acting.sample_of(batch.rollout))
    loss = losses.policy_gradient(log_prob, batch.goal).mean()
    entropy = pi.entropy().mean()
    metrics = {"loss/policy": mean(loss), "policy/entropy": mean(entropy)}
    return loss - config.ent_coef * entropy, metrics


def critic_loss(
    params: PyTree, config: Config, env: Env, batch: Batch
) -> tuple[Array, Metrics]:
    at = (batch.rollout.obs, batch.start, batch.rollout.done)
    value, _ = networks.apply_critic(config, env, params, *at)
    loss = losses.value_mse(value, batch.goal).mean()
    return loss, {"loss/value": mean(loss)}


def train_step(
    config: Config, env: Env, state: types.State
) -> tuple[types.State, Metrics]:
    """One rollout of `num_steps` and one update."""
    agent, world = state.agent, state.world
    start = world.memory or on_policy.NO_MEMORY
    rates = {
        "actor": optim.annealed(config, config.learning_rate, world.env_steps),
        "critic": optim.annealed(config, config.critic_learning_rate, world.env_steps),
    }
    world, trajectory, metrics = acts.unroll(
        config, env, agent, world, config.num_steps
    )
    value, next_value = values(config, env, agent.params["critic"], trajectory)
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
        advantage = losses.normalize_advantage(advantage, terms=target)
    params, opt_state = dict(agent.params), dict(agent.opt_state)
    learned = (("actor", actor_loss, advantage), ("critic", critic_loss, target))
    for name, loss, goal in learned:
        batch = Batch(trajectory, start[name], goal)
        params[name], opt_state[name], reported, norm = optim.gradient_step(
            partial(loss, config=config, env=env, batch=batch),
            params[name],
            opt_state[name],
            OPTIMIZERS[config.optimizer](config.max_grad_norm),
            rates[name],
        )
        metrics |= reported | {f"optim/{name}_grad_norm": mean(norm)}
    metrics["value/explained_variance"] = mean(losses.explained_variance(value, target))
    metrics["optim/learning_rate"] = mean(rates["actor"])
    metrics["optim/critic_learning_rate"] = mean(rates["critic"])
    return types.State(types.Agent(params, opt_state), world), metrics


A2C = types.Algorithm(
    name="a2c",
    Config=Config,
    init=init,
    train_step=train_step,
    act=acts.act,
    explain=acts.explain,
    plan=on_policy.plan_one_step,
    validate=validate,
    init_memory=on_policy.init_pair_memory,
)
