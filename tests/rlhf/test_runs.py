"""Runs of RLHF: what is in their folders is what was trained, cut anywhere it goes on
exactly, and every other command knows them."""

import dataclasses
import json
import shlex
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl.cli import main
from jaxrl.core import storage
from jaxrl.errors import InvalidInput
from jaxrl.pipelines.rlhf.demo import model_log_probs
from jaxrl.rlhf import data, policies, tasks, testbeds
from jaxrl.rlhf.models import language_model, lora
from jaxrl.rlhf.models.transformer import GPT
from jaxrl.rlhf.registry import RLHF
from jaxrl.rlhf.testbeds import small_world
from jaxrl.runs import checkpoint, session
from jaxrl.runs.artifact import load_agents
from jaxrl.runs.experiment import Experiment, read_experiment, train_command
from jaxrl.runs.loggers import read_metrics
from jaxrl.runs.session import resume_experiment, run_experiment
from jaxrl.sweeps.plan import read_sweep, sweep_command
from tests.cli.test_cli import refused
from tests.support.runs import read_json

QUIET = {"progress": False, "report": lambda line: None}
TOKENS = jnp.array([[0, 1, 2, 0], [2, 2, 1, 0]])


def small_experiment(name, params, **config):
    """An experiment on the small world, of a few train steps."""
    common = {"total_steps": 48.0, "batch_size": 8, "max_new_tokens": 5}
    algorithm = RLHF[name]
    chosen = algorithm.Config(**(common | config))
    params = {"number": 20} | params
    return Experiment(
        algorithm, chosen, "small-world", params, evaluation_episodes=4, keep=9
    )


@pytest.fixture(scope="module")
def ppo(sft_run, reward_run, tmp_path_factory):
    """PPO with adapters against the reward model: its folder, and what was in memory."""
    folder, results = tmp_path_factory.mktemp("ppo") / "run", []
    params = {"base": str(sft_run), "reward": str(reward_run)}
    config = {"lora_rank": 2, "num_minibatches": 1, "learning_rate": 1e-2}
    experiment = small_experiment("ppo", params, **config)
    run_experiment(experiment, folder, on_result=results.append, **QUIET)
    return folder, experiment, jax.tree.map(lambda x: x[0], results[0].agent)


def logits_of(known):
    model = GPT(known.config)
    return policies.logits(model, known.params, TOKENS, jnp.ones(TOKENS.shape, bool))


# What is loaded.


@pytest.mark.full
def test_each_agent_of_a_run_is_a_model(sft_run):
    first, second = (language_model.load(sft_run, k) for k in (0, 1))
    assert first.tokenizer == testbeds.small_tokenizer()
    assert first.config.max_length == 8 and first.config.width == 16
    assert not np.allclose(logits_of(first), logits_of(second))
    # Those that the run's own evaluation knows.
    agents = jaxrl.load_agents(sft_run)
    assert agents.seeds == [0, 1]
    for k, known in enumerate((first, second)):
        own = jax.tree.map(lambda x, k=k: x[k], agents.agents.policy)
        for x, y in zip(*map(jax.tree.leaves, (own, known.params)), strict=True):
            assert np.array_equal(x, y)
    with pytest.raises(InvalidInput, match=r"agent = 2: .* has 2, the first is 0"):
        language_model.load(sft_run, 2)


@pytest.mark.full
def test_adapters_are_all_that_is_stored_and_are_merged(ppo, sft_run):
    folder, experiment, agent = ppo
    about, arrays = storage.read(folder / "policy")
    parts = {name.split("/")[0] for name in arrays}
    assert parts == {"policy", "value", "opt_state", "kl_coef"}
    trained = {n for n in arrays if n.startswith(("policy/", "value/model/"))}
    assert {n.rsplit("/", 1)[1] for n in trained} == {"a", "b"}
    base = language_model.load(sft_run)
    size = sum(x.size for x in jax.tree.leaves(base.params))
    assert sum(x.size for x in arrays.values()) < size / 2
    place = Path(folder, about["env_params"]["base"])
    assert place.resolve() == Path(sft_run).resolve()
    # In memory: the base and the adapters.
    known = language_model.load(folder)
    adapters = policies.read_lora(experiment.config)
    merged = lora.merge(adapters, base.params, agent.policy)
    expected = logits_of(known._replace(params=merged))
    assert np.array_equal(logits_of(known), expected)
    assert not np.allclose(expected, logits_of(base))


def stored_again(run, folder, change):
    """The artefact of a run with another description."""
    about, arrays = storage.read(run / "policy")
    if "base" in about["env_params"]:
        place = Path(run, about["env_params"]["base"]).resolve()
        about["env_params"]["base"] = str(place)
    change(about)
    storage.write(folder / "policy", arrays, about)
    return folder


@pytest.mark.full
def test_adapters_need_their_base_as_it_was(ppo, tmp_path):
    def other(told):
        told["language_model"]["base"] = "0"

    def gone(told):
        told["env_params"]["base"] = str(tmp_path / "nowhere")

    run = stored_again(ppo[0], tmp_path / "other", other)
    with pytest.raises(InvalidInput, match="has changed since: train them anew"):
        language_model.load(run)
    run = stored_again(ppo[0], tmp_path / "gone", gone)
    with pytest.raises(InvalidInput, match="nowhere', which is not there"):
        language_model.load(run)


@pytest.mark.full
def test_a_manifest_without_what_is_needed_is_refused(sft_run, tmp_path):
    def no_tokenizer(told):
        del told["language_model"]["tokenizer"]

    run = stored_again(sft_run, tmp_path / "run", no_tokenizer)
    with pytest.raises(InvalidInput, match=r"language_model\.tokenizer"):
        language_model.load(run)


@pytest.mark.full
def test_a_reward_model_gives_mean_0_and_deviation_1(sft_run, reward_run, tmp_path):
    task = tasks.pairs("small-world", base=str(sft_run), max_length=8, number=200)
    rows = task.teacher.rows
    flat = [x.reshape(-1, 8) for x in rows[:3]]
    known = language_model.load_reward(reward_run)
    found = np.asarray(language_model.score(GPT(known.config), known.params, *flat))
    assert abs(found.mean()) < 0.2 and 0.8 < found.std() < 1.25
    # As it was learned it is another line of the same.
    about, arrays = storage.read(reward_run / "policy")
    about["config"]["normalize"] = False
    storage.write(tmp_path / "raw" / "policy", arrays, about)
    raw = language_model.load_reward(tmp_path / "raw")
    learned = np.asarray(language_model.score(GPT(raw.config), raw.params, *flat))
    assert not 0.8 < learned.std() < 1.25
    assert np.corrcoef(found, learned)[0, 1] > 0.9999
    # And it has learned: most of the labels are as it says.
    assert ((found[0::2] - found[1::2]) > 0).mean() > 0.6


@pytest.mark.full
def test_weights_of_hugging_face_are_told_apart(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = language_model.digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"22")
    assert language_model.digest(tmp_path) != before
    (tmp_path / "config.json").unlink()
    with pytest.raises(InvalidInput, match=r"config\.json cannot be read"):
        language_model.digest(tmp_path)


# What goes on.


def interrupted_run(experiment, folder, after):
    asked = iter(range(10**6))
    run_experiment(
        dataclasses.replace(experiment, checkpoint_every=0.0),
        folder,
        interrupted=lambda: next(asked) >= after,
        **QUIET,
    )
    return folder


@pytest.mark.full
@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_run_goes_on_exactly(ppo, tmp_path, monkeypatch, after):
    monkeypatch.setattr(checkpoint, "SHARE", float("inf"))
    reference, experiment, _ = ppo
    run = interrupted_run(experiment, tmp_path / "run", after)
    assert not read_json(run / "summary.json")["finished"]
    # A kill leaves lines behind the last checkpoint.
    path = run / "samples.jsonl"
    behind = '{"iteration": 5, "response": "left behind"}\n{"iteration": 5, "an'
    path.write_text(path.read_text() + behind)
    resume_experiment(run, **QUIET)
    assert path.read_text() == (reference / "samples.jsonl").read_text()
    rows, expected = (read_metrics(r / "metrics.jsonl") for r in (run, reference))
    for row in (*rows, *expected):
        del row["seconds"], row["env_steps_per_second"]
    assert rows == expected
    (_, arrays), (_, others) = (storage.read(r / "policy") for r in (run, reference))
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        assert array.tobytes() == others[name].tobytes(), name
    summaries = [read_json(r / "summary.json") for r in (run, reference)]
    assert summaries[0]["evaluation"] == summaries[1]["evaluation"]


@pytest.mark.full
def test_samples_are_of_the_beginning_and_the_end(ppo):
    lines = [json.loads(x) for x in (ppo[0] / "samples.jsonl").read_text().splitlines()]
    steps = [line["iteration"] for line in lines]
    assert sorted(set(steps)) == [0, 1, 2, 3, 4, 5, 6]
    # Two prompts of 20 are kept back.
    assert len(lines) == 14
    assert set(lines[0]) == {"iteration", "prompt", "response", "score", "kl"}
    assert abs(lines[0]["kl"]) < 1e-5 < abs(lines[-1]["kl"])


@pytest.mark.full
def test_samples_are_about_ten_times_a_run(ppo, tmp_path, monkeypatch):
    _, experiment, _ = ppo
    shown = []
    board = SimpleNamespace(
        write=lambda row: None,
        close=lambda: None,
        show=lambda rows, env_steps: shown.append((env_steps, len(rows))),
    )
    monkeypatch.setattr(session, "_other_loggers", lambda *_: [board])
    config = experiment.config.replace(total_steps=8.0 * 230)
    experiment = dataclasses.replace(experiment, config=config)
    run, _ = run_experiment(experiment, tmp_path / "run", **QUIET)
    lines = (run / "samples.jsonl").read_text().splitlines()
    steps = sorted({json.loads(x)["iteration"] for x in lines})
    # Chunks have 3 train steps: every eighth of the 77, and the end.
    assert steps == [*range(0, 230, 24), 230]
    # The other loggers are shown the same tables, of two prompts kept back.
    assert shown == [(8 * step, 2) for step in steps]


@pytest.mark.full
def test_a_run_whose_reward_model_has_changed_does_not_go_on(
    ppo, reward_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint, "SHARE", float("inf"))
    own = tmp_path / "reward"
    shutil.copytree(reward_run, own)
    _, experiment, _ = ppo
    params = experiment.env_params | {"reward": str(own)}
    experiment = dataclasses.replace(experiment, env_params=params)
    run = interrupted_run(experiment, tmp_path / "run", 2)
    about, arrays = storage.read(own / "policy")
    storage.write(own / "policy", arrays, about | {"another": True})
    with pytest.raises(InvalidInput, match="digests"):
        resume_experiment(run, **QUIET)


# Many agents.


@pytest.mark.full
def test_a_grid_of_settings_with_several_seeds(sft_run, tmp_path):
    command = (
        f"sweep rlhf-rloo --data small-world --base {sft_run} --reward small-world "
        "--number 20 --grid learning_rate=1e-4,1e-2 --num-seeds 2 --total-steps 32 "
        "--batch-size 8 --max-new-tokens 5 --no-anneal-lr --evaluation-episodes 4"
    )
    out = ["--quiet", "--out", str(tmp_path / "sweep")]
    assert main([*command.split(), *out]) == 0
    again = sweep_command(read_sweep(tmp_path / "sweep"))
    assert (
        "sweep rlhf-rloo --grid learning_rate=0.0001,0.01 --data small-world" in again
    )
    (run,) = (tmp_path / "sweep" / "runs").iterdir()
    logged = read_metrics(run / "metrics.jsonl")[-1]
    assert len(logged["policy/kl"]) == 4
    assert np.allclose(logged["optim/learning_rate"], [1e-4, 1e-4, 1e-2, 1e-2])
    # Those with the larger step have moved further.
    moved = np.abs(logged["policy/kl"])
    assert moved[2:].min() > moved[:2].max()
    # The gold reward of the world is the judge here, and is logged once more.
    assert np.allclose(logged["reward/gold"], logged["rollout/episode_return"])
    others = [language_model.load(run, k) for k in range(4)]
    assert len({logits_of(known).tobytes() for known in others}) == 4


# Other commands.


@pytest.mark.full
def test_the_command_of_a_run_makes_the_same_run(ppo, tmp_path):
    reference, _, _ = ppo
    command = train_command(read_experiment(reference))
    words = shlex.split(command)
    assert words[:3] == ["jaxrl", "rlhf", "ppo"]
    run = tmp_path / "run"
    assert main([*words[1:], "--quiet", "--out", str(run)]) == 0
    ours, theirs = (read_json(r / "config.json") for r in (run, reference))
    assert ours == theirs
    assert (run / "samples.jsonl").read_text() == (
        reference / "samples.jsonl"
    ).read_text()


@pytest.mark.full
def test_a_reward_that_is_no_number_ends_the_run(ppo, reward_run, tmp_path, capsys):
    about, arrays = storage.read(reward_run / "policy")
    arrays["reward/bias"] = np.full_like(arrays["reward/bias"], np.nan)
    storage.write(tmp_path / "reward" / "policy", arrays, about)
    experiment = read_experiment(ppo[0])
    params = experiment.env_params | {"reward": str(tmp_path / "reward")}
    command = train_command(dataclasses.replace(experiment, env_params=params))
    words = [*shlex.split(command)[1:], "--quiet", "--out", str(tmp_path / "run")]
    assert main(words) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "jaxrl: reward became NaN or infinite at train step 1 of seed 0: see to `reward`, "
        "which scores the responses."
    )
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.full
def test_a_run_is_evaluated(sft_run, reward_run, capsys):
    assert main(["evaluate", str(sft_run), "--episodes", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["seeds"] == [0, 1] and found["algorithm"] == "rlhf-sft"
    assert -1.4 < found["episode_return_mean"] < -0.8  # log 4 would be a guess
    assert main(["evaluate", str(reward_run), "--episodes", "20", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert 0.5 < found["episode_return_mean"] <= 1.0
    (error,) = found["scores"]["calibration_error"]
    assert 0 <= error <= 0.5 and lines[-2].startswith("calibration_error: ")


@pytest.mark.full
@pytest.mark.parametrize("word", ["load_policy", "collect"])
def test_a_language_model_does_not_act(sft_run, tmp_path, word):
    with pytest.raises(InvalidInput) as error:
        if word == "collect":
            jaxrl.collect(sft_run, tmp_path / "data", 1)
        else:
            jaxrl.load_policy(sft_run)
    assert str(error.value) == (
        f"RUN = {str(sft_run)!r}: a run of rlhf-sft has no policy that acts in an "
        f"environment; language models answer prompts: `jaxrl rlhf generate`."
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.full
def test_a_config_file_of_another_command(ppo, ppo_run, tmp_path, capsys):
    own, other = str(ppo[0] / "config.json"), str(ppo_run / "config.json")
    out = ["--out", str(tmp_path / "run")]
    line = refused(["train", "ppo", "--config", own, *out], capsys)
    assert "is for algorithm 'rlhf-ppo', not 'ppo': use `jaxrl rlhf ppo`" in line
    line = refused(["rlhf", "ppo", "--config", other, *out], capsys)
    assert "is for algorithm 'ppo', not 'rlhf-ppo': use `jaxrl train ppo`" in line
    line = refused(["rlhf", "grpo", "--config", own, *out], capsys)
    assert "use `jaxrl rlhf ppo`" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.full
@pytest.mark.parametrize("kind", ["dpo", "rankings"])
def test_preferences_of_a_file(sft_run, tmp_path, kind):
    rows = [dict(row) for row in testbeds.rows("small-world", "preference", 24)]
    if kind == "rankings":
        rows = [
            {"prompt": r["prompt"], "ranked": [r["chosen"], r["rejected"], "abcb"]}
            for r in rows
            if "abcb" not in (r["chosen"], r["rejected"])
        ]
    data.write_rows(tmp_path / "pairs.jsonl", rows)
    name = "dpo" if kind == "dpo" else "reward"
    config = RLHF[name].Config(total_steps=16.0, batch_size=4)
    params = {"base": str(sft_run), "max_length": 8}
    source = str(tmp_path / "pairs.jsonl")
    experiment = Experiment(RLHF[name], config, source, params, evaluation_episodes=4)
    run, summary = run_experiment(experiment, tmp_path / "run", **QUIET)
    assert 0 <= summary["evaluation"]["episode_return_mean"] <= 1
    first = read_metrics(run / "metrics.jsonl")[0]
    assert first["loss/preference"] == pytest.approx([np.log(2)], abs=1e-5)
    assert first["reward/accuracy"] == [0.5]
    if kind == "dpo":  # of responses of its own, at most as many as there is room for
        (length,), (ended,) = (
            summary["evaluation"]["scores"][x]
            for x in ("response_length", "responses_ended")
        )
        assert 1 <= length <= 7 and 0 <= ended <= 1
        shares = [summary["evaluation"]["scores"][f"distinct_{n}"][0] for n in (1, 2)]
        assert 0 < shares[0] < shares[1] <= 1
        assert first["policy/entropy"][0] > 0
    line = json.loads((run / "samples.jsonl").read_text().splitlines()[0])
    assert "response" in line or len(line["responses"]) == len(line["scores"])


@pytest.mark.full
def test_a_folder_may_be_moved(sft_run, tmp_path):
    shutil.copytree(sft_run, tmp_path / "moved")
    moved, here = language_model.load(tmp_path / "moved"), language_model.load(sft_run)
    assert np.array_equal(logits_of(moved), logits_of(here))


@pytest.mark.full
def test_pretraining_of_a_file_with_its_own_characters(tmp_path):
    rows = [{"text": "tea for two"}, {"text": "two for tea"}] * 10
    data.write_rows(tmp_path / "texts.jsonl", rows)
    words = "--tokenizer characters --pack true --max-length 16 --total-steps 64"
    words += " --model num_layers=1,num_heads=2,width=16 --batch-size 8 --quiet"
    argv = ["rlhf", "pretrain", *words.split(), "--evaluation-episodes", "4"]
    argv += ["--data", str(tmp_path / "texts.jsonl"), "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    known = language_model.load(tmp_path / "run")
    assert known.tokenizer.encode("toe") == [6, 4, 2]
    assert known.tokenizer.vocab_size == known.config.vocab_size == 10


@pytest.mark.full
def test_a_new_model_has_the_sizes_asked_for():
    task = tasks.texts(
        "small-world", kind="completion", max_length=8, model={"width": 8}, number=20
    )
    assert task.model.config.mlp_width == 32 and task.model.config.num_layers == 2
    assert task.teacher.params is None and task.num_rows == 18
    assert jax.tree.leaves(task.teacher.held_out)[0].shape == (2, 8)
    whole = tasks.texts(
        "small-world", kind="text", max_length=8, held_out=0.0, number=20
    )
    assert whole.num_rows == 20
    assert np.array_equal(whole.teacher.rows.tokens, whole.teacher.held_out.tokens)


# Learning, against what is exact.


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A language model of the small world that knows its reference well."""
    config = RLHF["sft"].Config(
        total_steps=20_000.0, batch_size=128, learning_rate=3e-3
    )
    model = {"num_layers": 1, "num_heads": 2, "width": 32}
    params = {"model": model, "max_length": 8}
    experiment = Experiment(RLHF["sft"], config, "small-world", params)
    run, _ = run_experiment(experiment, tmp_path_factory.mktemp("sft") / "run", **QUIET)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    # Adapters leave embeddings, norms and biases as they are, and go slower.
    "name, share",
    [("ppo", 0.8), ("rloo", 0.8), ("grpo", 0.8), ("lora", 0.5)],
)
def test_most_of_what_can_be_gained_is_gained(name, share, reference, tmp_path):
    algorithm, beta = RLHF["rloo" if name == "lora" else name], 0.5
    config = algorithm.Config(
        total_steps=20_000.0,
        batch_size=128,
        learning_rate=1e-2 if name == "lora" else 3e-3,
        max_new_tokens=5,
        kl_coef=beta,
        lora_rank=4 if name == "lora" else 0,
        lora_targets="query,key,value,output,up,down",
    )
    params = {"base": str(reference), "reward": "small-world"}
    experiment = Experiment(algorithm, config, "small-world", params)
    run, _ = run_experiment(experiment, tmp_path / "run", **QUIET)
    own, ref = (model_log_probs(language_model.load(x)) for x in (run, reference))
    gold = testbeds.small().reward
    value = partial(
        small_world.kl_penalized_reward, ref_log_prob=ref, reward=gold, beta=beta
    )
    before, after = float(value(ref)), float(value(own))
    best = float(small_world.optimum(ref, gold, beta).value)
    assert before < after <= best + 1e-4
    assert after - before > share * (best - before), (before, after, best)


@pytest.mark.full
def test_runs_are_found_from_every_folder_and_after_a_move(tmp_path, monkeypatch):
    """Data and base are kept relative to the run folder."""
    place, other = tmp_path / "place", tmp_path / "other"
    place.mkdir()
    other.mkdir()
    rows = [{"prompt": f"say {c}", "completion": c * 3} for c in "abcdefghij"]
    data.write_rows(place / "rows.jsonl", rows)
    monkeypatch.chdir(place)
    common = "--data rows.jsonl --max-length 16 --total-steps 16 --batch-size 8 --quiet"
    common += " --evaluation-episodes 2"
    model = "--tokenizer bytes --model num_layers=1,width=8,num_heads=2,mlp_width=8"
    assert main(f"rlhf sft {common} {model} --out base".split()) == 0
    assert main(f"rlhf sft {common} --base base --lora-rank 2 --out lora".split()) == 0
    kept = read_json(place / "lora" / "config.json")
    assert kept["env"] == "../rows.jsonl" and kept["env_params"]["base"] == "../base"
    monkeypatch.chdir(other)
    place.rename(tmp_path / "moved")
    run = tmp_path / "moved" / "lora"
    assert main(["evaluate", str(run), "--episodes", "2"]) == 0
    assert language_model.load(run).params is not None
    (run / "summary.json").unlink()
    assert main(["resume", str(run), "--quiet"]) == 0
    again = ["rlhf", "sft", "--config", str(run / "config.json"), "--quiet"]
    assert main([*again, "--out", "again"]) == 0
    (tmp_path / "moved" / "rows.jsonl").unlink()
    with pytest.raises(InvalidInput, match=r"rows\.jsonl is not there"):
        load_agents(run)
