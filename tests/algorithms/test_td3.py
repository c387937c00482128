"""DDPG, TD3 and SAC: targets by hand, counts, noise, and probes with known answers."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import networks, spaces
from jaxrl.algorithms import ALGORITHMS, critics, sac, td3
from jaxrl.algorithms.sac import SAC
from jaxrl.algorithms.td3 import DDPG, TD3
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.evaluation import evaluate
from jaxrl.replay import transitions
from jaxrl.training import loop, population
from tests.support.small import tiny
from tools.program import compiled_text

KEY = jax.random.key(0)
BOX = spaces.box([-1.0], [3.0], (1,))
FAMILY = pytest.mark.parametrize("name", ["ddpg", "td3", "sac"])


def probe(name):
    """One whose step does not depend on the action, with continuous actions."""
    return make(f"probe/{name}").replace(action_space=BOX)


def trained(algorithm, env, iterations, **changes):
    fast = {"num_envs": 8, "train_frequency": 8, "learning_starts": 64}
    fast |= {"hidden_sizes": (32,), "batch_size": 64, "learning_rate": 0.01}
    fast |= {"gamma": 0.9, "buffer_size": 2_000, "tau": 0.05}
    config = algorithm.Config().replace(total_steps=1e6, **(fast | changes))
    loop.prepare(algorithm, config, env)
    state = jax.jit(algorithm.init)(config, env, KEY)
    chunk = jax.jit(partial(population.run_chunk, algorithm))
    state, metrics = chunk(config, env, state, jnp.int32(iterations))
    return config, state, metrics


def values(algorithm, config, env, state, obs):
    """What the critics say of the greedy action."""
    _, _, extras = algorithm.act(config, env, state.agent, obs, (), KEY, greedy=True)
    return extras["value"]


@pytest.mark.parametrize("terminated", [True, False])
def test_the_target_of_td3_by_hand(terminated):
    env = probe("truncation")
    config = tiny(TD3, gamma=0.5, target_noise=0.2, target_noise_clip=0.3)
    params = TD3.init(config, env, KEY).agent.params
    # An action so near to the bound that the outer clip matters too.
    params["actor"] = jax.tree.map(lambda x: x + 0.5, params["actor"])
    obs = jnp.ones((2, 1))
    batch = transitions.Batch(
        obs,
        jnp.zeros((2, 1)),
        jnp.array([2.0, -1.0]),
        jnp.array([terminated] * 2),
        obs,
        discount=jnp.full(2, 0.5),
    )
    draws = td3.Draws(jnp.array([[9.0], [-0.5]]), KEY, jax.random.split(KEY, 3))
    found = td3.critic_target(config, env, params, None, batch, draws)
    actor = networks.deterministic_actor(config, env).apply(params["actor"], obs)
    moved = np.asarray(actor) + np.array([[0.3], [-0.1]])
    action = np.clip(moved, -1, 1)
    assert moved.max() > 1
    q = networks.critics(config, env).apply(params["critics"], obs, action)
    value = 0.0 if terminated else np.asarray(q).min(0)
    np.testing.assert_allclose(found, np.array([2.0, -1.0]) + 0.5 * value, rtol=1e-5)


def test_the_soft_value_of_continuous_actions_by_hand():
    env = probe("truncation")
    config = tiny(SAC)
    params = SAC.init(config, env, KEY).agent.params
    obs, noise = jnp.ones((3, 1)), jnp.array([[-1.0], [0.0], [2.0]])
    params["temperature"] = jnp.log(0.3)
    value, log_prob = sac.soft_value(
        config, env, params, None, obs, (noise, KEY), lambda q: q.min(0)
    )
    mean, log_std = networks.spread_actor(config, env).apply(params["actor"], obs)
    x = np.asarray(mean + jnp.exp(log_std) * noise, np.float64)
    normal = (
        -0.5 * np.asarray(noise) ** 2 - np.asarray(log_std) - 0.5 * np.log(2 * np.pi)
    )
    expected = (normal - np.log(1 - np.tanh(x) ** 2)).sum(-1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4)
    q = networks.critics(config, env).apply(params["critics"], obs, np.tanh(x))
    np.testing.assert_allclose(value, q.min(0) - 0.3 * expected, rtol=1e-4)


@pytest.mark.full
def test_the_soft_value_of_discrete_actions_by_hand():
    env = make("probe/masked")
    config = tiny(SAC)
    params = SAC.init(config, env, KEY).agent.params
    mask = jnp.array([[True, False, True, False]])
    obs = {"obs": jnp.ones((1, 1)), "action_mask": mask}
    params["temperature"] = jnp.log(0.3)
    value, log_prob = sac.soft_value(
        config, env, params, None, obs, (None, KEY), lambda q: q.min(0)
    )
    logits = networks.spread_actor(config, env).apply(params["actor"], obs)[0, [0, 2]]
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    q = networks.critics(config, env).apply(params["critics"], obs)
    q = np.asarray(q.min(0))[0, [0, 2]]
    np.testing.assert_allclose(log_prob[0], (p * np.log(p)).sum(), rtol=1e-5)
    np.testing.assert_allclose(value[0], (p * (q - 0.3 * np.log(p))).sum(), rtol=1e-5)


@pytest.mark.full
def test_gradients_of_the_soft_value_equal_finite_differences():
    env = probe("truncation")
    config = tiny(SAC, activation="tanh")
    params = SAC.init(config, env, KEY).agent.params
    noise = jax.random.normal(KEY, (64, 1))

    def value(actor):
        args = (None, jnp.ones((64, 1)), (noise, KEY), lambda q: q.min(0))
        return sac.soft_value(config, env, params | {"actor": actor}, *args)[0].mean()

    with jax.enable_x64(True):
        params, noise = jax.tree.map(lambda x: x.astype(jnp.float64), (params, noise))
        jax.test_util.check_grads(value, (params["actor"],), 1, modes=["rev"])


@pytest.mark.parametrize("delay, updates", [(1, 1), (2, 1), (2, 2), (3, 2), (4, 6)])
def test_whole_steps_of_the_actor_are_due(delay, updates):
    config = tiny(
        TD3, policy_delay=delay, num_updates=updates, num_envs=3, train_frequency=4
    )
    plan = TD3.plan(config, probe("truncation"))
    assert plan.updates % delay == 0
    assert plan.updates * 4 == plan.env_steps * updates


def test_the_actor_learns_after_every_so_many_steps_of_the_critics():
    env = probe("truncation")
    config = tiny(TD3, policy_delay=2, num_updates=4, train_frequency=4)
    state = TD3.init(config, env, KEY)
    _, metrics = jax.jit(TD3.train_step)(config, env, state)
    assert metrics["optim/critic_grad_norm"].count == 4
    assert metrics["optim/actor_grad_norm"].count == 2


@pytest.mark.full
def test_correlated_noise_begins_anew_with_every_episode():
    """By a recurrence from 0, with the noise that the actions tell of."""
    env = probe("truncation")  # five steps
    config = tiny(DDPG, noise="ornstein_uhlenbeck", noise_std=0.5, num_envs=2)
    state = DDPG.init(config, env, KEY)
    assert state.world.memory.shape == (2, 1)
    world, trajectory, _ = td3.acts.unroll(config, env, state.agent, state.world, 9)
    greedy, _, _ = td3.acts.act(
        config, env, state.agent, trajectory.obs[0], (), KEY, greedy=True
    )
    offset = np.asarray(trajectory.action[..., 0] - greedy[0, 0]) / 2  # half widths
    done = np.asarray(trajectory.done)
    x = np.asarray(state.world.memory)[:, 0]
    steps = []
    for t in range(9):
        steps.append((offset[t] - x * (1 - 0.15 * 0.01)) / (0.5 * 0.01**0.5))
        x = np.where(done[t], 0.0, offset[t])
    np.testing.assert_allclose(world.memory[:, 0], x, atol=1e-5)
    assert done.any() and not done[-1].all() and (x[~done[-1]] != 0).all()
    assert np.abs(steps).max() < 4.0  # standard normal, if every start is from 0


@pytest.mark.fast_cases("td3")
@FAMILY
def test_actions_stay_within_bounds_that_are_not_symmetric(name):
    algorithm = ALGORITHMS[name]
    env = probe("truncation")
    config = tiny(algorithm, learning_starts=200)
    if name != "sac":
        config = config.replace(noise_std=5.0)
    state = jax.jit(algorithm.init)(config, env, KEY)
    acts = {"sac": sac.acts}.get(name, td3.acts)
    _, trajectory, _ = acts.unroll(config, env, state.agent, state.world, 50)
    action = jnp.concatenate(
        [trajectory.action.ravel(), state.replay.data.action.ravel()]
    )
    assert (action >= -1).all() and (action <= 3).all()
    warm = state.replay.data.action.ravel()
    assert float(warm.min()) < -0.5 and float(warm.max()) > 2.5


@pytest.mark.full
@FAMILY
def test_learns_the_value_of_a_truncated_task_and_not_of_its_wrong_reading(name):
    algorithm, obs = ALGORITHMS[name], jnp.ones((1, 1))
    cold = {"learn_temperature": False, "temperature": 1e-6} if name == "sac" else {}
    env = probe("truncation")
    config, state, _ = trained(algorithm, env, 3_000, learning_rate=2e-3, **cold)
    assert values(algorithm, config, env, state, obs) == pytest.approx(10.0, rel=0.01)
    wrong = env.replace(horizon_is="terminal")
    config, state, _ = trained(algorithm, wrong, 1_000, **cold)
    assert values(algorithm, config, wrong, state, obs) == pytest.approx(3.6, abs=0.5)


@pytest.mark.full
@FAMILY
def test_learns_the_values_before_an_end(name):
    algorithm = ALGORITHMS[name]
    cold = {"learn_temperature": False, "temperature": 1e-6} if name == "sac" else {}
    config, state, _ = trained(algorithm, probe("delay"), 1_000, **cold)
    obs = jnp.array([[0.0], [1.0]])
    found = values(algorithm, config, probe("delay"), state, obs)
    np.testing.assert_allclose(found, [0.9, 1.0], rtol=0.01)


@pytest.mark.full
@FAMILY
def test_learns_the_best_action(name):
    algorithm = ALGORITHMS[name]
    env = make("probe/continuous")
    config, state, _ = trained(algorithm, env, 600, tau=0.1)
    episodes = evaluate(algorithm, config, env, state.agent, KEY, 256, greedy=True)
    assert float(episodes.episode_return.mean()) > -0.003


@pytest.mark.full
def test_entropy_is_rewarded_for_ever():
    """V = (1 + α H) / (1 - γ) where nothing but the entropy depends on the policy."""
    env = probe("truncation")
    config, state, metrics = trained(
        SAC, env, 1_500, learn_temperature=False, temperature=0.5
    )
    # The largest entropy of actions in [-1, 1] is that of the uniform distribution.
    assert float(metrics["policy/entropy"].value) == pytest.approx(np.log(2), abs=0.05)
    found = values(SAC, config, env, state, jnp.ones((1, 1)))
    # The first action's entropy is not part of Q(s, a).
    expected = (1 + 0.9 * 0.5 * np.log(2)) / (1 - 0.9)
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.full
@pytest.mark.parametrize("wanted", [-1.0, 0.3])
def test_the_temperature_finds_the_entropy_wanted(wanted):
    env = make("probe/continuous")
    _, state, _ = trained(SAC, env, 1_500, target_entropy=wanted)
    config = SAC.Config(hidden_sizes=(32,), target_entropy=wanted)
    obs = jnp.linspace(-1, 1, 32)[:, None]
    noise = jax.random.normal(KEY, (512, 32, 1))
    pi = sac.distribution(
        config, env, state.agent.params["actor"], None, obs, env.action_space
    )
    log_prob = jax.vmap(lambda x: pi.log_prob(pi.pre_tanh(x)))(noise)
    assert float(-log_prob.mean()) == pytest.approx(wanted, abs=0.15)


def test_a_fixed_temperature_stays():
    env = probe("truncation")
    config = tiny(SAC, learn_temperature=False, temperature=0.25)
    state = SAC.init(config, env, KEY)
    state, metrics = jax.jit(SAC.train_step)(config, env, state)
    assert float(metrics["policy/temperature"].value) == pytest.approx(0.25)
    assert float(jnp.exp(state.agent.params["temperature"])) == pytest.approx(0.25)


@pytest.mark.full
def test_discrete_sac_takes_no_illegal_action():
    env = make("probe/masked")
    _, state, metrics = trained(SAC, env, 20)
    stored = state.replay.data.reward[: int(state.replay.head.size)]
    assert (stored == 1.0).all()
    assert all(jnp.isfinite(m.sum) for m in metrics.values())


@pytest.mark.full
def test_discrete_sac_learns_to_act_on_what_it_sees():
    env = make("probe/action-observation")
    config, state, _ = trained(SAC, env, 300)
    episodes = evaluate(SAC, config, env, state.agent, KEY, 64, greedy=True)
    assert float(episodes.episode_return.mean()) == 1.0


OPTIONS = {
    "subset": {"num_critics": 5, "num_updates": 4, "policy_delay": 4},
    "quantiles": {"num_quantiles": 5, "dropped_quantiles": 1},
    "dropout": {"dropout": 0.1},
    "n_step": {"n_step": 3},
    "statistics": {"normalize_obs": True},
}


@pytest.mark.fast_cases("sac-quantiles")
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["td3", "sac"])
def test_learns_a_value_with_every_option(name, option):
    algorithm, env, obs = ALGORITHMS[name], probe("delay"), jnp.array([[0.0], [1.0]])
    cold = {"learn_temperature": False, "temperature": 1e-6} if name == "sac" else {}
    changes = OPTIONS[option] | cold
    config, state, metrics = trained(algorithm, env, 400, **changes)
    assert all(jnp.isfinite(m.sum) for m in metrics.values())
    found = values(algorithm, config, env, state, obs)
    np.testing.assert_allclose(found, [0.9, 1.0], atol=0.1)


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.1}, {"num_critics": 3}])
def test_what_the_policy_follows(changes):
    config = TD3.Config(**changes)
    q = jnp.array([[3.0], [1.0], [2.0]])[: config.num_critics]
    expected = q.mean(0) if changes else q.min(0)
    np.testing.assert_allclose(critics.policy_value(config, q), expected)
    _, params = td3.first_critic(config, {"w": q})
    assert len(params["w"]) == (len(q) if changes else 1)


def test_the_entropy_wanted_is_of_the_legal_actions():
    env = make("probe/masked")
    mask = jnp.array([[True, False, True, False], [True] * 4])
    obs = {"obs": jnp.ones((2, 1)), "action_mask": mask}
    found = sac.target_entropy(SAC.Config(), env, obs)
    np.testing.assert_allclose(found, [0.5 * np.log(2), 0.5 * np.log(4)], rtol=1e-6)
    assert sac.target_entropy(SAC.Config(), make("Pendulum-v1"), obs) == -1.0


def test_the_critics_of_actions_that_drop_units_drop_none_when_acting():
    env = probe("truncation")
    config = tiny(TD3, dropout=0.5)
    agent = TD3.init(config, env, KEY).agent
    obs, action = jnp.ones((4, 1)), jnp.zeros((4, 1))
    ask = partial(critics.values, config, env, agent.params["critics"], None, obs)
    first, again = ask(action, None), ask(action, KEY)
    assert (first == ask(action, None)).all() and not (first == again).all()
    assert not (again == ask(action, jax.random.key(1))).all()


@pytest.mark.fast_cases("sac")
@FAMILY
def test_training_copies_no_replay_memory(name):
    algorithm = ALGORITHMS[name]
    rows = 977  # a number that nothing else in the program has
    config = tiny(algorithm, buffer_size=rows * 4, num_envs=4, train_frequency=4)
    config = config.replace(**{"policy_delay": 1})
    program = compiled_text(algorithm, config, make("Pendulum-v1"), 1)
    shape = rf"\w+\[(?:\d+,)?{rows},4[,\d]*\]"
    assert re.search(rf"= {shape}\S* dynamic-update-slice\(", program)
    assert not re.search(rf"= {shape}\S* (copy|scatter)\(", program)


@pytest.mark.parametrize(
    "name, env, changes, message",
    [
        ("td3", make("CartPole-v1"), {}, "td3 needs a bounded Box .* use sac or dqn"),
        ("ddpg", make("probe/masked"), {}, "ddpg needs a bounded Box"),
        ("sac", make("CartPole-v1"), {"target_subset": 3}, "target_subset = 3 .* = 2"),
        ("td3", make("Pendulum-v1"), {"network": "gru"}, "has a memory, which td3"),
        ("td3", make("Pendulum-v1"), {"num_critics": 1}, "target_subset = 2 .* = 1"),
        (
            "td3",
            make("goal/point-reach", history=2),
            {"hindsight": "final"},
            "as arrays",
        ),
        (
            "td3",
            make("Pendulum-v1"),
            {"num_quantiles": 2},
            "dropped_quantiles = 2 .* 2",
        ),
        ("sac", make("CartPole-v1"), {"num_quantiles": 5}, "num_quantiles = 5 needs"),
        ("sac", make("Pendulum-v1"), {"n_step": 99}, "n_step = 99 .* = 64"),
        (
            "sac",
            make("Breakout-MinAtar"),
            {"dropout": 0.1},
            "dropout = 0.1 needs fully connected",
        ),
        (
            "sac",
            make("probe/continuous").replace(
                action_space=spaces.box(-np.inf, np.inf, (1,))
            ),
            {},
            "sac needs a bounded Box .* ppo for one without bounds",
        ),
    ],
)
def test_what_does_not_fit_is_refused(name, env, changes, message):
    with pytest.raises(InvalidInput, match=message):
        ALGORITHMS[name].validate(tiny(ALGORITHMS[name], **changes), env)
