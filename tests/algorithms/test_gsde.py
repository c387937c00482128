"""State-dependent exploration: what it is refused for, how it acts, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import networks
from jaxrl.algorithms import sac
from jaxrl.algorithms.sac import SAC
from jaxrl.deployment.export import export
from jaxrl.envs import make
from jaxrl.errors import InvalidInput
from tests.support.control import KEY, probe, trained, values
from tests.support.runs import train
from tests.support.small import tiny

NOISE = {"noise": "state_dependent", "noise_interval": 3}


def test_its_memory_has_a_matrix_for_each_environment():
    env, config = probe("truncation"), tiny(SAC, **NOISE)
    memory = SAC.init_memory(config, env, 4)
    assert memory.matrix.shape == (4, 8, 1) and memory.age.shape == (4,)
    assert SAC.init_memory(tiny(SAC), env, 4) == ()


def test_only_continuous_actions_have_such_noise():
    config = tiny(SAC, **NOISE)
    with pytest.raises(InvalidInput, match=r"noise = 'state_dependent' .* 'normal'"):
        SAC.validate(config, make("CartPole-v1"))


@pytest.mark.parametrize("learns", [False, True])
def test_a_gradient_reaches_the_features_only_if_it_is_asked_for(learns):
    env = probe("truncation")
    config = tiny(SAC, **NOISE, noise_learns_features=learns)
    net = networks.spread_actor(config, env)
    params = jax.jit(lambda key: networks.init(net, key))(KEY)

    def features(params):
        return net.apply(params, jnp.ones((2, 1)))[1].sum()

    gradient = jax.tree.leaves(jax.grad(features)(params))
    assert any((x != 0).any() for x in gradient) == learns


@pytest.mark.full
def test_noise_is_the_same_function_until_its_time_is_over_or_an_episode_begins():
    """Five steps an episode, a matrix for three: 0, 3 | 5, 8 | 10, ..."""
    env = probe("truncation")
    config = tiny(SAC, **NOISE, num_envs=2, noise_log_std=0.0)
    state = jax.jit(SAC.init)(config, env, KEY)
    assert (state.world.memory.age == 0).all()  # a warm-up has other noise
    begun = state.world.episode_length
    acts = jax.jit(lambda world: sac.acts.unroll(config, env, state.agent, world, 1))
    world, matrices = state.world, []
    for _ in range(10):
        before = world
        world, trajectory, _ = acts(before)
        if not trajectory.done.any():
            matrices.append(np.asarray(world.memory.matrix))
        else:
            assert (world.memory.matrix[trajectory.done[0]] == 0).all()
            matrices.append(None)
    first = int(5 - begun[0])  # the first step of an episode
    of_episode = matrices[first : first + 4]
    same = [(of_episode[0] == x).all() for x in of_episode[1:]]
    assert same == [True, True, False]


@pytest.mark.full
def test_learns_values_with_state_dependent_noise():
    env, obs = probe("delay"), jnp.array([[0.0], [1.0]])
    cold = {"learn_temperature": False, "temperature": 1e-6}
    config, state, metrics = trained(SAC, env, 400, **NOISE, **cold)
    assert all(jnp.isfinite(m.sum) for m in metrics.values())
    found = values(SAC, config, env, state, obs)
    np.testing.assert_allclose(found, [0.9, 1.0], atol=0.1)


@pytest.mark.full
def test_a_run_with_running_statistics_and_such_noise_is_saved_and_exported(tmp_path):
    """Two seeds; `export` compares the file with the policy that is loaded."""
    options = ["--batch-norm", "--noise", "state_dependent", "--num-seeds", "2"]
    run = train(tmp_path / "run", "sac", *options, env="probe/continuous")
    policy = jaxrl.load_policy(run)
    assert policy.init_memory().matrix.shape[-2:] == (4, 1)
    about = export(run, tmp_path / "policy.stablehlo", observations=8)
    assert about["agreement"]["within"] == 8
