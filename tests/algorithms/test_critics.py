"""Critics of actions: targets of ensembles and quantiles, dropout, and what they learn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms import ALGORITHMS, bellman, critics
from jaxrl.algorithms.td3 import TD3
from jaxrl.replay import transitions
from tests.support.control import KEY, probe, trained, values
from tests.support.small import tiny


def test_the_value_of_a_target_is_of_a_subset_or_without_the_largest_quantiles():
    q = jnp.array([[3.0], [1.0], [2.0]])
    config = TD3.Config(num_critics=3, target_subset=2)
    keys = jax.random.split(KEY, 64)
    found = {float(critics.target_value(config, q, key)[0]) for key in keys}
    assert found == {1.0, 2.0}
    config = TD3.Config(num_quantiles=3, dropped_quantiles=1)
    quantiles = jnp.array([[[1.0, 5.0, 9.0]], [[2.0, 4.0, 8.0]]])
    kept = critics.target_value(config, quantiles, KEY)
    np.testing.assert_array_equal(kept, [[1.0, 2.0, 4.0, 5.0]])


@pytest.mark.full
def test_the_target_drops_units_too():
    env, config = probe("truncation"), tiny(TD3, dropout=0.5)
    state = TD3.init(config, env, KEY)
    batch = transitions.read(config, env, state.replay, jnp.arange(8))
    params = state.agent.target_params

    def target(seed):
        at = params["critics"], None, batch, jnp.zeros((8, 1)), lambda q: q.min(0)
        return bellman.next_target(config, env, *at, jax.random.key(seed))

    assert not (target(0) == target(1)).all()


OPTIONS = {
    "subset": {"num_critics": 5, "num_updates": 4, "policy_delay": 4},
    "quantiles": {"num_quantiles": 5, "dropped_quantiles": 1},
    "dropout": {"dropout": 0.1},
    "n_step": {"n_step": 3},
    "statistics": {"normalize_obs": True},
}


@pytest.mark.full
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["td3", "sac"])
def test_learns_a_value_with_every_option(name, option):
    algorithm, env, obs = ALGORITHMS[name], probe("delay"), jnp.array([[0.0], [1.0]])
    cold = {"learn_temperature": False, "temperature": 1e-6} if name == "sac" else {}
    changes = OPTIONS[option] | cold
    config, state, metrics = trained(algorithm, env, 400, **changes)
    assert all(jnp.isfinite(m.sum) for m in metrics.values())
    found = values(algorithm, config, env, state, obs)
    np.testing.assert_allclose(found, [0.9, 1.0], atol=0.1)


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.1}, {"num_critics": 3}])
def test_what_the_policy_follows(changes):
    config = TD3.Config(**changes)
    q = jnp.array([[3.0], [1.0], [2.0]])[: config.num_critics]
    expected = q.mean(0) if changes else q.min(0)
    np.testing.assert_allclose(critics.policy_value(config, q), expected)


@pytest.mark.full
def test_the_critics_of_actions_that_drop_units_drop_none_when_acting():
    env = probe("truncation")
    config = tiny(TD3, dropout=0.5)
    agent = TD3.init(config, env, KEY).agent
    obs, action = jnp.ones((4, 1)), jnp.zeros((4, 1))
    ask = partial(critics.values, config, env, agent.params["critics"], None, obs)
    first, again = ask(action, None), ask(action, KEY)
    assert (first == ask(action, None)).all() and not (first == again).all()
    assert not (again == ask(action, jax.random.key(1))).all()


def test_the_smallest_has_the_gradient_of_one_critic():
    q = jnp.array([[3.0, 1.0], [2.0, 1.0], [5.0, -1.0]])
    np.testing.assert_array_equal(critics.smallest(q), [2.0, -1.0])
    gradient = jax.grad(lambda q: critics.smallest(q).sum())(q.at[:, 1].set(7.0))
    np.testing.assert_array_equal(gradient, [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
