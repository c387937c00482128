"""Benchmark scripts that CI does not run itself: they run; their results meet the bars."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from jaxrl import env_ids, statistics
from jaxrl.runs import presets
from tests.support.paths import ROOT
from tools import tables, training

RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text()


def script(name):
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    ["values", "gradients", "rlhf_small_world", "serving", "interval_coverage"],
)
def test_it_runs_at_a_small_size_and_leaves_the_results_alone(name, tmp_path):
    before = (RESULTS / f"{name}.json").read_bytes()
    words = ["--quick"] + (["--out", str(tmp_path)] if name != "values" else [])
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *words],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (RESULTS / f"{name}.json").read_bytes() == before
    assert done.stdout.strip()


@pytest.mark.full
def test_the_gif_of_training_can_be_drawn_again(tmp_path):
    small = training.CONFIG.replace(
        total_steps=1_600, num_envs=2, num_steps=40, num_epochs=1, num_minibatches=1
    )
    drawn = list(training.frames(small))
    assert len({frame.shape for frame in drawn}) == 1
    assert len({frame.tobytes() for frame in drawn}) > len(training.MOMENTS) * 10


def test_the_gif_of_training_is_small():
    assert training.OUT.stat().st_size < 1_500_000


TABLES = {
    match[0]
    for page in (ROOT / "docs").glob("*.md")
    for match in tables.PLACEHOLDER.finditer(page.read_text())
    if match[1] == "results"
}


@pytest.mark.parametrize("spec", sorted(TABLES))
def test_committed_results_render(spec):
    assert "|---|" in tables.render(spec)


def test_every_part_of_the_results_is_on_a_page():
    assert len(TABLES) > 25
    for name in ("rlhf_small_world", "rlhf_larger_world", "rlhf_speed"):
        parts = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
        assert {f"{{{{ results({name}, {part}) }}}}" for part in parts} <= TABLES


def test_committed_values():
    found = json.loads((RESULTS / "values.json").read_text())
    assert found["seeds"] >= 30 and found["trajectories"] == 1_000
    rms = {name: row["rms"] for name, row in found["methods"].items()}
    assert len(rms) == 4 and max(rms, key=rms.get) == "TD(1)"


def test_committed_coverage_of_intervals():
    """Ten seeds are the number from which nothing is said of an interval."""
    rows = json.loads((RESULTS / "interval_coverage.json").read_text())["rows"]
    for by_size in rows.values():
        covered = {int(n): row["percentile"]["coverage"] for n, row in by_size.items()}
        assert all(covered[n] > 0.92 for n in covered if n >= statistics.FEW_SEEDS)
        assert all(covered[n] < 0.92 for n in covered if n < statistics.FEW_SEEDS)


def test_committed_exports_and_serving():
    rows = json.loads((RESULTS / "serving.json").read_text())["rows"]
    for row in rows.get("export", ()):
        assert row["within"] == row["observations"] == 1_000 and row["largest"] <= 1e-5
    assert rows["load"]["failed"] == 0 and rows["load"]["seconds"] == 60
    malformed = rows["malformed"]
    assert malformed["refused_4xx"] == malformed["requests"] == 1_000
    assert malformed["alive"] and rows["load"]["alive"]


def test_committed_small_world():
    rows = json.loads((RESULTS / "rlhf_small_world.json").read_text())["rows"]
    module = script("rlhf_small_world")
    for part, row in rows.items():
        assert row["seeds"] >= (3 if part == "language-model" else 5)
    methods = rows["policies"]["methods"]
    assert list(methods) == list(module.METHODS)
    for name in module.HELD:
        assert module.reached(methods[name]) and methods[name]["seconds"] <= 120, name
    assert not module.reached(methods["GRPO as published"])
    held_by_more = module.small_world.optimum(
        module.REFERENCE_RESPONSES, module.REWARD, module.BETA * 4 / 3
    )
    reward, best = (
        float(module.small_world.expected_reward(x.log_prob, module.REWARD))
        for x in (held_by_more, module.OPTIMUM)
    )
    k2 = methods["GRPO, k2 in the loss"]["reward"]["iqm"]
    assert abs(k2 - reward / best) < 0.005 < 1.0 - k2
    accuracy = rows["reward-model"]["pairs"]["50000"]["accuracy"]["by_seed"]
    assert min(accuracy) >= rows["reward-model"]["bayes"] - module.BAR_ACCURACY


def test_committed_larger_world():
    rows = json.loads((RESULTS / "rlhf_larger_world.json").read_text())["rows"]
    module = script("rlhf_larger_world")
    methods = rows["methods"]["rows"]
    assert rows["methods"]["seeds"] >= 3
    for name in ("best of 8", "PPO", "GRPO", "DPO"):
        assert min(methods[name]["win_rate"]["by_seed"]) >= module.BAR, name
    lora = rows["lora"]
    assert lora["seeds"] >= 3 and lora["share_of_parameters"] <= 0.05
    assert lora["share"]["gold"]["mean"] >= 0.95
    assert lora["rows"]["LoRA"]["kl"]["mean"] <= lora["rows"]["full"]["kl"]["mean"]
    runs = rows["penalty"]["runs"]
    assert len(runs) == 4
    # Without a KL penalty gold turns over while the reward model's score goes on rising.
    free = runs["0"]
    assert free["gold"][-1] < free["gold"][0] < max(free["gold"])
    assert free["score"][-1] > max(runs["0.3"]["score"])


def test_committed_comparison_with_trl():
    rows = json.loads((RESULTS / "rlhf_speed.json").read_text())["rows"]
    assert rows["tiny"]["ratio"]["median"] >= 3.0
    low, high = rows["tiny"]["reward_difference"]
    assert low <= 0.0 <= high


def test_a_newcomer_finds_every_block_of_first_contact():
    module = script("first_contact")
    for milestone in module.MILESTONES:
        found = module.below(
            ROOT / milestone.page, milestone.heading, milestone.language
        )
        assert len(found) >= milestone.count, milestone
        assert milestone.language != "bash" or "jaxrl train " in found[0]
    with pytest.raises(SystemExit, match=r'no heading "Nowhere"'):
        module.below(ROOT / "README.md", "Nowhere", "bash")
    none = module.MILESTONES[0]._replace(language="python")
    with pytest.raises(SystemExit, match='python below "Two commands"'):
        module.followed(ROOT, none)


def test_committed_first_contact_meets_its_bars():
    rows = json.loads((RESULTS / "first_contact.json").read_text())["rows"]
    module = script("first_contact")
    assert [x["name"] for x in rows["milestones"]["steps"]] == [
        x.name for x in module.MILESTONES
    ]
    assert all(x["met"] for x in (*rows["milestones"]["steps"], rows["import"]))


def test_the_committed_zoo_is_that_of_the_presets():
    rows = json.loads((RESULTS / "zoo.json").read_text())
    assert list(rows) == presets.names()
    for name, row in rows.items():
        assert row["config"] == presets.content(name)["config"], name
        assert len(row["returns"]) == len(row["untuned"]["returns"]) >= 10
        assert max(row["seeds"]) < row["search"]["first_seed"]


def test_committed_checks_of_the_adapters_pass():
    rows = json.loads((RESULTS / "adapters.json").read_text())["rows"]
    module = script("adapters")
    assert set(env_ids()) <= set(rows)
    assert {module.group(id).strip("/") for id in rows} >= set(module.SUITES)
    assert [id for id, row in rows.items() if not row["passed"]] == []


def test_the_numbers_of_the_readme_are_committed():
    ids = json.loads((RESULTS / "adapters.json").read_text())["rows"]
    assert f"All {len(ids)} environment ids" in README
    faults = json.loads((RESULTS / "faults.json").read_text())["rows"]
    kills = [row for name, row in faults.items() if name.startswith("kill -9")]
    runs, resumed = (sum(row[x] for row in kills) for x in ("trials", "passed"))
    assert (
        f"Of {runs} runs killed with `kill -9` at random moments, {resumed}" in README
    )
    speed = json.loads((RESULTS / "throughput" / "throughput.json").read_text())[
        "cases"
    ]
    rejax, sb3 = speed["B2x16"]["peers"]["rejax"], speed["B1"]["peers"]["sb3"]
    assert f"{rejax['ours']['median'] / 1e3:.0f},000 steps per second" in README
    assert f"{rejax['ratio']['median']:.2f} times as fast as Rejax" in README
    assert f"{sb3['ratio']['median']:.1f} times as fast as" in README
