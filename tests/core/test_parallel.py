"""One agent on several devices is the agent on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxrl.core import parallel
from jaxrl.types import counter
from tests.support.runs import run_python

SHARES = 4


def spread(function, *args):
    """Apply `function` to `SHARES` parts of the leading axis of each argument."""
    parts = [x.reshape(SHARES, -1, *x.shape[1:]) for x in args]
    return jax.vmap(function, axis_name=parallel.AXIS)(*parts)


def test_without_devices_to_share_with_everything_is_the_identity():
    x = jnp.arange(6.0)
    assert parallel.num_shares() == 1
    for function in (parallel.share, parallel.gather, parallel.total, parallel.mean):
        assert function(x) is x
    np.testing.assert_allclose(parallel.variance(x), np.var(np.arange(6.0)))
    key = jax.random.key(3)
    assert parallel.own_key(key) is key


def test_statistics_are_those_of_all_devices():
    x = jax.random.normal(jax.random.key(0), (12, 3)) * 5 + 100
    mean, total, variance, columns = spread(
        lambda x: (
            parallel.mean(x.mean()),
            parallel.total(x.sum()),
            parallel.variance(x),
            parallel.variance(x, (0,)),
        ),
        x,
    )
    x = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, np.full(SHARES, x.mean()), rtol=1e-6)
    np.testing.assert_allclose(total, np.full(SHARES, x.sum()), rtol=1e-6)
    np.testing.assert_allclose(variance, np.full(SHARES, x.var()), rtol=1e-5)
    np.testing.assert_allclose(columns[2], x.var(0), rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_gather_undoes_share(axis):
    x = jnp.arange(64).reshape(8, 8)

    def round_trip(_):
        part = parallel.share(x, axis)
        assert part.shape[axis] == 8 // SHARES
        return parallel.gather(part, axis)

    for each in spread(round_trip, jnp.zeros(SHARES)):
        np.testing.assert_array_equal(each, x)


def test_every_device_has_a_key_of_its_own():
    key = jax.random.key(1)
    keys = spread(lambda _: jax.random.key_data(parallel.own_key(key)), jnp.zeros(4))
    assert len(np.unique(keys, axis=0)) == SHARES


def test_marked_fields_are_spread_and_nothing_else():
    from jaxrl.algorithms import ppo
    from jaxrl.types import World

    world = World(5, counter(), {"a": 1}, 2, (), 3, 4, 0)
    specs = parallel.partition(ppo.State(1.0, world, reward_trace=2))
    along, everywhere = PartitionSpec(None, parallel.AXIS), PartitionSpec()
    assert specs.agent == specs.world.key == specs.world.env_steps.low == everywhere
    assert specs.reward_trace == specs.world.env_state == specs.world.obs == along
    assert specs.world.memory == specs.world.episode_length == along


DEVICES = """
import jax, numpy as np
from jaxrl.training import population, loop
from jaxrl.algorithms import ALGORITHMS
from jaxrl.envs import make
from tests.support.small import tiny

assert len(jax.local_devices()) == 8
cases = CASES


def numbers(tree):
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]


for name, env_id, fields, devices, seeds in cases:
    algorithm = ALGORITHMS[name]
    config = tiny(algorithm).replace(num_envs=8).replace(**fields)
    env = make(env_id)
    resolved = loop.resolve(
        algorithm, config, env, num_seeds=len(seeds), parallel="data", num_devices=devices
    )._replace(seeds=list(seeds))
    mesh = resolved.mesh
    assert mesh.size == devices
    ends = {}
    for where in (mesh, None):
        job = resolved._replace(mesh=where)
        ends[where] = loop.advance(job, loop.first_progress(job), 1)[:2]
    (spread, tally), (alone, expected) = ends[mesh], ends[None]
    for a, b in zip(numbers(spread), numbers(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert tally.fine.all() and expected.fine.all()
    for key, metric in tally.metrics.items():
        np.testing.assert_allclose(
            metric.value, expected.metrics[key].value, rtol=1e-4, atol=1e-5, err_msg=key
        )
    assert len(spread.world.episode_length.sharding.device_set) == devices
    assert not spread.world.episode_length.sharding.is_fully_replicated
    params = jax.tree.leaves(spread.agent.params)
    assert all(x.sharding.is_fully_replicated for x in params)
    print(name, env_id, "equal", flush=True)
"""


CASES = """[
    ("ppo", "CartPole-v1", dict(normalize_obs=True, target_kl=0.02), 4, [0]),
    ("ppo", "Pendulum-v1", dict(
        objective="kl", kl_penalty_target=0.01, network="gru(size=4)"), 2, [0]),
    ("reinforce", "CartPole-v1", dict(normalize_advantage=True, ent_coef=0.1), 4, [0, 1]),
]"""
MORE_CASES = """[
    ("actor_critic", "CartPole-v1", dict(weight="q_minus_v"), 4, [0]),
    ("a2c", "Pendulum-v1", dict(normalize_advantage=True, gae_lambda=0.9), 4, [0]),
    ("trpo", "CartPole-v1", dict(normalize_obs=True), 4, [0]),
    ("natural_pg", "Pendulum-v1", dict(normalize_obs=True), 2, [0, 1]),
]"""


@pytest.mark.full
@pytest.mark.parametrize("cases", [CASES, MORE_CASES], ids=["", "more"])
def test_one_train_step_on_several_devices_is_the_one_on_one(cases):
    lines = run_python(DEVICES.replace("CASES", cases), devices=8)
    assert len(lines) == cases.count('", "')
    assert all(line.endswith("equal") for line in lines)
