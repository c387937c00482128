"""Wrappers: functions from an `Env` to an `Env`.

The wrapped functions are cached, so that wrapping the same environment twice gives the
same compiled program. The memory of a wrapper is part of the environment state, and is
reset with every episode.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.errors import InvalidInput
from jaxrl.spaces import MASK
from jaxrl.types import Array, Env, PyTree, TimeStep


class StickyParams(NamedTuple):
    env: PyTree
    sticky_prob: Array  # float32 []


class StickyState(NamedTuple):
    env_state: PyTree
    last_action: Array  # like the action space: the action that was executed
    first: Array  # bool []: no action yet in this episode


def unwrap(env_state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
    """State and parameters of the environment inside all wrappers of this file."""
    while isinstance(env_state, StickyState | HistoryState):
        if isinstance(env_state, StickyState):
            params = params.env
        env_state = env_state.env_state
    return env_state, params


def sticky_actions(env: Env, prob: float | Array) -> Env:
    """Repeat the previous action, instead of the new one, with probability `prob`.

    The protocol of Machado et al. (2018), "Revisiting the Arcade Learning Environment",
    section 5, and of MinAtar, where `prob` is 0.1. The executed action is repeated, so
    repeats can follow each other. The first action of an episode is never replaced. The
    agent does not observe which action was executed.

    `prob` is data: `env.params.sticky_prob` can be vmapped over.
    """
    reset, step = _sticky_functions(env.reset, env.step, env.action_space)
    params = StickyParams(env.params, jnp.asarray(prob, jnp.float32))
    goal_reward = env.goal_reward and _sticky_goal_reward(env.goal_reward)
    return env.replace(
        params=params, reset=reset, step=step, model=None, goal_reward=goal_reward
    )


@functools.cache
def _sticky_goal_reward(goal_reward: Callable) -> Callable:
    def wrapped(achieved: Array, desired: Array, params: StickyParams) -> Any:
        return goal_reward(achieved, desired, params.env)

    return wrapped


@functools.cache
def _sticky_functions(
    reset: Callable, step: Callable, action_space: spaces.Space
) -> tuple[Callable, Callable]:
    return (
        functools.partial(_sticky_reset, reset, action_space),
        functools.partial(_sticky_step, step, action_space),
    )


def _sticky_reset(
    reset: Callable, action_space: spaces.Space, key: Array, params: StickyParams
) -> tuple[StickyState, PyTree]:
    env_state, obs = reset(key, params.env)
    no_action = spaces.zeros(action_space)
    return StickyState(env_state, no_action, jnp.bool_(True)), obs


def _sticky_step(
    step: Callable,
    action_space: Any,
    key: Array,
    state: StickyState,
    action: Array,
    params: StickyParams,
) -> tuple[StickyState, TimeStep]:
    key_sticky, key_step = jax.random.split(key)
    sticks = jax.random.bernoulli(key_sticky, params.sticky_prob) & ~state.first
    action = jnp.asarray(action, action_space.dtype).reshape(action_space.shape)
    action = jnp.where(sticks, state.last_action, action)
    env_state, timestep = step(key_step, state.env_state, action, params.env)
    return StickyState(env_state, action, jnp.bool_(False)), timestep


class HistoryState(NamedTuple):
    env_state: PyTree
    window: dict[str, PyTree]  # name -> the last k observations
    actions: Array  # float32 [k, A]: the action that led to each of them


class _History(NamedTuple):
    """Static specification of the wrapped functions, hashable as their cache key."""

    reset: Callable
    step: Callable
    observation_space: spaces.Space
    action_space: spaces.Space
    length: int
    with_actions: bool


def stack_history(env: Env, length: int, actions: bool | None = None) -> Env:
    """Stack the last `length` observations, and optionally actions.

    With k = `length` an observation becomes, oldest first and with zeros before the
    start of the episode,

    * `[k, *shape]` in general;
    * `[k, n]`, one-hot, for a `Discrete(n)`, so that zeros are not a state;
    * `[H, W, k C]` for an image `[H, W, C]`, which remains an image.

    With actions the observation is a dictionary `{"obs": ..., "actions": [k, A]}`. Row
    i of "actions" is the action that led to observation i, so the last row is the
    previous action, and zeros where an episode starts: one-hot for `Discrete(A)`, else
    the A numbers of a `Box`, clipped to its bounds. A dictionary observation keeps its
    names, with each entry stacked; `action_mask` is passed through unchanged.

    Args:
      env: any environment.
      length: k >= 1.
      actions: include the actions; None includes them unless there is an image.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise InvalidInput(f"history = {length!r}: must be a whole number, at least 1.")
    entries = spaces.tree(_stacked_part(env.observation_space))
    if actions is None:
        actions = not any(map(_is_image, jax.tree.leaves(entries)))
    if actions and "actions" in entries:
        raise InvalidInput(
            f"history = {length}: the observation has an entry named 'actions' "
            "already, use stack_history(env, length, actions=False)."
        )
    spec = _History(
        env.reset, env.step, env.observation_space, env.action_space, length, actions
    )
    reset, step = _history_functions(spec)
    space = _history_space(spec)
    return env.replace(
        reset=reset,
        step=step,
        observation_space=space,
        model=None,
        goal_reward=None,  # of goals without a history
    )


@functools.cache
def _history_functions(spec: _History) -> tuple[Callable, Callable]:
    reset = functools.partial(_history_reset, spec)
    return reset, functools.partial(_history_step, spec)


def _history_reset(
    spec: _History, key: Array, params: PyTree
) -> tuple[HistoryState, PyTree]:
    env_state, obs = spec.reset(key, params)
    window = _push(spec, spaces.zeros(_window_space(spec)), obs)
    actions = spaces.zeros(_actions_space(spec))
    observation = _assemble(spec, window, actions, obs)
    return HistoryState(env_state, window, actions), observation


def _history_step(
    spec: _History, key: Array, state: HistoryState, action: Array, params: PyTree
) -> tuple[HistoryState, TimeStep]:
    env_state, step = spec.step(key, state.env_state, action, params)
    window = _push(spec, state.window, step.obs)
    row = _encode_action(spec.action_space, action)
    actions = jnp.concatenate([state.actions[1:], row[None]])
    observation = _assemble(spec, window, actions, step.obs)
    return HistoryState(env_state, window, actions), step._replace(obs=observation)


def _stacked_part(space: spaces.Space) -> spaces.Dict:
    """The entries to stack; an observation without names becomes the entry "obs"."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict(tuple(item for item in space.items if item[0] != MASK))
    return spaces.dict_space(obs=space)


def _assemble(spec: _History, window: Any, actions: Any, original: Any) -> Any:
    """The stacked observation from its entries (or its space, from theirs)."""
    entries = dict(window)
    if spec.with_actions:
        entries["actions"] = actions
    if not isinstance(spec.observation_space, spaces.Dict):
        return entries if spec.with_actions else entries["obs"]
    if MASK in spec.observation_space:
        entries[MASK] = original[MASK]
    return entries


def _history_space(spec: _History) -> spaces.Space:
    window = dict(_window_space(spec).items)
    space = _assemble(spec, window, _actions_space(spec), spec.observation_space)
    return spaces.dict_space(**space) if isinstance(space, dict) else space


def _window_space(spec: _History) -> spaces.Dict:
    return _stack_space(_stacked_part(spec.observation_space), spec.length)


def _stack_space(space: Any, length: int) -> Any:
    """The space of `length` stacked values, each of which may be the zero padding."""
    if isinstance(space, spaces.Dict):
        items = ((name, _stack_space(child, length)) for name, child in space.items)
        return spaces.Dict(tuple(items))
    if isinstance(space, spaces.Discrete):
        return spaces.box(0.0, 1.0, (length, space.n))
    low = np.minimum(np.reshape(space.low, space.shape), 0.0)
    high = np.maximum(np.reshape(space.high, space.shape), 0.0)
    if _is_image(space):
        low, high = np.tile(low, length), np.tile(high, length)
        return spaces.box(low, high, low.shape, space.dtype)
    return spaces.box(low, high, (length, *space.shape), space.dtype)


def _push(spec: _History, window: PyTree, obs: PyTree) -> PyTree:
    """The window with `obs` as its newest entry and without its oldest."""
    part = _stacked_part(spec.observation_space)
    named = isinstance(spec.observation_space, spaces.Dict)
    newest = {name: obs[name] if named else obs for name, _ in part.items}

    def push(space: Any, window: Array, x: Array) -> Array:
        if _is_image(space):
            return jnp.concatenate([window[..., x.shape[-1] :], x], axis=-1)
        if isinstance(space, spaces.Discrete):
            x = jax.nn.one_hot(x, space.n, dtype=jnp.float32)
        return jnp.concatenate([window[1:], x[None]])

    return jax.tree.map(push, spaces.tree(part), window, newest)


def _is_image(space: Any) -> bool:
    return len(space.shape) == 3


def _actions_space(spec: _History) -> spaces.Box:
    return _stack_space(_flat(spec.action_space), spec.length)


def _flat(space: Any) -> Any:
    """An action space as a float32 vector; a `Discrete` is unchanged."""
    if isinstance(space, spaces.Discrete):
        return space
    return spaces.box(space.low, space.high, (space.size,))


def _encode_action(space: Any, action: Array) -> Array:
    """One row of "actions", float32 `[A]`."""
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(action, space.n, dtype=jnp.float32)
    action = jnp.asarray(action, jnp.float32).reshape(space.shape)
    return jnp.clip(action, space.low_array(), space.high_array()).reshape(-1)
