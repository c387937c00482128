"""PQN, parallelised Q-network (Gallici et al., 2024, arXiv:2407.04811).

Q-learning from rollouts of many environments, without a replay memory and without a target
network; layer normalisation takes their place. The paper shows for wide normalised layers
with small weights behind them that the temporal-difference update is a contraction, also
off-policy.

    min E[ 1/2 (Q(s_t, a_t) - y_t)^2 ]
    y_t = r_t + gamma [(1 - lambda) max_a Q(s_{t+1}, a) + lambda y_{t+1}]

The code is that of `q_learning` (`jaxrl.algorithms.sarsa`): Peng's Q(lambda), also with a
memory. What differs is `network`, which is layer-normalised, the optimiser, rectified Adam,
and the defaults.
"""

from functools import partial

from flax.struct import PyTreeNode

from jaxrl import optim
from jaxrl.algorithms import sarsa
from jaxrl.networks import Activation, Network
from jaxrl.types import static, traced


class Config(PyTreeNode):
    """Hyper-parameters of PQN: the authors' for CartPole, whose rewards they scale."""

    total_steps: float = traced(500_000.0, low=1, high=1e12)
    """Environment steps of the whole run; the schedules end there."""
    num_envs: int = static(32, low=1)
    """Environments stepped in parallel."""
    num_steps: int = static(64, low=1)
    """Steps of each environment between updates."""
    num_epochs: int = static(4, low=1)
    """Passes over each rollout."""
    num_minibatches: int = static(16, low=1)
    """Gradient steps per pass."""
    learning_rate: float = traced(1e-4, low=0)
    """Step size of rectified Adam."""
    anneal_lr: bool = static(True)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    gamma: float = traced(0.99, low=0, high=1)
    """Discount factor per environment step."""
    td_lambda: float = traced(0.95, low=0, high=1)
    """Decay of the targets: 0 is one step, 1 the return to the rollout's end."""
    epsilon_start: float = traced(1.0, low=0, high=1)
    """Probability of a random action at the start."""
    epsilon_end: float = traced(0.2, low=0, high=1)
    """Probability of a random action at the end."""
    exploration_fraction: float = traced(0.2, above=0, high=1)
    """Fraction of `total_steps` over which epsilon falls linearly."""
    max_grad_norm: float = traced(10.0, above=0)
    """Gradients are scaled down to this global norm."""
    hidden_sizes: tuple[int, ...] = static((256, 256), low=1)
    """Widths of the fully connected layers."""
    activation: Activation = static("relu")
    """Nonlinearity of the hidden layers."""
    network: Network = static("auto_layer_norm")
    """A name ("auto_layer_norm", "gru(layer_norm=True)", ...), a flax module, or
    module:factory."""


PQN = sarsa.Q_LEARNING._replace(
    name="pqn",
    Config=Config,
    init=partial(sarsa.init, make_optimizer=optim.radam),
    train_step=partial(sarsa.train_step, successor="best", make_optimizer=optim.radam),
    validate=partial(sarsa.validate, name="pqn"),
)
