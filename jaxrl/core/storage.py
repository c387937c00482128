"""Atomic, verified storage of arrays in a folder.

    manifest.json         the contents: names, shapes and dtypes of the arrays, SHA-256
                          and size of every file, versions, and a digest of itself
    arrays.safetensors    the arrays

`write` builds the folder under a temporary name, syncs it to the disk and renames it, so a
kill at any moment leaves the old folder or the new one. `read` verifies everything before
any of it is used. The files hold JSON and raw numbers, and no executable code.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.core import files, prng, schema
from jaxrl.errors import InvalidInput, shorten
from jaxrl.types import PyTree

SCHEMA = 1
MANIFEST, ARRAYS = "manifest.json", "arrays.safetensors"


class Damaged(InvalidInput):
    """Error: a stored folder is not what was written; the message names the file."""


@dataclass(frozen=True)
class ArrayEntry:
    """What a manifest says of an array."""

    dtype: str
    shape: list[schema.Count]


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file."""

    sha256: str
    bytes: schema.Count


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest."""

    schema: int
    about: dict[str, Any]
    arrays: dict[str, ArrayEntry]
    files: dict[str, FileEntry]


def write(folder: Path, tree: PyTree, about: dict[str, Any]) -> None:
    """Store a pytree of arrays atomically.

    Args:
      folder: the target; replaced if it exists.
      tree: arrays, including JAX's keys.
      about: metadata as JSON, returned by `read`.

    Raises:
      OSError: the disk is full, read-only or gone; the previous contents are kept.
    """
    from safetensors.numpy import save

    arrays = named_arrays(tree)
    contents = {ARRAYS: save({name: _as_bits(x) for name, x in arrays.items()})}
    manifest = {
        "schema": SCHEMA,
        "about": about,
        "arrays": {
            name: {"dtype": str(x.dtype), "shape": list(x.shape)}
            for name, x in arrays.items()
        },
        "files": {
            name: {"sha256": digest_of(content), "bytes": len(content)}
            for name, content in contents.items()
        },
    }
    contents[MANIFEST] = manifest_bytes(manifest)

    new, old = (folder.with_name(f"{folder.name}.{end}") for end in ("new", "old"))
    _clear(new)
    new.mkdir(parents=True)
    for name, content in contents.items():
        write_file(new / name, content)
    sync_folder(new)
    if os.path.lexists(folder):
        if not (folder.is_symlink() or is_stored(folder)):
            raise InvalidInput(f"{folder} holds something else: move it away.")
        _clear(old)
        rename(folder, old)
    rename(new, folder)
    sync_folder(folder.parent)
    _clear(old)


def is_stored(folder: Path) -> bool:
    """Whether a folder is one of `write`, if only in part; a link to one is not."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = set(os.listdir(folder))
    return not names or not names.isdisjoint((MANIFEST, ARRAYS))


def _clear(path: Path) -> None:
    """Make a temporary name free; of a link the link, never what it leads to.

    What is neither a folder nor a file, such as a pipe, is unlinked without being opened.
    """
    if path.is_dir() and not path.is_symlink():
        if is_stored(path):
            remove(path)
        if path.exists():
            raise InvalidInput(f"{path} holds something else: move it away.")
    else:
        path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove what `write` wrote; a foreign file there is left, and the folder with it."""
    for name in (MANIFEST, ARRAYS):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _as_bits(x: np.ndarray) -> np.ndarray:
    """The array, or as unsigned integers where NumPy has no such dtype (bfloat16)."""
    return x.view(f"u{x.dtype.itemsize}") if x.dtype.kind == "V" else x


def _from_bits(x: np.ndarray, dtype: str) -> np.ndarray:
    """The array of that dtype of which `_as_bits` gave this."""
    wanted = jnp.dtype(dtype)
    return x.view(wanted) if wanted.kind == "V" and x.dtype.kind == "u" else x


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically, by way of a temporary file."""
    new = path.with_name(path.name + ".new")
    write_file(new, text.encode())
    rename(new, path)
    sync_folder(path.parent)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a folder of `write`: its metadata `about`, and the arrays by name.

    Raises:
      Damaged: a file is missing, or is not what was written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    manifest = read_manifest(folder)
    expected = manifest["files"].get(ARRAYS)
    if expected is None:
        raise Damaged(f"{folder / MANIFEST} names no {ARRAYS}: it is damaged.")
    content = _read_file(folder / ARRAYS, expected["bytes"])
    if len(content) != expected["bytes"]:
        raise Damaged(
            f"{folder / ARRAYS} has {len(content):,} bytes instead of "
            f"{expected['bytes']:,}: it is damaged."
        )
    if digest_of(content) != expected["sha256"]:
        raise Damaged(f"{folder / ARRAYS} is not what was written: it is damaged.")
    try:
        arrays = load(content)
    except SafetensorError as error:
        raise Damaged(f"{folder / ARRAYS} cannot be read ({error}).") from error
    try:
        arrays = {
            name: _from_bits(x, manifest["arrays"][name]["dtype"])
            for name, x in arrays.items()
        }
        description = {
            name: {"dtype": str(x.dtype), "shape": list(x.shape)}
            for name, x in arrays.items()
        }
        as_written = description == manifest["arrays"]
    except (KeyError, TypeError, ValueError):
        as_written = False
    if not as_written:
        raise Damaged(f"{folder / ARRAYS} does not hold what {MANIFEST} says.")
    return manifest["about"], arrays


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest, verified by its own digest, without the other files.

    Raises:
      Damaged: it is missing, or is not what was written.
    """
    path = folder / MANIFEST
    content = _read_file(path)
    try:
        manifest: dict[str, Any] = files.parse_json(content, path)
        del manifest["digest"]
        intact = content == manifest_bytes(manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} is not a manifest of jaxrl: it is damaged.") from error
    if not intact:
        raise Damaged(f"{path} is not what was written: it is damaged.")
    if manifest.get("schema") != SCHEMA:
        raise InvalidInput(
            f"{path} has schema {shorten(manifest.get('schema'))}, this version of jaxrl "
            f"reads {SCHEMA}: use the version that wrote it."
        )
    schema.check(Manifest, manifest, path, Damaged)
    return manifest


def digest(folder: Path) -> str:
    """SHA-256 of the manifest, which covers everything that `write` stored.

    Raises:
      Damaged: there is no manifest.
    """
    return digest_of(_read_file(folder / MANIFEST))


def file_digest(path: Path) -> str:
    """SHA-256 of any file.

    Raises:
      Damaged: it cannot be read.
    """
    try:
        with files.open_regular(path) as file:
            found = hashlib.sha256()
            while part := file.read(2**20):
                found.update(part)
            return found.hexdigest()
    except files.Unreadable as error:
        raise Damaged(str(error)) from error


def named_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """Leaves by path, such as `params/value_head/kernel`; random keys as their data."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        _name(path): np.asarray(jax.device_get(_numbers(leaf)), order="C")
        for path, leaf in leaves
    }


def check_names(tree: PyTree) -> None:
    """Check that no two leaves have the same path, as {"a": {"b": x}, "a/b": y} have.

    Raises:
      InvalidInput: there are such leaves.
    """
    names: set[str] = set()
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if _name(path) in names:
            raise InvalidInput(
                f"two arrays are called {_name(path)}: use names without '/' in them."
            )
        names.add(_name(path))


def fill(template: PyTree, arrays: dict[str, np.ndarray], where: Any) -> PyTree:
    """Arrange arrays by name in the structure of `template`, checking shapes and dtypes.

    Raises:
      InvalidInput: an array is missing, superfluous or of another shape.
    """
    unused = dict(arrays)

    def pick(path: Any, leaf: jax.ShapeDtypeStruct) -> Any:
        array, name = unused.pop(_name(path), None), _name(path)
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        expected = jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf
        kind = (expected.shape, expected.dtype)
        if array is None or (array.shape, array.dtype) != kind:
            actual = "missing" if array is None else f"{array.dtype}{array.shape}"
            raise InvalidInput(
                f"{str(where)!r} does not fit its config: {name} is {actual}, expected "
                f"{expected.dtype}{expected.shape}."
            )
        if is_key:
            return prng.from_data(array, leaf.dtype)
        return array

    tree = jax.tree_util.tree_map_with_path(pick, template)
    if unused:
        raise InvalidInput(
            f"{str(where)!r} does not fit its config: it has no place for "
            f"{min(unused)}."
        )
    return tree


def write_file(path: Path, content: bytes) -> None:
    """Write a file and sync it to the disk."""
    files.write_new(path, content)


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with files.naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Move a file or folder atomically."""
    os.replace(source, target)


def _read_file(path: Path, most: int = files.MOST_BYTES) -> bytes:
    try:
        return files.read_bytes(path, most)
    except files.Unreadable as error:
        raise Damaged(str(error)) from error


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """Content of the manifest file, including the digest of all its other fields."""
    text = json.dumps(manifest, sort_keys=True, allow_nan=False)
    complete = manifest | {"digest": digest_of(text.encode())}
    return (json.dumps(complete, indent=1, allow_nan=False) + "\n").encode()


def digest_of(content: bytes) -> str:
    """SHA-256 as text."""
    return hashlib.sha256(content).hexdigest()


def _numbers(leaf: Any) -> Any:
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
