"""Running statistics for the normalisation of observations and rewards.

`RunningStats` merges batches with the parallel form of Welford's algorithm (Chan, Golub and
LeVeque 1983, "Algorithms for computing the sample variance"), written as a convex
combination of the old and the new:

w = n_b / (n + n_b)
mean <- mean + w (mean_b - mean)
var  <- (1 - w) var + w var_b + w (1 - w) (mean_b - mean)²

Everything is float32, including the count. Beyond 2^24 a float32 count is no longer exact,
but it enters through w alone: each merge rounds the count by at most one part in 2^24, and
the stored mean and variance do not grow with it, as sums would. Beyond 2^24 *batches* the
count no longer increases, a batch keeps the weight 2^-24, and the statistics become an
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
    """Running mean and biased variance, element by element."""

    mean: Array  # float32 [*shape]
    var: Array  # float32 [*shape]
    count: Array  # float32 []


class RewardStats(flax.struct.PyTreeNode):
    """Statistics of the discounted return, whose standard deviation scales rewards."""

    returns: RunningStats  # of shape ()


def init(shape: tuple[int, ...] = ()) -> RunningStats:
    """Initial statistics of arrays `[*shape]`: mean 0, variance 1.

    The first batch replaces both.
    """
    return RunningStats(
        mean=jnp.zeros(shape, jnp.float32),
        var=jnp.ones(shape, jnp.float32),
        count=jnp.float32(0.0),
    )


def update(stats: RunningStats, batch: Array) -> RunningStats:
    """Merge a batch into the statistics, as if all the data had been processed at once.

    Args:
      stats: of shape `[*shape]`.
      batch: `[..., *shape]`, one or more samples along any leading axes.

    Returns:
      The statistics of all samples so far.

    Source: Chan et al. (1983), in the form given at the top of this module.
    """
    batch = jnp.asarray(batch, jnp.float32)
    axes = tuple(range(batch.ndim - stats.mean.ndim))
    chex.assert_equal(batch.shape[len(axes) :], stats.mean.shape)
    size = batch.size // max(stats.mean.size, 1) * parallel.num_shares()
    total = stats.count + size
    weight = size / total
    # Centring at the old mean keeps the numbers small, so an offset costs no precision.
    centred = batch - jnp.expand_dims(stats.mean, axes)
    shift = parallel.mean(centred.mean(axes))
    var = parallel.variance(centred, axes) + (1.0 - weight) * jnp.square(shift)
    return RunningStats(
        mean=stats.mean + weight * shift,
        var=(1.0 - weight) * stats.var + weight * var,
        count=total,
    )


def normalize(stats: RunningStats, x: Array, clip: Scalar = 10.0) -> Array:
    """Normalise to zero mean and unit variance: (x - mean) / √(var + 1e-8), clipped.

    Before any data this is `x`, clipped to ±clip.

    Args:
      stats: of shape `[*shape]`.
      x: `[..., *shape]`.
      clip: the largest absolute value of the result.

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
    """Initial reward statistics, scalars, which leave rewards unscaled."""
    return RewardStats(returns=init(()))


def update_reward(
    stats: RewardStats, trace: Array, reward: Array, done: Array, gamma: Scalar
) -> tuple[RewardStats, Array]:
    """Merge the discounted returns of a rollout into the statistics.

    R_t = γ R_{t-1} + r_t, which enters the statistics and is then reset to 0 where done

    The order matters: if R were reset first, the return at the end of an episode would
    never enter, and the reward of its last step would leak into the next episode.

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
    """Scale rewards by the deviation of the return: r / √(var + 1e-8), clipped to ±clip.

    Rewards are not centred: a shift changes which policy is optimal, a scale does not. If
    returns do not vary, rewards are unscaled.

    Args:
      stats: statistics of the discounted return.
      reward: `[...]` r.
      clip: the largest absolute value of the result.

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
    """Update reward statistics with a rollout `[T, N]`, then scale its rewards.

    Without statistics (None) the rewards are unchanged. The arguments are those of
    `update_reward`.

    Returns:
      (reward, stats, trace).

    Source: Engstrom et al. (2020), https://arxiv.org/abs/2005.12729, section 3,
    "Reward scaling".
    """
    if stats is None:
        return reward, None, trace
    stats, trace = update_reward(stats, trace, reward, done, gamma)
    return scale_reward(stats, reward), stats, trace
