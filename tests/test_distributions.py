"""Distributions against scipy, quadrature and counting; finite in extreme cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jaxrl import distributions

KEY = jax.random.key(0)


def close(actual, desired, tol=1e-5):
    np.testing.assert_allclose(actual, desired, rtol=tol, atol=tol)


def everything(distribution, other, action):
    return (
        distribution.log_prob(action),
        distribution.entropy(),
        distribution.kl_divergence(other),
    )


LOGITS = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.7, 0.2, 0.1]]))
MASK = jnp.array([[True, False, True], [False, True, True]])


def test_categorical_hand_numbers():
    policy = distributions.categorical(LOGITS)
    other = distributions.categorical(jnp.zeros((2, 3)))
    probs = np.exp(LOGITS)
    entropy = -(probs * LOGITS).sum(-1)
    close(policy.log_prob(jnp.array([2, 0])), np.log([0.5, 0.7]))
    close(policy.entropy(), entropy)
    close(policy.kl_divergence(other), np.log(3.0) - entropy)
    np.testing.assert_array_equal(policy.mode(), [2, 0])


def test_categorical_actions_are_int32():
    policy = distributions.categorical(LOGITS, MASK)
    assert policy.sample(seed=KEY).dtype == jnp.int32
    assert policy.mode().dtype == jnp.int32


def test_masked_categorical_is_the_categorical_of_the_legal_actions():
    policy = distributions.categorical(LOGITS, MASK)
    close(policy.probs, [[2 / 7, 0, 5 / 7], [0, 2 / 3, 1 / 3]])
    assert (policy.probs[~MASK] == 0.0).all()
    legal = [np.array([2 / 7, 5 / 7]), np.array([2 / 3, 1 / 3])]
    close(policy.entropy(), [-(p * np.log(p)).sum() for p in legal])
    close(policy.log_prob(jnp.array([2, 1])), np.log([5 / 7, 2 / 3]))
    np.testing.assert_array_equal(policy.mode(), [2, 1])


def test_illegal_actions_are_never_drawn():
    policy = distributions.categorical(jnp.array([9.0, 0.0, 9.0]), MASK[1])
    actions = policy.sample(seed=KEY, sample_shape=20_000)
    counts = np.bincount(actions, minlength=3) / 20_000
    close(counts, policy.probs, 0.01)
    assert counts[0] == 0.0


@jax.jit
def categorical_outputs(logits, other_logits, mask):
    def outputs(logits, other_logits):
        policy = distributions.categorical(logits, mask)
        other = distributions.categorical(other_logits, mask)
        return jnp.stack(everything(policy, other, jnp.argmax(mask)))

    arguments = logits, other_logits
    return outputs(*arguments), jax.jacobian(outputs, (0, 1))(*arguments)


EXTREME_LOGITS = [[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 1e4]]


@pytest.mark.parametrize("mask", [[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]])
@pytest.mark.parametrize("logits", EXTREME_LOGITS)
def test_categorical_is_finite_at_extremes(logits, mask):
    mask = np.array(mask, bool)
    outputs, gradients = categorical_outputs(
        np.array(logits), np.array([3.0, 1.0, 2.0]), mask
    )
    assert np.isfinite(outputs).all()
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert (gradient[:, ~mask] == 0.0).all()


def test_one_legal_action_leaves_nothing_to_choose():
    mask = jnp.array([False, True, False])
    policy = distributions.categorical(jnp.array([1e4, -1e4, 1e4]), mask)
    np.testing.assert_array_equal(policy.probs, [0.0, 1.0, 0.0])
    assert policy.log_prob(1) == 0.0
    assert policy.entropy() == 0.0


def test_kl_stays_finite_where_the_other_forbids_an_action():
    policy = distributions.categorical(LOGITS[0])
    other = distributions.categorical(LOGITS[0], MASK[0])
    assert jnp.isfinite(policy.kl_divergence(other))
    assert policy.kl_divergence(other) > 1e6


MEAN = jnp.array([[0.5, -1.0], [2.0, 0.0]])
LOG_STD = jnp.array([-0.5, 0.3])


def test_diag_normal_equals_scipy():
    policy = distributions.diag_normal(MEAN, LOG_STD)
    reference = scipy.stats.norm(np.asarray(MEAN), np.exp(LOG_STD))
    action = jnp.array([[0.0, 0.0], [1.0, -3.0]])
    close(policy.log_prob(action), reference.logpdf(action).sum(-1))
    close(policy.entropy(), reference.entropy().sum(-1))
    close(policy.mode(), MEAN)
    assert policy.sample(seed=KEY).shape == (2, 2)


def test_diag_normal_kl_hand_numbers():
    policy = distributions.diag_normal(MEAN, LOG_STD)
    other = distributions.diag_normal(jnp.zeros((2, 2)), jnp.zeros(2))
    # KL(N(μ, σ²) ‖ N(0, 1)) = (μ² + σ² - 1) / 2 - log σ
    expected = (MEAN**2 + jnp.exp(2 * LOG_STD) - 1) / 2 - LOG_STD
    close(policy.kl_divergence(other), expected.sum(-1))
    close(policy.kl_divergence(policy), jnp.zeros(2))


LOW, HIGH = jnp.array([-2.0, 0.0]), jnp.array([2.0, 10.0])


def test_tanh_normal_density_integrates_to_one():
    policy = distributions.tanh_normal(jnp.array([[0.4]]), jnp.array([-0.3]), -2.0, 3.0)
    # Half-way between the points of a grid, clear of both bounds.
    actions = -2.0 + 5.0 * (jnp.arange(20_000) + 0.5) / 20_000
    density = jnp.exp(policy.log_prob(actions[:, None, None]))
    close(density.sum() * 5.0 / 20_000, 1.0, 1e-4)


def test_tanh_normal_log_prob_hand_numbers():
    policy = distributions.tanh_normal(MEAN, LOG_STD, LOW, HIGH)
    x = np.array([[0.1, -0.7], [1.5, 0.3]])
    half_width = np.array([2.0, 5.0])
    action = np.array([0.0, 5.0]) + half_width * np.tanh(x)
    log_normal = scipy.stats.norm(np.asarray(MEAN), np.exp(LOG_STD)).logpdf(x)
    expected = log_normal - np.log(half_width * (1 - np.tanh(x) ** 2))
    close(policy.log_prob(jnp.asarray(action, jnp.float32)), expected.sum(-1), 1e-4)


def exact_log_prob(x, mean, std, half_width):
    """Of a squashed normal in one dimension, in float64 at the sample x."""
    log_slope = 2 * (np.log(2) - x - np.logaddexp(0, -2 * x)) + np.log(half_width)
    return scipy.stats.norm(mean, std).logpdf(x) - log_slope


BOXES = [(-1.0, 1.0), (-2.0, 5.0), (0.0, 1e-3), (-1e4, 1e4)]


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (7.5, 0.135), (-10.0, 0.37)])
def test_tanh_normal_log_prob_of_its_own_samples_is_exact(mean, std):
    low, high = np.float32(BOXES).T
    policy = distributions.tanh_normal(
        jnp.full((len(BOXES), 1), mean), jnp.log(jnp.array([std])), *pair(low, high)
    )
    noise = np.float32(np.linspace(-4, 4, 41))[:, None, None]
    x = np.float64(policy.pre_tanh(noise).x)
    std = np.float64(np.exp(np.log(np.float32(std))))
    expected = exact_log_prob(x, mean, std, np.float64(high - low)[:, None] / 2)
    close(policy.log_prob(policy.pre_tanh(noise)), expected[..., 0], 2e-5)
    close(policy.squash(policy.pre_tanh(noise)), policy.from_noise(noise), 0.0)


def pair(low, high):
    return jnp.asarray(low)[:, None], jnp.asarray(high)[:, None]


def test_tanh_normal_log_prob_of_a_foreign_action_is_exact_inside_the_box():
    low, high = np.float32(BOXES).T
    unit = np.array([-1 + 1e-6, -0.999, -1e-3, 0.0, 0.5, 0.99999, 1 - 3e-7])[:, None]
    action = np.float32((low + high) / 2 + (high - low) / 2 * unit)
    u = np.float64(action) - np.float64(low)
    x = 0.5 * np.log(u / (np.float64(high) - action))
    inside = (np.abs(x) < 8.5) & (action < high)
    expected = exact_log_prob(x, 7.5, 1.0, np.float64(high - low) / 2)
    policy = distributions.tanh_normal(
        jnp.full((len(BOXES), 1), 7.5), jnp.zeros(1), *pair(low, high)
    )
    found = policy.log_prob(jnp.asarray(action)[..., None])
    close(found[inside], expected[inside], 2e-5)
    assert inside.mean() > 0.8


@pytest.mark.parametrize("mean", [0.0, 7.0, 8.0, 10.0])
def test_the_score_of_a_saturated_tanh_normal_has_mean_zero(mean):
    noise = jax.random.normal(KEY, (100_000, 1))

    def mean_log_prob(mean):
        policy = distributions.tanh_normal(mean[None], jnp.array([-1.0]), -1.0, 1.0)
        x = jax.lax.stop_gradient(policy.pre_tanh(noise))
        return policy.log_prob(x).mean()

    # One standard error is e / sqrt(100,000) = .009; from the rounded action: -5.6 at 8.
    assert abs(jax.grad(mean_log_prob)(jnp.float32(mean))) < 0.03


def test_sample_and_log_prob_are_those_of_one_sample():
    policy = distributions.tanh_normal(MEAN + 9.0, LOG_STD, LOW, HIGH)
    action, log_prob = policy.sample_and_log_prob(seed=KEY, sample_shape=3)
    x = distributions.diag_normal(MEAN + 9.0, LOG_STD).sample(seed=KEY, sample_shape=3)
    np.testing.assert_array_equal(action, policy.sample(seed=KEY, sample_shape=3))
    close(log_prob, policy.log_prob(distributions.PreTanh(x)))


def test_tanh_normal_samples_fill_the_box_and_the_mode_is_its_median():
    policy = distributions.tanh_normal(MEAN, LOG_STD, LOW, HIGH)
    actions = policy.sample(seed=KEY, sample_shape=20_000)
    assert actions.shape == (20_000, 2, 2)
    assert ((actions >= LOW) & (actions <= HIGH)).all()
    assert policy.mode().shape == (2, 2)
    below = (actions < policy.mode()).mean(0)
    close(below, jnp.full((2, 2), 0.5), 0.015)


@jax.jit
def tanh_normal_outputs(mean, log_std, low, high):
    actions = jnp.stack([low, high, (low + high) / 2])

    def outputs(mean, log_std):
        policy = distributions.tanh_normal(mean, log_std, low, high)
        other = distributions.tanh_normal(mean + 1.0, log_std, low, high)
        return jnp.stack(everything(policy, other, actions))

    return outputs(mean, log_std), jax.jacobian(outputs, (0, 1))(mean, log_std)


@pytest.mark.parametrize("log_std", [-20.0, 0.0, 2.0])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_tanh_normal_is_finite_at_the_bounds(log_std, offset):
    mean = np.array([[0.0, 50.0]] * 3)
    bounds = np.array([LOW, HIGH]) + offset
    outputs, gradients = tanh_normal_outputs(mean, np.full(2, log_std), *bounds)
    assert np.isfinite(outputs).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@jax.jit
def entropy_on_the_box(mean, std):
    policy = distributions.tanh_normal(mean[None], jnp.log(std)[None], -5.0, 5.0)
    return policy.entropy()


@pytest.mark.parametrize(
    "std, accuracy", [(0.1, 2e-6), (1.0, 2e-6), (2.0, 2e-4), (3.0, 3e-3), (5.0, 0.03)]
)
@pytest.mark.parametrize("mean", [0.0, 1.0, 5.0])
def test_tanh_normal_entropy_is_as_accurate_as_it_says(mean, std, accuracy):
    def integrand(z):
        x = mean + std * z
        log_slope = 2 * (np.log(2) - x - np.logaddexp(0, -2 * x)) + np.log(5.0)
        return scipy.stats.norm.pdf(z) * log_slope

    kink = [-mean / std] if mean < 12 * std else None
    expected = scipy.integrate.quad(integrand, -12, 12, points=kink, limit=200)[0]
    expected += scipy.stats.norm(mean, std).entropy()
    # Float32 itself resolves a few parts in ten million of the terms added up.
    error = abs(entropy_on_the_box(mean, std) - expected)
    assert error < accuracy + 4e-7 * abs(expected)


@pytest.mark.full
def test_tanh_normal_entropy_equals_monte_carlo():
    policy = distributions.tanh_normal(MEAN, LOG_STD, LOW, HIGH)
    actions = policy.sample(seed=KEY, sample_shape=200_000)
    close(policy.entropy(), -policy.log_prob(actions).mean(0), 0.01)


def test_tanh_normal_entropy_is_differentiable():
    def entropy(mean, log_std):
        return distributions.tanh_normal(mean, log_std, LOW, HIGH).entropy().sum()

    step = 1e-2
    gradients = jax.grad(entropy, (0, 1))(MEAN, LOG_STD)
    up, down = jnp.array([step, 0.0]), jnp.array([-step, 0.0])
    by_mean = entropy(MEAN + up, LOG_STD) - entropy(MEAN + down, LOG_STD)
    by_std = entropy(MEAN, LOG_STD + up) - entropy(MEAN, LOG_STD + down)
    close(gradients[0][:, 0].sum(), by_mean / (2 * step), 1e-3)
    close(gradients[1][0], by_std / (2 * step), 1e-3)


def test_squashing_leaves_the_divergence_unchanged():
    arguments = (MEAN, LOG_STD), (MEAN + 0.5, LOG_STD - 0.2)
    normal, other = (distributions.diag_normal(*a) for a in arguments)
    squashed = [distributions.tanh_normal(*a, LOW, HIGH) for a in arguments]
    divergence = squashed[0].kl_divergence(squashed[1])
    close(divergence, normal.kl_divergence(other))
    # And by counting: E[log p - log q] under p.
    actions = squashed[0].sample(seed=KEY, sample_shape=100_000)
    log_ratio = squashed[0].log_prob(actions) - squashed[1].log_prob(actions)
    close(log_ratio.mean(0), divergence, 0.02)


def test_gumbel_noise_gives_the_categoricals_frequencies():
    # 40,000 draws: a frequency is off by 0.0025 (one standard error) at most.
    noise = jax.random.gumbel(KEY, (40_000, 2, 3))
    for mask in (None, MASK):
        policy = distributions.categorical(LOGITS, mask)
        actions = policy.from_noise(noise)
        assert actions.shape == (40_000, 2) and actions.dtype == jnp.int32
        drawn = jax.nn.one_hot(actions, 3).mean(0)
        close(drawn, policy.probs, 0.01)
        assert (drawn[np.asarray(policy.probs) == 0.0] == 0.0).all()


def test_the_largest_noisy_logit_is_the_action():
    policy = distributions.categorical(jnp.array([0.0, 1.0, 2.0]))
    noise = jnp.array([[0.0, 0.0, 0.0], [2.5, 0.0, 0.0], [0.0, 1.5, 0.0]])
    np.testing.assert_array_equal(policy.from_noise(noise), [2, 0, 1])
    with_mask = distributions.categorical(jnp.zeros(3), jnp.array([False, True, True]))
    assert with_mask.from_noise(jnp.array([1e6, 0.0, 1.0])) == 2


def test_the_categoricals_entropy_is_distraxs():
    logits = 3.0 * jax.random.normal(KEY, (64, 5))
    policy = distributions.categorical(logits, jnp.arange(5) != 2)
    close(policy.entropy(), distributions.distrax.Categorical(policy.logits).entropy())


def test_normal_noise_gives_the_normals_moments():
    policy = distributions.diag_normal(MEAN, LOG_STD)
    actions = policy.from_noise(jax.random.normal(KEY, (40_000, 2, 2)))
    # Standard errors below 0.007 of the mean and 0.5 % of the standard deviation.
    close(actions.mean(0), MEAN, 0.03)
    close(actions.std(0), jnp.broadcast_to(jnp.exp(LOG_STD), (2, 2)), 0.02)
    np.testing.assert_array_equal(policy.from_noise(jnp.zeros((2, 2))), policy.mode())


def test_noise_is_squashed_like_a_sample():
    policy = distributions.tanh_normal(MEAN, LOG_STD, LOW, HIGH)
    noise = jax.random.normal(KEY, (40_000, 2, 2))
    actions = policy.from_noise(noise)
    half_width = np.array([2.0, 5.0])
    x = np.asarray(MEAN) + np.exp(LOG_STD) * np.asarray(noise)
    close(actions, np.array([0.0, 5.0]) + half_width * np.tanh(x), 1e-4)
    # And the actions have the density that log_prob says.
    close(-policy.log_prob(actions).mean(0), policy.entropy(), 0.02)


def test_state_dependent_noise_has_the_density_and_variance_it_says():
    keys = jax.random.split(KEY, 3)
    mean = jax.random.normal(keys[0], (4, 2))
    features, log_std = jax.random.normal(keys[1], (4, 5)), jnp.full((5, 2), -0.7)
    log_std = log_std.at[:, 1].set(0.4)
    pi = distributions.state_dependent_tanh_normal(mean, features, log_std, -1.0, 3.0)
    weights = np.exp(np.asarray(log_std, np.float64))
    variance = np.asarray(features, np.float64) ** 2 @ weights**2
    matrices = jax.random.normal(keys[2], (20_000, 4, 5, 2))
    z = jax.vmap(pi.standard_noise)(matrices)
    x = np.asarray(jax.vmap(pi.pre_tanh)(z).x)
    np.testing.assert_allclose(x.var(0), variance, rtol=0.05)
    np.testing.assert_allclose(
        x[0] - mean,
        np.einsum("nf,nfd->nd", features, weights * np.asarray(matrices[0])),
        atol=1e-5,
    )
    normal = scipy.stats.norm(np.asarray(mean), np.sqrt(variance + 1e-6))
    slope = np.log(2.0 * (1.0 - np.tanh(np.asarray(x[0], np.float64)) ** 2))
    expected = (normal.logpdf(x[0]) - slope).sum(-1)
    found = pi.log_prob(distributions.PreTanh(jnp.asarray(x[0])))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
