"""Environment steps per second of continuous control, at 1, 64 and 2,048 copies.

    python -m benchmarks.control_envs            # all that are installed; some minutes
    python -m benchmarks.control_envs --quick    # a check; writes nothing

Actions are random, and nothing learns. Each number is the median of three repeats of a
second or more, after compiling. An environment whose library is not installed keeps the row
of an earlier run. Writes results/control_envs.json, the table of docs/environments.md.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

import jaxrl
from benchmarks import captions
from benchmarks.speed.levels import environment_only
from jaxrl.core import files
from jaxrl.errors import InvalidInput
from jaxrl.runs.experiment import commit, versions

RESULTS = Path(__file__).parent / "results" / "control_envs.json"
COPIES = (1, 64, 2_048)


class Case(NamedTuple):
    """An environment, and what it is made with."""

    env: str
    params: dict[str, Any] = {}  # noqa: RUF012

    @property
    def name(self) -> str:
        return " ".join([self.env, *(f"{k}={v}" for k, v in self.params.items())])


BODIES = ("inverted_pendulum", "reacher", "hopper", "halfcheetah", "ant")
CASES = (
    Case("Pendulum-v1"),
    Case("MountainCarContinuous-v0"),
    Case("Reacher-misc"),
    Case("Swimmer-misc"),
    *(
        Case(f"brax/{body}", {"backend": backend})
        for body in BODIES
        for backend in ("spring", "positional", "generalized")
    ),
    *(Case(f"playground/{n}") for n in ("CartpoleBalance", "CheetahRun", "HopperHop")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a check; writes nothing")
    parser.add_argument("--envs", nargs="+", help="only those whose ids begin so")
    arguments = parser.parse_args()
    about = {"command": "python -m benchmarks.control_envs", "commit": commit()}
    about |= {"versions": versions(), "cores": os.cpu_count()}
    about["device"] = jax.devices()[0].device_kind
    found = files.read_json(RESULTS) if RESULTS.exists() else {}
    begins = tuple(arguments.envs or [""])
    cases = [case for case in CASES if case.env.startswith(begins)]
    for case in cases[:1] if arguments.quick else cases:
        try:
            row = measure(case, (1, 2) if arguments.quick else COPIES)
        except InvalidInput as error:
            print(f"{case.name}: left out, {error}", flush=True)
            continue
        found[case.name] = about | row
        print(case.name, row["steps_per_second"], flush=True)
        if not arguments.quick:
            RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(case: Case, copies: tuple[int, ...]) -> dict[str, Any]:
    """Steps per second by number of copies."""
    env, rates = jaxrl.make(case.env, **case.params), {}
    for count in copies:
        steps = max(8, min(128, 2**17 // count))
        rates[str(count)] = round(environment_only(env, count, steps, least=1.0))
    shape = list(getattr(env.observation_space, "shape", ()))
    return {
        "env": case.env,
        "params": case.params,
        "observation": shape,
        "actions": env.action_space.size,
        "steps_per_second": rates,
    }


def table(rows: dict[str, Any]) -> str:
    """The table of docs/environments.md."""
    heads = " | ".join(f"{n:,}" for n in COPIES)
    lines = [
        f"| environment | backend | observation | actions | {heads} |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        rates = " | ".join(f"{row['steps_per_second'][str(n)]:,}" for n in COPIES)
        shape = ", ".join(map(str, row["observation"]))
        lines.append(
            f"| `{row['env']}` | {row['params'].get('backend', '-')} | {shape} | "
            f"{row['actions']} | {rates} |"
        )
    last = list(rows.values())[-1]
    about = (
        f"`{last['command']}`: environment steps per second, all copies together, with "
        f"random actions. {captions.device(rows.values())}"
    )
    return "\n".join([*lines, "", about]) + "\n"


if __name__ == "__main__":
    main()
