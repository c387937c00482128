"""Tables, figures and citations of runs, for a paper: `jaxrl report RUN... --out DIR`.

DIR/report.html      a self-contained page of all below, with figures and provenance
DIR/results.csv      a line for each algorithm or setting on each environment
DIR/seeds.csv        a line for each agent
DIR/table.tex        the table, for LaTeX with booktabs
DIR/aggregates.csv   for several environments: IQM and optimality gap over all of them
DIR/aggregates.tex   the same, for LaTeX
DIR/jaxrl.bib        citations
DIR/*.png, *.pdf     the figures
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxrl.core import files, run_folders, storage
from jaxrl.report.entries import collect_warnings, read_all_entries
from jaxrl.report.figures import draw_all
from jaxrl.report.page import make_page
from jaxrl.report.papers import bibtex
from jaxrl.report.tables import (
    aggregates,
    aggregates_to_latex,
    check_reference,
    results_to_csv,
    seeds_to_csv,
    to_latex,
)
from jaxrl.sweeps.results import csv_text


def write_report(
    runs: Sequence[Path | str],
    out: Path | str,
    reference: Mapping[str, tuple[float, float]] | None = None,
) -> list[str]:
    """Read finished runs and sweeps, and write tables, figures and page.

    Args:
      runs: folders of `jaxrl train` and `jaxrl sweep`.
      out: a folder; an earlier report there is replaced.
      reference: environment -> returns that count as 0 and 1 where several environments
        are aggregated; by default the lowest and highest of these runs.

    Returns:
      Warnings about claims that the results do not support.

    Raises:
      InvalidInput: a folder holds no finished run, or a reference does not fit.
    """
    folders, reference = [Path(run) for run in runs], dict(reference or {})
    entries = read_all_entries(folders)
    check_reference(entries, reference)
    warnings = collect_warnings(folders, entries)
    out = Path(out)
    for folder in folders:
        if _is_within(out, folder):
            run_folders.refuse_links(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        files.refuse(error, f"out = {str(out)!r} cannot be a folder ({error}).")
    figures = draw_all(entries, folders, out, reference)
    texts = {
        "results.csv": results_to_csv(entries),
        "seeds.csv": seeds_to_csv(entries),
        "table.tex": to_latex(entries),
        "jaxrl.bib": bibtex({e.algorithm for e in entries}),
        "report.html": make_page(entries, figures, warnings, folders, out, reference),
    }
    together = aggregates(entries, reference)
    if together:
        texts["aggregates.csv"] = csv_text(together)
        texts["aggregates.tex"] = aggregates_to_latex(together)
    for name, text in texts.items():
        storage.write_text(out / name, text)
    return warnings


def _is_within(out: Path, folder: Path) -> bool:
    """Whether a path, however it is typed, is in a folder; one that is a link counts."""
    places = (out.resolve(), out.parent.resolve() / out.name)
    return any(place.is_relative_to(folder.resolve()) for place in places)
