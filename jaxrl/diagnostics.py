"""What can go wrong with a policy gradient, measured at fixed parameters.

A gradient estimator is a function `(params, key) -> gradient`, of one batch of rollouts as
an algorithm would learn from. Asked with many keys it shows its mean and its variance, and
where the model of the environment is known, its bias: `exact_gradient` differentiates the
value through the transitions. The other functions show what a large step leaves behind:
a policy at the border of the simplex, a divergence that nobody asked for.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl import optim
from jaxrl.losses import explained_variance as explained_variance
from jaxrl.types import Array, InvalidInput, PyTree, Scalar

GradFn = Callable[[PyTree, Array], PyTree]
"""`(params, key) -> ` an estimate of the gradient, structured as `params`."""


class GradientStatistics(NamedTuple):
    """Of K estimates at the same parameters. P is the length of `optim.flat(params)`."""

    mean: Array  # [P]
    variance: Array  # [P], of one estimate, unbiased
    standard_error: Array  # [P], of `mean`
    bias: Array  # [P], `mean` less the reference; 0 without one
    signal_to_noise: Array  # []
    misaligned: Array  # []


class GradientNoise(NamedTuple):
    """How an average of n estimates misses the gradient, for S values of n."""

    sizes: tuple[int, ...]  # S of n
    groups: tuple[int, ...]  # S: disjoint averages that were looked at
    relative_error: Array  # [S]
    misaligned: Array  # [S]


class Saturation(NamedTuple):
    """How close a policy is to the border of the simplex."""

    entropy: Array  # [], mean, in nats
    max_probability: Array  # [Q] quantiles of max_a π(a|s) over states
    saturated: Array  # [], the share of states where it exceeds the threshold


class Model(NamedTuple):
    """A finite Markov decision process with S states and A actions."""

    transition: Array  # [S, A, S] P(s'|s, a); what is missing to 1 terminates
    reward: Array  # [S, A] mean reward
    start: Array  # [S] distribution of the first state


def gradient_samples(
    grad_fn: GradFn, params: PyTree, keys: Array, batch_size: int = 256
) -> Array:
    """One estimate of the gradient for each key, as rows.

    Args:
      grad_fn: the estimator.
      params: where, any pytree; the same for all.
      keys: `[K]`.
      batch_size: how many run at once.

    Returns:
      `[K, P]`, in the order of `optim.flat(params)`: K · P numbers are held in memory.
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
      params: where.
      keys: `[K]`, one for each estimate, at least two.
      reference: g, structured as `params`: the exact gradient, if it is known. Without it
        the mean of the estimates stands in, and nothing is known of the bias.
      batch_size: how many run at once.

    Returns:
      `GradientStatistics`. An unbiased estimator has |bias| below z standard errors in a
      share of its coordinates that is the level of z.

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
    """How far averages of n estimates are from the gradient, as n grows.

    relative_error(n) = √(E ‖ĝ_n - g‖²) / ‖g‖,    ĝ_n = 1/n Σ_{i<=n} ĝ_i

    It falls as 1/√n, down to the bias. The keys are cut into as many disjoint groups of n
    as there are.

    Args:
      grad_fn: the estimator.
      params: where.
      keys: `[K]`.
      sizes: the n to look at.
      reference: g, structured as `params`. Without it the mean of all K stands in, which
        flatters a large n, so n may be no more than K / 10.
      batch_size: how many run at once.

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
    """The share of rows `[K, P]` more than 90° off `[P]`."""
    return (estimates @ target < 0.0).mean(dtype=jnp.float32)


def exact_values(model: Model, policy: Array, gamma: Scalar) -> tuple[Array, Array]:
    """V^π and Q^π of a known model, by solving the Bellman equations.

    V = (I - γ P_π)⁻¹ r_π,    Q(s, a) = r(s, a) + γ Σ_s' P(s'|s, a) V(s')

    Args:
      model: with S states and A actions.
      policy: `[S, A]` π(a|s).
      gamma: the discount γ; 1 only if every episode ends.

    Returns:
      (V `[S]`, Q `[S, A]`), differentiable in the policy.

    Source: Sutton and Barto (2018), "Reinforcement Learning", equations 4.4 and 4.6.
    """
    chex.assert_equal_shape([model.reward, policy])
    dynamics = jnp.einsum("sa,sat->st", policy, model.transition)
    reward = (policy * model.reward).sum(-1)
    value = jnp.linalg.solve(jnp.eye(len(policy)) - gamma * dynamics, reward)
    return value, model.reward + gamma * model.transition @ value


def exact_gradient(
    policy_of: Callable[[PyTree], Array], params: PyTree, model: Model, gamma: Scalar
) -> PyTree:
    """The gradient of the expected discounted return of a known model.

    ∇J = ∇ Σ_s μ(s) V^π(s),    through the transitions, with nothing sampled

    Args:
      policy_of: `params -> π(a|s) [S, A]`.
      params: where.
      model: the environment.
      gamma: the discount γ; 1 only if every episode ends.

    Returns:
      The gradient, structured as `params`.
    """

    def objective(params: PyTree) -> Array:
        return model.start @ exact_values(model, policy_of(params), gamma)[0]

    return jax.grad(objective)(params)


def simplex_saturation(
    probability: Array,
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    threshold: float = 0.99,
) -> Saturation:
    """How near to deterministic a policy over discrete actions is.

    At a corner of the simplex the score of the certain action is 0 and that of the others
    is hardly ever drawn: the gradient vanishes, right or wrong.

    Args:
      probability: `[..., A]` π(·|s) of many states.
      quantiles: Q of them, each from 0 to 1.
      threshold: from which probability on a state counts as saturated.

    Returns:
      `Saturation`.
    """
    largest = probability.max(-1)
    return Saturation(
        entropy=jax.scipy.special.entr(probability).sum(-1).mean(),
        max_probability=jnp.quantile(largest, jnp.asarray(quantiles)),
        saturated=(largest > threshold).mean(dtype=jnp.float32),
    )


def kl_per_step(policy_of: Callable[[PyTree], Any], params: PyTree) -> Array:
    """The divergence that each step of the parameters made, a mean over states.

    d_k = E_s KL(π_k(·|s) ‖ π_{k+1}(·|s))

    Args:
      policy_of: `params -> ` the distribution over the actions, in states that are always
        the same; of `jaxrl.distributions`.
      params: K + 1 parameters in the order of the run, a pytree with leading axis.

    Returns:
      float32 `[K]` d_k, in nats.

    Source: Schulman et al. (2015), https://arxiv.org/abs/1502.05477, section 4: what a
    trust region bounds.
    """

    def divergence(pair: tuple[PyTree, PyTree]) -> Array:
        before, after = map(policy_of, pair)
        return before.kl_divergence(after).mean()

    pairs = (
        jax.tree.map(lambda x: x[:-1], params),
        jax.tree.map(lambda x: x[1:], params),
    )
    return jax.lax.map(divergence, pairs)
