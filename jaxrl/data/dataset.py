"""Datasets: what a policy has seen and done, in whole episodes, on disk and in memory.

    DATA/manifest.json         spaces, environment, counts, returns, whose episodes they are
    DATA/arrays.safetensors    a column for each part of a transition, `[B, ...]`

The columns are those of a `Transition`, one row a step, episode after episode in the order
in which they were played: `obs`, `action`, `reward`, `terminated`, `truncated`,
`next_obs`. Of a dictionary each leaf is a column, `obs/image`. Both files are of
`jaxrl.core.storage`: under digests, whole or refused, and nothing in them could run.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode

from jaxrl import spaces
from jaxrl.core import run_folders, storage
from jaxrl.errors import InvalidInput, require
from jaxrl.evaluation import MAX_STEPS
from jaxrl.rollout import init_world, unroll
from jaxrl.types import Algorithm, Array, Env, Memory, PyTree, Transition, World, static

FORMAT = 1

BLOCK = 64
"""Steps played between two looks at which episodes have ended."""
MOST_ENVS = 256
"""Environments stepped together: more episodes are played in several rounds."""


class Dataset(PyTreeNode):
    """Steps of whole episodes, in order: arrays `[B, ...]`, as in a `Transition`."""

    obs: PyTree
    action: Array
    reward: Array  # float32
    terminated: Array  # bool
    truncated: Array  # bool
    next_obs: PyTree  # the true successor
    observation_space: Any = static()
    action_space: Any = static()

    @property
    def num_steps(self) -> int:
        """B."""
        return len(self.reward)


def ends(dataset: Dataset) -> np.ndarray:
    """Where each episode ends: the number of the row after its last, `[E]`."""
    done = np.asarray(dataset.terminated) | np.asarray(dataset.truncated)
    return np.flatnonzero(done) + 1


def episode_returns(dataset: Dataset) -> np.ndarray:
    """The undiscounted return of each episode, float64 `[E]`."""
    starts = np.concatenate([[0], ends(dataset)[:-1]])
    return np.add.reduceat(np.asarray(dataset.reward, np.float64), starts)


def first_episodes(dataset: Dataset, count: int) -> Dataset:
    """The first `count` episodes, or all if there are no more."""
    num_rows = ends(dataset)[:count][-1]
    return jax.tree.map(lambda x: x[:num_rows], dataset)


def record(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    agent: PyTree,
    key: Array,
    num_episodes: int,
    greedy: bool = True,
    max_steps: int = MAX_STEPS,
) -> Dataset:
    """`num_episodes` whole episodes of one agent.

    Each parallel environment gives exactly one episode, its first, so short ones are not
    favoured.

    Args:
      algorithm: whose `act` is the policy.
      config: the config the agent was trained with.
      env: the environment, not necessarily the one trained in.
      agent: one agent.
      key: consumed.
      num_episodes: E.
      greedy: the most likely action, or a sampled one.
      max_steps: the time limit of an environment that has none of its own.

    Returns:
      The dataset. Its actions are those the policy chose; an environment may clip them.

    Raises:
      InvalidInput: there is not one episode, or not one step, to play.
    """
    require(num_episodes >= 1, f"num_episodes = {num_episodes}: must be at least 1.")
    require(max_steps >= 1, f"max_steps = {max_steps}: must be at least 1.")
    if env.horizon is None:
        env = env.replace(horizon=jnp.int32(max_steps), horizon_is="truncated")
    rounds = -(-num_episodes // MOST_ENVS)
    num_envs = -(-num_episodes // rounds)
    given = (algorithm, config, env, agent)
    played = [
        _first_episodes(*given, key, num_envs, greedy)
        for key in jax.random.split(key, rounds)
    ]
    dataset: Dataset = jax.tree.map(lambda *x: jnp.concatenate(x), *played)
    return first_episodes(dataset, num_episodes)


def _first_episodes(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    agent: PyTree,
    key: Array,
    num_envs: int,
    greedy: bool,
) -> Dataset:
    """The first episode of each of `num_envs` environments."""
    memory = algorithm.init_memory(config, env, num_envs)
    world = init_world(env, key, num_envs, memory)
    over = jnp.zeros(num_envs, bool)
    whose, blocks = [], []
    while not over.all():
        world, rows, counts, over = _play(
            algorithm, config, env, agent, world, over, greedy
        )
        # Environment by environment, of each the steps in order.
        envs, steps = np.nonzero(np.asarray(counts).T)
        whose.append(envs)
        found = jax.device_get(rows)
        blocks.append(jax.tree.map(lambda x, at=(steps, envs): x[at], found))
    order = np.argsort(np.concatenate(whose), kind="stable")
    columns = jax.tree.map(lambda *x: jnp.asarray(np.concatenate(x)[order]), *blocks)
    return from_columns(columns, env.observation_space, env.action_space)


@partial(jax.jit, static_argnames=("algorithm", "greedy"))
def _play(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    agent: PyTree,
    world: World,
    over: Array,
    greedy: bool,
) -> tuple[World, Transition, Array, Array]:
    """`BLOCK` steps, which of them count `[T, N]`, and whose episode is over `[N]`."""

    def policy(obs: PyTree, memory: Memory, key: Array) -> tuple:
        return algorithm.act(config, env, agent, obs, memory, key, greedy)

    world, rows, _ = unroll(env, policy, world, BLOCK)
    done = rows.terminated | rows.truncated
    ended_before = jnp.cumsum(done, axis=0) - done > 0
    return world, rows._replace(extras={}), ~(over | ended_before), over | done.any(0)


def from_columns(
    columns: Transition, observation_space: Any, action_space: Any
) -> Dataset:
    """The columns as a dataset, in the dtypes of the spaces."""

    def in_dtype(space: Any, values: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf, x: jnp.asarray(x, leaf.dtype), spaces.tree(space), values
        )

    return Dataset(
        obs=in_dtype(observation_space, columns.obs),
        action=in_dtype(action_space, columns.action),
        reward=jnp.asarray(columns.reward, jnp.float32),
        terminated=jnp.asarray(columns.terminated, bool),
        truncated=jnp.asarray(columns.truncated, bool),
        next_obs=in_dtype(observation_space, columns.next_obs),
        observation_space=observation_space,
        action_space=action_space,
    )


def save(
    folder: Path | str, dataset: Dataset, about: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Writes a dataset into a new or empty folder, all of it or nothing.

    Args:
      folder: where; nothing is overwritten.
      dataset: whole episodes.
      about: JSON to keep with it: "env", "env_params", "seed", "greedy", "policy", ...

    Returns:
      What the manifest says: `about`, spaces, counts and the mean return.

    Raises:
      InvalidInput: the folder is not empty, an episode is not whole, or a number is not
        finite.
    """
    given = storage.named_arrays(dataset)
    for name, column in given.items():
        require(
            not np.issubdtype(column.dtype, np.floating) or np.isfinite(column).all(),
            f"{name} of the dataset is NaN or infinite somewhere: it cannot be learned "
            f"from.",
        )
    _check_whole(dataset, folder)
    returns = episode_returns(dataset)
    spread = returns.std(ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else None
    description = (about or {}) | {
        "dataset": FORMAT,
        "episodes": len(returns),
        "steps": dataset.num_steps,
        "return_mean": float(returns.mean()),
        "return_stderr": None if spread is None else float(spread),
        "observation_space": spaces.describe(dataset.observation_space),
        "action_space": spaces.describe(dataset.action_space),
    }
    storage.write(run_folders.new(folder, "dataset"), dataset, description)
    return description


def load(folder: Path | str, env: Env | None = None) -> Dataset:
    """Reads a dataset. Nothing in it is run.

    Args:
      folder: that `save` has written.
      env: the environment in which it is to be used.

    Raises:
      InvalidInput: there is no dataset, a file is damaged (`storage.Damaged`), or its
        spaces are not the environment's.
    """
    about = read_about(folder)
    try:
        observation_space = spaces.described(about["observation_space"])
        action_space = spaces.described(about["action_space"])
        num_steps = int(about["steps"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise storage.Damaged(
            f"{Path(folder) / storage.MANIFEST} does not describe a dataset ({error!r})."
        ) from error
    _, arrays = storage.read(Path(folder))
    template = jax.eval_shape(
        lambda: from_columns(
            Transition(
                obs=spaces.zeros(observation_space, (num_steps,)),
                action=spaces.zeros(action_space, (num_steps,)),
                reward=jnp.zeros(num_steps),
                terminated=jnp.zeros(num_steps),
                truncated=jnp.zeros(num_steps),
                next_obs=spaces.zeros(observation_space, (num_steps,)),
                extras={},
            ),
            observation_space,
            action_space,
        )
    )
    dataset: Dataset = jax.tree.map(
        jnp.asarray, storage.filled(template, arrays, folder)
    )
    _check_whole(dataset, folder)
    if env is not None:
        check_spaces(dataset, env, f"{str(folder)!r}")
    return dataset


def read_about(folder: Path | str) -> dict[str, Any]:
    """What the manifest of a dataset says; the columns are not looked at.

    Raises:
      InvalidInput: there is no dataset, or the manifest is damaged.
    """
    path = Path(folder)
    require(
        (path / storage.MANIFEST).exists(),
        f"DATA = {str(folder)!r} holds no dataset: give a folder that `jaxrl collect` "
        f"has written.",
    )
    about = storage.read_manifest(path)["about"]
    found = about.get("dataset") if isinstance(about, dict) else None
    require(
        found is not None,
        f"DATA = {str(folder)!r} holds something else than a dataset: give a folder that "
        f"`jaxrl collect` has written.",
    )
    require(
        found == FORMAT,
        f"the dataset in {str(folder)!r} has format {found}, this version of jaxrl reads "
        f"{FORMAT}: use the version that wrote it.",
    )
    result: dict[str, Any] = about
    return result


def check_spaces(dataset: Dataset, env: Env, name: str) -> None:
    """Refuses a dataset whose observations or actions are not of the environment's form.

    Raises:
      InvalidInput: it is of another form; bounds may differ.
    """
    for part in ("observation_space", "action_space"):
        ours, theirs = getattr(dataset, part), getattr(env, part)
        if not spaces.alike(ours, theirs):
            raise InvalidInput(
                f"{name} was recorded with {part.replace('_', ' ')} {_short(ours)}, but "
                f"that of {env.id} is {_short(theirs)}: record one there."
            )


def _short(space: Any) -> str:
    """A space in a few words, without its bounds."""
    if isinstance(space, spaces.Dict):
        parts = ", ".join(f"{name}: {_short(child)}" for name, child in space.items)
        return f"Dict({parts})"
    if isinstance(space, spaces.Discrete):
        return f"Discrete({space.n})"
    return f"Box({space.dtype}{list(space.shape)})"


def _check_whole(dataset: Dataset, name: Path | str) -> None:
    """At least one episode, and the last one has its end."""
    if list(ends(dataset)[-1:]) != [dataset.num_steps]:
        raise InvalidInput(
            f"the dataset {str(name)!r} has no episode, or a last one without its end: "
            f"it must hold whole episodes."
        )
