"""Supervised fine-tuning: the tokens that count."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.rlhf import (
    supervised,
)
from tests.support.language import (
    KEY,
    close,
    full_pass,
    make_task,
)


def test_only_responses_are_learned_in_fine_tuning():
    task = make_task("completion")
    config = supervised.Config()
    rows = task.teacher.rows
    value, _ = jax.jit(supervised.loss)(task.teacher.params, config, task, rows)
    log_prob = full_pass(task.teacher.params, rows.tokens, rows.mask, 1.0)
    close(value, -np.asarray(log_prob)[np.asarray(rows.target)].mean(), 1e-4)
    assert not rows.target[:, 0].any() and rows.mask[:, 0].all()
    # Of rows kept back, over and over if there are fewer than are asked for.
    agent = supervised.Agent(task.teacher.params, ())
    returns = jax.jit(supervised.returns, static_argnames=("number", "greedy"))
    found = returns(config, task, agent, KEY, 15, True)
    each = [-log_prob[i][rows.target[i]].mean() for i in (0, 1, 11)]
    close(found[jnp.array([0, 1, 11])], -jnp.array(each), 1e-4)
    close(found[12:], found[:3])
