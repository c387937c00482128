"""What every registered algorithm must do. A new one is tested by its name alone."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms import ALGORITHMS
from jaxrl.core import config as configs
from jaxrl.envs import make
from jaxrl.evaluation import evaluate
from jaxrl.rollout import unroll
from jaxrl.training import loop, population
from jaxrl.types import Algorithm, Counter, Shared
from tests.support.small import assert_trees_equal, fitting, tiny, with_teacher

POLICY_ONLY = ("bc", "dagger")
"""Imitation has no values."""

FULL = ("c51", "qr_dqn", "iqn")
"""Variants of `rainbow` and `dqn`, whose tests are fast."""

pytestmark = pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.full] * (x in FULL)) for x in ALGORITHMS],
)
KEYS = jax.random.split(jax.random.key(0), 3)


def subject(name: str):
    algorithm = ALGORITHMS[name]
    env = with_teacher(algorithm, make("probe/truncation"))
    return algorithm, tiny(algorithm), fitting(algorithm, env)


@cache
def compiled(name: str):
    """`init` and `run_chunk` of an algorithm, compiled once for all its tests."""
    algorithm, config, env = subject(name)
    init = jax.jit(lambda key: algorithm.init(config, env, key))
    chunk = jax.jit(
        lambda state, length: population.run_chunk(
            algorithm, config, env, state, length
        )
    )
    return init, chunk


@cache
def trained(name: str, num_members: int):
    """A population's final state and tally after 3 train steps."""
    algorithm, config, env = subject(name)
    job = loop.resolve(algorithm, config, env, num_seeds=num_members, num_devices=1)
    progress = loop.advance(job, loop.first_progress(job), 3)
    return progress.state, progress.tally


def test_is_a_valid_config(name):
    algorithm, config, env = subject(name)
    assert isinstance(algorithm, Algorithm)
    assert algorithm.name == name
    plan = loop.prepare(algorithm, config, env)
    assert plan.env_steps >= 1 and plan.updates >= 1
    configs.check(algorithm.Config())


def test_train_step_keeps_structure_shapes_and_dtypes(name):
    algorithm, config, env = subject(name)
    state = jax.eval_shape(algorithm.init, config, env, KEYS[0])
    after, metrics = jax.eval_shape(algorithm.train_step, config, env, state)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
    assert {"rollout/episode_return", "rollout/episode_length"} <= metrics.keys()
    assert all(m.sum.shape == m.count.shape == () for m in metrics.values())


@pytest.mark.fast_cases("ppo", "dqn", "td3", "bc")
def test_counts_environment_steps_as_planned(name):
    algorithm, config, env = subject(name)
    init, chunk = compiled(name)
    plan = algorithm.plan(config, env)
    state = init(KEYS[0])
    assert int(state.world.env_steps) == plan.warmup_env_steps
    state, _ = chunk(state, jnp.int32(3))
    assert int(state.world.env_steps) == plan.warmup_env_steps + 3 * plan.env_steps


def test_same_key_same_result_other_key_other_result(name):
    init, chunk = compiled(name)
    first, again, other = (
        chunk(init(key), jnp.int32(2))[0].agent.params
        for key in (KEYS[0], KEYS[0], KEYS[1])
    )
    assert_trees_equal(first, again)
    assert not all(
        jnp.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
    )


def test_training_changes_the_parameters(name):
    init, chunk = compiled(name)
    state = init(KEYS[0])
    after, metrics = chunk(state, jnp.int32(1))
    changed = jax.tree.map(
        lambda a, b: not jnp.array_equal(a, b), state.agent.params, after.agent.params
    )
    assert any(jax.tree.leaves(changed))
    assert all(np.isfinite(m.sum) for m in metrics.values())


def test_chunks_equal_one_long_run_bit_for_bit(name):
    init, chunk = compiled(name)
    long, long_metrics = chunk(init(KEYS[0]), jnp.int32(6))
    state, total = init(KEYS[0]), None
    for _ in range(3):
        state, metrics = chunk(state, jnp.int32(2))
        total = metrics if total is None else jax.tree.map(jnp.add, total, metrics)
    assert_trees_equal(long, state)
    for name, metric in long_metrics.items():
        np.testing.assert_allclose(metric.sum, total[name].sum, rtol=1e-5, atol=1e-6)
        assert metric.count == total[name].count


def test_no_recompile_after_the_first_chunk(name):
    init, chunk = compiled(name)
    state, _ = chunk(init(KEYS[0]), jnp.int32(2))
    compilations = chunk._cache_size()
    for length in (2, 1, 3):
        state, _ = chunk(state, jnp.int32(length))
    assert chunk._cache_size() == compilations == 1


@pytest.mark.full
def test_a_member_of_a_population_equals_a_run_alone(name):
    together, tally_together = trained(name, 3)
    alone, tally_alone = trained(name, 1)
    member, solo = population.member(together, 0), population.member(alone, 0)
    for a, b in zip(
        jax.tree.leaves(member.agent.params),
        jax.tree.leaves(solo.agent.params),
        strict=True,
    ):
        # Rounding differs between a batched product and a single one.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    episodes = "rollout/episode_return"
    counts = [t.metrics[episodes].count[0] for t in (tally_together, tally_alone)]
    assert counts[0] == counts[1]


@pytest.mark.full
def test_shared_nodes_stay_unbatched_in_a_population(name):
    state, _ = trained(name, 3)
    shared = [
        x
        for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Shared))
        if isinstance(x, Shared)
    ]
    assert any(isinstance(x, Counter) for x in shared)
    assert all(leaf.shape == () for x in shared for leaf in jax.tree.leaves(x))


def batched(name: str):
    """The config with two values of each float, and the parameters after a train step."""
    algorithm, config, env = subject(name)
    floats = [
        field
        for field, kind in configs.field_types(algorithm.Config).items()
        if float in (kind, *getattr(kind, "__args__", ()))
    ]
    # An optional float that is off is switched on: its code must take an array too.
    values = {
        f: 0.5 if getattr(config, f) is None else getattr(config, f) for f in floats
    }
    pairs = config.replace(**{f: jnp.array([v, 0.9 * v]) for f, v in values.items()})
    assert len(jax.tree.leaves(pairs)) == len(floats), "a float field is not traced"

    def run(config):
        state = algorithm.init(config, env, KEYS[0])
        return algorithm.train_step(config, env, state)[0].agent.params

    return pairs, jax.vmap(run)


def test_every_float_of_the_config_can_be_vmapped(name):
    config, run = batched(name)
    configs.check(config)
    assert all(
        leaf.shape[0] == 2 for leaf in jax.tree.leaves(jax.eval_shape(run, config))
    )


@pytest.mark.full
def test_other_floats_give_other_parameters(name):
    config, run = batched(name)
    leaves = jax.tree.leaves(jax.jit(run)(config))
    assert all(jnp.isfinite(leaf).all() for leaf in leaves)
    assert not all(jnp.array_equal(leaf[0], leaf[1]) for leaf in leaves)


def test_act_is_batched_and_greedy_is_deterministic(name):
    algorithm, config, env = subject(name)
    init, _ = compiled(name)
    agent = init(KEYS[0]).agent
    obs = jnp.ones((5, 1))
    memory = algorithm.init_memory(config, env, 5)
    act = jax.jit(algorithm.act, static_argnames="greedy")
    action, _, extras = act(config, env, agent, obs, memory, KEYS[0], greedy=True)
    again, _, _ = act(config, env, agent, obs, memory, KEYS[1], greedy=True)
    space = env.action_space
    assert action.shape == (5, *space.shape) and action.dtype == space.dtype
    assert jnp.array_equal(action, again)
    if name not in POLICY_ONLY:
        assert extras["value"].shape == (5,)


def test_its_policy_unrolls_and_evaluates(name):
    algorithm, config, env = subject(name)
    init, _ = compiled(name)
    state = init(KEYS[0])

    def policy(obs, memory, key):
        return algorithm.act(config, env, state.agent, obs, memory, key)

    _, transitions, _ = jax.jit(lambda world: unroll(env, policy, world, 3))(
        state.world
    )
    assert transitions.reward.shape == (3, 4)
    episodes = evaluate(algorithm, config, env, state.agent, KEYS[0], num_episodes=6)
    assert episodes.ended.all()
    np.testing.assert_array_equal(episodes.episode_length, 5)
    np.testing.assert_array_equal(episodes.episode_return, 5.0)
