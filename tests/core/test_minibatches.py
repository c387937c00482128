"""Shuffling without sorting: each number once, and orders uniformly distributed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxrl.core.minibatches import (
    WIDEST,
    _grid,
    minibatches,
    random_permutation,
    reader,
)

KEY = jax.random.key(0)
NUM_KEYS = 2_000


def orders(size):
    """Orders `[NUM_KEYS, size]`."""
    keys = jax.random.split(KEY, NUM_KEYS)
    return np.asarray(
        jax.jit(jax.vmap(lambda key: random_permutation(key, size)))(keys)
    )


@pytest.mark.parametrize(
    "size",
    [1, 2, 7, 16, 101, 202, 255, 256, 257, 272, 512, 1000, 1009, 2018, 2048, 8192],
)
def test_every_number_comes_exactly_once(size):
    order = random_permutation(KEY, size)
    assert order.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(size))
    if size > 100:
        assert not np.array_equal(order, random_permutation(jax.random.key(1), size))


def p_value(counts, expected):
    """p-value of a chi-square test; 0.1 % is the smallest expected of a thousand tests."""
    statistic = ((counts - expected) ** 2 / expected).sum(-1)
    return scipy.stats.chi2.sf(statistic, counts.shape[-1] - 1)


@pytest.mark.parametrize("size", [256, 512, 1000])
def test_every_number_is_as_likely_everywhere(size):
    drawn = orders(size)
    # Where in the order, in eighths, each of the numbers comes: [size, 8].
    where = np.argsort(drawn, axis=1) * 8 // size
    counts = np.stack([(where == eighth).sum(0) for eighth in range(8)], -1)
    smallest = p_value(counts, NUM_KEYS / 8).min()
    assert smallest > 1e-3 / size
    # A shuffle that never moves a number from its half is what this would see.
    counts[0] = np.repeat([NUM_KEYS / 4, 0], 4)
    assert p_value(counts, NUM_KEYS / 8).min() < 1e-9
    # The last number of the order, in all the values that it can take.
    counts = np.bincount(drawn[:, -1] * 16 // size, minlength=16)
    assert p_value(counts, NUM_KEYS / 16) > 1e-3


@pytest.mark.parametrize("num_minibatches", [4, 8])
@pytest.mark.parametrize("size", [256, 1024])
def test_two_numbers_meet_in_a_minibatch_as_often_as_in_a_uniform_order(
    size, num_minibatches
):
    drawn = orders(size)
    rows, columns = _grid(size)
    minibatch = np.argsort(drawn, axis=1) * num_minibatches // size
    in_minibatch = size // num_minibatches
    expected = (in_minibatch - 1) / (size - 1)
    number = np.arange(size)
    pairs = {
        "neighbours": (number[:-1], number[1:]),
        "of one row": (number[::columns], number[::columns] + columns // 2),
        "of one column": (number[:columns], number[:columns] + columns * (rows // 2)),
        "next in a column": (number[:-columns], number[columns:]),
        "far apart": (number[: size // 2], number[: size // 2 - 1 : -1]),
    }
    for name, (one, other) in pairs.items():
        together = (minibatch[:, one] == minibatch[:, other]).mean(0)  # of each pair
        error = np.sqrt(expected * (1 - expected) / NUM_KEYS)
        # Each pair, and all pairs of a kind together: their keys are the same, so the
        # mean may be off by more than independent pairs would be.
        assert np.abs(together - expected).max() < 5 * error, name
        assert abs(together.mean() - expected) < 3 * error / np.sqrt(10), name


def test_every_epoch_is_a_new_order_cut_into_minibatches():
    index = minibatches(KEY, 256, num_epochs=3, num_minibatches=4)
    assert index.shape == (12, 64) and index.dtype == jnp.int32
    epochs = np.asarray(index).reshape(3, 256)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(256), (3, 1)))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        same = (epochs[one] == epochs[other]).sum()
        assert same < 10  # one on average
    assert not np.array_equal(index, minibatches(jax.random.key(1), 256, 3, 4))


@pytest.mark.parametrize("size, sorts", [(512, False), (8192, False), (64, True)])
def test_only_what_has_no_grid_is_sorted(size, sorts):
    program = jax.jit(lambda key: minibatches(key, size, 2, 4)).lower(KEY).as_text()
    assert ("stablehlo.sort" in program) == sorts


@pytest.mark.parametrize(
    "size, grid",
    [(256, (16, 16)), (8192, (64, 128)), (1000, (25, 40)), (202, (2, 101))],
)
def test_the_grid_is_as_square_as_it_can_be(size, grid):
    assert _grid(size) == grid


def test_a_reader_reads_every_array_at_the_index():
    batch = {
        "float": jax.random.normal(KEY, (2, 12)),
        "rows": jax.random.normal(KEY, (2, 12, 3, 2)),
        "int": jnp.arange(24).reshape(2, 12) - 7,
        "bool": jnp.arange(24).reshape(2, 12) % 3 == 0,
        "image": jnp.arange(2 * 12 * 5, dtype=jnp.uint8).reshape(2, 12, 5),
        "wide": jax.random.normal(KEY, (2, 12, WIDEST + 1)),
        "special": jnp.full((2, 12), jnp.nan).at[0].set(-0.0),
        "nothing": (),
    }
    index = jnp.array([5, 0, 11, 5])
    found = jax.jit(lambda batch: reader(batch)(index))(batch)
    expected = jax.tree.map(lambda x: x[:, index], batch)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
