"""Additions of the site to the pages of docs/: their tables, the reference of functions,
and the files outside of docs/ that they link to.

`{{ config(ppo) }}` and its like become tables (`tools/tables.py`). A page links to
`../CONTRIBUTING.md` or `../jaxrl/losses.py`, which is right where the repository is read.
Here such a file becomes a page under `repository/`, and the link leads to it, so the site
is complete wherever it is put.
"""

import ast
import json
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

# mkdocs loads this file by its path, and puts `sys.path` back when it has done so.
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tools import api, tables  # noqa: E402

DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[ ]*$", re.M | re.S)
LANGUAGES = {".py": "python", ".toml": "toml", ".ini": "ini", ".sh": "bash"}
CONTRACT = {
    "types": "the contract of environments and algorithms",
    "spaces": "spaces of observations and actions",
    "envs": "environments by name",
    "envs.wrappers": "wrappers of environments",
    "envs.lecture": "problems of textbooks",
    "envs.tabular": "a finite MDP as an environment",
    "training.population": "populations and chunks",
    "training.loop": "the host loop",
    "runs.session": "a run in a folder",
    "runs.experiment": "an experiment, as a value and a file",
    "runs.policy": "one agent, ready to act",
    "runs.artifact": "the policy folder",
    "sweeps.space": "the space of a sweep",
    "sweeps.training": "training of many configs",
    "runs.collect": "episodes of a trained agent",
    "core.config": "checks and files of configs",
    "core.parallel": "one agent on several devices",
}
"""Modules with a page in the reference, beside those of `tools.api`."""


def prose(markdown: str, change) -> str:
    """`change` of what is outside of fenced code."""
    parts, last = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, change(markdown[last:])])


def is_relative(target: str) -> bool:
    return not re.match(r"[a-z]+:|/|#", target)


def place(path: str) -> str:
    """Where a path of the repository is in the site's sources."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if Path(path).suffix in (".png", ".svg", ".gif"):
        return f"repository/{path}"
    return f"repository/{path.removesuffix('.md')}.md"


def origin(uri: str) -> str:
    """The path in the repository of a page of the site, or its own if it has none."""
    if not uri.startswith("repository/"):
        return f"docs/{uri}"
    path = uri.removeprefix("repository/")
    return path if (ROOT / path).exists() else path.removesuffix(".md")


def targets(markdown: str, path: str) -> set[str]:
    """Paths in the repository, outside of docs/, that a page links to."""
    found = set()

    def look(text: str) -> str:
        for link in LINK.finditer(text):
            if is_relative(link[2]):
                found.add(posixpath.normpath(f"{posixpath.dirname(path)}/{link[2]}"))
        return text

    prose(markdown, look)
    return {x.lstrip("/") for x in found if not x.lstrip("/").startswith("docs/")}


def fenced(path: Path) -> str:
    language = LANGUAGES.get(path.suffix, "text")
    text = path.read_text(encoding="utf-8").rstrip()
    return f"~~~~~~~~{language}\n{text}\n~~~~~~~~\n"


def notebook(path: Path) -> str:
    """Its cells, without outputs: it has none."""
    cells = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        cells.append(f"~~~~~~~~python\n{text}\n~~~~~~~~" if is_code else text)
    return "\n\n".join(cells)


def shown(path: str) -> str:
    """A file or a folder outside of docs/, as a page."""
    place = ROOT / path
    if place.suffix == ".md":
        return place.read_text(encoding="utf-8")
    if place.suffix == ".ipynb":
        return notebook(place)
    if place.is_dir():
        files = [x for x in sorted(place.iterdir()) if x.is_file()]
        parts = [f"## {x.name}\n\n{fenced(x)}" for x in files]
        return "\n".join([f"# {path}\n", *parts])
    return f"# {path}\n\n{fenced(place)}"


def outside() -> dict[str, str | bytes]:
    """The sources of the pages that stand for files outside of docs/."""
    made: dict[str, str | bytes] = {}
    left = {"CONTRIBUTING.md", "CHANGELOG.md"}
    for page in sorted(DOCS.rglob("*.md")):
        left |= targets(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))
    while left:
        path = left.pop()
        uri = place(path)
        if uri in made or not (ROOT / path).exists():
            continue  # mkdocs reports a broken link
        made[uri] = shown(path) if uri.endswith(".md") else (ROOT / path).read_bytes()
        if path.endswith((".md", ".ipynb")):
            left |= targets(str(made[uri]), path)
    return made


def modules() -> dict[str, str]:
    """Modules of the reference: those of the toolbox, and the contract's."""
    return CONTRACT | api.MODULES


def reference(module: str, what: str) -> str:
    return f"# jaxrl.{module}\n\n{what.capitalize()}.\n\n::: jaxrl.{module}\n"


def exported() -> dict[str, str]:
    """The names of `jaxrl` and where they live."""
    tree = ast.parse((ROOT / "jaxrl" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "_HOME":
            return ast.literal_eval(node.value)
    raise ValueError("jaxrl/__init__.py has no _HOME.")


def top_level() -> str:
    """The page of the names that `import jaxrl` has."""
    lines = ["# jaxrl", "", "The names of `import jaxrl`.", "", "| name | lives in |"]
    lines += ["|---|---|"]
    for name, home in sorted(exported().items(), key=lambda x: x[0].lower()):
        module = home.removeprefix("jaxrl.")
        where = f"[{home}]({module}.md)" if module in modules() else home
        lines.append(f"| `jaxrl.{name}` | {where} |")
    return "\n".join(lines)


def references() -> dict[str, str]:
    made = {f"reference/{m}.md": reference(m, what) for m, what in modules().items()}
    return {"reference/jaxrl.md": top_level()} | made


def pages_of(nav) -> set[str]:
    if isinstance(nav, str):
        return {nav}
    children = nav.values() if isinstance(nav, dict) else nav
    return {page for child in children for page in pages_of(child)}


def on_startup(command, dirty):
    sys.path.insert(0, str(ROOT))  # the tables import `benchmarks` and `tests`


def on_config(config):
    """Pages of algorithms are in the registry's order, pages without a place how-tos; the
    reference is its modules."""
    from jaxrl.algorithms import ALGORITHMS

    sections = {name: pages for entry in config.nav for name, pages in entry.items()}
    pages = dict.fromkeys(tables.page_of(x) for x in ALGORITHMS.values())
    sections["Algorithms"][:0] = [{tables.title(page): page} for page in pages]
    known = pages_of(config.nav)
    found = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    sections["How-to"] += sorted(found - known)
    names = [{f"jaxrl.{m}": f"reference/{m}.md"} for m in sorted(modules())]
    sections["Reference"] += [{"jaxrl": "reference/jaxrl.md"}, *names]
    return config


def on_files(files, config):
    for uri, content in (outside() | references()).items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Render tables, and point links and names of functions to their pages."""
    del config, files
    uri = page.file.src_uri
    markdown = tables.render(markdown)
    if uri == "metrics.md":
        markdown = tables.with_loggers(markdown)
    path = origin(uri)

    def link(match: re.Match) -> str:
        if uri.startswith("reference/") or not is_relative(match[2]):
            return match[0]
        target = posixpath.normpath(f"{posixpath.dirname(path)}/{match[2]}").lstrip("/")
        there = posixpath.relpath(place(target), posixpath.dirname(uri) or ".")
        return f"{match[1]}{there}{match[3]}"

    markdown = prose(markdown, lambda text: LINK.sub(link, text))
    if uri == "api.md":
        markdown = re.sub(r"`(jaxrl(?:\.\w+){2,})`(?!:)", linked, markdown)
        markdown = link_functions(markdown)
    return markdown


def linked(match: re.Match) -> str:
    """A function's name, as a link to it in the reference, where that has it."""
    module = match[1].removeprefix("jaxrl.").rpartition(".")[0]
    return f"[`{match[1]}`][{match[1]}]" if module in modules() else match[0]


def link_functions(markdown: str) -> str:
    """The rows of a module's table link to its functions."""
    module, lines = "", []
    for line in markdown.split("\n"):
        heading = re.match(r"### `(jaxrl\.[\w.]+)`", line)
        module = heading[1] if heading else module
        row = r"^\| `(\w+)` \|"
        changed = re.sub(row, rf"| [`\1`][{module}.\1] |", line) if module else line
        lines.append(changed)
    return "\n".join(lines)
