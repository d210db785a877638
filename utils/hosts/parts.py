"""Arrays of several processes: each one's part of them, on the host and on its devices.

Where one process has all devices, every function here gives what it was given.
"""

from functools import partial

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from utils.core import devices
from utils.core.devices import DEVICES
from utils.hosts.group import GROUP

PIECE = 2**26  # bytes that process 0 sends to all at once


def own(tree):
    """This process's part of a tree of arrays, on the host; what all have in common in full

    Shapes: [E, ...] -> [E / processes, ...] of arrays that are divided along axis 0."""
    return jax.tree.map(_own, tree) if GROUP.shares else jax.device_get(tree)


def _own(leaf):
    if _is_key(leaf):
        return jax.random.wrap_key_data(_own(jax.random.key_data(leaf)))
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.array(leaf)
    shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def own_envs(config, actor):
    """This process's environments of those of all: [E, ...] -> [E / processes, ...]"""
    count = config.run.envs // GROUP.count if GROUP.shares else config.run.envs
    return jax.tree.map(lambda leaf: devices.own(leaf, count), actor)


def own_key(key):
    """A random key of this process's own; the same one where it is alone."""
    return jax.random.fold_in(key, GROUP.index) if GROUP.shares else key


def of_all(config, stats):
    """Numbers of all environments [steps, E] from those of this process's; all are left as they are

    For the few before the first update: they go as text."""
    leaves, structure = jax.tree.flatten(jax.device_get(stats))
    if not GROUP.shares or leaves[0].shape[-1] == config.run.envs:
        return stats
    found = GROUP.gather("stats", [leaf.tolist() for leaf in leaves])
    return jax.tree.unflatten(structure, [
        np.concatenate([np.array(part, leaf.dtype) for part in parts], axis=-1)
        for leaf, parts in zip(leaves, zip(*found))])


def placed(config, state):
    """A RunnerState of this process's arrays as one of all: every device gets its part

    Shapes: actor [E, ...] of all or [E / processes, ...] of this one, replay always of this one;
    the agent is equal in all processes, and the key becomes that of process 0."""
    if not GROUP.shares:
        return state
    numbers = GROUP.gather("key", np.asarray(jax.random.key_data(state.key)).tolist())[0]
    state = state._replace(key=jax.random.wrap_key_data(np.array(numbers, np.uint32)))
    mesh = devices.mesh(config)
    place = partial(_placed, mesh, config.run.envs)
    return jax.tree.map(lambda spec, part: jax.tree.map(partial(place, spec), part),
                        devices.layout(state), state, is_leaf=_is_spec)


def _placed(mesh, envs, spec, leaf):
    if _is_key(leaf):
        return jax.random.wrap_key_data(_placed(mesh, envs, spec, jax.random.key_data(leaf)))
    here = mesh.local_devices
    shape, parts = leaf.shape, [leaf] * len(here)
    if spec:
        leaf = devices.own(leaf, envs // GROUP.count)
        size, shape = len(leaf) // len(here), (envs, *leaf.shape[1:])
        parts = [leaf[n * size:(n + 1) * size] for n in range(len(here))]
    arrays = [jax.device_put(part, device) for part, device in zip(parts, here)]
    return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, spec), arrays)


def shapes(config, state):
    """The shapes of this process's RunnerState as those of `placed`, for the compiler."""
    if not GROUP.shares:
        return state
    mesh, envs = devices.mesh(config), config.run.envs
    return jax.tree.map(lambda spec, part: jax.tree.map(partial(_shape, mesh, envs, spec), part),
                        devices.layout(state), state, is_leaf=_is_spec)


def _shape(mesh, envs, spec, leaf):
    shape = (envs, *leaf.shape[1:]) if spec else leaf.shape
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


def from_first(config, tree):
    """A tree of arrays of process 0 in all processes, to the bit; theirs need the same shapes."""
    if not GROUP.shares:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    plain = [np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for leaf in leaves]
    whole = np.concatenate([leaf.reshape(-1).view(np.uint8) for leaf in plain])
    mesh, pieces = devices.mesh(config), range(0, len(whole), PIECE)
    meet("arrays of process 0")
    found = np.concatenate([_sent(mesh, whole[at:at + PIECE]) for at in pieces])
    ends = np.cumsum([leaf.nbytes for leaf in plain])
    sent = [found[end - leaf.nbytes:end].view(leaf.dtype).reshape(leaf.shape)
            for leaf, end in zip(plain, ends)]
    return jax.tree.unflatten(structure, [
        jax.random.wrap_key_data(new) if _is_key(old) else new for new, old in zip(sent, leaves)])


def _sent(mesh, piece):
    """Bytes [n] of process 0: the sum over all devices, of which the others add zeros."""
    arrays = [jax.device_put((piece if GROUP.is_first and not n else np.zeros_like(piece))[None],
                             device) for n, device in enumerate(mesh.local_devices)]
    divided = jax.make_array_from_single_device_arrays(
        (mesh.size, len(piece)), NamedSharding(mesh, PartitionSpec(DEVICES)), arrays)
    add = jax.shard_map(lambda part: jax.lax.psum(part[0], DEVICES), mesh=mesh,
                        in_specs=PartitionSpec(DEVICES), out_specs=PartitionSpec())
    return np.asarray(jax.jit(add)(divided).addressable_data(0))


def meet(name):
    """Wait here for all processes: who is late at the first operation of all ends the run (gloo

    waits 30 s for it, whatever takes longer: a compilation, for example)."""
    if GROUP.shares:
        GROUP.gather(f"meet/{name}", None)


def _is_key(leaf):
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)


def _is_spec(leaf):
    return isinstance(leaf, PartitionSpec)
