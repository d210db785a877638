"""Plots of a run: its learning curve and losses, and the curves of several seeds.

matplotlib is imported where it is used, because training needs it only at the end.
"""

import json
import math
from itertools import cycle
from pathlib import Path

import numpy as np

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
STYLE = Path(__file__).with_name("style.mplstyle")  # of every picture


def learning_curve(path, title, train, evaluations, losses, solved=None):
    """Plot returns, and below them every loss, against environment steps, into a PNG file.

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
        ax.set(xlabel="environment steps", ylabel="evaluation return")
        ax.set_title(title, loc="left", fontsize="medium")
        if few:
            figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                          columnspacing=1.2, handlelength=1.2)
        figure.savefig(path, format="png")


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
    """Use a log axis for positive values with a wide range, with few enough tick labels."""
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
    """Format the axis of environment steps, from 0 to the last step."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    ax.set_xlim(0, 1.01 * last)
    ax.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _say_empty(ax, text):
    ax.text(0.5, 0.3, text, transform=ax.transAxes, ha="center", va="center", color=GREY)


def last_step(series):
    """The last step of all series, at least 1."""
    return max([1, *(steps[-1] for steps in series if len(steps))])


def draw_run(folder, title, solved=None):
    """Plot learning_curve.png of a run folder from its metrics.jsonl and scores.jsonl."""
    metrics, scores = (rows(folder / name) for name in ("metrics.jsonl", "scores.jsonl"))
    train = ([row["step"] for row in scores], [row["return"] for row in scores])
    steps, means = series(metrics, "charts/eval_return")
    _, intervals = series(metrics, "charts/eval_interval")
    names = {name for row in metrics for name in row if name.startswith("losses/")}
    losses = {name: series(metrics, name) for name in sorted(names)}
    path = folder / PICTURE
    learning_curve(path, title, train, (steps, means, intervals), losses, solved)


def draw_seeds(folder, env, runs, solved=None):
    """Plot learning_curve.png of a folder from the evaluations of its runs, one per seed."""
    curves = [(run.name.removeprefix("seed-"),
               *series(rows(run / "metrics.jsonl"), "charts/eval_return")) for run in runs]
    seeds_curve(folder / PICTURE, f"{env}, {len(runs)} seeds", curves, solved)


def rows(path):
    """The complete rows of a JSON lines file: an interrupted run may leave a partial one."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def series(rows, name):
    """(steps, values) of one quantity in the rows that contain it."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]
