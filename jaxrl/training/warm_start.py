"""Fine-tuning: what a finished run has learned begins another one.

Only the arrays of the run's artefact are read, by their names. So a source is neither
rebuilt nor imported, and its environment may be another one whose spaces fit.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl.core import config as configs
from jaxrl.core import schema, storage
from jaxrl.errors import require
from jaxrl.training.population import member
from jaxrl.types import PyTree


@dataclasses.dataclass(frozen=True)
class About:
    """What is relied on in the manifest of a source."""

    OPEN = True
    seeds: list[int]
    members: list[schema.Count] = dataclasses.field(default_factory=list)


OPTIMIZER = "opt_state"
"""The field of an agent that begins afresh unless that is asked for; those marked with
`types.fresh` always do."""

Initial = dict[str, np.ndarray]
"""Arrays of agents by name, `[K, ...]`."""


def read_initial(
    run: Path | str,
    agents: PyTree,
    num_seeds: int,
    with_optimizer: bool,
    agent: int | None,
) -> Initial:
    """Read what the agents of a run begin with.

    Args:
      run: the run folder whose artefact is the source.
      agents: the shapes of the new agents, leading axis `[K]`: `num_seeds` of each
        setting.
      num_seeds: agents of each setting.
      with_optimizer: whether the optimiser's state is taken over too.
      agent: the place of one agent of the source, for all; None for each seed its own where
        the source has as many, and otherwise its first one for all.

    Raises:
      InvalidInput: there is no such artefact or agent, or an array does not fit.
    """
    about, arrays = storage.read(_policy(run))
    count = len(jax.tree.leaves(agents)[0])
    places = _places(run, about, count, num_seeds, agent)
    left = _begun_anew(agents, with_optimizer)
    one = _named(jax.eval_shape(lambda tree: member(tree, 0), agents), left)
    found = {n: x for n, x in arrays.items() if n.split("/")[0] not in left}
    for names, other, has in ((one, found, "lacks"), (found, one, "has")):
        missing = sorted(names.keys() - other.keys())
        require(
            not missing,
            f"init_from = {str(run)!r} {has} {', '.join(missing[:1])}, unlike the new run: "
            f"give a run of an algorithm and config like this one's.",
        )
    shared = {n for n, x in _named(agents, left).items() if x == one[n]}
    number = len(_members(run, about))
    for name in sorted(found.keys() - shared):
        require(
            found[name].shape[:1] == (number,),
            f"init_from = {str(run)!r}: {name} is not of {number} agents, as its manifest "
            f"says: it is damaged.",
        )
    initial = {n: x if n in shared else x[places] for n, x in found.items()}
    for name, x in initial.items():
        kind = x.shape if name in shared else x.shape[1:]
        require(
            (kind, x.dtype) == (one[name].shape, one[name].dtype),
            f"init_from = {str(run)!r}: {name} is {x.dtype}{list(kind)}, and of the new "
            f"run {one[name].dtype}{list(one[name].shape)}: its spaces and networks must "
            f"fit.",
        )
    return initial


def with_initial(agents: PyTree, initial: Initial) -> PyTree:
    """The agents with these arrays in the place of their own."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: initial.get(_name(path), x), agents
    )


def _places(
    run: Path | str, about: Any, count: int, num_seeds: int, agent: int | None
) -> list[int]:
    """Which agents of the source the new ones begin as."""
    known = _members(run, about)
    if agent is None:
        each = range(num_seeds) if len(known) == num_seeds else [0] * num_seeds
        return [*each] * (count // num_seeds)
    configs.check_value("init_agent", int, agent)
    require(
        agent in known,
        f"init_agent = {agent}: {str(run)!r} has {', '.join(map(str, known))}.",
    )
    return [known.index(agent)] * count


def first_agent(run: Path | str) -> int:
    """The place of the first agent that a run's artefact holds.

    Raises:
      InvalidInput: there is no such artefact.
    """
    return _members(run, storage.read_manifest(_policy(run))["about"])[0]


def _policy(run: Path | str) -> Path:
    folder = Path(run) / "policy"
    require(
        folder.is_dir(),
        f"init_from = {str(run)!r} holds no policy: give a folder that `jaxrl train` has "
        f"finished.",
    )
    return folder


def _members(run: Path | str, about: Any) -> list[int]:
    """The places of the agents that the artefact holds, one or more."""
    path = _policy(run) / storage.MANIFEST
    schema.check(About, about, path, storage.Damaged)
    require(len(about["seeds"]) > 0, f"init_from = {str(run)!r} has no seeds.")
    return list(about.get("members") or range(len(about["seeds"])))


def _begun_anew(agents: PyTree, with_optimizer: bool) -> set[str]:
    """The fields of an agent that are not taken over."""
    fields = dataclasses.fields(agents) if dataclasses.is_dataclass(agents) else ()
    fresh = {field.name for field in fields if field.metadata.get("fresh")}
    return fresh if with_optimizer else fresh | {OPTIMIZER}


def _named(agents: PyTree, left: set[str]) -> dict[str, Any]:
    """The arrays of agents by name, without the fields `left`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(agents)
    named = {_name(path): leaf for path, leaf in leaves}
    return {name: x for name, x in named.items() if name.split("/")[0] not in left}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
