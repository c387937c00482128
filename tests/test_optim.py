"""Optimiser pieces: known gradients, exact ends, and traced hyper-parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import optim
from jaxrl.types import counter
from tests.support.small import assert_trees_equal

PARAMS = {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array([0.5])}
GRADS = {"w": jnp.array([[3.0, 0.0]]), "b": jnp.array([4.0])}  # of norm 5


def clipped(grads, max_grad_norm):
    """What Adam is fed: the first moment after one step is (1 - b1) times it."""
    optimizer = optim.adam(max_grad_norm, b1=0.0)
    return optimizer.update(grads, optimizer.init(grads))[1][1].mu


def test_the_clip_is_of_the_global_norm():
    # Element by element, a clip at 1 would give 1 and 1: another direction, norm √2.
    for name, expected in {"w": [[0.6, 0.0]], "b": [0.8]}.items():
        np.testing.assert_allclose(clipped(GRADS, 1.0)[name], expected, rtol=1e-6)
    np.testing.assert_allclose(optax.tree.norm(clipped(GRADS, 1.0)), 1.0, rtol=1e-6)


@pytest.mark.parametrize("max_grad_norm", [None, 5.1])
def test_a_small_gradient_is_not_clipped(max_grad_norm):
    for name, expected in GRADS.items():
        np.testing.assert_array_equal(clipped(GRADS, max_grad_norm)[name], expected)


def test_the_state_has_one_structure_with_and_without_a_clip():
    states = [optim.adam(norm).init(PARAMS) for norm in (None, 0.5)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_steps_equal_adam_by_hand():
    optimizer = optim.adam(None, eps=1e-5, b1=0.9, b2=0.999)
    params, opt_state = PARAMS, optimizer.init(PARAMS)
    first, second, expected = 0.0, 0.0, np.float64(PARAMS["w"])
    for t in range(1, 6):
        grads = jax.tree.map(lambda g, t=t: g * t - 1.0, GRADS)
        params, opt_state = optim.apply(optimizer, params, opt_state, grads, 0.1 / t)
        gradient = np.float64(grads["w"])
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        direction = first / (1 - 0.9**t)
        direction /= np.sqrt(second / (1 - 0.999**t)) + 1e-5
        expected = expected - 0.1 / t * direction
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5)


def test_steps_equal_radam_by_hand():
    """With b2 = 0.9 the variance is rectified from the seventh step on."""
    optimizer = optim.radam(None, eps=1e-5, b1=0.8, b2=0.9)
    params, opt_state = PARAMS, optimizer.init(PARAMS)
    first, second, expected = 0.0, 0.0, np.float64(PARAMS["w"])
    longest, rectified = 2 / (1 - 0.9) - 1, []
    for t in range(1, 10):
        grads = jax.tree.map(lambda g, t=t: g * t - 1.0, GRADS)
        params, opt_state = optim.apply(optimizer, params, opt_state, grads, 0.1 / t)
        gradient = np.float64(grads["w"])
        first = 0.8 * first + 0.2 * gradient
        second = 0.9 * second + 0.1 * gradient**2
        direction = first / (1 - 0.8**t)
        length = longest - 2 * t * 0.9**t / (1 - 0.9**t)
        rectified.append(length >= 5)
        if length >= 5:
            r = (length - 4) * (length - 2) * longest
            r /= (longest - 4) * (longest - 2) * length
            direction *= r**0.5 / (np.sqrt(second / (1 - 0.9**t)) + 1e-5)
        expected = expected - 0.1 / t * direction
    assert True in rectified and False in rectified
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5)


def test_steps_equal_rmsprop_by_hand():
    optimizer = optim.rmsprop(2.5, eps=1e-3, decay=0.9)  # halves a gradient of norm 5
    params, opt_state = PARAMS, optimizer.init(PARAMS)
    second, expected = 1.0, np.float64(PARAMS["w"])
    for t in range(1, 4):
        params, opt_state = optim.apply(optimizer, params, opt_state, GRADS, 0.1 / t)
        gradient = np.float64(GRADS["w"]) / 2
        second = 0.9 * second + 0.1 * gradient**2
        expected = expected - 0.1 / t * gradient / np.sqrt(second + 1e-3)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5)


def test_hyper_parameters_can_be_swept():
    def step(max_grad_norm, learning_rate):
        optimizer = optim.adam(max_grad_norm, eps=1.0)
        opt_state = optimizer.init(PARAMS)
        return optim.apply(optimizer, PARAMS, opt_state, GRADS, learning_rate)[0]

    norms, rates = jnp.array([0.1, 1.0, 10.0]), jnp.array([0.0, 1e-2, 1e-1])
    swept = jax.jit(jax.vmap(step))(norms, rates)
    for i in range(3):
        alone = step(float(norms[i]), float(rates[i]))
        for name in PARAMS:
            np.testing.assert_allclose(swept[name][i], alone[name], rtol=1e-6)
    np.testing.assert_array_equal(swept["w"][0], PARAMS["w"])


def test_parameters_keep_their_dtype():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    optimizer = optim.adam(1.0)
    rate = jnp.float32(1e-2)
    new, _ = optim.apply(optimizer, params, optimizer.init(params), params, rate)
    assert new["w"].dtype == jnp.bfloat16


def test_linear_schedule():
    schedule = jax.vmap(lambda f: optim.linear_schedule(0.3, 0.1, f))
    values = schedule(jnp.array([-1.0, 0.0, 0.5, 1.0, 2.0]))
    np.testing.assert_allclose(values, [0.3, 0.3, 0.2, 0.1, 0.1], rtol=1e-6)
    assert values[1] == jnp.float32(0.3)
    assert values[3] == jnp.float32(0.1)


def bits(x):
    return np.asarray(x).view(np.uint32)


@pytest.mark.parametrize("make_tau", [float, jnp.float32])
def test_polyak_is_exact_at_both_ends(make_tau):
    target = jnp.array([1e-30, -0.0, 0.1, 1e30])
    params = jnp.array([jnp.inf, 0.3, -0.0, jnp.nan])
    kept = optim.polyak({"w": target}, {"w": params}, make_tau(0.0))["w"]
    np.testing.assert_array_equal(bits(kept), bits(target))
    copied = optim.polyak({"w": params}, {"w": target}, make_tau(1.0))["w"]
    np.testing.assert_array_equal(bits(copied), bits(target))


def test_polyak_hand_numbers():
    mixed = optim.polyak(jnp.array([1.0, 2.0]), jnp.array([5.0, 2.0]), 0.25)
    np.testing.assert_allclose(mixed, [2.0, 2.0], rtol=1e-6)


def test_progress():
    assert optim.progress(counter(0), 100) == 0.0
    assert optim.progress(counter(25), 100) == 0.25
    assert optim.progress(counter(200), 100) == 1.0
    # Step counts past 2^32, as a number and as an array.
    assert optim.progress(counter(2**40), 2**42) == 0.25
    assert optim.progress(counter(2**40), jnp.float32(2**42)) == 0.25
    assert optim.progress(counter(1), 3).dtype == jnp.float32


def test_flat_gives_the_tree_back():
    params = {
        "w": jnp.arange(6.0).reshape(2, 3),
        "b": (jnp.array([7.0]), jnp.zeros(())),
    }
    vector, unflatten = optim.flat(params)
    assert vector.shape == (8,)
    np.testing.assert_array_equal(sorted(vector), [0, 0, 1, 2, 3, 4, 5, 7])
    assert_trees_equal(unflatten(vector), params)
    twice = unflatten(2 * vector)
    np.testing.assert_array_equal(twice["w"], [[0, 2, 4], [6, 8, 10]])
    assert twice["b"][0] == 14.0


def test_adam_on_the_vector_is_adam_on_the_tree():
    optimizer = optim.adam(1.0)
    vector, unflatten = optim.flat(PARAMS)
    tree, tree_state = PARAMS, optimizer.init(PARAMS)
    state = optimizer.init(vector)
    for t in range(4):
        grads = jax.tree.map(lambda g, t=t: g * t - 1.0, GRADS)
        flat_grads = optim.flat(grads)[0]
        tree, tree_state = optim.apply(optimizer, tree, tree_state, grads, 0.1)
        vector, state = optim.apply(optimizer, vector, state, flat_grads, 0.1)
    for name in PARAMS:
        np.testing.assert_allclose(unflatten(vector)[name], tree[name], rtol=1e-6)
        assert (tree[name] != PARAMS[name]).all()
