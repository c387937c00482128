"""Drawings of textbook problems: grids, states in a row, the walk on an interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrl.envs.lecture import BORDER, grid_cells
from jaxrl.rendering.drawing.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PAPER,
    Canvas,
)

GRID_COLOURS = {"#": INK, "C": ORANGE, "G": GREEN}


def grid(
    state: Any,
    params: Any,
    size: int,
    rows: Sequence[str],
    wind: Sequence[int] = (),
) -> np.ndarray:
    """Draw the map of a `grid_world`, with walls, cliff and goal, and the agent."""
    del params
    height, width = len(rows), len(rows[0])
    canvas = Canvas(size, -0.1, width + 0.1, -0.1 - 0.8 * bool(wind), height + 0.1)
    for i, row in enumerate(rows):
        for j, kind in enumerate(row):
            y = height - 1 - i
            edges = (j + 0.03, y + 0.03, j + 0.97, y + 0.97)
            canvas.box(*edges, GRID_COLOURS.get(kind, "#EFEDE6"), rounded=0.08)
            if kind in "SG":
                fill = PAPER if kind == "G" else GREY
                canvas.text((j + 0.5, y + 0.5), kind, 0.45, fill)
    for j, strength in enumerate(wind):
        words = f"↑{strength}" if strength else "0"
        canvas.text((j + 0.5, -0.45), words, 0.36, INK if strength else GREY)
    i, j = grid_cells(rows)[int(state)]
    canvas.circle((j + 0.5, height - 0.5 - i), 0.32, BLUE)
    return canvas.picture()


def chain(state: Any, params: Any, size: int, order: Sequence[int]) -> np.ndarray:
    """Draw states in a row, by their numbers from left to right; squares are terminal.

    Where both ends are one state, both are marked: the state does not tell them apart.
    """
    high = max(1.0, len(order) / 7)  # a long row is drawn smaller
    canvas = Canvas(size, -0.7, len(order) - 0.3, -high, high)
    canvas.line([(0.0, 0.0), (len(order) - 1.0, 0.0)], 0.05, GREY)
    for x, number in enumerate(order):
        here = number == int(state)
        if params.terminal[number]:
            edges = (x - 0.3, -0.3, x + 0.3, 0.3)
            canvas.box(*edges, BLUE if here else GREY, rounded=0.06)
        else:
            canvas.circle((x, 0.0), 0.38, BLUE if here else PALE, outline=GREY)
            canvas.text((x, 0.0), str(number), 0.32, PAPER if here else INK)
    return canvas.picture()


def walk(state: Any, params: Any, size: int) -> np.ndarray:
    """Draw the interval, its borders, and the walker."""
    del params
    canvas = Canvas(size, -BORDER - 2.2, BORDER + 2.2, -1.3, 1.3)
    canvas.line([(-BORDER - 2.1, 0.0), (BORDER + 2.1, 0.0)], 0.03, PALE)
    canvas.line([(-BORDER, 0.0), (BORDER, 0.0)], 0.06, GREY)
    for x in (-BORDER, BORDER):
        canvas.line([(x, -0.35), (x, 0.35)], 0.06, ORANGE)
    for x in np.arange(-BORDER, BORDER + 1):
        canvas.line([(x, -0.1), (x, 0.1)], 0.03, GREY)
        canvas.text((x, -0.6), f"{x:g}".replace("-", "−"), 0.3, INK)
    canvas.circle((float(state), 0.0), 0.24, BLUE)
    return canvas.picture()
