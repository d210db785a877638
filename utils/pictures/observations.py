"""Observations as pictures: the world drawn from an observation alone.

This draws imagined observations like real ones. If an observation does not determine the state of
the world, the observation itself is drawn.
"""

from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageColor

from utils.pictures.drawings import GROUND, MINATAR, SIZE, draw, draw_seen
from utils.run.curves import SEED_COLOURS, VERMILION

# The parts of Gymnax's state that a drawing needs, computed from the observation.
STATES = {
    "CartPole-v1": lambda x: {"x": x[0], "theta": x[2]},
    "Pendulum-v1": lambda x: {"theta": np.arctan2(x[1], x[0]), "last_u": 0.0},
    "Acrobot-v1": lambda x: {"joint_angle1": np.arctan2(x[1], x[0]),
                             "joint_angle2": np.arctan2(x[3], x[2])},
    "MountainCar-v0": lambda x: {"position": x[0]},
    "MountainCarContinuous-v0": lambda x: {"position": x[0]},
    "FourRooms-misc": lambda x: {"pos": x[:2], "goal": x[2:]},
    "FrozenLake-misc": lambda x: {"position": np.argmax(x)},
    "Reacher-misc": lambda x: {"angles": np.arctan2(x[2:4], x[:2]), "goal_xy": x[6:]},
    "Swimmer-misc": lambda x: {"urchin_xys": x[:-6].reshape(-1, 2), "xy": x[-6:-4],
                               "goal_xy": x[-2:]},
}


def scene(env, x, axis=None):
    """Draw the world from an observation: x [X] -> uint8 [SIZE, SIZE, 3]

    `axis` is that of `bar_axis`, if the observation itself is drawn."""
    if env.is_image:
        return enlarged(coloured(env, x), SIZE)
    if env.name not in STATES:
        return draw_seen(env, x, axis)
    return draw(env, SimpleNamespace(**STATES[env.name](np.asarray(x, float))), x)


def coloured(env, x):
    """Colour an image of C channels with values 0 to 255: [..., H, W, C] -> [..., H, W, 3]

    Three channels are red, green and blue, unless the environment defines their meaning; otherwise
    each channel has its own colour, and uncertain pixels are pale."""
    shares = np.clip(np.asarray(x, float) / 255.0, 0.0, 1.0)
    if shares.shape[-1] == 3 and env.name not in MINATAR:
        return (255 * shares).astype(np.uint8)
    names = list(MINATAR.get(env.name, {}).values()) or _palette(shares.shape[-1])
    colours = np.array([ImageColor.getrgb(name) for name in names], float)
    total = shares.sum(-1, keepdims=True)
    paint = shares @ colours / np.maximum(total, 1.0)
    return (paint + np.maximum(0.0, 1.0 - total) * ImageColor.getrgb(GROUND)).astype(np.uint8)


def differences(true, predicted):
    """The difference of two images, from white to red: [..., H, W, C] -> uint8 [..., H, W, 3]"""
    error = np.abs(np.asarray(true, float) - np.asarray(predicted, float)) / 255
    error = error.max(-1, keepdims=True)
    red, white = (np.array(ImageColor.getrgb(name), float) for name in (VERMILION, "white"))
    return (white + error * (red - white)).astype(np.uint8)


def _palette(channels):
    return [SEED_COLOURS[n % len(SEED_COLOURS)] for n in range(channels)]


def enlarged(picture, side):
    """Enlarge a picture with sharp pixels onto a white square: -> uint8 [side, side, 3]"""
    zoom = side / max(picture.shape[:2])
    height, width = (round(zoom * size) for size in picture.shape[:2])
    square = Image.new("RGB", (side, side), "white")
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return np.asarray(square)
