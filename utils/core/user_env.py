"""The user's own environments: imported by name, and checked at every call.

gymnax_wrappers.py gets a `CheckedEnv` and calls no other user code. Every error in such an
environment becomes a GuestError of one line.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import math
import pkgutil
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from utils.core.cli import is_of_program, of_program
from utils.core.config import MOST, nearest, show

# The methods that are called, and their arguments.
RESET, STEP = ("key", "params"), ("key", "state", "action", "params")
SPACES = {"action_space": ("params",), "observation_space": ("params",)}
FLAGS = ("terminated", "truncated")
OUR_CALLS = (Path(__file__).parent, Path(__file__).parents[1] / "worlds")  # what calls that code
LIMIT = "max_steps_in_episode"  # the parameter of Gymnax's time limits


class GuestError(ValueError):
    """An error in the user's code or in its name; its text is one clear line."""


class Guest:
    """A context for calls of the user's code: its exceptions become a GuestError.

    The message names the environment, the exception and its place."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None or issubclass(kind, GuestError) or not issubclass(
                kind, (Exception, SystemExit)):
            return False
        if is_of_program(error):  # a callback of the environment
            raise GuestError(f"{self.name}: {of_program(str(error))}") from None
        message = " ".join(str(error).split("\n\n")[0].split()) or "no message"
        raise GuestError(f"{self.name}: {kind.__name__}{_place(error, trace)}: {message}") from None


class Outcome(NamedTuple):
    """What a step of an environment returns."""

    x: Any  # raw observation
    last: Any  # the same before a reset that `step` may have made
    inner: Any  # its state
    r: jax.Array  # [] reward, float32
    ended: jax.Array  # [] the world ended
    cut: jax.Array  # [] a time limit ended the episode
    lost: jax.Array  # [] `step` has reset, and the last observation is lost


class CheckedEnv:
    """An environment with Gymnax's interface and its parameters; what it returns is checked.

    `raw` has shape and dtype of its observation: the declared space may be wrong.

    Raises: GuestError, here and in `reset` and `step`."""

    def __init__(self, name, env, params):
        self.name, self.env, self.params = name, env, params
        self._resets = not _only_adds_resets(env)
        used = ({"reset": RESET, "step": STEP} if self._resets
                else {"reset_env": RESET, "step_env": STEP})
        self._reset, self._step, action_space, observation_space = _methods(
            name, env, used | SPACES)
        self.action_space = call(name, action_space, params)
        self.observation_space = call(name, observation_space, params)
        with Guest(f"run.env: {name}"):  # the state may be no pytree of arrays
            self.raw, _ = jax.eval_shape(self.reset, jax.random.key(0))
        if not isinstance(self.raw, jax.ShapeDtypeStruct):
            raise GuestError(f"run.env: {name} has observations of type "
                             f"{type(self.raw).__name__}, expected one array")
        if not _is_real(self.raw.dtype) or not self.raw.size:
            raise GuestError(f"run.env: {name} has observations {_kind(self.raw)}, expected at "
                             "least one real number")

    def time_limit(self):
        """The most actions of an episode by its parameters; None without a finite limit."""
        limit = getattr(self.params, LIMIT, None)
        finite = isinstance(limit, (int, float, np.ndarray, np.generic, jax.Array)) and (
            np.ndim(limit) == 0 and 0 < limit < math.inf)
        return int(limit) if finite else None

    def reset(self, key):
        """Start an episode -> raw observation, state"""
        found = call(self.name, self._reset, key, self.params)
        if not isinstance(found, tuple) or len(found) != 2:
            raise self._wrong("reset", found, "2: observation, state")
        return found

    def step(self, key, inner, action):
        """Make a step -> Outcome

        A `step` that resets by itself returns the episode's last observation in its info."""
        found = call(self.name, self._step, key, inner, action, self.params)
        fits = isinstance(found, tuple) and len(found) in (5, 6) and isinstance(found[-1], dict)
        if not fits:
            raise self._wrong("step", found, "5 or 6: observation, state, reward, "
                              "terminated, (truncated,) info, the last a dict")
        x, after, r, *ends, info = found
        ended, cut = ends if len(ends) == 2 else self._ends(*ends, after, info)
        last = info.get("final_observation", x)
        self._same_shapes("observation", self.raw, x)
        self._same_shapes("observation", x, last, ("from step", "as info['final_observation']"))
        self._same_shapes("state", inner, after)
        ended = self._scalar("terminated", ended, bool)
        cut = self._scalar("truncated", cut, bool)
        lost = (ended | cut) & ("final_observation" not in info and _is_new(after, self._resets))
        r = self._scalar("reward", r, jnp.float32)
        return Outcome(x=x, last=last, inner=after, r=r, ended=ended, cut=cut, lost=lost)

    def _ends(self, ended, after, info):
        """(terminated, truncated) of a step of five values."""
        if all(flag in info for flag in FLAGS):  # of a `step` of Gymnax that was made older
            return [info[flag] for flag in FLAGS]
        if not self._resets and hasattr(self.env, "is_truncated"):
            return ended, call(self.name, self.env.is_truncated, after, self.params)
        if hasattr(self.env, "is_truncated") or hasattr(self.params, LIMIT):
            raise GuestError(
                f"run.env: {self.name}: step returns 5 values, which do not tell a time limit from "
                "an end of the world; expected 6: observation, state, reward, terminated, "
                "truncated, info")
        return ended, False

    def _wrong(self, what, found, expected):
        count = f"{len(found)} values" if isinstance(found, tuple) else f"a {type(found).__name__}"
        return GuestError(f"run.env: {self.name}: {what} returns {count}, expected {expected}")

    def _same_shapes(self, what, before, after, places=("at reset", "after a step")):
        """Check that two trees agree in structure, shapes and types. Raises: GuestError."""
        old, new = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (before, after))
        if [path for path, _ in old] != [path for path, _ in new]:
            raise GuestError(f"run.env: {self.name} changes the structure of its {what} between "
                             "reset and step")
        for (path, one), (_, other) in zip(old, new):
            if _kind(one) != _kind(other):
                place = f"{what}{jax.tree_util.keystr(path)}"
                raise GuestError(f"run.env: {self.name} gives its {place} as {_kind(one)} "
                                 f"{places[0]} and as {_kind(other)} {places[1]}")

    def _scalar(self, what, value, kind):
        """A reward or a flag as an array [] of the dtype `kind`; GuestError if not one number."""
        array = call(self.name, jax.numpy.asarray, value, kind)
        if array.size != 1:
            raise GuestError(f"run.env: {self.name}: {what} has shape {list(array.shape)}, "
                             "expected one number")
        return array.reshape(())


def _only_adds_resets(env):
    """Whether `reset` and `step` are Gymnax's own, around the `reset_env` and `step_env` here

    These two then give the same without a reset after the last step. A class that has its own
    `reset` or `step` is used through these, so that nothing it changes is bypassed."""
    methods = [getattr(type(env), name, None) for name in ("reset", "step")]
    own = {"reset", "step"} & getattr(env, "__dict__", {}).keys()
    return not own and all(hasattr(type(env), name) for name in ("reset_env", "step_env")) and all(
        method is None or method.__module__.startswith("gymnax.environments.")
        for method in methods)


def _is_new(state, may_reset):
    """Whether `step` has reset this state: its `time` is 0 again; False for one without `time`."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0] if may_reset else ()
    clocks = [leaf for path, leaf in leaves if path and getattr(path[-1], "name", "") == "time"]
    return jnp.ravel(clocks[0])[0] == 0 if clocks and jnp.size(clocks[0]) else False


def _is_real(dtype):
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.integer, jnp.floating, jnp.bool_))


def call(name, function, *arguments):
    """Call function(*arguments), which belongs to the environment `name`.

    Raises: GuestError."""
    with Guest(f"run.env: {name}"):
        return function(*arguments)


def find(name, known=()):
    """Import "package.module:member", from the current folder or Python's search path.

    None where the module has no such member, but `known` does: importing may have registered it.

    Raises: GuestError for a module that is missing or fails, or that has no such member."""
    module, _, member = name.partition(":")
    if not all(part.isidentifier() for part in module.split(".")) or not member:
        raise GuestError(f"run.env: expected package.module:factory, found {name!r}")
    found = load_module(name, module)
    if hasattr(found, member):
        return getattr(found, member)
    if member in known:
        return None
    named = [one for one, value in vars(found).items()
             if callable(value) and not one.startswith("_")]
    place = getattr(found, "__file__", None) or module
    raise GuestError(f"run.env: {name}: {place} has no {member!r}{nearest(member, named)}")


def load_module(name, module):
    """Import the module of the environment `name`, from the current folder or Python's search path.

    Raises: GuestError for a module that is missing or fails."""
    _search_here()
    with Guest(f"run.env: {module}"):
        found = importlib.import_module(module) if _is_there(module) else None
    if found is None:
        near = nearest(module, [path.stem for path in Path.cwd().glob("*.py")])
        raise GuestError(f"run.env: {name}: there is no module {module} here{near}")
    return found


def _search_here():
    """Let imports find the current folder, and what is in a `utils` of the user's own."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    package = sys.modules["utils"]
    package.__path__ = pkgutil.extend_path(package.__path__, "utils")


def _methods(name, thing, wanted):
    """Look up methods of an object: `wanted` {name: its arguments} -> list, in that order

    Raises: GuestError naming the missing methods, or the one with another signature."""
    missing = [one for one in wanted if not callable(getattr(thing, one, None))]
    if missing:
        raise GuestError(f"run.env: {name} gives an object of type {type(thing).__name__} without "
                         f"{', '.join(missing)}: it has the interface of neither Gymnax nor "
                         "gymnasium.Env")
    for one, arguments in wanted.items():
        _takes(name, getattr(thing, one), arguments)
    return [getattr(thing, one) for one in wanted]


def attribute(name, thing, one):
    """An attribute of an object, None where it has none; a property may fail.

    Raises: GuestError."""
    if hasattr(type(thing), one):  # an AttributeError then comes from inside the property
        return call(name, getattr, thing, one)
    return getattr(thing, one, None)


def with_values(name, params, changes):
    """Change some of an environment's parameters, a dataclass of numbers and arrays.

    Raises: GuestError for an unknown name, or a value of another kind."""
    if not changes:  # then `params` need not be a dataclass
        return params
    if not dataclasses.is_dataclass(params):
        raise GuestError(f"run.env_params: {name} has no parameters that could be changed")
    fields = [field.name for field in dataclasses.fields(params)]
    for key in changes:
        if key not in fields:
            raise GuestError(f"run.env_params: {name} has no {key!r}{nearest(key, fields)}")
    return dataclasses.replace(params, **{
        key: _alike(f"run.env_params.{key}", value, getattr(params, key))
        for key, value in changes.items()})


def _is_there(module):
    """Whether Python finds the module; this imports its parent packages."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            return False
        raise  # a parent package fails to import something else


def _place(error, trace):
    """The text " in file, line n" for the innermost frame of the user's code."""
    if isinstance(error, SyntaxError):
        return f" in {error.filename}, line {error.lineno}"
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(trace)
              if Path(frame.filename).parent not in OUR_CALLS]
    own = [frame for frame in frames if "site-packages" not in frame[0]
           and "importlib" not in frame[0]]
    if not frames:
        return ""
    filename, line = (own or frames)[-1]
    return f" in {filename}, line {line}"


def _takes(name, method, arguments):
    """Check that a method accepts these arguments. Raises: GuestError."""
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # it has no signature to inspect
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        word = getattr(method, "__name__", "it")
        raise GuestError(f"run.env: {name}: {word}{signature} cannot be called as "
                         f"{word}({', '.join(arguments)})") from None


def _kind(leaf):
    is_array = hasattr(leaf, "dtype") and hasattr(leaf, "shape")
    array = leaf if is_array else jax.eval_shape(lambda: leaf)
    return f"{array.dtype}{list(array.shape)}"


def _alike(where, value, default):
    """`value` in the type of `default`: boolean, whole number, number, or array of its shape."""
    kind = np.asarray(default)
    if kind.dtype.kind not in "biuf":
        raise GuestError(f"{where}: is a {type(default).__name__}, which cannot be changed here")
    found = np.asarray(_number(value))
    fits = found.dtype.kind in "biuf" and (
        found.shape == kind.shape and (found.dtype.kind == "b") == (kind.dtype.kind == "b")
        and (kind.dtype.kind == "f" or ((found == np.trunc(found)) & (abs(found) <= MOST)).all()))
    if not fits:
        word = {"b": "true or false", "f": "a number"}.get(
            kind.dtype.kind, f"a whole number up to {MOST}")
        shape = f" ({list(kind.shape)} of them)" if kind.shape else ""
        raise GuestError(f"{where}: expected {word}{shape}, found {show(value)}")
    value = found.item() if not found.shape else value
    if isinstance(default, (bool, int, float)):
        return type(default)(value)
    return jax.numpy.asarray(found, kind.dtype)


def _number(value):
    """The number in a text, if `value` is one: YAML reads 1e-3 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
