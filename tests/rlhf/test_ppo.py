"""PPO of a language model: identities before the first step, and a batch by hand."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxrl.rlhf import (
    estimators,
    ppo,
)
from tests.support.language import (
    REWARD,
    WRITING,
    close,
    perturb,
    read,
)
from tests.support.small import assert_trees_equal


def test_ppo_starts_with_ratio_1(ppo_batch, judged):
    config, agent, batch, _ = ppo_batch
    params = (agent.policy, agent.value)
    of = jax.jit(partial(ppo.loss, config=config, task=judged))
    _, reported = of(params, batch=batch)
    found = dict(zip(ppo.REPORTED, reported, strict=True))
    assert abs(found["policy/approx_kl"]) < 1e-5
    assert found["policy/clip_fraction"] == 0
    # Ratio 1: what is left is the mean advantage, which is whitened.
    close(found["loss/policy"], 0.0)
    moved = (perturb(agent.policy), agent.value)
    _, reported = of(moved, batch=batch)
    assert dict(zip(ppo.REPORTED, reported, strict=True))["policy/approx_kl"] > 1e-4


def test_the_value_is_of_the_text_before_each_token(ppo_batch, judged):
    config, agent, batch, _ = ppo_batch
    found = jax.jit(ppo.values)(config, judged, agent.value, batch.responses)
    # It starts as the reward model, head and all.
    assert_trees_equal(agent.value, REWARD)
    tokens, response = batch.responses.tokens[0], batch.responses.response[0]
    assert response.sum() > 1
    for t in np.flatnonzero(response):
        _, before = read(REWARD.model, tokens[:t])
        close(found[0, t], before @ REWARD.head + REWARD.bias, 1e-4)


def test_without_a_reward_model_the_value_starts_as_the_reference(gold):
    model, start = ppo.value_base(gold)
    assert model is gold.model and start.model is gold.teacher.params
    assert not start.head.any() and start.bias == 0.0


def test_whitened_rewards_keep_their_mean(ppo_batch):
    _, agent, batch, white = ppo_batch
    own, mask = batch.responses, batch.responses.response
    reward = estimators.token_rewards(
        own.log_prob, own.ref_log_prob, own.score, mask, agent.kl_coef
    )
    close(white[mask].mean(), reward[mask].mean(), 1e-4)
    close(white[mask].std(), 1.0, 1e-3)
    assert (white[~mask] == 0).all() and reward[mask].std() != 1.0
    # The score is in the last token's, and the KL penalty is 0 yet.
    last = estimators.last_token(mask)
    close(reward[last], batch.responses.score, 1e-4)
    close(reward[~last], 0.0)
    close(batch.advantage[mask].mean(), 0.0)
    close(batch.advantage[mask].std(), 1.0, 1e-3)


@pytest.fixture(scope="module")
def ppo_step(judged):
    """One train step of PPO with adapters and a target, its state before and after."""
    config = ppo.Config(
        **WRITING, lora_rank=2, kl_target=0.1, kl_coef=0.5, num_minibatches=1
    )
    before = ppo.init(config, judged, jax.random.key(0))
    after, metrics = jax.jit(partial(ppo.train_step, config, judged))(before)
    return before, after, {name: float(x.value) for name, x in metrics.items()}


@pytest.mark.full
def test_beta_follows_its_target(ppo_step):
    before, after, metrics = ppo_step
    # No divergence yet: too little of it, so β falls by the most there is.
    assert abs(metrics["policy/kl"]) < 1e-5
    close(metrics["policy/kl_coef"], 0.5)
    close(after.agent.kl_coef, 0.5 * (1 - 0.1 * 0.2))
    assert before.agent.kl_coef == 0.5


def test_only_adapters_are_trained(ppo_step):
    before, after, metrics = ppo_step
    for name in ("policy", "value"):
        own = getattr(after.agent, name)
        own = own.model if name == "value" else own
        assert all(set(x) == {"a", "b"} for x in own.values())
    assert int(after.texts) == 16
    moved = jax.tree.map(
        lambda x, y: bool((x != y).any()), before.agent.policy, after.agent.policy
    )
    assert all(x["b"] for x in moved.values())
    assert metrics["optim/value_grad_norm"] > 0


def test_beta_stays_without_a_target(gold):
    config = ppo.Config(**WRITING)
    state = ppo.init(config, gold, jax.random.key(0))
    found, _ = jax.eval_shape(partial(ppo.train_step, config, gold), state)
    assert found.agent.kl_coef.shape == ()
    # β is the agent's and not the config's: what a run has come to is gone on with.
    assert state.agent.kl_coef == np.float32(0.05)
