"""SARSA, Expected SARSA, Q-learning: what targets continue with, and what is learned."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import networks
from jaxrl.algorithms import sarsa
from jaxrl.algorithms.pqn import PQN
from jaxrl.algorithms.sarsa import EXPECTED_SARSA, Q_LEARNING, SARSA
from jaxrl.envs import make
from jaxrl.envs.tabular import tabular_env
from jaxrl.errors import InvalidInput
from jaxrl.mdp import finite_mdp
from jaxrl.training import loop, population
from tests.support.small import assert_trees_equal, tiny

KEY = jax.random.key(0)
ALL = (SARSA, EXPECTED_SARSA, Q_LEARNING, PQN)


def rollout(config, env, epsilon, world=None):
    """A new agent, the world before 8 steps and these steps."""
    state = SARSA.init(config, env, KEY)
    world = state.world if world is None else world
    unroll = partial(sarsa.acts.unroll, config, env, state.agent, num_steps=8)
    _, trajectory, _ = jax.jit(lambda world: unroll(world, epsilon=epsilon))(world)
    return state.agent, world, trajectory


@pytest.mark.fast_cases("auto-*")
@pytest.mark.parametrize("successor", ["taken", "expected", "best"])
@pytest.mark.parametrize("network", ["auto", "gru(size=4)"])
def test_what_a_target_continues_with(network, successor):
    """Row by row: the next action's value, the policy's mean or the best; where an episode
    was cut and after the last row SARSA has no next action, and takes the mean."""
    env = make("probe/truncation").replace(horizon=np.int32(3))
    config, epsilon = tiny(SARSA, network=network), 0.4
    agent, _, t = rollout(config, env, epsilon)
    found = sarsa.next_values(config, env, agent.params, t, epsilon, successor)
    assert t.truncated.any()
    apply = partial(networks.apply_recurrent_q, config, env, agent.params)
    memories = [jax.tree.map(lambda m, i=i: m[i], t.extras["memory"]) for i in range(8)]
    q_next = [apply(*at)[0] for at in zip(t.next_obs, memories, strict=True)]
    q_next = np.asarray(q_next, float)
    best, mean = q_next.max(-1), q_next.mean(-1)
    of_policy = 0.6 * best + 0.4 * mean
    for row, column in np.ndindex(*found.shape):
        expected = best if successor == "best" else of_policy
        goes_on = row + 1 < len(found) and not t.truncated[row, column]
        value = expected[row, column]
        if successor == "taken" and goes_on:
            value = q_next[row, column, t.action[row + 1, column]]
        np.testing.assert_allclose(found[row, column], value, rtol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru_values(params, obs, memory):
    """Q `[N, A]` of one step and the memory after it, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])

    def layer(x, name):
        return x @ cell[name]["kernel"] + cell[name].get("bias", 0.0)

    (torso,) = p["MLP_0"].values()
    x, cell, h = np.maximum(obs @ torso["kernel"] + torso["bias"], 0), p["gru"], memory
    r = sigmoid(layer(x, "ir") + layer(h, "hr"))
    z = sigmoid(layer(x, "iz") + layer(h, "hz"))
    memory = (1 - z) * np.tanh(layer(x, "in") + r * layer(h, "hn")) + z * h
    return memory @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], memory


@pytest.mark.full
def test_a_memory_is_cleared_where_an_episode_ends():
    """The values of the rollout, and those that are learned, are those of a loop."""
    env = make("probe/truncation", horizon=3)
    config = tiny(SARSA, network="gru(size=4)")
    agent, world, t = rollout(config, env, epsilon=1.0)
    start = jax.random.normal(KEY, world.memory.shape)  # an episode that goes on
    agent, _, t = rollout(config, env, 1.0, world.replace(memory=start))
    memory, expected = np.asarray(start, np.float64), []
    for obs, done in zip(np.asarray(t.obs, np.float64), t.done, strict=True):
        q, memory = gru_values(agent.params, obs, memory)
        memory = np.where(np.asarray(done)[:, None], 0.0, memory)
        expected.append(q)
    assert t.done.sum(0).min() >= 2
    np.testing.assert_allclose(t.extras["q"], expected, atol=1e-5)
    learned, after = networks.apply_recurrent_q(
        config, env, agent.params, t.obs, start, t.done
    )
    np.testing.assert_allclose(learned, expected, atol=1e-5)
    np.testing.assert_allclose(after, memory, atol=1e-5)


@pytest.mark.full
def test_without_exploration_the_three_are_one():
    env = make("probe/action-observation")
    config = tiny(SARSA, epsilon_start=0.0, epsilon_end=0.0)
    state = SARSA.init(config, env, KEY)
    after = [
        jax.jit(algorithm.train_step)(config, env, state)[0].agent.params
        for algorithm in (SARSA, EXPECTED_SARSA, Q_LEARNING)
    ]
    for other in after[1:]:
        assert jax.tree.structure(after[0]) == jax.tree.structure(other)
        for x, y in zip(*map(jax.tree.leaves, (after[0], other)), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)


def trained(algorithm, env, iterations, **changes):
    fast = {"num_envs": 16, "num_steps": 16, "learning_rate": 0.01, "gamma": 0.9}
    config = algorithm.Config().replace(
        hidden_sizes=(16,), total_steps=iterations * 256.0, **(fast | changes)
    )
    loop.prepare(algorithm, config, env)
    state = jax.jit(algorithm.init)(config, env, KEY)
    chunk = jax.jit(partial(population.run_chunk, algorithm))
    state, _ = chunk(config, env, state, jnp.int32(iterations))
    return config, state.agent


@pytest.fixture(scope="module")
def forked():
    """State 0: stop for 0.6, or go on to state 1; there 1, or 0, and the end."""
    transition = np.zeros((3, 2, 3))
    transition[0, 0, 2] = transition[0, 1, 1] = transition[1, :, 2] = 1
    reward = np.array([[0.6, 0.0], [1.0, 0.0], [0.0, 0.0]])
    return tabular_env(finite_mdp(transition, reward, [False, False, True], 0))


@pytest.mark.full
@pytest.mark.parametrize(
    ("algorithm", "going_on"),
    [(SARSA, 0.45), (EXPECTED_SARSA, 0.45), (Q_LEARNING, 0.9)],
)
def test_on_policy_and_off_policy_values(forked, algorithm, going_on):
    """With every action random, going on is worth γ / 2 to SARSA, which should stop, and γ
    to Q-learning, which should not."""
    random = {"epsilon_start": 1.0, "epsilon_end": 1.0, "td_lambda": 0.0}
    config, agent = trained(algorithm, forked, 150, **random)
    q = networks.apply_q(config, forked, agent.params, jnp.eye(2))
    np.testing.assert_allclose(q, [[0.6, going_on], [1.0, 0.0]], atol=0.04)


@pytest.mark.full
@pytest.mark.parametrize("td_lambda", [0.0, 1.0])
def test_learns_the_value_of_a_truncated_task(td_lambda):
    env = make("probe/truncation")
    config, agent = trained(SARSA, env, 150, td_lambda=td_lambda)
    q = networks.apply_q(config, env, agent.params, jnp.ones((1, 1)))
    np.testing.assert_allclose(q, 10.0, atol=0.3)


@pytest.mark.full
def test_never_takes_a_masked_action_nor_counts_it():
    env = make("probe/masked")
    config, agent = trained(Q_LEARNING, env, 20)
    _, obs = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(KEY, 200), ())
    action, _, extras = Q_LEARNING.act(config, env, agent, obs, (), KEY)
    legal = np.asarray(obs["action_mask"])
    assert legal[np.arange(200), action].all() and not legal.all()
    q = np.asarray(networks.apply_q(config, env, agent.params, obs))
    best = np.where(legal, q, -np.inf).max(-1)
    mean = np.where(legal, q, 0.0).sum(-1) / legal.sum(-1)
    epsilon = config.epsilon_end
    np.testing.assert_allclose(
        extras["value"], (1 - epsilon) * best + epsilon * mean, rtol=1e-5
    )


def test_no_learning_rate_changes_nothing():
    env, config = make("probe/action"), tiny(SARSA, learning_rate=0.0)
    state = SARSA.init(config, env, KEY)
    after, _ = jax.jit(SARSA.train_step)(config, env, state)
    assert_trees_equal(state.agent.params, after.agent.params)


@pytest.mark.parametrize("algorithm", ALL, ids=lambda a: a.name)
def test_what_cannot_work_is_refused(algorithm):
    with pytest.raises(InvalidInput, match=f"{algorithm.name} needs a Discrete action"):
        loop.prepare(algorithm, tiny(algorithm), make("Pendulum-v1"))
    with pytest.raises(InvalidInput, match=r"num_minibatches = 3 must divide .* = 32"):
        config = tiny(algorithm, num_minibatches=3)
        loop.prepare(algorithm, config, make("CartPole-v1"))
    with pytest.raises(InvalidInput, match=r"must divide num_envs = 4: try"):
        config = tiny(algorithm, num_minibatches=8, network="gru(size=4)")
        loop.prepare(algorithm, config, make("CartPole-v1"))
