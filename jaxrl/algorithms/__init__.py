"""The registry: one file an algorithm, a plain dict of them all."""

from jaxrl.algorithms.a2c import A2C
from jaxrl.algorithms.actor_critic import ACTOR_CRITIC
from jaxrl.algorithms.bc import BC
from jaxrl.algorithms.dagger import DAGGER
from jaxrl.algorithms.dqn import DQN
from jaxrl.algorithms.ppo import PPO
from jaxrl.algorithms.reinforce import REINFORCE
from jaxrl.algorithms.sarsa import EXPECTED_SARSA, Q_LEARNING, SARSA
from jaxrl.algorithms.td import TD
from jaxrl.algorithms.trust_region import NATURAL_PG, TRPO
from jaxrl.types import Algorithm

ALGORITHMS: dict[str, Algorithm] = {
    a.name: a
    for a in (
        *(REINFORCE, ACTOR_CRITIC, A2C, NATURAL_PG, TRPO, PPO),
        *(TD, SARSA, EXPECTED_SARSA, Q_LEARNING, DQN),
        *(BC, DAGGER),
    )
}
