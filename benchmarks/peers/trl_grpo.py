"""TRL's GRPOTrainer for `benchmarks/rlhf_speed.py`: settings in, seconds and rewards out.

    .peers/trl/bin/python benchmarks/peers/trl_grpo.py SETTINGS.json

Run by the Python of the peer's own environment; one JSON line on standard output, the rest
on standard error. The settings are those of `rlhf_speed.Settings`.

The fastest configuration of TRL on a CPU among those tried:

- float32 without gradient checkpointing (TRL enables both bfloat16 and checkpointing by
  default; jaxrl computes in float32), the fused AdamW of torch, PyTorch's
  own fused attention (`sdpa`, the default of transformers);
- one generation and one update for each batch: TRL then uses the log-probabilities of the
  update for the sampling policy, which saves a forward pass;
- as many threads as cores (one thread takes almost twice as long);
- no logging, saving, evaluation or progress bar; prompts of one length, so that nothing is
  padded; a tokenizer of one word for each token, whose words are split at spaces;
- generation by transformers' `generate` with its cache, as TRL does without vLLM. A static
  cache was no faster, continuous batching twenty times slower.

The loss is `dr_grpo`: the sum over the tokens of all answers, divided by their number and
by `max_new_tokens`. jaxrl's is not divided by the latter. Adam does not see the factor, and
the norm at which gradients are clipped is divided by it too, so the steps are the same. The
divergence is k3 without the ratio before it, as there.

Unavoidable work of TRL in each step is included: it decodes the answers
and gathers its metrics (entropy, divergence, clipped shares, lengths).

A step is the time between the ends of two steps: generation, reward, update, and the data
loader between them.
"""

import itertools
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl")
TRAIN = {
    "num_iterations": 1,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "scale_rewards": "none",
    "loss_type": "dr_grpo",
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch_fused",
    "weight_decay": 0.0,
    "adam_epsilon": 1e-8,
    "use_bias_correction_kl": False,  # plain k3
    "disable_dropout": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
"""Fixed arguments of `GRPOConfig`."""


def reward(answer: list[int]) -> float:
    """Reward, the share of even tokens in an answer including EOS."""
    return sum(token % 2 == 0 for token in answer) / len(answer)


def tokenizer(vocab_size: int, eos: int) -> Any:
    """Tokenizer in which token i is the word "ti"; EOS is also used for padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(vocab_size)}
    whole = Tokenizer(models.WordLevel(words, unk_token=f"t{eos}"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, eos_token=f"t{eos}", pad_token=f"t{eos}"
    )


def arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """All arguments of `GRPOConfig`."""
    same = ("learning_rate", "beta", "temperature", "seed")
    return TRAIN | {
        "output_dir": settings["folder"],
        "per_device_train_batch_size": settings["num_prompts"] * settings["answers"],
        "num_generations": settings["answers"],
        "max_completion_length": settings["max_new_tokens"],
        "max_steps": settings["iterations"],
        "max_grad_norm": settings["max_grad_norm"] / settings["max_new_tokens"],
        "epsilon": settings["clip_eps"],
        **{name: settings[name] for name in same},
    }


def train(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the first step and of each after it, and the mean reward of each."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(settings["threads"])
    rewards: list[float] = []
    ends: list[float] = []

    def scored(completion_ids: list[list[int]], **_: Any) -> list[float]:
        found = [reward(answer) for answer in completion_ids]
        rewards.append(sum(found) / len(found))
        return found

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    prompts = [" ".join(f"t{x}" for x in row) for row in settings["prompts"]]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            settings["folder"], dtype=torch.float32
        ),
        reward_funcs=scored,
        args=GRPOConfig(**arguments(settings)),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer(settings["vocab_size"], settings["eos"]),
        callbacks=[Clock()],
    )
    trainer.train()
    first, *seconds = (after - before for before, after in itertools.pairwise(ends))
    return {
        "first": first,
        "seconds": seconds,
        "rewards": rewards,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
    }


def main() -> None:
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not an answer
    sys.stdout = sys.stderr
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # Nothing is asked of a server; and one set of threads, that of torch.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    print(json.dumps(train(settings)), file=answer, flush=True)


if __name__ == "__main__":
    main()
