"""The functions of the toolbox, by module, from their docstrings.

docs/api.md shows them where it says `{{ functions }}`; each module has a page of its own in
the reference of the site. `FORMULAS` and `ARRAYS` are the modules whose functions
tests/docs/test_docs.py asks for shapes and sources.
"""

import ast
import re

from tools.paths import ROOT

MODULES = {
    "estimators": "returns, errors, traces, advantages",
    "losses": "objectives",
    "optim": "optimisers, target networks, second-order steps",
    "distributions": "policies' distributions over actions",
    "exploration": "ε-greedy choices and their values",
    "normalize": "running statistics",
    "mdp": "finite problems and their exact solutions",
    "tabular.prediction": "V with tables and linear features",
    "tabular.control": "Q and policies with tables and linear features",
    "tabular.updates": "single updates of weights and traces",
    "networks.tiles": "tile coding",
    "diagnostics": "bias, variance and noise of policy gradients",
    "replay.ring": "experience replay",
    "replay.prioritised": "prioritised experience replay",
    "rlhf.losses": "losses and divergences of RLHF",
    "rlhf.estimators": "rewards, advantages and statistics of RLHF",
    "rlhf.testbeds.small_world": "texts of which all are known, and their best policy",
    "rlhf.testbeds.larger_world": "texts of a grammar, and a judge that is a program",
    "rollout": "stepping environments",
    "rlhf.models.transformer": "language models",
    "rlhf.models.generation": "text from a language model",
    "rlhf.models.tokenizers": "text to tokens",
    "rlhf.data.files": "files of rows",
    "rlhf.data.rows": "rows of text, and their tokens",
    "rlhf.data.arrays": "arrays made of rows",
    "rlhf.models.chat": "conversations as text",
    "rlhf.labels.labelers": "labelers of preference pairs",
    "rlhf.labels.page": "a local web page for human labels",
    "rlhf.models.lora": "low-rank adapters",
    "rlhf.tasks": "tasks that language models are trained on",
    "rlhf.models.language_model": "language models in folders",
    "rlhf.responses": "responses of a policy",
    "rlhf.models.huggingface": "pretrained language models",
    "rlhf.models.sharding": "language models on several devices",
    "deployment.export": "a policy as a file",
    "deployment.outputs": "the outputs of a policy",
    "deployment.serving": "a policy behind HTTP",
    "evaluation": "whole episodes of a policy, in JAX",
    "data.frozen_policy": "querying a trained policy",
    "data.dataset": "recorded episodes",
    "data.minari": "datasets of Minari",
    "statistics": "many seeds, many tasks",
    "interop.gymnasium": "our environments as Gymnasium's",
    "interop.evaluation": "trained agents in Gymnasium's environments",
    "rendering": "episodes as images",
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
    "replay.prioritised",
    "statistics",
    "rlhf.losses",
    "rlhf.estimators",
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
    "replay.ring": "init take take_from num_stored",
    "replay.prioritised": "init draws",
    "rlhf.losses": "masked_sum",
    "rlhf.estimators": "preference_accuracy last_token length",
    "rlhf.testbeds.small_world": "responses small_world gold_reward response_text "
    "table_logits make_table response_token_log_probs response_log_probs "
    "table_log_probs expected_reward sample_responses label_accuracy",
    "rlhf.models.transformer": "init_cache",
    "statistics": "row_of_seeds interval_caveat seeds_caveat iqm_in_words",
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
    return ast.parse(file.read_text(encoding="utf-8"))


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
    for module, what in MODULES.items():
        lines += [f"### `jaxrl.{module}`: {what}", "", "| function | |", "|---|---|"]
        for name, summary in functions(module).items():
            summary = summary.replace("|", "\\|")
            lines.append(f"| `{name}` | {summary} |")
        lines.append("")
    return "\n".join(lines)
