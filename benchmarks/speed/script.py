"""Common arguments and result files of the scripts under benchmarks/."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parser(doc: str | None, parts: Sequence[str]) -> argparse.ArgumentParser:
    """Argument parser with `--parts`, `--quick` and `--out`, which a script may extend."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    made.add_argument("--parts", nargs="+", default=parts, choices=parts)
    made.add_argument("--quick", action="store_true", help="a little of each")
    made.add_argument("--out", help="a folder; by default benchmarks/results")
    return made


def opened(
    parser: argparse.ArgumentParser, results: Path, name: str
) -> tuple[argparse.Namespace, Path, dict[str, Any]]:
    """Parse the arguments; return them with the result file and its previous rows, which
    are kept for the parts that are not run."""
    arguments = parser.parse_args()
    if arguments.quick and not arguments.out:
        parser.error("--quick needs --out, or it would overwrite the real results")
    file = Path(arguments.out or results) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else {}
    return arguments, file, rows
