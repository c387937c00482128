"""RLHF with a model of a million parameters and a programmed gold judge.

    python -m benchmarks.rlhf_larger_world                    # about an hour on two cores
    python -m benchmarks.rlhf_larger_world --parts methods
    python -m benchmarks.rlhf_larger_world --quick --out DIR

The larger world of `jaxrl.rlhf.testbeds.larger_world`: pretraining, SFT, labels by the
gold judge with noise, a reward model, and what is optimised against it. Every stage is a
run in a folder under --work, so a benchmark that was killed goes on where it was. Writes
results/rlhf_larger_world.json, which docs/rlhf-larger-world.md shows, and its figure.

  methods       gold win rate over SFT of best-of-8, PPO, GRPO and DPO
  penalty       gold reward against √KL for four values of β
  lora          adapters against all parameters, at equal KL
  rlaif         labels by a language model's verdict, beside those of the gold judge
  loop          three rounds of sample, label, fit, optimise
  instructions  a task that was held out of training, with 0 to 3 examples
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import captions
from benchmarks.speed import script
from jaxrl.pipelines.rlhf import loop, stages
from jaxrl.pipelines.rlhf.writing import Sampling
from jaxrl.rlhf import data, responses, tasks
from jaxrl.rlhf.labels import labelers
from jaxrl.rlhf.models import language_model, tokenizers
from jaxrl.rlhf.models.generation import generate
from jaxrl.rlhf.models.transformer import GPT
from jaxrl.rlhf.testbeds import larger_world
from jaxrl.runs.experiment import commit, versions
from jaxrl.runs.loggers import read_metrics
from jaxrl.statistics import bootstrap_interval
from jaxrl.training.devices import use_compilation_cache

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "docs" / "figures"
PARTS = ("methods", "penalty", "lora", "rlaif", "loop", "instructions")

WORLD = "larger-world"
MODEL = {"num_layers": 4, "num_heads": 4, "width": 144, "embedding_std": 0.2}
COLUMNS = 128
"""Context length of the model, for the questions to a judge, which are the longest."""
ROW = larger_world.PROMPT_TOKENS + larger_world.RESPONSE_TOKENS + 1
"""Maximum length of a row, with room for the EOS that a truncated answer gets as text."""
SAMPLING = Sampling(larger_world.RESPONSE_TOKENS)
NOISE = 0.5
"""Temperature τ of the labels."""
BETA = 0.1
KL_COEFS = (0.0, 0.03, 0.1, 0.3)
BAR = 0.70
BEST_OF, BEST_OF_KL = "best of 8", float(np.log(8) - 7 / 8)
"""Label of best-of-n, and the upper bound log n - (n - 1) / n of KL(best of n ‖ π_ref)."""


class Size(NamedTuple):
    seeds: int
    pretrain: int  # rows
    sft: int  # rows
    pairs: int
    reward: int  # pairs read
    answers: int  # of an optimiser
    long_answers: int  # of the runs of `penalty`
    judge: int  # rows of the judge's fine-tuning
    instructions: int
    prompts: int  # of the evaluation
    model: dict[str, Any]


FULL = Size(3, 24_000, 9_600, 4_000, 12_000, 5_120, 7_680, 9_600, 24_000, 512, MODEL)
SMALL = {"num_layers": 1, "num_heads": 2, "width": 16}
QUICK = Size(1, 128, 128, 40, 64, 64, 64, 64, 64, 16, SMALL)

HOST = {"progress": False, "report": lambda line: None}
LEARNING = {"batch_size": 64, "learning_rate": 1e-3}


class Work(NamedTuple):
    """Folders and lengths of the stages."""

    folder: Path
    size: Size

    def train(
        self,
        name: str,
        source: str,
        params: dict[str, Any],
        config: dict[str, Any],
        to: str,
        seed: int = 0,
    ) -> str:
        """Train a run; return its folder."""
        out = self.folder / to
        is_new = not (out / "summary.json").exists()
        summary = stages.train(name, source, params, config, out, seed, **HOST)
        if is_new:
            score = summary["evaluation"]["episode_return_mean"]
            print(f"{to}: {score:.3f}, {summary['run_seconds']:.0f} s", flush=True)
        return str(out)

    # The stages that all parts begin with.

    def base(self) -> str:
        new = {"model": self.size.model | {"max_length": COLUMNS}}
        texts = new | {"max_length": larger_world.CORPUS_TOKENS, "number": 20_000}
        config = LEARNING | {"total_steps": self.size.pretrain}
        return self.train("pretrain", WORLD, texts, config, "base")

    def sft(self, seed: int) -> str:
        params = {"base": self.base(), "max_length": ROW, "number": 10_000}
        config = {"total_steps": self.size.sft, "batch_size": 64, "learning_rate": 5e-4}
        return self.train("sft", WORLD, params, config, f"sft-{seed}", seed)

    def questions(self, seed: int) -> list[labelers.Question]:
        asked = (WORLD, self.sft(seed), SAMPLING, self.size.pairs, seed)
        return stages.questions(*asked)

    def pairs(self, seed: int) -> str:
        out = self.folder / f"pairs-{seed}.jsonl"
        if not out.exists() or out.read_bytes().count(b"\n") < self.size.pairs:
            labeler = labelers.gold(larger_world.gold, NOISE, seed)
            labelers.label(self.questions(seed), labeler, out, print)
        return str(out)

    def reward(self, seed: int, pairs: str | None = None, to: str = "reward") -> str:
        params = {"base": self.sft(seed), "max_length": ROW}
        config = {"batch_size": 64, "learning_rate": 2e-3}
        config |= {"total_steps": self.size.reward}
        source = pairs or self.pairs(seed)
        return self.train("reward", source, params, config, f"{to}-{seed}", seed)

    def optimised(
        self,
        name: str,
        seed: int,
        to: str,
        reward: str | None = None,
        answers: int | None = None,
        **config: Any,
    ) -> str:
        reward = reward or self.reward(seed)
        params = {"base": self.sft(seed), "reward": reward}
        common = {
            "total_steps": answers or self.size.answers,
            "max_new_tokens": larger_world.RESPONSE_TOKENS,
            "eos_penalty": 1.0,
            "kl_coef": BETA,
            "learning_rate": 3e-4,
        }
        return self.train(name, WORLD, params, common | config, f"{to}-{seed}", seed)


# What an answer is worth.


class Judged(NamedTuple):
    """Answers of a model to the prompts of the evaluation, `[N]` each."""

    gold: np.ndarray
    kl: (
        np.ndarray
    )  # log π - log π_ref of each answer; its mean estimates the divergence
    length: np.ndarray
    score: np.ndarray  # by the reward model


def judged(work: Work, sft: str, policy: str, reward: str, best_of: int = 1) -> Judged:
    """Answers of a policy, or the best of several by the reward model."""
    task = tasks.prompts(WORLD, base=sft, reward=reward)
    params = language_model.load(policy).params
    written: list[Judged] = []

    @jax.jit
    def write(params: Any, prompts: Any, key: jax.Array) -> tuple:
        found = responses.write(SAMPLING, task, params, prompts, key)
        gold = task.gold((), found.tokens, found.mask, found.response)
        length = found.response.sum(1)
        each = (gold, responses.divergence(found), length, found.score)
        best = jnp.argmax(found.score.reshape(-1, best_of), 1)
        rows = jnp.arange(len(best)) * best_of + best
        return tuple(x[rows] for x in each)

    both = (task.teacher.rows, task.teacher.held_out)
    rows = jax.tree.map(lambda *x: jnp.concatenate(x), *both)
    at_a_time = max(1, 128 // best_of)
    for start in range(0, work.size.prompts, at_a_time):
        index = jnp.arange(start, start + at_a_time) % len(rows.tokens)
        prompts = tasks.select(rows, jnp.repeat(index, best_of))
        key = jax.random.fold_in(jax.random.key(99), start)
        written.append(Judged(*map(np.asarray, write(params, prompts, key))))
    return Judged(
        *(np.concatenate(x)[: work.size.prompts] for x in zip(*written, strict=True))
    )


def win_rate(own: Judged, other: Judged) -> float:
    """Share of prompts for which the gold judge prefers the answer to that of SFT."""
    return float((0.5 * (1.0 + np.sign(own.gold - other.gold))).mean())


def in_numbers(found: Judged, sft: Judged) -> dict[str, float]:
    return {
        "gold": float(found.gold.mean()),
        "win_rate": win_rate(found, sft),
        "kl": float(found.kl.mean()),
        "length": float(found.length.mean()),
        "score": float(found.score.mean()),
    }


def of_seeds(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Mean of each number, its interval over the seeds, and the value of each seed."""
    return {
        name: {
            "mean": float(np.mean([row[name] for row in rows])),
            "interval": [float(x) for x in _interval([row[name] for row in rows])],
            "by_seed": [round(row[name], 4) for row in rows],
        }
        for name in rows[0]
    }


def _interval(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    return bootstrap_interval(values)


# The parts.


def methods(work: Work) -> dict[str, Any]:
    """Train and evaluate every optimiser with every seed."""
    rows: dict[str, list[dict[str, float]]] = {}
    accuracy = []
    for seed in range(work.size.seeds):
        sft, reward = work.sft(seed), work.reward(seed)
        accuracy.append(_summary(reward)["evaluation"]["episode_return_mean"])
        judge = partial(judged, work, sft, reward=reward)
        reference = judge(sft)
        found = {
            "SFT": reference,
            BEST_OF: judge(sft, best_of=8),
            **{name: judge(run(work, seed)) for name, run in OPTIMISERS.items()},
        }
        for name, one in found.items():
            rows.setdefault(name, []).append(in_numbers(one, reference))
            print(seed, name, rows[name][-1], flush=True)
    return {
        "reward_accuracy": [round(x, 4) for x in accuracy],
        "bayes_accuracy": bayes_accuracy(work),
        "parameters": count(work.sft(0)),
        "rows": {name: of_seeds(each) for name, each in rows.items()},
    }


def ppo(work: Work, seed: int) -> str:
    return work.optimised("ppo", seed, "ppo")


def grpo(work: Work, seed: int) -> str:
    return work.optimised("grpo", seed, "grpo", num_minibatches=2)


def dpo(work: Work, seed: int) -> str:
    params = {"base": work.sft(seed), "max_length": ROW}
    config = {"total_steps": 2 * work.size.pairs, "learning_rate": 1e-4, "beta": 0.1}
    return work.train("dpo", work.pairs(seed), params, config, f"dpo-{seed}", seed)


OPTIMISERS: dict[str, Callable[[Work, int], str]] = {
    "PPO": ppo,
    "GRPO": grpo,
    "DPO": dpo,
}


def bayes_accuracy(work: Work) -> float:
    """Accuracy of the Bayes-optimal guess on the labels of the first seed's pairs."""
    gold = [[larger_world.gold(q.prompt, a) for a in q[1:3]] for q in work.questions(0)]
    difference = np.abs(np.diff(np.array(gold), axis=1)) / NOISE
    return float((1.0 / (1.0 + np.exp(-difference))).mean())


def penalty(work: Work) -> dict[str, Any]:
    """PPO with several KL coefficients, one seed: both rewards during training."""
    found = {}
    for beta in KL_COEFS:
        name = f"ppo-beta-{beta:g}"
        # In small steps: with those of `methods` the rise is over after a few batches.
        slowly = {"answers": work.size.long_answers, "learning_rate": 1e-4}
        run = work.optimised("ppo", 0, name, kl_coef=beta, **slowly)
        rows = read_metrics(Path(run) / "metrics.jsonl")
        found[f"{beta:g}"] = {
            "answers": [row["env_steps"] for row in rows],
            "kl": [round(row["policy/kl"][0], 4) for row in rows],
            "gold": [round(row["reward/gold"][0], 4) for row in rows],
            "score": [round(row["rollout/episode_return"][0], 4) for row in rows],
            "length": [round(row["rollout/episode_length"][0], 2) for row in rows],
            "distinct_2": [round(row["text/distinct_2"][0], 4) for row in rows],
        }
    return {"runs": found}


ADAPTERS = {
    "lora_rank": 4,
    "lora_alpha": 16.0,
    "lora_targets": "query,key,value,output,up,down",
    "learning_rate": 3e-3,
}


def lora(work: Work) -> dict[str, Any]:
    """GRPO with all parameters and with LoRA adapters, for every seed."""
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(work.size.seeds):
        sft, reward = work.sft(seed), work.reward(seed)
        judge = partial(judged, work, sft, reward=reward)
        reference = judge(sft)
        adapted = {"num_minibatches": 2} | ADAPTERS
        run = work.optimised("grpo", seed, "grpo-lora", **adapted)
        found = {"SFT": reference, "full": judge(grpo(work, seed)), "LoRA": judge(run)}
        for name, one in found.items():
            rows.setdefault(name, []).append(in_numbers(one, reference))
            print(seed, name, rows[name][-1], flush=True)
    gold = {
        name: np.array([row["gold"] for row in each]) for name, each in rows.items()
    }
    own, full, start = gold["LoRA"], gold["full"], gold["SFT"]
    shares = [
        {"gold": float(x), "gain": float(y)}
        for x, y in zip(own / full, (own - start) / (full - start), strict=True)
    ]
    return {
        "rows": {name: of_seeds(each) for name, each in rows.items()},
        "share_of_parameters": trained(run) / count(work.sft(0)),
        "share": of_seeds(shares),
    }


def trained(run: str) -> int:
    """Number of policy parameters per agent that a run with adapters stores."""
    arrays = json.loads(
        (Path(run) / "policy" / "manifest.json").read_text(encoding="utf-8")
    )["arrays"]
    shapes = [x["shape"] for name, x in arrays.items() if name.startswith("policy/")]
    return sum(int(np.prod(shape[1:])) for shape in shapes)


def rlaif(work: Work) -> dict[str, Any]:
    """Label the pairs with a language model fine-tuned to give verdicts."""
    rng = np.random.default_rng(7)
    demonstrations = larger_world.demonstrations(2 * work.size.judge, seed=7)
    by_prompt: dict[str, list[str]] = {}
    for prompt, answer in demonstrations:
        by_prompt.setdefault(prompt, []).append(answer)
    shown = []
    for prompt, texts in by_prompt.items():
        for one, other in zip(texts[::2], texts[1::2], strict=False):
            difference = larger_world.gold(prompt, one) - larger_world.gold(
                prompt, other
            )
            better = rng.random() < 1.0 / (1.0 + np.exp(-difference / NOISE))
            if one != other:
                shown.append((prompt, *((one, other) if better else (other, one))))
    rows = larger_world.judge_rows(shown[: work.size.judge], seed=7)
    file = work.folder / "verdicts.jsonl"
    data.write_rows(file, [{"prompt": p, "completion": v} for p, v in rows])
    params = {"base": work.base(), "max_length": larger_world.JUDGE_TOKENS}
    config = {"total_steps": 2 * len(rows), "batch_size": 32, "learning_rate": 5e-4}
    judge_run = work.train("sft", str(file), params, config, "judge")
    known = language_model.load(judge_run)
    judge = labelers.language_model(
        GPT(known.config),
        known.params,
        known.tokenizer,
        larger_world.judge_prompt("{prompt}", "{first}", "{second}"),
        larger_world.VERDICTS,
        batch_size=64,
    )
    asked = work.questions(0)
    out = work.folder / "verdict-pairs.jsonl"
    verdicts = labelers.label(asked, judge, out, print)
    exact = [
        int(larger_world.gold(*q[:2]) < larger_world.gold(q[0], q[2])) for q in asked
    ]
    noisy = labelers.label(
        asked,
        labelers.gold(larger_world.gold, NOISE, 0),
        work.folder / "pairs-0.jsonl",
        lambda line: None,
    )
    sft, reward = work.sft(0), work.reward(0)
    own = work.reward(0, str(out), "reward-of-verdicts")
    run = work.optimised("ppo", 0, "ppo-of-verdicts", reward=own)
    reference = judged(work, sft, sft, reward)
    return {
        "agreement_with_gold": labelers.agreement(verdicts, exact),
        "agreement_of_noisy_labels_with_gold": labelers.agreement(noisy, exact),
        "rows": {
            "RLHF": in_numbers(judged(work, sft, ppo(work, 0), reward), reference),
            "RLAIF": in_numbers(judged(work, sft, run, own), reference),
        },
    }


def loops(work: Work) -> dict[str, Any]:
    """Gold reward of the policy after each of three rounds."""
    sft = work.sft(0)
    short = {"total_steps": work.size.answers // 2, "eos_penalty": 1.0}
    common = {"max_new_tokens": SAMPLING.max_new_tokens, "learning_rate": 3e-4}
    asked = loop.Loop(
        source=WORLD,
        base=sft,
        rounds=3,
        pairs=max(4, work.size.pairs // 3),
        max_length=ROW,
        sampling=SAMPLING,
        reward={
            "total_steps": work.size.reward,
            "batch_size": 64,
            "learning_rate": 2e-3,
        },
        policy=short | common | {"kl_coef": BETA},
    )
    labeler = labelers.gold(larger_world.gold, NOISE, 1)
    rounds = loop.run(asked, labeler, work.folder / "loop", WORLD, **HOST)
    reference = judged(work, sft, sft, work.reward(0))
    found = [in_numbers(reference, reference) | {"round": 0}]
    for row in rounds:
        reward = str(Path(row["policy"]).parent / "reward")
        one = judged(work, sft, row["policy"], reward)
        accuracy = {"reward_accuracy": row["reward_accuracy"]}
        found.append(in_numbers(one, reference) | {"round": row["round"]} | accuracy)
        print(found[-1], flush=True)
    return {"rounds": found}


def instructions(work: Work) -> dict[str, Any]:
    """Accuracy on new problems after fine-tuning on ten tasks, also on an eleventh task."""
    params = {
        "base": work.base(),
        "max_length": larger_world.INSTRUCTION_TOKENS + larger_world.SOLUTION_TOKENS,
        "number": work.size.instructions,
    }
    # Copying words takes thousands of gradient steps to appear.
    config = {"total_steps": 5 * work.size.instructions, "batch_size": 32}
    run = work.train(
        "sft", "instructions", params, config | {"learning_rate": 1e-3}, "instructed"
    )
    known = language_model.load(run)
    number = max(8, work.size.prompts // 4)
    right = {
        task: [exact_matches(known, task, number, shots) for shots in range(4)]
        for task in larger_world.TASKS
    }
    return {"held_out": larger_world.HELD_OUT, "problems": number, "right": right}


def exact_matches(
    known: language_model.LanguageModel, task: str, number: int, shots: int
) -> float:
    """The share of problems whose greedy answer is right as a whole."""
    rows = larger_world.instructions(task, number, seed=99, shots=shots)
    tokenizer = known.tokenizer
    prompts = [tokenizer.encode(prompt) for prompt, _ in rows]
    tokens, mask = tokenizers.pad_rows(
        prompts, tokenizer.pad, larger_world.INSTRUCTION_TOKENS
    )
    done = generate(
        GPT(known.config),
        known.params,
        jnp.asarray(tokens),
        jnp.asarray(mask),
        jax.random.key(0),
        larger_world.SOLUTION_TOKENS,
        eos=tokenizer.eos,
        greedy=True,
        pad=tokenizer.pad,
    )
    new = np.asarray(done.tokens)[:, tokens.shape[1] :]
    said = [tokenizer.decode(x) for x in new]
    return float(np.mean([x == y for x, (_, y) in zip(said, rows, strict=True)]))


def count(run: str) -> int:
    return sum(x.size for x in jax.tree.leaves(language_model.load(run).params))


def _summary(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (Path(run) / "summary.json").read_text(encoding="utf-8")
    )
    return found


# The page.


def spread(row: dict[str, Any], digits: int, scale: float = 1.0) -> str:
    low, high = (f"{scale * x:.{digits}f}" for x in row["interval"])
    return f"{scale * row['mean']:.{digits}f} [{low}, {high}]"


def policies_of(found: dict[str, Any]) -> list[str]:
    """A row for each policy: mean over the seeds, with its interval."""
    lines = [
        "| policy | gold win rate over SFT, % | gold reward | KL from SFT, nats | tokens |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        # Of answers that were chosen, log π - log π_ref is no estimate of the divergence.
        kl = f"at most {BEST_OF_KL:.2f}" if name == BEST_OF else spread(row["kl"], 2)
        lines.append(
            f"| {name} | {spread(row['win_rate'], 1, 100)} | {spread(row['gold'], 2)} | "
            f"{kl} | {row['length']['mean']:.1f} |"
        )
    return lines


def methods_table(found: dict[str, Any]) -> str:
    accuracy = ", ".join(f"{100 * x:.1f}" for x in found["reward_accuracy"])
    lines = [
        *policies_of(found),
        "",
        f"Reward models: right on {accuracy} % of pairs kept back; Bayes "
        f"{100 * found['bayes_accuracy']:.1f} %. {found['parameters']:,} parameters.",
    ]
    return "\n".join([*lines, "", about(found)]) + "\n"


def penalty_table(found: dict[str, Any]) -> str:
    lines = [
        "![Gold reward and the reward model's score against the root of KL]"
        "(figures/rlhf-kl-penalty.png)",
        "",
        "| β | KL at the end, nats | gold reward: at first, highest, at the end | score of "
        "the reward model at the end | distinct pairs of words |",
        "|---|---|---|---|---|",
    ]
    for beta, row in found["runs"].items():
        gold = row["gold"]
        lines.append(
            f"| {beta} | {row['kl'][-1]:.1f} | {gold[0]:.2f}, {max(gold):.2f}, "
            f"{gold[-1]:.2f} | {row['score'][-1]:.2f} | {row['distinct_2'][-1]:.3f} |"
        )
    return "\n".join([*lines, "", about(found)]) + "\n"


def plot_penalty(found: dict[str, Any], out: Path) -> None:
    """Plot gold reward and the reward model's score against √KL during PPO training."""
    from matplotlib.figure import Figure

    from jaxrl.plotting import COLOURS

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("gold", "score"), strict=True):
        for colour, (beta, row) in zip(COLOURS, found["runs"].items(), strict=False):
            root = np.sqrt(np.maximum(row["kl"], 0.0))
            axes.plot(root, row[name], color=colour, label=f"β = {beta}")
        axes.set_xlabel("√KL(π ‖ π_ref), nats")
        axes.set_ylabel("gold reward" if name == "gold" else "reward model's score")
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=110)


def lora_table(found: dict[str, Any]) -> str:
    share = {name: spread(row, 1, 100) for name, row in found["share"].items()}
    words = (
        f"{100 * found['share_of_parameters']:.1f} % of the parameters, {share['gold']} % "
        f"of the gold reward, {share['gain']} % of what was gained over SFT."
    )
    return "\n".join([*policies_of(found), "", words, "", about(found)]) + "\n"


def rlaif_table(found: dict[str, Any]) -> str:
    words = (
        f"The judge agrees with gold on {100 * found['agreement_with_gold']:.1f} % of the "
        f"pairs, the noisy labels of the gold judge with itself on "
        f"{100 * found['agreement_of_noisy_labels_with_gold']:.1f} %."
    )
    lines = [
        "| policy | gold win rate over SFT, % | gold reward | KL from SFT, nats |",
        "|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        lines.append(
            f"| {name} | {100 * row['win_rate']:.1f} | {row['gold']:.2f} | "
            f"{row['kl']:.2f} |"
        )
    return "\n".join([*lines, "", words, "", about(found)]) + "\n"


def loop_table(found: dict[str, Any]) -> str:
    lines = [
        "| round | gold reward | gold win rate over SFT, % | KL from SFT, nats | reward "
        "model right, % |",
        "|---|---|---|---|---|",
    ]
    for row in found["rounds"]:
        accuracy = row.get("reward_accuracy")
        shown = "" if accuracy is None else f"{100 * accuracy:.1f}"
        lines.append(
            f"| {row['round']} | {row['gold']:.2f} | {100 * row['win_rate']:.1f} | "
            f"{row['kl']:.2f} | {shown} |"
        )
    return "\n".join([*lines, "", about(found)]) + "\n"


def instructions_table(found: dict[str, Any]) -> str:
    lines = ["| task | 0 examples | 1 | 2 | 3 |", "|---|---|---|---|---|"]
    for task, row in found["right"].items():
        name = f"{task} (held out)" if task == found["held_out"] else task
        lines.append(f"| {name} | " + " | ".join(f"{100 * x:.0f}" for x in row) + " |")
    words = f"Right answers, %, of {found['problems']} problems of each kind."
    return "\n".join([*lines, "", words, "", about(found)]) + "\n"


def about(found: dict[str, Any]) -> str:
    return (
        f"`{found['command']}`; {found['seeds']} seeds where an interval is given (mean, "
        f"95 % bootstrap), else one. Commit {found['commit']}. {captions.device([found])}"
    )


MEASURES = {
    "methods": methods,
    "penalty": penalty,
    "lora": lora,
    "rlaif": rlaif,
    "loop": loops,
    "instructions": instructions,
}
TABLES = {
    "methods": methods_table,
    "penalty": penalty_table,
    "lora": lora_table,
    "rlaif": rlaif_table,
    "loop": loop_table,
    "instructions": instructions_table,
}


def main() -> None:
    parser = script.parser(__doc__, PARTS)
    parser.add_argument(
        "--work", default="runs/rlhf-larger-world", help="of the stages"
    )
    arguments, file, rows = script.opened(parser, RESULTS, "rlhf_larger_world.json")
    use_compilation_cache()  # the seeds of a stage are one program
    size = QUICK if arguments.quick else FULL
    folder = Path(arguments.out) / "work" if arguments.quick else Path(arguments.work)
    folder.mkdir(parents=True, exist_ok=True)
    origin = {
        "commit": commit(),
        "jax": versions()["jax"],
        "device": jax.devices()[0].platform,
        "seeds": size.seeds,
    }
    for part in arguments.parts:
        command = f"python -m benchmarks.rlhf_larger_world --parts {part}"
        measured = MEASURES[part](Work(folder, size))
        rows[part] = {"command": command} | origin | measured
        file.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
        if part == "penalty":
            figures = Path(arguments.out) if arguments.out else FIGURES
            plot_penalty(rows[part], figures / "rlhf-kl-penalty.png")
        print(TABLES[part](rows[part]), flush=True)


if __name__ == "__main__":
    main()
