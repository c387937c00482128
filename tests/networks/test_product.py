"""The matrix product of the linear layers is the plain one, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.networks.product import matrix_product
from jaxrl.networks.torso import dense

KEY = jax.random.key(0)


def product(x, w):
    return matrix_product(x, w, (((x.ndim - 1,), (0,)), ((), ())), precision=None)


def data(batch):
    keys = jax.random.split(KEY, 3)
    shapes = (*batch, 5), (5, 4), (*batch, 4)
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def close(found, expected):
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert a.dtype == jnp.float32 and a.shape == b.shape
        assert np.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [(), (7,), (3, 2), (2, 3, 2)], ids=str)
def test_the_product_and_its_gradients_are_those_of_matmul(batch):
    x, w, dy = data(batch)

    def gradients(multiply):
        y, pull_back = jax.vjp(multiply, x, w)
        return y, pull_back(dy)

    close(jax.jit(lambda: gradients(product))(), gradients(jnp.matmul))


def test_the_second_derivatives_are_those_of_matmul():
    x, w, dy = data((3, 2))

    def squared_gradient(multiply):
        def loss(x, w):
            return (jnp.tanh(multiply(x, w)) * dy).sum()

        def penalty(x, w):
            return sum((g**2).sum() for g in jax.grad(loss, (0, 1))(x, w))

        return jax.grad(penalty, (0, 1))(x, w)

    close(jax.jit(lambda: squared_gradient(product))(), squared_gradient(jnp.matmul))


def test_a_population_of_products():
    x, w, _ = data((3, 6))  # three members, six rows each
    w = jnp.stack([w, 2 * w, -w])

    def gradient(multiply):
        def loss(w, x):
            return (multiply(x, w) ** 2).sum()

        return jax.vmap(jax.grad(loss, (0, 1)))(w, x)

    close(jax.jit(lambda: gradient(product))(), gradient(jnp.matmul))


def test_other_products_are_refused():
    x, w, _ = data((7,))
    with pytest.raises(NotImplementedError, match="linear layer"):
        matrix_product(x.T, w, (((0,), (0,)), ((), ())))


def test_the_layers_of_the_networks_use_it():
    layer, x = dense(4), jnp.ones((2, 3, 5))
    params = layer.init(KEY, x)
    kernel, bias = params["params"]["kernel"], params["params"]["bias"] + 0.5
    params = {"params": {"kernel": kernel, "bias": bias}}
    np.testing.assert_allclose(layer.apply(params, x), x @ kernel + 0.5, atol=1e-6)
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda p: layer.apply(p, x).sum()))(params))
    assert "optimization_barrier" in jaxpr
