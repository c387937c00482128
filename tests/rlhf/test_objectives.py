"""RLHF's objectives: hand numbers, loops in float64, identities, exact divergences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import losses
from jaxrl.rlhf import objectives as o

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
    close(o.token_log_probs(LOGITS, TOKENS, temperature), expected)


def test_next_token_loss():
    # Uniform over 4 words: log 4, whatever the mask, and the first column never counts.
    flat = jnp.zeros((B, T, V))
    close(o.next_token_loss(flat, TOKENS, MASK), np.log(4))
    first = np.zeros((B, T), bool)
    first[:, 0] = True
    assert o.next_token_loss(flat, TOKENS, first) == 0
    log_prob = np.asarray(o.token_log_probs(LOGITS, TOKENS))
    counted = MASK & ~first
    expected = -log_prob[counted].mean()
    close(o.next_token_loss(LOGITS, TOKENS, MASK), expected)
    unused = np.where(counted[:, 1:, None], LOGITS[:, :-1], np.nan)
    padded = np.concatenate([unused, np.full((B, 1, V), np.nan)], 1)
    close(o.next_token_loss(padded, TOKENS, MASK), expected)


def test_masked_sum():
    x = jnp.where(MASK, 2.0, jnp.nan)
    close(o.masked_sum(x, MASK), 2.0 * LENGTHS)


def test_preference_loss():
    close(o.preference_loss(jnp.array(1.0), jnp.array(1.0)), np.log(2))
    found = o.preference_loss(jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0]), 0.5)
    close(found, [np.log1p(np.exp(-1.5)), np.log1p(np.exp(2.5))])
    assert np.isfinite(o.preference_loss(jnp.array(-500.0), jnp.array(500.0)))


def test_ranking_is_all_its_pairs():
    assert o.ranking_pairs(3).tolist() == [[0, 1], [0, 2], [1, 2]]
    assert len(o.ranking_pairs(9)) == 36
    reward = RNG.normal(size=(2, 4))
    expected = [
        np.mean(
            [np.log1p(np.exp(r[j] - r[i])) for i in range(4) for j in range(i + 1, 4)]
        )
        for r in reward
    ]
    close(o.ranking_loss(jnp.asarray(reward)), expected)
    pair = jnp.asarray(reward[:, :2])
    margin = jnp.array([0.5, 2.0])
    close(
        o.ranking_loss(pair, margin), o.preference_loss(pair[:, 0], pair[:, 1], margin)
    )
    wider = o.ranking_loss(jnp.array([[3.0, 2.0, 0.0]]), 1.0)
    close(wider, [np.mean([np.log1p(np.exp(1.0 - d)) for d in (1, 3, 2)])])


def test_preference_accuracy():
    found = o.preference_accuracy(
        jnp.array([1.0, 0.0, 2.0]), jnp.array([0.0, 1.0, 2.0])
    )
    assert found.tolist() == [1.0, 0.0, 0.5]


def test_calibration_by_hand():
    probability = jnp.array([0.1, 0.3, 0.9, 1.0, jnp.nan])
    outcome = jnp.array([0, 1, 1, 0, 1])
    mask = jnp.array([True, True, True, True, False])
    found = o.calibration(probability, outcome, 2, mask)
    close(found.confidence, [0.2, 0.95])
    close(found.frequency, [0.5, 0.5])
    assert found.number.tolist() == [2, 2]
    close(found.error, 0.5 * 0.3 + 0.5 * 0.45)


def test_what_is_true_is_calibrated_and_what_boasts_is_not():
    difference = RNG.normal(size=20_000)
    truth = 1 / (1 + np.exp(-difference))
    outcome = RNG.random(20_000) < truth
    assert o.calibration(jnp.asarray(truth), jnp.asarray(outcome)).error < 0.02
    boast = 1 / (1 + np.exp(-3 * difference))
    assert o.calibration(jnp.asarray(boast), jnp.asarray(outcome)).error > 0.1


def test_gain_and_bias_normalise_the_reference_samples():
    reward = jnp.asarray(RNG.normal(3, 5, 100))
    gain, bias = o.gain_and_bias(reward.mean(), reward.std())
    close((gain * reward + bias).mean(), 0.0)
    close((gain * reward + bias).std(), 1.0)
    gain, bias = o.gain_and_bias(reward.mean(), reward.std(), 2.0, 0.5)
    close((gain * reward + bias).mean(), 2.0)
    close((gain * reward + bias).std(), 0.5)
    close(o.gain_and_bias(7.0, 0.0), (1.0, -7.0))  # all alike


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
            for estimate in (o.kl_k1, o.kl_k2, losses.approx_kl)
        ]
        assert np.isclose(o.kl_from_logits(jnp.asarray(old), jnp.asarray(new)), exact)
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

        forward = jax.grad(o.kl_from_logits)(logits, ref)
        backward = jax.grad(o.kl_from_logits, argnums=1)(ref, logits)
        close(in_loss(lambda x: o.kl_k2(x, log_ref)), forward, 1e-10)
        close(in_loss(lambda x: o.kl_k1(x, log_ref)), 0.0, 1e-10)
        close(in_loss(k3), backward, 1e-10)
        assert np.abs(forward - backward).max() > 0.05


def test_of_equal_policies_every_divergence_is_0_and_every_ratio_1():
    log_prob = o.token_log_probs(LOGITS, TOKENS)
    for estimate in (o.kl_k1, o.kl_k2, losses.approx_kl):
        assert not np.any(estimate(log_prob, log_prob))
    close(o.kl_from_logits(jnp.asarray(LOGITS), jnp.asarray(LOGITS)), 0.0, 1e-6)
    advantage = jnp.asarray(RNG.normal(size=(B, T)))
    close(losses.clipped_surrogate(log_prob, log_prob, advantage, 0.2), -advantage)
    assert not np.any(o.implicit_reward(log_prob, log_prob, 0.3))
    close(o.dpo_loss(*[log_prob] * 4, 0.3), np.log(2))


def test_token_rewards_against_a_loop():
    log_prob, ref = RNG.normal(size=(2, B, T))
    score = np.array([1.0, -2.0, 3.0, 4.0, np.pi])
    expected = np.zeros((B, T))
    for b in range(B):
        for t in range(LENGTHS[b]):
            expected[b, t] = -0.1 * (log_prob[b, t] - ref[b, t])
        if LENGTHS[b]:
            expected[b, LENGTHS[b] - 1] += score[b]
    dirty = jnp.where(MASK, log_prob, jnp.nan)
    close(
        o.token_rewards(dirty, jnp.asarray(ref), jnp.asarray(score), MASK, 0.1),
        expected,
    )
    assert o.last_token(jnp.asarray(MASK)).sum(1).tolist() == [1, 1, 1, 0, 1]
    inside = jnp.array([[False, True, True, False]])
    assert o.last_token(inside).tolist() == [[False, False, True, False]]


def test_the_rewards_of_an_answer_add_up_to_its_score_less_the_leash():
    log_prob, ref = RNG.normal(size=(2, B, T))
    reward = o.token_rewards(jnp.asarray(log_prob), ref, jnp.ones(B), MASK, 0.2)
    whole = [o.masked_sum(jnp.asarray(x), MASK) for x in (log_prob, ref)]
    expected = (LENGTHS > 0) - o.implicit_reward(*whole, 0.2)
    close(reward.sum(1), expected)


def test_a_missing_eos_costs():
    found = o.score_with_eos_rule(jnp.array([2.0, 2.0]), jnp.array([True, False]), 1.5)
    assert found.tolist() == [2.0, 0.5]


@pytest.mark.parametrize(
    "kl, factor", [(6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (5.4, 0.99), (0.0, 0.98)]
)
def test_proportional_kl_coef(kl, factor):
    close(o.proportional_kl_coef(0.5, kl, 6.0), 0.5 * factor, 1e-6)


def test_whitening():
    x = jnp.where(MASK, jnp.asarray(RNG.normal(4, 3, (B, T))), jnp.nan)
    mean, std = np.asarray(x)[MASK].mean(), np.asarray(x)[MASK].std()
    shifted = np.asarray(o.whiten(x, MASK))
    kept = np.asarray(o.whiten(x, MASK, shift_mean=False))
    close([shifted[MASK].mean(), shifted[MASK].std()], [0.0, 1.0])
    close([kept[MASK].mean(), kept[MASK].std()], [mean, 1.0])
    close(kept[MASK], (np.asarray(x)[MASK] - mean) / std + mean)
    assert not shifted[~MASK].any() and not kept[~MASK].any()


@pytest.mark.parametrize("shift", [0, 2])  # answers at the start, and behind a prompt
def test_gae_with_masks_against_a_loop(shift):
    gamma, lam = 0.97, 0.9
    reward, value = RNG.normal(size=(2, B, T))
    mask = np.roll(np.where(LENGTHS[:, None] > T - shift, False, MASK), shift, 1)
    advantage, target = np.zeros((2, B, T))
    for b in range(B):
        following = next_value = 0.0
        for t in reversed(range(T)):
            if mask[b, t]:
                delta = reward[b, t] + gamma * next_value - value[b, t]
                following = delta + gamma * lam * following
                advantage[b, t], target[b, t] = following, following + value[b, t]
                next_value = value[b, t]
    dirty = [jnp.where(mask, x, jnp.nan) for x in (reward, value)]
    found = o.token_gae(*dirty, jnp.asarray(mask), gamma, lam)
    close(found, (advantage, target))
    assert np.abs(advantage).max() > 0.5


def test_rloo_by_hand_and_as_a_mean_baseline():
    close(o.rloo_advantage(jnp.array([[1.0, 2.0, 6.0]])), [[-3.0, -1.5, 4.5]])
    reward = jnp.asarray(RNG.normal(size=(3, 4)))
    close(o.rloo_advantage(reward), 4 / 3 * (reward - reward.mean(1, keepdims=True)))
    close(o.rloo_advantage(reward), 4 / 3 * o.grpo_advantage(reward, scale=False))


@pytest.mark.parametrize(
    "advantage, share",
    [(o.rloo_advantage, 1.0), (lambda r: o.grpo_advantage(r, scale=False), 2 / 3)],
    ids=["rloo", "grpo"],
)
def test_how_much_of_the_policy_gradient_a_baseline_leaves(advantage, share):
    """By a sum over all groups of K = 3 answers: all of it, and (K - 1) / K."""
    with jax.enable_x64(True):
        logits, reward = jnp.asarray(RNG.normal(size=(2, 4)))
        groups = jnp.stack(jnp.meshgrid(*[jnp.arange(4)] * 3), -1).reshape(-1, 3)

        def loss(x):
            log_prob = jax.nn.log_softmax(x)[groups]
            drawn = jax.lax.stop_gradient(jnp.exp(log_prob.sum(1)))
            each = losses.policy_gradient(log_prob, advantage(reward[groups]))
            return drawn @ each.mean(1)

        exact = jax.grad(lambda x: jax.nn.softmax(x) @ reward)(logits)
        close(-jax.grad(loss)(logits), share * exact, 1e-10)
        assert np.abs(exact).max() > 0.01


def test_grpo_advantage():
    reward = jnp.array([[0.0, 2.0], [5.0, 5.0], [0.0, 20.0]])
    assert o.grpo_advantage(reward, scale=False).tolist() == [
        [-1, 1],
        [0, 0],
        [-10, 10],
    ]
    close(o.grpo_advantage(reward), [[-1, 1], [0, 0], [-1, 1]])


def test_the_gradient_of_dpo_at_the_reference_by_hand():
    """-β σ(0) (1, -1) in the two log-probabilities."""
    zero = jnp.zeros(3)
    chosen, rejected = jax.grad(
        lambda w, x: o.dpo_loss(w, x, zero, zero, 0.4).sum(), (0, 1)
    )(zero, zero)
    close(chosen, -0.2)
    close(rejected, 0.2)


def test_best_of_n():
    score = jnp.array([[1.0, 3.0, 3.0], [jnp.nan, -5.0, -9.0]])
    assert o.best_of_n(score).tolist() == [1, 1]


def test_entropy_and_length():
    close(o.entropy(jnp.zeros((2, 4))), np.log(4))
    p = softmax(LOGITS)
    close(o.entropy(jnp.asarray(LOGITS)), -(p * np.log(p)).sum(-1))
    assert o.length(jnp.asarray(MASK)).tolist() == LENGTHS.tolist()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_against_a_set(n):
    grams = [
        tuple(TOKENS[b, t : t + n]) for b in range(B) for t in range(LENGTHS[b] - n + 1)
    ]
    found = jax.jit(o.distinct_n, static_argnums=2)(TOKENS, MASK, n)
    close(found, len(set(grams)) / len(grams))
    assert o.distinct_n(TOKENS, jnp.zeros((B, T), bool), n) == 0


def test_what_repeats_itself_is_less_distinct():
    same, mask = jnp.ones((2, 4), jnp.int32), jnp.ones((2, 4), bool)
    close(o.distinct_n(same, mask, 2), 1 / 6)
    close(o.distinct_n(jnp.arange(8).reshape(2, 4), mask, 2), 1.0)
