"""`jaxrl.envs.wrappers`: stacked observations and actions, sticky actions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import spaces
from jaxrl.envs import make
from jaxrl.envs.wrappers import stack_history, sticky_actions
from jaxrl.errors import InvalidInput
from jaxrl.types import Env, TimeStep
from tests.support.env_api import api_test

KEY = jax.random.key(0)
THREE = spaces.Discrete(3)
VECTOR = spaces.box(1.0, 99.0, (2,))
IMAGE = spaces.box(0, 255, (3, 4, 2), np.uint8)
MASKED = spaces.dict_space(
    level=spaces.Discrete(100),
    view=VECTOR,
    action_mask=spaces.box(0, 1, (3,), bool),
)


def count(space, t):
    """Observation number t, of any space: t everywhere."""
    if isinstance(space, spaces.Dict):
        return {name: count(child, t) for name, child in space.items}
    return jnp.full(space.shape, t, space.dtype)


def _reset(space, key, params):
    del key, params
    return jnp.int32(1), count(space, jnp.int32(1))


def _step(space, key, t, action, params):
    """The reward is the (first) action that arrived."""
    del key, params
    reward = jnp.ravel(jnp.asarray(action, jnp.float32))[0]
    no = jnp.bool_(False)
    return t + 1, TimeStep(count(space, t + 1), reward, no, no, {})


@functools.cache
def counting_env(observation_space, action_space=THREE):
    """Observations 1, 2, 3, ..."""
    reset = functools.partial(_reset, observation_space)
    step = functools.partial(_step, observation_space)
    return Env((), None, reset, step, observation_space, action_space)


def play(env, actions):
    """The observations after reset and after each action, as numpy."""
    state, obs = env.reset(KEY, env.params)
    seen = [obs]
    for action in actions:
        state, step = env.step(KEY, state, action, env.params)
        seen.append(step.obs)
    return jax.device_get(seen)


# History


def test_history_of_vectors_and_actions():
    env = stack_history(counting_env(VECTOR), 3)
    seen = play(env, [jnp.int32(2), jnp.int32(0), jnp.int32(1)])
    first_numbers = [obs["obs"][:, 0].tolist() for obs in seen]
    assert first_numbers == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert seen[0]["obs"].shape == (3, 2)
    assert (seen[0]["actions"] == 0).all()
    assert seen[1]["actions"].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert seen[3]["actions"].tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_history_begins_anew_with_reset():
    env = stack_history(counting_env(VECTOR), 2)
    before, _, _ = play(env, [jnp.int32(1)] * 2)
    again = play(env, [])[0]
    jax.tree.map(np.testing.assert_array_equal, before, again)


def test_history_without_actions_is_an_array():
    env = stack_history(counting_env(VECTOR), 2, actions=False)
    assert env.observation_space == spaces.box(0.0, 99.0, (2, 2))
    assert play(env, [0])[1].tolist() == [[1, 1], [2, 2]]


def test_history_of_images_stacks_channels():
    env = stack_history(counting_env(IMAGE), 2)
    assert env.observation_space == spaces.box(0, 255, (3, 4, 4), np.uint8)
    obs = play(env, [0, 0])[2]
    assert obs.dtype == np.uint8
    assert obs[1, 2].tolist() == [2, 2, 3, 3]
    asked = stack_history(counting_env(IMAGE), 2, actions=True)
    assert play(asked, [])[0]["obs"].shape == (3, 4, 4)
    assert play(asked, [1])[1]["actions"].tolist() == [[0, 0, 0], [0, 1, 0]]


def test_history_of_discrete_observations_is_one_hot():
    env = stack_history(counting_env(spaces.Discrete(4)), 2, actions=False)
    assert env.observation_space == spaces.box(0.0, 1.0, (2, 4))
    assert play(env, [])[0].tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]


def test_history_of_a_dictionary_passes_the_mask_through():
    env = stack_history(counting_env(MASKED), 2)
    obs = play(env, [1])[1]
    assert obs["view"].tolist() == [[1, 1], [2, 2]]
    assert obs["level"].argmax(axis=1).tolist() == [1, 2]
    assert obs["action_mask"].tolist() == [True] * 3
    assert env.observation_space["action_mask"] == MASKED["action_mask"]
    assert set(obs) == {"view", "level", "action_mask", "actions"}


def test_history_of_box_actions_is_flat_and_clipped():
    action_space = spaces.box(-1.0, 2.0, (1, 2))
    env = stack_history(counting_env(VECTOR, action_space), 2)
    obs = play(env, [jnp.array([[0.5, 7.0]])])[1]
    assert obs["actions"].tolist() == [[0, 0], [0.5, 2]]
    assert env.observation_space["actions"] == spaces.box(-1.0, 2.0, (2, 2))


def test_history_refuses_what_it_cannot_do():
    for wrong in (0, True, 1.5):
        with pytest.raises(InvalidInput, match=f"history = {wrong}"):
            stack_history(counting_env(VECTOR), wrong)
    named = counting_env(spaces.dict_space(actions=VECTOR))
    with pytest.raises(InvalidInput, match="entry named 'actions'"):
        stack_history(named, 2)
    assert play(stack_history(named, 2, actions=False), [])[0]["actions"].shape == (
        2,
        2,
    )


def test_history_gives_what_a_memory_must_remember():
    env = make("probe/memory", length=3, history=4)
    state, obs = env.reset(KEY, env.params)
    cue = obs["obs"][-1, 0]
    for _ in range(3):
        state, step = env.step(KEY, state, 0, env.params)
    assert step.obs["obs"][0, 0] == cue != 0
    assert step.obs["obs"][-1].tolist() == [0, 1]


# Sticky actions


def executed(env, actions):
    """The action that the inner environment received at each step."""

    def step(state, key_and_action):
        key, action = key_and_action
        state, timestep = env.step(key, state, action, env.params)
        return state, timestep.reward

    state, _ = env.reset(KEY, env.params)
    keys = jax.random.split(KEY, len(actions))
    return jax.lax.scan(step, state, (keys, jnp.asarray(actions)))[1]


def test_sticky_actions_at_the_extremes():
    env = counting_env(VECTOR)
    actions = [2, 0, 1, 0, 2, 1]
    assert executed(sticky_actions(env, 0.0), actions).tolist() == actions
    assert executed(sticky_actions(env, 1.0), actions).tolist() == [2] * 6


def test_sticky_actions_repeat_as_often_as_said():
    env = sticky_actions(counting_env(VECTOR), 0.25)
    actions = np.arange(8000) % 3  # every action differs from the one before
    done = np.asarray(executed(env, actions))
    repeated = done[1:] == done[:-1]
    # A new action may by chance equal the last one carried out, so the frequency is
    # compared with that of the definition, simulated.
    rng = np.random.default_rng(0)
    last, expected = actions[0], []
    for action in actions[1:]:
        new = last if rng.random() < 0.25 else action
        expected.append(new == last)
        last = new
    np.testing.assert_allclose(repeated.mean(), np.mean(expected), atol=0.03)
    assert done[0] == actions[0]


def test_sticky_probability_is_data():
    env = sticky_actions(counting_env(VECTOR), jnp.array([0.0, 1.0]))
    axes = jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, env)
    done = jax.vmap(lambda env: executed(env, [2, 0, 1]), in_axes=(axes,))(env)
    assert done.tolist() == [[2, 0, 1], [2, 2, 2]]


# Both


WRAPPED = {
    "vector": stack_history(counting_env(VECTOR), 3),
    "image": stack_history(counting_env(IMAGE), 2, actions=True),
    "dictionary": stack_history(counting_env(MASKED), 2),
    "sticky box": sticky_actions(make("probe/continuous"), 0.5),
    "sticky history": stack_history(sticky_actions(make("probe/delay"), 0.5), 2),
    "history of masks": make("probe/masked", history=2),
    "history of FrozenLake": make("FrozenLake-misc", history=2, sticky_prob=0.1),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_environments_keep_the_contract(name):
    api_test(WRAPPED[name], num_steps=8)


def test_wrapping_twice_is_one_program():
    def wrap(prob):
        return stack_history(sticky_actions(counting_env(VECTOR), prob), 2)

    assert jax.tree.structure(wrap(0.1)) == jax.tree.structure(wrap(0.2))
    other = stack_history(counting_env(VECTOR), 3)
    assert jax.tree.structure(wrap(0.1)) != jax.tree.structure(other)


def test_make_wraps():
    env = make("probe/action", sticky_prob=0.25, history=2)
    assert float(env.params.sticky_prob) == 0.25
    assert set(dict(env.observation_space.items)) == {"obs", "actions"}
    assert env.id == "probe/action"
