"""The progress of a run of dreamer4.py as lines and as a panel: phase, figure, baselines, speed."""

from dataclasses import dataclass

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table

from utils.dreamer4 import figures
from utils.dreamer4.settings import PHASES
from utils.run.display import clock, rate


@dataclass(frozen=True)
class Progress:
    """Where a run is; None for what is unknown. Times are in seconds."""

    phase: str
    done: int  # updates of this phase
    total: int
    updates: int  # of all phases
    figure: str  # its name
    value: float | None  # of the last evaluation in this phase
    baselines: dict  # {what: value}
    per_s: float | None
    elapsed: float
    left: float | None  # of this phase

    @property
    def title(self):
        """The phase's number and name."""
        return f"{PHASES.index(self.phase) + 1} {self.phase}"

    @property
    def shown(self):
        """The figure in words."""
        return "-" if self.value is None else figures.said(self.figure, self.value)

    def is_news(self, last):
        """Whether a plain line is due, although the `last` one was printed a moment ago."""
        return (last.phase, last.value) != (self.phase, self.value)

    def line(self):
        """It as one line of text."""
        width = len(f"{self.total:,}")
        return (f"{self.title:11}  {self.done:{width},} / {self.total:,}  "
                f"{rate(self.per_s):>5} updates/s  {clock(self.elapsed):>5} left "
                f"{clock(self.left):>5}  {self.shown}")

    def panel(self, status):
        """It for rich: a bar, a line of status, the figure, its baselines, and the times."""
        bar = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None):
            bar.add_column(ratio=ratio, no_wrap=True)
        bar.add_row(f"{self.title}  {self.done:,} / {self.total:,}",
                    ProgressBar(self.total, self.done), f"{self.done / self.total:.0%}")
        numbers = Table.grid(padding=(0, 2), expand=True)
        for style, justify in [("dim", "left"), ("bold", "right")] * 2:
            numbers.add_column(style=style, justify=justify, no_wrap=True)
        value = "-" if self.value is None else figures.number(self.figure, self.value)
        what, unit, _ = figures.words(self.figure)
        numbers.add_row(f"{what}, {unit}".rstrip(", "), value, "updates/s", rate(self.per_s))
        rows = [(what, figures.number(self.figure, value))
                for what, value in self.baselines.items()] + [("", "")] * 2
        for row, clocks in zip(rows, (("elapsed", clock(self.elapsed)),
                                      ("left", clock(self.left)), ("", ""))):
            numbers.add_row(*row, *clocks)
        return Group(bar, status, numbers)
