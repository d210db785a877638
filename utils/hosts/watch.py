"""Watches the other processes of a run: who is killed, hangs or fails must not keep the others.

A collective operation waits for all processes, some for ever. So each process says every second
that it lives and how many chunks it has begun, from a thread of its own; and each ends in one line
when another has failed, falls silent, or when no chunk has come for far too long.
"""

import contextlib
import threading
import time

from utils.core.cli import one_line, warn
from utils.hosts.group import GROUP, SILENT, quit_now

PERIOD = 1.0  # seconds between two signs of life, and one more for each SHARE processes
SHARE = 100
STILL = 4.0  # seconds without one that say who was killed, when an operation has already failed
OWN_END = 5.0  # seconds in which a process ends by itself when another has: their error may be one
LAST_WORDS = 5.0  # seconds in which a process says why it ends
LEAST, TIMES = 300.0, 10  # seconds without a chunk, and times the longest: one of them hangs


class Watch:
    """A thread that ends this process when another one has left it alone.

    `folder` is that of the run, `release` restores the screen, `hints` returns lines that say how
    to go on; all three are set when there is a run."""

    def __init__(self):
        self.folder, self.release, self.hints = None, _nothing, tuple
        self._chunks, self._beats, self._since, self._longest = 0, 0, None, 0.0
        self._heard = {}  # process: (its last sign of life, when it arrived)
        self._failed = None  # when another process had first said that it failed

    def start(self):
        """Begin to watch."""
        now = time.monotonic()
        self._heard = {index: (None, now) for index in range(GROUP.count) if index != GROUP.index}
        threading.Thread(target=self._run, daemon=True).start()

    @contextlib.contextmanager
    def a_chunk(self):
        """A block that waits for a chunk of training, which all processes compute together."""
        self._chunks += 1
        self._since = time.monotonic()
        yield
        self._longest = max(self._longest, time.monotonic() - self._since)
        self._since = None

    def cause(self):
        """Which process has ended, when an operation of all has failed: a line, None if none."""
        limit = STILL + 2 * self._period()
        until = time.monotonic() + limit + self._period()
        while GROUP.shares and time.monotonic() < until:
            time.sleep(0.2)
            if line := self._ended() or self._silent(limit):
                return line
        return None

    def _period(self):
        return PERIOD * (1 + GROUP.count / SHARE)

    def _run(self):
        while GROUP.count > 1:
            try:
                self._beat()
                line = self._problem()
            except RuntimeError:  # the service is gone, and process 0 with it
                line = "process 0 has ended"
            if line and GROUP.count > 1 and not GROUP.has_ended:
                self._end(line)
            time.sleep(self._period())

    def _beat(self):
        self._beats += 1
        GROUP.post(f"beat/{GROUP.index}", [self._beats, self._chunks])
        beats, left = GROUP.told("beat"), GROUP.told("left")
        for index in [index for index in self._heard if index in left]:
            del self._heard[index]
        for index, (last, _) in self._heard.items():
            if beats.get(index) != last:
                self._heard[index] = beats[index], time.monotonic()

    def _problem(self):
        now = time.monotonic()
        if line := self._ended():
            self._failed = self._failed or now
            return line if now - self._failed > OWN_END else None
        return self._silent(SILENT) or self._hangs(now)

    def _ended(self):
        return next((f"process {index} has ended; see {self._output(index)}"
                     for index in GROUP.ended()), None)

    def _silent(self, seconds):
        now = time.monotonic()
        for index, (_, at) in list(self._heard.items()):
            if now - at > seconds:
                return (f"process {index} has not been heard of for {now - at:.0f} s, so it was "
                        f"killed or stopped; see {self._output(index)}")
        return None

    def _hangs(self, now):
        since, limit = self._since, max(LEAST, TIMES * self._longest)
        if since is None or now - since < limit:
            return None
        behind = [index for index, (beat, _) in self._heard.items()
                  if beat and beat[1] < self._chunks]
        who = f"process {behind[0]} hangs; see {self._output(behind[0])}" if behind else (
            "an operation of all processes hangs")
        return f"no chunk of training for {now - since:.0f} s: {who}"

    def _output(self, index):
        """Where a process has said what was wrong."""
        folder = self.folder
        return f"{folder}/host-{index}/output.txt" if folder and index else "its output"

    def _end(self, line):
        saying = threading.Thread(target=self._say, args=(line,), daemon=True)
        saying.start()
        saying.join(LAST_WORDS)  # a disk that is gone, or a full pipe, must not keep it alive
        quit_now(1)

    def _say(self, line):
        self.release()
        for text in (f"dreamer.py: {line}", *self.hints()):
            warn(one_line(text))


def _nothing():
    """Where there is nothing to restore."""


WATCH = Watch()
