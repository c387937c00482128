"""Adapters of other JAX libraries, which are extras: skipped if they are missing.

`pip install -e '.[suites]'`, and `pytest -m 'slow or not slow' tests/envs/test_suites.py`.
"""

import importlib
import importlib.util
import re
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from jaxrl import PPO, init_world, make, spaces, unroll
from jaxrl.envs.suites import SUITES
from jaxrl.errors import InvalidInput
from jaxrl.interop.gymnasium import to_gymnasium
from jaxrl.types import Env
from tests.support.env_api import api_test
from tests.support.small import tiny

KEY = jax.random.key(0)
QUICK = {
    "brax": "inverted_pendulum",
    "jumanji": "Game2048-v1",
    "navix": "Navix-Empty-5x5-v0",
    "pgx": "minatar-breakout",
    "playground": "CartpoleBalance",
}
"""Environments that compile in seconds. The others, and all of Craftax, are slow."""

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # what the libraries warn of is theirs


def needs(library):
    adapter = importlib.import_module(f"jaxrl.envs.{library}")
    if importlib.util.find_spec(getattr(adapter, "MODULE", library)) is None:
        pytest.skip(f"{library} is not installed: pip install -e '.[{library}]'")


def ids():
    for library in SUITES:
        for name in importlib.import_module(f"jaxrl.envs.{library}").NAMES:
            marks = () if QUICK.get(library) == name else pytest.mark.full
            yield pytest.param(library, name, marks=marks, id=f"{library}/{name}")


def played(env, num_steps, num_envs=4, key=KEY):
    """Transitions `[T, N]` of random actions."""

    @jax.jit
    def play(key):
        def policy(obs, memory, key):
            return spaces.sample(env.action_space, key, (num_envs,)), memory, {}

        return unroll(env, policy, init_world(env, key, num_envs), num_steps)[1]

    return play(key)


@pytest.mark.parametrize(("library", "name"), list(ids()))
def test_every_environment_keeps_the_contract(library, name, capfd):
    needs(library)
    id = f"{library}/{name}"
    env = make(id)
    assert env.id == id
    assert jax.tree.structure(make(id)) == jax.tree.structure(env)  # one program
    assert capfd.readouterr().out == "", "printed to stdout, which is for results"
    api_test(env, num_steps=8)


@pytest.mark.parametrize(
    "library",
    [
        *("jumanji", "navix"),
        *(
            pytest.param(x, marks=pytest.mark.full)
            for x in ("brax", "craftax", "pgx", "playground")
        ),
    ],
)
def test_gymnasiums_checker_and_a_train_step(library):
    needs(library)
    env = make(f"{library}/{QUICK.get(library, 'Craftax-Classic-Symbolic-v1')}")
    own = f"test/{library}-v0"
    gymnasium.register(own, entry_point=lambda: to_gymnasium(env))
    try:
        check_env(gymnasium.make(own).unwrapped)
    finally:
        del gymnasium.registry[own]
    config = tiny(PPO, network="mlp")
    state = jax.jit(PPO.init)(config, env, KEY)
    _, metrics = jax.jit(PPO.train_step)(config, env, state)
    assert np.isfinite(metrics["loss/policy"].value)


@pytest.mark.full
def test_randomness_is_ours_and_ends_are_told_apart():
    """2048 terminates when no move is left, never by time; equal keys give equal games."""
    needs("pgx")
    game = make("pgx/2048", horizon=300)
    steps = played(game, 320)
    assert steps.terminated.any() and not steps.truncated.any()
    mask = np.asarray(steps.next_obs["action_mask"])
    assert (mask[np.asarray(steps.terminated)]).all()
    assert jnp.array_equal(played(game, 320).reward, steps.reward)
    assert not jnp.array_equal(
        played(game, 320, key=jax.random.key(1)).reward, steps.reward
    )


@pytest.mark.parametrize(
    ("id", "limit"),
    [
        ("navix/Navix-Empty-16x16-v0", 100),
        pytest.param("jumanji/SlidingTilePuzzle-v0", 500, marks=pytest.mark.full),
    ],
)
def test_the_time_limit_truncates(id, limit):
    needs(id.partition("/")[0])
    env = make(id, **({"max_steps": limit} if "navix" in id else {}))
    assert int(env.horizon) == limit
    state, _ = env.reset(KEY, env.params)
    step = jax.jit(env.step)
    ended = []
    for i in range(limit + 2):
        state, timestep = step(jax.random.key(i), state, jnp.int32(0), env.params)
        ended.append(bool(timestep.terminated | timestep.truncated))
    assert not any(ended), "the environment ends by itself at its limit"
    short = played(make(id, horizon=3), 6)
    assert bool(short.truncated[2].all()) and not short.terminated[2].any()


def test_what_jumanji_calls_the_time_is_left_out():
    needs("jumanji")
    env = make("jumanji/Snake-v1", num_rows=6, num_cols=6)
    assert int(env.horizon) == 4000
    assert {name for name, _ in env.observation_space.items} == {"grid", "action_mask"}
    assert env.observation_space["grid"].shape == (6, 6, 5)


def test_parameters():
    needs("navix")
    env = make("navix/Navix-Empty-5x5-v0", observation_fn="rgb", max_steps=7)
    assert int(env.horizon) == 7
    assert env.observation_space.dtype == "uint8"
    with pytest.raises(InvalidInput, match="did you mean 'symbolic'"):
        make("navix/Navix-Empty-5x5-v0", observation_fn="symbolc")
    needs("pgx")
    assert make("pgx/minatar-breakout").action_space.n == 3
    wide = make("pgx/minatar-breakout", use_minimal_action_set=False)
    assert wide.action_space.n == 6
    with pytest.raises(InvalidInput, match=r"stick = 1: pgx/.* cannot be built"):
        make("pgx/minatar-breakout", stick=1)


@pytest.mark.full
def test_a_dead_player_of_craftax_is_in_the_space():
    needs("craftax")
    renderer = importlib.import_module("craftax.craftax_classic.renderer")
    env = make("craftax/Craftax-Classic-Symbolic-v1")
    state, _ = jax.jit(env.reset)(KEY, env.params)
    dead = renderer.render_craftax_symbolic(state.replace(player_health=-4))
    assert dead.min() < 0 and spaces.contains(env.observation_space, dead)


# Without the libraries


def test_an_extra_that_is_missing_is_one_sentence(monkeypatch):
    for library in SUITES:
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(InvalidInput) as error:
            make(f"{library}/anything")
        assert re.fullmatch(
            rf"{library} is not installed .*: install the extra '{library}' .*\.",
            str(error.value),
        )


def test_unknown_names_get_a_hint(monkeypatch):
    monkeypatch.setitem(sys.modules, "brax", importlib)  # installed, as far as asked
    with pytest.raises(InvalidInput, match=r"'brax/antt' \(did you mean 'ant'\?\)"):
        make("brax/antt")


def test_names_are_read_without_the_libraries():
    for library in SUITES:
        adapter = importlib.import_module(f"jaxrl.envs.{library}")
        assert len(set(adapter.NAMES)) == len(adapter.NAMES) >= 4
        assert Env in vars(adapter).values()
