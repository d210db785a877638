"""What the end of each phase leaves in RUN/phases: the weights, and the figures so far.

`dreamer4.py --phase` begins with these files of another run, and the commands on a run read them.
A file holds what a TrainState holds but for the optimisers, which each phase begins anew.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np

from utils.dreamer4.settings import PHASES
from utils.run import arrays

FOLDER = "phases"
REST = "opt_state"  # the field of a TrainState that is not kept


def path_of(run, phase):
    """RUN/phases/2-dynamics.npz"""
    return Path(run) / FOLDER / f"{PHASES.index(phase) + 1}-{phase}.npz"


def save(run, phase, state, results):
    """Write what phase has learned: a TrainState, and the results {phase: figures ...} so far.

    Raises: OSError."""
    path = path_of(run, phase)
    path.parent.mkdir(exist_ok=True)
    parts = {name: part for name, part in state._asdict().items() if name != REST}
    arrays.save(path, arrays.flatten(jax.device_get(parts)), json.dumps(results).encode())


def load(run, phase):
    """What a phase of a run has learned: -> {name: array}, results of it and those before

    Raises: ValueError, one line, for a phase that has not ended, or a damaged file."""
    path = path_of(run, phase)
    if not path.is_file():
        raise ValueError(f"{run}: has not finished phase {PHASES.index(phase) + 1} ({phase}): "
                         f"{path} does not exist")
    found = arrays.load(path)
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} is not finite")
    try:
        return found, json.loads(arrays.comment(path))
    except ValueError:
        raise ValueError(f"{path}: is damaged (no results)") from None


def last(run):
    """The last phase that a run has ended. Raises: ValueError, one line, if there is none."""
    ended = [phase for phase in PHASES if path_of(run, phase).is_file()]
    if not ended:
        raise ValueError(f"{run}: has not finished phase 1 ({PHASES[0]}): nothing is learned yet")
    return ended[-1]


def filled(state, found):
    """A TrainState with these arrays, and the optimisers that it has.

    Raises: ValueError naming the first array that does not fit."""
    parts = {name: part for name, part in state._asdict().items() if name != REST}
    return state._replace(**arrays.unflatten(parts, found))


def copy(source, run, phase):
    """Copy the file of a phase from one run into another. Raises: OSError."""
    path_of(run, phase).parent.mkdir(exist_ok=True)
    shutil.copyfile(path_of(source, phase), path_of(run, phase))
