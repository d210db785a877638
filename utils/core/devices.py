"""Several agents in one compiled program, and one agent on several devices."""

from dataclasses import replace
from functools import partial, wraps

import jax
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

DIVISION = "devices"  # the axis along which environments and batches are divided
WHOLE, DIVIDED = PartitionSpec(), PartitionSpec(DIVISION)  # on each device all of it, or its part


def side_by_side(function, axes, donate=None):
    """A compiled function of one agent as one of several agents, which have an axis in front.

    `axes` says of each argument whether it has that axis (0) or is static and shared (None);
    `donate` is the number of the argument whose memory may be used again."""
    static = tuple(place for place, axis in enumerate(axes) if axis is None)
    mapped = jax.vmap(function.__wrapped__, axes)
    return jax.jit(mapped, static_argnums=static, donate_argnums=donate)


def sharers(config):
    """How many devices share the work of a `Config`: as many as there are, up to run.devices,

    and as divide both the environments and the sequences of a batch without a rest."""
    most = min(config.run.devices, jax.device_count())
    numbers = config.run.envs, config.replay.batch
    return max(n for n in range(1, most + 1) if not any(number % n for number in numbers))


def divided(function):
    """A function (program, Loop, number) -> (Loop, Finished [.., .., E], metrics) on all sharers.

    Each device runs the whole function, but of a program with its part of the environments and of
    the batch: it has their replay and random numbers of its own. The gradient (`averaging`) and the
    percentiles of the returns (`gathered`) are those of all, so that all agents stay the same;
    metrics are means over the devices."""
    return wraps(function)(partial(_on_all, function))


def _on_all(function, program, loop, number):
    count = sharers(program.config)
    if count == 1:
        return function(program, loop, number)
    part = replace(program, config=_part(program.config, count))
    parts = loop._replace(agent=WHOLE, player=DIVIDED, key=WHOLE,
                          replay=loop.replay._replace(rows=DIVIDED, written=WHOLE))
    results = (parts, PartitionSpec(None, None, DIVISION), WHOLE)
    mesh = Mesh(jax.devices()[:count], (DIVISION,))
    # What stands behind WHOLE comes from the first device; that all have the same, a test says.
    return jax.shard_map(partial(_on_one, function, part, number), mesh=mesh, in_specs=(parts,),
                         out_specs=results, check_vma=False)(loop)


def _on_one(function, program, number, loop):
    own = jax.random.fold_in(loop.key, jax.lax.axis_index(DIVISION))
    after, finished, metrics = function(program, loop._replace(key=own), number)
    key = jax.random.fold_in(loop.key, jax.lax.axis_size(DIVISION))  # again the same on all
    return after._replace(key=key), finished, _mean(metrics)


def _part(config, count):
    """The numbers of one of `count` devices."""
    run, batch = config.run, config.replay.batch // count
    return replace(config, run=replace(run, envs=run.envs // count),
                   replay=replace(config.replay, batch=batch))


def averaging():
    """A gradient transformation: the mean over the devices."""
    return optax.stateless(lambda grads, _: _mean(grads))


def gathered(function):
    """A function (y, x, ...) of x [...] as one whose x is that of all devices, [devices, ...]."""
    return wraps(function)(partial(_gathered, function))


def _gathered(function, y, x, *more):
    return function(y, jax.lax.all_gather(x, DIVISION) if _is_shared() else x, *more)


def _mean(tree):
    """The mean over the devices of each array; they travel as one."""
    if not _is_shared():
        return tree
    flat, restore = ravel_pytree(tree)
    return restore(jax.lax.pmean(flat, DIVISION))


def _is_shared():
    """Whether what is being traced is the work of one device among several."""
    try:
        return jax.lax.axis_size(DIVISION) > 1
    except NameError:  # jax's error for an axis that is not there
        return False
