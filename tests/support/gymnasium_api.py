"""Gymnasium's own checks, of any environment of ours behind its interface."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import SyncVectorEnv

from jaxrl import make
from jaxrl.interop.gymnasium import MODES, to_gymnasium, to_gymnasium_vector
from jaxrl.types import Env


def single_test(id: str) -> None:
    """`check_env`, through `gymnasium.make`: with a spec more is checked."""
    own = f"test/{re.sub(r'[^A-Za-z0-9]', '', id)}-v0"
    gymnasium.register(own, entry_point=lambda: to_gymnasium(make(id)))
    try:
        env = gymnasium.make(own).unwrapped
        check_env(env)
        assert env.metadata["jaxrl_id"] == id
    finally:
        del gymnasium.registry[own]


def vector_test(
    env: Env, mode: str, num_steps: int = 25, tolerance: float = 0.0
) -> int:
    """Gymnasium's own vector of our single environments says what is right.

    Args:
      env: with a horizon that several episodes fit into `num_steps`.
      mode: of autoreset.
      num_steps: of three environments.
      tolerance: by which floats may differ, where a program of three rounds otherwise
        than one of one and the physics enlarges it; 0 for Gymnasium's own, 1e-5.

    Returns:
      How many episodes ended.
    """
    num_envs = 3
    ours = to_gymnasium_vector(env, num_envs, mode)
    theirs = SyncVectorEnv([lambda: to_gymnasium(env)] * 3, autoreset_mode=MODES[mode])
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"]
    for name in ("observation_space", "action_space"):
        assert getattr(ours, name) == getattr(theirs, name)
        single = f"single_{name}"
        assert getattr(ours, single) == getattr(theirs, single)
    compare = partial(_compare, tolerance)
    compare(ours.reset(seed=5), theirs.reset(seed=5), "reset")
    ours.action_space.seed(1)
    ended, ends = np.zeros(num_envs, bool), 0
    for step in range(num_steps):
        if mode == "disabled" and ended.any():
            _begin_anew(compare, ours, theirs, ended)
        ended = _step(compare, ours, theirs, step)
        ends += int(ended.sum())
    seeds = [3, None, 4]
    compare(ours.reset(seed=seeds), theirs.reset(seed=seeds), "seeds")
    return ends


def _begin_anew(compare: Callable, ours: Any, theirs: Any, ended: np.ndarray) -> None:
    """Where episodes have ended; until then a step is refused."""
    try:
        ours.step(ours.action_space.sample())
        raise AssertionError("a step after the end was not refused")
    except ResetNeeded as error:
        assert "have ended" in str(error), error
    options = {"reset_mask": ended}
    compare(ours.reset(options=dict(options)), theirs.reset(options=options), "anew")


def _step(compare: Callable, ours: Any, theirs: Any, number: int) -> np.ndarray:
    """The same actions in both say the same; whose episode ended."""
    actions = ours.action_space.sample()
    one, other = ours.step(actions), theirs.step(actions)
    for a, b in zip(one, other, strict=True):
        compare(a, b, f"step {number}")
    assert one[0] in ours.observation_space
    return one[2] | one[3]


def _compare(tolerance: float, one: Any, other: Any, what: str) -> None:
    same = data_equivalence(one, other)
    assert same or (tolerance and _close(tolerance, one, other)), (what, one, other)


def _close(tolerance: float, one: Any, other: Any) -> bool:
    """`data_equivalence`, but for the values of floats."""
    if isinstance(one, dict):
        same = isinstance(other, dict) and one.keys() == other.keys()
        return same and all(_close(tolerance, one[x], other[x]) for x in one)
    if isinstance(one, tuple) or getattr(one, "dtype", np.dtype(int)).kind == "O":
        pairs = zip(one, other, strict=True)
        return type(one) is type(other) and all(_close(tolerance, *x) for x in pairs)
    if isinstance(one, np.ndarray) and np.issubdtype(one.dtype, np.floating):
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and np.allclose(one, other, atol=tolerance)
    return data_equivalence(one, other)
