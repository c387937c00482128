"""Proximal policy optimisation of a language model (Ziegler et al., 2019,
https://arxiv.org/abs/1909.08593; Ouyang et al., 2022, https://arxiv.org/abs/2203.02155).

    max_θ E_{x ~ D, y ~ π_θ(·|x)} [r(x, y) - β log(π_θ(y|x) / π_ref(y|x))]

A token is an action, the text before it the state, a response an episode.

The details that matter (Huang et al., 2024, https://arxiv.org/abs/2403.17031):

1. The KL penalty is in the reward of every token, the score in that of the last one. β is
   fixed, or follows a target (`kl_target`; Ziegler et al., section 2.2).
2. The value function is a model of its own. It starts as the reward model, head and all,
   which already tells good responses from bad ones; where the judge is a program, as the
   reference with a head of 0.
3. A response that does not end loses `eos_penalty`.
4. Rewards may be whitened, which keeps their mean; advantages are.
5. Everything is masked: padding has no loss, no value, no reward.
6. The log-probabilities of the rollout are those of the sampling, at its temperature; a
   full pass gives the same to 1e-5, so the first ratio is 1.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import losses, optim, types
from jaxrl.rlhf import estimators, policies, responses
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.models import language_model, lora
from jaxrl.rlhf.models.language_model import RewardParams
from jaxrl.rlhf.models.transformer import GPT
from jaxrl.rlhf.policies import State
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
    """Hyper-parameters of PPO with a language model."""

    total_steps: float = traced(10_000.0, low=1, high=1e12)
    """Responses that are written in the whole run; the schedule ends there."""
    batch_size: int = static(64, low=2)
    """Responses between updates."""
    num_epochs: int = static(2, low=1)
    """Passes over each batch."""
    num_minibatches: int = static(2, low=1)
    """Gradient steps of each pass; must divide `batch_size`."""
    learning_rate: float = traced(1e-4, low=0)
    """Adam's step size, of policy and value function."""
    anneal_lr: bool = static(True)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    max_grad_norm: float = traced(1.0, above=0)
    """Gradients are scaled down to this global norm, those of policy and value apart."""
    max_new_tokens: int = static(32, low=1)
    """The longest response, EOS included."""
    temperature: float = traced(1.0, above=0)
    """Softmax temperature, for sampling and in the loss."""
    gamma: float = traced(1.0, low=0, high=1)
    """Discount."""
    gae_lambda: float = traced(0.95, low=0, high=1)
    """Decay of the advantage's mixture of n-step returns."""
    clip_eps: float = traced(0.2, above=0)
    """Distance of the ratio from 1 beyond which it is clipped."""
    vf_coef: float = traced(0.5, low=0)
    """Weight of the value loss."""
    ent_coef: float = traced(0.0, low=0)
    """Weight of an entropy bonus."""
    kl_coef: float = traced(0.05, low=0)
    """KL penalty coefficient β, reward per nat, or where it begins."""
    kl_target: float | None = static(None, above=0)
    """Divergence of a response in nats that β is adapted to; none keeps β."""
    whiten_rewards: bool = static(False)
    """Whether rewards are given deviation 1, their mean kept."""
    eos_penalty: float = traced(0.0, low=0)
    """Subtracted from the score of a response without EOS."""
    lora_rank: int = static(0, low=0)
    """Rank of the adapters that are trained in the models' place; 0 trains all of them."""
    lora_alpha: float = static(16.0, above=0)
    """The adapters' product is scaled by lora_alpha / lora_rank."""
    lora_targets: str = static("query,value")
    """The layers that get adapters."""


class Agent(PyTreeNode):
    """All that the policy artefact holds."""

    policy: PyTree
    value: RewardParams  # of the value function: its model, or adapters, and its head
    opt_state: PyTree
    kl_coef: Array = types.fresh()  # []


class Batch(NamedTuple):
    """Responses, and what is learned from them."""

    responses: Responses
    old_value: Array  # [B, T]: V of the text before each token
    advantage: Array  # [B, T]
    target: Array  # [B, T]


def value_base(task: Task) -> tuple[GPT, RewardParams]:
    """The initial value function: the reward model, or the reference with a head of 0."""
    if task.judge_model is not None:
        return task.judge_model, task.teacher.judge
    head, bias = jnp.zeros(task.model.config.width), jnp.zeros(())
    return task.model, RewardParams(task.teacher.params, head, bias)


def init(config: Config, task: Task, key: Array) -> State:
    key_policy, key_value, key_state = jax.random.split(key, 3)
    policy = policies.init_trained(config, task, key_policy)
    _, value = value_base(task)
    adapters = policies.read_lora(config)
    if adapters is not None:
        value = value._replace(model=lora.init(adapters, value.model, key_value))
    optimizer = policies.optimizer(config)
    opt_state = (optimizer.init(policy), optimizer.init(value))
    kl_coef = jnp.asarray(config.kl_coef, jnp.float32)
    return policies.begin(Agent(policy, value, opt_state, kl_coef), key_state)


def values(config: Config, task: Task, value: RewardParams, batch: Responses) -> Array:
    """V of the text before each token, `[B, T]`."""
    model, base = value_base(task)
    adapters = policies.read_lora(config)
    params = value.model
    if adapters is not None:
        params = lora.merge(adapters, base.model, params)
    hidden = language_model.hidden_states(model, params, batch.tokens, batch.mask)
    after = hidden @ value.head + value.bias
    return jnp.pad(after[:, :-1], ((0, 0), (1, 0)))


def collect(
    config: Config, task: Task, agent: Agent, key: Array
) -> tuple[Batch, Array]:
    """A batch of responses with advantages and targets, and their rewards `[B, T]`."""
    params = policies.weights(config, task, agent.policy)
    written = responses.sample(config, task, params, key, config.batch_size)
    mask = written.response
    reward = estimators.token_rewards(
        written.log_prob, written.ref_log_prob, written.score, mask, agent.kl_coef
    )
    rounded = agent.kl_coef * responses.rounded_terms(task, written)
    if config.whiten_rewards:
        terms = jnp.abs(reward) + rounded
        _, variance, rounding = losses.moments(reward, mask, terms)
        reward = text_losses.whiten(reward, mask, shift_mean=False, terms=terms)
        rounded = rounded / jnp.sqrt(variance + rounding + losses.TINY)
    value = values(config, task, agent.value, written)
    advantage, target = estimators.token_gae(
        reward, value, mask, config.gamma, config.gae_lambda
    )
    # An advantage is a sum of this and later rewards.
    terms = jnp.abs(target) + jnp.cumsum(rounded[:, ::-1], axis=1)[:, ::-1]
    advantage = text_losses.whiten(advantage, mask, terms=terms)
    return Batch(written, value, advantage, target), reward


REPORTED = (
    "loss/policy",
    "loss/value",
    "policy/entropy",
    "policy/clip_fraction",
    "policy/approx_kl",
    "value/explained_variance",
)
"""Names of the numbers that `loss` reports, in this order."""


def loss(
    params: tuple[PyTree, PyTree], config: Config, task: Task, batch: Batch
) -> tuple[Array, Array]:
    """The loss of some responses, and what is `REPORTED` of them."""
    policy, value_params = params
    written, mask = batch.responses, batch.responses.response
    model_params = policies.weights(config, task, policy)
    logits = policies.logits(task.model, model_params, written.tokens, written.mask)
    log_prob = text_losses.token_log_probs(logits, written.tokens, config.temperature)
    # Outside of the response there is no old log-probability to compare with.
    log_prob = jnp.where(mask, log_prob, 0.0)
    value = values(config, task, value_params, written)
    actor = losses.clipped_surrogate(
        log_prob, written.log_prob, batch.advantage, config.clip_eps
    )
    critic = losses.clipped_value_mse(
        value, batch.old_value, batch.target, config.clip_eps
    )
    entropy = losses.masked_mean(
        estimators.entropy(logits[:, :-1] / config.temperature), mask[:, 1:]
    )
    actor, critic = (losses.masked_mean(x, mask) for x in (actor, critic))
    moved = jnp.abs(jnp.exp(log_prob - written.log_prob) - 1.0) > config.clip_eps
    reported = jnp.stack(
        [
            actor,
            critic,
            entropy,
            losses.masked_mean(moved.astype(jnp.float32), mask),
            losses.masked_mean(losses.approx_kl(log_prob, written.log_prob), mask),
            losses.explained_variance(value, batch.target, mask),
        ]
    )
    return actor + config.vf_coef * critic - config.ent_coef * entropy, reported


def update(
    config: Config, task: Task, agent: Agent, batch: Batch, key: Array, rate: Scalar
) -> tuple[Agent, Array]:
    """`num_epochs` passes over a batch; what is `REPORTED` of each step, and the norms of
    both gradients: `[U, R + 2]`."""
    optimizer = policies.optimizer(config)

    def step(agent: Agent, some: Batch) -> tuple[Agent, Array]:
        params = (agent.policy, agent.value)
        grads, reported = jax.grad(loss, has_aux=True)(params, config, task, some)
        # Each is clipped by the norm of its own gradient.
        both = [
            optim.apply(optimizer, x, s, g, rate)
            for x, s, g in zip(params, agent.opt_state, grads, strict=True)
        ]
        norms = jnp.stack([optim.global_norm(g) for g in grads])
        (policy, value), opt_state = zip(*both, strict=True)
        agent = agent.replace(policy=policy, value=value, opt_state=opt_state)
        return agent, jnp.concatenate([reported, norms])

    return policies.fit(config, step, agent, batch, key)


def train_step(config: Config, task: Task, state: State) -> tuple[State, Metrics]:
    """A batch of responses and the gradient steps of its passes."""
    agent = state.agent
    key, key_responses, key_update = jax.random.split(state.key, 3)
    batch, reward = collect(config, task, agent, key_responses)
    written = batch.responses
    rate = policies.step_size(config, state.texts)
    metrics = responses.batch_metrics(task, written) | {
        "reward/with_kl_penalty": mean(
            text_losses.masked_sum(reward, written.response)
        ),
        "policy/kl_coef": mean(agent.kl_coef),
    }
    agent, reported = update(config, task, agent, batch, key_update, rate)
    if config.kl_target is not None:
        kl = responses.divergence(written).mean()
        coef = text_losses.proportional_kl_coef(agent.kl_coef, kl, config.kl_target)
        agent = agent.replace(kl_coef=coef)
    names = (*REPORTED, "optim/grad_norm", "optim/value_grad_norm")
    metrics |= {
        name: mean(column) for name, column in zip(names, reported.T, strict=True)
    }
    metrics["optim/learning_rate"] = mean(rate)
    return policies.advance(state, agent, key, config.batch_size), metrics


PPO = Algorithm(
    name="rlhf-ppo",
    Config=Config,
    init=init,
    train_step=train_step,
    act=policies.no_act,
    plan=responses.plan,
    validate=partial(responses.validate, parts=("num_minibatches",)),
    problem=responses.PROBLEM,
)
