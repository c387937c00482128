"""Run folders: a new one is never another's, and one process at a time is at it."""

import fcntl
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxrl.core import distributed
from jaxrl.errors import InvalidInput, require


def agreed(out: Path | str | None, name: str) -> Path:
    """`new`, which of several processes the first makes for all."""
    if not distributed.several():
        return new(out, name)
    require(out is not None, "out is missing: several processes need one run folder.")
    problem: InvalidInput | None = None
    if distributed.is_first():
        try:
            new(out, name)
        except InvalidInput as error:
            problem = error
    if distributed.any_of(problem is not None):
        raise problem or InvalidInput(f"out = {str(out)!r}: see the first process.")
    return Path(str(out))


def new(out: Path | str | None, name: str) -> Path:
    """Makes a run folder; one that holds a run already is refused, not overwritten.

    By default it is the first free `runs/NAME-n`.

    Raises:
      InvalidInput: it cannot be made, or is not empty.
    """
    if out is None:
        return _first_free(name)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What a killed process has not moved to its place is nothing yet.
        unfinished = ("config.json.new", "sweep.json.new")
        occupied = any(path.name not in unfinished for path in folder.iterdir())
    except OSError as error:
        raise InvalidInput(
            f"out = {str(out)!r} cannot be a run folder ({error}): give another one."
        ) from error
    if occupied:
        raise InvalidInput(
            f"out = {str(out)!r} is not empty, it may hold a run: give a new folder."
        )
    return folder


def _first_free(name: str) -> Path:
    """`runs/NAME-n` with the smallest n that is free."""
    runs = Path("runs")
    try:
        runs.mkdir(exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"the folder 'runs' cannot be made here ({error}): give --out."
        ) from error
    name = re.sub(r"[^\w.-]+", "_", name)
    for n in itertools.count():
        folder = runs / f"{name}-{n}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise InvalidInput(
                f"{str(folder)!r} cannot be made ({error}): give --out."
            ) from error
    raise AssertionError("unreachable: the numbers do not end")


def lock(descriptor: int, name: str) -> None:
    """Keep other processes out of an open file or folder, until it is closed.

    The system closes it if the process dies.

    Raises:
      InvalidInput: another process has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InvalidInput(
            f"{name} is in use by another process: wait for it, or stop it."
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder.

    In a run of several processes the first one does it.
    """
    if not distributed.is_first():
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, f"RUN = {str(folder)!r}")
        yield
    finally:
        os.close(descriptor)
