"""PPO: identities of the update, options, and probes with known answers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import networks, spaces
from jaxrl.algorithms import ppo
from jaxrl.algorithms.ppo import PPO
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from jaxrl.evaluation import evaluate
from jaxrl.training import loop, population
from tests.support.small import assert_trees_equal, tiny

KEY = jax.random.key(0)


def trained(env, iterations, **changes):
    """An agent after some train steps on a probe."""
    total = iterations * 64
    fast = {"num_envs": 8, "num_steps": 8, "learning_rate": 0.01, "gamma": 0.9}
    fast |= {"total_steps": float(total), "hidden_sizes": (16,), "num_minibatches": 2}
    fast |= {"normalize_reward": False}  # so that values are in the units of rewards
    config = PPO.Config().replace(**(fast | changes))
    loop.prepare(PPO, config, env)
    state = jax.jit(PPO.init)(config, env, KEY)
    chunk = jax.jit(partial(population.run_chunk, PPO))
    state, metrics = chunk(config, env, state, jnp.int32(iterations))
    return config, state.agent, metrics


def value(config, env, agent, obs):
    memory = PPO.init_memory(config, env, len(obs))
    return PPO.act(config, env, agent, jnp.asarray(obs), memory, KEY)[2]["value"]


def mean_return(config, env, agent, greedy=True):
    episodes = evaluate(PPO, config, env, agent, KEY, num_episodes=64, greedy=greedy)
    return float(episodes.episode_return.mean())


def rollout(env, **changes):
    """A state, and the batch that its first rollout gives."""
    config = tiny(PPO, **changes)
    state = PPO.init(config, env, KEY)
    unroll = partial(ppo.acts.unroll, config, env, state.agent, num_steps=8)
    _, trajectory, _ = jax.jit(unroll)(state.world)
    batch = ppo.make_batch(config, env, state.agent, trajectory, trajectory.reward)
    return config, state, trajectory, batch


@pytest.mark.fast_cases("True-auto")
@pytest.mark.parametrize("network", ["auto", "gru(size=4)"])
@pytest.mark.parametrize("normalize_obs", [False, True])
def test_the_ratio_is_one_before_the_first_update(network, normalize_obs):
    env = make("probe/memory")
    config, state, _, batch = rollout(
        env, network=network, normalize_obs=normalize_obs, ent_coef=0.0
    )
    _, rows = ppo.loss(
        state.agent.params, config, env, state.agent, batch, state.world.memory
    )
    reported = dict(zip(ppo.REPORTED, rows, strict=True))
    assert {x.size for x in rows} == {8 * 4}
    assert float(reported["policy/approx_kl"].max()) < 1e-10
    assert not reported["policy/clip_fraction"].any()


@pytest.mark.full
def test_values_of_the_rollout_are_those_of_the_batch():
    env = make("probe/memory")
    config, state, trajectory, batch = rollout(env, network="gru(size=4)")
    start = (trajectory.obs, state.world.memory, batch.done)
    params = state.agent.params
    _, _, values = ppo.forward(config, env, state.agent, params, *start)
    np.testing.assert_allclose(values, trajectory.extras["value"], atol=1e-6)


@pytest.mark.fast_cases("changes0")
@pytest.mark.parametrize("changes", [{}, {"network": "gru(size=4)"}])
def test_the_values_of_a_batch_are_those_of_its_states(changes):
    env = make("probe/truncation", horizon=3)  # two cuts within the rollout
    config, state, trajectory, _ = rollout(env, **changes)
    assert trajectory.truncated.sum(0).max() >= 2
    found = ppo.values(config, env, state.agent, trajectory)
    before = networks.init_memory(config, env, 4)
    memories = trajectory.extras["memory"]
    for t in range(8):
        after = jax.tree.map(lambda m, t=t: m[t], memories)
        states = (trajectory.obs[t], before), (trajectory.next_obs[t], after)
        for value, (obs, memory) in zip(found, states, strict=True):
            expected = ppo.forward(
                config, env, state.agent, state.agent.params, obs, memory
            )[2]
            np.testing.assert_allclose(value[t], expected, atol=1e-6)
        over = trajectory.truncated[t]
        before = jax.tree.map(lambda m, o=over: jnp.where(o[:, None], 0, m), after)


@pytest.mark.full
def test_the_metrics_of_an_update_are_means_over_all_its_minibatches():
    env = make("probe/action-observation")
    config, state, _, batch = rollout(env, num_epochs=3, normalize_advantage=False)
    # At learning rate 0 every step sees the first agent, so every epoch the same means.
    after, metrics = ppo.update(config, env, state.agent, batch, (), KEY, 0.0)
    _, rows = ppo.loss(state.agent.params, config, env, state.agent, batch, ())
    for name, row in zip(ppo.REPORTED, rows, strict=True):
        assert metrics[name].count == 3 * 32
        np.testing.assert_allclose(metrics[name].value, row.mean(), atol=1e-6)
    assert float(metrics["loss/value"].value) > 0
    assert_trees_equal(after.params, state.agent.params)


@pytest.mark.full
def test_a_kl_penalty_and_a_surrogate_have_the_same_gradient_at_the_start():
    """At ratio 1 clipping is inactive and the KL is at its minimum."""
    env = make("probe/action-observation")
    grads = []
    for objective in ("clip", "kl"):
        config, state, _, batch = rollout(env, objective=objective)
        grads.append(
            jax.grad(ppo.loss, has_aux=True)(
                state.agent.params, config, env, state.agent, batch, ()
            )[0]
        )
    for a, b in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.full
def test_target_kl_stops_the_updates_of_a_batch():
    env = make("probe/action-observation")

    def moved(target_kl):
        config, state, _, batch = rollout(env, learning_rate=0.1, num_epochs=4)
        config = config.replace(target_kl=target_kl)
        after, _ = ppo.update(config, env, state.agent, batch, (), KEY, 0.1)
        return jax.tree.reduce(
            lambda total, x: total + jnp.abs(x).sum(),
            jax.tree.map(jnp.subtract, after.params, state.agent.params),
            0.0,
        )

    assert 0 < moved(1e-6) < 0.5 * moved(1e6)
    assert float(moved(1e6)) == pytest.approx(float(moved(None)), rel=1e-5)


@pytest.mark.full
def test_the_adaptive_coefficient_follows_the_divergence():
    env = make("probe/action-observation")
    big_steps = {
        "objective": "kl",
        "learning_rate": 0.3,
        "num_epochs": 8,
        "kl_coef": 0.1,
    }
    _, _, metrics = trained(env, 1, kl_penalty_target=1e-6, **big_steps)
    assert metrics["policy/kl_coef"].value == pytest.approx(0.2)
    _, _, metrics = trained(env, 1, kl_penalty_target=1e6, **big_steps)
    assert metrics["policy/kl_coef"].value == pytest.approx(0.05)
    _, _, metrics = trained(env, 1, **big_steps)
    assert metrics["policy/kl_coef"].value == pytest.approx(0.1)


@pytest.mark.full
def test_learning_rate_anneals_to_zero_over_total_steps():
    env = make("probe/constant")
    _, _, metrics = trained(env, 4, learning_rate=1.0)
    # Before each of 4 train steps: 1, 3/4, 1/2, 1/4.
    assert metrics["optim/learning_rate"].value == pytest.approx(0.625)
    _, _, metrics = trained(env, 4, learning_rate=1.0, anneal_lr=False)
    assert metrics["optim/learning_rate"].value == 1.0


@pytest.mark.full
def test_normalisers_are_part_of_the_agent_and_right_at_episode_ends():
    env = make("probe/truncation")  # reward 1, five steps an episode
    _, agent, _ = trained(env, 5, normalize_obs=True, normalize_reward=True)
    np.testing.assert_allclose(agent.obs_stats.mean, 1.0, atol=1e-5)
    assert float(agent.obs_stats.count) == 5 * 64
    returns = np.cumsum(0.9 ** np.arange(5))
    traces = np.tile(returns, 8)[: 5 * 8]
    np.testing.assert_allclose(agent.reward_stats.returns.var, traces.var(), rtol=1e-4)


@pytest.mark.full
def test_learns_the_value_of_a_truncated_task_and_not_of_its_wrong_reading():
    env = make("probe/truncation")
    config, agent, _ = trained(env, 400, gae_lambda=0.95, learning_rate=0.02)
    assert float(value(config, env, agent, [[1.0]])[0]) == pytest.approx(10, abs=0.1)
    wrong = env.replace(horizon_is="terminal")
    config, agent, _ = trained(wrong, 400, gae_lambda=0.95, learning_rate=0.02)
    assert float(value(config, env, agent, [[1.0]])[0]) == pytest.approx(2.7, abs=0.3)


@pytest.mark.full
def test_learns_a_delayed_value():
    env = make("probe/delay")
    config, agent, _ = trained(env, 200)
    found = value(config, env, agent, [[0.0], [1.0]])
    np.testing.assert_allclose(found, [0.9, 1.0], atol=0.05)


@pytest.mark.full
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": "kl", "kl_penalty_target": 0.01},
        {"clip_value": True, "target_kl": 0.05},
        {"normalize_obs": True, "normalize_reward": True},
    ],
    ids=str,
)
def test_learns_to_act_on_what_it_sees(changes):
    env = make("probe/action-observation")
    config, agent, _ = trained(env, 100, **changes)
    assert mean_return(config, env, agent) == 1.0


@pytest.mark.full
@pytest.mark.parametrize("squash", [False, True])
def test_learns_a_continuous_action(squash):
    env = make("probe/continuous")
    config, agent, _ = trained(env, 300, squash=squash, ent_coef=0.0)
    assert mean_return(config, env, agent) > -0.01


@pytest.mark.full
def test_never_takes_a_masked_action():
    env = make("probe/masked")
    config, agent, _ = trained(env, 3)
    assert mean_return(config, env, agent, greedy=False) == 1.0


@pytest.mark.full
def test_a_gru_remembers_and_an_mlp_cannot():
    env = make("probe/memory")
    changes = {"num_envs": 32, "num_steps": 16, "total_steps": 250 * 512.0}
    config, agent, _ = trained(env, 250, network="gru(size=16)", **changes)
    assert mean_return(config, env, agent) > 0.95
    config, agent, _ = trained(env, 100, **changes)
    assert abs(mean_return(config, env, agent)) < 0.5


@pytest.mark.full
def test_trains_a_cnn_on_images():
    env = make("Breakout-MinAtar")
    config = tiny(PPO)
    state = jax.jit(PPO.init)(config, env, KEY)
    kernel = state.agent.params["params"]["torso"]["Conv_0"]["kernel"]
    assert kernel.shape == (3, 3, 4, 16)
    state, metrics = jax.jit(PPO.train_step)(config, env, state)
    assert all(jnp.isfinite(m.sum) for m in metrics.values())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"num_minibatches": 3},
            "num_minibatches = 3 must divide num_envs * num_steps = 32",
        ),
        ({"network": "gru(size=4)", "num_minibatches": 3}, "num_envs = 4: try"),
        ({"num_minibatches": 32}, "= 32, more than one step each: try 16"),
        ({"kl_penalty_target": 0.1}, "kl_penalty_target = 0.1 adapts the penalty"),
        ({"network": "cnn"}, "network = 'cnn' needs image observations"),
    ],
)
def test_bad_combinations_are_named_before_anything_compiles(changes, named):
    with pytest.raises(InvalidInput, match=named.replace("*", r"\*")):
        PPO.validate(tiny(PPO, **changes), make("probe/constant"))


def test_with_a_gru_a_minibatch_may_be_one_environment():
    config = tiny(PPO, network="gru(size=4)", num_minibatches=4)
    PPO.validate(config, make("probe/constant"))


def test_a_mask_that_does_not_fit_the_actions_is_refused():
    env = make("probe/masked").replace(action_space=spaces.Discrete(3))
    with pytest.raises(InvalidInput, match=r"action_mask of .* has shape \(4,\)"):
        PPO.validate(tiny(PPO), env)


def test_dict_actions_are_refused():
    env = make("probe/constant")
    env = env.replace(action_space=spaces.dict_space(a=spaces.Discrete(2)))
    with pytest.raises(InvalidInput, match="Discrete action space or a Box"):
        PPO.validate(tiny(PPO), env)


@pytest.mark.full
def test_a_variant_is_made_by_passing_a_loss():
    env, config = make("probe/action"), tiny(PPO)
    state = PPO.init(config.replace(ent_coef=0.0, vf_coef=0.0), env, KEY)

    def nothing(config, env, agent, batch, pi, log_prob):
        return 0.0 * log_prob

    still = config.replace(ent_coef=0.0, vf_coef=0.0)
    for policy_loss, moves in ((nothing, False), (ppo.policy_loss, True)):
        loss_fn = partial(ppo.loss, policy_loss_fn=policy_loss)
        after, _ = jax.jit(partial(ppo.train_step, still, env, loss_fn=loss_fn))(state)
        pairs = zip(
            jax.tree.leaves(state.agent.params),
            jax.tree.leaves(after.agent.params),
            strict=True,
        )
        assert any((a != b).any() for a, b in pairs) == moves
