"""`jaxrl.spaces`: what a space is, which actions can be chosen, casts without loss."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import PPO, make, spaces
from jaxrl.errors import InvalidInput
from jaxrl.training.loop import prepare

UNIT = spaces.box(-1.0, 1.0, (2,))

NO_SPACES = {
    "a dict": ({"pos": UNIT}, "dict_space(pos=...)"),
    "None": (None, "NoneType"),
    "a class": (spaces.Box, "type"),
    "an empty Dict": (spaces.Dict(()), "without entries"),
    "a dict in a Dict": (spaces.dict_space(a={"b": UNIT}), "['a'] is a dict"),
    "a number as name": (spaces.Dict(((1, UNIT),)), "entry 1"),
    "a name twice": (spaces.Dict((("a", UNIT), ("a", UNIT))), "entry 'a'"),
    "names alone": (spaces.Dict(("a", "b", "c")), "pairs"),
    "no actions": (spaces.Discrete(0), "n = 0"),
    "half an action": (spaces.Discrete(2.5), "n = 2.5"),
    "too many for 32 bits": (spaces.Discrete(2**31), "n = 2147483648"),
    "too many for 8 bits": (spaces.Discrete(300, "uint8"), "n = 300"),
    "a Discrete of floats": (spaces.Discrete(3, "float32"), "integers"),
    "an unknown dtype": (spaces.Box((0.0,), (1.0,), (1,), "float33"), "float33"),
    "no elements": (spaces.box(0.0, 1.0, (0,)), "shape (0,)"),
    "low > high": (spaces.box(1.0, -1.0, (2,)), "low = [1.0] and high = [-1.0]"),
    "NaN": (spaces.box(np.nan, 1.0, (2,)), "low = [nan]"),
    "too few bounds": (spaces.Box((0.0,), (1.0,), (2,)), "1 and 1 bounds"),
    "a bound beyond uint8": (spaces.box(0, 300, (1,), np.uint8), "bound [300.0]"),
    "a bound beyond bool": (spaces.box(-1, 1, (1,), bool), "bound [-1.0]"),
    "a bound beyond int32": (spaces.box(0, 2**31, (1,), np.int32), "2147483648"),
    "a shape of floats": (spaces.Box((0.0,), (1.0,), (1.0,)), "shape (1.0,)"),
    "a number as shape": (spaces.Box((0.0,), (1.0,), 1), "shape 1"),
    "lists": (spaces.Box([0.0], [1.0], [1]), "hash"),
}


@pytest.mark.parametrize("name", NO_SPACES)
def test_what_is_no_space_is_refused_before_anything_compiles(name):
    space, words = NO_SPACES[name]
    env = make("probe/action")
    for field in ("observation_space", "action_space"):
        with pytest.raises(InvalidInput, match=f"{field} of probe/action") as refusal:
            prepare(PPO, PPO.Config(), env.replace(**{field: space}))
        assert words in str(refusal.value)


MOST = float(np.finfo(np.float32).max)

NO_ACTIONS = {
    "a constant element": spaces.box([0.0, -1.0], [0.0, 1.0], (2,)),
    "equal in float32": spaces.box(1e8, 1e8 + 1, (1,)),
    "float32's limits": spaces.box(-MOST, MOST, (2,)),
    "float64's limits": spaces.box(-1e300, 1e300, (2,)),
    "integers": spaces.box(0, 10, (2,), np.int32),
    "bytes": spaces.box(0, 255, (2,), np.uint8),
}


@pytest.mark.parametrize("name", NO_ACTIONS)
def test_actions_that_no_policy_can_choose_are_refused(name):
    env = make("probe/action").replace(action_space=NO_ACTIONS[name])
    with pytest.raises(InvalidInput, match="action_space of probe/action is a Box"):
        prepare(PPO, PPO.Config(), env)
    spaces.check(NO_ACTIONS[name], "observation_space")  # which may be so


def test_actions_with_any_other_bounds_are_taken():
    inf = np.inf
    for low, high in ((-1, 1), (0, inf), (-inf, inf), (-1e25, 1e25), (-1e-25, 1e-25)):
        spaces.check_actions(spaces.box(low, high, (3,)), "action_space")
    spaces.check_actions(spaces.dict_space(a=UNIT, b=spaces.Discrete(2)), "both")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.uint32, np.int64])
def test_observations_have_every_bound_that_their_dtype_holds(dtype):
    low, high = spaces.limits(dtype)
    for bounds in ((low, high), (-np.inf, np.inf)):
        spaces.check(spaces.box(*bounds, (1,), dtype), "observation_space")


def test_a_description_is_json_whatever_the_numbers_are_made_of():
    odd = spaces.Box((np.float32(0), np.int64(-1)), (1, np.inf), (np.int64(2),), "f4")
    space = spaces.dict_space(a=odd, b=spaces.Discrete(np.int64(3), np.int32))
    again = spaces.from_description(json.loads(json.dumps(spaces.describe(space))))
    assert spaces.is_compatible(space, again)
    assert spaces.describe(again) == spaces.describe(space)


def test_samples_of_integers_reach_both_bounds():
    drawn = spaces.sample(spaces.box(-1, 2, (3,), np.int32), jax.random.key(0), (99,))
    assert drawn.dtype == jnp.int32 and set(np.unique(drawn)) == {-1, 0, 1, 2}


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.int64(2**33), "int32"),
        (np.array([1, 300]), "uint8"),
        (np.array(-1), "uint32"),
        (np.array([0.5]), "int32"),
        (np.array(np.nan), "int32"),
        (np.array(2), "bool"),
        (np.array([1.0, 1e39]), "float32"),
    ],
)
def test_a_number_that_does_not_fit_is_refused(given, dtype):
    with pytest.raises(InvalidInput, match=f"obs has the value .* {dtype} cannot"):
        spaces.narrow(given, dtype, "obs")


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.array([0.1, np.inf, np.nan]), "float32"),
        (np.array([3.0, -2.0]), "int32"),
        (np.array([2**33]), "float32"),
        ([True, False], "float32"),
        (np.array([0, 1]), "bool"),
    ],
)
def test_numbers_that_fit_are_cast(given, dtype):
    narrowed = spaces.narrow(given, dtype, "obs")
    assert narrowed.dtype == dtype
    np.testing.assert_allclose(narrowed, np.asarray(given, float))


def test_arrays_of_jax_are_cast_as_any_others():
    for given, dtype in (([300], "uint8"), ([-1], "uint32"), ([0.5], "int32")):
        with pytest.raises(InvalidInput, match=f"obs has the value .* {dtype} cannot"):
            spaces.cast(jnp.array(given), dtype, "obs")
    assert spaces.cast(jnp.array([3.0]), "uint8", "obs").dtype == jnp.uint8
    with pytest.raises(InvalidInput, match="int32 cannot hold"):  # JAX has 32 bits
        spaces.cast([2**32 + 5], "int64", "obs")
    traced = jax.eval_shape(lambda x: spaces.cast(x, "uint8", "obs"), jnp.array([300]))
    assert traced.dtype == jnp.uint8


@pytest.mark.parametrize(
    ("dtype", "given", "nearest"),
    [
        (bool, [0.2, 0.5, 0.9, -3.0, 7.0], [False, True, True, False, True]),
        (np.uint8, [-0.6, 254.6, 300.0], [0, 255, 255]),
        (np.int32, [-1.6, np.inf, 2.0**31], [-2, 2**31 - 1, 2**31 - 1]),
        (np.int64, [-np.inf, 2.0**63, 3.0], [-(2**63), 2**63 - 1, 3]),
        (np.uint64, [-1.0, 2.0**64, 2.0**40], [0, 2**64 - 1, 2**40]),
        (np.int64, 2.0**63, 2**63 - 1),
    ],
)
def test_real_numbers_are_rounded_to_the_nearest_ones_of_a_dtype(dtype, given, nearest):
    rounded = spaces.round_to(given, dtype)
    assert rounded.dtype == dtype and rounded.tolist() == nearest
