"""Tables of a report: CSV and LaTeX, and aggregates over several environments."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import jaxrl
from jaxrl.errors import InvalidInput
from jaxrl.report.entries import Entry
from jaxrl.statistics import (
    aggregate_iqm,
    optimality_gap,
    row_of_seeds,
    seeds_caveat,
    stratified_interval,
)
from jaxrl.sweeps.results import csv_text


def make_row(entry: Entry) -> dict[str, Any]:
    """Make a line of the table: IQM over seeds, 95 % bootstrap interval."""
    return {
        "algorithm": entry.algorithm,
        "label": entry.label,
        "env": entry.env,
        "env_steps": entry.env_steps,
    } | row_of_seeds(entry.returns)


def results_to_csv(entries: Sequence[Entry]) -> str:
    """Format the table as CSV."""
    return csv_text(map(make_row, entries))


def seeds_to_csv(entries: Sequence[Entry]) -> str:
    """Format a CSV table with a line for each agent."""
    return csv_text(
        {"label": e.label, "env": e.env, "seed": seed, "episode_return": value}
        for e in entries
        for seed, value in zip(e.seeds, e.returns, strict=True)
    )


# Several environments.

Reference = Mapping[str, tuple[float, float]]
"""Environment -> the returns that count as 0 and as 1."""


def check_reference(entries: Sequence[Entry], reference: Reference) -> None:
    """Raise `InvalidInput` for an unknown environment or limits out of order."""
    envs = sorted({entry.env for entry in entries})
    for env, (low, high) in reference.items():
        if env not in envs:
            raise InvalidInput(
                f"reference: no run is on {env!r}, these are on {', '.join(envs)}."
            )
        if not low < high:
            raise InvalidInput(
                f"reference of {env} = {low:g}:{high:g}: the first must be the smaller "
                f"one."
            )


def references(entries: Sequence[Entry], given: Reference) -> dict[str, Any]:
    """Complete the limits: by default the lowest and highest return of an environment."""
    limits: dict[str, Any] = {}
    for entry in entries:
        low, high = limits.get(entry.env, (np.inf, -np.inf))
        limits[entry.env] = (
            min([low, *entry.finite_returns]),
            max([high, *entry.finite_returns]),
        )
    return limits | dict(given)


def aggregates(entries: Sequence[Entry], given: Reference) -> list[dict[str, Any]]:
    """Aggregate over all environments, for each label that is on every one of several.

    The scores are (R - low) / (high - low) with the two returns of `references`. The
    optimality gap is the shortfall from 1. Best first.

    Source: Agarwal et al. (2021), https://arxiv.org/abs/2108.13264, section 4.3.
    """
    scores = _scores(entries, references(entries, given))
    rows = []
    for label, by_env in scores.items():
        tasks = list(by_env.values())
        row: dict[str, Any] = {"label": label, "environments": len(tasks)}
        row["seeds"] = min(map(len, tasks))  # of the environment with the fewest
        for name, statistic in (("iqm", aggregate_iqm), ("gap", optimality_gap)):
            low, high = stratified_interval(statistic, tasks)
            row |= {
                f"score_{name}": statistic(tasks),
                f"score_{name}_low": float(low),
                f"score_{name}_high": float(high),
            }
        rows.append(row)
    return sorted(rows, key=lambda row: -row["score_iqm"])


def _scores(
    entries: Sequence[Entry], limits: Mapping[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
    """Return label -> environment -> scores, for labels that are on all environments."""
    scores_of: dict[str, dict[str, np.ndarray]] = {}
    for entry in entries:
        if entry.finite_returns:
            low, high = limits[entry.env]
            scores = (np.array(entry.finite_returns) - low) / max(high - low, 1e-12)
            scores_of.setdefault(entry.label, {})[entry.env] = scores
    count = len({entry.env for entry in entries})
    return {k: x for k, x in scores_of.items() if len(x) == count and count > 1}


# LaTeX.


def to_latex(entries: Sequence[Entry]) -> str:
    """Format a table with a line for each label and a column for each environment.

    IQM and interval; the highest IQM of each column is bold.
    """
    labels = list(dict.fromkeys(entry.label for entry in entries))
    envs = list(dict.fromkeys(entry.env for entry in entries))
    cells = {(entry.label, entry.env): make_row(entry) for entry in entries}
    best = {
        env: max(
            (
                row["episode_return_iqm"]
                for (_, e), row in cells.items()
                if e == env and row["episode_return_iqm"] is not None
            ),
            default=None,
        )
        for env in envs
    }
    body = [
        [_tex(label), *[_tex_cell(cells.get((label, env)), best[env]) for env in envs]]
        for label in labels
    ]
    seeds = sorted({len(entry.finite_returns) for entry in entries})
    return _tabular(
        map(_tex, envs),
        body,
        f"Interquartile mean of greedy evaluation returns over {_range(seeds)} seeds,",
        f"with 95\\% bootstrap intervals{seeds_caveat(seeds)}; "
        f"made by jaxrl {jaxrl.__version__}.",
    )


def aggregates_to_latex(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of `aggregates` as a table."""
    best = {
        "iqm": max(row["score_iqm"] for row in rows),
        "gap": min(row["score_gap"] for row in rows),
    }
    body = [
        [_tex(row["label"])]
        + [
            _tex_number(
                row[f"score_{name}"],
                row[f"score_{name}_low"],
                row[f"score_{name}_high"],
                row[f"score_{name}"] == best[name],
                digits=2,
            )
            for name in best
        ]
        for row in rows
    ]
    return _tabular(
        ["IQM $\\uparrow$", "optimality gap $\\downarrow$"],
        body,
        f"Normalised scores over {rows[0]['environments']} environments, with 95\\%",
        f"stratified bootstrap intervals{seeds_caveat(row['seeds'] for row in rows)}; "
        f"made by jaxrl {jaxrl.__version__}.",
    )


def _tabular(heads: Iterable[str], body: Iterable[list[str]], *remarks: str) -> str:
    heads = list(heads)
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{tabular}{l" + "r" * len(heads) + "}",
        "\\toprule",
        " & ".join(["", *heads]) + " \\\\",
        "\\midrule",
        *[" & ".join(line) + " \\\\" for line in body],
        "\\bottomrule",
        "\\end{tabular}",
        *[f"% {remark}" for remark in remarks],
    ]
    return "\n".join(lines) + "\n"


def _range(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _tex_cell(row: dict[str, Any] | None, best: float | None) -> str:
    if row is None or row["episode_return_iqm"] is None:
        return "--"
    middle = row["episode_return_iqm"]
    return _tex_number(middle, row["ci95_low"], row["ci95_high"], middle == best)


def _tex_number(
    middle: float, low: float, high: float, is_best: bool, digits: int = 1
) -> str:
    number = f"{middle:.{digits}f}"
    if is_best:
        number = f"\\mathbf{{{number}}}"
    return f"${number}$ {{\\small $[{low:.{digits}f}, {high:.{digits}f}]$}}"


def _tex(text: str) -> str:
    special = {c: f"\\{c}" for c in "_%&#${}"}
    special |= {
        "\\": "\\textbackslash{}",
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
    }
    return "".join(special.get(character, character) for character in text)
