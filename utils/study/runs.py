"""Executes a list of runs, one after the other, for the suite and the ablations.

Each run is the main command in its own process. Finished runs with identical settings are skipped;
interrupted ones resume. A second process of the same command takes the runs that the first has not
started.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from utils.core import cli
from utils.core import config as configuration
from utils.core.machine import machine
from utils.run import curves, files
from utils.run.checkpoint import Checkpoints
from utils.run.files import lock
from utils.run.logger import read_rows

ROOT = Path(__file__).resolve().parents[2]
MOST_SEEDS = 1000  # every run is planned before the first one starts
POINTS = 50  # maximum number in a stored learning curve


class Run(NamedTuple):
    """A planned run: its configuration, its folder, and its ablation, if any."""

    config: Any
    folder: Path
    ablation: str = ""

    @property
    def name(self):
        """Its name in messages."""
        run = self.config.run
        return f"{self.ablation}{', ' * bool(self.ablation)}{run.env}, seed {run.seed}"


def make(runs, done, save, path):
    """Execute each run unless it is done, then save(run, result) -> exit status

    done(run) is its entry in the results file `path`, or None. The status is 1 if a run failed, 130
    if stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    entries = [done(run) for run in runs]
    _say_done([entry for entry in entries if entry], len(runs), path)
    try:
        failed = [run for run, entry in zip(runs, entries)
                  if not (entry or _make_one(run, done, save))]
    except KeyboardInterrupt:
        print("stopped      to resume: the same command")
        return 128 + signal.SIGINT
    return 1 if failed else 0


def _say_done(entries, count, path):
    """Say once where the results of finished runs are from, and how to train anew."""
    if not entries:
        return
    days = sorted({entry["date"] for entry in entries if "date" in entry})
    when = f" of {' to '.join(dict.fromkeys([days[0], days[-1]]))}" if days else ""
    print(f"already done {len(entries)} of {count} runs: with these settings, {path} has results"
          f"{when}\nto train anew: the same command with two new folders, --results DIR --runs DIR",
          flush=True)


def _make_one(run, done, save):
    """Execute one run, unless another process works on it or has done it -> False if it failed"""
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = lock(folder)
    except ValueError:
        print(f"{run.name}: another process is working on it", flush=True)
        return True
    try:
        if done(run):
            print(f"{run.name}: another process has done it", flush=True)
            return True
        status = train(run)
        if status == 0:
            found = result(run.config, folder / "run")
            save(run, found)
            print(f"{run.name}: {found['score']:.4g} after {found['steps']:,} steps, "
                  f"{found['seconds']:.0f} s", flush=True)
        else:
            print(f"{run.name}: ended with status {status}, see {folder / 'log.txt'}", flush=True)
        return status == 0
    finally:
        os.close(descriptor)


def train(run):
    """Start a run, or resume it -> its exit status

    It has its own process session, so that it receives Ctrl-C only once, from here.

    Raises: KeyboardInterrupt, after the run has saved a checkpoint."""
    config, folder = run.config, run.folder
    same = _is_of(config, folder / "run")
    if same and _is_complete(folder / "run"):
        return 0  # only its result was not saved
    started = same and Checkpoints(folder / "run").can_resume()
    if not started and (folder / "run").exists():  # other settings, or no checkpoint
        shutil.rmtree(folder / "run")
    numbers = folder / "config.yaml"  # resolved: no preset remains to be applied
    numbers.write_text(configuration.dump(config), encoding="utf-8")
    new = ["--config", str(numbers), "--logdir", str(folder / "run")]
    resume = ["--resume", str(folder / "run"), "--env", config.run.env]  # it may have its own code
    command = [sys.executable, str(ROOT / "dreamer.py"),
               *(resume if started else new)]
    print(f"{run.name}: {'resumes' if started else 'starts'}, log in {folder / 'log.txt'}",
          flush=True)
    stopped = False
    with (open(folder / "log.txt", "ab") as log,
          subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as process):
        while process.poll() is None:
            try:
                process.wait()
            except KeyboardInterrupt:
                stopped = True
                process.send_signal(signal.SIGINT)
    if stopped:
        raise KeyboardInterrupt
    return process.returncode


def _is_of(config, folder):
    """Whether the run in a folder has these settings."""
    path = folder / "config.yaml"
    return path.exists() and path.read_text(encoding="utf-8") == configuration.dump(config)


def _is_complete(folder):
    """Whether the run in a folder is finished and scored."""
    path = folder / "metrics.jsonl"
    rows = read_rows(path) if path.exists() else []
    return bool(rows) and "charts/score_return" in rows[-1]


def result(config, folder):
    """The result of a finished run: score, learning curve, cost."""
    rows = read_rows(folder / "metrics.jsonl")
    curve = [[row["step"], round(row["charts/eval_return"], 4)] for row in rows
             if "charts/eval_return" in row]
    last, thin = rows[-1], -(-len(curve) // POINTS)
    updates = [row["charts/updates"] for row in rows if "charts/updates" in row][-1]
    return {
        "seed": config.run.seed, "mark": fingerprint(config),
        "score": last["charts/score_return"], "interval": last["charts/score_interval"],
        "last": curve[-1][1], "steps": last["step"], "updates": updates,
        "seconds": round(last["time/elapsed"]), "curve": curve[::-thin][::-1],
    } | machine()


def fingerprint(config):
    """A hash of all settings of a run except run.devices, which only divides the work."""
    lines = configuration.dump(config).splitlines(keepends=True)
    numbers = "".join(line for line in lines if not line.startswith("  devices:"))
    return hashlib.sha256(numbers.encode()).hexdigest()[:16]


def resolved(path, env, seed, presets=()):
    """The Config of a run, as the main command would resolve it.

    Raises: ConfigError."""
    overlaid = [word for preset in presets for word in ("--preset", preset)]
    flags = ["--config", str(path), "--env", env, "--seed", str(seed), *overlaid]
    return cli.parse(flags).config


def with_seed(found, result):
    """Results of several seeds with one more, replacing an older one of the same seed."""
    seeds = [seed for seed in found.get("seeds", []) if seed["seed"] != result["seed"]]
    seeds = sorted([*seeds, result], key=lambda seed: seed["seed"])
    mean, interval = curves.mean_interval([seed["score"] for seed in seeds])
    return found | {"score": float(mean), "interval": float(interval), "seeds": seeds}


def of_run(found, config):
    """The entry of a run with exactly these settings among the results of its seeds, or None."""
    mark = fingerprint(config)
    return next((seed for seed in found.get("seeds", []) if seed["mark"] == mark), None)


def read(path, levels=0):
    """Read the mapping in a JSON file of results, empty if there is no file.

    `levels` is the nesting depth of the entries with seeds, 0 to skip their check.

    Raises: ValueError if it is not JSON or not such a mapping."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a mapping of environments, found {found!r}")
    entries = [found] if levels else []
    for _ in range(levels):
        entries = [one for entry in entries
                   for one in (entry.values() if isinstance(entry, dict) else [None])]
    if not all(isinstance(one, dict) and isinstance(one.get("seeds"), list) for one in entries):
        raise ValueError(f"{path}: expected results of runs, each with its seeds")
    return found


def shown(path, levels):
    """Read results that must exist.

    Raises: ValueError."""
    if not path.exists():
        raise ValueError(f"{path}: no such file; run without --table to create it")
    return read(path, levels)


def update(path, change, draw):
    """Write change(results) to a JSON file, then draw(results), under a lock."""
    descriptor = lock(path.parent, wait=True)
    try:
        results = change(read(path))
        files.replace(path, (json.dumps(results, indent=1) + "\n").encode())
        draw(results)
    finally:
        os.close(descriptor)


def parser(program, description, names):
    """A parser with the flags of all lists of runs; `names`: results file, folder of the runs.

    Its parse_args raises ConfigError."""
    file, folder = names
    made = cli.Parser(f"python -m {program}", description=description, allow_abbrev=False)
    made.add_argument("--config", metavar="FILE", type=Path, default=cli.DEFAULT_CONFIG,
                      help="YAML file with every number (default: dreamer.yaml)")
    made.add_argument("--seeds", metavar="N", type=int, default=3,
                      help="seeds 0 to N - 1 of each run (default: 3)")
    made.add_argument("--results", metavar="DIR", type=Path, default=Path("docs"),
                      help=f"folder of {file}.json and {file}.png (default: docs)")
    made.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs") / folder,
                      help=f"folder of the runs (default: runs/{folder})")
    made.add_argument("--table", action="store_true", help="print the results as a table")
    return made


def parsed(parser, argv):
    """Parse a command line and check the number of seeds.

    Raises: ConfigError."""
    flags = parser.parse_args(argv)
    if not 1 <= flags.seeds <= MOST_SEEDS:
        parser.error(
            f"--seeds: expected a whole number from 1 to {MOST_SEEDS}, found {flags.seeds}")
    return flags
