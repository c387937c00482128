"""How many bytes a run needs at least, before anything is compiled."""

import contextlib
import resource
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl.core import prng
from jaxrl.errors import count_noun, require
from jaxrl.training.population import (
    init_population,
    member,
    no_tally,
    run_population,
    traced_once,
)
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
    if state.world is not None:
        # Observation and successor; reward, action, log-probability, value, advantage,
        # target and two flags.
        row = 2 * size(state.world.obs) // state.world.episode_length.size + 32
        parts["rollout"] = max(plan.env_steps, plan.warmup_env_steps) * row
    # An int32 index for every row of every gradient step.
    parts["minibatch indices"] = plan.updates * plan.gradient_rows * 4
    return parts


def size(tree: PyTree) -> int:
    """Bytes of all arrays, or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def available() -> int | None:
    """Bytes that the devices have together; None where nobody says.

    On a CPU the least of the process's limit, its container's and the machine's memory.
    Of several processes all have what this one has.
    """
    here = _available_here()
    return None if here is None else here * jax.process_count()


def _available_here() -> int | None:
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return _process_limit()
    stats = [device.memory_stats() or {} for device in devices]
    limits = [found["bytes_limit"] for found in stats if "bytes_limit" in found]
    return sum(limits) if limits else None


SURE = 4
"""A population of which so many times the lower bound fits is not measured."""

ROOM = 0.5
"""The part of the memory that a block of members may take: evaluation needs some too."""


def most_members(algorithm: Algorithm, config: Any, env: Env, count: int) -> int:
    """How many of `count` members fit at a time.

    From the lower bound of `needed`, if that leaves no doubt. Otherwise the train steps
    of two small populations are compiled, and what each member more takes is read off.
    """
    limit = available()
    plan = algorithm.plan(config, env)
    each = sum(needed(algorithm, config, env, plan, 1).values())
    if limit is None or SURE * count * each <= ROOM * limit:
        return count
    few, more = 16, 32  # more than one group
    taken = [compiled_bytes(algorithm, config, env, n) for n in (few, more)]
    slope = max((taken[1] - taken[0]) / (more - few), 1.0)
    most = int((ROOM * limit - taken[0]) / slope) + few
    return max(1, min(count, most))


def compiled_bytes(
    algorithm: Algorithm, config: Any, env: Env, num_members: int
) -> int:
    """What the compiled train steps of a population take, on one device."""
    keys = jax.eval_shape(lambda: jax.random.split(prng.key(0), num_members))
    init = partial(init_population, algorithm, config, env, {})
    state = jax.eval_shape(init, keys)
    one = jax.eval_shape(partial(member, index=0), state)
    tally = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((num_members, *x.shape), x.dtype),
        jax.eval_shape(partial(no_tally, algorithm), config, env, one),
    )
    length = jax.ShapeDtypeStruct((), np.int32)
    lowered = run_population.lower(
        algorithm, config, env, {}, state, tally, length, num_members
    )
    found: Any = lowered.compile().memory_analysis()
    return int(
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
    )


def check(
    algorithm: Algorithm, config: Any, env: Env, plan: Plan, num_seeds: int
) -> None:
    """Refuse a run that cannot fit.

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
        f"{count_noun(num_seeds, 'agent')} of this config need {gigabytes(total)} of "
        f"memory or more ({gigabytes(parts[largest])} for {largest}), and there are "
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
