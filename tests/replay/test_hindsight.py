"""Hindsight: goals of the same episode, not before the step, and never of another one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import DQN
from jaxrl.algorithms import ALGORITHMS
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.replay import hindsight, ring
from tests.support.small import tiny

KEY = jax.random.key(0)


def test_steps_of_episodes_go_on_from_the_rows_before():
    done = jnp.array([[0, 1], [1, 0], [0, 0], [0, 1], [1, 0]], bool)
    found = hindsight.episode_steps(done, jnp.array([3, 0]))
    np.testing.assert_array_equal(found.T, [[3, 4, 0, 1, 2], [0, 0, 1, 2, 0]])


def episodes(num_rows, capacity, num_envs=3, seed=0):
    """A memory of random episodes, whose rows hold (episode, its step, whether its end)."""
    rng = np.random.default_rng(seed)
    memory = ring.init((jnp.int32(0),) * 3, capacity * num_envs, num_envs)
    episode, step = np.arange(num_envs) * 1_000, np.zeros(num_envs, int)
    for _ in range(num_rows):
        done = rng.random(num_envs) < 0.2
        row = (episode.copy(), step.copy(), done.astype(int))
        memory = ring.add(memory, jax.tree.map(lambda x: jnp.asarray(x)[None], row))
        episode, step = episode + done, np.where(done, 0, step + 1)
    return memory


@pytest.mark.parametrize("num_rows", [1, 7, 16, 41])
def test_the_end_of_an_episode_is_found(num_rows):
    memory = episodes(num_rows, capacity=16)
    number, step, _ = memory.data
    index = jnp.arange(min(num_rows, 16) * 3)
    found = hindsight.steps_left(memory, step, index)
    for i in np.asarray(index):
        row, env = divmod(int(i), 3)
        same = np.array(number[:, env] == number[row, env])
        same[min(num_rows, 16) :] = False
        later = np.asarray(step[:, env])[same] - int(step[row, env])
        assert found[i] == later.max()


@pytest.mark.parametrize("strategy", ["final", "future"])
def test_goals_are_of_the_same_episode_and_not_before(strategy):
    memory = episodes(41, capacity=16)
    number, step, _ = memory.data
    index = jnp.repeat(jnp.arange(48), 200)
    draw = jax.random.uniform(KEY, index.shape)
    goal = hindsight.goals(memory, step, (number, step), index, draw, strategy)
    begun = ring.take(memory, index)
    assert (goal[0] == begun[0]).all() and (goal[1] >= begun[1]).all()
    left = hindsight.steps_left(memory, step, index)
    ahead = np.asarray(goal[1] - begun[1])
    if strategy == "final":
        np.testing.assert_array_equal(ahead, left)
    else:  # every later step is as likely
        for i in range(48):
            drawn, most = ahead[i * 200 : (i + 1) * 200], int(left[i * 200])
            counts = np.bincount(drawn, minlength=most + 1)
            expected = 200 / (most + 1)
            assert len(counts) == most + 1
            assert (np.abs(counts - expected) < 5 * expected**0.5).all()


@pytest.mark.full
@pytest.mark.parametrize("name", ["ddpg", "sac"])
def test_continuous_actions_learn_from_goals_with_sticky_actions_too(name):
    algorithm = ALGORITHMS[name]
    env = make("goal/point-reach", sticky_prob=0.1)
    config = tiny(algorithm, hindsight="future", n_step=2)
    state = jax.jit(algorithm.init)(config, env, KEY)
    _, metrics = jax.jit(algorithm.train_step)(config, env, state)
    assert all(jnp.isfinite(m.sum) for m in metrics.values())


def test_hindsight_without_goals_is_refused():
    with pytest.raises(InvalidInput, match="hindsight = 'final' needs observations of"):
        DQN.validate(tiny(DQN, hindsight="final"), make("CartPole-v1"))
