"""Networks as values: what a config's field `network` may be, and what is made of it.

A value is a name ("auto", "gru(size=32)"), a flax module, a `Body` (a torso with a
recurrent cell behind it), or "module:factory" for code of one's own. The algorithm adds
the heads (`jaxrl.networks.heads`), encoding, normalisation and masks.
"""

import ast
import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.core import files
from jaxrl.core.imports import import_value
from jaxrl.errors import InvalidInput, did_you_mean, require, shorten
from jaxrl.networks.encoding import encode, is_image
from jaxrl.networks.initializers import orthogonal
from jaxrl.networks.memory import Transformer
from jaxrl.networks.torso import CNN, MLP, ResNet
from jaxrl.types import Memory


@dataclasses.dataclass(frozen=True)
class Body:
    """A torso, and a recurrent cell behind it.

    Args:
      torso: flax module, `x -> [*batch, F]`. Its attribute `takes` says what x is:
        "vector" or "image" for the encoded observation (`networks.encode`), "raw" for the
        observation as the environment returns it, which is also what a module without the
        attribute is given. None is "auto": a CNN for images and an MLP otherwise.
      cell: a `flax.linen.RNNCellBase`, or None for no memory.
    """

    torso: nn.Module | None = None
    cell: nn.RNNCellBase | None = None

    @property
    def takes(self) -> str:
        """What the torso is given: "vector", "image" or "raw"."""
        return getattr(self.torso, "takes", "raw")

    @property
    def is_recurrent(self) -> bool:
        """Whether the network carries memory from step to step."""
        return self.cell is not None


def _gru(size: int = 64) -> nn.RNNCellBase:
    # flax's own default is a LAPACK QR, which can deadlock under vmap.
    return nn.GRUCell(size, recurrent_kernel_init=orthogonal(1.0))


def _lstm(size: int = 64) -> nn.RNNCellBase:
    return nn.OptimizedLSTMCell(size, recurrent_kernel_init=orthogonal(1.0))


_TORSOS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "mlp_layer_norm": partial(MLP, layer_norm=True),
    "cnn": CNN,
    "cnn_layer_norm": partial(CNN, layer_norm=True),
    "resnet": ResNet,
}
"""Called with `hidden_sizes`, `activation` and what stands in the parentheses."""

_CELLS: dict[str, Callable[..., nn.RNNCellBase]] = {
    "gru": _gru,
    "lstm": _lstm,
    "transformer": Transformer,
}
"""Called with what stands in the parentheses; the torso before them is "auto", or
"auto_layer_norm" where `layer_norm=True` stands there."""

NAMES = ("auto", "auto_layer_norm", *_TORSOS, *_CELLS)


class Network:
    """The type of a config's field `network`; see the head of `jaxrl.networks.body`."""

    @staticmethod
    def problem(value: Any) -> str | None:
        """What is wrong with a value, or None."""
        if isinstance(value, nn.Module | Body):
            try:
                hash(value)
            except TypeError:
                return "must be hashable: give tuples instead of lists as fields"
            return None
        if not isinstance(value, str):
            return "must be a name, a flax module, a Body or 'module:factory'"
        if ":" in value:
            return None
        name = value.partition("(")[0]
        if name not in NAMES:
            known = ", ".join(map(repr, NAMES))
            return (
                f"must be one of {known}{did_you_mean(name, NAMES)}, or module:factory"
            )
        try:
            _named(value, (64,), "relu", image=True)
        except (TypeError, ValueError, SyntaxError) as error:
            said = f" ({error})" if isinstance(error, BadSize) else ""
            return f"must be a name, or a name with sizes: gru(size=64){said}"
        return None

    @staticmethod
    def to_plain(value: Any) -> Any:
        """The value as JSON: what to import and its fields, never code."""
        return _describe(value)

    @staticmethod
    def from_plain(value: Any) -> Any:
        """The value that `to_plain` described.

        Nothing is imported that the caller has not imported, but JAX, flax and jaxrl: a
        run folder's word is not enough for code.

        Raises:
          InvalidInput: a module is not imported, or there is no such network in it.
        """
        if isinstance(value, str) and ":" in value:
            _require_imported(value)
        return _build(value)

    @staticmethod
    def from_text(text: str) -> Any:
        """The value that a word of the command line stands for.

        Whoever types the name of a module there asks for its import.
        """
        if text.startswith("{"):
            described = files.parse_json(text, "network")
            return _build(described, trusted=True)
        if ":" in text:
            load_network(text)
        return text


def resolve(config: Any, observation_space: spaces.Space) -> Body:
    """The torso and the cell that a config asks for.

    Args:
      config: with `network`, `hidden_sizes` and `activation`.
      observation_space: what decides "auto".
    """
    value = config.network
    image = is_image(observation_space)
    sizes, activation = tuple(config.hidden_sizes), config.activation
    if isinstance(value, str):
        if ":" in value:
            value = load_network(value)
        else:
            value = _named(value, sizes, activation, image)
    body = value if isinstance(value, Body) else Body(torso=value)
    if body.torso is None:
        body = dataclasses.replace(body, torso=_automatic(sizes, activation, image))
    return body


def check_features(config: Any, space: spaces.Space) -> None:
    """A torso of a user makes one vector of each observation; nothing is computed.

    Raises:
      InvalidInput: it makes something else.
    """
    body = resolve(config, space)
    torso: Any = body.torso
    if isinstance(torso, MLP | CNN | ResNet):
        return
    obs = encode(space, spaces.zeros(space, (1,)), body.takes)
    features = jax.eval_shape(torso.init_with_output, jax.random.key(0), obs)[0]
    shape = getattr(features, "shape", None)
    require(
        shape is not None and len(shape) == 2 and shape[0] == 1,
        f"network = {shorten(config.network)} makes "
        f"{'no array' if shape is None else list(shape)} of observations [1, ...]: it must "
        f"make features [1, F].",
    )


def initial_memory(body: Body, num_envs: int) -> Memory:
    """The memory at the start of an episode: zeros `[N, ...]`, or `()` without a cell."""
    cell = body.cell
    if cell is None:
        return ()
    # Every cell's carry has the batch axes of its input; its features do not matter.
    shapes = jax.eval_shape(
        lambda key: cell.initialize_carry(key, (num_envs, 1)), jax.random.key(0)
    )
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _named(text: str, sizes: tuple[int, ...], activation: Any, image: bool) -> Body:
    """The body of a name such as "gru(size=32)"."""
    call: Any = ast.parse(text if "(" in text else f"{text}()", mode="eval").body
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        raise ValueError("one name and its sizes")
    name = call.func.id
    if call.args or any(field.arg is None for field in call.keywords):
        raise ValueError("sizes are given by name")
    given = {str(x.arg): ast.literal_eval(x.value) for x in call.keywords}
    if name in ("auto", "auto_layer_norm"):
        if given:
            raise TypeError(f"{name} has no sizes")
        return Body(_automatic(sizes, activation, image, name == "auto_layer_norm"))
    if name in _CELLS:
        layer_norm = {x: given.pop(x) for x in ("layer_norm",) if x in given}
        _check_sizes(_automatic, layer_norm)
        _check_sizes(_CELLS[name], given)
        torso = _automatic(sizes, activation, image, **layer_norm)
        return Body(torso, _CELLS[name](**given))
    _check_sizes(_TORSOS[name], given)
    return Body(_TORSOS[name](sizes, activation, **given))


def _automatic(
    sizes: tuple[int, ...], activation: Any, image: bool, layer_norm: bool = False
) -> nn.Module:
    """The torso that fits the observations."""
    return (CNN if image else MLP)(sizes, activation, layer_norm)


class BadSize(ValueError):
    """A size in a name is not what it may be; the message is for a person."""


_KINDS = {int: "a whole number", float: "a number", bool: "True or False"}


def _check_sizes(make: Callable[..., Any], given: dict[str, Any]) -> None:
    """Check that sizes have the types of the defaults, and whole ones are 1 or more.

    Raises:
      BadSize: one is something else.
      TypeError: there is no such size.
    """
    known = inspect.signature(make).parameters
    for name, value in given.items():
        if name not in known:
            raise TypeError(name)
        default = known[name].default
        several = value if isinstance(default, tuple | list) else [value]
        one = default[0] if isinstance(default, tuple | list) else default
        if not isinstance(several, list | tuple) or not several:
            raise BadSize(f"{name} = {value!r} must be a list of whole numbers")
        for x in several:
            if type(x) is not type(one) and not (type(one) is float and type(x) is int):
                raise BadSize(f"{name} = {value!r} must be {_KINDS[type(one)]}")
            if type(one) is int and x < 1:
                raise BadSize(f"{name} = {value!r} must be 1 or more")


def load_network(path: str) -> Any:
    """The value at "module:factory", or what a function or class there makes."""
    value = import_value(path, "network", "network", is_network, "my_module:my_network")
    if not isinstance(value, nn.Module | Body):
        try:
            inspect.signature(value).bind()
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"network = {path!r} must be a flax module, a Body, or a function or class "
                f"that makes one without arguments ({error})."
            ) from error
        value = value()
    require(
        isinstance(value, nn.Module | Body),
        f"network = {path!r} gives a {type(value).__name__}: it must be a flax module or "
        f"a Body.",
    )
    return value


def is_network(value: Any) -> bool:
    """Whether a value of a module is a network, or may make one."""
    return isinstance(value, nn.Module | Body) or callable(value)


def _describe(value: Any) -> Any:
    if isinstance(value, nn.Module | Body):
        hidden = ("parent", "name") if isinstance(value, nn.Module) else ()
        fields = {
            field.name: _describe(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name not in hidden and not _is_default(value, field)
        }
        kind = type(value)
        return {"module": f"{kind.__module__}:{kind.__qualname__}", "fields": fields}
    if isinstance(value, list | tuple):
        return [_describe(x) for x in value]
    if isinstance(value, Mapping):
        return {str(k): _describe(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, type) or callable(value):
        return _describe_function(value)
    raise InvalidInput(
        f"network: {value!r} is a {type(value).__name__}, which cannot be recorded: give "
        f"modules with fields that are numbers, text, tuples or functions of a module."
    )


def _describe_function(value: Any) -> dict[str, str]:
    """A function by its importable name; a closure has none."""
    name = getattr(value, "__qualname__", None)
    module = getattr(value, "__module__", None)
    place = sys.modules.get(module or "")
    if name is None or getattr(place, name, None) is not value:
        raise InvalidInput(
            f"network: {value!r} is no function at the top of a module, so a run folder "
            f"cannot name it: define it there, or give network = 'module:factory'."
        )
    return {"function": f"{module}:{name}"}


def _is_default(value: Any, field: Any) -> bool:
    """Whether a field has the value that its class gives it, if that is a function."""
    given = getattr(value, field.name)
    return callable(given) and given is field.default


def _build(value: Any, trusted: bool = False) -> Any:
    """What `_describe` described; `trusted`: whoever asks may have code imported."""
    if isinstance(value, list):
        return tuple(_build(x, trusted) for x in value)
    if not isinstance(value, dict):
        return value
    if "function" in value:
        return _import(value["function"], trusted)
    if "module" not in value:
        return {name: _build(x, trusted) for name, x in value.items()}
    kind = _import(value["module"], trusted)
    require(
        isinstance(kind, type) and issubclass(kind, nn.Module | Body),
        f"network: {value['module']} is no flax module.",
    )
    fields = {name: _build(x, trusted) for name, x in value["fields"].items()}
    try:
        return kind(**fields)
    except TypeError as error:
        raise InvalidInput(f"network: {value['module']}: {error}.") from error


TRUSTED = ("jax", "flax", "jaxrl")
"""Packages that a run folder may name without being asked; others must be imported."""


def _require_imported(path: str) -> None:
    module = path.partition(":")[0]
    require(
        module in sys.modules or module.split(".")[0] in TRUSTED,
        f"network = {path!r} is code that loading would import: if you trust that, import "
        f"{module} first, or give --network {path}.",
    )


def _import(path: str, trusted: bool) -> Any:
    module, _, name = path.partition(":")
    first, *rest = name.split(".")
    try:
        if trusted:
            top, example = f"{module}:{first}", "my_module:Net"
            value = import_value(
                top, "network", "value", lambda x: x is not None, example
            )
        else:
            _require_imported(path)
            value = getattr(importlib.import_module(module), first)
        for part in rest:
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"network: {path} cannot be imported ({error}).") from error
    return value
