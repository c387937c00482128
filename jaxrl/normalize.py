"""Running statistics for the normalisation of observations and rewards.

`RunningStats` merges batches with the parallel form of Welford's algorithm (Chan, Golub and
LeVeque 1983, "Algorithms for computing the sample variance"), written as a convex
combination of the old and the new:

w = n_b / (n + n_b)
mean <- mean + w (mean_b - mean)
var  <- (1 - w) var + w var_b + w (1 - w) (mean_b - mean)²

The mean is the sum of two float32 numbers, `mean` and `rest`, so that neither its rounding
nor updates far below its last place are lost; the first batch is centred at one of its
samples, later ones at the mean. Observations of mean 1e6 and deviation 1, sixteen times
float32's last place, are normalised to within 2e-5 of float64's numbers (1e-4 after 100,000
updates of one sample each); with the mean in one float32 they are off by 0.07 (0.26)
deviations.

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
from jaxrl.losses import RESOLUTION, TINY
from jaxrl.types import Array, Scalar

EPS = 1e-8
ULP = 2.0**-23
"""A unit in the last place of float32 is at most this share of a number."""


class RunningStats(flax.struct.PyTreeNode):
    """Running mean and biased variance, element by element."""

    mean: Array  # float32 [*shape]
    rest: Array  # float32 [*shape]: what rounding takes off the mean
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
        rest=jnp.zeros(shape, jnp.float32),
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
    # Small numbers: an offset costs no precision, and equal numbers have variance 0.
    first = parallel.largest(batch[(0,) * len(axes)])
    origin = jnp.where(stats.count > 0.0, stats.mean, first)
    centred = _subtract(batch, origin, stats.rest)
    shift = parallel.mean(centred.mean(axes))
    var = parallel.variance(centred, axes) + (1.0 - weight) * jnp.square(shift)
    mean, rest = _add(origin, stats.rest + weight * shift)
    return RunningStats(
        mean=mean,
        rest=rest,
        var=(1.0 - weight) * stats.var + weight * var,
        count=total,
    )


def _add(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b in float32, and the error of its rounding (Knuth's TwoSum).

    Source: Higham (2002), "Accuracy and stability of numerical algorithms", section 4.3.
    """
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _subtract(x: Array, mean: Array, rest: Array) -> Array:
    """x - (mean + rest), for x `[..., *shape]`; near the mean without rounding."""
    axes = tuple(range(x.ndim - mean.ndim))
    return (x - jnp.expand_dims(mean, axes)) - jnp.expand_dims(rest, axes)


def normalize(stats: RunningStats, x: Array, clip: Scalar = 10.0) -> Array:
    """Normalise to zero mean and unit variance: (x - mean) / √(v (1 + q⁸)), clipped.

    v = var + 1e-8,    q = ε / √v,    ε = 2^-23 |mean|

    ε is a step of float32 at the mean. What takes two neighbouring numbers is normalised to
    0.07 or less, what has a deviation above 4 ε as if ε were 0.
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
    scale *= jax.lax.rsqrt(1.0 + (ULP * stats.mean * scale) ** 8)
    centred = _subtract(x, stats.mean, stats.rest)
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
    """Scale rewards by the deviation of the return, clipped to ±clip.

    r / √var^q,    q = var / (var + ε²),    ε = 2^-17 |mean|

    Rewards are not centred: a shift changes which policy is optimal, a scale does not. q is
    1 where returns vary, however small they are. If they do not vary by more than float32
    resolves at their magnitude, it falls to 0 and rewards are unscaled, without a jump.

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
    varies = var / (var + jnp.square(RESOLUTION * stats.returns.mean) + TINY)
    scale = jnp.power(var, -0.5 * varies)  # 0 to the power 0 is 1
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
