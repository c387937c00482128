"""Finished training runs, one for each algorithm, shared by all tests that read them."""

import gc
import os
import shutil
import tempfile
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import jax
import jaxlib
import pytest

from jaxrl.training import devices
from tests.support import costs, runs
from tools import rotation

MAPS = Path("/proc/self/maps")
MOST_MAPS = 40_000
"""Linux gives a process 65,530 pieces of memory; a compiled program takes several, and
where there is none left LLVM crashes."""


FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE",
    "--xla_cpu_parallel_codegen_split_count=1",
]
"""Of the compiler, for all but the learning tests: most of their time is compiling, and
what is compiled runs for a moment. Of two cores each has a process of tests already."""
if jaxlib.version.__version_info__ < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # 0.11 has no such flag

CACHE = "JAX_COMPILATION_CACHE_DIR"


def pytest_addoption(parser):
    parser.addoption(
        "--third",
        choices=rotation.CHOICES,
        help="of the full and the slow tests only a third: this one, or, for `auto`, that "
        "of the last commit",
    )


def pytest_configure(config):
    """Before JAX starts, and before other processes do, which get the same settings."""
    if "slow" not in config.option.markexpr.replace("not slow", ""):
        use_fast_compiler()
    if CACHE not in os.environ:
        os.environ[CACHE] = tempfile.mkdtemp(prefix="jaxrl-tests-")
        config.add_cleanup(partial(shutil.rmtree, os.environ[CACHE], True))
    devices.use_compilation_cache()
    if path := os.environ.get(costs.VARIABLE):
        config.pluginmanager.register(costs.Recorder(Path(path)))


def use_fast_compiler():
    """Learning tests run long: theirs is the compiler of users."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = " ".join([flags, *(x for x in FLAGS if x not in flags)])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Before pytest looks at the marks."""
    mark_cases(config, items)
    keep_a_third(config, items)


def mark_cases(config, items):
    """All but the `fast_cases` of a test are full. One at least must be fast, or an id has
    changed; unless cases were asked for by their ids."""
    fast = {}
    for item in items:
        cases = [case for mark in item.iter_markers("fast_cases") for case in mark.args]
        if not cases:
            continue
        matches = any(fnmatch(item.callspec.id, case) for case in cases)
        if not matches:
            item.add_marker(pytest.mark.full)
        test = item.nodeid.partition("[")[0]
        fast[test] = fast.get(test, False) or matches
    by_id = any("[" in argument for argument in config.args)
    if not by_id and (without := [test for test in fast if not fast[test]]):
        raise pytest.UsageError(
            f"no case is as `fast_cases` says: {', '.join(without)}"
        )


def keep_a_third(config, items):
    """Of the full and the slow tests; neighbours, which cost alike, are dealt out."""
    number = rotation.third(config.option.third)
    if number is None:
        return
    left_out = set()
    for tier in ("full", "slow"):
        tests = [item for item in items if item.get_closest_marker(tier)]
        left_out |= set(tests) - set(tests[number::3])
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter, config):
    number = rotation.third(config.option.third)
    if number is not None:
        terminalreporter.write_line(
            f"third {number} of 0, 1 and 2: `--third {number}` runs these again"
        )


@pytest.fixture(scope="session", autouse=True)
def jax_has_started():
    """So that no test makes more devices for those after it."""
    jax.devices()


@pytest.fixture(scope="module", autouse=True)
def not_too_many_programs():
    """Forgets what is compiled, after a file of tests, before it is too much."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def ppo_run(tmp_path_factory):
    """PPO on `probe/action`, seeds 0 and 1."""
    return runs.train(tmp_path_factory.mktemp("ppo") / "run", "ppo")


@pytest.fixture(scope="session")
def reinforce_run(tmp_path_factory):
    """REINFORCE on `probe/action`, seed 0."""
    return runs.train(tmp_path_factory.mktemp("reinforce") / "run", "reinforce")


@pytest.fixture(scope="session")
def dqn_run(tmp_path_factory):
    """DQN on `probe/action`, seed 0."""
    return runs.train(tmp_path_factory.mktemp("dqn") / "run", "dqn")


@pytest.fixture(scope="session")
def gru_run(tmp_path_factory):
    """PPO with a GRU and both normalisers on `probe/memory`, seed 0."""
    return runs.train(
        tmp_path_factory.mktemp("gru") / "run",
        "ppo",
        *["--num-seeds", "1", "--num-minibatches", "1", "--network", "gru(size=4)"],
        *["--normalize-obs", "--normalize-reward"],
        env="probe/memory",
    )


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """A new working directory with nothing in it."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def sft_run(tmp_path_factory):
    """Language models of the small world, seeds 0 and 1."""
    return runs.rlhf(tmp_path_factory.mktemp("sft") / "run", "sft", "--num-seeds", "2")


@pytest.fixture(scope="session")
def reward_run(sft_run, tmp_path_factory):
    """A reward model of the small world's pairs, from the first of them."""
    out = tmp_path_factory.mktemp("reward") / "run"
    return runs.rlhf(out, "reward", "--base", str(sft_run))
