"""Live view of a run while it trains: a block on a terminal, plain lines elsewhere.

The block, with the curves of the run so far below the progress bar, on the same scale:

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

from jaxrl.errors import count_noun, printable
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
"""The metrics that the block shows, the most important first; "loss/" is all losses."""

MOST_METRICS = 6
REDRAW_SECONDS = 0.25
LINE_SECONDS = 10.0
NUMBER_WIDTH = 10
MOST_COLUMNS, FEWEST_COLUMNS = 100, 12
"""Width of the curves; without room for the fewest columns there are none."""

EIGHTHS = " ▁▂▃▄▅▆▇█"


class Spread(NamedTuple):
    """A metric over the agents that have a value."""

    mean: float
    low: float
    high: float


def compute_spread(value: Any) -> Spread | None:
    """Compute the spread; None if no agent has a value, NaN if one is NaN."""
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
    """The metrics and the progress of a run so far."""

    title: str
    total: int  # environment steps of each agent
    agents: int
    folder: str = ""
    steps: list[int] = field(default_factory=list)  # of each row
    rows: list[dict[str, Spread | None]] = field(default_factory=list)
    began: tuple[int, float] | None = None  # steps and seconds, of this process
    now: tuple[int, float] = (0, 0.0)

    def add(self, row: Row) -> None:
        """Append a row of `training.loop.train`."""
        self.steps.append(row["env_steps"])
        self.rows.append(
            {name: compute_spread(row[name]) for name in [RETURN, *order_metrics(row)]}
        )

    def go_to(self, env_steps: int, seconds: float) -> None:
        self.now = env_steps, seconds
        self.began = self.began or self.now

    def last(self, name: str) -> Spread | None:
        """Return the newest value of a metric."""
        newest = (row[name] for row in reversed(self.rows) if row.get(name))
        return next(newest, None)

    def means(self, name: str) -> list[float | None]:
        """Return the mean of a metric in each row."""
        spreads = [row.get(name) for row in self.rows]
        return [None if x is None else x.mean for x in spreads]

    @property
    def rate(self) -> float | None:
        """Steps per second of each agent since this process began."""
        began_steps, began_seconds = self.began or self.now
        steps, seconds = self.now[0] - began_steps, self.now[1] - began_seconds
        return steps / seconds if steps > 0 and seconds > 0 else None

    @property
    def share(self) -> float:
        return min(self.now[0] / max(self.total, 1), 1.0)


def format_time(seconds: float) -> str:
    """Format seconds as 0:06, 12:05 or 3:00:00."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_number(x: float) -> str:
    """Format with four digits, or with all of a large number."""
    return f"{x:,.0f}" if 1e4 <= abs(x) < 1e9 else f"{x:#.4g}"


def format_percent(story: Story) -> str:
    """Format the share that is done, rounded down: 100 % only at the end."""
    return f"{math.floor(100 * story.share):3d} %"


def format_pace(story: Story, ended: bool) -> list[str]:
    """Format steps, speed and time."""
    several, rate = story.agents > 1, story.rate
    steps = f"{story.now[0]:,} of {story.total:,} steps{' each' if several else ''}"
    if rate is None:
        return [steps]
    speed = f"{rate * story.agents:,.0f} steps/s{' in all' if several else ''}"
    left = format_time((story.total - story.now[0]) / rate)
    time = format_time(story.now[1])
    return [
        steps,
        speed,
        *([f"in {time}"] if ended else [f"{left} left", f"after {time}"]),
    ]


def format_line(story: Story, ended: bool = False) -> str:
    """Format the run as one line of plain text."""
    words, last = format_pace(story, ended)[:3], story.last(RETURN)
    if last is not None:
        limits = f" ({format_number(last.low)} to {format_number(last.high)})"
        several = story.agents > 1
        words.insert(1, f"return {format_number(last.mean)}{limits if several else ''}")
    return "  ".join([format_percent(story), *words])


def resample(
    steps: Sequence[int], values: Sequence[float | None], total: int, width: int
) -> list[float | None]:
    """Resample a curve at the middle of each of `width` columns of the whole run.

    A row covers the steps up to its own, so a column belongs to the first row that is not
    before it; None where there is none yet.
    """
    rows = [bisect_left(steps, (i + 0.5) / width * total) for i in range(width)]
    return [values[k] if k < len(values) else None for k in rows]


def draw_bars(values: Sequence[float | None], height: int = 1) -> list[str]:
    """Draw a curve as `height` lines of bars, from its lowest to its highest value.

    The bars have a resolution of an eighth of a line; missing values are blank.
    """
    known = [x for x in values if x is not None and math.isfinite(x)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    scale = (8 * height - 1) / (high - low) if high > low else 0.0
    heights = [
        1 + round((x - low) * scale) if x is not None and math.isfinite(x) else 0
        for x in values
    ]
    bases = [8 * k for k in reversed(range(height))]
    return ["".join(EIGHTHS[min(max(h - b, 0), 8)] for h in heights) for b in bases]


def order_metrics(names: Iterable[str]) -> list[str]:
    """Select the metrics of `SHOWN`, in its order."""
    names = sorted(names)
    shown_names = [
        name
        for shown in SHOWN
        for name in names
        if name == shown or (shown.endswith("/") and name.startswith(shown))
    ]
    return list(dict.fromkeys(shown_names))


def select_metrics(story: Story, most: int = MOST_METRICS) -> list[str]:
    """Select the metrics of the last row that are shown."""
    return order_metrics(story.rows[-1])[: max(most, 0)] if story.rows else []


class Entry(NamedTuple):
    """A line of the block: a name, a number, and a part of a curve."""

    name: str
    value: str
    curve: str = ""


def make_entries(story: Story, width: int, height: int) -> list[Entry]:
    """Make the lines of the return, with a curve, and of the other metrics."""
    last = story.last(RETURN)
    labels = ["return", "  lowest", "  highest"] if story.agents > 1 else ["return"]
    values = [format_number(x) for x in last] if last is not None else ["-"] * 3
    if story.agents == 1:
        means = [x for x in story.means(RETURN) if x is not None]
        labels.append("  best so far")
        values[1] = format_number(max(means)) if means else "-"
    curves = _curve(story, RETURN, width, len(labels))
    shown = [Entry(*x) for x in zip(labels, values, curves, strict=False)]
    for name in select_metrics(story, min(MOST_METRICS, height - len(shown) - 4)):
        last = story.last(name)
        (curve,) = _curve(story, name, width, 1)
        shown.append(
            Entry(name, "-" if last is None else format_number(last.mean), curve)
        )
    return shown


def _curve(story: Story, name: str, width: int, height: int) -> list[str]:
    if width <= 0:
        return [""] * height
    return draw_bars(
        resample(story.steps, story.means(name), story.total, width), height
    )


def draw_block(story: Story, width: int, height: int, ended: bool = False) -> Any:
    """Draw the run for a terminal of that size, with `rich`."""
    from rich.console import Group
    from rich.text import Text

    one_line: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"}
    agents = f", {count_noun(story.agents, 'agent')}" if story.agents > 1 else ""
    title = Text(f"{printable(story.title)}{agents}", style="bold", **one_line)
    title.append(f"  {printable(str(story.folder))}", style="not bold dim")
    # Reversed, so that a narrow terminal still shows the time.
    words = Text("  ".join(reversed(format_pace(story, ended))), **one_line)
    return Group(title, _grid(story, width, height), words)


def _grid(story: Story, width: int, height: int) -> Any:
    """Draw names, numbers and, given room, the bar with the curves below it."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    name_width = max([13, *map(len, select_metrics(story))])
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
    first: list[Any] = ["", format_percent(story), bar]
    grid.add_row(*first[:columns])
    for entry in make_entries(story, curve_width if columns == 3 else 0, height):
        grid.add_row(*entry[:columns])
    return grid


class Screen(Protocol):
    """A place to show a run; each decides how often."""

    def show(self, story: Story, ended: bool) -> None: ...
    def hide(self) -> None:
        """Make room for other output; the next `show` draws again."""

    def leave(self) -> None:
        """Abandon what is drawn, because other output has been written over it."""


class PlainLines:
    """Plain lines, at most about a hundred for a run of any length.

    One at the first row, at each tenth of the run, and at the end; in between one every ten
    seconds, if a hundredth of the run has passed.
    """

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
            print(format_line(story, ended), file=sys.stderr, flush=True)

    def hide(self) -> None: ...
    def leave(self) -> None: ...


class TerminalBlock:
    """A live block, drawn by the caller at most four times per second, without a thread."""

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
        self._live.update(draw_block(story, width, height, ended), refresh=True)
        if ended:
            self._live.transient = False
            self._close()

    def hide(self) -> None:
        if self._live is not None:
            self._close()
        self._drawn = -math.inf

    def leave(self) -> None:
        # Not stopped: that would draw over what was written.
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
        # Other output on the same terminal goes above the block.
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
    """Replace rich's own handler, which ends the process and closes stdout."""
    raise OSError("the terminal is gone")


def screen() -> Screen:
    """Make the screen that stderr can show."""
    # A child of a notebook's kernel has a terminal that cannot move its cursor.
    if not sys.stderr.isatty() or "JPY_PARENT_PID" in os.environ:
        return PlainLines()
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_dumb_terminal or not console.encoding.startswith("utf"):
        return PlainLines()
    return TerminalBlock(lambda: Console(file=sys.stderr, force_terminal=True))


class View:
    """The rows of a run on a screen. Errors of the screen never stop the run."""

    def __init__(
        self,
        story: Story,
        screen: Screen | None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Create a view; without a screen it shows nothing.

        After an interruption the block is abandoned once, because the signal handler has
        written to the terminal.
        """
        self._story, self._screen, self._interrupted = story, screen, interrupted

    def remember(self, rows: Sequence[Row]) -> None:
        """Add the rows from before this process."""
        for row in rows:
            self._story.add(row)

    def write(self, row: Row) -> None:
        self._story.add(row)
        self.go_to(row["env_steps"], row["seconds"])

    def go_to(self, env_steps: int, seconds: float) -> None:
        """Show how far each agent is, after so many seconds of training."""
        self._story.go_to(env_steps, seconds)
        self._on_screen("show", self._story, False)

    def beside(self, report: Callable[[str], None]) -> Callable[[str], None]:
        """Wrap `report` so that the block makes room for its line."""

        def report_above(words: str) -> None:
            self._on_screen("hide")
            report(words)

        return report_above

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
            # A closed pipe or an odd terminal is no reason to end a run.
            broken, self._screen = self._screen, None
            with suppress(Exception):
                broken.leave()
                what = f"{type(error).__name__}: {error}"
                print(
                    f"\nthe live view ended, the run continues ({what})",
                    file=sys.stderr,
                    flush=True,
                )
