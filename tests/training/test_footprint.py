"""Bytes needed and bytes there are, before anything compiles."""

import re
from functools import partial

import jax
import pytest

from jaxrl.algorithms.dqn import DQN
from jaxrl.algorithms.ppo import PPO
from jaxrl.cli import main
from jaxrl.core.config import with_floats
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.training import footprint, loop, population
from tests.support.runs import train_argv
from tests.support.small import tiny

ENV = make("probe/action")


@pytest.mark.full
@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=lambda a: a.name)
def test_the_state_is_counted_byte_by_byte(algorithm):
    config = tiny(algorithm)
    plan = loop.prepare(algorithm, config, ENV)
    parts = footprint.needed(algorithm, config, ENV, plan, 3)
    state = algorithm.init(config, ENV, loop.keys([0])[0])
    del parts["rollout"], parts["minibatch indices"]
    assert sum(parts.values()) == 3 * footprint.size(state)
    held = sum(
        jax.random.key_data(x).nbytes if "key" in str(x.dtype) else x.nbytes
        for x in jax.tree.leaves(state)
    )
    assert footprint.size(state) == held


def test_replay_and_rollout_grow_as_they_should():
    def parts(algorithm, **changes):
        config = tiny(algorithm, **changes)
        plan = loop.prepare(algorithm, config, ENV)
        return footprint.needed(algorithm, config, ENV, plan, 1)

    small, large = parts(DQN, buffer_size=1_000), parts(DQN, buffer_size=100_000)
    assert large["replay"] == pytest.approx(100 * small["replay"], rel=0.1)
    assert small["agent"] == large["agent"]
    assert (
        parts(PPO, num_steps=80)["rollout"] == 10 * parts(PPO, num_steps=8)["rollout"]
    )
    many = parts(PPO, num_epochs=2_000)["minibatch indices"]
    assert many == 1_000 * parts(PPO, num_epochs=2)["minibatch indices"]


@pytest.mark.parametrize(
    "algorithm, flags, what",
    [
        ("dqn", "--buffer-size 2000000000", "for replay.*: reduce buffer_size"),
        ("ppo", "--num-envs 200000000", "reduce num_envs"),
        ("ppo", "--num-envs 2 --num-steps 1000000000", "for rollout"),
        ("ppo", "--num-epochs 1000000000", "for minibatch indices"),
        ("ppo", "--hidden-sizes 200000,200000", "for agent.*: reduce hidden_sizes"),
        ("dqn", "--num-seeds 1000000000", "reduce .* or num_seeds"),
        ("dqn", "--learning-starts 2000000000 --total-steps 4e9", "for rollout"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers(
    algorithm, flags, what, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(footprint, "available", lambda: 24_000_000_000)
    argv = train_argv(algorithm, *flags.split(), "--out", str(tmp_path / "run"))
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"need [\d.,]+ GB .*{what}", line), line
    assert "24.0 GB" in line
    assert not list(tmp_path.iterdir())


def test_the_least_limit_counts(monkeypatch, tmp_path):
    """The process's own, its container's, the machine's."""
    monkeypatch.setattr(footprint.resource, "getrlimit", lambda what: (5_000, 6_000))
    (tmp_path / "max").write_text("4000\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(footprint, "CGROUP_LIMITS", (tmp_path / "none",))
    assert footprint.available() == 5_000
    monkeypatch.setattr(
        footprint, "CGROUP_LIMITS", (tmp_path / "none", tmp_path / "max")
    )
    assert footprint.available() == 4_000
    infinite = footprint.resource.RLIM_INFINITY
    monkeypatch.setattr(
        footprint.resource, "getrlimit", lambda what: (infinite, infinite)
    )
    monkeypatch.setattr(footprint, "CGROUP_LIMITS", ())
    assert footprint.available() > 10**8  # what this machine has


def test_the_library_refuses_too(monkeypatch):
    monkeypatch.setattr(footprint, "available", lambda: 1_000)
    with pytest.raises(InvalidInput, match=r"and there are 0\.0 GB"):
        loop.train(PPO, tiny(PPO), ENV)


def test_a_device_that_says_nothing_refuses_nothing(monkeypatch):
    monkeypatch.setattr(footprint, "available", lambda: None)
    config = tiny(PPO)
    plan = loop.prepare(PPO, config, ENV)
    footprint.check(PPO, config, ENV, plan, 10**9)


class Accelerator:
    platform = "gpu"

    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_accelerators_say_how_much_they_have(monkeypatch):
    devices = [Accelerator({"bytes_limit": 70}), Accelerator({"bytes_limit": 80})]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert footprint.available() == 150
    monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator(None)])
    assert footprint.available() is None


def test_members_that_surely_fit_are_not_measured(monkeypatch):
    monkeypatch.setattr(footprint, "compiled_bytes", None)  # would not be callable
    monkeypatch.setattr(footprint, "available", lambda: 10**12)
    assert footprint.most_members(PPO, tiny(PPO), ENV, 1_000) == 1_000


@pytest.mark.full
def test_as_many_members_as_the_compiler_says_fit(monkeypatch):
    """Half of the memory is for them; the replay memory is most of what they take."""
    config = with_floats(tiny(DQN, buffer_size=2**17))
    each = 2**17 * 2 * 4  # at least: one observation and its successor, float32
    limit = 100 * each
    monkeypatch.setattr(footprint, "available", lambda: limit)
    most = footprint.most_members(DQN, config, ENV, 10_000)
    assert 1 < most < 50
    taken = footprint.compiled_bytes(DQN, config, ENV, most)
    assert 0.7 * limit / 2 < taken <= limit / 2


@pytest.mark.full
def test_each_member_is_held_once(monkeypatch):
    """In groups too: what another member takes is its state, up to a few bytes."""
    monkeypatch.setattr(population, "GROUP", 2)
    config = with_floats(tiny(PPO))
    few, more = (footprint.compiled_bytes(PPO, config, ENV, n) for n in (8, 24))
    state = jax.eval_shape(partial(PPO.init, config, ENV), loop.keys([0])[0])
    assert (more - few) / 16 - footprint.size(state) < 1_000
