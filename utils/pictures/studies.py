"""The studies of a report: what a trained agent predicts, as arrays and scores.

Each study takes the Material: fresh episodes and the world model's predictions for them. It raises
NothingToShow, one line, if the episodes are insufficient.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np

from utils.pictures import film, measures, rollouts
from utils.pictures.figures import KINDS
from utils.run.arrays import unflatten

WINDOW, CONTEXT = 50, 5  # rows of an open loop, and how many of them are observed
SCORED = 15  # imagined steps over which an open loop is scored
STARTS, SAMPLES, REAL = 32, 16, 8  # of rollouts; rollouts and real episodes per start
ENOUGH = 8  # episodes must reach the window's length
DOTS = 1500  # states in a projection
SEED = 5  # of the report's own random numbers


class NothingToShow(ValueError):
    """The episodes or the logs are insufficient for a figure."""


class Material(NamedTuple):
    """Episodes and the predictions of some weights; `scale` [X] normalises squared errors."""

    agent: Any
    params: Any
    played: rollouts.Played
    inferred: rollouts.Inferred
    scale: np.ndarray


class Beginnings(NamedTuple):
    """Episodes [N, 3] to continue, each (environment, first row, number of rows)."""

    context: int  # observed rows
    size: int  # rows of a window
    whole: np.ndarray  # episodes as long as the window
    others: np.ndarray  # episodes of any length


class OpenLoop(NamedTuple):
    """One window [W, X], its imagined rollouts [M, W - context, X], errors over all windows."""

    context: int
    true: np.ndarray
    imagined: np.ndarray
    curves: dict  # {predictor: [W - context]}
    scores: dict  # {predictor: error over the first SCORED steps}
    episodes: int


def gather(agent):
    """Play fresh episodes and infer their states: -> Material"""
    size = rollouts.ENVS, rollouts.ROWS
    play = rollouts.play_on_host if agent.env.on_host else rollouts.play
    played = play(agent.program, agent.params, size, jax.random.key(SEED))
    played = jax.device_get(played)
    scale = measures.importance(played.rows.x)
    return with_weights(Material(agent, agent.params, played, None, scale), agent.params)


def with_weights(material, params):
    """The same episodes, with the predictions of other weights."""
    rows = material.played.rows
    inferred = rollouts.infer(material.agent.program, params, rows, jax.random.key(SEED + 1))
    return material._replace(params=params, inferred=jax.device_get(inferred))


def _imagine(material, places, actions, samples, steps):
    latent = jax.tree.map(lambda x: x[places], material.inferred.latent)
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
    """Observe the start of episodes, then imagine the rest with the true actions: -> OpenLoop

    An episode counts until it ends. The first one, which is plotted, has the full length of the
    window: of STARTS such episodes it is the one with the largest changes."""
    rows = material.played.rows
    if not material.scale.any():
        raise NothingToShow("the observation never changes")
    context, size, whole, others = _beginnings(rows)
    x = rows.x[_places(rows, whole, size)]
    moved = _squared(material, x[:, :1], x).sum(1)
    chosen = np.concatenate([whole[moved.argmax()][None], others])
    where, valid = _places(rows, chosen, size), np.arange(size) < chosen[:, 2:]
    x, a = rows.x[where], rows.a[where][:, context - 1 : -1]
    places = tuple(part[:, context - 1] for part in where)
    valid = valid[:, context:]
    imagined = _imagine(material, places, a, SAMPLES, valid.shape[1])
    predictions = {"imagined": imagined.x, "no change": x[:, context - 1 : context],
                   "the mean": rows.x.mean((0, 1))}
    squared = {name: _squared(material, prediction, x[:, context:])
               for name, prediction in predictions.items()}
    scores = {name: float(np.sqrt(part[:, :SCORED][valid[:, :SCORED]].mean()))
              for name, part in squared.items()}
    curves = {name: measures.rms(part, valid) for name, part in squared.items()}
    return OpenLoop(context, x[0], imagined.rollouts, curves, scores, len(x))


def _beginnings(rows):
    """Starts of windows of WINDOW rows, or fewer if the episodes are shorter."""
    episodes = np.stack(_episodes(rows), -1)
    lengths = episodes[:, 2]
    size = min(WINDOW, np.sort(lengths)[::-1][min(ENOUGH, len(lengths)) - 1])
    if size < 2:
        raise NothingToShow("no episode has two rows")
    context = min(CONTEXT, size - 1)
    whole, others = episodes[lengths >= size], episodes[lengths > context]
    return Beginnings(context, size, _spread(whole, STARTS), _spread(others, STARTS - 1))


def _places(rows, episodes, size):
    """Indices of the first `size` rows from the start of episodes [N, 3]: -> ([N, W], [N, W])"""
    t = np.minimum(episodes[:, 1:2] + np.arange(size), rows.r.shape[1] - 1)
    return tuple(np.broadcast_arrays(episodes[:, :1], t))


def _squared(material, predicted, true):
    return measures.squared_error(predicted, true, material.scale)


def imagined(material):
    """Errors of observation, reward and continuation while the policy acts: {title: curves}

    Half of the starts follow random actions, if there were any. Each has SAMPLES imagined rollouts
    and REAL real episodes: the first real one is the target, and the others show how predictable it
    is at all."""
    if material.agent.env.on_host:
        raise NothingToShow("real episodes cannot be continued from their middle where the host "
                            "steps the worlds")
    rows, is_random = material.played.rows, material.played.is_random
    steps = int(min(WINDOW - CONTEXT, _episodes(rows)[2].max() - 1))
    if steps < 1:
        raise NothingToShow("no episode has two rows")
    kinds = [np.argwhere(~rows.is_last & is_random), np.argwhere(~rows.is_last & ~is_random)]
    places = np.concatenate([_spread(kind, STARTS // 2) for kind in kinds if len(kind)]).T
    places = tuple(places)
    actor = rollouts.actor_at(material.played, material.inferred, places, REAL)
    keys = jax.random.split(jax.random.key(SEED + 3), steps + 1)
    program = material.agent.program
    real = jax.device_get(rollouts.play_on(program, material.agent.params, actor, keys))
    real = jax.tree.map(lambda part: part.reshape(-1, REAL, *part.shape[1:]), real)
    rollout = _imagine(material, places, None, SAMPLES, steps)
    return _compared(material, places, real, rollout)


def _spread(rows, count):
    """`count` evenly spaced rows of [N, ...]; with few rows, some are repeated."""
    return rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def _compared(material, places, real, imagined):
    """Errors of imagined rollouts [N, H, ...] against real episodes [N, REAL, H + 1, ...]."""
    rows = material.played.rows
    before = np.cumsum(real.is_last, 2)[..., :-1] == 0  # the row belongs to the same episode
    ended = np.cumsum(real.is_terminal & np.cumprod(real.is_last.cumsum(2) <= 1, 2).astype(bool), 2)
    ended = ended[..., 1:] > 0
    valid, real = before | ended, jax.tree.map(lambda part: part[:, :, 1:], real)
    steps, later = np.arange(1, before.shape[2] + 1), ~rows.is_first
    continues = 1.0 - rows.is_terminal[later].mean()
    start = rows.x[places][:, None], rows.r[places][:, None], 1.0
    mean = rows.x.mean((0, 1)), rows.r[later].mean(), continues**steps
    truth = real.x, np.where(before, real.r, 0.0), 1.0 - ended
    masks, found = (before, valid, valid), {}
    for index, title in enumerate(KINDS):
        true, mask = truth[index], masks[index]
        scale = material.scale if not index else np.ones(())
        predictions = {"imagined": imagined[index], "no change": start[index],
                       "the mean": mean[index],
                       "other real episodes": _mean_of_others(true, mask)}
        squared = {name: measures.squared_error(prediction, true[:, 0], scale)
                   for name, prediction in predictions.items()}
        found[title] = {name: measures.rms(part, mask[:, 0] & np.isfinite(part))
                        for name, part in squared.items()}
    return found


def _mean_of_others(true, valid):
    """The mean of all but the first real episode: [N, REAL, H, ...] -> [N, H, ...]; nan for none"""
    others = valid[:, 1:].reshape(*valid[:, 1:].shape, *[1] * (true.ndim - 3))
    count = others.sum(1)
    mean = np.where(others, true[:, 1:], 0.0).sum(1) / np.maximum(count, 1)
    return np.where(count > 0, mean, np.nan)


class Heads(NamedTuple):
    """Pairs {name: (true [N], predicted [N])}, and the continue probability of every row."""

    pairs: dict
    calibration: measures.Calibration
    probs: tuple  # continue probabilities of rows that continue, and of terminal rows
    scores: dict  # correlations, nan if the target is constant
    received: float  # minimum share of a return that was received; the rest is bootstrapped


def heads(material):
    """Predicted rewards, values and continuation against the true ones: -> Heads

    Values are those of the policy: rows before a random action have no return."""
    rows, inferred, learning = (
        material.played.rows, material.inferred, material.agent.config.learning)
    pairs, least = {"reward": (rows.r.ravel(), inferred.r.ravel())}, float("nan")
    if learning.beta_critic:
        received = measures.returns(rows, inferred.values, 1.0 - 1.0 / learning.horizon)
        share = np.where(material.played.is_random, np.nan, received.share)
        if np.isfinite(share).any():
            least = 0.5 * float(np.nanmax(share))
            counts = share >= least
            pairs["value"] = received.total[counts], inferred.values[counts]
    continued = ~rows.is_terminal
    scores = {name: measures.correlation(*pair) for name, pair in pairs.items()}
    scores["continuation"] = measures.correlation(continued, inferred.c)
    return Heads(pairs, measures.calibration(inferred.c, continued),
                 (inferred.c[continued], inferred.c[~continued]), scores, least)


class Latents(NamedTuple):
    """Posterior states projected to planes, their colours, the usage of classes."""

    planes: dict  # {label of the axes: [N, 2]}
    colours: dict  # {title: [N]}
    usage: tuple
    shares: np.ndarray  # [2] of the variance in the first plane


def latents(material):
    """Project posterior states to planes: -> Latents"""
    rows, inferred, played = material.played.rows, material.inferred, material.played
    chosen = np.linspace(0, rows.r.size - 1, min(DOTS, rows.r.size)).astype(int)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[chosen],
                        (inferred.latent, rows.r, inferred.values, played.t, rows.a))
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
    """A real episode and an imagined one from its first row; T rows each, padded after the end."""

    real: np.ndarray  # [., X]
    imagined: np.ndarray  # [., X]
    curves: dict  # {name: (real [T], imagined [T])}, nan after the end of an episode
    times: np.ndarray  # rows to show


def episode(material):
    """The first episode, and one imagined episode of at most its length: -> Episode

    The imagined episode ends where it has more likely ended than not."""
    rows, inferred = material.played.rows, material.inferred
    _, _, lengths = _episodes(rows)
    length = int(lengths[0])
    if length < 2:
        raise NothingToShow("the first episode has one row")
    place = np.zeros(1, int), np.zeros(1, int)
    imagined = _imagine(material, place, None, 1, length - 1)
    alive = np.append(1.0, imagined.alive[0])
    over = np.flatnonzero(alive < 0.5)
    end = int(over[0]) + 1 if len(over) else length
    c = np.append(inferred.c[0, 0], alive[1:] / np.maximum(alive[:-1], 1e-9))
    values = np.append(inferred.values[0, 0], imagined.values[0])
    curves = {"value": (inferred.values[0, :length], _until(end, values)),
              "continue probability": (inferred.c[0, :length], _until(end, c))}
    if not material.agent.config.learning.beta_critic:
        del curves["value"]
    x = np.concatenate([rows.x[0, :1].astype(np.float32), imagined.x[0]])
    return Episode(rows.x[0, :length], x[:end], curves, film.steps(length))


def _until(end, values):
    return np.where(np.arange(len(values)) < end, values, np.nan)


def robustness(material, checkpoints):
    """The scores of open loop and heads by checkpoint: {title: {name: [N]}}

    `checkpoints` is a list of (step, arrays), oldest first; all are scored on the same episodes."""
    prefix, errors, correlations = "agent/params/", [], []
    for _, arrays in checkpoints:
        params = unflatten(material.agent.params, {
            name.removeprefix(prefix): array for name, array in arrays.items()
            if name.startswith(prefix)})
        other = with_weights(material, params)
        errors.append(open_loop(other).scores)
        correlations.append(heads(other).scores)
    panels = {f"open loop: error over {SCORED} steps": _by_name(errors),
              "heads: correlation with the true values": _by_name(correlations)}
    return {title: curves for title, curves in panels.items() if curves}


def _by_name(scores):
    """[{name: number}, ...] as {name: [number, ...]}, without names that have a nan."""
    curves = {name: [part[name] for part in scores] for name in scores[0]}
    return {name: values for name, values in curves.items() if np.isfinite(values).all()}
