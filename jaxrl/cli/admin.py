"""Commands about the installation and what it holds: list, check-env, doctor and zoo."""

import json
from pathlib import Path
from typing import Any

import click

from jaxrl.cli.groups import EnvParamsCommand
from jaxrl.cli.running import echo, exit_code, host_options, remember_signals


@click.command("list")
@click.argument(
    "what", required=False, type=click.Choice(["algorithms", "envs", "presets"])
)
def list_(what: str | None) -> None:
    """List the algorithms, the environments, the presets, or all."""
    if what in (None, "algorithms"):
        _list_algorithms()
    if what in (None, "envs"):
        _list_envs()
    if what in (None, "presets"):
        _list_presets()


def _list_algorithms() -> None:
    from jaxrl.algorithms import ALGORITHMS

    for name, algorithm in ALGORITHMS.items():
        echo(f"{name:12} {algorithm.Config.__doc__}")


def _list_envs() -> None:
    from jaxrl.envs import env_ids, known_issues
    from jaxrl.envs.suites import SUITES

    for env_id in env_ids():
        note = known_issues(env_id)
        echo(f"{env_id:28} {note}" if note else env_id)
    echo(f"{'gymnasium/ID':28} any of Gymnasium, stepped on the host: slow")
    for library, content in SUITES.items():
        name = f"{library}/NAME"
        echo(f"{name:28} {content} (the extra {library})")


def _list_presets() -> None:
    from jaxrl.runs import presets

    for name in presets.names():
        preset = presets.content(name)
        command = f"jaxrl train {preset['algorithm']} --env {preset['env']} --preset"
        echo(f"{name:28} {command}")


@click.command("check-env", cls=EnvParamsCommand)
@click.argument("env")
@click.option(
    "--steps", default=1_000, show_default=True, help="Steps of each of 64 copies."
)
def check_env(env: str, steps: int) -> int:
    """Check that an environment keeps the contract, rule by rule.

    ENV is an id or "module:factory". Exit code 1 if a rule is broken.
    """
    from jaxrl.core.config import check_value
    from jaxrl.envs import make
    from jaxrl.envs.check import check_env as check

    check_value("steps", int, steps, low=1)
    env_params = click.get_current_context().meta["env_params"]
    findings = check(make(env, **env_params), steps)
    for finding in findings:
        result = "ok" if finding.ran else "not checked"
        if finding.problem:
            kind = "WARNING" if finding.is_warning else "BROKEN"
            result = f"{kind}: {finding.problem}\n    fix: {finding.fix}"
        echo(f"{finding.rule:50} {result}")
    broken = [f.rule for f in findings if f.problem and not f.is_warning]
    echo(f"{env}: {', '.join(broken) + ' broken' if broken else 'ok'}")
    return 1 if broken else 0


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="All findings as JSON, last line."
)
def doctor(as_json: bool) -> int:
    """Check the installation.

    Versions, devices, cache, and combinations that are known to be bad. Exit code 1 if
    something is bad.
    """
    from jaxrl.cli.doctor import diagnose

    findings = diagnose()
    for finding in findings:
        echo(f"{finding.state:4} {finding.what:22} {finding.words}")
        if finding.fix:
            echo(f"     {'':22} fix: {finding.fix}")
    bad = [finding.what for finding in findings if finding.state == "BAD"]
    echo(f"bad: {', '.join(bad)}" if bad else "nothing is known to be bad")
    if as_json:
        echo(json.dumps([finding._asdict() for finding in findings]))
    return 1 if bad else 0


@click.command()
@click.argument("names", nargs=-1)
@click.option("--out", default="zoo", show_default=True, help="Folder, new or begun.")
@click.option("--seed", default=0, show_default=True, help="First seed.")
@click.option("--num-seeds", default=10, show_default=True, help="Agents per preset.")
@click.option("--tune", is_flag=True, help="Search for the preset of each instead.")
@click.option("--quiet", is_flag=True, help="No plan and no progress.")
def zoo(
    names: tuple[str, ...],
    out: str,
    seed: int,
    num_seeds: int,
    tune: bool,
    quiet: bool,
) -> int:
    """Train reference agents with the tuned presets.

    All of them, or those of these NAMES, which `jaxrl list presets` shows. What is
    finished in the folder is only read.
    """
    from jaxrl.core.config import check_value
    from jaxrl.pipelines import zoo as reference
    from jaxrl.training import devices

    check_value("num_seeds", int, num_seeds, low=1)
    devices.use_compilation_cache()
    devices.use_all_cores()
    with remember_signals() as received:
        host = host_options(quiet, received)
        if tune:
            for name in names or reference.SEARCHES:
                path = reference.tune(name, out, **host)
                echo(path or f"{name}: interrupted")
        else:
            rows = reference.build(names, out, seed=seed, num_seeds=num_seeds, **host)
            for name, row in rows.items():
                echo(_zoo_line(name, row))
            echo(Path(out) / "report" / "report.html")
    return exit_code(received)


def _zoo_line(name: str, row: dict[str, Any]) -> str:
    if row["episode_return_iqm"] is None:
        return f"{name:24} every seed broke"
    from jaxrl.statistics import iqm_in_words

    count = len(row["seeds"]) - row["broken"]
    ends = row["ci95_low"], row["ci95_high"]
    middle = iqm_in_words(row["episode_return_iqm"], *ends, count)
    return (
        f"{name:24} return {middle}, {len(row['seeds'])} seeds, "
        f"{row['env_steps']:,} steps, sha256 {row['sha256'][:12]}"
    )
