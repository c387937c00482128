"""The outputs of a trained policy for an observation, as one pure function of arrays.

`Algorithm.act` samples an action while an agent learns. A deployed agent needs the greedy
action, and the numbers it was chosen by.
"""

from dataclasses import replace
from typing import Any

import jax
from jax.flatten_util import ravel_pytree

from jaxrl.algorithms import ALGORITHMS
from jaxrl.core import prng
from jaxrl.errors import require
from jaxrl.runs.policy import Policy
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


def check_has_policy(algorithm: Algorithm) -> None:
    """Raise `InvalidInput` for an algorithm whose agents have no policy of their own."""
    require(
        algorithm.teacher != "policy",
        f"algorithm = {algorithm.name!r}: its agents have no greedy policy of their own; "
        f"give a run of another one.",
    )


def flatten_memory(policy: Policy) -> Policy:
    """The policy with its memory as one array `[N, M]`, if it has several.

    A file and a request have one input `memory`; the carry of an LSTM is two arrays.
    """
    memory = policy.init_memory()
    if len(jax.tree.leaves(memory)) < 2:
        return policy
    algorithm = policy.algorithm
    unflatten = jax.vmap(ravel_pytree(memory)[1])
    flatten = jax.vmap(lambda memory: ravel_pytree(memory)[0])

    def act(
        config: Any, env: Any, agent: Any, obs: PyTree, memory: Array, *more: Any
    ) -> tuple[Array, Array, dict[str, Any]]:
        before = unflatten(memory)
        action, after, extras = algorithm.act(config, env, agent, obs, before, *more)
        return action, flatten(after), extras

    def explain(
        config: Any, env: Any, agent: Any, obs: PyTree, memory: Array
    ) -> dict[str, Array]:
        found: dict[str, Array]
        found = algorithm.explain(config, env, agent, obs, unflatten(memory))
        return found

    def init_memory(config: Any, env: Any, num_envs: int) -> Array:
        return flatten(algorithm.init_memory(config, env, num_envs))

    flat = algorithm._replace(act=act, explain=explain, init_memory=init_memory)
    return replace(policy, algorithm=flat)


def compute_outputs(policy: Policy, obs: PyTree, memory: Memory = ()) -> Outputs:
    """Compute the greedy action of each observation, and the numbers it was chosen by.

    Args:
      policy: of an algorithm that `check_has_policy` accepts.
      obs: `[N, ...]`.
      memory: `[N, ...]`, or `()`.
    """
    algorithm = policy.algorithm
    inputs = (policy.config, policy.env, policy.agent, obs, memory)
    # Without a key the program holds no random generator. A user's algorithm may need one.
    key = None if algorithm.name in ALGORITHMS else prng.key(0)
    action, after, extras = algorithm.act(*inputs, key, True)
    outputs = {"action": action}
    if jax.tree.leaves(after):
        outputs["next_memory"] = after
    explained = algorithm.explain(*inputs)
    for name, ours in (("probability", "probabilities"), ("q", "q_values")):
        if name in explained:
            outputs[ours] = explained[name]
    if "std" in explained and _learns_spread(policy):
        outputs["std"] = explained["std"]
    return outputs | {name: extras[name] for name in ("value",) if name in extras}


def _learns_spread(policy: Policy) -> bool:
    """Whether the std is learned: imitation by squared error learns only the mean."""
    return getattr(policy.config, "loss", "") != "mse"
