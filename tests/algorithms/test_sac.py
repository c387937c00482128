"""SAC: soft values by hand, the temperature, and probes with known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import networks
from jaxrl.algorithms import critics, sac
from jaxrl.algorithms.sac import SAC
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.evaluation import evaluate
from jaxrl.types import counter
from tests.support.control import KEY, probe, trained, values
from tests.support.small import tiny


def soft_value(config, env, params, obs, noise):
    """V(s) with the smallest of all critics, and the mean of log π."""
    found = sac.sample(config, env, params["actor"], None, obs, noise)
    at = params["critics"], None, obs, found.action, None
    q = critics.values(config, env, *at).min(0)
    value = sac.soft_value(found, q, sac.temperature(config, params))
    return value, sac.mean_log_prob(found)


def test_the_soft_value_of_continuous_actions_by_hand():
    env = probe("truncation")
    config = tiny(SAC)
    params = SAC.init(config, env, KEY).agent.params
    obs, noise = jnp.ones((3, 1)), jnp.array([[-1.0], [0.0], [2.0]])
    params["log_temperature"] = jnp.log(0.3)
    value, log_prob = soft_value(config, env, params, obs, noise)
    mean, log_std = networks.spread_actor(config, env).apply(params["actor"], obs)
    x = np.asarray(mean + jnp.exp(log_std) * noise, np.float64)
    normal = (
        -0.5 * np.asarray(noise) ** 2 - np.asarray(log_std) - 0.5 * np.log(2 * np.pi)
    )
    expected = (normal - np.log(1 - np.tanh(x) ** 2)).sum(-1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4)
    q = networks.critics(config, env).apply(params["critics"], obs, np.tanh(x))
    np.testing.assert_allclose(value, q.min(0) - 0.3 * expected, rtol=1e-4)


@pytest.mark.full
def test_the_soft_value_of_discrete_actions_by_hand():
    env = make("probe/masked")
    config = tiny(SAC)
    params = SAC.init(config, env, KEY).agent.params
    mask = jnp.array([[True, False, True, False]])
    obs = {"obs": jnp.ones((1, 1)), "action_mask": mask}
    params["log_temperature"] = jnp.log(0.3)
    value, log_prob = soft_value(config, env, params, obs, jnp.zeros((1, 0)))
    logits = networks.spread_actor(config, env).apply(params["actor"], obs)[0, [0, 2]]
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    q = networks.critics(config, env).apply(params["critics"], obs)
    q = np.asarray(q.min(0))[0, [0, 2]]
    np.testing.assert_allclose(log_prob[0], (p * np.log(p)).sum(), rtol=1e-5)
    np.testing.assert_allclose(value[0], (p * (q - 0.3 * np.log(p))).sum(), rtol=1e-5)


@pytest.mark.full
def test_gradients_of_the_soft_value_equal_finite_differences():
    env = probe("truncation")
    config = tiny(SAC, activation="tanh")
    params = SAC.init(config, env, KEY).agent.params
    noise = jax.random.normal(KEY, (64, 1))

    def value(actor):
        at = params | {"actor": actor}, jnp.ones((64, 1)), noise
        return soft_value(config, env, *at)[0].mean()

    with jax.enable_x64(True):
        params, noise = jax.tree.map(lambda x: x.astype(jnp.float64), (params, noise))
        jax.test_util.check_grads(value, (params["actor"],), 1, modes=["rev"])


@pytest.mark.full
def test_entropy_is_rewarded_for_ever():
    """V = (1 + α H) / (1 - γ) where nothing but the entropy depends on the policy."""
    env = probe("truncation")
    config, state, metrics = trained(
        SAC, env, 1_500, learn_temperature=False, temperature=0.5
    )
    # The largest entropy of actions in [-1, 1] is that of the uniform distribution.
    assert float(metrics["policy/entropy"].value) == pytest.approx(np.log(2), abs=0.05)
    found = values(SAC, config, env, state, jnp.ones((1, 1)))
    # The first action's entropy is not part of Q(s, a).
    expected = (1 + 0.9 * 0.5 * np.log(2)) / (1 - 0.9)
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.full
@pytest.mark.parametrize("wanted", [-1.0, 0.3])
def test_the_temperature_finds_the_entropy_wanted(wanted):
    env = make("probe/continuous")
    _, state, _ = trained(SAC, env, 1_500, target_entropy=wanted)
    config = SAC.Config(hidden_sizes=(32,), target_entropy=wanted)
    obs = jnp.linspace(-1, 1, 32)[:, None]
    noise = jax.random.normal(KEY, (512, 32, 1))
    pi, _ = sac.distribution(
        config, env, state.agent.params["actor"], None, obs, env.action_space
    )
    log_prob = jax.vmap(lambda x: pi.log_prob(pi.pre_tanh(x)))(noise)
    assert float(-log_prob.mean()) == pytest.approx(wanted, abs=0.15)


@pytest.mark.full
def test_a_fixed_temperature_stays():
    env = probe("truncation")
    config = tiny(SAC, learn_temperature=False, temperature=0.25)
    state = SAC.init(config, env, KEY)
    state, metrics = jax.jit(SAC.train_step)(config, env, state)
    assert float(metrics["policy/temperature"].value) == pytest.approx(0.25)
    assert float(jnp.exp(state.agent.params["log_temperature"])) == pytest.approx(0.25)


@pytest.mark.full
def test_discrete_sac_takes_no_illegal_action():
    env = make("probe/masked")
    _, state, metrics = trained(SAC, env, 20)
    stored = state.replay.data.reward[: int(state.replay.head.size)]
    assert (stored == 1.0).all()
    assert all(jnp.isfinite(m.sum) for m in metrics.values())


@pytest.mark.full
def test_discrete_sac_learns_to_act_on_what_it_sees():
    env = make("probe/action-observation")
    config, state, _ = trained(SAC, env, 300)
    episodes = evaluate(SAC, config, env, state.agent, KEY, 64, greedy=True)
    assert float(episodes.episode_return.mean()) == 1.0


def test_the_entropy_wanted_is_of_the_legal_actions():
    env = make("probe/masked")
    mask = jnp.array([[True, False, True, False], [True] * 4])
    obs = {"obs": jnp.ones((2, 1)), "action_mask": mask}
    found = sac.target_entropy(SAC.Config(), env, obs)
    np.testing.assert_allclose(found, [0.5 * np.log(2), 0.5 * np.log(4)], rtol=1e-6)
    assert sac.target_entropy(SAC.Config(), make("Pendulum-v1"), obs) == -1.0


def test_a_temperature_that_is_not_learned_may_follow_a_line():
    config = tiny(SAC, learn_temperature=False, temperature=0.5, temperature_end=0.1)
    for steps, expected in ((0, 0.5), (250, 0.4), (1_000, 0.1), (2_000, 0.1)):
        found = sac.scheduled_temperature(config, counter(steps))
        assert float(found) == pytest.approx(expected)
    config = tiny(SAC, temperature_end=0.1)
    with pytest.raises(InvalidInput, match=r"temperature_end = 0.1 .* = False"):
        SAC.validate(config, make("Pendulum-v1"))
