"""What imitation shares: acting by a policy network alone, and the loss of its actions."""

from typing import Any

from jaxrl import acting, losses, networks, types
from jaxrl.types import Array, Env, Memory, PyTree


def policy(
    config: Any, env: Env, agent: types.Agent, obs: PyTree, memory: Memory
) -> tuple[Any, Memory, dict[str, Any]]:
    """One step: the action distribution."""
    pi, memory = networks.apply_actor(config, env, agent.params, obs, memory)
    return pi, memory, {}


# A policy of which only the mean was learned has no spread.
acts = acting.stochastic(policy, always_greedy=lambda config: config.loss == "mse")


REPORTED = ("loss/imitation", "imitation/error", "policy/entropy")
"""What `loss` reports of every step, in this order."""


def loss(
    params: PyTree, config: Any, env: Env, obs: PyTree, expert_action: Array
) -> tuple[Array, tuple[Array, ...]]:
    """The loss, and what is `REPORTED` of every step of the batch."""
    pi, _ = networks.apply_actor(config, env, params, obs)
    if config.loss == "mse":
        imitation = losses.action_mse(pi.mode(), expert_action)
    else:
        imitation = losses.negative_log_likelihood(pi.log_prob(expert_action))
    entropy = pi.entropy()
    error = losses.action_error(pi.mode(), expert_action)
    total = (imitation - config.ent_coef * entropy).mean()
    total += config.l2_coef * losses.squared_norm(params)
    return total, (imitation, error, entropy)
