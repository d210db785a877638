"""Films one episode of a trained agent.

    python -m utils.watch RUN --seed 3

writes RUN/episode-<seed>.gif: the environment (one of Gymnasium as it draws itself) next to
reward, value estimate and action probabilities (for continuous actions: their means and the actions
taken). For a run of dreamer4.py: the policy in the world, and a dream with the same actions.
"""

import signal
import sys
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image, ImageOps

import dreamer
from utils import evaluate
from utils.core import cli
from utils.pictures import film, names
from utils.pictures.drawings import SIZE, bar_axis, draw
from utils.worlds.host import RENDERED, Worlds


class Moment(NamedTuple):
    """The plotted quantities of one step: reward, value, action probabilities or means, action."""

    r: jax.Array
    value: jax.Array
    policy: jax.Array  # [A]
    a: jax.Array  # [A]
    is_last: jax.Array


def main(argv=None):
    """The command -> exit status: 0, or 2 for a user error"""
    try:
        flags = evaluate.parser("utils.watch", __doc__.splitlines()[0]).parse_args(argv)
        if cli.program_of(flags.run) == cli.DREAMER4:
            from utils.dreamer4 import commands  # only where it is needed

            commands.watch(flags)
        else:
            watch(evaluate.load(flags), Path(flags.run))
    except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
        return cli.complain(error, "utils.watch")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def watch(agent, folder):
    """Play an episode and save it as episode-<seed>.gif in `folder`."""
    run = agent.config.run
    start_key, key = jax.random.split(evaluate.episode_key(agent.config))
    actor = dreamer.start_episodes(agent.program, 1, start_key)
    worlds = Worlds(agent.env, 1, "the film", render_mode=RENDERED) if agent.env.on_host else None
    actor = worlds.begin(actor, start_key) if worlds else actor
    states, moments = [], []
    while not (moments and moments[-1].is_last) and len(moments) < run.eval_limit:
        states.append((_packed(worlds.picture()) if worlds else _first(actor.env.inner),
                       _first(actor.timestep.x)))
        step_key = jax.random.fold_in(key, len(moments))
        actor, moment = _step(agent.program, agent.params, actor, step_key)
        actor = worlds.carry_out(actor) if worlds else actor
        moments.append(jax.device_get(moment))
    shown = [states[t] for t in film.steps(len(moments))]
    r, value, policy, a, _ = jax.tree.map(lambda *steps: np.stack(steps), *moments)
    axis = bar_axis(agent.env, [state[1] for state in shown])
    frames = [_drawn(agent.env, *state, axis) for state in shown]
    episode = film.Episode(frames, r, value, policy, names.actions(agent.env),
                           None if agent.env.discrete else a)
    path = folder / f"episode-{run.seed}.gif"
    film.save(path, f"{agent.env.name}, return {r.sum():.4g}", episode)
    print(f"film         {path} (return {r.sum():.1f}, {len(moments) - 1} actions)")


def _first(tree):
    """The first environment's part, on the host."""
    return jax.tree.map(lambda leaf: leaf[0], jax.device_get(tree))


def _packed(picture):
    """A picture that a world draws of itself, in the size of the film; None where it draws none

    Compressed: a film may choose among thousands."""
    if picture is None:
        return None
    fitted = ImageOps.pad(Image.fromarray(picture), (SIZE, SIZE), color="white")
    return zlib.compress(fitted.tobytes(), 1)


def _drawn(env, state, x, axis):
    """One state of an environment as a picture [SIZE, SIZE, 3]."""
    if isinstance(state, bytes):
        return np.frombuffer(zlib.decompress(state), np.uint8).reshape(SIZE, SIZE, 3)
    return draw(env, state, x, axis)


@partial(jax.jit, static_argnums=0)
def _step(program, params, actor, key):
    """One step of one environment: -> ActorState after it, Moment"""
    networks = dreamer.assemble(program, params)
    actor, row, _ = dreamer.play(program, networks, actor, key)
    s = dreamer.features(actor.latent)
    policy = networks.actor(s)
    policy = jax.nn.softmax(policy.logits) if program.env.discrete else policy.mean
    value = dreamer.twohot_mean(networks.critic(s), dreamer.value_bins(program.config.model.bins))
    moment = Moment(row.r, value, policy, row.a, row.is_last)
    return actor, jax.tree.map(lambda x: x[0], moment)


if __name__ == "__main__":
    sys.exit(main())
