"""V of the uniform policy on the walk on [-3, 3]: regression on returns against TD(0).

    python -m benchmarks.values            # 30 seeds, about a quarter of an hour
    python -m benchmarks.values --quick    # a check; writes nothing

Each seed draws 1,000 trajectories, which all methods learn from, one trajectory a
gradient step, pass after pass. TD(1) regresses on the returns; TD(0) on r + V'(s'), where
V' is set to V after every 1, 10 or 100 trajectories. The reported number is the root of the
mean squared error to the exact V over 1,001 points of [-3, 3]: its IQM over seeds. Writes
results/values.json, which docs/td.md shows, and its figure.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import captions
from jaxrl import make
from jaxrl.algorithms import td
from jaxrl.envs.lecture import continuous_walk_values
from jaxrl.optim import linear_schedule
from jaxrl.plotting import COLOURS
from jaxrl.rollout import init_world, unroll
from jaxrl.runs.experiment import commit, versions
from jaxrl.statistics import bootstrap_interval, iqm
from jaxrl.types import Array, Transition

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "values.json"
LONGEST = 64
"""Maximum number of steps; V' bootstraps the few trajectories that are longer."""
POINTS = np.linspace(-3, 3, 1001)
EXACT = continuous_walk_values()(POINTS)

CONFIG = td.Config(
    num_envs=1,
    num_steps=LONGEST,
    whole_episodes=True,
    num_epochs=1,
    num_minibatches=1,
    learning_rate=1e-3,
    gamma=1.0,
)
METHODS = {
    "TD(1)": {"td_lambda": 1.0},
    "TD(0), V' set every trajectory": {"target_update_interval": 1},
    "TD(0), V' set every 10": {"target_update_interval": 10},
    "TD(0), V' set every 100": {"target_update_interval": 100},
}


class Size(NamedTuple):
    seeds: int
    trajectories: int
    passes: int


FULL, QUICK = Size(30, 1_000, 60), Size(2, 20, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a check; writes nothing")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    found: dict[str, Any] = {
        "command": "python -m benchmarks.values",
        "commit": commit(),
        "jax": versions()["jax"],
        "device": jax.devices()[0].platform,
        "seeds": size.seeds,
        "trajectories": size.trajectories,
        "passes": size.passes,
        "methods": {},
    }
    keys = jax.random.split(jax.random.key(0), size.seeds)
    data = jax.jit(jax.vmap(partial(trajectories, number=size.trajectories)))(keys)
    found["cut"] = cut_share(data)
    for name, changes in METHODS.items():
        begun = time.monotonic()
        learn = partial(learned, CONFIG.replace(**changes), passes=size.passes)
        value = np.asarray(jax.jit(jax.vmap(learn))(keys, data), float)
        found["methods"][name] = row = summary(value)
        print(
            f"{name:32} {row['rms']:.3f} [{row['interval'][0]:.3f}, "
            f"{row['interval'][1]:.3f}], {time.monotonic() - begun:.0f} s",
            flush=True,
        )
    if not arguments.quick:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        plot(found["methods"], ROOT / "docs" / "figures" / "td-values.png")


def trajectories(key: Array, number: int) -> Transition:
    """Episodes of a number of walks under uniform actions, `[LONGEST, number]`."""
    env = make("lecture/continuous-walk")
    agent = td.init(CONFIG, env, key).agent
    world = init_world(env, key, number)
    _, found, _ = unroll(env, partial(td.TD.act, CONFIG, env, agent), world, LONGEST)
    return found._replace(extras={})


def cut_share(data: Transition) -> float:
    """The share of trajectories that are longer than `LONGEST`."""
    return float(1 - data.terminated.any(axis=1).mean())


def learned(config: td.Config, key: Array, data: Transition, passes: int) -> Array:
    """V at the points after each pass over the trajectories: `[passes, points]`."""
    env = make("lecture/continuous-walk")
    number = data.reward.shape[1]
    points = jnp.asarray(POINTS, jnp.float32)[:, None]

    def one_pass(agent: td.Agent, index: Array) -> tuple[td.Agent, Array]:
        key_pass = jax.random.fold_in(key, index)
        order = jax.random.permutation(key_pass, number)
        share = (index + jnp.arange(number) / number) / passes
        rates = linear_schedule(config.learning_rate, 0.0, share)

        def one_trajectory(agent: td.Agent, which: tuple) -> tuple[td.Agent, None]:
            k, rate = which
            trajectory = jax.tree.map(lambda x: x[:, k][:, None], data)
            return td.update(config, env, agent, trajectory, key_pass, rate)[0], None

        agent, _ = jax.lax.scan(one_trajectory, agent, (order, rates))
        return agent, td.value_of(config, env, agent.params, points)

    agent = td.init(config, env, key).agent
    return jax.lax.scan(one_pass, agent, jnp.arange(passes))[1]


def summary(value: np.ndarray) -> dict[str, Any]:
    """Errors of V `[seeds, passes, points]` with their intervals, and one V to plot."""
    rms = np.sqrt(np.square(value - EXACT).mean(axis=2))
    low, high = bootstrap_interval(rms[:, -1])
    return {
        "rms": float(iqm(rms[:, -1])),
        "interval": [float(low), float(high)],
        "by_seed": [round(float(x), 4) for x in rms[:, -1]],
        "halfway": float(iqm(rms[:, rms.shape[1] // 2 - 1])),
        "curve": [round(float(x), 4) for x in iqm(rms, axis=0)],
        "value": [round(float(x), 3) for x in value[0, -1, ::20]],
    }


def table(found: dict[str, Any]) -> str:
    lines = [
        "| method | RMS error, IQM | 95 % interval | after half of the passes "
        "| error reduction against TD(1) |",
        "|---|---|---|---|---|",
    ]
    first = np.array(found["methods"]["TD(1)"]["by_seed"])
    for name, row in found["methods"].items():
        low, high = row["interval"]
        gain = first - np.array(row["by_seed"])  # on the same trajectories
        margin = 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))
        by = "-" if name == "TD(1)" else f"{gain.mean():.3f} ± {margin:.3f}"
        lines.append(
            f"| {name} | {row['rms']:.3f} | [{low:.3f}, {high:.3f}] | "
            f"{row['halfway']:.3f} | {by} |"
        )
    about = (
        f"{found['seeds']} seeds, {found['trajectories']:,} trajectories, "
        f"{found['passes']} passes. Exact values lie between {EXACT.min():.2f} and "
        f"{EXACT.max():.2f}. The last column is a mean over seeds with its 95 % "
        f"interval. {captions.device([found])}"
    )
    return "\n".join([*lines, "", about]) + "\n"


def plot(methods: dict[str, Any], path: Path) -> None:
    """Plot V of the first seed with the exact V, and the error after each pass."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    values, errors = figure.subplots(1, 2)
    values.plot(POINTS, EXACT, color="black", linewidth=2, label="exact")
    for colour, (name, row) in zip(COLOURS, methods.items(), strict=False):
        values.plot(POINTS[::20], row["value"], color=colour, label=name)
        curve = row["curve"]
        errors.plot(range(1, len(curve) + 1), curve, color=colour, label=name)
    values.set(xlabel="x", ylabel="V(x), one seed")
    errors.set(xlabel="passes over the trajectories", ylabel="RMS error", yscale="log")
    for axis in (values, errors):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
