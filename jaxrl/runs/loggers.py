"""Where the rows of a run go: a file for programs, and if asked for TensorBoard or
Weights & Biases. What a person sees is in `jaxrl.runs.live`."""

import importlib.util
import json
import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxrl.errors import InvalidInput, install_command
from jaxrl.types import Row

RETURN = "rollout/episode_return"


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, whole lines only, flushed at once.

    A number that is not finite is written as null, because JSON has none.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        # One write call of a whole line: a kill leaves no half a line behind.
        self._file.write(json.dumps(_finite(row), allow_nan=False) + "\n")
        self._file.flush()

    def truncate(self, size: int) -> None:
        """Removes what comes after so many bytes."""
        self._file.truncate(size)

    def sync(self) -> int:
        """Makes sure that all is on the disk; returns the number of bytes."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self._file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path, size: int | None = None) -> list[Row]:
    """The rows of a `metrics.jsonl`, or of its first `size` bytes.

    Raises:
      OSError, ValueError: it cannot be read, or is shorter.
    """
    content = path.read_bytes()
    if size is not None and len(content) < size:
        raise ValueError(f"{path} has {len(content)} bytes, there were {size}")
    return [json.loads(line) for line in content[:size].splitlines()]


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
            run_id = path.read_text().strip()
        else:
            run_id = secrets.token_hex(4)
            path.write_text(run_id + "\n")
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
    """Raises `InvalidInput` if the package is not."""
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
