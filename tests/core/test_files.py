"""`jaxrl.core.files`: reading is bounded, writing follows no link, errors name the file."""

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxrl
from jaxrl.core import files
from jaxrl.errors import InvalidInput
from tests.support.paths import ROOT

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

OTHERS = {"files", "os", "storage", "webbrowser"}
"""Modules whose functions of these names are the reader, or read no text."""


READING = {"read_text", "read_bytes", "loads", "load", "open", "fdopen", "write_text"}
STARTING = {"run", "Popen", "check_output"}


def _calls(path):
    """(call, module or "", name) of each call of a function that may read or write."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        func = getattr(node, "func", None)
        name = getattr(func, "attr", getattr(func, "id", ""))
        if name in READING | STARTING:
            of = ast.unparse(func.value) if isinstance(func, ast.Attribute) else ""
            yield node, of, name


def _mode(call):
    """The mode of `open(path, mode)` or `path.open(mode)`."""
    place = 1 if isinstance(call.func, ast.Name) or call.func.attr == "fdopen" else 0
    named = [x.value for x in call.keywords if x.arg == "mode"]
    found = [*call.args[place : place + 1], *named]
    return ast.unparse(found[0]) if found else "r"


def other_readers(path):
    """Lines that read JSON, TOML or files in another way than `jaxrl.core.files`."""
    for call, module, name in _calls(path):
        reads = name in ("read_text", "read_bytes") and module not in OTHERS
        opens = name == "open" and module not in OTHERS
        opens = opens and ("b" not in _mode(call) or "r" in _mode(call))
        parses = name in ("loads", "load") and module in ("json", "tomllib", "pickle")
        is_copy = ast.unparse(call).startswith("json.loads(json")
        is_text = module == "subprocess" and "text" in [x.arg for x in call.keywords]
        if reads or opens or is_text or (parses and not is_copy):
            yield call.lineno


def test_there_is_one_reader_of_json_toml_and_text():
    package = Path(jaxrl.__file__).parent
    for path in package.rglob("*.py"):
        if str(path.relative_to(package)) not in OTHER_READERS:
            assert not list(other_readers(path)), f"{path}: use jaxrl.core.files"


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ('open("x")', True),
        ('open("x", "rb")', True),
        ('open("x", mode="r+b")', True),
        ("path.open()", True),
        ('path.with_name("x").open("r", encoding="utf-8")', True),
        ("Path(name).read_text()", True),
        ("json.load(file)", True),
        ("subprocess.run(words, text=True)", True),
        ("subprocess.run(words)", False),
        ("json.loads(json.dumps(x))", False),
        ("files.read_text(path)", False),
        ("os.open(path, flags)", False),
        ('path.open("ab")', False),
    ],
)
def test_another_reader_is_found(line, is_found, tmp_path):
    (tmp_path / "x.py").write_text(line)
    assert list(other_readers(tmp_path / "x.py")) == [1] * is_found


def unnamed_encodings(path):
    """Lines that read or write text in the encoding of the locale."""
    for call, module, name in _calls(path):
        names = [keyword.arg for keyword in call.keywords]
        opens = name == "fdopen" or (name == "open" and module not in OTHERS)
        is_text = name in ("read_text", "write_text") and module not in OTHERS
        is_text = is_text or (opens and "b" not in _mode(call))
        if "encoding" not in names and (is_text or "text" in names):
            yield call.lineno


def test_scripts_name_the_encoding_of_text():
    for folder in ("tools", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            assert not list(unnamed_encodings(path)), path


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("page.read_text()", True),
        ("page.write_text(text)", True),
        ('os.fdopen(1, "w")', True),
        ('open("x")', True),
        ("subprocess.run(words, text=True)", True),
        ('page.read_text(encoding="utf-8")', False),
        ('os.fdopen(1, "wb")', False),
    ],
)
def test_an_unnamed_encoding_is_found(line, is_found, tmp_path):
    (tmp_path / "x.py").write_text(line)
    assert list(unnamed_encodings(tmp_path / "x.py")) == [1] * is_found


def test_text_is_utf_8_in_any_locale(tmp_path):
    (tmp_path / "x.toml").write_bytes("\ufeffname = 'Größe'".encode())
    program = "import sys; from jaxrl.core import files; f = open(sys.argv[1])\n"
    program += "print(f.encoding, ascii(files.read_toml(sys.argv[1])))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", program, str(tmp_path / "x.toml")],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    encoding, content = done.stdout.split(maxsplit=1)
    assert encoding.lower() not in ("utf-8", "utf8"), "the locale is another's"
    assert content.strip() == ascii({"name": "Größe"})
