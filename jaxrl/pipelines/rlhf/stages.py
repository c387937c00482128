"""Stages in folders, each of which can be resumed: runs of algorithms, files of labels."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrl.core import config as configs
from jaxrl.core import storage
from jaxrl.errors import InvalidInput, require
from jaxrl.pipelines.rlhf import writing
from jaxrl.pipelines.rlhf.writing import Sampling
from jaxrl.rlhf import data, tasks, testbeds
from jaxrl.rlhf.labels import labelers
from jaxrl.rlhf.labels.labelers import Labeler, Question
from jaxrl.rlhf.models import language_model
from jaxrl.rlhf.models.transformer import GPT
from jaxrl.rlhf.registry import RLHF
from jaxrl.runs.experiment import (
    Experiment,
    describe,
    finished_summary,
    json_text,
    read_experiment,
)
from jaxrl.runs.session import resume_experiment, run_experiment

Report = Callable[[str], None]


def train(
    name: str,
    source: str,
    params: dict[str, Any],
    config: dict[str, Any],
    out: Path,
    seed: int = 0,
    **host: Any,
) -> dict[str, Any]:
    """A run of an algorithm of `RLHF`, or the rest of one that was killed.

    Args:
      name: of `RLHF`.
      source: its data.
      params: what else its task is made from.
      config: fields of its `Config`.
      out: the run folder.
      seed: of the run.
      **host: `report`, `progress` and `interrupted` of `run_experiment`.

    Returns:
      The content of its `summary.json`.

    Raises:
      InvalidInput: before anything compiles.
    """
    algorithm = RLHF[name]
    chosen = configs.from_dict(algorithm.Config, config)
    experiment = Experiment(algorithm, chosen, source, params, seed=seed)
    if not (out / "config.json").exists():
        return run_experiment(experiment, out, **host)[1]
    check_same(experiment, out)
    done = finished_summary(out)
    return resume_experiment(out, **host) if done is None else done


def check_same(experiment: Experiment, out: Path) -> None:
    """Refuse a folder that holds a run of something else.

    Raises:
      InvalidInput: it does; the message says in what they differ.
    """
    asked = ("algorithm", "env", "env_params", "seed", "config")
    wanted, found = (
        json.loads(json_text(describe(x, os.path.realpath)))
        for x in (experiment, read_experiment(out))
    )
    differ = [name for name in asked if wanted[name] != found[name]]
    require(
        not differ,
        f"out = {str(out)!r} holds a run with another {' and '.join(differ)}: give a new "
        f"folder.",
    )


# Labels.


def questions(
    source: str, base: str, sampling: Sampling, pairs: int, seed: int, **params: Any
) -> list[Question]:
    """Pairs of responses of a model to be compared.

    Args:
      source: of the prompts, as of `tasks.prompts`.
      base: the folder of the model.
      sampling: how the responses are written.
      pairs: how many. Two responses that are alike make none, so more may be written.
      seed: of the sampling.
      **params: further arguments of `tasks.prompts`.

    Raises:
      InvalidInput: something does not fit, or the model writes the same again and again.
    """
    configs.check_value("pairs", int, pairs, low=1)
    task = tasks.prompts(source, base=base, held_out=0.0, **params)
    found: list[Question] = []
    for attempt in range(MOST_ATTEMPTS):
        written = writing.sample_groups(task, sampling, 2, seed + attempt, pairs)
        found += [
            Question(one.prompt, one.texts[0], one.texts[1])
            for one in written
            if one.texts[0] != one.texts[1] and all(one.texts)
        ]
        if len(found) >= pairs:
            return found[:pairs]
    raise InvalidInput(
        f"pairs = {pairs}: {base!r} wrote {len(found)} pairs of different responses in "
        f"{MOST_ATTEMPTS} attempts; raise temperature, or ask for fewer."
    )


MOST_ATTEMPTS = 8


def make_labeler(
    name: str,
    *,
    noise: float = 0.0,
    seed: int = 0,
    template: str = labelers.JUDGE,
    verdicts: tuple[str, str] = ("1", "2"),
    report: Report = print,
) -> Labeler:
    """The labeler that a name stands for.

    Args:
      name: "terminal"; "browser"; the name of a world, for its gold reward; or the run
        folder of a reward model, or of a language model, which gives its verdict.
      noise: τ of the gold reward's labels.
      seed: of that noise.
      template: of a language model's question; see `labelers.language_model`.
      verdicts: its two responses.
      report: called with the address of the page.

    Raises:
      InvalidInput: there is no such labeler.
    """
    if name == "terminal":
        return labelers.terminal(report)
    if name == "browser":
        return labelers.browser(report=report)
    if name in testbeds.TESTBEDS:
        return labelers.gold(testbeds.TESTBEDS[name].gold, noise, seed)
    folder = Path(name)
    require(
        folder.is_dir(),
        f"labeler = {name!r}: must be terminal, browser, "
        f"{', '.join(testbeds.TESTBEDS)}, or a run folder.",
    )
    if _holds(folder, "reward"):
        return labelers.by_score(load_scorer(name), seed)
    known = language_model.load(name)
    return labelers.language_model(
        GPT(known.config), known.params, known.tokenizer, template, verdicts, seed=seed
    )


def _holds(folder: Path, kind: str) -> bool:
    if not (folder / "policy").is_dir():
        return False
    about = storage.read_manifest(folder / "policy")["about"]
    return language_model.check_about(about, folder) == kind


def load_scorer(reward: str) -> Callable[[list[tuple[str, str]]], np.ndarray]:
    """A reward model on texts: `[(prompt, response), ...] -> [N]`."""
    known = language_model.load_reward(reward)
    judge = language_model.scorer(GPT(known.config))

    def score(pairs: list[tuple[str, str]]) -> np.ndarray:
        rows = [{"prompt": p, "completion": a} for p, a in pairs]
        read = data.completions(
            rows, data.Format(known.tokenizer, known.config.max_length)
        )
        parts = (read.tokens, read.mask, read.target)
        found = [
            judge(known.params, *(jnp.asarray(x[i : i + AT_A_TIME]) for x in parts))
            for i in range(0, len(rows), AT_A_TIME)
        ]
        return np.concatenate([np.asarray(x) for x in found])

    return score


AT_A_TIME = 256
