"""Small configs and environments for tests: what learns in seconds, compiles in seconds."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import PPO, spaces
from jaxrl.data.dataset import Dataset, from_columns
from jaxrl.data.frozen_policy import FrozenPolicy
from jaxrl.errors import InvalidInput
from jaxrl.types import Algorithm, Env, TimeStep, Transition

TINY = {
    "total_steps": 1_000.0,
    "num_envs": 4,
    "num_steps": 8,
    "num_epochs": 2,
    "num_minibatches": 2,
    "batch_size": 8,
    "buffer_size": 64,
    "learning_starts": 16,
    "train_frequency": 8,
    "target_update_interval": 24,
    "hidden_sizes": (8,),
}


def tiny(algorithm: Algorithm, **changes: Any) -> Any:
    """The smallest sensible config of an algorithm, whichever fields it has."""
    config = algorithm.Config()
    fields = {name: v for name, v in TINY.items() if hasattr(config, name)}
    return config.replace(**(fields | changes))


def with_teacher(algorithm: Algorithm, env: Env) -> Env:
    """The environment with a teacher, for an algorithm that has one: untrained."""
    if not algorithm.teacher:
        return env
    if algorithm.teacher == "data":
        return env.replace(teacher=random_dataset(env))
    config = tiny(PPO)
    agent = PPO.init(config, env, jax.random.key(7)).agent
    return env.replace(teacher=FrozenPolicy(config, agent, PPO))


def fitting(algorithm: Algorithm, env: Env) -> Env:
    """The environment, with a Box of actions if the algorithm needs one.

    For environments whose step does not depend on the action.
    """
    try:
        algorithm.validate(tiny(algorithm), env)
    except InvalidInput:
        env = env.replace(action_space=spaces.box(-1.0, 3.0, (1,)))
    return env


def random_dataset(env: Env, num_steps: int = 20) -> Dataset:
    """One episode of random observations and actions, each with itself as successor."""
    keys = jax.random.split(jax.random.key(8))
    both = (env.observation_space, env.action_space)
    obs, action = (
        spaces.sample(space, key, (num_steps,))
        for space, key in zip(both, keys, strict=True)
    )
    last = jnp.arange(num_steps) == num_steps - 1
    columns = Transition(
        obs, action, jnp.ones(num_steps), last, jnp.zeros_like(last), obs, {}
    )
    return from_columns(columns, *both)


def counting_env(
    ends_after: int | None = None, horizon: int | None = None, **kwargs: Any
) -> Env:
    """Observation: steps taken in the episode; reward: that number, after the step."""

    def reset(key, params):
        del key, params
        return jnp.int32(0), jnp.zeros(1)

    def step(key, count, action, params):
        del key, action, params
        count = count + 1
        ends = jnp.bool_(False) if ends_after is None else count == ends_after
        obs = count.astype(jnp.float32)[None]
        return count, TimeStep(obs, obs[0], ends, jnp.bool_(False), {})

    return Env(
        params=(),
        horizon=None if horizon is None else jnp.int32(horizon),
        reset=reset,
        step=step,
        observation_space=spaces.box(0, 1000, (1,)),
        action_space=spaces.Discrete(2),
        id="test/counting",
        **kwargs,
    )


def assert_trees_equal(a: Any, b: Any) -> None:
    """Same structure, dtypes and numbers, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert jnp.array_equal(x, y, equal_nan=jnp.issubdtype(x.dtype, jnp.floating))
