"""Datasets from and for Minari, the Farama Foundation's collection of them.

An extra, `pip install 'jaxrl[minari]'`. Minari keeps its datasets in a folder of its own
(`MINARI_DATASETS_PATH`), by names such as "cartpole/expert-v0".
"""

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import spaces
from jaxrl.data import dataset
from jaxrl.data.dataset import Dataset
from jaxrl.envs.gymnasium import from_space, to_space
from jaxrl.errors import InvalidInput
from jaxrl.types import Transition

ABOUT = "jaxrl"
"""The field of Minari's metadata that holds what the manifest of a dataset says."""


def to_minari(data: Path | str, name: str) -> None:
    """Gives Minari a dataset, column by column, without loss.

    Args:
      data: a dataset's folder.
      name: of the new Minari dataset, "NAMESPACE/NAME-vVERSION".

    Raises:
      InvalidInput: Minari is not installed, there is no such dataset, or it has one of
        that name already.
    """
    minari = _minari()
    found, about = dataset.load(data), dataset.read_about(data)
    columns = jax.tree.map(np.asarray, found)
    starts = np.concatenate([[0], dataset.ends(found)[:-1]])
    buffers = [
        _episode(columns, number, slice(start, end))
        for number, (start, end) in enumerate(
            zip(starts, dataset.ends(found), strict=True)
        )
    ]
    try:
        with warnings.catch_warnings():
            # It asks for an author, a link to code and an environment of gymnasium.
            warnings.simplefilter("ignore", UserWarning)
            made = minari.create_dataset_from_buffers(
                name,
                buffers,
                observation_space=to_space(found.observation_space),
                action_space=to_space(found.action_space),
                algorithm_name=about.get("policy", {}).get("algorithm"),
                description=f"{about.get('env', 'recorded')}, by jaxrl",
                jpeg_encoding=False,
            )
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"name = {name!r}: Minari refuses it ({error}).") from error
    made.storage.update_metadata({ABOUT: json.dumps(about)})


def from_minari(name: str, out: Path | str) -> dict[str, Any]:
    """Writes a dataset that Minari has on this machine as one of jaxrl.

    Numbers become those of 32 bits. An episode that Minari has only a part of is
    truncated where the part ends.

    Args:
      name: of the Minari dataset.
      out: the dataset's folder, new or empty.

    Returns:
      What its manifest says.

    Raises:
      InvalidInput: Minari is not installed or has no such dataset, a space has no
        counterpart here, or the folder is not empty.
    """
    minari = _minari()
    try:
        found = minari.load_dataset(name)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInput(
            f"name = {name!r}: Minari cannot load it ({error}); `minari download` "
            f"fetches one that is published."
        ) from error
    metadata = found.storage.metadata
    parts = ("observation_space", "action_space")
    if ABOUT in metadata:
        about = json.loads(metadata[ABOUT])
        both = [spaces.described(about[part]) for part in parts]
    else:
        about = {
            "env": found.env_spec.id if found.env_spec else None,
            "policy": {"algorithm": metadata.get("algorithm_name")},
        }
        both = [from_space(getattr(found, part)) for part in parts]
    episodes = map(_rows, found.iterate_episodes())
    columns = jax.tree.map(lambda *x: np.concatenate(x), *episodes)
    whole = dataset.from_columns(columns, *both)
    return dataset.save(out, whole, about | {"minari": name})


def _episode(columns: Dataset, number: int, rows: slice) -> Any:
    """The episode in those rows, as Minari has it: one observation more than actions."""
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
    """The steps of an episode of Minari."""
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
            "Minari is not installed: `pip install 'jaxrl[minari]'`."
        ) from error
    return minari
