"""Labelers, which compare two responses: a known reward, a person, a model.

A labeler is a function of questions. It gives a choice for each, in their order, as a list
or one by one: 0 if the first response is better, 1 if the second is. One that gives fewer
has stopped. `label` asks any of them and stores what they say.
"""

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.core import config as configs
from jaxrl.errors import InvalidInput, count_noun, printable, require
from jaxrl.rlhf import data
from jaxrl.rlhf.labels import page
from jaxrl.rlhf.models import tokenizers
from jaxrl.rlhf.models.tokenizers import Tokenizer
from jaxrl.rlhf.models.transformer import GPT
from jaxrl.rlhf.testbeds import small_world
from jaxrl.types import Array, PyTree

Report = Callable[[str], None]


class Question(NamedTuple):
    """Which response is better?"""

    prompt: str
    first: str
    second: str
    repeat: int = 0
    """How often the same pair was asked before: noise is drawn anew for each time. `label`
    counts it."""


Labeler = Callable[[Sequence[Question]], Iterable[int]]

JUDGE = "{prompt}\n1: {first}\n2: {second}\nBetter: "
"""A prompt for a model's verdict."""


# Labelers that compute.


def gold(
    score: Callable[[str, str], float], temperature: float = 0.0, seed: int = 0
) -> Labeler:
    """Prefers the response with the higher reward, with the noise of Bradley and Terry.

    P(first) = σ((r_1 - r_2) / τ),    for τ = 0 the better one always

    The draw belongs to seed, prompt, the two responses and the repeat, not to the order of
    the responses or of the questions: whenever it is asked again, the label is the same.
    Equal rewards are a coin.

    Args:
      score: `(prompt, response) -> r`.
      temperature: τ, 0 or more.
      seed: of the noise.

    Raises:
      InvalidInput: temperature is negative; when asked, a reward that is not finite.
    """
    configs.check_value("temperature", float, temperature, low=0.0)

    def ask(questions: Sequence[Question]) -> list[int]:
        rewards = [[score(q.prompt, a) for a in (q.first, q.second)] for q in questions]
        return _choose(questions, np.array(rewards), temperature, seed)

    return ask


def by_score(score: Callable[[list[tuple[str, str]]], Any], seed: int = 0) -> Labeler:
    """Prefers the response with the higher score, such as a reward model's.

    Args:
      score: `[(prompt, response), ...] -> [N]`, called once for all questions: the first
        responses, then the second ones.
      seed: of the coin for equal scores.

    Raises:
      InvalidInput: when asked, scores of another shape, or one that is not finite.
    """

    def ask(questions: Sequence[Question]) -> list[int]:
        pairs = [(q.prompt, q.first) for q in questions]
        pairs += [(q.prompt, q.second) for q in questions]
        found = np.asarray(score(pairs), np.float64)
        require(
            found.shape == (len(pairs),),
            f"score gave an array {found.shape} for {len(pairs)} responses: must be "
            f"[{len(pairs)}].",
        )
        return _choose(questions, found.reshape(2, -1).T, 0.0, seed)

    return ask


def language_model(
    model: GPT,
    params: PyTree,
    tokenizer: Tokenizer,
    template: str = JUDGE,
    verdicts: tuple[str, str] = ("1", "2"),
    batch_size: int = 16,
    seed: int = 0,
) -> Labeler:
    """Prefers what another language model does: feedback from AI (RLAIF).

    Each pair is shown in both orders, and the probabilities are averaged, so that the
    position does not decide:

    P(first) = ½ [σ(l_1 - l_2) + σ(l'_2 - l'_1)]

    with the logits l of the two verdicts behind the template, l' for the other order.

    Args:
      model: the judge.
      params: its parameters.
      tokenizer: its tokenizer.
      template: a text with {prompt}, {first} and {second}, behind which the verdict stands.
      verdicts: the word for the first response and that for the second, one token each.
      batch_size: questions of a call; all calls are one program. The columns are those of
        the longest question, rounded up to a multiple of 64.
      seed: of the coin for a tie.

    Raises:
      InvalidInput: template, verdicts or tokenizer do not fit; when asked, a question that
        is too long for the model, or logits that are not finite.

    Source: Lee et al. (2023), https://arxiv.org/abs/2309.00267, section 2.1, for the
    verdict and both orders.
    """
    tokenizers.check_vocabulary(tokenizer, model.config)
    configs.check_value("batch_size", int, batch_size, low=1)
    words = np.array(_verdict_tokens(tokenizer, verdicts), np.int32)
    for name in ("prompt", "first", "second"):
        has_it = f"{{{name}}}" in template
        require(has_it, f"template = {template!r}: must have {{{name}}} in it.")

    def ask(questions: Sequence[Question]) -> Iterator[int]:
        both = [[q, q._replace(first=q.second, second=q.first)] for q in questions]
        rows = [
            [_render_question(tokenizer, template, q, i, model) for q in pair]
            for i, pair in enumerate(both, 1)
        ]
        longest = max((len(row) for pair in rows for row in pair), default=0)
        length = min(-(-longest // 64) * 64, model.config.max_length)
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            # The last call too has the shape of the others.
            filled = part + [part[0]] * (batch_size - len(part))
            flat = [row for pair in filled for row in pair]
            tokens, mask = tokenizers.pad_rows(flat, tokenizer.pad, length)
            odds = np.asarray(_log_odds(model, params, tokens, mask, words))
            # P(first) > ½ where the odds of its order are greater than those of the other.
            odds = odds.reshape(-1, 2)[: len(part)]
            yield from _choose(questions[start : start + len(part)], odds, 0.0, seed)

    return ask


# Labelers that are persons.


def terminal(report: Report = print) -> Labeler:
    """Ask the person at the terminal, who answers 1 or 2; q, or the input's end, stops.

    Args:
      report: shows the questions.
    """

    def ask(questions: Sequence[Question]) -> Iterator[int]:
        for number, question in enumerate(questions, 1):
            report(f"\n[{number} of {len(questions)}] {printable(question.prompt)}")
            report(f"  1: {printable(question.first)}")
            report(f"  2: {printable(question.second)}")
            reply = _read_reply()
            if reply == "q":
                return
            yield int(reply) - 1

    return ask


def browser(
    port: int = 0, open_browser: bool = True, report: Report = print
) -> Labeler:
    """Ask a person on a small local page, which is clicked or answered by the keys 1, 2.

    Args:
      port: of 127.0.0.1; 0 means any that is free.
      open_browser: whether the page is opened in the default browser.
      report: called with the page's address.

    Raises:
      InvalidInput: when asked, the port cannot be had.
    """

    def ask(questions: Sequence[Question]) -> Iterator[int]:
        shown = [page.Shown(*question[:3]) for question in questions]
        return page.ask(shown, port, open_browser, report)

    return ask


# Asking.


def label(
    questions: Sequence[Question],
    labeler: Labeler,
    out: str | Path,
    report: Report = print,
    seed: int = 0,
) -> list[int]:
    """Ask, and store each choice as a row `prompt chosen rejected`.

    A row is on the disk before the next choice is taken. Called again, after a kill or
    after the labeler stopped, it asks only what is not labelled yet.

    Args:
      questions: with different responses, none of them empty.
      labeler: is shown the responses in random order, the same whenever it is asked.
      out: a `.jsonl` file, made if there is none; `data.preferences` reads it.
      report: called with what is there already and what is left.
      seed: of the order of the responses.

    Returns:
      The choices so far, those of the file among them: 0 for the question's own first
      response, 1 for the second.

    Raises:
      InvalidInput: a question cannot be one, `out` holds rows of other questions, or the
        labeler gives something else than 0 and 1.
    """
    asked = _count_repeats(questions)
    with data.open_append(out, report) as (rows, append):
        labels = _read_labels(rows, asked)
        if labels:
            report(f"{out}: {len(labels)} of {len(asked)} are labelled already.")
        rest = asked[len(labels) :]
        swaps = [_uniform(seed, "side", q) < 0.5 for q in rest]
        shown = [
            q._replace(first=q.second, second=q.first) if swap else q
            for q, swap in zip(rest, swaps, strict=True)
        ]
        with contextlib.closing(_ask(labeler, shown)) as choices:
            for choice, question, swap in zip(choices, rest, swaps, strict=False):
                append(_row(question, choice ^ swap))
                labels.append(choice ^ swap)
    if len(labels) < len(asked):
        report(
            f"{out}: {len(labels)} of {len(asked)} are labelled; call again to continue."
        )
    return labels


def agreement(first: Sequence[int], second: Sequence[int]) -> float:
    """The share of questions on which two labelers made the same choice.

    Args:
      first: the choices of one, as `label` gives them.
      second: those of the other, on the same questions.

    Raises:
      InvalidInput: there are none, or not as many of each.
    """
    require(
        len(first) == len(second) and len(first) > 0,
        f"{count_noun(len(first), 'label')} and {len(second)}: must be as many, and one or "
        f"more.",
    )
    return float(np.mean(np.asarray(first) == np.asarray(second)))


# Inside.


def _choose(
    questions: Sequence[Question], rewards: np.ndarray, temperature: float, seed: int
) -> list[int]:
    """Choices by rewards `[N, 2]`."""
    rewards = rewards.reshape(-1, 2)
    finite = np.isfinite(rewards).all(1)
    if not finite.all():
        prompt = questions[int(finite.argmin())].prompt
        raise InvalidInput(
            f"a response to {prompt[:60]!r} has a reward that is no finite number: look at "
            f"what gives the rewards."
        )
    # In float64, as the rewards came: what is better by a little is better.
    difference = rewards[:, 0] - rewards[:, 1]
    if temperature > 0.0:
        gap = jnp.asarray(difference)
        p = np.asarray(
            small_world.preference_probability(gap, jnp.zeros(()), temperature)
        )
    else:
        p = 0.5 * (1.0 + np.sign(difference))
    return [_draw_label(q, seed, x) for q, x in zip(questions, p.tolist(), strict=True)]


def _draw_label(question: Question, seed: int, p: float) -> int:
    """0 with probability p, by a draw that does not know the order of the responses."""
    u = _uniform(seed, "label", question)
    return int(u >= p) if question.first <= question.second else int(u < 1.0 - p)


def _uniform(seed: int, use: str, question: Question) -> float:
    """A number in [0, 1) that belongs to seed, use and question, in any process."""
    pair = sorted((question.first, question.second))
    named = json.dumps([seed, use, question.prompt, *pair, question.repeat])
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:6]) / 2**48


def _verdict_tokens(tokenizer: Tokenizer, verdicts: tuple[str, str]) -> list[int]:
    found = [tokenizer.encode(word) for word in verdicts]
    require(
        all(len(tokens) == 1 for tokens in found) and found[0] != found[1],
        f"verdicts = {verdicts}: must be two words of one token each, these have the "
        f"tokens {found[0]} and {found[1]}.",
    )
    return [tokens[0] for tokens in found]


def _render_question(
    tokenizer: Tokenizer, template: str, question: Question, number: int, model: GPT
) -> list[int]:
    """The tokens behind which the verdict stands."""
    # In one pass: a brace in a response is no place of the template.
    text = re.sub(
        r"\{(prompt|first|second)\}",
        lambda m: tokenizers.shield(tokenizer, getattr(question, m[1])),
        template,
    )
    tokens, most = tokenizer.encode(text), model.config.max_length
    require(
        len(tokens) <= most,
        f"question {number} has {count_noun(len(tokens), 'token')} in the judge's "
        f"template, {len(tokens) - most} more than the judge's max_length = {most}: "
        f"shorten it, or take another judge.",
    )
    return tokens


@functools.partial(jax.jit, static_argnames="model")
def _log_odds(
    model: GPT, params: PyTree, tokens: Array, mask: Array, verdicts: Array
) -> Array:
    """log P(first verdict) - log P(second verdict) behind each row: `[B]`."""
    logits = cast(Any, model.apply(params, tokens, mask)).logits[:, -1]
    return logits[:, verdicts[0]] - logits[:, verdicts[1]]


def _read_reply() -> str:
    """1, 2 or q."""
    while True:
        try:
            reply = input("Which is better, 1 or 2 (q stops)? ").strip().lower()
        except EOFError:
            return "q"
        if reply in ("1", "2", "q"):
            return reply


def _count_repeats(questions: Sequence[Question]) -> list[Question]:
    """Those that can be asked, with their repeats counted."""
    seen: dict[tuple[str, ...], int] = {}
    found = []
    for i, question in enumerate(questions, 1):
        prompt, first, second, _ = question
        require(
            bool(prompt and first and second),
            f"question {i}: prompt or response is empty: fill it in, or remove it.",
        )
        require(
            first != second, f"question {i}: both responses are the same: remove it."
        )
        pair = (prompt, *sorted((first, second)))
        found.append(question._replace(repeat=seen.get(pair, 0)))
        seen[pair] = found[-1].repeat + 1
    return found


def _row(question: Question, choice: int) -> dict[str, str]:
    responses = (question.first, question.second)
    chosen, rejected = responses[choice], responses[1 - choice]
    return {"prompt": question.prompt, "chosen": chosen, "rejected": rejected}


def _read_labels(rows: list[data.Row], questions: list[Question]) -> list[int]:
    """The choices that the rows of a file hold."""
    require(
        len(rows) <= len(questions),
        f"{rows[-1].where if rows else ''} is one more than there are questions: give "
        f"another file, or as many questions as before.",
    )
    labels = []
    for row, question in zip(rows, questions, strict=False):
        pair = (row.get("chosen"), row.get("rejected"))
        responses = (question.first, question.second)
        fits = row.get("prompt") == question.prompt and pair in (
            responses,
            responses[::-1],
        )
        require(
            fits,
            f"{row.where} is of another question: give another file, or the questions "
            f"that it was begun with.",
        )
        labels.append(int(pair != responses))
    return labels


def _ask(labeler: Labeler, shown: list[Question]) -> Generator[int, None, None]:
    """The labeler's choices, checked; what it holds open is closed in the end."""
    choices = iter(labeler(shown)) if shown else iter(())
    try:
        for i, choice in enumerate(choices):
            fits = i < len(shown) and choice in (0, 1)
            require(
                fits,
                f"the labeler gave {choice!r} as number {i + 1} of {len(shown)}: must be "
                f"0 or 1 for each question.",
            )
            yield int(choice)
    finally:
        getattr(choices, "close", lambda: None)()
