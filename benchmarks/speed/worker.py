"""Our side of the benchmark's protocol: `python -m benchmarks.speed.worker`.

Each case has its own process, like the peers': one program, a fresh compilation
cache or a warm one, and as many CPU devices as the case can use.
"""

import time
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.speed import levels
from benchmarks.speed.protocol import Answer, serve
from jaxrl import distributions
from jaxrl.algorithms import ALGORITHMS
from jaxrl.core.prng import key
from jaxrl.envs import make
from jaxrl.evaluation import evaluate_population
from jaxrl.runs.experiment import versions
from jaxrl.training import loop
from jaxrl.training.devices import use_all_cores, use_compilation_cache

IMPORTED = distributions
"""Imported early: it is slow, and would otherwise be imported within the timed
compilation."""


class Worker:
    """Worker for one case, which is prepared once."""

    def prepare(self, case: dict[str, Any], cache: str | None = None) -> Answer:
        """Compile the training program; `cache` is a folder for compiled programs."""
        if cache:
            use_compilation_cache(cache)
        use_all_cores()
        self.case, self.num_seeds = case, case["num_seeds"]
        self.algorithm = ALGORITHMS[case["algorithm"]]
        self.env = make(case["env"])
        fields = {
            name: tuple(v) if isinstance(v, list) else v
            for name, v in case["config"].items()
        }
        config = self.algorithm.Config(**fields)
        self.job = loop.resolve(
            self.algorithm, config, self.env, num_seeds=self.num_seeds
        )
        self.plan, self.config = self.job.plan, self.job.config
        started = time.perf_counter()
        self._train(0, 0)
        return {
            "compile_seconds": time.perf_counter() - started,
            "versions": versions(),
            "device": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "devices": len(jax.local_devices()),
            "note": "",
        }

    def run(self, seed: int, env_steps: int) -> Answer:
        """Time the training of new agents, including `init`, as for the peers.

        `training_rate` excludes it: it is T, without DQN's random steps before the first
        update.
        """
        plan = self.plan
        iterations = loop.num_iterations(plan, env_steps)
        started = time.perf_counter()
        _, init_seconds = self._train(seed * self.num_seeds, iterations)
        seconds = time.perf_counter() - started
        trained = iterations * plan.env_steps * self.num_seeds
        return {
            "seconds": seconds,
            "env_steps": trained + plan.warmup_env_steps * self.num_seeds,
            "training_rate": trained / (seconds - init_seconds),
        }

    def learn(self, seeds: list[int], env_steps: int, episodes: int) -> Answer:
        """Greedy returns after training, one for each seed."""
        iterations = loop.num_iterations(self.plan, env_steps)
        few, before = len(seeds), (self.num_seeds, self.job)
        self.num_seeds, self.job = (
            few,
            loop.resolve(self.algorithm, self.config, self.env, num_seeds=few),
        )
        state, _ = self._train(seeds[0], iterations)
        agents = jax.device_put(state.agent, jax.local_devices()[0])
        played = evaluate_population(
            self.algorithm, self.config, self.env, agents, key(1), episodes
        )
        returns = np.asarray(played.episode_return).mean(1).tolist()
        self.num_seeds, self.job = before
        done = self.plan.warmup_env_steps + iterations * self.plan.env_steps
        return {"returns": returns, "env_steps": done}

    def levels(self, least: float) -> Answer:
        """E, I and the limit of this case, environment steps per second."""
        num_envs = self.config.num_envs
        num_steps = max(1, min(128, 2**20 // num_envs))
        state = jax.jit(partial(self.algorithm.init, self.config, self.env))(key(0))
        name = self.algorithm.name
        rate, arrangement, microseconds = levels.limit(
            name, self.config, self.env, self.num_seeds, least
        )
        return {
            "environment": levels.environment_only(
                self.env, num_envs, num_steps, least
            ),
            "inference": levels.inference(
                name, self.config, self.env, state, num_steps, least
            ),
            "limit": rate,
            "limit_arrangement": arrangement,
            "limit_microseconds": microseconds,
        }

    def _train(self, first_seed: int, iterations: int) -> tuple[Any, float]:
        """The state after training, and the seconds that `init` took."""
        started = time.perf_counter()
        seeds = range(first_seed, first_seed + self.num_seeds)
        job = self.job._replace(seeds=list(seeds))
        progress = jax.block_until_ready(loop.first_progress(job))
        init_seconds = time.perf_counter() - started
        progress = jax.block_until_ready(loop.advance(job, progress, iterations))
        return progress.state, init_seconds


def environment_levels(env: str, num_envs: int, num_steps: int, least: float) -> Answer:
    """B8: the environment alone, by reset strategy, and gymnax's own `step`."""
    made = make(env)
    rates = {
        f"fresh starts every {every} step(s)": levels.environment_only(
            made.replace(shortest_episode=every), num_envs, num_steps, least
        )
        for every in sorted({1, made.shortest_episode, num_steps})
    }
    return {
        "environment": levels.environment_only(made, num_envs, num_steps, least),
        "by_strategy": rates,
        "gymnax": levels.gymnax_own(env, num_envs, num_steps, least),
    }


def main() -> None:
    worker = Worker()
    serve(
        {
            "prepare": worker.prepare,
            "run": worker.run,
            "learn": worker.learn,
            "levels": worker.levels,
            "environment": environment_levels,
        }
    )


if __name__ == "__main__":
    main()
