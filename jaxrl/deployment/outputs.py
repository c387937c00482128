"""The outputs of a trained policy for an observation, as one pure function of arrays.

`Algorithm.act` samples an action while an agent learns. A deployed agent needs the greedy
action, and the numbers it was chosen by.
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
from jaxrl.core import prng
from jaxrl.errors import require
from jaxrl.networks.features import action_mask
from jaxrl.runs.policy import Policy
from jaxrl.spaces import Discrete
from jaxrl.types import Algorithm, Array, Memory, PyTree

Outputs = dict[str, Array]
"""Name -> array with a leading axis [N].

action         the greedy action
next_memory    the input `memory` of the next step, for a policy that has one
probabilities  [N, A], for a policy over discrete actions
std            [N, D], standard deviations of a normal policy
q_values       [N, A], for an algorithm that learns them; minus infinity: illegal
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
"""Algorithm -> the distribution over actions, from the extras of its `act`."""

_Q_VALUES: dict[str, Callable] = {
    "dqn": dqn.q_values,
    "sarsa": sarsa.q_values,
    "expected_sarsa": sarsa.q_values,
    "q_learning": sarsa.q_values,
}


def check_has_policy(algorithm: Algorithm) -> None:
    """Raise `InvalidInput` for an algorithm whose agents have no policy of their own."""
    require(
        algorithm.teacher != "policy",
        f"algorithm = {algorithm.name!r}: its agents have no greedy policy of their own; "
        f"give a run of another one.",
    )


def compute_outputs(policy: Policy, obs: PyTree, memory: Memory = ()) -> Outputs:
    """Compute the greedy action of each observation, and the numbers it was chosen by.

    Args:
      policy: of an algorithm that `check_has_policy` accepts.
      obs: `[N, ...]`.
      memory: `[N, ...]`, or `()`.
    """
    if policy.algorithm.name in _Q_VALUES:
        return _outputs_of_q_values(policy, obs)
    if policy.algorithm.name not in _ACTORS:
        return _outputs_of_own(policy, obs, memory)
    # Without a key the program holds no random generator, which a greedy action needs not.
    action, memory, extras = policy.algorithm.act(
        policy.config, policy.env, policy.agent, obs, memory, None, True
    )
    outputs = {"action": action}
    if jax.tree.leaves(memory):
        outputs["next_memory"] = memory
    pi = _ACTORS[policy.algorithm.name](policy, obs, extras)
    if isinstance(policy.env.action_space, Discrete):
        outputs["probabilities"] = pi.probs
    elif isinstance(pi, distributions.DiagNormal) and _learns_spread(policy):
        outputs["std"] = pi.distribution.scale
    return outputs | {name: extras[name] for name in ("value",) if name in extras}


def _outputs_of_own(policy: Policy, obs: PyTree, memory: Memory) -> Outputs:
    """The outputs of a user's algorithm: the action, and what it `explain`s it by."""
    given = (policy.config, policy.env, policy.agent, obs, memory)
    action, after, extras = policy.algorithm.act(*given, prng.key(0), True)
    outputs = {"action": action}
    if jax.tree.leaves(after):
        outputs["next_memory"] = after
    explained = policy.algorithm.explain(*given)
    for theirs, ours in (("probability", "probabilities"), ("q", "q_values")):
        if theirs in explained:
            outputs[ours] = explained[theirs]
    return outputs | {name: extras[name] for name in ("value",) if name in extras}


def _learns_spread(policy: Policy) -> bool:
    """Whether the std is learned: imitation by squared error learns only the mean."""
    return getattr(policy.config, "loss", "") != "mse"


def _outputs_of_q_values(policy: Policy, obs: PyTree) -> Outputs:
    """Take the first of the best legal actions, as `exploration.epsilon_greedy` does."""
    params: Any = policy.agent.params
    q = _Q_VALUES[policy.algorithm.name](policy.config, policy.env, params, obs)
    mask = action_mask(policy.env.observation_space, obs)
    if mask is not None:
        q = jnp.where(mask, q, -jnp.inf)
    action = jnp.argmax(q, axis=-1).astype(jnp.int32)
    return {"action": action, "q_values": q, "value": q.max(-1)}
