"""Weight initialisers without a LAPACK call.

`jax.nn.initializers.orthogonal` needs a QR decomposition. On CPU that is a LAPACK call,
and several batched ones in one program (a `vmap` over seeds) can deadlock on a machine
with few cores; on an accelerator it is slow. The loop below has neither trouble.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl.types import Array

Initializer = Callable[..., Array]


def orthogonal(scale: float = 1.0) -> Initializer:
    """A random orthogonal matrix times `scale`, as `init(key, shape, dtype)`.

    W Wᵀ = scale² I or Wᵀ W = scale² I, whichever side is the shorter

    The last axis is the features and the others are flattened, so a convolution kernel
    is a matrix too. A Gaussian matrix does not change its law under a rotation, and
    neither does Gram-Schmidt on it: the result is uniform (Haar) by construction.

    Args:
      scale: the factor, e.g. √2 before a ReLU, 0.01 for the last layer of a policy.

    Returns:
      The initialiser; it raises ValueError for shapes of fewer than two axes.

    Source: Saxe et al. (2014), https://arxiv.org/abs/1312.6120.
    """

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        if len(shape) < 2:
            raise ValueError(f"orthogonal() needs two axes or more, got {shape}")
        features, inputs = shape[-1], math.prod(shape[:-1])
        short, long = sorted((features, inputs))
        rows = _orthonormal_rows(jax.random.normal(key, (short, long)))
        matrix = rows if inputs <= features else rows.T
        return (scale * matrix).reshape(shape).astype(dtype)

    return init


def _orthonormal_rows(gaussian: Array) -> Array:
    """Classical Gram-Schmidt, each projection done twice.

    One pass leaves errors that grow with the condition of the matrix; a second one
    brings them to rounding level: "twice is enough" (Giraud et al. 2005, "Rounding
    error analysis of the classical Gram-Schmidt orthogonalization process").
    """
    exact = jax.lax.Precision.HIGHEST  # an accelerator would otherwise round to TF32

    def remove_projection(basis: Array, row: Array) -> Array:
        overlap = jnp.matmul(basis, row, precision=exact)
        return row - jnp.matmul(overlap, basis, precision=exact)

    def add_row(i: Array, basis: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(gaussian, i, keepdims=False)
        row = remove_projection(basis, remove_projection(basis, row))
        row = row / jnp.sqrt(jnp.sum(jnp.square(row)))
        return jax.lax.dynamic_update_index_in_dim(basis, row, i, 0)

    return jax.lax.fori_loop(0, len(gaussian), add_row, jnp.zeros_like(gaussian))
