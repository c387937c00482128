"""A trained agent, ready to act: `jaxrl.load_policy(run)`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.core import prng
from jaxrl.core.config import check_value
from jaxrl.errors import InvalidInput, require
from jaxrl.runs.artifact import Agents, check_acts, load_agents
from jaxrl.training.population import member
from jaxrl.types import Algorithm, Array, Env, Memory, PyTree


@dataclass(frozen=True)
class Policy:
    """One agent with everything it needs to act, its normaliser included."""

    algorithm: Algorithm
    config: Any
    env: Env
    agent: PyTree

    def __repr__(self) -> str:
        return f"Policy({self.algorithm.name} on {self.env.id})"

    def init_memory(self, num_envs: int | None = None) -> Memory:
        """Make the memory that an episode starts with; `()` if the policy has none.

        Args:
          num_envs: number of environments N, memory `[N, ...]`; None for one, without an
            axis.
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
        """Choose an action, and return it with the memory for the next step.

        Args:
          obs: one observation, or a batch `[N, ...]`.
          memory: from `init_memory` or the step before, for as many environments.
          key: for a sampled action; a greedy one needs none.
          greedy: the likeliest action instead of a sampled one.

        Raises:
          InvalidInput: the observation does not fit the environment's space, or there is
            no key to sample with.
        """
        require(
            greedy or key is not None,
            "key = None: a sampled action needs one, for example jax.random.key(0).",
        )
        obs, is_single = self._as_batch(obs)
        if is_single:
            memory = jax.tree.map(lambda x: x[None], memory)
        result = _act(
            self.algorithm,
            self.config,
            self.env,
            self.agent,
            obs,
            memory,
            prng.key(0) if key is None else key,
            greedy,
        )
        return jax.tree.map(lambda x: x[0], result) if is_single else result

    def _as_batch(self, obs: PyTree) -> tuple[PyTree, bool]:
        """Return the observation as `[N, ...]`, and whether it was a single one."""
        structure: Any
        leaves, structure = jax.tree.flatten(spaces.tree(self.env.observation_space))
        try:
            arrays = [
                spaces.cast(x, leaf.dtype, "obs")
                for leaf, x in zip(leaves, structure.flatten_up_to(obs), strict=True)
            ]
        except InvalidInput:
            raise
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
        is_single = batches == {()}
        rows = [x[None] for x in arrays] if is_single else arrays
        return structure.unflatten(rows), is_single


def load_policy(
    run: Path | str, agent: int | None = None, env: str | None = None
) -> Policy:
    """Load one agent of a run folder, ready to act. Stored code is never run.

    In any process on the same kind of machine, with the same versions, its actions are
    the same bit for bit.

    Args:
      run: the run folder.
      agent: its place in the run; by default the first.
      env: the environment's id, needed where it is "module:factory", which is code.

    Raises:
      InvalidInput: there is no such agent, or a file is damaged.
    """
    agents = load_agents(run, env)
    check_acts(agents, run)
    return make_policy(agents, select_agent(agents, run, agent))


def make_policy(agents: Agents, k: int) -> Policy:
    """Make the policy of the k-th of the loaded agents."""
    config, environment = agents.variants[k]
    agent = jax.tree.map(jnp.asarray, member(agents.agents, k))
    return Policy(agents.algorithm, config, environment, agent)


def select_agent(agents: Agents, run: Path | str, agent: int | None = None) -> int:
    """Find an agent by its place in the run, as an index into the loaded agents.

    The two differ where agents are missing because they broke.

    Args:
      agents: of a run folder.
      run: its name, for messages.
      agent: its place in the run; by default the first of those that are there.

    Raises:
      InvalidInput: there is no such agent.
    """
    check_value("agent", int | None, agent)
    places = list(agents.members or range(len(agents.seeds)))
    require(
        agent is None or agent in places,
        f"agent = {agent}: {str(run)!r} has {', '.join(map(str, places))}.",
    )
    return 0 if agent is None else places.index(agent)


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
