"""Losses of RLHF: hand numbers, loops in float64, identities, exact divergences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import losses
from jaxrl.rlhf import losses as text_losses

RNG = np.random.default_rng(0)
B, T, V = 5, 7, 4
LOGITS = RNG.normal(size=(B, T, V)).astype(np.float32)
TOKENS = RNG.integers(0, V, (B, T)).astype(np.int32)
LENGTHS = np.array([7, 1, 3, 0, 5])
MASK = np.arange(T) < LENGTHS[:, None]


def softmax(x):
    x = np.exp(np.asarray(x, float) - np.max(x, -1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_log_probs(temperature):
    expected = np.zeros((B, T))
    for b in range(B):
        for t in range(1, T):
            p = softmax(LOGITS[b, t - 1] / temperature)
            expected[b, t] = np.log(p[TOKENS[b, t]])
    close(text_losses.token_log_probs(LOGITS, TOKENS, temperature), expected)


def test_next_token_loss():
    # Uniform over 4 words: log 4, whatever the mask, and the first column never counts.
    flat = jnp.zeros((B, T, V))
    close(text_losses.next_token_loss(flat, TOKENS, MASK), np.log(4))
    first = np.zeros((B, T), bool)
    first[:, 0] = True
    assert text_losses.next_token_loss(flat, TOKENS, first) == 0
    log_prob = np.asarray(text_losses.token_log_probs(LOGITS, TOKENS))
    counted = MASK & ~first
    expected = -log_prob[counted].mean()
    close(text_losses.next_token_loss(LOGITS, TOKENS, MASK), expected)
    unused = np.where(counted[:, 1:, None], LOGITS[:, :-1], np.nan)
    padded = np.concatenate([unused, np.full((B, 1, V), np.nan)], 1)
    close(text_losses.next_token_loss(padded, TOKENS, MASK), expected)


def test_masked_sum():
    x = jnp.where(MASK, 2.0, jnp.nan)
    close(text_losses.masked_sum(x, MASK), 2.0 * LENGTHS)


def test_preference_loss():
    close(text_losses.preference_loss(jnp.array(1.0), jnp.array(1.0)), np.log(2))
    found = text_losses.preference_loss(
        jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0]), 0.5
    )
    close(found, [np.log1p(np.exp(-1.5)), np.log1p(np.exp(2.5))])
    assert np.isfinite(text_losses.preference_loss(jnp.array(-500.0), jnp.array(500.0)))


def test_ranking_is_all_its_pairs():
    assert text_losses.ranking_pairs(3).tolist() == [[0, 1], [0, 2], [1, 2]]
    assert len(text_losses.ranking_pairs(9)) == 36
    reward = RNG.normal(size=(2, 4))
    expected = [
        np.mean(
            [np.log1p(np.exp(r[j] - r[i])) for i in range(4) for j in range(i + 1, 4)]
        )
        for r in reward
    ]
    close(text_losses.ranking_loss(jnp.asarray(reward)), expected)
    pair = jnp.asarray(reward[:, :2])
    margin = jnp.array([0.5, 2.0])
    close(
        text_losses.ranking_loss(pair, margin),
        text_losses.preference_loss(pair[:, 0], pair[:, 1], margin),
    )
    wider = text_losses.ranking_loss(jnp.array([[3.0, 2.0, 0.0]]), 1.0)
    close(wider, [np.mean([np.log1p(np.exp(1.0 - d)) for d in (1, 3, 2)])])


@pytest.fixture(scope="module")
def toy():
    """Two policies over a vocabulary of 6, and the three estimates for each word."""
    old, new = RNG.normal(size=6), RNG.normal(size=6)
    new = old + 0.3 * (new - old)
    log_old, log_new = np.log(softmax(old)), np.log(softmax(new))
    exact = (np.exp(log_old) * (log_old - log_new)).sum()
    with jax.enable_x64(True):
        estimates = [
            np.asarray(estimate(jnp.asarray(log_new), jnp.asarray(log_old)))
            for estimate in (text_losses.kl_k1, text_losses.kl_k2, losses.approx_kl)
        ]
        assert np.isclose(
            text_losses.kl_from_logits(jnp.asarray(old), jnp.asarray(new)), exact
        )
    return np.exp(log_old), log_old - log_new, exact, estimates


def test_k1_and_k3_are_unbiased_and_k2_nearly(toy):
    probability, log_ratio, exact, (k1, k2, k3) = toy
    assert exact > 0.01
    close(probability @ k1, exact, 1e-12)
    close(probability @ k3, exact, 1e-12)
    bias = probability @ k2 - exact
    assert abs(bias) > 1e-5
    # E[ρ] = 1 leaves Σ_{n≥3} E[(log ρ)^n] / n! as the bias of k2: third order first.
    close(bias, -(probability @ (np.expm1(-log_ratio) + log_ratio - log_ratio**2 / 2)))


def test_k1_varies_most(toy):
    probability, _, exact, (k1, k2, k3) = toy
    spread = [np.sqrt(probability @ (k - exact) ** 2) for k in (k1, k2, k3)]
    assert spread[0] > 2 * max(spread[1:])
    assert (k1 < 0).any() and (k2 >= 0).all() and (k3 >= 0).all()


def test_which_divergence_an_estimate_in_the_loss_makes_smaller():
    """Differentiated at words that π drew: k2 has the gradient of KL(π ‖ π_ref), k1 none,
    and k3 that of KL(π_ref ‖ π)."""
    with jax.enable_x64(True):
        logits, ref = jnp.asarray(RNG.normal(size=6)), jnp.asarray(RNG.normal(size=6))
        p, log_ref = jax.nn.softmax(logits), jax.nn.log_softmax(ref)

        def in_loss(estimate):
            return jax.grad(lambda x: p @ estimate(jax.nn.log_softmax(x)))(logits)

        def k3(log_prob):
            return losses.approx_kl(log_ref - log_prob, jnp.zeros(6))

        forward = jax.grad(text_losses.kl_from_logits)(logits, ref)
        backward = jax.grad(text_losses.kl_from_logits, argnums=1)(ref, logits)
        close(in_loss(lambda x: text_losses.kl_k2(x, log_ref)), forward, 1e-10)
        close(in_loss(lambda x: text_losses.kl_k1(x, log_ref)), 0.0, 1e-10)
        close(in_loss(k3), backward, 1e-10)
        assert np.abs(forward - backward).max() > 0.05


def test_of_equal_policies_every_divergence_is_0_and_every_ratio_1():
    log_prob = text_losses.token_log_probs(LOGITS, TOKENS)
    for estimate in (text_losses.kl_k1, text_losses.kl_k2, losses.approx_kl):
        assert not np.any(estimate(log_prob, log_prob))
    close(
        text_losses.kl_from_logits(jnp.asarray(LOGITS), jnp.asarray(LOGITS)), 0.0, 1e-6
    )
    advantage = jnp.asarray(RNG.normal(size=(B, T)))
    close(losses.clipped_surrogate(log_prob, log_prob, advantage, 0.2), -advantage)
    assert not np.any(text_losses.implicit_reward(log_prob, log_prob, 0.3))
    close(text_losses.dpo_loss(*[log_prob] * 4, 0.3), np.log(2))


@pytest.mark.parametrize(
    "kl, factor", [(6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (5.4, 0.99), (0.0, 0.98)]
)
def test_proportional_kl_coef(kl, factor):
    close(text_losses.proportional_kl_coef(0.5, kl, 6.0), 0.5 * factor, 1e-6)


def test_whitening():
    x = jnp.where(MASK, jnp.asarray(RNG.normal(4, 3, (B, T))), jnp.nan)
    mean, std = np.asarray(x)[MASK].mean(), np.asarray(x)[MASK].std()
    shifted = np.asarray(text_losses.whiten(x, MASK))
    kept = np.asarray(text_losses.whiten(x, MASK, shift_mean=False))
    close([shifted[MASK].mean(), shifted[MASK].std()], [0.0, 1.0])
    close([kept[MASK].mean(), kept[MASK].std()], [mean, 1.0])
    close(kept[MASK], (np.asarray(x)[MASK] - mean) / std + mean)
    assert not shifted[~MASK].any() and not kept[~MASK].any()


def test_the_gradient_of_dpo_at_the_reference_by_hand():
    """-β σ(0) (1, -1) in the two log-probabilities."""
    zero = jnp.zeros(3)
    chosen, rejected = jax.grad(
        lambda w, x: text_losses.dpo_loss(w, x, zero, zero, 0.4).sum(), (0, 1)
    )(zero, zero)
    close(chosen, -0.2)
    close(rejected, 0.2)
