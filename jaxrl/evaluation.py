"""Evaluation of policies: complete episodes with frozen parameters and statistics."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.core.variants import Values, with_values
from jaxrl.envs.problem import problem_of
from jaxrl.rollout import init_world, rollout_episode
from jaxrl.types import Algorithm, Array, Env, Memory, PyTree

MAX_STEPS = 10_000
"""Maximum length of an evaluation episode if the environment has no time limit."""


class Episodes(NamedTuple):
    """Evaluation episodes, `[E]` or, for a population, `[K, E]`."""

    episode_return: Array  # float32, undiscounted
    episode_length: Array  # int32, steps
    ended: Array  # bool; False where `max_steps` cut the episode off


@partial(jax.jit, static_argnames=("algorithm", "num_episodes", "greedy", "max_steps"))
def evaluate(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    agent: PyTree,
    key: Array,
    num_episodes: int = 128,
    greedy: bool = True,
    max_steps: int | None = None,
) -> Episodes:
    """Evaluate one agent for `num_episodes` episodes, in as many parallel environments.

    Each environment plays exactly one episode, so short episodes are not favoured.

    Args:
      algorithm: the algorithm whose `act` is the policy.
      config: the config the agent was trained with.
      env: the environment, not necessarily the one the agent was trained in.
      agent: one agent; see `evaluate_population` for many.
      key: consumed.
      num_episodes: E.
      greedy: take the most likely action instead of sampling.
      max_steps: the maximum length of an episode; by default the environment's time limit,
        or `MAX_STEPS` if it has none.

    Returns:
      `Episodes`, arrays `[E]`.
    """

    def policy(obs: PyTree, memory: Memory, key: Array) -> tuple:
        return algorithm.act(config, env, agent, obs, memory, key, greedy)

    memory = algorithm.init_memory(config, env, num_episodes)
    world = init_world(env, key, num_episodes, memory)
    if max_steps is None:
        max_steps = MAX_STEPS if env.horizon is None else env.horizon
    return Episodes(*rollout_episode(env, policy, world, max_steps))


@partial(jax.jit, static_argnames=("algorithm", "num_episodes", "greedy", "max_steps"))
def evaluate_population(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    agents: PyTree,
    key: Array,
    num_episodes: int = 128,
    greedy: bool = True,
    max_steps: int | None = None,
    values: Values | None = None,
) -> Episodes:
    """Evaluate agents with a leading axis `[K]`, each with its own random key.

    `values` are what they have of their own in config and environment `[K, ...]`. Where
    the agents do not act, an episode is a case of their problem, of one step.
    """

    def one(agent: PyTree, key: Array, values: Values) -> Episodes:
        own = with_values(config, env, values)
        judge = problem_of(algorithm).returns
        if judge is None:
            options = (num_episodes, greedy, max_steps)
            return evaluate(algorithm, *own, agent, key, *options)
        returns = judge(*own, agent, key, num_episodes, greedy)
        length = jnp.ones(returns.shape, jnp.int32)
        return Episodes(returns, length, length > 0)

    num_members = len(jax.tree.leaves(agents)[0])
    keys = jax.random.split(key, num_members)
    return jax.vmap(one)(agents, keys, values or {})
