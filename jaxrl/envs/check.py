"""Checks of an environment against the contract of `jaxrl.types.Env`, rule by rule.

Every rule is a function that returns a description of the problem, or None. All rules run,
in order, but for those that need one that is broken.
"""

import re
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.core.user_code import find_line
from jaxrl.errors import InvalidInput, shorten
from jaxrl.networks.encoding import is_image
from jaxrl.replay import transitions
from jaxrl.types import Array, Env, PyTree, TimeStep

COPIES = 64
LATE = 1_000_000
"""Number of steps beyond any time limit."""

CLOCKS = {
    "t",
    "time",
    "timestep",
    "time_step",
    "step",
    "steps",
    "step_count",
    "elapsed",
}
LIMITS = re.compile(r"max_(episode_)?steps|max_.*_steps|time_limit|horizon")
SAME_START = 0.5
"""Share of observations that look like the start of an episode above which the check of
the true successor is inconclusive."""


class Finding(NamedTuple):
    """Result of one rule."""

    rule: str
    problem: str | None  # None: the rule holds
    fix: str
    ran: bool = True
    is_warning: bool = False  # the contract is kept, but this is probably a mistake


class Problem(NamedTuple):
    """A problem with a fix of its own."""

    words: str
    fix: str


Check = Callable[["Subject"], str | Problem | None]


class Rule(NamedTuple):
    name: str
    check: Check
    fix: str
    needs: tuple[Check, ...] = ()
    """Checks of rules without which this one cannot run."""
    warns: bool = False


class Subject:
    """An environment, and data from playing it, computed on first use."""

    def __init__(self, env: Env, num_steps: int) -> None:
        self.env, self.num_steps = env, num_steps
        self.key = jax.random.key(0)

    def reset(self, key: Array) -> tuple[PyTree, PyTree]:
        return self.env.reset(key, self.env.params)

    def step(self, key: Array, state: PyTree, action: Any) -> tuple[PyTree, Any]:
        return self.env.step(key, state, action, self.env.params)

    @cached_property
    def action(self) -> PyTree:
        return spaces.zeros(self.env.action_space)

    @cached_property
    def reset_types(self) -> Any:
        """What `reset` returns, as shapes and dtypes; JAX keeps it for the next call."""
        return jax.eval_shape(self.env.reset, self.key, self.env.params)

    @cached_property
    def step_types(self) -> Any:
        state, _ = self.reset_types
        args = (self.key, state, self.action, self.env.params)
        return jax.eval_shape(self.env.step, *args)

    @cached_property
    def reset_jaxpr(self) -> Any:
        return jax.make_jaxpr(lambda key: self.reset(key))(self.key)

    @cached_property
    def step_jaxpr(self) -> Any:
        state, _ = self.start
        return jax.make_jaxpr(lambda *args: self.step(*args))(
            self.key, state, self.action
        )

    @cached_property
    def start(self) -> tuple[PyTree, PyTree]:
        return self.reset(self.key)

    @cached_property
    def starts(self) -> tuple[PyTree, PyTree]:
        """States and observations at the start of 4 episodes for each copy."""
        keys = jax.random.split(jax.random.key(1), 4 * COPIES)
        return jax.jit(jax.vmap(self.reset))(keys)

    @cached_property
    def played(self) -> dict[str, Any]:
        """Steps with random actions in `COPIES` copies: arrays `[T, N, ...]`."""
        return jax.device_get(jax.jit(partial(_play, self))())

    @cached_property
    def clock(self) -> int | None:
        """Index of the leaf of the state that counts steps, recognised by name, or None."""
        state, _ = self.start
        paths = jax.tree_util.tree_flatten_with_path(state)[0]
        for i, (path, leaf) in enumerate(paths):
            name = jax.tree_util.keystr(path[-1:], simple=True) if path else ""
            if _is_count(leaf) and name in CLOCKS:
                return i
        return None

    def with_clock(self, state: PyTree, value: Any) -> PyTree:
        leaves, structure = jax.tree.flatten(state)
        assert self.clock is not None
        leaves[self.clock] = jnp.full_like(leaves[self.clock], value)
        return jax.tree.unflatten(structure, leaves)


def check_env(env: Env, num_steps: int = 1_000) -> list[Finding]:
    """Play an environment and check the rules of the contract.

    Args:
      env: the environment.
      num_steps: the number of steps to play, in `COPIES` copies.

    Returns:
      A finding for each rule, in order.
    """
    subject = Subject(env, num_steps)
    findings: dict[Check, Finding] = {}
    for rule in RULES:
        needed = [findings[check] for check in rule.needs]
        if any(finding.problem or not finding.ran for finding in needed):
            findings[rule.check] = Finding(rule.name, None, rule.fix, ran=False)
        else:
            findings[rule.check] = _apply(rule, subject)
    return list(findings.values())


def require_types(env: Env) -> None:
    """Check, without playing, that an environment returns what its spaces declare.

    Its functions are traced once, which finds what would end a training with an error of
    JAX, or be cast without a word. An error of the user's code is raised as it is.

    Raises:
      InvalidInput: a rule about structures, shapes or dtypes is broken.
    """
    subject = Subject(env, 0)
    of_types = [rule for rule in RULES if rule.check in OF_TYPES]
    for rule in (NUMERIC, *RETURNED, *of_types):
        found = rule.check(subject)
        if found:
            problem, fix = found if isinstance(found, Problem) else (found, rule.fix)
            raise InvalidInput(
                f"{env.id} breaks a rule, {rule.name}: {problem}: {fix}."
            )


def _apply(rule: Rule, subject: Subject) -> Finding:
    try:
        found = rule.check(subject)
    except InvalidInput as error:
        found = str(error)
    except Exception as error:  # any error of the user's code is the finding
        lines = str(error).strip().splitlines() or [""]
        found = f"{type(error).__name__}: {lines[0]}{find_line(error)}"
    problem, fix = found if isinstance(found, Problem) else (found, rule.fix)
    return Finding(rule.name, problem, fix, is_warning=rule.warns and found is not None)


# Spaces


def _observation_space(subject: Subject) -> str | None:
    spaces.check(subject.env.observation_space, "observation_space")
    return None


def _action_space(subject: Subject) -> str | None:
    spaces.check(subject.env.action_space, "action_space")
    return None


def _action_bounds(subject: Subject) -> str | None:
    spaces.check_actions(subject.env.action_space, "action_space")
    return None


def _params(subject: Subject) -> str | None:
    env = subject.env
    numbers = {"params": env.params, "horizon": env.horizon}
    for path, leaf in jax.tree_util.tree_flatten_with_path(numbers)[0]:
        if not _is_numeric(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return f"{name} is {shorten(repr(leaf))}"
    return None


def _is_numeric(x: Any) -> bool:
    if isinstance(x, jax.Array | jax.ShapeDtypeStruct):
        return True
    dtype = np.asarray(x).dtype
    return dtype.kind == "b" or jnp.issubdtype(dtype, np.number)


def _channels_last(subject: Subject) -> Problem | None:
    space = subject.env.observation_space
    if not is_image(space):
        return None
    leaves = jax.tree.leaves(spaces.tree(space))
    channels, height, width = next(x.shape for x in leaves if len(x.shape) == 3)
    if channels >= min(height, width):
        return None
    return Problem(
        f"an image of shape {(channels, height, width)} is read as {channels} x {height} "
        f"pixels with {width} channels",
        "if the channels come first, move them: jnp.moveaxis(obs, 0, -1)",
    )


# Tracing


def _reset_traces(subject: Subject) -> str | Problem | None:
    return _trace(lambda: subject.reset_jaxpr) or _reset_returns(subject)


def _reset_returns(subject: Subject) -> Problem | None:
    return _wrong_result("reset", subject.reset_types, "(state, observation)")


def _step_traces(subject: Subject) -> str | Problem | None:
    return _trace(lambda: subject.step_jaxpr) or _step_returns(subject)


def _step_returns(subject: Subject) -> Problem | None:
    return _wrong_result("step", subject.step_types, "(state, TimeStep)")


OF_TRACING = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What plain Python on traced arrays raises."""


def _trace(make: Callable[[], Any]) -> Problem | None:
    """Trace a function; only an error of tracing is answered with how to avoid it."""
    try:
        str(make())
    except (*OF_TRACING, InvalidInput):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        said = f"{type(error).__name__}: {lines[0]}{find_line(error)}"
        return Problem(said, "see to that line")
    return None


def _wrong_result(name: str, result: Any, wanted: str) -> Problem | None:
    """What is wrong with the structure of what `reset` or `step` returned."""
    is_pair = isinstance(result, tuple) and len(result) == 2
    if is_pair and (name == "reset" or isinstance(result[1], TimeStep)):
        return None
    given = f"{len(result)} values" if isinstance(result, tuple) else "one value"
    if is_pair:
        given = f"(state, {type(result[1]).__name__})"
    return Problem(
        f"it returns {given}",
        f"return {wanted}, with jaxrl.TimeStep(obs, reward, terminated, truncated, info)"
        if name == "step"
        else f"return {wanted}",
    )


def _no_callbacks(subject: Subject) -> str | None:
    for name, jaxpr in (("reset", subject.reset_jaxpr), ("step", subject.step_jaxpr)):
        calls = [p for p in _primitives(jaxpr.jaxpr) if "callback" in p]
        if calls:
            return f"{name} calls the host ({calls[0]})"
    return None


def _reset_is_pure(subject: Subject) -> str | None:
    results = [subject.reset(subject.key) for _ in range(3)]
    if not all(_equal(results[0], other) for other in results[1:]):
        return "reset with the same key gave different results"
    return None


def _step_is_pure(subject: Subject) -> str | None:
    state, _ = subject.start
    results = [subject.step(subject.key, state, subject.action) for _ in range(3)]
    if not all(_equal(results[0], other) for other in results[1:]):
        return "step with the same arguments gave different results"
    return None


def _no_leak(subject: Subject) -> str | None:
    before = subject.reset(subject.key)
    state = before[0]
    for key in jax.random.split(subject.key, 5):
        state, _ = subject.step(key, state, subject.action)
    if not _equal(before, subject.reset(subject.key)):
        return "reset gave another start after some steps than before them"
    return None


# Types


def _state_structure(subject: Subject) -> str | None:
    before, after = _state_types(subject)
    a, b = _structure(before), _structure(after)
    return None if a == b else f"{a} became {b}"


def _state_shapes(subject: Subject) -> str | None:
    return _find_difference(*_state_types(subject), lambda x: x.shape)


def _state_dtypes(subject: Subject) -> str | None:
    return _find_difference(*_state_types(subject), lambda x: x.dtype)


def _state_types(subject: Subject) -> tuple[PyTree, PyTree]:
    return subject.reset_types[0], subject.step_types[0]


def _obs_leaves(subject: Subject) -> str | None:
    expected = _structure(spaces.tree(subject.env.observation_space))
    for name, obs in _observation_types(subject):
        if _structure(obs) != expected:
            return f"{name} gives {_structure(obs)}, the space has {expected}"
    return None


def _obs_types(subject: Subject) -> Problem | None:
    space = subject.env.observation_space
    structure: Any
    paths, structure = jax.tree_util.tree_flatten_with_path(spaces.tree(space))
    words, fixes = [], []
    for name, obs in _observation_types(subject):
        for (path, leaf), x in zip(paths, structure.flatten_up_to(obs), strict=True):
            expected = jax.eval_shape(partial(spaces.zeros, leaf))
            if (x.shape, x.dtype) != (expected.shape, expected.dtype):
                entry = jax.tree_util.keystr(path, simple=True, separator=".")
                words.append(
                    f"{name} gives {entry or 'the observation'} as {_type(x)}, the space "
                    f"has {_type(expected)}"
                )
                fixes.append(_obs_fix(leaf, x))
    if not words:
        return None
    return Problem("; ".join(words), "; ".join(dict.fromkeys(fixes)))


def _obs_fix(leaf: Any, x: Any) -> str:
    """How the space of an observation's leaf and its value are made to agree."""
    if isinstance(leaf, spaces.Discrete):
        return f"a value of Discrete({leaf.n}) is a scalar: x.astype(jnp.{leaf.dtype})"
    if x.shape == leaf.shape:
        return f"x.astype(jnp.{leaf.dtype}), or a space of dtype {x.dtype.name}"
    return f"spaces.box(low, high, {x.shape}, jnp.{x.dtype.name}), or reshape the value"


def _type(x: Any) -> str:
    return f"{x.dtype.name}{list(x.shape)}"


def _observation_types(subject: Subject) -> Iterator[tuple[str, PyTree]]:
    yield "reset", subject.reset_types[1]
    yield "step", subject.step_types[1].obs


def _reward_type(subject: Subject) -> str | None:
    reward = subject.step_types[1].reward
    if reward.shape != ():
        return f"it has shape {reward.shape}"
    if reward.dtype.kind == "c":
        return f"it is {reward.dtype}"
    return None


def _flag_types(subject: Subject) -> str | None:
    step = subject.step_types[1]
    for name in ("terminated", "truncated"):
        flag = getattr(step, name)
        if (flag.shape, flag.dtype) != ((), jnp.bool_):
            return f"{name} is {flag.dtype}{list(flag.shape)}"
    return None


# Randomness


def _keys_are_used(subject: Subject) -> str | None:
    if _ignores_key(subject.reset_jaxpr):
        return "reset draws random numbers, but not from its key"
    if _ignores_key(subject.step_jaxpr) and not _state_keys(subject):
        return "step draws random numbers, but not from its key"
    return None


def _copies_differ(subject: Subject) -> str | None:
    if not _ignores_key(subject.step_jaxpr):
        return None
    for leaf in _state_keys(subject):
        if _all_copies_equal(leaf):
            return "step draws from a key in the state that is the same in every copy"
    return None


def _ignores_key(jaxpr: Any) -> bool:
    """True if a function draws random numbers, but none from its first argument."""
    from_key = [i == 0 for i in range(len(jaxpr.jaxpr.invars))]
    return _draws(jaxpr) and not _draws_from(jaxpr.jaxpr, from_key)


def _draws_from(jaxpr: Any, marked: list[bool]) -> bool:
    """True if a random number is drawn from a value that depends on a marked input."""
    reached = {v for v, mark in zip(jaxpr.invars, marked, strict=True) if mark}
    for equation in jaxpr.eqns:
        marks = [not hasattr(v, "val") and v in reached for v in equation.invars]
        if not any(marks):
            continue
        if equation.primitive.name in DRAWS:
            return True
        for inner in _inner(equation):
            # In loops and branches every input counts as reached.
            same = equation.primitive.name in ("pjit", "jit", "closed_call")
            every_input = [True] * len(inner.invars)
            if _draws_from(inner, marks if same else every_input):
                return True
        reached.update(equation.outvars)
    return False


def _state_keys(subject: Subject) -> list[np.ndarray]:
    """Random keys in the state: `[4 N, ...]`, typed or raw."""
    leaves = [_numbers(x) for x in jax.tree.leaves(subject.starts[0])]
    return [x for x in leaves if x.dtype == np.uint32 and x.shape[1:] in ((2,), (4,))]


# Play


def _obs_inside(subject: Subject) -> str | None:
    inside = subject.played["inside"]
    return None if inside.all() else f"at step {_first(~inside)} of a random episode"


def _obs_finite(subject: Subject) -> str | None:
    finite = subject.played["obs_finite"]
    return None if finite.all() else f"not finite after {_first(~finite)} steps"


def _reward_finite(subject: Subject) -> str | None:
    finite = np.isfinite(subject.played["reward"])
    return None if finite.all() else f"not finite after {_first(~finite)} steps"


def _one_end(subject: Subject) -> str | None:
    both = subject.played["terminated"] & subject.played["truncated"]
    return f"both at step {_first(both)}" if both.any() else None


def _clock_counts(subject: Subject) -> str | None:
    if subject.clock is None:
        return None
    start = int(jax.tree.leaves(subject.start[0])[subject.clock])
    state, _ = subject.step(subject.key, subject.start[0], subject.action)
    after = int(jax.tree.leaves(state)[subject.clock])
    if (start, after) != (0, 1):
        return f"it is {start} at the start and {after} after one step, not 0 and 1"
    return None


def _time_is_no_termination(subject: Subject) -> str | None:
    if subject.clock is None:
        return None
    state, _ = subject.start
    now, late = (
        subject.step(subject.key, s, subject.action)[1]
        for s in (state, subject.with_clock(state, LATE))
    )
    if late.terminated and not now.terminated and _equal(now.obs, late.obs):
        return "late in an episode it is terminated, though the observation is the same"
    return None


def _truncation_on_time(subject: Subject) -> str | None:
    if subject.clock is None:
        return None
    state, _ = subject.start

    def truncates(clock: int) -> bool:
        late = subject.with_clock(state, clock)
        return bool(subject.step(subject.key, late, subject.action)[1].truncated)

    limit = _declared_limit(subject.env)
    if limit is None or not truncates(LATE):
        return None
    low, high = -1, LATE  # not truncated at low, truncated at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if truncates(middle) else (middle, high)
    length = high + 1
    return None if length == limit else f"after {length} steps, the limit is {limit}"


def _declared_limit(env: Env) -> int | None:
    if env.horizon is not None:
        return int(env.horizon)
    paths = jax.tree_util.tree_flatten_with_path(env.params)[0]
    for path, leaf in paths:
        name = jax.tree_util.keystr(path[-1:], simple=True) if path else ""
        if LIMITS.search(name) and np.ndim(leaf) == 0:
            return int(leaf)
    return None


def _true_successor(subject: Subject) -> str | None:
    played = subject.played
    ended = played["terminated"] | played["truncated"]
    if not ended.any():
        return None
    if subject.clock is not None:
        clock = played["clock"]
        if (clock[ended] == 0).all():
            return "the state after the end of an episode is that of a new one"
    like_start = played["in_start_box"]
    ordinary = ~ended
    if ordinary.any() and like_start[ordinary].mean() > SAME_START:
        return None
    if like_start[ended].all() and ordinary.any():
        return "the observation at the end of an episode is that of a new one"
    return None


def _invalid_actions(subject: Subject) -> str | None:
    state, _ = subject.start
    space = subject.env.action_space
    step = jax.jit(lambda action: subject.step(subject.key, state, action))
    if isinstance(space, spaces.Discrete):
        valid = [step(jnp.asarray(a, space.dtype)) for a in range(space.n)]
        for action in (-1, space.n, space.n + 7):
            result = step(jnp.asarray(action, space.dtype))
            if not any(_equal(result, other) for other in valid):
                return f"action {action} acts like none of 0 ... {space.n - 1}"
        return None
    if not isinstance(space, spaces.Box) or not space.bounded:
        return None
    low, high = space.low_array(), space.high_array()
    for outside, bound in ((high + 10 * (high - low), high), (low - 10, low)):
        if not _equal(step(jnp.asarray(outside)), step(jnp.asarray(bound))):
            return "an action beyond a bound acts differently from the bound itself"
    return None


def _goal_rewards(subject: Subject) -> str | None:
    env, goal_reward = subject.env, subject.env.goal_reward
    if goal_reward is None:
        return None
    if not transitions.has_goals(env):
        parts = ", ".join(sorted(transitions.GOAL_KEYS))
        return f"observations are {env.observation_space}, not {parts} with equal goals"
    keys = jax.random.split(subject.key, 4 * COPIES)
    states, _ = jax.jit(jax.vmap(subject.reset))(keys)
    actions = spaces.sample(env.action_space, subject.key, keys.shape)
    _, found = jax.jit(jax.vmap(subject.step))(keys, states, actions)
    of_goals = jax.vmap(lambda *goals: goal_reward(*goals, env.params))
    reward, ends = of_goals(found.obs["achieved_goal"], found.obs["desired_goal"])
    differ = ~np.isclose(found.reward, reward, rtol=1e-5, atol=1e-6)
    if differ.any():
        i = int(np.argmax(differ))
        return (
            f"a step gives {float(found.reward[i]):g}, its goals {float(reward[i]):g}"
        )
    if np.any(ends & ~found.terminated):
        return "the goals end an episode that its step does not"
    return None


TRACED = (_params, _reset_traces, _step_traces)
PURE = (_no_callbacks, _reset_is_pure, _step_is_pure)
TYPED = (
    *(_no_callbacks, _state_structure, _state_shapes, _state_dtypes),
    *(_obs_leaves, _obs_types, _flag_types),
)
"""What other rules need: compiled functions, the same result twice, fixed types."""

NUMERIC = Rule(
    "parameters and horizon are numbers",
    _params,
    "give numbers or arrays, and keep all else in the closure of reset and step",
)
RETURNED = (
    Rule("reset returns a state and an observation", _reset_returns, ""),
    Rule("step returns a state and a TimeStep", _step_returns, ""),
)
OF_TYPES = (
    *(_state_structure, _state_shapes, _state_dtypes),
    *(_obs_leaves, _obs_types, _reward_type, _flag_types),
)
"""What can be checked without playing."""

RULES = (
    Rule(
        "the observation space is one of jaxrl's",
        _observation_space,
        "use spaces.box, spaces.Discrete or spaces.dict_space",
    ),
    Rule(
        "the action space is one of jaxrl's",
        _action_space,
        "use spaces.box, spaces.Discrete or spaces.dict_space",
    ),
    Rule(
        "a policy can choose the actions",
        _action_bounds,
        "use a Discrete, or spaces.box(-1.0, 1.0, shape) and scale the action in step",
        needs=(_action_space,),
    ),
    NUMERIC,
    Rule(
        "images have their channels last",
        _channels_last,
        "jnp.moveaxis(obs, 0, -1)",
        needs=(_observation_space,),
        warns=True,
    ),
    Rule(
        "reset can be compiled",
        _reset_traces,
        "no Python `if` or `float()` on arrays: jnp.where, lax.cond",
        needs=(_params,),
    ),
    Rule(
        "step can be compiled",
        _step_traces,
        "no Python `if` or `float()` on arrays: jnp.where, lax.cond",
        needs=(_action_space, _reset_traces),
    ),
    Rule(
        "nothing calls the host",
        _no_callbacks,
        "remove pure_callback, io_callback and debug prints",
        needs=TRACED,
    ),
    Rule(
        "reset is pure",
        _reset_is_pure,
        "draw all randomness from the key",
        needs=(_no_callbacks,),
    ),
    Rule(
        "step is pure",
        _step_is_pure,
        "keep all that changes in the state",
        needs=(_no_callbacks,),
    ),
    Rule(
        "the state keeps its structure",
        _state_structure,
        "return from step the structure that reset returns",
        needs=TRACED,
    ),
    Rule(
        "the state keeps its shapes",
        _state_shapes,
        "use fixed shapes",
        needs=(_state_structure,),
    ),
    Rule(
        "the state keeps its dtypes",
        _state_dtypes,
        "use fixed dtypes: jnp.float32(...), .astype(x.dtype)",
        needs=(_state_structure,),
    ),
    Rule(
        "episodes are independent",
        _no_leak,
        "let reset depend on key and params alone",
        needs=(*PURE, _state_structure, _state_shapes, _state_dtypes),
    ),
    Rule(
        "every leaf of the observation is in its space",
        _obs_leaves,
        "use spaces.dict_space with the same names",
        needs=(_observation_space, *TRACED),
    ),
    Rule(
        "the observation has its space's shape and dtype",
        _obs_types,
        "use spaces.box(low, high, shape, dtype)",
        needs=(_obs_leaves,),
    ),
    Rule("the reward is a real scalar", _reward_type, "jnp.float32(...)", needs=TRACED),
    Rule(
        "terminated and truncated are bool scalars",
        _flag_types,
        "use jnp.bool_(...)",
        needs=TRACED,
    ),
    Rule(
        "randomness comes from the key",
        _keys_are_used,
        "use the key of the call",
        needs=(_no_callbacks,),
    ),
    Rule(
        "copies have independent randomness",
        _copies_differ,
        "keep no key in the state, or derive it from the key of reset",
        needs=(_no_callbacks,),
    ),
    Rule(
        "observations lie in their space",
        _obs_inside,
        "widen the bounds, or clip",
        needs=TYPED,
    ),
    Rule(
        "observations are finite",
        _obs_finite,
        "find the division or overflow",
        needs=TYPED,
    ),
    Rule(
        "rewards are finite",
        _reward_finite,
        "find the division or overflow",
        needs=(*TYPED, _reward_type),
    ),
    Rule(
        "an episode is terminated or truncated, not both",
        _one_end,
        "return truncated & ~terminated",
        needs=TYPED,
    ),
    Rule(
        "time is counted from 0 by 1",
        _clock_counts,
        "use time 0 in reset, time + 1 in step",
        needs=(*PURE, *TYPED),
    ),
    Rule(
        "a time limit truncates",
        _time_is_no_termination,
        "set Env.horizon or truncated instead of terminated, or observe the time",
        needs=(*PURE, *TYPED),
    ),
    Rule(
        "truncation comes on time",
        _truncation_on_time,
        "compare the number of steps including this one: time + 1 >= limit",
        needs=(*PURE, *TYPED),
    ),
    Rule(
        "the last observation is the true successor",
        _true_successor,
        "do not reset in step; rollouts do it",
        needs=TYPED,
    ),
    Rule(
        "an action outside its space acts like one inside",
        _invalid_actions,
        "jnp.clip the action",
        needs=(*PURE, *TYPED, _action_bounds),
    ),
    Rule(
        "rewards are those of the goals",
        _goal_rewards,
        "compute reward and terminated of the step with goal_reward too",
        needs=(*PURE, *TYPED, _action_bounds),
    ),
)


def _play(subject: Subject) -> dict[str, Any]:
    env = subject.env
    start_obs = jax.tree.leaves(subject.starts[1])
    low = [_as_float(x).min(0) for x in start_obs]
    high = [_as_float(x).max(0) for x in start_obs]

    def in_box(obs: PyTree) -> Array:
        leaves = [_as_float(x) for x in jax.tree.leaves(obs)]
        inside = [
            ((x >= a) & (x <= b)).all()
            for x, a, b in zip(leaves, low, high, strict=True)
        ]
        return jnp.stack(inside).all()

    def all_finite(obs: PyTree) -> Array:
        leaves = [jnp.isfinite(_as_float(x)).all() for x in jax.tree.leaves(obs)]
        return jnp.stack(leaves).all()

    def one(carry: tuple, key: Array) -> tuple[tuple, dict[str, Array]]:
        state, first = carry
        key_action, key_step = jax.random.split(key)
        action = spaces.sample(env.action_space, key_action)
        after, step = subject.step(key_step, state, action)
        done = step.terminated | step.truncated
        clock = 0
        if subject.clock is not None:
            clock = jax.tree.leaves(after)[subject.clock]
        row = {
            "inside": spaces.contains(env.observation_space, step.obs),
            "obs_finite": all_finite(step.obs),
            "reward": step.reward,
            "terminated": step.terminated,
            "truncated": step.truncated,
            "clock": jnp.asarray(clock),
            "in_start_box": in_box(step.obs),
        }
        state = jax.tree.map(lambda x, y: jnp.where(done, x, y), first, after)
        return (state, first), row

    def copy(key: Array) -> dict[str, Array]:
        key_reset, key_steps = jax.random.split(key)
        state, _ = subject.reset(key_reset)
        keys = jax.random.split(key_steps, subject.num_steps)
        return jax.lax.scan(one, (state, state), keys)[1]

    rows = jax.vmap(copy)(jax.random.split(jax.random.key(2), COPIES))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in _inner(equation):
            yield from _primitives(inner)


def _inner(equation: Any) -> Iterator[Any]:
    """The jaxprs of a call, a loop or a branch."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if hasattr(inner, "eqns"):
                yield inner
            elif hasattr(inner, "jaxpr"):
                yield inner.jaxpr


DRAWS = ("random_bits", "threefry2x32")


def _draws(jaxpr: Any) -> bool:
    return any(name in DRAWS for name in _primitives(jaxpr.jaxpr))


def _is_count(leaf: Any) -> bool:
    return np.ndim(leaf) == 0 and jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.integer)


def _numbers(x: Any) -> np.ndarray:
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def _as_float(x: Any) -> Array:
    return jnp.asarray(x).astype(jnp.float32)


def _equal(a: PyTree, b: PyTree) -> bool:
    """True if two trees are equal bit for bit, apart from NaN."""
    if _structure(a) != _structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(_same(jnp.asarray(x), jnp.asarray(y)) for x, y in pairs)


def _same(a: Array, b: Array) -> bool:
    x, y = _numbers(a), _numbers(b)
    nan = np.issubdtype(x.dtype, np.floating)
    return x.shape == y.shape and np.array_equal(x, y, equal_nan=nan)


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree)


def _all_copies_equal(tree: PyTree) -> bool:
    leaves = [_numbers(jnp.asarray(x)) for x in jax.tree.leaves(tree)]
    return all((x == x[:1]).all() for x in leaves)


def _find_difference(a: PyTree, b: PyTree, aspect: Callable[[Any], Any]) -> str | None:
    paths = jax.tree_util.tree_flatten_with_path(a)[0]
    for (path, x), y in zip(paths, jax.tree.leaves(b), strict=True):
        if aspect(x) != aspect(y):
            name = jax.tree_util.keystr(path, simple=True, separator=".") or "it"
            return f"{name}: {aspect(x)} became {aspect(y)}"
    return None


def _first(bad: np.ndarray) -> int:
    """Number of the first bad step, counted from 1."""
    return int(np.argwhere(bad)[0][0]) + 1
