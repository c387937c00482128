"""Reward models: what they start as, what they learn, and how they are judged."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.rlhf import (
    data,
    reward_model,
)
from tests.support.language import (
    KEY,
    REWARD,
    close,
)


def test_a_reward_model_starts_at_one_half(pairs):
    config = reward_model.Config()
    agent = reward_model.init(config, pairs, KEY).agent
    rows = pairs.teacher.rows
    value, found = jax.jit(reward_model.loss)(agent.reward, config, pairs, rows)
    close(value, math.log(2.0))
    assert (found == 0).all() and (reward_model.accuracy(found) == 0.5).all()


@pytest.mark.full
def test_a_reward_models_moments_are_those_of_its_batches(pairs):
    config = reward_model.Config(batch_size=64, learning_rate=0.0)
    state = reward_model.init(config, pairs, KEY)
    reward = state.agent.reward | {"head": REWARD.head}
    state = state.replace(agent=state.agent.replace(reward=reward))
    step = jax.jit(partial(reward_model.train_step, config, pairs))
    for _ in range(3):
        state, metrics = step(state)
    total, middle, second = np.asarray(state.agent.score_moments)
    close(total, 1 - reward_model.DECAY**3)
    rows = pairs.teacher.rows
    scores = jax.jit(reward_model.scores)(config, pairs, reward, rows)
    assert abs(middle - scores.mean()) < 0.5 * scores.std()
    deviation = math.sqrt(second / total)
    assert 0.7 < deviation / scores.std() < 1.3
    assert 0 <= float(metrics["reward/longer_is_better"].value) <= 1


def test_length_bias_by_hand():
    mask = jnp.arange(4) < jnp.array([[3, 1], [1, 3], [2, 2]])[:, :, None]
    rows = data.Pairs(None, None, mask, None)
    found = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    close(reward_model.length_bias(found, rows), [1.0, 0.0, 0.5])
    close(reward_model.length_bias(-found, rows), [0.0, 1.0, 0.5])


@pytest.mark.full
def test_calibration_does_not_see_the_order_of_the_rows(pairs):
    config = reward_model.Config()
    agent = reward_model.init(config, pairs, KEY).agent
    # Of a model that knows nothing, P = ½, as half of the pairs are turned round.
    found = reward_model.calibration(config, pairs, agent)
    close(found.error, 0.0)
    assert found.number.sum() == 12
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), agent)
    scores = reward_model.score(config, pairs, stacked)
    close(scores["calibration_error"], [0.0, 0.0])
