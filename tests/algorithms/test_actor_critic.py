"""Actor-critic: every weight and every target by hand, and the probes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import networks
from jaxrl.algorithms import actor_critic
from jaxrl.algorithms.actor_critic import ACTOR_CRITIC, Values
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.evaluation import evaluate
from jaxrl.training import loop, population
from jaxrl.types import Transition
from tests.support.small import tiny

KEY = jax.random.key(0)
COLUMN = (3, 1)
ROLLOUT = Transition(
    obs=jnp.array([[[1.0]], [[2.0]], [[3.0]]]),
    action=jnp.array([[0], [1], [0]]),
    reward=jnp.array([[1.0], [2.0], [3.0]]),
    terminated=jnp.array([[False], [False], [True]]),
    truncated=jnp.zeros(COLUMN, bool),
    next_obs=jnp.array([[[2.0]], [[3.0]], [[4.0]]]),
    extras={},
)
VALUES = Values(
    estimate=jnp.array([[10.0], [20.0], [30.0]]),
    next_estimate=jnp.array([[20.0], [30.0], [99.0]]),
    state_value=jnp.array([[7.0], [8.0], [9.0]]),
)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ("q", [10.0, 20.0, 30.0]),
        ("q_minus_v", [3.0, 12.0, 21.0]),
        # 1 + 20/2 - 7, 2 + 30/2 - 8, 3 - 9: nothing follows a terminal state.
        ("td_error", [4.0, 9.0, -6.0]),
        # The same, each plus half of a quarter of the one below.
        ("gae", [4.0 + (9.0 - 6.0 / 8) / 8, 9.0 - 6.0 / 8, -6.0]),
    ],
)
def test_weights_by_hand(weight, expected):
    config = tiny(ACTOR_CRITIC, weight=weight, gamma=0.5, gae_lambda=0.25)
    found = actor_critic.score_weight(config, ROLLOUT, VALUES)
    np.testing.assert_allclose(found[:, 0], expected)


@pytest.mark.parametrize(
    ("critic_lambda", "expected"),
    [
        (0.0, [1 + 10.0, 2 + 15.0, 3.0]),
        (1.0, [1 + (2 + 1.5) / 2, 2 + 1.5, 3.0]),
    ],
)
def test_targets_by_hand(critic_lambda, expected):
    config = tiny(ACTOR_CRITIC, gamma=0.5, critic_lambda=critic_lambda)
    found = actor_critic.critic_target(config, ROLLOUT, VALUES)
    np.testing.assert_allclose(found[:, 0], expected)


class Table:
    """Q(s, .) = (s, 10 s) in place of a network, and a policy of (1/4, 3/4)."""

    def __init__(self, monkeypatch):
        def critic_of(config, env, params, obs):
            return jnp.concatenate([obs, 10 * obs], -1)

        def apply_actor(config, env, params, obs):
            from jaxrl import distributions

            logits = jnp.log(jnp.array([0.25, 0.75]))
            logits = jnp.broadcast_to(logits, (*obs.shape[:-1], 2))
            return distributions.categorical(logits), ()

        monkeypatch.setattr(actor_critic, "critic_of", critic_of)
        monkeypatch.setattr(networks, "apply_actor", apply_actor)


@pytest.mark.parametrize(
    ("critic", "truncated", "following"),
    [
        # Q of the actions that were taken, 1 and 0; the mean over both where data stop.
        ("sarsa", 9, [20.0, 3.0, 7.75 * 4]),
        ("sarsa", 0, [7.75 * 2, 3.0, 7.75 * 4]),
        # The best action's, everywhere.
        ("q_learning", 9, [20.0, 30.0, 40.0]),
        ("q_learning", 1, [20.0, 30.0, 40.0]),
    ],
)
def test_what_targets_bootstrap_from(monkeypatch, critic, truncated, following):
    Table(monkeypatch)
    rollout = ROLLOUT._replace(
        terminated=jnp.zeros(COLUMN, bool),
        truncated=jnp.arange(3)[:, None] == truncated,
    )
    config, env = tiny(ACTOR_CRITIC, critic=critic), make("probe/action")
    params = {"actor": (), "critic": ()}
    found = actor_critic.values(config, env, params, rollout)
    np.testing.assert_allclose(found.estimate[:, 0], [1.0, 20.0, 3.0])
    np.testing.assert_allclose(found.state_value[:, 0], [7.75, 15.5, 23.25])
    np.testing.assert_allclose(found.next_estimate[:, 0], following)


@pytest.mark.full
def test_the_best_action_is_a_legal_one():
    env = make("probe/masked")
    config = tiny(ACTOR_CRITIC, critic="q_learning")
    agent = jax.jit(ACTOR_CRITIC.init)(config, env, KEY).agent
    mask = jnp.array([[True, False, False, True]])
    obs = {"obs": jnp.ones((1, 1)), "action_mask": mask}
    rollout = jax.tree.map(lambda x: x[:1], ROLLOUT)._replace(
        obs=jax.tree.map(lambda x: x[None], obs),
        next_obs=jax.tree.map(lambda x: x[None], obs),
        terminated=jnp.zeros((1, 1), bool),
    )
    params = agent.params | {"critic": jax.tree.map(jnp.array, agent.params["critic"])}
    bias = params["critic"]["params"]["Dense_0"]["bias"]
    params["critic"]["params"]["Dense_0"]["bias"] = bias.at[1].set(1e3)
    q = actor_critic.critic_of(config, env, params["critic"], obs)[0]
    found = jax.jit(actor_critic.values)(config, env, params, rollout)
    assert float(q.max()) > 900
    assert float(found.next_estimate[0, 0]) == pytest.approx(float(max(q[0], q[3])))
    assert abs(float(found.state_value[0, 0])) < 900


def trained(env, iterations, **changes):
    fast = {"num_envs": 16, "num_steps": 8, "learning_rate": 0.02, "gamma": 0.9}
    fast |= {"critic_learning_rate": 0.05, "total_steps": iterations * 128.0}
    config = ACTOR_CRITIC.Config().replace(hidden_sizes=(16,), **(fast | changes))
    loop.prepare(ACTOR_CRITIC, config, env)
    state = jax.jit(ACTOR_CRITIC.init)(config, env, KEY)
    chunk = jax.jit(partial(population.run_chunk, ACTOR_CRITIC))
    state, _ = chunk(config, env, state, jnp.int32(iterations))
    return config, state.agent


@pytest.mark.full
@pytest.mark.parametrize(
    "changes",
    [
        {"weight": "q_minus_v", "critic": "q_learning", "normalize_advantage": False},
        {"weight": "q"},
        {"weight": "td_error"},
        {"weight": "gae"},
    ],
    ids=lambda c: c["weight"],
)
def test_learns_to_act_on_what_it_sees(changes):
    env = make("probe/action-observation")
    config, agent = trained(env, 100, **changes)
    episodes = evaluate(ACTOR_CRITIC, config, env, agent, KEY, 64, True)
    assert float(episodes.episode_return.mean()) == 1.0


@pytest.mark.full
def test_learns_the_value_of_a_truncated_task():
    env = make("probe/truncation")
    config, agent = trained(env, 300, critic_lambda=0.0)
    obs = jnp.ones((1, 1))
    value = ACTOR_CRITIC.act(config, env, agent, obs, (), KEY)[2]["value"]
    assert float(value[0]) == pytest.approx(10, abs=0.2)


@pytest.mark.parametrize(
    ("changes", "env_id", "sentence"),
    [
        ({}, "Pendulum-v1", "weight = 'q' needs a Discrete action space"),
        ({"weight": "q_minus_v"}, "Pendulum-v1", "use weight = 'td_error' or 'gae'"),
        (
            {"weight": "gae", "critic": "q_learning"},
            "CartPole-v1",
            "critic = 'q_learning' learns action values, but weight = 'gae' uses state",
        ),
    ],
)
def test_what_cannot_work_is_refused(changes, env_id, sentence):
    config = ACTOR_CRITIC.Config(**changes)
    with pytest.raises(InvalidInput, match=sentence):
        ACTOR_CRITIC.validate(config, make(env_id))


def test_state_values_do_with_continuous_actions():
    env, config = make("probe/continuous"), tiny(ACTOR_CRITIC, weight="gae")
    ACTOR_CRITIC.validate(config, env)
    state = jax.eval_shape(ACTOR_CRITIC.init, config, env, KEY)
    after, _ = jax.eval_shape(ACTOR_CRITIC.train_step, config, env, state)
    assert jax.tree.structure(state) == jax.tree.structure(after)
