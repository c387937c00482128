"""Soft Actor-Critic (Haarnoja et al., 2018, arXiv:1801.01290 and arXiv:1812.05905).

A stochastic policy from replay, for reward plus α times the policy's entropy:

    V(s) = E[min_k Q_k(s, a) - α log π(a|s)],    a ~ π

The critics learn r + γ V'(s'), the policy climbs V through the sampled action, and α
follows the entropy wanted. Bounded continuous actions, squashed by tanh; for Discrete ones
(Christodoulou, 2019, arXiv:1910.07207) the expectation is a sum, also with a mask. More
critics with a random subset in the target are REDQ (Chen et al., 2021, arXiv:2101.05982).

The details that matter, in the order of the code:

1. log π is that of actions scaled to [-1, 1], so temperature and target entropy mean the
   same whatever the bounds; the memory and the environment have the environment's units.
2. log π comes from the sample before tanh. Its inverse is infinite where tanh saturates.
3. Only a *terminal* successor has no value; the entropy of its action goes with it.
4. α is the exponential of what is learned, and learned from the same samples as the actor.
5. The target networks follow every step; the actor and α learn after every
   `policy_delay` steps of the critics.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import acting, estimators, losses, networks, normalize, optim, spaces, types
from jaxrl.algorithms import critics, off_policy
from jaxrl.algorithms.critics import Agent
from jaxrl.algorithms.off_policy import State
from jaxrl.replay.transitions import Batch
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


class Config(critics.Config):
    """Hyper-parameters of SAC. The defaults are those of the Pendulum benchmark row."""

    gamma: float = traced(0.99, low=0, high=1)
    """Discount factor per environment step."""
    temperature: float = traced(1.0, above=0)
    """α, at the start; for good without `learn_temperature`."""
    learn_temperature: bool = static(True)
    """Whether α follows the entropy of the policy."""
    target_entropy: float | None = traced(None)
    """H̄ of actions in [-1, 1], in nats; none: -D, or half of log A of (legal) Discrete
    ones."""


def distribution(
    config: Config,
    env: Env,
    actor: PyTree,
    stats: normalize.RunningStats | None,
    obs: PyTree,
    space: spaces.Box | spaces.Discrete,
) -> Any:
    """π(·|s) of an actor's parameters, of actions in `space`."""
    params: Any = networks.spread_actor(config, env).apply(actor, obs, stats)
    mask = networks.action_mask(env.observation_space, obs)
    return networks.policy_distribution(space, params, mask, squash=True)


def policy(
    config: Config, env: Env, agent: Agent, obs: PyTree, memory: Memory
) -> tuple[Any, Memory, dict[str, Array]]:
    """π(·|s) in the environment's units, and the value of its mode."""
    params, stats = agent.params, agent.obs_stats
    pi = distribution(config, env, params["actor"], stats, obs, env.action_space)
    q = critics.values_taken(
        config, env, params["critics"], stats, obs, pi.mode(), None
    )
    return pi, memory, {"value": critics.policy_value(config, q)}


acts = acting.stochastic(policy)


def init(config: Config, env: Env, key: Array) -> State:
    """Networks, and a memory filled with `learning_starts` random steps."""
    key_actor, key_critics, key_world = jax.random.split(key, 3)
    params = {
        "actor": networks.init(networks.spread_actor(config, env), key_actor),
        "critics": networks.init(networks.critics(config, env), key_critics),
        "temperature": jnp.log(jnp.asarray(config.temperature, jnp.float32)),
    }
    agent = Agent(
        params=params,
        opt_state=off_policy.init_optimizers(params),
        target_params=params["critics"],
        obs_stats=networks.init_stats(config, env),
    )
    return off_policy.init(config, env, agent, key_world, acting.unroll_randomly)


def target_entropy(config: Config, env: Env, obs: PyTree) -> types.Scalar:
    """H̄: -D of a Box (Haarnoja et al., 2018, appendix D).

    Of Discrete actions half of the logarithm of their number, of the legal ones `[B]`
    where there is a mask: of all of them it might be more than any policy has.
    """
    if config.target_entropy is not None:
        return config.target_entropy
    if isinstance(env.action_space, spaces.Box):
        return -float(env.action_space.size)
    mask = networks.action_mask(env.observation_space, obs)
    if mask is None:
        return 0.5 * float(np.log(env.action_space.n))
    return 0.5 * jnp.log(mask.sum(-1).astype(jnp.float32))


LEAST = -1e4
"""The logarithm of an illegal action's probability, which is 0 anyway; with less, α times
it would swallow the values of the others."""


class Learner(NamedTuple):
    """What the gradient steps change, as vectors."""

    actor: optim.Fitted
    critics: optim.Fitted
    temperature: optim.Fitted
    target_critics: Array


class Draws(NamedTuple):
    """The randomness of a gradient step."""

    next_action: Array  # [B, D], standard normal; D = 0 for Discrete actions
    action: Array
    subset: Array  # key
    dropout: Array  # keys [3], of target, critics and policy


def soft_value(
    config: Config,
    env: Env,
    params: dict[str, PyTree],
    stats: normalize.RunningStats | None,
    obs: PyTree,
    draw: tuple[Array, Array],
    combine: Callable[[Array], Array],
) -> tuple[Array, Array]:
    """V(s) `[B]` or its quantiles `[B, M']`, and log π of the sample `[B]`.

    Of Discrete actions both are sums over all.

    Args:
      config: of the algorithm.
      env: the environment.
      params: "actor", "critics" and "temperature", the last as log α.
      stats: of observations.
      obs: `[B, ...]`.
      draw: standard normal noise `[B, D]` of the sample, and the key of the dropout.
      combine: makes one value of those of all critics.
    """
    noise, dropout = draw
    alpha = jnp.exp(params["temperature"])
    space = env.action_space
    if isinstance(space, spaces.Box):
        space = spaces.box(-1.0, 1.0, space.shape)
    pi = distribution(config, env, params["actor"], stats, obs, space)
    ask = partial(critics.values, config, env, params["critics"], stats, obs)
    if isinstance(space, spaces.Discrete):
        log_prob = jnp.maximum(pi.logits, LEAST)
        value = estimators.soft_value(combine(ask(None, dropout)), log_prob, alpha)
        return (
            estimators.expected_value(value, pi.probs),
            estimators.expected_value(log_prob, pi.probs),
        )
    sample = pi.pre_tanh(noise)
    log_prob = pi.log_prob(sample)
    q = combine(ask(pi.squash(sample), dropout))
    of_each = log_prob if q.ndim == 1 else jnp.broadcast_to(log_prob[:, None], q.shape)
    return estimators.soft_value(q, of_each, alpha), log_prob


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
    optimizer = off_policy.optimizer()
    fitted, tree = off_policy.fitted(agent)

    def params_of(learner: Learner) -> dict[str, PyTree]:
        return {name: tree[name](getattr(learner, name).vector) for name in tree}

    def critic_step(
        learner: Learner, batch: Batch, draws: Draws
    ) -> tuple[Learner, Metrics]:
        value, _ = soft_value(
            config,
            env,
            params_of(learner) | {"critics": tree["critics"](learner.target_critics)},
            stats,
            batch.next_obs,
            (draws.next_action, draws.dropout[0]),
            lambda q: critics.target_value(config, q, draws.subset),
        )
        fitted, metrics = critics.step(
            config,
            env,
            learner.critics,
            tree["critics"],
            stats,
            batch,
            critics.target(batch, value),
            draws.dropout[1],
            learning_rate,
        )
        target_critics = optim.polyak(learner.target_critics, fitted.vector, config.tau)
        learner = learner._replace(critics=fitted, target_critics=target_critics)
        return learner, metrics

    def actor_step(
        learner: Learner, batch: Batch, draws: Draws
    ) -> tuple[Learner, Metrics]:
        params = params_of(learner)

        def loss(vector: Array) -> tuple[Array, tuple[Array, Array]]:
            value, log_prob = soft_value(
                config,
                env,
                params | {"actor": tree["actor"](vector)},
                stats,
                batch.obs,
                (draws.action, draws.dropout[2]),
                partial(critics.policy_value, config),
            )
            return -value.mean(), (value, log_prob)

        actor, (value, log_prob), norm = optim.step(
            loss, learner.actor, optimizer, learning_rate
        )
        learner = learner._replace(actor=actor)
        metrics = {
            "loss/policy": mean(-value),
            "policy/entropy": mean(-log_prob),
            "policy/temperature": mean(jnp.exp(params["temperature"])),
            "optim/actor_grad_norm": mean(norm),
        }
        if config.learn_temperature:
            wanted = target_entropy(config, env, batch.obs)
            learner = temperature_step(learner, log_prob, wanted)
        return learner, metrics

    def temperature_step(
        learner: Learner, log_prob: Array, wanted: types.Scalar
    ) -> Learner:
        def loss(vector: Array) -> tuple[Array, tuple]:
            log_alpha = tree["temperature"](vector)
            return losses.temperature(log_alpha, log_prob, wanted).mean(), ()

        fitted, _, _ = optim.step(loss, learner.temperature, optimizer, learning_rate)
        return learner._replace(temperature=fitted)

    learner, metrics = off_policy.alternate(
        config,
        batches,
        draw(config, env, key),
        Learner(**fitted, target_critics=optim.flat(agent.target_params)[0]),
        critic_step,
        actor_step,
    )
    targets = tree["critics"](learner.target_critics)
    return off_policy.refit(agent, learner, tree, targets), metrics


def draw(config: Config, env: Env, key: Array) -> Draws:
    """The randomness of all gradient steps of a train step."""
    shape = off_policy.plan(config, env).updates, config.batch_size
    key_next, key_now, key_subset, key_dropout = jax.random.split(key, 4)
    size = 0 if isinstance(env.action_space, spaces.Discrete) else env.action_space.size
    return Draws(
        jax.random.normal(key_next, (*shape, size)),
        jax.random.normal(key_now, (*shape, size)),
        jax.random.split(key_subset, shape[0]),
        jax.random.split(key_dropout, (shape[0], 3)),
    )


def train_step(config: Config, env: Env, state: State) -> tuple[State, Metrics]:
    """Steps of every environment, and the updates that are due."""
    return off_policy.train_step(config, env, state, acts, update)


SAC = types.Algorithm(
    name="sac",
    Config=Config,
    init=init,
    train_step=train_step,
    act=acts.act,
    explain=acts.explain,
    plan=off_policy.plan,
    validate=partial(critics.validate, "sac", discrete=True),
)
