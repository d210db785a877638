"""Plots of a run: its learning curve and losses, and the curves of several seeds.

matplotlib is imported where it is used, because training needs it only at the end.
"""

import math
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np

from utils.run.files import write
from utils.run.logger import METRICS, SCORES, read_rows

# Okabe and Ito's palette for colour-blind readers, without yellow, which is faint on white
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
VERMILION, SKY, PURPLE, GREY = "#D55E00", "#56B4E9", "#CC79A7", "#666666"
LIGHT = "#BBBBBB"  # of secondary lines
SEED_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE)
SEED_STYLES = ("-", ":", "-.")  # for the first, second and third cycle of colours
FEW_SEEDS = (ORANGE, GREEN, PURPLE, SKY)  # next to a blue mean; more seeds are grey
# Student's t of the two-sided 95% interval for 2, 3, ... 10 seeds, then of the normal.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 1.96)
PICTURE = "learning_curve.png"  # of a run
WINDOW = 20  # episodes of the running mean
COLUMNS = 3  # loss panels in a row
LOG_RATIO = 20  # positive values that span more than this factor have a log axis
SHORT = 3  # an axis is cut where the beginning makes it this many times as long as the rest needs
STYLE = Path(__file__).with_name("style.mplstyle")  # of every picture
# Titles of the losses in metrics.jsonl, those of the world model first.
LOSSES = {"prediction": "prediction", "decoder": "decoder", "reward": "reward",
          "continue": "continue", "dynamics": "dynamics", "representation": "representation",
          "critic": "critic", "replay_critic": "critic on replayed rows", "actor": "actor"}
# The scale of a loss in dreamer.yaml: losses of scale 0 are not plotted.
SCALES = {"actor": "beta_actor", "critic": "beta_critic", "replay_critic": "beta_replay"}


def learning_curve(path, title, train, evaluations, losses, solved=None):
    """Plot returns, and below them every loss, against environment steps, into a PNG file.

    Without a policy `train` is None, and only the losses are plotted.

    Shapes: train (steps, returns), one entry per finished episode; evaluations (steps, means,
    half widths of the 95% intervals); losses {name: (steps, values)}; any of them may be empty."""
    import matplotlib
    from matplotlib.figure import Figure

    heights = [4.2] * (train is not None) + [2] * math.ceil(len(losses) / COLUMNS)
    returns = [] if train is None else [train[0], evaluations[0]]
    last = last_step([*returns, *(steps for steps, _ in losses.values())])
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(11, 0.6 + 1.05 * sum(heights)), layout="constrained")
        grid = figure.add_gridspec(max(1, len(heights)), COLUMNS, height_ratios=heights or [1])
        figure.suptitle(title)
        figure.supxlabel("environment steps", fontsize="medium")
        if train is not None:
            top = figure.add_subplot(grid[0, :])
            draw_returns(top, train, evaluations, solved)
            scale_steps(top, last, ticks=6)
        top_rows = len(returns) // 2
        places = [grid[top_rows + n // COLUMNS, n % COLUMNS] for n in range(len(losses))]
        _draw_losses(figure, places, losses, last)
        write(path, partial(figure.savefig, format="png"))


def seeds_curve(path, title, curves, solved=None, words="evaluation return"):
    """Plot the mean over seeds with its 95% band, and each seed as a thin line, into a PNG file.

    A few seeds have their own colours; more are grey. The text is legible at half size.

    Shapes: curves is a list of (seed, steps, returns)."""
    import matplotlib
    from matplotlib.figure import Figure

    curves = [curve for curve in curves if len(curve[1])]
    few = 1 < len(curves) <= len(FEW_SEEDS)
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(6, 4.1 if few else 3.6), layout="constrained")
        ax = figure.add_subplot()
        for (seed, steps, returns), colour in zip(curves, cycle(FEW_SEEDS)):
            ax.plot(steps, returns, lw=1.2 if few else 0.7, color=colour if few else LIGHT,
                    label=f"seed {seed}")
        if curves:
            _draw_mean(ax, curves)
        else:
            _say_empty(ax, "no evaluation yet")
        if solved is not None:
            ax.axhline(solved, ls="--", lw=1.8, color=VERMILION)
            ax.set_title(f"solved: {solved:g}", loc="right", color=VERMILION, fontsize="medium")
        scale_steps(ax, last_step([steps for _, steps, _ in curves]), ticks=5)
        ax.set(xlabel="environment steps", ylabel=words)
        ax.set_title(title, loc="left", fontsize="medium")
        if few:
            lines, labels = ax.get_legend_handles_labels()
            fit_legend(figure, dict(zip(labels, lines)), "outside lower center", 4)
        write(path, partial(figure.savefig, format="png"))


def _draw_mean(ax, curves):
    """Plot the labelled mean over seeds and its 95% band, clipped to the range of returns."""
    steps, mean, half = mean_curve(curves)
    all_returns = np.concatenate([returns for _, _, returns in curves])
    low, high = (np.clip(mean + side * half, all_returns.min(), all_returns.max())
                 for side in (-1, 1))
    ax.fill_between(steps, low, high, color=BLUE, alpha=0.2, lw=0)
    ax.plot(steps, mean, color=BLUE, lw=3, label="_mean")
    label = f"mean of {len(curves)} seeds\nwith 95% interval" if len(curves) > 1 else "one seed"
    ax.text(0.98, 0.05, label, transform=ax.transAxes, ha="right", color=BLUE, weight="bold")


def running_mean(values, window=WINDOW):
    """The mean of each value and up to window - 1 values before it.

    Shapes: [N] -> [N]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - window)
    return (sums[end] - sums[start]) / (end - start)


def mean_curve(curves):
    """Interpolated mean over seeds, where all have data, and half its 95% interval.

    Shapes: -> steps [N], means [N], half widths [N], which are 0 for a single seed."""
    first = max(steps[0] for _, steps, _ in curves)
    last = min(steps[-1] for _, steps, _ in curves)
    grid = np.unique(np.concatenate([steps for _, steps, _ in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    values = np.array([np.interp(grid, steps, values) for _, steps, values in curves])
    return grid, *mean_interval(values)


def mean_interval(values):
    """Mean over seeds and half its 95% interval, 0 for a single seed.

    Shapes: values [seeds, ...] -> [...], [...]."""
    n, values = len(values), np.asarray(values)
    if n == 1:
        return values[0], np.zeros_like(values[0])
    factor = T95[min(n - 2, len(T95) - 1)]
    return values.mean(0), factor * values.std(0, ddof=1) / n**0.5


def draw_returns(ax, train, evaluations, solved):
    """Plot the returns of training episodes and evaluations, and the solved threshold."""
    steps, returns = train
    if len(steps):
        ax.plot(steps, returns, ".", ms=5, alpha=0.6, color=SKY, label="training episode")
        ax.plot(steps, running_mean(returns), lw=2, color=BLUE, label=f"mean of {WINDOW} episodes")
    steps, means, halves = (np.asarray(part, float) for part in evaluations)
    if len(steps):
        ax.fill_between(steps, means - halves, means + halves, color=VERMILION, alpha=0.25, lw=0)
        ax.plot(steps, means, "o-", ms=5, lw=2.5, color=VERMILION, label="evaluation, 95% interval")
    _draw_solved(ax, solved)
    if not (len(train[0]) or len(steps)):
        _say_empty(ax, "no episode has finished yet")
    if ax.lines:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, columnspacing=1.2,
                  handlelength=1.4, borderaxespad=0.2)
    ax.set_ylabel("episode return")


def _draw_losses(figure, places, losses, last):
    first = None
    for index, (place, (name, (steps, values))) in enumerate(zip(places, losses.items())):
        first = ax = figure.add_subplot(place, sharex=first)
        ax.plot(steps, values, ".-", ms=4, lw=1.3, color=BLUE)
        scale_loss(ax, [values])
        ax.set_title(LOSSES.get(name, name), fontsize="medium")
        ax.set_ylabel("" if index % COLUMNS else "loss")
        scale_steps(ax, last, ticks=3)


def scale_loss(ax, curves):
    """Scale the axis of one or more series: logarithmic for positive values with a wide range.

    The beginning of training may lie far from the rest: then the axis fits the rest, and a note
    gives the first value.

    Shapes: curves [[N], ...]."""
    values = np.concatenate([np.asarray(curve, float) for curve in curves] or [[]])
    if not len(values):
        return
    is_log = values.min() > 0 and values.max() > LOG_RATIO * values.min()
    if is_log:
        _log_axis(ax, wide=values.max() > 300 * values.min())
    rest = np.concatenate([np.asarray(curve[max(2, len(curve) // 10):], float) for curve in curves])
    if len(rest) < 5:
        return
    there, back = (np.log, np.exp) if is_log else (np.asarray, np.asarray)
    low, high = there(rest.min()), there(rest.max())
    if np.ptp(there(values)) > SHORT * (high - low) > 0:
        room = 0.08 * (high - low)
        ax.set_ylim(back(low - room), back(high + room))
        ax.text(0.98, 0.94, f"first {curves[0][0]:.3g}", transform=ax.transAxes, ha="right",
                va="top", color=GREY, fontsize="small",
                bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1})


def _log_axis(ax, wide):
    """A log axis with few enough tick labels."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 3)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _draw_solved(ax, solved):
    if solved is not None:
        ax.axhline(solved, ls="--", lw=1.8, color=GREY, label=f"solved: {solved:g}")


def scale_steps(ax, last, ticks):
    """Format the axis of environment steps, from 0 to the last step."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    ax.set_xlim(0, 1.01 * last)
    ax.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def fit_legend(figure, handles, loc, most):
    """A legend of {label: line} outside the axes, with as many columns as the figure is wide."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns in range(min(most, max(1, len(handles))), 0, -1):
        legend = figure.legend(handles.values(), handles.keys(), loc=loc, ncols=columns,
                               columnspacing=1.2, handlelength=1.4)
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            return legend
        legend.remove()


def _say_empty(ax, text):
    ax.text(0.5, 0.3, text, transform=ax.transAxes, ha="center", va="center", color=GREY)


def last_step(series):
    """The last step of all series, at least 1."""
    return max([1, *(steps[-1] for steps in series if len(steps))])


def draw_run(folder, title, learning, solved=None):
    """Plot learning_curve.png of a run folder from its metrics.jsonl and scores.jsonl.

    `learning` is the run's section of settings: a run without a policy gets no returns, and no run
    gets the losses of what is not trained."""
    metrics, scores = (read_rows(folder / name) for name in (METRICS, SCORES))
    train = ([row["step"] for row in scores], [row["return"] for row in scores])
    steps, means = series(metrics, "charts/eval_return")
    _, intervals = series(metrics, "charts/eval_interval")
    if not learning.trains_policy:
        train, title = None, f"{title}: losses of the world model, no policy is trained"
    losses = {name: series(metrics, f"losses/{name}") for name in trained_losses(metrics, learning)}
    path = folder / PICTURE
    learning_curve(path, title, train, (steps, means, intervals), losses, solved)


def trained_losses(metrics, learning):
    """Names of the logged losses whose scale is not 0, in the order of LOSSES, others last."""
    logged = {name.removeprefix("losses/") for row in metrics for name in row
              if name.startswith("losses/")}
    names = [*(name for name in LOSSES if name in logged), *sorted(logged - set(LOSSES))]
    return [name for name in names if name not in SCALES or getattr(learning, SCALES[name])]


def draw_seeds(folder, env, runs, learning, solved=None):
    """Plot learning_curve.png of a folder from its runs, one per seed: evaluations, or the
    prediction loss if no policy is trained."""
    name, words = "charts/eval_return", "evaluation return"
    if not learning.trains_policy:
        name, words, solved = "losses/prediction", "prediction loss", None
    curves = [(run.name.removeprefix("seed-"), *series(read_rows(run / METRICS), name))
              for run in runs]
    seeds_curve(folder / PICTURE, f"{env}, {len(runs)} seeds", curves, solved, words)


def series(rows, name):
    """(steps, values) of one quantity in the rows that contain it."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]
