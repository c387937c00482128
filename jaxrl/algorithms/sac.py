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

from jaxrl import acting, estimators, losses, networks, normalize, spaces, types
from jaxrl.algorithms import critics, learning, off_policy
from jaxrl.algorithms.critics import Agent
from jaxrl.algorithms.learning import Learner
from jaxrl.algorithms.off_policy import State
from jaxrl.replay.transitions import Batch
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, mean, static, traced


class Config(critics.Config):
    """Hyper-parameters of SAC."""

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
        "log_temperature": jnp.log(jnp.asarray(config.temperature, jnp.float32)),
    }
    agent = critics.init_agent(config, env, params, targets=("critics",))
    return off_policy.init(config, env, agent, key_world, acting.unroll_randomly)


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


class SoftValue(NamedTuple):
    """V(s) and what it is made of; of Discrete actions sums over all."""

    value: Array  # [B], or its quantiles [B, M']
    log_prob: Array  # [B]: log π of the sample
    saturated: Array | None  # bool [B, D], whether it is within 1 % of a bound


def soft_value(
    config: Config,
    env: Env,
    params: dict[str, PyTree],
    stats: normalize.RunningStats | None,
    obs: PyTree,
    noise: Array,
    dropout: Array,
    combine: Callable[[Array], Array],
) -> SoftValue:
    """V(s) = E[Q(s, a) - α log π(a|s)], by a sample or, of Discrete actions, exactly.

    Args:
      config: of the algorithm.
      env: the environment.
      params: "actor", "critics" and "log_temperature".
      stats: of observations.
      obs: `[B, ...]`.
      noise: `[B, D]`, standard normal, of the sample.
      dropout: key of the critics' dropout.
      combine: makes one value of those of all critics.
    """
    alpha, space = temperature(config, params), env.action_space
    if isinstance(space, spaces.Box):
        space = spaces.box(-1.0, 1.0, space.shape)
    pi = distribution(config, env, params["actor"], stats, obs, space)
    ask = partial(critics.values, config, env, params["critics"], stats, obs)
    if isinstance(space, spaces.Discrete):
        log_prob = jnp.maximum(pi.logits, LEAST)
        value = estimators.soft_value(combine(ask(None, dropout)), log_prob, alpha)
        return SoftValue(
            estimators.expected_value(value, pi.probs),
            estimators.expected_value(log_prob, pi.probs),
            None,
        )
    sample = pi.pre_tanh(noise)
    action, log_prob = pi.squash(sample), pi.log_prob(sample)
    q = combine(ask(action, dropout))
    of_each = log_prob if q.ndim == 1 else jnp.broadcast_to(log_prob[:, None], q.shape)
    value = estimators.soft_value(q, of_each, alpha)
    return SoftValue(value, log_prob, jnp.abs(action) > 0.99)


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

    def critic_step(
        learner: Learner, batch: Batch, draw: Draw
    ) -> tuple[Learner, Metrics]:
        targets = learner.params | learner.target_params  # the actor has none
        of_all = partial(critics.target_value, config, key=draw.subset)
        at = batch.next_obs, draw.action, draw.dropout[0]
        value = soft_value(config, env, targets, stats, *at, of_all).value
        target = critics.target(batch, value)
        learner, (error, q), norm = learning.step(
            learner,
            "critics",
            lambda params: critics.loss(
                config, env, params, stats, batch, target, draw.dropout[1]
            ),
            learning_rate,
        )
        learner = learning.follow(learner, config.tau)
        return learner, critics.loss_metrics(error, q, norm)

    def actor_step(
        learner: Learner, batch: Batch, draw: ActorDraw
    ) -> tuple[Learner, Metrics]:
        others = learner.params

        def loss(actor: PyTree) -> tuple[Array, SoftValue]:
            of_all = partial(critics.policy_value, config)
            at = batch.obs, draw.action, draw.dropout, of_all
            soft = soft_value(config, env, others | {"actor": actor}, stats, *at)
            return -soft.value.mean(), soft

        learner, soft, norm = learning.step(learner, "actor", loss, learning_rate)
        metrics = {
            "loss/policy": mean(-soft.value),
            "policy/entropy": mean(-soft.log_prob),
            "policy/temperature": mean(temperature(config, others)),
            "optim/actor_grad_norm": mean(norm),
        }
        if soft.saturated is not None:
            metrics["policy/saturation"] = mean(soft.saturated)
        return temperature_step(learner, batch, soft.log_prob), metrics

    def temperature_step(learner: Learner, batch: Batch, log_prob: Array) -> Learner:
        if not config.learn_temperature:
            return learner
        wanted = target_entropy(config, env, batch.obs)

        def loss(log_alpha: Array) -> tuple[Array, tuple]:
            return losses.temperature(log_alpha, log_prob, wanted).mean(), ()

        return learning.step(learner, "log_temperature", loss, learning_rate)[0]

    draws = draw_all(config, env, key)
    learner, metrics = learning.alternate(
        learning.begin(agent), batches, draws, critic_step, actor_step
    )
    return learning.end(learner, agent), metrics


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
