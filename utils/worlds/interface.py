"""What dreamer.py knows of an environment: rows of its time line, and the shapes of x and a.

gymnax_wrappers.py has the environments that are stepped inside the compiled loop, gymnasium_env.py
those that the host steps beside it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from utils.core.user_env import GuestError


class Step(NamedTuple):
    """What arrives at time t because of a_{t-1}: a row of dreamer.py's time line without a_t."""

    x: jax.Array  # [X] observation
    r: jax.Array  # [] reward, float32
    is_first: jax.Array  # [] first row of an episode
    is_last: jax.Array  # [] last row of an episode, for any reason
    is_terminal: jax.Array  # [] the world ended here; never true for a time limit


class Interface:
    """One environment; hashable, so that it can be a static argument.

    `x_shape`, `x_dtype` and `is_image` describe the observation (`raw_shape` that of the world,
    `classes` how many there are of a whole number), `action_size` and `discrete` the action;
    `solved` is the return that counts as solved (None if undefined), `time_limit` the most actions
    of an episode (None without a limit). `reset(key)` and `step(key, state, action)` are pure and
    return a state and a Step; an environment that is `on_host` only hands the action out there."""

    on_host = False
    start = 0  # the number of the first discrete action

    def fault(self, faults):
        """The line for what the checks of several environments [E] have found; None for nothing."""
        return None

    def describe(self):
        """One line for people: name, observation, action, time limit."""
        shape = "x".join(str(n) for n in self.x_shape)
        kind = f"image of {shape}" if self.is_image else f"vector of {shape}"
        acts = "discrete actions" if self.discrete else "continuous action entries"
        ends = f", at most {self.time_limit:,} steps" if self.time_limit else ""
        return f"{self.name}: {kind} in, {self.action_size} {acts} out{ends}"

    def notes(self, eval_limit):
        """Lines about what is possible but unusual, with evaluations of `eval_limit` steps."""
        if self.time_limit is None or eval_limit >= self.time_limit:
            return self._notes
        return [*self._notes, f"evaluations end after run.eval_limit = {eval_limit:,} of at most "
                f"{self.time_limit:,} steps, and scores count what was earned until then"]

    def array(self, x):
        """An observation, or several, as the world gives it: -> array [..., raw]"""
        return jnp.asarray(x)

    def for_world(self, actions):
        """Actions as `action` gives them, one or several, in the types of the world."""
        return np.asarray(actions)

    def observation(self, x, xp=jnp):
        """Convert raw observations for the agent: float32 vectors or uint8 images

        `xp` is jax.numpy or numpy. Shapes: [..., raw] -> [..., X]."""
        x = xp.asarray(x)
        outer = x.shape[: x.ndim - len(self.raw_shape)]
        if self.classes is not None:
            return (x[..., None] == xp.arange(self.classes)).astype(xp.float32)
        if not self.is_image:
            return x.astype(xp.float32).reshape(*outer, -1)
        x = x if len(self.raw_shape) == 3 else x[..., None]
        if x.dtype == xp.uint8:
            return x
        return xp.round(255.0 * xp.clip(x.astype(xp.float32), 0.0, 1.0)).astype(xp.uint8)

    def action(self, action):
        """Convert the agent's action [A] for the world: a class, or a vector in its bounds."""
        space = self.action_space
        if self.discrete:
            return jnp.argmax(action).astype(jnp.int32) + self.start
        share = 0.5 * (jnp.clip(action, -1.0, 1.0).reshape(space.shape) + 1.0)
        scaled = space.low + share * (space.high - space.low)
        whole = jnp.issubdtype(space.dtype, jnp.integer)
        return (jnp.round(scaled) if whole else scaled).astype(space.dtype)


def is_image(name, shape, observation):
    """Whether run.observation reads arrays of this shape as images. Raises: ValueError."""
    if observation not in ("auto", "vector", "image"):
        raise ValueError(f"run.observation: expected auto, vector or image, found {observation!r}")
    if observation == "image" and len(shape) not in (2, 3):
        raise ValueError(
            f"run.observation: expected an array of 2 or 3 axes for an image, "
            f"{name} gives {len(shape)}")
    looks_like = len(shape) == 3 or (len(shape) == 2 and min(shape) >= 4)
    return observation == "image" or (observation == "auto" and looks_like)


def check_bounds(name, space):
    """Check that each entry of a Box of actions has two ends. Raises: GuestError."""
    low, high = (np.broadcast_to(np.asarray(bound, np.float32), space.shape)
                 for bound in (space.low, space.high))
    if not low.size:
        raise GuestError(f"run.env: {name} has no actions (a Box of {space.shape})")
    with np.errstate(over="ignore"):
        width = high - low
    if not np.isfinite(width).all():
        raise GuestError(
            f"run.env: {name} has actions without bounds, from {low.min():g} to "
            f"{high.max():g}: expected a Box whose ends the agent can try")
    if not (width > 0).all():
        raise GuestError(
            f"run.env: {name} has actions from {low.flat[np.argmin(width)]:g} to "
            f"{high.flat[np.argmin(width)]:g}, expected low below high")
