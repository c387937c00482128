"""How a policy that is greedy by nature comes to try something else."""

import jax
import jax.numpy as jnp

from jaxrl.types import Array, Scalar


def epsilon_greedy(
    key: Array, q: Array, epsilon: Scalar, mask: Array | None = None
) -> Array:
    """Uniform over the legal actions with probability ε, else the best legal one.

    Args:
      key: consumed.
      q: `[..., A]` action values.
      epsilon: ε, a scalar or `[...]`.
      mask: bool `[..., A]`, True for legal actions; None when all are.

    Returns:
      int32 `[...]` actions.
    """
    # One draw: a column decides whether to explore, the rest is the score when so.
    uniform = jax.random.uniform(key, (*q.shape[:-1], q.shape[-1] + 1))
    explore = uniform[..., :1] < jnp.asarray(epsilon, jnp.float32)[..., None]
    score = jnp.where(explore, uniform[..., 1:], q)
    if mask is not None:
        score = jnp.where(mask, score, -jnp.inf)
    return jnp.argmax(score, axis=-1).astype(jnp.int32)
