"""Model card of an exported policy: known facts, and nothing else."""

import json
from pathlib import Path
from typing import Any

import jax

from jaxrl import spaces, statistics
from jaxrl.core import config as configs
from jaxrl.core import storage
from jaxrl.runs.artifact import Agents
from jaxrl.runs.experiment import RunSummary, commit, read_summary, versions
from jaxrl.runs.policy import Policy


def describe(
    run: Path | str,
    agents: Agents,
    k: int,
    policy: Policy,
    format: str,
    agreement: dict[str, Any],
    licence: str | None = None,
) -> dict[str, Any]:
    """Collect the facts of the card, as JSON.

    Args:
      run: the run folder.
      agents: agents of the run.
      k: index of the exported one.
      policy: the exported policy.
      format: format of the file.
      agreement: comparison of file and policy (`export.Agreement`).
      licence: licence of the weights, if known.
    """
    files = storage.read_manifest(Path(run) / "policy")["files"]
    place = agents.members[k] if agents.members else k
    # An interrupted run may have none.
    summary = read_summary(Path(run), RunSummary) or {}
    returns = summary.get("evaluation_by_member") or []
    memory = policy.init_memory()
    return {
        "algorithm": agents.algorithm.name,
        "env": agents.env.id,
        "env_params": agents.env_params,
        "config": configs.to_dict(policy.config),
        "overrides": dict(agents.overrides[k]) if agents.overrides else {},
        "agent": place,
        "seed": agents.seeds[k],
        "seeds": list(agents.seeds),
        "observation_space": spaces.describe(policy.env.observation_space),
        "action_space": spaces.describe(policy.env.action_space),
        "memory": [list(x.shape) for x in jax.tree.leaves(memory)],
        "format": format,
        "agreement": agreement,
        "env_steps": summary.get("env_steps"),
        "finished": summary.get("finished"),
        "return": returns[place] if place < len(returns) else None,
        "evaluation": summary.get("evaluation"),
        "trained_with": summary.get("versions"),
        "exported_with": versions(),
        "commit": commit(),
        "weights_sha256": files[storage.ARRAYS]["sha256"],
        "licence": licence,
    }


def to_markdown(about: dict[str, Any]) -> str:
    """Format the card as Markdown, with the header that the Hugging Face hub reads."""
    parts = [
        _header(about),
        f"# {about['algorithm']} on {about['env']}\n",
        f"A policy trained with jaxrl and exported as {_WORDS[about['format']]}. It maps "
        f"observations to greedy actions; weights and running statistics are constants of "
        f"the file, and the batch may be of any size.\n",
        "## Use\n",
        _usage(about),
        "## Facts\n",
        _facts(about),
        "## Evaluation\n",
        _evaluation(about),
        "## Config\n",
        f"```json\n{json.dumps(about['config'], indent=1)}\n```\n",
    ]
    return "\n".join(parts)


_WORDS = {"stablehlo": "StableHLO (`jax.export`)", "onnx": "ONNX"}


def _header(about: dict[str, Any]) -> str:
    lines = ["---", "library_name: jaxrl", "tags:", "- reinforcement-learning"]
    lines += [f"- {json.dumps(about[name])}" for name in ("algorithm", "env", "format")]
    if about["licence"]:
        lines.append(f"license: {json.dumps(about['licence'])}")
    return "\n".join([*lines, "---\n"])


def _usage(about: dict[str, Any]) -> str:
    """Write a program that loads the file and computes two actions."""
    obs, feed = _example("obs", about["observation_space"])
    lines = ["import numpy as np", ""]
    names = ["obs"]
    if about["memory"]:
        (shape,) = about["memory"]
        names.append("memory")
        feed |= {"memory": "memory"}
        obs += f"\nmemory = np.zeros((2, {_shape(shape)}), np.float32)  # at the start"
    name = Path(about["file"]).name
    if about["format"] == "onnx":
        lines[0] += "\nimport onnxruntime"
        inputs = ", ".join(f"{json.dumps(n)}: {value}" for n, value in feed.items())
        lines += [
            obs,
            f"session = onnxruntime.InferenceSession({json.dumps(name)})",
            "names = [x.name for x in session.get_outputs()]",
            f"outputs = dict(zip(names, session.run(None, {{{inputs}}})))",
        ]
    else:
        lines[0] += "\nfrom jax import export"
        lines += [
            obs,
            f"with open({json.dumps(name)}, 'rb') as file:",
            "    policy = export.deserialize(bytearray(file.read()))",
            f"outputs = policy.call({', '.join(names)})",
        ]
    lines.append('print(outputs["action"])')
    note = ""
    if about["memory"]:
        note = "Pass `next_memory` with the next observation of the same episode.\n"
    return "```python\n" + "\n".join(lines) + f"\n```\n\n{note}"


def _example(name: str, space: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Write a line that makes two observations; return it and input name -> expression."""

    def zeros(space: dict[str, Any]) -> str:
        ((kind, fields),) = space.items()
        if kind == "Dict":
            inner = (f"{json.dumps(n)}: {zeros(child)}" for n, child in fields.items())
            return "{" + ", ".join(inner) + "}"
        shape = _shape(fields.get("shape", []))
        return f"np.zeros((2, {shape}), {json.dumps(fields['dtype'])})"

    def inputs(path: str, value: str, space: dict[str, Any]) -> dict[str, str]:
        ((kind, fields),) = space.items()
        if kind != "Dict":
            return {path: value}
        named: dict[str, str] = {}
        for n, child in fields.items():
            named |= inputs(f"{path}.{n}", f"{value}[{json.dumps(n)}]", child)
        return named

    return f"{name} = {zeros(space)}", inputs(name, name, space)


def _shape(shape: list[int]) -> str:
    return ", ".join(map(str, shape))


def _facts(about: dict[str, Any]) -> str:
    agreement = about["agreement"]
    rows = {
        "algorithm": about["algorithm"],
        "environment": about["env"],
        "parameters of the environment": about["env_params"] or "the defaults",
        "hyper-parameters of this agent alone": about["overrides"] or None,
        "agent of the run": about["agent"],
        "seed of this agent": about["seed"],
        "seeds of the run": about["seeds"],
        "environment steps": about["env_steps"],
        "training reached its end": about["finished"],
        "observation": about["observation_space"],
        "action": about["action_space"],
        "agrees with the policy": f"within 1e-5 on {agreement['within']} of "
        f"{agreement['observations']} observations, largest difference "
        f"{agreement['largest']:.2g}",
        "trained with": about["trained_with"],
        "exported with": about["exported_with"],
        "commit of jaxrl at the export": about["commit"] or None,
        "SHA-256 of the trained arrays": about["weights_sha256"],
        "licence of the weights": about["licence"] or "not stated",
    }
    lines = ["| | |", "|---|---|"]
    lines += [f"| {n} | {_cell(x)} |" for n, x in rows.items() if x is not None]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    shown = value if isinstance(value, str) else json.dumps(value)
    return shown.replace("|", "\\|")


def _evaluation(about: dict[str, Any]) -> str:
    evaluation = about["evaluation"]
    if not evaluation:
        return "The run folder holds no evaluation.\n"
    low, high = evaluation["episode_return_ci95"]
    num_seeds = len(evaluation["seeds"])
    over = f"the {num_seeds} seeds' means" if num_seeds > 1 else "the episodes"
    narrow = statistics.interval_caveat(num_seeds) * (num_seeds > 1)
    alone = ""
    if about["return"] is not None:
        alone = (
            f"This agent: mean return {about['return']:.2f} over {evaluation['episodes']} "
            f"greedy episodes at the end of training. "
        )
    return (
        f"{alone}All agents of the run: IQM {evaluation['episode_return_iqm']:.2f}, 95 % "
        f"bootstrap interval [{low:.2f}, {high:.2f}] over {over}{narrow}. "
        f"Undiscounted, played in jaxrl's environment.\n"
    )
