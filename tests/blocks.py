"""Runs every code block of README.md, CONTRIBUTING.md and docs/, training cut short.

python -m tests.blocks              # all pages, minutes
python -m tests.blocks ppo cli      # some pages
python -m tests.blocks --list       # what is not run here, and why

`python` and `py` blocks of a page share names; `jaxrl` commands of `bash` blocks run in
this process; `toml` becomes the file that the page names; `json` is read; `text` and
`bibtex` are no code. A page has a folder of its own. A block that cannot run says why in a
comment on the line above it: `<!-- not run: the reason -->`.
"""

import argparse
import glob
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import tomllib
import traceback
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
NO_CODE = ("text", "bibtex")
FENCE = r"^(?:<!-- not run: ([^\n]+) -->\n)?```(\w*)[^\n]*\n(.*?)^```$"

SHORT = "--total-steps 2000 --evaluation-episodes 4 --quiet"
TEXTS = "--total-steps 32 --evaluation-episodes 4 --quiet"
SMALL = {
    "train": SHORT,
    "train dqn": f"{SHORT} --learning-starts 500",
    "sweep": f"{SHORT} --num-seeds 2",
    "sweep rlhf": f"{TEXTS} --num-seeds 2",
    "rlhf demo": "--quick --quiet",
    "rlhf label": "--pairs 40",
    "rlhf loop": "--rounds 1 --pairs 40 --quiet",
    "rlhf best-of-n": "",
    "rlhf generate": "",
    "rlhf": TEXTS,
    "bench": "--quick --cases B1",
}
"""Flags added to a command, of which the last one counts: the first name that fits."""

BEFORE = {
    "getting-started": "jaxrl train dqn --env CartPole-v1",
    "td": "jaxrl train ppo --env CartPole-v1",
    "rlhf-training": "jaxrl rlhf sft --data small-world --out runs/sft-small",
}
"""Runs that a page speaks of and another page makes."""


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str
    reason: str
    """Why it is not run, or nothing."""


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page, text[: m.start(2)].count("\n") + 1, m[2], m[3], m[1] or "")
        for m in re.finditer(FENCE, text, re.M | re.S)
    ]


def commands(text: str) -> list[list[str]]:
    """The words of each command of a block, without comments."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            words = shlex.split(os.path.expandvars(part), comments=True)
            found += [words] if words else []
    return found


def shortened(words: list[str]) -> list[str]:
    """The arguments of a `jaxrl` command, with `SMALL` flags and patterns filled in."""
    arguments = [x for w in words[1:] for x in (sorted(glob.glob(w)) or [w])]
    called = " ".join(arguments)
    fits = next((name for name in ordered() if called.startswith(name)), None)
    return arguments + (SMALL[fits].split() if fits else [])


def ordered() -> list[str]:
    return sorted(SMALL, key=len, reverse=True)


def run_command(words: list[str]) -> None:
    """`jaxrl` here; making environments and testing is what .ci/run has done itself."""
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
    """Two blocks of a page may write the same folder; a run would refuse it."""
    shutil.rmtree(path, ignore_errors=True)


def save_toml(block: Block, page: str) -> None:
    """As the file that the page names, with short runs."""
    tomllib.loads(block.text)
    _, _, after = page.partition(block.text)
    before = page[: page.index(block.text)].rsplit("\n\n", 2)[-2]
    named = re.findall(r"[\w-]+\.toml", before) or re.findall(
        r"--config ([\w-]+\.toml)", after
    )
    name = named[0] if named else "config.toml"
    Path(name).write_text(
        re.sub(r"total_steps = [\d_]+", "total_steps = 64", block.text)
    )
    if not named:
        algorithm = tomllib.loads(block.text)["algorithm"]
        run_command(["jaxrl", "train", algorithm, "--config", name])


def run(block: Block, names: dict[str, Any]) -> None:
    if block.language in ("python", "py"):
        for path in re.findall(r'collect\("[^"]+", "([^"]+)"', block.text):
            clear(path)
        where = f"{block.page.name}:{block.line}"
        exec(compile(block.text, where, "exec"), names)
        module = block.text.partition("jaxrl.register(")[0]
        Path("my_module.py").write_text(module)  # what pages call it
    elif block.language == "bash":
        for words in commands(block.text):
            run_command(words)
    elif block.language == "toml":
        save_toml(block, block.page.read_text())
    elif block.language == "json":
        json.loads(block.text)
    else:
        raise AssertionError(f"a block in {block.language or 'no language'}")


def namespace() -> dict[str, Any]:
    """What fragments may use without saying so."""
    import jax
    import jax.numpy as jnp

    import jaxrl
    from jaxrl import dataset

    names: dict[str, Any] = {"__name__": "__main__", "jax": jax, "jnp": jnp}
    return names | {
        "jaxrl": jaxrl,
        "dataset": dataset,
        "my_train_step": jaxrl.PPO.train_step,
    }


def run_page(page: Path) -> list[str]:
    """What failed."""
    from jaxrl import envs

    failed = []
    names = namespace()
    envs._registered.clear()
    sys.modules.pop("my_module", None)
    for words in commands(BEFORE.get(page.stem, "")):
        run_command(words)
    for block in blocks(page):
        if block.language in NO_CODE or block.reason:
            continue
        started = time.perf_counter()
        try:
            run(block, names)
        except (Exception, SystemExit):
            traceback.print_exc()
            failed.append(f"{page.name}:{block.line}")
        seconds = time.perf_counter() - started
        print(
            f"-- {page.name}:{block.line} {block.language}, {seconds:.1f} s", flush=True
        )
    return failed


def left_out() -> list[str]:
    """Blocks of code that are not run, with the reason that the page gives."""
    found = [block for page in PAGES for block in blocks(page) if block.reason]
    return [f"{block.page.name}:{block.line}: {block.reason}" for block in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pages", nargs="*", help="names without .md; all by default")
    parser.add_argument("--list", action="store_true", help="what is not run, and why")
    arguments = parser.parse_args()
    everything = [
        b for page in PAGES for b in blocks(page) if b.language not in NO_CODE
    ]
    print(*left_out(), sep="\n")
    print(f"{len(everything)} blocks of code, {len(left_out())} of them not run")
    if arguments.list:
        return
    os.environ |= {"SLURM_ARRAY_TASK_ID": "0"}
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = f"{folder}/minari"
        for page in PAGES:
            if arguments.pages and page.stem not in arguments.pages:
                continue
            place = Path(folder) / page.stem
            place.mkdir()
            os.chdir(place)
            sys.path.insert(0, str(place))
            failed += run_page(page)
            sys.path.remove(str(place))
        os.chdir(ROOT)
    if failed:
        sys.exit("failed: " + ", ".join(failed))


if __name__ == "__main__":
    main()
