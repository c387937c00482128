"""Settings: configs and environments that differ only in numbers are one program.

A setting is a pair (config, environment). `stacked` turns many of them into one pair and
the numbers in which they differ, which are data of each member of a population;
`with_values` gives a member its pair back.
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

Setting = tuple[Any, Env]


def stacked(
    settings: Sequence[Setting], varied: Iterable[str] = ()
) -> tuple[Any, Env, Values]:
    """One setting, and the numbers in which the others differ from it.

    Args:
      settings: S pairs (config, environment).
      varied: names of numbers that are made data of each member even if they are equal
        in all settings, so that other settings find the same program.

    Returns:
      (config, env, values), values with a leading axis `[S]`.

    Raises:
      InvalidInput: the settings differ in more than numbers.
    """
    config, env = settings[0]
    columns = [numbers(setting) for setting in settings]
    if len({program(setting) for setting in settings}) > 1:
        raise InvalidInput(
            f"the settings are {len({program(s) for s in settings})} different programs: "
            f"{_difference(settings)}; train each kind by itself, or use jaxrl.sweep, "
            f"which does."
        )
    unknown = sorted(set(varied) - columns[0].keys())
    require(not unknown, f"varied = {unknown}: there is no such number.")
    values = {}
    for name in columns[0]:
        column = np.stack([np.asarray(known[name]) for known in columns])
        if name in varied or (column != column[:1]).any():
            values[name] = jnp.asarray(column)
    return config, env, values


def with_values(config: Any, env: Env, values: Values) -> Setting:
    """Config and environment of one member, whose values these are."""
    if not values:
        return config, env

    def pick(path: Any, leaf: Any) -> Any:
        return values.get(_name(path), leaf)

    tree = jax.tree_util.tree_map_with_path(pick, _tree((config, env)))
    return tree["config"], tree["env"]


def program(setting: Setting) -> Hashable:
    """What two settings must have in common to be one program."""
    leaves, structure = jax.tree.flatten(_tree(setting))
    kinds = tuple((np.shape(x), jax.dtypes.result_type(x).name) for x in leaves)
    return structure, kinds


def differing(one: Setting, other: Setting) -> list[str]:
    """The names of the numbers that are not equal in two settings of one program."""
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


def _tree(setting: Setting) -> PyTree:
    config, env = setting
    return {"config": config, "env": env}


def numbers(setting: Setting) -> dict[str, Any]:
    """Every number of a setting by name: what may be `varied`.

    What the agents learn from is no number of the setting: all have the same teacher.
    """
    config, env = setting
    untaught = _tree((config, env.replace(teacher=None)))
    paths, _ = jax.tree_util.tree_flatten_with_path(untaught)
    return {_name(path): leaf for path, leaf in paths}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _difference(settings: Sequence[Setting]) -> str:
    """A first reason, for a message."""
    first, *rest = settings
    other = next(s for s in rest if program(s) != program(first))
    ours, theirs = (configs.to_dict(config) for config, _ in (first, other))
    for name, value in ours.items():
        chooses = isinstance(value, bool | int | str | list) or value is None
        if theirs[name] != value and (chooses or theirs[name] is None):
            return f"{name} is {value} in one and {theirs[name]} in another"
    return f"{first[1].id} is built differently from {other[1].id}"
