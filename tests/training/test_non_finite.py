"""NaN and Inf: named where they begin; with `on_nan="continue"` the other agents go on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms.a2c import A2C
from jaxrl.algorithms.actor_critic import ACTOR_CRITIC
from jaxrl.algorithms.dqn import DQN
from jaxrl.algorithms.ppo import PPO
from jaxrl.algorithms.reinforce import REINFORCE
from jaxrl.algorithms.trust_region import TRPO
from jaxrl.cli import main
from jaxrl.runs.artifact import load_agents
from jaxrl.runs.loggers import read_metrics
from jaxrl.training import loop
from jaxrl.training.loop import NonFiniteError
from jaxrl.training.population import watched_names
from tests.support.runs import read_json, train_argv
from tests.support.small import assert_trees_equal, counting_env, tiny

EVERY = pytest.mark.parametrize(
    "algorithm",
    [PPO, REINFORCE, DQN, ACTOR_CRITIC, A2C, TRPO],
    ids=lambda a: getattr(a, "name", None),
)
BAD = {"obs": jnp.nan, "reward": jnp.inf}


def spoiled_env(what, only=lambda key: True, at=40):
    """`counting_env(horizon=1000)` whose `obs` or `reward` is bad from step `at` on, in
    the environments that `only` accepts by the key of their reset."""
    env = counting_env(horizon=1_000)

    def reset(key, params):
        _, obs = env.reset(key, params)
        return (jnp.int32(0), jnp.asarray(only(key))), obs

    def step(key, state, action, params):
        count, affected = state
        count, timestep = env.step(key, count, action, params)
        bad = affected & (count >= at)
        value = jnp.where(bad, BAD[what], getattr(timestep, what))
        return (count, affected), timestep._replace(**{what: value})

    return env.replace(reset=reset, step=step, id=f"test/bad-{what}")


@pytest.mark.fast_cases("reward-reward-ppo")
@EVERY
@pytest.mark.parametrize("what, name", [("obs", "observation"), ("reward", "reward")])
def test_what_the_environment_gives_is_named(algorithm, what, name):
    env = spoiled_env(what, lambda key: jax.random.bits(key) % 2 == 0)
    config = tiny(algorithm, total_steps=4_000.0)
    with pytest.raises(NonFiniteError) as error:
        loop.train(algorithm, config, env, seed=7, num_chunks=2)
    message = str(error.value)
    plan = algorithm.plan(config, env)
    warmup = plan.warmup_env_steps // config.num_envs
    steps = plan.env_steps // config.num_envs
    step = -(-(40 - warmup) // steps)
    assert f"train step {step} of seed 7" in message, message
    assert message.startswith(f"{name} of environment ")
    assert "jaxrl check-env test/bad-" in message
    # The environment is one of those that were spoiled.
    index = int(message.removeprefix(f"{name} of environment ").split()[0])
    start = algorithm.init(config, env, loop.keys([7])[0])
    assert 0 <= index < config.num_envs
    assert start.world.env_state[1][index]


@pytest.mark.full
@EVERY
def test_a_step_size_that_is_far_too_large_is_named(algorithm):
    env = counting_env(horizon=10)
    config = tiny(algorithm, learning_rate=1e38)
    names = watched_names(
        jax.eval_shape(
            lambda key: algorithm.train_step(
                config, env, algorithm.init(config, env, key)
            ),
            loop.keys([0])[0],
        )[1]
    )
    with pytest.raises(NonFiniteError) as error:
        loop.train(algorithm, config, env)
    message = str(error.value)
    assert message.split(" became ")[0] in names[2:]
    assert "of seed 0: try a smaller learning_rate" in message


@pytest.mark.full
def test_a_parameter_is_named_though_no_loss_shows_it():
    def spoil(config, env, state):
        state, metrics = PPO.train_step(config, env, state)
        late = state.world.env_steps.low == 3 * 32
        kl_coef = jnp.where(late, jnp.nan, state.agent.kl_coef)
        del metrics["policy/kl_coef"]
        return state.replace(agent=state.agent.replace(kl_coef=kl_coef)), metrics

    algorithm = PPO._replace(train_step=spoil)
    with pytest.raises(NonFiniteError, match=r"parameter became .* at train step 3 of"):
        loop.train(algorithm, tiny(PPO), counting_env(horizon=9), iterations=3)


@pytest.mark.full
@pytest.mark.fast_cases("1")
@pytest.mark.parametrize("cut", [1, 100])
def test_the_others_go_on_as_if_alone(monkeypatch, cut):
    """One seed of three meets an infinite reward: it is left as it was, and reported."""
    monkeypatch.setattr(loop, "_next_length", lambda length, seconds: cut)
    env = spoiled_env("reward", lambda key: jax.random.bits(key) % 8 == 0)
    config = tiny(PPO, total_steps=20 * 32.0)

    def affected(seed):
        state = PPO.init(config, env, loop.keys([seed])[0])
        return bool(state.world.env_state[1].any())

    seed = next(
        s for s in range(99) if [affected(s + i) for i in range(3)].count(True) == 1
    )
    broken = next(s for s in range(seed, seed + 3) if affected(s))
    lines = []
    result = loop.train(
        *(PPO, config, env),
        seed=seed,
        num_seeds=3,
        on_nan="continue",
        num_chunks=2,
        report=lines.append,
    )
    assert result.iterations == 20
    assert list(result.broken) == [broken]
    assert "reward of environment" in result.broken[broken]
    assert f"train step 5 of seed {broken}" in result.broken[broken]
    assert sum("the others go on" in line for line in lines) == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.agent))

    # What it is left as is what it was after train step 4; the others are untouched.
    before = loop.train(
        *(PPO, config, env), seed=seed, num_seeds=3, on_nan="continue", iterations=4
    )
    k = broken - seed
    assert_trees_equal(
        *(jax.tree.map(lambda x: x[k], r.agent) for r in (result, before))
    )
    sound = loop.train(
        *(PPO, config, spoiled_env("reward", lambda key: False)),
        seed=seed,
        num_seeds=3,
        on_nan="continue",
    )
    for other in {0, 1, 2} - {k}:
        for a, b in zip(
            jax.tree.leaves(result.agent), jax.tree.leaves(sound.agent), strict=True
        ):
            np.testing.assert_allclose(a[other], b[other], rtol=1e-3, atol=1e-5)
    last = result.history[-1]
    assert last["loss/value"][k] is None and None not in np.delete(
        last["loss/value"], k
    )


@pytest.mark.full
def test_with_nobody_left_the_run_stops():
    with pytest.raises(NonFiniteError, match="train step 5 of seed 3"):
        loop.train(
            *(PPO, tiny(PPO), spoiled_env("reward")),
            seed=3,
            num_seeds=2,
            on_nan="continue",
        )


@pytest.mark.full
def test_nothing_is_in_the_way_of_a_sound_run():
    env, config = counting_env(horizon=10), tiny(PPO)
    stop, go_on = (
        loop.train(PPO, config, env, num_seeds=2, on_nan=on_nan)
        for on_nan in ("stop", "continue")
    )
    assert stop.broken == go_on.broken == {}
    for a, b in zip(
        jax.tree.leaves(stop.agent), jax.tree.leaves(go_on.agent), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def some_go_blind():
    """`tests.training.test_non_finite:some_go_blind`: some seeds see NaN from step 9 on."""
    return spoiled_env("obs", lambda key: jax.random.bits(key) % 3 == 0, at=9)


@pytest.mark.full
def test_the_command_line_goes_on_with_the_others(tmp_path):
    run = tmp_path / "run"
    argv = train_argv(
        "ppo",
        "--quiet",
        "--on-nan",
        "continue",
        "--num-seeds",
        "4",
        "--seed",
        "1",
        "--out",
        str(run),
        env="tests.training.test_non_finite:some_go_blind",
    )
    code = main(argv)
    assert code == 0
    summary = read_json(run / "summary.json")
    broken = {1 + int(member) for member in summary["broken"]}
    assert 0 < len(broken) < 4
    agents = load_agents(run, "tests.training.test_non_finite:some_go_blind")
    assert set(agents.seeds) == {1, 2, 3, 4} - broken
    assert summary["evaluation"]["seeds"] == agents.seeds
    rows = read_metrics(run / "metrics.jsonl")
    assert all(
        (x is None) == (s in broken)
        for s, x in zip(summary["seeds"], rows[-1]["loss/value"], strict=True)
    )


def test_a_bad_word_is_refused(tmp_path, capsys):
    assert (
        main(train_argv("ppo", "--on-nan", "pray", "--out", str(tmp_path / "x"))) == 2
    )
    assert "on_nan = 'pray'" in capsys.readouterr().err
