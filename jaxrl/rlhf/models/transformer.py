"""A language model: a decoder-only transformer with pre-norm blocks.

One module reads GPT-2 (Radford et al., 2019, "Language Models are Unsupervised Multitask
Learners": learned positions, layer norm, GELU, biases, tied embeddings) and Llama (Touvron
et al., 2023, https://arxiv.org/abs/2302.13971: rotary positions, RMS norm, SwiGLU, no
biases, grouped queries). A config says which.

Shapes: B sequences, T tokens of the call, S columns that may be attended to (T, or those
of the cache), V vocabulary, D width, L layers, H heads, K heads of keys and values, E width
of a head.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl.core import config as configs
from jaxrl.errors import require
from jaxrl.types import Array, static


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Config of a language model. Hashable, so it may be static.

    Raises:
      InvalidInput: a field has a value that it may not have, or two do not fit.
    """

    vocab_size: int = static(low=1)
    """Rows of the embedding, V. Tokens are 0, ..., V - 1."""
    max_length: int = static(low=1)
    """The most columns, padding included, of a sequence."""
    num_layers: int = static(low=1)
    """Blocks, L."""
    num_heads: int = static(low=1)
    """Heads of queries, H."""
    width: int = static(low=1)
    """Features of a token between blocks, D."""
    mlp_width: int = static(low=1)
    """Hidden features of each block's MLP: usually 4 D."""
    num_kv_heads: int | None = static(None, low=1)
    """Heads of keys and values, K, each shared by H / K heads of queries; none means H."""
    head_width: int | None = static(None, low=1)
    """Features of a head, E; none means D / H."""
    positions: Literal["learned", "rotary"] = static("learned")
    """An embedding added to that of the token, or rotations of queries and keys."""
    rotary_base: float = static(10_000.0, above=0.0)
    """The longest wavelength of rotary positions is about 2π times this."""
    rotary_factor: float = static(1.0, above=0.0)
    """Divides the slow rotary frequencies, where the context was made longer afterwards."""
    rotary_low: float = static(1.0, above=0.0)
    """Frequencies with no more turns than this in `rotary_context` are divided."""
    rotary_high: float = static(4.0, above=0.0)
    """Frequencies with no fewer turns than this stay as they are."""
    rotary_context: int = static(8192, low=1)
    """Length of the sequences before the context was made longer."""
    norm: Literal["layer", "rms"] = static("layer")
    """Layer norm (scale and bias), or RMS norm (scale)."""
    norm_epsilon: float = static(1e-5, above=0.0)
    """Added to the variance."""
    activation: Literal["gelu", "swiglu"] = static("gelu")
    """GELU by its tanh approximation, or silu(gate) · up."""
    tied: bool = static(True)
    """Whether the logits are products with the token embedding."""
    bias: bool = static(True)
    """Whether the linear layers have one."""
    embedding_std: float = static(0.02, above=0.0)
    """Of new embeddings. GPT-2's value; with ten times as much the models of the larger
    world learned much sooner which words belong together, and reward models of the small
    world the noise of their labels."""
    dtype: Literal["float32", "bfloat16"] = static("float32")
    """In what is computed. Parameters, softmax and logits are float32 in both."""
    remat: bool = static(False)
    """Whether gradients compute the blocks anew instead of storing their insides."""

    def __post_init__(self) -> None:
        configs.check(self)
        require(
            self.head_width is not None or self.width % self.num_heads == 0,
            f"width = {self.width}: must be a multiple of num_heads = {self.num_heads}.",
        )
        require(
            self.num_heads % self.kv_heads == 0,
            f"num_kv_heads = {self.kv_heads}: must divide num_heads = {self.num_heads}.",
        )
        require(
            self.positions == "learned" or self.head_size % 2 == 0,
            f"head_width = {self.head_size}: must be even for rotary positions.",
        )
        require(
            self.rotary_low < self.rotary_high,
            f"rotary_low = {self.rotary_low}: must be less than rotary_high = "
            f"{self.rotary_high}.",
        )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, K."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """Features of a head, E."""
        return self.head_width or self.width // self.num_heads


class Cache(NamedTuple):
    """Keys and values of the tokens so far, in arrays of their final size."""

    keys: Array
    """`[L, B, S, K, E]`, rotated already where positions are rotary."""
    values: Array
    """`[L, B, S, K, E]`."""
    mask: Array
    """Bool `[B, S]`: which columns hold a real token."""
    length: Array
    """Int32 `[]`: columns written so far."""


class Output(NamedTuple):
    """Output of a model for tokens `[B, T]`."""

    logits: Array
    """Float32 `[B, T, V]`: of the token after each."""
    hidden: Array
    """`[B, T, D]`: what the logits are made of, after the last norm."""
    cache: Cache | None
    """The cache with these tokens in it, if there was one."""


def init_cache(config: ModelConfig, batch: int, length: int) -> Cache:
    """An empty cache for `batch` sequences of at most `length` columns.

    Keys and values are `[L, batch, length, K, E]` each.

    Raises:
      InvalidInput: the model cannot read that many.
    """
    _check_length(config, length)
    shape = (config.num_layers, batch, length, config.kv_heads, config.head_size)
    zeros = jnp.zeros(shape, config.dtype)
    return Cache(zeros, zeros, jnp.zeros((batch, length), bool), jnp.int32(0))


def rotary_frequencies(config: ModelConfig) -> Array:
    """ω_i = base^(-2i/E) for each of the E/2 pairs, some divided by a factor: `[E/2]`.

    With n = context · ω / 2π turns in the context of pretraining, frequencies with
    n ≥ high stay, those with n ≤ low are divided by `rotary_factor`, and between the two
    the share (n - low) / (high - low) stays.

    Source: Su et al. (2021), section 3.2.2; the factor: Llama 3.1's `rope_type` "llama3".
    """
    half = config.head_size // 2
    plain = config.rotary_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rotary_factor == 1.0:
        return plain
    turns = config.rotary_context * plain / (2 * jnp.pi)
    between = (turns - config.rotary_low) / (config.rotary_high - config.rotary_low)
    stays = jnp.clip(between, 0.0, 1.0)
    return plain * (stays + (1 - stays) / config.rotary_factor)


def rotate(x: Array, positions: Array, frequencies: Array) -> Array:
    """Rotary positions: feature pairs (i, i + E/2) turned by an angle p ω_i.

    The product of a query at p and a key at q then depends on p - q alone.

    Args:
      x: queries or keys `[B, T, heads, E]`, E even.
      positions: int `[B, T]`.
      frequencies: ω, `[E/2]`.

    Source: Su et al. (2021), https://arxiv.org/abs/2104.09864, section 3.2.2, with the
    pairs as in Llama's checkpoints of Hugging Face.
    """
    half = x.shape[-1] // 2
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(queries: Array, keys: Array, values: Array, visible: Array) -> Array:
    """Grouped-query attention: softmax(q kᵀ / √E) v, over the visible columns.

    Args:
      queries: `[B, T, H, E]`; head h asks head ⌊h K/H⌋ of keys and values.
      keys: `[B, S, K, E]`.
      values: `[B, S, K, E]`.
      visible: bool `[B, T, S]`. A row without any gets the plain mean, which is finite.

    Returns:
      `[B, T, H, E]`.

    Source: Vaswani et al. (2017), https://arxiv.org/abs/1706.03762, section 3.2.1; Ainslie
    et al. (2023), https://arxiv.org/abs/2305.13245.
    """
    batch, length, heads, size = queries.shape
    grouped = queries.reshape(batch, length, keys.shape[2], -1, size)
    scores = jnp.einsum(
        "btkge,bske->bkgts", grouped, keys, preferred_element_type=jnp.float32
    )
    hidden = jnp.finfo(jnp.float32).min
    scores = jnp.where(visible[:, None, None], scores / size**0.5, hidden)
    weights = jax.nn.softmax(scores).astype(values.dtype)
    out = jnp.einsum("bkgts,bske->btkge", weights, values)
    return out.reshape(batch, length, heads, size)


def _dense(
    config: ModelConfig, x: Array, size: int, name: str, scale: float = 1.0
) -> Array:
    """A linear layer with GPT-2's initial weights: normal, deviation 0.02 · scale.

    Applied to rows `[B T, D]`: the gradient of a matrix is then one product of matrices,
    where one over two axes is several times slower on a CPU.
    """
    init = nn.initializers.normal(0.02 * scale)
    dtype = jnp.dtype(config.dtype)
    layer = nn.Dense(
        size, use_bias=config.bias, dtype=dtype, kernel_init=init, name=name
    )
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], size)


def _embed(config: ModelConfig, rows: int, name: str) -> nn.Embed:
    """A table of rows `[D]`."""
    init = nn.initializers.normal(config.embedding_std)
    dtype = jnp.dtype(config.dtype)
    return nn.Embed(rows, config.width, dtype=dtype, embedding_init=init, name=name)


def _norm(config: ModelConfig, name: str) -> nn.Module:
    """Statistics in float32, result in the dtype of the computation."""
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.norm_epsilon, dtype=jnp.dtype(config.dtype), name=name)


def _residual_scale(config: ModelConfig) -> float:
    """Init scale of residual output layers, of which there are 2 L (GPT-2, section 2.3)."""
    return (2 * config.num_layers) ** -0.5


class Attention(nn.Module):
    """Self-attention of block number `layer`."""

    config: ModelConfig
    layer: int

    @nn.compact
    def __call__(
        self, x: Array, positions: Array, visible: Array, cache: Cache | None
    ) -> tuple[Array, Cache | None]:
        config, size = self.config, self.config.head_size
        heads = {"query": config.num_heads, "key": config.kv_heads}
        q, k, v = (
            _dense(config, x, n * size, name).reshape(*x.shape[:2], n, size)
            for name, n in (heads | {"value": config.kv_heads}).items()
        )
        if config.positions == "rotary":
            frequencies = rotary_frequencies(config)
            q, k = (rotate(x, positions, frequencies) for x in (q, k))
        if cache is not None:
            at = (self.layer, 0, cache.length, 0, 0)
            keys = jax.lax.dynamic_update_slice(cache.keys, k[None], at)
            values = jax.lax.dynamic_update_slice(cache.values, v[None], at)
            cache = cache._replace(keys=keys, values=values)
            k, v = keys[self.layer], values[self.layer]
        out = attend(q, k, v, visible).reshape(*x.shape[:2], -1)
        scale = _residual_scale(config)
        return _dense(config, out, config.width, "output", scale), cache


class MLP(nn.Module):
    """The MLP of a block: `[B, T, D] -> [B, T, D]`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        up = _dense(config, x, config.mlp_width, "up")
        if config.activation == "swiglu":
            hidden = nn.silu(_dense(config, x, config.mlp_width, "gate")) * up
        else:
            hidden = nn.gelu(up, approximate=True)
        scale = _residual_scale(config)
        return _dense(config, hidden, config.width, "down", scale)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    config: ModelConfig
    layer: int

    @nn.compact
    def __call__(
        self, x: Array, positions: Array, visible: Array, cache: Cache | None
    ) -> tuple[Array, Cache | None]:
        attention = Attention(self.config, self.layer, name="attention")
        attended, cache = attention(
            _norm(self.config, "norm_1")(x), positions, visible, cache
        )
        x = x + attended
        mlp = MLP(self.config, name="mlp")
        return x + mlp(_norm(self.config, "norm_2")(x)), cache


class GPT(nn.Module):
    """A causal language model, `model.apply(params, tokens, mask, cache) -> Output`.

    `tokens` are int32 `[B, T]`. `mask` is bool `[B, T]`, True for a real token; none means
    that all are. Padding is not attended to and has no position: the first real token is
    at position 0. `cache` is what `init_cache` or an earlier call gave, where there are
    earlier tokens. More columns than `config.max_length` are refused (`InvalidInput`).
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, tokens: Array, mask: Array | None = None, cache: Cache | None = None
    ) -> Output:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        _check_length(config, tokens.shape[1])
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask
        positions, visible, cache = _look(mask, cache)
        embed = _embed(config, config.vocab_size, "token_embedding")
        x = embed(tokens)
        if config.positions == "learned":
            x += _embed(config, config.max_length, "position_embedding")(positions)
        kind: Any = nn.remat(Block) if config.remat else Block
        for layer in range(config.num_layers):
            block = kind(config, layer, name=f"block_{layer}")
            x, cache = block(x, positions, visible, cache)
        if cache is not None:
            cache = cache._replace(length=cache.length + tokens.shape[1])
        hidden = _norm(config, "norm")(x)
        if config.tied:
            head = embed.embedding.T
        else:
            shape = (config.width, config.vocab_size)
            head = self.param("head", nn.initializers.normal(0.02), shape)
        logits = jnp.matmul(
            hidden.reshape(-1, config.width),
            head.astype(dtype),
            preferred_element_type=jnp.float32,
        )
        return Output(logits.reshape(*tokens.shape, -1), hidden, cache)


def _look(mask: Array, cache: Cache | None) -> tuple[Array, Array, Cache | None]:
    """Positions `[B, T]` and visible columns `[B, T, S]` of new tokens, and the cache
    with their columns counted in its mask."""
    length = mask.shape[1]
    before, start = jnp.zeros((len(mask), 1), jnp.int32), jnp.int32(0)
    columns = mask
    if cache is not None:
        before, start = cache.mask.sum(1, dtype=jnp.int32, keepdims=True), cache.length
        columns = jax.lax.dynamic_update_slice(cache.mask, mask, (0, start))
    positions = jnp.maximum(before + jnp.cumsum(mask, 1, dtype=jnp.int32) - 1, 0)
    row = start + jnp.arange(length)
    earlier = jnp.arange(columns.shape[1]) <= row[:, None]
    if cache is not None:
        cache = cache._replace(mask=columns)
    return positions, earlier & columns[:, None], cache


def _check_length(config: ModelConfig, length: int) -> None:
    require(
        length <= config.max_length,
        f"sequences of {length} columns: this model reads at most max_length = "
        f"{config.max_length}; shorten the prompt or the response.",
    )
