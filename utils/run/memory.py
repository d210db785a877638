"""Refuses a run whose arrays cannot fit into the memory of the machine, before it begins."""

import math
import os
import sys
from pathlib import Path

import jax
import numpy as np

from utils.core import devices

try:
    import resource
except ImportError:  # Windows
    resource = None

GB = 1e9
FLOAT = 4  # bytes
COPIES = 5  # of the weights: they, their gradients, two averages of the optimiser, a sum of updates
# What to lower where one part is too large.
REMEDY = {"replay": "replay.capacity", "model": "model.deter, model.units or model.depth",
          "imagination": "replay.batch, replay.length or learning.imagination",
          "evaluation": "run.eval_episodes"}


def check(config, env, shapes, seeds):
    """Compare the bytes of the largest arrays with the memory of the device.

    Raises: ValueError, one line."""
    if seeds > 1 and jax.default_backend() != "cpu":
        seeds //= devices.groups(config, seeds)
    parts = {name: seeds * size / GB for name, size in sizes(config, env, shapes).items()}
    have, needed = available() / GB, sum(parts.values())
    if needed > have:
        largest = max(parts, key=parts.get)
        each = ", ".join(f"{name} {size:,.1f}" for name, size in parts.items()
                         if size > needed / 1000)
        raise ValueError(f"needs at least {needed:,.0f} GB of memory ({each}), but there are "
                         f"{have:,.0f} GB: lower {REMEDY[largest]}")


def sizes(config, env, shapes):
    """Bytes on one device: replay, weights with the optimiser, imagined rollouts, evaluation

    Devices of a CPU share its memory: there it is that of all."""
    model, replay = config.model, config.replay
    cpu = jax.default_backend() == "cpu"
    parts = jax.process_count() if cpu else devices.count(config)
    pixels = math.prod(env.x_shape) * np.dtype(env.x_dtype).itemsize
    row = pixels + FLOAT * (1 + env.action_size + model.deter) + model.latents + 3
    states = replay.batch * replay.length * (config.learning.imagination + 1)
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    playing = pixels + FLOAT * (model.s_size + model.units)
    return {"replay": replay.capacity * row / parts, "model": COPIES * FLOAT * weights,
            "imagination": FLOAT * states * (model.s_size + model.bins) / parts,
            "evaluation": config.run.eval_episodes * playing}


def peak():
    """The most bytes that this process has had so far; None where the system does not say."""
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def available():
    """Bytes of the device; of the machine or the container, where it is a CPU."""
    found = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in found:
        return found["bytes_limit"]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(
        os, "sysconf") else math.inf
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="utf-8").strip() if limit.is_file() else ""
    return min(whole, int(text)) if text.isdigit() else whole
