"""GIF of an improving agent beside its learning curve.

python -m tools.training              # writes docs/figures/training.gif, in minutes
python -m tools.training --out FILE   # another GIF or MP4

PPO on Pendulum-v1, a pendulum to be swung up and held. The first of the agents is
saved at a few points of its training, and at each of them plays the same episode greedily.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrl
from jaxrl import plotting
from jaxrl.rendering.drawing.files import write_moving
from jaxrl.runs.policy import Policy
from jaxrl.statistics import bootstrap_interval, iqm

OUT = Path(__file__).parent.parent / "docs" / "figures" / "training.gif"
ENV, SEEDS = "Pendulum-v1", 8
CONFIG = jaxrl.PPO.Config(
    total_steps=200_000,
    num_envs=16,
    num_steps=128,
    num_epochs=10,
    num_minibatches=16,
    learning_rate=5e-4,
    gamma=0.95,
    ent_coef=0.0,
    normalize_obs=True,
)
MOMENTS = (0.0, 0.1, 0.17, 1.0)
"""Shares of the training at which the agent is saved."""

HEIGHT, STEPS, STRIDE, FPS = 220, 120, 2, 10
"""Height of a picture, steps of an episode, step interval and rate of the frames."""

GROWING = 10
"""Number of frames in which the curve grows to the next moment."""

Moment = tuple[int, Any]
"""Number of environment steps, and the agent after them."""


def trained(config: Any, env: Any) -> tuple[list[Moment], np.ndarray, np.ndarray]:
    """Train; return the moments, and the curve: steps `[C]` and returns `[C, K]`."""
    steps = config.num_envs * config.num_steps
    iterations = int(config.total_steps) // steps
    wanted = {round(share * iterations) for share in MOMENTS}
    kept: dict[int, Any] = {}

    def keep(progress: Any) -> bool:
        if progress.iteration in wanted - kept.keys():
            first = jaxrl.member(progress.state.agent, 0)
            kept[progress.iteration] = jax.tree.map(np.array, first)
        return False

    result = jaxrl.train(
        jaxrl.PPO, config, env, num_seeds=SEEDS, iterations=iterations, between=keep
    )
    moments = [(i * steps, agent) for i, agent in sorted(kept.items())]
    return moments, *plotting.curve(result.history, "rollout/episode_return")


def panel(
    steps: np.ndarray, values: np.ndarray, until: float, words: str
) -> np.ndarray:
    """Picture of the curve up to a moment, uint8 `[HEIGHT, W, 3]`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with plotting.style():
        figure, axes = plotting.make_figure(words, (3.4, 2.2))
        figure.set_dpi(HEIGHT / 2.2)
        shown = steps <= max(until, steps[0])
        middle = iqm(values, axis=1)
        low, high = bootstrap_interval(values, axis=1, num_resamples=500)
        axes.fill_between(
            steps[shown], low[shown], high[shown], color=plotting.PALE, alpha=0.5, lw=0
        )
        axes.plot(steps[shown], middle[shown], color=plotting.LINES[0])
        axes.plot(steps[shown][-1:], middle[shown][-1:], "o", color=plotting.LINES[1])
        axes.set_xlim(0, steps[-1] * 1.02)
        axes.set_ylim(low.min() - 50, high.max() + 100)
        plotting.steps_axis(axes)
        axes.set_ylabel("episode return")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.array(canvas.buffer_rgba())[..., :3]


def frames(config: Any) -> Iterator[np.ndarray]:
    """Frames of an episode at each moment, and of the growing curve in between.

    The first frame is the final picture, which is shown where a GIF is not animated.
    """
    env = jaxrl.make(ENV)
    moments, steps, values = trained(config, env)
    played = [
        jaxrl.render_frames(
            Policy(jaxrl.PPO, config, env, agent), max_steps=STEPS, size=HEIGHT
        )
        for _, agent in moments
    ]
    end = f"{SEEDS} agents, trained for {moments[-1][0]:,} steps"
    yield from [beside(played[-1][-1], panel(steps, values, steps[-1], end))] * FPS
    before = 0
    for (at, _), pictures in zip(moments, played, strict=True):
        growth = np.linspace(before, at, GROWING, endpoint=False) if at else []
        for until in growth:
            words = f"learning: {int(until):,} steps"
            yield beside(pictures[0], panel(steps, values, until, words))
        words = "untrained" if at == 0 else f"after {at:,} steps"
        right = panel(steps, values, at, words)
        for picture in pictures[::STRIDE]:
            yield beside(picture, right)
        before = at


def beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two pictures side by side, the lower one padded with white."""
    height = max(left.shape[0], right.shape[0])
    filled = [
        np.pad(x, ((0, height - x.shape[0]), (0, 0), (0, 0)), constant_values=255)
        for x in (left, right)
    ]
    return np.concatenate(filled, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="a GIF or MP4")
    write_moving(frames(CONFIG), parser.parse_args().out, FPS)


if __name__ == "__main__":
    main()
