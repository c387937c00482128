"""Scorecard: every algorithm against published results.

    python -m benchmarks.scorecard                    # all rows, 10 seeds
    python -m benchmarks.scorecard --rows cartpole    # those whose name contains it
    python -m benchmarks.scorecard --quick            # tiny, for CI; use another --out

Each row is one `jaxrl train` command. The results go to benchmarks/results/scorecard.json
(rows that are not run again are kept), which docs/scorecard.md and the pages of the
algorithms show, the learning curves to docs/figures/; with --out DIR all of them into DIR.

Verdicts compare the 95 % bootstrap interval of the IQM over seeds with the published
value: *beaten* when the low end passes it, *reproduced* when the interval meets it plus
or minus its published spread, *short* otherwise. "Bar met" is this project's own bar: the
IQM reaches it and the low end is within 5 % of it.
"""

import argparse
import contextlib
import datetime
import io
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import captions
from jaxrl import cli, plotting
from jaxrl.runs import loggers

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = "benchmarks/configs"


@dataclass(frozen=True)
class Row:
    """One line of the scorecard."""

    name: str
    algorithm: str
    arguments: str
    """Arguments of `jaxrl train ALGO`. CartPole rows use the defaults."""
    published: float | None
    source: str
    spread: float = 0.0
    bar: float | None = None
    note: str = ""


CLEANRL = "CleanRL docs, 3 seeds, 500k steps"
BLINES = "gymnax-blines, 1 seed"
ZOO = "SB3 RL Zoo, 1 model, 100k steps"
ZOO_20K = "SB3 RL Zoo, 1 model, 20k steps"
SMALL = "layers of 64 units, an eighth of the work of the published run's"

ROWS = (
    Row(
        "cartpole-ppo",
        "ppo",
        "--env CartPole-v1",
        490.04,
        CLEANRL,
        spread=6.12,
        bar=490,
    ),
    Row(
        "cartpole-reinforce",
        "reinforce",
        "--env CartPole-v1",
        483.31,
        "SLM-Lab v5, 4 sessions, 200k frames",
        bar=475,
        note="the published number is after 200k steps, ours after 500k",
    ),
    Row(
        "cartpole-actor-critic",
        "actor_critic",
        "--env CartPole-v1",
        None,
        "no number is published for a Q-actor-critic",
        bar=475,
    ),
    Row(
        "cartpole-a2c",
        "a2c",
        "--env CartPole-v1",
        496.68,
        "SLM-Lab v5, A2C with GAE, 4 sessions, 200k frames",
        bar=496,
        note="the published number is after 200k steps, ours after 500k; SB3's zoo has "
        "500 after 500k",
    ),
    Row(
        "cartpole-trpo",
        "trpo",
        "--env CartPole-v1",
        500.0,
        ZOO,
        bar=495,
    ),
    Row(
        "cartpole-sarsa",
        "sarsa",
        "--env CartPole-v1",
        430.95,
        "SLM-Lab v5, SARSA, 4 sessions, 200k frames",
        bar=431,
    ),
    Row(
        "cartpole-q-learning",
        "q_learning",
        "--env CartPole-v1",
        None,
        "no number is published without replay and target network",
    ),
    Row(
        "cartpole-dqn",
        "dqn",
        "--env CartPole-v1",
        488.69,
        CLEANRL,
        spread=16.11,
        bar=489,
    ),
    Row(
        "acrobot-ppo",
        "ppo",
        f"--config {CONFIGS}/acrobot-ppo.toml",
        -86.36,
        CLEANRL,
        spread=1.32,
        bar=-86.4,
    ),
    Row(
        "acrobot-trpo",
        "trpo",
        f"--config {CONFIGS}/acrobot-trpo.toml",
        -83.1,
        ZOO,
        bar=-86,
    ),
    Row(
        "acrobot-dqn",
        "dqn",
        f"--config {CONFIGS}/acrobot-dqn.toml",
        -91.54,
        CLEANRL,
        spread=7.20,
        bar=-91.5,
    ),
    Row(
        "pendulum-ppo",
        "ppo",
        f"--config {CONFIGS}/pendulum-ppo.toml",
        -195.1,
        BLINES + ", 1M steps",
        bar=-200,
    ),
    Row(
        "pendulum-trpo",
        "trpo",
        f"--config {CONFIGS}/pendulum-trpo.toml",
        -174.6,
        ZOO,
        bar=-200,
    ),
    Row(
        "pendulum-sac",
        "sac",
        "--env Pendulum-v1 --hidden-sizes 64,64",
        -157.0,
        ZOO_20K,
        bar=-160,
        note=SMALL,
    ),
    Row(
        "pendulum-td3",
        "td3",
        "--env Pendulum-v1 --hidden-sizes 64,64",
        -151.9,
        ZOO_20K,
        bar=-160,
        note=SMALL,
    ),
    Row(
        "pendulum-ddpg",
        "ddpg",
        "--env Pendulum-v1 --hidden-sizes 64,64",
        -152.1,
        ZOO_20K,
        bar=-170,
        note=SMALL,
    ),
    Row(
        "cartpole-sac",
        "sac",
        f"--config {CONFIGS}/cartpole-sac.toml",
        None,
        "no table is published; 500 is the most",
        bar=475,
    ),
    Row(
        "pendulum-sac-droq",
        "sac",
        f"--config {CONFIGS}/pendulum-sac-droq.toml",
        None,
        "no table is published; the bar of SAC",
        bar=-160,
        note="a quarter of the steps, five updates each",
    ),
    Row(
        "mountain-car-continuous-sac",
        "sac",
        f"--config {CONFIGS}/mountain-car-continuous-sac.toml",
        94.7,
        "SB3 RL Zoo, 1 model, 50k steps",
        bar=93,
    ),
    Row(
        "mountain-car-continuous-ppo",
        "ppo",
        "--env MountainCarContinuous-v0 --total-steps 1000000",
        -0.1,
        BLINES + ", 1M steps",
        note="control: the published failure of untuned PPO",
    ),
    Row(
        "catch-dqn",
        "dqn",
        f"--config {CONFIGS}/catch-dqn.toml",
        1.0,
        "the optimum; gymnax-blines' PPO reaches it",
        bar=0.95,
    ),
    Row(
        "catch-ppo",
        "ppo",
        f"--config {CONFIGS}/catch-ppo.toml",
        1.0,
        BLINES + ", 96k steps",
        bar=0.95,
    ),
    Row(
        "memory-chain-ppo-gru",
        "ppo",
        f"--config {CONFIGS}/memory-chain-ppo-gru.toml",
        1.0,
        "the optimum",
        bar=0.9,
    ),
    Row(
        "memory-chain-ppo-lstm",
        "ppo",
        f"--config {CONFIGS}/memory-chain-ppo-lstm.toml",
        1.0,
        "the optimum",
        bar=0.9,
    ),
    Row(
        "memory-chain-ppo-transformer",
        "ppo",
        f"--config {CONFIGS}/memory-chain-ppo-transformer.toml",
        1.0,
        "the optimum",
        bar=0.9,
    ),
    Row(
        "memory-chain-ppo-mlp",
        "ppo",
        f"--config {CONFIGS}/memory-chain-ppo-mlp.toml",
        0.0,
        BLINES + "; what guessing gives",
        note="control: no memory",
    ),
    Row(
        "breakout-ppo",
        "ppo",
        f"--config {CONFIGS}/breakout-ppo.toml",
        None,
        "no table is published at 1M steps",
    ),
    Row(
        "mountain-car-ppo",
        "ppo",
        f"--config {CONFIGS}/mountain-car-ppo.toml",
        -200.0,
        CLEANRL,
        note="control: the published failure of untuned PPO",
    ),
    Row(
        "mountain-car-trpo",
        "trpo",
        f"--config {CONFIGS}/mountain-car-trpo.toml",
        -107.3,
        ZOO,
        bar=-120,
        note="observations are standardised, as in the published run",
    ),
)


def main() -> None:
    arguments = parse_arguments()
    rows = [r for r in ROWS if any(part in r.name for part in arguments.rows)]
    if not rows:
        raise SystemExit(
            f"no row has {arguments.rows} in its name: {[r.name for r in ROWS]}"
        )
    path, figures = places(arguments.out)
    measured = {"commit": commit(), "date": datetime.date.today().isoformat()}
    os.chdir(ROOT)  # where the rows' config files are found
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for row in rows:
        print(f"== {row.name}", flush=True)
        result = run(row, arguments, figures / f"{row.name}.png") | measured
        results[row.name] = result
        print(f"   IQM {result['iqm']:.2f} {result['ci95']}: {result['verdict']}")
        results = {r.name: results[r.name] for r in ROWS if r.name in results}
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


def places(out: str | None) -> tuple[Path, Path]:
    """JSON file and folder of figures."""
    results = Path(out).resolve() if out else ROOT / "benchmarks" / "results"
    docs = Path(out).resolve() if out else ROOT / "docs"
    for folder in (results, docs / "figures"):
        folder.mkdir(parents=True, exist_ok=True)
    return results / "scorecard.json", docs / "figures"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", default=[""], help="parts of row names")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--quick", action="store_true", help="2 seeds, a few seconds")
    parser.add_argument("--out", help="a folder for everything; needed with --quick")
    arguments = parser.parse_args()
    if arguments.quick and not arguments.out:
        parser.error("--quick needs --out, or it would overwrite the real results")
    return arguments


def run(row: Row, arguments: argparse.Namespace, figure: Path) -> dict[str, Any]:
    """Train one row; return its entry of the JSON."""
    seeds = 2 if arguments.quick else arguments.seeds
    command = ["train", row.algorithm, *row.arguments.split()]
    command += ["--seed", str(arguments.seed), "--num-seeds", str(seeds)]
    if arguments.quick:
        command += ["--stop-iterations", "3", "--evaluation-episodes", "4"]
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            code = cli.main([*command, "--out", folder, "--quiet"])
        if code:
            raise SystemExit(f"`jaxrl {' '.join(command)}` ended with exit code {code}")
        summary = json.loads(
            (Path(folder) / "summary.json").read_text(encoding="utf-8")
        )
        rows = loggers.read_metrics(Path(folder) / "metrics.jsonl")
    plotting.plot_learning_curves({row.algorithm: rows}, figure, title=summary["env"])
    evaluation = summary["evaluation"]
    low, high = evaluation["episode_return_ci95"]
    return {
        "command": f"jaxrl {' '.join(command)}",
        "env": summary["env"],
        "algorithm": row.algorithm,
        "env_steps": summary["env_steps"],
        "seeds": evaluation["seeds"],
        "episodes": evaluation["episodes"],
        "mean": evaluation["episode_return_mean"],
        "iqm": evaluation["episode_return_iqm"],
        "ci95": [low, high],
        "by_seed": [round(x, 3) for x in summary["evaluation_by_member"]],
        "published": row.published,
        "published_spread": row.spread,
        "source": row.source,
        "verdict": verdict(row, low, high),
        "bar": row.bar,
        "bar_met": bar_met(row, evaluation["episode_return_iqm"], low),
        "note": row.note,
        "run_seconds": summary["run_seconds"],
        "compile_seconds": summary["compile_seconds"],
        "device": summary["device"],
        "versions": summary["versions"],
        "curve": plotting.summarize_curve(rows),
    }


def verdict(row: Row, low: float, high: float) -> str:
    if row.published is None:
        return "no published number"
    if low > row.published:
        return "beaten"
    meets = low <= row.published + row.spread and high >= row.published - row.spread
    return "reproduced" if meets else "short"


def bar_met(row: Row, iqm: float, low: float) -> bool | None:
    if row.bar is None:
        return None
    return iqm >= row.bar and low >= row.bar - 0.05 * abs(row.bar)


def commit() -> str:
    """Commit of the measurement, marked if the tree had changes."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    return done.stdout.strip() or "unknown"


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The scorecard, by the name ""; an algorithm's rows and curves, by its name."""
    found = {"": table(results)}
    for algorithm in dict.fromkeys(r["algorithm"] for r in results.values()):
        rows = {name: r for name, r in results.items() if r["algorithm"] == algorithm}
        curves = [f"![{name}](figures/{name}.png)" for name in rows]
        found[algorithm] = "\n".join([*lines(rows), "", *curves, ""])
    return found


def table(results: dict[str, Any]) -> str:
    """The scorecard in Markdown."""
    notes = [f"- {name}: {r['note']}." for name, r in results.items() if r["note"]]
    where = captions.device(results.values())
    return "\n".join([*lines(results), "", *notes, "", where, ""])


def lines(results: dict[str, Any]) -> list[str]:
    """The rows as lines of a Markdown table."""
    return [
        "| row | environment | algorithm | steps | seeds | mean | IQM | 95 % interval "
        "| published | source | verdict | bar | met |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(table_row(name, r) for name, r in results.items()),
    ]


def table_row(name: str, r: dict[str, Any]) -> str:
    published = "-"
    if r["published"] is not None:
        published = f"{r['published']:g}"
        published += f" ± {r['published_spread']:g}" if r["published_spread"] else ""
    bar = "-" if r["bar"] is None else f"{r['bar']:g}"
    met = {True: "yes", False: "no", None: "-"}[r["bar_met"]]
    low, high = r["ci95"]
    cells = (
        name,
        r["env"],
        r["algorithm"],
        f"{r['env_steps']:,}",
        str(len(r["seeds"])),
        f"{r['mean']:.2f}",
        f"{r['iqm']:.2f}",
        f"[{low:.2f}, {high:.2f}]",
        published,
        r["source"],
        r["verdict"],
        bar,
        met,
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
