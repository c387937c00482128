"""Configurations of the throughput benchmark."""

from typing import Any, NamedTuple

PPO = {
    "total_steps": 500_000.0,
    "num_envs": 4,
    "num_steps": 128,
    "num_epochs": 4,
    "num_minibatches": 4,
    "learning_rate": 2.5e-4,
    "anneal_lr": False,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_eps": 0.2,
    "clip_value": True,
    "ent_coef": 0.01,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
    "network": "mlp",
    "normalize_reward": False,
}
DQN = {
    "total_steps": 500_000.0,
    "num_envs": 10,
    "train_frequency": 10,
    "num_updates": 1,
    "buffer_size": 10_000,
    "learning_starts": 10_000,
    "batch_size": 128,
    "learning_rate": 2.5e-4,
    "gamma": 0.99,
    "epsilon_start": 1.0,
    "epsilon_end": 0.05,
    "exploration_fraction": 0.5,
    "target_update_interval": 500,
    "max_grad_norm": 10.0,
    "hidden_sizes": (120, 84),
    "activation": "relu",
    "network": "mlp",
}
DQN_BREAKOUT = DQN | {
    "total_steps": 1_000_000.0,
    "num_envs": 1,
    "train_frequency": 1,
    "buffer_size": 100_000,
    "learning_starts": 20_000,
    "batch_size": 100,
    "learning_rate": 5e-4,
    "gamma": 1.0,
    "target_update_interval": 1_000,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
}
CONTROL = {
    "total_steps": 20_000.0,
    "num_envs": 1,
    "train_frequency": 1,
    "num_updates": 1,
    "buffer_size": 131_072,  # Rejax's default
    "learning_starts": 1_000,
    "batch_size": 256,
    "learning_rate": 1e-3,
    "gamma": 0.98,
    "tau": 0.005,
    "hidden_sizes": (64, 64),
    "activation": "relu",
    "network": "mlp",
}
TD3 = CONTROL | {
    "policy_delay": 2,
    "noise_std": 0.1,
    "target_noise": 0.2,
    "target_noise_clip": 0.5,
}
SMALL_MEMORY = {"buffer_size": 20_000}
"""The smallest that holds a run: Rejax's compiled step copies its memory."""


class Case(NamedTuple):
    """One configuration. Sizes are for each member of the population."""

    algorithm: str
    env: str
    config: dict[str, Any]
    num_seeds: int = 1
    peers: tuple[str, ...] = ()
    bars: dict[str, float] = {}  # noqa: RUF012  # peer, or "limit": the ratio to reach
    learn_steps: int = 0  # environment steps of the learning check, 0 for none
    learn_seeds: int = 8
    only: str = ""  # the platform it is for; "" is any

    def as_json(self, name: str, env_steps: int) -> dict[str, Any]:
        """The case as JSON, in the workers' protocol."""
        return {
            "name": name,
            "algorithm": self.algorithm,
            "env": self.env,
            "num_seeds": self.num_seeds,
            "env_steps": env_steps,
            "config": self.config,
        }


BREAKOUT = "Breakout-MinAtar"
CARTPOLE = "CartPole-v1"
WIDE = PPO | {"num_envs": 2_048, "num_steps": 32, "num_minibatches": 8}
BREAKOUT_WIDE = PPO | {"num_envs": 64, "num_minibatches": 8}
BREAKOUT_NARROW = PPO | {"num_envs": 32, "num_steps": 32, "gamma": 0.995}
PENDULUM = "Pendulum-v1"
REJAX = ("rejax",)
BOTH = ("rejax", "sbx")

CASES = {
    "B1": Case(
        "ppo",
        CARTPOLE,
        PPO,
        peers=("rejax", "sb3", "sbx"),
        bars={"rejax": 1.3, "sb3": 27.0, "limit": 0.7},
        learn_steps=500_000,
    ),
    "B2x16": Case("ppo", CARTPOLE, PPO, 16, REJAX, {"rejax": 2.2}, only="cpu"),
    "B2x64": Case("ppo", CARTPOLE, PPO, 64, REJAX, {"rejax": 2.2}, only="cpu"),
    "B2x256": Case("ppo", CARTPOLE, PPO, 256, REJAX, only="gpu"),
    "B2x2048": Case("ppo", CARTPOLE, PPO, 2_048, REJAX, {"rejax": 2.0}, only="gpu"),
    "B3": Case("ppo", CARTPOLE, WIDE, 1, REJAX, {"rejax": 2.0, "limit": 0.75}),
    "B3-1024x128": Case(
        "ppo",
        CARTPOLE,
        PPO | {"num_envs": 1_024, "num_minibatches": 16},
        peers=REJAX,
    ),
    "B4": Case(
        "ppo",
        BREAKOUT,
        BREAKOUT_WIDE,
        peers=REJAX,
        bars={"rejax": 1.3, "limit": 0.75},
        learn_steps=1_000_000,
    ),
    "B4-32x32": Case("ppo", BREAKOUT, BREAKOUT_NARROW, peers=REJAX),
    "B5": Case(
        "dqn",
        CARTPOLE,
        DQN,
        peers=REJAX,
        bars={"rejax": 2.0, "limit": 0.65},
        learn_steps=500_000,
        learn_seeds=4,
    ),
    "B6a": Case("dqn", BREAKOUT, DQN_BREAKOUT, 1, REJAX, {"rejax": 2.0}),
    "B6ax8": Case("dqn", BREAKOUT, DQN_BREAKOUT, 8, REJAX, {"rejax": 3.0}, only="cpu"),
    "B6ax50": Case("dqn", BREAKOUT, DQN_BREAKOUT, 50, REJAX, {"rejax": 15}, only="gpu"),
    "B6b": Case(
        "dqn",
        BREAKOUT,
        DQN_BREAKOUT | {"network": "cnn", "hidden_sizes": (128,), "activation": "relu"},
    ),
    "B9": Case(
        "sac", PENDULUM, CONTROL, 1, BOTH, {"rejax": 1.5, "sbx": 2.0}, 20_000, 5
    ),
    "B9-20k": Case("sac", PENDULUM, CONTROL | SMALL_MEMORY, 1, REJAX, {"rejax": 1.5}),
    "B9x16": Case("sac", PENDULUM, CONTROL, 16, REJAX, {"rejax": 3.0}, only="cpu"),
    "B10": Case("td3", PENDULUM, TD3, 1, BOTH, {"rejax": 1.5, "sbx": 2.0}, 20_000, 5),
    "B10-20k": Case("td3", PENDULUM, TD3 | SMALL_MEMORY, 1, REJAX, {"rejax": 1.5}),
    "B10x16": Case("td3", PENDULUM, TD3, 16, REJAX, {"rejax": 3.0}, only="cpu"),
}
"""Cases by name. B2 is B1 for a population; B7 (PQN) is missing; B8 is `LEVEL_ENVS`."""

LEVEL_ENVS = (CARTPOLE, PENDULUM, BREAKOUT)
LEVEL_SIZES = (64, 2_048, 65_536)
"""Numbers of environments of B8, which measures environments alone."""

MIN_LEVEL_RATIO = 4.0
"""Minimum speed of B8: CartPole with 2,048 environments against gymnax's vmapped `step`."""

SCALING: dict[str, dict[int, Case]] = {
    "environments": {
        n: CASES["B1"]._replace(config=PPO | {"num_envs": n})
        for n in (4, 32, 256, 2_048)
    },
    "seeds": {n: CASES["B1"]._replace(num_seeds=n) for n in (1, 2, 4, 16, 64)},
    "width": {
        n: CASES["B1"]._replace(config=PPO | {"hidden_sizes": (n, n)})
        for n in (64, 128, 256)
    },
    "buffer size": {
        n: CASES["B5"]._replace(config=DQN | {"buffer_size": n})
        for n in (10_000, 100_000, 1_000_000)
    },
}
"""Scaling of T: B1 with more environments, seeds and units; B5 with a larger memory."""
