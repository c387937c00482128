"""Checkpoints: RUN/checkpoints/ITERATION/, with all that a run needs to go on exactly.

Parameters, targets, optimiser, normalisers, environments, replay memory, keys, counters,
the tally of an unfinished chunk, and what `metrics.jsonl` was by then: bytes, digests.
A damaged one is refused and an older one offered: nothing is passed over in silence.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jaxrl.core import distributed, run_folders, schema, storage
from jaxrl.errors import InvalidInput, require
from jaxrl.training.loop import Progress

FOLDER = run_folders.CHECKPOINTS

SHARE = 0.01
"""The largest part of the time that goes into checkpoints after the first, however large
they are."""


class Saver:
    """Writes the checkpoints of a run, at the start and then every so many seconds."""

    def __init__(
        self,
        run: Path,
        about: dict[str, Any],
        sync_metrics: Callable[[], dict[str, Any]],
        every: float,
        keep: int,
        last: int | None = None,
    ) -> None:
        """`about` is the experiment; `sync_metrics` puts the metrics file on the disk and
        returns what `About` says of it; `last` is the checkpoint that the run goes on
        from."""
        self._run, self._about, self._sync_metrics = run, about, sync_metrics
        self._every, self._keep = every, keep
        self._last = last
        self._due = 0.0 if last is None else time.monotonic() + every

    def save_if_due(self, progress: Progress) -> None:
        if distributed.broadcast(int(time.monotonic() >= self._due)):
            self.save(progress)

    def save(self, progress: Progress) -> None:
        """Write a checkpoint, then remove all but the newest.

        Of several processes all must call it together, and the first writes.

        Raises:
          OSError: the disk is full, read-only or gone; those before are kept.
        """
        if progress.iteration == self._last:
            return
        started = time.monotonic()
        arrays = distributed.device_get(_arrays(progress))
        self._last = progress.iteration
        if distributed.is_first():
            self._write(progress, arrays)
        now = time.monotonic()
        self._due = now + max(self._every, (now - started) / SHARE)

    def _write(self, progress: Progress, arrays: dict[str, Any]) -> None:
        about = self._about | {
            "iteration": progress.iteration,
            "seconds": progress.seconds,
        }
        about |= self._sync_metrics()
        folder = self._run / FOLDER
        folder.mkdir(exist_ok=True)
        storage.write(folder / str(progress.iteration), arrays, about)
        for iteration in saved(self._run)[: -self._keep]:
            storage.remove(folder / str(iteration))


def saved(run: Path) -> list[int]:
    """The iterations that have a checkpoint, in order; what else is there is not ours."""
    folder = run / FOLDER
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in paths if _is_ours(path, NUMBER))


NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")
LEFTOVER = re.compile(r"[0-9]+\.(new|old)")
"""Names of checkpoints, and of what a killed process leaves of one."""


def _is_ours(path: Path, names: re.Pattern[str]) -> bool:
    """Whether a checkpoint, or a leftover of one, was made here and not by another."""
    return names.fullmatch(path.name) is not None and storage.is_stored(path)


@dataclass(frozen=True)
class About:
    """What a checkpoint says of itself, beside the experiment that wrote it."""

    OPEN = True
    iteration: schema.Count
    seconds: schema.Seconds
    metrics_bytes: schema.Count
    versions: dict[str, str]
    metrics_digests: list[str] | None = None
    """Of the rows in these bytes (`loggers.row_digests`); older checkpoints have none."""


def chosen(run: Path, iteration: int | None) -> int | None:
    """The newest checkpoint, or the one that is asked for; None if there is none at all.

    Raises:
      InvalidInput: that checkpoint does not exist.
    """
    iterations = saved(run)
    if iteration is None:
        return iterations[-1] if iterations else None
    require(
        iteration in iterations,
        f"checkpoint = {iteration}: {str(run)!r} has "
        f"{', '.join(map(str, iterations)) or 'none'}.",
    )
    return iteration


def load(
    run: Path, shapes: Progress, about: dict[str, Any], iteration: int
) -> tuple[Progress, About]:
    """A checkpoint, verified before anything of it is used.

    Args:
      run: the run folder.
      shapes: of the progress of this experiment.
      about: the experiment; a checkpoint of another one is refused.
      iteration: which checkpoint.

    Returns:
      (progress, about): arrays on the host; what the checkpoint says of itself.

    Raises:
      Damaged: it is not what was written; the message names the file, and the newest
        whole checkpoint before it.
      InvalidInput: it is of another experiment.
    """
    folder = run / FOLDER / str(iteration)
    try:
        found, arrays = storage.read(folder)
    except storage.Damaged as error:
        raise storage.Damaged(f"{error} {_older(run, iteration)}") from error
    schema.check(About, found, folder / storage.MANIFEST, storage.Damaged)
    require(
        found["iteration"] == iteration,
        f"{str(folder)!r} says that it is of train step {found['iteration']}: give it its "
        f"name back.",
    )
    for name, value in about.items():
        require(
            _completed(found.get(name), value) == value,
            f"{name} = {value!r}, but {str(folder)!r} was written with "
            f"{found.get(name)!r}: a run is resumed with what it was begun with.",
        )
    tree = storage.fill(_arrays(shapes), arrays, folder)
    progress = Progress(**tree, iteration=found["iteration"], seconds=found["seconds"])
    known = [field.name for field in fields(About)]
    return progress, About(**{name: found[name] for name in known if name in found})


def _completed(found: Any, now: Any) -> Any:
    """A config of an older version, with the fields that have come since."""
    return now | found if isinstance(found, dict) and isinstance(now, dict) else found


def _arrays(progress: Progress) -> dict[str, Any]:
    return {
        "values": progress.values,
        "state": progress.state,
        "tally": progress.tally,
        "broken": progress.broken,
    }


def remove_after(run: Path, iteration: int) -> None:
    """Remove newer checkpoints, which a run that goes on from here is to write again,
    and what a killed process has left unfinished."""
    folder = run / FOLDER
    for path in folder.iterdir():
        is_newer = _is_ours(path, NUMBER) and int(path.name) > iteration
        if is_newer or _is_ours(path, LEFTOVER):
            storage.remove(path)


def _older(run: Path, iteration: int) -> str:
    """What to do instead of loading a damaged checkpoint."""
    for older in reversed([i for i in saved(run) if i < iteration]):
        try:
            storage.read(run / FOLDER / str(older))
        except InvalidInput:
            continue
        return f"An older one is whole: jaxrl resume {run} --checkpoint {older}"
    return "No older one is whole: train anew."
