"""The orthogonal initialiser: orthogonal, uniform, and free of LAPACK."""

import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn.initializers import orthogonal as qr_initializer

from jaxrl.networks.initializers import orthogonal

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "shape", [(8, 3), (3, 8), (64, 64), (512, 64), (1, 5), (5, 1), (3, 3, 4, 16)]
)
@pytest.mark.parametrize("scale", [1.0, 2.0**0.5])
def test_the_shorter_side_is_orthonormal(shape, scale):
    kernel = orthogonal(scale)(KEY, shape)
    assert kernel.shape == shape
    assert kernel.dtype == jnp.float32
    matrix = np.float64(kernel).reshape(-1, shape[-1])
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows < columns else matrix.T @ matrix
    np.testing.assert_allclose(gram, scale**2 * np.eye(len(gram)), atol=1e-5)


def test_square_matrices_are_orthogonal_for_many_seeds():
    # A square Gaussian matrix is now and then nearly singular: one pass would not do.
    keys = jax.random.split(KEY, 50)
    matrices = jax.jit(jax.vmap(lambda key: orthogonal()(key, (16, 16))))(keys)
    gram = np.einsum("kij,kil->kjl", *[np.float64(matrices)] * 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(16), gram.shape), atol=1e-5)


def test_the_law_is_uniform():
    # Haar on O(3): each column is uniform on the sphere, and det is a fair coin. QR
    # without a sign convention fails the first: its diagonal leans to one side.
    keys = jax.random.split(KEY, 4000)
    matrices = jax.jit(jax.vmap(lambda key: orthogonal()(key, (3, 3))))(keys)
    np.testing.assert_allclose(matrices.mean(0), np.zeros((3, 3)), atol=0.04)
    np.testing.assert_allclose((matrices**2).mean(0), np.full((3, 3), 1 / 3), atol=0.03)
    np.testing.assert_allclose(np.linalg.det(matrices).mean(), 0.0, atol=0.06)


def test_other_dtypes_and_too_few_axes():
    assert orthogonal()(KEY, (4, 4), jnp.bfloat16).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="two axes"):
        orthogonal()(KEY, (4,))


def compiled(init):
    """The program of `init` over eight seeds, as traced and as compiled."""
    lowered = jax.jit(jax.vmap(init)).lower(jax.random.split(KEY, 8))
    return lowered.as_text(), lowered.compile().as_text()


DECOMPOSITION = r"lapack|cusolver|geqrf|orgqr|householder"


def test_no_library_is_called():
    def init(key):
        return orthogonal()(key, (32, 32)), orthogonal()(key, (3, 3, 2, 8))

    traced, optimised = compiled(init)
    assert "custom_call" not in traced
    # An accelerator's matrix products may be library calls; decompositions are not.
    assert not re.search(DECOMPOSITION, traced + optimised)


def test_the_check_above_would_see_a_decomposition():
    traced, optimised = compiled(lambda key: qr_initializer()(key, (8, 8)))
    assert "custom_call" in traced
    assert re.search(DECOMPOSITION, optimised)


PROGRAM = """
    import jax
    import jax.numpy as jnp
    from jaxrl.networks.initializers import orthogonal

    SHAPES = [(4, 64), (64, 64), (64, 2)]

    def network(params, x):
        for kernel in params:
            x = jnp.tanh(x @ kernel)
        return jnp.mean(x)

    def train(key):
        keys = jax.random.split(key, (2, 3))
        params = [
            [orthogonal()(k, s) for k, s in zip(row, SHAPES)] for row in keys
        ]

        def step(params, x):
            loss = lambda params: sum(network(p, x) for p in params)
            value, grads = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

        return jax.lax.scan(step, params, jnp.ones((5, 8, 4)))[1]

    keys = jax.random.split(jax.random.key(0), 8)
    print(jax.jit(jax.vmap(train))(keys).shape)
"""


@pytest.mark.full
def test_a_vmapped_train_function_does_not_hang():
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.strip() == "(8, 5)", result.stderr
