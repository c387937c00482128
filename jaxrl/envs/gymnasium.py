"""Conversion of Gymnasium's spaces, and its environments as `Env`s stepped on the host.

Gymnasium is installed with gymnax. It is imported on first use.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.core.config import check_value
from jaxrl.core.imports import import_module
from jaxrl.core.user_code import is_users, remember_error
from jaxrl.errors import InvalidInput, did_you_mean, require
from jaxrl.types import Array, Env, PyTree, TimeStep


def to_space(space: Any) -> Any:
    """Convert a space to Gymnasium's.

    A `Discrete` samples int64 there, as in Gymnasium's own environments.
    """
    from gymnasium import spaces as theirs

    if isinstance(space, spaces.Dict):
        return theirs.Dict({name: to_space(child) for name, child in space.items})
    if isinstance(space, spaces.Discrete):
        return theirs.Discrete(space.n)
    low, high = (_bound(bound, space) for bound in (space.low, space.high))
    return theirs.Box(low, high, space.shape, np.dtype(space.dtype).type)


def _bound(bound: Any, space: spaces.Box) -> np.ndarray:
    """A bound in the dtype of the space; infinite bounds become an integer's limits."""
    numbers = np.reshape(np.asarray(bound, np.float64), space.shape)
    if np.dtype(space.dtype).kind in "iub":
        return spaces.round_to(numbers, space.dtype)
    return numbers.astype(space.dtype)


def from_space(space: Any) -> Any:
    """Convert a space of Gymnasium's to ours, with numbers of 32 bits.

    Raises:
      InvalidInput: the space has no counterpart in jaxrl.
    """
    from gymnasium import spaces as theirs

    if isinstance(space, theirs.Dict):
        return spaces.dict_space(
            **{name: from_space(child) for name, child in space.items()}
        )
    if isinstance(space, theirs.Discrete) and space.start == 0:
        return spaces.Discrete(int(space.n))
    if isinstance(space, theirs.Box):
        dtype = _dtype_of(space)
        return spaces.box(space.low, space.high, space.shape, dtype)
    raise InvalidInput(
        f"the space {space} has no counterpart in jaxrl: there are Box, Discrete from 0, "
        f"and Dict of them."
    )


def _dtype_of(space: Any) -> str:
    """The dtype of at most 32 bits for the numbers of a Box of Gymnasium's."""
    dtype = np.dtype(space.dtype)
    if dtype.itemsize <= 4:
        return dtype.name
    limits = np.iinfo(np.int32)
    fits = np.all((space.low >= limits.min) & (space.high <= limits.max))
    return "int32" if dtype.kind in "iu" and fits else "float32"


def from_action_space(space: Any) -> Any:
    """Convert an action space of Gymnasium's to ours.

    A Box of integers or bools becomes one of float32, since policies give real numbers,
    which `as_action` rounds.

    Raises:
      InvalidInput: the space has no counterpart in jaxrl.
    """
    ours = from_space(space)
    if isinstance(ours, spaces.Box) and np.dtype(ours.dtype).kind in "iub":
        return spaces.box(space.low, space.high, space.shape)
    return ours


def time_limit(env: Any) -> int | None:
    """Steps after which Gymnasium truncates an episode; None if it does not."""
    limits = [env.spec.max_episode_steps] if env.spec else []
    while hasattr(env, "env"):  # wrappers of the environment's own among them
        limits.append(getattr(env, "_max_episode_steps", None))
        env = env.env
    return min((x for x in limits if x is not None and x > 0), default=None)


def make_gymnasium(id: str, **arguments: Any) -> Any:
    """Call `gymnasium.make`, with errors in one sentence and without warnings.

    The module of "module:ID" may be in the current directory. Errors of the user's code in
    it propagate.

    Raises:
      InvalidInput: there is no such environment, or it cannot be made.
    """
    import gymnasium

    module, colon, _ = id.partition(":")
    try:
        if colon:
            import_module(module)
        with warnings.catch_warnings():
            # For example that a newer version of the environment exists.
            warnings.simplefilter("ignore")
            return gymnasium.make(id, disable_env_checker=True, **arguments)
    except gymnasium.error.UnregisteredEnv as error:
        ids = [str(name) for name in gymnasium.registry]
        raise InvalidInput(
            f"Gymnasium has no environment {id!r}{did_you_mean(id, ids)}."
        ) from error
    except Exception as error:
        if is_users(error):
            raise
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        fields = ", ".join(f"{name} = {value!r}" for name, value in arguments.items())
        raise InvalidInput(
            f"Gymnasium cannot make {id!r}{' with ' + fields if fields else ''} ({reason})."
        ) from error


# A Gymnasium environment to train in


class HostState(NamedTuple):
    """Episode and step of an environment whose actual state is on the host."""

    seed: Array  # uint32 []: seed of the episode
    steps: Array  # int32 []: steps taken in it, as counted by the host


@functools.cache
def gymnasium_factory(id: str) -> Callable[..., Env]:
    """The factory of "gymnasium/ID", cached so that it gives one compiled program."""
    return functools.partial(gymnasium_env, id)


def gymnasium_env(id: str, /, shortest_episode: int = 1, **arguments: Any) -> Env:
    """A Gymnasium environment, stepped on the host by callbacks of the compiled program.

    The program's state is only `HostState`. Each environment on the host belongs to one
    position in the batch, and raises an error if the program asks for a step of another
    episode. So there can be one agent, on one device, whose run cannot be resumed.

    Args:
      id: the id, as `gymnasium.make` takes it.
      shortest_episode: no episode has fewer steps; see `Env`. A larger value saves resets
        on the host.
      **arguments: further arguments of `gymnasium.make`.

    Raises:
      InvalidInput: it cannot be made, a space has no counterpart in jaxrl, or its resets
        are not determined by their seeds.
    """
    check_value("shortest_episode", int, shortest_episode, low=1)
    host = Host(id, arguments)
    warnings.warn(
        f"gymnasium/{id} is stepped in Python, one environment after another: expect "
        f"thousands of steps a second, however many there are, and no resuming.",
        stacklevel=2,
    )
    observation_space = from_space(host.one.observation_space)
    host.check_seeds()
    # No episode reaches a limit beyond 32 bits.
    limit = None if host.limit is None else np.int32(min(host.limit, spaces.MAX_INT))
    return Env(
        params=(),
        horizon=limit,
        reset=functools.partial(_reset, host, observation_space),
        step=functools.partial(_step, host, observation_space),
        observation_space=observation_space,
        action_space=from_action_space(host.one.action_space),
        shortest_episode=shortest_episode,
        on_host=True,
    )


def _reset(
    host: "Host", space: spaces.Space, key: Array, params: PyTree
) -> tuple[HostState, PyTree]:
    del params
    seed = jax.random.bits(key, (), jnp.uint32)
    obs = jax.pure_callback(
        remember_error(host.starts), _shapes(space), seed, vmap_method="broadcast_all"
    )
    return HostState(seed, jnp.int32(0)), obs


def _step(
    host: "Host",
    space: spaces.Space,
    key: Array,
    state: HostState,
    action: Array,
    params: PyTree,
) -> tuple[HostState, TimeStep]:
    """Step on the host, which returns the step count so that the next step waits for it."""
    del key, params
    number, flag = jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((), bool)
    reward = jax.ShapeDtypeStruct((), np.float32)
    obs, reward, terminated, truncated, steps = jax.pure_callback(
        remember_error(host.steps),
        (_shapes(space), reward, flag, flag, number),
        *state,
        action,
        vmap_method="broadcast_all",
    )
    return HostState(state.seed, steps), TimeStep(
        obs, reward, terminated, truncated & ~terminated, {}
    )


def _shapes(space: spaces.Space) -> PyTree:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.dtype(leaf.dtype)),
        spaces.tree(space),
    )


class Host:
    """Environments of Gymnasium, one for each position of a batch.

    A step requested twice in a row is answered from a cache, so steps behave as if pure.
    """

    def __init__(self, id: str, arguments: dict[str, Any]) -> None:
        self.id = id
        # -1 disables Gymnasium's time limit; the rollout applies it.
        self._make = functools.partial(
            make_gymnasium, id, **{"max_episode_steps": -1} | arguments
        )
        limited = make_gymnasium(id, **arguments)
        self.one = self._make()
        self.limit = time_limit(limited)
        self.space = from_space(self.one.observation_space)
        limited.close()
        self._envs: list[Any] = []
        self._requests: list[Any] = []  # the last step of each position
        self._responses: list[Any] = []

    def check_seeds(self) -> None:
        """Check that resets are determined by their seeds."""
        first, _, again = (self.starts(np.array([seed])) for seed in (3, 4, 3))
        same = jax.tree.map(np.array_equal, first, again)
        require(
            all(jax.tree.leaves(same)),
            f"Gymnasium's {self.id!r} starts differently with the same seed: choose an "
            f"environment whose reset is determined by its seed.",
        )

    def starts(self, seeds: Any) -> PyTree:
        """The first observations of the episodes with these seeds `[...]`."""
        seeds = np.asarray(seeds)
        rows = [self.one.reset(seed=int(seed))[0] for seed in seeds.reshape(-1)]
        return stack_observations(self.space, rows, seeds.shape, self.id)

    def steps(self, seeds: Any, counts: Any, actions: Any) -> tuple:
        """Step at each position `[...]`: observation, reward, flags, steps taken."""
        seeds, counts, actions = map(np.asarray, (seeds, counts, actions))
        shape = seeds.shape
        actions = actions.reshape(-1, *actions.shape[len(shape) :])
        rows = [
            self._step(i, int(seed), int(count), action)
            for i, (seed, count, action) in enumerate(
                zip(seeds.reshape(-1), counts.reshape(-1), actions, strict=True)
            )
        ]
        obs, reward, terminated, truncated, steps = zip(*rows, strict=True)
        numbers = np.asarray(reward, np.float64)
        columns = (
            spaces.narrow(numbers, np.float32, f"a reward of {self.id}"),
            np.asarray(terminated, bool),
            np.asarray(truncated, bool),
            np.asarray(steps, np.int32),
        )
        batch = stack_observations(self.space, list(obs), shape, self.id)
        return (batch, *(x.reshape(shape) for x in columns))

    def _step(self, i: int, seed: int, count: int, action: np.ndarray) -> tuple:
        while len(self._envs) <= i:
            self._envs.append(self._make())
            self._requests.append(None)
            self._responses.append(None)
        env, previous = self._envs[i], self._requests[i]
        request = (seed, count, action.tobytes())
        if request == previous:
            return self._responses[i]
        if count == 0:
            env.reset(seed=seed)
        elif previous is None or previous[:2] != (seed, count - 1):
            raise RuntimeError(
                f"gymnasium/{self.id}: the program asks for step {count} of another "
                f"episode than that of the environment on the host; one agent at a time "
                f"can be trained in it, from the start."
            )
        obs, reward, terminated, truncated, _ = env.step(
            as_action(action, env.action_space)
        )
        response = (obs, reward, terminated, truncated, count + 1)
        self._requests[i], self._responses[i] = request, response
        return response


def stack_observations(
    space: Any, rows: list[PyTree], shape: tuple[int, ...], id: str
) -> PyTree:
    """Stack observations of an environment to one batch `[*shape, ...]`.

    Raises:
      InvalidInput: a number does not fit the dtype of the space.
    """

    def stack(leaf: Any, *rows: Any) -> np.ndarray:
        x = np.stack([np.asarray(row) for row in rows])
        x = spaces.narrow(x, leaf.dtype, f"an observation of {id}")
        return x.reshape(*shape, *leaf.shape)

    return jax.tree.map(stack, spaces.tree(space), *rows)


def as_action(action: np.ndarray, space: Any) -> Any:
    """Convert an action to the type of a Gymnasium space.

    For a Box it is rounded to integers or bools if these are its numbers, and clipped to
    the bounds.
    """
    if not hasattr(space, "low"):
        return int(action)
    action = action.reshape(space.shape)
    if np.dtype(space.dtype).kind in "iub":
        action = spaces.round_to(action, space.dtype)
    return np.clip(action, space.low, space.high).astype(space.dtype)
