"""Configs as data: documentation, checks, flags, and the way to and from a file.

A config is a frozen dataclass: of an algorithm a pytree whose fields are made with
`jaxrl.types.static` and `traced`, of a run or a sweep a plain one whose fields are made
with `option`. What a field means stands in the docstring under it, what it may be in its
type and limits; its flag, its check and its place in a file follow from these.
"""

import collections.abc
import dataclasses
import json
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from jaxrl.errors import InvalidInput, did_you_mean, shorten


def option(
    default: Any = dataclasses.MISSING,
    *,
    factory: Any = dataclasses.MISSING,
    flag: str | None = "",
    separator: str = ",",
    **limits: Any,
) -> Any:
    """A field of a plain frozen dataclass of options.

    Args:
      default: the default value.
      factory: makes the default value, where it is mutable.
      flag: its name on the command line without dashes in front, by default that of the
        field; None for no flag.
      separator: what stands between several values on the command line.
      **limits: as of `jaxrl.types.static`.
    """
    metadata = {"limits": limits, "flag": flag, "separator": separator}
    given: Any = {"default": default, "default_factory": factory, "metadata": metadata}
    return dataclasses.field(**given)


def flag(field: Any) -> str | None:
    """How a field is called on the command line: `--num-envs`; None without a flag."""
    name = field.metadata.get("flag", "")
    return None if name is None else "--" + (name or field.name).replace("_", "-")


def default_of(field: Any) -> Any:
    """The default value of a field; `dataclasses.MISSING` if it is required."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def flags_of(config: Any, leave_out: Sequence[str] = ()) -> list[str]:
    """The words of a command line for every field that is not at its default."""
    words: list[str] = []
    types = field_types(type(config))
    for field in dataclasses.fields(config):
        kind = types[field.name]
        name, value = flag(field), _plain(kind, getattr(config, field.name))
        if name is None or field.name in leave_out:
            continue
        if value == _plain(kind, default_of(field)):
            continue
        if isinstance(value, dict):
            words += [name, json.dumps(value)]
        elif isinstance(value, bool):
            words.append(name if value else "--no-" + name[2:])
        elif isinstance(value, list):
            between = field.metadata.get("separator", ",")
            words += [name, between.join(map(str, value))]
        else:
            words += [name, "none" if value is None else str(value)]
    return words


def field_types(config_class: type) -> dict[str, Any]:
    """Name -> annotated type of every field, in order."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def field_docs(config_class: type) -> dict[str, str]:
    """Name -> the docstring that stands under the field, those of base classes first."""
    from docstring_parser import parse_from_object

    bases = [x for x in reversed(config_class.__mro__) if dataclasses.is_dataclass(x)]
    return {
        parameter.arg_name: " ".join((parameter.description or "").split())
        for base in bases
        for parameter in parse_from_object(base).params
    }


def check(config: Any) -> None:
    """Check type and limits of every field.

    Raises:
      InvalidInput: one sentence that names the field, the value and what it may be.
    """
    types = field_types(type(config))
    for field in dataclasses.fields(config):
        limits = field.metadata.get("limits", {})
        check_value(
            field.name, types[field.name], getattr(config, field.name), **limits
        )


def check_value(name: str, kind: Any, value: Any, **limits: float) -> None:
    """Check one value, wherever it comes from; `limits` as in `jaxrl.types.static`.

    Raises:
      InvalidInput: one sentence that names the field, the value and what it may be.
    """
    problem = _type_problem(kind, value)
    if problem is None and value is not None and _is_numeric(kind):
        problem = _limit_problem(limits, value) or _size_problem(kind, value)
    if problem:
        raise InvalidInput(f"{name} = {shorten(repr(value))}: {problem}.")


def with_floats(config: Any) -> Any:
    """The config with whole numbers in float fields made floats.

    `total_steps=3_000_000_000` reads well, but as a traced int it would not fit 32 bits,
    and would be another program than the same number written as a float.
    """
    types = field_types(type(config))
    return config.replace(
        **{
            name: float(getattr(config, name))
            for name, kind in types.items()
            if float in (kind, *typing.get_args(kind))
            and isinstance(getattr(config, name), int)
        }
    )


def to_dict(config: Any) -> dict[str, Any]:
    """The config as JSON-ready values."""
    types = field_types(type(config))
    return {name: _plain(kind, getattr(config, name)) for name, kind in types.items()}


def from_dict(config_class: type, values: dict[str, Any]) -> Any:
    """A config from a mapping; fields that are not named keep their defaults.

    Raises:
      InvalidInput: for a name that is not a field, or a value that does not fit.
    """
    types = field_types(config_class)
    for name in values:
        if name not in types:
            raise InvalidInput(
                f"{name} is not a field of this config{did_you_mean(name, types)}."
            )
    converted = {name: _convert(types[name], v) for name, v in values.items()}
    config = config_class(**converted)
    check(config)
    return config


def _convert(kind: Any, value: Any) -> Any:
    """JSON and TOML have no tuples, and write 1e6 for an int and 1 for a float."""
    if hasattr(kind, "from_plain"):
        return kind.from_plain(value)
    kinds = typing.get_args(kind) or (kind,)
    if isinstance(value, list):
        return tuple(value)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if int in kinds and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _type_problem(kind: Any, value: Any) -> str | None:
    arguments = typing.get_args(kind)
    if hasattr(kind, "from_plain"):  # a kind of its own, such as a network
        return kind.problem(value)
    if typing.get_origin(kind) is Literal:
        if value in arguments:
            return None
        choices = ", ".join(map(repr, arguments))
        return f"must be one of {choices}{did_you_mean(str(value), arguments)}"
    if type(None) in arguments:  # Optional
        return None if value is None else _type_problem(arguments[0], value)
    if typing.get_origin(kind) is collections.abc.Sequence:
        if not isinstance(value, list | tuple):
            return "must be a list"
        return next(filter(None, (_type_problem(arguments[0], v) for v in value)), None)
    for types, fits, words in _KINDS:
        if kind in types or typing.get_origin(kind) in types:
            return None if fits(value) else words
    if kind is Any or not isinstance(kind, type) or isinstance(value, kind):
        return None
    return f"must be a {kind.__name__}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


MOST_SIZES = 100
"""Layers of a network, the longest list of sizes."""


def _are_sizes(value: Any) -> bool:
    is_short = isinstance(value, tuple) and len(value) <= MOST_SIZES
    return is_short and all(type(v) is int for v in value)


def _is_number(value: Any) -> bool:
    """A Python number or an array of numbers (a sweep); never a bool, a list or NaN."""
    if isinstance(value, bool) or not (
        isinstance(value, int | float) or hasattr(value, "dtype")
    ):
        return False
    array = np.asarray(value)
    return array.dtype.kind in "fiu" and not np.isnan(array).any()


_KINDS: tuple[tuple[tuple[Any, ...], Callable[[Any], bool], str], ...] = (
    ((bool,), lambda value: isinstance(value, bool), "must be true or false"),
    ((int,), _is_whole, "must be a whole number"),
    ((float,), _is_number, "must be a number"),
    ((str,), lambda value: isinstance(value, str), "must be text"),
    ((dict,), lambda value: isinstance(value, dict), "must be a table"),
    (
        (tuple,),
        _are_sizes,
        f"must be whole numbers, at most {MOST_SIZES} of them: (64, 64)",
    ),
)
"""Types of fields, what fits them, and how that is said."""


def _is_numeric(kind: Any) -> bool:
    return bool({kind, *typing.get_args(kind)} & {int, float})


def _limit_problem(limits: dict[str, Any], value: Any) -> str | None:
    # A tuple of sizes is checked entry by entry; an array is a sweep over a float.
    numbers = np.asarray(value)
    if "low" in limits and np.any(numbers < limits["low"]):
        return f"must be at least {limits['low']}"
    if "above" in limits and np.any(numbers <= limits["above"]):
        return f"must be greater than {limits['above']}"
    if "high" in limits and np.any(numbers > limits["high"]):
        return f"must be at most {limits['high']}"
    if numbers.dtype.kind == "f" and np.isinf(numbers).any():
        return "must be finite"
    return None


MAX_INT = 2**31 - 1
"""JAX's integers have 32 bits."""

MAX_FLOAT = float(np.finfo(np.float32).max)


def _size_problem(kind: Any, value: Any) -> str | None:
    """A number that the device's 32 bits cannot hold."""
    if float in (kind, *typing.get_args(kind)):
        most, words = MAX_FLOAT, f"{MAX_FLOAT:.5g}"
    else:
        most, words = MAX_INT, f"2^31 - 1 = {MAX_INT}"
    too_large = np.any(np.abs(np.asarray(value)) > most)
    return f"must be at most {words}" if too_large else None


def _plain(kind: Any, value: Any) -> Any:
    if hasattr(kind, "from_plain"):
        return kind.to_plain(value)
    if isinstance(value, tuple):
        return list(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return value
