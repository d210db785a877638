"""Trains a list of environments and seeds, one run after the other, and saves the results.

    python -m utils.suite --env Catch-bsuite --seeds 3

utils/study/runs.py executes the runs and skips finished ones.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gymnax_wrappers
from utils.core import cli
from utils.core import config as configuration
from utils.core.references import REFERENCES
from utils.run import files
from utils.study import charts, runs

RESULTS, PICTURE = "results.json", "results.png"
LEVELS = 1  # of the results: environment
EPISODES = 1000  # of the random policy


def main(argv=None):
    """The command -> exit status: 0, 1 where a run failed, 2 for a wrong flag, 130 if stopped"""
    try:
        flags = _flags(argv)
        if flags.table:
            print(table(runs.shown(flags.results / RESULTS, LEVELS)))
            return 0
        plan = [(env, seed) for seed in range(flags.seeds) for env in flags.env or REFERENCES]
        planned = [_run(flags, *run) for run in plan]
        for env in flags.env or ():
            gymnax_wrappers.make(env)
        runs.read(flags.results / RESULTS, LEVELS)  # report a damaged file before any run
        files.make(flags.results, flags.runs)
    except (ValueError, OSError) as error:
        return cli.complain(error, "utils.suite")
    return runs.make(planned, partial(_done, flags), partial(_save, flags),
                     flags.results / RESULTS)


def _run(flags, env, seed):
    folder = flags.runs / f"{env}-{seed}".replace(":", "-")
    return runs.Run(runs.resolved(flags.config, env, seed), folder)


def _done(flags, run):
    return runs.of_run(read(flags.results).get(run.config.run.env, {}), run.config)


def _save(flags, run, result):
    """Add a run to the results, replacing an older one with its seed, and plot them."""
    runs.update(flags.results / RESULTS, partial(_with, flags, run.config, result), partial(
        charts.suite, flags.results / PICTURE,
        references={name: one.score for name, one in REFERENCES.items()}))


def _with(flags, config, result, results):
    """The results with one more run, environments in the order of the references."""
    env = config.run.env
    block = (configuration.read(flags.config).get("presets") or {}).get(env, {})
    old = results.get(env)
    if old is None or old["block"] != block:
        old = (old or {}) | {"random": random_policy(config.run)}
    results[env] = runs.with_seed(old | {"block": block}, result)
    order = [*REFERENCES, *(name for name in results if name not in REFERENCES)]
    return {name: results[name] for name in order if name in results}


class _Playing(NamedTuple):
    """Parallel episodes, each played until it ends."""

    state: Any
    timestep: Any
    total: jax.Array
    over: jax.Array
    t: jax.Array


@partial(jax.jit, static_argnums=(0, 1))
def _random_returns(env, limit, key):
    """Returns [EPISODES] of uniformly random actions, over the classes or within the bounds."""

    def step(played):
        action_key, step_key = jax.random.split(jax.random.fold_in(key, played.t))
        actions = jax.random.uniform(action_key, (EPISODES, env.action_size), minval=-1.0)
        keys = jax.random.split(step_key, EPISODES)
        state, timestep = jax.vmap(env.step)(keys, played.state, actions)
        total = played.total + jnp.where(played.over, 0.0, timestep.r)
        return _Playing(state, timestep, total, played.over | timestep.is_last, played.t + 1)

    state, timestep = jax.vmap(env.reset)(jax.random.split(key, EPISODES))
    start = _Playing(state, timestep, jnp.zeros(EPISODES), jnp.zeros(EPISODES, bool), 0)
    return jax.lax.while_loop(
        lambda played: ~played.over.all() & (played.t < limit), step, start).total


def random_policy(run):
    """Mean return of the uniformly random policy in a run's environment, half its 95% interval."""
    env, key = gymnax_wrappers.configured(run), jax.random.key(0)
    returns = np.asarray(_random_returns(env, run.eval_limit, key), float)
    return {"score": float(returns.mean()), "episodes": EPISODES,
            "interval": float(1.96 * returns.std() / EPISODES**0.5)}


def table(results):
    """The results as markdown, one row per environment."""
    rows = [["environment", "random", "reference", "score", "reached", "last evaluation", "seeds",
             "steps", "updates", "minutes a run"], ["---"] + ["---:"] * 9]
    for name, found in results.items():
        seeds, reference = found["seeds"], REFERENCES.get(name)
        rows.append([
            name, _number(found["random"]["score"]),
            _reference(reference),
            _number(found["score"]) + f" ± {_number(found['interval'])}" * (len(seeds) > 1),
            reached(found, reference), _number(np.mean([seed["last"] for seed in seeds])),
            str(len(seeds)), f"{seeds[0]['steps']:,}", f"{seeds[0]['updates']:,}",
            f"{np.mean([seed['seconds'] for seed in seeds]) / 60:.1f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def reached(found, reference):
    """Whether the mean score reaches the reference, to three digits: "yes", "no" or "within ±".

    "within ±": the upper end of the 95% interval reaches it. The interval is the wider one of that
    over seeds and that over episodes, because a few seeds may agree by chance."""
    if reference is None or reference.score is None:
        return "-"
    if found["score"] >= reference.score - 5e-4 * abs(reference.score):
        return "yes"
    episodes = np.linalg.norm([seed["interval"] for seed in found["seeds"]]) / len(found["seeds"])
    widest = max(found["interval"], episodes)
    return "within ±" if found["score"] + widest >= reference.score else "no"


def _reference(reference):
    """A reference's score, with the steps it took if known."""
    if reference is None or reference.score is None:
        return "-"
    steps = f" after {reference.steps / 1e6:g}M" if reference.steps else ""
    return _number(reference.score) + steps


def read(folder):
    """{environment: its results} in the results.json of a folder, empty if there is none.

    Raises: ValueError if it is not JSON."""
    return runs.read(Path(folder) / RESULTS)


def _number(value):
    """Three decimals for small numbers, one for large ones."""
    return f"{value:,.3f}" if abs(value) < 2 else f"{value:,.1f}"


def _flags(argv):
    parser = runs.parser("utils.suite", __doc__.splitlines()[0], ("results", "suite"))
    parser.add_argument("--env", metavar="ID", action="append",
                        help="an environment; repeatable (default: all of --list-envs)")
    return runs.parsed(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
