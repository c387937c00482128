"""Adapters: nothing at the start, everything that is trained, and back again."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.core import storage
from jaxrl.errors import InvalidInput
from jaxrl.rlhf.models import lora
from jaxrl.rlhf.models.lora import LoRA
from jaxrl.rlhf.models.transformer import GPT
from tests.support.language import GPT2, LLAMA, apply, params_of, random_tokens

KEY = jax.random.key(0)
SMALL = LoRA(rank=2, alpha=3.0)
TOKENS = random_tokens(2, 6)


def trained(config=SMALL, params=None):
    """Adapters after some training: B is not 0 any more."""
    adapters = lora.init(config, params_of(LLAMA) if params is None else params, KEY)
    rng = np.random.default_rng(0)
    draw = functools.partial(jax.tree.map, lambda x: rng.normal(size=x.shape) * 0.3)
    return jax.tree.map(jnp.float32, draw(adapters))


def test_new_adapters_are_the_base_bit_for_bit():
    params = params_of(LLAMA)
    adapters = lora.init(SMALL, params, KEY)
    merged = jax.jit(functools.partial(lora.merge, SMALL))(params, adapters)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    one, other = (apply(LLAMA, x, TOKENS).logits for x in (merged, params))
    np.testing.assert_array_equal(one, other)
    assert all(np.abs(x["a"]).min() > 0 for x in adapters.values())


def test_merged_by_hand():
    params = {"params": {"up": {"kernel": jnp.zeros((2, 3)), "bias": jnp.ones(3)}}}
    a, b = jnp.array([[1.0], [2.0]]), jnp.array([[1.0, 0.0, -1.0]])
    adapters = {"params/up/kernel": {"a": a, "b": b}}
    merged = lora.merge(LoRA(1, 0.5, ("up",)), params, adapters)["params"]["up"]
    np.testing.assert_array_equal(merged["kernel"], [[0.5, 0, -0.5], [1, 0, -1]])
    np.testing.assert_array_equal(merged["bias"], jnp.ones(3))


def test_unmerging_gives_the_base_back():
    params, adapters = params_of(LLAMA), trained()
    merged = lora.merge(SMALL, params, adapters)
    back = lora.unmerge(SMALL, merged, adapters)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    logits, base = (apply(LLAMA, x, TOKENS).logits for x in (merged, params))
    assert np.abs(logits - base).max() > 0.01


def test_only_adapters_have_gradients_and_training_changes_only_them():
    config = dataclasses.replace(LLAMA, num_layers=1)
    params, adapters = params_of(config), lora.init(SMALL, params_of(config), KEY)

    @jax.jit
    def gradient(adapters):
        def loss(adapters):
            merged = lora.merge(SMALL, params, adapters)
            logits = GPT(config).apply(merged, TOKENS).logits
            return -jax.nn.log_softmax(logits)[..., 3].mean()

        return jax.value_and_grad(loss)(adapters)

    first, slope = gradient(adapters)
    assert jax.tree.structure(slope) == jax.tree.structure(adapters)
    # d/dA = (...) Bᵀ is 0 as long as B is.
    assert all((x["a"] == 0).all() and (x["b"] != 0).any() for x in slope.values())
    for _ in range(5):
        _, slope = gradient(adapters)
        adapters = jax.tree.map(lambda x, g: x - 0.3 * g, adapters, slope)
    assert gradient(adapters)[0] < first - 0.01
    assert all((x["a"] != 0).any() for x in gradient(adapters)[1].values())


@pytest.mark.parametrize(
    "targets, layers",
    [
        (("query", "value"), 2 * 2),
        (("down",), 2),
        (r"attention", 2 * 4),
        (r"block_1/mlp/(up|gate)/", 2),
        (r"kernel$", 2 * 7),
    ],
)
def test_targets_are_names_or_an_expression(targets, layers):
    adapters = lora.init(LoRA(2, 4.0, targets), params_of(LLAMA), KEY)
    assert len(adapters) == layers
    flat = {"/".join(k.key for k in path): x.shape for path, x in paths(LLAMA)}
    for path, x in adapters.items():
        assert (x["a"].shape[0], x["b"].shape[1]) == flat[path]
        assert x["a"].shape[1] == x["b"].shape[0] == 2


def paths(config):
    return jax.tree_util.tree_flatten_with_path(params_of(config))[0]


def test_only_adapters_are_stored(tmp_path):
    adapters = trained()
    storage.write(tmp_path / "adapters", adapters, {})
    _, arrays = storage.read(tmp_path / "adapters")
    assert set(arrays) == {f"{p}/{x}" for p in adapters for x in "ab"}
    template = jax.eval_shape(lambda: lora.init(SMALL, params_of(LLAMA), KEY))
    back = storage.fill(template, arrays, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, back, adapters)


def test_what_cannot_be_is_one_sentence():
    for values, words in (
        ({"rank": 0}, "rank = 0: must be at least 1"),
        ({"alpha": 0.0}, "alpha = 0.0: must be greater than 0"),
        ({"targets": "(query"}, r"targets = '\(query': .* regular expression"),
    ):
        with pytest.raises(InvalidInput, match=words):
            LoRA(**values)
    params = params_of(GPT2)
    with pytest.raises(InvalidInput, match=r"targets = \['gate'\].* query, .*up"):
        lora.init(LoRA(targets=("gate",)), params, KEY)
    with pytest.raises(InvalidInput, match="targets = 'nothing': no kernel"):
        lora.init(LoRA(targets="nothing"), params, KEY)
    with pytest.raises(InvalidInput, match=r"gate.*the model has no such parameters"):
        lora.merge(SMALL, params, trained(LoRA(2, targets=("gate",))))
