"""Tabular and linear control: SARSA, Expected SARSA, Q-learning, REINFORCE.

An episode is a function of weights, `[A, F]` for Q(s, a) = w_aᵀ x(s), and a random key, and
returns the updated weights. Learning is online, between two steps of the environment.
Source: Sutton and Barto (2018), 2nd edition, S&B.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.core.config import check_value
from jaxrl.distributions import categorical
from jaxrl.errors import InvalidInput, did_you_mean
from jaxrl.estimators import discounted_returns, td_error
from jaxrl.exploration import epsilon_greedy, epsilon_greedy_value, epsilon_noise
from jaxrl.losses import policy_gradient
from jaxrl.rollout import init_world, step_world
from jaxrl.tabular.updates import Trace, linear, td_step
from jaxrl.types import Array, Env, Scalar, World

Target = Literal["sarsa", "expected_sarsa", "q_learning"]
TARGETS = ("sarsa", "expected_sarsa", "q_learning")


class Episode(NamedTuple):
    """Return and length of an episode."""

    episode_return: Array  # float32 [], undiscounted
    length: Array  # int32 [], steps


def identity_features(obs: Array) -> Array:
    """The observation itself as features `[F]`."""
    return obs


def sample_action(key: Array, q: Array, epsilon: Scalar) -> Array:
    """Sample an ε-greedy action `[]` from values `[A]`, with ties broken at random."""
    key_noise, key_tie = jax.random.split(key)
    num_actions = q.shape[-1]
    best = q >= q.max()
    ties = jnp.where(best, jax.random.uniform(key_tie, q.shape), -1.0)
    return epsilon_greedy(epsilon_noise(key_noise, (), num_actions), ties, epsilon)


class _Carry(NamedTuple):
    world: World
    weights: Array  # [A, F]
    trace: Array  # [A, F]
    old_q: Array  # Q(s, a) before the last update, when s was the successor
    action: Array
    stats: Episode
    done: Array


def td_control_episode(
    env: Env,
    weights: Array,
    key: Array,
    *,
    alpha: Scalar,
    epsilon: Scalar,
    gamma: Scalar = 1.0,
    target: Target = "sarsa",
    lam: Scalar = 0.0,
    trace: Trace = "accumulating",
    features: Callable[[Any], Array] = identity_features,
    max_steps: int = 100_000,
) -> tuple[Array, Episode]:
    """One episode of SARSA(λ), Expected SARSA(λ) or Watkins's Q(λ), ε-greedy.

    δ = r + γ q' - Q(s, a), then w and z by `updates.td_step`, where

        sarsa           q' = Q(s', a'), with the next action a'
        expected_sarsa  q' = Σ_a π(a|s') Q(s', a)
        q_learning      q' = max_a Q(s', a); the trace is cut where an action is not greedy

    SARSA selects a' before the update, the others after it, as in S&B.

    Args:
      env: an environment with discrete actions.
      weights: `[A, F]` w.
      key: a random key.
      alpha: the step size α.
      epsilon: ε.
      gamma: the discount γ.
      target: the definition of q'.
      lam: λ.
      trace: the kind of trace.
      features: `obs -> [F]`.
      max_steps: the maximum length of an episode.

    Returns:
      (weights, Episode).

    Raises:
      InvalidInput: `target` is unknown, or `max_steps` below 1.

    Source: S&B, sections 6.4 to 6.6, 12.7 and 12.10.
    """
    if target not in TARGETS:
        raise InvalidInput(
            f"target = {target!r}: must be one of {', '.join(TARGETS)}"
            f"{did_you_mean(str(target), TARGETS)}."
        )
    check_value("max_steps", int, max_steps, low=1)
    key_world, key_action = jax.random.split(key)
    world = init_world(env, key_world, 1)
    q = linear(weights, features(world.obs[0]))
    start = (world.env_state, world.obs)

    def step(carry: _Carry) -> _Carry:
        key, key_step, key_action = jax.random.split(carry.world.key, 3)
        policy = partial(_fixed_action, carry.action[None])
        world, taken = step_world(env, policy, carry.world, (), key_step[None], start)
        x, next_x = features(taken.obs[0]), features(taken.next_obs[0])
        q, next_q = linear(carry.weights, x), linear(carry.weights, next_x)
        on_policy = sample_action(key_action, next_q, epsilon)
        goal = _next_value(target, next_q, on_policy, epsilon)
        now = q[carry.action]
        delta = td_error(taken.reward[0], now, goal, taken.terminated[0], gamma)
        greedy = (now >= q.max()) | (target != "q_learning")
        gradient = jax.nn.one_hot(carry.action, len(q))[:, None] * x
        decay = gamma * lam * greedy
        weights, trace_ = td_step(
            trace, *carry[1:3], gradient, delta, now, carry.old_q, alpha, decay
        )
        later = sample_action(key_action, linear(weights, next_x), epsilon)
        stats = Episode(world.episode_return[0], world.episode_length[0])
        return _Carry(
            world.replace(key=key),
            weights,
            trace_,
            goal,
            on_policy if target == "sarsa" else later,
            stats,
            taken.terminated[0] | taken.truncated[0],
        )

    def continues(carry: _Carry) -> Array:
        return ~carry.done & (carry.stats.length < max_steps)

    carry = _Carry(
        world,
        weights,
        jnp.zeros_like(weights),
        jnp.zeros_like(q[0]),
        sample_action(key_action, q, epsilon),
        Episode(jnp.float32(0.0), jnp.int32(0)),
        jnp.bool_(False),
    )
    carry = jax.lax.while_loop(continues, step, carry)
    return carry.weights, carry.stats


def greedy_episode(
    env: Env,
    weights: Array,
    key: Array,
    *,
    features: Callable[[Any], Array] = identity_features,
    max_steps: int = 1_000,
) -> Episode:
    """One episode of the greedy policy of weights `[A, F]`, of at most `max_steps`."""
    return td_control_episode(
        env,
        weights,
        key,
        alpha=0.0,
        epsilon=0.0,
        features=features,
        max_steps=max_steps,
    )[1]


def reinforce_episode(
    env: Env,
    theta: Array,
    value_weights: Array,
    key: Array,
    *,
    alpha: Scalar,
    alpha_value: Scalar,
    gamma: Scalar = 1.0,
    baseline: bool = True,
    features: Callable[[Any], Array] = identity_features,
    max_steps: int = 1_000,
) -> tuple[Array, Array, Episode]:
    """One episode of REINFORCE with a softmax over linear preferences.

    π(a|s) ∝ exp(θ_aᵀ x(s));    δ = G_t - vᵀx_t, or G_t without a baseline
    v ← v + α_v δ x_t
    θ ← θ + α γ^t δ ∇log π(a_t|s_t)    for t = 0, 1, ... after the episode

    Args:
      env: an environment with discrete actions.
      theta: `[A, F]` θ.
      value_weights: `[F]` v; unchanged without a baseline.
      key: a random key.
      alpha: α.
      alpha_value: α_v.
      gamma: the discount γ.
      baseline: subtract V from the return.
      features: `obs -> [F]`.
      max_steps: the maximum length of an episode; longer ones learn from these steps.

    Returns:
      (θ, v, Episode).

    Source: S&B, sections 13.3 and 13.4, the two boxes "REINFORCE".
    """
    x, action, reward, stats = _softmax_episode(env, theta, key, features, max_steps)
    rows = jnp.arange(max_steps)
    ended = rows == stats.length - 1
    returns = discounted_returns(reward, ended, jnp.zeros_like(ended), 0.0, gamma)

    def objective(theta: Array, t: Array, weight: Array) -> Array:
        policy = categorical(linear(theta, x[t]))
        return -policy_gradient(policy.log_prob(action[t]), weight)

    def learn(carry: tuple) -> tuple:
        theta, v, t = carry
        delta = returns[t] - (linear(v, x[t]) if baseline else 0.0)
        if baseline:
            v = v + alpha_value * delta * x[t]
        theta = theta + alpha * jax.grad(objective)(theta, t, gamma**t * delta)
        return theta, v, t + 1

    theta, value_weights, _ = jax.lax.while_loop(
        lambda carry: carry[2] < stats.length, learn, (theta, value_weights, 0)
    )
    return theta, value_weights, stats


def _softmax_episode(
    env: Env, theta: Array, key: Array, features: Callable, max_steps: int
) -> tuple[Array, Array, Array, Episode]:
    """Features `[T, F]`, actions and rewards `[T]` of one episode, padded with zeros."""
    world = init_world(env, key, 1)
    start = (world.env_state, world.obs)
    size = theta.shape[1:]

    def step(carry: tuple) -> tuple:
        world, rows, t, done = carry
        key, key_step, key_action = jax.random.split(world.key, 3)
        x = features(world.obs[0])
        action = categorical(linear(theta, x)).sample(seed=key_action)
        policy = partial(_fixed_action, action[None])
        world, taken = step_world(env, policy, world, (), key_step[None], start)
        new = (x, action, taken.reward[0])
        rows = tuple(row.at[t].set(x) for row, x in zip(rows, new, strict=True))
        done = taken.terminated[0] | taken.truncated[0]
        return world.replace(key=key), rows, t + 1, done

    empty_rows = (
        jnp.zeros((max_steps, *size)),
        jnp.zeros(max_steps, jnp.int32),
        jnp.zeros(max_steps),
    )
    _, rows, length, _ = jax.lax.while_loop(
        lambda carry: ~carry[3] & (carry[2] < max_steps),
        step,
        (world, empty_rows, jnp.int32(0), jnp.bool_(False)),
    )
    return (*rows, Episode(rows[2].sum(), length))


def _fixed_action(action: Array, obs: Any, memory: Any, noise: Any) -> tuple:
    """Policy that takes an action selected beforehand."""
    del obs, noise
    return action, memory, {}


def _next_value(
    target: Target, next_q: Array, next_action: Array, epsilon: Scalar
) -> Array:
    """The bootstrap value q' of `td_control_episode`."""
    if target == "sarsa":
        return next_q[next_action]
    if target == "expected_sarsa":
        return epsilon_greedy_value(next_q, epsilon)
    return next_q.max()
