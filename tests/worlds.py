"""Tiny worlds with known answers, for tests/test_tiny_worlds.py.

All worlds of `Worlds` are learnt in one run: each environment of the run stays in one world, which
the observation names. At every row a world shows a signal s_t of -1, 0 or +1; the two actions a_t
are -1 and +1. `Coin` tosses a coin; `Circle` stands in for networks that have learnt a table.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gymnax_wrappers import Step
from jaxmodels_nnx import Categorical

# Where s_t is a toss at every row, an episode is cut at any row with the same chance: nothing
# foretells the time limit. So it is in the constant world.
NAMES = (
    "cue",  # s_0 is a toss, then 0; r_3 = 1 if a_2 = s_0, else all is 0; the world ends at t = 3
    "constant",  # each reward is 1
    "shown",  # s_t is a toss; r_t = (1 + s_t) / 2
    "late",  # s_t is a toss; r_t = s_{t-1}
    "arms",  # s_t is a toss; r_t = 1 if a_{t-1} = s_{t-1}, else 0
    "ending",  # r_t = 1; the world ends at t = 3
    "boundary",  # s_0 is a toss, then 0; r_1 = s_0 of the episode before; cut at t = 1
)
CUE, CONSTANT, SHOWN, LATE, ARMS, ENDING, BOUNDARY = range(len(NAMES))
CUT = 0.15  # chance of being cut at a given row
LOUD = 10.0  # multiplies the observation's entries, so that no latent is saved on them
TAILS_AGAIN = 0.1  # chance of tails after tails in `Coin`
TINY = 1e-30  # keeps logarithms finite


class Place(NamedTuple):
    """Where an environment stands: t counts in the episode, signals s_t ... s_{t-3} across it."""

    world: jax.Array
    t: jax.Array
    signals: jax.Array
    over: jax.Array


class Worlds:
    """All worlds in one; x is the signal and one entry for each world."""

    x_shape, x_dtype, is_image, action_size, discrete = (1 + len(NAMES),), "float32", False, 2, True

    def reset(self, key):
        """The first row of an episode, in the first world."""
        return self.enter(key, 0)

    def enter(self, key, world):
        """The first row of an episode in this world: an environment never leaves its world."""
        place = Place(jnp.int32(world), jnp.int32(0), jnp.zeros(4), jnp.zeros((), bool))
        return self._arrive(key, place, jnp.zeros(2))

    def step(self, key, place, action):
        """The next row; after the last row of an episode, the first row of the next one."""
        t = jnp.where(place.over, 0, place.t + 1)
        return self._arrive(key, place._replace(t=t), action)

    def _arrive(self, key, place, action):
        toss_key, cut_key = jax.random.split(key)
        world, t, signals, _ = place
        tossing = jnp.isin(world, jnp.array([SHOWN, LATE, ARMS]))
        once = jnp.isin(world, jnp.array([CUE, BOUNDARY]))
        toss = jax.random.rademacher(toss_key, (1,), jnp.float32)
        signals = jnp.concatenate([toss * (tossing | (once & (t == 0))), signals[:-1]])
        ended = jnp.isin(world, jnp.array([CUE, ENDING])) & (t == 3)
        cut = (tossing | (world == CONSTANT)) & (t > 0) & jax.random.bernoulli(cut_key, CUT)
        over = ended | cut | ((world == BOUNDARY) & (t == 1))
        r = jnp.where(t == 0, 0.0, self._reward(world, t, signals, action[1] - action[0]))
        x = LOUD * jnp.concatenate([signals[:1], jax.nn.one_hot(world, len(NAMES))])
        return Place(world, t, signals, over), Step(x, r, t == 0, over, ended)

    def _reward(self, world, t, signals, action):
        rewards = {
            CUE: (t == 3) & (action == signals[3]), CONSTANT: 1.0, SHOWN: (1.0 + signals[0]) / 2.0,
            LATE: signals[1], ARMS: action == signals[1], ENDING: 1.0, BOUNDARY: signals[3]}
        return jnp.stack([jnp.float32(rewards[i]) for i in range(len(NAMES))])[world]


class Coin:
    """x is positive for heads: a fair coin after heads, but tails rarely follows tails."""

    x_shape, x_dtype, is_image, action_size, discrete = (1,), "float32", False, 1, True

    def reset(self, key):
        """Heads, as the first row of one episode without end."""
        return self._arrive(jnp.ones((), bool), jnp.ones((), bool))

    def step(self, key, heads, action):
        """The next toss."""
        chance = jnp.where(heads, 0.5, 1.0 - TAILS_AGAIN)
        return self._arrive(jax.random.bernoulli(key, chance), jnp.zeros((), bool))

    def _arrive(self, heads, is_first):
        no, x = jnp.zeros((), bool), jnp.where(heads, LOUD, -LOUD)[None]
        return heads, Step(x, jnp.zeros(()), is_first, no, no)


class Circle:
    """Networks that know a circle of n states: a step leads on to the next state or stays in this.

    r, c and values are tables [n] of the state arrived at; `onward` is the policy's chance to go
    on. h is the state as one-hot, z a single latent of a single class."""

    def __init__(self, tables, onward, bins):
        self.world, self.onward = self, onward
        r, c, values = tables
        self.r_logits, self.v_logits = twohot_logits(r, bins), twohot_logits(values, bins)
        self.c_logits = jnp.log(c + TINY) - jnp.log(1.0 - c)

    def actor(self, s):
        """Action 0 stays, action 1 goes on."""
        logits = jnp.log(jnp.array([1.0 - self.onward, self.onward]) + TINY)
        return Categorical(jnp.broadcast_to(logits, (*s.shape[:-1], 2)))

    def sequence_step(self, latent, a):
        """h one state further where a is (0, 1)."""
        return a[:, :1] * latent.h + a[:, 1:] * jnp.roll(latent.h, 1, axis=1)

    def prior_probs(self, h):
        """The only class, for sure."""
        return jnp.ones((len(h), 1, 1))

    def reward(self, s):
        """Two-hot logits of r."""
        return self.r_logits[self._state(s)]

    def continue_(self, s):
        """The logit of c."""
        return self.c_logits[self._state(s), None]

    def critic(self, s):
        """Two-hot logits of the values."""
        return self.v_logits[self._state(s)]

    def _state(self, s):
        return jnp.argmax(s[..., :-1], -1)


def twohot_logits(y, bins):
    """Logits [n, V] whose two-hot mean is y [n]."""
    weights = jax.vmap(partial(jnp.interp, y, bins), out_axes=1)(jnp.eye(len(bins)))
    return jnp.log(weights + TINY)
