"""`jaxrl.algorithms.bc`: maximum likelihood on a dataset, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxrl import BC, PPO, make, networks, spaces
from jaxrl.algorithms import imitation
from jaxrl.data import dataset
from jaxrl.data.frozen_policy import FrozenPolicy
from jaxrl.errors import InvalidInput
from jaxrl.training import population
from jaxrl.types import Transition
from tests.support.small import counting_env, tiny

KEY = jax.random.key(0)


def taught_by(obs, action, env):
    """The environment with a dataset of one episode of these steps."""
    last = jnp.arange(len(obs)) == len(obs) - 1
    columns = Transition(
        obs=obs,
        action=action,
        reward=jnp.zeros(len(obs)),
        terminated=last,
        truncated=jnp.zeros(len(obs), bool),
        next_obs=obs,
        extras={},
    )
    given = (env.observation_space, env.action_space)
    return env.replace(teacher=dataset.from_columns(columns, *given))


def plane(action_space):
    """An environment that only lends its spaces: two numbers are observed."""
    env = counting_env(ends_after=3)

    def reset(key, params):
        return env.reset(key, params)[0], jnp.zeros(2)

    def step(key, count, action, params):
        count, timestep = env.step(key, count, jnp.int32(0), params)
        return count, timestep._replace(obs=jnp.zeros(2))

    return env.replace(
        reset=reset,
        step=step,
        observation_space=spaces.box(-9, 9, (2,)),
        action_space=action_space,
    )


def learned(config, env, num_train_steps):
    """The agent after so many train steps."""

    @jax.jit
    def train(key):
        state = BC.init(config, env, key)
        return population.run_chunk(BC, config, env, state, num_train_steps)

    state, metrics = train(KEY)
    return state.agent, metrics


@pytest.mark.full
def test_a_separable_expert_is_recovered_exactly():
    obs = jax.random.normal(KEY, (400, 2))
    margin = obs @ jnp.array([1.0, -2.0])
    obs = obs[jnp.abs(margin) > 0.3]
    action = (obs @ jnp.array([1.0, -2.0]) > 0).astype(jnp.int32)
    env = taught_by(obs, action, plane(spaces.Discrete(2)))
    config = tiny(BC, num_updates=100, batch_size=64, learning_rate=0.01)
    agent, _ = learned(config, env, 4)
    answer, _, _ = BC.act(config, env, agent, obs, (), KEY, True)
    np.testing.assert_array_equal(answer, action)


@pytest.mark.full
def test_without_hidden_layers_it_is_logistic_regression():
    """The maximum of the likelihood, found by another program in 64 bits."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    a = (rng.random(60) < 1 / (1 + np.exp(-(1.5 * x[:, 0] - x[:, 1] + 0.5)))).astype(
        int
    )

    def nll(w):
        return np.logaddexp(0, -(2 * a - 1) * (x @ w[:2] + w[2])).mean()

    best = minimize(nll, np.zeros(3))
    env = taught_by(jnp.asarray(x), jnp.asarray(a), plane(spaces.Discrete(2)))
    # A batch is many times the dataset, so that nearly the same gradient comes each time.
    config = tiny(
        BC, hidden_sizes=(), num_updates=150, batch_size=4096, learning_rate=0.03
    ).replace(total_steps=96.0 * 4)
    agent, _ = learned(config, env, 12)
    pi, _ = networks.apply_actor(config, env, agent.params, jnp.asarray(x, jnp.float32))
    found = -np.asarray(pi.log_prob(jnp.asarray(a))).mean()
    assert found == pytest.approx(best.fun, abs=2e-4)
    logit = np.asarray(pi.logits[:, 1] - pi.logits[:, 0])
    np.testing.assert_allclose(logit, x @ best.x[:2] + best.x[2], atol=0.08)


@pytest.mark.full
def test_a_normal_finds_mean_and_spread_of_the_expert():
    action = 0.5 + 0.25 * jax.random.normal(KEY, (2_000, 1))
    env = plane(spaces.box(-2, 2, (1,)))
    env = taught_by(jnp.zeros((2_000, 2)), action, env)
    config = tiny(BC, num_updates=200, batch_size=512, learning_rate=0.02)
    agent, _ = learned(config, env, 4)
    pi, _ = networks.apply_actor(config, env, agent.params, jnp.zeros(2))
    assert pi.mode()[0] == pytest.approx(float(action.mean()), abs=0.02)
    assert pi.distribution.scale[0] == pytest.approx(float(action.std()), rel=0.05)


@pytest.mark.full
def test_with_mse_the_spread_stays_as_it_was_and_no_action_is_sampled():
    env = plane(spaces.box(-2, 2, (1,)))
    env = taught_by(jnp.zeros((50, 2)), jnp.full((50, 1), 0.7), env)
    config = tiny(BC, num_updates=200, batch_size=32, learning_rate=0.02, loss="mse")
    agent, metrics = learned(config, env, 3)
    pi, _ = networks.apply_actor(config, env, agent.params, jnp.zeros(2))
    assert pi.mode()[0] == pytest.approx(0.7, abs=0.01)
    assert pi.distribution.scale[0] == 2.0  # half the width of the box
    sampled, _, _ = BC.act(config, env, agent, jnp.zeros((5, 2)), (), KEY, False)
    np.testing.assert_allclose(sampled, pi.mode() * jnp.ones((5, 1)))
    assert metrics["loss/imitation"].value < 0.5 * 0.7**2


def test_loss_is_that_of_a_loop_and_every_weight_counts():
    env = taught_by(
        jnp.ones((4, 2)), jnp.array([0, 1, 1, 1]), plane(spaces.Discrete(2))
    )
    config = tiny(BC, ent_coef=0.5, l2_coef=0.25)
    params = BC.init(config, env, KEY).agent.params
    rows = (env.teacher.obs, env.teacher.action)
    total, (nll, error, entropy) = imitation.loss(params, config, env, *rows)
    logits = np.asarray(
        networks.apply_actor(config, env, params, rows[0][0])[0].logits, np.float64
    )
    log_pi = logits - np.logaddexp(*logits)
    np.testing.assert_allclose(nll, -log_pi[[0, 1, 1, 1]], rtol=1e-5)
    np.testing.assert_array_equal(error, np.array([0, 1, 1, 1]) != log_pi.argmax())
    h = -(np.exp(log_pi) * log_pi).sum()
    np.testing.assert_allclose(entropy, h, rtol=1e-5)
    norm = sum(np.square(x, dtype=np.float64).sum() for x in jax.tree.leaves(params))
    expected = -log_pi[[0, 1, 1, 1]].mean() - 0.5 * h + 0.25 * 0.5 * norm
    assert float(total) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [
        (None, "teacher is a NoneType: bc needs a jaxrl.data.dataset.Dataset there."),
        (FrozenPolicy((), (), PPO), "teacher is a FrozenPolicy: bc needs"),
    ],
)
def test_without_a_dataset_it_is_refused(teacher, reason):
    with pytest.raises(InvalidInput, match=reason):
        BC.validate(BC.Config(), make("CartPole-v1").replace(teacher=teacher))


def test_a_dataset_of_another_environment_is_refused():
    taught = taught_by(jnp.ones((4, 2)), jnp.zeros(4), plane(spaces.Discrete(2)))
    env = make("CartPole-v1").replace(teacher=taught.teacher)
    with pytest.raises(InvalidInput, match="the dataset was recorded with observation"):
        BC.validate(BC.Config(), env)


def test_the_squared_error_needs_continuous_actions():
    env = taught_by(jnp.ones((4, 2)), jnp.zeros(4), plane(spaces.Discrete(2)))
    with pytest.raises(InvalidInput, match="loss = 'mse' needs continuous actions"):
        BC.validate(BC.Config(loss="mse"), env)
