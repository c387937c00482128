"""The language model against hand numbers, a float64 loop, and itself by another way."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.errors import InvalidInput
from jaxrl.rlhf.models.transformer import (
    GPT,
    Attention,
    ModelConfig,
    attend,
    init_cache,
    rotary_frequencies,
    rotate,
)
from tests.support.language import (
    CONFIGS,
    GPT2,
    LLAMA,
    apply,
    make_params,
    random_tokens,
)

both = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@both
def test_a_later_token_does_not_change_earlier_logits(config):
    tokens = random_tokens(2, 6)
    changed = tokens.at[:, 4].set((tokens[:, 4] + 1) % config.vocab_size)
    one, other = (
        apply(config, make_params(config), x).logits for x in (tokens, changed)
    )
    np.testing.assert_array_equal(one[:, :4], other[:, :4])
    assert np.abs(one[:, 4:] - other[:, 4:]).max() > 0.01


@both
def test_padding_changes_nothing_wherever_it_stands(config):
    tokens, params = random_tokens(2, 6), make_params(config)
    expected = apply(config, params, tokens[:, :4]).logits
    padding = jnp.zeros((2, 2), jnp.int32)
    left = jnp.concatenate([padding, tokens[:, :4]], axis=1)
    mask = jnp.arange(6) >= 2
    logits = apply(config, params, left, jnp.tile(mask, (2, 1))).logits
    np.testing.assert_allclose(logits[:, 2:], expected, atol=1e-5)
    # What is written in the padding does not matter either, to the left or the right.
    mask = jnp.array([[False, True, True, True, True, False]] * 2)
    inside = tokens.at[:, 1:5].set(tokens[:, :4])
    logits = apply(config, params, inside, mask).logits
    np.testing.assert_allclose(logits[:, 1:5], expected, atol=1e-5)
    assert np.isfinite(logits).all()


@pytest.mark.fast_cases("llama")
@both
def test_the_cache_step_by_step_is_the_full_pass(config):
    tokens, params = random_tokens(3, 6), make_params(config)
    mask = jnp.arange(6) >= jnp.array([[0], [2], [3]])
    expected = apply(config, params, tokens, mask).logits
    cache, logits, start = init_cache(config, 3, 8), [], 0
    for size in (3, 1, 1, 1):
        now = slice(start, start + size)
        output = apply(config, params, tokens[:, now], mask[:, now], cache)
        cache, start = output.cache, start + size
        logits.append(output.logits)
    np.testing.assert_allclose(
        np.concatenate(logits, axis=1)[mask], expected[mask], atol=1e-5
    )
    assert cache.length == 6 and cache.keys.shape[2] == 8
    np.testing.assert_array_equal(cache.mask[:, :6], mask)


def number_of(config: ModelConfig) -> int:
    """Parameters by formula."""
    width, mlp, size = config.width, config.mlp_width, config.head_size
    wide, narrow = config.num_heads * size, config.kv_heads * size
    up = 2 if config.activation == "swiglu" else 1
    matrices = 2 * width * wide + 2 * width * narrow + (up + 1) * width * mlp
    biases = wide + 2 * narrow + width + up * mlp + width if config.bias else 0
    norm = width * (2 if config.norm == "layer" else 1)
    total = config.num_layers * (matrices + biases + 2 * norm) + norm
    total += config.vocab_size * width * (1 if config.tied else 2)
    return total + (config.max_length * width if config.positions == "learned" else 0)


def counted(config: ModelConfig) -> int:
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = jax.eval_shape(GPT(config).init, jax.random.key(0), tokens)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


@both
def test_the_number_of_parameters_is_that_of_the_formula(config):
    assert counted(config) == number_of(config)


def test_the_published_models_have_their_published_sizes():
    """GPT-2: 124,439,808; Llama 2 7B: 6,738,415,616."""
    gpt2 = ModelConfig(50_257, 1024, 12, 12, 768, 3072)
    assert counted(gpt2) == number_of(gpt2) == 124_439_808
    sizes = {"num_layers": 32, "num_heads": 32, "width": 4096, "mlp_width": 11_008}
    llama = dataclasses.replace(
        LLAMA, vocab_size=32_000, max_length=4096, num_kv_heads=None, **sizes
    )
    assert counted(llama) == number_of(llama) == 6_738_415_616


def test_rotary_positions_by_hand():
    """E = 4 and base 100: pair (0, 2) turns by p, pair (1, 3) by p / 10."""
    x = jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    config = dataclasses.replace(LLAMA, rotary_base=100.0)
    frequencies = rotary_frequencies(config)
    turned = rotate(x, jnp.array([[3]]), frequencies).ravel()
    expected = [math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)]
    np.testing.assert_allclose(turned, expected, atol=1e-6)
    np.testing.assert_array_equal(rotate(x, jnp.array([[0]]), frequencies), x)


def test_slow_frequencies_of_a_longer_context_by_hand():
    """E = 8, base 16 and so ω = 1, 1/2, 1/4, 1/8; turns in 8π: 4, 2, 1, 1/2."""
    config = dataclasses.replace(LLAMA, head_width=8, rotary_base=16.0)
    plain = rotary_frequencies(config)
    np.testing.assert_allclose(plain, [1, 1 / 2, 1 / 4, 1 / 8], rtol=1e-6)
    longer = {"rotary_factor": 10.0, "rotary_low": 1.0, "rotary_high": 3.0}
    config = dataclasses.replace(config, **longer, rotary_context=25)
    # 25 is 8π - 0.13: the second has 1.99 turns and keeps a share of 0.495.
    share = (25 / (4 * math.pi) - 1) / 2
    second = 0.5 * (share + (1 - share) / 10)
    expected = [1, second, 0.025, 0.0125]
    np.testing.assert_allclose(rotary_frequencies(config), expected, rtol=1e-5)


def test_only_relative_positions_matter():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 3, 2, 8))

    frequencies = 10_000.0 ** (-jnp.arange(4) / 4)

    @jax.jit
    def scores(shift):
        positions = jnp.array([[0, 1, 5]]) + shift
        turned = [rotate(x, positions, frequencies) for x in (q, k)]
        return jnp.einsum("bthe,bshe->hts", *turned)

    np.testing.assert_allclose(scores(0), scores(7), atol=1e-5)
    assert np.abs(scores(0) - jnp.einsum("bthe,bshe->hts", q, k)).max() > 0.1


def loop_attention(q, k, v, visible):
    """One head at a time and one token at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    batch, length, heads, size = q.shape
    for b in range(batch):
        for t in range(length):
            for h in range(heads):
                own = h // (heads // k.shape[2])
                columns = np.flatnonzero(visible[b, t])
                scores = [q[b, t, h] @ k[b, s, own] / size**0.5 for s in columns]
                weights = np.exp(scores) / np.exp(scores).sum()
                values = [v[b, s, own] for s in columns]
                out[b, t, h] = sum(w * x for w, x in zip(weights, values, strict=True))
    return out


def test_attention_against_a_loop():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 3, 4, 2)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 5, 2, 2)).astype(np.float32)
    visible = rng.random((2, 3, 5)) < 0.5
    visible[..., 0] = True
    expected = loop_attention(q, k, v, visible)
    np.testing.assert_allclose(jax.jit(attend)(q, k, v, visible), expected, atol=1e-6)


def test_an_attention_layer_against_a_loop():
    x = jax.random.normal(jax.random.key(0), (1, 4, 16))
    params = make_params(LLAMA)["params"]["block_1"]["attention"]
    positions, visible = jnp.arange(4)[None], np.tril(np.ones((1, 4, 4), bool))
    layer = jax.jit(Attention(LLAMA, 1).apply)
    out, _ = layer({"params": params}, x, positions, jnp.asarray(visible), None)
    q, k, v = (
        (x @ params[name]["kernel"]).reshape(1, 4, -1, 4)
        for name in ("query", "key", "value")
    )
    frequencies = rotary_frequencies(LLAMA)
    q, k = (rotate(x, positions, frequencies) for x in (q, k))
    attended = loop_attention(q, k, v, visible).reshape(1, 4, 16)
    expected = attended @ np.asarray(params["output"]["kernel"], np.float64)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.full
def test_gradients_are_those_of_rematerialisation():
    config = dataclasses.replace(GPT2, num_layers=1)
    tokens, params = random_tokens(2, 5), make_params(config)

    def gradient(config):
        def loss(params):
            logits = GPT(config).apply(params, tokens).logits
            return jnp.square(jax.nn.log_softmax(logits)[..., 0]).mean()

        return jax.jit(jax.grad(loss))

    plain, again = gradient(config), gradient(dataclasses.replace(config, remat=True))
    assert "remat" in str(again.trace(params).jaxpr)
    for one, other in zip(
        jax.tree.leaves(plain(params)), jax.tree.leaves(again(params)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)
        assert np.abs(one).max() > 0 or one.ndim == 1


def test_bfloat16_is_near_and_gives_float32_logits():
    half = dataclasses.replace(LLAMA, dtype="bfloat16")
    tokens, params = random_tokens(2, 6), make_params(LLAMA)
    output, expected = apply(half, params, tokens), apply(LLAMA, params, tokens)
    assert output.logits.dtype == jnp.float32 and output.hidden.dtype == jnp.bfloat16
    assert init_cache(half, 1, 4).keys.dtype == jnp.bfloat16
    scale = np.abs(expected.logits).max()
    far = np.abs(output.logits - expected.logits).max() / scale
    assert 1e-4 < far < 0.05, far
    assert counted(half) == counted(LLAMA)


def test_a_row_that_sees_nothing_is_finite():
    ones = jnp.ones((1, 1, 1, 2))
    out = attend(ones, ones, ones, jnp.zeros((1, 1, 1), bool))
    np.testing.assert_array_equal(out, ones)


def test_what_does_not_fit_is_one_sentence():
    for changes, words in (
        ({"width": 9}, "width = 9: must be a multiple of num_heads = 2"),
        ({"num_kv_heads": 3}, "num_kv_heads = 3: must divide num_heads = 2"),
        ({"head_width": 3, "positions": "rotary"}, "head_width = 3: must be even"),
        ({"positions": "rotatory"}, "did you mean 'rotary'"),
        ({"rotary_low": 5.0}, "rotary_low = 5.0: must be less than rotary_high = 4.0"),
        ({"num_layers": 0}, "num_layers = 0: must be at least 1"),
    ):
        with pytest.raises(InvalidInput, match=words.replace("?", ".")):
            dataclasses.replace(GPT2, **changes)
    with pytest.raises(InvalidInput, match=r"17 columns.*max_length = 16"):
        init_cache(GPT2, 1, 17)
    with pytest.raises(InvalidInput, match="17 columns"):
        apply(GPT2, make_params(GPT2), random_tokens(1, 17))
