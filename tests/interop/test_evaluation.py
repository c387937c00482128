"""Trained agents in Gymnasium environments: `jaxrl evaluate RUN --gymnasium ID`."""

import contextlib
import json

import gymnasium
import numpy as np
import pytest

from jaxrl import make
from jaxrl.cli import main
from jaxrl.evaluation import MAX_STEPS
from jaxrl.interop import evaluation
from jaxrl.interop.gymnasium import to_gymnasium
from jaxrl.runs.artifact import load_agents
from jaxrl.runs.session import evaluate_agents
from tests.support.small import counting_env


@contextlib.contextmanager
def registered(**envs):
    """Register our environments with Gymnasium, by name."""
    ids = {f"test/{name}-v0": env for name, env in envs.items()}
    for id, env in ids.items():
        gymnasium.register(id, entry_point=lambda env=env: to_gymnasium(env))
    try:
        yield
    finally:
        for id in ids:
            del gymnasium.registry[id]


def evaluated(run, capsys, *flags):
    assert main(["evaluate", str(run), "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_returns_are_those_of_the_environment_trained_in(ppo_run, capsys):
    flags = ["--episodes", "5"]
    ours = evaluated(ppo_run, capsys, *flags)
    with registered(Action=make("probe/action")):
        theirs = evaluated(ppo_run, capsys, *flags, "--gymnasium", "test/Action-v0")
    assert theirs.pop("env") == "gymnasium/test/Action-v0"
    assert ours.pop("env") == "probe/action"
    assert theirs == ours


@pytest.mark.full
def test_a_policy_with_a_memory_and_a_block_after_another(gru_run, monkeypatch):
    """Recalling the cue needs the memory, which is reset with every episode."""
    agents = load_agents(gru_run)
    with registered(Memory=make("probe/memory")):
        whole = evaluation.evaluate_on_gymnasium(agents, "test/Memory-v0", 32, seed=3)
        monkeypatch.setattr(evaluation, "MAX_ENVS", 12)
        blocks = evaluation.evaluate_on_gymnasium(agents, "test/Memory-v0", 32, seed=3)
    assert whole == blocks
    assert whole["episodes"] == 32
    ours, _ = evaluate_agents(agents, 512, 0, greedy=True)
    assert abs(whole["episode_return_mean"] - ours["episode_return_mean"]) < 0.6


def test_sampled_actions_differ_with_the_seed(ppo_run):
    agents = load_agents(ppo_run)
    with registered(Action=make("probe/action")):

        def played(seed):
            args = (agents, "test/Action-v0", 16, seed, False)
            return evaluation.evaluate_on_gymnasium(*args)["episode_return_mean"]

        returns = [played(seed) for seed in range(4)]
        assert len(set(returns)) > 1
        assert played(2) == returns[2]


def test_an_episode_without_an_end_is_cut(ppo_run, monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_STEPS", 7)
    env = counting_env().replace(
        observation_space=make("probe/action").observation_space
    )
    with registered(Endless=env):
        result = evaluation.evaluate_on_gymnasium(
            load_agents(ppo_run), "test/Endless-v0", 2
        )
    assert result["episode_return_mean"] == 28.0
    assert result["episodes_cut"] == 2 * len(result["seeds"])
    assert MAX_STEPS == 10_000


def test_a_time_limit_beyond_the_usual_one_is_kept(ppo_run, monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_STEPS", 3)
    space = make("probe/action").observation_space
    env = counting_env(horizon=7).replace(observation_space=space)
    with registered(Long=env):
        gymnasium.registry["test/Long-v0"].max_episode_steps = 7
        result = evaluation.evaluate_on_gymnasium(
            load_agents(ppo_run), "test/Long-v0", 2
        )
    assert result["episode_return_mean"] == 28.0 and "episodes_cut" not in result


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("Pendulum-v1", "gymnasium = 'Pendulum-v1': its observation_space is Box("),
        ("CartPole-v9", "Gymnasium has no environment 'CartPole-v9' (did you mean 'C"),
        ("FrozenLake-v1", "its observation_space is Discrete(16), and the agents were "
         "trained on probe/action with Box(1) of float32: give an environment"),
        ("no_such_module:Env-v0", "Gymnasium cannot make 'no_such_module:Env-v0'"),
        ("test/Actions-v0", "its action_space is Discrete(4), and the agents"),
    ],
)  # fmt: skip
def test_other_spaces_are_one_sentence(ppo_run, capsys, id, message):
    masked = make("probe/masked").action_space
    with registered(Actions=make("probe/action").replace(action_space=masked)):
        assert main(["evaluate", str(ppo_run), "--gymnasium", id]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1 and said.endswith(".\n")


def test_actions_as_gymnasium_wants_them():
    box = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64)
    given = evaluation.as_action(np.float32([3.0, -0.5]), box)
    assert given in box and given.tolist() == [1.0, -0.5]
    assert evaluation.as_action(np.int32(1), gymnasium.spaces.Discrete(2)) == 1


@pytest.mark.full
@pytest.mark.parametrize(
    ("env", "steps"), [("CartPole-v1", "100000"), ("Pendulum-v1", "4000")]
)
def test_the_interval_is_that_of_the_jax_environment(tmp_path, capsys, env, steps):
    """For a trained agent, and for a barely trained one whose returns vary."""
    flags = f"train ppo --env {env} --total-steps {steps} --num-seeds 3 --quiet"
    out = tmp_path / "run"
    assert main([*flags.split(), "--out", str(out)]) == 0
    ours = evaluated(out, capsys, "--episodes", "128")
    theirs = evaluated(out, capsys, "--episodes", "128", "--gymnasium", env)
    low, high = ours["episode_return_ci95"]
    assert theirs["episode_return_ci95"][0] <= high
    assert low <= theirs["episode_return_ci95"][1]
    if env == "CartPole-v1":
        assert theirs["episode_return_iqm"] > 475
