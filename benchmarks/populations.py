"""Costs and benefits of populations and sweeps.

    python -m benchmarks.populations                    # about an hour on two cores
    python -m benchmarks.populations --parts members
    python -m benchmarks.populations --quick --out DIR

newcomer    one command for 4 learning rates x 16 seeds with figures, one for the report
members     256 PPO agents on CartPole by one command, against one agent at a time
alone       64 agents of a population against the same 64 one at a time: returns
memory      bytes of the compiled program for each further agent beyond its state
compiles    programs compiled for a grid of 3 x 4 settings and 16 seeds
devices     agents on eight devices that share this machine's cores, against as many
            devices as cores; collectives in their program
search, halving, pbt
            random search, successive halving and population-based training with equal
            environment steps: 16 settings, 20 repeats, Acrobot and Pendulum

Writes benchmarks/results/populations.json, which docs/sweeps.md shows.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.speed import script
from jaxrl import PPO, Range, evaluate_population, make, sweep, train
from jaxrl.core import prng
from jaxrl.core.config import with_floats
from jaxrl.runs.experiment import commit, versions
from jaxrl.statistics import bootstrap_difference, bootstrap_interval, iqm
from jaxrl.training import footprint, loop, population

HERE = Path(__file__).parent
PARTS = [
    *("newcomer", "members", "alone", "memory", "compiles", "devices"),
    *("search", "halving", "pbt"),
]


def main() -> None:
    parser = script.parser(__doc__, PARTS)
    arguments, file, rows = script.opened(parser, HERE / "results", "populations.json")
    measures: dict[str, Callable[[bool], dict[str, Any]]] = {
        "newcomer": newcomer,
        "members": members,
        "alone": against_alone,
        "memory": bytes_of_a_member,
        "compiles": compiles,
        "devices": devices,
        "search": partial(scheduled, "none"),
        "halving": partial(scheduled, "halving"),
        "pbt": partial(scheduled, "pbt"),
    }
    about = {"versions": versions(), "command": "python -m benchmarks.populations"}
    for part in arguments.parts:
        rows[part] = measures[part](arguments.quick) | {"commit": commit()}
        file.write_text(
            json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8"
        )
        print(part, json.dumps(rows[part]), flush=True)
    print(table(rows))


def command(words: str) -> float:
    """Seconds of a `jaxrl` command in its own process."""
    program = "import sys; from jaxrl.cli import main; sys.exit(main(sys.argv[1:]))"
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", program, *words.split()],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


def newcomer(quick: bool) -> dict[str, Any]:
    """Seconds from an installed package to the figure, and from there to the table."""
    seeds, more = (2, " --total-steps 5000") if quick else (16, "")
    rates = "learning_rate=1e-4,3e-4,1e-3,3e-3"
    with tempfile.TemporaryDirectory() as folder:
        sweep = f"sweep ppo --env CartPole-v1 --grid {rates} --num-seeds {seeds}{more}"
        return {
            "settings": 4,
            "seeds": seeds,
            "sweep_command": f"jaxrl {sweep}",
            "sweep_seconds": command(f"{sweep} --out {folder}/sweep --quiet"),
            "report_seconds": command(f"report {folder}/sweep"),
        }


# 256 agents by one command.


def members(quick: bool) -> dict[str, Any]:
    """Speed of a population and of single agents by the command line, without compiling."""
    count, steps, singles = (16, 20_000, 1) if quick else (256, 500_000, 3)
    started = time.perf_counter()
    many = trained(count, steps)
    seconds = time.perf_counter() - started
    alone = [trained(1, steps, seed) for seed in range(singles)]
    one = statistics.median(run["env_steps_per_second"] for run in alone)
    return {
        "agents": count,
        "env_steps_each": many["env_steps"],
        "command_seconds": seconds,
        "steps_per_second": many["env_steps_per_second"],
        "one_at_a_time": one,
        "ratio": many["env_steps_per_second"] / one,
    }


def trained(num_seeds: int, steps: int, seed: int = 0) -> dict[str, Any]:
    """Summary of a `jaxrl train` in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        words = f"train ppo --env CartPole-v1 --total-steps {steps} --quiet"
        words += f" --num-seeds {num_seeds} --seed {seed} --out {folder}/run"
        command(words)
        summary: dict[str, Any] = json.loads(
            (Path(folder) / "run" / "summary.json").read_text(encoding="utf-8")
        )
        return summary


def against_alone(quick: bool) -> dict[str, Any]:
    """Greedy returns of agents trained in a population and alone, equal up to rounding."""
    count, steps = (4, 5_000) if quick else (64, 50_000)
    together = evaluated(0, count, steps)
    alone = [x for seed in range(count) for x in evaluated(seed, 1, steps)]
    low, high = bootstrap_difference(together, alone)
    return {
        "agents": count,
        "env_steps": steps,
        "together_mean": statistics.mean(together),
        "alone_mean": statistics.mean(alone),
        "difference_ci95": [low, high],
    }


def evaluated(seed: int, num_seeds: int, steps: int) -> list[float]:
    """The mean return of each agent over 32 greedy episodes."""
    config, env = PPO.Config(total_steps=float(steps)), make("CartPole-v1")
    result = train(PPO, config, env, seed=seed, num_seeds=num_seeds)
    episodes = evaluate_population(
        PPO, with_floats(config), env, result.agent, prng.key(1), 32
    )
    return [float(x) for x in episodes.episode_return.mean(1)]


# Memory.


def bytes_of_a_member(quick: bool) -> dict[str, Any]:
    """Bytes of each further agent beyond its state, at 10^8 steps."""
    del quick
    config, env = with_floats(PPO.Config(total_steps=1e8)), make("CartPole-v1")
    few, more = 64, 256
    taken = [footprint.compiled_bytes(PPO, config, env, n) for n in (few, more)]
    each = (taken[1] - taken[0]) / (more - few)
    key = jax.eval_shape(lambda: prng.key(0))
    state = jax.eval_shape(partial(PPO.init, config, env), key)
    return {
        "bytes_each": each,
        "state_bytes": footprint.size(state),
        "beyond_bytes": max(each - footprint.size(state), 0.0),
        "of_which_rollouts": "those of a group of eight a device, not of every agent",
        "total_steps": 1e8,
    }


# Compilations.


def compiles(quick: bool) -> dict[str, Any]:
    """Number of train-step programs compiled for a grid of 3 x 4 settings x 16 seeds."""
    before = population.run_population._cache_size()
    with tempfile.TemporaryDirectory() as folder:
        result = sweep(
            PPO,
            "CartPole-v1",
            {
                "learning_rate": [1e-4, 3e-4, 1e-3],
                "ent_coef": [0.0, 0.01, 0.02, 0.03],
            },
            config=PPO.Config(total_steps=5_000 if quick else 50_000),
            num_seeds=16,
            out=Path(folder) / "sweep",
            progress=False,
            report=lambda line: None,
        )
    return {
        "settings": len(result.trials),
        "agents": sum(len(trial.returns) for trial in result.trials),
        "compilations": population.run_population._cache_size() - before,
    }


# Devices.


def devices(quick: bool) -> dict[str, Any]:
    """Speed of 64 agents on one device per core and on eight, in alternating processes."""
    cores = len(os.sched_getaffinity(0))
    repeats = 1 if quick else 5
    rates: dict[int, list[float]] = {cores: [], 8: []}
    for _ in range(repeats):
        for count, found in rates.items():
            found.append(float(on_devices(count, 5 if quick else 50)["rate"]))
    return {
        "cores": cores,
        "rate_on_cores": statistics.median(rates[cores]),
        "rate_on_eight": statistics.median(rates[8]),
        "efficiency": statistics.median(
            b / a for a, b in zip(rates[cores], rates[8], strict=True)
        ),
        "collectives": on_devices(8, 0)["collectives"],
    }


def on_devices(count: int, steps: int) -> dict[str, Any]:
    program = f"from benchmarks.populations import worker; worker({count}, {steps})"
    flags = f"--xla_force_host_platform_device_count={count}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=HERE.parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def worker(count: int, steps: int) -> None:
    """Print steps per second of 64 agents on some devices, or with `steps` 0 the
    collectives of their program."""
    config, env = PPO.Config(), make("CartPole-v1")
    job = loop.resolve(
        PPO, config, env, num_seeds=64, parallel="members", num_devices=count
    )
    progress = loop.first_progress(job)
    if not steps:
        print(json.dumps({"collectives": collectives(job, progress)}))
        return
    progress = loop.advance(job, progress, 1)
    jax.block_until_ready(progress.state)
    started = time.perf_counter()
    progress = loop.advance(job, progress, steps)
    jax.block_until_ready(progress.state)
    rate = 64 * steps * job.plan.env_steps / (time.perf_counter() - started)
    print(json.dumps({"rate": rate}))


def collectives(job: loop.Job, progress: loop.Progress) -> int:
    """Collective operations in the compiled train step."""
    program = population.run_population.lower(
        PPO,
        job.config,
        job.env,
        {},
        progress.state,
        progress.tally,
        np.int32(1),
        64,
        job.mesh,
    )
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return len(re.findall(rf" ({names})\(", program.compile().as_text() or ""))


# Schedulers.

TASKS = {"Acrobot-v1": 50_000, "Pendulum-v1": 100_000}
"""Environment steps of each of 16 agents of a random search."""

SPACE = {
    "learning_rate": Range(1e-5, 1e-1, log=True),
    "gamma": Range(0.8, 0.999),
    "ent_coef": Range(1e-4, 1e-1, log=True),
}


def scheduled(scheduler: str, quick: bool) -> dict[str, Any]:
    """The best agent of a method, by the greedy evaluation at the end."""
    trials, repeats = (4, 2) if quick else (16, 20)
    # Of 2^k settings halving takes the steps of k + 1 whole runs: longer ones, then.
    spent = np.log2(trials) + 1 if scheduler == "halving" else trials
    found: dict[str, Any] = {}
    for env, steps in TASKS.items():
        steps = 10_000 if quick else steps
        each = [
            best_return(env, scheduler, steps * trials / spent, trials, repeat)
            for repeat in range(repeats)
        ]
        returns = [value for value, _ in each]
        found[env] = {
            "iqm": float(iqm(returns)),
            "ci95": [float(x) for x in bootstrap_interval(returns)],
            "env_steps": statistics.mean(n for _, n in each),
            "returns": returns,
        }
    return found


def best_return(
    env: str, scheduler: str, steps: float, trials: int, repeat: int
) -> tuple[float, float]:
    """The return of the best agent, and the environment steps of all."""
    with tempfile.TemporaryDirectory() as folder:
        result = sweep(
            PPO,
            env,
            SPACE,
            config=PPO.Config(total_steps=float(steps)),
            sampler="random",
            trials=trials,
            scheduler=scheduler,  # type: ignore[arg-type]
            seed=1_000 * repeat,
            out=Path(folder) / "sweep",
            progress=False,
            report=lambda line: None,
        )
        total = sum(float(trial.env_steps) for trial in result.trials)
        return float(result.best.whole[0]), total


# The table.


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| what | figure | bar |", "|---|---|---|"]
    if "newcomer" in rows:
        row = rows["newcomer"]
        lines.append(
            f"| {row['settings']} learning rates x {row['seeds']} seeds with figures, one "
            f"command; then the report | {row['sweep_seconds']:.0f} s; "
            f"{row['report_seconds']:.0f} s | <= 300 s |"
        )
    if "members" in rows:
        row = rows["members"]
        lines += [
            f"| {row['agents']} PPO agents of {row['env_steps_each']:,} steps on CartPole, "
            f"one command | {row['command_seconds'] / 60:.1f} minutes | <= 25 |",
            f"| steps per second of them all, against one at a time | "
            f"{row['steps_per_second'] / 1e3:,.0f} k against "
            f"{row['one_at_a_time'] / 1e3:,.0f} k: {row['ratio']:.2f} times | >= 1.7 |",
        ]
    if "alone" in rows:
        row = rows["alone"]
        low, high = row["difference_ci95"]
        lines.append(
            f"| return of {row['agents']} agents after {row['env_steps']:,} steps, "
            f"together and one at a time | {row['together_mean']:.1f} and "
            f"{row['alone_mean']:.1f}; difference [{low:.1f}, {high:.1f}] | holds 0 |"
        )
    if "memory" in rows:
        row = rows["memory"]
        lines.append(
            f"| bytes of each further agent beyond its state | "
            f"{row['beyond_bytes'] / 1e3:,.1f} kB | <= 64 kB |"
        )
    if "compiles" in rows:
        row = rows["compiles"]
        lines.append(
            f"| compilations for {row['settings']} settings, {row['agents']} agents | "
            f"{row['compilations']} | 1 |"
        )
    if "devices" in rows:
        row = rows["devices"]
        lines.append(
            f"| eight devices on {row['cores']} cores, against one a core | "
            f"{row['efficiency']:.0%}, {row['collectives']} collectives | >= 90 %, 0 |"
        )
    methods = {"search": "random search", "halving": "halving", "pbt": "pbt"}
    for env in TASKS:
        for name in [name for name in methods if name in rows]:
            row = rows[name][env]
            low, high = row["ci95"]
            words, bar = f"{row['iqm']:.1f} [{low:.1f}, {high:.1f}]", ""
            if name != "search" and "search" in rows:
                against = rows["search"][env]["returns"]
                low, high = bootstrap_difference(row["returns"], against)
                words += f"; difference of the means [{low:.1f}, {high:.1f}]"
                bar = "IQM not lower"
            lines.append(f"| {env}, best of 16: {methods[name]} | {words} | {bar} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
