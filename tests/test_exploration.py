"""Exploration: frequencies of ε-greedy actions, and noise on continuous ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.exploration import (
    EpsilonGreedy,
    NoiseMatrix,
    epsilon_greedy,
    epsilon_noise,
    ornstein_uhlenbeck,
    renewed_matrix,
    smoothing_noise,
    spread,
)

KEY = jax.random.key(0)
Q = jnp.array([[1.0, 3.0, 2.0, -1e9], [0.0, -5.0, -2.0, -1.0]])


def noise_for(q):
    return epsilon_noise(KEY, q.shape[:-1], q.shape[-1])


def test_without_exploration_is_greedy():
    actions = epsilon_greedy(noise_for(Q), Q, 0.0)
    assert actions.dtype == jnp.int32
    np.testing.assert_array_equal(actions, [1, 0])
    legal = jnp.array([[True, False, True, True], [False, True, False, True]])
    actions = epsilon_greedy(noise_for(Q), Q, 0.0, legal)
    np.testing.assert_array_equal(actions, [2, 3])


@pytest.mark.parametrize(
    "mask, expected",
    [
        ([True, True, True, True], [0.1, 0.7, 0.1, 0.1]),
        ([True, False, True, False], [0.2, 0.0, 0.8, 0.0]),
        ([False, False, False, True], [0.0, 0.0, 0.0, 1.0]),
    ],
)
def test_explores_the_legal_actions_evenly(mask, expected):
    q = jnp.broadcast_to(Q[0], (40_000, 4))
    mask = jnp.broadcast_to(jnp.array(mask), q.shape)
    actions = epsilon_greedy(noise_for(q), q, 0.4, mask)
    frequency = np.bincount(actions, minlength=4) / len(q)
    np.testing.assert_allclose(frequency, expected, atol=0.01)
    assert (frequency[~mask[0]] == 0.0).all()


def test_takes_an_epsilon_for_each_environment():
    q = jnp.zeros((20_000, 2, 3)).at[..., 1].set(1.0)
    epsilon = jnp.broadcast_to(jnp.array([0.0, 0.9]), (20_000, 2))
    actions = epsilon_greedy(noise_for(q), q, epsilon)
    greedy = (actions == 1).mean(0)
    assert greedy[0] == 1.0
    assert greedy[1] == pytest.approx(0.1 + 0.9 / 3, abs=0.01)


def test_the_first_number_decides_and_the_rest_choose():
    # Below ε: the largest of the other numbers, legal ones first. Not below: the best.
    noise = jnp.array([[0.39, 0.1, 0.2, 0.9, 0.3], [0.4, 0.1, 0.2, 0.9, 0.3]])
    q = jnp.broadcast_to(Q[0], (2, 4))
    np.testing.assert_array_equal(epsilon_greedy(noise, q, 0.4), [2, 1])
    legal = jnp.array([True, False, False, True])
    np.testing.assert_array_equal(epsilon_greedy(noise, q, 0.4, legal), [3, 0])


def test_the_noise_is_uniform_of_the_shape_that_was_asked_for():
    noise = epsilon_noise(KEY, (50, 40), 9)
    assert noise.shape == (50, 40, 10)
    assert noise.min() >= 0.0 and noise.max() < 1.0
    # Standard errors: 0.002 of the mean, 0.0005 of the variance.
    assert float(noise.mean()) == pytest.approx(1 / 2, abs=0.01)
    assert float(noise.var()) == pytest.approx(1 / 12, abs=0.003)


def test_smoothing_noise_by_hand():
    noise = smoothing_noise(jnp.array([-9.0, -1.0, 0.5, 3.0]), 0.2, 0.5)
    np.testing.assert_allclose(noise, [-0.5, -0.2, 0.1, 0.5], rtol=1e-6)


def test_some_environments_explore_more_than_others():
    np.testing.assert_allclose(spread(0.1, 0.4, 4), [[0.1], [0.2], [0.3], [0.4]])
    np.testing.assert_allclose(spread(0.1, 0.4, 1), [[0.1]])
    assert spread(0.1, None, 4) == 0.1


def test_correlated_noise_has_the_variance_and_correlation_it_says():
    std, rate, dt = 0.5, 0.15, 0.5
    noise = jax.random.normal(KEY, (4_000, 256, 1))

    def step(x, noise):
        x = ornstein_uhlenbeck(x, noise, std, rate, dt)
        return x, x

    _, x = jax.lax.scan(step, jnp.zeros((256, 1)), noise)
    x = np.asarray(x, np.float64)[200:, :, 0]  # (1 - θ dt)^200 is 2e-7
    variance = std**2 * dt / (1 - (1 - rate * dt) ** 2)
    assert x.mean() == pytest.approx(0.0, abs=0.02)
    assert x.var() == pytest.approx(variance, rel=0.02)
    for lag in (1, 5, 20):
        correlation = (x[:-lag] * x[lag:]).mean() / x.var()
        assert correlation == pytest.approx((1 - rate * dt) ** lag, abs=0.02)


@pytest.mark.parametrize(
    "interval, drawn_at", [(3, {0, 3, 6}), (0, {0}), (1, set(range(7)))]
)
def test_a_noise_matrix_is_kept_until_it_is_old_or_an_episode_begins(
    interval, drawn_at
):
    """The second of two environments has an episode that begins at step 4."""
    memory = NoiseMatrix(jnp.zeros((2, 2, 1)), jnp.zeros(2, jnp.int32))
    anew = {4, 5, 6} if interval == 1 else {4}
    for t in range(7):
        if t == 4:
            memory = jax.tree.map(lambda x: x.at[1].set(0), memory)
        before = memory.matrix
        drawn = jnp.full((2, 2, 1), t + 1.0)
        memory = renewed_matrix(memory, drawn, interval)
        of_second = {x for x in drawn_at if x < 4} | anew
        for n, times in ((0, drawn_at), (1, of_second)):
            assert (memory.matrix[n] == (drawn if t in times else before)[n]).all()


def test_the_mode_of_an_epsilon_greedy_policy_is_the_best_legal_action():
    q = jnp.array([[3.0, 1.0, 2.0], [-3.0, -1.0, -2.0]])
    mask = jnp.array([[False, True, True], [True, False, False]])
    policy = EpsilonGreedy(q, 1.0, mask)
    assert policy.mode().tolist() == [2, 0] and policy.mode().dtype == jnp.int32
    assert policy._replace(mask=None).mode().tolist() == [0, 1]
