"""Draws the state of an environment as a picture.

The agent is blue, a goal green. Lengths follow the environment's own numbers unless a comment says
otherwise. An environment that is not in `DRAWERS` is drawn by its observation: bars, or the image
itself.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.run.curves import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

SIZE = 360  # pixels on each side
FINE = 3  # factor by which everything is drawn larger, then reduced: antialiasing
INK, WINE, YELLOW = "#222222", "#882255", "#F0E442"
PAPER, GROUND, PALE, WALL, WATER = "#FFFFFF", "#ECEBE6", "#D0D0D0", "#59626B", "#CFE6F5"
MARKS = (-10, -1, 0, 1, 10)  # grid lines behind the bars of a vector on a compressed axis
WIDE = 50  # ratio of the sizes of entries above which one linear axis would hide the small ones
FAR = 2  # windows: a point further out than this is drawn at the edge, as an arrow

# The contents of MinAtar's channels, in order, and their colours.
MINATAR = {
    "Asterix-MinAtar": {"player": BLUE, "enemy": VERMILION, "trail": PALE, "gold": ORANGE},
    "Breakout-MinAtar": {"paddle": BLUE, "ball": VERMILION, "trail": PALE, "brick": ORANGE},
    "Freeway-MinAtar": {"chicken": BLUE, "car": INK, "slowest": VERMILION, "slow": PURPLE,
                        "middling": ORANGE, "fast": GREEN, "fastest": SKY},
    "Seaquest-MinAtar": {
        "submarine": BLUE, "its back": SKY, "its bullet": GREEN, "trail": PALE,
        "enemy bullet": PURPLE, "fish": VERMILION, "enemy submarine": INK, "oxygen": WINE,
        "divers aboard": YELLOW, "diver": ORANGE},
    "SpaceInvaders-MinAtar": {"cannon": BLUE, "alien": INK, "moving left": ORANGE,
                              "moving right": PURPLE, "own bullet": SKY, "bullet": VERMILION},
}


def draw(env, state, x, axis=None):
    """Draw one state of an environment.

    `env` is an Environment of gymnax_wrappers, `state` its Gymnax state (numpy leaves), `axis` the
    ends of the axis of bars (from `bar_axis`).

    Shapes: x [X] or [H, W, C], as the agent sees it -> uint8 [SIZE, SIZE, 3].
    Source: angles have the signs of Gym's own pictures, positive to the right for CartPole's pole
    and counter-clockwise elsewhere; the mountain is Gym's sin(3x) · 0.45 + 0.55."""
    if env.name not in DRAWERS:
        return draw_seen(env, x, axis)
    canvas = DRAWERS[env.name](env, state, np.asarray(x))
    return np.asarray(canvas.image.reduce(FINE))


def draw_seen(env, x, axis=None):
    """Draw the observation itself: x [X] or [H, W, C] -> uint8 [SIZE, SIZE, 3]"""
    canvas = _photograph(np.asarray(x)) if env.is_image else _bars(np.asarray(x), axis)
    return np.asarray(canvas.image.reduce(FINE))


def bar_axis(env, x):
    """The ends of one linear axis for the bars of observations x [T, X]; None for a compressed one

    These are the declared bounds where the observations keep them, else the range of the
    observations but for outliers; None for an image, or where entries differ much in size."""
    if env.is_image:
        return None
    x = np.asarray(x, float)
    low, high = _declared(env, x)
    sizes = np.maximum(np.abs(low), np.abs(high))
    sizes = sizes[sizes > 0]
    if not len(sizes) or sizes.max() > WIDE * sizes.min():
        return None
    return min(0.0, float(low.min())), max(0.0, float(high.max()))


def _declared(env, x):
    """Lowest and highest value [X] of each entry, as declared or as seen."""
    seen = np.percentile(x, (1, 99), axis=0)
    space = env.space
    if not hasattr(space, "low") or np.size(space.low) not in (1, x.shape[1]):
        return seen
    low, high = (np.broadcast_to(np.asarray(bound, float).ravel(), x.shape[1:])
                 for bound in (space.low, space.high))
    kept = (low <= x).all() and (x <= high).all()
    used = np.maximum(high - low, 1e-9) <= WIDE * np.maximum(np.ptp(x, 0), 1e-9)
    return (low, high) if kept and used.any() else seen


class _Canvas:
    """A square window of the world, from `centre` - `reach` to `centre` + `reach`; y points up.

    Line widths are in pixels of the finished picture, everything else in the world's units."""

    def __init__(self, centre, reach):
        self.reach, self.scale = reach, SIZE * FINE / (2 * reach)
        self.corner = np.array(centre) + (-reach, reach)
        self.image = Image.new("RGB", (SIZE * FINE, SIZE * FINE), PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def line(self, points, colour, width):
        """Joins points [N, 2], with round ends."""
        pixels = self._pixels(points)
        self.pen.line(pixels, colour, FINE * width, joint="curve")
        for point in (points[0], points[-1]):
            self.disc(point, FINE * width / 2 / self.scale, colour)

    def polygon(self, points, colour):
        """Fills the polygon of points [N, 2]."""
        self.pen.polygon(self._pixels(points), colour)

    def box(self, centre, half, colour):
        """Fills centre ± half, both (x, y)."""
        low, high = np.subtract(centre, half), np.add(centre, half)
        (left, bottom), (right, top) = self._pixels([low, high])
        self.pen.rectangle((left, top, right - 1, bottom - 1), colour)

    def disc(self, centre, radius, colour):
        """Fills a circle."""
        x, y = self._pixels([centre])[0]
        self.pen.circle((x, y), radius * self.scale, colour)

    def text(self, at, words):
        """Writes words, left-aligned and vertically centred at `at`."""
        font = ImageFont.load_default(14 * FINE)
        self.pen.text(self._pixels([at])[0], words, GREY, font, anchor="lm")

    def _pixels(self, points):
        pixels = (np.asarray(points, float) - self.corner) * (self.scale, -self.scale)
        return [tuple(pixel) for pixel in pixels.round().tolist()]


def _rotated(points, angle):
    """Points [N, 2], rotated counter-clockwise around the origin."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(points) @ np.array([[cos, sin], [-sin, cos]])


# ------------------------------------------------------------------------------------------------
# Carts, rods and cars
# ------------------------------------------------------------------------------------------------


def _cartpole(env, state, x):
    edge, lean = env.params.x_threshold, env.params.theta_threshold_radians
    length = 4 * env.params.length  # twice the pole's length, so that one degree is visible
    canvas, hinge = _Canvas((0, 1), 1.15 * edge), np.array([state.x, 0.2])
    canvas.line([(-edge, -0.25), (edge, -0.25)], GREY, 3)
    for side in (-edge, edge):
        canvas.line([(side, -0.45), (side, -0.05)], VERMILION, 5)
    for angle in (-lean, lean):
        canvas.line([hinge, hinge + _rotated([(0, length)], -angle)[0]], PALE, 2)
    canvas.box((state.x, 0), (0.4, 0.2), BLUE)
    for wheel in (-0.22, 0.22):
        canvas.disc((state.x + wheel, -0.17), 0.1, INK)
    canvas.line([hinge, hinge + _rotated([(0, length)], -state.theta)[0]], ORANGE, 9)
    canvas.disc(hinge, 0.06, INK)
    return canvas


def _pendulum(env, state, x):
    length, torque = env.params.l, np.squeeze(state.last_u) / env.params.max_torque
    canvas, tip = _Canvas((0, 0), 1.3 * length), _rotated([(0, length)], state.theta)[0]
    canvas.line([(0, 0), (0, length)], PALE, 2)
    canvas.line([(0, 0), tip], BLUE, 14)
    canvas.disc(tip, 0.1 * length, BLUE)
    canvas.disc((0, 0), 0.05 * length, INK)
    if abs(torque) > 0.02:  # an arc in the direction of the torque, its length proportional
        turns = torque * np.linspace(0, 1.5 * np.pi, 40)
        arc = 0.3 * length * np.stack([np.sin(-turns), np.cos(turns)], 1)
        head = [(0, 0.07), (0, -0.07), (-0.14 * np.sign(torque), 0)]
        canvas.line(arc, ORANGE, 4)
        canvas.polygon(arc[-1] + length * _rotated(head, turns[-1]), ORANGE)
        canvas.text((-1.25 * length, -1.2 * length), f"arrow: torque {state.last_u:+.2f}")
    return canvas


def _acrobot(env, state, x):
    first, second = env.params.link_length_1, env.params.link_length_2
    canvas = _Canvas((0, 0), 1.15 * (first + second))
    elbow = _rotated([(0, -first)], state.joint_angle1)[0]
    tip = elbow + _rotated([(0, -second)], state.joint_angle1 + state.joint_angle2)[0]
    # the goal is a height of 1, independent of the links' lengths
    canvas.line([(-2, 1), (2, 1)], GREEN, 3)
    canvas.line([(0, 0), elbow], BLUE, 14)
    canvas.line([elbow, tip], SKY, 14)
    for joint in ((0, 0), elbow):
        canvas.disc(joint, 0.07, INK)
    canvas.disc(tip, 0.09, ORANGE)
    return canvas


def _hill(x):
    return 0.45 * np.sin(3 * x) + 0.55


def _mountain_car(env, state, x):
    low, high, goal = (getattr(env.params, name) for name in
                       ("min_position", "max_position", "goal_position"))
    canvas, xs = _Canvas(((low + high) / 2, 0.5), 0.53 * (high - low)), np.linspace(low, high, 80)
    ridge = np.stack([xs, _hill(xs)], 1)
    canvas.polygon([(low, -1), *ridge, (high, -1)], GROUND)
    canvas.line(ridge, GREY, 3)
    foot, car = np.array([goal, _hill(goal)]), np.array([state.position, _hill(state.position)])
    canvas.line([foot, foot + (0, 0.3)], INK, 3)
    canvas.polygon(foot + [(0, 0.3), (0, 0.18), (-0.16, 0.24)], GREEN)
    slope = np.arctan(1.35 * np.cos(3 * state.position))
    body = [(-0.11, 0.03), (0.11, 0.03), (0.11, 0.08), (0.05, 0.13), (-0.06, 0.13), (-0.11, 0.08)]
    canvas.polygon(car + _rotated(body, slope), BLUE)
    for wheel in _rotated([(-0.06, 0.035), (0.06, 0.035)], slope):
        canvas.disc(car + wheel, 0.035, INK)
    return canvas


# ------------------------------------------------------------------------------------------------
# Boards of cells: (row, column) from the top left
# ------------------------------------------------------------------------------------------------


class _Board(_Canvas):
    """Cells [R, C], one unit each, with a thin gap between them."""

    def __init__(self, colours):
        rows, columns = len(colours), len(colours[0])
        super().__init__(((columns - 1) / 2, (1 - rows) / 2), 0.52 * max(rows, columns))
        for row, line in enumerate(colours):
            for column, colour in enumerate(line):
                self.cell((row, column), colour)

    def cell(self, place, colour, share=1.0):
        """Fills the middle of a cell; `share` is the share of its side."""
        half = 0.48 * share
        self.box((place[1], -place[0]), (half, half), colour)

    def piece(self, place, colour):
        """A disc in the middle of a cell."""
        self.disc((place[1], -place[0]), 0.36, colour)


def _minatar(env, state, x):
    cells, colours = x.reshape(10, 10, -1) > 0, list(MINATAR[env.name].values())
    board = _Board([[GROUND] * 10] * 10)
    for place in np.argwhere(cells.any(-1)):
        # overlapping channels are nested, the first innermost, so that none is hidden
        channels = np.flatnonzero(cells[tuple(place)])[::-1]
        for depth, channel in enumerate(channels):
            board.cell(place, colours[channel], 1 - depth / len(channels))
    return board


def _maze(env, state, x):
    board = _Board(np.where(env.env.env_map, GROUND, WALL))
    board.cell(state.goal, GREEN)
    board.piece(state.pos, BLUE)
    return board


def _frozen_lake(env, state, x):
    tiles = np.array([GROUND, WATER, INK, GREEN])  # start, ice, hole, goal
    board = _Board(tiles[np.asarray(env.env.desc)])
    board.piece(divmod(int(state.position), env.env.ncol), BLUE)
    return board


def _catch(env, state, x):
    board = _Board([[GROUND] * env.env.columns] * env.env.rows)
    board.cell((state.paddle_y, state.paddle_x), BLUE)
    board.piece((state.ball_y, state.ball_x), ORANGE)
    return board


def _deep_sea(env, state, x):
    size = env.env.size
    row, column = np.indices((size, size))  # only cells on and below the diagonal are reachable
    water = np.where(column <= row, WATER, GROUND)
    # one extra row: the episode ends on the sea bed, below the last decision
    board = _Board(np.concatenate([water, [[WALL] * size]]))
    board.cell((size - 1, size - 1), GREEN)
    board.piece((state.row, state.column), BLUE)
    return board


def _pong(env, state, x):
    rows, columns, half = env.env.height, env.env.width, env.env.paddle_half_height
    canvas = _Canvas((columns / 2, -rows / 2), 0.52 * columns)
    canvas.box((columns / 2, -rows / 2), (columns / 2, rows / 2), GROUND)
    canvas.line([(columns / 2, 0), (columns / 2, -rows)], PALE, 2)
    for column, row, colour in zip((0, columns - 1), state.paddle_centers, (BLUE, GREY)):
        canvas.box((column + 0.5, -np.floor(row) - 0.5), (0.5, half + 0.5), colour)
    for place, colour in ((state.last_ball_position, PALE), (state.ball_position, VERMILION)):
        row, column = np.clip(np.floor(place), 0, (rows - 1, columns - 1))
        canvas.disc((column + 0.5, -row - 0.5), 0.7, colour)
    return canvas


# ------------------------------------------------------------------------------------------------
# Points in a plane
# ------------------------------------------------------------------------------------------------


def _plane(points, reach):
    """A window around the origin, at least `reach` wide, and up to FAR times for points [N, 2]."""
    reach = min(max(reach, 1.1 * np.abs(points).max()), FAR * reach)
    canvas = _Canvas((0, 0), reach)
    canvas.line([(-reach, 0), (reach, 0)], PALE, 1)
    canvas.line([(0, -reach), (0, reach)], PALE, 1)
    return canvas


def _agent(canvas, place):
    """A disc; outside the window, an arrow at its edge, with the distance from the middle."""
    place, size = np.asarray(place, float), 0.05 * canvas.reach
    if np.abs(place).max() <= canvas.reach - size:
        canvas.disc(place, size, BLUE)
        return
    angle = np.arctan2(place[1], place[0])
    edge = place / np.abs(place).max() * (canvas.reach - 2.2 * size)
    head = size * np.array([(2, 0), (-1.4, 1.4), (-1.4, -1.4)])
    canvas.polygon(edge + _rotated(head, angle), BLUE)
    words = f"outside: {np.hypot(*place):.1f} from the middle"
    canvas.text((-0.95 * canvas.reach, -0.94 * canvas.reach * (1 if place[1] > 0 else -1)), words)


def _point_robot(env, state, x):
    canvas, angles = _plane([state.pos], 1.4), np.linspace(0, np.pi, 60)
    arc = env.params.circle_radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    canvas.line(arc, PALE, 3)
    canvas.disc(state.goal, env.params.goal_radius, GREEN)
    _agent(canvas, state.pos)
    return canvas


def _reacher(env, state, x):
    # Gymnax sums cosines of the raw angles: each is measured from the x axis
    links = np.stack([np.cos(state.angles), np.sin(state.angles)], 1)
    joints = np.concatenate([np.zeros((1, 2)), np.cumsum(links, 0)])
    canvas = _plane([state.goal_xy], 1.15 * len(links))
    canvas.disc(state.goal_xy, 0.2, GREEN)
    for start, end, colour in zip(joints[:-1], joints[1:], (BLUE, SKY) * len(links)):
        canvas.line([start, end], colour, 12)
    for joint in joints[:-1]:
        canvas.disc(joint, 0.07, INK)
    canvas.disc(joints[-1], 0.09, ORANGE)
    return canvas


def _swimmer(env, state, x):
    canvas = _plane([state.xy], 1.25)
    canvas.disc(state.goal_xy, 0.1, GREEN)
    spikes = [radius * np.array([np.cos(angle), np.sin(angle)]) for radius, angle in
              zip((0.12, 0.05) * 8, np.arange(16) * np.pi / 8)]
    for urchin in state.urchin_xys:
        canvas.polygon(urchin + spikes, VERMILION)
    _agent(canvas, state.xy)
    return canvas


# ------------------------------------------------------------------------------------------------
# All others: the observation itself
# ------------------------------------------------------------------------------------------------


def _photograph(x):
    """An image of three channels in colour; of any other number, their mean in grey."""
    canvas = _Canvas((0, 0), 1)
    image = Image.fromarray(x if x.shape[-1] == 3 else x.mean(-1).astype(np.uint8))
    zoom = canvas.image.width / max(image.size)
    size = [round(zoom * side) for side in image.size]
    place = [(canvas.image.width - side) // 2 for side in size]
    canvas.image.paste(image.resize(size, Image.Resampling.NEAREST), tuple(place))
    return canvas


def _bars(x, axis):
    """A bar for each entry, on a linear axis or on one compressed far from 0 that fits any number.

    A bar that leaves the linear axis ends at its end."""
    canvas, width = _Canvas((0, 0), 1.05), 1.6 / len(x)
    for mark in MARKS if axis is None else _ticks(axis):
        height = _height(mark, axis)
        canvas.line([(-0.7, height), (0.95, height)], PALE, 2 if mark else 3)
        canvas.text((-1, height), f"{mark:g}")
    zero, heights = _height(0.0, axis), _height(x, axis)
    for index, height in enumerate(heights):
        centre = -0.65 + (index + 0.5) * width, (height + zero) / 2
        canvas.box(centre, (0.4 * width, max(abs(height - zero) / 2, 0.005)), BLUE)
    return canvas


def _ticks(axis):
    """Four to eight round numbers on an axis."""
    rough = (axis[1] - axis[0]) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - rough))
    return step * np.arange(np.ceil(axis[0] / step - 1e-6), np.floor(axis[1] / step + 1e-6) + 1)


def _height(x, axis):
    """The height of a number in the picture, -0.95 to 0.95."""
    if axis is None:
        return x / (1 + np.abs(x))
    share = (np.clip(x, *axis) - axis[0]) / (axis[1] - axis[0])
    return 1.9 * share - 0.95


DRAWERS = {
    "CartPole-v1": _cartpole,
    "Pendulum-v1": _pendulum,
    "Acrobot-v1": _acrobot,
    "MountainCar-v0": _mountain_car,
    "MountainCarContinuous-v0": _mountain_car,
    "FourRooms-misc": _maze,
    "MetaMaze-misc": _maze,
    "FrozenLake-misc": _frozen_lake,
    "Catch-bsuite": _catch,
    "DeepSea-bsuite": _deep_sea,
    "Pong-misc": _pong,
    "PointRobot-misc": _point_robot,
    "Reacher-misc": _reacher,
    "Swimmer-misc": _swimmer,
} | dict.fromkeys(MINATAR, _minatar)
