"""The only file that knows Gymnax: any of its environments as rows of the time line.

One environment, pure functions; callers vectorise with `jax.vmap`. Actions come in as the agent
makes them (one-hot, or a vector in [-1, 1]); what goes out is a `Step` whose observation is a
float32 vector or a uint8 image.
"""

import difflib
from typing import Any, NamedTuple

from utils.lazy import import_when_used

import_when_used("seaborn", "matplotlib.pyplot")  # for gymnax's own drawings: a second to import

import gymnax
import jax
import jax.numpy as jnp
from gymnax.environments import spaces

# The returns at which Gym's registry calls an environment solved.
SOLVED = {
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -110.0,
    "MountainCarContinuous-v0": 90.0,
    "FrozenLake-misc": 0.70,
}


class Step(NamedTuple):
    """What arrives at time t because of a_{t-1}: the time line of dreamer.py, without a_t."""

    x: jax.Array  # [X] observation
    r: jax.Array  # [] reward, float32
    is_first: jax.Array  # [] first row of an episode
    is_last: jax.Array  # [] last row of an episode, for whatever reason
    is_terminal: jax.Array  # [] the world ended here; never true for a time limit


class EnvState(NamedTuple):
    """Gymnax's own state, and whether its episode is over."""

    inner: Any
    over: jax.Array


class Environment:
    """One Gymnax environment; hashable by identity, so that it may be a static argument.

    `x_shape`, `x_dtype` and `is_image` describe the observation (`raw_shape` Gymnax's own),
    `action_size` and `discrete` the action, `solved` is the return that counts as solved (None
    where nobody set one)."""

    def __init__(self, name, env, params, observation):
        self.name, self.env, self.params = name, env, params
        self.solved = SOLVED.get(name)
        self.action_space = _action_space(name, env.action_space(params))
        self.discrete = isinstance(self.action_space, spaces.Discrete)
        space, raw = self.action_space, _observation(name, env, params)
        self.action_size = int(space.n if self.discrete else max(1, _size(space.shape)))
        self.raw_shape, declared = raw.shape, env.observation_space(params)
        self.classes = declared.n if raw.shape == () and hasattr(declared, "n") else None
        self.is_image = _is_image(name, raw.shape, observation)
        self.x_shape, self.x_dtype = self._kind(raw)

    def reset(self, key):
        """The first row of an episode: -> EnvState, Step"""
        x, inner = self.env.reset_env(key, self.params)
        no, yes = jnp.zeros((), bool), jnp.ones((), bool)
        return EnvState(inner, no), Step(self.observation(x), jnp.zeros(()), yes, no, no)

    def step(self, key, state, action):
        """Carry out an action [A] -> EnvState, Step

        After the last row of an episode the action is ignored and the next episode's first row
        comes. `step_env` is called, never `step`: that one resets by itself and hides the last
        observation."""
        step_key, reset_key = jax.random.split(key)
        action = self.action(action)
        x, inner, r, ended, _ = self.env.step_env(step_key, state.inner, action, self.params)
        ended = jnp.asarray(ended, bool)
        over = ended | jnp.asarray(self.env.is_truncated(inner, self.params), bool)
        no, r = jnp.zeros((), bool), jnp.asarray(r, jnp.float32).reshape(())
        played = EnvState(inner, over), Step(self.observation(x), r, no, over, ended)
        fresh = self.reset(reset_key)
        return jax.tree.map(lambda new, old: jnp.where(state.over, new, old), fresh, played)

    def describe(self):
        """One line for people: name, observation, action, time limit."""
        shape = "x".join(str(n) for n in self.x_shape)
        seen = f"image of {shape}" if self.is_image else f"vector of {shape}"
        acts = "discrete actions" if self.discrete else "continuous action entries"
        limit = getattr(self.params, "max_steps_in_episode", None)
        ends = f", at most {int(limit)} steps" if limit else ""
        return f"{self.name}: {seen} in, {self.action_size} {acts} out{ends}"

    def _kind(self, raw):
        """Shape and dtype of what `observation` makes of a raw observation."""
        x = jax.eval_shape(self.observation, raw)
        return x.shape, x.dtype

    def observation(self, x):
        """What the agent sees of a raw observation: a float32 vector or a uint8 image."""
        x = jnp.asarray(x)
        if self.classes is not None:
            return jax.nn.one_hot(x, self.classes)
        if not self.is_image:
            return x.astype(jnp.float32).reshape(-1)
        x = x if x.ndim == 3 else x[..., None]
        if x.dtype == jnp.uint8:
            return x
        return jnp.round(255.0 * jnp.clip(x.astype(jnp.float32), 0.0, 1.0)).astype(jnp.uint8)

    def action(self, action):
        """Gymnax's action for the agent's [A]: a class, or a vector scaled to the bounds."""
        space = self.action_space
        if self.discrete:
            return jnp.argmax(action).astype(jnp.int32)
        share = 0.5 * (jnp.clip(action, -1.0, 1.0).reshape(space.shape) + 1.0)
        return (space.low + share * (space.high - space.low)).astype(space.dtype)


def make(name, observation="auto"):
    """An environment by its Gymnax id; `observation` is "auto", "vector" or "image".

    Images are arrays of three axes, or of two with at least 4 pixels each; a scalar integer
    becomes one-hot; the rest becomes one flat vector.

    Raises: ValueError, one clear line, for an unknown id or a space that is not supported."""
    if name not in gymnax.registered_envs:
        near = difflib.get_close_matches(name, gymnax.registered_envs, 3, 0.3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"run.env: expected one of gymnax.registered_envs, found {name!r}{hint}")
    if name == "MNISTBandit-bsuite":
        raise ValueError(
            f"run.env: {name} downloads a data set when it is made and is not supported")
    env, params = gymnax.make(name)
    return Environment(name, env, params, observation)


def _size(shape):
    size = 1
    for n in shape:
        size *= n
    return size


def _action_space(name, space):
    if not isinstance(space, (spaces.Discrete, spaces.Box)):
        raise ValueError(
            f"run.env: {name} has actions of type {type(space).__name__}, expected Discrete or Box")
    return space


def _observation(name, env, params):
    """Shape and dtype of the raw observation: of the array itself, declared bounds may be wrong."""
    raw, _ = jax.eval_shape(env.reset_env, jax.random.key(0), params)
    if not isinstance(raw, jax.ShapeDtypeStruct):
        raise ValueError(
            f"run.env: {name} has observations of type {type(raw).__name__}, expected one array")
    return raw


def _is_image(name, shape, observation):
    if observation not in ("auto", "vector", "image"):
        raise ValueError(f"run.observation: expected auto, vector or image, found {observation!r}")
    can_be = len(shape) in (2, 3)
    if observation == "image" and not can_be:
        raise ValueError(
            f"run.observation: expected an array of 2 or 3 axes for an image, "
            f"{name} gives {len(shape)}")
    looks_like = len(shape) == 3 or (len(shape) == 2 and min(shape) >= 4)
    return observation == "image" or (observation == "auto" and looks_like)
