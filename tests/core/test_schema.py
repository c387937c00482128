"""`jaxrl.core.schema`: a document has the declared shape, or is refused by place."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from jaxrl.core import schema
from jaxrl.errors import InvalidInput


@dataclass(frozen=True)
class Part:
    name: str
    size: schema.Count = 0


@dataclass(frozen=True)
class Whole:
    OPEN = True
    finished: bool
    numbers: list[float | None]
    place: tuple[str, int]
    parts: dict[str, Part] = field(default_factory=dict)
    best: Part | None = None
    more: Any = None


FINE = {
    "finished": True,
    "numbers": [1, 0.5, None],
    "place": ["a", 2],
    "parts": {"x": {"name": "y"}},
    "another": 5,
}


def test_what_fits_is_accepted():
    schema.check(Whole, FINE, "file")
    schema.check(dict[str, Any], {}, "file")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"finished": 1}, "finished"),
        ({"numbers": [1, True]}, r"numbers\[1\]"),
        ({"numbers": [float("inf")]}, r"numbers\[0\]"),
        ({"numbers": {}}, "numbers"),
        ({"place": ["a"]}, "place"),
        ({"place": ["a", 2.0]}, r"place\[1\]"),
        ({"parts": {"x": {}}}, "parts.x.name"),
        ({"parts": {"x": {"name": "y", "siz": 1}}}, "did you mean 'size'"),
        ({"parts": {"x": {"name": "y", "size": 10**30}}}, "parts.x.size"),
        ({"parts": {"x": {"name": "y", "size": -1}}}, "parts.x.size"),
        ({"parts": {"x": None}}, "parts.x"),
        ({"best": 5}, "best"),
    ],
)
def test_what_does_not_fit_is_refused_by_file_and_place(change, where):
    with pytest.raises(InvalidInput, match=f"^file .*{where}"):
        schema.check(Whole, FINE | change, "file")


@pytest.mark.parametrize("content", [None, 5, [1], "text"])
def test_another_document_is_refused(content):
    with pytest.raises(InvalidInput, match="file "):
        schema.check(Whole, content, "file")
    with pytest.raises(InvalidInput, match="file "):
        schema.check(dict[str, Part], content, "file")
