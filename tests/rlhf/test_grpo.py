"""GRPO: identities before the first step, and a batch by hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.rlhf import (
    estimators,
    grpo,
    ppo,
    responses,
    rloo,
)
from jaxrl.rlhf.models.transformer import GPT
from tests.support.language import (
    KEY,
    SMALL,
    WRITING,
    close,
    full_pass,
    make_task,
    perturb,
    sample_batch,
)


def test_grpo_starts_with_ratio_1(grpo_batch, gold):
    config, params, batch, advantage = grpo_batch
    of = jax.jit(partial(grpo.loss, config=config, task=gold))
    _, reported = of(params, batch=grpo.Batch(batch, advantage))
    found = dict(zip(grpo.REPORTED, reported, strict=True))
    assert abs(found["policy/approx_kl"]) < 1e-5
    assert found["policy/clip_fraction"] == 0
    expected = -(advantage * estimators.length(batch.response)).mean()
    close(found["loss/policy"], expected, 1e-4)


def test_the_responses_to_a_prompt_stand_together(grpo_batch, gold):
    config, _, batch, advantage = grpo_batch
    prompts = np.asarray(batch.tokens[:, 0]).reshape(4, 4)
    assert (prompts == prompts[:, :1]).all() and len(set(prompts[:, 0])) > 1
    reward = np.asarray(batch.score - 0.05 * responses.divergence(batch)).reshape(4, 4)
    close(advantage.reshape(4, 4), reward - reward.mean(1, keepdims=True))
    own = rloo.Config(**WRITING)
    others = [[(row.sum() - r) / 3 for r in row] for row in reward]
    close(rloo.advantages(own, batch).reshape(4, 4), reward - others)
    scaled = grpo.advantages(config.replace(scale_rewards=True), gold, batch)
    spread = np.maximum(reward.std(1, keepdims=True), 1e-8)
    close(scaled.reshape(4, 4), (reward - reward.mean(1, keepdims=True)) / spread, 1e-3)
    # The KL penalty in the loss is none in the reward.
    batch = batch._replace(ref_log_prob=batch.ref_log_prob - 1.0 * batch.response)
    in_loss = grpo.advantages(config.replace(kl_penalty="k3"), gold, batch).reshape(
        4, 4
    )
    score = np.asarray(batch.score).reshape(4, 4)
    close(in_loss, score - score.mean(1, keepdims=True))
    penalized = np.asarray(grpo.advantages(config, gold, batch)).reshape(4, 4)
    reward = score - 0.05 * np.asarray(estimators.length(batch.response)).reshape(4, 4)
    close(penalized, reward - reward.mean(1, keepdims=True))


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_equal_scores_have_no_advantage_though_a_model_rounds(score):
    """The penalty is in the reward, and of the policy that one starts from it is 0."""
    task = make_task(judge=lambda _, tokens, *rest: jnp.full(len(tokens), score))
    config = grpo.Config(**WRITING, scale_rewards=True)
    batch = sample_batch(config, task, task.teacher.params)
    assert (responses.divergence(batch) != 0.0).any()
    assert jnp.abs(grpo.advantages(config, task, batch)).max() < 0.1
    coarse = task.replace(model=GPT(dataclasses.replace(SMALL, dtype="bfloat16")))
    rounding = jax.random.uniform(KEY, batch.log_prob.shape, minval=-1.0)
    rounded = batch.log_prob * (1.0 + rounding * 2.0**-8)
    batch = batch._replace(ref_log_prob=rounded)
    assert jnp.abs(grpo.advantages(config, coarse, batch)).max() < 0.5
    assert jnp.abs(grpo.advantages(config, task, batch)).max() > 1.0


@pytest.mark.parametrize("whiten", [False, True])
def test_equal_scores_have_no_advantage_in_ppo_either(whiten):
    task = make_task(judge=lambda _, tokens, *rest: jnp.zeros(len(tokens)))
    config = ppo.Config(**WRITING, whiten_rewards=whiten)
    agent = ppo.init(config, task, KEY).agent
    found, _ = jax.jit(partial(ppo.collect, config, task))(agent, KEY)
    assert (responses.divergence(found.responses) != 0.0).any()
    assert jnp.abs(found.advantage).max() < 0.1


def test_over_what_the_loss_of_grpo_is_a_mean():
    each = jnp.array([[1.0, 2.0, 3.0], [5.0, jnp.nan, jnp.nan]])
    mask = jnp.array([[True, True, True], [True, False, False]])
    for name, expected in (("responses", 5.5), ("tokens", 2.75), ("published", 3.5)):
        found = grpo.average(grpo.Config(loss_mean=name), each, mask)
        close(found, expected)


def test_k3_in_the_loss_pulls_to_the_reference(grpo_batch, gold):
    config, params, batch, advantage = grpo_batch
    moved = perturb(params)
    of = jax.jit(
        partial(grpo.loss, task=gold, batch=grpo.Batch(batch, 0.0 * advantage))
    )
    penalized = config.replace(kl_penalty="k3", kl_coef=2.0)
    log_prob = full_pass(moved, batch.tokens, batch.mask, 0.7)
    log_ratio = jnp.where(batch.response, batch.ref_log_prob - log_prob, 0.0)
    expected = 2.0 * (jnp.exp(log_ratio) - 1.0 - log_ratio).sum(1).mean()
    close(of(moved, config=penalized)[0], expected, 1e-4)
    assert of(moved, config=config)[0] == 0.0
