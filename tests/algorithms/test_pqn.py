"""PQN: what sets it apart from Q-learning (tests of which are in test_sarsa.py)."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from jaxrl import networks
from jaxrl.algorithms.pqn import PQN
from jaxrl.algorithms.sarsa import Q_LEARNING
from jaxrl.envs import make
from jaxrl.evaluation import evaluate
from jaxrl.training import loop, population
from tests.support.small import tiny

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("env_id", "kind"),
    [("CartPole-v1", networks.MLP), ("Breakout-MinAtar", networks.CNN)],
)
def test_its_layers_are_normalised(env_id, kind):
    space = make(env_id).observation_space
    body = networks.resolve(PQN.Config(), space)
    assert isinstance(body.torso, kind) and body.torso.layer_norm
    recurrent = PQN.Config().replace(network="lstm(size=8, layer_norm=True)")
    assert networks.resolve(recurrent, space).torso == body.torso
    plain = networks.resolve(Q_LEARNING.Config(), space).torso
    assert isinstance(plain, kind) and not plain.layer_norm


def test_its_optimiser_is_rectified():
    """The first step of rectified Adam is the gradient's, that of Adam of its sign."""
    env = make("probe/action")
    changes = {"num_epochs": 1, "num_minibatches": 1, "learning_rate": 1e-3}
    lengths = []
    for algorithm in (PQN, Q_LEARNING):
        config = tiny(algorithm, network="mlp", **changes)
        state = algorithm.init(config, env, KEY)
        after, metrics = jax.jit(algorithm.train_step)(config, env, state)
        step = jax.tree.map(lambda a, b: a - b, after.agent.params, state.agent.params)
        lengths.append(optax.tree.norm(step) / metrics["optim/grad_norm"].value)
    np.testing.assert_allclose(lengths[0], 1e-3, rtol=1e-3)
    assert lengths[1] > 2e-3


MEMORY = {
    "total_steps": 100_000.0,
    "num_steps": 44,  # four whole episodes
    "epsilon_end": 0.01,
    "exploration_fraction": 0.1,
    "learning_rate": 1e-3,
    "hidden_sizes": (64,),
}


@pytest.mark.full
@pytest.mark.parametrize(
    ("network", "low", "high"),
    [("gru(layer_norm=True)", 0.9, 1.0), ("auto_layer_norm", -0.6, 0.6)],
)
def test_a_gru_remembers_and_an_mlp_cannot(network, low, high):
    env = make("MemoryChain-bsuite", memory_length=10)
    config = PQN.Config().replace(network=network, **MEMORY)
    agent = population.member(loop.train(PQN, config, env).state.agent, 0)
    run = jax.jit(partial(evaluate, PQN, num_episodes=256))
    mean = run(config, env, agent, KEY).episode_return.mean()
    assert low <= float(mean) <= high
