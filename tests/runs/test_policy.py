"""`jaxrl.load_policy`: one agent of a run, ready to act, in any process."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import spaces
from jaxrl.algorithms.ppo import PPO
from jaxrl.errors import InvalidInput
from jaxrl.runs.policy import Policy, select_agent
from jaxrl.training.population import member
from tests.support.runs import run_python
from tests.support.small import counting_env, tiny

RUNS = ("ppo_run", "reinforce_run", "dqn_run", "gru_run")


@pytest.mark.parametrize("name", RUNS)
def test_acts_as_the_agent_of_the_artefact(name, request):
    run = request.getfixturevalue(name)
    agents = jaxrl.load_agents(run)
    policy = jaxrl.load_policy(run, len(agents.seeds) - 1)
    agent = member(agents.agents, len(agents.seeds) - 1)
    obs = (
        spaces.zeros(policy.env.observation_space, (5,))
        + np.linspace(-1, 1, 5)[:, None]
    )
    memory = agents.algorithm.init_memory(agents.config, agents.env, 5)
    for greedy in (True, False):
        key = jax.random.key(3)
        expected = agents.algorithm.act(
            agents.config, agents.env, agent, obs, memory, key, greedy
        )
        action, after = policy.act(obs, policy.init_memory(5), key, greedy)
        np.testing.assert_allclose(action, expected[0], rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, expected[1]
        )


def test_a_policy_is_shown_in_one_line(ppo_run):
    assert repr(jaxrl.load_policy(ppo_run)) == "Policy(ppo on probe/action)"


def test_one_observation_at_a_time_is_a_row_of_the_batch(gru_run):
    policy = jaxrl.load_policy(gru_run)
    zero = np.zeros(policy.env.observation_space.shape)
    obs = np.stack([zero + x for x in (-1.0, 0.0, 1.0)])
    memory = policy.init_memory(3)
    alone = [policy.init_memory() for _ in obs]
    for _ in range(4):
        actions, memory = policy.act(obs, memory)
        for i, row in enumerate(obs):
            action, alone[i] = policy.act(row, alone[i])
            assert action.shape == policy.env.action_space.shape
            assert action == actions[i]
            np.testing.assert_allclose(alone[i], memory[i], atol=1e-6)
    assert np.abs(memory).max() > 0  # it remembers


def test_an_observation_that_does_not_fit_is_refused(ppo_run):
    policy = jaxrl.load_policy(ppo_run)
    space = spaces.box(0, 9, (1,), np.int32)
    policy = replace(policy, env=policy.env.replace(observation_space=space))
    with pytest.raises(InvalidInput, match=f"obs has the value {2**33}"):
        policy.act(np.array([2**33]))
    small = spaces.box(0, 255, (1,), np.uint8)
    policy = replace(policy, env=policy.env.replace(observation_space=small))
    with pytest.raises(InvalidInput, match="obs has the value 300"):
        policy.act(jnp.array([300]))


ACT = """
import hashlib, numpy as np, jax, jaxrl
for run in {runs!r}:
    policy = jaxrl.load_policy(run)
    memory, digest = policy.init_memory(), hashlib.sha256()
    zero = np.zeros(policy.env.observation_space.shape)
    for i in range(50):
        key = jax.random.key(i)
        for greedy in (True, False):
            action, after = policy.act(zero + i / 25 - 1, memory, key, greedy)
            leaves = [action, *jax.tree.leaves(after)]
            digest.update(b"".join(np.asarray(x).tobytes() for x in leaves))
        memory = after
    print(digest.hexdigest())
"""


@pytest.mark.full
def test_fresh_processes_act_bit_for_bit_alike(request):
    program = ACT.format(runs=[str(request.getfixturevalue(name)) for name in RUNS])
    first, again = run_python(program), run_python(program)
    assert first == again
    assert len(set(first)) > 1


def test_the_first_agent_is_the_default_and_missing_ones_are_refused(ppo_run):
    policy = jaxrl.load_policy(ppo_run)
    agents = jaxrl.load_agents(ppo_run).agents
    for a, b in zip(
        jax.tree.leaves(policy.agent), jax.tree.leaves(member(agents, 0)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InvalidInput, match=r"agent = 7: .* 0, 1"):
        jaxrl.load_policy(ppo_run, 7)


def test_an_agent_is_named_by_its_place_in_the_run(ppo_run):
    # As where the agents at the other places broke.
    agents = jaxrl.load_agents(ppo_run)._replace(members=[2, 5])
    assert [select_agent(agents, ppo_run, k) for k in (None, 2, 5)] == [0, 0, 1]
    for missing in (0, -1, "2"):
        with pytest.raises(InvalidInput, match="agent = "):
            select_agent(agents, ppo_run, missing)


@pytest.mark.parametrize(
    "obs, message",
    [
        (np.zeros(3), r"obs has shape \[3\]: an observation of probe/action has \[1\]"),
        (np.zeros((2, 2, 1)), r"obs has shape \[2, 2, 1\]"),
        ({"x": np.zeros(1)}, "an observation of probe/action is one of Box"),
    ],
)
def test_observations_of_another_kind_are_refused(ppo_run, obs, message):
    with pytest.raises(InvalidInput, match=message):
        jaxrl.load_policy(ppo_run).act(obs)


def test_a_sampled_action_needs_a_key(ppo_run):
    with pytest.raises(InvalidInput, match="key = None: a sampled action needs one"):
        jaxrl.load_policy(ppo_run).act(np.zeros(1), greedy=False)


def test_parts_of_an_observation_must_agree():
    counting = counting_env(horizon=5)
    space = spaces.dict_space(a=spaces.box(0, 1, (2,)), b=spaces.box(0, 1, ()))

    def reset(key, params):
        state, _ = counting.reset(key, params)
        return state, {"a": jnp.zeros(2), "b": jnp.zeros(())}

    def step(key, state, action, params):
        state, timestep = counting.step(key, state, action, params)
        return state, timestep._replace(obs={"a": jnp.ones(2), "b": jnp.ones(())})

    env = counting.replace(reset=reset, step=step, observation_space=space)
    config = tiny(PPO)
    agent = PPO.init(config, env, jax.random.key(0)).agent
    policy = Policy(PPO, config, env, agent)
    action, _ = policy.act({"a": [0.0, 1.0], "b": 0.5})
    assert action.shape == ()
    action, _ = policy.act({"a": np.zeros((3, 2)), "b": np.zeros(3)})
    assert action.shape == (3,)
    with pytest.raises(InvalidInput, match="parts of different lengths"):
        policy.act({"a": np.zeros((3, 2)), "b": np.zeros(4)})
