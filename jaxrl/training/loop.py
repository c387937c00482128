"""The host loop: from an algorithm to a trained population.

`resolve` checks and plans a `Job`, `run` trains it, `train` does both. The compiled core of
`jaxrl.training.population` is called again and again, and between the calls the host may
log, stop or save. Nothing on the device ever calls the host, so a run in
pieces equals one big program bit for bit.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrl import spaces
from jaxrl.core import config as configs
from jaxrl.core import distributed, prng
from jaxrl.core.variants import Values, Variant, described, stacked
from jaxrl.envs.check import require_types
from jaxrl.envs.problem import problem_of
from jaxrl.errors import count_noun, require
from jaxrl.training import footprint
from jaxrl.training.population import (
    SCORE,
    Parallel,
    Tally,
    device_mesh,
    init_population,
    join_members,
    member,
    member_spec,
    no_tally,
    place,
    population_specs,
    run_population,
    watched_names,
)
from jaxrl.training.warm_start import Initial, read_initial, with_initial
from jaxrl.types import (
    BAD_OBS,
    BAD_REWARD,
    Algorithm,
    Array,
    Env,
    Metrics,
    Plan,
    PyTree,
    Row,
)

OnNan = Literal["stop", "continue"]


class NonFiniteError(ArithmeticError):
    """Something became NaN or infinite; the message says what, when and for which seed."""


class Job(NamedTuple):
    """A population to train, resolved: all is checked, nothing is compiled."""

    algorithm: Algorithm
    config: Any
    env: Env
    values: Values  # what the members have of their own, at the start
    seeds: list[int]  # of each member
    mesh: Mesh | None  # the devices; None for one
    plan: Plan  # of each member
    iterations: int  # train steps
    freeze: bool = False  # broken agents, and go on with the others
    initial: Initial | None = None  # what the agents begin with; None: as `init` says

    @property
    def env_steps(self) -> int:
        """Environment steps of each member, warm-up included."""
        return self.steps_after(self.iterations)

    def steps_after(self, iteration: int) -> int:
        """Environment steps of each member after so many train steps."""
        return self.plan.warmup_env_steps + iteration * self.plan.env_steps


class Progress(NamedTuple):
    """How far a job is: all that is needed to go on exactly. Arrays are `[K, ...]`."""

    state: PyTree
    tally: Tally  # metrics added up since the last row, and what is finite
    broken: np.ndarray  # int64 [K, 2]: train step (0: whole), index in `watched_names`
    values: Values  # what the members have of their own in config and environment
    iteration: int  # train steps done
    seconds: float  # that training has taken


class Result(NamedTuple):
    """What `train` returns. Arrays of `state` have a leading axis of seeds `[K]`."""

    progress: Progress
    history: list[Row]
    seeds: list[int]  # of each member
    env_steps: int  # for each member, warm-up included
    compile_seconds: float  # and running `init`
    broken: dict[int, str]  # by member: what became NaN or infinite, and when

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
        agent = self.state.agent
        if distributed.several():
            agent = distributed.device_get(agent)
        return jax.device_put(agent, jax.local_devices()[0])


Adapt = Callable[[Job, Progress, list[Row], bool], tuple[Progress, Row]]
"""`(job, progress, rows so far, whether it is the end) ->` the progress to go on from, and
columns that are added to the last row."""


Start = Callable[[Job], tuple[Progress, list[Row]]]
"""Where a run begins, if not at its beginning: the progress, and the rows so far."""


def num_iterations(plan: Plan, total_steps: float) -> int:
    """Train steps that reach `total_steps`, at least one: the next whole number."""
    return max(1, math.ceil((total_steps - plan.warmup_env_steps) / plan.env_steps))


def prepare(algorithm: Algorithm, config: Any, env: Env) -> Plan:
    """Check config and environment; return what the run will do.

    Raises:
      InvalidInput: before anything compiles.
    """
    check_config(algorithm, config)
    configs.check(config)
    for name, value in vars(config).items():
        require(
            np.ndim(value) == 0 or isinstance(value, tuple),
            f"{name} is an array, and a config has one number: give `train` a list of "
            f"configs, or sweep with jax.vmap over `run_chunk`.",
        )
    require(
        algorithm.teacher in ("", "policy") or env.teacher is not None,
        f"{algorithm.teacher} is missing: {algorithm.name} learns from it, give "
        f"--{algorithm.teacher}, or env.replace(teacher=...).",
    )
    if problem_of(algorithm).returns is None:  # it acts in an environment
        spaces.check(env.observation_space, f"observation_space of {env.id}")
        spaces.check_actions(env.action_space, f"action_space of {env.id}")
    algorithm.validate(config, env)
    if problem_of(algorithm).returns is None:
        require_types(env)
    plan = algorithm.plan(config, env)
    for name in ("env_steps", "updates", "warmup_env_steps"):
        count = getattr(plan, name)
        require(
            count <= configs.MAX_INT,
            f"a train step of this config has {name} = {count:,}, and 32 bits hold "
            f"{configs.MAX_INT:,}: reduce num_envs, or the steps of an update.",
        )
    return plan._replace(shares=1) if _on_host(env) else plan


def check_config(algorithm: Algorithm, config: Any) -> None:
    """Refuse what is no config of the algorithm."""
    require(
        isinstance(config, algorithm.Config),
        f"config is a {type(config).__module__}.{type(config).__name__}: {algorithm.name} "
        f"needs its own Config.",
    )


def check_host(
    env: Any, num_members: int, parallel: Parallel, num_devices: int | None
) -> None:
    """Refuse more than one agent on one device, where the environment is on the host."""
    require(
        not _on_host(env) or (num_members == 1 and not distributed.several()),
        f"num_seeds, or settings: {num_members} agents cannot be trained together in "
        f"{env.id}, which is stepped on the host: train one at a time, in one process.",
    )
    require(
        not _on_host(env) or (parallel != "data" and num_devices in (None, 1)),
        f"parallel = {parallel}, num_devices = {num_devices}: {env.id} is stepped on the "
        f"host and cannot be spread over devices, leave both out.",
    )


def _on_host(env: Any) -> bool:
    """Of a task that takes the place of an environment: no."""
    return bool(getattr(env, "on_host", False))


def first_progress(job: Job) -> Progress:
    """A job that has been initialised and has not begun."""
    values = _with_members(job, job.values)
    seeds = _with_members(job, keys(job.seeds))
    state = init_population(job.algorithm, job.config, job.env, values, seeds, job.mesh)
    if job.initial is not None:
        state = state.replace(agent=with_initial(state.agent, job.initial))
    return placed_progress(job, _beginning(job, state))


def progress_shapes(job: Job) -> Progress:
    """The shapes of `first_progress`; nothing runs."""
    return _beginning(job, state_shapes(job))


def state_shapes(job: Job) -> PyTree:
    """The shapes of the state of a population; nothing runs."""
    init = partial(init_population, job.algorithm, job.config, job.env)
    seeds = jax.eval_shape(lambda: keys(job.seeds))
    return jax.eval_shape(init, job.values, seeds)


def _beginning(job: Job, state: PyTree) -> Progress:
    broken = np.zeros((len(job.seeds), 2), np.int64)
    return Progress(state, _empty_tally(job, state), broken, job.values, 0, 0.0)


def _empty_tally(job: Job, state: PyTree) -> Tally:
    """Of the whole population `[K, ...]`, on the host."""
    one = jax.eval_shape(partial(member, index=0), state)
    tally = no_tally(job.algorithm, job.config, job.env, one)
    return jax.tree.map(lambda x: np.stack([x] * len(job.seeds)), tally)


def placed_progress(job: Job, progress: Progress) -> Progress:
    """The arrays of a progress, wherever they are, moved to the devices of the job."""
    values = _with_members(job, progress.values)
    arrays = (progress.state, progress.tally)
    if job.mesh is None:
        state, tally = jax.tree.map(jnp.asarray, arrays)
    else:
        specs = population_specs(progress.state, job.mesh)
        state, tally = place(arrays, job.mesh, specs, distributed.put)
    return progress._replace(values=values, state=state, tally=tally)


def _with_members(job: Job, arrays: PyTree) -> PyTree:
    """Arrays `[K, ...]`, each part where its member is."""
    if job.mesh is None:
        return jax.tree.map(jnp.asarray, arrays)
    return place(arrays, job.mesh, member_spec(job.mesh), distributed.put)


def advance(job: Job, progress: Progress, length: int) -> Progress:
    """`length` train steps further. The arrays given are used up.

    None at all compile the program and change nothing.
    """
    state, tally = run_population(
        job.algorithm,
        job.config,
        job.env,
        progress.values,
        progress.state,
        progress.tally,
        np.int32(length),
        num_members=len(job.seeds),
        mesh=job.mesh,
        freeze=job.freeze,
    )
    iteration = progress.iteration + length
    return progress._replace(state=state, tally=tally, iteration=iteration)


CALL_SECONDS = 2.0
"""How long the device is left alone, about: a signal is heeded after that time. The result
does not depend on it."""


NUM_CHUNKS = 100


def chunk_length(iterations: int, num_chunks: int = NUM_CHUNKS) -> int:
    """Train steps of each row of metrics; the last one may have fewer."""
    return math.ceil(iterations / num_chunks)


def train(
    algorithm: Algorithm,
    config: Any | Sequence[Any],
    env: Env | Sequence[Env],
    *,
    seed: int = 0,
    num_seeds: int = 1,
    traced: Sequence[str] = (),
    iterations: int | None = None,
    num_chunks: int = NUM_CHUNKS,
    parallel: Parallel = "auto",
    num_devices: int | None = None,
    start: Start | None = None,
    on_chunk: Callable[[Row], None] = lambda row: None,
    stop: Callable[[Row], bool] = lambda row: False,
    between: Callable[[Progress], bool] = lambda progress: False,
    adapt: Adapt | None = None,
    on_nan: OnNan = "stop",
    init_from: Path | str | None = None,
    init_optimizer: bool = False,
    init_agent: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Result:
    """Train `num_seeds` agents in one program, with seeds `seed, seed + 1, ...`

    Args:
      algorithm: for example `jaxrl.PPO`.
      config: its `Config`; `config.total_steps` is for each agent. Or a list of them that
        differ only in numbers: with each of these S settings `num_seeds` agents are
        trained, K = S · num_seeds in all, those of one setting next to each other.
      env: from `jaxrl.make`. Or a list of S that differ only in numbers.
      seed: the first seed.
      num_seeds: how many agents of each setting.
      traced: numbers that are data of each agent even if all settings agree on them, such
        as "config/learning_rate", so that another list of settings is the same program.
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
      adapt: changes the population after each chunk (see `jaxrl.training.pbt`).
      on_nan: what happens when something of an agent becomes NaN or infinite. "stop" ends
        the run; "continue" leaves that agent as it was before that train step, reports
        it, and goes on with the others.
      init_from: a run folder whose agents these begin as: all that its artefact holds of
        them, parameters and statistics of normalisers among it, but the state of the
        optimiser, which is new. It may have been trained on another environment with
        spaces that fit. If it has as many agents as this run, each begins as its own,
        otherwise all as its first.
      init_optimizer: whether the state of the optimiser is taken over too.
      init_agent: the place of one agent of `init_from`, as which all begin.
      report: called with lines for a person: what is being compiled, how long it took.

    Raises:
      InvalidInput: bad config or environment, before anything compiles.
      NonFiniteError: an observation, a reward, a metric, a gradient or a parameter became
        NaN or infinite; with "continue", of every agent.
    """
    job = resolve(
        algorithm,
        config,
        env,
        seed=seed,
        num_seeds=num_seeds,
        traced=traced,
        iterations=iterations,
        parallel=parallel,
        num_devices=num_devices,
        on_nan=on_nan,
        init_from=init_from,
        init_optimizer=init_optimizer,
        init_agent=init_agent,
    )
    return run(
        job,
        num_chunks=num_chunks,
        start=start,
        on_chunk=on_chunk,
        stop=stop,
        between=between,
        adapt=adapt,
        report=report,
    )


def run(
    job: Job,
    *,
    num_chunks: int = NUM_CHUNKS,
    start: Start | None = None,
    on_chunk: Callable[[Row], None] = lambda row: None,
    stop: Callable[[Row], bool] = lambda row: False,
    between: Callable[[Progress], bool] = lambda progress: False,
    adapt: Adapt | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Result:
    """Train the population of a job; arguments and errors are those of `train`."""
    configs.check_value("num_chunks", int, num_chunks, low=1)
    iterations = job.iterations
    progress, history, compile_seconds = _begin(job, start, report)
    started = time.perf_counter() - progress.seconds
    chunk, length = chunk_length(iterations, num_chunks), 1
    ended = distributed.any_of(between(progress)) or bool(history and stop(history[-1]))
    while progress.iteration < iterations and not ended:
        chunk_end = min((progress.iteration // chunk + 1) * chunk, iterations)
        called = time.perf_counter()
        length = min(length, chunk_end - progress.iteration)
        progress = advance(job, progress, length)
        tally = distributed.device_get(progress.tally)  # waits for the device
        now = time.perf_counter()
        progress = progress._replace(seconds=now - started)
        progress = _look_for_trouble(job, progress, tally, length, report)
        length = distributed.broadcast(_next_length(length, now - called))
        if progress.iteration == chunk_end:
            history.append(_row(job, progress, history, tally.metrics))
            nothing = jax.tree.map(np.zeros_like, tally.metrics)
            emptied = progress._replace(tally=tally._replace(metrics=nothing))
            progress = placed_progress(job, emptied)
            if adapt is not None:
                last = progress.iteration == iterations
                progress, columns = adapt(job, progress, history, last)
                history[-1] |= columns
            on_chunk(history[-1])
            ended = stop(history[-1])
        _stop_at_trouble(job, progress)
        ended = distributed.any_of(between(progress)) or ended
    return Result(
        progress=progress,
        history=history,
        seeds=job.seeds,
        env_steps=job.steps_after(progress.iteration),
        compile_seconds=compile_seconds,
        broken={
            int(k): describe_trouble(job, progress, int(k))
            for k in np.flatnonzero(progress.broken[:, 0])
        },
    )


def _begin(
    job: Job,
    start: Start | None,
    report: Callable[[str], None],
) -> tuple[Progress, list[Row], float]:
    """Progress and rows to begin with, and the seconds that compiling took."""
    compiling = time.perf_counter()
    report(
        f"compiling {job.algorithm.name} on {job.env.id} for "
        f"{count_noun(len(job.seeds), 'agent')} on "
        f"{count_noun(1 if job.mesh is None else job.mesh.size, 'device')} ..."
    )
    progress, history = (first_progress(job), []) if start is None else start(job)
    # A later call with other floats or another length finds it compiled.
    progress = advance(job, progress, 0)
    jax.block_until_ready(progress.state)
    seconds = time.perf_counter() - compiling
    report(f"compiled and initialised in {seconds:.1f} s")
    return progress, history, seconds


def resolve(
    algorithm: Algorithm,
    config: Any | Sequence[Any],
    env: Env | Sequence[Env],
    *,
    seed: int = 0,
    num_seeds: int = 1,
    traced: Sequence[str] = (),
    iterations: int | None = None,
    parallel: Parallel = "auto",
    num_devices: int | None = None,
    on_nan: OnNan = "stop",
    init_from: Path | str | None = None,
    init_optimizer: bool = False,
    init_agent: int | None = None,
) -> Job:
    """The job of `train` with these arguments: checked, planned and given its devices.

    Raises:
      InvalidInput: bad config or environment, before anything compiles.
    """
    variants = as_variants(config, env)
    for variant in variants:
        plan = prepare(algorithm, *variant)
    configs.check_value("on_nan", OnNan, on_nan)
    seeds = check_seeds(seed, num_seeds)
    num_members = len(seeds) * len(variants)
    check_host(variants[0][1], num_members, parallel, num_devices)
    mesh = device_mesh(plan, num_members, parallel, num_devices)
    config, env, values = stacked(variants, traced)
    if iterations is None:
        iterations = common_iterations(plan, variants)
    configs.check_value("iterations", int, iterations, low=1)
    footprint.check(algorithm, config, env, plan, num_members)
    job = Job(
        algorithm,
        config,
        env,
        values={name: jnp.repeat(x, num_seeds, axis=0) for name, x in values.items()},
        seeds=[*seeds] * len(variants),
        mesh=mesh,
        plan=plan,
        iterations=iterations,
        freeze=on_nan == "continue",
    )
    require(
        init_from is not None or (init_agent is None and not init_optimizer),
        f"init_agent = {init_agent}, init_optimizer = {init_optimizer}: give init_from, "
        f"the run to begin with, too.",
    )
    if init_from is None:
        return job
    initial = read_initial(
        init_from, state_shapes(job).agent, num_seeds, init_optimizer, init_agent
    )
    return job._replace(initial=initial)


def inherit(
    job: Job, parts: Sequence[tuple[Progress, list[Row], list[int]]]
) -> tuple[Progress, list[Row]]:
    """The beginning of a job whose agents were trained in other jobs before.

    Args:
      job: that is to go on with them.
      parts: of each job before the progress, its rows, and which of its agents go on.

    Returns:
      Their progress, which never leaves the devices, and their rows.
    """

    progresses = [progress for progress, _, _ in parts]
    taken = [(progress, np.array(places)) for progress, _, places in parts]
    tallies = [jax.tree.map(lambda x, k=k: x[k], p.tally) for p, k in taken]
    rows = [
        select_members(
            [(row, k) for row, (_, _, k) in zip(together, parts, strict=True)]
        )
        for together in zip(*(history for _, history, _ in parts), strict=True)
    ]
    progress = Progress(
        values=job.values,
        state=join_members([member(p.state, k) for p, k in taken]),
        tally=jax.tree.map(lambda *x: jnp.concatenate(x), *tallies),
        broken=np.concatenate([p.broken[k] for p, k in taken]),
        iteration=progresses[0].iteration,
        seconds=max(p.seconds for p in progresses),
    )
    return placed_progress(job, progress), rows


def select_members(parts: Sequence[tuple[Row, list[int]]]) -> Row:
    """One row of some agents of several jobs."""
    row = dict(parts[0][0])
    for name, value in row.items():
        if isinstance(value, list):
            row[name] = [part[name][k] for part, places in parts for k in places]
    return row


def _next_length(length: int, seconds: float) -> int:
    """Train steps of the next call: such that it takes `CALL_SECONDS`, or twice as many."""
    wanted = length * min(2.0, CALL_SECONDS / max(seconds, 1e-9))
    return max(1, min(int(wanted), configs.MAX_INT))


def as_variants(config: Any | Sequence[Any], env: Env | Sequence[Env]) -> list[Variant]:
    """The pairs of configs and environments, of which one may be for all.

    Raises:
      InvalidInput: the lists are empty, or of different lengths.
    """
    several = {len(x) for x in (config, env) if isinstance(x, list | tuple)}
    require(
        len(several) <= 1 and 0 not in several,
        f"config and env are lists of {' and '.join(map(str, sorted(several)))}: give "
        f"lists of one length, and not empty.",
    )
    count = max(several, default=1)
    pairs = [x if isinstance(x, list | tuple) else [x] * count for x in (config, env)]
    return [
        (configs.with_floats(one) if dataclasses.is_dataclass(one) else one, of)
        for one, of in zip(*pairs, strict=True)
    ]


def common_iterations(plan: Plan, variants: Sequence[Variant]) -> int:
    """The train steps of every variant.

    Raises:
      InvalidInput: they need different numbers.
    """
    needed = {num_iterations(plan, config.total_steps) for config, _ in variants}
    require(
        len(needed) == 1,
        f"total_steps differ between the settings, which then need {sorted(needed)} "
        f"train steps: train them apart, or give iterations.",
    )
    return needed.pop()


def check_seeds(seed: int, num_seeds: int) -> range:
    """`seed, seed + 1, ...`; `InvalidInput` unless `jax.random.key` takes them all."""
    configs.check_value("seed", int, seed, low=0, high=configs.MAX_INT)
    configs.check_value(
        "num_seeds", int, num_seeds, low=1, high=configs.MAX_INT - seed + 1
    )
    return range(seed, seed + num_seeds)


def keys(seeds: Sequence[int]) -> Array:
    return jnp.stack([prng.key(seed) for seed in seeds])


def _row(
    job: Job,
    progress: Progress,
    history: list[Row],
    metrics: Metrics,
) -> Row:
    """The row of the chunk that has just ended."""
    before = history[-1] if history else {"iteration": 0, "seconds": 0.0}
    done, seconds = progress.iteration, progress.seconds
    new_steps = len(progress.broken) * (done - before["iteration"]) * job.plan.env_steps
    return {
        "iteration": done,
        "env_steps": job.steps_after(done),
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


def _look_for_trouble(
    job: Job,
    progress: Progress,
    tally: Tally,
    length: int,
    report: Callable[[str], None],
) -> Progress:
    """Write down which agents broke in the last `length` train steps, and report it."""
    broken = progress.broken.copy()
    for k in np.flatnonzero((broken[:, 0] == 0) & ~tally.fine.all(axis=1)):
        # The first that was no longer finite; at the same train step causes come first.
        cause = int(np.argmin(np.where(tally.fine[k], configs.MAX_INT, tally.good[k])))
        broken[k] = progress.iteration - length + tally.good[k, cause] + 1, cause
        if job.freeze:
            line = describe_trouble(job, progress._replace(broken=broken), int(k))
            report(f"{line} It is left as it was; the others go on.")
    return progress._replace(broken=broken)


def _stop_at_trouble(job: Job, progress: Progress) -> None:
    """Raise if there is nothing to go on with."""
    broken = np.flatnonzero(progress.broken[:, 0])
    if len(broken) > (len(job.seeds) - 1 if job.freeze else 0):
        first = broken[np.argmin(progress.broken[broken, 0])]
        raise NonFiniteError(describe_trouble(job, progress, int(first)))


def describe_trouble(job: Job, progress: Progress, index: int) -> str:
    """What of one agent became NaN or infinite, and when: a sentence with a remedy."""
    step, cause = (int(x) for x in progress.broken[index])
    name = watched_names(progress.tally.metrics)[cause]
    where, remedy = "", "try a smaller learning_rate or max_grad_norm"
    if name in ("observation", "reward", SCORE):
        remedy = problem_of(job.algorithm).remedy(job.env)
    if name in ("observation", "reward"):
        bit = {"observation": BAD_OBS, "reward": BAD_REWARD}[name]
        trouble = distributed.device_get(progress.state.world.trouble)[index]
        where = f" of environment {np.flatnonzero(trouble & bit)[0]}"
    name = "reward" if name == SCORE else name
    values = described(progress.values, index)
    who = f"seed {job.seeds[index]}" + (f" with {values}" if values else "")
    return (
        f"{name}{where} became NaN or infinite at train step {step} of {who}: {remedy}."
    )
