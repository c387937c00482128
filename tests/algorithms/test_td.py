"""TD(λ) of a given policy: targets, the target network, what is learned, whose values."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import PPO
from jaxrl.algorithms import td
from jaxrl.algorithms.td import TD
from jaxrl.cli import main
from jaxrl.core import variants
from jaxrl.data.frozen_policy import FrozenPolicy, teacher_action
from jaxrl.envs import lecture, make
from jaxrl.errors import InvalidInput
from jaxrl.mdp import policy_evaluation, uniform_policy
from jaxrl.rollout import restart_episodes, unroll
from jaxrl.runs.artifact import load_agents
from jaxrl.training import loop, population
from tests.support import runs
from tests.support.small import counting_env, tiny, with_teacher

KEY = jax.random.key(0)


def _always(action):
    def act(config, env, agent, obs, memory, key, greedy=False):
        return jnp.full(len(jax.tree.leaves(obs)[0]), action, jnp.int32), memory, {}

    return act


RIGHT = FrozenPolicy((), (), PPO._replace(act=_always(lecture.RIGHT)))


def rollout(config, env, num_steps):
    state = TD.init(config, env, KEY)

    def policy(obs, memory, key):
        return TD.act(config, env, state.agent, obs, memory, key)

    world = restart_episodes(env, state.world)
    _, trajectory, _ = jax.jit(lambda world: unroll(env, policy, world, num_steps))(
        world
    )
    return state.agent, trajectory


@pytest.mark.full
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_targets_continue_with_the_target_network(lam):
    """Step by step in float64; a cut episode continues with V' of its true successor."""
    env = make("probe/truncation").replace(horizon=np.int32(3))
    config = tiny(TD, td_lambda=lam, gamma=0.9)
    agent, t = rollout(config, env, 8)
    other = TD.init(config, env, jax.random.key(1)).agent.params
    agent = agent.replace(target_params=other)
    found = td.targets(config, env, agent, t)
    next_value = np.asarray(td.value_of(config, env, other, t.next_obs), float)
    assert t.truncated.any() and not t.terminated.any()
    expected = np.zeros(found.shape)
    for row in reversed(range(8)):
        last = (row == 7) | np.asarray(t.truncated[row])
        after = expected[row + 1] if row < 7 else 0.0
        mixed = (1 - lam) * next_value[row] + lam * after
        continued = np.where(last, next_value[row], mixed)
        expected[row] = t.reward[row] + 0.9 * continued
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_target_network_is_frozen_for_so_many_trajectories():
    config = tiny(TD, target_update_interval=3)
    agent = TD.init(config, make("probe/truncation"), KEY).agent
    params = jax.tree.map(lambda x: x + 1, agent.params)
    agent = agent.replace(params=params)
    agent = td.renew_target(config, agent, jnp.int32(2))
    assert agent.trajectories == 2
    assert not jnp.array_equal(*_first(agent.target_params, params))
    agent = td.renew_target(config, agent, jnp.int32(2))
    assert agent.trajectories == 0
    assert jnp.array_equal(*_first(agent.target_params, params))


def test_without_an_interval_the_target_network_is_the_network():
    config = tiny(TD, target_update_interval=0)
    agent = TD.init(config, make("probe/truncation"), KEY).agent
    params = jax.tree.map(lambda x: x + 1, agent.params)
    agent = td.renew_target(config, agent.replace(params=params), jnp.int32(0))
    assert jnp.array_equal(*_first(agent.target_params, params))


def _first(*trees):
    return [jax.tree.leaves(tree)[0] for tree in trees]


@pytest.mark.full
@pytest.mark.parametrize("whole", [True, False])
def test_of_whole_episodes_only_the_first_is_learned_from(whole):
    """Rewards after it may be anything."""
    env = counting_env(ends_after=3)
    config = tiny(TD, whole_episodes=whole, td_lambda=1.0, target_update_interval=100)
    agent, t = rollout(config, env, 8)
    later = t._replace(reward=t.reward.at[3:].add(100.0))
    after = [
        td.update(config, env, agent, trajectory, KEY, 0.01)
        for trajectory in (t, later)
    ]
    same = jnp.array_equal(*_first(*(agent.params for agent, _ in after)))
    assert same == whole
    agent, metrics = after[0]
    counted, rows = (3 * 4, 8 * 4)
    assert metrics["value/v"].count == config.num_epochs * (counted if whole else rows)
    assert agent.trajectories == (4 if whole else 2 * 4)


def learned(env, iterations, **changes):
    config = TD.Config().replace(
        num_envs=16,
        num_steps=64,
        gamma=1.0,
        learning_rate=3e-3,
        hidden_sizes=(32,),
        total_steps=iterations * 16 * 64.0,
        **changes,
    )
    loop.prepare(TD, config, env)
    state = jax.jit(TD.init)(config, env, KEY)
    chunk = jax.jit(lambda state: population.run_chunk(TD, config, env, state, 300))
    return config, chunk(state)[0].agent


@pytest.mark.full
@pytest.mark.fast_cases("TD(0)")
@pytest.mark.parametrize(
    "changes",
    [
        {"td_lambda": 0.0},
        {"td_lambda": 0.0, "target_update_interval": 200},
        {"td_lambda": 1.0, "whole_episodes": True},
    ],
    ids=["TD(0)", "fixed-point iteration", "TD(1)"],
)
def test_the_values_of_the_random_walk_are_learned(changes):
    env = make("lecture/random-walk-5")
    config, agent = learned(env, 300, **changes)
    agents = jax.tree.map(lambda x: x[None], agent)
    assert TD.score(config, env, agents)["value_rms"][0] < 0.03


@pytest.mark.full
def test_the_values_of_a_trained_policy_are_learned():
    """Who always goes right ends there, with reward 1, from the middle and beyond."""
    env = make("lecture/random-walk-5").replace(teacher=RIGHT)
    config, agent = learned(env, 300)
    value = td.value_of(config, env, agent.params, jnp.eye(5))
    np.testing.assert_allclose(value[2:], 1.0, atol=0.02)


def test_the_score_is_the_distance_to_the_exact_values():
    """V = 0 everywhere is off by 1/6, ..., 5/6; where right is taken, by 1."""
    env, config = make("lecture/random-walk-5"), tiny(TD, gamma=1.0)
    agent = TD.init(config, env, KEY).agent
    zero = jax.tree.map(lambda x: jnp.zeros((2, *x.shape), x.dtype), agent)
    expected = np.sqrt(np.mean((np.arange(1, 6) / 6) ** 2))
    found = TD.score(config, env, zero)["value_rms"]
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-6)
    found = TD.score(config, env.replace(teacher=RIGHT), zero)["value_rms"]
    np.testing.assert_allclose(found, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    "env",
    [
        make("CartPole-v1"),
        make("lecture/random-walk-5", sticky_prob=0.5),
        make("lecture/random-walk-5", history=2),
        make("lecture/random-walk-5", horizon=9, horizon_is="terminal"),
    ],
    ids=lambda env: env.id,
)
def test_there_is_no_score_where_the_exact_values_are_not_known(env):
    config = tiny(TD)
    agents = jax.tree.map(lambda x: x[None], TD.init(config, env, KEY).agent)
    assert TD.score(config, env, agents) == {}


def test_there_is_no_score_of_a_policy_that_never_ends():
    env = make("lecture/grid-world").replace(teacher=RIGHT)
    config = tiny(TD, gamma=1.0)
    agents = jax.tree.map(lambda x: x[None], TD.init(config, env, KEY).agent)
    assert TD.score(config, env, agents) == {}


@pytest.mark.parametrize("id", lecture.PROBLEMS)
def test_the_model_of_an_environment_is_its_mdp(id):
    env, expected = make(id), lecture.mdp_of(id)
    found = env.model(env.params)
    np.testing.assert_allclose(found.transition, expected.transition, atol=1e-6)
    np.testing.assert_allclose(found.reward, expected.reward)
    np.testing.assert_allclose(found.start, expected.start, atol=1e-6)
    np.testing.assert_allclose(found.features, expected.features)
    assert (found.terminal == expected.terminal).all()


def test_the_model_of_the_continuous_walk_has_its_values():
    env = make("lecture/continuous-walk")
    model = env.model(env.params)
    value = policy_evaluation(model, uniform_policy(model), 1.0)
    x = model.features[:-1, 0]
    expected = lecture.continuous_walk_values()(x)
    np.testing.assert_allclose(value[:-1], expected, rtol=1e-9)


@pytest.mark.full
def test_uniform_actions_are_uniform_over_the_legal_ones():
    env = make("probe/masked")
    obs = jax.vmap(lambda key: env.reset(key, env.params)[1])(
        jax.random.split(KEY, 4_000)
    )
    actions = np.asarray(td.choose(env, obs, KEY, greedy=True))
    legal = np.asarray(obs["action_mask"])
    assert legal[np.arange(4_000), actions].all()
    expected = (legal / legal.sum(axis=1, keepdims=True)).sum(axis=0)
    found = np.bincount(actions, minlength=legal.shape[1])
    assert (np.abs(found - expected) < 5 * np.sqrt(expected)).all()


def test_a_teacher_is_no_number_of_a_setting():
    env = with_teacher(TD, make("probe/truncation"))
    names = variants.numbers((tiny(TD), env))
    assert not [name for name in names if "teacher" in name]
    other = env.replace(teacher=jax.tree.map(lambda x: x + 1, env.teacher))
    pairs = [(tiny(TD, gamma=0.5), env), (tiny(TD, gamma=0.6), other)]
    _, kept, values = variants.stacked(pairs)
    assert kept is env and list(values) == ["config/gamma"]


# The command line.


def argv(out, *more, env="probe/action"):
    return runs.train_argv("td", *more, "--quiet", "--out", str(out), env=env)


@pytest.fixture(scope="module")
def of_a_run(ppo_run, tmp_path_factory):
    """TD of the policy of a run, which is moved away afterwards, to be looked for."""
    folder = tmp_path_factory.mktemp("td")
    shutil.copytree(ppo_run, folder / "ppo")
    words = ["--policy", str(folder / "ppo")]
    assert main(argv(folder / "run", *words)) == 0
    return folder


@pytest.mark.full
def test_the_policy_of_a_run_acts(of_a_run, ppo_run):
    agents, policy = load_agents(of_a_run / "run"), load_agents(ppo_run)
    obs = jnp.linspace(-1, 1, 6)[:, None]
    found = td.choose(agents.env, obs, KEY, greedy=True)
    first = population.member(policy.agents, 0)
    expected, _, _ = PPO.act(policy.config, policy.env, first, obs, (), KEY, True)
    assert jnp.array_equal(found, expected)
    assert jnp.array_equal(
        found, teacher_action(agents.env.teacher, policy.env, obs, KEY)
    )


@pytest.mark.full
def test_the_evaluation_says_how_far_the_values_are(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(argv(out, "--num-seeds", "2", env="lecture/random-walk-5")) == 0
    assert main(["evaluate", str(out), "--episodes", "4", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rms = json.loads(lines[-1])["scores"]["value_rms"]
    assert len(rms) == 2 and 0 < min(rms) < max(rms)
    assert f"value_rms: {sum(rms) / 2:.4g} (mean over seeds)" in "\n".join(lines)
    own = runs.read_json(out / "summary.json")["evaluation"]["scores"]["value_rms"]
    np.testing.assert_allclose(own, rms)


@pytest.mark.full
def test_a_sweep_reports_the_score_of_each_agent(tmp_path):
    out = tmp_path / "sweep"
    words = ["sweep", *argv(out, env="lecture/random-walk-5")[1:]]
    assert main([*words, "--grid", "gamma=0.5,0.9"]) == 0
    summary = runs.read_json(out / "runs" / "000" / "summary.json")
    rms = summary["evaluation"]["scores"]["value_rms"]
    assert len(rms) == 2 and rms[0] != rms[1]


@pytest.mark.full
def test_a_run_whose_policy_has_changed_is_not_resumed(of_a_run, dqn_run, capsys):
    run = of_a_run / "again"
    words = ["--policy", str(of_a_run / "ppo"), "--stop-iterations", "1"]
    assert main(argv(run, *words)) == 0
    (run / "summary.json").unlink()
    shutil.move(of_a_run / "ppo", of_a_run / "kept")
    try:
        shutil.copytree(dqn_run, of_a_run / "ppo")
        assert main(["resume", str(run), "--quiet"]) == 2
        assert "teacher" in capsys.readouterr().err
    finally:
        shutil.rmtree(of_a_run / "ppo")
        shutil.move(of_a_run / "kept", of_a_run / "ppo")
    assert main(["resume", str(run), "--quiet"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy", "nowhere"], "holds no policy"),
        (["--policy", "{gru_run}"], "was trained on 'probe/memory'"),
        (["--policy", "{gru_run}", "--env", "probe/memory"], "has a memory"),
        (["--policy", "{td}"], "learns values and no policy"),
    ],
)
def test_a_policy_that_cannot_be_asked_is_one_line(
    words, message, of_a_run, gru_run, tmp_path, capsys
):
    words = [w.format(gru_run=gru_run, td=of_a_run / "run") for w in words]
    assert main(argv(tmp_path / "run", *words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_an_algorithm_without_a_teacher_takes_none(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"env": "probe/action", "teacher": "uniform"}))
    words = runs.train_argv("ppo", "--config", str(path), "--out", str(tmp_path / "r"))
    assert main(words) == 2
    assert "ppo has none, leave it out" in capsys.readouterr().err


def test_a_teacher_that_is_no_policy_is_refused():
    env = make("probe/truncation").replace(teacher=jnp.zeros(3))
    with pytest.raises(
        InvalidInput, match=r"td needs a jaxrl.data.frozen_policy.FrozenPolicy"
    ):
        loop.prepare(TD, tiny(TD), env)
