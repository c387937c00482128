"""Identifiers and paths in backticks on the pages exist in the code."""

import ast
import functools
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import jaxrl
from tests.docs.test_docs import PAGES
from tests.support.paths import ROOT

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)
CALL = re.compile(r"\(.*\)$|\(\)$|=.*$")
PLACES = ("jaxrl", "tests", "tools", "benchmarks", "docs", "notebooks", ".ci")
FILES = (
    "py",
    "md",
    "json",
    "jsonl",
    "toml",
    "safetensors",
    "csv",
    "html",
    "png",
    "svg",
)
OTHERS = {"coming-from.md", "jax-for-rl.md", "compare.md"}
"""Pages about other libraries: only `jaxrl.…` and paths are checked there."""

EXTERNAL = {"jax", "jnp", "np", "flax", "gymnasium"}
"""Roots of dotted names that belong to other libraries."""

NOT_OURS = {
    *("jax_default_matmul_precision", "xla_cpu_use_multi_output_fusion"),
    *("sticky_action_prob", "chat_template", "strftime_now"),
    *("my_corridor.py", "train.py", "evaluate.py", "jaxrl.bib", "make_figure"),
}
"""Names of other libraries, of a user, of files that a command writes, and of examples."""


def spans(page: Path) -> set[str]:
    """The inline code of a page."""
    text = FENCE.sub("", page.read_text())
    return {span.strip() for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)}


@functools.cache
def modules() -> frozenset[str]:
    """Dotted names of the package's modules, without `jaxrl.`."""
    found = pkgutil.walk_packages(jaxrl.__path__, "jaxrl.")
    return frozenset(module.name.removeprefix("jaxrl.") for module in found)


@functools.cache
def words() -> frozenset[str]:
    """Every identifier of the code, and every string in it that looks like one."""
    files = (x for place in PLACES[:4] for x in (ROOT / place).rglob("*.py"))
    found: set[str] = set()
    for path in files:
        if path.parent.name != "docs":  # these tests name what does not exist
            found |= identifiers(path.read_text())
        found.add(path.stem)
    return frozenset(found)


def identifiers(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        for attribute in ("id", "attr", "name", "arg"):
            value = getattr(node, attribute, None)
            found |= {value} if isinstance(value, str) else set()
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= (
                set(re.findall(r"\w+", node.value)) if len(node.value) < 300 else set()
            )
    return found


@functools.cache
def file_names() -> frozenset[str]:
    return frozenset(x.name for place in PLACES for x in (ROOT / place).rglob("*"))


def exists(name: str) -> bool:
    """Whether `jaxrl.NAME` is a module or an attribute of one."""
    parts = name.split(".")
    for i in range(len(parts), -1, -1):
        module = ".".join(["jaxrl", *parts[:i]])
        if i and ".".join(parts[:i]) not in modules():
            continue
        found = importlib.import_module(module)
        for part in parts[i:]:
            if not hasattr(found, part):
                return has_field(found, part)
            found = getattr(found, part)
        return True
    return False


def has_field(owner: object, name: str) -> bool:
    """Dataclasses have fields without a default that are no attributes."""
    return name in getattr(owner, "__annotations__", ())


def candidates(name: str) -> list[str]:
    """Full names that a short one such as `optim.adam` may mean."""
    first = name.split(".")[0]
    homes = [m.rpartition(first)[0] for m in modules() if m.split(".")[-1] == first]
    return [home + name for home in homes]


def problem(span: str, page: Path, own: set[str]) -> str | None:
    """What is wrong with a span of code, if anything."""
    if re.search(r"[A-Z]{3,}|[…*{}\[\]]", span.partition("(")[0]):
        return None  # a placeholder such as NAME
    if "/" in span and span.split("/")[0] in PLACES and " " not in span:
        return None if (ROOT / span.partition(":")[0]).exists() else "no such path"
    name = CALL.sub("", span)
    if not re.fullmatch(r"[A-Za-z_][\w]*(\.\w+)*", name):
        return None
    first, *rest = name.split(".")
    if name in NOT_OURS:
        return None
    if first == "jaxrl" and rest:
        return None if exists(".".join(rest)) else "no such name"
    if page.name in OTHERS or first in EXTERNAL:
        return None
    if rest and rest[-1] in FILES:
        known = rest[-1] != "py" or name in file_names() or f"{first}" in own
        return None if known else "no such file"
    if rest and candidates(name):
        fine = any(map(exists, candidates(name))) or rest[-1] in own
        return None if fine or is_variable(first, rest) else "no such name"
    is_code = rest or "_" in name or span.endswith(")")
    last = name.split(".")[-1]
    known = last in words() or last in own
    return None if known or not is_code else "no such identifier"


def is_variable(first: str, rest: list[str]) -> bool:
    """`config.gamma`, `policy.act`: a value with the name of a module."""
    return (
        first in ("config", "policy", "dataset", "experiment") and rest[-1] in words()
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_identifiers_and_paths_exist(page):
    blocks = FENCE.findall(page.read_text())
    own = {word for _, block in blocks for word in re.findall(r"\w+", block)}
    found = {span: problem(span, page, own) for span in sorted(spans(page))}
    assert {span: wrong for span, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    "span",
    [
        "jaxrl.losses.no_such_loss",
        "optim.no_such_step",
        "scaled_reward_of_rollout",
        "tests/no_such_test.py",
        "no_such_file.py",
        "jaxrl.no_such_function()",
    ],
)
def test_dead_names_are_found(span):
    assert problem(span, PAGES[0], set())


def test_living_names_are_accepted():
    for span in (
        "jaxrl.PPO",
        "optim.polyak",
        "types.Env",
        "jaxrl/losses.py",
        "num_envs",
    ):
        assert problem(span, PAGES[0], set()) is None, span
