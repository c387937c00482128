"""Estimators of RLHF: hand numbers, loops in float64, exact sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import losses
from jaxrl.rlhf import estimators
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


def test_preference_accuracy():
    found = estimators.preference_accuracy(
        jnp.array([1.0, 0.0, 2.0]), jnp.array([0.0, 1.0, 2.0])
    )
    assert found.tolist() == [1.0, 0.0, 0.5]


def test_calibration_by_hand():
    probability = jnp.array([0.1, 0.3, 0.9, 1.0, jnp.nan])
    outcome = jnp.array([0, 1, 1, 0, 1])
    mask = jnp.array([True, True, True, True, False])
    found = estimators.calibration(probability, outcome, 2, mask)
    close(found.confidence, [0.2, 0.95])
    close(found.frequency, [0.5, 0.5])
    assert found.number.tolist() == [2, 2]
    close(found.error, 0.5 * 0.3 + 0.5 * 0.45)


def test_what_is_true_is_calibrated_and_what_boasts_is_not():
    difference = RNG.normal(size=20_000)
    truth = 1 / (1 + np.exp(-difference))
    outcome = RNG.random(20_000) < truth
    assert estimators.calibration(jnp.asarray(truth), jnp.asarray(outcome)).error < 0.02
    boast = 1 / (1 + np.exp(-3 * difference))
    assert estimators.calibration(jnp.asarray(boast), jnp.asarray(outcome)).error > 0.1


def test_gain_and_bias_normalise_the_reference_samples():
    reward = jnp.asarray(RNG.normal(3, 5, 100))
    gain, bias = estimators.gain_and_bias(reward.mean(), reward.std())
    close((gain * reward + bias).mean(), 0.0)
    close((gain * reward + bias).std(), 1.0)
    gain, bias = estimators.gain_and_bias(reward.mean(), reward.std(), 2.0, 0.5)
    close((gain * reward + bias).mean(), 2.0)
    close((gain * reward + bias).std(), 0.5)
    close(estimators.gain_and_bias(7.0, 0.0), (1.0, -7.0))  # all alike
    close(estimators.gain_and_bias(0.0, 0.0), (1.0, 0.0))
    assert estimators.gain_and_bias(0.0, 1e20)[0] == pytest.approx(1e-20)


def test_the_gain_fades_where_rewards_vary_by_rounding_alone():
    deviation = 7.0 * np.geomspace(2.0**-30, 2.0**-10, 2_000)
    gain, _ = estimators.gain_and_bias(7.0, deviation)
    assert gain[0] == pytest.approx(1.0, rel=1e-2)
    assert gain[-1] * deviation[-1] == pytest.approx(1.0, rel=1e-2)
    assert np.abs(np.diff(np.log(gain))).max() < 0.1


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
        estimators.token_rewards(
            dirty, jnp.asarray(ref), jnp.asarray(score), MASK, 0.1
        ),
        expected,
    )
    assert estimators.last_token(jnp.asarray(MASK)).sum(1).tolist() == [1, 1, 1, 0, 1]
    inside = jnp.array([[False, True, True, False]])
    assert estimators.last_token(inside).tolist() == [[False, False, True, False]]


def test_the_rewards_of_a_response_add_up_to_its_score_less_the_kl_penalty():
    log_prob, ref = RNG.normal(size=(2, B, T))
    reward = estimators.token_rewards(
        jnp.asarray(log_prob), ref, jnp.ones(B), MASK, 0.2
    )
    whole = [text_losses.masked_sum(jnp.asarray(x), MASK) for x in (log_prob, ref)]
    expected = (LENGTHS > 0) - text_losses.implicit_reward(*whole, 0.2)
    close(reward.sum(1), expected)


def test_a_missing_eos_costs():
    found = estimators.score_with_eos_rule(
        jnp.array([2.0, 2.0]), jnp.array([True, False]), 1.5
    )
    assert found.tolist() == [2.0, 0.5]


@pytest.mark.parametrize("shift", [0, 2])  # responses at the start, and behind a prompt
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
    found = estimators.token_gae(*dirty, jnp.asarray(mask), gamma, lam)
    close(found, (advantage, target))
    assert np.abs(advantage).max() > 0.5


def test_rloo_by_hand_and_as_a_mean_baseline():
    close(estimators.rloo_advantage(jnp.array([[1.0, 2.0, 6.0]])), [[-3.0, -1.5, 4.5]])
    reward = jnp.asarray(RNG.normal(size=(3, 4)))
    close(
        estimators.rloo_advantage(reward),
        4 / 3 * (reward - reward.mean(1, keepdims=True)),
    )
    close(
        estimators.rloo_advantage(reward),
        4 / 3 * estimators.grpo_advantage(reward, scale=False),
    )


@pytest.mark.full
@pytest.mark.parametrize(
    "advantage, share",
    [
        (estimators.rloo_advantage, 1.0),
        (lambda r: estimators.grpo_advantage(r, scale=False), 2 / 3),
    ],
    ids=["rloo", "grpo"],
)
def test_how_much_of_the_policy_gradient_a_baseline_leaves(advantage, share):
    """By a sum over all groups of K = 3 responses: all of it, and (K - 1) / K."""
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
    assert estimators.grpo_advantage(reward, scale=False).tolist() == [
        [-1, 1],
        [0, 0],
        [-10, 10],
    ]
    close(estimators.grpo_advantage(reward), [[-1, 1], [0, 0], [-1, 1]])


def test_equal_rewards_have_no_advantage():
    reward = jnp.repeat(jnp.array([[0.1], [0.3], [123.456]]), 7, axis=1)
    for advantage in (
        estimators.grpo_advantage(reward),
        estimators.grpo_advantage(reward, scale=False),
        estimators.rloo_advantage(reward),
    ):
        assert (advantage == 0.0).all()


@pytest.mark.parametrize("score", [0.0, 0.1, 1.0])
def test_rounding_of_the_penalty_is_no_advantage(score):
    """Of 32 tokens with probability 1/20, and log-probabilities that are rounded."""
    penalty = 0.05 * 1e-6 * np.random.default_rng(0).normal(size=(100, 8, 32)).sum(-1)
    reward = jnp.float32(score - penalty)
    terms = jnp.full(reward.shape, score + 0.05 * 32 * 3.0)
    found = estimators.grpo_advantage(reward, terms=terms)
    assert jnp.median(jnp.abs(found).max(-1)) < 0.1


def test_decayed_moments_keep_a_small_deviation_beside_a_large_mean():
    rng = np.random.default_rng(0)
    moments = jnp.zeros(3)
    for _ in range(200):
        moments = estimators.decayed_moments(
            moments, jnp.float32(100.0 + 0.09 * rng.normal(size=64)), 0.95
        )
    weight, mean, second = map(float, moments)
    assert weight == pytest.approx(1.0, abs=1e-3)
    assert mean == pytest.approx(100.0, abs=0.01)
    assert (second / weight) ** 0.5 == pytest.approx(0.09, rel=0.05)


def test_decayed_moments_equal_a_weighted_loop():
    batches = np.random.default_rng(1).normal(size=(4, 5)) + np.arange(4)[:, None]
    moments = jnp.zeros(3)
    for batch in batches:
        moments = estimators.decayed_moments(moments, jnp.asarray(batch), 0.8)
    weights = 0.2 * 0.8 ** np.arange(3, -1, -1)[:, None] * np.ones(5) / 5
    mean = (weights * batches).sum() / weights.sum()
    expected = [weights.sum(), mean, (weights * (batches - mean) ** 2).sum()]
    np.testing.assert_allclose(moments, expected, rtol=1e-4)


def test_best_of_n():
    score = jnp.array([[1.0, 3.0, 3.0], [jnp.nan, -5.0, -9.0]])
    assert estimators.best_of_n(score).tolist() == [1, 1]


def test_entropy_and_length():
    close(estimators.entropy(jnp.zeros((2, 4))), np.log(4))
    p = softmax(LOGITS)
    close(estimators.entropy(jnp.asarray(LOGITS)), -(p * np.log(p)).sum(-1))
    assert estimators.length(jnp.asarray(MASK)).tolist() == LENGTHS.tolist()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_against_a_set(n):
    grams = [
        tuple(TOKENS[b, t : t + n]) for b in range(B) for t in range(LENGTHS[b] - n + 1)
    ]
    found = jax.jit(estimators.distinct_n, static_argnums=2)(TOKENS, MASK, n)
    close(found, len(set(grams)) / len(grams))
    assert estimators.distinct_n(TOKENS, jnp.zeros((B, T), bool), n) == 0


def test_what_repeats_itself_is_less_distinct():
    same, mask = jnp.ones((2, 4), jnp.int32), jnp.ones((2, 4), bool)
    close(estimators.distinct_n(same, mask, 2), 1 / 6)
    close(estimators.distinct_n(jnp.arange(8).reshape(2, 4), mask, 2), 1.0)
