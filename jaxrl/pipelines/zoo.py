"""The zoo: reference agents, and the search for the presets that they are trained with.

OUT/NAME/      a run folder each: config, metrics, learning curve, policy, summary
OUT/zoo.json   of each the command, config, returns with their interval, curve, versions,
               and the SHA-256 of the trained arrays
OUT/report/    page, tables and figures of all of them (see `jaxrl.report`)

`jaxrl zoo` goes on where it was killed: finished agents are only read.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl import plotting
from jaxrl.algorithms import ALGORITHMS
from jaxrl.core import config as configs
from jaxrl.core import files, run_folders, schema, storage
from jaxrl.errors import InvalidInput, did_you_mean, require
from jaxrl.report import write_report
from jaxrl.runs import presets
from jaxrl.runs.experiment import (
    Experiment,
    describe,
    json_text,
    read_experiment,
    read_rows,
)
from jaxrl.runs.loggers import RETURN
from jaxrl.runs.session import resume_experiment, run_experiment
from jaxrl.statistics import row_of_seeds
from jaxrl.sweeps.plan import Sweep
from jaxrl.sweeps.results import Trial, trial_rows
from jaxrl.sweeps.space import Domain, Range, as_space
from jaxrl.sweeps.training import is_sweep, resume_sweep, run_sweep

FIRST_SEED = 1_000
"""Of a search. Agents of the zoo, and everything else by default, count from 0, so that
no seed that is reported had a part in the choice."""


class Search(NamedTuple):
    """How the preset of an algorithm on an environment is looked for."""

    algorithm: str
    env: str
    config: Mapping[str, Any]
    """What is given: sizes and lengths."""
    space: Mapping[str, Domain | Sequence[Any]]
    """What is drawn at random."""
    trials: int = 24
    num_seeds: int = 4
    """Agents trained with each setting."""


STEP_SIZE = Range(3e-4, 1e-2, log=True)
DISCOUNTS = (0.9, 0.95, 0.98, 0.99, 0.995)
ON_POLICY = {"learning_rate": STEP_SIZE, "gamma": DISCOUNTS}
ENTROPY = {"ent_coef": (0.0, 0.001, 0.003, 0.01, 0.03)}
CLIPPED = {
    **ON_POLICY,
    **ENTROPY,
    "gae_lambda": (0.8, 0.9, 0.95, 0.98),
    "clip_eps": (0.1, 0.2, 0.3),
    "vf_coef": (0.25, 0.5, 1.0),
}
OFF_POLICY = {
    "learning_rate": Range(1e-4, 3e-3, log=True),
    "gamma": DISCOUNTS,
    "epsilon_end": (0.01, 0.05, 0.1),
    "exploration_fraction": (0.1, 0.3, 0.5),
}
IMAGES = {
    "total_steps": 1_000_000,
    "num_envs": 32,
    "num_steps": 32,
    "num_minibatches": 8,
    "network": "mlp",
}

SEARCHES = {
    presets.name_of(search.algorithm, search.env): search
    for search in (
        Search("ppo", "CartPole-v1", {"total_steps": 100_000}, CLIPPED),
        Search("ppo", "Acrobot-v1", {"total_steps": 250_000}, CLIPPED, 16, 3),
        Search(
            "ppo",
            "MountainCar-v0",
            {"total_steps": 500_000, "num_steps": 256, "normalize_obs": True},
            CLIPPED,
        ),
        Search(
            "ppo",
            "Pendulum-v1",
            {
                "total_steps": 500_000,
                "num_epochs": 10,
                "num_minibatches": 8,
                "normalize_obs": True,
            },
            CLIPPED,
            16,
            3,
        ),
        Search("ppo", "Catch-bsuite", {"total_steps": 100_000}, CLIPPED),
        Search("ppo", "Breakout-MinAtar", IMAGES, CLIPPED, 12, 2),
        Search(
            "a2c",
            "CartPole-v1",
            {"total_steps": 200_000},
            {
                **ON_POLICY,
                **ENTROPY,
                "critic_learning_rate": STEP_SIZE,
                "gae_lambda": (0.9, 0.95, 1.0),
            },
        ),
        Search(
            "reinforce",
            "CartPole-v1",
            {"total_steps": 200_000},
            {**ON_POLICY, **ENTROPY},
        ),
        Search(
            "dqn",
            "CartPole-v1",
            {"total_steps": 100_000, "learning_starts": 2_000},
            OFF_POLICY,
        ),
        Search(
            "dqn",
            "Catch-bsuite",
            {"total_steps": 50_000, "learning_starts": 2_000},
            OFF_POLICY,
            12,
            2,
        ),
    )
}

INDEX = "zoo.json"


@dataclass(frozen=True)
class Row:
    """What is relied on in a row of the index, which `row_of` makes."""

    OPEN = True
    algorithm: str
    env: str
    config: dict[str, Any]
    env_steps: schema.Count
    returns: list[float | None]
    sha256: str


Host = dict[str, Any]
"""`progress`, `report` and `interrupted`, as `run_experiment` takes them."""


def build(
    names: Sequence[str],
    out: Path | str,
    *,
    seed: int = 0,
    num_seeds: int = 10,
    progress: bool = True,
    report: Callable[[str], None] = print,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train reference agents with their presets, and write what became of them.

    Args:
      names: of presets; none for all.
      out: a folder, new or of an earlier call, which goes on.
      seed: the first seed.
      num_seeds: agents of each preset, in one program.
      progress: whether to show it.
      report: called with lines for a person.
      interrupted: asked every few seconds; True ends it early.

    Returns:
      The content of `zoo.json`, by name.

    Raises:
      InvalidInput: before anything is trained: there is no such preset, or the folder
        holds other runs or a damaged index.
    """
    wanted = {
        name: _experiment(name, seed, num_seeds)
        for name in _known(names, presets.names())
    }
    for name, experiment in wanted.items():
        _check_same(Path(out) / name, experiment)
    before = read_index(Path(out))
    run_folders.refuse_links(Path(out))
    host: Host = dict(progress=progress, report=report, interrupted=interrupted)
    rows = {}
    for name, experiment in wanted.items():
        if interrupted():
            break
        report(f"{name}:")
        summary = _trained(experiment, Path(out) / name, host)
        if summary["finished"]:
            rows[name] = row_of(name, Path(out) / name, experiment, summary)
            storage.write_text(Path(out) / INDEX, json_text(before | rows))
    if rows:
        for line in write_report([Path(out) / n for n in rows], Path(out) / "report"):
            report(f"note: {line}")
    return rows


def tune(
    name: str,
    out: Path | str,
    *,
    progress: bool = True,
    report: Callable[[str], None] = print,
    interrupted: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Searches for the preset of one name, and writes it as OUT/NAME.toml.

    Random search; the sweep is in OUT/NAME/. The setting with the highest IQM of its
    evaluation returns is taken; of those that are equal, the one that learned fastest.

    Args:
      name: one of `SEARCHES`.
      out: a folder, new or of an earlier call, which goes on.
      progress: whether to show it.
      report: called with lines for a person.
      interrupted: asked every few seconds; True ends it early.

    Returns:
      The file, or None if it was interrupted.

    Raises:
      InvalidInput: nothing is searched under that name.
    """
    (name,) = _known([name], sorted(SEARCHES))
    search, folder = SEARCHES[name], Path(out) / name
    host: Host = dict(progress=progress, report=report, interrupted=interrupted)
    run_folders.refuse_links(Path(out))
    if is_sweep(folder):
        result = resume_sweep(folder, **host)
    else:
        result = run_sweep(sweep_of(search), folder, **host)
    if not result.summary["finished"]:
        return None
    path = Path(out) / f"{name}.toml"
    storage.write_text(path, as_preset(search, chosen(result.trials)))
    return path


def sweep_of(search: Search) -> Sweep:
    """The sweep that looks for a preset."""
    algorithm = ALGORITHMS[search.algorithm]
    experiment = Experiment(
        algorithm,
        configs.from_dict(algorithm.Config, dict(search.config)),
        search.env,
        seed=FIRST_SEED,
        num_seeds=search.num_seeds,
        on_nan="continue",
    )
    space = as_space(search.space)
    return Sweep(experiment, space, sampler="random", trials=search.trials)


def chosen(trials: Sequence[Trial]) -> Trial:
    """The best trial; of equally good ones the one with the highest return in training.

    Where several settings end at the most that can be had, the second number tells them
    apart: the mean over the whole of training.
    """
    whole = [trial for trial in trials if trial.score is not None]
    require(bool(whole), "an agent of every setting broke: there is no best one.")
    return max(whole, key=lambda trial: (round(trial.score or 0.0, 3), _area(trial)))


def _area(trial: Trial) -> float:
    _, values = plotting.curve(trial_rows(trial), RETURN)
    return float(values.mean()) if len(values) else -np.inf


def as_preset(search: Search, trial: Trial) -> str:
    """The TOML file of a preset: what was given, what was found, and how.

    Numbers are rounded to two digits; seeds that had no part in it say what they are
    worth (`build`).
    """
    found = {name: _rounded(value) for name, value in trial.overrides.items()}
    seeds = f"{trial.seeds[0]} to {trial.seeds[-1]}"
    lines = [
        f"# jaxrl zoo {presets.name_of(search.algorithm, search.env)} --tune: the best "
        f"of {search.trials} random settings,",
        f"# trained with seeds {seeds}: return {trial.score:.2f} (IQM).",
        f'algorithm = "{search.algorithm}"',
        f'env = "{search.env}"',
        "",
        "[config]",
        # What JSON writes of numbers, words, truths and lists is TOML too.
        *(f"{n} = {json.dumps(x)}" for n, x in {**search.config, **found}.items()),
    ]
    return "\n".join(lines) + "\n"


def _rounded(value: Any) -> Any:
    return float(f"{value:.2g}") if isinstance(value, float) and value < 0.1 else value


def _known(names: Sequence[str], known: Sequence[str]) -> list[str]:
    for name in names:
        if name not in known:
            raise InvalidInput(
                f"NAME = {name!r} is not in the zoo{did_you_mean(name, known)} "
                f"(there are: {', '.join(known)})."
            )
    return list(dict.fromkeys(names or known))


def _experiment(name: str, seed: int, num_seeds: int) -> Experiment:
    """The training of a preset."""
    content = presets.content(name)
    algorithm = ALGORITHMS[content["algorithm"]]
    config = configs.from_dict(algorithm.Config, content["config"])
    return Experiment(algorithm, config, content["env"], seed=seed, num_seeds=num_seeds)


def _check_same(folder: Path, experiment: Experiment) -> None:
    """Raise `InvalidInput` where another run is."""
    if not (folder / "config.json").exists():
        return
    there, here = describe(read_experiment(folder)), describe(experiment)
    other = [name for name, value in here.items() if there.get(name) != value]
    require(
        not other,
        f"out: {str(folder)!r} holds a run with another {', '.join(other)}: give a new "
        f"folder.",
    )


def _trained(experiment: Experiment, folder: Path, host: Host) -> dict[str, Any]:
    """The summary of a run, which is trained as far as it is not."""
    if (folder / "config.json").exists():
        return resume_experiment(folder, **host)
    return run_experiment(experiment, folder, **host)[1]


def row_of(
    name: str, folder: Path, experiment: Experiment, summary: Mapping[str, Any]
) -> dict[str, Any]:
    """What `zoo.json` says of a finished run."""
    algorithm, env = experiment.algorithm.name, experiment.env
    returns = summary["evaluation_by_member"]
    files = storage.read_manifest(folder / "policy")["files"]
    return {
        "algorithm": algorithm,
        "env": env,
        "command": f"jaxrl zoo {name} --seed {experiment.seed} "
        f"--num-seeds {experiment.num_seeds}",
        "config": presets.read(algorithm, env)["config"],
        "env_steps": summary["env_steps"],
        **row_of_seeds(returns),
        "seeds": summary["seeds"],
        "returns": returns,
        "episodes": summary["evaluation"]["episodes"],
        "curve": plotting.summarize_curve(read_rows(folder)),
        "sha256": files[storage.ARRAYS]["sha256"],
        **{n: summary[n] for n in ("run_seconds", "compile_seconds")},
        **{n: summary[n] for n in ("device", "versions")},
    }


def read_index(out: Path) -> dict[str, Any]:
    """What an earlier call has written."""
    path = out / INDEX
    if not os.path.lexists(path):
        return {}
    try:
        rows: dict[str, Any] = files.read_json(path)
        schema.check(dict[str, Row], rows, path)
    except InvalidInput as error:
        raise InvalidInput(f"{error} Remove it.") from error
    return rows
