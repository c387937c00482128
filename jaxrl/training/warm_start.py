"""Fine-tuning: what a finished run has learned begins another one.

Only the arrays of the run's artefact are read, by their names. So a source is neither
rebuilt nor imported, and its environment may be another one whose spaces fit.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl.core import config as configs
from jaxrl.core import storage
from jaxrl.errors import require
from jaxrl.training.population import member
from jaxrl.types import PyTree

OPTIMIZER = "opt_state"
"""The field of an agent that begins afresh unless that is asked for."""

Initial = dict[str, np.ndarray]
"""Arrays of agents by name, `[K, ...]`."""


def read_initial(
    run: Path | str, agents: PyTree, with_optimizer: bool, agent: int | None
) -> Initial:
    """Read what the agents of a run begin with.

    Args:
      run: the run folder whose artefact is the source.
      agents: the shapes of the new agents, leading axis `[K]`.
      with_optimizer: whether the optimiser's state is taken over too.
      agent: the place of one agent of the source, for all; None for each its own where the
        source has K, and otherwise its first one for all.

    Raises:
      InvalidInput: there is no such artefact or agent, or an array does not fit.
    """
    folder = Path(run) / "policy"
    require(
        folder.is_dir(),
        f"init_from = {str(run)!r} holds no policy: give a folder that `jaxrl train` has "
        f"finished.",
    )
    about, arrays = storage.read(folder)
    count = len(jax.tree.leaves(agents)[0])
    places = _places(run, about, count, agent)
    one = _named(jax.eval_shape(lambda tree: member(tree, 0), agents), with_optimizer)
    found = {n: x for n, x in arrays.items() if with_optimizer or not _is_optimizer(n)}
    for names, other, has in ((one, found, "lacks"), (found, one, "has")):
        missing = sorted(names.keys() - other.keys())
        require(
            not missing,
            f"init_from = {str(run)!r} {has} {', '.join(missing[:1])}, unlike the new run: "
            f"give a run of an algorithm and config like this one's.",
        )
    shared = {n for n, x in _named(agents, with_optimizer).items() if x == one[n]}
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


def source_digest(run: Path | str) -> str:
    """What tells one source from another that lies in the same place."""
    return storage.digest(Path(run) / "policy")


def _places(
    run: Path | str, about: dict[str, Any], count: int, agent: int | None
) -> list[int]:
    """Which agents of the source the new ones begin as."""
    known = list(about.get("members") or range(len(about["seeds"])))
    if agent is None:
        return list(range(count)) if len(known) == count else [0] * count
    configs.check_value("init_agent", int, agent)
    require(
        agent in known,
        f"init_agent = {agent}: {str(run)!r} has {', '.join(map(str, known))}.",
    )
    return [known.index(agent)] * count


def _named(agents: PyTree, with_optimizer: bool) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(agents)
    named = {_name(path): leaf for path, leaf in leaves}
    return {n: x for n, x in named.items() if with_optimizer or not _is_optimizer(n)}


def _is_optimizer(name: str) -> bool:
    return name.split("/")[0] == OPTIMIZER


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
