"""`RLHF`: the algorithms that train language models, by name."""

from jaxrl.rlhf.dpo import DPO
from jaxrl.rlhf.grpo import GRPO
from jaxrl.rlhf.ppo import PPO
from jaxrl.rlhf.reward_model import REWARD
from jaxrl.rlhf.rloo import RLOO
from jaxrl.rlhf.supervised import PRETRAIN, SFT
from jaxrl.types import Algorithm

RLHF: dict[str, Algorithm] = {
    "pretrain": PRETRAIN,
    "sft": SFT,
    "reward": REWARD,
    "ppo": PPO,
    "rloo": RLOO,
    "grpo": GRPO,
    "dpo": DPO,
}
"""Files know them as "rlhf-ppo" and so on: `ALGORITHMS` has a PPO too."""
