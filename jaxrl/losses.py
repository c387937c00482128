"""Loss functions, element by element, to be minimised.

Arguments and result are arrays of one shape, `[...]` below, unless stated otherwise: the
caller takes the mean, weighted or masked as the algorithm requires. Targets, advantages and
other weights are data: no gradient flows into them.
"""

import chex
import jax
import jax.numpy as jnp

from jaxrl.core import parallel
from jaxrl.types import Array, PyTree, Scalar


def policy_gradient(log_prob: Array, weight: Array) -> Array:
    """Score-function loss, whose gradient is the policy gradient.

    L = -w log π(a|s),    ∇L = -w ∇log π(a|s)

    Args:
      log_prob: `[...]` log π(a|s), which is differentiated.
      weight: `[...]` w: a return, or an advantage.

    Returns:
      `[...]` L.

    Source: Williams (1992), "Simple statistical gradient-following algorithms for
    connectionist reinforcement learning", theorem 1.
    """
    chex.assert_equal_shape([log_prob, weight])
    return -log_prob * jax.lax.stop_gradient(weight)


def surrogate(log_prob: Array, old_log_prob: Array, advantage: Array) -> Array:
    """Importance-weighted objective without clipping, for use with a KL penalty.

    L = -ρ A,    ρ = π(a|s) / π_old(a|s)

    Args:
      log_prob: `[...]` log π(a|s), which is differentiated.
      old_log_prob: `[...]` log π_old(a|s) of the policy that acted.
      advantage: `[...]` A.

    Returns:
      `[...]` L.

    Source: Schulman et al. (2017), https://arxiv.org/abs/1707.06347, equation 6.
    """
    chex.assert_equal_shape([log_prob, old_log_prob, advantage])
    return -_ratio(log_prob, old_log_prob) * jax.lax.stop_gradient(advantage)


def clipped_surrogate(
    log_prob: Array, old_log_prob: Array, advantage: Array, clip_eps: Scalar
) -> Array:
    """PPO's clipped objective: no gain from a ratio outside [1 - ε, 1 + ε].

    L = -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A),    ρ = π(a|s) / π_old(a|s)

    Args:
      log_prob: `[...]` log π(a|s), which is differentiated.
      old_log_prob: `[...]` log π_old(a|s) of the policy that acted.
      advantage: `[...]` A.
      clip_eps: ε.

    Returns:
      `[...]` L.

    Source: Schulman et al. (2017), https://arxiv.org/abs/1707.06347, equation 7.
    """
    chex.assert_equal_shape([log_prob, old_log_prob, advantage])
    advantage = jax.lax.stop_gradient(advantage)
    ratio = _ratio(log_prob, old_log_prob)
    clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def approx_kl(log_prob: Array, old_log_prob: Array) -> Array:
    """Estimate of KL(π_old ‖ π) from actions of π_old: unbiased and never negative.

    k3 = (ρ - 1) - log ρ,    ρ = π(a|s) / π_old(a|s)

    Args:
      log_prob: `[...]` log π(a|s).
      old_log_prob: `[...]` log π_old(a|s) of the policy that acted.

    Returns:
      `[...]`, whose mean estimates the divergence.

    Source: Schulman (2020), http://joschu.net/blog/kl-approx.html.
    """
    chex.assert_equal_shape([log_prob, old_log_prob])
    log_ratio = log_prob - jax.lax.stop_gradient(old_log_prob)
    return jnp.expm1(log_ratio) - log_ratio


def adaptive_kl_coef(coef: Scalar, kl: Scalar, target: Scalar) -> Array:
    """Coefficient of PPO's KL penalty for the next update.

    β <- β / 2 if d < d_target / 1.5,    β <- 2 β if d > 1.5 d_target,    else β

    clipped to [1e-4, 1e4], so that many small updates do not shrink it to 0 for good.

    Args:
      coef: β, a scalar.
      kl: d, the divergence of the last update.
      target: d_target.

    Returns:
      The new β.

    Source: Schulman et al. (2017), https://arxiv.org/abs/1707.06347, section 4.
    """
    coef = jnp.asarray(coef, jnp.float32)
    grown = jnp.where(kl > target * 1.5, coef * 2.0, coef)
    return jnp.clip(jnp.where(kl < target / 1.5, coef / 2.0, grown), 1e-4, 1e4)


def value_mse(value: Array, target: Array) -> Array:
    """Squared error of a state value.

    L = ½ (V(s) - G)²

    Args:
      value: `[...]` V(s), which is differentiated.
      target: `[...]` G.

    Returns:
      `[...]` L.

    Source: Sutton and Barto (2018), "Reinforcement Learning", section 9.2.
    """
    chex.assert_equal_shape([value, target])
    return 0.5 * jnp.square(value - jax.lax.stop_gradient(target))


def clipped_value_mse(
    value: Array, old_value: Array, target: Array, clip_eps: Scalar
) -> Array:
    """Squared error of a state value, without gain from a change beyond ±ε.

    L = ½ max((V - G)², (V_old + clip(V - V_old, -ε, ε) - G)²)

    Args:
      value: `[...]` V(s), which is differentiated.
      old_value: `[...]` V_old(s) at the time of acting.
      target: `[...]` G.
      clip_eps: ε, in units of value.

    Returns:
      `[...]` L.

    Source: the PPO authors' code (openai/baselines, `ppo2`), described by Engstrom et
    al. (2020), https://arxiv.org/abs/2005.12729, section 3.
    """
    chex.assert_equal_shape([value, old_value, target])
    old_value, target = jax.lax.stop_gradient((old_value, target))
    clipped = old_value + jnp.clip(value - old_value, -clip_eps, clip_eps)
    error = jnp.maximum(jnp.square(value - target), jnp.square(clipped - target))
    return 0.5 * error


def q_target(
    reward: Array, terminated: Array, next_q_max: Array, gamma: Scalar
) -> Array:
    """One-step Q-learning target.

    y = r + γ max_a Q'(s', a),    the maximum replaced by 0 where s' is terminal

    Args:
      reward: `[...]` r.
      terminated: bool `[...]`, whether s' is terminal. A time limit is not.
      next_q_max: `[...]` max_a Q'(s', a) of the target network, or for double
        Q-learning Q'(s', argmax_a Q(s', a)).
      gamma: γ; to the power n for a sum of n rewards.

    Returns:
      `[...]` y.

    Source: Mnih et al. (2015), "Human-level control through deep reinforcement
    learning", algorithm 1.
    """
    chex.assert_equal_shape([reward, terminated, next_q_max])
    return reward + gamma * jnp.where(terminated, 0.0, next_q_max)


def squared_td(q: Array, target: Array) -> Array:
    """Squared temporal-difference error of an action value.

    L = ½ (Q(s, a) - y)²

    Args:
      q: `[...]` Q(s, a), which is differentiated.
      target: `[...]` y.

    Returns:
      `[...]` L.

    Source: Mnih et al. (2015), algorithm 1.
    """
    chex.assert_equal_shape([q, target])
    return 0.5 * jnp.square(q - jax.lax.stop_gradient(target))


def huber_td(q: Array, target: Array, delta: Scalar = 1.0) -> Array:
    """Huber loss of a TD error: squared near zero, absolute beyond δ.

    e = Q(s, a) - y,    L = ½ e² if |e| <= δ, else δ (|e| - ½ δ)

    Args:
      q: `[...]` Q(s, a), which is differentiated.
      target: `[...]` y.
      delta: δ, the largest gradient.

    Returns:
      `[...]` L.

    Source: Huber (1964), "Robust estimation of a location parameter", section 1; as
    the error clipping of Mnih et al. (2015), methods.
    """
    chex.assert_equal_shape([q, target])
    size = jnp.abs(q - jax.lax.stop_gradient(target))
    quadratic = jnp.minimum(size, delta)
    return 0.5 * jnp.square(quadratic) + delta * (size - quadratic)


def quantile_huber(
    quantiles: Array, target: Array, delta: Scalar = 1.0, level: Array | None = None
) -> Array:
    """Distance of a distribution's quantiles from samples of another one.

    L = mean over m and j of |τ_m - 1[u < 0]| H(u) / δ,    u = y_j - z_m

    H is Huber's loss with δ, and τ_m = (m - 1/2) / M unless given.

    Args:
      quantiles: `[..., M]` z, which are differentiated.
      target: `[..., M']` y, which are not.
      delta: δ, where H becomes linear.
      level: `[..., M]` τ, which quantiles z are; None for the middles of M intervals.

    Returns:
      `[...]` L.

    Source: Dabney et al. (2018), https://arxiv.org/abs/1710.10044, equation 10, with the
    mean over m of Kuznetsov et al. (2020), https://arxiv.org/abs/2005.04269, equation 12;
    with levels that are drawn Dabney et al. (2018), https://arxiv.org/abs/1806.06923,
    equation 3.
    """
    if level is None:
        size = quantiles.shape[-1]
        level = jnp.broadcast_to((jnp.arange(size) + 0.5) / size, quantiles.shape)
    z, y = jnp.broadcast_arrays(quantiles[..., :, None], target[..., None, :])
    weight = jnp.abs(level[..., :, None] - (y < z))
    return (weight * huber_td(z, y, delta)).mean(axis=(-2, -1)) / delta


def categorical_kl(logits: Array, target: Array) -> Array:
    """Distance of a categorical distribution from another one on the same atoms.

    L = KL(m ‖ p) = Σ_i m_i (log m_i - log p_i),    p = softmax(logits)

    Its gradient is that of the cross-entropy, and it falls to 0.

    Args:
      logits: `[..., N]`, which are differentiated.
      target: `[..., N]` m, probabilities, which are not.

    Returns:
      `[...]` L, in nats.

    Source: Bellemare, Dabney and Munos (2017), https://arxiv.org/abs/1707.06887,
    algorithm 1; as the priority Hessel et al. (2018), https://arxiv.org/abs/1710.02298,
    "The integrated agent".
    """
    chex.assert_equal_shape([logits, target])
    target = jax.lax.stop_gradient(target)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -(target * log_p + jax.scipy.special.entr(target)).sum(-1)


def deterministic_policy(q: Array) -> Array:
    """The loss whose gradient is the deterministic policy gradient.

    L = -Q(s, μ(s)),    ∇L = -∇_a Q(s, a) ∇μ(s)  at a = μ(s)

    Args:
      q: `[...]` Q(s, μ(s)), which is differentiated through the action.

    Returns:
      `[...]` L.

    Source: Silver et al. (2014), "Deterministic policy gradient algorithms", theorem 1;
    Lillicrap et al. (2016), https://arxiv.org/abs/1509.02971, equation 6.
    """
    return -q


def temperature(
    log_temperature: Array, log_prob: Array, target_entropy: Scalar
) -> Array:
    """The loss that moves the temperature until the policy has the entropy wanted.

    L = -log α (log π(a|s) + H̄),    ∂L/∂log α = H - H̄  on average

    The paper has α in place of log α; its gradient vanishes with α, so the authors' code
    has this.

    Args:
      log_temperature: log α, a scalar, which is differentiated.
      log_prob: `[...]` log π(a|s); data.
      target_entropy: H̄, a scalar or `[...]`, in nats.

    Returns:
      `[...]` L.

    Source: Haarnoja et al. (2018), https://arxiv.org/abs/1812.05905, equation 18.
    """
    excess = jax.lax.stop_gradient(log_prob) + target_entropy
    return -log_temperature * excess


def negative_log_likelihood(log_prob: Array) -> Array:
    """Negative log-likelihood of an expert's action, the loss of behaviour cloning.

    L = -log π(a*|s)

    For discrete actions it is the cross-entropy; for a normal the squared error over twice
    the variance, plus the logarithm of the standard deviation and a constant.

    Args:
      log_prob: `[...]` log π(a*|s) of the expert's action a*, which is differentiated.

    Returns:
      `[...]` L.

    Source: Pomerleau (1989), "ALVINN: an autonomous land vehicle in a neural network";
    Ross and Bagnell (2010), "Efficient reductions for imitation learning", section 2.
    """
    return -log_prob


def action_mse(action: Array, expert_action: Array) -> Array:
    """Squared error of a continuous action.

    L = ½ ‖a - a*‖²

    Args:
      action: `[..., D]` a, which is differentiated.
      expert_action: `[..., D]` a*.

    Returns:
      `[...]` L; for a normal of standard deviation 1 this is -log π(a*|s) up to a constant.

    Source: Bishop (2006), "Pattern recognition and machine learning", section 1.2.5.
    """
    chex.assert_equal_shape([action, expert_action])
    return 0.5 * jnp.square(action - jax.lax.stop_gradient(expert_action)).sum(-1)


def action_error(action: Array, expert_action: Array) -> Array:
    """Error of an action against the expert's, for evaluation and not for training.

    e = 1 if a ≠ a*, else 0, for discrete actions;    e = ‖a - a*‖² for continuous ones

    Args:
      action: integers `[...]`, or floats `[..., D]`.
      expert_action: a*, of the same shape.

    Returns:
      float32 `[...]` e.

    Source: Ross, Gordon and Bagnell (2011), https://arxiv.org/abs/1011.0686, section 2:
    the 0-1 loss.
    """
    chex.assert_equal_shape([action, expert_action])
    if jnp.issubdtype(action.dtype, jnp.integer):
        return (action != expert_action).astype(jnp.float32)
    return jnp.square(action - expert_action).sum(-1)


def squared_norm(params: PyTree) -> Array:
    """L2 penalty on all parameters: a scalar.

    L = ½ ‖θ‖²,    over all parameters together

    Args:
      params: θ, any pytree.

    Source: Krogh and Hertz (1991), "A simple weight decay can improve generalization".
    """
    return 0.5 * jnp.stack([jnp.square(x).sum() for x in jax.tree.leaves(params)]).sum()


RESOLUTION = 2.0**-17
"""Deviations below this share of the mean are rounding: 64 units in the last place of
float32, since an advantage, a return or a score is a sum of many rounded terms."""

TINY = float(jnp.finfo(jnp.float32).tiny)


def centre(x: Array, where: Array | None = None) -> tuple[Array, Array]:
    """Deviations from the mean over all axes and devices, exactly 0 where all are equal.

    (x - c) - mean(x - c),    c one of the elements

    The sum of equal numbers is rounded, so their mean may not be the number. Divided by
    a spread, which consists of the same rounding, the difference would be of order one.
    Shifted by one of them, they are 0 and so is their sum.

    Args:
      x: `[...]`.
      where: bool `[...]`, the elements that count; the others become 0.

    Returns:
      (deviations `[...]`, mean, a scalar).

    Source: Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance",
    section 3: shifted data.
    """
    x = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
    if where is None and x.size:
        mask, one = jnp.ones(x.shape, bool), x.ravel()[0]
    else:
        mask = jnp.ones(x.shape, bool) if where is None else where
        one = jnp.max(x, initial=-jnp.inf, where=mask)
    # Which one makes no difference, nor to the gradient.
    one = parallel.largest(jax.lax.stop_gradient(one))
    if where is not None or not x.size:
        one = jnp.where(jnp.isneginf(one), 0.0, one)  # of no numbers
    shifted = jnp.where(mask, x - one, 0.0)
    mean = masked_mean(shifted, mask)
    return jnp.where(mask, shifted - mean, 0.0), one + mean


def moments(
    x: Array, where: Array | None = None, terms: Array | None = None
) -> tuple[Array, Array, Array]:
    """Deviations from the mean, their (biased) variance, and the variance of rounding.

    rounding = (2^-17 max(|mean(x)|, mean(|terms|)))²

    A variance is told from that of equal numbers if it is larger than `rounding`. Every
    division by the spread of a batch is made with these three.

    Args:
      x: `[...]`.
      where: bool `[...]`, the elements that count.
      terms: `[...]`, numbers as large as those whose differences x are: these are
        rounded, however small x is.

    Returns:
      (deviations `[...]`, variance, rounding), the last two scalars, over all devices.

    Source: Higham (2002), section 1.9.
    """
    centred, mean = centre(x, where)
    mask = jnp.ones(x.shape, bool) if where is None else where
    variance = masked_mean(jnp.square(centred), mask)
    size = jnp.abs(mean)
    if terms is not None:
        terms = jnp.asarray(terms, centred.dtype)
        size = jnp.maximum(size, masked_mean(jnp.abs(terms), mask))
    return centred, variance, jnp.square(RESOLUTION * size)


def normalize_advantage(
    advantage: Array, where: Array | None = None, terms: Array | None = None
) -> Array:
    """Advantages with zero mean and unit (biased) standard deviation over all axes.

    Â = (A - mean(A)) / √(var(A) + ε²),    ε = 2^-17 max(|mean(A)|, mean(|terms|))

    ε is a few of the steps of float32 at the magnitude of A: advantages that are equal,
    or equal but for rounding, are normalised to about 0, those whose deviation is above
    20 ε (1 / 6,500 of the magnitude) as if ε were 0.

    Args:
      advantage: `[...]` A. A single advantage is normalised to 0, not to NaN.
      where: bool `[...]`, the elements that count; the others become 0.
      terms: `[...]`, the returns or values whose differences A are.

    Returns:
      `[...]` Â.

    Source: Huang et al. (2022), "The 37 implementation details of proximal policy
    optimization", detail 7, where ε is 1e-8 and stands outside of the root.
    """
    centred, variance, rounding = moments(advantage, where, terms)
    return centred / jnp.sqrt(variance + rounding + TINY)


def explained_variance(
    value: Array, target: Array, where: Array | None = None
) -> Array:
    """Share of the targets' variance that the values explain: a scalar, at most 1.

    1 - Var(G - V) / Var(G)

    Args:
      value: `[...]` V(s).
      target: `[...]` G.
      where: bool `[...]`, the elements that count.

    Returns:
      float32 scalar; 0 if the targets do not vary by more than rounding, see `moments`.

    Source: the field's standard diagnostic (openai/baselines, `explained_variance`).
    """
    chex.assert_equal_shape([value, target])
    _, variance, rounding = moments(target, where)
    _, unexplained, _ = moments(target - value, where)
    varies = variance > rounding
    return jnp.where(varies, 1.0 - unexplained / jnp.where(varies, variance, 1.0), 0.0)


def masked_mean(x: Array, mask: Array) -> Array:
    """Mean over the elements where the mask holds, on all devices; 0 if there are none.

    Args:
      x: `[...]`; elements outside the mask may be anything, including NaN.
      mask: bool `[...]`.

    Returns:
      A scalar.
    """
    chex.assert_equal_shape([x, mask])
    count = parallel.total(jnp.sum(mask, dtype=jnp.float32))
    return parallel.total(jnp.sum(jnp.where(mask, x, 0.0))) / jnp.maximum(count, 1.0)


def _ratio(log_prob: Array, old_log_prob: Array) -> Array:
    """ρ = π(a|s) / π_old(a|s)."""
    return jnp.exp(log_prob - jax.lax.stop_gradient(old_log_prob))
