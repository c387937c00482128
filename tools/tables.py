"""Tables of the pages, made from the code and the result files when the site is built.

A page says `{{ config(ppo) }}` where a table belongs. What is made from code: `algorithms`,
`config`, `metrics`, `flags`, `task`, `environments`, `functions`, `layers`, `modules`;
what is made from `benchmarks/results/`: `results(SCRIPT)` or `results(SCRIPT, PART)`, by
the functions `table`, `tables` or `TABLES` of `benchmarks/SCRIPT.py`.

The meaning of a metric is written once, in docs/metrics.md. The algorithms that log it are
found by tracing their train steps, which computes nothing.
"""

import dataclasses
import functools
import importlib
import json
import re
import typing
from collections.abc import Iterable
from typing import Any

from benchmarks import captions
from tools import api, layers
from tools.paths import ROOT

PLACEHOLDER = re.compile(r"^\{\{ (\w+)(?:\(([^()]*)\))? \}\}$", re.M)
DOCS = ROOT / "docs"
GLOSSARY = DOCS / "metrics.md"
RESULTS = ROOT / "benchmarks" / "results"


def render(markdown: str) -> str:
    """The page with its placeholders replaced.

    Raises:
      KeyError: no table has such a name.
    """

    def table(match: re.Match) -> str:
        words = [word.strip() for word in (match[2] or "").split(",") if word.strip()]
        return TABLES[match[1]](*words).rstrip("\n")

    return PLACEHOLDER.sub(table, markdown)


def rows_to_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; `|` in a cell is escaped."""
    columns = list(columns)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = (re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# --- Configs


def config_class(name: str) -> Any:
    """The Config of an algorithm, `rlhf-NAME` included; `model` is that of transformers."""
    from jaxrl.algorithms import ALGORITHMS
    from jaxrl.rlhf.models.transformer import ModelConfig
    from jaxrl.rlhf.registry import RLHF

    if name == "model":
        return ModelConfig
    known = ALGORITHMS | {f"rlhf-{short}": x for short, x in RLHF.items()}
    return known[name].Config


def config(name: str) -> str:
    """Fields of a Config, their defaults and docstrings; `rlhf`: those of all stages."""
    if name == "rlhf":
        return config_of_rlhf()
    docs, found = field_docs(config_class(name)), defaults(config_class(name))
    rows = ((f"`{n}`", code(found[n]), docs[n]) for n in docs)
    return rows_to_table(("field", "default", "meaning"), rows)


def config_of_rlhf() -> str:
    """One column for each stage, but `pretrain`, which has the Config of `sft`."""
    from jaxrl.rlhf.registry import RLHF

    classes = {n: a.Config for n, a in RLHF.items() if n != "pretrain"}
    docs: dict[str, str] = {}
    for kind in classes.values():
        docs = field_docs(kind) | docs
    found = {n: defaults(kind) for n, kind in classes.items()}
    rows = (
        [
            f"`{field}`",
            *(code(found[n].get(field, "")) for n in classes),
            said,
        ]
        for field, said in docs.items()
    )
    return rows_to_table(("field", *classes, "meaning"), rows)


def field_docs(config_type: Any) -> dict[str, str]:
    """Field -> its docstring, with the choices that its type allows."""
    from jaxrl.core import config

    types, docs = config.field_types(config_type), config.field_docs(config_type)
    return {name: sentence(said) + choices(types[name]) for name, said in docs.items()}


def choices(kind: Any) -> str:
    """The values of a `Literal`, in words."""
    if typing.get_origin(kind) is not typing.Literal:
        return ""
    return f": {', '.join(code(text_of(value)) for value in typing.get_args(kind))}"


def defaults(config_type: Any) -> dict[str, str]:
    """Field -> its default as text; nothing where it has none."""
    values = {}
    for field in dataclasses.fields(config_type):
        has_one = field.default is not dataclasses.MISSING
        values[field.name] = text_of(field.default) if has_one else ""
    return values


def text_of(value: Any) -> str:
    """A value as a flag takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def sentence(text: str) -> str:
    """Without the full stop at its end, as a cell has it."""
    return text if text.endswith("...") else text.removesuffix(".")


# --- Algorithms


def algorithms() -> str:
    """Families, names and pages of the built-in algorithms."""
    from jaxrl.algorithms import FAMILIES

    rows = (
        (family, f"`{x.name}`", f"[{title(page_of(x))}]({page_of(x)})")
        for family, members in FAMILIES.items()
        for x in members
    )
    return rows_to_table(("family", "name", "page"), rows)


def page_of(algorithm: Any) -> str:
    """The page of docs/ with the name of an algorithm, or that of its Config's module."""
    own = f"{algorithm.name}.md"
    module = algorithm.Config.__module__.rpartition(".")[2]
    return own if (DOCS / own).exists() else f"{module}.md"


def title(page: str) -> str:
    """The heading of a page of docs/."""
    return (
        (DOCS / page).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    )


# --- Metrics


@functools.cache
def glossary() -> dict[str, tuple[str, ...]]:
    """Metric -> meaning, unit, what to look for, as docs/metrics.md has them."""
    found = re.findall(
        r"^\| `(\w+/\w+)` \|(.*)\|$", GLOSSARY.read_text(encoding="utf-8"), re.M
    )
    rows = ((name, re.split(r"(?<!\\)\|", cells)) for name, cells in found)
    return {name: tuple(cell.strip() for cell in cells) for name, cells in rows}


@functools.cache
def logged() -> dict[str, tuple[str, ...]]:
    """Algorithm, `rlhf NAME` included -> names of the metrics of its train step."""
    import jax

    from jaxrl.algorithms import ALGORITHMS
    from jaxrl.rlhf.registry import RLHF
    from tests.support import metrics

    found = {name: metrics.of_algorithm(a) for name, a in ALGORITHMS.items()}
    found |= {f"rlhf {name}": metrics.of_stage(name, a) for name, a in RLHF.items()}
    jax.clear_caches()
    return found


def metrics(name: str) -> str:
    """What an algorithm logs; `rlhf`: what its stages do, and which of them."""
    columns = ("meaning", "unit", "what to look for")
    if name != "rlhf":
        rows = ((f"`{x}`", *glossary()[x]) for x in ordered(logged()[name]))
        return rows_to_table(("metric", *columns), rows)
    stages = {n.removeprefix("rlhf "): x for n, x in logged().items() if " " in n}
    rows = (
        (f"`{x}`", " ".join(n for n in stages if x in stages[n]), *glossary()[x])
        for x in ordered(x for found in stages.values() for x in found)
    )
    return rows_to_table(("metric", "logged by", *columns), rows)


def ordered(names: Iterable[str]) -> list[str]:
    """Metrics in the order of the glossary, each once.

    Raises:
      KeyError: one of them is not in the glossary.
    """
    place = {name: i for i, name in enumerate(glossary())}
    return sorted(set(names), key=place.__getitem__)


def with_loggers(markdown: str) -> str:
    """The glossary with one more column: the algorithms that log each metric."""
    lines = []
    for line in markdown.split("\n"):
        name = re.match(r"\| `(\w+/\w+)` \|", line)
        if name:
            line += f" {loggers(name[1])} |"
        elif line == "| metric | meaning | unit | what to look for |":
            line += " logged by |"
        elif lines and lines[-1].endswith(" logged by |"):
            line += "---|"
        lines.append(line)
    return "\n".join(lines)


def loggers(metric: str) -> str:
    """The algorithms that log a metric, in words."""
    words = []
    for everyone, is_stage in (("all", False), ("all of `rlhf`", True)):
        group = [name for name in logged() if (" " in name) is is_stage]
        found = [f"`{name}`" for name in group if metric in logged()[name]]
        words += [everyone] if len(found) == len(group) else found
    return ", ".join(words)


# --- The command line


def command(*names: str) -> Any:
    """A click command by its path: `command("train", "ppo")`."""
    import click

    from jaxrl.cli import program

    found: Any = program
    for name in names:
        found = found.get_command(click.Context(found), name)
    return found


def options(*names: str) -> dict[str, tuple[str, str, str]]:
    """Name of a parameter -> its flag, help and default."""
    import click

    found = command(*names)
    context = click.Context(found)
    rows = {}
    for parameter in found.params:
        record = parameter.get_help_record(context)
        if not isinstance(parameter, click.Option) or record is None:
            continue
        flag, said = record
        said = " ".join(said.split())
        default = re.search(r" *\[(?:default: )?([^\[\]]*)\]$", said)
        said = said[: default.start()] if default else said
        text = default[1] if default else default_of(parameter)
        rows[parameter.name] = (code(flag), sentence(said), text)
    return rows


def default_of(parameter: Any) -> str:
    """A default that the help does not say."""
    value = parameter.default
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return text_of(value) if is_plain else ""


FLAGS = ("flag", "meaning", "default")


def flags(*names: str) -> str:
    """The flags of a command: of `train` but the fields of a Config, of `sweep` but those
    of `train`, of `rlhf` those that say what a stage is trained on."""
    found = {("train",): train_flags, ("sweep",): sweep_flags, ("rlhf",): task_flags}
    rows = found.get(names, lambda: options(*names).values())()
    return rows_to_table(FLAGS, rows)


def train_flags() -> list[tuple[str, str, str]]:
    """Those of every algorithm, then those of some with their names."""
    from jaxrl.algorithms import ALGORITHMS

    each = {}
    for name, algorithm in ALGORITHMS.items():
        fields = {field.name for field in dataclasses.fields(algorithm.Config)}
        found = options("train", name).items()
        each[name] = {row for n, row in found if n not in fields}, list(found)
    rows = dict.fromkeys(row for _, found in each.values() for _, row in found)
    kept = []
    for row in rows:
        having = [name for name, (own, _) in each.items() if row in own]
        if having and len(having) < len(each):
            row = (
                row[0],
                f"{row[1]} ({', '.join(code(x) for x in having)} only)",
                row[2],
            )
        kept += [row] if having else []
    return kept


def sweep_flags() -> list[tuple[str, str, str]]:
    known = options("train", "ppo")
    return [row for name, row in options("sweep", "ppo").items() if name not in known]


def task_flags() -> list[tuple[str, str, str]]:
    """What the stages of RLHF are trained on, with the stages that take a flag."""
    from jaxrl.rlhf.registry import RLHF

    known = {flag for flag, _, _ in options("train", "ppo").values()}
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name, stage in RLHF.items():
        fields = {field.name for field in dataclasses.fields(stage.Config)}
        for parameter, row in options("rlhf", name).items():
            if parameter not in fields and row[0] not in known:
                rows.setdefault(row, []).append(code(name))
    places = {flag: i for i, (flag, _, _) in reversed(list(enumerate(rows)))}
    made = []
    for row in sorted(rows, key=lambda row: places[row[0]]):
        of = "" if len(rows[row]) == len(RLHF) else f" ({', '.join(rows[row])})"
        made.append((row[0], row[1] + of, row[2]))
    return made


# --- Environments and results


def environments(suite: str) -> str:
    """The ids of a suite, with spaces and time limit: `gymnax`."""
    from jaxrl.envs import make
    from jaxrl.envs.gymnax import GYMNAX_IDS

    ids = {"gymnax": GYMNAX_IDS}[suite]
    rows = []
    for env_id in ids:
        env = make(env_id)
        spaces = space(env.action_space), space(env.observation_space)
        limit = "none" if env.horizon is None else str(env.horizon)
        rows.append((f"`{env_id}`", *spaces, limit))
    return rows_to_table(("id", "actions", "observation", "time limit"), rows)


def space(found: Any) -> str:
    """`Discrete(3)`, `Box(10, 10, 4)`, with bounds where they are finite and one pair."""
    import numpy as np

    from jaxrl.spaces import Discrete

    if isinstance(found, Discrete):
        return f"Discrete({found.n})"
    shape = ", ".join(map(str, found.shape))
    low, high = np.unique(found.low), np.unique(found.high)
    is_pair = len(low) == len(high) == 1 and low[0] == -high[0] and abs(low[0]) < 1e6
    bounds = f" in [{low[0]:g}, {high[0]:g}]" if is_pair else ""
    dtype = np.dtype(found.dtype).name
    return f"Box({shape}){bounds}" + ("" if dtype == "float32" else f", {dtype}")


def results(name: str, part: str = "") -> str:
    """The table that `benchmarks/NAME.py` makes of its committed results."""
    script = importlib.import_module(f"benchmarks.{name}")
    file = RESULTS / f"{name}.json"
    file = file if file.exists() else RESULTS / name / f"{name}.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = found.get("rows", found)
    if hasattr(script, "TABLES"):
        return script.TABLES[part](rows[part])
    if hasattr(script, "tables"):
        return script.tables(rows)[part]
    return script.table(rows[part] if part else rows)


def demo() -> str:
    """Policies of `jaxrl rlhf demo` beside the optimum."""
    found = json.loads((RESULTS / "rlhf_demo.json").read_text(encoding="utf-8"))
    columns = ("gold reward E r", "KL(π ‖ π_ref)", "J = E r - β KL", "KL(π\\* ‖ π)")
    numbers = ("reward", "kl", "value", "kl_from_optimum")
    rows = ([r["policy"], *(f"{r[n]:.3f}" for n in numbers)] for r in found["table"])
    about = f"`{found['command']}`. {captions.device([found])}"
    return rows_to_table(("policy", *columns), rows) + f"\n\n{about}"


TABLES = {
    "algorithms": algorithms,
    "config": config,
    "metrics": metrics,
    "flags": flags,
    "environments": environments,
    "results": results,
    "demo": demo,
    "functions": api.index,
    "layers": layers.table,
    "modules": layers.modules,
}
"""Name in a placeholder -> what makes the table."""
