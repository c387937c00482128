"""Action distributions: a thin layer on distrax, which only this file imports.

Each function returns an object with `sample(seed=key)`, `log_prob(action)`,
`entropy()`, `mode()` and `kl_divergence(other)`, and `from_noise(noise)`: a sample computed
from noise drawn beforehand, Gumbel for a categorical and normal for the others.
Parameters are `[..., A]`; the last axis is reduced: log-probabilities, entropies and
divergences are `[...]`, in nats.
"""

from typing import NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.types import Array, Scalar

ILLEGAL = -1e9
"""Logit of an illegal action. Its probability underflows to exactly 0, while the product
of logit and probability stays finite; with -inf it would be NaN (0 · inf)."""

# Gauss-Hermite quadrature: an expectation under N(0, 1) is a weighted sum over the nodes.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
_NODES = _NODES.astype(np.float32)
_WEIGHTS = (_WEIGHTS / _WEIGHTS.sum()).astype(np.float32)


def _float(x: Scalar) -> Array:
    """Promote to at least 32 bits: half precision is too coarse for probabilities."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def categorical(logits: Array, mask: Array | None = None) -> "Categorical":
    """Categorical distribution over the actions 0 ... A-1, some of which may be illegal.

    π(a) = exp(l_a) / Σ_{b legal} exp(l_b) for a legal, else 0

    No gradient reaches the logits of illegal actions. Log-probabilities, entropies,
    divergences and their gradients are finite even if only one action is legal. If none is
    legal (after the end of a game), all are equally likely.

    Args:
      logits: `[..., A]` l.
      mask: bool `[..., A]`, True for legal actions; None when all are.

    Returns:
      The distribution; actions are int32 `[...]`.

    Source: Huang and Ontañón (2022), https://arxiv.org/abs/2006.14171, "Invalid action
    masking".
    """
    logits = _float(logits)
    if mask is not None:
        logits = jnp.where(mask, logits, ILLEGAL)
    return Categorical(logits=logits, dtype=jnp.int32)


class Categorical(distrax.Categorical):
    """Categorical distribution, constructed by `categorical`."""

    def from_noise(self, noise: Array) -> Array:
        """Sample from π by the Gumbel-max trick: argmax_a (l_a + g_a), g `[..., A]`.

        Source: Maddison et al. (2014), https://arxiv.org/abs/1411.0030, section 2.
        """
        return jnp.argmax(self.logits + noise, axis=-1).astype(jnp.int32)

    def entropy(self) -> Array:
        """-Σ_a π(a) log π(a), without distrax's second normalisation of the logits."""
        return -jnp.sum(jnp.exp(self.logits) * self.logits, axis=-1)


def diag_normal(mean: Array, log_std: Array) -> "DiagNormal":
    """Independent normal distributions, one for each action dimension.

    π(a) = Π_i N(a_i; mean_i, exp(log_std_i)²)

    Args:
      mean: `[..., A]`.
      log_std: `[..., A]`, or `[A]` for a standard deviation independent of the state.

    Returns:
      The distribution; actions are float32 `[..., A]`.

    Source: Sutton and Barto (2018), section 13.7.
    """
    mean, log_std = _float(mean), _float(log_std)
    scale = jnp.broadcast_to(jnp.exp(log_std), mean.shape)
    return DiagNormal(distrax.Normal(mean, scale), 1)


class DiagNormal(distrax.Independent):
    """Diagonal normal distribution, constructed by `diag_normal`."""

    def from_noise(self, noise: Array) -> Array:
        """mean + exp(log_std) x, with standard normal x `[..., A]`."""
        return self.distribution.loc + self.distribution.scale * noise


class PreTanh(NamedTuple):
    """A sample x `[..., A]` before `TanhNormal` maps it onto the box."""

    x: Array


def tanh_normal(mean: Array, log_std: Array, low: Scalar, high: Scalar) -> "TanhNormal":
    """A diagonal normal squashed by tanh onto the box [low, high].

    a = low + (high - low) (tanh(x) + 1) / 2,    x ~ `diag_normal(mean, log_std)`

    Near the bounds float32 cannot tell the actions of different x apart, and there
    log π(a) of the rounded action has a biased gradient: its mean is not 0 from about
    |x| = 7 on. So keep x of an action that you sample:

        x = pi.pre_tanh(noise)        # or pi.sample_and_log_prob(seed=key)
        action, log_prob = pi.squash(x), pi.log_prob(x)

    Args:
      mean: `[..., A]` mean of x.
      log_std: `[..., A]` or `[A]`.
      low: lower bound, a number or `[A]`.
      high: upper bound, a number or `[A]`.

    Returns:
      The distribution; actions are float32 `[..., A]`.

    Source: Haarnoja et al. (2018), https://arxiv.org/abs/1801.01290, appendix C.
    """
    return TanhNormal(diag_normal(mean, log_std), low, high)


class TanhNormal(distrax.Distribution):
    """Normal distribution squashed by tanh, constructed by `tanh_normal`."""

    def __init__(self, base: DiagNormal, low: Scalar, high: Scalar):
        super().__init__()
        low, high = _float(low), _float(high)
        self._base = base
        self._low, self._high = low, high
        self._centre = (low + high) / 2
        self._half_width = (high - low) / 2

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self._base.event_shape

    def _sample_n(self, key: Array, n: int) -> Array:
        return self.squash(self._draw(key, n))

    def _sample_n_and_log_prob(self, key: Array, n: int) -> tuple[Array, Array]:
        x = self._draw(key, n)
        return self.squash(x), self.log_prob(x)

    def _draw(self, key: Array, n: int) -> PreTanh:
        return PreTanh(self._base.sample(seed=key, sample_shape=n))

    def pre_tanh(self, noise: Array) -> PreTanh:
        """mean + exp(log_std) z, with standard normal z `[..., A]`."""
        return PreTanh(self._base.from_noise(noise))

    def squash(self, sample: PreTanh) -> Array:
        """The action `[..., A]` that a sample is mapped to."""
        return self._centre + self._half_width * jnp.tanh(sample.x)

    def from_noise(self, noise: Array) -> Array:
        """The image of mean + exp(log_std) z, with standard normal z `[..., A]`."""
        return self.squash(self.pre_tanh(noise))

    def log_prob(self, value: Array | PreTanh) -> Array:
        """log N(x) - Σ_i log |da_i / dx_i|, at the sample or at tanh⁻¹ of an action.

        Exact at a `PreTanh`, and at an action inside the box as float32 holds it. The
        inverse is infinite at the bounds, so an action closer to one than 2^-24 of the half
        width is moved to that distance (|x| = 8.7).
        """
        x = value.x if isinstance(value, PreTanh) else self._unsquash(value)
        return self._base.log_prob(x) - self._log_slope(x).sum(-1)

    def entropy(self) -> Array:
        """H[x] + Σ_i E[log |da_i / dx_i|], by Gauss-Hermite quadrature, 32 nodes.

        Deterministic and differentiable; no closed form exists. The error in each
        dimension is below 1e-6 for a standard deviation of x up to 1, 2e-4 at 2, 3e-3
        at 3 and 0.03 at 5.
        """
        normal = self._base.distribution
        x = normal.loc[..., None, :] + normal.scale[..., None, :] * _NODES[:, None]
        slope = (_WEIGHTS[:, None] * self._log_slope(x)).sum((-2, -1))
        return self._base.entropy() + slope

    def mode(self) -> Array:
        """The image of the mean, which is the median: the usual greedy action."""
        return self.squash(PreTanh(self._base.mode()))

    def kl_divergence(self, other_dist: "TanhNormal", **kwargs) -> Array:
        """KL divergence of the two normals, unchanged by the bijection that they share."""
        return self._base.kl_divergence(other_dist._base, **kwargs)

    def _unsquash(self, action: Array) -> Array:
        """tanh⁻¹ u = ½ log(1 + 2 |u| / (1 - |u|)), with 1 - |u| from the nearer bound."""
        offset = action - self._centre
        nearer = jnp.minimum(action - self._low, self._high - action)
        nearer = jnp.maximum(nearer, 2.0**-24 * self._half_width)
        return 0.5 * jnp.sign(offset) * jnp.log1p(2.0 * jnp.abs(offset) / nearer)

    def _log_slope(self, x: Array) -> Array:
        """log |da / dx|, with log(1 - tanh(x)²) in a form that does not underflow."""
        log_sech2 = 2.0 * (np.log(2.0) - x - jax.nn.softplus(-2.0 * x))
        return log_sech2 + jnp.log(self._half_width)


FLOOR = 1e-6
"""Least variance of `state_dependent_tanh_normal`, as in SB3."""


def state_dependent_tanh_normal(
    mean: Array, features: Array, log_std: Array, low: Scalar, high: Scalar
) -> "StateDependentTanhNormal":
    """A `tanh_normal` whose noise is a random linear function of features.

    x = mean + θᵀ φ(s),    θ_ij ~ N(0, σ_ij²);    so x_j ~ N(mean_j, Σ_i φ_i(s)² σ_ij²)

    With one θ for several steps the noise of nearby states is similar; the distribution at
    each step is the same.

    Args:
      mean: `[..., D]` mean of x.
      features: `[..., F]` φ(s).
      log_std: `[F, D]` log σ.
      low: lower bound, a number or `[D]`.
      high: upper bound, a number or `[D]`.

    Returns:
      The distribution; actions are float32 `[..., D]`.

    Source: Raffin et al. (2021), https://arxiv.org/abs/2005.05719, equations 6 to 9.
    """
    return StateDependentTanhNormal(mean, features, log_std, low, high)


class StateDependentTanhNormal(TanhNormal):
    """Constructed by `state_dependent_tanh_normal`."""

    def __init__(
        self,
        mean: Array,
        features: Array,
        log_std: Array,
        low: Scalar,
        high: Scalar,
    ):
        self._features, self._weights = _float(features), jnp.exp(_float(log_std))
        variance = jnp.square(self._features) @ jnp.square(self._weights)
        base = diag_normal(mean, 0.5 * jnp.log(variance + FLOOR))
        super().__init__(base, low, high)

    def standard_noise(self, matrix: Array) -> Array:
        """The z `[..., D]` that `from_noise` makes θᵀ φ(s) of, with θ = σ · matrix.

        `matrix` `[..., F, D]` is standard normal.
        """
        noise = jnp.einsum("...f,...fd->...d", self._features, self._weights * matrix)
        return noise / self._base.distribution.scale
