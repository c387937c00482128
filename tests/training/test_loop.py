"""The host loop: plans, rows, early stops, one program for many runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms.dqn import DQN
from jaxrl.algorithms.ppo import PPO
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.training import loop, population
from jaxrl.training.loop import NonFiniteError, num_iterations, train
from jaxrl.types import Plan
from tests.support.runs import run_python
from tests.support.small import assert_trees_equal, tiny

ENV = make("probe/truncation")
CONFIG = tiny(PPO, total_steps=320.0)  # 10 train steps of 32


@pytest.mark.parametrize(
    ("total", "warmup", "expected"),
    [
        (100, 0, 10),
        (101, 0, 11),
        (1, 0, 1),
        (100, 20, 8),
        (10, 20, 1),
        (2**40, 0, 2**40 // 10 + 1),
    ],
)
def test_a_total_becomes_the_next_whole_number_of_iterations(total, warmup, expected):
    assert num_iterations(Plan(10, 1, warmup), float(total)) == expected


@pytest.mark.full
def test_rows_cover_the_run_in_chunks():
    rows = []
    result = train(PPO, CONFIG, ENV, num_seeds=2, num_chunks=4, on_chunk=rows.append)
    assert [row["iteration"] for row in rows] == [3, 6, 9, 10]
    assert [row["env_steps"] for row in rows] == [96, 192, 288, 320]
    assert rows == result.history
    assert result.env_steps == 320 and result.iterations == 10
    assert result.seeds == [0, 1]
    assert rows[0]["rollout/episode_return"] == [5.0, 5.0]
    assert int(result.state.world.env_steps) == 320


@pytest.mark.full
def test_the_number_of_chunks_changes_nothing():
    one = train(PPO, CONFIG, ENV, num_chunks=1)
    many = train(PPO, CONFIG, ENV, num_chunks=10)
    assert_trees_equal(one.agent, many.agent)


@pytest.mark.full
def test_where_the_device_is_interrupted_changes_nothing(monkeypatch):
    """Metrics too: they go on adding up where they were."""
    whole = train(PPO, CONFIG, ENV, num_chunks=2)
    monkeypatch.setattr(loop, "_next_length", lambda length, seconds: 2)
    seen = []
    cut = train(
        PPO,
        CONFIG,
        ENV,
        num_chunks=2,
        between=lambda progress: seen.append(progress.iteration),
    )
    assert seen == [0, 1, 3, 5, 7, 9, 10]
    assert_trees_equal(whole.agent, cut.agent)
    names = [name for name in whole.history[0] if "/" in name]
    for a, b in zip(whole.history, cut.history, strict=True):
        assert [a[name] for name in names] == [b[name] for name in names]


def test_calls_become_longer_until_they_take_long_enough():
    assert loop._next_length(1, 0.001) == 2
    assert loop._next_length(100, loop.CALL_SECONDS) == 100
    assert loop._next_length(100, 4 * loop.CALL_SECONDS) == 25
    assert loop._next_length(1, 1000.0) == 1


@pytest.mark.full
@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=lambda a: a.name)
def test_members_in_groups_are_the_members_side_by_side(monkeypatch, algorithm):
    job = loop.resolve(algorithm, tiny(algorithm), ENV, num_seeds=6, num_devices=1)

    def run(group):
        monkeypatch.setattr(population, "GROUP", group)
        population.run_population.clear_cache()
        start = loop.first_progress(job)
        assert population.num_groups(start.state, 6) == (
            1 if group == 4 else 6 // group
        )
        return loop.advance(job, start, 3)[:2]

    apart, together = run(2), run(4)  # 6 is no multiple of 4
    for a, b in zip(jax.tree.leaves(apart), jax.tree.leaves(together), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert int(apart[0].world.env_steps) == int(together[0].world.env_steps) > 0


def test_large_states_are_not_grouped():
    state = {"replay": jax.ShapeDtypeStruct((16, 2**20), jnp.float32)}
    assert population.num_groups(state, 16) == 1
    assert (
        population.num_groups({"x": jax.ShapeDtypeStruct((16, 8), jnp.float32)}, 16)
        == 2
    )


def test_a_second_run_with_other_floats_and_seeds_compiles_nothing():
    train(PPO, CONFIG, ENV)
    compiled = population.run_population._cache_size()
    train(PPO, CONFIG.replace(learning_rate=0.1, gamma=0.5), ENV, seed=7, iterations=3)
    assert population.run_population._cache_size() == compiled


def test_stop_ends_the_run_after_the_chunk():
    result = train(
        PPO, CONFIG, ENV, num_chunks=10, stop=lambda row: row["iteration"] == 4
    )
    assert result.iterations == len(result.history) == 4
    assert result.env_steps == 4 * 32


@pytest.mark.full
def test_warm_up_counts_as_environment_steps():
    config = tiny(DQN, total_steps=40.0)
    result = train(DQN, config, ENV, num_chunks=2)
    assert [row["env_steps"] for row in result.history] == [32, 40]


def test_members_are_the_same_in_one_program_and_alone():
    together = train(PPO, CONFIG, ENV, seed=3, num_seeds=2)
    alone = train(PPO, CONFIG, ENV, seed=4)
    member, solo = (
        population.member(together.agent, 1),
        population.member(alone.agent, 0),
    )
    for a, b in zip(
        *(map(np.ravel, jax.tree.leaves(x.params)) for x in (member, solo)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_broken_run_stops_within_a_chunk_and_says_where():
    env = ENV.replace(step=_nan_step)
    with pytest.raises(
        NonFiniteError,
        match=r"reward of environment 0 became .* train step 1 of seed 5",
    ):
        train(PPO, CONFIG, env, seed=5, num_chunks=10)


def _nan_step(key, state, action, params):
    state, step = ENV.step(key, state, action, params)
    return state, step._replace(reward=step.reward * jnp.nan)


def test_bad_input_is_refused_before_anything_compiles():
    lines = []
    with pytest.raises(InvalidInput, match="num_minibatches"):
        train(PPO, CONFIG.replace(num_minibatches=5), ENV, report=lines.append)
    assert lines == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"iterations": 0}, "iterations = 0"),
        ({"num_seeds": 0}, "num_seeds = 0"),
        ({"num_chunks": 0}, "num_chunks = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**31 - 1, "num_seeds": 2}, "num_seeds = 2"),
    ],
)
def test_counts_that_make_no_sense_are_refused(arguments, named):
    with pytest.raises(InvalidInput, match=named):
        train(PPO, CONFIG, ENV, **arguments)


def test_an_array_in_the_config_is_for_vmap_not_for_train():
    config = CONFIG.replace(learning_rate=jnp.array([1e-3, 1e-4]))
    with pytest.raises(
        InvalidInput, match=r"learning_rate is an array.* list of configs"
    ):
        train(PPO, config, ENV)


def test_another_algorithms_config_is_refused():
    with pytest.raises(InvalidInput, match=r"dqn.Config: ppo needs its own Config"):
        train(PPO, tiny(DQN), ENV)


def test_a_whole_number_of_steps_may_be_written_as_one():
    train(PPO, CONFIG, ENV, iterations=1)
    compiled = population.run_population._cache_size()
    config = CONFIG.replace(total_steps=3_000_000_000)
    assert train(PPO, config, ENV, iterations=1).iterations == 1
    assert population.run_population._cache_size() == compiled


@pytest.mark.skipif(len(jax.local_devices()) > 1, reason="of a single device")
def test_one_device_needs_no_mesh():
    assert population.device_mesh(SPREADABLE, 4) is None
    assert population.device_mesh(SPREADABLE, 1, "data") is None


SPREADABLE = Plan(
    env_steps=1, updates=1, gradient_rows=4 * population.MIN_ROWS, shares=12
)


class Device:
    def __init__(self, platform):
        self.platform = platform


@pytest.mark.parametrize(
    "members, parallel, wanted, plan, platform, expected",
    [
        (4, "auto", None, SPREADABLE, "cpu", ("members", 4)),
        (6, "auto", 3, SPREADABLE, "cpu", ("members", 3)),
        (7, "auto", None, SPREADABLE, "cpu", ("members", 7)),
        (11, "auto", None, SPREADABLE, "cpu", None),
        (1, "auto", None, SPREADABLE, "cpu", ("data", 4)),  # MIN_ROWS on each
        (1, "auto", None, SPREADABLE, "gpu", None),
        (1, "data", None, SPREADABLE, "gpu", ("data", 6)),
        (1, "auto", 6, SPREADABLE, "gpu", ("data", 6)),
        (1, "auto", None, SPREADABLE._replace(gradient_rows=300), "cpu", None),
        (1, "members", None, SPREADABLE, "cpu", None),
        (8, "data", 2, SPREADABLE, "cpu", ("data", 2)),
        (1, "data", None, SPREADABLE._replace(shares=5), "cpu", ("data", 5)),
    ],
)
def test_what_is_spread_over_devices(
    monkeypatch, members, parallel, wanted, plan, platform, expected
):
    devices = [Device(platform)] * 8
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(population, "Mesh", lambda used, names: (names[0], len(used)))
    assert population.device_mesh(plan, members, parallel, wanted) == expected


@pytest.mark.parametrize(
    "members, parallel, wanted, shares, message",
    [
        (1, "data", 9, 12, "num_devices = 9, but JAX sees 8 devices here"),
        (1, "data", 0, 12, "num_devices = 0"),
        (1, "data", 5, 12, r"must divide the 12 shares .*: try 4"),
        (6, "members", 4, 12, "must divide the 6 agents of this run: try 3"),
        (2, "data", None, 1, "parallel = data, but nothing .*: try parallel = members"),
    ],
)
def test_devices_that_do_not_fit_are_refused(
    monkeypatch, members, parallel, wanted, shares, message
):
    monkeypatch.setattr(jax, "devices", lambda: [Device("cpu")] * 8)
    plan = SPREADABLE._replace(shares=shares)
    with pytest.raises(InvalidInput, match=message):
        population.device_mesh(plan, members, parallel, wanted)


TWO_DEVICES = """
import jax, numpy as np
from jaxrl.training import population, loop
from jaxrl.algorithms.dqn import DQN
from jaxrl.algorithms.ppo import PPO
from jaxrl.envs import make
from tests.support.small import tiny

assert len(jax.local_devices()) == 2
plan = loop.prepare(PPO, tiny(PPO), make("probe/action-observation"))
assert population.device_mesh(plan, 1) is None and population.device_mesh(plan, 3) is None
mesh = population.device_mesh(plan, 4)
assert mesh.size == 2
env = make("probe/action-observation")


def numbers(tree):
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]


for algorithm in (PPO, DQN):
    config = tiny(algorithm)
    resolved = loop.resolve(algorithm, config, env, num_seeds=4)
    assert resolved.mesh == mesh
    job = resolved
    seeds = resolved.seeds
    start = loop.first_progress(job).state.agent.params
    start = [np.asarray(x) for x in jax.tree.leaves(start)]
    ends = {}
    for where in (mesh, None):
        job = resolved._replace(mesh=where)
        ends[where] = loop.advance(job, loop.first_progress(job), 3)[:2]
    (two, tally_two), (one, tally_one) = ends[mesh], ends[None]
    for a, b in zip(numbers(two), numbers(one), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (tally_two, tally_one)), strict=True):
        assert len(a) == 4
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)

    params = jax.tree.leaves(two.agent.params)
    assert all(len(x.sharding.device_set) == 2 and len(x) == 4 for x in params)
    for x, y in zip(start, params, strict=True):
        assert (x != np.asarray(y)).any()  # they have learned
    kernel = max(params, key=lambda x: x.size)
    assert not np.allclose(kernel[0], kernel[2], atol=1e-2)  # members of two devices
    # One counter for all members, on both devices.
    steps = 32 if algorithm is PPO else 8
    warm_up = 0 if algorithm is PPO else 16
    assert two.world.env_steps.low.shape == ()
    assert int(two.world.env_steps) == 3 * steps + warm_up
    if algorithm is DQN:
        assert two.replay.head.position.shape == ()
        assert two.replay.data.reward.shape[0] == 4
    progress = loop.Progress(two, {}, None, {}, 3, 0.0)
    result = loop.Result(progress, [], seeds, 0, 0.0, {})
    for x in jax.tree.leaves(result.agent):
        assert x.sharding.device_set == {jax.local_devices()[0]}
    print(algorithm.name, "equal")
"""


@pytest.mark.full
def test_a_population_on_two_devices_is_the_one_on_one():
    assert run_python(TWO_DEVICES, devices=2) == ["ppo equal", "dqn equal"]
