"""`jaxrl rlhf ...`: every command once, and what it refuses in one sentence."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jaxrl.cli import feedback, main, options
from jaxrl.core import storage
from jaxrl.errors import InvalidInput
from jaxrl.pipelines.rlhf import loop, stages, writing
from jaxrl.pipelines.rlhf.writing import Sampling
from jaxrl.rlhf import data, responses, rloo, tasks, testbeds
from jaxrl.rlhf.models import language_model
from jaxrl.rlhf.registry import RLHF
from tests.cli.test_cli import refused
from tests.support.runs import read_json


@pytest.fixture(scope="module")
def base(sft_run):
    """A word that stands for a folder in the command lines below."""
    return {"SFT": str(sft_run)}


@pytest.fixture(scope="module")
def made(base, reward_run):
    """Two such words; the second's folder takes seconds to train."""
    return base | {"REWARD": str(reward_run)}


def argv(line, made):
    return ["rlhf", *(made.get(word, word) for word in line.split())]


# Help, and config files.


@pytest.mark.parametrize("name", feedback.COMMANDS)
def test_help_says_what_each_flag_is_by_default(name, capsys):
    assert main(["rlhf", name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    command = feedback.COMMANDS[name](None)
    assert len(command.help or "") > 10
    assert "[default: None]" not in text
    for option in command.params:
        if option.opts[0].startswith("--"):
            assert f"{option.opts[0]} " in text or f"{option.opts[0]} /" in text
    if name in RLHF:
        defaults = RLHF[name].Config()
        for field in dataclasses.fields(defaults):
            shown = getattr(defaults, field.name)
            shown = "none" if shown is None else shown
            assert f"[default: {shown}]" in text, field.name


@pytest.mark.full
def test_commands_that_do_not_exist(capsys):
    assert main(["rlhf"]) == 2
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in feedback.COMMANDS)
    line = refused(["rlhf", "grp"], capsys)
    assert "COMMAND = 'grp' is not a command of rlhf (did you mean 'grpo'?)" in line


@pytest.mark.full
@pytest.mark.parametrize("name", RLHF)
def test_a_config_file_describes_a_run(name, tmp_path):
    path, fields = tmp_path / "config.toml", options.parameters_of(RLHF[name])
    lines = ['data = "pairs.jsonl"', "seed = 3", "held_out = 0.25"]
    lines += ['base = "runs/sft"'] * ("base" in fields)
    if "model" in fields:
        lines[-1] = "model = { width = 32, num_layers = 1 }"
    lines += ["[config]", "total_steps = 100", "learning_rate = 0.5"]
    path.write_text("\n".join(lines))
    given = {"config_file": str(path), "learning_rate": 0.25, "held_out": 0.5}
    found = options.experiment_from_flags(RLHF[name], {}, **given)
    assert (found.env, found.seed) == ("pairs.jsonl", 3)
    assert found.env_params["held_out"] == 0.5  # a flag wins
    assert (found.config.total_steps, found.config.learning_rate) == (100, 0.25)
    if "model" in fields:
        assert found.env_params["model"] == {"width": 32, "num_layers": 1}
    else:
        assert found.env_params["base"] == "runs/sft"


@pytest.mark.parametrize(
    "content, words",
    [
        ("dta = 'x'", "dta in .* is not a setting .did you mean 'data'"),
        ("env_params = 3", "env_params = 3 in .* must be a table"),
        (
            "data = 'x'\ngroup_size = 3",
            r"hyper-parameters belong in the table `config`",
        ),
        ("data = 3", "data = 3 in .* must be a name"),
    ],
)
def test_config_files_that_are_wrong(content, words, tmp_path, capsys):
    path = tmp_path / "config.toml"
    path.write_text(content)
    given = {"config_file": str(path)}
    with pytest.raises(InvalidInput, match=words):
        options.experiment_from_flags(RLHF["grpo"], {}, **given)


# The commands that train are in test_rlhf_runs.py; here is one from a file.


@pytest.mark.full
def test_grpo_from_a_file(made, tmp_path, capsys):
    path, out = tmp_path / "grpo.toml", tmp_path / "run"
    path.write_text(
        f'data = "small-world"\nnumber = 20\nbase = "{made["SFT"]}"\n'
        f'reward = "small-world"\nevaluation_episodes = 4\n'
        f"[config]\nbatch_size = 8\ntotal_steps = 16\nmax_new_tokens = 5\n"
    )
    assert main(["rlhf", "grpo", "--config", str(path), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == f"jaxrl evaluate {out}"
    assert "100 %" in shown.err
    written = read_json(out / "config.json")
    assert written["algorithm"] == "rlhf-grpo" and written["env"] == "small-world"


# Responses.


@pytest.mark.full
def test_generate(made, capsys):
    line = "generate SFT --prompt a --number 3 --max-new-tokens 5"
    assert main(argv(f"{line} --seed 1 --json", made)) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert found["prompt"] == "a" and found["responses"] == lines[:-1]
    assert all(set(text) <= set("abc") and len(text) <= 5 for text in lines[:-1])
    assert main(argv(f"{line} --greedy", made)) == 0
    assert len(set(capsys.readouterr().out.splitlines())) == 1
    assert main(argv(f"{line} --top-k 1", made)) == 0
    assert len(set(capsys.readouterr().out.splitlines())) == 1


@pytest.mark.full
def test_generate_from_a_file_into_a_folder(made, tmp_path, capsys):
    path, out = tmp_path / "say.toml", tmp_path / "said"
    path.write_text("prompt = 'b'\nnumber = 2\nmax_new_tokens = 5")
    words = ["rlhf", "generate", made["SFT"], "--config", str(path)]
    assert main([*words, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [{"prompt": "b", "response": text} for text in lines]
    assert len(lines) == 2 and data.read(out / "responses.jsonl") == rows
    assert "is not empty" in refused([*words, "--out", str(out)], capsys)
    path.write_text("prmpt = 'b'")
    assert "did you mean 'prompt'" in refused(words, capsys)
    path = tmp_path / "say.json"
    path.write_text("[]")
    assert "must be a table" in refused([*words[:-1], str(path)], capsys)


@pytest.mark.full
def test_best_of_n(made, tmp_path, capsys):
    # In the order of the file; its prompts are too few for a part to be kept back.
    data.write_rows(tmp_path / "p.jsonl", [{"prompt": x} for x in "ca"])
    line = f"best-of-n --data {tmp_path}/p.jsonl --base SFT --reward REWARD --n 4"
    line += f" --max-new-tokens 5 --out {tmp_path}/out --json"
    assert main(argv(line, made)) == 0
    rows = data.read(tmp_path / "out" / "responses.jsonl")
    assert [row["prompt"] for row in rows] == ["c", "a"]
    score = stages.load_scorer(made["REWARD"])
    for row in rows:
        assert row["score"] >= row["mean_score"]
        if len(row["response"]) < 5:  # it ended: with its EOS, as the scorer reads it
            (again,) = score([(row["prompt"], row["response"])])
            assert row["score"] == pytest.approx(again, abs=1e-4)
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads(lines[-1])
    assert summary == read_json(tmp_path / "out" / "summary.json")
    assert summary["prompts"] == 2 and lines[-2].endswith("responses.jsonl")
    # EOS counts too, where there is one.
    words = [len(row["response"]) for row in rows]
    assert sum(words) / 2 <= summary["length"] <= sum(words) / 2 + 1
    assert 1 <= summary["mean_length"] <= 5


@pytest.mark.full
def test_length_and_diversity_of_the_best():
    scores, tokens = np.array([0.0, 1.0]), [np.array([1]), np.array([1, 2, 1])]
    one = writing.Group("p", ["x", "y"], scores, tokens)
    rows, found = writing.summarise([(one, 1), (one, 1)])
    assert (
        rows == [{"prompt": "p", "response": "y", "score": 1.0, "mean_score": 0.5}] * 2
    )
    assert found == {
        "score": 1.0,
        "mean_score": 0.5,
        "length": 3.0,
        "mean_length": 2.0,
        "distinct_1": pytest.approx(2 / 6, abs=1e-6),
        "distinct_2": 0.5,
    }


@pytest.mark.full
def test_a_score_that_is_no_number_is_refused(made, tmp_path):
    about, arrays = storage.read(Path(made["REWARD"]) / "policy")
    arrays["reward/bias"] = np.full_like(arrays["reward/bias"], np.nan)
    storage.write(tmp_path / "policy", arrays, about)
    task = tasks.prompts(
        "small-world", base=made["SFT"], reward=str(tmp_path), number=4, held_out=0.0
    )
    with pytest.raises(InvalidInput, match="a score that is no finite number"):
        list(writing.best_of_n(task, Sampling(5), 4, 0))
    with pytest.raises(InvalidInput, match="reward is missing"):
        writing.best_of_n(task.replace(judge=None), Sampling(5), 4, 0)


# Labels.

LABEL = "label --data small-world --base SFT --pairs 12 --max-new-tokens 5"


@pytest.fixture(scope="module")
def labelled(made, tmp_path_factory):
    """Twelve pairs, labelled by the gold reward."""
    out = tmp_path_factory.mktemp("labels") / "out"
    line = f"{LABEL} --labeler small-world --out {out}"
    assert main(argv(line, made)) == 0
    return out, line


@pytest.mark.full
def test_label_goes_on_where_it_was(labelled, made, capsys):
    out, line = labelled
    path = out / "pairs.jsonl"
    whole = path.read_text()
    rows = data.read(path)
    assert len(rows) == 12
    gold = testbeds.TESTBEDS["small-world"].gold
    for row in rows:
        prompt = row["prompt"]
        assert gold(prompt, row["chosen"]) >= gold(prompt, row["rejected"])
    path.write_text("".join(whole.splitlines(keepends=True)[:7]))
    assert main(argv(line, made)) == 0
    assert "7 of 12 are labelled already" in capsys.readouterr().out
    assert path.read_text() == whole
    shown = refused(argv(f"{line} --noise 1", made), capsys)
    assert "was begun with something else" in shown and "label.json" in shown
    assert path.read_text() == whole


@pytest.mark.full
def test_a_person_labels_and_stops(labelled, made, tmp_path, monkeypatch, capsys):
    said = iter(["1", "x", "2", "q"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    assert main(argv(f"{LABEL} --labeler terminal --out {tmp_path}/out", made)) == 0
    shown = capsys.readouterr().out
    assert "[1 of 12]" in shown and "2 of 12 pairs are labelled" in shown
    assert len(data.read(tmp_path / "out" / "pairs.jsonl")) == 2
    rows = data.read(labelled[0] / "pairs.jsonl")[:2]
    for mine, theirs in zip(data.read(tmp_path / "out/pairs.jsonl"), rows, strict=True):
        assert sorted(mine.values()) == sorted(theirs.values())


@pytest.mark.full
def test_models_label(labelled, made, tmp_path):
    line = f"{LABEL} --labeler REWARD --out {tmp_path}/scored"
    assert main(argv(line, made)) == 0
    score = stages.load_scorer(made["REWARD"])
    for row in data.read(tmp_path / "scored" / "pairs.jsonl"):
        pairs = [(row["prompt"], row[name]) for name in ("chosen", "rejected")]
        better, worse = score(pairs)
        assert better >= worse
    # A language model's verdict; its template has to fit into it.
    template = "{prompt}{first}{second}"
    judge = stages.make_labeler(made["SFT"], template=template, verdicts=("a", "b"))
    rows = [stages.Question("a", "b", "cc"), stages.Question("b", "a", "")._replace()]
    assert set(judge(rows[:1])) <= {0, 1}


# The loop.

LOOP = """
data = "small-world"
number = 20
base = "{SFT}"
labeler = "small-world"
rounds = {rounds}
pairs = 12
max_length = 8
max_new_tokens = 5
algorithm = "rloo"
[reward]
total_steps = 16
batch_size = 8
[policy]
total_steps = 48
batch_size = 8
"""


def written(made, folder, rounds=1, more=""):
    path = folder / "loop.toml"
    path.write_text(LOOP.format(rounds=rounds, **made) + more)
    return path


@pytest.mark.full
def test_one_round_of_the_loop(made, tmp_path, capsys):
    path, out = written(made, tmp_path), tmp_path / "out"
    words = ["rlhf", "loop", "--config", str(path), "--quiet", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (found,) = json.loads(lines[-1])["rounds"]
    assert read_json(out / "rounds.json") == [found]
    assert found["base"] == made["SFT"] and found["policy"].endswith("round-1/policy")
    told = read_json(out / "round-1" / "policy" / "config.json")
    assert told["env_params"]["reward"].endswith("round-1/reward")
    assert told["config"]["max_new_tokens"] == 5
    summary = read_json(out / "round-1" / "reward" / "summary.json")
    assert summary["evaluation"]["episode_return_mean"] == found["reward_accuracy"]
    assert len(data.read(out / "round-1" / "all.jsonl")) == 12
    assert found.keys() >= loop.LOGGED.keys() and 1 <= found["length"] <= 5
    # Again: nothing is done twice.
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*/policy/manifest.json")}
    assert main(words) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    line = refused([*words, "--noise", "0.5"], capsys)
    assert "was begun with something else" in line


@pytest.mark.full
def test_each_round_begins_with_the_policy_of_the_last(made, tmp_path, monkeypatch):
    trained = []

    def train(name, source, params, config, out, seed=0, **host):
        trained.append((name, source, params, seed))
        kind = "REWARD" if name == "reward" else "SFT"
        shutil.copytree(made[kind], out)
        return {"evaluation": {"episode_return_mean": 0.5}}

    monkeypatch.setattr(stages, "train", train)
    wanted = loop.Loop(
        *("small-world", made["SFT"], 3, 4, "grpo", 8, Sampling(5)),
        policy={"max_new_tokens": 5},
    )
    labeler = stages.make_labeler("small-world", noise=0.5)
    found = loop.run(wanted, labeler, tmp_path / "out", report=lambda line: None)
    policies = [str(tmp_path / "out" / f"round-{i}" / "policy") for i in (1, 2, 3)]
    assert [row["policy"] for row in found] == policies
    assert [row["base"] for row in found] == [made["SFT"], *policies[:2]]
    assert [name for name, *_ in trained] == ["reward", "grpo"] * 3
    rewards, optimised = trained[0::2], trained[1::2]
    # Reward models are begun anew, from all labels so far.
    assert all(params["base"] == made["SFT"] for _, _, params, _ in rewards)
    assert [len(data.read(source)) for _, source, _, _ in rewards] == [4, 8, 12]
    assert [params["base"] for _, _, params, _ in optimised] == [
        made["SFT"],
        *policies[:2],
    ]
    assert len({seed for *_, seed in trained}) == 3


@pytest.mark.full
def test_a_stage_goes_on_only_with_what_it_was_begun_with(made):
    before = read_json(Path(made["SFT"]) / "summary.json")
    told = read_json(Path(made["SFT"]) / "config.json")
    parts = ("sft", told["env"], told["env_params"])
    same = stages.train(*parts, told["config"], Path(made["SFT"]), told["seed"])
    assert same == before
    other = told["config"] | {"learning_rate": 0.5}
    with pytest.raises(InvalidInput, match="holds a run with another config: give"):
        stages.train(*parts, other, Path(made["SFT"]), told["seed"])


# The demo.


@pytest.fixture
def trained_before(made, monkeypatch):
    """Stages that copy a run that is there."""

    def train(name, source, params, config, out, seed=0, **host):
        shutil.copytree(made["REWARD" if name == "reward" else "SFT"], out)

    monkeypatch.setattr(stages, "train", train)


@pytest.mark.full
def test_the_demo_compares_with_what_is_exact(trained_before, tmp_path, capsys):
    out, path = tmp_path / "demo", tmp_path / "demo.toml"
    path.write_text("quick = true")
    words = ["rlhf", "demo", "--config", str(path)]
    assert main([*words, "--out", str(out), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = json.loads(lines[-1])["table"]
    stored = read_json(out / "table.json")
    assert stored["table"] == table and (out / "demo.png").stat().st_size > 10_000
    sft, best, policy, optimum = table
    # Here the policy is the reference.
    assert sft["kl"] == pytest.approx(0.0, abs=1e-5)
    assert policy["reward"] == pytest.approx(sft["reward"], abs=1e-5)
    assert optimum["kl_from_optimum"] == pytest.approx(0.0, abs=1e-5)
    assert optimum["value"] > max(row["value"] for row in (sft, best, policy))
    gap = optimum["value"] - sft["value"]
    assert optimum["kl"] > 0 and gap > 0
    one, *more = stored["best_of_n"]
    assert one["reward"] == pytest.approx(sft["reward"], abs=1e-5)
    divergence = [row["kl"] for row in (one, *more)]
    assert divergence == sorted(divergence)
    # No policy is above the frontier.
    frontier = sorted((row["kl"], row["reward"]) for row in stored["frontier"])
    for row in more:
        assert row["reward"] < np.interp(row["kl"], *zip(*frontier, strict=True)) + 1e-3
    for row in table:
        assert f"{row['reward']:11.3f}" in "\n".join(lines)
    # Of another size it is another demo.
    words = ["rlhf", "demo", "--out", str(out)]
    assert "was begun with something else" in refused(words, capsys)


@pytest.mark.full
def test_the_demo_and_a_loop_of_two_rounds_run_whole(made, tmp_path):
    assert (
        main(["rlhf", "demo", "--quick", "--quiet", "--out", str(tmp_path / "d")]) == 0
    )
    path, out = written(made, tmp_path, rounds=2), tmp_path / "loop"
    words = ["rlhf", "loop", "--config", str(path), "--quiet", "--out", str(out)]
    assert main(words) == 0
    first, second = read_json(out / "rounds.json")
    assert second["base"] == first["policy"]


# What is refused: one sentence, exit code 2, and nothing is written.

PROMPTS = "--data small-world --number 20 --base SFT"
JUDGED = f"{PROMPTS} --reward small-world --max-new-tokens 5 --batch-size 8"
PAIRS = "--data small-world --number 20 --base SFT --max-length 8"
NEW = "--data small-world --number 20 --max-length 8"
BEST = f"best-of-n {PROMPTS} --reward REWARD --max-new-tokens 5 --out out"
LABELS = f"{LABEL} --out out"
LOOPED = f"loop {PROMPTS} --labeler small-world --max-new-tokens 5 --max-length 8"
SAY = "generate SFT --max-new-tokens 5"

BAD = {
    "ppo": "data is missing",
    "sft --data nosuch.jsonl": "nosuch.jsonl cannot be read",
    "sft --data nosuch.txt": "must end in .jsonl or .parquet",
    "sft --data small-wrld": "or one of the worlds small-world",
    f"sft {NEW} --held-out 2": "held_out = 2.0: must be at most 0.9",
    f"sft {NEW} --number 1": "number = 1",
    f"sft {NEW} --lora-rank 2": "lora_rank = 2: adapters need a model",
    f"sft {NEW} --model wdth=3": "wdth is not a field",
    f"sft {NEW} --model width": "not such as num_layers=4",
    f"sft {NEW} --model max_length=4": "8 tokens a row: the model reads at most 4",
    f"sft {NEW} --base SFT --tokenizer bytes": "leave out model, tokenizer and eos",
    f"sft {NEW} --tokenizer nosuch.json": "eos is missing",
    f"sft {NEW} --tokenizer nosuch.json --eos x": "nosuch.json is no tokenizer.json",
    f"sft {NEW} --eos x": "only a tokenizer.json needs it",
    f"sft {NEW} --pack true": "only texts without prompts can be packed",
    f"sft {NEW} --max-length 3": "more than max_length = 3",
    "reward --data small-world": "base is missing",
    "reward --data larger-world --base SFT --max-length 8": "has no preferences",
    f"dpo {PAIRS} --max-length 9": "9 tokens a row: the model reads at most 8",
    f"dpo {PAIRS} --lora-rank 2 --lora-targets nosuch": "no such layers",
    "ppo --data small-world": "base is missing",
    f"ppo {PROMPTS}": "reward is missing",
    "ppo --data small-world --base nosuch": "'nosuch' holds no language model",
    "ppo --data small-world --base REWARD": "it is a run of 'rlhf-reward'",
    f"ppo {PROMPTS} --reward SFT": "it is a run of 'rlhf-sft'",
    f"ppo {PROMPTS} --reward nosuch": "'nosuch' holds no reward model",
    f"ppo {PROMPTS} --reward larger-world": "train the model on that world",
    "ppo --data larger-world --base SFT": "larger-world, row 1: prompt has characters",
    f"ppo {JUDGED} --num-minibatches 3": "must be a multiple of num_minibatches = 3",
    f"ppo {JUDGED} --temperature 0": "temperature = 0.0",
    f"ppo {JUDGED} --kl-target 0": "kl_target = 0.0",
    f"rloo {JUDGED} --group-size 3": "must be a multiple of group_size = 3",
    f"rloo {JUDGED} --group-size 1": "group_size = 1: must be at least 2",
    f"grpo {JUDGED} --group-size 3": "must be a multiple of group_size = 3",
    f"grpo {JUDGED} --max-new-tokens 8": "can write at most 7",
    f"grpo {JUDGED} --kl-penalty k4": "kl_penalty = 'k4'",
    f"grpo {JUDGED} --env small-world": "No such option",
    f"{BEST} --n 0": "n = 0",
    f"{BEST} --temperature 0": "temperature = 0.0",
    f"{BEST} --max-new-tokens 8": "can write at most 7",
    f"{BEST} --eos-penalty nan": "eos_penalty = nan",
    f"{BEST} --seed -1": "seed = -1",
    f"{LABELS} --labeler nosuch": "labeler = 'nosuch': must be terminal, browser",
    f"{LABELS} --labeler small-world --pairs 0": "pairs = 0",
    f"{LABELS} --labeler small-world --noise -1": "temperature = -1.0",
    f"{LABELS} --labeler SFT --verdicts 1": "verdicts = '1': must be two words",
    f"{LABELS} --labeler SFT --verdicts a,bc": "must be two words of one token each",
    f"{LABELS} --labeler SFT --verdicts a,a": "must be two words of one token each",
    f"{LABELS} --labeler SFT --verdicts a,b --judge-template {{prompt}}": "{first}",
    f"{LOOPED} --algorithm dpo --out out": "must be one of ppo, rloo, grpo",
    f"{LOOPED} --rounds 0 --out out": "rounds = 0",
    f"{LOOPED} --max-length 9 --out out": "9 tokens a row",
    f"{LOOPED} --max-length 6 --out out": "EOS may have 7 tokens",
    f"{LOOPED} --max-new-tokens 8 --out out": "can write at most 7",
    f"{LOOPED} --base nosuch --out out": "'nosuch' holds no language model",
    f"{SAY} --prompt x": "'x' has characters without a token",
    f"{SAY} --prompt abcabcabc": "sequences of 14 columns",
    f"{SAY} --prompt a --top-k 9": "top_k = 9",
    f"{SAY} --prompt a --number 0": "number = 0",
    "generate REWARD --prompt a": "it is a run of 'rlhf-reward'",
}


def lines():
    for line in BAD:
        marks = pytest.mark.full if "REWARD" in line else ()
        yield pytest.param(line, marks=marks)


@pytest.mark.parametrize("line", list(lines()))
def test_bad_input_is_one_sentence(line, request, capsys, empty_folder):
    folders = request.getfixturevalue("made" if "REWARD" in line else "base")
    assert BAD[line] in refused(argv(line, folders), capsys)
    assert not list(empty_folder.iterdir())


ROWS = {
    '{"prompt": "a", "completion": "b"': "line 2 is no JSON",
    "[]": "line 2 is a JSON list",
    '{"prompt": "a"}': "line 2: column 'completion' is missing",
    '{"prompt": "a", "completion": ""}': "line 2: completion is empty",
    '{"prompt": "", "completion": "b"}': "line 2: prompt is empty",
    '{"prompt": "a", "completion": 3}': "line 2: completion = 3: must be text",
    '{"prompt": "a", "completion": "x"}': "line 2: completion has characters",
    '{"prompt": "abcabcabc", "completion": "b"}': "line 2: prompt and completion have 11",
}


@pytest.mark.parametrize("row", ROWS)
def test_a_bad_row_is_named_by_its_line(row, base, capsys, empty_folder):
    Path("rows.jsonl").write_text(f'{{"prompt": "a", "completion": "b"}}\n{row}\n')
    line = "sft --data rows.jsonl --base SFT --max-length 8"
    shown = refused(argv(line, base), capsys)
    assert f"rows.jsonl, {ROWS[row]}" in shown
    assert [path.name for path in empty_folder.iterdir()] == ["rows.jsonl"]


@pytest.mark.full
def test_of_one_row_none_can_be_kept_back(made, capsys, empty_folder):
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    line = "sft --data rows.jsonl --base SFT --max-length 8"
    shown = refused(argv(line, made), capsys)
    assert "held_out = 0.1: of 1 row no part can be kept back" in shown


@pytest.mark.full
def test_prompts_that_are_too_long(made, capsys, empty_folder):
    Path("rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "abcabcabc"}\n')
    line = "ppo --data rows.jsonl --base SFT --reward small-world"
    shown = refused(argv(line, made), capsys)
    assert "has prompts of 9 tokens, and model and judge read 8" in shown
    shown = refused(argv(f"{line} --max-prompt 2", made), capsys)
    assert (
        "rows.jsonl, line 2: prompt has 9 tokens, 7 more than max_prompt = 2" in shown
    )
    assert len(list(empty_folder.iterdir())) == 1


@pytest.mark.full
@pytest.mark.parametrize(
    "more, words",
    [
        ("[rewrd]\nbatch_size = 8", "rewrd in --config is not a table of this command"),
        ("[policy]\nbatchsize = 8", "batchsize is not a field"),
        (
            "[policy]\nbatch_size = 9",
            "batch_size = 9: must be a multiple of group_size",
        ),
        ("[reward]\nlora_rank = 1\nlora_targets = 'x'", "no such layers"),
        ("[policy]\nmax_new_tokens = 8", "can write at most 7"),
    ],
)
def test_what_a_loop_is_asked_is_checked_first(
    more, words, made, capsys, tmp_path, empty_folder
):
    head = LOOP.format(rounds=1, **made).partition("[reward]")[0]
    path = tmp_path / "loop.toml"
    path.write_text(head + more)
    words_given = ["rlhf", "loop", "--config", str(path), "--out", "out"]
    assert words in refused(words_given, capsys)
    path.write_text(f"raunds = 3\n{head}")
    shown = refused(words_given, capsys)
    assert "raunds in" in shown and "did you mean 'rounds'" in shown
    assert not list(empty_folder.iterdir())


@pytest.mark.full
def test_a_folder_with_something_in_it_is_left_alone(made, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    lines = [BEST, f"{LABELS} --labeler small-world", f"{LOOPED} --algorithm rloo"]
    for line in lines:
        given = f"{line.removesuffix(' --out out')} --out {tmp_path}"
        given = given.replace(" --out out", "")
        if line is lines[2]:
            given += " --rounds 1"
        assert "is not empty" in refused(argv(given, made), capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.full
def test_a_tokenizer_without_an_end_writes_no_responses(made):
    task = tasks.prompts("small-world", base=made["SFT"], reward="small-world")
    endless = task.replace(tokenizer=task.tokenizer._replace(eos=None))
    config = rloo.Config(max_new_tokens=5)
    rloo.RLOO.validate(config, task)
    for check in (rloo.RLOO.validate, responses.check):
        with pytest.raises(InvalidInput, match="tokenizer has no EOS"):
            check(config, endless)


@pytest.mark.full
def test_a_reward_model_of_another_tokenizer(made, tmp_path):
    about, arrays = storage.read(Path(made["REWARD"]) / "policy")
    about["language_model"]["tokenizer"]["alphabet"] = "xyz"
    storage.write(tmp_path / "policy", arrays, about)
    with pytest.raises(InvalidInput, match="another tokenizer than the model's; train"):
        tasks.prompts("small-world", base=made["SFT"], reward=str(tmp_path))
    about["language_model"]["tokenizer"]["alphabet"] = "abcdef"
    storage.write(tmp_path / "policy", arrays, about)
    with pytest.raises(InvalidInput, match="the tokenizer has 7 tokens"):
        language_model.load_reward(tmp_path)


@pytest.mark.full
def test_a_model_that_repeats_itself_makes_no_pairs(made):
    ask = partial(stages.questions, "small-world", made["SFT"], number=4, seed=0)
    with pytest.raises(InvalidInput, match="wrote 0 pairs of different responses in 8"):
        ask(sampling=Sampling(5, temperature=1e-4), pairs=3)
    found = ask(sampling=Sampling(5), pairs=70)
    assert len(found) == 70 and all(q.first != q.second for q in found)
    assert {q.prompt for q in found} == set("abc")


def test_a_run_without_a_model_is_no_reward_model(tmp_path):
    about = {"algorithm": "ppo", "config": {}, "env_params": {}, "seeds": [0]}
    for more in ({}, {"language_model": None}):
        storage.write(tmp_path / "policy", {}, about | more)
        assert not stages._holds(tmp_path, "reward")
    storage.write(tmp_path / "policy", {}, about | {"language_model": [1]})
    with pytest.raises(InvalidInput, match="language_model"):
        stages._holds(tmp_path, "reward")
