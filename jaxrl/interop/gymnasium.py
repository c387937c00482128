"""Any environment of ours as one of Gymnasium, alone or many at a time.

```python
env = to_gymnasium(jaxrl.make("CartPole-v1"))
envs = to_gymnasium_vector(jaxrl.make("CartPole-v1"), num_envs=64)
```

A step is one call of a compiled program, from which NumPy arrays come back. Every
environment has a chain of keys of its own, which a seed begins: the same seed gives the
same episodes, alone or as one of many.
"""

from functools import partial
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from jaxrl import spaces
from jaxrl.core import prng
from jaxrl.core.config import check_value
from jaxrl.envs.gymnasium import to_space
from jaxrl.errors import did_you_mean, require
from jaxrl.rollout import episode_ends, tree_where
from jaxrl.types import Array, Env, PyTree

MODES = {mode.name.lower(): mode for mode in AutoresetMode}
"""Gymnasium's three, by name: next_step, same_step, disabled."""


def to_gymnasium(env: Env) -> "GymnasiumEnv":
    """The environment as a `gymnasium.Env`.

    Args:
      env: of `jaxrl.make`, or one of your own.
    """
    return GymnasiumEnv(env)


def to_gymnasium_vector(
    env: Env, num_envs: int, autoreset_mode: str | AutoresetMode = "next_step"
) -> "GymnasiumVectorEnv":
    """So many copies of the environment as a `gymnasium.vector.VectorEnv`.

    Args:
      env: of `jaxrl.make`, or one of your own.
      num_envs: N, all of which one program steps.
      autoreset_mode: when an environment whose episode has ended begins a new one:
        "next_step", by the step after, whose action is not used, with reward 0;
        "same_step", at once, the true last observation being in `info["final_obs"]`;
        "disabled", when `reset(options={"reset_mask": ended})` says so.

    Raises:
      InvalidInput: there is no such mode, or no environment.
    """
    check_value("num_envs", int, num_envs, low=1)
    if not isinstance(autoreset_mode, AutoresetMode):
        require(
            autoreset_mode in MODES,
            f"autoreset_mode = {autoreset_mode!r}: must be one of {', '.join(MODES)}"
            f"{did_you_mean(str(autoreset_mode), MODES)}.",
        )
        autoreset_mode = MODES[autoreset_mode]
    return GymnasiumVectorEnv(env, num_envs, autoreset_mode)


class Live(NamedTuple):
    """An environment in the middle of an episode; of many, with leading axis `[N]`."""

    key: Array  # the rest of its chain
    env_state: PyTree
    length: Array  # int32 []: steps taken in the episode


class Step(NamedTuple):
    """What a step says, time limit included."""

    obs: PyTree
    reward: Array
    terminated: Array
    truncated: Array
    info: PyTree


def begin(env: Env, key: Array) -> tuple[Live, PyTree]:
    """A new episode of one environment, from its chain of keys."""
    key, key_reset = jax.random.split(key)
    env_state, obs = env.reset(key_reset, env.params)
    return Live(key, env_state, jnp.int32(0)), obs


def advance(env: Env, live: Live, action: Array) -> tuple[Live, Step]:
    """One step of one environment."""
    key, key_step = jax.random.split(live.key)
    space = env.action_space
    action = jnp.asarray(action, space.dtype).reshape(space.shape)
    env_state, step = env.step(key_step, live.env_state, action, env.params)
    length = live.length + 1
    ends = episode_ends(env, step, length)
    return Live(key, env_state, length), Step(step.obs, step.reward, *ends, step.info)


_begin = jax.jit(begin)
_advance = jax.jit(advance)


@jax.jit
def _begin_some(env: Env, live: Live, obs: PyTree, some: Array) -> tuple[Live, PyTree]:
    """A new episode where `some` `[N]` says so."""
    fresh = jax.vmap(partial(begin, env))(live.key)
    return tree_where(some, fresh, (live, obs))


@jax.jit
def _begin_all(env: Env, keys: Array) -> tuple[Live, PyTree]:
    return jax.vmap(partial(begin, env))(keys)


@partial(jax.jit, static_argnames="mode")
def _advance_all(
    env: Env, mode: AutoresetMode, live: Live, ended: Array, action: Array
) -> tuple[Live, Step, PyTree]:
    """A step of all `[N]`, and the observations that begin the next.

    Args:
      env: the environment.
      mode: when those that have ended begin anew.
      live: where they are.
      ended: whose last step ended an episode.
      action: of each.
    """
    after, step = jax.vmap(partial(advance, env))(live, action)
    done = step.terminated | step.truncated
    if mode is AutoresetMode.DISABLED:
        return after, step, step.obs
    if mode is AutoresetMode.SAME_STEP:
        anew, (live, obs) = done, (after, step.obs)
    else:
        anew, (live, obs) = ended, (tree_where(ended, live, after), step.obs)

    def fresh() -> tuple[Live, PyTree]:
        return tree_where(anew, jax.vmap(partial(begin, env))(live.key), (live, obs))

    live, obs = jax.lax.cond(anew.any(), fresh, lambda: (live, obs))
    if mode is AutoresetMode.NEXT_STEP:
        step = step._replace(
            reward=jnp.where(ended, 0.0, step.reward),
            terminated=step.terminated & ~ended,
            truncated=step.truncated & ~ended,
        )
    return live, step, obs


class GymnasiumEnv(gymnasium.Env):
    """An environment of ours behind Gymnasium's interface; see `to_gymnasium`."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, env: Env) -> None:
        self.env = _checked(env)
        self.observation_space = to_space(env.observation_space)
        self.action_space = to_space(env.action_space)
        self.metadata = {**self.metadata, "jaxrl_id": env.id}
        self._key: Array | None = None
        self._live: Live | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[PyTree, dict[str, Any]]:
        """A new episode. With a seed, of the chain of keys that it begins."""
        del options  # there are none
        super().reset(seed=seed)
        if seed is not None or self._key is None:
            self._key = _chain(self.np_random)
        self._live, obs = _begin(self.env, self._key)
        self._key = self._live.key
        return _numpy(self.env.observation_space, obs), {}

    def step(self, action: Any) -> tuple[PyTree, float, bool, bool, dict[str, Any]]:
        """One step; `obs` is the true successor, also where the episode ends."""
        if self._live is None:
            raise ResetNeeded("step was called before reset.")
        self._live, step = _advance(self.env, self._live, np.asarray(action))
        self._key = self._live.key
        step = jax.device_get(step)
        return (
            _numpy(self.env.observation_space, step.obs),
            float(step.reward),
            bool(step.terminated),
            bool(step.truncated),
            _info(step.info),
        )


class GymnasiumVectorEnv(gymnasium.vector.VectorEnv):
    """N environments that one program steps; see `to_gymnasium_vector`."""

    def __init__(self, env: Env, num_envs: int, autoreset_mode: AutoresetMode) -> None:
        self.env = _checked(env)
        self.num_envs = num_envs
        self.metadata = {
            "render_modes": [],
            "autoreset_mode": autoreset_mode,
            "jaxrl_id": env.id,
        }
        self.single_observation_space = to_space(env.observation_space)
        self.single_action_space = to_space(env.action_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._mode = autoreset_mode
        self._live: Live | None = None
        self._obs: PyTree = None
        self._ended = np.zeros(num_envs, bool)

    def reset(  # type: ignore[override]
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[PyTree, dict[str, Any]]:
        """New episodes, of all or where `options["reset_mask"]`, bool `[N]`, is true.

        Args:
          seed: of the first; the others have the numbers after it. Or a list of N, None
            for those that go on with their chains of keys.
          options: see above.
        """
        mask = _mask((options or {}).get("reset_mask"), self.num_envs)
        super().reset(seed=seed if isinstance(seed, int) else None)
        seeds = self._seeds(seed, mask)
        if self._live is None:
            self._live, self._obs = _begin_all(self.env, self._chains(seeds))
        else:
            live = self._live._replace(key=self._chains(seeds, self._live.key))
            self._live, self._obs = _begin_some(self.env, live, self._obs, mask)
        self._ended = self._ended & ~mask
        return self._numpy(self._obs), {}

    def step(
        self, actions: Any
    ) -> tuple[PyTree, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """A step of all. See `to_gymnasium_vector` for where an episode ends."""
        if self._live is None:
            raise ResetNeeded("step was called before reset.")
        ended = self._ended
        if self._mode is AutoresetMode.DISABLED and ended.any():
            raise ResetNeeded(
                f"environments {np.flatnonzero(ended).tolist()} have ended: call "
                f"reset(options={{'reset_mask': ended}}) first."
            )
        self._live, step, self._obs = _advance_all(
            self.env, self._mode, self._live, ended, np.asarray(actions)
        )
        step = jax.device_get(step)
        done = step.terminated | step.truncated
        if self._mode is AutoresetMode.SAME_STEP:
            self._ended = np.zeros_like(done)
            info = _masked(_info(step.info), ~done)
            if done.any():
                info |= self._final(step, done)
        else:
            self._ended = done
            anew = ended if self._mode is AutoresetMode.NEXT_STEP else done & False
            info = _masked(_info(step.info), ~anew)
        reward = step.reward.astype(np.float64)
        flags = (np.array(step.terminated), np.array(step.truncated))
        return self._numpy(self._obs), reward, *flags, info

    def _final(self, step: Step, done: np.ndarray) -> dict[str, Any]:
        """What `info` says of the episodes that have ended, in Gymnasium's words."""
        rows = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(done):
            row = jax.tree.map(lambda x, i=i: x[i], step.obs)
            rows[i] = _numpy(self.env.observation_space, row)
        return {
            "final_obs": rows,
            "_final_obs": done,
            "final_info": _masked(_info(step.info), done),
            "_final_info": done,
        }

    def _seeds(self, seed: Any, mask: np.ndarray) -> list[int | None]:
        """The seed of each environment that begins anew; None without one."""
        if seed is None:
            seed = [None] * self.num_envs
        elif isinstance(seed, int | np.integer):
            seed = [int(seed) + i for i in range(self.num_envs)]
        require(
            len(seed) == self.num_envs,
            f"seed has {len(seed)} numbers: there are {self.num_envs} environments.",
        )
        return [each if m else None for each, m in zip(seed, mask, strict=True)]

    def _chains(self, seeds: list[int | None], before: Array | None = None) -> Array:
        """The chains of keys that these seeds begin; without a seed as before."""
        if before is not None and not any(seed is not None for seed in seeds):
            return before
        fresh = [
            _chain(self.np_random if seed is None else seeding.np_random(seed)[0])
            for seed in seeds
        ]
        if before is None:
            return jnp.stack(fresh)
        given = np.array([seed is not None for seed in seeds])
        return jnp.where(given, jnp.stack(fresh), before)

    def _numpy(self, obs: PyTree) -> PyTree:
        return _numpy(self.env.observation_space, obs)


def _checked(env: Any) -> Env:
    require(
        isinstance(env, Env),
        f"env = {env!r}: must be an environment, for example jaxrl.make('CartPole-v1').",
    )
    return env


def _chain(random: np.random.Generator) -> Array:
    """The chain of keys that Gymnasium's generator begins."""
    return prng.key(int(random.integers(2**32)))


def _mask(mask: Any, num_envs: int) -> np.ndarray:
    if mask is None:
        return np.ones(num_envs, bool)
    mask = np.asarray(mask)
    require(
        mask.shape == (num_envs,) and mask.dtype == bool,
        f"reset_mask has {mask.dtype} {list(mask.shape)}: must be bool [{num_envs}].",
    )
    return mask


def _numpy(space: Any, obs: PyTree) -> PyTree:
    """An observation, or a batch, as arrays of the caller's own; a number as int64."""

    def leaf(space: Any, x: Array) -> Any:
        if isinstance(space, spaces.Discrete):
            return np.array(x, np.int64)[()]
        return np.array(x)

    return jax.tree.map(leaf, spaces.tree(space), jax.device_get(obs))


def _info(info: Any) -> dict[str, Any]:
    """A dictionary of NumPy arrays; what is no dictionary is left out."""
    if not isinstance(info, dict):
        return {}
    return {str(k): _info(v) if isinstance(v, dict) else v for k, v in info.items()}


def _masked(info: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """Gymnasium's form: beside each name one with `_` that says of whom it speaks."""
    found: dict[str, Any] = {}
    for name, value in info.items() if mask.any() else ():
        if isinstance(value, dict):
            found[name] = _masked(value, mask)
        elif isinstance(value, np.ndarray) and value.shape[:1] == mask.shape:
            shape = (-1, *[1] * (value.ndim - 1))
            found[name] = np.where(mask.reshape(shape), value, np.zeros_like(value))
        else:
            continue
        found[f"_{name}"] = mask
    return found
