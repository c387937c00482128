"""What the command line sets up before JAX starts: all cores, and the compilation cache.

A library must not change a process behind its user's back, so nothing here happens on
import. In a program of your own call these first, before anything touches a device.
"""

import contextlib
import os
import platform as machine
from pathlib import Path

import jax

from jaxrl.core import config as configs
from jaxrl.errors import count_noun


def use_all_cores(num_devices: int | None = None) -> None:
    """Make a device of each CPU core, or as many CPU devices as asked for.

    One device runs a small agent on one core. On several, the members of a population or
    the environments of a large run are spread (`population.device_mesh`). Without effect
    when JAX has started already, or on another platform.

    Raises:
      InvalidInput: a number below 1.
    """
    configs.check_value("num_devices", int | None, num_devices, low=1)
    if num_devices is None:
        known = hasattr(os, "sched_getaffinity")
        num_devices = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # raised if the devices exist already
        jax.config.update("jax_num_cpu_devices", num_devices)


DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def use_deterministic_operations() -> None:
    """Make a GPU add numbers up in the same order every time, which may be slower.

    A CPU does so anyway. Without effect when JAX has started already.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if DETERMINISTIC not in flags.split():
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()


def use_compilation_cache(folder: str | Path | None = None) -> Path | None:
    """Keep compiled programs on disk, so that the second run of one starts at once.

    Args:
      folder: where; by default `$JAX_COMPILATION_CACHE_DIR`, or `jaxrl` in the user's
        cache folder (`$XDG_CACHE_HOME`, or `~/.cache`).

    Returns:
      The folder, or None where it cannot be made: the cache is then off.
    """
    folder = Path(folder or cache_folder())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder


def cache_folder() -> Path:
    """Where `use_compilation_cache` keeps programs by default."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxrl"
    return Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or default)


def hardware() -> str:
    """The devices of this process, for a person: of a CPU the model and the cores."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    cores = os.cpu_count() or 1
    num_devices = count_noun(len(devices), "device")
    return f"{_cpu_model()}, {count_noun(cores, 'core')}, {num_devices}"


def _cpu_model() -> str:
    """As the system calls it; "CPU" where it does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return machine.processor() or "CPU"
