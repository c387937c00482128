"""Language models and reward models in folders: of a run, or of Hugging Face.

A run's artefact (`RUN/policy`) says what model its arrays belong to and holds the tokenizer
itself, so the folder can be moved; one of adapters needs its base where it was.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.core import config as configs
from jaxrl.core import files, schema, storage
from jaxrl.errors import InvalidInput, require
from jaxrl.rlhf import estimators
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.models import huggingface, lora, tokenizers
from jaxrl.rlhf.models.tokenizers import Tokenizer
from jaxrl.rlhf.models.transformer import GPT, ModelConfig
from jaxrl.types import Array, PyTree

LOADERS = {"gpt2": huggingface.load_gpt2, "llama": huggingface.load_llama}


class LanguageModel(NamedTuple):
    """A language model, or with `params` a `RewardParams` a reward model."""

    config: ModelConfig
    params: PyTree  # None where there are none yet
    tokenizer: Tokenizer


class RewardParams(NamedTuple):
    """A language model whose last hidden state is read by one linear function."""

    model: PyTree
    head: Array  # [D]
    bias: Array  # []


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the manifest of a run says of its model."""

    OPEN = True
    kind: str
    config: dict[str, Any]
    tokenizer: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class About:
    """What is relied on in the manifest of a run; one without a model has no entry."""

    OPEN = True
    algorithm: str
    config: dict[str, Any]
    env_params: dict[str, Any]
    seeds: list[int]
    language_model: Entry | None = None


def check_about(about: dict[str, Any], run: Path) -> str | None:
    """Check a run's manifest; the kind of its model, None if it has none.

    Raises:
      Damaged: it is not the manifest of a run.
    """
    path = run / "policy" / storage.MANIFEST
    schema.check(About, about, path, storage.Damaged)
    entry = about.get("language_model")
    return None if entry is None else str(entry["kind"])


def describe(
    kind: str,
    config: ModelConfig,
    tokenizer: Tokenizer,
    adapters: lora.LoRA | None = None,
    base: str | None = None,
) -> dict[str, Any]:
    """The description of a model in its artefact, as JSON.

    Args:
      kind: "policy" or "reward".
      config: of the model.
      tokenizer: of the model.
      adapters: what is trained beside the base, if not the model itself.
      base: its folder, where there are adapters.
    """
    about = {
        "kind": kind,
        "config": dataclasses.asdict(config),
        "tokenizer": json.loads(tokenizer.about),
    }
    if adapters is not None:
        assert base is not None
        about |= {"lora": dataclasses.asdict(adapters), "base": digest(base)}
    return about


def load(folder: str | Path, agent: int = 0) -> LanguageModel:
    """The language model of a run, or of a folder of Hugging Face (GPT-2, Llama).

    Args:
      folder: where it is.
      agent: which of a run's agents, by its place.

    Raises:
      InvalidInput: there is none, or one that does not fit.
    """
    path = Path(folder)
    if (path / "policy").is_dir():
        return _load_run(path, "policy", agent)
    kind = _model_type(path)
    require(
        kind in LOADERS,
        f"{str(folder)!r} holds no language model: give the folder of a `jaxrl rlhf "
        f"sft`, or one of Hugging Face with a model of type {' or '.join(LOADERS)}.",
    )
    config, params, tokenizer = LOADERS[str(kind)](path)
    require(
        tokenizer is not None,
        f"{str(folder)!r} has no tokenizer.json: text cannot be read without it.",
    )
    assert tokenizer is not None
    return LanguageModel(config, params, tokenizer)


def load_reward(folder: str | Path, agent: int = 0) -> LanguageModel:
    """The reward model of a run: its `params` are `RewardParams`.

    Where the run's config says `normalize`, they give g r + b: mean 0 and deviation 1 over
    the responses that were labelled.

    Raises:
      InvalidInput: there is none, or one that does not fit.
    """
    path = Path(folder)
    require(
        (path / "policy").is_dir(),
        f"reward = {str(folder)!r} holds no reward model: give the folder of a `jaxrl "
        f"rlhf reward`, or the name of a world.",
    )
    return _load_run(path, "reward", agent)


@functools.cache
def scorer(model: GPT) -> Any:
    """The judge that a reward model is: `(params, tokens, mask, response) -> score [B]`.

    One for each model, so that equal tasks are equal programs.
    """
    return functools.partial(score, model)


def score(
    model: GPT, params: RewardParams, tokens: Array, mask: Array, response: Array
) -> Array:
    """r(x, y) = w · h + b, with h the hidden state of the response's last token: `[B]`.

    Args:
      model: whose `apply` is called.
      params: of it, with w and b.
      tokens: int32 `[B, T]`.
      mask: bool `[B, T]`, real tokens.
      response: bool `[B, T]`, those of the response.

    Source: Stiennon et al. (2020), https://arxiv.org/abs/2009.01325, section 3.4.
    """
    hidden = hidden_states(model, params.model, tokens, mask)
    read = hidden @ params.head + params.bias
    return text_losses.masked_sum(read, estimators.last_token(response))


def normalize(params: RewardParams, moments: np.ndarray) -> RewardParams:
    """A reward model that gives g r + b, with mean 0 and deviation 1.

    Args:
      params: the model that gives r.
      moments: `[3]` of `estimators.decayed_moments`, over responses.

    Source: Ziegler et al. (2019), https://arxiv.org/abs/1909.08593, section 2.1.
    """
    number, mean, second = np.asarray(moments, float)
    gain, bias = estimators.gain_and_bias(mean, (second / max(number, 1e-8)) ** 0.5)
    return params._replace(head=gain * params.head, bias=gain * params.bias + bias)


def hidden_states(model: GPT, params: PyTree, tokens: Array, mask: Array) -> Array:
    """Float32 `[B, T, D]`: what the logits are made of."""
    output: Any = model.apply(params, tokens, mask)
    return output.hidden.astype(jnp.float32)


def digest(folder: str | Path) -> str:
    """Content digest of a model.

    Raises:
      InvalidInput: there is none.
    """
    path = Path(folder)
    if (path / "policy").is_dir():
        return storage.digest(path / "policy")
    files = [path / "config.json", *sorted(path.glob("*.safetensors"))]
    return " ".join(_file_digest(file, _modified_time(file)) for file in files)


def _modified_time(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@functools.cache
def _file_digest(path: Path, changed: int) -> str:
    """Digest of a file, cached while it is unchanged: some have gigabytes."""
    del changed
    return storage.file_digest(path)


def _model_type(path: Path) -> str | None:
    try:
        return str(huggingface.read_json(path / "config.json").get("model_type"))
    except InvalidInput:
        return None


def _load_run(path: Path, kind: str, agent: int) -> LanguageModel:
    about, arrays = storage.read(path / "policy")
    require(
        check_about(about, path) == kind,
        f"{str(path)!r} holds no {_WORDS[kind]}: it is a run of {about['algorithm']!r}.",
    )
    entry, count = about["language_model"], len(about["seeds"])
    require(
        0 <= agent < count,
        f"agent = {agent}: {str(path)!r} has {count}, the first is 0.",
    )
    short = [name for name, x in arrays.items() if x.shape[:1] != (count,)]
    require(
        not short,
        f"{str(path)!r}: {''.join(short[:1])} is not of {count} agents: it is damaged.",
    )
    own = {name: x[agent] for name, x in arrays.items()}
    try:
        config = configs.from_dict(ModelConfig, entry["config"])
        # Each layer has arrays: nothing is made of a depth that no file can have.
        require(
            config.num_layers <= len(own),
            f"{str(path)!r}: num_layers = {config.num_layers:,}, where the arrays of its "
            f"model are {len(own)}: it is damaged.",
        )
        words = tokenizers.from_about(entry["tokenizer"])
        trained = _params(_with_base(about, path), config, own, f"{kind}/", path)
        if kind == "reward" and about["config"]["normalize"]:
            trained = normalize(trained, own["score_moments"])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"{str(path)!r} holds no model of this version of jaxrl: its manifest has "
            f"no valid {error}."
        ) from error
    tokenizers.check_vocabulary(words, config)
    return LanguageModel(config, trained, words)


def _with_base(about: dict[str, Any], run: Path) -> dict[str, Any]:
    """The description of a model, with the folder of its base if it is one of adapters."""
    entry: dict[str, Any] = about["language_model"]
    if "lora" not in entry:
        return entry
    folder = files.locate(run, about["env_params"]["base"])
    return entry | {"base": {"folder": folder, "digest": entry["base"]}}


_WORDS = {"policy": "language model", "reward": "reward model"}


def _params(
    entry: dict[str, Any],
    config: ModelConfig,
    arrays: dict[str, np.ndarray],
    place: str,
    path: Path,
) -> PyTree:
    """The parameters under `place`, merged with their base where they are adapters."""
    own = {
        name[len(place) :]: x for name, x in arrays.items() if name.startswith(place)
    }
    if place == "reward/":
        head, bias = jnp.asarray(own.pop("head")), jnp.asarray(own.pop("bias"))
        own = {name.removeprefix("model/"): x for name, x in own.items()}
        return RewardParams(_merge_base(entry, config, own, path), head, bias)
    return _merge_base(entry, config, own, path)


def _merge_base(
    entry: dict[str, Any], config: ModelConfig, own: dict[str, np.ndarray], path: Path
) -> PyTree:
    tokens = jnp.zeros((1, 1), jnp.int32)
    template = jax.eval_shape(GPT(config).init, jax.random.key(0), tokens)
    if "lora" not in entry:
        return jax.tree.map(jnp.asarray, storage.fill(template, own, path / "policy"))
    base = entry["base"]
    about = f"{str(path)!r} holds adapters of {base['folder']!r}, which"
    require(
        Path(base["folder"]).is_dir(),
        f"{about} is not there; its place is kept relative to the run folder: put it "
        f"back, or a link to it.",
    )
    require(
        digest(base["folder"]) == base["digest"],
        f"{about} has changed since: train them anew.",
    )
    adapters = lora.LoRA(
        **(entry["lora"] | {"targets": tuple(entry["lora"]["targets"])})
    )
    shapes = jax.eval_shape(
        functools.partial(lora.init, adapters), template, jax.random.key(0)
    )
    trained = storage.fill(shapes, own, path / "policy")
    return lora.merge(adapters, load(base["folder"]).params, trained)
