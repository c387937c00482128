"""Responses of a policy: sampled, scored, logged, and shown to a person.

Shapes: B responses, P columns of the prompt, N of the response, T = P + N.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import losses
from jaxrl.errors import require
from jaxrl.rlhf import estimators, policies, tasks
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.data import Prompts, Texts
from jaxrl.rlhf.models import tokenizers
from jaxrl.rlhf.models.generation import generate
from jaxrl.rlhf.tasks import Task
from jaxrl.types import Array, Metrics, Plan, PyTree, mean


class Responses(NamedTuple):
    """Prompts with responses. Log-probabilities are 0 outside of the response."""

    tokens: Array  # int32 [B, T]
    mask: Array  # bool [B, T]: real tokens
    response: Array  # bool [B, T]: those of the response, EOS too
    log_prob: Array  # [B, T]: of the policy that wrote it
    ref_log_prob: Array  # [B, T]: of the reference
    score: Array  # [B]: the judge's
    has_eos: Array  # bool [B]


def validate(config: Any, task: Task, parts: tuple[str, ...] = ()) -> None:
    """Check the config of an algorithm that samples responses.

    Args:
      config: its config.
      task: its task.
      parts: fields that must divide `batch_size`.

    Raises:
      InvalidInput: one does not, a prompt with its response does not fit into the model,
        or there is no judge.
    """
    policies.validate(config, task)
    require(
        task.judge is not None,
        "reward is missing: give the run folder of a reward model, or a testbed.",
    )
    check(config, task)
    for name in parts:
        require(
            config.batch_size % getattr(config, name) == 0,
            f"batch_size = {config.batch_size}: must be a multiple of {name} = "
            f"{getattr(config, name)}.",
        )


def check(config: Any, task: Task) -> None:
    """Check that responses can end, and fit into the model and its judge.

    Raises:
      InvalidInput: they do not.
    """
    require(
        task.tokenizer.eos is not None,
        f"base = {task.base!r}: its tokenizer has no EOS, so no response ends; give a "
        f"model with one.",
    )
    prompt = task.teacher.rows.tokens.shape[1]
    longest = task.model.config.max_length
    if task.judge_model is not None:
        longest = min(longest, task.judge_model.config.max_length)
    require(
        prompt < longest,
        f"data = {task.id!r}: has prompts of {prompt} tokens, and model and judge read "
        f"{longest} together with the response; shorten them.",
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
            f"the reward model reads responses of at most {reads - prompt}.",
        )


def plan(config: Any, task: Task) -> Plan:
    """`num_epochs` passes of `num_minibatches` gradient steps over each batch."""
    del task
    updates = config.num_epochs * config.num_minibatches
    rows = config.batch_size // config.num_minibatches
    return Plan(config.batch_size, updates, gradient_rows=rows)


def write(
    config: Any,
    task: Task,
    params: PyTree,
    prompts: Prompts,
    key: Array,
    greedy: bool = False,
) -> Responses:
    """One response of the model with these parameters to each of the prompts, scored.

    Args:
      config: `max_new_tokens`, `temperature` and `eos_penalty` of it.
      task: the model, the reference and the judge.
      params: of the model.
      prompts: `[B, P]`.
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
    response = done.mask.at[:, :columns].set(False)
    log_prob = jnp.pad(done.log_probs, ((0, 0), (columns, 0)))
    reference = policies.reference_log_probs(
        task, done.tokens, done.mask, config.temperature
    )
    has_eos = (response & (done.tokens == task.tokenizer.eos)).any(1)
    score = judge(task, done.tokens, done.mask, response)
    return Responses(
        done.tokens,
        done.mask,
        response,
        log_prob,
        jnp.where(response, reference, 0.0),
        estimators.score_with_eos_rule(score, has_eos, config.eos_penalty),
        has_eos,
    )


def judge(task: Task, tokens: Array, mask: Array, response: Array) -> Array:
    """The score of each response, `[B]`; NaN where there is no judge."""
    if task.judge is None:
        return jnp.full(len(tokens), jnp.nan)
    return task.judge(task.teacher.judge, tokens, mask, response)


def sample(
    config: Any, task: Task, params: PyTree, key: Array, number: int, group: int = 1
) -> Responses:
    """Responses to prompts drawn at random: `number` in all, `group` to each prompt, those
    to one prompt side by side."""
    key_prompts, key_responses = jax.random.split(key)
    index = jax.random.randint(key_prompts, (number // group,), 0, task.num_rows)
    prompts = tasks.select(task.teacher.rows, jnp.repeat(index, group))
    return write(config, task, params, prompts, key_responses)


def divergence(batch: Responses) -> Array:
    """k1 of KL(π ‖ π_ref) for each response, summed over its tokens: `[B]`."""
    each = text_losses.kl_k1(batch.ref_log_prob, batch.log_prob)
    return text_losses.masked_sum(each, batch.response)


def rounded_terms(task: Task, batch: Responses) -> Array:
    """Numbers about as large as those whose rounding a KL penalty shows: `[B, T]`.

    |log π| of each token of a response; of a model that computes in a coarser dtype than
    float32 more, so that `losses.RESOLUTION` of it is one step of that dtype. An estimate:
    what is rounded is the logits.
    """
    step = float(jnp.finfo(task.model.config.dtype).eps)
    coarser = max(1.0, step / losses.RESOLUTION)
    return jnp.where(batch.response, coarser * jnp.abs(batch.log_prob), 0.0)


def batch_metrics(task: Task, batch: Responses) -> Metrics:
    """Metrics of every batch of responses: lost diversity and length hacking show."""
    tokens, own = batch.tokens, batch.response
    length = estimators.length(own)
    gold = {}
    if task.gold is not None:
        gold["reward/gold"] = mean(task.gold((), tokens, batch.mask, own))
    return gold | {
        "rollout/episode_return": mean(batch.score),
        "rollout/episode_length": mean(length),
        "reward/score": mean(batch.score),
        "policy/kl": mean(divergence(batch)),
        "policy/surprise": mean(-batch.log_prob, own),
        "text/ended": mean(batch.has_eos),
        "text/distinct_1": mean(estimators.distinct_n(tokens, own, 1)),
        "text/distinct_2": mean(estimators.distinct_n(tokens, own, 2)),
    }


# The `Problem` of an algorithm that samples responses.


def returns(
    config: Any, task: Task, agent: Any, key: Array, number: int, greedy: bool
) -> Array:
    """The scores of responses to prompts kept back, `[number]`."""
    params = policies.weights(config, task, agent.policy)
    index = jnp.arange(number) % task.teacher.held_out.tokens.shape[0]
    prompts = tasks.select(task.teacher.held_out, index)
    return write(config, task, params, prompts, key, greedy).score


SHOWN = 4
"""Texts of each table of samples."""


def samples(config: Any, task: Task, agent: Any, key: Array) -> list[dict[str, Any]]:
    """Responses to some prompts kept back, with their scores."""
    params = policies.weights(config, task, agent.policy)
    prompts = jax.tree.map(lambda x: x[:SHOWN], task.teacher.held_out)
    batch = jax.device_get(_write(config, task, params, prompts, key))
    kl = jax.device_get(divergence(batch))
    return [
        {
            "prompt": decode(task, batch.tokens[i], batch.mask[i] & ~batch.response[i]),
            "response": decode(task, batch.tokens[i], batch.response[i]),
            "score": float(batch.score[i]),
            "kl": float(kl[i]),
        }
        for i in range(len(batch.tokens))
    ]


_write = jax.jit(write, static_argnames="greedy")

PROBLEM = policies.problem(tasks.prompts, returns, samples)
"""Prompts to respond to, and a judge of the responses."""


# Continuations of texts.


def continue_texts(
    task: Task, kept: Texts, params: PyTree, key: Array
) -> list[dict[str, Any]]:
    """A model's continuations of the beginnings of some texts."""
    written = _continue(task, kept, params, key, SHOWN)
    if written is None:
        return []
    prompts, mask, tokens, real = written
    return [
        {
            "prompt": decode(task, prompts[i], mask[i]),
            "response": decode(task, tokens[i], real[i]),
        }
        for i in range(len(tokens))
    ]


def diversity(task: Task, kept: Texts, params: PyTree, key: Array) -> dict[str, Array]:
    """Statistics of a model's own responses to the prompts of some texts: their mean
    length, the share that ends, and distinct tokens and pairs of tokens as a share of all.
    """
    written = _continue(task, kept, params, key, NUM_MEASURED)
    if written is None:
        return {}
    _, _, tokens, real = map(jnp.asarray, written)
    ended = (real & (tokens == task.tokenizer.eos)).any(1)
    return {
        "response_length": jnp.mean(estimators.length(real).astype(jnp.float32)),
        "responses_ended": jnp.mean(ended.astype(jnp.float32)),
        "distinct_1": estimators.distinct_n(tokens, real, 1),
        "distinct_2": estimators.distinct_n(tokens, real, 2),
    }


NUM_MEASURED = 64
"""Responses that `diversity` measures."""


def _continue(
    task: Task, kept: Texts, params: PyTree, key: Array, number: int
) -> tuple[np.ndarray, ...] | None:
    """Beginnings `[B, P]` and what a model adds to them `[B, N]`, with their masks; None
    where the model can read no more than the beginnings."""
    rows: Texts = jax.device_get(jax.tree.map(lambda x: x[:number], kept))
    beginnings = [
        list(tokens[mask & ~target]) or list(tokens[mask][: max(1, mask.sum() // 4)])
        for tokens, mask, target in zip(*rows, strict=True)
    ]
    prompts, mask = tokenizers.pad_rows(beginnings, task.tokenizer.pad)
    width = prompts.shape[1]
    new = min(MAX_CONTINUATION, task.model.config.max_length - width)
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


MAX_CONTINUATION = 48
"""Maximum continuation length in samples, in tokens."""


def decode(task: Task, tokens: Any, mask: Any) -> str:
    """The text of tokens `[T]` where a mask `[T]` holds."""
    return tokenizers.to_text(task.tokenizer, np.asarray(tokens)[np.asarray(mask)])
