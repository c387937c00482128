"""Estimators: hand numbers, a float64 loop over the definition, and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl import estimators

T, N = 7, 3
GOES_ON, TERMINATED, TRUNCATED = 0, 1, 2

discounted_returns = jax.jit(estimators.discounted_returns)
n_step_returns = jax.jit(estimators.n_step_returns, static_argnames="n")
lambda_returns = jax.jit(estimators.lambda_returns)
gae = jax.jit(estimators.gae)
episode_returns = jax.jit(estimators.episode_returns)


@pytest.fixture(autouse=True, scope="module")
def no_silent_broadcast():
    with jax.numpy_rank_promotion("raise"):
        yield


def numbers(shape=(T, N)):
    return hnp.arrays(np.float32, shape, elements=st.floats(-10, 10, width=32))


def unit():
    return st.floats(0, 1, width=32)


rollouts = st.fixed_dictionaries(
    {
        "reward": numbers(),
        "value": numbers(),
        "next_value": numbers(),
        "end": hnp.arrays(np.int8, (T, N), elements=st.integers(0, 2)),
        "gamma": unit(),
        "lam": unit(),
    }
)
property_test = settings(max_examples=25, deadline=None)


def flags(end):
    return end == TERMINATED, end == TRUNCATED


def n_step_by_definition(reward, end, next_value, gamma, n):
    """Walk forward from each step, adding discounted rewards, until something ends."""
    returns = np.zeros(reward.shape, np.float64)
    for column in range(reward.shape[1]):
        for t in range(len(reward)):
            discount = 1.0
            for k in range(t, len(reward)):
                returns[t, column] += discount * reward[k, column]
                discount *= gamma
                if end[k, column] == TERMINATED:
                    break
                window_is_full = k + 1 == min(t + n, len(reward))
                if window_is_full or end[k, column] == TRUNCATED:
                    returns[t, column] += discount * next_value[k, column]
                    break
    return returns


def steps_to_end(end):
    """Number of rewards in the longest return of each step."""
    count = np.ones(end.shape, int)
    for t in range(len(end) - 2, -1, -1):
        count[t] += np.where(end[t] == GOES_ON, count[t + 1], 0)
    return count


def lambda_by_definition(reward, end, next_value, gamma, lam):
    """(1 - λ) Σ_n λ^{n-1} G^(n), the longest return taking the remaining weight."""
    longest = steps_to_end(end)
    returns = np.zeros(reward.shape, np.float64)
    for n in range(1, len(reward) + 1):
        n_step = n_step_by_definition(reward, end, next_value, gamma, n)
        mixed = (1 - lam) * lam ** (n - 1) * n_step
        returns += np.where(n < longest, mixed, 0.0)
        returns += np.where(n == longest, lam ** (n - 1) * n_step, 0.0)
    return returns


def gae_by_definition(reward, value, next_value, end, gamma, lam):
    """Σ_l (γλ)^l δ_{t+l}, up to the end of the episode."""
    bootstrap = np.where(end == TERMINATED, 0.0, next_value)
    delta = np.float64(reward) + gamma * bootstrap - value
    longest = steps_to_end(end)
    advantage = np.zeros(reward.shape, np.float64)
    for t in range(len(reward)):
        for step in range(len(reward) - t):
            inside = step < longest[t]
            advantage[t] += np.where(inside, (gamma * lam) ** step * delta[t + step], 0)
    return advantage


def assert_close(actual, desired, atol=2e-4):
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=atol)


def column(*numbers):
    return jnp.array(numbers, jnp.float32)[:, None]


# Rewards 1, 2, 3 and discount 1/2; the three ways to stop after the second step.
HAND = [
    (GOES_ON, [1 + 0.5 * (2 + 0.5 * (3 + 0.5 * 30)), 2 + 0.5 * (3 + 0.5 * 30), 18.0]),
    (TERMINATED, [1 + 0.5 * 2, 2.0, 18.0]),
    (TRUNCATED, [1 + 0.5 * (2 + 0.5 * 20), 2 + 0.5 * 20, 18.0]),
]


@pytest.mark.parametrize("end, expected", HAND)
def test_discounted_returns_hand_numbers(end, expected):
    terminated, truncated = flags(jnp.array([[GOES_ON], [end], [GOES_ON]]))
    returns = discounted_returns(
        column(1, 2, 3), terminated, truncated, column(10, 20, 30), 0.5
    )
    assert_close(returns, np.array(expected)[:, None], atol=1e-6)


def test_two_step_returns_hand_numbers():
    nothing = jnp.zeros((3, 1), bool)
    returns = n_step_returns(
        column(1, 2, 3), nothing, nothing, column(10, 20, 30), 0.5, n=2
    )
    # 1 + 2/2 + 20/4; 2 + 3/2 + 30/4; the last row has one step left: 3 + 30/2.
    assert_close(returns, np.array([[7.0], [11.0], [18.0]]), atol=1e-6)


def test_lambda_returns_hand_numbers():
    nothing = jnp.zeros((2, 1), bool)
    returns = lambda_returns(column(1, 2), nothing, nothing, column(10, 20), 0.5, 0.25)
    # Last row: 2 + 20/2 = 12. First: 1 + (3/4 * 10 + 1/4 * 12) / 2 = 6.25.
    assert_close(returns, np.array([[6.25], [12.0]]), atol=1e-6)


def test_gae_hand_numbers():
    nothing = jnp.zeros((2, 1), bool)
    advantage, target = gae(
        column(1, 2), column(4, 8), column(8, 16), nothing, nothing, 0.5, 0.5
    )
    # δ = [1 + 4 - 4, 2 + 8 - 8] = [1, 2]; A = [1 + 2/4, 2].
    assert_close(advantage, np.array([[1.5], [2.0]]), atol=1e-6)
    assert_close(target, np.array([[5.5], [10.0]]), atol=1e-6)


def test_first_episode_hand_numbers():
    done = jnp.array([[0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 0, 0]], bool)
    reward = jnp.array([[1.0, 1, 1], [2, 2, 2], [4, 4, 4], [8, 8, 8]])
    # Ends at the second step, never, at the first.
    expected = [1 + 2 / 2, 1 + 2 / 2 + 4 / 4 + 8 / 8, 1.0]
    assert_close(episode_returns(reward, done, 0.5), np.array(expected), atol=1e-6)
    mask = estimators.first_episode_mask(done)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 1, 0]])


@property_test
@given(rollouts, st.sampled_from([1, 3, T, T + 5]))
def test_returns_equal_their_definition(rollout, n):
    reward, end, next_value = rollout["reward"], rollout["end"], rollout["next_value"]
    gamma, lam = rollout["gamma"], rollout["lam"]
    data = (reward, *flags(end), next_value, gamma)
    assert_close(
        n_step_returns(*data, n=n),
        n_step_by_definition(reward, end, next_value, gamma, n),
    )
    assert_close(
        discounted_returns(*data),
        n_step_by_definition(reward, end, next_value, gamma, T),
    )
    assert_close(
        lambda_returns(*data, lam),
        lambda_by_definition(reward, end, next_value, gamma, lam),
    )


@property_test
@given(rollouts)
def test_gae_equals_its_definition(rollout):
    reward, value, next_value = (rollout[k] for k in ("reward", "value", "next_value"))
    end, gamma, lam = rollout["end"], rollout["gamma"], rollout["lam"]
    advantage, target = gae(reward, value, next_value, *flags(end), gamma, lam)
    expected = gae_by_definition(reward, value, next_value, end, gamma, lam)
    assert_close(advantage, expected)
    assert_close(target, expected + value)


@property_test
@given(rollouts)
def test_identities(rollout):
    reward, next_value = rollout["reward"], rollout["next_value"]
    value = rollout["value"].copy()
    terminated, truncated = flags(rollout["end"])
    gamma, lam = rollout["gamma"], rollout["lam"]
    data = (reward, terminated, truncated, next_value, gamma)
    to_the_end = discounted_returns(*data)
    one_step = reward + gamma * np.where(terminated, 0.0, next_value)
    assert_close(lambda_returns(*data, 1.0), to_the_end)
    assert_close(lambda_returns(*data, 0.0), one_step)
    assert_close(n_step_returns(*data, n=T), to_the_end)
    assert_close(n_step_returns(*data, n=1), one_step)

    # A value is a function of the state: V(s_{t+1}) is the next row's V(s_t).
    same_state = (rollout["end"] == GOES_ON)[:-1]
    value[1:] = np.where(same_state, next_value[:-1], value[1:])

    def target(gae_lambda):
        values = (reward, value, next_value, terminated, truncated)
        return gae(*values, gamma, gae_lambda)[1]

    assert_close(target(1.0), to_the_end)
    assert_close(target(0.0), one_step)
    assert_close(target(lam), lambda_returns(*data, lam))


@property_test
@given(rollouts)
def test_episode_returns_equal_their_definition(rollout):
    reward, gamma, done = rollout["reward"], rollout["gamma"], rollout["end"] != GOES_ON
    mask = np.array(estimators.first_episode_mask(done))
    powers = np.float64(gamma) ** np.arange(T)[:, None]
    expected = (powers * reward * mask).sum(0)
    assert_close(episode_returns(reward, done, gamma), expected)
    for env in range(N):
        first = np.flatnonzero(done[:, env])[:1]
        length = first[0] + 1 if first.size else T
        np.testing.assert_array_equal(mask[:, env], np.arange(T) < length)


def test_a_time_limit_does_not_change_the_value():
    # Reward 1 for ever is worth 1 / (1 - 0.9) = 10, however often the task is cut.
    reward = jnp.ones((23, 2))
    terminated = jnp.zeros((23, 2), bool)
    truncated = jnp.zeros((23, 2), bool).at[4::5].set(True)
    value = jnp.full((23, 2), 10.0)
    data = (reward, terminated, truncated, value, 0.9)
    assert_close(discounted_returns(*data), value, atol=1e-5)
    assert_close(n_step_returns(*data, n=3), value, atol=1e-5)
    assert_close(lambda_returns(*data, 0.95), value, atol=1e-5)
    advantage, target = gae(reward, value, value, terminated, truncated, 0.9, 0.95)
    assert_close(advantage, 0.0 * value, atol=1e-5)
    assert_close(target, value, atol=1e-5)
    # Called a death, the same cut is worth less: the flag makes the difference.
    assert discounted_returns(reward, truncated, terminated, value, 0.9)[4, 0] == 1.0


def test_the_value_of_a_terminal_state_is_never_read():
    reward, terminated = jnp.ones((4, 1)), jnp.array([[0], [1], [0], [1]], bool)
    truncated = jnp.zeros((4, 1), bool)
    next_value = jnp.where(terminated, jnp.nan, 0.0)
    data = (reward, terminated, truncated, next_value, 0.5)
    expected = [[1.5], [1.0], [1.5], [1.0]]
    assert_close(discounted_returns(*data), expected)
    assert_close(n_step_returns(*data, n=2), expected)
    assert_close(lambda_returns(*data, 1.0), expected)
    values = (reward, jnp.zeros((4, 1)), next_value)
    assert_close(gae(*values, terminated, truncated, 0.5, 1.0)[1], expected)


def test_nothing_flows_from_one_episode_to_the_one_before():
    end = np.array([[GOES_ON, GOES_ON], [TERMINATED, TRUNCATED], [GOES_ON, GOES_ON]])

    def before(reward_after):
        reward = jnp.ones((3, 2)).at[2].set(reward_after)
        zeros = jnp.zeros((3, 2))
        data = (reward, *flags(jnp.array(end)))
        return jnp.stack(
            [
                discounted_returns(*data, zeros, 0.9)[:2],
                n_step_returns(*data, zeros, 0.9, n=3)[:2],
                lambda_returns(*data, zeros, 0.9, 0.9)[:2],
                gae(reward, zeros, zeros, *data[1:], 0.9, 0.9)[0][:2],
            ]
        )

    np.testing.assert_array_equal(before(0.0), before(1e6))


def test_zero_next_value_is_monte_carlo():
    reward = jnp.ones((3, 2))
    nothing = jnp.zeros((3, 2), bool)
    returns = discounted_returns(reward, nothing, nothing, 0.0, 0.5)
    assert_close(returns, np.array([[1.75] * 2, [1.5] * 2, [1.0] * 2]))


def test_further_batch_axes_and_swept_discounts():
    key_reward, key_value, key_end = jax.random.split(jax.random.key(0), 3)
    reward = jax.random.normal(key_reward, (T, N, 2))
    value = jax.random.normal(key_value, (T, N, 2))
    end = jax.random.randint(key_end, (T, N, 2), 0, 3)
    gammas = jnp.array([0.0, 0.5, 0.99])

    def targets(gamma, reward, value, end):
        return gae(reward, value, value, *flags(end), gamma, 0.9)[1]

    swept = jax.vmap(targets, (0, None, None, None))(gammas, reward, value, end)
    for i, gamma in enumerate(gammas):
        for j in range(2):
            alone = targets(gamma, reward[..., j], value[..., j], end[..., j])
            assert_close(swept[i, ..., j], alone, atol=1e-6)
    # A discount for each step, as an array of the rewards' rank.
    by_step = targets(jnp.full((T, N, 2), 0.5), reward, value, end)
    assert_close(by_step, swept[1], atol=1e-6)


def test_the_loop_body_is_two_operations():
    data = (jnp.ones((T, N)), jnp.zeros((T, N), bool), jnp.zeros((T, N), bool))
    jaxpr = jax.make_jaxpr(estimators.lambda_returns)(*data, data[0], 0.9, 0.9)
    scans = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert len(scans) == 1
    body = [e.primitive.name for e in scans[0].params["jaxpr"].jaxpr.eqns]
    assert sorted(body) == ["add", "mul"]


@jax.jit
def successor_values_and_all_of_them(obs, next_obs, memory, truncated):
    def value_of(obs, memory):
        features = jnp.concatenate([obs["x"], memory], -1)
        return jnp.sin(3.0 * features).sum(-1) + obs["y"]

    # V(s_t) is of the memory after step t, as the rollout gives it.
    value = value_of(obs, memory["before"])
    found = estimators.successor_values(
        value_of, value, next_obs, memory["after"], truncated
    )
    return found, value_of(next_obs, memory["after"])


def fake_rollout(rng, end):
    """States and memories `[T, N]` in which row t + 1 starts where row t ended, unless an
    episode did."""

    def chain(*shape):
        before, after = rng.normal(size=(2, T, N, *shape)).astype(np.float32)
        goes_on = (end == GOES_ON)[:-1].reshape(T - 1, N, *[1 for _ in shape])
        before[1:] = np.where(goes_on, after[:-1], before[1:])
        return before, after

    (x, next_x), (y, next_y), memory = chain(2), chain(), chain(3)
    # V(s_{t+1}) is computed from next_obs and the memory *before* that step: m_{t+1}.
    return (
        {"x": x, "y": y},
        {"x": next_x, "y": next_y},
        {"before": memory[0], "after": memory[1]},
    )


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_successor_values_are_those_of_the_true_successors(cut, seed):
    rng = np.random.default_rng(seed)
    probs = [1 - cut, 0, cut] if cut in (0, 1) else [0.8 - cut, 0.2, cut]
    end = rng.choice([GOES_ON, TERMINATED, TRUNCATED], (T, N), p=probs)
    terminated, truncated = flags(end)
    assert cut < 0.5 or (truncated[:-1].sum(0) >= 2).all()  # several in a column
    found, expected = successor_values_and_all_of_them(
        *fake_rollout(rng, end), truncated
    )
    np.testing.assert_allclose(found[~terminated], expected[~terminated], atol=1e-5)
    assert np.isfinite(found).all()
    # The last row, where everything stops, is of the successor though it goes on.
    if terminated.any():
        assert not np.allclose(found, expected)


def test_successor_values_evaluates_no_more_than_it_must():
    calls = []

    def value_of(obs, memory):
        jax.debug.callback(lambda: calls.append(len(obs)))
        return obs[:, 0]

    def count(truncated):
        calls.clear()
        estimators.successor_values(
            value_of, jnp.zeros((T, N)), jnp.zeros((T, N, 1)), (), truncated
        ).block_until_ready()
        jax.effects_barrier()
        return len(calls)

    nothing = jnp.zeros((T, N), bool)
    assert count(nothing) == 1
    assert count(nothing.at[-1].set(True)) == 1
    # Two in one column and one in another: two passes.
    assert count(nothing.at[jnp.array([1, 4]), 0].set(True).at[2, 1].set(True)) == 3


def test_shapes_must_agree_and_n_must_be_positive():
    reward, flag = jnp.ones((T, N)), jnp.zeros((T, N), bool)
    with pytest.raises(AssertionError):
        estimators.n_step_returns(reward, flag, flag, reward, 0.9, n=0)
    with pytest.raises(AssertionError):
        estimators.discounted_returns(reward, flag, flag[:, :1], reward, 0.9)
    with pytest.raises(AssertionError):
        estimators.discounted_returns(reward, flag, flag, reward[0], 0.9)
    with pytest.raises(AssertionError):
        estimators.gae(reward, reward[:-1], reward, flag, flag, 0.9, 0.9)


def random_trajectories(number, seed, length=64):
    """`[T, number]`: values and rewards of every size, episodes of every length."""
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-3, 3, number)
    rate = 10.0 ** rng.uniform(-3, 0, number)
    ends = rng.random((length, number)) < rate
    kinds = rng.integers(TERMINATED, TRUNCATED + 1, (length, number))
    reward, value, next_value = (
        (size * rng.normal(size=(length, number))).astype(np.float32) for _ in range(3)
    )
    return reward, value, next_value, np.where(ends, kinds, GOES_ON).astype(np.int8)


def backwards(reward, end, successor, weight):
    """x_t = reward_t + successor_t + weight · x_{t+1}, in float64, cut at every end."""
    total, rows = np.zeros(reward.shape[1]), []
    for t in reversed(range(len(reward))):
        total = (
            reward[t] + successor[t] + weight * np.where(end[t] == GOES_ON, total, 0)
        )
        rows.append(total)
    return np.stack(rows[::-1])


@pytest.mark.parametrize("gamma, lam", [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_10_000_random_trajectories(gamma, lam):
    """Errors are relative to the largest number of each trajectory."""
    reward, value, next_value, end = random_trajectories(10_000, seed=int(100 * gamma))
    bootstrap = np.where(end == TERMINATED, 0.0, np.float64(next_value))
    terminated, truncated = flags(end)

    delta = np.float64(reward) + gamma * bootstrap - value
    expected_gae = backwards(delta, end, np.zeros_like(delta), gamma * lam)
    # The last step of a rollout and of an episode takes all of its successor's value.
    last = (end != GOES_ON) | (np.arange(len(end)) == len(end) - 1)[:, None]
    share = np.where(last, 1.0, 1 - lam)
    expected_lambda = backwards(
        np.float64(reward), end, gamma * share * bootstrap, gamma * lam
    )
    expected_5 = n_step_in_columns(np.float64(reward), end, bootstrap, gamma, 5)
    flags_and_next = (terminated, truncated, next_value, gamma)
    advantage, _ = gae(reward, value, next_value, terminated, truncated, gamma, lam)
    largest = np.abs([reward, value, next_value]).max((0, 1))
    for found, expected in (
        (advantage, expected_gae),
        (lambda_returns(reward, *flags_and_next, lam), expected_lambda),
        (n_step_returns(reward, *flags_and_next, n=5), expected_5),
    ):
        scale = np.maximum(largest, np.abs(expected).max(0))
        assert (np.abs(found - expected).max(0) <= 1e-5 * scale).all()


def n_step_in_columns(reward, end, bootstrap, gamma, n):
    """`n_step_by_definition` for all columns at once."""
    length = len(reward)
    returns = np.zeros_like(reward)
    for t in range(length):
        discount, going = 1.0, np.ones(reward.shape[1], bool)
        for k in range(t, min(t + n, length)):
            returns[t] += np.where(going, discount * reward[k], 0.0)
            discount *= gamma
            full = k + 1 == min(t + n, length)
            stops = going & ((end[k] != GOES_ON) | full)
            returns[t] += np.where(stops, discount * bootstrap[k], 0.0)
            going &= ~stops
    return returns


# One step, and its traces


def test_td_error_by_hand():
    reward, value, next_value = (
        jnp.array(x) for x in ([1.0] * 2, [3.0] * 2, [4.0] * 2)
    )
    delta = estimators.td_error(
        reward, value, next_value, jnp.array([False, True]), 0.5
    )
    np.testing.assert_array_equal(delta, [0.0, -2.0])


def test_traces_by_hand():
    trace, x = jnp.array([2.0, 0.5, 4.0]), jnp.array([1.0, 1.0, 0.0])
    added = estimators.accumulating_trace(trace, x, 0.5)
    np.testing.assert_array_equal(added, [2.0, 1.25, 2.0])
    replaced = estimators.replacing_trace(trace, x, 0.5)
    np.testing.assert_array_equal(replaced, [1.0, 1.0, 2.0])
    # zᵀx = 2.5, so x is weighed with 1 - 0.2 · 0.5 · 2.5 = 0.75.
    dutch = estimators.dutch_trace(trace, x, 0.5, 0.2)
    np.testing.assert_allclose(dutch, [1.75, 1.0, 2.0], rtol=1e-6)


def test_the_trace_of_td_errors_is_the_lambda_return():
    """Σ_t δ_t z_t, with a trace of one-hot time, is G^λ_t - V_t: both views agree."""
    reward, value = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 1.0, -1.0])
    next_value = jnp.array([1.0, -1.0, 7.0])
    ends = jnp.array([False, False, True])
    delta = estimators.td_error(reward, value, next_value, ends, 0.9)
    trace, backward = jnp.zeros(3), jnp.zeros(3)
    for t in range(3):
        trace = estimators.accumulating_trace(trace, jnp.eye(3)[t], 0.9 * 0.6)
        backward += delta[t] * trace
    column = [x[:, None] for x in (reward, ends, ~ends & ends, next_value)]
    forward = lambda_returns(*column, 0.9, 0.6)[:, 0] - value
    np.testing.assert_allclose(backward, forward, rtol=1e-5)


@property_test
@given(rollouts)
def test_td_error_is_gae_at_lambda_0_and_the_definition(r):
    terminated, truncated = flags(r["end"])
    reward, value, next_value = r["reward"], r["value"], r["next_value"]
    found = estimators.td_error(reward, value, next_value, terminated, r["gamma"])
    by_hand = np.float64(reward) + r["gamma"] * np.where(terminated, 0, next_value)
    assert_close(found, by_hand - value)
    advantage, _ = gae(
        reward, value, next_value, terminated, truncated, r["gamma"], 0.0
    )
    assert_close(advantage, found)


def test_expected_value_hand_numbers():
    q = jnp.array([[1.0, 3.0], [-2.0, 8.0]])
    probability = jnp.array([[0.25, 0.75], [1.0, 0.0]])
    assert_close(estimators.expected_value(q, probability), [2.5, -2.0])


def test_optimal_baseline_hand_numbers():
    """Two episodes of scores 1 and 2 and returns 3 and 6: (3 + 4 * 6) / (1 + 4)."""
    score = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    weighted = score * jnp.array([[3.0], [6.0]])
    assert_close(estimators.optimal_baseline(weighted, score), 27 / 5)
    assert_close(estimators.optimal_baseline(weighted, 0 * score), 0.0)


def test_no_constant_leaves_less_variance_than_the_optimal_baseline():
    rng = np.random.default_rng(0)
    score = jnp.asarray(rng.normal(size=(50, 3)), jnp.float32)
    weighted = score * jnp.asarray(rng.normal(2.0, 3.0, size=(50, 3)), jnp.float32)
    best = float(estimators.optimal_baseline(weighted, score))

    def second_moment(b):
        return float(jnp.square(weighted - b * score).sum())

    for b in (best - 0.1, best + 0.1, 0.0):
        assert second_moment(best) < second_moment(b)


def test_the_value_of_the_action_taken():
    q = jnp.array([[1.0, 3.0], [-2.0, 8.0]])
    action = jnp.array([1, 0])
    assert_close(estimators.action_value(q, action), [3.0, -2.0])
    gradient = jax.grad(lambda q: estimators.action_value(q, action).sum())(q)
    np.testing.assert_array_equal(gradient, [[0, 1], [1, 0]])


def test_soft_value_and_the_minimum_of_an_ensemble_by_hand():
    q = jnp.array([[1.0, 5.0], [2.0, 3.0], [0.0, 9.0]])
    np.testing.assert_array_equal(
        estimators.subset_minimum(q, jax.random.key(0), 3), [0.0, 3.0]
    )
    log_prob = jnp.array([-1.0, 2.0])
    value = estimators.soft_value(q[0], log_prob, 0.5)
    np.testing.assert_allclose(value, [1.5, 4.0])


def test_random_subsets_of_an_ensemble_are_uniform():
    q = jnp.arange(4.0)[:, None]
    keys = jax.random.split(jax.random.key(0), 6_000)
    least = jax.vmap(lambda key: estimators.subset_minimum(q, key, 2))(keys)
    share = np.bincount(np.asarray(least, int).ravel(), minlength=4) / 6_000
    # Of the 6 pairs 3 have the least member 0, 2 have 1, and 1 has 2.
    np.testing.assert_allclose(share, [3 / 6, 2 / 6, 1 / 6, 0], atol=0.02)


def test_truncated_mixture_leaves_out_the_largest():
    quantiles = jnp.array([[[1.0, 5.0, 9.0]], [[2.0, 3.0, 4.0]]])  # [2, 1, 3]
    found = estimators.truncated_mixture(quantiles, 1)
    np.testing.assert_array_equal(found, [[1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_array_equal(
        estimators.truncated_mixture(quantiles, 0), [[1.0, 2.0, 3.0, 4.0, 5.0, 9.0]]
    )


def test_n_step_returns_equal_a_loop():
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(4, 200))
    ends = rng.random((4, 200)) < 0.3
    found, steps = estimators.return_until(
        jnp.asarray(reward, jnp.float32), jnp.asarray(ends), 0.9
    )
    for i in range(200):
        total, k = 0.0, 0
        for k in range(1, 5):
            total += 0.9 ** (k - 1) * reward[k - 1, i]
            if ends[k - 1, i]:
                break
        assert steps[i] == k
        assert float(found[i]) == pytest.approx(total, rel=1e-5, abs=1e-6)


def test_a_return_is_shared_by_the_atoms_beside_it():
    """Atoms 0, 2, 4: a third of the way to the next one has a third of the mass."""
    probability = jnp.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    value = jnp.array([[0.5, 4.0, 9.0], [-3.0, 1.0, 1.0]])
    found = estimators.project_categorical(probability, value, 0.0, 4.0, 3)
    assert_close(found, [[0.375, 0.125, 0.5], [1.0, 0.0, 0.0]])
    assert_close(estimators.categorical_atoms(0.0, 4.0, 3), [0.0, 2.0, 4.0])


def test_projection_equals_the_published_loop():
    """Algorithm 1 of the paper, with the case that a return is an atom."""
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(7), size=5)
    value = rng.normal(size=(5, 7)) * 4
    value[0] = [-5, -4, -3, 0, 1, 5, 7]
    v_min, v_max, size = -5.0, 5.0, 11
    expected = np.zeros((5, size))
    for b in range(5):
        for p, y in zip(probability[b], value[b], strict=True):
            place = (np.clip(y, v_min, v_max) - v_min) / ((v_max - v_min) / (size - 1))
            low, high = int(np.floor(place)), int(np.ceil(place))
            expected[b, low] += p * (1.0 if low == high else high - place)
            if low != high:
                expected[b, high] += p * (place - low)
    arrays = jnp.float32(probability), jnp.float32(value)
    found = estimators.project_categorical(*arrays, v_min, v_max, size)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    atoms = estimators.categorical_atoms(v_min, v_max, size)
    mean = (probability * np.clip(value, v_min, v_max)).sum(-1)
    np.testing.assert_allclose(found @ atoms, mean, atol=1e-5)


def test_conditional_value_at_risk_by_hand():
    quantiles = jnp.array([[1.0, 2.0, 5.0, 8.0]])
    for fraction, expected in ((1.0, 4.0), (0.5, 1.5), (0.375, 4 / 3), (0.1, 1.0)):
        found = estimators.cvar_of_quantiles(quantiles, fraction)
        np.testing.assert_allclose(found, [expected], rtol=1e-6)
        same = estimators.cvar_of_atoms(
            jnp.full((1, 4), 0.25), jnp.array([1.0, 2.0, 5.0, 8.0]), fraction
        )
        np.testing.assert_allclose(same, [expected], rtol=1e-6)


def test_conditional_value_at_risk_is_the_mean_of_the_worst_samples():
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(6), size=4)
    value = np.sort(rng.normal(size=6))
    found = estimators.cvar_of_atoms(jnp.float32(probability), jnp.float32(value), 0.3)
    for row in range(4):
        left, total = 0.3, 0.0
        for p, z in zip(probability[row], value, strict=True):
            total, left = total + min(p, left) * z, left - min(p, left)
        assert float(found[row]) == pytest.approx(total / 0.3, rel=1e-5, abs=1e-6)


def test_munchausen_by_hand():
    """Values 0 and ln 3 at temperature 1: probabilities 1/4 and 3/4."""
    q = jnp.array([[0.0, np.log(3.0)]], jnp.float32)
    log_policy = estimators.boltzmann_log_policy(q, 1.0)
    assert_close(jnp.exp(log_policy), [[0.25, 0.75]])
    entropy = estimators.policy_entropy(log_policy)
    assert_close(entropy, [np.log(4) - 0.75 * np.log(3)])
    bonus = estimators.munchausen_bonus(log_policy, 0.9, 1.0, -1.0)
    assert_close(bonus, [[-0.9, 0.9 * np.log(0.75)]])


def test_a_soft_policy_gives_illegal_actions_nothing():
    q, mask = jnp.array([[50.0, 1.0, 2.0]]), jnp.array([[False, True, True]])
    log_policy = estimators.boltzmann_log_policy(q, 0.5, mask)
    expected = np.exp([2.0, 4.0]) / np.exp([2.0, 4.0]).sum()
    assert_close(jnp.exp(log_policy), [[0.0, *expected]])
    entropy = estimators.policy_entropy(log_policy)
    assert_close(entropy, [-(expected * np.log(expected)).sum()])
    nothing = estimators.boltzmann_log_policy(q, 0.5, jnp.zeros_like(mask))
    assert_close(nothing, estimators.boltzmann_log_policy(q, 0.5))
    # A huge value over a small temperature is a maximum, not an overflow.
    extreme = estimators.boltzmann_log_policy(1e4 * q, 0.03, mask)
    assert_close(jnp.exp(extreme), [[0.0, 0.0, 1.0]])
    assert_close(estimators.policy_entropy(extreme), [0.0])


def test_priorities_and_importance_weights_by_hand():
    error = jnp.array([-3.0, 0.0, 8.0])
    found = estimators.proportional_priority(error, 0.5, 1.0)
    assert_close(found, [2.0, 1.0, 3.0])
    probability = jnp.array([[0.5, 0.25, 0.125], [0.1, 0.1, 0.4]])
    assert_close(
        estimators.importance_weights(probability, 1.0),
        [[0.25, 0.5, 1.0], [1.0, 1.0, 0.25]],
    )
    assert_close(
        estimators.importance_weights(probability, 0.5)[0], [0.5, 0.5**0.5, 1.0]
    )
    assert_close(estimators.importance_weights(probability, 0.0), np.ones((2, 3)))
    # The definition, for any number N of transitions stored.
    weights = (1_000 * probability) ** -0.4
    expected = weights / weights.max(-1, keepdims=True)
    assert_close(estimators.importance_weights(probability, 0.4), expected)


def test_importance_weights_make_a_prioritised_mean_unbiased():
    """At β = 1: Σ_i P(i) w_i x_i is the mean of x, up to the normalisation."""
    rng = np.random.default_rng(0)
    x, p = rng.normal(size=20), rng.random(20)
    probability = jnp.asarray(p / p.sum(), jnp.float32)
    weights = estimators.importance_weights(probability, 1.0)
    scale = 20 * probability.min()
    assert_close((probability * weights * x).sum() / scale, x.mean())
