"""Gradient steps of critics towards what the next state is worth.

    y = r + γ V'(s'),    L = Σ_k ½ (Q_k(s, a) - y)²

What V' is made of the values of the next action is the algorithm's. They come from target
networks or, without any (CrossQ: Bhatt et al., 2024, arXiv:1902.05605), from the pass
that is learned from: batch normalisation must see (s, a) and (s', a') in one batch, or
its statistics fit neither.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import losses, networks, normalize, types
from jaxrl.algorithms import critics, learning
from jaxrl.algorithms.learning import Learner
from jaxrl.networks import batch_renorm
from jaxrl.replay.transitions import Batch
from jaxrl.types import Array, Env, Metrics, PyTree, mean

Value = Callable[[Array], Array]
"""From what critics say of the next action, `[K, B, ...]`, to V' `[B]` or its quantiles
`[B, M']`."""


def step(
    config: Any,
    env: Env,
    learner: Learner,
    stats: normalize.RunningStats | None,
    batch: Batch,
    next_action: Array | None,
    value: Value,
    keys: Array,
    rates: dict[str, types.Scalar],
) -> tuple[Learner, Metrics]:
    """A gradient step of the critics.

    Args:
      config: of the algorithm.
      env: the environment.
      learner: what learns, with "critics".
      stats: of observations.
      batch: what is learned from.
      next_action: `[B, D]` in [-1, 1], taken in `batch.next_obs`; None for all of a
        Discrete space.
      value: makes V' of their values.
      keys: `[2]`, of the dropout in the target and in what learns.
      rates: learning rates by name.
    """
    loss: Callable[[PyTree], tuple[Array, tuple]]
    if config.batch_norm:

        def loss(params: PyTree) -> tuple[Array, tuple]:
            return joint_loss(config, env, params, stats, batch, next_action, value)

    else:
        of_target = (learner.params | learner.target_params)["critics"]
        y = next_target(
            config, env, of_target, stats, batch, next_action, value, keys[0]
        )

        def loss(params: PyTree) -> tuple[Array, tuple]:
            at = params, stats, batch.obs, batch.action, keys[1]
            return error_of(config, critics.values_taken(config, env, *at), y)

    momentum = critics.momentum(config)
    learner, found, norm = learning.step(learner, "critics", loss, rates, momentum)
    error, q, *statistics = found
    for x in statistics:
        learner = learner.with_statistics("critics", x)
    metrics = {
        "loss/critic": mean(error),
        "value/q": mean(q),
        "optim/critic_grad_norm": mean(norm),
    }
    return learner, metrics


def next_target(
    config: Any,
    env: Env,
    params: PyTree,
    stats: normalize.RunningStats | None,
    batch: Batch,
    next_action: Array | None,
    value: Value,
    key: Array,
) -> Array:
    """y `[B]`, or of quantiles `[B, M']`, from critics' `params`; otherwise as `step`."""
    q = critics.values(config, env, params, stats, batch.next_obs, next_action, key)
    return target(batch, value(q))


def joint_loss(
    config: Any,
    env: Env,
    params: PyTree,
    stats: normalize.RunningStats | None,
    batch: Batch,
    next_action: Array | None,
    value: Value,
) -> tuple[Array, tuple[Array, Array, PyTree]]:
    """The critics' errors towards targets of the same forward pass.

    Args:
      config: of the algorithm.
      env: the environment.
      params: of the critics, with running statistics.
      stats: of observations.
      batch: what is learned from.
      next_action: as in `step`.
      value: as in `step`.

    Returns:
      As `error_of`, and the running statistics afterwards.
    """
    obs = jax.tree.map(lambda *x: jnp.concatenate(x), batch.obs, batch.next_obs)
    taken = critics.unit_action(env, batch.action)
    both = None if next_action is None else jnp.concatenate([taken, next_action])
    q, statistics = batch_renorm.apply(
        networks.critics(config, env), params, obs, both, stats, training=True
    )
    now, after = jnp.split(q, 2, axis=1)
    y = jax.lax.stop_gradient(target(batch, value(after)))
    if next_action is None:
        now = critics.value_of_taken(now, taken)
    loss, found = error_of(config, now, y)
    return loss, (*found, statistics)


def target(batch: Batch, value: Array) -> Array:
    """y `[B]` of values of `next_obs`, or `[B, M']` of quantiles."""

    def column(x: Array) -> Array:
        x = x if value.ndim == 1 else x[:, None]
        return jnp.broadcast_to(x, value.shape)

    return losses.q_target(
        column(batch.reward), column(batch.terminated), value, column(batch.discount)
    )


def error_of(config: Any, q: Array, target: Array) -> tuple[Array, tuple[Array, Array]]:
    """The errors of critics' `q` `[K, B, ...]` towards a target `[B]` or `[B, M']`.

    Returns:
      Σ_k of their means, and of each critic the error `[K, B]` and what it said.
    """
    each = jnp.broadcast_to(target, (len(q), *target.shape))
    error = (losses.quantile_huber if config.num_quantiles else losses.squared_td)(
        q, each
    )
    return error.sum(0).mean(), (error, q)
