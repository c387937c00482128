"""Estimators of RLHF, one function each: rewards, advantages, and what is measured of text.

Arrays of text are batch-major, as language models have them: B texts of T tokens, V words
of the vocabulary, K responses to one prompt. A mask is bool and True for the tokens that
count; what lies outside of it may be anything, NaN too, and comes out as 0.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl import estimators, losses
from jaxrl.distributions import categorical
from jaxrl.rlhf.losses import implicit_reward
from jaxrl.types import Array, Scalar


def last_token(mask: Array) -> Array:
    """True at the last real token of each text: bool `[B, T]`, of a mask of that shape."""
    return mask & (jnp.cumsum(mask[:, ::-1], 1)[:, ::-1] == 1)


def token_rewards(
    log_prob: Array, ref_log_prob: Array, score: Array, mask: Array, beta: Scalar
) -> Array:
    """The reward of each token: a KL penalty everywhere, the score at the last real one.

    r_t = -β (log π(y_t|·) - log π_ref(y_t|·)) + [t is the last real token] score

    Args:
      log_prob: `[B, T]` of the response's tokens under the policy that wrote them.
      ref_log_prob: `[B, T]` of the same under the reference.
      score: `[B]` the reward model's.
      mask: bool `[B, T]`, the response's tokens, EOS too.
      beta: β.

    Returns:
      `[B, T]`, no gradient flows into it; 0 outside of the response.

    Source: Ziegler et al. (2019), https://arxiv.org/abs/1909.08593, equation 2, with the
    penalty spread over the tokens as in their code (openai/lm-human-preferences).
    """
    chex.assert_equal_shape([log_prob, ref_log_prob, mask])
    penalty = -implicit_reward(log_prob, ref_log_prob, beta)
    reward = penalty + jnp.where(last_token(mask), score[:, None], 0.0)
    return jax.lax.stop_gradient(jnp.where(mask, reward, 0.0))


def score_with_eos_rule(score: Array, has_eos: Array, penalty: Scalar) -> Array:
    """Score with a penalty for missing EOS.

    score - penalty where EOS is missing, else score

    Args:
      score: `[B]`.
      has_eos: bool `[B]`, whether the response holds EOS.
      penalty: 0 or more.

    Returns:
      `[B]`. The penalty is taken off, so it costs whatever the scale of the scores; in
      Huang et al. a fixed -1 takes the score's place.

    Source: Huang et al. (2024), https://arxiv.org/abs/2403.17031, the EOS trick.
    """
    chex.assert_equal_shape([score, has_eos])
    return score - jnp.where(has_eos, 0.0, penalty)


def token_gae(
    reward: Array, value: Array, mask: Array, gamma: Scalar, gae_lambda: Scalar
) -> tuple[Array, Array]:
    """`estimators.gae` of responses: each is an episode, which ends with its last token.

    Args:
      reward: `[B, T]` r_t of the response's tokens, as of `token_rewards`.
      value: `[B, T]` V of the text before each token.
      mask: bool `[B, T]`, the response's tokens: one stretch in each row.
      gamma: γ, 1 as a rule.
      gae_lambda: λ.

    Returns:
      (advantage, target), both float32 `[B, T]`, 0 outside of the response.

    Source: Schulman et al. (2016), https://arxiv.org/abs/1506.02438, equation 16.
    """
    chex.assert_equal_shape([reward, value, mask])
    reward, value = (jnp.where(mask, x, 0.0).T for x in (reward, value))
    goes_on = jnp.pad(mask[:, 1:], ((0, 0), (0, 1))) & mask
    next_value = jnp.concatenate([value[1:], jnp.zeros_like(value[:1])])
    never = jnp.zeros_like(goes_on.T)
    advantage, target = estimators.gae(
        reward, value, next_value, ~goes_on.T, never, gamma, gae_lambda
    )
    return advantage.T, target.T


def rloo_advantage(reward: Array) -> Array:
    """Leave-one-out: each response against the mean of the prompt's others.

    A_i = r_i - 1 / (K - 1) Σ_{j≠i} r_j = K / (K - 1) (r_i - mean(r))

    The baseline does not depend on response i, so the policy gradient stays unbiased.

    Args:
      reward: `[B, K]` r of K ≥ 2 responses to each prompt, the KL penalty subtracted.

    Returns:
      `[B, K]` A.

    Source: Kool et al. (2019), "Buy 4 REINFORCE samples, get a baseline for free!";
    Ahmadian et al. (2024), https://arxiv.org/abs/2402.14740, section 2.
    """
    size = reward.shape[-1]
    return size / (size - 1) * _centre_groups(reward)


def grpo_advantage(
    reward: Array, scale: bool = True, terms: Array | None = None
) -> Array:
    """Each response against the mean of its group, divided by the group's deviation or not.

    A_i = r_i - mean(r),    / √(var(r) + ε²) where scaled

    ε = 2^-17 max(|mean(r)|, mean(|terms|))

    Scaled it is `losses.normalize_advantage` of each group: rewards that differ by rounding
    alone have advantages of about 0.
    Scaled, a prompt counts the more the more alike its responses are, and the optimum is no
    longer that of the rewards. Not scaled it is `rloo_advantage` times (K - 1) / K: where
    the KL penalty is in the loss, and not in r, the reward then weighs that much less.

    Args:
      reward: `[B, K]` r of K responses to each prompt.
      scale: whether to divide by the (biased) standard deviation.
      terms: `[B, K]`, numbers as large as those that r is the sum of, where it has a KL
        penalty: equal scores and rounding are otherwise taken for a spread. None for r.

    Returns:
      `[B, K]` A.

    Source: Shao et al. (2024), https://arxiv.org/abs/2402.03300, section 4.1.2; not scaled,
    Liu et al. (2025), https://arxiv.org/abs/2503.20783.
    """
    if not scale:
        return _centre_groups(reward)
    return jax.vmap(lambda r, of: losses.normalize_advantage(r, terms=of))(
        reward, reward if terms is None else terms
    )


def _centre_groups(reward: Array) -> Array:
    """r_i - mean(r) of groups `[B, K]`, exactly 0 where all are equal."""
    return jax.vmap(lambda group: losses.centre(group)[0])(reward)


def best_of_n(score: Array) -> Array:
    """Which of a prompt's responses has the highest score, the first of equals.

    Args:
      score: `[..., K]`; NaN never wins unless all are NaN.

    Returns:
      int32 `[...]`.

    Source: Stiennon et al. (2020), https://arxiv.org/abs/2009.01325, section 4.3.
    """
    return jnp.argmax(jnp.nan_to_num(score, nan=-jnp.inf), -1).astype(jnp.int32)


# The reward model.


def preference_accuracy(chosen: Array, rejected: Array) -> Array:
    """1 where the chosen response has the higher reward, ½ where both have the same.

    Args:
      chosen: `[...]` r_w.
      rejected: `[...]` r_l.

    Returns:
      `[...]`, whose mean is the accuracy of the reward model.
    """
    chex.assert_equal_shape([chosen, rejected])
    return 0.5 * (1.0 + jnp.sign(chosen - rejected))


class Calibration(NamedTuple):
    """See `calibration`; M bins."""

    confidence: Array  # [M]: mean of what was predicted
    frequency: Array  # [M]: mean of what happened
    number: Array  # [M]: how many predictions
    error: Array  # scalar: the expected calibration error


def calibration(
    probability: Array, outcome: Array, num_bins: int = 10, mask: Array | None = None
) -> Calibration:
    """Calibration: how far predicted probabilities are from frequencies.

    ECE = Σ_m (n_m / n) |frequency_m - confidence_m|,    over bins of equal width

    Args:
      probability: `[N]` predictions in [0, 1]: of a reward model, σ(r_a - r_b).
      outcome: `[N]` what happened, 0 or 1: whether a was preferred.
      num_bins: M.
      mask: bool `[N]`, which of them count; None when all do.

    Returns:
      `Calibration`; a bin without predictions has the means 0.

    Source: Guo et al. (2017), https://arxiv.org/abs/1706.04599, equations 2 and 3.
    """
    chex.assert_equal_shape([probability, outcome])
    mask = jnp.ones(probability.shape, bool) if mask is None else mask
    index = jnp.clip(jnp.where(mask, probability, 0.0) * num_bins, 0, num_bins - 1)
    member = jax.nn.one_hot(index.astype(jnp.int32), num_bins) * mask[:, None]
    count = member.sum(0)
    safe = jnp.maximum(count, 1.0)
    confidence = jnp.where(mask, probability, 0.0) @ member / safe
    frequency = jnp.where(mask, outcome, 0.0) @ member / safe
    gap = count * jnp.abs(frequency - confidence)
    return Calibration(
        confidence, frequency, count, gap.sum() / jnp.maximum(count.sum(), 1.0)
    )


def gain_and_bias(
    own_mean: Scalar, own_std: Scalar, mean: Scalar = 0.0, std: Scalar = 1.0
) -> tuple[Array, Array]:
    """The line that gives rewards of reference responses a mean and a standard deviation.

    g = (std / std(r))^q,    q = var(r) / (var(r) + ε²),    ε = 2^-17 |mean(r)|
    b = mean - g mean(r),    then g r + b is used for r

    q is 1 where rewards vary by more than rounding, and falls to 0 where they do not:
    rewards that are all alike keep their scale.

    Args:
      own_mean: mean(r) over responses of the reference policy, a scalar.
      own_std: std(r) of the same.
      mean: wanted.
      std: wanted.

    Returns:
      (g, b), scalars.

    Source: Ziegler et al. (2019), https://arxiv.org/abs/1909.08593, section 2.1.
    """
    own_std = jnp.asarray(own_std, jnp.float32)
    rounding = losses.RESOLUTION * own_mean / jnp.maximum(own_std, losses.TINY)
    varies = jnp.where(own_std > 0.0, 1.0 / (1.0 + jnp.square(rounding)), 0.0)
    gain = jnp.power(own_std / std, -varies)  # anything to the power 0 is 1
    return gain, mean - gain * own_mean


def decayed_moments(moments: Array, x: Array, decay: Scalar) -> Array:
    """Weight, mean and centred second moment of batches of numbers, old ones fading.

    n <- γ n + (1 - γ),    δ = mean(x) - m,    m <- m + δ (1 - γ) / n
    S <- γ S + (1 - γ) var(x) + δ² (γ n_old) (1 - γ) / n,    the variance is S / n

    Centred, a deviation that is small beside the mean is not lost as in E[x²] - m².

    Args:
      moments: `[3]` n, m, S; zeros at first.
      x: `[...]`.
      decay: γ, a scalar.

    Returns:
      `[3]`.

    Source: Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance".
    """
    before, middle, second = decay * moments[0], moments[1], decay * moments[2]
    deviations, batch_mean = losses.centre(x)
    weight = 1.0 - decay
    total = before + weight
    delta = batch_mean - middle
    second += weight * jnp.square(deviations).mean()
    second += jnp.square(delta) * before * weight / total
    return jnp.stack([total, middle + delta * weight / total, second])


# Diversity.


def entropy(logits: Array) -> Array:
    """-Σ_v π(v) log π(v) of next-token distributions.

    Args:
      logits: `[..., V]`.

    Returns:
      `[...]`, in nats.

    Source: Shannon (1948), "A mathematical theory of communication", section 6.
    """
    return categorical(logits).entropy()


def length(mask: Array) -> Array:
    """Number of tokens of each text: int32 `[...]`, of a mask `[..., T]`."""
    return mask.sum(-1, dtype=jnp.int32)


def distinct_n(tokens: Array, mask: Array, n: int) -> Array:
    """Distinct n-grams of all texts together, as a share of all their n-grams.

    Args:
      tokens: int32 `[B, T]`.
      mask: bool `[B, T]`; an n-gram counts where all its tokens do.
      n: 1 or more, at most T.

    Returns:
      float32 scalar, 1 where none occurs twice; 0 where there is none.

    Source: Li et al. (2016), https://arxiv.org/abs/1510.03055, section 5.1.
    """
    chex.assert_equal_shape([tokens, mask])
    width = tokens.shape[1] - n + 1
    real = jnp.stack([mask[:, i : i + width] for i in range(n)]).all(0).ravel()
    grams = jnp.stack([tokens[:, i : i + width].ravel() for i in range(n)])
    order = jnp.lexsort((*grams, ~real))  # the real ones first, equals side by side
    grams, real = grams[:, order], real[order]
    new = jnp.pad((grams[:, 1:] != grams[:, :-1]).any(0), (1, 0), constant_values=True)
    return (new & real).sum() / jnp.maximum(real.sum(), 1).astype(jnp.float32)
