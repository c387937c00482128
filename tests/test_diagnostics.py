"""Gradient estimators against the exact gradient of a known model; other diagnostics."""

import importlib.util
import json
import sys
from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxrl import diagnostics, distributions, estimators, losses, spaces
from jaxrl.algorithms import actor_critic, reinforce
from jaxrl.algorithms.actor_critic import Values
from jaxrl.envs.tabular import tabular_env
from jaxrl.errors import InvalidInput
from jaxrl.mdp import MDP, action_values, expected_return, finite_mdp, policy_evaluation
from jaxrl.rollout import init_world, unroll
from jaxrl.types import Env
from tests.support.paths import ROOT

STATES, ACTIONS, STEPS = 3, 2, 28
NUM_KEYS = 40_000
PARAMS = jnp.array([[0.5, -0.5], [0.0, 0.3], [-0.8, 0.4]])  # logits


def model() -> MDP:
    """Every step ends the episode with probability 0.35 to 0.5."""
    rng = np.random.default_rng(3)
    transition = np.zeros((STATES + 1, ACTIONS, STATES + 1))
    going = rng.dirichlet(np.ones(STATES), (STATES, ACTIONS))
    transition[:-1, :, :-1] = going * rng.uniform(0.5, 0.65, (STATES, ACTIONS, 1))
    transition[:-1, :, -1] = 1 - transition[:-1, :, :-1].sum(-1)
    reward = np.array([[1.0, 2.0], [6.0, 4.0], [0.0, -1.0], [0.0, 0.0]])
    ends, start = np.arange(STATES + 1) == STATES, [0.5, 0.2, 0.3, 0.0]
    states = np.arange(STATES + 1)[:, None]
    return finite_mdp(transition, reward, ends, start, states)


PROBLEM = model()


def env() -> Env:
    """Environment that observes the index of the state, except of the terminal one."""
    problem = tabular_env(PROBLEM)

    def seen(obs):
        return jnp.minimum(obs[0], STATES - 1).astype(jnp.int32)

    def reset(key, params):
        state, obs = problem.reset(key, params)
        return state, seen(obs)

    def step(key, state, action, params):
        state, timestep = problem.step(key, state, action, params)
        return state, timestep._replace(obs=seen(timestep.obs))

    space = spaces.Discrete(STATES)
    return problem.replace(reset=reset, step=step, observation_space=space)


def policy_of(params):
    """Policy table; the row of the terminal state is arbitrary."""
    return jax.nn.softmax(jnp.append(params, jnp.zeros((1, ACTIONS)), axis=0))


POLICY = np.asarray(policy_of(PARAMS), float)
VALUE = policy_evaluation(PROBLEM, POLICY, 1.0)
V = jnp.asarray(VALUE[:-1], jnp.float32)
Q = jnp.asarray(action_values(PROBLEM, VALUE, 1.0)[:-1], jnp.float32)
EXACT = diagnostics.exact_gradient(policy_of, PARAMS, PROBLEM, 1.0)
WRONG_V = jnp.array([5.0, -3.0, 0.0])


def returns_minus(weighting, baseline, constant, v, gamma=1.0):
    """A variant of REINFORCE, with its `score_weight`."""
    config = reinforce.Config(weighting=weighting, baseline=baseline, gamma=gamma)
    agent = reinforce.Agent((), (), average_return=jnp.float32(constant))

    def weight(t, reward_to_go):
        return reinforce.score_weight(config, agent, reward_to_go, v[t.obs])

    return weight


def critic_weight(weight, v, q, gae_lambda=0.5):
    """A weight of actor-critic, by its `score_weight`, with a tabular critic."""
    config = actor_critic.Config(weight=weight, gamma=1.0, gae_lambda=gae_lambda)

    def score_weight(t, _):
        if config.learns_q:
            values = Values(q[t.obs, t.action], jnp.zeros(()), v[t.obs])
        else:
            values = Values(v[t.obs], v[t.next_obs], v[t.obs])
        return actor_critic.score_weight(config, t, values)

    return score_weight


J = expected_return(PROBLEM, POLICY, 1.0)
UNBIASED = {
    "return": returns_minus("return", "none", 0, V),
    "return, moving average": returns_minus("return", "moving_average", J, V),
    "return, V": returns_minus("return", "value", 0, V),
    "reward-to-go": returns_minus("reward_to_go", "none", 0, V),
    "reward-to-go, moving average": returns_minus(
        "reward_to_go", "moving_average", J, V
    ),
    "reward-to-go, any constant": returns_minus("reward_to_go", "optimal", 3.0, V),
    "reward-to-go, V": returns_minus("reward_to_go", "value", 0, V),
    "reward-to-go, a wrong V": returns_minus("reward_to_go", "value", 0, WRONG_V),
    "Q": critic_weight("q", V, Q),
    "Q - V": critic_weight("q_minus_v", V, Q),
    "Q - a wrong V": critic_weight("q_minus_v", WRONG_V, Q),
    "TD error": critic_weight("td_error", V, Q),
    "GAE": critic_weight("gae", V, Q),
    "GAE(1), a wrong V": critic_weight("gae", WRONG_V, Q, 1.0),
}
BIASED = {
    "a wrong Q": critic_weight("q", V, Q + jnp.array([2.0, 0.0])),
    "TD error, a wrong V": critic_weight("td_error", WRONG_V, Q),
    "GAE, a wrong V": critic_weight("gae", WRONG_V, Q),
}
WEIGHTS = UNBIASED | BIASED


def rollout(params, key):
    """One episode `[T, 1]`, its rewards-to-go, and the mask of its steps."""

    def policy(obs, memory, noise):
        action = distributions.categorical(params[obs]).from_noise(noise)
        return action, memory, {}

    def noise(key, shape):
        return jax.random.gumbel(key, (*shape, ACTIONS))

    walk = env()
    _, t, _ = unroll(walk, policy, init_world(walk, key, 1), STEPS, noise)
    rewards = (t.reward, t.terminated, t.truncated)
    reward_to_go = estimators.discounted_returns(*rewards, 0.0, 1.0)
    return t, reward_to_go, estimators.first_episode_mask(t.terminated)


def gradients(params, t, weights):
    """Σ_t w_t grad log pi for each of `weights` `[W, T, 1]`."""

    def loss(params, weight):
        log_prob = distributions.categorical(params[t.obs]).log_prob(t.action)
        return losses.policy_gradient(log_prob, weight).sum()

    return -jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, weights)


def every_weight(params, key):
    t, reward_to_go, mask = rollout(params, key)
    weights = [jnp.where(mask, w(t, reward_to_go), 0.0) for w in WEIGHTS.values()]
    return gradients(params, t, jnp.stack(weights))


@cache
def estimates():
    """Gradients `[K, W, P]` of one episode each, every weight on the same episodes."""
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    found = diagnostics.gradient_samples(every_weight, PARAMS, keys, batch_size=4_000)
    return found.reshape(NUM_KEYS, len(WEIGHTS), -1)


def statistics(name):
    """`gradient_statistics` of one weight, from the shared estimates."""
    samples = estimates()[:, list(WEIGHTS).index(name)]
    return diagnostics.gradient_statistics(
        lambda _, index: samples[index].reshape(PARAMS.shape),
        PARAMS,
        jnp.arange(NUM_KEYS),
        EXACT,
        batch_size=4_000,
    )


def furthest(found):
    """The largest bias in standard errors, and its bound in 99 of 100 experiments."""
    bound = stats.norm.ppf(1 - 0.01 / 2 / PARAMS.size)
    return float(jnp.abs(found.bias / found.standard_error).max()), bound


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_the_exact_gradient_is_that_of_the_value(gamma):
    """Central differences of the return, in float64."""
    found = diagnostics.exact_gradient(policy_of, PARAMS, PROBLEM, gamma)
    step, logits = 1e-5, np.append(np.asarray(PARAMS, float), [[0, 0]], axis=0)

    def objective(logits):
        return expected_return(PROBLEM, special.softmax(logits, axis=1), gamma)

    for place in np.ndindex(STATES, ACTIONS):
        moved = np.zeros_like(logits)
        moved[place] = step
        slope = (objective(logits + moved) - objective(logits - moved)) / (2 * step)
        assert float(found[place]) == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("name", UNBIASED)
def test_the_exact_gradient_lies_in_the_99_percent_interval(name):
    found, bound = furthest(statistics(name))
    assert found < bound


@pytest.mark.full
@pytest.mark.parametrize("name", BIASED)
def test_the_interval_excludes_what_is_biased(name):
    found, bound = furthest(statistics(name))
    assert found > 2 * bound


@pytest.mark.full
def test_each_rung_has_less_variance():
    """None > moving average > V, of the return-to-go; and Q - V beneath them all."""
    variance = {name: float(statistics(name).variance.sum()) for name in UNBIASED}
    ladder = ("return", "reward-to-go", "reward-to-go, moving average")
    ladder += ("reward-to-go, V", "Q - V")
    found = [variance[name] for name in ladder]
    assert all(above > 1.05 * below for above, below in pairwise(found))
    assert variance["return"] > 1.05 * variance["return, moving average"]
    assert variance["GAE"] < variance["reward-to-go, V"]


@pytest.mark.full
def test_no_constant_has_less_variance_than_the_optimal_baseline():
    names = list(WEIGHTS)
    plain = estimates()[:, names.index("reward-to-go")]
    with_3 = estimates()[:, names.index("reward-to-go, any constant")]
    score = (plain - with_3) / 3.0
    best = float(estimators.optimal_baseline(plain, score))
    variance = {b: float((plain - b * score).var(0).sum()) for b in (best, J, 0.0, 3.0)}
    assert min(variance, key=variance.get) == best


@pytest.mark.full
def test_less_noise_is_more_signal_and_fewer_wrong_directions():
    none, value = statistics("return"), statistics("Q - V")
    assert value.signal_to_noise > 2 * none.signal_to_noise
    assert 0.5 > none.misaligned > value.misaligned


def coin(params, key):
    """Gradient 1 with probability 3/4, else -1: mean 1/2, variance 3/4."""
    return {"w": jnp.where(jax.random.uniform(key) < 0.75, 1.0, -1.0) + 0 * params["w"]}


def test_statistics_of_a_coin():
    keys, params = jax.random.split(jax.random.key(1), 20_000), {"w": jnp.zeros(())}
    found = diagnostics.gradient_statistics(coin, params, keys, {"w": jnp.float32(0.6)})
    assert float(found.mean[0]) == pytest.approx(0.5, abs=0.02)
    assert float(found.variance[0]) == pytest.approx(0.75, abs=0.02)
    assert float(found.bias[0]) == pytest.approx(-0.1, abs=0.02)
    assert float(found.misaligned) == pytest.approx(0.25, abs=0.01)
    assert float(found.signal_to_noise) == pytest.approx(0.6 / 0.75**0.5, rel=0.02)
    assert float(found.standard_error[0]) == pytest.approx(
        (0.75 / 20_000) ** 0.5, rel=0.02
    )
    alone = diagnostics.gradient_statistics(coin, params, keys)
    assert float(alone.bias[0]) == 0.0


@pytest.mark.full
def test_noise_falls_with_the_root_of_the_number_of_samples():
    keys, params = jax.random.split(jax.random.key(2), 40_000), {"w": jnp.zeros(())}
    found = diagnostics.gradient_noise(
        coin, params, keys, (10, 100, 1_000), {"w": jnp.float32(0.5)}
    )
    expected = 3**0.5 / np.sqrt(found.sizes)
    assert found.groups == (4_000, 400, 40)
    np.testing.assert_allclose(found.relative_error, expected, rtol=0.25)
    # P(at most 4 of 10 heads) at 3/4; never for 100.
    binomial = stats.binom.cdf(4, 10, 0.75)
    assert float(found.misaligned[0]) == pytest.approx(binomial, abs=0.01)
    assert float(found.misaligned[2]) == 0.0
    alone = diagnostics.gradient_noise(coin, params, keys, (10,))
    np.testing.assert_allclose(alone.relative_error, expected[:1], rtol=0.05)


def test_bad_requests_are_refused():
    keys, params = jax.random.split(jax.random.key(0), 50), {"w": jnp.zeros(())}
    with pytest.raises(InvalidInput, match=r"from 1 to 5, .*no reference"):
        diagnostics.gradient_noise(coin, params, keys, (10,))
    with pytest.raises(InvalidInput, match=r"from 1 to 50, .*more keys"):
        diagnostics.gradient_noise(coin, params, keys, (51,), params)
    with pytest.raises(InvalidInput, match="at least 2 estimates"):
        diagnostics.gradient_statistics(coin, params, keys[:1])


def test_saturation_hand_numbers():
    probability = jnp.array([[0.5, 0.5], [1.0, 0.0], [0.995, 0.005], [0.75, 0.25]])
    found = diagnostics.simplex_saturation(probability, (0.0, 1.0))
    entropy = [np.log(2), 0.0, stats.entropy([0.995, 0.005]), stats.entropy([3, 1])]
    assert float(found.entropy) == pytest.approx(np.mean(entropy), rel=1e-5)
    np.testing.assert_allclose(found.max_probability, [0.5, 1.0])
    assert float(found.saturated) == 0.5


def test_kl_of_each_step_by_hand():
    logits = jnp.log(jnp.array([[[0.5, 0.5]], [[0.25, 0.75]], [[0.25, 0.75]]]))
    found = diagnostics.kl_per_step(distributions.categorical, logits)
    expected = stats.entropy([0.5, 0.5], [0.25, 0.75])
    np.testing.assert_allclose(found, [expected, 0.0], atol=1e-6)


def test_explained_variance_is_there():
    value = jnp.array([1.0, 2.0, 3.0])
    assert float(diagnostics.explained_variance(value, value + 5)) == pytest.approx(1.0)


@pytest.fixture(scope="module")
def benchmark():
    """`benchmarks/gradients.py` as a module, and what it has measured."""
    path = ROOT / "benchmarks" / "gradients.py"
    spec = importlib.util.spec_from_file_location("gradients", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gradients"] = module
    spec.loader.exec_module(module)
    return module, json.loads((path.parent / "results" / "gradients.json").read_text())


def test_the_committed_results_are_what_theory_says(benchmark):
    module, results = benchmark
    for name, measured in results["problems"].items():
        for weight, row in measured["rows"].items():
            biased = row["bias_in_standard_errors"] > module.BOUND
            if "half of V" not in weight:
                assert not biased, (name, weight)
            elif name == module.MAIN:  # with the most episodes
                assert biased, weight
    rows = results["problems"][module.RANDOM]["rows"]
    for name in ("return", "reward-to-go"):
        rungs = (name, f"{name} - moving average", f"{name} - V")
        none, average, value = (rows[rung]["variance"] for rung in rungs)
        assert none > average > value
