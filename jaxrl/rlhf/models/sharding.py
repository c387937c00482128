"""A language model on several devices: named shardings, and the compiler does the rest.

Sequences are spread over the mesh axis "data" and matrices over "tensor". The program is
that of one device: with its arguments placed like this, `jax.jit` puts the sums between
devices where they belong.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl.errors import require
from jaxrl.types import PyTree

DATA, TENSOR = "data", "tensor"

COLUMNS = ("query", "key", "value", "up", "gate")
"""Layers whose outputs are spread: each device has some heads, or some hidden features."""

ROWS = ("output", "down")
"""Layers whose inputs are: the sum over devices behind them is the only one of a branch."""


def make_mesh(data: int, tensor: int) -> Mesh:
    """A mesh of data · tensor devices, with those two axes.

    Raises:
      InvalidInput: there are fewer devices.
    """
    devices = jax.devices()
    require(
        data >= 1 and tensor >= 1 and data * tensor <= len(devices),
        f"data = {data}, tensor = {tensor}: must be at least 1, and their product at most "
        f"the number of devices, {len(devices)}.",
    )
    grid = np.asarray(devices[: data * tensor]).reshape(data, tensor)
    return Mesh(grid, (DATA, TENSOR))


def parameter_shardings(mesh: Mesh, params: PyTree) -> PyTree:
    """Shardings of the parameters of a `GPT`, for `jax.device_put`.

    Outputs of query, key, value, up and gate are spread over "tensor", so are inputs of the
    layers behind them, and the vocabulary. An axis that cannot be divided evenly, and all
    else (norms, positions), is whole on every device.

    Args:
      mesh: with the axes "data" and "tensor".
      params: arrays or their shapes; also gradients, or an optimiser's moments.

    Returns:
      A `NamedSharding` for each leaf.

    Source: Shoeybi et al. (2019), "Megatron-LM", https://arxiv.org/abs/1909.08053,
    section 3.
    """

    def place(path: tuple, leaf: jax.Array) -> NamedSharding:
        names = [str(getattr(part, "key", part)) for part in path]
        axis = _spread_axis(names[-1], names[-2] if len(names) > 1 else "", leaf.ndim)
        spec: list[str | None] = [None] * leaf.ndim
        if axis is not None and leaf.shape[axis] % mesh.shape[TENSOR] == 0:
            spec[axis] = TENSOR
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(place, params)


def data_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of tokens and masks `[B, T]`: B is spread over "data"."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def _spread_axis(name: str, layer: str, ndim: int) -> int | None:
    """The axis of a parameter that is spread over the tensor axis."""
    if name == "head":
        return 1
    if layer == "token_embedding":
        return 0
    if layer in COLUMNS:
        return ndim - 1
    return 0 if layer in ROWS and name == "kernel" else None
