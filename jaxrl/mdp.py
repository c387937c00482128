"""Finite Markov decision processes and their exact solutions.

An `MDP` is five arrays. The functions of this module compute on the host, in float64 and
without learning: V and Q of a policy, the optimal policy, and state visitation.
`jaxrl.envs.tabular.tabular_env` converts an MDP to an `Env`; `jaxrl.envs.lecture` has the
MDPs of textbooks.

S states, A actions, F features. A policy is an array `[S, A]` of probabilities. Source of
all equations: Sutton and Barto (2018), "Reinforcement Learning: An Introduction", 2nd
edition, abbreviated S&B.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxrl.errors import InvalidInput


class MDP(NamedTuple):
    """A finite MDP, float64 arrays; construct it with `finite_mdp`, which checks it."""

    transition: np.ndarray  # [S, A, S]: P(s' | s, a); terminal states are absorbing
    reward: np.ndarray  # [S, A, S]: r(s, a, s'); 0 from a terminal state
    terminal: np.ndarray  # bool [S]
    start: np.ndarray  # [S]: the distribution of s_0
    features: np.ndarray  # [S, F]: the observation in each state
    gamma: float  # the discount of the problem

    @property
    def num_states(self) -> int:
        return self.transition.shape[0]

    @property
    def num_actions(self) -> int:
        return self.transition.shape[1]


def finite_mdp(
    transition: Any,
    reward: Any,
    terminal: Any,
    start: Any,
    features: Any = None,
    gamma: float = 1.0,
) -> MDP:
    """Construct and check an `MDP` from values that broadcast to its arrays.

    Args:
      transition: `[S, A, S]` P(s' | s, a). Rows of terminal states are ignored.
      reward: `[S, A, S]` r(s, a, s'), or `[S, A]` r(s, a), or a number.
      terminal: bool `[S]`; all False for a continuing task.
      start: `[S]` probabilities of the initial state, or its index.
      features: `[S, F]` observations; None for one-hot features over the non-terminal
        states, `[S, number of those]`, which are zero in terminal states.
      gamma: the discount of the problem, 0 to 1.

    Raises:
      InvalidInput: a shape or a probability is wrong.
    """
    transition = np.array(transition, float)
    terminal = np.array(terminal, bool)
    if transition.ndim != 3 or transition.shape[::2] != 2 * terminal.shape:
        raise InvalidInput(
            f"transition has shape {transition.shape} and terminal {terminal.shape}: "
            "must be [S, A, S] and [S]."
        )
    num_states = len(terminal)
    transition[terminal] = np.eye(num_states)[terminal][:, None]
    _check_probabilities("transition[{0}, {1}]", transition)
    if np.ndim(start) == 0:
        start = np.eye(num_states)[start]
    start = np.array(start, float)
    if start.shape != (num_states,):
        raise InvalidInput(f"start has shape {start.shape}: must be ({num_states},).")
    _check_probabilities("start", start)
    if start[terminal].any():
        raise InvalidInput("start is a terminal state: must be a non-terminal one.")
    if not 0 <= gamma <= 1:
        raise InvalidInput(f"gamma = {gamma!r}: must be a number from 0 to 1.")
    if features is None:
        features = np.eye(num_states)[:, ~terminal]
    features = np.array(features, float)
    if features.ndim != 2 or len(features) != num_states:
        raise InvalidInput(
            f"features has shape {features.shape}: must be [{num_states}, F]."
        )
    return MDP(
        transition=transition,
        reward=_rewards(reward, terminal, transition.shape),
        terminal=terminal,
        start=start,
        features=features,
        gamma=float(gamma),
    )


def uniform_policy(mdp: MDP) -> np.ndarray:
    """The uniformly random policy: `[S, A]`."""
    return np.full((mdp.num_states, mdp.num_actions), 1 / mdp.num_actions)


def greedy_policy(q: np.ndarray) -> np.ndarray:
    """The greedy policy `[S, A]` of Q `[S, A]`; of equal actions the first is taken."""
    return np.eye(q.shape[1])[q.argmax(axis=1)]


def policy_evaluation(mdp: MDP, policy: np.ndarray, gamma: float) -> np.ndarray:
    """V of a policy, by solving the Bellman equation.

    V(s) = Σ_a π(a|s) Σ_s' P(s'|s, a) [r(s, a, s') + γ V(s')],    V = 0 where terminal

    Args:
      mdp: the problem.
      policy: `[S, A]` π(a|s).
      gamma: γ. 1 requires a proper policy, which terminates from every state.

    Returns:
      float64 `[S]`.

    Raises:
      InvalidInput: `policy` is not a policy, or it may never terminate and γ is 1.

    Source: S&B, section 4.1, equation 4.4.
    """
    chain, reward = _markov_chain(mdp, policy)
    _check_discount(gamma)
    if gamma == 1:
        _check_proper(mdp, chain)
    going = ~mdp.terminal
    value = np.zeros(mdp.num_states)
    system = np.eye(going.sum()) - gamma * chain[np.ix_(going, going)]
    value[going] = np.linalg.solve(system, reward[going])
    return value


def action_values(mdp: MDP, value: np.ndarray, gamma: float) -> np.ndarray:
    """Q from V by a one-step lookahead.

    Q(s, a) = Σ_s' P(s'|s, a) [r(s, a, s') + γ V(s')],    V = 0 where s' is terminal

    V of a policy gives Q of that policy; the optimal V gives the optimal Q.

    Args:
      mdp: the problem.
      value: `[S]` V.
      gamma: γ.

    Returns:
      float64 `[S, A]`, 0 in terminal states.

    Source: S&B, section 4.2, equation 4.6.
    """
    following = np.where(mdp.terminal, 0.0, value)
    return np.einsum("sat,sat->sa", mdp.transition, mdp.reward + gamma * following)


def value_iteration(
    mdp: MDP, gamma: float, tolerance: float = 1e-10, max_iterations: int = 100_000
) -> np.ndarray:
    """V of the optimal policy, by value iteration.

    V(s) ← max_a Σ_s' P(s'|s, a) [r(s, a, s') + γ V(s')],    from V = 0

    until no value changes by more than `tolerance`.

    Returns:
      float64 `[S]`; the optimal policy is `greedy_policy(action_values(mdp, V, gamma))`.

    Raises:
      InvalidInput: this takes more than `max_iterations`, for example if γ = 1 and rewards
        never end.

    Source: S&B, section 4.4, equation 4.10.
    """
    _check_discount(gamma)
    value = np.zeros(mdp.num_states)
    for _ in range(max_iterations):
        last, value = value, action_values(mdp, value, gamma).max(axis=1)
        if np.abs(value - last).max() <= tolerance:
            return value
    raise InvalidInput(
        f"gamma = {gamma!r}: value iteration has not converged after {max_iterations:,} "
        "iterations, lower gamma or raise max_iterations or tolerance."
    )


def policy_iteration(mdp: MDP, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """V of the optimal policy, and that policy, by policy iteration.

    π ← greedy with respect to Q_π, from the uniform policy, until nothing is better

    An action is replaced only by a better one, so equal actions do not alternate.

    Returns:
      (V `[S]`, policy `[S, A]`), float64.

    Raises:
      InvalidInput: γ = 1 and an intermediate policy may never terminate.

    Source: S&B, section 4.3.
    """
    policy = uniform_policy(mdp)
    while True:
        value = policy_evaluation(mdp, policy, gamma)
        q = action_values(mdp, value, gamma)
        margin = 1e-10 * max(1.0, np.abs(q).max())
        # A stochastic policy has a lower value than the best of its actions.
        optimal = (policy * q).sum(axis=1) >= q.max(axis=1) - margin
        if optimal.all():
            # It may still be stochastic where all its actions are equally good.
            return value, np.eye(mdp.num_actions)[policy.argmax(axis=1)]
        policy = np.where(optimal[:, None], policy, greedy_policy(q))


def expected_return(mdp: MDP, policy: np.ndarray, gamma: float) -> float:
    """Expected return of a policy `[S, A]`: J = Σ_s p(s_0 = s) V(s)."""
    return float(mdp.start @ policy_evaluation(mdp, policy, gamma))


def state_distribution(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """On-policy state distribution: the long-run share of time steps in each state.

    μ(s') = Σ_s μ(s) P_π(s'|s),    Σ_s μ(s) = 1

    where P_π is the chain with restarts at the end of an episode. For episodic tasks it is
    the on-policy distribution, for continuing tasks the stationary distribution.

    Args:
      mdp: the problem.
      policy: `[S, A]` π(a|s).

    Returns:
      float64 `[S]`, 0 in terminal states.

    Raises:
      InvalidInput: the chain has several recurrent classes, so the distribution is not
        unique.

    Source: S&B, section 9.2, the box on the on-policy distribution.
    """
    chain, _ = _markov_chain(mdp, policy)
    going = ~mdp.terminal
    ends = chain[:, mdp.terminal].sum(axis=1)
    restarted = (chain + np.outer(ends, mdp.start))[np.ix_(going, going)]
    size = len(restarted)
    system = np.vstack([restarted.T - np.eye(size), np.ones(size)])
    right = np.append(np.zeros(size), 1.0)
    share, _, rank, _ = np.linalg.lstsq(system, right, rcond=1e-12)
    if rank < size:
        raise InvalidInput(
            "policy: there are several sets of states that it never leaves, so the "
            "distribution is not unique; evaluate each set separately."
        )
    distribution = np.zeros(mdp.num_states)
    distribution[going] = np.maximum(share, 0.0) / np.maximum(share, 0.0).sum()
    return distribution


def discounted_visits(mdp: MDP, policy: np.ndarray, gamma: float) -> np.ndarray:
    """Discounted state visitation: the expected discounted number of visits per state.

    d(s) = Σ_t γ^t P(s_t = s),    d(s') = p(s_0 = s') + γ Σ_s d(s) P_π(s'|s)

    Args:
      mdp: the problem.
      policy: `[S, A]` π(a|s).
      gamma: γ. 1 requires a policy that terminates from every state.

    Returns:
      float64 `[S]`, 0 in terminal states; with γ = 1 the mean number of visits.

    Raises:
      InvalidInput: as `policy_evaluation`.

    Source: S&B, section 9.2, the box on the on-policy distribution, and section 13.2.
    """
    chain, _ = _markov_chain(mdp, policy)
    _check_discount(gamma)
    if gamma == 1:
        _check_proper(mdp, chain)
    going = ~mdp.terminal
    visits = np.zeros(mdp.num_states)
    system = np.eye(going.sum()) - gamma * chain[np.ix_(going, going)]
    visits[going] = np.linalg.solve(system.T, mdp.start[going])
    return visits


def interpolate(grid: np.ndarray, value: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Linear interpolation of values on a grid, as a function of a number.

    Args:
      grid: `[n]` increasing points.
      value: `[n]` values at these points.

    Returns:
      `x [...] -> [...]`; outside the grid the value at its nearest end.
    """
    return lambda x: np.interp(x, grid, value)


def _rewards(reward: Any, terminal: np.ndarray, shape: tuple) -> np.ndarray:
    reward = np.array(reward, float)
    if reward.ndim == 2:
        reward = reward[:, :, None]
    try:
        reward = np.broadcast_to(reward, shape).copy()
    except ValueError:
        raise InvalidInput(
            f"reward has shape {reward.shape}: must be {shape}, {shape[:2]} or a number."
        ) from None
    if not np.isfinite(reward).all():
        raise InvalidInput("reward is not finite: remove NaN and infinity.")
    reward[terminal] = 0.0
    return reward


def _markov_chain(mdp: MDP, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P_π `[S, S]` and the expected reward of a step from each state `[S]`."""
    policy = np.asarray(policy, float)
    if policy.shape != (mdp.num_states, mdp.num_actions):
        raise InvalidInput(
            f"policy has shape {policy.shape}: must be "
            f"{(mdp.num_states, mdp.num_actions)}, probabilities [S, A]."
        )
    _check_probabilities("policy[{0}]", policy)
    chain = (policy[:, None] @ mdp.transition)[:, 0]
    action_reward = np.einsum("sat,sat->sa", mdp.transition, mdp.reward)
    return chain, (policy * action_reward).sum(axis=1)


def _check_discount(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise InvalidInput(f"gamma = {gamma!r}: must be a number from 0 to 1.")


def _check_probabilities(name: str, p: np.ndarray) -> None:
    """Check that each row is a distribution; `name` is formatted with the index of the
    first that is not."""
    wrong = ~((p >= 0).all(axis=-1) & (np.abs(p.sum(axis=-1) - 1) < 1e-6))
    if wrong.any():
        place = np.argwhere(wrong)[0] if wrong.ndim else ()
        raise InvalidInput(
            f"{name.format(*place)} is not a distribution: must be numbers of at least 0 "
            "whose sum is 1."
        )


def _check_proper(mdp: MDP, chain: np.ndarray) -> None:
    """Check that a terminal state is reached with probability 1 from every state."""
    leads_to = chain > 0
    before, ends = np.zeros_like(mdp.terminal), mdp.terminal
    while (ends != before).any():
        before, ends = ends, ends | leads_to @ ends
    if not ends.all():
        raise InvalidInput(
            f"gamma = 1: this policy never terminates from state {int(np.argmin(ends))}, "
            "so it has no value; take gamma below 1, or a policy that terminates."
        )
