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

from jaxrl import acting, exploration, losses, networks, normalize, optim, types
from jaxrl.algorithms import critics, off_policy
from jaxrl.algorithms.critics import Agent
from jaxrl.algorithms.off_policy import State
from jaxrl.replay.transitions import Batch
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


class Config(critics.Config):
    """Hyper-parameters of TD3. The defaults are those of the Pendulum benchmark row."""

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
        obs_stats=networks.init_stats(config, env),
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


class Draws(NamedTuple):
    """The randomness of a gradient step."""

    smoothing: Array  # [B, D], standard normal
    subset: Array  # key
    dropout: Array  # keys [3], of target, critics and policy


def critic_target(
    config: Config,
    env: Env,
    params: dict[str, PyTree],
    stats: normalize.RunningStats | None,
    batch: Batch,
    draws: Draws,
) -> Array:
    """y, from the target networks and a smoothed action."""
    net = networks.deterministic_actor(config, env)
    action: Any = net.apply(params["actor"], batch.next_obs, stats)
    action = action + exploration.smoothing_noise(
        draws.smoothing, config.target_noise, config.target_noise_clip
    )
    action = jnp.clip(action, -1.0, 1.0)
    ask = partial(critics.values, config, env, params["critics"], stats)
    q = ask(batch.next_obs, action, draws.dropout[0])
    return critics.target(batch, critics.target_value(config, q, draws.subset))


def update(
    config: Config,
    env: Env,
    agent: Agent,
    batches: types.Batches,
    key: Array,
    learning_rate: types.Scalar,
) -> tuple[Agent, Metrics]:
    """Gradient steps of the critics on all batches, and those of the actor among them."""
    stats = agent.obs_stats
    net = networks.deterministic_actor(config, env)
    optimizer = off_policy.optimizer()
    fitted, tree = off_policy.fitted(agent)

    def critic_step(
        learner: Learner, batch: Batch, draws: Draws
    ) -> tuple[Learner, Metrics]:
        target_params = {
            "actor": tree["actor"](learner.target_actor),
            "critics": tree["critics"](learner.target_critics),
        }
        target = critic_target(config, env, target_params, stats, batch, draws)
        fitted, metrics = critics.step(
            config,
            env,
            learner.critics,
            tree["critics"],
            stats,
            batch,
            target,
            draws.dropout[1],
            learning_rate,
        )
        return learner._replace(critics=fitted), metrics

    def actor_step(
        learner: Learner, batch: Batch, draws: Draws
    ) -> tuple[Learner, Metrics]:
        one, params = first_critic(config, tree["critics"](learner.critics.vector))

        def loss(vector: Array) -> tuple[Array, tuple[Array, Array]]:
            action: Any = net.apply(tree["actor"](vector), batch.obs, stats)
            q = critics.values(
                one, env, params, stats, batch.obs, action, draws.dropout[2]
            )
            loss = losses.deterministic_policy(critics.policy_value(one, q))
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

    learner, metrics = off_policy.alternate(
        config,
        batches,
        draw(config, env, key),
        Learner(
            **fitted,
            target_actor=optim.flat(agent.target_params["actor"])[0],
            target_critics=optim.flat(agent.target_params["critics"])[0],
        ),
        critic_step,
        actor_step,
    )
    targets = {x: tree[x](getattr(learner, f"target_{x}")) for x in tree}
    return off_policy.refit(agent, learner, tree, targets), metrics


def first_critic(config: Config, params: PyTree) -> tuple[Config, PyTree]:
    """What the policy follows: the first critic alone, unless it is the mean of all."""
    if critics.follows_mean(config):
        return config, params
    one = config.replace(num_critics=1, target_subset=1)
    return one, jax.tree.map(lambda x: x[:1], params)


def draw(config: Config, env: Env, key: Array) -> Draws:
    """The randomness of all gradient steps of a train step."""
    shape = off_policy.plan(config, env).updates, config.batch_size
    key_noise, key_subset, key_dropout = jax.random.split(key, 3)
    return Draws(
        jax.random.normal(key_noise, (*shape, env.action_space.size)),
        jax.random.split(key_subset, shape[0]),
        jax.random.split(key_dropout, (shape[0], 3)),
    )


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
    validate=partial(critics.validate, "td3"),
    init_memory=init_memory,
)

DDPG = TD3._replace(
    name="ddpg", Config=DDPGConfig, validate=partial(critics.validate, "ddpg")
)
