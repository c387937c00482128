"""Names of the metrics of a train step, by tracing it: nothing is compiled or computed."""

import jax

from jaxrl.envs import make
from jaxrl.types import Algorithm
from tests.support.language import make_task
from tests.support.small import fitting, tiny, with_teacher


def of_algorithm(algorithm: Algorithm) -> tuple[str, ...]:
    """Of an algorithm that acts in an environment."""
    env = fitting(algorithm, with_teacher(algorithm, make("probe/truncation")))
    config = tiny(algorithm)
    state = jax.eval_shape(algorithm.init, config, env, jax.random.key(0))
    return tuple(jax.eval_shape(algorithm.train_step, config, env, state)[1])


def of_stage(name: str, algorithm: Algorithm) -> tuple[str, ...]:
    """Of an algorithm of `jaxrl rlhf`, on prompts with a gold reward beside the judge's."""
    config = algorithm.Config(batch_size=8)
    kind = {"pretrain": "text", "sft": "completion"}.get(name, "preference")
    if hasattr(config, "max_new_tokens"):
        kind, config = "prompt", config.replace(max_new_tokens=5)
    task = make_task(kind)
    task = task.replace(gold=task.judge)
    state = jax.eval_shape(algorithm.init, config, task, jax.random.key(0))
    return tuple(jax.eval_shape(algorithm.train_step, config, task, state)[1])
