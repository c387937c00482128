"""`jaxrl.rendering`: what is seen is what was played."""

import dataclasses
import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageSequence

import jaxrl
from jaxrl import rendering
from jaxrl.algorithms import ALGORITHMS
from jaxrl.cli import main
from jaxrl.errors import InvalidInput
from jaxrl.rendering.drawing import DRAW
from jaxrl.rollout import init_world, record_episode, rollout_episode
from jaxrl.runs.artifact import Agents, save_agents
from jaxrl.runs.policy import Policy
from jaxrl.types import no_explanation
from tests.support.small import counting_env, tiny, with_teacher


def bar(state, params, size):
    """As many columns are white as steps were taken."""
    del params
    image = np.zeros((size, 2 * size, 3), np.uint8)
    image[:, : int(state)] = 255
    return image


@pytest.fixture(scope="module")
def policy():
    """DQN that has learned nothing, on an environment that counts and is drawn."""
    env, config = counting_env(ends_after=7, horizon=20, draw=bar), tiny(jaxrl.DQN)
    init = jax.jit(lambda key: jaxrl.DQN.init(config, env, key).agent)
    return Policy(jaxrl.DQN, config, env, init(jax.random.key(0)))


@pytest.fixture(scope="module")
def cart_run(tmp_path_factory):
    """A run folder with two agents that have learned nothing, on CartPole."""
    env, config = jaxrl.make("CartPole-v1"), tiny(jaxrl.PPO)
    keys = jax.random.split(jax.random.key(0))
    agents = jax.jit(jax.vmap(lambda key: jaxrl.PPO.init(config, env, key).agent))(keys)
    folder = tmp_path_factory.mktemp("cart")
    saved = Agents(jaxrl.PPO, config, env, {}, jax.device_get(agents), [3, 4])
    save_agents(folder / "policy", saved)
    return folder


@pytest.mark.full
def test_what_is_watched_is_what_is_played():
    env = jaxrl.make("lecture/random-walk-5")

    def policy(obs, memory, key):
        return jax.random.randint(key, (len(obs),), 0, 2), memory, {}

    world = jax.jit(lambda key: init_world(env, key, 16))(jax.random.key(1))
    returns, lengths, ended = jax.jit(lambda w: rollout_episode(env, policy, w, 50))(
        world
    )
    watched = jax.jit(lambda w: record_episode(env, policy, w, 50))(world)
    rewards = jnp.where(watched.running, watched.transition.reward, 0.0)
    np.testing.assert_array_equal(watched.running.sum(0), lengths)
    np.testing.assert_array_equal(rewards.sum(0), returns)
    assert ended.all() and len(set(lengths.tolist())) > 3
    # The end of an episode is kept, and stays.
    for n, length in enumerate(lengths):
        assert (watched.env_state[length:, n] == 5).all()
        assert (watched.env_state[:length, n] != 5).all()


def test_an_episode_has_a_picture_of_every_state_and_of_its_end(policy):
    (episode,) = rendering.record(policy)
    length = len(episode.reward)
    assert length == 7 and episode.end == "terminated"
    np.testing.assert_array_equal(episode.env_state, np.arange(length + 1))
    frames = rendering.render_frames(policy, size=32)
    assert frames.shape == (length + 1, 32, 64, 3) and frames.dtype == np.uint8
    white = (frames[:, 0, :, 0] == 255).sum(-1)
    np.testing.assert_array_equal(white, np.arange(length + 1))


def test_episodes_follow_each_other_and_are_cut(policy):
    frames = rendering.render_frames(policy, 2, size=32, max_steps=3)
    assert len(frames) == 8
    assert [e.end for e in rendering.record(policy, 2, max_steps=3)] == ["cut", "cut"]


def test_an_episode_is_recorded_in_pieces_up_to_the_time_limit(policy, monkeypatch):
    (whole,) = rendering.record(policy, seed=3, greedy=False)
    monkeypatch.setattr(rendering, "PIECE", 3)
    monkeypatch.setattr(rendering, "MAX_STEPS", 5)  # the environment has its own limit
    (pieces,) = rendering.record(policy, seed=3, greedy=False)
    jax.tree.map(np.testing.assert_array_equal, whole, pieces)
    assert len(pieces.reward) == 7
    both = rendering.record(policy, 2, max_steps=5)
    assert [len(e.reward) for e in both] == [5, 5] and both[0].end == "cut"


def test_the_overlay_stands_beside_the_picture(policy):
    plain = rendering.render_frames(policy, size=128, max_steps=3)
    both = rendering.render_frames(policy, size=128, max_steps=3, overlay=True)
    np.testing.assert_array_equal(both[:, :, :256], plain)
    assert both.shape[2] > 256 and (both[0, :, 256:] != both[1, :, 256:]).any()


def test_a_greedy_action_is_the_best_explained_one(policy):
    (episode,) = rendering.record(policy)
    q = episode.explained["q"]
    np.testing.assert_array_equal(episode.action, q.argmax(-1))
    np.testing.assert_array_equal(episode.value, q.max(-1))


@pytest.mark.full
def test_probabilities_are_those_that_actions_are_drawn_from(cart_run):
    policy = jaxrl.load_policy(cart_run)
    for greedy in (True, False):
        episodes = rendering.record(policy, 64, greedy=greedy)
        p = np.concatenate([e.explained["probability"] for e in episodes])
        action = np.concatenate([e.action for e in episodes])
        np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-6)
        if greedy:
            np.testing.assert_array_equal(action, p.argmax(-1))
        else:
            assert abs(action.mean() - p[:, 1].mean()) < 4 * 0.5 / len(action) ** 0.5


CONTINUOUS = ("reinforce", "a2c", "natural_pg", "trpo", "ppo")


@pytest.mark.parametrize(
    ("name", "id"),
    [(name, "probe/action") for name in ALGORITHMS if name != "td"]
    + [(name, "Pendulum-v1") for name in CONTINUOUS],
)
def test_every_algorithm_explains_itself(name, id):
    algorithm = ALGORITHMS[name]
    config, made = tiny(algorithm), jaxrl.make(id)

    def explained():
        env = with_teacher(algorithm, made)
        agent = algorithm.init(config, env, jax.random.key(0)).agent
        memory = algorithm.init_memory(config, env, 5)
        obs = jnp.zeros((5, *env.observation_space.shape))
        return algorithm.explain(config, env, agent, obs, memory)

    shapes = {n: x.shape for n, x in jax.eval_shape(explained).items()}
    if id == "Pendulum-v1":
        assert shapes == {"spread": (5, 1, 3), "std": (5, 1)}
    else:
        (kind,) = shapes
        assert kind in ("probability", "q") and shapes[kind] == (5, 2)


def test_a_policy_that_is_given_has_nothing_to_explain():
    assert ALGORITHMS["td"].explain is no_explanation


def test_a_recurrent_agent_is_explained_with_its_memory():
    config, env = tiny(jaxrl.PPO, network="gru(size=3)"), jaxrl.make("CartPole-v1")

    def watched(key):
        agent = jaxrl.PPO.init(config, env, key).agent
        args = (jaxrl.PPO, config, env, agent, key)
        return rendering._play(*args, num_episodes=2, greedy=True, max_steps=9)

    extras = jax.eval_shape(watched, jax.random.key(0)).transition.extras
    assert extras["explained"]["probability"].shape == (9, 2, 2)
    assert extras["value"].shape == (9, 2)


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_the_command_writes_a_picture(cart_run, tmp_path, capsys, suffix):
    out = tmp_path / f"agent.{suffix}"
    words = f"render {cart_run} --out {out} --size 64 --max-steps 5 --agent 1"
    assert main(words.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["episode 0: return 5.00, 5 steps, cut", str(out)]
    with Image.open(out) as image:
        frames = ImageSequence.Iterator(image)
        pace = [frame.info.get("duration", 0) for frame in frames]
    # Equal pictures are one that is shown longer.
    assert sum(pace) == (6 * 30 if suffix == "gif" else 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--out a.jpg", "must end in .gif, .mp4, .png"),
        ("--out no/a.gif", "there is no folder 'no'"),
        ("--out a.gif --fps 60", "a GIF shows 50 pictures a second at most"),
        ("--out a.gif --fps 0", "fps = 0"),
        ("--out a.gif --size 16", "size = 16"),
        ("--out a.gif --size 64 --overlay", "size = 64"),
        ("--out a.gif --agent 2", "agent = 2"),
        ("--out a.gif --episodes 0", "episodes = 0"),
        ("--out a.gif --max-steps 0", "max_steps = 0"),
        ("--out a.gif --seed -1", "seed = -1"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    cart_run, empty_folder, capsys, words, message
):
    assert main(["render", str(cart_run), *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert not list(empty_folder.iterdir())


def test_a_disk_that_is_full_leaves_the_picture_that_was_there(
    cart_run, tmp_path, capsys, monkeypatch
):
    def write(frames, file, fps):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "no space left")

    (tmp_path / "a.gif").write_bytes(b"old")
    monkeypatch.setattr("jaxrl.rendering.drawing.files._write_gif", write)
    words = f"render {cart_run} --out {tmp_path / 'a.gif'} --size 64 --max-steps 5"
    assert main(words.split()) == 4
    error = capsys.readouterr().err
    assert "a.part.gif cannot be written or read (no space left)" in error
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_an_environment_that_nothing_draws_is_refused(
    cart_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.delitem(DRAW, "CartPole-v1")
    assert main(["render", str(cart_run), "--out", str(tmp_path / "a.gif")]) == 2
    error = capsys.readouterr().err
    assert "'CartPole-v1': nothing draws it" in error and "Acrobot-v1" in error
    assert not list(tmp_path.iterdir())


def test_pictures_of_different_shapes_are_refused(policy):
    def growing(state, params, size):
        return np.zeros((size, size + int(state), 3), np.uint8)

    (episode,) = rendering.record(policy, max_steps=3)
    other = dataclasses.replace(policy, env=policy.env.replace(draw=growing))
    with pytest.raises(InvalidInput, match="all pictures must be of one shape"):
        list(rendering.draw_frames(other, episode, size=32))
