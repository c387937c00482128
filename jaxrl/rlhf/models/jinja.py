"""Jinja templates of strangers, rendered by a process that is stopped at its limits."""

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from jaxrl.errors import InvalidInput, install_command, one_line, require

TIME = 5.0
"""Seconds for one text."""

START = 60.0
"""Seconds for the process to start, on a machine that is busy."""

MEMORY = 1 << 29
"""Bytes that the process may address."""

MOST = 1 << 24
"""Characters of one text."""

WORKER = Path(__file__).with_name("jinja_worker.py")


def check(template: str) -> None:
    """Check that a template can be compiled.

    Raises:
      InvalidInput: it cannot, or `jinja2` is not installed.
    """
    require(
        importlib.util.find_spec("jinja2") is not None,
        f"a Jinja template needs the package jinja2: {install_command('rlhf')}.",
    )
    try:
        _ask({"template": template})
    except _Failed as error:
        raise InvalidInput(f"template is no Jinja text: {error}.") from error


def render(template: str, values: dict[str, Any]) -> str:
    """The text that a template makes of values.

    Raises:
      InvalidInput: it fails, or takes more time, memory or characters than it may.
    """
    try:
        return _ask({"template": template, "values": values})
    except _Failed as error:
        raise InvalidInput(f"the template cannot render it ({error}).") from error


class _Failed(Exception):
    """Why there is no text."""


def _ask(request: dict[str, Any]) -> str:
    found = _worker().ask(json.dumps(request).encode() + b"\n")
    if "error" in found:
        raise _Failed(one_line(found["error"]))
    return found["text"]


class _Worker:
    """The process, started when it is first asked, and again after it was stopped."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()
        atexit.register(self.stop)

    def ask(self, line: bytes) -> dict[str, str]:
        with self.lock:
            process = self.process or self.start()
            try:
                assert process.stdin is not None
                process.stdin.write(line)
                process.stdin.flush()
                content = self.read(TIME)
            except OSError:
                content = b""
            except BaseException:  # interrupted: the reply would be taken for the next
                self.stop()
                raise
            if content.endswith(b"\n"):
                return json.loads(content)
            self.stop()
            return {"error": f"it takes more than {TIME:g} s, or too much memory"}

    def start(self) -> subprocess.Popen[bytes]:
        limits = map(str, (MEMORY, MOST, round(2 * TIME)))
        process = self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for us
        )
        if not self.read(START):
            self.stop()
            raise InvalidInput(
                f"the process that renders templates does not start: run {sys.executable} "
                f"{WORKER} to see why."
            )
        return process

    def read(self, seconds: float) -> bytes:
        """A line, or what there is of it when the time is over."""
        assert self.process is not None and self.process.stdout is not None
        deadline, content = time.monotonic() + seconds, bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not content.endswith(b"\n"):
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    break
                piece = os.read(self.process.stdout.fileno(), 1 << 16)
                if not piece:
                    break
                content += piece
        return bytes(content)

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # of what was left to be written
                pipe.close()


@functools.cache
def _worker() -> _Worker:
    return _Worker()
