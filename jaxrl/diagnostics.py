"""Diagnostics of policy gradients at fixed parameters.

A gradient estimator is a function `(params, key) -> gradient` of one batch of rollouts, as
an algorithm would use it. Evaluated at many keys it gives its mean and variance, and for a
known `MDP` its bias, because `exact_gradient` needs no samples. The other functions
diagnose steps that are too large: a policy near the boundary of the simplex, or a large KL
divergence.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import optim
from jaxrl.errors import InvalidInput
from jaxrl.losses import explained_variance as explained_variance
from jaxrl.mdp import MDP, action_values, discounted_visits, policy_evaluation
from jaxrl.types import Array, PyTree

GradFn = Callable[[PyTree, Array], PyTree]
"""`(params, key) -> ` gradient estimate, structured as `params`."""


class GradientStatistics(NamedTuple):
    """Statistics of K gradient estimates; P is the length of `optim.flat(params)`."""

    mean: Array  # [P]
    variance: Array  # [P], of one estimate, unbiased
    standard_error: Array  # [P], of `mean`
    bias: Array  # [P], `mean` minus the reference; 0 without one
    signal_to_noise: Array  # []
    misaligned: Array  # []


class GradientNoise(NamedTuple):
    """Error of averages of n gradient estimates, for S values of n."""

    sizes: tuple[int, ...]  # S: the values of n
    groups: tuple[int, ...]  # S: the number of disjoint averages
    relative_error: Array  # [S]
    misaligned: Array  # [S]


class Saturation(NamedTuple):
    """Closeness of a policy to the boundary of the simplex."""

    entropy: Array  # [], mean, in nats
    max_probability: Array  # [Q] quantiles of max_a π(a|s) over states
    saturated: Array  # [], the share of states where it exceeds the threshold


def gradient_samples(
    grad_fn: GradFn, params: PyTree, keys: Array, batch_size: int = 256
) -> Array:
    """One estimate of the gradient for each key, as rows.

    Args:
      grad_fn: the estimator.
      params: the parameters, any pytree; the same for all estimates.
      keys: `[K]`.
      batch_size: the number of estimates computed at once.

    Returns:
      `[K, P]`, in the order of `optim.flat(params)`; all K · P numbers are held in memory.
    """

    def estimate(key: Array) -> Array:
        return optim.flat(grad_fn(params, key))[0]

    samples = jax.jit(lambda keys: jax.lax.map(estimate, keys, batch_size=batch_size))
    return samples(keys)


def gradient_statistics(
    grad_fn: GradFn,
    params: PyTree,
    keys: Array,
    reference: PyTree | None = None,
    batch_size: int = 256,
) -> GradientStatistics:
    """Bias and variance of a gradient estimator, from many estimates ĝ.

    signal_to_noise = ‖g‖ / √(Σ_i Var ĝ_i),    misaligned = P(ĝ · g < 0)

    `misaligned` is the share of estimates more than 90° off the gradient g.

    Args:
      grad_fn: the estimator.
      params: the parameters.
      keys: `[K]`, one for each estimate, at least two.
      reference: g, structured as `params`: the exact gradient, if it is known. Without it
        the mean of the estimates is used, and the bias is unknown.
      batch_size: the number of estimates computed at once.

    Returns:
      `GradientStatistics`. For an unbiased estimator, the share of coordinates with |bias|
      below z standard errors is the confidence level of z.

    Source: Greensmith, Bartlett and Baxter (2004), "Variance reduction techniques for
    gradient estimates in reinforcement learning", section 3.
    """
    if len(keys) < 2:
        raise InvalidInput(
            f"keys has {len(keys)}: a variance needs at least 2 estimates, so split more."
        )
    estimates = gradient_samples(grad_fn, params, keys, batch_size)
    average = estimates.mean(0)
    target = average if reference is None else optim.flat(reference)[0]
    chex.assert_equal_shape([average, target])
    variance = estimates.var(0, ddof=1)
    return GradientStatistics(
        mean=average,
        variance=variance,
        standard_error=jnp.sqrt(variance / len(keys)),
        bias=average - target,
        signal_to_noise=optim.global_norm(target) / jnp.sqrt(variance.sum()),
        misaligned=_misaligned(estimates, target),
    )


def gradient_noise(
    grad_fn: GradFn,
    params: PyTree,
    keys: Array,
    sizes: Sequence[int] = (10, 100, 1_000, 10_000, 100_000),
    reference: PyTree | None = None,
    batch_size: int = 256,
) -> GradientNoise:
    """Relative error of averages of n gradient estimates, as a function of n.

    relative_error(n) = √(E ‖ĝ_n - g‖²) / ‖g‖,    ĝ_n = 1/n Σ_{i<=n} ĝ_i

    It falls as 1/√n, down to the bias. The keys are divided into as many disjoint groups of
    n as possible.

    Args:
      grad_fn: the estimator.
      params: the parameters.
      keys: `[K]`.
      sizes: the values of n.
      reference: g, structured as `params`. Without it the mean of all K estimates is used,
        which underestimates the error for large n, so n must be at most K / 10.
      batch_size: the number of estimates computed at once.

    Returns:
      `GradientNoise`.
    """
    most = len(keys) if reference is not None else len(keys) // 10
    if not sizes or max(sizes) > most or min(sizes) < 1:
        raise InvalidInput(
            f"sizes = {tuple(sizes)}: each must be from 1 to {most}, the number of keys"
            f"{'' if reference is not None else ' / 10, as there is no reference'}; give "
            f"more keys or smaller sizes."
        )
    estimates = gradient_samples(grad_fn, params, keys, batch_size)
    target = estimates.mean(0) if reference is None else optim.flat(reference)[0]
    errors, shares, groups = [], [], []
    for n in sizes:
        count = len(keys) // n
        means = estimates[: count * n].reshape(count, n, -1).mean(1)
        squares = jnp.square(means - target).sum(-1)
        errors.append(jnp.sqrt(squares.mean()) / optim.global_norm(target))
        shares.append(_misaligned(means, target))
        groups.append(count)
    return GradientNoise(
        tuple(sizes), tuple(groups), jnp.stack(errors), jnp.stack(shares)
    )


def _misaligned(estimates: Array, target: Array) -> Array:
    """Share of the rows `[K, P]` that are more than 90° off the target `[P]`."""
    return (estimates @ target < 0.0).mean(dtype=jnp.float32)


def exact_gradient(
    policy_of: Callable[[PyTree], Array], params: PyTree, mdp: MDP, gamma: float
) -> PyTree:
    """Exact gradient of the expected discounted return of a finite MDP.

    ∇J = Σ_s d(s) Σ_a ∇π(a|s) Q(s, a),    d(s) = Σ_t γ^t P(s_t = s)

    Args:
      policy_of: `params -> π(a|s) [S, A]`; rows of terminal states are not used.
      params: the parameters.
      mdp: the problem.
      gamma: the discount γ; 1 only if every episode terminates.

    Returns:
      The gradient, structured as `params`.

    Raises:
      InvalidInput: the result of `policy_of` is not a policy, or it may never terminate
        and γ is 1.

    Source: Sutton, McAllester, Singh and Mansour (2000), "Policy gradient methods for
    reinforcement learning with function approximation", theorem 1.
    """
    policy, vjp = jax.vjp(policy_of, params)
    table = np.asarray(policy, float)
    q = action_values(mdp, policy_evaluation(mdp, table, gamma), gamma)
    visits = discounted_visits(mdp, table, gamma)
    return vjp(jnp.asarray(visits[:, None] * q, policy.dtype))[0]


def simplex_saturation(
    probability: Array,
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    threshold: float = 0.99,
) -> Saturation:
    """Measures of how nearly deterministic a policy over discrete actions is.

    At a corner of the simplex the score of the certain action is 0, and the other actions
    are hardly ever sampled: the gradient vanishes, whether or not the action is right.

    Args:
      probability: `[..., A]` π(·|s) of many states.
      quantiles: Q quantiles, each from 0 to 1.
      threshold: the probability above which a state counts as saturated.

    Returns:
      `Saturation`.

    Source: Mei et al. (2020), "Escaping the gravitational pull of softmax", on corners
    that attract a softmax policy.
    """
    largest = probability.max(-1)
    return Saturation(
        entropy=jax.scipy.special.entr(probability).sum(-1).mean(),
        max_probability=jnp.quantile(largest, jnp.asarray(quantiles)),
        saturated=(largest > threshold).mean(dtype=jnp.float32),
    )


def kl_per_step(policy_of: Callable[[PyTree], Any], params: PyTree) -> Array:
    """Mean KL divergence between the policies before and after each step.

    d_k = E_s KL(π_k(·|s) ‖ π_{k+1}(·|s))

    Args:
      policy_of: `params -> ` distribution of the actions in a fixed batch of states, from
        `jaxrl.distributions`.
      params: K + 1 parameters in the order of the run, a pytree with leading axis.

    Returns:
      float32 `[K]` d_k, in nats.

    Source: Schulman et al. (2015), https://arxiv.org/abs/1502.05477, section 4, the
    quantity bounded by a trust region.
    """

    def divergence(pair: tuple[PyTree, PyTree]) -> Array:
        before, after = map(policy_of, pair)
        return before.kl_divergence(after).mean()

    pairs = (
        jax.tree.map(lambda x: x[:-1], params),
        jax.tree.map(lambda x: x[1:], params),
    )
    return jax.lax.map(divergence, pairs)
