"""Tuned hyper-parameters, one file for each algorithm and environment.

`jaxrl train ALGO --env ID --preset` starts from them. A file is what `--config` reads, so
it may be copied and changed. They were found by `jaxrl zoo --tune`
(`jaxrl.pipelines.zoo`).
"""

from pathlib import Path
from typing import Any

from jaxrl.core import config as configs
from jaxrl.core import files
from jaxrl.errors import InvalidInput, did_you_mean
from jaxrl.types import Algorithm

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Of all presets: "ppo-CartPole-v1"."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def name_of(algorithm: str, env: str) -> str:
    return f"{algorithm}-{env}".replace("/", "-")


def read(algorithm: str, env: str) -> dict[str, Any]:
    """What `--config` reads of a file: algorithm, env and config.

    Raises:
      InvalidInput: there is none for this algorithm on this environment.
    """
    name, known = name_of(algorithm, env), names()
    if name not in known:
        raise InvalidInput(
            f"preset: there is none for {algorithm} on {env}"
            f"{did_you_mean(name, known)} (there are: {', '.join(known)})."
        )
    return content(name)


def content(name: str) -> dict[str, Any]:
    """The same of a name that is known."""
    return files.read_toml(FOLDER / f"{name}.toml")


def preset(algorithm: Algorithm, env: str) -> Any:
    """The tuned config of an algorithm on an environment.

    ```python
    config = jaxrl.preset(jaxrl.PPO, "Pendulum-v1")
    jaxrl.train(jaxrl.PPO, config, jaxrl.make("Pendulum-v1"))
    ```

    Args:
      algorithm: for example `jaxrl.PPO`.
      env: the environment's id.

    Raises:
      InvalidInput: there is none.
    """
    return configs.from_dict(algorithm.Config, read(algorithm.name, env)["config"])
