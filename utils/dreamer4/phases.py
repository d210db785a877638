"""What the end of each phase leaves in RUN/phases: the weights, and the figures so far.

`dreamer4.py --phase` begins with these files of another run, and the commands on a run read them.
A file holds what a TrainState holds but for the optimisers, which each phase begins anew; its
comment holds the figures, and the mark of the run that it belongs to.
"""

import json
from pathlib import Path

import jax
import numpy as np

from utils.core import config as configuration
from utils.dreamer4.settings import PHASES, TRAINED, Config
from utils.run import arrays
from utils.run.weights import mark

FOLDER = "phases"
REST = "opt_state"  # the field of a TrainState that is not kept


def path_of(run, phase):
    """RUN/phases/2-dynamics.npz"""
    return Path(run) / FOLDER / f"{PHASES.index(phase) + 1}-{phase}.npz"


def named(state):
    """What is kept of a TrainState: -> {name: array}"""
    return arrays.flatten(jax.device_get(_kept(state)))


def _kept(state):
    return {name: part for name, part in state._asdict().items() if name != REST}


def save(run, phase, found, results, config):
    """Write what a phase has learned: {name: array}, and {phase: figures ...} so far.

    Raises: OSError."""
    path = path_of(run, phase)
    path.parent.mkdir(exist_ok=True)
    notes = {"run": mark(config).decode(), "results": results}
    arrays.save(path, found, json.dumps(notes).encode())


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
    notes = json.loads(arrays.comment(path) or "{}")
    if notes.get("run") != mark(configuration.load(Path(run) / "config.yaml", Config)).decode():
        raise ValueError(f"{path}: belongs to another run, or the config.yaml beside it was "
                         "changed")
    return found, notes["results"]


def learned(phase, found):
    """Of {name: array}, what a run has learned until the end of a phase: no untrained network."""
    ended = PHASES[: PHASES.index(phase) + 1]
    trained = {name for one in ended for name in TRAINED[one]}
    return {name: array for name, array in found.items()
            if not name.startswith("params/") or name.split("/")[1] in trained}


def last(run):
    """The last phase that a run has ended. Raises: ValueError, one line, if there is none."""
    ended = [phase for phase in PHASES if path_of(run, phase).is_file()]
    if not ended:
        raise ValueError(f"{run}: has not finished phase 1 ({PHASES[0]}): nothing is learned yet")
    return ended[-1]


def filled(state, found):
    """A TrainState with these arrays, and the optimisers that it has.

    Raises: ValueError naming the first array that does not fit."""
    return state._replace(**arrays.unflatten(_kept(state), found))
