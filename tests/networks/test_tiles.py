"""`jaxrl.networks.tiles`: by hand, and what makes it a tile coder."""

import jax
import numpy as np
import pytest

from jaxrl.errors import InvalidInput
from jaxrl.networks.tiles import active_tiles, tile_features, tiling

CAR = tiling([-1.2, -0.07], [0.5, 0.07])


def points(n=500):
    return np.random.default_rng(0).uniform([-1.2, -0.07], [0.5, 0.07], (n, 2))


def test_one_number_by_hand():
    """Four tilings of a line of two tiles: each a quarter further."""
    tiles = tiling([0.0], [2.0], num_tilings=4, num_tiles=2)
    assert tiles.num_features == 4 * 3
    np.testing.assert_array_equal(active_tiles(tiles, np.array([0.0])), [0, 3, 6, 9])
    np.testing.assert_array_equal(active_tiles(tiles, np.array([0.3])), [0, 3, 6, 10])
    np.testing.assert_array_equal(active_tiles(tiles, np.array([0.8])), [0, 4, 7, 10])
    np.testing.assert_array_equal(active_tiles(tiles, np.array([1.0])), [1, 4, 7, 10])


def test_displacements_are_one_and_three():
    """Where u_1 passes into the next tile, by tiling: 1/8 of a tile each; u_2: 3/8."""
    x = np.linspace(0.001, 0.999, 999)
    plane = tiling([0.0, 0.0], [1.0, 1.0], 8, 1)
    for axis, displacement in enumerate((1, 3)):
        obs = np.zeros((999, 2))
        obs[:, axis] = x
        tile = np.asarray(active_tiles(plane, obs)) - np.arange(8) * 4
        moved = tile != tile[:1]
        border = np.where(moved.any(0), x[moved.argmax(0)], 1.0)
        expected = 1 - np.arange(8) * displacement % 8 / 8
        np.testing.assert_allclose(border, expected, atol=0.002)


def test_one_tile_of_each_tiling_is_active():
    active = np.asarray(active_tiles(CAR, points()))
    assert active.shape == (500, 8)
    assert (active // 81 == np.arange(8)).all()
    x = np.asarray(tile_features(CAR, points()))
    assert x.shape == (500, CAR.num_features) == (500, 648)
    assert (x.sum(axis=1) == 8).all()
    np.testing.assert_array_equal(np.argsort(-x, axis=1, kind="stable")[:, :8], active)


def test_near_points_share_tiles_and_far_ones_none():
    active = np.asarray(active_tiles(CAR, points()))
    unit = (points() - [-1.2, -0.07]) / [1.7 / 8, 0.14 / 8]
    distance = np.abs(unit[:, None] - unit[None]).max(-1)
    shared = (active[:, None] == active[None]).sum(-1)
    assert (shared[distance > 1.01] == 0).all()
    assert (shared[distance < 0.124] >= 4).all()


def test_outside_is_the_nearest_tile():
    plane = tiling([0.0, 0.0], [4.0, 4.0])
    beyond = active_tiles(plane, np.array([[-9.0, 1.0], [9.0, 9.0]]))
    at_the_edge = active_tiles(plane, np.array([[0.0, 1.0], [4.0, 4.0]]))
    np.testing.assert_array_equal(beyond, at_the_edge)
    assert jax.jit(active_tiles, static_argnums=0)(CAR, points()).dtype == np.int32


@pytest.mark.parametrize(
    ("low", "high", "sizes", "message"),
    [
        ([0.0], [0.0], {}, "low below high"),
        ([0.0], [np.inf], {}, "must be finite"),
        ([0.0], [1.0, 2.0], {}, "low below high"),
        ([0.0], [1.0], {"num_tilings": 0}, "num_tilings = 0: must be at least 1"),
        ([0.0], [1.0], {"num_tiles": 0}, "num_tiles = 0: must be at least 1"),
    ],
)
def test_what_is_no_box_is_refused(low, high, sizes, message):
    with pytest.raises(InvalidInput, match=message):
        tiling(low, high, **sizes)
