"""Checkpoints: everything that a run needs to resume as if it had never stopped.

A checkpoint of step N in the folder RUN/checkpoints consists of

    N.json          the record, written last: the checkpoint exists once this file does
    N.npz           weights, slow critic, optimiser, return range, environments, random keys, the
                    weights of the best evaluation, latents of the replay
    rows-A-B.npz    rows A to B - 1 of every ring of the replay, written once, shared by checkpoints

Training refreshes the latents of replayed rows, so they are saved each time; the rest of a row
never changes. The record has the SHA-256 of every file and of itself. Only arrays and JSON are
read, so opening someone else's checkpoint runs no code.
"""

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from utils.core.replay import ring_size
from utils.run.arrays import load, save
from utils.run.files import replace

FORMAT = 2
READABLE = (1, FORMAT)  # format 1 names the actor state otherwise: weights alone can be used
KEEP = 2  # checkpoints
OWN = re.compile(r"([0-9]{10}|rows-[0-9]{10}-[0-9]{10})\.npz")  # the files that are deleted here
REFRESHED = ("h", "z")  # columns of the replay that training overwrites


@dataclass(frozen=True)
class Saved:
    """A checkpoint in memory.

    `rows` holds the current rows of the replay, [E, n, ...] by column, oldest first, or None."""

    record: dict
    arrays: dict
    rows: dict | None


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run):
        self.folder = Path(run) / "checkpoints"

    def save(self, record, arrays, replay=None):
        """Write a checkpoint of step record["step"], then delete all but the last two.

        `arrays` is {name: array}; `replay` is a Replay of host arrays [E, C, ...], or None to omit
        it. Older checkpoints are untouched until the new one is complete.

        Raises: OSError where the folder cannot be written; the older ones then stay complete."""
        self.folder.mkdir(exist_ok=True)
        name, files, written = f"{record['step']:010}", {}, 0
        if replay is not None:
            files, written = self._save_rows(replay), int(replay.written)
            arrays = arrays | _latents(replay)
        files[f"{name}.npz"] = _write(self.folder / f"{name}.npz", arrays)
        record = record | {"format": FORMAT, "files": files, "written": written}
        text = json.dumps({"sha256": _digest_of(record), "record": record}, indent=1)
        replace(self.folder / f"{name}.json", text.encode())
        self._forget()

    def load(self, warn, step=None):
        """Load the newest intact checkpoint; `warn` is called with a line for each damaged one.

        Where none is intact, the newest whose arrays are, without its replay. With `step`, only the
        intact one of this step.

        Raises: ValueError, one line, if there is none, or if an older version saved it."""
        if step is not None:
            for saved in self.newest_first(_silent):
                if saved.record["step"] == step:
                    return saved
            raise ValueError(f"{self.folder.parent}: holds no checkpoint of step {step:,}")
        for saved in chain(self.newest_first(warn), self.newest_first(_silent, rows=False)):
            if saved.record["format"] != FORMAT:
                raise ValueError(f"{self.folder.parent}: was saved by an older version and cannot "
                                 "be resumed; utils.evaluate, utils.watch and utils.report still "
                                 "read its weights")
            return saved
        why = "no intact checkpoint" if self._records() else "no checkpoint to resume from"
        raise ValueError(f"{self.folder.parent}: has {why}: start a new run in another folder, or "
                         "delete this one")

    def can_resume(self):
        """Whether a checkpoint is there that this version can resume from."""
        return any(f'"format": {FORMAT},' in path.read_text(encoding="utf-8")
                   for path in self._records())

    def newest_first(self, warn, rows=True):
        """Yields each intact checkpoint; `warn` is called with a line for each damaged one.

        Without `rows`, the files of the replay are not read."""
        for path in reversed(self._records()):
            try:
                yield self._read(path, rows)
            except (ValueError, OSError) as error:
                warn(f"{error}; trying the checkpoint before it")

    def records(self):
        """Yields each intact record that this version can resume from, without its arrays."""
        for path in self._records():
            with contextlib.suppress(ValueError, OSError):
                if (record := _record(path))["format"] == FORMAT:
                    yield record

    def forget_after(self, step):
        """Delete the records of later steps: the run resumes from this one."""
        for path in self._records():
            if int(path.stem) > step:
                path.unlink()

    def last_step(self):
        """The step of the newest checkpoint, None if there is none."""
        return max((int(path.stem) for path in self._records()), default=None)

    def _records(self):
        return sorted(path for path in self.folder.glob("[0-9]*.json")
                      if path.stem.isdigit() and path.is_file())

    def _save_rows(self, replay):
        """Write the rows that no file holds yet -> {file: SHA-256} of all row files."""
        written, size = int(replay.written), ring_size(replay)
        files, end = {}, max(0, written - size)  # where the current rows begin
        for path in self._records()[-1:]:
            for name, digest in _record(path)["files"].items():
                if name.startswith("rows-") and _span(name)[1] > end:
                    files[name], end = digest, _span(name)[1]
        if end < written:
            name, places = f"rows-{end:010}-{written:010}.npz", np.arange(end, written) % size
            rows = {column: array[:, places] for column, array in replay.rows._asdict().items()
                    if column not in REFRESHED}
            files[name] = _write(self.folder / name, rows)
        return files

    def _read(self, path, rows=True):
        record = _record(path)
        files = {name: digest for name, digest in record["files"].items()
                 if rows or not name.startswith("rows-")}
        for name, digest in files.items():
            if _digest(self.folder / name) != digest:
                raise ValueError(f"{self.folder / name}: is damaged (its SHA-256 differs)")
        arrays = load(self.folder / f"{path.stem}.npz")
        parts = [load(self.folder / name) | {"span": _span(name)}
                 for name in files if name.startswith("rows-")]
        return Saved(record, *_split(arrays, parts))

    def _forget(self):
        """Delete all but the last two checkpoints, and the files that these do not need."""
        for path in self._records()[:-KEEP]:
            path.unlink()
        needed = {name for path in self._records() for name in _record(path)["files"]}
        for path in self.folder.glob("*.npz"):
            if path.name not in needed and OWN.fullmatch(path.name):
                path.unlink()


def _silent(line):
    """For what has been said before."""


def _latents(replay):
    """The refreshed columns of the current rows, oldest first, as {name: array}."""
    written, size = int(replay.written), ring_size(replay)
    places = np.arange(max(0, written - size), written) % size
    rows = replay.rows._asdict()
    return {f"replay/{column}": rows[column][:, places] for column in REFRESHED}


def _split(arrays, parts):
    """Arrays of a file -> those of the state, and the current rows [E, n, ...], oldest first."""
    state = {name: array for name, array in arrays.items() if not name.startswith("replay/")}
    if not parts:
        return state, None
    rows = {name.removeprefix("replay/"): arrays[name] for name in arrays if name not in state}
    count = rows[REFRESHED[0]].shape[1]
    parts = sorted(parts, key=lambda part: part["span"])
    for column in parts[0].keys() - {"span"}:
        joined = np.concatenate([part[column] for part in parts], axis=1)
        rows[column] = joined[:, joined.shape[1] - count:]
    return state, rows


def _record(path):
    """Read and verify the record in a JSON file. Raises: ValueError if it is damaged."""
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
        record, digest = text["record"], text["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: is damaged (no complete record)") from None
    if _digest_of(record) != digest:
        raise ValueError(f"{path}: is damaged (its SHA-256 differs)")
    if record["format"] not in READABLE:
        raise ValueError(f"{path}: has format {record['format']}, expected {FORMAT}")
    if any(Path(name).name != name for name in record["files"]):
        raise ValueError(f"{path}: names files in other folders")
    return record


def _span(name):
    """(first, end) of rows-FIRST-END.npz."""
    _, first, end = name.removesuffix(".npz").split("-")
    return int(first), int(end)


def _write(path, arrays):
    """Write arrays to a file -> its SHA-256."""
    save(path, arrays)
    return _digest(path)


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(record):
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
