"""Policy and value networks of the policy-gradient algorithms."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.networks.initializers import orthogonal
from jaxrl.networks.torso import dense, torso
from jaxrl.types import Array, Memory, PyTree

PolicyParams = Any
"""Logits `[*batch, A]` of a Discrete space; (mean, log_std) `[*batch, D]` of a Box."""


class ActorCritic(nn.Module):
    """pi(a|s) and V(s).

    Feed-forward on a vector: two separate torsos, as in the PPO paper. On an image, or
    with a GRU (`gru_size > 0`), one torso serves both heads, unless `separate` keeps the
    policy's parameters and the value's apart (see `split`).
    """

    action_space: spaces.Box | spaces.Discrete
    hidden_sizes: Sequence[int]
    activation: str
    image: bool = False
    gru_size: int = 0
    separate: bool = False

    def setup(self) -> None:
        def new_torso() -> nn.Module:
            return torso(self.hidden_sizes, self.activation, self.image)

        if self.shared:
            self.torso = new_torso()
        else:
            self.actor_torso, self.critic_torso = new_torso(), new_torso()
        if self.gru_size:
            # flax's own default is a LAPACK QR, which can deadlock under vmap.
            self.gru = nn.GRUCell(self.gru_size, recurrent_kernel_init=orthogonal(1.0))
        if isinstance(self.action_space, spaces.Discrete):
            self.policy_head = dense(self.action_space.n, scale=0.01)
        else:
            self.policy_head = dense(self.action_space.size, scale=0.01)
            self.log_std = self.param(
                "log_std", nn.initializers.zeros, (self.action_space.size,)
            )
        self.value_head = dense(1, scale=1.0)

    @property
    def shared(self) -> bool:
        return not self.separate and (self.image or self.gru_size > 0)

    def embed(self, x: Array) -> Array:
        """What comes before the memory: `[*batch, ...] -> [*batch, features]`."""
        return self.torso(x) if self.shared else x

    def recur(self, memory: Memory, x: Array) -> tuple[Memory, Array]:
        """One step of the memory `[*batch, gru_size]`; the identity without one."""
        return self.gru(memory, x) if self.gru_size else (memory, x)

    def heads(self, x: Array) -> tuple[PolicyParams, Array]:
        """Policy parameters and value `[*batch]` from what the memory gave."""
        actor, critic = (
            (x, x) if self.shared else (self.actor_torso(x), self.critic_torso(x))
        )
        policy = self.policy_head(actor)
        if isinstance(self.action_space, spaces.Box):
            policy = (policy, jnp.broadcast_to(self.log_std, policy.shape))
        return policy, self.value_head(critic).squeeze(-1)

    def __call__(self, memory: Memory, x: Array) -> tuple[Memory, PolicyParams, Array]:
        """One step in time: (memory, policy parameters, value)."""
        memory, x = self.recur(memory, self.embed(x))
        policy, value = self.heads(x)
        return memory, policy, value


class Actor(nn.Module):
    """pi(a|s) alone, for algorithms whose actor and critic learn apart."""

    action_space: spaces.Box | spaces.Discrete
    hidden_sizes: Sequence[int]
    activation: str
    image: bool = False

    @nn.compact
    def __call__(self, x: Array) -> PolicyParams:
        """Network input `[*batch, ...]` -> policy parameters."""
        x = torso(self.hidden_sizes, self.activation, self.image)(x)
        if isinstance(self.action_space, spaces.Discrete):
            return dense(self.action_space.n, scale=0.01)(x)
        size = self.action_space.size
        mean = dense(size, scale=0.01)(x)
        log_std = self.param("log_std", nn.initializers.zeros, (size,))
        return mean, jnp.broadcast_to(log_std, mean.shape)


class Critic(nn.Module):
    """V(s) alone: network input `[*batch, ...]` -> value `[*batch]`."""

    hidden_sizes: Sequence[int]
    activation: str
    image: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = torso(self.hidden_sizes, self.activation, self.image)(x)
        return dense(1, scale=1.0)(x).squeeze(-1)


_VALUE = ("critic_torso", "value_head")


def split(params: PyTree) -> tuple[PyTree, PyTree]:
    """The parameters of the policy and those of the value, of a network with two torsos."""
    parts = params["params"]
    policy = {name: part for name, part in parts.items() if name not in _VALUE}
    return policy, {name: parts[name] for name in _VALUE}


def join(policy: PyTree, value: PyTree) -> PyTree:
    """The parameters of the whole network: undoes `split`."""
    return {"params": policy | value}


ROWS_AT_ONCE = 4_096
"""Rows whose activations (two layers of 64: 2 MB) stay in a CPU's cache."""


def in_blocks(function: Callable[[PyTree], Array], tree: PyTree) -> Array:
    """`function` of `[T, N, ...]`, on CPU a few rows of time at a go.

    The values of 65,536 steps by a network of 64-64 take 14 ms this way and 21 ms at once,
    when every layer's activations go to memory and back (benchmarks/tricks.py).
    """
    num_steps, num_envs = jax.tree.leaves(tree)[0].shape[:2]
    fitting = max(1, min(num_steps, ROWS_AT_ONCE // num_envs))
    steps = next(n for n in range(fitting, 0, -1) if num_steps % n == 0)

    def block_by_block(tree: PyTree) -> Array:
        blocks = jax.tree.map(lambda x: x.reshape(-1, steps, *x.shape[1:]), tree)
        y = jax.lax.map(function, blocks)
        return y.reshape(num_steps, *y.shape[2:])

    if steps == num_steps:
        return function(tree)
    return jax.lax.platform_dependent(tree, cpu=block_by_block, default=function)


def initial_memory(gru_size: int, num_envs: int) -> Memory:
    """The memory at the start of an episode: zeros `[N, gru_size]`, or `()`."""
    return jnp.zeros((num_envs, gru_size)) if gru_size else ()


def apply_step(
    network: ActorCritic, params: PyTree, memory: Memory, x: Array
) -> tuple[Memory, PolicyParams, Array]:
    """One step in time, for inputs `[*batch, ...]`: (memory, policy, value)."""
    after: Any = network.apply(params, memory, x)
    return after


def apply_sequence(
    network: ActorCritic, params: PyTree, memory: Memory, x: Array, done: Array
) -> tuple[Memory, PolicyParams, Array]:
    """The network along time, as the rollout ran it.

    Torso and heads run once over all of `[T, N]`; only the memory is scanned.

    Args:
      memory: at the first row, `[N, gru_size]` or `()`.
      x: network input `[T, N, ...]`.
      done: `[T, N]`, whether the episode ended with that row; memory is cleared after it.

    Returns:
      The memory after each row, before it is cleared, `[T, N, gru_size]` or `()`; the
      policy parameters; the value `[T, N]`.
    """
    embedded: Any = network.apply(params, x, method="embed")
    if network.gru_size:

        def step(memory: Memory, row: tuple[Array, Array]) -> tuple[Memory, tuple]:
            x, done = row
            after: Any = network.apply(params, memory, x, method="recur")
            memory, y = after
            return jnp.where(done[:, None], 0.0, memory), (memory, y)

        _, (memory, embedded) = jax.lax.scan(step, memory, (embedded, done))
    heads: Any = network.apply(params, embedded, method="heads")
    policy, value = heads
    return memory, policy, value


def action_noise(
    action_space: spaces.Box | spaces.Discrete, key: Array, shape: tuple[int, ...]
) -> Array:
    """What `from_noise` of the action distribution needs, for a batch of that shape.

    Standard Gumbel `[*shape, A]` for a Discrete space, normal `[*shape, D]` for a Box.
    """
    if isinstance(action_space, spaces.Discrete):
        return jax.random.gumbel(key, (*shape, action_space.n))
    return jax.random.normal(key, (*shape, action_space.size))


def explanation(
    action_space: spaces.Box | spaces.Discrete, pi: Any
) -> dict[str, Array]:
    """A distribution of `policy_distribution`, as `Algorithm.explain` shows it."""
    if isinstance(action_space, spaces.Discrete):
        return {"probability": pi.probs}
    shape = pi.mode().shape
    each = [pi.from_noise(jnp.full(shape, z)) for z in (-1.0, 0.0, 1.0)]
    return {"spread": jnp.stack(each, axis=-1)}


def policy_distribution(
    action_space: spaces.Box | spaces.Discrete,
    policy: PolicyParams,
    mask: Array | None = None,
    squash: bool = False,
) -> Any:
    """The action distribution, in the units of the action space.

    A bounded Box is covered by scaling: mean 0 is the middle of the box and standard
    deviation 1 half its width. `squash` maps through tanh so that no action leaves it;
    otherwise the environment clips.
    """
    # distrax takes a second to import; only those who build a policy wait for it.
    from jaxrl import distributions

    if isinstance(action_space, spaces.Discrete):
        return distributions.categorical(policy, mask)
    mean, log_std = policy
    if not action_space.bounded:
        return distributions.diag_normal(mean, log_std)
    low, high = (
        jnp.asarray(b, jnp.float32) for b in (action_space.low, action_space.high)
    )
    if squash:
        return distributions.tanh_normal(mean, log_std, low, high)
    middle, half_width = (low + high) / 2, (high - low) / 2
    return distributions.diag_normal(
        middle + half_width * mean, log_std + jnp.log(half_width)
    )
