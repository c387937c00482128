"""Exploration for greedy policies."""

import jax
import jax.numpy as jnp

from jaxrl.types import Array, Scalar


def epsilon_noise(key: Array, shape: tuple[int, ...], num_actions: int) -> Array:
    """Uniform noise for `epsilon_greedy`: `[*shape, num_actions + 1]`."""
    return jax.random.uniform(key, (*shape, num_actions + 1))


def epsilon_greedy(
    noise: Array, q: Array, epsilon: Scalar, mask: Array | None = None
) -> Array:
    """ε-greedy action: uniform over the legal actions with probability ε, else the best.

    Args:
      noise: `[..., A + 1]` from `epsilon_noise`, to be used once.
      q: `[..., A]` action values.
      epsilon: ε, a scalar or `[...]`.
      mask: bool `[..., A]`, True for legal actions; None when all are.

    Returns:
      int32 `[...]` actions.

    Source: Sutton and Barto (2018), section 2.2.
    """
    # The first column decides whether to explore; the others are then the scores.
    explore = noise[..., :1] < jnp.asarray(epsilon, jnp.float32)[..., None]
    score = jnp.where(explore, noise[..., 1:], q)
    if mask is not None:
        score = jnp.where(mask, score, -jnp.inf)
    return jnp.argmax(score, axis=-1).astype(jnp.int32)


def epsilon_greedy_value(q: Array, epsilon: Scalar, mask: Array | None = None) -> Array:
    """The mean of the action values under the ε-greedy policy.

    Σ_a π(a) Q(a) = (1 - ε) max_a Q(a) + ε mean_a Q(a)

    Args:
      q: `[..., A]` action values.
      epsilon: ε, a scalar or `[...]`; 0 gives the value of the best action.
      mask: bool `[..., A]`, True for legal actions; None when all are.

    Returns:
      `[...]`.

    Source: Sutton and Barto (2018), section 6.6, the target of Expected SARSA.
    """
    best = q.max(axis=-1, initial=-jnp.inf, where=mask)
    return (1.0 - epsilon) * best + epsilon * q.mean(axis=-1, where=mask)
