"""Rollouts: successors, resets, time limits, statistics, memory, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.rollout import (
    draw,
    init_world,
    restart_episodes,
    rollout_episode,
    step_keys,
    unroll,
)
from jaxrl.types import TimeStep, counter
from tests.support.small import counting_env

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


def test_rollout_episode_counts_the_first_episode_of_each_environment():
    env = counting_env(ends_after=4)
    episode_return, length, ended = rollout_episode(
        env, policy, init_world(env, KEY, 3), 100
    )
    np.testing.assert_array_equal(episode_return, 10.0)
    np.testing.assert_array_equal(length, 4)
    assert ended.all()


def test_rollout_episode_cuts_at_max_steps_and_says_so():
    env = counting_env()
    episode_return, length, ended = rollout_episode(
        env, policy, init_world(env, KEY, 3), 4
    )
    np.testing.assert_array_equal(episode_return, 10.0)
    np.testing.assert_array_equal(length, 4)
    assert not ended.any()


def random_start_env(shortest, longest, **kwargs):
    """Environment that starts at a random number and lasts a random number of steps."""

    def reset(key, params):
        del params
        key_start, key_length = jax.random.split(key)
        start = jax.random.uniform(key_start)
        length = jax.random.randint(key_length, (), shortest, longest + 1)
        return (jnp.int32(0), length, start), start[None]

    def step(key, state, action, params):
        del action, params
        time, length, start = state
        time = time + 1
        obs = start[None] + time
        ends, no = time == length, jnp.bool_(False)
        reward = jax.random.uniform(key)
        return (time, length, start), TimeStep(obs, reward, ends, no, {})

    return counting_env(**kwargs).replace(reset=reset, step=step)


def starts(trajectory):
    """The observations in which an episode began, of each environment."""
    done = np.asarray(trajectory.terminated | trajectory.truncated)
    obs = np.asarray(trajectory.obs)[..., 0]
    return [obs[1:, i][done[:-1, i]] for i in range(obs.shape[1])]


def distinct(numbers):
    return len(np.unique(numbers)) == len(numbers)


def test_every_episode_starts_anew_however_short():
    env = random_start_env(1, 2)
    assert env.shortest_episode == 1
    _, trajectory, _ = rollout(env, 60, num_envs=3)
    found = starts(trajectory)
    assert all(30 <= len(column) < 59 for column in found)
    assert distinct(np.concatenate(found))


@pytest.mark.full
def test_starts_drawn_as_seldom_as_they_can_be_are_all_distinct():
    env = random_start_env(3, 3)
    world = init_world(env, KEY, 3)
    # Environments in all phases: 0, 1 and 2 steps into their episode.
    state = (jnp.arange(3), *world.env_state[1:])
    world = world.replace(env_state=state)

    def run(shortest_episode):
        seldom = env.replace(shortest_episode=shortest_episode)
        return jax.jit(lambda w: unroll(seldom, policy, w, 31))(world)

    after, first, _ = run(3)
    found = starts(first)
    assert [len(column) for column in found] == [10, 10, 10]
    assert distinct(np.concatenate(found))
    # The next rollout draws others.
    seldom = env.replace(shortest_episode=3)
    _, second, _ = unroll(seldom, policy, after, 31)
    assert distinct(np.concatenate(found + starts(second)))
    # Four is one too many: some episodes begin twice in the same state.
    assert not distinct(np.concatenate(starts(run(4)[1])))


@pytest.mark.parametrize("shortest, num_steps, rows", [(1, 9, 9), (4, 9, 3), (9, 9, 1)])
def test_as_many_starts_are_drawn_as_needed(shortest, num_steps, rows):
    env = random_start_env(9, 9, shortest_episode=shortest)
    draws = draw(env, step_keys, KEY, num_steps, 2)
    assert draws.fresh[1].shape == (rows, 2, 1)
    assert draws.keys.shape == (num_steps, 2)
    assert draws.noise.shape == (num_steps,)
    expected = [t // shortest for t in range(num_steps)]
    np.testing.assert_array_equal(draws.fresh_row, expected)


def random_policy(obs, memory, noise):
    return (noise < 0.5).astype(jnp.int32), memory, {"noise": noise}


@pytest.mark.full
def test_the_policy_gets_its_row_of_the_noise_and_every_step_a_key_of_its_own():
    env = random_start_env(2, 5)
    shapes = []

    def noise(key, shape):
        shapes.append(shape)
        return jax.random.uniform(key, shape)

    world = init_world(env, KEY, 3)
    _, trajectory, _ = jax.jit(lambda w: unroll(env, random_policy, w, 20, noise))(
        world
    )
    assert shapes == [(20, 3)]
    seen = np.asarray(trajectory.extras["noise"])
    assert seen.shape == (20, 3)
    key_draw = jax.random.split(world.key)[1]
    np.testing.assert_array_equal(seen, draw(env, noise, key_draw, 20, 3).noise)
    np.testing.assert_array_equal(trajectory.action, seen < 0.5)
    # The rewards are drawn by `env.step`: no key is used twice, nor the policy's.
    assert distinct(np.concatenate([seen.ravel(), np.ravel(trajectory.reward)]))


def test_by_default_the_noise_is_a_key_for_each_step():
    def keyed(obs, memory, key):
        action, memory, _ = policy(obs, memory, key)
        return action, memory, {"drawn": jax.random.uniform(key, (len(obs),))}

    env = counting_env()
    _, trajectory, _ = unroll(env, keyed, init_world(env, KEY, 3), 10)
    assert distinct(np.ravel(trajectory.extras["drawn"]))


@pytest.mark.full
def test_rollout_episode_counts_first_episodes_of_any_length():
    env = random_start_env(1, 9)
    world = init_world(env, KEY, 32)
    _, length, ended = rollout_episode(env, policy, world, 20)
    np.testing.assert_array_equal(length, world.env_state[1])
    assert len(np.unique(length)) > 4 and ended.all()


def test_no_episode_of_cartpole_is_shorter_than_eight_steps():
    """All 2^8 sequences of actions, from the corners of the start box and between."""
    from jaxrl.envs import make

    env = make("CartPole-v1")
    assert env.shortest_episode == 8
    side = jnp.linspace(-0.05, 0.05, 3)
    grid = jnp.stack(jnp.meshgrid(*[side] * 4), -1).reshape(-1, 4)
    actions = (jnp.arange(2**8)[:, None] >> jnp.arange(8)) & 1
    template, _ = env.reset(KEY, env.params)

    def angles(start, actions):
        x, x_dot, theta, theta_dot = start
        state = template.replace(x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot)

        def step(state, action):
            state, timestep = env.step(KEY, state, action, env.params)
            return state, (timestep.terminated, jnp.abs(timestep.obs[2]))

        return jax.lax.scan(step, state, actions)[1]

    every = jax.jit(jax.vmap(jax.vmap(angles, (None, 0)), (0, None)))
    terminated, angle = every(grid, actions)
    assert terminated.shape == (81, 256, 8)
    assert not terminated[..., :7].any()
    assert terminated[..., 7].any()
    # 12° is 0.2094; no start of the box can be this far from the nearest of the grid.
    assert float(angle[..., :7].max()) == pytest.approx(0.1878, abs=1e-4)


@pytest.mark.full
def test_no_episode_of_breakout_is_shorter_than_six_steps():
    """All 3^6 sequences of actions, from both starts."""
    from jaxrl.envs import make

    env = make("Breakout-MinAtar")
    assert env.shortest_episode == 6
    starts, _ = jax.vmap(env.reset, (0, None))(jax.random.split(KEY, 32), env.params)
    both = np.unique(starts.ball_x, return_index=True)[1]
    assert len(both) == 2
    actions = jnp.arange(3**6)[:, None] // 3 ** jnp.arange(6) % 3

    def ends(start, actions):
        def step(state, action):
            state, timestep = env.step(KEY, state, action, env.params)
            return state, timestep.terminated

        return jax.lax.scan(step, start, actions)[1]

    every = jax.jit(jax.vmap(jax.vmap(ends, (None, 0)), (0, None)))
    terminated = every(jax.tree.map(lambda x: x[both], starts), actions)
    assert terminated.shape == (2, 729, 6)
    assert not terminated[..., :5].any()
    assert terminated[..., 5].any()


def test_cartpole_with_other_parameters_may_be_shorter():
    from jaxrl.envs import make

    assert make("CartPole-v1", force_mag=30.0).shortest_episode == 1
    assert make("CartPole-v1", horizon=3).shortest_episode == 3
    assert make("CartPole-v1", horizon=None).shortest_episode == 8
    assert make("Acrobot-v1").shortest_episode == 1


@pytest.mark.full
def test_the_starts_of_cartpole_are_uniform_and_distinct():
    from jaxrl.envs import make

    env = make("CartPole-v1")
    _, trajectory, _ = jax.jit(
        lambda w: unroll(env, random_policy, w, 200, jax.random.uniform)
    )(init_world(env, KEY, 64))
    done = np.asarray(trajectory.terminated | trajectory.truncated)
    found = np.asarray(trajectory.obs)[1:][done[:-1]]
    assert len(found) > 400
    assert distinct(found[:, 0])
    # Uniform on ±0.05: the standard error of the mean is 0.0289 / √400 = 0.0014.
    np.testing.assert_allclose(found.mean(0), 0.0, atol=0.005)
    np.testing.assert_allclose(found.var(0), 0.1**2 / 12, rtol=0.15)
    assert np.abs(found).max() <= 0.05
    np.testing.assert_allclose(np.corrcoef(found.T), np.eye(4), atol=0.2)
