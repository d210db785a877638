"""Samples are successive rows that were written; in a compiled loop nothing is ever copied."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import dreamer
import gymnax_wrappers
from utils.core import config, devices, replay
from utils.core.config import ConfigError
from utils.core.settings import Config, updates_per_steps

RINGS, SIZE, LENGTH = 3, 10, 4
MILLION = 1_000_000


class Row(NamedTuple):
    """Row t of ring e has n = 100 e + t, and h says the same in two floats."""

    n: jax.Array
    h: jax.Array


def numbered(t):
    """The t-th row of every ring."""
    n = 100 * jnp.arange(RINGS) + t
    return Row(n, jnp.stack([n, n], -1).astype(jnp.float32))


@jax.jit
def filled(written):
    """A buffer after so many writes to each ring."""
    empty = replay.create(Row(jnp.int32(-1), jnp.zeros(2)), RINGS, RINGS * SIZE)
    return jax.lax.fori_loop(0, written, lambda t, buffer: replay.write(buffer, numbered(t)), empty)


@jax.jit
def draw(buffer, seed):
    """Many sequences of LENGTH rows, and where they stand."""
    return replay.sample(buffer, jax.random.key(seed), 6000, LENGTH)


def oldest(written):
    """Number of the oldest row that is still there."""
    return max(0, written - SIZE)


@pytest.mark.parametrize("written", [LENGTH, 7, SIZE, SIZE + 1, 17, 2 * SIZE, 35])
def test_samples_are_successive_written_rows_of_one_ring_and_every_start_is_drawn(written):
    rows, index = draw(filled(written), 0)
    ring, t = np.divmod(rows.n, 100)
    assert_array_equal(ring, np.broadcast_to(index.ring, ring.shape))
    assert_array_equal(t - t[:, :1], np.broadcast_to(np.arange(LENGTH), t.shape))
    starts = range(oldest(written), written - LENGTH + 1)
    assert set(zip(ring[:, 0], t[:, 0])) == {(e, t) for e in range(RINGS) for t in starts}
    assert_array_equal(rows.h, np.stack([rows.n, rows.n], -1))


@pytest.mark.parametrize("written", [7, 17])
def test_rings_and_starts_are_drawn_uniformly_and_independently(written):
    rows, _ = draw(filled(written), 1)
    ring, t = np.divmod(rows.n[:, 0], 100)
    kinds = min(written, SIZE) - LENGTH + 1
    counts = np.bincount(ring * kinds + t - oldest(written), minlength=RINGS * kinds)
    expected = 6000 / (RINGS * kinds)
    freedom = RINGS * kinds - 1
    assert np.sum((counts - expected) ** 2 / expected) < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("written", [LENGTH, 7, 17])
def test_recent_starts_are_drawn_in_proportion_to_one_over_their_age(written):
    rows, index = jax.jit(lambda buffer: replay.sample(
        buffer, jax.random.key(3), 20_000, LENGTH, 1.0))(filled(written))
    t = rows.n % 100
    assert_array_equal(t - t[:, :1], np.broadcast_to(np.arange(LENGTH), t.shape))
    kinds = min(written, SIZE) - LENGTH + 1
    age = written - LENGTH + 1 - t[:, 0]  # 1 is the newest start
    counts = np.bincount(age, minlength=kinds + 1)[1:]
    edges = np.log1p(np.arange(kinds + 1)) / np.log1p(kinds)  # 1 / age, integrated from age to + 1
    expected = 20_000 * np.diff(edges)
    assert len(counts) == kinds
    assert np.sum((counts - expected) ** 2 / expected) < kinds + 4 * (2 * kinds) ** 0.5
    assert set(index.ring[:, 0].tolist()) == set(range(RINGS))


def test_a_share_of_the_sequences_is_recent_and_the_others_are_drawn_as_without():
    buffer = filled(17)
    draws = jax.jit(replay.sample, static_argnums=(2, 3, 4))
    uniform, some, all_ = (draws(buffer, jax.random.key(4), 20_000, LENGTH, share)[0].n[:, 0]
                           for share in (0, 0.25, 1.0))
    same = np.mean((some == uniform) & (some != all_))
    changed = np.mean((some != uniform) & (some == all_))
    assert_array_equal((some == uniform) | (some == all_), True)
    assert changed / (changed + same) == pytest.approx(0.25, abs=0.02)


def test_a_full_ring_holds_the_newest_rows_each_at_its_number_modulo_the_size():
    buffer = filled(17)
    for ring, rows in enumerate(buffer.rows.n):
        assert sorted(rows.tolist()) == [100 * ring + t for t in range(7, 17)]
        assert_array_equal(rows % 100 % SIZE, np.arange(SIZE))


def test_refresh_writes_where_the_rows_came_from_and_nowhere_else():
    buffer = filled(17)
    rows, index = replay.sample(buffer, jax.random.key(2), 2, LENGTH)
    fresh = replay.refresh(buffer, index, {"h": rows.h + 0.5})
    assert_array_equal(fresh.rows.n, buffer.rows.n)
    assert fresh.written == buffer.written
    sampled = np.isin(buffer.rows.n, rows.n)
    assert LENGTH <= sampled.sum() <= 2 * LENGTH
    assert_array_equal(fresh.rows.h, buffer.rows.h + 0.5 * sampled[..., None])


def test_a_run_that_would_sample_before_there_are_rows_enough_is_refused():
    least = ["replay.length=16", "run.envs=2", "run.prefill=34"]
    assert config.load("dreamer.yaml", Config, ["debug"], least).run.prefill == 34
    with pytest.raises(ConfigError, match="run.prefill: expected at least .* 34 steps, found 33"):
        config.load("dreamer.yaml", Config, ["debug"], [*least, "run.prefill=33"])


# ---- Memory: everything is compiled on shapes alone, nothing is allocated ------------------------


def write_then_read(buffer, key):
    """A step of training as far as the buffer is concerned."""
    buffer = replay.write(buffer, numbered(0))
    rows, index = replay.sample(buffer, key, 8, 16)
    return replay.refresh(buffer, index, {"h": rows.h + 1.0}), None


def read_then_write(buffer, key):
    """The same in an order that XLA cannot do in place: the control of these tests."""
    rows, index = replay.sample(buffer, key, 8, 16)
    buffer = replay.write(buffer, numbered(0))
    return replay.refresh(buffer, index, {"h": rows.h + 1.0}), None


def memory(step, donate):
    """Bytes of (the buffer, scratch memory, outputs that reuse inputs) of 100 compiled steps."""
    create = partial(replay.create, Row(jnp.int32(0), jnp.zeros(2)), RINGS, RINGS * MILLION)
    buffer, keys = jax.eval_shape(lambda: (create(), jax.random.split(jax.random.key(0), 100)))
    loop = jax.jit(partial(jax.lax.scan, step), donate_argnums=donate)
    used = loop.lower(buffer, keys).compile().memory_analysis()
    return bytes_of(buffer), used.temp_size_in_bytes, used.alias_size_in_bytes


def bytes_of(tree):
    """Bytes of all arrays of a tree of shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_a_loop_that_writes_and_then_reads_a_million_rows_a_ring_copies_nothing():
    buffer, scratch, reused = memory(write_then_read, donate=0)
    assert buffer > 30 * MILLION and scratch < 0.001 * buffer and reused >= buffer


def test_the_check_sees_the_copies_of_a_loop_that_reads_before_it_writes():
    buffer, scratch, _ = memory(read_then_write, donate=0)
    assert scratch > 0.3 * buffer


def test_the_check_sees_that_nothing_is_reused_without_donation():
    assert memory(write_then_read, donate=())[2] == 0


@pytest.mark.parametrize("ratio, updates_and_steps", [
    (2, (1, 2)), pytest.param(4, (2, 2), marks=pytest.mark.slow)],
                         ids=["as shipped", "an update a step"])
def test_a_chunk_with_a_million_rows_copies_not_even_one_column(ratio, updates_and_steps):
    # the smallest networks, so that whatever scratch memory there is, is the buffer's
    sets = [f"run.train_ratio={ratio}", "replay.capacity=1000000", "replay.batch=2",
            "replay.length=4", "model.deter=8", "model.units=4", "model.hidden=4", "model.bins=15"]
    settings = config.load("dreamer.yaml", Config, ["debug"], sets)
    program, _ = dreamer.build(settings, gymnax_wrappers.make("CartPole-v1"))
    assert updates_per_steps(settings) == updates_and_steps
    loop = dreamer.init.eval_shape(program, jax.random.key(0))
    used = dreamer.train_chunk.lower(program, loop, 2).compile().memory_analysis()
    smallest = min(bytes_of(column) for column in loop.replay.rows)
    each = devices.count(settings)  # of so many devices has its part, and XLA's figures are of one
    assert smallest == MILLION and each * used.temp_size_in_bytes < 0.2 * smallest
    assert each * used.alias_size_in_bytes >= bytes_of(loop.replay)


@pytest.mark.slow
def test_the_memory_of_a_run_of_50000_steps_with_a_million_rows_does_not_grow(tmp_path):
    sets = ["replay.capacity=1000000", "run.envs=16", "run.prefill=1040", "run.train_ratio=1",
            "run.chunk=1000", "run.eval_every=1000000", "run.save_every=1000000"]
    command = [sys.executable, "dreamer.py", "--preset", "debug", "--steps", "50000",
               "--logdir", str(tmp_path / "run"), *(f"--set={one}" for one in sets)]
    log, sizes = tmp_path / "run" / "metrics.jsonl", []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if log.exists() and log.stat().st_size:  # all is compiled, and the replay allocated
                status = Path(f"/proc/{process.pid}/status").read_text()
                sizes += [int(line.split()[1]) / 1e3 for line in status.splitlines()
                          if line.startswith("VmRSS")]
            time.sleep(0.2)
    assert process.returncode == 0 and len(sizes) > 20
    first, last = np.median(sizes[2:7]), np.median(sizes[-12:-7])  # before the end's picture
    print(f"\n{first:.0f} MB after the first chunk, {last:.0f} MB at the end")
    assert last < first + 20
