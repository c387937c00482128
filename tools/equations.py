"""mkdocstrings extension for our docstrings: equations keep their lines, sources a heading.

A paragraph of equations has manually aligned lines; in Markdown they would run
together, and `*` and `_` would become emphasis.
"""

import re
from typing import Any

import griffe

EQUATION = re.compile(r"[=←≤≈~∝]|\S {3,}\S")
SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes|Examples?):\n")


def is_equation(paragraph: str) -> bool:
    lines = paragraph.split("\n")
    shown = [line for line in lines if EQUATION.search(line) and "`" not in line]
    return len(shown) * 2 >= len(lines) and not re.search(r"[.:;]$", paragraph)


def formatted(text: str) -> str:
    """Format equations between the first paragraph and the arguments as code."""
    head, *tail = re.split(r"\n\n(?=(?:Args|Returns):\n|Source: )", text, maxsplit=1)
    first, *rest = head.split("\n\n")
    rest = [f"```text\n{x}\n```" if is_equation(x) else x for x in rest]
    return "\n\n".join([first, *rest, *tail])


class Equations(griffe.Extension):
    """Extension that formats every docstring before it is parsed into sections."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = formatted(obj.docstring.value)
