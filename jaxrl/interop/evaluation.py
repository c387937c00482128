"""Evaluation of trained agents in a Gymnasium environment.

The environments are stepped on the host; the compiled policy acts on batches.
"""

from typing import Any

import jax
import numpy as np

from jaxrl import spaces
from jaxrl.core import prng
from jaxrl.core.config import check_value
from jaxrl.envs.gymnasium import (
    as_action,
    from_action_space,
    from_space,
    make_gymnasium,
    stack_observations,
    time_limit,
)
from jaxrl.errors import InvalidInput
from jaxrl.evaluation import MAX_STEPS
from jaxrl.runs.artifact import Agents, check_acts
from jaxrl.runs.policy import Policy, make_policy
from jaxrl.runs.session import EVALUATION, evaluation_of
from jaxrl.types import Array

MAX_ENVS = 128
"""Maximum number of environments that are stepped together."""


def evaluate_on_gymnasium(
    agents: Agents, id: str, num_episodes: int = 128, seed: int = 0, greedy: bool = True
) -> dict[str, Any]:
    """Evaluate every agent over whole episodes in a Gymnasium environment.

    Each episode has its own seed, and each counts once. It ends at the environment's time
    limit; in one without, it is cut after `evaluation.MAX_STEPS`.

    Args:
      agents: from `jaxrl.load_agents`.
      id: an id for `gymnasium.make`.
      num_episodes: number of episodes of each agent.
      seed: seed of the episodes.
      greedy: the likeliest action instead of a sampled one.

    Returns:
      The fields that `jaxrl evaluate --json` prints.

    Raises:
      InvalidInput: there is no such environment, or its spaces differ from those the
        agents were trained with.
      NonFiniteError: a return is NaN or infinite.
    """
    check_value("episodes", int, num_episodes, low=1)
    check_acts(agents, agents.env.id)
    envs = [make_gymnasium(id)]
    try:
        check_spaces(agents.env, envs[0], id)
        envs += [make_gymnasium(id) for _ in range(1, min(num_episodes, MAX_ENVS))]
        played = [
            _play_all(make_policy(agents, k), envs, num_episodes, (seed, k), greedy)
            for k in range(len(agents.seeds))
        ]
    finally:
        for env in envs:
            env.close()
    returns, ended = map(np.stack, zip(*played, strict=True))
    return evaluation_of(agents, f"gymnasium/{id}", returns, ended)[0]


def check_spaces(trained: Any, env: Any, id: str) -> None:
    """Raise `InvalidInput` unless the spaces are those trained with.

    Bounds may differ, and dtypes where nothing is lost by a cast.
    """
    converters = {"observation_space": from_space, "action_space": from_action_space}
    for name, convert in converters.items():
        ours, theirs = getattr(trained, name), getattr(env, name)
        try:
            fits = _fits(ours, convert(theirs))
        except InvalidInput:
            fits = False
        if not fits:
            raise InvalidInput(
                f"gymnasium = {id!r}: its {name} is {' '.join(str(theirs).split())}, and "
                f"the agents were trained on {trained.id} with {_words(ours)}: give an "
                f"environment with the same."
            )


def _fits(ours: Any, theirs: Any) -> bool:
    a, b = spaces.tree(ours), spaces.tree(theirs)
    structures: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
    if structures[0] != structures[1]:
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        type(x) is type(y)
        and x.shape == y.shape
        and getattr(x, "n", None) == getattr(y, "n", None)
        and np.can_cast(y.dtype, x.dtype, "same_kind")
        for x, y in pairs
    )


def _words(space: Any) -> str:
    if isinstance(space, spaces.Dict):
        return f"Dict({', '.join(f'{n}: {_words(s)}' for n, s in space.items)})"
    if isinstance(space, spaces.Discrete):
        return f"Discrete({space.n})"
    return f"Box({', '.join(map(str, space.shape))}) of {space.dtype}"


def _play_all(
    policy: Policy, envs: list[Any], count: int, seed: tuple[int, int], greedy: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Play `count` episodes, as many at a time as there are envs; see `_play`."""
    starts = np.random.SeedSequence((EVALUATION, *seed)).generate_state(count)
    key = jax.random.fold_in(prng.key(seed[0]), EVALUATION)
    parts = []
    for first in range(0, count, len(envs)):
        batch = starts[first : first + len(envs)]
        batch_key = jax.random.fold_in(jax.random.fold_in(key, seed[1]), first)
        parts.append(_play(policy, envs, batch, batch_key, greedy))
    returns, ended = map(np.concatenate, zip(*parts, strict=True))
    return returns, ended


def _play(
    policy: Policy, envs: list[Any], seeds: np.ndarray, key: Array, greedy: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Play one episode for each seed `[n]`, n <= len(envs).

    Returns the returns `[n]`, and whether the episodes ended `[n]` or were cut.
    The batch always has the size of `envs`, so that one program serves every call.
    """
    count = len(seeds)
    obs = [env.reset(seed=int(s))[0] for env, s in zip(envs, seeds, strict=False)]
    obs += obs[:1] * (len(envs) - count)
    memory = policy.init_memory(len(envs))
    returns, live = np.zeros(count), np.ones(count, bool)
    space, id = policy.env.observation_space, envs[0].spec.id
    for step in range(time_limit(envs[0]) or MAX_STEPS):
        step_key = None if greedy else jax.random.fold_in(key, step)
        batch = stack_observations(space, obs, (len(obs),), id)
        action, memory = policy.act(batch, memory, step_key, greedy)
        actions = np.asarray(action)
        for i in np.flatnonzero(live):
            host_action = as_action(actions[i], envs[i].action_space)
            obs[i], reward, terminated, truncated, _ = envs[i].step(host_action)
            returns[i] += reward
            live[i] = not (terminated or truncated)
        if not live.any():
            break
    return returns, ~live
