"""Environments as a `Problem`: the protocol that they share with the tasks of RLHF."""

from typing import Any

from jaxrl import spaces
from jaxrl.envs import make
from jaxrl.types import NO_ID, Algorithm, Env, Problem


def problem_of(algorithm: Algorithm) -> Problem:
    """What the algorithm is trained on: environments, unless it says otherwise."""
    return algorithm.problem or ENVIRONMENTS


def describe(config: Any, env: Env) -> dict[str, Any]:
    """The spaces of an environment as JSON."""
    del config
    return {
        "observation_space": spaces.describe(env.observation_space),
        "action_space": spaces.describe(env.action_space),
    }


def remedy(env: Env) -> str:
    """What to do about an observation or a reward that is not finite."""
    if env.id == NO_ID:
        return "see to its reset and step: jaxrl.envs.check.check_env(env)"
    return f"see to {env.id}: jaxrl check-env {env.id}"


def digests(env: str, params: dict[str, Any]) -> dict[str, str]:
    """None: an environment is made from no files."""
    del env, params
    return {}


def is_path(name: str, value: Any) -> bool:
    """No: an environment is named, not read."""
    del name, value
    return False


ENVIRONMENTS = Problem(
    make=make,
    returns=None,
    describe=describe,
    digests=digests,
    samples=None,
    is_path=is_path,
    flag="env",
    help="Environment id; see `jaxrl list envs`. One of your own is registered, or "
    '"module:factory".',
    prefix="env.",
    example="one such as --env CartPole-v1",
    remedy=remedy,
)
