"""Group relative policy optimisation (GRPO; Shao et al., 2024,
https://arxiv.org/abs/2402.03300): PPO's clipped ratio, with the mean of the group's scores
in the place of a value function.

    L = -mean_t min(ρ_t A_i, clip(ρ_t, 1 - ε, 1 + ε) A_i),    A_i = R_i - mean_j R_j

The details that matter:

1. Every token of a response has the advantage of the whole response.
2. `scale_rewards` divides the advantage by the group's deviation, as published. Prompts
   whose responses are alike then count more, and the optimum is another (Liu et al., 2025,
   https://arxiv.org/abs/2503.20783): off by default.
3. `kl_penalty` = "reward" subtracts β (log π - log π_ref) from the score: that is the
   gradient of KL(π ‖ π_ref). "k3" is the published term of the loss; its gradient is that
   of the other divergence, KL(π_ref ‖ π), and leads elsewhere (docs/rlhf-small-world.md).
4. `loss_mean`: "responses" sums the tokens of a response and takes the mean over responses
   (unbiased); "tokens" is the mean over all tokens of the batch; "published" the mean over
   the tokens of each response, then over responses, which favours short responses if they
   are good and long ones if they are bad.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import losses
from jaxrl.rlhf import estimators, policies, responses
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.policies import Agent, State
from jaxrl.rlhf.responses import Responses
from jaxrl.rlhf.tasks import Task
from jaxrl.types import (
    Algorithm,
    Array,
    Metrics,
    PyTree,
    Scalar,
    mean,
    static,
    traced,
)


class Config(PyTreeNode):
    """Hyper-parameters of GRPO."""

    total_steps: float = traced(10_000.0, low=1, high=1e12)
    """Responses that are written in the whole run; the schedule ends there."""
    batch_size: int = static(64, low=2)
    """Responses between updates."""
    group_size: int = static(4, low=2)
    """K: responses to each prompt; must divide `batch_size`."""
    num_epochs: int = static(1, low=1)
    """Passes over each batch."""
    num_minibatches: int = static(1, low=1)
    """Gradient steps of each pass; must divide `batch_size`."""
    learning_rate: float = traced(1e-4, low=0)
    """Adam's step size."""
    anneal_lr: bool = static(True)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    max_grad_norm: float = traced(1.0, above=0)
    """Gradients are scaled down to this global norm."""
    max_new_tokens: int = static(32, low=1)
    """The longest response, EOS included."""
    temperature: float = traced(1.0, above=0)
    """Softmax temperature, for sampling and in the loss."""
    clip_eps: float = traced(0.2, above=0)
    """Distance of the ratio from 1 beyond which it is clipped."""
    kl_coef: float = traced(0.05, low=0)
    """KL penalty coefficient β, reward per nat of divergence from the reference."""
    kl_penalty: Literal["reward", "k3"] = static("reward")
    """Place of the KL penalty: in the reward, or as the estimate k3 in the loss."""
    scale_rewards: bool = static(False)
    """Whether advantages are divided by the deviation of their group."""
    loss_mean: Literal["responses", "tokens", "published"] = static("responses")
    """Reduction of the loss; see the top of this file."""
    eos_penalty: float = traced(0.0, low=0)
    """Subtracted from the score of a response without EOS."""
    lora_rank: int = static(0, low=0)
    """Rank of the adapters that are trained in the model's place; 0 trains all of it."""
    lora_alpha: float = static(16.0, above=0)
    """The adapters' product is scaled by lora_alpha / lora_rank."""
    lora_targets: str = static("query,value")
    """The layers that get adapters."""


class Batch(NamedTuple):
    """Responses, and the advantage of each `[B]`."""

    responses: Responses
    advantage: Array


def advantages(config: Config, task: Task, batch: Responses) -> Array:
    """The advantage of each response `[B]`, after subtracting the KL penalty if it is
    applied to the reward."""
    reward, terms = batch.score, jnp.abs(batch.score)
    if config.kl_penalty == "reward":
        reward = reward - config.kl_coef * responses.divergence(batch)
        terms += config.kl_coef * responses.rounded_terms(task, batch).sum(1)
    reward, terms = (x.reshape(-1, config.group_size) for x in (reward, terms))
    return estimators.grpo_advantage(reward, config.scale_rewards, terms).reshape(-1)


REPORTED = ("loss/policy", "policy/entropy", "policy/clip_fraction", "policy/approx_kl")
"""Names of the numbers that `loss` reports, in this order."""


def loss(
    policy: PyTree, config: Config, task: Task, batch: Batch
) -> tuple[Array, tuple[Array, ...]]:
    """The loss of some responses, and what is `REPORTED` of them."""
    written, mask = batch.responses, batch.responses.response
    params = policies.weights(config, task, policy)
    logits = policies.logits(task.model, params, written.tokens, written.mask)
    log_prob = text_losses.token_log_probs(logits, written.tokens, config.temperature)
    # Outside of the response there is no old log-probability to compare with.
    log_prob = jnp.where(mask, log_prob, 0.0)
    of_token = jnp.broadcast_to(batch.advantage[:, None], log_prob.shape)
    each = losses.clipped_surrogate(
        log_prob, written.log_prob, of_token, config.clip_eps
    )
    if config.kl_penalty == "k3":
        # Differentiated through the policy that sampled, so the ratio is one argument.
        ratio = written.ref_log_prob - log_prob
        each += config.kl_coef * losses.approx_kl(ratio, jnp.zeros_like(ratio))
    total = average(config, each, mask)
    entropy = estimators.entropy(logits[:, :-1] / config.temperature)
    moved = jnp.abs(jnp.exp(log_prob - written.log_prob) - 1.0) > config.clip_eps
    kl = losses.approx_kl(log_prob, written.log_prob)
    return total, (
        total,
        losses.masked_mean(entropy, mask[:, 1:]),
        losses.masked_mean(moved.astype(jnp.float32), mask),
        losses.masked_mean(kl, mask),
    )


def average(config: Config, each: Array, mask: Array) -> Array:
    """The mean of `[B, T]` over what `loss_mean` says."""
    if config.loss_mean == "tokens":
        return losses.masked_mean(each, mask)
    whole = text_losses.masked_sum(each, mask)
    if config.loss_mean == "published":
        whole = whole / jnp.maximum(estimators.length(mask), 1)
    return whole.mean()


def update(
    config: Config, task: Task, agent: Agent, batch: Batch, key: Array, rate: Scalar
) -> tuple[Agent, Array]:
    """`num_epochs` passes over a batch; what is `REPORTED` of each step, and the norm of
    its gradient: `[U, R + 1]`."""

    def step(agent: Agent, some: Batch) -> tuple[Agent, Array]:
        of_some = partial(loss, config=config, task=task, batch=some)
        params, opt_state, _, reported, norm = policies.gradient_step(
            config, of_some, agent.policy, agent.opt_state, rate
        )
        return Agent(params, opt_state), jnp.stack([*reported, norm])

    return policies.fit(config, step, agent, batch, key)


def train_step(config: Config, task: Task, state: State) -> tuple[State, Metrics]:
    """A batch of responses and the gradient steps of its passes."""
    agent = state.agent
    key, key_responses, key_update = jax.random.split(state.key, 3)
    params = policies.weights(config, task, agent.policy)
    written = responses.sample(
        config, task, params, key_responses, config.batch_size, config.group_size
    )
    batch = Batch(written, advantages(config, task, written))
    rate = policies.step_size(config, state.texts)
    agent, reported = update(config, task, agent, batch, key_update, rate)
    names = (*REPORTED, "optim/grad_norm")
    metrics = responses.batch_metrics(task, written) | {
        name: mean(column) for name, column in zip(names, reported.T, strict=True)
    }
    metrics["optim/learning_rate"] = mean(rate)
    return policies.advance(state, agent, key, config.batch_size), metrics


GRPO = Algorithm(
    name="rlhf-grpo",
    Config=Config,
    init=policies.init,
    train_step=train_step,
    act=policies.no_act,
    plan=responses.plan,
    validate=partial(responses.validate, parts=("group_size", "num_minibatches")),
    problem=responses.PROBLEM,
)
