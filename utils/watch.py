"""Films one episode of a trained agent.

    python -m utils.watch RUN --seed 3

writes RUN/episode-<seed>.gif: the environment beside reward, value estimate and action
probabilities (for continuous actions their means and the actions taken).
"""

import signal
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import dreamer
from utils import evaluate
from utils.core import cli
from utils.pictures import film
from utils.pictures.drawings import draw


class Moment(NamedTuple):
    """What is shown of one step: reward, value, action probabilities or means, action taken."""

    r: jax.Array
    value: jax.Array
    policy: jax.Array  # [A]
    a: jax.Array  # [A]
    is_last: jax.Array


def main(argv=None):
    """The command -> exit status: 0, or 2 for a mistake of the user's"""
    try:
        flags = evaluate.parser("utils.watch", __doc__.splitlines()[0]).parse_args(argv)
        watch(evaluate.load(flags), Path(flags.run))
    except (ValueError, OSError) as error:
        return cli.complain(error, "utils.watch")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def watch(agent, folder):
    """Film an episode into episode-<seed>.gif in a folder."""
    run = agent.config.run
    start_key, key = jax.random.split(evaluate.episode_key(agent.config))
    player = dreamer.start_playing(agent.program, 1, start_key)
    worlds, moments = [], []
    while not (moments and moments[-1].is_last) and len(moments) < run.eval_limit:
        worlds.append(jax.device_get((player.env.inner, player.now.x)))
        step_key = jax.random.fold_in(key, len(moments))
        player, moment = _step(agent.program, agent.params, player, step_key)
        moments.append(jax.device_get(moment))
    shown = [jax.tree.map(lambda leaf: leaf[0], worlds[t]) for t in film.steps(len(moments))]
    r, value, policy, a, _ = jax.tree.map(lambda *steps: np.stack(steps), *moments)
    episode = film.Episode([draw(agent.env, *world) for world in shown], r, value, policy,
                           None if agent.env.discrete else a)
    path = folder / f"episode-{run.seed}.gif"
    film.save(path, f"{agent.env.name}, return {r.sum():.4g}", episode)
    print(f"film         {path} (return {r.sum():.1f}, {len(moments) - 1} actions)")


@partial(jax.jit, static_argnums=0)
def _step(program, params, player, key):
    """One step of one environment: -> Player after it, Moment"""
    networks = dreamer.nnx.merge(program.networks, params)
    player, row, _ = dreamer.play(program, networks, player, key)
    s = dreamer.features(player.latent)
    policy = networks.actor(s)
    shown = jax.nn.softmax(policy.logits) if program.env.discrete else policy.mean
    value = dreamer.twohot_mean(networks.critic(s), dreamer.value_bins(program.config.model.bins))
    moment = Moment(row.r, value, shown, row.a, row.is_last)
    return player, jax.tree.map(lambda x: x[0], moment)


if __name__ == "__main__":
    sys.exit(main())
