"""What the algorithms of RLHF have in common: what is trained of a model, and its steps.

Either all parameters of the model are trained, or adapters beside it (`lora_rank`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import optim
from jaxrl.errors import InvalidInput, require
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.models import language_model, lora
from jaxrl.rlhf.models.transformer import GPT, Output
from jaxrl.rlhf.tasks import Task
from jaxrl.types import Array, Counter, PyTree, Scalar


def adapters_of(config: Any) -> lora.LoRA | None:
    """What is trained beside the model, if not the model itself (`lora_rank` = 0)."""
    if config.lora_rank == 0:
        return None
    targets = tuple(config.lora_targets.split(","))
    return lora.LoRA(config.lora_rank, config.lora_alpha, targets)


def validate(config: Any, task: Task) -> None:
    """What holds for all of them.

    Raises:
      InvalidInput: adapters without a base, or for layers that there are not.
    """
    adapters = adapters_of(config)
    require(
        adapters is None or task.base is not None,
        f"lora_rank = {config.lora_rank}: adapters need a model to adapt, give base.",
    )
    if adapters is not None:
        jax.eval_shape(lambda x: lora.init(adapters, x, jax.random.key(0)), start(task))


def start(task: Task, key: Array | None = None) -> PyTree:
    """The parameters to start from: of the base, or new ones."""
    if task.teacher.params is not None:
        return task.teacher.params
    key = jax.random.key(0) if key is None else key
    return task.model.init(key, jnp.zeros((1, 1), jnp.int32))


def init_trained(config: Any, task: Task, key: Array) -> PyTree:
    """What is trained: all parameters, or adapters that change nothing yet."""
    adapters = adapters_of(config)
    params = start(task, key)
    return params if adapters is None else lora.init(adapters, params, key)


def weights(config: Any, task: Task, trained: PyTree) -> PyTree:
    """The model's parameters, of what is trained."""
    adapters = adapters_of(config)
    if adapters is None:
        return trained
    return lora.merge(adapters, task.teacher.params, trained)


def logits(model: GPT, params: PyTree, tokens: Array, mask: Array) -> Array:
    """Float32 `[B, T, V]`, of the token after each."""
    output: Output = model.apply(params, tokens, mask)  # type: ignore[assignment]
    return output.logits


def reference_log_probs(
    task: Task, tokens: Array, mask: Array, temperature: Scalar = 1.0
) -> Array:
    """log π_ref of each token under the model that one started from: `[B, T]`."""
    given = logits(task.model, task.teacher.params, tokens, mask)
    return text_losses.token_log_probs(given, tokens, temperature)


def described(kind: str, config: Any, task: Task) -> dict[str, Any]:
    """What the artefact says of the model (`Problem.describe`)."""
    adapters = adapters_of(config)
    about = language_model.described(
        kind,
        task.model.config,
        task.tokenizer,
        adapters,
        task.base if adapters else None,
    )
    return {"language_model": about}


def step_size(config: Any, count: Counter) -> Scalar:
    """The learning rate now: `learning_rate`, falling to 0 if it is annealed."""
    if not config.anneal_lr:
        return config.learning_rate
    done = optim.progress(count, config.total_steps)
    return optim.linear_schedule(config.learning_rate, 0.0, done)


def optimizer(config: Any) -> Any:
    return optim.adam(config.max_grad_norm, eps=1e-8)


def no_act(*_: Any) -> Any:
    """A language model steps no environment, so it does not act in one.

    Raises:
      InvalidInput: always.
    """
    raise InvalidInput(
        "a language model has no policy that acts in an environment: it answers prompts, "
        "`jaxrl rlhf generate`."
    )
