"""The runner: from an algorithm to a trained population.

The pure core (`run_chunk`, `init_population`, `run_population`) compiles into one
program; the host loop (`train`) calls it chunk by chunk, and between chunks it may log,
stop or save. Nothing on the device ever calls the host, so a chunked run equals one big
program bit for bit.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl import config as configs
from jaxrl import prng
from jaxrl.errors import counted
from jaxrl.parallel import AXIS, partition, total
from jaxrl.types import Algorithm, Array, Env, Metrics, Plan, PyTree, Shared

MAX_INT = 2**31 - 1
"""JAX's integers have 32 bits."""

Row = dict[str, Any]
"""One chunk as the host sees it: `iteration`, `env_steps`, `seconds`,
`env_steps_per_second`, and every metric as a list with one number for each seed."""


class NonFiniteError(ArithmeticError):
    """A metric became NaN or infinite; the message says which, when and for which seed."""


class Result(NamedTuple):
    """What `train` returns. Arrays of `state` have a leading axis of seeds `[K]`."""

    state: PyTree
    history: list[Row]
    seeds: list[int]
    iterations: int  # train steps done
    env_steps: int  # for each seed, warm-up included
    compile_seconds: float  # and running `init`
    run_seconds: float

    @property
    def agent(self) -> PyTree:
        """The trained agents, leading axis `[K]`, on one device."""
        return jax.device_put(self.state.agent, jax.local_devices()[0])


def run_chunk(
    algorithm: Algorithm, config: Any, env: Env, state: PyTree, length: int | Array
) -> tuple[PyTree, Metrics]:
    """`length` train steps of one agent; metrics are added up over them.

    `length` may be traced, so that one program serves every chunk, also a last one that
    is shorter. Pure: compose it with `jit`, `vmap` and `shard_map` as you like.
    """
    step = jax.jit(algorithm.train_step)  # traced once, used twice below
    _, metrics = jax.eval_shape(step, config, env, state)
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

    def body(_: Array, carry: tuple[PyTree, Metrics]) -> tuple[PyTree, Metrics]:
        state, total = carry
        state, metrics = step(config, env, state)
        return state, jax.tree.map(jnp.add, total, metrics)

    return jax.lax.fori_loop(0, length, body, (state, total))


MEMBERS = "members"
"""The mesh axis over which a population is spread."""


Parallel = Literal["auto", "members", "data"]

MIN_ROWS = 256
"""Rows of a gradient that each CPU device must have: with fewer, adding the gradients up
costs more than the other core saves (docs/performance.md)."""


def device_mesh(
    plan: Plan,
    num_members: int,
    parallel: Parallel = "auto",
    num_devices: int | None = None,
) -> Mesh | None:
    """The devices of this process that a run uses; None for one.

    Args:
      plan: of the run.
      num_members: how many agents.
      parallel: "members" puts agents on devices of their own, which never communicate;
        "data" spreads the environments of every agent and averages the gradients. "auto"
        is "members" for a population, and for one agent "data" on CPU, if its gradients
        are large enough.
      num_devices: how many; by default as many as divide the work evenly.

    Raises:
      InvalidInput: there are not so many devices, or the work cannot be divided by them,
        or not at all.
    """
    by_data = parallel == "data" or (parallel == "auto" and num_members == 1)
    configs.require(
        parallel != "data" or plan.shares > 1,
        "parallel = data, but nothing of an agent of this run can be spread over devices "
        "(PPO and REINFORCE with several environments can): try parallel = members, with "
        "several seeds.",
    )
    work = plan.shares if by_data else num_members
    devices = jax.local_devices()
    if num_devices is None:
        most = len(devices)
        if by_data and parallel == "auto":
            on_cpu = devices[0].platform == "cpu"
            most = min(most, plan.gradient_rows // MIN_ROWS) if on_cpu else 1
        count = max(n for n in range(1, max(most, 1) + 1) if work % n == 0)
    else:
        count = _checked_devices(num_devices, len(devices), work, by_data)
    if count == 1:
        return None
    return Mesh(np.array(devices[:count]), (AXIS if by_data else MEMBERS,))


def _checked_devices(wanted: int, available: int, work: int, by_data: bool) -> int:
    configs.check_value("num_devices", int, wanted, low=1)
    configs.require(
        wanted <= available,
        f"num_devices = {wanted}, but JAX sees {counted(available, 'device')} here.",
    )
    nearest = max(n for n in range(1, wanted + 1) if work % n == 0)
    parts = "shares (environments and rows of a minibatch)" if by_data else "seeds"
    configs.require(
        work % wanted == 0,
        f"num_devices = {wanted} must divide the {work} {parts} of this run: "
        f"try {nearest}.",
    )
    return wanted


@partial(jax.jit, static_argnames=("algorithm", "mesh"))
def init_population(
    algorithm: Algorithm, config: Any, env: Env, keys: Array, mesh: Mesh | None = None
) -> PyTree:
    """One initial state for each key `[K]`; `Shared` nodes have no axis of members."""
    axes = _member_axes(jax.eval_shape(partial(algorithm.init, config, env), keys[0]))

    def init(config: Any, env: Env, keys: Array) -> PyTree:
        if len(keys) == 1:
            return _add_axis(algorithm.init(config, env, keys[0]), axes)
        return jax.vmap(partial(algorithm.init, config, env), out_axes=axes)(keys)

    if mesh is None:
        return init(config, env, keys)
    if AXIS in mesh.axis_names:
        return _laid_out(init(config, env, keys), mesh)
    specs = (PartitionSpec(), PartitionSpec(), PartitionSpec(MEMBERS))
    return _spread(init, mesh, specs, _member_specs(axes))(config, env, keys)


@partial(
    jax.jit,
    static_argnames=("algorithm", "num_members", "mesh"),
    donate_argnames="state",
)
def run_population(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    state: PyTree,
    length: Array,
    num_members: int,
    mesh: Mesh | None = None,
) -> tuple[PyTree, Metrics]:
    """`run_chunk` for every member. A single member runs without a batch axis.

    With a mesh from `device_mesh` the members, or the environments of each, are spread
    over its devices.
    """
    axes = _member_axes(state)
    by_data = mesh is not None and AXIS in mesh.axis_names
    groups = 1 if mesh is None or by_data else mesh.size

    def run(
        config: Any, env: Env, state: PyTree, length: Array
    ) -> tuple[PyTree, Metrics]:
        chunk = partial(run_chunk, algorithm, config, env)
        if num_members == groups:
            state, metrics = chunk(_drop_axis(state, axes), length)
            state = _add_axis(state, axes)
            metrics = jax.tree.map(lambda x: x[None], metrics)
        else:
            count = num_groups(state, num_members // groups)
            state, metrics = _in_groups(chunk, state, length, axes, count)
        # They are sums and counts: they add up over devices as they do over time.
        return state, total(metrics)

    if mesh is None:
        return run(config, env, state, length)
    everywhere = PartitionSpec()
    specs = partition(state) if by_data else _member_specs(axes)
    out_specs = (specs, everywhere if by_data else PartitionSpec(MEMBERS))
    in_specs = (everywhere, everywhere, specs, everywhere)
    return _spread(run, mesh, in_specs, out_specs)(config, env, state, length)


GROUP = 8
"""Members that run side by side on a CPU device: the work of more does not fit its cache.
64 members of the benchmark case B2x64 take a quarter less time in groups of 8."""

MAX_GROUPED_BYTES = 2**20
"""Of a member's state: a replay memory would be copied in and out."""


def num_groups(state: PyTree, num_members: int) -> int:
    """Into how many groups the members of one device are divided."""
    sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(state)]
    small = sum(sizes) <= num_members * MAX_GROUPED_BYTES
    if jax.default_backend() == "cpu" and small and num_members % GROUP == 0:
        return num_members // GROUP
    return 1


def _in_groups(
    chunk: Callable, state: PyTree, length: Array, axes: PyTree, count: int
) -> tuple[PyTree, Metrics]:
    """`chunk` for every member: side by side in each group, one group after another."""
    vmapped = jax.vmap(chunk, in_axes=(axes, None), out_axes=(axes, 0))
    if count == 1:
        return vmapped(state, length)

    def join(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])

    def run(group: PyTree) -> tuple[PyTree, Metrics]:
        return vmapped(_per_member(axes, group, shared=state), length)

    groups = _map_members(lambda x: x.reshape(count, -1, *x.shape[1:]), axes, state)
    after, metrics = jax.lax.map(run, _per_member(axes, groups, shared=None))
    # What is shared ends in every group where it ends in the first.
    first = jax.tree.map(lambda x: x[0], after)
    state = _per_member(axes, _map_members(join, axes, after), shared=first)
    return state, jax.tree.map(join, metrics)


def _per_member(axes: PyTree, state: PyTree, shared: PyTree) -> PyTree:
    """`state`, its `Shared` nodes replaced by those of `shared`, or left out for None."""
    if shared is None:
        shared = jax.tree.map(lambda axis: (), axes, is_leaf=lambda x: x is None)
    return jax.tree.map(
        lambda axis, own, common: common if axis is None else own,
        axes,
        state,
        shared,
        is_leaf=lambda x: x is None,
    )


def _spread(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _laid_out(state: PyTree, mesh: Mesh) -> PyTree:
    """A state, its environments spread over the mesh."""

    def place(spec: PartitionSpec, part: PyTree) -> PyTree:
        return jax.lax.with_sharding_constraint(part, NamedSharding(mesh, spec))

    return jax.tree.map(
        place, partition(state), state, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )


def _member_specs(axes: PyTree) -> PyTree:
    return jax.tree.map(
        lambda axis: PartitionSpec() if axis is None else PartitionSpec(MEMBERS),
        axes,
        is_leaf=lambda x: x is None,
    )


def num_iterations(plan: Plan, total_steps: float) -> int:
    """Train steps that reach `total_steps`, at least one: the next whole number."""
    return max(1, math.ceil((total_steps - plan.warmup_env_steps) / plan.env_steps))


def prepare(algorithm: Algorithm, config: Any, env: Env) -> Plan:
    """Checks config and environment; returns what the run will do.

    Raises:
      InvalidInput: before anything compiles.
    """
    configs.require(
        isinstance(config, algorithm.Config),
        f"config is a {type(config).__module__}.{type(config).__name__}: {algorithm.name} "
        f"needs its own Config.",
    )
    configs.check(config)
    for name, value in vars(config).items():
        configs.require(
            np.ndim(value) == 0 or isinstance(value, tuple),
            f"{name} is an array: `train` takes one number, sweep with jax.vmap over "
            f"`run_chunk`.",
        )
    algorithm.validate(config, env)
    return algorithm.plan(config, env)


def train(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    *,
    seed: int = 0,
    num_seeds: int = 1,
    iterations: int | None = None,
    num_chunks: int = 100,
    parallel: Parallel = "auto",
    num_devices: int | None = None,
    on_chunk: Callable[[Row], None] = lambda row: None,
    stop: Callable[[Row], bool] = lambda row: False,
    report: Callable[[str], None] = lambda line: None,
) -> Result:
    """Trains `num_seeds` agents in one program, with seeds `seed, seed + 1, ...`

    Args:
      algorithm: for example `jaxrl.PPO`.
      config: its `Config`; `config.total_steps` is for each seed.
      env: from `jaxrl.make`.
      seed: the first seed.
      num_seeds: how many agents.
      iterations: train steps; by default as many as reach `config.total_steps`.
      num_chunks: how often, at most, the host looks in.
      parallel: what is spread over several devices; see `device_mesh`.
      num_devices: how many of them; by default as many as divide the work evenly.
      on_chunk: called with the row of each chunk.
      stop: called with the row of each chunk; True ends the run there.
      report: called with lines for a person: what is being compiled, how long it took.

    Raises:
      InvalidInput: bad config or environment, before anything compiles.
      NonFiniteError: a metric became NaN or infinite.
    """
    plan = prepare(algorithm, config, env)
    config = configs.with_floats(config)
    if iterations is None:
        iterations = num_iterations(plan, config.total_steps)
    for name, value in (("iterations", iterations), ("num_chunks", num_chunks)):
        configs.check_value(name, int, value, low=1)
    seeds = checked_seeds(seed, num_seeds)
    mesh = device_mesh(plan, num_seeds, parallel, num_devices)
    devices = counted(1 if mesh is None else mesh.size, "device")
    started = time.perf_counter()
    report(
        f"compiling {algorithm.name} on {env.id} for {counted(num_seeds, 'seed')} on "
        f"{devices} ..."
    )
    chunk = partial(
        run_population, algorithm, config, env, num_members=num_seeds, mesh=mesh
    )
    state = init_population(algorithm, config, env, keys(seeds), mesh)
    # A chunk of no train steps compiles the program and changes nothing; a later call
    # with other floats finds it compiled.
    state, _ = chunk(state=state, length=np.int32(0))
    jax.block_until_ready(state)
    compile_seconds = time.perf_counter() - started
    report(f"compiled and initialised in {compile_seconds:.1f} s")

    history: list[Row] = []
    done, started = 0, time.perf_counter()
    length = min(math.ceil(iterations / num_chunks), MAX_INT)
    while done < iterations:
        length = min(length, iterations - done)
        state, metrics = chunk(state=state, length=np.int32(length))
        metrics = jax.device_get(metrics)
        done += length
        row = _row(plan, done, time.perf_counter() - started, history, seeds, metrics)
        history.append(row)
        on_chunk(row)
        _check_finite(metrics, row, seeds)
        if stop(row):
            break
    return Result(
        state=state,
        history=history,
        seeds=seeds,
        iterations=done,
        env_steps=history[-1]["env_steps"],
        compile_seconds=compile_seconds,
        run_seconds=time.perf_counter() - started,
    )


def member(state: PyTree, index: int) -> PyTree:
    """One member of a population's state or agent."""
    return _map_members(lambda x: x[index], _member_axes(state), state)


def _member_axes(state: PyTree) -> PyTree:
    """0 for every leaf, None for `Shared` nodes: a prefix tree for `vmap`."""

    def is_shared(x: Any) -> bool:
        return isinstance(x, Shared)

    return jax.tree.map(lambda x: None if is_shared(x) else 0, state, is_leaf=is_shared)


def _map_members(function: Callable, axes: PyTree, state: PyTree) -> PyTree:
    """`function` on every leaf that has (or is to have) an axis of members."""
    return jax.tree.map(
        lambda axis, x: x if axis is None else function(x),
        axes,
        state,
        is_leaf=lambda x: x is None,
    )


def _add_axis(state: PyTree, axes: PyTree) -> PyTree:
    return _map_members(lambda x: jnp.expand_dims(x, 0), axes, state)


def _drop_axis(state: PyTree, axes: PyTree) -> PyTree:
    # A reshape and not `x[0]`, which would copy a replay memory.
    return _map_members(lambda x: jnp.squeeze(x, 0), axes, state)


def checked_seeds(seed: int, num_seeds: int) -> list[int]:
    """`seed, seed + 1, ...`; `InvalidInput` unless `jax.random.key` takes them all."""
    configs.check_value("seed", int, seed, low=0, high=MAX_INT)
    configs.check_value("num_seeds", int, num_seeds, low=1, high=MAX_INT - seed + 1)
    return list(range(seed, seed + num_seeds))


def keys(seeds: Sequence[int]) -> Array:
    return jnp.stack([prng.key(seed) for seed in seeds])


def _row(
    plan: Plan,
    done: int,
    seconds: float,
    history: list[Row],
    seeds: list[int],
    metrics: Metrics,
) -> Row:
    """The row of the chunk that ended with train step `done`."""
    before = history[-1] if history else {"iteration": 0, "seconds": 0.0}
    new_steps = len(seeds) * (done - before["iteration"]) * plan.env_steps
    return {
        "iteration": done,
        "env_steps": plan.warmup_env_steps + done * plan.env_steps,
        "seconds": seconds,
        "env_steps_per_second": new_steps / (seconds - before["seconds"]),
        **_values(metrics),
    }


def _values(metrics: Metrics) -> dict[str, list[float | None]]:
    """Every metric as one number for each seed, None where nothing was counted."""
    return {
        name: [float(s / c) if c > 0 else None for s, c in zip(*m, strict=True)]
        for name, m in metrics.items()
    }


def _check_finite(metrics: Metrics, row: Row, seeds: list[int]) -> None:
    for name, metric in metrics.items():
        for seed, value in zip(seeds, metric.sum, strict=True):
            if not np.isfinite(value):
                raise NonFiniteError(
                    f"{name} became {value} within the chunk that ended at train step "
                    f"{row['iteration']} ({row['env_steps']} environment steps) of seed "
                    f"{seed}: try a smaller learning_rate or max_grad_norm."
                )
