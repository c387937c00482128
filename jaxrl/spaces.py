"""Observation and action spaces, frozen and hashable.

They describe one environment (no batch axis) and are static parts of an `Env`, so they
hold Python numbers and tuples, never arrays.
"""

import math
import operator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import InvalidInput, require
from jaxrl.types import Array, PyTree

MASK = "action_mask"
"""Name of the entry of a `Dict` with the mask of legal actions; it masks the policy and is
not an input of the network."""


@dataclass(frozen=True)
class Box:
    """Arrays of one shape and dtype between two bounds.

    `low` and `high` are flat tuples of `size` floats (one for each element, C order);
    `box()` builds them from numbers or arrays.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bounded(self) -> bool:
        """True if every element has a finite lower and upper bound."""
        return all(map(math.isfinite, self.low + self.high))

    def low_array(self) -> np.ndarray:
        """The lower bound, float32, in the space's shape."""
        return _float32(self.low).reshape(self.shape)

    def high_array(self) -> np.ndarray:
        """The upper bound, float32, in the space's shape."""
        return _float32(self.high).reshape(self.shape)


def _float32(bound: tuple[float, ...]) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float32 there is no bound
        return np.asarray(bound, np.float64).astype(np.float32)


@dataclass(frozen=True)
class Discrete:
    """The integers 0, 1, ..., n - 1."""

    n: int
    dtype: str = "int32"

    @property
    def shape(self) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True)
class Dict:
    """A dictionary of spaces: a tuple of (name, space), sorted by name as JAX sorts."""

    items: tuple[tuple[str, Any], ...]

    def __getitem__(self, name: str) -> Any:
        return dict(self.items)[name]

    def __contains__(self, name: str) -> bool:
        return name in dict(self.items)


Space = Box | Discrete | Dict


def box(low: Any, high: Any, shape: tuple[int, ...], dtype: Any = np.float32) -> Box:
    """A `Box` from bounds that broadcast to `shape`."""

    def flat(bound: Any) -> tuple[float, ...]:
        array = np.broadcast_to(np.asarray(bound, np.float64), shape)
        return tuple(array.ravel().tolist())

    return Box(flat(low), flat(high), tuple(shape), np.dtype(dtype).name)


def dict_space(**spaces: Space) -> Dict:
    """A `Dict` of named spaces."""
    return Dict(tuple(sorted(spaces.items())))


def tree(space: Space) -> PyTree:
    """The space as a pytree of `Box` and `Discrete`, structured as its values."""
    if isinstance(space, Dict):
        return {name: tree(child) for name, child in space.items}
    return space


def zeros(space: Space, batch: tuple[int, ...] = ()) -> PyTree:
    """Zeros in the space's structure, shapes and dtypes, `[*batch, ...]`."""
    return jax.tree.map(lambda s: jnp.zeros((*batch, *s.shape), s.dtype), tree(space))


def sample(space: Space, key: Array, batch: tuple[int, ...] = ()) -> PyTree:
    """A uniform random value `[*batch, *shape]`; unbounded elements are standard normal."""
    if isinstance(space, Dict):
        keys = jax.random.split(key, len(space.items))
        parts = zip(space.items, keys, strict=True)
        return {name: sample(child, k, batch) for (name, child), k in parts}
    if isinstance(space, Discrete):
        return jax.random.randint(key, batch, 0, space.n, space.dtype)
    shape = (*batch, *space.shape)
    if not space.bounded:
        return jax.random.normal(key, shape).astype(space.dtype)
    low, high = space.low_array(), space.high_array()
    if np.issubdtype(space.dtype, np.integer):
        # Both bounds belong to it, and a cast of floats would never reach the upper one.
        x = jnp.floor(jax.random.uniform(key, shape, minval=low, maxval=high + 1))
        return jnp.clip(x, low, high).astype(space.dtype)
    return jax.random.uniform(key, shape, minval=low, maxval=high).astype(space.dtype)


def to_unit(space: Box, x: Array) -> Array:
    """Elements of a bounded box `[*batch, *shape]`, scaled to [-1, 1]."""
    low, high = space.low_array(), space.high_array()
    return (x - (high + low) / 2) / ((high - low) / 2)


def from_unit(space: Box, x: Array) -> Array:
    """Numbers in [-1, 1] `[*batch, *shape]`, scaled to a bounded box: undoes `to_unit`."""
    low, high = space.low_array(), space.high_array()
    return (high + low) / 2 + (high - low) / 2 * x


def contains(space: Space, value: PyTree) -> Array:
    """True if `value` (a single one, unbatched) lies in the space: a boolean scalar."""
    structure: Any
    leaves, structure = jax.tree.flatten(tree(space))
    inside = jnp.bool_(True)
    for leaf, x in zip(leaves, structure.flatten_up_to(value), strict=True):
        x = jnp.asarray(x)
        if isinstance(leaf, Discrete):
            inside &= (x >= 0) & (x < leaf.n)
        else:
            inside &= jnp.all((x >= leaf.low_array()) & (x <= leaf.high_array()))
    return inside


def describe(space: Space) -> dict[str, Any]:
    """Convert a space to JSON, with infinite bounds as text: JSON has no infinity."""
    if isinstance(space, Dict):
        return {"Dict": {name: describe(child) for name, child in space.items}}
    dtype = np.dtype(space.dtype).name
    if isinstance(space, Discrete):
        return {"Discrete": {"n": int(space.n), "dtype": dtype}}
    low, high = (
        [float(v) if np.isfinite(v) else str(float(v)) for v in bound]
        for bound in (space.low, space.high)
    )
    shape = [int(n) for n in space.shape]
    return {"Box": {"low": low, "high": high, "shape": shape, "dtype": dtype}}


def from_description(description: Any) -> Space:
    """Convert a description back to a space, the inverse of `describe`.

    Raises:
      ValueError, TypeError, KeyError, AttributeError: the description is invalid.
    """
    ((kind, fields),) = description.items()
    if kind == "Dict":
        return dict_space(
            **{name: from_description(child) for name, child in fields.items()}
        )
    if kind == "Discrete":
        return Discrete(int(fields["n"]), np.dtype(fields["dtype"]).name)
    low, high = (np.array(fields[bound], np.float64) for bound in ("low", "high"))
    shape = tuple(map(int, fields["shape"]))
    return box(low.reshape(shape), high.reshape(shape), shape, fields["dtype"])


MAX_INT = 2**31 - 1
"""JAX's integers have 32 bits."""


def check(space: Any, name: str) -> None:
    """Check that a space is one of this module, and can be recorded and read again.

    Args:
      space: what an environment gives as its space.
      name: of the space, for messages.

    Raises:
      InvalidInput: it is something else, or its parts do not fit each other.
    """
    if isinstance(space, Dict):
        _check_dict(space, name)
    elif isinstance(space, Discrete):
        _check_discrete(space, name)
    elif isinstance(space, Box):
        _check_box(space, name)
    else:
        remedy = "make it with spaces.box, spaces.Discrete or spaces.dict_space"
        if isinstance(space, dict):
            entries = ", ".join(f"{entry}=..." for entry in space)
            remedy = f"make it with spaces.dict_space({entries})"
        elif type(space).__module__.startswith("gymnasium."):
            remedy = "convert it with jaxrl.envs.gymnasium.from_space"
        raise InvalidInput(f"{name} is a {type(space).__name__}: {remedy}.")
    try:
        hash(space)
    except TypeError as error:
        raise InvalidInput(
            f"{name} cannot be hashed ({error}): give its fields as tuples and numbers, "
            f"or make it with spaces.box."
        ) from error


def _check_dict(space: Dict, name: str) -> None:
    try:
        names = [entry for entry, _ in space.items]
    except (TypeError, ValueError):
        raise InvalidInput(
            f"{name} has items that are no pairs of a name and a space: make it with "
            f"spaces.dict_space(name=space, ...)."
        ) from None
    require(bool(names), f"{name} is a Dict without entries: give it one or more.")
    for entry, child in space.items:
        require(
            isinstance(entry, str) and names.count(entry) == 1,
            f"{name} has an entry {entry!r}: names must be text, each given once.",
        )
        check(child, f"{name}[{entry!r}]")


def _check_discrete(space: Discrete, name: str) -> None:
    kind = _dtype(space.dtype, name)
    most = min(MAX_INT, np.iinfo(kind).max) if kind.kind in "iu" else 0
    require(most > 0, f"{name} is a Discrete of {kind}: its dtype must be of integers.")
    is_whole = isinstance(space.n, int | np.integer) and not isinstance(space.n, bool)
    require(
        is_whole and 1 <= space.n <= most,
        f"{name} is a Discrete of n = {space.n!r}: n must be a whole number from 1 to "
        f"{most}, the largest of {kind}.",
    )


def _check_box(space: Box, name: str) -> None:
    kind = _dtype(space.dtype, name)
    try:
        sizes = [operator.index(n) for n in space.shape]
        low, high = (np.array(x, np.float64) for x in (space.low, space.high))
    except (TypeError, ValueError):
        sizes = [0]
    if min(sizes, default=1) < 1:
        raise InvalidInput(
            f"{name} is a Box of shape {space.shape!r}: the shape must be a tuple of "
            f"positive whole numbers, the bounds numbers."
        )
    require(
        low.shape == high.shape == (math.prod(sizes),),
        f"{name} is a Box of shape {tuple(space.shape)} with {low.size} and {high.size} "
        f"bounds: give one for each element, or make it with spaces.box.",
    )
    wrong = np.flatnonzero(~(low <= high))
    require(
        not len(wrong),
        f"{name} is a Box whose element {wrong[:1].tolist()} has low = "
        f"{low[wrong][:1].tolist()} and high = {high[wrong][:1].tolist()}: low must be at "
        f"most high.",
    )
    least, most = limits(kind)
    bounds = np.concatenate([low, high])
    beyond = bounds[np.isfinite(bounds) & ~((bounds >= least) & (bounds <= most))]
    require(
        not len(beyond),
        f"{name} is a Box of {kind} with the bound {beyond[:1].tolist()}: {kind} holds "
        f"{least} to {most}; use a wider dtype, or -inf and inf where there is no bound.",
    )


def limits(dtype: Any) -> tuple[float, float]:
    """The least and the largest number of a dtype of integers or bools.

    Real numbers have none.
    """
    kind = np.dtype(dtype).kind
    if kind == "b":
        return 0, 1
    if kind in "iu":
        info = np.iinfo(dtype)
        return int(info.min), int(info.max)
    return -math.inf, math.inf


def _dtype(dtype: Any, name: str) -> np.dtype:
    try:
        return np.dtype(dtype)
    except TypeError as error:
        raise InvalidInput(
            f"{name} has dtype {dtype!r}: give one of NumPy's, such as 'float32'."
        ) from error


NARROWEST, WIDEST = 1e-30, 1e30
"""Limits of the width of an action's range, which keep samples and densities finite."""


def check_actions(space: Any, name: str) -> None:
    """Check that actions of a space can be chosen by a policy.

    A Box holds real numbers, in ranges that are neither empty nor overflow float32.

    Raises:
      InvalidInput: the space is none (`check`), or has other elements.
    """
    check(space, name)
    if isinstance(space, Dict):
        for entry, child in space.items:
            check_actions(child, f"{name}[{entry!r}]")
    if not isinstance(space, Box):
        return
    require(
        jnp.issubdtype(space.dtype, jnp.floating),
        f"{name} is a Box of {space.dtype}, and policies give real numbers: use a "
        f"Discrete, or a Box of float32 and round the action in step (jnp.round).",
    )
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = space.low_array().ravel(), space.high_array().ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        width = np.where(bounded, high - low, 1.0)
    wrong = np.flatnonzero(~((width > NARROWEST) & (width < WIDEST)))
    require(
        not len(wrong),
        f"{name} is a Box whose element {wrong[:1].tolist()} is from "
        f"{low[wrong][:1].tolist()} to {high[wrong][:1].tolist()}: leave out an element "
        f"that is constant, give -inf and inf where there is no bound, or rescale it.",
    )


def narrow(x: Any, dtype: Any, name: str) -> np.ndarray:
    """Convert numbers on the host to a dtype that holds them.

    Integers and bools must stay what they are; real numbers are rounded as usual, but
    must stay finite.

    Args:
      x: an array, or what `np.asarray` takes.
      dtype: the dtype wanted.
      name: of the numbers, for messages.

    Raises:
      InvalidInput: a number does not fit.
    """
    given = np.asarray(x)
    if given.dtype == dtype:
        return given
    with np.errstate(all="ignore"):
        result = given.astype(dtype)
        lost = result != given
    if jnp.issubdtype(result.dtype, jnp.floating):
        lost = np.isfinite(given) & ~np.isfinite(result)
    if lost.any():
        raise InvalidInput(
            f"{name} has the value {given[lost].flat[0]} of {given.dtype}, which "
            f"{result.dtype} cannot hold: declare a space of another dtype, or rescale it."
        )
    return result


def cast(x: Any, dtype: Any, name: str) -> Array:
    """Convert numbers to an array of JAX with a dtype that holds them.

    Within a compiled program, where numbers are not known, they are cast unchecked.

    Args:
      x: an array, or what `np.asarray` takes.
      dtype: the dtype wanted.
      name: of the numbers, for messages.

    Raises:
      InvalidInput: a number does not fit.
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype)  # of 64 bits JAX keeps 32
    is_array = isinstance(x, jax.Array)
    if not is_array or not (x.dtype == dtype or isinstance(x, jax.core.Tracer)):
        x = narrow(x, dtype, name)
    return jnp.asarray(x, dtype)


def round_to(x: Any, dtype: Any) -> np.ndarray:
    """Round real numbers on the host to the nearest ones of integers or bools."""
    least, most = limits(dtype)
    numbers = np.asarray(x, np.float64)
    if np.dtype(dtype).kind == "b":
        return numbers >= 0.5
    with np.errstate(invalid="ignore"):
        whole = np.asarray(np.rint(numbers).astype(dtype))
    # The limits of 64 bits are rounded in a cast from or to real numbers.
    whole[numbers >= most], whole[numbers <= least] = most, least
    return whole


def is_compatible(one: Space, other: Space) -> bool:
    """True if values of both spaces have equal structure, shapes and dtypes.

    Bounds may differ.
    """

    def form(space: Space) -> Any:
        leaves, structure = jax.tree.flatten(tree(space))
        kinds = [
            (type(leaf), leaf.shape, np.dtype(leaf.dtype), getattr(leaf, "n", None))
            for leaf in leaves
        ]
        return structure, kinds

    return form(one) == form(other)
