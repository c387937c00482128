"""Finite Markov decision processes and their exact solutions.

An `MDP` is five arrays. What follows from them without learning is computed here, on the
host and in float64: V and Q of a policy, the best policy, how often states are visited.
`jaxrl.envs.tabular.tabular_env` makes an `Env` of one; `jaxrl.envs.lecture` has those of
the textbooks.

S states, A actions, F features. A policy is an array `[S, A]` of probabilities. Source of
all equations: Sutton and Barto (2018), "Reinforcement Learning: An Introduction", 2nd
edition, abbreviated S&B.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxrl.errors import InvalidInput


class MDP(NamedTuple):
    """A finite MDP, float64 arrays; build one with `finite_mdp`, which checks it."""

    transition: np.ndarray  # [S, A, S]: P(s' | s, a); a terminal state goes to itself
    reward: np.ndarray  # [S, A, S]: r(s, a, s'); 0 from a terminal state
    terminal: np.ndarray  # bool [S]
    start: np.ndarray  # [S]: the distribution of s_0
    features: np.ndarray  # [S, F]: what is observed in each state
    gamma: float  # the discount with which the problem is posed

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
    """An `MDP` from what broadcasts to its arrays.

    Args:
      transition: `[S, A, S]` P(s' | s, a). Rows of terminal states are ignored.
      reward: `[S, A, S]` r(s, a, s'), or `[S, A]` r(s, a), or a number.
      terminal: bool `[S]`; all False for a task that goes on for ever.
      start: `[S]` probabilities of the first state, or its number.
      features: `[S, F]` observations; None is one-hot over the states that are not
        terminal, `[S, number of those]`, and zeros in a terminal state.
      gamma: the discount with which the problem is posed, 0 to 1.

    Raises:
      InvalidInput: where a shape or a probability is wrong.
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
        raise InvalidInput("start is a terminal state: must be one that goes on.")
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
    """Every action equally often, in every state: `[S, A]`."""
    return np.full((mdp.num_states, mdp.num_actions), 1 / mdp.num_actions)


def greedy_policy(q: np.ndarray) -> np.ndarray:
    """The best action of each state, the first of several: `[S, A]` from Q `[S, A]`."""
    return np.eye(q.shape[1])[q.argmax(axis=1)]


def policy_evaluation(mdp: MDP, policy: np.ndarray, gamma: float) -> np.ndarray:
    """V of a policy, by solving Bellman's equation.

    V(s) = Σ_a π(a|s) Σ_s' P(s'|s, a) [r(s, a, s') + γ V(s')],    V = 0 where terminal

    Args:
      mdp: the problem.
      policy: `[S, A]` π(a|s).
      gamma: γ. 1 needs a proper policy: one that ends from every state.

    Returns:
      float64 `[S]`.

    Raises:
      InvalidInput: for γ = 1 and a policy that may never end, or no policy at all.

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
    """Q(s, a) of one step and then V.

    Q(s, a) = Σ_s' P(s'|s, a) [r(s, a, s') + γ V(s')],    V = 0 where s' is terminal

    With V of a policy it is that policy's Q; with the best V it is the best Q.

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
    """V of the best policy, by Bellman's optimality equation as an assignment.

    V(s) ← max_a Σ_s' P(s'|s, a) [r(s, a, s') + γ V(s')],    from V = 0

    until no value changes by more than `tolerance`.

    Returns:
      float64 `[S]`; the best policy is `greedy_policy(action_values(mdp, V, gamma))`.

    Raises:
      InvalidInput: if that takes more than `max_iterations`, as where γ = 1 and rewards
        can be had for ever.

    Source: S&B, section 4.4, equation 4.10.
    """
    _check_discount(gamma)
    value = np.zeros(mdp.num_states)
    for _ in range(max_iterations):
        last, value = value, action_values(mdp, value, gamma).max(axis=1)
        if np.abs(value - last).max() <= tolerance:
            return value
    raise InvalidInput(
        f"gamma = {gamma!r}: value iteration has not settled after {max_iterations:,} "
        "passes, lower gamma or raise max_iterations or tolerance."
    )


def policy_iteration(mdp: MDP, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """V of the best policy, and that policy, by turns of evaluation and improvement.

    π ← greedy with respect to Q_π, from the uniform policy, until nothing is better

    An action is replaced only by one that is better, so equal ones do not alternate.

    Returns:
      (V `[S]`, policy `[S, A]`), float64.

    Raises:
      InvalidInput: where γ = 1 and a policy on the way may never end.

    Source: S&B, section 4.3.
    """
    policy = uniform_policy(mdp)
    while True:
        value = policy_evaluation(mdp, policy, gamma)
        q = action_values(mdp, value, gamma)
        margin = 1e-10 * max(1.0, np.abs(q).max())
        # The value of a policy that mixes actions is below that of the best of them.
        kept = (policy * q).sum(axis=1) >= q.max(axis=1) - margin
        if kept.all():
            # Where all of them are equally good it may still be mixed.
            return value, np.eye(mdp.num_actions)[policy.argmax(axis=1)]
        policy = np.where(kept[:, None], policy, greedy_policy(q))


def expected_return(mdp: MDP, policy: np.ndarray, gamma: float) -> float:
    """J = Σ_s p(s_0 = s) V(s), the return that a policy `[S, A]` has on average."""
    return float(mdp.start @ policy_evaluation(mdp, policy, gamma))


def state_distribution(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """The share of time steps that begin in each state, in the long run.

    μ(s') = Σ_s μ(s) P_π(s'|s),    Σ_s μ(s) = 1

    where an episode that ends begins again: P_π is then the chain with restarts. So it is
    the on-policy distribution of episodes, and the stationary one of a task without end.

    Args:
      mdp: the problem.
      policy: `[S, A]` π(a|s).

    Returns:
      float64 `[S]`, 0 in terminal states.

    Raises:
      InvalidInput: where it depends on chance in which part of the states a run stays.

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
            "policy: there are several sets of states that it never leaves, so there is "
            "no one distribution; evaluate each part by itself."
        )
    distribution = np.zeros(mdp.num_states)
    distribution[going] = np.maximum(share, 0.0) / np.maximum(share, 0.0).sum()
    return distribution


def discounted_visits(mdp: MDP, policy: np.ndarray, gamma: float) -> np.ndarray:
    """How often an episode is in each state, later times counting less.

    d(s) = Σ_t γ^t P(s_t = s),    d(s') = p(s_0 = s') + γ Σ_s d(s) P_π(s'|s)

    Args:
      mdp: the problem.
      policy: `[S, A]` π(a|s).
      gamma: γ. 1 needs a policy that ends from every state.

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


def interpolated(grid: np.ndarray, value: np.ndarray) -> Callable[[Any], np.ndarray]:
    """A function of a number, linear between the values at the points of a grid.

    Args:
      grid: `[n]` rising points.
      value: `[n]` values there.

    Returns:
      `x [...] -> [...]`; beyond the grid the value at its nearest end.
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
    """P_π `[S, S]` and the mean reward of a step from each state `[S]`."""
    policy = np.asarray(policy, float)
    if policy.shape != (mdp.num_states, mdp.num_actions):
        raise InvalidInput(
            f"policy has shape {policy.shape}: must be "
            f"{(mdp.num_states, mdp.num_actions)}, probabilities [S, A]."
        )
    _check_probabilities("policy[{0}]", policy)
    chain = (policy[:, None] @ mdp.transition)[:, 0]
    of_action = np.einsum("sat,sat->sa", mdp.transition, mdp.reward)
    return chain, (policy * of_action).sum(axis=1)


def _check_discount(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise InvalidInput(f"gamma = {gamma!r}: must be a number from 0 to 1.")


def _check_probabilities(name: str, p: np.ndarray) -> None:
    """Each row must be a distribution; `name` is formatted with the place of the first
    that is none."""
    wrong = ~((p >= 0).all(axis=-1) & (np.abs(p.sum(axis=-1) - 1) < 1e-6))
    if wrong.any():
        place = np.argwhere(wrong)[0] if wrong.ndim else ()
        raise InvalidInput(
            f"{name.format(*place)} is no distribution: must be numbers of at least 0 "
            "whose sum is 1."
        )


def _check_proper(mdp: MDP, chain: np.ndarray) -> None:
    """Whether the end is reached with probability 1 from every state."""
    leads_to = chain > 0
    before, ends = np.zeros_like(mdp.terminal), mdp.terminal
    while (ends != before).any():
        before, ends = ends, ends | leads_to @ ends
    if not ends.all():
        raise InvalidInput(
            f"gamma = 1: this policy never ends from state {int(np.argmin(ends))}, so it "
            "has no value; take gamma below 1, or a policy that ends."
        )
