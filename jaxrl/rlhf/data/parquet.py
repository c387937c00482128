"""Parquet files of strangers: what rows would take is known before they are made.

A small file can hold a text once and name it a million times. Sizes that the file declares
are checked before anything is read; then texts are read once each, and those of all rows
are added up before there are rows.
"""

from pathlib import Path
from typing import Any

from jaxrl.core import files
from jaxrl.errors import InvalidInput, install_command, one_line, require

LEAST, FACTOR = 1 << 30, 64
"""Bytes that the rows of any file may take, and how many times its own size they may."""

ROW, VALUE = 600, 80
"""Bytes in Python, roughly, of a row and of a value in it, beside those of texts."""


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, columns by name.

    Raises:
      InvalidInput: `pyarrow` is not installed, the file is no Parquet, or its rows take
        too much memory.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InvalidInput(
            f"{path} needs the package pyarrow: {install_command('rlhf')}."
        ) from error
    try:
        require(path.is_file(), f"{path} cannot be read as Parquet: it is not a file.")
        metadata = parquet.read_metadata(path)
        _check_size(path, _declared_size(metadata))
        table = parquet.ParquetFile(path, read_dictionary=_texts(metadata)).read()
        chunks = [chunk for column in table.columns for chunk in column.chunks]
        _check_size(path, ROW * table.num_rows + sum(map(_size, chunks)))
        # Of texts that are stored once each, Arrow makes Python's much more slowly.
        return parquet.ParquetFile(path).read().to_pylist()
    except InvalidInput:
        raise
    except Exception as error:  # pyarrow's, and those of Python's types
        message = f"{path} cannot be read as Parquet ({one_line(str(error))[:200]})."
        if isinstance(error, OSError):
            with files.naming(path):
                files.refuse(error, message)
        raise InvalidInput(message) from error


def _check_size(path: Path, size: int) -> None:
    most = max(LEAST, FACTOR * path.stat().st_size)
    require(
        size <= most,
        f"{path} has rows of about {size:,} bytes, of a file of this size at most "
        f"{most:,} are read: split it, or write it as .jsonl.",
    )


def _columns(metadata: Any) -> list[Any]:
    """Metadata of the part of each column in each group of rows."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return [group.column(i) for group in groups for i in range(group.num_columns)]


def _declared_size(metadata: Any) -> int:
    columns = _columns(metadata)
    values = sum(VALUE * x.num_values + x.total_uncompressed_size for x in columns)
    return ROW * metadata.num_rows + values


def _texts(metadata: Any) -> list[str]:
    """Paths of the columns that hold texts."""
    columns = _columns(metadata)
    return sorted(
        {x.path_in_schema for x in columns if x.physical_type == "BYTE_ARRAY"}
    )


def _size(array: Any) -> int:
    """Bytes of the values of an Arrow array in Python, each text counted wherever it is."""
    import pyarrow as pa
    from pyarrow import compute

    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = compute.binary_length(array.dictionary)
        total = compute.sum(compute.take(lengths, array.indices)).as_py() or 0
        return VALUE * len(array) + total
    if pa.types.is_struct(kind):
        return VALUE * len(array) + sum(map(_size, array.flatten()))
    if pa.types.is_map(kind):
        return VALUE * len(array) + _size(array.keys) + _size(array.items)
    if pa.types.is_nested(kind):
        return VALUE * len(array) + _size(array.flatten())
    return VALUE * len(array) + array.nbytes
