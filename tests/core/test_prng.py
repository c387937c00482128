"""The same numbers as JAX's own generator, from a program without a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.core import prng

SEEDS = (0, 1, 2**31 - 1)

DRAWS = {
    "bits": jax.random.bits,
    "bits of 8": lambda key: jax.random.bits(key, (3, 5), jnp.uint8),
    "bits of 16": lambda key: jax.random.bits(key, (7,), jnp.uint16),
    "bits of 32": lambda key: jax.random.bits(key, (2, 3, 5)),
    "no bits": lambda key: jax.random.bits(key, (0, 3)),
    "uniform": lambda key: jax.random.uniform(key, (17,), minval=-2.0, maxval=3.0),
    "normal": lambda key: jax.random.normal(key, (4, 5)),
    "randint": lambda key: jax.random.randint(key, (33,), -5, 1000),
    "gumbel": lambda key: jax.random.gumbel(key, (6, 3)),
    "permutation": lambda key: jax.random.permutation(key, 50),
    "split": lambda key: jax.random.key_data(jax.random.split(key)),
    "split odd": lambda key: jax.random.key_data(jax.random.split(key, 3)),
    "split grid": lambda key: jax.random.key_data(jax.random.split(key, (2, 3))),
    "fold_in": lambda key: jax.random.key_data(jax.random.fold_in(key, 12345)),
    "child": lambda key: jax.random.uniform(
        jax.random.fold_in(jax.random.split(key, 4)[3], 7), (3,)
    ),
}


def assert_same_bits(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(
        np.asarray(found).reshape(-1).view(np.uint8),
        np.asarray(expected).reshape(-1).view(np.uint8),
    )


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_numbers_are_jaxs(draw):
    compiled = jax.jit(draw)
    for seed in SEEDS:
        assert_same_bits(compiled(prng.key(seed)), draw(jax.random.key(seed)))


@pytest.mark.parametrize("name", ["bits of 16", "normal", "split grid", "fold_in"])
def test_the_numbers_are_jaxs_under_vmap(name):
    keys = jnp.stack([prng.key(seed) for seed in SEEDS])
    expected = [DRAWS[name](jax.random.key(seed)) for seed in SEEDS]
    assert_same_bits(jax.vmap(DRAWS[name])(keys), jnp.stack(expected))


def test_the_key_of_a_seed_is_jaxs():
    for seed in SEEDS:
        assert_same_bits(
            jax.random.key_data(prng.key(seed)),
            jax.random.key_data(jax.random.key(seed)),
        )
    traced = jax.jit(lambda seed: jax.random.key_data(prng.key(seed)))(jnp.int32(7))
    assert_same_bits(traced, jax.random.key_data(jax.random.key(7)))


def test_another_fold_gives_another_key():
    folded = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))(
        prng.key(0), jnp.arange(3)
    )
    expected = [
        jax.random.key_data(jax.random.fold_in(jax.random.key(0), i)) for i in range(3)
    ]
    assert_same_bits(jax.random.key_data(folded), jnp.stack(expected))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of the CPU's program")
def test_a_draw_is_a_program_without_a_loop():
    def draw(key):
        return jax.random.uniform(jax.random.split(key)[1], (100,))

    def loops(key):
        return jax.jit(draw).lower(key).compile().as_text().count(" while(")

    assert loops(prng.key(0)) == 0
    assert loops(jax.random.key(0)) > 0  # or `prng` has no reason to exist


def test_more_numbers_than_a_counter_holds_are_refused():
    with pytest.raises(NotImplementedError, match="2\\^32 or more"):
        jax.jit(lambda key: jax.random.bits(key, (2**16, 2**16))).lower(prng.key(0))
