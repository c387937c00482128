"""RLHF on the small world, whole, where every step can be compared with what is exact.

SFT on the reference's responses, pairs of its responses labelled with noise, a reward
model, PPO against it; then all distributions over responses are computed, and compared with
the optimum π* ∝ π_ref exp(r / β).

A reward model of labels with noise τ learns r / τ. So PPO with the KL penalty β / τ against
it has the optimum of the gold reward r with the KL penalty β.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.core import storage
from jaxrl.pipelines.rlhf import stages
from jaxrl.pipelines.rlhf.loop import begin
from jaxrl.pipelines.rlhf.writing import Sampling
from jaxrl.rlhf import estimators, policies, testbeds
from jaxrl.rlhf.labels import labelers
from jaxrl.rlhf.models import language_model
from jaxrl.rlhf.models.transformer import GPT
from jaxrl.rlhf.testbeds import small_world
from jaxrl.types import Array

BETA = 0.3
NOISE = 0.5
"""τ of the labels."""
BEST_OF = 8
SEED = 0


class Size(NamedTuple):
    """Length of each stage, in rows, pairs and responses."""

    sft: int = 60_000
    pairs: int = 20_000
    reward: int = 100_000
    ppo: int = 60_000


FULL = Size()
QUICK = Size(1_280, 40, 1_280, 512)
SOURCE = "small-world"
TOKENS = 5  # of a response
MODEL = {"num_layers": 2, "num_heads": 2, "width": 32}


def run(out: Path, size: Size = FULL, **host: Any) -> list[dict[str, Any]]:
    """Run the stages that are not done yet, and compare.

    Args:
      out: a new folder, or one of a demo that was killed.
      size: of the stages.
      **host: as of `stages.train`.

    Returns:
      The rows of the table, `{"policy", "reward", "kl", "value", "kl_from_optimum"}`,
      which `out` holds as table.json, with a figure.

    Raises:
      InvalidInput: the folder holds something else.
    """
    begin(out, {"size": size._asdict(), "beta": BETA, "noise": NOISE}, "demo.json")
    sft, reward, ppo = (str(out / name) for name in ("sft", "reward", "ppo"))

    def train(name: str, source: str, params: dict, config: dict, to: str) -> None:
        stages.train(name, source, params, config, Path(to), **host)

    new = {"model": MODEL, "max_length": 8}
    train("sft", SOURCE, new, _sft(size), sft)
    pairs = str(out / "pairs.jsonl")
    asked = stages.questions(SOURCE, sft, Sampling(TOKENS), size.pairs, SEED)
    labeler = labelers.gold(testbeds.TESTBEDS[SOURCE].gold, NOISE, SEED)
    labelers.label(asked, labeler, pairs, host.get("report", print))
    fitted = {"base": sft, "max_length": 8}
    train("reward", pairs, fitted, _reward(size), reward)
    judged = {"base": sft, "reward": reward}
    train("ppo", SOURCE, judged, _ppo(size), ppo)
    found = compare(sft, reward, ppo)
    storage.write_text(out / "table.json", json.dumps(found, indent=1) + "\n")
    plot(found, out / "demo.png")
    return found["table"]


def _sft(size: Size) -> dict[str, Any]:
    return {"total_steps": size.sft, "batch_size": 128, "learning_rate": 3e-3}


def _reward(size: Size) -> dict[str, Any]:
    common = {"batch_size": 128, "learning_rate": 1e-3, "normalize": False}
    return {"total_steps": size.reward} | common


def _ppo(size: Size) -> dict[str, Any]:
    return {
        "total_steps": size.ppo,
        "batch_size": 256,
        "num_epochs": 4,
        "num_minibatches": 1,
        "learning_rate": 1e-3,
        "max_new_tokens": TOKENS,
        "kl_coef": BETA / NOISE,
        "eos_penalty": 1.0 / NOISE,
    }


# What is exact.


def model_log_probs(known: language_model.LanguageModel) -> Array:
    """log π(y|x) of all responses of the small world under a model: `[P, N]`."""
    given = testbeds.small()

    @jax.jit
    def logits(params: Any, tokens: Array) -> Array:
        mask = jnp.ones(tokens.shape, bool)
        return policies.logits(GPT(known.config), params, tokens, mask)

    return small_world.response_log_probs(given, partial(logits, known.params))


def model_scores(reward: language_model.LanguageModel, eos_penalty: float) -> Array:
    """The rewards of all responses of the small world by a reward model: `[P, N]`."""
    given = testbeds.small()
    (prompts, columns), (number, _) = given.prompts.shape, given.tokens.shape
    repeated = np.repeat(given.prompts, number, 0)
    tokens = np.concatenate([repeated, np.tile(given.tokens, (prompts, 1))], 1)
    real = np.tile(given.mask, (prompts, 1))
    response = np.concatenate([np.zeros_like(repeated, bool), real], 1)
    mask = response | (np.arange(tokens.shape[1]) < columns)
    judge = jax.jit(language_model.scorer(GPT(reward.config)))
    found = judge(reward.params, *(jnp.asarray(x) for x in (tokens, mask, response)))
    ends = jnp.tile(jnp.asarray(given.has_eos), prompts)
    ruled = estimators.score_with_eos_rule(found, ends, eos_penalty)
    return ruled.reshape(prompts, number)


Row = dict[str, Any]


def compare(sft: str, reward: str, ppo: str) -> dict[str, list[Row]]:
    """The "table"; "best_of_n" for n = 1, 2, 4, ... 64; and the "frontier", what no policy
    exceeds at its divergence. All of it by exact sums."""
    given = testbeds.small()
    gold = jnp.asarray(given.reward, jnp.float32)
    ref, policy = (model_log_probs(language_model.load(x)) for x in (sft, ppo))
    scores = model_scores(language_model.load_reward(reward), 1.0 / NOISE)
    optimum = small_world.optimum(ref, gold, BETA)
    row = partial(_row, optimum.log_prob, ref, gold)
    best = partial(small_world.best_of_n_log_prob, ref, scores)
    table = [
        row("SFT, which is the reference", ref),
        row(f"best of {BEST_OF} by the reward model", best(BEST_OF)),
        row("PPO against the reward model", policy),
        row("optimum", optimum.log_prob),
    ]
    betas = np.geomspace(0.05, 10.0, 40)
    frontier = [small_world.optimum(ref, gold, float(beta)).log_prob for beta in betas]
    return {
        "table": table,
        "best_of_n": [row(f"best of {2**i}", best(2**i)) for i in range(7)],
        "frontier": [
            row(f"β = {b:.3g}", x) for b, x in zip(betas, frontier, strict=True)
        ],
    }


def _row(
    optimum: Array, ref: Array, gold: Array, name: str, log_prob: Array
) -> dict[str, Any]:
    return {
        "policy": name,
        "reward": float(small_world.expected_reward(log_prob, gold)),
        "kl": float(small_world.kl(log_prob, ref)),
        "value": float(small_world.kl_penalized_reward(log_prob, ref, gold, BETA)),
        "kl_from_optimum": float(small_world.kl(optimum, log_prob)),
    }


def format_table(rows: list[dict[str, Any]]) -> str:
    """The table for a terminal."""
    head = f"{'policy':30} {'gold reward':>11} {'KL(π‖π_ref)':>12} "
    lines = [head + f"{'J = E r - β KL':>15} {'KL(π*‖π)':>10}"]
    for row in rows:
        numbers = (row["reward"], row["kl"], row["value"], row["kl_from_optimum"])
        places = zip(numbers, (11, 12, 15, 10), strict=True)
        lines.append(
            f"{row['policy']:30} " + " ".join(f"{x:{n}.3f}" for x, n in places)
        )
    return "\n".join(lines)


def plot(found: dict[str, list[Row]], out: Path) -> None:
    """Gold reward against √KL."""
    from jaxrl.plotting import style

    with style():
        _plot(found, out)


def _plot(found: dict[str, list[Row]], out: Path) -> None:
    from jaxrl.plotting import BLACK, COLOURS, make_figure, save_figure

    figure, axes = make_figure("RLHF on the small world")
    frontier = _points(found["frontier"])
    axes.plot(*frontier, "-", color=BLACK, label="no policy is above")
    axes.plot(
        *_points(found["best_of_n"]),
        "o-",
        color=COLOURS[0],
        label="best of n = 1, 2, ... 64",
    )
    for i, row in enumerate(found["table"][2:], 1):
        axes.plot(
            *_points([row]),
            "sD"[i - 1],
            color=COLOURS[i],
            markersize=6,
            label=row["policy"],
        )
    axes.set_xlabel("√KL(π ‖ π_ref), nats")
    axes.set_ylabel("gold reward")
    axes.legend()
    save_figure(figure, out)


def _points(rows: list[Row]) -> tuple[list[float], list[float]]:
    return [max(r["kl"], 0.0) ** 0.5 for r in rows], [r["reward"] for r in rows]
