"""Errors in the user's code: which lines of a traceback are theirs.

Code of the user's runs inside ours (factories, environments, networks, callbacks). When it
raises, their lines are what helps; those of jaxrl, JAX and other libraries are not.
"""

import functools
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent
_LIBRARIES = tuple(
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)

_on_host: list[Exception] = []
"""The last error in a function that a compiled program called on the host."""


def remember_error(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the error of a function that a compiled program calls.

    JAX raises an error of its own in its place, which holds only the text: see `original`.
    """

    @functools.wraps(function)
    def remembering(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            _on_host[:] = [error]
            raise

    return remembering


def original(error: Exception) -> Exception:
    """The error on the host that made a compiled program fail; any other as it is."""
    is_callback = isinstance(error, ValueError | RuntimeError) and "callback" in str(
        error
    )
    if is_callback and _on_host and type(_on_host[0]).__name__ in str(error):
        return _on_host[0]
    return error


def is_users(error: BaseException) -> bool:
    """True if the error passed through a line of the user's code."""
    return any(
        _is_users_file(frame.f_code.co_filename)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def describe_error(error: BaseException) -> str:
    """The traceback of an error with the user's lines alone, for a terminal."""
    shown = traceback.TracebackException.from_exception(error)
    _leave_users_lines(shown)
    return "".join(shown.format()).rstrip()


def find_line(error: BaseException) -> str:
    """The user's last line in a traceback, " (file.py, line 3)"; "" if there is none."""
    lines = [
        f" ({Path(frame.f_code.co_filename).name}, line {number})"
        for frame, number in traceback.walk_tb(error.__traceback__)
        if _is_users_file(frame.f_code.co_filename)
    ]
    return lines[-1] if lines else ""


def _leave_users_lines(shown: traceback.TracebackException) -> None:
    """Remove all other lines, and errors that have none of the user's, in place."""
    notes = getattr(shown, "__notes__", None) or []
    shown.__notes__ = [note for note in notes if "JAX has removed" not in note]
    shown.stack[:] = [line for line in shown.stack if _is_users_file(line.filename)]
    for name in ("__cause__", "__context__"):
        earlier = getattr(shown, name)
        if earlier is not None:
            _leave_users_lines(earlier)
            if not earlier.stack:
                setattr(shown, name, None)


def _is_users_file(name: str) -> bool:
    """True if a file is neither jaxrl's nor an installed library's."""
    if name.startswith("<"):
        return False
    path = Path(name)
    if not {"site-packages", "dist-packages"}.isdisjoint(path.parts):
        return False  # also of another interpreter, or of the user alone
    libraries: tuple[Path | str, ...] = (PACKAGE, *_LIBRARIES)
    return not any(path.is_relative_to(library) for library in libraries)
