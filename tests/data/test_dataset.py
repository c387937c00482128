"""`jaxrl.data.dataset`, `jaxrl collect`: complete episodes, each once and unchanged."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import spaces
from jaxrl.cli import main
from jaxrl.core import storage
from jaxrl.data import dataset
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.types import Algorithm, Env, TimeStep, no_memory
from tests.cli.test_cli import refused
from tests.support.small import assert_trees_equal, counting_env

KEY = jax.random.key(0)


def act(config, env, agent, obs, memory, key, greedy):
    """The observation as an integer, plus the agent's number if sampled."""
    del config, env, key
    x = jax.tree.leaves(obs)[0].reshape(len(jax.tree.leaves(obs)[0]), -1)[:, 0]
    return x.astype(jnp.int32) + (0 if greedy else agent), memory, {"value": x}


ECHO = Algorithm("echo", object, *[None] * 2, act, None, None, no_memory)  # type: ignore


def record(env: Env, num_episodes: int, greedy: bool = True, **kwargs):
    return dataset.record(
        ECHO, (), env, jnp.int32(7), KEY, num_episodes, greedy, **kwargs
    )


def random_length_env() -> Env:
    """Episodes of 1 to 9 steps, drawn at the start, with dictionary observations."""

    def obs(length, count):
        return {"count": count, "image": jnp.full((2, 2), length, jnp.uint8)}

    def reset(key, params):
        del params
        length = jax.random.randint(key, (), 1, 10)
        return (length, jnp.int32(0)), obs(length, jnp.int32(0))

    def step(key, state, action, params):
        del key, action, params
        length, count = state[0], state[1] + 1
        ends = count == length
        return (length, count), TimeStep(
            obs(length, count), jnp.float32(1), ends, jnp.bool_(False), {}
        )

    return Env(
        params=(),
        horizon=None,
        reset=reset,
        step=step,
        observation_space=spaces.dict_space(
            count=spaces.Discrete(10), image=spaces.box(0, 255, (2, 2), np.uint8)
        ),
        action_space=spaces.Discrete(100),
        id="test/lengths",
    )


@pytest.fixture(scope="module")
def lengths() -> dataset.Dataset:
    """300 episodes of random length: more than one round, and not a multiple."""
    return record(random_length_env(), 300 - 1)


def test_rows_are_those_of_an_episode_played_by_hand():
    found = record(counting_env(ends_after=3), 2)
    np.testing.assert_array_equal(found.obs[:, 0], [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(found.next_obs[:, 0], [1, 2, 3, 1, 2, 3])
    np.testing.assert_array_equal(found.action, [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(found.reward, [1, 2, 3, 1, 2, 3])
    np.testing.assert_array_equal(found.terminated, [0, 0, 1, 0, 0, 1])
    assert not found.truncated.any()
    np.testing.assert_array_equal(dataset.ends(found), [3, 6])
    np.testing.assert_array_equal(dataset.episode_returns(found), [6, 6])
    first = dataset.first_episodes(found, 1)
    assert first.num_steps == 3 and dataset.first_episodes(found, 5).num_steps == 6


def test_a_sampled_action_is_another_than_the_likeliest():
    found = record(counting_env(ends_after=2), 1, greedy=False)
    np.testing.assert_array_equal(found.action, [7, 8])


def test_episodes_longer_than_a_block_are_whole_and_in_order():
    steps = 2 * dataset.BLOCK + 5
    found = record(counting_env(horizon=steps), 2)
    np.testing.assert_array_equal(found.obs[:, 0], 2 * list(range(steps)))
    np.testing.assert_array_equal(
        np.flatnonzero(found.truncated), dataset.ends(found) - 1
    )
    assert not found.terminated.any()


@pytest.mark.full
def test_where_nothing_ends_an_episode_a_bound_truncates_it():
    found = record(counting_env(), 1, max_steps=4)
    np.testing.assert_array_equal(found.truncated, [0, 0, 0, 1])
    assert (dataset.count_cut(found, 4), dataset.count_cut(found, 5)) == (1, 0)
    # A limit of the environment's own stays.
    assert record(counting_env(horizon=3), 1, max_steps=100).num_steps == 3


@pytest.mark.full
def test_every_environment_gives_one_episode_so_short_ones_are_not_favoured(lengths):
    lengths_of = np.diff(np.concatenate([[0], dataset.ends(lengths)]))
    assert len(lengths_of) == 299
    # Uniform over 1 ... 9: mean 5, standard error 0.15. Favouring short ones gives 3.2.
    assert abs(lengths_of.mean() - 5) < 0.6
    assert set(lengths_of) == set(range(1, 10))
    image = np.asarray(lengths.obs["image"])[dataset.ends(lengths) - 1, 0, 0]
    np.testing.assert_array_equal(image, lengths_of)


def test_what_is_loaded_is_what_was_saved_dictionaries_too(lengths, tmp_path):
    dataset.save(tmp_path / "data", lengths, {"env": "test/lengths"})
    loaded = dataset.load(tmp_path / "data", random_length_env())
    assert_trees_equal(loaded, lengths)
    _, columns = storage.read(tmp_path / "data")
    assert set(columns) == {
        *("obs/count", "obs/image", "next_obs/count", "next_obs/image"),
        *("action", "reward", "terminated", "truncated"),
    }


def test_the_manifest_says_how_good_the_episodes_are(tmp_path):
    env = counting_env(ends_after=2)
    two = record(env, 2).replace(reward=jnp.array([1.0, 2, 3, 4]))
    about = dataset.save(tmp_path / "data", two, {"env": env.id, "seed": 5})
    assert about == dataset.read_about(tmp_path / "data")
    assert (about["episodes"], about["steps"], about["seed"]) == (2, 4, 5)
    assert about["return_mean"] == 5.0  # of 3 and 7
    assert about["return_stderr"] == 2.0
    assert about["action_space"] == {"Discrete": {"n": 2, "dtype": "int32"}}
    one = dataset.first_episodes(two, 1)
    assert dataset.save(tmp_path / "one", one)["return_stderr"] is None


def test_nothing_is_overwritten(tmp_path):
    one = record(counting_env(ends_after=1), 1)
    dataset.save(tmp_path / "data", one)
    with pytest.raises(InvalidInput, match="is not empty"):
        dataset.save(tmp_path / "data", one)


def sentence(function, *arguments) -> str:
    with pytest.raises(InvalidInput) as error:
        function(*arguments)
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text
    return text


def test_what_a_user_says_of_a_dataset_is_free(tmp_path):
    about = {"policy": "random", "by": [1]}
    dataset.save(tmp_path / "data", record(counting_env(ends_after=2), 1), about)
    assert dataset.load(tmp_path / "data").num_steps == 2
    assert dataset.read_about(tmp_path / "data")["policy"] == "random"


def test_what_is_not_a_dataset_is_refused(tmp_path, ppo_run):
    assert "holds no dataset" in sentence(dataset.load, tmp_path)
    assert "DATA = " in sentence(dataset.load, ppo_run / "policy")
    one = record(counting_env(ends_after=2), 1)
    storage.write(tmp_path / "new", one, {"dataset": 99})
    assert "has format 99" in sentence(dataset.load, tmp_path / "new")
    storage.write(tmp_path / "bare", one, {"dataset": 1})
    assert "observation_space" in sentence(dataset.load, tmp_path / "bare")


@pytest.mark.parametrize("file", [storage.MANIFEST, storage.ARRAYS])
def test_a_damaged_file_is_refused(tmp_path, file):
    folder = tmp_path / "data"
    dataset.save(folder, record(counting_env(ends_after=2), 1))
    path = folder / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(storage.Damaged, match="damaged"):
        dataset.load(folder)


def test_a_column_of_another_form_is_refused(tmp_path):
    folder = tmp_path / "data"
    dataset.save(folder, record(counting_env(ends_after=2), 1))
    about, columns = storage.read(folder)
    storage.write(
        tmp_path / "short", columns | {"reward": columns["reward"][:1]}, about
    )
    assert "reward is float32(1,)" in sentence(dataset.load, tmp_path / "short")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reward": jnp.array([1.0, jnp.nan])}, "reward of the dataset"),
        ({"terminated": jnp.zeros(2, bool)}, "the dataset "),
        ({"terminated": jnp.array([True, False])}, "the dataset "),
    ],
)
def test_what_cannot_be_learned_from_is_not_saved(tmp_path, change, reason):
    broken = record(counting_env(ends_after=2), 1).replace(**change)
    assert reason in sentence(dataset.save, tmp_path / "data", broken)
    assert not (tmp_path / "data").exists()


def test_a_dataset_for_another_environment_is_refused_by_its_spaces(tmp_path):
    env = counting_env(ends_after=2)
    dataset.save(tmp_path / "data", record(env, 1))
    load = partial(dataset.load, tmp_path / "data")
    load(env.replace(observation_space=spaces.box(-9, 9, (1,))))  # bounds may differ
    text = sentence(load, make("CartPole-v1"))
    assert "Box(float32[1]), but that of CartPole-v1 is Box(float32[4])" in text
    other = env.replace(action_space=spaces.Discrete(3))
    assert "action space Discrete(2), but that of test/counting" in sentence(
        load, other
    )


@pytest.mark.parametrize("name", ["num_episodes", "max_steps"])
def test_there_is_something_to_play(name):
    arguments = {"num_episodes": 1, "max_steps": 1} | {name: 0}
    with pytest.raises(InvalidInput, match=f"{name} = 0: must be at least 1"):
        record(counting_env(), **arguments)


# The command line.


def test_collect_writes_a_dataset_and_says_how_good_it_is(ppo_run, tmp_path, capsys):
    out = tmp_path / "data"
    argv = ["collect", str(ppo_run), "--episodes", "5", "--out", str(out)]
    assert main([*argv, "--seed", "3", "--agent", "1", "--stochastic", "--json"]) == 0
    said, where, as_json = capsys.readouterr().out.splitlines()[-3:]
    about = json.loads(as_json)
    assert said.startswith("ppo on probe/action: 5 episodes, 5 steps, return ")
    assert said.endswith("(standard error)") and where == str(out)
    assert about == dataset.read_about(out)
    assert (about["env"], about["env_params"]) == ("probe/action", {})
    assert (about["seed"], about["greedy"]) == (3, False)
    policy = about["policy"]
    assert (policy["run"], policy["algorithm"]) == (str(ppo_run), "ppo")
    assert (policy["agent"], policy["seed"]) == (1, 1)
    assert dataset.load(out, make("probe/action")).num_steps == 5


@pytest.mark.full
def test_collect_with_the_same_seed_gives_the_same_dataset(ppo_run, tmp_path):
    def collected(name, *more):
        out = tmp_path / name
        argv = ["collect", str(ppo_run), "--episodes", "32", "--out", str(out)]
        assert main([*argv, "--stochastic", *more]) == 0
        return dataset.load(out)

    first = collected("a")
    assert_trees_equal(first, collected("b"))
    other = collected("c", "--seed", "1")
    assert not np.array_equal(first.action, other.action)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--episodes", "0"], "episodes = 0"),
        (["--agent", "2"], "agent = 2: "),
        (["--seed", "-1"], "seed = -1"),
        (["--out", "."], "is not empty"),
    ],
)
def test_collect_refuses_in_a_sentence(
    change, reason, ppo_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    argv = ["collect", str(ppo_run), "--episodes", "1", "--out", "data"]
    assert reason in refused([*argv, *change], capsys)
    assert not (tmp_path / "data").exists()
