"""Shared by the algorithms of RLHF: what is trained of a model, its state and its steps.

Either all parameters of the model are trained, or adapters beside it (`lora_rank`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import optim, types
from jaxrl.core.minibatches import minibatches
from jaxrl.errors import InvalidInput, require
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf import tasks
from jaxrl.rlhf.models import language_model, lora
from jaxrl.rlhf.models.transformer import GPT, Output
from jaxrl.rlhf.tasks import Task
from jaxrl.types import (
    Array,
    Counter,
    Metrics,
    Plan,
    Problem,
    PyTree,
    Scalar,
    counter,
    mean,
)

# The model.


def read_lora(config: Any) -> lora.LoRA | None:
    """The adapters that a config asks for; None where the model itself is trained."""
    if config.lora_rank == 0:
        return None
    targets = tuple(config.lora_targets.split(","))
    return lora.LoRA(config.lora_rank, config.lora_alpha, targets)


def validate(config: Any, task: Task) -> None:
    """Check what holds for all algorithms.

    Raises:
      InvalidInput: adapters without a base, or for layers that do not exist.
    """
    adapters = read_lora(config)
    require(
        adapters is None or task.base is not None,
        f"lora_rank = {config.lora_rank}: adapters need a model to adapt, give base.",
    )
    if adapters is not None:
        jax.eval_shape(lambda x: lora.init(adapters, x, jax.random.key(0)), start(task))


def start(task: Task, key: Array | None = None) -> PyTree:
    """The parameters to start from: the base's, or new ones."""
    if task.teacher.params is not None:
        return task.teacher.params
    key = jax.random.key(0) if key is None else key
    return task.model.init(key, jnp.zeros((1, 1), jnp.int32))


def init_trained(config: Any, task: Task, key: Array) -> PyTree:
    """Trained parameters: all of the model, or adapters that change nothing yet."""
    adapters = read_lora(config)
    params = start(task, key)
    return params if adapters is None else lora.init(adapters, params, key)


def weights(config: Any, task: Task, trained: PyTree) -> PyTree:
    """The model's parameters, from what is trained."""
    adapters = read_lora(config)
    if adapters is None:
        return trained
    return lora.merge(adapters, task.teacher.params, trained)


def logits(model: GPT, params: PyTree, tokens: Array, mask: Array) -> Array:
    """Logits of the token after each: float32 `[B, T, V]`."""
    output: Output = model.apply(params, tokens, mask)  # type: ignore[assignment]
    return output.logits


def reference_log_probs(
    task: Task, tokens: Array, mask: Array, temperature: Scalar = 1.0
) -> Array:
    """log π_ref of each token under the model that one started from: `[B, T]`."""
    given = logits(task.model, task.teacher.params, tokens, mask)
    return text_losses.token_log_probs(given, tokens, temperature)


# The state.


class Agent(PyTreeNode):
    """A policy and its optimiser: all that the policy artefact holds."""

    policy: PyTree
    opt_state: PyTree


class State(types.State, kw_only=True):
    """State of an algorithm that reads or writes texts, and steps no environment."""

    key: Array
    texts: Counter  # read or written so far


def begin(agent: PyTree, key: Array) -> State:
    """The state before the first text."""
    return State(agent, key=key, texts=counter())


def advance(state: State, agent: PyTree, key: Array, number: int) -> State:
    """The state after a train step on so many texts."""
    return state.replace(agent=agent, key=key, texts=state.texts + number)


def init(config: Any, task: Task, key: Array) -> State:
    """A policy that is the model one starts from."""
    key_policy, key_state = jax.random.split(key)
    policy = init_trained(config, task, key_policy)
    return begin(Agent(policy, optimizer(config).init(policy)), key_state)


# Steps.


def plan(config: Any, task: Task) -> Plan:
    """One gradient step a batch, of as many texts as its rows have."""
    texts = config.batch_size * math.prod(task.teacher.rows.tokens.shape[1:-1])
    return Plan(config.batch_size, 1, gradient_rows=texts)


def step_size(config: Any, count: Counter) -> Scalar:
    """The learning rate now: `learning_rate`, falling to 0 if it is annealed."""
    if not config.anneal_lr:
        return config.learning_rate
    done = optim.progress(count, config.total_steps)
    return optim.linear_schedule(config.learning_rate, 0.0, done)


def optimizer(config: Any) -> Any:
    return optim.adam(config.max_grad_norm, eps=1e-8)


def draw_rows(config: Any, task: Task, key: Array) -> PyTree:
    """A batch of rows, drawn uniformly and with replacement."""
    index = jax.random.randint(key, (config.batch_size,), 0, task.num_rows)
    return tasks.select(task.teacher.rows, index)


class Step(NamedTuple):
    """Result of one gradient step."""

    params: PyTree
    opt_state: PyTree
    loss: Array  # []
    aux: Any  # what else the loss function returns
    grad_norm: Array  # [], before any clip


def gradient_step(
    config: Any, loss: Callable, params: PyTree, opt_state: PyTree, rate: Scalar
) -> Step:
    """One step down the gradient of `loss: params -> (loss, aux)`.

    On the tree of parameters, and not on one vector as `optim.gradient_step`: the matrices
    of a language model are few and large, and may be spread over devices.
    """
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
    params, opt_state = optim.apply(optimizer(config), params, opt_state, grads, rate)
    return Step(params, opt_state, value, aux, optim.global_norm(grads))


def step_metrics(step: Step, rate: Scalar) -> Metrics:
    """Metrics of a gradient step."""
    return {
        "optim/grad_norm": mean(step.grad_norm),
        "optim/learning_rate": mean(rate),
    }


def fit(
    config: Any, step: Callable, agent: PyTree, batch: PyTree, key: Array
) -> tuple[PyTree, Array]:
    """`num_epochs` passes of `num_minibatches` steps over the texts of a batch.

    Args:
      config: with `batch_size`, `num_epochs` and `num_minibatches`.
      step: `(agent, some texts) -> (agent, reported [R])`.
      agent: before the first step.
      batch: arrays `[B, ...]`.
      key: of the order.

    Returns:
      (agent, reported `[U, R]`) with a row for each of U steps.
    """
    order = minibatches(
        key, config.batch_size, config.num_epochs, config.num_minibatches
    )
    return jax.lax.scan(
        lambda agent, index: step(agent, tasks.select(batch, index)), agent, order
    )


# What an algorithm gives as its `Problem`.


def problem(
    make: Callable, returns: Callable, samples: Callable, kind: str = "policy"
) -> Problem:
    """The `Problem` of an algorithm that trains a "policy" or a "reward" model."""
    about = partial(describe, kind)
    return Problem(make, returns, about, tasks.digests, samples, tasks.is_path)


def describe(kind: str, config: Any, task: Task) -> dict[str, Any]:
    """The artefact's description of the model (`Problem.describe`)."""
    adapters = read_lora(config)
    base = task.base if adapters else None
    about = language_model.describe(
        kind, task.model.config, task.tokenizer, adapters, base
    )
    return {"language_model": about}


def map_held_out(task: Task, function: Callable, number: int) -> Array:
    """`function` of the rows kept back, one by one and over and over: `[number]`."""
    count = task.teacher.held_out.tokens.shape[0]

    def apply(i: Array) -> Array:
        return function(jax.tree.map(lambda x: x[i][None], task.teacher.held_out))

    return jax.lax.map(apply, jnp.arange(number) % count, batch_size=64)


def no_act(*_: Any) -> Any:
    """Refuse to act: a language model steps no environment.

    Raises:
      InvalidInput: always.
    """
    raise InvalidInput(
        "a language model has no policy that acts in an environment: it responds to "
        "prompts, `jaxrl rlhf generate`."
    )
