"""Variants: configs and environments that differ only in numbers are one program.

A variant is a pair (config, environment). `stacked` turns many of them into one pair and
the numbers in which they differ, which are data of each member of a population;
`with_values` gives a member its variant back.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.core import config as configs
from jaxrl.errors import InvalidInput, require
from jaxrl.types import Array, Env, PyTree

Values = dict[str, Array]
"""Numbers of a config or an environment by name, such as "config/learning_rate" or
"env/params/gravity": of one member, or with a leading axis of members `[K]`."""

Variant = tuple[Any, Env]


def stacked(
    variants: Sequence[Variant], traced: Iterable[str] = ()
) -> tuple[Any, Env, Values]:
    """One variant, and the numbers in which the others differ from it.

    Args:
      variants: S pairs (config, environment).
      traced: names of numbers that are made data of each member even if they are equal
        in all variants, so that other variants find the same program.

    Returns:
      (config, env, values), values with a leading axis `[S]`.

    Raises:
      InvalidInput: the variants differ in more than numbers.
    """
    config, env = variants[0]
    columns = [numbers(variant) for variant in variants]
    if len({program(variant) for variant in variants}) > 1:
        raise InvalidInput(
            f"the settings are {len({program(v) for v in variants})} different programs: "
            f"{_difference(variants)}; train each kind by itself, or use jaxrl.sweep, "
            f"which does."
        )
    unknown = sorted(set(traced) - columns[0].keys())
    require(not unknown, f"traced = {unknown}: there is no such number.")
    values = {}
    for name in columns[0]:
        column = np.stack([np.asarray(known[name]) for known in columns])
        if name in traced or (column != column[:1]).any():
            values[name] = jnp.asarray(column)
    return config, env, values


def with_values(config: Any, env: Env, values: Values) -> Variant:
    """Config and environment of one member, whose values these are."""
    if not values:
        return config, env

    def pick(path: Any, leaf: Any) -> Any:
        return values.get(_name(path), leaf)

    tree = jax.tree_util.tree_map_with_path(pick, _tree((config, env)))
    return tree["config"], tree["env"]


def program(variant: Variant) -> Hashable:
    """What two variants must have in common to be one program."""
    leaves, structure = jax.tree.flatten(_tree(variant))
    kinds = tuple((np.shape(x), jax.dtypes.result_type(x).name) for x in leaves)
    return structure, kinds


def differing(one: Variant, other: Variant) -> list[str]:
    """The names of the numbers that are not equal in two variants of one program."""
    ours, theirs = numbers(one), numbers(other)
    return [n for n in ours if not np.array_equal(ours[n], theirs[n])]


def described(values: Values, index: int) -> str:
    """The values of one member in words: "learning_rate = 0.001, gamma = 0.9"."""
    return ", ".join(
        f"{name.split('/', 1)[1].replace('/', '.')} = {_short(x[index])}"
        for name, x in values.items()
    )


def _short(x: Any) -> str:
    return f"{float(x):.6g}" if np.ndim(x) == 0 else str(np.asarray(x).tolist())


def _tree(variant: Variant) -> PyTree:
    config, env = variant
    return {"config": config, "env": env}


def numbers(variant: Variant) -> dict[str, Any]:
    """Every number of a variant by name: what may be `traced`.

    What the agents learn from is no number of the variant: all have the same teacher.
    """
    config, env = variant
    untaught = _tree((config, env.replace(teacher=None)))
    paths, _ = jax.tree_util.tree_flatten_with_path(untaught)
    return {_name(path): leaf for path, leaf in paths}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _difference(variants: Sequence[Variant]) -> str:
    """A first reason, for a message."""
    first, *rest = variants
    other = next(v for v in rest if program(v) != program(first))
    ours, theirs = (configs.to_dict(config) for config, _ in (first, other))
    for name, value in ours.items():
        chooses = isinstance(value, bool | int | str | list) or value is None
        if theirs[name] != value and (chooses or theirs[name] is None):
            return f"{name} is {value} in one and {theirs[name]} in another"
    return f"{first[1].id} is built differently from {other[1].id}"
