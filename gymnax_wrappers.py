"""Wraps Gymnax, and is the only file that imports it: environments as rows of the time line.

One environment, pure functions; callers vectorise with `jax.vmap`. An action is what the agent
outputs, one-hot or a vector in [-1, 1]. Each step returns a `Step`, whose observation is a float32
vector or a uint8 image.
"""

import difflib
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from utils.core import step_checks, user_env
from utils.core.lazy import import_when_used
from utils.worlds import gymnasium_env
from utils.worlds.interface import Interface, Step, check_bounds, is_image

import_when_used("seaborn", "matplotlib.pyplot")  # which gymnax imports for its plots: a second

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

DIM = 32  # of 255: a uint8 image without a brighter pixel is hardly one
PROBE = 4  # steps of an episode that tell a time limit from an end of the world

BUILT_IN = frozenset(gymnax.registered_envs)
MNIST, MNIST_FOLDER = "MNISTBandit-bsuite", Path("/tmp/mnist")  # where Gymnax expects its data
MNIST_FILES = tuple(f"{part}-ubyte.gz" for part in (
    "train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"))


class EnvState(NamedTuple):
    """Gymnax's own state, whether the episode is over, and what a check has found."""

    inner: Any
    over: jax.Array
    fault: Any  # a Fault of step_checks.py; None for Gymnax's environments, which need no check


class Environment(Interface):
    """One environment of Gymnax, or of the user with Gymnax's interface, as an Interface.

    Every row of an environment that is not `trusted` is checked."""

    def __init__(self, checked, observation, trusted=False):
        name, self._checked, self._trusted = checked.name, checked, trusted
        self.name, self.env, self.params = name, checked.env, checked.params
        self.solved = SOLVED.get(name)
        self.action_space = space = _action_space(name, checked.action_space)
        self.discrete = isinstance(space, spaces.Discrete)
        self.action_size = int(space.n if self.discrete else math.prod(space.shape))
        self.raw_shape = checked.raw.shape
        self.space = checked.observation_space
        self.classes = self.space.n if self.raw_shape == () and hasattr(self.space, "n") else None
        self.is_image = is_image(name, self.raw_shape, observation)
        self.is_bytes = checked.raw.dtype == jnp.uint8
        self.time_limit = checked.time_limit()
        x = jax.eval_shape(self.observation, checked.raw)
        self.x_shape, self.x_dtype = x.shape, x.dtype
        self._notes = []  # lines for the user about what is possible but unusual

    def reset(self, key):
        """The first row of an episode: -> EnvState, Step"""
        return self._begin(key, None if self._trusted else step_checks.none())

    def _begin(self, key, fault):
        x, inner = self._checked.reset(key)
        if not self._trusted:
            fault = step_checks.after_reset(fault, self, x)
        no, yes = jnp.zeros((), bool), jnp.ones((), bool)
        first = Step(x=self.observation(x), r=jnp.zeros(()), is_first=yes, is_last=no,
                     is_terminal=no)
        return EnvState(inner, no, fault), first

    def step(self, key, state, action):
        """Execute an action [A] -> EnvState, Step

        After the last row of an episode the action is ignored, and the first row of the next
        episode is returned."""
        step_key, reset_key = jax.random.split(key)
        found = self._checked.step(step_key, state.inner, self.action(action))
        fault, over = state.fault, found.ended | found.cut
        x = found.x if found.last is found.x else jnp.where(over, found.last, found.x)
        if not self._trusted:
            fault = step_checks.after_step(fault, self, x, found)
        after = EnvState(found.inner, over, fault), Step(
            x=self.observation(x), r=found.r, is_first=jnp.zeros((), bool), is_last=over,
            is_terminal=found.ended)
        fresh = self._begin(reset_key, state.fault)
        return jax.tree.map(lambda new, old: jnp.where(state.over, new, old), fresh, after)

    def fault(self, faults):
        """The line for the first Fault of several environments [E]; None if there is none."""
        found = None if self._trusted else step_checks.message(faults, self)
        return found and f"run.env: {self.name}: {found}"


def configured(run):
    """The environment of the section `run` of a configuration; raises like `make`."""
    return make(run.env, run.observation, run.env_params)


def make(name, observation="auto", changes=None):
    """Make an environment: of Gymnax by its id, of Gymnasium, or the user's own.

    Gymnasium's is "gymnasium:ID", one's own "package.module:factory". A factory returns an object
    with Gymnax's interface, alone or as (object, parameters), or one with Gymnasium's; the name
    after the colon may also be an id that the module registers with Gymnax. `changes` maps names of
    the environment's parameters to new values. `observation` is "auto", "vector" or "image": arrays
    of three axes, or of two with at least 4 pixels each, are images; a scalar integer becomes
    one-hot; anything else becomes one flat vector.

    Raises: ValueError, one clear line, for an unknown id or an unsupported environment."""
    if name.startswith(gymnasium_env.PREFIX):
        return gymnasium_env.registered(name, observation, changes)
    factory = user_env.find(name, gymnax.registered_envs) if ":" in name else None
    made = (_registered(name.rpartition(":")[2]) if factory is None else _own(name, factory))
    if gymnasium_env.is_world(made):
        return gymnasium_env.own(name, factory, observation, changes)
    env, params = made
    params = user_env.with_values(name, params, changes)
    trusted = name in BUILT_IN and not changes
    environment = Environment(user_env.CheckedEnv(name, env, params), observation, trusted)
    if not trusted:
        _try_out(environment)
    return environment


def solved(name):
    """The return at which the registry of Gym or Gymnasium calls an environment solved, or None."""
    if name.startswith(gymnasium_env.PREFIX):
        return gymnasium_env.threshold(name)
    return SOLVED.get(name)


def listing(references):
    """A table of Gymnax's environments: observations, actions, time limits, reference returns.

    `references` maps names to a Reference of utils/core/references.py."""
    lines = [f"{'environment':26}{'observation':14}{'actions':10}{'limit':>6}{'reference':>11}  of"]
    for name, reference in references.items():
        env = make(name)
        shape = "x".join(str(n) for n in env.raw_shape) or f"one of {env.classes}"
        acts = env.action_size if env.discrete else f"{env.action_size} in ±{_bound(env):g}"
        score = "-" if reference.score is None else f"{reference.score:g}"
        lines.append(f"{name:26}{shape:14}{acts:<10}{int(env.params.max_steps_in_episode):6}"
                     f"{score:>11}  {reference.source}")
    return "\n".join([*lines, "", "gymnasium:ID is one of Gymnasium's, such as "
                      "gymnasium:LunarLander-v3"])


def _bound(env):
    """The largest absolute bound of continuous actions."""
    return float(np.max(np.abs(env.action_space.high)))


def _registered(name):
    """(environment, parameters) of an id that is registered with Gymnax."""
    if name not in gymnax.registered_envs:
        there = gymnasium_env.ids(name)
        near = [*difflib.get_close_matches(
            name, gymnax.registered_envs, 3, 0.8 if there else 0.3), *there]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise user_env.GuestError(
            "run.env: expected one of --list-envs, gymnasium:ID or your own "
            f"package.module:factory, found {name!r}{hint}")
    if name == MNIST and not all((MNIST_FOLDER / file).is_file() for file in MNIST_FILES):
        raise user_env.GuestError(
            f"run.env: {name} wants to download its data; expected in {MNIST_FOLDER}: "
            f"{', '.join(MNIST_FILES)}")
    return user_env.call(name, gymnax.make, name)


def _own(name, factory):
    """(environment, parameters) of a user's own environment; one of Gymnasium's, or its class."""
    if not callable(factory):
        raise user_env.GuestError(
            f"run.env: {name} is of type {type(factory).__name__}, expected a class or function "
            "that returns an environment")
    if gymnasium_env.is_world(factory):
        return factory
    made = user_env.call(name, factory)
    if gymnasium_env.is_world(made) or (isinstance(made, tuple) and len(made) == 2):
        return made
    return made, user_env.attribute(name, made, "default_params")


def _try_out(env):
    """Play random steps and check every row; notes what is suspicious.

    Raises: ValueError naming the first wrong entry and its step."""
    faults, rows = _play_at_random(env, 100)
    wrong = np.argwhere(faults.kind)
    if len(wrong):
        step = int(wrong[0, 0])
        line = env.fault(jax.tree.map(lambda part: part[step], faults))
        raise user_env.GuestError(f"{line}; found after {step} steps of random actions")
    if env.name not in BUILT_IN and env.time_limit:
        _check_time_limit(env, rows)
    env._notes += _suspicions(env, rows.x)


def _check_time_limit(env, rows):
    """Check that `terminated` leaves out the time limit, by playing again with a smaller one

    `rows` are the Steps of play with the usual limit. Raises: ValueError where `terminated` is true
    only because of the limit."""
    if env.time_limit < PROBE:
        return
    try:
        params = user_env.with_values(env.name, env.params, {user_env.LIMIT: PROBE - 1})
        checked = user_env.CheckedEnv(env.name, env.env, params)
        _, early = _play_at_random(Environment(checked, "vector"), PROBE)
    except user_env.GuestError:  # it cannot have so small a limit
        return
    if (early.is_terminal & ~rows.is_last[:PROBE]).any():
        raise user_env.GuestError(
            f"run.env: {env.name}: terminated is true where only {user_env.LIMIT} ends the "
            "episode; expected the world's own end alone (is_truncated or a sixth value tells the "
            "limit)")


def _suspicions(env, x):
    """Lines about images [steps, episodes, ...] of random play that are possible but unusual."""
    lines = []
    if env.is_image and env.is_bytes and x.max() <= DIM:
        lines.append(f"random actions give no pixel above {x.max()}, and 255 is read as white: "
                     "give 0 to 255, floats from 0 to 1, or run.observation=vector")
    if env.is_image and env.x_shape[0] <= 4 < min(env.x_shape[1:]):
        lines.append(f"the image is read as {env.x_shape[0]} rows of {env.x_shape[1]} pixels with "
                     f"{env.x_shape[2]} colours: give colours last")
    return lines


def _play_at_random(env, steps):
    """Play 8 episodes: -> Fault and Step [steps, 8, ...]"""
    reset_key, play_key = jax.random.split(jax.random.key(0))
    with user_env.Guest(f"run.env: {env.name}"):
        return jax.device_get(_at_random(
            env, jax.random.split(reset_key, 8), jax.random.split(play_key, steps)))


@partial(jax.jit, static_argnums=0)
def _at_random(env, reset_keys, keys):
    """Faults and Steps [steps, episodes, ...] of random actions."""

    def step(carry, key):
        state, timestep = carry
        action_key, step_key = jax.random.split(key)
        actions = jax.random.normal(action_key, (len(timestep.r), env.action_size))
        keys = jax.random.split(step_key, len(timestep.r))
        return jax.vmap(env.step)(keys, state, actions), (state.fault, timestep)

    _, rows = jax.lax.scan(step, jax.vmap(env.reset)(reset_keys), keys)
    return rows


def _action_space(name, space):
    if not isinstance(space, (spaces.Discrete, spaces.Box)):
        raise user_env.GuestError(
            f"run.env: {name} has actions of type {type(space).__name__}, expected Discrete or Box")
    if isinstance(space, spaces.Discrete) and space.n < 1:
        raise user_env.GuestError(f"run.env: {name} has no actions (Discrete({space.n}))")
    if isinstance(space, spaces.Box):
        check_bounds(name, space)
    return space
