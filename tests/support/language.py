"""Tiny language models, of both kinds, that compile in a second."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.rlhf import data, policies, responses, tasks, testbeds
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.models import tokenizers
from jaxrl.rlhf.models.language_model import RewardParams
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
def make_params(config: ModelConfig) -> PyTree:
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
    """The model's response, compiled once for each shape."""
    return GPT(config).apply(params, *arguments)


def random_tokens(
    batch: int, length: int, seed: int = 2, vocab_size: int = 11
) -> Array:
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, vocab_size)


def make_task(kind="prompt", judge=testbeds.small_judge, params=(), number=12):
    """A task of the small world without a file; `judge` may be a reward model's too."""
    rows = testbeds.rows("small-world", kind, number)
    read = {"prompt": data.prompts, "completion": data.completions, "text": data.texts}
    read = read.get(kind, data.preferences)
    form = data.Format(WORDS, None if kind == "prompt" else 8)
    arrays = jax.tree.map(jnp.asarray, read(rows, form))
    return tasks.Task(
        teacher=tasks.Lessons(make_params(SMALL), arrays, arrays, params),
        model=GPT(SMALL),
        tokenizer=WORDS,
        judge=judge,
        judge_model=GPT(SMALL) if params else None,
        base="base",
        id="small-world",
    )


KEY = jax.random.key(3)
WRITING = {"batch_size": 16, "max_new_tokens": 5, "temperature": 0.7}


def perturb(params, scale=0.05, seed=0):
    """Other parameters, near these."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + scale * rng.normal(size=x.shape).astype("f"), params
    )


REWARD = RewardParams(
    perturb(make_params(SMALL), 0.1, 1),
    jnp.asarray(np.random.default_rng(2).normal(size=16), jnp.float32),
    jnp.float32(0.3),
)
"""A reward model of the small world."""


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@jax.jit
def sample_batch(config, task, params):
    return responses.sample(config, task, params, KEY, 16, 4)


def read(params, tokens):
    """What the model makes of a text alone, up to its last token."""
    row = jnp.zeros((1, 8), jnp.int32).at[0, : len(tokens)].set(tokens)
    output = apply(SMALL, params, row, jnp.arange(8)[None] < len(tokens))
    return output.logits[0, : len(tokens)], output.hidden[0, len(tokens) - 1]


@jax.jit
def full_pass(params, tokens, mask, temperature):
    logits = policies.logits(GPT(SMALL), params, tokens, mask)
    return text_losses.token_log_probs(logits, tokens, temperature)
