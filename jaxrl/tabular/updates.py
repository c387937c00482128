"""One step of linear TD(λ), for V and for Q."""

from typing import Literal

import jax.numpy as jnp

from jaxrl.estimators import accumulating_trace, dutch_trace, replacing_trace
from jaxrl.types import Array, Scalar

Trace = Literal["accumulating", "replacing", "true_online"]


def td_step(
    kind: Trace,
    weights: Array,
    trace: Array,
    features: Array,
    delta: Array,
    value: Array,
    old_value: Array,
    alpha: Scalar,
    decay: Scalar,
) -> tuple[Array, Array]:
    """Weights and trace after one TD error.

    accumulating, replacing:  w ← w + α δ z
    true online:              w ← w + α (δ + V - V_old) z - α (V - V_old) x

    where z is the trace with this step in it (`jaxrl.estimators`).

    Args:
      kind: the kind of trace.
      weights: `[...]` w.
      trace: `[...]` z of the step before; zeros at the start of an episode.
      features: `[...]` x, the gradient of V(s) or Q(s, a).
      delta: δ, from `td_error`.
      value: V = wᵀx.
      old_value: V_old, the value of the same state as the successor of the step before; 0
        at the start of an episode. Only the true online algorithm reads it.
      alpha: the step size α.
      decay: γλ.

    Source: Sutton and Barto (2018), equation 12.7; section 12.5, "True online TD(λ)".
    """
    if kind == "true_online":
        trace = dutch_trace(trace, features, decay, alpha)
        change = value - old_value
        step = (delta + change) * trace - change * features
        return weights + alpha * step, trace
    update = replacing_trace if kind == "replacing" else accumulating_trace
    trace = update(trace, features, decay)
    return weights + alpha * delta * trace, trace


def linear(weights: Array, features: Array) -> Array:
    """Linear value function wᵀ x: V `[...]`, or Q `[..., A]` if w is `[A, F]`.

    Source: Sutton and Barto (2018), equation 9.8.
    """
    return jnp.asarray(features, jnp.float32) @ weights.T
