"""A GIF of one episode: the environment at the left, the agent's estimates at the right.

matplotlib, imported where it is used, plots the curves once; between frames only the picture
changes and a marker moves.
"""

import io
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from utils.pictures import window
from utils.run import files
from utils.run.curves import BLUE, STYLE, VERMILION

HEIGHT, WIDTH = 360, 480  # pixels of the panels; the picture to their left is square
FRAMES = 100  # maximum number; longer episodes show every n-th step
PACE, SLOW_PACE, LAST = 40, 200, 1500  # ms per frame: default, maximum, and of the last one
LENGTH = 4000  # target duration, ms; short episodes are slowed down
COLOURS = 255  # of a film's palette; the 256th marks unchanged pixels
CELLS = 32**3  # colour cells, 5 bits per channel
SMALL = {"font.size": 15, "axes.titlesize": 15, "axes.titlepad": 4, "legend.fontsize": 13}


class Episode(NamedTuple):
    """The T rows of one episode (the time line of dreamer.py), as numpy arrays.

    `policy` holds the probabilities of discrete actions, or the means of continuous ones, whose
    sampled actions are in `actions`; `names` are those of the actions."""

    frames: Sequence  # pictures of the environment at the rows `steps(T)`, uint8 [P, P, 3]
    rewards: np.ndarray  # [T]
    values: np.ndarray  # [T]
    policy: np.ndarray  # [T, A]
    names: Sequence  # [A]
    actions: np.ndarray | None = None  # [T, A]


def steps(length):
    """The rows of an episode to show: every n-th, and always the last."""
    return np.arange(length - 1, -1, -math.ceil(length / FRAMES))[::-1]


def save(path, title, episode):
    """Write the film of an `Episode` to `path` atomically.

    Raises: OSError where `path` cannot be written; ValueError unless there is one frame for
    each of `steps(T)`."""
    lines = window.lines(episode.names, episode.policy, episode.actions)
    length = len(episode.rewards)
    moves = length > 2 * window.STEPS  # half of that is still legible as a whole
    draw = partial(_draw, episode=episode, lines=lines, moves=moves)
    panels = draw_panels((WIDTH, HEIGHT), title, 3, length, draw)
    moving = window.Window(panels.boxes.pop(), lines) if moves else None
    write(path, partial(_moments, panels, episode, moving))


def write(path, moments):
    """Write the pictures [H, W, 3] that `moments()` yields as a GIF; it is called twice.

    Raises: OSError where `path` cannot be written."""
    table, palette = _palette(moments())
    images = [Image.fromarray(table[_cells(moment)]) for moment in moments()]
    for image in images:
        image.putpalette(palette)
    pace = min(max(PACE, 10 * round(LENGTH / len(images) / 10)), SLOW_PACE)
    durations = [pace] * (len(images) - 1) + [LAST]
    data = io.BytesIO()
    images[0].save(data, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    files.replace(path, data.getvalue())


def _palette(moments):
    """One palette for all frames: separate ones would flicker and enlarge the file.

    Colours that differ by less than 8 in each channel share a cell. The most frequent cells get
    their mean colour, which preserves flat areas; the others get the nearest of these.

    Shapes: moments [H, W, 3] each -> [CELLS] uint8, flat list of red, green, blue."""
    sums = np.zeros((4, CELLS))
    for moment in moments:
        cells = _cells(moment).ravel()
        channels = [None, *moment.reshape(-1, 3).T]
        sums += [np.bincount(cells, channel, CELLS) for channel in channels]
    used = np.flatnonzero(sums[0])
    means = (sums[1:, used] / sums[0, used]).T
    palette = means[np.argsort(-sums[0, used])[:COLOURS]]
    table = np.zeros(CELLS, np.uint8)
    table[used] = [np.abs(palette - mean).sum(1).argmin() for mean in means]
    return table, palette.round().astype(int).ravel().tolist()


def _cells(moment):
    red, green, blue = np.moveaxis(moment.astype(np.int32) >> 3, -1, 0)
    return red << 10 | green << 5 | blue


class Panels(NamedTuple):
    """Plotted curves, the columns [T] of their marker, and the boxes in which it is drawn."""

    image: Image.Image
    columns: np.ndarray
    boxes: list  # insides of the axes: left, top, right, bottom

    def paste(self, image, corner, t):
        """Paste the panels into a picture, with the marker at time t."""
        image.paste(self.image, corner)
        column, pen = corner[0] + self.columns[t], ImageDraw.Draw(image)
        for _, top, _, bottom in self.boxes:
            pen.rectangle((column - 1, corner[1] + top, column, corner[1] + bottom), "black")


def _moments(panels, episode, moving):
    """Yields each frame of the film: a picture next to the panels, their marker and the Window."""
    image = Image.new("RGB", (HEIGHT + WIDTH, HEIGHT))
    for t, frame in zip(steps(len(panels.columns)), episode.frames, strict=True):
        image.paste(Image.fromarray(frame).resize((HEIGHT, HEIGHT)), (0, 0))
        panels.paste(image, (HEIGHT, 0), t)
        if moving:
            moving.paste(image, (HEIGHT, 0), t)
        yield np.asarray(image)


def draw_panels(size, title, count, length, draw):
    """Plot stacked panels over the steps of an episode by draw(axes): -> Panels"""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SMALL, STYLE):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize="medium")
        axes = figure.subplots(count, squeeze=False)[:, 0]
        draw(axes)
        canvas.draw()
        times = np.arange(length)
        places = axes[0].transData.transform(np.stack([times, 0 * times], 1))
        found = [ax.get_window_extent() for ax in axes]
    image = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    boxes = [(round(box.x0) + 1, round(size[1] - box.y1), round(box.x1), round(size[1] - box.y0))
             for box in found]
    return Panels(image.convert("RGB"), places[:, 0].round().astype(int), boxes)


def share_steps(axes, length):
    """Give axes above each other one range of steps, with labels below the last one."""
    for ax in axes:
        ax.set_xlim(0, max(1, length - 1))
        ax.tick_params(labelbottom=ax is axes[-1])
    axes[-1].set_xlabel("step of the episode")


def _draw(axes, episode, lines, moves):
    reward, value, policy = axes
    times, nothing = np.arange(len(episode.rewards)), []
    reward.fill_between(times, episode.rewards, step="mid", color=BLUE, alpha=0.3, lw=0)
    reward.plot(times, episode.rewards, lw=1.5, color=BLUE, drawstyle="steps-mid")
    value.plot(times, episode.values, lw=2, color=VERMILION)
    for line in lines:  # a Window draws those that move
        policy.plot(*(nothing, nothing) if moves else (times, line.values), lw=1.5,
                    color=line.colour, label=line.label)
        if line.taken is not None and not moves:
            policy.plot(times, line.taken, ".", ms=5, color=line.colour)
    bounds, ticks = window.limits(episode.actions is None)
    title = "actions: mean (line), sampled (dots)" if lines[0].taken is not None else (
        "probability of each action")
    title += f", last {window.STEPS} steps" if moves else ""
    policy.set(ylim=bounds, yticks=ticks)
    for ax, words in zip(axes, ("reward", "value estimate", title)):
        ax.set_title(words, loc="left")
    policy.legend(loc="center left", bbox_to_anchor=(1, 0.5), borderpad=0, labelspacing=0,
                  handlelength=0.8)
    share_steps(axes[: 2 if moves else 3], len(times))
    if moves:
        policy.set(xlim=(0, 1), xticks=[])
