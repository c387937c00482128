"""`jaxrl.runs.artifact`: what was saved is what is loaded, here and in another process."""

import json
import shutil
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import spaces
from jaxrl.algorithms import ALGORITHMS
from jaxrl.core import storage
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.runs.artifact import Agents, load_agents, save_agents
from jaxrl.training.population import init_population
from tests.support import runs
from tests.support.paths import ROOT
from tests.support.small import assert_trees_equal, tiny

RUNS = ("ppo_run", "reinforce_run", "dqn_run", "gru_run")
every_run = pytest.mark.parametrize("name", RUNS)


@pytest.fixture
def copy(ppo_run, tmp_path):
    """A run folder to spoil."""
    return shutil.copytree(ppo_run, tmp_path / "run")


def untrained(name, env_id, **changes):
    """An algorithm, its config, an environment, and two agents made of noise."""
    algorithm = ALGORITHMS[name]
    config, env = tiny(algorithm, **changes), make(env_id)
    rng = np.random.default_rng(0)
    agents = jax.eval_shape(
        lambda keys: init_population(algorithm, config, env, {}, keys).agent,
        jax.random.split(jax.random.key(0), 2),
    )
    agents = jax.tree.map(
        lambda x: (100 * rng.normal(size=x.shape)).astype(x.dtype), agents
    )
    return algorithm, config, env, agents


def edit(run, **changes):
    """Changes entries of the description."""
    about, arrays = storage.read(run / "policy")
    storage.write(run / "policy", arrays, about | changes)


def refusal(run) -> str:
    """The one sentence with which a run folder is refused."""
    with pytest.raises(InvalidInput) as error:
        load_agents(run)
    sentence = str(error.value)
    assert str(run) in sentence and sentence.endswith(".")
    return sentence


@pytest.mark.parametrize(
    ("name", "env_id", "changes"),
    [
        ("reinforce", "probe/masked", {}),
        ("dqn", "probe/masked", {}),
        ("rainbow", "probe/masked", {"munchausen_temperature": 0.5}),
        ("iqn", "probe/masked", {"cvar": 0.25}),
        ("ppo", "probe/continuous", {"normalize_obs": True, "normalize_reward": True}),
        ("ppo", "probe/memory", {"network": "gru(size=4)"}),
        ("pqn", "probe/memory", {"network": "gru(size=4, layer_norm=True)"}),
    ],
)
def test_every_leaf_comes_back_bit_for_bit(tmp_path, name, env_id, changes):
    algorithm, config, env, agents = untrained(name, env_id, **changes)
    policy = Agents(algorithm, config, env, {}, agents, [7, 8])
    save_agents(tmp_path / "policy", policy)
    policy = load_agents(tmp_path)
    assert_trees_equal(policy.agents, agents)
    assert policy.algorithm is algorithm
    assert policy.config == config
    assert policy.env == env
    assert policy.seeds == [7, 8]


@pytest.mark.full
def test_the_normaliser_travels_with_the_parameters(gru_run):
    agents = load_agents(gru_run).agents
    assert agents.obs_stats.count[0] == 40  # environment steps of the run
    assert (agents.obs_stats.var != 1).all() and agents.reward_stats.returns.count > 0


def test_parameters_of_the_environment_come_back(tmp_path):
    algorithm, config, _, agents = untrained("dqn", "probe/shortest-path")
    env = make("probe/shortest-path", length=5, horizon=9)
    params = {"length": 5, "horizon": 9}
    policy = Agents(algorithm, config, env, params, agents, [0, 1])
    save_agents(tmp_path / "policy", policy)
    loaded = load_agents(tmp_path).env
    assert loaded.observation_space.shape == (5,) and loaded.horizon == 9


def test_saving_again_replaces_the_artefact_whole(tmp_path):
    algorithm, config, env, agents = untrained("dqn", "probe/action")
    for seeds in ([0, 1], [5, 6]):
        policy = Agents(algorithm, config, env, {}, agents, seeds)
        save_agents(tmp_path / "policy", policy)
    assert load_agents(tmp_path).seeds == [5, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize(
    ("space", "described"),
    [
        (spaces.Discrete(3), {"Discrete": {"n": 3, "dtype": "int32"}}),
        (
            spaces.box([-np.inf, 0.0], [np.inf, 1.0], (2,)),
            {
                "Box": {
                    "low": ["-inf", 0.0],
                    "high": ["inf", 1.0],
                    "shape": [2],
                    "dtype": "float32",
                }
            },
        ),
        (
            spaces.dict_space(b=spaces.Discrete(2), a=spaces.Discrete(1)),
            {
                "Dict": {
                    "a": {"Discrete": {"n": 1, "dtype": "int32"}},
                    "b": {"Discrete": {"n": 2, "dtype": "int32"}},
                }
            },
        ),
    ],
)
def test_a_space_is_described_in_strict_json(space, described):
    assert spaces.describe(space) == described
    assert (
        spaces.from_description(json.loads(json.dumps(described, allow_nan=False)))
        == space
    )


@every_run
def test_the_files_are_json_and_raw_tensors_and_nothing_else(name, request):
    folder = request.getfixturevalue(name) / "policy"
    assert {p.name for p in folder.iterdir()} == {"manifest.json", "arrays.safetensors"}
    json.loads((folder / "manifest.json").read_text())
    content = (folder / "arrays.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    assert {tensor["dtype"] for tensor in header.values()} <= {"F32", "I32", "U32"}
    end = max(tensor["data_offsets"][1] for tensor in header.values())
    assert len(content) == 8 + size + end


@pytest.mark.full
def test_another_process_acts_bit_for_bit_alike_and_unpickles_nothing(
    gru_run, dqn_run, tmp_path
):
    folders = [str(gru_run), str(dqn_run)]
    script = f"""
import sys
import numpy as np
from jaxrl.runs.artifact import load_agents
from tests.support.runs import act

policies = [load_agents(run) for run in {folders!r}]  # imports what it needs
np.savez({str(tmp_path / "there.npz")!r}, *map(act, policies))
events = []
sys.addaudithook(lambda event, args: events.append(event))
policies = [load_agents(run) for run in {folders!r}]
executed = [e for e in events if e.startswith(("pickle.", "marshal.", "exec"))]
assert "open" in events and executed == [], executed
"""
    root = ROOT
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)
    there = np.load(tmp_path / "there.npz")
    for i, run in enumerate((gru_run, dqn_run)):
        here = runs.act(load_agents(run))
        assert len(here) > 100
        np.testing.assert_array_equal(here, there[f"arr_{i}"])


def test_a_folder_without_a_policy_is_refused(tmp_path):
    assert "holds no policy" in refusal(tmp_path)
    assert "holds no policy" in refusal(tmp_path / "missing")


@pytest.mark.parametrize("file", ["manifest.json", "arrays.safetensors"])
def test_a_damaged_file_is_refused(copy, file):
    path = copy / "policy" / file
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\x80\x04garbage"):
        path.write_bytes(content)
        assert f"{path} " in refusal(copy)
    path.unlink()
    assert f"{path} cannot be read" in refusal(copy)


@pytest.mark.parametrize("about", [[], {}, "text", {"format": 2}])
def test_a_folder_of_another_kind_is_refused(copy, about):
    storage.write(copy / "policy", {}, about)
    assert "policy" in refusal(copy)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 99, "jaxrl": "9.9"}, "has format 99, this version of jaxrl reads"),
        ({"algorithm": "nonesuch"}, "algorithm = 'nonesuch'"),
        ({"config": [1]}, "no valid 'config'"),
        ({"seeds": []}, "no valid 'seeds'"),
        ({"seeds": ["a", "b"]}, "no valid 'seeds'"),
        ({"seeds": [0]}, "does not fit its config"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(copy, changes, reason):
    edit(copy, **changes)
    assert reason in refusal(copy)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_sizes": [5]}, "expected float32(2, 5)."),
        ({"hidden_sizes": [4, 4]}, "is missing, expected"),
        ({"normalize_obs": True}, "is missing, expected"),
    ],
)
def test_tensors_of_another_config_are_refused(copy, change, reason):
    config = storage.read(copy / "policy")[0]["config"]
    edit(copy, config=config | change)
    sentence = refusal(copy)
    assert "does not fit its config" in sentence and reason in sentence


def test_a_tensor_without_a_place_is_refused(copy):
    about, arrays = storage.read(copy / "policy")
    storage.write(copy / "policy", arrays | {"obs_stats/mean": np.zeros(2)}, about)
    assert "has no place for obs_stats/mean" in refusal(copy)


def test_a_config_of_another_version_is_refused(copy):
    edit(copy, config={"learning_rat": 0.1})
    with pytest.raises(InvalidInput, match="did you mean 'learning_rate'"):
        load_agents(copy)


def test_an_environment_that_is_not_there_is_refused(copy):
    edit(copy, env="my-unregistered-env")
    with pytest.raises(InvalidInput, match="Unknown environment"):
        load_agents(copy)


def test_loaded_agents_are_arrays_of_the_dtypes_that_were_trained(ppo_run):
    leaves = jax.tree.leaves(load_agents(ppo_run).agents)
    assert {leaf.dtype for leaf in leaves} == {jnp.float32.dtype, jnp.int32.dtype}
    assert all(leaf.shape[0] == 2 for leaf in leaves)


def test_an_environment_that_is_code_is_imported_only_if_the_caller_says_so(copy):
    edit(copy, env="os:getcwd", env_params={})
    assert "code that loading it would import" in refusal(copy)
    with pytest.raises(InvalidInput, match=r"os:getcwd.* must return a jaxrl"):
        load_agents(copy, env="os:getcwd")
    with pytest.raises(InvalidInput, match="was trained on 'os:getcwd'"):
        load_agents(copy, env="CartPole-v1")


def test_an_environment_whose_spaces_have_changed_is_refused(copy):
    was = storage.read(copy / "policy")[0]["action_space"]
    edit(copy, action_space={"Discrete": was["Discrete"] | {"n": 99}})
    assert "_space" in refusal(copy) and "env = " in refusal(copy)
