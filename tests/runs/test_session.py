"""`jaxrl.runs.session`: what a training run leaves in its folder, and when it stops."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread
from safetensors.numpy import load_file

from jaxrl import make, spaces
from jaxrl.algorithms import ALGORITHMS
from jaxrl.cli import main
from jaxrl.cli.running import evaluation_in_words, remember_signals
from jaxrl.core import schema
from jaxrl.envs import register
from jaxrl.errors import InvalidInput
from jaxrl.evaluation import evaluate_population
from jaxrl.runs import loggers
from jaxrl.runs.artifact import Agents, load_agents
from jaxrl.runs.checkpoint import saved
from jaxrl.runs.experiment import Evaluation, Experiment, json_text
from jaxrl.runs.loggers import read_metrics
from jaxrl.runs.session import evaluate_agents, evaluation_of, run_experiment
from jaxrl.training.loop import NonFiniteError
from tests.support.runs import read_json, train, train_argv
from tests.support.small import tiny

RUNS = ("ppo_run", "reinforce_run", "dqn_run")
every_run = pytest.mark.parametrize("name", RUNS)
TIMES = ("seconds", "env_steps_per_second")


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def experiment(**changes) -> Experiment:
    """A small experiment that is only described or refused, never run."""
    algorithm = ALGORITHMS["ppo"]
    return Experiment(algorithm, tiny(algorithm), "probe/action", **changes)


@every_run
def test_a_run_folder_holds_what_it_should(name, request):
    files = {path.name for path in request.getfixturevalue(name).iterdir()}
    assert files == {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
        "policy",
        "learning_curve.png",
    }


@every_run
def test_metrics_are_whole_lines_with_the_same_keys(name, request):
    run = request.getfixturevalue(name)
    text = (run / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    rows = [json.loads(line) for line in text.splitlines()]
    seeds = read_json(run / "summary.json")["seeds"]
    assert len(rows) == read_json(run / "summary.json")["iterations"]
    for row in rows:
        assert row.keys() == rows[0].keys()
        per_seed = [value for name, value in row.items() if "/" in name]
        assert len(per_seed) >= 5
        assert all(len(value) == len(seeds) for value in per_seed)


@every_run
def test_metrics_count_iterations_and_environment_steps(name, request):
    run = request.getfixturevalue(name)
    rows, summary = read_metrics(run / "metrics.jsonl"), read_json(run / "summary.json")
    iterations = [row["iteration"] for row in rows]
    assert iterations == list(range(1, len(rows) + 1))
    steps = [row["env_steps"] for row in rows]
    assert len(set(np.diff(steps))) == 1 and steps[-1] == summary["env_steps"]


@pytest.mark.parametrize(
    ("name", "seeds", "iterations", "env_steps", "updates"),
    [
        ("ppo_run", [0, 1], 5, 40, 10),  # 2 environments x 4 steps, 2 minibatches
        ("reinforce_run", [0], 5, 40, 5),  # 2 environments x 4 steps
        ("dqn_run", [0], 8, 40, 8),  # 8 to warm up, then 4 between updates
    ],
)
def test_the_summary_counts_exactly(
    name, seeds, iterations, env_steps, updates, request
):
    summary = read_json(request.getfixturevalue(name) / "summary.json")
    assert summary["seeds"] == seeds
    assert summary["iterations"] == iterations
    assert summary["env_steps"] == env_steps
    assert summary["updates"] == updates


@every_run
def test_the_summary_says_what_it_ran_on_and_how_long(name, request):
    summary = read_json(request.getfixturevalue(name) / "summary.json")
    assert {"jaxrl", "python", "jax", "jaxlib", "numpy"} <= summary["versions"].keys()
    assert summary["platform"] == "cpu" and summary["device"]
    assert summary["compile_seconds"] > 0 and summary["run_seconds"] > 0
    assert summary["env_steps_per_second"] > 0


@every_run
def test_the_summary_holds_the_final_evaluation(name, request):
    summary = read_json(request.getfixturevalue(name) / "summary.json")
    evaluation, by_seed = summary["evaluation"], summary["evaluation_by_member"]
    assert (evaluation["algorithm"], evaluation["env"]) == (
        summary["algorithm"],
        "probe/action",
    )
    assert evaluation["seeds"] == summary["seeds"] and evaluation["episodes"] == 4
    assert evaluation["episode_return_mean"] == pytest.approx(np.mean(by_seed))
    assert len(by_seed) == len(summary["seeds"])
    assert set(by_seed) <= {-1.0, 1.0}  # a greedy policy always does the same here


@pytest.mark.full
@every_run
def test_the_learning_curve_is_drawn(name, request):
    picture = imread(request.getfixturevalue(name) / "learning_curve.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 10


@pytest.mark.fast_cases("reinforce_run")
@every_run
def test_config_json_asks_for_the_same_run_again(name, request, tmp_path):
    run = request.getfixturevalue(name)
    config = run / "config.json"
    algorithm = read_json(config)["algorithm"]
    again = tmp_path / "again"
    argv = ["train", algorithm, "--config", str(config), "--quiet", "--out", str(again)]
    assert main(argv) == 0
    assert read_json(again / "config.json") == read_json(config)
    first, second = (read_metrics(r / "metrics.jsonl") for r in (run, again))
    assert without_times(second) == without_times(first)
    tensors, same = (load_file(r / "policy/arrays.safetensors") for r in (run, again))
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(same[key], tensor, strict=True)
    evaluations = [read_json(r / "summary.json")["evaluation"] for r in (run, again)]
    assert evaluations[0] == evaluations[1]


def test_another_seed_is_another_run(ppo_run, tmp_path):
    other = train(tmp_path / "other", "ppo", "--seed", "5")
    assert read_json(other / "summary.json")["seeds"] == [5, 6]
    first, second = (read_metrics(r / "metrics.jsonl") for r in (ppo_run, other))
    assert without_times(first) != without_times(second)


def test_the_plan_is_exact_and_printed_before_compiling(tmp_path, capsys):
    assert main(train_argv("dqn", "--out", str(tmp_path / "run"))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "dqn on probe/action, seeds [0]"
    assert lines[1] == (
        "plan for each seed: 8 warm-up steps, then 8 iterations of 4 environment steps "
        "and 1 update: 40 environment steps, 8 updates"
    )
    assert lines[2].startswith("compiling ") and lines[3].startswith(
        "compiled and initialised in "
    )


@pytest.mark.parametrize("total_steps", ["41", "48"])
def test_a_total_within_an_iteration_runs_the_next_whole_one(
    total_steps, tmp_path, capsys
):
    run = tmp_path / "run"
    argv = train_argv("ppo", "--total-steps", total_steps, "--out", str(run))
    assert main(argv) == 0
    assert read_json(run / "summary.json")["env_steps"] == 48
    said = "is not a whole number of iterations: running the next one, 48"
    assert (said in capsys.readouterr().out) == (total_steps == "41")


def test_total_steps_smaller_than_an_iteration_run_one(tmp_path):
    run = train(tmp_path / "run", "ppo", "--total-steps", "1")
    assert read_json(run / "summary.json")["env_steps"] == 8


def test_stop_iterations_stops_after_so_many(tmp_path):
    run = train(tmp_path / "run", "ppo", "--stop-iterations", "3")
    assert read_json(run / "summary.json")["iterations"] == 3
    assert len(read_metrics(run / "metrics.jsonl")) == 3


def test_stop_iterations_beyond_the_total_change_nothing(tmp_path, capsys):
    run = tmp_path / "run"
    more = ["--stop-iterations", "9", "--total-steps", "41", "--out", str(run)]
    assert main(train_argv("ppo", *more)) == 0
    assert read_json(run / "summary.json")["iterations"] == 6
    assert "running the next one, 48" in capsys.readouterr().out


@pytest.mark.parametrize(("stop_return", "iterations"), [("-1.5", 1), ("1.5", 5)])
def test_stop_return_stops_once_it_is_reached(stop_return, iterations, tmp_path):
    # Returns of this environment are -1 and 1.
    run = train(tmp_path / "run", "ppo", "--stop-return", stop_return)
    summary = read_json(run / "summary.json")
    assert (summary["iterations"], summary["env_steps"]) == (iterations, 8 * iterations)


def test_the_default_folder_is_the_first_free_one(empty_folder, capsys):
    (empty_folder / "runs" / "ppo-probe_action-3-0").mkdir(parents=True)
    for _ in range(2):
        assert main(train_argv("ppo", "--seed", "3")) == 0
    names = [path.name for path in sorted((empty_folder / "runs").iterdir())]
    assert names == [f"ppo-probe_action-3-{n}" for n in range(3)]
    assert (empty_folder / "runs" / names[2] / "summary.json").exists()
    assert "ppo-probe_action-3-2" in capsys.readouterr().out.splitlines()[-1]


def test_an_empty_folder_is_taken(tmp_path):
    train(tmp_path, "ppo")
    assert (tmp_path / "summary.json").exists()


def test_a_folder_of_a_run_that_was_killed_at_once_is_taken(tmp_path):
    (tmp_path / "config.json.new").write_text('{"algo')
    train(tmp_path, "reinforce")
    assert not (tmp_path / "config.json.new").exists()


def test_a_folder_that_holds_something_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInput, match="is not empty, it may hold a run"):
        run_experiment(experiment(), tmp_path, report=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("seed", -1, "seed = -1: must be at least 0."),
        ("seed", 2**31, "seed = 2147483648: must be at most 2147483647."),
        ("seed", "a", "seed = 'a': must be a whole number."),
        ("num_seeds", 0, "num_seeds = 0: must be at least 1."),
        ("num_seeds", True, "num_seeds = True: must be a whole number."),
        ("stop_return", "high", "stop_return = 'high': must be a number."),
        ("stop_return", float("nan"), "stop_return = nan: must be a number."),
        ("stop_iterations", 0, "stop_iterations = 0: must be at least 1."),
        ("stop_iterations", 2.5, "stop_iterations = 2.5: must be a whole number."),
        ("evaluation_episodes", 0, "evaluation_episodes = 0: must be at least 1."),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_written(
    field, value, sentence, tmp_path
):
    with pytest.raises(InvalidInput) as error:
        run_experiment(experiment(**{field: value}), tmp_path / "run")
    assert str(error.value) == sentence
    assert not list(tmp_path.iterdir())


def test_a_run_that_becomes_non_finite_ends_with_3_and_keeps_its_metrics(
    tmp_path, capsys
):
    run = tmp_path / "run"
    env = "tests.support.runs:exploding"  # in the third iteration of 4 steps
    argv = train_argv("reinforce", "--quiet", "--out", str(run), env=env)
    assert main(argv) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "reward of environment 0 became NaN or infinite at train step 3 of seed 0"
        in line
    )
    losses = [row["loss/value"] for row in read_metrics(run / "metrics.jsonl")]
    assert len(losses) == 3 and losses[2] == [None]
    assert losses[0][0] >= 0 and losses[1][0] >= 0
    kept = {"config.json", "metrics.jsonl", "checkpoints"}
    assert {path.name for path in run.iterdir()} == kept


def test_a_learning_rate_that_is_far_too_high_ends_with_3(tmp_path, capsys):
    argv = train_argv("ppo", "--learning-rate", "1e30", "--quiet")
    assert main([*argv, "--out", str(tmp_path / "run")]) == 3
    assert "try a smaller learning_rate" in capsys.readouterr().err


def test_an_evaluation_that_is_not_finite_is_an_error(reinforce_run):
    policy = load_agents(reinforce_run)
    env = policy.env

    def step(key, state, action, params):
        state, timestep = env.step(key, state, action, params)
        return state, timestep._replace(reward=jnp.float32(jnp.nan))

    policy = policy._replace(env=env.replace(step=step))
    with pytest.raises(NonFiniteError, match="evaluation return of probe/action"):
        evaluate_agents(policy, 2, seed=0, greedy=True)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_run_after_the_chunk_with_everything_saved(
    tmp_path, monkeypatch, capfd, number, code
):
    write, handler = loggers.MetricsFile.write, signal.default_int_handler
    before = signal.signal(number, handler)

    def write_and_interrupt(self, row):
        write(self, row)
        if row["iteration"] == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(loggers.MetricsFile, "write", write_and_interrupt)
    run = tmp_path / "run"
    assert main(train_argv("ppo", "--out", str(run))) == 128 + number == code
    assert read_json(run / "summary.json")["iterations"] == 2
    assert load_agents(run).seeds == [0, 1]
    output = capfd.readouterr()
    assert "stopping in a few seconds" in output.err
    assert output.out.splitlines()[-1] == f"jaxrl resume {run}"
    assert signal.signal(number, before) is handler


def test_a_hangup_that_is_ignored_stays_ignored():
    """`nohup jaxrl train ...` goes on when the terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with remember_signals() as received:
            signal.raise_signal(signal.SIGHUP)
        assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)


def wait_for_end(child, seconds):
    """The status of a process, which is killed if it does not end in time."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.1)


@pytest.mark.full
def test_a_closed_terminal_ends_a_long_run_with_everything_saved(tmp_path):
    run = tmp_path / "run"
    argv = train_argv("reinforce", "--total-steps", "1e7", "--out", str(run))
    command = [sys.executable, "-c", "from jaxrl.cli import entry_point; entry_point()"]
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where nohup runs the tests
        os.execv(sys.executable, [*command, *argv])
    shown = threading.Thread(target=drain, args=(terminal,), daemon=True)
    shown.start()
    deadline = time.monotonic() + 240
    while not (
        (run / "metrics.jsonl").exists() and read_metrics(run / "metrics.jsonl")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.close(terminal)  # the system sends SIGHUP, and writing to the terminal fails
    status = wait_for_end(child, 120.0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP == 129
    summary = read_json(run / "summary.json")
    assert 0 < summary["env_steps"] < 1e7 and not summary["finished"]
    assert load_agents(run).seeds == [0]


def drain(terminal):
    """Read what is printed, until the terminal is closed."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


@pytest.mark.full
def test_sigterm_ends_a_long_run_with_everything_saved(tmp_path):
    run = tmp_path / "run"
    argv = train_argv("reinforce", "--total-steps", "1e7", "--out", str(run))
    command = [sys.executable, "-c", "from jaxrl.cli import entry_point; entry_point()"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, *argv],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        wait_for(lambda: (run / "metrics.jsonl").exists(), process)
        wait_for(lambda: (run / "metrics.jsonl").read_text(), process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM == 143, output.decode()
    summary = read_json(run / "summary.json")
    assert 0 < summary["env_steps"] < 1e7
    assert read_metrics(run / "metrics.jsonl")[-1]["env_steps"] <= summary["env_steps"]
    assert saved(run)[-1] == summary["iterations"] and not summary["finished"]
    assert load_agents(run).seeds == [0]


def wait_for(condition, process, timeout=120):
    """Waits until a condition holds, as long as the process lives."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_the_environment_of_an_experiment_is_the_one_that_is_recorded():
    small = experiment(env_params={})
    assert small.environment.id == small.env == "probe/action"
    assert small.environment is small.environment


def test_what_json_cannot_hold_is_refused_before_a_folder_is_made(empty_folder):
    algorithm = ALGORITHMS["ppo"]
    odd = Experiment(
        algorithm, tiny(algorithm), "CartPole-v1", {"gravity": np.float32(9)}
    )
    with pytest.raises(InvalidInput, match="cannot be recorded as JSON"):
        run_experiment(odd)
    assert not any(empty_folder.iterdir())


@pytest.mark.parametrize("obstacle", ["file", "dangling link"])
def test_where_runs_cannot_be_made_out_is_asked_for(empty_folder, obstacle):
    if obstacle == "file":
        (empty_folder / "runs").write_text("")
    else:
        (empty_folder / "runs").symlink_to(empty_folder / "not mounted")
    with pytest.raises(InvalidInput, match=r"'runs' cannot be made here .* give --out"):
        run_experiment(experiment(), report=lambda line: None)


def test_evaluation_keys_are_not_those_of_training(ppo_run, monkeypatch):
    used = []

    def record(*args, **kwargs):
        used.append(jax.random.key_data(args[4]))
        return evaluate_population(*args, **kwargs)

    monkeypatch.setattr("jaxrl.runs.session.evaluate_population", record)
    evaluate_agents(load_agents(ppo_run), 4, seed=0, greedy=True)
    assert not np.array_equal(used[0], jax.random.key_data(jax.random.key(0)))


def test_a_score_that_is_not_finite_is_recorded_as_none():
    def score(*_):
        return {"fit": np.array([np.nan, 2.0, np.inf])}

    algorithm = ALGORITHMS["ppo"]._replace(score=score)
    agents = Agents(algorithm, None, None, {}, None, [0, 1, 2])
    evaluation, _ = evaluation_of(
        agents, "probe/action", np.ones((3, 2)), np.ones((3, 2), bool)
    )
    assert evaluation["scores"] == {"fit": [None, 2.0, None]}
    schema.check(Evaluation, json.loads(json_text(evaluation)), "summary.json")
    _, line = evaluation_in_words(evaluation)
    assert line.startswith("fit: 2 (mean over seeds)") and "2 that are not" in line
    evaluation["scores"] = {"fit": [None] * 3}
    assert "not a finite number" in list(evaluation_in_words(evaluation))[1]


def test_what_cannot_be_recorded_is_named():
    with pytest.raises(InvalidInput, match="evaluation = nan"):
        json_text({"env": "probe/action", "evaluation": float("nan")})


def odd_env(layout=None, space=None):
    """`probe/action` with an argument or a space that a file cannot hold."""
    del layout
    env = make("probe/action")
    return env if space is None else env.replace(observation_space=SPACES[space])


SPACES = {
    "dict": {"x": spaces.box(-1.0, 1.0, (1,))},
    "nested": spaces.dict_space(a={"x": spaces.Discrete(2)}),
    "numbers as names": spaces.Dict(((1, spaces.Discrete(2)),)),
}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"env_params": {"space": "dict"}}, "observation_space"),
        ({"env_params": {"space": "nested"}}, "observation_space"),
        ({"env_params": {"space": "numbers as names"}}, "observation_space"),
        ({"env_params": {"layout": {0: 1}}}, "env_params"),
        ({"env_params": {"layout": object()}}, "JSON"),
    ],
)
def test_what_could_not_be_saved_is_refused_before_training(tmp_path, changes, field):
    asked = replace(experiment(), env="tests.runs.test_session:odd_env", **changes)
    with pytest.raises(InvalidInput, match=field):
        run_experiment(asked, tmp_path / "run", progress=False, report=print)
    assert not list(tmp_path.iterdir())


def acts_wrongly(config, env, agent, obs, memory, key, greedy):
    del config, env, agent, key, greedy
    return jnp.zeros(len(obs), jnp.int32), memory


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": lambda config, env, agents: [1.0]}, "must be a dict"),
        ({"score": lambda *_: {3: np.ones(1)}}, "must be a dict"),
        ({"score": lambda *_: {"fit": 1.0}}, r"'fit' has shape \(\) .* shape \(2,\)"),
        ({"score": lambda *_: {"fit": np.ones(1)}}, r"'fit' has shape \(1,\)"),
        ({"score": lambda *_: {"fit": np.ones((1, 2))}}, r"shape \(1, 2\)"),
        ({"score": lambda *_: {"fit": ["good"]}}, "must have a number"),
        ({"act": acts_wrongly}, "expected 3, got 2"),
    ],
)
def test_an_algorithm_that_cannot_be_evaluated_is_refused_before_training(
    tmp_path, changes, message
):
    asked = experiment(num_seeds=2)
    algorithm = asked.algorithm._replace(name="mine", **changes)
    asked = replace(asked, algorithm=algorithm)
    with pytest.raises((InvalidInput, ValueError), match=message):
        run_experiment(asked, tmp_path / "run", progress=False, report=print)
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_numbers_of_numpy_in_spaces_are_saved_and_read(tmp_path):
    """As factories that compute their sizes write them."""
    env = make("probe/action")
    odd = spaces.Box((np.float32(-1),), (np.float32(1),), (np.int64(1),), np.float32)
    register("test/numpy$a$b$", lambda: env.replace(observation_space=odd))
    asked = replace(experiment(), env="test/numpy$a$b$", evaluation_episodes=2)
    run, _ = run_experiment(asked, tmp_path / "run", progress=False, report=print)
    assert load_agents(run).env.observation_space == odd
