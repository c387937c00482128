"""V^π of a given policy by temporal differences (Sutton, 1988), with a network.

    min E[ 1/2 (V(s_t) - G_t)^2 ],    G_t = r_t + γ [(1 - λ) V'(s_{t+1}) + λ G_{t+1}]

The policy does not change: uniformly random actions, or those of a trained agent
(`--policy RUN`). V' is the target network. What the lectures teach as different methods
are values of the config:

* `td_lambda` = 1 with `whole_episodes` is regression on returns: TD(1), Monte Carlo. No V'
  enters, so there is no bias; the variance is that of a whole return.
* `td_lambda` = 0 is TD(0): one reward and V'(s_{t+1}). In between, TD(λ), forward view.
* `target_update_interval` = 0 is the usual TD: V' is V. With k > 0 it is fixed-point
  iteration: V' is frozen while k trajectories are learned from, and is then set to V.

The details that matter, in the order of the code:

1. V' of a truncated episode's last state is that of the true successor; a terminated one
   has value 0.
2. With `whole_episodes` each rollout starts all environments afresh and learns from the
   first episode of each: with the returns of all that happen to end in time, short ones
   would be favoured. What is cut by the end of the rollout continues with V'. Without it
   the environments go on from rollout to rollout, and every step is learned from.
3. Targets once for each rollout, then `num_epochs` passes in minibatches.
4. Gradients are not clipped: that would scale down the trajectories with the largest
   errors, the long ones, and V would be that of the others.
5. The evaluation says how far V is from the exact one, where the environment has a model
   (`lecture/...`) and the policy is uniform or greedy: `value_rms`, over all states that
   are not terminal, each counted once.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode

from jaxrl import (
    acting,
    estimators,
    exploration,
    losses,
    mdp,
    networks,
    optim,
    rollout,
    spaces,
    types,
)
from jaxrl.algorithms import checks, on_policy
from jaxrl.core import parallel
from jaxrl.core.minibatches import batches
from jaxrl.data.frozen_policy import teacher_action
from jaxrl.errors import InvalidInput
from jaxrl.networks import Activation, Network
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


class Config(PyTreeNode):
    """Hyper-parameters of TD(λ)."""

    total_steps: float = traced(200_000.0, low=1, high=1e12)
    """Environment steps of the whole run; the learning-rate schedule ends there."""
    num_envs: int = static(8, low=1)
    """Environments stepped in parallel."""
    num_steps: int = static(32, low=1)
    """Steps of each environment between updates."""
    whole_episodes: bool = static(False)
    """Whether each rollout is one episode of each environment, from its start."""
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
    td_lambda: float = traced(0.0, low=0, high=1)
    """Decay of the targets: 0 is TD(0), 1 the return to the rollout's end, TD(1)."""
    target_update_interval: int = static(0, low=0)
    """Trajectories for which the target network is frozen; 0 for none: it is V."""
    greedy: bool = static(True)
    """Whether a trained policy takes its likeliest action, or samples."""
    hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Widths of the fully connected layers."""
    activation: Activation = static("relu")
    """Nonlinearity of the hidden layers."""
    network: Network = static("auto")
    """A name ("auto", "mlp", "cnn", "resnet", ...), a flax module, or module:factory."""


class Agent(types.Agent, kw_only=True):
    """All that the policy artefact holds; the policy itself is `env.teacher`."""

    target_params: PyTree
    trajectories: Array  # int32 []: learned from since the target network was set


def validate(config: Config, env: Env) -> None:
    checks.check_frozen_policy("td", env, required=False)
    checks.check_network("td", config, env)
    checks.check_action_mask(env)
    on_policy.check_minibatches(config, env, normalized=False)


def init(config: Config, env: Env, key: Array) -> types.State:
    key_params, key_world = jax.random.split(key)
    params = networks.init(networks.critic(config, env), key_params)
    agent = Agent(
        params=params,
        target_params=params,
        trajectories=jnp.int32(0),
        opt_state=optim.adam(None).init(optim.flat(params)[0]),
    )
    world = rollout.init_world(env, key_world, config.num_envs)
    return types.State(agent, world)


def value_of(config: Config, env: Env, params: PyTree, obs: PyTree) -> Array:
    """V(s) `[*batch]`."""
    return networks.apply_critic(config, env, params, obs)[0]


def choose(env: Env, obs: PyTree, key: Array, greedy: bool) -> Array:
    """The action of the policy whose values are learned."""
    if env.teacher is not None:
        return teacher_action(env.teacher, env, obs, key, greedy)
    batch = acting.batch_of(obs)
    if not isinstance(env.action_space, spaces.Discrete):
        return spaces.sample(env.action_space, key, batch)
    num_actions = env.action_space.n
    noise = exploration.epsilon_noise(key, batch, num_actions)
    mask = networks.action_mask(env.observation_space, obs)
    nothing = jnp.zeros((*batch, num_actions))
    return exploration.epsilon_greedy(noise, nothing, 1.0, mask)


def act(
    config: Config,
    env: Env,
    agent: Agent,
    obs: PyTree,
    memory: Memory,
    key: Array,
    greedy: bool = False,
) -> tuple[Array, Memory, dict[str, Any]]:
    """The policy is a given one: whether it is greedy the config says."""
    del greedy
    action = choose(env, obs, key, config.greedy)
    return action, memory, {"value": value_of(config, env, agent.params, obs)}


def targets(
    config: Config, env: Env, agent: Agent, trajectory: types.Transition
) -> Array:
    """G_t `[T, N]` of a rollout."""

    def value_at(obs: PyTree, _: Memory = ()) -> Array:
        return value_of(config, env, agent.target_params, obs)

    value = acting.in_blocks(value_at, trajectory.obs)
    at = (trajectory.next_obs, (), trajectory.truncated)
    return estimators.lambda_returns(
        trajectory.reward,
        trajectory.terminated,
        trajectory.truncated,
        estimators.successor_values(value_at, value, *at),
        config.gamma,
        config.td_lambda,
    )


REPORTED = ("loss/value", "value/v")
"""What `loss` reports of every step, in this order."""


def loss(
    params: PyTree, config: Config, env: Env, rows: tuple[PyTree, Array, Array]
) -> tuple[Array, tuple[Array, ...]]:
    """The loss of (obs, target, weight), and what is `REPORTED` of every row."""
    obs, target, weight = rows
    value = value_of(config, env, params, obs)
    value_loss = weight * losses.value_mse(value, target)
    return value_loss.mean(), (value_loss, weight * value)


def update(
    config: Config,
    env: Env,
    agent: Agent,
    trajectory: types.Transition,
    key: Array,
    learning_rate: types.Scalar,
) -> tuple[Agent, Metrics]:
    """`num_epochs` passes of `num_minibatches` gradient steps over one rollout."""
    weight = jnp.ones_like(trajectory.reward)
    if config.whole_episodes:
        weight = estimators.first_episode_mask(trajectory.done).astype(jnp.float32)
    rows = (trajectory.obs, targets(config, env, agent, trajectory), weight)
    cut = batches(key, rows, config.num_epochs, config.num_minibatches)
    num_rows = config.num_epochs * parallel.mean(weight.sum())
    params, opt_state, metrics = optim.fit(
        lambda params, rows: loss(params, config, env, rows),
        agent.params,
        agent.opt_state,
        cut._replace(rows=num_rows),
        optim.adam(None),
        learning_rate,
        REPORTED,
    )
    agent = agent.replace(params=params, opt_state=opt_state)
    ended = parallel.total((trajectory.done * weight).sum().astype(jnp.int32))
    return renew_target(config, agent, ended), metrics


def renew_target(config: Config, agent: Agent, trajectories: Array) -> Agent:
    """The target network is set once enough trajectories have been learned from."""
    learned = agent.trajectories + trajectories
    due = learned >= config.target_update_interval
    target_params = optim.polyak(agent.target_params, agent.params, due)
    return agent.replace(
        target_params=target_params, trajectories=jnp.where(due, 0, learned)
    )


def train_step(
    config: Config, env: Env, state: types.State
) -> tuple[types.State, Metrics]:
    """One rollout of `num_steps` and its updates."""
    agent, world = state.agent, state.world
    learning_rate = optim.annealed(config, config.learning_rate, world.env_steps)
    if config.whole_episodes:
        world = rollout.restart_episodes(env, world)
    key, key_update = jax.random.split(world.key)
    world, trajectory, stats = rollout.unroll(
        env,
        partial(act, config, env, agent),
        world.replace(key=key),
        config.num_steps,
    )
    agent, metrics = update(config, env, agent, trajectory, key_update, learning_rate)
    metrics |= stats
    metrics["optim/learning_rate"] = mean(learning_rate)
    return types.State(agent, world), metrics


def score(config: Config, env: Env, agents: Agent) -> dict[str, np.ndarray]:
    """`value_rms` `[K]`: how far V is from the exact one; {} where nobody knows that."""
    known_policy = env.teacher is None or config.greedy
    timed = env.horizon is not None and env.horizon_is == "terminal"
    if env.model is None or timed or not known_policy:
        return {}
    model = env.model(env.params)
    obs = jnp.asarray(model.features, jnp.float32)
    policy = mdp.uniform_policy(model)
    if env.teacher is not None:
        policy = np.eye(model.num_actions)[choose(env, obs, jax.random.key(0), True)]
    try:
        exact = mdp.policy_evaluation(model, policy, float(config.gamma))
    except InvalidInput:  # it may never end, and then nothing is discounted
        return {}
    value = jax.vmap(partial(value_of, config, env), (0, None))(agents.params, obs)
    error = (np.asarray(value) - exact)[:, ~model.terminal]
    return {"value_rms": np.sqrt(np.square(error).mean(axis=1))}


TD = types.Algorithm(
    name="td",
    Config=Config,
    init=init,
    train_step=train_step,
    act=act,
    plan=on_policy.plan_minibatches,
    validate=validate,
    score=score,
    teacher="policy",
)
