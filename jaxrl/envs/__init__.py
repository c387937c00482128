"""Registry of environments by name.

```python
env = jaxrl.envs.make("CartPole-v1", horizon=200, gravity=12.0)
env = jaxrl.envs.make("Breakout-MinAtar", sticky_prob=0.1, use_minimal_action_set=False)
env = jaxrl.envs.make("my_module:my_factory", size=3)
```
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jaxrl.core.config import check_value
from jaxrl.core.imports import import_value
from jaxrl.envs import wrappers
from jaxrl.envs.goals import GOALS
from jaxrl.envs.gymnasium import gymnasium_factory
from jaxrl.envs.gymnax import (
    GYMNAX_IDS,
    NEEDS_DOWNLOAD,
    from_gymnax,
    gymnax_env,
    known_issues,
    no_such_parameter,
)
from jaxrl.envs.lecture import LECTURE
from jaxrl.envs.probes import PROBES
from jaxrl.envs.suites import SUITES, suite_factory
from jaxrl.errors import InvalidInput, did_you_mean
from jaxrl.types import Env

__all__ = ["env_ids", "from_gymnax", "known_issues", "make", "register"]

Factory = Callable[..., Env]

_BUILT_IN: dict[str, Factory] = {
    **{id: functools.partial(gymnax_env, id) for id in GYMNAX_IDS},
    **PROBES,
    **GOALS,
    **LECTURE,
}
_registered: dict[str, Factory] = {}


def make(
    id: str,
    /,
    *,
    horizon: int | Literal["default"] | None = "default",
    horizon_is: Literal["terminal", "truncated"] | None = None,
    sticky_prob: float = 0.0,
    history: int = 0,
    **params: Any,
) -> Env:
    """Make the environment with this id; equal arguments give the same compiled program.

    Args:
      id: one of `env_ids()`, "LIBRARY/NAME" of a library that is an extra (see
        `envs.suites`), or "module:factory" for your own, where `factory(**params)` returns
        an `Env` and the module may be in the current directory.
      horizon: time limit in steps; "default" for the environment's own, None for no limit.
      horizon_is: the meaning of reaching it, "truncated" or "terminal" (see `Env`); None
        for the environment's own.
      sticky_prob: probability of repeating the previous action (0.1 is the protocol of
        MinAtar); see `wrappers.sticky_actions`.
      history: number of observations (and actions) to stack; 0 leaves the observation
        unchanged; see `wrappers.stack_history`.
      **params: parameters of the environment.

    Raises:
      InvalidInput: the id, a parameter or a value is invalid.
    """
    _check_options(horizon, horizon_is, sticky_prob, history)
    env = _build(id, _factory(id), horizon, params)
    if horizon_is is not None:
        env = env.replace(horizon_is=horizon_is)
    if sticky_prob > 0:
        env = wrappers.sticky_actions(env, sticky_prob)
    if history > 0:
        env = wrappers.stack_history(env, history)
    return env.replace(id=id)


def register(id: str, factory: Factory) -> None:
    """Register an environment of your own under an id.

    Args:
      id: any name that is not built in. Registering it again replaces the factory, so
        that a notebook cell can be run twice.
      factory: `factory(**params) -> Env`, pure. A parameter named `horizon` receives
        the time limit given to `make`, for observations that show the remaining time;
        without such a parameter `make` sets the limit in the `Env`.
    """
    if id in _BUILT_IN or id in NEEDS_DOWNLOAD:
        raise InvalidInput(f"id = {id!r}: is built in, choose another name.")
    _registered[id] = factory


def env_ids() -> list[str]:
    """All ids that `make` accepts, listed without importing gymnax."""
    return [*_BUILT_IN, *_registered]


def _check_options(
    horizon: Any, horizon_is: Any, sticky_prob: Any, history: Any
) -> None:
    if not (horizon is None or isinstance(horizon, str)):
        check_value("horizon", int, horizon, low=1, high=2**31 - 1)
    elif horizon not in ("default", None):
        raise InvalidInput(
            f"horizon = {horizon!r}: must be a whole number of steps, 'default', or None "
            "for no limit."
        )
    if horizon_is not in ("terminal", "truncated", None):
        hint = did_you_mean(str(horizon_is), ("terminal", "truncated"))
        raise InvalidInput(
            f"horizon_is = {horizon_is!r}: must be 'terminal' or 'truncated'{hint}."
        )
    check_value("sticky_prob", float, sticky_prob, low=0, high=1)
    check_value("history", int, history, low=0)


def _factory(id: str) -> Factory:
    """The factory of a registered, built-in or "module:factory" id."""
    if id in _registered:
        return _registered[id]
    if id in _BUILT_IN:
        return _BUILT_IN[id]
    if id in NEEDS_DOWNLOAD:
        raise InvalidInput(
            f"Environment {id!r} is left out, because gymnax downloads its data when "
            "it is built: choose another one (`jaxrl list envs` shows all)."
        )
    library, slash, name = id.partition("/")
    if slash and library in SUITES:
        return suite_factory(library, name)
    if slash and library == "gymnasium":
        return gymnasium_factory(name)
    if ":" in id:
        example = "my_module:my_factory"
        return import_value(id, "Environment", "function", callable, example)
    raise InvalidInput(
        f"Unknown environment {id!r}{did_you_mean(id, env_ids())}: "
        "`jaxrl list envs` shows all."
    )


def _build(id: str, factory: Factory, horizon: Any, params: dict[str, Any]) -> Env:
    """Call the factory; the time limit is passed to it or set in the `Env`."""
    accepted = inspect.signature(factory).parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    for name, value in params.items():
        if name not in accepted and not any_name:
            raise no_such_parameter(id, name, value, accepted)
    if horizon == "default":
        return _call(id, factory, params)
    if "horizon" in accepted:
        return _call(id, factory, {**params, "horizon": horizon})
    limit = None if horizon is None else np.int32(horizon)
    return _call(id, factory, params).replace(horizon=limit)


def _call(id: str, factory: Factory, params: dict[str, Any]) -> Env:
    try:
        inspect.signature(factory).bind(**params)
    except TypeError as error:
        raise InvalidInput(
            f"Environment {id!r}: its factory cannot be called like this ({error})."
        ) from error
    try:
        hash(tuple(params.values()))
        build: Factory = _call_once
    except TypeError:  # a list, an array
        build = _call_factory
    env = build(factory, **dict(sorted(params.items())))
    if not isinstance(env, Env):
        raise InvalidInput(
            f"Environment {id!r}: its factory returned {type(env).__name__}, "
            "must return a jaxrl.types.Env."
        )
    return env


def _call_factory(factory: Factory, /, **params: Any) -> Env:
    return factory(**params)


_call_once = functools.lru_cache(maxsize=None, typed=True)(_call_factory)
