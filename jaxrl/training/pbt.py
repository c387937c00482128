"""Population-based training: the worst agents become copies of the best, and change.

Every `EVERY` chunks the agents are ranked by their training return. Each of the last
fifth takes over parameters, optimiser and environments of one of the first fifth, drawn
at random, and its hyper-parameters, each multiplied by 0.8 or 1.2. Nothing but the ranks
leaves the device.

Source: Jaderberg et al. (2017), https://arxiv.org/abs/1711.09846, section 4 and
appendix A.1 (truncation selection; perturbation).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.core import distributed
from jaxrl.core.config import check_value
from jaxrl.core.variants import Values
from jaxrl.errors import require, shorten
from jaxrl.training.loop import Job, Progress, placed_progress
from jaxrl.training.population import member
from jaxrl.types import Array, PyTree, Row

EVERY = 5
"""Chunks between two exchanges: a twentieth of a run."""

SHARE = 0.2
"""Of the agents that are replaced, and of those that replace them."""

FACTORS = (0.8, 1.2)


def check(explored: Mapping[str, Any], job: Job) -> None:
    """Refuse what cannot be changed while a population trains.

    Raises:
      InvalidInput: a name is no number that the agents have of their own, or its limits
        are none.
    """
    for name, limits in explored.items():
        has_two = isinstance(limits, list | tuple) and len(limits) == 2
        require(
            has_two,
            f"explored: {name} = {shorten(repr(limits))}: must be its lowest and its "
            f"highest value.",
        )
        for limit in limits:
            check_value(f"explored: {name}", float, limit)
        require(
            limits[0] <= limits[1],
            f"explored: {name} = {limits}: the first must not be the larger one.",
        )
        own = job.values.get(_path(name))
        require(
            own is not None and jnp.issubdtype(own.dtype, jnp.floating),
            f"explored: {name} is not a number of which each agent has its own: use "
            f"`jaxrl sweep --scheduler pbt`.",
        )


def adapt(
    explored: Mapping[str, Sequence[float]],
    job: Job,
    progress: Progress,
    history: list[Row],
    last: bool,
) -> tuple[Progress, Row]:
    """The progress after an exchange, if it is time for one; see `training.loop.train`.

    Args:
      explored: the fields of the config that are changed, each with its lowest and
        highest value.
      job: the population.
      progress: at the end of a chunk.
      history: the rows so far.
      last: whether the run ends here.

    Returns:
      The progress, and for the row: whose copy each agent becomes (`pbt/source`), and the
      values it had (`pbt/NAME`).
    """
    rng = np.random.default_rng([job.seeds[0], progress.iteration])
    own = np.arange(len(progress.broken))
    columns = {
        f"pbt/{name}": [
            float(x) for x in distributed.device_get(progress.values[_path(name)])
        ]
        for name in explored
    }
    if last or len(history) % EVERY:
        return progress, columns | {"pbt/source": own.tolist()}
    sources = exchanged(scores(progress, history[-1]), rng)
    factors = {
        _path(name): np.where(sources == own, 1.0, rng.choice(FACTORS, len(own)))
        for name in explored
    }
    limits = {_path(name): tuple(bounds) for name, bounds in explored.items()}
    values, state, tally = _exchange(
        progress.values, progress.state, progress.tally, sources, factors, limits
    )
    after = progress._replace(
        values=values, state=state, tally=tally, broken=progress.broken[sources]
    )
    return placed_progress(job, after), columns | {"pbt/source": sources.tolist()}


def _path(name: str) -> str:
    """The name of a field of the config among all values."""
    return f"config/{name}"


def scores(progress: Progress, row: Row) -> np.ndarray:
    """What the agents are ranked by `[K]`: the training return; -inf where it is broken,
    or no episode has ended."""
    returns = [-np.inf if x is None else x for x in row["rollout/episode_return"]]
    return np.where(progress.broken[:, 0] > 0, -np.inf, returns)


def exchanged(score: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whose copy each agent becomes, int `[K]`: most their own.

    One that is not worse than its model stays.
    """
    count = len(score)
    few = max(1, int(SHARE * count))
    order = np.argsort(score, kind="stable")
    sources = np.arange(count)
    for loser, model in zip(order[:few], rng.choice(order[-few:], few), strict=True):
        if score[loser] < score[model]:
            sources[loser] = model
    return sources


@partial(jax.jit, donate_argnums=(1, 2))
def _exchange(
    values: Values,
    state: PyTree,
    tally: PyTree,
    sources: Array,
    factors: Values,
    limits: dict[str, tuple[float, float]],
) -> tuple[Values, PyTree, PyTree]:
    """Every agent's model in its place, with changed values and keys of its own."""
    numbers = jnp.arange(len(sources))
    copied = sources != numbers

    def own_key(x: Any) -> Any:
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) or x.ndim == 0:
            return x
        return jnp.where(copied, jax.vmap(jax.random.fold_in)(x, numbers), x)

    values = jax.tree.map(lambda x: x[sources], values)
    for name, factor in factors.items():
        low, high = limits[name]
        values[name] = jnp.clip(values[name] * factor, low, high)
    state = jax.tree.map(own_key, member(state, sources))
    return values, state, jax.tree.map(lambda x: x[sources], tally)
