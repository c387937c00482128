"""A run as a person sees it while it trains: a live block on a terminal, elsewhere lines.

The block, in a terminal: below the bar, and as long as it, the curves of the run so far.

    ppo on CartPole-v1, 10 agents  runs/ppo-CartPole-v1-0-0
                       40 %  ━━━━━━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
    return            312.4           ▁▄▅▇███████████
      lowest          201.0       ▁▄▆████████████████
      highest         430.5  ▁▂▅▇████████████████████
    policy/entropy   0.5120  ████▇▇▆▆▅▅▄▄▃▃▂▂▁▁▁▁▁▁▁▁
    after 0:04  0:06 left  512,340 steps/s in all  204,800 of 512,000 steps each

A line, in a pipe, a log file or a notebook:

    40 %  204,800 of 512,000 steps  return 312.4  51,234 steps/s  0:06 left

Both go to stderr, and are written by the host between calls of the device.
"""

import math
import os
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from jaxrl.errors import count_noun
from jaxrl.runs.loggers import RETURN
from jaxrl.types import Row

SHOWN = (
    "loss/",
    "policy/entropy",
    "policy/kl",
    "policy/approx_kl",
    "value/",
    "imitation/error",
    "reward/gold",
    "reward/accuracy",
    "text/accuracy",
    "rollout/episode_length",
    "explore/epsilon",
)
"""The metrics that the block shows, the dearest first; "loss/" are all losses."""

MOST_METRICS = 6
REDRAW_SECONDS = 0.25
LINE_SECONDS = 10.0
NUMBER_WIDTH = 10
MOST_COLUMNS, FEWEST_COLUMNS = 100, 12
"""Of the curves; where there is no room for the fewest there are none."""

EIGHTHS = " ▁▂▃▄▅▆▇█"


class Spread(NamedTuple):
    """Of a metric over the agents that have one."""

    mean: float
    low: float
    high: float


def spread(value: Any) -> Spread | None:
    """None where nothing was counted for any agent; NaN where one has it."""
    known = [
        x for x in (value if isinstance(value, list) else [value]) if x is not None
    ]
    if not known:
        return None
    if any(map(math.isnan, known)):
        return Spread(math.nan, math.nan, math.nan)
    return Spread(sum(known) / len(known), min(known), max(known))


@dataclass
class Story:
    """What is known of a run so far."""

    title: str
    total: int  # environment steps of each agent
    agents: int
    folder: str = ""
    steps: list[int] = field(default_factory=list)  # of each row
    rows: list[dict[str, Spread | None]] = field(default_factory=list)
    began: tuple[int, float] | None = None  # steps and seconds, of this process
    now: tuple[int, float] = (0, 0.0)

    def add(self, row: Row) -> None:
        """A row of `training.loop.train`."""
        self.steps.append(row["env_steps"])
        self.rows.append({name: spread(row[name]) for name in [RETURN, *ordered(row)]})

    def go_to(self, env_steps: int, seconds: float) -> None:
        self.now = env_steps, seconds
        self.began = self.began or self.now

    def last(self, name: str) -> Spread | None:
        """The newest that there is."""
        known = (row[name] for row in reversed(self.rows) if row.get(name))
        return next(known, None)

    def means(self, name: str) -> list[float | None]:
        """A number a row."""
        found = [row.get(name) for row in self.rows]
        return [None if x is None else x.mean for x in found]

    @property
    def rate(self) -> float | None:
        """Steps per second of each agent since this process began."""
        began_steps, began_seconds = self.began or self.now
        steps, seconds = self.now[0] - began_steps, self.now[1] - began_seconds
        return steps / seconds if steps > 0 and seconds > 0 else None

    @property
    def share(self) -> float:
        return min(self.now[0] / max(self.total, 1), 1.0)


def clock(seconds: float) -> str:
    """0:06, 12:05, 3:00:00."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number(x: float) -> str:
    """Four digits, or all of a large one."""
    return f"{x:,.0f}" if 1e4 <= abs(x) < 1e9 else f"{x:#.4g}"


def percent(story: Story) -> str:
    """Never 100 before the end."""
    return f"{math.floor(100 * story.share):3d} %"


def pace(story: Story, ended: bool) -> list[str]:
    """Steps, speed and time, in words."""
    several, rate = story.agents > 1, story.rate
    steps = f"{story.now[0]:,} of {story.total:,} steps{' each' if several else ''}"
    if rate is None:
        return [steps]
    speed = f"{rate * story.agents:,.0f} steps/s{' in all' if several else ''}"
    left = clock((story.total - story.now[0]) / rate)
    time = clock(story.now[1])
    return [
        steps,
        speed,
        *([f"in {time}"] if ended else [f"{left} left", f"after {time}"]),
    ]


def line(story: Story, ended: bool = False) -> str:
    """The story in one line of plain text."""
    words, found = pace(story, ended)[:3], story.last(RETURN)
    if found is not None:
        between = f" ({number(found.low)} to {number(found.high)})"
        several = story.agents > 1
        words.insert(1, f"return {number(found.mean)}{between if several else ''}")
    return "  ".join([percent(story), *words])


def sampled(
    steps: Sequence[int], values: Sequence[float | None], total: int, width: int
) -> list[float | None]:
    """The curve at the middle of each of `width` columns of the whole run.

    A row is about the steps up to its own, so a column belongs to the first row that is
    not before it; None where there is none yet.
    """
    rows = [bisect_left(steps, (i + 0.5) / width * total) for i in range(width)]
    return [values[k] if k < len(values) else None for k in rows]


def bars(values: Sequence[float | None], height: int = 1) -> list[str]:
    """A curve as lines of bars in eighths of a line, from its lowest to its highest value;
    blank where there is none."""
    known = [x for x in values if x is not None and math.isfinite(x)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    scale = (8 * height - 1) / (high - low) if high > low else 0.0
    heights = [
        1 + round((x - low) * scale) if x is not None and math.isfinite(x) else 0
        for x in values
    ]
    floors = [8 * k for k in reversed(range(height))]
    return ["".join(EIGHTHS[min(max(h - f, 0), 8)] for h in heights) for f in floors]


def ordered(names: Iterable[str]) -> list[str]:
    """Those of `SHOWN`, in its order."""
    names = sorted(names)
    found = [
        name
        for shown in SHOWN
        for name in names
        if name == shown or (shown.endswith("/") and name.startswith(shown))
    ]
    return list(dict.fromkeys(found))


def chosen(story: Story, most: int = MOST_METRICS) -> list[str]:
    """The metrics to show."""
    return ordered(story.rows[-1])[: max(most, 0)] if story.rows else []


class Entry(NamedTuple):
    """A line of the block: a name, a number, and a part of a curve."""

    name: str
    value: str
    curve: str = ""


def entries(story: Story, width: int, height: int) -> list[Entry]:
    """The return, with a curve of two or three lines, and the other metrics."""
    found = story.last(RETURN)
    labels = ["return", "  lowest", "  highest"] if story.agents > 1 else ["return"]
    values = [number(x) for x in found] if found is not None else ["-"] * 3
    if story.agents == 1:
        means = [x for x in story.means(RETURN) if x is not None]
        labels.append("  best so far")
        values[1] = number(max(means)) if means else "-"
    curves = _curve(story, RETURN, width, len(labels))
    shown = [Entry(*x) for x in zip(labels, values, curves, strict=False)]
    for name in chosen(story, min(MOST_METRICS, height - len(shown) - 4)):
        last = story.last(name)
        (curve,) = _curve(story, name, width, 1)
        shown.append(Entry(name, "-" if last is None else number(last.mean), curve))
    return shown


def _curve(story: Story, name: str, width: int, height: int) -> list[str]:
    if width <= 0:
        return [""] * height
    return bars(sampled(story.steps, story.means(name), story.total, width), height)


def block(story: Story, width: int, height: int, ended: bool = False) -> Any:
    """The story for a terminal of that size, as `rich` draws it."""
    from rich.console import Group
    from rich.text import Text

    one_line: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"}
    agents = f", {count_noun(story.agents, 'agent')}" if story.agents > 1 else ""
    title = Text(f"{story.title}{agents}", style="bold", **one_line)
    title.append(f"  {story.folder}", style="not bold dim")
    # What is left of it in a narrow terminal is the time.
    words = Text("  ".join(reversed(pace(story, ended))), **one_line)
    return Group(title, _grid(story, width, height), words)


def _grid(story: Story, width: int, height: int) -> Any:
    """Names, numbers and, where there is room, the bar with the curves below it."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    name_width = max([13, *map(len, chosen(story))])
    curve_width = min(width - name_width - NUMBER_WIDTH - 4, MOST_COLUMNS)
    columns = 3 if curve_width >= FEWEST_COLUMNS else 2
    name_width = min(name_width, max(width - NUMBER_WIDTH - 2, 6))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=name_width, style="cyan", no_wrap=True)
    grid.add_column(width=NUMBER_WIDTH, style="bold", no_wrap=True, justify="right")
    if columns == 3:
        grid.add_column(width=curve_width, style="cyan", no_wrap=True)
    bar = ProgressBar(
        total=1.0,
        completed=story.share,
        width=curve_width,
        complete_style="cyan",
        finished_style="cyan",
    )
    first: list[Any] = ["", percent(story), bar]
    grid.add_row(*first[:columns])
    for entry in entries(story, curve_width if columns == 3 else 0, height):
        grid.add_row(*entry[:columns])
    return grid


class Screen(Protocol):
    """Where a story is shown; it decides whether it is time."""

    def show(self, story: Story, ended: bool) -> None: ...
    def hide(self) -> None:
        """Makes room for what others write; shown again when it is next time."""

    def leave(self) -> None:
        """Others have written already: what stands there stays, and is done with."""


class Lines:
    """A line at the first row, at each tenth of the run, in between every ten seconds but
    not within a hundredth, and at the end: at most about a hundred, however long it is."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        """Steps and seconds of the last line."""

    def show(self, story: Story, ended: bool) -> None:
        if self._last is None:
            due = bool(story.steps)
        else:
            steps = story.now[0] - self._last[0]
            seconds = story.now[1] - self._last[1]
            share = steps / max(story.total, 1)
            due = share >= 0.1 or (share >= 0.01 and seconds >= LINE_SECONDS)
            due = due or (ended and steps > 0)
        if due:
            self._last = story.now
            print(line(story, ended), file=sys.stderr, flush=True)

    def hide(self) -> None: ...
    def leave(self) -> None: ...


class Block:
    """The live block, drawn at most four times a second, by whoever calls: no thread."""

    def __init__(self, console: Callable[[], Any]) -> None:
        self._make_console = console
        self._console: Any = None
        self._live: Any = None
        self._drawn = -math.inf  # seconds of the run
        self._others = ExitStack()

    def show(self, story: Story, ended: bool) -> None:
        if not ended and story.now[1] - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = story.now[1]
        if self._live is None:
            self._open()
        width, height = self._console.size
        self._live.update(block(story, width, height, ended), refresh=True)
        if ended:
            self._live.transient = False
            self._close()

    def hide(self) -> None:
        if self._live is not None:
            self._close()
        self._drawn = -math.inf

    def leave(self) -> None:
        # Not stopped, because that would draw over what was written.
        self._others.close()
        self._live, self._drawn = None, -math.inf

    def _open(self) -> None:
        from rich.file_proxy import FileProxy
        from rich.live import Live

        self._console = self._make_console()
        self._console.on_broken_pipe = _broken_pipe
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        # A process that is killed must not leave a terminal without a cursor.
        self._console.show_cursor(True)
        # What others print on the same terminal goes above the block.
        for place, stream in (
            (redirect_stderr, sys.stderr),
            (redirect_stdout, sys.stdout),
        ):
            if stream.isatty():
                self._others.enter_context(place(FileProxy(self._console, stream)))

    def _close(self) -> None:
        self._others.close()
        self._live.stop()
        self._live = None


def _broken_pipe() -> None:
    """Instead of rich's own, which ends the process and closes stdout."""
    raise OSError("the terminal is gone")


def screen() -> Screen:
    """What stderr can show."""
    # A child of a notebook's kernel has a terminal that cannot move its cursor.
    if not sys.stderr.isatty() or "JPY_PARENT_PID" in os.environ:
        return Lines()
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_dumb_terminal or not console.encoding.startswith("utf"):
        return Lines()
    return Block(lambda: Console(file=sys.stderr, force_terminal=True))


class View:
    """Shows the rows of a run on a screen. Whatever goes wrong there, the run goes on."""

    def __init__(
        self,
        story: Story,
        screen: Screen | None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """On no screen nothing is shown. An interruption has its own words on the
        terminal, which are to stay there."""
        self._story, self._screen, self._interrupted = story, screen, interrupted

    def remember(self, rows: Sequence[Row]) -> None:
        """Those of the run before this process."""
        for row in rows:
            self._story.add(row)

    def write(self, row: Row) -> None:
        self._story.add(row)
        self.go_to(row["env_steps"], row["seconds"])

    def go_to(self, env_steps: int, seconds: float) -> None:
        """How far each agent is, after so many seconds of training."""
        self._story.go_to(env_steps, seconds)
        self._on_screen("show", self._story, False)

    def beside(self, report: Callable[[str], None]) -> Callable[[str], None]:
        """`report`, with room for its line."""

        def reported(words: str) -> None:
            self._on_screen("hide")
            report(words)

        return reported

    def close(self) -> None:
        if self._story.began is not None:
            self._on_screen("show", self._story, True)
        self._screen = None

    def _on_screen(self, action: str, *arguments: Any) -> None:
        if self._screen is None:
            return
        try:
            if self._interrupted():
                self._screen.leave()
                self._interrupted = lambda: False
            getattr(self._screen, action)(*arguments)
        except Exception as error:
            # A pipe that is gone, a terminal that is odd: no reason to end a run.
            broken, self._screen = self._screen, None
            with suppress(Exception):
                broken.leave()
                what = f"{type(error).__name__}: {error}"
                print(f"\nthe run goes on unseen ({what})", file=sys.stderr, flush=True)
