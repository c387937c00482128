"""REINFORCE leave-one-out (RLOO; Ahmadian et al., 2024, https://arxiv.org/abs/2402.14740):
the policy gradient of whole responses, each against the others to the same prompt.

    ∇J = E Σ_i A_i ∇ log π(y_i|x),    A_i = R_i - 1/(K-1) Σ_{j≠i} R_j
    R = r(x, y) - β (log π(y|x) - log π_ref(y|x))

The details that matter:

1. A response is one action: no value function, no discount, no ratio, one step a batch.
2. The KL penalty is in the reward, where its gradient is that of KL(π ‖ π_ref).
3. The baseline of a response does not depend on it, so the gradient stays unbiased.
4. log π(y|x) is a sum over tokens, and the loss a mean over responses: a long response has
   the weight of a short one, and each of its tokens the same weight in it.
"""

from functools import partial

import jax
from flax.struct import PyTreeNode

from jaxrl import losses
from jaxrl.rlhf import estimators, policies, responses
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.policies import Agent, State
from jaxrl.rlhf.responses import Responses
from jaxrl.rlhf.tasks import Task
from jaxrl.types import Algorithm, Array, Metrics, PyTree, mean, static, traced


class Config(PyTreeNode):
    """Hyper-parameters of RLOO."""

    total_steps: float = traced(10_000.0, low=1, high=1e12)
    """Responses that are written in the whole run; the schedule ends there."""
    batch_size: int = static(64, low=2)
    """Responses of each gradient step."""
    group_size: int = static(4, low=2)
    """K: responses to each prompt; must divide `batch_size`."""
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
    kl_coef: float = traced(0.05, low=0)
    """KL penalty coefficient β, reward per nat of divergence from the reference."""
    eos_penalty: float = traced(0.0, low=0)
    """Subtracted from the score of a response without EOS."""
    lora_rank: int = static(0, low=0)
    """Rank of the adapters that are trained in the model's place; 0 trains all of it."""
    lora_alpha: float = static(16.0, above=0)
    """The adapters' product is scaled by lora_alpha / lora_rank."""
    lora_targets: str = static("query,value")
    """The layers that get adapters."""


def advantages(config: Config, batch: Responses) -> Array:
    """The advantage of each response, after subtracting the KL penalty: `[B]`."""
    reward = batch.score - config.kl_coef * responses.divergence(batch)
    grouped = reward.reshape(-1, config.group_size)
    return estimators.rloo_advantage(grouped).reshape(-1)


def loss(
    policy: PyTree, config: Config, task: Task, batch: Responses, advantage: Array
) -> tuple[Array, Array]:
    """The loss, and the entropy of each next token `[B, T]`."""
    params = policies.weights(config, task, policy)
    logits = policies.logits(task.model, params, batch.tokens, batch.mask)
    log_prob = text_losses.token_log_probs(logits, batch.tokens, config.temperature)
    whole = text_losses.masked_sum(log_prob, batch.response)
    entropy = estimators.entropy(logits / config.temperature)
    return losses.policy_gradient(whole, advantage).mean(), entropy


def train_step(config: Config, task: Task, state: State) -> tuple[State, Metrics]:
    """A batch of responses and one gradient step."""
    agent = state.agent
    key, key_responses = jax.random.split(state.key)
    params = policies.weights(config, task, agent.policy)
    batch = responses.sample(
        config, task, params, key_responses, config.batch_size, config.group_size
    )
    advantage = advantages(config, batch)
    rate = policies.step_size(config, state.texts)
    of_batch = partial(loss, config=config, task=task, batch=batch, advantage=advantage)
    step = policies.gradient_step(config, of_batch, agent.policy, agent.opt_state, rate)
    metrics = responses.batch_metrics(task, batch) | {
        "loss/policy": mean(step.loss),
        "policy/entropy": mean(step.aux[:, :-1], batch.response[:, 1:]),
    }
    metrics |= policies.step_metrics(step, rate)
    agent = Agent(step.params, step.opt_state)
    return policies.advance(state, agent, key, config.batch_size), metrics


RLOO = Algorithm(
    name="rlhf-rloo",
    Config=Config,
    init=policies.init,
    train_step=train_step,
    act=policies.no_act,
    plan=policies.plan,
    validate=partial(responses.validate, parts=("group_size",)),
    problem=responses.PROBLEM,
)
