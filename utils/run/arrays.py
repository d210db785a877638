"""Pytrees as named arrays, saved to one .npz file atomically and without pickle."""

import struct
import tokenize
import zipfile
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from utils.run.files import write

# What zipfile and NumPy raise for a file with wrong bytes.
HARMED = (ValueError, TypeError, LookupError, EOFError, OSError, RuntimeError, MemoryError,
          OverflowError, SyntaxError, AttributeError, zipfile.BadZipFile, zlib.error, struct.error,
          tokenize.TokenError)


def save(path, arrays, comment=b""):
    """Write {name: array} to `path` atomically: it holds the old file or the new one.

    Raises: ValueError for an array of Python objects; OSError where `path` cannot be written."""
    write(path, partial(_write, arrays, comment))


def _write(arrays, comment, file):
    # not np.savez: its keyword arguments would exclude the name "file"
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = comment
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def load(path):
    """Load the {name: array} that `save` wrote.

    Raises: ValueError, one line, for a damaged file or one of another kind; OSError."""
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path}: is not a complete .npz file")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                return dict(archive)
        except HARMED as error:
            line = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{path}: cannot be read ({line})") from None


def comment(path):
    """The comment of a file that `load` can read."""
    with zipfile.ZipFile(path) as archive:
        return archive.comment


def flatten(tree):
    """A pytree of arrays as {"agent/critic/kernel": array}, named by paths joined with slashes.

    Raises: ValueError where two arrays would have the same name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    arrays = {}
    for path, leaf in leaves:
        name = _name(path)
        if name in arrays:
            raise ValueError(f"two arrays of the tree are named {name!r}")
        arrays[name] = np.asarray(_plain(leaf))
    return arrays


def unflatten(tree_like, arrays):
    """The named arrays in the structure of `tree_like`, whose leaves need only shape and dtype.

    Raises: ValueError naming the first array that is missing, unexpected, or of another shape.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree_like)
    wanted = {_name(path): leaf for path, leaf in leaves}
    restored = []
    for name, leaf in wanted.items():
        if name not in arrays:
            raise ValueError(f"the array {name!r} is missing")
        array = _typed(arrays[name], leaf)
        expected, found = _describe(jax.eval_shape(_plain, leaf)), _describe(array)
        if expected != found or not array.dtype.isnative:
            raise ValueError(f"the array {name!r} is {found}, expected {expected}")
        restored.append(_like(leaf, array))
    for name in arrays:
        if name not in wanted:
            raise ValueError(f"the array {name!r} is not part of the model")
    return jax.tree.unflatten(structure, restored)


def _typed(array, leaf):
    """Bytes as numbers of a type that NumPy does not know (bfloat16, float8) and saves as bytes."""
    if array.dtype.kind != "V" or _is_key(leaf) or array.dtype.itemsize != leaf.dtype.itemsize:
        return array
    return array.view(leaf.dtype)


def _is_key(leaf):
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf):
    """The numbers of a random key; anything else unchanged."""
    return jax.random.key_data(leaf) if hasattr(leaf, "dtype") and _is_key(leaf) else leaf


def _like(leaf, array):
    return jax.random.wrap_key_data(jnp.array(array)) if _is_key(leaf) else jnp.array(array)


def _name(path):
    # an nnx parameter wraps its array: `.value` would only clutter the name
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def _describe(array):
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"
