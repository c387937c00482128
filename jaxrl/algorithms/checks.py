"""What algorithms ask of a config and an environment; each check raises `InvalidInput`."""

from typing import Any

import numpy as np

from jaxrl import networks
from jaxrl.data.dataset import Dataset, check_spaces
from jaxrl.data.frozen_policy import FrozenPolicy
from jaxrl.errors import require
from jaxrl.networks.encoding import is_image, is_one_box, mask_space
from jaxrl.spaces import Box, Dict, Discrete
from jaxrl.types import Env


def policy_gradient(name: str, config: Any, env: Env, recurrent: bool = False) -> None:
    """The demands of an algorithm with a policy network."""
    check_policy_actions(name, env)
    if hasattr(config, "squash"):
        check_squash(config, env)
    check_action_mask(env)
    check_network(name, config, env, recurrent)


def q_learning(name: str, config: Any, env: Env, recurrent: bool = False) -> None:
    """The demands of an algorithm with action values."""
    check_discrete_actions(name, env)
    check_action_mask(env)
    check_network(name, config, env, recurrent)


def continuous_control(name: str, config: Any, env: Env) -> None:
    """The demands of an algorithm whose critics are given the action."""
    space = env.action_space
    require(
        isinstance(space, Box) and len(space.shape) == 1 and space.bounded,
        f"{name} needs a bounded Box action space of shape (D,), but that of {env.id} is "
        f"{space}: use sac or dqn for a Discrete one, ppo for one without bounds.",
    )
    check_action_mask(env)
    check_network(name, config, env)


def critic_layers(config: Any, env: Env) -> None:
    """The options that change layers of critics fit the network, and each other."""
    torso: Any = networks.resolve(config, env.observation_space).torso
    named = f"not {config.network!r}"
    require(
        config.dropout is None or isinstance(torso, networks.MLP),
        f"dropout = {config.dropout} needs fully connected critics: use network = "
        f"'mlp', {named}.",
    )
    require(
        not config.critic_hidden_sizes
        or isinstance(torso, networks.MLP | networks.CNN | networks.ResNet),
        f"critic_hidden_sizes = {config.critic_hidden_sizes} needs a network with such "
        f"layers: use network = 'mlp', {named}.",
    )
    if not config.batch_norm:
        return
    require(
        config.dropout is None,
        f"dropout = {config.dropout} brings layer normalisation, and batch_norm = True "
        f"another one: leave out either.",
    )
    require(
        isinstance(torso, networks.MLP)
        and not torso.layer_norm
        and torso.dropout is None,
        f"batch_norm = True needs fully connected networks without another "
        f"normalisation: use network = 'mlp', {named}.",
    )
    default = type(config)().tau
    require(
        bool(np.all(np.asarray(config.tau) == default)),
        f"tau = {config.tau} is of target networks, and with batch_norm = True there "
        f"are none: leave it at {default}.",
    )


def check_network(name: str, config: Any, env: Env, recurrent: bool = False) -> None:
    """The network fits the observations and the algorithm."""
    space, body = env.observation_space, networks.resolve(config, env.observation_space)
    require(
        body.takes != "image" or is_image(space),
        f"network = {config.network!r} needs image observations, but those of {env.id} "
        f"are vectors: use 'auto' or 'mlp'.",
    )
    require(
        recurrent or not body.is_recurrent,
        f"network = {config.network!r} has a memory, which {name} does not use: take "
        f"another network, or ppo, a2c or reinforce, or of discrete actions q_learning.",
    )
    require(
        body.takes != "raw" or is_one_box(space) or not normalizes(config),
        f"normalize_obs = True with network = {config.network!r}, which takes raw "
        f"observations: those of {env.id} are not one array, normalise inside it.",
    )
    networks.check_features(config, space)
    cell = body.cell
    require(
        not isinstance(cell, networks.Transformer) or cell.size % cell.num_heads == 0,
        f"network = {config.network!r}: num_heads must divide size.",
    )


def normalizes(config: Any) -> bool:
    """Whether observations are normalised by running statistics."""
    return getattr(config, "normalize_obs", False)


def check_action_mask(env: Env) -> None:
    """A mask has one entry for each action."""
    mask = mask_space(env.observation_space)
    if mask is None:
        return
    shape = (env.action_space.n,) if isinstance(env.action_space, Discrete) else None
    require(
        mask.shape == shape,
        f"action_mask of {env.id} has shape {mask.shape}, but the action space is "
        f"{env.action_space}: a Discrete space of n actions needs shape (n,).",
    )


def check_policy_actions(name: str, env: Env) -> None:
    """A policy gradient needs one Discrete action or a vector of continuous ones."""
    space = env.action_space
    vector = isinstance(space, Discrete) or (
        not isinstance(space, Dict) and len(space.shape) == 1
    )
    require(
        vector,
        f"{name} needs a Discrete action space or a Box of shape (D,), but that of "
        f"{env.id} is {space}: flatten it in the environment.",
    )


def check_squash(config: Any, env: Env) -> None:
    """Only bounded continuous actions can be squashed."""
    bounded = isinstance(env.action_space, Box) and env.action_space.bounded
    require(
        not config.squash or bounded,
        f"squash = True needs a bounded Box action space, but that of {env.id} is "
        f"{env.action_space}: leave it off.",
    )


def check_discrete_actions(name: str, env: Env) -> None:
    """Q-learning needs actions that can be enumerated."""
    require(
        isinstance(env.action_space, Discrete),
        f"{name} needs a Discrete action space, but that of {env.id} is a "
        f"{type(env.action_space).__name__}: use sac, td3 or ppo.",
    )


def check_frozen_policy(name: str, env: Env, required: bool = True) -> None:
    """What is asked for actions is a trained policy, or none."""
    teacher = env.teacher
    require(
        isinstance(teacher, FrozenPolicy) or (teacher is None and not required),
        f"teacher is a {type(teacher).__name__}: {name} needs a "
        f"jaxrl.data.frozen_policy.FrozenPolicy there.",
    )


def check_dataset(name: str, env: Env) -> None:
    """What is learned from is a dataset of this environment's observations and actions."""
    require(
        isinstance(env.teacher, Dataset),
        f"teacher is a {type(env.teacher).__name__}: {name} needs a "
        f"jaxrl.data.dataset.Dataset there.",
    )
    check_spaces(env.teacher, env, "the dataset")


def check_imitation_loss(config: Any, env: Env) -> None:
    """Only continuous actions have a squared error."""
    require(
        config.loss != "mse" or not isinstance(env.action_space, Discrete),
        f"loss = 'mse' needs continuous actions, but those of {env.id} are "
        f"{env.action_space}: use 'likelihood'.",
    )
