"""The logs of a run: its folder, metrics.jsonl, scores.jsonl.

The clock is read only to name a new folder. The rows contain only the caller's values, so two runs
with the same seed differ only in keys that begin with `time/`.
"""

import contextlib
import json
import math
import os
import re
import tempfile
import time
from pathlib import Path

METRICS, SCORES = "metrics.jsonl", "scores.jsonl"
FILES = (METRICS, SCORES, "config.yaml", "weights.npz", "learning_curve.png", "checkpoints")


def make_folder(logdir, env, seed):
    """Create the run's folder: `logdir`, else a new runs/<env>-<seed>-<date>-<time>.

    Raises: ValueError, one line, for a folder that is not writable or already contains a run."""
    folder = Path(logdir) if logdir else Path("runs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not logdir:
            name = f"{env}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
            folder = _new_folder(folder / re.sub("[:/]", "-", name))  # of module:factory, ALE/Pong
        with tempfile.TemporaryFile(dir=folder):
            pass  # creating a file is the only reliable test that a folder is writable
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({error.strerror.lower()})") from None
    found = [name for name in FILES if (folder / name).exists()]
    if found:
        advice = (f"--resume {folder} continues it" if any(folder.glob("checkpoints/*.json"))
                  else "it has no checkpoint to resume from")
        raise ValueError(f"{folder}: already contains a run ({found[0]}); {advice}; choose "
                         "another folder, or delete this one")
    return folder


def _new_folder(wanted):
    """Create `wanted`, or the first of wanted-2, wanted-3 ... that does not exist."""
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")


class Logger:
    """A context that writes a run's rows; `sinks` (utils/run/sinks.py) receive the metrics too.

    `names` are those of its files; a program that plays no episodes has no SCORES."""

    def __init__(self, folder, names=(METRICS, SCORES)):
        self.folder, self.sinks = Path(folder), []
        self._paths = [self.folder / name for name in names]

    def __enter__(self):
        self._files = {path.name: _append_to(path) for path in self._paths}
        return self

    def __exit__(self, *_):
        for file in (*self._files.values(), *self.sinks):
            with contextlib.suppress(OSError):  # all rows were flushed already
                file.close()

    def is_complete(self):
        """Whether metrics.jsonl ends with the score, the last row of a finished run."""
        path = self.folder / METRICS
        last = path.read_text(encoding="utf-8").rpartition("\n{")[2] if path.exists() else ""
        return last.endswith("}\n") and '"charts/score_return"' in last

    def sizes(self):
        """The sizes of the logs in bytes, for `cut`; first syncs them to disk."""
        for path in self._paths:
            with open(path, "ab") as file:
                os.fsync(file.fileno())
        return {path.name: path.stat().st_size for path in self._paths}

    def check(self, sizes):
        """Check the rows of which the logs consist up to these sizes, before `cut`.

        Raises: ValueError, one line, for a log that is shorter, or has a damaged row."""
        for path in self._paths:
            found = path.stat().st_size if path.exists() else 0
            if found < sizes[path.name]:
                raise ValueError(f"{path}: has {found} bytes, expected at least {sizes[path.name]}")
            if found:
                read_rows(path, sizes[path.name])

    def cut(self, sizes):
        """Truncate the logs to these sizes: the resumed run writes the later rows again."""
        for path in self._paths:
            os.truncate(path, sizes[path.name])

    def metrics(self, step, values):
        """Append one row to metrics.jsonl, with six digits, and pass it to the sinks.

        Raises: ValueError for a value that is nan or infinite, or named "step"."""
        if "step" in values:
            raise ValueError("a metric cannot be named 'step': each row already has one")
        _write(self._files[METRICS], [{"step": step} | values])
        for sink in self.sinks:
            sink.metrics(step, values)

    def episodes(self, rows):
        """Append finished episodes to scores.jsonl: dicts of step, env, return, length.

        Raises: ValueError for a value that is nan or infinite; then none is written."""
        _write(self._files[SCORES], rows)


def read_rows(path, size=None):
    """The complete rows of a log, or of its first `size` bytes

    An interrupted run may leave a part of one at the end.

    Raises: ValueError, one line, naming a line that is no row; OSError."""
    with open(path, "rb") as file:
        lines = file.read(size).split(b"\n")[:-1]
    found = [_row(line) for line in lines]
    if None in found:
        raise ValueError(f"{path}: line {found.index(None) + 1} is damaged: expected a row of "
                         "finite numbers with a step")
    return found


def _row(line):
    """The row in a line; None if it holds anything else."""
    try:
        row = json.loads(line)
        return row if "step" in row and all(map(math.isfinite, row.values())) else None
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _append_to(path):
    return open(path, "a", encoding="utf-8", newline="\n")


def _write(file, rows):
    """Append rows as JSON lines and flush; all are checked before any is written."""
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
