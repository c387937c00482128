"""Cores and the compilation cache. What JAX does once in a process, in a process each."""

import json

import jax
import pytest

from jaxrl.training import devices
from tests.support.runs import run_python


def answer(program, **environment):
    """What the program prints last, as JSON."""
    return json.loads(run_python(program, **environment)[-1])


COUNT_DEVICES = """
import json, os
os.sched_getaffinity = lambda pid: set(range({cores}))
import jax
from jaxrl.training.devices import use_all_cores
use_all_cores({wanted})
before = len(jax.devices())
use_all_cores(1)  # too late, and no error
print(json.dumps([before, len(jax.devices())]))
"""


@pytest.mark.parametrize("cores, wanted, devices", [(3, None, 3), (2, 5, 5), (4, 1, 1)])
def test_there_is_one_device_for_each_core_or_as_many_as_wanted(cores, wanted, devices):
    program = COUNT_DEVICES.format(cores=cores, wanted=wanted)
    assert answer(program) == [devices, devices]


DETERMINISTIC_FLAGS = """
import json, os
from jaxrl.training.devices import use_deterministic_operations
use_deterministic_operations()
use_deterministic_operations()
import jax
jax.devices()  # XLA refuses flags that it does not know
print(json.dumps(os.environ["XLA_FLAGS"]))
"""


def test_deterministic_operations_are_asked_for_beside_other_flags():
    other = "--xla_cpu_enable_fast_math=false"
    found = answer(DETERMINISTIC_FLAGS, XLA_FLAGS=other)
    assert found == f"{other} {devices.DETERMINISTIC}"
    assert answer(DETERMINISTIC_FLAGS, XLA_FLAGS="") == devices.DETERMINISTIC


TRAIN_CACHED = """
import json
from jaxrl.training.devices import use_compilation_cache
print(use_compilation_cache())
from jaxrl.algorithms.ppo import PPO
from jaxrl.envs import make
from jaxrl.training.loop import train
from tests.support.small import tiny
result = train(PPO, tiny(PPO), make("probe/truncation"), iterations=2, num_seeds=2)
row = result.history[-1]
print(json.dumps({name: x for name, x in row.items() if "/" in name}))
"""


@pytest.mark.full
def test_the_second_run_of_a_program_compiles_nothing(tmp_path):
    def entries():
        # Beside the programs JAX may keep the times of their last use.
        return {p.name for p in tmp_path.iterdir() if not p.name.endswith("-atime")}

    first = answer(TRAIN_CACHED, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    programs = entries()
    assert any("run_population" in name for name in programs)
    assert any("init_population" in name for name in programs)
    second = answer(TRAIN_CACHED, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert entries() == programs
    assert second == {name: x for name, x in first.items() if name in second}
    assert len(second) > 5


@pytest.fixture
def settings(monkeypatch):
    """What would be set in JAX, which stays as it is."""
    changed = {}
    monkeypatch.setattr(
        type(jax.config), "update", lambda _, k, v: changed.update({k: v})
    )
    return changed


def test_where_the_cache_is(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    in_home = tmp_path / "home" / ".cache" / "jaxrl"
    assert devices.use_compilation_cache() == in_home
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert devices.use_compilation_cache() == tmp_path / "xdg" / "jaxrl"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    assert devices.use_compilation_cache() == tmp_path / "jax"
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "jax")
    assert devices.use_compilation_cache(tmp_path / "mine") == tmp_path / "mine"
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "mine")
    for folder in (in_home, tmp_path / "xdg" / "jaxrl", tmp_path / "mine"):
        assert folder.is_dir()


def test_without_a_folder_there_is_no_cache(settings, tmp_path):
    (tmp_path / "file").touch()
    assert devices.use_compilation_cache(tmp_path / "file" / "cache") is None
    assert settings == {}
