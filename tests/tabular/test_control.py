"""`jaxrl.tabular.control`: one step by hand, a float64 loop over whole episodes, and
problems with a known optimal policy."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs import make
from jaxrl.envs.tabular import tabular_env
from jaxrl.errors import InvalidInput
from jaxrl.exploration import epsilon_greedy_value
from jaxrl.mdp import finite_mdp
from jaxrl.tabular.control import (
    TARGETS,
    greedy_episode,
    reinforce_episode,
    sample_action,
    td_control_episode,
)

KEY = jax.random.key(0)


def corridor(length=4):
    """Cells in a row and one action, to the next cell; rewards 1, 2, 3, ...; episodic."""
    transition = np.eye(length + 1, k=1)[:, None]
    transition[-1, 0, -1] = 1
    reward = np.arange(1, length + 2)[:, None]
    terminal = np.arange(length + 1) == length
    return tabular_env(finite_mdp(transition, reward, terminal, start=0))


# By hand


def test_choices_are_greedy_uniform_and_fair():
    keys = jax.random.split(KEY, 4000)
    pick = jax.jit(jax.vmap(sample_action, in_axes=(0, None, None)))
    q = jnp.array([1.0, 3.0, 3.0, -1e9])

    def shares(epsilon):
        return np.bincount(pick(keys, q, epsilon), minlength=4) / 4000

    np.testing.assert_allclose(shares(0.0), [0, 0.5, 0.5, 0], atol=0.04)
    np.testing.assert_allclose(shares(1.0), [0.25] * 4, atol=0.04)
    np.testing.assert_allclose(shares(0.4), [0.1, 0.4, 0.4, 0.1], atol=0.04)
    below = jnp.array([-5.0, -7.0, -5.0, -9.0])  # all below any noise
    share = np.bincount(pick(keys, below, 0.0), minlength=4) / 4000
    np.testing.assert_allclose(share, [0.5, 0, 0.5, 0], atol=0.04)


def test_the_value_of_the_epsilon_greedy_policy():
    q = jnp.array([[1.0, 3.0], [4.0, 0.0]])
    np.testing.assert_allclose(epsilon_greedy_value(q, 0.0), [3, 4])
    np.testing.assert_allclose(epsilon_greedy_value(q, 0.5), [2.5, 3])
    np.testing.assert_allclose(epsilon_greedy_value(q, jnp.array([1.0, 0])), [2, 4])


@pytest.mark.parametrize(
    ("target", "trace"),
    [(target, "accumulating") for target in TARGETS]
    + [("sarsa", "replacing"), ("sarsa", "true_online")],
)
def test_one_action_is_td_prediction(target, trace):
    """Q of a single action is V, against a float64 loop, with all states different."""
    gamma, alpha, w0 = 0.9, 0.3, np.array([0.5, -1.0, 2.0, 0.25])
    run = partial(td_control_episode, corridor(), alpha=alpha, epsilon=0.0, gamma=gamma)
    run = jax.jit(partial(run, target=target, trace=trace))
    for lam in (0.0, 0.5, 1.0):
        learnt, stats = run(jnp.asarray(w0, jnp.float32)[None], KEY, lam=lam)
        w, z, old = w0.copy(), np.zeros(4), 0.0
        for s in range(4):
            following = w[s + 1] if s < 3 else 0.0
            delta = s + 1 + gamma * following - w[s]
            z *= gamma * lam
            z[s] = 1.0  # visited once: the three traces are the same
            change = w[s] - old if trace == "true_online" else 0.0
            old = following
            w += alpha * (delta + change) * z
            w[s] -= alpha * change
        np.testing.assert_allclose(learnt[0], w, rtol=1e-5)
        assert (float(stats.episode_return), int(stats.length)) == (10.0, 4)


def two_choices():
    """State 0: action 0 goes to state 1, action 1 ends with reward 1. State 1: both
    actions end, rewards 5 and -5."""
    transition = np.zeros((3, 2, 3))
    transition[0, 0, 1] = transition[0, 1, 2] = transition[1, :, 2] = 1
    reward = np.array([[0.0, 1.0], [5.0, -5.0], [0.0, 0.0]])
    terminal = np.array([False, False, True])
    return tabular_env(finite_mdp(transition, reward, terminal, start=0))


@functools.cache
def of_two_choices(target):
    """`(weights, keys, lam) -> (weights, Episode)`: α = 1, ε = 0.5, γ = 1."""
    run = partial(td_control_episode, two_choices(), alpha=1.0, epsilon=0.5)

    def one(weights, key, lam):
        return run(weights, key, gamma=1.0, target=target, lam=lam)

    return jax.jit(jax.vmap(one, in_axes=(None, 0, None)))


@pytest.mark.parametrize(
    ("target", "goal"),
    [("q_learning", 4.0), ("expected_sarsa", 0.5 * 4 + 0.5 * 3), ("sarsa", None)],
)
def test_targets_differ_where_actions_do(target, goal):
    """Target of Q(0, 0) for Q(1, ·) = (4, 2) and ε = 0.5."""
    weights = jnp.array([[10.0, 4.0], [0.0, 2.0]])
    keys = jax.random.split(KEY, 64)
    learnt, stats = of_two_choices(target)(weights, keys, 0.0)
    went_on = np.asarray(stats.length) == 2
    assert 0.5 < went_on.mean() < 0.95
    goals = np.asarray(learnt)[went_on, 0, 0]
    if goal is not None:
        np.testing.assert_allclose(goals, goal)
    else:
        # Of SARSA the action that it then takes, which the return tells.
        took = np.asarray(stats.episode_return)[went_on]
        np.testing.assert_allclose(goals, np.where(took == 5, 4.0, 2.0))
        assert len(set(took)) == 2


def test_watkins_cuts_the_trace_where_an_action_is_not_greedy():
    weights = jnp.array([[10.0, 4.0], [0.0, 6.0]])  # in state 1 action 1 is greedy
    keys = jax.random.split(KEY, 64)
    learnt, stats = of_two_choices("q_learning")(weights, keys, 1.0)
    final = np.asarray(learnt)[:, 0, 0]
    took = np.asarray(stats.episode_return)
    np.testing.assert_allclose(
        final[took == 5], 6.0
    )  # not greedy: the first goal stays
    np.testing.assert_allclose(final[took == -5], -5.0)  # greedy: -5 reaches back
    sarsa, stats = of_two_choices("sarsa")(weights, keys, 1.0)
    took = np.asarray(stats.episode_return)
    went_on = took != 1
    np.testing.assert_allclose(np.asarray(sarsa)[went_on, 0, 0], took[went_on])


def test_what_cannot_be_is_refused():
    run = partial(td_control_episode, corridor(), jnp.zeros((1, 4)), KEY)
    with pytest.raises(InvalidInput, match=r"target = 'sarsaa'.*did you mean 'sarsa'"):
        run(alpha=0.1, epsilon=0.1, target="sarsaa")
    with pytest.raises(InvalidInput, match="max_steps = 0"):
        run(alpha=0.1, epsilon=0.1, max_steps=0)


@pytest.mark.full
def test_episodes_without_an_end_are_cut():
    env = make("lecture/baird")
    _, stats = td_control_episode(
        env, jnp.zeros((2, 8)), KEY, alpha=0.1, epsilon=0.1, max_steps=7
    )
    assert int(stats.length) == 7


# Problems


@pytest.mark.full
def test_the_maze_is_learnt():
    env = make("lecture/maze")

    @jax.jit
    def run(key):
        def episode(weights, key):
            return td_control_episode(
                env,
                weights,
                key,
                alpha=0.5,
                epsilon=0.1,
                target="q_learning",
                max_steps=2000,
            )

        keys = jax.random.split(key, 150)
        weights, stats = jax.lax.scan(episode, jnp.zeros((4, 46)), keys)
        return greedy_episode(env, weights, key, max_steps=100), stats

    greedy, stats = jax.vmap(run)(jax.random.split(KEY, 8))
    assert np.median(greedy.episode_return) >= -16  # 14 are the fewest
    assert stats.length[:, 0].mean() > 5 * stats.length[:, -20:].mean()
    assert (greedy.episode_return <= -14).all()


@pytest.mark.parametrize("baseline", [True, False])
def test_reinforce_by_hand(baseline):
    """A deterministic action sequence: rewards 1, 2; returns 3, 2; γ = 1."""
    env = corridor(2)
    theta, v = jnp.zeros((1, 2)), jnp.array([0.5, -1.0])
    theta, learnt, stats = reinforce_episode(
        env, theta, v, KEY, alpha=0.1, alpha_value=0.5, baseline=baseline, max_steps=9
    )
    np.testing.assert_array_equal(theta, np.zeros((1, 2)))  # one action: no gradient
    moved = v + 0.5 * (jnp.array([3.0, 2.0]) - v)
    np.testing.assert_allclose(learnt, moved if baseline else v)
    assert (float(stats.episode_return), int(stats.length)) == (3.0, 2)


@pytest.mark.full
def test_the_step_of_reinforce_is_the_softmax_gradient():
    """From θ = 0, γ^t G_t (one-hot(a) - π) step by step; π changes with θ on the way."""
    env, alpha, gamma = two_choices(), 0.1, 0.5
    keys = jax.random.split(KEY, 16)
    run = partial(reinforce_episode, env, jnp.zeros((2, 2)), jnp.zeros(2), max_steps=5)
    run = partial(run, alpha=alpha, alpha_value=0.0, gamma=gamma, baseline=False)
    theta, _, stats = jax.device_get(jax.vmap(run)(keys))
    half = np.array([0.5, -0.5])
    ends_at_once = alpha * 1.0 * -half
    seen = set()
    for after, reward in zip(theta, stats.episode_return, strict=True):
        seen.add(float(reward))
        if reward == 1:
            expected = np.stack([ends_at_once, np.zeros(2)], axis=1)
        else:
            second = half if reward == 5 else -half
            # The first return is γ r, the second one r, weighed with γ.
            step = alpha * gamma * reward
            expected = np.stack([step * half, step * second], axis=1)
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-7)
    assert seen == {1.0, 5.0, -5.0}


@pytest.mark.slow
def test_reinforce_improves_the_corridor():
    env = make("lecture/short-corridor")

    @jax.jit
    def run(key):
        def episode(carry, key):
            *carry, _ = reinforce_episode(
                env, *carry, key, alpha=2.0**-10, alpha_value=2.0**-6, max_steps=500
            )
            return tuple(carry), jax.nn.softmax(carry[0][:, 0])[1]

        start = (jnp.array([[1.47], [-1.47]]), jnp.zeros(1))
        return jax.lax.scan(episode, start, jax.random.split(key, 150))[1]

    p = np.asarray(jax.vmap(run)(jax.random.split(KEY, 8)))
    assert p[:, 0].mean() < 0.15
    assert 0.4 < p[:, -1].mean() < 0.75  # 0.586 is the best
