"""Watching a trained agent: what `jaxrl render` does, as one Python call.

The episodes are played on the device, in one compiled program that keeps every state;
the pictures are drawn from these states on the host (`jaxrl.rendering.drawing`).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.core import prng
from jaxrl.core.config import check_value
from jaxrl.errors import InvalidInput, require
from jaxrl.evaluation import MAX_STEPS
from jaxrl.rendering.drawing import action_names, drawing_of, picture
from jaxrl.rendering.drawing.files import check_file, write_filmstrip, write_moving
from jaxrl.rendering.drawing.panel import Thoughts, panel
from jaxrl.rollout import Watched, init_world, watch
from jaxrl.runs.artifact import check_acts, load_agents
from jaxrl.runs.policy import Policy
from jaxrl.training.loop import checked_seeds
from jaxrl.training.population import member as of_population
from jaxrl.types import Algorithm, Array, Env, Memory, PyTree

RENDERING = 0x726E64
"""Folded into the seed of the episodes, which are then not those of an evaluation."""

SIZE = 256
SMALLEST, SMALLEST_WITH_OVERLAY, LARGEST = 32, 128, 2048
"""Pixels of height; below the second the words of the overlay cannot be read."""

STRIP = 6
"""Pictures of each episode in a filmstrip."""


class Episode(NamedTuple):
    """One episode of L steps, NumPy arrays."""

    env_state: PyTree  # [L + 1, ...]: before each step, and at the end
    action: np.ndarray  # [L, ...]
    reward: np.ndarray  # [L]
    value: np.ndarray | None  # [L]; None where the algorithm has none
    explained: dict[str, np.ndarray]  # [L, ...], see `Algorithm.explain`
    end: str  # "terminated", "truncated", or "cut" at the most steps


def record(
    policy: Policy,
    episodes: int = 1,
    *,
    seed: int = 0,
    greedy: bool = True,
    max_steps: int | None = None,
) -> list[Episode]:
    """Plays whole episodes in one compiled program, and keeps every state.

    Args:
      policy: who plays, from `jaxrl.load_policy`, or made of an agent in memory.
      episodes: how many.
      seed: of the episodes.
      greedy: the likeliest action, or a sampled one.
      max_steps: where an episode is cut; by default the environment's time limit.

    Raises:
      InvalidInput: a number is out of range.
    """
    check_value("episodes", int, episodes, low=1)
    check_value("max_steps", int | None, max_steps, low=1, high=MAX_STEPS)
    checked_seeds(seed, 1)
    horizon = policy.env.horizon
    most = MAX_STEPS if horizon is None else min(int(horizon), MAX_STEPS)
    key = jax.random.fold_in(prng.key(seed), RENDERING)
    watched = _watched(
        *(policy.algorithm, policy.config, policy.env, policy.agent, key),
        num_episodes=episodes,
        greedy=greedy,
        max_steps=most if max_steps is None else min(max_steps, most),
    )
    watched = jax.tree.map(np.asarray, jax.device_get(watched))
    return [_episode(watched, n) for n in range(episodes)]


@partial(jax.jit, static_argnames=("algorithm", "num_episodes", "greedy", "max_steps"))
def _watched(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    agent: PyTree,
    key: Array,
    num_episodes: int,
    greedy: bool,
    max_steps: int,
) -> Watched:
    def policy(obs: PyTree, memory: Memory, key: Array) -> tuple:
        shown = algorithm.explain(config, env, agent, obs, memory)
        args = (config, env, agent, obs, memory, key, greedy)
        action, memory, extras = algorithm.act(*args)
        value = {"value": extras["value"]} if "value" in extras else {}
        return action, memory, value | {"explained": shown}

    memory = algorithm.init_memory(config, env, num_episodes)
    return watch(env, policy, init_world(env, key, num_episodes, memory), max_steps)


def _episode(watched: Watched, n: int) -> Episode:
    """The n-th episode, without the rows after its end."""
    length = int(watched.running[:, n].sum())
    states = jax.tree.map(lambda x: x[: length + 1, n], watched.env_state)
    rows = watched.transition
    own = jax.tree.map(lambda x: x[:length, n], rows._replace(obs=(), next_obs=()))
    end = "terminated" if own.terminated[-1] else "truncated"
    if not (own.terminated[-1] or own.truncated[-1]):
        end = "cut"
    value, explained = own.extras.get("value"), own.extras["explained"]
    return Episode(states, own.action, own.reward, value, explained, end)


def frames_of(
    policy: Policy,
    episode: Episode,
    size: int = SIZE,
    overlay: bool = False,
    steps: Sequence[int] | None = None,
) -> Iterator[np.ndarray]:
    """The pictures of an episode, one after the other: uint8 `[H, W, 3]`.

    Args:
      policy: who played it.
      episode: of `record`.
      size: pixels of height, about.
      overlay: draws the actions (probabilities, Q or spread) and the value beside it.
      steps: which of them; by default all L + 1, from the start to the end.
    """
    drawing = drawing_of(policy.env)
    thoughts = _thoughts(policy, episode, action_names(policy.env, drawing))
    shape = None
    for step in range(len(episode.reward) + 1) if steps is None else steps:
        state = jax.tree.map(lambda x, step=step: x[step], episode.env_state)
        frame = picture(policy.env, drawing, state, size)
        shape = shape or frame.shape
        require(
            frame.shape == shape,
            f"draw of {policy.env.id!r} returned {list(frame.shape)} after {list(shape)}: "
            f"all pictures must be of one shape.",
        )
        if overlay:
            beside = panel(thoughts, step, len(frame))
            frame = np.concatenate([frame, beside], axis=1)
        yield frame


def _thoughts(policy: Policy, episode: Episode, names: Sequence[str]) -> Thoughts:
    space, bounds = policy.env.action_space, None
    if isinstance(space, spaces.Box) and space.bounded:
        low, high = np.asarray(space.low_array()), np.asarray(space.high_array())
        bounds = low.reshape(-1), high.reshape(-1)
    return Thoughts(
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
    """Whole episodes as pictures, uint8 `[T, H, W, 3]`, one episode after the other.

    Args:
      policy: who plays, from `jaxrl.load_policy`, or made of an agent in memory.
      episodes: how many; of L steps each has L + 1 pictures.
      seed: of the episodes.
      greedy: the likeliest action, or a sampled one.
      max_steps: where an episode is cut; by default the environment's time limit.
      size: pixels of height, about.
      overlay: draws the actions (probabilities, Q or spread) and the value beside it.

    Raises:
      InvalidInput: nothing draws this environment, or a number is out of range.
    """
    drawing_of(policy.env)
    _check_size(size, overlay)
    played = record(policy, episodes, seed=seed, greedy=greedy, max_steps=max_steps)
    each = [frames_of(policy, episode, size, overlay) for episode in played]
    return np.stack([frame for frames in each for frame in frames])


def render(
    run: Path | str,
    out: Path | str,
    *,
    episodes: int = 1,
    seed: int = 0,
    greedy: bool = True,
    member: int | None = None,
    max_steps: int | None = None,
    fps: int | None = None,
    size: int = SIZE,
    overlay: bool = False,
    env: str | None = None,
) -> list[Episode]:
    """Episodes of an agent of a run folder as a GIF, an MP4, or a PNG filmstrip.

    Args:
      run: the run folder.
      out: a file that ends in .gif, .mp4 or .png; one that is there is replaced.
      episodes: how many, one after the other; in a filmstrip one below the other.
      seed: of the episodes.
      greedy: the likeliest action, or a sampled one.
      member: which agent, by its place in training; by default the first.
      max_steps: where an episode is cut; by default the environment's time limit.
      fps: pictures a second; by default what suits the environment.
      size: pixels of height, about.
      overlay: draws the actions (probabilities, Q or spread) and the value beside it.
      env: the environment's id, needed where it is "module:factory", which is code.

    Returns:
      The episodes.

    Raises:
      InvalidInput: before anything compiles or is written; or the disk does not take it.
    """
    path = Path(out)
    check_value("fps", int | None, fps, low=1, high=240)
    _check_size(size, overlay)
    check_file(path, fps or 1)
    policy = _loaded(run, env, member)
    fps = fps or drawing_of(policy.env).fps
    played = record(policy, episodes, seed=seed, greedy=greedy, max_steps=max_steps)
    try:
        if path.suffix == ".png":
            rows = [_strip(policy, episode, size, overlay) for episode in played]
            write_filmstrip(rows, path)
        else:
            each = (frames_of(policy, episode, size, overlay) for episode in played)
            write_moving((frame for frames in each for frame in frames), path, fps)
    except OSError as error:
        raise InvalidInput(
            f"out = {str(out)!r} cannot be written ({error})."
        ) from error
    return played


def _loaded(run: Path | str, env: str | None, member: int | None) -> Policy:
    """One agent of a run, by its place in training."""
    agents = load_agents(run, env)
    check_acts(agents, run)
    members = list(agents.members or range(len(agents.seeds)))
    require(
        member is None or member in members,
        f"member = {member}: {str(run)!r} has {', '.join(map(str, members))}.",
    )
    k = 0 if member is None else members.index(member)
    agent = jax.tree.map(jnp.asarray, of_population(agents.agents, k))
    return Policy(agents.algorithm, *agents.variants[k], agent)


def _check_size(size: int, overlay: bool) -> None:
    low = SMALLEST_WITH_OVERLAY if overlay else SMALLEST
    check_value("size", int, size, low=low, high=LARGEST)


def _strip(
    policy: Policy, episode: Episode, size: int, overlay: bool
) -> list[tuple[str, np.ndarray]]:
    """Pictures at equal distances, the first and the last one among them."""
    last = len(episode.reward)
    chosen = sorted({round(x) for x in np.linspace(0, last, STRIP)})
    frames = frames_of(policy, episode, size, overlay, chosen)
    return [(f"step {k}", frame) for k, frame in zip(chosen, frames, strict=True)]
