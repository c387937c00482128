"""Check of every page in a real browser, at desktop and phone width, for overflow.

    mkdocs build --strict
    python -m tools.screenshots site                       # all pages, minutes
    python -m tools.screenshots site --pages index.html ppo.html --out shots
    python -m tools.screenshots REPORT                     # of `jaxrl report`

A page fails if it can be scrolled sideways; a wide table has to scroll in its own box. The
overflowing element is named. With `--out`, a full-length picture of each page is written.
Needs Chromium and its chromedriver on the PATH (Debian: `chromium chromium-driver`).
"""

import argparse
import contextlib
import sys
import tempfile
import threading
from base64 import b64decode
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tools import webdriver

SIZES = {"desk": (1280, 800), "phone": (390, 844)}
TALLEST = 6_000
"""Maximum height of a picture in pixels; the rest is cut off."""

STILL = "<style>*, ::before, ::after { transition: none !important }</style>"

WIDER = """(() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return "";
  const out = [...document.querySelectorAll("body *")].filter(
    x => x.getBoundingClientRect().right > width + 1 && !inABox(x));
  function inABox(x) {
    for (let y = x.parentElement; y && y !== document.body; y = y.parentElement)
      if (getComputedStyle(y).overflowX !== "visible") return true;
    return false;
  }
  const said = x => `${x.tagName}.${x.className} ${x.textContent.slice(0, 60)}`;
  const widths = `${document.documentElement.scrollWidth} of ${width}: `;
  return widths + out.slice(0, 3).map(said).join("; ");
})()"""
"""Script that returns the elements that overflow a page."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="of HTML files")
    parser.add_argument("--pages", nargs="*", help="some of its files; all by default")
    parser.add_argument("--out", type=Path, help="a folder of pictures")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    if webdriver.MISSING:
        sys.exit(f"not installed: {', '.join(webdriver.MISSING)}")
    found = sorted(
        x.relative_to(arguments.folder) for x in arguments.folder.rglob("*.html")
    )
    pages = [Path(x) for x in arguments.pages or found]
    wrong = []
    for size in arguments.sizes:
        wrong += look(arguments.folder.resolve(), pages, size, arguments.out)
    print(*wrong, sep="\n")
    print(f"{len(pages)} pages at {len(arguments.sizes)} widths, {len(wrong)} too wide")
    sys.exit(bool(wrong))


def look(folder: Path, pages: list[Path], size: str, out: Path | None) -> list[str]:
    """The pages that are wider than the screen."""
    wrong = []
    with (
        served(folder) as address,
        tempfile.TemporaryDirectory() as profile,
        webdriver.session(*SIZES[size], profile) as ask,
    ):
        for page in pages:
            ask("POST", "/url", url=f"{address}/{page.as_posix()}")
            wider = webdriver.run(ask, WIDER)
            if wider:
                wrong.append(f"{page}, {size}: {wider}")
            if out:
                file = out / size / page.with_suffix(".png")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(picture(ask, SIZES[size][0]))
    return wrong


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        del words


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP, which the site's search needs, to this machine only."""
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def picture(ask: webdriver.Ask, width: int) -> bytes:
    """Full-length picture of a page as PNG."""
    webdriver.run(ask, f"document.head.insertAdjacentHTML('beforeend', '{STILL}')")
    height = webdriver.run(ask, "document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, TALLEST), "scale": 1}
    given = ask(
        "POST",
        "/goog/cdp/execute",
        cmd="Page.captureScreenshot",
        params={"captureBeyondViewport": True, "clip": clip},
    )
    return b64decode(given["data"])


if __name__ == "__main__":
    main()
