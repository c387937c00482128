"""Gymnasium environments to train in: `--env gymnasium/ID`, stepped on the host."""

import json
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import DQN, PPO, init_world, make, spaces, train, unroll
from jaxrl.cli import main
from jaxrl.envs.gymnasium import (
    Host,
    as_action,
    from_action_space,
    gymnasium_env,
    make_gymnasium,
    time_limit,
    to_space,
)
from jaxrl.errors import InvalidInput
from tests.interop.test_evaluation import registered
from tests.support.env_api import api_test
from tests.support.runs import train_argv
from tests.support.small import counting_env, tiny

KEY = jax.random.key(0)
WARNING = "is stepped in Python, one environment after another"
pytestmark = pytest.mark.filterwarnings(f"ignore:.*{WARNING}:UserWarning")


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_the_contract(id):
    env = make(f"gymnasium/{id}")
    assert env.id == f"gymnasium/{id}"
    api_test(env)
    assert int(env.horizon) == gymnasium.spec(id).max_episode_steps


def test_speed_is_warned_of_once():
    make.__globals__["_call_once"].cache_clear()
    with pytest.warns(UserWarning, match=f"gymnasium/CartPole-v1 {WARNING}"):
        make("gymnasium/CartPole-v1", shortest_episode=8)
    make("gymnasium/CartPole-v1", shortest_episode=8)


def policy(obs, memory, key):
    del key
    return (obs[:, 2] > 0).astype(jnp.int32), memory, {}


def test_transitions_are_those_of_gymnasium():
    """Each episode of a rollout is replayed with its seed in one environment."""
    env, num_envs = make("gymnasium/CartPole-v1", horizon=30), 3

    @jax.jit
    def rollouts(key):
        world = init_world(env, key, num_envs)
        world, first, _ = unroll(env, policy, world, 40)
        return world.env_state, unroll(env, policy, world, 40)[1], first

    between, second, first = jax.device_get(rollouts(KEY))
    steps = jax.tree.map(lambda *x: np.concatenate(x), first, second)
    done = steps.terminated | steps.truncated
    assert done.sum() >= 6 and steps.truncated.any()
    assert not np.array_equal(between.seed[0], between.seed[1])
    alone = gymnasium.make("CartPole-v1", max_episode_steps=30)
    for n in range(num_envs):
        ends = np.flatnonzero(done[:, n])
        start = ends[0] + 1
        for end in ends[1:]:
            rows = jax.tree.map(lambda x, n=n, r=slice(start, end + 1): x[r, n], steps)
            alone.unwrapped.reset(seed=0)
            alone.reset()
            alone.unwrapped.state = rows.obs[0].astype(np.float64)
            for t in range(len(rows.action)):
                obs, reward, terminated, truncated, _ = alone.step(int(rows.action[t]))
                np.testing.assert_allclose(obs, rows.next_obs[t], atol=1e-5)
                assert reward == rows.reward[t]
                assert terminated == rows.terminated[t]
                assert (truncated and not terminated) == rows.truncated[t]
            start = end + 1


def test_the_host_notices_that_it_is_somewhere_else():
    host = Host("CartPole-v1", {})
    seeds, zero, push = np.uint32([1, 2]), np.int32([0, 0]), np.int32([1, 1])
    one = host.steps(seeds, zero, push)
    again = host.steps(seeds, zero, push)  # a program may ask twice
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert one[-1].tolist() == [1, 1]
    assert host.steps(seeds, np.int32([1, 0]), push)[-1].tolist() == [2, 1]
    for elsewhere, count in ((seeds, 5), (np.uint32([7, 7]), 1)):
        with pytest.raises(RuntimeError, match="asks for step"):
            host.steps(elsewhere, np.int32([count, count]), push)


def test_an_environment_that_ignores_its_seed_is_refused():
    class Drifting(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.random.default_rng().uniform(-1, 1, 1).astype(np.float32), {}

    gymnasium.register("test/Drifting-v0", entry_point=Drifting)
    try:
        with pytest.raises(InvalidInput, match="Drifting-v0"):
            make("gymnasium/test/Drifting-v0")
    finally:
        del gymnasium.registry["test/Drifting-v0"]


class Numbers(gymnasium.Env):
    """Observations and actions of any Box, each observation `value`."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, low=0, high=10, dtype=np.int64, value=3, actions=None):
        self.observation_space = gymnasium.spaces.Box(low, high, (1,), dtype)
        self.value, self.taken = np.array([value]), []
        self.action_space = self.action_space if actions is None else actions

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.value, {}

    def step(self, action):
        self.taken.append(action)
        return self.value, 1.0, True, False, {}


@pytest.fixture
def numbers():
    gymnasium.register("test/Numbers-v0", entry_point=Numbers)
    yield "test/Numbers-v0"
    del gymnasium.registry["test/Numbers-v0"]


@pytest.mark.parametrize(
    ("low", "high", "dtype", "value", "seen"),
    [
        (0, 10, np.int64, 3, np.int32(3)),
        (0, 2**40, np.int64, 2**33 + 5, np.float32(2**33)),
        (0, 2**32 - 1, np.uint32, 2**32 - 1, np.uint32(2**32 - 1)),
        (0, 2**33, np.uint64, 2**32, np.float32(2**32)),
        (-np.inf, np.inf, np.float64, 0.5, np.float32(0.5)),
        (0, 255, np.uint8, 255, np.uint8(255)),
    ],
)
def test_numbers_of_64_bits_keep_their_value(numbers, low, high, dtype, value, seen):
    host = Host(numbers, dict(low=low, high=high, dtype=dtype, value=value))
    obs = host.starts(np.uint32([1]))
    assert obs.dtype == seen.dtype == host.space.dtype and obs[0, 0] == seen


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.uint8, 300), (np.int64, 2**33), (np.float64, 1e39)]
)
def test_a_number_that_its_space_cannot_hold_is_named(numbers, dtype, value):
    host = Host(numbers, dict(dtype=dtype, value=value))
    with pytest.raises(InvalidInput, match="Numbers-v0 has the value"):
        host.starts(np.uint32([1]))


def test_actions_of_integers_are_rounded_and_clipped(numbers):
    integers = gymnasium.spaces.Box(-1, 2, (2,), np.int64)
    assert from_action_space(integers) == spaces.box(-1, 2, (2,))
    host = Host(numbers, dict(actions=integers))
    for k, action in enumerate(([0.6, -0.6], [7.0, -7.0], [1.5, np.nextafter(2, 1)])):
        seeds = np.uint32([k])
        host.steps(seeds, np.int32([0]), np.float32([action]))
    taken = host._envs[0].unwrapped.taken
    assert all(action in integers for action in taken)
    assert [action.tolist() for action in taken] == [[1, -1], [2, -1], [2, 2]]


@pytest.mark.parametrize(
    ("space", "given", "taken"),
    [
        (gymnasium.spaces.Box(0, 1, (3,), bool), [0.2, 0.5, 9], [False, True, True]),
        (
            gymnasium.spaces.Box(-1, 2**63 - 1, (2,), np.int64),
            [-5, 1e19],
            [-1, 2**63 - 1],
        ),
        (
            gymnasium.spaces.Box(0, 2**64 - 1, (2,), np.uint64),
            [-5, 1e20],
            [0, 2**64 - 1],
        ),
    ],
)
def test_actions_of_every_whole_dtype_are_the_nearest(space, given, taken):
    assert from_action_space(space).dtype == "float32"
    action = as_action(np.float32(given), space)
    assert action in space and action.tolist() == taken


def test_a_space_of_64_bits_keeps_its_bounds_in_gymnasium():
    wide = to_space(spaces.box(-np.inf, np.inf, (1,), np.int64))
    assert (wide.low[0], wide.high[0]) == (-(2**63), 2**63 - 1)


def test_a_reward_that_float32_cannot_hold_is_named(numbers, monkeypatch):
    host = Host(numbers, {})
    step = (np.uint32([1]), np.int32([0]), np.int32([0]))
    reply = (np.array([3]), 1e39, False, False, {})
    monkeypatch.setattr(Numbers, "step", lambda self, action: reply)
    with pytest.raises(InvalidInput, match=r"a reward of .* 1e\+39"):
        host.steps(*step)


def test_a_time_limit_beyond_32_bits_is_the_largest(numbers):
    gymnasium.register("test/Endless-v0", entry_point=Numbers, max_episode_steps=10**10)
    try:
        with pytest.warns(UserWarning, match="stepped in Python"):
            assert gymnasium_env("test/Endless-v0").horizon == 2**31 - 1
    finally:
        del gymnasium.registry["test/Endless-v0"]


@pytest.mark.parametrize("module_limit", [None, 50])
def test_the_time_limit_is_that_of_every_wrapper(numbers, module_limit):
    def limited():
        env = Numbers()
        if module_limit is None:
            return env
        return gymnasium.wrappers.TimeLimit(env, module_limit)

    gymnasium.register("test/Limited-v0", entry_point=limited, max_episode_steps=70)
    try:
        assert time_limit(make_gymnasium("test/Limited-v0")) == (module_limit or 70)
    finally:
        del gymnasium.registry["test/Limited-v0"]
    assert time_limit(make_gymnasium(numbers)) is None


def test_the_module_of_an_id_may_be_in_the_current_folder(tmp_path, monkeypatch):
    lines = [
        "import gymnasium",
        "from tests.envs.test_gymnasium import Numbers",
        "class Unmade(Numbers):",
        "    def __init__(self):",
        "        {}['missing']",
        "gymnasium.register('test/Here-v0', entry_point=Numbers)",
        "gymnasium.register('test/Unmade-v0', entry_point=Unmade)",
    ]
    (tmp_path / "module_of_gymnasium.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [x for x in sys.path if x not in ("", ".")])
    try:
        made = make_gymnasium("module_of_gymnasium:test/Here-v0")
        assert isinstance(made.unwrapped, Numbers)
        with pytest.raises(KeyError, match="missing"):  # the user's lines are not lost
            make_gymnasium("module_of_gymnasium:test/Unmade-v0")
    finally:
        for name in ("Here", "Unmade"):
            gymnasium.registry.pop(f"test/{name}-v0", None)


@pytest.mark.full
def test_a_run_on_the_command_line(tmp_path, capsys):
    out = str(tmp_path / "run")
    env = make("probe/action")
    with registered(Hosted=env):
        argv = train_argv("ppo", "--num-seeds", "1", env="gymnasium/test/Hosted-v0")
        assert main([*argv, "--out", out, "--quiet"]) == 0
        assert main(["resume", out]) == 0  # it is finished
        assert "nothing to resume" in capsys.readouterr().out
        assert main(["evaluate", out, "--episodes", "4", "--json"]) == 0
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert said["env"] == "gymnasium/test/Hosted-v0" and said["episodes"] == 4
        (tmp_path / "run" / "summary.json").unlink()
        assert main(["resume", out]) == 2
        assert "has its state on the host" in capsys.readouterr().err
        for flags, message in (
            (["--num-seeds", "2"], "2 agents cannot be trained together"),
            (["--parallel", "data"], "cannot be spread over devices"),
        ):
            new = tmp_path / "-".join(flags)
            assert main([*argv, *flags, "--out", str(new)]) == 2
            assert message in capsys.readouterr().err
            assert not new.exists()


def test_other_spaces_and_arguments():
    with pytest.raises(
        InvalidInput, match=r"no environment 'CartPole-v9' .did you mean"
    ):
        make("gymnasium/CartPole-v9")
    with pytest.raises(InvalidInput, match="cannot make 'CartPole-v1' with gravty = 3"):
        make("gymnasium/CartPole-v1", gravty=3)
    with pytest.raises(InvalidInput, match=r"MultiDiscrete.* has no counterpart"):
        space = gymnasium.spaces.MultiDiscrete([2, 2])
        env = counting_env()
        gymnasium.register(
            "test/Multi-v0",
            entry_point=lambda: _with_space(env, space),
        )
        try:
            make("gymnasium/test/Multi-v0")
        finally:
            del gymnasium.registry["test/Multi-v0"]


def _with_space(env, space):
    from jaxrl.interop.gymnasium import to_gymnasium

    made = to_gymnasium(env)
    made.action_space = space
    return made


def test_actions_that_look_at_nothing_wait_for_the_step_before():
    """Only the step count returned by the host orders them."""
    env = make("gymnasium/CartPole-v1")

    def blind(obs, memory, key):
        return jax.random.randint(key, (3,), 0, 2), memory, {}

    play = jax.jit(lambda key: unroll(env, blind, init_world(env, key, 3), 60))
    world, steps, stats = play(KEY)
    assert stats["rollout/episode_length"].count > 3
    assert jnp.array_equal(world.env_state.steps, world.episode_length)
    again = play(KEY)[1]
    jax.tree.map(np.testing.assert_array_equal, steps, again)


@pytest.mark.full
def test_dqn_goes_through_it():
    result = train(DQN, tiny(DQN, total_steps=64.0), make("gymnasium/CartPole-v1"))
    assert result.env_steps == 64


@pytest.mark.full
def test_ppo_learns_cart_pole():
    config = PPO.Config(total_steps=80_000.0, num_envs=8)
    env = make("gymnasium/CartPole-v1", shortest_episode=8)
    result = train(PPO, config, env)
    assert result.history[-1]["rollout/episode_return"][0] > 300
