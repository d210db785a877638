"""Pictures of a run: its learning curve and losses, and the curves of several seeds.

matplotlib is imported where it is used: a training run needs it only at its end.
"""

import json
import math
from pathlib import Path

import numpy as np

# Okabe and Ito's colours, which colour-blind readers tell apart; without yellow, faint on white
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
VERMILION, SKY, PURPLE, GREY = "#D55E00", "#56B4E9", "#CC79A7", "#666666"
SEED_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE)
SEED_STYLES = ("-", ":", "-.")  # the colours' first, second and third round
# Student's t of the two-sided 95% interval for 2, 3, ... 10 seeds, then the normal's.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 1.96)
PICTURE = "learning_curve.png"  # of a run
WINDOW = 20  # episodes of the running mean
COLUMNS = 3  # loss panels side by side
LOG_RATIO = 20  # a positive loss that spans more than this is drawn on a log axis
STYLE = Path(__file__).with_name("style.mplstyle")  # of every picture


def learning_curve(path, title, train, evaluations, losses, solved=None):
    """Draw returns, and below them every loss, against environment steps, into a PNG file.

    Shapes: train (steps, returns), one entry per finished episode; evaluations (steps, means,
    half widths of the 95% intervals); losses {name: (steps, values)}; any of them may be empty."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = math.ceil(len(losses) / COLUMNS)
    last = last_step([train[0], evaluations[0], *(steps for steps, _ in losses.values())])
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(11, 4.6 + 2.1 * rows), layout="constrained")
        grid = figure.add_gridspec(1 + rows, COLUMNS, height_ratios=[4.2] + [2] * rows)
        figure.suptitle(title)
        figure.supxlabel("environment steps", fontsize="medium")
        top = figure.add_subplot(grid[0, :])
        draw_returns(top, train, evaluations, solved)
        scale_steps(top, last, ticks=6)
        _draw_losses(figure, grid, losses, last)
        figure.savefig(path, format="png")


def seeds_curve(path, title, curves, solved=None):
    """Draw one thin line per seed and their mean, bold, into a PNG file.

    Shapes: curves is a list of (seed, steps, returns)."""
    import matplotlib
    from matplotlib.figure import Figure

    curves = [curve for curve in curves if len(curve[1])]
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(11, 5.5), layout="constrained")
        ax = figure.add_subplot()
        for index, (seed, steps, returns) in enumerate(curves):
            turn, colour = divmod(index, len(SEED_COLOURS))
            ax.plot(steps, returns, SEED_STYLES[turn % len(SEED_STYLES)], lw=1.3,
                    color=SEED_COLOURS[colour], label=f"seed {seed}")
        if curves:
            steps, mean, half = mean_curve(curves)
            ax.fill_between(steps, mean - half, mean + half, color="black", alpha=0.12, lw=0,
                            label="95% interval")
            ax.plot(steps, mean, color="black", lw=3.5, label=f"mean of {len(curves)}")
        else:
            _say_empty(ax, "no evaluation yet")
        _draw_solved(ax, solved)
        scale_steps(ax, last_step([steps for _, steps, _ in curves]), ticks=6)
        ax.set(title=title, xlabel="environment steps", ylabel="evaluation return")
        if ax.lines:
            ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(path, format="png")


def running_mean(values, window=WINDOW):
    """Mean of each value and up to window - 1 before it.

    Shapes: [N] -> [N]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - window)
    return (sums[end] - sums[start]) / (end - start)


def mean_curve(curves):
    """Mean over seeds, interpolated, where all of them have data, and half its 95% interval.

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
    """Draw the returns of training episodes and evaluations, and what counts as solved."""
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


def _draw_losses(figure, grid, losses, last):
    first = None
    for index, (name, (steps, values)) in enumerate(losses.items()):
        row, column = divmod(index, COLUMNS)
        first = ax = figure.add_subplot(grid[1 + row, column], sharex=first)
        ax.plot(steps, values, ".-", ms=4, lw=1.3, color=BLUE)
        scale_loss(ax, values)
        ax.set_title(name, fontsize="medium")
        ax.set_ylabel("" if column else "loss")
        scale_steps(ax, last, ticks=3)


def scale_loss(ax, values):
    """A log axis where positive values span much, with room between the numbers beside it."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if len(values) and min(values) > 0 and max(values) > LOG_RATIO * min(values):
        wide = max(values) > 300 * min(values)
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 3)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def _draw_solved(ax, solved):
    if solved is not None:
        ax.axhline(solved, ls="--", lw=1.8, color=GREY, label=f"solved: {solved:g}")


def scale_steps(ax, last, ticks):
    """An axis of environment steps, from 0 to the last."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    ax.set_xlim(0, 1.01 * last)
    ax.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _say_empty(ax, text):
    ax.text(0.5, 0.3, text, transform=ax.transAxes, ha="center", va="center", color=GREY)


def last_step(series):
    """The greatest step of all, and 1 where there is none."""
    return max([1, *(steps[-1] for steps in series if len(steps))])


def draw_run(folder, title, solved=None):
    """Draw learning_curve.png of a run folder from its metrics.jsonl and scores.jsonl."""
    metrics, scores = (rows(folder / name) for name in ("metrics.jsonl", "scores.jsonl"))
    train = ([row["step"] for row in scores], [row["return"] for row in scores])
    steps, means = series(metrics, "charts/eval_return")
    _, intervals = series(metrics, "charts/eval_interval")
    names = {name for row in metrics for name in row if name.startswith("losses/")}
    losses = {name: series(metrics, name) for name in sorted(names)}
    path = folder / PICTURE
    learning_curve(path, title, train, (steps, means, intervals), losses, solved)


def draw_seeds(folder, env, runs, solved=None):
    """Draw learning_curve.png of a folder from the evaluations of its runs, one for each seed."""
    curves = [(run.name.removeprefix("seed-"),
               *series(rows(run / "metrics.jsonl"), "charts/eval_return")) for run in runs]
    seeds_curve(folder / PICTURE, f"{env}, {len(runs)} seeds", curves, solved)


def rows(path):
    """The whole rows of a JSON lines file: a run that was cut off may have left half of one."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def series(rows, name):
    """(steps, values) of one quantity in the rows that hold it."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]
