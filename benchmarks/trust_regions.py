"""Comparison of four ways to limit the step of a policy.

    python -m benchmarks.trust_regions                       # 10 seeds
    python -m benchmarks.trust_regions --envs CartPole-v1    # the others are kept
    python -m benchmarks.trust_regions --quick --out DIR

Natural policy gradient, TRPO, PPO with an adaptive KL penalty and PPO with the clipped
ratio: the same networks, rollouts, estimators, reward scaling, value loss and number of
value fits, the same environment steps and seeds. Only the step of the policy differs.

The divergence of a step is measured in the same way for all: E[KL(π_old ‖ π)] in closed
form, on the states of a rollout of π_old that no update has used.

Writes benchmarks/results/trust_regions.json, which docs/trust-regions.md shows.
"""

import argparse
import json
import subprocess
import time
from datetime import date
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrl
from jaxrl import NATURAL_PG, PPO, TRPO, evaluate_population, make, statistics, unroll
from jaxrl.networks import policy_distribution
from jaxrl.types import Algorithm, mean

ROOT = Path(__file__).resolve().parent.parent
ENVS = ("CartPole-v1", "Acrobot-v1")
TOTAL_STEPS = 100_000.0

COMMON = {
    "total_steps": TOTAL_STEPS,
    "num_envs": 8,
    "num_steps": 128,
    "num_epochs": 4,
    "num_minibatches": 4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "hidden_sizes": (64, 64),
    "normalize_reward": True,
    "max_grad_norm": 0.5,
}
PPO_COMMON = {"learning_rate": 1e-3, "anneal_lr": False, "ent_coef": 0.0}
METHODS: dict[str, tuple[Algorithm, dict[str, Any]]] = {
    "natural_pg": (NATURAL_PG, {"learning_rate": 0.5, "vf_learning_rate": 1e-3}),
    "trpo": (TRPO, {"max_kl": 0.01, "learning_rate": 1e-3}),
    "ppo-kl": (PPO, PPO_COMMON | {"objective": "kl", "kl_penalty_target": 0.01}),
    "ppo-clip": (PPO, PPO_COMMON | {"objective": "clip", "clip_eps": 0.2}),
}
"""Config of each method where they differ. The value's step size is 1e-3 in all."""


def with_divergence(algorithm: Algorithm) -> Algorithm:
    """Wrap an algorithm to report the metric `update/kl` of each train step."""

    def train_step(config: Any, env: Any, state: Any) -> tuple[Any, dict]:
        def policy(obs: Any, memory: Any, key: Any) -> tuple:
            return algorithm.act(config, env, state.agent, obs, memory, key)

        # Another key than the train step's, so these are other states of π_old.
        world = state.world.replace(key=jax.random.fold_in(state.world.key, 1))
        _, trajectory, _ = unroll(env, policy, world, config.num_steps)
        obs = trajectory.obs.reshape(-1, *trajectory.obs.shape[2:])

        def pi_of(agent: Any) -> Any:
            key = state.world.key  # of no use to a greedy policy
            extras = algorithm.act(config, env, agent, obs, (), key, True)[2]
            return policy_distribution(env.action_space, extras["policy"])

        after, metrics = algorithm.train_step(config, env, state)
        kl = pi_of(state.agent).kl_divergence(pi_of(after.agent))
        return after, metrics | {"update/kl": mean(kl.mean())}

    return algorithm._replace(train_step=train_step)


def measure(method: str, env_id: str, num_seeds: int, total_steps: float) -> dict:
    """Train all seeds of one method on one environment."""
    algorithm, own = METHODS[method]
    fields = COMMON | own | {"total_steps": total_steps}
    config, env = algorithm.Config().replace(**fields), make(env_id)
    iterations = -(-int(total_steps) // (config.num_envs * config.num_steps))
    started = time.perf_counter()
    result = jaxrl.train(
        with_divergence(algorithm),
        config,
        env,
        num_seeds=num_seeds,
        num_chunks=iterations,  # a row for each train step
    )
    seconds = time.perf_counter() - started
    episodes = evaluate_population(
        algorithm, config, env, result.agent, jax.random.key(1), 128
    )
    by_seed = np.asarray(episodes.episode_return).mean(1)
    low, high = statistics.bootstrap_interval(by_seed)
    kl = np.array([row["update/kl"] for row in result.history], float)
    return {
        "by_seed": [round(float(x), 2) for x in by_seed],
        "iqm": round(float(statistics.iqm(by_seed)), 2),
        "ci95": [round(float(low), 2), round(float(high), 2)],
        "env_steps": result.history[-1]["env_steps"],
        "kl": {
            "mean": float(f"{kl.mean():.4g}"),
            **{str(q): float(f"{np.percentile(kl, q):.4g}") for q in (50, 95, 100)},
        },
        "seconds": round(seconds, 1),
    }


def table(results: dict[str, Any]) -> str:
    """A section for each environment, in Markdown."""
    lines: list[str] = []
    for env_id, measured in results.items():
        methods = measured["methods"]
        steps = next(iter(methods.values()))["env_steps"]
        lines += [
            f"## {env_id}",
            "",
            f"{steps:,} environment steps, {measured['seeds']} seeds.",
            "",
            "| method | IQM | 95 % interval | KL: mean | median | 95th percentile "
            "| largest |",
            "|---|---|---|---|---|---|---|",
        ]
        for method, r in methods.items():
            low, high = r["ci95"]
            kls = [f"{r['kl'][q]:.4f}" for q in ("mean", "50", "95", "100")]
            cells = [method, f"{r['iqm']:.2f}", f"[{low:.2f}, {high:.2f}]", *kls]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def commit() -> str:
    """Commit of the measurement, marked if the tree had changes."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--envs", nargs="+", default=ENVS, choices=ENVS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="2 seeds, a few seconds")
    parser.add_argument("--out", help="a folder for both files; needed with --quick")
    arguments = parser.parse_args()
    if arguments.quick and not arguments.out:
        parser.error("--quick needs --out, or it would overwrite the real results")
    seeds = 2 if arguments.quick else arguments.seeds
    total_steps = 3_000.0 if arguments.quick else TOTAL_STEPS
    path = Path(arguments.out or ROOT / "benchmarks" / "results") / "trust_regions.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for env_id in arguments.envs:
        methods = {}
        measured_at = commit()
        for method in METHODS:
            found = measure(method, env_id, seeds, total_steps)
            methods[method] = found
            print(env_id, method, found["iqm"], found["ci95"], found["kl"], flush=True)
        results[env_id] = {
            "command": f"python -m benchmarks.trust_regions --envs {env_id}",
            "commit": measured_at,
            "date": date.today().isoformat(),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "seeds": seeds,
            "methods": methods,
        }
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
