"""Finished training runs, one for each algorithm, shared by all tests that read them."""

import gc
import os
from pathlib import Path

import jax
import jaxlib
import pytest

from tests.support import costs, runs

MAPS = Path("/proc/self/maps")
MOST_MAPS = 20_000
"""Linux gives a process 65,530 pieces of memory; a compiled program takes several, and
where there is none left LLVM crashes."""


FLAGS = ["--xla_backend_optimization_level=0"]
"""Of the compiler, for the fast tests: most of their time is compiling, and what is
compiled runs for a moment."""
if jaxlib.version.__version_info__ < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # 0.11 has no such flag


def pytest_configure(config):
    """Before JAX starts. Learning tests run long: theirs is the compiler of users."""
    flags = os.environ.get("XLA_FLAGS", "")
    if config.option.markexpr == "not slow" and FLAGS[0] not in flags:
        os.environ["XLA_FLAGS"] = " ".join([flags, *FLAGS])
    if path := os.environ.get(costs.VARIABLE):
        config.pluginmanager.register(costs.Recorder(Path(path)))


@pytest.fixture(scope="session", autouse=True)
def nothing_outside_the_tests(tmp_path_factory):
    """The command line keeps compiled programs: here not in the user's folder. And JAX
    has started, so that no test makes more devices for those after it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("compiled")
        patch.setitem(os.environ, "JAX_COMPILATION_CACHE_DIR", str(folder))
        jax.devices()
        yield


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
        *["--num-seeds", "1", "--num-minibatches", "1", "--gru-size", "4"],
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
