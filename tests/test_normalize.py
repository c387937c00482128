"""Running statistics against numpy on all the data at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl import normalize

update = jax.jit(normalize.update)
update_reward = jax.jit(normalize.update_reward)
property_test = settings(max_examples=25, deadline=None)


def test_before_any_data_nothing_changes_but_the_clip():
    stats = normalize.init((3,))
    assert (stats.mean == 0.0).all()
    assert (stats.var == 1.0).all()
    assert stats.count == 0.0
    x = jnp.array([[-0.3, 20.0, 2.0], [0.0, -20.0, 1e-3]])
    np.testing.assert_allclose(normalize.normalize(stats, x), x.clip(-10, 10), 1e-6)
    np.testing.assert_allclose(normalize.normalize(stats, x, 1.0), x.clip(-1, 1), 1e-6)


def test_hand_numbers():
    stats = update(normalize.init(), jnp.array([1.0, 3.0]))
    assert (stats.mean, stats.var, stats.count) == (2.0, 1.0, 2.0)
    stats = update(stats, jnp.array([2.0, 6.0]))
    # Of 1, 3, 2, 6: mean 3, biased variance (4 + 0 + 1 + 9) / 4.
    np.testing.assert_allclose([stats.mean, stats.var], [3.0, 3.5], rtol=1e-6)
    assert stats.count == 4.0
    scaled = normalize.normalize(stats, jnp.array([3.0, 3.0 + np.sqrt(3.5)]))
    np.testing.assert_allclose(scaled, [0.0, 1.0], atol=1e-6)


@property_test
@given(
    hnp.arrays(np.float32, (12, 2), elements=st.floats(-100, 100, width=32)),
    st.sampled_from([0.0, 1e3, -1e5]),
)
def test_batches_merge_to_the_statistics_of_all_the_data(data, offset):
    data = np.float32(data + offset)
    stats = normalize.init((2,))
    for batch in (data[:1], data[1:4], data[4:].reshape(2, 4, 2)):
        stats = update(stats, batch)
    exact = np.float64(data)
    magnitude = np.abs(exact).max() + 1e-3
    np.testing.assert_allclose(stats.mean, exact.mean(0), atol=1e-6 * magnitude)
    # What a float32 near the offset can resolve bounds the spread's accuracy.
    std_error = np.abs(np.sqrt(stats.var) - exact.std(0))
    assert (std_error < 1e-5 * exact.std(0) + 1e-6 * magnitude).all()
    assert stats.count == 12.0


def test_any_leading_axes_and_any_shape():
    data = jax.random.normal(jax.random.key(0), (3, 5, 2, 4))
    stats = update(normalize.init((2, 4)), data)
    np.testing.assert_allclose(stats.mean, data.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(stats.var, data.var((0, 1)), atol=1e-6)
    assert stats.count == 15.0
    one = update(normalize.init((2, 4)), data[0, 0])
    np.testing.assert_array_equal(one.mean, data[0, 0])
    np.testing.assert_array_equal(one.var, jnp.zeros((2, 4)))


def test_normalised_data_has_zero_mean_and_unit_variance():
    data = 50.0 + 1e-2 * jax.random.normal(jax.random.key(0), (4096, 3))
    stats = update(normalize.init((3,)), data)
    scaled = normalize.normalize(stats, data)
    np.testing.assert_allclose(scaled.mean(0), jnp.zeros(3), atol=1e-2)
    np.testing.assert_allclose(scaled.std(0), jnp.ones(3), atol=1e-2)


def test_small_scales_survive_the_first_batch():
    data = 1e-4 * jax.random.normal(jax.random.key(0), (1000,))
    stats = update(normalize.init(), data)
    np.testing.assert_allclose(stats.var, np.float64(data).var(), rtol=1e-5)


def test_whole_numbers_are_data_too():
    stats = update(normalize.init(), jnp.array([0, 255], jnp.uint8))
    assert (stats.mean, stats.var) == (127.5, 127.5**2)


def test_a_count_beyond_float32_integers():
    past = normalize.init().replace(mean=jnp.float32(1.0), count=jnp.float32(2.0**24))
    # 2^24 + 1 is no float32: the count rounds, the weights stay right.
    batch = jnp.full(2**20 + 1, 3.0)
    stats = update(past, batch)
    weight = batch.size / (2**24 + batch.size)
    np.testing.assert_allclose(stats.mean, 1.0 + 2.0 * weight, rtol=1e-6)
    var = (1 - weight) * 1.0 + weight * (1 - weight) * 4.0
    np.testing.assert_allclose(stats.var, var, rtol=1e-6)
    # Where a batch of one no longer counts, statistics stay finite and in place.
    stats = update(past.replace(count=jnp.float32(2.0**40)), jnp.array([3.0]))
    assert (stats.mean, stats.var, stats.count) == (1.0, 1.0, 2.0**40)


def test_a_batch_of_the_wrong_shape_is_refused():
    with pytest.raises(AssertionError):
        normalize.update(normalize.init((3,)), jnp.ones((5, 2)))


@pytest.mark.parametrize("value", [0.1, -7.7, 1234.567, 1e6])
def test_equal_numbers_are_normalised_to_exactly_zero(value):
    stats = normalize.init()
    for size in (3, 7):
        stats = update(stats, jnp.full(size, value))
    assert stats.var == 0.0
    assert normalize.normalize(stats, jnp.float32(value)) == 0.0


@pytest.mark.parametrize("value", [1e4, 1e6, -1048577.0])
def test_a_constant_that_is_rounded_differently_is_normalised_to_about_zero(value):
    value = np.float32(value)
    data = np.where(np.arange(256) % 2, value, np.nextafter(value, np.float32(np.inf)))
    stats = update(normalize.init(), jnp.asarray(data))
    assert jnp.abs(normalize.normalize(stats, data)).max() < 0.1


@pytest.mark.parametrize(("deviation", "error"), [(1.0, 2e-5), (0.5, 4e-5)])
@pytest.mark.parametrize("size", [1, 64])
def test_an_offset_of_a_million_deviations_costs_no_precision(size, deviation, error):
    noise = np.random.default_rng(0).normal(size=(4096, 2))
    data = np.float32(1e6 + deviation * noise)

    def merge(stats, batch):
        return normalize.update(stats, batch), None

    batches = data.reshape(-1, size, 2)
    stats, _ = jax.jit(lambda x: jax.lax.scan(merge, normalize.init((2,)), x))(batches)
    exact = np.float64(data)
    expected = (exact - exact.mean(0)) / exact.std(0)
    # A mean in one float32 is off by a quarter of a deviation, by updates of one.
    np.testing.assert_allclose(normalize.normalize(stats, data), expected, atol=error)


def test_rewards_pass_unscaled_before_any_data():
    reward = jnp.array([1.0, -0.5, 100.0])
    scaled = normalize.scale_reward(normalize.init_reward(), reward)
    np.testing.assert_allclose(scaled, [1.0, -0.5, 10.0], rtol=1e-6)


def test_the_trace_is_counted_first_and_reset_then():
    # Discount 1/2, an episode that ends after its second step. The returns so far are
    # 4, 4/2 + 8 = 10 (the end counts), and then 6 alone (nothing leaks).
    reward = jnp.array([[4.0], [8.0], [6.0]])
    done = jnp.array([[False], [True], [False]])
    stats, trace = update_reward(
        normalize.init_reward(), jnp.zeros(1), reward, done, 0.5
    )
    np.testing.assert_allclose(trace, [6.0])
    seen = np.array([4.0, 10.0, 6.0])
    np.testing.assert_allclose(stats.returns.mean, seen.mean(), rtol=1e-6)
    np.testing.assert_allclose(stats.returns.var, seen.var(), rtol=1e-6)
    assert stats.returns.count == 3.0
    scaled = normalize.scale_reward(stats, jnp.array([0.0, 2.0]))
    np.testing.assert_allclose(scaled, [0.0, 2.0 / seen.std()], rtol=1e-6)


@property_test
@given(
    hnp.arrays(np.float32, (6, 2), elements=st.floats(-5, 5, width=32)),
    hnp.arrays(bool, (6, 2)),
    st.floats(0, 1, width=32),
)
def test_reward_statistics_equal_a_loop(reward, done, gamma):
    stats, trace = normalize.init_reward(), jnp.zeros(2)
    for rows in (slice(0, 3), slice(3, 6)):
        stats, trace = update_reward(stats, trace, reward[rows], done[rows], gamma)
    returns, running = [], np.zeros(2)
    for t in range(6):
        running = gamma * running + reward[t]
        returns.append(running)
        running = np.where(done[t], 0.0, running)
    np.testing.assert_allclose(trace, running, atol=1e-5)
    np.testing.assert_allclose(stats.returns.mean, np.mean(returns), atol=1e-5)
    np.testing.assert_allclose(stats.returns.var, np.var(returns), rtol=1e-4, atol=1e-4)


def test_rewards_pass_as_they_are_where_returns_do_not_vary():
    stats = normalize.init_reward()
    reward, done = jnp.ones((4, 2)), jnp.ones((4, 2), bool)
    stats, _ = normalize.update_reward(stats, jnp.zeros(2), reward, done, 0.9)
    np.testing.assert_array_equal(normalize.scale_reward(stats, reward), 1.0)


@pytest.mark.parametrize("size", [1e-12, 1e-5, 1e-4, 1.0, 1e4])
def test_scaled_rewards_do_not_depend_on_their_unit(size):
    reward, done = jnp.full((5, 2), size), jnp.zeros((5, 2), bool)
    stats, _ = update_reward(normalize.init_reward(), jnp.zeros(2), reward, done, 0.99)
    returns = np.cumsum(0.99 ** np.arange(5))
    scaled = normalize.scale_reward(stats, jnp.float32(size))
    np.testing.assert_allclose(scaled, 1.0 / returns.std(), rtol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 1e-3, 1.0, 100.0])
def test_scaling_of_rewards_has_no_jump(mean):
    var = np.geomspace(1e-30, 1e4, 20_000, dtype=np.float32)
    stats = normalize.init((len(var),)).replace(mean=jnp.full(len(var), mean), var=var)
    stats = normalize.RewardStats(returns=stats)
    scale = np.asarray(normalize.scale_reward(stats, jnp.ones(len(var)), np.inf))
    assert (np.abs(np.diff(np.log(scale))) < 0.05).all()


def test_a_rollout_without_statistics_is_left_as_it_is():
    reward, done = jnp.ones((3, 2)), jnp.zeros((3, 2), bool)
    found = normalize.scaled_rollout(None, jnp.zeros(2), reward, done, 0.9)
    assert found[0] is reward and found[1] is None


def test_a_rollout_is_scaled_by_statistics_that_include_it():
    reward = jnp.arange(6.0).reshape(3, 2)
    done, trace = jnp.zeros((3, 2), bool), jnp.zeros(2)
    stats, after = update_reward(normalize.init_reward(), trace, reward, done, 0.9)
    found = normalize.scaled_rollout(normalize.init_reward(), trace, reward, done, 0.9)
    np.testing.assert_allclose(
        found[0], normalize.scale_reward(stats, reward), rtol=1e-6
    )
    np.testing.assert_allclose(found[2], after, rtol=1e-6)
