"""What a sweep is, and the runs that it becomes.

Settings that differ in numbers only are data of one program; others are grouped, one
program a group. Members run in blocks that fit into the memory.
"""

import dataclasses
import importlib.util
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxrl.core import config as configs
from jaxrl.core import distributed, files, variants
from jaxrl.core.config import option
from jaxrl.core.variants import Variant
from jaxrl.errors import InvalidInput, count_noun, install_command, require
from jaxrl.runs.artifact import ENV, Overrides, map_paths, variant
from jaxrl.runs.experiment import (
    Experiment,
    as_experiment,
    describe,
    experiment_flags,
    read_description,
    resolve,
)
from jaxrl.sweeps import space
from jaxrl.sweeps.space import Choices, Domain, Range, Sampler, Space
from jaxrl.training import footprint, warm_start
from jaxrl.training.loop import num_iterations, prepare
from jaxrl.types import Algorithm

Scheduler = Literal["none", "halving", "pbt"]


@dataclass(frozen=True)
class Sweep:
    """What is trained, with which settings, and how they are chosen.

    Flags, checks, help and `sweep.json` follow from the fields.
    """

    experiment: Experiment = option(flag=None)
    """What all have in common; `num_seeds` agents are trained with each setting."""
    space: Space = option(flag=None)
    """What is swept, by name: "learning_rate", "env.gravity"."""
    sampler: Sampler = option("grid")
    """grid for all combinations, random or loguniform for random ones, optuna for what
    Optuna proposes."""
    trials: int | None = option(None, low=1)
    """How many settings; none for all of a grid."""
    scheduler: Scheduler = option("none")
    """none: train all to the end; halving: keep the better half again and again; pbt: let
    the worst copy the best and change."""
    block: int | None = option(None, low=1)
    """Agents that are trained at a time; none, or auto, for as many as fit into the
    memory."""
    batch: int | None = option(None, low=1)
    """Settings that Optuna proposes at a time; none for a fifth of the trials."""
    shard: tuple[int, int] | None = option(None, separator="/")
    """i/n: only every n-th setting, from the i-th of 0, ..., n - 1."""
    confirm_seeds: int = option(0, low=0)
    """Fresh seeds with which the best setting is trained again."""


class Block(NamedTuple):
    """Agents that are trained together: a run folder."""

    folder: Path
    experiment: Experiment
    indices: list[int]  # of its settings among those of the sweep


def settings_of(sweep: Sweep) -> list[tuple[int, Overrides]]:
    """The numbered settings of this shard; of Optuna none are known beforehand."""
    if sweep.sampler == "grid":
        chosen = space.grid(sweep.space)
    elif sweep.sampler == "optuna":
        return []
    else:
        seed = sweep.experiment.seed
        chosen = space.draw(sweep.space, sweep.sampler, sweep.trials or 1, seed)
    shard, shards = sweep.shard or (0, 1)
    return list(enumerate(chosen))[shard::shards]


def blocks(
    sweep: Sweep, folder: Path, numbered: Sequence[tuple[int, Overrides]]
) -> list[Block]:
    """The runs that train these settings, programs apart and `sweep.block` at a time."""
    experiment = sweep.experiment
    if experiment.init_from is not None and experiment.init_agent is None:
        # By place they would depend on how seeds and settings are cut into blocks.
        first = warm_start.first_agent(experiment.init_from)
        experiment = replace(experiment, init_agent=first)
    groups: dict[Any, list[tuple[int, Overrides]]] = {}
    for index, overrides in numbered:
        config, env = both = variant_of(experiment, overrides)
        plan = experiment.algorithm.plan(config, env)
        kind = variants.program(both), num_iterations(plan, config.total_steps)
        groups.setdefault(kind, []).append((index, overrides))
    found: list[Block] = []
    for members in groups.values():
        traced = _traced_names(sweep, [overrides for _, overrides in members])
        config, _ = variant_of(experiment, members[0][1])
        params = env_values(members[0][1])
        for part, seeds in _parts(sweep, members):
            count = len(part) * len(seeds)
            devices = experiment.num_devices
            run = replace(
                experiment,
                # A remainder that they cannot divide uses fewer.
                num_devices=None if count % (devices or 1) else devices,
                explored=_explored(sweep),
                config=config,
                env_params=experiment.env_params | params,
                overrides=[overrides for _, overrides in part],
                traced=traced,
                seed=seeds.start,
                num_seeds=len(seeds),
            )
            name = folder / f"{len(found):03d}"
            found.append(Block(name, run, [index for index, _ in part]))
    return found


def _explored(sweep: Sweep) -> dict[str, Sequence[float]]:
    """What pbt may change, within the limits of the space."""
    if sweep.scheduler != "pbt":
        return {}
    found: dict[str, Sequence[float]] = {}
    for name, domain in sweep.space.items():
        if isinstance(domain, space.Range):
            found[name] = [domain.low, domain.high]
        else:
            found[name] = [min(domain.values), max(domain.values)]
    return found


def _parts(
    sweep: Sweep, members: list[tuple[int, Overrides]]
) -> Iterator[tuple[list[tuple[int, Overrides]], range]]:
    """Settings and seeds of each block: even shares that the devices can divide."""
    experiment = sweep.experiment
    seeds = range(experiment.seed, experiment.seed + experiment.num_seeds)
    most = sweep.block or len(members) * len(seeds)
    if sweep.scheduler == "pbt":  # one population, on as many devices as divide it
        yield members, seeds
        return
    devices = len(jax.devices())
    if most < len(seeds):
        size = _even(len(seeds), most, devices)
        for setting in members:
            for start in range(0, len(seeds), size):
                yield [setting], seeds[start : start + size]
        return
    unit = devices // np.gcd(devices, len(seeds))
    size = _even(len(members), most // len(seeds), int(unit))
    for start in range(0, len(members), size):
        yield members[start : start + size], seeds


def _even(count: int, most: int, unit: int) -> int:
    """The size of parts of `count`, at most `most`: alike, and whole units if possible."""
    parts = -(-count // most)
    size = -(-count // parts)
    up, down = -(-size // unit) * unit, size // unit * unit
    return up if up <= min(most, count) else down or size


def _traced_names(sweep: Sweep, settings: Sequence[Overrides]) -> list[str]:
    """The numbers that are data of each agent, the same in all blocks of a program."""
    pairs = [variant_of(sweep.experiment, overrides) for overrides in settings]
    swept = {f"config/{name}" for name in sweep.space} & variants.numbers(
        pairs[0]
    ).keys()
    differ = {name for x in pairs for name in variants.differing(pairs[0], x)}
    return sorted(swept | differ)


def variant_of(experiment: Experiment, overrides: Overrides) -> Variant:
    """Config and environment of one setting."""
    given = (experiment.algorithm, experiment.config, experiment.environment)
    return variant(*given, experiment.env_params, overrides)


def env_values(overrides: Overrides) -> dict[str, Any]:
    return {n[len(ENV) :]: x for n, x in overrides.items() if n.startswith(ENV)}


def rungs(count: int) -> list[tuple[int, float]]:
    """Of halving: how many settings, and to which share of the run they are trained.

    There are log2(count) rungs, rounded up: the last one is of two settings.
    """
    rungs = max(1, int(np.ceil(np.log2(count))))
    return [(-(-count // 2**r), 2.0 ** (r + 1 - rungs)) for r in range(rungs)]


def batch_size(sweep: Sweep) -> int:
    """Settings that Optuna proposes at a time."""
    trials = sweep.trials or 1
    return min(sweep.batch or max(1, -(-trials // 5)), trials)


def check(sweep: Sweep) -> None:
    """Raise `InvalidInput` for all that can be known beforehand."""
    experiment = sweep.experiment
    configs.check(sweep)
    require(
        (sweep.trials is None) == (sweep.sampler == "grid"),
        f"trials = {sweep.trials}: sampler = {sweep.sampler!r} "
        + ("tries the whole grid." if sweep.sampler == "grid" else "needs a number."),
    )
    require(
        not experiment.has_variants,
        "overrides: a sweep makes them itself, from its space.",
    )
    if sweep.shard is not None:
        shard, shards = sweep.shard
        require(
            0 <= shard < shards,
            f"shard = {shard}/{shards}: must be 0/{shards} to {shards - 1}/{shards}.",
        )
        require(
            sweep.sampler != "optuna" and sweep.scheduler == "none",
            "shard: the settings of Optuna, and those that halving or pbt keeps, follow "
            "from all results: they cannot be divided.",
        )
    require(
        sweep.shard is None or sweep.confirm_seeds == 0,
        "confirm_seeds: a shard does not know the best setting of all: train it after "
        "jaxrl merge.",
    )
    require(
        sweep.sampler != "optuna" or sweep.scheduler == "none",
        f"scheduler = {sweep.scheduler!r} with sampler = 'optuna': choose one of them.",
    )
    require(
        experiment.stop_return is None,
        f"stop_return = {experiment.stop_return}: the settings of a sweep are compared "
        f"after equally many steps; try scheduler = halving.",
    )
    # The devices are those of all agents, not of one setting's.
    configs.check(experiment)
    resolve(replace(experiment, num_devices=None, parallel="auto"))
    for name, domain in sweep.space.items():
        _check_domain(sweep, name, domain)
    if sweep.scheduler == "pbt":
        _check_pbt(sweep)
    examples = [overrides for _, overrides in settings_of(sweep)]
    if sweep.sampler == "optuna":  # leaves out by itself what cannot be trained
        every = _examples(sweep)
        examples = [x for x in every if _possible(experiment, x)] or every
    require(bool(examples), f"shard = {sweep.shard}: there are not so many settings.")
    for overrides in examples:
        prepare(experiment.algorithm, *variant_of(experiment, overrides))


def _possible(experiment: Experiment, overrides: Overrides) -> bool:
    try:
        prepare(experiment.algorithm, *variant_of(experiment, overrides))
        return True
    except InvalidInput:
        return False


def propose(sweep: Sweep, rounds: Sequence[Any], count: int) -> list[Overrides]:
    """The next settings that Optuna proposes; see `space.propose`."""
    possible = partial(_possible, sweep.experiment)
    return space.propose(sweep.space, sweep.experiment.seed, rounds, count, possible)


def _check_domain(sweep: Sweep, name: str, domain: space.Domain) -> None:
    """Both ends of a range must be possible; a choice may depend on the others."""
    if isinstance(domain, space.Choices):
        return
    kinds = configs.field_types(sweep.experiment.algorithm.Config)
    require(
        kinds.get(name) is not int,
        f"{name} = {domain.low}:{domain.high}: it is a whole number, give a list.",
    )
    for end in (domain.low, domain.high):
        variant_of(sweep.experiment, {name: end})
    if sweep.sampler == "optuna":
        require(
            importlib.util.find_spec("optuna") is not None,
            f"sampler = optuna: it is not installed: {install_command('optuna')}.",
        )


def _check_pbt(sweep: Sweep) -> None:
    require(
        sweep.confirm_seeds == 0,
        "confirm_seeds: pbt finds no setting that could be trained again, it changes "
        "them while it trains.",
    )
    kinds = configs.field_types(sweep.experiment.algorithm.Config)
    for name in sweep.space:
        require(
            kinds.get(name) in (float, float | None) and name != "total_steps",
            f"{name}: pbt changes hyper-parameters that are floats, while they train.",
        )
        domain = sweep.space[name]
        require(
            isinstance(domain, space.Range) or None not in domain.values,
            f"{name}: pbt cannot change a number to none.",
        )
    require(
        sweep.experiment.num_seeds == 1,
        f"num_seeds = {sweep.experiment.num_seeds}: with pbt every setting is one agent; "
        f"repeat the sweep with another seed.",
    )
    members = len(settings_of(sweep))
    require(
        members > 1 and sweep.block in (None, members),
        f"pbt needs several agents in one block, there are {members} settings and "
        f"block = {sweep.block}.",
    )


def with_block(sweep: Sweep) -> Sweep:
    """The sweep with a number of agents at a time that fits into the memory."""
    numbered = settings_of(sweep)
    experiment = sweep.experiment
    count = experiment.num_seeds * (len(numbered) or batch_size(sweep))
    if sweep.block is not None or sweep.scheduler == "pbt":
        return replace(sweep, block=min(sweep.block or count, count))
    kinds: dict[Any, Variant] = {}
    known = [overrides for _, overrides in numbered]
    for overrides in known or filter(partial(_possible, experiment), _examples(sweep)):
        both = variant_of(experiment, overrides)
        kinds.setdefault(variants.program(both), both)
    most = min(
        footprint.most_members(experiment.algorithm, *both, count)
        for both in kinds.values()
    )
    return replace(sweep, block=distributed.least(most))


def _examples(sweep: Sweep) -> list[Overrides]:
    """Some settings of a space of which none are known beforehand."""
    return space.draw(sweep.space, "optuna", 8, sweep.experiment.seed)


def summarize(sweep: Sweep) -> str:
    """How many agents, programs and runs, for a person, before anything compiles."""
    experiment, numbered = sweep.experiment, settings_of(sweep)
    count = len(numbered) or sweep.trials or 1
    lines = [
        f"sweep of {experiment.algorithm.name} on {experiment.env}: "
        f"{count_noun(count, 'setting')} of {', '.join(sweep.space)} x "
        f"{count_noun(experiment.num_seeds, 'seed')} = "
        f"{count_noun(count * experiment.num_seeds, 'agent')}"
    ]
    if numbered:
        found = blocks(sweep, Path(), numbered)
        programs = {variants.program(variant_of(experiment, x)) for _, x in numbered}
        sizes = sorted({block.experiment.num_members for block in found}, reverse=True)
        lines.append(
            f"{count_noun(len(programs), 'program')}, {count_noun(len(found), 'block')} of "
            f"{' or '.join(map(str, sizes))} agents"
        )
    if sweep.scheduler == "halving":
        steps = [f"{n} to {share:.3g}" for n, share in rungs(count)]
        lines.append(f"halving, settings to a share of the run: {', '.join(steps)}")
    if sweep.sampler == "optuna":
        lines.append(f"Optuna proposes {batch_size(sweep)} settings at a time")
    return "\n".join(lines)


def described(
    sweep: Sweep, change: Callable[[str], str] = lambda path: path
) -> dict[str, Any]:
    """The sweep as JSON, which `read_sweep` reads; `change` is given every path in it."""
    experiment = describe(sweep.experiment, change)
    domains = _map_domains(sweep.experiment.algorithm, sweep.space, change)
    return configs.to_dict(sweep) | {
        "experiment": experiment,
        "space": space.written(domains),
    }


def _map_domains(
    algorithm: Algorithm, domains: Space, change: Callable[[str], str]
) -> Space:
    """A space with the paths among its choices changed."""

    def mapped(name: str, value: Any) -> Any:
        return map_paths(algorithm, {"overrides": [{name: value}]}, change)[
            "overrides"
        ][0][name]

    return {
        name: Choices(tuple(mapped(name, x) for x in domain.values))
        if isinstance(domain, Choices)
        else domain
        for name, domain in domains.items()
    }


def read_sweep(
    folder: Path, env: str | None = None, algorithm: Algorithm | None = None
) -> Sweep:
    """The sweep of a folder, from its `sweep.json`.

    Raises:
      InvalidInput: there is none, or not one of this version of jaxrl.
    """

    def build(content: dict[str, Any], path: Path) -> Sweep:
        about = content.pop("experiment")
        domains, shard = space.read(content.pop("space")), content.pop("shard")
        experiment = as_experiment(about, path, env, algorithm)
        change = partial(files.locate, path.parent)
        domains = _map_domains(experiment.algorithm, domains, change)
        shard = tuple(shard) if shard else None
        sweep = Sweep(experiment, domains, shard=shard, **content)
        check(sweep)
        return sweep

    return read_description(folder, "sweep.json", "jaxrl sweep", build)


def sweep_command(sweep: Sweep) -> str:
    """The command line that sweeps this; what is at its default is left out."""
    words = ["jaxrl", "sweep", sweep.experiment.algorithm.name, "--grid"]
    words += [f"{name}={_written(domain)}" for name, domain in sweep.space.items()]
    words += configs.flags_of(sweep, leave_out=["block"])  # follows from the memory
    on_nan = sweep.experiment.on_nan
    others = dataclasses.replace(sweep.experiment, on_nan=Experiment.on_nan)
    words += experiment_flags(others)
    if on_nan != "continue":
        words += ["--on-nan", on_nan]
    return shlex.join(words)


def _written(domain: Domain) -> str:
    if isinstance(domain, Range):
        return f"{domain.low}:{domain.high}" + ":log" * domain.log
    return ",".join(x if isinstance(x, str) else json.dumps(x) for x in domain.values)
