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
and many environments make them less alike (as in Gallici et al., 2024, arXiv:2407.04811).

The details that matter, in the order of the code:

1. Targets are computed once for each rollout, with the parameters that made it.
2. Where an episode was truncated, and at the rollout's end, there is no next action: SARSA
   takes the mean over its policy there. The successor is the true one; a terminal one has
   value 0.
3. The policy is epsilon-greedy, and epsilon falls linearly. Illegal actions (`action_mask`)
   are neither explored, nor chosen, nor maximised or averaged over.
"""

from functools import partial
from typing import Literal

import jax
from flax.struct import PyTreeNode

from jaxrl import acting, estimators, exploration, losses, networks, optim, types
from jaxrl.algorithms import checks, on_policy
from jaxrl.core.minibatches import batches
from jaxrl.networks import Activation, Network
from jaxrl.types import Array, Env, Metrics, PyTree, mean, static, traced

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
    """A name ("auto", "mlp", "cnn", "resnet", ...), a flax module, or module:factory."""


def validate(config: Config, env: Env, name: str = "sarsa") -> None:
    checks.q_learning(name, config, env)
    on_policy.check_minibatches(config, env, normalized=False)


def init(config: Config, env: Env, key: Array) -> types.State:
    return on_policy.init(config, env, key, networks.q_network(config, env))


acts = acting.epsilon_greedy(networks.apply_q, value=exploration.epsilon_greedy_value)


def next_values(
    config: Config,
    env: Env,
    params: PyTree,
    trajectory: types.Transition,
    epsilon: types.Scalar,
    successor: Successor,
) -> Array:
    """Q'_{t+1} `[T, N]` of a rollout: what makes SARSA, Expected SARSA or Q-learning."""
    # Of the best action it is the mean of the policy that does not explore.
    spread = 0.0 if successor == "best" else epsilon

    def on_average(obs: PyTree, _: types.Memory = ()) -> Array:
        mask = networks.action_mask(env.observation_space, obs)
        q = networks.apply_q(config, env, params, obs)
        return exploration.epsilon_greedy_value(q, spread, mask)

    if successor == "taken":
        q = networks.apply_q(config, env, params, trajectory.obs)
        value = estimators.action_value(q, trajectory.action)
    else:
        value = on_average(trajectory.obs)
    return estimators.successor_values(
        on_average, value, trajectory.next_obs, (), trajectory.truncated
    )


REPORTED = ("loss/td", "value/q")
"""What `loss` reports of every step, in this order."""


def loss(
    params: PyTree, config: Config, env: Env, rows: tuple[PyTree, Array, Array]
) -> tuple[Array, tuple[Array, ...]]:
    """The loss of (obs, action, target), and what is `REPORTED` of every row."""
    obs, action, target = rows
    q = estimators.action_value(networks.apply_q(config, env, params, obs), action)
    td_loss = losses.squared_td(q, target)
    return td_loss.mean(), (td_loss, q)


def train_step(
    config: Config, env: Env, state: types.State, successor: Successor
) -> tuple[types.State, Metrics]:
    """One rollout of `num_steps`, and passes of gradient steps over it."""
    agent, world = state.agent, state.world
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
    rows = (trajectory.obs, trajectory.action, target)
    params, opt_state, metrics = optim.fit(
        lambda params, rows: loss(params, config, env, rows),
        agent.params,
        agent.opt_state,
        batches(key_update, rows, config.num_epochs, config.num_minibatches),
        optim.adam(config.max_grad_norm),
        learning_rate,
        REPORTED,
    )
    metrics |= stats
    metrics["explore/epsilon"] = mean(epsilon)
    metrics["optim/learning_rate"] = mean(learning_rate)
    return types.State(types.Agent(params, opt_state), world), metrics


SARSA = types.Algorithm(
    name="sarsa",
    Config=Config,
    init=init,
    train_step=partial(train_step, successor="taken"),
    act=acts.act,
    explain=acts.explain,
    plan=on_policy.plan_minibatches,
    validate=validate,
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
