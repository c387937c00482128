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
from typing import Literal

import jax
from flax.struct import PyTreeNode

from jaxrl import networks, optim, rollout, types
from jaxrl.algorithms import checks, imitation, off_policy, on_policy
from jaxrl.networks import Activation, Network
from jaxrl.types import Array, Env, Metrics, mean, static, traced


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
    """A name ("auto", "mlp", "cnn", "resnet", ...), a flax module, or module:factory."""


def validate(config: Config, env: Env) -> None:
    checks.policy_gradient("bc", config, env)
    checks.check_imitation_loss(config, env)
    checks.check_dataset("bc", env)


def init(config: Config, env: Env, key: Array) -> types.State:
    return on_policy.init(config, env, key, networks.actor(config, env))


def sample_batches(config: Config, env: Env, key: Array) -> types.Batches:
    """`num_updates` batches (obs, action) of the dataset, drawn uniformly."""
    rows = (env.teacher.obs, env.teacher.action)
    shape = (config.num_updates, config.batch_size)
    index = jax.random.randint(key, shape, 0, env.teacher.num_steps)
    return types.Batches(
        index, lambda i: jax.tree.map(lambda x: x[i], rows), index.size
    )


def train_step(
    config: Config, env: Env, state: types.State
) -> tuple[types.State, Metrics]:
    """A rollout to see how good the learner is, and `num_updates` gradient steps."""
    agent, world = state.agent, state.world
    learning_rate = optim.annealed(config, config.learning_rate, world.env_steps)
    key, key_update = jax.random.split(world.key)
    world, _, stats = rollout.unroll(
        env,
        partial(imitation.acts.act, config, env, agent),
        world.replace(key=key),
        config.num_steps,
    )
    params, opt_state, metrics = optim.fit(
        lambda params, rows: imitation.loss(params, config, env, *rows),
        agent.params,
        agent.opt_state,
        sample_batches(config, env, key_update),
        optim.adam(config.max_grad_norm),
        learning_rate,
        imitation.REPORTED,
    )
    metrics |= stats
    metrics["optim/learning_rate"] = mean(learning_rate)
    return types.State(types.Agent(params, opt_state), world), metrics


BC = types.Algorithm(
    name="bc",
    Config=Config,
    init=init,
    train_step=train_step,
    act=imitation.acts.act,
    explain=imitation.acts.explain,
    plan=off_policy.plan_batches,
    validate=validate,
    teacher="data",
)
