"""Return and advantage estimators: rewards and values in, learning targets out.

Everything is time-major, `[T, N]` (any further batch axes may follow), and pure. Row t
of each argument belongs to the transition s_t -> s_{t+1}; `next_value` is V(s_{t+1}) of
the true successor, also where the episode ends. Two rules hold in every function:

* a target bootstraps from `next_value`, masked by `terminated` alone: the successor of a
  time limit still has a value (Pardo et al. 2018, https://arxiv.org/abs/1712.00378);
* a sum over time is cut by `terminated | truncated`, because the next row belongs to
  another episode.

So where the data end, at the last row or at a truncation, the value replaces the tail.
`gamma` and lambda may be numbers, traced scalars, or arrays of the rewards' rank.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxrl.core import parallel
from jaxrl.types import Array, PyTree, Scalar


def discounted_returns(
    reward: Array,
    terminated: Array,
    truncated: Array,
    next_value: Scalar,
    gamma: Scalar,
) -> Array:
    """Discounted return to the end of the episode or of the data.

    G_t = r_t + γ G_{t+1}       where the episode continues at t
    G_t = r_t + γ V(s_{t+1})    where it was truncated, and at the last row
    G_t = r_t                   where it terminated

    Args:
      reward: `[T, N]` r_t.
      terminated: bool `[T, N]`, whether s_{t+1} is terminal.
      truncated: bool `[T, N]`, whether the episode was cut after this step.
      next_value: `[T, N]` V(s_{t+1}), or 0.0 for plain Monte Carlo.
      gamma: the discount γ.

    Returns:
      float32 `[T, N]` G_t.

    Source: Sutton and Barto (2018), "Reinforcement Learning", section 3.3; with V, the
    return of Mnih et al. (2016), https://arxiv.org/abs/1602.01783, section 4.
    """
    offset, decay, bootstrap = _bootstrapped_step(
        reward, terminated, truncated, next_value, gamma
    )
    return _reverse_recurrence(offset, decay, bootstrap[-1])


def episode_returns(reward: Array, done: Array, gamma: Scalar) -> Array:
    """Discounted return of the first episode of each column.

    G_0 = Σ_k γ^k r_k, over the steps up to and including the first done

    Args:
      reward: `[T, N]` r_t.
      done: bool `[T, N]`, whether the episode ended with this step, for any reason.
      gamma: the discount γ.

    Returns:
      float32 `[N]` G_0. An episode that does not end within T steps counts up to there.

    Source: Sutton and Barto (2018), section 3.3, equation 3.11.
    """
    chex.assert_equal_shape([reward, done])
    reward = jnp.asarray(reward, jnp.float32)
    decay = gamma * jnp.where(done, 0.0, 1.0)
    return _reverse_recurrence(reward, decay, jnp.zeros_like(reward[0]))[0]


def first_episode_mask(done: Array) -> Array:
    """Mask of the steps of each column's first episode, including its last step.

    Args:
      done: bool `[T, N]`, whether the episode ended with this step, for any reason.

    Returns:
      bool `[T, N]`: True up to and including the first row where `done` holds.
    """
    done = jnp.asarray(done, jnp.int32)
    return jnp.cumsum(done, axis=0) - done == 0


def n_step_returns(
    reward: Array,
    terminated: Array,
    truncated: Array,
    next_value: Scalar,
    gamma: Scalar,
    n: int,
) -> Array:
    """Return of n steps, bootstrapped from the value n steps ahead.

    G_t = Σ_{k<m} γ^k r_{t+k} + γ^m V(s_{t+m}),    V = 0 where s_{t+m} is terminal

    with m = n, or fewer where the episode or the data end earlier.

    Args:
      reward: `[T, N]` r_t.
      terminated: bool `[T, N]`, whether s_{t+1} is terminal.
      truncated: bool `[T, N]`, whether the episode was cut after this step.
      next_value: `[T, N]` V(s_{t+1}), or 0.0.
      gamma: the discount γ.
      n: the number of rewards in a full-length return, a Python int of 1 or more.

    Returns:
      float32 `[T, N]` G_t.

    Source: Sutton and Barto (2018), section 7.1, equation 7.1.
    """
    chex.assert_scalar_positive(n)
    offset, decay, bootstrap = _bootstrapped_step(
        reward, terminated, truncated, next_value, gamma
    )
    last = bootstrap[-1:]

    def one_step_longer(_: int, returns: Array) -> Array:
        return offset + decay * jnp.concatenate([returns[1:], last])

    # Each pass adds one reward: the reward of a row and the shorter return one row below.
    # More than T passes change nothing, because every row then reaches the end.
    returns = offset + decay * bootstrap
    num_steps = min(n, reward.shape[0])
    return jax.lax.fori_loop(1, num_steps, one_step_longer, returns)


def lambda_returns(
    reward: Array,
    terminated: Array,
    truncated: Array,
    next_value: Scalar,
    gamma: Scalar,
    lam: Scalar,
) -> Array:
    """TD(λ) return: a geometrically weighted mean of all n-step returns.

    G_t = r_t + γ [(1 - λ) V(s_{t+1}) + λ G_{t+1}],    V = 0 where s_{t+1} is terminal

    with λ = 0 where the episode ends at t, and G_T = V(s_T) after the last row. λ = 0
    is the one-step target and λ = 1 is `discounted_returns`.

    Args:
      reward: `[T, N]` r_t.
      terminated: bool `[T, N]`, whether s_{t+1} is terminal.
      truncated: bool `[T, N]`, whether the episode was cut after this step.
      next_value: `[T, N]` V(s_{t+1}), or 0.0.
      gamma: the discount γ.
      lam: the mixing weight λ, 0 to 1.

    Returns:
      float32 `[T, N]` G_t.

    Source: Sutton and Barto (2018), section 12.1 (recursion of exercise 12.1).
    """
    chex.assert_equal_shape([reward, terminated, truncated])
    reward = jnp.asarray(reward, jnp.float32)
    bootstrap = _bootstrap(terminated, next_value)
    trace = lam * _continues(terminated, truncated)
    offset = reward + gamma * (1.0 - trace) * bootstrap
    return _reverse_recurrence(offset, gamma * trace, bootstrap[-1])


def td_error(
    reward: Array, value: Array, next_value: Scalar, terminated: Array, gamma: Scalar
) -> Array:
    """TD error of one step.

    δ = r + γ V(s') - V(s),    V(s') = 0 where s' is terminal

    With Q(s, a) for V(s) it is the error of SARSA (V(s') is then Q(s', a')), of Expected
    SARSA (Σ_a π(a|s') Q(s', a)) and of Q-learning (max_a Q(s', a)). With the true V its
    mean, given s and a, is the advantage Q(s, a) - V(s).

    Args:
      reward: `[...]` r.
      value: `[...]` V(s) or Q(s, a).
      next_value: `[...]` V(s') of the true successor or its substitute, or 0.0.
      terminated: bool `[...]`, whether s' is terminal. A time limit is not.
      gamma: the discount γ.

    Returns:
      float32 `[...]` δ.

    Source: Sutton and Barto (2018), equation 6.5; equations 6.7, 6.9 and 6.8 for the three
    algorithms; section 13.5 for the weight of the score.
    """
    chex.assert_equal_shape([reward, value, terminated])
    reward = jnp.asarray(reward, jnp.float32)
    return reward + gamma * _bootstrap(terminated, next_value) - value


def accumulating_trace(trace: Array, gradient: Array, decay: Scalar) -> Array:
    """Accumulating eligibility trace: z ← γλ z + ∇V(s).

    Args:
      trace: `[...]` z of the step before; zeros at the start of an episode.
      gradient: `[...]` ∇V(s), which is x(s) for a linear V.
      decay: γλ.

    Returns:
      `[...]` z.

    Source: Sutton and Barto (2018), equation 12.5.
    """
    return decay * trace + gradient


def replacing_trace(trace: Array, features: Array, decay: Scalar) -> Array:
    """Replacing eligibility trace, at most 1: z_i ← 1 where x_i = 1, else γλ z_i.

    Args:
      trace: `[...]` z of the step before; zeros at the start of an episode.
      features: `[...]` x(s), zeros and ones.
      decay: γλ.

    Returns:
      `[...]` z.

    Source: Singh and Sutton (1996), "Reinforcement learning with replacing eligibility
    traces", Machine Learning 22; Sutton and Barto (2018), equation 12.12.
    """
    return jnp.where(features == 0, decay * trace, features)


def dutch_trace(
    trace: Array, features: Array, decay: Scalar, step_size: Scalar
) -> Array:
    """Dutch trace of the true online algorithms: z ← γλ z + (1 - α γλ zᵀx) x.

    Args:
      trace: `[F]` z of the step before; zeros at the start of an episode.
      features: `[F]` x(s).
      decay: γλ.
      step_size: α.

    Returns:
      `[F]` z.

    Source: van Seijen and Sutton (2014), "True online TD(λ)"; Sutton and Barto (2018),
    equation 12.11.
    """
    overlap = (trace * features).sum()
    return decay * trace + (1.0 - step_size * decay * overlap) * features


def gae(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    gamma: Scalar,
    gae_lambda: Scalar,
) -> tuple[Array, Array]:
    """Generalised advantage estimation, with the corresponding value target.

    δ_t = r_t + γ V(s_{t+1}) - V(s_t),    V(s_{t+1}) = 0 where s_{t+1} is terminal
    A_t = δ_t + γ λ A_{t+1},              A_{t+1} = 0 where the episode ends at t

    Args:
      reward: `[T, N]` r_t.
      value: `[T, N]` V(s_t).
      next_value: `[T, N]` V(s_{t+1}).
      terminated: bool `[T, N]`, whether s_{t+1} is terminal.
      truncated: bool `[T, N]`, whether the episode was cut after this step.
      gamma: the discount γ.
      gae_lambda: λ, 0 for one-step TD, 1 for Monte Carlo less the baseline.

    Returns:
      (advantage, target), both float32 `[T, N]`: A_t, and A_t + V(s_t), which is the
      TD(λ) return of `lambda_returns`.

    Source: Schulman et al. (2016), https://arxiv.org/abs/1506.02438, section 3,
    equation 16.
    """
    chex.assert_equal_shape([reward, value, next_value, terminated, truncated])
    value = jnp.asarray(value, jnp.float32)
    delta = td_error(reward, value, next_value, terminated, gamma)
    decay = gamma * gae_lambda * _continues(terminated, truncated)
    advantage = _reverse_recurrence(delta, decay, jnp.zeros_like(delta[0]))
    return advantage, advantage + value


def action_value(q: Array, action: Array) -> Array:
    """Q-value of the action taken.

    A product with a one-hot vector, not an index, so its gradient is not a scatter.

    Args:
      q: `[..., A]` Q(s, ·).
      action: int32 `[...]` a.

    Returns:
      `[...]` Q(s, a).
    """
    return (q * jax.nn.one_hot(action, q.shape[-1])).sum(-1)


def expected_value(q: Array, probability: Array) -> Array:
    """State value from the action values and probabilities of a policy.

    V(s) = Σ_a π(a|s) Q(s, a)

    Args:
      q: `[..., A]` Q(s, ·), finite for illegal actions too.
      probability: `[..., A]` π(·|s).

    Returns:
      `[...]` V(s).

    Source: Sutton and Barto (2018), section 3.5, exercise 3.18.
    """
    chex.assert_equal_shape([q, probability])
    return jnp.sum(probability * q, axis=-1)


def soft_value(q: Array, log_prob: Array, temperature: Scalar) -> Array:
    """One sample of a state's value when entropy is rewarded too.

    V(s) = Q(s, a) - α log π(a|s),    a ~ π

    Args:
      q: `[...]` Q(s, a).
      log_prob: `[...]` log π(a|s).
      temperature: α, a scalar.

    Returns:
      `[...]` V.

    Source: Haarnoja et al. (2018), https://arxiv.org/abs/1812.05905, equation 3.
    """
    chex.assert_equal_shape([q, log_prob])
    return q - temperature * log_prob


def subset_minimum(q: Array, key: Array, size: int) -> Array:
    """The least of a random subset of an ensemble's estimates.

    min_{k in M} Q_k,    M of `size` of the K, drawn anew for the whole batch

    Args:
      q: `[K, ...]`.
      key: of the subset.
      size: M, from 1 to K.

    Returns:
      `[...]`.

    Source: Fujimoto et al. (2018), https://arxiv.org/abs/1802.09477, equation 10;
    Chen et al. (2021), https://arxiv.org/abs/2101.05982, algorithm 1, M = 2 of K = 10.
    """
    if size == len(q):
        return q.min(axis=0)
    chosen = jax.random.choice(key, len(q), (size,), replace=False)
    return q[chosen].min(axis=0)


def truncated_mixture(quantiles: Array, dropped: int) -> Array:
    """The quantiles of all critics together, without the largest.

    z_(1) <= ... <= z_(K M) of the K critics' M quantiles; what is kept are the first
    K (M - d), so overestimation is cut off where it is largest.

    Args:
      quantiles: `[K, ..., M]`.
      dropped: d, how many a critic, from 0 to M - 1.

    Returns:
      `[..., K (M - d)]`, in rising order.

    Source: Kuznetsov et al. (2020), https://arxiv.org/abs/2005.04269, equation 10.
    """
    num_critics, size = len(quantiles), quantiles.shape[-1]
    together = jnp.moveaxis(quantiles, 0, -2)
    together = together.reshape(*together.shape[:-2], num_critics * size)
    return jnp.sort(together, axis=-1)[..., : num_critics * (size - dropped)]


def categorical_atoms(v_min: Scalar, v_max: Scalar, num_atoms: int) -> Array:
    """The returns to which a categorical distribution gives probabilities.

    z_i = v_min + i Δ,    Δ = (v_max - v_min) / (N - 1)

    Args:
      v_min: the smallest, a scalar.
      v_max: the largest, a scalar.
      num_atoms: N, 2 or more.

    Returns:
      `[N]`.

    Source: Bellemare, Dabney and Munos (2017), https://arxiv.org/abs/1707.06887, section 4.
    """
    step = (v_max - v_min) / (num_atoms - 1)
    return v_min + step * jnp.arange(num_atoms, dtype=jnp.float32)


def project_categorical(
    probability: Array, value: Array, v_min: Scalar, v_max: Scalar, num_atoms: int
) -> Array:
    """A distribution over any values, moved to the atoms of `categorical_atoms`.

    m_i = Σ_j p_j max(0, 1 - |clip(y_j, v_min, v_max) - z_i| / Δ)

    Each value shares its probability between the two atoms beside it, the nearer one
    having more, so the mean of what lies within [v_min, v_max] is kept.

    Args:
      probability: `[..., M]` p_j.
      value: `[..., M]` y_j, in any order.
      v_min: the first atom, a scalar.
      v_max: the last atom, a scalar.
      num_atoms: N.

    Returns:
      `[..., N]` m.

    Source: Bellemare, Dabney and Munos (2017), https://arxiv.org/abs/1707.06887,
    equation 7.
    """
    chex.assert_equal_shape([probability, value])
    place = (value - v_min) * ((num_atoms - 1) / (v_max - v_min))
    place = jnp.clip(place, 0.0, num_atoms - 1.0)
    shape = (*value.shape[:-1], num_atoms, value.shape[-1])
    atom = jnp.broadcast_to(jnp.arange(num_atoms)[:, None], shape)
    share = jnp.maximum(0.0, 1.0 - jnp.abs(place[..., None, :] - atom))
    return (share * probability[..., None, :]).sum(-1)


def cvar_of_quantiles(quantiles: Array, fraction: Scalar) -> Array:
    """Conditional value at risk: the mean of the worst returns, from quantiles.

    CVaR_η = 1/η ∫_0^η F^-1(τ) dτ,    F^-1 constant on each of M intervals

    Args:
      quantiles: `[..., M]`, quantile m of level (m - 1/2) / M; taken in this order also
        where they cross.
      fraction: η, in (0, 1]; 1 is the mean.

    Returns:
      `[...]`.

    Source: Rockafellar and Uryasev (2000), "Optimization of conditional value-at-risk";
    for quantile networks Dabney et al. (2018), https://arxiv.org/abs/1806.06923,
    section 3.1.
    """
    size = quantiles.shape[-1]
    weight = jnp.clip(fraction * size - jnp.arange(size), 0.0, 1.0)
    weight = jnp.broadcast_to(weight, quantiles.shape)
    return (weight * quantiles).sum(-1) / (fraction * size)


def cvar_of_atoms(probability: Array, value: Array, fraction: Scalar) -> Array:
    """Conditional value at risk of a distribution over values in rising order.

    CVaR_η = 1/η Σ_i (min(F_i, η) - min(F_{i-1}, η)) z_i,    F_i = p_1 + ... + p_i

    Args:
      probability: `[..., N]` p.
      value: `[N]` z, rising.
      fraction: η, in (0, 1]; 1 is the mean.

    Returns:
      `[...]`.

    Source: Rockafellar and Uryasev (2000), "Optimization of conditional value-at-risk",
    for a distribution with atoms.
    """
    reached = jnp.minimum(jnp.cumsum(probability, axis=-1), fraction)
    before = jnp.concatenate([jnp.zeros_like(reached[..., :1]), reached[..., :-1]], -1)
    value = jnp.broadcast_to(value, probability.shape)
    return ((reached - before) * value).sum(-1) / fraction


def boltzmann_log_policy(
    q: Array, temperature: Scalar, mask: Array | None = None
) -> Array:
    """Logarithm of the policy that prefers an action exponentially by its value.

    log π(a|s) = Q(s, a) / τ - log Σ_b exp(Q(s, b) / τ)

    Args:
      q: `[..., A]` Q(s, ·).
      temperature: τ, above 0.
      mask: bool `[..., A]`, True for legal actions; None when all are.

    Returns:
      `[..., A]`, minus infinity where an action is illegal; where none is legal, as after
      the end of a game, all count as such.

    Source: Sutton and Barto (2018), section 13.1, equation 13.2; as the policy of
    Vieillard et al. (2020), https://arxiv.org/abs/2007.14430, section 2.
    """
    logits = q / temperature
    if mask is not None:
        mask = mask | ~mask.any(-1, keepdims=True)
        logits = jnp.where(mask, logits, -jnp.inf)
    return jax.nn.log_softmax(logits, axis=-1)


def policy_entropy(log_policy: Array) -> Array:
    """Entropy of a policy over discrete actions, in nats.

    H = -Σ_a π(a|s) log π(a|s),    0 log 0 = 0

    Args:
      log_policy: `[..., A]` log π(·|s), minus infinity where an action is illegal.

    Returns:
      `[...]` H.

    Source: Shannon (1948), "A mathematical theory of communication", section 6.
    """
    possible = jnp.isfinite(log_policy)
    finite = jnp.where(possible, log_policy, 0.0)
    return -jnp.where(possible, jnp.exp(finite) * finite, 0.0).sum(-1)


def munchausen_bonus(
    log_prob: Array, scale: Scalar, temperature: Scalar, lowest: Scalar
) -> Array:
    """What Munchausen adds to the reward: a clipped logarithm of the policy.

    α [τ log π(a|s)] clipped to [l_0, 0]

    Args:
      log_prob: `[...]` log π(a|s) of the action taken.
      scale: α.
      temperature: τ.
      lowest: l_0, at most 0.

    Returns:
      `[...]`, at most 0.

    Source: Vieillard, Pietquin and Geist (2020), https://arxiv.org/abs/2007.14430,
    equation 1 and section 4.
    """
    return scale * jnp.clip(temperature * log_prob, lowest, 0.0)


def return_until(reward: Array, ends: Array, gamma: Scalar) -> tuple[Array, Array]:
    """Discounted sum of at most n rewards, cut where an episode ends.

    R = r_0 + γ r_1 + ... + γ^(k-1) r_(k-1),    k = 1 + (the first step that ends), or n

    What follows is worth γ^k V(s_k), unless s_k is terminal.

    Args:
      reward: `[n, ...]`, in the order of time.
      ends: bool `[n, ...]`, whether nothing after this step belongs to the sum: the
        episode is terminated or truncated there, or no later step is known.
      gamma: γ.

    Returns:
      R `[...]`, and k int32 `[...]`.

    Source: Sutton and Barto (2018), equation 7.1; k as in Hessel et al. (2018),
    https://arxiv.org/abs/1710.02298, "Multi-step learning".
    """
    chex.assert_equal_shape([reward, ends])
    begun = jnp.cumsum(ends, axis=0) - ends == 0  # no earlier step has ended
    power = gamma ** jnp.arange(len(reward), dtype=jnp.float32)
    power = power.reshape(-1, *[1] * (reward.ndim - 1))
    return jnp.sum(jnp.where(begun, power * reward, 0.0), axis=0), begun.sum(axis=0)


def proportional_priority(td_error: Array, alpha: Scalar, eps: Scalar) -> Array:
    """How often a transition is to be replayed, by its temporal-difference error.

    p^α = (|δ| + ε)^α

    Args:
      td_error: `[...]` δ, or any measure of how much there is to learn.
      alpha: α, a scalar: 0 replays uniformly, 1 in proportion to the error.
      eps: ε, a scalar: what a transition without error keeps.

    Returns:
      `[...]` p^α.

    Source: Schaul et al. (2016), https://arxiv.org/abs/1511.05952, section 3.3.
    """
    return (jnp.abs(td_error) + eps) ** alpha


def importance_weights(probability: Array, beta: Scalar) -> Array:
    """Weights that undo what prioritised replay does to an expectation, at most 1.

    w_i = (N P(i))^-β / max_j (N P(j))^-β = (min_j P(j) / P(i))^β

    The number N of transitions stored cancels.

    Args:
      probability: `[..., B]` P, of the transitions of a batch; of several devices the
        batch is that of all together.
      beta: β, a scalar: 0 corrects nothing, 1 everything.

    Returns:
      `[..., B]` w; the largest of a batch is 1.

    Source: Schaul et al. (2016), https://arxiv.org/abs/1511.05952, section 3.4.
    """
    least = -parallel.largest(-probability.min(-1, keepdims=True))
    return (least / probability) ** beta


def optimal_baseline(weighted_score: Array, score: Array) -> Array:
    """The constant baseline that minimises the variance of a policy gradient.

    b* = E[S · W] / E[S · S],    S = Σ_t ∇log π(a_t|s_t),    W = Σ_t w_t ∇log π(a_t|s_t)

    minimises E ‖W - b S‖², and with it the variance, since E[S] = 0. If every step has
    the return as its weight, W = G_0 S, and b* is the mean return weighted by ‖S‖². If the
    gradient itself weights its terms, by γ^t say, the terms of S and W are weighted alike.

    Args:
      weighted_score: `[N, P]` W of N episodes.
      score: `[N, P]` S of the same episodes.

    Returns:
      float32 scalar b*; 0 where all scores are 0.

    Source: Greensmith, Bartlett and Baxter (2004), "Variance reduction techniques for
    gradient estimates in reinforcement learning", theorem 8.
    """
    chex.assert_equal_shape([weighted_score, score])
    along = parallel.total(jnp.sum(score * weighted_score))
    size = parallel.total(jnp.sum(jnp.square(score)))
    return along / jnp.where(size > 0.0, size, 1.0)


def successor_values(
    value_of: Callable[[PyTree, PyTree], Array],
    value: Array,
    next_obs: PyTree,
    memory: PyTree,
    truncated: Array,
) -> Array:
    """V(s_{t+1}), read from V(s_t) one row below wherever possible.

    Row t + 1 starts in the successor of row t, except at the end of an episode. Where the
    episode terminated the value is not used; where it was truncated, and after the last
    row, it is computed from the true successor. The loop makes as many passes as the
    column with the most truncations has, often none, so N values are computed, not T · N.

    Args:
      value_of: `(obs [N, ...], memory [N, ...]) -> V [N]`.
      value: `[T, N]` V(s_t).
      next_obs: `[T, N, ...]` s_{t+1}, the true successor.
      memory: `[T, N, ...]` a recurrent policy's memory after each step, or `()`.
      truncated: bool `[T, N]`, whether the episode was cut after this step.

    Returns:
      `[T, N]` V(s_{t+1}); arbitrary, but finite, where the episode terminated.

    Source: Pardo et al. (2018), https://arxiv.org/abs/1712.00378, for bootstrapping at a
    time limit.
    """
    num_steps, num_envs = value.shape
    time = jnp.arange(num_steps)[:, None]

    def one_truncation_each(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        next_value, left = carry
        row = jnp.argmax(left, axis=0)
        at_row = (row, jnp.arange(num_envs))
        cut = jax.tree.map(lambda x: x[at_row], (next_obs, memory))
        here = left & (time == row[None])
        return jnp.where(here, value_of(*cut)[None], next_value), left & ~here

    last = value_of(*jax.tree.map(lambda x: x[-1], (next_obs, memory)))
    next_value = jnp.concatenate([value[1:], last[None]])
    left = truncated & (time < num_steps - 1)
    return jax.lax.while_loop(
        lambda carry: carry[1].any(), one_truncation_each, (next_value, left)
    )[0]


def _bootstrapped_step(
    reward: Array,
    terminated: Array,
    truncated: Array,
    next_value: Scalar,
    gamma: Scalar,
) -> tuple[Array, Array, Array]:
    """One step of a return as `offset + decay * (return from s_{t+1})`, and V(s_{t+1}).

    Where the episode ends the decay is zero and the offset holds the bootstrap.
    """
    chex.assert_equal_shape([reward, terminated, truncated])
    reward = jnp.asarray(reward, jnp.float32)
    bootstrap = _bootstrap(terminated, next_value)
    offset = reward + gamma * jnp.where(truncated, bootstrap, 0.0)
    return offset, gamma * _continues(terminated, truncated), bootstrap


def _continues(terminated: Array, truncated: Array) -> Array:
    """1.0 where row t + 1 continues the episode of row t, else 0.0."""
    return jnp.where(jnp.logical_or(terminated, truncated), 0.0, 1.0)


def _bootstrap(terminated: Array, next_value: Scalar) -> Array:
    """V(s_{t+1}), 0 where s_{t+1} is terminal; a number applies to every step."""
    next_value = jnp.asarray(next_value, jnp.float32)
    if next_value.ndim:
        chex.assert_equal_shape([terminated, next_value])
    return jnp.where(terminated, 0.0, next_value)


def _reverse_recurrence(offset: Array, decay: Array, last: Array) -> Array:
    """x_t = offset_t + decay_t x_{t+1} for t = T-1 ... 0, with x_T = `last`.

    The loop body is one multiplication and one addition; everything that does not depend
    on the carry is computed for all rows at once.
    """

    def step(following: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        offset_t, decay_t = row
        x = offset_t + decay_t * following
        return x, x

    # A scalar decay, from gamma alone, still has to be broadcast or promoted.
    rows = (offset, jnp.broadcast_to(decay, offset.shape).astype(offset.dtype))
    return jax.lax.scan(step, last, rows, reverse=True)[1]
