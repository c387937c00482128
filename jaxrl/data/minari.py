"""Import and export of Minari datasets, the Farama Foundation's offline RL collection.

The extra `minari`. Minari keeps its datasets in its own folder
(`MINARI_DATASETS_PATH`), under names such as "cartpole/expert-v0".
"""

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl.core import files
from jaxrl.data import dataset
from jaxrl.data.dataset import Dataset
from jaxrl.envs.gymnasium import from_action_space, from_space, to_space
from jaxrl.errors import InvalidInput, install_command
from jaxrl.types import Transition

ABOUT = "jaxrl"
"""The field of Minari's metadata that holds the metadata of our manifest."""


def to_minari(data: Path | str, name: str) -> None:
    """Export a dataset to Minari, column by column, without loss.

    Args:
      data: the folder of a dataset.
      name: the name of the new Minari dataset, "NAMESPACE/NAME-vVERSION".

    Raises:
      InvalidInput: Minari is not installed, there is no such dataset, or Minari already has
        one of that name.
    """
    minari = _minari()
    source, about = dataset.load(data), dataset.read_about(data)
    policy = about.get("policy")
    algorithm = policy.get("algorithm") if isinstance(policy, dict) else None
    columns = jax.tree.map(np.asarray, source)
    ends = dataset.ends(source)
    starts = np.concatenate([[0], ends[:-1]])
    buffers = [
        _episode(columns, number, slice(start, end))
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    try:
        with warnings.catch_warnings():
            # Minari asks for an author, a link to code and a Gymnasium environment.
            warnings.simplefilter("ignore", UserWarning)
            target = minari.create_dataset_from_buffers(
                name,
                buffers,
                observation_space=to_space(source.observation_space),
                action_space=to_space(source.action_space),
                algorithm_name=algorithm if isinstance(algorithm, str) else None,
                description=f"{about.get('env', 'recorded')}, by jaxrl",
                jpeg_encoding=False,
            )
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"name = {name!r}: Minari refuses it ({error}).") from error
    target.storage.update_metadata({ABOUT: json.dumps(about)})


def from_minari(name: str, out: Path | str) -> dict[str, Any]:
    """Convert a local Minari dataset to a dataset of jaxrl.

    Numbers are converted to 32 bits, and must fit. An incomplete episode is truncated at
    its last step.

    Args:
      name: the name of the Minari dataset.
      out: the folder of the new dataset, new or empty.

    Returns:
      The metadata of its manifest.

    Raises:
      InvalidInput: Minari is not installed or has no such dataset, a space has no
        counterpart in jaxrl, or the folder is not empty.
    """
    minari = _minari()
    try:
        source = minari.load_dataset(name)
    except (OSError, ValueError, TypeError) as error:
        message = (
            f"name = {name!r}: Minari cannot load it ({error}); `minari download` "
            f"fetches one that is published."
        )
        if isinstance(error, OSError):
            files.refuse(error, message)
        raise InvalidInput(message) from error
    metadata = source.storage.metadata
    if ABOUT in metadata:
        about = files.parse_json(metadata[ABOUT], name)
        both = dataset.recorded_spaces(about, name)
    else:
        about = {
            "env": source.env_spec.id if source.env_spec else None,
            "policy": {"algorithm": metadata.get("algorithm_name")},
        }
        both = (
            from_space(source.observation_space),
            from_action_space(source.action_space),
        )
    episodes = map(_rows, source.iterate_episodes())
    columns = jax.tree.map(lambda *x: np.concatenate(x), *episodes)
    target = dataset.from_columns(columns, *both)
    return dataset.save(out, target, about | {"minari": name})


def _episode(columns: Dataset, number: int, rows: slice) -> Any:
    """An episode in Minari's format, with one more observation than actions."""
    from minari.data_collector import EpisodeBuffer

    observations = jax.tree.map(
        lambda obs, next_obs: np.concatenate([obs[rows], next_obs[rows][-1:]]),
        columns.obs,
        columns.next_obs,
    )
    return EpisodeBuffer(
        id=number,
        observations=observations,
        actions=columns.action[rows],
        rewards=columns.reward[rows],
        terminations=columns.terminated[rows],
        truncations=columns.truncated[rows],
        infos={},
    )


def _rows(episode: Any) -> Transition:
    """Transitions of a Minari episode."""
    terminated: Any = np.asarray(episode.terminations, bool)
    truncated: Any = np.asarray(episode.truncations, bool) & ~terminated
    truncated[-1] = ~terminated[-1]
    return Transition(
        obs=jax.tree.map(lambda x: x[:-1], episode.observations),
        action=episode.actions,
        reward=episode.rewards,
        terminated=terminated,
        truncated=truncated,
        next_obs=jax.tree.map(lambda x: x[1:], episode.observations),
        extras={},
    )


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise InvalidInput(
            f"Minari is not installed: {install_command('minari')}."
        ) from error
    return minari
