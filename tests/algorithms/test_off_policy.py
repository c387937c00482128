"""Learning from prioritised replay: what is drawn, weighed and remembered."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import estimators, optim
from jaxrl.algorithms import dqn, off_policy
from jaxrl.algorithms.dqn import DQN
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.replay import prioritised, transitions
from jaxrl.training import population
from jaxrl.types import counter
from tests.support.small import tiny

KEY = jax.random.key(0)
ENV = make("probe/action-observation")


def test_importance_rises_to_one():
    config = DQN.Config(total_steps=100.0, importance_exponent=0.4)
    found = [float(off_policy.importance(config, counter(n))) for n in (0, 50, 100)]
    np.testing.assert_allclose(found, [0.4, 0.7, 1.0], rtol=1e-6)


def test_uniform_replay_has_no_priorities():
    config = tiny(DQN)
    assert jax.eval_shape(partial(DQN.init, config, ENV), KEY).priorities is None


def test_a_memory_that_priorities_cannot_index_is_refused():
    config = tiny(DQN, buffer_size=2**30, priority_exponent=0.5)
    with pytest.raises(InvalidInput, match="buffer_size = 1073741824"):
        DQN.validate(config, ENV)


@pytest.mark.full
def test_what_is_stored_has_a_priority_and_nothing_else():
    config = tiny(DQN, priority_exponent=0.5, learning_starts=16, buffer_size=64)
    state = jax.jit(DQN.init)(config, ENV, KEY)
    slots = np.asarray(state.priorities.slots).ravel()
    np.testing.assert_array_equal(slots[:16], 1.0)
    np.testing.assert_array_equal(slots[16:], 0.0)
    step = jax.jit(partial(population.run_chunk, DQN))
    state, _ = step(config, ENV, state, jnp.int32(3))
    slots = np.asarray(state.priorities.slots).ravel()
    stored = int(state.replay.head.size) * config.num_envs
    assert stored == 40
    assert (slots[:stored] > 0).all() and (slots[stored:] == 0).all()
    top = np.asarray(state.priorities.sums[-1])
    np.testing.assert_allclose(slots.reshape(len(top), -1).sum(-1), top, rtol=1e-6)


@pytest.mark.full
def test_each_step_draws_weighs_and_remembers_as_a_loop_does():
    config = tiny(DQN, priority_exponent=0.7, num_updates=3)
    state = jax.jit(DQN.init)(config, ENV, KEY)
    agent, memory = state.agent, (state.replay, state.priorities)
    after, found, metrics = dqn.update_by_priority(
        config, ENV, agent, memory, 0.01, 0.4, KEY
    )
    key_draw = jax.random.split(KEY, 3)[0]
    draws = prioritised.draws(key_draw, (3, config.batch_size))
    optimizer, priorities = dqn.optimizer(config), state.priorities
    opt_state, losses = agent.opt_state, []
    vector, unflatten = optim.flat(agent.params)
    for uniform in draws:
        index, probability = prioritised.find(priorities, uniform)
        weight = estimators.importance_weights(probability, 0.4)
        batch = transitions.read(config, ENV, state.replay, index)

        def mean_loss(vector, batch=batch, weight=weight):
            _, rows = dqn.loss(
                unflatten(vector), config, ENV, agent.target_params, batch
            )
            return (weight * rows[0]).mean(), rows[0]

        grads, rows = jax.grad(mean_loss, has_aux=True)(vector)
        vector, opt_state = optim.apply(optimizer, vector, opt_state, grads, 0.01)
        size = jnp.sqrt(2 * rows)  # |Q - y|
        priorities = prioritised.update(
            priorities, index, size, 0.7, off_policy.PRIORITY_EPS
        )
        losses.append(rows)
    np.testing.assert_allclose(optim.flat(after.params)[0], vector, atol=1e-5)
    np.testing.assert_allclose(found.slots, priorities.slots, rtol=1e-3)
    loss = metrics["loss/td"]
    np.testing.assert_allclose(loss.value, jnp.stack(losses).mean(), rtol=1e-4)
    assert loss.count == 3 * config.batch_size
    assert len(np.unique(np.asarray(found.slots))) > 4


@pytest.mark.full
def test_prioritised_replay_with_goals_of_hindsight():
    env = make("goal/bit-flip")
    config = tiny(DQN, priority_exponent=0.5, hindsight="future", n_step=2)
    state = jax.jit(DQN.init)(config, env, KEY)
    state, metrics = jax.jit(DQN.train_step)(config, env, state)
    assert all(jnp.isfinite(m.sum) for m in metrics.values())
