"""`jaxrl.data.minari`: datasets survive a round trip through Minari."""

import errno
import json
import sys
import warnings

import gymnasium
import jax.numpy as jnp
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from jaxrl import spaces
from jaxrl.data import dataset
from jaxrl.data.minari import from_minari, to_minari
from jaxrl.errors import InvalidInput
from tests.support.small import assert_trees_equal


@pytest.fixture(autouse=True)
def minari_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


@pytest.fixture
def data(tmp_path):
    """Two episodes, one terminated and one truncated, with images and a number."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 4, 5, 3), np.uint8)
    # Where an episode goes on, the next observation is the next row's.
    next_image = np.concatenate([image[1:], image[:1]])
    next_image[1] = 255 - image[1]
    space = spaces.dict_space(
        image=spaces.box(0, 255, (4, 5, 3), np.uint8), n=spaces.Discrete(9)
    )
    saved = dataset.Dataset(
        obs={"image": jnp.asarray(image), "n": jnp.array([0, 1, 0, 1, 2, 3])},
        action=jnp.asarray(rng.normal(size=(6, 2)), jnp.float32),
        reward=jnp.arange(6.0) / 3,
        terminated=jnp.array([False, True, False, False, False, False]),
        truncated=jnp.array([False] * 5 + [True]),
        next_obs={"image": jnp.asarray(next_image), "n": jnp.array([1, 2, 1, 2, 3, 4])},
        observation_space=space,
        action_space=spaces.box([-np.inf, 0.1], np.inf, (2,)),
    )
    about = {"env": "test/images", "seed": 3, "policy": {"algorithm": "ppo"}}
    dataset.save(tmp_path / "data", saved, about)
    return tmp_path / "data"


def test_there_and_back_the_columns_are_equal_bit_for_bit(data, tmp_path):
    to_minari(data, "test/images-v0")
    about = from_minari("test/images-v0", tmp_path / "back")
    assert_trees_equal(dataset.load(tmp_path / "back"), dataset.load(data))
    assert about == dataset.read_about(data) | {"minari": "test/images-v0"}


def test_minari_reads_it_as_its_own(data):
    to_minari(data, "test/images-v0")
    found = minari.load_dataset("test/images-v0")
    ours = dataset.load(data)
    assert (found.total_episodes, found.total_steps) == (2, 6)
    assert found.storage.metadata["algorithm_name"] == "ppo"
    assert found.observation_space["n"] == gymnasium.spaces.Discrete(9)
    first, second = found.iterate_episodes()
    np.testing.assert_array_equal(first.observations["n"], [0, 1, 2])
    np.testing.assert_array_equal(second.observations["n"], [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(second.actions, ours.action[2:])
    np.testing.assert_array_equal(first.rewards, ours.reward[:2])
    assert list(first.terminations) == [False, True] and not first.truncations.any()
    assert list(second.truncations) == [False] * 3 + [True]


def foreign(name, action_space, actions):
    """A dataset in 64 bits from another program, whose last episode is incomplete."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            name,
            [
                EpisodeBuffer(
                    id=k,
                    observations=np.array([[0.5], [1.5], [2.5]]) + k,
                    actions=actions,
                    rewards=[1.0, 2.0],
                    terminations=[False, k == 0],
                    truncations=[False, False],
                    infos={},
                )
                for k in range(2)
            ],
            observation_space=gymnasium.spaces.Box(-9, 9, (1,), np.float64),
            action_space=action_space,
            algorithm_name="theirs",
        )


def test_a_dataset_of_others_becomes_one_of_ours(tmp_path):
    foreign("theirs-v1", gymnasium.spaces.Discrete(3), np.array([2, 1]))
    about = from_minari("theirs-v1", tmp_path / "data")
    assert about["policy"] == {"algorithm": "theirs"} and about["env"] is None
    found = dataset.load(tmp_path / "data")
    assert found.observation_space == spaces.box(-9, 9, (1,))
    assert found.action_space == spaces.Discrete(3)
    np.testing.assert_array_equal(found.obs[:, 0], [0.5, 1.5, 1.5, 2.5])
    np.testing.assert_array_equal(found.next_obs[:, 0], [1.5, 2.5, 2.5, 3.5])
    np.testing.assert_array_equal(found.action, [2, 1, 2, 1])
    np.testing.assert_array_equal(found.terminated, [0, 1, 0, 0])
    np.testing.assert_array_equal(found.truncated, [0, 0, 0, 1])
    assert found.obs.dtype == jnp.float32 and found.action.dtype == jnp.int32


def test_a_number_that_does_not_fit_is_refused(tmp_path):
    foreign("large-v1", gymnasium.spaces.Discrete(3), np.array([2, 2**33]))
    with pytest.raises(InvalidInput, match="action of the dataset has the value"):
        from_minari("large-v1", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "space",
    [gymnasium.spaces.Discrete(3, start=1), gymnasium.spaces.MultiDiscrete([4])],
)
def test_a_space_without_a_counterpart_is_refused(space, tmp_path):
    actions = np.array([1, 2]) if space.shape == () else np.array([[1], [2]])
    foreign("odd-v0", space, actions)
    with pytest.raises(InvalidInput, match="has no counterpart in jaxrl"):
        from_minari("odd-v0", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["bad name!", "noversion", "test/images-v0"])
def test_a_name_that_minari_does_not_take_is_refused(data, name):
    to_minari(data, "test/images-v0")
    with pytest.raises(InvalidInput, match=f"name = '{name}': Minari refuses it"):
        to_minari(data, name)


def test_a_dataset_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        InvalidInput, match=r"Minari cannot load it .* `minari download`"
    ):
        from_minari("none/none-v0", tmp_path / "data")


def test_without_minari_a_sentence_says_how_to_install_it(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(InvalidInput, match=r"pip install 'jaxrl\[minari\]'"):
        to_minari(data, "test/images-v0")


@pytest.mark.parametrize("policy", [["ppo"], "ppo", None])
def test_a_policy_that_is_described_otherwise_has_no_name(data, tmp_path, policy):
    about = dataset.read_about(data) | {"policy": policy}
    dataset.save(tmp_path / "odd", dataset.load(data), about)
    to_minari(tmp_path / "odd", "test/images-v0")
    from_minari("test/images-v0", tmp_path / "back")
    assert dataset.read_about(tmp_path / "back")["policy"] == policy


@pytest.mark.parametrize("about", [5, [], {}, {"observation_space": {}}])
def test_our_metadata_of_another_shape_are_refused(data, tmp_path, about):
    to_minari(data, "test/images-v0")
    stored = minari.load_dataset("test/images-v0").storage
    stored.update_metadata({"jaxrl": json.dumps(about)})
    with pytest.raises(InvalidInput, match="images-v0"):
        from_minari("test/images-v0", tmp_path / "back")


def test_a_disk_that_fails_is_no_bad_name(tmp_path, monkeypatch):
    def fail(name):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(minari, "load_dataset", fail)
    with pytest.raises(OSError, match="Input/output"):
        from_minari("test/images-v0", tmp_path / "data")
