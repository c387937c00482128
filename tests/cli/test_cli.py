"""`jaxrl.cli`: what is printed, what is refused, and which setting wins."""

import errno
import functools
import importlib.util
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from jaxrl.algorithms import ALGORITHMS
from jaxrl.cli import COMMANDS, entry_point, main
from jaxrl.cli.groups import import_command
from jaxrl.cli.options import experiment_from_flags, split_env_params
from jaxrl.cli.running import next_command
from jaxrl.core import config as configs
from jaxrl.envs import env_ids
from jaxrl.envs.suites import SUITES
from jaxrl.runs import presets
from jaxrl.training import devices
from tests.support.paths import ROOT
from tests.support.runs import COMMON, FLAGS, read_json, train_argv

EVALUATION_KEYS = [
    "algorithm",
    "env",
    "seeds",
    "episodes",
    "episode_return_mean",
    "episode_return_iqm",
    "episode_return_ci95",
]


def refused(argv: list[str], capsys) -> str:
    """The one line on stderr with which a command ends; the exit code must be 2."""
    capsys.readouterr()
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxrl: ")
    return line


# Training, and the command that is printed last.


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="strict")
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.argv", ["jaxrl", "list", "algorithms"])
    with pytest.raises(SystemExit, match="0"):
        entry_point()
    stream.flush()
    assert b"TD(\\u03bb)" in stream.buffer.getvalue()


@pytest.mark.full
def test_the_last_line_of_train_is_the_command_to_run_next(empty_folder, capsys):
    assert main(train_argv("ppo", "--out", "my run")) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert command == "jaxrl evaluate 'my run'"
    assert main(shlex.split(command)[1:]) == 0
    assert "2 seeds x 128 episodes" in capsys.readouterr().out


@pytest.mark.full
def test_a_run_on_code_of_ones_own_is_evaluated_by_naming_it_again(tmp_path, capsys):
    run, env = str(tmp_path / "run"), "jaxrl.envs.probes:action"
    assert main(train_argv("ppo", "--out", run, env=env)) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert command == f"jaxrl evaluate {run} --env {env}"
    assert main(command.split()[1:]) == 0
    assert "give --env jaxrl.envs.probes:action" in refused(["evaluate", run], capsys)


@pytest.mark.full
def test_train_shows_how_it_goes_unless_quiet(tmp_path, capsys):
    assert main(train_argv("ppo", "--out", str(tmp_path / "a"))) == 0
    shown = capsys.readouterr()
    assert "100 %" in shown.err and "return " in shown.err and "compiling" in shown.out
    assert main(train_argv("ppo", "--quiet", "--out", str(tmp_path / "b"))) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and len(shown.out.splitlines()) == 2


@pytest.mark.full
def test_train_with_json_prints_the_evaluation_last(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(train_argv("ppo", "--json", "--out", str(run))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == read_json(run / "summary.json")["evaluation"]
    assert lines[-2] == f"next: jaxrl evaluate {run}"


# Evaluation.


@pytest.mark.fast_cases("ppo_run*")
@pytest.mark.parametrize(
    ("name", "algorithm", "seeds"),
    [("ppo_run", "ppo", [0, 1]), ("reinforce_run", "reinforce", [0])],
)
def test_evaluate_with_json_prints_exactly_the_documented_object(
    name, algorithm, seeds, request, capsys
):
    run = str(request.getfixturevalue(name))
    assert main(["evaluate", run, "--episodes", "4", "--json"]) == 0
    evaluation = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(evaluation) == EVALUATION_KEYS
    assert evaluation["algorithm"] == algorithm
    assert evaluation["env"] == "probe/action"
    assert evaluation["seeds"] == seeds
    assert evaluation["episodes"] == 4
    low, high = evaluation["episode_return_ci95"]
    assert -1 <= low <= evaluation["episode_return_iqm"] <= high <= 1
    assert -1 <= evaluation["episode_return_mean"] <= 1


@pytest.mark.full
def test_evaluate_prints_the_same_numbers_for_the_same_seed(gru_run, capsys):
    def evaluate(*more):
        argv = ["evaluate", str(gru_run), "--episodes", "32", "--stochastic", "--json"]
        assert main([*argv, *more]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    first = evaluate("--seed", "1")
    assert evaluate("--seed", "1") == first != evaluate("--seed", "2")


@pytest.mark.full
def test_sampled_actions_are_not_the_likeliest_ones(reinforce_run, capsys):
    # A policy this young is close to uniform: it samples both actions.
    argv = ["evaluate", str(reinforce_run), "--episodes", "64", "--json"]
    assert main([*argv, "--stochastic"]) == 0
    stochastic = json.loads(capsys.readouterr().out.splitlines()[-1])
    low, high = stochastic["episode_return_ci95"]
    assert -1 < stochastic["episode_return_mean"] < 1 and low < high


# Which setting wins: defaults, then the file, then flags.

SETTINGS = {
    "env": "probe/action",
    "num_seeds": 2,
    "seed": 3,
    "evaluation_episodes": 4,
    "config": {
        "num_envs": 2,
        "num_steps": 4,
        "num_epochs": 1,
        "num_minibatches": 2,
        "hidden_sizes": [4],
        "total_steps": 40,
        "gamma": 0.5,
        "learning_rate": 0.25,
    },
}


def as_toml(settings: dict) -> str:
    """TOML is JSON's values behind equals signs, tables last."""
    table = "".join(f"{k} = {json.dumps(v)}\n" for k, v in settings["config"].items())
    rest = {k: v for k, v in settings.items() if k != "config"}
    head = "".join(f"{name} = {json.dumps(value)}\n" for name, value in rest.items())
    return f"{head}[config]\n{table}"


@pytest.mark.parametrize(
    ("file", "text"),
    [("settings.json", json.dumps(SETTINGS)), ("settings.toml", as_toml(SETTINGS))],
)
def test_flags_override_the_file_which_overrides_the_defaults(
    file, text, empty_folder, capsys
):
    (empty_folder / file).write_text(text)
    flags = ["--seed", "5", "--learning-rate", "0.125", "--clip-eps", "0.3"]
    argv = ["train", "ppo", "--config", file, *flags, "--quiet", "--out", "run"]
    assert main(argv) == 0
    used = read_json(empty_folder / "run" / "config.json")
    assert (used["seed"], used["num_seeds"]) == (5, 2)
    assert used["config"]["learning_rate"] == 0.125  # file and flag
    assert used["config"]["gamma"] == 0.5  # file alone
    assert used["config"]["num_envs"] == 2
    assert used["config"]["clip_eps"] == 0.3  # flag alone
    assert used["config"]["vf_coef"] == ALGORITHMS["ppo"].Config().vf_coef  # neither


def test_a_flag_overrides_the_environment_of_the_file(empty_folder, capsys):
    (empty_folder / "settings.json").write_text(json.dumps(SETTINGS))
    argv = ["train", "ppo", "--config", "settings.json", "--env", "probe/nowhere"]
    assert "probe/nowhere" in refused(argv, capsys)


def test_a_flag_overrides_a_parameter_of_the_environment_of_the_file(
    empty_folder, capsys
):
    settings = {"env": "probe/terminal", "env_params": {"horizon": 1000}}
    (empty_folder / "settings.json").write_text(json.dumps(settings))
    argv = ["train", "reinforce", "--baseline", "none", "--config", "settings.json"]
    assert "the time limit of probe/terminal, 1000" in refused(argv, capsys)
    argv += ["--env.horizon", "2000"]
    assert "the time limit of probe/terminal, 2000" in refused(argv, capsys)


# Parameters of the environment, and RLlib's words.


@pytest.mark.parametrize(
    ("arguments", "params"),
    [
        (["--env.length", "5"], {"length": 5}),
        (["--env.length=5"], {"length": 5}),
        (["--env.sticky-prob", "0.1"], {"sticky_prob": 0.1}),
        (["--env.low", "-1.5"], {"low": -1.5}),
        (["--env.map_name", "8x8"], {"map_name": "8x8"}),
        (["--env.map_name=a=b"], {"map_name": "a=b"}),
        (["--env.flag=True", "--env.other=false"], {"flag": True, "other": False}),
        (["--env.horizon=None"], {"horizon": None}),
        (["--env.horizon=null"], {"horizon": None}),
        (["--env.sizes=[1,2]"], {"sizes": [1, 2]}),
        (["--env.length", "5", "--env.length", "6"], {"length": 6}),
    ],
)
def test_environment_parameters_are_taken_out_of_the_arguments(arguments, params):
    before, after = ["--env", "probe/memory"], ["--seed", "3"]
    assert split_env_params([*before, *arguments, *after]) == (
        [*before, *after],
        params,
    )


@pytest.mark.parametrize(
    "arguments", [["--env.length"], ["--env.length", "--seed", "3"], ["--env.", "3"]]
)
def test_an_environment_parameter_needs_a_name_and_a_value(arguments):
    with pytest.raises(click.UsageError, match=r"--env\."):
        split_env_params(arguments)


@pytest.mark.full
def test_environment_parameters_and_switches_are_recorded(empty_folder):
    more = ["--env.sticky-prob=0.5", "--no-anneal-lr", "--quiet", "--out", "run"]
    assert main(train_argv("reinforce", *more)) == 0
    used = read_json(empty_folder / "run" / "config.json")
    assert used["env_params"] == {"sticky_prob": 0.5}
    assert used["config"]["anneal_lr"] is False
    assert main(["evaluate", "run", "--episodes", "4"]) == 0


@pytest.mark.parametrize(
    ("rule", "iterations"),
    [
        ('{"training_iteration": 3}', 3),
        ('{"timesteps_total": 24}', 3),
        ('{"episode_reward_mean": -1.5, "timesteps_total": 24}', 1),
        ('{"env_runners/episode_return_mean": -1.5, "training_iteration": 3}', 1),
    ],
)
def test_stop_takes_the_words_of_rllib(rule, iterations, tmp_path):
    run = tmp_path / "run"
    argv = "train ppo --env probe/action " + COMMON.replace("--total-steps 40", "")
    argv += f" {FLAGS['ppo']} --quiet --out"
    assert main([*argv.split(), str(run), "--stop", rule]) == 0
    assert read_json(run / "summary.json")["iterations"] == iterations


# Lists, pictures, help.


def test_list_algorithms(capsys):
    assert main(["list", "algorithms"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(ALGORITHMS)


ELSEWHERE = ["gymnasium/ID", *(f"{library}/NAME" for library in SUITES)]
"""Not among the ids that are there without another library's names."""


def test_list_envs(capsys):
    assert main(["list", "envs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*env_ids(), *ELSEWHERE]
    assert "CartPole-v1" in env_ids() and "probe/memory" in env_ids()


def test_list_alone_lists_all(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        *ALGORITHMS,
        *env_ids(),
        *ELSEWHERE,
        *presets.names(),
    ]


@pytest.mark.full
def test_plot_draws_the_runs(ppo_run, dqn_run, tmp_path, capsys):
    # Two folders with the same name are two curves.
    out = tmp_path / "curves.svg"
    assert main(["plot", str(ppo_run), str(dqn_run), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    text = out.read_text()
    assert "#0072b2" in text.lower() and "#d55e00" in text.lower()


def test_plot_draws_another_metric(ppo_run, tmp_path):
    for metric in ("loss/value", "env_steps_per_second"):
        out = tmp_path / "curve.png"
        assert main(["plot", str(ppo_run), "--out", str(out), "--metric", metric]) == 0
        assert out.stat().st_size > 1000
        out.unlink()


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["plot"], ["list"]])
def test_every_command_has_help(command, capsys):
    assert main([*command, "--help"]) == 0
    assert "Usage: jaxrl" in capsys.readouterr().out


def test_help_groups_the_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for title, section in COMMANDS.items():
        _, _, rest = shown.partition(f"\n{title}:\n")
        lines = rest.partition("\n\n")[0].splitlines()
        assert [line.split()[0] for line in lines] == list(section)
        assert not any(line.endswith("...") for line in lines)


def test_every_command_has_the_name_it_is_found_by():
    for section in COMMANDS.values():
        assert [import_command(x).name for x in section.values()] == list(section)


def test_the_help_of_train_lists_the_algorithms(capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in ALGORITHMS)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_help_of_an_algorithm_shows_every_field_its_meaning_and_default(
    name, capsys
):
    assert main(["train", name, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    config = ALGORITHMS[name].Config()
    for field, doc in configs.field_docs(type(config)).items():
        assert f" --{field.replace('_', '-')} " in shown.replace(" / ", " ")
        assert words(doc) in words(shown)
    default = f"[default: {config.learning_rate}]"
    assert default in shown


def words(text: str) -> str:
    """Without the places where a terminal may break a line."""
    return "".join(text.split())


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert "jaxrl, version " in capsys.readouterr().out


# What is refused: exit code 2, one line, nothing written.


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("trian ppo", ["COMMAND = 'trian'", "did you mean 'train'?"]),
        ("train ppoo --env probe/action", ["'ppoo'", "did you mean 'ppo'?"]),
        ("train ppo", ["env is missing", "--env CartPole-v1"]),
        ("train ppo --num-envs 2", ["env is missing"]),
        ("train ppo --env probe/acton", ["'probe/acton'", "'probe/action'"]),
        ("train ppo --env MNISTBandit-bsuite", ["'MNISTBandit-bsuite'", "downloads"]),
        ("train ppo --env no_such_module:make", ["no_such_module"]),
        ("train ppo --env probe/action --learning-rat 1", ["--learning-rate"]),
        ("train ppo --env probe/action --num-envs two", ["num-envs", "'two'", "whole"]),
        ("train ppo --env probe/action --num-envs 2.5", ["num-envs", "'2.5'", "whole"]),
        ("train ppo --env probe/action --num-envs 0", ["num_envs = 0", "at least 1"]),
        ("train ppo --env probe/action --seed x", ["seed", "'x'", "whole number"]),
        ("train ppo --env probe/action --seed=-1", ["seed = -1", "at least 0"]),
        ("train ppo --env probe/action --num-seeds 0", ["num_seeds = 0", "at least 1"]),
        ("train ppo --env probe/action --gamma 2", ["gamma = 2.0", "at most 1"]),
        ("train ppo --env probe/action --gamma nan", ["gamma = nan", "a number"]),
        ("train ppo --env probe/action --gamma high", ["gamma", "'high'", "a number"]),
        ("train ppo --env probe/action --learning-rate inf", ["learning_rate = inf"]),
        ("train ppo --env probe/action --target-kl x", ["target-kl", "'x'", "none"]),
        ("train ppo --env probe/action --total-steps=-5", ["total_steps = -5.0"]),
        ("train ppo --env probe/action --hidden-sizes 64,x", ["hidden-sizes", "64,x"]),
        (
            "train ppo --env probe/action --hidden-sizes 64,0",
            ["hidden_sizes = (64, 0)"],
        ),
        (
            "train ppo --env probe/action --activation thanh",
            ["'thanh'", "mean 'tanh'?"],
        ),
        ("train ppo --env probe/action --anneal-lr yes", ["yes"]),
        (
            "train ppo --env probe/action --num-envs 3 --num-steps 5",
            ["num_minibatches = 4", "= 15", "try 3"],
        ),
        (
            "train ppo --env probe/action --network gru(size=8) --num-minibatches 3",
            ["num_minibatches = 3", "num_envs = 8"],
        ),
        ("train dqn --env Pendulum-v1", ["Discrete", "Pendulum-v1", "Box", "ppo"]),
        (
            "train dqn --env probe/action --total-steps 10",
            ["learning_starts = 10000", "total_steps = 10"],
        ),
        (
            "train reinforce --env probe/truncation --baseline none --num-steps 4",
            ["num_steps = 4", "baseline = 'none'", "5"],
        ),
        (
            "train reinforce --env probe/delay --weighting return",
            ["weighting = 'return'", "no time limit", "horizon"],
        ),
        ("train ppo --env probe/memory --env.lenght 3", ["lenght = 3", "'length'"]),
        ("train ppo --env probe/memory --env.length 1", ["length = 1", ">= 2"]),
        (
            "train ppo --env probe/memory --env.length",
            ["--env.length", "needs a value"],
        ),
        ("train ppo --env probe/memory --env.id 3", ["env.id", "--env ID"]),
        ("train ppo --env probe/action --stop {", ["stop = '{'", "training_iteration"]),
        ("train ppo --env probe/action --stop 3", ["stop = '3'", "training_iteration"]),
        (
            "train ppo --env probe/action --stop '{\"training_iterations\": 3}'",
            ["'training_iterations'", "did you mean 'training_iteration'?"],
        ),
        (
            'train ppo --env probe/action --stop \'{"training_iteration": "3"}\'',
            ["training_iteration = '3'", "number"],
        ),
        (
            "train ppo --env probe/action --stop '{\"training_iteration\": 2.5}'",
            ["stop_iterations = 2.5", "whole number"],
        ),
        ("train ppo --env probe/action --stop-iterations 0", ["stop_iterations = 0"]),
        ("train ppo --env probe/action --devices 99", ["num_devices = 99", "JAX sees"]),
        ("train ppo --env probe/action --devices 0", ["num_devices = 0"]),
        (
            "train ppo --env probe/action --parallel dta",
            ["parallel = 'dta'", "'data'?"],
        ),
        ("train ppo --env probe/action --stop-return nan", ["stop_return = nan"]),
        (
            "train ppo --config nowhere.toml",
            ["config = 'nowhere.toml'", "No such file"],
        ),
        (
            "train dqn --env probe/action --buffer-size 3000000000",
            ["buffer_size = 3000000000", "2^31"],
        ),
        ("train ppo --env CartPole-v1 --env.gravity Infinity", ["gravity = inf"]),
        (
            "train ppo --env CartPole-v1 --env.horizon 10000000000",
            ["horizon = 10000000000", "at most"],
        ),
        ("train ppo --env probe/action --total-steps 1e15", ["total_steps", "at most"]),
        (
            "train ppo --env probe/action --kl-penalty-target 0.01",
            ["kl_penalty_target = 0.01", "objective = 'clip'"],
        ),
        ("train ppo --env probe/action --squash", ["squash = True", "bounded Box"]),
        (
            "train ppo --env probe/action --num-seeds 2 --seed 2147483647",
            ["num_seeds = 2", "at most 1"],
        ),
        ("evaluate nowhere --seed -1", ["seed = -1"]),
        ("evaluate nowhere", ["RUN = 'nowhere'", "`jaxrl train`"]),
        ("evaluate nowhere --episodes 0", ["episodes = 0", "at least 1"]),
        ("evaluate nowhere --episodes many", ["episodes", "'many'"]),
        ("plot nowhere --out x.png", ["RUN = 'nowhere'", "metrics.jsonl"]),
        ("plot nowhere --out x.gif", ["out = 'x.gif'", ".png"]),
        ("plot nowhere", ["--out"]),
        ("plot --out x.png", ["RUNS"]),
        ("list everything", ["'everything'", "algorithms", "envs"]),
    ],
)
def test_bad_input_is_one_line_that_helps_and_nothing_is_written(
    command, parts, empty_folder, capsys
):
    line = refused(shlex.split(command), capsys)
    assert all(part in line for part in parts), line
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"cofig": {}}, ["cofig", "did you mean 'config'?", "hyper-parameters"]),
        ({"num_envs": 4}, ["num_envs", "`config`"]),
        ({"config": {"num_env": 4}}, ["num_env ", "did you mean 'num_envs'?"]),
        ({"config": {"num_envs": "4"}}, ["num_envs = '4'", "whole number"]),
        ({"config": {"learning_rate": [0.1, 0.2]}}, ["learning_rate = (0.1, 0.2)"]),
        ({"config": [1]}, ["config = [1]", "table"]),
        ({"env_params": 3}, ["env_params = 3", "table"]),
        ({"env": 3}, ["env = 3", "name"]),
        ({"seed": "a"}, ["seed = 'a'", "whole number"]),
        ({"num_seeds": True}, ["num_seeds = True", "whole number"]),
        ({"stop_return": "high"}, ["stop_return = 'high'", "number"]),
        ({"algorithm": "dqn"}, ["'dqn'", "`jaxrl train dqn`"]),
        ([1, 2], ["settings.json", "table"]),
    ],
)
def test_a_bad_setting_in_the_file_is_one_line(settings, parts, empty_folder, capsys):
    if isinstance(settings, dict):
        settings = {"env": "probe/action"} | settings
    (empty_folder / "settings.json").write_text(json.dumps(settings))
    line = refused(["train", "ppo", "--config", "settings.json"], capsys)
    assert all(part in line for part in parts), line
    assert [path.name for path in empty_folder.iterdir()] == ["settings.json"]


@pytest.mark.parametrize("file", ["settings.json", "settings.toml"])
def test_a_file_that_cannot_be_parsed_is_one_line(file, empty_folder, capsys):
    (empty_folder / file).write_text("{ nonsense")
    line = refused(["train", "ppo", "--config", file], capsys)
    assert f"config = {file!r}" in line and "line 1" in line


def test_a_folder_that_already_holds_a_run_is_refused(ppo_run, capsys):
    before = {path: path.stat().st_mtime_ns for path in ppo_run.rglob("*")}
    line = refused(train_argv("ppo", "--out", str(ppo_run)), capsys)
    assert str(ppo_run) in line and "give a new folder" in line
    assert {path: path.stat().st_mtime_ns for path in ppo_run.rglob("*")} == before


def test_a_file_in_the_place_of_the_folder_is_refused(empty_folder, capsys):
    (empty_folder / "file").write_text("mine")
    for out in ("file", "file/run"):
        line = refused(train_argv("ppo", "--out", out), capsys)
        assert f"out = {out!r}" in line and "give another one" in line
    assert (empty_folder / "file").read_text() == "mine"


def test_a_run_whose_policy_is_damaged_is_refused(ppo_run, tmp_path, capsys):
    run = shutil.copytree(ppo_run, tmp_path / "run")
    (run / "policy" / "arrays.safetensors").write_bytes(b"garbage")
    line = refused(["evaluate", str(run)], capsys)
    assert str(run / "policy" / "arrays.safetensors") in line and "damaged" in line


def test_a_metric_that_is_not_there_is_refused(ppo_run, capsys):
    argv = ["plot", str(ppo_run), "--out", "x.png", "--metric", "loss/valu"]
    line = refused(argv, capsys)
    assert "metric = 'loss/valu'" in line and "did you mean 'loss/value'?" in line


def test_a_run_without_metrics_yet_is_refused(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("")
    line = refused(["plot", str(tmp_path), "--out", "x.png"], capsys)
    assert "holds no metrics yet" in line


def test_a_picture_that_cannot_be_written_is_refused(ppo_run, empty_folder, capsys):
    line = refused(["plot", str(ppo_run), "--out", "no/folder/x.png"], capsys)
    assert "out = 'no/folder/x.png'" in line
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize("command", [[], ["train"]])
def test_a_command_without_its_object_shows_help(command, capsys):
    assert main(command) == 2
    shown = capsys.readouterr()
    assert "Usage: jaxrl" in shown.out and shown.err == ""


def test_a_bug_is_not_disguised_as_bad_input(monkeypatch):
    # Without a line of this file, which would be the user's.
    monkeypatch.setattr("jaxrl.envs.env_ids", functools.partial(int, "a bug"))
    with pytest.raises(ValueError, match="a bug"):
        main(["list", "envs"])


def test_deterministic_operations_are_asked_for_and_remembered(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        devices, "use_deterministic_operations", lambda: asked.append(True)
    )
    run = tmp_path / "run"
    assert main(train_argv("reinforce", "--quiet", "--out", str(run))) == 0
    assert not asked and not read_json(run / "config.json")["deterministic"]
    argv = ["--quiet", "--deterministic", "--out", str(tmp_path / "again")]
    assert main(train_argv("reinforce", *argv)) == 0
    assert main(["resume", str(tmp_path / "again"), "--quiet"]) == 0
    assert len(asked) == 2


# Errors that are not the command line's.


USERS = """
import jax.numpy as jnp, jaxrl

def missing():
    return open("parameters.json")

def library():
    raise OSError("libGLX.so.99: cannot open shared object file")

def attribute():
    return jaxrl.spaces.MultiDiscrete([2, 2])

def shapes():
    env = jaxrl.make("probe/action")
    def reset(key, params):
        return jnp.zeros(3).reshape(5)
    return env.replace(reset=reset)
"""


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("missing", "FileNotFoundError"),
        ("library", "OSError"),
        ("attribute", "AttributeError"),
        ("shapes", "TypeError"),
    ],
)
def test_an_error_of_the_users_code_shows_their_lines_alone(
    empty_folder, monkeypatch, capsys, name, last
):
    module = f"users_{name}"
    (empty_folder / f"{module}.py").write_text(USERS)
    monkeypatch.syspath_prepend(empty_folder)
    assert main(train_argv("ppo", "--quiet", env=f"{module}:{name}")) == 1
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == f"jaxrl: your code raised {last}:"
    files = [line for line in lines if line.startswith("  File ")]
    assert files and all(f"{module}.py" in line for line in files)
    assert lines[-1].startswith(last) and not list(empty_folder.glob("runs/*"))


@pytest.mark.parametrize(
    "error",
    [
        AssertionError(),
        RuntimeError("Unable to initialize backend 'nonsense': it is not known."),
    ],
)
def test_jax_that_cannot_start_is_doctors_sentence(monkeypatch, capsys, error):
    """What JAX raises where JAX_PLATFORMS names what is not installed."""

    def fail(*args):
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    for name in ("jax.devices", "jax.process_count", "jaxrl.envs.env_ids"):
        monkeypatch.setattr(name, fail)
    line = refused(["list", "envs"], capsys)
    assert "JAX does not start" in line and "JAX_PLATFORMS" in line


@pytest.mark.full
@pytest.mark.skipif(
    any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))),
    reason="CUDA is installed",
)
@pytest.mark.parametrize(
    "command",
    [
        "train ppo --env CartPole-v1 --out new",
        "evaluate RUN",
        "resume RUN",
        "check-env CartPole-v1",
    ],
)
def test_a_platform_that_is_not_installed_is_doctors_sentence(
    command, ppo_run, empty_folder
):
    """In a process of its own, where JAX itself fails."""
    program = "from jaxrl.cli import entry_point; entry_point()"
    shutil.copytree(ppo_run, "run")
    Path("run/summary.json").unlink()
    done = subprocess.run(
        [sys.executable, "-c", program, *command.replace("RUN", "run").split()],
        env=os.environ | {"JAX_PLATFORMS": "cuda", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("jaxrl: JAX does not start")
    assert "unset JAX_PLATFORMS, which is 'cuda'" in line
    assert [path.name for path in empty_folder.iterdir()] == ["run"]


@pytest.mark.parametrize("length", [300, 20_000])
@pytest.mark.parametrize(
    "command", ["evaluate", "resume", "report", "render --out a.gif", "train ppo --env"]
)
def test_a_name_that_is_too_long_is_bad_input(capsys, command, length):
    line = refused([*command.split(), "a" * length], capsys)
    assert "a" * 90 in line and "a" * 201 not in line


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ("CartPole-v1", False),
        ("brax/ant", False),
        ("mine:factory", True),
        ("gymnasium/mine:Mine-v0", True),
        ("gymnasium/my.own:space/Mine-v0", True),
    ],
)
def test_code_is_named_again_in_the_next_command(env, named):
    words = shlex.split(next_command("evaluate", "runs/a", "ppo", env))
    assert words == ["jaxrl", "evaluate", "runs/a"] + ["--env", env] * named


@pytest.mark.full
@pytest.mark.fast_cases("plot")
@pytest.mark.parametrize(
    "command",
    [
        "plot RUN --out x.png",
        "report RUN --out out",
        "collect RUN --out out --episodes 1",
        "export RUN --out x.bin --observations 10",
    ],
    ids=["plot", "report", "collect", "export"],
)
def test_a_full_disk_is_named_with_its_own_exit_code(
    command, ppo_run, empty_folder, monkeypatch, capsys
):
    words = command.replace("RUN", str(ppo_run)).split()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main(words) == 4
    (line,) = capsys.readouterr().err.strip().splitlines()
    out = words[words.index("--out") + 1]
    assert out.split(".")[0] in line and "No space left" in line
    assert "a file" not in line and "jaxrl resume" not in line
    assert not [path for path in empty_folder.rglob("*") if path.is_file()]


def test_a_config_file_may_have_a_byte_order_mark_and_umlauts(empty_folder):
    body = '# Größe\nenv = "CartPole-v1"\n[config]\ntotal_steps = 1024\n'
    Path("bom.toml").write_bytes(b"\xef\xbb\xbf" + body.encode())
    content = '\ufeff{"env": "CartPole-v1", "config": {"total_steps": 1024}}'
    Path("bom.json").write_bytes(content.encode())
    for name in ("bom.toml", "bom.json"):
        experiment = experiment_from_flags(ALGORITHMS["ppo"], {}, config_file=name)
        assert experiment.config.total_steps == 1024


def test_paths_in_a_config_file_are_found_beside_it(empty_folder):
    beside = empty_folder / "configs"
    beside.mkdir()
    (beside / "data").mkdir()
    (empty_folder / "other").mkdir()
    flags = {"config_file": "configs/bc.toml"}
    for data, expected in (("data", "configs/data"), ("other", "other")):
        (beside / "bc.toml").write_text(f'env = "probe/action"\nteacher = "{data}"\n')
        experiment = experiment_from_flags(ALGORITHMS["bc"], {}, **flags)
        assert experiment.teacher == expected
