"""Settings: what differs in numbers is one program, and each member has its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import DQN, PPO, make
from jaxrl.algorithms import ALGORITHMS
from jaxrl.core import variants
from jaxrl.errors import InvalidInput
from jaxrl.training import loop, population
from tests.support import runs
from tests.support.small import tiny, with_teacher

ENV = make("CartPole-v1")


def pair(algorithm=PPO, env=ENV, **changes):
    return tiny(algorithm, **changes), env


def test_the_numbers_that_differ_become_data():
    one, other = pair(learning_rate=0.1), pair(learning_rate=0.2)
    config, env, values = variants.stacked([one, other])
    np.testing.assert_allclose(values.pop("config/learning_rate"), [0.1, 0.2])
    assert values == {}
    assert (config, env) == one


def test_numbers_that_are_asked_for_are_data_too():
    _, _, values = variants.stacked([pair(), pair()], traced=["config/gamma"])
    np.testing.assert_allclose(values["config/gamma"], [0.99, 0.99])


def test_a_member_gets_its_setting_back():
    envs = [make("CartPole-v1", gravity=g) for g in (9.8, 12.0)]
    pairs = [pair(env=env, gamma=g) for env, g in zip(envs, (0.9, 0.8), strict=True)]
    config, env, values = variants.stacked(pairs)
    assert sorted(values) == ["config/gamma", "env/params/gravity"]
    own = variants.with_values(config, env, {n: x[1] for n, x in values.items()})
    assert own[0].gamma == np.float32(0.8) and own[1].params.gravity == 12.0
    assert own[0].learning_rate == config.learning_rate
    assert variants.program(own) == variants.program(pairs[1])


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (pair(num_envs=8), "num_envs is 4 in one and 8 in another"),
        (pair(target_kl=0.1), "target_kl is None in one and 0.1 in another"),
        (
            pair(env=make("CartPole-v1", horizon=None)),
            "CartPole-v1 is built differently",
        ),
    ],
)
def test_different_programs_are_refused_with_the_reason(other, reason):
    with pytest.raises(InvalidInput, match=reason):
        variants.stacked([pair(), other])


def test_a_name_that_is_no_number_is_refused():
    with pytest.raises(InvalidInput, match="hidden_sizes"):
        variants.stacked([pair()], traced=["config/hidden_sizes"])


def test_a_setting_in_words():
    values = {
        "config/gamma": np.array([0.5, 0.25]),
        "env/params/x": np.array([1.0, 2.0]),
    }
    assert variants.described(values, 1) == "gamma = 0.25, params.x = 2"


def trained(algorithm, settings_, num_seeds, steps, **options):
    configs, envs = zip(*settings_, strict=True)
    job = loop.resolve(
        algorithm, list(configs), list(envs), num_seeds=num_seeds, **options
    )
    return loop.advance(job, loop.first_progress(job), steps)


def world(algorithm, force):
    """CartPole, or Pendulum for an algorithm that takes no discrete actions."""
    env = make("CartPole-v1", force_mag=force)
    try:
        algorithm.validate(tiny(algorithm), with_teacher(algorithm, env))
    except InvalidInput:
        env = make("Pendulum-v1", g=force)
    return env


@pytest.mark.full
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_member_of_a_sweep_is_the_run_alone(name):
    """Also in its environment, its schedule and its initial state."""
    algorithm = ALGORITHMS[name]
    number = "gamma" if hasattr(algorithm.Config, "gamma") else "l2_coef"
    pairs = [
        pair(
            algorithm,
            with_teacher(algorithm, world(algorithm, f)),
            **{"learning_rate": r, number: g},
        )
        for f, r, g in ((10.0, 1e-3, 0.99), (5.0, 1e-2, 0.9), (20.0, 1e-4, 0.5))
    ]
    together = trained(algorithm, pairs, 2, 1)
    for k, one in enumerate(pairs):
        alone = trained(algorithm, [one], 2, 1)
        own = population.member(together.state.agent, np.array([2 * k, 2 * k + 1]))
        for x, y in zip(*map(jax.tree.leaves, (own, alone.state.agent)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    params = together.state.agent.params
    differ = [jnp.abs(x[0] - x[2]).max() for x in jax.tree.leaves(params)]
    assert max(differ) > 1e-4


FLOAT64 = """
import jax, jax.numpy as jnp
jax.config.update("jax_enable_x64", True)
from tests.core.test_variants import PPO, loop, pair, population

def trained(settings):
    configs, envs = map(list, zip(*settings))
    # As constants the numbers would take the float32 of what they meet: data in both.
    traced = ["config/gamma", "config/learning_rate"]
    job = loop.resolve(PPO, configs, envs, traced=traced)
    start = loop.first_progress(job)
    agent = jax.tree.map(
        lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x,
        start.state.agent)
    state = start.state.replace(agent=agent)
    return loop.advance(job, start._replace(state=state), 10).state.agent

pairs = [pair(learning_rate=r, gamma=g) for r, g in ((1e-3, 0.99), (1e-2, 0.9))]
together = trained(pairs)
for k, one in enumerate(pairs):
    alone = trained([one])
    leaves = zip(*map(jax.tree.leaves, (population.member(together, k), alone)))
    print(max(float(jnp.abs(x - y).max()) for x, y in leaves))
print(together.params["params"]["value_head"]["kernel"].dtype)
"""


@pytest.mark.full
def test_in_float64_ten_train_steps_are_those_alone():
    *differences, dtype = runs.run_python(FLOAT64)
    assert dtype == "float64"
    assert all(float(difference) < 1e-8 for difference in differences)


@pytest.mark.full
def test_settings_of_a_train_call():
    configs = [tiny(PPO, gamma=g) for g in (0.9, 0.8, 0.7)]
    result = loop.train(PPO, configs, ENV, num_seeds=2, iterations=2)
    assert result.seeds == [0, 1] * 3
    assert len(result.history[-1]["loss/policy"]) == 6
    with pytest.raises(InvalidInput, match="lists of 2 and 3"):
        loop.train(PPO, configs, [ENV, ENV], iterations=2)
    with pytest.raises(InvalidInput, match="total_steps differ"):
        loop.train(PPO, [configs[0], configs[1].replace(total_steps=9e3)], ENV)


@pytest.mark.full
def test_a_trouble_names_the_setting():
    configs = [tiny(DQN, learning_rate=r) for r in (1e-3, 1e30)]
    result = loop.train(DQN, configs, ENV, iterations=6, on_nan="continue")
    assert list(result.broken) == [1]
    assert "of seed 0 with learning_rate = 1e+30" in result.broken[1]
