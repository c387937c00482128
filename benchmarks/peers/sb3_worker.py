"""Stable-Baselines3 under the benchmark's protocol; see protocol.py.

Environments are Gymnasium's, stepped one after the other in this process, which is the
fastest way for small ones. They have no `Monitor`, and nothing is logged.
"""

import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np
import torch
from protocol import Answer, serve, updates_for
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

Config = dict[str, Any]

ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}

NOTES = {
    "ppo": "SB3's value loss has no factor 1/2, and its environments are gymnasium's",
    "dqn": "SB3's loss is Huber's, Adam's eps is 1e-8, and its environments are "
    "gymnasium's",
}


def check(case: dict[str, Any], peer: str) -> None:
    """Refuse cases that the peer does not support."""
    if case["env"].endswith("-MinAtar"):
        raise ValueError(f"{peer} has no {case['env']} without a GPL package")
    if case["num_seeds"] != 1:
        raise ValueError(f"{peer} trains one agent a process, not {case['num_seeds']}")


def make_envs(env: str, num_envs: int) -> DummyVecEnv:
    """Make environments that are stepped one after the other in this process."""
    return DummyVecEnv([lambda: gymnasium.make(env) for _ in range(num_envs)])


def learning_rate(config: Config, env_steps: int) -> float | Callable[[float], float]:
    """Constant learning rate, or its linear decay to zero over `total_steps`."""
    if not config.get("anneal_lr", False):
        return config["learning_rate"]
    part = env_steps / config["total_steps"]
    return lambda remaining: config["learning_rate"] * (1 - (1 - remaining) * part)


def ppo_arguments(config: Config, env_steps: int) -> dict[str, Any]:
    """The arguments that SB3's and SBX's PPO share."""
    same_names = "gamma gae_lambda ent_coef vf_coef max_grad_norm"
    batch = config["num_envs"] * config["num_steps"]
    return {
        "learning_rate": learning_rate(config, env_steps),
        "n_steps": config["num_steps"],
        "n_epochs": config["num_epochs"],
        "batch_size": batch // config["num_minibatches"],
        "clip_range": config["clip_eps"],
        **{name: config[name] for name in same_names.split()},
    }


def dqn_arguments(config: Config, env_steps: int) -> dict[str, Any]:
    """The arguments that SB3's and SBX's DQN share."""
    same_names = "gamma buffer_size learning_starts batch_size target_update_interval"
    vector_steps, gradient_steps = updates_for(config)
    scale = config["total_steps"] / env_steps
    return {
        "learning_rate": learning_rate(config, env_steps),
        "train_freq": vector_steps,
        "gradient_steps": gradient_steps,
        "exploration_initial_eps": config["epsilon_start"],
        "exploration_final_eps": config["epsilon_end"],
        "exploration_fraction": config["exploration_fraction"] * scale,
        **{name: config[name] for name in same_names.split()},
    }


def control_arguments(config: Config, num_actions: int) -> dict[str, Any]:
    """The arguments of SAC and, of those with noise, of TD3."""
    same_names = "learning_rate gamma tau buffer_size learning_starts batch_size"
    vector_steps, gradient_steps = updates_for(config)
    arguments = {name: config[name] for name in same_names.split()}
    arguments |= {"train_freq": vector_steps, "gradient_steps": gradient_steps}
    if "noise_std" not in config:
        return arguments
    std = np.full(num_actions, config["noise_std"])
    return arguments | {
        "policy_delay": config["policy_delay"],
        "target_policy_noise": config["target_noise"],
        "target_noise_clip": config["target_noise_clip"],
        "action_noise": NormalActionNoise(np.zeros(num_actions), std),
    }


def make(case: dict[str, Any], seed: int, env_steps: int) -> BaseAlgorithm:
    """A fresh agent with the requested configuration."""
    config, ppo = case["config"], case["algorithm"] == "ppo"
    sizes = list(config["hidden_sizes"])
    policy: dict[str, Any] = {"activation_fn": ACTIVATIONS[config["activation"]]}
    if ppo:
        arguments = ppo_arguments(config, env_steps)
        policy["net_arch"] = {"pi": sizes, "vf": sizes}
    else:
        arguments = dqn_arguments(config, env_steps)
        arguments["max_grad_norm"] = config["max_grad_norm"]
        policy["net_arch"] = sizes
    envs = make_envs(case["env"], config["num_envs"])
    arguments |= {"policy_kwargs": policy, "seed": seed, "device": "cpu"}
    return (PPO if ppo else DQN)("MlpPolicy", envs, **arguments)


def train(model: BaseAlgorithm, env_steps: int) -> Answer:
    """Time the training of a new agent, in whole rollouts."""
    start = time.perf_counter()
    model.learn(env_steps, log_interval=None)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "env_steps": model.num_timesteps}


def greedy_return(model: BaseAlgorithm, env: str, episodes: int, seed: int) -> float:
    """Mean return over whole episodes, in up to 16 environments at once."""
    envs = make_envs(env, min(episodes, 16))
    envs.seed(seed + 1_000_000)
    mean, _ = evaluate_policy(model, envs, episodes, deterministic=True, warn=False)
    return float(mean)


def choose_threads(case: dict[str, Any]) -> int:
    """Set torch to one thread if that is faster than its default."""
    own = torch.get_num_threads()
    if own == 1:
        return own
    short = {**case["config"], "learning_starts": 0}
    steps = 4 * short["num_envs"] * short.get("num_steps", 256)
    seconds = {}
    for threads in (own, 1, own, 1):  # the first two warm up
        torch.set_num_threads(threads)
        model = make({**case, "config": short}, 0, steps)
        seconds[threads] = train(model, steps)["seconds"]
    best = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(best)
    return best


class Worker:
    """Worker with the current case."""

    def prepare(self, case: dict[str, Any]) -> Answer:
        """Choose the number of torch's threads; nothing is compiled."""
        check(case, "stable-baselines3")
        self.case = case
        threads = choose_threads(case)
        peers = ("torch", "stable-baselines3", "gymnasium")
        versions = {name: version(name) for name in peers}
        return {
            "compile_seconds": 0.0,
            "versions": {"python": platform.python_version(), **versions},
            "note": f"{NOTES[case['algorithm']]}; torch's threads: {threads}.",
        }

    def run(self, seed: int, env_steps: int) -> Answer:
        """Time the training of a new agent."""
        return train(make(self.case, seed, env_steps), env_steps)

    def learn(self, seeds: list[int], env_steps: int, episodes: int) -> Answer:
        """Train the seeds one after the other, and evaluate."""
        returns = []
        for seed in seeds:
            model = make(self.case, seed, env_steps)
            done = train(model, env_steps)["env_steps"]
            returns.append(greedy_return(model, self.case["env"], episodes, seed))
        return {"returns": returns, "env_steps": done}


if __name__ == "__main__":
    worker = Worker()
    serve({"prepare": worker.prepare, "run": worker.run, "learn": worker.learn})
