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
    control_arguments,
    dqn_arguments,
    greedy_return,
    make_envs,
    ppo_arguments,
    train,
)
from sbx import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm

ALGORITHMS = {"ppo": PPO, "dqn": DQN, "sac": SAC, "td3": TD3}
STATES = {
    "ppo": ("actor_state", "vf_state"),
    "dqn": ("qf_state",),
    "sac": ("actor_state", "qf_state"),
    "td3": ("actor_state", "qf_state"),
}
"""Attributes of a policy with parameters and optimiser state, by algorithm."""

NOTES = {
    "ppo": "SBX's value loss has no factor 1/2, actor and critic have an optimiser each, "
    "the initialisation is LeCun-normal, and the environments are gymnasium's",
    "dqn": "SBX's loss is Huber's, its gradient is not clipped, all hidden layers are as "
    "wide as the first, the learning rate is constant, Adam's eps is 1e-8, and the "
    "environments are gymnasium's",
    "sac": "SBX's initialisation is LeCun-normal, and its environments are gymnasium's",
    "td3": "SBX's targets follow every step of the critics, its actor the smaller critic, "
    "the initialisation is LeCun-normal, and the environments are gymnasium's",
}


def make(case: dict[str, Any], seed: int, env_steps: int) -> BaseAlgorithm:
    """A fresh agent with the requested configuration."""
    config, name = case["config"], case["algorithm"]
    envs = make_envs(case["env"], config["num_envs"])
    if name == "ppo":
        arguments = ppo_arguments(config, env_steps)
    elif name == "dqn":
        arguments = dqn_arguments(config, env_steps)
    else:
        arguments = control_arguments(config, envs.action_space.shape[0])
    arguments["policy_kwargs"] = {
        "net_arch": list(config["hidden_sizes"]),  # of the actor and of the critics
        "activation_fn": getattr(nn, config["activation"]),
    }
    return ALGORITHMS[name]("MlpPolicy", envs, seed=seed, **arguments)


def warm_up(model: BaseAlgorithm, case: dict[str, Any], seed: int) -> None:
    """Train until everything is compiled, then restore the initial state."""
    places = [(model.policy, name) for name in STATES[case["algorithm"]]]
    if case["algorithm"] == "sac":
        places.append((model, "ent_coef_state"))
    # Copied, since SBX writes learning rates into the optimiser's state.
    before = [
        jax.tree.map(lambda leaf: leaf, getattr(owner, name)) for owner, name in places
    ]
    if case["algorithm"] == "ppo":
        model.learn(1, log_interval=None)  # one rollout and its updates
    else:
        starts, model.learning_starts = model.learning_starts, 0
        until_target = 2 * case["config"].get("target_update_interval", 50)
        model.learn(until_target, log_interval=None)
        model.learning_starts, model._n_calls = starts, 0
        model.replay_buffer.reset()
    model.predict(model.env.reset(), deterministic=True)
    for (owner, name), state in zip(places, before, strict=True):
        setattr(owner, name, state)
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
