"""`import jaxrl`: cheap, complete, and consistent with what type checkers see."""

import ast
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import jaxrl

HEAVY = {"jax", "flax", "optax", "gymnax", "distrax", "matplotlib", "scipy", "numpy"}


def modules_after(script: str) -> set[str]:
    """The top-level modules that a new process has imported after a script."""
    script += "\nimport json, sys; print(json.dumps(list(sys.modules)))"
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(json.loads(process.stdout.splitlines()[-1]))


def test_importing_it_imports_nothing_heavy():
    modules = modules_after("import jaxrl")
    assert "jaxrl" in modules and modules.isdisjoint(HEAVY)


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["lst"]])
def test_help_and_errors_of_the_command_line_do_not_wait_for_jax(command):
    modules = modules_after(f"from jaxrl.cli import main; main({command})")
    assert "jaxrl.cli" in modules and modules.isdisjoint(HEAVY)


@pytest.mark.parametrize("name", jaxrl.__all__)
def test_every_public_name_is_there(name):
    assert getattr(jaxrl, name) is not None
    assert name in dir(jaxrl)


def test_names_load_when_they_are_first_used():
    modules = modules_after("import jaxrl; jaxrl.InvalidInput")
    assert "jaxrl.errors" in modules and "jaxrl.training.loop" not in modules


def test_star_import_brings_the_public_names():
    namespace: dict = {}
    exec("from jaxrl import *", namespace)
    assert set(jaxrl.__all__) <= namespace.keys()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jaxrl' has no attribute 'PPOO'"):
        _ = jaxrl.PPOO


def test_the_version_is_that_of_the_installed_package():
    assert jaxrl.__version__ == metadata.version("jaxrl")


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(jaxrl.__file__).read_text())
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {
        alias.asname: (statement.module, alias.name)
        for statement in block.body
        for alias in statement.names
    }
    assert seen == {name: (home, name) for name, home in jaxrl._HOME.items()}


def test_type_hints_are_shipped():
    assert (Path(jaxrl.__file__).parent / "py.typed").exists()
