"""Environments against Gymnasium's: one step from each of 2,000 random states."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs import make

STATES = 2_000

# id: (ranges of the state, tolerance)
CASES = {
    "CartPole-v1": ([2.4, 3.0, 0.2, 3.0], 1e-5),
    "Acrobot-v1": ([np.pi, np.pi, 5.3, 15.9], 1e-3),  # 40 episodes of random play
    "MountainCar-v0": ([(-1.2, 0.6), (-0.07, 0.07)], 1e-5),
    "MountainCarContinuous-v0": ([(-1.2, 0.6), (-0.07, 0.07)], 1e-5),
    "Pendulum-v1": ([np.pi, 8.0], 1e-5),
}


def random_states(ranges, rng):
    pairs = [r if isinstance(r, tuple) else (-r, r) for r in ranges]
    low, high = np.transpose(pairs)
    # As float32: both start from the same numbers.
    return rng.uniform(low, high, (STATES, len(pairs))).astype(np.float32)


def theirs(env_id, states, actions):
    env = gymnasium.make(env_id).unwrapped
    env.reset(seed=0)
    rows = []
    for state, action in zip(states, actions, strict=True):
        env.state = np.asarray(state, np.float64)
        env.steps_beyond_terminated = None  # CartPole warns of steps after an end
        obs, reward, terminated, _, _ = env.step(action)
        rows.append((obs, reward, terminated))
    return [np.asarray(x, np.float64) for x in zip(*rows, strict=True)]


def ours(env, states, actions):
    key = jax.random.key(0)
    template, _ = env.reset(key, env.params)

    def step(state, action):
        _, timestep = env.step(key, placed(env.id, template, state), action, env.params)
        return timestep.obs, timestep.reward, timestep.terminated

    return [
        np.asarray(x) for x in jax.jit(jax.vmap(step))(states, jnp.asarray(actions))
    ]


NAMES = {
    "CartPole-v1": ("x", "x_dot", "theta", "theta_dot"),
    "Acrobot-v1": ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"),
    "MountainCar-v0": ("position", "velocity"),
    "MountainCarContinuous-v0": ("position", "velocity"),
    "Pendulum-v1": ("theta", "theta_dot"),
}


def placed(env_id, template, state):
    """The environment's state with these numbers."""
    return template.replace(**dict(zip(NAMES[env_id], state, strict=True)))


@pytest.mark.parametrize("env_id", CASES)
def test_a_step_is_gymnasiums(env_id):
    ranges, tolerance = CASES[env_id]
    rng = np.random.default_rng(0)
    states, env = random_states(ranges, rng), make(env_id)
    space = gymnasium.make(env_id).action_space
    space.seed(0)
    actions = np.stack([space.sample() for _ in range(STATES)])
    for a, b in zip(
        ours(env, states, actions), theirs(env_id, states, actions), strict=True
    ):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
