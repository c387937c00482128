"""Batch renormalisation: normalisation whose running statistics are also learned with.

Statistics are no parameters: flax keeps them in the collection `STATISTICS` beside
"params". A network that is applied with that collection mutable is in training, and uses
and returns those of the batch; otherwise the running ones are used.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl.networks.torso import Activation, Takes, activation, dense
from jaxrl.types import Array, PyTree

STATISTICS = "batch_stats"


class BatchRenorm(nn.Module):
    """Features `[*batch, F]` with mean β and deviation γ, which are learned.

    y = γ (r (x - m) / s + d) + β,    s = √(v + ε)
    r = clip(s / S, 1 / r_max, r_max),    d = clip((m - M) / S, -d_max, d_max)

    m, v are the mean and the variance of the batch, M and S² - ε running ones, which follow
    them by 1 - `momentum` after every batch; no gradient passes r and d. In the first
    `warmup` batches r = 1 and d = 0, which is batch normalisation. When it is not trained,
    y = γ (x - M) / S + β: after the warm-up the same, where nothing is clipped.

    Source: Ioffe (2017), https://arxiv.org/abs/1702.03275, algorithm 1; constants of Bhatt
    et al. (2024), https://arxiv.org/abs/1902.05605, and of their code.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    r_max: float = 3.0
    d_max: float = 5.0
    warmup: int = 100_000

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, size)
        bias = self.param("bias", nn.initializers.zeros, size)
        mean = self.variable(STATISTICS, "mean", jnp.zeros, size)
        var = self.variable(STATISTICS, "var", jnp.ones, size)
        count = self.variable(STATISTICS, "count", jnp.zeros, (), jnp.int32)
        running = jnp.sqrt(var.value + self.epsilon)
        if self.is_initializing() or not self.is_mutable_collection(STATISTICS):
            return scale * (x - mean.value) / running + bias
        axes = tuple(range(x.ndim - 1))
        m, v = x.mean(axes), x.var(axes)
        s = jnp.sqrt(v + self.epsilon)
        fixed_m, fixed_s = jax.lax.stop_gradient((m, s))
        warm = count.value >= self.warmup
        r = jnp.clip(fixed_s / running, 1.0 / self.r_max, self.r_max)
        d = jnp.clip((fixed_m - mean.value) / running, -self.d_max, self.d_max)
        r, d = jnp.where(warm, r, 1.0), jnp.where(warm, d, 0.0)
        mean.value = self.momentum * mean.value + (1.0 - self.momentum) * m
        var.value = self.momentum * var.value + (1.0 - self.momentum) * v
        count.value = jnp.minimum(count.value + 1, self.warmup)
        return scale * (r * (x - m) / s + d) + bias


class BatchNormMLP(nn.Module):
    """Fully connected torso with normalised inputs and layers, as CrossQ has it.

    The norm stands behind the nonlinearity: Bhatt et al. (2024), figure 2.
    """

    hidden_sizes: Sequence[int] = (256, 256)
    activation: Activation = "relu"

    takes: ClassVar[Takes] = "vector"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = BatchRenorm()(x)
        for size in self.hidden_sizes:
            x = BatchRenorm()(activation(self.activation)(dense(size)(x)))
        return x


def apply(
    net: nn.Module, variables: PyTree, *inputs: Any, training: bool, **options: Any
) -> tuple[Any, PyTree]:
    """What a network makes of inputs, and its running statistics afterwards.

    They are None where it has none, and change in training alone.
    """
    if not training:
        return net.apply(variables, *inputs, **options), variables.get(STATISTICS)
    found: Any = net.apply(variables, *inputs, mutable=[STATISTICS], **options)
    return found[0], found[1].get(STATISTICS)


def split(variables: PyTree) -> tuple[PyTree, PyTree]:
    """What an optimiser changes, and the running statistics or None; see `join`."""
    if not (isinstance(variables, dict) and STATISTICS in variables):
        return variables, None
    learned = {name: x for name, x in variables.items() if name != STATISTICS}
    return learned, variables[STATISTICS]


def join(learned: PyTree, statistics: PyTree) -> PyTree:
    """The variables of a network: undoes `split`."""
    return learned if statistics is None else learned | {STATISTICS: statistics}
