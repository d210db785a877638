"""Trains a list of environments and seeds, one run after the other, and saves the results.

    python -m utils.suite --env Catch-bsuite --env gymnasium:LunarLander-v3 --seeds 3
    python -m utils.suite --group classic

utils/study/runs.py executes the runs and skips finished ones.
"""

import re
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
from utils.core.references import REFERENCES, Reference
from utils.run import files
from utils.study import charts, runs
from utils.worlds.host import Worlds

RESULTS, PICTURE = "results.json", "results.png"
LEVELS = 1  # of the results: environment
EPISODES, ON_HOST = 1000, 100  # of the random policy; where the host steps the worlds
LUNAR_LANDER = "gymnasium:LunarLander-v3"
GROUPS = {
    "classic": ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", LUNAR_LANDER],
    **{group: [name for name in REFERENCES if name.lower().endswith(f"-{group}")]
       for group in ("minatar", "bsuite", "misc")},
    "all": [*REFERENCES, LUNAR_LANDER],
}


def main(argv=None):
    """The command -> exit status: 0, 1 where a run failed, 2 for a wrong flag, 130 if stopped"""
    try:
        flags = _flags(argv)
        if flags.table:
            print(table(runs.shown(flags.results / RESULTS, LEVELS)))
            return 0
        named = [*(flags.env or ()), *(name for one in flags.group or () for name in GROUPS[one])]
        plan = [(env, seed) for seed in range(flags.seeds)
                for env in dict.fromkeys(named) or REFERENCES]
        planned = [_run(flags, *run) for run in plan]
        for env in dict.fromkeys(named):
            gymnax_wrappers.make(env)
        runs.read(flags.results / RESULTS, LEVELS)  # report a damaged file before any run
        files.make(flags.results, flags.runs)
    except (ValueError, OSError) as error:
        return cli.complain(error, "utils.suite")
    return runs.make(planned, partial(_done, flags), partial(_save, flags),
                     flags.results / RESULTS)


def _run(flags, env, seed):
    folder = flags.runs / re.sub("[:/]", "-", f"{env}-{seed}")
    return runs.Run(runs.resolved(flags.config, env, seed), folder)


def _done(flags, run):
    return runs.of_run(read(flags.results).get(run.config.run.env, {}), run.config)


def _save(flags, run, result):
    """Add a run to the results, replacing an older one with its seed, and plot them."""
    runs.update(flags.results / RESULTS, partial(_with, flags, run.config, result),
                partial(_draw, flags.results / PICTURE))


def _draw(path, results):
    """Plot the curves of all environments in the results, with their references."""
    found = {name: _reference_of(name) for name in results}
    charts.suite(path, results, {name: one and one.score for name, one in found.items()})


def _with(flags, config, result, results):
    """The results with one more run, environments in the order of the references."""
    env = config.run.env
    block = (configuration.read(flags.config).get("presets") or {}).get(cli.blocks(env)[-1], {})
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
    returns = _returns_on_host if env.on_host else _random_returns
    returns = np.asarray(returns(env, run.eval_limit, key), float)
    return {"score": float(returns.mean()), "episodes": len(returns),
            "interval": float(1.96 * returns.std() / len(returns)**0.5)}


def _returns_on_host(env, limit, key):
    """Like `_random_returns`, of ON_HOST episodes in worlds that the host steps."""
    worlds, total = Worlds(env, ON_HOST, "random play"), np.zeros(ON_HOST)
    over = np.zeros(ON_HOST, bool)
    worlds.reset(range(ON_HOST))
    actions = jax.jit(jax.vmap(env.action))
    for step_key in jax.random.split(key, limit):
        chosen = jax.random.uniform(step_key, (ON_HOST, env.action_size), minval=-1.0)
        timestep = worlds.step(actions(chosen), ~over)
        total += timestep.r
        over = over | timestep.is_last
        if over.all():
            break
    worlds.close()
    return total


def table(results):
    """The results as markdown, one row per environment."""
    rows = [["environment", "random", "reference", "score", "reached", "last evaluation", "seeds",
             "steps", "updates", "minutes a run"], ["---"] + ["---:"] * 9]
    for name, found in results.items():
        seeds, reference = found["seeds"], _reference_of(name)
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


def _reference_of(name):
    """The Reference of an environment: for one of Gymnasium, its registry's threshold."""
    if name in REFERENCES:
        return REFERENCES[name]
    threshold = gymnax_wrappers.solved(name)
    return None if threshold is None else Reference(float(threshold), "Gymnasium's threshold")


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
    parser.add_argument("--group", choices=GROUPS, action="append",
                        help="several environments; repeatable")
    return runs.parsed(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
