"""Critics without target networks: the joint forward pass, and what learns from it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import networks
from jaxrl.algorithms import ALGORITHMS, bellman, critics, learning
from jaxrl.algorithms.td3 import TD3
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.networks import batch_renorm
from jaxrl.replay import transitions
from tests.support.control import KEY, probe, trained, values
from tests.support.small import tiny

ENV = probe("truncation")
CONFIG = tiny(TD3, batch_norm=True, policy_delay=3)


def smallest(q):
    return q.min(0)


def of_critics(config):
    return jax.jit(partial(networks.init, networks.critics(config, ENV)))(KEY)


def subject():
    """Critics, a batch and actions of its next states."""
    params = of_critics(CONFIG)
    obs = jax.random.normal(KEY, (8, 1))
    batch = transitions.Batch(
        obs,
        jax.random.uniform(KEY, (8, 1), minval=-1.0, maxval=3.0),
        jnp.arange(8.0),
        jnp.arange(8) == 3,
        obs[::-1] + 2.0,
        jnp.full(8, 0.9),
    )
    return params, batch, jnp.linspace(-0.9, 0.9, 8)[:, None]


@pytest.mark.full
def test_the_joint_pass_is_one_of_both_halves_and_the_target_has_no_gradient():
    params, batch, action = subject()
    learned, statistics = batch_renorm.split(params)

    def joint(learned):
        params = batch_renorm.join(learned, statistics)
        return bellman.joint_loss(CONFIG, ENV, params, None, batch, action, smallest)

    (loss, (_, q, after)), gradient = jax.value_and_grad(joint, has_aux=True)(learned)
    net, taken = networks.critics(CONFIG, ENV), (batch.action - 1.0) / 2.0
    both = (
        jnp.concatenate([batch.obs, batch.next_obs]),
        jnp.concatenate([taken, action]),
    )
    expected, changed = net.apply(params, *both, mutable=["batch_stats"])
    np.testing.assert_allclose(q, expected[:, :8], rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after, changed["batch_stats"])
    alone = net.apply(params, batch.obs, taken, mutable=["batch_stats"])[0]
    assert not np.allclose(q, alone, atol=1e-3)  # the statistics are of both halves
    y = batch.reward + 0.9 * jnp.where(batch.terminated, 0.0, expected[:, 8:].min(0))

    def with_constant_target(learned):
        params = batch_renorm.join(learned, statistics)
        q, _ = net.apply(params, *both, mutable=["batch_stats"])
        return 0.5 * ((q[:, :8] - y) ** 2).sum(0).mean()

    np.testing.assert_allclose(loss, with_constant_target(learned), rtol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, gradient, jax.grad(with_constant_target)(learned))


@pytest.mark.full
def test_without_its_norm_a_joint_pass_is_that_of_targets_that_are_the_critics():
    """tau = 1: the two ways to a target differ by the batch's statistics alone."""
    _, batch, action = subject()
    config = tiny(TD3)
    params = of_critics(config)
    joint, (*_, none) = bellman.joint_loss(
        config, ENV, params, None, batch, action, smallest
    )
    y = bellman.next_target(config, ENV, params, None, batch, action, smallest, KEY)
    at = params, None, batch.obs, batch.action, None
    separate, _ = bellman.error_of(config, critics.values_taken(config, ENV, *at), y)
    assert none is None
    np.testing.assert_allclose(joint, separate, rtol=1e-6)


def test_no_memory_for_targets_and_statistics_are_kept_apart_from_what_adam_changes():
    agent = jax.eval_shape(TD3.init, CONFIG, ENV, KEY).agent
    assert agent.target_params == {}
    learner = jax.eval_shape(learning.begin, agent)
    learned, statistics = batch_renorm.split(agent.params["critics"])
    size = sum(x.size for x in jax.tree.leaves(learned))
    assert learner.networks["critics"].vector.shape == (size,)
    assert statistics == learner.statistics["critics"]
    again = jax.eval_shape(lambda agent: learning.begin(agent).params, agent)
    assert again == agent.params


@pytest.mark.full
@pytest.mark.parametrize("name", ["td3", "sac", "ddpg"])
def test_statistics_move_in_training_and_not_while_acting(name):
    algorithm = ALGORITHMS[name]
    config = tiny(algorithm, batch_norm=True, policy_delay=1)
    state = jax.jit(algorithm.init)(config, ENV, KEY)
    after, _ = jax.jit(algorithm.train_step)(config, ENV, state)
    for network in ("actor", "critics"):
        before, now = (
            x.agent.params[network][batch_renorm.STATISTICS] for x in (state, after)
        )
        counts = [x for x in jax.tree.leaves(now) if x.dtype == jnp.int32]
        assert len(counts) == 2 and all((x == 1).all() for x in counts)
        moved = jax.tree.map(lambda a, b: not (a == b).all(), before, now)
        assert sum(jax.tree.leaves(moved)) >= 5  # a mean of zeros stays


@pytest.mark.full
@pytest.mark.parametrize("name", ["td3", "sac"])
def test_learns_values_without_targets(name):
    algorithm, env, obs = ALGORITHMS[name], probe("delay"), jnp.array([[0.0], [1.0]])
    cold = {"learn_temperature": False, "temperature": 1e-6} if name == "sac" else {}
    changes = {"batch_norm": True, "tau": algorithm.Config().tau} | cold
    config, state, metrics = trained(algorithm, env, 1_000, **changes)
    assert all(jnp.isfinite(m.sum) for m in metrics.values())
    found = values(algorithm, config, env, state, obs)
    np.testing.assert_allclose(found, [0.9, 1.0], atol=0.1)


@pytest.mark.parametrize(
    "env, changes, message",
    [
        (ENV, {"tau": 0.1}, "tau = 0.1 .* leave it at 0.005"),
        (ENV, {"dropout": 0.1}, "dropout = 0.1 .* batch_norm = True"),
        (
            ENV,
            {"network": "mlp_layer_norm"},
            "batch_norm = True needs .* 'mlp_layer_norm'",
        ),
        (make("Breakout-MinAtar"), {}, "batch_norm = True needs .* 'auto'"),
    ],
)
def test_what_does_not_go_with_batch_norm_is_refused(env, changes, message):
    sac = ALGORITHMS["sac"]
    with pytest.raises(InvalidInput, match=message):
        sac.validate(tiny(sac, batch_norm=True, **changes), env)
