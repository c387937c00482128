"""DAgger (Ross, Gordon and Bagnell, 2011): imitation on the learner's own states.

    pi_i = beta_i pi* + (1 - beta_i) pi_θ        plays, chosen anew at each step
    D <- D + {(s, pi*(s)) : s visited by pi_i}   the expert labels every state
    max_θ E_{(s, a) ~ D}[ log pi_θ(a | s) ]

The expert pi* is a trained agent (`--expert RUN`), which answers with its likeliest action.
Discrete (also masked) and continuous actions; MLP and CNN policies.

The details that matter:

1. The states are those to which the learner's own errors lead, so it is told how to come
   back from them: errors grow linearly with the horizon, and not with its square as those
   of behaviour cloning do (theorem 3.2).
2. The paper trains anew on all of D after each iteration. Here the parameters go on from
   where they are, on minibatches of all of D: `buffer_size` must hold it, or the oldest
   labels are overwritten.
3. beta_1 = 1: the expert plays the first rollout, whatever the schedule. "exponential" with
   `beta_decay` = 0 is the paper's I(i = 1); with p it is p^(i - 1); "linear" falls to 0
   over `beta_fraction` of the run.
4. The learner plays its likeliest action, as it will be judged; its loss is that of
   behaviour cloning (`imitation.loss`), on these states.
5. Each environment step is one label: `env_steps` counts them.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import networks, optim, rollout, spaces, types
from jaxrl.algorithms import checks, imitation, off_policy, on_policy
from jaxrl.data.frozen_policy import teacher_action
from jaxrl.networks import Activation, Network
from jaxrl.replay import ring
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


class Config(PyTreeNode):
    """Hyper-parameters of DAgger."""

    total_steps: float = traced(20_000.0, low=1, high=1e12)
    """Environment steps of the whole run, which are as many labels of the expert."""
    num_envs: int = static(8, low=1)
    """Environments stepped in parallel."""
    num_steps: int = static(32, low=1)
    """Steps of each environment between updates."""
    num_updates: int = static(64, low=1)
    """Gradient steps each time."""
    batch_size: int = static(256, low=1)
    """Labelled states in each update."""
    buffer_size: int = static(100_000, low=1)
    """Labelled states that are kept; the oldest are overwritten."""
    beta_schedule: Literal["exponential", "linear"] = static("exponential")
    """How the probability falls with which the expert acts."""
    beta_decay: float = traced(0.0, low=0, high=1)
    """Of "exponential": the factor from rollout to rollout; 0 is the first one alone."""
    beta_fraction: float = traced(0.5, above=0, high=1)
    """Of "linear": the fraction of `total_steps` after which the learner acts alone."""
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


class Labelled(NamedTuple):
    """States and what the expert does there; `[B, ...]` in an update."""

    obs: PyTree
    action: Array


class State(types.State, kw_only=True):
    """The state of training, with all states labelled so far."""

    labelled: ring.Ring


def validate(config: Config, env: Env) -> None:
    checks.policy_gradient("dagger", config, env)
    checks.check_imitation_loss(config, env)
    checks.check_frozen_policy("dagger", env)


def init(config: Config, env: Env, key: Array) -> State:
    new = on_policy.init(config, env, key, networks.actor(config, env))
    example = Labelled(
        spaces.zeros(env.observation_space), spaces.zeros(env.action_space)
    )
    labelled = ring.init(
        example, config.buffer_size, config.num_envs, chunk=config.num_steps
    )
    return State(new.agent, new.world, labelled=labelled)


def mixture(
    config: Config, env: Env, agent: types.Agent, beta: types.Scalar
) -> rollout.Policy:
    """The policy that plays, and what the expert says of each state, in its extras."""

    def policy(obs: PyTree, memory: Memory, key: Array) -> tuple:
        key_expert, key_coin = jax.random.split(key)
        expert_action = teacher_action(env.teacher, env, obs, key_expert)
        action, memory, _ = imitation.acts.act(
            config, env, agent, obs, memory, key, greedy=True
        )
        expert_plays = jax.random.bernoulli(key_coin, beta, action.shape[:1])
        played = rollout.tree_where(expert_plays, expert_action, action)
        return played, memory, {"expert_action": expert_action}

    return policy


def mixing(config: Config, env: Env, env_steps: types.Counter) -> Array:
    """beta of the rollout that begins after so many environment steps."""
    if config.beta_schedule == "linear":
        progress = optim.progress(env_steps, config.total_steps)
        return optim.linear_schedule(1.0, 0.0, progress / config.beta_fraction)
    each = off_policy.plan_batches(config, env).env_steps
    rollouts = jnp.round(env_steps.as_float() / each)
    return jnp.asarray(config.beta_decay, jnp.float32) ** rollouts


def train_step(config: Config, env: Env, state: State) -> tuple[State, Metrics]:
    """A rollout of the mixture, its labels, and `num_updates` gradient steps."""
    agent, world = state.agent, state.world
    learning_rate = optim.annealed(config, config.learning_rate, world.env_steps)
    beta = mixing(config, env, world.env_steps)
    key, key_update = jax.random.split(world.key)
    world, trajectory, stats = rollout.unroll(
        env,
        mixture(config, env, agent, beta),
        world.replace(key=key),
        config.num_steps,
    )
    rows = Labelled(trajectory.obs, trajectory.extras["expert_action"])
    labelled = ring.add(state.labelled, rows)
    params, opt_state, metrics = optim.fit(
        lambda params, batch: imitation.loss(params, config, env, *batch),
        agent.params,
        agent.opt_state,
        ring.batches(labelled, key_update, config.num_updates, config.batch_size),
        optim.adam(config.max_grad_norm),
        learning_rate,
        imitation.REPORTED,
    )
    metrics |= stats
    metrics["imitation/beta"] = mean(beta)
    metrics["optim/learning_rate"] = mean(learning_rate)
    return State(types.Agent(params, opt_state), world, labelled=labelled), metrics


DAGGER = types.Algorithm(
    name="dagger",
    Config=Config,
    init=init,
    train_step=train_step,
    act=imitation.acts.act,
    explain=imitation.acts.explain,
    plan=off_policy.plan_batches,
    validate=validate,
    teacher="expert",
)
