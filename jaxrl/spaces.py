"""Observation and action spaces, frozen and hashable.

They describe one environment (no batch axis) and are static parts of an `Env`, so they
hold Python numbers and tuples, never arrays.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
        return np.asarray(self.low, np.float32).reshape(self.shape)

    def high_array(self) -> np.ndarray:
        """The upper bound, float32, in the space's shape."""
        return np.asarray(self.high, np.float32).reshape(self.shape)


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


def sample(space: Box | Discrete, key: Array, batch: tuple[int, ...] = ()) -> Array:
    """A uniform random value `[*batch, *shape]`; unbounded elements are standard normal."""
    if isinstance(space, Discrete):
        return jax.random.randint(key, batch, 0, space.n, space.dtype)
    shape = (*batch, *space.shape)
    if not space.bounded:
        return jax.random.normal(key, shape).astype(space.dtype)
    low, high = space.low_array(), space.high_array()
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
    fields = dataclasses.asdict(space)
    if "shape" in fields:
        fields["shape"] = list(fields["shape"])  # JSON has no tuples
    for bound in {"low", "high"} & fields.keys():
        fields[bound] = [v if np.isfinite(v) else str(v) for v in fields[bound]]
    return {type(space).__name__: fields}


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


def is_compatible(one: Space, other: Space) -> bool:
    """True if values of both spaces have equal structure, shapes and dtypes.

    Bounds may differ.
    """

    def form(space: Space) -> Any:
        leaves, structure = jax.tree.flatten(tree(space))
        kinds = [
            (type(leaf), leaf.shape, leaf.dtype, getattr(leaf, "n", None))
            for leaf in leaves
        ]
        return structure, kinds

    return form(one) == form(other)
