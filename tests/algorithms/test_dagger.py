"""`jaxrl.algorithms.dagger`: the learner's states, the expert's labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import DAGGER, make, networks, spaces
from jaxrl.algorithms import dagger, imitation
from jaxrl.data.frozen_policy import FrozenPolicy
from jaxrl.errors import InvalidInput
from jaxrl.training import population
from jaxrl.types import Algorithm, Env, TimeStep, counter, no_memory
from tests.support.small import tiny

KEY = jax.random.key(0)


def act(config, env, agent, obs, memory, key, greedy):
    """Towards zero: right where the position is negative."""
    del config, env, agent, key, greedy
    return (obs[:, 0] < 0).astype(jnp.int32), memory, {}


def opposite(*arguments):
    action, memory, extras = act(*arguments)
    return 1 - action, memory, extras


HOMEWARD = Algorithm("homeward", object, *[None] * 2, act, None, None, no_memory)  # type: ignore


def line(teacher: Algorithm = HOMEWARD) -> Env:
    """Positions -9 ... 9 from -1 or 1 on, ten steps; 0 goes left, 1 goes right."""

    def reset(key, params):
        del params
        position = 2.0 * jax.random.bernoulli(key).astype(jnp.float32) - 1.0
        return position, position[None]

    def step(key, position, action, params):
        del key, params
        position = jnp.clip(position + 2.0 * action - 1.0, -9.0, 9.0)
        no = jnp.bool_(False)
        return position, TimeStep(position[None], -jnp.abs(position), no, no, {})

    return Env(
        params=(),
        horizon=jnp.int32(10),
        reset=reset,
        step=step,
        observation_space=spaces.box(-9, 9, (1,)),
        action_space=spaces.Discrete(2),
        id="test/line",
        teacher=FrozenPolicy((), (), teacher),
    )


def always(action: int):
    """Parameters with which the learner takes one action everywhere."""
    config, env = tiny(DAGGER), line()
    agent = DAGGER.init(config, env, KEY).agent
    params = jax.tree.map(jnp.zeros_like, agent.params)
    (head,) = [
        part for part in params["params"].values() if len(part.get("bias", ())) == 2
    ]
    head["bias"] = 9.0 * jax.nn.one_hot(action, 2)
    return agent.replace(params=params)


def after_one_step(agent, decay=0.0, env_steps=32, **changes):
    """The state after one train step from that agent, at that many steps."""
    config, env = tiny(DAGGER, beta_decay=decay, **changes), line()
    state = DAGGER.init(config, env, KEY)
    world = state.world.replace(env_steps=counter(env_steps))
    return jax.jit(lambda s: DAGGER.train_step(config, env, s))(
        state.replace(agent=agent, world=world)
    )


@pytest.mark.full
def test_the_ring_holds_the_learners_states_with_the_experts_labels():
    state, metrics = after_one_step(always(1))
    start = np.asarray(DAGGER.init(tiny(DAGGER), line(), KEY).world.obs)[:, 0]
    # By hand: the learner always goes right, from -1 or 1, 8 steps.
    obs = np.asarray(state.labelled.data.obs)[:8, :, 0]
    np.testing.assert_array_equal(obs, start + np.arange(8)[:, None])
    assert set(start) == {-1.0, 1.0}
    # And is told to go left, but where it is still on the left.
    np.testing.assert_array_equal(state.labelled.data.action[:8], obs < 0)
    assert state.labelled.head.size == 8
    assert metrics["imitation/beta"].value == 0


@pytest.mark.full
def test_first_the_expert_plays_whatever_the_decay():
    state, metrics = after_one_step(always(1), env_steps=0)
    assert metrics["imitation/beta"].value == 1
    assert np.abs(state.labelled.data.obs).max() <= 1  # it stays near zero


def test_the_ring_aggregates_the_rollouts():
    config, env = tiny(DAGGER), line()
    state = DAGGER.init(config, env, KEY)
    state, _ = jax.jit(
        lambda s: population.run_chunk(DAGGER, config, env, s, jnp.int32(2))
    )(state)
    assert state.labelled.head.size == 16  # of 64 transitions, that is 16 rows of 4
    data = state.labelled.data
    np.testing.assert_array_equal(data.action, (data.obs < 0)[..., 0])


def test_a_mixture_plays_the_expert_with_probability_beta():
    config, env = tiny(DAGGER), line(HOMEWARD._replace(act=opposite))
    obs = jnp.full((4_000, 1), 5.0)  # there this expert goes right; the learner left
    policy = dagger.mixture(config, env, always(0), jnp.float32(0.3))
    played, _, extras = policy(obs, (), KEY)
    np.testing.assert_array_equal(extras["expert_action"], 1)
    assert np.mean(played) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"beta_decay": 0.0}, [1.0, 0.0, 0.0]),
        ({"beta_decay": 0.5}, [1.0, 0.5, 0.25]),
        ({"beta_decay": 1.0}, [1.0, 1.0, 1.0]),
        ({"beta_schedule": "linear", "beta_fraction": 0.1}, [1.0, 0.68, 0.36]),
    ],
)
def test_beta_of_each_rollout(fields, expected):
    config, env = tiny(DAGGER, **fields), line()  # 32 steps each, of 1,000
    found = [dagger.mixing(config, env, counter(32 * i)) for i in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.full
def test_it_learns_the_expert_and_comes_home():
    config, env = tiny(DAGGER, num_updates=50, learning_rate=0.01), line()
    state = DAGGER.init(config, env, KEY)
    state, metrics = jax.jit(
        lambda s: population.run_chunk(DAGGER, config, env, s, jnp.int32(20))
    )(state)
    positions = jnp.array([[-9.0], [-4.0], [-1.0], [1.0], [4.0], [9.0]])
    # It has seen positions near zero alone, and its mistakes on the way.
    answer, _, _ = DAGGER.act(config, env, state.agent, positions, (), KEY, True)
    np.testing.assert_array_equal(answer, [1, 1, 1, 0, 0, 0])
    assert metrics["imitation/error"].value < 0.2


@pytest.mark.full
def test_the_gradient_is_that_of_the_likelihood_of_the_labels():
    config, env = tiny(DAGGER), line()
    params = DAGGER.init(config, env, KEY).agent.params
    batch = dagger.Labelled(jnp.array([[1.0], [-2.0]]), jnp.array([0, 1]))

    def by_hand(params):
        logits = networks.apply_actor(config, env, params, batch.obs)[0].logits
        return -(logits[0, 0] + logits[1, 1] - jax.nn.logsumexp(logits, -1).sum()) / 2

    grads = jax.grad(lambda p: imitation.loss(p, config, env, *batch)[0])(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        grads,
        jax.grad(by_hand)(params),
    )


def test_without_an_expert_it_is_refused():
    with pytest.raises(InvalidInput, match=r"NoneType: dagger needs a .*FrozenPolicy"):
        DAGGER.validate(DAGGER.Config(), make("CartPole-v1"))
