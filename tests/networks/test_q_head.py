"""Heads of Q-networks: shapes, streams, levels, and the noise of weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import networks, spaces
from jaxrl.networks import MLP, Body, Head, QNetwork
from jaxrl.networks.q_head import NoisyDense

KEY = jax.random.key(0)
OBS = jnp.linspace(-1.0, 1.0, 10).reshape(5, 2)


def network(**options):
    body = Body(MLP((4,), "relu"))
    return QNetwork(spaces.box(-1, 1, (2,)), 3, body, Head(**options))


HEADS = {
    "plain": ({}, (5, 3)),
    "distribution": ({"size": 6}, (5, 3, 6)),
    "levels": ({"num_cosines": 8}, (5, 3, 7)),
}


@pytest.mark.parametrize("noisy_std", [None, 0.5])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("sizes", [(), (4,)])
@pytest.mark.parametrize("kind", HEADS)
def test_every_combination_has_outputs_of_each_action(kind, sizes, dueling, noisy_std):
    options, shape = HEADS[kind]
    net = network(**options, hidden_sizes=sizes, dueling=dueling, noisy_std=noisy_std)
    levels = jnp.linspace(0.1, 0.9, 7) if kind == "levels" else None
    params = jax.eval_shape(partial(networks.init, net), KEY)

    def apply(params, obs, each_row):
        return net.apply(params, obs, None, levels, each_row, rngs={"noise": KEY})

    for each_row in (False, True):
        found = jax.eval_shape(lambda p: apply(p, OBS, each_row), params)  # noqa: B023
        assert found.shape == shape


def test_the_default_is_one_linear_layer_behind_the_body():
    shapes = jax.eval_shape(partial(networks.init, network()), KEY)["params"]
    assert sorted(shapes) == ["Dense_0", "MLP_0"]
    assert shapes["Dense_0"]["kernel"].shape == (4, 3)


@pytest.mark.full
def test_advantages_have_mean_zero_over_the_actions():
    """What the state's stream says is the mean over the actions, of each output."""
    for size in (0, 2):
        net = network(size=size, dueling=True)
        params = networks.init(net, KEY)
        out = net.apply(params, OBS)
        last = params["params"]["Dense_1"]  # the second stream is the state's
        without = jax.tree.map(jnp.zeros_like, last)
        left = net.apply({"params": params["params"] | {"Dense_1": without}}, OBS)
        np.testing.assert_allclose(left.mean(1), 0.0, atol=1e-6)
        assert not np.allclose(out.mean(1), 0.0, atol=1e-3)


@pytest.mark.full
def test_levels_of_all_rows_are_those_of_each():
    net = network(num_cosines=8)
    params = networks.init(net, KEY)
    levels = jnp.array([0.2, 0.7])
    shared = net.apply(params, OBS, None, levels)
    each = net.apply(params, OBS, None, jnp.broadcast_to(levels, (5, 2)))
    np.testing.assert_allclose(shared, each, atol=1e-6)
    assert not np.allclose(shared[..., 0], shared[..., 1], atol=1e-3)


def test_cosine_features_by_hand():
    """One action, weights of one: the output is the sum of ψ ⊙ relu(Σ_i cos(π i τ))."""
    net = QNetwork(
        spaces.box(-1, 1, (2,)), 1, Body(MLP((), "relu")), Head(num_cosines=3)
    )
    params = jax.tree.map(jnp.ones_like, networks.init(net, KEY))
    params = jax.tree.map(lambda x: x if x.ndim == 2 else 0.0 * x, params)
    found = net.apply(params, jnp.array([[2.0, 3.0]]), None, jnp.array([[0.0, 0.25]]))
    np.testing.assert_allclose(
        found, [[[5 * 3.0, 5 * (1.0 + np.cos(np.pi / 4))]]], rtol=1e-5
    )


def test_noise_is_factorised_as_published():
    """The weights of a noisy layer, found from its outputs, against the formula."""
    layer = NoisyDense(3, 0.5)
    params = layer.init(KEY, jnp.zeros((1, 2)))["params"]
    np.testing.assert_allclose(params["kernel_std"], 0.5 / 2**0.5)
    assert (jnp.abs(params["kernel"]) <= 2**-0.5).all()
    x = jnp.concatenate([jnp.zeros((1, 2)), jnp.eye(2)])
    with_noise = layer.apply({"params": params}, x, rngs={"noise": jax.random.key(3)})
    bias = with_noise[0]
    after = (bias - params["bias"]) / params["bias_std"]  # f(ε)
    extra = (with_noise[1:] - bias - params["kernel"]) / params["kernel_std"]
    before = extra[:, 0] / after[0]  # f(ε')
    np.testing.assert_allclose(extra, jnp.outer(before, after), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        layer.apply({"params": params}, x), x @ params["kernel"] + params["bias"]
    )


@pytest.mark.full
def test_noise_is_one_for_all_rows_or_one_for_each():
    same = jnp.ones((2_000, 2))
    shared, each = NoisyDense(3, 0.5), NoisyDense(3, 0.5, each_row=True)
    params = shared.init(KEY, same)
    one = shared.apply(params, same, rngs={"noise": KEY})
    assert (one == one[:1]).all()
    many = each.apply(params, same, rngs={"noise": KEY})
    assert len(np.unique(np.asarray(many[:, 0]))) > 1_990
    quiet = shared.apply(params, same)[0]
    # E f(ε)² = E|ε| = √(2/π) =: c, so the variance is σ² (2 c² + c) for two inputs.
    c = (2 / np.pi) ** 0.5
    np.testing.assert_allclose(many.mean(0), quiet, atol=0.05)
    np.testing.assert_allclose(many.var(0), 0.125 * (2 * c**2 + c), rtol=0.2)


def test_noise_for_each_row_is_the_same_layer():
    """A single row has the same law: with the same numbers the same output."""
    x = jnp.array([[0.3, -2.0]])
    shared, each = NoisyDense(3, 0.5), NoisyDense(3, 0.5, each_row=True)
    params = shared.init(KEY, x)
    rngs = {"noise": KEY}
    np.testing.assert_allclose(
        shared.apply(params, x, rngs=rngs), each.apply(params, x, rngs=rngs), rtol=1e-5
    )


@pytest.mark.full
def test_levels_of_a_row_have_the_same_noise():
    net = network(num_cosines=8, noisy_std=0.5)
    params, level = networks.init(net, KEY), jnp.full(4, 0.3)
    out = net.apply(params, OBS, None, level, True, rngs={"noise": KEY})
    np.testing.assert_allclose(
        out, jnp.broadcast_to(out[..., :1], out.shape), atol=1e-5
    )
    same = net.apply(params, 0.0 * OBS, None, level, True, rngs={"noise": KEY})
    assert len(np.unique(np.asarray(same[:, 0, 0]))) == 5
