"""A trained agent, ready to act: `jaxrl.load_policy(run)`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.core import prng
from jaxrl.errors import InvalidInput, require
from jaxrl.runs.artifact import Agents, check_acts, load_agents
from jaxrl.training.population import member
from jaxrl.types import Algorithm, Array, Env, Memory, PyTree


@dataclass(frozen=True)
class Policy:
    """One agent with all that it needs to act, its normaliser among it."""

    algorithm: Algorithm
    config: Any
    env: Env
    agent: PyTree

    def init_memory(self, num_envs: int | None = None) -> Memory:
        """What the policy remembers before an episode; `()` if it has no memory.

        Args:
          num_envs: of so many environments `[N, ...]`; None for one, without an axis.
        """
        memory = self.algorithm.init_memory(self.config, self.env, num_envs or 1)
        return memory if num_envs else jax.tree.map(lambda x: x[0], memory)

    def act(
        self,
        obs: PyTree,
        memory: Memory = (),
        key: Array | None = None,
        greedy: bool = True,
    ) -> tuple[Array, Memory]:
        """An action, and the memory for the next step.

        Args:
          obs: one observation, or a batch `[N, ...]`.
          memory: from `init_memory` or the step before, of as many environments.
          key: for a sampled action; a greedy one needs none.
          greedy: the likeliest action, or a sampled one.

        Raises:
          InvalidInput: the observation is not one of the environment's space, or there
            is no key to sample with.
        """
        require(
            greedy or key is not None,
            "key = None: a sampled action needs one, for example jax.random.key(0).",
        )
        obs, alone = self._as_batch(obs)
        if alone:
            memory = jax.tree.map(lambda x: x[None], memory)
        answer = _act(
            self.algorithm,
            self.config,
            self.env,
            self.agent,
            obs,
            memory,
            prng.key(0) if key is None else key,
            greedy,
        )
        return jax.tree.map(lambda x: x[0], answer) if alone else answer

    def _as_batch(self, obs: PyTree) -> tuple[PyTree, bool]:
        """The observation as `[N, ...]`, and whether it was a single one."""
        structure: Any
        leaves, structure = jax.tree.flatten(spaces.tree(self.env.observation_space))
        try:
            arrays = [
                jnp.asarray(x, leaf.dtype)
                for leaf, x in zip(leaves, structure.flatten_up_to(obs), strict=True)
            ]
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"obs = {obs!r}: an observation of {self.env.id} is one of "
                f"{self.env.observation_space}."
            ) from error
        batches = set()
        for leaf, x in zip(leaves, arrays, strict=True):
            batch = x.shape[: x.ndim - len(leaf.shape)]
            batches.add(batch)
            require(
                batch + leaf.shape == x.shape and len(batch) < 2,
                f"obs has shape {list(x.shape)}: an observation of {self.env.id} has "
                f"{list(leaf.shape)}, a batch of them one axis more in front.",
            )
        require(len(batches) == 1, f"obs has parts of different lengths: {batches}.")
        alone = batches == {()}
        rows = [x[None] for x in arrays] if alone else arrays
        return structure.unflatten(rows), alone


def load_policy(
    run: Path | str,
    seed: int | None = None,
    env: str | None = None,
    index: int | None = None,
) -> Policy:
    """The agent of a run folder, ready to act. Nothing of what is stored is run.

    In any process on the same kind of machine, with the same versions, its actions are
    the same bit for bit.

    Args:
      run: the run folder.
      seed: which agent, if it was trained with several; by default the first.
      env: the environment's id, needed where it is "module:factory", which is code.
      index: which agent by its place in training, where several settings share seeds.

    Raises:
      InvalidInput: there is no such agent, or a file is damaged.
    """
    agents = load_agents(run, env)
    check_acts(agents, run)
    return policy_of(agents, chosen(agents, run, seed, index))


def policy_of(agents: Agents, k: int) -> Policy:
    """The k-th of the agents that are there, ready to act."""
    config, environment = agents.variants[k]
    agent = jax.tree.map(jnp.asarray, member(agents.agents, k))
    return Policy(agents.algorithm, config, environment, agent)


def chosen(
    agents: Agents, run: Path | str, seed: int | None = None, index: int | None = None
) -> int:
    """Which of the agents is meant, by its place among those that are there.

    Args:
      agents: of a run folder.
      run: what it is called, for messages.
      seed: which agent, if it was trained with several; by default the first.
      index: which agent by its place in training, where several settings share seeds.

    Raises:
      InvalidInput: there is no such agent, or more than one.
    """
    members = agents.members or range(len(agents.seeds))
    found = [
        k
        for k, (member_index, its_seed) in enumerate(
            zip(members, agents.seeds, strict=True)
        )
        if seed in (None, its_seed) and index in (None, member_index)
    ]
    asked = f"seed = {seed}" + ("" if index is None else f", index = {index}")
    require(
        bool(found),
        f"{asked}: {str(run)!r} has {', '.join(map(str, agents.seeds))}"
        + ("." if index is None else f" at {', '.join(map(str, members))}."),
    )
    require(
        seed is None or len(found) == 1,
        f"{asked}: {str(run)!r} has several such agents, give index, one of "
        f"{', '.join(str(members[k]) for k in found)}.",
    )
    return found[0]


@partial(jax.jit, static_argnames=("algorithm", "greedy"))
def _act(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    agent: PyTree,
    obs: PyTree,
    memory: Memory,
    key: Array,
    greedy: bool,
) -> tuple[Array, Memory]:
    action, memory, _ = algorithm.act(config, env, agent, obs, memory, key, greedy)
    return action, memory
