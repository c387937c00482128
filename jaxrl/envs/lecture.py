"""Problems of lectures and textbooks, ids `lecture/...`, each with its exact solution.

Most are finite: a function here returns the `MDP`, whose values `jaxrl.mdp` computes, and
`make` returns the environment. For problems from Sutton and Barto (2018), "Reinforcement
Learning: An Introduction", 2nd edition (S&B), rewards, start states and discounts are those
of the book. Where the book has a chain without choices, there are two actions here, and the
uniform policy induces the book's chain.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.envs.tabular import tabular_env
from jaxrl.errors import InvalidInput, did_you_mean
from jaxrl.mdp import MDP, finite_mdp, interpolate, policy_evaluation
from jaxrl.types import Array, Env, TimeStep

LEFT, RIGHT = 0, 1


# Walks


def random_walk_5() -> MDP:
    """`lecture/random-walk-5`: S&B example 6.2.

    Five states in a row, start in the middle; actions left and right. Reward 1 for leaving
    on the right, else 0. Uniform policy: V = 1/6, 2/6, 3/6, 4/6, 5/6.
    """
    return random_walk(5, left_reward=0.0)


def random_walk_19() -> MDP:
    """`lecture/random-walk-19`: S&B example 7.1, figures 7.2, 12.3, 12.6 and 12.8.

    Nineteen states in a row, start in the middle; actions left and right. Reward 1 for
    leaving on the right, -1 on the left, else 0. Uniform policy: V = -0.9, -0.8, ..., 0.9.
    """
    return random_walk(19, left_reward=-1.0)


def random_walk(num_states: int, left_reward: float, right_reward: float = 1.0) -> MDP:
    """Random walk on states 0 ... n - 1, with one terminal state, n, beyond both ends."""
    if num_states < 1 or num_states % 2 == 0:
        raise InvalidInput(
            f"num_states = {num_states!r}: must be odd, so that there is a middle."
        )
    end = num_states
    transition = np.zeros((end + 1, 2, end + 1))
    reward = np.zeros((end + 1, 2))
    for state in range(end):
        transition[state, LEFT, state - 1 if state else end] = 1
        transition[state, RIGHT, state + 1] = 1
    reward[0, LEFT], reward[end - 1, RIGHT] = left_reward, right_reward
    return finite_mdp(transition, reward, _only(end, end + 1), start=end // 2)


def short_corridor() -> MDP:
    """`lecture/short-corridor`: S&B example 13.1.

    Three states, start in the first; actions left and right, exchanged in the second state.
    Left in the first does not move; right in the third ends the episode. Reward -1 per
    step. All states look alike (observation 1), so a policy is the probability p of right:
    V(start) = -2 (2 - p) / (p (1 - p)); the best is p = 2 - sqrt(2) = 0.586, with -11.66.
    """
    moves = {(0, LEFT): 0, (0, RIGHT): 1, (1, LEFT): 2, (1, RIGHT): 0}
    moves |= {(2, LEFT): 1, (2, RIGHT): 3}
    transition = np.zeros((4, 2, 4))
    for (state, action), successor in moves.items():
        transition[state, action, successor] = 1
    return finite_mdp(transition, -1.0, _only(3, 4), start=0, features=np.ones((4, 1)))


def boyan_chain() -> MDP:
    """`lecture/boyan-chain`: Boyan (2002), "Technical Update: Least-Squares Temporal
    Difference Learning", Machine Learning 49, section 2.

    States 12, ..., 0, start in 12; state 0 is terminal. The actions go down by one or two,
    reward -3; from state 1 both go to 0, reward -2. Four features, linear between state 12
    (1, 0, 0, 0), 8, 4 and 0 (0, 0, 0, 1). Uniform policy: V(s) = -2 s, which is the
    features times (-24, -16, -8, 0).
    """
    transition = np.zeros((13, 2, 13))
    for state in range(1, 13):
        for action in range(2):
            transition[state, action, max(state - 1 - action, 0)] = 1
    reward = np.full((13, 2), -3.0)
    reward[1] = -2.0
    distance = np.abs(np.arange(13)[:, None] - np.array([12, 8, 4, 0])) / 4
    features = np.maximum(1 - distance, 0)
    return finite_mdp(transition, reward, _only(0, 13), start=12, features=features)


DASHED, SOLID = 0, 1
BAIRD_BEHAVIOUR = (6 / 7, 1 / 7)
"""Probabilities of dashed and solid under the behaviour policy of Baird's example."""
BAIRD_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 10.0, 1.0)
"""Initial weights of Baird's example."""


def baird() -> MDP:
    """`lecture/baird`: Baird's counterexample, S&B section 11.2, figures 11.1 and 11.2.

    Seven states, start in any. The dashed action (0) goes to one of the first six, the
    solid action (1) to the seventh; rewards 0, continuing, γ = 0.99. V = 0. The eight
    features: 2 w_i + w_8 in the first six, w_7 + 2 w_8 in the seventh. The behaviour policy
    is `BAIRD_BEHAVIOUR`, the target policy always solid: with these, semi-gradient TD
    diverges from `BAIRD_WEIGHTS`, although the features can represent V exactly.
    """
    transition = np.zeros((7, 2, 7))
    transition[:, DASHED, :6] = 1 / 6
    transition[:, SOLID, 6] = 1
    features = np.zeros((7, 8))
    features[np.arange(6), np.arange(6)] = 2
    features[:6, 7] = 1
    features[6, 6:] = 1, 2
    start = np.full(7, 1 / 7)
    return finite_mdp(transition, 0.0, np.zeros(7, bool), start, features, gamma=0.99)


# Grids

UP, EAST, DOWN, WEST = (-1, 0), (0, 1), (1, 0), (0, -1)
STEPS = (UP, EAST, DOWN, WEST)
"""The actions of a grid, by number: up, right, down, left, as (row, column)."""
DIAGONAL = ((-1, 1), (1, 1), (1, -1), (-1, -1))

CLIFF_MAP = (
    "............",
    "............",
    "............",
    "SCCCCCCCCCCG",
)
WINDY_MAP = (
    "..........",
    "..........",
    "..........",
    "S......G..",
    "..........",
    "..........",
    "..........",
)
WIND = (0, 0, 0, 1, 1, 1, 2, 2, 1, 0)
PLAIN_MAP = (
    "G...",
    "....",
    "....",
    "...G",
)
MAZE_MAP = (
    ".......#G",
    "..#....#.",
    "S.#....#.",
    "..#......",
    ".....#...",
    ".........",
)


def cliff_walking() -> MDP:
    """`lecture/cliff-walking`: S&B example 6.6.

    4 x 12 cells; start bottom left, goal bottom right, the cliff between them. Reward -1
    per step; a step into the cliff gives -100 and leads back to the start, and the episode
    continues. The best path has 13 steps along the edge, the safe path 17 along the top.
    """
    return grid_world(CLIFF_MAP)


def windy_grid_world(kings_moves: bool = False) -> MDP:
    """`lecture/windy-grid-world`: S&B example 6.5.

    7 x 10 cells; a step from a column also goes up by that column's wind. Reward -1 per
    step. The best path has 15 steps; with `kings_moves`, which adds the diagonal steps
    (exercise 6.9), 7.
    """
    return grid_world(WINDY_MAP, STEPS + DIAGONAL if kings_moves else STEPS, WIND)


def plain_grid_world() -> MDP:
    """`lecture/grid-world`: S&B example 4.1.

    4 x 4 cells, two opposite corners are terminal, start in any other cell. Reward -1 per
    step. Uniform policy: V = -14, -20, -22 along the first row, and so on (figure 4.1).
    """
    return grid_world(PLAIN_MAP)


def maze() -> MDP:
    """`lecture/maze`: the maze of S&B example 8.1, but with reward -1 per step and γ = 1.

    6 x 9 cells. The best path has 14 steps.
    """
    return grid_world(MAZE_MAP)


def grid_world(
    rows: Sequence[str],
    steps: Sequence[tuple[int, int]] = STEPS,
    wind: Sequence[int] = (),
) -> MDP:
    """Grid world from rows of characters: reward -1 per step, γ = 1.

    Args:
      rows: `.` is free, `S` the start (any free cell, if there is none), `G` a goal, which
        ends the episode, `#` a wall, `C` a cliff: reward -100 and back to the start. A
        step into a wall or off the grid does not move.
      steps: (row, column) of each action.
      wind: for each column, the number of cells that a step from it is moved up; none by
        default.

    Returns:
      The MDP, whose states are the free cells and goals in reading order (`grid_cells`).
    """
    cells = grid_cells(rows)
    number = {cell: i for i, cell in enumerate(cells)}
    kinds = np.array([rows[row][column] for row, column in cells])
    starts = np.flatnonzero(kinds == "S")
    if not starts.size:
        starts = np.flatnonzero(kinds == ".")
    height, width = len(rows), len(rows[0])
    transition = np.zeros((len(cells), len(steps), len(cells)))
    reward = np.full((len(cells), len(steps)), -1.0)
    for state, (row, column) in enumerate(cells):
        for action, (down, right) in enumerate(steps):
            up = wind[column] if wind else 0
            to = (
                min(max(row + down - up, 0), height - 1),
                min(max(column + right, 0), width - 1),
            )
            if rows[to[0]][to[1]] == "C":
                reward[state, action] = -100.0
                transition[state, action, starts] = 1 / starts.size
            else:
                transition[state, action, number.get(to, state)] = 1
    start = np.isin(np.arange(len(cells)), starts) / starts.size
    return finite_mdp(transition, reward, kinds == "G", start)


def grid_cells(rows: Sequence[str]) -> list[tuple[int, int]]:
    """(row, column) of each state of `grid_world`."""
    width = len(rows[0])
    if any(len(row) != width or set(row) - set(".SGC#") for row in rows):
        raise InvalidInput(
            "rows: must be of equal length, of the characters . S G C #."
        )
    cells = [(i, j) for i in range(len(rows)) for j in range(width)]
    return [(i, j) for i, j in cells if rows[i][j] not in "C#"]


# The walk on an interval

BORDER = 3.0


class Walk(NamedTuple):
    """`Env.params` of the continuous walk."""

    mean: Any  # of a step's length
    std: Any


WALK = Walk(mean=np.float32(1.0), std=np.float32(0.25))


def continuous_walk() -> Env:
    """`lecture/continuous-walk`: a walk on [-3, 3].

    Observation x, start 0. Action 0 subtracts a number drawn from N(1, 1/16) (standard
    deviation 1/4), action 1 adds one. Reward -1 per action, γ = 1; the episode ends outside
    the interval. Exact values: `continuous_walk_values`.
    """
    return Env(
        params=WALK,
        horizon=None,
        reset=_walk_reset,
        step=_walk_step,
        observation_space=spaces.box(-np.inf, np.inf, (1,)),
        action_space=spaces.Discrete(2),
        model=_walk_model,
    )


def _walk_model(walk: Walk) -> MDP:
    return continuous_walk_mdp(walk=walk)


def _walk_reset(key: Array, walk: Walk) -> tuple[Array, Array]:
    del key, walk
    return jnp.float32(0.0), jnp.zeros(1, jnp.float32)


def _walk_step(key: Array, x: Array, action: Array, walk: Walk):
    length = walk.mean + walk.std * jax.random.normal(key)
    x = x + jnp.where(action >= 1, length, -length).astype(jnp.float32)
    timestep = TimeStep(
        obs=x[None],
        reward=jnp.float32(-1.0),
        terminated=jnp.abs(x) > BORDER,
        truncated=jnp.bool_(False),
        info={},
    )
    return x, timestep


def continuous_walk_mdp(num_points: int = 1001, walk: Walk = WALK) -> MDP:
    """The walk on [-3, 3], with its interval discretised into cells.

    Points x_i divide the interval evenly, ends included; each represents the cell halfway
    to its neighbours. The probability of a step from x_i into a cell is computed from the
    normal distribution function; the mass outside [-3, 3] goes to the last state, which is
    terminal. The error is proportional to the square of the distance of two points.

    Args:
      num_points: the number of points, odd, so that the start 0 is one of them.
      walk: the distribution of its step lengths.

    Returns:
      An MDP of `num_points + 1` states; the points are `features[:-1, 0]`.
    """
    if num_points < 3 or num_points % 2 == 0:
        raise InvalidInput(
            f"num_points = {num_points!r}: must be odd and at least 3, so that the start "
            "is a point."
        )
    from scipy.special import ndtr

    x = np.linspace(-BORDER, BORDER, num_points)
    borders = np.concatenate([x[:1], (x[1:] + x[:-1]) / 2, x[-1:]])
    transition = np.zeros((num_points + 1, 2, num_points + 1))
    for action, direction in ((LEFT, -1.0), (RIGHT, 1.0)):
        mean = x + direction * float(walk.mean)
        below = ndtr((borders - mean[:, None]) / float(walk.std))
        inside = np.diff(below, axis=1)
        transition[:-1, action, :-1] = inside
        transition[:-1, action, -1] = np.maximum(1 - inside.sum(axis=1), 0)
    features = np.append(x, BORDER + 1)[:, None]
    return finite_mdp(
        transition, -1.0, _only(num_points, num_points + 1), num_points // 2, features
    )


def continuous_walk_values(
    policy: Callable[[np.ndarray], Any] | float = 0.5,
    gamma: float = 1.0,
    num_points: int = 1001,
) -> Callable[[Any], np.ndarray]:
    """V of a policy on the continuous walk, as a function of x.

    Args:
      policy: the probability of action 1 (right): a number, or `x [n] -> [n]`.
      gamma: the discount γ.
      num_points: points of the grid, see `continuous_walk_mdp`.

    Returns:
      `x [...] -> V [...]`, linear between the points, for x in [-3, 3].
    """
    mdp = continuous_walk_mdp(num_points)
    x = mdp.features[:-1, 0]
    right = np.broadcast_to(policy(x) if callable(policy) else policy, x.shape)
    right = np.append(right, 0.5)
    table = np.stack([1 - right, right], axis=1)
    return interpolate(x, policy_evaluation(mdp, table, gamma)[:-1])


# Ids

PROBLEMS: dict[str, Callable[..., MDP]] = {
    "lecture/random-walk-5": random_walk_5,
    "lecture/random-walk-19": random_walk_19,
    "lecture/short-corridor": short_corridor,
    "lecture/boyan-chain": boyan_chain,
    "lecture/baird": baird,
    "lecture/grid-world": plain_grid_world,
    "lecture/windy-grid-world": windy_grid_world,
    "lecture/cliff-walking": cliff_walking,
    "lecture/maze": maze,
}
"""Id -> the function that returns the MDP."""


def mdp_of(id: str, **params: Any) -> MDP:
    """The MDP of a finite problem's id, with the parameters that `make` takes.

    Raises:
      InvalidInput: the id is not one of `PROBLEMS`.
    """
    if id not in PROBLEMS:
        raise InvalidInput(
            f"Environment {id!r} has no finite MDP{did_you_mean(id, PROBLEMS)}."
        )
    return PROBLEMS[id](**params)


def _factory(problem: Callable[..., MDP]) -> Callable[..., Env]:
    @functools.wraps(problem)
    def build(**params: Any) -> Env:
        return tabular_env(problem(**params))

    return build


LECTURE: dict[str, Callable[..., Env]] = {
    **{id: _factory(problem) for id, problem in PROBLEMS.items()},
    "lecture/continuous-walk": continuous_walk,
}
"""Id -> the function that builds the environment."""


def _only(state: int, num_states: int) -> np.ndarray:
    """Mask of a single terminal state: bool `[S]`."""
    return np.arange(num_states) == state
