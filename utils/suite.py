"""Trains a list of environments and seeds, one run after the other, and keeps the results.

    python -m utils.suite --env Catch-bsuite --seeds 3

Each run is the main command in a process of its own. A run that the results hold, made with the
same numbers, is not made again; one that was interrupted goes on. Started twice, on two cores say,
the second takes the runs that the first has not begun.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gymnax_wrappers
from utils import cli, plots, weights
from utils import config as configuration
from utils.lock import lock
from utils.machine import machine
from utils.references import REFERENCES
from utils.settings import Config

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PICTURE = "results.json", "results.png"
EPISODES = 1000  # of the random policy
POINTS = 50  # of a stored learning curve, at most


def main(argv=None):
    """The command -> exit status: 0, 1 where a run failed, 2 for a wrong flag, 130 if stopped"""
    try:
        flags = _flags(argv)
        if flags.table:
            print(table(read(flags.results)))
            return 0
        plan = [(env, seed) for seed in range(flags.seeds) for env in flags.env or REFERENCES]
        configs = [_config(flags.config, *run) for run in plan]
        for env in flags.env or ():
            gymnax_wrappers.make(env)
        for folder in (flags.results, flags.runs):
            folder.mkdir(parents=True, exist_ok=True)
        read(flags.results)  # if it is broken, that is said before anything runs
    except (ValueError, OSError) as error:
        return cli.complain(error, "utils.suite")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = [config for config in configs if not _done(config, flags)]
    except KeyboardInterrupt:
        print("stopped      the same command goes on")
        return 128 + signal.SIGINT
    return 1 if failed else 0


def _done(config, flags):
    """Make one run, unless it is there or another process is at it -> whether it did not fail"""
    name = f"{config.run.env}, seed {config.run.seed}"
    folder = flags.runs / f"{config.run.env}-{config.run.seed}".replace(":", "-")
    folder.mkdir(exist_ok=True)
    try:
        held = lock(folder)
    except ValueError:
        print(f"{name}: another process is at it", flush=True)
        return True
    try:
        if _mark(config) in [seed["mark"] for seed in _seeds(read(flags.results), config.run.env)]:
            print(f"{name}: done before", flush=True)
            return True
        status = _train(config, folder, flags.config)
        if status == 0:
            result = _result(config, folder / "run")
            _keep(config, result, flags)
            print(f"{name}: {result['score']:.4g} after {result['steps']:,} steps, "
                  f"{result['seconds']:.0f} s", flush=True)
        else:
            print(f"{name}: ended with status {status}, see {folder / 'log.txt'}", flush=True)
        return status == 0
    finally:
        os.close(held)


def _train(config, folder, path):
    """Make a run, or go on with it -> its exit status

    It has a session of its own, so that Ctrl-C reaches it once, from here.

    Raises: KeyboardInterrupt, when the run has saved what it had."""
    run = config.run
    new = ["--config", str(path), "--env", run.env, "--seed", str(run.seed),
           "--logdir", str(folder / "run")]
    started = _is_of(config, folder / "run") and any((folder / "run/checkpoints").glob("*.json"))
    if started and _is_whole(folder / "run"):
        return 0  # and only its result was not kept
    if not started and (folder / "run").exists():  # other numbers, or nothing to go on from
        shutil.rmtree(folder / "run")
    command = [sys.executable, str(ROOT / "dreamer.py"),
               *(["--resume", str(folder / "run")] if started else new)]
    print(f"{run.env}, seed {run.seed}: {'goes on' if started else 'begins'}, "
          f"its log is {folder / 'log.txt'}", flush=True)
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
    rows = plots.rows(folder / "metrics.jsonl")
    return bool(rows) and "charts/score_return" in rows[-1]


def _result(config, folder):
    """What a finished run has to show."""
    rows = plots.rows(folder / "metrics.jsonl")
    curve = [[row["step"], round(row["charts/eval_return"], 4)] for row in rows
             if "charts/eval_return" in row]
    last, thin = rows[-1], -(-len(curve) // POINTS)
    updates = [row["charts/updates"] for row in rows if "charts/updates" in row][-1]
    return {
        "seed": config.run.seed, "mark": _mark(config),
        "score": last["charts/score_return"], "interval": last["charts/score_interval"],
        "last": curve[-1][1], "steps": last["step"], "updates": updates,
        "seconds": round(last["time/elapsed"]), "curve": curve[::-thin][::-1],
    } | machine()


def _keep(config, result, flags):
    """Put a run into the results, in the place of an older one of its seed, and draw them."""
    folder, env = flags.results, config.run.env
    held = lock(folder, wait=True)
    try:
        results = read(folder)
        block = (configuration.read(flags.config).get("presets") or {}).get(env, {})
        old = results.get(env)
        if old is None or old["block"] != block:
            old = (old or {}) | {"random": random_policy(config.run)}
        seeds = [seed for seed in old.get("seeds", []) if seed["seed"] != result["seed"]]
        seeds = sorted([*seeds, result], key=lambda seed: seed["seed"])
        mean, interval = plots.mean_interval([seed["score"] for seed in seeds])
        results[env] = old | {"block": block, "score": float(mean),
                              "interval": float(interval), "seeds": seeds}
        order = [*REFERENCES, *(name for name in results if name not in REFERENCES)]
        results = {name: results[name] for name in order if name in results}
        text = json.dumps(results, indent=1)
        weights.replace(folder / RESULTS, (text + "\n").encode())
        plots.suite(folder / PICTURE, results,
                    {name: one.score for name, one in REFERENCES.items()})
    finally:
        os.close(held)


class _Playing(NamedTuple):
    """Episodes side by side, each until it is over."""

    state: Any
    now: Any
    total: jax.Array
    over: jax.Array
    t: jax.Array


@partial(jax.jit, static_argnums=(0, 1))
def _random_returns(env, limit, key):
    """Returns [EPISODES] of actions that are uniform in the classes or within the bounds."""

    def step(played):
        action_key, step_key = jax.random.split(jax.random.fold_in(key, played.t))
        actions = jax.random.uniform(action_key, (EPISODES, env.action_size), minval=-1.0)
        keys = jax.random.split(step_key, EPISODES)
        state, now = jax.vmap(env.step)(keys, played.state, actions)
        total = played.total + jnp.where(played.over, 0.0, now.r)
        return _Playing(state, now, total, played.over | now.is_last, played.t + 1)

    state, now = jax.vmap(env.reset)(jax.random.split(key, EPISODES))
    start = _Playing(state, now, jnp.zeros(EPISODES), jnp.zeros(EPISODES, bool), 0)
    return jax.lax.while_loop(
        lambda played: ~played.over.all() & (played.t < limit), step, start).total


def random_policy(run):
    """Mean return of the uniformly random policy in a run's environment, half its 95% interval."""
    env, key = gymnax_wrappers.configured(run), jax.random.key(0)
    returns = np.asarray(_random_returns(env, run.eval_limit, key), float)
    return {"score": float(returns.mean()), "episodes": EPISODES,
            "interval": float(1.96 * returns.std() / EPISODES**0.5)}


def table(results):
    """The results as markdown, one row an environment."""
    rows = [["environment", "random", "reference", "score", "reached", "last evaluation", "seeds",
             "steps", "updates", "minutes a run"], ["---"] + ["---:"] * 9]
    for name, found in results.items():
        seeds, reference = found["seeds"], REFERENCES.get(name)
        rows.append([
            name, _number(found["random"]["score"]),
            _number(reference.score) if reference and reference.score is not None else "-",
            f"{_number(found['score'])} ± {_number(found['interval'])}",
            reached(found, reference), _number(np.mean([seed["last"] for seed in seeds])),
            str(len(seeds)), f"{seeds[0]['steps']:,}", f"{seeds[0]['updates']:,}",
            f"{np.mean([seed['seconds'] for seed in seeds]) / 60:.1f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def reached(found, reference):
    """In a word, whether the mean score is the reference or more, to three digits."""
    if reference is None or reference.score is None:
        return "-"
    if found["score"] >= reference.score - 5e-4 * abs(reference.score):
        return "yes"
    return "within ±" if found["score"] + found["interval"] >= reference.score else "no"


def read(folder):
    """{environment: its results} in the results.json of a folder, empty where there is none.

    Raises: ValueError where it is not JSON."""
    path = Path(folder) / RESULTS
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a mapping of environments, found {found!r}")
    return found


def _seeds(results, env):
    return results.get(env, {"seeds": []})["seeds"]


def _mark(config):
    """A fingerprint of all numbers of a run."""
    return hashlib.sha256(configuration.dump(config).encode()).hexdigest()[:16]


def _config(path, env, seed):
    return cli.parse(["--config", str(path), "--env", env, "--seed", str(seed)], Config, "").config


def _number(value):
    """Three digits behind the point for small numbers, one for large ones."""
    return f"{value:,.3f}" if abs(value) < 2 else f"{value:,.1f}"


def _flags(argv):
    parser = cli.Parser("python -m utils.suite", description=__doc__.splitlines()[0],
                        allow_abbrev=False)
    parser.add_argument("--env", metavar="ID", action="append",
                        help="an environment; may be repeated (default: all of --list-envs)")
    parser.add_argument("--config", metavar="FILE", type=Path, default=cli.DEFAULT_CONFIG,
                        help="YAML file with every number (default: dreamer.yaml)")
    parser.add_argument("--seeds", metavar="N", type=int, default=3,
                        help="seeds 0 to N - 1 of each (default: 3)")
    parser.add_argument("--results", metavar="DIR", type=Path, default=Path("docs"),
                        help="folder of results.json and results.png (default: docs)")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs/suite"),
                        help="folder of the runs (default: runs/suite)")
    parser.add_argument("--table", action="store_true", help="print the results as a table")
    flags = parser.parse_args(argv)
    if flags.seeds < 1:
        parser.error(f"--seeds: expected a whole number from 1 on, found {flags.seeds}")
    return flags


if __name__ == "__main__":
    sys.exit(main())
