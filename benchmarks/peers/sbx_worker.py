"""SBX, Stable-Baselines3 with JAX networks, under the benchmark's protocol.

See protocol.py. SBX compiles its updates anew for each agent. So each agent first trains
briefly, is reset to its initial state, and then the clock starts.
"""

import platform
import time
from importlib.metadata import version
from typing import Any

import jax
from flax import linen as nn
from protocol import Answer, serve
from sb3_worker import (
    check,
    dqn_arguments,
    greedy_return,
    make_envs,
    ppo_arguments,
    train,
)
from sbx import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

STATES = {"ppo": ("actor_state", "vf_state"), "dqn": ("qf_state",)}
"""Attributes of a policy with parameters and optimiser state, by algorithm."""

NOTES = {
    "ppo": "SBX's value loss has no factor 1/2, actor and critic have an optimiser each, "
    "the initialisation is LeCun-normal, and the environments are gymnasium's",
    "dqn": "SBX's loss is Huber's, its gradient is not clipped, all hidden layers are as "
    "wide as the first, the learning rate is constant, Adam's eps is 1e-8, and the "
    "environments are gymnasium's",
}


def make(case: dict[str, Any], seed: int, env_steps: int) -> BaseAlgorithm:
    """A fresh agent with the requested configuration."""
    config, ppo = case["config"], case["algorithm"] == "ppo"
    arguments = (ppo_arguments if ppo else dqn_arguments)(config, env_steps)
    arguments["policy_kwargs"] = {
        "net_arch": list(config["hidden_sizes"]),  # PPO: of the actor and of the critic
        "activation_fn": getattr(nn, config["activation"]),
    }
    envs = make_envs(case["env"], config["num_envs"])
    return (PPO if ppo else DQN)("MlpPolicy", envs, seed=seed, **arguments)


def warm_up(model: BaseAlgorithm, case: dict[str, Any], seed: int) -> None:
    """Train until everything is compiled, then restore the initial state."""
    before = {
        # Copied, since SBX writes learning rates into the optimiser's state.
        name: jax.tree.map(lambda leaf: leaf, getattr(model.policy, name))
        for name in STATES[case["algorithm"]]
    }
    if case["algorithm"] == "ppo":
        model.learn(1, log_interval=None)  # one rollout and its updates
    else:
        starts, model.learning_starts = model.learning_starts, 0
        until_target = 2 * case["config"]["target_update_interval"]
        model.learn(until_target, log_interval=None)
        model.learning_starts, model._n_calls = starts, 0
        model.replay_buffer.reset()
    model.predict(model.env.reset(), deterministic=True)
    for name, state in before.items():
        setattr(model.policy, name, state)
    model.set_random_seed(seed)


def ready(case: dict[str, Any], seed: int, env_steps: int) -> BaseAlgorithm:
    """A fresh agent whose functions are compiled."""
    model = make(case, seed, env_steps)
    warm_up(model, case, seed)
    return model


class Worker:
    """Worker with the current case."""

    def prepare(self, case: dict[str, Any]) -> Answer:
        """Time a warm-up, which is repeated untimed before each run."""
        check(case, "sbx")
        self.case = case
        start = time.perf_counter()
        ready(case, 0, case["env_steps"])
        seconds = time.perf_counter() - start
        peers = ("jax", "sbx-rl", "stable-baselines3", "gymnasium", "torch")
        versions = {name: version(name) for name in peers}
        return {
            "compile_seconds": seconds,
            "versions": {"python": platform.python_version(), **versions},
            "note": NOTES[case["algorithm"]] + ".",
        }

    def run(self, seed: int, env_steps: int) -> Answer:
        """Time the training of a new agent after compilation."""
        return train(ready(self.case, seed, env_steps), env_steps)

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
