"""What a report looks into: a trained agent is asked, and the answers are arrays and numbers.

Each study takes the Material: fresh episodes, and what the world model says of them. It raises
NothingToShow, one line, where the episodes do not suffice. Stands on top of dreamer.py.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np

from utils.pictures import film, measures, rollouts
from utils.run.arrays import unflatten

WINDOW, CONTEXT = 50, 5  # rows of an open loop, and how many of them are seen
SCORED = 15  # dreamed steps over which an open loop is scored
STARTS, SAMPLES, REAL = 32, 16, 8  # of dreams; dreams of each; real episodes from each
ENOUGH = 8  # episodes have to be so long
DOTS = 1500  # states in a plane, and dots of a scatter
KINDS = ("observation, 1 = always the mean", "reward", "chance that the world goes on")  # of errors
SEED = 5  # of the report's own random numbers


class NothingToShow(ValueError):
    """The episodes, or what was logged, do not suffice for a figure."""


class Material(NamedTuple):
    """Episodes, and what weights say of them; `scale` [X] makes squared errors comparable."""

    agent: Any
    params: Any
    played: rollouts.Played
    said: rollouts.Said
    scale: np.ndarray


class Beginnings(NamedTuple):
    """Episodes [N, 3] to dream on, each (environment, first row, number of rows)."""

    context: int  # rows that are seen
    size: int  # rows of a window
    whole: np.ndarray  # episodes as long as the window
    others: np.ndarray  # episodes of any length


class OpenLoop(NamedTuple):
    """One window [W, X], dreams of it [M, W - context, X], errors over all windows by name."""

    context: int
    true: np.ndarray
    dreams: np.ndarray
    curves: dict  # {what is judged: [W - context]}
    scores: dict  # {what is judged: error over the first SCORED steps}
    episodes: int


def gather(agent):
    """Play fresh episodes and look at them: -> Material"""
    size = rollouts.ENVS, rollouts.ROWS
    played = rollouts.play(agent.program, agent.params, size, jax.random.key(SEED))
    played = jax.device_get(played)
    scale = measures.importance(played.rows.x)
    return seen_by(Material(agent, agent.params, played, None, scale), agent.params)


def seen_by(material, params):
    """The same episodes, seen by other weights."""
    rows = material.played.rows
    said = rollouts.judge(material.agent.program, params, rows, jax.random.key(SEED + 1))
    return material._replace(params=params, said=jax.device_get(said))


def _dream(material, places, actions, samples, steps):
    latent = jax.tree.map(lambda x: x[places], material.said.latent)
    keys = jax.random.split(jax.random.key(SEED + 2), steps)
    program, params = material.agent.program, material.params
    return jax.device_get(rollouts.imagine(program, params, latent, actions, samples, keys))


def _episodes(rows):
    """Environment, first row and number of rows of every episode, [episodes] each."""
    envs, first = np.nonzero(rows.is_first)
    following = np.append(first[1:], 0)
    last = np.where(np.append(envs[1:], -1) == envs, following, rows.r.shape[1])
    return envs, first, last - first


def open_loop(material):
    """The beginnings of episodes, dreamed on with their true actions: -> OpenLoop

    An episode counts while it lasts. First among them, and shown, is one that is as long as the
    window: of STARTS such episodes the one in which most changes."""
    rows = material.played.rows
    if not material.scale.any():
        raise NothingToShow("the observation never changes")
    context, size, whole, others = _beginnings(rows)
    x = rows.x[_places(rows, whole, size)]
    moved = _squared(material, x[:, :1], x).sum(1)
    chosen = np.concatenate([whole[moved.argmax()][None], others])
    where, known = _places(rows, chosen, size), np.arange(size) < chosen[:, 2:]
    x, a = rows.x[where], rows.a[where][:, context - 1 : -1]
    places = tuple(part[:, context - 1] for part in where)
    known = known[:, context:]
    dreamed = _dream(material, places, a, SAMPLES, known.shape[1])
    guesses = {"dream": dreamed.x, "no change": x[:, context - 1 : context],
               "the mean": rows.x.mean((0, 1))}
    squared = {name: _squared(material, guess, x[:, context:]) for name, guess in guesses.items()}
    scores = {name: float(np.sqrt(part[:, :SCORED][known[:, :SCORED]].mean()))
              for name, part in squared.items()}
    curves = {name: measures.rms(part, known) for name, part in squared.items()}
    return OpenLoop(context, x[0], dreamed.dreams, curves, scores, len(x))


def _beginnings(rows):
    """Beginnings of windows of WINDOW rows, or as many as the longest episodes have."""
    episodes = np.stack(_episodes(rows), -1)
    lengths = episodes[:, 2]
    size = min(WINDOW, np.sort(lengths)[::-1][min(ENOUGH, len(lengths)) - 1])
    if size < 2:
        raise NothingToShow("no episode has two rows")
    context = min(CONTEXT, size - 1)
    whole, others = episodes[lengths >= size], episodes[lengths > context]
    return Beginnings(context, size, _spread(whole, STARTS), _spread(others, STARTS - 1))


def _places(rows, episodes, size):
    """The first `size` rows of episodes [N, 3] (and of what follows them): -> ([N, W], [N, W])"""
    t = np.minimum(episodes[:, 1:2] + np.arange(size), rows.r.shape[1] - 1)
    return tuple(np.broadcast_arrays(episodes[:, :1], t))


def _squared(material, guess, true):
    return measures.squared_error(guess, true, material.scale)


def imagined(material):
    """Errors of observation, reward and continuation while the policy acts: {title: curves}

    Half of the starts are where actions were random, if any were. From each there are SAMPLES
    dreams and REAL real episodes: the first of these is what is to be foreseen, and the others say
    how well that can be done at all."""
    rows, odd = material.played.rows, material.played.is_random
    steps = int(min(WINDOW - CONTEXT, _episodes(rows)[2].max() - 1))
    if steps < 1:
        raise NothingToShow("no episode has two rows")
    kinds = [np.argwhere(~rows.is_last & odd), np.argwhere(~rows.is_last & ~odd)]
    places = np.concatenate([_spread(kind, STARTS // 2) for kind in kinds if len(kind)]).T
    places = tuple(places)
    player = rollouts.player_at(material.played, material.said, places, REAL)
    keys = jax.random.split(jax.random.key(SEED + 3), steps + 1)
    program = material.agent.program
    real = jax.device_get(rollouts.play_on(program, material.agent.params, player, keys))
    real = jax.tree.map(lambda part: part.reshape(-1, REAL, *part.shape[1:]), real)
    return _compared(material, places, real, _dream(material, places, None, SAMPLES, steps))


def _spread(rows, count):
    """So many of the rows [N, ...], evenly spaced; a row may come twice where there are few."""
    return rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def _compared(material, places, real, dream):
    """Errors of dreams [N, H, ...] and of real episodes real [N, REAL, H + 1, ...]."""
    rows = material.played.rows
    before = np.cumsum(real.is_last, 2)[..., :-1] == 0  # the row belongs to the same episode
    ended = np.cumsum(real.is_terminal & np.cumprod(real.is_last.cumsum(2) <= 1, 2).astype(bool), 2)
    ended = ended[..., 1:] > 0
    known, real = before | ended, jax.tree.map(lambda part: part[:, :, 1:], real)
    steps, later = np.arange(1, before.shape[2] + 1), ~rows.is_first
    going_on = 1.0 - rows.is_terminal[later].mean()
    start = rows.x[places][:, None], rows.r[places][:, None], 1.0
    mean = rows.x.mean((0, 1)), rows.r[later].mean(), going_on**steps
    truth = real.x, np.where(before, real.r, 0.0), 1.0 - ended
    kinds, found = (before, known, known), {}
    for index, title in enumerate(KINDS):
        true, valid = truth[index], kinds[index]
        scale = material.scale if not index else np.ones(())
        guesses = {"dream": dream[index], "no change": start[index], "the mean": mean[index],
                   "other real episodes": _mean_of_others(true, valid)}
        squared = {name: measures.squared_error(guess, true[:, 0], scale)
                   for name, guess in guesses.items()}
        found[title] = {name: measures.rms(part, valid[:, 0] & np.isfinite(part))
                        for name, part in squared.items()}
    return found


def _mean_of_others(true, valid):
    """The mean of real episodes but the first: [N, REAL, H, ...] -> [N, H, ...]; nan for none"""
    others = valid[:, 1:].reshape(*valid[:, 1:].shape, *[1] * (true.ndim - 3))
    count = others.sum(1)
    mean = np.where(others, true[:, 1:], 0.0).sum(1) / np.maximum(count, 1)
    return np.where(count > 0, mean, np.nan)


class Heads(NamedTuple):
    """Pairs {name: (true [N], predicted [N])}, and the chance of going on of every row."""

    pairs: dict
    calibration: measures.Calibration
    chances: tuple  # where the world went on, where it ended
    scores: dict  # correlations, nan where what is foreseen never changes
    received: float  # share of a return that was received, at least; the rest was estimated


def heads(material):
    """Rewards, values and continuation against what happened: -> Heads

    A value is that of the policy: rows before a random action have no return."""
    rows, said, learning = (
        material.played.rows, material.said, material.agent.config.learning)
    pairs, least = {"reward": (rows.r.ravel(), said.r.ravel())}, float("nan")
    if learning.beta_critic:
        received = measures.returns(rows, said.values, 1.0 - 1.0 / learning.horizon)
        share = np.where(material.played.is_random, np.nan, received.share)
        if np.isfinite(share).any():
            least = 0.5 * float(np.nanmax(share))
            counts = share >= least
            pairs["value"] = received.total[counts], said.values[counts]
    went_on = ~rows.is_terminal
    scores = {name: measures.correlation(*pair) for name, pair in pairs.items()}
    scores["continuation"] = measures.correlation(went_on, said.c)
    return Heads(pairs, measures.calibration(said.c, went_on),
                 (said.c[went_on], said.c[~went_on]), scores, least)


class Latents(NamedTuple):
    """Posterior states in planes, their colours, how classes are used."""

    planes: dict  # {words of the axes: [N, 2]}
    colours: dict  # {title: [N]}
    usage: tuple
    shares: np.ndarray  # [2] of the variance, in the first plane


def latents(material):
    """Posterior states projected to the plane: -> Latents"""
    rows, said, played = material.played.rows, material.said, material.played
    chosen = np.linspace(0, rows.r.size - 1, min(DOTS, rows.r.size)).astype(int)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[chosen],
                        (said.latent, rows.r, said.values, played.t, rows.a))
    latent, r, values, t, a = flat
    s = np.concatenate([latent.h, latent.z.reshape(len(latent.z), -1)], -1)
    places, shares = measures.plane(s)
    planes = {"component": places}
    if find_spec("sklearn"):
        tsne = import_module("sklearn.manifold").TSNE(random_state=SEED)
        planes["t-SNE"] = tsne.fit_transform(s)
    discrete = material.agent.env.discrete
    colours = {"reward": r, "value": values, "step of the episode": t.astype(float),
               "action": np.argmax(a, -1) if discrete else a[:, 0]}
    if not material.agent.config.learning.beta_critic:
        del colours["value"]
    return Latents(planes, colours, measures.usage(latent.z), shares)


class Episode(NamedTuple):
    """A real episode and a dream from its first row; T rows each, of which some are over."""

    real: np.ndarray  # [., X]
    dreamed: np.ndarray  # [., X]
    curves: dict  # {name: (real [T], dreamed [T])}, nan where an episode is over
    times: np.ndarray  # rows that are shown


def episode(material):
    """The first episode, and one dream of the same length at most: -> Episode

    The dream is over where it has more likely ended than not."""
    rows, said = material.played.rows, material.said
    _, _, lengths = _episodes(rows)
    length = int(lengths[0])
    if length < 2:
        raise NothingToShow("the first episode has one row")
    place = np.zeros(1, int), np.zeros(1, int)
    dream = _dream(material, place, None, 1, length - 1)
    alive = np.append(1.0, dream.alive[0])
    over = np.flatnonzero(alive < 0.5)
    end = int(over[0]) + 1 if len(over) else length
    c = np.append(said.c[0, 0], alive[1:] / np.maximum(alive[:-1], 1e-9))
    values = np.append(said.values[0, 0], dream.values[0])
    curves = {"value": (said.values[0, :length], _until(end, values)),
              "chance of going on": (said.c[0, :length], _until(end, c))}
    if not material.agent.config.learning.beta_critic:
        del curves["value"]
    dreamed = np.concatenate([rows.x[0, :1].astype(np.float32), dream.x[0]])
    return Episode(rows.x[0, :length], dreamed[:end], curves, film.steps(length))


def _until(end, values):
    return np.where(np.arange(len(values)) < end, values, np.nan)


def robustness(material, checkpoints):
    """The scores of open loop and heads by checkpoint: {title: {name: [N]}}, steps [N]

    `checkpoints` is a list of (step, arrays), oldest first; the episodes stay the same."""
    prefix, errors, correlations = "agent/params/", [], []
    for _, arrays in checkpoints:
        params = unflatten(material.agent.params, {
            name.removeprefix(prefix): array for name, array in arrays.items()
            if name.startswith(prefix)})
        other = seen_by(material, params)
        errors.append(open_loop(other).scores)
        correlations.append(heads(other).scores)
    panels = {f"open loop: error over {SCORED} steps": _by_name(errors),
              "heads: correlation with what happened": _by_name(correlations)}
    return {title: curves for title, curves in panels.items() if curves}


def _by_name(scores):
    """[{name: number}, ...] as {name: [number, ...]}, without those that are not numbers."""
    curves = {name: [part[name] for part in scores] for name in scores[0]}
    return {name: values for name, values in curves.items() if np.isfinite(values).all()}
