"""Our environments behind Gymnasium's interface, tested by Gymnasium's own checks.

    python -m benchmarks.adapters                  # minutes
    python -m benchmarks.adapters --parts suites   # with the extras `dev` and `suites`
    python -m benchmarks.adapters --ids CartPole-v1 --out DIR

A row for each id and check:

check_env  Gymnasium's, on `to_gymnasium`, made by `gymnasium.make`
vector     `to_gymnasium_vector` of three, 25 steps with a time limit of 9, against
           Gymnasium's `SyncVectorEnv` of `to_gymnasium`: spaces, observations, rewards,
           flags, the last observation in `info`, seeds; in each mode of autoreset

ours     every id that needs no other library
suites   some of each library that is an extra; rows of a missing library are kept

Writes benchmarks/results/adapters.json, which docs/gymnasium.md shows.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

from benchmarks.speed import script
from jaxrl import env_ids, make
from jaxrl.interop.gymnasium import MODES
from jaxrl.runs.experiment import commit, versions
from tests.support.gymnasium_api import single_test, vector_test

HERE = Path(__file__).parent
PARTS = ["ours", "suites"]
SUITES = {
    "brax": ("inverted_pendulum", "ant"),
    "craftax": ("Craftax-Classic-Symbolic-v1",),
    "jumanji": ("Game2048-v1", "Snake-v1", "Maze-v0"),
    "navix": ("Navix-Empty-5x5-v0", "Navix-DoorKey-5x5-v0", "Navix-LavaGapS5-v0"),
    "pgx": ("minatar-breakout", "minatar-asterix", "2048"),
}


ROUNDING = {"brax/ant": 0.05}
"""Tolerance of floats between one program of three environments and three programs of
one: contacts amplify rounding. Differences of 0.006 occur; a wrong reset differs by 1."""


def main() -> None:
    parser = script.parser(__doc__, PARTS)
    parser.add_argument(
        "--ids", nargs="+", help="some ids; by default all of the parts"
    )
    arguments, file, rows = script.opened(parser, HERE / "results", "adapters.json")
    for id in arguments.ids or chosen(arguments.parts, arguments.quick):
        rows[id] = checked(id) | {"commit": commit(), "versions": of_libraries(id)}
        print(id, {name: row["passed"] for name, row in rows[id]["checks"].items()})
        about = {"versions": versions(), "command": "python -m benchmarks.adapters"}
        file.write_text(
            json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8"
        )
        jax.clear_caches()
    print(table(rows))


def chosen(parts: list[str], quick: bool) -> list[str]:
    ours = env_ids() if "ours" in parts else []
    there = {x: names for x, names in SUITES.items() if find_spec(x)}
    others = [f"{x}/{name}" for x, names in there.items() for name in names]
    return (ours[:1] if quick else ours) + (others if "suites" in parts else [])


def checked(id: str) -> dict[str, Any]:
    checks = {"check_env": tried(lambda: single_test(id))}
    for mode in MODES:
        checks[f"vector, {mode}"] = tried(lambda mode=mode: ends(id, mode))
    passed = all(x["passed"] for x in checks.values())
    return {"checks": checks, "passed": passed, "tolerance": ROUNDING.get(id, 1e-5)}


def ends(id: str, mode: str) -> None:
    """Check autoreset in a vector environment, in which at least one episode must end."""
    tolerance = ROUNDING.get(id, 0.0)
    ended = vector_test(make(id, horizon=9), mode, tolerance=tolerance)
    assert ended > 0, "no episode ended"


def tried(check: Callable[[], Any]) -> dict[str, Any]:
    """Outcome of a check, the reason for a failure, and Gymnasium's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            check()
            reason = ""
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    said = {str(x.message) for x in caught if "WARN" in str(x.message)}
    return {"passed": not reason, "reason": reason, "warnings": sorted(said)}


def of_libraries(id: str) -> dict[str, str]:
    library = id.partition("/")[0]
    names = ["gymnasium", *([library] if library in SUITES else [])]
    return {name: metadata.version(name) for name in names}


def group(id: str) -> str:
    library, slash, _ = id.partition("/")
    return f"{library}/" if slash else "gymnax"


def table(rows: dict[str, Any]) -> str:
    names = ["check_env", *(f"vector, {mode}" for mode in MODES)]
    lines = [
        f"| environments | ids | {' | '.join(names)} |",
        "|---" * (2 + len(names)) + "|",
    ]
    for kind, count in Counter(map(group, rows)).items():
        of_kind = [row for id, row in rows.items() if group(id) == kind]
        passed = [sum(x["checks"][name]["passed"] for x in of_kind) for name in names]
        lines.append(f"| `{kind}` | {count} | {' | '.join(map(str, passed))} |")
    failed = [
        f"- `{id}`, {name}: {check['reason']}"
        for id, row in rows.items()
        for name, check in row["checks"].items()
        if not check["passed"]
    ]
    return "\n".join([*lines, *([""] if failed else []), *failed]) + "\n"


if __name__ == "__main__":
    main()
