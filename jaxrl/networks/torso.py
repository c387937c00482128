"""Torsos: from a network's input to a vector of features."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl.networks.initializers import orthogonal
from jaxrl.networks.product import matrix_product
from jaxrl.types import Array, Scalar

Activation = Literal["tanh", "relu", "silu", "gelu", "elu"]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": nn.tanh,
    "relu": nn.relu,
    "silu": nn.silu,
    "gelu": nn.gelu,
    "elu": nn.elu,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The elementwise nonlinearity of that name."""
    return _ACTIVATIONS[name]


def dense(size: int, scale: float = 2.0**0.5, name: str | None = None) -> nn.Dense:
    """A linear layer with orthogonal weights of gain `scale` and zero bias.

    sqrt(2) for hidden layers, 0.01 for a policy's and 1 for a value's last layer are the
    gains of PPO's reference code (Huang et al., 2022, "The 37 Implementation Details").
    """
    return nn.Dense(
        size, kernel_init=orthogonal(scale), dot_general=matrix_product, name=name
    )


Takes = Literal["vector", "image", "raw"]
"""What a torso is given: the encoded observation as a vector `[*batch, D]` or as an image
`[*batch, H, W, C]`, or the observation as the environment returns it."""


class MLP(nn.Module):
    """Fully connected torso: `[*batch, D] -> [*batch, hidden_sizes[-1]]`."""

    hidden_sizes: Sequence[int] = (64, 64)
    activation: Activation = "tanh"
    layer_norm: bool = False
    """Whether each layer is normalised before its nonlinearity (Ba et al., 2016)."""
    dropout: Scalar | None = None
    """Fraction of each layer's outputs that is dropped where an rng "dropout" is given
    (Srivastava et al., 2014); an array too, unlike that of `nn.Dropout`."""

    takes: ClassVar[Takes] = "vector"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for size in self.hidden_sizes:
            x = dense(size)(x)
            if self.dropout is not None and self.has_rng("dropout"):
                keep = 1.0 - self.dropout
                kept = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
                x = jnp.where(kept, x / keep, 0.0)
            x = nn.LayerNorm()(x) if self.layer_norm else x
            x = activation(self.activation)(x)
        return x


class CNN(nn.Module):
    """Convolutional torso for small images: `[*batch, H, W, C] -> [*batch, features]`.

    One 3x3 convolution with 16 channels, then the fully connected layers: the network of
    Young & Tian (2019), "MinAtar". Images wider than 32 pixels are first halved by
    strided 4x4 convolutions until they fit.
    """

    hidden_sizes: Sequence[int] = (128,)
    activation: Activation = "relu"
    layer_norm: bool = False
    """Whether each layer is normalised before its nonlinearity (Ba et al., 2016)."""

    takes: ClassVar[Takes] = "image"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def layer(x: Array) -> Array:
            x = nn.LayerNorm()(x) if self.layer_norm else x
            return activation(self.activation)(x)

        kernel_init = orthogonal(2.0**0.5)
        while max(x.shape[-3:-1]) > 32:
            x = layer(nn.Conv(32, (4, 4), strides=2, kernel_init=kernel_init)(x))
        padding = "VALID" if min(x.shape[-3:-1]) >= 3 else "SAME"
        x = layer(nn.Conv(16, (3, 3), padding=padding, kernel_init=kernel_init)(x))
        x = x.reshape(*x.shape[:-3], -1)
        return MLP(self.hidden_sizes, self.activation, self.layer_norm)(x)


class ResNet(nn.Module):
    """IMPALA's residual torso: `[*batch, H, W, C] -> [*batch, hidden_sizes[-1]]`.

    For each number of channels a 3x3 convolution, max pooling of stride 2 and two residual
    blocks of two 3x3 convolutions; then the fully connected layers.

    Source: Espeholt et al. (2018), https://arxiv.org/abs/1802.01561, figure 3 (right).
    """

    hidden_sizes: Sequence[int] = (256,)
    activation: Activation = "relu"
    channels: Sequence[int] = (16, 32, 32)

    takes: ClassVar[Takes] = "image"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        act = activation(self.activation)

        def convolution(x: Array, channels: int) -> Array:
            kernel_init = orthogonal(2.0**0.5)
            return nn.Conv(channels, (3, 3), padding="SAME", kernel_init=kernel_init)(x)

        for channels in self.channels:
            x = convolution(x, channels)
            if min(x.shape[-3:-1]) > 1:
                x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
            for _ in range(2):
                inner = convolution(act(x), channels)
                x = x + convolution(act(inner), channels)
        x = act(x).reshape(*x.shape[:-3], -1)
        return MLP(self.hidden_sizes, self.activation)(x)
