"""A part of `benchmarks/faults.py`: what is bad is refused in one line, the rest not."""

import importlib.util
import sys

import pytest

from jaxrl.algorithms import ALGORITHMS
from tests.support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def faults():
    """`benchmarks/faults.py` as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        path = BENCHMARKS / "faults.py"
        spec = importlib.util.spec_from_file_location("faults", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["faults"] = module
        spec.loader.exec_module(module)
        yield module


def assert_all_passed(row):
    assert row["passed"] == row["trials"] > 0, row.get("failed")


@pytest.mark.full
def test_bad_command_lines_are_refused(faults, tmp_path):
    fields = sum(len(faults.bad_configs.mutations(a)) for a in ALGORITHMS.values())
    row = faults.bad_commands(tmp_path, 3 * fields)
    assert_all_passed(row)
    assert row["each_field"] == 3


@pytest.mark.full
def test_every_bad_value_of_every_field_is_refused(faults, empty_folder):
    algorithm = ALGORITHMS["dqn"]
    for name, endings in faults.bad_configs.mutations(algorithm).items():
        for ending in endings:
            argv = [*faults.bad_configs.base(algorithm, "CartPole-v1"), *ending]
            verdict, said = faults.bad_configs.judge(argv)
            assert verdict == "refused", (name, ending, verdict, said)


@pytest.mark.full
def test_good_command_lines_are_accepted(faults, tmp_path):
    assert_all_passed(faults.good_commands(tmp_path, 15))


def test_damage_and_hostile_files(faults, tmp_path):
    assert_all_passed(faults.damage(tmp_path, 100))
    assert_all_passed(faults.hostile(tmp_path, 100))


def test_a_judge_that_sees(faults, empty_folder, monkeypatch):
    """It does not call everything refused."""
    ppo = ALGORITHMS["ppo"]
    argv = faults.bad_configs.base(ppo, "CartPole-v1")
    assert faults.bad_configs.judge(argv)[0] == "accepted"
    (empty_folder / "run").rename(empty_folder / "left")
    assert faults.bad_configs.judge([*argv, "--gamma", "2"])[0] == "something written"
    monkeypatch.setitem(ALGORITHMS, "ppo", ppo._replace(validate=lambda *a: 1 / 0))
    assert faults.bad_configs.judge(argv)[0] == "exit code 1"
