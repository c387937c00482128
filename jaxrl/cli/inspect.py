"""Commands that look at runs: evaluate, collect, render, plot and report."""

import json
from pathlib import Path
from typing import Any, Literal

import click

from jaxrl.cli.running import (
    AGENT,
    ALGORITHM,
    ENV,
    EPISODE_SEED,
    JSON,
    NETWORK,
    STOCHASTIC,
    cut_in_words,
    echo,
    print_evaluation,
)


@click.command()
@click.argument("run", type=click.Path())
@click.option("--episodes", type=int, default=128, help="Episodes for each seed.")
@EPISODE_SEED
@STOCHASTIC
@ENV
@ALGORITHM
@NETWORK
@click.option(
    "--gymnasium", metavar="ID", help="In this environment of Gymnasium instead."
)
@JSON
def evaluate(
    run: str,
    episodes: int,
    seed: int,
    stochastic: bool,
    env: str | None,
    gymnasium: str | None,
    as_json: bool,
) -> None:
    """Evaluate the agents of a run folder."""
    from jaxrl.core.config import check_value
    from jaxrl.runs.artifact import check_acts, load_agents
    from jaxrl.runs.session import evaluate_agents
    from jaxrl.training.devices import use_compilation_cache
    from jaxrl.training.loop import check_seeds

    check_value("episodes", int, episodes, low=1)
    check_seeds(seed, 1)
    use_compilation_cache()
    agents = load_agents(run, env)
    if gymnasium is None:
        evaluation, _ = evaluate_agents(agents, episodes, seed, not stochastic)
    else:
        from jaxrl.interop.evaluation import evaluate_on_gymnasium

        check_acts(agents, run)
        evaluation = evaluate_on_gymnasium(
            agents, gymnasium, episodes, seed, not stochastic
        )
    print_evaluation(evaluation, as_json)


@click.command()
@click.argument("run", type=click.Path())
@click.option("--episodes", type=int, required=True, help="Whole episodes.")
@click.option("--out", required=True, type=click.Path(), help="New folder.")
@EPISODE_SEED
@STOCHASTIC
@AGENT
@ENV
@ALGORITHM
@NETWORK
@JSON
def collect(run: str, out: str, stochastic: bool, as_json: bool, **choice: Any) -> None:
    """Record whole episodes of an agent as a dataset."""
    from jaxrl.runs.collect import collect as record
    from jaxrl.training.devices import use_compilation_cache

    use_compilation_cache()
    about = record(run, out, choice.pop("episodes"), greedy=not stochastic, **choice)
    stderr = about["return_stderr"]
    error = "" if stderr is None else f" ± {stderr:.2f} (standard error)"
    echo(
        f"{about['policy']['algorithm']} on {about['env']}: {about['episodes']:,} "
        f"episodes, {about['steps']:,} steps, return {about['return_mean']:.2f}{error}"
    )
    for line in cut_in_words(about):
        echo(line)
    echo(out)
    if as_json:
        echo(json.dumps(about))


@click.command()
@click.argument("run", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="GIF, MP4 or PNG file.")
@click.option("--episodes", type=int, default=1, help="Whole episodes.")
@EPISODE_SEED
@STOCHASTIC
@AGENT
@click.option("--max-steps", type=int, help="Maximum steps of an episode.")
@click.option("--fps", type=int, help="Steps shown per second.")
@click.option("--size", type=int, default=256, help="Height in pixels.")
@click.option("--overlay", is_flag=True, help="Draw actions and value beside it.")
@ENV
@ALGORITHM
@NETWORK
def render(run: str, out: str, stochastic: bool, **choice: Any) -> None:
    """Draw episodes of an agent as GIF, MP4 or PNG filmstrip."""
    from jaxrl.rendering import render as draw
    from jaxrl.training.devices import use_compilation_cache

    use_compilation_cache()
    for k, episode in enumerate(draw(run, out, greedy=not stochastic, **choice)):
        echo(
            f"episode {k}: return {episode.reward.sum():.2f}, "
            f"{len(episode.reward):,} steps, {episode.end}"
        )
    echo(out)


KINDS = (
    *("curves", "efficiency", "aggregates", "intervals", "profile"),
    *("slices", "heatmap"),
)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@ALGORITHM
@NETWORK
@click.option("--out", required=True, type=click.Path(), help="PNG, PDF or SVG file.")
@click.option("--kind", default="curves", show_default=True, help=", ".join(KINDS))
@click.option("--metric", default="rollout/episode_return", show_default=True)
def plot(runs: tuple[str, ...], out: str, kind: str, metric: str) -> None:
    """Plot one or more run folders, or sweeps."""
    from jaxrl.core import files
    from jaxrl.core.config import check_value
    from jaxrl.errors import InvalidInput

    if Path(out).suffix not in (".png", ".pdf", ".svg"):
        raise InvalidInput(f"out = {out!r} must end in .png, .pdf or .svg.")
    check_value("kind", Literal[KINDS], kind)
    try:
        if kind == "curves":
            _plot_curves(runs, Path(out), metric)
        else:
            from jaxrl.report.figures import plot_results

            plot_results(runs, Path(out), kind, metric)
    except OSError as error:
        files.refuse(error, f"out = {out!r} cannot be written ({error}).")
    echo(out)


def _plot_curves(runs: tuple[str, ...], out: Path, metric: str) -> None:
    """Plot the learning curves, also of runs that are not finished."""
    from jaxrl.plotting import plot_learning_curves
    from jaxrl.report.entries import check_metric, read_entries
    from jaxrl.sweeps.training import is_sweep

    names = [Path(run).name or run for run in runs]
    labels = [n if names.count(n) == 1 else r for n, r in zip(names, runs, strict=True)]
    curves: dict[str, list[dict[str, Any]]] = {}
    for label, run in zip(labels, runs, strict=True):
        if is_sweep(run):
            entries = read_entries(Path(run))
            check_metric(entries, metric)
            curves |= {f"{e.label} ({label})": e.rows for e in entries}
        else:
            curves[label] = _read_run(run, metric)
    plot_learning_curves(curves, out, metric)


def _read_run(run: str, metric: str) -> list[dict[str, Any]]:
    """Read the rows of a run folder, which must have this metric."""
    from jaxrl.errors import InvalidInput, did_you_mean
    from jaxrl.runs.experiment import read_rows

    try:
        rows = read_rows(Path(run))
    except InvalidInput as error:
        raise InvalidInput(
            f"RUN = {run!r} holds no readable metrics.jsonl ({error})."
        ) from error
    if not rows:
        raise InvalidInput(f"RUN = {run!r} holds no metrics yet: its file is empty.")
    if metric not in rows[0]:
        raise InvalidInput(
            f"metric = {metric!r} is not in {run}{did_you_mean(metric, rows[0])}."
        )
    return rows


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@ALGORITHM
@NETWORK
@click.option(
    "--out", type=click.Path(), help="Folder.  [default: the first RUN's report/]"
)
@click.option(
    "--reference",
    multiple=True,
    metavar="ENV=LOW:HIGH",
    help="Returns that count as 0 and 1 where several environments are aggregated.  "
    "[default: the lowest and highest of these runs]",
)
def report(runs: tuple[str, ...], out: str | None, reference: tuple[str, ...]) -> None:
    """Write tables, figures and citations of finished runs.

    Of sweeps too. A self-contained web page, CSV, a LaTeX table, BibTeX, and the figures.
    """
    from jaxrl.cli.options import read_reference
    from jaxrl.report import write_report

    folder = Path(out) if out else Path(runs[0]) / "report"
    for line in write_report(runs, folder, dict(map(read_reference, reference))):
        echo(f"note: {line}")
    for name in ("report.html", "table.tex", "results.csv", "jaxrl.bib"):
        echo(folder / name)
