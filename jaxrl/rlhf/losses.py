"""Losses of RLHF and the divergences in them, one function each.

Arrays of text are batch-major, as language models have them: B texts of T tokens, V words
of the vocabulary, K responses to one prompt. A mask is bool and True for the tokens that
count; what lies outside of it may be anything, NaN too, and comes out as 0. Losses are
to be minimised.

Losses that text shares with any other episode are in `jaxrl.losses`: `clipped_surrogate`,
`clipped_value_mse`, `approx_kl` (k3) and `masked_mean` take `[B, T]` as any other shape.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import losses
from jaxrl.distributions import categorical
from jaxrl.types import Array, Scalar


def token_log_probs(logits: Array, tokens: Array, temperature: Scalar = 1.0) -> Array:
    """Log-probability of each token, given those before it.

    log π(x_t | x_<t) = log softmax(l_{t-1} / temperature)[x_t]

    Args:
      logits: `[B, T, V]` l; those of row t are about the token of row t + 1.
      tokens: int32 `[B, T]` x.
      temperature: of the sampling whose probabilities are wanted.

    Returns:
      `[B, T]`; 0 for the first token, before which there is nothing.

    Source: Radford et al. (2019), "Language models are unsupervised multitask learners",
    equation 1.
    """
    chex.assert_equal_shape_prefix([logits, tokens], 2)
    pi = categorical(logits[:, :-1] / temperature)
    return jnp.pad(pi.log_prob(tokens[:, 1:]), ((0, 0), (1, 0)))


def masked_sum(x: Array, mask: Array) -> Array:
    """Sum over the tokens of each text: of log-probabilities, log π(y|x) of a response.

    Args:
      x: `[..., T]`.
      mask: bool `[..., T]`.

    Returns:
      `[...]`.
    """
    chex.assert_equal_shape([x, mask])
    return jnp.where(mask, x, 0.0).sum(-1)


def next_token_loss(logits: Array, tokens: Array, mask: Array) -> Array:
    """Cross-entropy of the next token: pretraining, and supervised fine-tuning.

    L = -mean of log π(x_t | x_<t) over the tokens that count

    Args:
      logits: `[B, T, V]`.
      tokens: int32 `[B, T]` x.
      mask: bool `[B, T]`, the tokens to be predicted: all real ones in pretraining, those
        of the responses in fine-tuning. The first of a row never counts.

    Returns:
      A scalar, the mean over all counted tokens of the batch, in nats.

    Source: Ouyang et al. (2022), https://arxiv.org/abs/2203.02155, section 3.5.
    """
    chex.assert_equal_shape([tokens, mask])
    log_prob = token_log_probs(logits, tokens)
    return -losses.masked_mean(log_prob[:, 1:], mask[:, 1:])


# Preferences.


def preference_loss(chosen: Array, rejected: Array, margin: Scalar = 0.0) -> Array:
    """Negative log-likelihood of a choice under the model of Bradley and Terry.

    L = -log σ(r_w - r_l - m)

    Args:
      chosen: `[...]` r_w, the reward of the response that was preferred.
      rejected: `[...]` r_l, that of the other.
      margin: m, by how much more the better one should get; `[...]` or a number.

    Returns:
      `[...]` L.

    Source: Bradley and Terry (1952), "Rank analysis of incomplete block designs"; Stiennon
    et al. (2020), https://arxiv.org/abs/2009.01325, section 3.4; with a margin, Touvron et
    al. (2023), https://arxiv.org/abs/2307.09288, equation 2.
    """
    chex.assert_equal_shape([chosen, rejected])
    return -jax.nn.log_sigmoid(chosen - rejected - margin)


def ranking_pairs(k: int) -> np.ndarray:
    """All pairs of a ranking of k, best first: int32 `[k (k - 1) / 2, 2]`, better before
    worse.

    Source: Ouyang et al. (2022), https://arxiv.org/abs/2203.02155, section 3.5.
    """
    better, worse = np.triu_indices(k, 1)
    return np.stack([better, worse], 1).astype(np.int32)


def ranking_loss(reward: Array, margin: Scalar = 0.0) -> Array:
    """`preference_loss` of a ranking: the mean over all its pairs.

    L = -1 / (K choose 2) Σ_{i<j} log σ(r_i - r_j - m)

    Args:
      reward: `[..., K]` r of K responses to one prompt, ranked from best to worst.
      margin: m, of all pairs of a ranking; `[...]` or a number.

    Returns:
      `[...]` L.

    Source: Ouyang et al. (2022), https://arxiv.org/abs/2203.02155, equation 1.
    """
    better, worse = ranking_pairs(reward.shape[-1]).T
    margin = jnp.asarray(margin)[..., None]
    return preference_loss(reward[..., better], reward[..., worse], margin).mean(-1)


def implicit_reward(log_prob: Array, ref_log_prob: Array, beta: Scalar) -> Array:
    """The reward for which a policy would be the optimum, up to a constant per prompt.

    β log(π(y|x) / π_ref(y|x))

    Args:
      log_prob: `[...]` log π(y|x).
      ref_log_prob: `[...]` log π_ref(y|x).
      beta: β.

    Returns:
      `[...]`. Its negative is the KL penalty of RLHF.

    Source: Rafailov et al. (2023), https://arxiv.org/abs/2305.18290, equation 5.
    """
    chex.assert_equal_shape([log_prob, ref_log_prob])
    return beta * (log_prob - ref_log_prob)


def dpo_loss(
    chosen_log_prob: Array,
    rejected_log_prob: Array,
    ref_chosen_log_prob: Array,
    ref_rejected_log_prob: Array,
    beta: Scalar,
) -> Array:
    """Direct preference optimisation: `preference_loss` of the policy's implicit rewards.

    L = -log σ(β log(π(y_w)/π_ref(y_w)) - β log(π(y_l)/π_ref(y_l)))

    Args:
      chosen_log_prob: `[...]` log π(y_w|x), the sum over the response's tokens.
      rejected_log_prob: `[...]` log π(y_l|x).
      ref_chosen_log_prob: `[...]` log π_ref(y_w|x).
      ref_rejected_log_prob: `[...]` log π_ref(y_l|x).
      beta: β.

    Returns:
      `[...]` L.

    Source: Rafailov et al. (2023), https://arxiv.org/abs/2305.18290, equation 7.
    """
    return preference_loss(
        implicit_reward(chosen_log_prob, ref_chosen_log_prob, beta),
        implicit_reward(rejected_log_prob, ref_rejected_log_prob, beta),
    )


# Divergence from the reference policy.


def kl_k1(log_prob: Array, old_log_prob: Array) -> Array:
    """Estimate of KL(π_old ‖ π) from actions of π_old: unbiased, may be negative.

    k1 = -log ρ,    ρ = π(a|s) / π_old(a|s)

    KL(π ‖ π_ref) from the policy's own responses is `kl_k1(ref_log_prob, log_prob)`.

    Args:
      log_prob: `[...]` log π(a|s).
      old_log_prob: `[...]` log π_old(a|s) of the policy that acted.

    Returns:
      `[...]`, whose mean estimates the divergence.

    Source: Schulman (2020), http://joschu.net/blog/kl-approx.html.
    """
    chex.assert_equal_shape([log_prob, old_log_prob])
    return jax.lax.stop_gradient(old_log_prob) - log_prob


def kl_k2(log_prob: Array, old_log_prob: Array) -> Array:
    """Estimate of KL(π_old ‖ π) from actions of π_old: never negative, biased.

    k2 = ½ (log ρ)²,    ρ = π(a|s) / π_old(a|s)

    The bias is of third order in log ρ.

    Args:
      log_prob: `[...]` log π(a|s).
      old_log_prob: `[...]` log π_old(a|s) of the policy that acted.

    Returns:
      `[...]`, whose mean estimates the divergence.

    Source: Schulman (2020), http://joschu.net/blog/kl-approx.html.
    """
    return 0.5 * jnp.square(kl_k1(log_prob, old_log_prob))


def kl_from_logits(logits: Array, ref_logits: Array) -> Array:
    """The divergence of two next-token distributions, exact: KL(π ‖ π_ref).

    Σ_v π(v) (log π(v) - log π_ref(v))

    Args:
      logits: `[..., V]` of π.
      ref_logits: `[..., V]` of π_ref.

    Returns:
      `[...]`, in nats.

    Source: Kullback and Leibler (1951), "On information and sufficiency".
    """
    chex.assert_equal_shape([logits, ref_logits])
    return categorical(logits).kl_divergence(categorical(ref_logits))


def proportional_kl_coef(
    coef: Scalar, kl: Scalar, target: Scalar, gain: Scalar = 0.1
) -> Array:
    """The next β, so that the divergence comes to its target.

    e = clip(KL / target - 1, -0.2, 0.2),    β <- β (1 + K e)

    Args:
      coef: β, a scalar.
      kl: the divergence measured, KL(π ‖ π_ref), a scalar.
      target: the one wanted, in nats.
      gain: K.

    Returns:
      The new β. (`losses.adaptive_kl_coef` is PPO's own, which halves and doubles.)

    Source: Ziegler et al. (2019), https://arxiv.org/abs/1909.08593, section 2.2.
    """
    error = jnp.clip(jnp.asarray(kl) / target - 1.0, -0.2, 0.2)
    return coef * (1.0 + gain * error)


# Advantages.


def whiten(
    x: Array, mask: Array, shift_mean: bool = True, terms: Array | None = None
) -> Array:
    """Unit (biased) standard deviation over all counted elements; mean 0, or as it was.

    (x - mean) / std,    + mean where it is kept

    Advantages lose their mean. Rewards keep it: their average carries information.

    Args:
      x: `[...]`.
      mask: bool `[...]`.
      shift_mean: whether the mean becomes 0.
      terms: `[...]`, the numbers whose differences x are; see
        `losses.normalize_advantage`.

    Returns:
      `[...]`, 0 outside of the mask.

    Source: Huang et al. (2024), https://arxiv.org/abs/2403.17031, reward and advantage
    whitening.
    """
    white = losses.normalize_advantage(x, mask, terms)
    if shift_mean:
        return white
    return jnp.where(mask, white + losses.masked_mean(x, mask), 0.0)
