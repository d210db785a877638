"""One agent on several devices, and several agents in one compiled program."""

from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh

DEVICES = "devices"  # the mesh axis along which environments and batches are divided


def count(config):
    """The number of devices that share the work of a `Config`.

    The largest number, up to run.devices, that is available and divides both the environments and
    the sequences of a batch."""
    most = min(config.run.devices, jax.device_count())
    numbers = config.run.envs, config.replay.batch
    return max(n for n in range(1, most + 1) if not any(number % n for number in numbers))


def mesh(config):
    """The mesh of the devices that share the work, along one axis."""
    return Mesh(np.array(jax.devices()[:count(config)]), (DEVICES,))


def part(program):
    """The program of one device, with its share of the environments and of the batch."""
    config, devices = program.config, count(program.config)
    # of its chunk too: the longest round then has the same number of steps
    run = replace(config.run, envs=config.run.envs // devices, chunk=config.run.chunk // devices)
    replay = replace(config.replay, batch=config.replay.batch // devices)
    return replace(program, config=replace(config, run=run, replay=replay))


def on_one_device(function):
    """Wrap a function that uses the axis DEVICES to run on one device, outside of a mesh."""
    return lambda *args: jax.tree.map(
        lambda leaf: leaf[0],
        jax.vmap(lambda _: function(*args), axis_name=DEVICES)(np.zeros(1)))


def over_seeds(function, axes, donate=None):
    """Vectorise a jitted function of one agent over several seeds, along a new leading axis.

    `axes` gives for each argument 0 (it has that axis) or None (it is static and shared); `donate`
    is the number of the argument whose memory may be reused."""
    static = tuple(place for place, axis in enumerate(axes) if axis is None)
    mapped = jax.vmap(function.__wrapped__, axes)
    return jax.jit(mapped, static_argnums=static, donate_argnums=donate)
