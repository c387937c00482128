"""Parsing of request bodies to arrays; everything is checked before the policy runs."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from jaxrl import spaces
from jaxrl.errors import InvalidInput, did_you_mean, require
from jaxrl.runs.policy import Policy
from jaxrl.types import PyTree

Parse = Callable[[str, Any, Any], np.ndarray]
"""`(name, value of JSON, dtype) -> its numbers`."""


class Schema(NamedTuple):
    """The shape of the requests of a policy."""

    env: str
    space: PyTree  # of `Box` and `Discrete`
    memory: Any  # one row of zeros, or `()`
    max_batch: int


class Request(NamedTuple):
    """Observations and memory with a leading axis [N]."""

    obs: PyTree
    memory: Any  # [N, ...], or `()`
    is_single: bool  # one observation, sent without a leading axis

    @property
    def rows(self) -> int:
        return len(jax.tree.leaves(self.obs)[0])


def make_schema(policy: Policy, max_batch: int) -> Schema:
    """Make the schema of the requests of a policy."""
    memory = jax.device_get(policy.init_memory())
    return Schema(
        policy.env.id, spaces.tree(policy.env.observation_space), memory, max_batch
    )


def read(schema: Schema, body: bytes) -> Request:
    """Parse a body, `{"obs": ..., "memory": ...}`.

    Raises:
      InvalidInput: it does not fit the schema.
    """
    content = _parse_json(body)
    known = ("obs", "memory")
    require(
        isinstance(content, dict) and "obs" in content,
        'the body must be a JSON object with "obs".',
    )
    for name in content:
        require(
            name in known,
            f"{name[:40]!r} is not a field of a request{did_you_mean(name, known)}.",
        )
    # Looking at each number takes longer than all the rest.
    parse = _parse_strictly if b"true" in body or b"false" in body else _parse_array
    obs, batch = _parse_observations(schema, content["obs"], parse)
    is_single = batch == ()
    rows = 1 if is_single else batch[0]
    require(rows > 0, "obs holds no observation.")
    require(
        rows <= schema.max_batch,
        f"obs holds {rows} observations, a request at most {schema.max_batch}.",
    )
    memory = _parse_memory(schema, content.get("memory"), rows, is_single, parse)
    return Request(obs, memory, is_single)


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        reason = str(error).split("\n")[0][:100]
        raise InvalidInput(f"the body is not JSON ({reason}).") from error


def _reject_constant(word: str) -> NoReturn:
    raise InvalidInput(f"the body holds {word}: all numbers must be finite.")


def _parse_observations(
    schema: Schema, value: Any, parse: Parse
) -> tuple[PyTree, tuple[int, ...]]:
    """Return the rows and their number; () for a single observation."""
    structure: Any
    paths, structure = jax.tree_util.tree_flatten_with_path(schema.space)
    values = _match_structure(schema, structure, value)
    arrays, batches = [], set()
    for (path, leaf), content in zip(paths, values, strict=True):
        name = ".".join(["obs", *(str(key.key) for key in path)])
        array = parse(name, content, leaf.dtype)
        batch = array.shape[: max(array.ndim - len(leaf.shape), 0)]
        require(
            batch + leaf.shape == array.shape and len(batch) < 2,
            f"{name} has shape {list(array.shape)}: in an observation of {schema.env} it "
            f"has {list(leaf.shape)}, in a batch one axis more in front.",
        )
        _check_bounds(name, array, leaf, len(batch))
        batches.add(batch)
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        arrays.append(spaces.narrow(array, dtype, name))
    require(len(batches) == 1, "obs has parts of different lengths.")
    (batch,) = batches
    rows = [x[None] for x in arrays] if batch == () else arrays
    return structure.unflatten(rows), batch


def _match_structure(schema: Schema, structure: Any, value: Any) -> Sequence[Any]:
    """Return the leaves of the value if it has the structure of the space."""
    names = f"with {', '.join(schema.space)}" if isinstance(schema.space, dict) else ""
    try:
        leaves: Sequence[Any] = structure.flatten_up_to(value)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(
            f"obs must be an object {names}: an observation of {schema.env} has such parts."
        ) from error
    return leaves


def _parse_array(name: str, value: Any, dtype: Any) -> np.ndarray:
    """Return the numbers, finite and of a kind that the dtype holds."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(
            f"{name} must be numbers in lists of equal lengths."
        ) from error
    kind = np.dtype(dtype).kind
    if array.size == 0 and array.dtype.kind == "f":
        return array
    allowed = {"b": "biu", "i": "iuf", "u": "iuf"}.get(kind, "iuf")
    words = {"b": "true or false", "i": "whole numbers", "u": "whole numbers"}
    require(
        array.dtype.kind in allowed,
        f"{name} must be {words.get(kind, 'numbers')}.",
    )
    if array.dtype.kind == "f":
        require(bool(np.isfinite(array).all()), f"{name} must be finite.")
        whole = kind == "f" or bool((array == np.floor(array)).all())
        require(whole, f"{name} must be whole numbers.")
    return array


def _parse_strictly(name: str, value: Any, dtype: Any) -> np.ndarray:
    """As `_parse_array`, without true and false, which NumPy reads as 1 and 0."""
    inside = [] if np.dtype(dtype).kind == "b" else [value]
    while inside:
        part = inside.pop()
        require(
            not isinstance(part, bool), f"{name} must be numbers, not true or false."
        )
        inside += part if isinstance(part, list) else []
    return _parse_array(name, value, dtype)


def _check_bounds(name: str, array: np.ndarray, leaf: Any, axes: int) -> None:
    low: Any
    high: Any
    # Real numbers are compared as the policy sees them; whole ones must not be rounded.
    kind = np.float64 if np.dtype(leaf.dtype).kind in "iub" else np.float32
    if isinstance(leaf, spaces.Discrete):
        low, high = np.zeros((), kind), kind(leaf.n - 1)
    elif kind is np.float64:
        low, high = (np.reshape(bound, leaf.shape) for bound in (leaf.low, leaf.high))
    else:
        low, high = leaf.low_array(), leaf.high_array()
    with np.errstate(over="ignore"):
        numbers = array.astype(kind)
    in_bounds = (numbers >= low) & (numbers <= high) & np.isfinite(numbers)
    if in_bounds.all():
        return
    place = tuple(int(i) for i in np.argwhere(~np.atleast_1d(in_bounds))[0])
    number = np.atleast_1d(array)[place]
    bounds = [float(np.broadcast_to(b, array.shape).flat[0]) for b in (low, high)]
    if array.ndim > axes:
        bounds = [float(b[place[axes:]]) for b in (low, high)]
    where = f"{name}{list(place)}" if array.ndim else name
    shown = " to ".join(f"{b:g}" if math.isfinite(b) else str(b) for b in bounds)
    raise InvalidInput(
        f"{where} = {number:g} is outside of the observation space, {shown}."
    )


def _parse_memory(
    schema: Schema, value: Any, rows: int, is_single: bool, parse: Parse
) -> Any:
    """Return the memory `[N, ...]`; zeros, the start of an episode, where it is absent."""
    if not jax.tree.leaves(schema.memory):
        require(value is None, "memory: this policy has none, leave it out.")
        return ()
    if value is None:
        return np.zeros((rows, *schema.memory.shape), schema.memory.dtype)
    array = parse("memory", value, schema.memory.dtype)
    expected = schema.memory.shape if is_single else (rows, *schema.memory.shape)
    require(
        array.shape == expected,
        f"memory has shape {list(array.shape)}: must be {list(expected)}, as in the "
        f"response before.",
    )
    memory = spaces.narrow(array, schema.memory.dtype, "memory")
    return memory[None] if is_single else memory
