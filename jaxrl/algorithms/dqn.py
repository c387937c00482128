"""Deep Q-Network (Mnih et al., 2015, Nature 518), with experience replay and a target
network, and the ingredients of Rainbow (Hessel et al., 2018, arXiv:1710.02298) as options.

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
6. With `priority_exponent` (Schaul et al., 2016, arXiv:1511.05952) each gradient step draws
   its batch by the errors that the steps before it left, also within a train step.
7. Options, each off at first and each alone or with others: `double` (van Hasselt et al.,
   2016, arXiv:1509.06461), `dueling` (Wang et al., 2016, arXiv:1511.06581), `n_step`,
   `noisy_std` (Fortunato et al., 2018, arXiv:1706.10295), `munchausen` (Vieillard et al.,
   2020, arXiv:2007.14430), and `distribution`, whose heads are `algorithms.value_heads`.
8. Noise of the weights is drawn at each step for each environment where the agent acts,
   and for each batch where it learns: one for what learns, another for the target network,
   a third for the choice of a double target.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode

from jaxrl import acting, exploration, networks, optim, types
from jaxrl.algorithms import checks, off_policy, on_policy, value_heads
from jaxrl.algorithms.off_policy import State
from jaxrl.algorithms.value_heads import Distribution, Draw, Target
from jaxrl.networks import Activation, Network
from jaxrl.replay.hindsight import Hindsight
from jaxrl.replay.prioritised import Priorities
from jaxrl.replay.ring import Ring
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
    double: bool = static(False)
    """Whether the online network chooses the action whose value the target takes."""
    dueling: bool = static(False)
    """Whether the head adds a state's value and the actions' advantages."""
    head_sizes: tuple[int, ...] = static((), low=1)
    """Widths of hidden layers of the head, behind `network`; of each stream if dueling."""
    noisy_std: float | None = traced(None, above=0)
    """Initial noise on the weights of the head, 0.5 as published; none: no noise."""
    distribution: Distribution = static("none")
    """What is learned of an action's return: its mean, or a distribution."""
    num_atoms: int = static(51, low=2)
    """Returns to which a categorical distribution gives probabilities."""
    v_min: float = traced(-100.0)
    """The least of them."""
    v_max: float = traced(100.0)
    """The largest of them."""
    num_quantiles: int = static(50, low=1)
    """Quantiles that are learned; implicit ones at each step."""
    target_quantiles: int = static(8, low=1)
    """Implicit quantiles in a target."""
    acting_quantiles: int = static(32, low=1)
    """Implicit quantiles by which an action is chosen."""
    kappa: float = traced(1.0, above=0)
    """Error at which the loss of quantiles becomes linear."""
    cvar: float | None = traced(None, above=0, high=1)
    """Actions are chosen by the mean of this fraction of the returns, the worst; none: of
    all."""
    munchausen: float | None = traced(None, low=0, high=1)
    """Weight of the log-policy that is added to the reward, 0.9 as published; none: a
    maximum in the target and no such reward."""
    munchausen_temperature: float = traced(0.03, above=0)
    """Temperature of Munchausen's policy."""
    munchausen_clip: float = traced(-1.0, high=0)
    """Lower bound of that reward before it is weighted."""
    priority_exponent: float | None = traced(None, low=0, high=1)
    """How strongly replay prefers what was surprising, 0.5 in Rainbow; none: replay is
    uniform."""
    importance_exponent: float = traced(0.4, low=0, high=1)
    """How far weights undo that preference at first; wholly at the end of the run."""
    adam_eps: float | None = traced(None, above=0)
    """Constant in the denominator of Adam's step; none: 1e-5."""
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


def validate(name: str, config: Config, env: Env) -> None:
    checks.q_learning(name, config, env)
    value_heads.check(config)
    off_policy.check(config, env)


acts = acting.epsilon_greedy(value_heads.q_values, is_noisy=value_heads.is_noisy)


def init(config: Config, env: Env, key: Array) -> State:
    """Networks, and a memory filled with `learning_starts` random steps."""
    key_params, key_world = jax.random.split(key)
    net = value_heads.network(config, env)
    new = on_policy.new_agent(net, key_params, optimizer(config))
    agent = Agent(new.params, new.opt_state, target_params=new.params)
    explore = partial(acts.unroll, epsilon=1.0)
    return off_policy.init(config, env, agent, key_world, explore)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam behind a clip of the gradient."""
    eps = 1e-5 if config.adam_eps is None else config.adam_eps
    return optim.adam(config.max_grad_norm, eps)


def td_target(
    params: PyTree,
    config: Config,
    env: Env,
    target_params: PyTree,
    batch: Batch,
    of_value: Draw,
    of_choice: Draw,
) -> Target:
    """What Q(s, a), or its distribution, is to become."""
    mask = networks.action_mask(env.observation_space, batch.next_obs)
    out = value_heads.outputs(config, env, target_params, batch.next_obs, of_value)
    if config.munchausen is not None:
        return value_heads.munchausen_target(
            config, env, target_params, batch, out, of_value
        )
    if config.double or config.distribution == "implicit_quantile":
        chooser, draw = target_params, of_value
        if config.double:
            chooser, draw = params, of_choice
        at = chooser, batch.next_obs, draw.noise
        q = value_heads.q_values(config, env, *at, each_row=False)
    elif config.distribution == "none":
        best = acting.legal(out, mask).max(-1)
        return value_heads.target(config, batch, best)
    else:
        q = value_heads.preference(config, out)
    best = jnp.argmax(acting.legal(q, mask), -1)
    out = value_heads.probabilities(config, out)
    return value_heads.target(config, batch, value_heads.taken(config, out, best))


def loss(
    params: PyTree,
    config: Config,
    env: Env,
    target_params: PyTree,
    batch: Batch,
    key: Array | None = None,
    weight: Array | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """The loss, and what is `value_heads.reported` of every transition of the batch.

    `key`: where a pass is random; `weight`: `[B]`, where replay is prioritised.
    """
    drawn, *draws = value_heads.draw(config, key, len(batch.reward))
    target = td_target(params, config, env, target_params, batch, *draws)
    out = value_heads.outputs(config, env, params, batch.obs, drawn)
    taken = value_heads.taken(config, out, batch.action)
    td_loss = value_heads.error(config, taken, target, drawn.levels)
    weighted = td_loss if weight is None else weight * td_loss
    return weighted.mean(), value_heads.report(config, td_loss, taken, target)


def update(
    config: Config,
    env: Env,
    agent: Agent,
    batches: types.Batches,
    learning_rate: types.Scalar,
    key: Array | None = None,
) -> tuple[Agent, Metrics]:
    """A gradient step on each batch from the memory; `key` where a pass is random."""
    params, opt_state, metrics = optim.fit(
        lambda params, drawn: loss(params, config, env, agent.target_params, *drawn),
        agent.params,
        agent.opt_state,
        off_policy.with_keys(batches, key),
        optimizer(config),
        learning_rate,
        value_heads.reported(config),
    )
    return agent.replace(params=params, opt_state=opt_state), metrics


def update_by_priority(
    config: Config,
    env: Env,
    agent: Agent,
    memory: tuple[Ring, Priorities],
    learning_rate: types.Scalar,
    importance: types.Scalar,
    key: Array,
) -> tuple[Agent, Priorities, Metrics]:
    """The same on batches that are drawn by the errors of the steps before."""
    params, opt_state, priorities, metrics = off_policy.fit_by_priority(
        lambda params, *drawn: loss(params, config, env, agent.target_params, *drawn),
        partial(value_heads.surprise, config),
        config,
        env,
        agent,
        memory,
        optimizer(config),
        learning_rate,
        importance,
        value_heads.reported(config),
        key,
    )
    return agent.replace(params=params, opt_state=opt_state), priorities, metrics


def train_step(config: Config, env: Env, state: State) -> tuple[State, Metrics]:
    """Steps of every environment, and the updates that are due."""
    env_steps = off_policy.plan(config, env).env_steps
    epsilon = exploration.scheduled_epsilon(config, state.world.env_steps)
    learning_rate = optim.annealed(config, config.learning_rate, state.world.env_steps)
    key, key_sample = jax.random.split(state.world.key)
    explore = partial(acts.unroll, epsilon=epsilon)
    world, _, replay, stats = off_policy.collect(config, env, state, key, explore)
    priorities = off_policy.add_priorities(config, state)
    if priorities is None:
        key_loss = None
        if value_heads.is_random(config):
            key_sample, key_loss = jax.random.split(key_sample)
        batches = off_policy.batches(config, env, replay, key_sample)
        agent, metrics = update(
            config, env, state.agent, batches, learning_rate, key_loss
        )
    else:
        memory = replay, priorities
        beta = off_policy.importance(config, state.world.env_steps)
        agent, priorities, metrics = update_by_priority(
            config, env, state.agent, memory, learning_rate, beta, key_sample
        )
    agent, clock = off_policy.renew_target(config, agent, state.target_clock, env_steps)
    metrics |= stats
    metrics["explore/epsilon"] = mean(epsilon)
    metrics["optim/learning_rate"] = mean(learning_rate)
    state = State(
        agent, world, replay=replay, target_clock=clock, priorities=priorities
    )
    return state, metrics


DQN = types.Algorithm(
    name="dqn",
    Config=Config,
    init=init,
    train_step=train_step,
    act=acts.act,
    explain=acts.explain,
    plan=off_policy.plan,
    validate=partial(validate, "dqn"),
)
