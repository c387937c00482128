"""`jaxrl.tabular.prediction`: by hand, against float64 loops, and against each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs import make
from jaxrl.envs.lecture import BAIRD_BEHAVIOUR, BAIRD_WEIGHTS, mdp_of
from jaxrl.errors import InvalidInput
from jaxrl.mdp import policy_evaluation, uniform_policy
from jaxrl.tabular import prediction
from jaxrl.tabular.prediction import (
    after_each_episode,
    episodes,
    fixed_point_iteration,
    lambda_return,
    lstd,
    monte_carlo,
    n_step_td,
    rms_error,
    td,
    td_lambda,
    uniform,
)
from jaxrl.types import Transition

F = 5
GAMMA, LAMBDA, ALPHA = 0.9, 0.7, 0.2
TRACES = ("accumulating", "replacing", "true_online")


def stream(seed=0, length=12, end="terminated", binary=False):
    """One episode of random features and rewards; `end` is the way it ends."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(length + 1, F)).astype(np.float32)
    x = (x > 0.3).astype(np.float32) if binary else x
    last = np.arange(length) == length - 1
    return Transition(
        obs=x[:-1],
        action=np.zeros(length, np.int32),
        reward=rng.normal(size=length).astype(np.float32),
        terminated=last & (end == "terminated"),
        truncated=last & (end == "truncated"),
        next_obs=x[1:],
        extras={},
    )


def joined(*streams):
    return jax.tree.map(lambda *x: np.concatenate(x), *streams)


def some_weights(seed=9):
    return jnp.asarray(np.random.default_rng(seed).normal(size=F), jnp.float32)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5)


def one_state(reward=1.0, terminated=True, truncated=False):
    """A single step from a state with feature 1 to one with feature 2."""
    return Transition(
        obs=np.ones((1, 1), np.float32),
        action=np.zeros(1, np.int32),
        reward=np.float32([reward]),
        terminated=np.array([terminated]),
        truncated=np.array([truncated]),
        next_obs=np.full((1, 1), 2, np.float32),
        extras={},
    )


METHODS = {
    "td": td,
    "monte_carlo": monte_carlo,
    "lambda_return": partial(lambda_return, lam=LAMBDA),
    "n_step_td": partial(n_step_td, n=3),
    **{trace: partial(td_lambda, lam=LAMBDA, trace=trace) for trace in TRACES},
}
ALL = {
    name: jax.jit(partial(method, alpha=ALPHA, gamma=GAMMA))
    for name, method in METHODS.items()
}
of_any_lambda = jax.jit(td_lambda, static_argnames="trace")
of_n_steps = jax.jit(n_step_td, static_argnames="n")


# By hand


@pytest.mark.parametrize("name", ALL)
def test_one_step_by_hand(name):
    """w = 3 moves by α (target - 3): the target is 1, or 1 + 0.9 · 6 if truncated."""
    w = jnp.array([3.0])
    close(ALL[name](w, one_state()), 3 + 0.2 * (1 - 3))
    close(ALL[name](w, one_state(terminated=False, truncated=True)), 3 + 0.2 * 3.4)
    close(ALL[name](w, one_state(terminated=False)), 3 + 0.2 * 3.4)  # the data stop


# Against float64 loops


def td_lambda_by_definition(w, steps, lam, trace):
    """Pseudocode of S&B, sections 12.2 and 12.5, for one episode."""
    w, z, old = np.array(w, float), np.zeros(F), 0.0
    for x, r, end, x2 in zip(
        steps.obs, steps.reward, steps.terminated, steps.next_obs, strict=True
    ):
        x, x2 = x.astype(float), x2.astype(float) * (not end)
        value, following = w @ x, w @ x2
        delta = r + GAMMA * following - value
        if trace == "true_online":
            z = GAMMA * lam * z + (1 - ALPHA * GAMMA * lam * (z @ x)) * x
            w += ALPHA * (delta + value - old) * z - ALPHA * (value - old) * x
            old = following
            continue
        z = GAMMA * lam * z
        z = np.where(x == 1, 1.0, z) if trace == "replacing" else z + x
        w += ALPHA * delta * z
    return w


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_td_lambda_is_its_pseudocode(trace, lam):
    steps = stream(binary=True)
    expected = td_lambda_by_definition(some_weights(), steps, lam, trace)
    learnt = of_any_lambda(some_weights(), steps, ALPHA, GAMMA, lam, trace)
    close(learnt, expected)


def online_lambda_return(w0, steps):
    """S&B section 12.4: at each step all λ-returns so far are cut there and learnt anew."""
    x = steps.obs.astype(float)
    following = steps.next_obs * ~steps.terminated[:, None]
    weights = [np.array(w0, float)]
    for horizon in range(1, len(x) + 1):
        w = weights[0].copy()
        for t in range(horizon):
            # Each V(s_{k+1}) is that of the weights of its time.
            g = 0.0
            for k in reversed(range(t, horizon)):
                v = weights[k] @ following[k]
                tail = v if k == horizon - 1 else (1 - LAMBDA) * v + LAMBDA * g
                g = steps.reward[k] + GAMMA * tail
            w += ALPHA * (g - w @ x[t]) * x[t]
        weights.append(w)
    return weights[-1]


def test_true_online_is_the_online_lambda_return_algorithm():
    steps = stream(1, binary=True)
    expected = online_lambda_return(some_weights(), steps)
    close(ALL["true_online"](some_weights(), steps), expected)
    assert np.abs(ALL["accumulating"](some_weights(), steps) - expected).max() > 0.01


@pytest.mark.parametrize("n", [1, 2, 4, 20])
@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_n_step_td_is_its_pseudocode(n, end):
    """S&B section 7.1: at time t the state of n steps before is updated."""
    steps = stream(2, end=end)
    w, length = np.array(some_weights(), float), len(steps.reward)
    for tau in range(length):
        last = min(tau + n, length)
        g = sum(GAMMA ** (k - tau) * steps.reward[k] for k in range(tau, last))
        if not steps.terminated[last - 1]:
            g += GAMMA ** (last - tau) * (w @ steps.next_obs[last - 1])
        w += ALPHA * (g - w @ steps.obs[tau]) * steps.obs[tau]
    close(of_n_steps(some_weights(), steps, ALPHA, GAMMA, n), w)


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_fixed_point_iteration_is_its_pseudocode(interval):
    many = [
        stream(seed, end="truncated" if seed == 2 else "terminated")
        for seed in range(4)
    ]
    w = np.asarray(some_weights(), float)
    frozen, expected = w.copy(), []
    for number, episode in enumerate(many, start=1):
        for t in range(len(episode.reward)):
            following = 0.0 if episode.terminated[t] else frozen @ episode.next_obs[t]
            error = episode.reward[t] + GAMMA * following - w @ episode.obs[t]
            w = w + ALPHA * error * episode.obs[t]
        if number % interval == 0:
            frozen = w.copy()
        expected.append(w)
    steps = jax.tree.map(lambda *x: np.stack(x), *many)
    found = fixed_point_iteration(some_weights(), steps, ALPHA, GAMMA, interval)
    close(found, expected)


def test_an_interval_of_no_episode_is_refused():
    steps = jax.tree.map(lambda x: x[None], stream())
    with pytest.raises(InvalidInput, match="interval = 0"):
        fixed_point_iteration(some_weights(), steps, ALPHA, GAMMA, 0)


def test_a_frozen_target_leads_to_the_same_values(walks):
    learnt = fixed_point_iteration(jnp.full(5, 0.5), walks, 0.02, 1.0, 20)
    assert rms_error(learnt[-1], jnp.arange(1, 6) / 6) < 0.05


def test_lstd_solves_its_sums():
    first, second = stream(3, end="truncated"), stream(4)
    a, b = np.zeros((F, F)), np.zeros(F)
    for steps in (first, second):
        z = np.zeros(F)
        for t in range(len(steps.reward)):
            z = GAMMA * LAMBDA * z + steps.obs[t]
            following = steps.next_obs[t] * (not steps.terminated[t])
            a += np.outer(z, steps.obs[t] - GAMMA * following)
            b += z * steps.reward[t]
    expected = np.linalg.solve(a + 0.1 * np.eye(F), b)
    close(lstd(joined(first, second), GAMMA, LAMBDA, 0.1), expected)
    both = jax.tree.map(lambda *x: np.stack(x), first, second)
    close(lstd(both, GAMMA, LAMBDA, 0.1), expected)


# Each other


def test_neighbours_meet():
    w, steps = some_weights(), stream(5)
    td_0 = ALL["td"](w, steps)
    for trace in TRACES:
        one_hot = stream(5, binary=True)
        at_zero = of_any_lambda(w, one_hot, ALPHA, GAMMA, 0.0, trace)
        close(at_zero, ALL["td"](w, one_hot))
    close(of_n_steps(w, steps, ALPHA, GAMMA, 1), td_0)
    mc = ALL["monte_carlo"](w, steps)
    close(of_n_steps(w, steps, ALPHA, GAMMA, 20), mc)
    close(lambda_return(w, steps, ALPHA, GAMMA, 1.0), mc)
    close(of_any_lambda(w, steps, ALPHA, 1.0, 1.0, "true_online"),
          monte_carlo(w, steps, ALPHA, 1.0))  # fmt: skip
    assert np.abs(mc - td_0).max() > 0.01


@pytest.mark.parametrize("name", ALL)
def test_a_stream_of_episodes_is_one_after_the_other(name):
    """Except for the off-line methods, which use the weights at the start of the stream."""
    first, second = stream(6, binary=True), stream(7, binary=True)
    apart = ALL[name](ALL[name](some_weights(), first), second)
    together = ALL[name](some_weights(), joined(first, second))
    if name != "lambda_return":
        close(together, apart)
    stacked = jax.tree.map(lambda *x: np.stack(x), first, second)
    close(after_each_episode(ALL[name], some_weights(), stacked)[1], apart)


@pytest.mark.parametrize("name", ALL)
def test_padding_changes_nothing(name):
    steps = stream(8, binary=True)
    padding = jax.tree.map(np.zeros_like, steps)._replace(
        terminated=np.ones_like(steps.terminated)
    )
    padded = joined(steps, padding)
    close(ALL[name](some_weights(), padded), ALL[name](some_weights(), steps))


def test_ratios_weigh_the_steps():
    steps, w = stream(9), some_weights()
    close(td(w, steps, ALPHA, GAMMA, rho=jnp.ones(12)), ALL["td"](w, steps))
    close(td(w, steps, ALPHA, GAMMA, rho=jnp.zeros(12)), w)
    once = one_state()
    close(td(jnp.array([3.0]), once, ALPHA, GAMMA, rho=jnp.array([2.0])), 3 - 0.8)
    with pytest.raises(InvalidInput, match="need trace = 'accumulating'"):
        td_lambda(w, steps, ALPHA, GAMMA, LAMBDA, "replacing", jnp.ones(12))


# Problems with known values


@pytest.fixture(scope="module")
def walks():
    env = make("lecture/random-walk-5")
    run = jax.jit(partial(episodes, env, uniform(env), num_episodes=400, num_steps=60))
    return jax.device_get(run(jax.random.key(0)))


def test_episodes_end_once_and_are_padded(walks):
    assert walks.obs.shape == (400, 60, 5)
    real = walks.obs.any(axis=-1)
    length = real.sum(axis=1)
    assert (real == (np.arange(60) < length[:, None])).all()
    assert (walks.terminated == (np.arange(60) >= length[:, None] - 1)).all() or (
        length.max() == 60
    )
    cut = (length == 60) & ~walks.terminated[:, -1]
    assert (walks.truncated[:, -1] == cut).all()
    assert not walks.truncated[:, :-1].any()
    assert abs(length.mean() - 9) < 4 * length.std() / 20  # 3 · 3 steps from the middle
    assert set(walks.reward.sum(axis=1)) == {0.0, 1.0}


EXACT = np.arange(1, 6) / 6


@pytest.mark.parametrize("name", ["td", "monte_carlo", "lambda_return", "true_online"])
def test_values_of_the_random_walk_are_learnt(walks, name):
    update = partial(METHODS[name], alpha=0.02, gamma=1.0)
    learnt = jax.jit(partial(after_each_episode, update))(jnp.full(5, 0.5), walks)[-1]
    assert rms_error(jnp.full(5, 0.5), EXACT) == pytest.approx(0.2357, abs=1e-4)
    assert rms_error(learnt, EXACT) < 0.1


def test_lstd_of_the_random_walk_is_the_values(walks):
    for lam in (0.0, 0.5, 1.0):
        assert rms_error(lstd(walks, 1.0, lam), EXACT) < 0.06


def chain_steps():
    """Each step of Boyan's chain once, as streams of one step: both successors of each."""
    mdp = mdp_of("lecture/boyan-chain")
    state = np.repeat(np.arange(1, 13), 2)
    to = np.array([mdp.transition[s, a].argmax() for s in range(1, 13) for a in (0, 1)])
    x = mdp.features.astype(np.float32)
    return Transition(
        obs=x[state][:, None],
        action=np.tile([0, 1], 12)[:, None],
        reward=mdp.reward[state, 0, 0].astype(np.float32)[:, None],
        terminated=mdp.terminal[to][:, None],
        truncated=np.zeros((24, 1), bool),
        next_obs=x[to][:, None],
        extras={},
    )


def test_lstd_finds_boyans_weights():
    weights = lstd(chain_steps(), 1.0)
    np.testing.assert_allclose(weights, [-24, -16, -8, 0], atol=1e-3)


@pytest.mark.full
def test_lstd_finds_boyans_weights_from_episodes():
    env = make("lecture/boyan-chain")
    run = jax.jit(partial(episodes, env, uniform(env), num_episodes=500, num_steps=13))
    steps = run(jax.random.key(3))
    assert not steps.truncated.any()
    for lam in (0.0, 0.8):
        np.testing.assert_allclose(lstd(steps, 1.0, lam), [-24, -16, -8, 0], atol=0.6)


def baird_run(weights, one_hot=False):
    """1,000 steps of the behaviour policy, the solid one the target, α = 0.01."""
    env = make("lecture/baird")
    behaviour = jnp.log(jnp.array(BAIRD_BEHAVIOUR))

    def policy(obs, memory, key):
        return jax.random.categorical(key, behaviour, shape=obs.shape[:1]), memory, {}

    run = jax.jit(partial(episodes, env, policy, num_episodes=1, num_steps=1000))
    steps = run(jax.random.key(4))
    assert steps.truncated[:, -1].all()  # it has no end: cut
    assert not (steps.terminated.any() or steps.truncated[:, :-1].any())
    steps = jax.tree.map(lambda x: x[0], steps)
    if one_hot:
        number = jnp.argmax
        steps = steps._replace(
            obs=jax.nn.one_hot(number(steps.obs[:, :7], -1), 7),
            next_obs=jax.nn.one_hot(number(steps.next_obs[:, :7], -1), 7),
        )
    rho = jnp.where(steps.action == 1, 7.0, 0.0)
    return td(weights, steps, 0.01, 0.99, rho)


@pytest.mark.full
def test_baird_diverges_with_the_features_and_not_with_a_table():
    diverged = baird_run(jnp.array(BAIRD_WEIGHTS))
    assert jnp.abs(diverged).max() > 50
    table = baird_run(jnp.ones(7), one_hot=True)
    assert jnp.abs(table).max() <= 1
    assert table[6] < 0.99  # it learns, slowly
    mdp = mdp_of("lecture/baird")
    solid = np.tile([0.0, 1.0], (7, 1))
    np.testing.assert_array_equal(policy_evaluation(mdp, solid, 0.99), np.zeros(7))
    assert uniform_policy(mdp).shape == (7, 2)


def test_step_sizes_are_data(walks):
    alphas = jnp.array([0.01, 0.1])
    few = jax.tree.map(lambda x: x[:3], walks)

    def learn(alpha):
        update = partial(prediction.td, alpha=alpha, gamma=1.0)
        return after_each_episode(update, jnp.full(5, 0.5), few)[-1]

    both = jax.jit(jax.vmap(learn))(alphas)
    close(both[1], learn(0.1))
    assert np.abs(both[0] - both[1]).max() > 0.01
