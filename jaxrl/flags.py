"""The flags of `jaxrl train ALGO`, and the experiment they describe.

Every field of an algorithm's Config is a flag, with its docstring as help. Precedence:
defaults, then the file given with `--config`, then flags.
"""

import dataclasses
import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import click

from jaxrl import config as configs
from jaxrl.errors import did_you_mean
from jaxrl.experiment import Experiment
from jaxrl.types import Algorithm, InvalidInput

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


RUN_OPTIONS = (
    click.Option(["--env"], help="Environment id; see `jaxrl list envs`."),
    click.Option(["--seed"], type=int, help="First seed.  [default: 0]"),
    click.Option(
        ["--num-seeds"], type=int, help="Agents trained in one program.  [default: 1]"
    ),
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
        ["--stop-return"], type=float, help="Stop at this mean training return."
    ),
    click.Option(
        ["--stop-iterations"], type=int, help="Stop after so many iterations."
    ),
    click.Option(["--stop"], help="The same in RLlib's words, as JSON."),
    click.Option(
        ["--evaluation-episodes"],
        type=int,
        help="Greedy episodes for each seed at the end.  [default: 128]",
    ),
    click.Option(
        ["--parallel"],
        help="What is spread over devices: members (of a population), data (environments "
        "of each agent), or auto.  [default: auto]",
    ),
    click.Option(
        ["--devices", "num_devices"],
        type=int,
        help="How many devices.  [default: as many as divide the work]",
    ),
    click.Option(
        ["--checkpoint-every"],
        type=float,
        help="Seconds between checkpoints.  [default: 60]",
    ),
    click.Option(["--keep"], type=int, help="Checkpoints that are kept.  [default: 2]"),
    click.Option(
        ["--on-nan"],
        help="When something becomes NaN or infinite: stop, or continue with the other "
        "seeds.  [default: stop]",
    ),
    click.Option(
        ["--deterministic"],
        is_flag=True,
        default=None,
        help="The same result every time on a GPU too, which may be slower.",
    ),
    click.Option(["--quiet"], is_flag=True, help="No plan and no progress bar."),
    click.Option(["--json", "as_json"], is_flag=True, help="Evaluation as JSON, last."),
)


def config_options(config_class: type) -> list[click.Option]:
    """One flag for each field, with its docstring as help."""
    docs = configs.field_docs(config_class)
    defaults = config_class()
    return [
        _config_option(name, kind, docs[name], getattr(defaults, name))
        for name, kind in configs.field_types(config_class).items()
    ]


def _config_option(name: str, kind: Any, doc: str, default: Any) -> click.Option:
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        flag += "/--no-" + name.replace("_", "-")
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return click.Option(
        [flag, name],
        type=None if kind is bool else _FieldType(kind),
        default=None,
        help=f"{doc}  [default: {shown}]",
    )


NONE = object()
"""A flag that says none, which is not the same as no flag."""


class _FieldType(click.ParamType):
    """The value of a config field, from text."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        arguments = typing.get_args(kind)
        self.optional = type(None) in arguments
        self.scalar = arguments[0] if self.optional else kind
        if typing.get_origin(kind) is Literal:
            self.name = "|".join(arguments)
        elif typing.get_origin(kind) is tuple:
            self.name = "integers"
        else:
            self.name = self.scalar.__name__ + ("|none" if self.optional else "")

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if self.optional and value.lower() == "none":
            return NONE
        try:
            if typing.get_origin(self.kind) is tuple:
                return tuple(int(v) for v in value.split(","))
            if typing.get_origin(self.kind) is Literal:
                return value  # checked with the config, which suggests the nearest
            return self.scalar(value)
        except ValueError:
            self.fail(f"{value!r} is not of type {self.name}.", param, ctx)


def split_env_params(args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Takes `--env.NAME VALUE` and `--env.NAME=VALUE` out of the arguments."""
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
        params[name.replace("-", "_")] = _parsed(text)
    return rest, params


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        words = {"True": True, "False": False, "None": None, "none": None}
        return words.get(text, text)


def experiment_from_flags(
    algorithm: Algorithm, env_params: dict[str, Any], **flags: Any
) -> Experiment:
    """The experiment that file and flags ask for; a flag overrides the file.

    Raises:
      InvalidInput: one sentence that names the field, the value and the fix.
    """
    config_file = flags.pop("config_file", None)
    file = _read_config_file(config_file, algorithm) if config_file else {}
    given = {name: value for name, value in flags.items() if value is not None}
    stop = _rllib_stop(given.pop("stop", None))
    fields = configs.field_types(algorithm.Config)
    values = file.pop("config", {})
    values |= {
        name: None if value is NONE else value
        for name, value in (stop | given).items()
        if name in fields
    }
    env_params = file.pop("env_params", {}) | env_params
    run = file | {n: v for n, v in (stop | given).items() if n not in fields}
    env_id = run.pop("env", None)
    if env_id is None:
        raise InvalidInput("env is missing: give one such as --env CartPole-v1.")
    if "id" in env_params:
        raise InvalidInput("env.id is not a parameter: choose with --env ID.")
    config = configs.from_dict(algorithm.Config, values)
    return Experiment(algorithm, config, env_id, env_params, **run)


def _read_config_file(path: str, algorithm: Any) -> dict[str, Any]:

    try:
        text = Path(path).read_text()
        content = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"config = {path!r} cannot be read as TOML or JSON: {error}."
        ) from error
    _check_settings(content, path)
    name = content.pop("algorithm", algorithm.name)
    if name != algorithm.name:
        raise InvalidInput(
            f"{path} is for algorithm {name!r}, not {algorithm.name!r}: "
            f"use `jaxrl train {name}`."
        )
    return content


def _check_settings(content: Any, path: str) -> None:
    """Names and tables; the values are checked where those of the flags are."""
    tables, texts = ("config", "env_params"), ("algorithm", "env")
    known = [field.name for field in dataclasses.fields(Experiment)]
    if not isinstance(content, Mapping):
        raise InvalidInput(f"config = {path!r} must hold a table of settings.")
    for name, value in content.items():
        if name not in known:
            raise InvalidInput(
                f"{name} in {path} is not a setting{did_you_mean(name, known)} "
                f"(hyper-parameters belong in the table `config`)."
            )
        if name in tables and not isinstance(value, Mapping):
            raise InvalidInput(f"{name} = {value!r} in {path} must be a table.")
        if name in texts and not isinstance(value, str):
            raise InvalidInput(f"{name} = {value!r} in {path} must be a name.")


def _rllib_stop(text: str | None) -> dict[str, Any]:

    if text is None:
        return {}
    try:
        rules = json.loads(text)
    except ValueError:
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
