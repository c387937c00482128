"""`jaxrl.plotting`: the numbers of a curve, and a picture that shows it."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from jaxrl import plotting
from jaxrl.plotting import COLOURS, curve, plot_learning_curves
from jaxrl.sweeps.results import MAX_CURVES
from tests.support.paths import ROOT

METRIC = "rollout/episode_return"


def rows(*values):
    """Rows of 10 environment steps each, with these values of the metric."""
    return [
        {"env_steps": 10 * (i + 1), "seconds": 0.5 * i, METRIC: value}
        for i, value in enumerate(values)
    ]


def pixels(path, colour):
    """Number of pixels of a PNG with a colour."""
    close = np.abs(imread(path)[..., :3] - np.array(to_rgb(colour))) < 0.01
    return int(close.all(axis=-1).sum())


@pytest.mark.fast_cases("curves", "intervals", "profiles")
@pytest.mark.parametrize(
    ("draw", "of_seeds"),
    [
        (plot_learning_curves, lambda values: rows(values)),
        (plotting.plot_intervals, list),
        (plotting.plot_profiles, list),
        (plotting.plot_efficiency, lambda values: {"env": rows(values, values)}),
    ],
    ids=["curves", "intervals", "profiles", "efficiency"],
)
def test_a_figure_says_where_an_interval_is_of_few_seeds(monkeypatch, draw, of_seeds):
    figures = []
    monkeypatch.setattr(
        plotting, "save_figure", lambda figure, _: figures.append(figure)
    )
    for count in (3, 10):
        draw(
            {"ten": of_seeds([1.0, 2.0] * 5), "label": of_seeds([1.0] * count)}, "x.png"
        )
    caveats = [figure.axes[0].get_xlabel().partition("\n")[2] for figure in figures]
    assert caveats == ["95 % interval, too narrow for 3 seeds", ""]


def test_so_do_figures_of_settings_and_of_several_environments(monkeypatch):
    figures = []
    monkeypatch.setattr(
        plotting, "save_figure", lambda figure, _: figures.append(figure)
    )
    plotting.plot_slices([({"gamma": 0.9}, [1.0, 2.0])], ["gamma"], "x.png")
    ends = {"score_iqm_low": 0.1, "score_iqm_high": 0.3, "score_gap_low": 0.6}
    ends |= {"score_iqm": 0.2, "score_gap": 0.8, "score_gap_high": 0.9}
    plotting.plot_aggregates([{"label": "ppo", "seeds": 2} | ends], "x.png")
    for figure in figures:
        assert figure.axes[0].get_xlabel().endswith("too narrow for 2 seeds")


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


@pytest.mark.full
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


def luminance(colour):
    """Relative luminance by WCAG 2."""
    x = np.array(to_rgb(colour))
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_no_two_series_need_their_colour_to_be_told_apart():
    found = [plotting.line_style(i) for i in range(28)]
    in_grey = {(str(x["linestyle"]), x["marker"]) for x in found}
    assert len(in_grey) == len(found)
    assert len({x["marker"] for x in found[:7]}) == 7
    assert len({str(x["linestyle"]) for x in found[:4]}) == 4


def test_no_two_curves_of_a_figure_share_a_colour():
    colours = [to_rgb(plotting.line_style(i)["color"]) for i in range(MAX_CURVES)]
    pairs = itertools.combinations(np.array(colours), 2)
    assert min(np.linalg.norm(a - b) for a, b in pairs) > 0.12


@pytest.mark.parametrize("colour", plotting.LINES)
def test_the_colour_of_a_line_has_a_contrast_of_three_to_white_paper(colour):
    assert 1.05 / (luminance(colour) + 0.05) >= 3


def test_black_stands_out_of_what_is_pale():
    pale, black = (luminance(c) + 0.05 for c in (plotting.PALE, plotting.BLACK))
    assert pale / black >= 7


def test_the_letters_of_a_pdf_are_letters_of_an_embedded_font(tmp_path):
    out = tmp_path / "curves.pdf"
    plot_learning_curves({"a": rows([1.0], [2.0])}, out)
    content = out.read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content


def test_the_style_ends_with_the_figure(tmp_path):
    before = dict(rcParams)
    plot_learning_curves({"a": rows([1.0], [2.0])}, tmp_path / "curves.png")
    assert dict(rcParams) == before


def test_axes_speak_to_people(tmp_path):
    out = tmp_path / "curves.svg"
    million = [row | {"env_steps": row["env_steps"] * 50_000} for row in rows([1], [2])]
    with plotting.style():
        rcParams["svg.fonttype"] = "none"
        plot_learning_curves({"a": million}, out)
    text = out.read_text()
    assert "episode return" in text and METRIC not in text
    assert ">1M<" in text and ">600k<" in text


def test_names_are_of_metrics_that_there_are():
    page = ROOT / "docs" / "metrics.md"
    for name in plotting.NAMES:
        assert f"`{name}`" in page.read_text(), name


def test_ids_and_labels_are_no_formulas(tmp_path):
    rows = [{"env_steps": n, "rollout/episode_return": [1.0]} for n in (1, 2)]
    out = tmp_path / "a.png"
    plotting.plot_learning_curves({r"$\nothing$": rows}, out, title=r"$\frac$")
    assert out.stat().st_size > 0
