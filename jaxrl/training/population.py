"""A population of agents as one compiled program, on one device or several.

`run_chunk` trains one agent, `run_population` many of them: side by side, in groups that
fit the cache, and spread over the devices of `device_mesh`. Pure functions; the host loop
that calls them is `jaxrl.training.loop`.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl.core import config as configs
from jaxrl.core import distributed
from jaxrl.core.parallel import AXIS, partition, total
from jaxrl.core.variants import Values, with_values
from jaxrl.errors import count_noun, require
from jaxrl.types import (
    BAD_OBS,
    BAD_REWARD,
    Algorithm,
    Array,
    Env,
    Mean,
    Metrics,
    Plan,
    PyTree,
    Shared,
    World,
)


class Tally(NamedTuple):
    """What is added up over the train steps of an agent; of a population `[K, ...]`."""

    metrics: Metrics
    fine: Array  # bool [W]: what of `watched_names` has been finite all the time
    good: Array  # int32 [W]: for how many train steps of the last call it was


SCORE = "reward/score"
"""The metric that holds the rewards of an algorithm without an environment."""


def watched_names(metrics: Iterable[str]) -> list[str]:
    """The names of what must stay finite, causes before their effects: W of them."""
    return ["observation", "reward", *in_order(metrics), "parameter"]


def in_order(metrics: Iterable[str]) -> list[str]:
    """The names of metrics sorted, but what causes others to be NaN is first."""
    return sorted(metrics, key=lambda name: (name != SCORE, name))


@cache
def traced_once(function: Callable) -> Callable:
    """The same function, traced once for all that ask for its shapes or call it."""
    return jax.jit(function)


def run_chunk(
    algorithm: Algorithm, config: Any, env: Env, state: PyTree, length: int | Array
) -> tuple[PyTree, Metrics]:
    """`length` train steps of one agent; metrics are added up over them.

    `length` may be traced, so that one program serves every chunk, also a last one that
    is shorter. Pure: compose it with `jit`, `vmap` and `shard_map` as you like.
    """
    tally = no_tally(algorithm, config, env, state)
    state, tally = go_on(algorithm, config, env, state, tally, length, freeze=False)
    return state, tally.metrics


def go_on(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    state: PyTree,
    tally: Tally,
    length: int | Array,
    freeze: bool,
) -> tuple[PyTree, Tally]:
    """As `run_chunk`, adding to the tally of the train steps before.

    So the sums do not depend on where a run was cut. With `freeze`, an agent of which
    something is no longer finite stays what it was before that train step, and so do its
    metrics; the parameters are then looked at after every train step, and otherwise once
    at the end.
    """
    step = traced_once(algorithm.train_step)
    names = in_order(tally.metrics)

    def body(_: Array, carry: tuple) -> tuple:
        before, sums, fine, good = carry
        state, metrics = step(config, env, before)
        # One vector: in the body of a loop the operations count. They are sums and
        # counts, and add up over devices as they do over time.
        now = total(jnp.stack([*_trouble(state.world), *_numbers(metrics, names)]))
        finite = jnp.isfinite(now[2 : 2 + len(names)])
        whole = _finite(state.agent) if freeze else jnp.bool_(True)
        fine &= jnp.concatenate([now[:2] == 0, finite, whole[None]])
        after = sums + now[2:]
        if freeze:
            after = jnp.where(fine.all(), after, sums)
            agent = _chosen(fine.all(), state.agent, before.agent)
            state = state.replace(agent=agent)
        return state, after, fine, good + fine

    carry = (
        state,
        jnp.stack(_numbers(tally.metrics, names)),
        tally.fine,
        jnp.zeros_like(tally.good),
    )
    state, sums, fine, good = jax.lax.fori_loop(0, length, body, carry)
    if not freeze:
        broken = fine[-1] & ~_finite(state.agent)
        fine, good = (
            fine.at[-1].set(~broken),
            good.at[-1].add(-broken.astype(jnp.int32)),
        )
    means = zip(names, sums, sums[len(names) :], strict=False)
    return state, Tally({name: Mean(s, n) for name, s, n in means}, fine, good)


def no_tally(algorithm: Algorithm, config: Any, env: Env, state: PyTree) -> Tally:
    """The tally of no train steps, for one agent."""
    step = traced_once(algorithm.train_step)
    shapes = jax.eval_shape(step, config, env, state)[1]
    number = len(watched_names(shapes))
    return Tally(
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
        jnp.ones(number, bool),
        jnp.zeros(number, jnp.int32),
    )


def _trouble(world: World | None) -> list[Array]:
    """How many environments have had a bad observation, and how many a bad reward."""
    if world is None:
        return [jnp.float32(0.0), jnp.float32(0.0)]
    return [
        ((world.trouble & bit) > 0).sum(dtype=jnp.float32)
        for bit in (BAD_OBS, BAD_REWARD)
    ]


def _numbers(metrics: Metrics, names: list[str]) -> list[Array]:
    """All sums, then all counts."""
    return [metrics[name].sum for name in names] + [
        metrics[name].count for name in names
    ]


def _finite(tree: PyTree) -> Array:
    """Whether every number is."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()


def _chosen(condition: Array, x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)


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
    """The devices that a run uses, of all processes; None for one.

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
    require(
        parallel != "data" or plan.shares > 1,
        "parallel = data, but nothing of an agent of this run can be spread over devices "
        "(what learns from replay cannot, nor what has one environment): try parallel = "
        "members, with several seeds.",
    )
    work = plan.shares if by_data else num_members
    devices = jax.devices()
    if distributed.several():
        require(
            num_devices in (None, len(devices)) and work % len(devices) == 0,
            f"num_devices = {num_devices}: a run of {jax.process_count()} processes uses "
            f"all of their {len(devices)} devices, which must divide the {work} "
            f"{_parts(by_data)} of this run.",
        )
        count = len(devices)
    elif num_devices is None:
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
    require(
        wanted <= available,
        f"num_devices = {wanted}, but JAX sees {count_noun(available, 'device')} here.",
    )
    nearest = max(n for n in range(1, wanted + 1) if work % n == 0)
    require(
        work % wanted == 0,
        f"num_devices = {wanted} must divide the {work} {_parts(by_data)} of this run: "
        f"try {nearest}.",
    )
    return wanted


def _parts(by_data: bool) -> str:
    return "shares (environments and rows of a minibatch)" if by_data else "agents"


@partial(jax.jit, static_argnames=("algorithm", "mesh"))
def init_population(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    values: Values,
    keys: Array,
    mesh: Mesh | None = None,
) -> PyTree:
    """One initial state for each key `[K]`; `Shared` nodes have no axis of members.

    `values` are what the members have of their own in config and environment `[K, ...]`.
    """
    one = traced_once(algorithm.init)
    axes = _member_axes(jax.eval_shape(one, config, env, keys[0]))

    def init(config: Any, env: Env, values: Values, keys: Array) -> PyTree:
        def begin(values: Values, key: Array) -> PyTree:
            return one(*with_values(config, env, values), key)

        if len(keys) == 1:
            return _add_axis(begin(_squeezed(values), keys[0]), axes)
        return jax.vmap(begin, out_axes=axes)(values, keys)

    if mesh is None:
        return init(config, env, values, keys)
    if AXIS in mesh.axis_names:
        state = init(config, env, values, keys)
        constrain = jax.lax.with_sharding_constraint
        return place(state, mesh, partition(state), constrain)
    everywhere, own = PartitionSpec(), PartitionSpec(MEMBERS)
    specs = (everywhere, everywhere, own, own)
    return _spread(init, mesh, specs, _member_specs(axes))(config, env, values, keys)


@partial(
    jax.jit,
    static_argnames=("algorithm", "num_members", "mesh", "freeze"),
    donate_argnames=("state", "tally"),
)
def run_population(
    algorithm: Algorithm,
    config: Any,
    env: Env,
    values: Values,
    state: PyTree,
    tally: Tally,
    length: Array,
    num_members: int,
    mesh: Mesh | None = None,
    freeze: bool = False,
) -> tuple[PyTree, Tally]:
    """`go_on` for every member. A single member runs without a batch axis.

    `values` are what the members have of their own in config and environment `[K, ...]`.
    With a mesh from `device_mesh` the members, or the environments of each, are spread
    over its devices.
    """
    axes = _member_axes(state)
    groups = mesh.size if mesh is not None and MEMBERS in mesh.axis_names else 1

    def run(
        config: Any,
        env: Env,
        values: Values,
        state: PyTree,
        tally: Tally,
        length: Array,
    ) -> tuple[PyTree, Tally]:
        def chunk(
            values: Values, state: PyTree, tally: Tally, length: Array
        ) -> tuple[PyTree, Tally]:
            own = with_values(config, env, values)
            return go_on(algorithm, *own, state, tally, length, freeze)

        if num_members == groups:
            own = (_squeezed(values), _drop_axis(state, axes), _squeezed(tally))
            state, tally = chunk(*own, length)
            return _add_axis(state, axes), jax.tree.map(lambda x: x[None], tally)
        count = num_groups(state, num_members // groups)
        return _in_groups(chunk, values, state, tally, length, axes, count)

    if mesh is None:
        return run(config, env, values, state, tally, length)
    everywhere = PartitionSpec()
    specs = population_specs(state, mesh)
    in_specs = (everywhere, everywhere, member_spec(mesh), *specs, everywhere)
    spread = _spread(run, mesh, in_specs, specs)
    return spread(config, env, values, state, tally, length)


def population_specs(state: PyTree, mesh: Mesh) -> tuple[PyTree, PartitionSpec]:
    """Where a population's state and its tally lie."""
    if AXIS in mesh.axis_names:
        return partition(state), member_spec(mesh)
    return _member_specs(_member_axes(state)), member_spec(mesh)


def member_spec(mesh: Mesh) -> PartitionSpec:
    """Where an array lies that has an axis of members and is no part of a state."""
    return PartitionSpec() if AXIS in mesh.axis_names else PartitionSpec(MEMBERS)


GROUP = 8
"""Members that run side by side on a CPU device: the work of more does not fit its cache
(`benchmarks/tricks.py` compares it with all at once)."""

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
    chunk: Callable,
    values: Values,
    state: PyTree,
    tally: Tally,
    length: Array,
    axes: PyTree,
    count: int,
) -> tuple[PyTree, Tally]:
    """`chunk` for every member: side by side in each group, one group after another."""
    vmapped = jax.vmap(chunk, in_axes=(0, axes, 0, None), out_axes=(axes, 0))
    if count == 1:
        return vmapped(values, state, tally, length)

    def divide(x: Array) -> Array:
        return x.reshape(count, -1, *x.shape[1:])

    def join(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])

    def run(i: Array, carry: tuple) -> tuple:
        groups, tallies, _ = carry
        own, members, tally = jax.tree.map(lambda x: x[i], (values, groups, tallies))
        members = _per_member(axes, members, shared=state)
        after, tally = vmapped(own, members, tally, length)
        mine = (_per_member(axes, after, shared=None), tally)
        put = partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        groups, tallies = jax.tree.map(put, (groups, tallies), mine)
        # What is shared ends in every group where it ends in the first.
        return groups, tallies, _shared(axes, after)

    # In place, group by group: a `map` would hold every member twice.
    groups = _per_member(axes, _map_members(divide, axes, state), shared=None)
    values, tally = jax.tree.map(divide, (values, tally))
    carry = (groups, tally, _shared(axes, state))
    groups, tally, shared = jax.lax.fori_loop(0, count, run, carry)
    after = _map_members(join, axes, _per_member(axes, groups, shared))
    return after, jax.tree.map(join, tally)


def _shared(axes: PyTree, state: PyTree) -> PyTree:
    """The `Shared` nodes of a state, and nothing in the place of all else."""
    return jax.tree.map(
        lambda axis, x: x if axis is None else (),
        axes,
        state,
        is_leaf=lambda x: x is None,
    )


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


def place(tree: PyTree, mesh: Mesh, specs: PyTree, put: Callable) -> PyTree:
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


def member(state: PyTree, index: int | np.ndarray | Array) -> PyTree:
    """One member of a population's state or agent; of several indices, a population."""
    return _map_members(lambda x: x[index], _member_axes(state), state)


def join_members(states: Sequence[PyTree]) -> PyTree:
    """Several populations as one; what is `Shared` must be equal in all."""
    first, *others = states
    if not others:
        return first
    axes = _member_axes(first)
    return jax.tree.map(
        lambda axis, x, *more: (
            x
            if axis is None
            else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), x, *more)
        ),
        axes,
        first,
        *others,
        is_leaf=lambda x: x is None,
    )


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


def _squeezed(tree: PyTree) -> PyTree:
    """Of one member, without the axis."""
    return jax.tree.map(lambda x: jnp.squeeze(x, 0), tree)


def _add_axis(state: PyTree, axes: PyTree) -> PyTree:
    return _map_members(lambda x: jnp.expand_dims(x, 0), axes, state)


def _drop_axis(state: PyTree, axes: PyTree) -> PyTree:
    # A reshape and not `x[0]`, which would copy a replay memory.
    return _map_members(lambda x: jnp.squeeze(x, 0), axes, state)
