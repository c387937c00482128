"""DPO: the loss before the first step."""

import math

import jax
import jax.numpy as jnp

from jaxrl.rlhf import (
    dpo,
    estimators,
)
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.models.transformer import GPT
from tests.support.language import SMALL as MODEL
from tests.support.language import (
    WORDS,
    close,
    read,
)


def test_dpo_starts_at_log_2(pairs):
    config = dpo.Config(batch_size=4)
    rows = pairs.teacher.rows
    params = pairs.teacher.params
    reference = jax.jit(dpo.response_log_probs)(pairs, params, rows)
    value, (log_prob, entropy) = jax.jit(dpo.loss)(
        params, config, pairs, rows, reference
    )
    close(value, math.log(2.0))
    reward = text_losses.implicit_reward(log_prob, reference, config.beta)
    assert (estimators.preference_accuracy(reward[:, 0], reward[:, 1]) == 0.5).all()
    # log π(y|x) by hand, of a row without its padding.
    tokens = rows.tokens[0, 1][rows.mask[0, 1]]
    logits, _ = read(params, tokens)
    each = [jax.nn.log_softmax(logits[t - 1])[tokens[t]] for t in range(1, len(tokens))]
    close(reference[0, 1], sum(each), 1e-4)
    assert tokens[-1] == WORDS.eos
    flat = [x.reshape(-1, x.shape[-1]) for x in rows[:3]]
    logits = jax.jit(GPT(MODEL).apply)(params, *flat[:2]).logits
    log_p = jax.nn.log_softmax(logits)
    exact = -(jnp.exp(log_p) * log_p).sum(-1)[:, :-1]
    close(entropy, exact[flat[2][:, 1:]].mean(), 1e-4)
