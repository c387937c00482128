"""User errors, and helpers for their messages. Imports nothing of jaxrl."""

import difflib
import re
import unicodedata
from collections.abc import Iterable

LONGEST = 200
"""Characters of a value that a message repeats."""

_LONG = re.compile(
    # Text in quotes that does not begin inside a word, as an apostrophe does.
    rf"(?<!\w)(?P<quote>['\"])(?:(?!(?P=quote)).){{{LONGEST},}}(?P=quote)?"
    # Numbers with something between them, as in lists.
    rf"|[-+.\de]+(?:[\s,\[\]()]+[-+.\de]+){{{LONGEST // 3},}}"
    rf"|\S{{{LONGEST},}}",
    re.DOTALL,
)

_PROSE = re.compile(r"\([^\W\d]")
"""A parenthesis that begins with a word: one of the message's own."""


class InvalidInput(ValueError):
    """Bad input from the user: one sentence naming the field, the value and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(shorten_values(message))


def require(condition: bool, message: str) -> None:
    """Raise `InvalidInput(message)` unless the condition holds."""
    if not condition:
        raise InvalidInput(message)


def nearest(value: str, choices: Iterable[str]) -> str | None:
    """The choice most similar to `value`, ignoring case, or None if none is similar.

    A choice that begins with `value` counts as similar: "catch" is "Catch-bsuite".
    """
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(value.lower(), by_lower, n=1)
    prefixed = [c for c in by_lower if value and c.startswith(value.lower())]
    return next((by_lower[c] for c in (*close, *prefixed)), None)


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """Suggestion " (did you mean 'x'?)" for an error message, or "" if none is similar.

    Use inside a sentence: `f"There is no {name}{did_you_mean(name, names)}."`
    """
    choice = nearest(value, choices)
    return "" if choice is None else f" (did you mean {choice!r}?)"


def shorten_values(message: str) -> str:
    """Cut every value in a message that is longer than `LONGEST` characters."""

    def cut(found: re.Match) -> str:
        text = found.group()
        if len(text) <= LONGEST:
            return text
        quote = found["quote"] or ""
        return text[: LONGEST - 3 - len(quote)] + "..." + quote

    return _cut_lists(_LONG.sub(cut, message))


CLOSED = {"[": "]", "{": "}", "(": ")"}


def _cut_lists(message: str) -> str:
    """Cut lists, tables and tuples that are longer, whatever they hold."""
    opened: list[tuple[str, int]] = []
    cuts: list[tuple[int, int]] = []
    for bracket in re.finditer(r"[\[{(\]})]", message):
        if bracket.group() in CLOSED:
            opened.append((CLOSED[bracket.group()], bracket.start()))
        elif opened and opened[-1][0] == bracket.group():
            start, end = opened.pop()[1], bracket.end()
            if end - start > LONGEST and not _PROSE.match(message, start):
                while cuts and cuts[-1][0] > start:  # those inside of it
                    cuts.pop()
                cuts.append((start, end))
    for start, end in reversed(cuts):
        message = f"{message[: start + LONGEST - 4]}...{message[end - 1 :]}"
    return message


def install_command(extra: str) -> str:
    """How an extra is installed, from an index or in a checkout, for an error message."""
    return (
        f"install the extra {extra!r} (pip install 'jaxrl[{extra}]', or in a checkout "
        f"pip install -e '.[{extra}]')"
    )


def one_line(message: str) -> str:
    """Join a message to a single line, for a terminal."""
    return printable(" ".join(message.split()))


def printable(text: str) -> str:
    """Text of others for a terminal: what would steer it is shown as in a string.

    These are control characters but for line breaks and tabs, halves of surrogate pairs,
    and the signs that reverse the direction of writing.
    """
    return "".join(repr(c)[1:-1] if _steers(c) else c for c in text)


def _steers(character: str) -> bool:
    if character in "\n\t":
        return False
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return turns or unicodedata.category(character) in ("Cc", "Cs")


def count_noun(n: int, noun: str) -> str:
    """Number and noun in agreement, for example "1 seed", "2,000 seeds"."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def shorten(value: object, most: int = 200) -> str:
    """A value in a message: on a line, and of at most so many characters."""
    text = one_line(str(value))
    return text if len(text) <= most else f"{text[: most - 3]}..."
