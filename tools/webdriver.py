"""Headless browser, controlled by the WebDriver protocol over HTTP.

Source: https://www.w3.org/TR/webdriver2/. Needs Chromium and its chromedriver on the PATH.
"""

import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import Any

PROGRAMS = ("chromium", "chromedriver")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]

Ask = Callable[..., Any]
"""`ask(method, path, **body) -> value`: a request of a session."""


@contextlib.contextmanager
def session(width: int, height: int, profile: Any) -> Iterator[Ask]:
    """Context manager of a new browser with its own profile and a window size."""
    arguments = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-background-networking", "--disable-extensions"),
        *(f"--window-size={width},{height}", f"--user-data-dir={profile}"),
    ]
    options = {"binary": shutil.which(PROGRAMS[0]), "args": arguments}
    if width < 500:  # no window is that narrow; a phone's screen is
        screen = {"width": width, "height": height, "pixelRatio": 2.0}
        options["mobileEmulation"] = {"deviceMetrics": screen}
    wanted = {"alwaysMatch": {"goog:chromeOptions": options}}
    driver = subprocess.Popen(
        [PROGRAMS[1], "--port=0"], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    with driver:
        try:
            assert driver.stdout is not None
            lines = (re.search(r"on port (\d+)\.", line) for line in driver.stdout)
            port = next(found for found in lines if found)[1]
            root = f"http://127.0.0.1:{port}/session"
            made = _asked("POST", root, {"capabilities": wanted})
            one = f"{root}/{made['sessionId']}"
            try:
                yield lambda method, path, **body: _asked(method, one + path, body)
            finally:
                _asked("DELETE", one, {})  # which ends the browser
        finally:
            driver.terminate()


def click(ask: Ask, selector: str) -> None:
    found = ask("POST", "/element", using="css selector", value=selector)
    (element,) = found.values()
    ask("POST", f"/element/{element}/click")


def press(ask: Ask, key: str) -> None:
    strokes = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
    source = {"type": "key", "id": "keyboard", "actions": strokes}
    ask("POST", "/actions", actions=[source])


def run(ask: Ask, script: str) -> Any:
    """Run a script in the page; return its result."""
    return ask("POST", "/execute/sync", script=f"return {script}", args=[])


def wait(ask: Ask, condition: str, seconds: float = 20.0) -> None:
    """Wait until a condition holds in the page."""
    end = time.monotonic() + seconds
    while not run(ask, condition):
        assert time.monotonic() < end, f"{condition} did not come"
        time.sleep(0.01)


def screenshot(ask: Ask) -> bytes:
    return b64decode(ask("GET", "/screenshot"))


def _asked(method: str, url: str, body: dict[str, Any]) -> Any:
    content = None if method == "GET" else json.dumps(body).encode()
    request = urllib.request.Request(url, content, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode()) from error
