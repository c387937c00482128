"""`jaxrl.mdp`: exact solutions against numbers by hand, the book's, and each other."""

import re

import numpy as np
import pytest

from jaxrl.envs.lecture import PROBLEMS, mdp_of
from jaxrl.errors import InvalidInput
from jaxrl.mdp import (
    action_values,
    discounted_visits,
    expected_return,
    finite_mdp,
    greedy_policy,
    interpolate,
    policy_evaluation,
    policy_iteration,
    state_distribution,
    uniform_policy,
    value_iteration,
)


def two_states(p=0.5, **changes):
    """From state 0 to the terminal state 1 with probability p, else it stays; reward 1."""
    transition = np.array([[[1 - p, p]], [[0, 1]]])
    given = dict(
        transition=transition, reward=1.0, terminal=[False, True], start=0, gamma=1.0
    )
    return finite_mdp(**{**given, **changes})


def random_mdp(seed, num_states=6, num_actions=3, ends=True):
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(num_states), (num_states, num_actions))
    reward = rng.normal(size=(num_states, num_actions, num_states))
    terminal = np.arange(num_states) == (num_states - 1 if ends else -1)
    start = rng.dirichlet(np.ones(num_states)) * ~terminal
    mdp = finite_mdp(transition, reward, terminal, start / start.sum())
    return mdp, rng.dirichlet(np.ones(num_actions), num_states)


def expect(problem, policy, message):
    with pytest.raises(InvalidInput, match=re.escape(message)):
        policy_evaluation(problem, policy, 1.0)


# Building one


def test_rewards_are_broadcast_and_terminal_rows_replaced():
    mdp = two_states(transition=[[[0.5, 0.5]], [[9.0, -3.0]]], reward=[[2.0], [7.0]])
    np.testing.assert_array_equal(mdp.transition[1], [[0, 1]])
    np.testing.assert_array_equal(mdp.reward, [[[2, 2]], [[0, 0]]])
    np.testing.assert_array_equal(mdp.features, [[1], [0]])
    assert (mdp.num_states, mdp.num_actions) == (2, 1)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("transition has shape (2, 2)", {"transition": np.eye(2)}),
        ("transition[0, 0] is not", {"transition": [[[0.5, 0.4]], [[0, 1]]]}),
        ("transition[0, 0] is not", {"transition": [[[-0.5, 1.5]], [[0, 1]]]}),
        ("start is not", {"start": [0.5, 0.4]}),
        ("start has shape (3,)", {"start": [1, 0, 0]}),
        ("start is a terminal state", {"start": [0.5, 0.5]}),
        ("reward has shape (3,)", {"reward": [1.0, 2.0, 3.0]}),
        ("reward is not finite", {"reward": np.nan}),
        ("features has shape (3, 1)", {"features": np.ones((3, 1))}),
        ("gamma = 1.5", {"gamma": 1.5}),
    ],
)
def test_what_is_wrong_is_named(message, changes):
    with pytest.raises(InvalidInput, match=re.escape(message)) as caught:
        two_states(**changes)
    assert str(caught.value).endswith(".")


# One policy


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99, 1.0])
def test_waiting_for_the_end_is_a_geometric_series(gamma):
    """V = 1 + γ/2 V."""
    value = policy_evaluation(two_states(), np.ones((2, 1)), gamma)
    np.testing.assert_allclose(value, [1 / (1 - gamma / 2), 0])


@pytest.mark.parametrize("ends", [True, False])
def test_a_long_sum_of_rewards_is_the_value(ends):
    """V and Q of random problems against the sum of γ^t P_π^t r_π, term by term."""
    mdp, policy = random_mdp(3, ends=ends)
    gamma, value, q = 0.9, np.zeros(6), np.zeros((6, 3))
    for _ in range(500):
        for s in range(6):
            for a in range(3):
                steps = zip(mdp.transition[s, a], mdp.reward[s, a], value, strict=True)
                q[s, a] = sum(p * (r + gamma * v) for p, r, v in steps)
        value = (policy * q).sum(axis=1)
    exact = policy_evaluation(mdp, policy, gamma)
    np.testing.assert_allclose(exact, value, atol=1e-12)
    np.testing.assert_allclose(action_values(mdp, exact, gamma), q, atol=1e-12)
    assert expected_return(mdp, policy, gamma) == pytest.approx(mdp.start @ value)


def test_the_values_of_the_books():
    def uniform(id):
        mdp = mdp_of(id)
        return policy_evaluation(mdp, uniform_policy(mdp), mdp.gamma)

    np.testing.assert_allclose(
        uniform("lecture/random-walk-5")[:5], np.arange(1, 6) / 6
    )
    walk_19 = np.arange(-9, 10) / 10
    np.testing.assert_allclose(
        uniform("lecture/random-walk-19")[:19], walk_19, atol=1e-12
    )
    np.testing.assert_allclose(uniform("lecture/boyan-chain"), -2.0 * np.arange(13))
    grid = [0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0]
    np.testing.assert_allclose(uniform("lecture/grid-world"), grid)
    np.testing.assert_array_equal(uniform("lecture/baird"), np.zeros(7))


def test_boyans_values_are_linear_in_the_features():
    mdp = mdp_of("lecture/boyan-chain")
    value = policy_evaluation(mdp, uniform_policy(mdp), 1.0)
    np.testing.assert_allclose(mdp.features @ [-24, -16, -8, 0], value)


@pytest.mark.parametrize("p", [0.05, 0.5, 2 - np.sqrt(2), 0.95])
def test_the_corridor_by_its_formula(p):
    mdp = mdp_of("lecture/short-corridor")
    value = expected_return(mdp, np.tile([1 - p, p], (4, 1)), 1.0)
    assert value == pytest.approx(-2 * (2 - p) / (p * (1 - p)))
    best = expected_return(mdp, np.tile([np.sqrt(2) - 1, 2 - np.sqrt(2)], (4, 1)), 1.0)
    assert best == pytest.approx(-11.6, abs=0.06)
    assert value <= best + 1e-9


def test_policies_that_never_end_have_no_undiscounted_value():
    corridor = mdp_of("lecture/short-corridor")
    always_left = np.tile([1.0, 0.0], (4, 1))
    expect(
        corridor, always_left, "gamma = 1: this policy never terminates from state 0"
    )
    assert policy_evaluation(corridor, always_left, 0.5)[0] == pytest.approx(-2)
    baird = mdp_of("lecture/baird")
    expect(baird, uniform_policy(baird), "from state 0")


def test_what_is_no_policy_is_refused():
    mdp = two_states()
    expect(mdp, np.ones((2, 2)), "policy has shape (2, 2): must be (2, 1)")
    expect(mdp, np.array([[0.9], [1.0]]), "policy[0] is not")
    with pytest.raises(InvalidInput, match=r"gamma = 1\.1"):
        policy_evaluation(mdp, np.ones((2, 1)), 1.1)


# The best policy


BEST = {
    "lecture/cliff-walking": -13,
    "lecture/windy-grid-world": -15,
    "lecture/maze": -14,
    "lecture/short-corridor": -3,
    "lecture/random-walk-5": 1,
    "lecture/random-walk-19": 1,
    "lecture/boyan-chain": -18,
    "lecture/baird": 0,
}


@pytest.mark.parametrize("id", PROBLEMS)
def test_value_and_policy_iteration_agree(id):
    mdp = mdp_of(id)
    value = value_iteration(mdp, mdp.gamma)
    also, policy = policy_iteration(mdp, mdp.gamma)
    np.testing.assert_allclose(value, also, atol=1e-8)
    assert set(policy.ravel()) == {0.0, 1.0}
    if id in BEST:
        assert mdp.start @ value == pytest.approx(BEST[id])
    # One step of the policy and then the same value: Bellman's equation holds.
    q = action_values(mdp, value, mdp.gamma)
    np.testing.assert_allclose((policy * q).sum(1), np.where(mdp.terminal, 0, value))


def test_diagonal_moves_in_the_wind_save_eight_steps():
    mdp = mdp_of("lecture/windy-grid-world", kings_moves=True)
    assert mdp.start @ value_iteration(mdp, 1.0) == -7


def test_the_best_policies_of_random_problems():
    """Better than all 3^5 deterministic ones, and equal to one of them."""
    mdp, _ = random_mdp(0)
    choices = np.stack(np.meshgrid(*[range(3)] * 5, indexing="ij"), -1).reshape(-1, 5)
    policies = np.eye(3)[np.pad(choices, ((0, 0), (0, 1)))]
    values = np.array([policy_evaluation(mdp, policy, 0.9) for policy in policies])
    np.testing.assert_allclose(value_iteration(mdp, 0.9), values.max(axis=0), atol=1e-8)
    np.testing.assert_allclose(policy_iteration(mdp, 0.9)[0], values.max(axis=0))


def test_rewards_for_ever_are_refused():
    stay = finite_mdp(np.ones((1, 1, 1)), 1.0, [False], 0)
    with pytest.raises(InvalidInput, match=r"gamma = 1\.0: value iteration has not"):
        value_iteration(stay, 1.0, max_iterations=100)
    assert value_iteration(stay, 0.5)[0] == pytest.approx(2)
    with pytest.raises(InvalidInput, match="gamma = -1"):
        value_iteration(stay, -1)


def test_greedy_takes_the_first_of_equals():
    policy = greedy_policy(np.array([[0.0, 1.0, 1.0], [2.0, 2.0, 1.0]]))
    np.testing.assert_array_equal(policy, [[0, 1, 0], [1, 0, 0]])


# How often states are visited


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_discounted_visits_are_the_sum_over_time(gamma):
    mdp, policy = random_mdp(5)
    chain = np.einsum("sa,sat->st", policy, mdp.transition)
    now, expected = mdp.start.copy(), np.zeros(mdp.num_states)
    for t in range(2_000):
        expected += gamma**t * now * ~mdp.terminal
        now = now @ chain
    np.testing.assert_allclose(discounted_visits(mdp, policy, gamma), expected)


def test_waiting_for_the_end_is_counted():
    mdp = two_states(0.25)
    found = discounted_visits(mdp, uniform_policy(mdp), 1.0)
    np.testing.assert_allclose(found, [4.0, 0.0])


def test_the_distribution_of_a_random_walk_is_a_triangle():
    mdp = mdp_of("lecture/random-walk-5")
    share = state_distribution(mdp, uniform_policy(mdp))
    np.testing.assert_allclose(share, np.array([1, 2, 3, 2, 1, 0]) / 9, atol=1e-12)


def test_the_distribution_without_an_end_is_stationary():
    mdp, policy = random_mdp(1, ends=False)
    chain = np.einsum("sa,sat->st", policy, mdp.transition)
    power = np.linalg.matrix_power(chain, 200)[0]
    np.testing.assert_allclose(state_distribution(mdp, policy), power, atol=1e-12)


def test_baird_under_the_behaviour_policy_is_uniform():
    mdp = mdp_of("lecture/baird")
    share = state_distribution(mdp, np.tile([6 / 7, 1 / 7], (7, 1)))
    np.testing.assert_allclose(share, np.full(7, 1 / 7))


def test_two_separate_parts_have_no_one_distribution():
    mdp = finite_mdp(np.eye(2)[:, None], 0.0, [False, False], [0.5, 0.5])
    with pytest.raises(InvalidInput, match="policy: "):
        state_distribution(mdp, np.ones((2, 1)))


def test_interpolation():
    value = interpolate(np.array([0.0, 1.0, 3.0]), np.array([1.0, 2.0, 0.0]))
    np.testing.assert_allclose(value([-1, 0.5, 2, 3, 9]), [1, 1.5, 1, 0, 0])
