"""`jaxrl train`, `jaxrl resume`, and the group `jaxrl rlhf`."""

from pathlib import Path
from typing import Any

import click

from jaxrl.cli.groups import EnvParamsCommand, LazyGroup, find_algorithm
from jaxrl.cli.running import (
    ALGORITHM,
    ENV,
    PROCESS_FLAGS,
    exit_code,
    host_options,
    next_command,
    prepare_platform,
    print_evaluation,
    remember_signals,
)
from jaxrl.cli.sweep import resume_sweep


def _algorithms() -> dict[str, dict[str, Any]]:
    from jaxrl.algorithms import ALGORITHMS, registered_algorithms

    return {"Algorithms": ALGORITHMS | registered_algorithms()}


def _train_command(algorithm: Any) -> click.Command:
    from jaxrl.cli.options import options_of

    def callback(**flags: Any) -> int:
        env_params = click.get_current_context().meta["env_params"]
        return train_with(algorithm, env_params, **flags)

    return EnvParamsCommand(
        name=algorithm.name,
        params=options_of(algorithm),
        callback=callback,
        help=f"Train {algorithm.name}. {algorithm.Config.__doc__}",
    )


@click.group(
    cls=LazyGroup,
    load=_algorithms,
    make=_train_command,
    kind="ALGO, an algorithm",
    find=find_algorithm,
)
def train() -> None:
    """Train an algorithm: jaxrl train ALGO --env ID.

    `jaxrl train ALGO --help` shows every hyper-parameter. Parameters of the environment
    are given as --env.NAME VALUE. An algorithm of your own is module:VALUE.
    """


def train_with(
    algorithm: Any,
    env_params: dict[str, Any],
    *,
    out: str | None,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """Train what the flags describe, and say how good the agents are."""
    from jaxrl.cli.options import experiment_from_flags
    from jaxrl.runs.session import run_experiment

    processes = {name: flags.pop(name) for name in PROCESS_FLAGS}
    experiment = experiment_from_flags(algorithm, env_params, **flags)
    prepare_platform(experiment, **processes)
    with remember_signals() as received:
        host = host_options(quiet, received)
        folder, summary = run_experiment(experiment, out, **host)
    _print_run(folder, experiment.env, summary, as_json)
    return exit_code(received)


@click.command()
@click.argument("run", type=click.Path())
@click.option(
    "--checkpoint", type=int, help="Train step to resume from.  [default: last]"
)
@ENV
@ALGORITHM
@click.option("--quiet", is_flag=True, help="Do not show the progress.")
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
    """Resume a run or sweep that was killed or interrupted.

    The result is the same as if it had not been.
    """
    from jaxrl.runs.experiment import read_experiment
    from jaxrl.runs.session import resume_experiment
    from jaxrl.sweeps.training import is_sweep

    if is_sweep(run):
        return resume_sweep(run, checkpoint, env, quiet, as_json, processes)
    experiment = read_experiment(Path(run), env)
    prepare_platform(experiment, **processes)
    with remember_signals() as received:
        host = host_options(quiet, received)
        summary = resume_experiment(run, checkpoint, env=env, **host)
    _print_run(run, experiment.env, summary, as_json)
    return exit_code(received)


def _print_run(
    folder: Path | str, env: str, summary: dict[str, Any], as_json: bool
) -> None:
    from jaxrl.core import distributed

    if distributed.is_first():
        command = "evaluate" if summary["finished"] else "resume"
        following = next_command(command, folder, summary["algorithm"], env)
        print_evaluation(summary["evaluation"], as_json, following)


def _rlhf_commands() -> dict[str, dict[str, Any]]:
    from jaxrl.cli.feedback import COMMANDS

    return {"Commands": COMMANDS}


@click.group(
    cls=LazyGroup,
    load=_rlhf_commands,
    make=lambda make: make(train_with),
    kind="COMMAND, a command of rlhf",
)
def rlhf() -> None:
    """Train language models from human feedback.

    \b
    jaxrl rlhf demo
    jaxrl rlhf sft --data larger-world --out runs/sft
    """
