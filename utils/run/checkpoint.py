"""Saved states of a run: everything that a run needs to go on as if it had never stopped.

A checkpoint of step N in the folder RUN/checkpoints is

    N.json          the record, written last: the checkpoint exists when this file does
    N.npz           weights, slow critic, optimiser, return range, environments, random keys, the
                    weights of the best evaluation, latents of the replay
    rows-A-B.npz    rows A to B - 1 of every ring of the replay, written once, shared by checkpoints

Training refreshes the latents of replayed rows, so they are saved each time; what the rows hold
besides never changes. The record names the SHA-256 of every file and of itself. Only arrays and
JSON are read: opening a stranger's checkpoint runs no code.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.core.replay import ring_size
from utils.run.arrays import load, save
from utils.run.files import replace

FORMAT = 1
KEEP = 2  # checkpoints
REFRESHED = ("h", "z")  # columns of the replay that training writes anew


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    `rows` holds the living rows of the replay, [E, n, ...] by column, oldest first, or None."""

    record: dict
    arrays: dict
    rows: dict | None


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run):
        self.folder = Path(run) / "checkpoints"

    def save(self, record, arrays, replay=None):
        """Write a checkpoint of step record["step"], then forget all but the last two.

        `arrays` {name: array}; `replay` a Replay of host arrays [E, C, ...], or None to leave it
        out. Nothing of an older checkpoint is touched before the new one stands.

        Raises: OSError where the folder cannot be written, then the older ones are whole."""
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

    def load(self, warn):
        """The newest checkpoint that is whole; `warn` is called with a line for each that is not.

        Raises: ValueError, one line, where there is none."""
        for saved in self.newest_first(warn):
            return saved
        raise ValueError(f"{self.folder.parent}: holds no checkpoint"
                         + (" that is whole" if self._records() else " yet"))

    def newest_first(self, warn):
        """Yields each checkpoint that is whole; `warn` is called with a line for each other."""
        for path in reversed(self._records()):
            try:
                yield self._read(path)
            except (ValueError, FileNotFoundError) as error:
                warn(f"{error}; the checkpoint before it is tried")

    def forget_after(self, step):
        """Delete the records of later steps: the run goes on from this one."""
        for path in self._records():
            if int(path.stem) > step:
                path.unlink()

    def last_step(self):
        """Step of the newest checkpoint, None where there is none."""
        return max((int(path.stem) for path in self._records()), default=None)

    def _records(self):
        return sorted(self.folder.glob("[0-9]*.json"))

    def _save_rows(self, replay):
        """The living rows that no file holds yet, into a file -> {file: SHA-256} of all of them."""
        written, size = int(replay.written), ring_size(replay)
        files, end = {}, max(0, written - size)  # where the living rows begin
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

    def _read(self, path):
        record = _record(path)
        for name, digest in record["files"].items():
            if _digest(self.folder / name) != digest:
                raise ValueError(f"{self.folder / name}: is damaged (its SHA-256 differs)")
        arrays = load(self.folder / f"{path.stem}.npz")
        parts = [load(self.folder / name) | {"span": _span(name)}
                 for name in record["files"] if name.startswith("rows-")]
        return Saved(record, *_apart(arrays, parts))

    def _forget(self):
        """Delete the checkpoints before the last two, and the files that none of these needs."""
        for path in self._records()[:-KEEP]:
            path.unlink()
        needed = {name for path in self._records() for name in _record(path)["files"]}
        for path in self.folder.glob("*.npz"):
            if path.name not in needed:
                path.unlink()


def _latents(replay):
    """The refreshed columns of the living rows, oldest first, as arrays by name."""
    written, size = int(replay.written), ring_size(replay)
    places = np.arange(max(0, written - size), written) % size
    rows = replay.rows._asdict()
    return {f"replay/{column}": rows[column][:, places] for column in REFRESHED}


def _apart(arrays, parts):
    """Arrays of a file -> those of the state, and the living rows [E, n, ...], oldest first."""
    state = {name: array for name, array in arrays.items() if not name.startswith("replay/")}
    if not parts:
        return state, None
    rows = {name.removeprefix("replay/"): arrays[name] for name in arrays if name not in state}
    living = rows[REFRESHED[0]].shape[1]
    parts = sorted(parts, key=lambda part: part["span"])
    for column in parts[0].keys() - {"span"}:
        joined = np.concatenate([part[column] for part in parts], axis=1)
        rows[column] = joined[:, joined.shape[1] - living:]
    return state, rows


def _record(path):
    """The record in a JSON file; ValueError where it is not what was written."""
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
        record, digest = text["record"], text["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: is damaged (no complete record)") from None
    if _digest_of(record) != digest:
        raise ValueError(f"{path}: is damaged (its SHA-256 differs)")
    if record["format"] != FORMAT:
        raise ValueError(f"{path}: has format {record['format']}, expected {FORMAT}")
    if any(Path(name).name != name for name in record["files"]):
        raise ValueError(f"{path}: names files of other folders")
    return record


def _span(name):
    """(first, end) of rows-FIRST-END.npz."""
    _, first, end = name.removesuffix(".npz").split("-")
    return int(first), int(end)


def _write(path, arrays):
    """Write arrays -> the SHA-256 of the file."""
    save(path, arrays)
    return _digest(path)


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(record):
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
