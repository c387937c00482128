"""Critics of actions, as DDPG, TD3 and SAC share them: an ensemble, its targets, its loss.

Each config field is a published answer to the critics' overestimation or to their need of
data; together with any policy:

- `num_critics`, `target_subset`: the smallest of a random subset in the target, 2 of 2 in
  TD3 and SAC, 2 of 10 in REDQ (Chen et al., 2021, arXiv:2101.05982), whose policy follows
  the mean;
- `num_quantiles`, `dropped_quantiles`: distributions, of which the target leaves out the
  largest quantiles: TQC (Kuznetsov et al., 2020, arXiv:2005.04269);
- `dropout`: with layer normalisation, in targets too: DroQ (Hiraoka et al., 2022,
  arXiv:2110.02034);
- `batch_norm`: batch renormalisation and no target networks: CrossQ (Bhatt et al., 2024,
  arXiv:1902.05605), there with `policy_delay` = 3 and `critic_hidden_sizes` of 2048;
- `n_step`: targets of n rewards, uncorrected for the policy that took the actions; of
  SAC's entropies only that at their end is in them.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import estimators, networks, normalize, spaces, types
from jaxrl.algorithms import checks, learning, off_policy
from jaxrl.errors import require
from jaxrl.networks import Activation, Network
from jaxrl.replay.hindsight import Hindsight
from jaxrl.types import Array, Env, PyTree, static, traced


class Config(PyTreeNode):
    """Hyper-parameters of them all; the defaults are those of SB3 RL Zoo for Pendulum."""

    total_steps: float = traced(20_000.0, low=1, high=1e12)
    """Environment steps of the whole run, `learning_starts` included."""
    num_envs: int = static(1, low=1)
    """Environments stepped in parallel."""
    train_frequency: int = static(1, low=1)
    """Environment steps (over all environments) between updates."""
    num_updates: int = static(1, low=1)
    """Gradient steps of the critics each time."""
    buffer_size: int = static(200_000, low=1)
    """Transitions the replay memory holds; the oldest are overwritten."""
    learning_starts: int = static(1_000, low=1)
    """Environment steps taken at random before the first update."""
    batch_size: int = static(256, low=1)
    """Transitions in each update."""
    learning_rate: float = traced(1e-3, low=0)
    """Adam's step size."""
    actor_learning_rate: float | None = traced(None, low=0)
    """That of the policy; none: `learning_rate`."""
    anneal_lr: bool = static(False)
    """Whether learning rates fall linearly to zero over `total_steps`."""
    gamma: float = traced(0.98, low=0, high=1)
    """Discount factor per environment step."""
    n_step: int = static(1, low=1, high=1_000)
    """Rewards in a target; fewer where an episode ends."""
    hindsight: Hindsight = static("none")
    """Goals in place of those wanted: the episode's last, or any reached later."""
    hindsight_fraction: float = traced(0.8, low=0, high=1)
    """How many of a batch have such a goal."""
    tau: float = traced(0.005, above=0, high=1)
    """Weight of the online networks each time the target networks follow."""
    num_critics: int = static(2, low=1)
    """Critics in the ensemble."""
    target_subset: int = static(2, low=1)
    """Critics, drawn at each step, whose smallest value is the target's."""
    num_quantiles: int = static(0, low=0)
    """Quantiles of each critic's distribution, for which `target_subset` is ignored; 0 is
    the mean alone."""
    dropped_quantiles: int = static(2, low=0)
    """The largest quantiles a critic that the target leaves out."""
    dropout: float | None = traced(None, low=0, high=0.99)
    """Fraction of the critics' hidden units that is dropped, with layer normalisation;
    none: without both."""
    batch_norm: bool = static(False)
    """Whether actor and critics have batch renormalisation, and critics no targets."""
    policy_delay: int = static(1, low=1)
    """Steps of the critics for one of the policy."""
    normalize_obs: bool = static(False)
    """Whether observations are standardised by running statistics."""
    hidden_sizes: tuple[int, ...] = static((256, 256), low=1)
    """Widths of the fully connected layers."""
    critic_hidden_sizes: tuple[int, ...] = static((), low=1)
    """Those of the critics; empty: `hidden_sizes`."""
    activation: Activation = static("relu")
    """Nonlinearity of the hidden layers."""
    network: Network = static("auto")
    """A name ("auto", "mlp", "cnn", "resnet", ...), a flax module, or module:factory."""


class Agent(types.Agent, kw_only=True):
    """All that the policy artefact holds: parameters by the name of a network."""

    target_params: dict[str, PyTree]
    obs_stats: normalize.RunningStats | None


def init_agent(
    config: Any, env: Env, params: dict[str, PyTree], targets: Sequence[str]
) -> Agent:
    """An agent of new networks, with targets of those named unless it has none."""
    followed = () if config.batch_norm else targets
    return Agent(
        params=params,
        opt_state=learning.init_optimizers(params),
        target_params={name: params[name] for name in followed},
        obs_stats=networks.init_stats(config, env),
    )


def validate(name: str, config: Any, env: Env, discrete: bool = False) -> None:
    """The demands of critics on their config, and on the environment.

    `discrete`: whether the algorithm takes Discrete actions too.
    """
    if discrete and isinstance(env.action_space, spaces.Discrete):
        checks.q_learning(name, config, env)
        require(
            config.num_quantiles == 0,
            f"num_quantiles = {config.num_quantiles} needs continuous actions, but those "
            f"of {env.id} are {env.action_space}: leave it at 0.",
        )
    else:
        checks.continuous_control(name, config, env)
    require(
        config.num_quantiles > 0 or config.target_subset <= config.num_critics,
        f"target_subset = {config.target_subset} must be at most num_critics = "
        f"{config.num_critics}.",
    )
    require(
        config.num_quantiles == 0 or config.dropped_quantiles < config.num_quantiles,
        f"dropped_quantiles = {config.dropped_quantiles} must be less than "
        f"num_quantiles = {config.num_quantiles}.",
    )
    checks.critic_layers(config, env)
    off_policy.check(config, env)


def momentum(config: Any) -> float:
    """Adam's decay of the first moment: 0.5 in CrossQ (appendix), 0.9 otherwise."""
    return 0.5 if config.batch_norm else 0.9


def values(
    config: Any,
    env: Env,
    params: PyTree,
    stats: normalize.RunningStats | None,
    obs: PyTree,
    action: Array | None,
    key: Array | None,
    num_critics: int | None = None,
) -> Array:
    """Q_k(s, a) `[K, B]`, quantiles `[K, B, M]`, or `[K, B, A]` without actions.

    Args:
      config: of the algorithm.
      env: the environment.
      params: of the critics.
      stats: of observations.
      obs: `[B, ...]`.
      action: `[B, D]` in [-1, 1]; None for all of a Discrete space.
      key: of the dropout; None for none, where the policy acts.
      num_critics: K, by default that of the config.
    """
    rngs = {"dropout": key} if key is not None and config.dropout is not None else None
    net = networks.critics(config, env, num_critics)
    q: Any = net.apply(params, obs, action, stats, rngs=rngs)
    return q


def values_taken(
    config: Any,
    env: Env,
    params: PyTree,
    stats: normalize.RunningStats | None,
    obs: PyTree,
    action: Array,
    key: Array | None,
) -> Array:
    """Q_k(s, a) `[K, B]` or quantiles `[K, B, M]` of actions in the environment's units."""
    taken = unit_action(env, action)
    if not isinstance(env.action_space, spaces.Discrete):
        return values(config, env, params, stats, obs, taken, key)
    return value_of_taken(values(config, env, params, stats, obs, None, key), taken)


def unit_action(env: Env, action: Array) -> Array:
    """Actions in the environment's units as critics take them: of a Box in [-1, 1]."""
    is_discrete = isinstance(env.action_space, spaces.Discrete)
    return action if is_discrete else spaces.to_unit(env.action_space, action)


def value_of_taken(q: Array, action: Array) -> Array:
    """Q_k(s, a) `[K, B]` of actions `[B]`, from those of all actions `[K, B, A]`."""
    return estimators.action_value(q, jnp.broadcast_to(action, q.shape[:-1]))


def target_value(config: Any, q: Array, key: Array) -> Array:
    """What the target critics `[K, B, ...]` say together: `[B, ...]`.

    The smallest of a random subset; of quantiles all but the largest, `[B, K (M - d)]`.
    """
    if config.num_quantiles:
        return estimators.truncated_mixture(q, config.dropped_quantiles)
    return estimators.subset_minimum(q, key, config.target_subset)


def policy_value(config: Any, q: Array) -> Array:
    """What critics `[K, B, ...]` say of a policy's action: `[B]`, or `[B, A]`.

    The mean where `follows_mean`, and the smallest otherwise.
    """
    if config.num_quantiles:
        return q.mean((0, -1))
    return q.mean(0) if follows_mean(config) else smallest(q)


def smallest(q: Array) -> Array:
    """The smallest of critics `[K, ...]`: `[...]`, with the gradient of one of them.

    The gradient of `jnp.min` divides by how many equal the smallest. These are none, and it
    is NaN, where the compiler computes `q` twice and rounds it in two ways.
    """
    which = jnp.arange(len(q)).reshape(-1, *[1] * (q.ndim - 1))
    return jnp.where(which == jnp.argmin(q, axis=0), q, 0.0).sum(0)


def follows_mean(config: Any) -> bool:
    """Whether the policy follows the mean of all critics, as in REDQ, TQC and DroQ."""
    is_subset = config.target_subset < config.num_critics
    return bool(config.num_quantiles) or is_subset or config.dropout is not None
