"""Picture files: GIF and PNG by Pillow, MP4 by the ffmpeg of the extra `video`."""

import importlib.util
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxrl.core.files import replacing
from jaxrl.errors import install_command, require
from jaxrl.rendering.drawing.canvas import INK, Canvas

SUFFIXES = (".gif", ".mp4", ".png")
FASTEST_GIF = 50
"""Pictures per second. Viewers slow down a GIF that is faster."""


def check_file(out: Path, fps: int) -> None:
    """Raise `InvalidInput` if such a file cannot be written, before anything runs."""
    require(
        out.suffix in SUFFIXES,
        f"out = {str(out)!r}: must end in {', '.join(SUFFIXES)}.",
    )
    require(
        out.parent.is_dir(),
        f"out = {str(out)!r}: there is no folder {str(out.parent)!r}.",
    )
    require(not out.is_dir(), f"out = {str(out)!r}: is a folder, give a file.")
    require(
        out.suffix != ".gif" or fps <= FASTEST_GIF,
        f"fps = {fps}: a GIF shows {FASTEST_GIF} pictures a second at most, give --fps "
        f"{FASTEST_GIF} or an .mp4.",
    )
    require(
        out.suffix != ".mp4" or importlib.util.find_spec("imageio_ffmpeg") is not None,
        f"out = {str(out)!r}: writing MP4 is not installed: "
        f"{install_command('video')}, or give a .gif.",
    )


def write_moving(frames: Iterable[np.ndarray], out: Path, fps: int) -> None:
    """Write frames uint8 `[H, W, 3]` as GIF or MP4, atomically."""
    with replacing(out) as file:
        write = _write_gif if out.suffix == ".gif" else _write_mp4
        write(iter(frames), file, fps)


def _write_gif(frames: Iterator[np.ndarray], file: IO[bytes], fps: int) -> None:
    """Write a GIF with one palette for all, so that unchanged pixels cost nothing."""
    from PIL import Image

    first = list(itertools.islice(frames, 64))
    sample = np.concatenate(first[:: max(len(first) // 8, 1)])
    palette = Image.fromarray(sample).quantize(64)

    def quantize(frame: np.ndarray) -> Any:
        image = Image.fromarray(frame)
        return image.quantize(palette=palette, dither=Image.Dither.NONE)

    images = (quantize(frame) for frame in itertools.chain(first, frames))
    next(images).save(
        file,
        format="GIF",
        save_all=True,
        append_images=images,
        duration=max(round(100 / fps), 2) * 10,
        loop=0,
        optimize=True,  # unchanged pixels become transparent
    )


def _write_mp4(frames: Iterator[np.ndarray], file: IO[bytes], fps: int) -> None:
    import imageio_ffmpeg

    first = _pad_to_even(next(frames))
    height, width, _ = first.shape
    writer = imageio_ffmpeg.write_frames(
        file.name, (width, height), fps=fps, macro_block_size=2, quality=7
    )
    with warnings.catch_warnings():
        # JAX warns of any fork; this one becomes ffmpeg at once and shares no lock.
        warnings.filterwarnings("ignore", r"os\.fork\(\)", RuntimeWarning)
        writer.send(None)
    try:
        for frame in itertools.chain([first], map(_pad_to_even, frames)):
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()


def _pad_to_even(frame: np.ndarray) -> np.ndarray:
    """Repeat the last row and column where needed: H.264 wants even sizes."""
    height, width, _ = frame.shape
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def write_filmstrip(
    rows: Sequence[Sequence[tuple[str, np.ndarray]]], out: Path
) -> None:
    """Write a PNG with a row of pictures for each episode, and text below each picture."""
    from PIL import Image

    height, width, _ = rows[0][0][1].shape
    gap, below = max(height // 24, 4), max(height // 7, 14)
    # Wide pictures in fewer columns, so that the strip is legible on a page.
    columns = next(
        n for n, most in ((6, 2.0), (3, 4.5), (2, np.inf)) if width <= most * height
    )
    rows = [row[k : k + columns] for row in rows for k in range(0, len(row), columns)]
    size = (columns * (width + gap) + gap, len(rows) * (height + below) + gap)
    strip = Image.new("RGB", size, "white")
    for i, row in enumerate(rows):
        for j, (words, frame) in enumerate(row):
            place = (gap + j * (width + gap), gap + i * (height + below))
            strip.paste(Image.fromarray(frame), place)
            half = 0.5 * width / below
            caption = Canvas(below, -half, half, 0, 1, "white")
            caption.text((0.0, 0.5), words, 0.6, INK)
            words_below = Image.fromarray(caption.picture()[:, :width])
            strip.paste(words_below, (place[0], place[1] + height))
    with replacing(out) as file:
        strip.save(file, format="PNG", optimize=True)
