"""`jaxrl.envs.probes`: the values stated in their docstrings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs import make, probes
from jaxrl.errors import InvalidInput

GAMMA = 0.9
KEYS = jax.random.split(jax.random.key(0), 1000)


def play(env, policy, key=KEYS[0], max_steps=20):
    """Play one episode: observations (one more than steps), rewards, and termination."""
    state, obs = env.reset(key, env.params)
    seen, rewards, terminated = [obs], [], False
    limit = max_steps if env.horizon is None else int(env.horizon)
    while not terminated and len(rewards) < limit:
        state, step = env.step(key, state, policy(obs), env.params)
        obs, terminated = step.obs, bool(step.terminated)
        seen.append(obs)
        rewards.append(float(step.reward))
    return jax.device_get(seen), rewards, terminated


def discounted_returns(rewards, gamma=GAMMA):
    """Discounted sum of rewards from each step on."""
    returns = []
    for reward in reversed(rewards):
        returns.insert(0, reward + gamma * (returns[0] if returns else 0.0))
    return returns


def one_step(env, actions):
    """Observations and rewards of 1000 first steps."""
    reset = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))
    step = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None)))
    state, obs = reset(KEYS, env.params)
    _, timestep = step(KEYS, state, actions(obs), env.params)
    assert timestep.terminated.all()
    return jax.device_get((obs, timestep.reward))


def constant_action(action):
    return lambda obs: jnp.full(1000, action)


def test_constant():
    _, rewards, terminated = play(make("probe/constant"), lambda obs: 0)
    assert rewards == [1.0]
    assert terminated


def test_observation_is_the_value():
    obs, reward = one_step(make("probe/observation"), constant_action(0))
    np.testing.assert_array_equal(reward, obs[:, 0])
    assert abs(obs.mean()) < 0.1
    assert set(obs.ravel()) == {-1.0, 1.0}


def test_delay():
    obs, rewards, terminated = play(make("probe/delay"), lambda obs: 0)
    assert [float(x[0]) for x in obs] == [0, 1, 1]
    assert discounted_returns(rewards) == [GAMMA, 1.0]
    assert terminated


def test_action():
    for action, value in ((0, -1.0), (1, 1.0)):
        _, rewards, terminated = play(make("probe/action"), lambda obs, a=action: a)
        assert rewards == [value]
        assert terminated


def test_action_observation():
    env = make("probe/action-observation")
    _, best = one_step(env, lambda obs: (obs[:, 0] > 0).astype(jnp.int32))
    assert (best == 1).all()
    for action in (0, 1):
        _, blind = one_step(env, constant_action(action))
        assert abs(blind.mean()) < 0.1


def test_continuous():
    env = make("probe/continuous")
    _, best = one_step(env, lambda obs: obs / 2)
    np.testing.assert_allclose(best, 0.0, atol=1e-12)
    obs, beyond = one_step(env, constant_action(3.0))  # as an action of 1
    np.testing.assert_allclose(beyond, -((1 - obs[:, 0] / 2) ** 2), rtol=1e-5)
    assert obs.min() < -0.9
    assert obs.max() > 0.9


def test_truncation_never_terminates():
    env = make("probe/truncation")
    obs, rewards, terminated = play(env, lambda obs: 0)
    assert rewards == [1.0] * 5
    assert not terminated
    assert env.horizon_is == "truncated"
    assert len({float(x[0]) for x in obs}) == 1


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("horizon", [5, 3])
def test_terminal_values(horizon, gamma):
    env = make("probe/terminal", horizon=horizon)
    obs, rewards, _ = play(env, lambda obs: 0)
    assert env.horizon_is == "terminal"
    expected = probes.terminal_values(gamma, horizon)
    np.testing.assert_allclose(discounted_returns(rewards, gamma), expected)
    np.testing.assert_array_equal(obs[:-1], np.eye(horizon))
    assert not obs[-1].any()


def test_terminal_needs_a_horizon():
    with pytest.raises(InvalidInput, match="horizon = None: must be a whole number"):
        make("probe/terminal", horizon=None)


def test_discounted_values():
    env = make("probe/discounted")
    assert env.horizon is None
    values = probes.discounted_values(GAMMA)
    step = jax.jit(jax.vmap(env.step, in_axes=(0, None, None, None)))
    for state in (0, 1):
        after, timestep = step(KEYS, jnp.int32(state), 0, env.params)
        np.testing.assert_array_equal(timestep.obs.argmax(axis=1), after)
        assert not timestep.terminated.any()
        target = np.asarray(timestep.reward) + GAMMA * values[np.asarray(after)]
        np.testing.assert_allclose(target.mean(), values[state], atol=0.05)


def test_shortest_path():
    env = make("probe/shortest-path", length=4)
    obs, rewards, terminated = play(env, lambda obs: 1)
    assert terminated
    np.testing.assert_array_equal(obs, np.eye(4))
    assert discounted_returns(rewards, gamma=1.0) == [-3, -2, -1]
    obs, rewards, terminated = play(env, lambda obs: 0, max_steps=2)
    assert not terminated
    assert rewards == [-1, -1]
    np.testing.assert_array_equal(np.argmax(obs, axis=1), [0, 0, 0])


@pytest.mark.parametrize("length", [2, 4])
def test_memory(length):
    env = make("probe/memory", length=length)
    outcomes = {}
    for key in KEYS[:8]:
        obs, rewards, terminated = play(env, lambda obs: 1, key)
        cue = float(obs[0][0])
        assert terminated
        np.testing.assert_array_equal(np.array(obs)[1:, 0], 0)
        flags = [0] * length + [1, 1]
        np.testing.assert_array_equal(np.array(obs)[:, 1], flags)
        assert rewards == [0] * length + [cue]  # right for cue 1, wrong for cue -1
        outcomes[cue] = rewards[-1]
    assert outcomes == {-1.0: -1.0, 1.0: 1.0}  # on average 0 without memory


def test_masked():
    env = make("probe/masked")
    obs, reward = one_step(env, lambda obs: obs["action_mask"].argmax(axis=1))
    assert (reward == 1).all()
    mask = obs["action_mask"]
    assert mask.any(axis=1).all()
    assert len(np.unique(mask, axis=0)) == 15
    assert len(np.unique(obs["obs"])) == 1
    _, careless = one_step(env, constant_action(2))
    np.testing.assert_array_equal(careless, np.where(mask[:, 2], 1.0, -10.0))
