"""`jaxrl.core.storage`: folders are restored bit for bit, or refused by name."""

import json
import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.core import prng, storage
from jaxrl.errors import InvalidInput
from jaxrl.types import counter

TREE = {
    "params": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.zeros(0)},
    "image": jnp.arange(4, dtype=jnp.uint8),
    "flags": jnp.array([True, False]),
    "special": jnp.array([jnp.nan, -0.0, jnp.inf]),
    "count": counter(2**40 + 3),
    "key": prng.key(5),
    "keys": jax.random.split(jax.random.key(6), 3),
    "scalar": jnp.float32(2.5),
}


def shapes(tree):
    return jax.eval_shape(lambda: tree)


@pytest.fixture
def folder(tmp_path):
    storage.write(tmp_path / "it", TREE, {"name": "x", "number": 0.1})
    return tmp_path / "it"


def test_everything_comes_back_bit_for_bit(folder):
    about, arrays = storage.read(folder)
    assert about == {"name": "x", "number": 0.1}
    tree = storage.fill(shapes(TREE), arrays, folder)
    assert jax.tree.structure(tree) == jax.tree.structure(TREE)
    for name, array in storage.named_arrays(TREE).items():
        again = storage.named_arrays(tree)[name]
        assert (again.dtype, again.shape) == (array.dtype, array.shape)
        assert again.tobytes() == array.tobytes()
    assert int(tree["count"]) == 2**40 + 3
    a, b = (jax.random.normal(t["key"], (3,)) for t in (tree, TREE))
    np.testing.assert_array_equal(a, b)


def test_writing_again_replaces_and_leaves_nothing_else(folder):
    storage.write(folder, {"a": jnp.ones(2)}, {})
    assert list(storage.read(folder)[1]) == ["a"]
    assert [path.name for path in folder.parent.iterdir()] == ["it"]
    assert sorted(p.name for p in folder.iterdir()) == [
        storage.ARRAYS,
        storage.MANIFEST,
    ]


def test_every_flipped_bit_and_every_cut_is_refused_by_name(folder):
    rng = random.Random(0)
    for name in (storage.MANIFEST, storage.ARRAYS):
        path = folder / name
        whole = path.read_bytes()
        for _ in range(150):
            spoiled = bytearray(whole)
            spoiled[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(spoiled)
            with pytest.raises(InvalidInput, match=name):
                storage.read(folder)
            path.write_bytes(whole[: rng.randrange(len(whole))])
            with pytest.raises(storage.Damaged, match=name):
                storage.read(folder)
        path.unlink()
        with pytest.raises(storage.Damaged, match=f"{name} cannot be read"):
            storage.read(folder)
        path.write_bytes(whole)
    storage.read(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b'{"digest": 1}', b"[" * 10_000, b"\x80\x04N."]
)
def test_what_is_no_manifest_is_refused(folder, content):
    (folder / storage.MANIFEST).write_bytes(content)
    with pytest.raises(storage.Damaged, match=storage.MANIFEST):
        storage.read(folder)


def test_another_schema_is_refused(folder):
    path = folder / storage.MANIFEST
    manifest = json.loads(path.read_text()) | {"schema": 99}
    manifest.pop("digest")
    path.write_bytes(storage.manifest_bytes(manifest))
    with pytest.raises(InvalidInput, match="has schema 99"):
        storage.read(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scalar": jnp.zeros(2)}, r"scalar is float32\(\), expected float32\(2,\)"),
        ({"scalar": jnp.int32(1)}, "expected int32"),
        ({"more": jnp.zeros(2)}, "more is missing"),
        ({"key": jnp.zeros(3)}, "key is uint32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(folder, changes, message):
    _, arrays = storage.read(folder)
    with pytest.raises(InvalidInput, match=message):
        storage.fill(shapes(TREE | changes), arrays, folder)


def test_an_array_without_a_place_is_refused(folder):
    _, arrays = storage.read(folder)
    with pytest.raises(InvalidInput, match="no place for scalar"):
        storage.fill(
            shapes({k: v for k, v in TREE.items() if k != "scalar"}), arrays, folder
        )


class Killed(BaseException):
    """Exception that simulates a kill."""


OPERATIONS = ("write_file", "sync_folder", "rename")


def killed_at(original, left, before):
    """Wrap an operation to simulate a kill before or after the `left[0]`th of all."""

    def operation(*args):
        left[0] -= 1
        if before and left[0] < 0:
            raise Killed
        original(*args)
        if left[0] < 0:
            raise Killed

    return operation


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("before", [True, False])
def test_a_kill_at_any_operation_leaves_the_old_or_the_new(
    tmp_path, monkeypatch, replaced, before
):
    """Before and after every write, sync and rename."""
    point = 0
    while True:
        folder = tmp_path / str(point) / "it"
        folder.parent.mkdir()
        if replaced:
            storage.write(folder, {"a": jnp.zeros(2)}, {"version": 0})
        left = [point]
        with monkeypatch.context() as patch:
            for name in OPERATIONS:
                killing = killed_at(getattr(storage, name), left, before)
                patch.setattr(storage, name, killing)
            try:
                storage.write(folder, {"a": jnp.ones(2)}, {"version": 1})
                finished = True
            except Killed:
                finished = False
        if folder.exists():
            about, arrays = storage.read(folder)
            assert arrays["a"][0] == about["version"]
        elif replaced:  # between the two renames the old one waits beside its place
            assert storage.read(folder.with_name("it.old"))[0] == {"version": 0}
        if finished:
            break
        storage.write(
            folder, {"a": jnp.ones(2)}, {"version": 2}
        )  # no debris in the way
        assert storage.read(folder)[0] == {"version": 2}
        point += 1
    assert point == (6 if replaced else 5)


@pytest.mark.parametrize(
    "change",
    [
        {"files": "text"},
        {"files": {}},
        {"files": {storage.ARRAYS: {"sha256": "0", "bytes": "5"}}},
        {"files": {storage.ARRAYS: {"sha256": "0", "bytes": 10**15}}},
        {"files": {storage.ARRAYS: {"sha256": "0", "bytes": 10**30}}},
        {"arrays": [1]},
        {"about": None},
        {"schema": "1"},
    ],
)
def test_a_forged_manifest_is_refused(folder, change):
    manifest = storage.read_manifest(folder) | change
    (folder / storage.MANIFEST).write_bytes(storage.manifest_bytes(manifest))
    with pytest.raises(InvalidInput, match=str(folder)):
        storage.read(folder)


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "letter").write_text("mine")
    with pytest.raises(InvalidInput, match="something else"):
        storage.write(tmp_path / "it", TREE, {})
    assert (tmp_path / "it" / "letter").read_text() == "mine"


def test_links_in_the_place_of_temporary_names_are_not_followed(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "letter").write_text("mine")
    for name in ("it.new", "it.old"):
        (tmp_path / name).symlink_to(elsewhere)
    storage.write(folder, TREE, {})
    assert [path.name for path in elsewhere.iterdir()] == ["letter"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "it"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4", "complex64"])
def test_dtypes_that_numpy_does_not_have_are_stored(tmp_path, dtype):
    tree = {"x": jnp.arange(6).reshape(2, 3).astype(dtype), "y": jnp.zeros((), dtype)}
    storage.write(tmp_path / "a", tree, {})
    _, arrays = storage.read(tmp_path / "a")
    filled = storage.fill(jax.eval_shape(lambda: tree), arrays, "a")
    assert filled["x"].dtype == tree["x"].dtype
    assert filled["x"].tobytes() == np.asarray(tree["x"]).tobytes()
    assert filled["y"].shape == ()


def test_two_arrays_of_one_name_are_refused():
    storage.check_names({"a": {"b": 1, "c": 2}, "a/d": 3})
    with pytest.raises(InvalidInput, match="two arrays are called a/b"):
        storage.check_names({"a": {"b": 1}, "a/b": 2})


def test_a_pipe_or_a_foreign_folder_in_the_place_of_a_temporary_name(tmp_path):
    """A pipe is not opened, which would wait for ever; what is not ours is left."""
    folder = tmp_path / "x"
    os.mkfifo(tmp_path / "x.new")
    storage.write(folder, {"a": jnp.ones(2)}, {})
    os.mkfifo(tmp_path / "x.old")
    storage.write(folder, {"a": jnp.zeros(2)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    foreign = tmp_path / "x.new" / "mine"
    foreign.parent.mkdir()
    foreign.touch()
    with pytest.raises(InvalidInput, match=r"x\.new holds something else"):
        storage.write(folder, {"a": jnp.ones(2)}, {})
    assert foreign.exists()
