"""Responses: their log-probabilities, divergences, scores and metrics."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import losses
from jaxrl.pipelines.rlhf.demo import model_log_probs
from jaxrl.rlhf import (
    grpo,
    responses,
    rloo,
    testbeds,
)
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.models.language_model import LanguageModel
from jaxrl.rlhf.testbeds import small_world
from jaxrl.training.loop import NonFiniteError
from tests.support.language import (
    KEY,
    WORDS,
    WRITING,
    close,
    full_pass,
    perturb,
    sample_batch,
)
from tests.support.language import SMALL as MODEL


def test_the_log_probs_of_the_rollout_are_those_of_a_full_pass(ppo_batch, grpo_batch):
    for params, batch in (
        (ppo_batch[1].policy, ppo_batch[2].responses),
        grpo_batch[1:3],
    ):
        assert 0 < batch.response.sum() < batch.response.size
        found = full_pass(params, batch.tokens, batch.mask, 0.7)
        close(batch.log_prob, jnp.where(batch.response, found, 0.0))
        # The policy is still the reference.
        close(batch.log_prob, batch.ref_log_prob)
        close(responses.divergence(batch), 0.0)


@pytest.mark.full
def test_kl_estimates_come_near_the_exact_divergence(gold):
    params = perturb(gold.teacher.params, 0.05)
    config = rloo.Config(**WRITING | {"temperature": 1.0})

    @jax.jit
    def sampled(key):
        batch = responses.sample(config, gold, params, key, 4096)
        log_prob, ref = (
            text_losses.masked_sum(x, batch.response)
            for x in (batch.log_prob, batch.ref_log_prob)
        )
        k2 = text_losses.kl_k2(ref, log_prob)
        k3 = losses.approx_kl(ref, log_prob)
        return responses.divergence(batch), k2, k3, batch.tokens[:, 0]

    k1, k2, k3, prompt = sampled(KEY)
    own, ref = (
        model_log_probs(LanguageModel(MODEL, x, WORDS))
        for x in (params, gold.teacher.params)
    )
    # The prompts drawn, and not all alike.
    p, log_ratio = np.exp(own), np.asarray(own - ref)
    share = np.bincount(prompt, minlength=3) / len(prompt)
    exact = share @ (p * log_ratio).sum(1)
    close(small_world.kl(own, ref), (p * log_ratio).sum(1).mean())
    assert exact > 0.02
    expected = (exact, share @ (p * log_ratio**2 / 2).sum(1), exact)
    for found, value in zip((k1, k2, k3), expected, strict=True):
        error = np.std(found) / len(found) ** 0.5
        assert abs(np.mean(found) - value) < 4 * error
    # k2 is biased, of third order; so near the reference k1 is the noisiest.
    assert 0 < abs(expected[1] - exact) < 0.05 * exact
    assert max(np.std(k2), np.std(k3)) < np.std(k1)


def test_a_response_without_eos_is_penalized(gold):
    configs = [grpo.Config(**WRITING, eos_penalty=x) for x in (0.0, 1.5)]
    free, paid = (sample_batch(config, gold, gold.teacher.params) for config in configs)
    assert 0 < free.has_eos.sum() < len(free.has_eos)
    close(free.score - paid.score, jnp.where(free.has_eos, 0.0, 1.5))
    ended = free.tokens[free.has_eos]
    assert (ended[:, -1] == WORDS.eos).all()
    assert not (free.tokens[~free.has_eos][:, 1:] == WORDS.eos).any()


def test_what_is_logged_of_a_batch(grpo_batch, gold):
    _, _, batch, _ = grpo_batch
    reported = jax.jit(responses.batch_metrics)(
        gold.replace(gold=testbeds.small_judge), batch
    )
    found = {n: float(x.value) for n, x in reported.items()}
    close(found["rollout/episode_return"], batch.score.mean())
    close(found["rollout/episode_length"], batch.response.sum(1).mean())
    close(found["text/ended"], batch.has_eos.mean())
    close(found["policy/surprise"], -batch.log_prob[batch.response].mean(), 1e-4)
    words = [tuple(t[m]) for t, m in zip(batch.tokens, batch.response, strict=True)]
    ones = [int(t) for row in words for t in row]
    twos = [tuple(map(int, x)) for row in words for x in itertools.pairwise(row)]
    close(found["text/distinct_1"], len(set(ones)) / len(ones))
    close(found["text/distinct_2"], len(set(twos)) / len(twos))
    # The world's own reward beside the judge's.
    rows = zip(batch.tokens, batch.response, strict=True)
    texts = [responses.decode(gold, *row) for row in rows]
    prompts = [responses.decode(gold, t[:1], [True]) for t in batch.tokens]
    scored = [small_world.gold_reward(*x) for x in zip(prompts, texts, strict=True)]
    scored -= np.where(batch.has_eos, 0.0, 1.0)
    close(found["reward/gold"], np.mean(scored))


def not_a_number(params, tokens, mask, response):
    del params, mask, response
    return jnp.where(tokens[:, 0] == 1, jnp.nan, 0.0)


@pytest.mark.full
def test_a_judge_that_gives_nan_is_named(gold):
    task = gold.replace(judge=not_a_number)
    config = rloo.Config(**WRITING, total_steps=64.0)
    with pytest.raises(NonFiniteError) as error:
        jaxrl.train(rloo.RLOO, config, task, seed=7)
    assert str(error.value) == (
        "reward became NaN or infinite at train step 1 of seed 7: see to `reward`, which "
        "scores the responses."
    )
