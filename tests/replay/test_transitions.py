"""Batches of n rewards and of goals reached later, by loops over what is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import DQN, TD3, spaces
from jaxrl.algorithms import off_policy
from jaxrl.envs import make
from jaxrl.replay import ring, transitions
from tests.support.small import counting_env, tiny

KEY = jax.random.key(0)
BOX = spaces.box([-1.0], [3.0], (1,))


@pytest.mark.parametrize("ends", [{"ends_after": 4}, {"horizon": 4}])
def test_targets_of_several_rewards_end_with_the_episode(ends):
    """By a loop, on a memory that has wrapped around."""
    env = counting_env(**ends).replace(action_space=BOX)
    changes = {"num_envs": 2, "train_frequency": 2, "buffer_size": 14}
    config = tiny(TD3, n_step=3, gamma=0.5, **changes, learning_starts=20)
    state = jax.jit(TD3.init)(config, env, KEY)
    replay = state.replay
    data = jax.tree.map(np.asarray, replay.data)
    rows = len(data.reward)
    newest = (int(replay.head.position) - 1) % rows
    assert 0 < newest < rows - 1
    batch = transitions.read(config, env, replay, jnp.arange(rows * 2))
    for row in range(rows):
        for e in range(2):
            total, k, at = 0.0, 0, row
            while True:
                total, k = total + 0.5**k * data.reward[at, e], k + 1
                over = data.terminated[at, e] or data.truncated[at, e] or at == newest
                if k == 3 or over:
                    break
                at = (at + 1) % rows
            found = transitions.Batch(*[x[row * 2 + e] for x in batch])
            assert found.reward == pytest.approx(total)
            assert found.discount == pytest.approx(0.5**k)
            assert found.terminated == data.terminated[at, e]
            np.testing.assert_array_equal(found.next_obs, data.next_obs[at, e])


@pytest.mark.full
@pytest.mark.parametrize("n_step", [1, 3])
def test_relabelled_rewards_are_those_of_the_goal(n_step):
    env = make("goal/bit-flip", length=6)
    changes = {"hindsight": "future", "hindsight_fraction": 1.0, "n_step": n_step}
    config = tiny(DQN, **changes, learning_starts=64, batch_size=64, gamma=0.5)
    state = jax.jit(DQN.init)(config, env, KEY)
    batches = off_policy.batches(config, env, state.replay, KEY)
    batch = batches.read(jax.tree.map(lambda x: x[0], batches.index))
    goal = batch.obs["desired_goal"]
    np.testing.assert_array_equal(batch.next_obs["desired_goal"], goal)
    reached = (batch.next_obs["achieved_goal"] == goal).all(-1)
    np.testing.assert_array_equal(batch.terminated, reached)
    data = jax.tree.map(np.asarray, state.replay.data)
    index, goals = np.asarray(batches.index[0][0]), np.asarray(goal)
    for found, at, wanted in zip(range(len(index)), index, goals, strict=True):
        row, e = divmod(int(at), config.num_envs)
        total, k = 0.0, 0
        while True:
            hit = (data.next_obs["achieved_goal"][row, e] == wanted).all()
            total, k = total - (0.0 if hit else 0.5**k), k + 1
            over = hit or data.terminated[row, e] or data.truncated[row, e]
            if k == n_step or over or row == len(data.reward) - 1:
                break
            row += 1
        assert float(batch.reward[found]) == pytest.approx(total)
        assert float(batch.discount[found]) == pytest.approx(0.5**k)
    assert reached.any() and not reached.all()


@pytest.mark.full
def test_an_end_that_no_goal_explains_stays_one():
    """Here the time limit, made an end; and not the limit of the goal wanted before."""
    env = make("goal/bit-flip", length=3, horizon_is="terminal")
    config = tiny(DQN, hindsight="future", learning_starts=64)
    state = jax.jit(DQN.init)(config, env, KEY)
    data = state.replay.data
    size = int(state.replay.head.size)
    reached = (data.next_obs["achieved_goal"] == data.obs["desired_goal"]).all(-1)
    index = jnp.arange(size * config.num_envs)[None]
    goal = 9.0 + data.obs["desired_goal"].reshape(-1, 3)[index[0]]  # never reached
    _, ends = transitions.relabel(
        env, state.replay, index, goal, data.terminated.reshape(-1)[index]
    )
    expected = (data.terminated & ~reached).reshape(-1)[index]
    np.testing.assert_array_equal(ends, expected)
    assert expected.any()


@pytest.mark.full
def test_none_is_relabelled_at_fraction_0():
    env = make("goal/bit-flip", length=3)
    config = tiny(DQN, hindsight="final", hindsight_fraction=0.0, learning_starts=64)
    state = jax.jit(DQN.init)(config, env, KEY)
    batches = off_policy.batches(config, env, state.replay, KEY)
    index = jax.tree.map(lambda x: x[0], batches.index)
    row, batch = ring.take(state.replay, index[0]), batches.read(index)
    for name in ("obs", "action", "reward", "terminated", "next_obs"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(row, name), getattr(batch, name)
        )


@pytest.mark.full
@pytest.mark.parametrize("num_envs", [2, 4])
def test_the_step_of_an_episode_is_stored_across_train_steps(num_envs):
    """Also where the memory wraps around, and where an episode ends within a rollout."""
    env = make("goal/bit-flip", length=3)
    sizes = {"num_envs": num_envs, "train_frequency": 8, "learning_starts": 16}
    config = tiny(DQN, hindsight="final", buffer_size=14 * num_envs, **sizes)
    state = jax.jit(DQN.init)(config, env, KEY)
    train_step = jax.jit(DQN.train_step)
    for _ in range(9):
        state, _ = train_step(config, env, state)
    data = jax.tree.map(np.asarray, state.replay.data)
    rows, newest = len(data.step), int(state.replay.head.position) - 1
    done = data.terminated | data.truncated
    assert int(state.replay.head.size) == rows and done.any()
    for row in range(rows):
        if row == newest % rows:
            continue
        expected = np.where(done[row], 0, data.step[row] + 1)
        np.testing.assert_array_equal(data.step[(row + 1) % rows], expected)
