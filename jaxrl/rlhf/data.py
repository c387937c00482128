"""Text that language models are trained with: files of rows, and arrays made of them.

Files are JSONL or Parquet, with the columns of TRL:

    text                              pretraining
    prompt completion                 supervised fine-tuning
    prompt chosen rejected [margin]   preferences
    prompt ranked                     rankings: a list of answers, best first
    prompt                            prompts to be answered

Other columns are not looked at. A value is a string or a conversation
(`jaxrl.rlhf.models.chat`). A row that cannot be used is refused by file and line; none is
dropped in silence.

Shapes: R rows, K answers to one prompt, T columns, P columns of a prompt.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from jaxrl.core import config as configs
from jaxrl.core import storage
from jaxrl.errors import InvalidInput, count_noun, did_you_mean, one_line, require
from jaxrl.rlhf.models import chat, tokenizers
from jaxrl.rlhf.models.chat import Message, Template
from jaxrl.rlhf.models.tokenizers import Tokenizer

Report = Callable[[str], None]
Item = TypeVar("Item")
AnyArray = Any
"""NumPy's as it is read, JAX's once it is on the device."""


class Row(dict[str, Any]):
    """The columns of one row, by name, and where it stands."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where
        """For messages: "data.jsonl, line 3"."""


class Texts(NamedTuple):
    """For `objectives.next_token_loss(logits, tokens, target)`."""

    tokens: AnyArray
    """Int32 `[R, T]`, padded on the right."""
    mask: AnyArray
    """Bool `[R, T]`: real tokens."""
    target: AnyArray
    """Bool `[R, T]`: tokens to be predicted: a completion with its EOS, or a whole text."""


class Pairs(NamedTuple):
    """Answers to one prompt, better before worse: K = 2 for a pair, chosen first."""

    tokens: AnyArray
    """Int32 `[R, K, T]`: prompt, answer, EOS; padded on the right."""
    mask: AnyArray
    """Bool `[R, K, T]`: real tokens."""
    answer: AnyArray
    """Bool `[R, K, T]`: the answer's tokens and its EOS."""
    margin: AnyArray
    """Float32 `[R]`: by how much more the best should get; 0 without the column."""


class Prompts(NamedTuple):
    """For `generation.generate(model, params, tokens, mask, ...)`."""

    tokens: AnyArray
    """Int32 `[R, P]`, padded on the left."""
    mask: AnyArray
    """Bool `[R, P]`: real tokens."""


# Files.


def read(path: str | Path) -> list[Row]:
    """All rows of a file, in its order.

    Args:
      path: `.jsonl`, one JSON object a line in UTF-8, where blank lines are no rows; or
        `.parquet`, read by `pyarrow` (the extra `rlhf`). Lines and rows count from 1.

    Raises:
      InvalidInput: there is no such file, it is of neither kind, a line is no object, or
        there are no rows.
    """
    path = Path(path)
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    require(
        path.suffix in readers,
        f"{path}: the name must end in .jsonl or .parquet"
        f"{did_you_mean(path.suffix, readers)}.",
    )
    rows = readers[path.suffix](path)
    require(bool(rows), f"{path} has no rows: give a file with one or more.")
    return rows


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSONL file, all of it or nothing; one that is there is replaced.

    Args:
      path: ends in `.jsonl`.
      rows: columns by name, as JSON has them; no NaN.

    Raises:
      InvalidInput: the path is another, cannot be written, or a row is no JSON.
    """
    path = _jsonl(path)
    text = "".join(_line(f"row {i}", row) for i, row in enumerate(rows, 1))
    try:
        storage.write_text(path, text)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written ({error.strerror}).") from error


@contextmanager
def appended(
    path: str | Path, report: Report = print
) -> Iterator[tuple[list[Row], Callable[[Mapping[str, Any]], None]]]:
    """A JSONL file that grows row by row and survives a kill between any two bytes.

    A last line that was written in part is cut off; nothing else is changed. One process
    at a time may have the file open.

    Args:
      path: ends in `.jsonl`; made if there is none.
      report: is told when a line was cut off.

    Yields:
      (the rows that are there, a function that adds one). When it returns the row is on
      the disk.

    Raises:
      InvalidInput: the path is another, cannot be opened, is in use by another process, or
        holds a line that is no object.
    """
    path = _jsonl(path)
    try:
        file = FileIO(path, "a+")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written ({error.strerror}).") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidInput(
                f"{path} is in use by another process: wait for it, or stop it."
            ) from error
        rows = _whole_rows(path, file, report)
        storage.sync_folder(path.parent)

        def append(row: Mapping[str, Any]) -> None:
            _put(file, _line("the new row", row).encode())

        yield rows, append


def characters(rows: Iterable[Mapping[str, Any]]) -> str:
    """Every character of the rows' texts once, in order: an alphabet."""
    found: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, str):
            found.update(value)
        elif isinstance(value, Mapping):
            look(value.get("content"))
        elif isinstance(value, list):
            for x in value:
                look(x)

    for row in rows:
        for name in COLUMNS:
            look(row.get(name))
    return "".join(sorted(found))


COLUMNS = ("text", "prompt", "completion", "chosen", "rejected", "ranked")
"""That hold text."""


def split(
    rows: Sequence[Item], share: float, seed: int
) -> tuple[list[Item], list[Item]]:
    """Two parts of the rows, drawn at random, each in the order of the file.

    Args:
      rows: two or more.
      share: of the rows that are held out, between 0 and 1; one row at least, and never
        all.
      seed: the same seed gives the same parts.

    Returns:
      (rows to train with, rows held out). Rows are parted, not prompts: those with equal
      prompts may stand in both.
    """
    configs.check_value("share", float, share, above=0.0)
    require(share < 1.0, f"share = {share}: must be less than 1.")
    require(len(rows) > 1, f"{count_noun(len(rows), 'row')}: two parts need 2 or more.")
    number = min(max(round(share * len(rows)), 1), len(rows) - 1)
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out = set(order[:number].tolist())
    train = [row for i, row in enumerate(rows) if i not in held_out]
    return train, [rows[i] for i in sorted(held_out)]


# Arrays.


def texts(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    max_length: int | None,
    pack: bool = False,
    template: str | Template = "plain",
    too_long: Literal["error", "drop"] = "error",
    report: Report = print,
) -> Texts:
    """Texts for pretraining, of the column `text`, each with EOS; all is to be predicted.

    Args:
      rows: of `read`, or any mappings.
      tokenizer: must have an EOS.
      max_length: T; none means the longest text's.
      pack: the texts one behind the other, EOS between them, cut to rows of T tokens.
        Nothing is dropped, and only the last row is padded. Attention is not cut: the
        texts of one row see those before them, as in the pretraining of GPT-2 and GPT-3
        (Brown et al., 2020, https://arxiv.org/abs/2005.14165, appendix B). The first token
        of a row has nothing before it, so it is read and not predicted.
      template: for texts that are conversations. A string is taken as it is.
      too_long: a text with more than T tokens is an error, or dropped and counted to
        `report`.
      report: is told how many were dropped.

    Raises:
      InvalidInput: a row cannot be used; it is named.
    """
    reading = _reading(rows, tokenizer, max_length, template, too_long, report, True)
    require(
        not pack or max_length is not None,
        "max_length = None: packed rows need a length.",
    )
    parts = [[_text(reading, *row)] for row in _numbered(rows)]
    if pack:
        return _packed([s.tokens for (s,) in parts], tokenizer.pad, max_length or 1)
    tokens, mask, _ = _arrays(reading, _fitting(reading, rows, parts))
    return Texts(tokens[:, 0], mask[:, 0], mask[:, 0])


def completions(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    max_length: int | None,
    template: str | Template = "plain",
    too_long: Literal["error", "drop"] = "error",
    report: Report = print,
) -> Texts:
    """Prompts with their answers, for supervised fine-tuning: the answers and their EOS
    are to be predicted.

    Prompt and answer become tokens one by one, so a prompt has the tokens here that it
    has in `prompts`. What a template writes behind the tokenizer's own EOS is left out.

    Args:
      rows: with the columns `prompt` and `completion`.
      tokenizer: must have an EOS.
      max_length: T, of prompt, answer and EOS together; none means the longest one's.
      template: name, Jinja text or function, see `chat.template`.
      too_long: as for `texts`.
      report: as for `texts`.

    Raises:
      InvalidInput: a row cannot be used; it is named.
    """
    reading = _reading(rows, tokenizer, max_length, template, too_long, report, True)
    parts = [
        _answers(reading, row, where, {"completion": _value(where, row, "completion")})
        for row, where in _numbered(rows)
    ]
    tokens, mask, answer = _arrays(reading, _fitting(reading, rows, parts))
    return Texts(tokens[:, 0], mask[:, 0], answer[:, 0])


def preferences(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    max_length: int | None,
    template: str | Template = "plain",
    too_long: Literal["error", "drop"] = "error",
    report: Report = print,
) -> Pairs:
    """Two answers to each prompt, of which the first was preferred.

    Args:
      rows: with the columns `prompt`, `chosen`, `rejected`, and `margin` in all or none.
      tokenizer: as for `completions`, and so are the others.
      max_length: T.
      template: of the text.
      too_long: a row is too long when one of its answers is.
      report: is told how many were dropped.

    Raises:
      InvalidInput: a row cannot be used; it is named.
    """
    reading = _reading(rows, tokenizer, max_length, template, too_long, report, True)
    names = ("chosen", "rejected")
    parts = [
        _answers(reading, row, where, {n: _value(where, row, n) for n in names})
        for row, where in _numbered(rows)
    ]
    with_margin = any(row.get("margin") is not None for row in rows)
    margins = [_margin(row, where, with_margin) for row, where in _numbered(rows)]
    kept = _fitting(reading, rows, parts)
    margin = np.array([margins[i] for i, _ in kept], np.float32)
    return Pairs(*_arrays(reading, kept), margin)


def rankings(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    max_length: int | None,
    template: str | Template = "plain",
    too_long: Literal["error", "drop"] = "error",
    report: Report = print,
) -> Pairs:
    """K answers to each prompt, best first, for `objectives.ranking_loss`.

    Args:
      rows: with the columns `prompt` and `ranked`, a list of K answers, K the same in all
        rows.
      tokenizer: as for `completions`, and so are the others.
      max_length: T.
      template: of the text.
      too_long: a row is too long when one of its answers is.
      report: is told how many were dropped.

    Raises:
      InvalidInput: a row cannot be used; it is named.
    """
    reading = _reading(rows, tokenizer, max_length, template, too_long, report, True)
    parts = [
        _answers(reading, row, where, _ranked(where, row))
        for row, where in _numbered(rows)
    ]
    for (_, where), part in zip(_numbered(rows), parts, strict=True):
        require(
            len(part) == len(parts[0]),
            f"{where}: ranked has {len(part)} answers, the first row has "
            f"{len(parts[0])}: give as many in each row.",
        )
    kept = _fitting(reading, rows, parts)
    return Pairs(*_arrays(reading, kept), np.zeros(len(kept), np.float32))


def prompts(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    max_length: int | None,
    template: str | Template = "plain",
    too_long: Literal["error", "drop"] = "error",
    report: Report = print,
    limit: str = "max_length",
) -> Prompts:
    """Prompts to be answered, of the column `prompt`.

    Args:
      rows: of `read`, or any mappings.
      tokenizer: whose tokens they become.
      max_length: P; none means the longest prompt's.
      template: writes up to where the answer begins.
      too_long: as for `texts`.
      report: as for `texts`.
      limit: what the caller calls `max_length`, for messages.

    Raises:
      InvalidInput: a row cannot be used; it is named.
    """
    reading = _reading(rows, tokenizer, max_length, template, too_long, report, False)
    reading = reading._replace(limit=limit)
    found = [_prompt(reading, *row).tokens for row in _numbered(rows)]
    parts = [[_Sequence("prompt", tokens, 0)] for tokens in found]
    kept = [tokens for _, ((_, tokens, _),) in _fitting(reading, rows, parts)]
    return Prompts(*tokenizers.padded(kept, tokenizer.pad, max_length))


# Reading files.


def _read_jsonl(path: Path) -> list[Row]:
    try:
        return _json_rows(path, path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror}).") from error


def _json_rows(path: Path, content: bytes) -> list[Row]:
    lines = enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
    return [
        Row(_object(f"{path}, line {i}", line), f"{path}, line {i}")
        for i, line in lines
        if line.strip()
    ]


def _object(where: str, line: bytes) -> dict[str, Any]:
    try:
        # Of bytes JSON would guess the encoding.
        found = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{where} is no JSON ({error}): write one object a line, in UTF-8."
        ) from error
    require(
        isinstance(found, dict),
        f"{where} is a JSON {type(found).__name__}: write an object, such as "
        f'{{"prompt": "...", "completion": "..."}}.',
    )
    return found


def _read_parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InvalidInput(
            f"{path} needs the package pyarrow: pip install 'jaxrl[rlhf]'."
        ) from error
    try:
        found = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own are among these
        raise InvalidInput(
            f"{path} cannot be read as Parquet ({one_line(str(error))})."
        ) from error
    return [Row(values, f"{path}, row {i}") for i, values in enumerate(found, 1)]


def _whole_rows(path: Path, file: FileIO, report: Report) -> list[Row]:
    """The rows of a growing file, after what a kill left of a last one is cut off."""
    file.seek(0)
    content = file.readall()
    end = content.rfind(b"\n") + 1
    whole, last = _json_rows(path, content[:end]), content[end:]
    if not last.strip():
        return whole
    if last.startswith(b"{") and not _is_json(last):
        file.truncate(end)
        os.fsync(file.fileno())
        report(f"{path}: its last line was written in part, and is cut off.")
        return whole
    rows = _json_rows(path, content)
    _put(file, b"\n")
    return rows


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode())
    except ValueError:
        return False
    return True


def _put(file: FileIO, content: bytes) -> None:
    """Writes all of it and syncs to the disk."""
    while content:
        content = content[file.write(content) :]
    os.fsync(file.fileno())


def _line(where: str, row: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n"
        text.encode()
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{where} cannot be written as JSON ({error}).") from error
    return text


def _jsonl(path: str | Path) -> Path:
    path = Path(path)
    require(path.suffix == ".jsonl", f"{path}: the name must end in .jsonl.")
    return path


# Reading rows.


class _Reading(NamedTuple):
    """What all rows of a call are read with."""

    tokenizer: Tokenizer
    template: Template
    max_length: int | None
    too_long: str
    report: Report
    limit: str = "max_length"


class _Sequence(NamedTuple):
    """Tokens of a text, of which the first `start` are the prompt's."""

    name: str
    tokens: list[int]
    start: int


def _reading(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    max_length: int | None,
    template: str | Template,
    too_long: str,
    report: Report,
    needs_eos: bool,
) -> _Reading:
    configs.check_value("max_length", int | None, max_length, low=1)
    configs.check_value("too_long", Literal["error", "drop"], too_long)
    require(len(rows) > 0, "there are no rows: give one or more.")
    require(
        not needs_eos or tokenizer.eos is not None,
        "the tokenizer has no eos, with which a text ends: name it, as in "
        "tokenizers.from_file(path, eos='</s>').",
    )
    return _Reading(tokenizer, chat.template(template), max_length, too_long, report)


def _numbered(
    rows: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Each row with where it stands."""
    for i, row in enumerate(rows, 1):
        yield row, getattr(row, "where", f"row {i}")


def _value(where: str, row: Mapping[str, Any], name: str) -> Any:
    require(
        row.get(name) is not None,
        f"{where}: column {name!r} is missing{did_you_mean(name, set(row) - {name})}; "
        f"fill it in, or name the columns as TRL does.",
    )
    return row[name]


def _messages(where: str, name: str, value: Any, role: str) -> list[Message]:
    """A string or a conversation as messages, which say something."""
    found = [{"role": role, "content": value}] if isinstance(value, str) else value
    is_conversation = isinstance(found, list) and all(map(_is_message, found))
    require(
        is_conversation,
        f"{where}: {name} = {_short(value)}: must be text, or a list of messages with "
        f"the texts role and content.",
    )
    texts = [message["content"] for message in found]
    require(any(texts), f"{where}: {name} is empty: fill it in, or remove the row.")
    return found


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _text(reading: _Reading, row: Mapping[str, Any], where: str) -> _Sequence:
    value = _value(where, row, "text")
    messages = _messages(where, "text", value, "user")
    whole = value if isinstance(value, str) else ""
    whole = whole or _rendered(reading, where, "text", messages, False)
    tokens = _ended(_tokens(reading, where, "text", whole), reading.tokenizer)
    return _Sequence("text", tokens, 0)


class _Asked(NamedTuple):
    """A prompt: its messages, their text up to where an answer begins, its tokens."""

    messages: list[Message]
    text: str
    tokens: list[int]


def _prompt(reading: _Reading, row: Mapping[str, Any], where: str) -> _Asked:
    messages = _messages(where, "prompt", _value(where, row, "prompt"), "user")
    text = _rendered(reading, where, "prompt", messages, True)
    return _Asked(messages, text, _tokens(reading, where, "prompt", text))


def _answers(
    reading: _Reading, row: Mapping[str, Any], where: str, values: dict[str, Any]
) -> list[_Sequence]:
    """The prompt with each of the answers, which are by name; all are different."""
    prompt = _prompt(reading, row, where)
    found: list[_Sequence] = []
    for name, value in values.items():
        answer = _messages(where, name, value, "assistant")
        whole = _rendered(reading, where, name, [*prompt.messages, *answer], False)
        require(
            whole.startswith(prompt.text),
            f"{where}: the template writes the prompt differently when {name} follows: "
            f"use one whose generation prompt is where an answer begins.",
        )
        tokens = _tokens(reading, where, name, whole[len(prompt.text) :])
        tokens = prompt.tokens + _ended(tokens, reading.tokenizer)
        same = [other.name for other in found if other.tokens == tokens]
        require(
            not same,
            f"{where}: {', '.join(same)} and {name} are the same: remove the row.",
        )
        found.append(_Sequence(name, tokens, len(prompt.tokens)))
    return found


def _ranked(where: str, row: Mapping[str, Any]) -> dict[str, Any]:
    values = _value(where, row, "ranked")
    require(
        isinstance(values, list) and len(values) > 1,
        f"{where}: ranked = {_short(values)}: must be a list of two answers or more, "
        f"best first.",
    )
    return {f"ranked[{i}]": value for i, value in enumerate(values)}


def _margin(row: Mapping[str, Any], where: str, is_wanted: bool) -> float:
    value: Any = row.get("margin")
    if value is None and not is_wanted:
        return 0.0
    require(
        value is not None,
        f"{where}: column 'margin' is missing, which other rows have: fill it in.",
    )
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # NaN is not at most anything.
    require(
        is_number and abs(value) <= configs.MAX_FLOAT,
        f"{where}: margin = {_short(value)}: must be a finite number.",
    )
    return float(value)


def _rendered(
    reading: _Reading,
    where: str,
    name: str,
    messages: Sequence[Message],
    answer_follows: bool,
) -> str:
    try:
        return reading.template(messages, answer_follows)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {name}: {error}") from error


def _tokens(reading: _Reading, where: str, name: str, text: str) -> list[int]:
    try:
        text.encode()
        tokens = reading.tokenizer.encode(text)
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{where}: {name} is no Unicode ({error}): replace that character."
        ) from error
    except InvalidInput as error:
        # The tokenizer quotes all of the text, which may be long.
        problem = str(error).removeprefix(repr(text))
        raise InvalidInput(
            f"{where}: {name}{problem.rstrip('.')}; replace them, or use another "
            f"tokenizer."
        ) from error
    require(
        len(tokens) > 0,
        f"{where}: {name} is empty for the tokenizer: fill it in, or remove the row.",
    )
    return tokens


def _ended(tokens: list[int], tokenizer: Tokenizer) -> list[int]:
    """With EOS at the end, once; blanks that a template writes behind it are left out."""
    eos = tokenizer.eos
    assert eos is not None
    if eos in tokens:
        end = len(tokens) - tokens[::-1].index(eos)
        if not tokenizer.decode(tokens[end:]).strip():
            return tokens[:end]
    return [*tokens, eos]


# Making arrays.


def _fitting(
    reading: _Reading,
    rows: Sequence[Mapping[str, Any]],
    parts: list[list[_Sequence]],
) -> list[tuple[int, list[_Sequence]]]:
    """Number and sequences of the rows that fit."""
    kept, dropped = [], []
    for i, ((_, where), part) in enumerate(zip(_numbered(rows), parts, strict=True)):
        longest = max(part, key=lambda sequence: len(sequence.tokens))
        excess = len(longest.tokens) - (reading.max_length or len(longest.tokens))
        if excess <= 0:
            kept.append((i, part))
            continue
        require(reading.too_long == "drop", _too_long(reading, where, longest, excess))
        dropped.append(where)
    if dropped:
        reading.report(
            f"{len(dropped)} of {count_noun(len(rows), 'row')} dropped, longer than "
            f"{reading.limit} = {reading.max_length} tokens: the first is {dropped[0]}."
        )
    require(
        bool(kept),
        f"{reading.limit} = {reading.max_length}: every row is longer, none is left.",
    )
    return kept


def _too_long(reading: _Reading, where: str, longest: _Sequence, excess: int) -> str:
    is_answer = 0 < longest.start < len(longest.tokens)
    name = f"prompt and {longest.name}" if is_answer else longest.name
    verb = "have" if is_answer else "has"
    return (
        f"{where}: {name} {verb} {count_noun(len(longest.tokens), 'token')}, {excess} more "
        f"than {reading.limit} = {reading.max_length}: shorten the text, raise "
        f"{reading.limit}, or drop such rows by too_long = 'drop'."
    )


def _arrays(
    reading: _Reading, kept: list[tuple[int, list[_Sequence]]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, mask, answer) `[R, K, T]`, padded on the right."""
    sequences = [part for _, part in kept]
    longest = max(len(s.tokens) for part in sequences for s in part)
    shape = (len(sequences), len(sequences[0]), reading.max_length or longest)
    tokens = np.full(shape, reading.tokenizer.pad, np.int32)
    mask, answer = np.zeros(shape, bool), np.zeros(shape, bool)
    for i, part in enumerate(sequences):
        for k, (_, row, start) in enumerate(part):
            tokens[i, k, : len(row)] = row
            mask[i, k, : len(row)] = True
            answer[i, k, start : len(row)] = True
    return tokens, mask, answer


def _packed(texts: list[list[int]], pad: int, length: int) -> Texts:
    stream = np.concatenate([np.asarray(text, np.int32) for text in texts])
    rows = -(-len(stream) // length)
    tokens = np.full(rows * length, pad, np.int32)
    tokens[: len(stream)] = stream
    mask = np.arange(rows * length) < len(stream)
    shape = (rows, length)
    return Texts(tokens.reshape(shape), mask.reshape(shape), mask.reshape(shape))
