"""GIFs of imagined next to real episodes: an open loop in images, and a whole episode."""

from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.pictures import film
from utils.run.curves import GREY, VERMILION

SIDE = 300  # pixels of a picture
HEAD = 28  # height of the labels above it
CURVES = 260  # height of the curves below


def side_by_side(path, labels, texts, strips):
    """Write a film of several strips in parallel, with a label above each and a text below.

    Shapes: one label per strip; T texts; T pictures, uint8 [SIDE, SIDE, 3], in each strip."""
    film.write(path, partial(_pictures, labels, texts, strips))


def _pictures(labels, texts, strips):
    image = _labelled(labels, HEAD)
    pen = ImageDraw.Draw(image)
    for t, text in enumerate(texts):
        for column, strip in enumerate(strips):
            image.paste(Image.fromarray(strip[t]), (column * SIDE, HEAD))
        pen.rectangle((0, HEAD + SIDE, *image.size), "white")
        pen.text((4, HEAD + SIDE + HEAD // 2), text, "black", _font(), anchor="lm")
        yield np.asarray(image)


def episode(path, title, frames, curves):
    """Write the film of a real and an imagined episode, with the curves of both below.

    Shapes: frames (real, imagined), lists of pictures at the rows film.steps(T); curves
    {name: (real [T], imagined [T])}, nan after the end of an episode."""
    length = len(next(iter(curves.values()))[0])
    panels = film.draw_panels((2 * SIDE, CURVES), title, len(curves), length,
                              partial(_draw, curves=curves, length=length))
    film.write(path, partial(_episode, panels, frames))


def _episode(panels, frames):
    image = _labelled(("real", "imagined"), CURVES)
    for t, *pictures in zip(film.steps(len(panels.columns)), *frames, strict=True):
        for column, picture in enumerate(pictures):
            resized = Image.fromarray(picture).resize((SIDE, SIDE))
            image.paste(resized, (column * SIDE, HEAD))
        panels.paste(image, (0, HEAD + SIDE), t)
        yield np.asarray(image)


def _labelled(labels, below):
    """A white picture with a label above each column."""
    image = Image.new("RGB", (len(labels) * SIDE, HEAD + SIDE + below), "white")
    for column, label in enumerate(labels):
        ImageDraw.Draw(image).text(((column + 0.5) * SIDE, HEAD // 2), label, "black", _font(),
                                   anchor="mm")
    return image


def _font():
    return ImageFont.load_default(18)


def _draw(axes, curves, length):
    for ax, (name, (real, imagined)) in zip(axes, curves.items()):
        ax.plot(real, lw=2.5, color=GREY, label="real")
        ax.plot(imagined, lw=2, ls="--", color=VERMILION, label="imagined")
        ax.set_title(name, loc="left")
    axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5), borderpad=0, handlelength=1)
    film.share_steps(axes, length)
