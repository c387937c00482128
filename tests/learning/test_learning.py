"""Slow: trains to published returns. `pytest -m slow`; the scorecard has the full table."""

import jax
import numpy as np
import pytest

from jaxrl.algorithms import ALGORITHMS
from jaxrl.cli.options import experiment_from_flags
from jaxrl.envs import make
from jaxrl.evaluation import evaluate_population
from jaxrl.statistics import iqm
from jaxrl.training import loop

pytestmark = pytest.mark.slow


def returns(algorithm, config, env, num_seeds):
    """Mean greedy return of each seed."""
    result = loop.train(algorithm, config, env, num_seeds=num_seeds)
    key = jax.random.key(1)
    episodes = evaluate_population(algorithm, config, env, result.agent, key)
    return np.asarray(episodes.episode_return).mean(1)


@pytest.mark.parametrize(
    ("name", "num_seeds", "bar"),
    [
        ("ppo", 4, 490),
        ("reinforce", 4, 475),
        ("actor_critic", 4, 475),
        ("a2c", 4, 490),
        ("trpo", 4, 495),
        ("dqn", 4, 475),
    ],
)
def test_cartpole_with_the_bare_defaults(name, num_seeds, bar):
    algorithm = ALGORITHMS[name]
    found = returns(algorithm, algorithm.Config(), make("CartPole-v1"), num_seeds)
    assert iqm(found) >= bar, found


@pytest.mark.parametrize(
    ("name", "row", "bar"),
    [
        ("ppo", "acrobot-ppo", -91.5),
        ("dqn", "acrobot-dqn", -100.0),
        ("ppo", "pendulum-ppo", -220.0),
        ("ppo", "catch-ppo", 0.95),
        ("dqn", "catch-dqn", 0.95),
        ("ppo", "memory-chain-ppo-gru", 0.9),
        ("ppo", "memory-chain-ppo-lstm", 0.9),
    ],
)
def test_the_scorecards_configs(name, row, bar):
    path = f"benchmarks/configs/{row}.toml"
    experiment = experiment_from_flags(ALGORITHMS[name], {}, config_file=path)
    found = returns(experiment.algorithm, experiment.config, experiment.environment, 2)
    assert found.mean() >= bar, found


def test_a_network_without_memory_cannot_remember():
    path = "benchmarks/configs/memory-chain-ppo-mlp.toml"
    experiment = experiment_from_flags(ALGORITHMS["ppo"], {}, config_file=path)
    found = returns(experiment.algorithm, experiment.config, experiment.environment, 4)
    assert abs(found.mean()) < 0.3, found


@pytest.mark.parametrize("strategy", ["none", "future"])
def test_bits_are_flipped_to_the_goal_with_hindsight_alone(strategy):
    changes = {"hindsight": strategy, "gamma": 0.98, "buffer_size": 50_000}
    config = ALGORITHMS["dqn"].Config(total_steps=50_000.0, **changes)
    env = make("goal/bit-flip", length=10)
    found = returns(ALGORITHMS["dqn"], config, env, 2)
    # An unsolved episode costs 10; a solved one 4 on average.
    assert (found > -6.0).all() if strategy == "future" else (found < -9.0).all(), found


@pytest.mark.parametrize("name", ["ddpg", "td3", "sac"])
def test_pendulum_with_small_networks(name):
    """A policy that is untrained, or random, has -1,200; SB3's SAC at its end -157."""
    algorithm = ALGORITHMS[name]
    config = algorithm.Config(total_steps=8_000.0, hidden_sizes=(64, 64))
    found = returns(algorithm, config, make("Pendulum-v1"), 2)
    assert (found > -250).all(), found
