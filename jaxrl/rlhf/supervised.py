"""Pretraining and supervised fine-tuning (SFT): the likelihood of the next token.

    max_θ E_{x ~ D} Σ_t m_t log π_θ(x_t | x_<t)

D is rows of text. Pretraining (Radford et al., 2019) counts every token (m = 1);
fine-tuning (Ouyang et al., 2022, https://arxiv.org/abs/2203.02155, section 3.5) counts
those of the answers alone, EOS among them, and not the prompts'.

The details that matter:

1. The mean is over the counted tokens of the batch, so a long answer weighs more than a
   short one.
2. EOS is learned like any other token: a model that never saw one never ends.
3. Rows are drawn uniformly, with replacement.
4. The loss of rows kept back is the evaluation: as a return, in nats and negative.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import optim
from jaxrl.rlhf import answers, estimators, policies
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.data import Texts
from jaxrl.rlhf.tasks import Task, digests, drawn, no_world, texts
from jaxrl.rlhf.testbeds import Kind
from jaxrl.types import (
    Algorithm,
    Array,
    Metrics,
    Plan,
    Problem,
    PyTree,
    World,
    mean,
    static,
    traced,
)


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


class Agent(PyTreeNode):
    """All that the policy artefact holds."""

    policy: PyTree
    opt_state: PyTree


class State(PyTreeNode):
    agent: Agent
    world: World


def validate(config: Config, task: Task) -> None:
    policies.validate(config, task)


def plan(config: Config, task: Task) -> Plan:
    del task
    return Plan(config.batch_size, 1, gradient_rows=config.batch_size)


def init(config: Config, task: Task, key: Array) -> State:
    key_policy, key_world = jax.random.split(key)
    policy = policies.init_trained(config, task, key_policy)
    agent = Agent(policy, policies.optimizer(config).init(policy))
    return State(agent, no_world(key_world))


def loss(
    policy: PyTree, config: Config, task: Task, rows: Texts
) -> tuple[Array, tuple[Array, Array]]:
    """The loss, the entropy of each prediction, and whether its mode was right."""
    params = policies.weights(config, task, policy)
    logits = policies.logits(task.model, params, rows.tokens, rows.mask)
    entropy = estimators.entropy(logits[:, :-1])
    right = logits[:, :-1].argmax(-1) == rows.tokens[:, 1:]
    return text_losses.next_token_loss(logits, rows.tokens, rows.target), (
        entropy,
        right,
    )


def train_step(config: Config, task: Task, state: State) -> tuple[State, Metrics]:
    """One gradient step."""
    agent, world = state.agent, state.world
    key, key_rows = jax.random.split(world.key)
    index = jax.random.randint(key_rows, (config.batch_size,), 0, task.num_rows)
    rows = drawn(task.teacher.rows, index)
    rate = policies.step_size(config, world.env_steps)
    of = jax.value_and_grad(loss, has_aux=True)
    (value, (entropy, right)), grads = of(agent.policy, config, task, rows)
    optimizer = policies.optimizer(config)
    policy, opt_state = optim.apply(
        optimizer, agent.policy, agent.opt_state, grads, rate
    )
    counted = rows.target[:, 1:]
    metrics = {
        "rollout/episode_return": mean(-value),
        "rollout/episode_length": mean(estimators.length(rows.target)),
        "loss/next_token": mean(value),
        "text/accuracy": mean(right, counted),
        "policy/entropy": mean(entropy, counted),
        "optim/grad_norm": mean(optim.global_norm(grads)),
        "optim/learning_rate": mean(rate),
    }
    world = world.replace(key=key, env_steps=world.env_steps + config.batch_size)
    return State(Agent(policy, opt_state), world), metrics


def returns(
    config: Config, task: Task, agent: Agent, key: Array, number: int, greedy: bool
) -> Array:
    """-mean of -log π over the counted tokens of each row kept back, `[number]`."""
    del key, greedy
    count = task.teacher.held_out.tokens.shape[0]
    params = policies.weights(config, task, agent.policy)

    def of_row(i: Array) -> Array:
        row = jax.tree.map(lambda x: x[i][None], task.teacher.held_out)
        logits = policies.logits(task.model, params, row.tokens, row.mask)
        return -text_losses.next_token_loss(logits, row.tokens, row.target)

    return jax.lax.map(of_row, jnp.arange(number) % count, batch_size=64)


def samples(
    config: Config, task: Task, agent: Agent, key: Array
) -> list[dict[str, Any]]:
    """How the model goes on with the beginnings of rows kept back."""
    params = policies.weights(config, task, agent.policy)
    return answers.continued(task, task.teacher.held_out, params, key)


def _algorithm(name: str, kind: Kind) -> Algorithm:
    problem = Problem(
        make=partial(texts, kind=kind),
        returns=returns,
        describe=partial(policies.described, "policy"),
        digests=digests,
        samples=samples,
    )
    return Algorithm(
        name=name,
        Config=Config,
        init=init,
        train_step=train_step,
        act=policies.no_act,
        plan=plan,
        validate=validate,
        problem=problem,
    )


PRETRAIN = _algorithm("rlhf-pretrain", "text")
SFT = _algorithm("rlhf-sft", "completion")
