"""Testbeds by name: text with a known gold reward, in the place of a file.

A testbed gives rows of every kind, a tokenizer, and its gold reward twice: of text, for the
host, and of tokens, for a compiled program.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl.errors import require
from jaxrl.rlhf.data import Row
from jaxrl.rlhf.models import tokenizers
from jaxrl.rlhf.models.tokenizers import Tokenizer
from jaxrl.rlhf.testbeds import larger_world, small_world
from jaxrl.types import Array, PyTree

Kind = Literal["text", "completion", "preference", "prompt"]
"""Kind of rows, by their use; see `jaxrl.rlhf.data`."""


class Testbed(NamedTuple):
    """Texts of one kind of problem, with their gold reward."""

    tokenizer: Callable[[], Tokenizer]
    rows: Callable[[Kind, int], list[dict[str, str]]]
    """`(kind, number) ->` rows in the columns of that kind, always the same."""
    gold: Callable[[str, str], float]
    """`(prompt, response) -> reward`."""
    judge: Callable[[PyTree, Array, Array, Array], Array]
    """`((), tokens [B, T], mask [B, T], response [B, T]) -> reward [B]`."""


def rows(name: str, kind: Kind, number: int) -> list[Row]:
    """Rows of a testbed, as of a file.

    Raises:
      InvalidInput: the testbed has no rows of that kind.
    """
    require(number >= 2, f"number = {number}: a testbed gives 2 rows or more.")
    found = TESTBEDS[name].rows(kind, number)
    return [Row(row, f"{name}, row {i}") for i, row in enumerate(found, 1)]


# The small world.

NOISE = 0.5
"""τ of the labels of the small world's pairs."""


@functools.cache
def small() -> small_world.SmallWorld:
    return small_world.small_world()


def small_tokenizer() -> Tokenizer:
    """Its symbols and EOS, which pads too: no token is without a place in a response."""
    return tokenizers.characters(small().symbols, own_pad=False)


def small_rows(kind: Kind, number: int) -> list[dict[str, str]]:
    """Responses of the reference that end and are not empty, each to a random prompt."""
    given = small()
    rng = np.random.default_rng(0)
    prompts = ["".join(given.symbols[t] for t in row) for row in given.prompts]
    if kind == "prompt":
        return [{"prompt": prompts[i % len(prompts)]} for i in range(number)]
    log_prob = np.asarray(
        small_world.table_log_probs(given, jnp.asarray(given.reference))
    )
    usable = given.has_eos & (given.mask.sum(1) > 1)
    weight = np.where(usable, np.exp(log_prob), 0.0)
    weight /= weight.sum(1, keepdims=True)
    texts = [
        small_world.response_text(given, i).removesuffix(".")
        for i in range(len(usable))
    ]
    found = []
    for i in rng.integers(len(prompts), size=number):
        one, other = rng.choice(len(texts), size=2, replace=False, p=weight[i])
        if kind == "text":
            found.append({"text": prompts[i] + texts[one]})
        elif kind == "completion":
            found.append({"prompt": prompts[i], "completion": texts[one]})
        else:
            reward = given.reward[i]
            better = rng.random() < 1 / (
                1 + np.exp((reward[other] - reward[one]) / NOISE)
            )
            chosen, rejected = (one, other) if better else (other, one)
            pair = {"chosen": texts[chosen], "rejected": texts[rejected]}
            found.append({"prompt": prompts[i]} | pair)
    return found


def small_index(tokens: Array, mask: Array, response: Array) -> tuple[Array, Array]:
    """The numbers of prompts and responses in the small world, int32 `[B]` each; the second
    is -1 for what is no response of it."""
    given = small()
    longest = given.tokens.shape[1]
    start = jnp.argmax(response, axis=1)
    at = jnp.minimum(start[:, None] + jnp.arange(longest), tokens.shape[1] - 1)
    real = jnp.take_along_axis(response, at, 1) & (
        start[:, None] + jnp.arange(longest) < tokens.shape[1]
    )
    found = jnp.where(real, jnp.take_along_axis(tokens, at, 1), given.eos)
    same = (found[:, None] == given.tokens).all(-1) & (
        real.sum(1)[:, None] == given.mask.sum(1)
    )
    same &= (response.sum(1) <= longest)[:, None]
    prompt = jnp.take_along_axis(tokens, jnp.maximum(start - 1, 0)[:, None], 1)
    number = (prompt == given.prompts[:, 0]).argmax(1).astype(jnp.int32)
    index = jnp.where(same.any(1), same.argmax(1), -1)
    return number, index.astype(jnp.int32)


def small_judge(params: PyTree, tokens: Array, mask: Array, response: Array) -> Array:
    """The gold reward `[B]`; what is no response of the world has the lowest there is."""
    del params
    reward = jnp.asarray(small().reward, jnp.float32)
    prompt, index = small_index(tokens, mask, response)
    return jnp.where(index >= 0, reward[prompt, index], reward.min())


# The larger world.


def larger_rows(kind: Kind, number: int) -> list[dict[str, str]]:
    """Paragraphs, demonstrations and prompts. Its preferences are labelled responses of a
    model (`jaxrl rlhf label`)."""
    require(
        kind != "preference",
        "data = 'larger-world': has no preferences; let `jaxrl rlhf label` make a file.",
    )
    if kind == "text":
        return [{"text": text} for text in larger_world.corpus(number, seed=0)]
    if kind == "prompt":
        return [{"prompt": text} for text in larger_world.prompts(number, seed=0)]
    return _completions(larger_world.demonstrations(number, seed=0))


def larger_judge(params: PyTree, tokens: Array, mask: Array, response: Array) -> Array:
    """The gold reward `[B]`."""
    del params
    return larger_world.gold_scores(tokens, mask, response)


def instruction_rows(kind: Kind, number: int) -> list[dict[str, str]]:
    """Problems of the tasks to train on, with up to three solved ones before each."""
    require(kind == "completion", f"data = 'instructions': has no rows of kind {kind}.")
    tasks, shots = larger_world.TRAINED, larger_world.MAX_SHOTS + 1
    each = -(-number // (len(tasks) * shots))
    rows = [
        row
        for i in range(shots)
        for task in tasks
        for row in larger_world.instructions(task, each, seed=i, shots=i)
    ]
    return _completions(rows[:number])


def _completions(rows: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"prompt": prompt, "completion": response} for prompt, response in rows]


def larger_tokenizer() -> Tokenizer:
    return larger_world.TOKENIZER


TESTBEDS = {
    "small-world": Testbed(
        small_tokenizer, small_rows, small_world.gold_reward, small_judge
    ),
    "larger-world": Testbed(
        larger_tokenizer, larger_rows, larger_world.gold, larger_judge
    ),
    "instructions": Testbed(
        larger_tokenizer, instruction_rows, larger_world.gold, larger_judge
    ),
}
