"""Networks: values of a config's field `network`, and what algorithms make of them.

An algorithm asks for `actor_critic(config, env)`, `actor`, `critic` or `q_network`; each
is a flax module that takes raw observations (`jaxrl.networks.heads`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import normalize, spaces
from jaxrl.networks import body
from jaxrl.networks.batch_renorm import BatchNormMLP
from jaxrl.networks.body import Body, Network, check_features, load_network, resolve
from jaxrl.networks.encoding import action_mask, encode, encoded_shape
from jaxrl.networks.heads import (
    Actor,
    ActorCritic,
    Critic,
    Critics,
    DeterministicActor,
    Noise,
    QNetwork,
    RecurrentQNetwork,
    SpreadActor,
    join,
    split,
)
from jaxrl.networks.memory import Transformer
from jaxrl.networks.q_head import PLAIN, Head
from jaxrl.networks.torso import CNN, MLP, Activation, ResNet
from jaxrl.types import Array, Env, Memory, PyTree

__all__ = [
    "CNN",
    "MLP",
    "Activation",
    "Actor",
    "ActorCritic",
    "Body",
    "Critic",
    "Critics",
    "DeterministicActor",
    "Head",
    "Network",
    "Noise",
    "QNetwork",
    "RecurrentQNetwork",
    "ResNet",
    "SpreadActor",
    "Transformer",
    "action_mask",
    "check_features",
    "encode",
    "encoded_shape",
    "join",
    "load_network",
    "resolve",
    "split",
]


def actor_critic(config: Any, env: Env, separate: bool = False) -> ActorCritic:
    """Policy and value of `config.network`."""
    torso = resolve(config, env.observation_space)
    return ActorCritic(env.observation_space, env.action_space, torso, separate)


def actor(config: Any, env: Env) -> Actor:
    """A policy of `config.network`."""
    torso = resolve(config, env.observation_space)
    return Actor(env.observation_space, env.action_space, torso)


def critic(config: Any, env: Env) -> Critic:
    """A state value of `config.network`."""
    return Critic(env.observation_space, resolve(config, env.observation_space))


def q_network(config: Any, env: Env, head: Head = PLAIN) -> QNetwork:
    """Action values of `config.network`, or distributions of returns, as the head says."""
    torso = resolve(config, env.observation_space)
    return QNetwork(env.observation_space, env.action_space.n, torso, head)


def recurrent_q_network(config: Any, env: Env) -> RecurrentQNetwork:
    """Action values of `config.network`, which may have a memory."""
    torso = resolve(config, env.observation_space)
    return RecurrentQNetwork(env.observation_space, env.action_space.n, torso)


def spread_actor(config: Any, env: Env) -> SpreadActor:
    """A policy of `config.network` with a deviation of its own in every state."""
    body = normalized(config, resolve(config, env.observation_space))
    return SpreadActor(
        env.observation_space,
        env.action_space,
        body,
        config.noise,
        config.noise_log_std,
        config.noise_learns_features,
    )


def noise_shape(config: Any, env: Env) -> tuple[int, int]:
    """Features and actions `(F, D)` of `spread_actor`'s state-dependent noise."""
    net = spread_actor(config, env)
    shapes: Any = jax.eval_shape(lambda: init(net, jax.random.key(0)))
    return shapes["params"]["log_std"].shape


def deterministic_actor(config: Any, env: Env) -> DeterministicActor:
    """A deterministic policy of `config.network`."""
    body = normalized(config, resolve(config, env.observation_space))
    return DeterministicActor(env.observation_space, env.action_space, body)


def critics(config: Any, env: Env, num_critics: int | None = None) -> Critics:
    """`num_critics` action values of `config.network`, by default as many as it says.

    `config.dropout` regularises them and not the policy, with layer normalisation.
    """
    torso: Any = resolve(config, env.observation_space).torso
    if config.critic_hidden_sizes:
        torso = torso.clone(hidden_sizes=config.critic_hidden_sizes)
    if config.dropout is not None:
        torso = torso.clone(dropout=config.dropout, layer_norm=True)
    body = normalized(config, Body(torso))
    found = (env.observation_space, env.action_space, body)
    return Critics(*found, num_critics or config.num_critics, config.num_quantiles)


def normalized(config: Any, body: Body) -> Body:
    """The body, with batch renormalisation if the config asks for it."""
    torso: Any = body.torso
    if not config.batch_norm:
        return body
    return Body(BatchNormMLP(torso.hidden_sizes, torso.activation))


def apply_actor(
    config: Any,
    env: Env,
    params: PyTree,
    obs: PyTree,
    memory: Memory = (),
    done: Array | None = None,
) -> tuple[Any, Memory]:
    """pi(.|s) of the parameters of `actor`, and the memory; along time with `done`."""
    after: Any = actor(config, env).apply(params, memory, obs, None, done)
    memory, policy = after
    return distribution(config, env, policy, obs), memory


def apply_critic(
    config: Any,
    env: Env,
    params: PyTree,
    obs: PyTree,
    memory: Memory = (),
    done: Array | None = None,
) -> tuple[Array, Memory]:
    """V(s) of the parameters of `critic`, and the memory; along time with `done`."""
    after: Any = critic(config, env).apply(params, memory, obs, None, done)
    memory, value = after
    return value, memory


def apply_actor_critic(
    config: Any,
    env: Env,
    params: PyTree,
    obs: PyTree,
    memory: Memory = (),
    done: Array | None = None,
) -> tuple[Any, Array, Memory]:
    """pi(.|s), V(s) and the memory of the parameters of `actor_critic`."""
    net = actor_critic(config, env)
    after: Any = net.apply(params, memory, obs, None, done)
    memory, policy, value = after
    return distribution(config, env, policy, obs), value, memory


def apply_q(config: Any, env: Env, params: PyTree, obs: PyTree) -> Array:
    """Q(s, .) `[*batch, A]` of the parameters of `q_network`."""
    q: Any = q_network(config, env).apply(params, obs)
    return q


def apply_recurrent_q(
    config: Any,
    env: Env,
    params: PyTree,
    obs: PyTree,
    memory: Memory = (),
    done: Array | None = None,
) -> tuple[Array, Memory]:
    """Q(s, .) `[*batch, A]` of the parameters of `recurrent_q_network`, and the memory.

    Along time with `done`.
    """
    net = recurrent_q_network(config, env)
    after: Any = net.apply(params, memory, obs, None, done)
    memory, q = after
    return q, memory


def init(net: Any, key: Array) -> PyTree:
    """Fresh parameters of one of the networks above."""
    obs = spaces.zeros(net.observation_space, (1,))
    if isinstance(net, QNetwork | SpreadActor | DeterministicActor):
        return net.init(key, obs)
    if isinstance(net, Critics):
        space = net.action_space
        discrete = isinstance(space, spaces.Discrete)
        return net.init(key, obs, None if discrete else spaces.zeros(space, (1,)))
    return net.init(key, body.initial_memory(net.body, 1), obs)


def init_memory(config: Any, env: Env, num_envs: int) -> Memory:
    """The memory at the start of an episode: zeros `[N, ...]`, or `()`."""
    torso = resolve(config, env.observation_space)
    return body.initial_memory(torso, num_envs)


def init_stats(config: Any, env: Env) -> normalize.RunningStats | None:
    """Statistics of encoded observations, or None without `normalize_obs`."""
    if not config.normalize_obs:
        return None
    takes = resolve(config, env.observation_space).takes
    return normalize.init(encoded_shape(env.observation_space, takes))


def update_stats(
    config: Any, env: Env, obs: PyTree, stats: normalize.RunningStats | None
) -> normalize.RunningStats | None:
    """The statistics with these observations; None where there are none."""
    if stats is None:
        return None
    takes = resolve(config, env.observation_space).takes
    return normalize.update(stats, encode(env.observation_space, obs, takes))


def distribution(config: Any, env: Env, policy: Any, obs: PyTree) -> Any:
    """The action distribution of an environment; `obs` may hold a mask."""
    mask = action_mask(env.observation_space, obs)
    squash = getattr(config, "squash", False)
    return policy_distribution(env.action_space, policy, mask, squash)


def policy_distribution(
    space: spaces.Box | spaces.Discrete,
    policy: Any,
    mask: Array | None = None,
    squash: bool = False,
) -> Any:
    """The distribution of policy parameters, in the units of the action space.

    A bounded Box is covered by scaling: mean 0 is the middle of the box and standard
    deviation 1 half its width. `squash` maps through tanh so that no action leaves it;
    otherwise the environment clips.
    """
    # distrax takes a second to import; only those who build a policy wait for it.
    from jaxrl import distributions

    if isinstance(space, spaces.Discrete):
        return distributions.categorical(policy, mask)
    mean, *features, log_std = policy
    if not space.bounded:
        return distributions.diag_normal(mean, log_std)
    low, high = (jnp.asarray(b, jnp.float32) for b in (space.low, space.high))
    if features:
        (x,) = features
        return distributions.state_dependent_tanh_normal(mean, x, log_std, low, high)
    if squash:
        return distributions.tanh_normal(mean, log_std, low, high)
    middle, half_width = (low + high) / 2, (high - low) / 2
    return distributions.diag_normal(
        middle + half_width * mean, log_std + jnp.log(half_width)
    )
