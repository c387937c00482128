"""REINFORCE leave-one-out (RLOO; Ahmadian et al., 2024, https://arxiv.org/abs/2402.14740):
the policy gradient of whole answers, each against the others to the same prompt.

    ∇J = E Σ_i A_i ∇ log π(y_i|x),    A_i = R_i - 1/(K-1) Σ_{j≠i} R_j
    R = r(x, y) - β (log π(y|x) - log π_ref(y|x))

The details that matter:

1. An answer is one action: no value function, no discount, no ratio, one step a batch.
2. The leash is in the reward, where its gradient is that of KL(π ‖ π_ref).
3. The baseline of an answer does not depend on it, so the gradient stays unbiased.
4. log π(y|x) is a sum over tokens, and the loss a mean over answers: a long answer has the
   weight of a short one, and its tokens are pushed as often as there are of them.
"""

from functools import partial

import jax
from flax.struct import PyTreeNode

from jaxrl import losses, optim
from jaxrl.errors import require
from jaxrl.rlhf import answers, estimators, policies
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.answers import Answers
from jaxrl.rlhf.tasks import Task, digests, no_world, prompts
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
    """Hyper-parameters of RLOO."""

    total_steps: float = traced(10_000.0, low=1, high=1e12)
    """Answers that are written in the whole run; the schedule ends there."""
    batch_size: int = static(64, low=2)
    """Answers of each gradient step."""
    group_size: int = static(4, low=2)
    """K: answers to each prompt; must divide `batch_size`."""
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
    kl_coef: float = traced(0.05, low=0)
    """β, the price of a nat of divergence from the reference."""
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
    require(
        config.batch_size % config.group_size == 0,
        f"batch_size = {config.batch_size}: must be a multiple of group_size = "
        f"{config.group_size}.",
    )


def plan(config: Config, task: Task) -> Plan:
    del task
    return Plan(config.batch_size, 1, gradient_rows=config.batch_size)


def init(config: Config, task: Task, key: Array) -> State:
    key_policy, key_world = jax.random.split(key)
    policy = policies.init_trained(config, task, key_policy)
    agent = Agent(policy, policies.optimizer(config).init(policy))
    return State(agent, no_world(key_world))


def advantages(config: Config, batch: Answers) -> Array:
    """Of each answer, the leash taken off its score: `[B]`."""
    reward = batch.score - config.kl_coef * answers.divergence(batch)
    grouped = reward.reshape(-1, config.group_size)
    return estimators.rloo_advantage(grouped).reshape(-1)


def loss(
    policy: PyTree, config: Config, task: Task, batch: Answers, advantage: Array
) -> tuple[Array, Array]:
    """The loss, and the entropy of each next token `[B, T]`."""
    params = policies.weights(config, task, policy)
    logits = policies.logits(task.model, params, batch.tokens, batch.mask)
    log_prob = text_losses.token_log_probs(logits, batch.tokens, config.temperature)
    of_answer = text_losses.masked_sum(log_prob, batch.answer)
    entropy = estimators.entropy(logits / config.temperature)
    return losses.policy_gradient(of_answer, advantage).mean(), entropy


def train_step(config: Config, task: Task, state: State) -> tuple[State, Metrics]:
    """A batch of answers and one gradient step."""
    agent, world = state.agent, state.world
    key, key_answers = jax.random.split(world.key)
    params = policies.weights(config, task, agent.policy)
    batch = answers.to_prompts(
        config, task, params, key_answers, config.batch_size, config.group_size
    )
    advantage = advantages(config, batch)
    rate = policies.step_size(config, world.env_steps)
    of = jax.value_and_grad(loss, has_aux=True)
    (value, entropy), grads = of(agent.policy, config, task, batch, advantage)
    optimizer = policies.optimizer(config)
    policy, opt_state = optim.apply(
        optimizer, agent.policy, agent.opt_state, grads, rate
    )
    metrics = answers.reported(task, batch) | {
        "loss/policy": mean(value),
        "policy/entropy": mean(entropy[:, :-1], batch.answer[:, 1:]),
        "optim/grad_norm": mean(optim.global_norm(grads)),
        "optim/learning_rate": mean(rate),
    }
    world = answers.counted(world.replace(key=key), batch)
    return State(Agent(policy, opt_state), world), metrics


RLOO = Algorithm(
    name="rlhf-rloo",
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
