"""A run as the host sees it: its folder, what is written there, and how it stops and goes on."""

import os
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np

from utils import sinks, weights
from utils.checkpoint import Checkpoints
from utils.cli import check_unchanged
from utils.config import dump
from utils.diary import Diary, episodes
from utils.logger import Logger, make_folder
from utils.plots import draw_run
from utils.replay import restore
from utils.stop import Stop
from utils.summary import describe

try:
    import fcntl
except ImportError:  # Windows: there, a second process on one folder is not refused
    fcntl = None

PACKAGES = ("jax", "flax", "optax", "gymnax", "numpy")  # that a run's numbers depend on


class Mismatch(ValueError):
    """A checkpoint that does not hold the arrays of this run."""


class Session:
    """One run, new or resumed, between `with` and the end of the block.

    Errors of the run that are nobody's mistake in the code (the disk is full, a loss is not
    finite) end the block with one line and `status` 1; signals that stop it leave 128 + signal.

    Raises: ValueError, one line, where the folder cannot be used."""

    def __init__(self, command, env, shapes, began):
        self.config, self.env, self.shapes = command.config, env, shapes
        run, self.saved, self.status = self.config.run, None, 0
        sinks.check(self.config.log)
        self.folder = Path(command.run) if command.run else make_folder(
            command.logdir, run.env, run.seed)
        self._lock = _lock(self.folder)
        self._checkpoints = Checkpoints(self.folder)
        self._logger = Logger(self.folder, run.steps)
        self._diary = Diary(self._logger, run.steps, env.solved, began or time.perf_counter())
        if command.run:
            self._take_up()
        config = dump(self.config).encode()
        weights.replace(self.folder / "config.yaml", config)

    def _take_up(self):
        """Read the last checkpoint, and make the logs what they were when it was written."""
        self.saved = self._checkpoints.load(_warn)
        record = self.saved.record
        check_unchanged(self.config, record["config"], "resume", self.folder)
        if record["step"] >= self.config.run.steps and self._logger.sizes() != record["logs"]:
            raise ValueError(f"{self.folder}: has made its {record['step']:,} steps; "
                             "a larger --steps goes on")
        self._logger.cut(record["logs"])
        self._checkpoints.forget_after(record["step"])
        self._diary.recall(record["diary"])
        then, now = record["versions"], _versions()
        if then != now:
            differing = [f"{name} {then[name]}" for name in now if then[name] != now[name]]
            _warn(f"the run was saved with {', '.join(differing)}: the same numbers to the last "
                  "digit cannot be promised")

    def __enter__(self):
        self._logger.sinks = sinks.open_sinks(self.config, self.folder, self.steps)
        self._logger.__enter__()
        self._stop = Stop(self._logger.say, self._logger.release).__enter__()
        for line in describe(self.env, self.shapes):
            self._logger.say(line)
        if self.saved:
            self._logger.say(f"resuming     {self.folder} from step {self.steps:,}")
        return self

    def __exit__(self, kind, error, _):
        self._stop.__exit__()
        self._logger.close()
        os.close(self._lock)
        if isinstance(error, OSError):
            error = f"{self.folder}: cannot be written ({error.strerror.lower()})"
        elif not isinstance(error, (FloatingPointError, Mismatch)):
            return False
        print(f"dreamer.py: {error}\n{self._how_to_go_on()}", file=sys.stderr)
        self.status = 2 if kind is Mismatch else 1
        return True

    @property
    def steps(self):
        """Environment steps made so far, up to the last chunk that was written down."""
        return self._diary.steps

    def restore(self, loop):
        """A fresh Loop with all that the checkpoint holds, and the weights of the best evaluation.

        A new run gets its loop back and None; so does the replay of a run saved without one.

        Raises: Mismatch naming the first array that is not what the run would have."""
        if not self.saved:
            return loop, None
        state = {"agent": loop.agent, "player": loop.player, "key": loop.key}
        best = {"best": loop.agent.params} if self._diary.best is not None else {}
        replay, rows = loop.replay, self.saved.rows
        try:
            state = weights.unflatten(state | best, self.saved.arrays)
            if rows is not None:
                replay = restore(replay, rows, self.saved.record["written"])
        except ValueError as error:
            raise Mismatch(f"{self.folder}: {error}") from None
        if rows is None:
            self._logger.say("replay       was not saved: it starts empty and is filled first")
        loop = loop._replace(**{name: state[name] for name in ("agent", "player", "key")})
        kept, self.saved = state.get("best"), None  # the arrays may be large
        return loop._replace(replay=replay), kept

    def due(self, steps):
        """Whether after a chunk that ends at `steps` the run evaluates, saves, and goes on."""
        run, over = self.config.run, steps >= self.config.run.steps
        going_on = not over and not self._stop.asked
        return (over or steps // run.eval_every > self.steps // run.eval_every,
                not going_on or steps // run.save_every > self.steps // run.save_every,
                going_on)

    def episodes(self, steps, finished):
        """`steps` environment steps were made, in which these episodes ended."""
        self._diary.episodes(steps, episodes(finished, self.steps))

    def chunk(self, updates, metrics):
        """`updates` updates were made, with these metrics of each and perhaps an evaluation.

        Returns: whether this was the best evaluation so far, or as good as the best.
        Raises: FloatingPointError naming the first quantity that was not finite."""
        return self._diary.chunk(updates, metrics)

    def save(self, loop, best):
        """Write a checkpoint of a Loop of host arrays and the weights of the best evaluation.

        Raises: FloatingPointError for weights that are not finite; OSError."""
        state = {"agent": loop.agent, "player": loop.player, "key": loop.key}
        if best is not None:
            weights.save(self.folder / "weights.npz", weights.flatten(best))
            state["best"] = best
        arrays = weights.flatten(state)
        _all_finite(arrays, self.steps)
        record = {"step": self.steps, "config": dump(self.config), "versions": _versions(),
                  "diary": self._diary.remember(), "logs": self._logger.sizes()}
        self._checkpoints.save(record, arrays, loop.replay if self.config.run.save_replay else None)

    def end(self, best, score):
        """The run is over, with this evaluation of the best weights, or was stopped, without."""
        if not score:
            self.status = 128 + self._stop.asked
            self._logger.say(self._how_to_go_on())
            return
        weights.save(self.folder / "weights.npz", weights.flatten(best))
        self._diary.end(score)
        run = self.config.run
        draw_run(self.folder, f"{run.env}, seed {run.seed}", self.env.solved)
        self._logger.close()
        print(self._diary.summary(run.eval_episodes, self.folder))

    def _how_to_go_on(self):
        step = self._checkpoints.last_step()
        if step is None:
            return "no checkpoint had been written yet"
        command = shlex.join(["python", "dreamer.py", "--resume", str(self.folder)])
        return f"saved        step {step:,}; to go on: {command}"


def _lock(folder):
    """An open descriptor of the folder that no other process may hold: let go when this one ends.

    Raises: ValueError where another process holds it."""
    if fcntl is None:
        return os.open(os.devnull, os.O_RDONLY)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"{folder}: another process is running there") from None
    return descriptor


def _versions():
    return {name: metadata.version(name) for name in PACKAGES}


def _warn(line):
    print(f"dreamer.py: {line}", file=sys.stderr)


def _all_finite(arrays, step):
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise FloatingPointError(f"{name} is not finite at step {step:,}")
