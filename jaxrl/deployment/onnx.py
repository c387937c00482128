"""Conversion of a pure function to ONNX by jax2onnx, and reading by onnxruntime."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import InvalidInput
from jaxrl.types import Array, PyTree


def serialize(
    function: Callable[..., dict[str, Array]], inputs: dict[str, PyTree]
) -> bytes:
    """Convert a function to the content of an ONNX file.

    Args:
      function: `(*inputs [N, ...]) -> {name: array [N, ...]}`.
      inputs: name -> shapes and dtypes of one row. A dict among them becomes several
        inputs, "obs.x" and "obs.y".

    Raises:
      InvalidInput: an operation cannot be converted to ONNX.
    """
    from jax2onnx import to_onnx

    names, rows, structure = _flatten(inputs)
    outputs: list[str] = []

    def flat_function(*arrays: Array) -> tuple[Array, ...]:
        result = function(*structure.unflatten(arrays))
        outputs[:] = result
        return tuple(result.values())

    one = [jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in rows]
    jax.eval_shape(flat_function, *one)  # for the names of the outputs
    batched: list[Any] = [
        jax.ShapeDtypeStruct(("batch", *x.shape), x.dtype)  # type: ignore[arg-type]
        for x in rows
    ]
    try:
        with _silence_converter(), _restore_numpy():
            model = to_onnx(
                flat_function,
                batched,
                model_name="jaxrl",
                input_names=names,
                output_names=outputs,
            )
    except Exception as error:  # the converter raises many kinds
        reason = str(error).split("\n")[0]
        raise InvalidInput(
            f"format = 'onnx': the policy cannot be translated ({reason}); "
            f"give format = 'stablehlo'."
        ) from error
    content: bytes = model.SerializeToString()
    return content


def make_reader(content: bytes) -> Callable[..., dict[str, np.ndarray]]:
    """Make a function of pytrees, in their order, from an ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )
    names = [x.name for x in session.get_inputs()]
    outputs = [x.name for x in session.get_outputs()]

    def call(*inputs: PyTree) -> dict[str, np.ndarray]:
        feed = dict(zip(names, jax.tree.leaves(inputs), strict=True))
        return dict(zip(outputs, session.run(None, feed), strict=True))

    return call


def _flatten(inputs: dict[str, PyTree]) -> tuple[list[str], list[Any], Any]:
    """Return names, rows, and the structure that the function takes."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tuple(inputs.values()))
    order = list(inputs)
    names = [
        ".".join([order[path[0].idx], *(str(key.key) for key in path[1:])])
        for path, _ in paths
    ]
    return names, [row for _, row in paths], structure


@contextmanager
def _silence_converter() -> Iterator[None]:
    """Silence warnings about unknown shapes; the comparison of outputs says more."""
    logger = logging.getLogger("onnx_ir")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _restore_numpy() -> Iterator[None]:
    """Restore `jax.numpy` afterwards.

    The converter replaces `jnp.cumsum` by one without a positional axis, with which later
    traces in this process would fail.
    """
    before = dict(vars(jnp))
    try:
        yield
    finally:
        vars(jnp).update(before)
