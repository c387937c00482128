"""Observations to inputs, torsos by shape, the recurrent network along time."""

import json
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import PPO, make, spaces
from jaxrl.core.config import check
from jaxrl.errors import InvalidInput
from jaxrl.networks import (
    CNN,
    MLP,
    ActorCritic,
    Body,
    QNetwork,
    action_mask,
    encoded_shape,
    policy_distribution,
    resolve,
)
from jaxrl.networks.body import NAMES, Network, initial_memory
from jaxrl.networks.encoding import features
from jaxrl.networks.memory import clear
from tests.support.small import tiny

KEY = jax.random.key(0)
IMAGE = spaces.box(0, 1, (10, 10, 4), np.bool_)


def test_discrete_observations_are_one_hot():
    x = features(spaces.Discrete(3), jnp.array([[2, 0]]))
    np.testing.assert_array_equal(x, [[[0, 0, 1], [1, 0, 0]]])


def test_native_dtypes_become_float32_at_the_door():
    for dtype in (np.bool_, np.int32, np.uint8, np.float32):
        space = spaces.box(0, 1, (2, 3), dtype)
        x = features(space, jnp.ones((5, 2, 3), dtype))
        assert x.dtype == jnp.float32 and x.shape == (5, 6) and (x == 1).all()


def test_bytes_up_to_255_are_scaled():
    space = spaces.box(0, 255, (2,), np.uint8)
    np.testing.assert_allclose(
        features(space, jnp.array([[255, 51]], jnp.uint8)), [[1, 0.2]]
    )


def test_dict_leaves_are_joined_by_name_without_the_mask():
    space = spaces.dict_space(
        z=spaces.Discrete(2),
        a=spaces.box(-1, 1, (2, 2)),
        action_mask=spaces.box(0, 1, (3,), np.bool_),
    )
    mask = jnp.array([True, False, True])
    obs = {"z": jnp.int32(1), "a": jnp.arange(4.0).reshape(2, 2), "action_mask": mask}
    np.testing.assert_array_equal(features(space, obs), [0, 1, 2, 3, 0, 1])
    assert encoded_shape(space) == (6,)
    np.testing.assert_array_equal(action_mask(space, obs), mask)
    assert action_mask(IMAGE, obs) is None


def test_the_mask_may_lie_deep_in_the_dict():
    legal = spaces.dict_space(action_mask=spaces.box(0, 1, (2,), np.bool_))
    space = spaces.dict_space(board=spaces.box(0, 1, (3,)), rules=legal)
    mask = jnp.array([[True, False]])
    obs = {"board": jnp.ones((1, 3)), "rules": {"action_mask": mask}}
    assert features(space, obs).shape == (1, 3)
    np.testing.assert_array_equal(action_mask(space, obs), mask)


@pytest.mark.full
@pytest.mark.parametrize("shape", [(30, 40, 3), (2, 8, 3), (100, 100, 1)])
def test_a_cnn_takes_images_of_any_size(shape):
    cnn = QNetwork(spaces.box(0, 1, shape), 3, Body(CNN((8,), "relu")))
    params = cnn.init(KEY, jnp.zeros((1, *shape)))
    assert cnn.apply(params, jnp.zeros((2, *shape))).shape == (2, 3)
    dense = params["params"]["CNN_0"]["MLP_0"]["Dense_0"]["kernel"]
    assert 0 < dense.shape[0] <= 30 * 30 * 16


@pytest.mark.parametrize(
    ("space", "network", "expected"),
    [
        (IMAGE, "auto", CNN),
        (IMAGE, "mlp", MLP),
        (spaces.box(0, 1, (10, 5)), "auto", MLP),
        (spaces.Discrete(4), "auto", MLP),
    ],
)
def test_the_torso_is_chosen_by_observation_shape(space, network, expected):
    config = PPO.Config(network=network)
    assert isinstance(resolve(config, space).torso, expected)


@pytest.mark.full
def test_a_cnn_sees_an_image_and_an_mlp_a_vector():
    obs = jnp.zeros((2, *IMAGE.shape), bool)
    cnn = QNetwork(IMAGE, 3, Body(CNN((8,), "relu")))
    params = cnn.init(KEY, obs)
    assert params["params"]["CNN_0"]["Conv_0"]["kernel"].shape == (3, 3, 4, 16)
    assert cnn.apply(params, obs).shape == (2, 3)
    params = QNetwork(IMAGE, 3, Body(MLP((8,), "relu"))).init(KEY, obs)
    assert params["params"]["MLP_0"]["Dense_0"]["kernel"].shape == (400, 8)


LINE = spaces.box(-9, 9, (5,))


def test_policy_head_starts_near_uniform_and_value_near_zero_scale():
    net = ActorCritic(LINE, spaces.Discrete(4), Body(MLP()))
    obs = jax.random.normal(KEY, (100, 5))
    params = net.init(KEY, (), obs)
    _, logits, value = net.apply(params, (), obs)
    probabilities = jax.nn.softmax(logits)
    np.testing.assert_allclose(probabilities, 0.25, atol=0.02)
    assert value.shape == (100,)


RECURRENT = (
    "gru(size=4)",
    "lstm(size=4)",
    "transformer(size=8, num_heads=2, context=3)",
)


@pytest.mark.fast_cases("lstm*")
@pytest.mark.parametrize(
    "network", [*RECURRENT, "transformer(size=8, num_heads=2, num_layers=2, context=4)"]
)
def test_along_time_equals_step_by_step_with_resets(network):
    body = resolve(PPO.Config(network=network, hidden_sizes=(8,)), LINE)
    net = ActorCritic(LINE, spaces.Discrete(2), body)
    obs = jax.random.normal(KEY, (6, 3, 5))
    done = jax.random.bernoulli(KEY, 0.4, (6, 3))
    memory = initial_memory(body, 3)
    params = net.init(KEY, memory, obs[0])
    middle, *first = net.apply(params, memory, obs[:2], None, done[:2])
    last, *second = net.apply(params, middle, obs[2:], None, done[2:])
    logits, values = map(jnp.concatenate, zip(first, second, strict=True))
    for t in range(6):
        memory, logit, value = net.apply(params, memory, obs[t])
        np.testing.assert_allclose(logit, logits[t], atol=1e-6)
        np.testing.assert_allclose(value, values[t], atol=1e-6)
        memory = clear(memory, done[t])
    for a, b in zip(*map(jax.tree.leaves, (memory, last)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("network", RECURRENT)
def test_what_was_seen_before_an_episode_ended_is_forgotten(network):
    body = resolve(PPO.Config(network=network, hidden_sizes=(8,)), LINE)
    net = ActorCritic(LINE, spaces.Discrete(2), body)
    obs = jax.random.normal(KEY, (4, 1, 5))
    other = obs.at[0].add(3.0)
    memory = initial_memory(body, 1)
    params = net.init(KEY, memory, obs[0])

    def values(obs, done):
        return net.apply(params, memory, obs, None, jnp.asarray(done)[:, None])[2]

    ended, goes_on = [False, True, False, False], [False] * 4
    np.testing.assert_array_equal(values(obs, ended)[2:], values(other, ended)[2:])
    assert (values(obs, goes_on)[2:] != values(other, goes_on)[2:]).all()


@pytest.mark.full
def test_the_transformer_sees_its_context_and_no_further():
    body = resolve(PPO.Config(network=RECURRENT[2], hidden_sizes=()), LINE)
    net = ActorCritic(LINE, spaces.Discrete(2), body)
    obs = jax.random.normal(KEY, (6, 1, 5))
    memory = initial_memory(body, 1)
    params = net.init(KEY, memory, obs[0])
    done = jnp.zeros((6, 1), bool)
    value = net.apply(params, memory, obs, None, done)[2]
    changed = net.apply(params, memory, obs.at[0].add(3.0), None, done)[2]
    assert (value[:4] != changed[:4]).all()  # itself and three steps after it
    np.testing.assert_array_equal(value[4:], changed[4:])


def test_feed_forward_has_no_memory():
    assert initial_memory(Body(MLP()), 3) == ()
    gru = resolve(PPO.Config(network="gru(size=4)"), LINE)
    assert initial_memory(gru, 3).shape == (3, 4)


class Squares(nn.Module):
    """A network of a user's: takes the observation as it is, a dict."""

    size: int = 4
    act: Callable = jax.nn.relu

    @nn.compact
    def __call__(self, obs):
        x = jnp.concatenate([obs["a"], jnp.square(obs["a"])], -1)
        return self.act(nn.Dense(self.size)(x))


@pytest.mark.parametrize(
    "value",
    [
        *(name for name in NAMES),
        "gru(size=3)",
        "gru(size=3, layer_norm=True)",
        "transformer(size=8, num_layers=2)",
        MLP((3,), "relu", layer_norm=True),
        Squares(3, act=jnp.tanh),
        Body(Squares(), nn.OptimizedLSTMCell(4)),
    ],
    ids=str,
)
def test_a_network_comes_back_from_json(value):
    assert Network.problem(value) is None
    plain = json.loads(json.dumps(Network.to_plain(value)))
    again = Network.from_plain(plain)
    if isinstance(value, Body):
        assert again.torso == value.torso and again.cell.features == 4
    else:
        assert again == value


@pytest.mark.full
@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("auto", "mlp", "gru")])
def test_every_named_network_trains(name):
    image = name in ("cnn", "cnn_layer_norm", "resnet")
    env = make("Catch-bsuite" if not image else "Breakout-MinAtar")
    config = tiny(PPO, network=name)
    PPO.validate(config, env)
    state = PPO.init(config, env, KEY)
    _, metrics = jax.jit(PPO.train_step)(config, env, state)
    assert all(jnp.isfinite(m.sum) for m in metrics.values())


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("mpl", "did you mean 'mlp'"),
        ("gru(64)", "gru"),
        ("gru(width=3)", "gru"),
        ("gru(layer_norm=1)", "layer_norm = 1 must be True or False"),
        ("auto_layer_norm(size=3)", "auto_layer_norm"),
        (3, "flax module"),
        (MLP([3, 4]), "hashable"),
    ],
)
def test_a_bad_network_is_refused_before_anything_compiles(value, field):
    with pytest.raises(InvalidInput, match=re.escape(field)):
        check(PPO.Config(network=value))


@pytest.mark.parametrize(
    ("plain", "named"),
    [
        ({"module": "no_such_module_here:Net", "fields": {}}, "no_such_module_here"),
        ({"module": "jaxrl.networks:Nothing", "fields": {}}, "Nothing"),
        ({"module": "jaxrl.networks:resolve", "fields": {}}, "no flax module"),
    ],
)
def test_what_a_folder_names_is_imported_or_refused(plain, named):
    with pytest.raises(InvalidInput, match=named):
        Network.from_plain(plain)


@pytest.mark.parametrize("squash", [False, True])
def test_box_actions_are_in_the_units_of_the_space(squash):
    space = spaces.box([-2.0, 0.0], [2.0, 10.0], (2,))
    mean, log_std = jnp.zeros((1000, 2)), jnp.full((1000, 2), -3.0)
    pi = policy_distribution(space, (mean, log_std), squash=squash)
    np.testing.assert_allclose(pi.mode()[0], [0.0, 5.0], atol=1e-5)
    spread = pi.sample(seed=KEY).std(0)
    np.testing.assert_allclose(spread, np.exp(-3.0) * np.array([2.0, 5.0]), rtol=0.1)


@pytest.mark.full
def test_squashed_actions_never_leave_the_box():
    space = spaces.box(-2.0, 2.0, (1,))
    pi = policy_distribution(
        space, (jnp.full((500, 1), 3.0), jnp.ones((500, 1))), None, True
    )
    action = pi.sample(seed=KEY)
    assert (jnp.abs(action) <= 2.0).all() and jnp.isfinite(pi.log_prob(action)).all()


def test_an_unbounded_box_is_a_plain_normal():
    space = spaces.box(-np.inf, np.inf, (1,))
    pi = policy_distribution(space, (jnp.zeros((1, 1)), jnp.zeros((1, 1))))
    np.testing.assert_allclose(pi.log_prob(jnp.zeros((1, 1))), -0.5 * np.log(2 * np.pi))


@pytest.mark.parametrize(
    "text, message",
    [
        *((f"gru(size={x})", f"size = {x} must be") for x in ("0", "-1", "1.5", "'a'")),
        *(
            (f"transformer({x}=0)", f"{x} = 0 must be 1")
            for x in ("num_heads", "context")
        ),
        ("transformer(gate_bias='a')", "must be a number"),
        ("resnet(channels=3)", "must be a list"),
        *((x, "or a name with sizes") for x in ("auto(cell=3)", "mlp()()", "gru(3)")),
        *((x, "or a name with sizes") for x in ("gru(size=3).x", "gru(size=2) or 1")),
        *((x, "or a name with sizes") for x in ("gru(sizes=3)", "gru(*[3])")),
    ],
)
def test_sizes_that_cannot_be_are_said(text, message):
    assert message in str(Network.problem(text))
