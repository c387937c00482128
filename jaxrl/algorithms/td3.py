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
4. The actor follows the first critic alone (or the mean: `critics.follows_mean`), after
   every `policy_delay` steps of the critics, and the target networks follow then too.
5. A train step makes whole numbers of actor steps, so no branch is in the loop.
6. Correlated noise starts at 0 in every episode: its state is the world's memory.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import acting, exploration, losses, networks, normalize, types
from jaxrl.algorithms import bellman, critics, learning, off_policy
from jaxrl.algorithms.critics import Agent
from jaxrl.algorithms.learning import Learner
from jaxrl.algorithms.off_policy import State
from jaxrl.errors import require
from jaxrl.networks import batch_renorm
from jaxrl.replay.transitions import Batch
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


class Config(critics.Config):
    """Hyper-parameters of TD3; the defaults are those of SB3 RL Zoo for Pendulum."""

    policy_delay: int = static(2, low=1)
    """Steps of the critics for one of the policy and of the target networks."""
    target_noise: float = traced(0.2, low=0)
    """Deviation of the noise on the target's action, in half widths of the space."""
    target_noise_clip: float = traced(0.5, low=0)
    """Bound of that noise, likewise."""
    noise: Literal["normal", "ornstein_uhlenbeck"] = static("normal")
    """Exploration: independent at each step, or correlated within an episode."""
    noise_std: float = traced(0.1, low=0)
    """Scale of the exploration noise, in half widths of the space."""
    noise_std_last: float | None = traced(None, low=0)
    """That of the last environment, where `noise_std` is the first's and those between lie
    on a line; none: all have `noise_std`."""
    noise_rate: float = traced(0.15, low=0)
    """Of correlated noise: how fast it returns to 0, per unit of time."""
    noise_dt: float = traced(0.01, above=0)
    """Of correlated noise: units of time in a step."""


class DDPGConfig(Config):
    """Hyper-parameters of DDPG: those of TD3, with its three additions turned off."""

    num_critics: int = static(1, low=1)
    """Critics in the ensemble."""
    target_subset: int = static(1, low=1)
    """Critics, drawn at each step, whose smallest value is the target's."""
    policy_delay: int = static(1, low=1)
    """Steps of the critics for one of the policy and of the target networks."""
    target_noise: float = traced(0.0, low=0)
    """Deviation of the noise on the target's action, in half widths of the space."""


def validate(name: str, config: Config, env: Env) -> None:
    critics.validate(name, config, env)
    require(
        config.noise_std_last is None or config.num_envs > 1,
        f"noise_std_last = {config.noise_std_last} is of the last of several environments, "
        f"and num_envs = {config.num_envs}: leave it at none.",
    )


def policy(
    config: Config, env: Env, agent: Agent, obs: PyTree
) -> tuple[Array, dict[str, Array]]:
    """μ(s) in [-1, 1], and its value."""
    stats = agent.obs_stats
    net = networks.deterministic_actor(config, env)
    action: Any = net.apply(agent.params["actor"], obs, stats)
    q = critics.values(config, env, agent.params["critics"], stats, obs, action, None)
    return action, {"value": critics.policy_value(config, q)}


def explore(
    config: Config, action: Array, memory: Memory, noise: Array
) -> tuple[Array, Memory]:
    """The action with exploration noise, and the state of that noise."""
    std = exploration.spread(config.noise_std, config.noise_std_last, len(action))
    if config.noise == "normal":
        return action + std * noise, memory
    memory = exploration.ornstein_uhlenbeck(
        memory, noise, std, config.noise_rate, config.noise_dt
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
    agent = critics.init_agent(config, env, params, targets=tuple(params))
    memory = init_memory(config, env, config.num_envs)
    return off_policy.init(
        config, env, agent, key_world, acting.unroll_randomly, memory
    )


class Draw(NamedTuple):
    """The randomness of a critics' step."""

    smoothing: Array  # [B, D], standard normal
    subset: Array  # key
    dropout: Array  # keys [2], of target and critics


def target_action(
    config: Config,
    env: Env,
    actor: PyTree,
    stats: normalize.RunningStats | None,
    obs: PyTree,
    noise: Array,
) -> Array:
    """ã in [-1, 1] of the target actor, from standard normal noise `[B, D]`."""
    net = networks.deterministic_actor(config, env)
    action: Any = net.apply(actor, obs, stats)
    action = action + exploration.smoothing_noise(
        noise, config.target_noise, config.target_noise_clip
    )
    return jnp.clip(action, -1.0, 1.0)


def actor_loss(
    params: PyTree,
    config: Config,
    env: Env,
    of_critics: PyTree,
    stats: normalize.RunningStats | None,
    obs: PyTree,
    key: Array,
) -> tuple[Array, tuple[Array, Array, PyTree]]:
    """-Q(s, μ(s)) of the first critic, which alone is computed, or of the mean of all."""
    net = networks.deterministic_actor(config, env)
    action, statistics = batch_renorm.apply(net, params, obs, stats, training=True)
    if critics.follows_mean(config):
        q = critics.values(config, env, of_critics, stats, obs, action, key)
        value = critics.policy_value(config, q)
    else:
        first = jax.tree.map(lambda x: x[:1], of_critics)
        at = obs, action, key
        value = critics.values(config, env, first, stats, *at, num_critics=1)[0]
    loss = losses.deterministic_policy(value)
    return loss.mean(), (loss, action, statistics)


def update(
    config: Config,
    env: Env,
    agent: Agent,
    batches: types.Batches,
    key: Array,
    rates: dict[str, types.Scalar],
) -> tuple[Agent, Metrics]:
    """Gradient steps of the critics on all batches, and those of the actor among them."""
    stats = agent.obs_stats

    def critic_step(
        learner: Learner, batch: Batch, draw: Draw
    ) -> tuple[Learner, Metrics]:
        actor = (learner.params | learner.target_params)["actor"]
        at = actor, stats, batch.next_obs, draw.smoothing
        action = target_action(config, env, *at)
        value = partial(critics.target_value, config, key=draw.subset)
        given = batch, action, value, draw.dropout, rates
        return bellman.step(config, env, learner, stats, *given)

    def actor_step(
        learner: Learner, batch: Batch, key: Array
    ) -> tuple[Learner, Metrics]:
        at = config, env, learner.params["critics"], stats, batch.obs, key
        learner, (loss, action, statistics), norm = learning.step(
            learner,
            "actor",
            lambda params: actor_loss(params, *at),
            rates,
            critics.momentum(config),
        )
        learner = learner.with_statistics("actor", statistics)
        metrics = {
            "loss/policy": mean(loss),
            "policy/saturation": mean(jnp.abs(action) > 0.99),
            "optim/actor_grad_norm": mean(norm),
        }
        return learning.follow(learner, config.tau), metrics

    draws = draw_all(config, env, key)
    return learning.take_turns(agent, batches, draws, critic_step, actor_step)


def draw_all(config: Config, env: Env, key: Array) -> tuple[Draw, Array]:
    """The randomness of all steps of the critics, and the keys of the actor's."""
    count, size = off_policy.plan(config, env).updates, config.batch_size
    key_noise, key_subset, key_dropout, key_actor = jax.random.split(key, 4)
    of_critics = Draw(
        jax.random.normal(key_noise, (count, size, env.action_space.size)),
        jax.random.split(key_subset, count),
        jax.random.split(key_dropout, (count, 2)),
    )
    return of_critics, jax.random.split(key_actor, count // config.policy_delay)


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
    validate=partial(validate, "td3"),
    init_memory=init_memory,
)

DDPG = TD3._replace(name="ddpg", Config=DDPGConfig, validate=partial(validate, "ddpg"))
