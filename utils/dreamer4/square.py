"""The bouncing square: a world of images, the policy that left its data, and sets of videos.

A square of one colour moves by `step` pixels a time step, left, right, up or down, and is reflected
at the borders. A task q is a point of the image; the reward of a frame is minus the distance in
pixels between this point and the centre of the square. All functions are pure.

Letters of the shapes: N sequences, T frames, [H, W, 3] an image, `...` any leading axes.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ACTIONS = np.array([[0, -1], [0, 1], [-1, 0], [1, 0]])  # left, right, up, down as (y, x)
UNKNOWN = -1  # the action of a frame whose action nobody knows
# The tasks as points of the image, in shares of its sides: the centre and the corners.
POINTS = np.array([[0.5, 0.5], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])


class Square(NamedTuple):
    """Squares in their worlds: all that does not change, and where they are."""

    place: jax.Array  # [..., 2] y and x of the upper left pixel, int32
    side: jax.Array  # [...] in pixels, int32
    colour: jax.Array  # [..., 3] uint8
    background: jax.Array  # [..., 3] uint8
    q: jax.Array  # [...] task, int32


class Videos(NamedTuple):
    """Recorded play: frame t, its reward, and the action a_t that was chosen there."""

    x: jax.Array  # [N, T, H, W, 3] uint8
    a: jax.Array  # [N, T] 0 ... 3, int32
    r: jax.Array  # [N, T] float32
    q: jax.Array  # [N] task, int32
    labelled: jax.Array  # [N] whether the actions may be used


def start(key, world):
    """A square of random side and colours, somewhere inside of the image: -> Square []"""
    keys = jax.random.split(key, 5)
    side = jax.random.randint(keys[0], (), world.smallest, world.largest + 1)
    colours = ((world.colour_low, world.colour_high), (world.background_low, world.background_high))
    colour, background = (
        jax.random.randint(one, (3,), low, high + 1).astype(jnp.uint8)
        for one, (low, high) in zip(keys[1:3], colours))
    place = jax.random.randint(keys[3], (2,), 0, world.size - side + 1)
    q = jax.random.randint(keys[4], (), 0, world.tasks)
    return Square(place=place, side=side, colour=colour, background=background, q=q)


def move(square, a, world):
    """The square after action a [...], reflected where it would leave the image: -> Square"""
    most = world.size - square.side[..., None]
    place = jnp.abs(square.place + world.step * jnp.asarray(ACTIONS, jnp.int32)[a])
    return square._replace(place=jnp.where(place > most, 2 * most - place, place))


def image(square, world):
    """What the world looks like: -> [..., H, W, 3] uint8"""
    pixels = jnp.arange(world.size)
    first = square.place[..., None]
    inside = (pixels >= first) & (pixels < first + square.side[..., None, None])
    inside = (inside[..., 0, :, None] & inside[..., 1, None, :])[..., None]
    return jnp.where(inside, square.colour[..., None, None, :],
                     square.background[..., None, None, :])


def reward(square, world):
    """Minus the distance in pixels between the square's centre and its task's point: -> [...]"""
    centre = square.place + 0.5 * square.side[..., None]
    away = centre - world.size * jnp.asarray(POINTS, jnp.float32)[square.q]
    return -jnp.sqrt(jnp.sum(jnp.square(away), -1))


def nearest_action(square, world):
    """The action after which the reward is largest, as the best policy chooses it: -> [...]"""
    choices = [reward(move(square, jnp.full(square.side.shape, a), world), world)
               for a in range(len(ACTIONS))]
    return jnp.argmax(jnp.stack(choices, -1), -1)


def hold_actions(key, world, length):
    """The data's policy: hold a direction for U{low ... high} steps, then choose another one

    The recording begins somewhere within a hold. Shapes: -> [length] int32."""
    first_key, key = jax.random.split(key)
    lengths = jnp.arange(world.hold_low, world.hold_high + 1)
    long_key, left_key, a_key = jax.random.split(first_key, 3)
    long = jax.random.choice(long_key, lengths, p=lengths / lengths.sum())
    left = jax.random.randint(left_key, (), 1, long + 1)  # of the hold that is under way

    def step(carry, key):
        a, left = carry
        other_key, hold_key = jax.random.split(key)
        other = (a + jax.random.randint(other_key, (), 1, len(ACTIONS))) % len(ACTIONS)
        again = jax.random.randint(hold_key, (), world.hold_low, world.hold_high + 1)
        after = jnp.where(left > 1, a, other), jnp.where(left > 1, left - 1, again)
        return after, a

    a = jax.random.randint(a_key, (), 0, len(ACTIONS))
    return jax.lax.scan(step, (a, left), jax.random.split(key, length))[1]


def record(key, world, length):
    """One sequence of play by the data's policy: -> Videos [length, ...]"""
    start_key, a_key, label_key = jax.random.split(key, 3)
    actions = hold_actions(a_key, world, length)
    first = start(start_key, world)

    def step(square, a):
        return move(square, a, world), (image(square, world), reward(square, world))

    _, (x, r) = jax.lax.scan(step, first, actions)
    labelled = jax.random.uniform(label_key) >= world.unlabelled
    return Videos(x=x, a=actions, r=r, q=first.q, labelled=labelled)


@partial(jax.jit, static_argnums=(1, 2))
def videos(key, world, number):
    """A set of recorded sequences: -> Videos [number, world.length, ...]"""
    keys = jax.random.split(key, number)
    return jax.lax.map(partial(record, world=world, length=world.length), keys, batch_size=64)
