"""The documentation is true: programs run, tables render, links resolve."""

import importlib
import json
import os
import re
import sys
import tomllib
from pathlib import Path

import click
import nbformat
import pytest

from jaxrl import cli, envs
from jaxrl.algorithms import ALGORITHMS
from jaxrl.cli import options
from jaxrl.envs import env_ids, known_issues
from tests.support.paths import ROOT
from tools import api, blocks, tables

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


SPECS = [
    pytest.param(match[0], id=f"{page.stem}: {match[0].strip('{} ')}")
    for page in PAGES
    for match in tables.PLACEHOLDER.finditer(page.read_text())
    if match[1] not in ("results", "metrics")
]
"""Placeholders; tests/benchmarks/test_scripts.py renders those of results."""


@pytest.mark.parametrize("spec", SPECS)
def test_tables_render(spec):
    """There are rows, and every field of a config has a meaning."""
    lines = [x for x in tables.render(spec).split("\n") if x.startswith("|")]
    assert len(lines) > 2
    columns = [cell.strip() for cell in lines[0].strip("|").split("|")]
    if "config" in spec:
        place = columns.index("meaning")
        for line in lines[2:]:
            cells = re.split(r"(?<!\\)\|", line.strip("|"))
            assert len(cells) == len(columns) and len(cells[place].strip()) > 4, line


def test_every_algorithm_has_a_page_with_its_tables():
    """Variants with one Config share its table, those of one file that of metrics."""
    text = "\n".join(page.read_text() for page in PAGES)
    for kind in ("config", "metrics"):
        names = set(re.findall(rf"^{{{{ {kind}\((\w+)\) }}}}$", text, re.M))
        shown = {tables.config_class(x) for x in names - {"rlhf"}}
        having = {x.Config for x in ALGORITHMS.values()}
        if kind == "metrics":
            shown, having = ({x.__module__ for x in y} for y in (shown, having))
        assert having <= shown
        assert "rlhf" in names


@pytest.mark.full
def test_every_metric_that_is_logged_is_in_the_glossary():
    for name, found in tables.logged().items():
        assert tables.ordered(found), name
    assert "`ppo`" in tables.loggers("policy/clip_fraction")
    assert tables.loggers("rollout/episode_return") == "all, all of `rlhf`"
    assert tables.metrics("rlhf").count("\n") > 20
    for name, (meaning, *_) in tables.glossary().items():
        assert len(meaning) > 10, name
    page = tables.with_loggers(tables.GLOSSARY.read_text())
    widths = {
        len(re.findall(r"(?<!\\)\|", line))
        for line in page.split("\n")
        if re.match(r"\| `\w+/\w+` \|", line)
    }
    assert widths == {6}


def test_the_glossary_has_every_metric_that_is_named_in_the_code():
    """Also those that only some settings log."""
    text = r'"((?:rollout|loss|policy|value|optim|explore|reward|text|imitation)/\w+)"'
    files = [*ROOT.glob("jaxrl/algorithms/*.py"), *ROOT.glob("jaxrl/rlhf/*.py")]
    found = {x for path in files for x in re.findall(text, path.read_text())}
    found -= {"text/plain"}  # the content type of the labelling page
    assert len(found) > 30
    assert found <= tables.glossary().keys()


def test_an_unknown_table_is_an_error():
    with pytest.raises(KeyError):
        tables.render("{{ no_such_table }}")
    assert tables.render("text {{ layers }}") == "text {{ layers }}"


def test_page_of_the_command_line_has_every_command():
    text = (DOCS / "cli.md").read_text()
    for name in cli.program.list_commands(None):
        command = cli.program.get_command(None, name)
        assert f"`jaxrl {name}" in text
        has_flags = any(isinstance(x, click.Option) for x in command.params)
        assert not has_flags or f"{{{{ flags({name}) }}}}" in text, name


def test_page_of_the_command_line_has_every_rllib_name():
    text = (DOCS / "cli.md").read_text()
    assert all(f"`{name}`" in text for name in options.RLLIB_STOP)


def test_every_function_of_the_index_has_a_docstring():
    for module in api.MODULES:
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
    names = set(re.findall(r"`(jaxrl\.[\w.]+)`", (DOCS / "api.md").read_text()))
    found = {n for n in names if n.removeprefix("jaxrl.") not in api.MODULES}
    assert len(found) > 40
    for name in found:
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function)), name


def test_page_of_environments_has_every_id():
    text = (DOCS / "environments.md").read_text()
    text = tables.render(text)
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


def test_ci_counts_the_warnings_of_the_site():
    """`mkdocs build -q` drops them before `--strict` counts them."""
    script = (ROOT / ".ci" / "run").read_text()
    (words,) = re.findall(r"\bmkdocs build (.*)", script)
    assert "--strict" in words.split()
    assert not {"-q", "--quiet"} & set(words.split())


def test_the_readme_counts_the_lines_of_the_new_algorithm():
    """Those of the notebook's cell, without blank lines."""
    notebook = json.loads(
        (ROOT / "notebooks" / "05_your_own_algorithm.ipynb").read_text()
    )
    cells = ("".join(cell["source"]) for cell in notebook["cells"])
    cell = next(text for text in cells if "ES = Algorithm(" in text)
    count = sum(bool(line.strip()) for line in cell.splitlines())
    assert f"are {count} lines\n" in (ROOT / "README.md").read_text()
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


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
