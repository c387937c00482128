"""Policy, value and action-value networks: a body with heads.

They take raw observations and encode them inside: `net.apply(params, memory, obs, stats)`
is one step in time, with `done` it runs along time as a rollout did. `stats` are running
statistics of observations or None; `memory` is `()` without a recurrent cell. Those that
replay trains have no memory: `net.apply(params, obs, ..., stats)`.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.networks import memory as memories
from jaxrl.networks import q_head
from jaxrl.networks.batch_renorm import STATISTICS
from jaxrl.networks.body import Body
from jaxrl.networks.encoding import encode
from jaxrl.networks.q_head import PLAIN, Head
from jaxrl.networks.torso import MLP, dense
from jaxrl.normalize import RunningStats
from jaxrl.types import Array, Memory, PyTree, Scalar

Noise = Literal["normal", "state_dependent"]

PolicyParams = Any
"""Logits `[*batch, A]` of a Discrete space; (mean, log_std) `[*batch, D]` of a Box."""


class ActorCritic(nn.Module):
    """pi(a|s) and V(s).

    An MLP without memory is used twice, as in the PPO paper: the policy and the value
    have torsos of their own. Any other body serves both heads, unless `separate` keeps
    the policy's parameters and the value's apart (see `split`).
    """

    observation_space: spaces.Space
    action_space: spaces.Box | spaces.Discrete
    body: Body
    separate: bool = False

    @property
    def shared(self) -> bool:
        """Whether one torso serves both heads."""
        is_mlp = isinstance(self.body.torso, MLP) and not self.body.is_recurrent
        return not (self.separate or is_mlp)

    @nn.compact
    def __call__(
        self,
        memory: Memory,
        obs: PyTree,
        stats: RunningStats | None = None,
        done: Array | None = None,
    ) -> tuple[Memory, PolicyParams, Array]:
        """Memory, policy parameters and value `[*batch]`."""
        x = encode(self.observation_space, obs, self.body.takes, stats)
        if self.shared:
            memory, actor = embed(self, memory, x, done, torso="torso")
            critic = actor
        else:
            actor, critic = (
                embed(self, (), x, done, torso=name)[1]
                for name in ("actor_torso", "critic_torso")
            )
        policy = policy_head(self, self.action_space, actor, name="policy_head")
        value = dense(1, scale=1.0, name="value_head")(critic)
        return memory, policy, value.squeeze(-1)


class Actor(nn.Module):
    """pi(a|s) alone, for algorithms whose actor and critic learn apart."""

    observation_space: spaces.Space
    action_space: spaces.Box | spaces.Discrete
    body: Body

    @nn.compact
    def __call__(
        self,
        memory: Memory,
        obs: PyTree,
        stats: RunningStats | None = None,
        done: Array | None = None,
    ) -> tuple[Memory, PolicyParams]:
        """Memory and policy parameters."""
        x = encode(self.observation_space, obs, self.body.takes, stats)
        memory, x = embed(self, memory, x, done)
        return memory, policy_head(self, self.action_space, x)


class SpreadActor(nn.Module):
    """pi(a|s) whose deviation is a function of the state too: for a squashed normal.

    With `noise` = "state_dependent" the deviation is that of noise which is linear in the
    features (gSDE: `distributions.state_dependent_tanh_normal`).
    """

    observation_space: spaces.Space
    action_space: spaces.Box | spaces.Discrete
    body: Body
    noise: Noise = "normal"
    noise_log_std: Scalar = -3.0
    """log σ of that noise, at the start."""
    noise_learns_features: bool = False
    """Whether a gradient reaches the features through that noise."""

    @nn.compact
    def __call__(self, obs: PyTree, stats: RunningStats | None = None) -> PolicyParams:
        """Logits `[*batch, A]`, or mean and log_std `[*batch, D]`; with state-dependent
        noise mean, features `[*batch, F]` and log_std `[F, D]`."""
        x = encode(self.observation_space, obs, self.body.takes, stats)
        _, x = embed(self, (), x, None)
        if isinstance(self.action_space, spaces.Discrete):
            return dense(self.action_space.n, scale=0.01)(x)
        mean = dense(self.action_space.size, scale=0.01, name="mean")(x)
        if self.noise == "state_dependent":
            constant = nn.initializers.constant(self.noise_log_std)
            shape = x.shape[-1], self.action_space.size
            log_std = self.param("log_std", constant, shape)
            x = x if self.noise_learns_features else jax.lax.stop_gradient(x)
            return jnp.clip(mean, -MEAN, MEAN), x, log_std
        log_std = dense(self.action_space.size, scale=0.01, name="log_std")(x)
        return mean, jnp.clip(log_std, *LOG_STD)


LOG_STD = (-20.0, 2.0)
"""Bounds of the logarithm of a `SpreadActor`'s deviation (Haarnoja et al., 2018, code)."""

MEAN = 2.0
"""Bound of its mean before tanh where noise depends on the state, as in SB3."""


class DeterministicActor(nn.Module):
    """μ(s) of a bounded Box, in [-1, 1] by tanh."""

    observation_space: spaces.Space
    action_space: spaces.Box
    body: Body

    @nn.compact
    def __call__(self, obs: PyTree, stats: RunningStats | None = None) -> Array:
        """Action `[*batch, D]`, in [-1, 1]."""
        x = encode(self.observation_space, obs, self.body.takes, stats)
        _, x = embed(self, (), x, None)
        return jnp.tanh(dense(self.action_space.size, scale=0.01)(x))


class Critic(nn.Module):
    """V(s) alone."""

    observation_space: spaces.Space
    body: Body

    @nn.compact
    def __call__(
        self,
        memory: Memory,
        obs: PyTree,
        stats: RunningStats | None = None,
        done: Array | None = None,
    ) -> tuple[Memory, Array]:
        """Memory and value `[*batch]`."""
        x = encode(self.observation_space, obs, self.body.takes, stats)
        memory, x = embed(self, memory, x, done)
        return memory, dense(1, scale=1.0)(x).squeeze(-1)


class QNetwork(nn.Module):
    """Q(s, .) of a Discrete action space, or distributions of returns, without memory."""

    observation_space: spaces.Space
    num_actions: int
    body: Body
    head: Head = PLAIN

    @nn.compact
    def __call__(
        self,
        obs: PyTree,
        stats: RunningStats | None = None,
        levels: Array | None = None,
        each_row: bool = False,
    ) -> Array:
        """Action values `[*batch, A]`, or M outputs of each action `[*batch, A, M]`.

        `levels` `[*batch, M]`, or `[M]` for all rows, are of the quantiles that are asked
        for, if the head has such; `each_row`: whether the rng "noise" of noisy layers
        makes another noise for each row.
        """
        x = encode(self.observation_space, obs, self.body.takes, stats)
        _, x = embed(self, (), x, None)
        return q_head.outputs(self.head, x, self.num_actions, levels, each_row)


class RecurrentQNetwork(nn.Module):
    """Q(s, .) of a Discrete action space, with a memory if the body has one."""

    observation_space: spaces.Space
    num_actions: int
    body: Body

    @nn.compact
    def __call__(
        self,
        memory: Memory,
        obs: PyTree,
        stats: RunningStats | None = None,
        done: Array | None = None,
    ) -> tuple[Memory, Array]:
        """Memory and action values `[*batch, A]`."""
        x = encode(self.observation_space, obs, self.body.takes, stats)
        memory, x = embed(self, memory, x, done)
        return memory, dense(self.num_actions, scale=1.0)(x)


class Critics(nn.Module):
    """An ensemble of K independent Q(s, a), or Q(s, .) of a Discrete action space.

    With `num_quantiles` each is a distribution: M quantiles in place of a mean.
    """

    observation_space: spaces.Space
    action_space: spaces.Box | spaces.Discrete
    body: Body
    num_critics: int
    num_quantiles: int = 0

    @nn.compact
    def __call__(
        self,
        obs: PyTree,
        action: Array | None = None,
        stats: RunningStats | None = None,
    ) -> Array:
        """Values `[K, *batch]` of actions `[*batch, D]` in [-1, 1], or their quantiles
        `[K, *batch, M]`; without actions those of a Discrete space, `[K, *batch, A]`."""
        x = encode(self.observation_space, obs, self.body.takes, stats)
        each = nn.vmap(
            _OneCritic,
            variable_axes={"params": 0, STATISTICS: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(None, None),
            axis_size=self.num_critics,
        )
        size = self.num_quantiles
        if isinstance(self.action_space, spaces.Discrete):
            size = self.action_space.n
        return each(self.body, size, name="critics")(x, action)


class _OneCritic(nn.Module):
    body: Body
    size: int
    """Outputs; 0 is one without an axis of its own."""

    @nn.compact
    def __call__(self, x: PyTree, action: Any) -> Array:
        torso: Any = self.body.torso
        torso = torso.clone(parent=self, name="torso")
        if action is None:
            x = torso(x)
        elif self.body.takes == "vector":
            x = torso(jnp.concatenate([x, action], -1))
        else:  # the action joins behind the torso, with a layer of its own
            x = jnp.concatenate([torso(x), action], -1)
            x = nn.relu(dense(x.shape[-1])(x))
        out = dense(max(self.size, 1), scale=1.0)(x)
        return out if self.size else out.squeeze(-1)


def embed(
    net: Any, memory: Memory, x: PyTree, done: Array | None, torso: str | None = None
) -> tuple[Memory, Array]:
    """Torso and cell of a network: the memory and features `[*batch, F]`.

    Torso and heads run once over all of `[T, N]`; only the memory is a loop.
    """
    x = net.body.torso.clone(parent=net, name=torso)(x)
    if not net.body.is_recurrent:
        return memory, x
    kind = type(net.body.cell).__name__.removesuffix("Cell").lower()
    cell = net.body.cell.clone(parent=net, name=kind)
    return memories.run(cell, memory, x, done)


def policy_head(
    net: nn.Module,
    action_space: spaces.Box | spaces.Discrete,
    x: Array,
    name: str | None = None,
) -> PolicyParams:
    """Policy parameters from features, inside a compact method of `net`."""
    if isinstance(action_space, spaces.Discrete):
        return dense(action_space.n, scale=0.01, name=name)(x)
    mean = dense(action_space.size, scale=0.01, name=name)(x)
    log_std = net.param("log_std", nn.initializers.zeros, (action_space.size,))
    return mean, jnp.broadcast_to(log_std, mean.shape)


_VALUE = ("critic_torso", "value_head")


def split(params: PyTree) -> tuple[PyTree, PyTree]:
    """The parameters of the policy and those of the value, of a network with two torsos."""
    parts = params["params"]
    policy = {name: part for name, part in parts.items() if name not in _VALUE}
    return policy, {name: parts[name] for name in _VALUE}


def join(policy: PyTree, value: PyTree) -> PyTree:
    """The parameters of the whole network: undoes `split`."""
    return {"params": policy | value}
