"""Files that may be damaged, hostile, or on a full disk: how all are read and written.

Reading is bounded: only regular files, only so many bytes, only so deep; what does not
fit is refused by name (`Unreadable`). Text is UTF-8, with or without a byte order mark.
Writing never follows a link: a file is made anew under a temporary name and then moved to
its place, or appended to if it is a file itself. An `OSError` names the file.
"""

import errno
import json
import os
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from jaxrl.errors import InvalidInput, shorten

MOST_BYTES = 32 * 2**20
"""Size of a document. Parsed, JSON takes up to thirty times its size."""

MOST_DEPTH = 100
"""Nesting of a document; configs and metadata have less than ten levels."""

MOST_DOTS = 1_000
"""Dots in a line of TOML: its parser takes quadratic time for a dotted key."""

DISK_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ENODEV", "ESTALE")
    if hasattr(errno, name)
)
"""Errors of the disk. Others, such as a missing folder, are those of a name."""


class Unreadable(InvalidInput):
    """Error: a file is not there, is no regular file, or cannot be understood."""


# Reading.


@contextmanager
def open_regular(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a regular file for reading; a FIFO or a device would be waited for.

    Raises:
      Unreadable: it cannot be opened, or is something else.
      OSError: the disk fails.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        _refuse_to_read(path, error)
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or _is_given_pipe(path, mode)):
            raise Unreadable(f"{shorten(path)} is {_kind(mode)}: give a regular file.")
        os.set_blocking(descriptor, True)
        with naming(path), os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def _is_given_pipe(path: Path | str, mode: int) -> bool:
    """Whether the shell has opened it: `--config <(...)`, `--config /dev/stdin`."""
    return stat.S_ISFIFO(mode) and str(path).startswith(("/dev/fd/", "/dev/stdin"))


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def _refuse_to_read(path: Path | str, error: OSError | ValueError) -> NoReturn:
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        raise error
    reason = getattr(error, "strerror", None) or str(error)
    raise Unreadable(f"{shorten(path)} cannot be read ({reason}).") from error


def read_bytes(path: Path | str, most: int = MOST_BYTES) -> bytes:
    """Read a regular file of at most so many bytes.

    Raises:
      Unreadable: it cannot be read, is larger, or no regular file.
    """
    with open_regular(path) as file:
        # Not `most + 1`, which is allocated at once: a manifest may name any size.
        size = os.fstat(file.fileno()).st_size
        content = file.read(min(most, max(size, MOST_BYTES)) + 1)
    if len(content) > most:
        raise Unreadable(f"{shorten(path)} has more than {most:,} bytes.")
    return content


def read_lines(path: Path | str, most: int = MOST_BYTES) -> Iterator[bytes]:
    """Read a regular file line by line; `most` bounds a line. Errors of `read_bytes`."""
    with open_regular(path) as file:
        while line := file.readline(most + 1):
            if len(line) > most:
                raise Unreadable(
                    f"{shorten(path)} has a line of more than {most:,} bytes."
                )
            yield line


def read_text(path: Path | str) -> str:
    """Read text in UTF-8, with or without a byte order mark. Errors of `read_bytes`."""
    return _decode(read_bytes(path), path)


def _decode(content: bytes, name: Path | str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"{shorten(name)} is not text in UTF-8 ({error}).") from error


def read_json(path: Path | str) -> Any:
    """Read a JSON document.

    Raises:
      Unreadable: it cannot be read, is too large or too deep, or is no JSON.
    """
    return parse_json(read_bytes(path), path)


def read_toml(path: Path | str) -> dict[str, Any]:
    """Read a TOML document. Errors of `read_json`."""
    text = read_text(path)
    if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        raise Unreadable(
            f"{shorten(path)} has a line with more than {MOST_DOTS:,} dots."
        )
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{shorten(path)} is no TOML ({shorten(error)}).") from error
    _check_depth(content, path)
    return content


def parse_json(content: bytes | str, name: Path | str) -> Any:
    """Parse JSON by its standard, which has no NaN; `name` is for messages.

    Raises:
      Unreadable: it is too deep, or no JSON.
    """
    text = content if isinstance(content, str) else _decode(content, name)
    try:
        found = _JSON.decode(text)
        if "\\u" in text:  # half a character: valid JSON, but no text
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{shorten(name)} is no JSON ({shorten(error)}).") from error
    if text.count("[") + text.count("{") > MOST_DEPTH:
        _check_depth(found, name)
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def _check_depth(content: Any, name: Path | str) -> None:
    level = [content]
    for _ in range(MOST_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    if level:
        raise Unreadable(f"{shorten(name)} is nested more than {MOST_DEPTH} deep.")


# Names of files inside files.


def relative(folder: Path | str, path: str) -> str:
    """What a file in `folder` says of a path, so that both can be moved together.

    One that was given as absolute stays so.
    """
    if os.path.isabs(path):
        return path
    # Not `normpath`: "link/.." is where the link leads, and not here.
    parent, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        parent, name = path, ""
    real = os.path.join(os.path.realpath(parent), name).rstrip("/")
    return os.path.relpath(real, os.path.realpath(folder))


def locate(folder: Path | str, path: str) -> str:
    """The path, from here, that `relative` wrote into a file in `folder`."""
    if os.path.isabs(path):
        return path
    return os.path.relpath(os.path.join(os.path.realpath(folder), path))


def locate_beside(file: Path | str, path: str) -> str:
    """The path that a file written by hand means: beside it, or else from here."""
    beside = locate(Path(file).parent, path)
    return beside if os.path.exists(beside) else path


# Writing.


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Let an `OSError` say which file it is about: that of `write` does not know."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def refuse(error: OSError, message: str) -> NoReturn:
    """Raise what an `OSError` of a name that the user gave means.

    Raises:
      OSError: it is the disk's, and no other name would do.
      InvalidInput: the message.
    """
    if error.errno in DISK_ERRORS:
        raise error
    raise InvalidInput(message) from error


def write_new(path: Path, content: bytes) -> None:
    """Make a file and sync it to the disk; a leftover or a link of that name is removed."""
    with create(path) as file:
        file.write(content)


@contextmanager
def create(path: Path) -> Iterator[IO[bytes]]:
    """Make a file, sync it to the disk, and remove it if that fails.

    Whatever has that name is removed before; a link is never followed.
    """
    with naming(path):
        path.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(
            path, "w+b", opener=lambda name, _: os.open(name, flags, 0o666)
        ) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                path.unlink(missing_ok=True)
                raise


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Make a file that takes the place of another once it is complete.

    Its temporary name ends as the file's, for writers that infer the format.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    with naming(path):
        with create(part) as file:
            yield file
        os.replace(part, path)


def open_append(path: Path) -> IO[bytes]:
    """Open a file to append to it and to truncate it; made if there is none.

    Raises:
      InvalidInput: it is a link or no regular file, and what is written would land
        elsewhere.
    """
    return os.fdopen(open_no_link(path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab")


def open_no_link(path: Path | str, flags: int) -> int:
    """Open a regular file to write in place, as the `opener` of `open` does.

    Raises:
      InvalidInput: it is something else, and what is written would land elsewhere.
    """
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise InvalidInput(
            f"{path} is a link, a folder or a pipe, into which nothing is written: remove "
            f"it."
        ) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise InvalidInput(f"{path} is {_kind(mode)}: remove it.")
    return descriptor
