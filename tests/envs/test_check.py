"""`jaxrl check-env` catches twenty defects, and passes correct environments."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import PPO, spaces
from jaxrl.envs import check, env_ids, make
from jaxrl.envs.check import check_env
from jaxrl.errors import InvalidInput
from jaxrl.training.loop import prepare
from jaxrl.types import Env, TimeStep
from tests.support.small import tiny

LIMIT = 30


class Params(NamedTuple):
    max_steps: int = LIMIT


def reset(key, params):
    del params
    x = jax.random.uniform(key, (), minval=-0.5, maxval=0.5)
    state = {"x": x, "time": jnp.int32(0)}
    return state, observe(state)


def observe(state):
    return jnp.stack([state["x"], jnp.abs(state["x"])])


def step(key, state, action, params):
    noise = 0.05 * jax.random.normal(key)
    push = jnp.clip(action, 0, 2).astype(jnp.float32) - 1.0
    after = {"x": state["x"] + 0.4 * push + noise, "time": state["time"] + 1}
    terminated = jnp.abs(after["x"]) > 2.0
    truncated = (after["time"] >= params.max_steps) & ~terminated
    return after, TimeStep(observe(after), after["x"], terminated, truncated, {})


def walk(**changes: Any) -> Env:
    fields = dict(
        params=Params(),
        horizon=None,
        reset=reset,
        step=step,
        observation_space=spaces.box(-3.0, 3.0, (2,)),
        action_space=spaces.Discrete(3),
        id="test/walk",
    )
    return Env(**(fields | changes))


def with_step(change):
    """`step`, its result changed by `change(key, before, action, after, timestep)`."""

    def changed(key, state, action, params):
        return change(key, state, action, *step(key, state, action, params))

    return walk(step=changed)


def impure_step():
    calls = []

    def change(key, state, action, after, timestep):
        calls.append(1)
        return after, timestep._replace(reward=jnp.float32(len(calls)))

    return with_step(change)


def impure_reset():
    rng = np.random.default_rng(0)

    def changed(key, params):
        state = {"x": jnp.float32(rng.uniform()), "time": jnp.int32(0)}
        return state, observe(state)

    return walk(reset=changed)


def key_ignored():
    return walk(reset=lambda key, params: reset(jax.random.key(0), params))


def not_jittable():
    def changed(key, state, action, params):
        if action > 1:
            action = action - 1
        return step(key, state, action, params)

    return walk(step=changed)


def host_callback():
    def change(key, state, action, after, timestep):
        jax.debug.callback(lambda x: None, after["x"])
        return after, timestep

    return with_step(change)


def structure_changes():
    return with_step(
        lambda key, state, action, after, t: ({**after, "extra": after["x"]}, t)
    )


def shape_changes():
    return with_step(
        lambda key, state, action, after, t: ({**after, "x": after["x"][None]}, t)
    )


def dtype_changes():
    return with_step(
        lambda key, state, action, after, t: (
            {**after, "time": after["time"].astype(jnp.float32)},
            t,
        )
    )


def outside_its_space():
    return walk(observation_space=spaces.box(-1.0, 1.0, (2,)))


def leaf_missing():
    def both(obs):
        return {"x": obs, "more": obs}

    def reset_both(key, params):
        state, obs = reset(key, params)
        return state, both(obs)

    def step_both(key, state, action, params):
        after, t = step(key, state, action, params)
        return after, t._replace(obs=both(t.obs))

    space = spaces.dict_space(x=spaces.box(-3.0, 3.0, (2,)))
    return walk(reset=reset_both, step=step_both, observation_space=space)


def vector_reward():
    return with_step(
        lambda key, state, action, after, t: (after, t._replace(reward=t.obs))
    )


def terminated_is_a_number():
    return with_step(
        lambda key, state, action, after, t: (
            after,
            t._replace(terminated=t.terminated.astype(jnp.float32)),
        )
    )


def nan_after_steps():
    def change(key, state, action, after, t):
        obs = jnp.where(after["time"] == 20, jnp.nan, t.obs)
        return after, t._replace(obs=obs)

    return with_step(change)


def truncation_is_termination():
    return with_step(
        lambda key, state, action, after, t: (
            after,
            t._replace(
                terminated=t.terminated | t.truncated, truncated=jnp.bool_(False)
            ),
        )
    )


def truncation_late():
    return with_step(
        lambda key, state, action, after, t: (
            after,
            t._replace(truncated=(state["time"] >= LIMIT) & ~t.terminated),
        )
    )


def observed_after_reset():
    def change(key, state, action, after, t):
        fresh, obs = reset(key, Params())
        done = t.terminated | t.truncated
        after = jax.tree.map(lambda a, b: jnp.where(done, a, b), fresh, after)
        return after, t._replace(obs=jnp.where(done, obs, t.obs))

    return with_step(change)


def state_leaks():
    last = [jnp.float32(0.0)]

    def leaking_step(key, state, action, params):
        after, t = step(key, state, action, params)
        if not isinstance(after["x"], jax.core.Tracer):
            last[0] = after["x"]
        return after, t

    def leaking_reset(key, params):
        state, _ = reset(key, params)
        state = {**state, "x": state["x"] + 0.01 * last[0]}
        return state, observe(state)

    return walk(reset=leaking_reset, step=leaking_step)


def time_counted_wrongly():
    return with_step(
        lambda key, state, action, after, t: (
            {**after, "time": state["time"] + 2},
            t,
        )
    )


def invalid_action_accepted():
    def changed(key, state, action, params):
        after, t = step(key, state, action, params)
        x = after["x"] + jnp.where(action > 2, 0.1 * action, 0.0)
        after = {**after, "x": x}
        return after, t._replace(obs=observe(after))

    return walk(step=changed)


def shared_randomness():
    def keyed_reset(key, params):
        state, obs = reset(key, params)
        return {**state, "key": jax.random.key(7)}, obs

    def keyed_step(key, state, action, params):
        own, now = jax.random.split(state["key"])
        plain = {name: state[name] for name in ("x", "time")}
        after, t = step(now, plain, action, params)
        return {**after, "key": own}, t

    return walk(reset=keyed_reset, step=keyed_step)


NAMES = {rule.check: rule.name for rule in check.RULES}

DEFECTS = {
    impure_step: check._step_is_pure,
    impure_reset: check._reset_is_pure,
    key_ignored: check._keys_are_used,
    not_jittable: check._step_traces,
    host_callback: check._no_callbacks,
    structure_changes: check._state_structure,
    shape_changes: check._state_shapes,
    dtype_changes: check._state_dtypes,
    outside_its_space: check._obs_inside,
    leaf_missing: check._obs_leaves,
    vector_reward: check._reward_type,
    terminated_is_a_number: check._flag_types,
    nan_after_steps: check._obs_finite,
    truncation_is_termination: check._time_is_no_termination,
    truncation_late: check._truncation_on_time,
    observed_after_reset: check._true_successor,
    state_leaks: check._no_leak,
    time_counted_wrongly: check._clock_counts,
    invalid_action_accepted: check._invalid_actions,
    shared_randomness: check._copies_differ,
}
"""A broken environment -> the rule that finds the defect."""


def broken(env, num_steps=100):
    return {f.rule: f.problem for f in check_env(env, num_steps) if f.problem}


def counts_as_rewards():
    return with_step(
        lambda key, state, action, after, t: (
            after,
            t._replace(reward=after["time"].astype(jnp.int16)),
        )
    )


@pytest.mark.parametrize("env", [walk, counts_as_rewards])
def test_a_correct_environment_keeps_every_rule(env):
    findings = check_env(env(), 100)
    assert all(f.ran and f.problem is None for f in findings), findings
    assert len({f.rule for f in findings}) == len(findings)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_the_defect_is_caught(defect):
    assert len(DEFECTS) == 20
    problems = broken(defect())
    assert NAMES[DEFECTS[defect]] in problems
    allowed = {NAMES[DEFECTS[defect]]}
    if defect is nan_after_steps:
        allowed |= {NAMES[check._obs_inside]}  # NaN lies in no space
    assert problems.keys() <= allowed, problems


def several_defects():
    """A bool for a Discrete, a number for a flag, a time that becomes a float, a NaN."""

    def observed(state):
        return {"x": observe(state), "flag": state["x"] > 0}

    def broken_step(key, state, action, params):
        after, t = step(key, state, action, params)
        reward = jnp.where(after["time"] > 5, jnp.nan, t.reward)
        done = t.terminated.astype(jnp.int32)
        t = t._replace(obs=observed(after), reward=reward, terminated=done)
        return {**after, "time": after["time"].astype(jnp.float32)}, t

    def observed_reset(key, params):
        state, _ = reset(key, params)
        return state, observed(state)

    space = spaces.dict_space(x=spaces.box(-3.0, 3.0, (2,)), flag=spaces.Discrete(2))
    return walk(reset=observed_reset, step=broken_step, observation_space=space)


def test_what_step_returns_is_looked_at_before_its_parts():
    def step(key, state, action, params):
        return state, jnp.zeros(1), 0.0, False, {}

    findings = {f.rule: f for f in check_env(walk(step=step), 20)}
    wrong = findings[NAMES[check._step_traces]]
    assert wrong.problem == "it returns 5 values" and "TimeStep" in wrong.fix
    assert [f.rule for f in findings.values() if f.problem] == [wrong.rule]


def test_only_an_error_of_tracing_is_answered_with_how_to_trace():
    def typed(key, state, action, params):
        raise KeyError("lenght")

    def branched(key, state, action, params):
        return (state, None) if float(action) > 0 else None

    for step, traced in ((typed, False), (branched, True)):
        findings = {f.rule: f for f in check_env(walk(step=step), 20)}
        found = findings[NAMES[check._step_traces]]
        assert found.problem and ("lax.cond" in found.fix) == traced


def test_all_broken_rules_are_reported_at_once():
    findings = {f.rule: f for f in check_env(several_defects(), 20)}
    checks = (check._state_dtypes, check._obs_types, check._flag_types)
    assert {f.rule for f in findings.values() if f.problem} == {
        NAMES[rule] for rule in checks
    }
    assert not findings[NAMES[check._obs_inside]].ran  # needs what is broken
    assert findings[NAMES[check._keys_are_used]].ran
    types = findings[NAMES[check._obs_types]]
    assert "flag as bool[]" in types.problem and "int32[]" in types.problem
    assert "astype(jnp.int32)" in types.fix and "box" not in types.fix


def test_a_space_that_is_none_leaves_the_other_rules():
    findings = check_env(walk(observation_space={"x": spaces.Discrete(2)}), 20)
    broken = [f for f in findings if f.problem]
    assert [f.rule for f in broken] == [NAMES[check._observation_space]]
    assert "dict_space(x=...)" in broken[0].problem
    ran = {f.rule for f in findings if f.ran}
    assert {NAMES[check._step_traces], NAMES[check._flag_types]} <= ran
    fixed = spaces.box([0.0], [0.0], (1,))
    assert NAMES[check._action_bounds] in broken_rules(walk(action_space=fixed))


def wrong_flag():
    def step_(key, state, action, params):
        after, t = step(key, state, action, params)
        return after, t._replace(terminated=t.terminated.astype(jnp.int32))

    return walk(step=step_)


def wrong_result():
    return walk(step=lambda key, state, action, params: (state, 0.0, False, {}))


@pytest.mark.parametrize(
    ("env", "named"),
    [
        (several_defects, "time: int32 became float32"),
        (wrong_flag, "terminated is int32"),
        (wrong_result, "it returns 4 values"),
        (lambda: walk(observation_space=spaces.box(0, 1, (3,))), "float32[2]"),
        (lambda: walk().replace(params={"name": "left"}), "params.name is 'left'"),
        (lambda: walk().replace(horizon="10"), "horizon is '10'"),
    ],
)
def test_training_refuses_what_the_rules_of_types_do(env, named):
    """Before anything compiles: an integer flag was trained to the end, and then lost."""
    with pytest.raises(InvalidInput, match=re.escape(named)):
        prepare(PPO, tiny(PPO), env())
    assert any(named in problem for problem in broken(env(), 5).values())


def test_a_dictionary_of_actions_is_sampled_leaf_by_leaf():
    space = spaces.dict_space(a=spaces.Discrete(3), b=spaces.box(-1.0, 1.0, (2,)))
    sampled = spaces.sample(space, jax.random.key(0), (5,))
    assert bool(jax.vmap(lambda x: spaces.contains(space, x))(sampled).all())


def broken_rules(env):
    return [f.rule for f in check_env(env, 5) if f.problem and not f.is_warning]


@pytest.mark.parametrize(("shape", "warned"), [((4, 9, 9), True), ((9, 9, 4), False)])
def test_channels_that_come_first_are_warned_of(shape, warned):
    subject = check.Subject(walk(observation_space=spaces.box(0, 1, shape)), 1)
    rule = next(rule for rule in check.RULES if rule.check is check._channels_last)
    finding = check._apply(rule, subject)
    assert (finding.problem is not None) == finding.is_warning == warned
    assert not warned or "jnp.moveaxis(obs, 0, -1)" in finding.fix


def test_an_error_of_the_environment_names_its_line():
    def failing(key, params):
        raise KeyError("gravity")

    problem = {f.rule: f.problem for f in check_env(walk(reset=failing), 5)}
    said = problem[NAMES[check._reset_traces]]
    assert said.startswith("KeyError: 'gravity' (test_check.py, line ")


@pytest.mark.fast_cases("probe/action", "probe/truncation", "probe/masked")
@pytest.mark.parametrize(
    "id", [id for id in env_ids() if id.startswith(("probe/", "goal/"))]
)
def test_our_own_environments_keep_every_rule(id):
    assert broken(make(id), 50) == {}


@pytest.mark.fast_cases("Acrobot-v1")
@pytest.mark.parametrize("env_id", ["Acrobot-v1", "DeepSea-bsuite"])
def test_a_key_that_is_used_and_changes_nothing_is_no_defect(env_id):
    """Noise of size 0, a choice between equal starts: the key is still used."""
    assert not [f.problem for f in check_env(make(env_id), 20) if f.problem]
