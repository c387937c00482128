"""An HTTP server for a trained policy: `jaxrl serve`.

POST /act      {"obs": one observation or a batch} -> {"action": ...}
GET  /health   the policy, its spaces, the limits, and counters

A policy with memory responds with "memory" too, which the client sends with the next
observation of the same episode; without it an episode starts. Concurrent requests are
batched into one call of a program that is compiled at the start for a few batch sizes.
The server is stateless.
"""

import json
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl import spaces
from jaxrl.core import config as configs
from jaxrl.core import http_server, prng
from jaxrl.deployment import wire
from jaxrl.deployment.outputs import check_has_policy, flatten_memory
from jaxrl.deployment.wire import Request, Schema
from jaxrl.errors import InvalidInput, one_line
from jaxrl.runs.policy import Policy, load_policy
from jaxrl.types import Array, PyTree

GRACE = 10.0
"""Seconds that running requests have at shutdown."""


class Limits(NamedTuple):
    """Limits of requests and connections."""

    max_batch: int = 64
    """Maximum observations of a request, and of a call of the program."""
    max_body: int = 1 << 20
    """Maximum bytes of a request."""
    max_connections: int = 128
    """Maximum open connections. For one more, one that is silent for a second is closed;
    where there is none, it gets status 503."""


def serve(
    run: Path | str,
    *,
    host: str = http_server.LOCAL,
    port: int = 8000,
    agent: int | None = None,
    env: str | None = None,
    greedy: bool = True,
    seed: int = 0,
    limits: Limits = Limits(),  # noqa: B008  # a tuple of numbers
    report: Callable[[str], None] = print,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Serve one agent of a run folder until `interrupted` says so.

    Args:
      run: the run folder.
      host: address to listen on; by default reachable from this machine alone.
      port: 0 means any free one.
      agent: its place in the run; by default the first.
      env: the environment's id, needed where it is "module:factory", which is code.
      greedy: the likeliest action instead of a sampled one.
      seed: seed of the samples.
      limits: limits of requests and connections.
      report: receives lines for a person.
      interrupted: polled a few times per second.

    Raises:
      InvalidInput: there is no such agent, or the port cannot be had.
    """
    configs.check_value("port", int, port, low=0, high=65535)
    configs.check_value("seed", int, seed, low=0, high=configs.MAX_INT)
    for name, value in limits._asdict().items():
        configs.check_value(name, int, value, low=1)
    policy = flatten_memory(load_policy(run, agent, env))
    check_has_policy(policy.algorithm)
    with serve_policy(policy, host, port, greedy, seed, limits) as server:
        report(f"{policy.algorithm.name} on {policy.env.id}: {server.address}")
        if not server.is_local:
            report(f"{host} may be reached from outside: there is no authentication")
        while not interrupted():
            time.sleep(0.05)


@contextmanager
def serve_policy(
    policy: Policy,
    host: str = http_server.LOCAL,
    port: int = 0,
    greedy: bool = True,
    seed: int = 0,
    limits: Limits = Limits(),  # noqa: B008
) -> Iterator["Service"]:
    """Serve a policy while the block runs; running requests are completed at the end."""
    server = http_server.open_server(Service, _Handler, host, port)
    try:
        server.begin(policy, greedy, seed, limits)
    except BaseException:
        server.server_close()
        raise
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.end()


@dataclass
class _Job:
    """A request that waits for its result."""

    request: Request
    done: threading.Event = field(default_factory=threading.Event)
    result: tuple[np.ndarray, Any] | None = None  # None: it could not be computed


class Batcher:
    """A thread that batches concurrent requests into one call."""

    def __init__(
        self, policy: Policy, schema: Schema, greedy: bool = True, seed: int = 0
    ) -> None:
        self.calls = self.rows = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._left: _Job | None = None
        self._max_batch = schema.max_batch
        self._run = compile_policy(policy, schema, greedy, seed)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def ask(self, request: Request) -> tuple[np.ndarray, Any] | None:
        """Return actions and memory [N, ...]; None if the program fails."""
        job = _Job(request)
        self._jobs.put(job)
        job.done.wait()
        return job.result

    def stop(self) -> None:
        """Complete the waiting requests and stop; no more may be made."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            jobs, stopped = self._take()
            if jobs:
                self._complete(jobs)
            if stopped:
                return

    def _take(self) -> tuple[list[_Job], bool]:
        """Take what fits into one batch, and whether that was the last."""
        first = self._left or self._jobs.get()
        self._left = None
        if first is None:
            return [], True
        jobs, rows = [first], first.request.rows
        while rows < self._max_batch and not self._jobs.empty():
            job = self._jobs.get()
            if job is None:
                return jobs, True
            rows += job.request.rows
            if rows > self._max_batch:
                self._left = job
                break
            jobs.append(job)
        return jobs, False

    def _complete(self, jobs: Sequence[_Job]) -> None:
        try:
            inputs = [(job.request.obs, job.request.memory) for job in jobs]
            obs, memory = jax.tree.map(lambda *x: np.concatenate(x), *inputs)
            results = self._run(obs, memory, self.calls)
            start = 0
            for job in jobs:
                rows = slice(start, start + job.request.rows)
                job.result = jax.tree.map(lambda x, rows=rows: x[rows], results)
                start = rows.stop
            self.calls, self.rows = self.calls + 1, self.rows + start
        except Exception:  # one batch failed: the thread must go on with the next
            traceback.print_exc()
        finally:
            for job in jobs:
                job.done.set()


def compile_policy(policy: Policy, schema: Schema, greedy: bool, seed: int) -> Callable:
    """Compile the policy for batches of up to `max_batch` rows.

    Returns:
      `(obs, memory, number of the call) -> (actions, memory)`, on the host. It pads a batch
      to one of a few sizes, each of which is compiled here.
    """
    sizes = [
        2**i for i in range(schema.max_batch.bit_length()) if 2**i < schema.max_batch
    ]
    sizes.append(schema.max_batch)
    act = jax.jit(partial(_act, policy, greedy, seed))
    programs = {}
    for size in sizes:
        zeros = spaces.zeros(policy.env.observation_space, (size,))
        shapes = jax.eval_shape(
            lambda zeros=zeros, size=size: (zeros, _memory_rows(policy, size))
        )
        programs[size] = act.lower(*shapes, np.uint32(0)).compile()

    def run(obs: PyTree, memory: Any, call: int) -> Any:
        rows = len(jax.tree.leaves(obs)[0])
        size = next(size for size in sizes if size >= rows)
        padded = jax.tree.map(partial(_pad, size), (obs, memory))
        results = programs[size](*padded, np.uint32(call))
        return jax.tree.map(lambda x: np.asarray(x)[:rows], results)

    return run


def _memory_rows(policy: Policy, size: int) -> Any:
    return policy.algorithm.init_memory(policy.config, policy.env, size)


def _act(
    policy: Policy, greedy: bool, seed: int, obs: PyTree, memory: Any, call: Array
) -> tuple:
    key = jax.random.fold_in(prng.key(seed), call)
    action, memory, _ = policy.algorithm.act(
        policy.config, policy.env, policy.agent, obs, memory, key, greedy
    )
    return action, memory


def _pad(size: int, x: np.ndarray) -> np.ndarray:
    more = size - len(x)
    return np.concatenate([x, np.repeat(x[:1], more, axis=0)]) if more else x


class Service(http_server.Server):
    """The listening socket, the policy, and counters."""

    def begin(self, policy: Policy, greedy: bool, seed: int, limits: Limits) -> None:
        """Compile the policy; connections wait meanwhile."""
        self.policy, self.greedy, self.limits = policy, greedy, limits
        self.schema = wire.make_schema(policy, limits.max_batch)
        self.batcher = Batcher(policy, self.schema, greedy, seed)
        self.started = time.monotonic()
        self.ending = False
        self.answered = self.refused = self.active = 0
        self.counting = threading.Condition()
        self.max_connections = limits.max_connections

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return str(self.server_address[0]).startswith("127.")

    @property
    def address(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_port}"

    def health(self) -> dict[str, Any]:
        """Return the content of `GET /health`."""
        policy = self.policy
        return {
            "status": "ok",
            "algorithm": policy.algorithm.name,
            "env": policy.env.id,
            "greedy": self.greedy,
            "observation_space": spaces.describe(policy.env.observation_space),
            "action_space": spaces.describe(policy.env.action_space),
            "memory": [list(x.shape) for x in jax.tree.leaves(self.schema.memory)],
            "limits": self.limits._asdict(),
            "answered": self.answered,
            "refused": self.refused,
            "observations": self.batcher.rows,
            "batches": self.batcher.calls,
            "uptime_seconds": round(time.monotonic() - self.started, 1),
        }

    def count(self, begins: int, answered: int = 0, refused: int = 0) -> None:
        with self.counting:
            self.active += begins
            self.answered += answered
            self.refused += refused
            self.counting.notify_all()

    def end(self) -> None:
        """Wait for running requests, and close."""
        self.ending = True
        with self.counting:
            self.counting.wait_for(lambda: self.active == 0, GRACE)
        self.batcher.stop()
        self.server_close()


class _Refused(Exception):
    """An error response: a status and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


class _Handler(http_server.Handler):
    server: Service
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        """Handle a request, and close the connection when the server is ending."""
        super().handle_one_request()
        if self.server.ending:
            self.close_connection = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._handle
        raise AttributeError(name)

    def handle_expect_100(self) -> bool:
        """Send the line at once: the client waits for it before it sends the body."""
        proceed = super().handle_expect_100()
        self.wfile.flush()
        return proceed

    def _handle(self) -> None:
        self.server.count(1)
        # A HEAD response has no body: the connection would lose its framing.
        self.close_connection |= self.command == "HEAD"
        try:
            self._send(HTTPStatus.OK, self._respond())
            self.server.count(0, answered=1)
        except _Refused as error:
            self.server.count(0, refused=1)
            self._refuse(error)
        finally:
            self.server.count(-1)

    def _respond(self) -> dict[str, Any]:
        body = self._read_body()
        self.note_read()
        path = self.path.partition("?")[0]
        method = {"/act": "POST", "/health": "GET"}.get(path)
        self._check_host()
        if method is None:
            raise _Refused(
                HTTPStatus.NOT_FOUND, "there are POST /act and GET /health, no more."
            )
        if self.command != method:
            raise _Refused(
                HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {method}.", Allow=method
            )
        return self.server.health() if path == "/health" else self._act(body)

    def _act(self, body: bytes) -> dict[str, Any]:
        try:
            request = wire.read(self.server.schema, body)
        except InvalidInput as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, one_line(str(error))) from error
        if self.server.ending:  # on a kept-alive connection: the batcher may be gone
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the server is ending.")
        result = self.server.batcher.ask(request)
        if result is None:
            raise _Refused(
                HTTPStatus.INTERNAL_SERVER_ERROR, "the policy could not be computed."
            )
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(result)):
            raise _Refused(
                HTTPStatus.BAD_REQUEST,
                "the outputs of the policy are not finite: obs is too large.",
            )
        content = {"action": result[0]}
        if not isinstance(result[1], tuple):
            content["memory"] = result[1]
        return {
            n: (x[0] if request.is_single else x).tolist() for n, x in content.items()
        }

    def _read_body(self) -> bytes:
        """Read all of the body: a connection with unread bytes would be reset."""
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed.")
        lengths = self.headers.get_all("Content-Length", [])
        if not lengths and self.command == "POST":
            self.close_connection = True
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed.")
        length = lengths[0].strip() if lengths else "0"
        if len(set(lengths)) > 1 or not (length.isascii() and length.isdigit()):
            self.close_connection = True
            raise _Refused(
                HTTPStatus.BAD_REQUEST, "Content-Length must be one whole number."
            )
        most = self.server.limits.max_body
        if len(length) > 18 or int(length) > most:
            self._drain(int(length[:18]))
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has {length[:18]} bytes, at most {most} are read.",
            )
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            raise _Refused(
                HTTPStatus.BAD_REQUEST, "the body is shorter than Content-Length."
            )
        return body

    def _drain(self, length: int) -> None:
        """Read some of what is too much, so that the client reads the response."""
        self.close_connection = True
        left = min(length, 16 * self.server.limits.max_body)
        try:
            while left > 0 and (piece := self.rfile.read1(min(left, 1 << 16))):
                left -= len(piece)
        except TimeoutError:
            return

    def _check_host(self) -> None:
        """Reject pages of others, and foreign names of this machine (DNS rebinding)."""
        if not self.server.is_local:
            return
        name = (self.headers.get("Host") or "").rpartition(":")[0]
        name = name or self.headers.get("Host") or ""
        here = str(self.server.server_address[0])
        if name not in (here, "localhost"):
            raise _Refused(HTTPStatus.FORBIDDEN, f"Host must be {here} or localhost.")
        origin = self.headers.get("Origin")
        if origin not in (None, f"http://{self.headers['Host']}"):
            raise _Refused(HTTPStatus.FORBIDDEN, "Origin is a page of another host.")

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Respond to malformed HTTP in the format of the other errors."""
        del explain
        status = HTTPStatus(code if 400 <= code < 500 else HTTPStatus.BAD_REQUEST)
        self.close_connection = True
        self.server.count(0, refused=1)
        self._refuse(_Refused(status, f"{message or status.phrase}."))

    def _refuse(self, error: _Refused) -> None:
        self._send(error.status, {"error": str(error)}, **error.headers)

    def _send(self, status: HTTPStatus, content: Any, **headers: str) -> None:
        if self.close_connection or self.server.ending:
            headers["Connection"] = "close"
        text = json.dumps(content, allow_nan=False)
        http_server.send(self, status, text, "application/json", **headers)
        self.wfile.flush()
