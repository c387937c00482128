"""What several commands share: options, signals, the platform, and words for a result."""

import json
import os
import re
import shlex
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from jaxrl.errors import printable

AGENT = click.option(
    "--agent", type=int, help="Place of the agent in the run.  [default: the first]"
)
ENV = click.option(
    "--env", help="Allows the run's environment to be your own module's."
)


def _register(context: Any, parameter: Any, value: str | None) -> None:
    del context, parameter
    if value is not None:
        from jaxrl.algorithms import register_algorithm

        register_algorithm(value)


ALGORITHM = click.option(
    "--algorithm",
    metavar="MODULE:VALUE",
    help="Allows the run's algorithm to be your own module's.",
    callback=_register,
    expose_value=False,
)


def _import_network(context: Any, parameter: Any, value: str | None) -> None:
    del context, parameter
    if value is not None:
        from jaxrl.networks import load_network

        load_network(value)


NETWORK = click.option(
    "--network",
    metavar="MODULE:NAME",
    help="Allows the run's network to be your own module's.",
    callback=_import_network,
    expose_value=False,
)
EPISODE_SEED = click.option("--seed", type=int, default=0, help="Seed of the episodes.")
STOCHASTIC = click.option(
    "--stochastic", is_flag=True, help="Sample actions, not the likeliest."
)
JSON = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object, last line."
)


def echo(message: Any, err: bool = False) -> None:
    """Print a line, in which what would steer a terminal is shown, whoever wrote it."""
    click.echo(printable(str(message)), err=err)  # noqa: TID251


PROCESS_FLAGS = ("coordinator", "num_processes", "process_id")


STOPPING = b"\nstopping in a few seconds; once more to stop at once\n"


@contextmanager
def remember_signals() -> Iterator[list[int]]:
    """Collect the first SIGINT, SIGTERM or SIGHUP; a second one acts at once.

    SIGHUP is left alone where it is ignored (`nohup`).
    """
    received: list[int] = []

    def remember(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        leave_lost_terminal()
        # Not through sys.stderr, in the middle of whose writing this may be called.
        with suppress(OSError):
            os.write(2, STOPPING)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_lost_terminal() -> None:
    """Send what is printed nowhere if its terminal is gone, where writing would fail."""
    for descriptor in (1, 2):
        with suppress(OSError):
            is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
            if is_device and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def exit_code(received: list[int]) -> int:
    """0, or 128 and the signal that stopped the command."""
    return 128 + received[0] if received else 0


def host_options(quiet: bool, received: list[int]) -> dict[str, Any]:
    """Arguments of a run: its live view, its lines, and when to stop.

    Of several processes the first alone speaks.
    """
    from jaxrl.core import distributed

    silent = quiet or not distributed.is_first()
    return {
        "progress": not quiet,
        "report": (lambda line: None) if silent else echo,
        "interrupted": lambda: bool(received),
    }


def prepare_platform(
    experiment: Any,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Do what must be done before JAX starts."""
    from jaxrl.core import distributed
    from jaxrl.training import devices

    devices.use_compilation_cache()
    if experiment.deterministic:
        devices.use_deterministic_operations()
    distributed.join(coordinator, num_processes, process_id)
    if coordinator is None:
        devices.use_all_cores(experiment.num_devices)


def print_evaluation(
    evaluation: dict[str, Any], as_json: bool, next_command: str | None = None
) -> None:
    """Print how good the agents are, the next command, and the JSON object last."""
    for line in evaluation_in_words(evaluation):
        echo(line)
    print_next(next_command, as_json)
    if as_json:
        echo(json.dumps(evaluation))


def evaluation_in_words(evaluation: dict[str, Any]) -> Iterator[str]:
    """One line for all agents, one for each score and one for each setting."""
    from jaxrl.statistics import iqm_in_words
    from jaxrl.sweeps.results import setting_in_words

    num_seeds = len(evaluation["seeds"])

    def middle(part: dict[str, Any]) -> str:
        low, high = part["episode_return_ci95"]
        return iqm_in_words(part["episode_return_iqm"], low, high, num_seeds)

    yield (
        f"{evaluation['algorithm']} on {evaluation['env']}: return {middle(evaluation)}, "
        f"{evaluation['episode_return_mean']:.2f} (mean), "
        f"{num_seeds} seed{'s' * (num_seeds != 1)} x {evaluation['episodes']} episodes"
    )
    yield from cut_in_words(evaluation)
    for name, values in evaluation.get("scores", {}).items():
        finite = [x for x in values if x is not None]
        if not finite:
            yield f"{name}: not a finite number for any seed"
            continue
        broken = len(values) - len(finite)
        left_out = f", without {broken} that are not finite" if broken else ""
        yield (
            f"{name}: {sum(finite) / len(finite):.4g} (mean over seeds), from "
            f"{min(finite):.4g} to {max(finite):.4g}{left_out}"
        )
    for part in evaluation.get("variants", ()):
        yield f"{setting_in_words(part['overrides'])}: return {middle(part)}"


def cut_in_words(about: dict[str, Any]) -> Iterator[str]:
    """A line if episodes did not end, of an evaluation or a dataset."""
    from jaxrl.evaluation import MAX_STEPS

    if "episodes_cut" in about:
        yield (
            f"{about['episodes_cut']:,} of these episodes did not end and were cut after "
            f"{MAX_STEPS:,} steps: give the environment a time limit"
        )


def next_command(
    command: str, folder: Path | str, algorithm: str, env: str, config: Any = None
) -> str:
    """A command for the folder; what is code must be named again."""
    words = ["jaxrl", command, str(folder)]
    network = str(getattr(config, "network", ""))
    names = {"--algorithm": algorithm, "--env": env, "--network": network}
    for flag, name in names.items():
        if re.fullmatch(r"[\w./-]+:[\w./-]+", name):
            words += [flag, name]
    return shlex.join(words)


def print_next(command: str | None, as_json: bool) -> None:
    """Print the command on a line of its own, marked where JSON is the last line."""
    if command is not None:
        echo(f"next: {command}" if as_json else command)
