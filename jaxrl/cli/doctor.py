"""What `jaxrl doctor` looks at: is this installation one that is known to work?

Nothing heavy is imported at module level, and JAX only when everything else is looked at:
a broken installation must be able to say so.
"""

import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from jaxrl.errors import count_noun

State = Literal["ok", "note", "BAD"]


class Finding(NamedTuple):
    """One thing that was looked at."""

    state: State
    what: str
    words: str
    fix: str = ""


FIXES = {
    "gymnax": "pip install 'gymnax>=1.0.1,<1.1' (before 1.0 a step returns five values)",
    "jax": "pip install 'jax>=0.10.0,<0.12' (gymnax needs it below 0.12)",
}
"""Of packages whose bounds have a reason that helps."""

NVIDIA = Path("/proc/driver/nvidia/version")
"""There where a driver of NVIDIA is loaded."""

FEW_CORES = 2


def diagnosed() -> list[Finding]:
    """All findings, in the order in which they are shown."""
    findings = [_python(), *_packages(), *_probability(), _lapack()]
    return [*findings, *_devices(), _cache()]


def _python() -> Finding:
    words = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info < (3, 14):
        return Finding("ok", "python", words)
    return Finding("BAD", "python", words, "use Python 3.11, 3.12 or 3.13")


def _packages() -> list[Finding]:
    """Each package that jaxrl asks for, against the bounds that it asks for; of an extra
    what is installed."""
    found = []
    for line in metadata.requires("jaxrl") or []:
        name, bounds, optional = _requirement(line)
        if name == "jaxrl" or not (bounds or not optional):
            continue
        installed = version(name)
        if installed is not None or not optional:
            found.append(_package(name, bounds, installed, optional))
    return [*dict.fromkeys(found), _jaxlib()]


def _requirement(line: str) -> tuple[str, str, bool]:
    """Name, bounds, and whether it belongs to an extra."""
    from packaging.requirements import Requirement

    requirement = Requirement(line)
    optional = "extra" in str(requirement.marker or "")
    return requirement.name, str(requirement.specifier), optional


def _package(
    name: str, bounds: str, installed: str | None, optional: bool = False
) -> Finding:
    fix = FIXES.get(name, f"pip install '{name}{bounds}'")
    if installed is None:
        return Finding("BAD", name, "is not installed", fix)
    if _within(bounds, installed):
        return Finding("ok", name, installed)
    words = f"{installed}, known to work is {bounds}"
    return Finding("note" if optional else "BAD", name, words, fix)


def _within(bounds: str, installed: str) -> bool:
    """Whether the version is one of those; what is no version at all is none of them."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return SpecifierSet(bounds).contains(installed, prereleases=True)
    except InvalidVersion:
        return False


def version(name: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _jaxlib() -> Finding:
    """jaxlib is never newer than jax."""
    jax, jaxlib = version("jax"), version("jaxlib")
    if jaxlib is None:
        return Finding("BAD", "jaxlib", "is not installed", "pip install --upgrade jax")
    if jax is not None and not _within(f"<={jax}", jaxlib):
        words = f"{jaxlib} is newer than jax {jax}"
        return Finding("BAD", "jaxlib", words, f"pip install 'jaxlib=={jax}'")
    return Finding("ok", "jaxlib", jaxlib)


def _probability() -> list[Finding]:
    """distrax stands on TensorFlow Probability, whose releases are older than JAX."""
    stable, nightly = version("tensorflow-probability"), version("tfp-nightly")
    if stable is not None:
        words = f"{stable} is a release, which breaks distrax on today's jax"
        fix = "pip uninstall tensorflow-probability; pip install --force-reinstall "
        return [Finding("BAD", "tensorflow-probability", words, f"{fix}tfp-nightly")]
    if nightly is None:
        fix = "pip install tfp-nightly"
        return [
            Finding("BAD", "tfp-nightly", "is not installed, distrax needs it", fix)
        ]
    return [Finding("ok", "tfp-nightly", nightly)]


def _lapack() -> Finding:
    """Several batched QR decompositions in one program can wait for each other for ever."""
    cores = _cores()
    words = count_noun(cores, "core")
    if version("jaxlib") == "0.10.2" and cores <= FEW_CORES:
        words += (
            "; with jaxlib 0.10.2 batched QR decompositions, such as flax's orthogonal "
            "initialiser under vmap, can deadlock (jaxrl's own have none)"
        )
        fix = "in networks of your own use jaxrl.networks.initializers.orthogonal"
        return Finding("note", "cores", words, fix)
    return Finding("ok", "cores", words)


def _cores() -> int:
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def _devices() -> list[Finding]:
    """What JAX finds, and whether a card lies idle. A number is computed there."""
    try:
        import jax

        found = [jax.devices(), jax.jit(lambda x: x + 1)(1.0)]
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        words = f"JAX does not start ({type(error).__name__}: {reason})"
        asked = os.environ.get("JAX_PLATFORMS")
        fix = f"unset JAX_PLATFORMS, which is {asked!r}, or " if asked else ""
        fix += "pip install --upgrade jax jaxlib"
        return [Finding("BAD", "devices", words, fix)]
    devices = found[0]
    words = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    if devices[0].platform != "cpu" or not NVIDIA.exists():
        return [Finding("ok", "devices", words)]
    if os.environ.get("JAX_PLATFORMS"):
        words += ", as JAX_PLATFORMS says, though there is an NVIDIA card"
        return [Finding("note", "devices", words, "unset JAX_PLATFORMS to use it")]
    words += ", though there is an NVIDIA card: this jaxlib is for CPU only"
    fix = "pip install 'jaxrl[cuda12]' (or [cuda13], by the driver)"
    return [Finding("BAD", "devices", words, fix)]


def _cache() -> Finding:
    """The folder of compiled programs: where, how large, and whether it can be written."""
    try:
        from jaxrl.training.devices import cache_folder
    except Exception:  # of a jax that is missing, or does not fit its jaxlib
        return Finding("note", "compilation cache", "is not looked at without jax")
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    except OSError as error:
        words = f"{folder} cannot be used ({error.strerror}): every run compiles anew"
        fix = "set JAX_COMPILATION_CACHE_DIR to a folder that can be written"
        return Finding("note", "compilation cache", words, fix)
    size = sum(sizes) / 1e6
    words = f"{folder}, {count_noun(len(sizes), 'file')}, {size:,.1f} MB"
    return Finding("ok", "compilation cache", words)
