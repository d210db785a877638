"""Code that users bring along: found by name, called so that its errors become one line.

Knows nothing of environments but that they have methods; what these return is looked at by
gymnax_wrappers.py.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path

import jax
import numpy as np

from utils.core.config import nearest


class GuestError(ValueError):
    """A mistake in the user's code or in its name; its text is one clear line."""


class Guest:
    """A block in which only the user's code runs: what it raises becomes a GuestError.

    The error says which, of what kind, and where."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None or issubclass(kind, GuestError) or not issubclass(kind, Exception):
            return False
        said = " ".join(str(error).split("\n\n")[0].split()) or "no message"
        raise GuestError(f"{self.name}: {kind.__name__}{_place(error, trace)}: {said}") from None


def call(name, function, *arguments):
    """function(*arguments), which is code of the environment `name`.

    Raises: GuestError."""
    with Guest(f"run.env: {name}"):
        return function(*arguments)


def find(name, known=()):
    """What "package.module:member" names, from the current folder or wherever Python looks.

    None where the module has no such member, but `known` names it: what importing may register.

    Raises: GuestError for a module that is not there or fails, or that has no such member."""
    module, _, member = name.partition(":")
    if not all(part.isidentifier() for part in module.split(".")) or not member:
        raise GuestError(f"run.env: expected package.module:factory, found {name!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    with Guest(f"run.env: {module}"):
        found = importlib.import_module(module) if _is_there(module) else None
    if found is None:
        near = nearest(module, [path.stem for path in Path.cwd().glob("*.py")])
        raise GuestError(f"run.env: {name}: there is no module {module} here{near}")
    if hasattr(found, member):
        return getattr(found, member)
    if member in known:
        return None
    named = [one for one, value in vars(found).items()
             if callable(value) and not one.startswith("_")]
    raise GuestError(f"run.env: {name}: {module} has no {member!r}{nearest(member, named)}")


def methods(name, thing, wanted):
    """The methods of an object: {name: what it is called with} -> list, in that order

    Raises: GuestError naming what it lacks, or the method that takes other arguments."""
    lacking = [one for one in wanted if not callable(getattr(thing, one, None))]
    if lacking:
        raise GuestError(f"run.env: {name} gives an object of type {type(thing).__name__} without "
                         f"{', '.join(lacking)}: it has not the interface of Gymnax")
    for one, arguments in wanted.items():
        _takes(name, getattr(thing, one), arguments)
    return [getattr(thing, one) for one in wanted]


def attribute(name, thing, one):
    """What an object has under a name, None where it has nothing; a property may fail.

    Raises: GuestError."""
    if hasattr(type(thing), one):  # then an AttributeError is a slip in the property
        return call(name, getattr, thing, one)
    return getattr(thing, one, None)


def with_values(name, params, changes):
    """An environment's parameters, some of them changed: a dataclass with numbers and arrays.

    Raises: GuestError for a name that it has not, or a value that is not of the same kind."""
    if not changes:  # not even a dataclass is needed then
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


def same_shapes(name, what, before, after):
    """Do two trees of arrays agree in structure, shapes and types?

    Raises: GuestError naming the first leaf that does not."""
    old, new = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (before, after))
    if [path for path, _ in old] != [path for path, _ in new]:
        raise GuestError(f"run.env: {name} gives one structure of its {what} at reset, "
                         "another after a step")
    for (path, one), (_, other) in zip(old, new):
        if _kind(one) != _kind(other):
            raise GuestError(f"run.env: {name} gives its {what}{jax.tree_util.keystr(path)} as "
                             f"{_kind(one)} at reset and as {_kind(other)} after a step")


def scalar(name, what, value, kind):
    """A reward or a flag as an array [] of a kind.

    Raises: GuestError where it is not one number."""
    array = call(name, jax.numpy.asarray, value, kind)
    if array.size != 1:
        raise GuestError(f"run.env: {name}: {what} has the shape {list(array.shape)}, "
                         "expected one number")
    return array.reshape(())


def _is_there(module):
    """Whether Python finds the module; its packages are imported to know."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            return False
        raise  # one of its packages lacks something else


def _place(error, trace):
    """", file, line": where the user's code stood, as near to the fault as can be."""
    if isinstance(error, SyntaxError):
        return f" in {error.filename}, line {error.lineno}"
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(trace)
              if frame.filename != __file__]
    own = [frame for frame in frames if "site-packages" not in frame[0]
           and "importlib" not in frame[0]]
    if not frames:
        return ""
    filename, line = (own or frames)[-1]
    return f" in {filename}, line {line}"


def _takes(name, method, arguments):
    """Can a method be called with so many arguments?"""
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # it tells nothing of its arguments
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
    """`value` as what `default` is: a truth, a whole number, a number, or an array of its shape."""
    kind = np.asarray(default)
    if kind.dtype.kind not in "biuf":
        raise GuestError(f"{where}: is a {type(default).__name__}, which cannot be changed here")
    found = np.asarray(_number(value))
    fits = found.dtype.kind in "biuf" and (
        found.shape == kind.shape and (found.dtype.kind == "b") == (kind.dtype.kind == "b")
        and (kind.dtype.kind == "f" or (found == np.trunc(found)).all()))
    if not fits:
        word = {"b": "true or false", "f": "a number"}.get(kind.dtype.kind, "a whole number")
        shape = f" ({list(kind.shape)} of them)" if kind.shape else ""
        raise GuestError(f"{where}: expected {word}{shape}, found {value!r}")
    value = found.item() if not found.shape else value
    if isinstance(default, (bool, int, float)):
        return type(default)(value)
    return jax.numpy.asarray(found, kind.dtype)


def _number(value):
    """`value`, where it is text the number that it stands for: YAML takes 1e-3 for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
