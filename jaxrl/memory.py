"""How many bytes a run needs at least, before anything is compiled."""

import contextlib
import resource
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax

from jaxrl import prng
from jaxrl.config import require
from jaxrl.errors import counted
from jaxrl.population import traced_once
from jaxrl.types import Algorithm, Env, Plan, PyTree

CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where Linux says how much memory a container may use; "max" is no limit."""


def needed(
    algorithm: Algorithm, config: Any, env: Env, plan: Plan, num_seeds: int
) -> dict[str, int]:
    """Bytes of each part of a population's state, and of one rollout with its minibatches.

    A lower bound: gradients and what the compiler keeps beside them are not in it, and
    one rollout is counted however many members run side by side.
    """
    init = traced_once(algorithm.init)
    state = jax.eval_shape(init, config, env, jax.eval_shape(lambda: prng.key(0)))
    parts = {
        field.name: num_seeds * size(getattr(state, field.name))
        for field in fields(state)
    }
    num_envs = state.world.episode_length.size
    # Observation and successor; reward, action, log-probability, value, advantage,
    # target and two flags; an int32 index for every row of every gradient step.
    row = 2 * size(state.world.obs) // num_envs + 32
    parts["rollout"] = max(plan.env_steps, plan.warmup_env_steps) * row
    parts["minibatch indices"] = plan.updates * plan.gradient_rows * 4
    return parts


def size(tree: PyTree) -> int:
    """Bytes of all arrays, or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def available() -> int | None:
    """Bytes that the devices of this process have together; None where nobody says.

    On a CPU the least of the process's limit, its container's and the machine's memory.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return _process_limit()
    stats = [device.memory_stats() or {} for device in devices]
    limits = [found["bytes_limit"] for found in stats if "bytes_limit" in found]
    return sum(limits) if limits else None


def check(
    algorithm: Algorithm, config: Any, env: Env, plan: Plan, num_seeds: int
) -> None:
    """Refuses a run that cannot fit.

    Raises:
      InvalidInput: with the bytes needed, the bytes there are, and the largest part.
    """
    parts, limit = needed(algorithm, config, env, plan, num_seeds), available()
    if limit is None:
        return
    total, largest = sum(parts.values()), max(parts, key=lambda name: parts[name])
    remedies = {
        "replay": "buffer_size",
        "world": "num_envs",
        "rollout": "num_envs or the steps of an update",
        "minibatch indices": "the gradient steps of an update",
    }
    require(
        total <= limit,
        f"{counted(num_seeds, 'agent')} of this config need {gigabytes(total)} of memory "
        f"or more ({gigabytes(parts[largest])} for {largest}), and there are "
        f"{gigabytes(limit)}: reduce "
        f"{remedies.get(largest, 'hidden_sizes')}{' or num_seeds' * (num_seeds > 1)}.",
    )


def gigabytes(number: int) -> str:
    return f"{number / 1e9:,.1f} GB"


def _process_limit() -> int | None:
    limits = [resource.getrlimit(resource.RLIMIT_AS)[0]]
    with contextlib.suppress(OSError, ValueError, IndexError):
        # "MemTotal:       24689160 kB"
        limits.append(1024 * int(Path("/proc/meminfo").read_text().split()[1]))
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    known = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    return min(known, default=None)
