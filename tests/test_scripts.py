"""Benchmark scripts that CI does not run itself: they run, and pages show the results."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def script(name):
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["values", "gradients"])
def test_it_runs_at_a_small_size_and_leaves_the_results_alone(name, tmp_path):
    before = (RESULTS / f"{name}.json").read_bytes()
    words = ["--quick"] + (["--out", str(tmp_path)] if name != "values" else [])
    path = str(ROOT / "benchmarks" / f"{name}.py")
    done = subprocess.run(
        [sys.executable, path, *words],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (RESULTS / f"{name}.json").read_bytes() == before
    assert done.stdout.strip()


def test_the_values_that_are_committed_are_shown():
    found = json.loads((RESULTS / "values.json").read_text())
    assert script("values").table(found) in (ROOT / "docs" / "td.md").read_text()
    assert found["seeds"] >= 30 and found["trajectories"] == 1_000
    rms = {name: row["rms"] for name, row in found["methods"].items()}
    assert len(rms) == 4 and max(rms, key=rms.get) == "TD(1)"
