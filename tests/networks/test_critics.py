"""Ensembles of critics, and the actors of continuous control."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import networks, spaces
from jaxrl.networks import CNN, MLP, Body, Critics, DeterministicActor, SpreadActor

KEY = jax.random.key(0)
LINE = spaces.box(-1, 1, (5,))
IMAGE = spaces.box(0, 255, (6, 6, 2), np.uint8)
ACTIONS = spaces.box([-1.0, 0.0], [1.0, 3.0], (2,))


@pytest.mark.fast_cases("space0-torso0")
@pytest.mark.parametrize("space, torso", [(LINE, MLP((8,))), (IMAGE, CNN((8,)))])
def test_critics_are_independent_and_see_the_action(space, torso):
    net = Critics(space, ACTIONS, Body(torso), num_critics=3)
    params = networks.init(net, KEY)
    obs = spaces.sample(space, KEY, (4,))
    action = jax.random.uniform(KEY, (4, 2), minval=-1.0)
    q = net.apply(params, obs, action)
    assert q.shape == (3, 4)
    assert len(np.unique(np.asarray(q))) == 12
    other = net.apply(params, obs, action.at[0].add(0.3))
    assert (other[:, 0] != q[:, 0]).all()
    np.testing.assert_array_equal(other[:, 1:], q[:, 1:])
    # The first alone, as an ensemble of one.
    alone = Critics(space, ACTIONS, Body(torso), num_critics=1)
    first = alone.apply(jax.tree.map(lambda x: x[:1], params), obs, action)
    np.testing.assert_allclose(first, q[:1], rtol=1e-5)


def test_critics_of_discrete_actions():
    net = Critics(LINE, spaces.Discrete(3), Body(MLP((8,))), num_critics=2)
    q = net.apply(networks.init(net, KEY), jnp.zeros((4, 5)))
    assert q.shape == (2, 4, 3)


def test_actors_of_continuous_actions():
    obs = 100.0 * jax.random.normal(KEY, (64, 5))
    deterministic = DeterministicActor(LINE, ACTIONS, Body(MLP((8,))))
    action = deterministic.apply(networks.init(deterministic, KEY), obs)
    assert action.shape == (64, 2) and (jnp.abs(action) <= 1).all()
    spread = SpreadActor(LINE, ACTIONS, Body(MLP((8,))))
    mean, log_std = spread.apply(networks.init(spread, KEY), obs)
    assert mean.shape == log_std.shape == (64, 2)
    assert (log_std[0] != log_std[1]).all()  # a function of the state


def test_actions_go_to_the_unit_box_and_back():
    x = jnp.array([[-1.0, 0.0], [0.0, 1.5], [1.0, 3.0]])
    unit = spaces.to_unit(ACTIONS, x)
    np.testing.assert_allclose(unit, [[-1, -1], [0, 0], [1, 1]])
    np.testing.assert_allclose(spaces.from_unit(ACTIONS, unit), x)
