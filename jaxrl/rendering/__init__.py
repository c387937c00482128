"""Rendering of a trained agent: `jaxrl render`, as one Python call.

The episodes are played on the device, in one compiled program that keeps every state;
the pictures are drawn from these states on the host (`jaxrl.rendering.drawing`).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl import spaces
from jaxrl.core import files, prng
from jaxrl.core.config import check_value
from jaxrl.errors import require
from jaxrl.evaluation import MAX_STEPS
from jaxrl.rendering.drawing import action_names, draw_state, find_drawing
from jaxrl.rendering.drawing.files import check_file, write_filmstrip, write_moving
from jaxrl.rendering.drawing.panel import Explanation, draw_panel
from jaxrl.rollout import EpisodeRecord, init_world, record_episode
from jaxrl.runs.policy import Policy, load_policy
from jaxrl.training.loop import check_seeds
from jaxrl.types import Algorithm, Array, Env, Memory, PyTree, World

RENDERING = 0x726E64
"""Folded into the seed, so that the episodes differ from those of an evaluation."""

SIZE = 256
SMALLEST, SMALLEST_WITH_OVERLAY, LARGEST = 32, 128, 2048
"""Height in pixels; below the second the text of the overlay cannot be read."""

MOST_STEPS = 100_000
"""Of a recorded episode, of which every state is kept."""

PIECE = 1_000
"""Steps recorded by one call of a compiled program."""

STRIP = 6
"""Number of pictures of an episode in a filmstrip."""


class Episode(NamedTuple):
    """One episode of L steps, NumPy arrays."""

    env_state: PyTree  # [L + 1, ...]: before each step, and at the end
    action: np.ndarray  # [L, ...]
    reward: np.ndarray  # [L]
    value: np.ndarray | None  # [L]; None where the algorithm has none
    explained: dict[str, np.ndarray]  # [L, ...], see `Algorithm.explain`
    end: str  # "terminated", "truncated", or "cut" after the maximum of steps


def record(
    policy: Policy,
    episodes: int = 1,
    *,
    seed: int = 0,
    greedy: bool = True,
    max_steps: int | None = None,
) -> list[Episode]:
    """Play whole episodes on the device, and keep every state.

    Args:
      policy: the player, from `jaxrl.load_policy`, or made from an agent in memory.
      episodes: number of episodes.
      seed: seed of the episodes.
      greedy: the likeliest action instead of a sampled one.
      max_steps: steps after which an episode is cut; by default the environment's time
        limit, at most `MOST_STEPS`, or `evaluation.MAX_STEPS` if it has none.

    Raises:
      InvalidInput: a number is out of range.
    """
    check_value("episodes", int, episodes, low=1)
    check_value("max_steps", int | None, max_steps, low=1, high=MOST_STEPS)
    check_seeds(seed, 1)
    start: Any = jax.random.fold_in(prng.key(seed), RENDERING)
    limit, steps = _most_steps(policy.env, max_steps), 0
    pieces: list[EpisodeRecord] = []
    while steps < limit:
        recorded = _play(
            *(policy.algorithm, policy.config, policy.env, policy.agent, start),
            num_episodes=episodes,
            greedy=greedy,
            max_steps=min(PIECE, limit - steps),
        )
        start, steps = (recorded.world, recorded.ended), steps + PIECE
        rows = jax.device_get(recorded._replace(world=(), ended=()))
        pieces.append(jax.tree.map(np.asarray, rows))
        if recorded.ended.all():
            break
    return [_episode(pieces, n) for n in range(episodes)]


def _most_steps(env: Env, max_steps: int | None) -> int:
    """Steps after which an episode is over or cut."""
    if env.horizon is None:
        return max_steps or MAX_STEPS
    return min(int(env.horizon), max_steps or MOST_STEPS)


@partial(jax.jit, static_argnames=("algorithm", "num_episodes", "greedy", "max_steps"))
def _play(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    agent: PyTree,
    start: Array | tuple[World, Array],
    num_episodes: int,
    greedy: bool,
    max_steps: int,
) -> EpisodeRecord:
    """Play from a key, or go on from the world of a record and what has ended in it."""

    def policy(obs: PyTree, memory: Memory, key: Array) -> tuple:
        explained = algorithm.explain(config, env, agent, obs, memory)
        args = (config, env, agent, obs, memory, key, greedy)
        action, memory, extras = algorithm.act(*args)
        value = {"value": extras["value"]} if "value" in extras else {}
        return action, memory, value | {"explained": explained}

    if isinstance(start, tuple):
        return record_episode(env, policy, start[0], max_steps, start[1])
    memory = algorithm.init_memory(config, env, num_episodes)
    world = init_world(env, start, num_episodes, memory)
    return record_episode(env, policy, world, max_steps)


def _episode(pieces: Sequence[EpisodeRecord], n: int) -> Episode:
    """Extract the n-th episode, without the rows after its end."""
    pieces = [piece for piece in pieces if piece.running[:, n].any()]
    lengths = [int(piece.running[:, n].sum()) for piece in pieces]

    def join(*columns: np.ndarray) -> np.ndarray:
        parts = [x[:length, n] for x, length in zip(columns, lengths, strict=True)]
        return np.concatenate(parts)

    def join_states(*columns: np.ndarray) -> np.ndarray:
        return np.concatenate([join(*columns), columns[-1][lengths[-1], n][None]])

    rows = [piece.transition._replace(obs=(), next_obs=()) for piece in pieces]
    states = jax.tree.map(join_states, *(piece.env_state for piece in pieces))
    steps = jax.tree.map(join, *rows)
    end = "terminated" if steps.terminated[-1] else "truncated"
    if not (steps.terminated[-1] or steps.truncated[-1]):
        end = "cut"
    value, explained = steps.extras.get("value"), steps.extras["explained"]
    return Episode(states, steps.action, steps.reward, value, explained, end)


def draw_frames(
    policy: Policy,
    episode: Episode,
    size: int = SIZE,
    overlay: bool = False,
    steps: Sequence[int] | None = None,
) -> Iterator[np.ndarray]:
    """Draw the pictures of an episode, one after the other: uint8 `[H, W, 3]`.

    Args:
      policy: the player.
      episode: from `record`.
      size: height in pixels, approximately.
      overlay: draw the actions (probabilities, Q or spread) and the value beside it.
      steps: the steps to draw; by default all L + 1, from the start to the end.
    """
    drawing = find_drawing(policy.env)
    explanation = _explanation(policy, episode, action_names(policy.env, drawing))
    shape = None
    for step in range(len(episode.reward) + 1) if steps is None else steps:
        state = jax.tree.map(lambda x, step=step: x[step], episode.env_state)
        frame = draw_state(policy.env, drawing, state, size)
        shape = shape or frame.shape
        require(
            frame.shape == shape,
            f"draw of {policy.env.id!r} returned {list(frame.shape)} after {list(shape)}: "
            f"all pictures must be of one shape.",
        )
        if overlay:
            panel = draw_panel(explanation, step, len(frame))
            frame = np.concatenate([frame, panel], axis=1)
        yield frame


def _explanation(policy: Policy, episode: Episode, names: Sequence[str]) -> Explanation:
    """Collect what the overlay shows of an episode."""
    space, bounds = policy.env.action_space, None
    if isinstance(space, spaces.Box) and space.bounded:
        low, high = np.asarray(space.low_array()), np.asarray(space.high_array())
        bounds = low.reshape(-1), high.reshape(-1)
    return Explanation(
        episode.action,
        episode.reward,
        episode.value,
        episode.explained,
        names,
        bounds,
        episode.end,
    )


def render_frames(
    policy: Policy,
    episodes: int = 1,
    *,
    seed: int = 0,
    greedy: bool = True,
    max_steps: int | None = None,
    size: int = SIZE,
    overlay: bool = False,
) -> np.ndarray:
    """Render whole episodes, uint8 `[T, H, W, 3]`, one episode after the other.

    Args:
      policy: the player, from `jaxrl.load_policy`, or made from an agent in memory.
      episodes: number of episodes; one of L steps has L + 1 pictures.
      seed: seed of the episodes.
      greedy: the likeliest action instead of a sampled one.
      max_steps: steps after which an episode is cut; by default the environment's time
        limit, see `record`.
      size: height in pixels, approximately.
      overlay: draw the actions (probabilities, Q or spread) and the value beside it.

    Raises:
      InvalidInput: nothing draws this environment, or a number is out of range.
    """
    find_drawing(policy.env)
    _check_size(size, overlay)
    recorded = record(policy, episodes, seed=seed, greedy=greedy, max_steps=max_steps)
    each = (draw_frames(policy, episode, size, overlay) for episode in recorded)
    return np.stack(list(chain.from_iterable(each)))


def render(
    run: Path | str,
    out: Path | str,
    *,
    episodes: int = 1,
    seed: int = 0,
    greedy: bool = True,
    agent: int | None = None,
    max_steps: int | None = None,
    fps: int | None = None,
    size: int = SIZE,
    overlay: bool = False,
    env: str | None = None,
) -> list[Episode]:
    """Render episodes of an agent of a run as a GIF, an MP4, or a PNG filmstrip.

    Args:
      run: the run folder.
      out: a file that ends in .gif, .mp4 or .png; an existing one is replaced.
      episodes: number of episodes, one after the other; in a filmstrip one below the
        other.
      seed: seed of the episodes.
      greedy: the likeliest action instead of a sampled one.
      agent: its place in the run; by default the first.
      max_steps: steps after which an episode is cut; by default the environment's time
        limit, see `record`.
      fps: pictures per second; by default what suits the environment.
      size: height in pixels, approximately.
      overlay: draw the actions (probabilities, Q or spread) and the value beside it.
      env: the environment's id, needed where it is "module:factory", which is code.

    Returns:
      The episodes.

    Raises:
      InvalidInput: before anything compiles or is written; or the file cannot be
        written.
    """
    path = Path(out)
    check_value("fps", int | None, fps, low=1, high=240)
    _check_size(size, overlay)
    check_file(path, fps or 1)
    policy = load_policy(run, agent, env)
    fps = fps or find_drawing(policy.env).fps
    recorded = record(policy, episodes, seed=seed, greedy=greedy, max_steps=max_steps)
    try:
        if path.suffix == ".png":
            rows = [_strip(policy, episode, size, overlay) for episode in recorded]
            write_filmstrip(rows, path)
        else:
            each = (draw_frames(policy, episode, size, overlay) for episode in recorded)
            write_moving(chain.from_iterable(each), path, fps)
    except OSError as error:
        files.refuse(error, f"out = {str(out)!r} cannot be written ({error}).")
    return recorded


def _check_size(size: int, overlay: bool) -> None:
    low = SMALLEST_WITH_OVERLAY if overlay else SMALLEST
    check_value("size", int, size, low=low, high=LARGEST)


def _strip(
    policy: Policy, episode: Episode, size: int, overlay: bool
) -> list[tuple[str, np.ndarray]]:
    """Draw pictures at equal distances, the first and the last one among them."""
    last = len(episode.reward)
    steps = sorted({round(x) for x in np.linspace(0, last, STRIP)})
    frames = draw_frames(policy, episode, size, overlay, steps)
    return [(f"step {k}", frame) for k, frame in zip(steps, frames, strict=True)]
