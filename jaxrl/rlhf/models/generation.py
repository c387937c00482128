"""Text from a language model: sampling with the cache, in one compiled scan.

Shapes: B sequences, P columns of the prompt, N new tokens, V vocabulary.
"""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import require
from jaxrl.rlhf.models.transformer import GPT, Cache, init_cache
from jaxrl.types import Array, PyTree, Scalar


class Generation(NamedTuple):
    """Prompts with their responses."""

    tokens: Array
    """Int32 `[B, P + N]`: the prompt, the response with its EOS, padding."""
    mask: Array
    """Bool `[B, P + N]`: real tokens, EOS among them."""
    log_probs: Array
    """Float32 `[B, N]`: of each response's tokens, 0 for padding; those of the softmax at
    the temperature, before top-k and top-p."""


def generate(
    model: GPT,
    params: PyTree,
    prompt: Array,
    mask: Array | None,
    key: Array,
    max_new_tokens: int,
    temperature: Scalar = 1.0,
    top_k: int | None = None,
    top_p: Scalar | None = None,
    eos: int | None = None,
    greedy: bool = False,
    pad: int = 0,
) -> Generation:
    """Responses to prompts: a_t ~ softmax(logits / temperature), cut by top-k and top-p.

    Calls with equal shapes, model, `max_new_tokens`, `top_k`, `eos`, `greedy` and `pad`
    are one program; temperature and top-p are data.

    Args:
      model: whose `apply` is called.
      params: its parameters.
      prompt: int32 `[B, P]`, padded on the left: the last column is a real token.
      mask: bool `[B, P]`, True for a real token; none means all are.
      key: one key, from which row b takes `fold_in(key, b)`, so that no row depends on
        those beside it; or a key for each row, `[B]`.
      max_new_tokens: N.
      temperature: of the softmax, above 0.
      top_k: only so many likeliest tokens; none means all.
      top_p: only the fewest likeliest tokens whose probability together reaches it
        (Holtzman et al., 2020, https://arxiv.org/abs/1904.09751); none means all.
      eos: the token that ends a response; none means that nothing does.
      greedy: the likeliest token, not a drawn one.
      pad: what is written behind EOS, where the mask is False.

    Raises:
      InvalidInput: a value that cannot be, a prompt with padding on its right, or more
        columns than the model reads.

    Source: temperature and top-p as Holtzman et al. (2020),
    https://arxiv.org/abs/1904.09751, section 3; top-k as Fan et al. (2018),
    https://arxiv.org/abs/1805.04833.
    """
    vocab_size, shape = model.config.vocab_size, jnp.shape(prompt)
    _check(vocab_size, shape, max_new_tokens, top_k)
    for name, tokens in {"prompt": prompt, "eos": eos, "pad": pad}.items():
        _check_tokens(name, tokens, vocab_size)
    _check_number("temperature", temperature, np.inf)
    if top_p is not None:
        _check_number("top_p", top_p, 1.0)
    mask = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask, bool)
    require(
        isinstance(mask, jax.core.Tracer) or bool(mask[:, -1].all()),
        "mask: a prompt ends in padding; pad prompts on the left.",
    )
    return _generate(
        *(model, params, jnp.asarray(prompt, jnp.int32), mask, key, max_new_tokens),
        *(temperature, top_k, top_p, eos, greedy, pad),
    )


@functools.partial(
    jax.jit, static_argnames=("model", "new", "top_k", "eos", "greedy", "pad")
)
def _generate(
    model: GPT,
    params: PyTree,
    prompt: Array,
    mask: Array,
    key: Array,
    new: int,
    temperature: Scalar,
    top_k: int | None,
    top_p: Scalar | None,
    eos: int | None,
    greedy: bool,
    pad: int,
) -> Generation:
    batch, length = prompt.shape
    rows = jnp.arange(batch)
    keys = key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    cache = init_cache(model.config, batch, length + new)
    if length > 1:
        _, cache = _read(model, params, prompt[:, :-1], mask[:, :-1], cache)

    def step(
        carry: tuple[Cache, Array, Array], t: Array
    ) -> tuple[tuple[Cache, Array, Array], tuple[Array, Array, Array]]:
        cache, last, real = carry
        logits, cache = _read(model, params, last[:, None], real[:, None], cache)
        logits = logits[:, 0] / temperature
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        drawn = logits.argmax(-1) if greedy else _draw(now, logits, top_k, top_p)
        going = real if eos is None else real & (last != eos)
        # The prompt may hold EOS tokens, its last one too: only responses are ended by one.
        going = going | (t == 0)
        token = jnp.where(going, drawn, pad).astype(jnp.int32)
        chosen = jax.nn.log_softmax(logits)[rows, token]
        log_prob = jnp.where(going, chosen, 0.0)
        return (cache, token, going), (token, going, log_prob)

    carry = (cache, prompt[:, -1], mask[:, -1])
    _, (tokens, real, log_probs) = jax.lax.scan(step, carry, jnp.arange(new))
    return Generation(
        jnp.concatenate([prompt, tokens.T], axis=1),
        jnp.concatenate([mask, real.T], axis=1),
        log_probs.T,
    )


def _read(
    model: GPT, params: PyTree, tokens: Array, mask: Array, cache: Cache
) -> tuple[Array, Cache]:
    """Logits of the token after each, and the cache with these tokens in it."""
    logits, _, cache_now = cast(Any, model.apply(params, tokens, mask, cache))
    return logits, cache_now


def candidates(
    logits: Array, top_k: int | None, top_p: Scalar | None
) -> tuple[Array, Array]:
    """The tokens that may be drawn, likeliest first: top-k, then top-p of what is left.

    Args:
      logits: `[..., V]`, at the temperature.
      top_k: how many at most; none means V. Of equal logits the lower token comes first.
      top_p: the shortest beginning of this list with at least this probability, of all
        the top k have, stays; at least one token does.

    Returns:
      (logits `[..., k]`, -inf for tokens cut off by top-p; tokens `[..., k]`).

    Source: Fan et al. (2018), https://arxiv.org/abs/1805.04833 (top-k);
    Holtzman et al. (2020), https://arxiv.org/abs/1904.09751, section 3.1 (top-p).
    """
    sorted_logits, tokens = jax.lax.top_k(logits, top_k or logits.shape[-1])
    if top_p is not None:
        probabilities = jax.nn.softmax(sorted_logits)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        stays = (before < top_p).at[..., 0].set(True)
        sorted_logits = jnp.where(stays, sorted_logits, -jnp.inf)
    return sorted_logits, tokens


def _draw(keys: Array, logits: Array, top_k: int | None, top_p: Scalar | None) -> Array:
    """A token for each row of logits `[B, V]`, each with its own key."""
    if top_k is None and top_p is None:
        return _inverse(keys, logits)
    kept, tokens = candidates(logits, top_k, top_p)
    index = _inverse(keys, kept)
    return jnp.take_along_axis(tokens, index[:, None], axis=1)[:, 0]


def _inverse(keys: Array, logits: Array) -> Array:
    """The first column whose cumulative probability exceeds one uniform number a row.

    One random number for each row, where Gumbel noise needs V of them: with a small model
    those cost as much as its layers. Columns of probability 0 are never drawn. The number
    has 23 bits: tokens of less than about 1e-7 come about as often as they should all
    together, but not one by one.
    """
    up_to = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
    drawn = jax.vmap(jax.random.uniform)(keys)[:, None] * up_to[:, -1:]
    # u < 1, but rounding may make the product the whole sum: the last possible column.
    last = jnp.argmax(up_to >= up_to[:, -1:], axis=-1)
    return jnp.minimum((up_to <= drawn).sum(-1), last)


def _check(
    vocab_size: int, shape: tuple[int, ...], new: int, top_k: int | None
) -> None:
    require(
        len(shape) == 2 and shape[1] > 0,
        f"prompt has shape {shape}: must be [B, P] with one token or more.",
    )
    require(new >= 1, f"max_new_tokens = {new}: must be at least 1.")
    require(
        top_k is None or 1 <= top_k <= vocab_size,
        f"top_k = {top_k}: must be between 1 and the vocabulary's {vocab_size}.",
    )


def _check_tokens(name: str, tokens: Array | int | None, vocab_size: int) -> None:
    """Tokens that are known; one that is not in the vocabulary would give NaN."""
    if tokens is None or isinstance(tokens, jax.core.Tracer):
        return
    known = np.asarray(tokens)
    wrong = known[(known < 0) | (known >= vocab_size)]
    require(
        not wrong.size,
        f"{name} has token {wrong[:1].sum()}: the model's vocabulary has {vocab_size}; "
        f"use the model's own tokenizer.",
    )


def _check_number(name: str, value: Scalar, most: float) -> None:
    """A number that is known: what is traced is not."""
    if isinstance(value, jax.core.Tracer):
        return
    require(
        bool(np.all(np.asarray(value) > 0) and np.all(np.asarray(value) <= most)),
        f"{name} = {value}: must be greater than 0"
        + (" and at most 1." if most == 1.0 else "; for the likeliest token, greedy."),
    )
