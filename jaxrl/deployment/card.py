"""The model card of an exported policy: what is known of it, and nothing else."""

import json
from pathlib import Path
from typing import Any

import jax

from jaxrl import spaces
from jaxrl.core import config as configs
from jaxrl.core import storage
from jaxrl.runs.artifact import Agents
from jaxrl.runs.experiment import commit, versions
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
    """What the card says, as JSON.

    Args:
      run: the run folder.
      agents: of it.
      k: which of them it is.
      policy: the same, ready to act.
      format: of the file.
      agreement: how the file compares with the policy (`export.Agreement`).
      licence: of the weights, if it is known.
    """
    files = storage.read_manifest(Path(run) / "policy")["files"]
    members = agents.members or range(len(agents.seeds))
    summary = _read(Path(run) / "summary.json")
    by_member = summary.get("evaluation_by_member") or []
    members_return = by_member[members[k]] if members[k] < len(by_member) else None
    memory = policy.init_memory()
    return {
        "algorithm": agents.algorithm.name,
        "env": agents.env.id,
        "env_params": agents.env_params,
        "config": configs.to_dict(policy.config),
        "overrides": dict(agents.overrides[k]) if agents.overrides else {},
        "seed": agents.seeds[k],
        "seeds": list(agents.seeds),
        "observation_space": spaces.describe(policy.env.observation_space),
        "action_space": spaces.describe(policy.env.action_space),
        "memory": [list(x.shape) for x in jax.tree.leaves(memory)],
        "format": format,
        "agreement": agreement,
        "env_steps": summary.get("env_steps"),
        "finished": summary.get("finished"),
        "return": members_return,
        "evaluation": summary.get("evaluation"),
        "trained_with": summary.get("versions"),
        "exported_with": versions(),
        "commit": commit(),
        "weights_sha256": files[storage.ARRAYS]["sha256"],
        "licence": licence,
    }


def text(about: dict[str, Any]) -> str:
    """The card in Markdown, with the header that the Hugging Face hub reads."""
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
    """A program that loads the file and asks it for two actions."""
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
        given = ", ".join(f"{json.dumps(n)}: {value}" for n, value in feed.items())
        lines += [
            obs,
            f"session = onnxruntime.InferenceSession({json.dumps(name)})",
            "outputs = [x.name for x in session.get_outputs()]",
            f"answer = dict(zip(outputs, session.run(None, {{{given}}})))",
        ]
    else:
        lines[0] += "\nfrom jax import export"
        lines += [
            obs,
            f"with open({json.dumps(name)}, 'rb') as file:",
            "    policy = export.deserialize(bytearray(file.read()))",
            f"answer = policy.call({', '.join(names)})",
        ]
    lines.append('print(answer["action"])')
    more = ""
    if about["memory"]:
        more = "Give `next_memory` with the next observation of the same episode.\n"
    return "```python\n" + "\n".join(lines) + f"\n```\n\n{more}"


def _example(name: str, space: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """A program's line that makes two observations, and what each input is called."""

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
        found: dict[str, str] = {}
        for n, child in fields.items():
            found |= inputs(f"{path}.{n}", f"{value}[{json.dumps(n)}]", child)
        return found

    return f"{name} = {zeros(space)}", inputs(name, name, space)


def _shape(shape: list[int]) -> str:
    return ", ".join(map(str, shape))


def _facts(about: dict[str, Any]) -> str:
    agreement = about["agreement"]
    rows = {
        "algorithm": about["algorithm"],
        "environment": about["env"],
        "environment's parameters": about["env_params"] or "as they are by default",
        "this agent's own values": about["overrides"] or None,
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
    found = about["evaluation"]
    if not found:
        return "The run folder holds no evaluation.\n"
    low, high = found["episode_return_ci95"]
    num_seeds = len(found["seeds"])
    over = f"the {num_seeds} seeds' means" if num_seeds > 1 else "the episodes"
    own = ""
    if about["return"] is not None:
        own = (
            f"This agent: mean return {about['return']:.2f} over {found['episodes']} "
            f"greedy episodes at the end of training. "
        )
    return (
        f"{own}All agents of the run: IQM {found['episode_return_iqm']:.2f}, 95 % "
        f"bootstrap interval [{low:.2f}, {high:.2f}] over {over}. Undiscounted, played in "
        f"jaxrl's environment.\n"
    )


def _read(path: Path) -> dict[str, Any]:
    """A run that was interrupted early has no summary, which is no error here."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
