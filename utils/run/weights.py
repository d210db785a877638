"""The weights of a run's best evaluation: arrays by name, marked with the run that they belong to.

Weights of another run may have the same shapes; acting with them would give wrong scores silently.
"""

import hashlib
import json

import numpy as np
import yaml

from utils.core.config import dump, fixed
from utils.run import arrays

NAME = "weights.npz"


def save(folder, params, config):
    """Write the weights of a run with this configuration into its folder.

    Raises: OSError."""
    arrays.save(folder / NAME, arrays.flatten(params), mark(config))


def load(folder, shapes, config):
    """Load the weights of a run that was started with this configuration.

    `shapes` is a tree with their shapes. Raises: ValueError, one line, for weights that are
    missing, damaged, not finite, of other shapes or of another run."""
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"{path}: does not exist yet: the first checkpoint after an evaluation "
                         "creates it")
    try:
        params = arrays.unflatten(shapes, arrays.load(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for name, array in arrays.flatten(params).items():
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} is not finite")
    if arrays.comment(path) not in (b"", mark(config)):  # older versions wrote no mark
        raise ValueError(f"{path}: belongs to another run, or the config.yaml beside it was "
                         "changed")
    return params


def mark(config):
    """A digest of everything in a configuration that stays the same when a run is resumed."""
    tree = yaml.safe_load(dump(config))
    values = {f"{section}.{key}": value for section, keys in tree.items()
              for key, value in keys.items()}
    kept = {name: values[name] for name in fixed(config, values)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest().encode()
