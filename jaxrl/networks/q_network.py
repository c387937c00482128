"""The action-value network of the Q-learning family."""

from collections.abc import Sequence

import flax.linen as nn

from jaxrl.networks.torso import dense, torso
from jaxrl.types import Array


class QNetwork(nn.Module):
    """Q(s, .): network input `[*batch, ...]` -> values `[*batch, A]`."""

    num_actions: int
    hidden_sizes: Sequence[int]
    activation: str
    image: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = torso(self.hidden_sizes, self.activation, self.image)(x)
        return dense(self.num_actions, scale=1.0)(x)
