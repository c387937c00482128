"""The flags of `jaxrl train ALGO`, and the experiment they describe.

Every field of an algorithm's Config is a flag, with its docstring as help. Precedence:
defaults, then the preset (`--preset`), then the file given with `--config`, then flags.
"""

import dataclasses
import inspect
import json
import typing
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import click

from jaxrl.core import config as configs
from jaxrl.core import files
from jaxrl.envs.problem import problem_of
from jaxrl.errors import InvalidInput, did_you_mean, require, shorten
from jaxrl.networks import Network
from jaxrl.runs import presets
from jaxrl.runs.artifact import map_paths
from jaxrl.runs.experiment import Experiment, command_words
from jaxrl.sweeps.plan import Sweep
from jaxrl.sweeps.space import as_space, parse, parse_value
from jaxrl.types import Algorithm

ENV_PREFIX = "--env."

RLLIB_STOP = {
    "training_iteration": "stop_iterations",
    "episode_reward_mean": "stop_return",
    "episode_return_mean": "stop_return",
    "env_runners/episode_return_mean": "stop_return",
    "timesteps_total": "total_steps",
    "num_env_steps_sampled_lifetime": "total_steps",
}
"""RLlib's names of stopping rules, and ours."""


FOLDER_OPTIONS = (
    click.Option(
        ["--out"],
        type=click.Path(),
        help="New folder.  [default: runs/ALGO-ENV-SEED-n]",
    ),
    click.Option(
        ["--config", "config_file"],
        type=click.Path(),
        help="TOML or JSON with env, env_params, seed, num_seeds and a table `config`; "
        "flags override it.",
    ),
    click.Option(
        ["--preset"],
        is_flag=True,
        default=None,
        help="Begin with the tuned hyper-parameters for this environment; see "
        "`jaxrl list presets`.",
    ),
    click.Option(["--stop"], help="Stopping rules in RLlib's words, as JSON."),
    click.Option(["--quiet"], is_flag=True, help="Neither the plan nor how far it is."),
    click.Option(["--json", "as_json"], is_flag=True, help="Evaluation as JSON, last."),
)
"""Flags of a run that are no fields of its `Experiment`."""

MACHINE_OPTIONS = (
    click.Option(
        ["--coordinator"],
        help="HOST:PORT of the first of several processes, or auto on a cluster that JAX "
        "knows.  [default: one process]",
    ),
    click.Option(["--num-processes"], type=int, help="How many processes there are."),
    click.Option(["--process-id"], type=int, help="Which this is: 0, 1, ..."),
)
"""Of a run on several processes, of one machine or many."""


_TEACHERS = {
    "data": "Folder of a dataset (`jaxrl collect`) to learn from.",
    "expert": "Run folder whose policy is asked for the right actions.",
    "policy": "Whose values are learned: uniform, or a run folder.  [default: uniform]",
}


def teacher_options(algorithm: Algorithm) -> list[click.Option]:
    """The flag for what the algorithm learns from beside rewards, if it has one."""
    kind = algorithm.teacher
    if not kind:
        return []
    return [click.Option([f"--{kind}", "teacher"], help=_TEACHERS[kind])]


def parameters_of(algorithm: Algorithm) -> dict[str, inspect.Parameter]:
    """What the `make` of a task takes beside the data, by name; of environments nothing."""
    problem = problem_of(algorithm)
    if problem.prefix:
        return {}
    fixed = getattr(problem.make, "keywords", {})
    return {
        name: parameter
        for name, parameter in inspect.signature(problem.make).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in fixed
    }


def parameter_docs(algorithm: Algorithm) -> dict[str, str]:
    """What the docstring of the `make` of a task says of each parameter."""
    from docstring_parser import parse_from_object

    make = problem_of(algorithm).make
    found = parse_from_object(getattr(make, "func", make)).params
    return {x.arg_name: _sentence(x.description or "") for x in found}


def _sentence(text: str) -> str:
    words = " ".join(text.split())
    return words[:1].upper() + words[1:]


def problem_options(algorithm: Algorithm) -> list[click.Option]:
    """The flags for what an algorithm is trained on; of an environment its id, beside the
    parameters `--env.NAME`."""
    problem = problem_of(algorithm)
    options = [click.Option([f"--{problem.flag}", "env"], help=problem.help)]
    docs = parameter_docs(algorithm)
    for name, field in parameters_of(algorithm).items():
        default = field.default
        is_asked = default is inspect.Parameter.empty
        shown = "required" if is_asked else f"default: {_shown(default)}"
        kind: Any = {bool: bool, int: int, float: float}.get(type(default), str)
        kind = {"model": _Sizes(), "max_prompt": int}.get(name, kind)
        flag = "--" + name.replace("_", "-")
        option = click.Option([flag, name], type=kind, help=f"{docs[name]}  [{shown}]")
        options.append(option)
    return options


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return "none" if default is None else str(default)


class _Sizes(click.ParamType):
    name = "name=value,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, Any]:
        try:
            pairs = [part.split("=") for part in value.split(",")]
            return {name: parse_value(text) for name, text in pairs}
        except ValueError:
            self.fail(f"{value!r} is not such as num_layers=4,width=128.", param, ctx)


def field_options(config_class: type) -> list[click.Parameter]:
    """One flag for each field that has one, with its docstring as help."""
    docs = configs.field_docs(config_class)
    kinds = configs.field_types(config_class)
    return [
        _field_option(field, kinds[field.name], docs[field.name])
        for field in dataclasses.fields(config_class)
        if configs.flag(field) is not None
    ]


def _field_option(field: Any, kind: Any, doc: str) -> click.Option:
    flag, default = str(configs.flag(field)), configs.default_of(field)
    if kind is bool:
        flag += "/--no-" + flag[2:]
    separator = field.metadata.get("separator", ",")
    is_asked = default is dataclasses.MISSING
    return click.Option(
        [flag, field.name],
        type=None if kind is bool else _FieldType(kind, separator),
        default=None,
        help=doc if is_asked else f"{doc}  [default: {_shown(default)}]",
    )


def options_of(algorithm: Algorithm) -> list[click.Parameter]:
    """Every flag of a run of an algorithm: what it is trained on, how, and where."""
    run = [*field_options(Experiment), *FOLDER_OPTIONS, *MACHINE_OPTIONS]
    more = [*teacher_options(algorithm), *field_options(algorithm.Config)]
    return [*problem_options(algorithm), *run, *more]


def sweep_options() -> list[click.Parameter]:
    """Those of a sweep beside `--grid` and the flags of a run."""
    return field_options(Sweep)


NONE = object()
"""A flag that says none, which is not the same as no flag."""


def _word(kind: type) -> str:
    return "integer" if kind is int else str(kind.__name__)


class _FieldType(click.ParamType):
    """The value of a field, from text; what it may be is checked with the others."""

    def __init__(self, kind: Any, separator: str = ",") -> None:
        arguments = typing.get_args(kind)
        self.optional = type(None) in arguments
        self.separator = separator
        kind = arguments[0] if self.optional else kind
        self.several = typing.get_origin(kind) in (tuple, Sequence)
        scalar = typing.get_args(kind)[0] if self.several else kind
        is_choice = typing.get_origin(scalar) is Literal
        self.scalar = str if is_choice else scalar
        self.name = "|".join(typing.get_args(scalar)) if is_choice else _word(scalar)
        if self.several:
            self.name = f"{self.name}{separator}..."
        if self.optional:
            self.name += "|none"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        kind: Any = self.scalar
        if hasattr(kind, "from_text"):
            return kind.from_text(value)
        is_number = self.scalar in (int, float)
        if self.optional and value.lower() in ("none", "auto" if is_number else "none"):
            return NONE
        try:
            if self.several:
                return tuple(self.scalar(v) for v in value.split(self.separator))
            return self.scalar(value)
        except ValueError:
            noun = {int: "a whole number", float: "a number"}.get(
                kind, f"a {self.name}"
            )
            if self.several:
                noun = f"{noun[2:]}s joined by {self.separator!r}"
            either = " or none" if self.optional else ""
            self.fail(f"{value!r} must be {noun}{either}.", param, ctx)


def split_env_params(args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take `--env.NAME VALUE` and `--env.NAME=VALUE` out of the arguments."""
    rest: list[str] = []
    params: dict[str, Any] = {}
    arguments = iter(args)
    for argument in arguments:
        if not argument.startswith(ENV_PREFIX):
            rest.append(argument)
            continue
        name, equals, text = argument[len(ENV_PREFIX) :].partition("=")
        if not name.replace("-", "_").isidentifier():
            raise click.UsageError(f"{argument} names no parameter: --env.NAME VALUE.")
        if not equals:
            text = next(arguments, "--")
            if text.startswith("--"):
                raise click.UsageError(f"{argument} needs a value: {argument} VALUE.")
        params[name.replace("-", "_")] = parse_value(text)
    return rest, params


def split_grid(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take `--grid NAME=VALUES NAME=VALUES ...` out of the arguments."""
    rest: list[str] = []
    grid: list[str] = []
    inside = False
    for argument in args:
        if argument == "--grid":
            inside = True
        elif argument.startswith("--grid="):
            inside = True
            grid.append(argument.removeprefix("--grid="))
        elif inside and not argument.startswith("-") and "=" in argument:
            grid.append(argument)
        else:
            inside = False
            rest.append(argument)
    return rest, grid


def sweep_from_flags(
    algorithm: Algorithm, env_params: dict[str, Any], grid: Sequence[str], **flags: Any
) -> Sweep:
    """The sweep that the flags ask for.

    Raises:
      InvalidInput: one sentence that names the field, the value and the fix.
    """
    names = {option.name for option in sweep_options()}
    given = _given({n: x for n, x in flags.items() if n in names})
    others = {n: x for n, x in flags.items() if n not in names}
    pairs = [parse(text) for text in grid]
    if not pairs:
        raise InvalidInput(
            "grid is missing: give what is swept, such as --grid learning_rate=1e-4,1e-3."
        )
    for value in (
        x for n, d in pairs if n == "network" for x in getattr(d, "values", ())
    ):
        # Whoever types the name of a module asks for its import.
        Network.from_text(value if isinstance(value, str) else json.dumps(value))
    twice = [n for i, (n, _) in enumerate(pairs) if n in [m for m, _ in pairs[:i]]]
    if twice:
        raise InvalidInput(f"grid: {twice[0]} stands there twice.")
    # One setting that breaks should not end the others, unless that is asked for.
    others["defaults"] = {"on_nan": "continue"}
    experiment = experiment_from_flags(algorithm, env_params, **others)
    return Sweep(experiment, as_space(dict(pairs)), **given)


def read_reference(text: str) -> tuple[str, tuple[float, float]]:
    """`ENV=LOW:HIGH`, of `jaxrl report`."""
    env, _, limits = text.rpartition("=")
    low, _, high = limits.partition(":")
    try:
        return env, (float(low), float(high))
    except ValueError as error:
        raise InvalidInput(
            f"reference = {text!r}: write it as ENV=LOW:HIGH, such as CartPole-v1=0:500."
        ) from error


def experiment_from_flags(
    algorithm: Algorithm, env_params: dict[str, Any], **flags: Any
) -> Experiment:
    """The experiment that file and flags ask for; a flag overrides the file.

    Raises:
      InvalidInput: one sentence that names the field, the value and the fix.
    """
    config_file = flags.pop("config_file", None)
    file = flags.pop("defaults", {})
    file |= _read_config_file(config_file, algorithm) if config_file else {}
    given = _given(flags)
    given, params = _problem_words(algorithm, given)
    stop = _rllib_stop(given.pop("stop", None))
    fields = configs.field_types(algorithm.Config)
    values = file.pop("config", {})
    values |= {name: value for name, value in (stop | given).items() if name in fields}
    env_params = file.pop("env_params", {}) | env_params | params
    run = file | {n: v for n, v in (stop | given).items() if n not in fields}
    env_id = run.pop("env", None)
    if env_id is None:
        problem = problem_of(algorithm)
        raise InvalidInput(f"{problem.flag} is missing: give {problem.example}.")
    if "id" in env_params:
        raise InvalidInput("env.id is not a parameter: choose with --env ID.")
    if run.pop("preset", False):
        values = presets.read(algorithm.name, env_id)["config"] | values
    _check_parameters(algorithm, env_params)
    config = configs.from_dict(algorithm.Config, values)
    return Experiment(algorithm, config, env_id, env_params, **run)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given; none is None."""
    given = {name: value for name, value in flags.items() if value is not None}
    return {name: None if value is NONE else value for name, value in given.items()}


def _problem_words(
    algorithm: Algorithm, words: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Words of flags or of a file as those of an experiment, and the parameters of what
    it is trained on: the data stand where an environment stands otherwise."""
    flag = problem_of(algorithm).flag
    rest = {"env" if n == flag else n: v for n, v in words.items()}
    names = parameters_of(algorithm)
    params = {name: rest.pop(name) for name in names if name in rest}
    return rest, params


def _check_parameters(algorithm: Algorithm, params: dict[str, Any]) -> None:
    for name, field in parameters_of(algorithm).items():
        require(
            name in params or field.default is not inspect.Parameter.empty,
            f"{name} is missing: {parameter_docs(algorithm)[name]}",
        )


def read_file(path: str) -> Any:
    """What a TOML or JSON file holds.

    Raises:
      InvalidInput: it cannot be read.
    """
    try:
        return (files.read_json if path.endswith(".json") else files.read_toml)(path)
    except files.Unreadable as error:
        raise InvalidInput(f"config = {path!r}: {error}") from error


def _read_config_file(path: str, algorithm: Any) -> dict[str, Any]:
    content = read_file(path)
    flag = problem_of(algorithm).flag
    _check_settings(content, path, [flag, *parameters_of(algorithm)])
    content, params = _problem_words(algorithm, dict(content))
    if params:
        content["env_params"] = content.get("env_params", {}) | params
    content = map_paths(algorithm, content, partial(files.locate_beside, path))
    name = content.pop("algorithm", algorithm.name)
    if name != algorithm.name:
        raise InvalidInput(
            f"{path} is for algorithm {name!r}, not {algorithm.name!r}: "
            f"use `jaxrl {' '.join(command_words(name))}`."
        )
    return content


def _check_settings(content: Any, path: str, more: Sequence[str] = ()) -> None:
    """Names and tables; the values are checked where those of the flags are."""
    tables, texts = ("config", "env_params"), ("algorithm", "env", "data")
    known = [*more, *(field.name for field in dataclasses.fields(Experiment))]
    if not isinstance(content, Mapping):
        raise InvalidInput(f"config = {path!r} must hold a table of settings.")
    for name, value in content.items():
        if name not in known:
            raise InvalidInput(
                f"{name} in {path} is not a setting{did_you_mean(name, known)} "
                f"(hyper-parameters belong in the table `config`)."
            )
        if name in tables and not isinstance(value, Mapping):
            raise InvalidInput(
                f"{name} = {shorten(repr(value))} in {path} must be a table."
            )
        if name in texts and not isinstance(value, str):
            raise InvalidInput(
                f"{name} = {shorten(repr(value))} in {path} must be a name."
            )


def _rllib_stop(text: str | None) -> dict[str, Any]:

    if text is None:
        return {}
    try:
        rules = files.parse_json(text, "stop")
    except files.Unreadable:
        rules = None
    if not isinstance(rules, dict):
        raise InvalidInput(
            f"stop = {text!r} is not a JSON object such as "
            """'{"training_iteration": 200}'."""
        )
    for name, value in rules.items():
        if name not in RLLIB_STOP:
            raise InvalidInput(
                f"stop: {name!r} is not a stopping rule{did_you_mean(name, RLLIB_STOP)}."
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInput(f"stop: {name} = {value!r} must be a number.")
    return {RLLIB_STOP[name]: value for name, value in rules.items()}
