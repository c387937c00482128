"""Tasks of the small world, and first batches of PPO and GRPO."""

from functools import partial

import jax
import pytest

from jaxrl.rlhf import (
    grpo,
    ppo,
)
from jaxrl.rlhf.models import language_model
from jaxrl.rlhf.models.transformer import GPT
from tests.support.language import (
    KEY,
    REWARD,
    WRITING,
    make_task,
    sample_batch,
)
from tests.support.language import SMALL as MODEL


@pytest.fixture(scope="session")
def gold():
    """Prompts, judged by the gold reward."""
    return make_task()


@pytest.fixture(scope="session")
def judged():
    """Prompts, judged by a reward model."""
    return make_task(judge=language_model.scorer(GPT(MODEL)), params=REWARD)


@pytest.fixture(scope="session")
def pairs():
    return make_task("preference")


@pytest.fixture(scope="session")
def ppo_batch(judged):
    """PPO, what it starts from, and its first batch."""
    config = ppo.Config(**WRITING, whiten_rewards=True)
    agent = ppo.init(config, judged, jax.random.key(0)).agent
    collect = jax.jit(partial(ppo.collect, config, judged))
    return config, agent, *collect(agent, KEY)


@pytest.fixture(scope="session")
def grpo_batch(gold):
    """GRPO, the parameters it starts from, its first batch and the advantages."""
    config = grpo.Config(**WRITING)
    params = gold.teacher.params
    batch = sample_batch(config, gold, params)
    return config, params, batch, grpo.advantages(config, gold, batch)
