"""Run every code block of README.md, CONTRIBUTING.md and docs/, with shortened training.

python -m tools.blocks              # all pages, minutes
python -m tools.blocks ppo cli      # some pages
python -m tools.blocks --third 0    # the README, and one in three of the others
python -m tools.blocks --list       # blocks that are not run here, with the reasons

`python` and `py` blocks of a page share names; `jaxrl` commands of `bash` blocks run in
the process of the page; `toml` becomes the file that the page names; `json` is parsed;
`text` and `bibtex` are not code. Each page runs in its own folder, several at a time. A
block that cannot run says why in a comment on the line above it: `<!-- not run: the reason
-->`. If the reason names a test file, another page or `.ci/run`, that runs the block.
Compiled programs are shared, and not optimised. The output of a failing block is shown.
"""

import argparse
import contextlib
import gc
import glob
import io
import json
import multiprocessing
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from tools import rotation

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
NO_CODE = ("text", "bibtex")
FENCE = r"^(?:<!-- not run: ([^\n]+) -->\n)?```(\w*)[^\n]*\n(.*?)^```$"

SHORT = "--total-steps 2000 --evaluation-episodes 4 --quiet"
TEXTS = "--total-steps 32 --evaluation-episodes 4 --quiet"
SMALL = {
    "train": SHORT,
    **{
        f"train {name}": f"{SHORT} --learning-starts 500"
        for name in ("dqn", "c51", "qr_dqn", "iqn", "rainbow")
    },
    "sweep": f"{SHORT} --num-seeds 2",
    "sweep rlhf": f"{TEXTS} --num-seeds 2",
    "rlhf demo": "--quick --quiet",
    "rlhf label": "--pairs 40",
    "rlhf loop": "--rounds 1 --pairs 40 --quiet",
    "rlhf best-of-n": "",
    "rlhf generate": "",
    "rlhf": TEXTS,
}
"""Flags appended to a command, where the last one counts: those of the longest match."""

BEFORE = {
    "td": "jaxrl train ppo --env CartPole-v1",
    "rlhf-training": "jaxrl rlhf sft --data small-world --out runs/sft-small",
}
"""Commands that make the runs which a page refers to."""


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str
    reason: str
    """Why it is not run; empty if it is."""


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: m.start(2)].count("\n") + 1, m[2], m[3], m[1] or "")
        for m in re.finditer(FENCE, text, re.M | re.S)
    ]


def commands(text: str) -> list[list[str]]:
    """The arguments of each command of a block, without comments."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            words = shlex.split(os.path.expandvars(part), comments=True)
            words = words[1:] if words[:1] == ["exec"] else words
            found += [words] if words else []
    return found


def shortened(words: list[str]) -> list[str]:
    """Arguments of a `jaxrl` command, with `SMALL` flags and expanded patterns."""
    arguments = [x for w in words[1:] for x in (sorted(glob.glob(w)) or [w])]
    arguments = [less(*pair) for pair in zip(["", *arguments], arguments, strict=False)]
    called = " ".join(arguments)
    fits = next((name for name in ordered() if called.startswith(name)), None)
    return arguments + (SMALL[fits].split() if fits else [])


def less(flag: str, value: str) -> str:
    """The first shard in place of a sweep's job, and fewer trials."""
    if flag == "--shard":
        return "0/1"
    return str(min(int(value), 16)) if flag == "--trials" else value


def ordered() -> list[str]:
    return sorted(SMALL, key=len, reverse=True)


def run_command(words: list[str]) -> None:
    """Run `jaxrl`; skip installing and testing, which .ci/run has done itself."""
    from jaxrl.cli import main

    words = [words[0].removeprefix(".venv/bin/"), *words[1:]]
    if words[0] in ("pip", "pytest") or words[:3] == ["python3", "-m", "venv"]:
        return
    assert words[0] == "jaxrl", f"only `jaxrl` can be run here: {shlex.join(words)}"
    if "--out" in words:
        clear(words[words.index("--out") + 1])
    arguments = shortened(words)
    code = main(arguments)
    assert code == 0, f"exit code {code}: jaxrl {shlex.join(arguments)}"


def clear(path: str) -> None:
    """Remove a folder that two blocks of a page write; a run would refuse it."""
    shutil.rmtree(path, ignore_errors=True)


def save_toml(block: Block, page: str) -> None:
    """Save the block as the file that the page names, with short runs."""
    tomllib.loads(block.text)
    _, _, after = page.partition(block.text)
    before = page[: page.index(block.text)].rsplit("\n\n", 2)[-2]
    named = re.findall(r"[\w-]+\.toml", before) or re.findall(
        r"--config ([\w-]+\.toml)", after
    )
    name = named[0] if named else "config.toml"
    Path(name).write_text(
        re.sub(r"total_steps = [\d_]+", "total_steps = 64", block.text),
        encoding="utf-8",
    )
    if not named:
        algorithm = tomllib.loads(block.text)["algorithm"]
        run_command(["jaxrl", "train", algorithm, "--config", name])


def run(block: Block, names: dict[str, Any]) -> None:
    if block.language in ("python", "py"):
        for path in re.findall(r'collect\("[^"]+", "([^"]+)"', block.text):
            clear(path)
        where = f"{block.page.name}:{block.line}"
        exec(compile(cut_short(block.text), where, "exec"), names)
        module = block.text.partition("jaxrl.register(")[0]
        Path("my_module.py").write_text(module, encoding="utf-8")  # what pages call it
    elif block.language == "bash":
        for words in commands(block.text):
            run_command(words)
    elif block.language == "toml":
        save_toml(block, block.page.read_text(encoding="utf-8"))
    elif block.language == "json":
        json.loads(block.text)
    else:
        raise AssertionError(f"a block in {block.language or 'no language'}")


def cut_short(program: str) -> str:
    """The program with runs of at most 4,000 steps."""

    def fewer(found: re.Match) -> str:
        return f"total_steps={min(int(found[1]), 4_000)}"

    return re.sub(r"\btotal_steps=([\d_]+)", fewer, program)


def namespace() -> dict[str, Any]:
    """Names that fragments may use without importing them."""
    import jax
    import jax.numpy as jnp

    import jaxrl
    from jaxrl.algorithms import ppo
    from jaxrl.data import dataset

    names: dict[str, Any] = {"__name__": "__main__", "jax": jax, "jnp": jnp}
    return names | {
        "jaxrl": jaxrl,
        "dataset": dataset,
        "my_train_step": jaxrl.PPO.train_step,
        "my_policy_loss": ppo.policy_loss,
    }


class Outcome(NamedTuple):
    """The outcome of one block."""

    where: str
    seconds: float
    busy: float
    """CPU seconds of this process, which do not depend on the load of the machine."""

    failure: str
    """Its output, if it failed."""


def run_page(page: Path, root: str) -> list[Outcome]:
    """Run the blocks of a page in order, in its own folder below `root`."""
    from jaxrl import envs

    place = Path(root) / page.stem
    place.mkdir()
    names = namespace()
    envs._registered.clear()
    sys.modules.pop("my_module", None)
    before = commands(BEFORE.get(page.stem, ""))
    with contextlib.chdir(place), on_path(place):
        with contextlib.redirect_stdout(io.StringIO()):
            for words in before:
                run_command(words)
        found = [tried(block, names) for block in blocks(page) if runs_here(block)]
    forget_programs()
    return found


def tried(block: Block, names: dict[str, Any]) -> Outcome:
    said, failed = io.StringIO(), False
    started, busy = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            run(block, names)
        except (Exception, SystemExit):
            failed = True
            traceback.print_exc()
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    where = f"{block.page.name}:{block.line}"
    return Outcome(where, seconds, busy, said.getvalue() if failed else "")


@contextlib.contextmanager
def on_path(place: Path) -> Iterator[None]:
    sys.path.insert(0, str(place))
    yield
    sys.path.remove(str(place))


def forget_programs() -> None:
    """Clear JAX's caches: a process can hold only a limited number of compiled programs."""
    import jax

    from tests.conftest import MAPS, MOST_MAPS

    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


def runs_here(block: Block) -> bool:
    return block.language not in NO_CODE and not block.reason


def prepare(folder: str) -> None:
    """Share one cache of compiled programs between the processes of this run."""
    from tests.conftest import FLAGS

    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
    os.environ |= {
        "SLURM_ARRAY_TASK_ID": "0",
        "MINARI_DATASETS_PATH": f"{folder}/minari",
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]),
    }


def run_pages(pages: list[Path], processes: int) -> list[Outcome]:
    """Run the longest pages first, so that no long one is left at the end."""
    size = {page: sum(map(runs_here, blocks(page))) for page in pages}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context) as pool:
            ordered = sorted(
                filter(size.get, pages), key=size.__getitem__, reverse=True
            )
            for done in as_completed(
                [pool.submit(run_page, x, folder) for x in ordered]
            ):
                for outcome in done.result():
                    print(line(outcome), flush=True)
                found += done.result()
    return found


def a_third(pages: list[Path], number: int | None) -> list[Path]:
    """The README and one in three of the other pages, long and short ones alike."""
    if number is None:
        return pages
    size = {page: sum(map(runs_here, blocks(page))) for page in pages}
    first = [page for page in pages if page == README]
    others = sorted((page for page in pages if page != README), key=size.__getitem__)
    return first + others[number::3]


def line(outcome: Outcome) -> str:
    word = "FAILED" if outcome.failure else "ran"
    times = f"{outcome.seconds:6.1f} s {outcome.busy:6.1f} s of processors"
    return f"{times}  {word:6}  {outcome.where}"


def left_out() -> list[Block]:
    """Blocks that are not run here."""
    return [block for page in PAGES for block in blocks(page) if block.reason]


def elsewhere(block: Block) -> bool:
    """Whether its reason names another step or test of CI that runs it."""
    places = r"\.ci/run|tests/[\w/]+\.py|docs/[\w-]+\.md"
    return bool(re.search(places, block.reason))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pages", nargs="*", help="names without .md; all by default")
    parser.add_argument(
        "--list", action="store_true", help="list blocks that are not run"
    )
    parser.add_argument("--third", choices=rotation.CHOICES, help="of the pages")
    parser.add_argument("--processes", type=int, default=2, help="pages at a time")
    arguments = parser.parse_args()
    started = time.perf_counter()
    pages = [x for x in PAGES if x.stem in arguments.pages or not arguments.pages]
    pages = a_third(pages, rotation.third(arguments.third))
    found = [] if arguments.list else run_pages(pages, arguments.processes)
    for block in left_out():
        print(f"not run: {block.page.name}:{block.line}: {block.reason}")
    for outcome in found:
        if outcome.failure:
            print(f"\n== {outcome.where}\n{outcome.failure}")
    print(summary(found), f"in {time.perf_counter() - started:.0f} s")
    failed = [outcome.where for outcome in found if outcome.failure]
    if failed:
        sys.exit("failed: " + ", ".join(failed))


def summary(found: list[Outcome]) -> str:
    code = [b for page in PAGES for b in blocks(page) if b.language not in NO_CODE]
    others = sum(map(elsewhere, left_out()))
    return (
        f"{len(code)} blocks of code: {len(found)} run, {others} run by other steps and "
        f"tests of CI, {len(left_out()) - others} not run in CI"
    )


if __name__ == "__main__":
    main()
