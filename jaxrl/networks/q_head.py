"""The layers of a `QNetwork` behind its body: dueling, noisy, distributional or plain."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl.networks.product import matrix_product
from jaxrl.networks.torso import Activation, activation, dense
from jaxrl.types import Array, Scalar


@dataclasses.dataclass(frozen=True)
class Head:
    """How features become outputs of each action; the default is one linear layer.

    Args:
      size: M, outputs of an action; 0 is one without an axis of its own.
      hidden_sizes: widths of hidden layers, of each stream where there are two.
      activation: nonlinearity of these.
      dueling: whether a stream for the state and one for the actions are added, the
        latter less its mean over the actions (Wang et al., 2016, arXiv:1511.06581).
      noisy_std: initial scale of the noise on the weights of these layers; None for
        layers without.
      num_cosines: features of a quantile's level, with which those of the observation are
        multiplied, so that there is an output for each level that is given (Dabney et
        al., 2018, arXiv:1806.06923); 0: outputs are not of levels.
    """

    size: int = 0
    hidden_sizes: tuple[int, ...] = ()
    activation: Activation = "relu"
    dueling: bool = False
    noisy_std: Scalar | None = None
    num_cosines: int = 0


PLAIN = Head()
"""One linear layer, one output an action."""


class NoisyDense(nn.Module):
    """A linear layer whose weights have learned, factorised noise.

    y = (W + Σ ⊙ f(ε) f(ε')ᵀ) x + b + β ⊙ f(ε),    f(ε) = sign(ε) √|ε|

    Without an rng "noise" it is W x + b. One ε serves the whole batch, or with `each_row`
    each entry of the first axis has its own.

    Source: Fortunato et al. (2018), https://arxiv.org/abs/1706.10295, equations 9 to 11,
    and section 3.2 for the initial values.
    """

    size: int
    std: Scalar
    each_row: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Outputs `[*batch, size]` of features `[*batch, F]`."""
        inputs = x.shape[-1]
        bound = inputs**-0.5

        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        def spread(key: Array, shape: tuple[int, ...]) -> Array:
            del key
            return jnp.full(shape, self.std * bound, jnp.float32)

        weight = self.param("kernel", uniform, (inputs, self.size))
        bias = self.param("bias", uniform, (self.size,))
        weight_std = self.param("kernel_std", spread, (inputs, self.size))
        bias_std = self.param("bias_std", spread, (self.size,))
        if not self.has_rng("noise"):
            return _product(x, weight) + bias
        # One for all levels of a row, which are parts of one distribution.
        rows = (x.shape[0], *[1] * (x.ndim - 2)) if self.each_row else ()
        noise = jax.random.normal(self.make_rng("noise"), (*rows, inputs + self.size))
        noise = jnp.sign(noise) * jnp.sqrt(jnp.abs(noise))
        before, after = noise[..., :inputs], noise[..., inputs:]
        bias = bias + bias_std * after
        if self.each_row:
            spoiled = _product(x * before, weight_std) * after
            return _product(x, weight) + spoiled + bias
        return _product(x, weight + weight_std * jnp.outer(before, after)) + bias


def outputs(
    head: Head, x: Array, num_actions: int, levels: Array | None, each_row: bool
) -> Array:
    """Outputs `[*batch, A]` or `[*batch, A, M]` of features `[*batch, F]`.

    Inside a compact method. With levels of quantiles, `[*batch, M]` or `[M]` for
    all rows, M are theirs.
    """
    if head.num_cosines:
        x = x[..., None, :] * _level_features(head, levels, x)
    advantage = _stream(head, x, num_actions, each_row)
    if not head.dueling:
        return advantage
    value = _stream(head, x, 1, each_row)
    axis = -2 if head.size or head.num_cosines else -1
    return value + advantage - advantage.mean(axis, keepdims=True)


def _level_features(head: Head, levels: Array | None, x: Array) -> Array:
    """Features `[..., M, F]` of levels `[..., M]`; of one level for None."""
    if levels is None:
        levels = jnp.full((1,), 0.5)
    cosines = jnp.cos(jnp.pi * levels[..., None] * jnp.arange(head.num_cosines))
    return nn.relu(dense(x.shape[-1])(cosines))


def _stream(head: Head, x: Array, num_actions: int, each_row: bool) -> Array:
    """Outputs of so many actions, `[*batch, A]` or `[*batch, A, M]`."""
    for width in head.hidden_sizes:
        x = activation(head.activation)(_linear(head, width, 2.0**0.5, each_row)(x))
    y = _linear(head, num_actions * max(head.size, 1), 1.0, each_row)(x)
    if head.num_cosines:
        return jnp.swapaxes(y, -1, -2)
    return y.reshape(*y.shape[:-1], num_actions, head.size) if head.size else y


def _linear(head: Head, size: int, scale: float, each_row: bool) -> Any:
    if head.noisy_std is None:
        return dense(size, scale)
    return NoisyDense(size, head.noisy_std, each_row)


def _product(x: Array, w: Array) -> Array:
    return matrix_product(x, w, (((x.ndim - 1,), (0,)), ((), ())))
