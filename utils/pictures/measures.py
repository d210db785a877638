"""Quality measures of a world model: errors, correlations, returns, calibration; numpy only.

Shapes: N starts, H steps, E environments of L rows, X the observation's axes.
"""

from typing import NamedTuple

import numpy as np

FLAT = 1e-6  # standard deviations below this are rounding errors


class Return(NamedTuple):
    """Discounted returns of rows [E, L], and the share of their weight that was received."""

    total: np.ndarray
    share: np.ndarray  # 0 to 1, the rest was bootstrapped; nan at last rows, which have no return


class Calibration(NamedTuple):
    """Rows in bins of predicted probability: mean prediction, true share, count [bins]."""

    predicted: np.ndarray
    happened: np.ndarray
    rows: np.ndarray


def importance(x):
    """Weights [X] of squared errors, so that they count in variances of x [E, L, X].

    Over all these rows, predicting their mean has error 1; over some of them, more or less.
    Entries of a vector have different units: each is scaled by its own deviation, and constant
    entries are ignored. The pixels of an image share one unit and have equal weights."""
    variance = x.reshape(-1, *x.shape[2:]).var(0, dtype=np.float64)
    if variance.ndim > 1:
        return np.full(variance.shape, 1.0 / max(variance.sum(), FLAT**2))
    moving = variance > FLAT**2
    return np.where(moving, 1.0 / np.where(moving, variance, 1.0), 0.0) / max(1, moving.sum())


def squared_error(predicted, true, weights):
    """Σ w (x̂ - x)² over the observation: [..., X], [..., X], [X] -> [...]"""
    error = np.square(np.asarray(predicted, float) - np.asarray(true, float)) * weights
    return error.reshape(*error.shape[: error.ndim - weights.ndim], -1).sum(-1)


def rms(squared, valid=None):
    """Root of the mean over the starts that are `valid`: [N, H] -> [H]; nan where none is."""
    valid = np.ones(squared.shape, bool) if valid is None else valid
    count = valid.sum(0)
    mean = np.where(valid, squared, 0.0).sum(0) / np.maximum(count, 1)
    return np.where(count > 0, np.sqrt(mean), np.nan)


def correlation(a, b):
    """Pearson's correlation of arrays of the same shape; nan if one of them is constant."""
    a, b = (np.asarray(part, float).ravel() for part in (a, b))
    if len(a) < 2 or a.std() < FLAT or b.std() < FLAT:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def returns(rows, values, discount):
    """G_t = r_{t+1} + γ G_{t+1}, backwards from a termination, where G is 0

    Where a time limit or the end of the recording cuts an episode, the value of its last row
    bootstraps the rest, as in training.

    Shapes: rows.r, is_last, is_terminal, values [E, L] -> Return of [E, L]."""
    envs, length = values.shape
    total, share = np.zeros((envs, length)), np.full((envs, length), np.nan)
    after, received = values[:, -1].astype(float), np.zeros(envs)
    for t in reversed(range(length - 1)):
        cut = rows.is_last[:, t + 1]
        after = np.where(cut, values[:, t + 1], after)
        received = np.where(cut, 0.0, received)
        ended = rows.is_terminal[:, t + 1]
        after = rows.r[:, t + 1] + discount * np.where(ended, 0.0, after)
        received = np.where(ended, 1.0, 1.0 - discount + discount * received)
        total[:, t], share[:, t] = after, np.where(rows.is_last[:, t], np.nan, received)
    return Return(total, share)


def calibration(probs, happened, bins=10):
    """Predicted probabilities [...] against booleans [...], in bins: -> Calibration"""
    probs, happened = np.ravel(probs), np.ravel(happened)
    place = np.minimum((probs * bins).astype(int), bins - 1)
    rows = np.bincount(place, minlength=bins)
    some = np.maximum(rows, 1)
    predicted = np.bincount(place, probs, bins) / some
    return Calibration(predicted, np.bincount(place, happened, bins) / some, rows)


def plane(s):
    """The first two principal components of states [N, F]: coordinates [N, 2], variance shares [2]

    Computed from the products of states [N, N], because F may be large."""
    centred = np.asarray(s, float) - np.mean(s, 0, dtype=float)
    squares, vectors = np.linalg.eigh(centred @ centred.T)
    squares, vectors = np.maximum(squares[:-3:-1], 0.0), vectors[:, :-3:-1]
    return vectors * np.sqrt(squares), squares / max(np.square(centred).sum(), FLAT**2)


def usage(z):
    """Share of each class of each latent, and number of classes in use: [N, S, K] -> [S, K], [S]

    The number is the exponential of the entropy: K for uniform use, 1 for a single class."""
    shares = np.mean(z, 0, dtype=float)
    entropy = -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), -1)
    return shares, np.exp(entropy)
