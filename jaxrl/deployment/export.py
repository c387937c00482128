"""A trained policy as one file that needs no jaxrl: what `jaxrl export` does.

stablehlo   the compiled program's source, read by `jax.export.deserialize` wherever jax
            is, for CPU, CUDA, ROCm and TPU
onnx        the graph of operators that onnxruntime and other runtimes read

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
from jaxrl.deployment import card, hub, onnx
from jaxrl.deployment.answers import Answer, answer, check_answers
from jaxrl.errors import InvalidInput, require
from jaxrl.rollout import init_world, unroll
from jaxrl.runs.artifact import check_acts, load_agents
from jaxrl.runs.policy import Policy, chosen, policy_of
from jaxrl.types import Array, Memory, PyTree

Format = Literal["stablehlo", "onnx"]
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

TOLERANCE = 1e-5
"""The largest difference that is let pass, of a number up to 1; of a larger one, 1e-5 of
it."""

NUM_ENVS = 10
"""Environments in which the observations for the comparison are met."""


class Program(NamedTuple):
    """A pure function of arrays with a batch axis, ready to leave.

    function: `(*inputs [N, ...]) -> {name: array [N, ...]}`
    inputs:   name -> shapes and dtypes of one row, a pytree of `jax.ShapeDtypeStruct`
    """

    function: Callable[..., dict[str, Array]]
    inputs: dict[str, PyTree]


class Agreement(NamedTuple):
    """How an exported program compares with the policy."""

    observations: int  # on how many
    within: int  # on how many of them everything agrees, see `TOLERANCE`
    largest: float  # difference of any number


def export(
    run: Path | str,
    out: Path | str,
    format: Format = "stablehlo",
    *,
    seed: int | None = None,
    index: int | None = None,
    env: str | None = None,
    observations: int = 1_000,
    licence: str | None = None,
    push_to_hub: str | None = None,
) -> dict[str, Any]:
    """One agent of a run folder as a file, and its model card beside it, `OUT.md`.

    Args:
      run: the run folder.
      out: the file; replaced if it exists.
      format: "stablehlo" or "onnx".
      seed: which agent, if it was trained with several; by default the first.
      index: which agent by its place in training, where several settings share seeds.
      env: the environment's id, needed where it is "module:factory", which is code.
      observations: on how many the file is compared with the policy.
      licence: of the weights, as the hub abbreviates it ("apache-2.0"); None is not said.
      push_to_hub: a repository of the Hugging Face hub, "name/model".

    Returns:
      What the model card says.

    Raises:
      InvalidInput: before anything compiles, there is no such agent, it cannot be
        exported, or a package is missing; or the file would not agree with the policy.
    """
    _check_request(out, format, observations, push_to_hub)
    agents = load_agents(run, env)
    check_acts(agents, run)
    check_answers(agents.algorithm)
    k = chosen(agents, run, seed, index)
    policy = policy_of(agents, k)
    content = exported(program(policy), format)
    found = compared(policy, reader(content, format), observations)
    require(
        found.within == found.observations,
        f"format = {format!r}: the exported program differs from the policy by "
        f"{found.largest:.2g} on {found.observations - found.within} of "
        f"{found.observations} observations, so nothing was written; give another format.",
    )
    about = card.describe(run, agents, k, policy, format, found._asdict(), licence)
    about |= {"file": str(out), "card": f"{out}.md"}
    files = {Path(out): content, Path(about["card"]): card.text(about).encode()}
    _write(files)
    if push_to_hub is not None:
        names = {Path(out): Path(out).name, Path(about["card"]): "README.md"}
        about["hub"] = hub.push(names, push_to_hub)
    return about


def program(policy: Policy) -> Program:
    """The policy as a function of `obs`, and of `memory` where it has one."""

    def function(obs: PyTree, memory: Memory = ()) -> Answer:
        return answer(policy, obs, memory)

    inputs = {"obs": _rows(spaces.zeros(policy.env.observation_space))}
    memory = policy.init_memory()
    if jax.tree.leaves(memory):
        inputs["memory"] = _rows(memory)
    return Program(function, inputs)


def exported(program: Program, format: Format) -> bytes:
    """The file's content.

    Raises:
      InvalidInput: a package is missing, or an operation has no place in the format.
    """
    configs.check_value("format", Format, format)
    check_installed(format)
    if format == "onnx":
        return onnx.exported(program.function, program.inputs)
    return _stablehlo(program)


def reader(content: bytes, format: Format) -> Callable[..., dict[str, np.ndarray]]:
    """The function of an exported file, of the inputs in their order."""
    if format == "onnx":
        return onnx.reader(content)
    from jax import export as jax_export

    read = jax_export.deserialize(bytearray(content))
    return lambda *inputs: jax.tree.map(np.asarray, read.call(*inputs))


def check_installed(format: Format) -> None:
    """Refuses a format whose packages are missing."""
    try:
        if format == "onnx":
            import jax2onnx  # noqa: F401
            import onnxruntime  # noqa: F401
        else:
            import flatbuffers  # noqa: F401
    except ImportError as error:
        raise InvalidInput(
            f"format = {format!r}: needs {error.name}, install it with "
            f"pip install 'jaxrl[export]'."
        ) from error


def compared(
    policy: Policy, call: Callable[..., dict[str, np.ndarray]], observations: int
) -> Agreement:
    """The exported function beside the policy, on observations that the policy meets.

    Actions and memory are those of `Policy.act`. A discrete action agrees if it is the
    same, or if what the policy thinks of the two is the same within the tolerance.
    """
    # Products in full float32 on every device, as the exported programs have them.
    with jax.default_matmul_precision("highest"):
        obs, memory = met(policy, observations)
        inputs = (obs, memory) if jax.tree.leaves(memory) else (obs,)
        expected = jax.tree.map(np.asarray, jax.jit(partial(answer, policy))(*inputs))
        action, after = policy.act(obs, memory)
    expected["action"] = np.asarray(action)
    if "next_memory" in expected:
        expected["next_memory"] = np.asarray(after)
    given = jax.tree.map(np.asarray, inputs)
    found = call(*given)
    first = call(*jax.tree.map(lambda x: x[:1], given))
    far = _differences(expected, found)
    alone = _differences({n: x[:1] for n, x in expected.items()}, first)
    within = (far <= TOLERANCE) & np.all(alone <= TOLERANCE)
    return Agreement(len(far), int(within.sum()), float(max(far.max(), alone.max())))


def met(policy: Policy, number: int) -> tuple[PyTree, Memory]:
    """Observations `[number, ...]` of episodes with sampled actions, and the memory."""
    num_steps = -(-number // NUM_ENVS)
    env, algorithm, config = policy.env, policy.algorithm, policy.config

    def sampled(obs: PyTree, memory: Memory, key: Array) -> tuple:
        action, after, _ = algorithm.act(
            config, env, policy.agent, obs, memory, key, False
        )
        return action, after, {"before": memory}

    @jax.jit
    def played() -> tuple[PyTree, Memory]:
        world = init_world(env, prng.key(0), NUM_ENVS, policy.init_memory(NUM_ENVS))
        _, rows, _ = unroll(env, sampled, world, num_steps)
        return rows.obs, rows.extras["before"]

    flat: Any = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:])[:number], jax.device_get(played())
    )
    return flat


def _differences(
    expected: dict[str, np.ndarray], found: dict[str, np.ndarray]
) -> np.ndarray:
    """The largest difference in each row `[N]`, of numbers above 1 relative to them."""
    if expected.keys() != found.keys():
        return np.full(len(expected["action"]), np.inf)
    rows = [
        _distance(np.asarray(y, np.float64), np.asarray(found[name], np.float64))
        for name, y in expected.items()
        if name != "action"
    ]
    action, same = expected["action"], expected["action"] == found["action"]
    scores = expected.get("probabilities", expected.get("q_values"))
    if scores is None:
        rows.append(_distance(action, found["action"]))
    else:
        chosen = [
            np.take_along_axis(scores, np.asarray(a, int)[:, None], 1)
            for a in (action, found["action"])
        ]
        rows.append(np.where(same, 0.0, _distance(*chosen)))
    return np.max(rows, axis=0)


def _distance(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    if expected.shape != found.shape:
        return np.full(len(expected), np.inf)
    with np.errstate(invalid="ignore"):  # of two infinities
        far = np.abs(expected - found) / np.maximum(1.0, np.abs(expected))
    far = np.where(expected == found, 0.0, np.nan_to_num(far, nan=np.inf))
    return far.reshape(len(far), -1).max(axis=1)


def _stablehlo(program: Program) -> bytes:
    from jax import export as jax_export

    (batch,) = jax_export.symbolic_shape("batch")
    inputs = [_batched(rows, batch) for rows in program.inputs.values()]
    with jax.default_matmul_precision("highest"):
        made = jax_export.export(jax.jit(program.function), platforms=PLATFORMS)
        return bytes(made(*inputs).serialize())


def _batched(rows: PyTree, batch: Any) -> PyTree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype), rows
    )


def _rows(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _check_request(
    out: Path | str, format: Format, observations: int, push_to_hub: str | None
) -> None:
    """What can be refused before anything is read."""
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
    """Beside their places, and moved there when all are whole."""
    parts = {path: path.with_name(f".{path.name}.part") for path in files}
    try:
        for path, part in parts.items():
            storage.write_file(part, files[path])
        for path, part in parts.items():
            storage.rename(part, path)
    except OSError as error:
        raise InvalidInput(
            f"out = {str(next(iter(files)))!r} cannot be written ({error})."
        ) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def export_function(
    function: Callable[..., dict[str, Array]],
    inputs: dict[str, PyTree],
    out: Path | str,
    format: Format = "stablehlo",
) -> None:
    """Any pure function of arrays with a batch axis as a file, such as a table's.

    Args:
      function: `(*inputs [N, ...]) -> {name: array [N, ...]}`.
      inputs: name -> arrays, or shapes and dtypes, of one row.
      out: the file; replaced if it exists.
      format: "stablehlo" or "onnx".

    Raises:
      InvalidInput: the file cannot be written, a package is missing, or an operation has
        no place in the format.
    """
    _check_request(out, format, 1, None)
    rows = {name: _rows(jax.tree.map(jnp.asarray, x)) for name, x in inputs.items()}
    _write({Path(out): exported(Program(function, rows), format)})
