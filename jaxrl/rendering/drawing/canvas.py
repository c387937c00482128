"""A canvas in the units of a problem, with smooth edges, drawn by Pillow."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Point = tuple[float, float]

# Okabe & Ito (2008), "Color Universal Design", as in the figures.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PINK, YELLOW, SKY = "#CC79A7", "#E69F00", "#56B4E9"
INK, GREY, PALE, PAPER = "#2B2B2B", "#8C8A84", "#D9D6CE", "#FBFAF7"
NIGHT, DUSK = "#12181F", "#1C2530"

FINER = 3
"""Factor by which a picture is drawn larger, then reduced: edges become smooth."""


class Canvas:
    """A canvas in units of the problem, y upwards; line widths are in these units too."""

    def __init__(
        self,
        size: int,
        left: float,
        right: float,
        bottom: float,
        top: float,
        background: str = PAPER,
    ) -> None:
        """Create a canvas `size` pixels high that shows [left, right] x [bottom, top]."""
        from PIL import Image, ImageDraw

        self._left, self._top = left, top
        self._scale = FINER * size / (top - bottom)
        width = round((right - left) / (top - bottom) * size)
        self._image = Image.new("RGB", (FINER * width, FINER * size), background)
        self._draw = ImageDraw.Draw(self._image)

    def picture(self) -> np.ndarray:
        """Return the picture, uint8 `[H, W, 3]`."""
        return np.asarray(self._image.reduce(FINER))

    def polygon(self, corners: Sequence[Point], fill: str) -> None:
        self._draw.polygon([self._at(p) for p in corners], fill=fill)

    def line(self, points: Sequence[Point], width: float, fill: str) -> None:
        """Draw a line through the points, with round ends and corners."""
        pixels = [self._at(p) for p in points]
        self._draw.line(pixels, fill, max(round(width * self._scale), 1), joint="curve")
        for point in (points[0], points[-1]):
            self.circle(point, width / 2, fill)

    def circle(
        self, centre: Point, radius: float, fill: str, outline: str | None = None
    ) -> None:
        """Draw a disc, optionally with an outline of a quarter of its radius."""
        (x, y), r = self._at(centre), radius * self._scale
        width = max(round(r / 4), 1) if outline else 0
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill, outline, width)

    def box(
        self,
        left: float,
        bottom: float,
        right: float,
        top: float,
        fill: str | None,
        rounded: float = 0.0,
        outline: str | None = None,
        width: float = 0.0,
    ) -> None:
        """Draw a rectangle whose corners are rounded with that radius."""
        corners = (*self._at((left, top)), *self._at((right, bottom)))
        radius, line = rounded * self._scale, round(width * self._scale)
        self._draw.rounded_rectangle(corners, radius, fill, outline, max(line, 1))

    def arc(
        self,
        centre: Point,
        radius: float,
        angles: tuple[float, float],
        width: float,
        fill: str,
    ) -> None:
        """Draw an arc between two angles, in radians, counter-clockwise from the right."""
        start, end = angles
        each = np.linspace(start, end, max(int(abs(end - start) / 0.05), 2))
        self.line([polar(centre, radius, a) for a in each], width, fill)

    def text(self, at: Point, words: str, height: float, fill: str, anchor: str = "mm"):
        """Draw text whose letters are about `height` high; anchors are Pillow's."""
        self._draw.text(
            self._at(at), words, fill, font(round(height * self._scale)), anchor
        )

    def _at(self, point: Point) -> Point:
        x, y = point
        return (x - self._left) * self._scale, (self._top - y) * self._scale


def polar(centre: Point, radius: float, angle: float) -> Point:
    """Return the point at a distance and an angle (radians) from the centre."""
    x, y = centre
    return x + radius * math.cos(angle), y + radius * math.sin(angle)


def rotate(corners: Sequence[Point], angle: float, to: Point) -> list[Point]:
    """Rotate points about the origin, then move them."""
    cos, sin = math.cos(angle), math.sin(angle)
    return [(to[0] + cos * x - sin * y, to[1] + sin * x + cos * y) for x, y in corners]


@functools.cache
def font(size: int) -> Any:
    """Load DejaVu Sans, which is part of matplotlib."""
    import matplotlib
    from PIL import ImageFont

    path = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(path, max(size, 4))
