"""The natural policy gradient (Kakade, 2001, "A natural policy gradient").

    θ <- θ + α F⁻¹ g,    g = ∇E[log π A],    F = E[∇log π ∇log πᵀ]

The gradient in the metric of the policies themselves, so that the step does not depend on
how they are parameterised. The length is a fixed learning rate times F⁻¹ g, as in the
paper: TRPO (trpo.py) replaces it by a bound on the KL divergence and a line search, and a
diff of the two files is that difference.

Discrete (also masked) and continuous actions; MLP and CNN policies.

The details that matter, in the order of the code:

1. The direction F⁻¹ g is found by conjugate gradient on Fisher-vector products, over the
   whole batch; F is never formed. Damping keeps it finite where the batch says nothing.
2. Nothing bounds the step. As a policy becomes deterministic F vanishes, F⁻¹ g grows, and
   the divergence of a step with it: `policy/kl` shows it.
3. Policy and value share no parameters, on images too, so that F is of the policy alone.
   The value has Adam, epochs and minibatches.
4. Advantages are normalised over the whole batch: the learning rate is then in the same
   units for every task.
5. Observation statistics are frozen while a batch is collected and learned from, so that
   F is the KL's second derivative where the step begins.
6. The value of a truncated episode's last state is bootstrapped from the true successor
   observation; that of a terminated one is zero. The lambda-trace is cut by both.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import estimators, losses, normalize, optim
from jaxrl.algorithms import checks
from jaxrl.core import parallel
from jaxrl.core.minibatches import minibatches, reader
from jaxrl.networks.actor_critic import (
    ActorCritic,
    action_noise,
    apply_step,
    explanation,
    in_blocks,
    join,
    policy_distribution,
    split,
)
from jaxrl.networks.features import (
    Network,
    action_mask,
    feature_shape,
    network_input,
    updated_stats,
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
    per_env,
    static,
    traced,
)


class Config(PyTreeNode):
    """Hyper-parameters of the natural policy gradient."""

    total_steps: float = traced(100_000.0, low=1, high=1e12)
    """Environment steps of the whole run; with `anneal_lr` the schedule ends there."""
    num_envs: int = static(8, low=1)
    """Environments stepped in parallel."""
    num_steps: int = static(128, low=1)
    """Steps of each environment between updates."""
    learning_rate: float = traced(0.5, low=0)
    """α: the step is this times F⁻¹ g."""
    anneal_lr: bool = static(False)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    cg_iterations: int = static(15, low=1)
    """Fisher-vector products of the conjugate gradient."""
    cg_damping: float = traced(0.1, low=0)
    """What is added to the diagonal of the Fisher matrix."""
    num_epochs: int = static(10, low=1)
    """Passes over each batch that fit the value."""
    num_minibatches: int = static(8, low=1)
    """Gradient steps of the value per pass."""
    vf_learning_rate: float = traced(1e-3, low=0)
    """Adam's step size for the value."""
    max_grad_norm: float = traced(0.5, above=0)
    """Gradients of the value are scaled down to this global norm."""
    gamma: float = traced(0.99, low=0, high=1)
    """Discount factor per environment step."""
    gae_lambda: float = traced(0.95, low=0, high=1)
    """Decay of the generalised advantage estimator."""
    normalize_advantage: bool = static(True)
    """Whether advantages are standardised over the batch."""
    hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Widths of the fully connected layers."""
    activation: Activation = static("tanh")
    """Nonlinearity of the hidden layers."""
    network: Network = static("auto")
    """Torso: "auto" is a CNN for images and an MLP otherwise; or "mlp", or "cnn"."""
    squash: bool = static(False)
    """Whether continuous actions go through tanh; otherwise they are clipped."""
    normalize_obs: bool = static(False)
    """Whether observations are standardised by running statistics."""
    normalize_reward: bool = static(True)
    """Whether rewards are divided by the running deviation of the discounted return."""


class Agent(PyTreeNode):
    """All that the policy artefact holds."""

    params: PyTree
    opt_state: PyTree  # of the value; the policy's step has no state
    obs_stats: normalize.RunningStats | None
    reward_stats: normalize.RewardStats | None


class State(PyTreeNode):
    agent: Agent
    world: World
    reward_trace: Array = per_env()  # float32 [N], discounted return so far


class Batch(NamedTuple):
    """What a rollout is turned into: `[T, N, ...]`."""

    obs: PyTree
    action: Array
    policy: PyTree  # parameters of the behaviour policy
    advantage: Array
    target: Array
    value: Array


def validate(config: Config, env: Env) -> None:
    checks.check_minibatches(config)
    checks.check_policy_actions("natural_pg", env)
    checks.check_squash(config, env)
    checks.check_action_mask(env)
    checks.check_torso(config, env)


def plan(config: Config, env: Env) -> Plan:
    del env
    env_steps = config.num_envs * config.num_steps
    rows = env_steps // config.num_minibatches
    return Plan(
        env_steps=env_steps,
        updates=1 + config.num_epochs * config.num_minibatches,
        gradient_rows=rows,
        shares=math.gcd(config.num_envs, rows),
    )


def network(config: Config, env: Env) -> ActorCritic:
    return ActorCritic(
        action_space=env.action_space,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        image=uses_image(env.observation_space, config.network),
        separate=True,
    )


def init(config: Config, env: Env, key: Array) -> State:
    key_params, key_world = jax.random.split(key)
    net = network(config, env)
    shape = feature_shape(env.observation_space, net.image)
    params = net.init(key_params, (), jnp.zeros((1, *shape)))
    value_vector = optim.flat(split(params)[1])[0]
    agent = Agent(
        params=params,
        opt_state=optim.adam(config.max_grad_norm).init(value_vector),
        obs_stats=normalize.init(shape) if config.normalize_obs else None,
        reward_stats=normalize.init_reward() if config.normalize_reward else None,
    )
    world = init_world(env, key_world, config.num_envs)
    return State(agent, world, jnp.zeros(config.num_envs))


def policy_and_value(
    config: Config, env: Env, agent: Agent, params: PyTree, obs: PyTree
) -> tuple[PyTree, Array]:
    """Policy parameters and V, for observations with any batch axes.

    The statistics are the agent's, the parameters may be newer.
    """
    net = network(config, env)
    x = network_input(env.observation_space, obs, net.image, agent.obs_stats)
    _, policy, value = apply_step(net, params, (), x)
    return policy, value


def distribution(config: Config, env: Env, policy: PyTree, obs: PyTree) -> Any:
    """The action distribution; `obs` may hold a mask."""
    mask = action_mask(env.observation_space, obs)
    return policy_distribution(env.action_space, policy, mask, config.squash)


def choose(
    config: Config, env: Env, agent: Agent, obs: PyTree, memory: Memory, noise: Any
) -> tuple[Array, Memory, dict[str, Any]]:
    """One step of the policy: a sample made from `action_noise`, or the mode for None."""
    policy, value = policy_and_value(config, env, agent, agent.params, obs)
    pi = distribution(config, env, policy, obs)
    action = pi.mode() if noise is None else pi.from_noise(noise)
    return action, memory, {"policy": policy, "value": value}


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
    policy, _ = policy_and_value(config, env, agent, agent.params, obs)
    return explanation(env.action_space, distribution(config, env, policy, obs))


def make_batch(
    config: Config, env: Env, agent: Agent, trajectory: Transition, reward: Array
) -> Batch:
    """Advantages and targets of a rollout `[T, N]`."""

    def value_of(obs: PyTree) -> Array:
        return policy_and_value(config, env, agent, agent.params, obs)[1]

    # The critic is not run in the rollout: few products of many rows are faster.
    value = in_blocks(value_of, trajectory.obs)
    next_value = estimators.successor_values(
        lambda obs, _: value_of(obs),
        value,
        trajectory.next_obs,
        (),
        trajectory.truncated,
    )
    advantage, target = estimators.gae(
        reward,
        value,
        next_value,
        trajectory.terminated,
        trajectory.truncated,
        config.gamma,
        config.gae_lambda,
    )
    if config.normalize_advantage:
        advantage = losses.normalize_advantage(advantage)
    return Batch(
        obs=trajectory.obs,
        action=trajectory.action,
        policy=trajectory.extras["policy"],
        advantage=advantage,
        target=target,
        value=value,
    )


def update_policy(
    config: Config, env: Env, agent: Agent, batch: Batch, learning_rate: Scalar
) -> tuple[PyTree, Metrics]:
    """The policy's parameters after one step along the natural gradient.

    On several devices each has its share of the states; gradient and Fisher-vector
    products are means over all.
    """
    old = distribution(config, env, batch.policy, batch.obs)
    policy, value = split(agent.params)
    theta, unflatten = optim.flat(policy)

    def pi_of(theta: Array) -> Any:
        params = join(unflatten(theta), value)
        policy, _ = policy_and_value(config, env, agent, params, batch.obs)
        return distribution(config, env, policy, batch.obs)

    def loss_of(theta: Array) -> Array:
        log_prob = pi_of(theta).log_prob(batch.action)
        return losses.policy_gradient(log_prob, batch.advantage).mean()

    def kl_of(theta: Array) -> Array:
        return old.kl_divergence(pi_of(theta)).mean()

    loss, grads = parallel.mean(jax.value_and_grad(loss_of)(theta))
    product = optim.fisher_vector_product(kl_of, theta, config.cg_damping)
    direction = optim.conjugate_gradient(product, -grads, config.cg_iterations)
    step = learning_rate * direction
    theta = theta + step
    metrics = {
        "loss/policy": mean(loss),
        "policy/entropy": mean(old.entropy()),
        "policy/kl": mean(parallel.mean(kl_of(theta))),
        "policy/expected_improvement": mean(-grads @ step),
        "optim/grad_norm": mean(optim.global_norm(grads)),
        "optim/step_norm": mean(optim.global_norm(step)),
        "optim/learning_rate": mean(learning_rate),
    }
    return unflatten(theta), metrics


def update_value(
    config: Config, env: Env, agent: Agent, batch: Batch, key: Array
) -> tuple[PyTree, PyTree, Metrics]:
    """The value's parameters and optimiser state after `num_epochs` passes of
    `num_minibatches` gradient steps.

    On several devices each has the whole batch and takes its share of every minibatch.
    """
    rows = parallel.gather((batch.obs, batch.target), axis=1)
    rows = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), rows)
    rows_at, size = reader(rows), rows[1].size
    optimizer = optim.adam(config.max_grad_norm)
    policy, value = split(agent.params)
    phi, unflatten = optim.flat(value)

    def loss_of(phi: Array, obs: PyTree, target: Array) -> Array:
        params = join(policy, unflatten(phi))
        _, value = policy_and_value(config, env, agent, params, obs)
        return losses.value_mse(value, target).mean()

    def gradient_step(carry: tuple, index: Array) -> tuple[tuple, Array]:
        phi, opt_state = carry
        loss, grads = jax.value_and_grad(loss_of)(phi, *rows_at(index))
        grads = parallel.mean(grads)
        rate = config.vf_learning_rate
        return optim.apply(optimizer, phi, opt_state, grads, rate), loss

    indices = minibatches(key, size, config.num_epochs, config.num_minibatches)
    indices = parallel.share(indices, axis=1)
    carry = (phi, agent.opt_state)
    (phi, opt_state), found = jax.lax.scan(gradient_step, carry, indices)
    return unflatten(phi), opt_state, {"loss/value": mean(found)}


def train_step(config: Config, env: Env, state: State) -> tuple[State, Metrics]:
    """One rollout of `num_steps`, one step of the policy, and a fit of the value."""
    agent, world = state.agent, state.world
    progress = optim.progress(world.env_steps, config.total_steps)
    key, key_update = jax.random.split(world.key)

    world, trajectory, stats = unroll(
        env,
        partial(choose, config, env, agent),
        world.replace(key=key),
        config.num_steps,
        partial(action_noise, env.action_space),
    )
    reward, reward_stats, reward_trace = normalize.scaled_rollout(
        agent.reward_stats,
        state.reward_trace,
        trajectory.reward,
        trajectory.terminated | trajectory.truncated,
        config.gamma,
    )
    batch = make_batch(config, env, agent, trajectory, reward)
    learning_rate: Scalar = config.learning_rate
    if config.anneal_lr:
        learning_rate = optim.linear_schedule(learning_rate, 0.0, progress)
    policy, metrics = update_policy(config, env, agent, batch, learning_rate)
    value, opt_state, value_metrics = update_value(
        config, env, agent, batch, key_update
    )
    agent = Agent(
        params=join(policy, value),
        opt_state=opt_state,
        obs_stats=updated_stats(
            env.observation_space,
            batch.obs,
            network(config, env).image,
            state.agent.obs_stats,
        ),
        reward_stats=reward_stats,
    )
    metrics |= value_metrics | stats
    metrics["value/explained_variance"] = mean(
        losses.explained_variance(batch.value, batch.target)
    )
    return State(agent, world, reward_trace), metrics


NATURAL_PG = Algorithm(
    name="natural_pg",
    Config=Config,
    init=init,
    train_step=train_step,
    act=act,
    explain=explain,
    plan=plan,
    validate=validate,
)
