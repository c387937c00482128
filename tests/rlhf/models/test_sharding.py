"""Several devices compute what one does."""

import json

import jax
import pytest
from jax.sharding import PartitionSpec

from jaxrl.errors import InvalidInput
from jaxrl.rlhf.models.sharding import make_mesh, parameter_shardings
from tests.support.language import GPT2, LLAMA, make_params
from tests.support.runs import run_python

PROGRAM = """
import dataclasses, json, jax, jax.numpy as jnp, numpy as np
from jaxrl.rlhf.models.transformer import GPT
from jaxrl.rlhf.models.sharding import data_sharding, make_mesh, parameter_shardings
from tests.support.language import LLAMA, make_params, random_tokens

config = dataclasses.replace(LLAMA, num_layers=1)
tokens, params = random_tokens(8, 7), make_params(config)
mask = jnp.arange(7) >= jnp.arange(8)[:, None] % 3

@jax.jit
def gradient(params, tokens, mask):
    def loss(params):
        logits = GPT(config).apply(params, tokens, mask).logits[:, :-1]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], 2)
        return -(chosen[..., 0] * mask[:, 1:]).sum() / mask[:, 1:].sum()
    return jax.value_and_grad(loss)(params)

def far(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)

expected, mesh = gradient(params, tokens, mask), make_mesh(2, 4)
spread = jax.device_put(params, parameter_shardings(mesh, params))
batch = jax.device_put((tokens, mask), data_sharding(mesh))
found = gradient(spread, *batch)
matrix = spread["params"]["block_0"]["mlp"]["up"]["kernel"]
shards = [x.addressable_shards[0].data.shape for x in (matrix, *batch)]
print(json.dumps([far(found[0], expected[0]), far(found[1], expected[1]), shards]))
"""


@pytest.mark.full
def test_eight_devices_have_the_loss_and_gradient_of_one():
    """Two shares of the data, four of each matrix."""
    (line,) = run_python(PROGRAM, devices=8)
    loss, slope, shards = json.loads(line)
    assert loss <= 1e-5 and slope <= 1e-5
    assert shards == [[16, 3], [4, 7], [4, 7]]


def test_which_axis_is_spread():
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "tensor"))
    specs = {
        jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec
        for path, sharding in jax.tree_util.tree_flatten_with_path(
            parameter_shardings(mesh, make_params(GPT2))["params"]
        )[0]
    }
    whole, rows = PartitionSpec(None, None), PartitionSpec("tensor", None)
    assert specs["block_0/attention/query/kernel"] == PartitionSpec(None, "tensor")
    assert specs["block_0/attention/query/bias"] == PartitionSpec("tensor")
    assert specs["block_1/attention/output/kernel"] == rows
    assert specs["block_1/mlp/down/kernel"] == rows
    assert specs["block_1/mlp/down/bias"] == PartitionSpec(None)
    assert specs["block_0/norm_1/scale"] == PartitionSpec(None)
    assert specs["position_embedding/embedding"] == whole
    assert specs["token_embedding/embedding"] == whole, "11 rows are not 4 equal parts"
    wide = {"params": {"head": jax.ShapeDtypeStruct((16, 12), "float32")}}
    head = parameter_shardings(mesh, wide)["params"]["head"]
    assert head.spec == PartitionSpec(None, "tensor")
    assert "head" in make_params(LLAMA)["params"]


def test_there_must_be_so_many_devices():
    with pytest.raises(InvalidInput, match=r"data = 1000, tensor = 2: .* at most the"):
        make_mesh(1000, 2)
