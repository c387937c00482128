"""`jaxrl.core.run_folders`: what is written into a run folder stays in it."""

import errno
import os

import pytest

from jaxrl.core import run_folders
from jaxrl.errors import InvalidInput


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "wandb").mkdir()
    (run / "config.json").touch()
    return run


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "summary.json.new", "learning_curve.png", "policy", "a/b"]
)
def test_a_link_that_leaves_the_folder_is_refused_by_name(run, name):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(run.parent / "elsewhere")
    with pytest.raises(InvalidInput, match=name), run_folders.lock(run):
        pass


def test_links_that_stay_or_are_not_ours_are_left_alone(run, tmp_path):
    (run / "newest").symlink_to("checkpoints")
    (run / "wandb" / "debug.log").symlink_to(tmp_path / "cache")
    (run / "checkpoints" / "old").symlink_to(tmp_path / "old")
    link = tmp_path / "link"
    link.symlink_to(run)
    with run_folders.lock(link):
        pass


def test_what_can_be_resumed_is_said_with_an_error_of_the_disk(run, tmp_path):
    def fail(folder):
        with pytest.raises(OSError) as failed, run_folders.lock(folder):
            raise OSError(errno.ENOSPC, "full", "file")
        return getattr(failed.value, "__notes__", [])

    assert fail(run) == [f"jaxrl resume {run}"]
    os.mkdir(tmp_path / "other")
    assert fail(tmp_path / "other") == []


def test_a_full_disk_is_no_bad_name(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "full", "file")

    monkeypatch.setattr("pathlib.Path.mkdir", full)
    for out in (tmp_path / "run", None):
        with pytest.raises(OSError):
            run_folders.new(out, "run")
