"""The small world: sums that must be 1, identities of the optimum, labels against dice."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.errors import InvalidInput
from jaxrl.rlhf import estimators
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.testbeds import small_world

BETA, TAU = 0.5, 0.7


@pytest.fixture(scope="module")
def small():
    """Two prompts of two tokens, 31 responses: and its reference and optimum, float64."""
    with jax.enable_x64(True):
        made = small_world.small_world("ab", 4, ["ab", "ba"], gold=gold)
        reference = log_prob_of(made)(made.reference)
        best = small_world.optimum(reference, made.reward, BETA)
        yield made, reference, best


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def log_prob_of(made):
    return jax.jit(partial(small_world.table_log_probs, made))


def gold(prompt, response):
    return response.count(prompt) - 0.3 * len(response)


def test_the_enumeration_by_hand():
    tokens, mask = small_world.responses(2, 2)
    assert tokens.tolist() == [[2, 2], [0, 2], [1, 2], [0, 0], [0, 1], [1, 0], [1, 1]]
    assert mask.sum(1).tolist() == [1, 2, 2, 2, 2, 2, 2]


def test_the_default_world():
    made = small_world.small_world()
    assert made.tokens.shape == (364, 5) and made.reference.shape == (3, 121, 4)
    assert len({tuple(t) for t in made.tokens}) == 364
    texts = [small_world.response_text(made, i) for i in range(364)]
    assert texts[0] == "." and texts[-1] == "ccccc"
    assert made.has_eos.sum() == 121
    rewards = [dict(zip(texts, row, strict=True)) for row in made.reward]
    assert (
        rewards[1]["abbc."] == 2.75 == rewards[1][max(rewards[1], key=rewards[1].get)]
    )
    assert rewards[0]["cba."] == 1 + 0.75 - 1.0
    assert rewards[2]["aaaaa"] == 0.25 - 1.0
    assert all(len(set(row)) > 10 for row in made.reward)


def test_probabilities_sum_to_1(small):
    made, reference, best = small
    for log_prob in (reference, best.log_prob):
        np.testing.assert_allclose(np.exp(log_prob).sum(1), 1.0, atol=1e-12)
    rng = np.random.default_rng(0)
    network = rng.normal(size=(4, 7, 3))

    def logits_fn(tokens):  # any function of the tokens so far
        seen = jnp.cumsum(jax.nn.one_hot(tokens, 7) * jnp.arange(1, 7)[:, None], 1)
        return jnp.tanh(seen) @ network.sum(0)

    log_prob = small_world.response_log_probs(made, logits_fn)
    np.testing.assert_allclose(np.exp(log_prob).sum(1), 1.0, atol=1e-12)


def test_a_table_means_what_a_walk_through_it_means(small):
    made, reference, _ = small
    rows = {"": 0, "a": 1, "b": 2, "aa": 3, "ab": 4, "ba": 5, "bb": 6, "aaa": 7}
    p = np.exp(made.reference)
    p /= p.sum(-1, keepdims=True)
    texts = [small_world.response_text(made, i) for i in range(len(made.tokens))]
    for prompt in (0, 1):
        walk = (
            p[prompt, rows[""], 1] * p[prompt, rows["b"], 0] * p[prompt, rows["ba"], 2]
        )
        found = np.exp(reference[prompt, texts.index("ba.")])
        np.testing.assert_allclose(found, walk, rtol=1e-12)


def test_a_table_holds_every_policy(small):
    made, _, best = small
    table = small_world.make_table(made, best.log_prob)
    np.testing.assert_allclose(log_prob_of(made)(table), best.log_prob, atol=1e-10)


def test_the_optimum_is_stationary_and_its_value_is_the_normaliser(small):
    made, reference, best = small
    penalty = text_losses.implicit_reward(best.log_prob, reference, BETA)
    constant = made.reward - penalty
    expected = BETA * best.log_normalizer[:, None] * np.ones_like(constant)
    np.testing.assert_allclose(constant, expected, atol=1e-10)
    value = small_world.kl_penalized_reward(best.log_prob, reference, made.reward, BETA)
    np.testing.assert_allclose(value, best.value, atol=1e-10)
    np.testing.assert_allclose(
        best.value, BETA * best.log_normalizer.mean(), atol=1e-12
    )
    gradient = jax.jit(
        jax.grad(
            lambda table: small_world.kl_penalized_reward(
                small_world.table_log_probs(made, table), reference, made.reward, BETA
            )
        )
    )
    assert np.abs(gradient(small_world.make_table(made, best.log_prob))).max() < 1e-10
    assert np.abs(gradient(made.reference)).max() > 1e-2


def test_no_other_policy_is_better_and_by_how_much(small):
    """J(π*) - J(π) = β KL(π ‖ π*)."""
    made, reference, best = small
    tables = np.random.default_rng(1).normal(size=(100, *made.reference.shape))

    @jax.jit
    @jax.vmap
    def measured(table):
        log_prob = small_world.table_log_probs(made, table)
        found = small_world.kl_penalized_reward(log_prob, reference, made.reward, BETA)
        return found, small_world.kl(log_prob, best.log_prob)

    found, divergence = measured(tables)
    assert (best.value > found).all()
    np.testing.assert_allclose(best.value - found, BETA * divergence, atol=1e-10)


def test_expected_reward_and_kl_against_loops(small):
    made, reference, best = small
    p, log_p, q = np.exp(best.log_prob), best.log_prob, reference
    rewards = [sum(p[x] * made.reward[x]) for x in (0, 1)]
    divergences = [sum(p[x] * (log_p[x] - q[x])) for x in (0, 1)]
    np.testing.assert_allclose(
        small_world.expected_reward(best.log_prob, made.reward), np.mean(rewards)
    )
    np.testing.assert_allclose(
        small_world.kl(best.log_prob, reference), np.mean(divergences)
    )


@pytest.fixture(scope="module")
def pairs(small):
    made, reference, _ = small
    key = jax.random.key(0)
    sample = jax.jit(small_world.sample_pairs, static_argnums=3)
    return sample(key, reference, made.reward, 40_000, TAU)


@pytest.mark.full
def test_bayes_accuracy_is_that_of_the_gold_reward_and_of_many_labels(small, pairs):
    made, reference, _ = small
    bayes = float(small_world.bayes_accuracy(reference, made.reward, TAU))
    exact = float(small_world.label_accuracy(made.reward, reference, made.reward, TAU))
    np.testing.assert_allclose(exact, bayes, atol=1e-12)
    assert 0.55 < bayes < 0.95
    agreed = estimators.preference_accuracy(
        jnp.asarray(made.reward)[pairs.prompt, pairs.chosen],
        jnp.asarray(made.reward)[pairs.prompt, pairs.rejected],
    )
    assert abs(float(agreed.mean()) - bayes) < 4 * 0.5 / np.sqrt(40_000)


@pytest.mark.full
def test_accuracy_of_any_other_reward_against_labels(small, pairs):
    made, reference, _ = small
    score = jnp.asarray(np.random.default_rng(2).normal(size=made.reward.shape))
    found = float(small_world.label_accuracy(score, reference, made.reward, TAU))
    agreed = estimators.preference_accuracy(
        score[pairs.prompt, pairs.chosen], score[pairs.prompt, pairs.rejected]
    )
    assert abs(float(agreed.mean()) - found) < 4 * 0.5 / np.sqrt(40_000)
    assert found < small_world.bayes_accuracy(reference, made.reward, TAU) - 0.02
    worst = small_world.label_accuracy(-made.reward, reference, made.reward, TAU)
    best = small_world.bayes_accuracy(reference, made.reward, TAU)
    np.testing.assert_allclose(worst, 1.0 - best, atol=1e-12)
    constant = jnp.zeros(made.reward.shape)
    assert small_world.label_accuracy(
        constant, reference, made.reward, TAU
    ) == pytest.approx(0.5)


def test_samples_come_as_often_as_they_should(small, pairs):
    _, reference, _ = small
    drawn = np.asarray(
        small_world.sample_responses(jax.random.key(1), reference, 40_000)
    )
    shown = np.concatenate([pairs.chosen, pairs.rejected])
    of_prompt = np.tile(pairs.prompt, 2)
    for prompt in (0, 1):
        p = np.exp(reference[prompt])
        for sample in (drawn[prompt], shown[of_prompt == prompt]):
            frequency = np.bincount(sample, minlength=len(p)) / len(sample)
            error = np.sqrt(p * (1 - p) / len(sample))
            assert (np.abs(frequency - p) < 5 * error).all()


@pytest.mark.full
def test_dpo_with_exact_preferences_is_minimised_by_the_optimum(small):
    """With β_dpo = β / τ, whatever the pairs' weights."""
    made, reference, best = small
    probability = small_world.preference_probability(
        made.reward[:, :, None], made.reward[:, None, :], TAU
    )

    def loss(table):
        log_prob = small_world.table_log_probs(made, table)
        first, second, ref_first, ref_second = jnp.broadcast_arrays(
            log_prob[:, :, None],
            log_prob[:, None, :],
            reference[:, :, None],
            reference[:, None, :],
        )
        each = text_losses.dpo_loss(first, second, ref_first, ref_second, BETA / TAU)
        other = text_losses.dpo_loss(second, first, ref_second, ref_first, BETA / TAU)
        return (probability * each + (1.0 - probability) * other).mean()

    loss_and_gradient = jax.jit(jax.value_and_grad(loss))
    table = small_world.make_table(made, best.log_prob)
    least, gradient = loss_and_gradient(table)
    assert np.abs(gradient).max() < 1e-6
    rng = np.random.default_rng(3)
    for scale in (0.01, 0.1, 1.0):
        moved = table + scale * rng.normal(size=table.shape)
        other, gradient = loss_and_gradient(moved)
        assert other > least
    assert np.abs(gradient).max() > 1e-4


@pytest.mark.full
def test_the_best_of_n(small):
    made, reference, _ = small
    law = jax.jit(small_world.best_of_n_log_prob, static_argnums=2)
    np.testing.assert_allclose(law(reference, made.reward, 1), reference, atol=1e-10)
    exact = np.exp(law(reference, made.reward, 4))
    np.testing.assert_allclose(exact.sum(1), 1.0, atol=1e-12)
    drawn = small_world.sample_responses(jax.random.key(2), reference, 4 * 20_000)
    drawn = np.asarray(drawn).reshape(2, -1, 4)
    for prompt in (0, 1):
        best = estimators.best_of_n(jnp.asarray(made.reward[prompt][drawn[prompt]]))
        taken = np.take_along_axis(drawn[prompt], np.asarray(best)[:, None], 1)[:, 0]
        frequency = np.bincount(taken, minlength=len(made.tokens)) / len(taken)
        error = np.sqrt(exact[prompt] * (1 - exact[prompt]) / len(taken))
        assert (np.abs(frequency - exact[prompt]) < 5 * error + 1e-12).all()
    # A bound: Beirami et al. (2024), https://arxiv.org/abs/2401.01879, theorem 1.
    assert small_world.kl(np.log(exact), reference) < np.log(4) - 3 / 4


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"symbols": "aa"}, "different characters"),
        ({"max_length": 0}, "must be 1 or more"),
        ({"max_length": 12}, "must be at most 20,000"),
        ({"prompts": ["a", "bc"]}, "all of one length"),
        ({"prompts": ["x"]}, "must be texts of 'abc'"),
        ({"prompts": ["a", "a"]}, "must be different"),
    ],
)
def test_worlds_that_cannot_be(changes, words):
    with pytest.raises(InvalidInput, match=words):
        small_world.small_world(**changes)
