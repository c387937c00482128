"""The index of the toolbox's functions in docs/api.md, from their docstrings.

python -m tools.api            # shows it
python -m tools.api --update   # writes it to docs/api.md
"""

import argparse
import ast
import re
from pathlib import Path

from benchmarks.speed.report import fill_in

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
ROOMS = {
    "estimators": "returns, errors, traces, advantages",
    "losses": "objectives",
    "optim": "optimisers, target networks, second-order steps",
    "distributions": "policies' distributions over actions",
    "exploration": "trying something else",
    "normalize": "running statistics",
    "mdp": "finite problems and their exact solutions",
    "tabular.prediction": "V with tables and linear features",
    "tabular.control": "Q and policies with tables and linear features",
    "tabular.updates": "one step of them",
    "networks.tiles": "tile coding",
    "diagnostics": "what can go wrong with a policy gradient",
    "replay.ring": "experience replay",
    "rlhf.objectives": "objectives and estimators of RLHF",
    "rlhf.testbeds.small_world": "texts of which all are known, and their best policy",
    "rlhf.testbeds.larger_world": "texts of a grammar, and a judge that is a program",
    "rollout": "stepping environments",
    "rlhf.models.transformer": "language models",
    "rlhf.models.generation": "text from a language model",
    "rlhf.models.tokenizers": "text to tokens",
    "rlhf.data": "rows of text, and arrays made of them",
    "rlhf.models.chat": "conversations as text",
    "rlhf.labels.labelers": "who says which of two answers is better",
    "rlhf.labels.page": "a page that asks a person",
    "rlhf.models.lora": "low-rank adapters",
    "rlhf.tasks": "what a language model is trained on",
    "rlhf.models.language_model": "language models in folders",
    "rlhf.answers": "answers of a policy",
    "rlhf.models.huggingface": "pretrained language models",
    "rlhf.models.sharding": "language models on several devices",
    "deployment.export": "a policy as a file",
    "deployment.outputs": "the outputs of a policy",
    "deployment.serving": "a policy behind HTTP",
    "evaluation": "how good a policy is",
    "data.frozen_policy": "asking a trained policy",
    "data.dataset": "recorded episodes",
    "data.minari": "datasets of Minari",
    "statistics": "many seeds, many tasks",
    "interop.gymnasium": "our environments as Gymnasium's",
    "interop.evaluation": "trained agents in Gymnasium's environments",
    "rendering": "an agent at play, in pictures",
}
"""Module -> what it holds."""

FORMULAS = (
    "estimators",
    "losses",
    "optim",
    "distributions",
    "exploration",
    "normalize",
    "mdp",
    "tabular.prediction",
    "tabular.control",
    "tabular.updates",
    "networks.tiles",
    "diagnostics",
    "replay.ring",
    "statistics",
    "rlhf.objectives",
    "rlhf.testbeds.small_world",
    "rlhf.models.transformer",
    "rlhf.models.generation",
    "rlhf.models.lora",
)
"""Modules of which every public function says its shapes and its source."""

ARRAYS = ("rollout", "evaluation", "data.frozen_policy")
"""Modules of which every public function says its shapes."""

WITHOUT_SOURCE = {
    "diagnostics": "gradient_samples gradient_noise",
    "estimators": "first_episode_mask action_value",
    "exploration": "epsilon_noise",
    "losses": "masked_mean",
    "normalize": "init init_reward",
    "optim": "flat apply gradient_step fit annealed progress",
    "replay.ring": "init take num_stored",
    "rlhf.objectives": "masked_sum preference_accuracy last_token length",
    "rlhf.testbeds.small_world": "answers small_world gold_reward text_of table_logits "
    "table_of token_log_probs_of_answers log_prob_of_answers log_prob_of_table "
    "expected_reward sample_answers label_accuracy",
    "rlhf.models.transformer": "init_cache",
    "statistics": "row_of_seeds",
}
"""Plumbing among them: making, indexing, reshaping, counting has no source by nature."""

SHAPE = re.compile(
    r"\[[A-Z0-9*.a-z_, ()+/^|-]*\]|`\(\)`|\b(scalars?|numbers?|pytree|structured as)\b"
)
"""An array's axes in brackets, or a word for what has none or any."""
SOURCE = re.compile(r"\bSource: \S|\(\d{4}\)")


def tree(module: str) -> ast.Module:
    path = ROOT / "jaxrl" / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text())


def docstrings(module: str) -> dict[str, str]:
    """The public functions of a module, with their docstrings."""
    return {
        node.name: ast.get_docstring(node) or ""
        for node in tree(module).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def functions(module: str) -> dict[str, str]:
    """The public functions of a module, with the first line of their docstrings."""
    found = docstrings(module)
    return {n: said.split("\n\n")[0].replace("\n", " ") for n, said in found.items()}


def without_shapes(module: str) -> list[str]:
    return [n for n, said in docstrings(module).items() if not SHAPE.search(said)]


def without_source(module: str) -> list[str]:
    """Those that name no paper or book, where the module does not name one for all."""
    head = ast.get_docstring(tree(module)) or ""
    if re.search(r"\bSource( of\s+all equations)?:", head):
        return []
    return [n for n, said in docstrings(module).items() if not SOURCE.search(said)]


def index() -> str:
    lines = []
    for module, what in ROOMS.items():
        lines += [f"### `jaxrl.{module}`: {what}", "", "| function | |", "|---|---|"]
        for name, summary in functions(module).items():
            summary = summary.replace("|", "\\|")
            lines.append(f"| `{name}` | {summary} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--update", action="store_true", help=f"write {PAGE.name}")
    if parser.parse_args().update:
        fill_in(PAGE, "functions", index())
    else:
        print(index())


if __name__ == "__main__":
    main()
