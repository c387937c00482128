"""`jaxrl serve`: answers as the policy, refuses with a sentence, stops in order."""

import contextlib
import dataclasses
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import jaxrl
from jaxrl import spaces
from jaxrl.core import http_server
from jaxrl.deployment.serving import Limits, serve_policy
from jaxrl.deployment.wire import make_schema, read
from jaxrl.errors import InvalidInput
from tests.cli.test_cli import refused
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def policy(dqn_run):
    """Of a wider space than the probe's, so that there are several observations."""
    policy = jaxrl.load_policy(dqn_run)
    env = policy.env.replace(observation_space=spaces.box(-1, 1, (1,)))
    return dataclasses.replace(policy, env=env)


@pytest.fixture(scope="module")
def server(policy):
    with serve_policy(policy, limits=Limits(max_batch=8, max_body=4096)) as server:
        yield server


@pytest.fixture(scope="module")
def recurrent(gru_run):
    with serve_policy(jaxrl.load_policy(gru_run), limits=Limits(max_batch=4)) as server:
        yield server


def ask(server, body, method="POST", path="/act", **headers):
    """Status and content of one request."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    body = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content)


def test_actions_are_those_of_the_policy(server, policy):
    obs = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    expected = np.asarray(policy.act(obs)[0]).tolist()
    assert ask(server, {"obs": obs.tolist()}) == (200, {"action": expected})
    one = [ask(server, {"obs": row.tolist()})[1]["action"] for row in obs]
    assert one == expected


def test_requests_that_come_together_are_answered_by_few_calls(server):
    before = ask(server, None, "GET", "/health")[1]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: ask(server, {"obs": [[0.5]] * 3}), range(60)))
    assert {status for status, _ in found} == {200}
    after = ask(server, None, "GET", "/health")[1]
    assert after["observations"] - before["observations"] == 180
    assert after["batches"] - before["batches"] <= 60
    assert after["env"] == "probe/action" and after["status"] == "ok"


def test_memory_goes_there_and_back(recurrent):
    policy = recurrent.policy
    memory, theirs = policy.init_memory(), None
    for x in (1.0, 0.0, 0.5):
        body = {"obs": [x, 0.0]} | ({} if theirs is None else {"memory": theirs})
        status, answer = ask(recurrent, body)
        action, memory = policy.act(np.array([x, 0.0], np.float32), memory)
        theirs = answer["memory"]
        assert status == 200 and answer["action"] == int(action)
        np.testing.assert_allclose(theirs, memory, atol=1e-6)
    status, answer = ask(recurrent, {"obs": [[1.0, 0.0]] * 3})
    assert status == 200 and np.shape(answer["memory"]) == (3, 4)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (b"{", ["not JSON"]),
        (b"\xff\xfe", ["not JSON"]),
        (b"[" * 4000, ["not JSON"]),
        (b"[1]", ['JSON object with "obs"']),
        ({"ob": [0]}, ['"obs"']),
        ({"obs": [0.0], "greedily": 1}, ["'greedily' is not a field"]),
        ({"obs": [0.0, 1.0]}, ["shape [2]", "has [1]"]),
        ({"obs": [[[0.0]]]}, ["shape [1, 1, 1]"]),
        ({"obs": [[0.0], []]}, ["equal lengths"]),
        ({"obs": ["a"]}, ["must be numbers"]),
        ({"obs": [True]}, ["must be numbers"]),
        ({"obs": [[0.5], [False]]}, ["must be numbers"]),
        ({"obs": None}, ["must be numbers"]),
        ({"obs": {"x": 1}}, ["must be numbers"]),
        (b'{"obs": [NaN]}', ["NaN", "finite"]),
        (b'{"obs": [-Infinity]}', ["finite"]),
        (b'{"obs": [1e999]}', ["finite"]),
        ({"obs": [7.0]}, ["obs[0] = 7 is outside", "-1 to 1"]),
        ({"obs": [[0.0], [-3.0]]}, ["obs[1, 0] = -3 is outside"]),
        ({"obs": [[0.0]] * 9}, ["9 observations", "at most 8"]),
        ({"obs": [0.0], "memory": [0.0]}, ["this policy has none"]),
    ],
)
def test_a_bad_body_is_refused_with_a_sentence(body, parts, server):
    status, content = ask(server, body)
    assert status == 400 and list(content) == ["error"]
    assert all(part in content["error"] for part in parts), content
    assert ask(server, {"obs": [0.0]})[0] == 200


def test_a_memory_that_does_not_fit_is_refused(recurrent):
    for memory, words in (
        ([0.0] * 3, "[4]"),
        (["a"] * 4, "numbers"),
        ([3e38, -3e38, 3e38, -3e38], "not finite"),
    ):
        status, content = ask(recurrent, {"obs": [0.0, 0.0], "memory": memory})
        assert status == 400 and words in content["error"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/act", {}, 405),
        ("POST", "/health", {}, 405),
        ("DELETE", "/act", {}, 405),
        ("GET", "/", {}, 404),
        ("POST", "/act", {"Host": "evil.example"}, 403),
        ("POST", "/act", {"Origin": "http://evil.example"}, 403),
        ("POST", "/act", {"Origin": "null"}, 403),
        ("GET", "/health", {"host": "localhost"}, 400),
        ("GET", "/health", {"host": "evil.example"}, 400),
        ("POST", "/act", {"Content-Length ": "3"}, 400),
        ("POST", "/act", {"Transfer-Encoding ": "chunked"}, 400),
        ("GET", "/health", {"X": "a\r\n folded: b"}, 400),
        ("GET", "/health", {"X": "a\x00b"}, 400),
        ("GET", "/health", {"X\xe9": "a"}, 400),
        ("GET", "/health", {"": "a"}, 400),
        ("POST", "/act", {"Transfer-Encoding": "chunked"}, 411),
        ("POST", "/act", {"Content-Length": "-1"}, 400),
        ("POST", "/act", {"Content-Length": "5000"}, 413),
        ("POST", "/act", {"Content-Length": "9" * 30}, 413),
    ],
)
def test_a_bad_request_is_refused(method, path, headers, status, server):
    lines = {"Host": "localhost", "Content-Length": "0"} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    found = raw(server, f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())
    assert found.startswith(f"HTTP/1.1 {status} ".encode()), found
    assert b'{"error": "' in found


@pytest.mark.parametrize(
    "line", [b"nonsense", b"GET", b"GET / HTTP/9.9", b"G\x00T / HTTP/1.1", b"A" * 70000]
)
def test_what_is_no_http_is_refused(line, server):
    assert raw(server, line + b"\r\n\r\n").startswith(b"HTTP/1.1 4")


def raw(server, content: bytes) -> bytes:
    """What comes back for these bytes."""
    with socket.create_connection(server.server_address, timeout=20) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        pieces = iter(lambda: connection.recv(65536), b"")
        return b"".join(pieces)


def test_a_thousand_pieces_of_a_request_do_no_harm(server):
    """Bytes of a right body are cut out, doubled and replaced."""
    generator = random.Random(0)
    right = json.dumps({"obs": [[0.5], [-0.25]]}).encode()
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    for _ in range(1_000):
        body = bytearray(right)
        for _ in range(generator.randint(1, 4)):
            place = generator.randrange(len(body))
            body[place : place + generator.randint(0, 2)] = generator.randbytes(1)
        connection.request("POST", "/act", bytes(body))
        answer = connection.getresponse()
        content = json.loads(answer.read())
        assert answer.status == 400 or "action" in content
    connection.close()
    assert ask(server, {"obs": [0.0]})[0] == 200


def test_a_request_of_the_newer_protocol_names_its_host(server):
    assert raw(server, b"GET /health HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert raw(server, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403")


def test_a_request_has_a_deadline_as_a_whole(server, monkeypatch):
    """Bytes that come one by one, each in time, do not keep a connection."""
    monkeypatch.setattr(http_server, "REQUEST", 0.3)
    right = b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{"
    for beginning in (b"", b"GET /health HT", right):
        started = time.monotonic()
        with socket.create_connection(server.server_address, timeout=20) as connection:
            connection.sendall(beginning)
            with pytest.raises(ConnectionError):
                while time.monotonic() < started + 10:
                    connection.sendall(b"X")
                    time.sleep(0.05)
        assert time.monotonic() - started < 5


def test_connections_that_keep_silent_make_room(policy, monkeypatch):
    monkeypatch.setattr(http_server, "SILENT", 0.1)
    limits = Limits(max_batch=1, max_connections=3)
    with serve_policy(policy, limits=limits) as server, contextlib.ExitStack() as stack:
        for _ in range(3):
            address = server.server_address
            slow = stack.enter_context(socket.create_connection(address, timeout=20))
            slow.sendall(b"GET /health HT")
        time.sleep(0.2)
        assert ask(server, {"obs": [0.0]})[0] == 200
        assert len(server.connections) <= 3


def test_too_many_connections_are_told_to_come_again(policy, monkeypatch):
    monkeypatch.setattr(http_server, "SILENT", 1e9)
    with (
        serve_policy(policy, limits=Limits(max_batch=1, max_connections=1)) as server,
        socket.create_connection(server.server_address, timeout=20) as first,
    ):
        first.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
        assert raw(server, b"").startswith(b"HTTP/1.1 503")


def test_who_waits_for_leave_to_send_the_body_has_it_at_once(server):
    head = b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 14\r\n"
    with socket.create_connection(server.server_address, timeout=20) as connection:
        connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(b'{"obs": [0.0]}')
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_connection_that_outlives_the_server_is_told_so(policy):
    with serve_policy(policy, limits=Limits(max_batch=1)) as server:
        kept = http.client.HTTPConnection(*server.server_address, timeout=20)
        kept.request("GET", "/health")
        assert kept.getresponse().read()
    kept.request("POST", "/act", json.dumps({"obs": [0.0]}))
    assert kept.getresponse().status == 503


def test_actions_are_sampled_where_that_is_asked(policy):
    with serve_policy(policy, greedy=False, limits=Limits(max_batch=8)) as server:
        assert not server.health()["greedy"]
        status, answer = ask(server, {"obs": [[0.0]] * 8})
        assert status == 200 and len(answer["action"]) == 8


def test_a_failing_program_is_an_error_of_the_server_that_goes_on(policy, capsys):
    def broken(*arguments):
        raise RuntimeError("broken")

    with serve_policy(policy, limits=Limits(max_batch=1)) as server:
        programs, server.batcher._run = server.batcher._run, broken
        assert ask(server, {"obs": [0.0]})[0] == 500
        server.batcher._run = programs
        assert ask(server, {"obs": [0.0]})[0] == 200
    assert "broken" in capsys.readouterr().err


def test_a_request_of_whole_numbers_is_held_to_them(policy):
    space = spaces.dict_space(
        a=spaces.Discrete(3), b=spaces.box(0, 255, (2,), np.uint8)
    )
    env = policy.env.replace(observation_space=space)
    form = make_schema(
        jaxrl.runs.policy.Policy(policy.algorithm, policy.config, env, ()), 4
    )
    found = read(form, b'{"obs": {"a": [2, 0], "b": [[0, 255], [3.0, 4]]}}')
    assert found.rows == 2 and found.obs["b"].dtype == np.uint8
    for body, words in (
        ('{"a": 3, "b": [0, 0]}', "obs.a = 3 is outside"),
        ('{"a": 1.5, "b": [0, 0]}', "obs.a must be whole"),
        ('{"a": 1, "b": [0, 256]}', r"obs.b\[1\] = 256 is outside"),
        ('{"a": [1], "b": [0, 0]}', "different lengths"),
        ('{"a": 1}', "must be an object with a, b"),
    ):
        with pytest.raises(InvalidInput, match=words):
            read(form, f'{{"obs": {body}}}'.encode())


@pytest.mark.parametrize(
    ("space", "largest", "beyond"),
    [
        (spaces.box(-np.inf, np.inf, (), np.int32), 2**31 - 1, 2**40 + 5),
        (spaces.box(0, 2**31 - 1, (), np.int32), 2**31 - 1, 2**31),
        (spaces.box(0, 2**32 - 1, (), np.uint32), 2**32 - 1, 2**32),
        (spaces.box(0, 2**24, (), np.int32), 2**24, 2**24 + 1),
        (spaces.Discrete(2**31 - 1), 2**31 - 2, 2**31 - 1),
        (spaces.box(-np.inf, np.inf, ()), 3e38, 1e39),
    ],
)
def test_no_number_of_a_request_is_wrapped(policy, space, largest, beyond):
    env = policy.env.replace(observation_space=space)
    form = make_schema(
        jaxrl.runs.policy.Policy(policy.algorithm, policy.config, env, ()), 4
    )
    found = read(form, f'{{"obs": {largest}}}'.encode())
    assert found.obs.dtype == space.dtype and found.obs[0] == np.asarray(
        largest, space.dtype
    )
    with pytest.raises(InvalidInput, match=r"^obs"):
        read(form, f'{{"obs": {beyond}}}'.encode())


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(number, dqn_run):
    program = "import sys; from jaxrl.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "serve", str(dqn_run), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--max-batch", "1"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
        assert line.startswith("dqn on probe/action: http://127.0.0.1:")
        address = line.split("/")[-1].split(":")
        connection = http.client.HTTPConnection(address[0], int(address[1]))
        connection.request("GET", "/health")
        health = json.loads(connection.getresponse().read())
        obs = health["observation_space"]["Box"]["low"]
        connection.request("POST", "/act", json.dumps({"obs": obs}))
        assert connection.getresponse().status == 200
        process.send_signal(number)
        assert process.wait() == 0
    finally:
        timer.cancel()
        process.kill()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("nowhere", ["RUN = 'nowhere'"]),
        ("RUN --port 99999", ["port = 99999", "at most 65535"]),
        (f"RUN --seed {2**70}", ["seed = 1180591620717411303424", "at most"]),
        ("RUN --max-batch 0", ["max_batch = 0", "at least 1"]),
        ("RUN --agent 7", ["agent = 7"]),
        ("RUN --host 203.0.113.1", ["host = '203.0.113.1'", "cannot be opened"]),
    ],
)
def test_bad_input_is_one_line(words, parts, dqn_run, capsys):
    argv = [str(dqn_run) if word == "RUN" else word for word in words.split()]
    line = refused(["serve", *argv], capsys)
    assert all(part in line for part in parts), line
