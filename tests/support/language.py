"""Tiny language models, of both kinds, that compile in a second."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.rlhf import data, tasks, testbeds
from jaxrl.rlhf.models import tokenizers
from jaxrl.rlhf.models.transformer import GPT, ModelConfig, Output
from jaxrl.types import Array, PyTree

GPT2 = ModelConfig(
    vocab_size=11, max_length=16, num_layers=2, num_heads=2, width=8, mlp_width=12
)
LLAMA = ModelConfig(
    **{"vocab_size": 11, "max_length": 16, "num_layers": 2, "num_heads": 4},
    **{"num_kv_heads": 2, "width": 16, "mlp_width": 12, "positions": "rotary"},
    **{"norm": "rms", "activation": "swiglu", "tied": False, "bias": False},
)
CONFIGS = {"gpt2": GPT2, "llama": LLAMA}
WORDS = tokenizers.characters("abc", own_pad=False)
SMALL = ModelConfig(
    **{"vocab_size": 4, "max_length": 8, "num_layers": 1},
    **{"num_heads": 2, "width": 16, "mlp_width": 32},
)
"""Of the small world, whose tokens `WORDS` are."""


@functools.cache
def params_of(config: ModelConfig) -> PyTree:
    """Random parameters, ten times as large as those of a new model, whose logits would
    hardly differ. Nothing is compiled for them."""
    tokens, rng = jnp.zeros((1, 2), jnp.int32), np.random.default_rng(0)
    shapes = jax.eval_shape(GPT(config).init, jax.random.key(0), tokens)

    def draw(path: Any, leaf: Any) -> Array:
        around = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(around, 0.2, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnums=0)
def apply(config: ModelConfig, params: PyTree, *arguments: Array) -> Output:
    """The model's answer, compiled once for each shape."""
    return GPT(config).apply(params, *arguments)


def random_tokens(
    batch: int, length: int, seed: int = 2, vocab_size: int = 11
) -> Array:
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, vocab_size)


def task_of(kind="prompt", judge=testbeds.small_judge, params=(), number=12):
    """A task of the small world without a file; `judge` may be a reward model's too."""
    rows = testbeds.rows("small-world", kind, number)
    read = {"prompt": data.prompts, "completion": data.completions, "text": data.texts}
    read = read.get(kind, data.preferences)
    arrays = jax.tree.map(
        jnp.asarray, read(rows, WORDS, None if kind == "prompt" else 8)
    )
    return tasks.Task(
        teacher=tasks.Lessons(params_of(SMALL), arrays, arrays, params),
        model=GPT(SMALL),
        tokenizer=WORDS,
        judge=judge,
        judge_model=GPT(SMALL) if params else None,
        base="base",
        id="small-world",
    )
