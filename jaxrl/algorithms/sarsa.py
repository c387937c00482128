"""SARSA, Expected SARSA and Q-learning with a network (Rummery and Niranjan, 1994; Sutton
and Barto, 2018, chapters 6, 10 and 12), from rollouts of many environments.

    min E[ 1/2 (Q(s_t, a_t) - y_t)^2 ],    y_t = r_t + gamma Q'_{t+1}    where not terminal

What Q' is makes the three, and is all that tells them apart (`next_values`):

* `sarsa`: Q(s', a') of the action that was taken next; on-policy.
* `expected_sarsa`: sum_a pi(a|s') Q(s', a), of the policy that explores: the same mean,
  without the variance of a'.
* `q_learning`: max_a Q(s', a), of the policy that does not; off-policy.

With `td_lambda` above 0 the target is the lambda-return of these: SARSA(0) ... SARSA(1).
For `q_learning` that is Peng's Q(lambda), which does not cut the trace where the policy
explored. There is no replay memory and no target network: the data are those of the policy,
and many environments make them less alike. `pqn` is `q_learning` with the layers, the
optimiser and the numbers of Gallici et al. (2024), arXiv:2407.04811.

The details that matter, in the order of the code:

1. Targets are computed once for each rollout, with the parameters that made it.
2. Where an episode was truncated, and at the rollout's end, there is no next action: SARSA
   takes the mean over its policy there. The successor is the true one; a terminal one has
   value 0.
3. With a recurrent network whole sequences are shuffled, not single steps, and the memory
   at the start of the rollout is data.
4. The policy is epsilon-greedy, and epsilon falls linearly. Illegal actions (`action_mask`)
   are neither explored, nor chosen, nor maximised or averaged over.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
from flax.struct import PyTreeNode

from jaxrl import acting, estimators, exploration, losses, networks, optim, types
from jaxrl.algorithms import checks, on_policy
from jaxrl.core import minibatches
from jaxrl.networks import Activation, Network
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced

Successor = Literal["taken", "expected", "best"]
"""Whose value a target continues with: SARSA's, Expected SARSA's, Q-learning's."""


class Config(PyTreeNode):
    """Hyper-parameters of SARSA, Expected SARSA, Q-learning: those of the CartPole row."""

    total_steps: float = traced(200_000.0, low=1, high=1e12)
    """Environment steps of the whole run; the schedules end there."""
    num_envs: int = static(8, low=1)
    """Environments stepped in parallel."""
    num_steps: int = static(32, low=1)
    """Steps of each environment between updates."""
    num_epochs: int = static(4, low=1)
    """Passes over each rollout."""
    num_minibatches: int = static(4, low=1)
    """Gradient steps per pass."""
    learning_rate: float = traced(1e-3, low=0)
    """Adam's step size."""
    anneal_lr: bool = static(True)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    gamma: float = traced(0.99, low=0, high=1)
    """Discount factor per environment step."""
    td_lambda: float = traced(0.8, low=0, high=1)
    """Decay of the targets: 0 is one step, 1 the return to the rollout's end."""
    epsilon_start: float = traced(1.0, low=0, high=1)
    """Probability of a random action at the start."""
    epsilon_end: float = traced(0.02, low=0, high=1)
    """Probability of a random action at the end."""
    exploration_fraction: float = traced(0.3, above=0, high=1)
    """Fraction of `total_steps` over which epsilon falls linearly."""
    max_grad_norm: float = traced(10.0, above=0)
    """Gradients are scaled down to this global norm."""
    hidden_sizes: tuple[int, ...] = static((120, 84), low=1)
    """Widths of the fully connected layers."""
    activation: Activation = static("relu")
    """Nonlinearity of the hidden layers."""
    network: Network = static("auto")
    """A name ("auto", "cnn", "gru(size=64)", ...), a flax module, or module:factory."""


def validate(config: Any, env: Env, name: str = "sarsa") -> None:
    checks.q_learning(name, config, env, recurrent=True)
    on_policy.check_minibatches(config, env, normalized=False)


def init(
    config: Any, env: Env, key: Array, make_optimizer: Callable = optim.adam
) -> types.State:
    net = networks.recurrent_q_network(config, env)
    return on_policy.init(config, env, key, net, make_optimizer)


acts = acting.recurrent_epsilon_greedy(
    networks.apply_recurrent_q, value=exploration.epsilon_greedy_value
)


def next_values(
    config: Any,
    env: Env,
    params: PyTree,
    trajectory: types.Transition,
    epsilon: types.Scalar,
    successor: Successor,
) -> Array:
    """Q'_{t+1} `[T, N]` of a rollout: what makes SARSA, Expected SARSA or Q-learning."""
    # Of the best action it is the mean of the policy that does not explore.
    spread = 0.0 if successor == "best" else epsilon

    def mean_value(q: Array, obs: PyTree) -> Array:
        mask = networks.action_mask(env.observation_space, obs)
        return exploration.epsilon_greedy_value(q, spread, mask)

    def value_of(obs: PyTree, memory: Memory) -> Array:
        q, _ = networks.apply_recurrent_q(config, env, params, obs, memory)
        return mean_value(q, obs)

    q = trajectory.extras["q"]
    if successor == "taken":
        value = estimators.action_value(q, trajectory.action)
    else:
        value = mean_value(q, trajectory.obs)
    at = (trajectory.next_obs, trajectory.extras["memory"], trajectory.truncated)
    return estimators.successor_values(value_of, value, *at)


class Batch(NamedTuple):
    """What a rollout is turned into: `[T, N, ...]`."""

    obs: PyTree
    action: Array
    target: Array
    done: Array


REPORTED = ("loss/td", "value/q")
"""What `loss` reports of every step, in this order."""


def loss(
    params: PyTree, config: Any, env: Env, batch: Batch, memory: Memory
) -> tuple[Array, tuple[Array, ...]]:
    """The loss, and what is `REPORTED` of every step of the minibatch."""
    q, _ = networks.apply_recurrent_q(
        config, env, params, batch.obs, memory, batch.done
    )
    q = estimators.action_value(q, batch.action)
    td_loss = losses.squared_td(q, batch.target)
    return td_loss.mean(), (td_loss, q)


def update(
    config: Any,
    env: Env,
    agent: types.Agent,
    batch: Batch,
    memory: Memory,
    key: Array,
    learning_rate: types.Scalar,
    make_optimizer: Callable,
) -> tuple[types.Agent, Metrics]:
    """`num_epochs` passes of `num_minibatches` gradient steps over one batch.

    With a memory the minibatches are of whole sequences.
    """
    passes = (config.num_epochs, config.num_minibatches)
    is_recurrent = bool(jax.tree.leaves(memory))
    if is_recurrent:
        cut = minibatches.sequence_batches(key, batch, memory, *passes)
    else:
        cut = minibatches.batches(key, batch, *passes)

    def loss_of(params: PyTree, rows: Any) -> tuple[Array, tuple[Array, ...]]:
        rows, start = rows if is_recurrent else (rows, ())
        return loss(params, config, env, rows, start)

    params, opt_state, metrics = optim.fit(
        loss_of,
        agent.params,
        agent.opt_state,
        cut,
        make_optimizer(config.max_grad_norm),
        learning_rate,
        REPORTED,
    )
    return types.Agent(params, opt_state), metrics


def train_step(
    config: Any,
    env: Env,
    state: types.State,
    successor: Successor,
    make_optimizer: Callable = optim.adam,
) -> tuple[types.State, Metrics]:
    """One rollout of `num_steps`, and passes of gradient steps over it."""
    agent, world, memory = state.agent, state.world, state.world.memory
    epsilon = exploration.scheduled_epsilon(config, world.env_steps)
    learning_rate = optim.annealed(config, config.learning_rate, world.env_steps)
    key, key_update = jax.random.split(world.key)
    world, trajectory, stats = acts.unroll(
        config,
        env,
        agent,
        world.replace(key=key),
        config.num_steps,
        epsilon=epsilon,
    )
    target = estimators.lambda_returns(
        trajectory.reward,
        trajectory.terminated,
        trajectory.truncated,
        next_values(config, env, agent.params, trajectory, epsilon, successor),
        config.gamma,
        config.td_lambda,
    )
    batch = Batch(trajectory.obs, trajectory.action, target, trajectory.done)
    agent, metrics = update(
        config, env, agent, batch, memory, key_update, learning_rate, make_optimizer
    )
    metrics |= stats
    metrics["explore/epsilon"] = mean(epsilon)
    metrics["optim/learning_rate"] = mean(learning_rate)
    return types.State(agent, world), metrics


SARSA = types.Algorithm(
    name="sarsa",
    Config=Config,
    init=init,
    train_step=partial(train_step, successor="taken"),
    act=acts.act,
    explain=acts.explain,
    plan=on_policy.plan_minibatches,
    validate=validate,
    init_memory=networks.init_memory,
)

EXPECTED_SARSA = SARSA._replace(
    name="expected_sarsa",
    train_step=partial(train_step, successor="expected"),
    validate=partial(validate, name="expected_sarsa"),
)

Q_LEARNING = SARSA._replace(
    name="q_learning",
    train_step=partial(train_step, successor="best"),
    validate=partial(validate, name="q_learning"),
)
