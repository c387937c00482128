"""Errors of the user, and helpers for their messages. Imports nothing of jaxrl."""

import difflib
from collections.abc import Iterable


class InvalidInput(ValueError):
    """Bad input from the user: one sentence naming the field, the value and the fix."""


def require(condition: bool, message: str) -> None:
    """Raises `InvalidInput(message)` unless the condition holds."""
    if not condition:
        raise InvalidInput(message)


def nearest(value: str, choices: Iterable[str]) -> str | None:
    """The choice most like `value`, ignoring case, or None where none is like it.

    A choice that begins with `value` counts as like it: "catch" is "Catch-bsuite".
    """
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(value.lower(), by_lower, n=1)
    prefixed = [c for c in by_lower if value and c.startswith(value.lower())]
    return next((by_lower[c] for c in (*close, *prefixed)), None)


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """The words " (did you mean 'x'?)", or none at all where no choice is near.

    To be put inside a sentence: `f"There is no {name}{did_you_mean(name, names)}."`
    """
    choice = nearest(value, choices)
    return "" if choice is None else f" (did you mean {choice!r}?)"


def one_line(message: str) -> str:
    """A message on a single line, for a terminal."""
    return " ".join(message.split())


def counted(n: int, noun: str) -> str:
    """For example "1 seed", "2,000 seeds"."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
