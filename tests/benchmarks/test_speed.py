"""The benchmark: that it measures what it says, and tells what it could not measure."""

import io
import json
import runpy
import sys

import jax
import pytest

from benchmarks.speed import host, levels, protocol, run
from benchmarks.speed.cases import CASES
from jaxrl import DQN, PPO, make
from jaxrl.core.config import with_floats
from jaxrl.errors import InvalidInput
from tests.support.paths import ROOT
from tests.support.small import tiny

FAKE = """
import sys
sys.path.insert(0, {folder!r})
from protocol import serve

def prepare(case):
    return {{"compile_seconds": 0.5, "versions": {{}}, "note": "", "case": case["name"]}}

def run(seed, env_steps):
    if seed > 10_000:
        raise ValueError("no such\\nseed")
    return {{"seconds": 0.5, "env_steps": env_steps, "training_rate": 1.0}}

def learn(seeds, env_steps, episodes):
    return {{"returns": [{offset} + seed for seed in seeds], "env_steps": env_steps}}

serve({{"prepare": prepare, "run": run, "learn": learn}})
"""


@pytest.fixture
def fake(tmp_path):
    """The command of a worker that pretends."""

    def command(offset=0):
        script = tmp_path / f"fake{offset}.py"
        script.write_text(FAKE.format(folder=str(host.HERE), offset=offset))
        return [sys.executable, str(script)]

    return command


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_a_valid_configuration(name):
    from jaxrl.algorithms import ALGORITHMS
    from jaxrl.training.loop import prepare

    case = CASES[name]
    algorithm = ALGORITHMS[case.algorithm]
    plan = prepare(algorithm, algorithm.Config(**case.config), make(case.env))
    assert host.first_steps(case) > plan.warmup_env_steps
    assert set(case.bars) <= {*case.peers, "limit"}


def test_an_unknown_case_is_refused_before_anything_runs():
    with pytest.raises(InvalidInput, match="cases = 'B99'"):
        run.run_benchmark(["B99"])


def test_the_platform_chooses_the_sizes_of_populations():
    on_cpu, on_gpu = host.chosen_cases([], "cpu"), host.chosen_cases([], "gpu")
    assert "B2x16" in on_cpu and "B2x16" not in on_gpu
    assert "B2x2048" in on_gpu and "B2x2048" not in on_cpu


def test_a_worker_answers_fails_and_stays(fake):
    with host.worker(fake()) as process:
        assert process.ask("run", seed=1, env_steps=100)["env_steps"] == 100
        with pytest.raises(host.Failed, match="ValueError: no such seed"):
            process.ask("run", seed=99_999, env_steps=100)
        with pytest.raises(host.Failed, match="KeyError"):
            process.ask("dance")
        assert host.rate(process, 0, 100) == 200.0
        assert host.rate(process, 0, 100, seconds=2.0) == 200.0


def test_a_worker_that_cannot_start_is_told_not_raised(tmp_path):
    settings = host.Settings(quick=True)
    missing = [sys.executable, str(tmp_path / "missing.py")]
    with host.worker([sys.executable, "-c", "input()"]) as ours:
        found = host.run_peer("B1", CASES["B1"], settings, ours, missing, 100)
    assert "ended" in found["error"]
    assert "could not run" in host.against_in_words(found)


def test_pairs_take_turns_and_give_a_ratio(fake):
    settings = host.Settings(quick=True)
    with host.worker(fake()) as ours:
        found = host.run_peer("B1", CASES["B1"], settings, ours, fake(), 10_000)
    assert found["ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert found["compile_seconds"] == 0.5


def test_learning_check_compares_means(fake):
    case = CASES["B1"]._replace(learn_steps=100)
    commands = {"jaxrl": fake(100), "peer": fake(0)}
    found = host.learning_check("B1", case, host.Settings(quick=True), commands)
    assert found["returns"] == {"jaxrl": [100, 101], "peer": [0, 1]}
    low, high = found["difference"]["peer"]
    assert 99 <= low <= 100 <= high <= 101


def test_the_protocol_answers_line_by_line(monkeypatch, capfd):
    requests = ['{"do": "double", "x": 2}', "", '{"do": "quit"}', '{"do": "double"}']
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(requests)))
    # Standard output is put back afterwards: `serve` sends it to standard error.
    stdout, descriptor = sys.stdout, protocol.os.dup(1)
    try:
        protocol.serve({"double": lambda x: {"y": 2 * x}})
    finally:
        protocol.os.dup2(descriptor, 1)
        sys.stdout = stdout
    assert [json.loads(line) for line in capfd.readouterr().out.splitlines()] == [
        {"y": 4}
    ]


@pytest.mark.full
@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=lambda a: a.name)
def test_the_limit_is_measured(algorithm):
    env, config = make("probe/action"), with_floats(tiny(algorithm))
    rate, best, times = levels.limit(algorithm.name, config, env, 1, least=1e-3)
    assert rate > 0 and best == "whole"
    assert times["whole"] > 0 and times["forward passes"] > 0


def test_a_blockwise_gradient_is_the_whole_gradient():
    rows = jax.random.normal(jax.random.key(0), (512, 3))

    def gradient(params, rows):
        return (rows * params).sum(0)

    params = jax.numpy.arange(3.0)
    whole = gradient(params, rows)
    in_blocks = levels._in_row_blocks(gradient, 128, params, rows)
    assert jax.numpy.allclose(whole, in_blocks, atol=1e-3)


def test_the_tables_name_what_could_not_run(tmp_path):
    ok = {"median": 2e5, "min": 1e5, "max": 3e5}
    found = {
        "training": ok,
        "levels": {"environment": 1e6, "inference": 5e5, "limit": 2.5e5},
        "eta": 0.2,
        "of_limit": 0.8,
        "num_seeds": 1,
        "bars": {"rejax": 3.0, "limit": 0.7},
        "compile_cold_seconds": 6.0,
        "compile_warm_seconds": 1.0,
        "peers": {
            "rejax": {"ours": ok, "theirs": ok, "ratio": ok, "compile_seconds": 4.0},
            "sbx": {"error": "no wheel"},
        },
    }
    results = {
        "device": "cpu",
        "cores": 2,
        "devices": 2,
        "versions": {},
        "commit": "abc",
        "xla_flags": "",
        "cases": {"B1": found, "B5": {"error": "out of memory", "peers": {}}},
        "learning": {"B1": {"error": "no peer"}},
        "scaling": {"environments": [{"size": 4} | ok], "seeds": [{"size": 1} | ok]},
    }
    run.write(results, tmp_path)
    text = (tmp_path / "throughput.md").read_text()
    for expected in ("200 k", "80%", "no wheel", "out of memory", "no peer"):
        assert expected in text
    assert (tmp_path / "throughput.png").stat().st_size > 1_000
    assert run.kept(tmp_path)["commit"] == "abc"


SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_can_be_imported(script, monkeypatch):
    monkeypatch.syspath_prepend(script.parent)
    module = runpy.run_path(str(script), run_name="imported")
    assert module["__doc__"]
