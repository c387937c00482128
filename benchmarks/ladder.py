"""Classical methods against the published results of the textbook.

    python -m benchmarks.ladder                      # all rows, minutes
    python -m benchmarks.ladder --rows cliff         # the rows whose name begins with it
    python -m benchmarks.ladder --quick              # few runs, writes nothing

Prediction on random walks, Boyan's chain and Baird's counterexample; control on cliff
walking, mountain car and the short corridor. Step sizes of the 19-state walk are chosen on
one set of runs and reported on another. Writes results/ladder.json, the table of
docs/tabular.md and its figures. S&B is Sutton and Barto (2018), 2nd edition; numbers marked
"read off" are from its figures, which print no table; where a computation of the protocol
by independent code was available, that is the reference.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import captions
from jaxrl import make
from jaxrl.envs.lecture import BAIRD_BEHAVIOUR, BAIRD_WEIGHTS, mdp_of
from jaxrl.mdp import expected_return, finite_mdp, policy_evaluation, value_iteration
from jaxrl.networks.tiles import tile_features, tiling
from jaxrl.plotting import COLOURS
from jaxrl.runs.experiment import commit, versions
from jaxrl.tabular import prediction
from jaxrl.tabular.control import greedy_episode, reinforce_episode, td_control_episode

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "ladder.json"
Found = dict[str, Any]
"""name -> a row, or "curves" -> the data of a figure."""


class Size(NamedTuple):
    runs: int
    sweep_runs: int
    episodes: float = 1.0  # share of the episodes of control


FULL, QUICK = Size(400, 60), Size(8, 4, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", default="", help="only what begins with this")
    parser.add_argument("--quick", action="store_true", help="a check; writes nothing")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    origin = about()  # before the results change, or the commit would be marked
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    found = {"rows": kept.get("rows", {}), "curves": kept.get("curves", {})}
    for name, part in PARTS.items():
        if not name.startswith(arguments.rows):
            continue
        begun = time.monotonic()
        rows, curves = part(size)
        found["rows"] |= {row: origin | value for row, value in rows.items()}
        found["curves"] |= curves
        ours = {row for row in found["rows"] if row.startswith(name)}
        for old in ours - set(rows):
            del found["rows"][old]
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
        for row, value in rows.items():
            print(f"  {row:32} {shown(value)}", flush=True)
        if not arguments.quick:
            # In the order of the parts, whatever was run first.
            found["rows"] = dict(sorted(found["rows"].items(), key=place))
            RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not arguments.quick:
        plot(found["curves"], ROOT / "docs" / "figures")


def about() -> Found:
    return {
        "command": "python -m benchmarks.ladder",
        "commit": commit(),
        "jax": versions().get("jax"),
        "device": jax.devices()[0].platform,
    }


def place(row: tuple[str, Any]) -> int:
    return next(i for i, name in enumerate(PARTS) if row[0].startswith(name))


def measured(
    by_run: Any,
    what: str,
    settings: str,
    seed: int,
    target: float | None = None,
    within: float | None = None,
    source: str = "",
    note: str = "",
) -> Found:
    """A row of results: the mean over runs, with its 95 % interval."""
    x = np.asarray(by_run, float)
    margin = 1.96 * x.std(ddof=1) / np.sqrt(len(x))
    mean = float(x.mean())
    met = None if target is None or within is None else abs(mean - target) <= within
    return {
        "what": what,
        "settings": settings,
        "seed": seed,
        "runs": len(x),
        "mean": mean,
        "interval": [mean - margin, mean + margin],
        "target": target,
        "within": within,
        "source": source,
        "met": met,
        "note": note,
    }


# Prediction on the walk of 19 states

ALPHAS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12, 0.15, 0.18, 0.2, 0.25)
ALPHAS += (0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FIRST_EPISODES, LONGEST = 10, 1_200

td_lambda = partial(prediction.td_lambda, gamma=1.0)
TD_LAMBDA = {0.0: 0.346, 0.4: 0.273, 0.8: 0.258, 0.9: 0.289, 1.0: 0.496}
N_STEP = {1: 0.347, 2: None, 4: 0.267, 8: 0.283, 16: 0.313}


class Method(NamedTuple):
    update: prediction.Update
    target: float | None
    source: str
    bar: float | None = 0.01


def walk_methods() -> dict[str, Method]:
    book = "protocol of S&B figure 12.6, a separate computation of 200 runs"
    methods = {
        f"walk19 TD({lam:g})": Method(partial(td_lambda, lam=lam), target, book)
        for lam, target in TD_LAMBDA.items()
    }
    for lam in (0.4, 0.8, 0.9):
        online = partial(td_lambda, lam=lam, trace="true_online")
        target = 0.255 if lam == 0.8 else None
        source = "S&B figure 12.8, read off" if target else ""
        methods[f"walk19 true online TD({lam:g})"] = Method(online, target, source)
    for lam in (0.0, 0.4, 0.8, 0.9, 1.0):
        forward = partial(prediction.lambda_return, gamma=1.0, lam=lam)
        methods[f"walk19 λ-return({lam:g})"] = Method(forward, None, "")
    for n, target in N_STEP.items():
        update = partial(prediction.n_step_td, gamma=1.0, n=n)
        source = "S&B figure 7.2, read off" if target else ""
        bar = 0.01 if n in (1, 4) else None
        methods[f"walk19 n-step({n})"] = Method(update, target, source, bar)
    return methods


def walk_19(size: Size) -> tuple[Found, Found]:
    """RMS error over the states, averaged over the first 10 episodes, at the best α."""
    sweep_data, data = walks(1, size.sweep_runs), walks(2, size.runs)
    rows, curves = {}, {}
    for name, method in walk_methods().items():
        by_alpha = np.asarray(walk_errors(method.update, sweep_data, ALPHAS)).mean(1)
        curves[name] = {"alpha": ALPHAS, "rms": by_alpha.tolist()}
        alpha = ALPHAS[int(np.nanargmin(by_alpha))]
        rows[name] = measured(
            walk_errors(method.update, data, [alpha])[0],
            "RMS error, first 10 episodes",
            f"α = {alpha:g}, the best of {len(ALPHAS)} on other runs",
            2,
            method.target,
            method.bar,
            method.source,
        )
    return rows, curves


def walks(seed: int, runs: int) -> Any:
    """Steps `[runs, 10, T]`."""
    env = make("lecture/random-walk-19")
    draw = partial(prediction.episodes, env, prediction.uniform(env))
    number = runs * FIRST_EPISODES
    draw = partial(draw, num_episodes=number, num_steps=LONGEST)
    steps = jax.jit(draw)(jax.random.key(seed))
    shape = (runs, FIRST_EPISODES)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), steps)


def walk_errors(update: Callable, data: Any, alphas: Any) -> jax.Array:
    """`[alphas, runs]`."""
    exact = jnp.arange(-9, 10) / 10

    def error(alpha: jax.Array, steps: Any) -> jax.Array:
        with_alpha = partial(update, alpha=alpha)
        weights = prediction.after_each_episode(with_alpha, jnp.zeros(19), steps)
        return prediction.rms_error(weights, exact).mean()

    of_runs = jax.vmap(error, in_axes=(None, 0))
    return jax.jit(jax.vmap(of_runs, in_axes=(0, None)))(jnp.array(alphas), data)


# Prediction elsewhere


def walk_5(size: Size) -> tuple[Found, Found]:
    """RMS error over the states after 100 episodes, from V = 0.5."""
    env, runs, seed = make("lecture/random-walk-5"), max(size.runs // 4, 4), 3
    draw = partial(prediction.episodes, env, prediction.uniform(env))
    draw = partial(draw, num_episodes=runs * 100, num_steps=100)
    steps = jax.jit(draw)(jax.random.key(seed))
    data = jax.tree.map(lambda x: x.reshape(runs, 100, *x.shape[1:]), steps)
    exact = jnp.arange(1, 6) / 6
    rows, curves = {}, {}
    methods = {
        "TD(0)": (prediction.td, {0.05: 0.037, 0.1: 0.050, 0.15: 0.068}),
        "Monte Carlo": (prediction.monte_carlo, {0.01: 0.1, 0.02: 0.085, 0.03: 0.09}),
    }
    for name, (update, targets) in methods.items():
        for alpha, target in targets.items():
            learn = partial(update, alpha=alpha, gamma=1.0)
            errors = jax.jit(jax.vmap(partial(curve_of, learn, exact)))(data)
            label = f"walk5 {name}, α = {alpha:g}"
            curves[label] = np.asarray(errors).mean(0).tolist()
            rows[label] = measured(
                errors[:, -1],
                "RMS error after 100 episodes",
                f"α = {alpha:g}, from V = 0.5",
                seed,
                target,
                0.01,
                "S&B example 6.2, read off",
            )
    return rows, curves


def curve_of(learn: Callable, exact: Any, steps: Any) -> jax.Array:
    weights = prediction.after_each_episode(learn, jnp.full(5, 0.5), steps)
    return prediction.rms_error(weights, exact)


def boyan(size: Size) -> tuple[Found, Found]:
    """Largest error of the four weights, for LSTD on 100 and 1,000 episodes."""
    env, runs, seed = make("lecture/boyan-chain"), max(size.runs // 4, 4), 4
    exact = jnp.array([-24.0, -16.0, -8.0, 0.0])
    rows = {}
    for number in (100, 1000):
        draw = partial(prediction.episodes, env, prediction.uniform(env))
        draw = jax.jit(partial(draw, num_episodes=number, num_steps=12))
        for lam in (0.0, 0.8):
            solve = jax.jit(partial(prediction.lstd, gamma=1.0, lam=lam))
            keys = jax.random.split(jax.random.key(seed), runs)
            found = np.stack([solve(draw(key)) for key in keys])
            weights = ", ".join(f"{w:.2f}" for w in found.mean(0))
            rows[f"boyan LSTD({lam:g}), {number:,} episodes"] = measured(
                np.abs(found - np.asarray(exact)).max(axis=1),
                "largest error of a weight",
                f"λ = {lam:g}",
                seed,
                0.0,
                0.5 if number == 1000 else None,
                "exact (Boyan 2002)",
                f"mean weights {weights}",
            )
    return rows, {}


def baird(size: Size) -> tuple[Found, Found]:
    """Largest weight after 1,000 steps of off-policy TD(0), α = 0.01, and with a table."""
    env, runs, seed = make("lecture/baird"), max(size.runs // 4, 4), 5
    behaviour = jnp.log(jnp.array(BAIRD_BEHAVIOUR))

    def policy(obs: Any, memory: Any, key: Any) -> tuple:
        return jax.random.categorical(key, behaviour, shape=obs.shape[:1]), memory, {}

    draw = partial(prediction.episodes, env, policy, num_episodes=runs, num_steps=1000)
    steps = jax.jit(draw)(jax.random.key(seed))
    numbers = [jax.nn.one_hot(x[..., :7].argmax(-1), 7) for x in (steps[0], steps[5])]
    table_steps = steps._replace(obs=numbers[0], next_obs=numbers[1])

    def learnt(steps: Any, weights: jax.Array) -> np.ndarray:
        def one(steps: Any) -> jax.Array:
            ratio = jnp.where(steps.action == 1, 7.0, 0.0)
            return prediction.td(weights, steps, 0.01, 0.99, ratio)

        return np.asarray(jax.jit(jax.vmap(one))(steps))

    features = learnt(steps, jnp.array(BAIRD_WEIGHTS))
    table = learnt(table_steps, jnp.ones(7))
    always_solid = np.tile([0.0, 1.0], (7, 1))
    exact = policy_evaluation(mdp_of("lecture/baird"), always_solid, 0.99)
    after = "after 1,000 steps, α = 0.01"
    rows = {
        "baird semi-gradient TD(0)": measured(
            features[:, 7],
            "weight w_8, 1 at the start",
            after,
            seed,
            source="S&B figure 11.2, read off: ≈ 340",
            note=f"above 10 in {(np.abs(features).max(1) > 10).mean():.0%} of the runs",
        ),
        "baird the same with a table": measured(
            np.abs(table).max(1),
            "largest |V|, 1 at the start",
            after,
            seed,
            note=f"exact V: largest |V| = {np.abs(exact).max():g}",
        ),
    }
    return rows, {}


# Control


def cliff(size: Size) -> tuple[Found, Found]:
    env, mdp = make("lecture/cliff-walking"), mdp_of("lecture/cliff-walking")
    runs, seed, episodes = max(size.runs // 2, 4), 6, max(int(500 * size.episodes), 2)

    def run(target: str, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        def episode(weights: jax.Array, key: jax.Array) -> tuple:
            weights, stats = td_control_episode(
                env, weights, key, alpha=0.5, epsilon=0.1, target=target
            )
            return weights, stats.episode_return

        key, key_greedy = jax.random.split(key)
        keys = jax.random.split(key, episodes)
        weights, returns = jax.lax.scan(episode, jnp.zeros((4, 37)), keys)
        return returns, greedy_episode(env, weights, key_greedy).episode_return

    soft = expected_best(mdp, 0.1)
    published = {
        "sarsa": (
            "SARSA",
            -27.6,
            2,
            -17,
            "a separate computation of 200 runs of its protocol",
        ),
        "q_learning": (
            "Q-learning",
            -49.8,
            3,
            -13,
            "a separate computation of 200 runs of its protocol",
        ),
        "expected_sarsa": ("Expected SARSA", -24, 3, None, "figure 6.3, read off"),
    }
    rows, curves = {}, {}
    late = min(100, episodes // 2)
    for target, (name, online, within, greedy, source) in published.items():
        keys = jax.random.split(jax.random.key(seed), runs)
        returns, final = jax.jit(jax.vmap(partial(run, target)))(keys)
        returns, final = np.asarray(returns), np.asarray(final)
        curves[f"cliff {name}"] = returns.mean(0).tolist()
        note = f"all 500 episodes: {returns.mean():.2f}"
        if target == "expected_sarsa":
            note += f"; the best that any ε-soft policy can have is {soft:.2f}"
        settings = "α = 0.5, ε = 0.1, γ = 1"
        rows[f"cliff {name}, online"] = measured(
            returns[:, late:].mean(1),
            "return of episodes 101 to 500",
            settings,
            seed,
            online,
            within,
            f"S&B example 6.6, {source}",
            note,
        )
        what = "median greedy return, cut after 1,000 steps"
        source = "S&B example 6.6" if greedy else ""
        row = measured(final, what, settings, seed, greedy, 0.0, source)
        rows[f"cliff {name}, greedy"] = row | medians(final, greedy)
    return rows, curves


def medians(x: np.ndarray, target: float | None) -> Found:
    """A row like that of `measured` for the median, with a bootstrap interval."""
    draws = np.random.default_rng(0).integers(len(x), size=(2_000, len(x)))
    low, high = np.percentile(np.median(x[draws], axis=1), [2.5, 97.5])
    median = float(np.median(x))
    return {
        "mean": median,
        "interval": [float(low), float(high)],
        "met": None if target is None else median == target,
    }


def expected_best(mdp: Any, epsilon: float) -> float:
    """Exact optimal return of a policy that explores with probability ε."""

    def softened(x: np.ndarray) -> np.ndarray:
        return (1 - epsilon) * x + epsilon * x.mean(axis=1, keepdims=True)

    reward = softened((mdp.transition * mdp.reward).sum(axis=2))
    soft = finite_mdp(softened(mdp.transition), reward, mdp.terminal, mdp.start)
    return float(soft.start @ value_iteration(soft, 1.0))


def mountain_car(size: Size) -> tuple[Found, Found]:
    """Steps per episode of linear SARSA(λ), first 50 episodes; greedy, from Q = 0."""
    env, seed = make("MountainCar-v0", horizon=None), 7
    runs, episodes = max(size.runs // 4, 4), max(int(50 * size.episodes), 2)
    tiles = tiling([-1.2, -0.07], [0.5, 0.07], num_tilings=8, num_tiles=8)
    features = partial(tile_features, tiles)

    def run(lam: float, alpha: float, trace: str, key: jax.Array) -> jax.Array:
        def episode(weights: jax.Array, key: jax.Array) -> tuple:
            weights, stats = td_control_episode(
                env, weights, key, alpha=alpha / 8, epsilon=0.0, lam=lam, trace=trace,
                features=features, max_steps=5_000,
            )  # fmt: skip
            return weights, stats.length

        keys = jax.random.split(key, episodes)
        return jax.lax.scan(episode, jnp.zeros((3, tiles.num_features)), keys)[1]

    rows, curves = {}, {}
    published = {0.0: 228, 0.5: 212, 0.95: 180}
    for lam, target in published.items():
        keys = jax.random.split(jax.random.key(seed), runs)
        lengths = jax.jit(jax.vmap(partial(run, lam, 1.0, "replacing")))(keys)
        curves[f"mountain car λ = {lam:g}"] = np.asarray(lengths).mean(0).tolist()
        rows[f"mountain car SARSA({lam:g})"] = measured(
            np.asarray(lengths).mean(1),
            "steps per episode, first 50",
            "8 tilings of 8 × 8, 8 α = 1, replacing traces, ε = 0, Q = 0",
            seed,
            target,
            15,
            "S&B figure 12.10, read off",
        )
    return rows, curves


def corridor(size: Size) -> tuple[Found, Found]:
    """REINFORCE: the exact return of the policy after each episode."""
    env, seed, runs = make("lecture/short-corridor"), 8, max(size.runs // 4, 4)
    mdp = mdp_of("lecture/short-corridor")
    # The policy is one number, p: its exact return is a table to be read.
    grid = np.linspace(0.001, 0.999, 999)
    policies = np.stack([np.tile([1 - p, p], (4, 1)) for p in grid])
    exact = np.array([expected_return(mdp, policy, 1.0) for policy in policies])

    def run(alpha: float, baseline: bool, episodes: int, key: jax.Array) -> jax.Array:
        def episode(carry: tuple, key: jax.Array) -> tuple:
            *carry, _ = reinforce_episode(
                env, *carry, key, alpha=alpha, alpha_value=2.0**-6, baseline=baseline
            )
            return tuple(carry), jax.nn.softmax(carry[0][:, 0])[1]

        start = (jnp.array([[np.log(19.0)], [0.0]]), jnp.zeros(1))
        keys = jax.random.split(key, episodes)
        return jax.lax.scan(episode, start, keys)[1]

    rows, curves, settled = {}, {}, {}
    for name, (alpha, baseline, text, episodes) in CORRIDOR.items():
        episodes = max(int(episodes * size.episodes), 2)
        keys = jax.random.split(jax.random.key(seed), runs)
        p = jax.jit(jax.vmap(partial(run, alpha, baseline, episodes)))(keys)
        returns = np.interp(np.asarray(p), grid, exact)
        mean = returns.mean(0)
        settled[name] = int(np.flatnonzero(mean <= -13).max(initial=-1)) + 1
        curves[f"corridor {name}"] = np.median(returns, axis=0).tolist()
        stuck = int((returns[:, -1] < -100).sum())
        row = measured(
            returns[:, -100:].mean(1),
            "exact return, last 100 episodes",
            f"{text}, from p(right) = 0.05",
            seed,
            -11.6,
            None if stuck else 0.5,
            "S&B example 13.1, exact -11.66",
            f"the mean of {runs} runs stays above -13 after {settled[name]:,} episodes",
        )
        if stuck:
            row |= medians(returns[:, -100:].mean(1), None)
            row["what"] = "median exact return, last 100 episodes"
            row["note"] = (
                f"{stuck} of {runs} runs went to a policy that is all but deterministic, "
                "where the gradient vanishes, and stayed there"
            )
        rows[f"corridor REINFORCE {name}"] = row
    with_it, without, _ = settled.values()
    row = rows["corridor REINFORCE with a baseline"]
    row["speed_up"] = without / max(with_it, 1)
    row["note"] += f", {row['speed_up']:.1f} times sooner than without"
    return rows, curves


CORRIDOR = {
    "with a baseline": (2.0**-10, True, "α = 2⁻¹⁰, α_v = 2⁻⁶, 1,000 episodes", 1000),
    "without a baseline": (2.0**-14, False, "α = 2⁻¹⁴, 4,000 episodes", 4000),
    "without, larger steps": (2.0**-13, False, "α = 2⁻¹³, 1,000 episodes", 1000),
}
"""α, baseline or not, and number of episodes. The book's figure 13.2 has α = 2⁻¹³."""


PARTS = {
    "walk19": walk_19,
    "walk5": walk_5,
    "boyan": boyan,
    "baird": baird,
    "cliff": cliff,
    "mountain": mountain_car,
    "corridor": corridor,
}


# For people


def shown(row: Found) -> str:
    digits = 3 if abs(row["mean"]) < 2 else 2
    low, high = row["interval"]
    text = f"{row['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{text} (reference {row['target']}, {row['met']}) {row['note']}"


def table(rows: Found) -> str:
    lines = [
        "| row | measured | settings | runs | mean | 95 % interval | reference | source "
        "| bar | met |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        digits = 3 if abs(row["mean"]) < 2 else 2
        low, high = row["interval"]
        bar = "-" if None in (row["within"], row["target"]) else f"± {row['within']:g}"
        met = {None: "-", True: "yes", False: "no"}[row["met"]]
        cells = (
            name,
            row["what"],
            row["settings"],
            str(row["runs"]),
            f"{row['mean']:.{digits}f}",
            f"[{low:.{digits}f}, {high:.{digits}f}]",
            "-" if row["target"] is None else f"{row['target']:g}",
            row["source"] or "-",
            bar,
            met,
        )
        cells = tuple(cell.replace("|", "\\|") for cell in cells)
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"- {name}: {row['note']}." for name, row in rows.items() if row["note"]]
    return "\n".join([*lines, "", *notes, "", captions.device(rows.values()), ""])


def plot(curves: Found, folder: Path) -> None:
    """Plot the error against the step size, and learning curves of control."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = {
        "TD(λ), accumulating traces": "walk19 TD",
        "λ-return, off-line": "walk19 λ-return",
        "true online TD(λ)": "walk19 true online",
        "n-step TD": "walk19 n-step",
    }
    for axis, (title, prefix) in zip(
        figure.subplots(1, 4), panels.items(), strict=True
    ):
        chosen = {k: v for k, v in curves.items() if k.startswith(prefix)}
        for colour, (name, curve) in zip(COLOURS, chosen.items(), strict=False):
            label = name.rpartition("(")[2].rstrip(")")
            axis.plot(curve["alpha"], curve["rms"], color=colour, label=label)
        axis.set(title=title, xlabel="α", ylim=(0.2, 0.56), xlim=(0, 1))
        axis.legend(title="n" if "n-step" in prefix else "λ", fontsize=7)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("RMS error, first 10 episodes")
    figure.savefig(folder / "ladder-walk.png", dpi=120)

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = {
        "random walk, 5 states": ("walk5", "RMS error", (0, 0.26)),
        "cliff walking": ("cliff", "return (mean of 10 episodes)", (-100, 0)),
        "mountain car": ("mountain", "steps", (90, 1200)),
        "short corridor": ("corridor", "exact return (median)", (-90, -10)),
    }
    for axis, (title, shape) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        prefix, label, limits = shape
        chosen = {k: np.array(v) for k, v in curves.items() if k.startswith(prefix)}
        for colour, (name, curve) in zip(COLOURS, chosen.items(), strict=False):
            width = 10 if prefix == "cliff" else 1
            smooth = np.convolve(curve, np.full(width, 1 / width), "valid")
            name = name.removeprefix(prefix).removeprefix(" car").strip()
            axis.plot(smooth, color=colour, label=name, linewidth=1)
        axis.set(title=title, xlabel="episode", ylabel=label, ylim=limits)
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.axes[2].set_yscale("log")
    figure.savefig(folder / "ladder-control.png", dpi=120)


if __name__ == "__main__":
    main()
