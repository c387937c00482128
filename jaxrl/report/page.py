"""The page of a report: a self-contained HTML file."""

import base64
import html
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxrl.core import files
from jaxrl.report.entries import Entry
from jaxrl.report.figures import Figure
from jaxrl.report.papers import bibtex
from jaxrl.report.tables import Reference, aggregates, make_row, references, to_latex
from jaxrl.statistics import (
    iqm,
    probability_of_improvement,
    seeds_caveat,
    stratified_interval,
)

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #1a1a1a; background: #fff; }
h1, h2 { line-height: 1.2; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.3rem 0.8rem; border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: 0.9rem; color: #444; }
code, pre { font-size: 0.85rem; background: #f5f5f5; }
pre { padding: 0.8rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.warning { border-left: 4px solid #D55E00; padding: 0.3rem 0.8rem; background: #fff4ec; }
"""


def make_page(
    entries: Sequence[Entry],
    figures: Sequence[Figure],
    warnings: Sequence[str],
    folders: Sequence[Path],
    out: Path,
    reference: Reference,
) -> str:
    """Make the page, which loads nothing from elsewhere."""
    command = shlex.join(["jaxrl", "report", *map(str, folders), "--out", str(out)])
    envs = ", ".join(dict.fromkeys(entry.env for entry in entries))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>jaxrl report: {html.escape(envs)}</title>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(envs)}</h1>",
        *[f'<p class="warning">{html.escape(line)}</p>' for line in warnings],
        "<h2>Results</h2>",
        "<p>Interquartile mean (IQM) of greedy evaluation returns over seeds, with 95 % "
        "bootstrap intervals.</p>",
        _html_table(entries),
        _compare_best(entries),
        _aggregates(entries, reference),
    ]
    for figure in figures:
        image = base64.b64encode(files.read_bytes(out / f"{figure.name}.png")).decode()
        parts += [
            f"<h2>{html.escape(figure.title)}</h2>",
            f'<figure><img alt="{html.escape(figure.title)}" '
            f'src="data:image/png;base64,{image}">',
            f"<figcaption>{html.escape(figure.caption)} Made by "
            f"<code>{html.escape(command)}</code> from the runs below."
            "</figcaption></figure>",
        ]
    parts += [
        "<h2>How it was made</h2>",
        _provenance(entries),
        "<h2>LaTeX</h2>",
        f"<pre>{html.escape(to_latex(entries))}</pre>",
        "<h2>BibTeX</h2>",
        f"<pre>{html.escape(bibtex({e.algorithm for e in entries}))}</pre>",
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _html_table(entries: Sequence[Entry]) -> str:
    heads = ("", "environment", "seeds", "steps", "IQM", "95 % interval of IQM", "mean")
    lines = ["".join(f"<th>{head}</th>" for head in heads)]
    rows = sorted(
        map(make_row, entries),
        key=lambda row: (
            row["env"],
            -(
                -np.inf
                if row["episode_return_iqm"] is None
                else row["episode_return_iqm"]
            ),
        ),
    )
    for row in rows:
        numbers = ["-"] * 3
        if row["episode_return_iqm"] is not None:
            numbers = [
                f"{row['episode_return_iqm']:.2f}",
                f"[{row['ci95_low']:.2f}, {row['ci95_high']:.2f}]",
                f"{row['episode_return_mean']:.2f}",
            ]
        seeds = f"{row['seeds']}" + f" ({row['broken']} broke)" * bool(row["broken"])
        numbers = [seeds, f"{row['env_steps']:,}", *numbers]
        lines.append(_cells([row["label"], row["env"]], numbers))
    return _table(lines)


def _aggregates(entries: Sequence[Entry], reference: Reference) -> str:
    """Make the table of all environments, if there are several."""
    rows = aggregates(entries, reference)
    if not rows:
        return ""
    limits = ", ".join(
        f"{env} {low:.4g} and {high:.4g}"
        for env, (low, high) in references(entries, reference).items()
    )
    heads = ("", "IQM", "95 % interval", "optimality gap", "95 % interval")
    lines = ["".join(f"<th>{head}</th>" for head in heads)]
    for row in rows:
        numbers = [
            text
            for name in ("iqm", "gap")
            for text in (
                f"{row[f'score_{name}']:.3f}",
                f"[{row[f'score_{name}_low']:.3f}, {row[f'score_{name}_high']:.3f}]",
            )
        ]
        lines.append(_cells([row["label"]], numbers))
    return (
        f"<h2>All environments</h2><p>Scores: 0 and 1 are, on {html.escape(limits)}. "
        f"Intervals: stratified bootstrap{seeds_caveat(row['seeds'] for row in rows)}. The "
        f"optimality gap is the shortfall from 1."
        f"</p>{_table(lines)}"
    )


def _cells(words: Sequence[str], numbers: Sequence[str]) -> str:
    cells = [f"<td>{html.escape(word)}</td>" for word in words]
    cells += [f'<td class="number">{html.escape(x)}</td>' for x in numbers]
    return "".join(cells)


def _table(lines: Sequence[str]) -> str:
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>{body}</table></div>'


def _compare_best(entries: Sequence[Entry]) -> str:
    """Compare the best two entries of each environment."""
    lines = []
    for env in dict.fromkeys(entry.env for entry in entries):
        here = [e for e in entries if e.env == env and e.finite_returns]
        if len(here) < 2:
            continue
        first, second = sorted(here, key=lambda e: -float(iqm(e.finite_returns)))[:2]
        x, y = [first.finite_returns], [second.finite_returns]
        low, high = stratified_interval(probability_of_improvement, x, y)
        lines.append(
            f"<li>{html.escape(env)}: a run of <em>{html.escape(first.label)}</em> is "
            f"better than one of <em>{html.escape(second.label)}</em> with probability "
            f"{probability_of_improvement(x, y):.2f}, 95 % interval [{low:.2f}, {high:.2f}]"
            f".</li>"
        )
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _provenance(entries: Sequence[Entry]) -> str:
    """List commands, versions and hardware of each source."""
    parts = []
    for source in dict.fromkeys(entry.source for entry in entries):
        entry = next(e for e in entries if e.source == source)
        summary = entry.summary
        # Runs of an older version do not name the hardware.
        hardware = summary.get("hardware", summary["device"])
        versions = ", ".join(f"{n} {v}" for n, v in summary["versions"].items())
        parts.append(
            f"<p><strong>{html.escape(str(source))}</strong>: "
            f"{html.escape(hardware)}, {summary['run_seconds']:,.0f} s of training and "
            f"{summary['compile_seconds']:,.0f} s of compiling; {html.escape(versions)}."
            f"</p><pre>{html.escape(entry.command)}</pre>"
        )
    return "\n".join(parts)
