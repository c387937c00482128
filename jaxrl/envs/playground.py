"""MuJoCo Playground: the DeepMind Control Suite in MJX (Zakka et al., 2025,
https://arxiv.org/abs/2502.08844).

Parameters are fields of the environment's configuration: `ctrl_dt`, `sim_dt`, ... The time
limit is its `episode_length`. An action is what an actuator is given, within the actuator's
range. The physics are those of MJX in JAX: Warp's keep the contacts of all copies in one
array, so that one copy cannot begin anew. The library's locomotion and manipulation
environments download models when they are made, and are left out.
"""

from functools import partial
from typing import Any

from jaxrl import spaces
from jaxrl.envs.brax import begin, unbounded
from jaxrl.envs.suites import Suite, adapt, import_quietly
from jaxrl.types import Array, Env

MODULE = "mujoco_playground"
NAMES = (
    "AcrobotSwingup",
    "AcrobotSwingupSparse",
    "BallInCup",
    "CartpoleBalance",
    "CartpoleBalanceSparse",
    "CartpoleSwingup",
    "CartpoleSwingupSparse",
    "CheetahRun",
    "FingerSpin",
    "FingerTurnEasy",
    "FingerTurnHard",
    "FishSwim",
    "HopperHop",
    "HopperStand",
    "HumanoidRun",
    "HumanoidStand",
    "HumanoidWalk",
    "PendulumSwingup",
    "PointMass",
    "ReacherEasy",
    "ReacherHard",
    "SwimmerSwimmer6",
    "WalkerRun",
    "WalkerStand",
    "WalkerWalk",
)


def build(name: str, **params: Any) -> Env:
    """An environment of MuJoCo Playground."""
    suite = import_quietly(MODULE, "playground").dm_control_suite
    config = suite.get_default_config(name)
    if params.setdefault("impl", "jax") != "jax":
        raise ValueError("impl must be 'jax'")
    if params.get("action_repeat", 1) != 1:
        raise ValueError("action_repeat must be 1: nothing here repeats actions")
    environment = suite.load(name, config, params)
    low, high = environment.mj_model.actuator_ctrlrange.T
    return adapt(
        Suite(partial(begin, environment), partial(_advance, environment)),
        unbounded,
        spaces.box(low, high, (environment.action_size,)),
        int(config.episode_length),
    )


def _advance(environment: Any, key: Array, state: Any, action: Array) -> tuple:
    del key  # the state has its own
    state = environment.step(state, action)
    return state, state.obs, state.reward, state.done > 0, dict(state.metrics)
