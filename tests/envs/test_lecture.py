"""`lecture/...`: every environment agrees with its MDP, and both with the book."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs import make
from jaxrl.envs.check import check_env
from jaxrl.envs.lecture import (
    CLIFF_MAP,
    MAZE_MAP,
    PROBLEMS,
    continuous_walk_mdp,
    continuous_walk_values,
    grid_cells,
    grid_world,
    mdp_of,
    random_walk,
)
from jaxrl.errors import InvalidInput
from jaxrl.mdp import action_values, policy_evaluation, uniform_policy, value_iteration
from jaxrl.rollout import init_world, rollout_episode


def test_a_tabular_environment_keeps_every_rule():
    """Finite environments share one program up to sizes; `faults.py` checks every id."""
    findings = check_env(make("lecture/short-corridor"), 100)
    assert not [f.problem for f in findings if f.problem]


@pytest.mark.parametrize("id", PROBLEMS)
def test_the_environment_draws_from_its_mdp(id):
    """All (s, a), 300 times each: frequencies to 5 standard errors; the rest exactly."""
    env, mdp, draws = make(id), mdp_of(id), 300
    states, actions = np.flatnonzero(~mdp.terminal), np.arange(mdp.num_actions)
    step = jax.vmap(env.step, in_axes=(0, None, None, None))
    step = jax.vmap(jax.vmap(step, (None, None, 0, None)), (None, 0, None, None))
    keys = jax.random.split(jax.random.key(0), draws)
    to, steps = jax.device_get(jax.jit(step)(keys, states, actions, env.params))
    share = np.eye(mdp.num_states)[to].mean(axis=2)
    p = mdp.transition[states]
    assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / draws)).all()
    rewards = mdp.reward[states[:, None, None], actions[:, None], to]
    np.testing.assert_array_equal(steps.reward, rewards.astype(np.float32))
    np.testing.assert_array_equal(steps.terminated, mdp.terminal[to])
    np.testing.assert_array_equal(steps.obs, mdp.features[to].astype(np.float32))


@pytest.mark.parametrize("id", PROBLEMS)
def test_episodes_begin_where_the_mdp_says(id):
    env, mdp = make(id), mdp_of(id)
    keys = jax.random.split(jax.random.key(1), 500)
    reset = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))
    state, obs = jax.device_get(reset(keys, env.params))
    share = np.bincount(state, minlength=mdp.num_states) / 500
    error = np.sqrt(mdp.start * (1 - mdp.start) / 500)
    assert (np.abs(share - mdp.start) <= 5 * error).all()
    np.testing.assert_array_equal(obs, mdp.features[state].astype(np.float32))


def mean_return(env, num_envs=3000, max_steps=3000):
    """Mean return of the uniform policy, and its standard error."""

    def policy(obs, memory, key):
        shape = (num_envs,)
        return jax.random.randint(key, shape, 0, env.action_space.n), memory, {}

    def run(key):
        return rollout_episode(env, policy, init_world(env, key, num_envs), max_steps)

    episode_return, _, ended = jax.device_get(jax.jit(run)(jax.random.key(2)))
    assert ended.all()
    return episode_return.mean(), episode_return.std() / np.sqrt(num_envs)


@pytest.mark.parametrize("id", ["lecture/boyan-chain", "lecture/grid-world"])
def test_returns_of_episodes_are_the_value(id):
    mdp = mdp_of(id)
    mean, error = mean_return(make(id))
    expected = mdp.start @ policy_evaluation(mdp, uniform_policy(mdp), 1.0)
    assert abs(mean - expected) < 4 * error
    assert 4 * error < 0.1 * abs(expected)  # that it says something


# The walk on an interval


def test_returns_of_the_continuous_walk_are_the_value():
    mean, error = mean_return(make("lecture/continuous-walk"))
    assert abs(mean - continuous_walk_values()(0.0)) < 4 * error < 1.0


def test_the_grid_of_the_walk_is_fine_enough():
    x = np.linspace(-3, 3, 60)
    value = {n: continuous_walk_values(num_points=n)(x) for n in (51, 101, 201, 401)}
    error = {n: np.abs(value[n] - value[401]).max() for n in (51, 101, 201)}
    assert error[201] < 0.001
    assert error[51] > 3 * error[101] > 12 * error[201]  # of second order
    np.testing.assert_allclose(value[401], value[401][::-1])  # a mirror image


def test_a_walk_that_always_goes_right_counts_its_steps():
    """From x the number of steps follows a sum of normals: V(x) = -Σ_k P(x + S_k < 3),
    except for walks that leave on the left, of which there are none."""
    from scipy.special import ndtr

    k = np.arange(1, 30)
    value = continuous_walk_values(1.0, num_points=401)
    for x in (0.0, 1.3, 2.8):
        still_inside = ndtr((3 - x - k) / (0.25 * np.sqrt(k)))
        assert value(x) == pytest.approx(-1 - still_inside.sum(), abs=2e-3)


def test_policies_of_the_walk_may_depend_on_x():
    outwards = continuous_walk_values(lambda x: x > 0)
    mdp = continuous_walk_mdp(201)
    best = value_iteration(mdp, 1.0, tolerance=1e-6)
    assert outwards(0.01) == pytest.approx(best[101], abs=0.03)
    assert outwards(0.0) > continuous_walk_values(0.5)(0.0)
    q = action_values(mdp, best, 1.0)
    assert (q[:100].argmax(1) == 0).all() and (q[101:201].argmax(1) == 1).all()
    with pytest.raises(InvalidInput, match="num_points = 1000: must be odd"):
        continuous_walk_mdp(1000)


# Grids


def moved(rows, cell, action, **options):
    """Successor cell and reward of an action."""
    mdp, cells = grid_world(rows, **options), grid_cells(rows)
    to = mdp.transition[cells.index(cell), action]
    assert to.max() == 1
    return cells[to.argmax()], mdp.reward[cells.index(cell), action, 0]


def test_steps_walls_edges_and_the_cliff():
    up, right, down, left = range(4)
    assert moved(MAZE_MAP, (2, 0), up) == ((1, 0), -1)
    assert moved(MAZE_MAP, (2, 1), right) == ((2, 1), -1)  # a wall
    assert moved(MAZE_MAP, (2, 0), left) == ((2, 0), -1)  # the edge
    assert moved(CLIFF_MAP, (3, 0), right) == ((3, 0), -100)
    assert moved(CLIFF_MAP, (2, 4), down) == ((3, 0), -100)
    assert moved(CLIFF_MAP, (2, 11), down) == ((3, 11), -1)


def test_the_wind_is_that_of_the_column_one_leaves():
    rows, wind = ("....", "....", "...G"), (0, 1, 2, 0)
    _, right, down, left = range(4)
    assert moved(rows, (2, 0), right, wind=wind) == ((2, 1), -1)
    assert moved(rows, (2, 1), right, wind=wind) == ((1, 2), -1)
    assert moved(rows, (2, 2), left, wind=wind) == ((0, 1), -1)
    assert moved(rows, (0, 2), down, wind=wind) == ((0, 2), -1)  # held by the edge


@pytest.mark.parametrize("rows", [("..", "."), ("..", ".x")])
def test_a_grid_must_be_a_rectangle_of_known_characters(rows):
    with pytest.raises(InvalidInput, match="rows: must be of equal length"):
        grid_world(rows)


# Ids and parameters


def test_parameters_of_a_problem_are_those_of_its_function():
    assert make("lecture/windy-grid-world", kings_moves=True).action_space.n == 8
    message = "size = 3: lecture/maze has no such parameter (it has none)"
    with pytest.raises(InvalidInput, match=re.escape(message)):
        make("lecture/maze", size=3)
    with pytest.raises(InvalidInput, match="num_states = 4: must be odd"):
        random_walk(4, 0.0)
    message = "'lecture/maz' has no finite MDP (did you mean 'lecture/maze'?)"
    with pytest.raises(InvalidInput, match=re.escape(message)):
        mdp_of("lecture/maz")


def test_actions_outside_are_the_nearest():
    env = make("lecture/continuous-walk")
    key = jax.random.key(0)
    right = env.step(key, jnp.float32(0), 1, env.params)[0]
    assert right > 0
    assert env.step(key, jnp.float32(0), 5, env.params)[0] == right
    assert env.step(key, jnp.float32(0), -2, env.params)[0] == -right
