"""DQN: counts, schedules, targets, and probes with known answers."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl import networks, optim
from jaxrl.algorithms import dqn, off_policy, value_heads
from jaxrl.algorithms.dqn import DQN
from jaxrl.algorithms.off_policy import TargetClock, renew_target
from jaxrl.algorithms.rainbow import RAINBOW
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.evaluation import evaluate
from jaxrl.replay import ring, transitions
from jaxrl.training import loop, population
from tests.support.small import assert_trees_equal, tiny
from tools.program import compiled_text

KEY = jax.random.key(0)


def trained(env, iterations, **changes):
    fast = {"num_envs": 8, "train_frequency": 8, "learning_starts": 64}
    fast |= {"hidden_sizes": (16,), "batch_size": 32, "learning_rate": 0.01}
    fast |= {"gamma": 0.9, "buffer_size": 2_000, "target_update_interval": 80}
    config = DQN.Config().replace(total_steps=iterations * 8.0 + 64, **(fast | changes))
    loop.prepare(DQN, config, env)
    state = jax.jit(DQN.init)(config, env, KEY)
    chunk = jax.jit(partial(population.run_chunk, DQN))
    state, metrics = chunk(config, env, state, jnp.int32(iterations))
    return config, state, metrics


def mean_return(config, env, agent, greedy=True):
    episodes = evaluate(DQN, config, env, agent, KEY, 64, greedy)
    return float(episodes.episode_return.mean())


@given(
    num_envs=st.integers(1, 40),
    train_frequency=st.integers(1, 40),
    num_updates=st.integers(1, 4),
    learning_starts=st.integers(1, 500),
)
@settings(deadline=None, max_examples=200)
def test_any_ratio_of_steps_to_updates_is_exact(
    num_envs, train_frequency, num_updates, learning_starts
):
    config = DQN.Config(
        num_envs=num_envs,
        train_frequency=train_frequency,
        num_updates=num_updates,
        learning_starts=learning_starts,
    )
    plan = DQN.plan(config, make("probe/constant"))
    assert plan.env_steps == off_policy.vector_steps(config) * num_envs
    assert plan.updates * train_frequency == plan.env_steps * num_updates
    assert learning_starts <= plan.warmup_env_steps < learning_starts + plan.env_steps
    assert plan.warmup_env_steps % plan.env_steps == 0


@given(steps=st.integers(1, 130), interval=st.integers(1, 300))
@settings(deadline=None, max_examples=100)
def test_the_target_is_renewed_when_a_boundary_is_crossed(steps, interval):
    config = DQN.Config(target_update_interval=interval)
    agent = dqn.Agent(
        params=jnp.float32(1.0), target_params=jnp.float32(0.0), opt_state=()
    )
    clock = TargetClock(jnp.int32(0))
    for i in range(1, 12):
        renewed, clock = renew_target(config, agent, clock, steps)
        crossed = i * steps // interval > (i - 1) * steps // interval
        assert bool(renewed.target_params) == crossed


def test_polyak_renewal_moves_part_of_the_way():
    config = DQN.Config(tau=0.25, target_update_interval=1)
    agent = dqn.Agent(
        params=jnp.float32(1.0), target_params=jnp.float32(0.0), opt_state=()
    )
    renewed, _ = renew_target(config, agent, TargetClock(jnp.int32(0)), 1)
    assert float(renewed.target_params) == 0.25


def test_crossing_many_boundaries_at_once_is_renewing_as_often():
    config = DQN.Config(tau=0.25, target_update_interval=2)
    agent = dqn.Agent(
        params=jnp.float32(1.0), target_params=jnp.float32(0.0), opt_state=()
    )
    renewed, clock = renew_target(config, agent, TargetClock(jnp.int32(1)), 6)
    assert float(renewed.target_params) == pytest.approx(1 - 0.75**3)
    assert int(clock.steps) == 1


def batch_of_one(env, terminated):
    obs = jnp.ones((1, 1))
    row = obs, jnp.array([0]), jnp.array([2.0]), jnp.array([terminated]), obs
    return transitions.Batch(*row, discount=jnp.array([0.5]))


@pytest.mark.parametrize("kind", ["squared", "huber"])
def test_the_loss_by_hand(kind):
    env = make("probe/constant")
    config = tiny(DQN, loss=kind, gamma=0.5)
    params = DQN.init(config, env, KEY).agent.params
    q = networks.apply_q(config, env, params, jnp.ones((1, 1)))[0]
    for terminated in (True, False):
        error = q[0] - (2.0 + (0.0 if terminated else 0.5 * q.max()))
        expected = 0.5 * error**2
        if kind == "huber" and abs(error) > 1:
            expected = abs(error) - 0.5
        found, _ = dqn.loss(params, config, env, params, batch_of_one(env, terminated))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_no_gradient_flows_into_the_target():
    env = make("probe/constant")
    config = tiny(DQN)
    params = DQN.init(config, env, KEY).agent.params

    def of_target(target_params):
        batch = batch_of_one(env, False)
        return dqn.loss(params, config, env, target_params, batch)[0]

    assert not any(x.any() for x in jax.tree.leaves(jax.grad(of_target)(params)))


@pytest.mark.full
def test_an_update_is_adam_on_batches_from_the_memory():
    env = make("probe/action-observation")
    config = tiny(DQN, gamma=0.5, num_updates=3)
    state = DQN.init(config, env, KEY)
    agent, replay = state.agent, state.replay
    batches = off_policy.batches(config, env, replay, KEY)
    after, metrics = dqn.update(config, env, agent, batches, 0.01)

    index = ring.sample_indices(replay, KEY, (3, 8))
    optimizer = optim.adam(config.max_grad_norm)
    params, opt_state = agent.params, optimizer.init(agent.params)
    rows = []
    for batch in (transitions.read(config, env, replay, i) for i in index):
        grads, reported = jax.grad(dqn.loss, has_aux=True)(
            params, config, env, agent.target_params, batch
        )
        params, opt_state = optim.apply(optimizer, params, opt_state, grads, 0.01)
        rows.append(reported)
    for new, expected, old in zip(
        *map(jax.tree.leaves, (after.params, params, agent.params)), strict=True
    ):
        np.testing.assert_allclose(new, expected, atol=1e-5)
        assert not np.allclose(new, old, atol=1e-3)
    assert_trees_equal(after.target_params, agent.target_params)
    stacked = map(jnp.stack, zip(*rows, strict=True))
    for name, row in zip(value_heads.reported(config), stacked, strict=True):
        assert metrics[name].count == 3 * 8
        np.testing.assert_allclose(metrics[name].value, row.mean(), rtol=1e-4)


def test_epsilon_falls_over_the_exploration_fraction():
    env = make("probe/constant")
    _, _, metrics = trained(env, 100, exploration_fraction=0.1, epsilon_end=0.1)
    after_the_ramp = 0.1
    assert after_the_ramp < metrics["explore/epsilon"].value < 0.2


def test_warm_up_fills_the_memory_with_random_steps():
    env = make("probe/action")
    config = tiny(DQN, learning_starts=400, buffer_size=400)
    state = jax.jit(DQN.init)(config, env, KEY)
    assert int(state.world.env_steps) == 400
    assert int(state.replay.head.size) * config.num_envs == 400
    assert 0.4 < float(state.replay.data.action.mean()) < 0.6


def test_the_memory_keeps_native_dtypes():
    env = make("Breakout-MinAtar")
    config = tiny(DQN)
    state = jax.eval_shape(DQN.init, config, env, KEY)
    obs = jax.eval_shape(env.reset, KEY, env.params)[1]
    assert state.replay.data.obs.dtype == obs.dtype
    assert state.replay.data.terminated.dtype == jnp.bool_


@pytest.mark.full
def test_learns_the_value_of_a_truncated_task_and_not_of_its_wrong_reading():
    env = make("probe/truncation")
    obs = jnp.ones((1, 1))
    changes = {"loss": "squared", "learning_rate": 0.02, "target_update_interval": 40}
    config, state, _ = trained(env, 2_000, **changes)
    q = networks.apply_q(config, env, state.agent.params, obs)
    np.testing.assert_allclose(q, 10.0, atol=0.1)
    wrong = env.replace(horizon_is="terminal")
    config, state, _ = trained(wrong, 2_000, **changes)
    q = networks.apply_q(config, env, state.agent.params, obs)
    assert float(q.max()) == pytest.approx(3.6, abs=0.5)  # TD(0): what the probe says


@pytest.mark.full
def test_learns_a_delayed_value():
    env = make("probe/delay")
    config, state, _ = trained(env, 600)
    q = networks.apply_q(config, env, state.agent.params, jnp.array([[0.0], [1.0]]))
    np.testing.assert_allclose(q.max(-1), [0.9, 1.0], atol=0.05)


@pytest.mark.full
def test_learns_a_shortest_path():
    env = make("probe/shortest-path")
    config, state, _ = trained(env, 1_500, gamma=1.0)
    best = mean_return(config, env, state.agent)
    episodes = evaluate(DQN, config, env, state.agent, KEY, 64)
    assert episodes.ended.all()
    assert best == -float(episodes.episode_length.mean())
    assert (episodes.episode_length <= 10).all()


@pytest.mark.full
@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_learns_to_act_on_what_it_sees(num_envs):
    env = make("probe/action-observation")
    config, state, _ = trained(env, 400, num_envs=num_envs)
    assert mean_return(config, env, state.agent) == 1.0


@pytest.mark.full
def test_illegal_actions_are_neither_explored_nor_chosen():
    env = make("probe/masked")
    config, state, _ = trained(env, 20, epsilon_end=1.0)
    assert mean_return(config, env, state.agent, greedy=False) == 1.0
    assert mean_return(config, env, state.agent) == 1.0
    stored = state.replay.data.reward[: int(state.replay.head.size)]
    assert (stored == 1.0).all()


def test_box_actions_are_refused():
    with pytest.raises(InvalidInput, match="needs a Discrete action space"):
        DQN.validate(tiny(DQN), make("probe/continuous"))


def test_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(
        InvalidInput, match=r"learning_starts = 16 .* must be less than"
    ):
        DQN.validate(tiny(DQN, total_steps=10.0), make("probe/constant"))


@pytest.mark.full
@pytest.mark.parametrize("algorithm", [DQN, RAINBOW], ids=lambda a: a.name)
@pytest.mark.parametrize("num_members", [1, 3])
def test_training_copies_no_replay_memory(num_members, algorithm):
    env = make("CartPole-v1")
    rows = 977  # a number that nothing else in the program has
    config = tiny(algorithm, buffer_size=rows * 4, num_envs=4, train_frequency=4)
    program = compiled_text(algorithm, config, env, num_members)
    shape = rf"\w+\[(?:\d+,)?{rows},4[,\d]*\]"
    assert re.search(rf"= {shape}\S* dynamic-update-slice\(", program)
    assert not re.search(rf"= {shape}\S* (copy|scatter)\(", program)
