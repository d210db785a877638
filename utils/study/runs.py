"""Makes a list of runs, one after the other, each once: what the suite and the ablations share.

Each run is the main command in a process of its own. A run that the results hold, made with the
same numbers, is not made again; one that was interrupted goes on. Started twice, on two cores say,
the second takes the runs that the first has not begun.
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
from utils.run.files import lock

ROOT = Path(__file__).resolve().parents[2]
POINTS = 50  # of a stored learning curve, at most


class Run(NamedTuple):
    """A run to be made: its numbers, its folder, and what was switched off in it, if anything."""

    config: Any
    folder: Path
    ablation: str = ""

    @property
    def name(self):
        """What it is called."""
        run = self.config.run
        return f"{self.ablation}{', ' * bool(self.ablation)}{run.env}, seed {run.seed}"


def make(runs, known, keep):
    """Make each run, unless known(run); then keep(run, result) -> exit status

    It is 1 where a run failed, 130 if stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = [run for run in runs if not _done(run, known, keep)]
    except KeyboardInterrupt:
        print("stopped      the same command goes on")
        return 128 + signal.SIGINT
    return 1 if failed else 0


def _done(run, known, keep):
    """Make one run, unless it is there or another process is at it -> whether it did not fail"""
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = lock(folder)
    except ValueError:
        print(f"{run.name}: another process is at it", flush=True)
        return True
    try:
        if known(run):
            print(f"{run.name}: done before", flush=True)
            return True
        status = train(run)
        if status == 0:
            found = result(run.config, folder / "run")
            keep(run, found)
            print(f"{run.name}: {found['score']:.4g} after {found['steps']:,} steps, "
                  f"{found['seconds']:.0f} s", flush=True)
        else:
            print(f"{run.name}: ended with status {status}, see {folder / 'log.txt'}", flush=True)
        return status == 0
    finally:
        os.close(held)


def train(run):
    """Make a run, or go on with it -> its exit status

    It has a session of its own, so that Ctrl-C reaches it once, from here.

    Raises: KeyboardInterrupt, when the run has saved what it had."""
    config, folder = run.config, run.folder
    started = _is_of(config, folder / "run") and any((folder / "run/checkpoints").glob("*.json"))
    if started and _is_whole(folder / "run"):
        return 0  # and only its result was not kept
    if not started and (folder / "run").exists():  # other numbers, or nothing to go on from
        shutil.rmtree(folder / "run")
    numbers = folder / "config.yaml"  # resolved: no block or preset is left to be overlaid
    numbers.write_text(configuration.dump(config), encoding="utf-8")
    new = ["--config", str(numbers), "--logdir", str(folder / "run")]
    command = [sys.executable, str(ROOT / "dreamer.py"),
               *(["--resume", str(folder / "run")] if started else new)]
    print(f"{run.name}: {'goes on' if started else 'begins'}, its log is {folder / 'log.txt'}",
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
    """Whether the run in a folder was made with these numbers."""
    path = folder / "config.yaml"
    return path.exists() and path.read_text(encoding="utf-8") == configuration.dump(config)


def _is_whole(folder):
    """Whether the run in a folder is over and scored."""
    rows = curves.rows(folder / "metrics.jsonl")
    return bool(rows) and "charts/score_return" in rows[-1]


def result(config, folder):
    """What a finished run has to show."""
    rows = curves.rows(folder / "metrics.jsonl")
    curve = [[row["step"], round(row["charts/eval_return"], 4)] for row in rows
             if "charts/eval_return" in row]
    last, thin = rows[-1], -(-len(curve) // POINTS)
    updates = [row["charts/updates"] for row in rows if "charts/updates" in row][-1]
    return {
        "seed": config.run.seed, "mark": mark(config),
        "score": last["charts/score_return"], "interval": last["charts/score_interval"],
        "last": curve[-1][1], "steps": last["step"], "updates": updates,
        "seconds": round(last["time/elapsed"]), "curve": curve[::-thin][::-1],
    } | machine()


def mark(config):
    """A fingerprint of all numbers of a run but run.devices, which only divides the work."""
    lines = configuration.dump(config).splitlines(keepends=True)
    numbers = "".join(line for line in lines if not line.startswith("  devices:"))
    return hashlib.sha256(numbers.encode()).hexdigest()[:16]


def resolved(path, env, seed, presets=()):
    """The numbers of a run, as the main command would have them.

    Raises: ConfigError."""
    overlaid = [word for preset in presets for word in ("--preset", preset)]
    flags = ["--config", str(path), "--env", env, "--seed", str(seed), *overlaid]
    return cli.parse(flags).config


def with_seed(found, result):
    """Results of several seeds with one more, in the place of an older one of its seed."""
    seeds = [seed for seed in found.get("seeds", []) if seed["seed"] != result["seed"]]
    seeds = sorted([*seeds, result], key=lambda seed: seed["seed"])
    mean, interval = curves.mean_interval([seed["score"] for seed in seeds])
    return found | {"score": float(mean), "interval": float(interval), "seeds": seeds}


def read(path, levels=0):
    """The mapping in a JSON file of results, empty where there is none.

    `levels` says how many mappings deep the entries lie that hold seeds, 0 where there are none.

    Raises: ValueError where it is not JSON, or another."""
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
    """The results that are to be shown, of which there have to be some.

    Raises: ValueError."""
    if not path.exists():
        raise ValueError(f"{path}: no such file; without --table it is made")
    return read(path, levels)


def update(path, change, draw):
    """Write change(results) into a JSON file and draw(results), one process at a time."""
    held = lock(path.parent, wait=True)
    try:
        results = change(read(path))
        files.replace(path, (json.dumps(results, indent=1) + "\n").encode())
        draw(results)
    finally:
        os.close(held)


def parser(program, description, names):
    """The flags that every list of runs has; `names` are the file of results and the runs' folder.

    Raises, when it parses: ConfigError."""
    file, folder = names
    made = cli.Parser(f"python -m {program}", description=description, allow_abbrev=False)
    made.add_argument("--config", metavar="FILE", type=Path, default=cli.DEFAULT_CONFIG,
                      help="YAML file with every number (default: dreamer.yaml)")
    made.add_argument("--seeds", metavar="N", type=int, default=3,
                      help="seeds 0 to N - 1 of each (default: 3)")
    made.add_argument("--results", metavar="DIR", type=Path, default=Path("docs"),
                      help=f"folder of {file}.json and {file}.png (default: docs)")
    made.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs") / folder,
                      help=f"folder of the runs (default: runs/{folder})")
    made.add_argument("--table", action="store_true", help="print the results as a table")
    return made


def parsed(parser, argv):
    """The flags in a command line; the number of seeds is checked.

    Raises: ConfigError."""
    flags = parser.parse_args(argv)
    if flags.seeds < 1:
        parser.error(f"--seeds: expected a whole number from 1 on, found {flags.seeds}")
    return flags
