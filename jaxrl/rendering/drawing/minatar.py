"""Drawings of the MinAtar games, 10 x 10 cells, from gymnax's states.

Objects of different channels of the observation differ in shape, not in colour alone.
Faint marks are the trails that show where things come from.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxrl.rendering.drawing.canvas import (
    DUSK,
    GREEN,
    GREY,
    NIGHT,
    ORANGE,
    PALE,
    PINK,
    SKY,
    YELLOW,
    Canvas,
)

CELLS = 10
FAINT = "#47525E"


def breakout(state: Any, params: Any, size: int) -> np.ndarray:
    """Draw bricks, the ball with its trail, and the paddle."""
    del params
    canvas = _board(size)
    for row, column in np.argwhere(np.asarray(state.brick_map) > 0):
        fill = (PINK, ORANGE, YELLOW)[(row - 1) % 3]
        _tile(canvas, column, row, fill, 0.88, 0.88)
    _disc(canvas, int(state.last_x), int(state.last_y), FAINT, 0.16)
    _disc(canvas, int(state.ball_x), int(state.ball_y), PALE, 0.3)
    x = float(state.pos)
    canvas.box(x + 0.02, 0.3, x + 0.98, 0.7, SKY, rounded=0.18)
    return canvas.picture()


def asterix(state: Any, params: Any, size: int) -> np.ndarray:
    """Draw the player (disc), gold (diamond) and enemies (cross)."""
    del params
    canvas = _board(size)
    for x, y, moves_right, is_gold, is_there in np.asarray(state.entities):
        if not is_there:
            continue
        _trail(canvas, x, y, moves_right)
        if is_gold:
            _diamond(canvas, x, y, YELLOW)
        else:
            _cross(canvas, x, y, ORANGE)
    _disc(canvas, int(state.player_x), int(state.player_y), SKY, 0.38)
    return canvas.picture()


def freeway(state: Any, params: Any, size: int) -> np.ndarray:
    """Draw the chicken (disc), and cars, with longer tails for faster ones."""
    del params
    canvas = _board(size)
    for lane in range(1, CELLS - 2):
        dashes = np.arange(0.25, CELLS, 1.0)
        for x in dashes:
            y = CELLS - 1.0 - lane
            canvas.line([(x, y), (x + 0.5, y)], 0.03, FAINT)
    for x, y, _, speed in np.asarray(state.cars):
        # Of five speeds 1 is the fastest: a car moves once in so many steps.
        _tail(canvas, x, y, speed > 0, 0.15 * (6 - abs(int(speed))))
        _tile(canvas, x, y, ORANGE, 0.8, 0.52)
        front = x + (0.72 if speed > 0 else 0.28)
        canvas.circle((front, CELLS - 0.5 - y), 0.1, NIGHT)
    _disc(canvas, 4, int(state.pos), YELLOW, 0.36)
    return canvas.picture()


def seaquest(state: Any, params: Any, size: int) -> np.ndarray:
    """Draw the submarine and its bullets, divers, fish and enemy submarines.

    Below are the oxygen left and the divers on board.
    """
    canvas = _board(size)
    canvas.box(0, CELLS - 1, CELLS, CELLS, "#274156")
    for x, y, right, *_ in _first(state.divers, state.divers_count):
        _trail(canvas, x, y, right)
        _diamond(canvas, x, y, GREEN)
    for x, y, right, *_ in _first(state.e_fish, state.e_fish_count):
        _trail(canvas, x, y, right)
        _fish(canvas, x, y, bool(right), PINK)
    for x, y, right, *_ in _first(state.e_subs, state.e_subs_count):
        _trail(canvas, x, y, right)
        _submarine(canvas, x, y, bool(right), ORANGE)
    for x, y, *_ in _first(state.f_bullets, state.f_bullet_count):
        _bullet(canvas, x, y, SKY)
    for x, y, *_ in _first(state.e_bullets, state.e_bullet_count):
        _bullet(canvas, x, y, ORANGE)
    x, y = int(state.sub_x), int(state.sub_y)
    _submarine(canvas, x, y, bool(state.sub_or), SKY)
    canvas.box(0, 0, CELLS, 1, NIGHT)
    oxygen = max(float(state.oxygen), 0.0) / float(params.max_oxygen)
    canvas.box(0.2, 0.35, 5.2, 0.65, FAINT, rounded=0.15)
    if oxygen > 0:
        canvas.box(0.2, 0.35, 0.2 + 5 * max(oxygen, 0.07), 0.65, SKY, rounded=0.15)
    for k in range(max(int(state.diver_count), 0)):
        _diamond(canvas, 5.6 + 0.7 * k, CELLS - 1, GREEN, 0.24)
    return canvas.picture()


def space_invaders(state: Any, params: Any, size: int) -> np.ndarray:
    """Draw aliens, both kinds of bullets, and the cannon."""
    del params
    canvas = _board(size)
    for y, x in np.argwhere(np.asarray(state.alien_map) > 0):
        _alien(canvas, x, y, PINK)
    for y, x in np.argwhere(np.asarray(state.f_bullet_map) > 0):
        _upright(canvas, x, y, SKY)
    for y, x in np.argwhere(np.asarray(state.e_bullet_map) > 0):
        _upright(canvas, x, y, ORANGE)
    x = float(state.pos)
    canvas.box(x + 0.06, 0.12, x + 0.94, 0.5, SKY, rounded=0.1)
    canvas.box(x + 0.38, 0.4, x + 0.62, 0.88, SKY, rounded=0.06)
    return canvas.picture()


def _board(size: int) -> Canvas:
    canvas = Canvas(size, 0, CELLS, 0, CELLS, NIGHT)
    for k in range(1, CELLS):
        canvas.line([(k, 0), (k, CELLS)], 0.02, DUSK)
        canvas.line([(0, k), (CELLS, k)], 0.02, DUSK)
    return canvas


def _first(rows: Any, count: Any) -> Iterable[Any]:
    """Return the rows of a buffer that are in use."""
    return np.asarray(rows)[: int(count)]


def _centre(x: float, y: float) -> tuple[float, float]:
    """Centre of the cell in column x and row y, rows counted from the top."""
    return x + 0.5, CELLS - 0.5 - y


def _tile(
    canvas: Canvas, x: float, y: float, fill: str, width: float, height: float
) -> None:
    a, b = _centre(x, y)
    edges = (a - width / 2, b - height / 2, a + width / 2, b + height / 2)
    canvas.box(*edges, fill, rounded=0.2)


def _disc(canvas: Canvas, x: float, y: float, fill: str, radius: float) -> None:
    canvas.circle(_centre(x, y), radius, fill)


def _diamond(
    canvas: Canvas, x: float, y: float, fill: str, radius: float = 0.36
) -> None:
    a, b = _centre(x, y)
    corners = [(a - radius, b), (a, b + radius), (a + radius, b), (a, b - radius)]
    canvas.polygon(corners, fill)


def _cross(canvas: Canvas, x: float, y: float, fill: str) -> None:
    a, b = _centre(x, y)
    canvas.line([(a - 0.25, b - 0.25), (a + 0.25, b + 0.25)], 0.18, fill)
    canvas.line([(a - 0.25, b + 0.25), (a + 0.25, b - 0.25)], 0.18, fill)


def _trail(canvas: Canvas, x: float, y: float, moves_right: Any) -> None:
    """Draw a mark in the cell that something comes from, if that is on the board."""
    behind = x - 1 if moves_right else x + 1
    if 0 <= behind < CELLS:
        _disc(canvas, behind, y, FAINT, 0.12)


def _tail(canvas: Canvas, x: float, y: float, moves_right: bool, length: float) -> None:
    a, b = _centre(x, y)
    away = -1 if moves_right else 1
    ends = [(a + 0.4 * away, b), (a + (0.5 + length) * away, b)]
    canvas.line(ends, 0.12, GREY)


def _fish(canvas: Canvas, x: float, y: float, right: bool, fill: str) -> None:
    a, b = _centre(x, y)
    nose, tail = (0.4, -0.4) if right else (-0.4, 0.4)
    corners = [(a + nose, b), (a, b + 0.28), (a + tail / 2, b)]
    canvas.polygon([*corners, (a, b - 0.28)], fill)
    canvas.polygon(
        [(a + tail / 4, b), (a + tail, b + 0.24), (a + tail, b - 0.24)], fill
    )


def _submarine(canvas: Canvas, x: float, y: float, right: bool, fill: str) -> None:
    a, b = _centre(x, y)
    canvas.box(a - 0.46, b - 0.24, a + 0.46, b + 0.12, fill, rounded=0.17)
    tower = a + (0.08 if right else -0.08)
    canvas.box(tower - 0.14, b, tower + 0.14, b + 0.34, fill, rounded=0.06)
    canvas.circle((a + (0.24 if right else -0.24), b - 0.06), 0.08, NIGHT)


def _bullet(canvas: Canvas, x: float, y: float, fill: str) -> None:
    a, b = _centre(x, y)
    canvas.box(a - 0.28, b - 0.08, a + 0.28, b + 0.08, fill, rounded=0.08)


def _upright(canvas: Canvas, x: float, y: float, fill: str) -> None:
    a, b = _centre(x, y)
    canvas.box(a - 0.08, b - 0.28, a + 0.08, b + 0.28, fill, rounded=0.08)


def _alien(canvas: Canvas, x: float, y: float, fill: str) -> None:
    a, b = _centre(x, y)
    canvas.box(a - 0.34, b - 0.12, a + 0.34, b + 0.32, fill, rounded=0.16)
    for side in (-1, 1):
        canvas.box(a + 0.22 * side - 0.09, b - 0.34, a + 0.22 * side + 0.09, b, fill)
        canvas.circle((a + 0.15 * side, b + 0.1), 0.07, NIGHT)
