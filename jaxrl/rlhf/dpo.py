"""Direct preference optimisation (DPO; Rafailov et al., 2023,
https://arxiv.org/abs/2305.18290): a policy from pairs, without a reward model.

    L = -log σ(β log(π(y_w|x)/π_ref(y_w|x)) - β log(π(y_l|x)/π_ref(y_l|x)))

The details that matter:

1. log π(y|x) is the sum over the response's tokens, EOS among them, not their mean.
2. The reference is the model one starts from; its log-probabilities of a batch are computed
   when the batch is read.
3. At the optimum of exact preferences with noise τ the policy is that of RLHF with the KL
   penalty β τ: with labels, β says how far to trust them.
4. Nothing is sampled: what the pairs do not show is not learned, and the likelihood of
   chosen responses may fall as long as that of the rejected falls faster. Both are logged.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.struct import PyTreeNode

from jaxrl import losses
from jaxrl.rlhf import estimators, policies, responses
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.data import Pairs, Texts
from jaxrl.rlhf.policies import Agent, State
from jaxrl.rlhf.tasks import Task, pairs
from jaxrl.types import Algorithm, Array, Metrics, PyTree, mean, static, traced


class Config(PyTreeNode):
    """Hyper-parameters of DPO."""

    total_steps: float = traced(10_000.0, low=1, high=1e12)
    """Pairs that are read in the whole run; the schedule ends there."""
    batch_size: int = static(32, low=1)
    """Pairs of each gradient step."""
    learning_rate: float = traced(1e-4, low=0)
    """Adam's step size."""
    anneal_lr: bool = static(True)
    """Whether the learning rate falls linearly to zero over `total_steps`."""
    max_grad_norm: float = traced(1.0, above=0)
    """Gradients are scaled down to this global norm."""
    beta: float = traced(0.1, above=0)
    """KL penalty coefficient β."""
    lora_rank: int = static(0, low=0)
    """Rank of the adapters that are trained in the model's place; 0 trains all of it."""
    lora_alpha: float = static(16.0, above=0)
    """The adapters' product is scaled by lora_alpha / lora_rank."""
    lora_targets: str = static("query,value")
    """The layers that get adapters."""


def read(task: Task, params: PyTree, rows: Pairs) -> tuple[Array, Array]:
    """log π(y|x) of every response of rows `[B, K, T]`, `[B, K]`, and the mean entropy of
    their next tokens."""
    shape = rows.tokens.shape
    tokens, mask, response = (x.reshape(-1, shape[-1]) for x in rows[:3])
    logits = policies.logits(task.model, params, tokens, mask)
    log_prob = text_losses.token_log_probs(logits, tokens)
    entropy = losses.masked_mean(estimators.entropy(logits[:, :-1]), response[:, 1:])
    return text_losses.masked_sum(log_prob, response).reshape(shape[:2]), entropy


def response_log_probs(task: Task, params: PyTree, rows: Pairs) -> Array:
    """log π(y|x) of every response of rows `[B, K, T]`: `[B, K]`."""
    return read(task, params, rows)[0]


def loss(
    policy: PyTree, config: Config, task: Task, rows: Pairs, reference: Array
) -> tuple[Array, tuple[Array, Array]]:
    """The mean loss over all pairs of all rows; log π of the responses `[B, K]`, and the
    policy's entropy."""
    log_prob, entropy = read(task, policies.weights(config, task, policy), rows)
    better, worse = text_losses.ranking_pairs(log_prob.shape[1]).T
    each = text_losses.dpo_loss(
        log_prob[:, better],
        log_prob[:, worse],
        reference[:, better],
        reference[:, worse],
        config.beta,
    )
    return each.mean(), (log_prob, entropy)


def train_step(config: Config, task: Task, state: State) -> tuple[State, Metrics]:
    """One gradient step."""
    agent = state.agent
    key, key_rows = jax.random.split(state.key)
    rows = policies.draw_rows(config, task, key_rows)
    reference = response_log_probs(task, task.teacher.params, rows)
    rate = policies.step_size(config, state.texts)
    of_rows = partial(loss, config=config, task=task, rows=rows, reference=reference)
    step = policies.gradient_step(config, of_rows, agent.policy, agent.opt_state, rate)
    log_prob, entropy = step.aux
    reward = text_losses.implicit_reward(log_prob, reference, config.beta)
    right = estimators.preference_accuracy(reward[:, 0], reward[:, -1])
    moved = log_prob - reference
    metrics = {
        "rollout/episode_return": mean(right),
        "rollout/episode_length": mean(estimators.length(rows.response)),
        "loss/preference": mean(step.loss),
        "reward/accuracy": mean(right),
        "reward/gap": mean(reward[:, 0] - reward[:, -1]),
        "policy/entropy": mean(entropy),
        "policy/chosen_log_ratio": mean(moved[:, 0]),
        "policy/rejected_log_ratio": mean(moved[:, -1]),
    } | policies.step_metrics(step, rate)
    agent = Agent(step.params, step.opt_state)
    return policies.advance(state, agent, key, config.batch_size), metrics


def returns(
    config: Config, task: Task, agent: Agent, key: Array, number: int, greedy: bool
) -> Array:
    """Accuracy of the implicit reward on rows kept back, `[number]`."""
    del key, greedy
    params = policies.weights(config, task, agent.policy)

    def of_row(row: Pairs) -> Array:
        own, other = (
            response_log_probs(task, x, row)[0] for x in (params, task.teacher.params)
        )
        reward = text_losses.implicit_reward(own, other, config.beta)
        return estimators.preference_accuracy(reward[0], reward[-1])

    return policies.map_held_out(task, of_row, number)


def samples(
    config: Config, task: Task, agent: Agent, key: Array
) -> list[dict[str, Any]]:
    """The policy's responses to the prompts of rows kept back."""
    params = policies.weights(config, task, agent.policy)
    return responses.continue_texts(task, preferred(task), params, key)


def preferred(task: Task) -> Texts:
    """The preferred responses of rows kept back."""
    return Texts(*(x[:, 0] for x in task.teacher.held_out[:3]))


def score(config: Config, task: Task, agents: Agent) -> dict[str, Array]:
    """Statistics of responses sampled from agents `[K]`: training never looks at them, so
    length hacking and lost diversity would not show."""
    count = len(jax.tree.leaves(agents)[0])
    found = []
    for k in range(count):
        policy = jax.tree.map(lambda x, k=k: x[k], agents.policy)
        params = policies.weights(config, task, policy)
        key = jax.random.key(0)
        found.append(responses.diversity(task, preferred(task), params, key))
    return {name: jnp.stack([one[name] for one in found]) for name in found[0]}


DPO = Algorithm(
    name="rlhf-dpo",
    Config=Config,
    init=policies.init,
    train_step=train_step,
    act=policies.no_act,
    plan=policies.plan,
    validate=policies.validate,
    score=score,
    problem=policies.problem(pairs, returns, samples),
)
