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

from functools import partial
from typing import Literal

import jax
from flax.struct import PyTreeNode

from jaxrl import acting, estimators, exploration, losses, networks, optim, types
from jaxrl.algorithms import checks, off_policy, on_policy
from jaxrl.algorithms.off_policy import State
from jaxrl.networks import Activation, Network
from jaxrl.replay.hindsight import Hindsight
from jaxrl.replay.transitions import Batch
from jaxrl.types import Array, Env, Metrics, PyTree, mean, static, traced


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
    n_step: int = static(1, low=1, high=1_000)
    """Rewards in a target; fewer where an episode ends."""
    hindsight: Hindsight = static("none")
    """Goals in place of those wanted: the episode's last, or any reached later."""
    hindsight_fraction: float = traced(0.8, low=0, high=1)
    """How many of a batch have such a goal."""
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
    """A name ("auto", "mlp", "cnn", "resnet", ...), a flax module, or module:factory."""


class Agent(types.Agent, kw_only=True):
    """All that the policy artefact holds."""

    target_params: PyTree


def validate(config: Config, env: Env) -> None:
    checks.q_learning("dqn", config, env)
    off_policy.check(config, env)


acts = acting.epsilon_greedy(networks.apply_q)


def init(config: Config, env: Env, key: Array) -> State:
    """Networks, and a memory filled with `learning_starts` random steps."""
    key_params, key_world = jax.random.split(key)
    new = on_policy.new_agent(
        networks.q_network(config, env), key_params, optim.adam(config.max_grad_norm)
    )
    agent = Agent(new.params, new.opt_state, target_params=new.params)
    explore = partial(acts.unroll, epsilon=1.0)
    return off_policy.init(config, env, agent, key_world, explore)


REPORTED = ("loss/td", "value/q")
"""What `loss` reports of every transition, in this order."""


def loss(
    params: PyTree, config: Config, env: Env, target_params: PyTree, batch: Batch
) -> tuple[Array, tuple[Array, ...]]:
    """The loss, and what is `REPORTED` of every transition of the batch."""
    mask = networks.action_mask(env.observation_space, batch.next_obs)
    next_q = networks.apply_q(config, env, target_params, batch.next_obs)
    best = acting.legal(next_q, mask).max(-1)
    target = losses.q_target(batch.reward, batch.terminated, best, batch.discount)
    q = networks.apply_q(config, env, params, batch.obs)
    q_taken = estimators.action_value(q, batch.action)
    td = losses.huber_td if config.loss == "huber" else losses.squared_td
    td_loss = td(q_taken, target)
    return td_loss.mean(), (td_loss, q_taken)


def update(
    config: Config,
    env: Env,
    agent: Agent,
    batches: types.Batches,
    learning_rate: types.Scalar,
) -> tuple[Agent, Metrics]:
    """A gradient step on each batch from the memory."""
    params, opt_state, metrics = optim.fit(
        lambda params, batch: loss(params, config, env, agent.target_params, batch),
        agent.params,
        agent.opt_state,
        batches,
        optim.adam(config.max_grad_norm),
        learning_rate,
        REPORTED,
    )
    return agent.replace(params=params, opt_state=opt_state), metrics


def train_step(config: Config, env: Env, state: State) -> tuple[State, Metrics]:
    """Steps of every environment, and the updates that are due."""
    env_steps = off_policy.plan(config, env).env_steps
    epsilon = exploration.scheduled_epsilon(config, state.world.env_steps)
    learning_rate = optim.annealed(config, config.learning_rate, state.world.env_steps)
    key, key_sample = jax.random.split(state.world.key)
    explore = partial(acts.unroll, epsilon=epsilon)
    world, _, replay, stats = off_policy.collect(config, env, state, key, explore)
    batches = off_policy.batches(config, env, replay, key_sample)
    agent, metrics = update(config, env, state.agent, batches, learning_rate)
    agent, clock = off_policy.renew_target(config, agent, state.target_clock, env_steps)
    metrics |= stats
    metrics["explore/epsilon"] = mean(epsilon)
    metrics["optim/learning_rate"] = mean(learning_rate)
    return State(agent, world, replay=replay, target_clock=clock), metrics


DQN = types.Algorithm(
    name="dqn",
    Config=Config,
    init=init,
    train_step=train_step,
    act=acts.act,
    explain=acts.explain,
    plan=off_policy.plan,
    validate=validate,
)
