"""Protocol between the benchmark and a peer: JSON lines over standard input and output.

A peer has its own virtual environment, so its pins do not affect ours. Its worker is a
script run by that environment's Python. For each line on standard input it writes one line
on standard output; all other output goes to standard error.

    {"do": "prepare", "case": CASE}
        Builds and compiles. Answers `compile_seconds`, `versions` and `note`: differences
        from the requested configuration, in one sentence, or "".
    {"do": "run", "seed": 0, "env_steps": 500000}
        Trains afresh, in whole updates. Answers `seconds`, without compiling and without
        evaluation, and `env_steps`, those done, summed over seeds.
    {"do": "learn", "seeds": [0, 1], "env_steps": 500000, "episodes": 32}
        Trains each seed. Answers `returns`, for each seed the mean undiscounted return of
        whole episodes of the final policy, acting greedily, and `env_steps`, those done
        by each seed.
    {"do": "quit"}
        Ends the worker, as the end of the input does.

A failed request is answered by {"error": "one line"}, and the worker keeps running.

CASE holds `name`, `algorithm` ("ppo", "dqn", "sac" or "td3"), `env` (gymnax's id),
`num_seeds` (agents trained together), `env_steps` (of each agent, in one run) and
`config`, with the field names of jaxrl. Schedules always span `config["total_steps"]`,
however short a run is.

This module needs the standard library only.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any]


def serve(handlers: dict[str, Callable[..., Answer]]) -> None:
    """Answer requests until "quit"; each handler takes the request's fields by name."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints, from Python or from C, is not an answer
    sys.stdout = sys.stderr
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            request = json.loads(line)
            if request["do"] == "quit":
                break
            answer = handlers[request.pop("do")](**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": one_line(error)}
        print(json.dumps(answer), file=answers, flush=True)


def one_line(error: Exception) -> str:
    """The error's type, and its message with white space collapsed."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def updates_for(config: dict[str, Any]) -> tuple[int, int]:
    """How many vector steps, and gradient steps after them, learning from replay takes.

    jaxrl counts `train_frequency` over all environments; the peers count vector steps.
    """
    num_envs, frequency = config["num_envs"], config["train_frequency"]
    if frequency % num_envs == 0:
        return frequency // num_envs, config["num_updates"]
    if num_envs % frequency == 0:
        return 1, config["num_updates"] * num_envs // frequency
    raise ValueError(
        f"train_frequency = {frequency} neither divides num_envs = {num_envs} nor is a "
        f"multiple of it."
    )
