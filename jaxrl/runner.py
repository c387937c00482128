"""The runner: from an algorithm to a trained population.

The pure core (`run_chunk`, `init_population`, `run_population`) compiles into one
program; the host loop (`train`) calls it chunk by chunk, and between chunks it may log,
stop or save. Nothing on the device ever calls the host, so a chunked run equals one big
program bit for bit.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
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


class Job(NamedTuple):
    """A population to train: what, with which seeds, on which devices."""

    algorithm: Algorithm
    config: Any
    env: Env
    seeds: list[int]
    mesh: Mesh | None


class Progress(NamedTuple):
    """How far a job is: all that is needed to go on exactly. Arrays are `[K, ...]`."""

    state: PyTree
    metrics: Metrics  # added up since the last row
    iteration: int  # train steps done
    seconds: float  # that training has taken


class Result(NamedTuple):
    """What `train` returns. Arrays of `state` have a leading axis of seeds `[K]`."""

    progress: Progress
    history: list[Row]
    seeds: list[int]
    env_steps: int  # for each seed, warm-up included
    compile_seconds: float  # and running `init`

    @property
    def state(self) -> PyTree:
        """Agents, worlds and whatever else is needed to go on training."""
        return self.progress.state

    @property
    def iterations(self) -> int:
        """Train steps done."""
        return self.progress.iteration

    @property
    def run_seconds(self) -> float:
        """That training took, of all processes that were at it."""
        return self.progress.seconds

    @property
    def agent(self) -> PyTree:
        """The trained agents, leading axis `[K]`, on one device."""
        return jax.device_put(self.state.agent, jax.local_devices()[0])


@cache
def _train_step(algorithm: Algorithm) -> Callable:
    """Traced once for all that ask for it."""
    return jax.jit(algorithm.train_step)


def run_chunk(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    state: PyTree,
    length: int | Array,
    metrics: Metrics | None = None,
) -> tuple[PyTree, Metrics]:
    """`length` train steps of one agent; metrics are added up over them.

    `length` may be traced, so that one program serves every chunk, also a last one that
    is shorter. Given the `metrics` of earlier train steps it goes on adding to them, so
    that the sum does not depend on where a run was cut. Pure: compose it with `jit`,
    `vmap` and `shard_map` as you like.
    """
    step = _train_step(algorithm)
    if metrics is None:
        shapes = jax.eval_shape(step, config, env, state)[1]
        metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(_: Array, carry: tuple[PyTree, Metrics]) -> tuple[PyTree, Metrics]:
        state, before = carry
        state, now = step(config, env, state)
        # They are sums and counts: they add up over devices as they do over time.
        return state, jax.tree.map(jnp.add, before, total(now))

    return jax.lax.fori_loop(0, length, body, (state, metrics))


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
      InvalidInput: there are not so many devices, or the work cannot be divided by them.
    """
    by_data = parallel == "data" or (parallel == "auto" and num_members == 1)
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
        state = init(config, env, keys)
        constrain = jax.lax.with_sharding_constraint
        return _placed(state, mesh, partition(state), constrain)
    specs = (PartitionSpec(), PartitionSpec(), PartitionSpec(MEMBERS))
    return _spread(init, mesh, specs, _member_specs(axes))(config, env, keys)


@partial(
    jax.jit,
    static_argnames=("algorithm", "num_members", "mesh"),
    donate_argnames=("state", "metrics"),
)
def run_population(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    state: PyTree,
    metrics: Metrics,
    length: Array,
    num_members: int,
    mesh: Mesh | None = None,
) -> tuple[PyTree, Metrics]:
    """`run_chunk` for every member. A single member runs without a batch axis.

    With a mesh from `device_mesh` the members, or the environments of each, are spread
    over its devices.
    """
    axes = _member_axes(state)
    groups = mesh.size if mesh is not None and MEMBERS in mesh.axis_names else 1

    def run(
        config: Any, env: Env, state: PyTree, metrics: Metrics, length: Array
    ) -> tuple[PyTree, Metrics]:
        chunk = partial(run_chunk, algorithm, config, env)
        if num_members == groups:
            alone = jax.tree.map(lambda x: jnp.squeeze(x, 0), metrics)
            state, metrics = chunk(_drop_axis(state, axes), length, alone)
            return _add_axis(state, axes), jax.tree.map(lambda x: x[None], metrics)
        vmapped = jax.vmap(chunk, in_axes=(axes, None, 0), out_axes=(axes, 0))
        return vmapped(state, length, metrics)

    if mesh is None:
        return run(config, env, state, metrics, length)
    everywhere = PartitionSpec()
    specs = _specs(state, mesh)
    in_specs = (everywhere, everywhere, *specs, everywhere)
    return _spread(run, mesh, in_specs, specs)(config, env, state, metrics, length)


def _specs(state: PyTree, mesh: Mesh) -> tuple[PyTree, PartitionSpec]:
    """Where a population's state and its metrics lie."""
    if AXIS in mesh.axis_names:
        return partition(state), PartitionSpec()
    return _member_specs(_member_axes(state)), PartitionSpec(MEMBERS)


def _spread(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _placed(tree: PyTree, mesh: Mesh, specs: PyTree, put: Callable) -> PyTree:
    """A tree whose parts lie where the prefix tree `specs` says."""
    return jax.tree.map(
        lambda spec, part: put(part, NamedSharding(mesh, spec)),
        specs,
        tree,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
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


def first_progress(job: Job) -> Progress:
    """A job that has been initialised and has not begun."""
    state = init_population(
        job.algorithm, job.config, job.env, keys(job.seeds), job.mesh
    )
    return placed_progress(job, Progress(state, no_metrics(job, state), 0, 0.0))


def progress_shapes(job: Job) -> Progress:
    """The shapes of `first_progress`; nothing runs."""
    init = partial(init_population, job.algorithm, job.config, job.env)
    state = jax.eval_shape(init, jax.eval_shape(lambda: keys(job.seeds)))
    return Progress(state, no_metrics(job, state), 0, 0.0)


def no_metrics(job: Job, state: PyTree) -> Metrics:
    """The metrics of no train steps, `[K]`, for states of this shape."""
    one = jax.eval_shape(partial(member, index=0), state)
    shapes = jax.eval_shape(_train_step(job.algorithm), job.config, job.env, one)[1]
    return jax.tree.map(lambda x: np.zeros((len(job.seeds),), x.dtype), shapes)


def placed_progress(job: Job, progress: Progress) -> Progress:
    """The arrays of a progress, wherever they are, moved to the devices of the job."""
    arrays = (progress.state, progress.metrics)
    if job.mesh is None:
        state, metrics = jax.tree.map(jnp.asarray, arrays)
    else:
        specs = _specs(progress.state, job.mesh)
        state, metrics = _placed(arrays, job.mesh, specs, jax.device_put)
    return progress._replace(state=state, metrics=metrics)


def advance(job: Job, progress: Progress, length: int) -> Progress:
    """`length` train steps further. The arrays given are used up.

    None at all compile the program and change nothing.
    """
    state, metrics = run_population(
        job.algorithm,
        job.config,
        job.env,
        progress.state,
        progress.metrics,
        np.int32(length),
        num_members=len(job.seeds),
        mesh=job.mesh,
    )
    return Progress(state, metrics, progress.iteration + length, progress.seconds)


CALL_SECONDS = 2.0
"""How long the device is left alone, about: a signal is heeded after that time. The result
does not depend on it."""


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
    start: Callable[[Job], tuple[Progress, list[Row]]] | None = None,
    on_chunk: Callable[[Row], None] = lambda row: None,
    stop: Callable[[Row], bool] = lambda row: False,
    between: Callable[[Progress], bool] = lambda progress: False,
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
      num_chunks: how many rows of metrics there are, at most.
      parallel: what is spread over several devices; see `device_mesh`.
      num_devices: how many of them; by default as many as divide the work evenly.
      start: the progress to go on from and the rows so far; by default from the start.
      on_chunk: called with the row of each chunk.
      stop: called with the row of each chunk; True ends the run there.
      between: called before the first train step, after each chunk, and about every
        `CALL_SECONDS` within one; True ends the run there. The arrays it is given are
        used up when it returns: copy what is to be kept.
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
    job = Job(algorithm, config, env, seeds, mesh)
    compiling = time.perf_counter()
    report(
        f"compiling {algorithm.name} on {env.id} for {counted(num_seeds, 'seed')} on "
        f"{counted(1 if mesh is None else mesh.size, 'device')} ..."
    )
    progress, history = (first_progress(job), []) if start is None else start(job)
    # A later call with other floats or another length finds it compiled.
    progress = advance(job, progress, 0)
    jax.block_until_ready(progress.state)
    compile_seconds = time.perf_counter() - compiling
    report(f"compiled and initialised in {compile_seconds:.1f} s")

    started = time.perf_counter() - progress.seconds
    chunk, length = math.ceil(iterations / num_chunks), 1
    ended = between(progress) or bool(history and stop(history[-1]))
    while progress.iteration < iterations and not ended:
        chunk_end = min((progress.iteration // chunk + 1) * chunk, iterations)
        called, length = (
            time.perf_counter(),
            min(length, chunk_end - progress.iteration),
        )
        progress = advance(job, progress, length)
        metrics = jax.device_get(progress.metrics)  # waits for the device
        now = time.perf_counter()
        progress = progress._replace(seconds=now - started)
        length = _next_length(length, now - called)
        if progress.iteration == chunk_end:
            row = _row(plan, progress, history, seeds, metrics)
            history.append(row)
            on_chunk(row)
            ended = stop(row)
            nothing = progress._replace(metrics=no_metrics(job, progress.state))
            progress = placed_progress(job, nothing)
        _check_finite(metrics, plan, progress.iteration, seeds)
        ended = between(progress) or ended
    return Result(
        progress=progress,
        history=history,
        seeds=seeds,
        env_steps=plan.warmup_env_steps + progress.iteration * plan.env_steps,
        compile_seconds=compile_seconds,
    )


def _next_length(length: int, seconds: float) -> int:
    """Train steps of the next call: such that it takes `CALL_SECONDS`, or twice as many."""
    wanted = length * min(2.0, CALL_SECONDS / max(seconds, 1e-9))
    return max(1, min(int(wanted), MAX_INT))


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
    progress: Progress,
    history: list[Row],
    seeds: list[int],
    metrics: Metrics,
) -> Row:
    """The row of the chunk that has just ended."""
    before = history[-1] if history else {"iteration": 0, "seconds": 0.0}
    done, seconds = progress.iteration, progress.seconds
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


def _check_finite(
    metrics: Metrics, plan: Plan, iteration: int, seeds: list[int]
) -> None:
    env_steps = plan.warmup_env_steps + iteration * plan.env_steps
    for name, metric in metrics.items():
        for seed, value in zip(seeds, metric.sum, strict=True):
            if not np.isfinite(value):
                raise NonFiniteError(
                    f"{name} became {value} within the chunk that ended at train step "
                    f"{iteration} ({env_steps} environment steps) of seed {seed}: try a "
                    f"smaller learning_rate or max_grad_norm."
                )
