"""Checkpoints of `transformers` against the numbers that it gave for them.

`tests/golden/make_language_models.py` made both.
"""

import errno
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import load_file, save_file

from jaxrl.errors import InvalidInput
from jaxrl.rlhf.models.generation import generate
from jaxrl.rlhf.models.huggingface import load_gpt2, load_llama
from jaxrl.rlhf.models.tokenizers import pad_rows
from jaxrl.rlhf.models.transformer import GPT
from tests.support.language import apply
from tests.support.paths import ROOT

GOLDEN = ROOT / "tests" / "golden" / "language"
LOADERS = {"gpt2": load_gpt2, "llama": load_llama, "llama3": load_llama}
every_kind = pytest.mark.parametrize("kind", LOADERS)


@pytest.fixture(scope="module")
def loaded():
    return {kind: load(GOLDEN / kind) for kind, load in LOADERS.items()}


@every_kind
def test_logits_are_the_golden_ones(loaded, kind):
    golden, (config, params, _) = np.load(GOLDEN / f"{kind}.npz"), loaded[kind]
    logits = apply(config, params, jnp.int32(golden["tokens"])).logits
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
    assert np.std(golden["logits"]) > 0.5


@every_kind
def test_greedy_generations_are_the_golden_ones(loaded, kind):
    """64 tokens for 20 prompts of 1 to 8 tokens."""
    golden, (config, params, _) = np.load(GOLDEN / f"{kind}.npz"), loaded[kind]
    prompts, mask, expected = (golden[x] for x in ("prompts", "mask", "generated"))
    key = jax.random.key(0)
    done = generate(GPT(config), params, prompts, mask, key, 64, greedy=True)
    np.testing.assert_array_equal(done.tokens, expected)
    assert expected.shape == (20, 8 + 64) and len(np.unique(expected[:, 8:])) > 10


@every_kind
def test_the_tokenizer_comes_with_it(loaded, kind):
    config, _, tokenizer = loaded[kind]
    assert (tokenizer.eos, tokenizer.pad) == (1, 0)
    assert tokenizer.vocab_size <= config.vocab_size
    tokens, _ = pad_rows(map(tokenizer.encode, ("the cat", "a dog")), tokenizer.pad)
    assert [tokenizer.decode(row) for row in tokens] == ["the cat", "a dog"]


@pytest.fixture
def copied(tmp_path):
    def copy(kind):
        shutil.copytree(GOLDEN / kind, tmp_path / kind)
        return tmp_path / kind

    return copy


def change(path, **fields):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | fields))


def test_bfloat16_weights_names_without_prefix_and_buffers(copied, loaded):
    """As the files of the original GPT-2, and as most newer models are stored."""
    folder = copied("gpt2")
    path = folder / "model.safetensors"
    tensors = {n.removeprefix("transformer."): x for n, x in load_file(path).items()}
    tensors = {n: x.astype(jnp.bfloat16) for n, x in tensors.items()}
    save_file(tensors | {"h.0.attn.bias": jnp.ones((1, 1, 4, 4))}, path)
    (folder / "tokenizer.json").unlink()
    config, params, tokenizer = load_gpt2(folder)
    assert tokenizer is None and config == loaded["gpt2"].config

    def is_rounded(x, y):
        assert x.dtype == jnp.float32
        np.testing.assert_array_equal(x, y.astype(jnp.bfloat16).astype(jnp.float32))

    jax.tree.map(is_rounded, params, loaded["gpt2"].params)


def test_older_configs_have_the_base_of_rotary_positions_elsewhere(copied, loaded):
    path = copied("llama") / "config.json"
    change(path, rope_parameters=None, rope_theta=500.0, head_dim=None, hidden_size=24)
    with pytest.raises(InvalidInput, match=r"k_proj.weight' has shape \(16, 24\)"):
        load_llama(path.parent)
    change(path, head_dim=8)
    assert load_llama(path.parent).config == loaded["llama"].config


@pytest.mark.parametrize(
    "kind, fields, words",
    [
        (
            "llama",
            {"model_type": "mistral"},
            "model_type = 'mistral', where load_llama",
        ),
        ("gpt2", {"activation_function": "relu"}, "relu': only 'gelu_new' or 'gelu_py"),
        ("llama", {"attention_bias": True}, "attention_bias = True: only False"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn'"),
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "no field 'factor'"),
        ("llama", {"rope_parameters": "x"}, "config.json has a field of another type"),
        ("gpt2", {"n_embd": "24"}, "width = '24'"),
        ("llama", {"num_hidden_layers": 3}, "3 layers.* 2:"),
        ("gpt2", {"n_layer": 1}, "1 layers.* 2:"),
        ("gpt2", {"n_layer": 10**6}, "1,000,000 layers.* 2:"),
        ("gpt2", {"n_embd": 2**28, "n_head": 1}, r"shape \(\d+,\).*\(268435456,\)"),
        ("llama", {"vocab_size": 2**31 - 1}, r"\(41, 24\).*\(24, 2147483647\)"),
        ("gpt2", {"eos_token_id": []}, r"eos_token_id = \[\]"),
        ("gpt2", {"eos_token_id": {}}, "eos_token_id = {}"),
        ("gpt2", {"eos_token_id": True}, "eos_token_id = True"),
        ("gpt2", {"eos_token_id": [0.5]}, r"eos_token_id = \[0.5\]"),
        ("gpt2", {"pad_token_id": "<pad>"}, "pad_token_id = '<pad>'"),
        ("gpt2", {"n_positions": 64}, r"'wpe.weight' has shape \(80, 24\).*\(64, 24\)"),
        ("gpt2", {"n_head": 5}, "width = 24: must be a multiple of num_heads = 5"),
        ("gpt2", {"eos_token_id": 50}, "eos = 50: there is no such token"),
    ],
)
def test_configs_that_do_not_fit(copied, kind, fields, words):
    folder = copied(kind)
    change(folder / "config.json", **fields)
    with pytest.raises(InvalidInput, match=words):
        LOADERS[kind](folder)


def test_files_that_do_not_fit(copied, tmp_path):
    with pytest.raises(InvalidInput, match=r"none/config.json cannot be read"):
        load_gpt2(tmp_path / "none")
    folder = copied("gpt2")
    vocabulary = {f"<{i}>": i for i in range(3, 60)}
    text = json.loads((folder / "tokenizer.json").read_text())
    text["model"]["vocab"] |= vocabulary
    (folder / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(
        InvalidInput, match="has 60 tokens, the model's vocab_size is 41"
    ):
        load_gpt2(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidInput, match=r"model.safetensors cannot be read"):
        load_gpt2(folder)
    folder = copied("llama")
    (folder / "model-00002-of-00005.safetensors").unlink()
    with pytest.raises(
        InvalidInput, match=r"00002-of-00005.safetensors cannot be read"
    ):
        load_llama(folder)
    change(folder / "model.safetensors.index.json", weight_map={"a": "../secret"})
    with pytest.raises(InvalidInput, match=r"names \['../secret'\]"):
        load_llama(folder)
    for wrong in ({"a": 5}, None, True, ["a"]):
        change(folder / "model.safetensors.index.json", weight_map=wrong)
        with pytest.raises(InvalidInput, match="weight_map = "):
            load_llama(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "tokenizer.json"]
)
def test_what_is_no_file_or_nested_without_end_is_refused(copied, name):
    """A pipe in the place of a file would be waited for without an end."""
    path = copied("llama") / name
    path.unlink()
    for make in (os.mkfifo, lambda p: p.write_text("[" * 100_000 + "]" * 100_000)):
        make(path)
        with pytest.raises(InvalidInput, match=name):
            load_llama(path.parent)
        path.unlink()


@every_kind
def test_logits_are_those_that_transformers_gives_now(loaded, kind):
    """With the extra `parity`."""
    transformers = pytest.importorskip("transformers")
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / kind).eval()
    config, params, _ = loaded[kind]
    tokens = np.random.default_rng(5).integers(0, config.vocab_size, (3, 20))
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    logits = apply(config, params, jnp.int32(tokens)).logits
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_disk_that_fails_is_no_bad_file(copied, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("safetensors.safe_open", fail)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_gpt2(copied("gpt2"))
