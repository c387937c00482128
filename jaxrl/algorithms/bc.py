"""Behaviour cloning (Pomerleau, 1989): supervised learning of what an expert did.

    max_θ E_{(s, a) ~ D}[ log pi_θ(a | s) ]

D is a dataset of whole episodes (`--data DATA`, see `jaxrl.data.dataset`). Discrete (also
masked) and continuous actions; MLP and CNN policies.

The details that matter:

1. The learner is never asked what its own actions lead to. Where it errs it comes to states
   that the expert never saw, and errs again: errors grow with the square of the horizon
   (Ross and Bagnell, 2010, theorem 2.1). DAgger is the cure.
2. For continuous actions the likelihood is that of a normal whose spread is learned too, or
   `loss` = "mse" fits the mean alone. Actions are not squashed: those of an expert may lie
   outside the box, where the environment clips them.
3. Minibatches are drawn uniformly, with replacement, from all steps of the dataset.
4. The learner's own steps are for the metrics only: how good it is meanwhile. Nothing is
   learned from them, and no reward is.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import losses, optim
from jaxrl.algorithms import checks
from jaxrl.networks.actor_critic import (
    Actor,
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
    World,
    mean,
    packed_sums,
    static,
    traced,
    unpacked_means,
)


class Config(PyTreeNode):
    """Hyper-parameters of behaviour cloning."""

    total_steps: float = traced(20_000.0, low=1, high=1e12)
    """Environment steps of the whole run; the learning-rate schedule ends there."""
    num_envs: int = static(8, low=1)
    """Environments stepped in parallel."""
    num_steps: int = static(32, low=1)
    """Steps of each environment between updates, which only show how good it is."""
    num_updates: int = static(64, low=1)
    """Gradient steps each time."""
    batch_size: int = static(256, low=1)
    """Steps of the dataset in each update."""
    loss: Literal["likelihood", "mse"] = static("likelihood")
    """What is minimised: -log pi(a|s), or for continuous actions the mean's error."""
    learning_rate: float = traced(1e-3, low=0)
    """Adam's step size."""
    anneal_lr: bool = static(True)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    ent_coef: float = traced(0.0, low=0)
    """Weight of an entropy bonus."""
    l2_coef: float = traced(0.0, low=0)
    """Weight of the squared norm of the parameters."""
    max_grad_norm: float = traced(10.0, above=0)
    """Gradients are scaled down to this global norm."""
    hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Widths of the fully connected layers."""
    activation: Activation = static("tanh")
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


def validate(config: Config, env: Env) -> None:
    checks.check_policy_actions("bc", env)
    checks.check_imitation_loss(config, env)
    checks.check_dataset("bc", env)
    checks.check_action_mask(env)
    checks.check_torso(config, env)


def plan(config: Config, env: Env) -> Plan:
    del env
    env_steps = config.num_envs * config.num_steps
    return Plan(env_steps, config.num_updates, gradient_rows=config.batch_size)


def network(config: Config, env: Env) -> Actor:
    image = uses_image(env.observation_space, config.network)
    return Actor(env.action_space, config.hidden_sizes, config.activation, image)


def init(config: Config, env: Env, key: Array) -> State:
    key_params, key_world = jax.random.split(key)
    net = network(config, env)
    x = jnp.zeros((1, *feature_shape(env.observation_space, net.image)))
    params = net.init(key_params, x)
    opt_state = optim.adam(config.max_grad_norm).init(optim.flat(params)[0])
    agent = Agent(params, opt_state)
    return State(agent, init_world(env, key_world, config.num_envs))


def policy_of(config: Config, env: Env, params: PyTree, obs: PyTree) -> Any:
    """pi(.|s) for observations with any batch axes."""
    net = network(config, env)
    policy = net.apply(
        params, network_input(env.observation_space, obs, net.image, None)
    )
    mask = action_mask(env.observation_space, obs)
    return policy_distribution(env.action_space, policy, mask)


def act(
    config: Config,
    env: Env,
    agent: Agent,
    obs: PyTree,
    memory: Memory,
    key: Array,
    greedy: bool = False,
) -> tuple[Array, Memory, dict[str, Any]]:
    """A policy of which only the mean was learned has no spread: it is always greedy."""
    pi = policy_of(config, env, agent.params, obs)
    if greedy or config.loss == "mse":
        return pi.mode(), memory, {}
    batch = jax.tree.leaves(obs)[0].shape[:1]
    action = pi.from_noise(action_noise(env.action_space, key, batch))
    return action, memory, {}


def explain(
    config: Config, env: Env, agent: Agent, obs: PyTree, memory: Memory
) -> dict[str, Array]:
    """What the choice of an action is made from (see `Algorithm`)."""
    del memory
    pi = policy_of(config, env, agent.params, obs)
    return explanation(env.action_space, pi)


REPORTED = ("loss/imitation", "imitation/error", "policy/entropy")
"""What `loss` reports of every step, in this order."""


def loss(
    params: PyTree, config: Config, env: Env, obs: PyTree, expert_action: Array
) -> tuple[Array, tuple[Array, ...]]:
    """The loss, and what is `REPORTED` of every step of the batch."""
    pi = policy_of(config, env, params, obs)
    if config.loss == "mse":
        imitation = losses.action_mse(pi.mode(), expert_action)
    else:
        imitation = losses.negative_log_likelihood(pi.log_prob(expert_action))
    entropy = pi.entropy()
    error = losses.action_error(pi.mode(), expert_action)
    total = (imitation - config.ent_coef * entropy).mean()
    total += config.l2_coef * losses.squared_norm(params)
    return total, (imitation, error, entropy)


def update(
    config: Config, env: Env, agent: Agent, key: Array, learning_rate: Scalar
) -> tuple[Agent, Metrics]:
    """Gradient steps on batches of the dataset."""
    data = env.teacher
    optimizer = optim.adam(config.max_grad_norm)
    params, unflatten = optim.flat(agent.params)

    def loss_of(params: Array, rows: tuple[PyTree, Array]) -> tuple[Array, tuple]:
        return loss(unflatten(params), config, env, *rows)

    def gradient_step(carry: tuple, index: Array) -> tuple[tuple, tuple]:
        params, opt_state = carry
        rows = jax.tree.map(lambda x: x[index], (data.obs, data.action))
        grads, reported = jax.grad(loss_of, has_aux=True)(params, rows)
        carry = optim.apply(optimizer, params, opt_state, grads, learning_rate)
        return carry, (packed_sums(reported), optim.global_norm(grads))

    shape = (config.num_updates, config.batch_size)
    indices = jax.random.randint(key, shape, 0, data.num_steps)
    carry = (params, agent.opt_state)
    (params, opt_state), (sums, norms) = jax.lax.scan(gradient_step, carry, indices)
    metrics = unpacked_means(REPORTED, sums.sum(0), indices.size)
    metrics["optim/grad_norm"] = mean(norms)
    return agent.replace(params=unflatten(params), opt_state=opt_state), metrics


def train_step(config: Config, env: Env, state: State) -> tuple[State, Metrics]:
    """A rollout to see how good the learner is, and `num_updates` gradient steps."""
    agent, world = state.agent, state.world
    learning_rate: Scalar = config.learning_rate
    if config.anneal_lr:
        progress = optim.progress(world.env_steps, config.total_steps)
        learning_rate = optim.linear_schedule(learning_rate, 0.0, progress)
    key, key_update = jax.random.split(world.key)
    policy = partial(act, config, env, agent)
    world, _, stats = unroll(env, policy, world.replace(key=key), config.num_steps)
    agent, metrics = update(config, env, agent, key_update, learning_rate)
    metrics |= stats
    metrics["optim/learning_rate"] = mean(learning_rate)
    return State(agent, world), metrics


BC = Algorithm(
    name="bc",
    Config=Config,
    init=init,
    train_step=train_step,
    act=act,
    explain=explain,
    plan=plan,
    validate=validate,
    teacher="data",
)
