"""Plots of many runs: learning curves by environment and by ablation, and scaling of the cost."""

import math
from functools import partial

from utils.run.curves import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    STYLE,
    VERMILION,
    fit_legend,
    last_step,
    mean_curve,
    scale_steps,
)
from utils.run.files import write

LEAST = 5.0  # inches: minimum width of a figure of many runs


def suite(path, results, references):
    """Plot a small learning curve for each environment of utils/suite.py into a PNG file.

    `results` is its results.json, `references` {environment: return or None}."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(5, len(results))
    rows = math.ceil(len(results) / columns)
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(max(LEAST, 3.6 * columns), 3 * rows + 0.6), layout="constrained")
        grid = figure.add_gridspec(rows, columns)
        for index, (name, found) in enumerate(results.items()):
            ax = figure.add_subplot(grid[divmod(index, columns)])
            _draw_environment(ax, found, references.get(name))
            ax.set_title(name, fontsize="medium")
        handles = {line.get_label(): line for ax in figure.axes for line in ax.lines
                   if not line.get_label().startswith("_")}
        fit_legend(figure, handles, "outside upper center", 4)
        figure.supxlabel("environment steps", fontsize="medium")
        figure.supylabel("evaluation return", fontsize="medium")
        write(path, partial(figure.savefig, format="png"))


def _draw_environment(ax, found, reference):
    """Plot one environment: its seeds, their mean, the random policy and the reference."""
    curves = [(seed["seed"], *zip(*seed["curve"])) for seed in found["seeds"]]
    for number, (_, steps, returns) in enumerate(curves):
        ax.plot(steps, returns, lw=1.1, color=SKY, label="" if number else "one seed")
    steps, mean, _ = mean_curve(curves)
    ax.plot(steps, mean, lw=2.5, color=BLUE, label="mean")
    ax.axhline(found["random"]["score"], ls=":", lw=1.8, color=GREY, label="random policy")
    if reference is not None:
        ax.axhline(reference, ls="--", lw=1.8, color=GREEN, label="reference")
    scale_steps(ax, last_step([steps for _, steps, _ in curves]), ticks=3)


def scaling(path, panels):
    """Plot how the cost grows on log axes, with a line for proportional growth, into a PNG file.

    Shapes: panels is {name: (sizes, milliseconds, what is measured)}."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(11, 4), layout="constrained")
        axes = figure.subplots(1, len(panels))
        for ax, (name, (sizes, costs, what)) in zip(axes, panels.items()):
            ax.plot(sizes, costs, "o-", color=BLUE, label="measured")
            line = [costs[-1] * size / sizes[-1] for size in sizes]
            ax.plot(sizes, line, ":", color=GREY, label="proportional")
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_xticks(sizes, [str(size) for size in sizes])
            ax.set_yticks(costs, [f"{cost:.2g}" for cost in costs])
            ax.minorticks_off()
            ax.set(xlabel=name, title=what)
        lines, labels = ax.get_legend_handles_labels()
        fit_legend(figure, dict(zip(labels, lines)), "outside upper center", 2)
        write(path, partial(figure.savefig, format="png"))


def ablations(path, results, words=("full agent", "without one part")):
    """Plot learning curves of changed agents, each with the full agent's, into a PNG file.

    `results` is ablations.json of utils/ablations.py, {environment: {ablation: its seeds}}; `words`
    are the labels of the legend."""
    import matplotlib
    from matplotlib.figure import Figure

    panels = {env: [name for name in found if name != "full"] or ["full"]
              for env, found in results.items()}
    columns = min(4, max(len(names) for names in panels.values()))
    heights = [math.ceil(len(names) / columns) for names in panels.values()]
    with matplotlib.rc_context(fname=STYLE):
        size = max(LEAST, 3.3 * columns), 2.6 * sum(heights) + 0.9
        figure = Figure(figsize=size, layout="constrained")
        blocks = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        for block, rows, (env, names) in zip(blocks, heights, panels.items()):
            block.suptitle(env)
            grid = block.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
            for ax, name in zip(grid.flat, names):
                _draw_ablation(ax, name, results[env], words)
            for index in range(len(names), rows * columns):
                grid.flat[index].set_visible(False)
                grid.flat[index - columns].tick_params(labelbottom=True)
            block.supxlabel("environment steps", fontsize="medium")
            block.supylabel("evaluation return", fontsize="medium")
        handles = {line.get_label(): line for block in blocks for ax in block.axes
                   for line in ax.lines if not line.get_label().startswith("_")}
        fit_legend(figure, handles, "outside upper center", 3)
        write(path, partial(figure.savefig, format="png"))


def _draw_ablation(ax, name, found, words):
    """Plot one ablation: its seeds and their mean, over the mean of the full agent."""
    for one, colour, label in (("full", GREY, words[0]), (name, VERMILION, words[1])):
        if one not in found:
            continue
        curves = [(seed["seed"], *zip(*seed["curve"])) for seed in found[one]["seeds"]]
        for _, steps, returns in curves if one == name else ():
            ax.plot(steps, returns, lw=0.9, color=ORANGE, label="_seed")
        steps, mean, _ = mean_curve(curves)
        style = "--" if one == "full" else "-"
        label += ", mean of its seeds" if len(curves) > 1 else ""
        ax.plot(steps, mean, style, lw=2.2, color=colour, label=label)
        scale_steps(ax, last_step([steps for _, steps, _ in curves]), ticks=3)
    ax.set_title(name.replace("_", " "), fontsize="small")
