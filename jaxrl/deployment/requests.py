"""From the body of a request to arrays: all of it is checked before the policy sees it."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from jaxrl import spaces
from jaxrl.errors import InvalidInput, did_you_mean, require
from jaxrl.runs.policy import Policy
from jaxrl.types import PyTree


class Form(NamedTuple):
    """What the requests of a policy look like."""

    env: str
    space: PyTree  # of `Box` and `Discrete`
    memory: Any  # one row of zeros, or `()`
    max_batch: int


class Request(NamedTuple):
    """What is asked: rows with a leading axis [N]."""

    obs: PyTree
    memory: Any  # [N, ...], or `()`
    alone: bool  # one observation, that was given without a leading axis

    @property
    def rows(self) -> int:
        return len(jax.tree.leaves(self.obs)[0])


def form_of(policy: Policy, max_batch: int) -> Form:
    memory = jax.device_get(policy.init_memory())
    return Form(
        policy.env.id, spaces.tree(policy.env.observation_space), memory, max_batch
    )


def read(form: Form, body: bytes) -> Request:
    """The observations of a body, `{"obs": ..., "memory": ...}`.

    Raises:
      InvalidInput: it is not one of the policy's.
    """
    content = _json(body)
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
    obs, batch = _observations(form, content["obs"])
    alone = batch == ()
    rows = 1 if alone else batch[0]
    require(rows > 0, "obs holds no observation.")
    require(
        rows <= form.max_batch,
        f"obs holds {rows} observations, at most {form.max_batch} may be asked at a time.",
    )
    return Request(obs, _memory(form, content.get("memory"), rows, alone), alone)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        reason = str(error).split("\n")[0][:100]
        raise InvalidInput(f"the body is not JSON ({reason}).") from error


def _no_number(word: str) -> NoReturn:
    raise InvalidInput(f"the body holds {word}: all numbers must be finite.")


def _observations(form: Form, value: Any) -> tuple[PyTree, tuple[int, ...]]:
    """The rows, and their number: () where it is a single observation."""
    structure: Any
    paths, structure = jax.tree_util.tree_flatten_with_path(form.space)
    values = _matched(form, structure, value)
    arrays, batches = [], set()
    for (path, leaf), given in zip(paths, values, strict=True):
        name = ".".join(["obs", *(str(key.key) for key in path)])
        array = _array(name, given, leaf.dtype)
        batch = array.shape[: max(array.ndim - len(leaf.shape), 0)]
        require(
            batch + leaf.shape == array.shape and len(batch) < 2,
            f"{name} has shape {list(array.shape)}: of one observation of {form.env} it "
            f"has {list(leaf.shape)}, of a batch one axis more in front.",
        )
        _check_bounds(name, array, leaf, len(batch))
        batches.add(batch)
        arrays.append(array.astype(leaf.dtype))
    require(len(batches) == 1, "obs has parts of different lengths.")
    (batch,) = batches
    rows = [x[None] for x in arrays] if batch == () else arrays
    return structure.unflatten(rows), batch


def _matched(form: Form, structure: Any, value: Any) -> Sequence[Any]:
    """The leaves of the value, if it has the structure of the space."""
    names = f"with {', '.join(form.space)}" if isinstance(form.space, dict) else ""
    try:
        found: Sequence[Any] = structure.flatten_up_to(value)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(
            f"obs must be an object {names}: an observation of {form.env} has such parts."
        ) from error
    return found


def _array(name: str, value: Any, dtype: Any) -> np.ndarray:
    """The numbers, finite and of a kind that the dtype holds."""
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


def _check_bounds(name: str, array: np.ndarray, leaf: Any, axes: int) -> None:
    low: Any
    high: Any
    if isinstance(leaf, spaces.Discrete):
        low, high = np.zeros((), np.float32), np.float32(leaf.n - 1)
    else:
        low, high = leaf.low_array(), leaf.high_array()
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    sound = (numbers >= low) & (numbers <= high) & np.isfinite(numbers)
    if sound.all():
        return
    place = tuple(int(i) for i in np.argwhere(~np.atleast_1d(sound))[0])
    number = np.atleast_1d(array)[place]
    bounds = [float(np.broadcast_to(b, array.shape).flat[0]) for b in (low, high)]
    if array.ndim > axes:
        bounds = [float(b[place[axes:]]) for b in (low, high)]
    where = f"{name}{list(place)}" if array.ndim else name
    shown = " to ".join(f"{b:g}" if math.isfinite(b) else str(b) for b in bounds)
    raise InvalidInput(
        f"{where} = {number:g} is outside of the observation space, {shown}."
    )


def _memory(form: Form, value: Any, rows: int, alone: bool) -> Any:
    """The memory `[N, ...]`; zeros, at the start of an episode, where none is given."""
    if not jax.tree.leaves(form.memory):
        require(value is None, "memory: this policy has none, leave it out.")
        return ()
    if value is None:
        return np.zeros((rows, *form.memory.shape), form.memory.dtype)
    array = _array("memory", value, form.memory.dtype)
    expected = form.memory.shape if alone else (rows, *form.memory.shape)
    require(
        array.shape == expected,
        f"memory has shape {list(array.shape)}: here it is {list(expected)}, as the "
        f"answer before gave it.",
    )
    with np.errstate(over="ignore"):
        found = array.astype(form.memory.dtype)
    require(bool(np.isfinite(found).all()), "memory must be finite.")
    return found[None] if alone else found
