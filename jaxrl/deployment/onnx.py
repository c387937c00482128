"""A pure function as an ONNX graph, by jax2onnx, and back through onnxruntime."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import InvalidInput
from jaxrl.types import Array, PyTree


def exported(
    function: Callable[..., dict[str, Array]], inputs: dict[str, PyTree]
) -> bytes:
    """The ONNX file of a function.

    Args:
      function: `(*inputs [N, ...]) -> {name: array [N, ...]}`.
      inputs: name -> shapes and dtypes of one row. A dict among them becomes several
        inputs, "obs.x" and "obs.y".

    Raises:
      InvalidInput: an operation has no place in ONNX.
    """
    from jax2onnx import to_onnx

    names, rows, structure = _flat(inputs)
    outputs: list[str] = []

    def flat_function(*arrays: Array) -> tuple[Array, ...]:
        found = function(*structure.unflatten(arrays))
        outputs[:] = found
        return tuple(found.values())

    one = [jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in rows]
    jax.eval_shape(flat_function, *one)  # for the names of the outputs
    batched: list[Any] = [
        jax.ShapeDtypeStruct(("batch", *x.shape), x.dtype)  # type: ignore[arg-type]
        for x in rows
    ]
    try:
        with _quiet(), _numpy_kept():
            model = to_onnx(
                flat_function,
                batched,
                model_name="jaxrl",
                input_names=names,
                output_names=outputs,
            )
    except Exception as error:  # of another library, which has many kinds of its own
        reason = str(error).split("\n")[0]
        raise InvalidInput(
            f"format = 'onnx': the policy cannot be translated ({reason}); "
            f"give format = 'stablehlo'."
        ) from error
    content: bytes = model.SerializeToString()
    return content


def reader(content: bytes) -> Callable[..., dict[str, np.ndarray]]:
    """The function of an ONNX file in onnxruntime, of pytrees in their order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )
    names = [x.name for x in session.get_inputs()]
    outputs = [x.name for x in session.get_outputs()]

    def call(*inputs: PyTree) -> dict[str, np.ndarray]:
        given = dict(zip(names, jax.tree.leaves(inputs), strict=True))
        return dict(zip(outputs, session.run(None, given), strict=True))

    return call


def _flat(inputs: dict[str, PyTree]) -> tuple[list[str], list[Any], Any]:
    """Names, rows, and the structure that the function takes."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tuple(inputs.values()))
    order = list(inputs)
    names = [
        ".".join([order[path[0].idx], *(str(key.key) for key in path[1:])])
        for path, _ in paths
    ]
    return names, [row for _, row in paths], structure


@contextmanager
def _quiet() -> Iterator[None]:
    """The converter says what it does not know of shapes; the comparison says more."""
    logger = logging.getLogger("onnx_ir")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _numpy_kept() -> Iterator[None]:
    """The converter leaves a `jnp.cumsum` of its own behind, which takes no axis by its
    place: whatever traces after it in this process would fail."""
    before = dict(vars(jnp))
    try:
        yield
    finally:
        vars(jnp).update(before)
