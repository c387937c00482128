"""Optimiser pieces in which every hyper-parameter may be a traced number.

The learning rate is no part of the optimiser: `apply` takes it at each step, so that a
schedule is an expression of the step counter and a sweep over it is a `vmap`.

The algorithms optimise one vector, not a tree (`flat`): on the 12 arrays of two small
networks Adam is dozens of operations, each of them short, on one vector a handful.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxrl.types import Array, Counter, PyTree, Scalar


def adam(
    max_grad_norm: Scalar | None,
    eps: Scalar = 1e-5,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
) -> optax.GradientTransformation:
    """Adam behind a clip of the global gradient norm, without the learning rate.

    g <- g · min(1, max_grad_norm / ‖g‖),    ‖g‖ over all leaves together
    u = m̂ / (√v̂ + eps)

    Args:
      max_grad_norm: the largest norm let through; None for no clipping.
      eps: added outside the root; 1e-5 is the constant of PPO implementations.
      b1: decay of the first moment m.
      b2: decay of the second moment v.

    Returns:
      A gradient transformation for `apply`. Its state has one structure, whether the
      gradient is clipped or not.

    Source: Kingma and Ba (2015), https://arxiv.org/abs/1412.6980, algorithm 1;
    Pascanu et al. (2013), https://arxiv.org/abs/1211.5063, algorithm 1.
    """
    return optax.chain(_clip(max_grad_norm), optax.scale_by_adam(b1=b1, b2=b2, eps=eps))


def rmsprop(
    max_grad_norm: Scalar | None, eps: Scalar = 1e-5, decay: Scalar = 0.99
) -> optax.GradientTransformation:
    """RMSProp behind a clip of the global gradient norm, without the learning rate.

    g <- g · min(1, max_grad_norm / ‖g‖),    ‖g‖ over all leaves together
    v <- decay · v + (1 - decay) · g²,       v = 1 at first
    u = g / √(v + eps)

    v starts at 1, as TensorFlow's does, and not at 0: from 0 the very first step would be
    1 / √(1 - decay) = 10 times as long as later ones, in every coordinate.

    Args:
      max_grad_norm: the largest norm let through; None for no clipping.
      eps: added inside the root.
      decay: of the second moment v.

    Returns:
      A gradient transformation for `apply`. Its state has one structure, whether the
      gradient is clipped or not.

    Source: Mnih et al. (2016), https://arxiv.org/abs/1602.01783, equation 1, with one v
    for all environments.
    """
    scale = optax.scale_by_rms(decay=decay, eps=eps, initial_scale=1.0)
    return optax.chain(_clip(max_grad_norm), scale)


def flat(params: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """All parameters as one vector `[P]`, and the function that gives the tree back."""
    return ravel_pytree(params)


def apply(
    optimizer: optax.GradientTransformation,
    params: PyTree,
    opt_state: PyTree,
    grads: PyTree,
    learning_rate: Scalar,
) -> tuple[PyTree, PyTree]:
    """One descent step: θ <- θ - learning_rate · u.

    Args:
      optimizer: turns a gradient into a direction u; has no learning rate of its own.
      params: the parameters θ, any pytree.
      opt_state: the optimiser's state.
      grads: the gradient of the loss, structured as `params`.
      learning_rate: a scalar, traced or not.

    Returns:
      (params, opt_state) after the step, in the dtypes they came in.
    """
    directions, opt_state = optimizer.update(grads, opt_state, params)
    updates = jax.tree.map(lambda u: -learning_rate * u, directions)
    return optax.apply_updates(params, updates), opt_state


def global_norm(grads: PyTree) -> Array:
    """‖g‖, the Euclidean norm over all leaves together, before any clip."""
    return optax.tree.norm(grads)


def linear_schedule(initial: Scalar, final: Scalar, fraction: Scalar) -> Array:
    """From `initial` to `final`, in a straight line and exact at both ends.

    (1 - f) · initial + f · final,    f = fraction, clipped to [0, 1]
    """
    fraction = jnp.clip(jnp.asarray(fraction, jnp.float32), 0.0, 1.0)
    return (1.0 - fraction) * initial + fraction * final


def polyak(target: PyTree, params: PyTree, tau: Scalar) -> PyTree:
    """Target network that follows the parameters: τ · params + (1 - τ) · target.

    At τ = 0 and τ = 1 the result is `target` or `params` bit for bit, so a τ that is
    zero except at every k-th update is a periodic copy, without a `cond`.

    Source: Lillicrap et al. (2016), https://arxiv.org/abs/1509.02971, section 3.
    """

    def follow(old: Array, new: Array) -> Array:
        # 0 · x + y is not y when x is not finite or y is -0.0.
        mixed = (tau * new + (1.0 - tau) * old).astype(old.dtype)
        return jnp.where(tau <= 0.0, old, jnp.where(tau >= 1.0, new, mixed))

    return jax.tree.map(follow, target, params)


def progress(env_steps: Counter, total_steps: Scalar) -> Array:
    """How much of the run lies behind: env_steps / total_steps, float32 in [0, 1]."""
    total = jnp.asarray(total_steps, jnp.float32)
    return jnp.clip(env_steps.as_float() / total, 0.0, 1.0)


def _clip(max_grad_norm: Scalar | None) -> optax.GradientTransformation:
    if max_grad_norm is None:
        return optax.identity()
    return optax.clip_by_global_norm(max_grad_norm)
