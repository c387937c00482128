"""Pictures of environments; `DRAW` maps ids to drawing functions.

Pillow draws on the host, from the states that a rollout on the device has kept. gymnax's
own drawing makes a Gymnasium environment for every frame of classic control and draws
MinAtar through matplotlib and seaborn; it needs packages that jaxrl does not install.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxrl import spaces
from jaxrl.envs import lecture as problems
from jaxrl.envs.wrappers import unwrap
from jaxrl.errors import require
from jaxrl.rendering.drawing import control, lecture, minatar
from jaxrl.types import Env, PyTree


class Drawing(NamedTuple):
    """A function that draws states of an environment, and how to show its pictures."""

    function: Callable  # (env_state, params, size) -> uint8 [H, W, 3]
    fps: int = 10  # steps shown per second, by default
    actions: tuple[str, ...] = ()  # their names


COMPASS = ("up", "right", "down", "left")
SIDES = ("left", "right")
KEYS = ("no-op", "left", "up", "right", "down", "fire")
"""All actions of MinAtar; a game's own minimal set is chosen from them."""

DRAW: dict[str, Drawing] = {
    "CartPole-v1": Drawing(control.cart_pole, 30, SIDES),
    "Acrobot-v1": Drawing(control.acrobot, 15, ("torque −1", "none", "torque +1")),
    "MountainCar-v0": Drawing(control.mountain_car, 30, ("left", "none", "right")),
    "MountainCarContinuous-v0": Drawing(control.mountain_car, 30),
    "Pendulum-v1": Drawing(control.pendulum, 20),
    "Asterix-MinAtar": Drawing(minatar.asterix, 10, KEYS[:5]),
    "Breakout-MinAtar": Drawing(minatar.breakout, 10, ("no-op", "left", "right")),
    "Freeway-MinAtar": Drawing(minatar.freeway, 15, ("no-op", "up", "down")),
    "Seaquest-MinAtar": Drawing(minatar.seaquest, 10, KEYS),
    "SpaceInvaders-MinAtar": Drawing(
        minatar.space_invaders, 10, ("no-op", "left", "right", "fire")
    ),
    "lecture/grid-world": Drawing(
        partial(lecture.grid, rows=problems.PLAIN_MAP), 3, COMPASS
    ),
    "lecture/windy-grid-world": Drawing(
        partial(lecture.grid, rows=problems.WINDY_MAP, wind=problems.WIND), 3, COMPASS
    ),
    "lecture/cliff-walking": Drawing(
        partial(lecture.grid, rows=problems.CLIFF_MAP), 3, COMPASS
    ),
    "lecture/maze": Drawing(partial(lecture.grid, rows=problems.MAZE_MAP), 3, COMPASS),
    "lecture/random-walk-5": Drawing(
        partial(lecture.chain, order=(5, *range(5), 5)), 3, SIDES
    ),
    "lecture/random-walk-19": Drawing(
        partial(lecture.chain, order=(19, *range(19), 19)), 3, SIDES
    ),
    "lecture/short-corridor": Drawing(partial(lecture.chain, order=range(4)), 3, SIDES),
    "lecture/boyan-chain": Drawing(
        partial(lecture.chain, order=range(12, -1, -1)), 3, ("one", "two")
    ),
    "lecture/continuous-walk": Drawing(lecture.walk, 3, SIDES),
}
"""Environment id -> drawing. An environment with its own `draw` needs no entry."""


def find_drawing(env: Env) -> Drawing:
    """Find how an environment is drawn: by its own `draw`, or by the entry of `DRAW`.

    Raises:
      InvalidInput: nothing draws it.
    """
    if env.draw is not None:
        return Drawing(env.draw)
    require(
        env.id in DRAW,
        f"env = {env.id!r}: nothing draws it; drawn are {', '.join(DRAW)}, and any "
        f"environment with a `draw` function of its own.",
    )
    return DRAW[env.id]


def action_names(env: Env, drawing: Drawing) -> tuple[str, ...]:
    """Name each discrete action, by its number where it has no name."""
    if not isinstance(env.action_space, spaces.Discrete):
        return ()
    count = env.action_space.n
    known = (drawing.actions, KEYS if env.id.endswith("-MinAtar") else ())
    names = next((names for names in known if len(names) == count), ())
    return names or tuple(str(k) for k in range(count))


def draw_state(env: Env, drawing: Drawing, env_state: PyTree, size: int) -> np.ndarray:
    """Draw the state of one environment (NumPy arrays) as uint8 `[H, W, 3]`.

    Raises:
      InvalidInput: the environment's own function returned something else.
    """
    inner, params = unwrap(env_state, env.params)
    drawn: Any = np.asarray(drawing.function(inner, params, size))
    require(
        drawn.dtype == np.uint8 and drawn.ndim == 3 and drawn.shape[-1] == 3,
        f"draw of {env.id!r} returned {drawn.dtype} {list(drawn.shape)}: must be uint8 "
        f"[H, W, 3].",
    )
    return drawn
