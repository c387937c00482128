"""Running statistics: the scale of observations and of rewards, learnt while training.

`RunningStats` merges whole batches with the parallel form of Welford's algorithm (Chan,
Golub and LeVeque 1983, "Algorithms for computing the sample variance"), written as a
convex combination of what is known and what is new:

w = n_b / (n + n_b)
mean <- mean + w (mean_b - mean)
var  <- (1 - w) var + w var_b + w (1 - w) (mean_b - mean)²

Everything is float32, the count too. Past 2^24 a float32 count is no longer exact, but
it enters through w alone: each merge rounds the count by at most one part in 2^24, and
the stored mean and variance never grow with it, as sums would. Past 2^24 *batches* the
count stands still, a batch keeps the weight 2^-24, and the statistics go on as an
exponential average over the last 2^24 batches.
"""

import chex
import flax.struct
import jax
import jax.numpy as jnp

from jaxrl.core import parallel
from jaxrl.types import Array, Scalar

EPS = 1e-8


class RunningStats(flax.struct.PyTreeNode):
    """Mean and biased variance of everything seen so far, element by element."""

    mean: Array  # float32 [*shape]
    var: Array  # float32 [*shape]
    count: Array  # float32 []


class RewardStats(flax.struct.PyTreeNode):
    """Statistics of the discounted return, by whose spread rewards are divided."""

    returns: RunningStats  # of shape ()


def init(shape: tuple[int, ...] = ()) -> RunningStats:
    """Statistics before any data, of arrays `[*shape]`: mean 0, variance 1.

    The first batch replaces both.
    """
    return RunningStats(
        mean=jnp.zeros(shape, jnp.float32),
        var=jnp.ones(shape, jnp.float32),
        count=jnp.float32(0.0),
    )


def update(stats: RunningStats, batch: Array) -> RunningStats:
    """The statistics with a batch merged in, as if all the data had been seen at once.

    Args:
      stats: of shape `[*shape]`.
      batch: `[..., *shape]`, one or more samples along any leading axes.

    Returns:
      The statistics of all samples so far.

    Source: Chan et al. (1983), as the head of this file has it.
    """
    batch = jnp.asarray(batch, jnp.float32)
    axes = tuple(range(batch.ndim - stats.mean.ndim))
    chex.assert_equal(batch.shape[len(axes) :], stats.mean.shape)
    size = batch.size // max(stats.mean.size, 1) * parallel.num_shares()
    total = stats.count + size
    weight = size / total
    # Around the old mean the numbers are small: no digits are lost to an offset.
    centred = batch - jnp.expand_dims(stats.mean, axes)
    shift = parallel.mean(centred.mean(axes))
    var = parallel.variance(centred, axes) + (1.0 - weight) * jnp.square(shift)
    return RunningStats(
        mean=stats.mean + weight * shift,
        var=(1.0 - weight) * stats.var + weight * var,
        count=total,
    )


def normalize(stats: RunningStats, x: Array, clip: Scalar = 10.0) -> Array:
    """Zero mean and unit variance: (x - mean) / √(var + 1e-8), clipped to ±clip.

    Before any data this is `x`, clipped.

    Args:
      stats: of shape `[*shape]`.
      x: `[..., *shape]`.
      clip: the largest absolute value that is returned.

    Returns:
      float32 `[..., *shape]`.

    Source: Engstrom et al. (2020), https://arxiv.org/abs/2005.12729, "Observation
    normalization" and "Observation clipping".
    """
    x = jnp.asarray(x, jnp.float32)
    axes = tuple(range(x.ndim - stats.mean.ndim))
    scale = jax.lax.rsqrt(stats.var + EPS)
    centred = x - jnp.expand_dims(stats.mean, axes)
    return jnp.clip(centred * jnp.expand_dims(scale, axes), -clip, clip)


def init_reward() -> RewardStats:
    """Reward statistics before any data, scalars: rewards pass unscaled."""
    return RewardStats(returns=init(()))


def update_reward(
    stats: RewardStats, trace: Array, reward: Array, done: Array, gamma: Scalar
) -> tuple[RewardStats, Array]:
    """The statistics with a rollout's discounted returns merged in.

    R_t = γ R_{t-1} + r_t, which counts, and is set to zero only then where done

    The order matters: reset first, and the return of an episode's end is never seen,
    and the reward of its last step leaks into the next episode.

    Args:
      stats: the statistics so far.
      trace: `[N]` R of each environment's running episode, zeros at first.
      reward: `[T, N]` r_t.
      done: bool `[T, N]`, whether the episode ended with this step, for any reason.
      gamma: the discount γ.

    Returns:
      (stats, trace): the new statistics, and R for the next rollout.

    Source: Engstrom et al. (2020), https://arxiv.org/abs/2005.12729, section 3,
    "Reward scaling".
    """
    chex.assert_equal_shape([reward, done])
    chex.assert_equal_shape([trace, reward[0]])
    reward = jnp.asarray(reward, jnp.float32)

    def step(trace: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        reward_t, done_t = row
        trace = gamma * trace + reward_t
        return jnp.where(done_t, 0.0, trace), trace

    trace, returns = jax.lax.scan(step, trace, (reward, done))
    return RewardStats(returns=update(stats.returns, returns)), trace


def scale_reward(stats: RewardStats, reward: Array, clip: Scalar = 10.0) -> Array:
    """Rewards over the spread of the return: r / √(var + 1e-8), clipped to ±clip.

    Not centred: a shift of the rewards changes which policy is best, a scale does not.
    Where returns do not vary at all there is nothing to scale by, and rewards pass as
    they are.

    Args:
      stats: of the discounted return.
      reward: `[...]` r.
      clip: the largest absolute value that is returned.

    Returns:
      float32 `[...]`.

    Source: Engstrom et al. (2020), https://arxiv.org/abs/2005.12729, section 3,
    "Reward scaling".
    """
    var = stats.returns.var
    scale = jnp.where(var > EPS, jax.lax.rsqrt(var + EPS), 1.0)
    return jnp.clip(jnp.asarray(reward, jnp.float32) * scale, -clip, clip)


def scaled_rollout(
    stats: RewardStats | None,
    trace: Array,
    reward: Array,
    done: Array,
    gamma: Scalar,
) -> tuple[Array, RewardStats | None, Array]:
    """The rewards `[T, N]` to learn from, and the statistics that include them.

    Without statistics (None) the rewards are what they are, and nothing is kept. The
    arguments are those of `update_reward`.

    Returns:
      (reward, stats, trace).

    Source: Engstrom et al. (2020), https://arxiv.org/abs/2005.12729, section 3,
    "Reward scaling".
    """
    if stats is None:
        return reward, None, trace
    stats, trace = update_reward(stats, trace, reward, done, gamma)
    return scale_reward(stats, reward), stats, trace
