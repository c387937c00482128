"""Exported policies against their originals, and a served policy under load.

    python -m benchmarks.serving                    # five minutes on two cores
    python -m benchmarks.serving --quick --out DIR

export     policies of several kinds, trained a little, as StableHLO and ONNX: on how many
           of 1,000 observations they agree with `Policy.act`, and the largest difference
load       `jaxrl serve` in its own process with a PPO policy of CartPole, queried over
           loopback by persistent connections: failed requests and latencies
malformed  1,000 requests of 20 kinds that must all be refused with 4xx, then a right one

Writes benchmarks/results/serving.json, which docs/deployment.md shows.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import script
from jaxrl import Experiment, run_experiment
from jaxrl.algorithms import ALGORITHMS
from jaxrl.runs.experiment import commit, versions
from jaxrl.training.devices import hardware

HERE = Path(__file__).parent
PARTS = ["export", "load", "malformed"]
CONNECTIONS, ROWS = 16, 8
POLICIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "PPO, discrete": ("ppo", "CartPole-v1", {}),
    "DQN": ("dqn", "CartPole-v1", {}),
    "PPO, normalised, continuous": ("ppo", "Pendulum-v1", {"normalize_obs": True}),
    "PPO, masked actions": ("ppo", "probe/masked", {}),
    "PPO, images": ("ppo", "Breakout-MinAtar", {"total_steps": 4_096.0}),
    "PPO, GRU": (
        "ppo",
        "MemoryChain-bsuite",
        {"network": "gru(size=16)", "num_minibatches": 1, "normalize_obs": True},
    ),
}
"""Policies to export: algorithm, environment, config."""

STEPS = 20_480
"""Environment steps of training, unless the config sets them."""


def main() -> None:
    parser = script.parser(__doc__, PARTS)
    arguments, file, rows = script.opened(parser, HERE / "results", "serving.json")
    seconds, steps = (2.0, 2_048) if arguments.quick else (60.0, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        if "export" in arguments.parts:
            names = list(POLICIES)[: 2 if arguments.quick else None]
            rows["export"] = exports(Path(folder), names, steps)
        run = trained(Path(folder), "PPO, discrete", steps)
        if "load" in arguments.parts:
            rows["load"] = load(run, seconds)
        if "malformed" in arguments.parts:
            rows["malformed"] = malformed(run, 1_000)
    about = {
        "versions": versions(),
        "hardware": hardware(),
        "command": "python -m benchmarks.serving",
    }
    file.write_text(
        json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    print("\n".join(tables(rows).values()))


def trained(folder: Path, name: str, steps: int) -> Path:
    """The run folder of a policy, trained once."""
    algorithm, env, config = POLICIES[name]
    out = folder / name
    if not out.exists():
        kind = ALGORITHMS[algorithm]
        if algorithm == "dqn":
            config = config | {"learning_starts": 1_000, "buffer_size": 10_000}
        config = {"total_steps": float(steps)} | config
        experiment = Experiment(kind, kind.Config(**config), env)
        run_experiment(experiment, out, progress=False, report=lambda line: None)
    return out


def exports(folder: Path, names: list[str], steps: int) -> list[dict[str, Any]]:
    from jaxrl.deployment.export import export

    found = []
    for name in names:
        run = trained(folder, name, steps)
        for format in ("stablehlo", "onnx"):
            out = folder / f"{name}.{format}"
            about = export(run, out, format)  # type: ignore[arg-type]
            row = {"policy": name, "env": about["env"], "format": format}
            row |= about["agreement"] | {"bytes": out.stat().st_size}
            found.append(row | {"commit": commit()})
    return found


@contextmanager
def serving(run: Path) -> Iterator[tuple[str, int, subprocess.Popen]]:
    """Start `jaxrl serve` in its own process: host, port, process."""
    program = "import sys; from jaxrl.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "serve", str(run), "--port", "0"],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip().rpartition("/")[2]
        host, _, port = address.partition(":")
        yield host, int(port), process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def load(run: Path, seconds: float) -> dict[str, Any]:
    """Latencies of successful requests (200 with as many actions), and the others."""
    latencies: list[list[float]] = [[] for _ in range(CONNECTIONS)]
    failed = [0] * CONNECTIONS

    def client(number: int, host: str, port: int, until: float) -> None:
        connection = http.client.HTTPConnection(host, port, timeout=30)
        obs = np.random.default_rng(number).uniform(-0.2, 0.2, (ROWS, 4)).tolist()
        body = json.dumps({"obs": obs})
        while time.perf_counter() < until:
            started = time.perf_counter()
            try:
                connection.request("POST", "/act", body)
                answer = connection.getresponse()
                content = json.loads(answer.read())
                right = answer.status == 200 and len(content["action"]) == ROWS
            except (OSError, ValueError, KeyError, http.client.HTTPException):
                connection.close()
                right = False
            latencies[number].append(time.perf_counter() - started)
            failed[number] += not right
        connection.close()

    with serving(run) as (host, port, process):
        until = time.perf_counter() + seconds
        threads = [
            threading.Thread(target=client, args=(i, host, port, until))
            for i in range(CONNECTIONS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        batches = health(host, port)["batches"]
        alive = process.poll() is None
    return summary(np.concatenate(latencies), sum(failed), seconds) | {
        "batches": batches,
        "alive": alive,
        "connections": CONNECTIONS,
        "rows": ROWS,
        "cores": len(os.sched_getaffinity(0)),
        "commit": commit(),
    }


def summary(latencies: np.ndarray, failed: int, seconds: float) -> dict[str, Any]:
    p50, p99 = np.percentile(latencies, [50, 99])
    return {
        "seconds": seconds,
        "requests": len(latencies),
        "failed": failed,
        "requests_per_second": len(latencies) / seconds,
        "observations_per_second": ROWS * len(latencies) / seconds,
        "p50_ms": 1e3 * float(p50),
        "p99_ms": 1e3 * float(p99),
        "max_ms": 1e3 * float(latencies.max()),
    }


def health(host: str, port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("GET", "/health")
    found: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def post(body: bytes, **headers: str) -> bytes:
    lines = {"Host": "localhost", "Content-Length": str(len(body))} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /act HTTP/1.1\r\n{head}\r\n".encode() + body


RIGHT = b'{"obs": [0.0, 0.1, 0.0, -0.1]}'
MALFORMED = [
    post(b""),
    post(b"{"),
    post(b"\xff\xfe\x00"),
    post(b"[" * 10_000),
    post(b"null"),
    post(b'{"observation": [0, 0, 0, 0]}'),
    post(b'{"obs": [0, 0, 0]}'),
    post(b'{"obs": [[[0, 0, 0, 0]]]}'),
    post(b'{"obs": [[0, 0, 0, 0], [0, 0]]}'),
    post(b'{"obs": ["0", "0", "0", "0"]}'),
    post(b'{"obs": [true, false, true, false]}'),
    post(b'{"obs": [NaN, 0, 0, 0]}'),
    post(b'{"obs": [1e999, 0, 0, 0]}'),
    post(b'{"obs": [99, 0, 0, 0]}'),
    post(b'{"obs": ' + json.dumps([[0.0] * 4] * 65).encode() + b"}"),
    post(RIGHT, Content_Length="none"),
    post(RIGHT, Content_Length="99999999999"),
    post(RIGHT, Transfer_Encoding="chunked"),
    post(RIGHT).replace(b"POST", b"BREW"),
    b"nonsense\r\n\r\n",
]


def malformed(run: Path, number: int) -> dict[str, Any]:
    """Responses to malformed requests, and to a valid request after them."""
    statuses: Counter[str] = Counter()
    with serving(run) as (host, port, process):
        for i in range(number):
            with socket.create_connection((host, port), timeout=30) as connection:
                connection.sendall(MALFORMED[i % len(MALFORMED)])
                connection.shutdown(socket.SHUT_WR)
                words = connection.recv(64).split(b" ")
            statuses[words[1].decode() if len(words) > 1 else "none"] += 1
        connection = http.client.HTTPConnection(host, port, timeout=30)
        connection.request("POST", "/act", RIGHT)
        answered = connection.getresponse().status == 200
        alive = answered and process.poll() is None
    return {
        "requests": number,
        "refused_4xx": sum(n for code, n in statuses.items() if code[:1] == "4"),
        "statuses": dict(sorted(statuses.items())),
        "alive": alive,
        "commit": commit(),
    }


def tables(rows: dict[str, Any]) -> dict[str, str]:
    """Part of the results -> its table in Markdown."""
    found = {}
    if "export" in rows:
        lines = [
            "| policy | environment | format | observations that agree, of "
            "| largest difference | bytes |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['policy']} | {row['env']} | {row['format']} | {row['within']:,}, "
            f"{row['observations']:,} | {row['largest']:.1e} | {row['bytes']:,} |"
            for row in rows["export"]
        ]
        found["export"] = "\n".join(lines) + "\n"
    if "load" in rows and "malformed" in rows:
        found["serving"] = "\n".join(serving_lines(rows)) + "\n"
    return found


def serving_lines(rows: dict[str, Any]) -> list[str]:
    row, bad = rows["load"], rows["malformed"]
    return [
        "| what | measured |",
        "|---|---|",
        f"| requests in {row['seconds']:g} s | {row['requests']:,} |",
        f"| failed | {row['failed']:,} |",
        f"| requests, observations per second | {row['requests_per_second']:,.0f}, "
        f"{row['observations_per_second']:,.0f} |",
        f"| latency: median, p99, largest | {row['p50_ms']:.1f}, {row['p99_ms']:.1f}, "
        f"{row['max_ms']:.1f} ms |",
        f"| requests answered by one call of the program, mean | "
        f"{row['requests'] / max(row['batches'], 1):.1f} |",
        f"| malformed requests refused with 4xx | {bad['refused_4xx']:,} of "
        f"{bad['requests']:,} |",
        f"| server alive, and correct afterwards | {'yes' if bad['alive'] else 'no'} |",
    ]


if __name__ == "__main__":
    main()
