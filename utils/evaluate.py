"""Scores a trained agent over fresh episodes.

    python -m utils.evaluate RUN --episodes 100

prints mean, spread and length, and appends them to RUN/evaluations.jsonl. The weights are those of
the run's best evaluation; actions are sampled, as in training.
"""

import json
import signal
import sys
from pathlib import Path

import jax
import numpy as np

import dreamer
from utils.agent import Agent
from utils.core import cli
from utils.run.files import refuse_links

EVALUATIONS = "evaluations.jsonl"
STREAM = 2  # random stream of the seed: training uses 0 and 1


def main(argv=None):
    """The command -> exit status: 0, or 2 for a user error"""
    try:
        flags = _flags(argv)
        if cli.program_of(flags.run) == cli.DREAMER4:
            from utils.dreamer4 import commands  # only where it is needed

            commands.evaluate(flags)
        else:
            score(load(flags, episodes=flags.episodes), Path(flags.run))
    except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
        return cli.complain(error, "utils.evaluate")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def parser(name, description):
    """A parser with the flags of commands that play episodes of one run."""
    flags = cli.run_parser(name, description)
    flags.add_argument("--seed", metavar="N", help="seed of the episodes (default: the run's)")
    flags.add_argument("--limit", metavar="N",
                       help="steps after which an episode is cut off (default: run.eval_limit)")
    return flags


def load(flags, episodes=None):
    """Load the Agent of a run; the flags override the run's numbers.

    Raises: ValueError, one line."""
    changes = {"seed": flags.seed, "eval_limit": flags.limit, "eval_episodes": episodes}
    sets = [f"run.{key}={value}" for key, value in changes.items() if value is not None]
    return Agent(flags.run, sets, flags.env)


def episode_key(config):
    """The random key of the episodes in these commands."""
    return jax.random.fold_in(jax.random.key(config.run.seed), STREAM)


def score(agent, folder):
    """Evaluate an agent, print the result and append it to evaluations.jsonl in `folder`."""
    run = agent.config.run
    evaluate = dreamer.calls_for(agent.program).evaluate
    found = evaluate(agent.program, agent.params, episode_key(agent.config))
    returns, lengths = (np.asarray(part, float) for part in jax.device_get(found))
    if not np.isfinite(returns).all():
        raise ValueError(f"the return of an episode is {returns[~np.isfinite(returns)][0]}: a "
                         f"reward of {agent.env.name} or the weights are not finite")
    row = {
        "episodes": len(returns), "limit": run.eval_limit, "seed": run.seed,
        "mean": float(np.mean(returns)),
        "deviation": float(np.std(returns)),
        "interval": float(1.96 * np.std(returns) / len(returns) ** 0.5),
        "least": float(np.min(returns)), "most": float(np.max(returns)),
        "length": float(np.mean(lengths)),
    }
    refuse_links(folder, [EVALUATIONS])
    with open(folder / EVALUATIONS, "a", encoding="utf-8") as file:
        file.write(json.dumps({name: value if isinstance(value, int) else round(value, 6)
                               for name, value in row.items()}) + "\n")
    for line in agent.env.notes(run.eval_limit):
        print(f"note         {line}")
    print(f"score        {row['mean']:.2f} ± {row['interval']:.2f} (95%) over {row['episodes']} "
          f"episodes of {agent.env.name}\n"
          f"spread       standard deviation {row['deviation']:.2f}, "
          f"{row['least']:.2f} to {row['most']:.2f}\n"
          f"length       {row['length']:.1f} actions on average")
    print(f"written      {folder / EVALUATIONS}")


def _flags(argv):
    flags = parser("utils.evaluate", __doc__.splitlines()[0])
    flags.add_argument("--episodes", metavar="N",
                       help="number of episodes (default: run.eval_episodes)")
    return flags.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
