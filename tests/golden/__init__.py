"""Numbers and run folders of this version, kept for later ones.

    python -m tests.golden            # how far today's trajectories are from the kept ones
    python -m tests.golden --update   # writes trajectories.json
    python -m tests.golden --runs     # makes the run folders anew, for a new schema

`trajectories.json`: losses and gradient norms of 50 train steps. `VERSION-NAME/`: a run
that was stopped on its way, and the likeliest actions of the agent it had then.
"""

import argparse
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import jaxrl
from jaxrl import DQN, PPO, REINFORCE, make, spaces
from jaxrl.runs.experiment import read_experiment
from jaxrl.runs.session import run_experiment
from jaxrl.training import loop
from jaxrl.types import Algorithm
from tests.support.runs import train
from tests.support.small import tiny

FOLDER = Path(__file__).parent
TRAJECTORIES = FOLDER / "trajectories.json"
STEPS = 50

CASES: dict[str, tuple[Algorithm, str, dict[str, Any]]] = {
    "ppo": (PPO, "probe/action-observation", {}),
    "ppo-gru": (PPO, "probe/memory", {"network": "gru(size=4)", "normalize_obs": True}),
    "reinforce": (REINFORCE, "probe/action-observation", {}),
    "dqn": (DQN, "probe/action-observation", {}),
}

RUNS = {
    "ppo": ["ppo"],
    "ppo-gru": [
        "ppo",
        *["--network", "gru(size=4)", "--num-minibatches", "1", "--normalize-obs"],
    ],
    "reinforce": ["reinforce"],
    "dqn": ["dqn"],
}


def trajectory(name: str) -> dict[str, list[float]]:
    """Losses and gradient norm after each of `STEPS` train steps."""
    algorithm, env_id, changes = CASES[name]
    config = tiny(algorithm, **changes)
    result = loop.train(
        algorithm, config, make(env_id), iterations=STEPS, num_chunks=STEPS
    )
    names = [n for n in result.history[0] if n.startswith("loss/")] + [
        "optim/grad_norm"
    ]
    return {n: [row[n][0] for row in result.history] for n in names}


def recorded() -> dict[str, dict[str, list[float]]]:
    return json.loads(TRAJECTORIES.read_text())


def distance(found: dict[str, list[float]], kept: dict[str, list[float]]) -> float:
    """The largest difference, as a part of the largest number of the same name."""
    assert found.keys() == kept.keys()
    return max(
        float(np.abs(np.subtract(found[n], kept[n])).max() / np.abs(kept[n]).max())
        for n in kept
    )


def actions(policy: Any) -> list[float]:
    """The likeliest actions of an agent for eight observations."""
    space = policy.env.observation_space
    obs = spaces.zeros(space, (8,)) + np.linspace(-1, 1, 8)[:, None]
    action, _ = policy.act(obs, policy.init_memory(8))
    return np.asarray(action).tolist()


def kept_runs() -> list[Path]:
    return sorted(path.parent for path in FOLDER.glob("*/config.json"))


def write_run(name: str) -> None:
    """A run that is stopped after its second train step."""
    folder = FOLDER / f"{jaxrl.__version__}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    algorithm, *more = RUNS[name]
    with tempfile.TemporaryDirectory() as work:
        finished = train(Path(work) / "run", algorithm, *more)
        experiment = read_experiment(finished)
    asked = iter(range(10**6))
    run_experiment(
        dataclasses.replace(experiment, keep=1),
        folder,
        progress=False,
        report=lambda line: None,
        interrupted=lambda: next(asked) == 2,
    )
    (folder / "learning_curve.png").unlink()
    found = actions(jaxrl.load_policy(folder))
    (folder / "actions.json").write_text(json.dumps(found) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--update", action="store_true", help="write the trajectories")
    parser.add_argument("--runs", action="store_true", help="make the run folders")
    arguments = parser.parse_args()
    if arguments.runs:
        for name in RUNS:
            write_run(name)
        return
    found = {name: trajectory(name) for name in CASES}
    if arguments.update:
        TRAJECTORIES.write_text(json.dumps(found, indent=1) + "\n")
    for name, numbers in found.items():
        print(f"{name}: {distance(numbers, recorded()[name]):.1e} from what is kept")
