"""A replay buffer on the device: one ring of rows per environment, sampled in sequences.

The buffer is a pytree of arrays [E, C, ...] (E environments, C rows each), written, read and
refreshed inside compiled loops. XLA updates it in place and never copies it (a test checks this by
the temporary memory of the compiled program).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from utils.core import devices


class Replay(NamedTuple):
    """`rows` is a pytree [E, C, ...]; `written` counts the rows ever written to each ring."""

    rows: Any
    written: jax.Array


class Index(NamedTuple):
    """The positions of sampled rows: ring [B, 1] and place in the ring [B, L]."""

    ring: jax.Array
    place: jax.Array


def create(row, envs, capacity):
    """An empty buffer of `capacity` rows in total, for rows like `row` (a pytree of one row).

    Of several processes, each has the rings of its own environments."""
    shape = (envs // jax.process_count(), capacity // envs)
    rows = jax.tree.map(lambda leaf: jnp.zeros(shape + leaf.shape, leaf.dtype), row)
    return Replay(rows, jnp.zeros((), jnp.int32))


def ring_size(replay):
    """C, the number of rows that one environment's ring holds."""
    return jax.tree.leaves(replay.rows)[0].shape[1]


def write(replay, row):
    """Append one row [E, ...] to every ring; a full ring overwrites its oldest row.

    Of the rows of all processes, those of this one are written (devices.own)."""
    place = replay.written % ring_size(replay)
    rows = jax.tree.map(lambda all_, new: all_.at[:, place].set(devices.own(new, len(all_))),
                        replay.rows, row)
    return Replay(rows, replay.written + 1)


def sample(replay, key, batch, length, recent=0):
    """Sample `batch` sequences of `length` consecutive rows, uniform over rings and starts.

    A sequence may span episodes but never wraps from the newest row to the oldest.
    At least `length` rows must have been written to each ring. With the probability `recent`, a
    start is drawn in proportion to 1 / its age instead, where the newest one has the age 1.

    Shapes: rows [B, L, ...], Index."""
    size = ring_size(replay)
    envs = jax.tree.leaves(replay.rows)[0].shape[0]
    filled = jnp.minimum(replay.written, size)
    ring_key, start_key = jax.random.split(key)
    ring = jax.random.randint(ring_key, (batch, 1), 0, envs)
    starts = filled - length + 1
    start = jax.random.randint(start_key, (batch, 1), 0, starts)
    if recent:
        age_key, choice_key = jax.random.split(jax.random.fold_in(key, 1))
        age = (starts + 1.0) ** jax.random.uniform(age_key, (batch, 1))  # uniform in its logarithm
        newer = starts - jnp.clip(age.astype(jnp.int32), 1, starts)
        start = jnp.where(jax.random.bernoulli(choice_key, recent, (batch, 1)), newer, start)
    place = (replay.written - filled + start + jnp.arange(length)) % size
    return jax.tree.map(lambda leaf: leaf[ring, place], replay.rows), Index(ring, place)


def refresh(replay, index, columns):
    """Write new values of some columns back to the positions of sampled rows.

    Shapes: `columns` maps a field's name to [B, L, ...]; `index` as `sample` returned it."""
    stored = {
        name: getattr(replay.rows, name).at[index.ring, index.place].set(new)
        for name, new in columns.items()
    }
    return replay._replace(rows=replay.rows._replace(**stored))


def restore(empty, rows, written):
    """A Replay like `empty` with saved rows, the last ones of `written`, and zeros elsewhere.

    Shapes: rows maps a field's name to [E, n, ...], oldest first, n = min(written, C).
    Raises: ValueError naming the first column that is missing, unexpected or of another shape."""
    size, columns = ring_size(empty), empty.rows._asdict()
    living = min(written, size)
    if rows.keys() != columns.keys():
        raise ValueError(f"the replay has columns {sorted(rows)}, expected {sorted(columns)}")
    places, restored = np.arange(written - living, written) % size, {}
    for name, column in columns.items():
        shape = (column.shape[0], living, *column.shape[2:])
        if rows[name].shape != shape or rows[name].dtype != column.dtype:
            raise ValueError(
                f"the replay's {name!r} is {rows[name].dtype}{list(rows[name].shape)}, "
                f"expected {column.dtype}{list(shape)}")
        restored[name] = np.zeros(column.shape, column.dtype)
        restored[name][:, places] = rows[name]
    return Replay(jax.tree.map(jnp.array, type(empty.rows)(**restored)), jnp.int32(written))
