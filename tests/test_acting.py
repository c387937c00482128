"""What a policy that samples keeps for its update."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import acting, distributions, spaces

ENV = SimpleNamespace(action_space=spaces.box(-1.0, 1.0, (1,)))
OBS = jnp.zeros((8, 1))


def samples(pi, greedy=False):
    """The trajectory of one step of `pi`, with its action and its extras."""
    acts = acting.stochastic(lambda *at: (pi, (), {"value": 0.0}))
    action, _, extras = acts.act(None, ENV, None, OBS, (), jax.random.key(0), greedy)
    return SimpleNamespace(action=action, extras=extras)


def test_a_squashed_action_is_kept_as_it_was_before_tanh():
    pi = distributions.tanh_normal(jnp.full((8, 1), 12.0), jnp.zeros(1), -1.0, 1.0)
    trajectory = samples(pi)
    assert np.ptp(trajectory.action) == 0.0
    kept = acting.sample_of(trajectory)
    assert 9.0 < kept.x.min() < kept.x.max() < 15.0
    np.testing.assert_array_equal(pi.squash(kept), trajectory.action)


@pytest.mark.parametrize("greedy", [False, True])
def test_other_actions_are_their_own_samples(greedy):
    trajectory = samples(distributions.diag_normal(OBS, jnp.zeros(1)), greedy)
    assert acting.sample_of(trajectory) is trajectory.action
    assert trajectory.extras == {"value": 0.0}
