"""REINFORCE: every rung of the ladder, and gradients with known values."""

from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import networks, spaces
from jaxrl.algorithms import reinforce
from jaxrl.algorithms.reinforce import REINFORCE
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.evaluation import evaluate
from jaxrl.rollout import init_world, unroll
from jaxrl.training import loop, population
from jaxrl.types import Env, TimeStep
from tests.support.small import tiny

KEY = jax.random.key(0)
RUNGS = [
    (weighting, baseline)
    for weighting in ("return", "reward_to_go", "discounted")
    for baseline in ("none", "moving_average", "value")
] + [("discounted", "optimal")]


def short_or_long() -> Env:
    """Action 0 first: reward 1, the end. Action 1 first: five steps, then reward 1.5."""

    def reset(key, params):
        del key, params
        return jnp.zeros(2, jnp.int32), jnp.ones(1)

    def step(key, state, action, params):
        del key, params
        time, choice = state[0], jnp.where(state[0] == 0, action, state[1])
        ends = (choice == 0) | (time == 4)
        reward = jnp.where(ends, jnp.where(choice == 0, 1.0, 1.5), 0.0)
        no = jnp.bool_(False)
        return jnp.stack([time + 1, choice]), TimeStep(
            jnp.ones(1), reward, ends, no, {}
        )

    return Env(
        params=(),
        horizon=jnp.int32(5),
        reset=reset,
        step=step,
        observation_space=spaces.box(0, 1, (1,)),
        action_space=spaces.Discrete(2),
        id="test/short-or-long",
    )


def gradient_of_bias(env, num_envs, num_batches, num_steps=5, **changes):
    """The policy gradient with respect to the logits' bias, summed over the steps of an
    episode and averaged over batches of `num_envs` episodes."""
    plain = {"gamma": 1.0, "ent_coef": 0.0, "normalize_advantage": False}
    config = tiny(
        REINFORCE, num_envs=num_envs, num_steps=num_steps, **(plain | changes)
    )

    net_key = jax.random.key(1)

    @jax.jit
    def run(key):
        state = REINFORCE.init(config, env, net_key)
        world = init_world(env, key, num_envs)
        act = partial(REINFORCE.act, config, env, state.agent)
        _, trajectory, _ = unroll(env, act, world, num_steps)
        reward_to_go, mask = reinforce.returns(config, env, state.agent, trajectory)
        grads, _ = jax.grad(reinforce.loss, has_aux=True)(
            state.agent.params,
            config,
            env,
            state.agent,
            trajectory,
            (),
            reward_to_go,
            mask,
        )
        return grads["params"]["policy_head"]["bias"]

    # The loss is minus a mean over all steps: undo both.
    bias = jax.vmap(run)(jax.random.split(KEY, num_batches))
    return -np.asarray(bias.mean(0)) * num_steps


@pytest.mark.fast_cases("return-none-1")
@pytest.mark.parametrize("num_envs", [1, 1_000])
@pytest.mark.parametrize(
    ("weighting", "baseline"), [r for r in RUNGS if r != ("reward_to_go", "value")]
)
def test_every_rung_of_whole_episodes_has_the_exact_gradient(
    weighting, baseline, num_envs
):
    """J = p_0 + 1.5 p_1 at p = 1/2: dJ/dlogit_1 = p_0 p_1 (1.5 - 1) = 0.125.

    Short episodes end five times as early; an estimator that favoured them would point
    the other way.
    """
    gradient = gradient_of_bias(
        short_or_long(),
        num_envs,
        num_batches=40_000 // num_envs,
        weighting=weighting,
        baseline=baseline,
    )
    np.testing.assert_allclose(gradient, [-0.125, 0.125], atol=0.03)


@pytest.mark.full
def test_the_default_rung_does_not_favour_short_episodes():
    """It bootstraps what the batch cuts off, so it is only as exact as its value; but it
    too must learn that the long way pays more."""
    env = short_or_long()
    config, agent = trained(env, 200, gamma=1.0, num_steps=5)
    assert mean_return(config, env, agent) == 1.5


@pytest.mark.full
def test_whole_episodes_do_not_favour_short_ones_even_two_at_a_time():
    env = short_or_long()
    config, agent = trained(
        env,
        600,
        gamma=1.0,
        num_steps=5,
        num_envs=2,
        baseline="none",
        normalize_advantage=False,
        ent_coef=0.0,
        anneal_lr=False,
    )
    assert mean_return(config, env, agent) == 1.5


@pytest.mark.full
def test_counting_all_episodes_that_fit_would_be_wrong():
    """The trap that the mask avoids: in a window as long as the time limit, the episodes
    that ended are mostly short ones."""
    env = short_or_long()
    config = tiny(REINFORCE, num_envs=4_000, num_steps=5)
    agent = REINFORCE.init(config, env, KEY).agent
    act = partial(REINFORCE.act, config, env, agent)
    _, t, stats = jax.jit(lambda w: unroll(env, act, w, 5))(init_world(env, KEY, 4_000))
    from jaxrl.estimators import first_episode_mask

    mask = first_episode_mask(t.terminated)
    whole = float((t.reward * mask).sum() / 4_000)
    assert whole == pytest.approx(1.25, abs=0.03)
    assert float(stats["rollout/episode_return"].value) < 1.2


def test_discounting_weighs_later_steps_less():
    """gamma^t G_t: with reward 1 at each of 5 steps every step has another weight."""
    env = make("probe/truncation")
    config = tiny(REINFORCE, weighting="discounted", baseline="none", gamma=0.5)
    agent = REINFORCE.init(config, env, KEY).agent
    reward_to_go = jnp.array([[1.0], [2.0], [4.0]])
    weight = reinforce.score_weight(config, agent, reward_to_go, jnp.zeros((3, 1)))
    np.testing.assert_allclose(weight, [[1.0], [1.0], [1.0]])


def test_the_lectures_hand_example():
    """w = sum of grad log pi * Q with a logistic policy at w = b = 0."""
    x = jnp.array([0.0, 0.3, 1.6, 0.2, 1.3, 2.4, 2.1])
    right = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    q = jnp.array([-7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0])

    def loss(w, b):
        logit = w * x + b
        log_prob = right * jax.nn.log_sigmoid(logit) + (1 - right) * jax.nn.log_sigmoid(
            -logit
        )
        return reinforce.losses.policy_gradient(log_prob, q).sum()

    dw, db = jax.grad(loss, argnums=(0, 1))(0.0, 0.0)
    np.testing.assert_allclose([-dw, -db], [2.1, -7.0], atol=1e-5)


def test_moving_average_is_updated_after_the_gradient_step():
    env = make("probe/constant")  # every return is 1
    config = tiny(REINFORCE, baseline="moving_average", baseline_decay=0.75)
    state = REINFORCE.init(config, env, KEY)
    step = jax.jit(REINFORCE.train_step)
    averages = []
    for _ in range(3):
        state, _ = step(config, env, state)
        averages.append(float(state.agent.average_return))
    np.testing.assert_allclose(averages, [0.25, 0.4375, 0.578125])


@pytest.mark.full
def test_the_best_constant_by_the_scores_of_each_episode():
    """Against sums over the steps of each episode, written out."""
    env = short_or_long()
    config = tiny(REINFORCE, weighting="discounted", baseline="optimal", gamma=0.5)
    agent = jax.jit(REINFORCE.init)(config, env, KEY).agent
    action = jnp.array([[0, 1, 1, 0]] * 5)
    _, t, _ = jax.jit(
        lambda w: unroll(env, lambda obs, m, n: (action[0], m, {"memory": ()}), w, 5)
    )(init_world(env, KEY, 4))
    reward_to_go, mask = reinforce.returns(config, env, agent, t)
    args = (config, env, agent, t, reward_to_go, mask)
    found = jax.jit(reinforce.best_constant)(*args)
    params, unflatten = jax.flatten_util.ravel_pytree(agent.params)

    def log_prob(params):
        pi, _, _ = networks.apply_actor_critic(config, env, unflatten(params), t.obs)
        return pi.log_prob(t.action)

    each = np.asarray(jax.jit(jax.jacobian(log_prob))(params), np.float64)
    along = size = 0.0
    for n, length in enumerate((1, 5, 5, 1)):
        decay = 0.5 ** np.arange(length)[:, None]
        score = (decay * each[:length, n]).sum(0)
        weighted = decay * np.asarray(reward_to_go)[:length, n, None] * each[:length, n]
        along += score @ weighted.sum(0)
        size += score @ score
    assert float(found) == pytest.approx(along / size, rel=1e-4)


def test_masked_steps_count_as_environment_steps():
    env = make("probe/constant")  # one step an episode, seven of eight are masked
    config = tiny(REINFORCE, baseline="none")
    state = REINFORCE.init(config, env, KEY)
    state, metrics = jax.jit(REINFORCE.train_step)(config, env, state)
    assert float(metrics["rollout/masked_fraction"].value) == pytest.approx(7 / 8)
    assert int(state.world.env_steps) == 4 * 8


def trained(env, iterations, **changes):
    fast = {"num_envs": 16, "num_steps": 8, "learning_rate": 0.02, "gamma": 0.9}
    fast |= {"hidden_sizes": (16,), "total_steps": iterations * 128.0}
    config = REINFORCE.Config().replace(**(fast | changes))
    loop.prepare(REINFORCE, config, env)
    state = jax.jit(REINFORCE.init)(config, env, KEY)
    chunk = jax.jit(partial(population.run_chunk, REINFORCE))
    state, _ = chunk(config, env, state, jnp.int32(iterations))
    return config, state.agent


def mean_return(config, env, agent, greedy=True):
    episodes = evaluate(REINFORCE, config, env, agent, KEY, 64, greedy)
    return float(episodes.episode_return.mean())


@pytest.mark.full
@pytest.mark.parametrize(("weighting", "baseline"), RUNGS)
def test_every_rung_learns_to_act_on_what_it_sees(weighting, baseline):
    env = make("probe/action-observation", horizon=8)
    config, agent = trained(env, 150, weighting=weighting, baseline=baseline)
    assert mean_return(config, env, agent) == 1.0


@pytest.mark.full
def test_learns_the_value_of_a_truncated_task():
    env = make("probe/truncation")
    config, agent = trained(env, 600, learning_rate=0.05)
    obs = jnp.ones((1, 1))
    value = REINFORCE.act(config, env, agent, obs, (), KEY)[2]["value"]
    assert float(value[0]) == pytest.approx(10, abs=0.1)
    wrong = env.replace(horizon_is="terminal")
    config, agent = trained(wrong, 600, learning_rate=0.05)
    value = REINFORCE.act(config, wrong, agent, obs, (), KEY)[2]["value"]
    assert float(value[0]) == pytest.approx(2.7, abs=0.3)


@pytest.mark.full
def test_learns_a_continuous_action():
    env = make("probe/continuous")
    config, agent = trained(env, 400, ent_coef=0.0)
    assert mean_return(config, env, agent) > -0.02


@pytest.mark.full
def test_never_takes_a_masked_action():
    env = make("probe/masked")
    config, agent = trained(env, 3)
    assert mean_return(config, env, agent, greedy=False) == 1.0


@pytest.mark.full
def test_whole_episodes_need_a_rollout_as_long_as_the_time_limit():
    env = make("probe/truncation")
    config = tiny(REINFORCE, baseline="none", num_steps=4)
    with pytest.raises(
        InvalidInput, match=r"set it to the time limit of .*, 5, or more"
    ):
        REINFORCE.validate(config, env)
    with pytest.raises(InvalidInput, match=r"make it with horizon=T"):
        REINFORCE.validate(config, make("probe/discounted"))
    REINFORCE.validate(config.replace(num_steps=5), env)
    REINFORCE.validate(config.replace(baseline="value"), env)
