"""The registry: one file an algorithm, a plain dict of them all."""

from jaxrl.algorithms.a2c import A2C
from jaxrl.algorithms.actor_critic import ACTOR_CRITIC
from jaxrl.algorithms.bc import BC
from jaxrl.algorithms.dagger import DAGGER
from jaxrl.algorithms.dqn import DQN
from jaxrl.algorithms.ppo import PPO
from jaxrl.algorithms.pqn import PQN
from jaxrl.algorithms.rainbow import C51, IQN, QR_DQN, RAINBOW
from jaxrl.algorithms.reinforce import REINFORCE
from jaxrl.algorithms.sac import SAC
from jaxrl.algorithms.sarsa import EXPECTED_SARSA, Q_LEARNING, SARSA
from jaxrl.algorithms.td import TD
from jaxrl.algorithms.td3 import DDPG, TD3
from jaxrl.algorithms.trust_region import NATURAL_PG, TRPO
from jaxrl.core.imports import import_value
from jaxrl.errors import require
from jaxrl.types import Algorithm

FAMILIES: dict[str, tuple[Algorithm, ...]] = {
    "Policy gradients": (REINFORCE, ACTOR_CRITIC, A2C, PPO),
    "Trust regions": (NATURAL_PG, TRPO),
    "Values": (
        *(TD, SARSA, EXPECTED_SARSA, Q_LEARNING, PQN),
        *(DQN, C51, QR_DQN, IQN, RAINBOW),
    ),
    "Continuous control": (DDPG, TD3, SAC),
    "Imitation": (BC, DAGGER),
}
"""The built-in algorithms. The site's lists of pages are made from it."""

ALGORITHMS = {a.name: a for family in FAMILIES.values() for a in family}

_registered: dict[str, Algorithm] = {}


def register_algorithm(algorithm: Algorithm | str) -> Algorithm:
    """Make an algorithm of your own known by its name.

    Its runs are then evaluated, rendered, exported, resumed and loaded like any other, in
    this process: a run folder holds the name and no code.

    Args:
      algorithm: with a name that is not built in; registering that name again replaces
        it, so that a notebook cell can be run twice. Or "module:VALUE", which is imported
        and has that for a name, as in `jaxrl train module:VALUE`.

    Returns:
      The algorithm under its name.

    Raises:
      InvalidInput: the name is taken, or there is no such algorithm.
    """
    if isinstance(algorithm, str):
        algorithm = _import_algorithm(algorithm)
    name = algorithm.name
    require(
        name not in ALGORITHMS and not name.startswith("rlhf-"),
        f"name = {name!r}: is built in, choose another name with "
        f"algorithm._replace(name=...).",
    )
    _registered[name] = algorithm
    return algorithm


def _import_algorithm(path: str) -> Algorithm:
    """The algorithm at "module:VALUE", under that name."""
    value: Algorithm = import_value(
        path,
        "Algorithm",
        "algorithm",
        lambda value: isinstance(value, Algorithm),
        "my_module:MY_ALGORITHM",
    )
    return value._replace(name=path)


def registered_algorithms() -> dict[str, Algorithm]:
    """Those of `register_algorithm`, by name."""
    return dict(_registered)
