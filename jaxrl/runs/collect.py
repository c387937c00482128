"""Recording what a trained agent does: what `jaxrl collect` does, as one Python call."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxrl
from jaxrl.core import prng, run_folders, storage
from jaxrl.core.config import check_value
from jaxrl.data import dataset
from jaxrl.errors import require
from jaxrl.runs.artifact import ENV, check_acts, load_agents
from jaxrl.training.loop import checked_seeds
from jaxrl.training.population import member as of_population

COLLECTION = 0x636F6C
"""Folded into the seed of the episodes, which are then not those of an evaluation."""


def collect(
    run: Path | str,
    out: Path | str,
    episodes: int,
    *,
    greedy: bool = True,
    seed: int = 0,
    member: int | None = None,
    env: str | None = None,
) -> dict[str, Any]:
    """Whole episodes of an agent of a run folder, as a dataset (see `jaxrl.data.dataset`).

    Args:
      run: the run folder.
      out: the dataset's folder, new or empty.
      episodes: how many.
      greedy: the likeliest action, or a sampled one.
      seed: of the episodes.
      member: which agent, by its place in training; by default the first.
      env: the environment's id, needed where it is "module:factory", which is code.

    Returns:
      What the manifest of the dataset says, the mean return among it.

    Raises:
      InvalidInput: there is no such agent, or the folder is not empty.
    """
    check_value("episodes", int, episodes, low=1)
    checked_seeds(seed, 1)
    agents = load_agents(run, env)
    check_acts(agents, run)
    members = list(agents.members or range(len(agents.seeds)))
    require(
        member is None or member in members,
        f"member = {member}: {str(run)!r} has {', '.join(map(str, members))}.",
    )
    k = 0 if member is None else members.index(member)
    folder = run_folders.new(out, "dataset")
    config, environment = agents.variants[k]
    own = dict(agents.overrides[k]) if agents.overrides else {}
    recorded = dataset.record(
        agents.algorithm,
        config,
        environment,
        jax.tree.map(jnp.asarray, of_population(agents.agents, k)),
        jax.random.fold_in(prng.key(seed), COLLECTION),
        episodes,
        greedy,
    )
    own_params = {n[len(ENV) :]: v for n, v in own.items() if n.startswith(ENV)}
    files = storage.read_manifest(Path(run) / "policy")["files"]
    about = {
        "jaxrl": jaxrl.__version__,
        "env": environment.id,
        "env_params": agents.env_params | own_params,
        "seed": seed,
        "greedy": greedy,
        "policy": {
            "run": str(run),
            "algorithm": agents.algorithm.name,
            "member": members[k],
            "seed": agents.seeds[k],
            "sha256": files[storage.ARRAYS]["sha256"],
        },
    }
    return dataset.save(folder, recorded, about)
