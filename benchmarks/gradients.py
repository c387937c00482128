"""Bias and variance of one-episode policy gradients, for every weight of the score.

    python -m benchmarks.gradients                    # a few minutes on two cores
    python -m benchmarks.gradients --quick --out DIR

The problem is a corridor of 5 cells (`probe/shortest-path`): each step costs 1, and a
untrained policy takes 20 of them on average. Its model is known, so values
and gradient are exact. All weights are computed on the same episodes, by `score_weight` of
REINFORCE and of actor-critic. The same follows for a shorter and a longer corridor, and a
random model of three states of different value, any of which can be the initial state.

Without a model, the number of steps that a gradient of REINFORCE needs: trajectories of 300
steps of Pendulum under a new network, up to 300 of them, against the mean of 3,000.

Writes benchmarks/results/gradients.json, which docs/diagnostics.md shows, and
docs/figures/gradient-noise.png and gradient-steps.png.
"""

import argparse
import datetime
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import diagnostics, distributions, estimators, losses, make
from jaxrl.acting import action_noise
from jaxrl.algorithms import actor_critic, reinforce
from jaxrl.envs.tabular import tabular_env
from jaxrl.mdp import (
    MDP,
    action_values,
    expected_return,
    finite_mdp,
    policy_evaluation,
    uniform_policy,
)
from jaxrl.plotting import COLOURS
from jaxrl.rollout import init_world, unroll
from jaxrl.runs.experiment import commit, versions
from jaxrl.types import Array, Env, Transition

ROOT = Path(__file__).resolve().parent.parent
SIZES = (10, 100, 300, 1_000, 10_000, 100_000)
LENGTHS = {3: 100, 5: 250, 7: 600}
"""Cells, and the number of steps that fewer than one episode in a million exceeds."""

BOUND = 3.23
"""Significance threshold of a bias in standard errors: 99 % for 8 coordinates jointly."""

LENGTH = 300
"""Steps of a trajectory of Pendulum."""

TRAJECTORIES = (1, 3, 10, 33, 100, 300)

MAIN, RANDOM = "corridor of 5 cells", "random model"

Weight = Callable[[Transition, Array], Array]


class Problem(NamedTuple):
    """A problem with S non-terminal states; the last state of `mdp` is terminal."""

    env: Env
    mdp: MDP
    steps: int
    logits: Array  # [S, 2]: the policy is uniform
    value: Array  # [S], exact
    q: Array  # [S, 2], exact


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few episodes")
    parser.add_argument("--out", help="a folder for everything; needed with --quick")
    arguments = parser.parse_args()
    if arguments.quick and not arguments.out:
        parser.error("--quick needs --out, or it would overwrite the real results")
    sizes = SIZES[:2] if arguments.quick else SIZES
    problems = {f"corridor of {n} cells": corridor(n) for n in LENGTHS}
    problems[RANDOM] = random_model()
    results = {
        "command": "python -m benchmarks.gradients" + " --quick" * arguments.quick,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
        "sizes": sizes,
        "problems": {
            name: measure(problem, 2 * max(sizes) if name == MAIN else 20_000, sizes)
            for name, problem in problems.items()
            if name == MAIN or not arguments.quick
        },
        "pendulum": pendulum(TRAJECTORIES[:2] if arguments.quick else TRAJECTORIES),
    }
    out = Path(arguments.out) if arguments.out else ROOT / "benchmarks" / "results"
    figures = Path(arguments.out) if arguments.out else ROOT / "docs" / "figures"
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1)
    (out / "gradients.json").write_text(text + "\n", encoding="utf-8")
    plot(json.loads(text), figures / "gradient-noise.png")
    plot_pendulum(json.loads(text)["pendulum"], figures / "gradient-steps.png")
    print(table(json.loads(text)))


def corridor(length: int) -> Problem:
    env = make("probe/shortest-path", length=length, horizon=LENGTHS[length])
    goal = length - 1
    transition = np.zeros((length, 2, length))
    for cell in range(goal):
        transition[cell, 0, max(cell - 1, 0)] = 1.0
        transition[cell, 1, cell + 1] = 1.0
    mdp = finite_mdp(transition, -1.0, np.arange(length) == goal, start=0)
    return problem(env, mdp, LENGTHS[length])


def random_model() -> Problem:
    """A random MDP of three states; each step terminates with probability 0.35 to 0.5."""
    rng = np.random.default_rng(3)
    going = rng.dirichlet(np.ones(3), (3, 2)) * rng.uniform(0.5, 0.65, (3, 2, 1))
    transition = np.zeros((4, 2, 4))
    transition[:3, :, :3] = going
    transition[:3, :, 3] = 1.0 - going.sum(-1)
    reward = [[1.0, 2.0], [6.0, 4.0], [0.0, -1.0], [0.0, 0.0]]
    ends, start = np.arange(4) == 3, [0.5, 0.2, 0.3, 0.0]
    mdp = finite_mdp(transition, reward, ends, start, features=np.eye(4))
    env = tabular_env(mdp).replace(id="benchmark/random-model")
    return problem(env, mdp, steps=35)


def problem(env: Env, mdp: MDP, steps: int) -> Problem:
    value = policy_evaluation(mdp, uniform_policy(mdp), 1.0)
    q = action_values(mdp, value, 1.0)
    exact = (jnp.asarray(x[:-1], jnp.float32) for x in (value, q))
    return Problem(env, mdp, steps, jnp.zeros((mdp.num_states - 1, 2)), *exact)


def policy_of(logits: Array) -> Array:
    """Policy table `[S + 1, 2]`; the row of the terminal state is arbitrary."""
    return jax.nn.softmax(jnp.append(logits, jnp.zeros((1, 2)), axis=0))


def mean_return_of(problem: Problem) -> float:
    return expected_return(problem.mdp, uniform_policy(problem.mdp), 1.0)


def rung(problem: Problem, weighting: str, baseline: str, constant: float) -> Weight:
    """A weight of REINFORCE."""
    config = reinforce.Config(weighting=weighting, baseline=baseline, gamma=1.0)
    agent = reinforce.Agent((), (), average_return=jnp.float32(constant))

    def weight(t: Transition, reward_to_go: Array) -> Array:
        value = cell(t.obs) @ problem.value
        return reinforce.score_weight(config, agent, reward_to_go, value)

    return weight


def critic(problem: Problem, name: str, known: float = 1.0) -> Weight:
    """A weight of actor-critic; its critic is the exact one times `known`."""
    config = actor_critic.Config(weight=name, gamma=1.0)

    def weight(t: Transition, reward_to_go: Array) -> Array:
        value, following = (
            known * cell(x) @ problem.value for x in (t.obs, t.next_obs)
        )
        x = value
        if config.learns_q:
            x = estimators.action_value(known * cell(t.obs) @ problem.q, t.action)
        values = actor_critic.Values(x, following, value)
        return actor_critic.score_weight(config, t, values)

    return weight


def cell(obs: Array) -> Array:
    """One-hot of the cell, without the goal: `[..., S]`."""
    return obs[..., :-1]


def all_weights(problem: Problem) -> dict[str, Weight]:
    mean_return = mean_return_of(problem)
    best = {w: best_constant(problem, w) for w in ("return", "reward_to_go")}
    found = {}
    for weighting, name in (("return", "return"), ("reward_to_go", "reward-to-go")):
        of = partial(rung, problem, weighting)
        found[name] = of("none", 0.0)
        found[f"{name} - moving average"] = of("moving_average", mean_return)
        found[f"{name} - best constant"] = of("optimal", best[weighting])
        found[f"{name} - V"] = of("value", 0.0)
    found["Q"] = critic(problem, "q")
    found["Q - V"] = critic(problem, "q_minus_v")
    found["TD error"] = critic(problem, "td_error")
    found["GAE(0.95)"] = critic(problem, "gae")
    found["TD error, half of V learned"] = critic(problem, "td_error", 0.5)
    found["GAE(0.95), half of V learned"] = critic(problem, "gae", 0.5)
    return found


def best_constant(problem: Problem, weighting: str) -> float:
    """b*, from separate episodes."""
    weights = [
        rung(problem, weighting, "none", 0.0),
        rung(problem, weighting, "value", 0),
    ]
    weights[1] = lambda t, reward_to_go: jnp.ones_like(reward_to_go)
    keys = jax.random.split(jax.random.key(1), 10_000)
    weighted, score = samples(problem, weights, keys).transpose(1, 0, 2)
    return float(estimators.optimal_baseline(weighted, score))


def samples(problem: Problem, weights: list[Weight], keys: Array) -> Array:
    """The gradient of one episode for each key and weight, `[K, W, P]`."""

    def log_prob(logits: Array, t: Transition) -> Array:
        return distributions.categorical(cell(t.obs) @ logits).log_prob(t.action)

    def gradients(logits: Array, key: Array) -> Array:
        t, reward_to_go, mask = episode(problem, logits, key)
        found = jnp.stack([jnp.where(mask, w(t, reward_to_go), 0.0) for w in weights])

        def loss(logits: Array, weight: Array) -> Array:
            return losses.policy_gradient(log_prob(logits, t), weight).sum()

        return -jax.vmap(jax.grad(loss), in_axes=(None, 0))(logits, found)

    found = diagnostics.gradient_samples(gradients, problem.logits, keys, 1_000)
    return found.reshape(len(keys), len(weights), -1)


def episode(
    problem: Problem, logits: Array, key: Array
) -> tuple[Transition, Array, Array]:
    """One episode `[T, 1]`, its rewards-to-go, and the mask of its steps."""

    def policy(obs: Array, memory: Any, noise: Array) -> tuple:
        action = distributions.categorical(cell(obs) @ logits).from_noise(noise)
        return action, memory, {}

    env = problem.env
    noise = partial(action_noise, env.action_space)
    _, t, _ = unroll(env, policy, init_world(env, key, 1), problem.steps, noise)
    rewards = (t.reward, t.terminated, t.truncated)
    reward_to_go = estimators.discounted_returns(*rewards, 0.0, 1.0)
    done = t.terminated | t.truncated
    return t, reward_to_go, estimators.first_episode_mask(done)


def measure(problem: Problem, num_keys: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Measure every weight on one problem."""
    weights = all_weights(problem)
    exact = diagnostics.exact_gradient(policy_of, problem.logits, problem.mdp, 1.0)
    keys = jax.random.split(jax.random.key(0), num_keys)
    found = samples(problem, list(weights.values()), keys)
    sizes = tuple(n for n in sizes if n <= num_keys)
    rows = {}
    for i, name in enumerate(weights):

        def stored(shape: Array, index: Array, of: Array = found[:, i]) -> Array:
            return of[index].reshape(shape.shape)

        one = (stored, problem.logits, jnp.arange(num_keys))
        s = diagnostics.gradient_statistics(*one, exact, batch_size=10_000)
        n = diagnostics.gradient_noise(*one, sizes, exact, batch_size=10_000)
        rows[name] = {
            "variance": round(float(s.variance.sum()), 4),
            "signal_to_noise": round(float(s.signal_to_noise), 4),
            "misaligned": round(float(s.misaligned), 4),
            "bias": round(float(jnp.linalg.norm(s.bias) / jnp.linalg.norm(exact)), 4),
            "bias_in_standard_errors": round(
                float(jnp.abs(s.bias / s.standard_error).max()), 2
            ),
            "relative_error": [round(float(x), 4) for x in n.relative_error],
            "misaligned_means": [round(float(x), 4) for x in n.misaligned],
        }
        print(problem.env.id, name, rows[name], flush=True)
    return {
        "episodes": num_keys,
        "mean_return": round(mean_return_of(problem), 3),
        "rows": rows,
    }


def pendulum(sizes: tuple[int, ...]) -> dict[str, Any]:
    """Errors of averages over trajectories, and the policy's mean return."""
    env = make("Pendulum-v1", horizon=LENGTH)
    config = reinforce.Config(
        num_envs=1,
        num_steps=LENGTH,
        hidden_sizes=(32,),
        normalize_advantage=False,
    )
    agent = reinforce.init(config, env, jax.random.key(0)).agent
    keys = jax.random.split(jax.random.key(1), 10 * max(sizes))

    def trajectory(key: Array) -> tuple[Transition, Array]:
        world = init_world(env, key, 1)
        _, t, _ = reinforce.acts.unroll(config, env, agent, world, LENGTH)
        return t, reinforce.returns(config, env, agent, t)[0]

    returns = jax.jit(jax.vmap(lambda key: trajectory(key)[1][0, 0]))(keys)
    rows = {}
    for weighting in ("return", "reward_to_go"):
        for baseline in ("none", "moving_average"):
            of = config.replace(weighting=weighting, baseline=baseline)
            known = agent.replace(average_return=returns.mean())

            def gradient(params: Any, key: Array, of: Any = of, known: Any = known):
                t, gain = trajectory(key)
                mask = jnp.ones_like(t.terminated)
                return jax.grad(reinforce.loss, has_aux=True)(
                    params, of, env, known, t, (), gain, mask
                )[0]

            n = diagnostics.gradient_noise(gradient, agent.params, keys, sizes)
            name = weighting.replace("_", "-") + (
                " - mean" if baseline != "none" else ""
            )
            rows[name] = {
                "relative_error": [round(float(x), 4) for x in n.relative_error],
                "misaligned": [round(float(x), 4) for x in n.misaligned],
            }
            print("Pendulum", name, rows[name], flush=True)
    mean_return = round(float(returns.mean()), 1)
    steps = [LENGTH * n for n in sizes]
    return {"discounted_return": mean_return, "steps": steps, "rows": rows}


def plot_pendulum(results: dict[str, Any], path: Path) -> None:
    """Plot the relative error of a gradient against its number of steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, row) in zip(COLOURS, results["rows"].items(), strict=False):
        errors = row["relative_error"]
        axes.loglog(results["steps"], errors, marker=".", color=colour, label=name)
    axes.axhline(1.0, color="0.8", linewidth=1, zorder=0)
    axes.set(
        xlabel=f"steps, in trajectories of {LENGTH}",
        ylabel="error of the gradient / its length",
    )
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def plot(results: dict[str, Any], path: Path) -> None:
    """Plot the relative error of an average of n episodes, for each weight."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    rows = results["problems"][MAIN]["rows"]
    styles, colours = ["-", "--", ":"], colormaps["tab20"].colors
    for i, (name, row) in enumerate(rows.items()):
        errors = row["relative_error"]
        sizes = results["sizes"][: len(errors)]
        look = {"linestyle": styles[i % 3], "color": colours[i], "marker": "."}
        axes.loglog(sizes, errors, label=name, **look)
    axes.axhline(1.0, color="0.8", linewidth=1, zorder=0)
    axes.set(xlabel="episodes", ylabel="error of the gradient / its length")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)


def table(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    problems = results["problems"]
    main = problems[MAIN]
    heads = " | ".join(f"{n:,}" for n in results["sizes"])
    lines = [
        f"The {MAIN}, {main['episodes']:,} episodes. The last columns are the relative "
        "error",
        "of an average of so many episodes.",
        "",
        f"| weight | variance | signal-to-noise | more than 90° off | bias | {heads} |",
        "|---|---|---|---|---|" + "---|" * len(results["sizes"]),
    ]
    for name, row in main["rows"].items():
        bias = "-" if row["bias_in_standard_errors"] < BOUND else f"{row['bias']:.2f}"
        errors = " | ".join(f"{x:.3f}" for x in row["relative_error"])
        lines.append(
            f"| {name} | {row['variance']:.4g} | {row['signal_to_noise']:.3f} | "
            f"{row['misaligned']:.3f} | {bias} | {errors} |"
        )
    lines += ["", "Signal-to-noise of one episode on every problem:", ""]
    lines += [f"| weight | {' | '.join(problems)} |", "|---|" + "---|" * len(problems)]
    for name in main["rows"]:
        snr = (p["rows"][name]["signal_to_noise"] for p in problems.values())
        lines.append(f"| {name} | " + " | ".join(f"{x:.3f}" for x in snr) + " |")
    steps = " | ".join(f"{n:,}" for n in results["pendulum"]["steps"])
    lines += [
        "",
        f"Pendulum without a model, trajectories of {LENGTH} steps: the relative error of",
        "a gradient from so many steps, against the mean of ten times as many as the most.",
        "",
        f"| weight | {steps} |",
        "|---|" + "---|" * len(results["pendulum"]["steps"]),
    ]
    for name, row in results["pendulum"]["rows"].items():
        errors = " | ".join(f"{x:.2f}" for x in row["relative_error"])
        lines.append(f"| {name} | {errors} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
