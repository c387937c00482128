"""`jaxrl.envs.make` and the gymnax adapter."""

import dataclasses
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import PPO, spaces
from jaxrl.envs import env_ids, from_gymnax, known_issues, make, register
from jaxrl.envs.gymnax import (
    GYMNAX_IDS,
    KNOWN_ISSUES,
    NEEDS_DOWNLOAD,
    _asterix_spawn,
    _Deferred,
    _import_gymnax,
)
from jaxrl.envs.problem import ENVIRONMENTS
from jaxrl.errors import InvalidInput
from jaxrl.types import Env
from tests.support.env_api import api_test

KEY = jax.random.key(0)


def refuses(message, *args, **kwargs):
    """Assert that `make` raises InvalidInput with one sentence that contains `message`."""
    with pytest.raises(InvalidInput, match=re.escape(message)) as caught:
        make(*args, **kwargs)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


# The contract, of every environment


@pytest.mark.fast_cases(
    "*-v[01]", "probe/*", "lecture/*", "Catch-bsuite", "Breakout-MinAtar"
)
@pytest.mark.parametrize("id", env_ids())
def test_every_environment_keeps_the_contract(id):
    env = make(id)
    assert env.id == id
    api_test(env)


def test_ids_are_those_of_gymnax():
    registered = _import_gymnax().registration._BUILTIN_ENV_IDS
    assert {*GYMNAX_IDS, *NEEDS_DOWNLOAD} == set(registered)
    assert env_ids()[: len(GYMNAX_IDS)] == list(GYMNAX_IDS)


# Ids


def test_unknown_ids_get_a_hint():
    refuses(
        "'CartPole-v2' (did you mean 'CartPole-v1'?): `jaxrl list envs`", "CartPole-v2"
    )
    refuses("Unknown environment 'Walker2d-v4': `jaxrl list envs`", "Walker2d-v4")


def test_what_needs_a_download_is_refused_without_one(monkeypatch):
    def download(*args):
        raise AssertionError("tried to download")

    monkeypatch.setattr("urllib.request.urlopen", download)
    monkeypatch.setattr("urllib.request.urlretrieve", download)
    refuses("gymnax downloads its data", "MNISTBandit-bsuite")
    assert "MNISTBandit-bsuite" not in env_ids()


def corridor(length=3):
    return make("probe/shortest-path", length=length)


def test_registered_environments_are_made_by_id(monkeypatch):
    monkeypatch.setattr("jaxrl.envs._registered", {})
    register("test/corridor", corridor)
    assert "test/corridor" in env_ids()
    env = make("test/corridor", length=4, horizon=9)
    assert (env.observation_space.shape, int(env.horizon)) == ((4,), 9)
    assert env.id == "test/corridor"
    refuses(
        "lenght = 4: test/corridor has no such parameter", "test/corridor", lenght=4
    )
    register("test/corridor", lambda: corridor(7))  # a notebook cell run again
    assert make("test/corridor").observation_space.shape == (7,)
    with pytest.raises(InvalidInput, match="built in"):
        register("CartPole-v1", corridor)
    register("test/wrong", lambda: 3)
    refuses("factory returned int", "test/wrong")


def test_module_in_the_current_directory(tmp_path, monkeypatch):
    source = "from jaxrl.envs import make\ndef mine(size=2):\n"
    source += "    return make('probe/shortest-path', length=size)\n"
    (tmp_path / "my_own_environment.py").write_text(source)
    monkeypatch.setattr(
        sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))]
    )
    monkeypatch.chdir(tmp_path)
    env = make("my_own_environment:mine", size=6)
    assert env.observation_space.shape == (6,)
    assert env.id == "my_own_environment:mine"
    refuses("no function 'mien' (did you mean 'mine'?)", "my_own_environment:mien")
    refuses("there is no module 'nowhere_to_be_found'", "nowhere_to_be_found:mine")
    refuses("is not the name of a module", "./my_own_environment.py:mine")
    (tmp_path / "broken_environment.py").write_text("import missing_dependency")
    with pytest.raises(ModuleNotFoundError, match="missing_dependency"):
        make("broken_environment:mine")


# Parameters


def test_parameters_keep_the_type_of_their_default():
    env = make("CartPole-v1", gravity=10, max_steps_in_episode=7)
    assert type(env.params.gravity) is float
    assert (env.params.gravity, int(env.horizon)) == (10.0, 7)
    acrobot = make("Acrobot-v1", available_torque=[-2, 0, 2])
    assert acrobot.params.available_torque.dtype == jnp.float32
    assert make("FrozenLake-misc", map_name="8x8").observation_space.n == 64
    assert make("DeepSea-bsuite", size=10).observation_space.shape == (10, 10)
    assert make("Breakout-MinAtar", use_minimal_action_set=False).action_space.n == 6
    assert make("Pendulum-v1", max_torque=3).action_space.high == (3.0,)
    lake = make("FrozenLake-misc", desc=["SF", "FG"], map_name="4x4")
    assert lake.observation_space.n == 4


@pytest.mark.parametrize(
    ("message", "id", "params"),
    [
        ("gravty = 3: CartPole-v1 has no such parameter (did you mean", "CartPole-v1",
         {"gravty": 3}),
        ("size = 3: FrozenLake-misc has no such parameter (it has max_steps_in_ep"
         "isode, desc, map_name", "FrozenLake-misc", {"size": 3}),
        ("size = 3: probe/delay has no such parameter (it has none)", "probe/delay",
         {"size": 3}),
        ("gravity = 'high': must be a number", "CartPole-v1", {"gravity": "high"}),
        ("gravity = True: must be a number", "CartPole-v1", {"gravity": True}),
        ("gravity = nan: must be a number", "CartPole-v1", {"gravity": float("nan")}),
        ("ramp_interval = 1.5: must be a whole", "Asterix-MinAtar",
         {"ramp_interval": 1.5}),
        ("ramping = 1: must be true or false", "Asterix-MinAtar", {"ramping": 1}),
        ("available_torque = [[1]]: must be numbers such as [-1.0, 0.0, 1.0]",
         "Acrobot-v1", {"available_torque": [[1]]}),
        ("reward_timestep = [1.5]: must be numbers such as [1, 3", 
         "DiscountingChain-bsuite", {"reward_timestep": [1.5]}),
        ("siz = 10: DeepSea-bsuite has no such parameter (did you mean 'size'?)",
         "DeepSea-bsuite", {"siz": 10}),
        ("size = 'big': must be a whole number", "DeepSea-bsuite", {"size": "big"}),
        ("size = -1: DeepSea-bsuite cannot be built", "DeepSea-bsuite", {"size": -1}),
        ("map_name = '5x5': FrozenLake-misc cannot be built (map_name must be '4x4'",
         "FrozenLake-misc", {"map_name": "5x5"}),
        ("num_bits = -3: MemoryChain-bsuite cannot be built", "MemoryChain-bsuite",
         {"num_bits": -3}),
        ("lenght = 3: probe/memory has no such parameter (did you mean 'length'?)",
         "probe/memory", {"lenght": 3}),
        ("length = 1: must be a whole number", "probe/memory", {"length": 1}),
    ],
)  # fmt: skip
def test_wrong_parameters_are_named(message, id, params):
    refuses(message, id, **params)


def test_horizon():
    assert int(make("CartPole-v1").horizon) == 500
    assert make("CartPole-v1", horizon=None).horizon is None
    assert int(make("probe/constant", horizon=3).horizon) == 3
    assert make("probe/truncation", horizon=None).horizon is None
    assert make("CartPole-v1", horizon_is="terminal").horizon_is == "terminal"
    assert make("probe/terminal").horizon_is == "terminal"
    assert make("probe/terminal", horizon=8).observation_space.shape == (8,)
    for wrong in (2.5, "long", True):
        refuses(
            f"horizon = {wrong!r}: must be a whole number", "CartPole-v1", horizon=wrong
        )
    refuses("horizon = 0: must be at least 1", "CartPole-v1", horizon=0)
    refuses("horizon = 2147483648: must be at most", "CartPole-v1", horizon=2**31)
    with pytest.raises(InvalidInput, match="horizon = array"):
        make("CartPole-v1", horizon=np.array([3, 4]))
    refuses("max_steps_in_episode = 0", "CartPole-v1", max_steps_in_episode=0)
    refuses("horizon_is = 'terminate'", "CartPole-v1", horizon_is="terminate")


def test_observations_that_show_the_time_follow_the_horizon():
    env = make("DiscountingChain-bsuite", horizon=4)
    state, _ = env.reset(KEY, env.params)
    _, step = env.step(KEY, state, 0, env.params)
    assert float(step.obs[1]) == 0.25
    bandit = make("BernoulliBandit-misc", horizon=50)
    assert type(bandit.params.max_steps_in_episode) is float  # as gymnax has it


def test_sticky_prob_and_history_are_checked():
    refuses("sticky_prob = 1.5: must be at most 1", "CartPole-v1", sticky_prob=1.5)
    refuses("sticky_prob = 'a': must be a number", "CartPole-v1", sticky_prob="a")
    refuses("history = -1: must be at least 0", "CartPole-v1", history=-1)


# One program


@pytest.mark.parametrize(
    ("id", "options"),
    [
        ("CartPole-v1", {}),
        ("DeepSea-bsuite", {"size": 5}),
        ("FourRooms-misc", {"goal_fixed": [1, 1]}),
        ("Breakout-MinAtar", {"sticky_prob": 0.1, "history": 2}),
        ("probe/terminal", {"horizon": 7}),
        ("probe/memory", {"history": 3}),
    ],
)
def test_made_twice_is_one_program(id, options):
    assert jax.tree.structure(make(id, **options)) == jax.tree.structure(
        make(id, **options)
    )


def test_parameters_are_data_and_do_not_compile_again():
    traces = []

    @jax.jit
    def first_step(env):
        traces.append(env.id)
        state, _ = env.reset(KEY, env.params)
        return env.step(KEY, state, 1, env.params)[1].obs

    heavy = first_step(make("CartPole-v1", gravity=50.0, horizon=10))
    light = first_step(make("CartPole-v1", gravity=1.0))
    assert len(traces) == 1
    assert not np.allclose(heavy, light)


def test_parameters_can_be_vmapped():
    env = make("CartPole-v1")
    env = env.replace(params=env.params.replace(gravity=jnp.array([1.0, 9.8, 50.0])))
    axes = jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, env.params)

    def first_obs(params):
        state, _ = env.reset(KEY, params)
        return env.step(KEY, state, 1, params)[1].obs

    obs = jax.vmap(first_obs, in_axes=(axes,))(env.params)
    assert len(np.unique(obs[:, 3])) == 3


# Transitions


def test_raw_transitions_past_the_time_limit():
    env = make("Pendulum-v1", horizon=2)
    state, _ = env.reset(KEY, env.params)
    for _ in range(3):
        state, step = env.step(KEY, state, jnp.zeros(1), env.params)
        assert not step.terminated
        assert not step.truncated
    assert int(state.time) == 3


def test_the_last_observation_is_the_true_successor():
    env = make("CartPole-v1")
    step_env = jax.jit(env.step)
    state, _ = env.reset(KEY, env.params)
    terminated = False
    while not terminated:
        state, step = step_env(KEY, state, 1, env.params)
        terminated = bool(step.terminated)
    assert abs(step.obs[2]) > env.params.theta_threshold_radians


def test_box_actions_are_clipped_and_nan_is_kept():
    env = make("Pendulum-v1")
    state, _ = env.reset(KEY, env.params)

    def reward_and_obs(action):
        _, step = env.step(KEY, state, action, env.params)
        return np.append(step.obs, step.reward)

    at_bound = reward_and_obs(jnp.array([2.0]))
    np.testing.assert_array_equal(reward_and_obs(jnp.array([5.0])), at_bound)
    np.testing.assert_array_equal(reward_and_obs(5.0), at_bound)  # a scalar will do
    assert np.isnan(reward_and_obs(jnp.array([jnp.nan])))[2]


def test_environments_of_gymnax_kind_can_be_adapted():
    gymnax = _import_gymnax()

    class Small(gymnax.environments.Catch):
        def observation_space(self, params):
            theirs = gymnax.environments.spaces
            return theirs.Tuple([super().observation_space(params)])

    catch, params = gymnax.make("Catch-bsuite", rows=4)
    env = from_gymnax(catch, params, horizon=12, id="mine")
    assert isinstance(env, Env)
    assert (env.observation_space.shape, int(env.horizon), env.id) == (
        (4, 5),
        12,
        "mine",
    )
    with pytest.raises(InvalidInput, match="Tuple spaces are not supported"):
        from_gymnax(Small())


def test_dictionary_spaces_are_converted():
    gymnax = _import_gymnax()
    theirs = gymnax.environments.spaces

    class Named(gymnax.environments.CartPole):
        def get_obs(self, state, params=None, key=None):
            return {"cart": jnp.array([state.x]), "steps": jnp.int32(state.time)}

        def observation_space(self, params):
            largest = float(jnp.finfo(jnp.float32).max)
            cart = theirs.Box(-largest, largest, (1,))
            return theirs.Dict({"steps": theirs.Discrete(501), "cart": cart})

    space = from_gymnax(Named()).observation_space
    assert space["cart"] == spaces.box(-np.inf, np.inf, (1,))
    assert space["steps"] == spaces.Discrete(501)


# Corrections and known issues


def gymnasium_mountain_car(position, velocity, action):
    """MountainCarContinuous-v0 as Gymnasium 1.x defines it, for arrays."""
    velocity = (
        velocity + 0.0015 * np.clip(action, -1, 1) - 0.0025 * np.cos(3 * position)
    )
    velocity = np.clip(velocity, -0.07, 0.07)
    position = np.clip(position + velocity, -1.2, 0.6)
    velocity = np.where((position == -1.2) & (velocity < 0), 0, velocity)
    terminated = (position >= 0.45) & (velocity >= 0)
    return position, velocity, 100 * terminated - 0.1 * action**2, terminated


def test_mountain_car_continuous_agrees_with_gymnasium():
    env = make("MountainCarContinuous-v0")
    rng = np.random.default_rng(0)
    position, velocity, action = rng.uniform(
        [-1.2, -0.07, -1], [0.6, 0.07, 1], (2000, 3)
    ).T
    state, _ = env.reset(KEY, env.params)

    def step(position, velocity, action):
        start = state.replace(position=position, velocity=velocity)
        return env.step(KEY, start, action[None], env.params)[1]

    steps = jax.jit(jax.vmap(step))(*np.float32([position, velocity, action]))
    expected = gymnasium_mountain_car(position, velocity, action)
    at_wall = (expected[0] == -1.2) & (expected[1] == 0)
    assert at_wall.sum() > 20
    assert expected[3].sum() > 20
    np.testing.assert_allclose(steps.obs[:, 0], expected[0], atol=1e-6)
    np.testing.assert_allclose(steps.obs[:, 1], expected[1], atol=1e-6)
    np.testing.assert_allclose(steps.reward, expected[2], atol=1e-4)
    np.testing.assert_array_equal(steps.terminated, expected[3])


@pytest.mark.full
def test_asterix_spawns_in_a_free_slot_or_not_at_all():
    """Where gymnax deletes an entity: all slots full, or the free one missed."""
    env = make("Asterix-MinAtar")
    start, _ = env.reset(KEY, env.params)
    gold = np.array([[0, i + 1, 1, 1, 1] for i in range(8)])  # far from the player
    one_free = np.where(np.arange(8)[:, None] == 3, 0, gold)
    step = jax.jit(jax.vmap(env.step, in_axes=(0, None, None, None)))

    def entities_after(entities):
        state = start.replace(entities=jnp.array(entities), spawn_timer=jnp.int32(0))
        keys = jax.random.split(KEY, 64)
        after, _ = jax.device_get(step(keys, state, 0, env.params))
        assert (after.spawn_timer == start.spawn_speed - 1).all()
        return after.entities

    assert (entities_after(gold) == gold).all()
    after = entities_after(one_free)
    assert (after[:, :, 4] == 1).all()
    assert (np.delete(after, 3, axis=1) == np.delete(gold, 3, axis=0)).all()
    new = after[:, 3]
    assert (new[:, 0] == 9 * (1 - new[:, 2])).all()  # it comes in from behind
    assert (new[:, 1] == 4).all()


def test_asterix_draws_slot_direction_and_gold_as_the_original():
    env = make("Asterix-MinAtar")
    state, _ = jax.device_get(env.reset(KEY, env.params))
    filled = np.array([1, 0, 0, 1, 0, 0, 1, 1])
    state = state.replace(entities=np.outer(filled, np.ones(5, int)))
    spawn = jax.jit(jax.vmap(_asterix_spawn, in_axes=(0, None)))
    keys = jax.random.split(KEY, 4000)
    due = state.replace(spawn_timer=np.int32(0))
    entities = np.asarray(spawn(keys, due).entities)
    new = (entities != state.entities).any(axis=2)
    assert (new.sum(axis=1) == 1).all()
    np.testing.assert_allclose(new.mean(axis=0), (1 - filled) / 4, atol=0.03)
    np.testing.assert_allclose(entities[new][:, 2].mean(), 1 / 2, atol=0.03)
    np.testing.assert_allclose(entities[new][:, 3].mean(), 1 / 3, atol=0.03)
    waiting = state.replace(spawn_timer=np.int32(3))
    assert (spawn(keys, waiting).entities == state.entities).all()


def test_known_issues_are_of_known_environments():
    assert set(KNOWN_ISSUES) <= set(GYMNAX_IDS)
    assert known_issues("Pendulum-v1") is None
    for id in GYMNAX_IDS:
        assert not id.endswith("MinAtar") or "sticky" in known_issues(id)


def test_memory_chain_is_as_described():
    env = make("MemoryChain-bsuite", memory_length=3)
    state, obs = env.reset(KEY, env.params)
    cues, terminated = [float(obs[2])], []
    step_env = jax.jit(env.step)
    for _ in range(4):
        state, step = step_env(KEY, state, 0, env.params)
        cues.append(float(step.obs[2]))
        terminated.append(bool(step.terminated))
    assert cues[0] == cues[1] != 0
    assert cues[2:] == [0, 0, 0]
    assert terminated == [False, False, False, True]


def test_deep_sea_terminates_at_its_horizon():
    env = make("DeepSea-bsuite", size=3)
    state, _ = env.reset(KEY, env.params)
    terminated = []
    step_env = jax.jit(env.step)
    for _ in range(int(env.horizon)):
        state, step = step_env(KEY, state, 0, env.params)
        terminated.append(bool(step.terminated))
    assert terminated == [False, False, True]


# Importing gymnax


def test_a_deferred_module_becomes_the_real_one(monkeypatch):
    import colorsys

    deferred = _Deferred("colorsys")
    assert deferred.rgb_to_hsv is colorsys.rgb_to_hsv
    monkeypatch.setitem(sys.modules, "colorsys", deferred)
    assert deferred.rgb_to_hsv(1, 0, 0) == (0, 1, 1)
    assert sys.modules["colorsys"] is not deferred
    with pytest.raises(AttributeError):
        _ = deferred.no_such_function


DRAWING = """
import sys
import jax
from jaxrl.envs import env_ids, make

assert len(env_ids()) > 30
assert "gymnax" not in sys.modules, "listing imports gymnax"
make("CartPole-v1")
for heavy in ("seaborn", "pandas", "matplotlib.pyplot"):
    assert heavy not in sys.modules, heavy

import gymnax
from gymnax.environments.misc import pong

key = jax.random.key(0)
env, params = gymnax.make("Pong-misc")
_, state = env.reset(key, params)
image = env.render(state, params)  # through the stand-ins of pong.py
image.figure.canvas.draw()

from gymnax.visualize import Visualizer

for id in ("Catch-bsuite", "Breakout-MinAtar"):
    env, params = gymnax.make(id)
    _, state = env.reset(key, params)
    visualizer = Visualizer(env, params, [state], [0.0])
    visualizer.init()
    visualizer.update(0)
    visualizer.fig.canvas.draw()

import matplotlib.pyplot
import seaborn

assert seaborn.__file__ and matplotlib.pyplot.__file__, "a stand-in was left behind"
assert len(matplotlib.pyplot.get_fignums()) == 3
"""


@pytest.mark.full
def test_gymnax_is_imported_lightly_and_can_still_draw():
    run = subprocess.run(
        [sys.executable, "-c", DRAWING],
        env={**os.environ, "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr


def test_an_environment_without_an_id_leaves_no_hole_in_a_message():
    fields = {
        f.name: getattr(make("probe/action"), f.name) for f in dataclasses.fields(Env)
    }
    env = Env(**{name: x for name, x in fields.items() if name != "id"})
    with pytest.raises(InvalidInput) as refusal:
        PPO.validate(PPO.Config(squash=True), env)
    assert "that of the environment is" in str(refusal.value)
    assert "check_env(env)" in ENVIRONMENTS.remedy(env)
    assert "check-env probe/action" in ENVIRONMENTS.remedy(
        env.replace(id="probe/action")
    )
