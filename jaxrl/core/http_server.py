"""HTTP server of the standard library, for the labelling page and `jaxrl serve`.

It is stricter than the library's: a request has a deadline as a whole, headers that two
parsers could read differently are refused, and where all connections are taken, those that
keep silent make room.
"""

import contextlib
import io
import re
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from jaxrl.errors import InvalidInput

LOCAL = "127.0.0.1"

IDLE = 30.0
"""Seconds until a connection without a request is closed."""

REQUEST = 10.0
"""Seconds from the first byte of a request to its last, and for a response to be taken."""

SILENT = 1.0
"""Seconds after which a connection that waits for its client is closed for another."""


class Server(ThreadingHTTPServer):
    """A threaded HTTP server that ignores clients which disconnect early."""

    # Do not wait for the threads of connections that a browser opens and never uses.
    daemon_threads = True
    request_queue_size = 128
    max_connections = 128

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.slots = threading.Condition()
        self.connections: dict[Any, float] = {}  # the socket -> since when it is silent
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the connection, or respond 503 if there are too many."""
        if not self._take_slot(request):
            self._refuse(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # without a thread, none releases it
            self._release_slot(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release_slot(request)

    def note_silence(self, request: Any, since: float) -> None:
        """Note since when a connection has waited for its client; inf: it does not."""
        if request in self.connections:
            self.connections[request] = since

    def _take_slot(self, request: Any) -> bool:
        with self.slots:
            if len(self.connections) >= self.max_connections:
                self._close_silent()
            if len(self.connections) >= self.max_connections:
                return False
            self.connections[request] = time.monotonic()
            return True

    def _release_slot(self, request: Any) -> None:
        with self.slots:
            self.connections.pop(request, None)
            self.slots.notify_all()

    def _close_silent(self) -> None:
        """Close the connection that has been silent for the longest time, if one is."""
        oldest = min(self.connections, key=self.connections.__getitem__)
        if time.monotonic() - self.connections[oldest] < SILENT:
            return
        with contextlib.suppress(OSError):  # it is closed already
            oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end
        self.slots.wait_for(lambda: oldest not in self.connections, SILENT)

    def _refuse(self, request: Any) -> None:
        line = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n"
        end = "Retry-After: 1\r\nConnection: close\r\n\r\n"
        with contextlib.suppress(OSError):  # it does not want to know
            request.settimeout(0)
            request.sendall((line + end).encode())
        self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a connection that the client closes before the response is complete."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Reader(io.RawIOBase):
    """The bytes of a connection, up to a moment that its handler sets."""

    def __init__(self, server: Server, connection: socket.socket) -> None:
        self.server, self.connection = server, connection
        self.deadline = time.monotonic() + REQUEST

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        now = time.monotonic()
        if now >= self.deadline:
            raise TimeoutError("the request takes too long")
        self.connection.settimeout(self.deadline - now)
        try:
            return self.connection.recv_into(buffer)
        finally:
            self.connection.settimeout(REQUEST)


class Handler(BaseHTTPRequestHandler):
    """Reads requests within their deadline, and refuses those with unclear headers."""

    server: Server
    default_request_version = "HTTP/1.0"  # a response of 0.9 has no status
    server_version, sys_version = "jaxrl", ""
    timeout = REQUEST
    wbufsize = 1 << 16  # headers and body in one packet
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Read by way of the deadline."""
        super().setup()
        self.rfile.close()
        self.reader = _Reader(self.server, self.connection)
        self.rfile = self.buffered = io.BufferedReader(self.reader)

    def handle_one_request(self) -> None:
        """Wait for a request, and handle it; the first has no time to wait."""
        self.server.note_silence(self.connection, time.monotonic())
        try:
            self.buffered.peek(1)
        except TimeoutError:
            self.close_connection = True
            return
        self.reader.deadline = time.monotonic() + REQUEST
        super().handle_one_request()
        self.reader.deadline = time.monotonic() + IDLE

    def note_read(self) -> None:
        """Note that the request is complete: now the client waits."""
        self.server.note_silence(self.connection, float("inf"))

    def parse_request(self) -> bool:
        """Parse the head; false if it was refused."""
        if not super().parse_request():
            return False
        fault = find_fault(self.headers, self.request_version)
        if fault is not None:
            self.send_error(HTTPStatus.BAD_REQUEST, fault)
        return fault is None

    def finish(self) -> None:
        """Close, whether or not the client takes what is left."""
        try:
            super().finish()
        except (ConnectionError, TimeoutError):
            return

    def log_message(self, format: str, *args: Any) -> None:
        """Silence the default access log."""


NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name (RFC 9110, section 5.6.2)."""


def find_fault(headers: Any, version: str) -> str | None:
    """What is wrong with parsed headers, for a message; None if nothing is.

    The library stops at a line that is no header, such as one with a blank before the
    colon, and takes the rest as a body (RFC 9112, sections 3.2 and 5.1).
    """
    if headers.defects or headers.get_payload():
        return "a line of the head is no header"
    for name, value in headers.items():
        if not NAME.fullmatch(name) or any(ord(c) < 32 and c != "\t" for c in value):
            return "a header has a character that is not allowed there"
    hosts = len(headers.get_all("Host", []))
    if hosts > 1 or (hosts == 0 and version >= "HTTP/1.1"):
        return f"there must be one Host, not {hosts}"
    return None


S = TypeVar("S", bound=Server)


def open_server(
    server: type[S], handler: type[BaseHTTPRequestHandler], host: str, port: int
) -> S:
    """Open a server that listens on a port; 0 means any free port.

    Raises:
      InvalidInput: it cannot listen there.
    """
    try:
        return server((host, port), handler)
    except OSError as error:
        where = "" if host == LOCAL else f"host = {host!r}, "
        raise InvalidInput(
            f"{where}port = {port}: cannot be opened ({error.strerror}); give another one, "
            f"or 0 for any that is free."
        ) from error


def send(
    handler: BaseHTTPRequestHandler,
    status: HTTPStatus,
    content: str = "",
    kind: str = "text/plain",
    **more: str,
) -> None:
    """Send a response, headers and body in one piece.

    Args:
      handler: the handler of the request.
      status: the status code.
      content: the body.
      kind: the content type.
      **more: further headers, with `_` for `-`.
    """
    body = content.encode()
    handler.send_response(status)
    for name, value in {
        "Content-Type": kind,
        "Content-Length": str(len(body)),
        "Content-Security-Policy": "default-src 'none'",
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
