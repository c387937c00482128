"""Answers of a policy: written, judged, and shown to a person.

Shapes: B answers, P columns of the prompt, N of the answer, T = P + N.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import require
from jaxrl.rlhf import estimators, policies
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.data import Texts
from jaxrl.rlhf.models import tokenizers
from jaxrl.rlhf.models.generation import generate
from jaxrl.rlhf.tasks import Task, drawn
from jaxrl.types import BAD_REWARD, Array, Metrics, PyTree, World, mean


class Answers(NamedTuple):
    """Prompts with answers. Log-probabilities are 0 outside of the answer."""

    tokens: Array  # int32 [B, T]
    mask: Array  # bool [B, T]: real tokens
    answer: Array  # bool [B, T]: those of the answer, EOS too
    log_prob: Array  # [B, T]: of the policy that wrote it
    ref_log_prob: Array  # [B, T]: of the reference
    score: Array  # [B]: the judge's
    has_eos: Array  # bool [B]


def validate(config: Any, task: Task) -> None:
    """That prompt and answer fit into the model.

    Raises:
      InvalidInput: they do not, or nobody judges.
    """
    policies.validate(config, task)
    require(
        task.judge is not None,
        "reward is missing: give the run folder of a reward model, or a world.",
    )
    check(config, task)


def check(config: Any, task: Task) -> None:
    """That answers to the prompts have an end, and fit into the model and its judge.

    Raises:
      InvalidInput: they do not.
    """
    require(
        task.tokenizer.eos is not None,
        f"base = {task.base!r}: its tokenizer has no EOS, so no answer ends; give a model "
        f"with one.",
    )
    prompt = task.teacher.rows.tokens.shape[1]
    longest = task.model.config.max_length
    if task.judge_model is not None:
        longest = min(longest, task.judge_model.config.max_length)
    require(
        prompt < longest,
        f"data = {task.id!r}: has prompts of {prompt} tokens, and model and judge read "
        f"{longest} together with the answer; shorten them.",
    )
    longest = task.model.config.max_length
    require(
        prompt + config.max_new_tokens <= longest,
        f"max_new_tokens = {config.max_new_tokens}: with prompts of {prompt} tokens the "
        f"model, which reads {longest}, can write at most {longest - prompt}.",
    )
    if task.judge_model is not None:
        reads = task.judge_model.config.max_length
        require(
            prompt + config.max_new_tokens <= reads,
            f"max_new_tokens = {config.max_new_tokens}: with prompts of {prompt} tokens "
            f"the reward model reads answers of at most {reads - prompt}.",
        )


def write(
    config: Any,
    task: Task,
    params: PyTree,
    prompts: Any,
    key: Array,
    greedy: bool = False,
) -> Answers:
    """One answer of the model with these parameters to each of the prompts, judged.

    Args:
      config: `max_new_tokens`, `temperature` and `eos_penalty` of it.
      task: the model, the reference and the judge.
      params: of the model.
      prompts: `data.Prompts`, `[B, P]`.
      key: of the sampling.
      greedy: the likeliest tokens, and not drawn ones.
    """
    done = generate(
        task.model,
        params,
        prompts.tokens,
        prompts.mask,
        key,
        config.max_new_tokens,
        config.temperature,
        eos=task.tokenizer.eos,
        greedy=greedy,
        pad=task.tokenizer.pad,
    )
    columns = prompts.tokens.shape[1]
    answer = done.mask.at[:, :columns].set(False)
    log_prob = jnp.pad(done.log_probs, ((0, 0), (columns, 0)))
    reference = policies.reference_log_probs(
        task, done.tokens, done.mask, config.temperature
    )
    has_eos = (answer & (done.tokens == task.tokenizer.eos)).any(1)
    score = judged(task, done.tokens, done.mask, answer)
    return Answers(
        done.tokens,
        done.mask,
        answer,
        log_prob,
        jnp.where(answer, reference, 0.0),
        estimators.score_with_eos_rule(score, has_eos, config.eos_penalty),
        has_eos,
    )


def judged(task: Task, tokens: Array, mask: Array, answer: Array) -> Array:
    """The score of each answer, `[B]`; NaN where nobody judges."""
    if task.judge is None:
        return jnp.full(len(tokens), jnp.nan)
    return task.judge(task.teacher.judge, tokens, mask, answer)


def to_prompts(
    config: Any, task: Task, params: PyTree, key: Array, number: int, group: int = 1
) -> Answers:
    """Answers to prompts that are drawn: `number` in all, `group` to each prompt, those of
    one prompt side by side."""
    key_prompts, key_answers = jax.random.split(key)
    index = jax.random.randint(key_prompts, (number // group,), 0, task.num_rows)
    prompts = drawn(task.teacher.rows, jnp.repeat(index, group))
    return write(config, task, params, prompts, key_answers)


def divergence(answers: Answers) -> Array:
    """k1 of KL(π ‖ π_ref) for each answer, its tokens added up: `[B]`."""
    each = text_losses.kl_k1(answers.ref_log_prob, answers.log_prob)
    return text_losses.masked_sum(each, answers.answer)


def reported(task: Task, answers: Answers) -> Metrics:
    """What is logged of every batch of answers: lost diversity and length hacking show."""
    tokens, own = answers.tokens, answers.answer
    length = estimators.length(own)
    gold = {}
    if task.gold is not None:
        gold["reward/gold"] = mean(task.gold((), tokens, answers.mask, own))
    return gold | {
        "rollout/episode_return": mean(answers.score),
        "rollout/episode_length": mean(length),
        "policy/kl": mean(divergence(answers)),
        "policy/surprise": mean(-answers.log_prob, own),
        "text/ended": mean(answers.has_eos),
        "text/distinct_1": mean(estimators.distinct_n(tokens, own, 1)),
        "text/distinct_2": mean(estimators.distinct_n(tokens, own, 2)),
    }


def counted(world: World, answers: Answers) -> World:
    """The world after these answers: their number, and whether a score was not finite."""
    bad = ~jnp.isfinite(answers.score).all()
    trouble = world.trouble | jnp.where(bad, BAD_REWARD, 0).astype(world.trouble.dtype)
    steps = world.env_steps + len(answers.score)
    return world.replace(env_steps=steps, trouble=trouble)


# What an algorithm that writes answers gives as its `Problem`.


def returns(
    config: Any, task: Task, agent: Any, key: Array, number: int, greedy: bool
) -> Array:
    """The scores of answers to prompts kept back, `[number]`."""
    params = policies.weights(config, task, agent.policy)
    index = jnp.arange(number) % task.teacher.held_out.tokens.shape[0]
    prompts = drawn(task.teacher.held_out, index)
    return write(config, task, params, prompts, key, greedy).score


SHOWN = 4
"""Texts of each table of samples."""


def samples(config: Any, task: Task, agent: Any, key: Array) -> list[dict[str, Any]]:
    """Answers to some prompts kept back, with their scores."""
    params = policies.weights(config, task, agent.policy)
    prompts = jax.tree.map(lambda x: x[:SHOWN], task.teacher.held_out)
    answers = jax.device_get(_written(config, task, params, prompts, key))
    kl = jax.device_get(divergence(answers))
    return [
        {
            "prompt": decoded(
                task, answers.tokens[i], answers.mask[i] & ~answers.answer[i]
            ),
            "answer": decoded(task, answers.tokens[i], answers.answer[i]),
            "score": float(answers.score[i]),
            "kl": float(kl[i]),
        }
        for i in range(len(answers.tokens))
    ]


_written = jax.jit(write, static_argnames="greedy")


def continued(
    task: Task, kept: Texts, params: PyTree, key: Array
) -> list[dict[str, Any]]:
    """How a model goes on with the beginnings of some texts."""
    written = _gone_on(task, kept, params, key, SHOWN)
    if written is None:
        return []
    prompts, mask, tokens, real = written
    return [
        {
            "prompt": decoded(task, prompts[i], mask[i]),
            "answer": decoded(task, tokens[i], real[i]),
        }
        for i in range(len(tokens))
    ]


def diversity(task: Task, kept: Texts, params: PyTree, key: Array) -> dict[str, Array]:
    """Of a model's own answers to the prompts of some texts: their mean length, the share
    that ends, and distinct tokens and pairs of tokens as a share of all."""
    written = _gone_on(task, kept, params, key, JUDGED)
    if written is None:
        return {}
    _, _, tokens, real = map(jnp.asarray, written)
    ended = (real & (tokens == task.tokenizer.eos)).any(1)
    return {
        "answer_length": jnp.mean(estimators.length(real).astype(jnp.float32)),
        "answers_ended": jnp.mean(ended.astype(jnp.float32)),
        "distinct_1": estimators.distinct_n(tokens, real, 1),
        "distinct_2": estimators.distinct_n(tokens, real, 2),
    }


JUDGED = 64
"""Answers of which `diversity` is told."""


def _gone_on(
    task: Task, kept: Texts, params: PyTree, key: Array, number: int
) -> tuple[np.ndarray, ...] | None:
    """Beginnings `[B, P]` and what a model adds to them `[B, N]`, with their masks; None
    where there is no room for it."""
    rows: Texts = jax.device_get(jax.tree.map(lambda x: x[:number], kept))
    beginnings = [
        list(tokens[mask & ~target]) or list(tokens[mask][: max(1, mask.sum() // 4)])
        for tokens, mask, target in zip(*rows, strict=True)
    ]
    prompts, mask = tokenizers.padded(beginnings, task.tokenizer.pad)
    width = prompts.shape[1]
    new = min(MOST_SHOWN, task.model.config.max_length - width)
    if new < 1:
        return None
    done = generate(
        task.model,
        params,
        jnp.asarray(prompts),
        jnp.asarray(mask),
        key,
        new,
        eos=task.tokenizer.eos,
        pad=task.tokenizer.pad,
    )
    tokens, real = np.asarray(done.tokens), np.asarray(done.mask)
    return prompts, mask, tokens[:, width:], real[:, width:]


MOST_SHOWN = 48
"""Tokens that go on a text."""


def decoded(task: Task, tokens: Any, mask: Any) -> str:
    """The text of tokens `[T]` that a mask `[T]` holds."""
    return tokenizers.written(task.tokenizer, np.asarray(tokens)[np.asarray(mask)])
