"""`jaxrl.plotting`: the numbers of a curve, and a picture that shows it."""

import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from jaxrl.plotting import COLOURS, curve, plot_learning_curves

METRIC = "rollout/episode_return"


def rows(*values):
    """Rows of 10 environment steps each, with these values of the metric."""
    return [
        {"env_steps": 10 * (i + 1), "seconds": 0.5 * i, METRIC: value}
        for i, value in enumerate(values)
    ]


def pixels(path, colour):
    """How many pixels of a PNG have a colour."""
    close = np.abs(imread(path)[..., :3] - np.array(to_rgb(colour))) < 0.01
    return int(close.all(axis=-1).sum())


def test_a_curve_is_steps_and_one_column_for_each_seed():
    steps, values = curve(rows([1.0, 2.0], [3.0, 4.0]), METRIC)
    np.testing.assert_array_equal(steps, [10, 20])
    np.testing.assert_array_equal(values, [[1, 2], [3, 4]])


def test_where_no_episode_ended_the_last_value_is_kept():
    _, values = curve(rows([1.0, 2.0], [None, 4.0], [None, None], [5.0, 6.0]), METRIC)
    np.testing.assert_array_equal(values, [[1, 2], [1, 4], [1, 4], [5, 6]])


def test_rows_before_the_first_value_of_every_seed_are_left_out():
    steps, values = curve(rows([None, None], [None, 2.0], [3.0, None]), METRIC)
    np.testing.assert_array_equal(steps, [30])
    np.testing.assert_array_equal(values, [[3, 2]])


def test_a_curve_of_which_nothing_is_known_is_empty():
    steps, values = curve(rows([None, None]), METRIC)
    assert steps.shape == (0,) and values.shape == (0, 2)


def test_a_curve_without_rows_is_empty():
    steps, values = curve([], METRIC)
    assert len(steps) == len(values) == 0


def test_a_number_that_all_seeds_share_is_one_column():
    _, values = curve(rows([1.0, 2.0], [3.0, 4.0]), "seconds")
    np.testing.assert_array_equal(values, [[0.0], [0.5]])


def test_each_run_has_a_curve_of_its_own_colour(tmp_path):
    out = tmp_path / "curves.png"
    plot_learning_curves({"a": rows([1.0], [2.0]), "b": rows([2.0], [1.0])}, out)
    assert pixels(out, COLOURS[0]) > 500 and pixels(out, COLOURS[1]) > 500
    assert pixels(out, COLOURS[2]) == 0


def test_several_seeds_have_a_shaded_interval(tmp_path):
    alone, together = tmp_path / "alone.png", tmp_path / "together.png"
    plot_learning_curves({"a": rows([2.0], [3.0])}, alone)
    plot_learning_curves({"a": rows([1.0, 3.0], [2.0, 4.0])}, together)
    shade = 0.2 * np.array(to_rgb(COLOURS[0])) + 0.8  # over white
    assert pixels(together, shade) > 10_000 > pixels(alone, shade)


def test_a_curve_of_one_chunk_can_be_seen(tmp_path):
    one, none = tmp_path / "one.png", tmp_path / "none.png"
    plot_learning_curves({"a": rows([1.0])}, one)
    plot_learning_curves({"a": rows([None])}, none)
    in_the_legend = 300
    assert pixels(one, COLOURS[0]) > in_the_legend
    assert pixels(none, COLOURS[0]) == 0


@pytest.mark.parametrize("suffix", [".pdf", ".svg"])
def test_vector_formats_are_written(tmp_path, suffix):
    out = tmp_path / f"curve{suffix}"
    plot_learning_curves({"a": rows([1.0], [2.0])}, out)
    assert out.stat().st_size > 1000


def test_drawing_needs_neither_a_display_nor_pyplot(tmp_path):
    out = tmp_path / "curve.png"
    script = f"""
import sys
from pathlib import Path
from jaxrl.plotting import plot_learning_curves
plot_learning_curves({{"a": {rows([1.0], [2.0])!r}}}, Path({str(out)!r}))
assert "matplotlib.pyplot" not in sys.modules
"""
    headless = {
        k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")
    }
    subprocess.run([sys.executable, "-c", script], env=headless, check=True)
    assert pixels(out, COLOURS[0]) > 500
