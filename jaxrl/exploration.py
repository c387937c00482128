"""Exploration for greedy policies."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import optim
from jaxrl.types import Array, Counter, Scalar


def epsilon_noise(key: Array, shape: tuple[int, ...], num_actions: int) -> Array:
    """Uniform noise for `epsilon_greedy`: `[*shape, num_actions + 1]`."""
    return jax.random.uniform(key, (*shape, num_actions + 1))


def scheduled_epsilon(config: Any, env_steps: Counter) -> Array:
    """ε of the rollout that begins after so many environment steps, a scalar.

    Falls linearly from `config.epsilon_start` to `epsilon_end` over the first
    `exploration_fraction` of `total_steps`.

    Source: Mnih et al. (2015), Nature 518, Methods, "Training details".
    """
    done = optim.progress(env_steps, config.total_steps)
    start, end = config.epsilon_start, config.epsilon_end
    return optim.linear_schedule(start, end, done / config.exploration_fraction)


def epsilon_greedy(
    noise: Array, q: Array, epsilon: Scalar, mask: Array | None = None
) -> Array:
    """ε-greedy action: uniform over the legal actions with probability ε, else the best.

    Args:
      noise: `[..., A + 1]` from `epsilon_noise`, to be used once.
      q: `[..., A]` action values.
      epsilon: ε, a scalar or `[...]`.
      mask: bool `[..., A]`, True for legal actions; None when all are.

    Returns:
      int32 `[...]` actions.

    Source: Sutton and Barto (2018), section 2.2.
    """
    # The first column decides whether to explore; the others are then the scores.
    explore = noise[..., :1] < jnp.asarray(epsilon, jnp.float32)[..., None]
    score = jnp.where(explore, noise[..., 1:], q)
    if mask is not None:
        score = jnp.where(mask, score, -jnp.inf)
    return jnp.argmax(score, axis=-1).astype(jnp.int32)


class EpsilonGreedy(NamedTuple):
    """The ε-greedy policy of action values as a distribution, for `acting.stochastic`."""

    q: Array  # [..., A]
    epsilon: Scalar
    mask: Array | None

    def mode(self) -> Array:
        """The best legal actions, int32 `[...]`."""
        q = self.q
        q = q if self.mask is None else jnp.where(self.mask, q, -jnp.inf)
        return jnp.argmax(q, axis=-1).astype(jnp.int32)

    def from_noise(self, noise: Array) -> Array:
        """Actions from `epsilon_noise`, int32 `[...]`."""
        return epsilon_greedy(noise, self.q, self.epsilon, self.mask)


def epsilon_greedy_value(q: Array, epsilon: Scalar, mask: Array | None = None) -> Array:
    """The mean of the action values under the ε-greedy policy.

    Σ_a π(a) Q(a) = (1 - ε) max_a Q(a) + ε mean_a Q(a)

    Args:
      q: `[..., A]` action values.
      epsilon: ε, a scalar or `[...]`; 0 gives the value of the best action.
      mask: bool `[..., A]`, True for legal actions; None when all are.

    Returns:
      `[...]`.

    Source: Sutton and Barto (2018), section 6.6, the target of Expected SARSA.
    """
    best = q.max(axis=-1, initial=-jnp.inf, where=mask)
    return (1.0 - epsilon) * best + epsilon * q.mean(axis=-1, where=mask)


def spread(first: Scalar, last: Scalar | None, num_envs: int) -> Scalar:
    """How much each of N environments explores, so that some do more than others.

    x_i = x_0 + (x_last - x_0) i / (N - 1)

    Args:
      first: x_0.
      last: x_last; None for x_0 in all of them.
      num_envs: N; one environment has x_0.

    Returns:
      `[N, 1]`, or x_0.

    Source: Li et al. (2023), https://arxiv.org/abs/2307.12983, "mixed exploration"; Seo et
    al. (2025), https://arxiv.org/abs/2505.22642, draw it anew for each episode.
    """
    if last is None:
        return first
    place = jnp.arange(num_envs) / max(num_envs - 1, 1)
    return (first + (last - first) * place)[:, None]


def smoothing_noise(noise: Array, std: Scalar, clip: Scalar) -> Array:
    """Clipped normal noise around the target policy's action.

    clip(σ x, -c, c)

    Args:
      noise: `[..., D]` x, standard normal.
      std: σ, in half widths of the action space.
      clip: c, likewise.

    Returns:
      `[..., D]`.

    Source: Fujimoto et al. (2018), https://arxiv.org/abs/1802.09477, equation 14.
    """
    return jnp.clip(std * noise, -clip, clip)


def ornstein_uhlenbeck(
    state: Array, noise: Array, std: Scalar, rate: Scalar, dt: Scalar
) -> Array:
    """One step of noise that is correlated in time and returns to 0.

    x <- x - θ x dt + σ √dt ε

    From 0 its variance rises to σ² dt / (1 - (1 - θ dt)²), nearly σ² / (2 θ); values k
    steps apart are then correlated by (1 - θ dt)^k.

    Args:
      state: `[..., D]` x; 0 where an episode begins.
      noise: `[..., D]` ε, standard normal.
      std: σ.
      rate: θ, per unit of time.
      dt: units of time in a step.

    Returns:
      `[..., D]` the next x.

    Source: Uhlenbeck and Ornstein (1930), "On the theory of the Brownian motion";
    Lillicrap et al. (2016), https://arxiv.org/abs/1509.02971, section 3.
    """
    return state - rate * dt * state + std * jnp.sqrt(dt) * noise


class NoiseMatrix(NamedTuple):
    """The random function of state-dependent noise, zeros where an episode begins."""

    matrix: Array  # [N, F, D], standard normal
    age: Array  # int32 [N], steps it has been used for; 0: it has to be drawn


def renewed_matrix(memory: NoiseMatrix, drawn: Array, interval: int) -> NoiseMatrix:
    """The matrix of this step: that of the step before, or a new one.

    Args:
      memory: of the step before.
      drawn: `[N, F, D]`, standard normal, to be used once.
      interval: steps that a matrix is used for; 0: until the episode ends.

    Source: Raffin et al. (2021), https://arxiv.org/abs/2005.05719, section 3.
    """
    is_old = (memory.age > 0)[:, None, None]
    age = (memory.age + 1) % interval if interval else jnp.ones_like(memory.age)
    return NoiseMatrix(jnp.where(is_old, memory.matrix, drawn), age)
