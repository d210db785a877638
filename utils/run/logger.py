"""What a run leaves behind: its folder, metrics.jsonl, scores.jsonl.

The clock is read once, to name a new folder. The rows hold what the caller gave and nothing else,
so two runs of one seed differ only under the caller's keys that begin with `time/`.
"""

import contextlib
import json
import math
import os
import tempfile
import time
from pathlib import Path

METRICS, SCORES = "metrics.jsonl", "scores.jsonl"
FILES = (METRICS, SCORES, "config.yaml", "weights.npz", "learning_curve.png", "checkpoints")


def make_folder(logdir, env, seed):
    """The run's folder, made: `logdir` itself, else a new runs/<env>-<seed>-<date>-<time>.

    Raises: ValueError, one line, for a folder that cannot be written or already holds a run."""
    folder = Path(logdir) if logdir else Path("runs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not logdir:
            name = f"{env}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
            folder = _new_folder(folder / name.replace(":", "-"))  # of package.module:factory
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
    """Writes a run's rows, between `with` and the end of the block.

    `sinks` get the metrics too: utils/run/sinks.py."""

    def __init__(self, folder):
        self.folder, self.sinks = Path(folder), []

    def __enter__(self):
        self._metrics = _append_to(self.folder / METRICS)
        self._scores = _append_to(self.folder / SCORES)
        return self

    def __exit__(self, *_):
        for file in (self._metrics, self._scores, *self.sinks):
            with contextlib.suppress(OSError):  # every row was flushed: what is left has failed
                file.close()

    def is_whole(self):
        """Whether the last row of metrics.jsonl is a run's last: its score."""
        path = self.folder / METRICS
        last = path.read_text(encoding="utf-8").rpartition("\n{")[2] if path.exists() else ""
        return last.endswith("}\n") and '"charts/score_return"' in last

    def sizes(self):
        """Bytes of the logs, which are on the disk afterwards: what `cut` takes."""
        for path in (self.folder / METRICS, self.folder / SCORES):
            with open(path, "ab") as file:
                os.fsync(file.fileno())
        return {name: (self.folder / name).stat().st_size for name in (METRICS, SCORES)}

    def cut(self, sizes):
        """Shorten the logs to these sizes: without rows that a resumed run writes again.

        Raises: ValueError for a log that is shorter already, and then none is touched."""
        for path in (self.folder / METRICS, self.folder / SCORES):
            found = path.stat().st_size if path.exists() else 0
            if found < sizes[path.name]:
                raise ValueError(f"{path}: has {found} bytes, expected at least {sizes[path.name]}")
        for path in (self.folder / METRICS, self.folder / SCORES):
            os.truncate(path, sizes[path.name])

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
