"""A2C: what each network learns from, at which rate, and the probes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import estimators
from jaxrl.algorithms import a2c
from jaxrl.algorithms.a2c import A2C
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.evaluation import evaluate
from jaxrl.rollout import unroll
from jaxrl.training import loop, population
from tests.support.small import assert_trees_equal, tiny

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def stepped():
    """`(config) -> state before and after one train step`, compiled once."""
    env = make("probe/action-observation")
    state = A2C.init(tiny(A2C), env, KEY)
    step = jax.jit(A2C.train_step)
    return lambda **rates: (state, *step(tiny(A2C, **rates), env, state))


@pytest.mark.full
@pytest.mark.parametrize(
    ("rates", "still", "moved"),
    [
        ({"learning_rate": 0.0}, "actor", "critic"),
        ({"critic_learning_rate": 0.0}, "critic", "actor"),
    ],
)
def test_each_network_has_its_own_learning_rate(stepped, rates, still, moved):
    before, after, _ = stepped(**rates)
    assert_trees_equal(before.agent.params[still], after.agent.params[still])
    for a, b in zip(
        *(jax.tree.leaves(s.agent.params[moved]) for s in (before, after)), strict=True
    ):
        assert not jnp.array_equal(a, b)


def test_both_rates_follow_the_schedule(stepped):
    _, after, first = stepped(learning_rate=0.01, critic_learning_rate=0.03)
    assert first["optim/learning_rate"].value == pytest.approx(0.01)
    assert first["optim/critic_learning_rate"].value == pytest.approx(0.03)
    config, env = tiny(A2C, total_steps=64.0), make("probe/action-observation")
    _, metrics = jax.jit(A2C.train_step)(config, env, after)  # 32 of 64 steps are done
    half = {"optim/learning_rate": 5e-4, "optim/critic_learning_rate": 1.5e-3}
    for name, expected in half.items():
        assert metrics[name].value == pytest.approx(expected)


def test_the_default_advantage_is_the_papers_n_step_advantage():
    """Sum of rewards to the end of the rollout, the value there, minus V(s_t)."""
    env = make("probe/discounted")
    config = tiny(A2C, gamma=0.9)
    state = A2C.init(config, env, KEY)
    policy = partial(A2C.act, config, env, state.agent)
    _, t, _ = jax.jit(lambda world: unroll(env, policy, world, 8))(state.world)
    value, next_value = a2c.values(config, env, state.agent.params["critic"], t)
    reward = (t.reward, value, next_value, t.terminated, t.truncated)
    advantage, _ = estimators.gae(*reward, config.gamma, config.gae_lambda)
    expected = np.asarray(next_value[-1], np.float64)
    for row in reversed(range(8)):
        expected = np.asarray(t.reward[row], np.float64) + 0.9 * expected
        np.testing.assert_allclose(advantage[row], expected - value[row], rtol=1e-4)


def test_an_image_has_two_torsos_and_no_common_parameter():
    env, config = make("Breakout-MinAtar"), tiny(A2C, network="cnn")
    params = jax.eval_shape(A2C.init, config, env, KEY).agent.params
    for name in ("actor", "critic"):
        assert "Conv_0" in str(jax.tree_util.tree_structure(params[name]))


def trained(env, iterations, **changes):
    fast = {"num_envs": 16, "num_steps": 8, "learning_rate": 0.02, "gamma": 0.9}
    fast |= {"critic_learning_rate": 0.05, "total_steps": iterations * 128.0}
    config = A2C.Config().replace(hidden_sizes=(16,), **(fast | changes))
    loop.prepare(A2C, config, env)
    state = jax.jit(A2C.init)(config, env, KEY)
    chunk = jax.jit(partial(population.run_chunk, A2C))
    state, _ = chunk(config, env, state, jnp.int32(iterations))
    return config, state.agent


def mean_return(config, env, agent):
    episodes = evaluate(A2C, config, env, agent, KEY, 64, greedy=True)
    return float(episodes.episode_return.mean())


@pytest.mark.full
def test_learns_to_act_on_what_it_sees():
    env = make("probe/action-observation")
    config, agent = trained(env, 100, normalize_advantage=True)
    assert mean_return(config, env, agent) == 1.0


@pytest.mark.full
def test_learns_the_value_of_a_truncated_task():
    env = make("probe/truncation")
    config, agent = trained(env, 600, optimizer="rmsprop")
    value = A2C.act(config, env, agent, jnp.ones((1, 1)), (), KEY)[2]["value"]
    assert float(value[0]) == pytest.approx(10, abs=0.1)


@pytest.mark.full
def test_learns_a_continuous_action():
    env = make("probe/continuous")
    config, agent = trained(env, 400, ent_coef=0.0)
    assert mean_return(config, env, agent) > -0.02


@pytest.mark.full
def test_never_takes_a_masked_action():
    env = make("probe/masked")
    config = tiny(A2C)
    agent = A2C.init(config, env, KEY).agent
    _, obs = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(KEY, 200), ())
    action, _, _ = A2C.act(config, env, agent, obs, (), KEY)
    legal = np.asarray(obs["action_mask"])
    assert legal[np.arange(200), action].all() and not legal.all()


def test_what_cannot_work_is_refused():
    with pytest.raises(InvalidInput, match="squash = True needs a bounded Box"):
        A2C.validate(A2C.Config(squash=True), make("CartPole-v1"))
    with pytest.raises(InvalidInput, match="network = 'cnn' needs image"):
        A2C.validate(A2C.Config(network="cnn"), make("CartPole-v1"))
