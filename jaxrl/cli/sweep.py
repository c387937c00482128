"""`jaxrl sweep` and `jaxrl merge`, and resuming a sweep."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from jaxrl.cli.groups import EnvParamsCommand, LazyGroup, find_algorithm
from jaxrl.cli.running import (
    ALGORITHM,
    NETWORK,
    PROCESS_FLAGS,
    echo,
    exit_code,
    host_options,
    next_command,
    prepare_platform,
    print_next,
    remember_signals,
)


class _GridCommand(EnvParamsCommand):
    """A command that takes `--grid NAME=VALUES ...` too, stored under "grid"."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from jaxrl.cli.options import split_grid

        rest, ctx.meta["grid"] = split_grid(args)
        return super().parse_args(ctx, rest)


def _algorithms() -> dict[str, dict[str, Any]]:
    from jaxrl.runs.artifact import known_algorithms

    return {"Algorithms": known_algorithms()}


def _sweep_command(algorithm: Any) -> click.Command:
    from jaxrl.cli.options import options_of, sweep_options

    def callback(**flags: Any) -> int:
        meta = click.get_current_context().meta
        return _sweep(algorithm, meta["env_params"], meta["grid"], **flags)

    return _GridCommand(
        name=algorithm.name,
        params=[*sweep_options(), *options_of(algorithm)],
        callback=callback,
        help=f"Sweep {algorithm.name}: --grid NAME=VALUE,VALUE NAME=LOW:HIGH ...",
    )


@click.group(
    cls=LazyGroup,
    load=_algorithms,
    make=_sweep_command,
    kind="ALGO, an algorithm",
    find=find_algorithm,
)
def sweep() -> None:
    """Train with many settings: jaxrl sweep ALGO --grid NAME=VALUES.

    --grid takes several NAME=VALUES, of one field each: a list or, for a sampler, a range
    LOW:HIGH or LOW:HIGH:log; parameters of the environment are env.NAME. All other
    flags are those of `jaxrl train ALGO`. Algorithms of `jaxrl rlhf` are rlhf-ppo and so
    on, with --data.
    """


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

    processes = {name: flags.pop(name) for name in PROCESS_FLAGS}
    wanted = sweep_from_flags(algorithm, env_params, grid, **flags)
    prepare_platform(wanted.experiment, **processes)
    with remember_signals() as received:
        result = run_sweep(wanted, out, **host_options(quiet, received))
    _print_sweep(result, wanted.experiment.env, as_json)
    return exit_code(received)


def resume_sweep(
    folder: str,
    checkpoint: int | None,
    env: str | None,
    quiet: bool,
    as_json: bool,
    processes: dict[str, Any],
) -> int:
    """Resume a sweep, with the flags of `jaxrl resume`."""
    from jaxrl.errors import InvalidInput
    from jaxrl.sweeps import training
    from jaxrl.sweeps.plan import read_sweep

    if checkpoint is not None:
        raise InvalidInput(
            f"checkpoint = {checkpoint}: {folder!r} is a sweep, each of whose runs has "
            f"its own; leave it out."
        )
    experiment = read_sweep(Path(folder), env).experiment
    prepare_platform(experiment, **processes)
    with remember_signals() as received:
        host = host_options(quiet, received)
        result = training.resume_sweep(folder, env=env, **host)
    _print_sweep(result, experiment.env, as_json)
    return exit_code(received)


@click.command()
@click.argument("shards", nargs=-1, required=True, type=click.Path())
@ALGORITHM
@NETWORK
@click.option("--out", required=True, type=click.Path(), help="New folder.")
@click.option("--json", "as_json", is_flag=True, help="The best setting as JSON, last.")
def merge(shards: tuple[str, ...], out: str, as_json: bool) -> None:
    """Join the shards of a sweep (`jaxrl sweep --shard i/n`)."""
    from jaxrl.sweeps import training

    _print_sweep(training.merge(shards, out), "", as_json)


def _print_sweep(result: Any, env: str, as_json: bool) -> None:
    """Print the table of the settings, the best first, and the next command."""
    from jaxrl.core import distributed
    from jaxrl.sweeps.results import table_in_words

    if not distributed.is_first():
        return
    if result.trials:
        echo(table_in_words(result.trials))
    for line in _outcome_in_words(result.summary):
        echo(line)
    algorithm = result.summary.get("algorithm", "")
    following = next_command("resume", result.folder, algorithm, env)
    if result.summary["finished"]:
        following = next_command("report", result.folder, algorithm, "")
    print_next(following, as_json)
    if as_json:
        echo(json.dumps({"best": result.summary.get("best")}))


def _outcome_in_words(summary: dict[str, Any]) -> Iterator[str]:
    """Describe the best setting of a finished sweep, in one line."""
    from jaxrl.statistics import iqm_in_words

    if not summary["finished"]:
        return
    if summary["best"] is None:
        yield "an agent of every setting broke: there is no best one"
    elif summary["confirmed"] is None:
        yield (
            "the best setting was chosen by these seeds, so its return is flattering: "
            "--confirm-seeds N trains it with fresh ones"
        )
    else:
        confirmed = {n: _nan_if_none(x) for n, x in summary["confirmed"].items()}
        count = confirmed["seeds"] - confirmed["broken"]
        ends = confirmed["ci95_low"], confirmed["ci95_high"]
        middle = iqm_in_words(confirmed["episode_return_iqm"], *ends, count)
        yield (
            f"with fresh seeds the best setting returns {middle}, "
            f"{confirmed['seeds']} seeds"
        )


def _nan_if_none(x: Any) -> Any:
    """NaN in the place of a number that is missing because every seed broke."""
    return float("nan") if x is None else x
