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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import (
    acting,
    estimators,
    losses,
    networks,
    normalize,
    optim,
    spaces,
    types,
)
from jaxrl.algorithms import bellman, critics, gsde, learning, off_policy
from jaxrl.algorithms.critics import Agent
from jaxrl.algorithms.learning import Learner
from jaxrl.algorithms.off_policy import State
from jaxrl.errors import require
from jaxrl.networks import batch_renorm
from jaxrl.replay.transitions import Batch
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


class Config(critics.Config):
    """Hyper-parameters of SAC."""

    gamma: float = traced(0.99, low=0, high=1)
    """Discount factor per environment step."""
    temperature: float = traced(1.0, above=0)
    """α, at the start; for good without `learn_temperature` and `temperature_end`."""
    learn_temperature: bool = static(True)
    """Whether α follows the entropy of the policy."""
    temperature_end: float | None = traced(None, above=0)
    """α at `total_steps`, reached linearly, without `learn_temperature`; none: constant."""
    temperature_learning_rate: float | None = traced(None, low=0)
    """Adam's step size of log α; none: `learning_rate`."""
    target_entropy: float | None = traced(None)
    """H̄ of actions in [-1, 1], in nats; none: -D, or half of log A of (legal) Discrete
    ones."""
    noise: networks.Noise = static("normal")
    """Exploration: independent at each step, or a random linear function of the policy's
    last features, gSDE."""
    noise_interval: int = static(8, low=0)
    """Of state-dependent noise: steps after which another function is drawn; 0: only where
    an episode begins."""
    noise_log_std: float = traced(-3.0, low=-20, high=2)
    """Of state-dependent noise: log σ of the function's weights, at the start."""
    noise_learns_features: bool = static(False)
    """Of state-dependent noise: whether a gradient reaches the features through it."""


def distribution(
    config: Config,
    env: Env,
    actor: PyTree,
    stats: normalize.RunningStats | None,
    obs: PyTree,
    space: spaces.Box | spaces.Discrete,
    training: bool = False,
) -> tuple[Any, PyTree]:
    """π(·|s) of an actor's parameters, of actions in `space`; its running statistics."""
    net = networks.spread_actor(config, env)
    params, statistics = batch_renorm.apply(net, actor, obs, stats, training=training)
    mask = networks.action_mask(env.observation_space, obs)
    pi = networks.policy_distribution(space, params, mask, squash=True)
    return pi, statistics


def policy(
    config: Config, env: Env, agent: Agent, obs: PyTree, memory: Memory
) -> tuple[Any, Memory, dict[str, Array]]:
    """π(·|s) in the environment's units, and the value of its mode."""
    params, stats = agent.params, agent.obs_stats
    pi, _ = distribution(config, env, params["actor"], stats, obs, env.action_space)
    q = critics.values_taken(
        config, env, params["critics"], stats, obs, pi.mode(), None
    )
    return pi, memory, {"value": critics.policy_value(config, q)}


acts = acting.stochastic(policy, draw=gsde.draw_noise, explore=gsde.explore)


def init(config: Config, env: Env, key: Array) -> State:
    """Networks, and a memory filled with `learning_starts` random steps."""
    key_actor, key_critics, key_world = jax.random.split(key, 3)
    params = {
        "actor": networks.init(networks.spread_actor(config, env), key_actor),
        "critics": networks.init(networks.critics(config, env), key_critics),
        "log_temperature": jnp.log(jnp.asarray(config.temperature, jnp.float32)),
    }
    agent = critics.init_agent(config, env, params, targets=("critics",))
    memory = gsde.init_memory(config, env, config.num_envs)
    return off_policy.init(
        config, env, agent, key_world, acting.unroll_randomly, memory
    )


def target_entropy(config: Config, env: Env, obs: PyTree) -> types.Scalar:
    """H̄: -D of a Box (Haarnoja et al., 2018, appendix D).

    Of Discrete actions half of the logarithm of their number (Christodoulou, 2019, has
    0.98 of it), of the legal ones `[B]` where there is a mask: of all of them it might be
    more than any policy has.
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


class Draw(NamedTuple):
    """The randomness of a critics' step."""

    action: Array  # [B, D], standard normal; D = 0 for Discrete actions
    subset: Array  # key
    dropout: Array  # keys [2], of target and critics


class ActorDraw(NamedTuple):
    """The randomness of an actor's step."""

    action: Array  # as above
    dropout: Array  # key


def temperature(config: Config, params: dict[str, PyTree]) -> Array:
    """α: what is learned, or the config's."""
    if not config.learn_temperature:
        return jnp.asarray(config.temperature, jnp.float32)
    return jnp.exp(params["log_temperature"])


class Sample(NamedTuple):
    """An action of every state, or what is known of all of them."""

    action: Array | None  # [B, D] in [-1, 1]; None: all of a Discrete space
    log_prob: Array  # log π of it [B], or of all [B, A]
    probs: Array | None  # π of all [B, A]
    statistics: PyTree  # running ones of the actor, afterwards


def sample(
    config: Config,
    env: Env,
    actor: PyTree,
    stats: normalize.RunningStats | None,
    obs: PyTree,
    noise: Array,
    training: bool = False,
) -> Sample:
    """What the policy does in states `[B, ...]`, from standard normal noise `[B, D]`."""
    space = env.action_space
    if isinstance(space, spaces.Box):
        space = spaces.box(-1.0, 1.0, space.shape)
    pi, statistics = distribution(config, env, actor, stats, obs, space, training)
    if isinstance(space, spaces.Discrete):
        log_prob = jnp.maximum(pi.logits, LEAST)
        return Sample(None, log_prob, pi.probs, statistics)
    x = pi.pre_tanh(noise)
    return Sample(pi.squash(x), pi.log_prob(x), None, statistics)


def soft_value(found: Sample, q: Array, alpha: types.Scalar) -> Array:
    """V(s) = E[Q(s, a) - α log π(a|s)], by a sample or, of Discrete actions, exactly.

    Args:
      found: the actions and their probabilities.
      q: of the action `[B]`, its quantiles `[B, M']`, or of all actions `[B, A]`.
      alpha: α.

    Returns:
      `[B]`, or its quantiles `[B, M']`.
    """
    log_prob = found.log_prob
    if found.probs is not None:
        value = estimators.soft_value(q, log_prob, alpha)
        return estimators.expected_value(value, found.probs)
    of_each = log_prob if q.ndim == 1 else jnp.broadcast_to(log_prob[:, None], q.shape)
    return estimators.soft_value(q, of_each, alpha)


def mean_log_prob(found: Sample) -> Array:
    """E[log π(a|s)] `[B]`, by the sample or exactly."""
    if found.probs is None:
        return found.log_prob
    return estimators.expected_value(found.log_prob, found.probs)


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
        params = learner.params  # the actor has no target
        at = params["actor"], stats, batch.next_obs, draw.action
        found, alpha = sample(config, env, *at), temperature(config, params)

        def value(q: Array) -> Array:
            return soft_value(
                found, critics.target_value(config, q, draw.subset), alpha
            )

        given = batch, found.action, value, draw.dropout, rates
        learner, metrics = bellman.step(config, env, learner, stats, *given)
        return learning.follow(learner, config.tau), metrics

    def actor_step(
        learner: Learner, batch: Batch, draw: ActorDraw
    ) -> tuple[Learner, Metrics]:
        params = learner.params
        alpha = temperature(config, params)

        def loss(actor: PyTree) -> tuple[Array, tuple[Array, Sample]]:
            at = actor, stats, batch.obs, draw.action
            found = sample(config, env, *at, training=True)
            asked = params["critics"], stats, batch.obs, found.action, draw.dropout
            q = critics.policy_value(config, critics.values(config, env, *asked))
            value = soft_value(found, q, alpha)
            return -value.mean(), (value, found)

        momentum = critics.momentum(config)
        learner, (value, found), norm = learning.step(
            learner, "actor", loss, rates, momentum
        )
        learner = learner.with_statistics("actor", found.statistics)
        log_prob = mean_log_prob(found)
        metrics = {
            "loss/policy": mean(-value),
            "policy/entropy": mean(-log_prob),
            "policy/temperature": mean(alpha),
            "optim/actor_grad_norm": mean(norm),
        }
        if found.action is not None:
            metrics["policy/saturation"] = mean(jnp.abs(found.action) > 0.99)
        return temperature_step(learner, batch, log_prob), metrics

    def temperature_step(learner: Learner, batch: Batch, log_prob: Array) -> Learner:
        if not config.learn_temperature:
            return learner
        wanted = target_entropy(config, env, batch.obs)

        def loss(log_alpha: Array) -> tuple[Array, tuple]:
            return losses.temperature(log_alpha, log_prob, wanted).mean(), ()

        return learning.step(learner, "log_temperature", loss, rates)[0]

    draws = draw_all(config, env, key)
    return learning.take_turns(agent, batches, draws, critic_step, actor_step)


def draw_all(config: Config, env: Env, key: Array) -> tuple[Draw, ActorDraw]:
    """The randomness of all steps of the critics, and of the actor's."""
    count, size = off_policy.plan(config, env).updates, config.batch_size
    turns = count // config.policy_delay
    dims = 0 if isinstance(env.action_space, spaces.Discrete) else env.action_space.size
    keys = jax.random.split(key, 5)
    of_critics = Draw(
        jax.random.normal(keys[0], (count, size, dims)),
        jax.random.split(keys[1], count),
        jax.random.split(keys[2], (count, 2)),
    )
    of_actor = ActorDraw(
        jax.random.normal(keys[3], (turns, size, dims)),
        jax.random.split(keys[4], turns),
    )
    return of_critics, of_actor


def scheduled_temperature(config: Config, env_steps: types.Counter) -> types.Scalar:
    """The temperature that is not learned, after so many environment steps."""
    if config.temperature_end is None:
        return config.temperature
    done = optim.progress(env_steps, config.total_steps)
    return optim.linear_schedule(config.temperature, config.temperature_end, done)


def train_step(config: Config, env: Env, state: State) -> tuple[State, Metrics]:
    """Steps of every environment, and the updates that are due."""
    now = scheduled_temperature(config, state.world.env_steps)
    config = config.replace(temperature=now)
    return off_policy.train_step(config, env, state, acts, update)


def validate(config: Config, env: Env) -> None:
    """The demands of SAC on its config, and on the environment."""
    critics.validate("sac", config, env, discrete=True)
    gsde.check(config, env)
    require(
        config.temperature_end is None or not config.learn_temperature,
        f"temperature_end = {config.temperature_end} needs learn_temperature = False, "
        f"which leaves the temperature to a schedule.",
    )


SAC = types.Algorithm(
    name="sac",
    Config=Config,
    init=init,
    train_step=train_step,
    act=acts.act,
    explain=acts.explain,
    plan=off_policy.plan,
    validate=validate,
    init_memory=gsde.init_memory,
)
