"""Trains the agent with one part disabled at a time, and plots the effect of each part.

    python -m utils.ablations --env CartPole-v1 --seeds 3

A preset of the YAML whose name begins with no_ disables a part. utils/study/runs.py executes the
runs and skips finished ones.
"""

import sys
from functools import partial

import numpy as np

import gymnax_wrappers
from utils.core import cli
from utils.core import config as configuration
from utils.run import curves, files
from utils.study import charts, runs

RESULTS, PICTURE = "ablations.json", "ablations.png"
ENVIRONMENTS = ("CartPole-v1", "Pendulum-v1")
LEVELS = 2  # of the results: environment, ablation
FULL, PREFIX = "full", "no_"  # the complete agent, and the prefix of ablations


def main(argv=None):
    """The command -> exit status: 0, 1 where a run failed, 2 for a wrong flag, 130 if stopped"""
    try:
        flags = _flags(argv)
        if flags.table:
            print(table(runs.shown(flags.results / RESULTS, LEVELS)))
            return 0
        flags.order = configuration.presets(flags.config)  # read once: it may change later
        names = [FULL, *(flags.preset or ablations(flags.config))]
        plan = [(name, env, seed) for seed in range(flags.seeds) for env in flags.env
                for name in names]
        planned = [_run(flags, *run) for run in plan]
        for env in flags.env:
            gymnax_wrappers.make(env)
        runs.read(flags.results / RESULTS, LEVELS)  # report a damaged file before any run
        files.make(flags.results, flags.runs)
    except (ValueError, OSError) as error:
        return cli.complain(error, "utils.ablations")
    return runs.make(planned, partial(_done, flags), partial(_save, flags),
                     flags.results / RESULTS)


def ablations(path):
    """The names of the presets in a YAML file that disable a part.

    Raises: ConfigError, also if there is none."""
    names = [name for name in configuration.presets(path) if name.startswith(PREFIX)]
    if not names:
        raise configuration.ConfigError(f"{path}: no preset begins with {PREFIX}")
    return names


def _run(flags, name, env, seed):
    config = runs.resolved(flags.config, env, seed, [] if name == FULL else [name])
    folder = flags.runs / f"{name}-{env}-{seed}".replace(":", "-")
    return runs.Run(config, folder, name)


def _done(flags, run):
    found = runs.read(flags.results / RESULTS).get(run.config.run.env, {}).get(run.ablation, {})
    return runs.of_run(found, run.config)


def _save(flags, run, result):
    """Add a run to the results, replacing an older one with its seed, and plot them."""
    runs.update(flags.results / RESULTS, partial(_with, flags, run, result),
                partial(charts.ablations, flags.results / PICTURE))


def _with(flags, run, result, results):
    """The results with one more run: {environment: {ablation: its seeds}}, in the YAML's order."""
    env, name = run.config.run.env, run.ablation
    found = results.get(env, {})
    found[name] = runs.with_seed(found.get(name, {}), result)
    order = [FULL, *flags.order, *found]
    return results | {env: {one: found[one] for one in order if one in found}}


def table(results):
    """The results as markdown, one row per ablation: mean over all evaluations, and score."""
    names = list(dict.fromkeys(name for found in results.values() for name in found))
    rows = [["", *(f"{env}, {what}" for env in results for what in ("learning", "score"))]]
    rows.append(["---"] + ["---:"] * (len(rows[0]) - 1))
    for name in names:
        cells = [cell for found in results.values() for cell in _cells(found.get(name))]
        rows.append([f"`{name}`", *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cells(found):
    if found is None:
        return "-", "-"
    learning = [np.mean([value for _, value in seed["curve"]]) for seed in found["seeds"]]
    return _mean(learning), _mean([seed["score"] for seed in found["seeds"]])


def _mean(values):
    """The mean over seeds and half its 95% interval, which a single seed lacks."""
    mean, interval = curves.mean_interval(values)
    return f"{mean:,.1f}" + f" ± {interval:,.1f}" * (len(values) > 1)


def _flags(argv):
    parser = runs.parser("utils.ablations", __doc__.splitlines()[0], ("ablations", "ablations"))
    parser.add_argument("--env", metavar="ID", action="append",
                        help="an environment; repeatable (default: "
                        f"{' and '.join(ENVIRONMENTS)})")
    parser.add_argument("--preset", metavar="NAME", action="append",
                        help="a preset that disables a part; repeatable "
                        f"(default: all presets beginning with {PREFIX})")
    flags = runs.parsed(parser, argv)
    flags.env = flags.env or ENVIRONMENTS
    return flags


if __name__ == "__main__":
    sys.exit(main())
