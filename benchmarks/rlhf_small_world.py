"""RLHF with a known optimum: four optimisers against the exact optimum, and a reward
model against the accuracy that its labels allow.

    python -m benchmarks.rlhf_small_world                  # a quarter of an hour
    python -m benchmarks.rlhf_small_world --parts policies
    python -m benchmarks.rlhf_small_world --quick --out DIR

The small world of `jaxrl.rlhf.testbeds.small_world`. In `policies` the policy is a table
of logits, one row for each text, so that the optimum is in its class. PPO, RLOO and GRPO
see the gold reward of sampled answers, DPO pairs with their exact preference
probabilities. All seeds of a method are one program. In `language-model` it is a small
GPT, fine-tuned and then optimised by the algorithms of `jaxrl.rlhf`, as runs in folders.
Writes results/rlhf_small_world.json, which docs/rlhf-small-world.md shows.
"""

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import captions
from benchmarks.speed import script
from jaxrl import losses, optim
from jaxrl.pipelines.rlhf import demo, stages
from jaxrl.rlhf import estimators
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.models import language_model
from jaxrl.rlhf.testbeds import small_world
from jaxrl.runs.experiment import commit, versions
from jaxrl.statistics import bootstrap_interval, iqm
from jaxrl.types import Array, PyTree

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("policies", "language-model", "reward-model")

WORLD = small_world.small_world()
LENGTH = WORLD.prompts.shape[1]
ANSWERS = jnp.asarray(WORLD.mask)
REFERENCE = jnp.asarray(WORLD.reference, jnp.float32)
REWARD = jnp.asarray(WORLD.reward, jnp.float32)
BETA = 0.3
TEMPERATURE = 0.5
"""Temperature of the label noise."""
BAR_KL, BAR_REWARD, BAR_ACCURACY = 0.02, 0.01, 0.01


class Size(NamedTuple):
    seeds: int
    iterations: int
    groups: int  # of each prompt, each of GROUP answers
    pairs: int  # of a step of DPO
    labels: tuple[int, ...]
    steps: int  # of the reward model


FULL = Size(8, 1_000, 64, 4_096, (500, 2_000, 5_000, 10_000, 20_000, 50_000), 1_500)
QUICK = Size(2, 5, 2, 16, (20, 50), 5)
GROUP = 4
LEARNING_RATE, PPO_LEARNING_RATE = 0.05, 0.015
"""Learning rates of Adam, annealed to 0. PPO takes several steps with each batch."""
PPO_EPOCHS, CLIP, GAE_LAMBDA = 4, 0.2, 0.95


def of_tokens(table: Array) -> Array:
    """log π of each token of each answer: `[P, N, L]`."""
    return small_world.response_token_log_probs(
        WORLD, partial(small_world.table_logits, WORLD, table)
    )


def of_responses(table: Array) -> Array:
    """log π of each answer: `[P, N]`."""
    return small_world.table_log_probs(WORLD, table)


REFERENCE_TOKENS, REFERENCE_RESPONSES = of_tokens(REFERENCE), of_responses(REFERENCE)
OPTIMUM = small_world.optimum(REFERENCE_RESPONSES, REWARD, BETA)


def chosen(x: Array, index: Array) -> Array:
    """Rows of x `[P, N, ...]` for the answers `[P, K]`: `[P, K, ...]`."""
    return x[jnp.arange(len(x))[:, None], index]


# One step of each optimiser: (parameters, optimiser's state) -> the same.

ADAM = optim.adam(max_grad_norm=None, eps=1e-8)
State = tuple[PyTree, PyTree]
Step = Callable[[State, Array, Array, Size], State]


def descended(state: State, loss: Callable[[PyTree], Array], rate: Array) -> State:
    return optim.apply(ADAM, *state, jax.grad(loss)(state[0]), rate)


def rloo(state: State, key: Array, rate: Array, size: Size) -> State:
    """REINFORCE with the KL penalty in the reward and a leave-one-out baseline."""
    index = small_world.sample_responses(
        key, of_responses(state[0]), size.groups * GROUP
    )
    reward = penalized(state[0], index)
    weight = grouped(estimators.rloo_advantage, reward)

    def loss(table: Array) -> Array:
        log_prob = chosen(of_responses(table), index)
        return losses.policy_gradient(log_prob, weight).mean()

    return descended(state, loss, rate)


def grpo(
    state: State,
    key: Array,
    rate: Array,
    size: Size,
    scale: bool = False,
    kl_penalty: str = "reward",
    per_token: bool = False,
) -> State:
    """REINFORCE with the group's mean as baseline. As published it scales by the deviation,
    has k3 in the loss, and a mean over the tokens of each answer."""
    old = of_tokens(state[0])
    index = small_world.sample_responses(
        key, of_responses(state[0]), size.groups * GROUP
    )
    in_reward = kl_penalty == "reward"
    reward = penalized(state[0], index) if in_reward else chosen(REWARD, index)
    weight = grouped(partial(estimators.grpo_advantage, scale=scale), reward)
    mask = ANSWERS[index]
    share = 1.0 / mask.sum(-1, keepdims=True) if per_token else 1.0

    def loss(table: Array) -> Array:
        log_prob, ref = (chosen(x, index) for x in (of_tokens(table), REFERENCE_TOKENS))
        advantage = jnp.broadcast_to(weight[..., None], log_prob.shape)
        each = losses.clipped_surrogate(log_prob, chosen(old, index), advantage, CLIP)
        if kl_penalty == "k3":
            # Differentiated through the policy that sampled, so the ratio is one argument.
            each += BETA * losses.approx_kl(ref - log_prob, jnp.zeros_like(ref))
        whole = text_losses.masked_sum(share * each, mask)
        if kl_penalty == "k2":
            answer, ref_answer = (
                text_losses.masked_sum(x, mask) for x in (log_prob, ref)
            )
            whole += BETA * text_losses.kl_k2(answer, ref_answer)
        return whole.mean()

    return descended(state, loss, rate)


def ppo(state: State, key: Array, rate: Array, size: Size) -> State:
    """PPO with the KL penalty in every token's reward, GAE, and a table of values."""
    (table, values), _ = state
    index = small_world.sample_responses(key, of_responses(table), size.groups * GROUP)
    mask, score = ANSWERS[index].reshape(-1, ANSWERS.shape[1]), chosen(REWARD, index)

    def rows(x: Array) -> Array:  # [P, N, L] -> [P K, L]
        return chosen(x, index).reshape(mask.shape)

    old, ref = rows(of_tokens(table)), rows(REFERENCE_TOKENS)
    reward = estimators.token_rewards(old, ref, score.ravel(), mask, BETA)
    old_value = rows(values_of(values))
    advantage, target = estimators.token_gae(reward, old_value, mask, 1.0, GAE_LAMBDA)
    advantage = text_losses.whiten(advantage, mask)

    def loss(params: tuple[Array, Array]) -> Array:
        log_prob, value = rows(of_tokens(params[0])), rows(values_of(params[1]))
        actor = losses.clipped_surrogate(log_prob, old, advantage, CLIP)
        critic = losses.value_mse(value, target)
        return losses.masked_mean(actor + critic, mask)

    for _ in range(PPO_EPOCHS):
        state = descended(state, loss, rate)
    return state


def dpo(state: State, key: Array, rate: Array, size: Size) -> State:
    """DPO on pairs of any answers, with the exact probability of either preference."""
    key_prompt, key_responses = jax.random.split(key)
    prompt = jax.random.randint(key_prompt, (size.pairs,), 0, len(REWARD))
    shape = (2, size.pairs)
    first, second = jax.random.randint(key_responses, shape, 0, REWARD.shape[1])
    probability = small_world.preference_probability(
        REWARD[prompt, first], REWARD[prompt, second], TEMPERATURE
    )

    def loss(table: Array) -> Array:
        log_prob = of_responses(table)
        one, other = log_prob[prompt, first], log_prob[prompt, second]
        refs = [REFERENCE_RESPONSES[prompt, x] for x in (first, second)]
        each = text_losses.dpo_loss(one, other, *refs, BETA / TEMPERATURE)
        turned = text_losses.dpo_loss(other, one, *refs[::-1], BETA / TEMPERATURE)
        return (probability * each + (1.0 - probability) * turned).mean()

    return descended(state, loss, rate)


def penalized(table: Array, index: Array) -> Array:
    """Reward less the KL penalty, of responses `[P, K]`."""
    cost = text_losses.implicit_reward(of_responses(table), REFERENCE_RESPONSES, BETA)
    return chosen(REWARD - cost, index)


def grouped(advantage: Callable[[Array], Array], reward: Array) -> Array:
    """Advantages within groups of GROUP, from rewards `[P, K]`."""
    return advantage(reward.reshape(-1, GROUP)).reshape(reward.shape)


def values_of(values: Array) -> Array:
    """V of the text before each token of each answer, `[P, N, L]`, from `[P, M]`."""
    tokens = jnp.concatenate(
        [
            jnp.repeat(jnp.asarray(WORLD.prompts), len(WORLD.tokens), 0),
            jnp.tile(jnp.asarray(WORLD.tokens), (len(WORLD.prompts), 1)),
        ],
        axis=1,
    )
    value = small_world.table_logits(WORLD, values[..., None], tokens)[
        :, LENGTH - 1 : -1, 0
    ]
    return value.reshape(len(WORLD.prompts), *WORLD.tokens.shape)


METHODS: dict[str, Step] = {
    "PPO": ppo,
    "RLOO": rloo,
    "GRPO, not scaled": grpo,
    "DPO": dpo,
    "GRPO, scaled": partial(grpo, scale=True),
    "GRPO, k2 in the loss": partial(grpo, kl_penalty="k2"),
    "GRPO, k2 in the loss, scaled": partial(grpo, scale=True, kl_penalty="k2"),
    "GRPO, k3 in the loss": partial(grpo, kl_penalty="k3"),
    "GRPO as published": partial(grpo, scale=True, kl_penalty="k3", per_token=True),
}
HELD = ("PPO", "RLOO", "GRPO, not scaled", "DPO")
"""Methods that must reach the thresholds."""


def trained(step: Step, size: Size, with_values: bool, key: Array) -> tuple:
    """KL(π* ‖ π) after each tenth of a run, and log π `[P, N]` at its end."""
    fastest = PPO_LEARNING_RATE if with_values else LEARNING_RATE

    def body(state: State, i: Array) -> tuple[State, Array]:
        rate = optim.linear_schedule(fastest, 0.0, i / size.iterations)
        state = step(state, jax.random.fold_in(key, i), rate, size)
        table = state[0][0] if with_values else state[0]
        return state, small_world.kl(OPTIMUM.log_prob, of_responses(table))

    zeros = jnp.zeros(REFERENCE.shape[:2])
    params = (REFERENCE, zeros) if with_values else REFERENCE
    state = (params, ADAM.init(params))
    (params, _), curve = jax.lax.scan(body, state, jnp.arange(size.iterations))
    every = max(1, size.iterations // 10)
    return curve[every - 1 :: every], of_responses(params[0] if with_values else params)


def policies(size: Size) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), size.seeds)
    found: dict[str, Any] = {"beta": BETA, "optimum": exact_values(), "methods": {}}
    best = float(small_world.expected_reward(OPTIMUM.log_prob, REWARD))
    for name, step in METHODS.items():
        begun = time.monotonic()
        run = jax.jit(jax.vmap(partial(trained, step, size, name == "PPO")))
        curves, log_probs = jax.block_until_ready(run(keys))
        seconds = time.monotonic() - begun
        reward = [float(small_world.expected_reward(x, REWARD)) for x in log_probs]
        found["methods"][name] = row = {
            "kl": of_seeds(
                [float(small_world.kl(OPTIMUM.log_prob, x)) for x in log_probs]
            ),
            "reward": of_seeds([r / best for r in reward]),
            "kl_to_reference": of_seeds(
                [float(small_world.kl(x, REFERENCE_RESPONSES)) for x in log_probs]
            ),
            "curve": [round(float(x), 5) for x in iqm(np.asarray(curves), axis=0)],
            "seconds": round(seconds, 1),
        }
        print(name, row["kl"], row["reward"], row["curve"], row["seconds"], flush=True)
    return found


def exact_values() -> dict[str, Any]:
    """Exact values of the reference and the optimum, with the likeliest answers of both."""
    found: dict[str, Any] = {}
    for name, log_prob in (
        ("reference", REFERENCE_RESPONSES),
        ("π*", OPTIMUM.log_prob),
    ):
        likeliest = np.argsort(-np.asarray(log_prob), axis=1)[:, :3]
        found[name] = {
            "reward": float(small_world.expected_reward(log_prob, REWARD)),
            "kl": float(small_world.kl(log_prob, REFERENCE_RESPONSES)),
            "value": float(
                small_world.kl_penalized_reward(
                    log_prob, REFERENCE_RESPONSES, REWARD, BETA
                )
            ),
            "likeliest": [
                [small_world.response_text(WORLD, int(i)) for i in row]
                for row in likeliest
            ],
        }
    return found


def of_seeds(values: list[float]) -> dict[str, Any]:
    low, high = bootstrap_interval(values)
    return {
        "iqm": float(iqm(values)),
        "interval": [float(low), float(high)],
        "by_seed": [round(x, 5) for x in values],
    }


# The same with a language model: runs of `jaxrl rlhf`.

GPT = {"num_layers": 2, "num_heads": 2, "width": 32}
RUNS: dict[str, dict[str, Any]] = {
    "ppo": {
        "total_steps": 256_000,
        "batch_size": 512,
        "num_epochs": 4,
        "num_minibatches": 1,
        "learning_rate": 1e-3,
    },
    "rloo": {"total_steps": 409_600, "batch_size": 512, "learning_rate": 2e-3},
    "grpo": {"total_steps": 409_600, "batch_size": 512, "learning_rate": 2e-3},
}
NAMES = {"ppo": "PPO", "rloo": "RLOO", "grpo": "GRPO, not scaled"}
QUIET = {"progress": False, "report": lambda line: None}


def train_language_models(size: Size) -> dict[str, Any]:
    """Train each method with each seed: its exact distribution against the optimum of
    the model that it started from."""
    rows: dict[str, list[tuple[float, float, float, float]]] = {}
    share = 1.0 if size == FULL else 0.002
    with tempfile.TemporaryDirectory() as work:
        for seed in range(min(size.seeds, 3)):
            sft = Path(work) / f"sft-{seed}"
            common = {"batch_size": 128, "learning_rate": 3e-3}
            new = {"model": GPT, "max_length": 8}
            config = common | {"total_steps": max(128.0, 60_000 * share)}
            stages.train("sft", "small-world", new, config, sft, seed, **QUIET)
            ref = demo.model_log_probs(language_model.load(sft))
            optimum = small_world.optimum(ref, REWARD, BETA)
            best = float(small_world.expected_reward(optimum.log_prob, REWARD))
            for name, own in RUNS.items():
                out = Path(work) / f"{name}-{seed}"
                config = own | {"total_steps": max(512.0, own["total_steps"] * share)}
                config |= {"max_new_tokens": WORLD.tokens.shape[1], "kl_coef": BETA}
                judged = {"base": str(sft), "reward": "small-world"}
                done = stages.train(
                    name, "small-world", judged, config, out, seed, **QUIET
                )
                log_prob = demo.model_log_probs(language_model.load(out))
                found = (
                    float(small_world.kl(optimum.log_prob, log_prob)),
                    float(small_world.expected_reward(log_prob, REWARD)) / best,
                    float(small_world.kl(log_prob, ref)),
                    done["run_seconds"],
                )
                rows.setdefault(NAMES[name], []).append(found)
                print(seed, name, found, flush=True)
    columns = ("kl", "reward", "kl_to_reference")
    return {
        "beta": BETA,
        "seeds": min(size.seeds, 3),
        "methods": {
            name: {
                column: of_seeds([one[i] for one in found])
                for i, column in enumerate(columns)
            }
            | {"seconds": max(one[3] for one in found)}
            for name, found in rows.items()
        },
    }


# The reward model.


class RewardModel(nn.Module):
    """Reward model with two hidden layers on the one-hot tokens of prompt and answer."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for _ in range(2):
            x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(1)(x)[..., 0]


def features() -> Array:
    """`[P, N, F]`."""
    shape = (len(WORLD.prompts), *WORLD.tokens.shape)
    prompt = jnp.broadcast_to(WORLD.prompts[:, None], (*shape[:2], LENGTH))
    answer = jnp.broadcast_to(WORLD.tokens, shape)
    one_hot = jax.nn.one_hot(jnp.concatenate([prompt, answer], -1), WORLD.eos + 1)
    return one_hot.reshape(*shape[:2], -1)


def fitted(size: Size, key: Array, number: Array) -> tuple[Array, Array]:
    """Exact accuracy, and calibration error on new labels, after a fit to some pairs."""
    key_data, key_init, key_steps, key_new = jax.random.split(key, 4)
    sample = partial(
        small_world.sample_pairs, log_prob=REFERENCE_RESPONSES, reward=REWARD
    )
    most = {"number": size.labels[-1], "temperature": TEMPERATURE}
    pairs, new = sample(key_data, **most), sample(key_new, **most)
    model, x = RewardModel(), features()
    params = model.init(key_init, x)

    def differences(params: PyTree, pairs: small_world.Pairs) -> tuple[Array, Array]:
        score = model.apply(params, x)
        return score[pairs.prompt, pairs.chosen], score[pairs.prompt, pairs.rejected]

    def step(state: State, i: Array) -> tuple[State, None]:
        index = jax.random.randint(jax.random.fold_in(key_steps, i), (512,), 0, number)
        some = jax.tree.map(lambda x: x[index], pairs)
        rate = optim.linear_schedule(3e-3, 0.0, i / size.steps)

        def loss(params: PyTree) -> Array:
            return text_losses.preference_loss(*differences(params, some)).mean()

        return descended(state, loss, rate), None

    start = (params, ADAM.init(params))
    (params, _), _ = jax.lax.scan(step, start, jnp.arange(size.steps))
    accuracy = small_world.label_accuracy(
        model.apply(params, x), REFERENCE_RESPONSES, REWARD, TEMPERATURE
    )
    return accuracy, calibration_error(*differences(params, new))


def calibration_error(chosen: Array, rejected: Array) -> Array:
    """Calibration error of σ(r_1 - r_2) with every other pair swapped, so the first of a
    pair is not always the chosen one."""
    turned = jnp.arange(len(chosen)) % 2 == 1
    difference = jnp.where(turned, rejected - chosen, chosen - rejected)
    return estimators.calibration(jax.nn.sigmoid(difference), ~turned).error


def reward_model(size: Size) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(1), size.seeds)
    bayes = float(small_world.bayes_accuracy(REFERENCE_RESPONSES, REWARD, TEMPERATURE))
    found: dict[str, Any] = {"temperature": TEMPERATURE, "bayes": bayes, "pairs": {}}
    fit = jax.jit(jax.vmap(partial(fitted, size), in_axes=(0, None)))
    for number in size.labels:
        begun = time.monotonic()
        accuracy, error = jax.block_until_ready(fit(keys, number))
        found["pairs"][str(number)] = row = {
            "accuracy": of_seeds([float(x) for x in accuracy]),
            "calibration_error": of_seeds([float(x) for x in error]),
            "seconds": round(time.monotonic() - begun, 1),
        }
        print(number, row["accuracy"], row["seconds"], flush=True)
    return found


# The page.


def interval(row: dict[str, Any], digits: int, scale: float = 1.0) -> str:
    low, high = (f"{scale * x:.{digits}f}" for x in row["interval"])
    return f"{scale * row['iqm']:.{digits}f} [{low}, {high}]"


def language_model_table(found: dict[str, Any]) -> str:
    return "\n".join([*methods_of(found), "", about(found)]) + "\n"


def policies_table(found: dict[str, Any]) -> str:
    lines = [
        "| policy | E r | KL(π ‖ π_ref) | J | likeliest answers to a, b and c |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["optimum"].items():
        likeliest = "; ".join(" ".join(f"`{x}`" for x in xs) for xs in row["likeliest"])
        lines.append(
            f"| {name} | {row['reward']:.3f} | {row['kl']:.3f} | {row['value']:.3f} | "
            f"{likeliest} |"
        )
    return "\n".join([*lines, "", *methods_of(found), "", about(found)]) + "\n"


def methods_of(found: dict[str, Any]) -> list[str]:
    lines = [
        "| method | KL(π* ‖ π), nats | E r, % of the optimum's | within the bars "
        "| seconds |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["methods"].items():
        within = "-" if name not in HELD else "yes" if reached(row) else "no"
        lines.append(
            f"| {name} | {interval(row['kl'], 4)} | {interval(row['reward'], 2, 100)} | "
            f"{within} | {row['seconds']:.0f} |"
        )
    return lines


def reached(row: dict[str, Any]) -> bool:
    """True if both thresholds hold for every seed."""
    off = max(abs(x - 1.0) for x in row["reward"]["by_seed"])
    return max(row["kl"]["by_seed"]) <= BAR_KL and off <= BAR_REWARD


def reward_model_table(found: dict[str, Any]) -> str:
    lines = [
        "| pairs | accuracy, % | below Bayes, points | calibration error, points |",
        "|---|---|---|---|",
    ]
    for number, row in found["pairs"].items():
        below = 100 * (found["bayes"] - row["accuracy"]["iqm"])
        lines.append(
            f"| {int(number):,} | {interval(row['accuracy'], 2, 100)} | {below:.2f} | "
            f"{interval(row['calibration_error'], 2, 100)} |"
        )
    bayes = f"The Bayes accuracy is {100 * found['bayes']:.2f} %. "
    return "\n".join([*lines, "", bayes + about(found)]) + "\n"


def about(found: dict[str, Any]) -> str:
    return (
        f"{found['seeds']} seeds: IQM and its 95 % bootstrap interval. Commit "
        f"{found['commit']}. {captions.device([found])}"
    )


MEASURES = {
    "policies": policies,
    "language-model": train_language_models,
    "reward-model": reward_model,
}
TABLES = {
    "policies": policies_table,
    "language-model": language_model_table,
    "reward-model": reward_model_table,
}


def main() -> None:
    parser = script.parser(__doc__, PARTS)
    arguments, file, rows = script.opened(parser, RESULTS, "rlhf_small_world.json")
    size = QUICK if arguments.quick else FULL
    origin = {
        "commit": commit(),
        "jax": versions()["jax"],
        "device": jax.devices()[0].platform,
        "seeds": size.seeds,
    }
    for part in arguments.parts:
        command = f"python -m benchmarks.rlhf_small_world --parts {part}"
        rows[part] = {"command": command} | origin | MEASURES[part](size)
        file.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
        print(TABLES[part](rows[part]), flush=True)


if __name__ == "__main__":
    main()
