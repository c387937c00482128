"""`jaxrl rlhf ...`: the commands, made when they are asked for."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from jaxrl.cli import options
from jaxrl.cli.running import echo
from jaxrl.core import config as configs
from jaxrl.core import run_folders, storage
from jaxrl.errors import InvalidInput, did_you_mean
from jaxrl.pipelines.rlhf import demo as demonstration
from jaxrl.pipelines.rlhf import loop as loops
from jaxrl.pipelines.rlhf import stages, writing
from jaxrl.pipelines.rlhf.writing import Sampling
from jaxrl.rlhf import data, tasks
from jaxrl.rlhf.labels import labelers
from jaxrl.rlhf.registry import RLHF
from jaxrl.training.devices import use_all_cores, use_compilation_cache
from jaxrl.types import Algorithm

Train = Callable[..., int]
"""`(algorithm, env_params, **flags) -> exit code`: what `jaxrl train` does with flags."""


WORDS = {
    "pretrain": "Train a language model on texts.",
    "sft": "Fine-tune a language model on prompts with responses.",
    "reward": "Fit a reward model to comparisons of responses.",
    "ppo": "Optimise a policy against a reward with PPO.",
    "rloo": "Optimise a policy against a reward with REINFORCE leave-one-out.",
    "grpo": "Optimise a policy against a reward with GRPO.",
    "dpo": "Fit a policy to comparisons of responses, without a reward model.",
}


def _training(algorithm: Algorithm, train: Train) -> click.Command:
    """The command of one algorithm."""

    def callback(**given: Any) -> int:
        return train(algorithm, {}, **given)

    return click.Command(
        name=algorithm.name.removeprefix("rlhf-"),
        params=options.options_of(algorithm),
        callback=callback,
        help=WORDS[algorithm.name.removeprefix("rlhf-")],
    )


# Options that several commands have.

OUT = click.option("--out", required=True, type=click.Path(), help="New folder.")
BASE = click.option(
    "--base",
    required=True,
    help="Run folder, or folder of Hugging Face, of the model.",
)
PROMPTS = click.option(
    "--data", required=True, help="Prompts: JSONL, Parquet, a world."
)
SEED = click.option("--seed", type=int, default=0, show_default=True)
NEW_TOKENS = click.option(
    "--max-new-tokens",
    type=int,
    default=32,
    show_default=True,
    help="Longest response.",
)
TEMPERATURE = click.option(
    "--temperature", type=float, default=1.0, show_default=True, help="Of the sampling."
)
MAX_PROMPT = click.option(
    "--max-prompt", type=int, help="Most tokens of a prompt.  [default: the longest's]"
)
TOO_LONG = click.option(
    "--too-long",
    default="error",
    show_default=True,
    help="Longer prompts: error, drop.",
)
TEMPLATE = click.option(
    "--template", default="plain", show_default=True, help="Of conversations."
)
NUMBER = click.option(
    "--number", type=int, default=1_000, show_default=True, help="Prompts of a world."
)
CONFIG = click.option(
    "--config",
    "config_file",
    type=click.Path(),
    help="TOML or JSON with these options.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="The result as JSON, last.")


class _FromFile(click.Command):
    """Takes what `--config FILE` says for options that are not given.

    Tables of the file are kept for the command under `ctx.meta["tables"]`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        path = _value_of(args, "--config")
        content = options.read_file(path) if path else {}
        if not isinstance(content, dict):
            raise InvalidInput(f"config = {path!r} must be a table of options.")
        tables = {n: v for n, v in content.items() if isinstance(v, dict)}
        known = {p.name for p in self.params if p.name}
        for name in content.keys() - tables.keys() - known:
            raise InvalidInput(
                f"{name} in {path} is not an option{did_you_mean(name, known)}."
            )
        ctx.meta["tables"] = tables
        ctx.default_map = {n: v for n, v in content.items() if n not in tables}
        return super().parse_args(ctx, args)


def _value_of(args: list[str], flag: str) -> str | None:
    for i, word in enumerate(args):
        if word == flag and i + 1 < len(args):
            return args[i + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _tables(*names: str) -> list[dict[str, Any]]:
    """Tables of the file by name, {} for those that it does not have.

    Raises:
      InvalidInput: it has others.
    """
    found = click.get_current_context().meta["tables"]
    for name in found.keys() - set(names):
        raise InvalidInput(
            f"{name} in --config is not a table of this command"
            f"{did_you_mean(name, names)}."
        )
    return [found.get(name, {}) for name in names]


@click.command("best-of-n", cls=_FromFile)
@PROMPTS
@BASE
@click.option(
    "--reward", required=True, help="Run folder of a reward model, or a world."
)
@click.option(
    "--n", type=int, default=8, show_default=True, help="Responses to choose from."
)
@NEW_TOKENS
@TEMPERATURE
@click.option(
    "--eos-penalty",
    type=float,
    default=0.0,
    show_default=True,
    help="Lost by responses without an end.",
)
@MAX_PROMPT
@TOO_LONG
@TEMPLATE
@NUMBER
@SEED
@CONFIG
@OUT
@JSON
def best_of_n(**given: Any) -> None:
    """Write n responses to every prompt, and keep the best by the reward model.

    OUT/responses.jsonl has the columns prompt, response, score and mean_score;
    OUT/summary.json has their means, and length and diversity of the responses kept.
    """
    _tables()
    _start()
    task = _prompts(given, reward=given["reward"])
    sampling = _sampling(given)._replace(eos_penalty=given["eos_penalty"])
    best = writing.best_of_n(task, sampling, given["n"], given["seed"])
    folder = run_folders.new(given["out"], "best-of-n")
    rows, summary = writing.summarise(best)
    data.write_rows(folder / "responses.jsonl", rows)
    summary = {"prompts": len(rows), "n": given["n"], **summary}
    storage.write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    echo(
        f"{len(rows):,} prompts: score {summary['score']:.3f} of the best of "
        f"{given['n']}, {summary['mean_score']:.3f} on average"
    )
    _end(str(folder / "responses.jsonl"), given["as_json"], summary)


LABELER = click.option(
    "--labeler",
    required=True,
    help="terminal, browser, a world (its gold reward), or the run folder of a reward "
    "model or of a language model.",
)
NOISE = click.option(
    "--noise",
    type=float,
    default=0.0,
    show_default=True,
    help="Temperature of a gold reward's labels.",
)
JUDGE = click.option(
    "--judge-template",
    default=labelers.JUDGE,
    show_default=True,
    help="Question to a language model, with {prompt}, {first}, {second}.",
)
VERDICTS = click.option(
    "--verdicts",
    default="1,2",
    show_default=True,
    help="The two words that it chooses from.",
)


@click.command(cls=_FromFile)
@PROMPTS
@BASE
@LABELER
@click.option("--pairs", type=int, default=500, show_default=True, help="To compare.")
@NEW_TOKENS
@TEMPERATURE
@NOISE
@JUDGE
@VERDICTS
@MAX_PROMPT
@TOO_LONG
@TEMPLATE
@NUMBER
@SEED
@CONFIG
@click.option(
    "--out",
    required=True,
    type=click.Path(),
    help="Folder; an unfinished one is continued.",
)
def label(**given: Any) -> None:
    """Write pairs of responses and have them compared.

    OUT/pairs.jsonl has the columns prompt, chosen and rejected, for `jaxrl rlhf reward`
    and `jaxrl rlhf dpo`. Given again, the command resumes where it stopped.
    """
    _tables()
    _start()
    asked = {n: v for n, v in given.items() if n not in ("out", "config_file")}
    labeler = _labeler(given)
    questions = stages.questions(
        given["data"],
        given["base"],
        _sampling(given),
        given["pairs"],
        given["seed"],
        **_prompt_params(given),
    )
    out = Path(given["out"])
    loops.begin(out, asked, "label.json")
    labels = labelers.label(
        questions, labeler, out / "pairs.jsonl", echo, given["seed"]
    )
    echo(f"{len(labels):,} of {len(questions):,} pairs are labelled")
    echo(out / "pairs.jsonl")


@click.command(cls=_FromFile)
@PROMPTS
@BASE
@LABELER
@click.option("--rounds", type=int, default=3, show_default=True)
@click.option(
    "--pairs", type=int, default=500, show_default=True, help="Of each round."
)
@click.option(
    "--algorithm", default="ppo", show_default=True, help="ppo, rloo or grpo."
)
@click.option(
    "--max-length",
    type=int,
    default=128,
    show_default=True,
    help="Prompt and response.",
)
@NEW_TOKENS
@TEMPERATURE
@NOISE
@JUDGE
@VERDICTS
@MAX_PROMPT
@TOO_LONG
@TEMPLATE
@NUMBER
@SEED
@CONFIG
@click.option("--quiet", is_flag=True, help="Do not show how far it is.")
@click.option(
    "--out",
    required=True,
    type=click.Path(),
    help="Folder; an unfinished one is continued.",
)
@JSON
def loop(**given: Any) -> None:
    """Sample, label, fit a reward model, optimise; then again with the new policy.

    Tables `reward` and `policy` of --config hold the hyper-parameters of the two. Given
    again, the command resumes where it stopped.
    """
    reward, policy = _tables("reward", "policy")
    _start()
    policy = {"max_new_tokens": given["max_new_tokens"]} | policy
    wanted = loops.Loop(
        given["data"],
        given["base"],
        given["rounds"],
        given["pairs"],
        given["algorithm"],
        given["max_length"],
        _sampling(given),
        reward,
        policy,
        _prompt_params(given),
        given["seed"],
    )
    host = {"report": echo, "progress": not given["quiet"]}
    out = Path(given["out"])
    named = {n: given[n] for n in ("labeler", "noise", "judge_template", "verdicts")}
    done = loops.run(wanted, _labeler(given), out, named, **host)
    for row in done:
        echo(
            f"round {row['round']}: reward model right on {row['reward_accuracy']:.1%} of "
            f"pairs kept back; score of the new policy {row['score']:.3f}"
        )
    _end(str(out), given["as_json"], {"rounds": done})


@click.command(cls=_FromFile)
@click.argument("run", type=click.Path())
@click.option("--prompt", required=True, help="The text to continue.")
@click.option("--number", type=int, default=1, show_default=True, help="Responses.")
@NEW_TOKENS
@TEMPERATURE
@click.option("--top-k", type=int, help="Only so many likeliest tokens.")
@click.option("--top-p", type=float, help="Only the likeliest of this probability.")
@click.option("--greedy", is_flag=True, help="The likeliest token, not a drawn one.")
@SEED
@CONFIG
@click.option("--out", type=click.Path(), help="New folder for responses.jsonl.")
@JSON
def generate(
    run: str, prompt: str, out: str | None, as_json: bool, **given: Any
) -> None:
    """Responses of a model: RUN is a run folder, or a folder of Hugging Face."""
    _tables()
    _start()
    given.pop("config_file")
    texts = writing.respond(run, prompt, **given)
    if out is not None:
        rows = [{"prompt": prompt, "response": text} for text in texts]
        data.write_rows(run_folders.new(out, "generate") / "responses.jsonl", rows)
    for text in texts:
        echo(text)
    if as_json:
        echo(json.dumps({"prompt": prompt, "responses": texts}))


@click.command(cls=_FromFile)
@CONFIG
@click.option(
    "--out",
    default="runs/rlhf-demo",
    show_default=True,
    type=click.Path(),
    help="Folder; an unfinished one is continued.",
)
@click.option("--quick", is_flag=True, help="A thousandth of it, to see that it runs.")
@click.option("--quiet", is_flag=True, help="Do not show how far it is.")
@JSON
def demo(
    config_file: str | None, out: str, quick: bool, quiet: bool, as_json: bool
) -> None:
    """SFT, reward model and PPO on the small world, compared with the exact optimum."""
    del config_file  # it is read already
    _tables()
    _start()
    size = demonstration.QUICK if quick else demonstration.FULL
    host = {"report": echo, "progress": not quiet}
    rows = demonstration.run(Path(out), size, **host)
    echo(demonstration.format_table(rows))
    _end(str(Path(out) / "demo.png"), as_json, {"table": rows})


COMMANDS: dict[str, Callable[[Train], click.Command]] = {
    "demo": lambda train: demo,
    **{name: partial(_training, algorithm) for name, algorithm in RLHF.items()},
    "best-of-n": lambda train: best_of_n,
    "loop": lambda train: loop,
    "label": lambda train: label,
    "generate": lambda train: generate,
}
"""By name: given what trains, the command."""


def _start() -> None:
    use_compilation_cache()
    use_all_cores(None)


def _end(path: str, as_json: bool, result: dict[str, Any]) -> None:
    echo(path)
    if as_json:
        echo(json.dumps(result))


def _sampling(given: dict[str, Any]) -> Sampling:
    for name in ("max_new_tokens", "temperature"):
        low = {"low": 1} if name == "max_new_tokens" else {"above": 0.0}
        kind = int if name == "max_new_tokens" else float
        configs.check_value(name, kind, given[name], **low)
    return Sampling(given["max_new_tokens"], given["temperature"])


def _prompt_params(given: dict[str, Any]) -> dict[str, Any]:
    names = ("max_prompt", "too_long", "template", "number")
    return {name: given[name] for name in names}


def _prompts(given: dict[str, Any], reward: str | None) -> tasks.Task:
    own = _prompt_params(given) | {"base": given["base"], "reward": reward}
    return tasks.prompts(given["data"], held_out=0.0, **own)


def _labeler(given: dict[str, Any]) -> labelers.Labeler:
    words = given["verdicts"].split(",")
    if len(words) != 2:
        raise InvalidInput(f"verdicts = {given['verdicts']!r}: must be two words: 1,2.")
    return stages.make_labeler(
        given["labeler"],
        noise=given["noise"],
        seed=given["seed"],
        template=given["judge_template"],
        verdicts=(words[0], words[1]),
        report=echo,
    )
