"""Acting: from one policy function, all the ways in which an algorithm's agents act.

An algorithm writes `policy` (or `q_values`) once. `stochastic`, `deterministic` and
`epsilon_greedy` make of it `act` and `explain` of the contract, and the policy that a
rollout is given. All random numbers of a rollout are drawn before its loop (see
`jaxrl.rollout`), so there a policy is given noise and not a key.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import exploration, networks, rollout, spaces
from jaxrl.types import Array, Env, Memory, Metrics, PyTree, Scalar, Transition, World


class Acting(NamedTuple):
    """The ways to act of one algorithm.

    act:     `Algorithm.act`
    explain: `Algorithm.explain`
    unroll:  `(config, env, agent, world, num_steps, **kwargs) -> (world, trajectory,
             metrics)`: a rollout `[T, N]` that explores
    """

    act: Callable
    explain: Callable
    unroll: Callable[..., tuple[World, Transition, Metrics]]


def stochastic(
    policy: Callable,
    always_greedy: Callable[[Any], bool] = lambda config: False,
    draw: Callable = lambda config, env, *at: action_noise(env.action_space, *at),
    explore: Callable = lambda config, pi, memory, noise: (noise, memory),
) -> Acting:
    """Acting by sampling from a distribution.

    Args:
      policy: `(config, env, agent, obs, memory) -> (distribution, memory, extras)`, for
        observations `[N, ...]`.
      always_greedy: whether the mode is taken instead of a sample, by the config.
      draw: `(config, env, key, shape) -> noise [*shape, ...]`, by default that of
        `action_noise`.
      explore: `(config, distribution, memory, noise) -> (noise, memory)`: what the
        distribution makes a sample from; a noise that is correlated in time keeps its
        state in the memory.
    """

    def choose(
        config: Any, env: Env, agent: PyTree, obs: PyTree, memory: Memory, noise: Any
    ) -> tuple[Array, Memory, dict[str, Any]]:
        """A sample made from noise, or the mode for None.

        A sample before tanh is among the extras, for `sample_of`.
        """
        pi, memory, extras = policy(config, env, agent, obs, memory)
        if noise is None:
            return pi.mode(), memory, extras
        noise, memory = explore(config, pi, memory, noise)
        if hasattr(pi, "pre_tanh"):
            extras = extras | {"pre_tanh": pi.pre_tanh(noise)}
        return pi.from_noise(noise), memory, extras

    def act(
        config: Any,
        env: Env,
        agent: PyTree,
        obs: PyTree,
        memory: Memory,
        key: Array,
        greedy: bool = False,
    ) -> tuple[Array, Memory, dict[str, Any]]:
        noise = None
        if not (greedy or always_greedy(config)):
            noise = draw(config, env, key, batch_of(obs))
        return choose(config, env, agent, obs, memory, noise)

    def explain(
        config: Any, env: Env, agent: PyTree, obs: PyTree, memory: Memory
    ) -> dict[str, Array]:
        pi, _, _ = policy(config, env, agent, obs, memory)
        return explain_distribution(env.action_space, pi)

    def unroll(
        config: Any, env: Env, agent: PyTree, world: World, num_steps: int
    ) -> tuple[World, Transition, Metrics]:
        noise = partial(draw, config, env)
        chosen = partial(choose, config, env, agent)
        return rollout.unroll(env, chosen, world, num_steps, noise)

    return Acting(act, explain, unroll)


def sample_of(trajectory: Transition) -> PyTree:
    """What `log_prob` of the policy that acted takes: its samples.

    The actions, but for a squashed normal what tanh made them from: at the bounds that
    cannot be told from a rounded action.
    """
    return trajectory.extras.get("pre_tanh", trajectory.action)


def epsilon_greedy(
    q_values: Callable, is_noisy: Callable[[Any], bool] = lambda config: False
) -> Acting:
    """Acting by the best action value, or at random with probability ε.

    `unroll` takes `epsilon`; `act` uses `config.epsilon_end`, or 0 if it is greedy.

    Args:
      q_values: `(config, env, params, obs) -> Q [*batch, A]`, of `agent.params`.
      is_noisy: whether, by the config, the values have noise of their own unless an agent
        is greedy: `q_values` is then given a key too, at each step another.
    """

    def choose(
        config: Any, env: Env, agent: Any, epsilon: Scalar, obs: PyTree, noise: PyTree
    ) -> tuple[Array, dict[str, Array]]:
        mask = networks.action_mask(env.observation_space, obs)
        noise, *key = noise if is_noisy(config) else (noise,)
        q = legal(q_values(config, env, agent.params, obs, *key), mask)
        action = exploration.epsilon_greedy(noise, q, epsilon, mask)
        return action, {"value": q.max(-1)}

    def draw(config: Any, env: Env, key: Array, shape: tuple, keys: Callable) -> PyTree:
        """Noise of the choice, and beside it `keys(key)` of the values' where it is."""
        if not is_noisy(config):
            return exploration.epsilon_noise(key, shape, env.action_space.n)
        key, key_values = jax.random.split(key)
        noise = exploration.epsilon_noise(key, shape, env.action_space.n)
        return noise, keys(key_values)

    def act(
        config: Any,
        env: Env,
        agent: Any,
        obs: PyTree,
        memory: Memory,
        key: Array,
        greedy: bool = False,
    ) -> tuple[Array, Memory, dict[str, Any]]:
        if greedy:  # needs no key
            mask = networks.action_mask(env.observation_space, obs)
            q = legal(q_values(config, env, agent.params, obs), mask)
            return jnp.argmax(q, -1).astype(jnp.int32), memory, {"value": q.max(-1)}
        noise = draw(config, env, key, batch_of(obs), lambda key: key)
        action, extras = choose(config, env, agent, config.epsilon_end, obs, noise)
        return action, memory, extras

    def explain(
        config: Any, env: Env, agent: Any, obs: PyTree, memory: Memory
    ) -> dict[str, Array]:
        del memory
        mask = networks.action_mask(env.observation_space, obs)
        return {"q": legal(q_values(config, env, agent.params, obs), mask)}

    def unroll(
        config: Any,
        env: Env,
        agent: Any,
        world: World,
        num_steps: int,
        epsilon: Scalar,
    ) -> tuple[World, Transition, Metrics]:
        def policy(obs: PyTree, memory: Memory, noise: PyTree) -> tuple:
            action, extras = choose(config, env, agent, epsilon, obs, noise)
            return action, memory, extras

        def noise(key: Array, shape: tuple[int, int]) -> PyTree:
            keys = partial(rollout.step_keys, shape=shape)
            return draw(config, env, key, shape, keys)

        return rollout.unroll(env, policy, world, num_steps, noise)

    return Acting(act, explain, unroll)


def recurrent_epsilon_greedy(q_values: Callable, value: Callable) -> Acting:
    """Acting as `epsilon_greedy`, by action values that may depend on a memory.

    Among the extras are the action values, "q", and the memory after the step, "memory",
    before it is cleared where an episode ends.

    Args:
      q_values: `(config, env, params, obs, memory) -> (Q [N, A], memory)`, of
        `agent.params`.
      value: `(q, epsilon, mask) -> [*batch]`, reported as the state's value.
    """

    def policy(
        config: Any, env: Env, agent: Any, obs: PyTree, memory: Memory
    ) -> tuple[exploration.EpsilonGreedy, Memory, dict[str, Any]]:
        mask = networks.action_mask(env.observation_space, obs)
        q, memory = q_values(config, env, agent.params, obs, memory)
        pi = exploration.EpsilonGreedy(q, config.epsilon_end, mask)
        return pi, memory, {"value": value(*pi), "q": q, "memory": memory}

    def draw(config: Any, env: Env, key: Array, shape: tuple[int, ...]) -> Array:
        del config
        return exploration.epsilon_noise(key, shape, env.action_space.n)

    sampled = stochastic(policy, draw=draw)

    def act(
        config: Any,
        env: Env,
        agent: Any,
        obs: PyTree,
        memory: Memory,
        key: Array,
        greedy: bool = False,
    ) -> tuple[Array, Memory, dict[str, Any]]:
        config = config.replace(epsilon_end=0.0) if greedy else config
        return sampled.act(config, env, agent, obs, memory, key, greedy)

    def explain(
        config: Any, env: Env, agent: Any, obs: PyTree, memory: Memory
    ) -> dict[str, Array]:
        pi, _, _ = policy(config, env, agent, obs, memory)
        return {"q": legal(pi.q, pi.mask)}

    def unroll(
        config: Any,
        env: Env,
        agent: Any,
        world: World,
        num_steps: int,
        epsilon: Scalar,
    ) -> tuple[World, Transition, Metrics]:
        config = config.replace(epsilon_end=epsilon)
        return sampled.unroll(config, env, agent, world, num_steps)

    return Acting(act, explain, unroll)


def deterministic(policy: Callable, explore: Callable) -> Acting:
    """Acting by a function of the state, and with noise around it while exploring.

    Args:
      policy: `(config, env, agent, obs) -> (action [N, D] in [-1, 1], extras)`.
      explore: `(config, action, memory, noise [N, D]) -> (action, memory)` from standard
        normal noise; a noise that is correlated in time keeps its state in the memory.
    """

    def choose(
        config: Any, env: Env, agent: PyTree, obs: PyTree, memory: Memory, noise: Any
    ) -> tuple[Array, Memory, dict[str, Any]]:
        """The action with noise made from `action_noise`, or without for None."""
        action, extras = policy(config, env, agent, obs)
        if noise is not None:
            action, memory = explore(config, action, memory, noise)
        return in_box(env.action_space, action), memory, extras

    def act(
        config: Any,
        env: Env,
        agent: PyTree,
        obs: PyTree,
        memory: Memory,
        key: Array,
        greedy: bool = False,
    ) -> tuple[Array, Memory, dict[str, Any]]:
        noise = None
        if not greedy:
            noise = action_noise(env.action_space, key, batch_of(obs))
        return choose(config, env, agent, obs, memory, noise)

    def explain(
        config: Any, env: Env, agent: PyTree, obs: PyTree, memory: Memory
    ) -> dict[str, Array]:
        action, _, _ = choose(config, env, agent, obs, memory, None)
        return {"spread": jnp.stack([action] * 3, axis=-1)}

    def unroll(
        config: Any, env: Env, agent: PyTree, world: World, num_steps: int
    ) -> tuple[World, Transition, Metrics]:
        noise = partial(action_noise, env.action_space)
        chosen = partial(choose, config, env, agent)
        return rollout.unroll(env, chosen, world, num_steps, noise)

    return Acting(act, explain, unroll)


def in_box(space: spaces.Box, unit: Array) -> Array:
    """Actions `[*batch, D]` from numbers in [-1, 1]; what lies outside is clipped."""
    action = spaces.from_unit(space, unit)
    return jnp.clip(action, space.low_array(), space.high_array())


def unroll_randomly(
    config: Any, env: Env, agent: PyTree, world: World, num_steps: int
) -> tuple[World, Transition, Metrics]:
    """A rollout `[T, N]` of uniformly random legal actions, for a warm-up."""
    del config, agent
    space = env.action_space

    def draw(key: Array, shape: tuple[int, int]) -> Array:
        if isinstance(space, spaces.Discrete):
            return exploration.epsilon_noise(key, shape, space.n)
        return spaces.sample(space, key, shape)

    def policy(obs: PyTree, memory: Memory, noise: Array) -> tuple:
        if isinstance(space, spaces.Discrete):
            mask = networks.action_mask(env.observation_space, obs)
            noise = exploration.epsilon_greedy(noise, noise[..., 1:], 1.0, mask)
        return noise, memory, {}

    return rollout.unroll(env, policy, world, num_steps, draw)


def legal(q: Array, mask: Array | None) -> Array:
    """Action values `[*batch, A]`, minus infinity where an action is illegal."""
    return q if mask is None else jnp.where(mask, q, -jnp.inf)


def batch_of(obs: PyTree) -> tuple[int]:
    """`(N,)` of observations `[N, ...]`."""
    (num_envs,) = jax.tree.leaves(obs)[0].shape[:1]
    return (num_envs,)


def action_noise(
    action_space: spaces.Box | spaces.Discrete, key: Array, shape: tuple[int, ...]
) -> Array:
    """Random numbers for `from_noise` of the action distribution of a batch.

    Standard Gumbel `[*shape, A]` for a Discrete space, normal `[*shape, D]` for a Box.
    """
    if isinstance(action_space, spaces.Discrete):
        return jax.random.gumbel(key, (*shape, action_space.n))
    return jax.random.normal(key, (*shape, action_space.size))


def explain_distribution(
    action_space: spaces.Box | spaces.Discrete, pi: Any
) -> dict[str, Array]:
    """A distribution of `networks.distribution`, as `Algorithm.explain` shows it."""
    if isinstance(action_space, spaces.Discrete):
        return {"probability": pi.probs}
    from jaxrl import distributions

    nothing = 0.0 * pi.mode()  # of a shape that may be symbolic, in an export
    each = [pi.from_noise(nothing + z) for z in (-1.0, 0.0, 1.0)]
    explained = {"spread": jnp.stack(each, axis=-1)}
    if isinstance(pi, distributions.DiagNormal):
        explained["std"] = pi.distribution.scale
    return explained


ROWS_AT_ONCE = 4_096
"""Rows whose activations (two layers of 64: 2 MB) stay in a CPU's cache."""


def in_blocks(function: Callable[[PyTree], Array], tree: PyTree) -> Array:
    """`function` of `[T, N, ...]`, on CPU a few rows of time at a go.

    The values of 65,536 steps by a network of 64-64 take 14 ms this way and 21 ms at once,
    when every layer's activations go to memory and back (benchmarks/tricks.py).
    """
    num_steps, num_envs = jax.tree.leaves(tree)[0].shape[:2]
    fitting = max(1, min(num_steps, ROWS_AT_ONCE // num_envs))
    steps = next(n for n in range(fitting, 0, -1) if num_steps % n == 0)

    def block_by_block(tree: PyTree) -> Array:
        blocks = jax.tree.map(lambda x: x.reshape(-1, steps, *x.shape[1:]), tree)
        y = jax.lax.map(function, blocks)
        return y.reshape(num_steps, *y.shape[2:])

    if steps == num_steps:
        return function(tree)
    return jax.lax.platform_dependent(tree, cpu=block_by_block, default=function)
