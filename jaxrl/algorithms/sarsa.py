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

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import estimators, losses, optim
from jaxrl.algorithms import checks
from jaxrl.core import parallel
from jaxrl.core.minibatches import minibatches, reader
from jaxrl.exploration import epsilon_greedy, epsilon_greedy_value, epsilon_noise
from jaxrl.networks.features import (
    Network,
    action_mask,
    feature_shape,
    network_input,
    uses_image,
)
from jaxrl.networks.q_network import QNetwork
from jaxrl.networks.torso import Activation
from jaxrl.rollout import Policy, init_world, unroll
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
    packed_sums,
    static,
    traced,
    unpacked_means,
)

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
    """Torso: "auto" is a CNN for images and an MLP otherwise; or "mlp", or "cnn"."""


class Agent(PyTreeNode):
    """All that the policy artefact holds."""

    params: PyTree
    opt_state: PyTree


class State(PyTreeNode):
    agent: Agent
    world: World


def validate(config: Config, env: Env, name: str = "sarsa") -> None:
    checks.check_minibatches(config)
    checks.check_discrete_actions(name, env)
    checks.check_torso(config, env)
    checks.check_action_mask(env)


def plan(config: Config, env: Env) -> Plan:
    del env
    env_steps = config.num_envs * config.num_steps
    rows = env_steps // config.num_minibatches
    return Plan(
        env_steps=env_steps,
        updates=config.num_epochs * config.num_minibatches,
        gradient_rows=rows,
        shares=math.gcd(config.num_envs, rows),
    )


def network(config: Config, env: Env) -> QNetwork:
    return QNetwork(
        num_actions=env.action_space.n,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        image=uses_image(env.observation_space, config.network),
    )


def init(config: Config, env: Env, key: Array) -> State:
    key_params, key_world = jax.random.split(key)
    net = network(config, env)
    x = jnp.zeros((1, *feature_shape(env.observation_space, net.image)))
    params = net.init(key_params, x)
    opt_state = optim.adam(config.max_grad_norm).init(optim.flat(params)[0])
    world = init_world(env, key_world, config.num_envs)
    return State(Agent(params, opt_state), world)


def q_values(config: Config, env: Env, params: PyTree, obs: PyTree) -> Array:
    """Q(s, .) `[*batch, A]`."""
    net = network(config, env)
    x = network_input(env.observation_space, obs, net.image, None)
    q: Any = net.apply(params, x)
    return q


def explorer(config: Config, env: Env, agent: Agent, epsilon: Scalar) -> Policy:
    """The epsilon-greedy policy, which is given `exploration_noise`."""

    def policy(obs: PyTree, memory: Memory, noise: Array) -> tuple:
        mask = action_mask(env.observation_space, obs)
        q = q_values(config, env, agent.params, obs)
        action = epsilon_greedy(noise, q, epsilon, mask)
        return action, memory, {"value": epsilon_greedy_value(q, epsilon, mask)}

    return policy


def exploration_noise(env: Env, key: Array, shape: tuple[int, ...]) -> Array:
    return epsilon_noise(key, shape, env.action_space.n)


def act(
    config: Config,
    env: Env,
    agent: Agent,
    obs: PyTree,
    memory: Memory,
    key: Array,
    greedy: bool = False,
) -> tuple[Array, Memory, dict[str, Any]]:
    epsilon = 0.0 if greedy else config.epsilon_end
    noise = exploration_noise(env, key, jax.tree.leaves(obs)[0].shape[:1])
    return explorer(config, env, agent, epsilon)(obs, memory, noise)


def explain(
    config: Config, env: Env, agent: Agent, obs: PyTree, memory: Memory
) -> dict[str, Array]:
    """What the choice of an action is made from (see `Algorithm`)."""
    del memory
    q = q_values(config, env, agent.params, obs)
    mask = action_mask(env.observation_space, obs)
    return {"q": q if mask is None else jnp.where(mask, q, -jnp.inf)}


def next_values(
    config: Config,
    env: Env,
    params: PyTree,
    trajectory: Transition,
    epsilon: Scalar,
    successor: Successor,
) -> Array:
    """Q'_{t+1} `[T, N]` of a rollout: what makes SARSA, Expected SARSA or Q-learning."""
    # Of the best action it is the mean of the policy that does not explore.
    spread = 0.0 if successor == "best" else epsilon

    def on_average(obs: PyTree) -> Array:
        mask = action_mask(env.observation_space, obs)
        q = q_values(config, env, params, obs)
        return epsilon_greedy_value(q, spread, mask)

    if successor == "taken":
        q = q_values(config, env, params, trajectory.obs)
        value = estimators.action_value(q, trajectory.action)
    else:
        value = on_average(trajectory.obs)
    return estimators.successor_values(
        lambda obs, _: on_average(obs),
        value,
        trajectory.next_obs,
        (),
        trajectory.truncated,
    )


REPORTED = ("loss/td", "value/q")
"""What `loss` reports of every step, in this order."""


def loss(
    params: PyTree, config: Config, env: Env, rows: tuple[PyTree, Array, Array]
) -> tuple[Array, tuple[Array, ...]]:
    """The loss of (obs, action, target), and what is `REPORTED` of every row."""
    obs, action, target = rows
    q = estimators.action_value(q_values(config, env, params, obs), action)
    td_loss = losses.squared_td(q, target)
    return td_loss.mean(), (td_loss, q)


def update(
    config: Config,
    env: Env,
    agent: Agent,
    trajectory: Transition,
    target: Array,
    key: Array,
    learning_rate: Scalar,
) -> tuple[Agent, Metrics]:
    """`num_epochs` passes of `num_minibatches` gradient steps over one rollout.

    On several devices each has the whole rollout and takes its share of every minibatch.
    """
    rows = parallel.gather((trajectory.obs, trajectory.action, target), axis=1)
    rows = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), rows)
    rows_at, size = reader(rows), rows[2].size
    optimizer = optim.adam(config.max_grad_norm)
    params, unflatten = optim.flat(agent.params)

    def loss_of(params: Array, rows: tuple) -> tuple[Array, tuple]:
        return loss(unflatten(params), config, env, rows)

    def gradient_step(carry: tuple, index: Array) -> tuple[tuple, tuple]:
        params, opt_state = carry
        grads, reported = jax.grad(loss_of, has_aux=True)(params, rows_at(index))
        grads = parallel.mean(grads)
        carry = optim.apply(optimizer, params, opt_state, grads, learning_rate)
        return carry, (packed_sums(reported), optim.global_norm(grads))

    indices = minibatches(key, size, config.num_epochs, config.num_minibatches)
    indices = parallel.share(indices, axis=1)
    carry = (params, agent.opt_state)
    (params, opt_state), (sums, norms) = jax.lax.scan(gradient_step, carry, indices)
    metrics = unpacked_means(REPORTED, sums.sum(0), indices.size)
    metrics["optim/grad_norm"] = mean(norms)
    return Agent(unflatten(params), opt_state), metrics


def train_step(
    config: Config, env: Env, state: State, successor: Successor
) -> tuple[State, Metrics]:
    """One rollout of `num_steps` and its updates."""
    agent, world = state.agent, state.world
    progress = optim.progress(world.env_steps, config.total_steps)
    epsilon = optim.linear_schedule(
        config.epsilon_start,
        config.epsilon_end,
        progress / config.exploration_fraction,
    )
    learning_rate: Scalar = config.learning_rate
    if config.anneal_lr:
        learning_rate = optim.linear_schedule(learning_rate, 0.0, progress)
    key, key_update = jax.random.split(world.key)
    world, trajectory, stats = unroll(
        env,
        explorer(config, env, agent, epsilon),
        world.replace(key=key),
        config.num_steps,
        partial(exploration_noise, env),
    )
    target = estimators.lambda_returns(
        trajectory.reward,
        trajectory.terminated,
        trajectory.truncated,
        next_values(config, env, agent.params, trajectory, epsilon, successor),
        config.gamma,
        config.td_lambda,
    )
    agent, metrics = update(
        config, env, agent, trajectory, target, key_update, learning_rate
    )
    metrics |= stats
    metrics["explore/epsilon"] = mean(epsilon)
    metrics["optim/learning_rate"] = mean(learning_rate)
    return State(agent, world), metrics


SARSA = Algorithm(
    name="sarsa",
    Config=Config,
    init=init,
    train_step=partial(train_step, successor="taken"),
    act=act,
    explain=explain,
    plan=plan,
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
