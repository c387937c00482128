"""Serving HTTP with the standard library: what the page of RLHF and `jaxrl serve` share."""

import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from jaxrl.errors import InvalidInput

LOCAL = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """One that is not troubled by who leaves early."""

    # Threads of connections that a browser opens ahead, and uses never, are not waited for.
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that is closed while it is answered is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


S = TypeVar("S", bound=Server)


def opened(
    server: type[S], handler: type[BaseHTTPRequestHandler], host: str, port: int
) -> S:
    """A server that listens; 0 means any port that is free.

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
    """The answer to a request: headers and body in one piece.

    Args:
      handler: of the request.
      status: of the answer.
      content: the body.
      kind: its type.
      **more: further headers, `_` for `-`.
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
