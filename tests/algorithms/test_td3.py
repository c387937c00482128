"""DDPG and TD3: targets by hand, noise; and probes with known answers, also of SAC."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import networks, spaces, types
from jaxrl.algorithms import ALGORITHMS, bellman, sac, td3
from jaxrl.algorithms.td3 import DDPG, TD3
from jaxrl.envs import goals, make
from jaxrl.envs.probes import terminal_values
from jaxrl.errors import InvalidInput
from jaxrl.evaluation import evaluate
from jaxrl.replay import transitions
from tests.support.control import BOX, FAMILY, KEY, probe, trained, values
from tests.support.small import tiny
from tools.program import compiled_text


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
    noise = jnp.array([[9.0], [-0.5]])
    taken = td3.target_action(config, env, params["actor"], None, obs, noise)
    of_critics, smallest = params["critics"], lambda q: q.min(0)
    at = of_critics, None, batch, taken, smallest, KEY
    found = bellman.next_target(config, env, *at)
    actor = networks.deterministic_actor(config, env).apply(params["actor"], obs)
    moved = np.asarray(actor) + np.array([[0.3], [-0.1]])
    action = np.clip(moved, -1, 1)
    assert moved.max() > 1
    q = networks.critics(config, env).apply(params["critics"], obs, action)
    value = 0.0 if terminated else np.asarray(q).min(0)
    np.testing.assert_allclose(found, np.array([2.0, -1.0]) + 0.5 * value, rtol=1e-5)


def test_the_last_environment_explores_more_than_the_first():
    config = tiny(TD3, noise_std=0.1, noise_std_last=0.3, num_envs=3)
    action, _ = td3.explore(config, jnp.zeros((3, 2)), (), jnp.ones((3, 2)))
    np.testing.assert_allclose(action, [[0.1] * 2, [0.2] * 2, [0.3] * 2], rtol=1e-6)
    correlated = config.replace(noise="ornstein_uhlenbeck", noise_dt=1.0)
    zeros = jnp.zeros((3, 2))
    action, memory = td3.explore(correlated, zeros, zeros, jnp.ones((3, 2)))
    np.testing.assert_allclose(action, [[0.1] * 2, [0.2] * 2, [0.3] * 2], rtol=1e-6)
    np.testing.assert_array_equal(memory, action)


@pytest.mark.full
def test_correlated_noise_begins_anew_with_every_episode():
    """Without new noise it decays, and is 0 after an end."""
    env = probe("truncation")  # five steps
    changes = {"noise": "ornstein_uhlenbeck", "noise_std": 0.0, "num_envs": 2}
    config = tiny(DDPG, **changes, noise_rate=0.5, noise_dt=1.0)
    state = DDPG.init(config, env, KEY)
    world = state.world.replace(memory=jnp.ones((2, 1)))
    x = np.ones((2, 1))
    for _ in range(9):
        world, trajectory, _ = td3.acts.unroll(config, env, state.agent, world, 1)
        greedy, _, _ = td3.acts.act(
            config, env, state.agent, trajectory.obs[0], (), KEY, greedy=True
        )
        x = 0.5 * x
        expected = np.clip(np.asarray(greedy) + 2.0 * x, -1.0, 3.0)  # half width 2
        np.testing.assert_allclose(trajectory.action[0], expected, rtol=1e-5)
        x[np.asarray(trajectory.done[0])] = 0.0
        np.testing.assert_allclose(world.memory, x, rtol=1e-6)
    assert (x == 0.0).all()


@pytest.mark.full
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
    assert float(trajectory.action.max()) > 1.0  # in the environment's units
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
def test_learns_the_values_of_a_finite_horizon(name):
    """Five steps with reward 1; what follows the last has no value."""
    algorithm, env = ALGORITHMS[name], probe("terminal")
    cold = {"learn_temperature": False, "temperature": 1e-6} if name == "sac" else {}
    config, state, _ = trained(algorithm, env, 3_000, learning_rate=2e-3, **cold)
    found = values(algorithm, config, env, state, jnp.eye(5))
    np.testing.assert_allclose(found, terminal_values(0.9), rtol=0.01)


def place_in_line(place, goal):
    place, goal = (jnp.full(1, x, jnp.float32) for x in (place, goal))
    return goals.goal_obs(place, place, goal)


def goal_of_a_line(achieved, desired, params):
    """1 a step, 2 for the last."""
    reached = (achieved == desired).all()
    return jnp.where(reached, 2.0, 1.0), reached


def line():
    """Every action leads from 0 to 1, 2 and 3, which alone is ever the goal."""
    place = spaces.box(0.0, 3.0, (1,))
    parts = {"observation": place, "achieved_goal": place, "desired_goal": place}

    def step(key, x, action, params):
        obs = place_in_line(x + 1, 3)
        reward, reached = goal_of_a_line(
            obs["achieved_goal"], obs["desired_goal"], None
        )
        return x + 1, types.TimeStep(obs, reward, reached, jnp.bool_(False), {})

    return types.Env(
        params=np.float32(0.0),
        horizon=np.int32(5),
        reset=lambda key, params: (jnp.int32(0), place_in_line(0, 3)),
        step=step,
        observation_space=spaces.dict_space(**parts),
        action_space=BOX,
        goal_reward=goal_of_a_line,
    )


@pytest.mark.full
@FAMILY
def test_learns_the_values_of_goals_that_hindsight_alone_gives(name):
    """At 0 with goal 1 the next step is the last: 2; with goal 2 it is 1 + 0.9 · 2."""
    algorithm, env = ALGORITHMS[name], line()
    cold = {"learn_temperature": False, "temperature": 1e-6} if name == "sac" else {}
    falling = {"learning_rate": 4e-3, "anneal_lr": True, "total_steps": 8.0 * 3_000}
    changes = {"hindsight": "future"} | falling | cold
    config, state, _ = trained(algorithm, env, 3_000, **changes)
    at = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3)]
    obs = jax.tree.map(lambda *x: jnp.stack(x), *(place_in_line(*x) for x in at))
    found = values(algorithm, config, env, state, obs)
    np.testing.assert_allclose(found, [2, 2, 2, 2.8, 2.8, 3.52], rtol=0.01)


@pytest.mark.full
@FAMILY
def test_learns_the_best_action(name):
    """With bounds that are not those in which networks work."""
    algorithm, plain = ALGORITHMS[name], make("probe/continuous")

    def step(key, x, action, params):
        return plain.step(key, x, (action - 1.0) / 2.0, params)

    env = plain.replace(action_space=BOX, step=step)
    config, state, _ = trained(algorithm, env, 600, tau=0.1)
    episodes = evaluate(algorithm, config, env, state.agent, KEY, 256, greedy=True)
    assert float(episodes.episode_return.mean()) > -0.003


@pytest.mark.fast_cases("sac")
@FAMILY
def test_observations_are_counted_from_the_warm_up_on(name):
    env, algorithm = probe("truncation"), ALGORITHMS[name]
    config = tiny(algorithm, normalize_obs=True)
    state = jax.jit(algorithm.init)(config, env, KEY)
    before = state.agent.obs_stats.count
    assert before == state.world.env_steps.low
    state, _ = jax.jit(algorithm.train_step)(config, env, state)
    assert state.agent.obs_stats.count == state.world.env_steps.low > before


@pytest.mark.fast_cases("sac")
@FAMILY
def test_training_copies_no_replay_memory(name):
    algorithm = ALGORITHMS[name]
    rows = 977  # a number that nothing else in the program has
    sizes = {"buffer_size": rows * 4, "num_envs": 4, "train_frequency": 4}
    config = tiny(algorithm, **sizes, policy_delay=1)
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
        (
            "td3",
            make("Pendulum-v1"),
            {"network": nn.Dense(4), "critic_hidden_sizes": (8,)},
            "critic_hidden_sizes = .* needs a network with such",
        ),
        ("sac", make("Pendulum-v1"), {"n_step": 99}, "n_step = 99 .* = 64"),
        ("td3", make("Pendulum-v1"), {"batch_size": 17}, "batch_size = 17 .* the 16 "),
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
