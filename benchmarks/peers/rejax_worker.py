"""Rejax under the benchmark's protocol; see protocol.py.

Rejax evaluates during training. Here its evaluation is an empty function, so the
compiled program only trains.
"""

import platform
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from protocol import Answer, serve, updates_for
from rejax import DQN, PPO, SAC, TD3
from rejax.algos import Algorithm
from rejax.evaluate import evaluate
from rejax.networks import DiscreteQNetwork, EpsilonGreedyPolicy

Config = dict[str, Any]

NOTES = {
    "ppo": "Rejax clips each entry of the gradient (not its global norm) at max_grad_norm, "
    "clips the value loss too, has an Adam each for actor and critic with eps 1e-8, "
    "LeCun-normal initialisation, and takes a time limit for a true end",
    "dqn": "Rejax draws batches without replacement, clips each entry of the gradient (not "
    "its global norm) at max_grad_norm, has Adam with eps 1e-8, LeCun-normal "
    "initialisation, and takes a time limit for a true end",
    "sac": "Rejax draws batches without replacement, updates the actor before the critics, "
    "acts by its policy from the first step, learns the temperature and not its logarithm, "
    "clips log std at -10, gives critics the action in its units, has LeCun-normal "
    "initialisation, and takes a time limit for a true end",
    "td3": "Rejax draws batches without replacement, its actor follows the mean of both "
    "critics, it has LeCun-normal initialisation, and takes a time limit for a true end",
}


def no_evaluation(algorithm: Algorithm, state: Any, key: jax.Array) -> tuple[()]:
    """Replacement for Rejax's evaluation of 128 episodes."""
    return ()


def make_ppo(env: str, config: Config, env_steps: int) -> Algorithm:
    """Rejax's PPO with the requested configuration."""
    same_names = "num_envs num_steps num_epochs num_minibatches learning_rate gamma"
    same_names += " gae_lambda clip_eps ent_coef vf_coef max_grad_norm"
    return PPO.create(
        env=env,
        agent_kwargs={
            "hidden_layer_sizes": tuple(config["hidden_sizes"]),
            "activation": config["activation"],
        },
        total_timesteps=env_steps,
        eval_freq=env_steps,
        skip_initial_evaluation=True,
        **{name: config[name] for name in same_names.split()},
    )


def make_dqn(env: str, config: Config, env_steps: int) -> Algorithm:
    """Rejax's DQN with the requested configuration; not double, not dueling.

    Rejax updates after every vector step. It spreads epsilon over a fraction of the run's
    own steps, so the fraction is scaled to the requested ones.
    """
    vector_steps, gradient_steps = updates_for(config)
    if vector_steps != 1:
        raise ValueError(
            "Rejax's DQN updates after every vector step, not more rarely."
        )
    same_names = "num_envs buffer_size batch_size learning_rate gamma max_grad_norm"
    scale = config["total_steps"] / env_steps
    dqn = DQN.create(
        env=env,
        num_epochs=gradient_steps,
        fill_buffer=config["learning_starts"],
        eps_start=config["epsilon_start"],
        eps_end=config["epsilon_end"],
        exploration_fraction=config["exploration_fraction"] * scale,
        target_update_freq=config["target_update_interval"],
        polyak=0.0,  # a copy
        ddqn=False,
        total_timesteps=env_steps,
        eval_freq=env_steps,
        skip_initial_evaluation=True,
        **{name: config[name] for name in same_names.split()},
    )
    # `create` has no way to ask for another network than 64-64.
    network = EpsilonGreedyPolicy(DiscreteQNetwork)(
        hidden_layer_sizes=tuple(config["hidden_sizes"]),
        activation=getattr(nn, config["activation"]),
        action_dim=dqn.action_dim,
    )
    return dqn.replace(agent=network)


def control_arguments(config: Config, env_steps: int) -> Config:
    """What Rejax's SAC and TD3 share; both update after every vector step."""
    vector_steps, gradient_steps = updates_for(config)
    if vector_steps != 1:
        raise ValueError("Rejax updates after every vector step, not more rarely.")
    same_names = "num_envs buffer_size batch_size learning_rate gamma"
    return {
        "num_epochs": gradient_steps,
        "fill_buffer": config["learning_starts"],
        "target_update_freq": 1,
        "polyak": 1.0 - config["tau"],
        "max_grad_norm": float("inf"),
        "total_timesteps": env_steps,
        "eval_freq": env_steps,
        "skip_initial_evaluation": True,
        **{name: config[name] for name in same_names.split()},
    }


def make_sac(env: str, config: Config, env_steps: int) -> Algorithm:
    """Rejax's SAC with the requested configuration."""
    return SAC.create(
        env=env,
        hidden_layer_sizes=tuple(config["hidden_sizes"]),
        agent_kwargs={"activation": config["activation"]},
        **control_arguments(config, env_steps),
    )


def make_td3(env: str, config: Config, env_steps: int) -> Algorithm:
    """Rejax's TD3, whose layers are 64-64, with the requested configuration.

    Its noise is in units of the action, ours in half widths of the space.
    """
    if tuple(config["hidden_sizes"]) != (64, 64):
        raise ValueError(f"Rejax's TD3 has layers of 64, not {config['hidden_sizes']}")
    plain = TD3.create(env=env)
    space = plain.env.action_space(plain.env_params)
    scale = float((space.high - space.low) / 2)
    return TD3.create(
        env=env,
        actor_kwargs={"activation": config["activation"]},
        critic_kwargs={"activation": config["activation"]},
        policy_delay=config["policy_delay"],
        exploration_noise=config["noise_std"] * scale,
        target_noise=config["target_noise"] * scale,
        target_noise_clip=config["target_noise_clip"] * scale,
        **control_arguments(config, env_steps),
    )


def make(case: dict[str, Any], env_steps: int) -> Algorithm:
    """The case's algorithm, which trains for `env_steps` and never evaluates."""
    makers = {"ppo": make_ppo, "dqn": make_dqn, "sac": make_sac, "td3": make_td3}
    algorithm = makers[case["algorithm"]](case["env"], case["config"], env_steps)
    return algorithm.replace(eval_callback=no_evaluation)


def keys_of(seeds: Sequence[int]) -> jax.Array:
    """One random key for each seed."""
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def train(algorithm: Algorithm, keys: jax.Array) -> Any:
    """Train one agent for each key; return the final states with a leading axis of keys.

    A single agent is trained without `vmap`, which would execute both sides of branches.
    """
    if len(keys) == 1:
        state, _ = algorithm.train(keys[0])
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], state)
    states, _ = jax.vmap(algorithm.train)(keys)
    return states


def compile_training(algorithm: Algorithm, num_seeds: int) -> jax.stages.Compiled:
    """The training of `num_seeds` agents as one compiled program of their keys."""
    program = jax.jit(partial(train, algorithm))
    return program.lower(keys_of(range(num_seeds))).compile()


def greedy_return(
    algorithm: Algorithm, episodes: int, state: Any, key: jax.Array
) -> jax.Array:
    """Mean return over whole episodes; Rejax's own `act` samples, so it is not used."""

    def act(obs: jax.Array, key: jax.Array) -> jax.Array:
        obs = obs[None]
        if isinstance(algorithm, TD3):
            return algorithm.actor.apply(state.actor_ts.params, obs)[0]
        if isinstance(algorithm, SAC):
            actor, params = algorithm.actor, state.actor_ts.params
            mean = actor.apply(params, obs, method="_action_dist").loc[0]
            return actor.action_loc + actor.action_scale * jnp.tanh(mean)
        if isinstance(algorithm, PPO):
            actor, params = algorithm.actor, state.actor_ts.params
            return actor.apply(params, obs, method="_action_dist").mode()[0]
        return algorithm.agent.apply(state.q_ts.params, obs).argmax(axis=-1)[0]

    env, params = algorithm.env, algorithm.env_params
    _, returns = evaluate(act, key, env, params, episodes, params.max_steps_in_episode)
    return returns.mean()


class Worker:
    """Worker with the current case and its compiled program."""

    def prepare(self, case: dict[str, Any]) -> Answer:
        """Compile the training of `num_seeds` agents for `env_steps` steps each."""
        self.case = case
        self.num_seeds = case["num_seeds"]
        algorithm = make(case, case["env_steps"])
        start = time.perf_counter()
        self.program = compile_training(algorithm, self.num_seeds)
        seconds = time.perf_counter() - start
        versions = {name: version(name) for name in ("jax", "rejax", "gymnax", "flax")}
        return {
            "compile_seconds": seconds,
            "versions": {"python": platform.python_version(), **versions},
            "note": self.note(),
        }

    def note(self) -> str:
        """Differences from the requested configuration."""
        annealed = self.case["config"].get("anneal_lr", False)
        rate = "; the learning rate is constant: Rejax does not anneal it"
        return NOTES[self.case["algorithm"]] + (rate if annealed else "") + "."

    def run(self, seed: int, env_steps: int) -> Answer:
        """Time the compiled program, which runs the number of steps given to `prepare`."""
        first = seed * self.num_seeds
        keys = jax.block_until_ready(keys_of(range(first, first + self.num_seeds)))
        start = time.perf_counter()
        states = jax.block_until_ready(self.program(keys))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "env_steps": int(states.global_step.sum())}

    def learn(self, seeds: list[int], env_steps: int, episodes: int) -> Answer:
        """Train `num_seeds` agents at a time, which bounds the memory, and evaluate."""
        algorithm, program = make(self.case, env_steps), self.program
        if env_steps != self.case["env_steps"]:
            program = compile_training(algorithm, self.num_seeds)
        assess = jax.jit(jax.vmap(partial(greedy_return, algorithm, episodes)))
        returns: list[float] = []
        for first in range(0, len(seeds), self.num_seeds):
            group = seeds[first : first + self.num_seeds]
            spare = [group[-1]] * (self.num_seeds - len(group))
            states = program(keys_of(group + spare))
            keys = keys_of([seed + 1_000_000 for seed in group + spare])
            returns += assess(states, keys)[: len(group)].tolist()
        return {"returns": returns, "env_steps": int(states.global_step[0])}


if __name__ == "__main__":
    worker = Worker()
    serve({"prepare": worker.prepare, "run": worker.run, "learn": worker.learn})
