"""Checkpoints are restored bit for bit, and damage is noticed."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from utils.core import replay
from utils.run import arrays, checkpoint
from utils.run.checkpoint import Checkpoints

RINGS, SIZE = 2, 8  # environments, rows of each


class Row(NamedTuple):
    """Constant columns, and the two that training refreshes."""

    x: jax.Array
    h: jax.Array
    z: jax.Array


def _empty():
    row = Row(jnp.zeros(3), jnp.zeros(2), jnp.zeros((), jnp.uint8))
    return replay.create(row, RINGS, RINGS * SIZE)


def _written(buffer, rows):
    """The buffer after `rows` more rows, all different, and new latents everywhere."""
    for _ in range(rows):
        t = float(buffer.written)
        x, h, z = t + jnp.arange(6.0).reshape(2, 3), t + jnp.ones((2, 2)), jnp.full(2, int(t))
        buffer = replay.write(buffer, Row(x, h, z.astype(jnp.uint8)))
    bump = 0.5 * buffer.rows.x.any(-1, keepdims=True)  # as training does, on written rows only
    return buffer._replace(rows=buffer.rows._replace(h=buffer.rows.h + bump))


def _save(checkpoints, step, buffer=None, arrays=None):
    record = {"step": step, "note": f"of {step}"}
    checkpoints.save(record, arrays or {"w": np.float32(step)}, jax.device_get(buffer))


def _no_warning(line):
    raise AssertionError(line)


def _same(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


@pytest.fixture
def checkpoints(tmp_path):
    """The checkpoints of an empty run folder."""
    return Checkpoints(tmp_path)


@pytest.mark.parametrize("saves", [[3], [3, 2], [3, 5, 4], [9, 1, 30, 2], [8, 8, 8]])
def test_a_replay_is_restored_exactly_after_any_number_of_saves_and_wraps(
        checkpoints, saves):
    buffer = _empty()
    for number, rows in enumerate(saves):
        buffer = _written(buffer, rows)
        _save(checkpoints, number, buffer)
    saved = checkpoints.load(_no_warning)
    assert _same(replay.restore(_empty(), saved.rows, saved.record["written"]), buffer)


def test_rows_are_written_once_and_deleted_when_no_checkpoint_needs_them(checkpoints):
    buffer, seen = _empty(), {}
    for number in range(8):
        buffer = _written(buffer, 3)
        _save(checkpoints, number, buffer)
        for path in checkpoints.folder.glob("rows-*"):
            assert seen.setdefault(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    assert sorted(path.name for path in checkpoints.folder.glob("*.json")) == [
        "0000000006.json", "0000000007.json"]
    assert sorted(path.name for path in checkpoints.folder.glob("rows-*"))[0] == (
        "rows-0000000012-0000000015.npz")  # the checkpoint before the last still needs row 13
    assert len(seen) == 8


def test_a_checkpoint_without_its_replay_says_so(checkpoints):
    _save(checkpoints, 5)
    saved = checkpoints.load(_no_warning)
    assert saved.rows is None and saved.arrays["w"] == 5 and saved.record["note"] == "of 5"


def test_the_state_of_random_streams_comes_back(checkpoints):
    tree = {"key": jax.random.key(7), "keys": jax.random.split(jax.random.key(1), 3)}
    _save(checkpoints, 1, arrays=arrays.flatten(tree))
    like = jax.eval_shape(lambda: tree)
    back = arrays.unflatten(like, checkpoints.load(_no_warning).arrays)
    assert jax.random.uniform(back["key"]) == jax.random.uniform(jax.random.key(7))
    assert back["keys"].dtype == tree["keys"].dtype and back["keys"].shape == (3,)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def _alter_one_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _harm(path, random):
    """Flip one bit of a file, or cut it, at a random place."""
    data = bytearray(path.read_bytes())
    place = int(random.integers(len(data)))
    if random.integers(2):
        data[place] ^= 1 << int(random.integers(8))
    else:
        del data[place:]
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(100))
def test_a_file_harmed_anywhere_never_gives_wrong_numbers(checkpoints, seed):
    random, first = np.random.default_rng(seed), _written(_empty(), 5)
    second = _written(first, 2)
    _save(checkpoints, 1, first)
    _save(checkpoints, 2, second)
    files = sorted(checkpoints.folder.iterdir())
    _harm(files[seed % len(files)], random)
    lines = []
    saved = checkpoints.load(lines.append)
    step = saved.record["step"]
    assert saved.arrays["w"] == step and step in (1, 2)
    assert lines or (step == 2 and saved.rows)
    if saved.rows is not None:
        restored = replay.restore(_empty(), saved.rows, saved.record["written"])
        assert _same(restored, {1: first, 2: second}[step])


def test_rows_that_both_checkpoints_share_may_be_lost_but_not_the_agent(checkpoints):
    _save(checkpoints, 1, _written(_empty(), 5))
    _save(checkpoints, 2, _written(_written(_empty(), 5), 1))
    _alter_one_byte(checkpoints.folder / "rows-0000000000-0000000005.npz")
    lines = []
    saved = checkpoints.load(lines.append)
    assert saved.record["step"] == 2 and saved.arrays["w"] == 2 and saved.rows is None
    assert len(lines) == 2 and all("is damaged" in line for line in lines)


def test_other_files_in_the_folder_are_left_alone(checkpoints):
    _save(checkpoints, 1)
    (checkpoints.folder / "0000000001 (copy).json").write_text("{}")
    (checkpoints.folder / "0000000009.json").mkdir()
    (checkpoints.folder / "mine.npz").write_bytes(b"mine")
    assert checkpoints.load(_no_warning).record["step"] == 1 == checkpoints.last_step()
    _save(checkpoints, 2)
    assert (checkpoints.folder / "mine.npz").read_bytes() == b"mine"


@pytest.mark.parametrize("harm", [_truncate, _alter_one_byte, lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["0000000002.npz", "rows-0000000003-0000000006.npz"])
def test_a_damaged_file_is_noticed_and_the_checkpoint_before_it_is_used(checkpoints, name, harm):
    buffer = _written(_empty(), 3)
    _save(checkpoints, 1, buffer)
    before = buffer
    _save(checkpoints, 2, _written(buffer, 3))
    harm(checkpoints.folder / name)
    lines = []
    saved = checkpoints.load(lines.append)
    assert saved.record["step"] == 1 and name in lines[0] and len(lines) == 1
    assert _same(replay.restore(_empty(), saved.rows, saved.record["written"]), before)


@pytest.mark.parametrize("harm", [_truncate, _alter_one_byte])
def test_a_damaged_record_is_noticed(checkpoints, harm):
    _save(checkpoints, 1)
    _save(checkpoints, 2)
    harm(checkpoints.folder / "0000000002.json")
    lines = []
    assert checkpoints.load(lines.append).record["step"] == 1
    assert "0000000002.json: is damaged" in lines[0]


def test_a_record_that_was_edited_by_hand_is_noticed(checkpoints):
    _save(checkpoints, 1)
    path = checkpoints.folder / "0000000001.json"
    path.write_text(path.read_text().replace("of 1", "of 2"))
    with pytest.raises(ValueError, match="has no intact checkpoint"):
        checkpoints.load(lambda line: None)


def test_a_checkpoint_of_an_older_version_is_read_but_not_resumed(checkpoints, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(checkpoint, "FORMAT", 1)
        _save(checkpoints, 5)
    with pytest.raises(ValueError, match="was saved by an older version and cannot be resumed"):
        checkpoints.load(_no_warning)
    (saved,) = checkpoints.newest_first(_no_warning)  # a report still reads its weights
    assert saved.arrays["w"] == 5


def test_a_missing_checkpoint_is_reported(checkpoints):
    with pytest.raises(ValueError, match="has no checkpoint to resume from"):
        checkpoints.load(_no_warning)
    assert checkpoints.last_step() is None


def test_a_later_discarded_checkpoint_is_deleted(checkpoints):
    for step in (1, 2, 3):
        _save(checkpoints, step)
    checkpoints.forget_after(2)
    assert checkpoints.last_step() == 2
    assert checkpoints.load(_no_warning).record["step"] == 2


class FullDisk:
    """A stub for the functions that write a file: the n-th call finds no space."""

    def __init__(self, fails_at):
        self.left = fails_at

    def __call__(self, path, data):
        """Write nothing, or fail."""
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"")


@pytest.mark.parametrize("fails_at", [0, 1, 2])  # rows, arrays, record
def test_a_failed_save_leaves_the_older_checkpoint_intact(checkpoints, monkeypatch, fails_at):
    _save(checkpoints, 1, _written(_empty(), 3))
    disk = FullDisk(fails_at)
    monkeypatch.setattr(checkpoint, "save", disk)
    monkeypatch.setattr(checkpoint, "replace", disk)
    with pytest.raises(OSError):
        _save(checkpoints, 2, _written(_empty(), 6))
    assert checkpoints.load(_no_warning).record["step"] == 1


def test_a_checkpoint_consists_of_arrays_and_json_without_pickle(checkpoints):
    _save(checkpoints, 1, _written(_empty(), 3))
    for path in checkpoints.folder.iterdir():
        assert path.suffix in (".json", ".npz")
    json.loads((checkpoints.folder / "0000000001.json").read_text())
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        _save(checkpoints, 2, arrays={"w": np.array([object()])})
