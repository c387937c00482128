"""Recurrent cells beside flax's own, and running any of them along time.

A cell follows flax's protocol: `cell(carry, x) -> (carry, y)` and
`cell.initialize_carry(key, input_shape)`. The carry at the start of an episode is all
zeros, whatever the cell: `rollout.unroll` sets it to zero where an episode ends. A cell
that needs no loop along time has `over_time(carry, x, done)` too.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl.networks.initializers import orthogonal
from jaxrl.types import Array, Memory, PyTree


class Transformer(nn.RNNCellBase):
    """A causal transformer as a memory: attention to the last `context` steps.

    Each of `num_layers` blocks attends from the present step to itself and to the inputs
    of that block at the last `context` steps of the episode, with a learned embedding of
    their age, then applies a two-layer perceptron. Both residual branches join through a
    GRU gate that begins near the identity, and layers are normalised at their input.

    Attributes:
      size: width of the model, and of the output.
      num_layers: blocks.
      num_heads: attention heads; a divisor of `size`.
      context: steps of the past that a block sees. The carry holds
        `num_layers * context * size` numbers for each environment.
      gate_bias: initial bias of the gates towards the identity.

    Source: Parisotto et al. (2020), https://arxiv.org/abs/1910.06764, section 3.2 (GTrXL)
    with the cached segment of Dai et al. (2019), https://arxiv.org/abs/1901.02860; the
    relative positions are simplified to one learned key for each age.
    """

    size: int = 64
    num_layers: int = 1
    num_heads: int = 4
    context: int = 32
    gate_bias: float = 2.0

    @property
    def num_feature_axes(self) -> int:
        return 1

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> PyTree:
        """(inputs of each block `[*batch, L, M, size]`, which are there `[*batch, M]`)."""
        del rng
        batch = input_shape[:-1]
        past = jnp.zeros((*batch, self.num_layers, self.context, self.size))
        return past, jnp.zeros((*batch, self.context))

    def __call__(self, carry: PyTree, x: Array) -> tuple[PyTree, Array]:
        """One step: x `[*batch, F]`, output `[*batch, size]`."""
        carry, y = self.over_time(carry, x[None], jnp.zeros((1, *x.shape[:-1]), bool))
        return carry, y[0]

    @nn.compact
    def over_time(self, carry: PyTree, x: Array, done: Array) -> tuple[PyTree, Array]:
        """All of `[T, *batch, F]` at once, in place of T steps one after another."""
        past, seen = carry
        ended = jnp.moveaxis(jnp.cumsum(done, axis=0), 0, -1)  # episodes, [*batch, T]
        episode = jnp.concatenate([jnp.zeros_like(ended[..., :1]), ended[..., :-1]], -1)
        # Of the rows before, those that are seen are of the first episode here.
        rows = jnp.concatenate([jnp.where(seen > 0, 0, -1), episode], axis=-1)
        steps = jnp.arange(rows.shape[-1])
        age = steps[self.context :, None] - steps  # [T, M + T]
        visible = (age >= 0) & (age <= self.context)
        visible = visible & (rows[..., None, :] == episode[..., :, None])

        x = nn.Dense(self.size, kernel_init=orthogonal(2.0**0.5), name="inlet")(x)
        x = jnp.moveaxis(x, 0, -2)  # [*batch, T, size]
        recent = slice(-self.context, None)
        kept, left = rows[..., recent] == ended[..., -1:], []
        for i in range(self.num_layers):
            inputs = jnp.concatenate([past[..., i, :, :], x], axis=-2)
            left.append(jnp.where(kept[..., None], inputs[..., recent, :], 0.0))
            x = self._block(x, inputs, visible, age, name=f"block_{i}")
        carry = jnp.stack(left, axis=-3), kept.astype(seen.dtype)
        return carry, jnp.moveaxis(nn.LayerNorm()(x), -2, 0)

    def _block(
        self, x: Array, inputs: Array, visible: Array, age: Array, name: str
    ) -> Array:
        norm = nn.LayerNorm(name=f"{name}_norm")
        attended = self._attend(norm(x), norm(inputs), visible, age, name)
        x = Gate(self.gate_bias, name=f"{name}_gate_attention")(x, nn.relu(attended))
        inner = nn.LayerNorm(name=f"{name}_norm_mlp")(x)
        inner = nn.relu(nn.Dense(4 * self.size, name=f"{name}_mlp_in")(inner))
        inner = nn.Dense(self.size, name=f"{name}_mlp_out")(inner)
        return Gate(self.gate_bias, name=f"{name}_gate_mlp")(x, nn.relu(inner))

    def _attend(
        self, x: Array, keys: Array, visible: Array, age: Array, name: str
    ) -> Array:
        """Attention of `[*batch, T, size]` to `[*batch, M + T, size]`."""
        heads = (self.num_heads, self.size // self.num_heads)
        q = nn.DenseGeneral(heads, name=f"{name}_q")(x)
        k = nn.DenseGeneral(heads, name=f"{name}_k")(keys)
        v = nn.DenseGeneral(heads, name=f"{name}_v")(keys)
        by_age = self.param(
            f"{name}_age", nn.initializers.normal(0.02), (self.context + 1, *heads)
        )
        score = jnp.einsum("...thd,...khd->...htk", q, k)
        ages = jnp.einsum("...thd,ahd->...hta", q, by_age)
        index = jnp.broadcast_to(jnp.clip(age, 0, self.context), score.shape)
        score = score + jnp.take_along_axis(ages, index, axis=-1)
        score = jnp.where(visible[..., None, :, :], score / heads[1] ** 0.5, -jnp.inf)
        mixed = jnp.einsum("...htk,...khd->...thd", jax.nn.softmax(score), v)
        return nn.DenseGeneral(self.size, axis=(-2, -1), name=f"{name}_out")(mixed)


class Gate(nn.Module):
    """A residual connection that is gated as a GRU's state.

    r = σ(W_r y + U_r x),    z = σ(W_z y + U_z x - b),    h = tanh(W y + U (r x))
    x <- (1 - z) x + z h

    Source: Parisotto et al. (2020), https://arxiv.org/abs/1910.06764, section 3.3.
    """

    bias: float = 2.0

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        def of(name: str, y: Array, x: Array) -> Array:
            size = x.shape[-1]
            left = nn.Dense(size, use_bias=False, name=f"w_{name}")(y)
            return left + nn.Dense(size, use_bias=False, name=f"u_{name}")(x)

        r = nn.sigmoid(of("r", y, x))
        z = nn.sigmoid(of("z", y, x) - self.bias)
        candidate = jnp.tanh(of("h", y, r * x))
        return (1.0 - z) * x + z * candidate


def run(cell: nn.Module, memory: Memory, x: Array, done: Array | None) -> Any:
    """One step of a cell, or a loop along time.

    Args:
      cell: bound, or created inside a compact method.
      memory: `[N, ...]`.
      x: `[N, F]`; along time `[T, N, F]`.
      done: None for one step; along time `[T, N]`, whether the episode ended with that
        row. The memory is cleared after such a row.

    Returns:
      (memory after the last row, output `[N, F]` or `[T, N, F]`).
    """
    if done is None:
        return cell(memory, x)
    if hasattr(cell, "over_time"):
        return cell.over_time(memory, x, done)

    def step(cell: nn.Module, memory: Memory, row: tuple[Array, Array]) -> tuple:
        x, done = row
        memory, y = cell(memory, x)
        return clear(memory, done), y

    over_time = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
    return over_time(cell, memory, (x, done))


def clear(memory: Memory, done: Array) -> Memory:
    """The memory `[N, ...]`, zero where `done` `[N]`."""

    def zero(x: Array) -> Array:
        return jnp.where(done.reshape(-1, *[1] * (x.ndim - 1)), 0.0, x)

    return jax.tree.map(zero, memory)
