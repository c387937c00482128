"""Multi-process runs, on one machine or many.

Every process runs the same program with the same arguments. After `join`, `jax.devices()`
holds the devices of all processes, and a run is spread over them as over those of one
process. The first process does what only one can do (write files, read the clock), and the
others receive the result through this module. In a single-process run each of these
functions is trivial.
"""

import socket
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxrl.core import config as configs
from jaxrl.core import prng
from jaxrl.errors import InvalidInput, require
from jaxrl.types import PyTree

HEARTBEAT = 30
"""Seconds without a heartbeat after which a lost process ends all others."""

PATIENCE = 300.0
"""Seconds to wait for the first process to accept connections."""

LOST = (
    *("gloo", "nccl", "connection", "coordination", "heartbeat", "barrier"),
    *("unavailable", "deadline_exceeded"),
)
"""Words of JAX's errors that indicate the loss of another process."""


def join(
    coordinator: str | None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join a multi-process run; to be called before anything touches a device.

    Args:
      coordinator: host and port of the first process, "HOST:PORT"; the same for all. Or
        "auto" where JAX detects the cluster (SLURM, Open MPI, Kubernetes), and with it
        the other two arguments.
      num_processes: the number of processes.
      process_id: the rank of this process: 0, ..., num_processes - 1.

    Raises:
      InvalidInput: an argument is missing or invalid, the first process cannot be reached,
        or JAX detects no cluster.
    """
    if coordinator is None:
        require(
            num_processes is None and process_id is None,
            "coordinator is missing: give --coordinator HOST:PORT of the first process.",
        )
        return
    options: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT}
    if coordinator != "auto":
        options |= _check_options(coordinator, num_processes, process_id)
        _check_address(coordinator, process_id == 0)
    # Several devices of one process can deadlock in gloo; one process per core is as fast.
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:
        reason = str(error).split("\n")[0].rstrip(".")
        require(False, f"coordinator = {coordinator!r}: {reason}.")


def _check_options(
    coordinator: str, num_processes: int | None, process_id: int | None
) -> dict[str, Any]:
    host, _, port = coordinator.rpartition(":")
    require(
        bool(host) and port.isdecimal() and 0 < int(port) < 2**16,
        f"coordinator = {coordinator!r}: must be HOST:PORT, or auto on a cluster.",
    )
    for name, value in (("num_processes", num_processes), ("process_id", process_id)):
        require(value is not None, f"{name} is missing beside coordinator.")
    assert num_processes is not None and process_id is not None
    configs.check_value("num_processes", int, num_processes, low=1)
    configs.check_value("process_id", int, process_id, low=0, high=num_processes - 1)
    options = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    if process_id == 0:
        # JAX would listen on all interfaces.
        options["coordinator_bind_address"] = coordinator
    return options


def _check_address(coordinator: str, is_first: bool) -> None:
    """Check that the first process can listen, or that it answers.

    Without this check JAX would end the process with a stack trace.
    """
    host, _, port = coordinator.rpartition(":")
    if is_first:
        try:
            socket.create_server((host, int(port))).close()
        except OSError as error:
            raise InvalidInput(
                f"coordinator = {coordinator!r}: the first process cannot listen there "
                f"({error.strerror or error}): give a free port of this machine."
            ) from error
        return
    started = time.monotonic()
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() - started > PATIENCE:
                raise InvalidInput(
                    f"coordinator = {coordinator!r}: the first process does not answer "
                    f"({error.strerror or error}): start it, or correct the address."
                ) from error
            time.sleep(0.2)


def is_lost(error: Exception) -> bool:
    """True if the error was caused by the loss of another process of this run.

    JAX raises a failed status as its own error or, where a compiled function is called
    from its fast path, as a ValueError that begins with the status ("UNKNOWN: ...").
    """
    status, colon, _ = str(error).partition(":")
    of_jax = isinstance(error, jax.errors.JaxRuntimeError) or (
        isinstance(error, ValueError) and bool(colon) and status.isupper()
    )
    message = str(error).lower()
    return several() and of_jax and any(word in message for word in LOST)


def several() -> bool:
    """True if this run has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """True for the first process, which is the one that writes files."""
    return jax.process_index() == 0


def put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Shard arrays that every process holds in full, as `jax.device_put` does."""
    if not several():
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: _put_leaf(x, sharding), tree)


def _put_leaf(x: Any, sharding: NamedSharding) -> Any:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        if x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        return jax.jit(lambda x: x, out_shardings=sharding)(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _put_leaf(np.asarray(jax.random.key_data(x)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    array = np.asarray(x)
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: array[index]
    )


def device_get(tree: PyTree) -> PyTree:
    """Copy arrays to the host of every process, in full; a collective call."""
    if not several():
        return jax.device_get(tree)
    return jax.tree.map(_device_get_leaf, tree)


def _device_get_leaf(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return jax.device_get(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return prng.from_data(_device_get_leaf(jax.random.key_data(x)), x.dtype)
    if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def broadcast(number: int) -> int:
    """Broadcast a number from the first process; a collective call."""
    return _of_all(number)[0]


def least(number: int) -> int:
    """The smallest number of any process; a collective call."""
    return min(_of_all(number))


def any_of(condition: bool) -> bool:
    """True if the condition holds in any process; a collective call."""
    return any(_of_all(int(bool(condition))))


def _of_all(number: int) -> list[int]:
    if not several():
        return [number]
    from jax.experimental import multihost_utils

    numbers = multihost_utils.process_allgather(np.int32(number))
    return [int(x) for x in np.atleast_1d(numbers)]
