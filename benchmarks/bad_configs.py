"""Random command lines of `jaxrl train`, invalid and valid, for `faults.py`.

Invalid values follow from the type and the limits of each field, and from a list of
combinations of fields. `judge` runs a command line through `jaxrl.cli.main`, with
training replaced, so that accepted runs are only traced.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import random
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import jax
import jax.numpy as jnp

from jaxrl import PPO, make, spaces
from jaxrl.cli import main
from jaxrl.core import config as configs
from jaxrl.data import dataset
from jaxrl.data.frozen_policy import FrozenPolicy
from jaxrl.errors import InvalidInput
from jaxrl.runs import experiment, session
from jaxrl.training.loop import Job
from jaxrl.types import Algorithm, Transition

ENVS = (
    *("CartPole-v1", "Pendulum-v1", "Breakout-MinAtar", "probe/action"),
    "probe/continuous",
)

SMALL = {
    "num_envs": 4,
    "num_steps": 8,
    "num_minibatches": 4,
    "train_frequency": 4,
    "learning_starts": 8,
    "batch_size": 8,
    "buffer_size": 64,
    "hidden_sizes": (8, 8),
    "total_steps": 1000.0,
}


@functools.cache
def envs_of(algorithm: Algorithm) -> tuple[str, ...]:
    """Those of `ENVS` that the algorithm takes."""
    small = {
        n: v for n, v in SMALL.items() if n in configs.field_types(algorithm.Config)
    }
    config = algorithm.Config(**small)

    def fits(env: str) -> bool:
        try:
            algorithm.validate(config, make(env))
        except InvalidInput:
            return False
        return True

    return ENVS if algorithm.teacher else tuple(filter(fits, ENVS))


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def limits_of(algorithm: Algorithm) -> dict[str, dict[str, float]]:
    return {
        field.name: dict(field.metadata.get("limits", {}))
        for field in dataclasses.fields(algorithm.Config)
    }


def bad_values(kind: Any, limits: dict[str, float]) -> list[str]:
    """Invalid texts for a field of this type and these limits."""
    arguments = typing.get_args(kind)
    kinds = arguments or (kind,)
    if typing.get_origin(kind) is Literal:
        return ["", "nonsense", "0", arguments[0].upper() + "x", "null"]
    if kind is bool:
        return []  # a flag takes no value
    found = ["", "abc", "1,x", "0x10", "--", "1e", "nan", "[1]", "true"]
    if float in kinds:
        found += ["inf", "-inf", "1e39", "-1e39", "1e400"]
        if type(None) not in arguments:
            found += ["none"]
    elif int in kinds:
        found += ["1.5", "1e-3", "2147483648", "9" * 30, "-9" * 12, "none"]
        if kind is not int:
            found += ["8,,8", "8;8", "8,-8", "8,0", "8,1.5"]
    if "low" in limits:
        found += [repr(limits["low"] - step) for step in (1, 1000)]
    if "above" in limits:
        found += [repr(limits["above"] - step) for step in (0, 1)]
    if "high" in limits and limits["high"] < 1e12:
        found += [repr(limits["high"] + step) for step in (0.001, 1, 1e6)]
    return found


TRUST_REGION = [
    ["--num-minibatches", "3"],
    ["--squash", "--env", "CartPole-v1"],
    ["--network", "cnn", "--env", "Pendulum-v1"],
    ["--num-envs", "65536", "--num-steps", "65536"],
]
ACTION_VALUES = [
    ["--env", "Pendulum-v1"],
    ["--num-minibatches", "3"],
    ["--network", "cnn", "--env", "CartPole-v1"],
    ["--network", "gru", "--num-envs", "1", "--num-minibatches", "2"],
    ["--num-envs", "65536", "--num-steps", "65536"],
]
IMITATION = [
    ["--loss", "mse", "--env", "CartPole-v1"],
    ["--network", "cnn", "--env", "Pendulum-v1"],
    ["--num-envs", "65536", "--num-steps", "65536"],
    ["--parallel", "data"],
]
REPLAY = [
    ["--network", "cnn", "--env", "Pendulum-v1"],
    ["--network", "gru", "--env", "Pendulum-v1"],
    ["--learning-starts", "100000", "--total-steps", "1000"],
    ["--batch-size", "9"],
    ["--n-step", "17"],
    ["--buffer-size", "2147483647"],
    ["--hindsight", "final", "--env", "Pendulum-v1"],
    ["--hindsight", "future", "--env", "goal/point-reach", "--env.history", "2"],
]
CRITICS = [
    *REPLAY,
    ["--target-subset", "3"],
    ["--num-quantiles", "2", "--dropped-quantiles", "2", "--env", "Pendulum-v1"],
    ["--batch-norm", "--dropout", "0.1", "--env", "Pendulum-v1"],
    ["--batch-norm", "--network", "mlp_layer_norm", "--env", "Pendulum-v1"],
    ["--batch-norm", "--tau", "0.1", "--env", "Pendulum-v1"],
]
DETERMINISTIC = [
    *CRITICS,
    ["--env", "CartPole-v1"],
    ["--env", "probe/masked"],
    ["--noise-std-last", "0.4", "--num-envs", "1", "--train-frequency", "1"],
]
HEADS = [
    *REPLAY,
    ["--env", "Pendulum-v1"],
    ["--network", "gru", "--env", "CartPole-v1"],
    ["--hindsight", "final", "--env", "CartPole-v1"],
    ["--double", "--munchausen", "0.9"],
]
CATEGORICAL = [*HEADS, ["--v-min", "1", "--v-max", "1"]]
COMBINATIONS: dict[str, list[list[str]]] = {
    "ppo": [
        ["--num-minibatches", "3"],
        ["--num-minibatches", "64"],
        ["--num-envs", "1", "--num-steps", "1", "--num-minibatches", "1"],
        ["--network", "gru(size=4)", "--num-minibatches", "8"],
        ["--kl-penalty-target", "0.1"],
        ["--objective", "kl", "--kl-penalty-target", "0.1", "--kl-coef", "0"],
        ["--squash", "--env", "CartPole-v1"],
        ["--network", "cnn", "--env", "CartPole-v1"],
        ["--num-envs", "65536", "--num-steps", "65536"],
        ["--num-epochs", "2147483647"],
        ["--devices", "3", "--parallel", "data"],
    ],
    "ddpg": DETERMINISTIC,
    "td3": [*DETERMINISTIC, ["--num-critics", "1"]],
    "sac": [
        *CRITICS,
        ["--num-critics", "1"],
        ["--num-quantiles", "5", "--env", "CartPole-v1"],
        ["--dropout", "0.1", "--env", "Breakout-MinAtar"],
        ["--batch-norm", "--env", "Breakout-MinAtar"],
        ["--noise", "state_dependent", "--env", "CartPole-v1"],
        ["--temperature-end", "0.1"],
    ],
    "reinforce": [
        ["--squash", "--env", "CartPole-v1"],
        ["--network", "cnn", "--env", "Pendulum-v1"],
        ["--num-envs", "100000", "--num-steps", "100000"],
    ],
    "actor_critic": [
        ["--env", "Pendulum-v1"],
        ["--weight", "gae", "--critic", "q_learning"],
        ["--network", "cnn", "--env", "CartPole-v1"],
    ],
    "a2c": [
        ["--squash", "--env", "CartPole-v1"],
        ["--network", "cnn", "--env", "Pendulum-v1"],
        ["--num-envs", "100000", "--num-steps", "100000"],
    ],
    "trpo": TRUST_REGION,
    "natural_pg": TRUST_REGION,
    "sarsa": ACTION_VALUES,
    "expected_sarsa": ACTION_VALUES,
    "q_learning": ACTION_VALUES,
    "pqn": ACTION_VALUES,
    **dict.fromkeys(("qr_dqn", "iqn"), HEADS),
    **dict.fromkeys(("c51", "rainbow"), CATEGORICAL),
    "dqn": [
        *HEADS,
        ["--loss", "huber", "--distribution", "quantile"],
        ["--cvar", "0.5"],
        ["--network", "cnn", "--env", "CartPole-v1"],
        ["--buffer-size", "2147483647", "--env", "Breakout-MinAtar"],
        ["--parallel", "data"],
        ["--num-envs", "65537", "--train-frequency", "65539"],
    ],
    "td": [
        ["--num-minibatches", "3"],
        ["--network", "cnn", "--env", "Pendulum-v1"],
        ["--num-envs", "65536", "--num-steps", "65536"],
        ["--expert", "run"],
    ],
    "bc": [*IMITATION, ["--expert", "run"]],
    "dagger": [*IMITATION, ["--data", "data"]],
}
"""Fields that are valid alone and invalid together."""

GOOD_CRITICS = [
    ["--batch-norm", "--tau", "0.005", "--env", "Pendulum-v1"],
    ["--dropout", "0.1", "--env", "Pendulum-v1"],
    ["--num-quantiles", "5", "--env", "Pendulum-v1"],
    ["--num-critics", "3", "--target-subset", "1"],
    ["--critic-hidden-sizes", "8,4"],
    ["--hindsight", "future", "--env", "goal/point-reach"],
]
GOOD_DETERMINISTIC = [
    *GOOD_CRITICS,
    ["--noise", "ornstein_uhlenbeck"],
    ["--noise-std-last", "0.4", "--num-envs", "2"],
]
GOOD_HEADS = [
    ["--hindsight", "final", "--env", "goal/bit-flip"],
    ["--v-min", "-3", "--v-max", "5"],
    ["--no-double", "--munchausen", "0.9"],
    ["--distribution", "quantile", "--cvar", "0.25"],
]
TOGETHER: dict[str, list[list[str]]] = {
    "ddpg": GOOD_DETERMINISTIC,
    "td3": GOOD_DETERMINISTIC,
    "sac": [
        *GOOD_CRITICS,
        ["--noise", "state_dependent", "--env", "Pendulum-v1"],
        ["--temperature-end", "0.1", "--no-learn-temperature"],
    ],
    "dqn": GOOD_HEADS,
    **dict.fromkeys(("c51", "qr_dqn", "iqn", "rainbow"), GOOD_HEADS),
}
"""Fields that are valid together and not alone."""

GENERAL = [
    ["--env", "CartPole-v2"],
    ["--env", ""],
    ["--env", "no.such.module:make"],
    ["--env.gravity", "heavy"],
    ["--env.no_such_parameter", "1"],
    ["--env.horizon", "0"],
    ["--seed", "-1"],
    ["--seed", "2147483648"],
    ["--num-seeds", "0"],
    ["--num-seeds", "1.5"],
    ["--num-seeds", "2147483647"],
    ["--stop-iterations", "0"],
    ["--stop-return", "nan"],
    ["--evaluation-episodes", "0"],
    ["--checkpoint-every", "-1"],
    ["--keep", "0"],
    ["--parallel", "sideways"],
    ["--devices", "0"],
    ["--devices", "100000"],
    ["--on-nan", "pray"],
    ["--config", "no-such-file.toml"],
    ["--learning_rat", "1e-3"],
    ["--no-such-flag", "1"],
    ["--stop", "{"],
    ["surplus"],
]


def base(algorithm: Algorithm, env: str) -> list[str]:
    """A small valid run."""
    config = algorithm.Config()
    argv = ["train", algorithm.name, "--env", env, "--quiet", "--out", "run"]
    if algorithm.teacher in ("data", "expert"):
        argv += [flag(algorithm.teacher), "untrained"]
    for name, value in SMALL.items():
        if hasattr(config, name):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            argv += [flag(name), text]
    return argv


def mutations(algorithm: Algorithm) -> dict[str, list[list[str]]]:
    """Command-line suffixes that must be refused, for each field and for combinations."""
    types, limits = configs.field_types(algorithm.Config), limits_of(algorithm)
    found = {}
    for name, kind in types.items():
        endings = [[flag(name), text] for text in bad_values(kind, limits[name])]
        if kind is bool:
            endings = [[flag(name) + "=maybe"], [flag(name), "false"]]
        # A field that is misspelled.
        endings += [[flag(name) + "x", "1"], [flag(name)[:-1] + "_", "1"]]
        found[name] = endings
    found["combinations"] = COMBINATIONS.get(algorithm.name, []) + GENERAL
    return found


def bad_command(
    rng: random.Random, field: str | None, algorithm: Algorithm
) -> list[str]:
    """A valid run with one or two mistakes, the first of them in `field`."""
    found = mutations(algorithm)
    field = field or rng.choice(list(found))
    argv = base(algorithm, rng.choice(envs_of(algorithm)))
    endings = [rng.choice(found[field])]
    if rng.random() < 0.3:
        other = rng.choice(
            [name for name in found if name not in (field, "combinations")]
        )
        endings.append(rng.choice(found[other]))
    for ending in endings:
        argv += ending
    return argv


def bad_file(rng: random.Random, algorithm: Algorithm, folder: Path) -> list[str]:
    """The same mistakes in a config file, including values of the wrong type."""
    types = configs.field_types(algorithm.Config)
    name = rng.choice(list(types))
    wrong: list[Any] = [{}, [[1]], {"a": 1}, "text", [1.5], -5, None, 10**40, 1e300]
    values = [v for v in wrong if not fits(types[name], v)]
    content = {"config": {name: rng.choice(values)}}
    if rng.random() < 0.2:
        content = {"config": {name + "s": 1}}
    if rng.random() < 0.1:
        content = rng.choice([{"confg": {}}, {"config": []}, {"seed": "x"}, {"env": 3}])
    path = folder / "bad.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    env = envs_of(algorithm)[0]
    argv = ["train", algorithm.name, "--env", env, "--quiet", "--out", "run"]
    return [*argv, "--config", str(path)]


def fits(kind: Any, value: Any) -> bool:
    """True if a value of a file can be valid for a field of this type."""
    arguments = typing.get_args(kind)
    if value is None:
        return type(None) in arguments
    return typing.get_origin(kind) is Literal and value in arguments


def good_command(rng: random.Random, algorithm: Algorithm) -> list[str]:
    """A valid run with several fields at random values within their limits."""
    types, limits = configs.field_types(algorithm.Config), limits_of(algorithm)
    argv = base(algorithm, rng.choice(envs_of(algorithm)))
    # What needs another field, or an environment with a short time limit, to be right.
    left_alone = {
        "squash",
        "network",
        "kl_penalty_target",
        "weighting",
        "baseline",
        *SMALL,
    }
    left_alone |= {"hindsight", "dropout", "num_quantiles", "dropped_quantiles"}
    left_alone |= {"num_critics", "target_subset", "critic_hidden_sizes"}
    left_alone |= {"batch_norm", "noise", "noise_std_last", "temperature_end"}
    left_alone |= {"distribution", "cvar", "double", "munchausen", "v_min", "v_max"}
    left_alone |= {"weight", "critic", "loss"}
    free = [name for name in types if name not in left_alone]
    for name in rng.sample(free, rng.randint(1, 5)):
        kind, limit = types[name], limits[name]
        arguments = typing.get_args(kind)
        if kind is bool:
            argv.append(rng.choice(("--", "--no-")) + flag(name)[2:])
        elif typing.get_origin(kind) is Literal:
            argv += [flag(name), rng.choice(arguments)]
        elif kind is int:
            low = int(limit.get("low", 0))
            argv += [flag(name), str(rng.randint(low, low + 8))]
        else:
            low = limit.get("low", limit.get("above", 0.0))
            high = min(limit.get("high", 10.0), 10.0)
            value = low + (high - low) * max(rng.random(), 1e-3)
            argv += [flag(name), repr(value)]
    if "num_minibatches" in types and rng.random() < 0.3:
        argv += [flag("num_minibatches"), rng.choice(("1", "2", "4"))]
    if algorithm.name in TOGETHER and rng.random() < 0.5:
        argv += rng.choice(TOGETHER[algorithm.name])
    return argv


class Accepted(BaseException):
    """Exception raised in place of training."""


def _traced(job: Job, **kwargs: Any) -> None:
    """Instead of `run`: traces one train step, which compiles nothing."""
    variant = (job.config, job.env)
    state = jax.eval_shape(job.algorithm.init, *variant, jax.random.key(0))
    jax.eval_shape(job.algorithm.train_step, *variant, state)
    raise Accepted


def _not_traced(*args: Any, **kwargs: Any) -> None:
    raise Accepted


def _with_teacher(env: Any, algorithm: Algorithm, source: str | None) -> Any:
    """Replacement for loading a teacher: an untrained one."""
    if source is None:
        return env
    if algorithm.teacher == "data":
        both = (env.observation_space, env.action_space)
        obs, action = (spaces.zeros(space, (1,)) for space in both)
        reward, end, no_end = jnp.zeros(1), jnp.ones(1, bool), jnp.zeros(1, bool)
        columns = Transition(obs, action, reward, end, no_end, obs, {})
        return env.replace(teacher=dataset.from_columns(columns, *both))
    config = PPO.Config()
    shapes = jax.eval_shape(PPO.init, config, env, jax.random.key(0)).agent
    agent = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return env.replace(teacher=FrozenPolicy(config, agent, PPO))


@contextlib.contextmanager
def instead_of_training(trace: bool) -> Iterator[None]:
    with (
        mock.patch.object(session, "run", _traced if trace else _not_traced),
        mock.patch.object(experiment, "with_teacher", _with_teacher),
        mock.patch.object(experiment, "teacher_digest", lambda *_: None),
    ):
        yield


def judge(argv: list[str], trace: bool = False) -> tuple[str, str]:
    """Outcome of a command line in the working directory, which must be empty.

    Returns:
      "accepted", "refused" (exit code 2, one line, nothing written), or what was wrong
      with the refusal; and what was said.
    """
    said, out = io.StringIO(), io.StringIO()
    with (
        instead_of_training(trace),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(out),
    ):
        try:
            code = main(argv)
        except Accepted:
            return "accepted", ""
        except Exception as error:
            return f"raised {type(error).__name__}", str(error)
    text = said.getvalue()
    if code != 2:
        return f"exit code {code}", text
    if len(text.splitlines()) != 1 or not text.startswith("jaxrl: "):
        return "not one line", text
    if any(word in text for word in ("XLA", "Traceback", "INTERNAL", "jaxlib")):
        return "from inside XLA", text
    if os.listdir():
        return "something written", text
    return "refused", text
