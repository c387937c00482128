"""GRPO of jaxrl against TRL's GRPOTrainer: seconds per step and final reward.

    python -m benchmarks.rlhf_speed                     # a quarter of an hour
    python -m benchmarks.rlhf_speed --parts tiny
    python -m benchmarks.rlhf_speed --quick --out DIR   # a few steps of a smaller model

Both sides load the same random GPT-2 of a folder, draw prompts from the same pool, write K
answers to each, and are paid the share of even tokens in an answer. Both take one step of
Adam a batch, on the same loss; see `config_of` here and `peers/trl_grpo.py`. Runs of ours
and of the peer take turns, each alone on the machine. The peer has an environment of its
own, `.peers/trl`; without it only ours is measured. Writes results/rlhf_speed.json, which
docs/rlhf-speed.md shows.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed import script
from benchmarks.speed.host import spread
from jaxrl.rlhf import estimators, grpo
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.data import Prompts
from jaxrl.rlhf.models import tokenizers
from jaxrl.rlhf.models.huggingface import load_gpt2
from jaxrl.rlhf.models.transformer import GPT
from jaxrl.rlhf.tasks import Lessons, Task
from jaxrl.runs.experiment import commit, versions
from jaxrl.statistics import bootstrap_difference
from jaxrl.types import Array

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WORKER = Path(__file__).parent / "peers" / "trl_grpo.py"
PACKAGES = ("torch==2.13.0", "trl==1.16.0")
BAR = 3.0
"""Minimum ratio of TRL's seconds to ours, for the tiny model."""
LAST = 10
"""Number of last steps whose mean reward is the final reward."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of both sides; lengths in tokens."""

    num_layers: int
    width: int
    num_heads: int
    iterations: int
    repeats: int
    warmup: int = 10
    """Untimed steps, for compilation, allocation and caches."""
    vocab_size: int = 256
    pool: int = 512
    """Number of prompts to draw from."""
    num_prompts: int = 8
    """Prompts in a batch."""
    prompt_length: int = 16
    answers: int = 8
    """Answers to each prompt, K."""
    max_new_tokens: int = 32
    learning_rate: float = 2e-3
    beta: float = 0.01
    """Coefficient of the KL divergence from the initial model."""
    temperature: float = 1.0
    clip_eps: float = 0.2
    max_grad_norm: float = 1.0
    """Gradient norm limit for the loss summed over tokens; see `peers/trl_grpo.py`."""

    @property
    def eos(self) -> int:
        """The last token, also used for padding; odd if the vocabulary is even."""
        return self.vocab_size - 1


PARTS = {
    "tiny": Settings(2, 32, 4, iterations=100, repeats=5, num_prompts=4, answers=4),
    "small": Settings(2, 64, 4, iterations=60, repeats=3),
}
QUICK = Settings(
    1, 16, 2, iterations=4, repeats=1, warmup=2, num_prompts=2, answers=2,
    vocab_size=32, pool=8, prompt_length=4, max_new_tokens=4,
)  # fmt: skip


def write_model(folder: Path, settings: Settings, seed: int = 0) -> None:
    """Write a GPT-2 in the format of `transformers`, with GPT-2's initialisation."""
    from safetensors.numpy import save_file

    width, layers = settings.width, settings.num_layers
    columns = settings.prompt_length + settings.max_new_tokens
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (0.02 * scale * rng.standard_normal(shape)).astype(np.float32)

    tensors = {
        "wte.weight": normal(settings.vocab_size, width),
        "wpe.weight": normal(columns, width),
    }
    norms, end = ["ln_f"], (2 * layers) ** -0.5
    for i in range(layers):
        norms += [f"h.{i}.ln_1", f"h.{i}.ln_2"]
        tensors |= {
            f"h.{i}.attn.c_attn.weight": normal(width, 3 * width),
            f"h.{i}.attn.c_proj.weight": normal(width, width, scale=end),
            f"h.{i}.mlp.c_fc.weight": normal(width, 4 * width),
            f"h.{i}.mlp.c_proj.weight": normal(4 * width, width, scale=end),
        }
    for name, x in list(tensors.items())[2:]:
        tensors[name.replace("weight", "bias")] = np.zeros(x.shape[1], np.float32)
    for name in norms:
        tensors[f"{name}.weight"] = np.ones(width, np.float32)
        tensors[f"{name}.bias"] = np.zeros(width, np.float32)
    tensors = {f"transformer.{name}": x for name, x in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    described = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": settings.vocab_size,
        "n_positions": columns,
        "n_embd": width,
        "n_layer": layers,
        "n_head": settings.num_heads,
        "bos_token_id": None,
        "eos_token_id": settings.eos,
        "pad_token_id": settings.eos,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")


def prompts(settings: Settings) -> np.ndarray:
    """Random prompts without EOS: int32 `[pool, prompt_length]`."""
    shape = (settings.pool, settings.prompt_length)
    return np.random.default_rng(0).integers(settings.eos, size=shape, dtype=np.int32)


# Our side.


def judge(_: Any, tokens: Array, mask: Array, answer: Array) -> Array:
    """Reward, the share of even tokens in each answer including EOS: `[B]`."""
    del mask
    even = text_losses.masked_sum(1.0 - tokens % 2, answer)
    return even / jnp.maximum(estimators.length(answer), 1)


def config_of(settings: Settings) -> grpo.Config:
    """Config of GRPO without scaling, with k3 in the loss, summed over tokens."""
    batch = settings.num_prompts * settings.answers
    same = (
        "learning_rate",
        "max_grad_norm",
        "max_new_tokens",
        "temperature",
        "clip_eps",
    )
    return grpo.Config(
        total_steps=float(batch * settings.iterations),
        batch_size=batch,
        group_size=settings.answers,
        anneal_lr=False,
        kl_coef=settings.beta,
        kl_penalty="k3",
        **{name: getattr(settings, name) for name in same},
    )


def make_task(settings: Settings, folder: Path) -> Task:
    config, params, _ = load_gpt2(folder)
    known = tokenizers.words([f"t{i}" for i in range(settings.eos)])
    tokens = prompts(settings)
    rows = Prompts(tokens, np.ones(tokens.shape, bool))
    rows = jax.tree.map(jnp.asarray, rows)
    return Task(Lessons(params, rows, rows, ()), GPT(config), known, judge)


step = jax.jit(grpo.train_step)


def ours(settings: Settings, folder: Path, seed: int) -> dict[str, Any]:
    """Seconds of the first step and of each after it, and the mean reward of each."""
    config, task = config_of(settings), make_task(settings, folder)
    grpo.GRPO.validate(config, task)
    state = grpo.GRPO.init(config, task, jax.random.key(seed))
    ends, rewards = [time.perf_counter()], []
    for _ in range(settings.iterations):
        state, metrics = step(config, task, state)
        rewards.append(float(metrics["rollout/episode_return"].value))
        jax.block_until_ready(state)
        ends.append(time.perf_counter())
    first, *seconds = np.diff(ends).tolist()
    return {"first": first, "seconds": seconds, "rewards": rewards}


# The peer's side.


def python_of(peers: Path) -> Path:
    return peers / "trl" / "bin" / "python"


def how_to_install(peers: Path) -> str:
    folder = peers / "trl"
    return (
        f"TRL is not measured: there is no {folder}; make it by `python3.11 -m venv "
        f"{folder} && {folder}/bin/pip install {' '.join(PACKAGES)}`."
    )


def theirs(python: Path, settings: Settings, folder: Path, seed: int) -> dict[str, Any]:
    """The numbers of `ours` for the peer, with its versions."""
    told = dataclasses.asdict(settings) | {
        "prompts": prompts(settings).tolist(),
        "eos": settings.eos,
        "folder": str(folder),
        "seed": seed,
        "threads": os.cpu_count(),
    }
    file = folder / "settings.json"
    file.write_text(json.dumps(told), encoding="utf-8")
    command = [str(python), str(WORKER), str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    if done.returncode:
        raise SystemExit(f"TRL could not run:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


# Both.


def measure(settings: Settings, python: Path | None) -> dict[str, Any]:
    """Alternate repeats of both sides, with a different side first each time."""
    sides: dict[str, Callable[..., dict[str, Any]]] = {"ours": ours}
    if python:
        sides["theirs"] = partial(theirs, python)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, settings)
        for seed in range(settings.repeats):
            for side in list(sides)[:: -1 if seed % 2 else 1]:
                run = sides[side](settings, folder, seed)
                runs[side].append(run)
                found = summary(settings, run)
                print(seed, side, found, flush=True)
    return gathered(settings, runs)


def summary(settings: Settings, run: dict[str, Any]) -> dict[str, float]:
    """Summary of one run: the median step after the warm-up, and the final reward."""
    return {
        "seconds": statistics.median(run["seconds"][settings.warmup - 1 :]),
        "reward": statistics.mean(run["rewards"][-LAST:]),
    }


def gathered(
    settings: Settings, runs: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    found: dict[str, Any] = {"settings": dataclasses.asdict(settings)}
    for side, all_of in runs.items():
        short = [summary(settings, run) for run in all_of]
        curve = np.mean([run["rewards"] for run in all_of], 0)
        found[side] = {
            "seconds_per_step": spread([x["seconds"] for x in short]),
            "reward": spread([x["reward"] for x in short]),
            "reward_by_repeat": [x["reward"] for x in short],
            "seconds_by_repeat": [x["seconds"] for x in short],
            "first_step_seconds": spread([run["first"] for run in all_of]),
            "rewards": [round(float(x), 4) for x in curve],
        }
        if "versions" in all_of[0]:
            found[side]["versions"] = all_of[0]["versions"]
    if "theirs" in runs:
        by_repeat = (found[x]["seconds_by_repeat"] for x in ("ours", "theirs"))
        found["ratio"] = spread([y / x for x, y in zip(*by_repeat, strict=True)])
        found["reward_difference"] = bootstrap_difference(
            *(found[side]["reward_by_repeat"] for side in ("ours", "theirs"))
        )
    return found


# The page.


def milliseconds(row: dict[str, float]) -> str:
    low, middle, high = (f"{1e3 * row[x]:.0f}" for x in ("min", "median", "max"))
    return f"{middle} [{low}, {high}]"


def table(found: dict[str, Any]) -> str:
    sides = {"ours": "jaxrl", "theirs": "TRL"}
    lines = [
        "| side | ms a step | reward at the start | reward reached | longest first, s |",
        "|---|---|---|---|---|",
    ]
    for side in (x for x in sides if x in found):
        row = found[side]
        low, middle, high = (row["reward"][x] for x in ("min", "median", "max"))
        lines.append(
            f"| {sides[side]} | {milliseconds(row['seconds_per_step'])} | "
            f"{row['rewards'][0]:.3f} | {middle:.3f} [{low:.3f}, {high:.3f}] | "
            f"{row['first_step_seconds']['max']:.1f} |"
        )
    return "\n".join([*lines, "", about(found)]) + "\n"


def about(found: dict[str, Any]) -> str:
    settings = found["settings"]
    said = (
        f"{settings['num_layers']} layers of width {settings['width']}; "
        f"{settings['num_prompts']} prompts × {settings['answers']} answers of "
        f"{settings['max_new_tokens']} tokens; {settings['repeats']} runs of "
        f"{settings['iterations']} steps. "
    )
    if "ratio" in found:
        low, middle, high = (found["ratio"][x] for x in ("min", "median", "max"))
        less, more = found["reward_difference"]
        said += (
            f"TRL's seconds over ours: {middle:.2f} [{low:.2f}, {high:.2f}] (bar for the "
            f"tiny model: ≥ {BAR:.0f}). Reward reached, ours minus theirs: 95 % interval "
            f"[{less:.3f}, {more:.3f}]. "
        )
        named = found["theirs"]["versions"]
        said += ", ".join(f"{x} {named[x]}" for x in ("trl", "transformers", "torch"))
        said += "; "
    return said + (
        f"jax {found['jax']}, {found['device']} with {found['cores']} cores; commit "
        f"{found['commit']}."
    )


def main() -> None:
    parser = script.parser(__doc__, list(PARTS))
    parser.add_argument(
        "--peers-dir", type=Path, default=ROOT / ".peers", help="where trl/ is"
    )
    arguments, file, rows = script.opened(parser, RESULTS, "rlhf_speed.json")
    python: Path | None = python_of(arguments.peers_dir)
    if not python.exists():
        if not arguments.out:
            parser.error(how_to_install(arguments.peers_dir) + " Or give --out.")
        print(how_to_install(arguments.peers_dir), flush=True)
        python = None
    origin = {
        "commit": commit(),
        "jax": versions()["jax"],
        "device": jax.devices()[0].platform,
        "cores": os.cpu_count(),
    }
    for part in arguments.parts:
        command = f"python -m benchmarks.rlhf_speed --parts {part}"
        settings = QUICK if arguments.quick else PARTS[part]
        rows[part] = {"command": command} | origin | measure(settings, python)
        file.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
        print(table(rows[part]), flush=True)


if __name__ == "__main__":
    main()
