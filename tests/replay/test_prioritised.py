"""Prioritised replay: exact probabilities, sums that do not drift, in place."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl import estimators
from jaxrl.errors import InvalidInput
from jaxrl.replay import prioritised, ring
from tools import program

KEY = jax.random.key(0)
SLOTS, BATCH = 300, 8

add = jax.jit(prioritised.add, static_argnames="num_rows")
find = jax.jit(prioritised.find)
sample = jax.jit(prioritised.sample, static_argnames="shape")
ring_add = jax.jit(ring.add)
run_update = jax.jit(prioritised.update)


def update(priorities, index, error, alpha=1.0, eps=0.0):
    """As `prioritised.update`; one program for all batches of up to `BATCH`."""
    more = (0, BATCH - len(index))  # the first once more, which changes nothing
    index = np.pad(np.int32(index), more, constant_values=index[0])
    error = np.pad(np.float32(error), more, constant_values=error[0])
    return run_update(priorities, index, error, alpha, eps)


def holding(p):
    """Priorities that are these numbers, of which `SLOTS` at most are given."""
    empty = prioritised.init(SLOTS)
    level = np.zeros(len(empty.slots), np.float32)
    level[: len(p)] = p
    levels = [level]
    for sums in empty.sums:
        levels.append(levels[-1].reshape(len(sums), -1).sum(-1))
    slots, *sums = map(jnp.asarray, levels)
    return empty.replace(slots=slots, sums=tuple(sums))


def assert_holds(priorities, p):
    """These priorities, nothing behind them, and the sums of their blocks."""
    slots = np.asarray(priorities.slots, np.float64)
    np.testing.assert_allclose(slots[: len(p)], p, rtol=1e-6)
    assert not slots[len(p) :].any()
    for sums in priorities.sums:
        exact = slots.reshape(len(sums), -1).sum(-1)
        np.testing.assert_allclose(sums, exact, rtol=1e-6)


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 300, 10_000, 100_000, 1_000_000])
def test_there_is_room_for_every_slot_and_little_more(slots):
    shapes = jax.eval_shape(partial(prioritised.init, slots))
    sizes = [len(x) for x in (shapes.slots, *shapes.sums)]
    assert slots <= sizes[0] <= 1.2 * slots + 8
    widths = {below // above for below, above in itertools.pairwise(sizes)}
    assert len(sizes) == prioritised.LEVELS and len(widths) == 1
    root = slots ** (1 / prioritised.LEVELS)
    assert widths.pop() <= 1.5 * root and sizes[-1] <= 3 * root + 1


def test_all_state_is_arrays():
    priorities = prioritised.init(SLOTS)
    leaves, structure = jax.tree.flatten(priorities)
    assert [x.dtype for x in leaves] == [jnp.float32] * (prioritised.LEVELS + 1)
    assert structure == jax.tree.structure(update(priorities, [0], [1.0]))


@pytest.mark.full
def test_a_million_draws_have_the_probabilities_of_the_definition():
    rng = np.random.default_rng(0)
    p = 10.0 ** rng.uniform(-2, 1, 250)
    p[rng.random(250) < 0.2] = 0.0
    drawn, probability = sample(holding(p), KEY, (1_000_000,))
    expected = p / p.sum()
    np.testing.assert_allclose(probability, expected[drawn], rtol=2e-6)
    counts = np.bincount(drawn, minlength=250)
    assert counts[p == 0].sum() == 0
    stored = p > 0
    found = scipy.stats.chisquare(counts[stored], 1e6 * expected[stored])
    assert found.pvalue > 0.01
    # Draws that follow each other are independent.
    half = drawn.reshape(-1, 2) < 125
    table = np.histogram2d(half[:, 0], half[:, 1], 2)[0]
    assert scipy.stats.chi2_contingency(table).pvalue > 0.01


def test_draws_have_the_probabilities_of_the_definition():
    p = np.array([1.0, 0.0, 2.0, 5.0, 0.0, 0.5] + 20 * [0.25])
    drawn, probability = sample(holding(p), KEY, (20_000,))
    expected = p / p.sum()
    np.testing.assert_allclose(probability, expected[drawn], rtol=1e-6)
    counts = np.bincount(drawn, minlength=len(p))
    assert counts[p == 0].sum() == 0
    found = scipy.stats.chisquare(counts[p > 0], 20_000 * expected[p > 0])
    assert found.pvalue > 0.01


def test_the_batch_has_the_shape_asked_for():
    index, probability = sample(holding([1.0, 1.0]), KEY, (3, 4))
    assert index.shape == probability.shape == (3, 4)
    assert index.dtype == jnp.int32 and probability.dtype == jnp.float32
    assert set(np.ravel(index)) == {0, 1}


EDGES = [2.0**-24, 0.5, 1 - 2.0**-24]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 0.99), st.integers(0, 12))
def test_an_empty_slot_is_never_drawn(seed, empty, decades):
    """Also where rounding could push a draw over the edge of a node."""
    rng = np.random.default_rng(seed)
    p = np.float32(10.0 ** rng.uniform(-decades, decades, SLOTS))
    p[rng.random(SLOTS) < empty] = 0.0
    p[rng.integers(SLOTS)] = 1.0
    uniform = np.float32(rng.choice(EDGES, (81, prioritised.LEVELS)))
    drawn, probability = find(holding(p), uniform)
    assert (p[drawn] > 0).all()
    exact = p[drawn] / p.sum(dtype=np.float64)
    np.testing.assert_allclose(probability, exact, rtol=1e-5)


@pytest.mark.parametrize("slot", [0, 5, SLOTS - 1])
def test_where_one_slot_holds_data_all_draws_are_of_it(slot):
    p = np.zeros(SLOTS)
    p[slot] = 3.0
    uniform = np.array(np.meshgrid(*4 * [EDGES]), np.float32).reshape(4, -1).T
    drawn, probability = find(holding(p), uniform)
    assert (drawn == slot).all() and (probability == 1.0).all()


def test_a_draw_of_nothing_stays_inside():
    """What an empty memory gives is arbitrary, but no index outside of it."""
    drawn, _ = find(prioritised.init(SLOTS), np.full((81, 4), 0.5, np.float32))
    assert (drawn >= 0).all() and (drawn < SLOTS).all()


def test_draws_lie_strictly_between_0_and_1(monkeypatch):
    for end in (0.0, 1.0 - 2.0**-23):  # those of `jax.random.uniform`
        uniform = jnp.full((1,), end)
        monkeypatch.setattr(jax.random, "uniform", lambda *_, x=uniform: x)
        assert 0.0 < prioritised.draws(KEY, ()) < 1.0


@pytest.mark.fast_cases("3-1-5", "5-4-8")
@pytest.mark.parametrize(
    ("num_envs", "chunk", "rows"), [(3, 1, 5), (5, 4, 8), (1, 10, 10), (2, 75, 75)]
)
def test_new_transitions_have_the_largest_priority(num_envs, chunk, rows):
    """Through two turns of the ring, whose other slots keep theirs."""
    memory = ring.init(jnp.int32(0), SLOTS, num_envs, chunk)
    assert memory.data.size == SLOTS
    priorities, expected = prioritised.init(SLOTS), np.zeros(SLOTS)
    rng = np.random.default_rng(0)
    for _ in range(2 * SLOTS // (rows * num_envs) + 1):
        start = int(memory.head.position) * num_envs
        expected[(start + np.arange(rows * num_envs)) % SLOTS] = priorities.largest
        priorities = add(priorities, memory, num_rows=rows)
        memory = ring_add(memory, np.zeros((rows, num_envs), np.int32))
        stored = int(ring.num_stored(memory))
        assert (expected > 0).sum() == stored
        assert_holds(priorities, expected)
        index = rng.choice(stored, BATCH, replace=False)
        error = rng.normal(size=BATCH)
        priorities = update(priorities, index, error, 0.6, 0.01)
        expected[index] = np.float32((np.abs(error) + 0.01) ** 0.6)
        assert_holds(priorities, expected)
    assert priorities.largest > 1.0


def test_more_rows_than_the_ring_has():
    memory = ring.init(jnp.int32(0), SLOTS, 50)
    priorities = prioritised.add(prioritised.init(SLOTS), memory, num_rows=7)
    assert_holds(priorities, np.ones(SLOTS))


def test_updates_by_hand():
    priorities = holding([1.0, 1.0, 1.0, 1.0, 1.0])
    priorities = update(priorities, [1, 3, 4], [-3.0, 0.0, 8.0], 0.5, 1.0)
    assert_holds(priorities, [1, 2, 1, 1, 3])
    assert priorities.largest == 3.0
    # At α = 0 all are equal, whatever their errors.
    priorities = update(priorities, [1, 4], [9.0, 0.0], 0.0, 0.0)
    assert_holds(priorities, [1, 1, 1, 1, 1])
    assert priorities.largest == 3.0


def test_of_a_slot_that_is_in_the_batch_twice_the_larger_priority_remains():
    priorities = holding([1.0, 1.0, 1.0])
    for error in ([5.0, 2.0, 0.1, 3.0], [0.1, 2.0, 3.0, 5.0]):
        assert_holds(update(priorities, [2, 0, 2, 2], error), [2.0, 1.0, 5.0])


def test_errors_that_are_not_finite_do_not_poison_the_sums():
    priorities = holding([1.0] * 9).replace(largest=jnp.float32(4.0))
    error = [np.nan, np.inf, -np.inf, 3e38, 0.0]
    priorities = update(priorities, [0, 1, 2, 3, 4], error)
    low, high = prioritised.BOUNDS
    assert_holds(priorities, [4.0, 4.0, 4.0, high, low, 1.0, 1.0, 1.0, 1.0])
    drawn, probability = sample(priorities, KEY, (20_000,))
    assert (probability > 0).all() and (drawn <= 8).all()


def test_an_error_of_zero_without_epsilon_can_still_be_drawn():
    priorities = update(holding([1.0]), [0], [0.0], 0.6, 0.0)
    drawn, probability = sample(priorities, KEY, (20_000,))
    assert (drawn == 0).all() and (probability == 1.0).all()


@pytest.mark.full
def test_sums_do_not_drift_in_100_000_updates():
    """Of priorities that are now large, now small: sums of differences would."""
    stored = SLOTS - 7

    def step(priorities, key):
        keys = jax.random.split(key, 3)
        index, _ = prioritised.sample(priorities, keys[0], (BATCH,))
        # Half of them drawn uniformly, so that all become small and large again.
        other = jax.random.randint(keys[1], (BATCH // 2,), 0, stored)
        index = jnp.concatenate([index[: BATCH // 2], other])
        error = 10.0 ** jax.random.uniform(keys[2], (BATCH,), minval=-6, maxval=6)
        return prioritised.update(priorities, index, error, 0.9, 1e-6), None

    run = jax.jit(lambda p, keys: jax.lax.scan(step, p, keys)[0])
    priorities = run(holding([1.0] * stored), jax.random.split(KEY, 100_000))
    slots = np.asarray(priorities.slots[:stored], np.float64)
    assert (slots > 0).all()
    assert_holds(priorities, slots)
    index, probability = sample(priorities, KEY, (20_000,))
    exact = slots[index] / slots.sum()
    np.testing.assert_allclose(probability, exact, rtol=1e-5)


@pytest.mark.parametrize("num_slots", [0, -1, 2**31])
def test_bad_sizes_are_refused(num_slots):
    with pytest.raises(InvalidInput, match=f"num_slots={num_slots}"):
        prioritised.init(num_slots)


ROWS, NUM_ENVS, MEMBERS = 2_000, 2, 3
IN_PLACE = {"dynamic-update-slice", "scatter", "while", "fusion", "call", "conditional"}
READS = {"gather", "dynamic-slice"}
FREE = {*program.FREE, "reshape"}


def train(memory, priorities, keys):
    """A loop with the structure of a train step that learns from prioritised replay."""

    def step(carry, key):
        memory, priorities = carry
        priorities = prioritised.add(priorities, memory, memory.chunk)
        new = jnp.full((memory.chunk, NUM_ENVS), jax.random.key_data(key)[0] % 256)
        memory = ring.add(memory, new)
        index, probability = prioritised.sample(priorities, key, (BATCH,))
        # As of learning: errors do not depend on the weights of the loss.
        error = ring.take(memory, index).astype(jnp.float32)
        weight = estimators.importance_weights(probability, 0.4)
        priorities = prioritised.update(priorities, index, error, 0.6, 1e-6)
        return (memory, priorities), (index, weight @ error)

    return jax.lax.scan(step, (memory, priorities), keys)


def beginning(chunk=1):
    memory = ring.init(jnp.uint32(0), ROWS * NUM_ENVS, NUM_ENVS, chunk)
    return memory, prioritised.init(ROWS * NUM_ENVS)


def stacked(x):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (MEMBERS, *x.shape)), x)


def population(memory, priorities, keys):
    """Members with priorities and data of their own, and one head."""
    axes = ring.Ring(data=0, head=None)
    return jax.vmap(train, (axes, 0, 0), ((axes, 0), 0))(memory, priorities, keys)


def whole_passes(text, size):
    """Instructions that read or write `size` elements or more, except in place."""
    found = []
    for lines in program.computations(text).values():
        sizes = {
            line.split(" = ")[0].split()[-1]: program.size_of(line) for line in lines
        }
        for line in lines:
            name = program.operation(line)
            words = re.findall(r"%?[\w.\-]+", line.partition(f" {name}(")[2])
            if name in IN_PLACE | READS | FREE:
                continue
            if max([program.size_of(line), *(sizes.get(x, 0) for x in words)]) >= size:
                found.append(line)
    return found


def compiled_text(function, *arguments):
    donated = jax.jit(function, donate_argnums=(0, 1))
    return donated.lower(*arguments).compile().as_text()


@pytest.mark.full
@pytest.mark.parametrize("chunk", [1, 4])
def test_nothing_passes_over_the_memory(chunk):
    text = compiled_text(train, *beginning(chunk), jax.random.split(KEY, 5))
    slots = beginning(chunk)[1].slots
    assert f"f32[{len(slots)}]" in text
    assert whole_passes(text, ROWS * NUM_ENVS) == []


@pytest.mark.full
def test_nothing_passes_over_the_memory_of_a_population():
    memory, priorities = beginning()
    memory = memory.replace(data=stacked(memory.data))
    keys = jax.random.split(KEY, (MEMBERS, 5))
    text = compiled_text(population, memory, stacked(priorities), keys)
    assert whole_passes(text, ROWS * NUM_ENVS) == []


@pytest.mark.full
def test_these_checks_would_see_a_pass_and_a_copy():
    slots = beginning()[1].slots

    def step(slots, key):
        return slots.at[0].set(slots.sum()), slots[1]

    def loop(slots, keys):
        return jax.lax.scan(step, slots, keys)

    keys = jax.random.split(KEY, 5)
    text = jax.jit(loop, donate_argnums=0).lower(slots, keys).compile().as_text()
    assert any("reduce" in line for line in whole_passes(text, ROWS * NUM_ENVS))
    copied = jax.jit(train).lower(*beginning(), keys).compile().as_text()
    assert any("copy(" in line for line in whole_passes(copied, ROWS * NUM_ENVS))


@pytest.mark.full
def test_a_population_holds_what_its_members_would():
    memory, priorities = beginning()
    keys = jax.random.split(KEY, (MEMBERS, 5))
    shared = memory.replace(data=stacked(memory.data))
    (_, together), drawn = jax.jit(population)(shared, stacked(priorities), keys)
    alone = jax.jit(train)
    for member in range(MEMBERS):
        (_, found), (index, _) = alone(memory, priorities, keys[member])
        np.testing.assert_array_equal(drawn[0][member], index)
        for mine, theirs in zip(
            jax.tree.leaves(found), jax.tree.leaves(together), strict=True
        ):
            np.testing.assert_allclose(mine, theirs[member], rtol=1e-6)
