"""`jaxrl export`: a policy as a file, equal to the policy, described, published."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import spaces
from jaxrl.algorithms import ALGORITHMS
from jaxrl.cli import main
from jaxrl.deployment import card, hub, onnx
from jaxrl.deployment import export as exporting
from jaxrl.deployment.export import export, export_function
from jaxrl.deployment.outputs import (
    check_has_policy,
    compute_outputs,
    flatten_memory,
)
from jaxrl.errors import InvalidInput
from jaxrl.networks.tiles import tile_features, tiling
from jaxrl.runs.experiment import read_summary, write_summary
from jaxrl.runs.policy import Policy
from tests.cli.test_cli import refused
from tests.support.runs import run_python
from tests.support.small import counting_env, fitting, tiny, with_teacher


@pytest.fixture(scope="module")
def folder(gru_run, dqn_run, tmp_path_factory):
    """What is exported of two runs: `gru.stablehlo`, `gru.onnx`, `dqn.onnx`."""
    folder = tmp_path_factory.mktemp("exported")
    for run, name in ((gru_run, "gru"), (gru_run, "gru"), (dqn_run, "dqn")):
        format = "stablehlo" if not list(folder.iterdir()) else "onnx"
        about = export(run, folder / f"{name}.{format}", format, observations=50)
        assert about["agreement"]["within"] == about["agreement"]["observations"] == 50
    return folder


@pytest.mark.full
@pytest.mark.parametrize("file", ["gru.stablehlo", "gru.onnx", "dqn.onnx"])
def test_an_exported_run_answers_as_its_policy(file, folder, request):
    name, format = file.split(".")
    policy = jaxrl.load_policy(request.getfixturevalue(f"{name}_run"))
    obs = np.linspace(-1, 1, 7, dtype=np.float32)[:, None] * np.ones(
        policy.env.observation_space.shape, np.float32
    )
    memory = policy.init_memory(7)
    given = [obs] if isinstance(memory, tuple) else [obs, np.asarray(memory)]
    found = exporting.make_reader((folder / file).read_bytes(), format)(*given)
    action, after = policy.act(obs, memory)
    np.testing.assert_array_equal(found["action"], action)
    if name == "gru":
        np.testing.assert_allclose(found["next_memory"], after, atol=1e-5)
    scores = "q_values" if name == "dqn" else "probabilities"
    assert found[scores].shape == (7, 2)
    np.testing.assert_array_equal(found[scores].argmax(1), action)


TRANSFORMER = "transformer(size=4, num_heads=2, context=2)"
KINDS = {
    "normalised, continuous": ("Pendulum-v1", {"normalize_obs": True}),
    "squashed": ("Pendulum-v1", {"squash": True}),
    "images": ("Breakout-MinAtar", {}),
    "a table": ("lecture/random-walk-5", {}),
    "an LSTM": ("CartPole-v1", {"network": "lstm(size=3)"}),
    "a transformer": ("CartPole-v1", {"network": TRANSFORMER}),
}


@pytest.mark.full
@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_policy_can_leave(kind, format):
    env, config = KINDS[kind]
    policy = flatten_memory(untrained("ppo", jaxrl.make(env), **config))
    content = exporting.serialize(exporting.make_program(policy), format)
    found = exporting.compare(policy, exporting.make_reader(content, format), 20)
    assert found.within == found.observations == 20 and found.largest <= 1e-5


def untrained(name, env, **config) -> Policy:
    """With a head of the size of a trained one: the initial one is nearly zero."""
    algorithm = ALGORITHMS[name]
    env = with_teacher(algorithm, env)
    config = tiny(algorithm, **config)
    agent = algorithm.init(config, env, jax.random.key(0)).agent

    def moved(x):
        return x + 0.1 * jnp.arange(x.size).reshape(x.shape) / max(x.size, 1)

    agent = agent.replace(params=jax.tree.map(moved, agent.params))
    return Policy(algorithm, config, env, agent)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "td"])
def test_the_answer_of_every_algorithm_is_its_greedy_action(name):
    policy = untrained(name, fitting(ALGORITHMS[name], counting_env(horizon=5)))
    obs = np.arange(6, dtype=np.float32)[:, None]
    action, _ = policy.act(obs)
    np.testing.assert_array_equal(
        compute_outputs(policy, jnp.asarray(obs))["action"], action
    )


@pytest.mark.full
@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
@pytest.mark.parametrize("name", ["ppo", "pqn", "dqn", "qr_dqn", "iqn", "rainbow"])
def test_illegal_actions_are_never_chosen(name, format):
    """Where each action in turn is the legal one, though its score is the lowest."""
    policy = untrained(name, jaxrl.make("probe/masked"))
    call = exporting.make_reader(
        exporting.serialize(exporting.make_program(policy), format), format
    )
    obs = jax.device_get(spaces.zeros(policy.env.observation_space, (4,)))
    obs["action_mask"] = np.eye(4, dtype=bool)
    found = call(obs)
    np.testing.assert_array_equal(found["action"], np.arange(4))
    np.testing.assert_array_equal(policy.act(obs)[0], np.arange(4))
    scores = found["probabilities" if name == "ppo" else "q_values"]
    illegal = 0.0 if name == "ppo" else -np.inf
    np.testing.assert_array_equal(scores[~obs["action_mask"]], illegal)


ALONE = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jaxrl", "flax", "distrax", "gymnax", "optax"):
            raise ImportError(name)
sys.meta_path.insert(0, Nothing())
import numpy as np
from jax import export
policy = export.deserialize(bytearray(open({path!r}, "rb").read()))
given = np.load({data!r})
for rows in (1000, 1):
    answer = policy.call(given["obs"][:rows], given["memory"][:rows])
    for name in answer:
        assert np.abs(np.asarray(answer[name]) - given["right/" + name][:rows]).max() < 1e-5
print(sorted(answer), "jaxrl" in sys.modules)
"""


@pytest.mark.full
def test_stablehlo_is_read_where_there_is_jax_alone(gru_run, folder, tmp_path):
    path, data = folder / "gru.stablehlo", tmp_path / "data.npz"
    policy, random = jaxrl.load_policy(gru_run), np.random.default_rng(0)
    obs = random.normal(size=(1000, 2)).astype(np.float32)
    memory = random.uniform(-1, 1, (1000, 4)).astype(np.float32)
    right = {f"right/{n}": x for n, x in compute_outputs(policy, obs, memory).items()}
    np.savez(data, obs=obs, memory=memory, **right)
    (line,) = run_python(ALONE.format(path=str(path), data=str(data)))
    assert line == "['action', 'next_memory', 'probabilities', 'value'] False"


@pytest.mark.full
def test_a_table_of_ones_own_is_exported(tmp_path):
    tiles = tiling([0.0, 0.0], [1.0, 1.0], num_tilings=4, num_tiles=4)
    weights = np.random.default_rng(0).normal(size=(tiles.num_features, 3))
    weights = weights.astype(np.float32)

    def greedy(obs):
        q = tile_features(tiles, obs) @ weights
        return {"action": jnp.argmax(q, -1), "q_values": q}

    row = {"obs": np.zeros(2, np.float32)}
    export_function(greedy, row, tmp_path / "table")
    obs = np.random.default_rng(1).uniform(size=(1000, 2)).astype(np.float32)
    found = exporting.make_reader((tmp_path / "table").read_bytes(), "stablehlo")(obs)
    np.testing.assert_allclose(found["q_values"], greedy(obs)["q_values"], atol=1e-5)
    # The converter has no translation of the tile coder.
    sentence = r"^format = 'onnx': the policy cannot be translated \(.*\); give format"
    with pytest.raises(InvalidInput, match=sentence) as refusal:
        export_function(greedy, row, tmp_path / "table.onnx", "onnx")
    assert "\n" not in str(refusal.value) and refusal.value.__cause__ is not None
    assert not (tmp_path / "table.onnx").exists()


@pytest.mark.full
def test_what_traces_after_an_export_finds_numpy_as_it_was():
    """jax2onnx 0.17 leaves a `jnp.cumsum` behind that takes no axis by its place."""
    before = jnp.cumsum
    row = jax.ShapeDtypeStruct((3,), jnp.float32)
    for _ in range(2):
        content = onnx.serialize(lambda x: {"y": jnp.cumsum(x, axis=1)}, {"x": row})
        assert jnp.cumsum is before
        found = onnx.make_reader(content)(np.ones((2, 3), np.float32))["y"]
        np.testing.assert_allclose(found, [[1, 2, 3]] * 2)


@pytest.mark.full
def test_the_program_of_the_card_runs(folder):
    for format in ("stablehlo", "onnx"):
        text = (folder / f"gru.{format}.md").read_text()
        (program,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
        lines = run_python(f"import os\nos.chdir({str(folder)!r})\n{program}")
        assert re.fullmatch(r"\[[01] [01]\]", lines[-1])


@pytest.mark.full
def test_the_card_says_what_is_known(ppo_run, tmp_path, capsys):
    out = tmp_path / "it"
    argv = ["export", str(ppo_run), "--out", str(out), "--agent", "1", "--json"]
    assert main([*argv, "--observations", "20", "--licence", "mit"]) == 0
    about = json.loads(capsys.readouterr().out.splitlines()[-1])
    text = (tmp_path / "it.md").read_text()
    summary = json.loads((ppo_run / "summary.json").read_text())
    assert about["seed"] == 1 and about["seeds"] == [0, 1]
    assert about["return"] == summary["evaluation_by_member"][1]
    assert about["trained_with"] == summary["versions"]
    low, high = summary["evaluation"]["episode_return_ci95"]
    assert f"interval [{low:.2f}, {high:.2f}] over the 2 seeds' means" in text
    assert 'license: "mit"' in text and "20 of 20 observations" in text
    assert about["weights_sha256"] in text
    # What is not known is not made up.
    (ppo_run / "summary.json").rename(tmp_path / "away")
    try:
        about = export(ppo_run, out, observations=20)
    finally:
        (tmp_path / "away").rename(ppo_run / "summary.json")
    text = (tmp_path / "it.md").read_text()
    assert "holds no evaluation" in text and "| trained with |" not in text
    assert "| licence of the weights | not stated |" in text


@pytest.mark.parametrize("field", ["evaluation", "evaluation_by_member"])
def test_a_summary_of_another_shape_is_refused(ppo_run, tmp_path, field):
    run = shutil.copytree(ppo_run, tmp_path / "run")
    write_summary(run, read_summary(run) | {field: 5})
    with pytest.raises(InvalidInput, match=field):
        card.describe(run, SimpleNamespace(members=()), 0, None, "onnx", {})


def test_a_program_that_differs_is_not_written(ppo_run, tmp_path, monkeypatch):
    def wrong(content, format):
        def call(obs):
            found = right(content, format)(obs)
            return found | {"value": found["value"] + 1e-3}

        return call

    right = exporting.make_reader
    monkeypatch.setattr(exporting, "make_reader", wrong)
    with pytest.raises(
        InvalidInput, match=r"differs from the policy by 0\.001 on 20 of"
    ):
        export(ppo_run, tmp_path / "it", observations=20)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path, monkeypatch):
    def write(path, content):
        path.write_bytes(content[:1])
        if "md" in path.name:
            raise OSError("no space left")

    (tmp_path / "it").write_bytes(b"old")
    (tmp_path / "it.new").write_bytes(b"somebody's")
    monkeypatch.setattr(exporting.storage, "write_file", write)
    with pytest.raises(InvalidInput, match=r"it' cannot be written \(no space left\)"):
        exporting._write({tmp_path / "it": b"new", tmp_path / "it.md": b"card"})
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {"it": b"old", "it.new": b"somebody's"}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("RUN --format onx --out x", ["format = 'onx'", "'onnx'?"]),
        ("RUN --out no/where", ["out = 'no/where'", "in a folder that is there"]),
        ("RUN --out x --agent 7", ["agent = 7", "0, 1"]),
        ("RUN --out x --observations 0", ["observations = 0"]),
        ("RUN --out x --push-to-hub name", ["push_to_hub = 'name'", "name/model"]),
        ("nowhere --out x", ["RUN = 'nowhere'"]),
        ("RUN", ["--out"]),
    ],
)
def test_bad_input_is_one_line(words, parts, ppo_run, empty_folder, capsys):
    argv = [str(ppo_run) if word == "RUN" else word for word in words.split()]
    line = refused(["export", *argv], capsys)
    assert all(part in line for part in parts), line
    assert not list(empty_folder.iterdir())


def test_what_has_no_policy_of_its_own_is_refused():
    with pytest.raises(
        InvalidInput, match="algorithm = 'td': its agents have no greedy"
    ):
        check_has_policy(ALGORITHMS["td"])


def test_a_missing_package_is_named(ppo_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(InvalidInput, match=r"pip install 'jaxrl\[export\]'"):
        export(ppo_run, tmp_path / "x", "onnx")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InvalidInput, match=r"pip install 'jaxrl\[hub\]'"):
        export(ppo_run, tmp_path / "x", push_to_hub="a/b")


# The hub: a stub of its API, never the network.


class Stub:
    """Of `huggingface_hub.HfApi`: what it was asked."""

    def __init__(self, error=None):
        self.repos, self.commits, self.error = [], [], error

    def create_repo(self, repo, exist_ok):
        self.repos.append((repo, exist_ok))

    def create_commit(self, repo, operations, commit_message):
        if self.error:
            raise self.error
        self.commits.append((repo, {x.path_in_repo for x in operations}))
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")


def test_file_and_card_are_pushed_as_one_commit(ppo_run, tmp_path, monkeypatch):
    stub = Stub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: stub)
    about = export(ppo_run, tmp_path / "it", observations=20, push_to_hub="me/it")
    assert stub.repos == [("me/it", True)]
    assert stub.commits == [("me/it", {"it", "README.md"})]
    assert about["hub"] == "https://hub/me/it/commit/1"


def test_a_refusal_of_the_hub_is_one_sentence(tmp_path):
    path = tmp_path / "it"
    path.write_bytes(b"1")
    stub = Stub(OSError("you are not\nlogged in"))
    with pytest.raises(InvalidInput, match=r"\(you are not logged in\); the files are"):
        hub.push({path: "it"}, "me/it", stub)
