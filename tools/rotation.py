"""Which third of what is long runs: CI runs one, chosen by the commit."""

import subprocess

from tools.paths import ROOT

CHOICES = ("0", "1", "2", "auto")


def third(option: str | None) -> int | None:
    """The number of the third that runs: 0, 1 or 2, or the last commit's turn for "auto".

    None for no option: all runs.
    """
    if option != "auto":
        return None if option is None else int(option)
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    ).stdout
    return int(commit.strip() or "0", 16) % 3
