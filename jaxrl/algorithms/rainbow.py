"""Published combinations of DQN's options: C51, QR-DQN, IQN and Rainbow.

They are `dqn` with other defaults, so each is a starting point from which options are
taken away or added:

- C51 (Bellemare, Dabney and Munos, 2017, arXiv:1707.06887);
- QR-DQN (Dabney et al., 2018, arXiv:1710.10044);
- IQN (Dabney et al., 2018, arXiv:1806.06923), whose features of levels meet those of the
  observation before the last hidden layer;
- Rainbow (Hessel et al., 2018, arXiv:1710.02298): double, dueling, noisy, categorical,
  targets of three rewards, prioritised replay. Noisy layers explore, so ε is 0.

Sizes, support and step sizes are those of the CartPole row.
"""

from functools import partial

from jaxrl.algorithms import dqn
from jaxrl.algorithms.value_heads import Distribution
from jaxrl.types import static, traced


class C51Config(dqn.Config):
    """Hyper-parameters of C51: those of DQN, with a categorical distribution."""

    distribution: Distribution = static("categorical")
    """What is learned of an action's return: its mean, or a distribution."""
    num_atoms: int = static(101, low=2)
    """Returns to which a categorical distribution gives probabilities."""


class QRDQNConfig(dqn.Config):
    """Hyper-parameters of QR-DQN: those of DQN, with quantiles of fixed levels."""

    distribution: Distribution = static("quantile")
    """What is learned of an action's return: its mean, or a distribution."""


class IQNConfig(dqn.Config):
    """Hyper-parameters of IQN: those of DQN, with quantiles of levels that are drawn."""

    distribution: Distribution = static("implicit_quantile")
    """What is learned of an action's return: its mean, or a distribution."""
    num_quantiles: int = static(8, low=1)
    """Quantiles that are learned; implicit ones at each step."""
    hidden_sizes: tuple[int, ...] = static((120,), low=1)
    """Widths of the fully connected layers."""
    head_sizes: tuple[int, ...] = static((84,), low=1)
    """Widths of hidden layers of the head, behind `network`; of each stream if dueling."""


class RainbowConfig(dqn.Config):
    """Hyper-parameters of Rainbow: those of DQN, with all that it combines."""

    n_step: int = static(3, low=1, high=1_000)
    """Rewards in a target; fewer where an episode ends."""
    epsilon_start: float = traced(0.0, low=0, high=1)
    """Probability of a random action at the start."""
    epsilon_end: float = traced(0.0, low=0, high=1)
    """Probability of a random action at the end."""
    double: bool = static(True)
    """Whether the online network chooses the action whose value the target takes."""
    dueling: bool = static(True)
    """Whether the head adds a state's value and the actions' advantages."""
    hidden_sizes: tuple[int, ...] = static((120,), low=1)
    """Widths of the fully connected layers."""
    head_sizes: tuple[int, ...] = static((84,), low=1)
    """Widths of hidden layers of the head, behind `network`; of each stream if dueling."""
    noisy_std: float | None = traced(0.5, above=0)
    """Initial noise on the weights of the head, 0.5 as published; none: no noise."""
    distribution: Distribution = static("categorical")
    """What is learned of an action's return: its mean, or a distribution."""
    priority_exponent: float | None = traced(0.5, low=0, high=1)
    """How strongly replay prefers what was surprising, 0.5 in Rainbow; none: replay is
    uniform."""


C51 = dqn.DQN._replace(
    name="c51", Config=C51Config, validate=partial(dqn.validate, "c51")
)
QR_DQN = dqn.DQN._replace(
    name="qr_dqn", Config=QRDQNConfig, validate=partial(dqn.validate, "qr_dqn")
)
IQN = dqn.DQN._replace(
    name="iqn", Config=IQNConfig, validate=partial(dqn.validate, "iqn")
)
RAINBOW = dqn.DQN._replace(
    name="rainbow", Config=RainbowConfig, validate=partial(dqn.validate, "rainbow")
)
