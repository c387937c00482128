"""`jaxrl.core.files`: reading is bounded, writing follows no link, errors name the file."""

import ast
import errno
import os
from pathlib import Path

import pytest

import jaxrl
from jaxrl.core import files
from jaxrl.errors import InvalidInput

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "document"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_text_is_utf_8_with_or_without_a_byte_order_mark(path, mark):
    path.write_bytes((mark + 'name = "Größe"').encode())
    assert files.read_toml(path) == {"name": "Größe"}
    path.write_bytes((mark + '{"name": "Größe"}').encode())
    assert files.read_json(path) == {"name": "Größe"}
    path.write_bytes('{"name": "Größe"}'.encode("latin-1"))
    with pytest.raises(files.Unreadable, match="UTF-8"):
        files.read_json(path)


@pytest.mark.parametrize(
    "text",
    [DEEP, '{"a":' * 200 + "1" + "}" * 200, "NaN", "[1", '"\\ud800"', "1" * 5_000, ""],
)
def test_json_that_is_none_or_too_deep_is_refused_by_name(path, text):
    path.write_text(text)
    with pytest.raises(files.Unreadable, match="document") as refused:
        files.read_json(path)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "text", ["a = " + DEEP, "a." * 50_000 + "b = 1", "a." * 200 + "b = 1", "a = "]
)
def test_toml_that_is_none_or_too_deep_is_refused_by_name(path, text):
    path.write_text(text)
    with pytest.raises(files.Unreadable, match="document"):
        files.read_toml(path)


def test_only_regular_files_are_read(path, tmp_path):
    os.mkfifo(path)
    for name in (path, tmp_path, "/dev/zero", tmp_path / "none", "a" * 300, "a\0b"):
        with pytest.raises(files.Unreadable) as refused:
            files.read_bytes(name)
        assert len(str(refused.value)) < 300


def test_a_file_that_is_too_large_is_not_read_whole(path):
    path.touch()
    os.truncate(path, 2**42)
    with pytest.raises(files.Unreadable, match="more than"):
        files.read_bytes(path)
    with pytest.raises(files.Unreadable, match="more than"):
        list(files.read_lines(path))


def test_what_the_shell_pipes_in_is_read():
    read, write = os.pipe()
    os.write(write, b"a = 1")
    os.close(write)
    assert files.read_toml(f"/dev/fd/{read}") == {"a": 1}
    os.close(read)


@pytest.fixture
def victim(tmp_path):
    """A file that must stay as it is."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    yield victim
    assert victim.read_text() == "mine"


def test_no_link_is_followed_to_write(path, victim):
    path.symlink_to(victim)
    with pytest.raises(InvalidInput, match="document"):
        files.open_append(path)
    files.write_new(path, b"new")
    assert path.read_bytes() == b"new" and not path.is_symlink()
    part = path.with_name(".document.part")
    part.symlink_to(victim)
    with files.replacing(path) as file:
        file.write(b"newer")
    assert path.read_bytes() == b"newer" and not part.is_symlink()


def test_a_failed_write_leaves_the_old_file_and_no_other(path):
    path.write_text("old")
    with pytest.raises(OSError) as failed, files.replacing(path) as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert failed.value.filename is not None and path.name in failed.value.filename
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_text() == "old"


def test_only_the_disks_errors_stay_errors_of_the_disk():
    with pytest.raises(OSError):
        files.refuse(OSError(errno.ENOSPC, "full"), "the name")
    with pytest.raises(InvalidInput, match="the name"):
        files.refuse(OSError(errno.ENOENT, "none"), "the name")


def test_a_path_behind_a_link_is_what_the_link_leads_to(tmp_path, monkeypatch):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "data").touch()
    (tmp_path / "here" / "run").mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to("../real/deep")
    monkeypatch.chdir(tmp_path / "here")
    kept = files.relative("run", "link/../data")
    assert Path(files.locate("run", kept)).samefile(tmp_path / "real" / "data")


def test_paths_are_kept_relative_to_a_folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows").touch()
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    kept = files.relative("run", "./data/rows")
    assert kept == "../data/rows"
    assert files.locate("run", kept) == "data/rows"
    monkeypatch.chdir(tmp_path / "data")
    assert files.locate("../run", kept) == "rows"
    assert files.relative("../run", ".") == "../data"
    assert files.relative("run", "/somewhere") == files.locate("run", "/somewhere")
    assert files.locate_beside(tmp_path / "run" / "config.toml", "rows") == "rows"
    assert files.locate_beside(tmp_path / "config.toml", "data/rows") == "rows"


OTHER_READERS = {
    "core/files.py",
    "training/devices.py",  # of the machine: /proc
    "training/footprint.py",  # of the machine: /proc, /sys
    "rlhf/labels/page.py",
    "deployment/wire.py",
    "rlhf/models/language_model.py",  # of its own tokenizer
    "rlhf/models/jinja.py",  # from a process of its own
    "rlhf/models/jinja_worker.py",  # from the process that started it
}
"""Files that may read JSON and text in another way."""

READING = {"read_text", "read_bytes", "loads", "load"}
OWN = {"json", "tomllib", "pickle"}


def test_there_is_one_reader_of_json_toml_and_text():
    package = Path(jaxrl.__file__).parent
    for path in package.rglob("*.py"):
        if str(path.relative_to(package)) in OTHER_READERS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(
                node.func, ast.Attribute
            ):
                continue
            of = node.func.value
            module = of.id if isinstance(of, ast.Name) else ""
            name = node.func.attr
            reads = name in ("read_text", "read_bytes") and module != "files"
            parses = name in ("loads", "load") and module in OWN
            where = f"{path}:{node.lineno}: use jaxrl.core.files"
            is_copy = ast.unparse(node).startswith(("json.loads(json", "json.loads(\n"))
            assert not reads and (not parses or is_copy), where
