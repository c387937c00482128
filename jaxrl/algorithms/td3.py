"""Deterministic policies from replay: DDPG (Lillicrap et al., 2016, arXiv:1509.02971) and
TD3 (Fujimoto et al., 2018, arXiv:1802.09477).

The policy climbs the critic: ∇J = E[∇_a Q(s, a) ∇μ(s)] at a = μ(s). DDPG has one critic,
TD3 three cures for its overestimation: the smaller of two critics in the target, a target
that is smoothed over nearby actions, and a policy that learns more slowly than the
critics. DDPG is TD3 with these turned off, so both are one file. Bounded continuous
actions; any network without memory.

The details that matter, in the order of the code:

1. Networks and noise work in [-1, 1], so a deviation means the same whatever the bounds;
   actions in the memory and in the environment have the environment's units.
2. y = r + γ min_k Q'_k(s', ã) unless s' is *terminal*; a truncated episode's last
   successor has a value, as `next_obs` is the true one.
3. ã = clip(μ'(s') + clip(σ ε, -c, c)): both clips, the outer one at the bounds.
4. The actor follows the first critic alone, after every `policy_delay` steps of the
   critics, and the target networks follow then too.
5. A train step makes whole numbers of actor steps, so no branch is in the loop.
6. Correlated noise starts at 0 in every episode: its state is the world's memory.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import (
    acting,
    estimators,
    exploration,
    losses,
    networks,
    optim,
    spaces,
    types,
)
from jaxrl.algorithms import checks, off_policy
from jaxrl.algorithms.off_policy import State, Stored
from jaxrl.networks import Activation, Network
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


class Config(PyTreeNode):
    """Hyper-parameters of TD3. The defaults are those of the Pendulum benchmark row."""

    total_steps: float = traced(20_000.0, low=1, high=1e12)
    """Environment steps of the whole run, `learning_starts` included."""
    num_envs: int = static(1, low=1)
    """Environments stepped in parallel."""
    train_frequency: int = static(1, low=1)
    """Environment steps (over all environments) between updates."""
    num_updates: int = static(1, low=1)
    """Gradient steps of the critics each time."""
    buffer_size: int = static(200_000, low=1)
    """Transitions the replay memory holds; the oldest are overwritten."""
    learning_starts: int = static(1_000, low=1)
    """Environment steps taken at random before the first update."""
    batch_size: int = static(256, low=1)
    """Transitions in each update."""
    learning_rate: float = traced(1e-3, low=0)
    """Adam's step size, of actor and critics."""
    anneal_lr: bool = static(False)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    gamma: float = traced(0.98, low=0, high=1)
    """Discount factor per environment step."""
    tau: float = traced(0.005, above=0, high=1)
    """Weight of the online networks each time the target networks follow."""
    num_critics: int = static(2, low=1)
    """Critics; the smallest of their values is the target's."""
    policy_delay: int = static(2, low=1)
    """Steps of the critics for one of the actor and of the target networks."""
    target_noise: float = traced(0.2, low=0)
    """Deviation of the noise on the target's action, in half widths of the space."""
    target_noise_clip: float = traced(0.5, low=0)
    """Bound of that noise, likewise."""
    noise: Literal["normal", "ornstein_uhlenbeck"] = static("normal")
    """Exploration: independent at each step, or correlated within an episode."""
    noise_std: float = traced(0.1, low=0)
    """Scale of the exploration noise, in half widths of the space."""
    noise_rate: float = traced(0.15, low=0)
    """Of correlated noise: how fast it returns to 0, per unit of time."""
    noise_dt: float = traced(0.01, above=0)
    """Of correlated noise: units of time in a step."""
    hidden_sizes: tuple[int, ...] = static((256, 256), low=1)
    """Widths of the fully connected layers."""
    activation: Activation = static("relu")
    """Nonlinearity of the hidden layers."""
    network: Network = static("auto")
    """A name ("auto", "mlp", "cnn", "resnet", ...), a flax module, or module:factory."""


class DDPGConfig(Config):
    """Hyper-parameters of DDPG: those of TD3, with its three additions turned off."""

    num_critics: int = static(1, low=1)
    """Critics; the smallest of their values is the target's."""
    policy_delay: int = static(1, low=1)
    """Steps of the critics for one of the actor and of the target networks."""
    target_noise: float = traced(0.0, low=0)
    """Deviation of the noise on the target's action, in half widths of the space."""


class Agent(types.Agent, kw_only=True):
    """All that the policy artefact holds: dicts of "actor" and "critics"."""

    target_params: PyTree


def validate(config: Config, env: Env, name: str) -> None:
    checks.continuous_control(name, config, env)
    off_policy.check(config, env)


def policy(
    config: Config, env: Env, agent: Agent, obs: PyTree
) -> tuple[Array, dict[str, Array]]:
    """μ(s) in [-1, 1], and its value."""
    action: Any = networks.deterministic_actor(config, env).apply(
        agent.params["actor"], obs
    )
    q: Any = networks.critics(config, env).apply(agent.params["critics"], obs, action)
    return action, {"value": q.min(0)}


def explore(
    config: Config, action: Array, memory: Memory, noise: Array
) -> tuple[Array, Memory]:
    """The action with exploration noise, and the state of that noise."""
    if config.noise == "normal":
        return action + config.noise_std * noise, memory
    memory = exploration.ornstein_uhlenbeck(
        memory, noise, config.noise_std, config.noise_rate, config.noise_dt
    )
    return action + memory, memory


acts = acting.deterministic(policy, explore)


def init_memory(config: Config, env: Env, num_envs: int) -> Memory:
    """The state of correlated noise at the start of an episode, zeros `[N, D]`."""
    if config.noise == "normal":
        return ()
    return jnp.zeros((num_envs, env.action_space.size))


def init(config: Config, env: Env, key: Array) -> State:
    """Networks, and a memory filled with `learning_starts` random steps."""
    key_actor, key_critics, key_world = jax.random.split(key, 3)
    params = {
        "actor": networks.init(networks.deterministic_actor(config, env), key_actor),
        "critics": networks.init(networks.critics(config, env), key_critics),
    }
    agent = Agent(
        params=params,
        opt_state=off_policy.init_optimizers(params),
        target_params=params,
    )
    memory = init_memory(config, env, config.num_envs)
    return off_policy.init(
        config, env, agent, key_world, acting.unroll_randomly, memory
    )


class Learner(NamedTuple):
    """What the gradient steps change, as vectors."""

    actor: optim.Fitted
    critics: optim.Fitted
    target_actor: Array
    target_critics: Array


def critic_target(
    config: Config, env: Env, target: dict[str, PyTree], batch: Stored, noise: Array
) -> Array:
    """y `[B]`, from the target networks."""
    action: Any = networks.deterministic_actor(config, env).apply(
        target["actor"], batch.next_obs
    )
    action = action + exploration.smoothing_noise(
        noise, config.target_noise, config.target_noise_clip
    )
    q: Any = networks.critics(config, env).apply(
        target["critics"], batch.next_obs, jnp.clip(action, -1.0, 1.0)
    )
    value = estimators.subset_minimum(q, None, config.num_critics)
    return losses.q_target(batch.reward, batch.terminated, value, config.gamma)


def update(
    config: Config,
    env: Env,
    agent: Agent,
    batches: types.Batches,
    key: Array,
    learning_rate: types.Scalar,
) -> tuple[Agent, Metrics]:
    """Gradient steps of the critics on all batches, and those of the actor among them."""
    actor_net = networks.deterministic_actor(config, env)
    critic_net = networks.critics(config, env)
    first_critic = networks.critics(config.replace(num_critics=1), env)
    optimizer = off_policy.optimizer()
    actor, actor_of = off_policy.fitted(agent, "actor")
    critics, critics_of = off_policy.fitted(agent, "critics")

    def critic_step(
        learner: Learner, batch: Stored, noise: Array
    ) -> tuple[Learner, Metrics]:
        target_params = {
            "actor": actor_of(learner.target_actor),
            "critics": critics_of(learner.target_critics),
        }
        target = critic_target(config, env, target_params, batch, noise)
        action = spaces.to_unit(env.action_space, batch.action)

        def loss(vector: Array) -> tuple[Array, tuple[Array, Array]]:
            q: Any = critic_net.apply(critics_of(vector), batch.obs, action)
            error = losses.squared_td(q, jnp.broadcast_to(target, q.shape))
            return error.sum(0).mean(), (error, q)

        critics, (error, q), norm = optim.step(
            loss, learner.critics, optimizer, learning_rate
        )
        metrics = {
            "loss/critic": mean(error),
            "value/q": mean(q),
            "optim/critic_grad_norm": mean(norm),
        }
        return learner._replace(critics=critics), metrics

    def actor_step(
        learner: Learner, batch: Stored, noise: Array
    ) -> tuple[Learner, Metrics]:
        del noise
        params = jax.tree.map(lambda x: x[:1], critics_of(learner.critics.vector))

        def loss(vector: Array) -> tuple[Array, tuple[Array, Array]]:
            action: Any = actor_net.apply(actor_of(vector), batch.obs)
            q: Any = first_critic.apply(params, batch.obs, action)
            loss = losses.deterministic_policy(q[0])
            return loss.mean(), (loss, action)

        actor, (policy_loss, action), norm = optim.step(
            loss, learner.actor, optimizer, learning_rate
        )
        learner = learner._replace(
            actor=actor,
            target_actor=optim.polyak(learner.target_actor, actor.vector, config.tau),
            target_critics=optim.polyak(
                learner.target_critics, learner.critics.vector, config.tau
            ),
        )
        metrics = {
            "loss/policy": mean(policy_loss),
            "policy/saturation": mean(jnp.abs(action) > 0.99),
            "optim/actor_grad_norm": mean(norm),
        }
        return learner, metrics

    targets = [optim.flat(agent.target_params[x])[0] for x in ("actor", "critics")]
    noise = jax.random.normal(key, (*batches.index.shape, env.action_space.size))
    learner, metrics = off_policy.alternate(
        config,
        batches,
        noise,
        Learner(actor, critics, *targets),
        critic_step,
        actor_step,
    )
    of = {"actor": actor_of, "critics": critics_of}
    new = Agent(
        params={x: of[x](getattr(learner, x).vector) for x in of},
        opt_state={x: getattr(learner, x).opt_state for x in of},
        target_params={x: of[x](getattr(learner, f"target_{x}")) for x in of},
    )
    return new, metrics


def train_step(config: Config, env: Env, state: State) -> tuple[State, Metrics]:
    """Steps of every environment, and the updates that are due."""
    return off_policy.train_step(config, env, state, acts, update)


TD3 = types.Algorithm(
    name="td3",
    Config=Config,
    init=init,
    train_step=train_step,
    act=acts.act,
    explain=acts.explain,
    plan=off_policy.plan,
    validate=partial(validate, name="td3"),
    init_memory=init_memory,
)

DDPG = TD3._replace(
    name="ddpg", Config=DDPGConfig, validate=partial(validate, name="ddpg")
)
