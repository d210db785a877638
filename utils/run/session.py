"""The host's side of a run: its folder and files, display, stop and resume."""

import contextlib
import math
import os
import platform
import shutil
import time
from functools import partial
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from utils.core import backend, devices, xla
from utils.core.cli import (
    check_unchanged,
    is_of_program,
    one_line,
    reason,
    runs_own_code,
    warn,
)
from utils.core.config import differences, dump, rows
from utils.core.machine import code
from utils.core.replay import restore
from utils.core.settings import reseeded, trained_ratio
from utils.core.user_env import GuestError
from utils.hosts import parts
from utils.hosts.group import GROUP, Ended
from utils.hosts.output import redirect
from utils.hosts.watch import WATCH
from utils.run import commands, memory, sinks, weights
from utils.run.arrays import flatten, unflatten
from utils.run.checkpoint import Checkpoints, Saved
from utils.run.curves import PICTURE, draw_run, draw_seeds
from utils.run.diary import Diary, episodes, evaluation_metrics
from utils.run.display import Board, Display, Progress
from utils.run.files import check_open, lock, missing, refuse_links, replace, unmake
from utils.run.logger import FILES, METRICS, SCORES, Logger, make_folder
from utils.run.signals import Stop

PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")  # on which a run's numbers depend
OWN = ("actor", "key")  # the part of a checkpoint that each process saves for itself


class Mismatch(ValueError):
    """A checkpoint whose arrays do not fit this run."""


# Errors that are not bugs of this program: of the machine, of the user's environment, of a file;
# so are those of a compiled program.
ENDS = (OSError, FloatingPointError, GuestError, Mismatch, Ended)


def check_saved(command):
    """Check that a run to resume has the configuration of its checkpoints, and as many processes.

    Raises: ValueError, one line."""
    for record in Checkpoints(command.run).records() if command.run else ():
        check_unchanged(command.config, record["config"], command.run)
        check_hosts(command.run, record)


class Folder:
    """A run on disk, of whatever program: a locked folder with configuration, logs, checkpoints.

    Of several processes that train one agent, process 0 has the folder RUN. Process I has a part
    in RUN/host-I: the replay and the environments that are its own, and the same logs.

    `saved` is the checkpoint to resume from, until it is restored; None for a new run. `logs` are
    the names of the Logger's files.

    Raises: ValueError, one line, if the folder cannot be used."""

    def __init__(self, folder, config, logs):
        self.folder, self.config, self.saved, self._is_open = Path(folder), config, None, False
        refuse_links(folder, FILES)
        self._lock = lock(folder)
        self.checkpoints, self.logger = Checkpoints(folder), Logger(self.folder, logs)

    @property
    def home(self):
        """The folder RUN of all processes."""
        return self.folder if GROUP.is_first else self.folder.parent

    def load_checkpoint(self):
        """Load the last checkpoint of the folder and check that the run can resume from it."""
        warned = partial(_warn, self.config)
        self.saved = self._load_common(warned) if GROUP.shares else self.checkpoints.load(warned)
        record = self.saved.record
        check_hosts(self.home, record)
        self.logger.check(record["logs"])
        self.check_unfinished(record)
        old, new = record["versions"], _versions()
        differing = [f"{name} {old.get(name)}" for name in new if old.get(name) != new[name]]
        if differing:
            _warn(self.config, f"the run was saved with {', '.join(differing)}: results may not be "
                  "identical to the last digit")

    def _load_common(self, warned):
        """The newest checkpoint of which all processes have their part.

        Without the replay if a process has lost its part of it: then all begin with an empty one.

        Raises: ValueError, one line, if there is none."""
        saved = self.checkpoints.load(warned)
        step = min(GROUP.gather("steps", saved.record["step"]))
        if saved.record["step"] > step:
            saved = self.checkpoints.load(warned, step)
        if not all(GROUP.gather("rows", saved.rows is not None)):
            saved = Saved(saved.record, saved.arrays, None)
        return saved

    def open_logs(self):
        """Open the logs and write config.yaml."""
        if GROUP.is_first:
            self.logger.sinks = sinks.open_sinks(
                self.config, self.folder, self.saved.record["step"] if self.saved else 0)
            self.write_config(self.folder)
        self.logger.__enter__()
        self._is_open = True

    def write_config(self, folder):
        """Write config.yaml, with which the folder is that of a run, unless it is there already."""
        path, text = folder / "config.yaml", dump(self.config).encode()
        if not (path.exists() and path.read_bytes() == text):
            replace(path, text)

    def close(self):
        """Close the logs and unlock the folder."""
        if self._is_open:
            self.logger.__exit__()
        os.close(self._lock)

    def fitted(self, fill, *arguments):
        """fill(*arguments), which puts arrays of the checkpoint into others.

        Raises: Mismatch naming the first array that does not fit."""
        try:
            return fill(*arguments)
        except ValueError as error:
            raise Mismatch(f"{self.folder}: {error}") from None

    def go_on(self):
        """Forget all that was written after the checkpoint, and its arrays: they are restored."""
        record, self.saved = self.saved.record, None  # its arrays may be large
        self.logger.cut(record["logs"])  # later rows are written again
        self.checkpoints.forget_after(record["step"])

    def write(self, step, arrays, notes, replay=None):
        """Write a checkpoint of named arrays, the host's notes and, if it is saved, the replay.

        Raises: OSError."""
        record = {"step": step, "config": dump(self.config), "versions": _versions(),
                  "diary": notes, "logs": self.logger.sizes(), "hosts": _hosts()}
        self.checkpoints.save(record, arrays, replay)

    def resume_hint(self, *flags):
        """A line for the user: the last checkpoint and the command that resumes from it."""
        step = self.checkpoints.last_step()
        if step is None:
            return "saved        nothing yet"
        flags += GROUP.flags if GROUP.shares else ()
        command = commands.train(self.config.PROGRAM, "--resume", str(self.home), *flags)
        return f"saved        step {step:,}; to resume: {command}"


class Run(Folder):
    """One agent's run: its folder and best weights so far."""

    def __init__(self, folder, config, env, began):
        super().__init__(folder, config, (METRICS, SCORES))
        self.env, self.began, self.best, self.diary = env, began, None, None

    def check_unfinished(self, record):
        """Check that the run has something left to do. Raises: ValueError, one line."""
        is_complete = self.logger.is_complete() and (self.folder / PICTURE).is_file()
        is_changed = "run.steps" in differences(self.config, record["config"])
        if record["step"] >= self.config.run.steps and (is_complete or is_changed):
            raise ValueError(f"{self.home}: already finished {record['step']:,} steps; "
                             "continue it with a larger --steps")

    def open(self, display):
        """Open the logs; progress goes to `display`."""
        self.open_logs()
        self.diary = Diary(
            self.logger, display, self.config.run.steps, self.env.solved, self.began)
        if self.saved:
            self.diary.recall(self.saved.record["diary"])

    def restore(self, state):
        """Fill a new RunnerState from the checkpoint; the replay stays empty if none was saved.

        Raises: Mismatch naming the first array that does not fit."""
        if not self.saved:
            return state
        state = state._replace(actor=parts.own_envs(self.config, state.actor))
        tree, replay, saved = _checkpointed(state, None), state.replay, self.saved
        if self.diary.best is not None:
            tree["best"] = state.agent.params
        restored = self.fitted(unflatten, _of_process(tree), saved.arrays)
        if saved.rows is None:  # each process fills its replay with random draws of its own
            restored["key"] = parts.own_key(restored["key"])
        else:
            replay = self.fitted(restore, replay, saved.rows, saved.record["written"])
        del saved
        self.go_on()
        common = {name: leaf for name, leaf in (tree | restored).items() if name not in OWN}
        restored |= parts.from_first(self.config, common)
        self.best = restored.pop("best", None)
        return state._replace(replay=replay, **restored)

    def save(self, state):
        """Write a checkpoint of a RunnerState of host arrays, and the best weights.

        Raises: FloatingPointError for weights that are not finite; OSError."""
        arrays = flatten(_of_process(_checkpointed(state, self.best)))
        check_finite(arrays, ("agent/", "best/"), self.diary.steps)
        if self.best is not None and GROUP.is_first:
            weights.save(self.folder, self.best, self.config)
        self.write(self.diary.steps, arrays, self.diary.remember(),
                   state.replay if self.config.run.save_replay else None)

    def end(self, score):
        """Write the results of a finished run: the best weights, their score, the plot."""
        if GROUP.is_first:
            weights.save(self.folder, self.best, self.config)
        self.diary.end(score)
        if GROUP.is_first:
            run, learning = self.config.run, self.config.learning
            draw_run(self.folder, f"{run.env}, seed {run.seed}", learning, self.env.solved)

    def own_env(self):
        """The flag without which commands do not import the environment's own code."""
        return ["--env", self.config.run.env] if runs_own_code(self.config.run.env) else []


class Session:
    """The host's interface for the training loop: one Run, or one per seed trained in parallel.

    As a context it shows progress and listens for signals. Errors that are not bugs (a full disk, a
    non-finite loss) end the block with one line about the error and one per run on how to resume,
    and with `status` 1, or 2 for a checkpoint that does not fit. A signal gives 128 + its number.

    With several seeds, every tree of arrays passed in or out has a leading axis [seeds].

    Raises: ValueError, one line, if the folder cannot be used."""

    def __init__(self, command, env, shapes, began):
        if command.seeds > 1 and env.on_host:
            raise ValueError(f"--seeds: trains in one compiled program, and {env.name} is stepped "
                             "by the host: start one run for each --seed")
        _check_group(command, env)
        sinks.check(command.config.log)
        seeds = GROUP.share(command.seeds)
        memory.check(command.config, env, shapes, len(seeds))
        check_open(len(seeds))
        backend.set_up(command.config)
        config, self.status, self._shapes, self._env = command.config, 0, shapes, env
        self.several, self._chunks, self._signal = command.seeds > 1, 0, None
        self._seeds = range(config.run.seed, config.run.seed + command.seeds)
        began, run, self.runs = began or time.perf_counter(), config.run, []
        with contextlib.ExitStack() as undo:
            self.folder = open_folder(undo, command, run.env)
            undo.callback(self._close)
            for n in seeds:
                one, folder = reseeded(config, run.seed + n), GROUP.folder_in(self.folder)
                if command.seeds > 1:
                    folder = make_folder(folder / f"seed-{one.run.seed}", run.env, run.seed)
                elif not (GROUP.is_first or command.run):
                    make_folder(folder, run.env, run.seed)
                self.runs.append(Run(folder, one, env, began))
            if command.run:
                self.runs[0].load_checkpoint()
            self._open()
            GROUP.gather("opened", None)
            if not self.several:
                self.runs[0].write_config(self.folder)  # again where it is a disk of its own
            undo.pop_all()  # success: keep everything open
        GROUP.part()

    def _open(self):
        run, saved = self.runs[0].config.run, self.runs[0].saved
        done = saved.record["diary"] if saved else {"steps": 0, "updates": 0}
        start = Progress(done["steps"], run.steps, done["updates"])
        self._display = Display(self.folder.resolve().name, start)
        self._stop = Stop(self._display.say, self._display.release)
        names = [f"seed {one.config.run.seed}" for one in self.runs]
        board = Board(self._display, names).members if self.several else [self._display]
        for one, display in zip(self.runs, board):
            one.open(display)
        WATCH.folder, WATCH.release, WATCH.hints = (
            self.folder, self._display.release, self._resume_hints)

    def _close(self):
        for run in self.runs:
            run.close()

    def __enter__(self):
        self._display.__enter__()
        self._stop.__enter__()
        for line in describe(self.runs[0].config, self._env, self._shapes):
            self._display.say(line)
        if self.several:
            groups = devices.groups(self.runs[0].config, len(self.runs))
            apart = f", on {groups} groups of devices" if groups > 1 else ""
            self._display.say(f"seeds        {len(self.runs)} agents in parallel{apart}, shown as "
                              "means")
        if self.runs[0].saved:
            self._display.say(f"resuming     {self.folder} from step {self.steps:,}")
            if self.runs[0].saved.rows is None:
                self._display.say("replay       was not saved: it starts empty and is prefilled")
            if self._env.on_host:
                self._display.say("episodes     begin anew: worlds of the host are not saved, and "
                                  "the rows before are the last of theirs")
        return self

    def __exit__(self, kind, error, _):
        self._stop.__exit__()
        self._display.__exit__()
        self._close()
        xla.forget()
        if not is_end(error):
            return False
        cause = is_of_program(error) and WATCH.cause()
        hints = self._resume_hints()
        self.status = say_end(error, self.runs[0].config, self.folder, hints, cause)
        return True

    @property
    def steps(self):
        """Environment steps of each agent so far, up to the last logged chunk."""
        return self.runs[0].diary.steps

    def init_key(self):
        """The initial random key of each agent."""
        return self._keys()[0]

    def eval_key(self, steps=None):
        """The random key of the evaluation after `steps` more steps, or of the final score."""
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
        """Whether steps remain, or no weights have been evaluated yet."""
        return self.steps < self.runs[0].config.run.steps or any(
            run.best is None for run in self.runs)

    def whole(self, shapes):
        """The shapes of this process's RunnerState as those of all processes together."""
        return parts.shapes(self.runs[0].config, shapes)

    def restore(self, state):
        """Fill a fresh RunnerState from the checkpoint, if the run is resumed.

        Raises: Mismatch naming the first array that does not fit."""
        return state if self.several else self.runs[0].restore(state)

    def due(self, steps):
        """Whether the run evaluates, saves and continues after a chunk of `steps` more steps."""
        run, steps = self.runs[0].config.run, self.steps + steps
        over, self._chunks = steps >= run.steps, self._chunks + 1
        self._signal = GROUP.stops(self._chunks, self._stop.received)
        continues = not over and not self._signal
        return (over or steps // run.eval_every > self.steps // run.eval_every,
                not continues or steps // run.save_every > self.steps // run.save_every,
                continues)

    def prefilled(self, steps, stats):
        """Record the `steps` environment steps before the first update and their episodes."""
        self._episodes(steps, parts.of_all(self.runs[0].config, stats))
        for run in self.runs:
            run.diary.show()

    def log(self, chunk, evaluation):
        """Log a Chunk of training and the evaluation of its weights (None if not due).

        `evaluation` holds returns and lengths of episodes; the best weights are kept.

        Raises: FloatingPointError naming the first non-finite quantity; GuestError for a wrong
        number of the user's environment."""
        if line := self._env.fault(chunk.fault):
            raise GuestError(f"{line}; found before step {self.steps + chunk.steps:,}")
        scores = evaluation_metrics(*evaluation) if evaluation else {}
        metrics = jax.device_get(chunk.metrics)
        for run, values in self._split(metrics):
            run.diary.check(chunk.steps, values)
        self._episodes(chunk.steps, chunk.stats)
        for run, (values, evaluated) in self._split((metrics | scores, chunk.params)):
            if run.diary.chunk(chunk.updates, values):
                run.best = evaluated

    def best(self):
        """The weights of the best evaluation."""
        best = [run.best for run in self.runs]
        return jax.tree.map(lambda *parts: np.stack(parts), *best) if self.several else best[0]

    def save(self, state):
        """Write checkpoints of a RunnerState of host arrays."""
        for run, part in self._split(state):
            run.save(part)

    def stopped(self):
        """End a run that a signal stopped: say how to resume it."""
        self.status = 128 + self._signal
        self._display.__exit__()
        for line in self._resume_hints():
            self._display.say(line)

    def end(self, evaluation):
        """Finish the run with its score: returns and lengths of episodes of the best weights."""
        for run, part in self._split(evaluation_metrics(*evaluation, name="score")):
            run.end(part)
        self._display.__exit__()
        if self.several:
            self._draw_seeds()
        for line in self._summary():
            self._display.say(line)

    def _draw_seeds(self):
        """Draw the curve of all seeds: the process that ends last does, one at a time."""
        config, held = self.runs[0].config, lock(self.folder, wait=True)
        if folders := seed_folders(self.folder, self._seeds):
            draw_seeds(self.folder, config.run.env, folders, config.learning, self._env.solved)
        os.close(held)

    def _summary(self):
        """The last lines of a run: scores, files, and the commands that come next."""
        run, diary = self.runs[0].config.run, self.runs[0].diary
        done = f"{self.steps:,} steps in {diary.seconds():.0f} s"
        scores, next_ones = [one.diary.score for one in self.runs], ["watch", "report"]
        if not self.runs[0].config.learning.trains_policy:
            yield f"trained      the world model alone, without a policy; {done}"
            next_ones = ["report"]
        elif not self.several:
            yield f"score        {diary.summary(run.eval_episodes)}; {done}"
        else:
            for one in self.runs:
                yield (f"score        seed {one.config.run.seed}: "
                       f"{one.diary.summary(run.eval_episodes)}; {done}")
            yield (f"mean         {np.mean(scores):.1f} over {len(scores)} seeds, from "
                   f"{min(scores):.1f} to {max(scores):.1f}")
        yield f"files        {self.folder}/ ({self._files()})"
        best = self.runs[int(np.argmax(scores))]
        for name in next_ones:
            yield f"next         {commands.tool(name, str(best.folder), *best.own_env())}"

    def _files(self):
        """The names of the files in the folder of the run or of the seeds."""
        if self.several:
            of_all = f"{PICTURE} of all, " if (self.folder / PICTURE).exists() else ""
            return f"{of_all}seed-{self.runs[0].config.run.seed} ... with a run each"
        return f"{PICTURE}, metrics.jsonl, scores.jsonl, config.yaml, weights.npz"

    def _episodes(self, steps, stats):
        for run, part in self._split(jax.device_get(stats)):
            run.diary.episodes(steps, episodes(part, run.diary.steps))

    def _split(self, tree):
        """[(run, its part of the tree)] of all runs."""
        if not self.several:
            return [(self.runs[0], tree)]
        return [(run, jax.tree.map(lambda leaf, n=n: leaf[n], tree))
                for n, run in enumerate(self.runs)]

    def _resume_hints(self):
        return [run.resume_hint(*run.own_env()) for run in self.runs]


def open_folder(undo, command, name):
    """The folder of the run to resume, or a new one, the same for all processes: -> Path

    `undo` (an ExitStack) deletes what is new. Raises: ValueError, one line."""
    new = [] if command.run else missing(command.logdir or "runs")
    undo.callback(unmake, new)  # what fails leaves nothing
    folder = command.run
    if not folder and GROUP.index == 0:
        folder = str(make_folder(command.logdir, name, command.config.run.seed))
    folder = Path(folder if command.run else GROUP.gather("folder", folder)[0])
    new += [] if command.run or command.logdir else [folder]
    if new:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
    if GROUP.index:
        undo.callback(redirect(folder / f"host-{GROUP.index}"))
    return folder


def is_end(error):
    """Whether an error is no bug of this program, so that one line says all of it."""
    return isinstance(error, ENDS) or is_of_program(error)


def say_end(error, config, folder, hints, cause=None):
    """Print such an error, or the `cause` of it, and how to go on: -> exit status"""
    _warn(config, cause or reason(error, folder))
    for line in hints:
        warn(line)
    return 2 if isinstance(error, Mismatch) else 1


def check_finite(arrays, beginnings, step):
    """Check the arrays whose names begin so. Raises: FloatingPointError naming the first one."""
    for name, array in arrays.items():
        if name.startswith(beginnings) and not np.isfinite(array).all():
            raise FloatingPointError(f"{name} is not finite at step {step:,}")


def seed_folders(folder, seeds):
    """The runs of these seeds if all have ended, else none: the last process draws them all."""
    folders = [folder / f"seed-{seed}" for seed in seeds]
    return folders if all(Logger(one).is_complete() for one in folders) else []


def check_hosts(folder, record):
    """Check that a checkpoint was saved by as many processes. Raises: ValueError, one line."""
    saved = record.get("hosts", 1)
    if saved != _hosts():
        by = "1 process" if saved == 1 else f"{saved} processes"
        raise ValueError(f"{folder}: was saved by {by}, found {_hosts()}: it can only be resumed "
                         "on as many (--hosts)")


def _hosts():
    """The number of processes that train one agent."""
    return GROUP.count if GROUP.shares else 1


def _of_process(tree):
    """What this process saves of a tree of `_checkpointed`: process 0 all, others their own."""
    return tree if GROUP.is_first else {name: tree[name] for name in OWN}


def _checkpointed(state, best):
    """Everything in a checkpoint except the replay, as one tree."""
    tree = {"agent": state.agent, "actor": state.actor, "key": state.key}
    return tree if best is None else tree | {"best": best}


def _versions():
    return {name: metadata.version(name) for name in PACKAGES}


def _warn(config, line):
    warn(one_line(f"{config.PROGRAM}: {line}"))


def _check_group(command, env):
    """Check that the processes of a run can train it, with the same of everything.

    Raises: ValueError, one line."""
    if command.hosts and not GROUP.flags:
        raise ValueError("--hosts: works only on the command line of dreamer.py")
    if GROUP.shares and env.on_host:
        raise ValueError(f"--hosts: divides what is compiled, and {env.name} is stepped by the "
                         "host: start one run for each --seed")
    if GROUP.shares:
        devices.count(command.config)
    elif command.seeds < GROUP.count:
        raise ValueError(f"--seeds: expected at least one for each of {GROUP.count} processes, "
                         f"found {command.seeds}")
    if GROUP.count > 1:
        GROUP.agree(_facts(command))


def _facts(command):
    """What must be the same in all processes of a run, by name."""
    numbers = {f"{section}.{key}": str(value)
               for section, key, _, value in rows(command.config)
               if section != "log" and key != "compile_cache"}
    return numbers | _versions() | {
        "--seeds": command.seeds, "--resume": bool(command.run),
        "python": platform.python_version(), "code": code(), "platform": jax.default_backend(),
        "device": jax.local_devices()[0].device_kind}


def describe(config, env, shapes):
    """Lines that describe the run: device, environment, number of parameters by part."""
    parts = parameter_counts(shapes)
    device = jax.devices()[0]
    counts = " · ".join(f"{name} {count:,}" for name, count in parts.items())
    return [
        f"device       {devices.count(config)} x {device.platform} ({device.device_kind})",
        *([f"hosts        {GROUP.count} processes, this is {GROUP.index}; the others write to "
           "host-1/output.txt ... in the folder of the run"] if GROUP.shares else []),
        f"environment  {env.describe()}",
        f"parameters   {sum(parts.values()):,}: {counts}",
        *(f"note         {line}" for line in env.notes(config.run.eval_limit)),
        *_rounded_ratio(config),
        "compiling    (the chunk of training takes longest) ...",
    ]


def _rounded_ratio(config):
    """A line if a round of the wanted train ratio would be longer than a chunk."""
    wanted, found = config.run.train_ratio, trained_ratio(config)
    if math.isclose(wanted, found, rel_tol=1e-6):
        return []
    return [f"note         run.train_ratio {wanted:g} is rounded to {found:.6g}: a round of steps "
            f"and updates is at most run.chunk = {config.run.chunk} steps"]


def parameter_counts(shapes):
    """Number of parameters by part, from shapes; the slow critic, a copy, is not counted."""
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
