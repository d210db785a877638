"""The progress of a run on a terminal and in a pipe."""

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from utils.run import display
from utils.run.display import Board, Display, Progress

ROOT = Path(__file__).parent.parent
SCRIPT = """
from utils.run.display import Display, Progress
with Display("run", Progress(0, 100, 0)) as log:
    log.say("compiling [bold] ...")
    log.show(Progress(50, 100, 10, 12.5, 12.5, 9.0, 20.0, 50.0, 1.0, 1.0))
"""


def plain_output(shown):
    """The lines in a pipe after these records of progress are shown."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=False, width=40)
    with Display("run", Progress(0, 1000, 0), console) as log:
        for progress in shown:
            log.show(progress)
    return text.getvalue().splitlines()


def _start_script(stdout):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FORCE_COLOR": "1", "TERM": "xterm"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=stdout)


def terminal_output():
    """The script's output to a terminal; on Linux, the end of a terminal reads as an error."""
    ours, theirs = pty.openpty()
    script, parts = _start_script(theirs), []
    os.close(theirs)
    with contextlib.suppress(OSError):
        while part := os.read(ours, 1024):
            parts.append(part)
    os.close(ours)
    assert script.wait() == 0
    return b"".join(parts).decode()


def test_only_an_evaluation_or_five_seconds_print_a_plain_line():
    lines = plain_output([
        Progress(100, 1000, 1, elapsed=0.5),  # the first is printed
        Progress(200, 1000, 2, elapsed=1.0),
        Progress(300, 1000, 3, eval_return=9.0, best_eval=9.0, elapsed=1.5),  # an evaluation
        Progress(400, 1000, 4, eval_return=9.0, best_eval=9.0, elapsed=6.4),
        Progress(500, 1000, 5, eval_return=9.0, best_eval=9.0, elapsed=6.5),  # five seconds
        Progress(600, 1000, 6, eval_return=9.0, best_eval=9.0, elapsed=7.0),  # the last
    ])
    assert [line.split()[0] for line in lines] == ["100", "300", "500", "600"]


def test_the_last_plain_line_is_not_printed_twice():
    assert len(plain_output([Progress(1000, 1000, 9)])) == 1
    assert plain_output([]) == []


def test_the_columns_of_plain_lines_are_aligned():
    unknown = display.plain_line(Progress(512, 10240, 0, elapsed=3.2))
    known = display.plain_line(
        Progress(10240, 10240, 1280, -500.0, -83.25, -1234.5, 130.4, 1050.2, 61.0, 0.0))
    assert len(unknown) == len(known) <= 112
    for word in ("steps", "eval", "best", "train", "updates/s", "left"):
        assert unknown.index(word) == known.index(word)
    numbers = "10,240 100% -500.0 -83.25 -1,234.5 130 1,050 1:01 0:00"
    assert set(numbers.split()) <= set(known.split())


def test_times_are_shown_like_on_a_clock():
    shown = [display.clock(seconds) for seconds in (None, 0.4, 59.6, 3600.0)]
    assert shown == ["-", "0:00", "1:00", "1:00:00"]


def test_a_pipe_gets_no_escape_codes_even_where_colour_is_forced():
    script = _start_script(subprocess.PIPE)
    text = script.communicate()[0].decode()
    assert script.returncode == 0
    assert "\x1b" not in text and "\r" not in text and text.isascii()
    assert text.startswith("compiling [bold] ...\n") and "12.50" in text
    assert text.count("\n") == 2


def test_a_terminal_gets_one_panel_with_every_number_and_the_line_above_it():
    text = terminal_output()
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    last = plain[plain.rindex("╭"):]
    for part in ("50 / 100 steps", "50%", "12.50", "9.00", "updates/s", "20", "elapsed", "0:01"):
        assert part in last
    assert plain.index("compiling [bold] ...") < plain.rindex("╭")


def test_the_panel_fits_a_narrow_terminal_and_is_closed_after_an_error():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=44)
    with pytest.raises(KeyboardInterrupt), Display("run", Progress(0, 1000, 0), console) as log:
        log.show(Progress(500, 1000, 10))
        raise KeyboardInterrupt
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    assert max(len(line) for line in re.split(r"[\r\n]+", plain)) == 44
    assert text.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_several_agents_are_shown_as_their_mean_once_all_have_reported():
    text = io.StringIO()
    console = Console(file=text, force_terminal=False, width=200)
    with Display("run", Progress(0, 100, 0), console) as shown:
        one, other = Board(shown, ["seed 0", "seed 1"]).members
        one.show(Progress(50, 100, 10, 10.0, 10.0, 4.0, elapsed=1.0))
        assert text.getvalue() == ""
        other.say("solved")
        other.show(Progress(50, 100, 10, 20.0, 30.0, None, elapsed=3.0))
    said, line = text.getvalue().splitlines()
    assert said == "seed 1       solved"
    assert re.match(r" 50 steps  50%  eval +15.00 best +20.00  train +-  .* 0:02 left", line)


def _panels(text):
    """What a terminal was given, without escape codes."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())


def test_the_panel_ticks_while_the_program_compiles_and_no_thread_remains_afterwards():
    text, before = io.StringIO(), set(threading.enumerate())
    console = Console(file=text, force_terminal=True, width=70)
    with Display("run", Progress(0, 1000, 0), console) as log:
        log.show(Progress(40, 1000, 0, elapsed=8.0))  # the prefill: no update yet
        [ticking] = set(threading.enumerate()) - before
        time.sleep(1.2)
        waiting = _panels(text)
        log.show(Progress(200, 1000, 5, elapsed=12.0))
        ticking.join(5)
        shown = len(text.getvalue())
        assert not set(threading.enumerate()) - before
        time.sleep(0.5)
        assert len(text.getvalue()) == shown, "redrawn without a record of progress"
        log.show(Progress(400, 1000, 9, elapsed=13.0))
    assert "compiling" in waiting and "0:08" in waiting and "0:09" in waiting
    last = _panels(text)[_panels(text).rindex("╭"):]
    assert "400 / 1,000 steps" in last and "0:13" in last and "compiling" not in last


def test_a_run_is_never_shown_to_have_more_steps_than_its_total():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=70)
    with Display("run", Progress(0, 640, 0), console) as log:
        log.show(Progress(656, 640, 9))
    assert "656 / 656 steps" in _panels(text) and "100%" in _panels(text)
    longer, same = (display.plain_line(Progress(1008, total, 9)) for total in (990, 1008))
    assert longer == same and longer.startswith("1,008 steps 100%")
