"""A trained policy behind HTTP: what `jaxrl serve` does.

POST /act      {"obs": one observation or a batch} -> {"action": ...}
GET  /health   what is served, and how much was asked

A policy with memory answers with "memory" too, which is given with the next observation of
the same episode; without one an episode begins. Requests that come at the same time are
answered by one call of a program that is compiled for a few sizes of batches, at the start.
The server remembers nothing of whoever asks.
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
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl import spaces
from jaxrl.core import config as configs
from jaxrl.core import http_server, prng
from jaxrl.deployment import requests
from jaxrl.deployment.answers import check_answers
from jaxrl.deployment.requests import Form, Request
from jaxrl.errors import InvalidInput, one_line
from jaxrl.runs.artifact import check_acts, load_agents
from jaxrl.runs.policy import Policy, chosen, policy_of
from jaxrl.types import Array, PyTree

PATIENCE = 30.0
"""Seconds after which a connection is closed that says nothing."""

LAST_WORDS = 10.0
"""Seconds that requests which are being answered have at the end."""


class Limits(NamedTuple):
    """What one client cannot exceed."""

    max_batch: int = 64
    """Observations of one request, and of one call of the program."""
    max_body: int = 1 << 20
    """Bytes of a request."""
    max_connections: int = 128
    """At a time; more are told to come again."""


def serve(
    run: Path | str,
    *,
    host: str = http_server.LOCAL,
    port: int = 8000,
    seed: int | None = None,
    index: int | None = None,
    env: str | None = None,
    greedy: bool = True,
    key: int = 0,
    limits: Limits = Limits(),  # noqa: B008  # a tuple of numbers
    report: Callable[[str], None] = print,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Serves one agent of a run folder until `interrupted` says so.

    Args:
      run: the run folder.
      host: by default only this machine can ask.
      port: 0 means any that is free.
      seed: which agent, if it was trained with several; by default the first.
      index: which agent by its place in training, where several settings share seeds.
      env: the environment's id, needed where it is "module:factory", which is code.
      greedy: the likeliest action, or a sampled one.
      key: seed of the samples.
      limits: what one client cannot exceed.
      report: called with lines for a person.
      interrupted: asked a few times a second.

    Raises:
      InvalidInput: there is no such agent, or the port cannot be had.
    """
    configs.check_value("port", int, port, low=0, high=65535)
    configs.check_value("key", int, key, low=0, high=configs.MAX_INT)
    for name, value in limits._asdict().items():
        configs.check_value(name, int, value, low=1)
    agents = load_agents(run, env)
    check_acts(agents, run)
    check_answers(agents.algorithm)
    policy = policy_of(agents, chosen(agents, run, seed, index))
    with served(policy, host, port, greedy, key, limits) as server:
        report(f"{policy.algorithm.name} on {policy.env.id}: {server.address}")
        if not server.only_here:
            report(f"{host} may be reached from outside: nobody is asked who they are")
        while not interrupted():
            time.sleep(0.05)


@contextmanager
def served(
    policy: Policy,
    host: str = http_server.LOCAL,
    port: int = 0,
    greedy: bool = True,
    key: int = 0,
    limits: Limits = Limits(),  # noqa: B008
) -> Iterator["Service"]:
    """A policy is served while the block runs; what is being asked is answered first."""
    server = http_server.open_server(Service, _Handler, host, port)
    try:
        server.begin(policy, greedy, key, limits)
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
    """A request that waits for its answer."""

    request: Request
    done: threading.Event = field(default_factory=threading.Event)
    answer: tuple[np.ndarray, Any] | None = None  # None: it could not be computed


class Batcher:
    """A thread that answers what has come meanwhile, all of it at once."""

    def __init__(
        self, policy: Policy, form: Form, greedy: bool = True, key: int = 0
    ) -> None:
        self.calls = self.rows = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._left: _Job | None = None
        self._max_batch = form.max_batch
        self._programs = compiled(policy, form, greedy, key)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def ask(self, request: Request) -> tuple[np.ndarray, Any] | None:
        """Actions and memory [N, ...]; None if the program fails."""
        job = _Job(request)
        self._jobs.put(job)
        job.done.wait()
        return job.answer

    def stop(self) -> None:
        """No more requests; those that wait are answered."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            jobs, more = self._waiting()
            if jobs:
                self._answer(jobs)
            if not more:
                return

    def _waiting(self) -> tuple[list[_Job], bool]:
        """What fits into one batch of what has come, and whether there may be more."""
        first = self._left or self._jobs.get()
        self._left = None
        if first is None:
            return [], False
        jobs, rows = [first], first.request.rows
        while rows < self._max_batch and not self._jobs.empty():
            job = self._jobs.get()
            if job is None:
                return jobs, False
            rows += job.request.rows
            if rows > self._max_batch:
                self._left = job
                break
            jobs.append(job)
        return jobs, True

    def _answer(self, jobs: Sequence[_Job]) -> None:
        try:
            inputs = [(job.request.obs, job.request.memory) for job in jobs]
            obs, memory = jax.tree.map(lambda *x: np.concatenate(x), *inputs)
            found = self._programs(obs, memory, self.calls)
            start = 0
            for job in jobs:
                rows = slice(start, start + job.request.rows)
                job.answer = jax.tree.map(lambda x, rows=rows: x[rows], found)
                start = rows.stop
            self.calls, self.rows = self.calls + 1, self.rows + start
        except Exception:  # of one batch: the thread has to answer the next
            traceback.print_exc()
        finally:
            for job in jobs:
                job.done.set()


def compiled(policy: Policy, form: Form, greedy: bool, key: int) -> Callable:
    """The policy for batches of up to `max_batch` rows: `(obs, memory, number of the call)
    -> (actions, memory)`, on the host. Rows are added up to one of a few sizes, each of
    which is compiled here."""
    sizes = [2**i for i in range(form.max_batch.bit_length()) if 2**i < form.max_batch]
    sizes.append(form.max_batch)
    act = jax.jit(partial(_act, policy, greedy, key))
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
        padded = jax.tree.map(partial(_padded, size), (obs, memory))
        found = programs[size](*padded, np.uint32(call))
        return jax.tree.map(lambda x: np.asarray(x)[:rows], found)

    return run


def _memory_rows(policy: Policy, size: int) -> Any:
    return policy.algorithm.init_memory(policy.config, policy.env, size)


def _act(
    policy: Policy, greedy: bool, key: int, obs: PyTree, memory: Any, call: Array
) -> tuple:
    sampled = jax.random.fold_in(prng.key(key), call)
    action, memory, _ = policy.algorithm.act(
        policy.config, policy.env, policy.agent, obs, memory, sampled, greedy
    )
    return action, memory


def _padded(size: int, x: np.ndarray) -> np.ndarray:
    more = size - len(x)
    return np.concatenate([x, np.repeat(x[:1], more, axis=0)]) if more else x


class Service(http_server.Server):
    """Listens, and counts."""

    request_queue_size = 128

    def begin(self, policy: Policy, greedy: bool, key: int, limits: Limits) -> None:
        """Compiles; connections wait meanwhile."""
        self.policy, self.greedy, self.limits = policy, greedy, limits
        self.form = requests.form_of(policy, limits.max_batch)
        self.batcher = Batcher(policy, self.form, greedy, key)
        self.started = time.monotonic()
        self.ending = False
        self.answered = self.refused = self.active = 0
        self.counting = threading.Condition()
        self.slots = threading.BoundedSemaphore(limits.max_connections)

    @property
    def only_here(self) -> bool:
        """Whether nobody but this machine can ask."""
        return str(self.server_address[0]).startswith("127.")

    @property
    def address(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_port}"

    def health(self) -> dict[str, Any]:
        """For `GET /health`."""
        policy = self.policy
        return {
            "status": "ok",
            "algorithm": policy.algorithm.name,
            "env": policy.env.id,
            "greedy": self.greedy,
            "observation_space": spaces.describe(policy.env.observation_space),
            "action_space": spaces.describe(policy.env.action_space),
            "memory": [list(x.shape) for x in jax.tree.leaves(self.form.memory)],
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
        """Waits for what is being answered."""
        self.ending = True
        with self.counting:
            self.counting.wait_for(lambda: self.active == 0, LAST_WORDS)
        self.batcher.stop()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each connection, of which there are not too many."""
        if self.slots.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread could be begun, so none gives it back
                self.slots.release()
                raise
            return
        line = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n"
        request.sendall(f"{line}Retry-After: 1\r\nConnection: close\r\n\r\n".encode())
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()


class _Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


class _Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # of 0.9 an answer has no status
    server_version, sys_version = "jaxrl", ""
    timeout = PATIENCE
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # headers and body in one packet

    def handle_one_request(self) -> None:
        """Every method comes to the same place; the rest is the standard library's."""
        super().handle_one_request()
        if self.server.ending:
            self.close_connection = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._any_method
        raise AttributeError(name)

    def handle_expect_100(self) -> bool:
        """Who waits for this line before the body is to have it now."""
        go_on = super().handle_expect_100()
        self.wfile.flush()
        return go_on

    def _any_method(self) -> None:
        self.server.count(1)
        # Its answer has no body, which the next request would have to know.
        self.close_connection |= self.command == "HEAD"
        try:
            content = self._answered()
            self._send(HTTPStatus.OK, content)
            self.server.count(0, answered=1)
        except _Refused as error:
            self.server.count(0, refused=1)
            self._refuse(error)
        finally:
            self.server.count(-1)

    def _answered(self) -> dict[str, Any]:
        body = self._body()
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
            request = requests.read(self.server.form, body)
        except InvalidInput as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, one_line(str(error))) from error
        if self.server.ending:  # of a connection kept alive: nobody would answer
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the server is ending.")
        found = self.server.batcher.ask(request)
        if found is None:
            raise _Refused(
                HTTPStatus.INTERNAL_SERVER_ERROR, "the policy could not be computed."
            )
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(found)):
            raise _Refused(
                HTTPStatus.BAD_REQUEST,
                "the policy has no finite answer to this: its numbers are too large.",
            )
        action, memory = found
        answer = {"action": action}
        if not isinstance(memory, tuple):
            answer["memory"] = memory
        return {n: (x[0] if request.alone else x).tolist() for n, x in answer.items()}

    def _body(self) -> bytes:
        """All of the body: a connection with unread bytes would be reset."""
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
        """Reads a little more than is used, so that the answer is heard."""
        self.close_connection = True
        left = min(length, 16 * self.server.limits.max_body)
        try:
            while left > 0 and (piece := self.rfile.read1(min(left, 1 << 16))):
                left -= len(piece)
        except TimeoutError:
            return

    def _check_host(self) -> None:
        """Keeps out a foreign name that points to this machine, if only it may ask."""
        if not self.server.only_here:
            return
        name = (self.headers.get("Host") or "").rpartition(":")[0]
        name = name or self.headers.get("Host") or ""
        here = str(self.server.server_address[0])
        if name not in (here, "localhost"):
            raise _Refused(HTTPStatus.FORBIDDEN, f"Host must be {here} or localhost.")

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """What is no HTTP, in the same words as the rest; it is the client's mistake."""
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

    def finish(self) -> None:
        try:
            super().finish()
        except (ConnectionError, TimeoutError):
            return

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the caller's."""
