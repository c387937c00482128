"""Where the rows of a run go: a file for programs, a bar for people."""

import json
import math
import os
from pathlib import Path
from typing import Any

from jaxrl.runner import Row


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


class ProgressBar:
    """Return, steps per second and time left, from the rows of `train`.

    Drawn from the first row on, when compiling is over.
    """

    def __init__(self, total_env_steps: int, disable: bool = False) -> None:
        self._total, self._disable = total_env_steps, disable
        self._bar: Any = None

    def update(self, row: Row) -> None:
        if self._disable:
            return
        if self._bar is None:
            self._bar = self._drawn(row["env_steps"])
        episode_return = mean_return(row)
        if episode_return is not None:
            self._bar.set_postfix_str(f"return {episode_return:.1f}", refresh=False)
        self._bar.update(row["env_steps"] - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _drawn(self, env_steps: int) -> Any:
        """The bar; its clock starts here, so the steps so far do not count in the rate."""
        from tqdm import tqdm

        return tqdm(
            total=self._total,
            initial=env_steps,
            unit=" steps",
            unit_scale=True,
            mininterval=0.5,
            dynamic_ncols=True,
        )


def mean_return(row: Row) -> float | None:
    """Mean over the seeds of the training return in that chunk; None if no episode of
    any seed ended in it."""
    values = [v for v in row["rollout/episode_return"] if v is not None]
    return sum(values) / len(values) if values else None
