"""The layers of the package: the only list, its tables, and a drawing.

python -m tools.layers   # writes docs/figures/layers.svg

`tools/tables.py` puts the tables into CONTRIBUTING.md and docs/architecture.md when the
site is built; `tests/contract/test_layering.py` checks the imports against the list.
"""

import ast
from typing import NamedTuple

from tools.paths import ROOT

FILE = ROOT / "docs" / "figures" / "layers.svg"


class Layer(NamedTuple):
    """Modules and packages that may import each other, without cycles, and lower layers."""

    name: str
    members: tuple[str, ...]
    purpose: str
    colour: str


LAYERS = (
    Layer("command line", ("cli",), "the commands", "#dfe7f7"),
    Layer(
        "products",
        ("report", "pipelines"),
        "combinations of runs: reports, RLHF pipelines, reference agents",
        "#dfe7f7",
    ),
    Layer(
        "uses of runs",
        ("sweeps", "rendering", "interop", "deployment"),
        "sweeps; rendering; Gymnasium; export and serving",
        "#dcefe6",
    ),
    Layer(
        "runs",
        ("runs",),
        "a run in a folder: experiment, session, artefact, checkpoints, loggers, presets",
        "#dcefe6",
    ),
    Layer(
        "training",
        ("training",),
        "compiled populations, and the host loop that runs them",
        "#fbeccb",
    ),
    Layer(
        "algorithms",
        ("algorithms", "rlhf"),
        "one file for each algorithm; language models and human feedback",
        "#fbeccb",
    ),
    Layer("data", ("data",), "logged experience: datasets, frozen policies", "#f7ddd0"),
    Layer(
        "toolbox",
        (
            *("acting", "estimators", "losses", "distributions", "exploration"),
            "normalize",
            *("optim", "rollout", "evaluation", "mdp", "statistics", "diagnostics"),
            *("plotting", "networks", "replay", "envs", "tabular"),
        ),
        "pure functions, each with its equation, shapes and source; networks, replay, "
        "environments",
        "#eadff2",
    ),
    Layer(
        "contract",
        ("types", "spaces", "errors", "core"),
        "shared types; configs, storage, processes, random keys",
        "#e3e3e3",
    ),
)
"""The layers, top to bottom."""


def modules() -> str:
    """Table of top-level modules and packages, with the first line of each docstring."""
    lines = ["| layer | module | |", "|---|---|---|"]
    for layer in LAYERS:
        for name in layer.members:
            path = ROOT / "jaxrl" / name
            is_package = path.is_dir()
            file = path / "__init__.py" if is_package else path.with_suffix(".py")
            said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            first = " ".join(said.split("\n\n")[0].split())
            shown = f"{name}/" if is_package else file.name
            lines.append(f"| {layer.name} | `{shown}` | {first} |")
    return "\n".join(lines)


WIDTH, LEFT, HEIGHT, LETTER = 660, 150, 30, 8.2


def table() -> str:
    """The layers as Markdown, top to bottom."""
    lines = ["| layer | modules and packages | what lives there |", "|---|---|---|"]
    for layer in LAYERS:
        names = ", ".join(f"`{name}`" for name in layer.members)
        lines.append(f"| {layer.name} | {names} | {layer.purpose} |")
    return "\n".join(lines)


def drawing() -> str:
    """SVG with a band for each layer, top to bottom, containing its members."""
    y, parts = 50.0, []
    for layer in LAYERS:
        lines = wrap(layer.members)
        height = HEIGHT * len(lines)
        parts.append(text(14, y + 20, layer.name, "name"))
        parts.append(
            f'<rect x="{LEFT}" y="{y:g}" width="{WIDTH - LEFT - 14}" height="{height}" '
            f'rx="4" fill="{layer.colour}"/>'
        )
        for i, line in enumerate(lines):
            parts.append(
                text(LEFT + 10, y + 20 + HEIGHT * i, "  ".join(line), "member")
            )
        y += height + 4
    return page(parts, y + 10)


def wrap(names: tuple[str, ...]) -> list[list[str]]:
    """Wrap names into lines that fit a band."""
    lines: list[list[str]] = [[]]
    for name in names:
        if len("  ".join([*lines[-1], name])) * LETTER > WIDTH - LEFT - 34:
            lines.append([])
        lines[-1].append(name)
    return lines


def text(x: float, y: float, words: str, kind: str) -> str:
    return (
        f'<text class="{kind}" x="{x:g}" y="{y:g}" xml:space="preserve">{words}</text>'
    )


def page(parts: list[str], height: float) -> str:
    title = (
        "Imports point downwards: to a layer below, or within a layer without cycles."
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        'role="img">',
        f"<title>{title}</title>",
        "<style>text{fill:#222;font-size:14px;font-family:sans-serif}"
        ".member{font-family:monospace;font-size:13.5px}.name{font-weight:bold}</style>",
        f'<rect width="{WIDTH}" height="{height:g}" rx="6" fill="#fff"/>',
        text(14, 28, title, "title"),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(drawing(), encoding="utf-8")
    print(FILE.relative_to(ROOT))
