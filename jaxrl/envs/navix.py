"""Navix: MiniGrid in JAX (Pignatelli et al., 2024).

Parameters are those of Navix: `max_steps`, the time limit, which becomes the
`horizon`, and `observation_fn`, one of `OBSERVATIONS`. Navix's auto-reset is not used.
Navix declares symbols of at most 8, or 255; the largest is the agent's, 10, which is the
bound of the space here.
"""

from functools import partial
from typing import Any

from jaxrl import spaces
from jaxrl.envs.suites import Suite, adapt, import_quietly
from jaxrl.errors import InvalidInput, did_you_mean
from jaxrl.types import Array, Env, PyTree

NAMES = (
    *(f"Navix-Empty-{size}-v0" for size in ("5x5", "6x6", "8x8", "16x16")),
    *(f"Navix-Empty-Random-{size}-v0" for size in ("5x5", "6x6", "8x8", "16x16")),
    *(f"Navix-DoorKey-{size}-v0" for size in ("5x5", "6x6", "8x8", "16x16")),
    "Navix-FourRooms-v0",
    *(f"Navix-LavaGap{size}-v0" for size in ("S5", "S6", "S7")),
    *(f"Navix-Dynamic-Obstacles-{size}-v0" for size in ("5x5", "6x6", "8x8", "16x16")),
)


OBSERVATIONS = {
    "symbolic": 10,
    "symbolic_first_person": 10,
    "rgb": 255,
    "rgb_first_person": 255,
}
"""Functions of `navix.observations`, with the largest value that each returns."""


def build(name: str, observation_fn: str = "symbolic", **params: Any) -> Env:
    """An environment of Navix."""
    if observation_fn not in OBSERVATIONS:
        raise InvalidInput(
            f"observation_fn = {observation_fn!r}: must be one of "
            f"{', '.join(OBSERVATIONS)}{did_you_mean(str(observation_fn), OBSERVATIONS)}."
        )
    navix = import_quietly("navix")
    observe = getattr(navix.observations, observation_fn)
    environment = navix.make(name, observation_fn=observe, **params)
    steps = import_quietly("navix.environments.environment").StepType
    return adapt(
        Suite(
            partial(_begin, environment),
            partial(_advance, environment, int(steps.TERMINATION)),
        ),
        lambda obs: spaces.box(0, OBSERVATIONS[observation_fn], obs.shape, obs.dtype),
        spaces.Discrete(len(environment.action_set)),
        int(environment.max_steps),
    )


def _begin(environment: Any, key: Array) -> tuple[PyTree, Array]:
    timestep = environment.reset(key)
    return timestep, timestep.observation


def _advance(
    environment: Any, termination: int, key: Array, timestep: Any, action: Array
) -> tuple:
    """Navix's transition without its auto-reset, with our random key."""
    state = timestep.state.replace(key=key)
    timestep = environment._step(timestep.replace(state=state), action)
    terminated = timestep.step_type == termination
    return timestep, timestep.observation, timestep.reward, terminated, {}
