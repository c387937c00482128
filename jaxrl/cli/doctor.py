"""Checks of the installation: `jaxrl doctor`.

Nothing heavy is imported at module level, and JAX only when everything else is checked: a
broken installation must be able to say so.
"""

import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from jaxrl.errors import count_noun, install_command

State = Literal["ok", "note", "BAD"]


class Finding(NamedTuple):
    """The result of one check."""

    state: State
    what: str
    words: str
    fix: str = ""


FIXES = {
    "gymnax": "pip install 'gymnax>=1.0.1,<1.1' (before 1.0 a step returns five values)",
    "jax": "pip install 'jax>=0.10.0,<0.12' (gymnax needs it below 0.12)",
}
"""Package -> fix, where the reason for its bounds helps."""

NVIDIA = Path("/proc/driver/nvidia/version")
"""Exists where a driver of NVIDIA is loaded."""

FEW_CORES = 2


def diagnose() -> list[Finding]:
    """Run all checks, in the order in which they are shown."""
    findings = [check_python(), *check_packages(), check_probability(), check_lapack()]
    return [*findings, check_devices(), check_cache()]


def check_python() -> Finding:
    words = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info < (3, 14):
        return Finding("ok", "python", words)
    return Finding("BAD", "python", words, "use Python 3.11, 3.12 or 3.13")


def check_packages() -> list[Finding]:
    """Check each requirement of jaxrl; those of extras only where installed."""
    findings = []
    for line in metadata.requires("jaxrl") or []:
        name, bounds, optional = _parse_requirement(line)
        if name == "jaxrl" or not (bounds or not optional):
            continue
        installed = version(name)
        if installed is not None or not optional:
            findings.append(check_package(name, bounds, installed, optional))
    return [*dict.fromkeys(findings), check_jaxlib()]


def _parse_requirement(line: str) -> tuple[str, str, bool]:
    """Return name, bounds, and whether it belongs to an extra."""
    from packaging.requirements import Requirement

    requirement = Requirement(line)
    optional = "extra" in str(requirement.marker or "")
    return requirement.name, str(requirement.specifier), optional


def check_package(
    name: str, bounds: str, installed: str | None, optional: bool = False
) -> Finding:
    """Check the installed version of a package against its bounds."""
    fix = FIXES.get(name, f"pip install '{name}{bounds}'")
    if installed is None:
        return Finding("BAD", name, "is not installed", fix)
    if _within(bounds, installed):
        return Finding("ok", name, installed)
    words = f"{installed}, known to work is {bounds}"
    return Finding("note" if optional else "BAD", name, words, fix)


def _within(bounds: str, installed: str) -> bool:
    """Whether the version is within the bounds; a malformed one never is."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return SpecifierSet(bounds).contains(installed, prereleases=True)
    except InvalidVersion:
        return False


def version(name: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_jaxlib() -> Finding:
    """Check jaxlib, which must not be newer than jax."""
    jax, jaxlib = version("jax"), version("jaxlib")
    if jaxlib is None:
        return Finding("BAD", "jaxlib", "is not installed", "pip install --upgrade jax")
    if jax is not None and not _within(f"<={jax}", jaxlib):
        words = f"{jaxlib} is newer than jax {jax}"
        return Finding("BAD", "jaxlib", words, f"pip install 'jaxlib=={jax}'")
    return Finding("ok", "jaxlib", jaxlib)


def check_probability() -> Finding:
    """Check TensorFlow Probability, whose stable releases break distrax on recent JAX."""
    stable, nightly = version("tensorflow-probability"), version("tfp-nightly")
    if stable is not None:
        words = f"{stable} is a release, which breaks distrax on today's jax"
        fix = "pip uninstall tensorflow-probability; pip install --force-reinstall "
        return Finding("BAD", "tensorflow-probability", words, f"{fix}tfp-nightly")
    if nightly is None:
        fix = "pip install tfp-nightly"
        words = "is not installed, distrax needs it"
        return Finding("BAD", "tfp-nightly", words, fix)
    return Finding("ok", "tfp-nightly", nightly)


def check_lapack() -> Finding:
    """Check for a deadlock of several batched QR decompositions in one program."""
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
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_devices() -> Finding:
    """Check what JAX sees, that it computes, and that no GPU is ignored."""
    try:
        import jax

        devices = jax.devices()
        jax.jit(lambda x: x + 1)(1.0)
    except Exception as error:
        return _no_devices(error)
    words = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    if devices[0].platform != "cpu" or not NVIDIA.exists():
        return Finding("ok", "devices", words)
    if os.environ.get("JAX_PLATFORMS"):
        words += ", as JAX_PLATFORMS says, though there is an NVIDIA card"
        return Finding("note", "devices", words, "unset JAX_PLATFORMS to use it")
    words += ", though there is an NVIDIA card: this jaxlib is for CPU only"
    fix = f"{install_command('cuda12')}, or cuda13, by the driver"
    return Finding("BAD", "devices", words, fix)


def _no_devices(error: Exception) -> Finding:
    """The finding that JAX cannot start, and what made it fail."""
    reason = " ".join(str(error).split())[:200]
    kind = type(error).__name__
    words = f"JAX does not start ({kind}{': ' if reason else ''}{reason})"
    platforms = os.environ.get("JAX_PLATFORMS")
    fix = "pip install --upgrade jax jaxlib"
    if platforms:
        fix = f"unset JAX_PLATFORMS, which is {platforms!r}, or {fix}"
    return Finding("BAD", "devices", words, fix)


def explain_devices() -> str:
    """Why JAX cannot start, in one sentence; "" if it can."""
    import jax

    try:
        jax.devices()
    except Exception as failure:
        finding = _no_devices(failure)
        return f"{finding.words}: {finding.fix}."
    return ""


def check_cache() -> Finding:
    """Check the folder of compiled programs: place, size, and whether it can be written."""
    try:
        from jaxrl.training.devices import cache_folder
    except Exception:  # jax is missing, or does not fit its jaxlib
        return Finding("note", "compilation cache", "is not checked without jax")
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
