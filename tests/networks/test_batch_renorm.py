"""Batch renormalisation against a plain loop, in training and in evaluation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.networks import batch_renorm
from jaxrl.networks.batch_renorm import BatchRenorm

KEY = jax.random.key(0)


def by_hand(batches, scale, bias, warmup, momentum=0.99, epsilon=1e-3):
    """Algorithm 1 of Ioffe (2017) in float64: outputs, running mean and variance."""
    mean, var = np.zeros(batches.shape[-1]), np.ones(batches.shape[-1])
    outputs = []
    for count, x in enumerate(np.asarray(batches, np.float64)):
        m, v = x.mean(0), x.var(0)
        s, running = np.sqrt(v + epsilon), np.sqrt(var + epsilon)
        r, d = 1.0, 0.0
        if count >= warmup:
            r = np.clip(s / running, 1 / 3, 3)
            d = np.clip((m - mean) / running, -5, 5)
        outputs.append(scale * ((x - m) / s * r + d) + bias)
        mean, var = momentum * mean + 0.01 * m, momentum * var + 0.01 * v
    return np.stack(outputs), mean, var


def test_several_batches_equal_a_plain_loop():
    """With batches whose r and d are clipped, and others whose are not."""
    spread = jnp.array([0.5, 1.0, 30.0])
    batches = 4.0 + spread * jax.random.normal(KEY, (6, 16, 3))
    net = BatchRenorm(warmup=2)
    learned, statistics = batch_renorm.split(net.init(KEY, batches[0]))
    learned = {"params": {"scale": jnp.array([1.0, 2.0, 3.0]), "bias": jnp.ones(3)}}
    train, found = jax.jit(partial(batch_renorm.apply, net, training=True)), []
    for x in batches:
        y, statistics = train(batch_renorm.join(learned, statistics), x)
        found.append(y)
    outputs, mean, var = by_hand(batches, np.array([1.0, 2.0, 3.0]), 1.0, warmup=2)
    np.testing.assert_allclose(jnp.stack(found), outputs, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(statistics["mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(statistics["var"], var, rtol=1e-4)
    assert int(statistics["count"]) == 2  # as many as matter


def test_where_nothing_is_clipped_training_equals_evaluation():
    x = 0.3 + 1.2 * jax.random.normal(KEY, (64, 2))
    net = BatchRenorm(warmup=0)
    variables = net.init(KEY, x)
    assert (variables["batch_stats"]["mean"] == 0).all()  # not those of the example
    trained, after = batch_renorm.apply(net, variables, x, training=True)
    evaluated, same = batch_renorm.apply(net, variables, x, training=False)
    np.testing.assert_allclose(trained, evaluated, atol=1e-5)
    assert same is variables["batch_stats"] and (after["mean"] != 0).all()


def test_the_gradient_of_a_normalised_batch_ignores_shift_and_scale():
    """Through the batch's statistics, but not through r and d."""
    x = jax.random.normal(KEY, (8, 2))
    net = BatchRenorm(warmup=0)
    variables = net.init(KEY, x)

    def loss(x):
        y, _ = batch_renorm.apply(net, variables, x, training=True)
        return (jnp.arange(8.0)[:, None] * y).sum()

    gradient = jax.jit(jax.grad(loss))(x)
    np.testing.assert_allclose(gradient.sum(0), 0.0, atol=1e-4)
    centred = x - x.mean(0)
    slack = 1e-3 / (x.var(0) + 1e-3) * jnp.abs(gradient * centred).sum(0)
    assert (jnp.abs((gradient * centred).sum(0)) <= slack + 1e-4).all()
