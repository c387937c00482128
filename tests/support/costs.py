"""What each test costs, by cause: a plugin of pytest and a reader of what it writes.

JAXRL_TEST_COSTS=costs.jsonl pytest -n0
python -m tests.support.costs costs.jsonl

CPU seconds, of this process and of the processes that it started, hold on a busy machine;
seconds of tracing, lowering and compiling are JAX's own events, each without those inside
it. The rest runs: programs, NumPy, and Python.
"""

import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest

VARIABLE = "JAXRL_TEST_COSTS"
CAUSES = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
COLUMNS = ("cpu", "children", "wall", "trace", "lower", "compile", "programs")


class Recorder:
    """Appends one line of JSON for each set-up, call and tear-down of a test."""

    def __init__(self, path: Path):
        self.path = path
        self.costs: Counter[str] = Counter()
        self.seen: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: object) -> None:
        if event not in CAUSES:
            return
        start, inside = time.perf_counter() - duration, 0.0
        while self.seen and self.seen[-1][0] >= start:
            inside += self.seen.pop()[1]
        self.seen.append((start, duration))
        self.costs[CAUSES[event]] += max(duration - inside, 0.0)
        self.costs["programs"] += CAUSES[event] == "compile"

    @contextmanager
    def _phase(self, test: str, phase: str) -> Iterator[None]:
        self.costs.clear()
        self.seen.clear()
        before, started = os.times(), time.perf_counter()
        yield
        after = os.times()
        self.costs["wall"] = time.perf_counter() - started
        self.costs["cpu"] = after.user + after.system - before.user - before.system
        self.costs["children"] = (after.children_user + after.children_system) - (
            before.children_user + before.children_system
        )
        rounded = {key: round(value, 4) for key, value in self.costs.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"test": test, "phase": phase, **rounded}) + "\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        with self._phase(item.nodeid, "setup"):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        with self._phase(item.nodeid, "call"):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item):
        with self._phase(item.nodeid, "teardown"):
            return (yield)


def table(path: Path, number: int = 60) -> str:
    """Costs by file, and of the dearest set-ups and calls."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    files: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        for name in (row["test"].partition("::")[0], "all"):
            files[name].update({key: row.get(key, 0) for key in COLUMNS})
    lines = [" ".join(f"{key:>8}" for key in COLUMNS)]
    costs = sorted(files.items(), key=lambda item: -_cpu(item[1]))
    costs += [
        (f"{row['test']} ({row['phase']})", row)
        for row in sorted(rows, key=_cpu, reverse=True)[:number]
    ]
    for name, cost in costs:
        numbers = " ".join(f"{cost.get(key, 0):8.1f}" for key in COLUMNS)
        lines.append(f"{numbers}  {name}")
    return "\n".join(lines)


def _cpu(costs: dict[str, float]) -> float:
    return costs.get("cpu", 0.0) + costs.get("children", 0.0)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
