"""Tasks of language models, which take the place of an environment.

A task holds what all agents of a run share and none of them changes: the model that one
starts from, which is the reference too, the rows to learn from, those kept back, and the
judge of responses. It is made from names of folders and files (`texts`, `pairs`,
`prompts`), so a run is described by plain words and can be resumed.

One environment step is one text: a row that is learned from, or a response that is written.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl.core import config as configs
from jaxrl.core import storage
from jaxrl.errors import did_you_mean, require
from jaxrl.rlhf import data, testbeds
from jaxrl.rlhf.data import Format
from jaxrl.rlhf.models import language_model, tokenizers
from jaxrl.rlhf.models.tokenizers import Tokenizer
from jaxrl.rlhf.models.transformer import GPT, ModelConfig
from jaxrl.rlhf.testbeds import Kind
from jaxrl.types import Array, PyTree, static

Judge = Callable[[PyTree, Array, Array, Array], Array]
"""`(its parameters, tokens [B, T], mask [B, T], response [B, T]) -> score [B]`, where
`mask` is True for real tokens and `response` for those of the response, EOS among them."""


TooLong = Literal["error", "drop"]


class Lessons(NamedTuple):
    """Arrays of a task."""

    params: PyTree  # of the model that one starts from; None for a new one
    rows: PyTree  # `data.Texts`, `data.Pairs` or `data.Prompts`
    held_out: PyTree  # the same, not learned from
    judge: PyTree  # parameters of the judge; () where it has none


class Task(PyTreeNode):
    """See the top of this file. Build one with `texts`, `pairs` or `prompts`."""

    teacher: Lessons
    model: GPT = static()
    tokenizer: Tokenizer = static()
    judge: Judge | None = static(None)
    judge_model: GPT | None = static(None)
    """The model of a judge that is a reward model."""
    gold: Judge | None = static(None)
    """The gold reward of a testbed, logged beside the judge's score."""
    base: str | None = static(None)
    """The folder of the model that one starts from."""
    id: str = static("")

    @property
    def num_rows(self) -> int:
        return jax.tree.leaves(self.teacher.rows)[0].shape[0]


def select(rows: PyTree, index: Array) -> PyTree:
    """The rows with these numbers, `[B]`."""
    return jax.tree.map(lambda x: x[index], rows)


# Tasks from names.

NEW_MODEL = {"num_layers": 2, "num_heads": 4, "width": 64}
"""Default sizes of a new model."""


def texts(
    source: str,
    *,
    kind: Kind,
    base: str | None = None,
    model: dict[str, Any] | None = None,
    tokenizer: str | None = None,
    eos: str | None = None,
    max_length: int = 128,
    too_long: TooLong = "error",
    pack: bool = False,
    held_out: float = 0.1,
    template: str = "plain",
    number: int = 10_000,
) -> Task:
    """Texts to continue (`kind` "text") or prompts with responses ("completion").

    Args:
      source: a JSONL or Parquet file, or a name of `testbeds.TESTBEDS`.
      kind: what its rows are.
      base: run folder, or folder of Hugging Face, of the model to start from.
      model: sizes of a new model, such as num_layers=4,width=128,num_heads=4.
      tokenizer: of a new model: bytes, characters, or a tokenizer.json.
      eos: of a tokenizer.json: the token with which a text ends.
      max_length: most tokens of a row.
      too_long: rows of more tokens: error, or drop.
      pack: texts one behind the other in rows of max_length: true or false.
      held_out: share of the rows that is kept back, to evaluate with.
      template: how conversations become text: plain, rendered, turns, chatml, or Jinja.
      number: rows of a world.

    Raises:
      InvalidInput: something cannot be read, or does not fit.
    """
    rows = _read_rows(source, kind, number)
    require(
        base is None or not (model or tokenizer or eos),
        f"base = {base!r} has a model and a tokenizer: leave out model, tokenizer and eos.",
    )
    if base is None:
        words = _make_tokenizer(source, tokenizer, eos, rows)
        sizes = NEW_MODEL | {"max_length": max_length} | (model or {})
        sizes = {"mlp_width": 4 * sizes["width"]} | sizes
        config = configs.from_dict(
            ModelConfig, sizes | {"vocab_size": words.vocab_size}
        )
        known = language_model.LanguageModel(config, None, words)
    else:
        known = language_model.load(base)
    check_length(known.config, max_length)
    read: Any = partial(data.texts, pack=pack)
    if kind == "completion":
        require(not pack, "pack = True: only texts without prompts can be packed.")
        read = data.completions
    format = Format(known.tokenizer, max_length, template, too_long)
    return _make_task(source, known, base, read(rows, format), held_out)


def pairs(
    source: str,
    *,
    base: str,
    max_length: int = 128,
    too_long: TooLong = "error",
    held_out: float = 0.1,
    template: str = "plain",
    number: int = 10_000,
) -> Task:
    """Preferences: prompts with two responses, the better one first, or with a ranking.

    Args:
      source: a JSONL or Parquet file, or a name of `testbeds.TESTBEDS`.
      base: run folder, or folder of Hugging Face, of the model to start from.
      max_length: most tokens of a row.
      too_long: rows of more tokens: error, or drop.
      held_out: share of the rows that is kept back, to evaluate with.
      template: how conversations become text: plain, rendered, turns, chatml, or Jinja.
      number: rows of a world.

    Raises:
      InvalidInput: something cannot be read, or does not fit.
    """
    known = language_model.load(base)
    check_length(known.config, max_length)
    rows = _read_rows(source, "preference", number)
    read = data.rankings if "ranked" in rows[0] else data.preferences
    format = Format(known.tokenizer, max_length, template, too_long)
    return _make_task(source, known, base, read(rows, format), held_out)


def prompts(
    source: str,
    *,
    base: str,
    reward: str | None = None,
    max_prompt: int | None = None,
    too_long: TooLong = "error",
    held_out: float = 0.1,
    template: str = "plain",
    number: int = 1_000,
) -> Task:
    """Prompts to respond to, and a judge of the responses; the base is the reference too.

    Args:
      source: a JSONL or Parquet file, or a name of `testbeds.TESTBEDS`.
      base: run folder, or folder of Hugging Face, of the model to start from.
      reward: run folder of a reward model, or a world, for its gold reward.
      max_prompt: most tokens of a prompt.
      too_long: rows of more tokens: error, or drop.
      held_out: share of the rows that is kept back, to evaluate with.
      template: how conversations become text: plain, rendered, turns, chatml, or Jinja.
      number: rows of a world.

    Raises:
      InvalidInput: something cannot be read, or does not fit.
    """
    known = language_model.load(base)
    check_length(known.config, max_prompt or 1)
    format = Format(known.tokenizer, max_prompt, template, too_long, limit="max_prompt")
    rows = data.prompts(_read_rows(source, "prompt", number), format)
    task = _make_task(source, known, base, rows, held_out)
    if source in testbeds.TESTBEDS:
        world = testbeds.TESTBEDS[source]
        same = world.tokenizer().about == known.tokenizer.about
        task = task.replace(gold=world.judge if same else None)
    if reward is None:
        return task
    judge, model, params = load_judge(reward, known.tokenizer)
    teacher = task.teacher._replace(judge=params)
    return task.replace(judge=judge, judge_model=model, teacher=teacher)


def load_judge(reward: str, tokenizer: Tokenizer) -> tuple[Judge, GPT | None, PyTree]:
    """The judge that a name stands for, its model if it has one, and its parameters.

    Raises:
      InvalidInput: there is none, or it reads other tokens.
    """
    model: GPT | None
    found: tuple[Judge, GPT | None, PyTree]
    if reward in testbeds.TESTBEDS:
        world = testbeds.TESTBEDS[reward]
        reads = world.tokenizer()
        model, found = None, (world.judge, None, ())
    else:
        known = language_model.load_reward(reward)
        model = GPT(known.config)
        reads, found = (
            known.tokenizer,
            (language_model.scorer(model), model, known.params),
        )
    remedy = (
        "train the model on that world" if model is None else "train it from the base"
    )
    require(
        reads.about == tokenizer.about,
        f"reward = {reward!r}: judges texts of another tokenizer than the model's; "
        f"{remedy}.",
    )
    return found


def digests(source: str, params: dict[str, Any]) -> dict[str, str]:
    """Content digests of the files of a task.

    Raises:
      InvalidInput: one cannot be read.
    """
    folders = {name: params.get(name) for name in ("base", "reward")}
    found = {
        name: language_model.digest(folder)
        for name, folder in folders.items()
        if folder is not None and folder not in testbeds.TESTBEDS
    }
    files = {"data": source, "tokenizer": params.get("tokenizer")}
    for name, file in files.items():
        if is_path(name, file):
            found[name] = storage.file_digest(Path(str(file)))
    return found


def is_path(name: str, value: Any) -> bool:
    """Whether the value of a parameter of a task names a file or a folder."""
    named = {"tokenizer": ("bytes", "characters")}.get(name, tuple(testbeds.TESTBEDS))
    is_place = name in ("data", "base", "reward", "tokenizer")
    return is_place and isinstance(value, str) and value not in named


def _read_rows(source: str, kind: Kind, number: int) -> list[data.Row]:
    if source in testbeds.TESTBEDS:
        return testbeds.rows(source, kind, number)
    require(
        Path(source).suffix != "" or Path(source).exists(),
        f"data = {source!r}: must be a .jsonl or .parquet file, or one of the worlds "
        f"{', '.join(testbeds.TESTBEDS)}{did_you_mean(source, testbeds.TESTBEDS)}.",
    )
    return data.read(source)


def _make_tokenizer(
    source: str, name: str | None, eos: str | None, rows: list[data.Row]
) -> Tokenizer:
    """Build the tokenizer of a new model."""
    is_file = name not in (None, "bytes", "characters")
    require(
        eos is not None or not is_file,
        f"eos is missing: name the token of {name!r} with which a text ends.",
    )
    require(
        eos is None or is_file,
        f"eos = {eos!r}: only a tokenizer.json needs it; leave it out.",
    )
    if name is None and source in testbeds.TESTBEDS:
        return testbeds.TESTBEDS[source].tokenizer()
    if name in (None, "bytes"):
        return tokenizers.bytes_of_text()
    if name == "characters":
        return tokenizers.characters(data.characters(rows))
    return tokenizers.from_file(str(name), eos)


def check_length(config: ModelConfig, length: int) -> None:
    """Refuse rows of more tokens than a model reads."""
    require(
        length <= config.max_length,
        f"{length} tokens a row: the model reads at most {config.max_length}; give less, "
        f"or a new model a larger max_length.",
    )


def _make_task(
    source: str,
    known: language_model.LanguageModel,
    base: str | None,
    rows: PyTree,
    held_out: float,
) -> Task:
    configs.check_value("held_out", float, held_out, low=0.0, high=0.9)
    arrays = jax.tree.map(jnp.asarray, rows)
    places = list(range(len(jax.tree.leaves(arrays)[0])))
    require(
        len(places) > 1 or not held_out,
        f"held_out = {held_out}: of 1 row no part can be kept back; give 2 rows or more, "
        f"or held_out = 0.",
    )
    learned, kept = data.split(places, held_out, seed=0) if held_out else (places, [])
    # With nothing kept back the rows that are learned from are looked at.
    own, others = (select(arrays, jnp.array(x)) for x in (learned, kept or learned))
    return Task(
        teacher=Lessons(known.params, own, others, ()),
        model=GPT(known.config),
        tokenizer=known.tokenizer,
        base=base,
        id=source,
    )
