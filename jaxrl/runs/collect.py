"""Recording of episodes as a dataset: `jaxrl collect`, as one Python call."""

from pathlib import Path
from typing import Any

import jax

import jaxrl
from jaxrl.core import prng, run_folders, storage
from jaxrl.core.config import check_value
from jaxrl.data import dataset
from jaxrl.runs.artifact import ENV, check_acts, load_agents
from jaxrl.runs.policy import make_policy, select_agent
from jaxrl.training.loop import check_seeds

COLLECTION = 0x636F6C
"""Folded into the seed, so that the episodes differ from those of an evaluation."""


def collect(
    run: Path | str,
    out: Path | str,
    episodes: int,
    *,
    greedy: bool = True,
    seed: int = 0,
    agent: int | None = None,
    env: str | None = None,
) -> dict[str, Any]:
    """Record whole episodes of an agent of a run as a dataset (see `jaxrl.data.dataset`).

    Args:
      run: the run folder.
      out: the dataset's folder, new or empty.
      episodes: number of episodes.
      greedy: the likeliest action instead of a sampled one.
      seed: seed of the episodes.
      agent: its place in the run; by default the first.
      env: the environment's id, needed where it is "module:factory", which is code.

    Returns:
      The content of the dataset's manifest, with the mean return, and with "episodes_cut"
      if some did not end and there is no time limit.

    Raises:
      InvalidInput: there is no such agent, or the folder is not empty.
    """
    check_value("episodes", int, episodes, low=1)
    check_seeds(seed, 1)
    agents = load_agents(run, env)
    check_acts(agents, run)
    k = select_agent(agents, run, agent)
    policy = make_policy(agents, k)
    folder = run_folders.new(out, "dataset")
    recorded = dataset.record(
        *(policy.algorithm, policy.config, policy.env, policy.agent),
        jax.random.fold_in(prng.key(seed), COLLECTION),
        episodes,
        greedy,
    )
    overrides = agents.overrides[k] if agents.overrides else {}
    params = {n[len(ENV) :]: v for n, v in overrides.items() if n.startswith(ENV)}
    files = storage.read_manifest(Path(run) / "policy")["files"]
    about = {
        "jaxrl": jaxrl.__version__,
        "env": policy.env.id,
        "env_params": agents.env_params | params,
        "seed": seed,
        "greedy": greedy,
        "policy": {
            "run": str(run),
            "algorithm": agents.algorithm.name,
            "agent": agents.members[k] if agents.members else k,
            "seed": agents.seeds[k],
            "sha256": files[storage.ARRAYS]["sha256"],
        },
    }
    cut = dataset.count_cut(recorded) if policy.env.horizon is None else 0
    if cut:
        about["episodes_cut"] = cut
    return dataset.save(folder, recorded, about)
