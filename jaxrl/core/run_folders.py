"""Run folders: creation without overwriting, and a lock against concurrent use."""

import fcntl
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxrl.core import distributed
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
    """Create `runs/NAME-n` with the smallest free n."""
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
                f"{str(folder)!r} cannot be created ({error}): give --out."
            ) from error
    raise AssertionError("unreachable: the numbers do not end")


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
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InvalidInput(
            f"RUN = {str(folder)!r} is in use by another process: wait for it, or stop it."
        ) from error
    else:
        yield
    finally:
        os.close(descriptor)
