"""Imports inside the package point downwards, and never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jaxrl
from tools.layers import LAYERS

PACKAGE = Path(jaxrl.__file__).parent


def name_of(path: Path) -> str:
    """`jaxrl/networks/torso.py` -> "networks.torso"; `jaxrl/envs/__init__.py` -> "envs"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = [name for name in FILES if name]  # without the package itself
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer.members}


def member(module: str) -> str:
    """The module or package at the top of `jaxrl/` that a module belongs to."""
    return module.partition(".")[0]


def imports(tree: ast.AST) -> set[str]:
    """The modules of the package that the code imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            # `from jaxrl import optim` means a module, `from jaxrl.optim import adam`
            # a name in one.
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix("jaxrl.") in FILES
                found.add(inner if is_module else node.module)
    inside = {name for name in found if name.startswith("jaxrl.")}
    return {name.removeprefix("jaxrl.") for name in inside}


def imports_of(module: str) -> set[str]:
    return imports(ast.parse(FILES[module].read_text()))


def test_reading_imports():
    code = "import jaxrl.types\nfrom jaxrl import optim\nfrom jaxrl.envs import make\n"
    code += "def f():\n    from jaxrl.networks.torso import dense\n    import jax\n"
    assert imports(ast.parse(code)) == {"types", "optim", "envs", "networks.torso"}


def test_every_module_has_its_layer():
    assert {member(module) for module in MODULES} == LEVEL.keys()
    assert len(LEVEL) == sum(len(layer.members) for layer in LAYERS), "listed twice"


@pytest.mark.parametrize("module", MODULES)
def test_no_import_points_upwards(module):
    for other in imports_of(module):
        assert LEVEL[member(module)] <= LEVEL[member(other)], (
            f"{module} imports {other}"
        )


def test_the_top_level_can_be_read_at_a_glance():
    assert len(list(PACKAGE.glob("*.py"))) <= 20
    assert len(LAYERS) <= 9


def test_no_cycles_of_modules_or_of_packages():
    TopologicalSorter({m: imports_of(m) for m in MODULES}).prepare()
    packages: dict[str, set[str]] = {}
    for module in MODULES:
        above = member(module)
        found = {member(other) for other in imports_of(module)} - {above}
        packages.setdefault(above, set()).update(found)
    TopologicalSorter(packages).prepare()


def test_the_contract_imports_nothing_of_ours():
    assert imports_of("types") == imports_of("errors") == set()


def test_algorithms_do_not_import_each_other():
    files = {
        f"algorithms.{path.stem}" for path in (PACKAGE / "algorithms").glob("*.py")
    }
    shared = (
        *("rainbow", "pqn"),  # other defaults of dqn and sarsa, and no code
        *("__init__", "checks", "critics", "imitation", "on_policy"),
        *("bellman", "gsde", "learning", "off_policy", "value_heads"),
    )
    files -= {f"algorithms.{x}" for x in shared}
    for module in files:
        assert files.isdisjoint(imports_of(module))


def test_the_package_itself_imports_nothing_of_ours_before_it_is_used():
    tree = ast.parse(FILES[""].read_text())
    for node in tree.body:
        for_type_checkers = isinstance(node, ast.If)
        assert for_type_checkers or imports(node) == set()
