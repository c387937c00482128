"""Training runs that compile and finish in seconds, through the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.cli import main
from jaxrl.runs.artifact import Agents
from jaxrl.training import population
from jaxrl.types import Env
from tests.support.paths import ROOT
from tests.support.small import counting_env

COMMON = "--num-envs 2 --hidden-sizes 4 --total-steps 40 --evaluation-episodes 4"
FLAGS = {
    "ppo": "--num-seeds 2 --num-steps 4 --num-epochs 1 --num-minibatches 2",
    "reinforce": "--num-steps 4",
    "actor_critic": "--num-steps 4",
    "a2c": "--num-steps 4",
    "td": "--num-steps 4 --num-epochs 1 --num-minibatches 2",
    "sarsa": "--num-steps 4 --num-epochs 1 --num-minibatches 2",
    **dict.fromkeys(
        ("ddpg", "td3", "sac"),
        "--train-frequency 4 --learning-starts 8 --batch-size 4 --buffer-size 32",
    ),
    "bc": "--num-steps 4 --num-updates 2 --batch-size 4",
    "dagger": "--num-steps 4 --num-updates 2 --batch-size 4 --buffer-size 32",
    **dict.fromkeys(
        ("dqn", "rainbow"),
        "--train-frequency 4 --learning-starts 8 --batch-size 4 --buffer-size 32",
    ),
}
"""Runs that differ only in floats, seeds and lengths share one compiled program: tests
change those and leave the rest alone."""


def train_argv(algorithm: str, *more: str, env: str = "probe/action") -> list[str]:
    """A `jaxrl train` command line; of a flag given twice the last one counts."""
    common = f"train {algorithm} --env {env} {COMMON} {FLAGS[algorithm]}"
    return [*common.split(), *more]


def train(out: Path, algorithm: str, *more: str, **kwargs: str) -> Path:
    """Trains into the folder `out`, and returns it."""
    argv = train_argv(algorithm, *more, "--quiet", "--out", str(out), **kwargs)
    assert main(argv) == 0
    return out


def exploding() -> Env:
    """`tests.support.runs:exploding`: the reward is infinite from the eleventh step on."""
    env = counting_env()

    def step(key, state, action, params):
        state, timestep = env.step(key, state, action, params)
        reward = jnp.where(state > 10, jnp.inf, 0.0)
        return state, timestep._replace(reward=reward)

    return env.replace(step=step)


def act(policy: Agents) -> np.ndarray:
    """All that the first agent answers to eight observations, sampled and greedy, as
    bytes."""
    algorithm, config, env, _, agents, *_ = policy
    agent, memory = population.member(agents, 0), algorithm.init_memory(config, env, 8)
    obs = spaces.zeros(env.observation_space, (8,)) + np.linspace(-1, 1, 8)[:, None]
    key = jax.random.key(0)
    answers = [
        algorithm.act(config, env, agent, obs, memory, key, greedy)
        for greedy in (False, True)
    ]
    leaves = [np.asarray(x).ravel().view(np.uint8) for x in jax.tree.leaves(answers)]
    return np.concatenate(leaves)


def run_python(program: str, devices: int = 0, **environment: str) -> list[str]:
    """The lines that a program prints in a process of its own, with so many CPU devices
    forced on it."""
    if devices:
        forced = f"--xla_force_host_platform_device_count={devices}"
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {forced}"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


RLHF = {
    "sft": "--data small-world --number 60 --model num_layers=1,num_heads=2,width=16 "
    "--max-length 8 --total-steps 1920 --batch-size 64 --learning-rate 1e-2",
    "reward": "--data small-world --number 200 --max-length 8 --total-steps 4000 "
    "--batch-size 40 --learning-rate 3e-3",
}
"""Flags of `jaxrl rlhf ...`, on models that compile in a few seconds."""


def rlhf(out: Path, name: str, *more: str) -> Path:
    """Trains a language model into the folder `out`, and returns it."""
    words = f"rlhf {name} {RLHF[name]} --evaluation-episodes 4 --quiet --out {out}"
    assert main([*words.split(), *more]) == 0
    return out
