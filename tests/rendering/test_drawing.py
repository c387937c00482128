"""Pictures show what the states say, and files are whole or absent."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

import jaxrl
from jaxrl.envs.wrappers import stack_history, sticky_actions
from jaxrl.errors import InvalidInput
from jaxrl.rendering.drawing import (
    DRAW,
    KEYS,
    action_names,
    draw_state,
    files,
    find_drawing,
)
from jaxrl.rendering.drawing.canvas import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PALE,
    SKY,
    YELLOW,
    Canvas,
)
from jaxrl.rendering.drawing.control import acrobot, cart_pole, mountain_car, pendulum
from jaxrl.rendering.drawing.minatar import breakout, space_invaders
from jaxrl.rendering.drawing.panel import Explanation, draw_panel

SIZE = 100


def params_of(id):
    return jaxrl.make(id).params


def centre(image, colour):
    """Mean (row, column) of the pixels of a colour, as shares of height and width."""
    close = np.abs(image / 255 - np.array(to_rgb(colour))).max(-1) < 0.02
    assert close.any(), colour
    return np.argwhere(close).mean(0) / image.shape[:2]


@pytest.mark.parametrize("id", DRAW)
def test_every_environment_of_the_table_is_drawn(id):
    env = jaxrl.make(id)
    state, _ = jax.eval_shape(env.reset, jax.random.key(0), env.params)
    state = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), state)
    image = draw_state(env, find_drawing(env), state, SIZE)
    assert image.dtype == np.uint8 and image.shape[0] == SIZE and image.shape[2] == 3
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 5
    assert len(action_names(env, DRAW[id])) == getattr(env.action_space, "n", 0)
    if hasattr(env.action_space, "n"):  # named, not numbered
        assert action_names(env, DRAW[id])[0] != "0"


def test_a_size_is_the_height():
    state = SimpleNamespace(position=-0.5)
    params = params_of("MountainCar-v0")
    small, large = (mountain_car(state, params, size) for size in (64, 128))
    assert small.shape[0] == 64 and large.shape[0] == 128
    assert abs(large.shape[1] - 2 * small.shape[1]) <= 2


def test_the_cart_and_its_pole_are_where_the_state_says():
    params = params_of("CartPole-v1")
    left, right = (
        cart_pole(SimpleNamespace(x=x, theta=0.0), params, SIZE) for x in (-2.0, 2.0)
    )
    assert centre(left, INK)[1] < 0.3 < 0.7 < centre(right, INK)[1]
    leaning = cart_pole(SimpleNamespace(x=0.0, theta=0.2), params, SIZE)
    assert centre(leaning, YELLOW)[1] > centre(leaning, INK)[1]  # theta > 0 leans right


def test_a_pendulum_at_angle_zero_stands_upright():
    params = params_of("Pendulum-v1")

    def rod(theta, torque=0.0):
        return pendulum(SimpleNamespace(theta=theta, last_u=torque), params, SIZE)

    up, quarter = centre(rod(0.0), ORANGE), centre(rod(np.pi / 2), ORANGE)
    assert up[0] < 0.4 and abs(up[1] - 0.5) < 0.02
    assert quarter[1] < 0.4 and abs(quarter[0] - 0.5) < 0.02  # counter-clockwise
    none, some = rod(np.pi), rod(np.pi, 2.0)
    assert not np.array_equal(none, some) and centre(some, BLUE)[0] < 0.5


def test_an_acrobot_at_rest_hangs_straight_down():
    params = params_of("Acrobot-v1")
    rest = acrobot(SimpleNamespace(joint_angle1=0.0, joint_angle2=0.0), params, SIZE)
    upper, lower = centre(rest, BLUE), centre(rest, SKY)
    assert 0.5 < upper[0] < lower[0] and abs(upper[1] - lower[1]) < 0.02
    bent = acrobot(
        SimpleNamespace(joint_angle1=0.0, joint_angle2=np.pi / 2), params, SIZE
    )
    assert centre(bent, SKY)[1] > 0.55


@pytest.mark.parametrize("id", ["MountainCar-v0", "MountainCarContinuous-v0"])
def test_the_car_at_the_goal_is_at_the_flag(id):
    params = params_of(id)
    state = SimpleNamespace(position=float(params.goal_position))
    image = mountain_car(state, params, SIZE)
    assert abs(centre(image, BLUE)[1] - centre(image, GREEN)[1]) < 0.06
    low = mountain_car(SimpleNamespace(position=-0.52), params, SIZE)
    assert centre(low, BLUE)[0] > 0.7


def test_ball_paddle_and_bricks_are_in_their_cells():
    bricks = np.zeros((10, 10))
    bricks[1, 2] = 1
    state = SimpleNamespace(
        ball_x=7, ball_y=5, last_x=6, last_y=4, pos=3, brick_map=bricks
    )
    image = breakout(state, None, SIZE)
    np.testing.assert_allclose(centre(image, PALE), (0.55, 0.75), atol=0.01)
    np.testing.assert_allclose(centre(image, SKY), (0.95, 0.35), atol=0.01)
    np.testing.assert_allclose(centre(image, "#CC79A7"), (0.15, 0.25), atol=0.01)


def test_bullets_of_both_sides_differ():
    def shot(ours):
        maps = np.zeros((2, 10, 10))
        maps[int(ours), 4, 6] = 1
        state = SimpleNamespace(
            alien_map=np.zeros((10, 10)),
            pos=2,
            e_bullet_map=maps[0],
            f_bullet_map=maps[1],
        )
        return space_invaders(state, None, SIZE)

    np.testing.assert_allclose(centre(shot(False), ORANGE), (0.45, 0.65), atol=0.01)
    assert not np.array_equal(shot(True), shot(False))


@pytest.mark.parametrize("id", ["lecture/cliff-walking", "lecture/random-walk-5"])
def test_the_agent_of_a_lecture_problem_is_seen_to_move(id):
    env = jaxrl.make(id)
    images = [draw_state(env, DRAW[id], np.int32(s), SIZE) for s in (0, 1)]
    assert centre(images[0], BLUE)[1] < centre(images[1], BLUE)[1]


def test_an_end_on_both_sides_is_marked_on_both():
    env = jaxrl.make("lecture/random-walk-5")
    image = draw_state(env, DRAW[env.id], np.int32(5), SIZE)
    np.testing.assert_allclose(centre(image, BLUE)[1], 0.5, atol=0.01)


def test_wrappers_do_not_change_the_picture():
    inner = jaxrl.make("lecture/maze")
    env = stack_history(sticky_actions(inner, 0.1), 3)
    state, _ = jax.eval_shape(env.reset, jax.random.key(0), env.params)
    state = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), state)
    plain = draw_state(inner, find_drawing(inner), state.env_state.env_state, SIZE)
    np.testing.assert_array_equal(
        draw_state(env, find_drawing(env), state, SIZE), plain
    )


def test_all_actions_of_minatar_have_names():
    env = jaxrl.make("Breakout-MinAtar", use_minimal_action_set=False)
    assert action_names(env, DRAW[env.id]) == KEYS


def test_what_nothing_draws_is_refused_with_what_is_drawn():
    with pytest.raises(InvalidInput, match="'probe/action': nothing draws it") as error:
        find_drawing(jaxrl.make("probe/action"))
    assert all(id in str(error.value) for id in DRAW)


@pytest.mark.parametrize(
    "drawn", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), None]
)
def test_a_draw_function_that_returns_no_picture_is_refused(drawn):
    env = jaxrl.make("probe/action").replace(draw=lambda state, params, size: drawn)
    with pytest.raises(InvalidInput, match=r"must be uint8 \[H, W, 3\]"):
        draw_state(env, find_drawing(env), np.zeros(()), SIZE)


def explanation(**changes):
    base = Explanation(
        action=np.array([0, 1]),
        reward=np.ones(2),
        value=np.array([1.0, 2.0]),
        explained={"probability": np.array([[0.9, 0.1], [0.2, 0.8]])},
        names=("left", "right"),
        bounds=None,
        end="terminated",
    )
    return base._replace(**changes)


def test_the_chosen_action_has_a_bar_of_its_own_colour_and_length():
    first, second = (draw_panel(explanation(), k, 300) for k in (0, 1))
    assert centre(first, ORANGE)[0] < centre(second, ORANGE)[0]

    def pixels(p):
        image = draw_panel(
            explanation(explained={"probability": np.array([[p, 1 - p]] * 2)}), 0, 300
        )
        return (np.abs(image / 255 - np.array(to_rgb(ORANGE))).max(-1) < 0.02).sum()

    assert pixels(0.9) > 1.5 * pixels(0.5)


def test_at_the_end_nothing_is_chosen():
    image = draw_panel(explanation(value=None), 2, 300)
    with pytest.raises(AssertionError):
        centre(image, ORANGE)


@pytest.mark.parametrize(
    "explained",
    [
        {"q": np.array([[1.0, -np.inf], [-np.inf, -np.inf]])},
        {"q": np.full((2, 40), 3.0)},
        {"spread": np.array([[[-1.0, 0.0, 9.0]], [[0.0, 0.0, 0.0]]])},
        {},
    ],
    ids=["illegal", "many and equal", "spread", "nothing"],
)
def test_odd_explanations_are_drawn(explained):
    names = tuple(map(str, range(40)))
    image = draw_panel(explanation(explained=explained, names=names), 1, 200)
    assert image.shape == (200, 270, 3)


def moving(count, height=40, width=61):
    """Frames of which a bar moves to the right."""
    for k in range(count):
        canvas = Canvas(height, 0, width / height, 0, 1)
        canvas.box(0.02 * k, 0.2, 0.02 * k + 0.2, 0.8, BLUE)
        yield canvas.picture()


def test_a_gif_has_every_frame_and_its_pace(tmp_path):
    out = tmp_path / "a.gif"
    files.write_moving(moving(70), out, fps=20)
    with Image.open(out) as image:
        assert image.n_frames == 70 and image.info["duration"] == 50
        assert image.info["loop"] == 0
        image.seek(69)
        shown, drawn = np.asarray(image.convert("RGB")), list(moving(70))[69]
    assert np.abs(shown.astype(int) - drawn).mean() < 2
    assert list(tmp_path.iterdir()) == [out]


def test_an_mp4_has_every_frame(tmp_path):
    import imageio_ffmpeg

    out = tmp_path / "a.mp4"
    files.write_moving(moving(12), out, fps=10)
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(out))
    assert frames == 12 and seconds == pytest.approx(1.2, abs=0.15)


def test_a_filmstrip_of_wide_pictures_has_fewer_columns(tmp_path):
    def strip(width):
        frames = [(f"step {k}", np.zeros((60, width, 3), np.uint8)) for k in range(6)]
        files.write_filmstrip([frames], tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            return image.size

    assert strip(60)[0] > 360 and strip(60)[1] < 100
    assert strip(180)[0] < 600 and 100 < strip(180)[1] < 200


def test_what_fails_on_the_way_leaves_the_file_that_was_there(tmp_path):
    out = tmp_path / "a.gif"
    out.write_bytes(b"before")

    def failing():
        yield from moving(3)
        raise InvalidInput("no more.")

    with pytest.raises(InvalidInput):
        files.write_moving(failing(), out, fps=10)
    assert out.read_bytes() == b"before" and list(tmp_path.iterdir()) == [out]


def test_a_missing_extra_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"pip install 'jaxrl\[video\]'"):
        files.check_file(Path(tmp_path / "a.mp4"), 10)
    files.check_file(Path(tmp_path / "a.gif"), 10)
