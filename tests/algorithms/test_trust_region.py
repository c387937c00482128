"""TRPO and the natural policy gradient: the step, its bound, probes, options."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import ALGORITHMS, networks
from jaxrl.algorithms import trust_region
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.evaluation import evaluate
from jaxrl.networks import join, split
from jaxrl.optim import flat
from jaxrl.training import loop, population
from jaxrl.types import counter
from tests.support.small import assert_trees_equal, tiny

KEY = jax.random.key(0)
EVERY = pytest.mark.parametrize("name", ["trpo", "natural_pg"])


def trained(name, env, iterations, **changes):
    """An agent after some train steps on a probe."""
    algorithm = ALGORITHMS[name]
    fast = {"num_envs": 8, "num_steps": 8, "gamma": 0.9, "hidden_sizes": (16,)}
    fast |= {"num_epochs": 4, "num_minibatches": 2, "normalize_reward": False}
    rates = {"trpo": {"learning_rate": 0.01}, "natural_pg": {"vf_learning_rate": 0.01}}
    config = algorithm.Config().replace(**(fast | rates[name] | changes))
    loop.prepare(algorithm, config, env)
    state = jax.jit(algorithm.init)(config, env, KEY)
    chunk = jax.jit(partial(population.run_chunk, algorithm))
    state, metrics = chunk(config, env, state, jnp.int32(iterations))
    return config, state.agent, metrics


def mean_return(name, config, env, agent, greedy=True):
    algorithm = ALGORITHMS[name]
    episodes = evaluate(
        algorithm, config, env, agent, KEY, num_episodes=64, greedy=greedy
    )
    return float(episodes.episode_return.mean())


def rollout(name, env, **changes):
    """A state, and the batch that its first rollout gives."""
    algorithm = ALGORITHMS[name]
    config = tiny(algorithm, **changes)
    state = jax.jit(algorithm.init)(config, env, KEY)

    @jax.jit
    def collect(world):
        _, trajectory, _ = trust_region.acts.unroll(
            config, env, state.agent, world, config.num_steps
        )
        return trust_region.make_batch(
            config, env, state.agent, trajectory, trajectory.reward
        )

    return config, state.agent, collect(state.world)


@pytest.mark.full
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_every_accepted_step_stays_within_the_trust_region(env_id):
    """Over 10,000 environment steps, with nine of ten steps accepted."""
    env, algorithm = make(env_id), ALGORITHMS["trpo"]
    config = algorithm.Config().replace(
        num_steps=32, hidden_sizes=(16,), normalize_obs=True
    )

    @jax.jit
    def run(state):
        def step(state, _):
            return algorithm.train_step(config, env, state)

        return jax.lax.scan(step, state, length=40)

    state, metrics = run(algorithm.init(config, env, KEY))
    assert int(state.world.env_steps) == 40 * 8 * 32 >= 10_000
    accepted = metrics["policy/accepted"].sum
    assert accepted.mean() >= 0.9
    kl = metrics["policy/kl"]
    np.testing.assert_array_equal(kl.count, accepted)
    assert (kl.sum <= config.max_kl).all()
    # Neither is the region hardly used, nor the surrogate lowered.
    assert kl.sum.sum() / kl.count.sum() > 0.3 * config.max_kl
    improvement = metrics["policy/improvement"].sum
    assert (improvement[accepted == 1] > 0).all()
    ratio = improvement.sum() / metrics["policy/expected_improvement"].sum.sum()
    assert 0.7 < ratio < 1.1


@pytest.mark.full
def test_the_bound_holds_for_the_statistics_that_the_search_used():
    """`policy/kl` is measured anew, with these and with the ones of the next rollout."""
    env, algorithm = make("Pendulum-v1"), ALGORITHMS["trpo"]
    config = tiny(algorithm, normalize_obs=True)
    step = jax.jit(partial(algorithm.train_step, config, env))

    @jax.jit
    def divergence(before, params, statistics):
        agent, (key, _) = before.agent, jax.random.split(before.world.key)
        world = before.world.replace(key=key)
        rows = trust_region.acts.unroll(config, env, agent, world, config.num_steps)[1]
        acting = agent.replace(obs_stats=statistics)
        after, _ = trust_region.forward(config, env, acting, params, rows.obs)
        old, new = (
            networks.distribution(config, env, x, rows.obs)
            for x in (rows.extras["policy"], after)
        )
        return old.kl_divergence(new).mean()

    before, accepted = jax.jit(algorithm.init)(config, env, KEY), 0
    for _ in range(5):
        after, metrics = step(before)
        kl = divergence(before, after.agent.params, before.agent.obs_stats)
        assert kl <= config.max_kl * (1 + 1e-4)
        if metrics["policy/accepted"].sum == 1:
            accepted += 1
            np.testing.assert_allclose(kl, metrics["policy/kl"].sum, rtol=1e-3)
            moved = divergence(before, after.agent.params, after.agent.obs_stats)
            assert abs(moved - kl) > 1e-3 * config.max_kl
        before = after
    assert accepted


@pytest.mark.full
def test_a_step_that_cannot_be_accepted_leaves_the_policy_as_it_is():
    config, agent, batch = rollout("trpo", make("probe/action-observation"))
    # Were the advantage a constant, no policy would be better: the gradient is noise.
    batch = batch._replace(advantage=jnp.zeros_like(batch.advantage))
    env = make("probe/action-observation")
    policy, metrics = jax.jit(partial(trust_region.trust_region_step, config, env))(
        agent, batch, counter()
    )
    assert_trees_equal(policy, split(agent.params)[0])
    assert metrics["policy/accepted"].sum == metrics["policy/kl"].count == 0
    assert metrics["policy/step_fraction"].sum == 0


def test_the_natural_gradient_is_that_of_the_explicit_fisher_matrix():
    env = make("Pendulum-v1")
    config, agent, batch = rollout(
        "natural_pg",
        env,
        hidden_sizes=(3,),
        cg_iterations=60,
        cg_damping=0.05,
        learning_rate=0.3,
    )
    policy, value = split(agent.params)
    theta, unflatten = flat(policy)

    def pi_of(theta):
        params = join(unflatten(theta), value)
        found, _ = trust_region.forward(config, env, agent, params, batch.obs)
        return networks.distribution(config, env, found, batch.obs)

    @jax.jit
    def explicit(theta):
        old = pi_of(theta)
        fisher = jax.jacrev(jax.grad(lambda t: old.kl_divergence(pi_of(t)).mean()))
        score = jax.grad(
            lambda t: (pi_of(t).log_prob(batch.action) * batch.advantage).mean()
        )
        return fisher(theta), score(theta)

    fisher, g = (np.asarray(x, np.float64) for x in explicit(theta))
    expected = 0.3 * np.linalg.solve(fisher + 0.05 * np.eye(len(g)), g)
    after, metrics = jax.jit(partial(trust_region.natural_step, config, env))(
        agent, batch, counter()
    )
    step = flat(after)[0] - theta
    np.testing.assert_allclose(step, expected, atol=1e-4 * np.abs(expected).max())
    gained = metrics["policy/expected_improvement"].sum
    np.testing.assert_allclose(gained, g @ expected, rtol=1e-3)


@pytest.mark.full
def test_both_go_in_the_same_direction_and_trpo_to_the_border():
    env = make("CartPole-v1")
    steps = {}
    updates = {
        "trpo": trust_region.trust_region_step,
        "natural_pg": trust_region.natural_step,
    }
    for name, step in updates.items():
        config, agent, batch = rollout(name, env, cg_damping=1e-3, cg_iterations=40)
        update = jax.jit(partial(step, config, env))
        policy, metrics = update(agent, batch, counter())
        steps[name] = flat(policy)[0] - flat(split(agent.params)[0])[0]
        if name == "trpo":
            assert metrics["policy/step_fraction"].sum == 1.0
            kl = float(metrics["policy/kl"].sum)
            assert 0.8 * config.max_kl < kl <= config.max_kl
    a, b = steps.values()
    cosine = a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)
    assert cosine == pytest.approx(1.0, abs=1e-4)


@pytest.mark.full
def test_natural_steps_follow_the_learning_rate_to_zero():
    env = make("probe/constant")
    changes = {"total_steps": 4 * 64.0, "learning_rate": 1.0, "anneal_lr": True}
    *_, metrics = trained("natural_pg", env, 4, **changes)
    # Before each of 4 train steps: 1, 3/4, 1/2, 1/4.
    assert metrics["optim/learning_rate"].value == pytest.approx(0.625)


@pytest.mark.full
def test_the_value_is_fitted_and_nothing_else():
    env = make("probe/truncation")
    config, agent, batch = rollout("trpo", env, num_epochs=50)
    fit = jax.jit(partial(trust_region.fit_value, config, env, rate=1e-3))
    value, _, metrics = fit(agent, batch, KEY)
    policy, before = split(agent.params)
    assert set(value) == set(before) and metrics["loss/value"].count == 50 * 32

    def error(value):
        params = join(policy, value)
        _, found = trust_region.forward(config, env, agent, params, batch.obs)
        return float(jnp.square(found - batch.target).mean())

    assert error(value) < 0.9 * error(before)


@pytest.mark.full
@pytest.mark.parametrize(("name", "right"), [("trpo", 2.7), ("natural_pg", 10.0)])
def test_learns_the_value_of_a_truncated_task(name, right):
    """10 as a truncated task, as a terminal one 2.7 on average over its five steps."""
    env = make("probe/truncation")
    if name == "trpo":
        env = env.replace(horizon_is="terminal")
    config, agent, _ = trained(name, env, 200)
    found = ALGORITHMS[name].act(config, env, agent, jnp.ones((1, 1)), (), KEY)
    assert float(found[2]["value"][0]) == pytest.approx(right, abs=0.3)


@pytest.mark.full
@EVERY
def test_learns_to_act_on_what_it_sees(name):
    env = make("probe/action-observation")
    changes = {"normalize_obs": True, "normalize_reward": True}
    config, agent, _ = trained(name, env, 60, **changes)
    assert mean_return(name, config, env, agent) == 1.0


@pytest.mark.full
@pytest.mark.parametrize(("name", "squash"), [("trpo", True), ("natural_pg", False)])
def test_learns_a_continuous_action(name, squash):
    env = make("probe/continuous")
    config, agent, _ = trained(name, env, 100, squash=squash)
    assert mean_return(name, config, env, agent) > -0.01


@pytest.mark.full
def test_never_takes_a_masked_action():
    env = make("probe/masked")
    config, agent, metrics = trained("trpo", env, 3)
    assert mean_return("trpo", config, env, agent, greedy=False) == 1.0
    assert np.isfinite(metrics["policy/kl"].sum)


@pytest.mark.full
def test_trains_separate_cnns_on_images():
    env, algorithm = make("Breakout-MinAtar"), ALGORITHMS["trpo"]
    config = tiny(algorithm, cg_iterations=2)
    state = jax.jit(algorithm.init)(config, env, KEY)
    for torso in ("actor_torso", "critic_torso"):
        kernel = state.agent.params["params"][torso]["Conv_0"]["kernel"]
        assert kernel.shape == (3, 3, 4, 16)
    _, metrics = jax.jit(algorithm.train_step)(config, env, state)
    assert all(jnp.isfinite(m.sum) for m in metrics.values())


@EVERY
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"num_minibatches": 3},
            "num_minibatches = 3 must divide num_envs * num_steps = 32: try 2",
        ),
        ({"network": "cnn"}, "network = 'cnn' needs image observations"),
        ({"squash": True}, "squash = True needs a bounded Box action space"),
    ],
)
def test_bad_combinations_are_named_before_anything_compiles(name, changes, named):
    algorithm = ALGORITHMS[name]
    with pytest.raises(InvalidInput, match=named.replace("*", r"\*")):
        algorithm.validate(tiny(algorithm, **changes), make("probe/constant"))
