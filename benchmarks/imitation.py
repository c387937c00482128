"""Imitation: behaviour cloning of recorded episodes against DAgger with as many labels.

    python -m benchmarks.imitation                       # all environments
    python -m benchmarks.imitation --parts CartPole-v1   # the others are kept
    python -m benchmarks.imitation --quick --out DIR

Experts are trained by PPO with the settings of the scorecard. From each, episodes are
recorded, and two learners clone them; two others are taught by DAgger, which is given as
many labels of the expert as there are steps in the recorded episodes (of the expert with
the fewest). Networks, optimiser, schedule, minibatches and the number of gradient steps are
the same. The score of a learner is (R - R_random) / (R_expert - R_random), R being the mean
return of greedy episodes.

Also, for learners of few episodes, against the step t and the horizon T: how often the
learner does not do as the expert would in the state that it has come to, and the regret,
the expert's return of T steps less the learner's.

Writes results/imitation.json, which docs/imitation.md shows, and its figure.
"""

import itertools
import json
import time
import tomllib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrl
from benchmarks.speed import script
from jaxrl import BC, DAGGER, PPO, TD, losses
from jaxrl.core import config as configs
from jaxrl.data import dataset
from jaxrl.data.dataset import Dataset
from jaxrl.data.frozen_policy import FrozenPolicy, teacher_action
from jaxrl.plotting import COLOURS
from jaxrl.runs.experiment import commit, versions
from jaxrl.statistics import bootstrap_interval, iqm
from jaxrl.training import population
from jaxrl.types import Algorithm, Array, Env, PyTree

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
EXPERTS = {
    "CartPole-v1": None,
    "Acrobot-v1": "benchmarks/configs/acrobot-ppo.toml",
    "Pendulum-v1": "benchmarks/configs/pendulum-ppo.toml",
}
"""Environments, with the file of PPO's config; None for its defaults."""

EPISODES = (1, 3, 10, 50)
SHOWN = 1
"""Recorded episodes of the learners in the figure."""
BARS = {"bc": 0.85, "dagger": 0.95}
"""Minimum score from 50 episodes."""

ITERATIONS = 16
"""Train steps of every learner; DAgger's rollouts."""
COMMON = {
    "num_updates": 500,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "anneal_lr": True,
    "hidden_sizes": (64, 64),
}


class Size(NamedTuple):
    experts: int
    learners: int  # of each expert
    episodes: int  # of each evaluation
    expert_steps: float | None = None


FULL, QUICK = Size(5, 2, 128), Size(2, 1, 8, 4_096.0)


class Taught(NamedTuple):
    """An expert with its reference returns."""

    policy: FrozenPolicy
    recorded: Dataset  # what may be learned from
    judged: Dataset  # other episodes: its own return


def main() -> None:
    parser = script.parser(__doc__, tuple(EXPERTS))
    arguments, file, rows = script.opened(parser, RESULTS, "imitation.json")
    size = QUICK if arguments.quick else FULL
    measured_at = commit()
    for env_id in arguments.parts:
        rows[env_id] = measure(env_id, size) | {
            "command": f"python -m benchmarks.imitation --parts {env_id}",
            "commit": measured_at,
        }
        found = {
            "versions": versions(),
            "device": jax.devices()[0].device_kind,
            "rows": {name: rows[name] for name in EXPERTS if name in rows},
        }
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    plot(rows, (Path(arguments.out) if arguments.out else ROOT / "docs/figures"))


def measure(env_id: str, size: Size) -> dict[str, Any]:
    """Train and evaluate all learners of one environment."""
    begun, env = time.monotonic(), jaxrl.make(env_id)
    experts = trained_experts(env_id, env, size)
    random = random_return(env, size)
    best = [float(dataset.episode_returns(e.judged).mean()) for e in experts]
    print(f"{env_id}: random {random:.1f}, experts {np.round(best, 1)}", flush=True)
    cases, curves = [], {}
    for episodes in EPISODES:
        given = [dataset.first_episodes(e.recorded, episodes) for e in experts]
        labels = min(data.num_steps for data in given)
        for algorithm, config in ((BC, bc_config()), (DAGGER, dagger_config(labels))):
            teachers = given if algorithm is BC else [e.policy for e in experts]
            learners = [
                learned(algorithm, config, env.replace(teacher=teacher), keys)
                for teacher, keys in zip(teachers, all_keys(size), strict=True)
            ]
            returns = np.array(
                [returns_of(algorithm, config, env, a, size) for a in learners]
            )
            scores = (returns - random) / (np.array(best)[:, None] - random)
            case = summary(algorithm.name, episodes, labels, returns, scores)
            cases.append(case)
            print(f"  {case['method']:7} {episodes:3} episodes {case['score']:.3f}")
            if episodes == SHOWN:
                curves[algorithm.name] = against_time(
                    algorithm, config, env, learners, experts, size
                )
    return {
        "random": round(random, 2),
        "experts": [round(x, 2) for x in best],
        "learners": size.experts * size.learners,
        "cases": cases,
        "curves": curves,
        "seconds": round(time.monotonic() - begun, 1),
    }


def trained_experts(env_id: str, env: Env, size: Size) -> list[Taught]:
    """Experts trained by PPO with the settings of the scorecard, with their episodes."""
    file = EXPERTS[env_id]
    text = (ROOT / file).read_text(encoding="utf-8") if file else ""
    fields = tomllib.loads(text).get("config", {})
    config = configs.from_dict(PPO.Config, fields)
    if size.expert_steps is not None:
        config = config.replace(total_steps=size.expert_steps)
    config = configs.with_floats(config)
    agents = jaxrl.train(PPO, config, env, num_seeds=size.experts).agent
    experts = []
    for k in range(size.experts):
        agent = population.member(agents, k)
        recorded, judged = (
            dataset.record(PPO, config, env, agent, jax.random.key(2 * k + i), number)
            for i, number in enumerate((max(EPISODES), size.episodes))
        )
        experts.append(Taught(FrozenPolicy(config, agent, PPO), recorded, judged))
    return experts


def random_return(env: Env, size: Size) -> float:
    """Mean return of uniformly random actions, played by TD without a policy."""
    config, key = TD.Config(), jax.random.key(0)
    agent = TD.init(config, env, key).agent
    episodes = jaxrl.evaluate(TD, config, env, agent, key, 8 * size.episodes)
    return float(episodes.episode_return.mean())


def bc_config() -> BC.Config:
    """Config of BC, with one unused environment step in each iteration."""
    fields = COMMON | {"num_envs": 1, "num_steps": 1, "total_steps": float(ITERATIONS)}
    return configs.with_floats(BC.Config(**fields))


def dagger_config(labels: int) -> DAGGER.Config:
    """Config of DAgger with a maximum number of labels."""
    each = max(labels // ITERATIONS, 1)
    num_envs = 4 if each >= 64 else 1
    num_steps = each // num_envs
    fields = COMMON | {
        "num_envs": num_envs,
        "num_steps": num_steps,
        "buffer_size": labels,
        "total_steps": float(ITERATIONS * num_envs * num_steps),
    }
    return configs.with_floats(DAGGER.Config(**fields))


def all_keys(size: Size) -> Array:
    """A key for each learner of each expert."""
    return jax.random.split(jax.random.key(1), (size.experts, size.learners))


@partial(jax.jit, static_argnames="algorithm")
def learned(algorithm: Algorithm, config: Any, env: Env, keys: Array) -> PyTree:
    """Train an agent for each key."""

    def one(key: Array) -> PyTree:
        state = algorithm.init(config, env, key)
        return jaxrl.run_chunk(algorithm, config, env, state, ITERATIONS)[0].agent

    return jax.vmap(one)(keys)


def returns_of(
    algorithm: Algorithm, config: Any, env: Env, agents: PyTree, size: Size
) -> np.ndarray:
    """The mean greedy return of each agent."""
    key = jax.random.key(2)
    episodes = jaxrl.evaluate_population(
        algorithm, config, env, agents, key, size.episodes
    )
    return np.asarray(episodes.episode_return).mean(axis=1)


def summary(
    name: str, episodes: int, labels: int, returns: np.ndarray, scores: np.ndarray
) -> dict[str, Any]:
    """Summary of the scores of the learners `[experts, learners]`."""
    low, high = bootstrap_interval(scores.ravel())
    score = float(iqm(scores.ravel()))
    case = {
        "method": name,
        "episodes": episodes,
        "labels": labels,
        "score": round(score, 4),
        "ci95": [round(float(low), 4), round(float(high), 4)],
        "lowest": round(float(scores.min()), 4),
        "scores": [round(float(x), 4) for x in scores.ravel()],
        "return_iqm": round(float(iqm(returns.ravel())), 2),
    }
    if episodes == max(EPISODES):
        case |= {"bar": BARS[name], "met": score >= BARS[name]}
    return case


def against_time(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    learners: Sequence[PyTree],
    experts: Sequence[Taught],
    size: Size,
) -> dict[str, Any]:
    """Error at step t and regret at horizon T, over learners."""
    errors, regrets = [], []
    for agents, expert in zip(learners, experts, strict=True):
        best = np.cumsum(by_step(expert.judged.reward, expert.judged), axis=1).mean(0)
        for k in range(size.learners):
            agent = population.member(agents, k)
            played = dataset.record(
                algorithm, config, env, agent, jax.random.key(3), size.episodes
            )
            right = expert_actions(expert.policy, env, played.obs)
            error = by_step(losses.action_error(played.action, right), played)
            alive = by_step(np.ones(played.num_steps), played).sum(0)
            many = alive >= len(error) / 10  # of fewer episodes it says nothing
            reward = by_step(played.reward, played)
            longest = max(len(best), reward.shape[1])
            got, wanted = (
                np.pad(x, (0, longest - len(x)), mode="edge")
                for x in (np.cumsum(reward, axis=1).mean(0), best)
            )
            errors.append((error.sum(0) / alive)[many])
            regrets.append(wanted - got)
    longest = max(map(len, regrets))  # when all have ended, the regret stays
    regrets = [np.pad(x, (0, longest - len(x)), mode="edge") for x in regrets]
    return {"error": curve(errors), "regret": curve(regrets)}


@jax.jit
def expert_actions(policy: FrozenPolicy, env: Env, obs: PyTree) -> Array:
    return teacher_action(policy, env, obs, jax.random.key(0))


def by_step(column: Any, data: Dataset) -> np.ndarray:
    """A column as `[episodes, longest]`, zero after an episode's end."""
    ends = dataset.ends(data)
    starts = np.concatenate([[0], ends[:-1]])
    column = np.asarray(column, float)
    table = np.zeros((len(ends), (ends - starts).max()))
    for row, start, end in zip(table, starts, ends, strict=True):
        row[: end - start] = column[start:end]
    return table


def curve(rows: Sequence[np.ndarray], points: int = 50) -> dict[str, list[float]]:
    """The IQM of rows of different length, with its interval, in blocks of steps."""
    longest = max(map(len, rows))
    table = np.full((len(rows), longest), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    edges = np.unique(np.linspace(0, longest, points + 1).astype(int))
    steps, centres, lows, highs = [], [], [], []
    for begin, end in itertools.pairwise(edges):
        block = table[:, begin:end]
        values = np.array(
            [r[~np.isnan(r)].mean() for r in block if not np.isnan(r).all()]
        )
        low, high = bootstrap_interval(values, num_resamples=2_000)
        steps.append(int(end))
        centres.append(float(f"{iqm(values):.4g}"))
        lows.append(float(f"{low:.4g}"))
        highs.append(float(f"{high:.4g}"))
    return {"step": steps, "iqm": centres, "low": lows, "high": highs}


def table(rows: dict[str, Any]) -> str:
    lines = []
    for env_id, row in rows.items():
        lines += [
            f"**{env_id}**: {row['learners']} learners of {len(row['experts'])} experts, "
            f"whose mean returns are {', '.join(f'{x:g}' for x in row['experts'])}; random "
            f"actions get {row['random']:g}.",
            "",
            "| expert episodes | labels | method | score, IQM | 95 % interval | lowest "
            "| bar | met |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for case in row["cases"]:
            low, high = case["ci95"]
            bar = f"{case['bar']}" if "bar" in case else ""
            met = ("yes" if case["met"] else "no") if "bar" in case else ""
            cells = [
                *(str(case["episodes"]), f"{case['labels']:,}", case["method"]),
                *(f"{case['score']:.3f}", f"[{low:.3f}, {high:.3f}]"),
                *(f"{case['lowest']:.3f}", bar, met),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def plot(rows: dict[str, Any], folder: Path) -> None:
    """Plot the error against the step (top) and the regret against the horizon (bottom)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(rows), 5.6), layout="constrained")
    panels = figure.subplots(2, len(rows), squeeze=False)
    for column, (env_id, row) in zip(panels.T, rows.items(), strict=True):
        for axes, name in zip(column, ("error", "regret"), strict=True):
            for colour, (method, found) in zip(
                COLOURS, row["curves"].items(), strict=False
            ):
                line = found[name]
                axes.plot(line["step"], line["iqm"], color=colour, label=method)
                axes.fill_between(
                    line["step"], line["low"], line["high"], color=colour, alpha=0.2
                )
            axes.grid(alpha=0.3)
        column[0].set(title=env_id, xlabel="step t", ylabel="action error")
        column[1].set(xlabel="horizon T", ylabel="regret")
        column[0].legend(frameon=False, fontsize="small")
    figure.savefig(folder / "imitation.png", dpi=120)


if __name__ == "__main__":
    main()
