"""A panel beside the picture: the actions an agent chose from, and its value over time."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl.rendering.drawing.canvas import BLUE, GREY, INK, ORANGE, PALE, PAPER, Canvas

Explained = dict[str, np.ndarray]
"""`Algorithm.explain` of an episode: arrays `[L, ...]`."""

WIDTH, TOP = 1.35, 1.0
"""Width and height of the panel, in units of its height."""
LEFT, RIGHT = 0.08, 1.29


class Explanation(NamedTuple):
    """What the panel shows of an episode of L steps."""

    action: np.ndarray  # [L] or [L, D]
    reward: np.ndarray  # [L]
    value: np.ndarray | None  # [L]
    explained: Explained
    names: Sequence[str]  # of the actions
    bounds: tuple[np.ndarray, np.ndarray] | None  # of continuous actions [D]
    end: str  # how it ended


def draw_panel(episode: Explanation, step: int, size: int) -> np.ndarray:
    """Draw the panel of a step, uint8 `[size, W, 3]`; step L is the end of the episode."""
    canvas = Canvas(size, 0.0, WIDTH, 0.0, TOP, PAPER)
    canvas.line([(0.004, 0.0), (0.004, TOP)], 0.004, PALE)
    over = step >= len(episode.reward)
    total = float(np.sum(episode.reward[:step]))
    words = f"step {step}" + (f", {episode.end}" if over else "")
    canvas.text((LEFT, 0.93), words, 0.058, INK, "lm")
    canvas.text((RIGHT, 0.93), f"return {_short(total)}", 0.058, INK, "rm")
    at = min(step, len(episode.reward) - 1)
    if "spread" in episode.explained:
        _spreads(canvas, episode, at, over)
    elif episode.explained:
        _bars(canvas, episode, at, over)
    if episode.value is not None:
        _values(canvas, episode.value, at)
    return canvas.picture()


def _bars(canvas: Canvas, episode: Explanation, at: int, over: bool) -> None:
    """Draw a bar for each discrete action, the chosen one in another colour and marked."""
    ((kind, rows),) = episode.explained.items()
    row, count = rows[at], rows.shape[-1]
    legal = rows[np.isfinite(rows)]
    low, high = (0.0, 1.0) if kind == "probability" else (legal.min(), legal.max())
    title = (
        "probability of each action" if kind == "probability" else "Q of each action"
    )
    canvas.text((LEFT, 0.84), title, 0.046, GREY, "lm")
    pitch = min(0.42 / count, 0.13)
    for k in range(count):
        y, chosen = 0.78 - pitch * (k + 0.5), not over and k == int(episode.action[at])
        fill = PALE if over else ORANGE if chosen else BLUE
        share = (row[k] - low) / max(high - low, 1e-9) if np.isfinite(row[k]) else 0.0
        edges = (0.44, y - 0.36 * pitch, 1.06, y + 0.36 * pitch)
        canvas.box(*edges, "#F0EDE6", rounded=0.01)
        if share > 0.01:
            canvas.box(*edges[:2], 0.44 + 0.62 * share, edges[3], fill, rounded=0.01)
        if pitch < 0.03:
            continue
        name = ("▸ " if chosen else "") + episode.names[k]
        canvas.text((0.42, y), name, min(0.05, 0.75 * pitch), INK, "rm")
        words = _short(float(row[k])) if kind == "q" else f"{row[k]:.2f}"
        canvas.text((RIGHT, y), words, min(0.05, 0.75 * pitch), INK, "rm")


def _spreads(canvas: Canvas, episode: Explanation, at: int, over: bool) -> None:
    """Draw, for each dimension, the action and one standard deviation around the mean."""
    rows = episode.explained["spread"]  # [L, D, 3]
    chosen = episode.action.reshape(len(rows), -1)
    count = rows.shape[1]
    low, high = episode.bounds or (rows.min((0, 2)), rows.max((0, 2)))
    canvas.text((LEFT, 0.84), "action, ±1 standard deviation", 0.046, GREY, "lm")
    pitch = min(0.42 / count, 0.16)
    for k in range(count):
        y = 0.78 - pitch * (k + 0.5)
        width = max(float(high[k] - low[k]), 1e-9)

        def place(x: Any, low: float = float(low[k]), width: float = width) -> float:
            return 0.24 + 0.82 * float(np.clip((x - low) / width, 0.0, 1.0))

        canvas.box(
            0.24, y - 0.1 * pitch, 1.06, y + 0.1 * pitch, "#F0EDE6", rounded=0.01
        )
        ends = place(rows[at, k, 0]), place(rows[at, k, 2])
        band = PALE if over else BLUE
        canvas.box(ends[0], y - 0.1 * pitch, ends[1], y + 0.1 * pitch, band)
        if not over:
            canvas.circle((place(chosen[at, k]), y), min(0.028, 0.3 * pitch), ORANGE)
        canvas.text((LEFT, y), _short(float(low[k])), 0.042, GREY, "lm")
        canvas.text((RIGHT, y), _short(float(high[k])), 0.042, GREY, "rm")


def _values(canvas: Canvas, value: np.ndarray, at: int) -> None:
    """Draw V over the episode: a line up to now, where there is a dot."""
    canvas.text((LEFT, 0.3), "value", 0.046, GREY, "lm")
    canvas.text((RIGHT, 0.3), _short(float(value[at])), 0.05, INK, "rm")
    low, high = float(value.min()), float(value.max())
    middle = (low + high) / 2
    half = max((high - low) / 2, 1e-6)

    def place(k: int) -> tuple[float, float]:
        x = LEFT + (1.1 - LEFT) * k / max(len(value) - 1, 1)
        return x, 0.14 + 0.085 * (float(value[k]) - middle) / half

    for y, number in ((0.225, high), (0.055, low)):
        canvas.line([(LEFT, y), (1.1, y)], 0.003, PALE)
        canvas.text((RIGHT, y), _short(number), 0.038, GREY, "rm")
    if at:
        canvas.line([place(k) for k in range(at + 1)], 0.008, BLUE)
    canvas.circle(place(at), 0.018, ORANGE)


def _short(x: float) -> str:
    """Format with a few digits and a true minus sign."""
    return f"{x:.4g}".replace("-", "−")
