"""`benchmarks.fuzz`: nothing that a stranger writes into a file ends in a traceback."""

import json
import os
import random
import time

import pytest

from benchmarks import fuzz, hostile
from jaxrl.errors import InvalidInput
from tests.support.paths import ROOT


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
        (lambda folder: (folder.parent / "new").mkdir(), "fault"),
        (raising(InvalidInput(" ")), "fault"),
        (raising(BaseException("a panic")), "fault"),
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
def test_a_reader_that_hangs_or_dies_is_a_fault(monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.5)
    readers = [fuzz.Reader(f.__name__, make, ["file"], f) for f in (hang, die)]
    outcomes = fuzz.fuzz_all(readers, 3, seed=0)
    for name, reason in {"hang": "more than 0.5 s", "die": "died"}.items():
        assert len(outcomes[name].faults) >= 2
        assert all(f"{name}, seed 0/" in x for x in outcomes[name].faults)
        assert all(reason in x for x in outcomes[name].faults)


@pytest.mark.parametrize("name", hostile.READERS)
def test_equal_seeds_draw_equal_files(name):
    draw = hostile.READERS[name].draw
    first, again, other = (
        [draw(random.Random(seed + k)) for k in range(4)] for seed in (0, 0, 9)
    )
    assert first == again and first != other


@pytest.mark.full
def test_what_each_reader_is_given_is_read_whole():
    outcomes = fuzz.fuzz_all(fuzz.READERS, 1, seed=0)
    assert outcomes.keys() == {reader.name for reader in fuzz.READERS}
    assert [fault for found in outcomes.values() for fault in found.faults] == []


def test_ci_runs_300_cases_of_each_reader():
    script = (ROOT / ".ci" / "run").read_text()
    assert "\nstep fuzz python -m benchmarks.fuzz\n" in script
    assert fuzz.options([]).cases >= 300


def test_the_committed_long_form_has_no_fault():
    rows = json.loads((ROOT / "benchmarks/results/fuzz.json").read_text())["rows"]
    assert rows.keys() == {reader.name for reader in fuzz.READERS}
    assert all(row.keys() == {"accepted", "refused"} for row in rows.values())
    assert sum(sum(row.values()) for row in rows.values()) >= 5_000
