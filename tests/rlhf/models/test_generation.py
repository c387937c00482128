"""Sampling: known distributions, supports by hand, masks, and the log-probs of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.errors import InvalidInput
from jaxrl.rlhf.models import generation
from jaxrl.rlhf.models.generation import candidates, generate
from jaxrl.rlhf.models.transformer import GPT
from tests.support.language import GPT2, LLAMA, apply, make_params, random_tokens

KEY = jax.random.key(3)
EOS = 4
ROWS = 4000
PROMPT = random_tokens(4, 5)
MASK = jnp.arange(5) >= jnp.array([[0], [1], [3], [4]])


def sample(config=LLAMA, prompt=PROMPT, mask=MASK, key=KEY, new=8, **options):
    options = {"temperature": 0.7, "eos": EOS, "pad": 9} | options
    return generate(GPT(config), make_params(config), prompt, mask, key, new, **options)


@pytest.fixture(scope="module")
def drawn():
    """64 rows, so that some end early."""
    prompt, mask = jnp.tile(PROMPT, (16, 1)), jnp.tile(MASK, (16, 1))
    return sample(prompt=prompt, mask=mask)


def test_after_eos_there_is_only_padding(drawn):
    responses, mask = np.asarray(drawn.tokens[:, 5:]), np.asarray(drawn.mask[:, 5:])
    lengths = []
    for response, real in zip(responses, mask, strict=True):
        ends = np.flatnonzero(response == EOS)
        length = ends[0] + 1 if len(ends) else len(response)
        np.testing.assert_array_equal(real, np.arange(len(response)) < length)
        assert (response[length:] == 9).all()
        lengths.append(length)
    assert min(lengths) < 4 and max(lengths) == 8
    assert (np.asarray(drawn.log_probs)[~mask] == 0).all()
    assert (np.asarray(drawn.log_probs)[mask] < 0).all()
    np.testing.assert_array_equal(drawn.tokens[:4, :5], PROMPT)
    np.testing.assert_array_equal(drawn.mask[:4, :5], MASK)


def test_log_probs_are_those_of_a_full_pass(drawn):
    logits = apply(LLAMA, make_params(LLAMA), drawn.tokens, drawn.mask).logits
    expected = jax.nn.log_softmax(logits[:, 4:-1] / 0.7)
    expected = jnp.take_along_axis(expected, drawn.tokens[:, 5:, None], 2)[..., 0]
    real = drawn.mask[:, 5:]
    np.testing.assert_allclose(drawn.log_probs[real], expected[real], atol=1e-5)


@pytest.mark.full
def test_a_batch_is_each_row_alone(drawn):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
    for row in range(4):
        one = slice(row, row + 1)
        alone = sample(prompt=PROMPT[one], mask=MASK[one], key=keys[one])
        np.testing.assert_array_equal(alone.tokens[0], drawn.tokens[row])
        np.testing.assert_array_equal(alone.mask[0], drawn.mask[row])
        np.testing.assert_allclose(alone.log_probs[0], drawn.log_probs[row], atol=1e-5)


def test_a_prompt_may_be_one_token_and_end_with_eos():
    """Longer greedy responses: `test_rlhf_huggingface.py`, against golden values."""
    prompt = jnp.full((1, 1), EOS)
    done = sample(GPT2, prompt, None, new=1, greedy=True)
    logits = apply(GPT2, make_params(GPT2), prompt).logits[:, -1]
    assert done.tokens[0, 1] == logits.argmax() and done.mask.all()


@pytest.mark.full
@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 8, "top_p": 0.8}],
    ids=str,
)
def test_frequencies_are_those_of_the_distribution(options):
    prompt = jnp.tile(PROMPT[:1, -1:], (ROWS, 1))
    drawn = sample(GPT2, prompt, None, new=1, temperature=2.0, **options)
    logits = apply(GPT2, make_params(GPT2), prompt[:1]).logits[0, -1] / 2.0
    kept, tokens = candidates(logits, options.get("top_k"), options.get("top_p"))
    expected = np.zeros(GPT2.vocab_size)
    expected[tokens] = jax.nn.softmax(kept)
    seen = np.bincount(drawn.tokens[:, 1], minlength=GPT2.vocab_size) / ROWS
    error = (expected * (1 - expected) / ROWS) ** 0.5
    assert (np.abs(seen - expected) <= 4.5 * error).all()
    assert (seen[expected == 0] == 0).all() and (expected > 0).sum() > 1
    full = jax.nn.log_softmax(logits)  # before the cuts
    np.testing.assert_allclose(
        drawn.log_probs[:, 0], full[drawn.tokens[:, 1]], atol=1e-5
    )


def support(probabilities, top_k=None, top_p=None):
    kept, tokens = candidates(jnp.log(jnp.array(probabilities)), top_k, top_p)
    return tokens[np.isfinite(kept)].tolist()


def test_supports_by_hand():
    p = [0.1, 0.4, 0.2, 0.3]
    assert support(p) == [1, 3, 2, 0]
    assert support(p, top_k=2) == [1, 3]
    assert support(p, top_p=0.39) == [1]
    assert support(p, top_p=0.41) == support(p, top_p=0.69) == [1, 3]
    assert support(p, top_p=0.71) == [1, 3, 2]
    assert support(p, top_p=1.0) == [1, 3, 2, 0]
    # Of the two likeliest, the first has 4/7 of the probability that is left.
    assert support(p, top_k=2, top_p=0.57) == [1]
    assert support(p, top_k=2, top_p=0.58) == [1, 3]
    assert support([0.25] * 4, top_k=3) == [0, 1, 2]


def test_temperature_and_top_p_are_data_and_equal_shapes_one_program():
    def call(seed, temperature, top_p):
        prompt = jnp.tile(random_tokens(1, 1, seed), (ROWS, 1))
        options = {"top_k": 8, "temperature": temperature, "top_p": top_p}
        sample(GPT2, prompt, None, jax.random.key(seed), 1, **options)
        return generation._generate._cache_size()

    assert call(0, 2.0, 0.8) == call(1, 0.5, 0.9) == call(2, 1.0, 1.0)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"temperature": 0.0}, "temperature = 0.0: must be greater than 0"),
        ({"top_p": 1.5}, "top_p = 1.5: must be greater than 0 and at most 1"),
        ({"top_k": 0}, "top_k = 0: must be between 1 and the vocabulary's 11"),
        ({"new": 0}, "max_new_tokens = 0"),
        ({"new": 12}, "17 columns: this model reads at most max_length = 16"),
        ({"mask": ~MASK}, "a prompt ends in padding; pad prompts on the left"),
        (
            {"prompt": PROMPT + 9},
            "prompt has token 1[1-9]: the model's vocabulary has 11",
        ),
        ({"eos": 300}, "eos has token 300: the model's vocabulary has 11"),
        ({"prompt": PROMPT[0]}, r"prompt has shape \(5,\)"),
    ],
)
def test_what_cannot_be_is_one_sentence(options, words):
    with pytest.raises(InvalidInput, match=words):
        sample(**options)
