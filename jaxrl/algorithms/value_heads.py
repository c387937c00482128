"""What the outputs of DQN's network say of returns, and how they are learned.

By `config.distribution` a network has for each action

- "none": its value Q(s, a) (Mnih et al., 2015);
- "categorical": logits of the probabilities of `num_atoms` returns, C51 (Bellemare,
  Dabney and Munos, 2017, arXiv:1707.06887);
- "quantile": the return's quantiles of `num_quantiles` fixed levels, QR-DQN (Dabney et
  al., 2018, arXiv:1710.10044);
- "implicit_quantile": those of any levels, drawn for each transition and each gradient
  step, IQN (Dabney et al., 2018, arXiv:1806.06923).

All four share one target: of the outputs in s' those of the best action, or of Munchausen's
policy, are shifted by r and shrunk by γ. An action is chosen by the mean of its returns, or
with `cvar` by the mean of the worst fraction of them.
"""

import warnings
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import estimators, losses, networks
from jaxrl.algorithms import bellman
from jaxrl.errors import require
from jaxrl.replay.transitions import Batch
from jaxrl.types import Array, Env, PyTree

Distribution = Literal["none", "categorical", "quantile", "implicit_quantile"]

NUM_COSINES = 64
"""Features of a quantile's level (Dabney et al., 2018, arXiv:1806.06923, equation 4)."""


def check(config: Any) -> None:
    """The options of heads and targets fit each other."""
    kind = config.distribution
    require(
        kind != "categorical" or bool(np.all(config.v_min < config.v_max)),
        f"v_min = {config.v_min} must be less than v_max = {config.v_max}, which bound "
        f"the returns.",
    )
    require(
        config.cvar is None or kind != "none",
        f"cvar = {config.cvar} needs a distribution of returns: set distribution, or "
        f"leave cvar at none.",
    )
    require(
        config.loss == "squared" or kind == "none",
        f"loss = {config.loss!r} is that of a single value, and distribution = {kind!r} "
        f"has its own: leave loss at 'squared'.",
    )
    require(
        not config.double or config.munchausen is None,
        f"double = True chooses the action of a maximum, and with munchausen = "
        f"{config.munchausen} there is none: leave out either.",
    )
    epsilon = np.maximum(config.epsilon_start, config.epsilon_end)
    if not is_noisy(config) and not np.all(epsilon > 0):
        warnings.warn(
            f"epsilon_start = {config.epsilon_start} and epsilon_end = "
            f"{config.epsilon_end} without noisy_std explore nothing after the warm-up: "
            f"set one of them.",
            stacklevel=2,
        )
    if is_noisy(config) and np.any(epsilon > 0):
        warnings.warn(
            f"noisy_std = {config.noisy_std} with epsilon_start = {config.epsilon_start} "
            f"and epsilon_end = {config.epsilon_end} explores twice: noisy networks were "
            f"made to do without random actions, set both to 0.",
            stacklevel=2,
        )


def is_noisy(config: Any) -> bool:
    """Whether the weights of the head have noise."""
    return config.noisy_std is not None


def is_random(config: Any) -> bool:
    """Whether a pass through the network needs random numbers."""
    return is_noisy(config) or config.distribution == "implicit_quantile"


def network(config: Any, env: Env) -> networks.QNetwork:
    """The network of `config.network` with the head that the config asks for."""
    sizes = {"categorical": config.num_atoms, "quantile": config.num_quantiles}
    implicit = config.distribution == "implicit_quantile"
    head = networks.Head(
        size=sizes.get(config.distribution, 0),
        hidden_sizes=tuple(config.head_sizes),
        activation=config.activation,
        dueling=config.dueling,
        noisy_std=config.noisy_std,
        num_cosines=NUM_COSINES if implicit else 0,
    )
    return networks.q_network(config, env, head)


class Draw(NamedTuple):
    """The randomness of one pass through the network."""

    noise: Array | None = None  # key, one noise for all rows
    levels: Array | None = None  # [B, M] of quantiles


def draw(config: Any, key: Array | None, size: int) -> tuple[Draw, Draw, Draw]:
    """Those of a gradient step: of what learns, of the target, and of its choice.

    Args:
      config: of the algorithm.
      key: consumed; None where nothing `is_random`.
      size: B, rows of the batch.
    """
    if key is None:
        return Draw(), Draw(), Draw()
    keys = jax.random.split(key, 5)
    noise: Any = keys[:3] if is_noisy(config) else (None,) * 3
    levels: tuple = (None, None)
    if config.distribution == "implicit_quantile":
        counts = config.num_quantiles, config.target_quantiles
        each = zip(keys[3:], counts, strict=True)
        levels = tuple(jax.random.uniform(key, (size, count)) for key, count in each)
    return Draw(noise[0], levels[0]), Draw(noise[1], levels[1]), Draw(noise[2])


def outputs(
    config: Any,
    env: Env,
    params: PyTree,
    obs: PyTree,
    draw: Draw,
    each_row: bool = False,
) -> Array:
    """Outputs of every action, `[B, A]` of values or `[B, A, M]` of distributions."""
    rngs = {} if draw.noise is None else {"noise": draw.noise}
    net = network(config, env)
    found: Any = net.apply(params, obs, None, draw.levels, each_row, rngs=rngs)
    return found


def q_values(
    config: Any,
    env: Env,
    params: PyTree,
    obs: PyTree,
    noise: Array | None = None,
    each_row: bool = True,
) -> Array:
    """What an action is chosen by, `[B, A]`.

    Implicit quantiles are those of `acting_quantiles` levels at equal distances.

    Args:
      config: of the algorithm.
      env: the environment.
      params: of the network.
      obs: `[B, ...]`.
      noise: key of noisy weights; None for their means.
      each_row: whether each row has a noise of its own.
    """
    levels = None
    if config.distribution == "implicit_quantile":
        count = config.acting_quantiles
        levels = (jnp.arange(count) + 0.5) / count
        levels = levels if config.cvar is None else levels * config.cvar
    out = outputs(config, env, params, obs, Draw(noise, levels), each_row)
    return preference(config, out)


def preference(config: Any, out: Array) -> Array:
    """What outputs `[B, A, ...]` say of each action: its mean return, or `cvar`'s.

    Implicit quantiles are taken to be of levels up to `cvar`.
    """
    if config.cvar is not None and config.distribution == "categorical":
        chances = probabilities(config, out)
        return estimators.cvar_of_atoms(chances, atoms(config), config.cvar)
    if config.cvar is not None and config.distribution == "quantile":
        return estimators.cvar_of_quantiles(out, config.cvar)
    return expected(config, out)


def expected(config: Any, out: Array) -> Array:
    """The mean return `[...]` of outputs `[..., M]`, or of values `[...]` themselves."""
    if config.distribution == "none":
        return out
    if config.distribution == "categorical":
        return (probabilities(config, out) * atoms(config)).sum(-1)
    return out.mean(-1)


def atoms(config: Any) -> Array:
    """The returns `[M]` of a categorical distribution."""
    return estimators.categorical_atoms(config.v_min, config.v_max, config.num_atoms)


def probabilities(config: Any, out: Array) -> Array:
    """Outputs as what may be averaged: of categorical ones probabilities."""
    return jax.nn.softmax(out, -1) if config.distribution == "categorical" else out


def taken(config: Any, out: Array, action: Array) -> Array:
    """The outputs `[B]` or `[B, M]` of the actions taken `[B]`."""
    if config.distribution == "none":
        return estimators.action_value(out, action)
    return mixture(config, out, jax.nn.one_hot(action, out.shape[1]))


def mixture(config: Any, out: Array, policy: Array) -> Array:
    """The mean outputs `[B]` or `[B, M]` of a policy's actions, of weights `[B, A]`."""
    if config.distribution == "none":
        return estimators.expected_value(out, policy)
    return (out * policy[..., None]).sum(1)


class Target(NamedTuple):
    """What the outputs of an action are to become."""

    value: Array  # y [B], or returns [B, M]
    probability: Array | None  # [B, M] of these; None: all alike


def target(
    config: Any, batch: Batch, following: Array, bonus: Array | None = None
) -> Target:
    """r + γ Z(s'), without what follows where s' is terminal.

    Args:
      config: of the algorithm.
      batch: what is learned from.
      following: of s', values `[B]`, quantiles or probabilities `[B, M]`.
      bonus: `[B]`, added to the values of s'.
    """
    is_categorical = config.distribution == "categorical"
    value = following
    if is_categorical:
        value = jnp.broadcast_to(atoms(config), following.shape)
    if bonus is not None:
        value = value + (bonus if value.ndim == 1 else bonus[:, None])
    y = bellman.target(batch, value)
    return Target(y, following if is_categorical else None)


def munchausen_target(
    config: Any, env: Env, params: PyTree, batch: Batch, out: Array, draw: Draw
) -> Target:
    """The target of a soft policy π, whose clipped logarithm is a reward too.

    y = r + α [τ log π(a|s)] + γ Σ_a' π(a'|s') (Z(s', a') - τ log π(a'|s'))

    Of n rewards the first has the bonus. Z is averaged as `mixture` does, and the entropy
    is added to all of its returns.

    Args:
      config: of the algorithm.
      env: the environment.
      params: of the target network, whose policy π is.
      batch: what is learned from.
      out: outputs of the target network in s'.
      draw: with which they were made.
    """
    temperature = config.munchausen_temperature

    def log_policy(obs: PyTree, q: Array) -> Array:
        mask = networks.action_mask(env.observation_space, obs)
        return estimators.boltzmann_log_policy(q, temperature, mask)

    def q_of(obs: PyTree) -> Array:
        return q_values(config, env, params, obs, draw.noise, each_row=False)

    implicit = config.distribution == "implicit_quantile"
    q = q_of(batch.next_obs) if implicit else preference(config, out)
    following = log_policy(batch.next_obs, q)
    value = mixture(config, probabilities(config, out), jnp.exp(following))
    now = log_policy(batch.obs, q_of(batch.obs))
    log_prob = jnp.take_along_axis(now, batch.action[:, None], -1)[:, 0]
    at = config.munchausen, temperature, config.munchausen_clip
    reward = batch.reward + estimators.munchausen_bonus(log_prob, *at)
    entropy = temperature * estimators.policy_entropy(following)
    return target(config, batch._replace(reward=reward), value, entropy)


def error(config: Any, out: Array, target: Target, levels: Array | None) -> Array:
    """The loss `[B]` of the outputs of the actions taken, `[B]` or `[B, M]`."""
    y = target.value
    if config.distribution == "none":
        huber = config.loss == "huber"
        return losses.huber_td(out, y) if huber else losses.squared_td(out, y)
    if target.probability is None:
        return losses.quantile_huber(out, y, config.kappa, levels)
    bounds = config.v_min, config.v_max, config.num_atoms
    return losses.categorical_kl(
        out, estimators.project_categorical(target.probability, y, *bounds)
    )


def surprise(config: Any, loss: Array) -> Array:
    """The size `[B]` of errors whose loss this is, by which replay is prioritised.

    |Q - y| of values, the loss itself of distributions.
    """
    if config.distribution != "none":
        return loss
    size = jnp.sqrt(2.0 * loss)
    return jnp.where(loss > 0.5, loss + 0.5, size) if config.loss == "huber" else size


def reported(config: Any) -> tuple[str, ...]:
    """The names of what `report` says of every transition."""
    names = ("loss/td", "value/q")
    is_categorical = config.distribution == "categorical"
    return (*names, "value/outside_support") if is_categorical else names


def report(config: Any, loss: Array, out: Array, target: Target) -> tuple[Array, ...]:
    """What is `reported` of transitions, from the outputs of the actions taken."""
    found = loss, expected(config, out)
    if target.probability is None:
        return found
    y = target.value
    rounding = 1e-5 * (config.v_max - config.v_min)
    outside = (y < config.v_min - rounding) | (y > config.v_max + rounding)
    return (*found, jnp.where(outside, target.probability, 0.0).sum(-1))
