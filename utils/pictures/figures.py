"""The still figures of a report, plotted from arrays.

Each function fills an empty figure; `save` creates it, in the common style and at a width that a
phone can show, and writes it. matplotlib is imported where it is used.
"""

import io
import math

import numpy as np

from utils.run import files
from utils.run.curves import (
    BLUE,
    GREEN,
    GREY,
    LOSSES,
    ORANGE,
    SEED_COLOURS,
    STYLE,
    VERMILION,
    draw_returns,
    fit_legend,
    last_step,
    scale_loss,
    scale_steps,
    series,
    trained_losses,
)

WIDTH = 4.8  # inches: on a phone of 360 pixels the text is 10 to 13 pixels high
DPI = 200  # pixels per inch
BAND = (10, 90)  # percentiles of the imagined rollouts
PANELS = 16  # maximum number of entries of a vector
STRIP, STRIPS = 6, 2  # pictures per strip, and number of strips
DOTS = 3000  # maximum number in a scatter plot
INK = "#222222"
# Titles of the errors; the first counts in standard deviations of all observations of the report.
KINDS = ("observation, in standard deviations", "reward", "continue probability")
LOOKS = {  # line styles of the error curves, by predictor
    "imagined": {"color": VERMILION, "lw": 2.5},
    "no change": {"color": BLUE, "ls": "--", "lw": 2},
    "the mean": {"color": GREY, "ls": ":", "lw": 2.5},
    "other real episodes": {"color": GREEN, "lw": 7, "alpha": 0.35, "zorder": 1},
}


def save(path, draw):
    """Create a figure, fill it by draw(figure), and write it as a PNG file.

    Raises: OSError where `path` cannot be written."""
    import matplotlib
    from matplotlib.figure import Figure

    data = io.BytesIO()
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(WIDTH, WIDTH), layout="constrained")
        draw(figure)
        figure.savefig(data, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.08)
    files.replace(path, data.getvalue())


def _grid(figure, heights, columns):
    """A grid of rows with these heights, in inches."""
    figure.set_figheight(sum(heights))
    return figure.add_gridspec(len(heights), columns, height_ratios=heights)


# ------------------------------------------------------------------------------------------------
# 1. Learning
# ------------------------------------------------------------------------------------------------


def learning(figure, metrics, scores, config, solved):
    """Returns, losses and other logged metrics against environment steps.

    `metrics` and `scores` are rows of metrics.jsonl and scores.jsonl."""
    panels = _learning_panels(metrics, config.learning)
    trained = config.learning.trains_policy
    last = last_step([[row["step"] for row in scores] if trained else [],
                      *(curve[0] for _, curves in panels for curve in curves)])
    grid = _grid(figure, [3.0] * trained + [1.9] * math.ceil(len(panels) / 2), 2)
    if trained:
        _returns(figure.add_subplot(grid[0, :]), metrics, scores, solved, last)
    for index, (title, curves) in enumerate(panels):
        ax = figure.add_subplot(grid[trained + index // 2, index % 2])
        for (at, values, label), look in zip(curves, (BLUE, VERMILION)):
            ax.plot(at, values, "-" if look == BLUE else "--", lw=1.8, color=look, label=label)
        scale_loss(ax, [values for _, values, _ in curves])
        scale_steps(ax, last, ticks=3)
        ax.set_title(title, fontsize="small", loc="left")
        if len(curves) > 1:
            ax.legend(fontsize="small", borderaxespad=0)
    figure.supxlabel("environment steps", fontsize="medium")


def _returns(ax, metrics, scores, solved, last):
    steps, means = series(metrics, "charts/eval_return")
    evaluations = steps, means, series(metrics, "charts/eval_interval")[1]
    train = [row["step"] for row in scores], [row["return"] for row in scores]
    draw_returns(ax, train, evaluations, solved)
    if ax.lines:
        ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.12), ncols=2, fontsize="small",
                  columnspacing=1, handlelength=1.4)
    scale_steps(ax, last, ticks=4)


def _learning_panels(metrics, learning):
    """[(title, [(steps, values, label), ...]), ...] of the logged metrics."""
    logged = {name: series(metrics, name) for row in metrics for name in row}
    wanted = {_loss_title(LOSSES.get(name, name)): {f"losses/{name}": ""}
              for name in trained_losses(metrics, learning)}
    wanted["latents' entropy, nats"] = {
        "latents/prior_entropy": "prior", "latents/posterior_entropy": "posterior"}
    if learning.beta_actor:
        wanted["policy's entropy, nats"] = {"actor/entropy": ""}
        wanted["return range"] = {"actor/return_high": "high", "actor/return_low": "low"}
    panels = [(title, [(*logged[name], label) for name, label in names.items() if name in logged])
              for title, names in wanted.items()]
    if "losses/dynamics" in logged and learning.free_bits:
        steps, values = logged["losses/dynamics"]
        ratio = [value / learning.free_bits for value in values]
        panels.append(("dynamics loss / free bits", [(steps, ratio, "")]))
    return [(title, curves) for title, curves in panels if curves]


def _loss_title(name):
    return name if " " in name else f"{name} loss"  # there is little room


# ------------------------------------------------------------------------------------------------
# 2, 3. Imagined rollouts against real episodes
# ------------------------------------------------------------------------------------------------


def vectors(figure, names, context, true, imagined, curves):
    """A panel per entry of the observation: true values, imagined rollouts, their band; the errors.

    Shapes: true [W, X], of which the first `context` rows were observed; imagined
    [M, W - context, X]; curves {predictor: [W - context]}."""
    entries = np.sort(np.argsort(-true.std(0), kind="stable")[:PANELS])
    rows, columns = math.ceil(len(entries) / 2), min(2, len(entries))
    grid = _grid(figure, [2.4] * rows + [2.9], columns)
    for index, entry in enumerate(entries):
        ax = figure.add_subplot(grid[index // 2, index % 2])
        _vector(ax, context, true[:, entry], imagined[..., entry])
        ax.set_title(names[entry], fontsize="small", loc="left")
        ax.set_xlabel("imagined steps", fontsize="small")
    lines, labels = ax.get_legend_handles_labels()
    fit_legend(figure, dict(zip(labels, lines)), "outside upper center", 2)
    errors(figure.add_subplot(grid[-1, :]), KINDS[0], curves)


def _vector(ax, context, true, imagined):
    times, ahead = np.arange(len(true)) - context + 1, np.arange(1, imagined.shape[1] + 1)
    ax.axvspan(times[0], 0, color=GREY, alpha=0.15, lw=0, label=f"{context} observed")
    low, high = np.percentile(imagined, BAND, axis=0)
    ax.fill_between(ahead, low, high, color=ORANGE, alpha=0.35, lw=0,
                    label=f"{BAND[1] - BAND[0]}% of the rollouts")
    for number, rollout in enumerate(imagined):
        ax.plot(ahead, rollout, lw=0.7, alpha=0.7, color=VERMILION,
                label="" if number else f"{len(imagined)} imagined rollouts")
    ax.plot(times, true, lw=2.2, color=INK, label="real episode")
    reach = max(np.ptp(true), 0.25 * (high.max() - low.min()), 1e-3)  # rollouts may diverge
    low, high = min(true.min(), low.min()), max(true.max(), high.max())
    ax.set_ylim(max(low, true.min() - reach) - 0.1 * reach, min(high, true.max() + reach)
                + 0.1 * reach)
    ax.margins(x=0)


def images(figure, context, pictures, curves):
    """Strips of images: the real episode, one imagined rollout, their difference; the errors below.

    Shapes: pictures (true, imagined, error), uint8 [W, H, W', 3] each; curves {name: [steps]}."""
    count = len(pictures[0])
    shown = np.unique(np.linspace(0, count - 1, min(count, STRIP * STRIPS)).round().astype(int))
    strips = np.split(shown, range(STRIP, len(shown), STRIP))
    height = 3 * 1.15 * pictures[0].shape[1] / max(pictures[0].shape[1:3]) + 0.4
    figure.set_figheight(len(strips) * height + 2.9)
    parts = figure.subfigures(len(strips) + 1, 1, height_ratios=[height] * len(strips) + [2.9])
    for part, strip in zip(parts, strips):
        axes = part.subplots(3, STRIP, squeeze=False)
        for kind, name in enumerate(("true", "imagined", "error")):
            axes[kind, 0].set_ylabel(name, fontsize="small")
            for ax, t in zip(axes[kind], strip):
                ax.imshow(pictures[kind][t], interpolation="nearest")
        for ax, t in zip(axes[0], strip):
            ax.set_title("observed" if t < context else f"step {t - context + 1}", fontsize="small")
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.set_visible(bool(ax.images))
    errors(parts[-1].subplots(), KINDS[0], curves)


def errors(ax, title, curves):
    """Errors against the number of imagined steps: {predictor: [H]}."""
    for name, values in curves.items():
        steps = np.arange(1, len(values) + 1)
        ax.plot(steps, values, label=name, marker="o" if len(values) < 3 else None, **LOOKS[name])
    ax.set_title(f"error of the {title}", fontsize="small", loc="left")
    ax.set(xlabel="imagined steps", ylim=(0, None))
    ax.locator_params("x", integer=True)
    _legend_below(ax)


def _legend_below(ax):
    ax.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.45, -0.38), ncols=2,
              borderaxespad=0, handlelength=1.5, columnspacing=1)


def imagined(figure, panels):
    """A panel each for the errors of observation, reward and continuation: {title: curves}."""
    grid = _grid(figure, [2.7] * len(panels), 1)
    for index, (title, curves) in enumerate(panels.items()):
        errors(figure.add_subplot(grid[index, 0]), title, curves)


# ------------------------------------------------------------------------------------------------
# 4. Heads
# ------------------------------------------------------------------------------------------------


def heads(figure, heads):
    """Predictions against true values, and the calibration of the continue probability.

    `heads` is a Heads of utils/pictures/studies.py."""
    grid, probs = _grid(figure, [3.3, 3.3], 2), heads.probs
    for index, (name, (true, predicted)) in enumerate(heads.pairs.items()):
        ax = figure.add_subplot(grid[0, index])
        _scatter(ax, true, predicted)
        score = heads.scores[name]
        suffix = f", correlation {score:.2f}" if math.isfinite(score) else ""
        ax.set_title(name + suffix, fontsize="small", loc="left")
    _calibration(figure.add_subplot(grid[1, 0]), heads.calibration)
    ax, bins = figure.add_subplot(grid[1, 1]), np.linspace(0, 1, 21)
    ax.hist(probs[0], bins, color=BLUE, alpha=0.6, label="continued")
    if len(probs[1]):
        ax.hist(probs[1], bins, color=VERMILION, histtype="step", lw=2.5, label="terminated")
    ax.set_yscale("log")
    ax.set_title("rows by that probability", fontsize="small", loc="left")
    ax.set(xlabel="predicted probability", ylabel="rows")
    ax.legend(fontsize="small")


def _scatter(ax, true, predicted):
    chosen = np.linspace(0, len(true) - 1, min(len(true), DOTS)).astype(int)
    true, predicted = true[chosen], predicted[chosen]
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    room = 0.05 * max(high - low, 1e-3)
    ax.plot([low, high], [low, high], color=INK, ls="--", lw=1.5, label="perfect")
    ax.plot(true, predicted, ".", ms=4, alpha=0.35, color=BLUE, rasterized=True)
    ax.set(xlim=(low - room, high + room), ylim=(low - room, high + room),
           xlabel="true", ylabel="predicted")
    ax.legend(fontsize="small", loc="upper left")


def _calibration(ax, calibration):
    ax.plot([0, 1], [0, 1], color=INK, ls="--", lw=1.5, label="perfect")
    some = calibration.rows > 0
    sizes = 15 + 25 * np.log10(calibration.rows[some])
    ax.scatter(calibration.predicted[some], calibration.happened[some], sizes, color=VERMILION,
               zorder=3, label="in ten bins")
    ax.set_title("does the world continue?", fontsize="small", loc="left")
    ax.set(xlabel="predicted probability", ylabel="share that continued",
           xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    ax.legend(fontsize="small", loc="best", handlelength=1.2, borderpad=0)


# ------------------------------------------------------------------------------------------------
# 5. Latents
# ------------------------------------------------------------------------------------------------


def latents(figure, planes, colours, usage, names):
    """Posterior states projected to planes, coloured by several quantities; the usage of classes.

    Shapes: planes {axis label: [N, 2]}; colours {title: [N]}, integers for actions
    with these names; usage [S, K], and the number of classes [S] that each latent uses."""
    grid = _grid(figure, [3.0] * 2 * len(planes) + [3.4], 2)
    for plane, (label, places) in enumerate(planes.items()):
        for index, (title, values) in enumerate(colours.items()):
            ax = figure.add_subplot(grid[2 * plane + index // 2, index % 2])
            dots = _dots(ax, places, values)
            ax.set_title(title, fontsize="small", loc="left")
            ax.set(xlabel=f"{label} 1", ylabel=f"{label} 2", xticks=[], yticks=[])
            bar = figure.colorbar(dots, ax=ax, pad=0.02)
            bar.ax.tick_params(labelsize="small")
            if values.dtype.kind == "i":
                shown = range(values.max() + 1)
                bar.set_ticks(shown, labels=[names[n] for n in shown])
    _usage(figure, grid[-1, :], *usage)


def _dots(ax, places, values):
    from matplotlib.colors import ListedColormap

    look = {"cmap": "viridis"}
    if values.dtype.kind == "i":  # actions
        count = values.max() + 1
        colours = [SEED_COLOURS[n % len(SEED_COLOURS)] for n in range(count)]
        look = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": count - 0.5}
    return ax.scatter(*places.T, 6, values, alpha=0.7, linewidths=0, rasterized=True, **look)


def _usage(figure, place, shares, counts):
    left, right = place.subgridspec(1, 2, width_ratios=[3, 1]).subplots(sharey=True)
    order = np.sort(shares, -1)[:, ::-1]
    picture = left.imshow(order, aspect="auto", cmap="viridis", vmin=0, vmax=1,
                          interpolation="nearest")
    left.grid(False)
    left.set_title("share of each class of each latent", fontsize="small", loc="left")
    left.set(xlabel="classes, most used first", ylabel="latent", xticks=[])
    figure.colorbar(picture, ax=left, pad=0.02)
    right.barh(range(len(counts)), counts, color=BLUE)
    right.set_title("classes in use", fontsize="small", loc="left")
    right.set(xlabel=f"of {shares.shape[1]} classes", xlim=(0, shares.shape[1]))


# ------------------------------------------------------------------------------------------------
# 7. Robustness
# ------------------------------------------------------------------------------------------------


def robustness(figure, steps, panels):
    """Scores of several checkpoints against their environment steps: {title: {name: [N]}}."""
    grid = _grid(figure, [2.9] * len(panels), 1)
    for index, (title, curves) in enumerate(panels.items()):
        ax = figure.add_subplot(grid[index, 0])
        for (name, values), colour, marker in zip(curves.items(), SEED_COLOURS, "osD"):
            look = LOOKS.get(name, {"color": colour, "lw": 2})
            ax.plot(steps, values, marker=marker, ms=8, label=name, **look)
        low, high = ax.get_ylim()
        ax.set_title(title, fontsize="small", loc="left")
        ax.set(xlabel="environment steps", ylim=(min(0, low), 1.05 * high),
               xticks=steps, xticklabels=[f"{step:,}" for step in steps])
        _legend_below(ax)
