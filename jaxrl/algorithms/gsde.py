"""Generalised state-dependent exploration, gSDE (Raffin et al., 2021, arXiv:2005.05719).

Noise is a random linear function θ of the policy's last features φ(s), the same one for
several steps: similar states get similar noise, and actions are smoother than with new
noise at each step. θ = σ · z, and z is the world's memory; where an episode begins that is
zero, and z is drawn. Between two draws θ follows what is learned of σ.

The distribution at each step is `distributions.state_dependent_tanh_normal`; learning
draws from it independently in each row of a batch. As in SB3's SAC, σ is a matrix, its
logarithm is learned, and the mean before tanh is clipped.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import acting, exploration, networks, spaces
from jaxrl.errors import require
from jaxrl.types import Array, Env, Memory


def draw_noise(config: Any, env: Env, key: Array, shape: tuple[int, ...]) -> Array:
    """Noise to explore with: that of `acting.action_noise`, or z `[*shape, F, D]`."""
    if config.noise == "normal":
        return acting.action_noise(env.action_space, key, shape)
    return jax.random.normal(key, (*shape, *networks.noise_shape(config, env)))


def explore(config: Any, pi: Any, memory: Memory, noise: Array) -> tuple[Array, Memory]:
    """What the distribution `pi` makes a sample from, and the state of that noise."""
    if config.noise == "normal":
        return noise, memory
    memory = exploration.renewed_matrix(memory, noise, config.noise_interval)
    return pi.standard_noise(memory.matrix), memory


def init_memory(config: Any, env: Env, num_envs: int) -> Memory:
    """The state of the noise before z is drawn, zeros."""
    if config.noise == "normal":
        return ()
    matrix = jnp.zeros((num_envs, *networks.noise_shape(config, env)))
    return exploration.NoiseMatrix(matrix, jnp.zeros(num_envs, jnp.int32))


def check(config: Any, env: Env) -> None:
    """Only continuous actions have such noise."""
    require(
        config.noise == "normal" or isinstance(env.action_space, spaces.Box),
        f"noise = {config.noise!r} needs continuous actions, but those of {env.id} are "
        f"{env.action_space}: leave it at 'normal'.",
    )
