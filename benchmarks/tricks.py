"""Micro-benchmarks of each optimisation of the core, against the plain version.

    python -m benchmarks.tricks

Each pair is compiled, run alternately in one process, and its medians are compared. Writes
results/tricks.json, the source of the numbers in docs/performance.md and in comments of the
code. `--learning` trains PPO with the sort-free shuffle and with a sorted permutation
instead, into results/shuffles.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.speed.cases import CASES
from benchmarks.speed.cases import PPO as PPO_CONFIG
from jaxrl import PPO, evaluate_population, make, optim, train
from jaxrl.acting import in_blocks
from jaxrl.algorithms import ppo
from jaxrl.core import minibatches
from jaxrl.core.config import with_floats
from jaxrl.core.minibatches import random_permutation
from jaxrl.core.prng import key
from jaxrl.networks.product import matrix_product
from jaxrl.runs.experiment import commit, versions
from jaxrl.statistics import bootstrap_difference
from jaxrl.training import loop, population
from jaxrl.training.devices import use_all_cores

RESULTS = Path(__file__).parent / "results"
Pair = tuple[Callable, Callable, Any, Any, int]
"""Optimised and plain version, an argument for each, and iterations of the inner loop."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--learning", action="store_true")
    learn = parser.parse_args().learning
    use_all_cores(16 if learn else None)
    if learn:
        write("shuffles.json", {"rows": learning()})
        return
    rows = {}
    for name, pair in pairs().items():
        with_it, plain = compare(*pair)
        rows[name] = {"with_us": with_it, "plain_us": plain, "ratio": plain / with_it}
        print(f"{name:58} {with_it:10.1f} us, plain {plain:10.1f} us", flush=True)
    write("tricks.json", {"rows": rows})


def write(name: str, results: dict[str, Any]) -> None:
    about = {"commit": commit(), "versions": versions(), "device": device()}
    text = json.dumps(about | results, indent=1) + "\n"
    (RESULTS / name).write_text(text, encoding="utf-8")


def table(rows: dict[str, Any]) -> str:
    lines = ["| optimisation | with it | without | gain |", "|---|---|---|---|"]
    for name, row in rows.items():
        times = f"{row['with_us']:.1f} | {row['plain_us']:.1f} | {row['ratio']:.2f}"
        lines.append(f"| {name} | {times} |")
    return "\n".join(lines) + "\n"


def device() -> str:
    return jax.devices()[0].device_kind


def compare(
    trick: Callable, plain: Callable, x: Any, y: Any, turns: int
) -> tuple[float, float]:
    """Median microseconds of both versions, run alternately."""
    compiled, calls = [], []
    for function, argument in ((trick, x), (plain, y)):
        jax.clear_caches()  # or what the other traced would be found
        program = jax.jit(function).lower(argument).compile()
        compiled.append(partial(program, argument))
    for function in compiled:
        jax.block_until_ready(function())
        started = time.perf_counter()
        jax.block_until_ready(function())
        calls.append(max(1, round(0.2 / (time.perf_counter() - started))))
    times: list[list[float]] = [[], []]
    for _ in range(7):
        for i, function in enumerate(compiled):
            started = time.perf_counter()
            for _ in range(calls[i]):
                out = function()
            jax.block_until_ready(out)
            times[i].append((time.perf_counter() - started) / calls[i] / turns * 1e6)
    return statistics.median(times[0]), statistics.median(times[1])


def pairs() -> dict[str, Pair]:
    found: dict[str, Pair] = {}
    for size in (65_536,):
        found[f"shuffle of {size:,} rows, against a permutation"] = (
            partial(random_permutation, size=size),
            partial(jax.random.permutation, x=size),
            key(0),
            key(0),
            1,
        )
    for rows in (128, 8_192):
        found[f"gradient of two 64-64 networks, {rows:,} rows"] = (
            in_a_loop(partial(gradient, rows=rows)),
            in_a_loop(partial(gradient, rows=rows, plain=True)),
            weights(),
            weights(),
            TURNS,
        )
    found["Adam on one vector, against 12 arrays"] = (
        in_a_loop(adam_step),
        in_a_loop(adam_step),
        adam_state(flat=True),
        adam_state(flat=False),
        TURNS,
    )
    obs = jax.random.normal(key(1), (32, 2_048, 4))
    found["values of 65,536 rows in blocks, against all at once"] = (
        partial(in_blocks, critic()),
        critic(),
        obs,
        obs,
        1,
    )
    found["a small draw in a loop, against JAX's loop of rounds"] = (
        in_a_loop(draw),
        in_a_loop(draw),
        key(0),
        jax.random.key(0),
        TURNS,
    )
    b1, b3 = CASES["B1"].config, CASES["B3"].config
    for name, turns, trick, plain in (
        (
            "B1: the arrays of a minibatch read together, against one by one",
            *(32, training(b1, 32), training(b1, 32, reader=read_one_by_one)),
        ),
        (
            "B1, 32 members on one core: in groups of 8, against all side by side",
            *(4, training(b1, 4, members=32), training(b1, 4, members=32, group=32)),
        ),
        (
            "B3: environments on all cores, against one device",
            *(1, training(b3, 1, devices=None), training(b3, 1)),
        ),
    ):
        found[name] = (trick[0], plain[0], trick[1], plain[1], turns)
    return found


def training(
    fields: dict[str, Any],
    steps: int,
    members: int = 1,
    devices: int | None = 1,
    group: int = population.GROUP,
    reader: Callable = minibatches.reader,
) -> tuple[Callable, Any]:
    """`steps` train steps of PPO on CartPole, and the state that they start from."""
    env, config = make("CartPole-v1"), PPO.Config(**fields)
    job = loop.resolve(PPO, config, env, num_seeds=members, num_devices=devices)
    start = loop.first_progress(job)

    def run(start: tuple) -> Any:
        # Both are looked up while this is traced.
        population.GROUP, ppo.reader = group, reader
        return population.run_population.__wrapped__(
            PPO, job.config, env, {}, *start, jnp.int32(steps), members, job.mesh
        )

    return run, (start.state, start.tally)


def read_one_by_one(batch: Any) -> Callable:
    return lambda index: jax.tree.map(lambda x: x[:, index], batch)


TURNS = 64
"""Iterations of the loop that is timed; times are per iteration."""


def in_a_loop(function: Callable) -> Callable:
    return lambda x: jax.lax.fori_loop(0, TURNS, lambda _, x: function(x), x)


def weights() -> Any:
    return [
        0.1 * jax.random.normal(key(i), shape)
        for i, shape in enumerate(2 * [(4, 64), (64, 64), (64, 2)])
    ]


def gradient(params: Any, rows: int, plain: bool = False) -> Any:
    """A gradient step of two networks; plain is flax's product, of `[1, rows, 4]`."""
    x = jnp.ones((1, rows, 4))

    def product(x: Any, w: Any) -> Any:
        if plain:
            return jnp.matmul(x, w)
        return matrix_product(x, w, (((x.ndim - 1,), (0,)), ((), ())))

    def loss(params: Any) -> Any:
        total = 0.0
        for net in (params[:3], params[3:]):
            h = x
            for w in net[:-1]:
                h = jnp.tanh(product(h, w))
            total += jnp.square(product(h, net[-1]) - 1.0).mean()
        return total

    return jax.tree.map(lambda w, g: w - 1e-6 * g, params, jax.grad(loss)(params))


def adam_state(flat: bool) -> Any:
    params: Any = weights() + [jnp.zeros(n) for n in (64, 64, 2, 64, 64, 2)]
    if flat:
        params, _ = optim.flat(params)
    return params, optim.adam(0.5).init(params)


def adam_step(carry: Any) -> Any:
    params, opt_state = carry
    return optim.apply(optim.adam(0.5), params, opt_state, params, 1e-4)


def critic() -> Callable:
    """V of PPO's default network on CartPole."""
    env, config = make("CartPole-v1"), with_floats(PPO.Config(**PPO_CONFIG))
    agent = jax.jit(partial(PPO.init, config, env))(key(0)).agent
    return lambda obs: ppo.forward(config, env, agent, agent.params, obs, ())[2]


def draw(rng: Any) -> Any:
    return jax.random.fold_in(rng, jax.random.bits(rng, (10,))[3])


def learning() -> dict[str, Any]:
    """Greedy returns with either shuffle, and the interval of the difference."""
    rows = {}
    cases = {
        "CartPole-v1": {},
        "Breakout-MinAtar": {"num_envs": 64, "num_minibatches": 8},
    }
    for env_id, changes in cases.items():
        steps = 500_000 if env_id == "CartPole-v1" else 1_000_000
        found = {}
        for name in ("shuffled", "permutation"):
            ppo.minibatches = minibatches_by(name)
            jax.clear_caches()
            fields = PPO_CONFIG | changes | {"total_steps": float(steps)}
            config, env = PPO.Config(**fields), make(env_id)
            result = train(PPO, config, env, num_seeds=16)
            played = evaluate_population(
                PPO, with_floats(config), env, result.agent, key(1), 64
            )
            found[name] = played.episode_return.mean(1).tolist()
            print(env_id, name, sum(found[name]) / 16, flush=True)
        difference = bootstrap_difference(found["shuffled"], found["permutation"])
        rows[env_id] = {"env_steps": steps, "returns": found, "difference": difference}
        print(env_id, "95 % interval of the difference", difference, flush=True)
    return rows


def minibatches_by(name: str) -> Callable:
    order = random_permutation if name == "shuffled" else jax.random.permutation

    def indices(rng: Any, size: int, epochs: int, number: int) -> Any:
        orders = jax.vmap(lambda k: order(k, size))(jax.random.split(rng, epochs))
        return orders.reshape(-1, size // number)

    return indices


if __name__ == "__main__":
    main()
