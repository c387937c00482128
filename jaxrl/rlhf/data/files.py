"""Files of rows: JSONL and Parquet, read whole, written whole, or grown row by row."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from jaxrl.core import files, run_folders, storage
from jaxrl.errors import InvalidInput, did_you_mean, require
from jaxrl.rlhf.data import parquet

Report = Callable[[str], None]

MOST_BYTES = 2**36
"""Size of a file of rows, which are read whole."""


class Row(dict[str, Any]):
    """The columns of one row by name, with its file and line."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where
        """For messages: "data.jsonl, line 3"."""


def read(path: str | Path) -> list[Row]:
    """All rows of a file, in its order.

    Args:
      path: `.jsonl`, one JSON object a line in UTF-8, where blank lines are no rows; or
        `.parquet`, read by `pyarrow` (the extra `rlhf`). Lines and rows count from 1.

    Raises:
      InvalidInput: there is no such file, it is of neither kind, a line is no object, or
        there are no rows.
    """
    path = Path(path)
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    require(
        path.suffix in readers,
        f"{path}: the name must end in .jsonl or .parquet"
        f"{did_you_mean(path.suffix, readers)}.",
    )
    rows = readers[path.suffix](path)
    require(bool(rows), f"{path} has no rows: give a file with one or more.")
    return rows


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file, all of it or nothing; one that is there is replaced.

    Args:
      path: ends in `.jsonl`.
      rows: columns by name, as JSON has them; no NaN.

    Raises:
      InvalidInput: the path is another, cannot be written, or a row is no JSON.
    """
    path = _check_name(path)
    text = "".join(_to_line(f"row {i}", row) for i, row in enumerate(rows, 1))
    try:
        storage.write_text(path, text)
    except OSError as error:
        files.refuse(error, f"{path} cannot be written ({error.strerror}).")


@contextmanager
def open_append(
    path: str | Path, report: Report = print
) -> Iterator[tuple[list[Row], Callable[[Mapping[str, Any]], None]]]:
    """A JSONL file that grows row by row and survives a kill between any two bytes.

    A last line that was written in part is cut off; nothing else is changed. One process
    at a time may have the file open.

    Args:
      path: ends in `.jsonl`; made if there is none.
      report: called when a line was cut off.

    Yields:
      (the rows that are there, a function that adds one). When it returns the row is on
      the disk.

    Raises:
      InvalidInput: the path is another, cannot be opened, is in use by another process, or
        holds a line that is no object.
    """
    path = _check_name(path)
    try:
        file = FileIO(path, "a+", opener=files.open_no_link)
    except OSError as error:
        files.refuse(error, f"{path} cannot be written ({error.strerror}).")
    with file:
        run_folders.lock_file(file.fileno(), str(path))
        rows = _read_complete(path, file, report)
        storage.sync_folder(path.parent)

        def append(row: Mapping[str, Any]) -> None:
            _append(path, file, _to_line("the new row", row).encode())

        yield rows, append


def _read_jsonl(path: Path) -> list[Row]:
    try:
        return _json_rows(path, files.read_bytes(path, MOST_BYTES))
    except OSError as error:
        files.refuse(error, f"{path} cannot be read ({error.strerror}).")


def _json_rows(path: Path, content: bytes) -> list[Row]:
    lines = enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
    return [
        Row(_read_object(f"{path}, line {i}", line), f"{path}, line {i}")
        for i, line in lines
        if line.strip()
    ]


def _read_object(where: str, line: bytes) -> dict[str, Any]:
    try:
        found = files.parse_json(line, where)
    except files.Unreadable as error:
        raise InvalidInput(f"{error} Write one object a line, in UTF-8.") from error
    require(
        isinstance(found, dict),
        f"{where} is a JSON {type(found).__name__}: write an object, such as "
        f'{{"prompt": "...", "completion": "..."}}.',
    )
    return found


def _read_parquet(path: Path) -> list[Row]:
    rows = enumerate(parquet.read(path), 1)
    return [Row(values, f"{path}, row {i}") for i, values in rows]


def _read_complete(path: Path, file: FileIO, report: Report) -> list[Row]:
    """The rows of a growing file, after what a kill left of a last one is cut off."""
    with files.naming(path):
        file.seek(0)
        content = file.readall()
    end = content.rfind(b"\n") + 1
    whole, last = _json_rows(path, content[:end]), content[end:]
    if not last.strip():
        return whole
    if last.startswith(b"{") and not _is_json(last):
        with files.naming(path):
            file.truncate(end)
            os.fsync(file.fileno())
        report(f"{path}: its last line was written in part, and is cut off.")
        return whole
    rows = _json_rows(path, content)
    _append(path, file, b"\n")
    return rows


def _is_json(line: bytes) -> bool:
    try:
        files.parse_json(line, "the last line")
    except files.Unreadable:
        return False
    return True


def _append(path: Path, file: FileIO, content: bytes) -> None:
    """Write all of it and sync to the disk."""
    with files.naming(path):
        while content:
            content = content[file.write(content) :]
        os.fsync(file.fileno())


def _to_line(where: str, row: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n"
        text.encode()
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{where} cannot be written as JSON ({error}).") from error
    return text


def _check_name(path: str | Path) -> Path:
    path = Path(path)
    require(path.suffix == ".jsonl", f"{path}: the name must end in .jsonl.")
    return path
