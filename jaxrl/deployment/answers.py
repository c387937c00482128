"""What a trained policy says of an observation, as one pure function of arrays.

`Algorithm.act` draws an action while an agent learns. Whoever uses the agent later wants
the greedy action, and the numbers that it was chosen by.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import distributions
from jaxrl.algorithms import (
    a2c,
    actor_critic,
    bc,
    dagger,
    dqn,
    natural_pg,
    ppo,
    reinforce,
    sarsa,
    trpo,
)
from jaxrl.errors import require
from jaxrl.networks.features import action_mask
from jaxrl.runs.policy import Policy
from jaxrl.spaces import Discrete
from jaxrl.types import Algorithm, Array, Memory, PyTree

Answer = dict[str, Array]
"""Name -> array with a leading axis [N].

action         the greedy action
next_memory    to be given with the next observation, for a policy that has one
probabilities  of every action [N, A], of a policy over discrete actions
std            of every number of the action [N, D], of a normal policy
q_values       [N, A], of an algorithm that learns them; minus infinity: illegal
value          [N], where the algorithm has an estimate
"""

_ACTORS: dict[str, Callable] = {
    "a2c": lambda p, obs, extras: a2c.policy_of(
        p.config, p.env, p.agent.params["actor"], obs
    ),
    "actor_critic": lambda p, obs, extras: actor_critic.policy_of(
        p.config, p.env, p.agent.params["actor"], obs
    ),
    "bc": lambda p, obs, extras: bc.policy_of(p.config, p.env, p.agent.params, obs),
    "dagger": lambda p, obs, extras: dagger.policy_of(
        p.config, p.env, p.agent.params, obs
    ),
    "natural_pg": lambda p, obs, extras: natural_pg.distribution(
        p.config, p.env, extras["policy"], obs
    ),
    "ppo": lambda p, obs, extras: ppo.distribution(
        p.config, p.env, extras["policy"], obs
    ),
    "reinforce": lambda p, obs, extras: reinforce.policy_and_value(
        p.config, p.env, p.agent.params, obs
    )[0],
    "trpo": lambda p, obs, extras: trpo.distribution(
        p.config, p.env, extras["policy"], obs
    ),
}
"""Algorithm -> the distribution over actions, from what its `act` has computed."""

_Q_VALUES: dict[str, Callable] = {
    "dqn": dqn.q_values,
    "sarsa": sarsa.q_values,
    "expected_sarsa": sarsa.q_values,
    "q_learning": sarsa.q_values,
}


def check_answers(algorithm: Algorithm) -> None:
    """Refuses an algorithm whose agents have no policy of their own."""
    known = [*_ACTORS, *_Q_VALUES]
    require(
        algorithm.name in known,
        f"algorithm = {algorithm.name!r}: its agents have no greedy policy of their own; "
        f"give a run of {', '.join(known[:-1])} or {known[-1]}.",
    )


def answer(policy: Policy, obs: PyTree, memory: Memory = ()) -> Answer:
    """The greedy action of each observation, and what it was chosen by.

    Args:
      policy: of an algorithm that `check_answers` lets pass.
      obs: `[N, ...]`.
      memory: `[N, ...]`, or `()`.
    """
    if policy.algorithm.name in _Q_VALUES:
        return _of_values(policy, obs)
    # A greedy action needs no key, and a program that draws nothing holds no generator.
    action, memory, extras = policy.algorithm.act(
        policy.config, policy.env, policy.agent, obs, memory, None, True
    )
    found = {"action": action}
    if jax.tree.leaves(memory):
        found["next_memory"] = memory
    pi = _ACTORS[policy.algorithm.name](policy, obs, extras)
    if isinstance(policy.env.action_space, Discrete):
        found["probabilities"] = pi.probs
    elif isinstance(pi, distributions.DiagNormal) and _learns_spread(policy):
        found["std"] = pi.distribution.scale
    return found | {name: extras[name] for name in ("value",) if name in extras}


def _learns_spread(policy: Policy) -> bool:
    """Of imitation by squared error only the mean is learned."""
    return getattr(policy.config, "loss", "") != "mse"


def _of_values(policy: Policy, obs: PyTree) -> Answer:
    """Of Q: the first of the best legal actions, as `exploration.epsilon_greedy` has it."""
    params: Any = policy.agent.params
    q = _Q_VALUES[policy.algorithm.name](policy.config, policy.env, params, obs)
    mask = action_mask(policy.env.observation_space, obs)
    if mask is not None:
        q = jnp.where(mask, q, -jnp.inf)
    action = jnp.argmax(q, axis=-1).astype(jnp.int32)
    return {"action": action, "q_values": q, "value": q.max(-1)}
