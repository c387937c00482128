"""`jaxrl.runs.live`: a block on a terminal, lines elsewhere, and neither can hurt."""

import contextlib
import io
import math
import os
import re
import sys
import threading

import pytest
from rich.console import Console

from jaxrl.runs import live
from jaxrl.runs.live import (
    PlainLines,
    Story,
    TerminalBlock,
    View,
    compute_spread,
    draw_bars,
    resample,
)

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def story(agents=2, total=1_000):
    return Story("ppo on CartPole-v1", total, agents, "runs/one")


def row(env_steps, *returns, seconds=None, **metrics):
    time = env_steps / 100 if seconds is None else seconds
    named = {"env_steps": env_steps, "seconds": time, live.RETURN: [*returns]}
    return named | {name.replace("_", "/", 1): x for name, x in metrics.items()}


def of_the_screen(text):
    """What a terminal shows after these bytes: of each line what is written last."""
    lines, at = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", text):
        if part == "\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            at -= int(part[2:-1])
        elif part == "\x1b[2K":
            lines[at] = ""
        elif part and not part.startswith(("\x1b", "\r")):
            lines[at] += part
    return [line.rstrip() for line in lines]


@pytest.fixture
def terminal():
    """A block on a terminal of 80 by 24, and what it has been sent."""
    file = io.StringIO()

    def console():
        size = {"width": 80, "height": 24}
        return Console(file=file, force_terminal=True, color_system=None, **size)

    return TerminalBlock(console), file


def test_lines_have_no_control_characters_and_are_few(capsys):
    view = View(story(1, total=100_000), PlainLines())
    view.go_to(0, 0.0)
    for i in range(1, 1_001):
        view.write(row(100 * i, i * 0.5, seconds=3.0 * i))
    view.close()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and not CONTROL.search(err)
    assert 50 < len(lines) <= 101
    assert lines[0].startswith("  0 %  100 of 100,000 steps  return 0.5000  33 steps/s")
    assert lines[-1] == (
        "100 %  100,000 of 100,000 steps  return 500.0  33 steps/s  in 50:00"
    )


def test_lines_of_a_fast_run_come_at_each_tenth(capsys):
    view = View(story(), PlainLines())
    for i in range(1, 101):
        view.write(row(10 * i, 1.0, 2.0, seconds=i * 1e-3))
    view.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and "return 1.500 (1.000 to 2.000)" in lines[3]
    assert "steps each" in lines[3] and "steps/s in all" in lines[3]


def test_a_run_that_is_stopped_says_where(capsys):
    view = View(story(), PlainLines())
    view.write(row(100, None, None))
    view.write(row(110, None, None))
    view.close()
    first, last = capsys.readouterr().err.splitlines()
    assert first == " 10 %  100 of 1,000 steps each"
    assert last == " 11 %  110 of 1,000 steps each  200 steps/s in all  in 0:01"


def test_on_no_screen_nothing_is_shown(capsys):
    view = View(story(), None)
    view.write(row(1_000, 1.0, 2.0))
    view.beside(print)("a line for a person")
    view.close()
    assert capsys.readouterr() == ("a line for a person\n", "")


def test_what_ran_before_does_not_count_in_the_rate_and_is_in_the_curve():
    seen = story(1)
    view = View(seen, None)
    view.remember([row(100, 1.0, seconds=50.0), row(200, 2.0, seconds=100.0)])
    view.go_to(200, 100.0)
    view.write(row(400, 8.0, seconds=101.0))
    assert live.format_line(seen).endswith("return 8.000  200 steps/s  0:03 left")
    upper, lower = (entry.curve for entry in live.make_entries(seen, 10, 24)[:2])
    assert (upper, lower) == ("  ██      ", "▁▃██      ")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1.0, None, 3.0], (2.0, 1.0, 3.0)),
        (4.0, (4.0, 4.0, 4.0)),
        ([None, None], None),
    ],
)
def test_a_spread_is_over_the_agents_that_have_a_value(value, expected):
    assert compute_spread(value) == expected


def test_nan_and_infinity_are_shown_and_do_not_bend_the_curve():
    assert math.isnan(compute_spread([1.0, float("nan")]).low)
    assert draw_bars([0.0, math.nan, math.inf, None, 7.0]) == ["▁   █"]
    seen = story()
    seen.add(row(500, 1.0, math.nan, loss_policy=[math.inf, 0.0]))
    shown = {entry.name: entry.value for entry in live.make_entries(seen, 10, 24)}
    assert shown["return"] == "nan" and shown["loss/policy"] == "inf"


def test_bars_rise_from_the_lowest_to_the_highest():
    assert draw_bars([0, 1, 2, 3, 4, 5, 6, 7]) == ["▁▂▃▄▅▆▇█"]
    assert draw_bars([0.0, 0.5, 1.0], height=2) == [" ▁█", "▁██"]
    assert (
        draw_bars([3.0, 3.0]) == ["▁▁"]
        and draw_bars([None]) == [" "]
        and draw_bars([]) == [""]
    )


def test_a_column_of_the_curve_is_of_the_row_that_covers_it():
    assert resample([50, 100], [1.0, 2.0], 200, 8) == [1, 1, 2, 2, *[None] * 4]
    assert resample([], [], 200, 3) == [None] * 3


def test_the_metrics_that_matter_most_come_first_and_fit():
    seen = story()
    extra = {f"value_{k}": [1.0, 1.0] for k in range(9)}
    named = {"loss_policy": [1.0, 2.0], "policy_entropy": [0.5, 0.5], **extra}
    seen.add(row(100, 1.0, 2.0, optim_grad_norm=[1.0, 1.0], **named))
    names = [entry.name for entry in live.make_entries(seen, 10, 24)]
    assert names[:5] == [
        "return",
        "  lowest",
        "  highest",
        "loss/policy",
        "policy/entropy",
    ]
    assert len(names) == 3 + live.MOST_METRICS
    assert len(live.make_entries(seen, 10, 9)) == 5, "a low terminal has fewer"


@pytest.mark.parametrize("width", [1, 10, 30, 58, 80, 200])
@pytest.mark.parametrize("agents", [1, 2])
def test_the_block_fits_any_terminal(width, agents):
    seen = story(agents)
    seen.go_to(0, 0.0)
    seen.add(row(400, *[3.0] * agents, value_explained_variance=[0.5] * agents))
    seen.go_to(400, 4.0)
    file = io.StringIO()
    console = Console(file=file, width=width, height=12, force_terminal=True)
    console.print(live.draw_block(seen, width, 12))
    lines = of_the_screen(file.getvalue())
    assert max(map(len, lines)) <= max(width, 19) and len(lines) <= 12
    assert width < 58 or any("█" in line or "▁" in line for line in lines)


def test_the_block_is_drawn_in_its_place_and_stays_at_the_end(terminal):
    screen, file = terminal
    view = View(story(), screen)
    view.go_to(0, 0.0)
    for i in range(1, 11):
        view.write(row(100 * i, 1.0 * i, 2.0 * i, loss_value=[1.0, 1.0]))
    view.close()
    lines = of_the_screen(file.getvalue())
    assert lines[0] == "ppo on CartPole-v1, 2 agents  runs/one"
    assert lines[1].split()[:2] == ["100", "%"] and "━" * 40 in lines[1]
    assert lines[2].split()[:2] == ["return", "15.00"]
    assert lines[5].split()[:2] == ["loss/value", "1.000"]
    assert lines[6] == "in 0:10  200 steps/s in all  1,000 of 1,000 steps each"
    assert lines[7:] == [""]


def test_the_block_is_drawn_at_most_four_times_a_second(terminal):
    screen, file = terminal
    view = View(story(total=10_000), screen)
    for i in range(1, 1_001):
        view.write(row(i, 1.0, 2.0, seconds=i * 1e-3))
    assert file.getvalue().count("ppo on CartPole-v1") == 4
    view.close()


def test_a_line_for_a_person_stands_above_the_block(terminal):
    screen, file = terminal
    view = View(story(), screen)
    view.write(row(100, 1.0, 2.0))
    view.beside(lambda words: file.write(f"{words}\n"))("agent 1 broke")
    view.write(row(200, 1.0, 2.0))
    view.close()
    lines = of_the_screen(file.getvalue())
    assert lines[:2] == ["agent 1 broke", "ppo on CartPole-v1, 2 agents  runs/one"]
    assert sum("ppo on" in line for line in lines) == 1


def test_the_words_of_an_interruption_stay(terminal):
    screen, file = terminal
    interrupted = []
    view = View(story(), screen, lambda: bool(interrupted))
    view.write(row(100, 1.0, 2.0))
    file.write("\nstopping\n")
    interrupted.append(True)
    view.write(row(200, 1.0, 2.0))
    view.close()
    lines = of_the_screen(file.getvalue())
    where = lines.index("stopping")
    assert lines[0].startswith("ppo on") and lines[where + 1].startswith("ppo on")
    assert "200 of 1,000" in lines[-2]


class Gone(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize(
    "screen", [PlainLines(), TerminalBlock(lambda: Console(file=Gone()))]
)
def test_a_broken_screen_does_not_end_a_run(monkeypatch, screen):
    monkeypatch.setattr(sys, "stderr", gone := Gone())
    view = View(story(), screen)
    view.write(row(100, 1.0, 2.0))
    view.write(row(900, 1.0, 2.0))
    view.close()
    assert sys.stderr is gone


@pytest.fixture
def pseudo_terminal(monkeypatch):
    """A function that makes stderr a terminal; what it returns closes that, and says what
    it was sent."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    sent = bytearray()

    def read():  # all the time: its buffer is small, and a full one blocks the writer
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 4096):
                sent.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    stderr = open(theirs, "w", encoding="utf-8")  # noqa: SIM115
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)

    def closed():
        stderr.close()
        reader.join(10)
        return sent.decode()

    def opened():  # in the test, because pytest sets stderr anew after fixtures
        monkeypatch.setattr(sys, "stderr", stderr)
        return closed

    yield opened
    closed()
    os.close(ours)


def test_a_terminal_gets_the_block_and_keeps_its_cursor(capsys, pseudo_terminal):
    closed = pseudo_terminal()
    view = View(story(), live.screen())
    view.write(row(500, 1.0, 2.0))
    view.close()
    shown = closed()
    assert "ppo on CartPole-v1" in shown and "return" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert capsys.readouterr().out == ""


def test_no_color_is_respected(pseudo_terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    closed = pseudo_terminal()
    view = View(story(), live.screen())
    view.write(row(500, 1.0, 2.0))
    view.close()
    shown = closed()
    assert "ppo on CartPole-v1" in shown and not re.search(r"\x1b\[[34][0-9]", shown)


@pytest.mark.parametrize(
    ("name", "value"), [("TERM", "dumb"), ("JPY_PARENT_PID", "1234")]
)
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    pseudo_terminal, monkeypatch, name, value
):
    pseudo_terminal()
    assert isinstance(live.screen(), TerminalBlock)
    monkeypatch.setenv(name, value)
    assert isinstance(live.screen(), PlainLines)


def test_without_a_terminal_there_are_lines_whatever_the_environment(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(live.screen(), PlainLines)
