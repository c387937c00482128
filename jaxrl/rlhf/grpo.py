"""Group relative policy optimisation (GRPO; Shao et al., 2024,
https://arxiv.org/abs/2402.03300): PPO's clipped ratio, with the mean of the group's scores
in the place of a value function.

    L = -mean_t min(ρ_t A_i, clip(ρ_t, 1 - ε, 1 + ε) A_i),    A_i = R_i - mean_j R_j

The details that matter:

1. Every token of an answer has the advantage of the whole answer.
2. `scale_rewards` divides the advantage by the group's deviation, as published. Prompts
   whose answers are alike then count more, and the optimum is another (Liu et al., 2025,
   https://arxiv.org/abs/2503.20783): off by default.
3. `leash` = "reward" takes β (log π - log π_ref) off the score: that is the gradient of
   KL(π ‖ π_ref). "k3" is the published term of the loss; its gradient is that of the other
   divergence, KL(π_ref ‖ π), and leads elsewhere (docs/rlhf-small-world.md).
4. `loss_mean`: "answers" adds up the tokens of an answer and takes the mean over answers
   (unbiased); "tokens" is the mean over all tokens of the batch; "published" the mean over
   the tokens of each answer, then over answers, which favours short answers if they are
   good and long ones if they are bad.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import losses, optim
from jaxrl.core.minibatches import minibatches
from jaxrl.errors import require
from jaxrl.rlhf import answers, estimators, policies
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.answers import Answers
from jaxrl.rlhf.tasks import Task, digests, drawn, no_world, prompts
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
    """Hyper-parameters of GRPO."""

    total_steps: float = traced(10_000.0, low=1, high=1e12)
    """Answers that are written in the whole run; the schedule ends there."""
    batch_size: int = static(64, low=2)
    """Answers between updates."""
    group_size: int = static(4, low=2)
    """K: answers to each prompt; must divide `batch_size`."""
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
    """The longest answer, EOS included."""
    temperature: float = traced(1.0, above=0)
    """Of the sampling, and of the policy whose gradient it is."""
    clip_eps: float = traced(0.2, above=0)
    """How far the ratio may move before there is no gain from it."""
    kl_coef: float = traced(0.05, low=0)
    """β, the price of a nat of divergence from the reference."""
    leash: Literal["reward", "k3"] = static("reward")
    """Where it is paid: in the reward, or as an estimate in the loss."""
    scale_rewards: bool = static(False)
    """Whether advantages are divided by the deviation of their group."""
    loss_mean: Literal["answers", "tokens", "published"] = static("answers")
    """Over what the loss is a mean."""
    eos_penalty: float = traced(0.0, low=0)
    """What an answer loses that does not end."""
    lora_rank: int = static(0, low=0)
    """Rank of the adapters that are trained in the model's place; 0 trains all of it."""
    lora_alpha: float = static(16.0, above=0)
    """The adapters' product is scaled by lora_alpha / lora_rank."""
    lora_targets: str = static("query,value")
    """The layers that get adapters."""


class Agent(PyTreeNode):
    """All that the policy artefact holds."""

    policy: PyTree
    opt_state: PyTree


class State(PyTreeNode):
    agent: Agent
    world: World


def validate(config: Config, task: Task) -> None:
    answers.validate(config, task)
    for name in ("group_size", "num_minibatches"):
        require(
            config.batch_size % getattr(config, name) == 0,
            f"batch_size = {config.batch_size}: must be a multiple of {name} = "
            f"{getattr(config, name)}.",
        )


def plan(config: Config, task: Task) -> Plan:
    del task
    updates = config.num_epochs * config.num_minibatches
    rows = config.batch_size // config.num_minibatches
    return Plan(config.batch_size, updates, gradient_rows=rows)


def init(config: Config, task: Task, key: Array) -> State:
    key_policy, key_world = jax.random.split(key)
    policy = policies.init_trained(config, task, key_policy)
    agent = Agent(policy, policies.optimizer(config).init(policy))
    return State(agent, no_world(key_world))


def advantages(config: Config, batch: Answers) -> Array:
    """Of each answer, the leash taken off its score if it is paid there: `[B]`."""
    reward = batch.score
    if config.leash == "reward":
        reward = reward - config.kl_coef * answers.divergence(batch)
    grouped = reward.reshape(-1, config.group_size)
    return estimators.grpo_advantage(grouped, config.scale_rewards).reshape(-1)


REPORTED = ("loss/policy", "policy/entropy", "policy/clip_fraction", "policy/approx_kl")
"""What `loss` reports beside itself, in this order."""


def loss(
    policy: PyTree, config: Config, task: Task, rows: tuple[Answers, Array]
) -> tuple[Array, tuple[Array, ...]]:
    """The loss of some answers, and what is `REPORTED` of them."""
    batch, advantage = rows
    params = policies.weights(config, task, policy)
    logits = policies.logits(task.model, params, batch.tokens, batch.mask)
    log_prob = text_losses.token_log_probs(logits, batch.tokens, config.temperature)
    # Outside of the answer there is no old log-probability to compare with.
    log_prob = jnp.where(batch.answer, log_prob, 0.0)
    of_token = jnp.broadcast_to(advantage[:, None], log_prob.shape)
    each = losses.clipped_surrogate(log_prob, batch.log_prob, of_token, config.clip_eps)
    if config.leash == "k3":
        # Differentiated through the policy that sampled, so the ratio is one argument.
        ratio = batch.ref_log_prob - log_prob
        each += config.kl_coef * losses.approx_kl(ratio, jnp.zeros_like(ratio))
    total = averaged(config, each, batch.answer)
    entropy = estimators.entropy(logits[:, :-1] / config.temperature)
    moved = jnp.abs(jnp.exp(log_prob - batch.log_prob) - 1.0) > config.clip_eps
    kl = losses.approx_kl(log_prob, batch.log_prob)
    return total, (
        total,
        losses.masked_mean(entropy, batch.answer[:, 1:]),
        losses.masked_mean(moved.astype(jnp.float32), batch.answer),
        losses.masked_mean(kl, batch.answer),
    )


def averaged(config: Config, each: Array, mask: Array) -> Array:
    """The mean of `[B, T]` over what `loss_mean` says."""
    if config.loss_mean == "tokens":
        return losses.masked_mean(each, mask)
    whole = text_losses.masked_sum(each, mask)
    if config.loss_mean == "published":
        whole = whole / jnp.maximum(estimators.length(mask), 1)
    return whole.mean()


def update(
    config: Config, task: Task, agent: Agent, rows: Any, key: Array, rate: Any
) -> tuple[Agent, Array]:
    """`num_epochs` passes over a batch; what is `REPORTED` of each step, `[U, R]`."""
    optimizer = policies.optimizer(config)

    def step(carry: tuple, index: Array) -> tuple[tuple, Array]:
        policy, opt_state = carry
        some = drawn(rows, index)
        grads, reported = jax.grad(loss, has_aux=True)(policy, config, task, some)
        carry = optim.apply(optimizer, policy, opt_state, grads, rate)
        return carry, jnp.stack([*reported, optim.global_norm(grads)])

    order = minibatches(
        key, config.batch_size, config.num_epochs, config.num_minibatches
    )
    carry, reported = jax.lax.scan(step, (agent.policy, agent.opt_state), order)
    return Agent(*carry), reported


def train_step(config: Config, task: Task, state: State) -> tuple[State, Metrics]:
    """A batch of answers and the gradient steps of its passes."""
    agent, world = state.agent, state.world
    key, key_answers, key_update = jax.random.split(world.key, 3)
    params = policies.weights(config, task, agent.policy)
    batch = answers.to_prompts(
        config, task, params, key_answers, config.batch_size, config.group_size
    )
    rows = (batch, advantages(config, batch))
    rate = policies.step_size(config, world.env_steps)
    agent, reported = update(config, task, agent, rows, key_update, rate)
    names = (*REPORTED, "optim/grad_norm")
    metrics = answers.reported(task, batch) | {
        name: mean(column) for name, column in zip(names, reported.T, strict=True)
    }
    metrics["optim/learning_rate"] = mean(rate)
    world = answers.counted(world.replace(key=key), batch)
    return State(agent, world), metrics


GRPO = Algorithm(
    name="rlhf-grpo",
    Config=Config,
    init=init,
    train_step=train_step,
    act=policies.no_act,
    plan=plan,
    validate=validate,
    problem=Problem(
        make=prompts,
        returns=answers.returns,
        describe=partial(policies.described, "policy"),
        digests=digests,
        samples=answers.samples,
    ),
)
