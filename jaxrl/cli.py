"""`jaxrl`: a thin shell over the Python API.

Exit codes: 0 done; 1 a check failed; 2 bad input, nothing was written; 3 a number became
NaN or infinite; 130 and 143 stopped by SIGINT or SIGTERM, with everything saved.

What is heavy is imported by the command that needs it: `jaxrl --help` does not wait for
JAX.
"""

import json
import os
import shlex
import signal
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import click

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


def entry_point() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit code. Errors are one line on stderr."""
    from jaxrl.errors import one_line

    try:
        code = jaxrl.main(list(argv), prog_name="jaxrl", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return 2
    except click.ClickException as error:
        return _fail(one_line(error.format_message()), 2)
    except click.Abort:
        return 130
    except ValueError as error:
        from jaxrl.types import InvalidInput

        if not isinstance(error, InvalidInput):
            raise
        return _fail(one_line(str(error)), 2)
    except ArithmeticError as error:
        from jaxrl.runner import NonFiniteError

        if not isinstance(error, NonFiniteError):
            raise
        return _fail(one_line(str(error)), 3)


def _fail(message: str, code: int) -> int:
    click.echo(f"jaxrl: {message}", err=True)
    return code


@click.group()
@click.version_option(package_name="jaxrl")
def jaxrl() -> None:
    """Reinforcement learning end to end on the accelerator.

    \b
    jaxrl train ppo --env CartPole-v1
    jaxrl evaluate RUN
    """


class _OneCommandAnAlgorithm(click.Group):
    """`jaxrl train ALGO`: flags are made from the fields of the algorithm's Config."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from jaxrl.algorithms import ALGORITHMS

        return list(ALGORITHMS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from jaxrl.algorithms import ALGORITHMS

        if name not in ALGORITHMS:
            from jaxrl.errors import did_you_mean

            raise click.UsageError(
                f"ALGO = {name!r} is not an algorithm{did_you_mean(name, ALGORITHMS)} "
                f"(there are: {', '.join(ALGORITHMS)})."
            )
        return _train_command(ALGORITHMS[name])


@jaxrl.group(cls=_OneCommandAnAlgorithm)
def train() -> None:
    """Train an algorithm: jaxrl train ALGO --env ID.

    `jaxrl train ALGO --help` shows every hyper-parameter. Parameters of the environment
    are given as --env.NAME VALUE.
    """


_RUN_OPTIONS = (
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
    click.Option(["--quiet"], is_flag=True, help="No plan and no progress bar."),
    click.Option(["--json", "as_json"], is_flag=True, help="Evaluation as JSON, last."),
)


class _TrainCommand(click.Command):
    """Takes `--env.NAME VALUE` out of the arguments before click reads the rest."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest, ctx.meta["env_params"] = split_env_params(args)
        return super().parse_args(ctx, rest)


def _train_command(algorithm: Any) -> click.Command:
    def callback(**flags: Any) -> int:
        env_params = click.get_current_context().meta["env_params"]
        return _train(algorithm, env_params, **flags)

    return _TrainCommand(
        name=algorithm.name,
        params=[*_RUN_OPTIONS, *_config_options(algorithm.Config)],
        callback=callback,
        help=f"Train {algorithm.name}. {algorithm.Config.__doc__}",
    )


def _config_options(config_class: type) -> list[click.Option]:
    """One flag for each field, with its docstring as help."""
    from jaxrl import config as configs

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
            return None
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
        return {"True": True, "False": False, "None": None}.get(text, text)


def _train(
    algorithm: Any,
    env_params: dict[str, Any],
    *,
    out: str | None,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    from jaxrl.experiment import run_experiment

    experiment = experiment_from_flags(algorithm, env_params, **flags)
    with _remembered_signals() as received:
        folder, summary = run_experiment(
            experiment,
            out,
            progress=not quiet,
            report=(lambda line: None) if quiet else click.echo,
            interrupted=lambda: bool(received),
        )
    next_command = shlex.join(["jaxrl", "evaluate", str(folder)])
    _report_evaluation(summary["evaluation"], as_json, next_command)
    return 128 + received[0] if received else 0


def experiment_from_flags(
    algorithm: Any, env_params: dict[str, Any], **flags: Any
) -> Any:
    """The experiment that file and flags ask for; a flag overrides the file.

    Raises:
      InvalidInput: one sentence that names the field, the value and the fix.
    """
    from jaxrl import config as configs
    from jaxrl.envs import make
    from jaxrl.experiment import Experiment
    from jaxrl.types import InvalidInput

    config_file = flags.pop("config_file")
    file = _read_config_file(config_file, algorithm) if config_file else {}
    given = {name: value for name, value in flags.items() if value is not None}
    stop = _rllib_stop(given.pop("stop", None))
    fields = configs.field_types(algorithm.Config)
    values = file.pop("config", {})
    values |= {name: value for name, value in (stop | given).items() if name in fields}
    env_params = file.pop("env_params", {}) | env_params
    run = file | {n: v for n, v in (stop | given).items() if n not in fields}
    env_id = run.pop("env", None)
    if env_id is None:
        raise InvalidInput("env is missing: give one such as --env CartPole-v1.")
    if "id" in env_params:
        raise InvalidInput("env.id is not a parameter: choose with --env ID.")
    env = make(env_id, **env_params)
    config = configs.from_dict(algorithm.Config, values)
    return Experiment(algorithm, config, env, env_params, **run)


def _read_config_file(path: str, algorithm: Any) -> dict[str, Any]:
    import tomllib

    from jaxrl.types import InvalidInput

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
    from jaxrl.errors import did_you_mean
    from jaxrl.types import InvalidInput

    tables, texts = ("config", "env_params"), ("algorithm", "env")
    known = [*texts, *tables, "seed", "num_seeds"]
    known += ["stop_return", "stop_iterations", "evaluation_episodes"]
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
    from jaxrl.errors import did_you_mean
    from jaxrl.types import InvalidInput

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


@contextmanager
def _remembered_signals() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is remembered, a second one acts at once."""
    received: list[int] = []

    def remember(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        # Not through sys.stderr, in the middle of whose writing this may be called.
        os.write(2, b"\nstopping after this chunk; once more to stop at once\n")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@jaxrl.command()
@click.argument("run", type=click.Path())
@click.option("--episodes", type=int, default=128, help="Episodes for each seed.")
@click.option("--seed", type=int, default=0, help="Seed of the episodes.")
@click.option("--stochastic", is_flag=True, help="Sample actions, not the likeliest.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, last line.")
def evaluate(
    run: str, episodes: int, seed: int, stochastic: bool, as_json: bool
) -> None:
    """Evaluate the agents of a run folder."""
    from jaxrl.artifact import load_policy
    from jaxrl.experiment import evaluate_agents
    from jaxrl.types import InvalidInput

    if episodes < 1:
        raise InvalidInput(f"episodes = {episodes}: must be at least 1.")
    policy = load_policy(run)
    evaluation, _ = evaluate_agents(
        policy, policy.agents, episodes, seed, not stochastic
    )
    _report_evaluation(evaluation, as_json)


def _report_evaluation(
    evaluation: dict[str, Any], as_json: bool, next_command: str | None = None
) -> None:
    low, high = evaluation["episode_return_ci95"]
    num_seeds = len(evaluation["seeds"])
    click.echo(
        f"{evaluation['algorithm']} on {evaluation['env']}: return "
        f"{evaluation['episode_return_iqm']:.2f} (IQM), "
        f"{evaluation['episode_return_mean']:.2f} (mean), 95 % interval "
        f"[{low:.2f}, {high:.2f}], {num_seeds} seed{'s' * (num_seeds != 1)} x "
        f"{evaluation['episodes']} episodes"
    )
    if next_command:
        click.echo(f"next: {next_command}" if as_json else next_command)
    if as_json:
        click.echo(json.dumps(evaluation))


@jaxrl.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="PNG, PDF or SVG file.")
@click.option("--metric", default="rollout/episode_return", show_default=True)
def plot(runs: tuple[str, ...], out: str, metric: str) -> None:
    """Plot the learning curves of one or more run folders."""
    from jaxrl.plotting import plot_learning_curves
    from jaxrl.types import InvalidInput

    if Path(out).suffix not in (".png", ".pdf", ".svg"):
        raise InvalidInput(f"out = {out!r} must end in .png, .pdf or .svg.")
    names = [Path(run).name or run for run in runs]
    labels = [n if names.count(n) == 1 else r for n, r in zip(names, runs, strict=True)]
    curves = {n: _read_run(run, metric) for n, run in zip(labels, runs, strict=True)}
    try:
        plot_learning_curves(curves, Path(out), metric)
    except OSError as error:
        raise InvalidInput(f"out = {out!r} cannot be written ({error}).") from error
    click.echo(out)


def _read_run(run: str, metric: str) -> list[dict[str, Any]]:
    """The rows of a run folder, which must have this metric."""
    from jaxrl.errors import did_you_mean
    from jaxrl.loggers import read_metrics
    from jaxrl.types import InvalidInput

    try:
        rows = read_metrics(Path(run) / "metrics.jsonl")
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"RUN = {run!r} holds no readable metrics.jsonl ({error})."
        ) from error
    if not rows:
        raise InvalidInput(f"RUN = {run!r} holds no metrics yet: its file is empty.")
    if metric not in rows[0]:
        raise InvalidInput(
            f"metric = {metric!r} is not in {run}{did_you_mean(metric, rows[0])}."
        )
    return rows


@jaxrl.command("list")
@click.argument("what", required=False, type=click.Choice(["algorithms", "envs"]))
def list_(what: str | None) -> None:
    """List the algorithms, the environments, or both."""
    if what != "envs":
        from jaxrl.algorithms import ALGORITHMS

        for name, algorithm in ALGORITHMS.items():
            click.echo(f"{name:12} {algorithm.Config.__doc__}")
    if what != "algorithms":
        from jaxrl.envs import env_ids, known_issues

        for env_id in env_ids():
            note = known_issues(env_id)
            click.echo(f"{env_id:28} {note}" if note else env_id)
