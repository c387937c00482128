"""Small random checkpoints as `transformers` stores them, and what it computes with them.

    python make_language_models.py    # needs torch, transformers and tokenizers

Writes `language/NAME/` (config.json, model.safetensors or its shards, tokenizer.json) and
`language/NAME.npz`: tokens `[2, 12]` with their logits, and 20 prompts, padded on the left,
with their greedy continuations of 64 tokens. `jaxrl` is not needed: the numbers are the
other library's alone. Made with torch 2.13.0 (CPU) and transformers 5.23.0.
"""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).parent / "language"
PROMPTS, NEW, LONGEST = 20, 64, 8
TEXT = "the cat sat on the mat and the dog ate "

COMMON = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
MODELS = {
    "gpt2": GPT2LMHeadModel(
        GPT2Config(
            **COMMON, vocab_size=41, n_positions=80, n_embd=24, n_layer=2, n_head=3
        )
    ),
    "llama": LlamaForCausalLM(
        LlamaConfig(
            **(COMMON | {"bos_token_id": 2}),
            **{"vocab_size": 41, "max_position_embeddings": 80, "hidden_size": 24},
            **{"intermediate_size": 40, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        )
    ),
    # As Llama 3.2: tied, and with frequencies of all three kinds.
    "llama3": LlamaForCausalLM(
        LlamaConfig(
            **(COMMON | {"bos_token_id": 2}),
            **{"vocab_size": 41, "max_position_embeddings": 80, "hidden_size": 16},
            **{"intermediate_size": 24, "num_hidden_layers": 1},
            **{"num_attention_heads": 2, "num_key_value_heads": 1},
            tie_word_embeddings=True,
            rope_parameters={
                **{"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0},
                **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "original_max_position_embeddings": 40,
            },
        )
    ),
}


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights of a size that matters: those of a new model hardly change its logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        around = 1.0 if "norm" in name or ".ln_" in name else 0.0
        around *= name.endswith("weight")
        with torch.no_grad():
            weight.copy_(around + 0.25 * torch.randn(weight.shape, generator=generator))


def tokenizer() -> Tokenizer:
    """One token for each character, behind padding, the end and the beginning."""
    characters = sorted(set(TEXT) | set("bfgijklpquvwxyz.,!?"))
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2}
    vocabulary |= {x: i for i, x in enumerate(characters, start=3)}
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    whole.decoder = decoders.Fuse()
    whole.add_special_tokens(["<pad>", "<eos>", "<bos>"])
    assert whole.get_vocab_size() <= 41
    return whole


def numbers(model: torch.nn.Module, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 41, (2, 12))
    lengths = rng.integers(1, LONGEST + 1, PROMPTS)
    mask = np.arange(LONGEST) >= LONGEST - lengths[:, None]
    prompts = np.where(mask, rng.integers(3, 41, (PROMPTS, LONGEST)), 0)
    with torch.no_grad():
        logits = model(torch.tensor(tokens)).logits.numpy()
        # No EOS: every answer has its 64 tokens.
        done = model.generate(
            torch.tensor(prompts),
            attention_mask=torch.tensor(mask).long(),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
        ).numpy()
    assert done.shape == (PROMPTS, LONGEST + NEW)
    small = {"tokens": tokens, "prompts": prompts, "generated": done}
    small = {name: x.astype(np.uint8) for name, x in small.items()}
    return small | {"logits": logits, "mask": mask}


def main() -> None:
    for seed, (name, model) in enumerate(MODELS.items()):
        randomise(model.eval(), seed)
        # The second kind in shards, with their index.
        shards = {"max_shard_size": "12KB"} if name == "llama" else {}
        model.save_pretrained(FOLDER / name, **shards)
        (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
        tokenizer().save(str(FOLDER / name / "tokenizer.json"))
        np.savez_compressed(FOLDER / f"{name}.npz", **numbers(model, seed))


if __name__ == "__main__":
    main()
