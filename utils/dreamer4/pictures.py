"""The pictures of a run of dreamer4.py: how it learned, what it dreams, how it plays; and a film.

They know arrays and numbers alone. matplotlib is imported where it is used, at the end of a run.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.dreamer4 import figures, square
from utils.pictures import film
from utils.run.curves import (
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    VERMILION,
    scale_loss,
)
from utils.run.files import write

SHOWN = 3  # held-out videos in a picture
COLUMNS = 12  # frames in a row
PATHS = 40  # episodes whose paths are drawn
SIDE, GAP, HEAD, FOOT = 168, 8, 46, 30  # pixels of the film: a picture, and what is around it
LEARNING, DREAMS, POLICY, FILM = "learning.png", "dreams.png", "policy.png", "film.gif"
# Figures of each phase beside the first one in its panel, where they have the same unit.
OTHERS = {"tokenizer": ("psnr_masked",), "dynamics": ("psnr_k", "first_k", "wrong_actions"),
          "agent": (), "policy": ("return_sampled",)}
COLOURS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY)
STYLES = ("--", ":", "-.")


class Shown(NamedTuple):
    """What the pictures show: held-out videos, the tokenizer's, dreams with the same actions

    [N, T, H, W, 3], 0 black and 1 white; dreams begin after `context` frames. And episodes (Played
    of dreamer4.py) before and after phase 4."""

    context: int
    true: Any
    decoded: Any
    dreamed: Any
    before: Any
    after: Any


def save_all(folder, rows, results, first, shown):
    """Draw all that a run has learned so far: -> {name: path} of the pictures

    `rows` are those of metrics.jsonl, `results` {phase: figures, baselines ...}, `first` {phase:
    its first figure}, `shown` a Shown of host arrays. Raises: OSError."""
    paths = {"learning": folder / LEARNING}
    _save(paths["learning"], partial(learning, rows=rows, results=results, first=first), (13, 9))
    if "dynamics" in results:
        paths["dreams"] = folder / DREAMS
        _save(paths["dreams"], partial(dreams, shown=shown), (12, 3.2 * len(shown.true) + 0.4))
    if "policy" in results:
        paths |= {"policy": folder / POLICY, "film": folder / FILM}
        _save(paths["policy"], partial(policies, results=results, shown=shown), (12, 4))
        film.write(paths["film"], partial(moments, shown))
    return paths


def _save(path, draw, size):
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        write(path, partial(figure.savefig, format="png"))


# ---- How it learned ------------------------------------------------------------------------------


def learning(figure, rows, results, first):
    """The figures of the four phases with their baselines, and below them the losses."""
    upper, lower = figure.subfigures(2, 1, height_ratios=(3, 1))
    places = zip(results, upper.subplots(2, 2).flat, lower.subplots(1, 4).flat)
    before = 0
    for number, (phase, top, bottom) in enumerate(places, 1):
        top.set_title(f"{number} {phase}", loc="left")
        done, others = results[phase]["updates"], results[phase]["baselines"][first[phase]]
        found = series(rows, f"{phase}/eval/", before) or {  # none: taken from another run
            name: ([done], [value]) for name, value in results[phase]["figures"].items()}
        _draw_figures(top, found, first[phase], OTHERS[phase], others)
        losses = series(rows, f"{phase}/losses/", before)
        for (name, (steps, values)), colour in zip(losses.items(), COLOURS):
            bottom.plot(steps, values, ".-", ms=3, lw=1.3, color=colour, label=name)
        scale_loss(bottom, [values for _, values in losses.values()])
        if len(losses) > 1:
            bottom.legend(fontsize="x-small", handlelength=1, labelspacing=0.2)
        bottom.set_xlabel("updates")
        bottom.set_title(f"{phase}: " + ("losses" if len(losses) > 1 else "loss"), loc="left",
                         fontsize="medium")
        before += done
    for ax in [*upper.axes, *lower.axes]:
        ax.set_visible(ax.has_data())  # not those of phases to come


def _draw_figures(ax, found, first, others, baselines):
    """One phase's figures against its updates, and the baselines of the first one as lines."""
    names = [first, *(name for name in found if name != first and name.startswith(others))]
    for name, colour in zip(names, COLOURS):
        ax.plot(*found[name], "o-", ms=3, lw=2.5 if name == first else 1.2, color=colour,
                label=figures.words(name).what)
    for (what, value), style in zip(baselines.items(), STYLES):
        ax.axhline(value, ls=style, lw=1.5, color=GREY, label=what)
    ax.set_ylabel(figures.words(first).unit)
    ax.ticklabel_format(useOffset=False)
    ax.margins(y=0.08)
    ax.set_xlim(left=0)
    ax.legend(fontsize="small", handlelength=1.8, loc="center left", bbox_to_anchor=(1, 0.5))


def series(rows, beginning, before=0):
    """{name: (updates, values)} of the metrics with this beginning, updates after `before`."""
    found = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(beginning):
                steps, values = found.setdefault(name.removeprefix(beginning), ([], []))
                steps.append(row["step"] - before)
                values.append(value)
    return found


# ---- What it dreams ------------------------------------------------------------------------------


def dreams(figure, shown):
    """Frames of held-out videos: true, through the tokenizer, and dreamed with the same actions."""
    times = np.linspace(0, shown.true.shape[1] - 1, COLUMNS).round().astype(int)
    groups = figure.subfigures(len(shown.true), 1, squeeze=False)[:, 0]
    for n, group in enumerate(groups):
        axes = group.subplots(3, COLUMNS, gridspec_kw={"hspace": 0.02, "wspace": 0.02})
        for line, (label, frames) in zip(axes, (("true", shown.true), ("tokenizer", shown.decoded),
                                                ("dream", shown.dreamed))):
            line[0].set_ylabel(label, rotation=0, ha="right", va="center")
            for ax, t in zip(line, times):
                _draw_frame(ax, frames[n, t], label == "dream" and t >= shown.context)
        for ax, t in zip(axes[0], times):
            ax.set_title(f"frame {t}" if n == t == 0 else f"{t}", fontsize="small", pad=3)
    figure.supxlabel(f"held-out videos; in red: dreamed with the same actions, after "
                     f"{shown.context} real frames", fontsize="small", color=GREY)


def _draw_frame(ax, frame, is_dream):
    """One frame, in a red box if it is dreamed."""
    ax.imshow(np.clip(frame, 0.0, 1.0), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color=VERMILION if is_dream else LIGHT,
                  linewidth=2 if is_dream else 1)


# ---- How it plays --------------------------------------------------------------------------------


def policies(figure, results, shown):
    """Paths of the square before and after phase 4, and the returns of all episodes."""
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.96))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
    known = results["policy"]["baselines"]["return_sampled"]
    for ax, words, played in ((left, "before", shown.before), (middle, "after", shown.after)):
        _draw_paths(ax, played.x[:PATHS], played.q[:PATHS])
        ax.set_title(f"{words}: mean return {played.returns.mean():.1f}", loc="left",
                     fontsize="medium")
    low = min(shown.before.returns.min(), known["random"])
    bins = np.linspace(low, max(0.0, shown.after.returns.max()), 40)
    for words, played, colour in (("before", shown.before, BLUE), ("after", shown.after, ORANGE)):
        right.hist(played.returns, bins, color=colour, alpha=0.7, label=words)
    for (what, value), style in zip(known.items(), STYLES):
        right.axvline(value, ls=style, lw=1.8, color=GREY, label=f"{what}: {value:.1f}")
    right.set(xlabel=f"return over {shown.after.x.shape[1] - 1} steps", ylabel="episodes")
    right.legend(fontsize="small")


def _draw_paths(ax, x, tasks):
    """The paths of squares in videos [E, T, H, W, 3], shifted a little so that all are seen."""
    size, shifts = x.shape[2], np.random.default_rng(0).uniform(-0.2, 0.2, (len(x), 1, 2))
    for path in centres(x) + shifts:
        ax.plot(*path.T[::-1], lw=0.8, color=LIGHT, zorder=1)
        ax.plot(*path[0][::-1], "o", ms=4, color=BLUE, zorder=2)
        ax.plot(*path[-1][::-1], "o", ms=5, color=VERMILION, zorder=3)
    for goal in size * square.POINTS[np.unique(tasks)]:
        ax.plot(goal[1], goal[0], "+", ms=14, mew=2.5, color="black", zorder=4)
    ax.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[], aspect="equal")
    ax.set_xlabel("paths of the square from blue to red", fontsize="small", color=GREY)
    ax.spines[:].set(visible=True, color=GREY)


def centres(x):
    """Centres (y, x) of the squares in videos [E, T, H, W, 3]: what is not background: [E, T, 2]"""
    background = np.median(x, (2, 3), keepdims=True)
    inside = (x != background).any(-1)
    pixels = np.arange(x.shape[2]) + 0.5
    count = np.maximum(1, inside.sum((2, 3)))
    return np.stack([(inside.sum(3) * pixels).sum(2), (inside.sum(2) * pixels).sum(2)], -1) / (
        count[..., None])


# ---- The film ------------------------------------------------------------------------------------


def moments(shown):
    """Yields the film's frames: a video three ways, and the policy before and after

    in the episode that begins farthest from where it should go, which a cross marks."""
    goals = shown.true.shape[2] * square.POINTS[shown.before.q]
    far = np.linalg.norm(centres(shown.before.x[:, :1])[:, 0] - goals, axis=-1).argmax()
    goal = SIDE * square.POINTS[shown.before.q[far]]
    groups = (("with the same actions", (("true", shown.true[0]), ("tokenizer", shown.decoded[0]),
                                         ("dream", shown.dreamed[0]))),
              ("the policy in the world", (("before", shown.before.x[far] / 255.0),
                                           ("after", shown.after.x[far] / 255.0))))
    length = min(len(frames) for _, strips in groups for _, frames in strips)
    image, places = _stage(groups)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    for t in range(length):
        for (label, frames), left in places:
            image.paste(Image.fromarray(scaled(frames[t], SIDE)), (left, HEAD))
            if label in ("before", "after"):
                _draw_cross(pen, left + goal[1], HEAD + goal[0])
            if label == "dream":
                colour = VERMILION if t >= shown.context else LIGHT
                pen.rectangle((left - 2, HEAD - 2, left + SIDE + 1, HEAD + SIDE + 1),
                              outline=colour, width=2)
        pen.rectangle((0, HEAD + SIDE + 3, *image.size), "white")
        words = f"frame {t}: " + ("dreamed" if t >= shown.context else "seen by the dream, too")
        pen.text((GAP, HEAD + SIDE + FOOT // 2 + 2), words, GREY, font, anchor="lm")
        yield np.asarray(image)


def _draw_cross(pen, x, y):
    for dx, dy in ((8, 1), (1, 8)):
        pen.rectangle((x - dx, y - dy, x + dx, y + dy), VERMILION)


def _stage(groups):
    """The white picture with the labels of groups of strips: -> image, [(strip, its left side)]"""
    count = sum(len(strips) for _, strips in groups)
    width = count * (SIDE + GAP) + GAP + 3 * GAP * (len(groups) - 1)
    image = Image.new("RGB", (width, HEAD + SIDE + FOOT), "white")
    pen, left, places = ImageDraw.Draw(image), GAP, []
    for title, strips in groups:
        wide = len(strips) * (SIDE + GAP) - GAP
        pen.text((left + wide // 2, 11), title, GREY, ImageFont.load_default(15), anchor="mm")
        for strip in strips:
            pen.text((left + SIDE // 2, 32), strip[0], "black", ImageFont.load_default(18),
                     anchor="mm")
            places.append((strip, left))
            left += SIDE + GAP
        left += 3 * GAP
    return image, places


def scaled(frame, side):
    """A frame [H, W, 3] from 0 to 1 as a picture, uint8 [side, side, 3]."""
    pixels = (255.0 * np.clip(frame, 0.0, 1.0)).round().astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST))
