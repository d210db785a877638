"""One agent on several devices, of one machine or many, and several agents in one program."""

import math
from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

DEVICES = "devices"  # the mesh axis along which environments and batches are divided
SEEDS = "seeds"  # the mesh axis along which several seeds are divided
WHOLE = 8  # devices up to which the percentiles are those of all returns
SHARE = 16_000  # returns of all devices together from which percentiles are taken beyond that


def count(config):
    """The number of devices that share the work of a `Config`, equally many in each process.

    The largest number, up to run.devices, that is available and divides both the environments and
    the sequences of a batch.

    Raises: ValueError, one line, for more processes than can share the work."""
    hosts, numbers = jax.process_count(), (config.run.envs, config.replay.batch)
    most = min(config.run.devices, hosts * min(map(len, _of_processes())))
    fits = [n for n in range(hosts, most + 1, hosts) if not any(number % n for number in numbers)]
    if not fits:
        raise ValueError(
            f"--hosts: {hosts} processes need run.envs, replay.batch and run.devices that are "
            f"multiples of {hosts}, found {config.run.envs}, {config.replay.batch} and "
            f"{config.run.devices}")
    return max(fits)


def mesh(config, groups=1):
    """The mesh of the devices that share the work, along one axis, process by process.

    Of several groups, each shares the work of other seeds; they are along the axis SEEDS."""
    each = count(config) // jax.process_count()
    if groups > 1:
        return Mesh(np.array(jax.devices()[:groups * each]).reshape(groups, each),
                    (SEEDS, DEVICES))
    chosen = [device for found in _of_processes() for device in found[:each]]
    return Mesh(np.array(chosen), (DEVICES,))


def groups(config, seeds):
    """The number of groups of devices among which several seeds are divided.

    Each group has the devices that one seed would have: as many groups as there are devices for,
    and as divide the seeds. They exchange nothing."""
    most = min(seeds, jax.device_count() // count(config))
    return max(n for n in range(1, most + 1) if seeds % n == 0)


def _of_processes():
    """The devices of each process, as lists."""
    found = defaultdict(list)
    for device in jax.devices():
        found[device.process_index].append(device)
    return [found[index] for index in sorted(found)]


def layout(state):
    """How a RunnerState is divided among devices: as it is, with PartitionSpecs instead of arrays.

    The same weights and key on all; each has environments of its own, and the replay of these."""
    same, divided = PartitionSpec(), PartitionSpec(DEVICES)
    replay = state.replay._replace(rows=divided, written=same)
    return state._replace(agent=same, replay=replay, actor=divided, key=same)


def own(rows, count):
    """Of rows of the environments of all processes, the `count` of this one: [E, ...] -> [count]

    What has no more than these is left as it is."""
    first = jax.process_index() * count
    return rows if len(rows) == count else rows[first:first + count]


def mean(tree, dtype=None):
    """The mean over all devices of the arrays of a tree, exchanged as one vector, in `dtype`."""
    flat, restore = ravel_pytree(tree)
    return restore(jax.lax.pmean(flat.astype(dtype or flat.dtype), DEVICES).astype(flat.dtype))


def sample_of(returns):
    """The returns [N, H] of a device from which percentiles are taken; all, up to WHOLE devices

    Beyond, an equal share of SHARE from each: every n-th, where n shares no factor with H, so
    that all steps of a rollout are among them."""
    devices = jax.lax.axis_size(DEVICES)
    most = max(1, SHARE // devices)
    if devices <= WHOLE or returns.size <= most:
        return returns
    distance = returns.size // most
    while math.gcd(distance, returns.shape[1]) > 1:
        distance -= 1
    return returns.reshape(-1)[:most * distance:distance]


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


class Calls(NamedTuple):
    """The compiled functions of a training loop, for one agent or for several seeds at once."""

    init: Any  # (program, key) -> RunnerState
    prefill: Any  # (program, RunnerState, steps) -> RunnerState, EpisodeStats
    train_chunk: Any  # (program, RunnerState, rounds) -> RunnerState, EpisodeStats, metrics
    evaluate: Any  # (program, weights, key) -> returns and lengths of episodes

    def over_seeds(self):
        """The same functions, jitted, for several seeds along a new leading axis."""
        return Calls(init=over_seeds(self.init, (None, 0)),
                     prefill=over_seeds(self.prefill, (None, 0, None), donate=1),
                     train_chunk=over_seeds(self.train_chunk, (None, 0, None), donate=1),
                     evaluate=over_seeds(self.evaluate, (None, 0, 0)))


def over_seeds(function, axes, donate=None):
    """Vectorise a jitted function of one agent over several seeds, along a new leading axis.

    The first argument is the program; the second has the new axis, which is divided among `groups`
    of devices where the function uses `mesh`. `axes` gives for each argument 0 (it has that axis)
    or None (it is static and shared); `donate` is the number of the argument whose memory may be
    reused."""
    static = tuple(place for place, axis in enumerate(axes) if axis is None)
    mapped = partial(_over_seeds, function.__wrapped__, axes)
    return jax.jit(mapped, static_argnums=static, donate_argnums=donate)


def _over_seeds(function, axes, program, *arguments):
    seeds = len(jax.tree.leaves(arguments[0])[0])
    program = replace(program, groups=groups(program.config, seeds))
    name = SEEDS if program.groups > 1 else None
    return jax.vmap(function, axes, spmd_axis_name=name)(program, *arguments)
