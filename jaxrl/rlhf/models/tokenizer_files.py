"""A `tokenizer.json` made safe to use: what it may not do, and what is not kept of it.

The library that reads it ends the process where memory runs out, so sizes are checked
before it is called. Its errors, and the panics of its Rust code, become `InvalidInput`.
"""

import base64
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jaxrl.core import files
from jaxrl.errors import InvalidInput, one_line, require

Result = TypeVar("Result")

MAX_FILE = 1 << 28
"""Maximum bytes of the file; the largest in use have about 40 MB."""

MAX_GROWTH = 2_000
"""Maximum bytes that its rules may make of one byte."""

MAX_EXPANDED = 1 << 26
"""Maximum bytes that its rules may make of one text."""

MISSING = "\ufdd0"
"""Name of no token. A model that is given it for the unknown fails where it would
otherwise leave a character out."""


def read(path: Path) -> dict[str, Any]:
    """The description in a file, as `prepare` gives it.

    Raises:
      InvalidInput: it is none, or one that is not used.
    """
    try:
        content = files.parse_json(files.read_bytes(path, MAX_FILE), path.name)
    except files.Unreadable as error:
        raise InvalidInput(f"{path} is no tokenizer.json: {error}") from error
    return prepare(content, str(path))


def prepare(content: Any, path: str) -> dict[str, Any]:
    """The description of a tokenizer whose result depends on the text alone.

    Padding, truncation, special tokens added to every text, and random merges are left
    out: they are the state in which another program stored it.

    Args:
      content: as JSON has it.
      path: for messages.

    Raises:
      InvalidInput: it has another form, or sizes beyond the limits.
    """
    try:
        model = dict(content["model"])
        _check_numbers(content, path)
        growth = measure_growth(content)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"{path} is no tokenizer.json: it has no valid {one_line(str(error))[:200]}."
        ) from error
    require(
        growth <= MAX_GROWTH,
        f"{path} is not used: its rules may make {growth:.3g} bytes of one, at most "
        f"{MAX_GROWTH:,}.",
    )
    for name in ("dropout", "alpha", "nbest_size"):
        model.pop(name, None)
    if "unk_id" not in model:
        model["unk_token"] = MISSING
    own = {"model": model, "padding": None, "truncation": None, "post_processor": None}
    return content | own


def _check_numbers(content: dict[str, Any], path: str) -> None:
    """Tables are as long as the greatest number of a token, whatever they hold."""
    found = content["model"]["vocab"]
    in_order = isinstance(found, list)
    numbers = list(range(len(found))) if in_order else list(found.values())
    numbers += [token["id"] for token in content.get("added_tokens") or ()]
    require(bool(numbers), f"{path} has no tokens: its vocabulary is empty.")
    require(
        all(type(x) is int for x in numbers),
        f"{path}: a token's id is no whole number.",
    )
    least, greatest, limit = min(numbers), max(numbers), 1000 + 10 * len(numbers)
    require(
        least >= 0 and greatest < limit,
        f"{path}: a token has the id {least if least < 0 else greatest}: must be at "
        f"least 0 and, with {len(numbers):,} tokens, less than {limit:,}.",
    )
    require(MISSING not in found, f"{path}: a token is {MISSING!r}: remove it.")


def measure_growth(content: dict[str, Any]) -> float:
    """The most bytes that the rules of a tokenizer make of one byte, of text or tokens.

    Unicode's forms are not counted: applied again they change nothing, so that however
    many there are, they make little.
    """
    reading = _product(content, "normalizer", "pre_tokenizer")
    return max(reading, _product(content, "decoder"))


def _product(content: dict[str, Any], *stages: str) -> float:
    rules = [rule for stage in stages for rule in _rules(content.get(stage))]
    return math.prod(map(_growth_of, rules))


def _rules(rule: Any) -> Iterator[dict[str, Any]]:
    """The rules of a sequence of rules, and of sequences in it."""
    if rule is None:
        return
    inner = [x for name in SEQUENCES for x in rule.get(name) or ()]
    yield rule
    for x in inner:
        yield from _rules(x)


SEQUENCES = ("normalizers", "pretokenizers", "decoders")


def _growth_of(rule: dict[str, Any]) -> float:
    kind = rule.get("type")
    if kind == "Replace":
        new = len(rule["content"].encode())
        old = rule["pattern"].get("String")
        # An expression may match nothing, before each byte.
        return 1 + new if old is None else max(1.0, new / max(len(old.encode()), 1))
    if kind == "Prepend":
        return 1 + len(rule["prepend"].encode())
    if kind == "Precompiled":
        # SentencePiece: the size of a trie, the trie, then texts that end in 0.
        stored = base64.b64decode(rule["precompiled_charsmap"] or "")
        texts = stored[4 + int.from_bytes(stored[:4], "little") :]
        return max(1, *map(len, texts.split(b"\0")))
    return 2 if kind == "ByteLevel" else 1


def check_expansion(text: str, growth: float, path: str) -> None:
    """Refuse a text of which the rules of a tokenizer may make too much.

    Raises:
      InvalidInput: they may.
    """
    size = len(text.encode(errors="replace")) * growth
    require(
        size <= MAX_EXPANDED,
        f"a text of {len(text):,} characters may become {size:,.0f} bytes by the rules "
        f"of {path}, at most {MAX_EXPANDED:,}: split the text.",
    )


def call(function: Callable[[], Result], failed: str) -> Result:
    """Call the library; its errors become `InvalidInput`, one sentence after `failed`.

    Its panics are no `Exception`.
    """
    try:
        return function()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = one_line(str(error))[:200]
        raise InvalidInput(f"{failed}: {reason}.") from error
