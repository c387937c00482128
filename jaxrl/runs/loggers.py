"""Where the rows of a run go: a file for programs, and if asked for TensorBoard or
Weights & Biases. What a person sees is in `jaxrl.runs.live`."""

import importlib.util
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxrl.core import files, schema, storage
from jaxrl.errors import InvalidInput, count_noun, install_command
from jaxrl.types import Row

RETURN = "rollout/episode_return"


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, whole lines only, flushed at once.

    A number that is not finite is written as null, because JSON has none.
    """

    def __init__(self, path: Path | None) -> None:
        """`path` is None for a process that writes no file."""
        self._path = path or Path(os.devnull)
        self._file = files.open_append(path) if path else self._path.open("ab")
        self.digests: list[str] = []
        """Of the rows, as `row_digests`: those that are written, not what the file has."""

    def write(self, row: Row) -> None:
        line = json.dumps(_finite(row), allow_nan=False).encode()
        # One write call of a whole line: a kill leaves no half a line behind.
        with files.naming(self._path):
            self._file.write(line + b"\n")
            self._file.flush()
        self.digests.append(_line_digest(line))

    def truncate(self, size: int) -> None:
        """Remove what comes after so many bytes; call it before rows are written."""
        with files.naming(self._path):
            self._file.truncate(size)
        self.digests = row_digests(self._path) if size else []

    def sync(self) -> dict[str, Any]:
        """Make sure that all is on the disk; return what a checkpoint says of it."""
        with files.naming(self._path):
            os.fsync(self._file.fileno())
            size = self._file.seek(0, os.SEEK_END)
        return {"metrics_bytes": size, "metrics_digests": list(self.digests)}

    def close(self) -> None:
        self._file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(
    path: Path, size: int | None = None, digests: Sequence[str] | None = None
) -> list[Row]:
    """The rows of a `metrics.jsonl`.

    Args:
      path: the file.
      size: only its first bytes, so many; None for all.
      digests: of its rows, by `row_digests`, when they were written; None if unknown.

    Raises:
      InvalidInput: it cannot be read, is shorter, a line is no row of metrics, or a row is
        not the one that was written; the message names the file and the rows.
    """
    lines: Iterable[bytes] = _first_lines(path, size)
    if digests is not None:
        lines = _check_digests(path, lines, digests)
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        row = files.parse_json(line, f"{path}, line {number}")
        problem = _row_problem(row, rows[-1] if rows else None)
        if problem:
            raise InvalidInput(
                f"{path}, line {number} is no row of metrics: {problem}."
            )
        rows.append(row)
    return rows


def row_digests(path: Path) -> list[str]:
    """A digest of each line, with which `read_metrics` finds those that changed."""
    return [_line_digest(line) for line in _first_lines(path, None)]


def _line_digest(line: bytes) -> str:
    return storage.digest_of(line)[:16]


def _first_lines(path: Path, size: int | None) -> Iterator[bytes]:
    """The lines of the first bytes, one at a time: a file may have any number."""
    if size is not None and path.is_file() and path.stat().st_size < size:
        raise files.Unreadable(
            f"{path} has {path.stat().st_size:,} bytes, there were {size:,}."
        )
    left = math.inf if size is None else size
    for line in files.read_lines(path):
        if left <= 0:
            break
        yield line[: int(min(left, len(line)))].rstrip(b"\n")
        left -= len(line)


def _check_digests(
    path: Path, lines: Iterable[bytes], digests: Sequence[str]
) -> list[bytes]:
    """The lines, if they are those of the digests."""
    count, whole, changed = 0, [], []
    for count, line in enumerate(lines, 1):
        if count <= len(digests) and _line_digest(line) == digests[count - 1]:
            whole.append(line)
        elif count <= len(digests):
            changed.append(str(count))
    if count != len(digests):
        raise InvalidInput(
            f"{path} has {count_noun(count, 'row')} instead of {len(digests):,}: "
            f"restore it, or train anew."
        )
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise InvalidInput(
            f"{path} is not what was written, in line {', '.join(changed[:5])}{more}: "
            f"restore it, or train anew."
        )
    return whole


COUNTERS = ("iteration", "env_steps")
"""The entries of a row that say where in the run it stands."""


def _row_problem(row: Any, before: Row | None) -> str:
    """What keeps a document from being a row of metrics; "" if nothing does."""
    if not isinstance(row, dict):
        return "it is not an object"
    for name in COUNTERS:
        if type(row.get(name)) is not int or not 0 <= row[name] <= schema.LARGEST:
            return f"{name} is not a number of steps"
    if not isinstance(row.get(RETURN), list):
        return f"{RETURN} is not a list"
    for name, value in row.items():
        if not _are_numbers(value if isinstance(value, list) else [value]):
            return f"{name} holds something other than numbers"
    if before is None:
        return ""
    shape, others = ({n: _length(x) for n, x in r.items()} for r in (row, before))
    if shape != others:
        return "it has other entries than the row before"
    return (
        "" if row["iteration"] > before["iteration"] else "it is not after the others"
    )


def _are_numbers(values: list[Any]) -> bool:
    kinds = set(map(type, values))
    if int in kinds and any(abs(x) > schema.LARGEST for x in values if type(x) is int):
        return False
    infinite = math.inf in values or -math.inf in values
    return kinds <= {int, float, type(None)} and not infinite


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, list) else None


Log = Literal["tensorboard", "wandb"]
"""Where the rows go beside the file: extras of their own."""

MOST_CURVES = 100
"""Agents of which TensorBoard gets a curve each; of more it gets the mean."""


class TensorBoard:
    """A curve for each agent and metric under `RUN/tensorboard/`, and its
    hyper-parameters with the last return."""

    def __init__(self, folder: Path, settings: Sequence[dict[str, Any]], after: int):
        """`settings` are the hyper-parameters of each agent; what was written about
        environment steps beyond `after` is superseded."""
        import tensorboardX

        self._settings = settings if len(settings) <= MOST_CURVES else [{}]
        digits = len(str(len(self._settings) - 1))
        names = [f"agent-{k:0{digits}d}" for k in range(len(self._settings))]
        if len(settings) > MOST_CURVES:
            names = ["mean"]
        place = folder / "tensorboard"
        self._writers = [
            tensorboardX.SummaryWriter(
                str(place / name), purge_step=after + 1, filename_suffix=f".{after}"
            )
            for name in names
        ]
        self._hparams = tensorboardX.summary.hparams
        self._last: list[float | None] = [None] * len(names)

    def write(self, row: Row) -> None:
        for name, values in _columns(row, len(self._writers)).items():
            for k, (writer, value) in enumerate(
                zip(self._writers, values, strict=True)
            ):
                if value is None:
                    continue
                writer.add_scalar(name, value, row["env_steps"])
                if name == RETURN:
                    self._last[k] = value

    def show(self, samples: Sequence[dict[str, Any]], env_steps: int) -> None:
        """Texts of a language model, as a table."""
        self._writers[0].add_text("samples", markdown_table(samples), env_steps)

    def close(self) -> None:
        for writer, own, last in zip(
            self._writers, self._settings, self._last, strict=True
        ):
            if last is not None:
                plain = {
                    n: x if isinstance(x, bool | int | float | str) else str(x)
                    for n, x in own.items()
                }
                for part in self._hparams(plain, {RETURN: last}):
                    writer.file_writer.add_summary(part)
            writer.close()


class WandB:
    """The mean over the agents of each metric, and the return of each, in one run."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], after: int):
        """`config` is the experiment, `name` what it is called. A run that is resumed
        goes on under its id."""
        import wandb

        path = folder / "wandb_id.txt"
        if after and path.exists():
            run_id = files.read_text(path).strip()
        else:
            run_id = secrets.token_hex(4)
            storage.write_text(path, run_id + "\n")
        self._run = wandb.init(
            project="jaxrl",
            name=name,
            dir=str(folder),
            config=config,
            id=run_id,
            resume="allow",
        )

    def write(self, row: Row) -> None:
        means = {n: values[0] for n, values in _columns(row, 1).items()}
        each = {f"{RETURN}/{k}": x for k, x in enumerate(row[RETURN][:MOST_CURVES])}
        numbers = {n: x for n, x in (means | each).items() if x is not None}
        self._run.log(numbers, step=row["env_steps"])

    def show(self, samples: Sequence[dict[str, Any]], env_steps: int) -> None:
        """Texts of a language model, as a table."""
        import wandb

        cells = [[str(x) for x in row.values()] for row in samples]
        table = wandb.Table(columns=list(samples[0]), data=cells)
        self._run.log({"samples": table}, step=env_steps)

    def close(self) -> None:
        self._run.finish()


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with equal columns, one or more, as a table of Markdown."""
    cells = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in cells)


def _cell(value: Any) -> str:
    """On one line, with nothing that ends it early."""
    shown = f"{value:.3g}" if isinstance(value, float) else str(value)
    return shown.replace("\n", "⏎").replace("|", "\\|").replace("<", "&lt;")


MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def check_installed(log: Log) -> None:
    """Raise `InvalidInput` if the package is not."""
    if importlib.util.find_spec(MODULES[log]) is None:
        raise InvalidInput(
            f"log = {log!r}: it is not installed: {install_command(log)}."
        )


def _columns(row: Row, count: int) -> dict[str, list[float | None]]:
    """Every metric of each of `count` agents, or its mean over all for one of many."""
    columns = {}
    for name, value in row.items():
        if name in ("iteration", "env_steps"):
            continue
        values = value if isinstance(value, list) else [value] * count
        if len(values) != count:
            known = [x for x in values if x is not None]
            values = [sum(known) / len(known) if known else None]
        columns[name] = values
    return columns


def mean_return(row: Row) -> float | None:
    """Mean over the seeds of the training return in that chunk; None if no episode of
    any seed ended in it."""
    values = [v for v in row[RETURN] if v is not None]
    return sum(values) / len(values) if values else None
