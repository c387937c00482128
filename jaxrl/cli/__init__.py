"""`jaxrl`: a thin shell over the Python API.

Exit codes: 0 done; 1 a check failed; 2 bad input, nothing was written; 3 a number became
NaN or infinite; 4 the disk is full, read-only or gone; 5 another process of the run is
gone; 130 and 143 stopped by SIGINT or SIGTERM, with everything saved.

What is heavy is imported by the command that needs it: `jaxrl --help` does not wait for
JAX.
"""

import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import click


def entry_point() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit code. Errors are one line on stderr."""
    try:
        return _run(argv)
    except Exception as error:
        if not _several():
            raise
        traceback.print_exception(error)
        return _end(1)


def _run(argv: Sequence[str]) -> int:
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
        return _end(130)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return _fail(
            f"{error.filename or 'a file'} cannot be written or read ({reason}): what "
            f"was saved before is kept; see to the disk, then `jaxrl resume RUN`.",
            4,
        )
    except (ValueError, RuntimeError) as error:
        from jaxrl.core import distributed
        from jaxrl.errors import InvalidInput

        if isinstance(error, InvalidInput):
            return _fail(one_line(str(error)), 2)
        if not distributed.is_lost(error):
            raise
        reason = str(error).split("\n")[0]
        return _fail(
            f"another process of this run has stopped or cannot be reached ({reason}): "
            f"start all of them again with `jaxrl resume RUN`.",
            5,
        )
    except ArithmeticError as error:
        from jaxrl.training.loop import NonFiniteError

        if not isinstance(error, NonFiniteError):
            raise
        return _fail(one_line(str(error)), 3)


def _fail(message: str, code: int) -> int:
    click.echo(f"jaxrl: {message}", err=True)
    return _end(code)


def _end(code: int) -> int:
    """Of several processes one that fails waits for no other: those learn of it then."""
    if _several():
        sys.stdout.flush()
        os._exit(code)
    return code


def _several() -> bool:
    distributed = sys.modules.get("jaxrl.core.distributed")
    return distributed is not None and distributed.several()


class _Commands(click.Group):
    """Says which command is nearest to one that does not exist."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.commands:
            from jaxrl.errors import did_you_mean

            raise click.UsageError(
                f"COMMAND = {name!r} is not a command{did_you_mean(name, self.commands)} "
                f"(there are: {', '.join(self.commands)})."
            )
        return super().get_command(ctx, name)


@click.group(cls=_Commands)
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
        return list(self.algorithms())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        known = self.algorithms()
        if name not in known:
            from jaxrl.errors import did_you_mean

            raise click.UsageError(
                f"ALGO = {name!r} is not an algorithm{did_you_mean(name, known)} "
                f"(there are: {', '.join(known)})."
            )
        return self.command_of(known[name])

    def algorithms(self) -> dict[str, Any]:
        from jaxrl.algorithms import ALGORITHMS

        return ALGORITHMS

    def command_of(self, algorithm: Any) -> click.Command:
        return _train_command(algorithm)


class _OneSweepAnAlgorithm(_OneCommandAnAlgorithm):
    """`jaxrl sweep ALGO`, with the flags of `train`, or `rlhf`, and those of a sweep."""

    def algorithms(self) -> dict[str, Any]:
        from jaxrl.runs.artifact import BY_NAME

        return BY_NAME

    def command_of(self, algorithm: Any) -> click.Command:
        return _sweep_command(algorithm)


@jaxrl.group(cls=_OneCommandAnAlgorithm)
def train() -> None:
    """Train an algorithm: jaxrl train ALGO --env ID.

    `jaxrl train ALGO --help` shows every hyper-parameter. Parameters of the environment
    are given as --env.NAME VALUE.
    """


@jaxrl.group(cls=_OneSweepAnAlgorithm)
def sweep() -> None:
    """Train with many settings: jaxrl sweep ALGO --env ID --grid NAME=VALUE,VALUE ...

    Values of one field each, as a list or, for a sampler, a range LOW:HIGH or
    LOW:HIGH:log; parameters of the environment are env.NAME. All other flags are those of
    `jaxrl train ALGO`. Algorithms of `jaxrl rlhf` are rlhf-ppo and so on, with --data.
    """


class _Rlhf(click.Group):
    """`jaxrl rlhf ...`, whose commands are in a file of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from jaxrl.cli.feedback import COMMANDS

        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from jaxrl.cli.feedback import COMMANDS

        if name not in COMMANDS:
            from jaxrl.errors import did_you_mean

            raise click.UsageError(
                f"COMMAND = {name!r} is not a command of rlhf"
                f"{did_you_mean(name, COMMANDS)} (there are: {', '.join(COMMANDS)})."
            )
        return COMMANDS[name](train_with)


@jaxrl.group(cls=_Rlhf)
def rlhf() -> None:
    """Train language models from human feedback.

    \b
    jaxrl rlhf demo
    jaxrl rlhf sft --data larger-world --out runs/sft
    """


class _TakesEnvParams(click.Command):
    """Takes `--env.NAME VALUE` out of the arguments before click reads the rest."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from jaxrl.cli.options import split_env_params

        rest, ctx.meta["env_params"] = split_env_params(args)
        return super().parse_args(ctx, rest)


class _TakesGrid(_TakesEnvParams):
    """Takes `--grid NAME=VALUES ...` out of the arguments too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from jaxrl.cli.options import split_grid

        rest, ctx.meta["grid"] = split_grid(args)
        return super().parse_args(ctx, rest)


def _sweep_command(algorithm: Any) -> click.Command:
    from jaxrl.cli.options import options_of, sweep_options

    def callback(**flags: Any) -> int:
        meta = click.get_current_context().meta
        return _sweep(algorithm, meta["env_params"], meta["grid"], **flags)

    return _TakesGrid(
        name=algorithm.name,
        params=[*sweep_options(), *options_of(algorithm)],
        callback=callback,
        help=f"Sweep {algorithm.name}: --grid NAME=VALUE,VALUE NAME=LOW:HIGH ...",
    )


def _sweep(
    algorithm: Any,
    env_params: dict[str, Any],
    grid: list[str],
    *,
    out: str | None,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    from jaxrl.cli.options import sweep_from_flags
    from jaxrl.sweeps.training import run_sweep

    processes = _taken(flags, MACHINE_FLAGS)
    wanted = sweep_from_flags(algorithm, env_params, grid, **flags)
    _prepare_platform(wanted.experiment, **processes)
    with _remembered_signals() as received:
        result = run_sweep(wanted, out, **_host(quiet, received))
    return _report_sweep(result, wanted.experiment.env, as_json, received)


def _report_sweep(result: Any, env: str, as_json: bool, received: list[int]) -> int:
    """The table of the settings, the best first, and what can be done next."""
    from jaxrl.core import distributed
    from jaxrl.sweeps.results import table_in_words

    if not distributed.is_first():
        return 128 + received[0] if received else 0
    summary = result.summary
    if result.trials:
        click.echo(table_in_words(result.trials))
    if summary["finished"]:
        if summary["best"] is None:
            click.echo("an agent of every setting broke: there is no best one")
        elif summary["confirmed"] is None:
            click.echo(
                "the best setting was chosen by these seeds, so its return is flattering: "
                "--confirm-seeds N trains it with fresh ones"
            )
        else:
            confirmed = summary["confirmed"]
            if confirmed["episode_return_iqm"] is None:
                confirmed |= dict.fromkeys(
                    ("episode_return_iqm", "ci95_low", "ci95_high"), float("nan")
                )
            click.echo(
                f"with fresh seeds the best setting returns "
                f"{confirmed['episode_return_iqm']:.2f} (IQM), 95 % interval "
                f"[{confirmed['ci95_low']:.2f}, {confirmed['ci95_high']:.2f}], "
                f"{confirmed['seeds']} seeds"
            )
    command = "report" if summary["finished"] else "resume"
    words = ["jaxrl", command, str(result.folder)]
    if command == "resume" and ":" in env:
        words += ["--env", env]
    next_command = shlex.join(words)
    click.echo(f"next: {next_command}" if as_json else next_command)
    if as_json:
        click.echo(json.dumps({"best": summary.get("best")}))
    return 128 + received[0] if received else 0


def _train_command(algorithm: Any) -> click.Command:
    from jaxrl.cli.options import options_of

    def callback(**flags: Any) -> int:
        env_params = click.get_current_context().meta["env_params"]
        return train_with(algorithm, env_params, **flags)

    return _TakesEnvParams(
        name=algorithm.name,
        params=options_of(algorithm),
        callback=callback,
        help=f"Train {algorithm.name}. {algorithm.Config.__doc__}",
    )


def train_with(
    algorithm: Any,
    env_params: dict[str, Any],
    *,
    out: str | None,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    from jaxrl.cli.options import experiment_from_flags
    from jaxrl.runs.session import run_experiment

    processes = _taken(flags, MACHINE_FLAGS)
    experiment = experiment_from_flags(algorithm, env_params, **flags)
    _prepare_platform(experiment, **processes)
    with _remembered_signals() as received:
        folder, summary = run_experiment(experiment, out, **_host(quiet, received))
    _report_run(folder, experiment.env, summary, as_json)
    return 128 + received[0] if received else 0


MACHINE_FLAGS = ("coordinator", "num_processes", "process_id")


def _taken(flags: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: flags.pop(name) for name in names}


def _host(quiet: bool, received: list[int]) -> dict[str, Any]:
    """What a run needs of the program: the live view, lines for a person, and when to stop.

    Of several processes the first alone speaks.
    """
    from jaxrl.core import distributed

    silent = quiet or not distributed.is_first()
    return {
        "progress": not quiet,
        "report": (lambda line: None) if silent else click.echo,
        "interrupted": lambda: bool(received),
    }


def _prepare_platform(
    experiment: Any,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """What has to be done before JAX starts."""
    from jaxrl.core import distributed
    from jaxrl.training import devices

    devices.use_compilation_cache()
    if experiment.deterministic:
        devices.use_deterministic_operations()
    distributed.join(coordinator, num_processes, process_id)
    if coordinator is None:
        devices.use_all_cores(experiment.num_devices)


def _report_run(folder: Path, env: str, summary: dict[str, Any], as_json: bool) -> None:
    """How good the agents are, and what can be done next."""
    from jaxrl.core import distributed

    if not distributed.is_first():
        return
    command = "evaluate" if summary["finished"] else "resume"
    next_command = ["jaxrl", command, str(folder)]
    if ":" in env:
        next_command += ["--env", env]
    _report_evaluation(summary["evaluation"], as_json, shlex.join(next_command))


@jaxrl.command()
@click.argument("run", type=click.Path())
@click.option(
    "--checkpoint", type=int, help="Train step to go on from.  [default: last]"
)
@click.option("--env", help="Allows the run's environment to be your own module's.")
@click.option("--quiet", is_flag=True, help="Do not show how far it is.")
@click.option("--json", "as_json", is_flag=True, help="Evaluation as JSON, last.")
@click.option("--coordinator", help="As for `jaxrl train`.")
@click.option("--num-processes", type=int, help="As for `jaxrl train`.")
@click.option("--process-id", type=int, help="As for `jaxrl train`.")
def resume(
    run: str,
    checkpoint: int | None,
    env: str | None,
    quiet: bool,
    as_json: bool,
    **processes: Any,
) -> int:
    """Go on with a run that was killed or interrupted, as if it had not been."""
    from jaxrl.runs.experiment import read_experiment
    from jaxrl.runs.session import resume_experiment
    from jaxrl.sweeps.training import is_sweep

    if is_sweep(run):
        return _resume_sweep(run, checkpoint, env, quiet, as_json, processes)
    experiment = read_experiment(Path(run), env)
    _prepare_platform(experiment, **processes)
    with _remembered_signals() as received:
        summary = resume_experiment(run, checkpoint, env=env, **_host(quiet, received))
    _report_run(Path(run), experiment.env, summary, as_json)
    return 128 + received[0] if received else 0


def _resume_sweep(
    folder: str,
    checkpoint: int | None,
    env: str | None,
    quiet: bool,
    as_json: bool,
    processes: dict[str, Any],
) -> int:
    from jaxrl.errors import InvalidInput
    from jaxrl.sweeps.plan import read_sweep
    from jaxrl.sweeps.training import resume_sweep

    if checkpoint is not None:
        raise InvalidInput(
            f"checkpoint = {checkpoint}: {folder!r} is a sweep, whose runs have some each."
        )
    experiment = read_sweep(Path(folder), env).experiment
    _prepare_platform(experiment, **processes)
    with _remembered_signals() as received:
        result = resume_sweep(folder, env=env, **_host(quiet, received))
    return _report_sweep(result, experiment.env, as_json, received)


@jaxrl.command()
@click.argument("shards", nargs=-1, required=True, type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="New folder.")
@click.option("--json", "as_json", is_flag=True, help="The best setting as JSON, last.")
def merge(shards: tuple[str, ...], out: str, as_json: bool) -> int:
    """Join the shards of a sweep (`jaxrl sweep --shard i/n`)."""
    from jaxrl.sweeps.training import merge as join

    return _report_sweep(join(shards, out), "", as_json, [])


@contextmanager
def _remembered_signals() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is remembered, a second one acts at once."""
    received: list[int] = []

    def remember(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        # Not through sys.stderr, in the middle of whose writing this may be called.
        os.write(2, b"\nstopping in a few seconds; once more to stop at once\n")

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
@click.option("--env", help="Allows the run's environment to be your own module's.")
@click.option(
    "--gymnasium", metavar="ID", help="In this environment of Gymnasium instead."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, last line.")
def evaluate(
    run: str,
    episodes: int,
    seed: int,
    stochastic: bool,
    env: str | None,
    gymnasium: str | None,
    as_json: bool,
) -> None:
    """Evaluate the agents of a run folder."""
    from jaxrl.errors import InvalidInput
    from jaxrl.runs.artifact import load_agents
    from jaxrl.runs.session import evaluate_agents
    from jaxrl.training.devices import use_compilation_cache
    from jaxrl.training.loop import checked_seeds

    if episodes < 1:
        raise InvalidInput(f"episodes = {episodes}: must be at least 1.")
    checked_seeds(seed, 1)
    use_compilation_cache()
    policy = load_agents(run, env)
    if gymnasium is not None:
        from jaxrl.interop.evaluation import evaluate_on_gymnasium
        from jaxrl.runs.artifact import check_acts

        check_acts(policy, run)
        evaluation = evaluate_on_gymnasium(
            policy, gymnasium, episodes, seed, not stochastic
        )
    else:
        evaluation, _ = evaluate_agents(policy, episodes, seed, not stochastic)
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
    from jaxrl.sweeps.results import setting_in_words

    for name, values in evaluation.get("scores", {}).items():
        click.echo(
            f"{name}: {sum(values) / len(values):.4g} (mean over seeds), from "
            f"{min(values):.4g} to {max(values):.4g}"
        )
    for part in evaluation.get("variants", ()):
        low, high = part["episode_return_ci95"]
        click.echo(
            f"{setting_in_words(part['overrides'])}: return "
            f"{part['episode_return_iqm']:.2f} (IQM), 95 % interval "
            f"[{low:.2f}, {high:.2f}]"
        )
    if next_command:
        click.echo(f"next: {next_command}" if as_json else next_command)
    if as_json:
        click.echo(json.dumps(evaluation))


@jaxrl.command()
@click.argument("run", type=click.Path())
@click.option("--episodes", type=int, required=True, help="Whole episodes.")
@click.option("--out", required=True, type=click.Path(), help="New folder.")
@click.option("--seed", type=int, default=0, help="Seed of the episodes.")
@click.option("--stochastic", is_flag=True, help="Sample actions, not the likeliest.")
@click.option("--member", type=int, help="Place of the agent.  [default: the first]")
@click.option("--env", help="Allows the run's environment to be your own module's.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, last line.")
def collect(run: str, out: str, stochastic: bool, as_json: bool, **choice: Any) -> None:
    """Record whole episodes of an agent of a run folder, to learn from."""
    from jaxrl.runs.collect import collect as record
    from jaxrl.training.devices import use_compilation_cache

    use_compilation_cache()
    about = record(run, out, choice.pop("episodes"), greedy=not stochastic, **choice)
    spread = about["return_stderr"]
    error = "" if spread is None else f" ± {spread:.2f} (standard error)"
    click.echo(
        f"{about['policy']['algorithm']} on {about['env']}: {about['episodes']:,} "
        f"episodes, {about['steps']:,} steps, return {about['return_mean']:.2f}{error}"
    )
    click.echo(out)
    if as_json:
        click.echo(json.dumps(about))


@jaxrl.command()
@click.argument("run", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="GIF, MP4 or PNG file.")
@click.option("--episodes", type=int, default=1, help="Whole episodes.")
@click.option("--seed", type=int, default=0, help="Seed of the episodes.")
@click.option("--stochastic", is_flag=True, help="Sample actions, not the likeliest.")
@click.option("--member", type=int, help="Place of the agent.  [default: the first]")
@click.option("--max-steps", type=int, help="Steps of an episode, at most.")
@click.option("--fps", type=int, help="Steps shown in a second.")
@click.option("--size", type=int, default=256, help="Pixels of height.")
@click.option("--overlay", is_flag=True, help="Draw actions and value beside it.")
@click.option("--env", help="Allows the run's environment to be your own module's.")
def render(run: str, out: str, stochastic: bool, **choice: Any) -> None:
    """Draw an agent of a run folder at play: a GIF, an MP4, or a PNG filmstrip."""
    from jaxrl.rendering import render as draw
    from jaxrl.training.devices import use_compilation_cache

    use_compilation_cache()
    for k, episode in enumerate(draw(run, out, greedy=not stochastic, **choice)):
        click.echo(
            f"episode {k}: return {episode.reward.sum():.2f}, "
            f"{len(episode.reward):,} steps, {episode.end}"
        )
    click.echo(out)


KINDS = (
    *("curves", "efficiency", "aggregates", "intervals", "profile"),
    *("slices", "heatmap"),
)


@jaxrl.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="PNG, PDF or SVG file.")
@click.option("--kind", default="curves", show_default=True, help=", ".join(KINDS))
@click.option("--metric", default="rollout/episode_return", show_default=True)
def plot(runs: tuple[str, ...], out: str, kind: str, metric: str) -> None:
    """Plot one or more run folders, or sweeps."""
    from jaxrl.core.config import check_value
    from jaxrl.errors import InvalidInput

    if Path(out).suffix not in (".png", ".pdf", ".svg"):
        raise InvalidInput(f"out = {out!r} must end in .png, .pdf or .svg.")
    check_value("kind", Literal[KINDS], kind)
    try:
        if kind == "curves":
            _plot_curves(runs, Path(out), metric)
        else:
            from jaxrl.report.figures import plot_results

            plot_results(runs, Path(out), kind, metric)
    except OSError as error:
        raise InvalidInput(f"out = {out!r} cannot be written ({error}).") from error
    click.echo(out)


def _plot_curves(runs: tuple[str, ...], out: Path, metric: str) -> None:
    """The learning curves, also of runs that are not finished."""
    from jaxrl.plotting import plot_learning_curves
    from jaxrl.report.entries import check_metric, read_entries
    from jaxrl.sweeps.training import is_sweep

    names = [Path(run).name or run for run in runs]
    labels = [n if names.count(n) == 1 else r for n, r in zip(names, runs, strict=True)]
    curves: dict[str, list[dict[str, Any]]] = {}
    for label, run in zip(labels, runs, strict=True):
        if is_sweep(run):
            entries = read_entries(Path(run))
            check_metric(entries, metric)
            curves |= {f"{e.label} ({label})": e.rows for e in entries}
        else:
            curves[label] = _read_run(run, metric)
    plot_learning_curves(curves, out, metric)


def _read_run(run: str, metric: str) -> list[dict[str, Any]]:
    """The rows of a run folder, which must have this metric."""
    from jaxrl.errors import InvalidInput, did_you_mean
    from jaxrl.runs.loggers import read_metrics

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


@jaxrl.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option(
    "--out", type=click.Path(), help="Folder.  [default: the first RUN's report/]"
)
@click.option(
    "--reference",
    multiple=True,
    metavar="ENV=LOW:HIGH",
    help="Returns that count as 0 and 1 where several environments are taken together.  "
    "[default: the lowest and highest of these runs]",
)
def report(runs: tuple[str, ...], out: str | None, reference: tuple[str, ...]) -> None:
    """Write what a paper needs of finished runs and sweeps.

    A web page that stands alone, CSV, a LaTeX table, BibTeX, and the figures.
    """
    from jaxrl.cli.options import read_reference
    from jaxrl.report import write_report

    folder = Path(out) if out else Path(runs[0]) / "report"
    for line in write_report(runs, folder, dict(map(read_reference, reference))):
        click.echo(f"note: {line}")
    for name in ("report.html", "table.tex", "results.csv", "jaxrl.bib"):
        click.echo(folder / name)


@jaxrl.command("check-env", cls=_TakesEnvParams)
@click.argument("env")
@click.option("--steps", default=1_000, show_default=True, help="Of each of 64 copies.")
def check_env(env: str, steps: int) -> int:
    """Check that an environment keeps the contract, rule by rule.

    ENV is an id or "module:factory". Exit code 1 if a rule is broken.
    """
    from jaxrl.core.config import check_value
    from jaxrl.envs import make
    from jaxrl.envs.check import check_env as check

    check_value("steps", int, steps, low=1)
    env_params = click.get_current_context().meta["env_params"]
    findings = check(make(env, **env_params), steps)
    for finding in findings:
        result = "ok" if finding.ran else "not checked"
        if finding.problem:
            result = f"BROKEN: {finding.problem}\n    to mend it: {finding.fix}"
        click.echo(f"{finding.rule:50} {result}")
    broken = [finding.rule for finding in findings if finding.problem]
    click.echo(f"{env}: {', '.join(broken) + ' broken' if broken else 'sound'}")
    return 1 if broken else 0


@jaxrl.command()
@click.argument("run", type=click.Path())
@click.option(
    "--format",
    "kind",
    default="stablehlo",
    show_default=True,
    help="stablehlo, onnx",
)
@click.option("--out", required=True, type=click.Path(), help="The file.")
@click.option("--seed", type=int, help="Seed of the agent.  [default: the first]")
@click.option("--index", type=int, help="Place of the agent, where seeds are shared.")
@click.option(
    "--observations",
    type=int,
    default=1_000,
    help="On which file and policy must agree.",
)
@click.option("--licence", help="Of the weights, for the model card: apache-2.0.")
@click.option(
    "--push-to-hub", metavar="REPO", help="Of the Hugging Face hub: name/model."
)
@click.option("--env", help="Allows the run's environment to be your own module's.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, last line.")
def export(run: str, kind: Any, out: str, as_json: bool, **choice: Any) -> None:
    """Write an agent of a run folder as a file that needs no jaxrl, and its model card."""
    from jaxrl.deployment.export import export as write
    from jaxrl.training.devices import use_compilation_cache

    use_compilation_cache()
    about = write(run, out, kind, **choice)
    found = about["agreement"]
    click.echo(
        f"{about['algorithm']} on {about['env']}, seed {about['seed']}: agrees with the "
        f"policy on {found['within']} of {found['observations']} observations, largest "
        f"difference {found['largest']:.1e}"
    )
    for name in ("file", "card", "hub"):
        if name in about:
            click.echo(about[name])
    if as_json:
        click.echo(json.dumps(about))


@jaxrl.command()
@click.argument("run", type=click.Path())
@click.option("--host", default="127.0.0.1", show_default=True, help="Who can ask.")
@click.option("--port", default=8000, show_default=True, help="0: any that is free.")
@click.option("--seed", type=int, help="Seed of the agent.  [default: the first]")
@click.option("--index", type=int, help="Place of the agent, where seeds are shared.")
@click.option("--stochastic", is_flag=True, help="Sample actions, not the likeliest.")
@click.option("--key", default=0, show_default=True, help="Seed of the samples.")
@click.option(
    "--max-batch", default=64, show_default=True, help="Observations at a time."
)
@click.option(
    "--max-body", default=1 << 20, show_default=True, help="Bytes of a request."
)
@click.option("--max-connections", default=128, show_default=True, help="At a time.")
@click.option("--env", help="Allows the run's environment to be your own module's.")
def serve(
    run: str,
    stochastic: bool,
    max_batch: int,
    max_body: int,
    max_connections: int,
    **choice: Any,
) -> None:
    """Answer observations with the actions of an agent, over HTTP, until stopped."""
    from jaxrl.deployment.serving import Limits
    from jaxrl.deployment.serving import serve as serve_run
    from jaxrl.training.devices import use_compilation_cache

    use_compilation_cache()
    with _remembered_signals() as received:
        serve_run(
            run,
            greedy=not stochastic,
            limits=Limits(max_batch, max_body, max_connections),
            report=click.echo,
            interrupted=lambda: bool(received),
            **choice,
        )


@jaxrl.command()
@click.argument("names", nargs=-1)
@click.option("--out", default="zoo", show_default=True, help="Folder, new or begun.")
@click.option("--seed", default=0, show_default=True, help="First seed.")
@click.option("--num-seeds", default=10, show_default=True, help="Agents of each.")
@click.option("--tune", is_flag=True, help="Search for the preset of each instead.")
@click.option("--quiet", is_flag=True, help="No plan and no progress.")
def zoo(
    names: tuple[str, ...],
    out: str,
    seed: int,
    num_seeds: int,
    tune: bool,
    quiet: bool,
) -> int:
    """Train reference agents with the presets, all of them or those of these NAMES.

    `jaxrl list presets` has the names. What is finished in the folder is only read.
    """
    from jaxrl.core.config import check_value
    from jaxrl.pipelines import zoo as animals
    from jaxrl.training import devices

    check_value("num_seeds", int, num_seeds, low=1)
    devices.use_compilation_cache()
    devices.use_all_cores()
    with _remembered_signals() as received:
        host = _host(quiet, received)
        if tune:
            for name in names or animals.SEARCHES:
                found = animals.tune(name, out, **host)
                click.echo(found or f"{name}: interrupted")
        else:
            rows = animals.build(names, out, seed=seed, num_seeds=num_seeds, **host)
            for name, row in rows.items():
                click.echo(_zoo_line(name, row))
            click.echo(Path(out) / "report" / "report.html")
    return 128 + received[0] if received else 0


def _zoo_line(name: str, row: dict[str, Any]) -> str:
    if row["episode_return_iqm"] is None:
        return f"{name:24} every seed broke"
    return (
        f"{name:24} return {row['episode_return_iqm']:.2f} (IQM), 95 % interval "
        f"[{row['ci95_low']:.2f}, {row['ci95_high']:.2f}], {len(row['seeds'])} seeds, "
        f"{row['env_steps']:,} steps, sha256 {row['sha256'][:12]}"
    )


@jaxrl.command()
@click.option(
    "--json", "as_json", is_flag=True, help="All findings as JSON, last line."
)
def doctor(as_json: bool) -> int:
    """Look at the installation: versions, devices, cache, combinations known to be bad.

    Exit code 1 if something is.
    """
    from jaxrl.cli.doctor import diagnosed

    findings = diagnosed()
    for finding in findings:
        click.echo(f"{finding.state:4} {finding.what:22} {finding.words}")
        if finding.fix:
            click.echo(f"     {'':22} to mend it: {finding.fix}")
    bad = [finding.what for finding in findings if finding.state == "BAD"]
    click.echo(f"bad: {', '.join(bad)}" if bad else "nothing is known to be bad")
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings]))
    return 1 if bad else 0


@jaxrl.command("list")
@click.argument(
    "what", required=False, type=click.Choice(["algorithms", "envs", "presets"])
)
def list_(what: str | None) -> None:
    """List the algorithms, the environments, the presets, or all."""
    if what in (None, "algorithms"):
        from jaxrl.algorithms import ALGORITHMS

        for name, algorithm in ALGORITHMS.items():
            click.echo(f"{name:12} {algorithm.Config.__doc__}")
    if what in (None, "envs"):
        from jaxrl.envs import env_ids, known_issues
        from jaxrl.envs.suites import SUITES

        for env_id in env_ids():
            note = known_issues(env_id)
            click.echo(f"{env_id:28} {note}" if note else env_id)
        click.echo(f"{'gymnasium/ID':28} any of Gymnasium, stepped on the host: slow")
        for library, what_it_has in SUITES.items():
            name = f"{library}/NAME"
            click.echo(f"{name:28} {what_it_has} (pip install 'jaxrl[{library}]')")
    if what in (None, "presets"):
        from jaxrl.runs import presets

        for name in presets.names():
            own = presets.content(name)
            command = f"jaxrl train {own['algorithm']} --env {own['env']} --preset"
            click.echo(f"{name:28} {command}")
