"""`benchmarks.fuzz`: nothing that a stranger writes into a file ends in a traceback."""

import os
import random
import time

import pytest

from benchmarks import fuzz
from jaxrl.errors import InvalidInput

CASES = 306


@pytest.mark.full
def test_no_spoiled_file_is_a_fault():
    outcomes = fuzz.fuzz_all(fuzz.READERS, CASES, seed=19)
    assert [fault for outcome in outcomes.values() for fault in outcome.faults] == []
    counts = [outcome.counts for outcome in outcomes.values()]
    assert sum(sum(count.values()) for count in counts) == CASES
    assert all(count["refused"] for count in counts)


def make(folder):
    (folder / "file").write_text("[1]")


def judge(read, tmp_path):
    """What becomes of a case with this reader."""
    (tmp_path / "whole").mkdir()
    make(tmp_path / "whole")
    reader = fuzz.Reader("x", make, ["file"], read)
    here = os.getcwd()
    try:
        found = fuzz.one_case(reader, tmp_path / "whole", tmp_path / "case", "seed")
    finally:
        os.chdir(here)
    return found[0]


def raising(error):
    def read(folder):
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda folder: None, "accepted"),
        (raising(InvalidInput("no")), "refused"),
        (raising(OSError(28, "full", "file")), "refused"),
        (raising(OSError(28, "full")), "fault"),
        (raising(KeyError("a bug")), "fault"),
        (raising(InvalidInput("words " * 2_000)), "fault"),
        (lambda folder: (folder.parent / "outside/victim").write_text("x"), "fault"),
        (lambda folder: (folder.parent / "outside/new").touch(), "fault"),
        (lambda folder: open("new", "w").close(), "fault"),
    ],
)
def test_faults_are_found(read, kind, tmp_path):
    assert judge(read, tmp_path) == kind


def test_files_are_spoiled_in_many_ways(tmp_path):
    said = set()
    for k in range(200):
        file = tmp_path / str(k)
        file.write_text('{"a": [1, {"b": null}], "c": "text"}')
        way = fuzz.spoil(file, tmp_path, random.Random(k), lambda file: None)
        said.add(way.split(":")[-1])
    assert len(said) > 20


def hang(folder):
    """A reader that waits for ever, once its file is spoiled."""
    if (folder / "file").is_symlink() or (folder / "file").read_text() != "[1]":
        time.sleep(60.0)


def die(folder):
    """A reader that takes its process with it, once its file is spoiled."""
    if (folder / "file").is_symlink() or (folder / "file").read_text() != "[1]":
        os._exit(134)


@pytest.mark.full
@pytest.mark.parametrize("read", [hang, die])
def test_a_reader_that_hangs_or_dies_is_a_fault(read, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.5)
    outcome = fuzz.fuzz(fuzz.Reader("x", make, ["file"], read), 3, seed=0)
    assert len(outcome.faults) >= 2
