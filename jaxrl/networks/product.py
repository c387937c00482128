"""The matrix product of the linear layers, arranged for the CPU.

XLA's CPU backend has a fast path for `[M, K] @ [K, N]`. It does not recognise it with more
batch axes, nor in `xᵀ dy`, the gradient of the weights. Asked for in the form it knows, a
gradient of two 64-64 networks takes 5.2 instead of 11.7 ms for 8,192 rows and 110 instead
of 162 µs for 128 rows (benchmarks/tricks.py). Other devices get the plain product.
"""

from typing import Any

import jax

from jaxrl.types import Array


def matrix_product(x: Array, w: Array, dimension_numbers: Any, **options: Any) -> Array:
    """`x @ w` for `x` `[..., K]` and `w` `[K, N]`, as flax's `dot_general` argument.

    Differentiable in reverse, any number of times; not by `jax.jvp` alone.
    """
    del options
    if dimension_numbers != (((x.ndim - 1,), (0,)), ((), ())):
        raise NotImplementedError("matrix_product is the product of a linear layer")
    return _product(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _product(x: Array, w: Array) -> Array:
    return x @ w


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ w, (x, w)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = saved

    def transposed_first(x: Array, dy: Array) -> Array:
        # Without the barrier XLA folds the transpose into the product again.
        return jax.lax.optimization_barrier(x.T) @ dy

    def plain(x: Array, dy: Array) -> Array:
        return x.T @ dy

    dw = jax.lax.platform_dependent(x, dy, cpu=transposed_first, default=plain)
    return dy @ w.T, dw


_product.defvjp(_forward, _backward)
