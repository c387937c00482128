"""What a paper needs of some runs: `jaxrl report RUN... --out DIR`.

DIR/report.html   one page that holds all below, figures and provenance included
DIR/results.csv   a line for each algorithm or setting on each environment
DIR/seeds.csv     a line for each agent
DIR/table.tex     the table, for LaTeX with booktabs
DIR/jaxrl.bib     what to cite
DIR/*.png, *.pdf  the figures
"""

import base64
import csv
import html
import io
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import jaxrl
from jaxrl import loggers, plotting, storage
from jaxrl.errors import counted, did_you_mean
from jaxrl.experiment import finished_summary, named_env, read_experiment
from jaxrl.flags import sweep_command, train_command
from jaxrl.runner import Row
from jaxrl.statistics import (
    bootstrap_interval,
    iqm,
    probability_of_improvement,
    stratified_interval,
)
from jaxrl.sweeps import results
from jaxrl.sweeps.plan import read_sweep
from jaxrl.sweeps.training import CONFIRM, is_sweep
from jaxrl.types import InvalidInput

PAPERS = {
    "reinforce": """@article{williams1992simple,
  title   = {Simple Statistical Gradient-Following Algorithms for Connectionist
             Reinforcement Learning},
  author  = {Williams, Ronald J.},
  journal = {Machine Learning},
  volume  = {8},
  pages   = {229--256},
  year    = {1992}
}""",
    "ppo": """@article{schulman2017proximal,
  title   = {Proximal Policy Optimization Algorithms},
  author  = {Schulman, John and Wolski, Filip and Dhariwal, Prafulla and Radford, Alec
             and Klimov, Oleg},
  journal = {arXiv preprint arXiv:1707.06347},
  year    = {2017}
}""",
    "natural_pg": """@inproceedings{kakade2001natural,
  title     = {A Natural Policy Gradient},
  author    = {Kakade, Sham M.},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {14},
  year      = {2001}
}""",
    "trpo": """@inproceedings{schulman2015trust,
  title     = {Trust Region Policy Optimization},
  author    = {Schulman, John and Levine, Sergey and Abbeel, Pieter and Jordan, Michael
               and Moritz, Philipp},
  booktitle = {International Conference on Machine Learning},
  pages     = {1889--1897},
  year      = {2015}
}""",
    "dqn": """@article{mnih2015human,
  title   = {Human-level control through deep reinforcement learning},
  author  = {Mnih, Volodymyr and Kavukcuoglu, Koray and Silver, David and others},
  journal = {Nature},
  volume  = {518},
  pages   = {529--533},
  year    = {2015}
}""",
}
"""What to cite for each algorithm."""

STATISTICS = """@inproceedings{agarwal2021deep,
  title     = {Deep Reinforcement Learning at the Edge of the Statistical Precipice},
  author    = {Agarwal, Rishabh and Schwarzer, Max and Castro, Pablo Samuel and
               Courville, Aaron and Bellemare, Marc G.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}"""


@dataclass(frozen=True)
class Entry:
    """One line of the table: an algorithm or a setting on an environment."""

    label: str
    algorithm: str
    env: str
    seeds: list[int]
    returns: list[float | None]  # mean evaluation return of each seed; None: broken
    rows: list[Row]
    env_steps: int
    command: str
    source: Path
    summary: dict[str, Any]

    @property
    def whole(self) -> list[float]:
        return [x for x in self.returns if x is not None]


def write_report(runs: Sequence[Path | str], out: Path | str) -> list[str]:
    """Reads finished runs and sweeps, and writes tables, figures and page.

    Args:
      runs: folders of `jaxrl train` and `jaxrl sweep`.
      out: a folder; what a report has written there before is replaced.

    Returns:
      Warnings, for a person: what of it a paper should not say.

    Raises:
      InvalidInput: a folder holds no finished run.
    """
    folders = [Path(run) for run in runs]
    entries = _all_entries(folders)
    warnings = [line for folder in folders for line in _warnings(folder)]
    warnings += _uneven(entries)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"out = {str(out)!r} cannot be a folder ({error})."
        ) from error
    figures = _draw(entries, folders, out)
    storage.write_text(out / "results.csv", _results_csv(entries))
    storage.write_text(out / "seeds.csv", _seeds_csv(entries))
    storage.write_text(out / "table.tex", latex(entries))
    storage.write_text(out / "jaxrl.bib", bibtex({e.algorithm for e in entries}))
    page = _page(entries, figures, warnings, folders, out)
    storage.write_text(out / "report.html", page)
    return warnings


def _all_entries(folders: Sequence[Path]) -> list[Entry]:
    """The lines of all folders; no two of an environment have the same label."""
    entries = [entry for folder in folders for entry in read_entries(folder)]
    return [replace(entry, label=_unique(entry, entries)) for entry in entries]


def check_metric(entries: Sequence[Entry], metric: str) -> None:
    for entry in entries:
        if entry.rows and metric not in entry.rows[0]:
            raise InvalidInput(
                f"metric = {metric!r} is not in {entry.source}"
                f"{did_you_mean(metric, entry.rows[0])}."
            )


def read_entries(folder: Path) -> list[Entry]:
    """The lines of a run folder, which is one, or of a sweep, which are its settings.

    Raises:
      InvalidInput: it is no finished run.
    """
    if is_sweep(folder):
        return _sweep_entries(folder)
    env = named_env(folder / "config.json")
    summary = finished_summary(folder)
    if summary is None:
        raise InvalidInput(f"RUN = {str(folder)!r} is not finished: jaxrl resume it.")
    experiment = read_experiment(folder, env)
    rows = _metrics(folder)
    return [
        Entry(
            label=experiment.algorithm.name,
            algorithm=experiment.algorithm.name,
            env=experiment.env,
            seeds=summary["seeds"],
            returns=summary["evaluation_by_member"],
            rows=rows,
            env_steps=summary["env_steps"],
            command=train_command(experiment),
            source=folder,
            summary=summary,
        )
    ]


def _sweep_entries(folder: Path) -> list[Entry]:
    sweep = read_sweep(folder, named_env(folder / "sweep.json"))
    summary = finished_summary(folder)
    name = sweep.experiment.algorithm.name
    entries = [
        Entry(
            label=f"{name}, {results.setting_in_words(trial.own)}",
            algorithm=name,
            env=sweep.experiment.env,
            seeds=trial.seeds,
            returns=trial.returns,
            rows=results.trial_rows(trial),
            env_steps=trial.env_steps,
            command=sweep_command(sweep),
            source=folder,
            summary=summary or {},
        )
        for trial in results.read_trials(folder)
    ]
    if finished_summary(folder / CONFIRM) is not None:
        (fresh,) = read_entries(folder / CONFIRM)
        best = results.best_trial(results.read_trials(folder))
        words = f"{name}, {results.setting_in_words(best.own)}, fresh seeds"
        entries.append(Entry(**vars(fresh) | {"label": words}))
    return entries


def _metrics(folder: Path) -> list[Row]:
    try:
        return loggers.read_metrics(folder / "metrics.jsonl")
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"RUN = {str(folder)!r} holds no readable metrics.jsonl ({error})."
        ) from error


def plot_results(runs: Sequence[Path | str], out: Path, kind: str, metric: str) -> None:
    """One figure of finished runs and sweeps.

    Args:
      runs: folders.
      out: a PNG, PDF or SVG file.
      kind: "efficiency", "intervals" or "profile"; of one sweep "slices" or "heatmap".
      metric: of "efficiency".

    Raises:
      InvalidInput: a folder is not what the figure is of.
    """
    if kind in ("slices", "heatmap"):
        if len(runs) != 1 or not is_sweep(runs[0]):
            raise InvalidInput(f"kind = {kind!r} is a figure of one sweep: give one.")
        _plot_sweep(Path(runs[0]), out, kind)
        return
    entries = _all_entries(list(map(Path, runs)))
    if kind == "efficiency":
        check_metric(entries, metric)
        by_label: dict[str, dict[str, list[Row]]] = {}
        for entry in entries:
            by_label.setdefault(entry.label, {})[entry.env] = entry.rows
        plotting.plot_efficiency(by_label, out, metric)
        return
    envs = sorted({entry.env for entry in entries})
    if len(envs) > 1:
        raise InvalidInput(
            f"kind = {kind!r} compares runs on one environment, these are on "
            f"{', '.join(envs)}: try kind = 'efficiency'."
        )
    scores = {e.label: e.whole for e in entries if e.whole}
    draw = {"intervals": plotting.plot_intervals, "profile": plotting.plot_profiles}
    draw[kind](scores, out, envs[0])


def _plot_sweep(folder: Path, out: Path, kind: str) -> None:
    sweep = read_sweep(folder, named_env(folder / "sweep.json"))
    table = [(t.own, t.whole) for t in results.read_trials(folder) if t.whole]
    title = f"{sweep.experiment.algorithm.name} on {sweep.experiment.env}"
    names = list(sweep.space)
    if not table:
        raise InvalidInput(f"{str(folder)!r}: every agent broke, nothing to draw.")
    if kind == "slices":
        plotting.plot_slices(table, names, out, title)
        return
    if len(names) != 2:
        raise InvalidInput(
            f"kind = 'heatmap' is of two hyper-parameters, {str(folder)!r} swept "
            f"{len(names)}: try kind = 'slices'."
        )
    x, y = names
    plotting.plot_heatmap(table, x, y, out, title)


# What a reader should know.


def _warnings(folder: Path) -> list[str]:
    if not is_sweep(folder) or (folder / CONFIRM).exists():
        return []
    return [
        f"{folder}: the best setting was chosen by the same seeds that are reported, so "
        f"its return is flattering: jaxrl sweep --confirm-seeds N gives it fresh ones."
    ]


def _uneven(entries: Sequence[Entry]) -> list[str]:
    """Comparisons that are not fair, or rest on too little."""
    found = []
    for env in dict.fromkeys(entry.env for entry in entries):
        here = [entry for entry in entries if entry.env == env and entry.whole]
        steps = {entry.env_steps for entry in here}
        if steps and max(steps) > 1.1 * min(steps):
            found.append(
                f"{env}: the runs have {min(steps):,} to {max(steps):,} environment steps."
            )
    few = [entry.label for entry in entries if len(entry.whole) < 5]
    if few:
        found.append(
            f"{counted(len(few), 'line')} of the table with fewer than five seeds: the "
            f"intervals say little."
        )
    broken = [e for e in entries if len(e.whole) < len(e.returns)]
    for entry in broken:
        lost = len(entry.returns) - len(entry.whole)
        found.append(
            f"{entry.label} on {entry.env}: {lost} of {len(entry.returns)} seeds broke "
            f"(NaN or infinite) and are not in its interval."
        )
    return found


# Tables.


def row_of(entry: Entry) -> dict[str, Any]:
    """A line of the table: IQM over seeds, 95 % bootstrap interval."""
    whole = entry.whole
    low, high = bootstrap_interval(whole) if whole else (None, None)
    return {
        "algorithm": entry.algorithm,
        "label": entry.label,
        "env": entry.env,
        "env_steps": entry.env_steps,
        "seeds": len(entry.returns),
        "broken": len(entry.returns) - len(whole),
        "episode_return_iqm": float(iqm(whole)) if whole else None,
        "ci95_low": None if low is None else float(low),
        "ci95_high": None if high is None else float(high),
        "episode_return_mean": float(np.mean(whole)) if whole else None,
        "episode_return_std": float(np.std(whole, ddof=1)) if len(whole) > 1 else None,
    }


def _results_csv(entries: Sequence[Entry]) -> str:
    return _csv([row_of(entry) for entry in entries])


def _seeds_csv(entries: Sequence[Entry]) -> str:
    return _csv(
        [
            {"label": e.label, "env": e.env, "seed": seed, "episode_return": value}
            for e in entries
            for seed, value in zip(e.seeds, e.returns, strict=True)
        ]
    )


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def latex(entries: Sequence[Entry]) -> str:
    """A table with a line for each label and a column for each environment.

    IQM and interval; the highest IQM of each column is bold.
    """
    labels = list(dict.fromkeys(entry.label for entry in entries))
    envs = list(dict.fromkeys(entry.env for entry in entries))
    cells = {(entry.label, entry.env): row_of(entry) for entry in entries}
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
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{tabular}{l" + "r" * len(envs) + "}",
        "\\toprule",
        " & ".join(["", *map(_tex, envs)]) + " \\\\",
        "\\midrule",
    ]
    for label in labels:
        line = [_tex(label)]
        for env in envs:
            line.append(_tex_cell(cells.get((label, env)), best[env]))
        lines.append(" & ".join(line) + " \\\\")
    seeds = sorted({len(entry.returns) for entry in entries})
    lines += [
        "\\bottomrule",
        "\\end{tabular}",
        f"% Interquartile mean of greedy evaluation returns over {_range(seeds)} seeds,",
        "% with 95\\% bootstrap intervals; made by jaxrl " + jaxrl.__version__ + ".",
    ]
    return "\n".join(lines) + "\n"


def _range(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _tex_cell(row: dict[str, Any] | None, best: float | None) -> str:
    if row is None or row["episode_return_iqm"] is None:
        return "--"
    number = f"{row['episode_return_iqm']:.1f}"
    if row["episode_return_iqm"] == best:
        number = f"\\mathbf{{{number}}}"
    return f"${number}$ {{\\small $[{row['ci95_low']:.1f}, {row['ci95_high']:.1f}]$}}"


def _tex(text: str) -> str:
    special = {c: f"\\{c}" for c in "_%&#${}"}
    special |= {
        "\\": "\\textbackslash{}",
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
    }
    return "".join(special.get(character, character) for character in text)


def bibtex(algorithms: set[str]) -> str:
    """This library, the algorithms' papers, and that of the statistics."""
    own = f"""@software{{jaxrl,
  author  = {{{{The jaxrl developers}}}},
  title   = {{jaxrl: whole reinforcement-learning experiments as pure JAX functions}},
  year    = {{2026}},
  version = {{{jaxrl.__version__}}}
}}"""
    papers = [PAPERS[name] for name in sorted(algorithms) if name in PAPERS]
    return "\n\n".join([own, *papers, STATISTICS]) + "\n"


# Figures.


@dataclass(frozen=True)
class Figure:
    name: str  # of the files, without the ending
    title: str
    caption: str


MOST_PROFILES = len(plotting.COLOURS)


def _draw(entries: list[Entry], folders: Sequence[Path], out: Path) -> list[Figure]:
    """Every figure as PNG and PDF."""
    figures: list[Figure] = []
    for env in dict.fromkeys(entry.env for entry in entries):
        here = [entry for entry in entries if entry.env == env and entry.whole]
        figures += _draw_environment(env, here, out)
    for folder in folders:
        if is_sweep(folder):
            figures += _draw_sweep(folder, out, len(figures))
    return figures


def _draw_environment(env: str, entries: list[Entry], out: Path) -> list[Figure]:
    """Learning curves and, of several entries, their returns."""
    if not entries:
        return []
    ranked = sorted(entries, key=lambda e: float(iqm(e.whole)), reverse=True)
    best = ranked[: results.MAX_CURVES]
    name = _file_name(env)
    curves = {e.label: e.rows for e in best}
    learning = Figure(
        f"learning_curves_{name}",
        f"Learning curves on {env}",
        "Training return against environment steps: IQM over seeds, 95 % bootstrap "
        f"interval.{_only(len(best), len(entries))}",
    )
    _save(learning, out, plotting.plot_learning_curves, curves, title=env)
    if len(entries) == 1:
        return [learning]
    scores = {e.label: e.whole for e in best}
    intervals = Figure(
        f"intervals_{name}",
        f"Returns on {env}",
        "Greedy evaluation: IQM over seeds, 95 % bootstrap interval, and every seed."
        f"{_only(len(best), len(entries))}",
    )
    _save(intervals, out, plotting.plot_intervals, scores, title=env)
    few = dict(list(scores.items())[:MOST_PROFILES])
    profiles = Figure(
        f"profile_{name}",
        f"Performance profile on {env}",
        "Share of seeds whose return is above a threshold, with 95 % pointwise "
        f"intervals.{_only(len(few), len(entries))}",
    )
    _save(profiles, out, plotting.plot_profiles, few, title=env)
    return [learning, intervals, profiles]


def _draw_sweep(folder: Path, out: Path, number: int) -> list[Figure]:
    """The return against what was swept; the number keeps several sweeps apart."""
    sweep = read_sweep(folder, named_env(folder / "sweep.json"))
    table = [(t.own, t.whole) for t in results.read_trials(folder) if t.whole]
    title = f"{sweep.experiment.algorithm.name} on {sweep.experiment.env}"
    names, name = list(sweep.space), f"{_file_name(folder.name)}_{number}"
    if not table:
        return []
    slices = Figure(
        f"slices_{name}",
        f"What was swept: {', '.join(names)}",
        "A point is a setting: IQM over its seeds, 95 % bootstrap interval. The line is "
        "the IQM of all seeds that share a value.",
    )
    _save(slices, out, plotting.plot_slices, table, names=names, title=title)
    if len(names) != 2:
        return [slices]
    heatmap = Figure(
        f"heatmap_{name}",
        f"{names[0]} against {names[1]}",
        "IQM of the return over all seeds.",
    )
    x, y = names
    _save(heatmap, out, plotting.plot_heatmap, table, x=x, y=y, title=title)
    return [slices, heatmap]


def _save(figure: Figure, out: Path, draw: Callable, data: Any, **options: Any) -> None:
    for ending in ("png", "pdf"):
        draw(data, out=out / f"{figure.name}.{ending}", **options)


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text)


def _unique(entry: Entry, others: Sequence[Entry]) -> str:
    """The label; with the folder, and a number, where several have the same."""
    same = [e for e in others if (e.label, e.env) == (entry.label, entry.env)]
    if len(same) == 1:
        return entry.label
    inside = [e for e in same if e.source == entry.source]
    number = f" #{inside.index(entry) + 1}" if len(inside) > 1 else ""
    return f"{entry.label} ({entry.source}{number})"


def _only(shown: int, all_: int) -> str:
    return "" if shown == all_ else f" The best {shown} of {all_}."


# The page.

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


def _page(
    entries: Sequence[Entry],
    figures: Sequence[Figure],
    warnings: Sequence[str],
    folders: Sequence[Path],
    out: Path,
) -> str:
    """The whole page; it loads nothing from anywhere."""
    own = shlex.join(["jaxrl", "report", *map(str, folders), "--out", str(out)])
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
    ]
    parts += [_better(entries)]
    for figure in figures:
        image = base64.b64encode((out / f"{figure.name}.png").read_bytes()).decode()
        parts += [
            f"<h2>{html.escape(figure.title)}</h2>",
            f'<figure><img alt="{html.escape(figure.title)}" '
            f'src="data:image/png;base64,{image}">',
            f"<figcaption>{html.escape(figure.caption)} Made by "
            f"<code>{html.escape(own)}</code> from the runs below.</figcaption></figure>",
        ]
    parts += [
        "<h2>How it was made</h2>",
        _provenance(entries),
        "<h2>LaTeX</h2>",
        f"<pre>{html.escape(latex(entries))}</pre>",
        "<h2>BibTeX</h2>",
        f"<pre>{html.escape(bibtex({e.algorithm for e in entries}))}</pre>",
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _html_table(entries: Sequence[Entry]) -> str:
    heads = ("", "environment", "seeds", "steps", "IQM", "95 % interval", "mean")
    lines = ["".join(f"<th>{head}</th>" for head in heads)]
    rows = sorted(
        map(row_of, entries),
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
        words = [row["label"], row["env"]]
        cells = [f"<td>{html.escape(word)}</td>" for word in words]
        cells += [
            f'<td class="number">{html.escape(x)}</td>'
            for x in (seeds, f"{row['env_steps']:,}", *numbers)
        ]
        lines.append("".join(cells))
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>{body}</table></div>'


def _better(entries: Sequence[Entry]) -> str:
    """How sure the first of each environment is better than the second."""
    lines = []
    for env in dict.fromkeys(entry.env for entry in entries):
        here = [e for e in entries if e.env == env and e.whole]
        if len(here) < 2:
            continue
        first, second = sorted(here, key=lambda e: -float(iqm(e.whole)))[:2]
        x, y = [first.whole], [second.whole]
        low, high = stratified_interval(probability_of_improvement, x, y)
        lines.append(
            f"<li>{html.escape(env)}: a run of <em>{html.escape(first.label)}</em> is "
            f"better than one of <em>{html.escape(second.label)}</em> with probability "
            f"{probability_of_improvement(x, y):.2f}, 95 % interval [{low:.2f}, {high:.2f}]"
            f".</li>"
        )
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _provenance(entries: Sequence[Entry]) -> str:
    """Commands, versions and hardware of each source."""
    parts = []
    for source in dict.fromkeys(entry.source for entry in entries):
        entry = next(e for e in entries if e.source == source)
        summary = entry.summary
        versions = ", ".join(f"{n} {v}" for n, v in summary["versions"].items())
        parts.append(
            f"<p><strong>{html.escape(str(source))}</strong>: {summary['device']} "
            f"({summary['platform']}), {summary['run_seconds']:,.0f} s of training and "
            f"{summary['compile_seconds']:,.0f} s of compiling; {html.escape(versions)}."
            f"</p><pre>{html.escape(entry.command)}</pre>"
        )
    return "\n".join(parts)
