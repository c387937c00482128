"""Optimiser pieces in which every hyper-parameter may be a traced number.

The learning rate is no part of the optimiser: `apply` takes it at each step, so that a
schedule is an expression of the step counter and a sweep over it is a `vmap`.

The algorithms optimise one vector, not a tree (`flat`): on the 12 arrays of two small
networks Adam is dozens of operations, each of them short, on one vector a handful.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxrl.core import parallel
from jaxrl.types import (
    Array,
    Batches,
    Counter,
    Metrics,
    PyTree,
    Scalar,
    mean,
    packed_sums,
    unpacked_means,
)


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
      A transformation of gradients, any pytree, for `apply`. Its state has one structure,
      whether the gradient is clipped or not.

    Source: Kingma and Ba (2015), https://arxiv.org/abs/1412.6980, algorithm 1;
    Pascanu et al. (2013), https://arxiv.org/abs/1211.5063, algorithm 1.
    """
    return optax.chain(_clip(max_grad_norm), optax.scale_by_adam(b1=b1, b2=b2, eps=eps))


def radam(
    max_grad_norm: Scalar | None,
    eps: Scalar = 1e-8,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
) -> optax.GradientTransformation:
    """Rectified Adam behind a clip of the global gradient norm, without the learning rate.

    g <- g · min(1, max_grad_norm / ‖g‖),    ‖g‖ over all leaves together
    ρ∞ = 2 / (1 - b2) - 1,    ρ = ρ∞ - 2 t b2^t / (1 - b2^t)    at step t
    u = r m̂ / (√v̂ + eps),    r² = (ρ - 4)(ρ - 2) ρ∞ / ((ρ∞ - 4)(ρ∞ - 2) ρ)    where ρ >= 5
    u = m̂    where ρ < 5: the first few steps, when v̂ is of too few gradients

    Args:
      max_grad_norm: the largest norm let through; None for no clipping.
      eps: added outside the root.
      b1: decay of the first moment m.
      b2: decay of the second moment v.

    Returns:
      A transformation of gradients, any pytree, for `apply`. Its state has one structure,
      whether the gradient is clipped or not.

    In the first steps the unused r is NaN, at which `jax_debug_nans` stops.

    Source: Liu et al. (2020), https://arxiv.org/abs/1908.03265, algorithm 2, with the
    threshold 5 of its code in place of 4.
    """
    scale = optax.scale_by_radam(b1=b1, b2=b2, eps=eps)
    return optax.chain(_clip(max_grad_norm), scale)


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
      A transformation of gradients, any pytree, for `apply`. Its state has one structure,
      whether the gradient is clipped or not.

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


def gradient_step(
    loss: Callable[[PyTree], tuple[Array, PyTree]],
    params: PyTree,
    opt_state: PyTree,
    optimizer: optax.GradientTransformation,
    learning_rate: Scalar,
) -> tuple[PyTree, PyTree, PyTree, Array]:
    """One descent step on a loss, as one vector of parameters.

    On several devices the gradient is the mean over all of them.

    Args:
      loss: θ -> (a scalar, anything else).
      params: the parameters θ, any pytree.
      opt_state: the optimiser's state for `flat(params)`.
      optimizer: turns a gradient into a direction; has no learning rate of its own.
      learning_rate: a scalar, traced or not.

    Returns:
      (params, opt_state) after the step, what the loss returned beside the scalar, and
      the norm of the gradient, a scalar.
    """
    vector, unflatten = flat(params)
    (vector, opt_state), aux, norm = step(
        lambda x: loss(unflatten(x)),
        Fitted(vector, opt_state),
        optimizer,
        learning_rate,
    )
    return unflatten(vector), opt_state, aux, norm


class Fitted(NamedTuple):
    """What one optimiser fits, as a vector: for loops in which several take turns."""

    vector: Array  # [P], the parameters
    opt_state: PyTree


def step(
    loss: Callable[[Array], tuple[Array, PyTree]],
    fitted: Fitted,
    optimizer: optax.GradientTransformation,
    learning_rate: Scalar,
) -> tuple[Fitted, PyTree, Array]:
    """One descent step of a vector of parameters; otherwise as `gradient_step`.

    Args:
      loss: parameters `[P]` -> (a scalar, anything else).
      fitted: the parameters and the optimiser's state.
      optimizer: turns a gradient into a direction; has no learning rate of its own.
      learning_rate: a scalar, traced or not.

    Returns:
      What is fitted, after the step; what the loss returned beside the scalar; the norm
      of the gradient, a scalar.

    Source: as `apply`.
    """
    grads, aux = jax.grad(loss, has_aux=True)(fitted.vector)
    grads = parallel.mean(grads)
    after = apply(optimizer, *fitted, grads, learning_rate)
    return Fitted(*after), aux, global_norm(grads)


def fit(
    loss: Callable[[PyTree, PyTree], tuple[Array, tuple[Array, ...]]],
    params: PyTree,
    opt_state: PyTree,
    batches: Batches,
    optimizer: optax.GradientTransformation,
    learning_rate: Scalar,
    reported: Sequence[str],
    stop_above: tuple[str, Scalar] | None = None,
) -> tuple[PyTree, PyTree, Metrics]:
    """A gradient step on each batch, in one loop over one vector of parameters.

    On several devices each step's gradient is the mean over all of them.

    Args:
      loss: (θ, batch) -> (a scalar, the arrays named by `reported`, of one size).
      params: the parameters θ, any pytree.
      opt_state: the optimiser's state for `flat(params)`.
      batches: what is learned from.
      optimizer: turns a gradient into a direction; has no learning rate of its own.
      learning_rate: a scalar, traced or not.
      reported: names of what the loss reports of every row of a batch.
      stop_above: (name, limit): once the mean of that report exceeds the limit, this
        step and those after it change nothing.

    Returns:
      (params, opt_state) after the last step, and the metrics: the mean over all rows of
      what is reported, and "optim/grad_norm", the mean over the steps.
    """
    vector, unflatten = flat(params)

    def loss_of(vector: Array, batch: PyTree) -> tuple[Array, tuple[Array, ...]]:
        return loss(unflatten(vector), batch)

    def step(carry: tuple, index: PyTree) -> tuple[tuple, tuple]:
        vector, opt_state, stopped = carry
        batch = batches.read(index)
        grads, found = jax.grad(loss_of, has_aux=True)(vector, batch)
        grads = parallel.mean(grads)
        metrics = packed_sums(found), global_norm(grads)
        new = apply(optimizer, vector, opt_state, grads, learning_rate)
        if stop_above is None:
            return (*new, stopped), metrics
        name, limit = stop_above
        stopped |= parallel.mean(found[reported.index(name)].mean()) > limit
        kept = jax.tree.map(
            lambda old, new: jnp.where(stopped, old, new), (vector, opt_state), new
        )
        return (*kept, stopped), metrics

    carry = (vector, opt_state, jnp.bool_(False))
    (vector, opt_state, _), (sums, norms) = jax.lax.scan(step, carry, batches.index)
    metrics = unpacked_means(reported, sums.sum(0), batches.rows)
    metrics["optim/grad_norm"] = mean(norms)
    return unflatten(vector), opt_state, metrics


def global_norm(grads: PyTree) -> Array:
    """‖g‖, the Euclidean norm over all leaves together, before any clip.

    Args:
      grads: any pytree.

    Returns:
      A scalar.

    Source: Pascanu et al. (2013), https://arxiv.org/abs/1211.5063, algorithm 1.
    """
    return optax.tree.norm(grads)


def linear_schedule(initial: Scalar, final: Scalar, fraction: Scalar) -> Array:
    """From `initial` to `final`, in a straight line and exact at both ends.

    (1 - f) · initial + f · final,    f = fraction, clipped to [0, 1]

    Args:
      initial: a scalar, the value at f = 0.
      final: a scalar, the value at f = 1.
      fraction: f, a scalar.

    Source: Schulman et al. (2017), https://arxiv.org/abs/1707.06347, table 5, for the
    learning rate.
    """
    fraction = jnp.clip(jnp.asarray(fraction, jnp.float32), 0.0, 1.0)
    return (1.0 - fraction) * initial + fraction * final


def annealed(config: Any, learning_rate: Scalar, env_steps: Counter) -> Scalar:
    """The learning rate now: as it is, or falling linearly to zero over the run.

    Args:
      config: with `anneal_lr` and `total_steps`.
      learning_rate: a scalar, at the start.
      env_steps: environment steps done.
    """
    if not config.anneal_lr:
        return learning_rate
    done = progress(env_steps, config.total_steps)
    return linear_schedule(learning_rate, 0.0, done)


def polyak(target: PyTree, params: PyTree, tau: Scalar) -> PyTree:
    """Target network that follows the parameters: τ · params + (1 - τ) · target.

    At τ = 0 and τ = 1 the result is `target` or `params` bit for bit, so a τ that is
    zero except at every k-th update is a periodic copy, without a `cond`.

    Args:
      target: the parameters that follow, any pytree.
      params: those that are followed, structured as `target`.
      tau: τ, a scalar.

    Source: Lillicrap et al. (2016), https://arxiv.org/abs/1509.02971, section 3.
    """

    def follow(old: Array, new: Array) -> Array:
        # 0 · x + y is not y when x is not finite or y is -0.0.
        mixed = (tau * new + (1.0 - tau) * old).astype(old.dtype)
        return jnp.where(tau <= 0.0, old, jnp.where(tau >= 1.0, new, mixed))

    return jax.tree.map(follow, target, params)


def progress(env_steps: Counter, total_steps: Scalar) -> Array:
    """Fraction of the run completed: env_steps / total_steps, float32 in [0, 1]."""
    total = jnp.asarray(total_steps, jnp.float32)
    return jnp.clip(env_steps.as_float() / total, 0.0, 1.0)


def _clip(max_grad_norm: Scalar | None) -> optax.GradientTransformation:
    if max_grad_norm is None:
        return optax.identity()
    return optax.clip_by_global_norm(max_grad_norm)


def conjugate_gradient(
    product: Callable[[PyTree], PyTree],
    b: PyTree,
    iterations: int,
    tolerance: Scalar = 1e-5,
) -> PyTree:
    """Solves A x = b for a symmetric positive definite A of which only v -> A v is known.

    α = r·r / d·A d,    x <- x + α d,    r <- r - α A d,    d <- r + (r·r / r_old·r_old) d

    from x = 0 and r = d = b, until ‖r‖ <= tolerance ‖b‖, at most `iterations` times.

    Args:
      product: v -> A v, structured as `b`.
      b: the right side, any pytree.
      iterations: products made, a Python int. All are made: what comes after the
        tolerance is reached changes nothing.
      tolerance: residual at which x is good enough, relative to b.

    Returns:
      x, structured as `b`: 0 where b is 0, not finite where b is not.

    Source: Hestenes and Stiefel (1952), "Methods of conjugate gradients for solving
    linear systems", section 3; for policies Schulman et al. (2015),
    https://arxiv.org/abs/1502.05477, appendix C.
    """

    def add(x: PyTree, scale: Array, y: PyTree) -> PyTree:
        return jax.tree.map(lambda x, y: x + scale * y, x, y)

    def iterate(_: int, carry: tuple) -> tuple:
        x, residual, direction, squared = carry
        moved = product(direction)
        alpha = squared / optax.tree.vdot(direction, moved)
        residual = add(residual, -alpha, moved)
        new_squared = optax.tree.vdot(residual, residual)
        direction_after = add(residual, new_squared / squared, direction)
        after = (add(x, alpha, direction), residual, direction_after, new_squared)
        solved = squared <= enough
        return jax.tree.map(lambda old, new: jnp.where(solved, old, new), carry, after)

    squared = optax.tree.vdot(b, b)
    enough = tolerance**2 * squared
    carry = (jax.tree.map(jnp.zeros_like, b), b, b, squared)
    return jax.lax.fori_loop(0, iterations, iterate, carry)[0]


def fisher_vector_product(
    kl: Callable[[PyTree], Array], params: PyTree, damping: Scalar = 0.0
) -> Callable[[PyTree], PyTree]:
    """The function v -> F v + damping · v of a policy's Fisher information.

    F = E[∇log π ∇log πᵀ] = ∇² KL(π_old ‖ π_θ)    at π_θ = π_old

    F is never formed. The gradient of the divergence is linearised once, and each product
    is one pass back through it: F is symmetric, so that is the derivative of ∇KL along v.

    Args:
      kl: θ -> the mean divergence KL(π_old ‖ π_θ) over this device's states, a scalar.
      params: θ, where π_θ is π_old.
      damping: added to the diagonal. With fewer samples than parameters F is singular.

    Returns:
      The product, whose argument and result are structured as `params`. On several
      devices it is that of all states.

    Source: Schulman et al. (2015), https://arxiv.org/abs/1502.05477, appendix C.1.
    """
    _, derivative = jax.vjp(jax.grad(kl), params)

    def product(v: PyTree) -> PyTree:
        fisher = parallel.mean(derivative(v)[0])
        return jax.tree.map(lambda f, v: f + damping * v, fisher, v)

    return product


def trust_region_step(
    direction: PyTree, fisher_direction: PyTree, max_kl: Scalar
) -> PyTree:
    """The direction s at the length at which the quadratic model of the KL is δ.

    s √(2 δ / sᵀF s),    as KL ≈ ½ sᵀF s

    Args:
      direction: s, any pytree.
      fisher_direction: F s.
      max_kl: δ, in nats.

    Returns:
      The step, structured as `direction`; 0 where s is 0.

    Source: Schulman et al. (2015), https://arxiv.org/abs/1502.05477, appendix C.
    """
    curvature = optax.tree.vdot(direction, fisher_direction)
    moves = curvature != 0.0
    scale = jnp.sqrt(2.0 * max_kl / jnp.where(moves, curvature, 1.0))
    return jax.tree.map(lambda s: jnp.where(moves, scale, 0.0) * s, direction)


def line_search(
    evaluate: Callable[[PyTree], tuple[Array, PyTree]],
    params: PyTree,
    step: PyTree,
    num_steps: int,
    shrink: Scalar,
) -> tuple[PyTree, Array, PyTree]:
    """The first of θ + s, θ + c s, θ + c² s, ... that is acceptable.

    Args:
      evaluate: θ -> (bool scalar, whether it is acceptable; any pytree of arrays). On
        several devices all must find the same.
      params: θ.
      step: s, structured as `params`.
      num_steps: how many are tried at most.
      shrink: c, between 0 and 1.

    Returns:
      (params, fraction, evaluated): the parameters found and c^k of their step, or θ
      itself and 0 if none was acceptable; what `evaluate` said of the last one tried.

    Source: Armijo (1966), "Minimization of functions having Lipschitz continuous first
    partial derivatives"; Schulman et al. (2015), https://arxiv.org/abs/1502.05477,
    appendix C.
    """

    def at(fraction: Array) -> PyTree:
        return jax.tree.map(lambda x, s: x + fraction * s, params, step)

    def goes_on(carry: tuple) -> Array:
        count, _, found, _ = carry
        return ~found & (count < num_steps)

    def attempt(carry: tuple) -> tuple:
        count, fraction, _, _ = carry
        fraction = jnp.where(count == 0, 1.0, fraction * shrink)
        return (count + 1, fraction, *evaluate(at(fraction)))

    shapes = jax.eval_shape(evaluate, params)[1]
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    carry = (jnp.int32(0), jnp.float32(1.0), jnp.bool_(False), nothing)
    _, fraction, found, evaluated = jax.lax.while_loop(goes_on, attempt, carry)
    # Not 0 · s: a step that is not finite must leave no trace.
    after = jax.tree.map(lambda x, new: jnp.where(found, new, x), params, at(fraction))
    return after, jnp.where(found, fraction, 0.0), evaluated
