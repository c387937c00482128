"""Losses: numbers by hand, gradients, and where each one is flat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl import distributions, losses, make
from jaxrl.algorithms import ALGORITHMS
from tests.support.small import tiny


@pytest.fixture(autouse=True, scope="module")
def no_silent_broadcast():
    with jax.numpy_rank_promotion("raise"):
        yield


def close(actual, desired, tol=1e-6):
    np.testing.assert_allclose(actual, desired, rtol=tol, atol=tol)


def floats(low, high, size=6):
    return hnp.arrays(np.float32, (size,), elements=st.floats(low, high, width=32))


def test_policy_gradient_hand_numbers():
    log_prob, weight = jnp.array([-1.0, -2.0]), jnp.array([3.0, -4.0])
    close(losses.policy_gradient(log_prob, weight), [3.0, -8.0])


def test_policy_gradient_does_not_train_the_weight():
    def loss(log_prob, weight):
        return losses.policy_gradient(log_prob, weight).sum()

    grads = jax.grad(loss, (0, 1))(jnp.array([-1.0, -2.0]), jnp.array([3.0, -4.0]))
    close(grads[0], [-3.0, 4.0])
    close(grads[1], [0.0, 0.0])


RATIO = jnp.array([0.5, 0.9, 1.0, 1.1, 2.0])
OLD = jnp.full(5, -1.5)
NEW = OLD + jnp.log(RATIO)


def test_clipped_surrogate_hand_numbers():
    good = losses.clipped_surrogate(NEW, OLD, jnp.full(5, 2.0), 0.2)
    close(good, -2.0 * np.array([0.5, 0.9, 1.0, 1.1, 1.2]))
    bad = losses.clipped_surrogate(NEW, OLD, jnp.full(5, -2.0), 0.2)
    close(bad, 2.0 * np.array([0.8, 0.9, 1.0, 1.1, 2.0]))


def test_clipped_surrogate_is_flat_where_moving_on_would_gain():
    def loss(log_prob, advantage):
        return losses.clipped_surrogate(log_prob, OLD, advantage, 0.2).sum()

    # d(-ρA) / dlogπ = -ρA, except beyond the clip in the direction of the advantage.
    good = jax.grad(loss)(NEW, jnp.full(5, 2.0))
    close(good, -2.0 * np.array([0.5, 0.9, 1.0, 1.1, 0.0]))
    bad = jax.grad(loss)(NEW, jnp.full(5, -2.0))
    close(bad, 2.0 * np.array([0.0, 0.9, 1.0, 1.1, 2.0]))


def test_at_the_old_policy_all_policy_losses_share_a_gradient():
    advantage = jnp.array([1.0, -2.0, 3.0, 0.0, -1.0])

    def gradient(loss):
        return jax.grad(lambda log_prob: loss(log_prob).sum())(OLD)

    expected = -advantage
    close(gradient(lambda lp: losses.policy_gradient(lp, advantage)), expected)
    close(gradient(lambda lp: losses.surrogate(lp, OLD, advantage)), expected)
    clipped = gradient(lambda lp: losses.clipped_surrogate(lp, OLD, advantage, 0.2))
    close(clipped, expected)


def test_surrogate_is_not_clipped():
    close(losses.surrogate(NEW, OLD, jnp.full(5, 2.0)), -2.0 * RATIO)


def test_approx_kl_hand_numbers():
    close(losses.approx_kl(NEW, OLD), (RATIO - 1.0) - jnp.log(RATIO))
    assert (losses.approx_kl(OLD, OLD) == 0.0).all()


@settings(max_examples=25, deadline=None)
@given(floats(-5, 0), floats(-5, 0))
def test_approx_kl_is_never_negative(log_prob, old_log_prob):
    assert (losses.approx_kl(log_prob, old_log_prob) >= 0.0).all()


def test_approx_kl_estimates_the_divergence():
    old, new = np.array([0.2, 0.3, 0.5]), np.array([0.3, 0.3, 0.4])
    estimate = losses.approx_kl(jnp.log(new), jnp.log(old))
    # The expectation over π_old, taken exactly, is KL(π_old ‖ π).
    close((old * estimate).sum(), (old * np.log(old / new)).sum())


@pytest.mark.parametrize(
    "kl, expected",
    [(0.0, 1.5), (0.0133, 1.5), (0.0134, 3.0), (0.0299, 3.0), (0.0301, 6.0)],
)
def test_adaptive_kl_coef_hand_numbers(kl, expected):
    # Target 0.02: below 0.01333 the coefficient is halved, above 0.03 doubled.
    close(losses.adaptive_kl_coef(3.0, kl, 0.02), expected)


def test_value_mse_hand_numbers():
    value, target = jnp.array([1.0, 5.0]), jnp.array([3.0, 4.0])
    close(losses.value_mse(value, target), [2.0, 0.5])
    grads = jax.grad(lambda v, g: losses.value_mse(v, g).sum(), (0, 1))(value, target)
    close(grads[0], [-2.0, 1.0])
    close(grads[1], [0.0, 0.0])


def test_clipped_value_mse_hand_numbers():
    value = jnp.array([1.1, 3.0, 3.0, -1.0])
    old_value = jnp.ones(4)
    target = jnp.array([2.0, 3.0, 0.0, 3.0])
    # Clipped to old ± 0.5: 1.1, 1.5, 1.5, 0.5. The larger of the two errors counts.
    loss = losses.clipped_value_mse(value, old_value, target, 0.5)
    close(loss, 0.5 * np.array([0.9, 1.5, 3.0, 4.0]) ** 2)
    grad = jax.grad(
        lambda v: losses.clipped_value_mse(v, old_value, target, 0.5).sum()
    )(value)
    # Flat in the second: it has run past the clip towards its target.
    close(grad, [-0.9, 0.0, 3.0, -4.0])


def test_q_target_hand_numbers():
    terminated = jnp.array([False, True])
    target = losses.q_target(jnp.ones(2), terminated, jnp.array([10.0, jnp.nan]), 0.9)
    close(target, [10.0, 1.0])


def test_squared_td_trains_q_alone():
    q, target = jnp.array([1.0, 5.0]), jnp.array([3.0, 4.0])
    close(losses.squared_td(q, target), [2.0, 0.5])
    grads = jax.grad(lambda q, y: losses.squared_td(q, y).sum(), (0, 1))(q, target)
    close(grads[0], [-2.0, 1.0])
    close(grads[1], [0.0, 0.0])


def test_the_adaptive_coefficient_comes_back_from_a_long_quiet_spell():
    coef = jnp.float32(1.0)
    for _ in range(200):
        coef = losses.adaptive_kl_coef(coef, 0.0, 0.01)
    assert coef > 0
    for _ in range(200):
        coef = losses.adaptive_kl_coef(coef, 1.0, 0.01)
    assert 1.0 < coef < jnp.inf


def test_huber_hand_numbers():
    error = jnp.array([-3.0, -0.5, 0.0, 0.5, 3.0])
    zero = jnp.zeros_like(error)
    close(losses.huber_td(error, zero), [2.5, 0.125, 0.0, 0.125, 2.5])
    close(losses.huber_td(error, zero, 2.0), [4.0, 0.125, 0.0, 0.125, 4.0])
    slope = jax.grad(lambda e: losses.huber_td(e, zero).sum())(error)
    close(slope, [-1.0, -0.5, 0.0, 0.5, 1.0])


def test_normalize_advantage_hand_numbers():
    close(losses.normalize_advantage(jnp.array([1.0, 3.0])), [-1.0, 1.0])
    # Alone or all equal: zero, and no NaN.
    close(losses.normalize_advantage(jnp.array([7.0])), [0.0])
    close(losses.normalize_advantage(jnp.full((2, 2), 7.0)), np.zeros((2, 2)))


def test_normalize_advantage_under_a_mask():
    advantage = jnp.array([[1.0, jnp.nan], [3.0, 1e9]])
    where = jnp.array([[True, False], [True, False]])
    expected = [[-1.0, 0.0], [1.0, 0.0]]
    close(losses.normalize_advantage(advantage, where), expected)


def test_equal_advantages_are_normalised_to_exactly_zero():
    """Their sum is rounded: divided by a spread of the same size it would be of order 1."""
    equal = jnp.repeat(jnp.array([[0.1], [-7.7], [123.456], [1e4]]), 253, axis=1)
    normalize = jax.jit(jax.vmap(losses.normalize_advantage))
    assert (normalize(equal, jnp.ones(equal.shape, bool)) == 0.0).all()
    assert (normalize(equal, jnp.arange(4 * 253).reshape(4, 253) % 3 == 0) == 0.0).all()


def test_rounding_gives_no_advantage_and_small_numbers_do():
    noise = np.random.default_rng(0).normal(size=256)
    normalize = jax.jit(jax.vmap(losses.normalize_advantage))
    rounding = [1.0 + 1e-7 * noise, 1e4 + 1e-3 * noise]
    assert np.abs(normalize(jnp.array(rounding))).max() < 0.06
    varied = normalize(jnp.array([1e-12 * (2.0 + noise), 1e8 * (2.0 + noise)]))
    close(varied, [(noise - noise.mean()) / noise.std()] * 2, 1e-5)


@settings(max_examples=25, deadline=None)
@given(floats(-100, 100), st.floats(-100, 100, width=32))
def test_normalize_advantage_equals_numpy(noise, offset):
    advantage = np.float32(noise + offset + np.arange(6))
    exact = np.float64(advantage)
    expected = (exact - exact.mean()) / (exact.std() + 1e-8)
    close(losses.normalize_advantage(jnp.asarray(advantage)), expected, 1e-3)


def test_explained_variance():
    target = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    close(losses.explained_variance(target, target), 1.0)
    close(losses.explained_variance(target + 5.0, target), 1.0)
    close(losses.explained_variance(jnp.full((2, 2), 2.5), target), 0.0)
    close(losses.explained_variance(-target, target), -3.0)
    mask = jnp.array([[True, False], [True, True]])
    close(losses.explained_variance(jnp.where(mask, 2.0, jnp.nan), target, mask), 0.0)
    # Nothing to explain but rounding: 0, and no NaN that would stop a run.
    close(losses.explained_variance(jnp.zeros(256), jnp.full(256, -7.7)), 0.0)
    close(losses.explained_variance(target, jnp.ones((2, 2))), 0.0)


@pytest.mark.parametrize("value", [0.0, 123.0])
def test_no_variance_of_rounded_targets_is_explained(value):
    noise = np.float32(np.random.default_rng(0).normal(size=256))
    target = jnp.float32(value) * (1.0 + 2.0**-22 * noise)
    for scale in (0.0, 1.0, 100.0):
        assert losses.explained_variance(scale * noise, target) == 0.0


def test_terms_of_half_precision_do_not_overflow():
    x = jnp.float32(np.random.default_rng(0).normal(size=256))
    found = losses.normalize_advantage(x, terms=jnp.full(256, 300.0, jnp.float16))
    assert float(found.std()) == pytest.approx(1.0, abs=1e-3)


def test_masked_mean():
    x = jnp.array([1.0, 3.0, jnp.nan])
    close(losses.masked_mean(x, jnp.array([True, True, False])), 2.0)
    close(losses.masked_mean(x, jnp.zeros(3, bool)), 0.0)
    grad = jax.grad(losses.masked_mean)(x, jnp.array([True, True, False]))
    close(grad, [0.5, 0.5, 0.0])


@pytest.mark.parametrize(
    "loss, num_arrays, scalars",
    [
        (losses.policy_gradient, 2, ()),
        (losses.surrogate, 3, ()),
        (losses.clipped_surrogate, 3, (0.2,)),
        (losses.approx_kl, 2, ()),
        (losses.value_mse, 2, ()),
        (losses.clipped_value_mse, 3, (0.2,)),
        (losses.squared_td, 2, ()),
        (losses.explained_variance, 2, ()),
        (losses.masked_mean, 2, ()),
    ],
)
def test_shapes_must_agree(loss, num_arrays, scalars):
    # [B] against [B, 1] would broadcast to a [B, B] loss, silently.
    arrays = [jnp.ones(4)] * (num_arrays - 1)
    with pytest.raises(AssertionError):
        loss(*arrays, jnp.ones((4, 1)), *scalars)


def test_imitation_hand_numbers():
    close(losses.negative_log_likelihood(jnp.array([-1.0, -0.5])), [1.0, 0.5])
    action, expert = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, -1.0]])
    close(losses.action_mse(action, expert), [4.5])
    close(losses.action_error(action, expert), [9.0])
    close(losses.action_error(jnp.array([1, 2]), jnp.array([1, 0])), [0.0, 1.0])
    close(losses.squared_norm({"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}), 12.5)


def test_action_mse_trains_the_action_and_not_the_expert():
    def loss(action, expert):
        return losses.action_mse(action, expert).sum()

    grads = jax.grad(loss, (0, 1))(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, -1.0]]))
    close(grads[0], [[1.0, 3.0]])
    close(grads[1], [[0.0, 0.0]])


def test_action_mse_is_the_likelihood_of_a_normal_up_to_a_constant():
    mean, expert = (
        jnp.array([[0.3, -1.0], [2.0, 0.5]]),
        jnp.array([[1.0, 1.0], [0.0, 0.0]]),
    )
    pi = distributions.diag_normal(mean, jnp.zeros(2))
    nll = losses.negative_log_likelihood(pi.log_prob(expert))
    close(nll - losses.action_mse(mean, expert), [np.log(2 * np.pi)] * 2)


def test_the_temperature_rises_where_entropy_is_missing():
    log_prob = jnp.array([-1.0, 0.0, 4.0])  # entropy -1
    loss = lambda x, wanted: losses.temperature(x, log_prob, wanted).mean()  # noqa: E731
    assert float(loss(jnp.log(2.0), 3.0)) == pytest.approx(-np.log(2.0) * (1.0 + 3.0))
    for wanted in (-1.0, 3.0, -5.0):
        slope = jax.grad(loss)(jnp.log(2.0), wanted)
        assert float(slope) == pytest.approx(-1.0 - wanted)


def test_the_deterministic_policy_follows_the_critic():
    def loss(theta):  # Q(a) = -(a - 3)², μ = 2 θ
        return losses.deterministic_policy(-((2.0 * theta - 3.0) ** 2))

    assert float(jax.grad(loss)(0.5)) == pytest.approx(2 * (1.0 - 3.0) * 2)


def test_quantile_huber_equals_a_loop():
    rng = np.random.default_rng(0)
    quantiles, target = rng.normal(size=(3, 5)) * 2, rng.normal(size=(3, 7)) * 2
    found = losses.quantile_huber(jnp.asarray(quantiles), jnp.asarray(target), 0.5)
    for row in range(3):
        total = 0.0
        for m in range(5):
            for j in range(7):
                u = target[row, j] - quantiles[row, m]
                huber = 0.5 * u * u if abs(u) <= 0.5 else 0.5 * (abs(u) - 0.25)
                total += abs((m + 0.5) / 5 - (u < 0)) * huber / 0.5
        assert float(found[row]) == pytest.approx(total / 35, rel=1e-5)


def test_quantile_huber_finds_the_quantiles():
    samples = jnp.arange(1.0, 101.0)
    descent = jax.grad(lambda z: losses.quantile_huber(z, samples, 1e-2))
    z = jax.lax.fori_loop(0, 3_000, lambda _, z: z - 20.0 * descent(z), jnp.zeros(4))
    np.testing.assert_allclose(z, [12.5, 37.5, 62.5, 87.5], atol=1.0)


def test_quantile_huber_of_drawn_levels_equals_a_loop():
    rng = np.random.default_rng(1)
    z, y, level = rng.normal(size=(2, 3)), rng.normal(size=(2, 4)), rng.random((2, 3))
    found = losses.quantile_huber(*map(jnp.asarray, (z, y)), 1.0, jnp.asarray(level))
    for row in range(2):
        total = 0.0
        for m in range(3):
            for j in range(4):
                u = y[row, j] - z[row, m]
                huber = 0.5 * u * u if abs(u) <= 1 else abs(u) - 0.5
                total += abs(level[row, m] - (u < 0)) * huber
        assert float(found[row]) == pytest.approx(total / 12, rel=1e-5)
    middles = jnp.broadcast_to(jnp.array([1 / 6, 3 / 6, 5 / 6]), (2, 3))
    same = losses.quantile_huber(jnp.asarray(z), jnp.asarray(y), 1.0, middles)
    close(same, losses.quantile_huber(jnp.asarray(z), jnp.asarray(y)))


def test_categorical_kl_by_hand():
    """Probabilities 1/4 and 3/4 towards 1/2 and 1/2, and towards 0 and 1."""
    logits = jnp.broadcast_to(jnp.array([0.0, np.log(3.0)], jnp.float32), (2, 2))
    target = jnp.array([[0.5, 0.5], [0.0, 1.0]])
    expected = [0.5 * np.log(2) + 0.5 * np.log(2 / 3), np.log(4 / 3)]
    close(losses.categorical_kl(logits, target), expected)
    close(losses.categorical_kl(logits, jax.nn.softmax(logits)), [0.0, 0.0])
    gradient = jax.grad(lambda x: losses.categorical_kl(x, target).sum())(logits)
    close(gradient, [[-0.25, 0.25], [0.25, -0.25]])


def test_rounding_of_values_is_no_advantage():
    """(1 - γ) V + γ V - V is 0 but for the rounding of float32."""
    rng = np.random.default_rng(0)
    value = jnp.float32(123.456)
    advantage = jnp.float32(1e-5 * rng.normal(size=256))
    terms = jnp.full(256, value)
    found = losses.normalize_advantage(advantage, terms=terms)
    assert jnp.abs(found).max() < 0.1
    ordinary = jnp.float32(rng.normal(size=256))
    found = losses.normalize_advantage(ordinary, terms=terms)
    assert float(found.std()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_deviations_of_half_precision_are_of_float32(dtype, masked):
    x = jnp.asarray(300.0 * np.random.default_rng(0).normal(size=4_096), dtype)
    where = jnp.ones(x.shape, bool) if masked else None
    found, mean = losses.centre(x, where)
    assert found.dtype == jnp.float32
    expected = np.asarray(x, np.float64)
    np.testing.assert_allclose(found, expected - expected.mean(), atol=1e-3)
    assert float(mean) == pytest.approx(expected.mean(), abs=1e-3)


def test_of_no_numbers_the_mean_is_zero():
    assert losses.centre(jnp.zeros(0))[1] == 0.0
    nothing = jnp.zeros(3, bool)
    found, mean = losses.centre(jnp.array([1.0, jnp.nan, jnp.inf]), nothing)
    assert (found == 0.0).all() and mean == 0.0


def test_deviations_have_the_gradient_of_the_formula():
    x = jnp.array([3.0, -1.0, 4.0])
    found = jax.jacobian(lambda x: losses.centre(x)[0])(x)
    np.testing.assert_allclose(found, np.eye(3) - 1 / 3, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["ppo", "a2c", "trpo", "natural_pg", "reinforce", "actor_critic"]
)
def test_algorithms_say_what_their_advantages_are_differences_of(name, monkeypatch):
    seen, algorithm, env = [], ALGORITHMS[name], make("CartPole-v1")

    def spy(advantage, where=None, terms=None):
        seen.append(terms is not None and terms.shape == advantage.shape)
        return advantage

    monkeypatch.setattr(losses, "normalize_advantage", spy)
    config = tiny(algorithm, normalize_advantage=True)
    state = jax.eval_shape(
        lambda key: algorithm.init(config, env, key), jax.random.key(0)
    )
    jax.eval_shape(lambda state: algorithm.train_step(config, env, state), state)
    assert seen and all(seen)
