"""The comparison of trust regions: the committed results."""

import importlib.util
import json

from tests.support.paths import ROOT


def test_committed_results_are_whole():
    path = ROOT / "benchmarks" / "trust_regions.py"
    spec = importlib.util.spec_from_file_location("trust_regions", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = json.loads(
        (ROOT / "benchmarks" / "results" / "trust_regions.json").read_text()
    )
    assert results and set(results) <= set(module.ENVS)
    for measured in results.values():
        assert list(measured["methods"]) == list(module.METHODS)
        for found in measured["methods"].values():
            assert len(found["by_seed"]) == measured["seeds"] == 10
