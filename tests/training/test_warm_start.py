"""Fine-tuning: `init_from` takes over what a finished run has learned, and nothing else."""

import shutil

import jax
import numpy as np
import pytest

from jaxrl import DQN, PPO, TRPO, make
from jaxrl.cli import main
from jaxrl.core import storage
from jaxrl.core.config import with_floats
from jaxrl.errors import InvalidInput
from jaxrl.runs.artifact import Agents, load_agents, save_agents
from jaxrl.runs.experiment import Experiment, resolve
from jaxrl.sweeps import plan
from jaxrl.sweeps.plan import Sweep
from jaxrl.sweeps.space import as_space
from jaxrl.training import loop, warm_start
from tests.support.runs import read_json, train, train_argv
from tests.support.small import assert_trees_equal, tiny

ENV = make("probe/action")


def write_source(folder, algorithm=PPO, num_seeds=2, env=ENV, **fields):
    """A run folder with an artefact whose every number is recognised."""
    config = with_floats(tiny(algorithm).replace(**fields))
    job = loop.resolve(algorithm, config, env, seed=7, num_seeds=num_seeds)
    agents = jax.tree.map(
        lambda x: np.asarray(x) + np.ones((), x.dtype),
        loop.first_progress(job).state.agent,
    )
    saved = Agents(algorithm, config, env, {}, agents, job.seeds)
    save_agents(folder / "policy", saved)
    return folder, storage.named_arrays(agents)


def begin(folder, algorithm=PPO, env=ENV, num_seeds=2, fields=(), **options):
    config = tiny(algorithm).replace(**dict(fields))
    job = loop.resolve(
        algorithm, config, env, num_seeds=num_seeds, init_from=folder, **options
    )
    return storage.named_arrays(loop.first_progress(job).state.agent)


@pytest.mark.fast_cases("ppo")
@pytest.mark.parametrize("algorithm", [PPO, TRPO, DQN], ids=lambda a: a.name)
def test_all_but_the_optimiser_begins_as_in_the_source(tmp_path, algorithm):
    folder, source = write_source(tmp_path / "run", algorithm)
    found = begin(folder, algorithm)
    assert found.keys() == source.keys()
    for name, x in found.items():
        same = np.array_equal(x, source[name])
        assert same != name.startswith(("opt_state/", "kl_coef")), name


def test_the_optimiser_is_taken_over_if_asked(tmp_path):
    folder, source = write_source(tmp_path / "run")
    found = begin(folder, init_optimizer=True)
    for name, x in found.items():
        assert np.array_equal(x, source[name]) != name.startswith("kl_coef"), name


def test_what_the_config_sets_is_not_taken_over(tmp_path):
    folder, _ = write_source(tmp_path / "run")
    for algorithm, fields in ((PPO, {"objective": "kl", "kl_coef": 0.125}),):
        found = begin(folder, algorithm, fields=fields)
        np.testing.assert_array_equal(found["kl_coef"], [0.125, 0.125])


def test_options_of_a_source_without_a_source_are_refused():
    for options in ({"init_agent": 1}, {"init_optimizer": True}):
        with pytest.raises(InvalidInput, match="give init_from"):
            loop.resolve(PPO, tiny(PPO), ENV, **options)


@pytest.mark.full
def test_which_agent_each_begins_as(tmp_path):
    folder, source = write_source(tmp_path / "run")
    name = next(n for n in source if n.startswith("params/") and n.endswith("kernel"))
    assert not np.array_equal(*source[name])
    for options, places in (
        ({"num_seeds": 2}, [0, 1]),
        ({"num_seeds": 3}, [0, 0, 0]),
        ({"num_seeds": 1, "init_agent": 1}, [1]),
        ({"num_seeds": 2, "init_agent": 1}, [1, 1]),
    ):
        np.testing.assert_array_equal(
            begin(folder, **options)[name], source[name][places]
        )
    with pytest.raises(InvalidInput, match="init_agent = 2"):
        begin(folder, init_agent=2)


@pytest.mark.full
def test_another_environment_with_the_same_spaces(tmp_path):
    folder, source = write_source(tmp_path / "run", env=make("CartPole-v1"))
    found = begin(folder, env=make("CartPole-v1", gravity=20.0))
    assert all(
        np.array_equal(x, source[name])
        for name, x in found.items()
        if name.startswith("params/")
    )


def test_what_does_not_fit_is_named_with_both_shapes(tmp_path):
    folder, _ = write_source(tmp_path / "run")
    with pytest.raises(InvalidInput, match=r"params/\S+ is float32\[.*\], .*float32\["):
        begin(folder, env=make("CartPole-v1"))
    with pytest.raises(InvalidInput, match=r"params/\S+ is float32\["):
        begin(folder, fields={"hidden_sizes": (3,)})


def test_a_normaliser_is_not_lost_in_silence(tmp_path):
    folder, source = write_source(tmp_path / "run", normalize_obs=True)
    found = begin(folder, fields={"normalize_obs": True})
    stats = [name for name in found if name.startswith("obs_stats")]
    assert stats
    for name in stats:
        np.testing.assert_array_equal(found[name], source[name])
    with pytest.raises(InvalidInput, match="has obs_stats"):
        begin(folder, fields={"normalize_obs": False})
    plain, _ = write_source(tmp_path / "plain", normalize_obs=False)
    with pytest.raises(InvalidInput, match="lacks obs_stats"):
        begin(plain, fields={"normalize_obs": True})


def test_a_folder_without_a_policy_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"init_from = .* holds no policy"):
        begin(tmp_path)


@pytest.mark.full
def test_through_the_command_line(ppo_run, tmp_path, capsys):
    run = train(tmp_path / "run", "ppo", "--init", str(ppo_run), "--learning-rate", "0")
    assert read_json(run / "config.json")["init_from"] == str(ppo_run)
    before, after = (load_agents(folder).agents for folder in (ppo_run, run))
    for a, b in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True):
        np.testing.assert_array_equal(a, b)  # of a run that learns nothing
    argv = ["train", "ppo", "--config", str(run / "config.json"), "--quiet"]
    assert main([*argv, "--out", str(tmp_path / "again")]) == 0
    argv = train_argv("ppo", "--init", str(tmp_path), "--out", str(tmp_path / "no"))
    assert main(argv) == 2
    assert "init_from" in capsys.readouterr().err and not (tmp_path / "no").exists()


@pytest.mark.full
def test_a_run_is_resumed_without_its_source(tmp_path):
    folder, _ = write_source(tmp_path / "source", hidden_sizes=(4,))
    run = train(tmp_path / "run", "ppo", "--init", str(folder))
    before = load_agents(run).agents
    shutil.rmtree(folder)
    assert main(["resume", str(run), "--checkpoint", "0", "--quiet"]) == 0
    assert_trees_equal(load_agents(run).agents, before)


@pytest.mark.full
def test_agents_of_a_sweep_do_not_depend_on_its_blocks(tmp_path):
    folder, source = write_source(tmp_path / "run")
    for block in (1, 2, 4):
        sweep = Sweep(
            Experiment(PPO, tiny(PPO), "probe/action", init_from=str(folder)),
            as_space({"gamma": [0.5, 0.6, 0.7, 0.8]}),
            block=block,
        )
        for made in plan.blocks(sweep, tmp_path, plan.settings_of(sweep)):
            agents = loop.first_progress(resolve(made.experiment)).state.agent
            for name, x in storage.named_arrays(agents).items():
                if name.startswith("params/"):
                    first = np.broadcast_to(source[name][0], x.shape)
                    np.testing.assert_array_equal(x, first)


def test_an_experiment_says_it_too(tmp_path):
    folder, source = write_source(tmp_path / "run")
    experiment = Experiment(
        PPO, tiny(PPO), "probe/action", num_seeds=2, init_from=str(folder)
    )
    agents = loop.first_progress(resolve(experiment)).state.agent
    found = storage.named_arrays(agents)
    for name in source:
        if name.startswith("params/"):
            np.testing.assert_array_equal(found[name], source[name])


@pytest.mark.parametrize(
    ("about", "field"),
    [
        ({"seeds": [7, 8, 9]}, "w is not of 3 agents"),
        ({"seeds": [7, 8], "members": [0, 1, 4]}, "w is not of 3 agents"),
        ({"seeds": [7, 8], "members": [0, "1"]}, "members"),
        ({"seeds": 2}, "seeds"),
        ({"seeds": []}, "seeds"),
        ({}, "seeds"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path, about, field):
    storage.write(tmp_path / "policy", {"w": np.zeros((2, 3), np.float32)}, about)
    agents = {"w": jax.ShapeDtypeStruct((3, 3), np.float32)}
    with pytest.raises(InvalidInput, match=field):
        warm_start.read_initial(tmp_path, agents, 3, False, None)
