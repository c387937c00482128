"""A trained policy that others learn from: it acts, and does not change."""

from typing import Any

from flax.struct import PyTreeNode

from jaxrl.types import Algorithm, Array, Env, PyTree, static


class FrozenPolicy(PyTreeNode):
    """One agent with what it needs to act, as data of a program (`Env.teacher`)."""

    config: Any
    agent: PyTree
    algorithm: Algorithm = static()


def teacher_action(
    policy: FrozenPolicy, env: Env, obs: PyTree, key: Array, greedy: bool = True
) -> Array:
    """What the policy would do: actions `[N, ...]` for observations `[N, ...]`.

    Args:
      policy: without memory.
      env: the environment that is played, or one with the same spaces.
      obs: observations.
      key: for a sampled action; a greedy one does not look at it.
      greedy: the likeliest action, or a sampled one.
    """
    action: Array
    action, _, _ = policy.algorithm.act(
        policy.config, env.replace(teacher=None), policy.agent, obs, (), key, greedy
    )
    return action
