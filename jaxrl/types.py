"""The contract between environments, algorithms and the runner.

Imported by every module; imports none. Three ideas carry the whole library:

* **An algorithm is a value**: a tuple of pure functions (`Algorithm`). A variant is
  `PPO._replace(train_step=...)`, never a subclass.
* **Hyper-parameters are data**: a `Config` is a frozen pytree whose floats are traced,
  so that `jax.vmap` over a config *is* a hyper-parameter sweep, and whose other fields
  are static because they choose the program (sizes, names, switches).
* **State is data**: `State.agent` is what a policy artefact holds; `State.world`, if the
  algorithm steps an environment, and a replay memory are what else is needed to go on
  training.

Shapes are written `[T, N, ...]`: time first, then parallel environments.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Scalar = Array | float
"""A number, traced or not."""
PyTree = Any
Memory = Any
"""A policy's recurrent carry, leading axis `[N]`; `()` for a feed-forward policy.

All zeros at the start of an episode, by definition: `unroll` sets it to zero where an
episode ends, so no policy has to."""


def static(default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """A config field that chooses the program: ints, bools, sizes and names.

    Args:
      default: the default value; without one the field is required.
      **limits: `low`, `high` (inclusive), `above` (exclusive), checked by
        `jaxrl.core.config.check`.
    """
    return _field(default, False, limits)


def traced(default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """A config field that is data: a float that may be an array and be vmapped over."""
    return _field(default, True, limits)


def _field(default: Any, pytree_node: bool, limits: dict[str, Any]) -> Any:
    return flax.struct.field(
        pytree_node=pytree_node, default=default, metadata={"limits": limits}
    )


def per_env() -> Any:
    """A field of a state whose arrays have a leading axis of environments `[N]`.

    Along it a run that is spread over several devices is cut (see `jaxrl.core.parallel`).
    """
    return flax.struct.field(metadata={"per_env": True})


def fresh() -> Any:
    """A field of an agent that a new run begins anew, also one with `init_from`.

    What a config sets or an optimiser has come to, beside what has been learned.
    """
    return flax.struct.field(metadata={"fresh": True})


class Shared:
    """Marks a pytree node that is equal in every member of a population.

    The runner leaves it unbatched under `vmap`. A write head that were batched would
    turn an in-place slice update into a scatter, and a batched step counter would turn
    every predicate computed from it into a `select` over both branches.
    """


class Counter(flax.struct.PyTreeNode, Shared):
    """A count that survives 2^32: two uint32 words, since JAX has no int64 by default."""

    low: Array  # uint32 scalar
    high: Array  # uint32 scalar

    def __add__(self, n: int | Array) -> "Counter":
        """The count plus `n`, 0 <= n < 2^32."""
        low = self.low + jnp.asarray(n, jnp.uint32)
        return Counter(low=low, high=self.high + (low < self.low).astype(jnp.uint32))

    def as_float(self) -> Array:
        """Nearest float32: exact below 2^24, good to 6e-8 above. For schedules."""
        return self.high.astype(jnp.float32) * 2.0**32 + self.low.astype(jnp.float32)

    def __int__(self) -> int:
        """The exact count, on the host."""
        return (int(self.high) << 32) + int(self.low)


def counter(value: int = 0) -> Counter:
    """A `Counter` at `value`."""
    return Counter(
        low=jnp.asarray(np.uint32(value & 0xFFFFFFFF)),
        high=jnp.asarray(np.uint32(value >> 32)),
    )


class Mean(NamedTuple):
    """A mean that can be merged: metrics travel as (sum, count) and add up exactly."""

    sum: Array  # float32
    count: Array  # type: ignore[assignment]  # float32; tuple.count is not missed

    @property
    def value(self) -> Array:
        """sum / count, NaN where nothing was counted."""
        return self.sum / jnp.where(self.count > 0, self.count, jnp.nan)


def mean(x: Scalar, where: Array | None = None) -> Mean:
    """The `Mean` of all elements of `x`, or of those where a boolean mask holds."""
    x = jnp.asarray(x, jnp.float32)
    if where is None:
        return Mean(x.sum(), jnp.float32(x.size))
    where = jnp.broadcast_to(where, x.shape)
    return Mean(jnp.where(where, x, 0.0).sum(), where.sum(dtype=jnp.float32))


Metrics = dict[str, Mean]

Row = dict[str, Any]
"""One chunk as the host sees it: `iteration`, `env_steps`, `seconds`,
`env_steps_per_second`, and every metric as a list with one number for each seed."""


def packed_sums(rows: Iterable[Array]) -> Array:
    """The sum of each of several arrays of one size, float32 `[len]`, in one reduction.

    In the body of a loop the operations count, and five means, each stored by itself, are
    twenty.
    """
    flat = [jnp.asarray(x, jnp.float32).reshape(-1) for x in rows]
    return jnp.stack(flat).sum(-1)


def unpacked_means(names: Iterable[str], sums: Array, count: Scalar) -> Metrics:
    """The `Mean`s of `packed_sums`, each of `count` elements."""
    each = jnp.asarray(count, jnp.float32)
    return {name: Mean(sums[i], each) for i, name in enumerate(names)}


class Batches(NamedTuple):
    """The batches of several gradient steps, read one at a time."""

    index: PyTree  # [S, ...]: what `read` is given at each of S steps
    read: Callable[[PyTree], PyTree]  # an entry of `index` -> the batch
    rows: Scalar  # how many rows all S batches have together


class TimeStep(NamedTuple):
    """What an environment says of one transition, raw: nothing reset, nothing batched.

    `obs` is the true successor s_{t+1}, also where the episode ends. `truncated` here is
    only for an environment with a cut of its own; the time limit is `Env.horizon` and
    `rollout` applies it.
    """

    obs: PyTree
    reward: Array  # float32 []; rollouts convert another real dtype
    terminated: Array  # bool []: s_{t+1} has value 0
    truncated: Array  # bool []: the episode was cut here; s_{t+1} has a value
    info: PyTree


NO_ID = "the environment"
"""The id of an environment that was given none, such that messages can be read."""


class Env(flax.struct.PyTreeNode):
    """An environment: traced parameters beside static pure functions and spaces.

    reset: `(key, params) -> (env_state, obs)`, of one environment
    step:  `(key, env_state, action, params) -> (env_state, TimeStep)`, of one environment

    Both are pure and never reset by themselves. `jax.vmap` over `params` (or `horizon`)
    gives every member of a population an environment of its own. Build an environment
    once and pass it around: the functions are part of the compiled program's identity.
    """

    params: PyTree
    horizon: Any  # int32 []: time limit in steps, or None for no limit
    reset: Callable = static()
    step: Callable = static()
    observation_space: Any = static()
    action_space: Any = static()
    horizon_is: Literal["terminal", "truncated"] = static("truncated")
    """What reaching `horizon` means. "truncated": an artificial cut of a continuing task,
    so V(s_{t+1}) is bootstrapped. "terminal": a finite-horizon problem, so V(s_{t+1}) = 0
    (the observation should then show the time left)."""
    shortest_episode: int = static(1, low=1)
    """No episode is shorter than this, whatever the policy: how often a rollout has to
    draw fresh starts. 1 is always right (see `rollout.draw`)."""
    on_host: bool = static(False)
    """Whether it is stepped outside the program (`envs.gymnasium`): one agent, on one
    device, never resumed."""
    id: str = static(NO_ID)
    model: Callable | None = static(None)
    """`params -> jaxrl.mdp.MDP`: the problem as a finite MDP, where it is one or can be
    approximated by one, whose `features` are what is observed. For exact values only."""
    teacher: PyTree = None
    """What an algorithm learns from beside rewards (`Algorithm.teacher`); None for most."""
    goal_reward: Callable | None = static(None)
    """`(achieved_goal, desired_goal, params) -> (reward, terminated)`: the whole reward of
    a step, and whether its goal ends the episode, where the observation is a dict of
    these two and "observation"; None: there are no goals."""
    draw: Callable | None = static(None)
    """`(env_state, params, size) -> uint8 [H, W, 3]`: a picture, about `size` pixels high,
    all of one shape. Called on the host, with numpy arrays of one environment, by
    `jaxrl.rendering` alone. None: what `jaxrl.rendering.drawing.DRAW` has for the id, if
    anything."""


class Transition(NamedTuple):
    """Experience, arrays `[T, N, ...]`.

    `terminated` and `truncated` are never both true. A target bootstraps from
    V(next_obs), masked by `terminated` alone; a lambda-trace is cut by
    `terminated | truncated`, because the next row belongs to another episode.
    """

    obs: PyTree
    action: Array
    reward: Array  # float32
    terminated: Array  # bool
    truncated: Array  # bool
    next_obs: PyTree  # the true successor, before any reset
    extras: dict[str, Any]  # what `act` added: log_prob, value, ...

    @property
    def done(self) -> Array:
        """Whether the episode ended with this row: bool."""
        return self.terminated | self.truncated


BAD_OBS, BAD_REWARD = 1, 2
"""Bits of `World.trouble`."""


class World(flax.struct.PyTreeNode):
    """All that is needed to go on stepping N environments."""

    key: Array
    env_steps: Counter  # environment steps computed so far, over all N
    env_state: PyTree = per_env()  # [N, ...]
    obs: PyTree = per_env()  # [N, ...]
    memory: Memory = per_env()  # [N, ...]
    episode_return: Array = per_env()  # float32 [N], undiscounted, so far
    episode_length: Array = per_env()  # int32 [N], steps taken in the episode so far
    trouble: Array = per_env()  # int32 [N]: BAD_OBS, BAD_REWARD once one was not finite


class State(flax.struct.PyTreeNode):
    """All that an algorithm needs to go on training.

    An algorithm that keeps more (a replay memory) adds keyword-only fields in a subclass:

        class State(types.State, kw_only=True):
            replay: ring.Ring
    """

    agent: PyTree  # what the policy artefact holds
    world: World = None  # type: ignore[assignment]  # None: steps no environment


class Agent(flax.struct.PyTreeNode):
    """Parameters and the state of their optimiser: the smallest agent."""

    params: PyTree
    opt_state: PyTree


class Plan(NamedTuple):
    """What a configuration will do: exact counts, known before anything compiles."""

    env_steps: int  # environment steps in one train step
    updates: int  # gradient steps in one train step
    warmup_env_steps: int = 0  # environment steps taken by `init`
    gradient_rows: int = 1  # steps that one gradient is the mean of
    shares: int = 1  # how many devices can work on one agent: a divisor of this number


def no_memory(config: Any, env: Env, num_envs: int) -> Memory:
    """The memory of a feed-forward policy: none."""
    del config, env, num_envs
    return ()


def no_explanation(
    config: Any, env: Env, agent: PyTree, obs: PyTree, memory: Memory
) -> dict[str, Array]:
    """What the choice is made from is not known."""
    del config, env, agent, obs, memory
    return {}


def no_score(config: Any, env: Env, agents: PyTree) -> dict[str, Any]:
    """Nothing beside the returns."""
    del config, env, agents
    return {}


def see_to_reward(task: Any) -> str:
    """What to do about a score that is not finite."""
    del task
    return "see to `reward`, which scores the responses"


class Problem(NamedTuple):
    """What an algorithm is trained on: how that is named, built, judged and shown.

    Environments are `jaxrl.envs.problem.ENVIRONMENTS`. A task of `jaxrl.rlhf` takes the
    place of the environment in every function of the algorithm. It is a pytree with the
    fields `id`, and `teacher` for what all agents share. The defaults are those of tasks.

    make:     `(id, **params) -> env or task`; raises `InvalidInput`
    returns:  `(config, task, agent, key, number, greedy) -> float32 [number]`: how good
              the agent is on so many cases that it has not learned from; None where the
              agent acts, and is judged by whole episodes
    describe: `(config, env) -> JSON` that must be as it was for an agent to fit
    digests:  `(id, params) -> {name: digest}` of the files that it is made from
    samples:  `(config, task, agent, key) -> [{column: value}]`, on the host: a few cases
              for a person to read; None for none
    is_path:  `(name, value) -> bool`: whether the value of a parameter, or of `flag` for
              the id, is the path of a file or folder
    flag:     what names it on the command line and in messages
    help:     the help of that flag
    prefix:   what stands before the names of its parameters there
    example:  what to give, where the name is missing
    remedy:   `(env or task) -> ` what to do about an observation or a reward that is not
              finite
    """

    make: Callable
    returns: Callable | None
    describe: Callable
    digests: Callable
    samples: Callable | None
    is_path: Callable
    flag: str = "data"
    help: str = (
        "JSONL or Parquet file, or a world: small-world, larger-world, instructions."
    )
    prefix: str = ""
    example: str = "a file, or a world such as small-world"
    remedy: Callable = see_to_reward


class Algorithm(NamedTuple):
    """An algorithm, as the runner sees it: a tuple of pure functions.

    init:        `(config, env, key) -> State`
    train_step:  `(config, env, state) -> (state, Metrics)`: one rollout and its updates
    act:         `(config, env, agent, obs, memory, key, greedy) ->
                 (action, memory, extras)`, batched over `[N]`; `extras["value"]` where
                 the algorithm has a value estimate
    plan:        `(config, env) -> Plan`
    validate:    `(config, env) -> None`, raises `InvalidInput` before anything compiles
    init_memory: `(config, env, num_envs) -> Memory`, all zeros
    score:       `(config, env, agents [K]) -> {name: [K]}`, on the host: what an
                 evaluation says of the agents beside their returns. One of your own is
                 tried before training, with agents whose numbers are all 0
    explain:     `(config, env, agent, obs, memory) -> {name: [N, ...]}`, from what `act`
                 chooses, to be shown: "probability" `[N, A]` or "q" `[N, A]` of discrete
                 actions (-inf where one is not legal), "spread" `[N, D, 3]` of continuous
                 ones: the action at -1, 0 and 1 standard deviations, and of a normal "std"
                 `[N, D]`
    teacher:     what `env.teacher` is, named as its flag: "data", a `dataset.Dataset`;
                 "expert", a `frozen_policy.FrozenPolicy`; "policy", the same or None for
                 uniformly random actions. Only `train_step` and, for "policy", `act` need
                 it. "" is none.
    problem:     what it is trained on; None for environments (`envs.problem.problem_of`)
    """

    name: str
    Config: type
    init: Callable
    train_step: Callable
    act: Callable
    plan: Callable
    validate: Callable
    init_memory: Callable = no_memory
    score: Callable = no_score
    explain: Callable = no_explanation
    teacher: Literal["", "data", "expert", "policy"] = ""
    problem: Problem | None = None
