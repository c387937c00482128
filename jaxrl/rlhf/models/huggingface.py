"""GPT-2 and Llama from folders of Hugging Face: config.json, safetensors, tokenizer.json.

Only JSON and raw numbers are read: nothing in the folder can run. Weights become float32.
What the loaded model cannot compute exactly (another activation, other rotary positions,
tensors that it has no place for) is refused by name.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.core import files
from jaxrl.errors import InvalidInput, did_you_mean, one_line, require
from jaxrl.rlhf.models import tokenizers
from jaxrl.rlhf.models.tokenizers import Tokenizer
from jaxrl.rlhf.models.transformer import GPT, ModelConfig
from jaxrl.types import PyTree

Read = TypeVar("Read")


class Pretrained(NamedTuple):
    """A language model of a folder."""

    config: ModelConfig
    params: PyTree
    """For `GPT(config).apply`."""
    tokenizer: Tokenizer | None
    """None where the folder has no tokenizer.json."""


Place = tuple[str, slice | None, bool]
"""Where one of our arrays stands: tensor, part of its last axis, whether it is turned."""


def load_gpt2(folder: str | Path) -> Pretrained:
    """A GPT-2 of `transformers` (`GPT2LMHeadModel`).

    Args:
      folder: with config.json, model.safetensors (or shards and their index) and, if the
        text is to be read too, tokenizer.json.

    Raises:
      InvalidInput: a file cannot be read, the architecture is another, a tensor is missing,
        has another shape or no place in the model, or the tokenizer is not the model's.
    """
    return _load(Path(folder), "gpt2", _gpt2_config, _gpt2_places)


def load_llama(folder: str | Path) -> Pretrained:
    """A Llama of `transformers` (`LlamaForCausalLM`), up to Llama 3.2's text models.

    Args:
      folder: as for `load_gpt2`.

    Raises:
      InvalidInput: as `load_gpt2`.
    """
    return _load(Path(folder), "llama", _llama_config, _llama_places)


def _load(
    folder: Path,
    kind: str,
    config_of: Callable[[Path, Mapping[str, Any]], ModelConfig],
    places_of: Callable[[ModelConfig], dict[str, Place]],
) -> Pretrained:
    path = folder / "config.json"
    described = read_json(path)
    found = described.get("model_type")
    require(
        found == kind,
        f"{path}: model_type = {_show(found)}, where load_{kind} needs {kind!r}"
        f"{did_you_mean(str(found), [kind])}.",
    )
    try:
        config = config_of(path, described)
    except KeyError as error:
        raise InvalidInput(f"{path} has no field {error}.") from error
    except InvalidInput as error:
        said = str(error)
        short = said if len(said) < 400 else f"{said[:200]} ... {said[-100:]}"
        raise InvalidInput(short) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(
            f"{path} has a field of another type ({one_line(str(error))}): take the file "
            f"as it was published."
        ) from error
    shapes = _shapes(folder)
    _check_layers(path, config, shapes)
    params = _fill(folder, config, places_of(config), shapes)
    return Pretrained(config, params, _tokenizer(folder, config, described))


def _gpt2_config(path: Path, described: Mapping[str, Any]) -> ModelConfig:
    gelu = ("gelu_new", "gelu_pytorch_tanh")
    _must_be(path, described, "activation_function", *gelu)
    _must_be(path, described, "scale_attn_weights", True)
    _must_be(path, described, "scale_attn_by_inverse_layer_idx", False)
    _must_be(path, described, "add_cross_attention", False)
    _must_be(path, described, "tie_word_embeddings", True)
    width = described["n_embd"]
    return ModelConfig(
        vocab_size=described["vocab_size"],
        max_length=described["n_positions"],
        num_layers=described["n_layer"],
        num_heads=described["n_head"],
        width=width,
        mlp_width=described.get("n_inner") or 4 * width,
        norm_epsilon=described.get("layer_norm_epsilon", 1e-5),
    )


def _llama_config(path: Path, described: Mapping[str, Any]) -> ModelConfig:
    _must_be(path, described, "hidden_act", "silu")
    _must_be(path, described, "attention_bias", False)
    _must_be(path, described, "mlp_bias", False)
    return ModelConfig(
        vocab_size=described["vocab_size"],
        max_length=described["max_position_embeddings"],
        num_layers=described["num_hidden_layers"],
        num_heads=described["num_attention_heads"],
        num_kv_heads=described.get("num_key_value_heads"),
        head_width=described.get("head_dim"),
        width=described["hidden_size"],
        mlp_width=described["intermediate_size"],
        positions="rotary",
        **_rotary(path, described),
        norm="rms",
        norm_epsilon=described.get("rms_norm_eps", 1e-6),
        activation="swiglu",
        tied=described.get("tie_word_embeddings", False),
        bias=False,
    )


def _rotary(path: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """Newer files have `rope_parameters`, older ones `rope_theta` and `rope_scaling`."""
    rotary = described.get("rope_parameters") or described.get("rope_scaling") or {}
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    require(
        kind in ("default", "llama3"),
        f"{path}: rope_type = {_show(kind)}: only 'default' and 'llama3' are known.",
    )
    base = rotary.get("rope_theta", described.get("rope_theta", 10_000.0))
    if kind == "default":
        return {"rotary_base": float(base)}
    return {
        "rotary_base": float(base),
        "rotary_factor": float(rotary["factor"]),
        "rotary_low": float(rotary["low_freq_factor"]),
        "rotary_high": float(rotary["high_freq_factor"]),
        "rotary_context": rotary["original_max_position_embeddings"],
    }


def _gpt2_places(config: ModelConfig) -> dict[str, Place]:
    """Ours -> theirs. Their linear layers are `[inputs, outputs]`, as ours."""
    places: dict[str, Place] = {
        "token_embedding/embedding": ("wte.weight", None, False),
        "position_embedding/embedding": ("wpe.weight", None, False),
    }
    norms = {"norm": "ln_f"}
    for i in range(config.num_layers):
        ours, theirs = f"block_{i}", f"h.{i}"
        norms |= {f"{ours}/norm_{n}": f"{theirs}.ln_{n}" for n in (1, 2)}
        parts: dict[str, tuple[str, slice | None]] = {
            "attention/output": ("attn.c_proj", None),
            "mlp/up": ("mlp.c_fc", None),
            "mlp/down": ("mlp.c_proj", None),
        }
        for n, name in enumerate(("query", "key", "value")):
            columns = slice(n * config.width, (n + 1) * config.width)
            parts[f"attention/{name}"] = ("attn.c_attn", columns)
        for name, (layer, part) in parts.items():
            tensor = f"{theirs}.{layer}"
            places[f"{ours}/{name}/kernel"] = (f"{tensor}.weight", part, False)
            places[f"{ours}/{name}/bias"] = (f"{tensor}.bias", part, False)
    for ours, theirs in norms.items():
        places[f"{ours}/scale"] = (f"{theirs}.weight", None, False)
        places[f"{ours}/bias"] = (f"{theirs}.bias", None, False)
    return places


def _llama_places(config: ModelConfig) -> dict[str, Place]:
    """Ours -> theirs. Their linear layers are `[outputs, inputs]`: turned."""
    places: dict[str, Place] = {
        "token_embedding/embedding": ("embed_tokens.weight", None, False),
        "norm/scale": ("norm.weight", None, False),
    }
    if not config.tied:
        places["head"] = ("lm_head.weight", None, True)
    layers = {
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/output": "self_attn.o_proj",
        "mlp/gate": "mlp.gate_proj",
        "mlp/up": "mlp.up_proj",
        "mlp/down": "mlp.down_proj",
    }
    norms = {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm"}
    for i in range(config.num_layers):
        for ours, theirs in layers.items():
            tensor = f"layers.{i}.{theirs}.weight"
            places[f"block_{i}/{ours}/kernel"] = (tensor, None, True)
        for ours, theirs in norms.items():
            tensor = f"layers.{i}.{theirs}.weight"
            places[f"block_{i}/{ours}/scale"] = (tensor, None, False)
    return places


def _check_layers(
    path: Path, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the depth with the file before anything is made of that size."""
    layers = {found[1] for name in shapes if (found := LAYER.match(name))}
    require(
        len(layers) == config.num_layers,
        f"{path}: a model of {config.num_layers:,} layers, where its files have weights "
        f"of {len(layers)}: take the files as they were published.",
    )


LAYER = re.compile(r"(?:h|layers)\.(\d+)\.")
"""Beginning of the name of a tensor in a layer."""


def _fill(
    folder: Path,
    config: ModelConfig,
    places: dict[str, Place],
    shapes: Mapping[str, tuple[int, ...]],
) -> PyTree:
    """Our parameters from their tensors, each of the shape that the config says."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    variables = jax.eval_shape(GPT(config).init, jax.random.key(0), tokens)
    expected = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    _check_shapes(folder, expected, places, shapes)
    users: dict[str, list[str]] = {}
    for ours in expected:
        users.setdefault(places[ours][0], []).append(ours)
    filled = {}
    for name, tensor in _tensors(folder):
        for ours in users.get(name, ()):
            _, part, turned = places[ours]
            whole = tensor.T if turned else tensor
            array = whole if part is None else whole[..., part]
            filled[ours] = jnp.asarray(array, jnp.float32)
    return {"params": flax.traverse_util.unflatten_dict(filled, sep="/")}


def _check_shapes(
    folder: Path,
    expected: Mapping[str, Any],
    places: dict[str, Place],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    for ours, leaf in expected.items():
        name, *_ = places[ours]
        require(name in shapes, f"{folder}: the tensor {name!r} is missing.")
        require(
            _own_shape(places[ours], shapes[name]) == leaf.shape,
            f"{folder}: the tensor {name!r} has shape {shapes[name]}, which does not fit "
            f"{ours!r} of shape {leaf.shape} in config.json's model.",
        )
    # A tied head may be stored all the same.
    known = {name for name, *_ in places.values()} | {"lm_head.weight"}
    left = sorted(shapes.keys() - known)
    require(
        not left,
        f"{folder}: the tensors {_show(left[:3])} have no place in this model.",
    )


def _own_shape(place: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of what a place takes of a tensor."""
    _, part, turned = place
    shape = shape[::-1] if turned else shape
    if part is None or not shape:
        return shape
    return (*shape[:-1], len(range(*part.indices(shape[-1]))))


BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Ends of names of tensors that are constants of the computation, not weights."""


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, of which no more than the files' headers is read."""

    def shape(file: Any, name: str) -> tuple[int, ...]:
        return tuple(file.get_slice(name).get_shape())

    return dict(_weights(folder, shape))


def _tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every weight."""
    return _weights(folder, lambda file, name: np.asarray(file.get_tensor(name)))


def _weights(
    folder: Path, read: Callable[[Any, str], Read]
) -> Iterator[tuple[str, Read]]:
    """What is read of every weight, without the prefix that models with a head have."""
    from safetensors import SafetensorError, safe_open

    for path in _files(folder):
        try:
            require(path.is_file(), f"{path} cannot be read: it is not a file.")
            with safe_open(path, framework="flax") as file:
                for name in file.keys():  # noqa: SIM118 (it is no dict)
                    if not name.endswith(BUFFERS):
                        bare = name.removeprefix("transformer.").removeprefix("model.")
                        yield bare, read(file, name)
        except OSError as error:
            with files.naming(path):
                files.refuse(error, f"{path} cannot be read: {error}.")
        except SafetensorError as error:
            raise InvalidInput(f"{path} cannot be read: {error}.") from error


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    found = read_json(index).get("weight_map")
    is_map = isinstance(found, dict) and all(isinstance(x, str) for x in found.values())
    require(is_map, f"{index}: weight_map = {_show(found)}: must name files.")
    names = sorted(set(cast(dict[str, str], found).values()))
    outside = [name for name in names if Path(name).name != name]
    require(
        not outside, f"{index} names {_show(outside[:1])}, which is not in its folder."
    )
    return [folder / name for name in names]


def _tokenizer(
    folder: Path, config: ModelConfig, described: Mapping[str, Any]
) -> Tokenizer | None:
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    end, pad = (
        _token(folder / "config.json", described, name)
        for name in ("eos_token_id", "pad_token_id")
    )
    tokenizer = tokenizers.from_file(path, end, pad)
    tokenizers.check_vocabulary(tokenizer, config)
    return tokenizer


def _token(path: Path, described: Mapping[str, Any], name: str) -> int | None:
    """A token of the config; of several the first, which is the text's."""
    value = described.get(name)
    first = value[0] if isinstance(value, list) and value else value
    require(
        first is None or type(first) is int,
        f"{path}: {name} = {_show(value)}: must be the number of a token.",
    )
    return cast(int | None, first)


def _must_be(
    path: Path, described: Mapping[str, Any], name: str, *values: str | bool
) -> None:
    """A field is absent, or has a value that this model can compute."""
    value = described.get(name, values[0])
    choices = " or ".join(map(repr, values))
    require(
        value in values, f"{path}: {name} = {_show(value)}: only {choices} is known."
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
      InvalidInput: it is none.
    """
    content = files.read_json(path)
    require(isinstance(content, dict), f"{path} is no JSON object.")
    return cast(dict[str, Any], content)


def _show(value: Any) -> str:
    """A value as it stands in a message, shortened."""
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
