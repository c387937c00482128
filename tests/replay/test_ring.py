"""The replay ring: ids in, ids out, in place."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.errors import InvalidInput
from jaxrl.replay import ring

KEY = jax.random.key(0)
EXAMPLE = jax.ShapeDtypeStruct((), jnp.int32)

add = jax.jit(ring.add)
sample = jax.jit(ring.sample, static_argnames="batch_size")


def ids(first_row, num_rows, num_envs):
    """Rows of consecutive ids, from 1: a zero would be a row that was never written."""
    first = 1 + first_row * num_envs
    return (first + np.arange(num_rows * num_envs)).reshape(num_rows, num_envs)


def filled(capacity, num_envs, writes, chunk=1, rows_per_write=None):
    memory = ring.init(EXAMPLE, capacity, num_envs, chunk)
    rows = rows_per_write or chunk
    for write in range(writes):
        memory = add(memory, ids(write * rows, rows, num_envs))
    return memory


def test_a_fresh_ring_holds_nothing_in_the_examples_dtypes():
    example = {
        "obs": jnp.zeros((84, 84), jnp.uint8),
        "action": np.int32(0),
        "done": jax.ShapeDtypeStruct((), jnp.bool_),
    }
    memory = ring.init(example, capacity=10, num_envs=4)
    # 10 transitions need 3 rows of 4.
    assert memory.data["obs"].shape == (3, 4, 84, 84)
    assert memory.data["obs"].dtype == jnp.uint8
    assert memory.data["action"].dtype == jnp.int32
    assert memory.data["done"].dtype == jnp.bool_
    assert ring.num_stored(memory) == 0


def test_the_newest_rows_are_kept():
    memory = filled(capacity=6, num_envs=2, writes=4)
    assert sorted(np.ravel(memory.data)) == [3, 4, 5, 6, 7, 8]
    assert ring.num_stored(memory) == 6
    assert memory.head.position == 1


def test_all_leaves_of_a_sample_are_of_one_transition():
    example = {"id": EXAMPLE, "twice": jax.ShapeDtypeStruct((2,), jnp.float32)}
    memory = ring.init(example, capacity=8, num_envs=2)
    rows = ids(0, 3, 2)
    batch = {"id": rows, "twice": np.repeat(2.0 * rows[..., None], 2, axis=-1)}
    memory = ring.add(memory, batch)
    drawn = ring.sample(memory, KEY, 64)
    assert drawn["twice"].shape == (64, 2)
    np.testing.assert_array_equal(drawn["twice"][:, 1], 2.0 * drawn["id"])


@settings(max_examples=25, deadline=None)
@given(
    capacity=st.sampled_from([1, 7, 12]),
    num_envs=st.sampled_from([1, 3, 5]),
    chunk=st.sampled_from([1, 2]),
    writes=st.integers(1, 6),
)
def test_exactly_the_newest_rows_are_stored(capacity, num_envs, chunk, writes):
    memory = ring.init(EXAMPLE, capacity, num_envs, chunk)
    num_rows = len(memory.data)
    assert num_rows % chunk == 0
    assert capacity <= num_rows * num_envs < capacity + num_envs * chunk
    for write in range(writes):
        memory = add(memory, ids(write * chunk, chunk, num_envs))
    written = writes * chunk
    stored = min(written, num_rows)
    assert ring.num_stored(memory) == stored * num_envs
    held = np.array(memory.data)[: memory.head.size]
    newest = ids(written - stored, stored, num_envs)
    assert sorted(held.ravel()) == sorted(newest.ravel())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**31))
def test_a_row_that_nobody_wrote_is_never_drawn(writes, seed):
    # 10 transitions in rows of 3: 4 rows, and 12 transitions.
    memory = filled(capacity=10, num_envs=3, writes=writes)
    newest = ids(max(0, writes - 4), min(writes, 4), 3)
    assert np.isin(sample(memory, jax.random.key(seed), 32), newest).all()


@pytest.mark.parametrize("rows_per_write", [4, 8, 12])
def test_many_chunks_in_one_call_equal_as_many_calls(rows_per_write):
    at_once = filled(24, 3, 24 // rows_per_write, 4, rows_per_write)
    one_by_one = filled(24, 3, 6, 4)
    np.testing.assert_array_equal(at_once.data, one_by_one.data)
    assert at_once.head.position == one_by_one.head.position
    # More rows than the ring has: the newest stay.
    memory = ring.add(ring.init(EXAMPLE, 6, 3), ids(0, 5, 3))
    assert sorted(np.ravel(memory.data)) == [10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("writes, stored", [(3, 6), (9, 10)])
def test_sampling_is_uniform_over_what_is_stored(writes, stored):
    memory = filled(capacity=10, num_envs=2, writes=writes)
    newest = ids(0, writes, 2).ravel()[-stored:]
    num_samples = 20_000
    drawn = sample(memory, KEY, num_samples)
    values, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_array_equal(values, newest)
    expected = num_samples / stored
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 28.0  # the 99.9th percentile with 9 degrees of freedom


def test_indices_are_uniform_over_what_is_stored():
    memory = filled(capacity=10, num_envs=2, writes=3)
    index = ring.sample_indices(memory, KEY, (300, 200))
    assert index.shape == (300, 200) and index.dtype == jnp.int32
    assert index.min() == 0 and index.max() == 5
    counts = np.bincount(np.ravel(index), minlength=6)
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 20.5  # the 99.9th percentile with 5 degrees of freedom
    # Successive draws are independent: all pairs come equally often.
    pairs = np.bincount(np.ravel(index[:, ::2] * 6 + index[:, 1::2]), minlength=36)
    chi_square = ((pairs - 30_000 / 36) ** 2 / (30_000 / 36)).sum()
    assert chi_square < 66.6  # 35 degrees of freedom


def test_the_transitions_of_indices_come_in_their_shape():
    memory = filled(capacity=10, num_envs=2, writes=3)  # ids 1 ... 6
    index = jnp.array([[0, 5, 2], [3, 3, 1]])
    np.testing.assert_array_equal(ring.take(memory, index), index + 1)


def test_the_upper_product_is_the_upper_word():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 2**32, (2, 20_000), dtype=np.uint32)
    y[:5_000] >>= rng.integers(0, 32, 5_000, dtype=np.uint32)  # small ones too
    x[:3], y[:3] = 2**32 - 1, (2**32 - 1, 1, 2**16)
    expected = (x.astype(np.uint64) * y.astype(np.uint64)) >> np.uint64(32)
    found = jax.jit(ring._upper_product)(x, y)
    assert found.dtype == jnp.uint32
    np.testing.assert_array_equal(found, expected)


def test_different_keys_draw_different_samples():
    memory = filled(capacity=100, num_envs=2, writes=50)
    one, two = (sample(memory, jax.random.key(seed), 32) for seed in (0, 1))
    assert (one != two).any()


def test_bad_sizes_are_refused():
    with pytest.raises(InvalidInput, match="num_envs=0"):
        ring.init(EXAMPLE, 10, 0)
    with pytest.raises(InvalidInput, match="int32"):
        ring.init(EXAMPLE, 2**31, 4)
    with pytest.raises(InvalidInput, match="chunk=4 cannot take 6 rows"):
        ring.add(ring.init(EXAMPLE, 16, 2, chunk=4), ids(0, 6, 2))


ROWS, NUM_ENVS, MEMBERS = 96, 4, 3
LEAVES = {
    "obs": jax.ShapeDtypeStruct((5,), jnp.float32),
    "pixels": jax.ShapeDtypeStruct((3, 3), jnp.uint8),
}


def add_and_sample(memory, key, num_steps):
    """A loop with the structure of an off-policy train step."""

    def step(memory, key):
        def new(leaf):
            shape = (num_steps, NUM_ENVS, *leaf.shape)
            return jnp.full(shape, jax.random.key_data(key)[0] % 256, leaf.dtype)

        memory = ring.add(memory, jax.tree.map(new, LEAVES))
        drawn = ring.sample(memory, key, 8)
        return memory, sum(x.sum(dtype=jnp.float32) for x in jax.tree.leaves(drawn))

    return jax.lax.scan(step, memory, jax.random.split(key, 5))


def population(head_axis):
    """`add_and_sample` over a population, with heads shared (None) or not (0)."""
    axes = ring.Ring(data=0, head=head_axis)
    function = partial(add_and_sample, num_steps=1)
    return jax.vmap(function, in_axes=(axes, 0), out_axes=(axes, 0))


def stacked(memory, head_axis):
    def repeat(x):
        return jnp.broadcast_to(x, (MEMBERS, *x.shape))

    head = memory.head if head_axis is None else jax.tree.map(repeat, memory.head)
    return memory.replace(data=jax.tree.map(repeat, memory.data), head=head)


def compiled_text(function, memory, key):
    donated = jax.jit(function, donate_argnums=0)
    return donated.lower(memory, key).compile().as_text()


def buffer_copies(program):
    """Instructions that copy an array with as many rows as the memory."""
    return re.findall(rf"= \w+\[(?:\d+,)?{ROWS},{NUM_ENVS},[\d,]+\]\S* copy\(", program)


@pytest.mark.parametrize("num_steps, chunk", [(1, 1), (4, 4), (4, 1)])
def test_the_memory_is_written_in_place(num_steps, chunk):
    memory = ring.init(LEAVES, ROWS * NUM_ENVS, NUM_ENVS, chunk)
    function = partial(add_and_sample, num_steps=num_steps)
    program = compiled_text(function, memory, KEY)
    assert f"{ROWS},{NUM_ENVS},5]" in program
    assert "dynamic-update-slice(" in program
    assert buffer_copies(program) == []
    assert "scatter(" not in program


def test_the_memory_of_a_population_is_written_in_place():
    memory = stacked(ring.init(LEAVES, ROWS * NUM_ENVS, NUM_ENVS), None)
    keys = jax.random.split(KEY, MEMBERS)
    program = compiled_text(population(None), memory, keys)
    assert f"{MEMBERS},{ROWS},{NUM_ENVS},5]" in program
    assert "dynamic-update-slice(" in program
    assert buffer_copies(program) == []
    assert "scatter(" not in program


def test_these_checks_would_see_a_copy_and_a_scatter():
    memory = ring.init(LEAVES, ROWS * NUM_ENVS, NUM_ENVS)
    # A head for each member is what `Shared` avoids.
    keys = jax.random.split(KEY, MEMBERS)
    program = jax.jit(population(0)).lower(stacked(memory, 0), keys).as_text()
    assert "scatter" in program
    # Not donated, the ring has to be copied once.
    undonated = jax.jit(partial(add_and_sample, num_steps=1))
    assert buffer_copies(undonated.lower(memory, KEY).compile().as_text())


def test_a_population_holds_what_its_members_would():
    memory = ring.init(LEAVES, ROWS * NUM_ENVS, NUM_ENVS)
    keys = jax.random.split(KEY, MEMBERS)
    together, _ = jax.jit(population(None))(stacked(memory, None), keys)
    run_alone = jax.jit(partial(add_and_sample, num_steps=1))
    for member in range(MEMBERS):
        alone, _ = run_alone(memory, keys[member])
        pixels = together.data["pixels"][member]
        np.testing.assert_array_equal(pixels, alone.data["pixels"])
        np.testing.assert_array_equal(together.head.position, alone.head.position)


def test_what_follows_is_in_the_order_of_time_around_the_end_of_the_buffer():
    memory = ring.init(jnp.int32(0), capacity=10, num_envs=2)
    for t in range(7):  # rows 5, 6 over 0, 1
        memory = ring.add(memory, jnp.array([[2 * t, 2 * t + 1]]))
    index = jnp.array([4, 9, 3])  # times 2, 4 and 6
    found, newest = ring.ahead(memory, index, 3)
    np.testing.assert_array_equal(
        ring.take(memory, found), [[4, 9, 13], [6, 11, 5], [8, 13, 7]]
    )
    np.testing.assert_array_equal(newest.T, [[0, 0, 0], [0, 0, 1], [1, 0, 0]])
