"""The iterated loop: sample, label, fit, optimise, and again (Christiano et al., 2017,
https://arxiv.org/abs/1706.03741; Ziegler et al., 2019, section 2.3).

LOOP/loop.json                what was asked
LOOP/round-1/pairs.jsonl      responses of the policy so far, labelled
LOOP/round-1/all.jsonl        those of the rounds before too: what is fitted
LOOP/round-1/reward/          a reward model, begun anew from the first base
LOOP/round-1/policy/          the policy, and the reference of the next round
LOOP/round-2/...

Responses are drawn from the policy of the round, so the reward model is corrected where the
policy is now. A loop that was killed resumes where it stopped.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxrl.core import config as configs
from jaxrl.core import files, run_folders, storage
from jaxrl.errors import InvalidInput, require
from jaxrl.pipelines.rlhf import stages
from jaxrl.pipelines.rlhf.writing import Sampling
from jaxrl.rlhf import data, responses, tasks
from jaxrl.rlhf.labels import labelers
from jaxrl.rlhf.labels.labelers import Labeler
from jaxrl.rlhf.registry import RLHF
from jaxrl.runs.experiment import read_rows
from jaxrl.training.loop import prepare


@dataclass(frozen=True)
class Loop:
    """Parameters of a loop."""

    source: str  # of the prompts, as of `tasks.prompts`
    base: str  # the folder of the model to start from
    rounds: int = 3
    pairs: int = 500  # labelled in each round
    algorithm: str = "ppo"  # of `RLHF`, one that writes responses
    max_length: int = 128  # tokens of prompt and response
    sampling: Sampling = field(default_factory=Sampling)  # of what is compared
    reward: dict[str, Any] = field(default_factory=dict)
    """Fields of the reward model's config."""
    policy: dict[str, Any] = field(default_factory=dict)
    """Fields of the algorithm's config."""
    prompts: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `tasks.prompts`."""
    seed: int = 0


OPTIMISERS = ("ppo", "rloo", "grpo")


def run(
    loop: Loop,
    labeler: Labeler,
    out: Path,
    named: Any = "",
    **host: Any,
) -> list[dict[str, Any]]:
    """Run the rounds that are not done yet.

    Args:
      loop: what is asked.
      labeler: who compares the responses.
      out: the loop's folder.
      named: what the labeler is called, as JSON; a loop resumes with the same one only.
      **host: as of `stages.train`.

    Returns:
      For each round `{"round", "base", "policy", "reward_accuracy", "score"}`: its
      folders, the reward model's accuracy on pairs kept back, and what that model thinks
      of the new policy's responses; and the last that was logged of `LOGGED`.

    Raises:
      InvalidInput: something does not fit; the folder holds another loop.
    """
    check(loop)
    begin(out, asdict(loop) | {"labeler": named})
    base, before, found = loop.base, list[data.Row](), []
    for number in range(1, loop.rounds + 1):
        folder = out / f"round-{number}"
        folder.mkdir(exist_ok=True)
        host.get("report", print)(f"round {number} of {loop.rounds}")
        rows = _label_round(loop, labeler, base, folder, number, **host)
        before = [*before, *rows]
        summaries = _train_round(loop, base, before, folder, number, **host)
        done = {"round": number, "base": base, "policy": str(folder / "policy")}
        scores = [s["evaluation"]["episode_return_mean"] for s in summaries]
        found.append(
            done
            | dict(zip(("reward_accuracy", "score"), scores, strict=True))
            | _read_logged(folder / "policy")
        )
        base = str(folder / "policy")
    storage.write_text(out / "rounds.json", json.dumps(found, indent=1) + "\n")
    return found


LOGGED = {
    "kl": "policy/kl",
    "entropy": "policy/entropy",
    "length": "rollout/episode_length",
    "distinct_1": "text/distinct_1",
    "distinct_2": "text/distinct_2",
}
"""Of the last responses of each round, by their names in `metrics.jsonl`; `kl` is that from
the policy of the round before."""


def _read_logged(run: Path) -> dict[str, float]:
    last = read_rows(run)[-1]
    return {name: last[full][0] for name, full in LOGGED.items() if full in last}


def check(loop: Loop) -> None:
    """Refuse what could only be found wrong after the first labels.

    Raises:
      InvalidInput: something does not fit.
    """
    configs.check_value("rounds", int, loop.rounds, low=1)
    configs.check_value("pairs", int, loop.pairs, low=2)
    require(
        loop.algorithm in OPTIMISERS,
        f"algorithm = {loop.algorithm!r}: must be one of {', '.join(OPTIMISERS)}.",
    )
    task = tasks.prompts(loop.source, base=loop.base, held_out=0.0, **loop.prompts)
    responses.check(loop.sampling, task)
    tasks.check_length(task.model.config, loop.max_length)
    needed = task.teacher.rows.tokens.shape[1] + loop.sampling.max_new_tokens + 1
    require(
        needed <= loop.max_length,
        f"max_length = {loop.max_length}: a prompt, a response and EOS may have {needed} "
        f"tokens; give at least that.",
    )
    judged: Any = task.replace(judge=responses.judge)  # there will be one
    for name, values in (("reward", loop.reward), (loop.algorithm, loop.policy)):
        algorithm = RLHF[name]
        prepare(algorithm, configs.from_dict(algorithm.Config, values), judged)


def begin(out: Path, asked: dict[str, Any], name: str = "loop.json") -> None:
    """Make the folder, or find that it was begun with the very same.

    Raises:
      InvalidInput: it holds something else.
    """
    asked = _with_places(asked, out)
    path, text = out / name, json.dumps(asked, indent=1, sort_keys=True) + "\n"
    if not path.exists():
        run_folders.new(out, name)
        storage.write_text(path, text)
    elif files.read_text(path) != text:
        raise InvalidInput(
            f"out = {str(out)!r} was begun with something else: give a new folder, or "
            f"what its {name} says."
        )
    run_folders.refuse_links(out)


PLACES = ("source", "data", "base", "labeler")
"""What may be the path of a file or a folder, among what is asked."""


def _with_places(asked: dict[str, Any], out: Path) -> dict[str, Any]:
    """What is asked, with its paths relative to the folder."""
    found = dict(asked)
    for name in found.keys() & set(PLACES):
        value = found[name]
        if isinstance(value, dict):
            found[name] = _with_places(value, out)
        elif isinstance(value, str) and os.path.exists(value):
            found[name] = files.relative(out, os.path.relpath(value))
    return found


def _label_round(
    loop: Loop, labeler: Labeler, base: str, folder: Path, number: int, **host: Any
) -> list[data.Row]:
    """The labelled pairs of one round."""
    report: Callable[[str], None] = host.get("report", print)
    path = folder / "pairs.jsonl"
    seed = loop.seed + 1_000 * number
    asked = stages.questions(
        loop.source, base, loop.sampling, loop.pairs, seed, **loop.prompts
    )
    labels = labelers.label(asked, labeler, path, report, seed)
    require(
        len(labels) == len(asked),
        f"{path}: {len(labels)} of {len(asked)} are labelled; give the same command "
        f"again to go on.",
    )
    return data.read(path)


def _train_round(
    loop: Loop,
    base: str,
    rows: list[data.Row],
    folder: Path,
    number: int,
    **host: Any,
) -> list[dict[str, Any]]:
    """Reward model and policy of one round: their summaries."""
    everything = str(folder / "all.jsonl")
    if not Path(everything).exists():
        data.write_rows(everything, rows)
    fitted = {"base": loop.base, "max_length": loop.max_length}
    parts = ("reward", everything, fitted, loop.reward, folder / "reward")
    seed = loop.seed + number
    reward = stages.train(*parts, seed=seed, **host)
    judged = {"base": base, "reward": str(folder / "reward"), **loop.prompts}
    optimised = (loop.algorithm, loop.source, judged, loop.policy, folder / "policy")
    return [reward, stages.train(*optimised, seed=seed, **host)]
