"""`jaxrl`: a thin shell over the Python API.

Exit codes: 0 done; 1 a check failed; 2 bad input, nothing was written; 3 a number became
NaN or infinite; 4 the disk is full, read-only or gone; 5 another process of the run is
gone; 129, 130 and 143 stopped by SIGHUP, SIGINT or SIGTERM, with everything saved.

Heavy modules are imported inside the command that needs them: `jaxrl --help` does not wait
for JAX.
"""

import errno
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import click

from jaxrl.cli.groups import LazyGroup, import_command
from jaxrl.cli.running import echo
from jaxrl.core.files import DISK_ERRORS
from jaxrl.core.user_code import describe_error, is_users, original
from jaxrl.errors import InvalidInput, one_line, shorten_values

COMMANDS = {
    "Train": {
        "train": "jaxrl.cli.train:train",
        "resume": "jaxrl.cli.train:resume",
        "sweep": "jaxrl.cli.sweep:sweep",
        "merge": "jaxrl.cli.sweep:merge",
        "rlhf": "jaxrl.cli.train:rlhf",
        "zoo": "jaxrl.cli.admin:zoo",
    },
    "Look": {
        "evaluate": "jaxrl.cli.inspect:evaluate",
        "render": "jaxrl.cli.inspect:render",
        "plot": "jaxrl.cli.inspect:plot",
        "report": "jaxrl.cli.inspect:report",
    },
    "Take away": {
        "collect": "jaxrl.cli.inspect:collect",
        "export": "jaxrl.cli.deploy:export",
        "serve": "jaxrl.cli.deploy:serve",
    },
    "Machine": {
        "list": "jaxrl.cli.admin:list_",
        "check-env": "jaxrl.cli.admin:check_env",
        "doctor": "jaxrl.cli.admin:doctor",
    },
}
"""Section of the help -> command -> where it is defined, "module:attribute"."""


@click.group(
    cls=LazyGroup,
    load=lambda: COMMANDS,
    make=import_command,
    kind="COMMAND, a command",
)
@click.version_option(package_name="jaxrl")
def program() -> None:
    """Reinforcement learning end to end on the accelerator.

    \b
    jaxrl train ppo --env CartPole-v1
    jaxrl evaluate RUN
    """


def entry_point() -> None:
    """Run the console script."""
    # A terminal whose encoding has no λ shows \u03bb: nothing that is printed may fail.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors are one line on stderr."""
    # JAX logs the traceback of an error on the host, which is shown once it is raised.
    logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)
    try:
        return _run(argv)
    except Exception as failure:
        if is_users(failure):
            echo(f"jaxrl: your code raised {type(failure).__name__}:", err=True)
            echo(describe_error(failure), err=True)
        elif _is_distributed():
            traceback.print_exception(failure)
        else:
            raise
        return _exit(1)


def _run(argv: Sequence[str]) -> int:
    try:
        code = program.main(list(argv), prog_name="jaxrl", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        echo(error.ctx.get_help() if error.ctx else "")
        return 2
    except click.Abort:
        return _exit(130)
    except Exception as raised:
        cause = original(raised)
        explained = _explain(cause)
        if explained is None and cause is raised:
            raise
        if explained is None:
            raise cause from None
        message, code = explained
        echo(f"jaxrl: {shorten_values(one_line(message))}", err=True)
        return _exit(code)


def _explain(error: Exception) -> tuple[str, int] | None:
    """Return the message and the exit code of a foreseen error; None for a bug."""
    if isinstance(error, click.ClickException):
        return error.format_message(), 2
    if isinstance(error, InvalidInput):
        return str(error), 2
    if isinstance(error, OSError):
        return _explain_os_error(error)
    problem = _explain_devices()
    if problem:
        return problem, 2
    if isinstance(error, ArithmeticError):
        from jaxrl.training.loop import NonFiniteError

        return (str(error), 3) if isinstance(error, NonFiniteError) else None
    if isinstance(error, ValueError | RuntimeError):
        from jaxrl.core import distributed

        reason = str(error).split("\n")[0]
        message = (
            f"another process of this run has stopped or cannot be reached ({reason}): "
            f"start all of them again with `jaxrl resume RUN`."
        )
        return (message, 5) if distributed.is_lost(error) else None
    return None


def _explain_devices() -> str:
    """Why JAX cannot start; "" if it can, or has not been asked to."""
    if "jax" not in sys.modules:
        return ""
    from jaxrl.cli.doctor import explain_devices

    return explain_devices()


def _explain_os_error(error: OSError) -> tuple[str, int] | None:
    """The same of a file; None for an error of the user's code that is not the disk's."""
    if error.errno == errno.ENAMETOOLONG:
        return f"{error.filename!r} is too long for a file's name: shorten it.", 2
    if is_users(error) and error.errno not in DISK_ERRORS:
        return None
    reason = error.strerror or str(error) or type(error).__name__
    then = "".join(f", then `{note}`" for note in getattr(error, "__notes__", ()))
    return (
        f"{error.filename or 'a file'} cannot be written or read ({reason}): what was "
        f"saved before is kept; see to the disk{then}.",
        4,
    )


def _exit(code: int) -> int:
    """Return the code, or leave at once: a failed process must not wait for the others."""
    if _is_distributed():
        sys.stdout.flush()
        os._exit(code)
    return code


def _is_distributed() -> bool:
    # Not imported for this: a process that has not joined others is alone.
    distributed = sys.modules.get("jaxrl.core.distributed")
    try:
        return distributed is not None and distributed.several()
    except Exception:  # JAX cannot start
        return False
