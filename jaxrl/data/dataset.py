"""Datasets: complete episodes of a policy, on disk and in memory.

    DATA/manifest.json         spaces, environment, counts, returns, the recorded policy
    DATA/arrays.safetensors    a column for each part of a transition, `[B, ...]`

The columns are those of a `Transition`, one row per step, episode after episode in the
order in which they were played: `obs`, `action`, `reward`, `terminated`, `truncated`,
`next_obs`. Each leaf of a dictionary is a column, `obs/image`. Both files are in the format
of `jaxrl.core.storage`: protected by digests, complete or refused, and free of code.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode

from jaxrl import spaces
from jaxrl.core import run_folders, schema, storage
from jaxrl.errors import InvalidInput, require
from jaxrl.evaluation import MAX_STEPS
from jaxrl.rollout import init_world, unroll
from jaxrl.types import Algorithm, Array, Env, Memory, PyTree, Transition, World, static

FORMAT = 1

BLOCK = 64
"""Steps between two checks of which episodes have ended."""
MOST_ENVS = 256
"""Maximum number of parallel environments; more episodes take several rounds."""


@dataclass(frozen=True)
class About:
    """What is relied on in the metadata of a dataset."""

    OPEN = True
    observation_space: dict[str, Any]
    action_space: dict[str, Any]


class Dataset(PyTreeNode):
    """Steps of complete episodes, in order: arrays `[B, ...]`, as in a `Transition`."""

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
        """B, the number of rows."""
        return len(self.reward)


def ends(dataset: Dataset) -> np.ndarray:
    """End of each episode: the index of the row after its last, `[E]`."""
    done = np.asarray(dataset.terminated) | np.asarray(dataset.truncated)
    return np.flatnonzero(done) + 1


def episode_returns(dataset: Dataset) -> np.ndarray:
    """The undiscounted return of each episode, float64 `[E]`."""
    starts = np.concatenate([[0], ends(dataset)[:-1]])
    return np.add.reduceat(np.asarray(dataset.reward, np.float64), starts)


def first_episodes(dataset: Dataset, count: int) -> Dataset:
    """The first `count` episodes, or all if fewer."""
    num_rows = ends(dataset)[:count][-1]
    return jax.tree.map(lambda x: x[:num_rows], dataset)


def count_cut(dataset: Dataset, max_steps: int = MAX_STEPS) -> int:
    """The number of episodes that `record` has cut, where there is no time limit."""
    after = np.asarray(ends(dataset))
    is_long = np.diff(after, prepend=0) == max_steps
    return int((is_long & np.asarray(dataset.truncated)[after - 1]).sum())


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
    """Record `num_episodes` complete episodes of one agent.

    Each parallel environment contributes exactly one episode, its first, so short episodes
    are not favoured.

    Args:
      algorithm: the algorithm whose `act` is the policy.
      config: the config the agent was trained with.
      env: the environment, not necessarily the one the agent was trained in.
      agent: one agent.
      key: consumed.
      num_episodes: E.
      greedy: take the most likely action instead of sampling.
      max_steps: the time limit if the environment has none.

    Returns:
      The dataset. Its actions are those the policy chose; an environment may clip them.

    Raises:
      InvalidInput: `num_episodes` or `max_steps` is below 1.
    """
    require(num_episodes >= 1, f"num_episodes = {num_episodes}: must be at least 1.")
    require(max_steps >= 1, f"max_steps = {max_steps}: must be at least 1.")
    if env.horizon is None:
        env = env.replace(horizon=jnp.int32(max_steps), horizon_is="truncated")
    rounds = -(-num_episodes // MOST_ENVS)
    num_envs = -(-num_episodes // rounds)
    policy = (algorithm, config, env, agent)
    parts = [
        _first_episodes(*policy, key, num_envs, greedy)
        for key in jax.random.split(key, rounds)
    ]
    dataset: Dataset = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
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
    done = jnp.zeros(num_envs, bool)
    env_index, blocks = [], []
    while not done.all():
        world, rows, counts, done = _play_block(
            algorithm, config, env, agent, world, done, greedy
        )
        # Sorted by environment, and by time within each.
        envs, steps = np.nonzero(np.asarray(counts).T)
        env_index.append(envs)
        rows = jax.device_get(rows)
        blocks.append(jax.tree.map(lambda x, at=(steps, envs): x[at], rows))
    order = np.argsort(np.concatenate(env_index), kind="stable")
    columns = jax.tree.map(lambda *x: jnp.asarray(np.concatenate(x)[order]), *blocks)
    return from_columns(columns, env.observation_space, env.action_space)


@partial(jax.jit, static_argnames=("algorithm", "greedy"))
def _play_block(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    agent: PyTree,
    world: World,
    done_before: Array,
    greedy: bool,
) -> tuple[World, Transition, Array, Array]:
    """`BLOCK` steps, a mask of the first episodes `[T, N]`, and which have ended `[N]`."""

    def policy(obs: PyTree, memory: Memory, key: Array) -> tuple:
        return algorithm.act(config, env, agent, obs, memory, key, greedy)

    world, rows, _ = unroll(env, policy, world, BLOCK)
    done = rows.terminated | rows.truncated
    later = jnp.cumsum(done, axis=0) - done > 0
    first = ~(done_before | later)
    return world, rows._replace(extras={}), first, done_before | done.any(0)


def from_columns(
    columns: Transition, observation_space: Any, action_space: Any
) -> Dataset:
    """Build a dataset from columns, cast to the dtypes of the spaces.

    Raises:
      InvalidInput: a number does not fit the dtype of its space.
    """

    def in_dtype(space: Any, values: PyTree, name: str) -> PyTree:
        def cast(leaf: Any, x: Any) -> Array:
            return spaces.cast(x, leaf.dtype, f"{name} of the dataset")

        return jax.tree.map(cast, spaces.tree(space), values)

    return Dataset(
        obs=in_dtype(observation_space, columns.obs, "obs"),
        action=in_dtype(action_space, columns.action, "action"),
        reward=spaces.cast(columns.reward, jnp.float32, "reward of the dataset"),
        terminated=jnp.asarray(columns.terminated, bool),
        truncated=jnp.asarray(columns.truncated, bool),
        next_obs=in_dtype(observation_space, columns.next_obs, "next_obs"),
        observation_space=observation_space,
        action_space=action_space,
    )


def save(
    folder: Path | str, dataset: Dataset, about: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write a dataset atomically into a new or empty folder.

    Args:
      folder: the target; nothing is overwritten.
      dataset: complete episodes.
      about: metadata as JSON: "env", "env_params", "seed", "greedy", "policy", ...

    Returns:
      The metadata of the manifest: `about`, spaces, counts and the mean return.

    Raises:
      InvalidInput: the folder is not empty, an episode is incomplete, or a number is not
        finite.
    """
    for name, column in storage.named_arrays(dataset).items():
        require(
            not np.issubdtype(column.dtype, np.floating) or np.isfinite(column).all(),
            f"{name} of the dataset contains NaN or infinity: remove these episodes.",
        )
    _check_complete(dataset, folder)
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
    """Load a dataset; no code in it is executed.

    Args:
      folder: a folder that `save` has written.
      env: the environment in which it is to be used; its spaces are then checked.

    Raises:
      InvalidInput: there is no dataset, a file is damaged (`storage.Damaged`), or its
        spaces are not the environment's.
    """
    about, path = read_about(folder), Path(folder) / storage.MANIFEST
    observation_space, action_space = recorded_spaces(about, path)
    schema.check(schema.Count, about.get("steps"), path, storage.Damaged)
    num_steps = about["steps"]
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
    dataset: Dataset = jax.tree.map(jnp.asarray, storage.fill(template, arrays, folder))
    _check_complete(dataset, folder)
    if env is not None:
        check_spaces(dataset, env, f"{str(folder)!r}")
    return dataset


def recorded_spaces(about: Any, path: Path | str) -> tuple[spaces.Space, spaces.Space]:
    """The observation and action space of metadata of a dataset.

    Raises:
      Damaged: these are none; the message names `path`.
    """
    schema.check(About, about, path, storage.Damaged)
    try:
        observation_space = spaces.from_description(about["observation_space"])
        return observation_space, spaces.from_description(about["action_space"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise storage.Damaged(
            f"{path} does not describe a dataset ({error!r})."
        ) from error


def read_about(folder: Path | str) -> dict[str, Any]:
    """Read the metadata in the manifest of a dataset, without its columns.

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
    version = about.get("dataset") if isinstance(about, dict) else None
    require(
        version is not None,
        f"DATA = {str(folder)!r} holds something other than a dataset: give a folder that "
        f"`jaxrl collect` has written.",
    )
    require(
        version == FORMAT,
        f"the dataset in {str(folder)!r} has format {version}, this version of jaxrl reads "
        f"{FORMAT}: use the version that wrote it.",
    )
    schema.check(About, about, path / storage.MANIFEST, storage.Damaged)
    result: dict[str, Any] = about
    return result


def check_spaces(dataset: Dataset, env: Env, name: str) -> None:
    """Check that a dataset has the observation and action spaces of an environment.

    Raises:
      InvalidInput: a space has another structure, shape or dtype; bounds may differ.
    """
    for part in ("observation_space", "action_space"):
        ours, theirs = getattr(dataset, part), getattr(env, part)
        if not spaces.is_compatible(ours, theirs):
            raise InvalidInput(
                f"{name} was recorded with {part.replace('_', ' ')} {_short(ours)}, but "
                f"that of {env.id} is {_short(theirs)}: record one there."
            )


def _short(space: Any) -> str:
    """Short text for a space, without its bounds."""
    if isinstance(space, spaces.Dict):
        children = ", ".join(f"{name}: {_short(child)}" for name, child in space.items)
        return f"Dict({children})"
    if isinstance(space, spaces.Discrete):
        return f"Discrete({space.n})"
    return f"Box({space.dtype}{list(space.shape)})"


def _check_complete(dataset: Dataset, name: Path | str) -> None:
    """Check that there is at least one episode, and that the last one has its end."""
    if list(ends(dataset)[-1:]) != [dataset.num_steps]:
        raise InvalidInput(
            f"the dataset {str(name)!r} has no episode, or a last one without its end: "
            f"it must hold complete episodes."
        )
