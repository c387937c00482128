"""Epsilon-greedy: who is explored, how often, and that masks hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.exploration import epsilon_greedy

KEY = jax.random.key(0)
Q = jnp.array([[1.0, 3.0, 2.0, -1e9], [0.0, -5.0, -2.0, -1.0]])


def test_without_exploration_is_greedy():
    actions = epsilon_greedy(KEY, Q, 0.0)
    assert actions.dtype == jnp.int32
    np.testing.assert_array_equal(actions, [1, 0])
    legal = jnp.array([[True, False, True, True], [False, True, False, True]])
    actions = epsilon_greedy(KEY, Q, 0.0, legal)
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
    actions = epsilon_greedy(KEY, q, 0.4, mask)
    frequency = np.bincount(actions, minlength=4) / len(q)
    np.testing.assert_allclose(frequency, expected, atol=0.01)
    assert (frequency[~mask[0]] == 0.0).all()


def test_takes_an_epsilon_for_each_environment():
    q = jnp.zeros((20_000, 2, 3)).at[..., 1].set(1.0)
    epsilon = jnp.broadcast_to(jnp.array([0.0, 0.9]), (20_000, 2))
    actions = epsilon_greedy(KEY, q, epsilon)
    greedy = (actions == 1).mean(0)
    assert greedy[0] == 1.0
    assert greedy[1] == pytest.approx(0.1 + 0.9 / 3, abs=0.01)
