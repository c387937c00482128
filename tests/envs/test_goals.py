"""Environments with goals: dynamics, and the rule that rewards are those of the goals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import make
from jaxrl.envs import check

KEY = jax.random.key(0)


def test_a_bit_is_flipped_and_the_goal_ends_the_episode():
    env = make("goal/bit-flip", length=3)
    bits, goal = jnp.array([0.0, 1.0, 1.0]), jnp.array([0.0, 1.0, 0.0])
    _, found = env.step(KEY, (bits, goal), jnp.int32(0), env.params)
    np.testing.assert_array_equal(found.obs["achieved_goal"], [1.0, 1.0, 1.0])
    assert (found.reward, found.terminated) == (-1.0, False)
    _, found = env.step(KEY, (bits, goal), jnp.int32(2), env.params)
    assert (found.reward, found.terminated) == (0.0, True)


@pytest.mark.full
def test_no_episode_begins_at_its_goal():
    env = make("goal/bit-flip", length=1)
    keys = jax.random.split(KEY, 64)
    obs = jax.vmap(env.reset, (0, None))(keys, env.params)[1]
    assert (obs["achieved_goal"] != obs["desired_goal"]).all()
    assert 0 < obs["desired_goal"].mean() < 1


def test_a_point_is_moved_by_a_tenth_of_the_action_and_stays_in_the_square():
    env = make("goal/point-reach")
    point, goal = jnp.array([0.95, 0.0]), jnp.array([1.0, -0.06])
    _, found = env.step(KEY, (point, goal), jnp.array([1.0, -0.5]), env.params)
    np.testing.assert_allclose(found.obs["achieved_goal"], [1.0, -0.05], rtol=1e-6)
    assert (found.reward, found.terminated) == (0.0, True)


@pytest.mark.full
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda reward, end: (reward + 0.5, end), "a step gives -1, its goals -0.5"),
        (lambda reward, end: (reward, ~end), "the goals end an episode"),
    ],
)
def test_a_reward_that_the_goals_do_not_explain_is_found(change, problem):
    env = make("goal/bit-flip", length=3)

    def goal_reward(achieved, desired, params):
        return change(*env.goal_reward(achieved, desired, params))

    wrong = env.replace(goal_reward=goal_reward)
    name = next(r.name for r in check.RULES if r.check is check._goal_rewards)
    for subject, expected in ((env, None), (wrong, problem)):
        found = {x.rule: x.problem for x in check.check_env(subject, 50)}[name]
        assert (found is None) if expected is None else (expected in found)
