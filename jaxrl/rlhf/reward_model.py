"""A reward model: which of two responses a labeler prefers.

    min_φ E_{(x, y_w, y_l) ~ D} -log σ(r_φ(x, y_w) - r_φ(x, y_l) - m)

The language model that one starts from, its last hidden state read by a linear function
(Stiennon et al., 2020, https://arxiv.org/abs/2009.01325, section 3.4). Of a ranking of K
responses all its pairs count (Ouyang et al., 2022, https://arxiv.org/abs/2203.02155,
equation 1). m is the margin of the row, if it has one (Touvron et al., 2023,
https://arxiv.org/abs/2307.09288, equation 2).

The details that matter:

1. Only differences of rewards are learned: the constant is free. With `normalize` what is
   used afterwards is g r + b, with mean 0 and standard deviation 1 over the responses that
   were labelled (Ziegler et al., 2019, https://arxiv.org/abs/1909.08593, section 2.1): mean
   and square of the scores are followed while it trains, and `models.load_reward` puts g
   and b into the linear function.
2. All responses to a prompt are in one batch, so none counts more often than the others.
3. The linear function starts at 0: at first all responses are alike, and P = 1/2.
4. One or two passes over the pairs are enough: more learns their noise.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl.rlhf import estimators, policies, responses
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.data import Pairs
from jaxrl.rlhf.models import language_model
from jaxrl.rlhf.models.language_model import RewardParams
from jaxrl.rlhf.policies import State
from jaxrl.rlhf.tasks import Task, pairs
from jaxrl.types import Algorithm, Array, Metrics, PyTree, mean, static, traced


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
    score_moments: Array  # [3], see `estimators.decayed_moments`


def init(config: Config, task: Task, key: Array) -> State:
    key_model, key_state = jax.random.split(key)
    reward = {
        "model": policies.init_trained(config, task, key_model),
        "head": jnp.zeros(task.model.config.width),
        "bias": jnp.zeros(()),
    }
    opt_state = policies.optimizer(config).init(reward)
    return policies.begin(Agent(reward, opt_state, jnp.zeros(3)), key_state)


def scores(config: Config, task: Task, reward: dict[str, PyTree], rows: Pairs) -> Array:
    """r of every response of rows `[B, K, T]`: `[B, K]`."""
    params = RewardParams(
        policies.weights(config, task, reward["model"]), reward["head"], reward["bias"]
    )
    shape = rows.tokens.shape
    flat = [x.reshape(-1, shape[-1]) for x in (rows.tokens, rows.mask, rows.response)]
    return language_model.score(task.model, params, *flat).reshape(shape[:2])


_scores = jax.jit(scores)


def loss(
    reward: dict[str, PyTree], config: Config, task: Task, rows: Pairs
) -> tuple[Array, Array]:
    """The mean loss over all pairs of all rows, and the scores `[B, K]`."""
    r = scores(config, task, reward, rows)
    return text_losses.ranking_loss(r, rows.margin).mean(), r


DECAY = 0.95
"""Decay of the moments: about the last twenty batches count."""


def train_step(config: Config, task: Task, state: State) -> tuple[State, Metrics]:
    """One gradient step."""
    agent = state.agent
    key, key_rows = jax.random.split(state.key)
    rows = policies.draw_rows(config, task, key_rows)
    rate = policies.step_size(config, state.texts)
    of_rows = partial(loss, config=config, task=task, rows=rows)
    step = policies.gradient_step(config, of_rows, agent.reward, agent.opt_state, rate)
    r = step.aux
    moments = estimators.decayed_moments(agent.score_moments, r, DECAY)
    right = accuracy(r)
    metrics = {
        "rollout/episode_return": mean(right),
        "rollout/episode_length": mean(estimators.length(rows.response)),
        "loss/preference": mean(step.loss),
        "reward/accuracy": mean(right),
        "reward/gap": mean(r[:, 0] - r[:, -1]),
        "reward/mean": mean(r),
        "reward/longer_is_better": mean(length_bias(r, rows)),
    } | policies.step_metrics(step, rate)
    agent = Agent(step.params, step.opt_state, moments)
    return policies.advance(state, agent, key, config.batch_size), metrics


def accuracy(r: Array) -> Array:
    """The share of the pairs of each row of scores `[B, K]` ranked as labelled: `[B]`."""
    better, worse = text_losses.ranking_pairs(r.shape[1]).T
    return estimators.preference_accuracy(r[:, better], r[:, worse]).mean(1)


def length_bias(r: Array, rows: Pairs) -> Array:
    """1 where the response with the highest score is longer than the one with the lowest,
    0 where it is shorter, ½ where both have one length: `[B]`."""
    length = estimators.length(rows.response)
    pick = [
        jnp.take_along_axis(length, i(r, axis=1)[:, None], axis=1)[:, 0]
        for i in (jnp.argmax, jnp.argmin)
    ]
    return 0.5 * (1.0 + jnp.sign(pick[0] - pick[1]))


def returns(
    config: Config, task: Task, agent: Agent, key: Array, number: int, greedy: bool
) -> Array:
    """The accuracy on rows kept back, `[number]`."""
    del key, greedy

    def of_row(row: Pairs) -> Array:
        return accuracy(scores(config, task, agent.reward, row))[0]

    return policies.map_held_out(task, of_row, number)


def calibration(
    config: Config, task: Task, agent: Agent, number: int = 1_000
) -> estimators.Calibration:
    """Calibration of σ(r_a - r_b), the probability that a is preferred, on pairs kept back.

    Every other pair is swapped, so that the first of a pair is not always the one that was
    preferred.
    """
    some = jax.tree.map(lambda x: x[:number], task.teacher.held_out)
    r = _scores(config, task, agent.reward, some)
    difference = r[:, 0] - r[:, -1]
    swapped = jnp.arange(len(difference)) % 2 == 1
    probability = jax.nn.sigmoid(jnp.where(swapped, -difference, difference))
    return estimators.calibration(probability, ~swapped)


def score(config: Config, task: Task, agents: Agent) -> dict[str, Array]:
    """Metrics of an evaluation beside the accuracy, of agents `[K]`."""
    error = [
        calibration(config, task, jax.tree.map(lambda x, k=k: x[k], agents)).error
        for k in range(len(agents.score_moments))
    ]
    return {"calibration_error": jnp.stack(error)}


def samples(
    config: Config, task: Task, agent: Agent, key: Array
) -> list[dict[str, Any]]:
    """Some rows kept back, the better response first, with the rewards."""
    del key
    rows = jax.tree.map(lambda x: x[: responses.SHOWN], task.teacher.held_out)
    r = _scores(config, task, agent.reward, rows)
    rows, r = jax.device_get((rows, r))
    shown = []
    for tokens, mask, response, score in zip(*rows[:3], r, strict=True):
        texts = [
            responses.decode(task, t, m) for t, m in zip(tokens, response, strict=True)
        ]
        prompt = responses.decode(task, tokens[0], mask[0] & ~response[0])
        shown.append({"prompt": prompt, "responses": texts, "scores": score.tolist()})
    return shown


REWARD = Algorithm(
    name="rlhf-reward",
    Config=Config,
    init=init,
    train_step=train_step,
    act=policies.no_act,
    plan=policies.plan,
    validate=policies.validate,
    score=score,
    problem=policies.problem(pairs, returns, samples, kind="reward"),
)
