"""The shape of a JSON document: types and ranges, declared by a dataclass.

A document from elsewhere may be valid JSON and still be anything. `check` compares it with
type annotations: numbers, text, lists, dicts, `Optional`, and dataclasses, whose fields
are the keys. A field with a default may be missing; keys that are no fields are refused
unless the dataclass has the attribute `OPEN = True`.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from jaxrl.errors import InvalidInput, did_you_mean, shorten


@dataclasses.dataclass(frozen=True)
class Limits:
    """The range of a number."""

    low: float = -math.inf
    high: float = math.inf


LARGEST = 2**53
"""Up to here a float tells whole numbers apart."""

Count = Annotated[int, Limits(0, LARGEST)]
"""A number of things."""

Seconds = Annotated[float, Limits(0)]


def check(
    kind: Any, content: Any, path: Path | str, error: type[InvalidInput] = InvalidInput
) -> None:
    """Check a document against a type.

    Args:
      kind: an annotation, such as a dataclass or `dict[str, Count]`.
      content: what was read.
      path: the file, for the message.
      error: what is raised.

    Raises:
      InvalidInput: one sentence that names the file, the place in it and the value.
    """
    problem = _problem(kind, content, "")
    if problem:
        raise error(f"{path} is damaged: {problem}.")


def _problem(kind: Any, value: Any, place: str) -> str:
    """What is wrong with a value, "" if nothing is."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return ""
    if origin is Annotated:
        return _problem(arguments[0], value, place) or _out_of_range(
            arguments[1], value, place
        )
    if origin in (types.UnionType, typing.Union):
        problems = [_problem(option, value, place) for option in arguments]
        return "" if "" in problems else problems[0]
    if dataclasses.is_dataclass(kind):
        return _fields_problem(kind, value, place)
    for known, fits, words in _KINDS:
        if (origin or kind) is known and not fits(value):
            return f"{place or 'it'} = {shorten(repr(value), 60)} is not {words}"
    return _items_problem(origin, arguments, value, place)


_KINDS = (
    (bool, lambda x: isinstance(x, bool), "true or false"),
    (int, lambda x: type(x) is int, "a whole number"),
    (float, lambda x: _is_finite(x), "a finite number"),
    (str, lambda x: isinstance(x, str), "text"),
    (list, lambda x: isinstance(x, list), "a list"),
    (tuple, lambda x: isinstance(x, list), "a list"),
    (dict, lambda x: isinstance(x, dict), "an object"),
    (type(None), lambda x: x is None, "null"),
)


def _is_finite(value: Any) -> bool:
    if type(value) is int:
        return abs(value) <= LARGEST
    return isinstance(value, float) and math.isfinite(value)


def _out_of_range(limits: Limits, value: Any, place: str) -> str:
    if limits.low <= value <= limits.high:
        return ""
    words = f"{shorten(value, 60)} is not between {limits.low} and {limits.high}"
    return f"{place or 'it'} = {words}"


def _items_problem(origin: Any, arguments: Any, value: Any, place: str) -> str:
    """The first problem of the items of a list, a tuple or a dict."""
    if origin is list:
        found = (
            _problem(arguments[0], x, f"{place}[{i}]") for i, x in enumerate(value)
        )
    elif origin is dict:
        found = (_problem(arguments[1], x, _inside(place, n)) for n, x in value.items())
    elif origin is tuple:
        if len(value) != len(arguments):
            return f"{place or 'it'} has {len(value)} items, not {len(arguments)}"
        both = zip(arguments, value, strict=True)
        found = (_problem(k, x, f"{place}[{i}]") for i, (k, x) in enumerate(both))
    else:
        return ""
    return next(filter(None, found), "")


def _inside(place: str, name: str) -> str:
    return f"{place}.{shorten(name, 60)}" if place else shorten(name, 60)


@cache
def _annotations(kind: Any) -> Mapping[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _fields_problem(kind: Any, value: Any, place: str) -> str:
    if not isinstance(value, dict):
        return f"{place or 'it'} = {shorten(repr(value), 60)} is not an object"
    hints, fields = _annotations(kind), dataclasses.fields(kind)
    known = {field.name for field in fields}
    unknown = [name for name in value if name not in known]
    if unknown and not getattr(kind, "OPEN", False):
        name = shorten(unknown[0], 60)
        return f"{_inside(place, name)} is not known{did_you_mean(name, known)}"
    for field in fields:
        if field.name in value:
            where = _inside(place, field.name)
            problem = _problem(hints[field.name], value[field.name], where)
            if problem:
                return problem
        elif (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            return f"{_inside(place, field.name)} is missing"
    return ""
