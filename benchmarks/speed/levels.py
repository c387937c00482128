"""Parts of a training program, each measured alone.

E, the environment with a random policy; I, with the policy network; and the limit: the
gradients and the forward passes of a configuration and nothing else: no
environment, no sampling, no optimiser, in the fastest arrangement of those tried here.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxrl import networks, optim, spaces
from jaxrl.acting import in_blocks
from jaxrl.algorithms import (
    ALGORITHMS,
    bellman,
    critics,
    dqn,
    off_policy,
    ppo,
    sac,
    td3,
)
from jaxrl.core.prng import key
from jaxrl.replay import ring, transitions
from jaxrl.rollout import init_world, unroll
from jaxrl.types import Array, Env, PyTree

AXIS = "rows"


def median_seconds(
    function: Callable[[PyTree], PyTree], x: PyTree, least: float, repeats: int = 3
) -> float:
    """Median seconds of a compiled call; each repeat runs for at least `least` seconds."""
    jax.block_until_ready(function(x))
    started = time.perf_counter()
    jax.block_until_ready(function(x))
    calls = max(1, round(least / max(time.perf_counter() - started, 1e-7)))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(calls):
            y = function(x)
        jax.block_until_ready(y)
        seconds.append((time.perf_counter() - started) / calls)
    return statistics.median(seconds)


def random_actions(env: Env, rng: Array, shape: tuple[int, int]) -> Array:
    """Uniform actions `[*shape, ...]`, drawn before the loop."""
    return spaces.sample(env.action_space, rng, shape)


def environment_only(env: Env, num_envs: int, num_steps: int, least: float) -> float:
    """E: environment steps per second with random actions; no transition is kept."""

    def steps(world: Any) -> Any:
        world, _, stats = unroll(
            env,
            lambda obs, memory, action: (action, memory, {}),
            world,
            num_steps,
            partial(random_actions, env),
        )
        return world, stats

    world = jax.jit(partial(init_world, env, num_envs=num_envs))(key(0))
    return num_envs * num_steps / median_seconds(jax.jit(steps), world, least)


def gymnax_own(env_id: str, num_envs: int, num_steps: int, least: float) -> float:
    """E of gymnax: its `step` under `vmap`, with a key for each environment."""
    import gymnax

    env, params = gymnax.make(env_id)

    def steps(carry: tuple) -> tuple:
        def step(carry: tuple, _: None) -> tuple:
            rng, state, total = carry
            rng, key_action, key_step = jax.random.split(rng, 3)
            actions = jax.vmap(env.action_space(params).sample)(
                jax.random.split(key_action, num_envs)
            )
            keys = jax.random.split(key_step, num_envs)
            _, state, reward, *_ = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
                keys, state, actions, params
            )
            return (rng, state, total + reward), None

        return jax.lax.scan(step, carry, None, length=num_steps)[0]

    keys = jax.random.split(jax.random.key(0), num_envs)
    _, state = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))(keys, params)
    carry = (jax.random.key(1), state, jnp.zeros(num_envs))
    return num_envs * num_steps / median_seconds(jax.jit(steps), carry, least)


def inference(
    algorithm: str, config: Any, env: Env, state: Any, num_steps: int, least: float
) -> float:
    """I: environment steps per second when the policy acts and nothing is learned."""
    acts: Any = {"ppo": ppo, "dqn": dqn, "sac": sac, "td3": td3}[algorithm].acts
    unroll = partial(acts.unroll, config, env, state.agent)
    if algorithm == "dqn":
        unroll = partial(unroll, epsilon=config.epsilon_end)

    def steps(world: Any) -> Any:
        world, _, stats = unroll(world=world, num_steps=num_steps)
        return world, stats

    seconds = median_seconds(jax.jit(steps), state.world, least)
    return config.num_envs * num_steps / seconds


def limit(
    algorithm: str, config: Any, env: Env, num_members: int, least: float
) -> tuple[float, str, dict[str, float]]:
    """Environment steps per second of the bare gradients and forward passes.

    Returns:
      The rate, summed over members; the name of the fastest arrangement of a gradient;
      and the microseconds of each arrangement and of the forward passes.
    """
    state = jax.jit(partial(ALGORITHMS[algorithm].init, config, env))(key(0))
    parts = PARTS[algorithm]
    gradient, rows, forward, num_gradients, env_steps = parts(config, env, state)
    params, unflatten = optim.flat(state.agent.params)
    gradient = partial(_flat_gradient, gradient, unflatten)
    times = {
        name: seconds * 1e6
        for name, seconds in _gradient_times(
            gradient, params, rows, num_members, least
        ).items()
    }
    passes = _on_devices(lambda p: forward(unflatten(p)), params, num_members, least)
    devices = len(jax.local_devices())
    if num_members == 1 and config.num_envs % devices == 0:
        # The environments of one agent, spread.
        obs = jax.tree.map(lambda x: x[: len(x) // devices], state.world.obs)
        part = state.replace(world=state.world.replace(obs=obs))
        fewer = config.replace(num_envs=config.num_envs // devices)
        forward = parts(fewer, env, part)[2]
        spread = _on_devices(lambda p: forward(unflatten(p)), params, devices, least)
        passes = min(passes, spread * devices)
    best = min(times, key=lambda name: times[name])
    seconds = num_gradients * times[best] / 1e6 + passes
    return env_steps / seconds, best, times | {"forward passes": passes * 1e6}


def ppo_parts(config: Any, env: Env, state: Any) -> tuple:
    """A gradient of one minibatch, its rows, and the forward passes of a rollout."""
    num_steps, num_envs = config.num_steps, config.num_envs
    size = num_steps * num_envs // config.num_minibatches
    obs = jax.tree.map(
        lambda x: jnp.broadcast_to(x[:1], (size, *x.shape[1:])), state.world.obs
    )
    noise = jax.random.normal(key(1), (4, size))
    rows = ppo.Batch(
        obs=obs,
        action=spaces.sample(env.action_space, key(2), (size,)),
        log_prob=0.01 * noise[0] - 0.7,
        policy=(),
        advantage=noise[1],
        target=noise[2],
        value=noise[3],
        done=jnp.zeros(size, bool),
    )

    def gradient(params: PyTree, rows: ppo.Batch) -> PyTree:
        rows = jax.tree.map(lambda x: x[None], rows)
        return jax.grad(lambda p: ppo.loss(p, config, env, state.agent, rows, ())[0])(
            params
        )

    def forward(params: PyTree) -> Array:
        def values(obs: PyTree) -> Array:
            return ppo.forward(config, env, state.agent, params, obs, ())[2]

        def act(total: Array, _: None) -> tuple[Array, None]:
            obs = jax.tree.map(
                lambda x: x + (0 * total).astype(x.dtype), state.world.obs
            )
            logits = ppo.forward(config, env, state.agent, params, obs, ())[1]
            return total + jax.tree.leaves(logits)[0].sum(), None

        total, _ = jax.lax.scan(act, jnp.float32(0), None, length=num_steps)
        batch = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (num_steps, *x.shape)), state.world.obs
        )
        return total + in_blocks(values, batch).sum()

    gradients = config.num_epochs * config.num_minibatches
    return gradient, rows, forward, gradients, num_steps * num_envs


def dqn_parts(config: Any, env: Env, state: Any) -> tuple:
    """A gradient of one batch with its target pass, and the forward passes."""
    counts = off_policy.plan(config, env)
    index = ring.sample_indices(state.replay, key(1), (config.batch_size,))
    rows = transitions.read(config, env, state.replay, index)

    def gradient(params: PyTree, rows: transitions.Batch) -> PyTree:
        # The target network follows the parameters, or its pass would leave the loop.
        target = jax.lax.stop_gradient(params)
        return jax.grad(lambda p: dqn.loss(p, config, env, target, rows)[0])(params)

    def forward(params: PyTree) -> Array:
        def act(total: Array, _: None) -> tuple[Array, None]:
            obs = jax.tree.map(
                lambda x: x + (0 * total).astype(x.dtype), state.world.obs
            )
            return total + networks.apply_q(config, env, params, obs).sum(), None

        steps = off_policy.vector_steps(config)
        return jax.lax.scan(act, jnp.float32(0), None, length=steps)[0]

    return gradient, rows, forward, counts.updates, counts.env_steps


def sac_parts(config: Any, env: Env, state: Any) -> tuple:
    """The gradients between two of the actor, their rows, and the forward passes."""
    stats = state.agent.obs_stats

    noise = jax.random.normal(key(1), (config.batch_size, env.action_space.size))

    def sample(params: PyTree, obs: PyTree) -> sac.Sample:
        drawn = noise[: len(jax.tree.leaves(obs)[0])]
        return sac.sample(config, env, params["actor"], stats, obs, drawn)

    def following(params: PyTree, rows: transitions.Batch) -> tuple[Array, Callable]:
        found = sample(params, rows.next_obs)

        def value(q: Array) -> Array:
            q = critics.target_value(config, q, key(3))
            return sac.soft_value(found, q, config.temperature)

        return found.action, value

    def actor_loss(params: PyTree, rows: transitions.Batch) -> Array:
        found = sample(params, rows.obs)
        asked = params["critics"], stats, rows.obs, found.action, key(4)
        q = critics.policy_value(config, critics.values(config, env, *asked))
        return -sac.soft_value(found, q, config.temperature).mean()

    actor = networks.spread_actor(config, env)
    return _control_parts(config, env, state, actor, following, actor_loss)


def td3_parts(config: Any, env: Env, state: Any) -> tuple:
    """The gradients between two of the actor, their rows, and the forward passes."""
    stats = state.agent.obs_stats
    noise = jax.random.normal(key(1), (config.batch_size, env.action_space.size))

    def following(params: PyTree, rows: transitions.Batch) -> tuple[Array, Callable]:
        at = params["actor"], stats, rows.next_obs, noise[: len(rows.reward)]
        action = td3.target_action(config, env, *at)
        return action, partial(critics.target_value, config, key=key(3))

    def actor_loss(params: PyTree, rows: transitions.Batch) -> Array:
        own, of_critics = params["actor"], params["critics"]
        return td3.actor_loss(own, config, env, of_critics, stats, rows.obs, key(4))[0]

    actor = networks.deterministic_actor(config, env)
    return _control_parts(config, env, state, actor, following, actor_loss)


def _control_parts(
    config: Any,
    env: Env,
    state: Any,
    actor: Any,
    following: Callable[[PyTree, transitions.Batch], tuple[Array, Callable]],
    actor_loss: Callable[[PyTree, transitions.Batch], Array],
) -> tuple:
    """Parts of actor and critics, whose targets follow the parameters, as for DQN.

    `following` gives the next action and what the critics' values of it are worth.
    """
    counts, stats = off_policy.plan(config, env), state.agent.obs_stats
    index = ring.sample_indices(state.replay, key(1), (config.batch_size,))
    rows = transitions.read(config, env, state.replay, index)

    def critics_gradient(params: PyTree, rows: transitions.Batch) -> PyTree:
        of_critics = params["critics"]
        at = of_critics, stats, rows, *following(params, rows), key(5)
        y = bellman.next_target(config, env, *at)

        def loss(params: PyTree) -> Array:
            taken = params, stats, rows.obs, rows.action, key(6)
            q = critics.values_taken(config, env, *taken)
            return bellman.error_of(config, q, y)[0]

        return jax.grad(loss)(of_critics)

    def gradient(params: PyTree, rows: transitions.Batch) -> PyTree:
        of_critics = critics_gradient(params, rows)
        for _ in range(config.policy_delay - 1):
            moved = jax.tree.map(
                lambda p, g: p - 1e-9 * g, params["critics"], of_critics
            )
            params = params | {"critics": moved}
            of_critics = critics_gradient(params, rows)
        of_actor = jax.grad(lambda p: actor_loss(params | {"actor": p}, rows))(
            params["actor"]
        )
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros | {"critics": of_critics, "actor": of_actor}

    def forward(params: PyTree) -> Array:
        def act(total: Array, _: None) -> tuple[Array, None]:
            obs = jax.tree.map(
                lambda x: x + (0 * total).astype(x.dtype), state.world.obs
            )
            shown = actor.apply(params["actor"], obs, stats)
            return total + jax.tree.leaves(shown)[0].sum(), None

        steps = off_policy.vector_steps(config)
        return jax.lax.scan(act, jnp.float32(0), None, length=steps)[0]

    gradients = counts.updates // config.policy_delay
    return gradient, rows, forward, gradients, counts.env_steps


PARTS = {"ppo": ppo_parts, "dqn": dqn_parts, "sac": sac_parts, "td3": td3_parts}
"""What the limit of each algorithm is made of."""


def _flat_gradient(
    gradient: Callable, unflatten: Callable, params: Array, rows: PyTree
) -> Array:
    return optim.flat(gradient(unflatten(params), rows))[0]


def _gradient_times(
    gradient: Callable, params: Array, rows: PyTree, num_members: int, least: float
) -> dict[str, float]:
    """Seconds of one gradient of one member, by arrangement."""
    size = len(jax.tree.leaves(rows)[0])
    devices = len(jax.local_devices())
    times = {}
    if num_members > 1:
        members = min(num_members, 8 * devices)
        for group in sorted({1, members // devices}):
            name = f"{devices} device(s), {group} member(s) on each"
            batched = jax.vmap(gradient, in_axes=(0, None))
            one = partial(_repeated, batched, rows)
            seconds = _on_devices(
                one, jnp.broadcast_to(params, (group, *params.shape)), devices, least
            )
            times[name] = seconds / group / _REPEATS
        return times
    times["whole"] = median_seconds(
        jax.jit(partial(_repeated, gradient, rows)), params, least
    )
    for block, count in itertools.product((128, 256, 1_024), {1, devices}):
        if size % (block * count) or size // count <= block:
            continue
        step = partial(_in_row_blocks, gradient, block)
        run: Callable
        if count == 1:
            run = jax.jit(partial(_repeated, step, rows))
        else:
            run = _data_parallel(step, rows, count)
        name = f"blocks of {block} rows on {count} device(s)"
        times[name] = median_seconds(run, params, least)
    return {name: seconds / _REPEATS for name, seconds in times.items()}


_REPEATS = 8
"""Gradient steps in one compiled call, each from the parameters of the previous step."""


def _repeated(gradient: Callable, rows: PyTree, params: Array) -> Array:
    return jax.lax.fori_loop(
        0, _REPEATS, lambda _, p: p - 1e-9 * gradient(p, rows), params
    )


def _in_row_blocks(
    gradient: Callable, block: int, params: Array, rows: PyTree
) -> Array:
    blocks = jax.tree.map(lambda x: x.reshape(-1, block, *x.shape[1:]), rows)

    def add(total: Array, rows: PyTree) -> tuple[Array, None]:
        return total + gradient(params, rows), None

    return jax.lax.scan(add, jnp.zeros_like(params), blocks)[0]


def _data_parallel(step: Callable, rows: PyTree, count: int) -> Callable:
    """Data-parallel gradient: each device takes its share of the rows."""
    mesh = Mesh(np.array(jax.local_devices()[:count]), (AXIS,))

    def run(params: Array, rows: PyTree) -> Array:
        def summed(params: Array, rows: PyTree) -> Array:
            return jax.lax.psum(step(params, rows), AXIS)

        return _repeated(summed, rows, params)

    spread = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.jit(lambda params: spread(params, rows))


def _on_devices(function: Callable, x: PyTree, num_members: int, least: float) -> float:
    """Seconds of each call when all devices that members can use are busy."""
    count = min(num_members, len(jax.local_devices()))
    if count == 1:
        return median_seconds(jax.jit(function), x, least)
    mesh = Mesh(np.array(jax.local_devices()[:count]), (AXIS,))
    spec = PartitionSpec(AXIS)

    def here(x: PyTree) -> PyTree:
        y = function(jax.tree.map(lambda x: x[0], x))
        return jax.tree.map(lambda y: y[None], y)

    run = jax.shard_map(here, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), x)
    return median_seconds(jax.jit(run), many, least) / count
