"""What the documentation says is true: programs run, tables are complete, links resolve."""

import dataclasses
import importlib
import json
import os
import re
import sys
import tomllib
from pathlib import Path

import jax
import nbformat
import pytest

from jaxrl import cli, envs
from jaxrl.algorithms import ALGORITHMS
from jaxrl.cli import options
from jaxrl.envs import env_ids, known_issues, make
from jaxrl.rlhf.registry import RLHF
from tests.support.language import task_of
from tests.support.paths import ROOT
from tests.support.small import taught, tiny
from tools import api, blocks

DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(DOCS.glob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def programs():
    """The blocks marked `python`, which are whole programs; fragments are `py`."""
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
        for i, block in enumerate(blocks):
            yield pytest.param(block, id=f"{page.stem}-{i}")


@pytest.mark.full
@pytest.mark.parametrize("program", list(programs()))
def test_program_runs(program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(envs, "_registered", {})
    exec(compile(program, "<documentation>", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


def test_every_code_block_is_run_or_says_why_not():
    """`python -m tools.blocks` runs them."""
    known = {"python", "py", "bash", "toml", "json", *blocks.NO_CODE}
    found = [block for page in blocks.PAGES for block in blocks.blocks(page)]
    opened = [re.findall(r"^```\w", page.read_text(), re.M) for page in blocks.PAGES]
    assert len(found) == sum(map(len, opened)) > 100
    assert {block.language for block in found} <= known
    assert all(len(block.reason) > 10 for block in found if block.reason)
    for block in found:
        if block.language != "bash" or block.reason:
            continue
        for words in blocks.commands(block.text):
            first = words[0].removeprefix(".venv/bin/")
            assert first in ("jaxrl", "pip", "pytest", "python3"), words


def test_commands_of_a_block():
    text = "#!/bin/bash\njaxrl list \\\n  envs  # all\npip install . && jaxrl doctor\n"
    found = blocks.commands(text)
    assert found == [
        ["jaxrl", "list", "envs"],
        ["pip", "install", "."],
        ["jaxrl", "doctor"],
    ]
    sweep = ["jaxrl", "sweep", "ppo", "--trials", "256", "--shard", "3/8"]
    assert blocks.shortened(sweep)[2:6] == ["--trials", "16", "--shard", "0/1"]
    assert blocks.shortened(["jaxrl", "train", "dqn"])[-2:] == [
        "--learning-starts",
        "500",
    ]


def rows(page: Path) -> dict[str, list[str]]:
    """First cell, without backticks -> the other cells, of all tables of a page."""
    lines = re.findall(r"^\| `([^`|]+)` \|(.*)\|$", page.read_text(), re.M)
    cells = {name: re.split(r"(?<!\\)\|", rest) for name, rest in lines}
    return {name: [cell.strip() for cell in row] for name, row in cells.items()}


def shown(value) -> str:
    """A default as the tables write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def page_of(algorithm: str) -> Path:
    """Two variants of SARSA are on its page."""
    variants = {"expected_sarsa": "sarsa", "q_learning": "sarsa"}
    return DOCS / f"{variants.get(algorithm, algorithm)}.md"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_page_has_every_config_field_and_its_default(name):
    config = ALGORITHMS[name].Config()
    table = rows(page_of(name))
    for field in dataclasses.fields(config):
        default = shown(getattr(config, field.name))
        assert table[field.name][0] == f"`{default}`", field.name
        assert len(table[field.name][1]) > 5, field.name


@pytest.mark.parametrize("name", ALGORITHMS)
def test_page_has_every_metric_and_no_other(name):
    algorithm = ALGORITHMS[name]
    config, env = tiny(algorithm), taught(algorithm, make("probe/action"))
    state = jax.eval_shape(algorithm.init, config, env, jax.random.key(0))
    _, metrics = jax.eval_shape(algorithm.train_step, config, env, state)
    table = rows(page_of(name))
    assert {row for row in table if "/" in row} == set(metrics)


RLHF_PAGE = DOCS / "rlhf-training.md"


def test_page_of_rlhf_has_every_config_field_and_its_default():
    table = rows(RLHF_PAGE)
    columns = re.search(
        r"^\| field \| (.*) \| meaning \|$", RLHF_PAGE.read_text(), re.M
    )
    assert columns and columns[1].split(" | ") == [x for x in RLHF if x != "pretrain"]
    assert RLHF["pretrain"].Config is RLHF["sft"].Config
    for i, name in enumerate(columns[1].split(" | ")):
        config = RLHF[name].Config()
        own = {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(config)
        }
        for field, value in own.items():
            assert table[field][i] == f"`{shown(value)}`", (name, field)
            assert len(table[field][-1]) > 5, field
        for field in {
            f.name for a in RLHF.values() for f in dataclasses.fields(a.Config)
        }:
            assert field in own or table[field][i] == "", (name, field)


@pytest.mark.parametrize("name", RLHF)
def test_page_of_rlhf_has_every_metric_and_no_other(name):
    kind = {"pretrain": "text", "sft": "completion"}.get(name, "preference")
    kind = "prompt" if hasattr(RLHF[name].Config(), "max_new_tokens") else kind
    config, task = RLHF[name].Config(batch_size=8), task_of(kind)
    task = task.replace(gold=task.judge)
    if kind == "prompt":
        config = config.replace(max_new_tokens=5)
    state = jax.eval_shape(RLHF[name].init, config, task, jax.random.key(0))
    _, metrics = jax.eval_shape(RLHF[name].train_step, config, task, state)
    table = rows(RLHF_PAGE)
    assert {row for row in table if "/" in row and name in table[row][0].split()} == (
        set(metrics)
    )


def logged() -> dict[str, str]:
    """Metric -> who logs it, as the glossary writes it.

    The tests above hold each algorithm's page to what its train step returns.
    """
    each = {f"`{name}`": set(rows(page_of(name))) for name in ALGORITHMS}
    table = rows(RLHF_PAGE)
    words = {row: set(cells[0].split()) for row, cells in table.items() if "/" in row}
    texts = {f"`rlhf {n}`": {x for x in words if n in words[x]} for n in RLHF}
    names = {x for found in (*each.values(), *texts.values()) for x in found}
    return {
        name: ", ".join(among(name, each, "all") + among(name, texts, "all of `rlhf`"))
        for name in names
        if re.fullmatch(r"[a-z]+/[a-z_0-9]+", name)
    }


def among(name: str, pages: dict[str, set[str]], everyone: str) -> list[str]:
    found = [algorithm for algorithm, names in pages.items() if name in names]
    return [everyone] if len(found) == len(pages) else found


def test_the_glossary_has_every_metric_and_who_logs_it():
    table = rows(DOCS / "metrics.md")
    assert {name: cells[-1] for name, cells in table.items()} == logged()
    assert len(table) > 40
    for name, (meaning, *_) in table.items():
        assert len(meaning) > 10, name


def test_the_glossary_has_every_metric_that_is_named_in_the_code():
    """Also those that only some settings log."""
    text = r'"((?:rollout|loss|policy|value|optim|explore|reward|text|imitation)/\w+)"'
    files = [*ROOT.glob("jaxrl/algorithms/*.py"), *ROOT.glob("jaxrl/rlhf/*.py")]
    found = {x for path in files for x in re.findall(text, path.read_text())}
    found -= {"text/plain"}  # what the labelling page answers
    assert len(found) > 30
    assert found <= rows(DOCS / "metrics.md").keys()


@pytest.mark.parametrize("name", RLHF)
def test_page_of_rlhf_has_every_word_of_a_task(name):
    table = rows(RLHF_PAGE)
    for word, field in options.parameters_of(RLHF[name]).items():
        default, of = table[word][:2]
        asked = field.default is field.empty or not default
        assert asked or default == f"`{shown(field.default)}`", word
        told = [x.strip("`") for x in of.split()]
        assert of.startswith("all") or name in told, (name, word)


def test_page_of_the_command_line_has_every_flag():
    text = (DOCS / "cli.md").read_text()
    for name in cli.program.list_commands(None):
        command = cli.program.get_command(None, name)
        assert f"`jaxrl {name}" in text
        if name == "rlhf":
            continue  # has a page of its own
        if name in ("train", "sweep"):
            command = command.get_command(None, "ppo")
        fields = {field.name for field in dataclasses.fields(ALGORITHMS["ppo"].Config)}
        for option in command.params:
            if option.name not in fields and option.opts[0].startswith("--"):
                assert f"`{option.opts[0]}" in text, option.name


def test_page_of_the_command_line_has_every_rllib_name():
    text = (DOCS / "cli.md").read_text()
    assert all(f"`{name}`" in text for name in options.RLLIB_STOP)


def test_the_index_is_that_of_the_docstrings():
    """If not: `python -m tools.api --update`."""
    assert api.index() in api.PAGE.read_text()


def test_every_function_of_the_index_has_a_docstring():
    for module in api.ROOMS:
        assert [x for x, said in api.functions(module).items() if not said] == [], (
            module
        )


@pytest.mark.parametrize("module", api.ARRAYS)
def test_every_function_of_arrays_says_its_shapes(module):
    assert api.without_shapes(module) == []


@pytest.mark.parametrize("module", api.FORMULAS)
def test_every_formula_says_its_shapes_and_its_source(module):
    plumbing = set(api.WITHOUT_SOURCE.get(module, "").split())
    assert api.without_shapes(module) == []
    assert set(api.without_source(module)) == plumbing


def test_what_says_no_shape_or_source_is_found():
    shaped = ("V `[T, N]`.", "A scalar.", "`[...]`", "any pytree", "`[*batch, A]`")
    assert all(api.SHAPE.search(said) for said in shaped)
    assert not api.SHAPE.search("The best of all, as `V` is.")
    assert api.SOURCE.search("Source: S&B, section 6.6.")
    assert not api.SOURCE.search("The sources (two) of 2018.")
    assert api.FORMULAS and api.WITHOUT_SOURCE.keys() <= set(api.FORMULAS)


def test_every_formula_of_the_index_is_a_function():
    names = set(re.findall(r"`(jaxrl\.[\w.]+)`", api.PAGE.read_text()))
    found = {n for n in names if n.removeprefix("jaxrl.") not in api.ROOMS}
    assert len(found) > 40
    for name in found:
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function)), name


def test_page_of_environments_has_every_id():
    text = (DOCS / "environments.md").read_text()
    for env_id in env_ids():
        assert f"| `{env_id}` |" in text
    _, _, differences = text.partition("### What jaxrl does differently")
    for env_id in filter(known_issues, env_ids()):
        assert env_id in differences or "MinAtar" in env_id, env_id


INSTALL = json.loads(NOTEBOOKS[0].read_text())["cells"]
INSTALL = next("".join(x["source"]) for x in INSTALL if x["cell_type"] == "code")


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.M)
            assert anchor in map(slug, headings), target


def test_every_page_of_the_navigation_exists():
    """Those of `reference/` and `repository/` are made by tools/hooks.py."""
    _, _, nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")
    pages = re.findall(r": ([\w./-]+\.md)$", nav, re.M)
    assert len(set(pages)) == len(pages) > 30
    made = "repository/"
    for page in pages:
        path = page.removeprefix(made).removesuffix(".md")
        found = [ROOT / path, ROOT / f"{path}.md"] if made in page else [DOCS / page]
        assert any(x.exists() for x in found), page


def test_nothing_names_this_machine():
    here = {str(ROOT), str(Path.home()), sys.prefix, os.environ.get("VIRTUAL_ENV", "")}
    places = {place.rstrip("/") + "/" for place in here} - {"/"}
    texts = ("*.md", "*.toml", "*.cff", "*.yaml", ".ci/*", "benchmarks/**/*.json")
    texts += ("jaxrl/**/*.py", "tests/**/*.py", "benchmarks/**/*.toml", "docs/*.md")
    files = [path for pattern in texts for path in ROOT.glob(pattern)] + NOTEBOOKS
    assert len(files) > 50
    for path in files:
        found = [place for place in places if place in path.read_text()]
        assert not found, (path, found)


def test_ci_runs_the_commands_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    script = (ROOT / ".ci" / "run").read_text()
    train, test = re.findall(r"^python3 -m venv \.venv && .*$", readme, re.M)
    assert train.endswith(" && .venv/bin/jaxrl train ppo --env CartPole-v1")
    assert test.endswith(" && .venv/bin/pytest")
    install = test.removesuffix(" && .venv/bin/pytest")
    assert install.replace(".venv", ".ci-venv") in script
    assert "\n  jaxrl train ppo --env CartPole-v1 --total-steps" in script
    assert script.endswith("\npytest\n")


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation
    assert f"version = {{{project['version']}}}" in (ROOT / "README.md").read_text()
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_has_no_outputs(path):
    notebook = nbformat.from_dict(json.loads(path.read_text()))
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "".join(first.source) == INSTALL, "the cell that installs jaxrl in Colab"
    for cell in notebook.cells:
        assert cell.id
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
