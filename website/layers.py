"""The floors of tests/test_layering.py as a drawing for docs/architecture.md.

python -m website.layers   # writes docs/figures/layers.svg
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

FILE = Path(__file__).parent.parent / "docs" / "figures" / "layers.svg"
STOREYS = {
    "cli": ("what people type", "#dfe7f7"),
    "session": ("a run and its files", "#dcefe6"),
    "runner": ("learning", "#fbeccb"),
    "dataset": ("experience", "#f7ddd0"),
    "config": ("pure pieces", "#eadff2"),
    "errors": ("the contract", "#e3e3e3"),
}
"""The room that a storey begins with: its name and colour."""

WIDTH, LEFT, HEIGHT, GAP, LETTER = 660, 150, 30, 6, 8.2


def drawing(floors: Sequence[Iterable[str]]) -> str:
    """The SVG: a band for each floor, top to bottom, with its rooms in it."""
    y, parts, colour = 44.0, [], ""
    for floor in floors:
        rooms = sorted(floor)
        begins = [STOREYS[room] for room in rooms if room in STOREYS]
        if begins:
            name, colour = begins[0]
            y += GAP
            parts.append(text(14, y + 20, name, "name"))
        lines = wrapped(rooms)
        height = HEIGHT * len(lines)
        parts.append(
            f'<rect x="{LEFT}" y="{y:g}" width="{WIDTH - LEFT - 14}" height="{height}" '
            f'rx="4" fill="{colour}"/>'
        )
        for i, line in enumerate(lines):
            parts.append(text(LEFT + 10, y + 20 + HEIGHT * i, "  ".join(line), "room"))
        y += height + 2
    return page(parts, y + 12)


def wrapped(rooms: Sequence[str]) -> list[list[str]]:
    """Lines of rooms that fit a band."""
    lines: list[list[str]] = [[]]
    for room in rooms:
        if len("  ".join([*lines[-1], room])) * LETTER > WIDTH - LEFT - 34:
            lines.append([])
        lines[-1].append(room)
    return lines


def text(x: float, y: float, words: str, kind: str) -> str:
    return (
        f'<text class="{kind}" x="{x:g}" y="{y:g}" xml:space="preserve">{words}</text>'
    )


def page(parts: Sequence[str], height: float) -> str:
    title = "Each room imports only from the floors below its own, or from itself."
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        'role="img">',
        f"<title>{title}</title>",
        "<style>text{fill:#222;font-size:14px;font-family:sans-serif}"
        ".room{font-family:monospace;font-size:13.5px}.name{font-weight:bold}</style>",
        f'<rect width="{WIDTH}" height="{height:g}" rx="6" fill="#fff"/>',
        text(14, 28, title, "title"),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    from tests.test_layering import LAYERS

    FILE.write_text(drawing(LAYERS))
    print(FILE.relative_to(FILE.parents[2]))


if __name__ == "__main__":
    main()
