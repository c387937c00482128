"""HTTP server of the standard library, for the labelling page and `jaxrl serve`."""

import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from jaxrl.errors import InvalidInput

LOCAL = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """A threaded HTTP server that ignores clients which disconnect early."""

    # Do not wait for the threads of connections that a browser opens and never uses.
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a connection that the client closes before the response is complete."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


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
