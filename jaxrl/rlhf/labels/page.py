"""A small local page that asks a person which of two answers is better.

It is served on 127.0.0.1 alone. A request must name this host, come from this page, and
know a random token; texts reach the page as JSON and are shown as text, never as HTML.
"""

import dataclasses
import json
import secrets
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from jaxrl.core import config as configs
from jaxrl.core import http_server
from jaxrl.errors import count_noun

HOST = http_server.LOCAL
PAGE = Path(__file__).with_name("page.html")
PATIENCE = 10.0
"""Seconds until a request whose choice nobody takes gives up."""

STOP = -1
"""The choice to choose no more."""


class Shown(NamedTuple):
    """What is shown."""

    prompt: str
    first: str
    second: str


def ask(
    questions: Sequence[Shown],
    port: int = 0,
    open_browser: bool = True,
    report: Callable[[str], None] = print,
) -> Iterator[int]:
    """Serve the page while it is iterated, and yield each choice: 0, or 1.

    The page shows the next question when the choice is taken and the next is wanted, so
    whoever iterates may store a choice before. It ends early where the person stops.

    Args:
      questions: asked in this order.
      port: of 127.0.0.1; 0 means any that is free.
      open_browser: whether the page is opened in the default browser.
      report: is told the address, which holds the token.

    Raises:
      InvalidInput: the port cannot be had.
    """
    configs.check_value("port", int, port, low=0, high=65535)
    desk, token = _Desk(questions), secrets.token_urlsafe(16)
    server = _server(desk, token, port)
    address = f"http://{HOST}:{server.server_port}/?token={token}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        report(f"{count_noun(len(questions), 'question')} to answer: {address}")
        if open_browser:
            webbrowser.open(address)
        for number in range(len(questions)):
            choice = desk.ask(number)
            if choice == STOP:
                return
            yield choice
    finally:
        desk.close()
        server.shutdown()
        server.server_close()
        thread.join()


@dataclasses.dataclass
class _Desk:
    """What the one who iterates and the threads of the requests have in common."""

    questions: Sequence[Shown]
    number: int = 0  # of the question that is asked
    choice: int | None = None  # of it
    over: bool = False
    changed: threading.Condition = dataclasses.field(
        default_factory=threading.Condition
    )
    told: threading.Event = dataclasses.field(default_factory=threading.Event)

    def ask(self, number: int) -> int:
        """Wait for the choice of a question."""
        with self.changed:
            # The page is there before the first question is asked, and may be quicker.
            self.choice = self.choice if number == self.number else None
            self.number = number
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.choice is not None)
            assert self.choice is not None
            return self.choice

    def choose(self, number: int, choice: int) -> None:
        """A choice, once for each question, and then waits for what comes after it."""
        with self.changed:
            if number != self.number or self.over:
                return
            if self.choice is None:
                self.choice = choice
                self.changed.notify_all()
            self.changed.wait_for(lambda: self.number != number or self.over, PATIENCE)

    def state(self) -> dict[str, Any]:
        """For the page."""
        with self.changed:
            stopped = self.choice in (None, STOP)
            answered = self.number + (self.over and not stopped)
            found = {"over": self.over, "number": answered, "of": len(self.questions)}
            shown = Shown("", "", "") if self.over else self.questions[self.number]
            return found | dict(zip(Shown._fields, shown, strict=False))

    def close(self) -> None:
        """No more questions; waits a little until the page has heard of it."""
        with self.changed:
            someone_waits = self.choice is not None
            self.over = True
            self.changed.notify_all()
        if someone_waits:
            self.told.wait(2.0)


class _Server(http_server.Server):
    """With what its handlers need."""

    desk: _Desk
    token: str


def _server(desk: _Desk, token: str, port: int) -> _Server:
    server = http_server.open_server(_Server, _Handler, HOST, port)
    server.desk, server.token = desk, token
    return server


class _Handler(http_server.Handler):
    """`/`: the page. `/question`: what is asked, as JSON. `/choice`: takes a choice."""

    server: _Server

    def do_GET(self) -> None:  # noqa: N802 (the library's)
        self.note_read()
        address = urlsplit(self.path)
        if address.path == "/":
            token = parse_qs(address.query).get("token", [""])[0]
            if self._is_ours(token):
                self._send_page()
        elif address.path == "/question":
            if self._is_ours(self.headers.get("X-Token", "")):
                self._send_state()
        else:
            self._send(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:  # noqa: N802
        # Read even if it is refused: a connection with unread bytes is reset.
        found = self._choice()
        self.note_read()
        if not self._is_ours(self.headers.get("X-Token", "")):
            return
        if self.path != "/choice":
            self._send(HTTPStatus.NOT_FOUND)
            return
        if found is None:
            self._send(HTTPStatus.BAD_REQUEST)
            return
        self.server.desk.choose(*found)
        self._send_state()

    def _is_ours(self, token: str) -> bool:
        """Whether the request may be answered; says so if it may not.

        The host keeps out a foreign name that points to this machine, the origin another
        page, and the token whoever has not been given the address.
        """
        hosts = [f"{name}:{self.server.server_port}" for name in (HOST, "localhost")]
        host = self.headers.get("Host")
        origin = self.headers.get("Origin", f"http://{host}")
        known = secrets.compare_digest(token.encode(), self.server.token.encode())
        if host in hosts and origin == f"http://{host}" and known:
            return True
        self._send(HTTPStatus.FORBIDDEN)
        return False

    def _choice(self) -> tuple[int, int] | None:
        """Number and choice of the body, if it is one of the page's."""
        try:
            length = int(self.headers.get("Content-Length", ""))
            found = json.loads(self.rfile.read(max(min(length, 10_000), 0))[:1000])
            number, choice = found["number"], found["choice"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        choice = STOP if choice is None else choice
        is_whole = type(number) is int and type(choice) is int
        return (number, choice) if is_whole and choice in (0, 1, STOP) else None

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            f"img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            f"frame-ancestors 'none'"
        )
        page = PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
        self._send(HTTPStatus.OK, page, "text/html; charset=utf-8", policy)

    def _send_state(self) -> None:
        state = self.server.desk.state()
        self._send(HTTPStatus.OK, json.dumps(state), "application/json")
        if state["over"]:
            self.server.desk.told.set()

    def _send(
        self,
        status: HTTPStatus,
        content: str = "",
        kind: str = "text/plain",
        policy: str = "default-src 'none'",
    ) -> None:
        http_server.send(self, status, content, kind, Content_Security_Policy=policy)
