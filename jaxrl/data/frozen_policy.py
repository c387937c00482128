"""Trained policies as data: they act, but are not updated."""

from typing import Any

from flax.struct import PyTreeNode

from jaxrl.types import Algorithm, Array, Env, PyTree, static


class FrozenPolicy(PyTreeNode):
    """One agent with its config and algorithm, as data of a program (`Env.teacher`)."""

    config: Any
    agent: PyTree
    algorithm: Algorithm = static()


def teacher_action(
    policy: FrozenPolicy, env: Env, obs: PyTree, key: Array, greedy: bool = True
) -> Array:
    """Actions `[N, ...]` of a frozen policy for observations `[N, ...]`.

    Args:
      policy: a policy without memory.
      env: the environment being played, or one with the same spaces.
      obs: observations.
      key: random key of a sampled action; unused if greedy.
      greedy: take the most likely action instead of sampling.
    """
    action: Array
    action, _, _ = policy.algorithm.act(
        policy.config, env.replace(teacher=None), policy.agent, obs, (), key, greedy
    )
    return action
