"""A run as the host sees it: its folder, what is written there, and how it stops and goes on."""

import contextlib
import os
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from utils.core import backend
from utils.core.cli import check_unchanged, reason
from utils.core.config import differences, dump
from utils.core.devices import sharers
from utils.core.replay import restore
from utils.core.settings import reseeded
from utils.run import sinks
from utils.run.arrays import flatten, save, unflatten
from utils.run.checkpoint import Checkpoints
from utils.run.curves import PICTURE, draw_run, draw_seeds
from utils.run.diary import Diary, episodes, evaluation
from utils.run.display import Board, Display, Progress
from utils.run.files import lock, replace
from utils.run.logger import Logger, make_folder
from utils.run.signals import Stop

PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")  # that a run's numbers depend on


class Mismatch(ValueError):
    """A checkpoint that does not hold the arrays of this run."""


class Run:
    """One agent's run: its folder, its logs, its checkpoints, the best weights so far.

    `saved` is the checkpoint that it goes on from, until it is restored; None for a new run.

    Raises: ValueError, one line, where the folder cannot be used."""

    def __init__(self, folder, config, env, began):
        self.folder, self.config, self.env, self.began = Path(folder), config, env, began
        self.best = self.saved = self.diary = None
        self._lock = lock(folder)
        self.checkpoints, self._logger = Checkpoints(folder), Logger(self.folder)

    def take_up(self):
        """Read the last checkpoint of the folder, to go on from it."""
        self.saved = self.checkpoints.load(_warn)
        record, steps = self.saved.record, self.config.run.steps
        check_unchanged(self.config, record["config"], self.folder)
        is_over = self._logger.is_whole() and (self.folder / PICTURE).is_file()
        is_other = "run.steps" in differences(self.config, record["config"])
        if record["step"] >= steps and (is_over or is_other):
            raise ValueError(f"{self.folder}: has made {record['step']:,} steps already; "
                             "a larger --steps goes on")
        then, now = record["versions"], _versions()
        differing = [f"{name} {then.get(name)}" for name in now if then.get(name) != now[name]]
        if differing:
            _warn(f"the run was saved with {', '.join(differing)}: the same numbers to the last "
                  "digit cannot be promised")

    def open(self, display):
        """Open the logs and write config.yaml; what happens is shown on `display`."""
        run, record = self.config.run, self.saved and self.saved.record
        steps = record["step"] if record else 0
        self._logger.sinks = sinks.open_sinks(self.config, self.folder, steps)
        replace(self.folder / "config.yaml", dump(self.config).encode())
        self._logger.__enter__()
        self.diary = Diary(self._logger, display, run.steps, self.env.solved, self.began)
        if record:
            self.diary.recall(record["diary"])

    def close(self):
        """Close the logs, and let the folder go."""
        if self.diary:
            self._logger.__exit__()
        os.close(self._lock)

    def restore(self, loop):
        """A fresh Loop with all that the checkpoint holds; an empty replay, if it was not saved.

        Raises: Mismatch naming the first array that is not what the run would have."""
        saved, self.saved = self.saved, None  # its arrays may be large
        if not saved:
            return loop
        tree, replay = _state(loop, None), loop.replay
        if self.diary.best is not None:
            tree["best"] = loop.agent.params
        try:
            state = unflatten(tree, saved.arrays)
            if saved.rows is not None:
                replay = restore(replay, saved.rows, saved.record["written"])
            self._logger.cut(saved.record["logs"])  # from here on, they are written anew
        except ValueError as error:
            raise Mismatch(f"{self.folder}: {error}") from None
        self.checkpoints.forget_after(saved.record["step"])
        self.best = state.pop("best", None)
        return loop._replace(replay=replay, **state)

    def save(self, loop):
        """Write a checkpoint of a Loop of host arrays and the weights of the best evaluation.

        Raises: FloatingPointError for weights that are not finite; OSError."""
        arrays = flatten(_state(loop, self.best))
        for name, array in arrays.items():
            if name.startswith(("agent/", "best/")) and not np.isfinite(array).all():
                raise FloatingPointError(f"{name} is not finite at step {self.diary.steps:,}")
        if self.best is not None:
            save(self.folder / "weights.npz", flatten(self.best))
        record = {"step": self.diary.steps, "config": dump(self.config), "versions": _versions(),
                  "diary": self.diary.remember(), "logs": self._logger.sizes()}
        self.checkpoints.save(record, arrays, loop.replay if self.config.run.save_replay else None)

    def end(self, score):
        """Write what a whole run leaves: the best weights, their score, a picture."""
        save(self.folder / "weights.npz", flatten(self.best))
        self.diary.end(score)
        run = self.config.run
        draw_run(self.folder, f"{run.env}, seed {run.seed}", self.env.solved)

    def how_to_go_on(self):
        """A line for people: what is saved, and the command that goes on from it."""
        step = self.checkpoints.last_step()
        if step is None:
            return "saved        nothing yet"
        command = shlex.join(["python", "dreamer.py", "--resume", str(self.folder)])
        return f"saved        step {step:,}; to go on: {command}"


class Session:
    """What the training loop sees of the host: one Run, or those of several seeds side by side.

    Between `with` and the end of the block it shows progress and listens for signals. Errors that
    are no mistake in the code (the disk is full, a loss is not finite) end the block with a line
    that says what is wrong and one for each run on how to go on, and `status` 1, or 2 for a
    checkpoint that does not fit; signals that stop it leave 128 + signal.

    With several seeds, every tree of arrays that comes and goes has an axis [seeds] in front.

    Raises: ValueError, one line, where the folder cannot be used."""

    def __init__(self, command, env, shapes, began):
        sinks.check(command.config.log)
        backend.set_up(command.config)
        config, self.status, self._shapes, self._env = command.config, 0, shapes, env
        began, run, self.runs = began or time.perf_counter(), config.run, []
        self.folder = Path(command.run or make_folder(command.logdir, run.env, run.seed))
        with contextlib.ExitStack() as undo:
            undo.callback(self._close)
            for n in range(command.seeds):
                one, folder = reseeded(config, run.seed + n), self.folder
                if command.seeds > 1:
                    folder = make_folder(folder / f"seed-{one.run.seed}", run.env, run.seed)
                self.runs.append(Run(folder, one, env, began))
            if command.run:
                self.runs[0].take_up()
            self._open()
            undo.pop_all()  # all went well

    def _open(self):
        run, saved = self.runs[0].config.run, self.runs[0].saved
        start = Progress(saved.record["step"] if saved else 0, run.steps, 0)
        self._display = Display(self.folder.resolve().name, start)
        self._stop = Stop(self._display.say, self._display.release)
        names = [f"seed {one.config.run.seed}" for one in self.runs]
        board = Board(self._display, names).members if self.several else [self._display]
        for one, display in zip(self.runs, board):
            one.open(display)

    def _close(self):
        for run in self.runs:
            run.close()

    def __enter__(self):
        self._display.__enter__()
        self._stop.__enter__()
        for line in describe(self.runs[0].config, self._env, self._shapes):
            self._display.say(line)
        if self.several:
            self._display.say(f"seeds        {len(self.runs)} agents side by side, shown as means")
        if self.runs[0].saved:
            self._display.say(f"resuming     {self.folder} from step {self.steps:,}")
            if self.runs[0].saved.rows is None:
                self._display.say("replay       was not saved: it starts empty and is filled first")
        return self

    def __exit__(self, kind, error, _):
        self._stop.__exit__()
        self._display.__exit__()
        self._close()
        if not isinstance(error, (OSError, FloatingPointError, Mismatch)):
            return False
        print(f"dreamer.py: {reason(error, self.folder)}", *self._how_to_go_on(), sep="\n",
              file=sys.stderr)
        self.status = 2 if kind is Mismatch else 1
        return True

    @property
    def several(self):
        """Whether several agents learn side by side."""
        return len(self.runs) > 1

    @property
    def steps(self):
        """Environment steps made so far by each agent, up to the last chunk written down."""
        return self.runs[0].diary.steps

    def init_key(self):
        """The random key with which each agent begins."""
        return self._keys()[0]

    def eval_key(self, steps=None):
        """The random key of the evaluation after `steps` more steps, or of the best weights'."""
        key = self._keys()[1]
        if steps is None:
            return key
        fold = jax.vmap(jax.random.fold_in, (0, None)) if self.several else jax.random.fold_in
        return fold(key, self.steps + steps)

    def _keys(self):
        seeds = [jax.random.split(jax.random.key(run.config.run.seed)) for run in self.runs]
        return jnp.stack(seeds, axis=1) if self.several else seeds[0]

    @property
    def unfinished(self):
        """Whether steps are left to make, or no weights were evaluated yet."""
        return self.steps < self.runs[0].config.run.steps or any(
            run.best is None for run in self.runs)

    def restore(self, loop):
        """A fresh Loop with all that a checkpoint holds, if the run is resumed.

        Raises: Mismatch naming the first array that is not what the run would have."""
        return loop if self.several else self.runs[0].restore(loop)

    def due(self, steps):
        """Whether after a chunk of `steps` more steps the run evaluates, saves, and goes on."""
        run, steps = self.runs[0].config.run, self.steps + steps
        over = steps >= run.steps
        going_on = not over and not self._stop.asked
        return (over or steps // run.eval_every > self.steps // run.eval_every,
                not going_on or steps // run.save_every > self.steps // run.save_every,
                going_on)

    def filled(self, steps, finished):
        """`steps` environment steps were made before the first update, and these episodes ended."""
        self._episodes(steps, finished)
        for run in self.runs:
            run.diary.show()

    def record(self, steps, updates, finished, metrics, params, found):
        """A chunk of training was made, in which these episodes ended, with metrics per update.

        `found` are returns and lengths of an evaluation of the weights `params`, or None for both;
        the best are kept.

        Raises: FloatingPointError naming the first quantity that was not finite."""
        scores, metrics = evaluation(*found) if found else {}, jax.device_get(metrics)
        for run, values in self._apart(metrics):
            run.diary.check(steps, values)
        self._episodes(steps, finished)
        for run, (values, evaluated) in self._apart((metrics | scores, params)):
            if run.diary.chunk(updates, values):
                run.best = evaluated

    def best(self):
        """The weights of the best evaluation."""
        best = [run.best for run in self.runs]
        return jax.tree.map(lambda *parts: np.stack(parts), *best) if self.several else best[0]

    def save(self, loop):
        """Write checkpoints of a Loop of host arrays."""
        for run, part in self._apart(loop):
            run.save(part)

    def stopped(self):
        """A signal ended the run before its time: say how it goes on."""
        self.status = 128 + self._stop.asked
        self._display.__exit__()
        for line in self._how_to_go_on():
            self._display.say(line)

    def end(self, found):
        """The run is over, and these are returns and lengths of the best weights' last episodes."""
        for run, part in self._apart(evaluation(*found, name="score")):
            run.end(part)
        self._display.__exit__()
        config = self.runs[0].config
        if self.several:
            draw_seeds(self.folder, config.run.env, [run.folder for run in self.runs],
                       self._env.solved)
        for run in self.runs:
            self._display.say(run.diary.summary(config.run.eval_episodes, run.folder))

    def _episodes(self, steps, finished):
        for run, part in self._apart(jax.device_get(finished)):
            run.diary.episodes(steps, episodes(part, run.diary.steps))

    def _apart(self, tree):
        """(run, its part of the tree) for each run."""
        if not self.several:
            return [(self.runs[0], tree)]
        return [(run, jax.tree.map(lambda leaf, n=n: leaf[n], tree))
                for n, run in enumerate(self.runs)]

    def _how_to_go_on(self):
        return [run.how_to_go_on() for run in self.runs]


def _state(loop, best):
    """What a checkpoint holds beside the replay, as one tree."""
    state = {"agent": loop.agent, "player": loop.player, "key": loop.key}
    return state if best is None else state | {"best": best}


def _versions():
    return {name: metadata.version(name) for name in PACKAGES}


def _warn(line):
    print(f"dreamer.py: {line}", file=sys.stderr)


def describe(config, env, shapes):
    """What is about to run, in lines for people: device, environment, parameters by part."""
    parts = parameter_counts(shapes)
    device = jax.devices()[0]
    counts = " · ".join(f"{name} {count:,}" for name, count in parts.items())
    return [
        f"device       {sharers(config)} x {device.platform} ({device.device_kind})",
        f"environment  {env.describe()}",
        f"parameters   {sum(parts.values()):,}: {counts}",
        "compiling    (the chunk of training takes longest) ...",
    ]


def parameter_counts(shapes):
    """Number of weights by part, from shapes alone; the slow critic, a copy, is not counted."""
    world = shapes["world"]
    parts = {
        "encoder": world["encoder"],
        "dynamics": [world[name] for name in ("sequence", "prior", "posterior")],
        "decoder": world["decoder"],
        "reward": world["reward"],
        "continue": world["continue_"],
        "actor": shapes["actor"],
        "critic": shapes["critic"],
    }
    return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in parts.items()}
