"""Responses of a trained model as text: one to a prompt, several, or the best of n."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.core import config as configs
from jaxrl.errors import require
from jaxrl.rlhf import estimators, responses, tasks
from jaxrl.rlhf.data import Prompts
from jaxrl.rlhf.models import language_model, tokenizers
from jaxrl.rlhf.models.generation import generate
from jaxrl.rlhf.models.transformer import GPT
from jaxrl.rlhf.tasks import Task
from jaxrl.training.loop import check_seeds
from jaxrl.types import Array


class Sampling(NamedTuple):
    """Parameters of sampling."""

    max_new_tokens: int = 32
    temperature: float = 1.0
    eos_penalty: float = 0.0


class Group(NamedTuple):
    """A prompt with its responses."""

    prompt: str
    texts: list[str]
    scores: np.ndarray  # [number]; NaN without a judge
    tokens: list[np.ndarray]  # of each response, with its EOS


PROMPTS_AT_A_TIME = 64


def sample_groups(
    task: Task, sampling: Sampling, number: int, seed: int, count: int | None = None
) -> Iterator[Group]:
    """Prompts of a task with `number` responses to each, and the scores of the responses.

    Args:
      task: of `tasks.prompts`; the prompts kept back are left out.
      sampling: how.
      number: responses to each prompt.
      seed: of the sampling.
      count: how many prompts, over and over if there are fewer; by default each once.

    Returns:
      One by one, `Group`.

    Raises:
      InvalidInput: at once, the responses do not fit into the model.
    """
    configs.check_value("max_new_tokens", int, sampling.max_new_tokens, low=1)
    configs.check_value("temperature", float, sampling.temperature, above=0.0)
    configs.check_value("eos_penalty", float, sampling.eos_penalty)
    configs.check_value("number", int, number, low=1)
    check_seeds(seed, 1)
    responses.check(sampling, task)
    count = task.num_rows if count is None else count
    return _sample_groups(task, sampling, number, seed, count)


def _sample_groups(
    task: Task, sampling: Sampling, number: int, seed: int, count: int
) -> Iterator[Group]:
    rows = task.teacher.rows
    for start in range(0, count, PROMPTS_AT_A_TIME):
        # The last batch is filled up, so that all are one program.
        index = jnp.arange(start, start + PROMPTS_AT_A_TIME) % len(rows.tokens)
        prompts = tasks.select(rows, jnp.repeat(index, number))
        key = jax.random.fold_in(jax.random.key(seed), start)
        found = jax.device_get(_written(sampling, task, prompts, key))
        for first in range(0, number * min(PROMPTS_AT_A_TIME, count - start), number):
            yield _one(
                task, responses.Responses(*(x[first : first + number] for x in found))
            )


@partial(jax.jit, static_argnames="sampling")
def _written(sampling: Sampling, task: Task, prompts: Prompts, key: Array) -> Any:
    return responses.write(sampling, task, task.teacher.params, prompts, key)


def _one(task: Task, some: responses.Responses) -> Group:
    tokens = [t[a] for t, a in zip(some.tokens, some.response, strict=True)]
    prompt = responses.decode(task, some.tokens[0], some.mask[0] & ~some.response[0])
    texts = [tokenizers.to_text(task.tokenizer, x) for x in tokens]
    return Group(prompt, texts, np.asarray(some.score), tokens)


def best_of_n(
    task: Task, sampling: Sampling, n: int, seed: int
) -> Iterator[tuple[Group, int]]:
    """n responses to every prompt, and which of them is the best by the judge.

    Raises:
      InvalidInput: at once, there is no judge, or the responses do not fit; later, a score
        is not finite.
    """
    require(
        task.judge is not None, "reward is missing: who says which response is best?"
    )
    configs.check_value("n", int, n, low=1)
    return map(_best, sample_groups(task, sampling, n, seed))


def _best(written: Group) -> tuple[Group, int]:
    require(
        bool(np.isfinite(written.scores).all()),
        f"a response to {written.prompt[:60]!r} has a score that is no finite number: look "
        f"at what judges.",
    )
    return written, int(estimators.best_of_n(jnp.asarray(written.scores)))


def summarise(
    chosen: Iterable[tuple[Group, int]],
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and summary numbers of `best_of_n`.

    Rows have the columns "prompt", "response", "score" and "mean_score". In the summary
    "mean_score" and "mean_length" are of all n responses, "score", "length", "distinct_1"
    and "distinct_2" of those that were chosen: lost diversity and length hacking show in
    their difference.
    """
    rows, tokens, lengths = [], [], []
    for written, best in chosen:
        row = {"prompt": written.prompt, "response": written.texts[best]}
        score = float(written.scores[best])
        rows.append(row | {"score": score, "mean_score": float(written.scores.mean())})
        tokens.append(written.tokens[best])
        lengths.append(np.mean([len(x) for x in written.tokens]))
    padded, mask = map(jnp.asarray, tokenizers.pad_rows(tokens, 0))
    numbers = {
        name: float(np.mean([row[name] for row in rows]))
        for name in ("score", "mean_score")
    }
    numbers["length"] = float(mask.sum(1).mean())
    numbers["mean_length"] = float(np.mean(lengths))
    for n in (1, 2):
        numbers[f"distinct_{n}"] = float(estimators.distinct_n(padded, mask, n))
    return rows, numbers


def respond(
    base: str,
    prompt: str,
    number: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    greedy: bool,
    seed: int,
) -> list[str]:
    """Responses of a run or of a model of Hugging Face to one prompt.

    Raises:
      InvalidInput: an argument cannot be, or the prompt does not fit.
    """
    configs.check_value("number", int, number, low=1)
    check_seeds(seed, 1)
    known = language_model.load(base)
    tokens, mask = tokenizers.pad_rows(
        [known.tokenizer.encode(prompt)] * number, known.tokenizer.pad
    )
    done = generate(
        GPT(known.config),
        known.params,
        jnp.asarray(tokens),
        jnp.asarray(mask),
        jax.random.key(seed),
        max_new_tokens,
        temperature,
        top_k,
        top_p,
        known.tokenizer.eos,
        greedy,
        known.tokenizer.pad,
    )
    width = tokens.shape[1]
    new, real = np.asarray(done.tokens)[:, width:], np.asarray(done.mask)[:, width:]
    return [
        tokenizers.to_text(known.tokenizer, t[m])
        for t, m in zip(new, real, strict=True)
    ]
