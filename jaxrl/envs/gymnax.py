"""gymnax's environments behind our contract.

Only `reset_env` and `step_env` of gymnax are called: its `step` computes a reset for
every environment at every step and returns the new episode's observation. The time
limit becomes `Env.horizon`, which `rollout` applies; episodes end here only where the
task itself ends them.

The adapter ensures what gymnax does not:

* one dtype per array, never weakly typed, the same after `reset` and after `step`;
* rewards float32 `[]`, flags bool `[]`;
* Box actions clipped to the action space (a NaN stays NaN, so that it is noticed);
* the binary images of MinAtar in one byte per pixel, in rollouts and in replay;
* correct spaces: shape and dtype are those of a real observation, and bounds that
  observations exceed are dropped (`_WRONG_BOUNDS`).

A discrete action outside 0, ..., n - 1 is undefined behaviour: gymnax computes
*something* from it (on action 5 CartPole pushes with nine times the force), and a check
inside a compiled program cannot raise.

Two environments have wrong dynamics in gymnax 1.0; the functions in `_CORRECTED_STEPS`
correct them. `KNOWN_ISSUES` lists the differences that remain; `jaxrl list envs` prints it.
"""

import functools
import importlib
import inspect
import math
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.core.config import check_value
from jaxrl.envs.suites import cast, common_types, dtypes, explain_errors, valid
from jaxrl.errors import InvalidInput, did_you_mean
from jaxrl.types import Array, Env, PyTree, TimeStep

GYMNAX_IDS = (
    "CartPole-v1",
    "Pendulum-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "MemoryChain-bsuite",
    "UmbrellaChain-bsuite",
    "DiscountingChain-bsuite",
    "SimpleBandit-bsuite",
    "FourRooms-misc",
    "MetaMaze-misc",
    "PointRobot-misc",
    "BernoulliBandit-misc",
    "GaussianBandit-misc",
    "Reacher-misc",
    "Swimmer-misc",
    "Pong-misc",
    "FrozenLake-misc",
)
"""Ids registered by gymnax 1.0, written out so that listing them does not import gymnax."""

NEEDS_DOWNLOAD = ("MNISTBandit-bsuite",)
"""Ids registered by gymnax whose construction downloads data."""

_MINATAR = (
    "not the MinAtar of Young and Tian (2019): no sticky actions (they use 0.1), the "
    "minimal action set, and a time limit of 1000 steps (Freeway 2500) that they lack"
)

KNOWN_ISSUES = {
    "CartPole-v1": "total_mass and polemass_length are parameters of their own: they "
    "do not follow masscart, masspole and length",
    "MountainCarContinuous-v0": "corrected here: gymnax does not stop the car at the "
    "left wall; as in gymnax the reward charges the clipped action, Gymnasium's the one "
    "that is given",
    "Asterix-MinAtar": "corrected here: gymnax spawns over living entities when the "
    f"slots are (nearly) full; otherwise {_MINATAR}",
    "Breakout-MinAtar": _MINATAR,
    "Freeway-MinAtar": _MINATAR,
    "Seaquest-MinAtar": _MINATAR,
    "SpaceInvaders-MinAtar": _MINATAR,
    "Catch-bsuite": "gymnax declares int32 observations and returns float32 (the space "
    "here says float32)",
    "DeepSea-bsuite": "the last row is a terminal state reached exactly at the time "
    "limit, so episodes terminate and are never truncated",
    "MemoryChain-bsuite": "step returns the observation of the state before the step: "
    "the cue is seen twice and an episode has memory_length + 1 steps; observations "
    "leave the declared bounds (the space here is unbounded)",
    "FourRooms-misc": "gymnax declares float32 observations and returns int32 (the "
    "space here says int32)",
    "GaussianBandit-misc": "observations leave the declared bounds (the space here is "
    "unbounded)",
}
"""Differences of an environment from its name or its declaration, by id."""

_WRONG_BOUNDS = ("MemoryChain-bsuite", "GaussianBandit-misc")


_BINARY_IMAGES = tuple(id for id in GYMNAX_IDS if id.endswith("-MinAtar"))
"""Ids with binary images, which gymnax returns as float32; uint8 is a quarter of it."""

SHORTEST_EPISODE = {"CartPole-v1": 8, "Breakout-MinAtar": 6}
"""Lower bounds on the episode length, each verified by a test; see `Env`."""


def known_issues(id: str) -> str | None:
    """Known issues of an environment in one sentence, or None."""
    return KNOWN_ISSUES.get(id)


def gymnax_env(id: str, /, horizon: int | str | None = "default", **params: Any) -> Env:
    """A registered gymnax environment.

    Args:
      id: one of `GYMNAX_IDS`.
      horizon: the time limit; "default" for gymnax's own, None for no limit.
      **params: fields of gymnax's `EnvParams`, or arguments of its constructor
        (`size=10` for DeepSea, `map_name="8x8"` for FrozenLake).

    Raises:
      InvalidInput: a parameter is unknown, or its value invalid.
    """
    factory = _import_gymnax().registration._builtins[id]
    arguments = inspect.signature(factory).parameters
    constructor = {
        name: _freeze(_like(name, value, arguments[name].default))
        for name, value in sorted(params.items())
        if name in arguments
    }
    with explain_errors(id, constructor):
        environment = _construct(factory, **constructor)
    defaults = environment.default_params
    fields = {name: getattr(defaults, name) for name in defaults.__dataclass_fields__}
    others = {name: value for name, value in params.items() if name not in arguments}
    for name, value in others.items():
        if name not in fields:
            raise no_such_parameter(id, name, value, (*fields, *arguments))
    replaced = {
        name: _like(name, value, fields[name]) for name, value in others.items()
    }
    with explain_errors(id, params):
        env = from_gymnax(environment, defaults.replace(**replaced), horizon, id)
    shortest = SHORTEST_EPISODE.get(id, 1)
    if shortest > 1 and not others:  # the bound holds for the default parameters
        limit = shortest if env.horizon is None else min(shortest, int(env.horizon))
        env = env.replace(shortest_episode=limit)
    if id in _WRONG_BOUNDS:
        space = env.observation_space
        unbounded = spaces.box(-np.inf, np.inf, space.shape, space.dtype)
        env = env.replace(observation_space=unbounded)
    return env


def no_such_parameter(
    id: str, name: str, value: Any, names: Iterable[str]
) -> InvalidInput:
    """The error for a parameter that the environment `id` does not have."""
    names = list(names)
    hint = did_you_mean(name, names) or f" (it has {', '.join(names) or 'none'})"
    return InvalidInput(f"{name} = {value!r}: {id} has no such parameter{hint}.")


def from_gymnax(
    environment: Any,
    params: PyTree = None,
    horizon: int | str | None = "default",
    id: str = "",
) -> Env:
    """Adapt an instance of gymnax's `Environment`, which may be one of your own.

    The corrections in this file depend on `id`, so `make` and `gymnax_env` apply them.

    Args:
      environment: the instance. Build it once: it is part of the compiled program.
      params: its `EnvParams`; None for the defaults. `max_steps_in_episode` is set to
        `horizon`, because some observations show the remaining time.
      horizon: the time limit; "default" for `params.max_steps_in_episode`, None for no
        limit.
      id: the name used in errors and artefacts.
    """
    params = environment.default_params if params is None else params
    params, limit = _limit_time(params, horizon)
    action_space = _space(environment.action_space(params))
    step_env = _CORRECTED_STEPS.get(id, _step_env)
    state, obs = _signature(environment, step_env, action_space, params)
    if id in _BINARY_IMAGES:
        obs = jax.ShapeDtypeStruct(obs.shape, np.uint8)
    reset, step = _functions(
        _Adapter(environment, step_env, action_space, dtypes(state), dtypes(obs))
    )
    return Env(
        params=params,
        horizon=limit,
        reset=reset,
        step=step,
        observation_space=_space(environment.observation_space(params), obs),
        action_space=action_space,
        id=id,
    )


def _limit_time(params: Any, horizon: int | str | None) -> tuple[Any, Any]:
    """Set `max_steps_in_episode` to the time limit; return the params and the limit."""
    if horizon is None:
        return params, None
    name = "max_steps_in_episode" if horizon == "default" else "horizon"
    theirs = params.max_steps_in_episode  # a float in BernoulliBandit
    limit = _like(name, theirs if horizon == "default" else horizon, 1)
    check_value(name, int, limit, low=1, high=2**31 - 1)
    params = params.replace(max_steps_in_episode=type(theirs)(limit))
    return params, np.int32(limit)


class _Adapter(NamedTuple):
    """Static specification of the adapted functions, hashable as their cache key."""

    environment: Any
    step_env: Callable
    action_space: spaces.Space
    state_dtypes: tuple[Any, ...]  # one for each leaf
    obs_dtypes: tuple[Any, ...]


@functools.cache
def _functions(adapter: _Adapter) -> tuple[Callable, Callable]:
    """`reset` and `step`, cached so that equal adapters give one compiled program."""
    return functools.partial(_reset, adapter), functools.partial(_step, adapter)


def _reset(adapter: _Adapter, key: Array, params: PyTree) -> tuple[PyTree, PyTree]:
    obs, state = adapter.environment.reset_env(key, params)
    return cast(state, adapter.state_dtypes), cast(obs, adapter.obs_dtypes)


def _step(
    adapter: _Adapter, key: Array, state: PyTree, action: Array, params: PyTree
) -> tuple[PyTree, TimeStep]:
    obs, state, reward, terminated, info = adapter.step_env(
        adapter.environment, key, state, valid(action, adapter.action_space), params
    )
    step = TimeStep(
        obs=cast(obs, adapter.obs_dtypes),
        reward=jnp.asarray(reward, jnp.float32).reshape(()),
        terminated=jnp.asarray(terminated, bool).reshape(()),
        truncated=jnp.bool_(False),
        info=info,
    )
    return cast(state, adapter.state_dtypes), step


def _step_env(environment: Any, key: Array, state: PyTree, action: Array, params: Any):
    """The transition of gymnax: `(obs, state, reward, terminated, info)`."""
    return environment.step_env(key, state, action, params)


def _mountain_car_continuous_step(
    environment: Any, key: Array, state: Any, action: Array, params: Any
):
    """MountainCarContinuous-v0 by Gymnasium's rule.

    gymnax 1.0 intends to stop the car at the left wall but tests for the goal instead, so
    the car keeps its velocity into the wall. Gymnasium:
    `if position == min_position and velocity < 0: velocity = 0`.
    """
    del key
    force = jnp.clip(action, params.min_action, params.max_action).squeeze()
    slope = jnp.cos(3 * state.position)
    velocity = state.velocity + force * params.power - slope * params.gravity
    velocity = jnp.clip(velocity, -params.max_speed, params.max_speed)
    position = state.position + velocity
    position = jnp.clip(position, params.min_position, params.max_position)
    into_wall = (position <= params.min_position) & (velocity < 0)
    velocity = jnp.where(into_wall, 0.0, velocity)
    at_goal = position >= params.goal_position
    terminated = at_goal & (velocity >= params.goal_velocity)
    reward = 100.0 * terminated - 0.1 * action.squeeze() ** 2
    state = state.replace(position=position, velocity=velocity, time=state.time + 1)
    info = {"discount": environment.discount(state, params)}
    return environment.get_obs(state), state, reward, terminated, info


def _asterix_step(environment: Any, key: Array, state: Any, action: Array, params: Any):
    """Asterix-MinAtar with the spawning rule of the original (`_asterix_spawn`).

    The rest is gymnax's `step_env`, composed of gymnax's own functions.
    """
    asterix = importlib.import_module("gymnax.environments.minatar.asterix")
    state = _asterix_spawn(key, state)
    state = asterix.step_agent(state, environment.action_set[action])
    state, reward, terminal = asterix.step_entities(state)
    state = asterix.step_timers(state, params)
    state = state.replace(time=state.time + 1, terminal=terminal)
    info = {"discount": environment.discount(state, params)}
    return environment.get_obs(state), state, reward, terminal, info


def _asterix_spawn(key: Array, state: Any) -> Any:
    """Spawn a new entity in a random free slot, if any, when the spawn timer is up.

    gymnax 1.0 inspects seven of the eight slots in random order and writes to the last one
    inspected, free or not: with all slots full a random entity vanishes, and a single free
    slot is missed one time in eight, overwriting another entity. The original (Young and
    Tian, 2019) draws among the free slots and does nothing if there is none.

    An entity is `[x, y, moves_right, is_gold, is_there]`, and slot i is row i + 1.
    """
    key_direction, key_gold, key_slot = jax.random.split(key, 3)
    moves_right = jax.random.bernoulli(key_direction).astype(jnp.int32)
    is_gold = jax.random.bernoulli(key_gold, 1 / 3).astype(jnp.int32)
    free = state.entities[:, 4] == 0
    slot = jnp.argmax(jnp.where(free, jax.random.uniform(key_slot, free.shape), -1.0))
    entity = jnp.stack([9 * (1 - moves_right), slot + 1, moves_right, is_gold, 1])
    due = state.spawn_timer == 0
    here = (jnp.arange(len(free)) == slot) & free & due
    return state.replace(
        entities=jnp.where(here[:, None], entity, state.entities),
        spawn_timer=jnp.where(due, state.spawn_speed, state.spawn_timer),
    )


_CORRECTED_STEPS = {
    "MountainCarContinuous-v0": _mountain_car_continuous_step,
    "Asterix-MinAtar": _asterix_step,
}


def _signature(
    environment: Any, step_env: Callable, action_space: spaces.Space, params: PyTree
) -> tuple[PyTree, PyTree]:
    """Shapes and dtypes of a state and an observation, from tracing reset and step.

    A dtype that differs between the two (or is weak) is replaced by the common dtype.
    """

    def reset_and_step(key: Array, params: PyTree) -> tuple:
        obs, state = environment.reset_env(key, params)
        action = spaces.zeros(action_space)
        next_obs, next_state, *_ = step_env(environment, key, state, action, params)
        return (state, obs), (next_state, next_obs)

    return common_types(*jax.eval_shape(reset_and_step, jax.random.key(0), params))


def _space(space: Any, value: PyTree = None) -> spaces.Space:
    """Convert a gymnax space to ours, in the shape and dtype of `value` if given."""
    theirs = _import_gymnax().environments.spaces
    if isinstance(space, theirs.Dict):
        children = {
            name: _space(child, None if value is None else value[name])
            for name, child in space.spaces.items()
        }
        return spaces.dict_space(**children)
    like = space if value is None else value
    if isinstance(space, theirs.Discrete):
        return spaces.Discrete(int(space.n), np.dtype(like.dtype).name)
    if isinstance(space, theirs.Box):
        low, high = _bound(space.low), _bound(space.high)
        return spaces.box(low, high, like.shape, like.dtype)
    raise InvalidInput(
        f"{type(space).__name__} spaces are not supported: use Box, Discrete or Dict."
    )


def _bound(bound: Any) -> np.ndarray:
    """Convert a bound of gymnax, where the largest float32 stands for infinity."""
    bound = np.asarray(bound, np.float64)
    largest = np.finfo(np.float32).max
    return np.where(np.abs(bound) < largest, bound, np.copysign(np.inf, bound))


def _is_number(value: Any) -> bool:
    kinds = int | float | np.number
    number = isinstance(value, kinds) and not isinstance(value, bool)
    return number and math.isfinite(value)


_KINDS: tuple[tuple[type, Callable[[Any], bool], str], ...] = (
    (bool, lambda x: isinstance(x, bool), "true or false"),  # first: a bool is an int
    (int, lambda x: _is_number(x) and float(x).is_integer(), "a whole number"),
    (float, _is_number, "a number"),
    (str, lambda x: isinstance(x, str), "a name"),
)


def _like(name: str, value: Any, default: Any) -> Any:
    """Convert `value` to the type of the default, or raise InvalidInput."""
    if default is None:
        return value
    for kind, fits, wanted in _KINDS:
        if isinstance(default, kind):
            if not fits(value):
                raise InvalidInput(f"{name} = {value!r}: must be {wanted}.")
            return kind(value)
    return _array_like(name, value, default)


def _array_like(name: str, value: Any, default: Any) -> Any:
    """Convert numbers to an array in the rank and dtype of the default."""
    default = np.asarray(default)
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    fits = np.can_cast(array.dtype, default.dtype, "same_kind")
    if not fits or array.ndim != default.ndim:
        raise InvalidInput(
            f"{name} = {value!r}: must be numbers such as {default.tolist()}."
        )
    return jnp.asarray(array, default.dtype)


def _freeze(value: Any) -> Any:
    """Convert lists and arrays to tuples, so that constructor arguments can be hashed."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(_freeze, value)) if isinstance(value, list | tuple) else value


@functools.lru_cache(maxsize=None, typed=True)
def _construct(factory: Callable, /, **arguments: Any) -> Any:
    """Construct one instance for equal arguments: gymnax instances compare by identity."""
    return factory(**arguments)


class _Deferred(types.ModuleType):
    """A module that is imported on first access to an attribute."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@functools.cache
def _import_gymnax() -> types.ModuleType:
    """Import gymnax without its plotting dependencies.

    Its modules import seaborn (with pandas and scipy.stats) and pyplot at the top, which
    takes most of the time of `import gymnax`. During the first import, stand-ins that
    defer the import take their places. gymnax's modules keep the stand-ins, so its
    plotting works; any other `import seaborn` finds the real module, because the stand-ins
    are removed from `sys.modules` immediately.
    """
    heavy = ("seaborn", "matplotlib.pyplot")
    stand_ins = {name: _Deferred(name) for name in heavy if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("gymnax")
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
