"""The progress of a run: one panel on a terminal, plain lines elsewhere."""

import os
import sys
import time
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

PLAIN_PERIOD = 5.0  # seconds between plain lines without an evaluation
PANEL_WIDTH = 66  # columns
TICKS = 4  # redraws per second of the panel while the program compiles


@dataclass(frozen=True)
class Progress:
    """The progress of a run; None for unknown values. Times are in seconds."""

    steps: int
    total_steps: int
    updates: int
    eval_return: float | None = None  # mean of the last evaluation
    best_eval: float | None = None
    train_return: float | None = None  # mean of the last 20 training episodes
    updates_per_s: float | None = None
    steps_per_s: float | None = None
    elapsed: float = 0.0
    left: float | None = None

    def line(self):
        """It as one line of text."""
        return plain_line(self)

    def panel(self, status):
        """It for rich, with a line of status."""
        return panel_content(self, status)

    def is_news(self, last):
        """Whether a plain line is due, although the `last` one was printed a moment ago."""
        return (last.eval_return, last.best_eval) != (self.eval_return, self.best_eval)


class _Console(Console):
    """A console that falls silent when its pipe breaks: Ctrl-C also ends a `| tee`."""

    def on_broken_pipe(self):
        """Called by rich, which would end the program by default."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Display:
    """A context that shows the progress of a run, starting with the Progress `start`.

    Another program shows records of its own, with the methods of Progress, `updates` and `elapsed`.
    A terminal shows one panel, redrawn in place; elsewhere plain lines, without escape codes. A
    thread redraws the panel until the first updates have arrived; later it would slow training."""

    def __init__(self, title, start, console=None):
        self._title, self._start, self._latest = title, start, start
        self._console = console or _Console(force_terminal=_is_terminal())
        self._printed = start  # the Progress of the last plain line
        self._at = time.perf_counter()  # when the latest Progress was shown
        self._compiling = True
        self._spinner = Spinner("line", "compiling ...", style="dim")

    def __enter__(self):
        self._live = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._panel, transient=True,
                              refresh_per_second=TICKS)
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_):
        self.release()
        if not self._live and self._latest != self._printed:
            self._print_line()

    def release(self):
        """Stop the panel and restore the cursor."""
        if self._live:
            self._live.stop()

    def say(self, text):
        """Print a line; on a terminal, above the panel."""
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def show(self, progress):
        """Redraw the panel, or print a line after each evaluation and every five seconds."""
        last, self._latest, self._at = self._printed, progress, time.perf_counter()
        if self._live:
            if self._compiling and progress.updates > self._start.updates:
                self._stop_ticking()
            self._live.refresh()
        elif (
            last is self._start
            or progress.is_news(last)
            or progress.elapsed - last.elapsed >= PLAIN_PERIOD
        ):
            self._print_line()

    def _stop_ticking(self):
        """Replace the panel of the thread by one that only `show` redraws."""
        self._live.stop()  # transient: it disappears
        self._compiling = False
        self._live = Live(console=self._console, get_renderable=self._panel, auto_refresh=False)
        self._live.start()

    def _print_line(self):
        self._printed = self._latest
        self.say(self._latest.line())

    def _panel(self):
        shown, status = self._latest, ""
        if self._compiling:  # its clock ticks between two records of progress
            passed = time.perf_counter() - self._at
            shown, status = replace(shown, elapsed=shown.elapsed + passed), self._spinner
        return Panel(
            shown.panel(status),
            title=self._console.render_str(self._title, markup=False, emoji=False),
            title_align="left",
            width=min(PANEL_WIDTH, self._console.width),
        )


def plain_line(progress):
    """A progress as one line of text, with columns that align from line to line."""
    p, width = progress, len(f"{_total(progress):,}")
    return "  ".join([
        f"{p.steps:{width},} steps {_percent(p):>4}",
        f"eval {_score(p.eval_return):>8} best {_score(p.best_eval):>8}",
        f"train {_score(p.train_return):>8}",
        f"{rate(p.updates_per_s):>5} updates/s {rate(p.steps_per_s):>6} steps/s",
        f"{clock(p.elapsed):>5} left {clock(p.left):>5}",
    ])


def panel_content(progress, status=""):
    """A progress for rich: a bar, a line of status, and two columns of labelled numbers."""
    p, total = progress, _total(progress)
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    bar.add_row(f"{p.steps:,} / {total:,} steps", ProgressBar(total, p.steps), _percent(p))
    numbers = Table.grid(padding=(0, 2), expand=True)
    for style, justify in [("dim", "left"), ("bold", "right")] * 2:
        numbers.add_column(style=style, justify=justify, no_wrap=True)
    numbers.add_row("evaluation return", _score(p.eval_return), "updates", f"{p.updates:,}")
    numbers.add_row("best evaluation", _score(p.best_eval), "updates/s", rate(p.updates_per_s))
    numbers.add_row("training return", _score(p.train_return), "steps/s", rate(p.steps_per_s))
    numbers.add_row("elapsed", clock(p.elapsed), "left", clock(p.left))
    return Group(bar, status, numbers)


def _total(progress):
    """The steps of the whole run; its last round may go a few beyond the number asked for."""
    return max(progress.steps, progress.total_steps)


def _is_terminal():
    # not by rich, which obeys FORCE_COLOR and would write escape codes into log files
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


class Board:
    """Several agents on one display: their mean, shown once all have reported."""

    def __init__(self, display, names):
        self.members = [Member(self, name) for name in names]
        self.display, self._reported = display, []

    def show(self, progress):
        """Report one agent's progress."""
        self._reported.append(progress)
        if len(self._reported) == len(self.members):
            self.display.show(mean_progress(self._reported))
            self._reported = []


class Member(NamedTuple):
    """One agent on a Board: it acts as a Display for a Diary."""

    board: Any
    name: str

    def show(self, progress):
        """Report its progress for the mean."""
        self.board.show(progress)

    def say(self, text):
        """Print a line, prefixed with its name."""
        self.board.display.say(f"{self.name:12} {text}")


def mean_progress(parts):
    """The mean over agents of each number; None unless every agent has it."""
    values = {}
    for field in fields(Progress):
        found = [getattr(part, field.name) for part in parts]
        values[field.name] = None if None in found else sum(found) / len(found)
    for name in ("steps", "total_steps", "updates"):
        values[name] = int(values[name])
    return Progress(**values)


def _percent(progress):
    return f"{progress.steps / max(1, _total(progress)):.0%}"


def _score(value):
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}"


def rate(value):
    """A number per second in a few characters: 1,050, 9.5, - for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def clock(seconds):
    """Seconds as on a clock: 1:01, 1:00:00, - for None."""
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
