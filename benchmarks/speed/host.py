"""The parent process: sends requests to workers, interleaves them, and collects results.

It touches no device, so that all devices are available to the workers.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.cases import CASES, LEVEL_ENVS, LEVEL_SIZES, SCALING, Case
from jaxrl.errors import InvalidInput
from jaxrl.statistics import bootstrap_difference

Report = Callable[[str], None]
OURS = (sys.executable, "-m", "benchmarks.speed.worker")
HERE = Path(__file__).parent


class Failed(RuntimeError):
    """Error response of a worker."""


class Process:
    """A worker process that answers requests; see `protocol`."""

    def __init__(self, command: Sequence[str], device: str | None = None) -> None:
        environment = dict(os.environ)
        if command != OURS:  # a peer's worker finds the protocol, not our package
            environment["PYTHONPATH"] = str(HERE)
        if device:
            environment["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(device, device)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            encoding="utf-8",
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to one request.

        Raises:
          Failed: the worker could not, or is gone; the message says why.
        """
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"do": do} | request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError as error:
            raise Failed(f"the worker ended ({error})") from error
        if not line:
            raise Failed(f"the worker ended with exit code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def worker(command: Sequence[str], device: str | None = None) -> Iterator[Process]:
    """Context manager of a worker process."""
    process = Process(command, device)
    try:
        yield process
    finally:
        process.close()


class Settings:
    """Durations of measurements, full or as a smoke test."""

    def __init__(self, quick: bool, device: str | None = None) -> None:
        self.quick = quick
        self.device = device
        self.seconds = 0.2 if quick else 10.0
        self.pairs = 1 if quick else 5
        self.level_seconds = 0.02 if quick else 0.4


def chosen_cases(names: Sequence[str], platform: str) -> dict[str, Case]:
    """Cases by name, by default all for this platform.

    Raises:
      InvalidInput: a name is unknown.
    """
    for name in names:
        if name not in (*CASES, "B8", "scaling"):
            raise InvalidInput(
                f"cases = {name!r}: there are {', '.join(CASES)}, B8 and scaling."
            )
    return {
        name: case
        for name, case in CASES.items()
        if (name in names) or (not names and case.only in ("", platform))
    }


def first_steps(case: Case) -> int:
    """A small number of environment steps, to estimate the length of a repeat."""
    config = case.config
    if case.algorithm == "ppo":
        return 10 * config["num_envs"] * config["num_steps"]
    return config["learning_starts"] + 2_000


def measure_ours(
    process: Process, name: str, case: Case, settings: Settings, cache: str
) -> dict[str, Any]:
    """Compile seconds, and the number of steps of a sufficiently long repeat."""
    steps = first_steps(case)
    request = case.as_json(name, steps)
    with worker(OURS, settings.device) as cold:
        compile_cold = cold.ask("prepare", case=request, cache=cache)["compile_seconds"]
    answer = process.ask("prepare", case=request, cache=cache)
    process.ask("run", seed=0, env_steps=steps)
    short = process.ask("run", seed=0, env_steps=steps)
    if not settings.quick:
        # The slope, because a run of DQN begins with a fast random phase.
        longer = process.ask("run", seed=0, env_steps=3 * steps)
        slope = (longer["seconds"] - short["seconds"]) / max(
            longer["env_steps"] - short["env_steps"], 1
        )
        missing = max(0.0, 1.1 * settings.seconds - short["seconds"])
        steps += int(missing / max(slope, 1e-9) / case.num_seeds)
    return {
        "env_steps": steps,
        "compile_cold_seconds": compile_cold,
        "compile_warm_seconds": answer["compile_seconds"],
    } | {k: answer[k] for k in ("versions", "device", "platform", "devices")}


def rate(process: Process, seed: int, env_steps: int, seconds: float = 0.0) -> float:
    """Environment steps per second of runs of `env_steps`, for `seconds` or longer."""
    steps, elapsed, runs = 0, 0.0, 0
    while not runs or elapsed < seconds:
        answer = process.ask("run", seed=100 * seed + runs, env_steps=env_steps)
        steps, elapsed = steps + answer["env_steps"], elapsed + answer["seconds"]
        runs += 1
    return steps / elapsed


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def run_case(
    name: str,
    case: Case,
    settings: Settings,
    peers: dict[str, Sequence[str]],
    report: Report,
) -> dict[str, Any]:
    """Measure one case: T, C, E, I, the limit, and each peer in the same run."""
    with tempfile.TemporaryDirectory() as cache, worker(OURS, settings.device) as ours:
        found = measure_ours(ours, name, case, settings, cache)
        found["levels"] = ours.ask("levels", least=settings.level_seconds)
        steps = found["env_steps"]
        found["peers"] = {}
        for peer in case.peers:
            if peer not in peers:
                continue
            against = run_peer(name, case, settings, ours, peers[peer], steps)
            found["peers"][peer] = against
            report(f"  {name} against {peer}: {against_in_words(against)}")
        training = [
            ours.ask("run", seed=seed, env_steps=steps)["training_rate"]
            for seed in range(settings.pairs)
        ]
    found["training"] = spread(training)
    found["bars"] = case.bars
    found["num_seeds"], found["config"] = case.num_seeds, case.config
    found["algorithm"], found["env"] = case.algorithm, case.env
    levels = found["levels"]
    found["eta"] = found["training"]["median"] / levels["environment"]
    found["of_limit"] = found["training"]["median"] / levels["limit"]
    return found


def run_peer(
    name: str,
    case: Case,
    settings: Settings,
    ours: Process,
    command: Sequence[str],
    env_steps: int,
) -> dict[str, Any]:
    """Measure pairs of runs, ours and the peer's alternating, and check learning."""
    try:
        with worker(command, settings.device) as theirs:
            few = first_steps(case)
            answer = theirs.ask("prepare", case=case.as_json(name, few))
            theirs.ask("run", seed=0, env_steps=few)
            their_rate = rate(theirs, 0, few)
            # As many steps as ours needs for a repeat, or, of a peer ten times slower,
            # as many as the peer needs.
            steps = min(env_steps, max(few, int(1.1 * settings.seconds * their_rate)))
            if steps > env_steps / 10:
                steps = env_steps
            if steps != few:
                answer = theirs.ask("prepare", case=case.as_json(name, steps))
            pairs = []
            for i in range(settings.pairs):
                # Who goes first changes with each pair.
                both = [(ours, "ours"), (theirs, "theirs")][:: 1 if i % 2 else -1]
                pairs.append(
                    {w: rate(p, i + 1, steps, 0.9 * settings.seconds) for p, w in both}
                )
            return answer | {
                "env_steps": steps,
                "ours": spread([pair["ours"] for pair in pairs]),
                "theirs": spread([pair["theirs"] for pair in pairs]),
                "ratio": spread([pair["ours"] / pair["theirs"] for pair in pairs]),
            }
    except Failed as error:
        return {"error": str(error)}


def learning_check(
    name: str,
    case: Case,
    settings: Settings,
    commands: dict[str, Sequence[str]],
) -> dict[str, Any]:
    """Greedy returns of jaxrl and of a peer after as many steps, and their difference."""
    steps = 3 * first_steps(case) if settings.quick else case.learn_steps
    seeds = list(range(2 if settings.quick else case.learn_seeds))
    returns = {}
    for who, command in commands.items():
        with worker(command, settings.device) as process:
            process.ask("prepare", case=case.as_json(name, steps))
            answer = process.ask("learn", seeds=seeds, env_steps=steps, episodes=64)
            returns[who] = answer["returns"]
    ours, *others = returns
    return {
        "env_steps": steps,
        "returns": returns,
        "difference": {
            peer: bootstrap_difference(returns[ours], returns[peer]) for peer in others
        },
    }


def environment_table(settings: Settings, report: Report) -> list[dict[str, Any]]:
    """B8: E of each environment and size, by reset strategy and by gymnax."""
    sizes = LEVEL_SIZES[:1] if settings.quick else LEVEL_SIZES
    rows = []
    with worker(OURS, settings.device) as process:
        for env in LEVEL_ENVS:
            for num_envs in sizes:
                num_steps = max(8, min(128, 2**20 // num_envs))
                answer = process.ask(
                    "environment",
                    env=env,
                    num_envs=num_envs,
                    num_steps=num_steps,
                    least=settings.level_seconds,
                )
                rows.append({"env": env, "num_envs": num_envs} | answer)
                ratio = answer["environment"] / answer["gymnax"]
                report(f"  {env} x {num_envs}: {ratio:.1f} times gymnax's own step")
    return rows


def scaling(settings: Settings, report: Report) -> dict[str, list[dict[str, Any]]]:
    """Measure T of B1 with more environments, seeds and units, of B5 with more memory."""
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, cases in SCALING.items():
        found[kind] = []
        for size, case in list(cases.items())[: 2 if settings.quick else None]:
            steps = first_steps(case)
            with worker(OURS, settings.device) as process:
                process.ask("prepare", case=case.as_json(kind, steps))
                if not settings.quick:
                    first = rate(process, 0, steps)
                    steps = max(steps, int(2.0 * first / case.num_seeds))
                values = [
                    process.ask("run", seed=seed, env_steps=steps)["training_rate"]
                    for seed in range(3)
                ]
            found[kind].append({"size": size} | spread(values))
            report(f"  {kind} {size}: {statistics.median(values):,.0f} steps/s")
    return found


def against_in_words(against: dict[str, Any]) -> str:
    if "error" in against:
        return f"could not run ({against['error']})"
    ratio, theirs = against["ratio"], against["theirs"]["median"]
    return (
        f"{ratio['median']:.2f} times [{ratio['min']:.2f}, {ratio['max']:.2f}], "
        f"theirs {theirs:,.0f} steps/s"
    )
