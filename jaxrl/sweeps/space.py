"""Which settings to try: all of a grid, random ones, or what Optuna proposes.

A space is a dict from names ("learning_rate", "env.gravity") to domains. The same space,
sampler and seed give the same settings, so a sweep that is resumed finds its own again.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import numpy as np

from jaxrl import networks
from jaxrl.core import files
from jaxrl.core.config import check_value
from jaxrl.errors import InvalidInput, install_command, require


class Choices(NamedTuple):
    """One of these values."""

    values: tuple[Any, ...]


class Range(NamedTuple):
    """A number between two, uniform, or uniform in its logarithm."""

    low: float
    high: float
    log: bool = False


Domain = Choices | Range
Space = dict[str, Domain]
Sampler = Literal["grid", "random", "loguniform", "optuna"]


def as_space(space: Mapping[str, Any]) -> Space:
    """A space in which lists stand for `Choices`.

    Raises:
      InvalidInput: a domain is empty, or a range is none.
    """
    require(
        isinstance(space, Mapping) and len(space) > 0,
        f"space = {space!r}: must name what is swept, such as "
        f"{{'learning_rate': [1e-4, 1e-3]}}.",
    )
    return {name: _domain(name, domain) for name, domain in space.items()}


def _domain(name: str, domain: Any) -> Domain:
    if isinstance(domain, Range):
        for bound in ("low", "high"):
            check_value(f"{name}: {bound}", float, getattr(domain, bound))
        require(
            domain.low < domain.high,
            f"{name} = {domain.low}:{domain.high}: the first must be the smaller one.",
        )
        require(
            not domain.log or domain.low > 0,
            f"{name} = {domain.low}:{domain.high}:log: a logarithm needs numbers above 0.",
        )
        return domain
    values = domain.values if isinstance(domain, Choices) else domain
    require(
        isinstance(values, list | tuple | np.ndarray) and len(values) > 0,
        f"{name} = {domain!r}: give a list of values, or a Range.",
    )
    plain = [_plain(x) for x in values]
    require(
        len({json.dumps(x) for x in plain}) == len(plain),
        f"{name} = {plain}: a value stands there twice.",
    )
    return Choices(tuple(plain))


def _plain(value: Any) -> Any:
    """A choice as JSON has it: numbers of numpy, and networks as what describes them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, nn.Module | networks.Body):
        return networks.Network.to_plain(value)
    return value


def parse(text: str) -> tuple[str, Domain]:
    """`NAME=a,b,c`, `NAME=low:high` or `NAME=low:high:log`, from the command line.

    A value that is a list is written in brackets: `hidden_sizes=[64,64],[128]`.
    """
    name, equals, values = text.partition("=")
    require(
        bool(name and equals and values),
        f"grid: {text!r} is not NAME=VALUE,VALUE or NAME=LOW:HIGH.",
    )
    name = name.replace("-", "_")
    parts = values.split(":")
    if len(parts) in (2, 3) and all(map(_is_number, parts[:2])):
        require(
            len(parts) == 2 or parts[2] in ("log", "linear"),
            f"grid: {text!r} ends in {parts[-1]!r}: write NAME=LOW:HIGH:log.",
        )
        low, high = (parse_value(part) for part in parts[:2])
        return name, Range(low, high, parts[2:] == ["log"])
    return name, Choices(tuple(parse_value(part) for part in _split(values)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _split(text: str) -> list[str]:
    """At the commas that are not inside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


WORDS: dict[str, Any] = {"True": True, "False": False, "None": None, "none": None}
"""Words of the command line that are no JSON."""


def parse_value(text: str) -> Any:
    """A value of the command line: JSON, one of `WORDS`, or text."""
    try:
        return files.parse_json(text, "a value")
    except files.Unreadable:
        if _is_number(text):
            return float(text)
        return WORDS.get(text, text)


def written(space: Space) -> dict[str, Any]:
    """The space as JSON: a list of choices, or a table for a range."""
    return {
        name: list(domain.values) if isinstance(domain, Choices) else domain._asdict()
        for name, domain in space.items()
    }


def read(space: Mapping[str, Any]) -> Space:
    """What `written` wrote."""
    return as_space(
        {n: Range(**x) if isinstance(x, Mapping) else x for n, x in space.items()}
    )


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination, the last name changing fastest.

    Raises:
      InvalidInput: a range has no list of values.
    """
    for name, domain in space.items():
        require(
            isinstance(domain, Choices),
            f"{name} is a range: a grid needs values; try sampler = random with trials.",
        )
    values = [domain.values for domain in space.values() if isinstance(domain, Choices)]
    return [dict(zip(space, row, strict=True)) for row in itertools.product(*values)]


def draw(
    space: Space, sampler: Sampler, trials: int, seed: int
) -> list[dict[str, Any]]:
    """`trials` independent settings; "loguniform" makes every range logarithmic.

    Without a range they are different ones of the grid.

    Raises:
      InvalidInput: the grid has not so many.
    """
    rng = np.random.default_rng(seed)
    if all(isinstance(domain, Choices) for domain in space.values()):
        every = grid(space)
        require(
            trials <= len(every) or sampler == "optuna",
            f"trials = {trials}: there are {len(every)} settings, try sampler = grid.",
        )
        return [every[i] for i in rng.permutation(len(every))[:trials]]
    return [
        {name: _drawn(name, domain, sampler, rng) for name, domain in space.items()}
        for _ in range(trials)
    ]


def _drawn(name: str, domain: Domain, sampler: Sampler, rng: Any) -> Any:
    if isinstance(domain, Choices):
        return domain.values[int(rng.integers(len(domain.values)))]
    if not (domain.log or sampler == "loguniform"):
        return float(rng.uniform(domain.low, domain.high))
    require(
        domain.low > 0,
        f"{name} = {domain.low}:{domain.high}: loguniform needs numbers above 0.",
    )
    return float(np.exp(rng.uniform(math.log(domain.low), math.log(domain.high))))


TRIES = 100
"""Proposals for each setting that is wanted, of which one must be possible."""


def propose(
    space: Space,
    seed: int,
    rounds: Sequence[tuple[list[dict[str, Any]], list[float | None]]],
    count: int,
    possible: Callable[[dict[str, Any]], bool] = lambda own: True,
) -> list[dict[str, Any]]:
    """`count` settings that Optuna's TPE proposes after the rounds so far.

    Args:
      space: what is searched.
      seed: of the sampler.
      rounds: settings and their scores, None for one that failed; higher is better.
      count: how many.
      possible: whether a setting can be trained; one that cannot is told to be a failure,
        and another one asked for.

    The study lives as long as this call: it is asked and told all rounds again, which
    with the same seed leads to the same state.

    Raises:
      InvalidInput: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise InvalidInput(
            f"sampler = optuna: it is not installed: {install_command('optuna')}."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {n: _distribution(optuna, domain) for n, domain in space.items()}

    failed = optuna.trial.TrialState.FAIL

    def own(trial: Any) -> dict[str, Any]:
        return {n: _read(space[n], x) for n, x in trial.params.items()}

    def ask(number: int) -> list[Any]:
        found: list[Any] = []
        for _ in range(TRIES * number):
            trial = study.ask(distributions)
            if possible(own(trial)):
                found.append(trial)
            else:
                study.tell(trial, state=failed)
            if len(found) == number:
                return found
        raise InvalidInput(
            f"space: of {TRIES * number} settings that Optuna proposed {len(found)} can "
            f"be trained: leave out values that do not go together."
        )

    for settings, scores in rounds:
        for trial, score in zip(ask(len(settings)), scores, strict=True):
            if score is None:
                study.tell(trial, state=failed)
            else:
                study.tell(trial, score)
    return list(map(own, ask(count)))


def _distribution(optuna: Any, domain: Domain) -> Any:
    if isinstance(domain, Range):
        return optuna.distributions.FloatDistribution(*domain[:2], log=domain.log)
    # By number: Optuna's categories cannot be lists.
    return optuna.distributions.CategoricalDistribution(range(len(domain.values)))


def _read(domain: Domain, value: Any) -> Any:
    return domain.values[value] if isinstance(domain, Choices) else value
