"""The contract of `jaxrl.types.Env`, as a test that any environment must pass.

`jax.jit(env.step)` below is a way to trace the step once for several uses.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces


def api_test(env, num_envs=4, num_steps=20):
    """Raises AssertionError where `env` breaks the contract."""
    signature_test(env)
    keys = jax.random.split(jax.random.key(0), num_envs)
    steps, inside = play_random(env, keys, num_steps)
    assert inside.all(), "an observation lies outside observation_space"
    for leaf in jax.tree.leaves((steps.obs, steps.reward)):
        assert np.isfinite(leaf).all(), "an observation or a reward is not finite"
    assert not (steps.terminated & steps.truncated).any()
    again, _ = play_random(env, keys, num_steps)
    jax.tree.map(np.testing.assert_array_equal, again, steps)


def signature_test(env):
    """Structure, shapes and dtypes, from tracing alone."""
    key = jax.random.key(0)
    state, obs = jax.eval_shape(jax.jit(env.reset), key, env.params)
    action = spaces.zeros(env.action_space)
    next_state, step = jax.eval_shape(jax.jit(env.step), key, state, action, env.params)
    assert avals(state) == avals(next_state), "step changes the type of the state"
    assert avals(obs) == avals(step.obs), "reset and step observe different types"
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, obs)))
    assert avals(obs) == avals(
        jax.eval_shape(lambda: spaces.zeros(env.observation_space))
    )
    assert avals(step.reward) == avals(jax.ShapeDtypeStruct((), jnp.float32))
    assert avals(step.terminated) == avals(jax.ShapeDtypeStruct((), bool))
    assert avals(step.truncated) == avals(jax.ShapeDtypeStruct((), bool))
    if env.horizon is not None:
        assert avals(env.horizon) == avals(np.int32(0))
    assert env.horizon_is in ("terminal", "truncated")
    hash(jax.tree.structure(env))  # it is part of a compiled program's identity


def avals(tree):
    """The structure, and the shape, dtype and weak type of each leaf."""

    def aval(x):
        return x.shape, x.dtype, getattr(x, "weak_type", False)

    leaves, structure = jax.tree.flatten(tree)
    return structure, [aval(x) for x in leaves]


@functools.partial(
    jax.jit,
    static_argnames="num_steps",
    compiler_options={"xla_backend_optimization_level": 0},  # run once: compile quickly
)
def play_random(env, keys, num_steps):
    """TimeSteps `[N, T]` of random actions, from the start again where an episode ends,
    and whether each observation lies in the observation space."""

    def play(key):
        key_reset, key_steps = jax.random.split(key)
        start, obs = jax.jit(env.reset)(key_reset, env.params)

        def step(state, key):
            key_action, key_step = jax.random.split(key)
            action = spaces.sample(env.action_space, key_action)
            state, timestep = jax.jit(env.step)(key_step, state, action, env.params)
            done = timestep.terminated | timestep.truncated
            state = jax.tree.map(lambda x, y: jnp.where(done, x, y), start, state)
            inside = spaces.contains(env.observation_space, timestep.obs)
            return state, (timestep, inside)

        keys = jax.random.split(key_steps, num_steps)
        _, (steps, inside) = jax.lax.scan(step, start, keys)
        return steps, inside & spaces.contains(env.observation_space, obs)

    return jax.vmap(play)(keys)
