"""What a paper needs of some runs: `jaxrl report RUN... --out DIR`.

DIR/report.html      one page that holds all below, figures and provenance included
DIR/results.csv      a line for each algorithm or setting on each environment
DIR/seeds.csv        a line for each agent
DIR/table.tex        the table, for LaTeX with booktabs
DIR/aggregates.csv   of several environments: IQM and optimality gap over all of them
DIR/aggregates.tex
DIR/jaxrl.bib        what to cite
DIR/*.png, *.pdf     the figures
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxrl.core import storage
from jaxrl.errors import InvalidInput
from jaxrl.report.entries import all_entries, warnings_about
from jaxrl.report.figures import draw_all
from jaxrl.report.page import page
from jaxrl.report.papers import bibtex
from jaxrl.report.tables import (
    aggregates,
    aggregates_latex,
    check_reference,
    latex,
    results_csv,
    seeds_csv,
)
from jaxrl.sweeps.results import csv_text


def write_report(
    runs: Sequence[Path | str],
    out: Path | str,
    reference: Mapping[str, tuple[float, float]] | None = None,
) -> list[str]:
    """Reads finished runs and sweeps, and writes tables, figures and page.

    Args:
      runs: folders of `jaxrl train` and `jaxrl sweep`.
      out: a folder; what a report has written there before is replaced.
      reference: by environment the returns that count as 0 and 1 where several are
        taken together; by default the lowest and highest of these runs.

    Returns:
      Warnings, for a person: what of it a paper should not say.

    Raises:
      InvalidInput: a folder holds no finished run, or a reference does not fit.
    """
    folders, reference = [Path(run) for run in runs], dict(reference or {})
    entries = all_entries(folders)
    check_reference(entries, reference)
    warnings = warnings_about(folders, entries)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"out = {str(out)!r} cannot be a folder ({error})."
        ) from error
    figures = draw_all(entries, folders, out, reference)
    texts = {
        "results.csv": results_csv(entries),
        "seeds.csv": seeds_csv(entries),
        "table.tex": latex(entries),
        "jaxrl.bib": bibtex({e.algorithm for e in entries}),
        "report.html": page(entries, figures, warnings, folders, out, reference),
    }
    together = aggregates(entries, reference)
    if together:
        texts["aggregates.csv"] = csv_text(together)
        texts["aggregates.tex"] = aggregates_latex(together)
    for name, text in texts.items():
        storage.write_text(out / name, text)
    return warnings
