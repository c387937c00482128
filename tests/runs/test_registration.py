"""Algorithms of a user's own: `register_algorithm`, and "module:VALUE"."""

import json
import shlex
import sys

import jax
import numpy as np
import pytest

import jaxrl
from jaxrl import algorithms
from jaxrl.algorithms.ppo import PPO
from jaxrl.cli import main
from jaxrl.errors import InvalidInput
from jaxrl.runs.artifact import load_agents
from jaxrl.runs.session import resume_experiment
from tests.support.runs import COMMON, FLAGS, read_json

MODULE = """
from jaxrl.algorithms.ppo import PPO


def validate(config, env):
    PPO.validate(config, env)


MINE = PPO._replace(name="mine", validate=validate)
NOTHING = 3
"""
NAME = "my_own_algorithm:MINE"


@pytest.fixture
def own_module(empty_folder, monkeypatch):
    """A module in the current directory; nothing of it stays behind."""
    (empty_folder / "my_own_algorithm.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(algorithms, "_registered", {})
    yield empty_folder
    sys.modules.pop("my_own_algorithm", None)


def argv(name: str, *more: str) -> list[str]:
    words = f"train {name} --env CartPole-v1 {COMMON} {FLAGS['ppo']} --quiet"
    return [*words.split(), *more]


def forget() -> None:
    """As in another process, to which nobody has said the name."""
    algorithms._registered.clear()


@pytest.mark.full
def test_an_algorithm_of_a_module_through_the_command_line(own_module, capsys):
    assert main(argv(NAME, "--stop-iterations", "2", "--out", "run")) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command == ["jaxrl", "evaluate", "run", "--algorithm", NAME]
    assert read_json(own_module / "run" / "config.json")["algorithm"] == NAME
    forget()
    assert main(["evaluate", "run"]) == 2
    line = capsys.readouterr().err
    assert f"--algorithm {NAME}" in line and "register_algorithm" in line
    assert main([*command[1:], "--episodes", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["algorithm"] == NAME
    policy = jaxrl.load_policy("run")  # said once, it is known
    assert policy.algorithm.name == NAME
    for words in (
        "resume run",
        "export run --out policy.stablehlo",
        "render run --out play.png --max-steps 2",
        "collect run --episodes 2 --out data",
        "report run",
    ):
        forget()
        assert main([*words.split(), "--algorithm", NAME]) == 0, words
        forget()
        assert main(words.split()) == 2, words


@pytest.mark.full
def test_a_run_that_is_resumed_is_the_run_at_once(own_module):
    assert main(argv(NAME, "--out", "whole")) == 0
    forget()
    assert main(["resume", "whole", "--checkpoint", "0", "--algorithm", NAME]) == 0
    assert main(argv("ppo", "--out", "ppo")) == 0  # of which it is a copy
    mine, ppo = (load_agents(name).agents for name in ("whole", "ppo"))
    for a, b in zip(*map(jax.tree.leaves, (mine, ppo)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.full
def test_a_registered_algorithm_is_found_by_its_name(own_module, capsys):
    jaxrl.register_algorithm(PPO._replace(name="mine"))
    assert main(argv("mine", "--stop-iterations", "1", "--out", "run")) == 0
    assert main(["evaluate", "run", "--episodes", "2"]) == 0
    assert resume_experiment("run", progress=False)["finished"]
    forget()
    assert main(["evaluate", "run"]) == 2
    assert "'mine' of 'run' is not known" in capsys.readouterr().err


def test_names_that_are_built_in_are_refused(own_module):
    for name in ("ppo", "rlhf-ppo"):
        with pytest.raises(InvalidInput, match=f"name = '{name}'"):
            jaxrl.register_algorithm(PPO._replace(name=name))
    again = PPO._replace(name="mine")
    assert jaxrl.register_algorithm(again) == jaxrl.register_algorithm(again)


@pytest.mark.parametrize("name", ["my_own_algorithm:NOTHING", "nowhere_at_all:MINE"])
def test_what_is_no_algorithm_is_refused(own_module, name, capsys):
    assert main(argv(name)) == 2
    assert name in capsys.readouterr().err
