"""A run of dreamer4.py: its folder, phases and figures, display, stop and resume."""

import contextlib
import json
import math
import time

import jax
import numpy as np

from utils.core import backend
from utils.core.machine import machine
from utils.dreamer4 import figures, phases, pictures
from utils.dreamer4.progress import Progress
from utils.dreamer4.settings import PHASES
from utils.run import commands, memory, sinks
from utils.run import files as run_files
from utils.run.arrays import flatten, unflatten
from utils.run.display import Display
from utils.run.logger import METRICS, read_rows
from utils.run.session import Folder, check_finite, is_end, open_folder, say_end
from utils.run.signals import Stop

RESULTS = "results.json"  # the last file of a finished run
COPIES = 4  # of the weights: they, their gradients, two averages of the optimiser
FLOAT, GB = 4, 1e9


class Session(Folder):
    """The host's interface for the loop over the phases.

    As a context it shows progress and listens for signals, and ends like that of DreamerV3: errors
    that are no bugs give one line, one on how to resume, and `status` 1, or 2 for a checkpoint that
    does not fit; a signal gives 128 + its number.

    Raises: ValueError, one line, if the folder cannot be used."""

    def __init__(self, command, shapes, began):
        config = command.config
        sinks.check(config.log)
        self._lines = [*describe(config, shapes)]
        check_memory(shapes, self._lines)
        backend.set_up(config)
        self.status, self._command, self._clock = 0, command, None
        # What a checkpoint remembers: updates by phase; figures, baselines and seconds by phase.
        self.updates, self.results = dict.fromkeys(PHASES, 0), {}
        self.phase, self._began = command.first, began or time.perf_counter()
        self._figures, self._baselines = {}, {}
        with contextlib.ExitStack() as undo:
            super().__init__(open_folder(undo, command, "square"), config, (METRICS,))
            undo.callback(self.close)
            run_files.refuse_links(self.folder, [RESULTS, phases.FOLDER])
            self._load()
            self.open_logs()
            self._display = Display(self.folder.resolve().name, self._progress())
            self._stop = Stop(self._display.say, self._display.release)
            undo.pop_all()

    def _load(self):
        """Load what the run begins with: a checkpoint, or the phases of another run."""
        command, self._taken = self._command, {}
        if command.run:
            self.load_checkpoint()
            notes = self.saved.record["diary"]
            self.updates, self.results, self.phase = (
                notes["updates"], notes["results"], notes["phase"])
            self._began -= notes["elapsed"]
        if command.source:
            before = PHASES[:PHASES.index(command.first)]
            self._taken = {name: phases.load(command.source, name) for name in before}
            self.results = self._taken[before[-1]][1]
            self.updates |= {name: getattr(command.config.run, name) for name in before}
            self._began -= self._seconds()  # as if they had been run here

    def check_unfinished(self, record):
        """Check that the run has something left to do. Raises: ValueError, one line."""
        if (self.folder / RESULTS).is_file():
            raise ValueError(f"{self.folder}: already finished all phases")

    def __enter__(self):
        self._display.__enter__()
        self._stop.__enter__()
        for line in self._lines:
            self._display.say(line)
        if self.saved:
            self._display.say(f"resuming     {self.folder} in phase {self._progress().title}, "
                              f"after {self.updates[self.phase]:,} updates")
        if self._taken:
            self._display.say(f"phases       before {self._progress().title} are those of "
                              f"{self._command.source}")
        return self

    def __exit__(self, kind, error, _):
        self._stop.__exit__()
        self._display.__exit__()
        self.close()
        if not is_end(error):
            return False
        self.status = say_end(error, self.config, self.folder, [self.resume_hint()])
        return True

    def key(self, number):
        """A random key of the run: 0 weights and learning, 1 data, 2 held-out data, 3 figures."""
        return jax.random.fold_in(jax.random.key(self.config.run.seed), number)

    def restore(self, state):
        """Fill a new TrainState from the checkpoint, or with the phases of another run.

        Raises: Mismatch naming the first array that does not fit."""
        if self._taken:
            return self._take(state)
        if not self.saved:
            return state
        state = self.fitted(unflatten, state, self.saved.arrays)
        self.go_on()
        return state

    def _take(self, state):
        """Fill a new TrainState with the phases of another run, and copy them to this one.

        What they have not trained stays new: it may have another size there."""
        new = phases.named(state)
        for name, (found, results) in self._taken.items():
            found = new | phases.learned(name, found)
            filled = self.fitted(phases.filled, state, found)
            phases.save(self.folder, name, found, results, self.config)
        return filled

    def unfinished(self):
        """Yields the phases that are left to do, one after the other, until a signal stops it."""
        for phase in PHASES:
            if not self._stop.received and phase not in self.results:
                self.phase, self._clock = phase, None
                yield phase

    def begin(self, baselines):
        """Show the phase that begins, and its baselines {figure: {what: value}}."""
        self._baselines = {name: {what: float(value) for what, value in found.items()}
                           for name, found in baselines.items()}
        self._figures = {}
        self._display.show(self._progress())

    def next_chunk(self):
        """The number of updates of the next chunk of this phase; 0 at its end or after a signal."""
        run = self.config.run
        left = getattr(run, self.phase) - self.updates[self.phase]
        return 0 if self._stop.received else min(run.chunk, left)

    def log(self, count, metrics):
        """Log a chunk of updates, metrics [count] each: -> whether to evaluate, whether to save

        Raises: FloatingPointError naming the first quantity that is not finite."""
        before, now = self.updates[self.phase], self.updates[self.phase] + count
        values = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}
        for name, value in values.items():
            if not np.isfinite(value).all():
                update = before + int(np.flatnonzero(~np.isfinite(value))[0]) + 1
                raise FloatingPointError(f"{name} is not finite in update {update:,} of phase "
                                         f"{self.phase}")
        self.updates[self.phase] = now
        rates = {"time/updates_per_second": self._rate()} if self._clock else {}
        self._clock = self._clock or (now, time.perf_counter())
        row = {f"{self.phase}/{name}": float(np.mean(value, dtype=np.float64))
               for name, value in values.items()}
        self._row(row | rates)
        run, over = self.config.run, self._is_over()
        every = max(1, getattr(run, self.phase) // run.evaluations)
        return (over or now // every > before // every,
                not over and now // run.save_every > before // run.save_every)

    def evaluated(self, found):
        """Log the figures of an evaluation, and show them."""
        self._figures = figures.in_order(found)
        self._row({f"{self.phase}/eval/{name}": value for name, value in self._figures.items()})

    def save(self, state):
        """Write a checkpoint of a TrainState.

        Raises: FloatingPointError for weights that are not finite; OSError."""
        arrays = flatten(jax.device_get(state))
        check_finite(arrays, ("params/",), self.step)
        self.write(self.step, arrays, {
            "updates": self.updates, "results": self.results, "phase": self.phase,
            "elapsed": self._elapsed()})

    def leave(self, state):
        """Save at the end of a phase, its weights and figures too, or where a signal stops it."""
        if self._is_over():
            self._finish(state)
        self.save(state)

    def _finish(self, state):
        self.results[self.phase] = {
            "updates": self.updates[self.phase], "figures": self._figures,
            "baselines": self._baselines, "seconds": self._elapsed() - self._seconds()}
        phases.save(self.folder, self.phase, phases.named(state), self.results, self.config)
        name, value = self._figure()
        self.say(f"phase        {self._progress().title}: {figures.said(name, value)} "
                 f"({figures.beside(name, self._baselines[name])})")

    def end(self, shown):
        """Finish the run: draw what the agent has learned, write results.json, print the table."""
        self._display.__exit__()
        rows = read_rows(self.folder / METRICS)
        first = {phase: figures.first(phase, self.config) for phase in PHASES}
        pictures.save_all(self.folder, rows, self.results, first, jax.device_get(shown))
        found = machine() | {"seed": self.config.run.seed, "seconds": self._elapsed(),
                             "bytes": memory.peak(), "phases": self.results}
        run_files.replace(self.folder / RESULTS, (json.dumps(found, indent=1) + "\n").encode())
        for line in figures.table(self.results):
            self._display.say(line)
        self._display.say(f"time         {self._elapsed():.0f} s, of which in phases "
                          + " · ".join(f"{one['seconds']:.0f}" for one in self.results.values()))
        self._display.say(f"files        {self.folder}/ ({', '.join(self._files())})")
        for name in ("watch", "report"):
            self._display.say(f"next         {commands.tool(name, str(self.folder))}")

    def stopped(self):
        """End a run that a signal stopped: say how to resume it -> whether there was one"""
        if not self._stop.received:
            return False
        self.status = 128 + self._stop.received
        self._display.__exit__()
        self._display.say(self.resume_hint())
        return True

    def say(self, line):
        """Print a line above the panel."""
        self._display.say(line)

    @property
    def step(self):
        """Updates of all phases so far."""
        return sum(self.updates.values())

    def _is_over(self):
        return self.updates[self.phase] >= getattr(self.config.run, self.phase)

    def _files(self):
        return sorted(path.name for path in self.folder.glob("*.*")
                      if path.suffix in (".png", ".gif", ".json"))

    def _row(self, values):
        times = {"time/elapsed": self._elapsed()}
        self.logger.metrics(self.step, values | times)
        self._display.show(self._progress())

    def _elapsed(self):
        return time.perf_counter() - self._began

    def _seconds(self):
        """Seconds of all phases that are over."""
        return sum(one["seconds"] for one in self.results.values())

    def _rate(self):
        """Updates per second since the first chunk of this phase, which had to be compiled."""
        done, clock = self._clock
        return (self.updates[self.phase] - done) / (time.perf_counter() - clock)

    def _figure(self):
        """The name and value of the figure that is shown, and None before an evaluation."""
        name = figures.first(self.phase, self.config)
        return name, self._figures.get(name)

    def _progress(self):
        total, done = getattr(self.config.run, self.phase), self.updates[self.phase]
        name, value = self._figure()
        rate = self._rate() if self._clock and done > self._clock[0] else None
        return Progress(self.phase, done, total, self.step, name, value,
                        self._baselines.get(name, {}), rate, self._elapsed(),
                        (total - done) / rate if rate else None)


def describe(config, shapes):
    """Lines that describe the run: device, world, number of weights by network."""
    world, device = config.world, jax.devices()[0]
    counts = {name: _count(part) for name, part in shapes.items()}
    run = config.run
    yield f"device       1 x {device.platform} ({device.device_kind})"
    yield (f"world        {world.size} x {world.size} pixels, {world.sequences:,} sequences "
           f"of {world.length} frames")
    yield (f"updates      tokenizer {run.tokenizer:,} · dynamics {run.dynamics:,} · "
           f"agent {run.agent:,} · policy {run.policy:,}")
    yield (f"parameters   {sum(counts.values()):,}: "
           + " · ".join(f"{name} {count:,}" for name, count in counts.items()))


def check_memory(shapes, lines):
    """Compare the bytes of the weights with the memory; the `lines` are printed if they do not fit.

    Raises: ValueError, one line."""
    weights = sum(_count(part) for part in shapes.values())
    needed, have = COPIES * FLOAT * weights / GB, memory.available() / GB
    if needed > have:
        print(*lines, sep="\n")
        raise ValueError(f"needs at least {needed:,.0f} GB of memory for {weights:,} weights, but "
                         f"there are {have:,.0f} GB: lower tokenizer.width or dynamics.width")


def _count(shapes):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
