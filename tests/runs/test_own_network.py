"""Networks of a user's own, from training to everything that is done with a run."""

import json
import shlex
import sys
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxrl
from jaxrl import networks
from jaxrl.cli import main
from jaxrl.cli.options import sweep_from_flags
from jaxrl.core import config as configs
from jaxrl.errors import InvalidInput
from jaxrl.runs.artifact import load_agents
from jaxrl.runs.experiment import Experiment
from jaxrl.runs.session import resume_experiment, run_experiment
from jaxrl.sweeps import plan
from jaxrl.sweeps.space import parse
from tests.support.runs import COMMON, FLAGS, read_json
from tests.support.small import tiny

MODULE = """
import flax.linen as nn


class Net(nn.Module):
    size: int = 3

    @nn.compact
    def __call__(self, obs):
        return nn.tanh(nn.Dense(self.size)(obs))
"""
NAME = "my_own_network:Net"


class Twice(nn.Module):
    """Two layers with a residual connection, on the observation as it is."""

    size: int = 3

    @nn.compact
    def __call__(self, obs):
        x = nn.tanh(nn.Dense(self.size)(obs))
        return x + nn.tanh(nn.Dense(self.size)(x))


@pytest.fixture
def own_module(empty_folder, monkeypatch):
    """A module in the current directory; nothing of it stays behind."""
    (empty_folder / "my_own_network.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield empty_folder
    sys.modules.pop("my_own_network", None)


def forget() -> None:
    """As in another process, which has not imported it."""
    sys.modules.pop("my_own_network", None)


@pytest.mark.full
def test_a_network_of_a_module_through_the_command_line(own_module, capsys):
    words = f"train ppo --env CartPole-v1 {COMMON} {FLAGS['ppo']} --quiet --out run"
    assert main([*words.split(), "--network", NAME, "--stop-iterations", "2"]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command == ["jaxrl", "evaluate", "run", "--network", NAME]
    assert read_json(own_module / "run" / "config.json")["config"]["network"] == NAME
    forget()
    assert main(["evaluate", "run"]) == 2
    assert f"--network {NAME}" in capsys.readouterr().err
    assert main([*command[1:], "--episodes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["episodes"] == 2
    for words in (
        "resume run",
        "export run --out policy.stablehlo",
        "render run --out play.png --max-steps 2",
        "collect run --episodes 2 --out data",
    ):
        forget()
        assert main(words.split()) == 2, words
        assert main([*words.split(), "--network", NAME]) == 0, words


@pytest.mark.full
@pytest.mark.parametrize(
    "network", [Twice(4), networks.Body(Twice(4), nn.GRUCell(3))], ids=["torso", "body"]
)
def test_a_network_that_is_a_value_is_saved_and_resumed(network, tmp_path):
    config = tiny(jaxrl.PPO, network=network, total_steps=96.0)
    experiment = Experiment(
        jaxrl.PPO, config, "probe/memory", num_seeds=2, evaluation_episodes=4
    )
    run_experiment(experiment, tmp_path / "run", progress=False, report=str)
    whole = load_agents(tmp_path / "run")
    torso = whole.config.network
    assert (torso.torso if isinstance(torso, networks.Body) else torso) == Twice(4)
    resume_experiment(tmp_path / "run", 0, progress=False, report=str)
    again = load_agents(tmp_path / "run")
    for a, b in zip(*(jax.tree.leaves(x.agents) for x in (whole, again)), strict=True):
        np.testing.assert_array_equal(a, b)
    policy = jaxrl.load_policy(tmp_path / "run")
    obs = np.zeros((4, *policy.env.observation_space.shape), np.float32)
    action, memory = policy.act(obs, policy.init_memory(4))
    assert action.shape == (4,)
    assert len(jax.tree.leaves(memory)) == isinstance(network, networks.Body)


@pytest.mark.full
def test_networks_are_programs_apart_in_a_sweep(tmp_path):
    """And a float of each is data: two settings of one network are one program."""
    choices = [Twice(4), networks.Body(Twice(4), nn.GRUCell(3)), "mlp"]
    space = {"network": choices, "learning_rate": [0.1, 0.5]}
    out = {"out": tmp_path / "sweep", "progress": False, "report": str}
    config = tiny(jaxrl.PPO, total_steps=64.0)
    result = jaxrl.sweep(jaxrl.PPO, "probe/action", space, config=config, **out)
    found = [trial.overrides["network"] for trial in result.trials][::2]
    found = [networks.Network.from_plain(x) for x in found]
    assert (found[0], found[1].torso, found[2]) == (Twice(4), Twice(4), "mlp")
    assert len(list((tmp_path / "sweep").rglob("config.json"))) == len(choices)


def test_networks_in_a_grid_of_the_command_line(own_module):
    grid = [f"network={NAME},gru(size=2),transformer(size=4,num_heads=2)"]
    space = dict(map(parse, grid))
    assert space["network"].values == (
        *(NAME, "gru(size=2)", "transformer(size=4,num_heads=2)"),
    )
    forget()
    made = sweep_from_flags(jaxrl.PPO, {}, grid, env="CartPole-v1", total_steps=1_000.0)
    assert NAME.partition(":")[0] in sys.modules
    assert len(plan.settings_of(made)) == 3


def test_the_command_of_a_run_makes_its_network_again(own_module):
    networks.load_network(NAME)
    network = sys.modules["my_own_network"].Net(size=7)
    words = configs.flags_of(jaxrl.PPO.Config(network=network))
    text = words[words.index("--network") + 1]
    forget()
    again = networks.Network.from_text(text)
    assert type(again).__name__ == "Net" and again.size == 7


class Flat(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return obs.sum(-1)


class Weighted(nn.Module):
    size: int = 3
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, obs):
        return nn.Dense(self.size, kernel_init=self.kernel_init)(obs)


def test_features_of_another_shape_are_refused():
    env = jaxrl.make("CartPole-v1")
    with pytest.raises(InvalidInput, match=r"network = .* makes \[1\] of"):
        jaxrl.PPO.validate(tiny(jaxrl.PPO, network=Flat()), env)


def test_a_function_without_a_name_is_recorded_only_as_a_default():
    plain = networks.Network.to_plain(Weighted(4))
    assert networks.Network.from_plain(plain) == Weighted(4)
    with pytest.raises(InvalidInput, match="module:factory"):
        networks.Network.to_plain(Weighted(4, nn.initializers.constant(0.5)))
