"""`run_benchmark`: run selected cases and write one result file with its tables."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed import host, report
from benchmarks.speed.host import OURS, Failed, Settings
from jaxrl.runs.experiment import commit


def run_benchmark(
    names: Sequence[str] = (),
    *,
    quick: bool = False,
    device: str | None = None,
    out: Path | None = None,
    peers: dict[str, Sequence[str]] | None = None,
    parts: Sequence[str] = ("speed", "learning"),
    say: host.Report = print,
) -> dict[str, Any]:
    """Run the benchmark and, with `out`, write `throughput.json`, `.md` and `.png` there.

    Args:
      names: cases, "B8" and "scaling"; none for all that fit the device.
      quick: a fraction of a second each, as a smoke test.
      device: "cpu", "gpu" or "tpu"; by default JAX's choice.
      out: a folder.
      peers: the command of each peer's worker.
      parts: the speed of the cases, their returns beside the first peer's, or both.
      say: a function that is called with progress messages.

    Raises:
      InvalidInput: a case is unknown; raised before anything runs.
    """
    host.chosen_cases(names, "cpu")
    settings, peers = Settings(quick, device), peers or {}
    results = machine(settings)
    if (names or len(parts) < 2) and out is not None:
        results = kept(out) | results
    words = ["python", "-m", "benchmarks.throughput", "--cases", *names]
    results["command"] = " ".join([*words, *["--quick"] * quick])
    for table in ("cases", "learning"):
        results.setdefault(table, {})
    cases = host.chosen_cases(names, results["platform"])
    for name, case in cases.items() if "speed" in parts else ():
        say(f"== {name}: {case.algorithm} on {case.env}, {case.num_seeds} seed(s)")
        try:
            found = host.run_case(name, case, settings, peers, say)
            rate = found["training"]["median"]
            say(f"  {rate:,.0f} steps/s, {found['of_limit']:.0%} of the limit")
        except Failed as error:
            found = {"error": str(error), "peers": {}, "bars": case.bars}
            say(f"  could not run: {error}")
        results["cases"][name] = found | {"commit": results["commit"]}
        write(results, out)
    for name, case in cases.items():
        against = {p: peers[p] for p in case.peers[:1] if p in peers}
        if case.learn_steps and against and "learning" in parts:
            say(f"== {name}: learning")
            try:
                check = host.learning_check(
                    name, case, settings, {"jaxrl": OURS} | against
                )
            except Failed as error:
                check = {"error": str(error)}
            results["learning"][name] = check | {"commit": results["commit"]}
            write(results, out)
    if (not names and "speed" in parts) or "B8" in names:
        say("== B8: environments alone")
        results["environments"] = host.environment_table(settings, say)
        write(results, out)
    if (not names and "speed" in parts) or "scaling" in names:
        say("== scaling of B1 and B5")
        results["scaling"] = host.scaling(settings, say)
        write(results, out)
    return results


def machine(settings: Settings) -> dict[str, Any]:
    """Machine and versions on which the results depend, and empty tables."""
    with host.worker(OURS, settings.device) as process:
        case = host.CASES["B1"]
        answer = process.ask("prepare", case=case.as_json("B1", 512))
    return {
        "device": answer["device"],
        "platform": answer["platform"],
        "devices": answer["devices"],
        "cores": os.cpu_count(),
        "versions": answer["versions"],
        "commit": commit(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "quick": settings.quick,
    }


def kept(out: Path) -> dict[str, Any]:
    """Previous results in a folder, kept for the cases that are not run again."""
    try:
        return json.loads((out / "throughput.json").read_text(encoding="utf-8"))
    except OSError:
        return {}


def write(results: dict[str, Any], out: Path | None) -> None:
    """Write the results after each case, so that an interrupted run keeps them."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "throughput.json").write_text(
        json.dumps(results, indent=1) + "\n", encoding="utf-8"
    )
    (out / "throughput.md").write_text(report.markdown(results), encoding="utf-8")
    if results.get("scaling"):
        report.plot_scaling(results["scaling"], out / "throughput.png")
