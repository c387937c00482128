"""Hindsight: how many goals are reached, with it and without.

    python -m benchmarks.goals            # 10 seeds, minutes
    python -m benchmarks.goals --quick    # a check; writes nothing

Each row is one training of 10 agents, which are evaluated greedily with 128 episodes each.
A goal is reached where the return is more than that of a whole episode at -1 a step. Writes
results/goals.json, the table of docs/environments.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrl
from benchmarks import captions
from jaxrl.evaluation import evaluate_population
from jaxrl.runs.experiment import commit, versions
from jaxrl.statistics import bootstrap_interval, iqm
from jaxrl.training.loop import train

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "goals.json"


class Case(NamedTuple):
    """An algorithm on an environment with goals."""

    algorithm: str
    env: str
    config: dict[str, Any]


SMALL = {"hidden_sizes": (64, 64), "num_envs": 8, "train_frequency": 8}
CONTROL = SMALL | {"num_updates": 4, "gamma": 0.95, "total_steps": 40_000.0}
CASES = (
    Case(
        "dqn",
        "goal/bit-flip",
        SMALL
        | {"hidden_sizes": (256,), "num_updates": 4, "total_steps": 200_000.0}
        | {"buffer_size": 100_000, "learning_starts": 1_000, "batch_size": 128}
        | {"epsilon_end": 0.1, "exploration_fraction": 0.5, "gamma": 0.98}
        | {"target_update_interval": 8, "tau": 0.05, "learning_rate": 1e-3},
    ),
    *(Case(name, "goal/point-reach", CONTROL) for name in ("sac", "td3", "ddpg")),
)
STRATEGIES = ("none", "final", "future")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a check; writes nothing")
    parser.add_argument("--algorithms", nargs="+", default=[c.algorithm for c in CASES])
    arguments = parser.parse_args()
    origin = {"commit": commit(), "versions": versions()}
    origin["device"] = jax.devices()[0].device_kind
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for case in CASES:
        if case.algorithm not in arguments.algorithms:
            continue
        for strategy in STRATEGIES:
            seeds, iterations = (2, 2) if arguments.quick else (10, None)
            row = origin | measure(case, strategy, seeds, iterations)
            found[f"{case.algorithm} {strategy}"] = row
            print(case.algorithm, strategy, row["iqm"], row["ci95"], flush=True)
            if not arguments.quick:
                RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(
    case: Case, strategy: str, num_seeds: int, iterations: int | None
) -> dict[str, Any]:
    """Train and evaluate; return the share of goals that each seed reaches."""
    algorithm = jaxrl.ALGORITHMS[case.algorithm]
    config = algorithm.Config(**case.config, hindsight=strategy)
    env = jaxrl.make(case.env)
    result = train(algorithm, config, env, num_seeds=num_seeds, iterations=iterations)
    episodes = evaluate_population(
        algorithm, config, env, result.agent, jax.random.key(1)
    )
    reached = np.asarray(episodes.episode_return > -env.horizon).mean(1)
    low, high = bootstrap_interval(reached)
    return {
        "command": "python -m benchmarks.goals",
        "algorithm": case.algorithm,
        "env": case.env,
        "hindsight": strategy,
        "config": {**case.config, "hindsight": strategy},
        "by_seed": reached.tolist(),
        "iqm": float(iqm(reached)),
        "ci95": [float(low), float(high)],
        "return": float(iqm(np.asarray(episodes.episode_return).mean(1))),
        "run_seconds": result.run_seconds,
    }


def table(rows: dict[str, Any]) -> str:
    """The table of docs/environments.md."""
    lines = [
        "| environment | algorithm | steps | hindsight | goals reached | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        low, high = (100 * x for x in row["ci95"])
        lines.append(
            f"| `{row['env']}` | `{row['algorithm']}` | "
            f"{row['config']['total_steps']:,.0f} | {row['hindsight']} | "
            f"{100 * row['iqm']:.1f} % | [{low:.1f}, {high:.1f}] |"
        )
    first = next(iter(rows.values()))
    about = (
        f"`{first['command']}`: IQM over {len(first['by_seed'])} seeds of the share of 128 "
        f"goals that the greedy policy reaches. {captions.device(rows.values())}"
    )
    return "\n".join([*lines, "", about]) + "\n"


if __name__ == "__main__":
    main()
