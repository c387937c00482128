"""Tabular and linear prediction: V of a policy by TD, Monte Carlo, and methods between.

Every function takes the weights `[F]` and the steps of one stream of experience, a
`Transition` of arrays `[T, ...]` whose `obs` are the features `[T, F]`, and returns the
updated weights. A stream may hold several episodes. Padding rows, which `episodes` appends
to short episodes, do not change the weights.

α is the step size, γ the discount, λ the mixing weight, each a number or a traced scalar.
Source: Sutton and Barto (2018), 2nd edition, S&B.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl.errors import InvalidInput
from jaxrl.estimators import (
    accumulating_trace,
    discounted_returns,
    first_episode_mask,
    lambda_returns,
    n_step_returns,
    td_error,
)
from jaxrl.rollout import Policy, init_world, unroll
from jaxrl.tabular.updates import Trace, linear, td_step
from jaxrl.types import Array, Env, Scalar, Transition

Update = Callable[[Array, Transition], Array]
"""`(weights, steps) -> weights`: a function below with its hyper-parameters bound."""


def td(
    weights: Array,
    steps: Transition,
    alpha: Scalar,
    gamma: Scalar,
    rho: Array | None = None,
) -> Array:
    """TD(0): after each step, update V(s) towards r + γ V(s').

    w ← w + α ρ δ x,    δ = r + γ wᵀx' - wᵀx

    Args:
      weights: `[F]` w.
      steps: experience `[T]`.
      alpha: α.
      gamma: γ.
      rho: `[T]` importance ratios ρ = π(a|s) / b(a|s) for steps of a behaviour policy b, to
        learn V of π; None for 1. Off-policy learning may diverge (S&B, section 11.2).

    Returns:
      `[F]`.

    Source: S&B, section 6.1, equation 6.2; off-policy, equation 11.2.
    """
    return td_lambda(weights, steps, alpha, gamma, 0.0, rho=rho)


def td_lambda(
    weights: Array,
    steps: Transition,
    alpha: Scalar,
    gamma: Scalar,
    lam: Scalar,
    trace: Trace = "accumulating",
    rho: Array | None = None,
) -> Array:
    """TD(λ), backward view: each TD error updates earlier states through the trace.

    δ_t = r_t + γ wᵀx_{t+1} - wᵀx_t;    then w and z by `td_step`

    λ = 0 is `td`. With λ = 1 it is an online Monte Carlo method.

    Args:
      weights: `[F]` w.
      steps: experience `[T]`.
      alpha: α.
      gamma: γ.
      lam: λ.
      trace: "accumulating", "replacing" (features of zeros and ones) or "true_online",
        which equals the online λ-return algorithm exactly.
      rho: `[T]` importance ratios, see `td`: z ← ρ (γλ z + x).

    Returns:
      `[F]`.

    Raises:
      InvalidInput: `rho` is given with another than the accumulating trace.

    Source: S&B, sections 12.2, 12.5 and 12.9.
    """
    if rho is None:
        rho = jnp.ones_like(steps.reward)
    elif trace != "accumulating":
        raise InvalidInput(
            f"trace = {trace!r}: importance ratios need trace = 'accumulating'."
        )

    def one_step(carry: tuple, row: tuple[Transition, Array]) -> tuple[tuple, None]:
        weights, z, old_value = carry
        step, ratio = row
        value = linear(weights, step.obs)
        next_value = linear(weights, step.next_obs)
        delta = td_error(step.reward, value, next_value, step.terminated, gamma)
        # ρ (γλ z + x) is a trace whose decay and gradient are multiplied by ρ.
        x, decay = ratio * step.obs, ratio * gamma * lam
        weights, z = td_step(
            trace, weights, z, x, delta, value, old_value, alpha, decay
        )
        continues = jnp.where(step.terminated | step.truncated, 0.0, 1.0)
        return (weights, z * continues, next_value * continues), None

    start = (weights, jnp.zeros_like(weights), jnp.zeros_like(weights[0]))
    return jax.lax.scan(one_step, start, (steps, rho))[0][0]


def monte_carlo(
    weights: Array, steps: Transition, alpha: Scalar, gamma: Scalar
) -> Array:
    """Every-visit Monte Carlo with a constant step size, TD(1): regression on returns.

    w ← w + α (G_t - wᵀx_t) x_t for t = 0, 1, ..., after the end of the episode

    Maps weights `[F]` to weights `[F]`, as all functions of this module.

    Source: S&B, equation 6.1; section 9.3, "Gradient Monte Carlo".
    """
    next_value = linear(weights, steps.next_obs)
    returns = discounted_returns(*_ends(steps), next_value, gamma)
    return _regress(weights, steps.obs, returns, alpha)


def lambda_return(
    weights: Array, steps: Transition, alpha: Scalar, gamma: Scalar, lam: Scalar
) -> Array:
    """TD(λ), forward view: regression on λ-returns after the end of the episode.

    w ← w + α (G^λ_t - wᵀx_t) x_t for t = 0, 1, ...

    with G^λ from `estimators.lambda_returns` and the weights `[F]` before the episode: the
    off-line λ-return algorithm.

    Source: S&B, section 12.1, equation 12.4, and figure 12.3.
    """
    next_value = linear(weights, steps.next_obs)
    returns = lambda_returns(*_ends(steps), next_value, gamma, lam)
    return _regress(weights, steps.obs, returns, alpha)


def n_step_td(
    weights: Array, steps: Transition, alpha: Scalar, gamma: Scalar, n: int
) -> Array:
    """n-step TD: update V(s_t) towards n rewards and V(s_{t+n}).

    w ← w + α (G_{t:t+n} - wᵀx_t) x_t,    G_{t:t+n} of `estimators.n_step_returns`

    The update of s_t is made as soon as s_{t+n} is known, with the weights `[F]` at that
    time, which are those after the update of s_{t-1}.

    Source: S&B, section 7.1, equation 7.2.
    """
    # A return is linear in its bootstrap values. So the same function gives the discounted
    # and masked features of the states it bootstraps from.
    rewards = n_step_returns(*_ends(steps), 0.0, gamma, n)
    ended, cut = (
        jnp.broadcast_to(x[:, None], steps.obs.shape) for x in _ends(steps)[1:]
    )
    no_reward = jnp.zeros_like(steps.obs)
    ahead = n_step_returns(no_reward, ended, cut, steps.next_obs, gamma, n)
    return _regress(weights, steps.obs, rewards, alpha, ahead)


def lstd(
    steps: Transition, gamma: Scalar, lam: Scalar = 0.0, ridge: Scalar = 0.0
) -> Array:
    """Least-squares TD(λ): the fixed point of TD(λ) on a set of steps.

    A w = b,    A = Σ_t z_t (x_t - γ x_{t+1})ᵀ,    b = Σ_t z_t r_t,    z = γλ z + x

    Args:
      steps: experience `[T]`, or `[E, T]`, whose rows of E are separate streams.
      gamma: γ.
      lam: λ.
      ridge: a constant added to the diagonal of A, for linearly dependent features.

    Returns:
      `[F]`; not finite where A is singular.

    Source: Boyan (2002), "Technical update: least-squares temporal difference learning";
    S&B, section 9.8.
    """

    def trace_of(z: Array, step: Transition) -> tuple[Array, Array]:
        z = accumulating_trace(z, step.obs, gamma * lam)
        return z * jnp.where(step.terminated | step.truncated, 0.0, 1.0), z

    def traces(stream: Transition) -> Array:
        return jax.lax.scan(trace_of, jnp.zeros_like(stream.obs[0]), stream)[1]

    z = (traces if steps.reward.ndim == 1 else jax.vmap(traces))(steps)
    following = jnp.where(steps.terminated[..., None], 0.0, steps.next_obs)
    change = steps.obs - gamma * following
    size = steps.obs.shape[-1]
    a = jnp.einsum("nf,ng->fg", z.reshape(-1, size), change.reshape(-1, size))
    b = jnp.einsum("nf,n->f", z.reshape(-1, size), steps.reward.reshape(-1))
    return jnp.linalg.solve(a + ridge * jnp.eye(size), b)


def episodes(
    env: Env, policy: Policy, key: Array, num_episodes: int, num_steps: int
) -> Transition:
    """Complete episodes as arrays `[E, T, ...]`, with short ones padded.

    A padding row has zero features and reward, and is terminal.

    Args:
      env: an environment whose observations are the features, `[F]`.
      policy: the policy that selects the actions, for example `uniform`.
      key: a random key.
      num_episodes: E.
      num_steps: T, at least the length of the longest episode; longer episodes are cut and
        marked as truncated.
    """
    world = init_world(env, key, num_episodes)
    _, steps, _ = unroll(env, policy, world, num_steps)
    done = steps.terminated | steps.truncated
    cut = ~done[-1] & first_episode_mask(done)[-1]
    steps = steps._replace(
        truncated=steps.truncated.at[-1].set(cut | steps.truncated[-1])
    )
    first = first_episode_mask(done)

    def pad(x: Array) -> Array:
        mask = first.reshape(first.shape + (1,) * (x.ndim - 2))
        return jnp.swapaxes(jnp.where(mask, x, jnp.zeros_like(x)), 0, 1)

    steps = jax.tree.map(pad, steps)
    return steps._replace(terminated=steps.terminated | ~first.T)


def uniform(env: Env) -> Policy:
    """The uniformly random policy over an environment's discrete actions, int32 `[]`."""

    def policy(obs: Array, memory: tuple, key: Array) -> tuple[Array, tuple, dict]:
        shape = obs.shape[:1]
        action = jax.random.randint(key, shape, 0, env.action_space.n)
        return action, memory, {}

    return policy


def after_each_episode(update: Update, weights: Array, steps: Transition) -> Array:
    """Weights `[E, F]` after each of the episodes `[E, T, ...]`, learnt in order."""

    def one_episode(weights: Array, episode: Transition) -> tuple[Array, Array]:
        weights = update(weights, episode)
        return weights, weights

    return jax.lax.scan(one_episode, weights, steps)[1]


def fixed_point_iteration(
    weights: Array, steps: Transition, alpha: Scalar, gamma: Scalar, interval: int
) -> Array:
    """TD(0) with a target network: V' is set to V after every k-th episode.

    w ← w + α (r + γ w'ᵀx' - wᵀx) x;    w' ← w after every k-th episode

    `td` is the special case of a target updated at every step.

    Args:
      weights: `[F]` w, and w' at first.
      steps: episodes `[E, T]`, learnt from in order.
      alpha: α.
      gamma: γ.
      interval: k, at least 1.

    Returns:
      `[E, F]`, the weights after each episode.

    Raises:
      InvalidInput: `interval` is below 1.

    Source: S&B, section 9.3, with a fixed target; Mnih et al. (2015), "Human-level control
    through deep reinforcement learning", for the periodic update.
    """
    if interval < 1:
        raise InvalidInput(f"interval = {interval!r}: must be at least 1 episode.")

    def one_episode(carry: tuple, row: tuple[Transition, Array]) -> tuple[tuple, Array]:
        weights, frozen = carry
        episode, number = row
        next_value = linear(frozen, episode.next_obs)
        target = lambda_returns(*_ends(episode), next_value, gamma, 0.0)
        weights = _regress(weights, episode.obs, target, alpha)
        frozen = jnp.where(number % interval == 0, weights, frozen)
        return (weights, frozen), weights

    numbers = jnp.arange(1, len(steps.reward) + 1)
    return jax.lax.scan(one_episode, (weights, weights), (steps, numbers))[1]


def rms_error(value: Array, exact: Array) -> Array:
    """Root mean squared error over states: `[...]` from `[..., S]` and `[S]`."""
    return jnp.sqrt(jnp.square(value - exact).mean(axis=-1))


def _ends(steps: Transition) -> tuple[Array, Array, Array]:
    return steps.reward, steps.terminated, steps.truncated


def _regress(
    weights: Array,
    features: Array,
    target: Array,
    alpha: Scalar,
    ahead: Array | None = None,
) -> Array:
    """w ← w + α (target_t + wᵀ ahead_t - wᵀx_t) x_t for t = 0, 1, ...; `ahead` `[T, F]`."""
    ahead = jnp.zeros_like(features) if ahead is None else ahead

    def one_step(weights: Array, row: tuple) -> tuple[Array, None]:
        x, goal, following = row
        error = goal + linear(weights, following) - linear(weights, x)
        return weights + alpha * error * x, None

    return jax.lax.scan(one_step, weights, (features, target, ahead))[0]
