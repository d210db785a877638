"""The bouncing square with Gymnax's interface, so that DreamerV3 can play it.

    python dreamer.py --config dreamer.yaml --env utils.dreamer4.square_env:make
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from utils.dreamer4 import square


@dataclass(frozen=True)
class Params:
    """The world of dreamer4.yaml; each can be changed by --env-param."""

    max_steps_in_episode: int = 32
    size: int = 16
    step: int = 1
    smallest: int = 3
    largest: int = 7
    colour_low: int = 128
    colour_high: int = 255
    background_low: int = 0
    background_high: int = 0
    tasks: int = 1


class State(NamedTuple):
    """A square, and the steps of its episode so far."""

    square: square.Square
    time: jax.Array


class Outcome(NamedTuple):
    """What a step returns."""

    x: jax.Array
    state: State
    r: jax.Array
    terminated: jax.Array  # never true
    truncated: jax.Array
    info: dict


class SquareEnv:
    """Images of [size, size, 3] bytes, four actions; an episode ends by its time limit alone."""

    default_params = Params()

    def reset(self, key, params):
        """A new square: -> image, State"""
        state = State(square=square.start(key, params), time=jnp.zeros((), jnp.int32))
        return square.image(state.square, params), state

    def step(self, key, state, action, params):
        """One move: -> Outcome"""
        after = State(square=square.move(state.square, action, params), time=state.time + 1)
        return Outcome(x=square.image(after.square, params), state=after,
                       r=square.reward(after.square, params), terminated=jnp.zeros((), bool),
                       truncated=after.time >= params.max_steps_in_episode, info={})

    def action_space(self, params):
        """Left, right, up, down."""
        return spaces.Discrete(len(square.ACTIONS))

    def observation_space(self, params):
        """Bytes, as pictures are."""
        return spaces.Box(0, 255, (params.size, params.size, 3), jnp.uint8)


def make():
    """-> the environment, its parameters"""
    return SquareEnv(), SquareEnv.default_params
