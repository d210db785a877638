"""The only file that knows Gymnax: any of its environments as rows of the time line.

One environment, pure functions; callers vectorise with `jax.vmap`. Actions come in as the agent
makes them (one-hot, or a vector in [-1, 1]); what goes out is a `Step` whose observation is a
float32 vector or a uint8 image.
"""

import difflib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from utils.core import user_env
from utils.core.lazy import import_when_used

import_when_used("seaborn", "matplotlib.pyplot")  # for gymnax's own drawings: a second to import

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

# The returns at which Gym's registry calls an environment solved.
SOLVED = {
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -110.0,
    "MountainCarContinuous-v0": 90.0,
    "FrozenLake-misc": 0.70,
}


# The methods that are used, and what they are called with. `reset_env` and `step_env`, which never
# reset by themselves, stand in for the first two where an environment's own class has both (what a
# wrapper merely hands through would leave the wrapper out).
RESET, STEP = ("key", "params"), ("key", "state", "action", "params")
SPACES = {"action_space": ("params",), "observation_space": ("params",)}

BUILT_IN = frozenset(gymnax.registered_envs)
MNIST, MNIST_FOLDER = "MNISTBandit-bsuite", Path("/tmp/mnist")  # where Gymnax looks for its data
MNIST_FILES = tuple(f"{part}-ubyte.gz" for part in (
    "train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"))


class Step(NamedTuple):
    """What arrives at time t because of a_{t-1}: the time line of dreamer.py, without a_t."""

    x: jax.Array  # [X] observation
    r: jax.Array  # [] reward, float32
    is_first: jax.Array  # [] first row of an episode
    is_last: jax.Array  # [] last row of an episode, for whatever reason
    is_terminal: jax.Array  # [] the world ended here; never true for a time limit


class Outcome(NamedTuple):
    """What a step of an environment's own gives."""

    x: Any
    inner: Any
    r: Any
    ended: Any  # the world ended
    cut: Any  # a time limit did


class EnvState(NamedTuple):
    """Gymnax's own state, and whether its episode is over."""

    inner: Any
    over: jax.Array


class Environment:
    """One environment with Gymnax's interface; hashable, so that it may be a static argument.

    `x_shape`, `x_dtype` and `is_image` describe the observation (`raw_shape` Gymnax's own),
    `action_size` and `discrete` the action, `solved` is the return that counts as solved (None
    where nobody set one)."""

    def __init__(self, name, env, params, observation):
        self.name, self.env, self.params = name, env, params
        self.solved = SOLVED.get(name)
        own = hasattr(type(env), "reset_env") and hasattr(type(env), "step_env")
        used = {"reset_env": RESET, "step_env": STEP} if own else {"reset": RESET, "step": STEP}
        self._reset, self._step, acts, seen = user_env.methods(name, env, used | SPACES)
        self.action_space = _action_space(name, user_env.call(name, acts, params))
        self.discrete = isinstance(self.action_space, spaces.Discrete)
        space, self._seen = self.action_space, self._raw()
        self.action_size = int(space.n if self.discrete else max(1, _size(space.shape)))
        self.raw_shape, declared = self._seen.shape, user_env.call(name, seen, params)
        self.classes = declared.n if self.raw_shape == () and hasattr(declared, "n") else None
        self.is_image = _is_image(name, self.raw_shape, observation)
        self.is_bytes = self._seen.dtype == jnp.uint8
        self.x_shape, self.x_dtype = self._kind(self._seen)

    def reset(self, key):
        """The first row of an episode: -> EnvState, Step"""
        x, inner = self._fresh(key)
        no, yes = jnp.zeros((), bool), jnp.ones((), bool)
        return EnvState(inner, no), Step(self.observation(x), jnp.zeros(()), yes, no, no)

    def step(self, key, state, action):
        """Carry out an action [A] -> EnvState, Step

        After the last row of an episode the action is ignored and the next episode's first row
        comes."""
        step_key, reset_key = jax.random.split(key)
        x, inner, *numbers = self._played(step_key, state.inner, self.action(action))
        user_env.same_shapes(self.name, "observation", self._seen, x)
        user_env.same_shapes(self.name, "state", state.inner, inner)
        kinds = {"reward": jnp.float32, "terminated": bool, "truncated": bool}
        r, ended, cut = (user_env.scalar(self.name, what, number, kind)
                         for number, (what, kind) in zip(numbers, kinds.items()))
        no, over = jnp.zeros((), bool), ended | cut
        played = EnvState(inner, over), Step(self.observation(x), r, no, over, ended)
        fresh = self.reset(reset_key)
        return jax.tree.map(lambda new, old: jnp.where(state.over, new, old), fresh, played)

    def _fresh(self, key):
        """Observation and state with which an episode begins."""
        found = user_env.call(self.name, self._reset, key, self.params)
        if not isinstance(found, tuple) or len(found) != 2:
            raise _wrong(self.name, "reset", found, "2: observation, state")
        return found

    def _played(self, key, inner, action):
        """A step of the environment's own -> Outcome

        A `step` that resets by itself hands the last observation over in its info."""
        found = user_env.call(self.name, self._step, key, inner, action, self.params)
        fits = isinstance(found, tuple) and len(found) in (5, 6) and isinstance(found[-1], dict)
        if not fits:
            raise _wrong(self.name, "step", found, "5 or 6: observation, state, reward, "
                         "terminated, (truncated,) info, the last a dict")
        x, inner, r, ended, *cut, info = found
        if not cut and hasattr(self.env, "is_truncated"):
            cut = [user_env.call(self.name, self.env.is_truncated, inner, self.params)]
        return Outcome(info.get("final_observation", x), inner, r, ended, *(cut or [False]))

    def _raw(self):
        """Shape and dtype of the raw observation: of the array, declared bounds may be wrong."""
        with user_env.Guest(f"run.env: {self.name}"):  # a state may be nothing that jax knows
            raw, _ = jax.eval_shape(self._fresh, jax.random.key(0))
        if not isinstance(raw, jax.ShapeDtypeStruct):
            raise user_env.GuestError(f"run.env: {self.name} has observations of type "
                                    f"{type(raw).__name__}, expected one array")
        return raw

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


def configured(run):
    """The environment that the section `run` of a configuration asks for; raises as `make`."""
    return make(run.env, run.observation, run.env_params)


def make(name, observation="auto", changes=None):
    """An environment: of Gymnax by its id, or the user's own as "package.module:factory".

    A factory gives an object with Gymnax's interface, alone or as (object, parameters); the name
    behind the colon may also be an id that the module registers with Gymnax. `changes` maps names
    of the environment's parameters to other values; `observation` is "auto", "vector" or "image":
    images are arrays of three axes, or of two with at least 4 pixels each; a scalar integer becomes
    one-hot; the rest becomes one flat vector.

    Raises: ValueError, one clear line, for an unknown id or what cannot be learned from."""
    env, params = _own(name) if ":" in name else _registered(name)
    params = user_env.with_values(name, params, changes)
    environment = Environment(name, env, params, observation)
    if name not in BUILT_IN or changes:
        _try_out(environment)
    return environment


def listing(references):
    """A table of Gymnax's environments: what goes in and comes out, limits, known returns.

    `references` maps their names to a Reference of utils/core/references.py."""
    lines = [f"{'environment':26}{'observation':14}{'actions':10}{'limit':>6}{'reference':>11}  of"]
    for name, reference in references.items():
        env = make(name)
        seen = "x".join(str(n) for n in env.raw_shape) or f"one of {env.classes}"
        acts = env.action_size if env.discrete else f"{env.action_size} in ±{_bound(env):g}"
        known = "-" if reference.score is None else f"{reference.score:g}"
        lines.append(f"{name:26}{seen:14}{acts:<10}{int(env.params.max_steps_in_episode):6}"
                     f"{known:>11}  {reference.source}")
    return "\n".join(lines)


def _bound(env):
    """The largest bound of continuous actions."""
    return float(np.max(np.abs(env.action_space.high)))


def _registered(name):
    """(environment, parameters) by an id that Gymnax knows."""
    if name not in gymnax.registered_envs:
        near = difflib.get_close_matches(name, gymnax.registered_envs, 3, 0.3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise user_env.GuestError(
            f"run.env: expected one of --list-envs or your own package.module:factory, "
            f"found {name!r}{hint}")
    if name == MNIST and not all((MNIST_FOLDER / file).is_file() for file in MNIST_FILES):
        raise user_env.GuestError(
            f"run.env: {name} wants to download its data; expected in {MNIST_FOLDER}: "
            f"{', '.join(MNIST_FILES)}")
    return user_env.call(name, gymnax.make, name)


def _own(name):
    """(environment, parameters) of the user's own environment."""
    factory = user_env.find(name, gymnax.registered_envs)
    if factory is None:
        return _registered(name.partition(":")[2])
    if not callable(factory):
        raise user_env.GuestError(
            f"run.env: {name} is of type {type(factory).__name__}, expected a class or function "
            "that gives an environment")
    made = user_env.call(name, factory)
    if isinstance(made, tuple) and len(made) == 2:
        return made
    return made, user_env.attribute(name, made, "default_params")


def _try_out(env):
    """Play some steps at random: is all that the environment gives finite, and an image one?

    Raises: ValueError naming the first entry that is not, and when."""
    episodes, steps = 8, 100
    raw = Environment(env.name, env.env, env.params, "vector")  # as it is, also where it is pixels
    reset_key, play_key = jax.random.split(jax.random.key(0))
    with user_env.Guest(f"run.env: {env.name}"):
        x, r = jax.device_get(_at_random(
            raw, jax.random.split(reset_key, episodes), jax.random.split(play_key, steps)))
    for what, values in (("observation", x), ("reward", r[..., None])):
        found = np.argwhere(~np.isfinite(values))
        if len(found):
            step, episode, entry = (int(n) for n in found[0])
            place = f" entry {entry} of" if what == "observation" else ""
            raise user_env.GuestError(
                f"run.env: {env.name}:{place} the {what} is {values[step, episode, entry]} "
                f"after {step} steps of random actions, expected finite numbers")
    if env.is_image and not env.is_bytes and (x.min() < 0 or x.max() > 1):
        raise user_env.GuestError(
            f"run.env: {env.name}: an image has values from {x.min():g} to {x.max():g}, expected "
            "0 to 1, or uint8 (run.observation=vector takes any)")


@partial(jax.jit, static_argnums=0)
def _at_random(env, reset_keys, keys):
    """Observations [steps, episodes, X] and rewards [steps, episodes] of random actions."""

    def step(carry, key):
        state, now = carry
        action_key, step_key = jax.random.split(key)
        actions = jax.random.normal(action_key, (len(now.r), env.action_size))
        keys = jax.random.split(step_key, len(now.r))
        return jax.vmap(env.step)(keys, state, actions), (now.x, now.r)

    _, rows = jax.lax.scan(step, jax.vmap(env.reset)(reset_keys), keys)
    return rows


def _wrong(name, what, found, expected):
    count = f"{len(found)} values" if isinstance(found, tuple) else f"a {type(found).__name__}"
    return user_env.GuestError(f"run.env: {name}: a {what} gives {count}, expected {expected}")


def _size(shape):
    size = 1
    for n in shape:
        size *= n
    return size


def _action_space(name, space):
    if not isinstance(space, (spaces.Discrete, spaces.Box)):
        raise user_env.GuestError(
            f"run.env: {name} has actions of type {type(space).__name__}, expected Discrete or Box")
    if isinstance(space, spaces.Box):
        bounds = np.broadcast_to(space.low, space.shape), np.broadcast_to(space.high, space.shape)
        if not np.isfinite(bounds).all():
            raise user_env.GuestError(f"run.env: {name} has actions without bounds")
    return space


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
