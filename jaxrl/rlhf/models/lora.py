"""LoRA: low-rank adapters, data beside parameters that stay as they are.

Adapters are a small pytree of their own: what is trained and stored. The model sees
parameters only, those of `merge`, so any model can be adapted.

Source: Hu et al. (2021), https://arxiv.org/abs/2106.09685, section 4.1.
"""

import dataclasses
import re
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from jaxrl.core import config as configs
from jaxrl.errors import require
from jaxrl.types import Array, PyTree, static

Adapters = dict[str, dict[str, Array]]
"""Path of a matrix -> {"a": `[inputs, rank]`, "b": `[rank, outputs]`}."""


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which matrices get adapters, and of what size. Hashable, so it may be static.

    Raises:
      InvalidInput: a value that cannot be.
    """

    rank: int = static(8, low=1)
    """r: columns of A and rows of B."""
    alpha: float = static(16.0, above=0.0)
    """W + (alpha / r) A B: with a constant alpha the step does not depend on r."""
    targets: str | tuple[str, ...] = static(("query", "value"))
    """Names of layers, such as "query", or a regular expression that is found in a path
    such as "params/block_0/attention/query/kernel"."""

    def __post_init__(self) -> None:
        configs.check_value("rank", int, self.rank, low=1)
        configs.check_value("alpha", float, self.alpha, above=0.0)
        if isinstance(self.targets, str):
            try:
                re.compile(self.targets)
            except re.error as error:
                message = (
                    f"targets = {self.targets!r}: {error}, as a regular expression."
                )
                require(False, message)


def init(lora: LoRA, params: PyTree, key: Array) -> Adapters:
    """New adapters: A is normal with variance 1 / inputs, B is 0, so A B is too.

    Of a matrix W `[inputs, outputs]`, A is `[inputs, rank]` and B `[rank, outputs]`.

    Args:
      lora: rank and targets.
      params: the model's.
      key: for A.

    Raises:
      InvalidInput: no matrix is a target, or a name is none of the model's.
    """
    chosen = _targets(lora, params)
    keys = jax.random.split(key, len(chosen))
    return {
        path: {
            "a": jax.random.normal(k, (inputs, lora.rank)) / inputs**0.5,
            "b": jnp.zeros((lora.rank, outputs)),
        }
        for k, (path, (inputs, outputs)) in zip(keys, chosen.items(), strict=True)
    }


def merge(lora: LoRA, params: PyTree, adapters: Adapters) -> PyTree:
    """Parameters with the adapters in them: W + (alpha / rank) A B, `[inputs, outputs]`.

    With B = 0 these are the parameters, bit for bit. For training, differentiate
    `loss(merge(lora, params, adapters))` by the adapters.
    """
    return _add(params, adapters, lora.alpha / lora.rank)


def unmerge(lora: LoRA, params: PyTree, adapters: Adapters) -> PyTree:
    """Undoes `merge`, up to rounding: W - (alpha / rank) A B, `[inputs, outputs]`."""
    return _add(params, adapters, -lora.alpha / lora.rank)


def _add(params: PyTree, adapters: Adapters, scale: float) -> PyTree:
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    missing = sorted(adapters.keys() - flat.keys())
    require(not missing, f"adapters of {missing}: the model has no such parameters.")
    changed = {
        path: flat[path] + scale * (x["a"] @ x["b"]) for path, x in adapters.items()
    }
    return flax.traverse_util.unflatten_dict(flat | changed, sep="/")


def _targets(lora: LoRA, params: PyTree) -> dict[str, tuple[int, int]]:
    """Path -> (inputs, outputs) of every kernel that gets an adapter."""
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    kernels = {
        path: x.shape
        for path, x in flat.items()
        if path.endswith("/kernel") and x.ndim == 2
    }
    if isinstance(lora.targets, str):
        chosen = {path for path in kernels if re.search(lora.targets, path)}
    else:
        layers = {path: path.split("/")[-2] for path in kernels}
        unknown = sorted(set(lora.targets) - set(layers.values()))
        names = ", ".join(dict.fromkeys(layers.values()))
        require(not unknown, f"targets = {unknown}: no such layers; there are {names}.")
        chosen = {path for path in kernels if layers[path] in lora.targets}
    require(bool(chosen), f"targets = {lora.targets!r}: no kernel of the model is one.")
    return {path: kernels[path] for path in kernels if path in chosen}
