"""What the command does instead of training: score the weights of a run, film it, explain.

Stands on top of dreamer.py, which imports it only when asked for."""

import json
import signal
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

import dreamer
import gymnax_wrappers
from utils import film
from utils.agent import Agent
from utils.cli import EXPLAIN, LIST
from utils.drawings import draw
from utils.references import REFERENCES

EVALUATIONS = "evaluations.jsonl"
STREAM = 2  # of the seed's random numbers: the run itself uses 0 and 1


def run(command):
    """Do what the Command asks for -> exit status

    Raises: ValueError, one line, for a folder without a run or without weights."""
    if command.tool == LIST:
        print(environments())
        return 0
    try:
        if command.tool == EXPLAIN:
            from utils import explain  # here, for a student's copy may lack it
            explain.show(command.config)
            return 0
        agent, tools = Agent(command.run), {"eval": score, "watch": watch}
        tools[command.tool](agent, command.config, Path(command.run))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def environments():
    """A table of the environments of Gymnax: what comes in and goes out, limits, known returns."""
    lines = [f"{'environment':26}{'observation':14}{'actions':10}{'limit':>6}{'reference':>11}  of"]
    for name, reference in REFERENCES.items():
        env = gymnax_wrappers.make(name)
        seen = "x".join(str(n) for n in env.raw_shape) or f"one of {env.classes}"
        acts = env.action_size if env.discrete else f"{env.action_size} in ±{_bound(env):g}"
        known = "-" if reference.score is None else f"{reference.score:g}"
        lines.append(f"{name:26}{seen:14}{acts:<10}{int(env.params.max_steps_in_episode):6}"
                     f"{known:>11}  {reference.source}")
    return "\n".join(lines)


def _bound(env):
    """The largest bound of continuous actions."""
    return float(np.max(np.abs(env.action_space.high)))


def score(agent, config, folder):
    """Evaluate over fresh episodes, print what came out, append a row to evaluations.jsonl."""
    program, _ = dreamer.build(config, agent.env)
    key = jax.random.fold_in(jax.random.key(config.run.seed), STREAM)
    found = jax.device_get(dreamer.evaluate(program, agent.params, key))
    returns, lengths = (np.asarray(part, float) for part in found)
    row = {
        "episodes": len(returns), "limit": config.run.eval_limit, "seed": config.run.seed,
        "mean": float(np.mean(returns)),
        "deviation": float(np.std(returns)),
        "interval": float(1.96 * np.std(returns) / len(returns) ** 0.5),
        "least": float(np.min(returns)), "most": float(np.max(returns)),
        "length": float(np.mean(lengths)),
    }
    print(f"score        {row['mean']:.2f} ± {row['interval']:.2f} (95%) over {row['episodes']} "
          f"episodes of {agent.env.name}\n"
          f"spread       standard deviation {row['deviation']:.2f}, "
          f"{row['least']:.2f} to {row['most']:.2f}\n"
          f"length       {row['length']:.1f} actions on average")
    with open(folder / EVALUATIONS, "a", encoding="utf-8") as file:
        file.write(json.dumps({name: value if isinstance(value, int) else round(value, 6)
                               for name, value in row.items()}) + "\n")
    print(f"written      {folder / EVALUATIONS}")


class Moment(NamedTuple):
    """What is shown of one step: reward, value, action probabilities or means, action taken."""

    r: jax.Array
    value: jax.Array
    policy: jax.Array  # [A]
    a: jax.Array  # [A]
    is_last: jax.Array


def watch(agent, config, folder):
    """Film an episode into episode-SEED.gif."""
    key = jax.random.fold_in(jax.random.key(config.run.seed), STREAM)
    start_key, key = jax.random.split(key)
    player = dreamer.start_playing(agent.program, 1, start_key)
    worlds, moments = [], []
    while not (moments and moments[-1].is_last) and len(moments) < config.run.eval_limit:
        worlds.append(jax.device_get((player.env.inner, player.now.x)))
        step_key = jax.random.fold_in(key, len(moments))
        player, moment = _step(agent.program, agent.params, player, step_key)
        moments.append(jax.device_get(moment))
    shown = [jax.tree.map(lambda leaf: leaf[0], worlds[t]) for t in film.steps(len(moments))]
    r, value, policy, a, _ = jax.tree.map(lambda *steps: np.stack(steps), *moments)
    episode = film.Episode([draw(agent.env, *world) for world in shown], r, value, policy,
                           None if agent.env.discrete else a)
    path = folder / f"episode-{config.run.seed}.gif"
    film.save(path, f"{agent.env.name}, return {r.sum():.4g}", episode)
    print(f"film         {path} (return {r.sum():.1f}, {len(moments) - 1} actions)")


@partial(jax.jit, static_argnums=0)
def _step(program, params, player, key):
    """One step of one environment: -> Player after it, Moment"""
    networks = nnx.merge(program.networks, params)
    player, row, _ = dreamer.play(program, networks, player, key)
    s = dreamer.features(player.latent)
    policy = networks.actor(s)
    shown = jax.nn.softmax(policy.logits) if program.env.discrete else policy.mean
    value = dreamer.twohot_mean(networks.critic(s), dreamer.value_bins(program.config.model.bins))
    moment = Moment(row.r, value, shown, row.a, row.is_last)
    return player, jax.tree.map(lambda x: x[0], moment)
