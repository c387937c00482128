"""JAX's random number generator, compiled to one operation on CPU instead of eighty.

The generator is JAX's own, Threefry-2x32 (Salmon et al., 2011, "Parallel random numbers:
as easy as 1, 2, 3"), and so is every bit that comes out: `split`, `fold_in` and all of
`jax.random` give the same numbers for a key made here as for `jax.random.key(seed)`. Only
the compiled program differs. On CPU, JAX keeps the twenty rounds in a loop, to compile
sooner; a train step of DQN has ten such loops. Here the rounds are written out, so that
they fuse, and a small draw takes less than half the time (benchmarks/tricks.py).

On other devices JAX writes the rounds out itself, so there `key` is `jax.random.key`.
"""

import math
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from jaxrl.types import Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def key(seed: int | Array) -> Array:
    """A key like `jax.random.key(seed)`, whose numbers are the same."""
    impl = _UNROLLED if jax.default_backend() == "cpu" else None
    return jax.random.key(seed, impl=impl)


def from_data(data: np.ndarray, dtype: Any) -> Array:
    """Keys of a dtype from their bits, the inverse of `jax.random.key_data`.

    Raises:
      TypeError: neither `key` nor `jax.random.key` makes keys of this dtype.
    """
    for example in (key(0), jax.random.key(0)):
        if example.dtype == dtype:
            impl = jax.random.key_impl(example)
            return jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
    raise TypeError(f"{dtype} is not a kind of key that this process makes.")


def _threefry(key: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """The block cipher: counters `x0`, `x1` of one shape, under a key uint32 `[2]`."""
    k0, k1 = key[0], key[1]
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = x0 + k0, x1 + k1
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
            x1 = x0 ^ x1
        x0 = x0 + schedule[(i + 1) % 3]
        x1 = x1 + schedule[(i + 2) % 3] + np.uint32(i + 1)
    # Keys are derived from keys: without a barrier XLA may fuse whole chains of ciphers and
    # recompute each for every use (jaxlib 0.11.2 then compiles for minutes).
    return jax.lax.optimization_barrier((x0, x1))


def _counters(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Indices of the elements of an array: their upper and lower 32 bits."""
    if math.prod(shape) >= 2**32:
        raise NotImplementedError(f"random numbers of shape {shape}: 2^32 or more.")
    low = jax.lax.iota(np.uint32, math.prod(shape)).reshape(shape)
    return jnp.zeros_like(low), low


def _seed(seed: Array | int) -> Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.stack(_threefry(key, *_counters(shape)), axis=-1)


def _fold_in(key: Array, data: Array | int) -> Array:
    counter = _seed(data)
    return jnp.stack(_threefry(key, counter[0], counter[1]))


def _random_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    high, low = _threefry(key, *_counters(shape))
    if bit_width == 64:
        return (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
    return (high ^ low).astype(f"uint{bit_width}")


_UNROLLED = jax.extend.random.define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="jaxrl_threefry2x32",
    tag="jfry",
)
