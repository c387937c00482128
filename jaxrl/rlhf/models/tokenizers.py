"""Tokenizers: bytes, characters, words, and any `tokenizer.json`.

A tokenizer is a value: two functions beside the numbers that a model and a generation need.
Neither function adds or keeps special tokens; `eos` and `pad` are for the caller to place.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl.errors import InvalidInput, install_command, require
from jaxrl.rlhf.models import tokenizer_files
from jaxrl.rlhf.models.transformer import ModelConfig


class Tokenizer(NamedTuple):
    """Text to tokens and back."""

    encode: Callable[[str], list[int]]
    """Raises `InvalidInput` for a character or word that has no token."""
    decode: Callable[[Iterable[int]], str]
    """Leaves out `eos`, `pad` and other special tokens."""
    vocab_size: int
    """Tokens are 0, ..., vocab_size - 1."""
    eos: int | None
    """The token that ends a response, or none."""
    pad: int
    """Token that fills up shorter rows."""
    about: str
    """JSON from which `from_about` makes it again. Equal tokenizers have equal ones."""
    special: tuple[str, ...] = ()
    """Tokens that `encode` reads where their names stand in a text, such as "</s>"; in
    text that others wrote, `shield` keeps it from that."""

    def __eq__(self, other: object) -> bool:
        """So that equal tasks are equal programs."""
        return isinstance(other, Tokenizer) and self[2:] == other[2:]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[2:])


def bytes_of_text() -> Tokenizer:
    """The 256 bytes of UTF-8, then EOS (256) and padding (257).

    Any text has tokens. Tokens that are no UTF-8 are decoded as "�".
    """

    def decode(tokens: Iterable[int]) -> str:
        known = _checked(tokens, 258)
        return bytes(t for t in known if t < 256).decode(errors="replace")

    about = json.dumps({"kind": "bytes"})
    return Tokenizer(lambda text: list(text.encode()), decode, 258, 256, 257, about)


def characters(alphabet: str, own_pad: bool = True) -> Tokenizer:
    """One token for each character of an alphabet, in its order, then EOS and padding.

    Args:
      alphabet: the characters.
      own_pad: whether padding is a token of its own, and not EOS. Masks say what is real
        in both.

    Raises:
      InvalidInput: the alphabet is empty or has a character twice.
    """
    size = len(alphabet)
    twice = sorted({x for x in alphabet if alphabet.count(x) > 1})
    require(size > 0, "alphabet = '': must have a character or more.")
    require(not twice, f"alphabet = {alphabet!r}: has {twice} more than once.")
    number = {character: i for i, character in enumerate(alphabet)}

    def encode(text: str) -> list[int]:
        _require_known(text, [x for x in text if x not in number])
        return [number[x] for x in text]

    def decode(tokens: Iterable[int]) -> str:
        return "".join(alphabet[t] for t in _checked(tokens, pad + 1) if t < size)

    pad = size + own_pad
    about = {"kind": "characters", "alphabet": alphabet, "own_pad": own_pad}
    return Tokenizer(encode, decode, pad + 1, size, pad, json.dumps(about))


def words(vocabulary: Sequence[str]) -> Tokenizer:
    """One token for each word of a vocabulary, in its order, then EOS, which pads too.

    A text is words joined by single spaces.

    Raises:
      InvalidInput: the vocabulary is empty, has a word twice, or one with a space or
        nothing in it.
    """
    return _words(tuple(vocabulary))


@functools.cache
def _words(known: tuple[str, ...]) -> Tokenizer:
    size, number = len(known), {word: i for i, word in enumerate(known)}
    twice = sorted(x for x in number if known.count(x) > 1)
    broken = [x for x in known if len(x.split()) != 1 or x != x.strip()]
    require(size > 0, "vocabulary = (): must have a word or more.")
    require(not twice, f"vocabulary: has {twice} more than once.")
    require(not broken, f"vocabulary: {broken} must be words without spaces.")

    def encode(text: str) -> list[int]:
        parts = text.split(" ") if text else []
        _require_known(text, [x for x in parts if x not in number], "words")
        return [number[x] for x in parts]

    def decode(tokens: Iterable[int]) -> str:
        return " ".join(known[t] for t in _checked(tokens, size + 1) if t < size)

    about = json.dumps({"kind": "words", "vocabulary": known})
    return Tokenizer(encode, decode, size + 1, size, size, about)


def from_file(
    path: str | Path, eos: int | str | None = None, pad: int | str | None = None
) -> Tokenizer:
    """A `tokenizer.json` of Hugging Face, read by `tokenizers` (the extra `rlhf`).

    Padding, truncation and random merges that are stored in the file are left out.

    Args:
      path: the file.
      eos: the token that ends a response, by number or by name.
      pad: the padding token; none means `eos`, or 0 without one.

    Raises:
      InvalidInput: `tokenizers` is not installed, the file is none of its files, or has no
        such token.
    """
    _library(path)
    return _of_library(tokenizer_files.read(Path(path)), eos, pad, str(path))


def from_about(about: dict[str, Any]) -> Tokenizer:
    """The tokenizer whose `about` this is, as JSON reads it.

    Raises:
      InvalidInput: of a file's, `tokenizers` is not installed.
      KeyError: it is none at all.
    """
    if about["kind"] == "bytes":
        return bytes_of_text()
    if about["kind"] == "characters":
        return characters(about["alphabet"], about["own_pad"])
    if about["kind"] == "words":
        return words(about["vocabulary"])
    name = "the tokenizer of this model"
    content = tokenizer_files.prepare(about["content"], name)
    return _of_library(content, about["eos"], about["pad"], name)


def _of_library(
    content: dict[str, Any], eos: int | str | None, pad: int | str | None, path: str
) -> Tokenizer:
    whole = _build(content, path)
    vocabulary = whole.get_vocab(with_added_tokens=True)
    vocab_size = max(vocabulary.values()) + 1

    def number(name: str, token: int | str | None) -> int | None:
        found = vocabulary.get(token) if isinstance(token, str) else token
        missing = token is not None and (found is None or not 0 <= found < vocab_size)
        require(not missing, f"{name} = {token!r}: there is no such token in {path}.")
        return found

    def decode(tokens: Iterable[int]) -> str:
        real = [t for t in _checked(tokens, vocab_size) if t not in (end, padding)]
        failed = f"{path} cannot decode {len(real)} tokens"
        return tokenizer_files.call(
            lambda: whole.decode(real, skip_special_tokens=True), failed
        )

    end = number("eos", eos)
    padding = number("pad", pad)
    padding = (end or 0) if padding is None else padding
    about = {"kind": "file", "content": content, "eos": end, "pad": padding}
    encode, special = _encoder(content, whole, path)
    text = json.dumps(about, ensure_ascii=False)
    return Tokenizer(encode, decode, vocab_size, end, padding, text, special)


def _build(content: dict[str, Any], path: str) -> Any:
    library = _library(path)
    text = json.dumps(content, ensure_ascii=False)
    failed = f"{path} is no tokenizer.json"
    return tokenizer_files.call(lambda: library.Tokenizer.from_str(text), failed)


def _encoder(
    content: dict[str, Any], whole: Any, path: str
) -> tuple[Callable[[str], list[int]], tuple[str, ...]]:
    """The function that encodes, and the special tokens that it reads in a text."""
    growth = tokenizer_files.measure_growth(content)
    unknown_id = content["model"].get("unk_id")
    added = {token["content"]: token for token in content.get("added_tokens") or ()}
    special = {name: x for name, x in added.items() if x.get("special") and name}

    @functools.cache
    def literal() -> Any:
        """Read special tokens as text."""
        other = _build(content, path)
        other.encode_special_tokens = True
        return other

    run = functools.partial(_run, unknown_id, path)

    def encode_parts(text: str) -> list[int]:
        if SHIELD not in text:
            return run(whole, text)
        tokens: list[int] = []
        for part, is_special in _split(special, text):
            tokens += [special[part]["id"]] if is_special else run(literal(), part)
        return tokens

    def encode(text: str) -> list[int]:
        tokenizer_files.check_expansion(text, growth, path)
        try:
            return encode_parts(text)
        except InvalidInput as error:
            # A panic, which is no `Exception`, says nothing about characters.
            if isinstance(error.__cause__, Exception | None):
                _require_known(text, _unknown_characters(encode_parts, unshield(text)))
            raise

    return encode, tuple(special)


def _run(unknown_id: int | None, path: str, library: Any, text: str) -> list[int]:
    """Encode by the library; a token that stands for the unknown is none."""
    failed = f"{path} cannot encode it"
    found: list[int] = tokenizer_files.call(
        lambda: library.encode(text, add_special_tokens=False).ids, failed
    )
    known = unknown_id is None or unknown_id not in found
    require(known, f"{failed}: a part of it has no token.")
    return found


def _split(special: dict[str, Any], text: str) -> Iterator[tuple[str, bool]]:
    """A shielded text as parts, and whether each is a special token."""
    parts = _special_pattern(tuple(special)).split(text)
    none: dict[str, Any] = {}
    for i, part in enumerate(parts):
        if i % 2:
            yield part, True
            continue
        # A token may take the blanks beside it.
        before, after = (
            special[parts[j]] if 0 <= j < len(parts) else none for j in (i - 1, i + 1)
        )
        plain = unshield(part)
        plain = plain.lstrip() if before.get("rstrip") else plain
        yield plain.rstrip() if after.get("lstrip") else plain, False


def _unknown_characters(encode: Callable[[str], list[int]], text: str) -> list[str]:
    """Characters that cannot be encoded alone, of the words that cannot be."""

    def fails(part: str) -> bool:
        try:
            encode(part)
        except InvalidInput:
            return True
        return False

    different = list(dict.fromkeys(re.split(r"(\s)", text)))
    words = [part for part in different[:1000] if fails(part)]
    return [x for x in dict.fromkeys("".join(words)) if fails(x)]


SHIELD = tokenizer_files.MISSING
"""Put before each character of a text that must not be read as a special token."""


def shield(tokenizer: Tokenizer, text: str) -> str:
    """A text in which `encode` reads no special tokens: what looks like one is text.

    Raises:
      InvalidInput: the text has the sign that this takes, which is no character.
    """
    if not tokenizer.special:
        return text
    require(SHIELD not in text, f"the text has {SHIELD!r}, which is no character.")
    return _special_pattern(tokenizer.special).sub(
        lambda found: "".join(SHIELD + x for x in found[0]), text
    )


def unshield(text: str) -> str:
    """The text that `shield` was given."""
    return text.replace(SHIELD, "")


@functools.cache
def _special_pattern(special: tuple[str, ...]) -> re.Pattern[str]:
    """Special tokens that are not shielded, the longest first."""
    names = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    return re.compile(f"(?<!{SHIELD})({names})")


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """A model may have more tokens than its tokenizer (padded tables), never fewer.

    Raises:
      InvalidInput: the tokenizer has tokens that the model does not know.
    """
    require(
        tokenizer.vocab_size <= config.vocab_size,
        f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocab_size is "
        f"{config.vocab_size}: use the tokenizer that the model was trained with.",
    )


def to_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """The text of tokens that a model wrote. A model with more tokens than its tokenizer
    may write one without a text: it is shown as "�"."""

    def known(token: int) -> bool:
        return 0 <= token < tokenizer.vocab_size

    runs = itertools.groupby(map(int, tokens), known)
    return "".join(
        tokenizer.decode(run) if is_known else "�" * len(list(run))
        for is_known, run in runs
    )


def pad_rows(
    rows: Iterable[Iterable[int]], pad: int, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of several lengths as one batch, padded on the left.

    Args:
      rows: tokens of each prompt, one or more.
      pad: the padding token.
      length: columns P; none means the longest prompt's.

    Returns:
      (tokens int32 `[B, P]`, mask bool `[B, P]`).

    Raises:
      InvalidInput: a prompt is empty, or longer than `length`.
    """
    lists = [list(row) for row in rows]
    longest = max(map(len, lists), default=0)
    columns = longest if length is None else length
    tokens = np.full((len(lists), columns), pad, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, row in enumerate(lists):
        require(len(row) > 0, f"prompt {i} is empty: give it one token or more.")
        require(
            len(row) <= columns,
            f"prompt {i} has {len(row)} tokens: at most {columns} fit; shorten it.",
        )
        tokens[i, columns - len(row) :] = row
        mask[i, columns - len(row) :] = True
    return tokens, mask


def _library(reader: Any) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise InvalidInput(
            f"{reader} needs the package tokenizers: {install_command('rlhf')}."
        ) from error
    return tokenizers


def _require_known(text: str, unknown: list[str], kind: str = "characters") -> None:
    if unknown:
        different = list(dict.fromkeys(unknown))
        more = ", ..." if len(different) > 10 else ""
        shown = ", ".join(map(repr, different[:10])) + more
        raise InvalidInput(f"{quote(text)} has {kind} without a token: {shown}.")


def quote(text: str) -> str:
    """A text as it stands in a message, shortened."""
    plain = unshield(text)
    return repr(plain if len(plain) <= 80 else plain[:77] + "...")


def _checked(tokens: Iterable[int], vocab_size: int) -> list[int]:
    known = [int(t) for t in tokens]
    wrong = [t for t in known if not 0 <= t < vocab_size]
    require(
        not wrong, f"token {wrong[:1]} does not exist: there are {vocab_size} tokens."
    )
    return known
