"""Presets of the zoo against untuned agents.

    python -m benchmarks.zoo --runs DIR                 # about 20 minutes on two cores
    python -m benchmarks.zoo --runs DIR --names ppo-CartPole-v1
    python -m benchmarks.zoo --runs DIR --quick --out DIR2

*Untuned* has the sizes and lengths that the search was given, and the algorithm's defaults
for what was searched; seeds are the same. Run folders go to DIR, which may hold those of
an earlier call. Writes benchmarks/results/zoo.json (rows that are not run again are kept),
which docs/zoo.md shows, and its figure.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import captions
from jaxrl import plotting
from jaxrl.algorithms import ALGORITHMS
from jaxrl.core import config as configs
from jaxrl.pipelines import zoo
from jaxrl.runs import presets
from jaxrl.runs.experiment import Experiment, commit, finished_summary
from jaxrl.runs.loggers import read_metrics
from jaxrl.runs.session import run_experiment
from jaxrl.statistics import bootstrap_difference, row_of_seeds
from jaxrl.training import devices

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--names", nargs="+", default=presets.names())
    parser.add_argument("--runs", required=True, help="a folder for the runs")
    parser.add_argument("--quick", action="store_true", help="2 seeds")
    parser.add_argument("--out", help="a folder; by default benchmarks/results")
    arguments = parser.parse_args()
    if arguments.quick and not arguments.out:
        parser.error("--quick needs --out, or it would overwrite the real results")
    devices.use_compilation_cache()
    devices.use_all_cores()
    file = Path(arguments.out or ROOT / "benchmarks" / "results") / "zoo.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in arguments.names:
        seeds = 2 if arguments.quick else SEEDS
        rows[name] = measured(name, Path(arguments.runs), seeds)
        rows = {n: rows[n] for n in presets.names() if n in rows}
        file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(line(name, rows[name]), flush=True)
    if not arguments.out:
        draw(rows, ROOT / "docs" / "figures" / "zoo.png")


def measured(name: str, runs: Path, seeds: int) -> dict[str, Any]:
    """A row of `zoo.json`, with the untuned agents and the search."""
    quiet = {"progress": False, "report": lambda text: None}
    (row,) = zoo.build([name], runs / "zoo", num_seeds=seeds, **quiet).values()
    search = zoo.SEARCHES[name]
    return {
        **row,
        "untuned": untuned(search, runs / "untuned" / name, row["returns"], quiet),
        "search": {
            "command": f"jaxrl zoo {name} --tune",
            "trials": search.trials,
            "seeds": search.num_seeds,
            "first_seed": zoo.FIRST_SEED,
        },
        "commit": commit(),
    }


def untuned(
    search: zoo.Search, folder: Path, tuned: list[float], quiet: dict[str, Any]
) -> dict[str, Any]:
    """Returns of the same seeds without the preset, and the difference."""
    algorithm = ALGORITHMS[search.algorithm]
    config = configs.from_dict(algorithm.Config, dict(search.config))
    experiment = Experiment(algorithm, config, search.env, num_seeds=len(tuned))
    summary = finished_summary(folder) or run_experiment(experiment, folder, **quiet)[1]
    returns = summary["evaluation_by_member"]
    low, high = bootstrap_difference(tuned, returns)
    return {
        **row_of_seeds(returns),
        "returns": returns,
        "curve": plotting.summarize_curve(read_metrics(folder / "metrics.jsonl")),
        "difference_ci95": [float(low), float(high)],
    }


def line(name: str, row: dict[str, Any]) -> str:
    return (
        f"| {name} | {row['env_steps']:,} | {len(row['seeds'])} | {interval(row)} "
        f"| {interval(row['untuned'])} "
        f"| [{row['untuned']['difference_ci95'][0]:.2f}, "
        f"{row['untuned']['difference_ci95'][1]:.2f}] "
        f"| {row['run_seconds']:.0f} | `{row['sha256'][:12]}` |"
    )


def interval(row: dict[str, Any]) -> str:
    if row["episode_return_iqm"] is None:
        return "every seed broke"
    low, high = row["ci95_low"], row["ci95_high"]
    return f"{row['episode_return_iqm']:.2f} [{low:.2f}, {high:.2f}]"


def table(rows: dict[str, Any]) -> str:
    commits = {r["commit"] for r in rows.values()}
    lines = [
        "| preset | steps | seeds | return: IQM, 95 % interval | untuned | tuned less "
        "untuned, of means | seconds | SHA-256 |",
        "|---|---|---|---|---|---|---|---|",
        *(line(name, row) for name, row in rows.items()),
        "",
        "![Returns in training, tuned and untuned](figures/zoo.png)",
        "",
        f"`python -m benchmarks.zoo --runs DIR`. Commit {', '.join(sorted(commits))}. "
        f"{captions.device(rows.values())}",
    ]
    return "\n".join(lines) + "\n"


def draw(rows: dict[str, Any], path: Path) -> None:
    """Plot a panel for each preset: IQM of the training return and its interval."""
    from matplotlib.figure import Figure

    columns = 4
    height = 2.3 * -(-len(rows) // columns)
    figure = Figure(figsize=(11, height), layout="constrained")
    panels = figure.subplots(-(-len(rows) // columns), columns, squeeze=False).flat
    for axes, (name, row) in zip(panels, rows.items(), strict=False):
        sides = {"preset": row["curve"], "untuned": row["untuned"]["curve"]}
        for i, (label, curve) in enumerate(sides.items()):
            style = {"color": plotting.COLOURS[i], "linestyle": ("-", "--")[i]}
            steps = [x / 1e3 for x in curve["env_steps"]]
            axes.plot(steps, curve["iqm"], label=label, **style)
            axes.fill_between(
                steps, curve["low"], curve["high"], color=style["color"], alpha=0.2
            )
        axes.set_title(name, fontsize="small")
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize="x-small")
    panels_left = list(figure.axes)[len(rows) :]
    for axes in panels_left:
        axes.set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize="x-small")
    figure.supxlabel("thousand environment steps per seed", fontsize="small")
    figure.supylabel("return in training, IQM", fontsize="small")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
