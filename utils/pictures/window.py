"""The last steps of the policy in a film: a picture of its lines that moves with the time.

A whole episode of hundreds of steps would be a solid block of lines.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from utils.run.curves import GREY, SEED_COLOURS

STEPS = 50  # shown at once
SHOWN = len(SEED_COLOURS)  # maximum number of actions, each in a colour of its own
FINE = 3  # factor by which the lines are drawn larger, then reduced: antialiasing
GRID = "#E5E5E5"


class Line(NamedTuple):
    """One action: probabilities, or means of a continuous action and the actions taken."""

    label: str
    colour: str
    values: np.ndarray  # [T]
    taken: np.ndarray | None = None  # [T]


def lines(names, policy, actions=None):
    """The Line of each action; of many, the most important ones.

    Of many probabilities the largest ones are shown, and the sum of the others; of many continuous
    actions those that change most. What leaves [-1, 1] is clipped, as for the environment.

    Shapes: policy [T, A]; actions [T, A] if they are continuous."""
    if actions is not None:
        policy, actions = np.clip(policy, -1.0, 1.0), np.clip(actions, -1.0, 1.0)
    weights = policy.mean(0) if actions is None else policy.std(0)
    chosen = np.sort(np.argsort(-weights, kind="stable")[:SHOWN])
    found = [Line(names[n], colour, policy[:, n], None if actions is None else actions[:, n])
             for n, colour in zip(chosen, SEED_COLOURS)]
    others = np.delete(policy, chosen, 1)
    if actions is None and others.shape[1]:
        found.append(Line(f"{others.shape[1]:,} others", GREY, others.sum(1)))
    return found


def limits(is_probability):
    """The ends of the vertical axis, and its ticks."""
    return ((-0.04, 1.04), (0, 0.5, 1)) if is_probability else ((-1.08, 1.08), (-1, 0, 1))


class Window(NamedTuple):
    """A panel of a film with the lines of the last STEPS steps; `box` is its inside in pixels."""

    box: tuple  # left, top, right, bottom
    lines: list

    def paste(self, image, corner, t):
        """Paste the steps up to t into a picture whose panels begin at `corner`."""
        left, top, right, bottom = self.box
        size = right - left, bottom - top
        picture = Image.new("RGB", (FINE * size[0], FINE * size[1]), "white")
        pen, (bounds, ticks) = ImageDraw.Draw(picture), limits(self.lines[0].taken is None)
        rows = np.arange(max(0, t - STEPS + 1), t + 1)
        across = (rows - t + STEPS - 1) / (STEPS - 1) * (picture.width - 1)
        for tick in ticks:
            height = self._height([tick], bounds, picture)[0]
            pen.line([(0, height), (picture.width, height)], GRID, FINE)
        for line in self.lines:
            points = [*zip(across, self._height(line.values[rows], bounds, picture))]
            pen.line(points, line.colour, 2 * FINE, joint="curve")
            if line.taken is not None:
                for point in zip(across, self._height(line.taken[rows], bounds, picture)):
                    pen.circle(point, 2 * FINE, line.colour)
        image.paste(picture.reduce(FINE), (corner[0] + left, corner[1] + top))

    def _height(self, values, bounds, picture):
        shares = (bounds[1] - np.asarray(values, float)) / (bounds[1] - bounds[0])
        return (shares * (picture.height - 1)).tolist()
