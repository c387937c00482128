"""What learning from rollouts shares: their size in gradient steps, and new agents."""

import math
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxrl import networks, optim, rollout
from jaxrl.errors import InvalidInput
from jaxrl.types import Agent, Array, Env, Memory, Plan, State


def plan_one_step(config: Any, env: Env) -> Plan:
    """The plan of one gradient step on each rollout."""
    del env
    env_steps = config.num_envs * config.num_steps
    return Plan(env_steps, updates=1, gradient_rows=env_steps, shares=config.num_envs)


def plan_minibatches(config: Any, env: Env) -> Plan:
    """The plan of `num_epochs` passes of `num_minibatches` steps over each rollout."""
    env_steps = config.num_envs * config.num_steps
    sequences = num_sequences(config, env)
    return Plan(
        env_steps=env_steps,
        updates=config.num_epochs * config.num_minibatches,
        gradient_rows=env_steps // config.num_minibatches,
        shares=math.gcd(config.num_envs, sequences // config.num_minibatches),
    )


def num_sequences(config: Any, env: Env) -> int:
    """Entries that are shuffled: environments with memory, single steps without."""
    recurrent = networks.resolve(config, env.observation_space).is_recurrent
    return config.num_envs * (1 if recurrent else config.num_steps)


def check_minibatches(config: Any, env: Env, normalized: bool) -> None:
    """A rollout can be cut into the minibatches, of more than one step if `normalized`."""
    steps, sequences = config.num_envs * config.num_steps, num_sequences(config, env)
    unit = "num_envs * num_steps" if sequences == steps else "num_envs"
    most = min(sequences, steps // 2) if normalized else sequences
    wanted = config.num_minibatches
    if sequences % wanted == 0 and wanted <= most:
        return
    reason = "" if most == sequences else ", more than one step each"
    divisors = [d for d in range(1, max(most, 1) + 1) if sequences % d == 0]
    raise InvalidInput(
        f"num_minibatches = {wanted} must divide {unit} = {sequences}{reason}: "
        f"try {min(divisors, key=lambda d: abs(d - wanted))}."
    )


def init(
    config: Any,
    env: Env,
    key: Array,
    net: Any,
    make_optimizer: Callable[..., optax.GradientTransformation] = optim.adam,
) -> State:
    """A new `Agent` of one network in a new world."""
    key_params, key_world = jax.random.split(key)
    agent = new_agent(net, key_params, make_optimizer(config.max_grad_norm))
    memory = networks.init_memory(config, env, config.num_envs)
    world = rollout.init_world(env, key_world, config.num_envs, memory)
    return State(agent, world)


def new_agent(net: Any, key: Array, optimizer: optax.GradientTransformation) -> Agent:
    """Fresh parameters of a network, and the optimiser's state for them."""
    params = networks.init(net, key)
    return Agent(params, optimizer.init(optim.flat(params)[0]))


def init_pair(
    config: Any,
    env: Env,
    key: Array,
    actor: Any,
    critic: Any,
    optimizer: optax.GradientTransformation,
) -> State:
    """An `Agent` of dicts of "actor" and "critic", two networks that learn apart.

    The world's memory is such a dict too.
    """
    *keys, key_world = jax.random.split(key, 3)
    pair = zip(("actor", "critic"), (actor, critic), keys, strict=True)
    agents = {name: new_agent(net, key, optimizer) for name, net, key in pair}
    agent = Agent(
        params={name: one.params for name, one in agents.items()},
        opt_state={name: one.opt_state for name, one in agents.items()},
    )
    memory = init_pair_memory(config, env, config.num_envs)
    world = rollout.init_world(env, key_world, config.num_envs, memory)
    return State(agent, world)


def init_pair_memory(config: Any, env: Env, num_envs: int) -> Memory:
    """The memory of the actor and of the critic, each with a cell of its own, or `()`."""
    memory = networks.init_memory(config, env, num_envs)
    return {"actor": memory, "critic": memory} if jax.tree.leaves(memory) else ()


NO_MEMORY: dict[str, Memory] = {"actor": (), "critic": ()}
"""The parts of the memory of a pair that has none."""
