"""Gymnasium's environments, and the user's own with its interface, as rows of the time line.

Under `jax.jit` such an environment only hands the action out, in its state: the host carries it out
(`Worlds`) and puts what arrives in its place. So dreamer.play is the same for every environment.
"""

import importlib
import importlib.util
import inspect
import math
import re
import warnings
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from utils.core import user_env
from utils.core.cli import GYMNASIUM
from utils.core.config import nearest
from utils.core.user_env import Guest, GuestError
from utils.worlds.host import RENDERED, Worlds
from utils.worlds.interface import Interface, Step, check_bounds, is_image

PREFIX = f"{GYMNASIUM}:"
# Packages whose environments Gymnasium knows once they are imported.
PACKAGES = {"ALE": "ale_py", "dm_control": "shimmy"}
INSTALL = {"ale_py": "ale-py", "shimmy": '"shimmy[dm-control]"'}
TRIED = 100  # random steps before training
LARGE = 128  # pixels on a side: a larger image is named
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of Gymnasium's warnings


class HostState(NamedTuple):
    """The action that the host is to carry out; no fault, for the host raises errors itself."""

    action: jax.Array
    fault: Any = None


class Actions(NamedTuple):
    """A Box of actions in the numbers that jax computes with."""

    low: np.ndarray
    high: np.ndarray
    shape: tuple
    dtype: Any


class HostEnvironment(Interface):
    """An environment with Gymnasium's interface, which the host steps.

    `create(render_mode=None)` makes one more of its worlds.

    Raises: GuestError, here and in its Worlds."""

    on_host = True

    def __init__(self, name, create, observation="auto"):
        self.name, self._create, self._notes = name, create, []
        world = self.create()
        self.space, space = (getattr(world, f"{what}_space", None)
                             for what in ("observation", "action"))
        self._read_actions(space)
        self._read_observations(observation)
        self.solved = getattr(world.spec, "reward_threshold", None)
        self.time_limit = _time_limit(world)
        world.close()

    def create(self, render_mode=None):
        """One world; what Gymnasium warns of becomes a note. Raises: GuestError."""
        with warnings.catch_warnings(record=True) as warned, Guest(f"run.env: {self.name}"):
            warnings.simplefilter("always")
            world = self._create(render_mode)
        self._notes += [note for note in _notes(warned) if note not in self._notes]
        return world

    def _read_actions(self, space):
        self.world_actions = self.action_space = space
        if not isinstance(space, (spaces.Discrete, spaces.Box)):
            raise GuestError(f"run.env: {self.name} has actions of type {type(space).__name__}, "
                             "expected Discrete or Box")
        self.discrete = isinstance(space, spaces.Discrete)
        if self.discrete:
            self.start, self.action_size = int(space.start), int(space.n)
            return
        check_bounds(self.name, space)
        kind = np.int32 if np.issubdtype(space.dtype, np.integer) else np.float32
        low, high = (np.asarray(end, np.float32) for end in (space.low, space.high))
        self.action_space = Actions(low, high, space.shape, kind)
        self.action_size = math.prod(space.shape)

    def _read_observations(self, observation):
        space = self.space
        if not isinstance(space, spaces.Space):
            raise GuestError(f"run.env: {self.name} has an observation_space of type "
                             f"{type(space).__name__}, expected one of gymnasium.spaces")
        self.flattened = not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiBinary))
        if self.flattened:
            with Guest(f"run.env: {self.name}"):
                space = spaces.flatten_space(space)
        if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiBinary)):
            raise GuestError(f"run.env: {self.name} has observations of type "
                             f"{type(self.space).__name__}, of changing length: expected a space "
                             "that gymnasium.spaces.flatten_space makes a Box")
        self.classes = int(space.n) if isinstance(space, spaces.Discrete) else None
        self.first_class = int(space.start) if self.classes else 0
        self.raw_shape, self.raw_dtype = space.shape, space.dtype
        if not math.prod(space.shape) or space.dtype.kind not in "biuf":
            raise GuestError(f"run.env: {self.name} has observations {space.dtype}"
                             f"{list(space.shape)}, expected at least one real number")
        self.is_image = is_image(self.name, self.raw_shape, observation)
        self.is_bytes = space.dtype == np.uint8
        x = self.observation(np.zeros(self.raw_shape, self.raw_dtype), np)
        self.x_shape, self.x_dtype = x.shape, x.dtype
        if self.flattened and any(len(part.shape or ()) == 3 for part in _parts(self.space)):
            self._notes.append("a picture inside the observation is read as numbers in a row: a "
                               "world whose whole observation is the picture is learned better")
        if self.is_image and max(self.x_shape[:2]) > LARGE:
            self._notes.append(
                f"images of {self.x_shape[0]}x{self.x_shape[1]} are slow to learn from: "
                "gymnasium.wrappers.ResizeObservation(env, (64, 64)) shrinks them")

    def reset(self, key):
        """The place of a first row, which the host fills in: -> HostState, Step"""
        space = () if self.discrete else self.action_space.shape
        kind = jnp.int32 if self.discrete else self.action_space.dtype
        return HostState(jnp.zeros(space, kind)), self._blank(is_first=True)

    def step(self, key, state, action):
        """Hand out an action [A], and the place of the row that will arrive: -> HostState, Step"""
        return HostState(self.action(action)), self._blank(is_first=False)

    def _blank(self, is_first):
        no = jnp.zeros((), bool)
        return Step(x=jnp.zeros(self.x_shape, self.x_dtype), r=jnp.zeros(()),
                    is_first=jnp.array(is_first), is_last=no, is_terminal=no)

    def array(self, x):
        """An observation of the world, or several: -> array [..., raw]

        Those of spaces that are flattened (Dict, Tuple ...) are several if given as a list."""
        if not self.flattened:
            return np.asarray(x) - self.first_class if self.first_class else np.asarray(x)
        if isinstance(x, list):
            return np.stack([spaces.flatten(self.space, one) for one in x])
        return spaces.flatten(self.space, x)

    def for_world(self, actions):
        """Actions as `action` gives them, one or several, in the type and bounds of the space."""
        space = self.world_actions
        actions = np.asarray(actions).astype(space.dtype)
        return actions if self.discrete else np.clip(actions, space.low, space.high)


def threshold(name):
    """The return at which Gymnasium's registry calls "gymnasium:ID" solved, None if unknown."""
    spec = gymnasium.registry.get(name.rpartition(":")[2])
    return spec and spec.reward_threshold


def _time_limit(world):
    """The most actions of an episode, as registered or by the wrapper TimeLimit; else None."""
    limit = getattr(world.spec, "max_episode_steps", None)
    if limit is None and world.has_wrapper_attr("_max_episode_steps"):
        limit = world.get_wrapper_attr("_max_episode_steps")
    return limit


def _parts(space):
    """The plain spaces inside a Dict or Tuple."""
    inner = getattr(space, "spaces", None)
    if inner is None:
        return [space]
    return [part for one in (inner.values() if hasattr(inner, "values") else inner)
            for part in _parts(one)]


def _notes(warned):
    """The warnings of Gymnasium itself, each as one line."""
    texts = [" ".join(COLOURS.sub("", str(one.message)).split()) for one in warned]
    return [text.removeprefix("WARN: ") for text in texts if text.startswith("WARN: ")]


def ids(name):
    """The names here of Gymnasium's own environments that have this id, or this without version."""
    return [f"{PREFIX}{one}" for one in gymnasium.registry
            if name in (one, one.rpartition("-v")[0] or one)][-1:]


def is_world(thing):
    """Whether this is an environment of Gymnasium, or a class of them."""
    return isinstance(thing, gymnasium.Env) or (
        isinstance(thing, type) and issubclass(thing, gymnasium.Env))


def registered(name, observation, changes):
    """The HostEnvironment "gymnasium:ID", or "gymnasium:package.module:ID" of a module.

    `changes` are keyword arguments of `gymnasium.make`. Raises: GuestError."""
    module, _, one = name.removeprefix(PREFIX).rpartition(":")
    package = PACKAGES.get(one.partition("/")[0])
    if module:
        user_env.load_module(name, module)
    elif package and importlib.util.find_spec(package) is None:
        raise GuestError(f"run.env: {name} needs {package}: pip install {INSTALL[package]}")
    elif package:
        with Guest(f"run.env: {package}"):
            importlib.import_module(package)
    if one not in gymnasium.registry:
        raise GuestError(f"run.env: Gymnasium knows no {one!r}{_near(one, gymnasium.registry)}")
    spec = gymnasium.spec(one)
    if isinstance(spec.entry_point, str):
        with _Installed(f"run.env: {name}"):
            entry = gymnasium.envs.registration.load_env_creator(spec.entry_point)
    else:
        entry = spec.entry_point
    _check_keywords(name, entry, changes, ["max_episode_steps", *spec.kwargs])
    make = partial(gymnasium.make, one, disable_env_checker=True, **(changes or {}))
    return _tried(HostEnvironment(name, partial(_create, name, make, _renders(entry)), observation))


def own(name, factory, observation, changes):
    """The HostEnvironment that a class or function of the user makes.

    `changes` are its keyword arguments. Raises: GuestError."""
    _check_keywords(name, factory, changes)
    _check_wrapper(name, factory, changes)
    make = partial(factory, **(changes or {}))
    return _tried(HostEnvironment(name, partial(_create, name, make, _renders(factory)),
                                  observation))


def _create(name, make, renders, render_mode):
    """One world, asked for pictures of itself where it can draw them."""
    with _Installed(f"run.env: {name}"):
        world = make(render_mode=render_mode) if render_mode and renders else make()
    if not is_world(world):
        raise GuestError(f"run.env: {name} gives an object of type {type(world).__name__}, "
                         "expected one gymnasium.Env")
    return world


class _Installed(Guest):
    """A Guest that names the extra of Gymnasium which is not installed."""

    def __exit__(self, kind, error, trace):
        if extra := re.search(r"gymnasium\[[\w-]+\]", str(error)):
            raise GuestError(f"{self.name} needs packages: pip install \"{extra[0]}\"") from None
        return super().__exit__(kind, error, trace)


def _near(one, known):
    """A hint after an unknown id: the most similar one that is known."""
    near = nearest(one, known)
    return near.replace("did you mean '", f"did you mean '{PREFIX}") if "did you" in near else (
        "; gymnasium.pprint_registry() prints all")


def _takes(function, key):
    """Whether a function or class takes this keyword argument."""
    try:
        found = inspect.signature(function).parameters
    except (TypeError, ValueError):  # it has no signature to inspect
        return True
    return key in found or any(one.kind is one.VAR_KEYWORD for one in found.values())


def _renders(entry):
    """Whether a class, or a function that makes a world, can be asked for pictures."""
    known = getattr(entry, "metadata", None)
    modes = known.get("render_modes", [RENDERED]) if isinstance(known, dict) else [RENDERED]
    return RENDERED in modes and _takes(entry, "render_mode")


def _check_wrapper(name, entry, changes):
    """Check that a class of wrappers makes the world that it wraps itself. Raises: GuestError."""
    if not (isinstance(entry, type) and issubclass(entry, gymnasium.Wrapper)):
        return
    try:
        inspect.signature(entry).bind(**(changes or {}))
    except TypeError as error:
        raise GuestError(f"run.env: {name} is a wrapper ({error}): expected a class or function "
                         f"that makes its world itself, as in def make(): return "
                         f"{entry.__name__}(gymnasium.make(ID))") from None


def _check_keywords(name, entry, changes, known=()):
    """Check that each of `changes` is a keyword argument. Raises: GuestError."""
    for key in changes or ():
        if key in known or _takes(entry, key):
            continue
        names = [*known, *(one for one in inspect.signature(entry).parameters if one != "self")]
        raise GuestError(f"run.env_params: {name} has no {key!r}{nearest(key, names)}")


def _tried(env):
    """Play random steps in one world; what is wrong is found before training. Raises: GuestError"""
    worlds, random = Worlds(env, 1, "random play"), np.random.default_rng(0)
    worlds.reset([0])
    for _ in range(TRIED):
        action = random.standard_normal(env.action_size, np.float32)
        worlds.step(np.asarray(env.action(action))[None])
    worlds.close()
    return env
