"""One locomotion task of Brax: every algorithm at equal steps, and many environments at
equal time.

    python -m benchmarks.locomotion                    # 3 seeds; an hour on two cores
    python -m benchmarks.locomotion --rows sac brax    # those; the others are kept
    python -m benchmarks.locomotion --quick            # a check; writes nothing

Networks, batch, discount and ratio of updates are those of all rows with one environment,
that of Brax's own SAC among them. The rows "... wide" have the settings of FastTD3 and
FastSAC (Seo et al., 2025, arXiv:2505.22642) at the size of this machine, for about as long
as one seed of SAC with one environment. Agents are evaluated greedily, 16 episodes each.
Needs the extra `brax`. Writes results/locomotion.json and docs/figures/locomotion.png.
"""

import argparse
import functools
import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrl
from benchmarks import captions
from jaxrl import evaluate_population, statistics
from jaxrl.plotting import plot_learning_curves
from jaxrl.runs.experiment import commit, versions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "locomotion.json"
FIGURE = ROOT / "docs" / "figures" / "locomotion.png"
ENV, PARAMS = "brax/halfcheetah", {"backend": "spring"}
STEPS, SEEDS, EPISODES, POINTS = 100_000, 3, 16, 20


class Row(NamedTuple):
    """An algorithm, and how it differs from `NARROW`."""

    algorithm: str
    config: dict[str, Any]


NARROW = {
    "total_steps": float(STEPS),
    "gamma": 0.99,
    "learning_rate": 3e-4,
    "hidden_sizes": (128, 128),
    "buffer_size": 100_000,
    "learning_starts": 1_000,
}
WIDE = NARROW | {
    "num_envs": 256,
    "train_frequency": 256,
    "num_updates": 4,
    "batch_size": 2_048,
    "buffer_size": 500_000,
    "learning_starts": 2_560,
    "tau": 0.1,
    "normalize_obs": True,
    "total_steps": 1e6,
}
PPO = {
    "total_steps": float(STEPS),
    "num_envs": 16,
    "num_steps": 128,
    "gamma": 0.99,
    "hidden_sizes": (128, 128),
    "normalize_obs": True,
}
ROWS = {
    "sac": Row("sac", NARROW),
    "td3": Row("td3", NARROW),
    "crossq": Row("sac", NARROW | {"batch_norm": True, "policy_delay": 3}),
    "tqc": Row("sac", NARROW | {"num_quantiles": 25}),
    "ppo": Row("ppo", PPO),
    "sac wide": Row("sac", WIDE | {"num_quantiles": 25, "dropped_quantiles": 0}),
    "td3 wide": Row("td3", WIDE | {"noise_std": 0.01, "noise_std_last": 0.4}),
}
CURVE = ("env_steps", "rollout/episode_return")
PEER = "brax"
"""The row of Brax's own SAC."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", nargs="+", default=[*ROWS, PEER])
    parser.add_argument("--quick", action="store_true", help="a check; writes nothing")
    arguments = parser.parse_args()
    about: dict[str, Any] = {"command": "python -m benchmarks.locomotion"}
    about["commit"] = commit()
    about["versions"] = versions() | {"brax": metadata.version("brax")}
    about["cores"] = os.cpu_count()
    about["device"] = jax.devices()[0].device_kind
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in arguments.rows:
        measured = measure_peer if name == PEER else functools.partial(measure, name)
        row = about | {"env": ENV, "params": PARAMS} | measured(arguments.quick)
        found[name] = row
        print(name, row["iqm"], row["ci95"], row["seconds_per_seed"], flush=True)
        if not arguments.quick:
            RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            draw(found)


def measure(name: str, quick: bool) -> dict[str, Any]:
    """Train the seeds of a row together, and evaluate them."""
    row = ROWS[name]
    algorithm = jaxrl.ALGORITHMS[row.algorithm]
    config, env = algorithm.Config(**row.config), jaxrl.make(ENV, **PARAMS)
    result = jaxrl.train(
        algorithm,
        config,
        env,
        num_seeds=2 if quick else SEEDS,
        num_chunks=POINTS,
        iterations=2 if quick else None,
    )
    episodes = evaluate_population(
        algorithm, config, env, result.agent, jax.random.key(1), EPISODES
    )
    curve = [{name: chunk[name] for name in CURVE} for chunk in result.history]
    returns = np.asarray(episodes.episode_return).mean(1)
    seconds = result.run_seconds / len(returns)
    return summary(returns, curve, result.env_steps, seconds) | {
        "algorithm": row.algorithm,
        "config": row.config,
    }


def measure_peer(quick: bool) -> dict[str, Any]:
    """The same of Brax's own SAC, one seed after the other."""
    from brax import envs
    from brax.training.agents.sac import networks, train

    count, steps = (2, 2_000) if quick else (SEEDS, STEPS)
    began = time.perf_counter()
    curves: list[dict[int, float]] = [{} for _ in range(count)]
    for seed, curve in enumerate(curves):
        train.train(
            environment=envs.get_environment(ENV.partition("/")[2], **PARAMS),
            num_timesteps=steps,
            episode_length=1_000,
            num_envs=1,
            num_eval_envs=EPISODES,
            num_evals=5,
            learning_rate=NARROW["learning_rate"],
            discounting=NARROW["gamma"],
            min_replay_size=NARROW["learning_starts"],
            max_replay_size=NARROW["buffer_size"],
            deterministic_eval=True,
            network_factory=functools.partial(
                networks.make_sac_networks, hidden_layer_sizes=NARROW["hidden_sizes"]
            ),
            seed=seed,
            progress_fn=functools.partial(note, curve),
        )
    seconds = (time.perf_counter() - began) / count
    each = [{CURVE[0]: n, CURVE[1]: [c[n] for c in curves]} for n in curves[0]]
    returns = np.array(each[-1][CURVE[1]])
    return summary(returns, each, steps, seconds) | {
        "algorithm": "Brax's SAC",
        "config": {},
    }


def note(curve: dict[int, float], env_steps: int, found: dict[str, Any]) -> None:
    """What Brax calls with the result of an evaluation."""
    curve[int(env_steps)] = float(found["eval/episode_reward"])


def summary(
    returns: np.ndarray, curve: list[dict], env_steps: int, seconds: float
) -> dict[str, Any]:
    """What is kept of a row; `returns` are those of the seeds."""
    low, high = statistics.bootstrap_interval(returns)
    return {
        "env_steps": env_steps,
        "by_seed": [round(float(x), 1) for x in returns],
        "iqm": round(float(statistics.iqm(returns)), 1),
        "ci95": [round(float(low), 1), round(float(high), 1)],
        "curve": curve,
        "seconds_per_seed": round(seconds, 1),
    }


def draw(found: dict[str, Any]) -> None:
    """The curves of all rows."""
    plot_learning_curves(
        {k: row["curve"] for k, row in found.items()}, FIGURE, title=ENV
    )


def table(rows: dict[str, Any]) -> str:
    """The table of its results."""
    lines = [
        "| row | environments | steps | return | 95 % interval | seconds a seed |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        low, high = row["ci95"]
        lines.append(
            f"| {name} | {row['config'].get('num_envs', 1):,} | {row['env_steps']:,} | "
            f"{row['iqm']:,.0f} | [{low:,.0f}, {high:,.0f}] | "
            f"{row['seconds_per_seed']:,.0f} |"
        )
    last = list(rows.values())[-1]
    about = (
        f"`{last['command']}`: greedy returns of `{last['env']}`, backend "
        f"{last['params']['backend']}, IQM over {len(last['by_seed'])} seeds. "
        f"{captions.device(rows.values())}"
    )
    return "\n".join([*lines, "", about]) + "\n"


if __name__ == "__main__":
    main()
