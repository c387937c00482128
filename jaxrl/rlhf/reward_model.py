"""A reward model: which of two answers a labeler prefers.

    min_φ E_{(x, y_w, y_l) ~ D} -log σ(r_φ(x, y_w) - r_φ(x, y_l) - m)

The language model that one starts from, its last hidden state read by a linear function
(Stiennon et al., 2020, https://arxiv.org/abs/2009.01325, section 3.4). Of a ranking of K
answers all its pairs count (Ouyang et al., 2022, https://arxiv.org/abs/2203.02155,
equation 1). m is the margin of the row, if it has one (Touvron et al., 2023,
https://arxiv.org/abs/2307.09288, equation 2).

The details that matter:

1. Only differences of rewards are learned: the constant is free. With `normalize` what is
   used afterwards is g r + b, with mean 0 and standard deviation 1 over the answers that
   were labelled (Ziegler et al., 2019, https://arxiv.org/abs/1909.08593, section 2.1): mean
   and square of the scores are followed while it trains, and `models.load_reward` puts g
   and b into the linear function.
2. All answers to a prompt are in one batch, so none counts more often than the others.
3. The linear function starts at 0: at first all answers are alike, and P = 1/2.
4. One or two passes over the pairs are enough: more learns their noise.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import optim
from jaxrl.rlhf import answers, estimators, policies
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.data import Pairs
from jaxrl.rlhf.models import language_model
from jaxrl.rlhf.models.language_model import RewardParams
from jaxrl.rlhf.tasks import Task, digests, drawn, no_world, pairs
from jaxrl.types import (
    Algorithm,
    Array,
    Metrics,
    Plan,
    Problem,
    PyTree,
    World,
    mean,
    static,
    traced,
)


class Config(PyTreeNode):
    """Hyper-parameters of a reward model."""

    total_steps: float = traced(10_000.0, low=1, high=1e12)
    """Pairs (or rankings) that are read in the whole run; the schedule ends there."""
    batch_size: int = static(32, low=1)
    """Pairs of each gradient step."""
    learning_rate: float = traced(3e-4, low=0)
    """Adam's step size."""
    anneal_lr: bool = static(True)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    max_grad_norm: float = traced(1.0, above=0)
    """Gradients are scaled down to this global norm."""
    normalize: bool = static(True)
    """Whether rewards are given mean 0 and deviation 1 where the model is used."""
    lora_rank: int = static(0, low=0)
    """Rank of the adapters that are trained in the model's place; 0 trains all of it."""
    lora_alpha: float = static(16.0, above=0)
    """The adapters' product is scaled by lora_alpha / lora_rank."""
    lora_targets: str = static("query,value")
    """The layers that get adapters."""


class Agent(PyTreeNode):
    """All that the policy artefact holds."""

    reward: dict[str, PyTree]  # model, or its adapters; head [D]; bias []
    opt_state: PyTree
    moments: Array  # [3]: decayed sums of 1, r and r²


class State(PyTreeNode):
    agent: Agent
    world: World


def validate(config: Config, task: Task) -> None:
    policies.validate(config, task)


def plan(config: Config, task: Task) -> Plan:
    rows = config.batch_size * task.teacher.rows.tokens.shape[1]
    return Plan(config.batch_size, 1, gradient_rows=rows)


def init(config: Config, task: Task, key: Array) -> State:
    key_model, key_world = jax.random.split(key)
    reward = {
        "model": policies.init_trained(config, task, key_model),
        "head": jnp.zeros(task.model.config.width),
        "bias": jnp.zeros(()),
    }
    opt_state = policies.optimizer(config).init(reward)
    return State(Agent(reward, opt_state, jnp.zeros(3)), no_world(key_world))


def scores(config: Config, task: Task, reward: dict[str, PyTree], rows: Pairs) -> Array:
    """r of every answer of rows `[B, K, T]`: `[B, K]`."""
    params = RewardParams(
        policies.weights(config, task, reward["model"]), reward["head"], reward["bias"]
    )
    shape = rows.tokens.shape
    flat = [x.reshape(-1, shape[-1]) for x in (rows.tokens, rows.mask, rows.answer)]
    return language_model.score(task.model, params, *flat).reshape(shape[:2])


_scores = jax.jit(scores)


def loss(
    reward: dict[str, PyTree], config: Config, task: Task, rows: Pairs
) -> tuple[Array, Array]:
    """The mean loss over all pairs of all rows, and the scores `[B, K]`."""
    found = scores(config, task, reward, rows)
    return text_losses.ranking_loss(found, rows.margin).mean(), found


DECAY = 0.95
"""Of the moments: about the last twenty batches count."""


def train_step(config: Config, task: Task, state: State) -> tuple[State, Metrics]:
    """One gradient step."""
    agent, world = state.agent, state.world
    key, key_rows = jax.random.split(world.key)
    index = jax.random.randint(key_rows, (config.batch_size,), 0, task.num_rows)
    rows = drawn(task.teacher.rows, index)
    rate = policies.step_size(config, world.env_steps)
    of = jax.value_and_grad(loss, has_aux=True)
    (value, found), grads = of(agent.reward, config, task, rows)
    optimizer = policies.optimizer(config)
    reward, opt_state = optim.apply(
        optimizer, agent.reward, agent.opt_state, grads, rate
    )
    now = jnp.stack([jnp.ones(()), found.mean(), jnp.square(found).mean()])
    moments = DECAY * agent.moments + (1.0 - DECAY) * now
    right = accuracy(found)
    metrics = {
        "rollout/episode_return": mean(right),
        "rollout/episode_length": mean(estimators.length(rows.answer)),
        "loss/preference": mean(value),
        "reward/accuracy": mean(right),
        "reward/gap": mean(found[:, 0] - found[:, -1]),
        "reward/mean": mean(found),
        "reward/longer_is_better": mean(length_bias(found, rows)),
        "optim/grad_norm": mean(optim.global_norm(grads)),
        "optim/learning_rate": mean(rate),
    }
    world = world.replace(key=key, env_steps=world.env_steps + config.batch_size)
    return State(Agent(reward, opt_state, moments), world), metrics


def accuracy(found: Array) -> Array:
    """How many of the pairs of each row `[B, K]` are ranked as labelled: `[B]`."""
    better, worse = text_losses.ranking_pairs(found.shape[1]).T
    return estimators.preference_accuracy(found[:, better], found[:, worse]).mean(1)


def length_bias(found: Array, rows: Pairs) -> Array:
    """Whether the answer with the highest score is longer than the one with the lowest, 1,
    shorter, 0, or as long, ½: `[B]`."""
    length = estimators.length(rows.answer)
    pick = [
        jnp.take_along_axis(length, i(found, axis=1)[:, None], axis=1)[:, 0]
        for i in (jnp.argmax, jnp.argmin)
    ]
    return 0.5 * (1.0 + jnp.sign(pick[0] - pick[1]))


def returns(
    config: Config, task: Task, agent: Agent, key: Array, number: int, greedy: bool
) -> Array:
    """The accuracy on rows kept back, `[number]`."""
    del key, greedy
    count = task.teacher.held_out.tokens.shape[0]

    def of_row(i: Array) -> Array:
        row = jax.tree.map(lambda x: x[i][None], task.teacher.held_out)
        return accuracy(scores(config, task, agent.reward, row))[0]

    return jax.lax.map(of_row, jnp.arange(number) % count, batch_size=64)


def calibration(
    config: Config, task: Task, agent: Agent, number: int = 1_000
) -> estimators.Calibration:
    """Whether σ(r_a - r_b) is how often a is preferred, over pairs kept back.

    Every other pair is turned round, so that the first of a pair is not always the one
    that was preferred.
    """
    some = jax.tree.map(lambda x: x[:number], task.teacher.held_out)
    found = _scores(config, task, agent.reward, some)
    difference = found[:, 0] - found[:, -1]
    turned = jnp.arange(len(difference)) % 2 == 1
    probability = jax.nn.sigmoid(jnp.where(turned, -difference, difference))
    return estimators.calibration(probability, ~turned)


def score(config: Config, task: Task, agents: Agent) -> dict[str, Array]:
    """What an evaluation says beside the accuracy, of agents `[K]`."""
    error = [
        calibration(config, task, jax.tree.map(lambda x, k=k: x[k], agents)).error
        for k in range(len(agents.moments))
    ]
    return {"calibration_error": jnp.stack(error)}


def samples(
    config: Config, task: Task, agent: Agent, key: Array
) -> list[dict[str, Any]]:
    """Some rows kept back, the better answer first, with the rewards."""
    del key
    rows = jax.tree.map(lambda x: x[: answers.SHOWN], task.teacher.held_out)
    found = _scores(config, task, agent.reward, rows)
    rows, found = jax.device_get((rows, found))
    shown = []
    for tokens, mask, answer, score in zip(*rows[:3], found, strict=True):
        texts = [
            answers.decoded(task, t, a) for t, a in zip(tokens, answer, strict=True)
        ]
        prompt = answers.decoded(task, tokens[0], mask[0] & ~answer[0])
        shown.append({"prompt": prompt, "answers": texts, "scores": score.tolist()})
    return shown


REWARD = Algorithm(
    name="rlhf-reward",
    Config=Config,
    init=init,
    train_step=train_step,
    act=policies.no_act,
    plan=plan,
    validate=validate,
    score=score,
    problem=Problem(
        make=pairs,
        returns=returns,
        describe=partial(policies.described, "reward"),
        digests=digests,
        samples=samples,
    ),
)
