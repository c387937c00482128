"""Environments of jaxrl behind Gymnasium's interface, single or vectorized.

```python
env = to_gymnasium(jaxrl.make("CartPole-v1"))
envs = to_gymnasium_vector(jaxrl.make("CartPole-v1"), num_envs=64)
```

A step is one call of a compiled program that returns NumPy arrays. Every environment has
its own chain of keys, which a seed starts: the same seed gives the same episodes, in a
single environment or in one of many.
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
"""Gymnasium's autoreset modes by name: next_step, same_step, disabled."""


def to_gymnasium(env: Env) -> "GymnasiumEnv":
    """Wrap an environment as a `gymnasium.Env`.

    Args:
      env: from `jaxrl.make`, or your own.
    """
    return GymnasiumEnv(env)


def to_gymnasium_vector(
    env: Env, num_envs: int, autoreset_mode: str | AutoresetMode = "next_step"
) -> "GymnasiumVectorEnv":
    """Wrap N copies of an environment as a `gymnasium.vector.VectorEnv`.

    Args:
      env: from `jaxrl.make`, or your own.
      num_envs: N, all of which one program steps.
      autoreset_mode: when an environment whose episode has ended starts a new one:
        "next_step", by the step after, whose action is ignored, with reward 0;
        "same_step", at once, with the true last observation in `info["final_obs"]`;
        "disabled", on `reset(options={"reset_mask": ended})`.

    Raises:
      InvalidInput: `autoreset_mode` is unknown, or `env` is not an environment.
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


class EpisodeState(NamedTuple):
    """The state of an environment within an episode; of many, with leading axis `[N]`."""

    key: Array  # next key of the chain
    env_state: PyTree
    length: Array  # int32 []: steps taken in the episode


class Step(NamedTuple):
    """The outcome of a step, time limit included."""

    obs: PyTree
    reward: Array
    terminated: Array
    truncated: Array
    info: PyTree


def start_episode(env: Env, key: Array) -> tuple[EpisodeState, PyTree]:
    """Start an episode of one environment, from its chain of keys."""
    key, key_reset = jax.random.split(key)
    env_state, obs = env.reset(key_reset, env.params)
    return EpisodeState(key, env_state, jnp.int32(0)), obs


def step_episode(
    env: Env, state: EpisodeState, action: Array
) -> tuple[EpisodeState, Step]:
    """Take one step of one environment."""
    key, key_step = jax.random.split(state.key)
    space = env.action_space
    action = jnp.asarray(action, space.dtype).reshape(space.shape)
    env_state, step = env.step(key_step, state.env_state, action, env.params)
    length = state.length + 1
    ends = episode_ends(env, step, length)
    return EpisodeState(key, env_state, length), Step(
        step.obs, step.reward, *ends, step.info
    )


_start = jax.jit(start_episode)
_step = jax.jit(step_episode)


@jax.jit
def _start_some(
    env: Env, state: EpisodeState, obs: PyTree, mask: Array
) -> tuple[EpisodeState, PyTree]:
    """Start new episodes where `mask` `[N]` is true."""
    fresh = jax.vmap(partial(start_episode, env))(state.key)
    return tree_where(mask, fresh, (state, obs))


@jax.jit
def _start_all(env: Env, keys: Array) -> tuple[EpisodeState, PyTree]:
    return jax.vmap(partial(start_episode, env))(keys)


@partial(jax.jit, static_argnames="mode")
def _step_all(
    env: Env, mode: AutoresetMode, state: EpisodeState, ended: Array, action: Array
) -> tuple[EpisodeState, Step, PyTree]:
    """Step all environments; also return the observations that precede the next step.

    Args:
      env: the environment.
      mode: when new episodes start.
      state: states of all `[N]`.
      ended: bool `[N]`, whether the last step ended an episode.
      action: actions `[N, ...]`.
    """
    after, step = jax.vmap(partial(step_episode, env))(state, action)
    done = step.terminated | step.truncated
    if mode is AutoresetMode.DISABLED:
        return after, step, step.obs
    if mode is AutoresetMode.SAME_STEP:
        restarted, (state, obs) = done, (after, step.obs)
    else:
        restarted, (state, obs) = ended, (tree_where(ended, state, after), step.obs)

    def fresh() -> tuple[EpisodeState, PyTree]:
        return tree_where(
            restarted, jax.vmap(partial(start_episode, env))(state.key), (state, obs)
        )

    state, obs = jax.lax.cond(restarted.any(), fresh, lambda: (state, obs))
    if mode is AutoresetMode.NEXT_STEP:
        step = step._replace(
            reward=jnp.where(ended, 0.0, step.reward),
            terminated=step.terminated & ~ended,
            truncated=step.truncated & ~ended,
        )
    return state, step, obs


class GymnasiumEnv(gymnasium.Env):
    """An environment of jaxrl behind Gymnasium's interface; see `to_gymnasium`."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, env: Env) -> None:
        self.env = _check_env(env)
        self.observation_space = to_space(env.observation_space)
        self.action_space = to_space(env.action_space)
        self.metadata = {**self.metadata, "jaxrl_id": env.id}
        self._key: Array | None = None
        self._state: EpisodeState | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[PyTree, dict[str, Any]]:
        """Start an episode; a seed starts a new chain of keys."""
        del options  # none exist
        super().reset(seed=seed)
        if seed is not None or self._key is None:
            self._key = _chain(self.np_random)
        self._state, obs = _start(self.env, self._key)
        self._key = self._state.key
        return _numpy(self.env.observation_space, obs), {}

    def step(self, action: Any) -> tuple[PyTree, float, bool, bool, dict[str, Any]]:
        """Take a step; `obs` is the true successor, also where the episode ends."""
        if self._state is None:
            raise ResetNeeded("step was called before reset.")
        action = spaces.narrow(action, self.env.action_space.dtype, "action")
        self._state, step = _step(self.env, self._state, action)
        self._key = self._state.key
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
        self.env = _check_env(env)
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
        self._state: EpisodeState | None = None
        self._obs: PyTree = None
        self._ended = np.zeros(num_envs, bool)

    def reset(  # type: ignore[override]
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[PyTree, dict[str, Any]]:
        """Start episodes in all, or where `options["reset_mask"]`, bool `[N]`, is true.

        Args:
          seed: seed of the first; the others have the numbers after it. Or a list of N,
            None for those that continue their chains of keys.
          options: see above.
        """
        mask = _parse_mask((options or {}).get("reset_mask"), self.num_envs)
        super().reset(seed=seed if isinstance(seed, int) else None)
        seeds = self._seeds(seed, mask)
        if self._state is None:
            self._state, self._obs = _start_all(self.env, self._chains(seeds))
        else:
            state = self._state._replace(key=self._chains(seeds, self._state.key))
            self._state, self._obs = _start_some(self.env, state, self._obs, mask)
        self._ended = self._ended & ~mask
        return self._numpy(self._obs), {}

    def step(
        self, actions: Any
    ) -> tuple[PyTree, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all. See `to_gymnasium_vector` for what happens where an episode ends."""
        if self._state is None:
            raise ResetNeeded("step was called before reset.")
        ended = self._ended
        if self._mode is AutoresetMode.DISABLED and ended.any():
            raise ResetNeeded(
                f"environments {np.flatnonzero(ended).tolist()} have ended: call "
                f"reset(options={{'reset_mask': ended}}) first."
            )
        actions = spaces.narrow(actions, self.env.action_space.dtype, "actions")
        self._state, step, self._obs = _step_all(
            self.env, self._mode, self._state, ended, actions
        )
        step = jax.device_get(step)
        done = step.terminated | step.truncated
        if self._mode is AutoresetMode.SAME_STEP:
            self._ended = np.zeros_like(done)
            info = _mask_info(_info(step.info), ~done)
            if done.any():
                info |= self._final(step, done)
        else:
            self._ended = done
            restarted = ended if self._mode is AutoresetMode.NEXT_STEP else done & False
            info = _mask_info(_info(step.info), ~restarted)
        reward = step.reward.astype(np.float64)
        flags = (np.array(step.terminated), np.array(step.truncated))
        return self._numpy(self._obs), reward, *flags, info

    def _final(self, step: Step, done: np.ndarray) -> dict[str, Any]:
        """Make the entries of `info` about episodes that have ended, as Gymnasium does."""
        rows = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(done):
            row = jax.tree.map(lambda x, i=i: x[i], step.obs)
            rows[i] = _numpy(self.env.observation_space, row)
        return {
            "final_obs": rows,
            "_final_obs": done,
            "final_info": _mask_info(_info(step.info), done),
            "_final_info": done,
        }

    def _seeds(self, seed: Any, mask: np.ndarray) -> list[int | None]:
        """Return the seed of each environment that is reset; None without one."""
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
        """Make the chains of keys that these seeds start; without a seed they continue."""
        if before is not None and not any(seed is not None for seed in seeds):
            return before
        fresh = [
            _chain(self.np_random if seed is None else seeding.np_random(seed)[0])
            for seed in seeds
        ]
        if before is None:
            return jnp.stack(fresh)
        is_seeded = np.array([seed is not None for seed in seeds])
        return jnp.where(is_seeded, jnp.stack(fresh), before)

    def _numpy(self, obs: PyTree) -> PyTree:
        return _numpy(self.env.observation_space, obs)


def _check_env(env: Any) -> Env:
    require(
        isinstance(env, Env),
        f"env = {env!r}: must be an environment, for example jaxrl.make('CartPole-v1').",
    )
    return env


def _chain(random: np.random.Generator) -> Array:
    """Draw the start of a chain of keys from Gymnasium's generator."""
    return prng.key(int(random.integers(2**32)))


def _parse_mask(mask: Any, num_envs: int) -> np.ndarray:
    if mask is None:
        return np.ones(num_envs, bool)
    mask = np.asarray(mask)
    require(
        mask.shape == (num_envs,) and mask.dtype == bool,
        f"reset_mask has {mask.dtype} {list(mask.shape)}: must be bool [{num_envs}].",
    )
    return mask


def _numpy(space: Any, obs: PyTree) -> PyTree:
    """Copy an observation, or a batch, to NumPy; Discrete ones as int64."""

    def leaf(space: Any, x: Array) -> Any:
        if isinstance(space, spaces.Discrete):
            return np.array(x, np.int64)[()]
        return np.array(x)

    return jax.tree.map(leaf, spaces.tree(space), jax.device_get(obs))


def _info(info: Any) -> dict[str, Any]:
    """Return a dictionary of NumPy arrays; empty where `info` is no dictionary."""
    if not isinstance(info, dict):
        return {}
    return {str(k): _info(v) if isinstance(v, dict) else v for k, v in info.items()}


def _mask_info(info: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """Add for each name one with `_`, the mask of the environments that have it."""
    result: dict[str, Any] = {}
    for name, value in info.items() if mask.any() else ():
        if isinstance(value, dict):
            result[name] = _mask_info(value, mask)
        elif isinstance(value, np.ndarray) and value.shape[:1] == mask.shape:
            shape = (-1, *[1] * (value.ndim - 1))
            result[name] = np.where(mask.reshape(shape), value, np.zeros_like(value))
        else:
            continue
        result[f"_{name}"] = mask
    return result
