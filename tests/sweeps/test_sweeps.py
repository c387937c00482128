"""Sweeps: which runs a grid becomes, their results, and going on after a kill."""

import csv
import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest

from jaxrl import PPO, Range, evaluation, sweep
from jaxrl.cli import main
from jaxrl.errors import InvalidInput
from jaxrl.runs.experiment import Experiment, read_experiment, write_summary
from jaxrl.runs.loggers import read_metrics
from jaxrl.sweeps import plan, space, training
from jaxrl.sweeps.results import best_trial, read_confirmed, read_trials, trial_rows
from jaxrl.sweeps.training import merge, resume_sweep, run_sweep
from jaxrl.training import pbt, population
from tests.support.runs import read_json, run_python
from tests.support.small import tiny

CONFIG = tiny(PPO, total_steps=320.0, num_envs=2, num_steps=8)
"""Twenty train steps."""
FLAGS = "--num-envs 2 --num-steps 8 --num-epochs 2 --num-minibatches 2 --hidden-sizes 8"
GRID = {"learning_rate": [1e-3, 3e-3, 1e-2], "gamma": [0.9, 0.99]}


def wanted(grid=GRID, num_seeds=2, **options):
    fields = {f.name for f in dataclasses.fields(Experiment)}
    more = {n: options.pop(n) for n in list(options) if n in fields}
    experiment = Experiment(
        PPO,
        more.pop("config", CONFIG),
        "probe/action",
        num_seeds=num_seeds,
        evaluation_episodes=4,
        on_nan="continue",
        **more,
    )
    return plan.Sweep(experiment, space.as_space(grid), **options)


def quiet(sweep, out, **options):
    return run_sweep(sweep, out, progress=False, report=lambda line: None, **options)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The grid, swept in one go."""
    return quiet(wanted(), tmp_path_factory.mktemp("sweep") / "out").folder


# Spaces.


@pytest.mark.full
@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("learning_rate=1e-4,3e-4", space.Choices((1e-4, 3e-4))),
        ("hidden-sizes=[8],[8,8]", space.Choices(([8], [8, 8]))),
        ("network=mlp,cnn", space.Choices(("mlp", "cnn"))),
        ("target_kl=none,0.1", space.Choices((None, 0.1))),
        ("env.gravity=9.8:12", space.Range(9.8, 12)),
        ("learning_rate=1e-4:1e-2:log", space.Range(1e-4, 1e-2, True)),
    ],
)
def test_reading_a_domain(text, domain):
    name, found = space.parse(text)
    assert name == text.partition("=")[0].replace("-", "_")
    assert found == domain
    assert space.read(json.loads(json.dumps(space.written({name: found})))) == {
        name: domain
    }


@pytest.mark.full
def test_a_grid_has_every_combination_once():
    settings = space.grid(space.as_space(GRID))
    assert len(settings) == 6 and settings[1] == {"learning_rate": 1e-3, "gamma": 0.99}
    assert len({tuple(s.values()) for s in settings}) == 6


@pytest.mark.full
def test_random_settings_have_their_distribution():
    domains = space.as_space({"a": Range(1.0, 3.0), "b": Range(1e-4, 1.0, log=True)})
    drawn = space.draw(domains, "random", 4_000, seed=0)
    a, b = (np.array([s[name] for s in drawn]) for name in "ab")
    assert abs(a.mean() - 2.0) < 0.05 and a.min() >= 1.0 and a.max() <= 3.0
    assert abs(np.log10(b).mean() + 2.0) < 0.1 and abs(np.log10(b).std() - 1.155) < 0.05
    all_log = space.draw(domains, "loguniform", 4_000, seed=0)
    assert abs(np.mean([np.log(s["a"]) for s in all_log]) - np.log(3) / 2) < 0.02
    assert drawn == space.draw(domains, "random", 4_000, seed=0)


@pytest.mark.full
def test_optuna_finds_the_better_part_of_a_space():
    domains = space.as_space({"x": Range(-1.0, 1.0), "kind": ["a", [1, 2]]})

    def score(s):
        return -((s["x"] - 0.5) ** 2) - (s["kind"] == "a")

    rounds = []
    for _ in range(6):
        settings = space.propose(domains, 0, rounds, 8)
        rounds.append((settings, [score(s) for s in settings]))
    assert rounds[2][0] == space.propose(domains, 0, rounds[:2], 8)
    first, last = (np.mean(rounds[i][1]) for i in (0, -1))
    assert last > first and all(s["kind"] == [1, 2] for s in rounds[-1][0][-3:])


@pytest.mark.full
def test_optuna_leaves_out_what_cannot_be_trained(tmp_path):
    domains = space.as_space({"a": [1, 2, 3, 4], "b": [1, 2, 3, 4]})

    def possible(own):
        return own["a"] != own["b"]

    rounds = []
    for _ in range(3):
        settings = space.propose(domains, 0, rounds, 4, possible)
        assert len(settings) == 4 and all(map(possible, settings))
        rounds.append((settings, [s["a"] - s["b"] for s in settings]))
    assert rounds[2][0] == space.propose(domains, 0, rounds[:2], 4, possible)
    with pytest.raises(InvalidInput, match="leave out values that do not go together"):
        space.propose(domains, 0, [], 2, lambda own: False)
    # Three minibatches cannot be made of sixteen steps.
    grid = {"num_minibatches": [2, 3], "gamma": [0.9, 0.99]}
    result = quiet(wanted(grid, 1, sampler="optuna", trials=3), tmp_path / "out")
    assert [trial.overrides["num_minibatches"] for trial in result.trials] == [2, 2, 2]


# Programs and blocks.


@pytest.mark.full
def test_a_grid_is_one_program_and_one_compilation(tmp_path):
    before = population.run_population._cache_size()
    grid = {"learning_rate": [1e-4, 1e-3, 1e-2], "ent_coef": [0.0, 0.01, 0.02, 0.03]}
    result = quiet(wanted(grid), tmp_path / "out")
    assert population.run_population._cache_size() == before + 1
    assert len(result.trials) == 12
    assert sum(len(trial.returns) for trial in result.trials) == 24


@pytest.mark.full
def test_what_chooses_the_program_is_a_group_of_its_own(tmp_path):
    grid = {"num_envs": [2, 4], "gamma": [0.9, 0.99], "target_kl": [None, 0.1]}
    made = wanted(grid)
    found = plan.blocks(made, tmp_path, plan.settings_of(made))
    assert [block.indices for block in found] == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert [b.experiment.config.num_envs for b in found] == [2, 2, 4, 4]
    assert "4 programs, 4 blocks of 4 agents" in plan.summarize(made)


@pytest.mark.full
def test_total_steps_are_runs_of_their_own(tmp_path):
    made = wanted({"total_steps": [160.0, 320.0], "gamma": [0.9, 0.99]})
    found = plan.blocks(made, tmp_path, plan.settings_of(made))
    assert [block.indices for block in found] == [[0, 1], [2, 3]]


@pytest.mark.full
@pytest.mark.parametrize(
    ("settings", "seeds", "block", "sizes"),
    [
        (6, 2, None, [12]),
        (6, 2, 4, [4, 4, 4]),
        (6, 2, 5, [4, 4, 4]),
        (5, 2, 6, [6, 4]),
        (2, 5, 2, [2, 2, 1] * 2),
    ],
)
def test_blocks_hold_no_more_agents_than_wanted(
    tmp_path, settings, seeds, block, sizes
):
    grid = {"gamma": [0.9 + 0.01 * i for i in range(settings)]}
    made = wanted(grid, seeds, block=block)
    found = plan.blocks(made, tmp_path, plan.settings_of(made))
    assert [b.experiment.num_members for b in found] == sizes
    members = [(i, s) for b in found for i in b.indices for s in b.experiment.seeds]
    assert sorted(members) == [(i, s) for i in range(settings) for s in range(seeds)]
    assert len({tuple(b.experiment.traced) for b in found}) == 1


@pytest.mark.full
@pytest.mark.parametrize(
    ("count", "most", "unit", "size"),
    [(13, 99, 2, 12), (3, 99, 2, 2), (1, 99, 2, 1), (12, 8, 8, 8), (16, 9, 4, 8)],
)
def test_parts_are_whole_units_of_the_devices(count, most, unit, size):
    assert plan._even(count, most, unit) == size


# Results.


@pytest.mark.full
def test_the_results_of_a_sweep(swept):
    trials = read_trials(swept)
    assert [trial.overrides for trial in trials] == space.grid(space.as_space(GRID))
    summary = read_json(swept / "summary.json")
    rows = list(csv.DictReader((swept / "results.csv").open()))
    assert [float(row["episode_return_iqm"]) for row in rows] == [
        trial.score for trial in trials
    ]
    assert summary["best"]["setting"] == best_trial(trials).index
    run = swept / "runs" / "000"
    by_member = read_json(run / "summary.json")["evaluation_by_member"]
    assert [x for trial in trials for x in trial.returns] == by_member
    assert {p.name for p in swept.glob("*.png")} == {
        "learning_curves.png",
        "slices.png",
        "heatmap.png",
    }


def assert_same_first_step(one, other):
    """The rows after the first train step; later ones drift apart by rounding."""
    mine, theirs = (trial_rows(trial)[0] for trial in (one, other))
    assert mine["iteration"] == theirs["iteration"] == 1
    names = [n for n in mine if n.startswith(("loss/", "optim/", "rollout/"))]
    assert len(names) > 5
    for name in names:
        found, expected = (np.array(row[name], float) for row in (mine, theirs))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.full
def test_blocks_of_any_size_give_the_same_results(swept, tmp_path):
    small = quiet(wanted(block=4), tmp_path / "out")
    assert len(list((small.folder / "runs").iterdir())) == 3
    whole = {trial.index: trial for trial in read_trials(swept)}
    for trial in small.trials:
        assert trial.overrides == whole[trial.index].overrides
        assert_same_first_step(trial, whole[trial.index])


@pytest.mark.full
def test_parameters_of_the_environment_are_swept_in_one_program(tmp_path):
    made = wanted({"env.force_mag": [5.0, 10.0, 20.0]}, num_seeds=1)
    experiment = dataclasses.replace(made.experiment, env="CartPole-v1")
    made = dataclasses.replace(made, experiment=experiment)
    result = quiet(made, tmp_path / "out")
    assert len(list((result.folder / "runs").iterdir())) == 1
    run = result.folder / "runs" / "000"
    assert read_experiment(run).traced == ["env/params/force_mag"]
    assert len(set(tuple(trial.training) for trial in result.trials)) == 3
    from jaxrl import load_policy

    policies = [load_policy(run, k) for k in range(3)]
    assert [float(p.env.params.force_mag) for p in policies] == [5.0, 10.0, 20.0]
    with pytest.raises(InvalidInput, match="agent = 3"):
        load_policy(run, 3)


@pytest.mark.full
def test_a_setting_that_breaks_leaves_the_others_alone(tmp_path):
    grid = {"learning_rate": [1e-3, 1e30], "gamma": [0.99]}
    result = quiet(wanted(grid), tmp_path / "out")
    fine, broken = result.trials
    assert None not in fine.returns and broken.returns == [None, None]
    assert result.best == fine and broken.score is None
    assert result.summary["finished"]


@pytest.mark.full
@pytest.mark.parametrize("scheduler", ["none", "halving"])
def test_a_block_of_which_all_break_is_a_result_too(tmp_path, scheduler):
    grid = {"learning_rate": [1e-3, 3e-3, 1e30, 2e30], "gamma": [0.99]}
    made = wanted(grid, block=4, scheduler=scheduler)
    result = quiet(made, tmp_path / "out")
    assert result.summary["finished"] and result.best.index in (0, 1)
    assert [t.score is None for t in result.trials] == [False, False, True, True]
    broken = wanted({"learning_rate": [1e30, 2e30], "gamma": [0.99]}, block=4)
    result = quiet(broken, tmp_path / "broken")
    assert result.summary["finished"] and result.summary["best"] is None
    with pytest.raises(InvalidInput, match="there is no best one"):
        result.best  # noqa: B018


@pytest.mark.full
def test_the_best_setting_is_confirmed_with_fresh_seeds(tmp_path):
    grid = {"learning_rate": [1e-3], "gamma": [0.9, 0.99]}
    result = quiet(wanted(grid, confirm_seeds=3), tmp_path / "out")
    confirmed = result.summary["confirmed"]
    assert (
        confirmed["seeds"] == 3 and confirmed["gamma"] == result.best.overrides["gamma"]
    )
    assert read_experiment(result.folder / "confirm" / "000").seeds == [2, 3, 4]


@pytest.mark.full
def test_a_confirmation_keeps_to_the_block_and_goes_on_exactly(tmp_path):
    grid = {"learning_rate": [1e-3], "gamma": [0.9, 0.99]}
    made = wanted(grid, confirm_seeds=3, block=2, checkpoint_every=0.0)
    whole = quiet(made, tmp_path / "whole")
    sizes = [
        read_experiment(folder).num_members
        for folder in sorted((whole.folder / "confirm").iterdir())
    ]
    assert sizes == [2, 1]
    confirmed = read_confirmed(whole.folder)
    assert confirmed.seeds == [2, 3, 4] and confirmed.overrides == whole.best.overrides
    part = interrupted(made, tmp_path / "part", 60)
    assert not part.summary["finished"] and (part.folder / "confirm").exists()
    resume_sweep(part.folder, progress=False, report=lambda line: None)
    assert read_confirmed(part.folder).returns == confirmed.returns


@pytest.mark.full
def test_remainders_and_limits(tmp_path):
    """What is random without a range is drawn without repeats; of an odd number of pbt's
    agents all are in one block."""
    lists = space.as_space({"gamma": [0.9, 0.95, 0.99]})
    drawn = space.draw(lists, "random", 3, 0)
    assert sorted(s["gamma"] for s in drawn) == [0.9, 0.95, 0.99]
    with pytest.raises(InvalidInput, match="there are 3 settings"):
        space.draw(lists, "random", 4, 0)
    made = wanted(
        {"gamma": Range(0.9, 0.99)}, 1, sampler="random", trials=13, scheduler="pbt"
    )
    (block,) = plan.blocks(made, tmp_path, plan.settings_of(made))
    assert block.experiment.num_members == 13


@pytest.mark.full
def test_an_agent_that_fails_only_in_evaluation_leaves_the_others(
    tmp_path, monkeypatch
):
    played = evaluation.evaluate_population

    def spoilt(*args, **kwargs):
        episodes = played(*args, **kwargs)
        returns = episodes.episode_return.at[1, 0].set(np.nan)
        return episodes._replace(episode_return=returns)

    monkeypatch.setattr("jaxrl.runs.session.evaluate_population", spoilt)
    grid = {"learning_rate": [1e-3], "gamma": [0.9, 0.99]}
    result = quiet(wanted(grid), tmp_path / "out")
    assert [[x is None for x in t.returns] for t in result.trials] == [
        [False, True],
        [False, False],
    ]
    assert result.best.index == 1


@pytest.mark.full
def test_from_python(tmp_path):
    result = sweep(
        PPO,
        "probe/action",
        {"learning_rate": [1e-3], "gamma": [0.9, 0.99]},
        config=CONFIG,
        num_seeds=2,
        out=tmp_path / "out",
        progress=False,
        report=lambda line: None,
        evaluation_episodes=4,
    )
    assert len(result.trials) == 2 and result.folder == tmp_path / "out"


# Going on.


def assert_same_sweep(one, other):
    found, expected = (read_trials(folder) for folder in (one, other))
    for a, b in zip(found, expected, strict=True):
        for name in ("index", "overrides", "seeds", "returns", "training", "env_steps"):
            assert getattr(a, name) == getattr(b, name)


def interrupted(made, folder, after):
    """The sweep, stopped when it was asked for the `after`th time."""
    asked = iter(range(10**6))
    return quiet(made, folder, interrupted=lambda: next(asked) >= after)


@pytest.mark.full
@pytest.mark.fast_cases("3")
@pytest.mark.parametrize("after", [0, 1, 3, 30, 60])
def test_an_interrupted_sweep_goes_on_exactly(tmp_path, after):
    made = wanted(block=4, checkpoint_every=0.0)
    whole = quiet(made, tmp_path / "whole")
    part = interrupted(made, tmp_path / "part", after)
    assert not part.summary["finished"]
    resume_sweep(part.folder, progress=False, report=lambda line: None)
    assert_same_sweep(part.folder, whole.folder)
    lines = []
    again = resume_sweep(part.folder, progress=False, report=lines.append)
    assert any("nothing to resume" in line for line in lines)
    assert len(again.trials) == 6 and again.summary["finished"]


@pytest.mark.full
def test_shards_make_the_whole(tmp_path, swept):
    grid = {"learning_rate": [1e-3, 1e-2], "gamma": [0.9, 0.99]}
    folders = [
        quiet(wanted(grid, shard=(i, 2)), tmp_path / f"shard{i}").folder for i in (0, 1)
    ]
    owns = [[t.overrides for t in read_trials(f)] for f in folders]
    whole = space.grid(space.as_space(grid))
    assert owns == [whole[0::2], whole[1::2]]
    result = merge(folders, tmp_path / "all")
    assert [t.overrides for t in read_trials(result.folder)] == whole
    for trial in result.trials:
        part = read_trials(folders[trial.index % 2])[trial.index // 2]
        assert trial.returns == part.returns
    with pytest.raises(InvalidInput, match=r"shards 0/2 are given"):
        merge(folders[:1], tmp_path / "half")
    with pytest.raises(InvalidInput, match="not shards of one sweep"):
        merge([folders[0], swept], tmp_path / "mixed")


@pytest.mark.parametrize("place", ["runs/000/extra", "runs/000/policy/extra", "runs"])
def test_a_link_out_of_a_shard_is_refused_before_anything_is_copied(
    swept, tmp_path, place
):
    copy = shutil.copytree(swept, tmp_path / "copy")
    (tmp_path / "secret").write_text("mine")
    link = copy / place
    if link.exists():
        link.rename(tmp_path / "moved")
    link.symlink_to(tmp_path / ("moved" if place == "runs" else "secret"))
    with pytest.raises(InvalidInput, match=str(link)):
        merge([copy], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_links_within_runs_are_copied_as_links(tmp_path):
    source = tmp_path / "runs"
    (source / "wandb").mkdir(parents=True)
    (tmp_path / "cache").write_text("not ours")
    (source / "wandb" / "log").symlink_to(tmp_path / "cache")
    (source / "loop").symlink_to(".")
    training._copy_runs(source, tmp_path / "copy")
    found = [path for path in (tmp_path / "copy").rglob("*") if path.is_symlink()]
    assert sorted(path.name for path in found) == ["log", "loop"]


# Halving and pbt.


@pytest.mark.full
def test_rungs_halve_the_settings_and_double_the_steps():
    assert plan.rungs(16) == [(16, 1 / 8), (8, 1 / 4), (4, 1 / 2), (2, 1.0)]
    assert plan.rungs(5) == [(5, 0.25), (3, 0.5), (2, 1.0)]
    assert plan.rungs(2) == [(2, 1.0)] and plan.rungs(1) == [(1, 1.0)]


@pytest.mark.full
def test_halving_keeps_the_better_half(tmp_path):
    grid = {"learning_rate": [1e-3, 3e-3, 1e-2, 1e30], "gamma": [0.99]}
    made = wanted(grid, scheduler="halving", block=4)
    result = quiet(made, tmp_path / "out")
    steps = [trial.env_steps for trial in result.trials]
    assert sorted(steps) == [160, 160, 320, 320] and steps[3] == 160
    runs = result.folder / "runs"
    rows = read_metrics(runs / "rung-1" / "000" / "metrics.jsonl")
    assert rows[-1]["iteration"] == 20
    # Who goes on was better than who does not.
    trials = sorted(result.trials, key=lambda trial: trial.env_steps)
    assert [trial.dropped for trial in trials] == [True, True, False, False]
    rung = [read_json(path) for path in sorted(runs.glob("rung-0/*/summary.json"))]
    returns = np.array([s["evaluation_by_member"] for s in rung], float).reshape(4, 2)
    kept = [trial.index for trial in trials[2:]]
    others = [trial.index for trial in trials[:2] if trial.score is not None]
    assert returns[kept].mean(1).min() >= max(returns[others].mean(1), default=-np.inf)
    # The rows of the survivors begin where they began.
    for i, index in enumerate(kept):
        block, k = divmod(2 * index, 4)
        first = read_metrics(runs / "rung-0" / f"{block:03d}" / "metrics.jsonl")
        for row, mine in zip(first, rows, strict=False):
            assert row["loss/value"][k : k + 2] == mine["loss/value"][2 * i : 2 * i + 2]


@pytest.mark.full
@pytest.mark.parametrize("after", [5, 22, 33])
def test_halving_goes_on_exactly(tmp_path, after):
    grid = {"learning_rate": [1e-3, 3e-3, 1e-2, 1e-1], "gamma": [0.99]}
    made = wanted(grid, scheduler="halving", checkpoint_every=0.0, block=4)
    whole = quiet(made, tmp_path / "whole")
    part = interrupted(made, tmp_path / "part", after)
    assert not part.summary["finished"]
    resume_sweep(part.folder, progress=False, report=lambda line: None)
    assert_same_sweep(part.folder, whole.folder)


@pytest.mark.full
def test_the_worst_become_copies_of_the_best():
    rng = np.random.default_rng(0)
    score = np.array([5.0, 1.0, 9.0, -np.inf, 8.0, 7.0, 3.0, 4.0, 6.0, 2.0])
    sources = pbt.exchanged(score, rng)
    assert [int(sources[k]) in (2, 4) for k in (1, 3)] == [True, True]
    others = [k for k in range(10) if k not in (1, 3)]
    assert sources[others].tolist() == others
    assert pbt.exchanged(np.ones(5), rng).tolist() == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def pbt_sweep():
    config = CONFIG.replace(total_steps=1_600.0)
    grid = {"learning_rate": Range(1e-3, 1e-1, log=True), "gamma": Range(0.5, 0.99)}
    return wanted(
        grid,
        1,
        sampler="random",
        trials=8,
        scheduler="pbt",
        config=config,
        checkpoint_every=0.0,
    )


@pytest.mark.full
def test_pbt_changes_what_is_copied_within_its_limits(pbt_sweep, tmp_path):
    result = quiet(pbt_sweep, tmp_path / "out")
    rows = read_metrics(result.folder / "runs" / "000" / "metrics.jsonl")
    exchanges, limits = 0, {"learning_rate": (1e-3, 1e-1), "gamma": (0.5, 0.99)}
    for row, after in itertools.pairwise(rows):
        for k, source in enumerate(row["pbt/source"]):
            for name, (low, high) in limits.items():
                before, now = row[f"pbt/{name}"][source], after[f"pbt/{name}"][k]
                if source == k:
                    assert now == before
                else:
                    exchanges += 1
                    allowed = np.clip([0.8 * before, 1.2 * before], low, high)
                    assert np.isclose(now, allowed, rtol=1e-6).any()
    assert exchanges > 0
    # The trials and the agents that are stored say what they ended with.
    final = rows[-1]["pbt/gamma"]
    assert [trial.overrides["gamma"] for trial in result.trials] == final
    assert (
        read_experiment(result.folder / "runs" / "000").overrides[0]["gamma"]
        != final[0]
    )
    from jaxrl import load_agents

    own = load_agents(result.folder / "runs" / "000").overrides
    np.testing.assert_allclose(
        [o["gamma"] for o in own], rows[-1]["pbt/gamma"], rtol=1e-6
    )


@pytest.mark.full
def test_pbt_goes_on_exactly(pbt_sweep, tmp_path):
    whole = quiet(pbt_sweep, tmp_path / "whole")
    part = interrupted(pbt_sweep, tmp_path / "part", 60)
    assert not part.summary["finished"]
    resume_sweep(part.folder, progress=False, report=lambda line: None)
    assert_same_sweep(part.folder, whole.folder)


@pytest.mark.full
def test_optuna_sweeps_and_goes_on_exactly(tmp_path):
    grid = {"learning_rate": Range(1e-4, 1e-1, log=True), "gamma": [0.9, 0.99]}
    made = wanted(grid, sampler="optuna", trials=6, batch=2, checkpoint_every=0.0)
    whole = quiet(made, tmp_path / "whole")
    assert len(whole.trials) == 6 and whole.summary["finished"]
    part = interrupted(made, tmp_path / "part", 40)
    assert not part.summary["finished"]
    resume_sweep(part.folder, progress=False, report=lambda line: None)
    assert_same_sweep(part.folder, whole.folder)


# The command line.


def argv(out, *more):
    common = f"sweep ppo --env probe/action {FLAGS} --total-steps 320 --quiet"
    return [*common.split(), "--evaluation-episodes", "4", "--out", str(out), *more]


@pytest.mark.full
def test_the_command_line(tmp_path, capsys):
    out = tmp_path / "out"
    grid = ["--grid", "learning_rate=1e-3,1e-2", "gamma=0.9", "--num-seeds", "2"]
    assert main(argv(out, *grid)) == 0
    printed = capsys.readouterr().out
    assert "learning_rate = 0.001, gamma = 0.9: return" in printed
    assert printed.splitlines()[-1] == f"jaxrl report {out}"
    assert main(["resume", str(out), "--quiet"]) == 0
    assert main(argv(out, *grid)) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "grid is missing"),
        (["--grid", "learning_rat=1"], "learning_rat is not a field"),
        (["--grid", "learning_rate=-1"], "learning_rate = -1"),
        (["--grid", "learning_rate=1e-3:1e-2"], "a grid needs values"),
        (["--grid", "gamma=0.9,0.9"], "a value stands there twice"),
        (["--grid", "gamma=0.9", "gamma=0.8"], "gamma stands there twice"),
        (["--grid", "env.gravit=1"], "gravit"),
        (["--grid", "gamma=0.9", "--trials", "3"], "tries the whole grid"),
        (["--grid", "gamma=0.9", "--sampler", "random"], "needs a number"),
        (["--grid", "gamma=0.9", "--sampler", "rando"], "did you mean 'random'"),
        (["--grid", "gamma=0.9", "--shard", "2/2"], "shard = 2/2"),
        (["--grid", "gamma=0.9", "--shard", "x"], "shard"),
        (["--grid", "gamma=0.9", "--block", "few"], "block"),
        (["--grid", "gamma=0.9,0.8", "--scheduler", "pbt", "--num-seeds", "2"], "pbt"),
        (["--grid", "num_envs=2,4", "--scheduler", "pbt"], "num_envs"),
        (
            ["--grid", "gamma=0.5:1.5", "--sampler", "random", "--trials", "2"],
            "gamma = 1.5",
        ),
        (["--grid", "gamma=0.9", "--seed", "-1"], "seed = -1"),
        (["--grid", "gamma=0.9", "--num-seeds", "0"], "num_seeds = 0"),
        (["--grid", "gamma=0.9", "--keep", "0"], "keep = 0"),
        (["--grid", "gamma=0.9", "--stop-return", "1"], "stop_return"),
        (
            ["--grid", "num_envs=2:4", "--sampler", "random", "--trials", "2"],
            "give a list",
        ),
        (["--grid", "num_steps=4,8", "num_minibatches=3"], "num_minibatches"),
    ],
)
def test_bad_sweeps_are_one_line_and_leave_nothing(empty_folder, capsys, more, message):
    out = empty_folder / "out"
    assert main(argv(out, *more)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not out.exists()


@pytest.mark.full
def test_a_folder_that_is_no_sweep(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text("{}")
    assert main(["resume", str(tmp_path)]) == 2
    assert "no readable sweep.json" in capsys.readouterr().err


DEVICES = """
import tempfile, sys
sys.path.insert(0, "tests")
import jax
from tests.sweeps.test_sweeps import *
assert len(jax.devices()) == 8
folder = tempfile.mkdtemp()
result = quiet(wanted(num_seeds=4), folder + "/out")
one = quiet(wanted(num_seeds=4, num_devices=1), folder + "/one")
for a, b in zip(result.trials, one.trials):
    assert_same_first_step(a, b)
pbt_made = wanted({"gamma": Range(0.5, 0.99)}, 1, sampler="random", trials=16,
    scheduler="pbt")
print(len(quiet(pbt_made, folder + "/pbt").trials))
print([b.experiment.num_members for b in plan.blocks(
    wanted({"gamma": [0.9 + 0.001 * i for i in range(12)]}, 1), Path(folder),
    plan.settings_of(wanted({"gamma": [0.9 + 0.001 * i for i in range(12)]}, 1)))])
"""


@pytest.mark.full
def test_sweeps_on_eight_devices():
    lines = run_python("from pathlib import Path\n" + DEVICES, devices=8)
    assert lines[-2:] == ["16", "[8, 4]"]


@pytest.mark.full
@pytest.mark.parametrize("change", ["key", "value", "type"])
def test_a_damaged_summary_of_a_sweep_is_refused(swept, change, tmp_path):
    copy = shutil.copytree(swept, tmp_path / "copy")
    path = copy / "summary.json"
    content = read_json(path)
    trial = content["trials"][0]
    if change == "key":
        path.write_text(path.read_text().replace('"env_steps"', '"%nv_steps"', 1))
    elif change == "value":
        trial["returns"][0] += 1.0
        path.write_text(json.dumps(content))
    else:
        trial["places"] = [["runs/000"]]
        write_summary(copy, content)
    with pytest.raises(InvalidInput, match=r"summary\.json"):
        resume_sweep(copy, progress=False, report=lambda line: None)


def test_a_damaged_description_of_a_sweep_is_refused_by_name(swept, tmp_path):
    copy = shutil.copytree(swept, tmp_path / "copy")
    path = copy / "sweep.json"
    whole = path.read_text()
    for old, new in (
        ('"max_grad_norm"', '"max_gpad_norm"'),
        ('"block": ', '"block": "x" + '),
        ('"sampler": "grid"', '"sampler": 5'),
        ('"confirm_seeds": 0', '"confirm_seeds": -1'),
    ):
        assert old in whole
        path.write_text(whole.replace(old, new))
        with pytest.raises(InvalidInput, match=r"sweep\.json"):
            plan.read_sweep(copy)
