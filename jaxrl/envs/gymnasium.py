"""Gymnasium's spaces as ours, and ours as Gymnasium's.

Gymnasium comes with gymnax. It is imported where it is used.
"""

import warnings
from typing import Any

import numpy as np

from jaxrl import spaces
from jaxrl.errors import did_you_mean
from jaxrl.types import InvalidInput


def to_space(space: Any) -> Any:
    """A space of ours as one of Gymnasium's.

    A `Discrete` draws int64 there, as Gymnasium's own environments do.
    """
    from gymnasium import spaces as theirs

    if isinstance(space, spaces.Dict):
        return theirs.Dict({name: to_space(child) for name, child in space.items})
    if isinstance(space, spaces.Discrete):
        return theirs.Discrete(space.n)
    low, high = (
        np.asarray(bound, space.dtype).reshape(space.shape)
        for bound in (space.low, space.high)
    )
    return theirs.Box(low, high, space.shape, np.dtype(space.dtype).type)


def from_space(space: Any) -> Any:
    """A space of Gymnasium's as one of ours. Numbers become those of 32 bits.

    Raises:
      InvalidInput: there is no such space here.
    """
    from gymnasium import spaces as theirs

    if isinstance(space, theirs.Dict):
        return spaces.dict_space(
            **{name: from_space(child) for name, child in space.items()}
        )
    if isinstance(space, theirs.Discrete) and space.start == 0:
        return spaces.Discrete(int(space.n))
    if isinstance(space, theirs.Box):
        name = np.dtype(space.dtype).name
        dtype = {"float64": "float32", "int64": "int32"}.get(name, name)
        return spaces.box(space.low, space.high, space.shape, dtype)
    raise InvalidInput(
        f"the space {space} has no counterpart in jaxrl: there are Box, Discrete from 0, "
        f"and Dict of them."
    )


def make_gymnasium(id: str, **arguments: Any) -> Any:
    """`gymnasium.make`, its errors in one sentence and its advice left out.

    Raises:
      InvalidInput: there is no such environment, or it cannot be made.
    """
    import gymnasium

    try:
        with warnings.catch_warnings():
            # That a newer version of the environment exists, for example.
            warnings.simplefilter("ignore")
            return gymnasium.make(id, disable_env_checker=True, **arguments)
    except gymnasium.error.UnregisteredEnv as error:
        known = [str(name) for name in gymnasium.registry]
        raise InvalidInput(
            f"Gymnasium has no environment {id!r}{did_you_mean(id, known)}."
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        given = ", ".join(f"{name} = {value!r}" for name, value in arguments.items())
        raise InvalidInput(
            f"Gymnasium cannot make {id!r}{' with ' + given if given else ''} ({reason})."
        ) from error
