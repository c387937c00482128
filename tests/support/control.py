"""What tests of continuous control share: probes, and agents that are trained on them."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from jaxrl import spaces
from jaxrl.envs import make
from jaxrl.training import loop, population

KEY = jax.random.key(0)
BOX = spaces.box([-1.0], [3.0], (1,))
FAMILY = pytest.mark.parametrize("name", ["ddpg", "td3", "sac"])


def probe(name):
    """One whose step does not depend on the action, with continuous actions."""
    return make(f"probe/{name}").replace(action_space=BOX)


def trained(algorithm, env, iterations, **changes):
    fast = {"num_envs": 8, "train_frequency": 8, "learning_starts": 64}
    fast |= {"hidden_sizes": (32,), "batch_size": 64, "learning_rate": 0.01}
    fast |= {"gamma": 0.9, "buffer_size": 2_000, "tau": 0.05, "total_steps": 1e6}
    config = algorithm.Config().replace(**(fast | changes))
    loop.prepare(algorithm, config, env)
    state = jax.jit(algorithm.init)(config, env, KEY)
    chunk = jax.jit(partial(population.run_chunk, algorithm))
    state, metrics = chunk(config, env, state, jnp.int32(iterations))
    return config, state, metrics


def values(algorithm, config, env, state, obs):
    """What the critics say of the greedy action."""
    _, _, extras = algorithm.act(config, env, state.agent, obs, (), KEY, greedy=True)
    return extras["value"]
