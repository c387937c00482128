"""Stepping: successors, resets, time limits, statistics, memory. Hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.rollout import init_world, play, restart_episodes, unroll
from jaxrl.types import counter
from tests.small import counting_env

KEY = jax.random.key(0)


def policy(obs, memory, key):
    """Always action 0; a memory, if any, counts its own steps."""
    del key
    action = jnp.zeros(len(obs), jnp.int32)
    return action, jax.tree.map(lambda m: m + 1.0, memory), {"seen": memory}


def rollout(env, num_steps, num_envs=2, memory=()):
    world = init_world(env, KEY, num_envs, memory)
    return jax.jit(lambda w: unroll(env, policy, w, num_steps))(world)


def test_next_obs_is_the_true_successor_and_obs_the_reset_one():
    _, t, _ = rollout(counting_env(ends_after=3), 5)
    np.testing.assert_array_equal(t.obs[:, 0, 0], [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(t.next_obs[:, 0, 0], [1, 2, 3, 1, 2])
    np.testing.assert_array_equal(t.reward[:, 0], [1, 2, 3, 1, 2])
    np.testing.assert_array_equal(
        t.terminated[:, 0], [False, False, True, False, False]
    )
    assert not t.truncated.any()


@pytest.mark.parametrize(
    ("horizon_is", "flag", "other"),
    [("truncated", "truncated", "terminated"), ("terminal", "terminated", "truncated")],
)
def test_reaching_the_horizon_is_what_it_is_said_to_be(horizon_is, flag, other):
    _, t, _ = rollout(counting_env(horizon=2, horizon_is=horizon_is), 5)
    np.testing.assert_array_equal(getattr(t, flag)[:, 0], [0, 1, 0, 1, 0])
    assert not getattr(t, other).any()


def test_an_end_at_the_time_limit_is_terminated_not_truncated():
    _, t, _ = rollout(counting_env(ends_after=2, horizon=2), 4)
    np.testing.assert_array_equal(t.terminated[:, 0], [0, 1, 0, 1])
    assert not t.truncated.any()


def test_no_horizon_never_ends():
    _, t, stats = rollout(counting_env(), 50)
    assert not (t.terminated | t.truncated).any()
    assert stats["rollout/episode_return"].count == 0


def test_episode_statistics_count_whole_episodes_only():
    world, _, stats = rollout(counting_env(ends_after=3), 7)
    # Two episodes of 1 + 2 + 3 in each of two environments; a third is under way.
    assert stats["rollout/episode_return"].sum == 4 * 6
    assert stats["rollout/episode_length"].value == 3
    assert stats["rollout/episode_return"].count == 4
    np.testing.assert_array_equal(world.episode_length, 1)
    np.testing.assert_array_equal(world.episode_return, 1.0)


def test_statistics_and_time_limit_go_on_across_rollouts():
    env = counting_env(horizon=5)
    world, _, _ = rollout(env, 3)
    _, t, stats = unroll(env, policy, world, 3)
    np.testing.assert_array_equal(t.truncated[:, 0], [0, 1, 0])
    assert stats["rollout/episode_return"].value == 1 + 2 + 3 + 4 + 5


def test_memory_is_zeroed_where_an_episode_ends():
    world, t, _ = rollout(counting_env(ends_after=3), 5, memory=jnp.zeros((2, 1)))
    np.testing.assert_array_equal(t.extras["seen"][:, 0, 0], [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(world.memory, 2.0)


def test_the_step_counter_survives_two_to_the_32():
    env = counting_env()
    start = init_world(env, KEY, 2).replace(env_steps=counter(2**32 - 3))
    world, _, _ = unroll(env, policy, start, 4)
    assert int(world.env_steps) == 2**32 + 5
    assert float(world.env_steps.as_float()) == 2.0**32


def test_environments_of_a_batch_have_keys_of_their_own():
    from jaxrl.envs import make

    env = make("CartPole-v1")
    world, t, _ = jax.jit(lambda w: unroll(env, policy, w, 30))(init_world(env, KEY, 4))
    assert len(np.unique(np.asarray(t.obs[0, :, 0]))) == 4
    assert len(np.unique(np.asarray(world.obs[:, 0]))) == 4


def test_params_can_be_vmapped():
    from jaxrl.envs import make

    env = make("CartPole-v1")
    forces = jnp.array([5.0, 20.0])
    params = jax.vmap(lambda f: env.params.replace(force_mag=f))(forces)

    def last_obs(params):
        variant = env.replace(params=params)
        return unroll(variant, policy, init_world(variant, KEY, 1), 3)[1].next_obs[
            -1, 0
        ]

    weak, strong = jax.jit(jax.vmap(last_obs))(params)
    assert abs(strong[1]) > 3 * abs(weak[1])


def test_restart_drops_the_running_episodes_and_keeps_the_count():
    env = counting_env(ends_after=5)
    world, _, _ = rollout(env, 3, memory=jnp.zeros((2, 1)))
    fresh = restart_episodes(env, world)
    assert int(fresh.env_steps) == int(world.env_steps) == 6
    for zero in (fresh.obs, fresh.memory, fresh.episode_return, fresh.episode_length):
        assert not zero.any()


def test_play_counts_the_first_episode_of_each_environment():
    env = counting_env(ends_after=4)
    episode_return, length, ended = play(env, policy, init_world(env, KEY, 3), 100)
    np.testing.assert_array_equal(episode_return, 10.0)
    np.testing.assert_array_equal(length, 4)
    assert ended.all()


def test_play_cuts_at_max_steps_and_says_so():
    env = counting_env()
    episode_return, length, ended = play(env, policy, init_world(env, KEY, 3), 4)
    np.testing.assert_array_equal(episode_return, 10.0)
    np.testing.assert_array_equal(length, 4)
    assert not ended.any()
