"""Networks that learn by turns: updates against a plain loop, and how many are due."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import networks
from jaxrl.algorithms import ALGORITHMS, critics, learning, off_policy, sac, td3
from jaxrl.algorithms.sac import SAC
from jaxrl.algorithms.td3 import TD3
from jaxrl.envs import make
from jaxrl.types import counter
from tests.support.control import BOX, KEY, probe
from tests.support.small import tiny


def descended(params, opt_state, loss):
    """A step of Adam on a loss of parameters."""
    adam = optax.adam(1e-2, eps=1e-8)
    changes, opt_state = adam.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, changes), opt_state


def followed(targets, params, tau):
    return jax.tree.map(lambda old, new: (1 - tau) * old + tau * new, targets, params)


def update_by_hand(config, agent, batches, draws, step):
    """A plain loop over the batches: `step` changes parameters, targets and optimisers."""
    of_critics, of_actor = draws
    params, targets = dict(agent.params), dict(agent.target_params)
    states = {n: optax.adam(1e-2, eps=1e-8).init(x) for n, x in params.items()}
    for s in range(len(of_critics.subset)):
        draw = jax.tree.map(lambda x, s=s: x[s], of_critics)
        turn, due = s // config.policy_delay, (s + 1) % config.policy_delay == 0
        own = jax.tree.map(lambda x, turn=turn: x[turn], of_actor) if due else None
        step(params, targets, states, batches.read(batches.index[s]), draw, own)
    return params, targets


@pytest.mark.full
@pytest.mark.parametrize("name", ["td3", "sac"])
def test_an_update_is_that_of_a_plain_loop(name):
    """Targets that are not the online networks, and an actor that learns every second."""
    algorithm = ALGORITHMS[name]
    env = make("probe/continuous").replace(action_space=BOX)
    changes = {"num_updates": 4, "train_frequency": 4, "policy_delay": 2, "tau": 0.3}
    config = tiny(algorithm, **changes, activation="tanh")
    state = jax.jit(algorithm.init)(config, env, KEY)
    moved = jax.tree.map(lambda x: 0.9 * x + 0.05, state.agent.target_params)
    agent = state.agent.replace(target_params=moved)
    batches = off_policy.batches(config, env, state.replay, KEY)
    module = {"td3": td3, "sac": sac}[name]
    critic = networks.critics(config, env)

    def fit(params, states, network, loss):
        params[network], states[network] = descended(
            params[network], states[network], loss
        )

    def fit_critics(params, states, batch, value):
        y = batch.reward + config.gamma * jnp.where(batch.terminated, 0.0, value)
        unit = (batch.action - 1.0) / 2.0

        def loss(p):
            error = 0.5 * (critic.apply(p, batch.obs, unit) - y) ** 2
            return error.sum(0).mean()

        fit(params, states, "critics", loss)

    def step_td3(params, targets, states, batch, draw, own):
        actor = networks.deterministic_actor(config, env)
        clip = config.target_noise_clip
        noise = jnp.clip(config.target_noise * draw.smoothing, -clip, clip)
        action = actor.apply(targets["actor"], batch.next_obs) + noise
        q = critic.apply(targets["critics"], batch.next_obs, jnp.clip(action, -1, 1))
        fit_critics(params, states, batch, q.min(0))
        if own is None:
            return

        def loss(p):
            action = actor.apply(p, batch.obs)
            return -critic.apply(params["critics"], batch.obs, action)[0].mean()

        fit(params, states, "actor", loss)
        for n in targets:
            targets[n] = followed(targets[n], params[n], config.tau)

    def soft(actor, of_critics, log_alpha, obs, noise):
        mean, log_std = networks.spread_actor(config, env).apply(actor, obs)
        x = mean + jnp.exp(log_std) * noise
        normal = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
        log_prob = (normal - jnp.log(1 - jnp.tanh(x) ** 2)).sum(-1)
        q = critic.apply(of_critics, obs, jnp.tanh(x)).min(0)
        return q - jnp.exp(log_alpha) * log_prob, log_prob

    def step_sac(params, targets, states, batch, draw, own):
        log_alpha = params["log_temperature"]
        at = log_alpha, batch.next_obs, draw.action
        fit_critics(
            params, states, batch, soft(params["actor"], targets["critics"], *at)[0]
        )
        targets["critics"] = followed(targets["critics"], params["critics"], config.tau)
        if own is None:
            return
        at = params["critics"], log_alpha, batch.obs, own.action
        _, log_prob = soft(params["actor"], *at)
        fit(params, states, "actor", lambda p: -soft(p, *at)[0].mean())
        fit(params, states, "log_temperature", lambda x: -x * (log_prob - 1.0).mean())

    step = {"td3": step_td3, "sac": step_sac}[name]
    draws = module.draw_all(config, env, KEY)
    expected = update_by_hand(config, agent, batches, draws, step)
    rates = dict.fromkeys(agent.params, 1e-2)
    update = jax.jit(
        lambda agent: module.update(config, env, agent, batches, KEY, rates)
    )
    found, _ = update(agent)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, (found.params, found.target_params), expected)


@pytest.mark.parametrize("delay, updates", [(1, 1), (2, 1), (2, 2), (3, 2), (4, 6)])
def test_whole_steps_of_the_actor_are_due(delay, updates):
    config = tiny(
        TD3, policy_delay=delay, num_updates=updates, num_envs=3, train_frequency=4
    )
    plan = TD3.plan(config, probe("truncation"))
    assert plan.updates % delay == 0
    assert plan.updates * 4 == plan.env_steps * updates


def test_the_actor_learns_after_every_so_many_steps_of_the_critics():
    env = probe("truncation")
    config = tiny(TD3, policy_delay=2, num_updates=4, train_frequency=4)
    state = TD3.init(config, env, KEY)
    _, metrics = jax.jit(TD3.train_step)(config, env, state)
    assert metrics["optim/critic_grad_norm"].count == 4
    assert metrics["optim/actor_grad_norm"].count == 2


def test_targets_follow_what_is_learned_and_no_running_statistics():
    """As a network of the user's may hold some."""
    params = {"params": jnp.ones(3), "batch_stats": jnp.zeros(2)}
    agent = critics.Agent(
        params={"actor": params},
        opt_state=learning.init_optimizers({"actor": params}),
        target_params={"actor": params},
        obs_stats=None,
    )
    learner = learning.follow(learning.begin(agent), 0.5)
    assert learner.targets["actor"].shape == (3,)
    assert learning.end(learner, agent).target_params["actor"].keys() == params.keys()


def test_rates_of_their_own_are_annealed_like_that_of_the_critics():
    config = tiny(SAC, learning_rate=0.4, actor_learning_rate=0.2, anneal_lr=True)
    found = learning.rates(config, counter(250))  # of 1,000 steps
    expected = {"critics": 0.3, "actor": 0.15, "log_temperature": 0.3}
    assert {n: pytest.approx(float(x)) for n, x in found.items()} == expected
    config = tiny(SAC, learning_rate=0.4, temperature_learning_rate=0.1)
    found = learning.rates(config, counter(250))
    assert found == {"critics": 0.4, "actor": 0.4, "log_temperature": 0.1}


@pytest.mark.full
@pytest.mark.parametrize("name", ["ddpg", "sac"])
def test_an_actor_without_a_step_size_stays_as_it_is(name):
    algorithm, env = ALGORITHMS[name], probe("truncation")
    config = tiny(algorithm, actor_learning_rate=0.0)
    state = jax.jit(algorithm.init)(config, env, KEY)
    after, _ = jax.jit(algorithm.train_step)(config, env, state)
    before, after = state.agent.params, after.agent.params
    jax.tree.map(np.testing.assert_array_equal, before["actor"], after["actor"])
    moved = jax.tree.map(
        lambda a, b: not (a == b).all(), before["critics"], after["critics"]
    )
    assert any(jax.tree.leaves(moved))
