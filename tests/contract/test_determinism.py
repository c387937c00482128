"""What is promised of repeats: the same numbers bit for bit, other seeds other numbers."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms.dqn import DQN
from jaxrl.algorithms.ppo import PPO
from jaxrl.algorithms.reinforce import REINFORCE
from jaxrl.envs import make
from jaxrl.training import loop
from jaxrl.types import counter
from tests.support.small import tiny

pytestmark = pytest.mark.full
ENV = make("probe/action-observation")
EVERY = pytest.mark.parametrize(
    "algorithm", [PPO, REINFORCE, DQN], ids=lambda a: a.name
)


def hashes(agent):
    """One for each member, of all its parameters, statistics and moments."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(agent)]
    return [
        hashlib.sha256(b"".join(x[k].tobytes() for x in leaves)).hexdigest()
        for k in range(len(leaves[0]))
    ]


@EVERY
def test_64_seeds_are_64_agents_and_each_twice_the_same(algorithm):
    first, again = (
        hashes(loop.train(algorithm, tiny(algorithm), ENV, num_seeds=64).agent)
        for _ in range(2)
    )
    assert len(set(first)) == 64
    assert first == again


@EVERY
def test_a_seed_alone_is_the_same_twice(algorithm):
    first, again = (
        hashes(loop.train(algorithm, tiny(algorithm), ENV, seed=5).agent)
        for _ in range(2)
    )
    assert first == again


@EVERY
@pytest.mark.parametrize("start", [2**31 - 1, 2**32 - 1, 2**39])
def test_the_step_counter_passes_the_limits_of_integers(algorithm, start):
    config = tiny(algorithm, total_steps=1e12)
    plan = algorithm.plan(config, ENV)
    state = algorithm.init(config, ENV, loop.keys([0])[0])
    world = state.world.replace(env_steps=counter(start))
    step = jax.jit(algorithm.train_step)
    state, metrics = step(config, ENV, state.replace(world=world))
    state, metrics = step(config, ENV, state)
    assert int(state.world.env_steps) == start + 2 * plan.env_steps
    # A schedule sees it too: the learning rate falls from where it should.
    if config.anneal_lr:
        expected = config.learning_rate * (1 - (start + plan.env_steps) / 1e12)
        found = float(metrics["optim/learning_rate"].value)
        assert found == pytest.approx(expected, rel=1e-6)
    assert all(jnp.isfinite(m.sum) for m in metrics.values())
