"""Time to first results for a new user: the commands of the pages, on a clean clone.

    python -m benchmarks.first_contact                    # ten minutes on two cores
    python -m benchmarks.first_contact --parts import

milestones  a clone of the last commit, and in it the blocks of README.md and docs/ in the
            order of the pages, word for word and at full size: a new
            virtual environment, the installation, an agent, a figure with intervals, an
            environment, a loss. Caches are cold, both pip's and that of compiled programs
import      `import jaxrl` against `import jax`, one process each, alternating

The blocks are cut out of the pages. A page that lacks one ends the script with a sentence.
Needs git and what pip needs. Writes benchmarks/results/first_contact.json, which
docs/getting-started.md shows.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.speed import script
from jaxrl.runs.experiment import commit, versions
from jaxrl.training.devices import hardware

ROOT = Path(__file__).parent.parent
PARTS = ["milestones", "import"]
FENCE = r"^```(bash|python|py)\n(.*?)^```$"


class Milestone(NamedTuple):
    """A result that the first blocks below a heading produce."""

    name: str
    minutes: float
    """Maximum minutes since the start."""

    page: str
    heading: str
    language: str
    count: int
    makes: str
    """A file that must exist afterwards, or empty."""


MILESTONES = [
    Milestone(
        "first trained agent",
        3,
        "README.md",
        "Two commands",
        "bash",
        1,
        "runs/ppo-CartPole-v1-0-0/summary.json",
    ),
    Milestone(
        "first figure with intervals",
        6,
        "docs/getting-started.md",
        "Several seeds",
        "bash",
        1,
        "curve.png",
    ),
    Milestone(
        "first own environment training",
        10,
        "docs/environments.md",
        "An environment of your own",
        "python",
        1,
        "",
    ),
    Milestone(
        "first own loss training",
        15,
        "docs/custom-loss.md",
        "The policy's term",
        "py",
        1,
        "",
    ),
]

BAR_IMPORT = 1.3
REPEATS = 21
PROGRAMS = {
    "jax": "import jax",
    "jaxrl": "import jaxrl",
    "jaxrl, ready to train": "import jaxrl; jaxrl.PPO, jaxrl.make, jaxrl.train",
}


def main() -> None:
    parser = script.parser(__doc__, PARTS)
    arguments, file, rows = script.opened(
        parser, ROOT / "benchmarks" / "results", "first_contact.json"
    )
    repeats = 3 if arguments.quick else REPEATS
    measures = {"milestones": milestones, "import": lambda: imports(repeats)}
    for part in arguments.parts:
        load = os.getloadavg()[0]
        rows[part] = measures[part]() | {"commit": commit(), "load_before": load}
        about = {"versions": versions(), "hardware": hardware()}
        about |= {"command": "python -m benchmarks.first_contact"}
        file.write_text(
            json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8"
        )
    print(table(rows))


def milestones() -> dict[str, Any]:
    """Seconds from the start to each milestone."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "jaxrl"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        plan = [(m, followed(clone, m)) for m in MILESTONES]  # all are there
        environment = as_new(Path(folder))
        started = time.perf_counter()
        for milestone, commands in plan:
            for command in commands:
                shell(command, clone, environment)
            seconds = time.perf_counter() - started
            if milestone.makes and not (clone / milestone.makes).exists():
                sys.exit(f"{milestone.page} made no {milestone.makes}")
            found.append(reached(milestone, seconds))
            print(f"{seconds:6.1f} s  {milestone.name}", flush=True)
        summary = json.loads((clone / MILESTONES[0].makes).read_text(encoding="utf-8"))
    evaluation = summary["evaluation"]
    return {"steps": found, "episode_return": evaluation["episode_return_mean"]}


def reached(milestone: Milestone, seconds: float) -> dict[str, Any]:
    bar = 60 * milestone.minutes
    about = {"name": milestone.name, "page": milestone.page, "below": milestone.heading}
    return about | {"seconds": round(seconds, 1), "bar": bar, "met": seconds <= bar}


def followed(clone: Path, milestone: Milestone) -> list[str]:
    """Shell commands of a milestone; a program is saved and run."""
    blocks = below(clone / milestone.page, milestone.heading, milestone.language)
    if len(blocks) < milestone.count:
        sys.exit(
            f"{milestone.page} has {len(blocks)} blocks of {milestone.language} below "
            f'"{milestone.heading}", and {milestone.count} make the '
            f"{milestone.name}: correct the page, or the list in this script"
        )
    if milestone.language == "bash":
        return blocks[: milestone.count]
    name = milestone.heading.lower().replace(" ", "_").replace("'", "") + ".py"
    (clone / name).write_text("".join(blocks[: milestone.count]), encoding="utf-8")
    return [f"python {name}"]


def below(page: Path, heading: str, language: str) -> list[str]:
    """Blocks of a language between a heading and the next of its rank."""
    found = re.search(
        rf"^(##+) {re.escape(heading)}\n(.*?)(?=^##? |\Z)",
        page.read_text(encoding="utf-8"),
        re.M | re.S,
    )
    if not found:
        sys.exit(f'{page.name} has no heading "{heading}"')
    return [
        text
        for kind, text in re.findall(FENCE, found[2], re.M | re.S)
        if kind == language
    ]


def shell(command: str, clone: Path, environment: dict[str, str]) -> None:
    """Run commands in the virtual environment, if it exists, as the pages instruct."""
    activate = "[ ! -f .venv/bin/activate ] || . .venv/bin/activate\n"
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", activate + command],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        sys.exit(f"exit code {done.returncode} of\n{command}\n{done.stdout[-3000:]}")


def as_new(folder: Path) -> dict[str, str]:
    """This process's environment without its virtual environment and its caches."""
    gone = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "JAX_COMPILATION_CACHE_DIR")
    kept = {name: x for name, x in os.environ.items() if name not in gone}
    here = {str(Path(sys.prefix) / "bin"), str(Path(sys.executable).parent)}
    places = [x for x in kept["PATH"].split(os.pathsep) if x not in here]
    path = os.pathsep.join([str(Path(sys.base_prefix) / "bin"), *places])
    return kept | {"PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}


def imports(repeats: int) -> dict[str, Any]:
    """Median seconds of whole processes and of the import statement alone, alternating."""
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(repeats + 1):
        for name, program in PROGRAMS.items():
            times[name].append(seconds_of(program))
    medians = {name: statistics.median(x[1:]) for name, x in times.items()}
    return {
        "seconds": medians,
        "repeats": repeats,
        "ratio": medians["jaxrl"] / medians["jax"],
        "bar": BAR_IMPORT,
        "met": medians["jaxrl"] <= BAR_IMPORT * medians["jax"],
    }


def seconds_of(program: str) -> float:
    """Seconds of the import statement in a new process."""
    timed = (
        "import time; started = time.perf_counter()\n"
        f"{program}\n"
        "print(time.perf_counter() - started)"
    )
    done = subprocess.run(
        [sys.executable, "-c", timed],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    return float(done.stdout.splitlines()[-1])


def table(rows: dict[str, Any]) -> str:
    lines = ["| what | seconds since the start | bar | |", "|---|---|---|---|"]
    for step in rows.get("milestones", {}).get("steps", ()):
        lines.append(
            f"| {step['name']} | {step['seconds']:.0f} | {step['bar']:.0f} | {word(step)} |"
        )
    text = "\n".join(lines) + "\n"
    found = rows.get("import")
    return text + ("\n" + of_imports(found) if found else "")


def of_imports(found: dict[str, Any]) -> str:
    lines = ["| statement | seconds, median | against `import jax` |", "|---|---|---|"]
    for name, program in PROGRAMS.items():
        seconds = found["seconds"][name]
        ratio = seconds / found["seconds"]["jax"]
        lines.append(f"| `{program}` | {seconds:.2f} | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


def word(step: dict[str, Any]) -> str:
    return "met" if step["met"] else "missed"


if __name__ == "__main__":
    main()
