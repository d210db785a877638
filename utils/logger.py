"""What a run leaves behind and what it shows: folder, metrics.jsonl, scores.jsonl, live display.

The clock is read once, to name a new folder. The rows hold what the caller gave and nothing else,
so two runs of one seed differ only under the caller's keys that begin with `time/`.
"""

import json
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

METRICS, SCORES = "metrics.jsonl", "scores.jsonl"
FILES = (METRICS, SCORES, "config.yaml", "weights.npz", "learning_curve.png", "checkpoints")
PLAIN_PERIOD = 5.0  # seconds between plain lines while no evaluation comes
PANEL_WIDTH = 66  # columns


@dataclass(frozen=True)
class Progress:
    """Where the run stands; None for what is not known yet. Times are in seconds."""

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


def make_folder(logdir, env, seed):
    """The run's folder, made: `logdir` itself, else a new runs/<env>-<seed>-<date>-<time>.

    Raises: ValueError, one line, for a folder that cannot be written or already holds a run."""
    folder = Path(logdir) if logdir else Path("runs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not logdir:
            folder = _new_folder(folder / f"{env}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}")
        with tempfile.TemporaryFile(dir=folder):
            pass  # the only sure sign that a folder can be written is a file in it
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({error.strerror.lower()})") from None
    held = [name for name in FILES if (folder / name).exists()]
    if held:
        raise ValueError(f"{folder}: already holds a run ({held[0]}); choose another folder")
    return folder


def _new_folder(wanted):
    """`wanted`, or wanted-2, wanted-3 ...: the first that nobody has taken."""
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")


class Logger:
    """Writes a run's rows and shows its progress, between `with` and the end of the block.

    On a terminal one panel is redrawn in place; elsewhere plain lines, without escape codes."""

    def __init__(self, folder, total_steps, console=None):
        self.folder, self.sinks = Path(folder), []  # whoever else gets the metrics: utils/sinks.py
        self._console = console or Console(force_terminal=_is_terminal())
        self._latest = Progress(0, total_steps, 0)
        self._printed = None  # the Progress of the last plain line

    def __enter__(self):
        self._metrics = _append_to(self.folder / METRICS)
        self._scores = _append_to(self.folder / SCORES)
        self._live = None
        if self._console.is_terminal:  # refreshed by hand: a thread would take time from training
            self._live = Live(self._panel(), console=self._console, auto_refresh=False)
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Close the files and leave the terminal as it was; a second time does nothing."""
        if self._metrics.closed:
            return
        for file in (self._metrics, self._scores, *self.sinks):
            file.close()
        self.release()
        if not self._live and self._latest.steps and self._latest != self._printed:
            self._print_line()

    def release(self):
        """Give the terminal back, with its cursor."""
        if self._live:
            self._live.stop()

    def sizes(self):
        """Bytes of the logs, which are on the disk afterwards: what `cut` takes."""
        for path in (self.folder / METRICS, self.folder / SCORES):
            with open(path, "ab") as file:
                os.fsync(file.fileno())
        return {name: (self.folder / name).stat().st_size for name in (METRICS, SCORES)}

    def cut(self, sizes):
        """Shorten the logs to these sizes: without rows that a resumed run writes again.

        Raises: ValueError for a log that is shorter already, and then none is touched."""
        for name, size in sizes.items():
            path = self.folder / name
            found = path.stat().st_size if path.exists() else 0
            if found < size:
                raise ValueError(f"{path}: has {found} bytes, expected at least {size}")
        for name, size in sizes.items():
            os.truncate(self.folder / name, size)

    def metrics(self, step, values):
        """Append one row to metrics.jsonl, to six digits, and give it to the sinks.

        Raises: ValueError for a value that is nan or infinite, or named "step"."""
        if "step" in values:
            raise ValueError("a metric cannot be named 'step': each row has one already")
        _write(self._metrics, [{"step": step} | values])
        for sink in self.sinks:
            sink.metrics(step, values)

    def episodes(self, rows):
        """Append finished episodes to scores.jsonl, each a dict of step, env, return, length.

        Raises: ValueError for a value that is nan or infinite; then none is written."""
        _write(self._scores, rows)

    def say(self, text):
        """Print a line, on a terminal above the panel."""
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def show(self, progress):
        """Redraw the panel, or print a line where an evaluation or five seconds have passed."""
        last, self._latest = self._printed, progress
        if self._live:
            self._live.update(self._panel(), refresh=True)
        elif (
            last is None
            or (last.eval_return, last.best_eval) != (progress.eval_return, progress.best_eval)
            or progress.elapsed - last.elapsed >= PLAIN_PERIOD
        ):
            self._print_line()

    def _print_line(self):
        self._printed = self._latest
        self.say(plain_line(self._latest))

    def _panel(self):
        return Panel(
            panel_content(self._latest),
            title=self._console.render_str(self.folder.name, markup=False, emoji=False),
            title_align="left",
            width=min(PANEL_WIDTH, self._console.width),
        )


def plain_line(progress):
    """A progress as one line of text whose columns stay in place from line to line."""
    p, width = progress, len(f"{progress.total_steps:,}")
    return "  ".join([
        f"{p.steps:{width},} steps {_percent(p):>4}",
        f"eval {_score(p.eval_return):>8} best {_score(p.best_eval):>8}",
        f"train {_score(p.train_return):>8}",
        f"{_rate(p.updates_per_s):>5} updates/s {_rate(p.steps_per_s):>6} steps/s",
        f"{_clock(p.elapsed):>5} left {_clock(p.left):>5}",
    ])


def panel_content(progress):
    """A progress as a bar above two columns of labelled numbers, for rich to draw."""
    p = progress
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    bar.add_row(f"{p.steps:,} / {p.total_steps:,} steps",
                ProgressBar(p.total_steps, p.steps), _percent(p))
    numbers = Table.grid(padding=(0, 2), expand=True)
    for style, justify in [("dim", "left"), ("bold", "right")] * 2:
        numbers.add_column(style=style, justify=justify, no_wrap=True)
    numbers.add_row("evaluation return", _score(p.eval_return), "updates", f"{p.updates:,}")
    numbers.add_row("best evaluation", _score(p.best_eval), "updates/s", _rate(p.updates_per_s))
    numbers.add_row("training return", _score(p.train_return), "steps/s", _rate(p.steps_per_s))
    numbers.add_row("elapsed", _clock(p.elapsed), "left", _clock(p.left))
    return Group(bar, "", numbers)


def _is_terminal():
    # asked directly: rich also says yes to FORCE_COLOR, which sends escape codes into log files
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _append_to(path):
    return open(path, "a", encoding="utf-8", newline="\n")


def _write(file, rows):
    """Append rows as JSON lines: all checked before the first is written, then flushed."""
    lines = [json.dumps({name: _rounded(name, value) for name, value in row.items()}) + "\n"
             for row in rows]
    file.write("".join(lines))
    file.flush()


def _rounded(name, value):
    if isinstance(value, int):
        return value
    if not math.isfinite(value):
        raise ValueError(f"{name!r} is {value}: only finite numbers can be logged")
    return float(f"{value:.6g}")


def _percent(progress):
    return f"{min(1.0, progress.steps / max(1, progress.total_steps)):.0%}"


def _score(value):
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}"


def _rate(value):
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _clock(seconds):
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
