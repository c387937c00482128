"""Trained agents in a real Gymnasium environment.

The environment is stepped on the host; the policy is the compiled one, asked for a batch of
actions at a time.
"""

from typing import Any

import jax
import numpy as np

from jaxrl import spaces
from jaxrl.core import prng
from jaxrl.core.config import check_value
from jaxrl.envs.gymnasium import as_action, from_space, make_gymnasium, stacked
from jaxrl.errors import InvalidInput
from jaxrl.evaluation import MAX_STEPS
from jaxrl.runs.artifact import Agents, check_acts
from jaxrl.runs.policy import Policy
from jaxrl.runs.session import EVALUATION, evaluation_of
from jaxrl.training.population import member
from jaxrl.types import Array

AT_ONCE = 128
"""Environments that play at the same time."""


def evaluate_on_gymnasium(
    agents: Agents, id: str, num_episodes: int = 128, seed: int = 0, greedy: bool = True
) -> dict[str, Any]:
    """Whole episodes of every agent in a Gymnasium environment.

    Each episode is that of a fresh environment with a seed of its own, and each counts
    once. One that does not end is cut at the environment's time limit, or after
    `evaluation.MAX_STEPS` if it has none.

    Args:
      agents: of `jaxrl.load_agents`.
      id: as `gymnasium.make` takes it.
      num_episodes: of each agent.
      seed: of the episodes.
      greedy: the likeliest action, or a sampled one.

    Returns:
      The fields that `jaxrl evaluate --json` prints.

    Raises:
      InvalidInput: there is no such environment, or its spaces are others than those the
        agents were trained with.
      NonFiniteError: a return is NaN or infinite.
    """
    check_value("episodes", int, num_episodes, low=1)
    check_acts(agents, agents.env.id)
    envs = [make_gymnasium(id)]
    try:
        check_spaces(agents.env, envs[0], id)
        envs += [make_gymnasium(id) for _ in range(1, min(num_episodes, AT_ONCE))]
        returns = [
            _returns(_policy(agents, k), envs, num_episodes, (seed, k), greedy)
            for k in range(len(agents.seeds))
        ]
    finally:
        for env in envs:
            env.close()
    return evaluation_of(agents, f"gymnasium/{id}", np.stack(returns))[0]


def check_spaces(trained: Any, env: Any, id: str) -> None:
    """Refuses an environment whose spaces are others than those trained with.

    Bounds may differ, and a number's type where nothing is lost by it.
    """
    for name in ("observation_space", "action_space"):
        ours, theirs = getattr(trained, name), getattr(env, name)
        try:
            fits = _fits(ours, from_space(theirs))
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
    forms: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
    if forms[0] != forms[1]:
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


def _policy(agents: Agents, k: int) -> Policy:
    config, env = agents.variants[k]
    return Policy(agents.algorithm, config, env, member(agents.agents, k))


def _returns(
    policy: Policy, envs: list[Any], number: int, seed: tuple[int, int], greedy: bool
) -> np.ndarray:
    """The returns `[number]` of so many episodes, as many at a time as there are envs."""
    starts = np.random.SeedSequence((EVALUATION, *seed)).generate_state(number)
    key = jax.random.fold_in(prng.key(seed[0]), EVALUATION)
    found = []
    for first in range(0, number, len(envs)):
        block = starts[first : first + len(envs)]
        own = jax.random.fold_in(jax.random.fold_in(key, seed[1]), first)
        found.append(_play(policy, envs, block, own, greedy))
    return np.concatenate(found)


def _play(
    policy: Policy, envs: list[Any], seeds: np.ndarray, key: Array, greedy: bool
) -> np.ndarray:
    """One episode for each seed `[n]`, n <= len(envs); their returns `[n]`.

    The batch always has the size of `envs`, so that one program serves every call.
    """
    count = len(seeds)
    obs = [env.reset(seed=int(s))[0] for env, s in zip(envs, seeds, strict=False)]
    obs += obs[:1] * (len(envs) - count)
    memory = policy.init_memory(len(envs))
    returns, live = np.zeros(count), np.ones(count, bool)
    for step in range(MAX_STEPS):
        own = None if greedy else jax.random.fold_in(key, step)
        batch = stacked(policy.env.observation_space, obs, (len(obs),))
        action, memory = policy.act(batch, memory, own, greedy)
        actions = np.asarray(action)
        for i in np.flatnonzero(live):
            given = as_action(actions[i], envs[i].action_space)
            obs[i], reward, terminated, truncated, _ = envs[i].step(given)
            returns[i] += reward
            live[i] = not (terminated or truncated)
        if not live.any():
            break
    return returns
