"""Heads of DQN: what is refused, targets against loops, and probes with known answers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import acting, losses, spaces
from jaxrl.algorithms import ALGORITHMS, dqn, value_heads
from jaxrl.algorithms.dqn import DQN
from jaxrl.envs import make
from jaxrl.envs.probes import terminal_values
from jaxrl.errors import InvalidInput
from jaxrl.replay.transitions import Batch
from jaxrl.training import loop, population
from jaxrl.types import Env, TimeStep
from tests.support.small import tiny
from tests.test_losses import close

KEY = jax.random.key(0)
HEADS = {
    "none": {},
    "categorical": {"distribution": "categorical", "v_min": -2.0, "v_max": 12.0},
    "quantile": {"distribution": "quantile", "num_quantiles": 8},
    "implicit_quantile": {"distribution": "implicit_quantile", "num_quantiles": 8},
}
every_head = pytest.mark.parametrize("head", HEADS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distribution": "categorical", "v_min": 3.0, "v_max": 3.0}, "v_min = 3.0"),
        ({"cvar": 0.5}, "cvar = 0.5"),
        ({"distribution": "quantile", "loss": "huber"}, "loss = 'huber'"),
        ({"double": True, "munchausen": 0.9}, "double = True"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(InvalidInput, match=words):
        DQN.validate(tiny(DQN, **changes), make("probe/constant"))


def test_a_support_of_a_sweep_is_checked_in_each_run():
    changes = {"distribution": "categorical", "v_min": np.array([0.0, 5.0])}
    with pytest.raises(InvalidInput, match="v_min"):
        DQN.validate(tiny(DQN, v_max=4.0, **changes), make("probe/constant"))


def test_exploring_nothing_is_a_warning():
    never = tiny(DQN, epsilon_start=0.0, epsilon_end=0.0)
    with pytest.warns(UserWarning, match="explore nothing"):
        value_heads.check(never)


def test_exploring_twice_is_a_warning():
    with pytest.warns(UserWarning, match="noisy_std = 0.5 with epsilon_start = 1.0"):
        DQN.validate(tiny(DQN, noisy_std=0.5), make("probe/constant"))
    quiet = tiny(DQN, noisy_std=0.5, epsilon_start=0.0, epsilon_end=0.0)
    DQN.validate(quiet, make("probe/constant"))


def test_the_size_of_an_error_from_its_loss():
    error = jnp.array([-3.0, 0.5, 0.0, 1.0])
    for kind, of in (("squared", losses.squared_td), ("huber", losses.huber_td)):
        loss = of(error, jnp.zeros(4))
        close(value_heads.surprise(DQN.Config(loss=kind), loss), jnp.abs(error))


# Targets.


def masked_batch(size=6):
    """Transitions of `probe/masked`, of which some end, with other masks in s and s'."""
    env = make("probe/masked")
    keys = jax.random.split(jax.random.key(5), 4)
    obs, next_obs = (spaces.sample(env.observation_space, k, (size,)) for k in keys[:2])
    for x in (obs, next_obs):
        x["action_mask"] = x["action_mask"].at[:, 1].set(True)
    action = jnp.ones(size, jnp.int32)
    reward = jax.random.normal(keys[2], (size,))
    terminated = jnp.arange(size) % 3 == 0
    return env, Batch(obs, action, reward, terminated, next_obs, jnp.full(size, 0.9))


def networks_of(config, env):
    """Parameters of a network that learns and of its target, which differ."""
    net = value_heads.network(config, env)
    obs = spaces.zeros(env.observation_space, (1,))
    return tuple(net.init(k, obs) for k in jax.random.split(jax.random.key(9)))


def mean_of(config, row):
    """The mean return of one action's outputs, in float64."""
    row = np.asarray(row, np.float64)
    if config.distribution != "categorical":
        return row.mean()
    chances = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    return (chances * np.linspace(config.v_min, config.v_max, config.num_atoms)).sum()


def target_mean(config, target):
    value = np.asarray(target.value, np.float64)
    if target.probability is not None:
        return (value * np.asarray(target.probability)).sum(-1)
    return value.reshape(len(value), -1).mean(-1)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.fast_cases("categorical-True")
@every_head
def test_the_mean_of_a_target_is_that_of_the_best_legal_action(head, double):
    env, batch = masked_batch()
    config = tiny(DQN, double=double, dueling=True, **HEADS[head])
    params, target_params = networks_of(config, env)
    draws = value_heads.draw(config, KEY, 6)
    of_target = value_heads.outputs(
        config, env, target_params, batch.next_obs, draws[1]
    )
    chooser = params if double else target_params
    q = value_heads.q_values(config, env, chooser, batch.next_obs)
    found = dqn.td_target(params, config, env, target_params, batch, *draws[1:])
    mask = np.asarray(batch.next_obs["action_mask"])
    for i in range(6):
        best = np.where(mask[i], q[i], -np.inf).argmax()
        following = mean_of(config, np.atleast_1d(of_target[i, best]))
        y = batch.reward[i] + (0.0 if batch.terminated[i] else 0.9 * following)
        np.testing.assert_allclose(target_mean(config, found)[i], y, rtol=1e-4)


def test_the_noise_of_a_target_chooses_its_action_too():
    """Quantiles alike for all levels would tell nothing: the best action is compared."""
    env, batch = masked_batch()
    config = tiny(DQN, noisy_std=5.0, **HEADS["implicit_quantile"])
    _, target_params = networks_of(config, env)
    _, of_value, of_choice = value_heads.draw(config, KEY, 6)
    at = config, env, target_params, batch.next_obs
    out = value_heads.outputs(*at, of_value)
    mask, best = batch.next_obs["action_mask"], {}
    for name, draw in (("value", of_value), ("choice", of_choice)):
        q = value_heads.q_values(*at, draw.noise, each_row=False)
        best[name] = acting.legal(q, mask).argmax(-1)
    assert (best["value"] != best["choice"]).any()
    found = dqn.td_target({}, config, env, target_params, batch, of_value, of_choice)
    following = value_heads.taken(config, out, best["value"])
    expected = value_heads.target(config, batch, following)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-5)


@pytest.mark.full
@every_head
def test_an_end_without_a_legal_action_is_finite(head):
    env, batch = masked_batch()
    mask = batch.next_obs["action_mask"] & ~batch.terminated[:, None]
    batch = batch._replace(next_obs=batch.next_obs | {"action_mask": mask})
    for munchausen in (None, 0.9):
        config = tiny(DQN, munchausen=munchausen, **HEADS[head])
        params, target_params = networks_of(config, env)
        key = KEY if value_heads.is_random(config) else None
        loss, _ = dqn.loss(params, config, env, target_params, batch, key)
        assert np.isfinite(loss)


@pytest.mark.fast_cases("none")
@every_head
def test_munchausen_targets_equal_a_loop(head):
    env, batch = masked_batch()
    changes = {"munchausen": 0.9, "munchausen_temperature": 0.5}
    config = tiny(DQN, **HEADS[head], **changes)
    params, target_params = networks_of(config, env)
    draws = value_heads.draw(config, KEY, 6)
    found = dqn.td_target(params, config, env, target_params, batch, *draws[1:])
    of_target = value_heads.outputs(
        config, env, target_params, batch.next_obs, draws[1]
    )
    before, after = (
        np.asarray(value_heads.q_values(config, env, target_params, x), np.float64)
        for x in (batch.obs, batch.next_obs)
    )

    def policy(q, mask):
        weight = np.where(mask, np.exp(q / 0.5), 0.0)
        return weight / weight.sum()

    for i in range(6):
        pi = policy(after[i], np.asarray(batch.next_obs["action_mask"])[i])
        following = sum(
            p * (mean_of(config, np.atleast_1d(of_target[i, a])) - 0.5 * np.log(p))
            for a, p in enumerate(pi)
            if p > 0
        )
        taken = policy(before[i], np.asarray(batch.obs["action_mask"])[i])[1]
        reward = batch.reward[i] + 0.9 * np.clip(0.5 * np.log(taken), -1.0, 0.0)
        y = reward + (0.0 if batch.terminated[i] else 0.9 * following)
        np.testing.assert_allclose(target_mean(config, found)[i], y, rtol=1e-4)


def test_a_terminal_target_is_the_reward_alone():
    """Of a distribution all returns are the reward."""
    batch = Batch(None, None, *map(jnp.array, ([2.0], [True])), None, jnp.array([0.9]))
    config = DQN.Config(distribution="categorical", num_atoms=3, v_min=0.0, v_max=4.0)
    found = value_heads.target(config, batch, jnp.array([[0.2, 0.3, 0.5]]))
    np.testing.assert_array_equal(found.value, [[2.0, 2.0, 2.0]])
    logits = jnp.log(jnp.array([[0.25, 0.5, 0.25]]))
    close(value_heads.error(config, logits, found, None), [np.log(2)])


def test_returns_outside_the_support_are_counted():
    config = DQN.Config(distribution="categorical", num_atoms=3, v_min=0.0, v_max=4.0)
    value = jnp.array([[-1.0, 2.0, 5.0], [0.0, 2.0, 4.0]])
    target = value_heads.Target(value, jnp.array([[0.2, 0.5, 0.3]] * 2))
    rows = value_heads.report(config, jnp.zeros(2), jnp.zeros((2, 3)), target)
    assert value_heads.reported(config)[-1] == "value/outside_support"
    close(rows[-1], [0.5, 0.0])
    close(rows[1], [2.0, 2.0])


# Acting.


def test_noisy_values_are_new_at_each_step_and_in_each_environment():
    env, obs = make("probe/constant"), jnp.ones((3, 1))
    config = tiny(DQN, noisy_std=0.5, epsilon_start=0.0, epsilon_end=0.0)
    params, _ = networks_of(config, env)
    ask = partial(value_heads.q_values, config, env, params, obs)
    quiet = ask()
    assert (quiet == quiet[:1]).all() and (quiet == ask()).all()
    rows = np.asarray(jnp.concatenate([ask(k) for k in jax.random.split(KEY)]))
    assert len(np.unique(rows[:, 0])) == 6
    same = ask(KEY, each_row=False)
    assert (same == same[:1]).all() and not (same == quiet).all()


@pytest.mark.full
def test_a_noisy_rollout_draws_for_each_step():
    env = make("probe/constant")
    config = tiny(DQN, noisy_std=0.5, epsilon_start=0.0, epsilon_end=0.0)
    state = DQN.init(config, env, KEY)
    explore = jax.jit(partial(dqn.acts.unroll, config, env, num_steps=5, epsilon=0.0))
    _, trajectory, _ = explore(state.agent, state.world)
    assert len(np.unique(np.asarray(trajectory.extras["value"]))) == 5 * 4


def gamble(reward_of):
    """One step: action 0 is certain, action 1 a coin; `reward_of(coin)` is `[2]`."""

    def reset(key, params):
        del params
        return key, jnp.ones(1)

    def step(key, state, action, params):
        del params
        coin = jax.random.bernoulli(key).astype(jnp.float32)
        reward = reward_of(coin)[action]
        return state, TimeStep(
            jnp.ones(1), reward, jnp.bool_(True), jnp.bool_(False), {}
        )

    return Env(
        params=(),
        horizon=None,
        reset=reset,
        step=step,
        observation_space=spaces.box(0, 1, (1,)),
        action_space=spaces.Discrete(2),
        id="test/gamble",
    )


def trained(env, iterations, **changes):
    fast = {"num_envs": 8, "train_frequency": 8, "learning_starts": 64}
    fast |= {"hidden_sizes": (16,), "batch_size": 32, "learning_rate": 0.01}
    fast |= {"gamma": 0.8, "buffer_size": 2_000, "target_update_interval": 80}
    fast |= {"anneal_lr": True, "max_grad_norm": 1e3}
    config = DQN.Config().replace(total_steps=iterations * 8.0 + 64, **(fast | changes))
    loop.prepare(DQN, config, env)
    state = jax.jit(DQN.init)(config, env, KEY)
    chunk = jax.jit(partial(population.run_chunk, DQN))
    state, metrics = chunk(config, env, state, jnp.int32(iterations))
    assert all(jnp.isfinite(m.sum) for m in metrics.values())
    return config, state


def q_of(config, env, state, obs):
    return value_heads.q_values(config, env, state.agent.params, obs)


PROBES = {
    "truncation": (2_000, jnp.ones((1, 1)), [5.0]),
    "delay": (1_000, jnp.array([[0.0], [1.0]]), [0.8, 1.0]),
    "terminal": (1_500, jnp.eye(5), terminal_values(0.8)),
}


@pytest.mark.full
@pytest.mark.parametrize("probe", PROBES)
@every_head
def test_every_head_has_the_expected_value_of_a_probe(head, probe):
    iterations, obs, values = PROBES[probe]
    env = make(f"probe/{probe}")
    changes = HEADS[head] | {"target_update_interval": 40, "n_step": 2}
    config, state = trained(env, iterations, **changes)
    q = q_of(config, env, state, obs).max(-1)
    np.testing.assert_allclose(q, values, rtol=0.01)


@pytest.mark.full
@pytest.mark.parametrize("head", ["categorical", "quantile", "implicit_quantile"])
def test_a_return_of_two_points_has_its_distribution(head):
    """0 or 2, each with probability ½, whatever the action."""
    env, obs = gamble(lambda coin: jnp.full(2, 2.0 * coin)), jnp.ones((1, 1))
    changes = HEADS[head] | {"kappa": 0.01, "num_atoms": 15, "num_quantiles": 8}
    config, state = trained(env, 1_500, **changes)
    levels = jnp.array([0.1, 0.3, 0.7, 0.9]) if head.startswith("implicit") else None
    drawn = value_heads.Draw(None, levels)
    out = value_heads.outputs(config, env, state.agent.params, obs, drawn)[0]
    if head == "categorical":  # atoms -2, -1, ..., 12
        chances = value_heads.probabilities(config, out)
        expected = np.zeros(15)
        expected[[2, 4]] = 0.5
        np.testing.assert_allclose(chances, [expected] * 2, atol=0.06)
    else:
        low, high = jnp.split(out, 2, axis=-1)
        np.testing.assert_allclose(low, 0.0, atol=0.15)
        np.testing.assert_allclose(high, 2.0, atol=0.15)


@pytest.mark.full
@pytest.mark.parametrize("head", ["categorical", "quantile", "implicit_quantile"])
def test_a_careful_agent_takes_the_certain_reward(head):
    """1 for certain, or 0 or 3: the mean prefers the gamble, the worst half does not."""
    env = gamble(lambda coin: jnp.stack([1.0, 3.0 * coin]))
    changes = HEADS[head] | {"kappa": 0.1, "num_atoms": 15}
    for cvar, best in ((None, 1), (0.5, 0)):
        config, state = trained(env, 1_000, cvar=cvar, **changes)
        q = q_of(config, env, state, jnp.ones((1, 1)))
        assert int(q.argmax()) == best
        np.testing.assert_allclose(q, [[1.0, 1.5 if cvar is None else 0.0]], atol=0.3)


@pytest.mark.full
@every_head
def test_illegal_actions_are_neither_explored_nor_chosen(head):
    env = make("probe/masked")
    changes = HEADS[head] | {"dueling": True, "double": True}
    _, state = trained(env, 20, **changes)
    stored = state.replay.data.reward[: int(state.replay.head.size)]
    assert (stored == 1.0).all()


@pytest.mark.full
@pytest.mark.parametrize("name", ["c51", "qr_dqn", "iqn", "rainbow"])
def test_all_learn_from_hindsight(name):
    algorithm, env = ALGORITHMS[name], make("goal/bit-flip")
    config = tiny(algorithm, hindsight="future", munchausen=None)
    state = jax.jit(algorithm.init)(config, env, KEY)
    _, metrics = jax.jit(algorithm.train_step)(config, env, state)
    assert all(jnp.isfinite(m.sum) for m in metrics.values())


@pytest.mark.full
@pytest.mark.parametrize("head", HEADS)
def test_munchausen_learns_the_value_of_its_policy(head):
    """Two actions with the same reward for ever: the soft value is r / (1 - γ) and what
    entropy, τ ln 2 a step, and the bonus, -α τ ln 2, add."""
    env, obs = make("probe/truncation"), jnp.ones((1, 1))
    changes = HEADS[head] | {"target_update_interval": 40, "munchausen": 0.5}
    config, state = trained(env, 2_000, munchausen_temperature=0.1, **changes)
    bonus = 0.1 * np.log(2)
    expected = (1.0 - 0.5 * bonus + 0.8 * bonus) / (1 - 0.8)
    np.testing.assert_allclose(q_of(config, env, state, obs), expected, rtol=0.02)


@pytest.mark.full
def test_the_best_action_is_the_same_each_time():
    env = make("probe/masked")
    config = tiny(ALGORITHMS["iqn"], noisy_std=0.5, dueling=True)
    params, _ = networks_of(config, env)
    agent = dqn.Agent(params, (), target_params=params)
    obs = masked_batch()[1].obs
    action, _, extras = dqn.acts.act(config, env, agent, obs, (), None, greedy=True)
    q = dqn.acts.explain(config, env, agent, obs, ())["q"]
    np.testing.assert_array_equal(action, q.argmax(-1))
    np.testing.assert_allclose(extras["value"], q.max(-1), rtol=1e-6)
    assert (acting.legal(q, obs["action_mask"]) == q).all()
