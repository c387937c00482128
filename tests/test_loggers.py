"""`jaxrl.loggers`: the metrics file and the progress bar."""

import json

import pytest

from jaxrl.loggers import MetricsFile, ProgressBar, mean_return, read_metrics

ROW = {"iteration": 1, "env_steps": 50, "rollout/episode_return": [1.0, 2.0]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_a_row_is_a_whole_line_in_the_file_at_once(path):
    metrics = MetricsFile(path)
    metrics.write(ROW)
    assert path.read_text() == json.dumps(ROW) + "\n"
    metrics.close()


def test_what_was_written_is_read(path):
    metrics = MetricsFile(path)
    rows = [ROW, ROW | {"iteration": 2, "rollout/episode_return": [None, 0.1]}]
    for row in rows:
        metrics.write(row)
    metrics.close()
    assert read_metrics(path) == rows


def test_a_file_is_continued_not_overwritten(path):
    for _ in range(2):
        metrics = MetricsFile(path)
        metrics.write(ROW)
        metrics.close()
    assert read_metrics(path) == [ROW, ROW]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_null(path, value):
    metrics = MetricsFile(path)
    metrics.write(ROW | {"loss": [value, 1.0], "seconds": value})
    metrics.close()
    assert read_metrics(path) == [ROW | {"loss": [None, 1.0], "seconds": None}]


def test_half_a_line_is_an_error(path):
    path.write_text('{"iteration": 1}\n{"iterat')
    with pytest.raises(ValueError):
        read_metrics(path)


@pytest.mark.parametrize(
    ("by_seed", "mean"),
    [([1.0, 3.0], 2.0), ([1.0, None], 1.0), ([None, None], None)],
)
def test_the_mean_return_is_over_the_seeds_that_have_one(by_seed, mean):
    assert mean_return({"rollout/episode_return": by_seed}) == mean


def test_the_bar_shows_steps_and_return(capsys):
    bar = ProgressBar(100)
    bar.update(ROW)
    bar.update(ROW | {"env_steps": 100, "rollout/episode_return": [7.0, 8.0]})
    bar.close()
    shown = capsys.readouterr().err
    assert "100%" in shown and "100/100" in shown and "return 7.5" in shown


def test_the_bar_keeps_its_return_where_no_episode_ended(capsys):
    bar = ProgressBar(100)
    bar.update(ROW)
    bar.update(ROW | {"env_steps": 60, "rollout/episode_return": [None, None]})
    bar.close()
    shown = capsys.readouterr().err
    assert "60%" in shown and "return 1.5" in shown


def test_a_disabled_bar_is_silent(capsys):
    bar = ProgressBar(100, disable=True)
    bar.update(ROW)
    bar.close()
    assert capsys.readouterr().err == ""
