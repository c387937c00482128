"""Torsos: from a network's input to a vector of features."""

from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn

from jaxrl.networks.initializers import orthogonal
from jaxrl.networks.product import matrix_product
from jaxrl.types import Array

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


def dense(size: int, scale: float = 2.0**0.5) -> nn.Dense:
    """A linear layer with orthogonal weights of gain `scale` and zero bias.

    sqrt(2) for hidden layers, 0.01 for a policy's and 1 for a value's last layer are the
    gains of PPO's reference code (Huang et al., 2022, "The 37 Implementation Details").
    """
    return nn.Dense(size, kernel_init=orthogonal(scale), dot_general=matrix_product)


class MLP(nn.Module):
    """Fully connected torso: `[*batch, D] -> [*batch, hidden_sizes[-1]]`."""

    hidden_sizes: Sequence[int]
    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for size in self.hidden_sizes:
            x = activation(self.activation)(dense(size)(x))
        return x


class CNN(nn.Module):
    """Convolutional torso for small images: `[*batch, H, W, C] -> [*batch, features]`.

    One 3x3 convolution with 16 channels, then the fully connected layers: the network of
    Young & Tian (2019), "MinAtar". Images wider than 32 pixels are first halved by
    strided 4x4 convolutions until they fit.
    """

    hidden_sizes: Sequence[int]
    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        act = activation(self.activation)
        kernel_init = orthogonal(2.0**0.5)
        while max(x.shape[-3:-1]) > 32:
            x = act(nn.Conv(32, (4, 4), strides=2, kernel_init=kernel_init)(x))
        padding = "VALID" if min(x.shape[-3:-1]) >= 3 else "SAME"
        x = act(nn.Conv(16, (3, 3), padding=padding, kernel_init=kernel_init)(x))
        x = x.reshape(*x.shape[:-3], -1)
        return MLP(self.hidden_sizes, self.activation)(x)


def torso(hidden_sizes: Sequence[int], activation: str, image: bool) -> nn.Module:
    """The torso that fits the observation: `CNN` for an image, else `MLP`."""
    return (CNN if image else MLP)(tuple(hidden_sizes), activation)
