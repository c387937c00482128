"""Observations to inputs, torsos by shape, the recurrent network along time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import spaces
from jaxrl.networks.actor_critic import (
    ActorCritic,
    apply_sequence,
    apply_step,
    initial_memory,
    policy_distribution,
)
from jaxrl.networks.features import action_mask, feature_shape, features, uses_image
from jaxrl.networks.q_network import QNetwork

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
    assert feature_shape(space) == (6,)
    np.testing.assert_array_equal(action_mask(space, obs), mask)
    assert action_mask(IMAGE, obs) is None


def test_the_mask_may_lie_deep_in_the_dict():
    legal = spaces.dict_space(action_mask=spaces.box(0, 1, (2,), np.bool_))
    space = spaces.dict_space(board=spaces.box(0, 1, (3,)), rules=legal)
    mask = jnp.array([[True, False]])
    obs = {"board": jnp.ones((1, 3)), "rules": {"action_mask": mask}}
    assert features(space, obs).shape == (1, 3)
    np.testing.assert_array_equal(action_mask(space, obs), mask)


@pytest.mark.parametrize("shape", [(30, 40, 3), (2, 8, 3), (100, 100, 1)])
def test_a_cnn_takes_images_of_any_size(shape):
    cnn = QNetwork(3, (8,), "relu", image=True)
    params = cnn.init(KEY, jnp.zeros((1, *shape)))
    assert cnn.apply(params, jnp.zeros((2, *shape))).shape == (2, 3)
    dense = params["params"]["CNN_0"]["MLP_0"]["Dense_0"]["kernel"]
    assert 0 < dense.shape[0] <= 30 * 30 * 16


@pytest.mark.parametrize(
    ("space", "network", "expected"),
    [
        (IMAGE, "auto", True),
        (IMAGE, "mlp", False),
        (spaces.box(0, 1, (10, 5)), "auto", False),
        (spaces.Discrete(4), "auto", False),
    ],
)
def test_the_torso_is_chosen_by_observation_shape(space, network, expected):
    assert uses_image(space, network) is expected


def test_a_cnn_sees_an_image_and_an_mlp_a_vector():
    obs = jnp.zeros((2, *IMAGE.shape), bool)
    cnn = QNetwork(3, (8,), "relu", image=True)
    params = cnn.init(KEY, features(IMAGE, obs, image=True))
    assert params["params"]["CNN_0"]["Conv_0"]["kernel"].shape == (3, 3, 4, 16)
    assert cnn.apply(params, features(IMAGE, obs, image=True)).shape == (2, 3)
    mlp = QNetwork(3, (8,), "relu")
    params = mlp.init(KEY, features(IMAGE, obs))
    assert params["params"]["MLP_0"]["Dense_0"]["kernel"].shape == (400, 8)


def test_policy_head_starts_near_uniform_and_value_near_zero_scale():
    net = ActorCritic(spaces.Discrete(4), (64, 64), "tanh")
    x = jax.random.normal(KEY, (100, 6))
    params = net.init(KEY, (), x)
    _, logits, value = apply_step(net, params, (), x)
    probabilities = jax.nn.softmax(logits)
    np.testing.assert_allclose(probabilities, 0.25, atol=0.02)
    assert value.shape == (100,)


def test_gru_along_time_equals_step_by_step_with_resets():
    net = ActorCritic(spaces.Discrete(2), (8,), "tanh", gru_size=4)
    x = jax.random.normal(KEY, (6, 3, 5))
    done = jax.random.bernoulli(KEY, 0.4, (6, 3))
    start = jax.random.normal(KEY, (3, 4))
    params = net.init(KEY, start, x[0])
    memories, logits, values = apply_sequence(net, params, start, x, done)

    memory = start
    for t in range(6):
        memory, logit, value = apply_step(net, params, memory, x[t])
        np.testing.assert_allclose(memory, memories[t], atol=1e-6)
        np.testing.assert_allclose(logit, logits[t], atol=1e-6)
        np.testing.assert_allclose(value, values[t], atol=1e-6)
        memory = jnp.where(done[t][:, None], 0.0, memory)


def test_feed_forward_has_no_memory():
    assert initial_memory(0, 3) == ()
    assert initial_memory(4, 3).shape == (3, 4)


@pytest.mark.parametrize("squash", [False, True])
def test_box_actions_are_in_the_units_of_the_space(squash):
    space = spaces.box([-2.0, 0.0], [2.0, 10.0], (2,))
    mean, log_std = jnp.zeros((1000, 2)), jnp.full((1000, 2), -3.0)
    pi = policy_distribution(space, (mean, log_std), squash=squash)
    np.testing.assert_allclose(pi.mode()[0], [0.0, 5.0], atol=1e-5)
    spread = pi.sample(seed=KEY).std(0)
    np.testing.assert_allclose(spread, np.exp(-3.0) * np.array([2.0, 5.0]), rtol=0.1)


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
