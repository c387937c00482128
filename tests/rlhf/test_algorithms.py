"""RLHF's algorithms on the small world: identities that hold before the first step, and
what each of them makes of a batch, by hand."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import losses
from jaxrl.pipelines.rlhf.demo import log_prob_of_model
from jaxrl.rlhf import (
    answers,
    data,
    dpo,
    estimators,
    grpo,
    policies,
    ppo,
    reward_model,
    rloo,
    supervised,
    tasks,
    testbeds,
)
from jaxrl.rlhf import losses as text_losses
from jaxrl.rlhf.models import language_model
from jaxrl.rlhf.models.language_model import LanguageModel, RewardParams
from jaxrl.rlhf.models.transformer import GPT
from jaxrl.rlhf.testbeds import small_world
from jaxrl.training.loop import NonFiniteError
from jaxrl.types import BAD_REWARD
from tests.support.language import SMALL as MODEL
from tests.support.language import WORDS, apply, params_of, task_of
from tests.support.small import assert_trees_equal

KEY = jax.random.key(3)
WRITING = {"batch_size": 16, "max_new_tokens": 5, "temperature": 0.7}


def changed(params, scale=0.05, seed=0):
    """Other parameters, near these."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + scale * rng.normal(size=x.shape).astype("f"), params
    )


REWARD = RewardParams(
    changed(params_of(MODEL), 0.1, 1),
    jnp.asarray(np.random.default_rng(2).normal(size=16), jnp.float32),
    jnp.float32(0.3),
)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def gold():
    """Prompts, judged by the gold reward."""
    return task_of()


@pytest.fixture(scope="module")
def judged():
    """Prompts, judged by a reward model."""
    return task_of(judge=language_model.scorer(GPT(MODEL)), params=REWARD)


@pytest.fixture(scope="module")
def pairs():
    return task_of("preference")


@pytest.fixture(scope="module")
def ppo_batch(judged):
    """PPO, what it starts from, and its first batch."""
    config = ppo.Config(**WRITING, whiten_rewards=True)
    agent = ppo.init(config, judged, jax.random.key(0)).agent
    collect = jax.jit(partial(ppo.collect, config, judged))
    return config, agent, *collect(agent, KEY)


@pytest.fixture(scope="module")
def grpo_batch(gold):
    """GRPO, the parameters it starts from, its first batch and the advantages."""
    config = grpo.Config(**WRITING)
    params = gold.teacher.params
    batch = written(config, gold, params)
    return config, params, batch, grpo.advantages(config, batch)


@jax.jit
def written(config, task, params):
    return answers.to_prompts(config, task, params, KEY, 16, 4)


def read(params, tokens):
    """What the model makes of a text alone, up to its last token."""
    row = jnp.zeros((1, 8), jnp.int32).at[0, : len(tokens)].set(tokens)
    output = apply(MODEL, params, row, jnp.arange(8)[None] < len(tokens))
    return output.logits[0, : len(tokens)], output.hidden[0, len(tokens) - 1]


@jax.jit
def full_pass(params, tokens, mask, temperature):
    logits = policies.logits(GPT(MODEL), params, tokens, mask)
    return text_losses.token_log_probs(logits, tokens, temperature)


# Identities.


def test_the_log_probs_of_the_rollout_are_those_of_a_full_pass(ppo_batch, grpo_batch):
    for params, batch in (
        (ppo_batch[1].policy, ppo_batch[2].answers),
        grpo_batch[1:3],
    ):
        assert 0 < batch.answer.sum() < batch.answer.size
        found = full_pass(params, batch.tokens, batch.mask, 0.7)
        close(batch.log_prob, jnp.where(batch.answer, found, 0.0))
        # The policy is still the reference.
        close(batch.log_prob, batch.ref_log_prob)
        close(answers.divergence(batch), 0.0)


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
    moved = (changed(agent.policy), agent.value)
    _, reported = of(moved, batch=batch)
    assert dict(zip(ppo.REPORTED, reported, strict=True))["policy/approx_kl"] > 1e-4


def test_grpo_starts_with_ratio_1(grpo_batch, gold):
    config, params, batch, advantage = grpo_batch
    of = jax.jit(partial(grpo.loss, config=config, task=gold))
    _, reported = of(params, rows=(batch, advantage))
    found = dict(zip(grpo.REPORTED, reported, strict=True))
    assert abs(found["policy/approx_kl"]) < 1e-5
    assert found["policy/clip_fraction"] == 0
    expected = -(advantage * estimators.length(batch.answer)).mean()
    close(found["loss/policy"], expected, 1e-4)


def test_adapters_change_nothing_at_first(gold):
    config = rloo.Config(**WRITING, lora_rank=2)
    trained = policies.init_trained(config, gold, KEY)
    assert set(next(iter(trained.values()))) == {"a", "b"}
    assert_trees_equal(policies.weights(config, gold, trained), gold.teacher.params)


def test_kl_estimates_come_near_the_exact_divergence(gold):
    params = changed(gold.teacher.params, 0.05)
    config = rloo.Config(**WRITING | {"temperature": 1.0})

    @jax.jit
    def sampled(key):
        batch = answers.to_prompts(config, gold, params, key, 4096)
        log_prob, ref = (
            text_losses.masked_sum(x, batch.answer)
            for x in (batch.log_prob, batch.ref_log_prob)
        )
        k2 = text_losses.kl_k2(ref, log_prob)
        k3 = losses.approx_kl(ref, log_prob)
        return answers.divergence(batch), k2, k3, batch.tokens[:, 0]

    k1, k2, k3, prompt = sampled(KEY)
    own, ref = (
        log_prob_of_model(LanguageModel(MODEL, x, WORDS))
        for x in (params, gold.teacher.params)
    )
    # The prompts drawn, and not all alike.
    p, log_ratio = np.exp(own), np.asarray(own - ref)
    share = np.bincount(prompt, minlength=3) / len(prompt)
    exact = share @ (p * log_ratio).sum(1)
    close(small_world.kl(own, ref), (p * log_ratio).sum(1).mean())
    assert exact > 0.02
    expected = (exact, share @ (p * log_ratio**2 / 2).sum(1), exact)
    for found, value in zip((k1, k2, k3), expected, strict=True):
        error = np.std(found) / len(found) ** 0.5
        assert abs(np.mean(found) - value) < 4 * error
    # k2 is biased, of third order; so near the reference k1 is the noisiest.
    assert 0 < abs(expected[1] - exact) < 0.05 * exact
    assert max(np.std(k2), np.std(k3)) < np.std(k1)


def test_dpo_starts_at_log_2(pairs):
    config = dpo.Config(batch_size=4)
    rows = pairs.teacher.rows
    params = pairs.teacher.params
    reference = jax.jit(dpo.of_answers)(pairs, params, rows)
    value, (log_prob, entropy) = jax.jit(dpo.loss)(
        params, config, pairs, rows, reference
    )
    close(value, math.log(2.0))
    reward = text_losses.implicit_reward(log_prob, reference, config.beta)
    assert (estimators.preference_accuracy(reward[:, 0], reward[:, 1]) == 0.5).all()
    # log π(y|x) by hand, of a row without its padding.
    tokens = rows.tokens[0, 1][rows.mask[0, 1]]
    logits, _ = read(params, tokens)
    each = [jax.nn.log_softmax(logits[t - 1])[tokens[t]] for t in range(1, len(tokens))]
    close(reference[0, 1], sum(each), 1e-4)
    assert tokens[-1] == WORDS.eos
    flat = [x.reshape(-1, x.shape[-1]) for x in rows[:3]]
    logits = jax.jit(GPT(MODEL).apply)(params, *flat[:2]).logits
    log_p = jax.nn.log_softmax(logits)
    exact = -(jnp.exp(log_p) * log_p).sum(-1)[:, :-1]
    close(entropy, exact[flat[2][:, 1:]].mean(), 1e-4)


def test_a_reward_model_starts_at_one_half(pairs):
    config = reward_model.Config()
    agent = reward_model.init(config, pairs, KEY).agent
    rows = pairs.teacher.rows
    value, found = jax.jit(reward_model.loss)(agent.reward, config, pairs, rows)
    close(value, math.log(2.0))
    assert (found == 0).all() and (reward_model.accuracy(found) == 0.5).all()


# What is made of a batch.


def test_a_score_is_read_at_the_last_token(pairs):
    rows = pairs.teacher.rows
    flat = [x.reshape(-1, x.shape[-1]) for x in rows[:3]]
    found = jax.jit(language_model.scorer(GPT(MODEL)))(REWARD, *flat)
    for i in range(4):
        _, hidden = read(REWARD.model, flat[0][i][flat[1][i]])
        close(found[i], hidden @ REWARD.head + REWARD.bias, 1e-4)


def test_normalized_moments_by_hand():
    r = np.array([1.0, 2.0, 6.0])
    moments = 0.25 * np.array([1.0, r.mean(), (r**2).mean()])  # of any weight
    found = language_model.normalized(REWARD, moments)
    assert found.model is REWARD.model
    gain = 1 / r.std()
    close(found.head, gain * REWARD.head)
    close(found.bias, gain * (REWARD.bias - r.mean()))
    # Scores that are all alike, and a model that has not begun: the scale stays.
    for moments in (np.array([1.0, 2.0, 4.0]), np.zeros(3)):
        close(language_model.normalized(REWARD, moments).head, REWARD.head)


def test_a_reward_models_moments_are_those_of_its_batches(pairs):
    config = reward_model.Config(batch_size=64, learning_rate=0.0)
    state = reward_model.init(config, pairs, KEY)
    reward = state.agent.reward | {"head": REWARD.head}
    state = state.replace(agent=state.agent.replace(reward=reward))
    step = jax.jit(partial(reward_model.train_step, config, pairs))
    for _ in range(3):
        state, metrics = step(state)
    total, first, second = np.asarray(state.agent.moments)
    close(total, 1 - reward_model.DECAY**3)
    rows = pairs.teacher.rows
    scores = jax.jit(reward_model.scores)(config, pairs, reward, rows)
    assert abs(first / total - scores.mean()) < 0.5 * scores.std()
    deviation = math.sqrt(second / total - (first / total) ** 2)
    assert 0.7 < deviation / scores.std() < 1.3
    assert 0 <= float(metrics["reward/longer_is_better"].value) <= 1


def test_the_value_is_of_the_text_before_each_token(ppo_batch, judged):
    config, agent, batch, _ = ppo_batch
    found = jax.jit(ppo.values)(config, judged, agent.value, batch.answers)
    # It starts as the reward model, head and all.
    assert_trees_equal(agent.value, REWARD)
    tokens, answer = batch.answers.tokens[0], batch.answers.answer[0]
    assert answer.sum() > 1
    for t in np.flatnonzero(answer):
        _, before = read(REWARD.model, tokens[:t])
        close(found[0, t], before @ REWARD.head + REWARD.bias, 1e-4)


def test_without_a_reward_model_the_value_starts_as_the_reference(gold):
    model, start = ppo.value_base(gold)
    assert model is gold.model and start.model is gold.teacher.params
    assert not start.head.any() and start.bias == 0.0


def test_the_answers_to_a_prompt_stand_together(grpo_batch):
    config, _, batch, advantage = grpo_batch
    prompts = np.asarray(batch.tokens[:, 0]).reshape(4, 4)
    assert (prompts == prompts[:, :1]).all() and len(set(prompts[:, 0])) > 1
    reward = np.asarray(batch.score - 0.05 * answers.divergence(batch)).reshape(4, 4)
    close(advantage.reshape(4, 4), reward - reward.mean(1, keepdims=True))
    own = rloo.Config(**WRITING)
    others = [[(row.sum() - r) / 3 for r in row] for row in reward]
    close(rloo.advantages(own, batch).reshape(4, 4), reward - others)
    scaled = grpo.advantages(config.replace(scale_rewards=True), batch)
    spread = np.maximum(reward.std(1, keepdims=True), 1e-8)
    close(scaled.reshape(4, 4), (reward - reward.mean(1, keepdims=True)) / spread, 1e-3)
    # The leash in the loss is none in the reward.
    batch = batch._replace(ref_log_prob=batch.ref_log_prob - 1.0 * batch.answer)
    in_loss = grpo.advantages(config.replace(leash="k3"), batch).reshape(4, 4)
    score = np.asarray(batch.score).reshape(4, 4)
    close(in_loss, score - score.mean(1, keepdims=True))
    leashed = np.asarray(grpo.advantages(config, batch)).reshape(4, 4)
    reward = score - 0.05 * np.asarray(estimators.length(batch.answer)).reshape(4, 4)
    close(leashed, reward - reward.mean(1, keepdims=True))


def test_over_what_the_loss_of_grpo_is_a_mean():
    each = jnp.array([[1.0, 2.0, 3.0], [5.0, jnp.nan, jnp.nan]])
    mask = jnp.array([[True, True, True], [True, False, False]])
    for name, expected in (("answers", 5.5), ("tokens", 2.75), ("published", 3.5)):
        found = grpo.averaged(grpo.Config(loss_mean=name), each, mask)
        close(found, expected)


def test_k3_in_the_loss_pulls_to_the_reference(grpo_batch, gold):
    config, params, batch, advantage = grpo_batch
    moved = changed(params)
    of = jax.jit(partial(grpo.loss, task=gold, rows=(batch, 0.0 * advantage)))
    leashed = config.replace(leash="k3", kl_coef=2.0)
    log_prob = full_pass(moved, batch.tokens, batch.mask, 0.7)
    log_ratio = jnp.where(batch.answer, batch.ref_log_prob - log_prob, 0.0)
    expected = 2.0 * (jnp.exp(log_ratio) - 1.0 - log_ratio).sum(1).mean()
    close(of(moved, config=leashed)[0], expected, 1e-4)
    assert of(moved, config=config)[0] == 0.0


def test_an_answer_that_does_not_end_pays(gold):
    configs = [grpo.Config(**WRITING, eos_penalty=x) for x in (0.0, 1.5)]
    free, paid = (written(config, gold, gold.teacher.params) for config in configs)
    assert 0 < free.has_eos.sum() < len(free.has_eos)
    close(free.score - paid.score, jnp.where(free.has_eos, 0.0, 1.5))
    ended = free.tokens[free.has_eos]
    assert (ended[:, -1] == WORDS.eos).all()
    assert not (free.tokens[~free.has_eos][:, 1:] == WORDS.eos).any()


def test_whitened_rewards_keep_their_mean(ppo_batch):
    _, agent, batch, white = ppo_batch
    own, mask = batch.answers, batch.answers.answer
    reward = estimators.token_rewards(
        own.log_prob, own.ref_log_prob, own.score, mask, agent.kl_coef
    )
    close(white[mask].mean(), reward[mask].mean(), 1e-4)
    close(white[mask].std(), 1.0, 1e-3)
    assert (white[~mask] == 0).all() and reward[mask].std() != 1.0
    # The score is in the last token's, and the leash costs nothing yet.
    last = estimators.last_token(mask)
    close(reward[last], batch.answers.score, 1e-4)
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
    assert int(after.world.env_steps) == 16
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


def test_what_is_logged_of_a_batch(grpo_batch, gold):
    _, _, batch, _ = grpo_batch
    reported = jax.jit(answers.reported)(gold.replace(gold=testbeds.small_judge), batch)
    found = {n: float(x.value) for n, x in reported.items()}
    close(found["rollout/episode_return"], batch.score.mean())
    close(found["rollout/episode_length"], batch.answer.sum(1).mean())
    close(found["text/ended"], batch.has_eos.mean())
    close(found["policy/surprise"], -batch.log_prob[batch.answer].mean(), 1e-4)
    words = [tuple(t[m]) for t, m in zip(batch.tokens, batch.answer, strict=True)]
    ones = [int(t) for row in words for t in row]
    twos = [tuple(map(int, x)) for row in words for x in itertools.pairwise(row)]
    close(found["text/distinct_1"], len(set(ones)) / len(ones))
    close(found["text/distinct_2"], len(set(twos)) / len(twos))
    # The world's own reward beside the judge's.
    rows = zip(batch.tokens, batch.answer, strict=True)
    texts = [answers.decoded(gold, *row) for row in rows]
    prompts = [answers.decoded(gold, t[:1], [True]) for t in batch.tokens]
    scored = [small_world.gold_reward(*x) for x in zip(prompts, texts, strict=True)]
    scored -= np.where(batch.has_eos, 0.0, 1.0)
    close(found["reward/gold"], np.mean(scored))


def test_only_answers_are_learned_in_fine_tuning():
    task = task_of("completion")
    config = supervised.Config()
    rows = task.teacher.rows
    value, _ = jax.jit(supervised.loss)(task.teacher.params, config, task, rows)
    log_prob = full_pass(task.teacher.params, rows.tokens, rows.mask, 1.0)
    close(value, -np.asarray(log_prob)[np.asarray(rows.target)].mean(), 1e-4)
    assert not rows.target[:, 0].any() and rows.mask[:, 0].all()
    # Of rows kept back, over and over if there are fewer than are asked for.
    agent = supervised.Agent(task.teacher.params, ())
    returns = jax.jit(supervised.returns, static_argnames=("number", "greedy"))
    found = returns(config, task, agent, KEY, 15, True)
    each = [-log_prob[i][rows.target[i]].mean() for i in (0, 1, 11)]
    close(found[jnp.array([0, 1, 11])], -jnp.array(each), 1e-4)
    close(found[12:], found[:3])


def test_length_bias_by_hand():
    mask = jnp.arange(4) < jnp.array([[3, 1], [1, 3], [2, 2]])[:, :, None]
    rows = data.Pairs(None, None, mask, None)
    found = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    close(reward_model.length_bias(found, rows), [1.0, 0.0, 0.5])
    close(reward_model.length_bias(-found, rows), [0.0, 1.0, 0.5])


def test_calibration_does_not_see_the_order_of_the_rows(pairs):
    config = reward_model.Config()
    agent = reward_model.init(config, pairs, KEY).agent
    # Of a model that knows nothing, P = ½, as half of the pairs are turned round.
    found = reward_model.calibration(config, pairs, agent)
    close(found.error, 0.0)
    assert found.number.sum() == 12
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), agent)
    scores = reward_model.score(config, pairs, stacked)
    close(scores["calibration_error"], [0.0, 0.0])


def test_the_step_size_falls_to_0(gold):
    config = rloo.Config(total_steps=100.0, learning_rate=0.5)
    counts = [tasks.no_world(KEY).env_steps + n for n in (0, 50, 100)]
    found = [float(policies.step_size(config, n)) for n in counts]
    close(found, [0.5, 0.25, 0.0])
    assert policies.step_size(config.replace(anneal_lr=False), counts[1]) == 0.5


# Bad judges.


def not_a_number(params, tokens, mask, answer):
    del params, mask, answer
    return jnp.where(tokens[:, 0] == 1, jnp.nan, 0.0)


def test_a_judge_that_gives_nan_is_named(gold):
    task = gold.replace(judge=not_a_number)
    config = rloo.Config(**WRITING, total_steps=64.0)
    with pytest.raises(NonFiniteError) as error:
        jaxrl.train(rloo.RLOO, config, task, seed=7)
    assert str(error.value) == (
        "reward became NaN or infinite at train step 1 of seed 7: see to `reward`, which "
        "scores the answers."
    )


def test_trouble_is_of_the_score(gold):
    start = tasks.no_world(KEY)
    batch = answers.Answers(*[None] * 4, None, jnp.array([0.0, jnp.inf]), None)
    found = answers.counted(start, batch)
    assert found.trouble.tolist() == [BAD_REWARD] and int(found.env_steps) == 2
    fine = answers.counted(start, batch._replace(score=jnp.zeros(3)))
    assert fine.trouble.tolist() == [0] and int(fine.env_steps) == 3
