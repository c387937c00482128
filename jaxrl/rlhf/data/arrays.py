"""Arrays made of rows: texts, prompts with responses, preferences, rankings, prompts.

Shapes: R rows, K responses to one prompt, T columns, P columns of a prompt.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl.errors import count_noun, require
from jaxrl.rlhf.data import rows as reading
from jaxrl.rlhf.data.rows import AnyRow, Format, Tokens
from jaxrl.rlhf.models import tokenizers

AnyArray = Any
"""NumPy's as it is read, JAX's once it is on the device."""


class Texts(NamedTuple):
    """For `text_losses.next_token_loss(logits, tokens, target)`."""

    tokens: AnyArray
    """Int32 `[R, T]`, padded on the right."""
    mask: AnyArray
    """Bool `[R, T]`: real tokens."""
    target: AnyArray
    """Bool `[R, T]`: tokens to be predicted: a completion with its EOS, or a whole text."""


class Pairs(NamedTuple):
    """Responses to one prompt, better before worse: K = 2 for a pair, chosen first."""

    tokens: AnyArray
    """Int32 `[R, K, T]`: prompt, response, EOS; padded on the right."""
    mask: AnyArray
    """Bool `[R, K, T]`: real tokens."""
    response: AnyArray
    """Bool `[R, K, T]`: the response's tokens and its EOS."""
    margin: AnyArray
    """Float32 `[R]`: by how much more the best should get; 0 without the column."""


class Prompts(NamedTuple):
    """For `generation.generate(model, params, tokens, mask, ...)`."""

    tokens: AnyArray
    """Int32 `[R, P]`, padded on the left."""
    mask: AnyArray
    """Bool `[R, P]`: real tokens."""


def texts(rows: Sequence[AnyRow], format: Format, pack: bool = False) -> Texts:
    """Texts for pretraining, of the column `text`, each with EOS; all is to be predicted.

    Args:
      rows: of `read`, or any mappings.
      format: how they are read. A string is taken as it is, the template is for texts that
        are conversations.
      pack: the texts one behind the other, EOS between them, cut to rows of T tokens.
        Nothing is dropped, and only the last row is padded. Attention is not cut: the
        texts of one row see those before them, as in the pretraining of GPT-2 and GPT-3
        (Brown et al., 2020, https://arxiv.org/abs/2005.14165, appendix B). The first token
        of a row has nothing before it, so it is read and not predicted.

    Raises:
      InvalidInput: a row cannot be used; it is named.
    """
    format = reading.prepare(format, rows, needs_eos=True)
    require(
        not pack or format.max_length is not None,
        "max_length = None: packed rows need a length.",
    )
    parts = [
        [reading.tokenize_text(format, *row)] for row in reading.enumerate_rows(rows)
    ]
    if pack:
        stream = [s.tokens for (s,) in parts]
        return _pack(stream, format.tokenizer.pad, format.max_length or 1)
    tokens, mask, _ = _pad(format, _keep_fitting(format, rows, parts))
    return Texts(tokens[:, 0], mask[:, 0], mask[:, 0])


def completions(rows: Sequence[AnyRow], format: Format) -> Texts:
    """Prompts with their responses, for supervised fine-tuning: the responses and their EOS
    are to be predicted.

    Prompt and response become tokens one by one, so a prompt has the tokens here that it
    has in `prompts`. What a template writes behind the tokenizer's own EOS is left out.

    Args:
      rows: with the columns `prompt` and `completion`.
      format: how they are read.

    Raises:
      InvalidInput: a row cannot be used; it is named.
    """
    format = reading.prepare(format, rows, needs_eos=True)
    parts = _tokenize_columns(format, rows, ("completion",))
    tokens, mask, response = _pad(format, _keep_fitting(format, rows, parts))
    return Texts(tokens[:, 0], mask[:, 0], response[:, 0])


def preferences(rows: Sequence[AnyRow], format: Format) -> Pairs:
    """Two responses to each prompt, of which the first was preferred.

    Args:
      rows: with the columns `prompt`, `chosen`, `rejected`, and `margin` in all or none.
      format: how they are read.

    Raises:
      InvalidInput: a row cannot be used; it is named.
    """
    format = reading.prepare(format, rows, needs_eos=True)
    parts = _tokenize_columns(format, rows, ("chosen", "rejected"))
    with_margin = any(row.get("margin") is not None for row in rows)
    margins = [
        reading.margin(row, where, with_margin)
        for row, where in reading.enumerate_rows(rows)
    ]
    kept = _keep_fitting(format, rows, parts)
    margin = np.array([margins[i] for i, _ in kept], np.float32)
    return Pairs(*_pad(format, kept), margin)


def rankings(rows: Sequence[AnyRow], format: Format) -> Pairs:
    """K responses to each prompt, best first, for `losses.ranking_loss`.

    Args:
      rows: with the columns `prompt` and `ranked`, a list of K responses, K the same in
        all rows.
      format: how they are read.

    Raises:
      InvalidInput: a row cannot be used; it is named.
    """
    format = reading.prepare(format, rows, needs_eos=True)
    parts = [
        reading.tokenize_responses(format, row, where, reading.ranked(where, row))
        for row, where in reading.enumerate_rows(rows)
    ]
    for (_, where), part in zip(reading.enumerate_rows(rows), parts, strict=True):
        require(
            len(part) == len(parts[0]),
            f"{where}: ranked has {len(part)} responses, the first row has "
            f"{len(parts[0])}: give as many in each row.",
        )
    kept = _keep_fitting(format, rows, parts)
    return Pairs(*_pad(format, kept), np.zeros(len(kept), np.float32))


def prompts(rows: Sequence[AnyRow], format: Format) -> Prompts:
    """Prompts to respond to, of the column `prompt`, up to where the response begins.

    Args:
      rows: of `read`, or any mappings.
      format: how they are read.

    Raises:
      InvalidInput: a row cannot be used; it is named.
    """
    format = reading.prepare(format, rows, needs_eos=False)
    parts = [
        [Tokens("prompt", reading.tokenize_prompt(format, *row).tokens, 0)]
        for row in reading.enumerate_rows(rows)
    ]
    kept = [tokens for _, ((_, tokens, _),) in _keep_fitting(format, rows, parts)]
    padded = tokenizers.pad_rows(kept, format.tokenizer.pad, format.max_length)
    return Prompts(*padded)


def _tokenize_columns(
    format: Format, rows: Sequence[AnyRow], names: tuple[str, ...]
) -> list[list[Tokens]]:
    """The prompt of each row with each of the responses in these columns."""
    return [
        reading.tokenize_responses(
            format, row, where, {n: reading.column(where, row, n) for n in names}
        )
        for row, where in reading.enumerate_rows(rows)
    ]


def _keep_fitting(
    format: Format,
    rows: Sequence[AnyRow],
    parts: list[list[Tokens]],
) -> list[tuple[int, list[Tokens]]]:
    """Number and sequences of the rows that fit."""
    kept, dropped = [], []
    for i, ((_, where), part) in enumerate(
        zip(reading.enumerate_rows(rows), parts, strict=True)
    ):
        longest = max(part, key=lambda sequence: len(sequence.tokens))
        excess = len(longest.tokens) - (format.max_length or len(longest.tokens))
        if excess <= 0:
            kept.append((i, part))
            continue
        require(format.too_long == "drop", _too_long(format, where, longest, excess))
        dropped.append(where)
    if dropped:
        format.report(
            f"{len(dropped)} of {count_noun(len(rows), 'row')} dropped, longer than "
            f"{format.limit} = {format.max_length} tokens: the first is {dropped[0]}."
        )
    require(
        bool(kept),
        f"{format.limit} = {format.max_length}: every row is longer, none is left.",
    )
    return kept


def _too_long(format: Format, where: str, longest: Tokens, excess: int) -> str:
    is_response = 0 < longest.start < len(longest.tokens)
    name = f"prompt and {longest.name}" if is_response else longest.name
    verb = "have" if is_response else "has"
    return (
        f"{where}: {name} {verb} {count_noun(len(longest.tokens), 'token')}, {excess} more "
        f"than {format.limit} = {format.max_length}: shorten the text, raise "
        f"{format.limit}, or drop such rows by too_long = 'drop'."
    )


def _pad(
    format: Format, kept: list[tuple[int, list[Tokens]]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, mask, response) `[R, K, T]`, padded on the right."""
    sequences = [part for _, part in kept]
    longest = max(len(s.tokens) for part in sequences for s in part)
    shape = (len(sequences), len(sequences[0]), format.max_length or longest)
    tokens = np.full(shape, format.tokenizer.pad, np.int32)
    mask, response = np.zeros(shape, bool), np.zeros(shape, bool)
    for i, part in enumerate(sequences):
        for k, (_, row, start) in enumerate(part):
            tokens[i, k, : len(row)] = row
            mask[i, k, : len(row)] = True
            response[i, k, start : len(row)] = True
    return tokens, mask, response


def _pack(texts: list[list[int]], pad: int, length: int) -> Texts:
    stream = np.concatenate([np.asarray(text, np.int32) for text in texts])
    rows = -(-len(stream) // length)
    tokens = np.full(rows * length, pad, np.int32)
    tokens[: len(stream)] = stream
    mask = np.arange(rows * length) < len(stream)
    shape = (rows, length)
    return Texts(tokens.reshape(shape), mask.reshape(shape), mask.reshape(shape))
