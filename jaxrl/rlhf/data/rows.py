"""Rows read: their columns checked, their text rendered and turned into tokens."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from jaxrl.core import config as configs
from jaxrl.errors import InvalidInput, count_noun, did_you_mean, require
from jaxrl.rlhf.data.files import Report
from jaxrl.rlhf.models import chat, tokenizers
from jaxrl.rlhf.models.chat import Message, Template
from jaxrl.rlhf.models.tokenizers import Tokenizer

Item = TypeVar("Item")
AnyRow = Mapping[str, Any]
"""A row of `files.read`, or any mapping."""


class Format(NamedTuple):
    """How rows become arrays."""

    tokenizer: Tokenizer
    """With an EOS, which only prompts do without."""
    max_length: int | None = None
    """T, tokens of prompt, response and EOS (P of a prompt alone); None: the longest's."""
    template: str | Template = "plain"
    """How conversations become text: name, Jinja text or function, see `chat.template`."""
    too_long: Literal["error", "drop"] = "error"
    """Whether a row of more tokens is an error, or dropped and counted to `report`. A row
    with several responses is too long when one of them is."""
    report: Report = print
    """Called with how many rows were dropped."""
    limit: str = "max_length"
    """What the caller calls `max_length`, for messages."""


def prepare(format: Format, rows: Sequence[AnyRow], needs_eos: bool) -> Format:
    """The format with its template as a function.

    Raises:
      InvalidInput: a field cannot be, or there are no rows.
    """
    configs.check_value("max_length", int | None, format.max_length, low=1)
    configs.check_value("too_long", Literal["error", "drop"], format.too_long)
    require(len(rows) > 0, "there are no rows: give one or more.")
    require(
        not needs_eos or format.tokenizer.eos is not None,
        "the tokenizer has no eos, with which a text ends: name it, as in "
        "tokenizers.from_file(path, eos='</s>').",
    )
    return format._replace(template=chat.template(format.template))


# Columns.


def characters(rows: Iterable[AnyRow]) -> str:
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
"""Columns that hold text."""


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


def enumerate_rows(rows: Sequence[AnyRow]) -> Iterator[tuple[AnyRow, str]]:
    """Each row with its file and line, for messages."""
    for i, row in enumerate(rows, 1):
        yield row, getattr(row, "where", f"row {i}")


def column(where: str, row: AnyRow, name: str) -> Any:
    """The value of a column that a row must have."""
    require(
        row.get(name) is not None,
        f"{where}: column {name!r} is missing{did_you_mean(name, set(row) - {name})}; "
        f"fill it in, or name the columns as TRL does.",
    )
    return row[name]


def ranked(where: str, row: AnyRow) -> dict[str, Any]:
    """The responses of a ranking, best first, by what messages call them."""
    values = column(where, row, "ranked")
    require(
        isinstance(values, list) and len(values) > 1,
        f"{where}: ranked = {_shorten(values)}: must be a list of two responses or more, "
        f"best first.",
    )
    return {f"ranked[{i}]": value for i, value in enumerate(values)}


def margin(row: AnyRow, where: str, is_wanted: bool) -> float:
    """The column `margin`; 0 without it, unless other rows have one."""
    value: Any = row.get("margin")
    if value is None and not is_wanted:
        return 0.0
    require(
        value is not None,
        f"{where}: column 'margin' is missing, which other rows have: fill it in.",
    )
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # NaN fails the comparison, as intended.
    require(
        is_number and abs(value) <= configs.MAX_FLOAT,
        f"{where}: margin = {_shorten(value)}: must be a finite number.",
    )
    return float(value)


# Messages.


def _read_messages(where: str, name: str, value: Any, role: str) -> list[Message]:
    """A string or a conversation as messages, which say something."""
    found = [{"role": role, "content": value}] if isinstance(value, str) else value
    is_conversation = isinstance(found, list) and all(map(_is_message, found))
    require(
        is_conversation,
        f"{where}: {name} = {_shorten(value)}: must be text, or a list of messages with "
        f"the texts role and content.",
    )
    texts = [message["content"] for message in found]
    require(any(texts), f"{where}: {name} is empty: fill it in, or remove the row.")
    return found


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )


def _shorten(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _render(
    format: Format,
    where: str,
    name: str,
    messages: Sequence[Message],
    response_follows: bool,
) -> str:
    """Text of messages, in which special tokens are the template's alone."""
    template = chat.template(format.template)
    try:
        if template is not chat.rendered:
            messages = [_shield(format.tokenizer, message) for message in messages]
        return template(messages, response_follows)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {name}: {error}") from error


def _shield(tokenizer: Tokenizer, message: Message) -> Message:
    return {
        name: tokenizers.shield(tokenizer, value) if isinstance(value, str) else value
        for name, value in message.items()
    }


# Tokens.


class Tokens(NamedTuple):
    """Tokens of a text, of which the first `start` are the prompt's."""

    name: str
    tokens: list[int]
    start: int


def tokenize_text(format: Format, row: AnyRow, where: str) -> Tokens:
    """The column `text` with EOS; a string is taken as it is."""
    value = column(where, row, "text")
    messages = _read_messages(where, "text", value, "user")
    whole = value if isinstance(value, str) else ""
    whole = whole or _render(format, where, "text", messages, False)
    tokens = _add_eos(_encode(format, where, "text", whole), format.tokenizer)
    return Tokens("text", tokens, 0)


class Prompt(NamedTuple):
    """A prompt: its messages, their text (shielded) up to a response, its tokens."""

    messages: list[Message]
    text: str
    tokens: list[int]


def tokenize_prompt(format: Format, row: AnyRow, where: str) -> Prompt:
    """The column `prompt`, up to where a response begins."""
    messages = _read_messages(where, "prompt", column(where, row, "prompt"), "user")
    text = _render(format, where, "prompt", messages, True)
    return Prompt(messages, text, _encode(format, where, "prompt", text))


def tokenize_responses(
    format: Format, row: AnyRow, where: str, values: dict[str, Any]
) -> list[Tokens]:
    """The prompt with each of the responses, which are by name; all are different."""
    prompt = tokenize_prompt(format, row, where)
    found: list[Tokens] = []
    for name, value in values.items():
        response = _read_messages(where, name, value, "assistant")
        whole = _render(format, where, name, [*prompt.messages, *response], False)
        require(
            whole.startswith(prompt.text),
            f"{where}: the template writes the prompt differently when {name} follows: "
            f"use one whose generation prompt is where a response begins.",
        )
        tokens = _encode(format, where, name, whole[len(prompt.text) :])
        tokens = prompt.tokens + _add_eos(tokens, format.tokenizer)
        same = [other.name for other in found if other.tokens == tokens]
        require(
            not same,
            f"{where}: {', '.join(same)} and {name} are the same: remove the row.",
        )
        found.append(Tokens(name, tokens, len(prompt.tokens)))
    return found


def _encode(format: Format, where: str, name: str, text: str) -> list[int]:
    try:
        text.encode()
        tokens = format.tokenizer.encode(text)
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{where}: {name} is no Unicode ({error}): replace that character."
        ) from error
    except InvalidInput as error:
        # The row is named instead of its text.
        quoted, problem = tokenizers.quote(text), str(error).rstrip(".")
        begin = "" if problem.startswith(quoted) else ": "
        raise InvalidInput(
            f"{where}: {name}{begin}{problem.removeprefix(quoted)}; replace them, or use "
            f"another tokenizer."
        ) from error
    require(
        len(tokens) > 0,
        f"{where}: {name} is empty for the tokenizer: fill it in, or remove the row.",
    )
    return tokens


def _add_eos(tokens: list[int], tokenizer: Tokenizer) -> list[int]:
    """With EOS at the end, once; blanks that a template writes behind it are left out."""
    eos = tokenizer.eos
    assert eos is not None
    if eos in tokens:
        end = len(tokens) - tokens[::-1].index(eos)
        if not tokenizer.decode(tokens[end:]).strip():
            return tokens[:end]
    return [*tokens, eos]
