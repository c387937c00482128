"""Presets and the zoo: what is shipped, what is chosen, what is trained and kept."""

import tomllib

import pytest

from jaxrl import PPO, preset
from jaxrl.algorithms import ALGORITHMS
from jaxrl.cli import main
from jaxrl.cli.options import experiment_from_flags
from jaxrl.core import config as configs
from jaxrl.envs import env_ids
from jaxrl.errors import InvalidInput
from jaxrl.pipelines import zoo
from jaxrl.runs import presets
from jaxrl.sweeps.results import Trial
from tests.support.runs import read_json

SMALL = {
    "total_steps": 40,
    "num_envs": 2,
    "num_steps": 4,
    "num_epochs": 1,
    "num_minibatches": 2,
    "hidden_sizes": [4],
}
SEARCH = zoo.Search(
    "ppo", "probe/action", SMALL, {"learning_rate": zoo.STEP_SIZE}, trials=2
)


@pytest.mark.full
@pytest.mark.parametrize("name", presets.names())
def test_a_preset_is_a_config_of_its_algorithm_on_an_environment(name):
    content = presets.content(name)
    assert content.keys() == {"algorithm", "env", "config"}
    assert name == presets.name_of(content["algorithm"], content["env"])
    algorithm = ALGORITHMS[content["algorithm"]]
    config = configs.from_dict(algorithm.Config, content["config"])
    assert config == preset(algorithm, content["env"]) != algorithm.Config()
    assert content["env"] in env_ids()


@pytest.mark.full
def test_every_preset_was_searched_for_and_keeps_what_was_given():
    assert presets.names() == sorted(zoo.SEARCHES)
    for name, search in zoo.SEARCHES.items():
        own = presets.content(name)["config"]
        assert own.keys() == search.config.keys() | search.space.keys()
        assert search.config.items() <= own.items()
        zoo.sweep_of(search)


@pytest.mark.full
def test_flags_and_files_override_a_preset(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('env = "CartPole-v1"\n[config]\ngamma = 0.5\n')
    given = {"config_file": str(file), "preset": True, "clip_eps": 0.7}
    config = experiment_from_flags(PPO, {}, **given).config
    shipped = preset(PPO, "CartPole-v1")
    assert config == shipped.replace(gamma=0.5, clip_eps=0.7)
    assert shipped.gamma != 0.5 and shipped.clip_eps != 0.7


def test_an_environment_without_a_preset_is_refused_with_the_nearest():
    with pytest.raises(InvalidInput, match="did you mean 'ppo-CartPole-v1'"):
        preset(PPO, "CartPole-v2")


def trial(score, index):
    return Trial(index, {"gamma": 0.9}, [0], [score], [score], 40, [])


@pytest.mark.full
def test_of_equal_settings_the_one_that_learns_fastest_is_chosen(monkeypatch):
    areas = {0: 9.0, 1: 3.0, 2: 4.0}
    monkeypatch.setattr(zoo, "_area", lambda trial: areas[trial.index])
    trials = [trial(400.0, 0), trial(500.0, 1), trial(500.0001, 2)]
    assert zoo.chosen(trials).index == 2
    assert zoo.chosen([*trials, trial(None, 3), trial(501.0, 1)]).score == 501.0
    with pytest.raises(InvalidInput, match="every setting broke"):
        zoo.chosen([trial(None, 0)])


@pytest.mark.full
def test_a_search_ends_in_a_file_that_train_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "SEARCHES", {"ppo-probe-action": SEARCH})
    argv = ["zoo", "ppo-probe-action", "--tune", "--quiet", "--out", str(tmp_path)]
    assert main(argv) == 0
    path = tmp_path / "ppo-probe-action.toml"
    content = tomllib.loads(path.read_text())
    rate = content["config"].pop("learning_rate")
    assert content == {"algorithm": "ppo", "env": "probe/action", "config": SMALL}
    assert 3e-4 <= rate <= 1e-2 and rate == float(f"{rate:.2g}")
    before = (tmp_path / "ppo-probe-action" / "summary.json").stat().st_mtime_ns
    assert main(argv) == 0  # is finished: only read
    after = (tmp_path / "ppo-probe-action" / "summary.json").stat().st_mtime_ns
    assert before == after


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """One preset, of a run that trains in a moment."""
    folder = tmp_path / "presets"
    folder.mkdir()
    chosen = trial(1.0, 0)
    (folder / "ppo-probe-action.toml").write_text(zoo.as_preset(SEARCH, chosen))
    monkeypatch.setattr(presets, "FOLDER", folder)


@pytest.mark.full
def test_the_zoo_keeps_agents_with_their_digests_and_goes_on(shipped, tmp_path, capsys):
    out = tmp_path / "zoo"
    argv = ["zoo", "--num-seeds", "2", "--quiet", "--out", str(out)]
    assert main(argv) == 0
    (name,), (row,) = zip(*read_json(out / "zoo.json").items(), strict=True)
    assert name == "ppo-probe-action" and row["seeds"] == [0, 1]
    files = read_json(out / name / "policy" / "manifest.json")["files"]
    assert row["sha256"] == files["arrays.safetensors"]["sha256"]
    assert len(row["returns"]) == 2 and row["config"]["gamma"] == 0.9
    assert len(row["curve"]["iqm"]) == len(row["curve"]["env_steps"]) > 0
    assert (out / "report" / "report.html").exists()
    assert f"sha256 {row['sha256'][:12]}" in capsys.readouterr().out
    assert main(argv) == 0  # is finished: only read
    assert read_json(out / "zoo.json") == {name: row}
    assert main([*argv[:2], "3", *argv[3:]]) == 2
    assert "another num_seeds" in capsys.readouterr().err
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "zoo.json").write_text("{")
    assert main(["zoo", "--quiet", "--out", str(damaged)]) == 2
    assert "zoo.json is no JSON" in capsys.readouterr().err
    assert [path.name for path in damaged.iterdir()] == ["zoo.json"]
    assert main(["zoo", "ppo-probe-actoin", "--out", str(out)]) == 2
    assert "did you mean 'ppo-probe-action'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["null", "5", "[1]", "NaN", '{"a": 5}', "[" * 10_000])
def test_an_index_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "zoo.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"zoo\.json"):
        zoo.read_index(tmp_path)
