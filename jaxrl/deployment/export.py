"""Export of a trained policy as one file that needs no jaxrl: `jaxrl export`.

stablehlo   a program that `jax.export.deserialize` reads, for CPU, CUDA, ROCm and TPU
onnx        a graph of operators that onnxruntime and other runtimes read

Weights and running statistics are constants of the file. The batch may be of any size.
Every file is compared with the policy before it is written.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import spaces
from jaxrl.core import config as configs
from jaxrl.core import prng, storage
from jaxrl.core.files import refuse
from jaxrl.deployment import card, hub, onnx
from jaxrl.deployment.outputs import (
    Outputs,
    check_has_policy,
    compute_outputs,
    flatten_memory,
)
from jaxrl.errors import InvalidInput, install_command, require
from jaxrl.rollout import init_world, unroll
from jaxrl.runs.artifact import check_acts, load_agents
from jaxrl.runs.policy import Policy, make_policy, select_agent
from jaxrl.types import Array, Memory, PyTree

Format = Literal["stablehlo", "onnx"]
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

TOLERANCE = 1e-5
"""Maximum difference of a number up to 1; of a larger one, relative to it."""

NUM_ENVS = 10
"""Environments that supply the observations for the comparison."""


class Program(NamedTuple):
    """A pure function of arrays with a batch axis, and its inputs.

    function: `(*inputs [N, ...]) -> {name: array [N, ...]}`
    inputs:   name -> shapes and dtypes of a row, a pytree of `jax.ShapeDtypeStruct`
    """

    function: Callable[..., dict[str, Array]]
    inputs: dict[str, PyTree]


class Agreement(NamedTuple):
    """Comparison of an exported program with the policy."""

    observations: int  # number of observations compared
    within: int  # number of them on which everything agrees, see `TOLERANCE`
    largest: float  # largest difference of any number


def export(
    run: Path | str,
    out: Path | str,
    format: Format = "stablehlo",
    *,
    agent: int | None = None,
    env: str | None = None,
    observations: int = 1_000,
    licence: str | None = None,
    push_to_hub: str | None = None,
) -> dict[str, Any]:
    """Write one agent of a run folder as a file, and its model card as `OUT.md`.

    Args:
      run: the run folder.
      out: the file; replaced if it exists.
      format: "stablehlo" or "onnx".
      agent: its place in the run; by default the first.
      env: the environment's id, needed where it is "module:factory", which is code.
      observations: number of observations on which file and policy are compared.
      licence: of the weights, as the hub abbreviates it ("apache-2.0"); None: unstated.
      push_to_hub: a repository of the Hugging Face hub, "name/model".

    Returns:
      The facts of the model card.

    Raises:
      InvalidInput: before anything compiles, there is no such agent, it cannot be
        exported, or a package is missing; or the file would not agree with the policy.
    """
    _check_request(out, format, observations, push_to_hub)
    agents = load_agents(run, env)
    check_acts(agents, run)
    check_has_policy(agents.algorithm)
    k = select_agent(agents, run, agent)
    policy = flatten_memory(make_policy(agents, k))
    content = serialize(make_program(policy), format)
    agreement = compare(policy, make_reader(content, format), observations)
    require(
        agreement.within == agreement.observations,
        f"format = {format!r}: the exported program differs from the policy by "
        f"{agreement.largest:.2g} on {agreement.observations - agreement.within} of "
        f"{agreement.observations} observations, so nothing was written; give another "
        f"format.",
    )
    about = card.describe(run, agents, k, policy, format, agreement._asdict(), licence)
    about |= {"file": str(out), "card": f"{out}.md"}
    files = {Path(out): content, Path(about["card"]): card.to_markdown(about).encode()}
    _write(files)
    if push_to_hub is not None:
        names = {Path(out): Path(out).name, Path(about["card"]): "README.md"}
        about["hub"] = hub.push(names, push_to_hub)
    return about


def make_program(policy: Policy) -> Program:
    """Make the policy a function of `obs`, and of `memory` where it has one."""

    def function(obs: PyTree, memory: Memory = ()) -> Outputs:
        return compute_outputs(policy, obs, memory)

    inputs = {"obs": _row_shapes(spaces.zeros(policy.env.observation_space))}
    memory = policy.init_memory()
    if jax.tree.leaves(memory):
        inputs["memory"] = _row_shapes(memory)
    return Program(function, inputs)


def serialize(program: Program, format: Format) -> bytes:
    """Serialize a program, as the content of a file.

    Raises:
      InvalidInput: a package is missing, or the format has no such operation.
    """
    configs.check_value("format", Format, format)
    check_installed(format)
    if format == "onnx":
        return onnx.serialize(program.function, program.inputs)
    return _serialize_stablehlo(program)


def make_reader(content: bytes, format: Format) -> Callable[..., dict[str, np.ndarray]]:
    """Make a function of the inputs, in their order, from an exported file."""
    if format == "onnx":
        return onnx.make_reader(content)
    from jax import export as jax_export

    program = jax_export.deserialize(bytearray(content))
    return lambda *inputs: jax.tree.map(np.asarray, program.call(*inputs))


def check_installed(format: Format) -> None:
    """Raise `InvalidInput` for a format whose packages are missing."""
    try:
        if format == "onnx":
            import jax2onnx  # noqa: F401
            import onnxruntime  # noqa: F401
        else:
            import flatbuffers  # noqa: F401
    except ImportError as error:
        raise InvalidInput(
            f"format = {format!r}: needs {error.name}: {install_command('export')}."
        ) from error


def compare(
    policy: Policy, call: Callable[..., dict[str, np.ndarray]], observations: int
) -> Agreement:
    """Compare an exported function with the policy, on observations of its episodes.

    Actions and memory are those of `Policy.act`. A discrete action agrees if it is the
    same, or if its probability or Q-value is the same within the tolerance.
    """
    # Products in full float32 on every device, as the exported programs have them.
    with jax.default_matmul_precision("highest"):
        obs, memory = sample_observations(policy, observations)
        inputs = (obs, memory) if jax.tree.leaves(memory) else (obs,)
        expected = jax.tree.map(
            np.asarray, jax.jit(partial(compute_outputs, policy))(*inputs)
        )
        action, after = policy.act(obs, memory)
    expected["action"] = np.asarray(action)
    if "next_memory" in expected:
        expected["next_memory"] = np.asarray(after)
    arrays = jax.tree.map(np.asarray, inputs)
    outputs = call(*arrays)
    first = call(*jax.tree.map(lambda x: x[:1], arrays))
    batch = _differences(expected, outputs)
    single = _differences({n: x[:1] for n, x in expected.items()}, first)
    within = (batch <= TOLERANCE) & np.all(single <= TOLERANCE)
    largest = float(max(batch.max(), single.max()))
    return Agreement(len(batch), int(within.sum()), largest)


def sample_observations(policy: Policy, count: int) -> tuple[PyTree, Memory]:
    """Play with sampled actions; return observations `[count, ...]` and the memory."""
    num_steps = -(-count // NUM_ENVS)
    env, algorithm, config = policy.env, policy.algorithm, policy.config

    def sample(obs: PyTree, memory: Memory, key: Array) -> tuple:
        action, after, _ = algorithm.act(
            config, env, policy.agent, obs, memory, key, False
        )
        return action, after, {"before": memory}

    @jax.jit
    def play() -> tuple[PyTree, Memory]:
        world = init_world(env, prng.key(0), NUM_ENVS, policy.init_memory(NUM_ENVS))
        _, rows, _ = unroll(env, sample, world, num_steps)
        return rows.obs, rows.extras["before"]

    flat: Any = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:])[:count], jax.device_get(play())
    )
    return flat


def _differences(
    expected: dict[str, np.ndarray], outputs: dict[str, np.ndarray]
) -> np.ndarray:
    """Compute the largest difference in each row `[N]`, relative to numbers above 1."""
    if expected.keys() != outputs.keys():
        return np.full(len(expected["action"]), np.inf)
    rows = [
        _distance(np.asarray(y, np.float64), np.asarray(outputs[name], np.float64))
        for name, y in expected.items()
        if name != "action"
    ]
    action, same = expected["action"], expected["action"] == outputs["action"]
    scores = expected.get("probabilities", expected.get("q_values"))
    if scores is None:
        rows.append(_distance(action, outputs["action"]))
    else:
        pair = [
            np.take_along_axis(scores, np.asarray(a, int)[:, None], 1)
            for a in (action, outputs["action"])
        ]
        rows.append(np.where(same, 0.0, _distance(*pair)))
    return np.max(rows, axis=0)


def _distance(expected: np.ndarray, x: np.ndarray) -> np.ndarray:
    if expected.shape != x.shape:
        return np.full(len(expected), np.inf)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        far = np.abs(expected - x) / np.maximum(1.0, np.abs(expected))
    far = np.where(expected == x, 0.0, np.nan_to_num(far, nan=np.inf))
    return far.reshape(len(far), -1).max(axis=1)


def _serialize_stablehlo(program: Program) -> bytes:
    from jax import export as jax_export

    (batch,) = jax_export.symbolic_shape("batch")
    inputs = [_add_batch_axis(rows, batch) for rows in program.inputs.values()]
    with jax.default_matmul_precision("highest"):
        exporter = jax_export.export(jax.jit(program.function), platforms=PLATFORMS)
        return bytes(exporter(*inputs).serialize())


def _add_batch_axis(rows: PyTree, batch: Any) -> PyTree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype), rows
    )


def _row_shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _check_request(
    out: Path | str, format: Format, observations: int, push_to_hub: str | None
) -> None:
    """Check what can be checked before anything is read."""
    configs.check_value("format", Format, format)
    configs.check_value("observations", int, observations, low=1)
    check_installed(format)
    path = Path(out)
    require(
        path.parent.is_dir() and not path.is_dir(),
        f"out = {str(out)!r}: must be a file in a folder that is there.",
    )
    if push_to_hub is not None:
        hub.check(push_to_hub)


def _write(files: dict[Path, bytes]) -> None:
    """Write files beside their places, and move them there when all are complete."""
    parts = {path: path.with_name(f".{path.name}.part") for path in files}
    try:
        for path, part in parts.items():
            storage.write_file(part, files[path])
        for path, part in parts.items():
            storage.rename(part, path)
    except OSError as error:
        refuse(error, f"out = {str(next(iter(files)))!r} cannot be written ({error}).")
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def export_function(
    function: Callable[..., dict[str, Array]],
    inputs: dict[str, PyTree],
    out: Path | str,
    format: Format = "stablehlo",
) -> None:
    """Export any pure function of arrays with a batch axis, such as a table lookup.

    Args:
      function: `(*inputs [N, ...]) -> {name: array [N, ...]}`.
      inputs: name -> one row, as arrays or as shapes and dtypes.
      out: the file; replaced if it exists.
      format: "stablehlo" or "onnx".

    Raises:
      InvalidInput: the file cannot be written, a package is missing, or the format has
        no such operation.
    """
    _check_request(out, format, 1, None)
    rows = {
        name: _row_shapes(jax.tree.map(jnp.asarray, x)) for name, x in inputs.items()
    }
    _write({Path(out): serialize(Program(function, rows), format)})
