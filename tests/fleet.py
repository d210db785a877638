"""Small wrong or unusual environments as users bring them, for tests/test_fleet.py.

All walk on a line: the observation is the position and the time, an action of three steps it by -1,
0 or 1, the reward is the new position, and 5 steps are the limit.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces
from gymnax.wrappers import purerl
from gymnax.wrappers.compat import LegacyStepAPIWrapper


@struct.dataclass
class State:
    """Where the walker is, and when."""

    x: jax.Array
    time: int


@struct.dataclass
class Params:
    """Of all walks."""

    max_steps_in_episode: int = 5
    edge: float = 3.0


class Walk(environment.Environment):
    """The right one; it ends for good at position 3."""

    default_params = Params()

    def reset_env(self, key, params):
        return self.show(State(jnp.float32(0), 0)), State(jnp.float32(0), 0)

    def step_env(self, key, state, action, params):
        state = State(state.x + action - 1.0, state.time + 1)
        return self.show(state), state, state.x, state.x >= params.edge, {}

    def show(self, state):
        return jnp.stack([state.x, jnp.float32(state.time)])

    def action_space(self, params):
        return spaces.Discrete(3)

    def observation_space(self, params):
        return spaces.Box(-5, 5, (2,))


class Wrapper(purerl.GymnaxWrapper):
    """Around a Walk; subclasses change what `step` gives."""

    def __init__(self):
        super().__init__(Walk())

    def reset(self, key, params):
        x, state = self._env.reset(key, params)
        return self.change(x), state

    def step(self, key, state, action, params):
        x, *rest = self._env.step(key, state, action, params)
        return self.change(x), *rest

    def change(self, x):
        return x


# ---- Refused -------------------------------------------------------------------------------------


class Blind(Wrapper):
    """Hides the position, but not in the last observation of an episode."""

    def change(self, x):
        return x.at[0].set(0.0)


class Narrow(Wrapper):
    """Gives the position alone, but not in the last observation of an episode."""

    def change(self, x):
        return x[:1]


class Older(Wrapper):
    """Five values, as of Gymnax 0.x: `done` does not tell a time limit from an end."""

    def step(self, key, state, action, params):
        x, state, r, ended, cut, info = self._env.step(key, state, action, params)
        return x, state, r, ended | cut, {}


class Done(Walk):
    """The time limit is inside of `done`, as in environments of Gymnax 0.x."""

    def step_env(self, key, state, action, params):
        x, state, r, ended, info = super().step_env(key, state, action, params)
        return x, state, r, ended | (state.time >= params.max_steps_in_episode), info


class DoneOfSix(Wrapper):
    """The same with six values."""

    def step(self, key, state, action, params):
        x, state, r, ended, cut, info = self._env.step(key, state, action, params)
        return x, state, r, ended | cut, cut, info


class Deaf(Wrapper):
    """Says that no episode ends, though the wrapped environment resets."""

    def step(self, key, state, action, params):
        x, state, r, ended, cut, info = self._env.step(key, state, action, params)
        return x, state, r, ended & False, cut & False, info


class Losing(Wrapper):
    """Resets, and loses the last observation."""

    def step(self, key, state, action, params):
        return *self._env.step(key, state, action, params)[:5], {}


class FromOne(Walk):
    """A scalar from 1 to n where Discrete(n) is 0 to n - 1."""

    def show(self, state):
        return jnp.int32(jnp.minimum(state.time, 2) + 1)

    def observation_space(self, params):
        return spaces.Discrete(3)


class Huge(Walk):
    """A Box without bounds, in Gymnasium's way to write it."""

    def action_space(self, params):
        return spaces.Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (1,))


class Upside(Walk):
    """Bounds the wrong way round."""

    def action_space(self, params):
        return spaces.Box(1.0, -1.0, (1,))


class Idle(Walk):
    """Nothing to choose from."""

    def action_space(self, params):
        return spaces.Discrete(0)


class Handless(Walk):
    """An action without entries."""

    def action_space(self, params):
        return spaces.Box(-1.0, 1.0, (0,))


class Empty(Walk):
    """Nothing to see."""

    def show(self, state):
        return jnp.zeros((0,))


class Keys(Walk):
    """A random key to see."""

    def show(self, state):
        return jax.random.key(0)


class Complex(Walk):
    """Complex numbers to see."""

    def show(self, state):
        return jnp.stack([state.x, state.x]) * 1j


# ---- Accepted, and played as they say ------------------------------------------------------------


class Scaled(Wrapper):
    """Changes both observations, as it should."""

    def change(self, x):
        return 0.1 * x

    def step(self, key, state, action, params):
        *rest, info = super().step(key, state, action, params)
        return *rest, info | {"final_observation": self.change(info["final_observation"])}


def legacy():
    """Gymnax's own wrapper of five values: its info tells the time limit."""
    return LegacyStepAPIWrapper(Walk()), Params()


class OtherReward(Walk):
    """Overrides `step` of a class that has `step_env`."""

    def step(self, key, state, action, params):
        x, state, r, *rest = super().step(key, state, action, params)
        return x, state, r + 100.0, *rest


class OtherStart(Walk):
    """Overrides `reset` of a class that has `reset_env`."""

    def reset(self, key, params):
        state = State(jnp.float32(-2), 0)
        return self.show(state), state


class Fingers(Walk):
    """Whole numbers from 0 to 3 as the action; the reward is the one that arrived."""

    def step_env(self, key, state, action, params):
        x, state, _, *rest = super().step_env(key, state, 1.0, params)
        return x, state, action.astype(jnp.float32)[0], *rest

    def action_space(self, params):
        return spaces.Box(0, 3, (1,), jnp.int32)


class Lopsided(Fingers):
    """One long way up and a short one down."""

    def action_space(self, params):
        return spaces.Box(jnp.array([-1.0]), jnp.array([1e30]), (1,))


class Short(Walk):
    """Each episode has one action."""

    default_params = Params(max_steps_in_episode=1)


class Unlimited(Walk):
    """A time limit that never comes."""

    default_params = Params(max_steps_in_episode=float("inf"))


@dataclasses.dataclass(frozen=True)
class Wide:
    """Parameters without a limit."""

    edge: float = float("inf")


class Endless(Walk):
    """No time limit and no end."""

    default_params = Wide()

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)


@struct.dataclass
class Compact:
    """The state of Small."""

    x: jax.Array
    time: int
    small: jax.Array
    tiny: jax.Array


class Small(Walk):
    """A state with types that NumPy does not know."""

    def reset_env(self, key, params):
        x, state = super().reset_env(key, params)
        return x, Compact(state.x, state.time, jnp.bfloat16(1.5), jnp.float8_e4m3fn(0.5))

    def step_env(self, key, state, action, params):
        x, after, *rest = super().step_env(key, State(state.x, state.time), action, params)
        small = state.small + jnp.bfloat16(0.5)
        return x, Compact(after.x, after.time, small, state.tiny), *rest


# ---- Images --------------------------------------------------------------------------------------


class Ids(Walk):
    """A uint8 image of 0 and 1, of which 255 would be white."""

    def show(self, state):
        return jnp.zeros((8, 8), jnp.uint8).at[state.time, 0].set(1)


class ChannelsFirst(Walk):
    """An image in the order of PyTorch."""

    def show(self, state):
        return jnp.full((3, 8, 8), state.time / 5.0)


# ---- Wrong later than random play is checked -----------------------------------------------------


class Late(Endless):
    """`late` is what changes after 150 steps."""

    late = jnp.nan

    def show(self, state):
        wrong = jnp.where(state.time < 150, 0.5, self.late)
        return jnp.stack([jnp.float32(0.5), wrong])


class LateReward(Endless):
    """A reward that is infinite after 150 steps."""

    def step_env(self, key, state, action, params):
        x, state, _, *rest = super().step_env(key, state, action, params)
        return x, state, jnp.where(state.time < 150, 0.0, -jnp.inf), *rest


class LateImage(Late):
    """A pixel beyond 1 after 150 steps."""

    late = 1.5

    def show(self, state):
        return jnp.zeros((4, 5)).at[1, 2].set(super().show(state)[1])


class LateClass(FromOne, Endless):
    """A class that does not exist after 150 steps."""

    def show(self, state):
        return jnp.where(state.time < 150, 0, 3)
