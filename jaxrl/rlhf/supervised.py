"""Pretraining and supervised fine-tuning (SFT): the likelihood of the next token.

    max_θ E_{x ~ D} Σ_t m_t log π_θ(x_t | x_<t)

D is rows of text. Pretraining (Radford et al., 2019) counts every token (m = 1);
fine-tuning (Ouyang et al., 2022, https://arxiv.org/abs/2203.02155, section 3.5) counts
those of the responses alone, EOS among them, and not the prompts'.

The details that matter:

1. The mean is over the counted tokens of the batch, so a long response weighs more than a
   short one.
2. EOS is learned like any other token: a model that never saw one never ends.
3. Rows are drawn uniformly, with replacement.
4. The loss of rows kept back is the evaluation: as a return, in nats and negative.
"""

from functools import partial
from typing import Any

import jax
from flax.struct import PyTreeNode

from jaxrl.rlhf import estimators, policies, responses
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.data import Texts
from jaxrl.rlhf.policies import Agent, State
from jaxrl.rlhf.tasks import Task, texts
from jaxrl.rlhf.testbeds import Kind
from jaxrl.types import Algorithm, Array, Metrics, PyTree, mean, static, traced


class Config(PyTreeNode):
    """Hyper-parameters of pretraining and of supervised fine-tuning."""

    total_steps: float = traced(20_000.0, low=1, high=1e12)
    """Rows of text that are read in the whole run; the schedule ends there."""
    batch_size: int = static(32, low=1)
    """Rows of each gradient step."""
    learning_rate: float = traced(1e-3, low=0)
    """Adam's step size."""
    anneal_lr: bool = static(True)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    max_grad_norm: float = traced(1.0, above=0)
    """Gradients are scaled down to this global norm."""
    lora_rank: int = static(0, low=0)
    """Rank of the adapters that are trained in the model's place; 0 trains all of it."""
    lora_alpha: float = static(16.0, above=0)
    """The adapters' product is scaled by lora_alpha / lora_rank."""
    lora_targets: str = static("query,value")
    """The layers that get adapters."""


def loss(
    policy: PyTree, config: Config, task: Task, rows: Texts
) -> tuple[Array, tuple[Array, Array]]:
    """The loss, the entropy of each prediction, and whether its mode was right."""
    params = policies.weights(config, task, policy)
    logits = policies.logits(task.model, params, rows.tokens, rows.mask)
    entropy = estimators.entropy(logits[:, :-1])
    right = logits[:, :-1].argmax(-1) == rows.tokens[:, 1:]
    value = text_losses.next_token_loss(logits, rows.tokens, rows.target)
    return value, (entropy, right)


def train_step(config: Config, task: Task, state: State) -> tuple[State, Metrics]:
    """One gradient step."""
    agent = state.agent
    key, key_rows = jax.random.split(state.key)
    rows = policies.draw_rows(config, task, key_rows)
    rate = policies.step_size(config, state.texts)
    of_rows = partial(loss, config=config, task=task, rows=rows)
    step = policies.gradient_step(config, of_rows, agent.policy, agent.opt_state, rate)
    entropy, right = step.aux
    counted = rows.target[:, 1:]
    metrics = {
        "rollout/episode_return": mean(-step.loss),
        "rollout/episode_length": mean(estimators.length(rows.target)),
        "loss/next_token": mean(step.loss),
        "text/accuracy": mean(right, counted),
        "policy/entropy": mean(entropy, counted),
    } | policies.step_metrics(step, rate)
    agent = Agent(step.params, step.opt_state)
    return policies.advance(state, agent, key, config.batch_size), metrics


def returns(
    config: Config, task: Task, agent: Agent, key: Array, number: int, greedy: bool
) -> Array:
    """-mean of -log π over the counted tokens of each row kept back, `[number]`."""
    del key, greedy
    params = policies.weights(config, task, agent.policy)

    def of_row(row: Texts) -> Array:
        logits = policies.logits(task.model, params, row.tokens, row.mask)
        return -text_losses.next_token_loss(logits, row.tokens, row.target)

    return policies.map_held_out(task, of_row, number)


def samples(
    config: Config, task: Task, agent: Agent, key: Array
) -> list[dict[str, Any]]:
    """The model's continuations of the beginnings of rows kept back."""
    params = policies.weights(config, task, agent.policy)
    return responses.continue_texts(task, task.teacher.held_out, params, key)


def _make_algorithm(name: str, kind: Kind) -> Algorithm:
    return Algorithm(
        name=name,
        Config=Config,
        init=policies.init,
        train_step=train_step,
        act=policies.no_act,
        plan=policies.plan,
        validate=policies.validate,
        problem=policies.problem(partial(texts, kind=kind), returns, samples),
    )


PRETRAIN = _make_algorithm("rlhf-pretrain", "text")
SFT = _make_algorithm("rlhf-sft", "completion")
