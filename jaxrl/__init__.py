"""Reinforcement learning as pure JAX functions, end to end on the accelerator.

The names below load when they are first used (PEP 562), so `import jaxrl` costs nothing
that is not needed.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

__version__ = metadata.version("jaxrl")

_HOME = {
    "A2C": "jaxrl.algorithms.a2c",
    "ACTOR_CRITIC": "jaxrl.algorithms.actor_critic",
    "ALGORITHMS": "jaxrl.algorithms",
    "BC": "jaxrl.algorithms.bc",
    "C51": "jaxrl.algorithms.rainbow",
    "DAGGER": "jaxrl.algorithms.dagger",
    "DDPG": "jaxrl.algorithms.td3",
    "DQN": "jaxrl.algorithms.dqn",
    "EXPECTED_SARSA": "jaxrl.algorithms.sarsa",
    "IQN": "jaxrl.algorithms.rainbow",
    "NATURAL_PG": "jaxrl.algorithms.trust_region",
    "PPO": "jaxrl.algorithms.ppo",
    "PQN": "jaxrl.algorithms.pqn",
    "QR_DQN": "jaxrl.algorithms.rainbow",
    "Q_LEARNING": "jaxrl.algorithms.sarsa",
    "RAINBOW": "jaxrl.algorithms.rainbow",
    "REINFORCE": "jaxrl.algorithms.reinforce",
    "SAC": "jaxrl.algorithms.sac",
    "SARSA": "jaxrl.algorithms.sarsa",
    "TD": "jaxrl.algorithms.td",
    "TD3": "jaxrl.algorithms.td3",
    "TRPO": "jaxrl.algorithms.trust_region",
    "Algorithm": "jaxrl.types",
    "Dataset": "jaxrl.data.dataset",
    "Env": "jaxrl.types",
    "Experiment": "jaxrl.runs.experiment",
    "InvalidInput": "jaxrl.errors",
    "TimeStep": "jaxrl.types",
    "Transition": "jaxrl.types",
    "World": "jaxrl.types",
    "collect": "jaxrl.runs.collect",
    "env_ids": "jaxrl.envs",
    "evaluate": "jaxrl.evaluation",
    "evaluate_population": "jaxrl.evaluation",
    "export": "jaxrl.deployment.export",
    "init_world": "jaxrl.rollout",
    "load_agents": "jaxrl.runs.artifact",
    "load_policy": "jaxrl.runs.policy",
    "make": "jaxrl.envs",
    "member": "jaxrl.training.population",
    "preset": "jaxrl.runs.presets",
    "register": "jaxrl.envs",
    "register_algorithm": "jaxrl.algorithms",
    "render": "jaxrl.rendering",
    "render_frames": "jaxrl.rendering",
    "Range": "jaxrl.sweeps.space",
    "resume_experiment": "jaxrl.runs.session",
    "run_chunk": "jaxrl.training.population",
    "run_experiment": "jaxrl.runs.session",
    "resume_sweep": "jaxrl.sweeps.training",
    "sweep": "jaxrl.sweeps.training",
    "to_gymnasium": "jaxrl.interop.gymnasium",
    "to_gymnasium_vector": "jaxrl.interop.gymnasium",
    "serve": "jaxrl.deployment.serving",
    "train": "jaxrl.training.loop",
    "unroll": "jaxrl.rollout",
}

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from jaxrl.algorithms import ALGORITHMS as ALGORITHMS
    from jaxrl.algorithms import register_algorithm as register_algorithm
    from jaxrl.algorithms.a2c import A2C as A2C
    from jaxrl.algorithms.actor_critic import ACTOR_CRITIC as ACTOR_CRITIC
    from jaxrl.algorithms.bc import BC as BC
    from jaxrl.algorithms.dagger import DAGGER as DAGGER
    from jaxrl.algorithms.dqn import DQN as DQN
    from jaxrl.algorithms.ppo import PPO as PPO
    from jaxrl.algorithms.pqn import PQN as PQN
    from jaxrl.algorithms.rainbow import C51 as C51
    from jaxrl.algorithms.rainbow import IQN as IQN
    from jaxrl.algorithms.rainbow import QR_DQN as QR_DQN
    from jaxrl.algorithms.rainbow import RAINBOW as RAINBOW
    from jaxrl.algorithms.reinforce import REINFORCE as REINFORCE
    from jaxrl.algorithms.sac import SAC as SAC
    from jaxrl.algorithms.sarsa import EXPECTED_SARSA as EXPECTED_SARSA
    from jaxrl.algorithms.sarsa import Q_LEARNING as Q_LEARNING
    from jaxrl.algorithms.sarsa import SARSA as SARSA
    from jaxrl.algorithms.td import TD as TD
    from jaxrl.algorithms.td3 import DDPG as DDPG
    from jaxrl.algorithms.td3 import TD3 as TD3
    from jaxrl.algorithms.trust_region import NATURAL_PG as NATURAL_PG
    from jaxrl.algorithms.trust_region import TRPO as TRPO
    from jaxrl.data.dataset import Dataset as Dataset
    from jaxrl.deployment.export import export as export
    from jaxrl.deployment.serving import serve as serve
    from jaxrl.envs import env_ids as env_ids
    from jaxrl.envs import make as make
    from jaxrl.envs import register as register
    from jaxrl.errors import InvalidInput as InvalidInput
    from jaxrl.evaluation import evaluate as evaluate
    from jaxrl.evaluation import evaluate_population as evaluate_population
    from jaxrl.interop.gymnasium import to_gymnasium as to_gymnasium
    from jaxrl.interop.gymnasium import to_gymnasium_vector as to_gymnasium_vector
    from jaxrl.rendering import render as render
    from jaxrl.rendering import render_frames as render_frames
    from jaxrl.rollout import init_world as init_world
    from jaxrl.rollout import unroll as unroll
    from jaxrl.runs.artifact import load_agents as load_agents
    from jaxrl.runs.collect import collect as collect
    from jaxrl.runs.experiment import Experiment as Experiment
    from jaxrl.runs.policy import load_policy as load_policy
    from jaxrl.runs.presets import preset as preset
    from jaxrl.runs.session import resume_experiment as resume_experiment
    from jaxrl.runs.session import run_experiment as run_experiment
    from jaxrl.sweeps.space import Range as Range
    from jaxrl.sweeps.training import resume_sweep as resume_sweep
    from jaxrl.sweeps.training import sweep as sweep
    from jaxrl.training.loop import train as train
    from jaxrl.training.population import member as member
    from jaxrl.training.population import run_chunk as run_chunk
    from jaxrl.types import Algorithm as Algorithm
    from jaxrl.types import Env as Env
    from jaxrl.types import TimeStep as TimeStep
    from jaxrl.types import Transition as Transition
    from jaxrl.types import World as World


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxrl' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
