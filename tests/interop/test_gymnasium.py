"""Environments of ours as Gymnasium's, held against Gymnasium's own checks."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from jaxrl import env_ids, make
from jaxrl.errors import InvalidInput
from jaxrl.interop.gymnasium import MODES, to_gymnasium, to_gymnasium_vector
from tests.support.gymnasium_api import single_test, vector_test
from tests.support.small import counting_env

CHECKED = ("CartPole-v1", "Pendulum-v1", "FrozenLake-misc", "probe/masked")
"""Each kind of space once."""

UNBOUNDED = "ignore:.*A Box (observation|action) space m:UserWarning"
NORMALIZED = "ignore:.*we recommend using a symmetric and normalized:UserWarning"


@pytest.mark.filterwarnings(UNBOUNDED, NORMALIZED)
@pytest.mark.parametrize(
    "id",
    [
        *CHECKED,
        *(
            pytest.param(id, marks=pytest.mark.full)
            for id in env_ids()
            if id not in CHECKED
        ),
    ],
)
def test_gymnasiums_checker_finds_nothing(id):
    single_test(id)


def test_time_limits_and_ends():
    """Reward and observation count the steps: the last one is the true successor."""
    for kwargs, flags in (
        ({"horizon": 3}, (False, True)),
        ({"horizon": 3, "horizon_is": "terminal"}, (True, False)),
        ({"ends_after": 3, "horizon": 3}, (True, False)),
    ):
        env = to_gymnasium(counting_env(**kwargs))
        for _ in range(2):
            obs, info = env.reset()
            assert (float(obs[0]), info) == (0.0, {})
            steps = [env.step(1) for _ in range(3)]
            assert [float(step[0][0]) for step in steps] == [1, 2, 3]
            assert [step[1] for step in steps] == [1.0, 2.0, 3.0]
            assert [step[2:4] for step in steps[:2]] == [(False, False)] * 2
            assert steps[-1][2:4] == flags


def test_seeds():
    env = to_gymnasium(make("CartPole-v1"))
    first, second = env.reset(seed=7)[0], env.reset()[0]
    assert not np.array_equal(first, second)
    assert np.array_equal(env.reset(seed=7)[0], first)
    env.step(0)
    assert np.array_equal(env.reset(seed=7)[0], first)
    other = to_gymnasium(make("CartPole-v1"))
    assert np.array_equal(other.reset(seed=7)[0], first)
    assert not np.array_equal(other.reset(seed=8)[0], first)
    assert not np.array_equal(*(to_gymnasium(env.env).reset()[0] for _ in range(2)))
    first[:] = 0  # an array of the caller's own


@pytest.mark.parametrize(
    ("id", "mode"),
    [*(("CartPole-v1", mode) for mode in MODES), ("probe/masked", "same_step")],
)
def test_a_vector_is_what_gymnasium_makes_of_single_ones(id, mode):
    assert vector_test(make(id, horizon=9), mode) > 4


def test_the_last_observation_in_each_mode():
    env = counting_env(horizon=2)
    seen = {}
    for mode in ("next_step", "same_step"):
        envs = to_gymnasium_vector(env, 2, mode)
        envs.reset()
        steps = [envs.step(np.array([0, 0])) for _ in range(3)]
        seen[mode] = [float(step[0][0, 0]) for step in steps]
    assert seen == {"next_step": [1, 2, 0], "same_step": [1, 0, 1]}
    last = steps[1][4]
    assert [float(obs[0]) for obs in last["final_obs"]] == [2, 2]
    assert last["_final_obs"].all() and steps[1][3].all() and not steps[1][2].any()


def test_wrappers_of_gymnasium():
    envs = to_gymnasium_vector(counting_env(horizon=4), 2)
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    envs.reset(seed=0)
    infos = [envs.step(np.zeros(2, int))[4] for _ in range(4)]
    np.testing.assert_array_equal(infos[-1]["episode"]["r"], [10, 10])
    np.testing.assert_array_equal(infos[-1]["episode"]["l"], [4, 4])
    envs.close()


def test_bad_input():
    env = make("CartPole-v1")
    with pytest.raises(InvalidInput, match=r"one of next_step, .*did you mean 'same"):
        to_gymnasium_vector(env, 2, "same-step")
    with pytest.raises(InvalidInput, match="num_envs = 0: must be at least 1"):
        to_gymnasium_vector(env, 0)
    with pytest.raises(InvalidInput, match=r"jaxrl.make\('CartPole-v1'\)"):
        to_gymnasium("CartPole-v1")
    envs = to_gymnasium_vector(env, 2)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    for fresh, actions in ((envs, np.zeros(2, int)), (to_gymnasium(env), 0)):
        with pytest.raises(ResetNeeded):
            fresh.step(actions)
    with pytest.raises(InvalidInput, match="seed has 3 numbers: there are 2"):
        envs.reset(seed=[1, 2, 3])
    with pytest.raises(InvalidInput, match=r"reset_mask has int64 \[2\]: must be bool"):
        envs.reset(options={"reset_mask": np.array([0, 1])})


def test_one_program_serves_all_of_one_kind():
    from jaxrl.interop import gymnasium as module

    for _ in range(2):
        env = to_gymnasium(make("probe/observation", horizon=3))
        env.reset(seed=1)
        env.step(0)
    before = module._step._cache_size()
    other = to_gymnasium(make("probe/observation", horizon=2))
    other.reset(seed=2)
    other.step(1)
    assert module._step._cache_size() == before
    assert jax.tree.structure(env.env) == jax.tree.structure(other.env)
