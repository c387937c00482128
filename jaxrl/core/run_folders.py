"""Run folders: creation without overwriting, and a lock against concurrent use."""

import fcntl
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxrl.core import distributed, files
from jaxrl.errors import InvalidInput, require


def new_shared(out: Path | str | None, name: str) -> Path:
    """`new` for a multi-process run: the first process creates the folder for all."""
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
    """Create a run folder; a folder that already holds a run is refused.

    The default is the first free `runs/NAME-n`.

    Raises:
      InvalidInput: it cannot be created, or is not empty.
    """
    if out is None:
        return _first_free(name)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Ignore temporary files left by a killed process.
        unfinished = [f"{name}.new" for name in DESCRIPTIONS]
        occupied = any(path.name not in unfinished for path in folder.iterdir())
    except OSError as error:
        files.refuse(
            error,
            f"out = {str(out)!r} cannot be a run folder ({error}): give another one.",
        )
    if occupied:
        raise InvalidInput(
            f"out = {str(out)!r} is not empty, it may hold a run: give a new folder."
        )
    return folder


def _first_free(name: str) -> Path:
    """Create `runs/NAME-n` with the smallest free n."""
    runs = Path("runs")
    try:
        runs.mkdir(exist_ok=True)
    except OSError as error:
        files.refuse(
            error, f"the folder 'runs' cannot be made here ({error}): give --out."
        )
    name = re.sub(r"[^\w.-]+", "_", name)
    for n in itertools.count():
        folder = runs / f"{name}-{n}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            files.refuse(
                error, f"{str(folder)!r} cannot be created ({error}): give --out."
            )
    raise AssertionError("unreachable: the numbers do not end")


def lock_file(descriptor: int, name: str) -> None:
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
def lock(folder: Path) -> Iterator[None]:
    """Lock a run folder against other processes; the system releases it if we die.

    In a multi-process run the first process holds the lock.
    """
    if not distributed.is_first():
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock_file(descriptor, f"RUN = {str(folder)!r}")
        refuse_links(folder)
        yield
    except OSError as error:
        if any((folder / name).exists() for name in DESCRIPTIONS):
            error.__notes__ = [f"jaxrl resume {folder}"]  # the outermost folder's
        raise
    finally:
        os.close(descriptor)


DESCRIPTIONS = ("config.json", "sweep.json")
"""A folder that has one of these can be resumed."""

CHECKPOINTS = "checkpoints"

NOT_OURS = ("wandb", CHECKPOINTS)
"""Folders in which links are left alone: Weights & Biases makes some that lead to its
cache, and `jaxrl.runs.checkpoint` touches only what it has made itself."""


def refuse_links(folder: Path) -> None:
    """Refuse a folder with a link that leaves it.

    What is written would land elsewhere, and what is copied come from elsewhere.

    Raises:
      InvalidInput: it names the link.
    """
    root = os.path.realpath(folder)
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(place, name)
            target = os.path.realpath(path)
            if os.path.islink(path) and os.path.commonpath([root, target]) != root:
                raise InvalidInput(
                    f"{path} is a link that leaves {str(folder)!r}, and nothing is written "
                    f"or copied elsewhere: remove it, or replace it by what it leads to."
                )
        folders[:] = [name for name in folders if name not in NOT_OURS]
