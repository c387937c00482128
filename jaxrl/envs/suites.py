"""Common parts of the adapters for environments of other JAX libraries.

An adapter is a file `jaxrl/envs/LIBRARY.py` with

    NAMES                        the tested environments, without importing the library
    MODULE                       what to import, if that is not LIBRARY
    build(name, **params) -> Env raw transitions: no auto-reset, no time limit but `horizon`

and its ids are "LIBRARY/NAME". The library is an extra: it is imported when one of its
environments is made, and its output and warnings at import are suppressed.
"""

import contextlib
import functools
import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.errors import InvalidInput, did_you_mean, install_command
from jaxrl.types import Array, Env, PyTree, TimeStep

SUITES = {
    "brax": "physics: ant, halfcheetah, hopper, ...",
    "craftax": "Craftax and Craftax-Classic",
    "jumanji": "puzzles and packing: Game2048-v1, Snake-v1, ...",
    "navix": "MiniGrid: Navix-Empty-5x5-v0, ...",
    "pgx": "games of one player: minatar-breakout, 2048, ...",
    "playground": "DeepMind Control Suite in MJX: CheetahRun, WalkerWalk, ...",
}
"""The libraries; each has an adapter and an extra of the same name."""


class Suite(NamedTuple):
    """An environment of a library, as two functions of the library's states.

    begin:   `key -> (state, obs)`
    advance: `(key, state, action) -> (state, obs, reward, terminated, info)`
    """

    begin: Callable
    advance: Callable


@functools.cache
def suite_factory(library: str, name: str) -> Callable[..., Env]:
    """The factory of "LIBRARY/NAME", cached so that it gives one compiled program."""
    adapter = importlib.import_module(f"jaxrl.envs.{library}")
    return functools.partial(_build, adapter, library, name)


def _build(adapter: Any, library: str, name: str, /, **params: Any) -> Env:
    import_quietly(getattr(adapter, "MODULE", library), library)
    if name not in adapter.NAMES:
        raise InvalidInput(
            f"Unknown environment '{library}/{name}'"
            f"{did_you_mean(name, adapter.NAMES)}: there are "
            f"{', '.join(adapter.NAMES)}."
        )
    with explain_errors(f"{library}/{name}", params), suppress_output():
        env: Env = adapter.build(name, **params)
    return env.replace(id=f"{library}/{name}")


def import_quietly(module: str, library: str | None = None) -> Any:
    """Import a module of a library that is an extra, without its output and warnings.

    `library` is the extra's name, by default that of the package.

    Raises:
      InvalidInput: it is not installed.
    """
    library = library or module.partition(".")[0]
    try:
        with suppress_output():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"{library} is not installed ({error.name} is missing): "
            f"{install_command(library)}."
        ) from error


@contextmanager
def suppress_output() -> Iterator[None]:
    """Suppress what a library prints and warns of."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def adapt(
    suite: Suite,
    observation_space: Callable[[PyTree], spaces.Space],
    action_space: spaces.Space,
    horizon: int | None,
) -> Env:
    """Adapt an environment, with one dtype for each array and a float32 reward.

    Args:
      suite: the functions of the environment.
      observation_space: a function of the shapes and dtypes of a real observation.
      action_space: the space to which actions of a Box are clipped.
      horizon: the time limit, which `suite` does not apply.
    """
    state, obs = _signature(suite, action_space)
    dtypes_of = (dtypes(state), dtypes(obs))
    return Env(
        params=(),
        horizon=None if horizon is None else np.int32(horizon),
        reset=functools.partial(_reset, suite, dtypes_of),
        step=functools.partial(_step, suite, action_space, dtypes_of),
        observation_space=observation_space(obs),
        action_space=action_space,
    )


def _reset(
    suite: Suite, dtypes_of: tuple, key: Array, params: PyTree
) -> tuple[PyTree, PyTree]:
    del params
    state, obs = suite.begin(key)
    return cast(state, dtypes_of[0]), cast(obs, dtypes_of[1])


def _step(
    suite: Suite,
    space: spaces.Space,
    dtypes_of: tuple,
    key: Array,
    state: PyTree,
    action: Array,
    params: PyTree,
) -> tuple[PyTree, TimeStep]:
    del params
    state, obs, reward, terminated, info = suite.advance(
        key, state, valid(action, space)
    )
    step = TimeStep(
        obs=cast(obs, dtypes_of[1]),
        reward=jnp.asarray(reward, jnp.float32).reshape(()),
        terminated=jnp.asarray(terminated, bool).reshape(()),
        truncated=jnp.bool_(False),
        info=info,
    )
    return cast(state, dtypes_of[0]), step


def valid(action: Array, space: Any) -> Array:
    """The action in the shape and dtype of its space, clipped to the bounds of a Box."""
    action = jnp.asarray(action, space.dtype).reshape(space.shape)
    if isinstance(space, spaces.Box):
        action = jnp.clip(action, space.low_array(), space.high_array())
    return action


def _signature(suite: Suite, action_space: spaces.Space) -> tuple[PyTree, PyTree]:
    """Shapes and dtypes of a state and an observation, common to reset and step."""

    def both(key: Array) -> tuple:
        state, obs = suite.begin(key)
        action = spaces.zeros(action_space)
        next_state, next_obs, *_ = suite.advance(key, state, action)
        return (state, obs), (next_state, next_obs)

    return common_types(*jax.eval_shape(both, jax.random.key(0)))


def common_types(before: PyTree, after: PyTree) -> PyTree:
    """Shapes and dtypes of two trees; where dtypes differ, the common one."""

    def common(x: Any, y: Any) -> jax.ShapeDtypeStruct:
        same = x.dtype == y.dtype
        dtype = x.dtype if same else jnp.promote_types(x.dtype, y.dtype)
        return jax.ShapeDtypeStruct(x.shape, dtype)

    return jax.tree.map(common, before, after)


def dtypes(tree: PyTree) -> tuple[Any, ...]:
    """The dtype of each leaf."""
    return tuple(leaf.dtype for leaf in jax.tree.leaves(tree))


def cast(tree: PyTree, dtypes: tuple[Any, ...]) -> PyTree:
    """Cast each leaf to its dtype, not weakly typed; random keys are unchanged."""
    leaves, structure = jax.tree.flatten(tree)
    typed = [
        x
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
        else jnp.asarray(x, dtype)
        for x, dtype in zip(leaves, dtypes, strict=True)
    ]
    return jax.tree.unflatten(structure, typed)


@contextmanager
def explain_errors(id: str, arguments: dict[str, Any]) -> Iterator[None]:
    """Turn any error of a constructor over the user's arguments into `InvalidInput`."""
    try:
        yield
    except InvalidInput:
        raise
    except Exception as error:
        if not arguments:
            raise
        fields = ", ".join(f"{name} = {value!r}" for name, value in arguments.items())
        reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise InvalidInput(f"{fields}: {id} cannot be built ({reason}).") from error
